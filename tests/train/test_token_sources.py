"""Generators trained on token shards: without the pictures, by weight, once an epoch each, to the bit on resume."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from channelvq.bulk import tokenize_shards
from channelvq.car.config import CARConfig
from channelvq.car.data import TokenSet, tokenizer_digest
from channelvq.data.build import DataConfig
from channelvq.data.files.shard_writer import write_shards
from channelvq.data.files.shards import ShardsConfig
from channelvq.data.files.tokens import TokensConfig
from channelvq.errors import InputError
from channelvq.tokenizer import CVQTokenizer
from channelvq.train import car_task
from channelvq.train.car_task import CARObjectiveConfig, CARRecipe, CARTask, _captioned, token_set, training_set
from channelvq.train.config import TrainConfig
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe

BACKBONE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def folders(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Token shards of 14 and of 5 pictures, without the tars and pictures that they were made from."""
    for i in range(9):
        (tmp_path / f"pictures/{i:02d}.png").unlink()
    write_shards(tmp_path / "pictures", tmp_path / "few")
    for name in ("tars", "few"):
        tokenize_shards(tmp_path / name, tmp_path / f"tokens-of-{name}", tiny_tokenizer)
        shutil.rmtree(tmp_path / name)
    shutil.rmtree(tmp_path / "pictures")
    return tmp_path / "tokens-of-tars", tmp_path / "tokens-of-few"


@pytest.fixture
def recipe(folders: tuple[Path, Path], tiny_tokenizer: Path, tmp_path: Path) -> Callable[..., CARRecipe]:
    def make(steps: int, folder: str = "run", seed: int = 0, resume: bool = False) -> CARRecipe:
        many, few = (str(path) for path in folders)
        sources = {
            "many": TokensConfig(root=many, weight=3, validation=0.3, test=0),
            "few": TokensConfig(root=few, weight=1, validation=0, validation_root=few, test=0),
        }
        return CARRecipe(
            tokenizer=str(tiny_tokenizer),
            model=CARConfig(backbone=BACKBONE, max_text_tokens=12),
            objective=CARObjectiveConfig(lm_steps=1, text_vocab_size=260, train_images=2),
            data=DataConfig(sources=sources, validation_images=6),
            train=TrainConfig(
                steps=steps, batch_size=8, device="cpu", output_dir=str(tmp_path / folder), learning_rate=3e-3,
                seed=seed, warmup_steps=0, ema=0.5, log_every=1, evaluate_every=100, checkpoint_every=2, resume=resume,
            ),
        )  # fmt: skip

    return make


def fit(config: CARRecipe, task: type[CARTask] = CARTask) -> dict[str, float] | None:
    return Engine(task(config), config.train, config).fit()


def test_tokens_are_those_of_the_pictures(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = CVQTokenizer.from_pretrained(tiny_tokenizer)
    tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    shares = {"validation": 0.3, "test": 0.3}
    pictures = ShardsConfig(urls=str(tars / "images-{00000..00002}.tar"), **shares)
    tokens = TokensConfig(root=str(tmp_path / "tokens"), **shares)
    for split in ("train", "validation", "test"):
        of_pictures, of_tokens = (
            token_set(DataConfig(sources={"mine": source}), tokenizer, split, 40) for source in (pictures, tokens)
        )
        assert rows(of_tokens) == rows(of_pictures)
        # The first of both are the same ones; pictures come again where there are fewer than 40, tokens do not.
        assert of_tokens.keys == tuple(dict.fromkeys(of_pictures.keys))


def rows(tokens: TokenSet) -> set[tuple[str, str, tuple[int, ...]]]:
    return set(zip(tokens.keys, tokens.captions, map(tuple, tokens.ids.tolist()), strict=True))


def test_sources_come_by_weight_and_each_picture_once_an_epoch(
    recipe: Callable[..., CARRecipe], tiny_tokenizer: Path
) -> None:
    tokenizer = CVQTokenizer.from_pretrained(tiny_tokenizer)
    tokens, row_at = training_set(recipe(1), tokenizer)
    many, few = list(range(len(tokens) - 5)), list(range(len(tokens) - 5, len(tokens)))
    assert len(many) >= 8  # all that are not held out, whatever objective.train_images says
    order = [row_at(position) for position in range(400)]
    counts = Counter(place in few for place in order)
    assert counts == {False: 300, True: 100}
    for part in (many, few):
        own = [place for place in order if place in part]
        epochs = [own[start : start + len(part)] for start in range(0, len(own) - len(part) + 1, len(part))]
        assert all(sorted(epoch) == part for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs[:4]}) > 1  # a new epoch has another order
    _, other = training_set(recipe(1, seed=1), tokenizer)
    assert [other(position) for position in range(400)] != order


