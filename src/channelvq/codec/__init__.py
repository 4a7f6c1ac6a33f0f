"""`.cvq`: a picture file of which any prefix is a picture. docs/format.md is its specification.

Importing this package is cheap: torch is loaded when the first name below is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from channelvq.codec.container import DamagedWarning, Header, read_header
    from channelvq.codec.decode import Decoded, decompress, decompress_ids
    from channelvq.codec.encode import compress, compress_ids
    from channelvq.codec.tables import CodeTables

__all__ = [
    "CodeTables",
    "DamagedWarning",
    "Decoded",
    "Header",
    "compress",
    "compress_ids",
    "decompress",
    "decompress_ids",
    "read_header",
]

_HOMES = {
    "CodeTables": "tables",
    "DamagedWarning": "container",
    "Decoded": "decode",
    "Header": "container",
    "compress": "encode",
    "compress_ids": "encode",
    "decompress": "decode",
    "decompress_ids": "decode",
    "read_header": "container",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'channelvq.codec' has no attribute {name!r}")
    return getattr(import_module(f"channelvq.codec.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
