"""CAR: text to image by predicting the next channel (arXiv 2605.26089)."""
