"""The making of the weights that ship in the package."""
