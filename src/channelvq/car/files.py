"""A generator's folder: config.json, model.safetensors, tokenizer.json (text) and tokenizer/ (images)."""

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from channelvq.car.config import CARConfig
from channelvq.car.text import TextTokenizer
from channelvq.config import from_dict, to_dict
from channelvq.errors import InputError
from channelvq.pretrained import misfits, read_metadata, read_settings, read_weights, write_settings, write_weights
from channelvq.tokenizer import CVQTokenizer, check_source

if TYPE_CHECKING:
    from channelvq.car.model import CAR

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer/*")
_WORDS = "text_tokenizer_sha256"
_IMAGE_TOKENIZER = "tokenizer."  # the prefix of its weights in CAR's state; they live in its own folder


def save_car(model: "CAR", folder: Path) -> None:
    """Write all files of a generator."""
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(_IMAGE_TOKENIZER)}
    write_weights(folder / "model.safetensors", state, {"format": "pt", _WORDS: model.text.digest()})
    model.text.save(folder)
    model.tokenizer.save_pretrained(folder / "tokenizer")
    write_settings(folder / "config.json", to_dict(model.config))  # the last: where it is, the folder is complete


def load_car(kind: "type[CAR]", source: str, options: dict[str, Any]) -> "CAR":
    """A generator from "bundled", a folder or a hub id, in evaluation mode on the CPU."""
    if source == "bundled":
        with resources.as_file(resources.files("channelvq") / "bundled" / "car") as folder:
            return _load_folder(kind, folder)
    check_source("generator", source)
    return _load_folder(kind, Path(source) if Path(source).is_dir() else _download(source, options))


def _download(source: str, options: dict[str, Any]) -> Path:
    try:
        return Path(snapshot_download(source, allow_patterns=list(FILES), **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"generator {source!r}: neither 'bundled', a folder, nor a hub repository that can be read ({error})"
        ) from None


def _load_folder(kind: "type[CAR]", folder: Path) -> "CAR":
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: the folder holds no {name}; expected what CAR.save_pretrained writes")
    config = from_dict(CARConfig, read_settings(folder / "config.json"), where=str(folder / "config.json"))
    model = kind(config, CVQTokenizer.from_pretrained(folder / "tokenizer"), TextTokenizer.load(folder))
    words = read_metadata(folder / "model.safetensors").get(_WORDS)  # older files do not tell
    if words is not None and words != model.text.digest():
        raise InputError(
            f"{folder}: the generator was trained on another text tokenizer than the one in tokenizer.json, whose "
            "tokens mean other words; put the right one there"
        )
    _load_weights(model, folder)
    return model.eval()


def _load_weights(model: "CAR", folder: Path) -> None:
    state = read_weights(folder / "model.safetensors")
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(_IMAGE_TOKENIZER)}
    codebook = state.get("codebook")
    if codebook is None or not torch.equal(codebook, own["codebook"].to(codebook.dtype)):
        theirs = "none" if codebook is None else f"{tuple(codebook.shape)}"
        raise InputError(
            f"{folder}: the generator was trained on another image tokenizer than the one in its folder tokenizer/ "
            f"(codebook {theirs} against {tuple(own['codebook'].shape)}, or of other values); put the right one there"
        )
    if wrong := misfits(state, own):
        raise InputError(f"{folder / 'model.safetensors'} does not fit its config.json: {wrong[:5]}")
    model.to(codebook.dtype).load_state_dict(state, strict=False)
