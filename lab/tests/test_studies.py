"""Studies: results that grow run by run, and what the claims of table 1 come to."""

from pathlib import Path

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from lab import study as studies
from lab.studies import table1
from lab.studies.table1_tuning import METHODS
from lab.study import RecipeStudy

TINY = (
    "model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.steps=2",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=8", "train.batch_size=2",
)  # fmt: skip


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> RecipeStudy:
    """A study of two tiny runs on eight random images."""
    runs = {f"seed {seed}": ("small/smoke", (*TINY, f"train.seed={seed}")) for seed in (0, 1)}
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(studies, "held_out", lambda kind, n: images[:n])
    return RecipeStudy(runs, kinds=("emoji",), images=8, per_image=("psnr",))


def test_missing_trains_only_what_the_result_lacks(study: RecipeStudy, tmp_path: Path) -> None:
    path, store = tmp_path / "tiny.json", tmp_path / "store"
    whole = study.run(path, store)
    assert [row["name"] for row in whole["records"]] == ["seed 0", "seed 1"]
    psnr = whole["records"][0]["per_image"]["psnr"]["4"]
    assert sum(psnr) / 8 == pytest.approx(whole["records"][0]["metrics"]["psnr"], rel=1e-5)
    write_json(path, whole | {"records": whole["records"][:1]})
    again = study.run(path, tmp_path / "other", missing=True)
    trained = [folder.name for folder in (tmp_path / "other").iterdir()]
    assert trained == [whole["records"][1]["run"]]
    assert [row["metrics"] for row in again["records"]] == [row["metrics"] for row in whole["records"]]


def test_a_record_that_stays_says_what_revision_measured_it(study: RecipeStudy, tmp_path: Path) -> None:
    path, store = tmp_path / "tiny.json", tmp_path / "store"
    whole = study.run(path, store)
    write_json(path, {"protocol": whole["protocol"] | {"git": "then"}, "records": whole["records"][:1]})
    for _ in range(2):
        result = study.run(path, store, missing=True)
        assert [row.get("protocol", result["protocol"])["git"] for row in result["records"]] == [
            "then", whole["protocol"]["git"]
        ]  # fmt: skip
    before = path.read_bytes()
    study.run(path, store, missing=True)
    assert path.read_bytes() == before


def test_missing_begins_without_a_result_and_writes_after_each_run(
    study: RecipeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = studies.trained

    def stopped_at_the_second(recipe: studies.TokenizerRecipe, store: Path) -> object:
        if recipe.train.seed:
            raise InputError("stopped")
        return train(recipe, store)

    monkeypatch.setattr(studies, "trained", stopped_at_the_second)
    with pytest.raises(InputError, match="stopped"):
        study.run(tmp_path / "tiny.json", tmp_path / "store", missing=True)
    assert [row["name"] for row in study.load(tmp_path / "tiny.json")["records"]] == ["seed 0"]


def test_records_of_other_recipes_are_not_kept(study: RecipeStudy, tmp_path: Path) -> None:
    path, store = tmp_path / "tiny.json", tmp_path / "store"
    whole = study.run(path, store)
    old, good = whole["records"]
    write_json(path, whole | {"records": [old | {"run": "0" * 16}, good]})
    assert study.run(path, store, missing=True)["records"][0]["run"] == old["run"]


def test_what_was_measured_in_another_way_is_not_added_to(study: RecipeStudy, tmp_path: Path) -> None:
    path, store = tmp_path / "tiny.json", tmp_path / "store"
    whole = study.run(path, store)
    write_json(path, whole | {"protocol": whole["protocol"] | {"resize": "nearest"}})
    with pytest.raises(InputError, match=r"resize: nearest -> antialiased.*--rerun"):
        study.run(path, store, missing=True)


def _result(psnr: dict[str, list[list[float]]]) -> dict[str, object]:
    """Records of methods with these PSNR of images by seed; SSIM and perceptual distance are twice as much."""
    records = []
    for method, seeds in psnr.items():
        for seed, values in enumerate(seeds):
            double = [2 * value for value in values]
            per_image = {"psnr": {"64": values}, "ssim": {"64": double}, "perceptual": {"64": double}}
            records.append({"name": f"{method}, seed {seed}", "tokens": 64, "per_image": per_image})
    return {"records": records}


def test_claims_hold_are_refuted_or_stay_open_by_images_and_seeds() -> None:
    same = [[1.0, 2.0, 3.0]] * 2
    psnr = dict.fromkeys((*METHODS, "CVQ, 256 tokens", "VQGAN, 256 tokens"), same)
    psnr["CVQ"] = [[2.0, 3.0, 4.0], [3.0, 4.0, 5.0]]  # 1.5 above the others, and all seeds agree
    psnr["CVQ + IBQ"] = [[9.0, 9.0, 9.0], [0.0, 0.0, 0.0]]  # seeds disagree
    found = {row[0]: row[1:] for row in table1.claims(_result(psnr)).rows}
    assert found["CVQ better than VQGAN"] == [
        "holds: +1.50 (+1.50 to +1.50)",
        "holds: +3.000 (+3.000 to +3.000)",
        "refuted: +3.000 (+3.000 to +3.000)",  # of a distance, less is better
    ]
    assert found["CVQ + SimVQ better than CVQ"][0] == "refuted: -1.50 (-1.50 to -1.50)"
    assert found["CVQ + IBQ better than CVQ"][0].startswith("open: +1.00")
    assert found["CVQ + SimVQ better than SimVQ"][0] == "open: +0.00 (+0.00 to +0.00)"
    assert {name for claim in table1.CLAIMS for name in claim} <= set(psnr)
