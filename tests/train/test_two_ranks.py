"""Two processes against one: the same global batch, the same result, and the same again after a stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

TINY = (
    "small/smoke", "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8", "train.batch_size=4",
    "train.device=cpu", "train.log_every=1", "train.checkpoint_every=2", "train.precision=no",
    # Half of the recipe's: Adam's steps of gradients that are rounding alone differ by it, more without AVX-512.
    "train.learning_rate=5e-4",
)  # fmt: skip

TINY_CAR = (
    "small/scenes-car", "train.compile=false",
    "train.batch_size=4", "data.validation_images=4", "data.sources.scenes.sprites=shapes",
    "model.max_text_tokens=64", "objective.train_images=8", "objective.text_vocab_size=300", "train.device=cpu",
    "train.precision=no", "model.backbone.hidden_size=32", "model.backbone.num_hidden_layers=1",
    "model.backbone.num_attention_heads=2",
)  # fmt: skip


def train(ranks: int, folder: Path, steps: int, *more: str, recipe: Sequence[str] = TINY) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    settings = [f"train.steps={steps}", f"train.output_dir={folder}", *more]
    command = [sys.executable, *launcher, "-m", "channelvq", "train", *recipe, *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def lines(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Not the figures that are no means over images: speed, use within a rank's batch, dB of a rank's images.
    left_out = ("images_per_second", "batch_use", "psnr", "kind")
    return [{k: v for k, v in record.items() if k not in left_out} for record in records]


@pytest.mark.skipif(sys.platform == "win32", reason="torch.distributed.run")
def test_two_ranks_equal_one_and_resume_to_the_bit(tmp_path: Path) -> None:
    train(1, tmp_path / "one", 4)
    train(2, tmp_path / "two", 4, "--json", str(tmp_path / "two.json"))
    assert json.loads((tmp_path / "two.json").read_text())["metrics"]["psnr_4"] > 0  # the rank that evaluated wrote it
    one, two = (load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        # Means over halves are added in another order; nothing else differs.
        torch.testing.assert_close(two[name], weight, atol=1e-6, rtol=0)
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    last = "checkpoints/step-00000004/model.safetensors"
    assert load_file(tmp_path / "one" / last).keys() == load_file(tmp_path / "two" / last).keys()
    # As if both had been killed after step 2: what they do again is the same.
    shutil.copytree(tmp_path / "two", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts/checkpoints/step-00000004")
    shutil.rmtree(tmp_path / "parts/final")
    train(2, tmp_path / "parts", 4, "train.resume=true")
    again = load_file(tmp_path / "parts/final/model.safetensors")
    assert all(torch.equal(again[name], two[name]) for name in two)
    assert lines(tmp_path / "parts") == lines(tmp_path / "two")


def test_two_ranks_train_a_generator_and_a_codebook_that_starts_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    train(2, tmp_path / "tokenizer", 3, "objective.start_step=2")
    stages = [f"tokenizer={tmp_path / 'tokenizer/final'}", "objective.lm_steps=1", "objective.stage1_steps=1"]
    # Packed as well: each rank packs its own share.
    for ranks, name, packing in ((1, "one", "null"), (2, "two", 96)):
        train(ranks, tmp_path / name, 3, *stages, f"objective.packing={packing}", recipe=TINY_CAR)
    one, two = (load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=0)


def test_two_ranks_with_parts_equal_one_large_batch(tmp_path: Path) -> None:
    """Gradients are summed over the ranks after the last part; moving averages see the batch of all ranks and parts."""
    kind = "model.quantizer.kind=ema"
    train(1, tmp_path / "one", 4, kind)
    train(2, tmp_path / "two", 4, kind, "train.accumulation=2")
    one, two = (load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=2e-6, rtol=1e-5)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_to_one_rank_stops_all_of_them_after_the_same_step(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1",
        "-m", "channelvq", "train", *(word for word in TINY if "checkpoint_every" not in word),
        f"train.output_dir={tmp_path}", "train.steps=100000", "train.checkpoint_every=100000",
        "train.evaluate_every=100000", "train.resume=true",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 5:" in line:
                psutil.Process(process.pid).children()[-1].send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 0  # another code would have torchrun begin both again
    assert rest.count("stopped by SIGTERM") == 1
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1
