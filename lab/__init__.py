"""What answers questions about the product: studies, benches, bundled weights, tables. Not in the wheel."""
