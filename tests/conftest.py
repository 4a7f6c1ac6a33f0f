"""Settings for the whole suite, before torch is imported."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# Threads that spin while they wait make short operations crawl on a machine that is doing something else too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Workers side by side share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where there is no GPU the CUDA kernel is interpreted; Triton asks when it is first imported.
if not os.path.exists("/proc/driver/nvidia"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def cvq(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process, in the folder `here` of the test's module: (exit code, stdout, stderr)."""
    from channelvq.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cvq", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """`with full_disk():` writing a file fails after a few bytes, as it does when the disk is full."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def full() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as published ones are, both towers, but tiny and of random weights: 3 layers, 4 x 4 patches of 8."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    vision = {**size, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    text = {**size, "num_hidden_layers": 1, "vocab_size": 50}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    folder = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tokenizer of random weights that takes no time: 16 px, 8 tokens of 32 codes."""
    import torch

    from channelvq.nn.conv import ConvConfig
    from channelvq.quantize.codebook import PlainConfig
    from channelvq.tokenizer import CVQConfig, CVQTokenizer

    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    config = CVQConfig(image_size=16, latent_channels=8, network=network, quantizer=PlainConfig(codebook_size=32))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = CVQTokenizer(config).eval()
    images = torch.rand(64, 3, 16, 16, generator=generator) * 2 - 1
    with torch.no_grad():
        tokenizer.quantizer.start_from(tokenizer.encoder(images), generator)
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `tars` of three tar shards with 14 pictures, nine with captions, and their `pictures`; an own cache."""
    import numpy as np
    from PIL import Image

    from channelvq.data.files.shard_writer import write_shards

    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pictures").mkdir()
    for i in range(14):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC).save(tmp_path / f"pictures/{i:02d}.png")
        if i % 3:
            (tmp_path / f"pictures/{i:02d}.txt").write_text(f"picture {i}")
    write_shards(tmp_path / "pictures", tmp_path / "tars", images_per_shard=5)
    return tmp_path / "tars"
