"""The compiled sampler writes the same ids."""

import shutil
from collections.abc import Callable

import pytest
import torch

from channelvq.car.model import CAR
from channelvq.errors import InputError
from channelvq.nn.processor import compiler

PROMPTS = ["a photo of two bananas", "a green dog"]
needs_compiler = pytest.mark.skipif(shutil.which(compiler()) is None, reason="torch.compile needs a C++ compiler")


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while its compiler loads
def test_compiled_writes_the_same_ids(car64: CAR) -> None:
    """In float64, with guidance and prompts of two lengths; from a prefix too, by the function compiled before."""
    wanted = car64.generate(PROMPTS, seed=3, exact=False).ids
    assert len(wanted.unique()) > 3
    assert torch.equal(car64.generate(PROMPTS, seed=3, exact=False, compiled=True).ids, wanted)
    again = car64.generate(PROMPTS, seed=3, exact=False, compiled=True, prefix_ids=wanted[:, :3]).ids
    assert torch.equal(again, wanted)


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_follows_the_weights(new_car: Callable[..., CAR]) -> None:
    """The compiled code holds copies of float32 weights: other weights are other code, and no earlier one is taken."""
    car, greedy = new_car(), {"temperature": 0.0, "exact": False}
    before = car.generate(PROMPTS, compiled=True, **greedy).ids  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in (car.head.weight, car.backbone.get_submodule("layers.0.mlp.down_proj").weight):
            weight.normal_()
    wanted = car.generate(PROMPTS, **greedy).ids  # type: ignore[arg-type]
    assert not torch.equal(wanted, before)
    assert torch.equal(car.generate(PROMPTS, compiled=True, **greedy).ids, wanted)  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_models_do_not_mix(new_car: Callable[..., CAR]) -> None:
    """Two in one process, in turns, one with the head that scores by projected codewords."""
    cars, greedy = (new_car(), new_car(head="codebook")), {"temperature": 0.0, "exact": False}
    wanted = [car.generate(PROMPTS, **greedy).ids for car in cars]  # type: ignore[arg-type]
    assert not torch.equal(*wanted)
    for car, ids in [*zip(cars, wanted, strict=True)] * 2:
        assert torch.equal(car.generate(PROMPTS, compiled=True, **greedy).ids, ids)  # type: ignore[arg-type]


def test_compiled_is_refused_where_bits_are_promised(car: CAR) -> None:
    with pytest.raises(InputError, match="compiled=True goes with exact=False"):
        car.generate(PROMPTS, compiled=True, exact=True)


def test_missing_compiler_is_named(car: CAR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"C\+\+ compiler on the CPU, and there is no no-such-compiler"):
        car.generate(PROMPTS, exact=False, compiled=True)
