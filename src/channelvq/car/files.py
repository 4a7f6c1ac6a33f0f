"""A generator's folder: config.json, model.safetensors, tokenizer.json (text) and tokenizer/ (images)."""

from pathlib import Path

import torch
from torch import Tensor

from channelvq.car.backbone import check_saved_settings
from channelvq.car.config import CARConfig
from channelvq.car.text import TextTokenizer
from channelvq.config import digest, from_dict, to_dict
from channelvq.errors import InputError
from channelvq.pretrained import (
    CONFIG,
    WEIGHTS,
    read_header,
    read_metadata,
    read_settings,
    read_weights,
    tensors_sha256,
    write_settings,
    write_weights,
)
from channelvq.tokenizer import CVQTokenizer

TOKENIZERS = ("tokenizer.json", "tokenizer/*")
ELSEWHERE = ("tokenizer.",)  # tensors of the image tokenizer, by the beginning of their names: in its own folder
_WORDS, _IMAGES = "text_tokenizer_sha256", "image_tokenizer_sha256"


def read_tokenizers(folder: Path) -> tuple[CVQTokenizer, TextTokenizer]:
    """The two tokenizers of a generator's folder.

    Raises InputError for a file that is missing or damaged, for settings that no generator is saved with, and where the
    weights learned other tokens than those of the two.
    """
    path = folder / CONFIG
    config = from_dict(CARConfig, read_settings(path), where=str(path))
    if isinstance(config.backbone, str):  # whose files could ask for code of their own
        raise InputError(f"{path}: backbone {config.backbone!r:.80} is a name; a saved generator holds its settings")
    check_saved_settings(config.backbone, len(read_header(folder / WEIGHTS)), str(path))
    if not (folder / "tokenizer").is_dir():  # a relative path that is not there could be taken for a hub repository
        raise InputError(f"{folder}: the folder holds no tokenizer/, the image tokenizer of a saved generator")
    tokenizer, text = CVQTokenizer.from_pretrained(folder / "tokenizer"), TextTokenizer.load(folder)
    learned = read_metadata(folder / WEIGHTS)  # without the digests in older files
    for key, own, what in (
        (_WORDS, text.digest(), "text tokenizer than the one in tokenizer.json"),
        (_IMAGES, _content_sha256(tokenizer), "image tokenizer than the one in its folder tokenizer/"),
    ):
        if learned.get(key, own) != own:
            raise InputError(f"{folder}: the generator was trained on another {what}; put the right one there")
    if _IMAGES not in learned and not _learned(folder, tokenizer.quantizer.codes()):
        raise InputError(
            f"{folder}: the generator was trained on another image tokenizer than the one in its folder tokenizer/ "
            "(its codebook has other values); put the right one there"
        )
    return tokenizer, text


def _learned(folder: Path, codes: Tensor) -> bool:
    """Whether weights without digests hold this codebook."""
    learned = read_weights(folder / WEIGHTS).get("codebook")
    return learned is not None and torch.equal(learned, codes.to(learned.dtype))


def _content_sha256(tokenizer: CVQTokenizer) -> str:
    """SHA-256 of what decides an image's ids and pictures: settings, and weights whatever precision they are in."""
    weights = {n: t.float() if t.is_floating_point() else t for n, t in tokenizer.state_dict().items()}
    return tensors_sha256(weights, digest(tokenizer.config))


def write_generator(
    folder: Path, config: CARConfig, tokenizer: CVQTokenizer, text: TextTokenizer, weights: dict[str, Tensor]
) -> None:
    """Write all files of a generator."""
    learned = {_WORDS: text.digest(), _IMAGES: _content_sha256(tokenizer)}
    write_weights(folder / WEIGHTS, weights, {"format": "pt"} | learned)
    text.save(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_settings(folder / CONFIG, to_dict(config))  # the last: where it is, the folder is complete
