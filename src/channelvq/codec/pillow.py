"""Pillow opens .cvq files once this module is imported: `import channelvq.codec.pillow`, then `Image.open("x.cvq")`.

The size is known at once; the tokenizer is loaded and the picture decoded where its pixels are asked for.
"""

from typing import Any, cast

from PIL import Image, ImageFile

from channelvq.codec.container import MOST_BYTES, Header, check_length, is_cvq, read_header

FORMAT = "CVQ"


class CVQImageFile(ImageFile.ImageFile):
    """A .cvq file; `info` holds what its header says."""

    format = FORMAT
    format_description = "Channel-wise vector quantized image"

    def _open(self) -> None:
        self._data = cast(Any, self.fp).read(MOST_BYTES + 1)
        self._header, start = read_header(self._data, name := self._named())
        check_length(self._data, self._header, start, name)
        self._size, self._mode = (self._header.width, self._header.height), "RGB"
        self.info |= _facts(self._header)
        self._decoded = False

    def load(self) -> Any:
        """The pixels, decoded the first time."""
        if not self._decoded:
            from channelvq.codec.at_hand import scores_for, tokenizer_for
            from channelvq.codec.decode import decompress

            name = self._named()
            tokenizer = tokenizer_for(self._header, name)
            car = scores_for(self._header, name) if self._header.kind == "car" else None
            self.im = decompress([self._data], tokenizer, car=car, names=[name])[0].im
            self._decoded = True
            if self.fp and self._exclusive_fp:  # all of it is read
                self.fp.close()
        return super().load()

    def _named(self) -> str:
        return f"image file {self.filename!r}" if self.filename else "image"


def _facts(header: Header) -> dict[str, Any]:
    facts = {"num_tokens": header.num_tokens, "model": header.kind}
    return facts | ({"comment": header.text} if header.text else {})


Image.register_open(FORMAT, CVQImageFile, is_cvq)
Image.register_extension(FORMAT, ".cvq")
Image.register_mime(FORMAT, "image/x-cvq")
