"""What ails a codebook: figures, findings with remedies, pictures, a page."""
