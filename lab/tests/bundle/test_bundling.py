"""Putting a run into the package: refused before anything is touched, and done at once at the end."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from channelvq.config import save
from channelvq.data.build import DataConfig
from channelvq.data.drawn.scenes import SceneConfig
from channelvq.data.drawn.waves import WaveConfig
from channelvq.data.files.folder import FolderConfig
from channelvq.errors import InputError
from channelvq.train.run import load_recipe
from lab.bundle import perceptual as bundled_perceptual
from lab.bundle.tokenizer import works_of

ROOT = Path(__file__).parents[3]
PACKAGE = {"tokenizer": "tokenizer", "generator": "car", "perceptual": "perceptual", "detector": "detector"}
RECIPES = {
    "tokenizer": "small/bundled", "generator": "small/bundled-car",
    "perceptual": "lab/bundle/perceptual.yaml", "detector": "lab/bundle/detector.yaml",
}  # fmt: skip


def make_run(folder: Path, recipe: str, done: int) -> Path:
    """A run of 900 steps without final/, of which `done` are."""
    folder.mkdir()
    save(load_recipe(recipe, ["train.steps=900"]), folder / "config.yaml")
    if done:
        state = folder / f"checkpoints/step-{done:08d}/progress.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"step": done, "seconds": 7.5, "threads": 1}))
    return folder


def add_final(run: Path, kind: str) -> None:
    shutil.copytree(ROOT / "src/channelvq/bundled" / PACKAGE[kind], run / "final")


def package(folder: Path, kind: str) -> Path:
    (folder / PACKAGE[kind]).mkdir(parents=True)
    (folder / PACKAGE[kind] / "model.safetensors").write_text("the old one")
    return folder


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(errors="replace") for path in found}


@pytest.mark.parametrize("kind", PACKAGE)
def test_a_run_that_is_not_finished_is_refused_and_the_package_stays(kind: str, tmp_path: Path) -> None:
    bundle = import_module(f"lab.bundle.{kind}").bundle
    place = package(tmp_path / "package", kind)
    before = files(place)

    def refused(run: Path, words: str) -> None:
        with pytest.raises(InputError, match=words):
            bundle(run, place, tmp_path / "results", "cvq train it")
        assert files(place) == before

    refused(tmp_path / "nowhere", r"nowhere: there is no run.*`cvq train it`")
    go_on = r"go on with `cvq train .*config\.yaml train\.resume=true`"
    refused(make_run(tmp_path / "new", RECIPES[kind], 0), rf"0 of 900 steps are done, final/ has no .*{go_on}")
    whole = make_run(tmp_path / "whole", RECIPES[kind], 900)
    refused(whole, rf"900 of 900 steps are done, final/ has no model\.safetensors.*{go_on}")
    longer = make_run(tmp_path / "longer", RECIPES[kind], 2)
    add_final(longer, kind)  # of an earlier, shorter training
    refused(longer, rf"\(2 of 900 steps are done\); {go_on}")
    bare = make_run(tmp_path / "bare", RECIPES[kind], 0)
    add_final(bare, kind)
    refused(bare, "there is no checkpoint")
    assert not (tmp_path / "results").exists()


def test_the_package_changes_when_all_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "perceptual"
    run, place = make_run(tmp_path / "run", RECIPES[kind], 900), package(tmp_path / "package", kind)
    add_final(run, kind)
    before = files(place)

    def fail(network: object, size: int) -> None:
        assert files(place)["perceptual/model.safetensors"] == "the old one"
        raise InputError("emoji are not fetched")

    monkeypatch.setattr(bundled_perceptual, "cross_style", fail)
    with pytest.raises(InputError, match="not fetched"):
        bundled_perceptual.bundle(run, place, tmp_path / "results", "cvq train it")
    assert files(place) == before
    accuracy = {"mean": 0.5}
    records = [{"features": name, "accuracy": accuracy} for name in ("network", "pixels")]
    monkeypatch.setattr(bundled_perceptual, "cross_style", lambda *_: {"protocol": {"queries": 3}, "records": records})
    bundled_perceptual.bundle(run, place, tmp_path / "results", "cvq train it")
    assert files(place).keys() == {f"perceptual/{name}" for name in ("README.md", "config.json", "model.safetensors")}
    assert "`cvq train it`: 900 steps" in files(place)["perceptual/README.md"]
    assert json.loads((tmp_path / "results/perceptual.json").read_text())["run"]["training_seconds"] == 7.5


def test_what_has_no_known_licence_is_refused_by_name(tmp_path: Path) -> None:
    ours = {"scenes": SceneConfig(), "waves": WaveConfig(), "off": FolderConfig(root="x", weight=0)}
    assert works_of(DataConfig(sources=ours)) == []
    with pytest.raises(InputError, match=r"data\.sources\.mine: .* kind 'folder'"):
        works_of(DataConfig(sources={"mine": FolderConfig(root="x")}))
    place = package(tmp_path / "package", "tokenizer")
    for kind, recipe, words in (
        ("tokenizer", "small/bundled", "data.sources={mine: {kind: folder, root: x}}"),
        ("generator", "small/bundled-car", "data.sources={mine: {kind: folder, root: x}}"),
    ):
        run = make_run(tmp_path / kind, recipe, 900)
        save(load_recipe(recipe, ["train.steps=900", words]), run / "config.yaml")
        add_final(run, kind)
        with pytest.raises(InputError, match=r"data\.sources\.mine"):
            import_module(f"lab.bundle.{kind}").bundle(run, place, tmp_path / "results", "cvq train it")
    assert files(place) == {"tokenizer/model.safetensors": "the old one"}
