"""Training the generator: its stages, its data, and that it resumes to the bit."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.squares import Squares, tokenizer_of_squares

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.config import from_dict, to_dict
from channelvq.data.build import DataConfig
from channelvq.data.stream import Mixture
from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer
from channelvq.train import car_task, muon
from channelvq.train.car_task import CARObjectiveConfig, CARRecipe, CARTask
from channelvq.train.config import TrainConfig
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.muon import hidden_matrices

BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_of_squares(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def recipe(tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CARRecipe]:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        car_task,
        "build_mixture",
        lambda data, size, split, seed: Mixture({"squares": Squares()}, {"squares": 1.0}, seed),
    )

    def make(steps: int, folder: str = "run", **changes: object) -> CARRecipe:
        model = CARConfig(backbone=BACKBONE, max_text_tokens=20)
        objective = CARObjectiveConfig(text_vocab_size=280, train_images=40)
        train = TrainConfig(
            steps=steps, batch_size=8, device="cpu", output_dir=str(tmp_path / folder), learning_rate=3e-3,
            warmup_steps=0, betas=(0.9, 0.95), ema=0.5, log_every=1, evaluate_every=100, checkpoint_every=100,
        )  # fmt: skip
        parts: dict[str, object] = {"model": model, "objective": objective, "train": train}
        for key, value in changes.items():
            part, setting = key.split("__")
            parts[part] = replace(parts[part], **{setting: value})  # type: ignore[type-var]
        return CARRecipe(tokenizer=str(tokenizer_folder), data=DataConfig(validation_images=12), **parts)  # type: ignore[arg-type]

    return make


def fit(config: CARRecipe, task: type[CARTask] = CARTask) -> dict[str, float] | None:
    return Engine(task(config), config.train, config).fit()


@pytest.mark.parametrize(
    "backbone",
    [{"num_attention_heads": 3}, {"hidden_size": "abc"}, {"hidden_size": 0}, {"model_type": [1]},
     {"model_type": "bert"}, {"num_key_value_heads": 3}, {"max_position_embeddings": 20}, {"vocab_size": 200},
     "/nowhere/at/all"],
)  # fmt: skip
def test_a_backbone_that_cannot_be_used_is_told_before_tokenizing(
    recipe: Callable[..., CARRecipe], monkeypatch: pytest.MonkeyPatch, backbone: dict[str, object] | str
) -> None:
    monkeypatch.setattr(car_task, "tokenized", None)  # a call of it would be another error
    with pytest.raises(InputError, match=r"^backbone"):
        CARTask(recipe(1, model__backbone=backbone))


def test_a_run_through_all_stages(recipe: Callable[..., CARRecipe], tmp_path: Path) -> None:
    config = recipe(6, objective__lm_steps=2, objective__stage1_steps=2, train__evaluate_every=2)
    figures = fit(config)
    assert figures is not None
    assert figures.keys() == {"nats", "nats_shuffled", "top1"}
    records = read_metrics(tmp_path / "run")
    trained = {r["step"]: r for r in records if r["kind"] == "train"}
    assert ["text_nats" in trained[step] for step in range(1, 7)] == [True, True, False, False, False, False]
    evaluated = {r["step"]: r for r in records if r["kind"] == "evaluate"}
    assert ["text_nats" in evaluated[step] for step in (2, 4, 6)] == [True, False, False]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [
        "step-00000004.png",
        "step-00000006.png",
    ]
    loaded = CAR.from_pretrained(tmp_path / "run" / "final")
    assert loaded.generate("a red square on the left").ids.shape == (1, 8)
    assert (tmp_path / "run" / "final" / "README.md").is_file()


def test_it_learns_to_draw_what_the_prompt_says(recipe: Callable[..., CARRecipe]) -> None:
    figures = fit(recipe(100, train__ema=0.0, objective__lm_steps=5, objective__stage1_steps=5))
    assert figures is not None
    assert figures["nats"] < 0.6
    assert figures["nats_shuffled"] > figures["nats"] + 0.3
    assert figures["top1"] > 0.6


def test_each_stage_trains_its_part(recipe: Callable[..., CARRecipe]) -> None:
    config = recipe(3, objective__lm_steps=1, objective__stage1_steps=1, train__weight_decay=0.1)
    task = CARTask(config)
    batches = task.batches(0, 0, 1)
    moved = []
    for step in range(3):
        before = {name: p.detach().clone() for name, p in task.car.named_parameters()}
        terms = task.losses("car", task.models, next(batches), step, part=0).terms
        sum(terms.values()).backward()  # type: ignore[union-attr]
        task.optimizers["car"].step()
        task.optimizers["car"].zero_grad()
        changed = {n for n, p in task.car.named_parameters() if not torch.equal(p, before[n])}
        moved.append(changed)
    names = {n for n, _ in task.car.named_parameters() if not n.startswith("tokenizer.")}
    backbone = {n for n in names if n.startswith("backbone.")}
    assert moved[0] == backbone
    assert moved[1] == names - backbone
    assert moved[2] == names


@pytest.mark.parametrize("more", [{}, {"objective__muon_learning_rate": 2e-3}, {"objective__packing": 64}])
def test_resumed_equals_uninterrupted_to_the_bit(
    recipe: Callable[..., CARRecipe], tmp_path: Path, more: dict[str, object]
) -> None:
    class StopAt(CARTask):
        at = 3

        def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
            if step == self.at:
                raise KeyboardInterrupt
            return super().losses(name, models, batch, step, rank)

    settings = {"objective__lm_steps": 2, "objective__stage1_steps": 2, "train__checkpoint_every": 1} | more
    fit(recipe(6, "whole", **settings))
    for at in (3, 5):  # inside stage 1, inside stage 2
        StopAt.at = at
        with pytest.raises(KeyboardInterrupt):
            fit(recipe(6, "broken", train__resume=True, **settings), StopAt)
    fit(recipe(6, "broken", train__resume=True, **settings))
    whole, broken = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    records = [
        [{k: v for k, v in r.items() if k != "images_per_second"} for r in read_metrics(tmp_path / name)]
        for name in ("whole", "broken")
    ]
    assert records[0] == records[1]


def test_batches_hold_every_image_once_an_epoch_whatever_the_ranks(recipe: Callable[..., CARRecipe]) -> None:
    task = CARTask(recipe(10))
    alone = list(task.batches(0, 0, 1))
    assert [tuple(b.shape) for b in alone] == [(8, 28)] * 10
    everything = torch.cat([task.train_text, task.train_set.ids], dim=1).long()
    for epoch in (alone[:5], alone[5:]):
        rows = torch.cat(epoch)
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, everything.tolist()))
    assert not torch.equal(torch.cat(alone[:5]), torch.cat(alone[5:]))
    halves = zip(task.batches(3, 0, 2), task.batches(3, 1, 2), strict=True)
    assert all(torch.equal(torch.cat(both), whole) for both, whole in zip(halves, alone[3:], strict=True))
    with pytest.raises(InputError, match="must be a multiple of the 3 ranks"):
        next(task.batches(0, 0, 3))


def test_captions_are_hidden_at_the_stated_rate_whatever_the_ranks(recipe: Callable[..., CARRecipe]) -> None:
    task = CARTask(recipe(1, model__caption_dropout=0.25))
    hidden = torch.stack([task._hidden(8, step, 0) for step in range(500)])
    assert 0.2 < float(hidden.float().mean()) < 0.3
    assert torch.equal(torch.cat([task._hidden(4, 7, rank) for rank in (0, 1)]), hidden[7])
    never = CARTask(recipe(1, model__caption_dropout=0.0))
    assert not any(never._hidden(8, step, 0).any() for step in range(100))


def test_a_hidden_caption_is_the_empty_prompt(
    recipe: Callable[..., CARRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = CARTask(recipe(1))
    batch = next(task.batches(0, 0, 1))
    monkeypatch.setattr(task, "_hidden", lambda count, step, rank: torch.ones(count, dtype=torch.bool))
    terms = task.losses("car", task.models, batch, 0, 0).terms
    task.car.eval()
    expected = -task.car.score([""] * 8, batch[:, 20:]).mean()
    torch.testing.assert_close(terms["nats"].detach(), expected, atol=1e-4, rtol=1e-4)


def test_learning_rates_by_part(recipe: Callable[..., CARRecipe]) -> None:
    task = CARTask(recipe(1, objective__backbone_lr_ratio=0.1))
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in task.optimizers["car"].param_groups
        for p in group["params"]
    }
    assert rates[id(task.car.head.weight)] == (3e-3, 1e-4)
    assert rates[id(task.car.marker)] == (3e-3, 0.0)
    assert rates[id(task.car.text_embedding.weight)] == (pytest.approx(3e-4), 1e-4)
    trained = [n for n, p in task.car.named_parameters() if id(p) in rates]
    assert (
        len(trained) == len(rates) == len([n for n, _ in task.car.named_parameters() if not n.startswith("tokenizer.")])
    )


@pytest.mark.parametrize(
    ("backbone", "number"),
    [(BACKBONE, 2 * 7),  # query, key, value, output, gate, up, down
     ({"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2,  # its layers are transformers' own Conv1D
       "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}, 4)],
    ids=["qwen3", "gpt2"],
)  # fmt: skip
def test_muon_moves_the_matrices_of_the_layers_and_adamw_the_rest(
    recipe: Callable[..., CARRecipe], monkeypatch: pytest.MonkeyPatch, backbone: dict[str, object], number: int
) -> None:
    """One step against torch's two optimizers, each on its own copy of the model."""
    monkeypatch.setattr(muon, "has_bfloat16_tiles", lambda: True)  # torch's own work in bfloat16 on any processor
    task, twin = (
        CARTask(
            recipe(4, model__backbone=backbone, objective__muon_learning_rate=3e-3, train__weight_decay=0.1,
                   train__clip_norm=None)
        )
        for _ in range(2)
    )  # fmt: skip
    matrices = hidden_matrices(twin.car.backbone)
    assert len(matrices) == number
    assert not any(p is twin.car.text_embedding.weight for p in matrices)
    rest = [p for p in twin.car.parameters() if p.requires_grad and not any(p is each for each in matrices)]
    alone = [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        *(
            torch.optim.AdamW([p], lr=task.recipe.train.learning_rate, betas=task.recipe.train.betas,
                              weight_decay=0.1 if p.ndim >= 2 else 0.0, fused=True)
            for p in rest
        ),
    ]  # fmt: skip
    batch = next(task.batches(0, 0, 1))
    for each in (task, twin):
        sum(each.losses("car", each.models, batch, 3, 0).terms.values()).backward()
    task.optimizers["car"].step()
    for optimizer in alone:
        optimizer.step()
    pairs = zip(task.car.named_parameters(), twin.car.parameters(), strict=True)
    assert [name for (name, ours), theirs in pairs if not torch.equal(ours, theirs)] == []


