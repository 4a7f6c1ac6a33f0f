"""Checkpoints: which are kept, what is needed of them, and what is said where something is missing or broken."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.runs import fit, recipe, resumed

from channelvq.errors import InputError
from channelvq.files import write_sums
from channelvq.train import checkpoint as checkpoint_module
from channelvq.train import plain
from channelvq.train.engine import read_metrics


def test_checkpoints_rotate_and_partial_ones_are_ignored(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=5", "train.checkpoint_every=1", "train.keep_checkpoints=2")
    fit(config)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]
    (tmp_path / "checkpoints" / ".partial-step-00000009").mkdir()
    assert fit(replace(config, train=replace(config.train, resume=True))) is not None


def test_every_part_of_a_checkpoint_is_needed_as_it_was_written(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1", "train.ema=0.9")
    fit(config)
    folder = tmp_path / "checkpoints/step-00000001"
    parts = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert parts.keys() == {
        "model.safetensors", "optimizer.bin", "average-tokenizer.safetensors", "schedules.json", "progress.json",
        "random-states-0.safetensors", "SHA256SUMS",
    }  # fmt: skip
    for name, content in parts.items():
        for place in (0, len(content) // 2, len(content) - 1):
            flipped = bytes([content[place] ^ 1])
            (folder / name).write_bytes(content[:place] + flipped + content[place + 1 :])
            told = "step-00000001" if name == "SHA256SUMS" else rf"step-00000001.*{name}"
            with pytest.raises(InputError, match=told):
                fit(resumed(config, steps=2))
        (folder / name).unlink()
        with pytest.raises(InputError, match=rf"step-00000001.*{name}.*remove the folder to use the one before"):
            fit(resumed(config, steps=2))
        (folder / name).write_bytes(content)
    assert fit(resumed(config, steps=2)) is not None


def test_a_part_that_nobody_wrote_is_missed_too(tmp_path: Path) -> None:
    """Digests say that nothing has changed since; that all parts were there then, they do not."""
    config = recipe(tmp_path, "train.steps=1", "train.ema=0.9")
    fit(config)
    folder = tmp_path / "checkpoints/step-00000001"
    for name in ("schedules.json", "random-states-0.safetensors", "average-tokenizer.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        write_sums(folder)
        with pytest.raises(InputError, match=f"it lacks {name}"):
            fit(resumed(config, steps=2))
        (folder / name).write_bytes(content)


def test_a_checkpoint_of_before_there_were_digests_is_refused_with_a_reason(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1")
    fit(config)
    (tmp_path / "checkpoints/step-00000001/SHA256SUMS").unlink()
    with pytest.raises(InputError, match="it has no SHA256SUMS: incomplete, or of a version before"):
        fit(resumed(config, steps=2))


@pytest.mark.parametrize("background", ["null", "true"])
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "average-", "random-states", "progress.json"])
def test_a_full_disk_names_the_file_and_leaves_the_last_good_state(
    file: str, background: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    setting = f"train.checkpoint_async={background}"
    config = recipe(tmp_path, "train.steps=2", "train.checkpoint_every=1", setting)
    whole = fit(config)
    assert whole is not None
    shutil.rmtree(tmp_path / "checkpoints/step-00000002")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "checkpoints/step-00000001").iterdir()}
    for module, writer in ((torch, "save"), (plain, "write_weights"), (checkpoint_module, "write_weights"),
                           (checkpoint_module, "write_settings")):  # fmt: skip
        function = getattr(module, writer)

        def watched(*args: Any, function: Any = function, **more: Any) -> object:
            """From this file on the disk has no room."""
            path = Path(next(a for a in args if isinstance(a, str | Path)))
            if path.name.startswith(file) and "step-00000002" in path.parent.name:
                resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
            return function(*args, **more)

        monkeypatch.setattr(module, writer, watched)
    try:
        with pytest.raises(InputError, match=rf"step-00000002: cannot write {file}.*step-00000001 is whole, go on"):
            fit(resumed(config))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert {path.name: path.stat().st_size for path in (tmp_path / "checkpoints/step-00000001").iterdir()} == sizes
    monkeypatch.undo()
    assert fit(resumed(config)) == whole


def test_a_checkpoint_of_before_with_the_names_of_a_wrapped_model_is_gone_on_from(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=2", "train.checkpoint_every=1")
    whole = fit(config)
    shutil.rmtree(tmp_path / "checkpoints/step-00000002")
    weights = tmp_path / "checkpoints/step-00000001/model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(weights).items()}, weights)
    write_sums(weights.parent)
    assert fit(resumed(config)) == whole


def test_a_metrics_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=2", "train.checkpoint_every=1")
    fit(config)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('12\n{"kind": "train", "st')
    fit(resumed(config, steps=3))
    assert [line["step"] for line in read_metrics(tmp_path) if line["kind"] == "train"] == [1, 2, 3]


def test_a_run_whose_config_was_cut_short_says_how_to_go_on(tmp_path: Path) -> None:
    config = recipe(tmp_path, "train.steps=1", "train.checkpoint_every=1")
    fit(config)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(InputError, match=r"config\.yaml is damaged .*remove it to go on"):
        fit(resumed(config, steps=2))
    (tmp_path / "config.yaml").unlink()
    fit(resumed(config, steps=2))
