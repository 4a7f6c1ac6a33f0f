"""A generator's folder: config.json, model.safetensors, tokenizer.json (text) and tokenizer/ (images)."""

from pathlib import Path

import torch
from torch import Tensor

from channelvq.car.config import CARConfig
from channelvq.car.text import TextTokenizer
from channelvq.config import from_dict, to_dict
from channelvq.errors import InputError
from channelvq.pretrained import (
    CONFIG,
    WEIGHTS,
    read_metadata,
    read_settings,
    read_weights,
    write_settings,
    write_weights,
)
from channelvq.tokenizer import CVQTokenizer

TOKENIZERS = ("tokenizer.json", "tokenizer/*")
ELSEWHERE = ("tokenizer.",)  # tensors of the image tokenizer, by the beginning of their names: in its own folder
_WORDS = "text_tokenizer_sha256"


def read_parts(folder: Path) -> tuple[CARConfig, CVQTokenizer, TextTokenizer]:
    """What a generator is built from; raises InputError for a file that is missing or damaged."""
    config = from_dict(CARConfig, read_settings(folder / CONFIG), where=str(folder / CONFIG))
    if not (folder / "tokenizer").is_dir():  # a relative path that is not there could be taken for a hub repository
        raise InputError(f"{folder}: the folder holds no tokenizer/, the image tokenizer of a saved generator")
    return config, CVQTokenizer.from_pretrained(folder / "tokenizer"), TextTokenizer.load(folder)


def read_own_weights(folder: Path, codebook: Tensor, text: TextTokenizer) -> dict[str, Tensor]:
    """The weights; InputError where they learned other tokens than those of the two tokenizers in the folder.

    codebook: (N, D), of the image tokenizer.
    """
    words = read_metadata(folder / WEIGHTS).get(_WORDS)  # not in older files
    if words is not None and words != text.digest():
        raise InputError(
            f"{folder}: the generator was trained on another text tokenizer than the one in tokenizer.json, whose "
            "tokens mean other words; put the right one there"
        )
    state = read_weights(folder / WEIGHTS)
    learned = state.get("codebook")
    if learned is None or not torch.equal(learned, codebook.to(learned.dtype)):
        theirs = "none" if learned is None else f"{tuple(learned.shape)}"
        raise InputError(
            f"{folder}: the generator was trained on another image tokenizer than the one in its folder tokenizer/ "
            f"(codebook {theirs} against {tuple(codebook.shape)}, or of other values); put the right one there"
        )
    return state


def write_generator(
    folder: Path, config: CARConfig, tokenizer: CVQTokenizer, text: TextTokenizer, weights: dict[str, Tensor]
) -> None:
    """Write all files of a generator."""
    write_weights(folder / WEIGHTS, weights, {"format": "pt", _WORDS: text.digest()})
    text.save(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    write_settings(folder / CONFIG, to_dict(config))  # the last: where it is, the folder is complete
