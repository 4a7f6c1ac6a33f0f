"""The stored result of the domains is that of the recipes and of the bundled weights as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from channelvq.data.fetched.packages import find_package
from channelvq.errors import InputError
from channelvq.evaluate.measures import Measures
from channelvq.pretrained import weights_sha256
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from lab import failures
from lab.probes import gratings
from lab.store import run_key
from lab.studies import domains

RESULT = Path(__file__).parents[3] / "results/domains.json"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return domains.load(RESULT)


def test_every_record_is_of_the_recipe_that_it_names(result: dict[str, Any]) -> None:
    keys = {name: run_key(recipe) for name, recipe in domains.recipes().items()} | {domains.UNTOUCHED: None}
    found = {(row["data"], row["state"]): row["run"] for row in result["records"]}
    untouched = {(kind, domains.UNTOUCHED) for kind in ("emoji", *domains.MEASURED_ON.values(), *domains.SINGLE)}
    tuned = {(kind, name) for name, own in domains.MEASURED_ON.items() for kind in ("emoji", own)}
    assert set(found) == untouched | tuned
    assert all(run == keys[state] for (_, state), run in found.items())
    assert len(domains.finetuned(result).rows) + len(domains.forgetting(result).rows) == len(found)


def test_the_untouched_tokenizer_is_the_one_in_the_package(result: dict[str, Any]) -> None:
    bundled = weights_sha256(CVQTokenizer.from_pretrained("bundled"))
    for row in result["records"]:
        assert (row["protocol"]["tokenizer_sha256"] == bundled) is (row["state"] == domains.UNTOUCHED)
        assert row["metrics"]["usage_tokens"] >= 8 * row["codes"]


def test_a_kind_is_measured_on_the_same_images_before_and_after(result: dict[str, Any]) -> None:
    images: dict[str, set[str]] = {}
    for row in result["records"]:
        images.setdefault(row["data"], set()).add(row["protocol"]["data_sha256"])
    assert all(len(hashes) == 1 for hashes in images.values())
    assert len(set.union(*images.values())) == len(images)


def test_every_failure_has_every_probe(result: dict[str, Any]) -> None:
    names = [each["name"] for each in result["failures"]]
    assert set(failures.DRAWN) | set(failures.STUDIED) <= set(names)
    assert {f"finetuned on {name}" for name in domains.FINETUNED} <= set(names)
    for each in result["failures"]:
        assert [row["cycles"] for row in each["gratings"]][::3] == list(failures.CYCLES)
        assert [row["range"] for row in each["gradients"]] == list(failures.RANGES)
        assert {row["n"] for row in each["gratings"] + each["gradients"]} == {4}
    webp = next(each for each in result["failures"] if each["name"] == "WebP, 96 bytes")
    assert min(row["gain"] for row in webp["gradients"]) > 0.95  # a codec that is known to keep gradients


def test_means_are_over_the_pictures_of_a_setting() -> None:
    probes = gratings(64, (2, 8), (0.5,))
    half = probes.images.clone()
    half[4:6] = 128  # half of the pictures of 8 cycles lose all contrast
    found = failures._means(probes, half, ("gain", "psnr"))
    assert [row["gain"] for row in found] == pytest.approx([1.0, 0.5], abs=0.01)


def test_restored_images_are_those_of_the_prefix() -> None:
    torch.manual_seed(0)
    tokenizer = CVQTokenizer(CVQConfig(image_size=32, latent_channels=4)).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    ids = tokenizer.tokenize(images / 127.5 - 1)
    expected = ((tokenizer.detokenize(ids[:, :2], "tensor") + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(failures.restored(tokenizer, images, 2), expected)


def test_what_was_measured_is_not_measured_again_unless_weights_or_images_change(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = (CVQTokenizer(CVQConfig(image_size=32, latent_channels=4)).eval() for _ in range(2))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)

    def ask(tokenizer: CVQTokenizer, some: torch.Tensor) -> float:
        record, values = domains.measured("emoji", "untouched", tokenizer, some, Measures(), {}, tmp_path)
        assert len(values) == len(some)
        return record["metrics"]["psnr"]

    first = ask(one, images)
    (path,) = tmp_path.glob("domains-*.json")
    stored = json.loads(path.read_text())
    stored["record"]["metrics"]["psnr"] = 99.0
    path.write_text(json.dumps(stored))
    assert ask(one, images) == 99.0  # read, not measured
    assert ask(other, images) != first
    ask(one, images.flip(0))
    assert len(list(tmp_path.glob("domains-*.json"))) == 3


def test_the_gain_is_paired() -> None:
    before = [10.0, 20.0, 30.0, 40.0]
    found = domains.gain(before, [value + 0.5 for value in before])
    assert found == {"mean": 0.5, "interval": [0.5, 0.5]}  # though the images differ by far more


@pytest.mark.skipif(find_package("astronomy") is None, reason="the astronomy package is not in the cache")
def test_only_pictures_that_may_be_shown_are_shown() -> None:
    source = domains._only(domains.DomainSource("astronomy", 16, "test"), domains.HUBBLE)
    assert {picture.key for picture in source.pictures} == set(domains.HUBBLE)


def test_a_missing_result_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rerun"):
        domains.load(tmp_path / "none.json")
