"""A generator's training in packed rows: what a step is of, whatever the parts, and how many shapes are compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from channelvq.errors import InputError
from channelvq.train import launch
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.run import load_recipe

TINY = (
    "tokenizer=bundled", "data.sources.scenes.sprites=shapes", "data.validation_images=4", "objective.train_images=32",
    "objective.text_vocab_size=300", "objective.lm_steps=1", "objective.stage1_steps=1",
    "model.backbone.hidden_size=32", "model.backbone.num_hidden_layers=1", "model.backbone.num_attention_heads=2",
    "model.max_text_tokens=128", "model.num_tokens=16", "model.caption_dropout=0.2", "train.device=cpu",
    "train.precision=no", "train.batch_size=8", "train.compile=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CARTask]:
    folder = tmp_path_factory.mktemp("packing")

    def made(*overrides: str, long: bool = True) -> CARTask:
        """long: captions of 5 to 100 tokens, few of them long."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CHANNELVQ_CACHE", str(folder / "cache"))
            task = CARTask(
                load_recipe("small/scenes-car", [*TINY, f"train.output_dir={folder}/run", *overrides], of=CARRecipe)
            )
        generator = torch.Generator().manual_seed(0)
        lengths = (3 + torch.randn(32, generator=generator)).exp().clamp(5, 100)[:, None]
        words = torch.randint(0, 300, (32, 128), generator=generator)
        if long:
            task.train_text = torch.where(torch.arange(128) >= 128 - lengths, words, -1).to(torch.int32)
        return task

    return made


def loss(task: CARTask, batch: torch.Tensor, step: int, part: int = 0) -> torch.Tensor:
    (term,) = task.losses("car", task.models, batch, step, part).terms.values()
    return term


def gradients(task: CARTask) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in task.car.named_parameters() if p.grad is not None}
    task.car.zero_grad()
    return found


@pytest.mark.parametrize("step", [1, 2])  # stages I and II
def test_a_packed_step_is_that_of_the_samples_alone_whatever_the_parts(make: Callable[..., CARTask], step: int) -> None:
    """Parts are those of accumulation and of ranks."""
    alone, packed = make(), make("objective.packing=192")
    batch = next(packed.batches(step, 0, 1))
    loss(alone, batch, step).backward()
    wanted = gradients(alone)
    for parts in (1, 4):
        losses = [loss(packed, part, step, i) for i, part in enumerate(batch.chunk(parts))]
        sum(losses).backward()  # type: ignore[union-attr]
        found = gradients(packed)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name] / parts, gradient, atol=2e-6, rtol=1e-4)


def test_hidden_captions_take_no_room(make: Callable[..., CARTask], monkeypatch: pytest.MonkeyPatch) -> None:
    task = make("objective.packing=192")
    everything = {True: torch.ones(8, dtype=torch.bool), False: torch.zeros(8, dtype=torch.bool)}
    seen: list[tuple[int, ...]] = []
    packed = task._packed

    def noted(mask: torch.Tensor) -> torch.Tensor | None:
        rows = packed(mask)
        assert rows is not None
        seen.append(tuple(rows.shape))
        return rows

    monkeypatch.setattr(task, "_packed", noted)
    for hidden in (True, False):
        monkeypatch.setattr(task, "_hidden", lambda count, step, part, hidden=hidden: everything[hidden])
        loss(task, next(task.batches(2, 0, 1)), 2)
    assert seen[0] == (1, 8 * 16)
    assert seen[1][0] > 1


def test_rows_that_are_too_short_are_told(make: Callable[..., CARTask]) -> None:
    with pytest.raises(InputError, match=r"objective\.packing 143: expected 144 or more, the positions of the longest"):
        make("objective.packing=143")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("packing", ["null", "192"])
def test_a_compiled_step_has_few_shapes(packing: str, make: Callable[..., CARTask]) -> None:
    task = make("train.compile=true", f"objective.packing={packing}")
    graphs: list[int] = []  # one for each compilation

    def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return graph.forward

    torch._dynamo.reset()
    shapes = set()
    with torch._dynamo.config.patch(recompile_limit=2):  # as it was, after the test; what is compiled sets its own
        launch.compile_networks(task.networks, backend=counting)
        for step, batch in zip(range(1, 5), task.batches(1, 0, 1), strict=False):
            text, _ = task._split(batch, trimmed=packing == "null")
            rows = task._packed((text >= 0) & ~task._hidden(8, step, 0)[:, None])
            width = text if rows is None else rows
            assert width.shape[1] % {"null": 16, "192": 24}[packing] == 0  # an eighth of the longest
            shapes.add((task.stage_at(step), *width.shape))
            with torch.no_grad():
                loss(task, batch, step)
    assert 2 < len(shapes) < 5
    assert len(graphs) == len(shapes)  # each in one piece, once