class StopAt(CARTask):
    """Dies in the middle of a run, as a machine does."""

    def losses(self, name, models, batch, step, part):  # type: ignore[no-untyped-def]
        if step == 5:
            raise KeyboardInterrupt
        return super().losses(name, models, batch, step, part)


def test_a_stopped_training_goes_on_to_the_bit(recipe: Callable[..., CARRecipe], tmp_path: Path) -> None:
    fit(recipe(8, "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(8, "parts"), StopAt)
    assert not (tmp_path / "parts/final").exists()
    assert [path.name for path in sorted((tmp_path / "parts/checkpoints").iterdir())][-1] == "step-00000004"
    fit(recipe(8, "parts", resume=True))
    whole, parts = (load_file(tmp_path / name / "final/model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        assert torch.equal(parts[name], weight), name
    fields = ("kind", "step", "nats", "text_nats", "top1", "nats_shuffled")
    lines = [
        [{k: line.get(k) for k in fields} for line in read_metrics(tmp_path / name)] for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]
    fit(recipe(8, "other", seed=1))
    other = load_file(tmp_path / "other/final/model.safetensors")
    assert any(not torch.equal(other[name], weight) for name, weight in whole.items())


def test_no_picture_is_tokenized(recipe: Callable[..., CARRecipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(car_task, "tokenized", None)  # a call of it would be an error
    monkeypatch.setattr(CVQTokenizer, "tokenize", None)
    task = CARTask(recipe(1))
    batch = next(task.batches(0, 0, 1))
    assert tuple(batch.shape) == (8, 12 + 8)


def test_tokens_of_another_tokenizer_are_refused(
    recipe: Callable[..., CARRecipe], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    other = CVQTokenizer.from_pretrained(tiny_tokenizer)
    digest = tokenizer_digest(other)
    with torch.no_grad():
        next(other.decoder.parameters()).view(-1)[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=rf"of another tokenizer \(digest {digest}, .*than the recipe's \(digest "):
        CARTask(replace(recipe(1), tokenizer=str(tmp_path / "other")))


def test_a_manifest_that_says_more_codes_than_the_tokenizer_has_is_refused(
    recipe: Callable[..., CARRecipe], folders: tuple[Path, Path]
) -> None:
    path = folders[0] / "manifest.json"
    path.write_text(path.read_text().replace('"codebook_size": 32', '"codebook_size": 65536'))
    with pytest.raises(InputError, match=r"the manifest says 8 tokens of 65536 codes, its tokenizer has 8 of 32"):
        CARTask(recipe(1))


def test_a_run_does_not_go_on_with_other_tokens(
    recipe: Callable[..., CARRecipe], folders: tuple[Path, Path], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    fit(recipe(2))
    (tmp_path / "more").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "more/red.png")
    write_shards(tmp_path / "more", tmp_path / "more-tars", prefix="more")
    tokenize_shards(tmp_path / "more-tars", folders[0], tiny_tokenizer)
    with pytest.raises(InputError, match=r"begun with training images.* of other content than now"):
        fit(recipe(4, resume=True))


def test_tokens_and_pictures_are_not_mixed(recipe: Callable[..., CARRecipe], tmp_path: Path) -> None:
    tokens = recipe(1)
    sources = dict(tokens.data.sources) | {"tars": ShardsConfig(urls="gone.tar")}
    with pytest.raises(InputError, match="some are of kind tokens and some hold pictures"):
        CARTask(replace(tokens, data=replace(tokens.data, sources=sources)))
    root = tokens.data.sources["many"].root  # type: ignore[attr-defined]
    settings = (f"data.sources={{mine: {{kind: tokens, root: {root}}}}}", f"train.output_dir={tmp_path}/run")
    with pytest.raises(InputError, match="hold no pictures: they are for training generators, recipes with task: car"):
        load_recipe("small/own", settings).build()


def test_how_many_pictures_have_a_caption_is_told() -> None:
    ids = torch.zeros(4, 2, dtype=torch.int32)
    some = TokenSet(ids, ("a", "", "a", "c"), ("one", "two", "one", "three"))
    assert _captioned(some) == "captions: 2 of 3 training pictures have one; the others are learned without words"
    assert _captioned(TokenSet(ids, ("a",) * 4, tuple("wxyz"))) == "captions: 4 of 4 training pictures have one"
