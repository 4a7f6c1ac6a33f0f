"""The generator, its weights sharded over two gloo processes by FSDP, against one process alone.

Accelerate turns FSDP on for GPUs only. What is tested here is all the rest, on the CPU: torch's own sharding under the
engine's loop, its stages, evaluation and final files from gathered weights, checkpoints and resuming.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.runs import assert_equal, everything_in

from channelvq import CAR
from channelvq.errors import InputError
from channelvq.train.checkpoint import to_plain
from channelvq.train.muon import MuonWithAdamW
from channelvq.train.sharded import gathered

TOKENIZER = (
    "small/smoke", "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8", "train.batch_size=4",
    "train.device=cpu", "train.steps=1",
)  # fmt: skip
GENERATOR = (
    "small/scenes-car", "train.compile=false",
    "train.batch_size=4", "data.validation_images=4", "data.sources.scenes.sprites=shapes",
    "model.max_text_tokens=64", "objective.train_images=8", "objective.text_vocab_size=300", "train.device=cpu",
    "train.precision=no", "model.backbone.hidden_size=32", "model.backbone.num_hidden_layers=2",
    "model.backbone.num_attention_heads=2", "objective.stage1_steps=2", "train.log_every=1",
    "train.checkpoint_every=2", "train.evaluate_every=3",
)  # fmt: skip


def main(sharded: bool, recipe: str, settings: list[str]) -> None:
    """Train; as `accelerate launch` with an FSDP config would, had the machine GPUs."""
    from accelerate import Accelerator
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    from channelvq.train import launch
    from channelvq.train.run import load_recipe, train

    build = launch.build_accelerator

    def build_sharded(*given: object) -> Accelerator:
        accelerator = build(*given)  # type: ignore[arg-type]
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Qwen3DecoderLayer"],
            state_dict_type="SHARDED_STATE_DICT",
            cpu_ram_efficient_loading=False,
        )
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    if sharded:
        launch.build_accelerator = build_sharded
    train(load_recipe(recipe, settings))
    launch.leave()


def run(ranks: int, folder: Path, recipe: tuple[str, ...], *more: str) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, __file__, json.dumps([ranks > 1, recipe[0], [*recipe[1:], *more]])]
    environment = os.environ | {"CHANNELVQ_CACHE": str(folder / "cache"), "ACCELERATE_USE_CPU": "true"}
    # This file is run as a script, which finds what lies beside it alone.
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)
    if done.returncode:
        print(done.stderr)  # all of it: an assertion shows a part, and a rank's own error comes before the launcher's
    return done.stderr[-2000:] if done.returncode else ""


# lm_steps 0: the backbone begins frozen, as in the paper's recipes; the checkpoint of step 2 has no state for it.
WITH_AVERAGE, WITHOUT = (0, 0.9, "true", 2), (1, 0, "null", 4)


@pytest.fixture(scope="module", params=[WITH_AVERAGE, WITHOUT])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...], int]:
    """A folder with the same run in one/ and by two processes in two/, its settings, and a step to go on from."""
    lm_steps, ema, background, step = request.param
    folder = tmp_path_factory.mktemp("runs")
    assert run(1, folder, TOKENIZER, f"train.output_dir={folder / 'tokenizer'}") == ""
    generator = (*GENERATOR, f"tokenizer={folder / 'tokenizer/final'}", "train.steps=5", "train.keep_checkpoints=3",
                 f"objective.lm_steps={lm_steps}", f"train.ema={ema}")  # fmt: skip
    for ranks, name in ((1, "one"), (2, "two")):
        own = (f"train.output_dir={folder / name}", f"train.checkpoint_async={background}")
        assert run(ranks, folder, generator, *own) == ""
    return folder, generator, step


def cut(run_dir: Path, step: int, new: Path) -> Path:
    """A copy of a run as it was when the checkpoint of a step was its last; that checkpoint."""
    shutil.copytree(run_dir, new, ignore=shutil.ignore_patterns("final"))
    for path in (new / "checkpoints").iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    return new / f"checkpoints/step-{step:08d}"


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "final/model.safetensors")


def assert_near(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, weight in some.items():
        torch.testing.assert_close(others[name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.timeout(600)
def test_sharded_equals_alone_and_resumes_to_the_bit(runs: tuple[Path, tuple[str, ...], int], tmp_path: Path) -> None:
    folder, generator, step = runs
    one, two = final(folder / "one"), final(folder / "two")
    assert_near(one, two)
    assert CAR.from_pretrained(folder / "two/final").num_tokens == 4
    # The checkpoint holds shards, one file a rank, not the whole model.
    checkpoint = folder / "two/checkpoints/step-00000004"
    assert len(list(checkpoint.glob("pytorch_model_fsdp_0/*.distcp"))) == 2
    assert len(list(checkpoint.glob("average-car/*.distcp"))) == (2 if "train.ema=0.9" in generator else 0)
    cut(folder / "two", step, tmp_path / "parts")
    assert run(2, tmp_path, generator, f"train.output_dir={tmp_path / 'parts'}", "train.resume=true") == ""
    again = final(tmp_path / "parts")
    assert all(torch.equal(again[name], two[name]) for name in two)
    # Written beside the training, where that was asked for, or at its step: the same.
    last = "checkpoints/step-00000005"
    assert_equal(vars(gathered(tmp_path / "parts" / last)), vars(gathered(folder / "two" / last)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("runs", [WITH_AVERAGE], indirect=True)
def test_each_form_of_a_checkpoint_goes_on_in_the_other(
    runs: tuple[Path, tuple[str, ...], int], tmp_path: Path
) -> None:
    folder, generator, step = runs
    shards = cut(folder / "two", step, tmp_path / "alone")
    to_plain(shards, tmp_path / "plain")
    ours, theirs = (everything_in(path) for path in (tmp_path / "plain", folder / "one/checkpoints" / shards.name))
    del ours["random-states-1.safetensors"]
    assert shape_of(ours) == shape_of(theirs)
    assert run(1, tmp_path, generator, f"train.output_dir={tmp_path / 'alone'}", "train.resume=true") == ""
    assert_near(final(folder / "one"), final(tmp_path / "alone"))
    # Whole tensors into shards: to the bit as if they had never been anything else.
    whole = cut(folder / "two", step, tmp_path / "two")
    shutil.rmtree(whole)
    shutil.copytree(tmp_path / "plain", whole)
    assert run(2, tmp_path, generator, f"train.output_dir={tmp_path / 'two'}", "train.resume=true") == ""
    assert_equal(final(tmp_path / "two"), final(folder / "two"))


def shape_of(found: object) -> object:
    """What is where, without the numbers of tensors."""
    if isinstance(found, torch.Tensor):
        return found.shape, found.dtype
    if isinstance(found, dict):
        return {key: shape_of(value) for key, value in found.items()}
    return [shape_of(value) for value in found] if isinstance(found, list | tuple) else found


def test_what_cannot_be_sharded_is_refused() -> None:
    from torch import nn

    from channelvq.train.launch import check_shardable

    with pytest.raises(InputError, match="FSDP shards one model, this recipe trains tokenizer, discriminator"):
        check_shardable({"tokenizer": nn.Linear(1, 1), "discriminator": nn.Linear(1, 1)}, {})
    muon = MuonWithAdamW([{"params": [nn.Parameter(torch.ones(1))]}], [nn.Parameter(torch.ones(2, 2))],
                         muon_lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95))  # fmt: skip
    with pytest.raises(InputError, match="Muon needs unsharded matrices"):
        check_shardable({"car": nn.Linear(1, 1)}, {"car": muon})


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