def test_a_run_may_begin_with_a_given_generator(recipe: Callable[..., CARRecipe], tmp_path: Path) -> None:
    fit(recipe(3, "first"))
    given = tmp_path / "first" / "final"
    again = CARTask(recipe(3, "second", objective__start_from=str(given), train__seed=5)).car
    before = CAR.from_pretrained(given)
    assert again.text.digest() == before.text.digest()
    assert [n for n, p in before.named_parameters() if not torch.equal(p, again.get_parameter(n))] == []
    with pytest.raises(InputError, match=r"start_from.*another model.*head: linear -> codebook"):
        CARTask(recipe(3, "third", objective__start_from=str(given), model__head="codebook"))
    folder = tmp_path / "other tokenizer"
    tokenizer = CVQTokenizer.from_pretrained(given / "tokenizer")
    with torch.no_grad():
        tokenizer.quantizer.quantizer.weight.mul_(1.5)
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"start_from.*has another image tokenizer than '.*other tokenizer'"):
        CARTask(replace(recipe(3, "fourth", objective__start_from=str(given)), tokenizer=str(folder)))
    own = CARTask(replace(recipe(3, "fifth", objective__start_from=str(given)), tokenizer="start_from")).car
    assert torch.equal(own.codebook, before.codebook)
    with pytest.raises(ValueError, match=r"name it as objective\.start_from"):
        replace(recipe(3), tokenizer="start_from")


