"""The report of a generator, on one that knows nothing, with scenes that need no download."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.data.build import DataConfig, FolderConfig
from channelvq.errors import InputError
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.report import generator as car_report
from channelvq.report import token_sets
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe

DRAWN = ("data.sources.scenes.sprites=shapes", "objective.train_images=16", "train.steps=1", "objective.lm_steps=0",
         "objective.stage1_steps=0")  # fmt: skip


@pytest.fixture
def car(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CAR:
    """A fresh generator, and few images for the report."""
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_sets, "IMAGES", 16)
    monkeypatch.setattr(car_report, "TRAINING", 32)
    monkeypatch.setattr(car_report, "GUIDANCE", (1.0, 3.0))
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1,), num_blocks=1, attention=False, stem=8)
    config = CVQConfig(latent_channels=8, network=network, quantizer=PlainConfig(codebook_size=32, start="uniform"))
    backbone = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = TextTokenizer(train_bpe(["a photo of a star"], 300))
    return CAR(CARConfig(backbone=backbone, max_text_tokens=80), CVQTokenizer(config).eval(), text).eval()


def test_report_holds_figures_pictures_and_protocol(car: CAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(car_report, "COUNTED", 5)
    recipe = load_recipe("small/scenes-car", DRAWN, of=CARRecipe)
    settings = car_report.ReportSettings(prompts=3, seeds=2, sweep=True)
    said: list[str] = []
    result = car_report.run(car, "mine & <others>", recipe, tmp_path / "out", settings, said.append)
    metrics = result["records"][0]["metrics"]
    assert metrics["samples"]["count"] == 6
    assert len(metrics["sweep"]) == 4
    assert abs(metrics["nats"] - torch.log(torch.tensor(32.0))) < 0.5  # it knows nothing
    stored = json.loads((tmp_path / "out/report.json").read_text())
    assert stored["protocol"]["seeds"] == 2
    assert stored["protocol"]["counts_alone"] == "over 5 training images"
    page = (tmp_path / "out/report.html").read_text()
    assert "mine &amp; &lt;others&gt;" in page
    for name in ("samples", "nearest", "by-channel", "guidance"):
        assert (tmp_path / f"out/{name}.png").stat().st_size > 0
        assert f'alt="{name}"' in page


def test_report_on_a_few_own_images_counts_each_once_and_says_whose_they_are(car: CAR, tmp_path: Path) -> None:
    folders = {split: tmp_path / split for split in ("train", "validation", "test")}
    for folder in folders.values():
        folder.mkdir()
        for i, colour in enumerate(("red", "green", "blue")):
            Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"a {colour} square")
    roots = [str(folder) for folder in folders.values()]
    mine = FolderConfig(root=roots[0], validation_root=roots[1], test_root=roots[2])
    recipe = replace(load_recipe("small/scenes-car", DRAWN, of=CARRecipe), data=DataConfig(sources={"mine": mine}))
    settings = car_report.ReportSettings(prompts=64, seeds=2, sweep=True)  # 6 samples, 3 images to compare with
    result = car_report.run(car, "mine", recipe, tmp_path / "out", settings, lambda _: None)
    protocol = result["protocol"]
    assert (protocol["n"], protocol["data"]) == (3, "mine, as the recipe draws them")
    assert protocol["recipe"]["sources"]["mine"]["root"] == roots[0]
    assert result["records"][0]["metrics"]["samples"]["count"] == 6


def test_settings_out_of_range_are_told_before_anything_is_measured(car: CAR, tmp_path: Path) -> None:
    settings = car_report.ReportSettings(temperature=-1.0)
    with pytest.raises(InputError, match="temperature"):
        car_report.run(
            car, "mine", load_recipe("small/scenes-car", DRAWN, of=CARRecipe), tmp_path / "out", settings, print
        )
    assert not (tmp_path / "cache").exists()
