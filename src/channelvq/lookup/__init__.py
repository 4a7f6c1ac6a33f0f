"""The exact nearest codeword, in bounded memory. How and why: HOW.md in this folder."""

from channelvq.lookup.nearest import nearest_codeword

__all__ = ["nearest_codeword"]