def test_a_run_does_not_go_on_with_another_tokenizer(
    recipe: Callable[..., CARRecipe], tokenizer_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(tokenizer_folder, mine)
    fit(replace(recipe(1), tokenizer=str(mine)))
    fit(replace(recipe(2, train__resume=True), tokenizer=str(mine)))
    tokenizer = CVQTokenizer.from_pretrained(mine)
    with torch.no_grad():
        tokenizer.quantizer.quantizer.weight.mul_(1.5)
    tokenizer.save_pretrained(mine)
    with pytest.raises(InputError, match=r"begun with the image tokenizer.* of other content.*put back"):
        fit(replace(recipe(3, train__resume=True), tokenizer=str(mine)))


def test_settings_that_cannot_be_used_are_named(recipe: Callable[..., CARRecipe]) -> None:
    data = to_dict(recipe(5))
    data["objective"] |= {"lm_steps": 3, "stage1_steps": 3}
    with pytest.raises(InputError, match=r"lm_steps \+ objective.stage1_steps = 6 must be at most train.steps 5"):
        from_dict(CARRecipe, data)
    with pytest.raises(InputError, match=r"training captions: prompt \d+ has \d+ tokens.*raise model.max_text_tokens"):
        CARTask(recipe(5, model__max_text_tokens=2))
    with pytest.raises(InputError, match="tokenizer '/nowhere'"):
        CARTask(replace(recipe(5), tokenizer="/nowhere"))


@pytest.mark.parametrize("packing", [None, 64])
def test_a_batch_in_parts_gives_the_result_of_the_whole(
    recipe: Callable[..., CARRecipe], tmp_path: Path, packing: int | None
) -> None:
    settings = {"objective__lm_steps": 2, "objective__stage1_steps": 2, "train__learning_rate": 1e-4}
    fit(recipe(6, "whole", **settings))
    fit(recipe(6, "parts", train__accumulation=4, objective__packing=packing, **settings))
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=5e-6, rtol=1e-5)
    for a, b in zip(read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "parts"), strict=True):
        wanted = {key: value for key, value in a.items() if key not in ("images_per_second", "kind")}
        assert {key: b[key] for key in wanted} == pytest.approx(wanted, rel=1e-4)
