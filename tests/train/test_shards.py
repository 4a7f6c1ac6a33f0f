"""Training on tar shards: equal to the bit to training on the files, resumed as if never stopped, shared by ranks."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from channelvq.data.build import DataConfig
from channelvq.data.files.shard_writer import write_shards
from channelvq.data.files.shards import ShardsConfig
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import token_set
from channelvq.train.engine import Engine, read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe, TokenizerTask

TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.network.components=8", "model.network.slots=16",
    "model.network.start_images=12", "model.quantizer.rank=4", "model.quantizer.codebook_size=16",
    "model.network.encoder.base_channels=8", "model.network.encoder.num_blocks=1",
    "model.network.decoder.base_channels=8", "model.network.decoder.num_blocks=1",
    "data.validation_images=4",
    "objective.start_images=8", "train.batch_size=4", "train.device=cpu", "train.log_every=1", "train.precision=no",
    "train.checkpoint_every=2", "train.steps=5", "train.warmup_steps=1",
)  # fmt: skip
COUNT = 14
OPTIONS = ("crop=random", "min_side=20", "flip=true", "validation=0.2", "test=0.2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Settings by recipe, for a folder and for its shards: the same images with the same captions."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    for i in range(COUNT):
        values = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / f"images/{i}.png")
        (root / f"images/{i}.txt").write_text(f"picture {i}")
    urls = write_shards(root / "images", root / "shards", images_per_shard=5).urls(root / "shards")
    places = {"small/own": f"mine.root={root}/images", "small/own-shards": f"shards.urls={urls}"}
    return {
        recipe: (*(f"data.sources.{place.split('.')[0]}.{option}" for option in OPTIONS), f"data.sources.{place}")
        for recipe, place in places.items()
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))


def recipe(name: str, folder: Path, data: dict[str, tuple[str, ...]]) -> TokenizerRecipe:
    return load_recipe(name, [*TINY, *data[name], f"train.output_dir={folder}"], of=TokenizerRecipe)


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final/model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def fit(config: TokenizerRecipe) -> None:
    assert Engine(TokenizerTask(config), config.train, config).fit() is not None


class StopAt(TokenizerTask):
    """Dies in the middle of a run, as a machine does."""

    at = 3

    def losses(self, name, models, batch, step, rank):  # type: ignore[no-untyped-def]
        if step == self.at:
            raise KeyboardInterrupt
        return super().losses(name, models, batch, step, rank)


def test_shards_train_like_their_files_and_go_on_after_a_kill(tmp_path: Path, data: dict[str, tuple[str, ...]]) -> None:
    for name, folder in (("small/own", "folder"), ("small/own-shards", "shards")):
        fit(recipe(name, tmp_path / folder, data))
    assert_equal(final(tmp_path / "folder"), final(tmp_path / "shards"))
    broken = recipe("small/own-shards", tmp_path / "broken", data)
    broken = replace(broken, train=replace(broken.train, data_workers=2))
    with pytest.raises(KeyboardInterrupt):
        Engine(StopAt(broken), broken.train, broken).fit()
    assert not (tmp_path / "broken/final").exists()
    fit(replace(broken, train=replace(broken.train, resume=True, data_workers=1)))
    assert_equal(final(tmp_path / "broken"), final(tmp_path / "shards"))
    fields = ("kind", "step", "pixel", "psnr")
    whole, parts = (
        [{k: line.get(k) for k in fields} for line in read_metrics(tmp_path / name)] for name in ("shards", "broken")
    )
    assert parts == whole


@pytest.mark.skipif(sys.platform == "win32", reason="torch.distributed.run")
def test_two_ranks_of_two_workers_equal_one(tmp_path: Path, data: dict[str, tuple[str, ...]]) -> None:
    fit(recipe("small/own-shards", tmp_path / "one", data))
    config = (tmp_path / "one/config.yaml").read_text().replace(str(tmp_path / "one"), str(tmp_path / "two"))
    (tmp_path / "two.yaml").write_text(config.replace("data_workers: 0", "data_workers: 2"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "-m", "channelvq", "train", str(tmp_path / "two.yaml")]
    environment = os.environ | {"CHANNELVQ_CACHE": str(tmp_path / "other")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    # Means over halves are added in another order, and Adam makes a whole step of the sign of a gradient near zero: so
    # not each weight, but what was lost at each step, which another image would change in its first digits.
    first, second = (
        [line["pixel"] for line in read_metrics(tmp_path / name) if line["kind"] == "train"] for name in ("one", "two")
    )
    assert second == pytest.approx(first, rel=1e-4)
    assert len(list((tmp_path / "other/shards").iterdir())) == 3


def test_captions_reach_the_generators_training(tmp_path: Path, data: dict[str, tuple[str, ...]]) -> None:
    settings = recipe("small/own-shards", tmp_path, data)
    source = settings.data.sources["shards"]
    assert isinstance(source, ShardsConfig)
    torch.manual_seed(0)
    tokenizer = CVQTokenizer(settings.model)
    found = token_set(DataConfig(sources={"mine": replace(source, captioned=True)}), tokenizer, "train", COUNT)
    assert [f"picture {Path(key).stem}" for key in found.keys] == list(found.captions)
    assert 0 < len(set(found.keys)) < COUNT
