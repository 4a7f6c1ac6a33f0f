"""`.cvq`: a picture file of which any prefix is a picture. docs/format.md is its specification.

Importing this package is cheap: torch is loaded when the first name below is used.
"""

from typing import TYPE_CHECKING

from channelvq.lazy import lazily

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

__getattr__ = lazily(__name__, {
    "CodeTables": "channelvq.codec.tables",
    "DamagedWarning": "channelvq.codec.container",
    "Decoded": "channelvq.codec.decode",
    "Header": "channelvq.codec.container",
    "compress": "channelvq.codec.encode",
    "compress_ids": "channelvq.codec.encode",
    "decompress": "channelvq.codec.decode",
    "decompress_ids": "channelvq.codec.decode",
    "read_header": "channelvq.codec.container",
})  # fmt: skip


def __dir__() -> list[str]:
    return __all__
