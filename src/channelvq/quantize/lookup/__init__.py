"""The passes of the exact nearest-codeword lookup (quantize/nearest.py puts them together)."""
