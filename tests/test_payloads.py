"""No code from data: a payload in every file that a stranger may have written, and none of them is executed.

Every reader meets a pickle in all its forms in the place of each of its files, with the digests that a stranger would
write beside it. It may refuse the file or take it for what it is not; what the payload does must not happen.
"""

import ast
import io
import os
import pickle
import re
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from channelvq import CAR, CVQTokenizer
from channelvq.car.data import tokenized
from channelvq.codec import decompress
from channelvq.config import read_recipe
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.files.checked import unreadable
from channelvq.data.files.shard_index import index_shard
from channelvq.data.files.token_shards import read_token_folder, read_token_shard
from channelvq.errors import InputError
from channelvq.evaluate.compare import compare
from channelvq.evaluate.pca import PCABaseline
from channelvq.evaluate.token_file import read_tokens
from channelvq.files import write_sums
from channelvq.nn.detector import Detector
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import PACKAGE
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.sharded import ShardList, weights_only
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

SOURCE = Path(__file__).parents[1]
TINY = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=32", "data.validation_images=4", "objective.start_images=8", "train.batch_size=4",
    "train.device=cpu", "train.ema=0.9", "train.steps=1",
)  # fmt: skip
REFUSALS = (InputError, OSError)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


class Trap:
    """Files with payloads, and how many of them have been executed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.planted = folder, 0
        folder.mkdir()

    def payloads(self) -> Iterator[bytes]:
        """A pickle of every protocol, the two formats of torch, numpy's arrays of objects, YAML."""
        for protocol in (0, 2, 4):
            yield pickle.dumps(self._next(), protocol)
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save({"state": self._next()}, stream, _use_new_zipfile_serialization=zipped)
            yield stream.getvalue()
        stream = io.BytesIO()
        np.savez(stream, samples=np.array([self._next()], dtype=object))
        yield stream.getvalue()
        yield f"!!python/object/apply:os.mkdir ['{self._next().mark}']".encode()

    def _next(self) -> Payload:
        self.planted += 1
        return Payload(self.folder / str(self.planted))

    @property
    def executed(self) -> int:
        return len(list(self.folder.iterdir()))

    def spring(self, path: Path, read: Callable[[], object], prepare: Callable[[], object] = int) -> None:
        """Put each payload in the place of a file and read; then the file is as it was."""
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        for payload in self.payloads():
            path.write_bytes(payload)
            prepare()
            with suppress(*REFUSALS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of old pickles
                read()
        path.unlink()
        if before is not None:
            path.write_bytes(before)
        prepare()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    trap = Trap(tmp_path / "executed")
    yield trap
    assert trap.planted
    print(f"{trap.executed} of {trap.planted} payloads executed")
    assert trap.executed == 0


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_payloads_work(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "executed")
    for payload in trap.payloads():
        with suppress(Exception):
            pickle.loads(payload)
        with suppress(Exception):
            torch.load(io.BytesIO(payload), weights_only=False)
        with suppress(Exception):
            np.load(io.BytesIO(payload), allow_pickle=True)["samples"]
    assert trap.executed == trap.planted - 1  # all but that in YAML


@pytest.mark.parametrize(
    ("kind", "load"),
    [("tokenizer", CVQTokenizer.from_pretrained), ("car", CAR.from_pretrained), ("detector", Detector.load),
     ("perceptual", PerceptualNetwork.load)],
)  # fmt: skip
def test_model_folders(kind: str, load: Callable[[Path], object], trap: Trap, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PACKAGE / "bundled" / kind, tmp_path / "model"))
    planted = ["pytorch_model.bin", "model.safetensors.index.json", "modeling.py", "tokenizer/modeling.py"]
    for path in [*files_of(folder), *(folder / name for name in planted)]:
        trap.spring(path, lambda: load(folder))


def test_run_folders(trap: Trap, tmp_path: Path) -> None:
    recipe = load_recipe("small/smoke", [*TINY, f"train.output_dir={tmp_path / 'run'}"], of=TokenizerRecipe)
    Engine(TokenizerTask(recipe), recipe.train, recipe).fit()
    task, run = TokenizerTask(recipe), tmp_path / "run"
    goes_on = replace(recipe, train=replace(recipe.train, resume=True))
    folder = run / "checkpoints/step-00000001"

    def resume() -> None:
        Engine(task, goes_on.train, goes_on)._start_step()
        read_metrics(run)

    planted = (
        "custom_checkpoint_0.pkl", "random_states_0.pkl", "scaler.pt", "sampler.bin", "pytorch_model.bin",
        "scheduler.bin", "dl_state_dict.bin", "optimizer_0/.metadata", "pytorch_model_fsdp_0/.metadata",
    )  # fmt: skip
    for path in [*files_of(run), *(folder / name for name in planted)]:
        fits = folder in path.parents and path.name != "SHA256SUMS"
        trap.spring(path, resume, (lambda: write_sums(folder)) if fits else int)  # else it would not be read at all
    (folder / "model.safetensors").unlink()  # Accelerate takes a pickle of that name instead
    trap.spring(folder / "pytorch_model.bin", resume, lambda: write_sums(folder))


