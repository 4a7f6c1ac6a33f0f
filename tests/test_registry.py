"""Kinds by name: all of ours are where they are said to be, and what is not known is named."""

import subprocess
import sys
from typing import Any

import pytest
import torch

import channelvq.registry
from channelvq.cli import COMMANDS
from channelvq.config import from_dict
from channelvq.data.build import SOURCES, DataConfig
from channelvq.errors import InputError
from channelvq.evaluate.metrics import METRICS
from channelvq.nn.networks import NETWORKS
from channelvq.quantize.registry import QUANTIZERS
from channelvq.registry import Registry
from channelvq.tokenizer import CVQConfig
from channelvq.train.run import TASKS

ALL = (QUANTIZERS, NETWORKS, SOURCES, TASKS, METRICS, COMMANDS)


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.what)
def test_every_kind_of_ours_is_at_its_place(registry: Registry[Any]) -> None:
    for name in registry.names():
        assert callable(registry[name]) or registry is METRICS, name


@pytest.mark.parametrize("kind", QUANTIZERS.names())
def test_settings_of_a_quantizer_build_it(kind: str) -> None:
    config = QUANTIZERS[kind](codebook_size=16)  # type: ignore[call-arg]
    assert config.kind == kind
    quantizer = config.build(8, 4)
    assert (quantizer.codebook_size, quantizer.dim) == (16, 8)
    assert quantizer(torch.randn(9, 4, 8)).indices.shape == (9, 4)


@pytest.mark.parametrize(
    "given", [7, None, [], "plain", {"kind": 7}, {"kind": ["plain"]}, {"kind": "no such"}, {"kind": ""}]
)
def test_what_names_no_kind_is_an_error_with_its_key(given: Any) -> None:
    with pytest.raises(InputError, match=r"quantizer(\.kind)?: expected settings whose kind is plain, ema, .* or lfq"):
        from_dict(CVQConfig, {"quantizer": given})


def test_settings_of_another_sort_are_an_error() -> None:
    with pytest.raises(InputError, match=r"network\.kind: .* conv, vit or linear \(given 'plain'\)"):
        from_dict(CVQConfig, {"network": {"kind": "plain"}})
    with pytest.raises(InputError, match=r"sources\.mine\.rooot: there is no such setting"):
        from_dict(DataConfig, {"sources": {"mine": {"kind": "folder", "root": "x", "rooot": "y"}}})


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name, value = "broken", "nowhere.to_be_found"

        def load(self) -> None:
            raise ModuleNotFoundError("No module named 'nowhere'")

    monkeypatch.setattr(channelvq.registry, "entry_points", lambda group: [Broken()])
    monkeypatch.setattr(channelvq.registry, "_loaded", [])
    with pytest.warns(UserWarning, match=r"plugin broken \(nowhere\.to_be_found\) is left out: No module named"):
        assert "other" not in QUANTIZERS
    assert "plain" in QUANTIZERS.names()


@pytest.mark.parametrize("name", [3, "", "another"])
def test_a_kind_is_registered_by_the_name_that_it_has(name: Any) -> None:
    class Settings:
        kind = "mine"

    with pytest.raises(InputError, match="quantizer"):
        QUANTIZERS.register(name, Settings)  # type: ignore[type-var]


def test_a_kind_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys
from channelvq.train.run import load_recipe
load_recipe("small/smoke")
rooms = {"car", "doctor", "geneval", "detector", "adversarial", "semantic", "vit", "ibq", "shards", "emoji", "lab"}
ours = [name.split(".") for name in sys.modules if name.split(".")[0] in ("channelvq", "lab")]
print([name for name in ours if rooms & set(name)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
