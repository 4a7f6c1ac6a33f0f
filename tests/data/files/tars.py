"""Small pictures in folders and tars, and what a source gives of them, for the tests of shards."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from channelvq.data.source import Sample, Source


def picture(seed: int = 0, height: int = 20, width: int = 30, kind: str = "PNG") -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def fill(root: Path, count: int = 0, names: tuple[str, ...] = ()) -> Path:
    for seed, name in enumerate(names or [f"{i:03d}.png" for i in range(count)]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".webp": "WEBP"}.get(Path(name).suffix, "PNG")
        (root / name).write_bytes(picture(seed, kind=kind))
        if seed % 2 == 0:
            (root / name).with_suffix(".txt").write_text(f"picture {seed}\n", encoding="utf-8")
    return root


def write_tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(source: Source, seed: int = 0) -> list[Sample]:
    return [source.sample(i, gen(seed + i)) for i in range(len(source))]


def keys(source: Source) -> list[str]:
    return [sample.key for sample in samples(source)]


def assert_same(a: list[Sample], b: list[Sample]) -> None:
    assert [(x.key, x.text) for x in a] == [(y.key, y.text) for y in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.image, y.image), x.key
