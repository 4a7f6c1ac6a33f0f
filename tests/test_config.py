"""Strict configuration: every mistake is named, and a saved config is the same config."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import channelvq
from channelvq.config import apply_overrides, digest, from_dict, read_recipe, recipe_names, save, to_dict
from channelvq.errors import InputError
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load_recipe(name).train.steps > 0


def test_all_mistakes_in_one_error() -> None:
    data = {"model": {"image_size": -1, "colour": 1}, "train": {"steps": "many"}, "nested": {"alpha": 2}}
    with pytest.raises(InputError) as caught:
        from_dict(TokenizerRecipe, data)
    text = str(caught.value)
    for part in (
        "model.image_size",
        "model.colour: there is no such setting",
        "train.steps",
        "nested.alpha",
        "4 setting(s)",
    ):
        assert part in text


def test_overrides_reach_nested_keys_and_keep_the_rest() -> None:
    recipe = load_recipe("small/smoke", ["model.quantizer.codebook_size=99", "train.resume=true"])
    plain = load_recipe("small/smoke")
    assert recipe.model.quantizer.codebook_size == 99
    assert recipe.train.resume is True
    assert recipe.model.network == plain.model.network
    assert digest(recipe) != digest(plain)


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.stepz=3", "train.steps=0", "a: b: c=1"])
def test_bad_overrides_are_input_errors(override: str) -> None:
    with pytest.raises(InputError):
        load_recipe("small/smoke", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train=[1]", r"train: expected settings as key: value, got \[1\]"),
        ("model=[1]", "model: expected settings"),
        ("data.sources=[1]", r"data\.sources: expected settings"),
        ("model.quantizer=[]", r"model\.quantizer: expected settings"),
        ("train.betas={a: 1}", r"train\.betas: "),
        ("model.network.multipliers={a: 1}", r"model\.network\.multipliers: expected a list, got \{'a': 1\}"),
        ("train=5", "train: Input should be"),
    ],
)
def test_a_list_over_settings_is_named(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "below.yaml").write_text("base: small/smoke\nmodel: {network: {multipliers: [1, 2]}}\n")
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "below.yaml", [override])
    key, _, value = override.partition("=")
    for part in reversed(key.split(".")):
        value = f"{{{part}: {value}}}"
    (tmp_path / "a.yaml").write_text(f"base: below.yaml\n{value[1:-1]}\n")
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "a.yaml")


def test_deep_nesting_and_dangling_references_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: " + "[" * 100_000)
    (tmp_path / "b.yaml").write_text("base: small/smoke\ntrain: {output_dir: '\\${gone}'}\n")
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(InputError, match=name):
            load_recipe(tmp_path / name)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
@pytest.mark.parametrize(
    "key", ["train.learning_rate", "train.weight_decay", "train.clip_norm", "data.sources.scenes.weight",
            "model.quantizer.beta", "train.steps"]
)  # fmt: skip
def test_numbers_are_finite(key: str, value: str) -> None:
    below = {"data": {"sources": {"scenes": {"kind": "scenes"}}}}
    with pytest.raises(InputError, match=f"{key.replace('.', '[.]')}: Input should be "):
        from_dict(TokenizerRecipe, apply_overrides(below, [f"{key}={value}"]))


def test_every_config_is_strict() -> None:
    """So that the rules for unknown keys and for infinity hold everywhere."""
    source = Path(channelvq.__file__).parent
    for path in source.rglob("*.py"):
        text = path.read_text()
        if imported := re.search(r"from pydantic.dataclasses import dataclass(?: as (\w+))?", text):
            decorator = f"@{imported[1] or 'dataclass'}"
            decorators = [line for line in text.splitlines() if line.startswith(decorator)]
            assert decorators, path
            assert all("config=STRICT" in line for line in decorators), path


def test_saved_config_is_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("small/smoke", ["train.learning_rate=3e-4"])
    save(recipe, tmp_path / "r.yaml")
    again = load_recipe(tmp_path / "r.yaml")
    assert again == recipe
    assert digest(again) == digest(recipe)
    assert from_dict(TokenizerRecipe, to_dict(recipe)) == recipe


def test_a_full_disk_leaves_the_config_that_was_there(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    recipe = load_recipe("small/smoke", ["train.output_dir=läufe/é"])
    save(recipe, tmp_path / "r.yaml")
    with full_disk(), pytest.raises(OSError, match="too large"):
        save(recipe, tmp_path / "r.yaml")
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["train.step=60"], ["train.step: there is no such setting; did you mean train.steps?"]),
        (["steps=60"], ["steps: there is no such setting; did you mean train.steps?"]),
        (["train.xyz=60"], ["train.xyz: there is no such setting"]),
        (["model.quantiser.kind=ema"], ["model.quantiser: there is no such setting; did you mean model.quantizer?"]),
        (
            ["model.network.bse_channels=3", "train.steps=many"],  # beside another mistake
            ["model.network.bse_channels: there is no such setting; did you mean model.network.base_channels?"],
        ),
        (
            ["data.sources.mine.kind=folder", "data.sources.mine.rot=x", "train.step=60"],  # and one that is missing
            [
                "data.sources.mine.rot: there is no such setting; did you mean data.sources.mine.root?",
                "train.step: there is no such setting; did you mean train.steps?",
            ],
        ),
    ],
)
def test_a_mistyped_setting_is_told_the_near_one(overrides: list[str], lines: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("small/smoke", overrides)
    told = [line.strip() for line in str(caught.value).splitlines()]
    assert set(lines) <= set(told)
    assert told[-1] == "`cvq show small/smoke` lists all"


def test_unknown_recipe_is_told_the_near_one(tmp_path: Path) -> None:
    said = r"^recipe 'small/onw': no such recipe \(`cvq recipes` lists all\).*; did you mean small/own\?$"
    with pytest.raises(InputError, match=said):
        read_recipe("small/onw")
    with pytest.raises(InputError, match=r"\.yaml$"):
        read_recipe("qqqq")
    with pytest.raises(InputError, match="no such file"):
        read_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("a: [1")
    with pytest.raises(InputError, match="not valid YAML"):
        read_recipe(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("[1, 2]")
    with pytest.raises(InputError, match="mapping"):
        read_recipe(tmp_path / "c.yaml")


def test_a_base_is_beside_its_recipe_and_a_circle_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("base: b.yaml\ntrain: {seed: 3}\n")
    (tmp_path / "sub" / "b.yaml").write_text("base: small/smoke\ntrain: {steps: 9}\n")
    monkeypatch.chdir(tmp_path)
    train = load_recipe("sub/a.yaml").train
    assert (train.seed, train.steps) == (3, 9)
    (tmp_path / "c.yaml").write_text("base: c.yaml\n")
    with pytest.raises(InputError, match=r"c\.yaml -> c\.yaml"):
        load_recipe("c.yaml")
    for content in (b"base: 5\n", b"\xff\xfe\x00", b"task: [1]\n", b"task: painter\n"):
        (tmp_path / "d.yaml").write_bytes(content)
        with pytest.raises(InputError, match=r"d\.yaml"):
            load_recipe("d.yaml")


def test_base_recipe_is_read_first(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: small/smoke\ntrain: {steps: 7}\n")
    recipe = load_recipe(tmp_path / "a.yaml")
    assert recipe.train.steps == 7
    assert recipe.model == load_recipe("small/smoke").model
    assert apply_overrides({"a": {"b": 1, "c": 2}}, ["a.b=5"]) == {"a": {"b": 5, "c": 2}}
