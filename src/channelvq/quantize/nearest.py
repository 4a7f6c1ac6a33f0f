"""The earlier place of `channelvq.lookup.nearest_codeword`."""

from channelvq.lookup import nearest_codeword

__all__ = ["nearest_codeword"]