def test_a_list_of_shards_names_nothing_but_what_it_is_made_of(tmp_path: Path) -> None:
    for module, name in (("os", "mkdir"), ("torch", "os.mkdir"), ("torch", "load"), ("builtins", "eval"),
                         ("torch.distributed.checkpoint.metadata", "os.mkdir"), ("pathlib", "os.mkdir")):  # fmt: skip
        with pytest.raises(pickle.UnpicklingError, match="it names"):
            ShardList(io.BytesIO()).find_class(module, name)
    assert ShardList(io.BytesIO()).find_class("torch", "bfloat16") is torch.bfloat16


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_is_no_tensor_among_shards_is_plain_data(tmp_path: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    state = {"weight": torch.ones(2), "lr": 0.5, "betas": (0.9, 0.95), "evil": Payload(tmp_path / "made")}
    checkpoint.save(state, checkpoint_id=tmp_path / "shards", no_dist=True)
    plain = {"weight": torch.zeros(2), "lr": 0.0, "betas": (0.0, 0.0)}
    with weights_only():
        checkpoint.load(plain, checkpoint_id=tmp_path / "shards", no_dist=True)
        with pytest.raises(CheckpointException, match="Weights only load failed"):
            checkpoint.load({**plain, "evil": 0}, checkpoint_id=tmp_path / "shards", no_dist=True)
    assert plain["lr"] == 0.5
    assert torch.equal(plain["weight"], torch.ones(2))
    assert not (tmp_path / "made").exists()
    checkpoint.load({**plain, "evil": 0}, checkpoint_id=tmp_path / "shards", no_dist=True)
    assert (tmp_path / "made").exists()  # without it the payload is executed


def test_caches(trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    pictures = [tmp_path / f"pictures/{i}.png" for i in range(3)]
    shard = tmp_path / "a.tar"
    pictures[0].parent.mkdir()
    with tarfile.open(shard, "w") as tar:
        for i, path in enumerate(pictures):
            Image.new("RGB", (64, 64), (50 * i, 0, 0)).save(path)
            tar.add(path, path.name)
    tokenizer = CVQTokenizer.from_pretrained("bundled")
    data = build_mixture(DataConfig(), tokenizer.image_size, "train", 0)

    def read() -> None:
        unreadable(pictures, "pictures")
        index_shard(shard, "text")
        tokenized(tokenizer, data, 2, "payloads")

    read()
    kept = files_of(tmp_path / "cache")
    assert {path.suffix for path in kept} >= {".json", ".npz", ".safetensors", ".jsonl"}
    for path in kept:
        trap.spring(path, read)


def test_what_users_hand_over(trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    bundled = CVQTokenizer.from_pretrained("bundled")
    for name, read in (
        ("tokens.json", lambda: read_tokens(tmp_path / "tokens.json")),
        ("result.json", lambda: compare([tmp_path / "result.json"])),
        ("pca.safetensors", lambda: PCABaseline.load(tmp_path / "pca.safetensors")),
        ("mine.yaml", lambda: read_recipe(tmp_path / "mine.yaml")),
        ("a.tar", lambda: index_shard(tmp_path / "a.tar", "text")),
        ("a.png", lambda: unreadable([tmp_path / "a.png"], "x")),
        ("manifest.json", lambda: read_token_folder(tmp_path)),
        ("shard.safetensors", lambda: read_token_shard(tmp_path / "shard.safetensors")),
        ("a.cvq", lambda: decompress([(tmp_path / "a.cvq").read_bytes()], bundled)),
    ):
        trap.spring(tmp_path / name, read)
    for suffix in ("png", "txt", "json", "pyd", "pkl", "pth", "pt", "npy", "npz", "cbor", "mp"):
        for payload in trap.payloads():
            with tarfile.open(tmp_path / "b.tar", "w") as tar:
                picture = io.BytesIO()
                Image.new("RGB", (64, 64)).save(picture, "png")
                for name, content in {"a.png": picture.getvalue(), f"a.{suffix}": payload}.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
            with suppress(*REFUSALS):
                index_shard(tmp_path / "b.tar", "text")


# The source


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, str], ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg or "**": ast.unparse(k.value) for k in node.keywords}, node


RUNS = r"pickle\.loads?|yaml\.(unsafe_)?load|joblib\.load|dill\..*|shelve\..*|eval|exec|os\.system|torch\.hub\.load.*"


def test_no_call_in_the_source_runs_what_it_reads() -> None:
    """By the syntax tree: what torch, numpy, YAML and transformers read is read without code."""
    ours = re.compile(r"(CAR|CVQTokenizer|ClipTokenizer|cls|kind)\.from_pretrained")
    met = []
    for path in sorted((SOURCE / "src").rglob("*.py")) + sorted((SOURCE / "lab").rglob("*.py")):
        if "tests" in path.parts:
            continue
        for name, given, node in calls(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node)[:80]}"
            if name == "torch.load":
                assert given.get("weights_only") == "True", where
            elif name == "np.load":
                assert given.get("allow_pickle") == "False", where
            elif name.endswith(".load_state"):
                assert given.get("load_kwargs") == "{'weights_only': True}", where
            elif re.search(r"\.(from_pretrained|from_config)$", name) and not ours.fullmatch(name):
                assert given.get("trust_remote_code") == "False", where
            else:
                assert not re.fullmatch(RUNS, name), where
                assert not name.endswith("register_for_checkpointing"), where
                assert given.get("shell") != "True", where
                continue
            met.append(name)
    assert len(met) >= 6, met
