"""The export of a generator without its language model, which runs elsewhere: text to tokens, their texts to ids."""

from pathlib import Path

import torch

from channelvq.car.export import IMAGE_TOKEN, IMAGE_TOKENIZER, ExportLayout, image_token
from channelvq.car.text import TextBatch, TextTokenizer
from channelvq.devices import resolve_device
from channelvq.errors import InputError
from channelvq.pretrained import read_settings
from channelvq.tokenizer import CVQTokenizer

_LONGEST = len(image_token(10**9))  # characters of the text of an image token, and more


class Exported:
    """What `cvq export` wrote to a folder, for whatever format: both tokenizers and where the image tokens are.

    Raises InputError for any other folder, and for an export whose image tokens have no texts.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        folder = Path(folder)
        self.layout = ExportLayout.load(folder)
        self.text = TextTokenizer.load(folder)
        self.tokenizer = CVQTokenizer.from_pretrained(folder / IMAGE_TOKENIZER, device=resolve_device(device))
        layout, longest = self.layout, read_settings(folder / "tokenizer_config.json").get("model_max_length")
        if not isinstance(longest, int) or longest <= layout.num_tokens + 1:
            raise InputError(f"{folder}: tokenizer_config.json does not say how long a text may be; export it again")
        self.max_text_tokens = longest - 1 - layout.num_tokens
        fits = layout.num_tokens <= self.tokenizer.num_tokens and layout.codebook_size == self.tokenizer.codebook_size
        if not fits:
            raise InputError(f"{folder}: the image tokenizer is not the one of this export; export it again")
        if self.text.tokenizer.token_to_id(image_token(0)) != layout.first_image_id:
            raise InputError(
                f"{folder}: image tokens have no texts there; export it again (only a BPE tokenizer of text has them)"
            )

    @property
    def num_tokens(self) -> int:
        """C, tokens of an image."""
        return self.layout.num_tokens

    @property
    def device(self) -> torch.device:
        """Where pictures are decoded."""
        return self.tokenizer.device

    def prompt(self, text: TextBatch) -> tuple[list[int], str]:
        """What the language model is asked to continue, of one row of text: as tokens with the marker, and as text, to
        which the exported text tokenizer appends the marker itself.
        """
        tokens = text.ids[text.mask].tolist()
        return [*tokens, self.layout.marker_id], self.text.tokenizer.decode(tokens, skip_special_tokens=False)


class ImageIds:
    """Image ids from the text that a language model writes, piece by piece. ids: so far.

    Raises InputError for text that is no image token, and for more tokens than asked for.
    """

    def __init__(self, layout: ExportLayout, num_tokens: int) -> None:
        self.layout, self.num_tokens = layout, num_tokens
        self.ids: list[int] = []
        self._rest = ""

    def add(self, piece: str) -> None:
        """One more piece, which may end within a token."""
        self._rest += piece
        while match := IMAGE_TOKEN.match(self._rest):
            code = int(match[1])
            if code >= self.layout.codebook_size:
                raise InputError(f"image token {code} is outside 0..{self.layout.codebook_size - 1}")
            self.ids.append(code)
            self._rest = self._rest[match.end() :]
        if len(self.ids) > self.num_tokens:
            raise InputError(f"more than the {self.num_tokens} image tokens that it was asked for")
        if len(self._rest) > _LONGEST or self._rest[:8] != image_token(0)[: len(self._rest[:8])]:
            self._refuse_rest()

    def end(self) -> list[int]:
        """All ids; InputError where some are missing."""
        if self._rest:
            self._refuse_rest()
        if len(self.ids) != self.num_tokens:
            raise InputError(f"{len(self.ids)} image tokens, {self.num_tokens} were asked for")
        return self.ids

    def _refuse_rest(self) -> None:
        raise InputError(f"{self._rest[:20]!r} after {len(self.ids)} image tokens")
