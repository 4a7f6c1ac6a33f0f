"""The kinds of inputs that are fuzzed: how each is made, and what is done with it."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image, ImageCms
from safetensors.torch import save
from tests.fuzz.hammer import PLAIN, damaged, with_other_value

from channelvq.car.config import CARConfig
from channelvq.car.settings import SamplingSettings
from channelvq.codec import compress_ids, decompress_ids
from channelvq.codec.container import read_header
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

Call = Callable[[Any], object]


@cache
def tokenizer() -> CVQTokenizer:
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    config = CVQConfig(image_size=16, latent_channels=4, network=network, quantizer=PlainConfig(codebook_size=8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CVQTokenizer(config)


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
        "settings": settings_of,
        "recipe": lambda content: load_recipe(at("r.yaml", content)),
        "overrides": lambda content: apply_overrides(
            read_recipe("small/smoke"), content.decode("utf-8", "surrogateescape").split("\n")
        ),
        "manifest": manifest, "tokens": tokens, "checkpoint": checkpoint, "weights": weights, "shard": of_shard,
        "image": load_image, "token-shards": token_shards,
        "cvq": lambda content: decompress_ids([content], tok),
    }  # fmt: skip


def settings_of(data: Any) -> None:
    kind, values = data
    if kind is None:
        SamplingSettings(*values)
    else:
        from_dict(type(kind), values)


def as_json(data: Any) -> bytes:
    return json.dumps(data).encode()


def as_yaml(data: Any) -> bytes:
    return yaml.safe_dump(data, allow_unicode=False).encode("utf-8", "surrogatepass")


OVERRIDES = [b"model.quantizer.codebook_size=4096\ntrain.steps=3", b"data.sources={a: {kind: scenes}}", b"a.b=[1, 2"]


def pictures_as_cvq() -> list[bytes]:
    tok = tokenizer()
    ids = torch.arange(3 * tok.num_tokens).view(3, -1) % tok.codebook_size
    return [data for chunk in (1, 4) for data in compress_ids(ids, tok, chunk_tokens=chunk)]


CVQ = pictures_as_cvq()


@st.composite
def cvq_file(draw: Any) -> bytes:
    """One whose header says something else and has the checksum of what it says, before any stream."""
    good = draw(st.sampled_from(CVQ))
    header, start = read_header(good)
    other = {
        "num_tokens": st.integers(1, 40), "chunk_tokens": st.integers(1, 40), "height": st.integers(1, 65_535),
        "ends": st.lists(st.integers(0, 2000), min_size=1, max_size=12).map(lambda ends: tuple(sorted(ends))),
        "kind": st.sampled_from(["static", "car"]), "tokenizer": st.binary(min_size=4, max_size=4),
    }  # fmt: skip
    names = draw(st.lists(st.sampled_from(sorted(other)), max_size=2, unique=True))
    changed = replace(header, **{name: draw(other[name]) for name in names})
    return changed.write() + draw(st.just(good[start:]) | st.binary(max_size=64))


INPUTS: dict[str, st.SearchStrategy[Any]] = {
    "recipe": with_other_value(RECIPE).map(as_yaml) | damaged([as_yaml(RECIPE), b"base: small/smoke\n"]),
    "overrides": damaged(OVERRIDES),
    "manifest": damaged(MANIFEST) | with_other_value({"image": "a", "text": "b", "split": "test"}).map(as_json),
    "tokens": with_other_value(TOKENS).map(as_json) | damaged([as_json(TOKENS)]),
    "checkpoint": with_other_value(STATE).map(as_json) | damaged([as_json(STATE)]),
    "weights": damaged(WEIGHTS),
    "shard": damaged([shard()]),
    "image": damaged(PICTURES),
    "token-shards": with_other_value(TOKEN_SHARDS).map(as_json) | damaged([as_json(TOKEN_SHARDS)]),
    "cvq": damaged(CVQ) | cvq_file(),
    "settings": st.sampled_from(CONFIGS).flatmap(lambda c: st.tuples(st.just(c), with_other_value(to_dict(c))))
    | st.tuples(st.none(), st.lists(PLAIN, max_size=5)),
}
