"""Inputs of every kind that are damaged, absurd or hostile: an InputError at worst. FUZZ_SECONDS sets how long."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image, ImageCms
from safetensors.torch import save
from tests.fuzz.hammer import PLAIN, damaged, hammer, taken_or_refused, with_other_value

from channelvq.car.config import CARConfig
from channelvq.car.settings import SamplingSettings
from channelvq.config import apply_overrides, from_dict, read_recipe, to_dict
from channelvq.data.build import DataConfig
from channelvq.data.files.listing import manifest_entries
from channelvq.data.files.shard_index import index_shard, parse_caption
from channelvq.data.files.token_shards import read_token_folder, write_token_shard
from channelvq.evaluate.token_file import check_fits, read_tokens
from channelvq.images import load_image
from channelvq.nn.conv import ConvConfig
from channelvq.pretrained import read_metadata, read_settings, read_weights, weights_sha256
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.checkpoint import read_state
from channelvq.train.config import TrainConfig
from channelvq.train.run import load_recipe

CORPUS = Path(__file__).parent / "corpus"
Call = Callable[[Any], object]


def tokenizer() -> CVQTokenizer:
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    return CVQTokenizer(
        CVQConfig(image_size=16, latent_channels=4, network=network, quantizer=PlainConfig(codebook_size=8))
    )


def picture(**options: Any) -> bytes:
    mode, format_ = options.pop("mode", "RGB"), options.pop("format", "PNG")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format_, **options)
    return buffer.getvalue()


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
PICTURES = [
    picture(), picture(mode="P", transparency=3), picture(mode="RGBA"), picture(mode="I", format="TIFF"),
    picture(mode="1"), picture(icc_profile=PROFILE), picture(format="JPEG"), picture(mode="CMYK", format="JPEG"),
    picture(format="GIF"), picture(format="WEBP"), picture(format="TIFF"), picture(mode="F", format="TIFF"),
    picture(format="BMP"), picture(format="PPM"), picture(format="TGA"),
]  # fmt: skip


def shard() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        members = {"a.png": PICTURES[0], "a.json": b'{"caption": "a dog"}', "b.jpg": PICTURES[6], "b.txt": b"a cat"}
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


RECIPE = to_dict(load_recipe("small/smoke"))
TOKENS = {"tokenizer": "t", "tokenizer_sha256": "", "codebook_size": 8, "images": [{"image": "a", "ids": [1, 2, 3]}]}
TOKEN_SHARD = {"name": "x", "images": 1, "captions": 0, "bytes": 193, "source": [1, 2], "skipped": [["a", "b"]]}
TOKEN_SHARDS = {
    "tokenizer": "t", "tokenizer_digest": "", "num_tokens": 2, "codebook_size": 8, "caption_field": "caption",
    "format": 1, "pending": [], "shards": [TOKEN_SHARD], "images": 1, "captions": 0, "skipped": 1,
}  # fmt: skip
STATE = {"step": 3, "seconds": 1.5, "threads": 1, "ranks": 1}
MANIFEST = [
    b'{"image": "a.png", "text": "a dog", "split": "train"}\n{"image": "b.png"}\n',
    b'image,text\na.png,"a, b"\n',
]
WEIGHTS = [save({"a": torch.zeros(3, 2), "b": torch.ones(1)}, {"format": "pt"})]
CONFIGS: list[Any] = [CVQConfig(), CARConfig(), TrainConfig(), DataConfig()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    return tmp_path


def calls(place: Path) -> dict[str, Call]:
    """By kind, what is done with the content of a file."""
    tok = tokenizer()

    def at(name: str, content: bytes) -> Path:
        (place / name).write_bytes(content)
        return place / name

    def manifest(content: bytes) -> None:
        for suffix in (".jsonl", ".csv"):
            for entry in manifest_entries(at(f"m{suffix}", content)):
                entry.split_by(0.1, 0.1)
                entry.stamps()
                entry.caption()

    def tokens(content: bytes) -> None:
        file = read_tokens(at("t.json", content))
        object.__setattr__(file, "tokenizer_sha256", weights_sha256(tok))  # else nothing after it would be looked at
        check_fits(file, place / "t.json", tok, None)
        for row in file.rows:
            tok.check_ids([row.ids])

    def token_shards(content: bytes) -> None:
        write_token_shard(place / "x.safetensors", torch.ones(1, 2, dtype=torch.uint16), [""], ["a.png"])
        read_token_folder(at("manifest.json", content).parent)

    def of_shard(content: bytes) -> None:
        index = index_shard(at("s.tar", content), "caption")
        for sample in index.samples:
            index.key(sample)
            load_image(index.read(int(sample["image"]), int(sample["image_size"])))
            text = index.read(int(sample["text"]), int(sample["text_size"]))
            parse_caption(text, int(sample["text_kind"]), "caption")

    def weights(content: bytes) -> None:
        path = at("w.safetensors", content)
        read_metadata(path)
        read_weights(path)

    def checkpoint(content: bytes) -> None:
        read_state(at("progress.json", content).parent)
        read_settings(place / "progress.json")

    return {
        "recipe": lambda content: load_recipe(at("r.yaml", content)),
        "overrides": lambda content: apply_overrides(
            read_recipe("small/smoke"), content.decode("utf-8", "surrogateescape").split("\n")
        ),
        "manifest": manifest, "tokens": tokens, "checkpoint": checkpoint, "weights": weights, "shard": of_shard,
        "image": load_image, "token-shards": token_shards,
    }  # fmt: skip


def as_json(data: Any) -> bytes:
    return json.dumps(data).encode()


def as_yaml(data: Any) -> bytes:
    return yaml.safe_dump(data, allow_unicode=False).encode("utf-8", "surrogatepass")


OVERRIDES = [b"model.quantizer.codebook_size=4096\ntrain.steps=3", b"data.sources={a: {kind: scenes}}", b"a.b=[1, 2"]
INPUTS: dict[str, st.SearchStrategy[bytes]] = {
    "recipe": with_other_value(RECIPE).map(as_yaml) | damaged([as_yaml(RECIPE), b"base: small/smoke\n"]),
    "overrides": damaged(OVERRIDES),
    "manifest": damaged(MANIFEST) | with_other_value({"image": "a", "text": "b", "split": "test"}).map(as_json),
    "tokens": with_other_value(TOKENS).map(as_json) | damaged([as_json(TOKENS)]),
    "checkpoint": with_other_value(STATE).map(as_json) | damaged([as_json(STATE)]),
    "weights": damaged(WEIGHTS),
    "shard": damaged([shard()]),
    "image": damaged(PICTURES),
    "token-shards": with_other_value(TOKEN_SHARDS).map(as_json) | damaged([as_json(TOKEN_SHARDS)]),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_files(kind: str, place: Path) -> None:
    hammer(kind, INPUTS[kind], calls(place)[kind])


def settings_of(data: Any) -> None:
    kind, values = data
    if kind is None:
        SamplingSettings(*values)
    else:
        from_dict(type(kind), values)


def test_settings() -> None:
    files = st.sampled_from(CONFIGS).flatmap(lambda c: st.tuples(st.just(c), with_other_value(to_dict(c))))
    calls_ = st.tuples(st.none(), st.lists(PLAIN, max_size=5))
    hammer("settings", files | calls_, settings_of)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_failed(path: Path, place: Path) -> None:
    taken_or_refused(calls(place)[path.parent.name], path.read_bytes())
