"""Quantizers inside torch.compile: one graph in eval, the same ids and gradients.

The backend runs the graph without making code of it, so that no compiler has to be there.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from channelvq import ChannelVQ, ResidualChannelVQ
from channelvq.errors import NotFiniteError
from channelvq.quantize import Quantized

KINDS = ("plain", "ema", "simvq", "simvq-tokenwise", "ibq", "lc", "fsq", "lfq")

pytestmark = pytest.mark.filterwarnings("ignore:kmeans.")


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def graph_of(model: nn.Module) -> Callable[..., Quantized]:
    return torch.compile(model, fullgraph=True, backend="aot_eager")  # type: ignore[return-value]


def trained(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    module(torch.randn(8, 4, 2, 2))
    return module.eval()


def maps(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 2, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[*KINDS, "residual"])
def quantizer(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "residual":
        return trained(ResidualChannelVQ(codebook_size=16, codebook_dim=4, num_quantizers=2, groups=2))
    tokens = {"num_tokens": 4} if request.param == "simvq-tokenwise" else {}
    return trained(ChannelVQ(codebook_size=16, codebook_dim=4, kind=request.param, **tokens))


def test_one_graph_gives_the_same(quantizer: nn.Module) -> None:
    expected, found = quantizer(maps()), graph_of(quantizer)(maps())
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.z_q, expected.z_q)
    torch.testing.assert_close(found.loss, expected.loss)


def test_gradients_pass_through_the_graph(quantizer: nn.Module) -> None:
    gradients = []
    for function in (quantizer, graph_of(quantizer)):
        z = maps().requires_grad_()
        out = function(z)
        (out.z_q.sin().sum() + out.loss).backward()
        assert z.grad is not None
        gradients.append(z.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_graph_refuses_what_the_module_refuses(quantizer: nn.Module) -> None:
    z = maps()
    z[1, 2, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        graph_of(quantizer)(z)


def test_batches_of_any_size_are_one_graph() -> None:
    quantizer = trained(ChannelVQ(codebook_size=16, codebook_dim=4))
    graph = torch.compile(quantizer, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5, 7):
        assert torch.equal(graph(maps(batch)).indices, quantizer(maps(batch)).indices)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # the draw, which is left outside
def test_codes_are_drawn_outside_the_graph() -> None:
    quantizer = trained(ChannelVQ(codebook_size=16, codebook_dim=4))

    def drawn(call: Callable[..., Any]) -> Tensor:
        return call(maps(), temperature=1.0, generator=torch.Generator().manual_seed(3)).indices

    graph = torch.compile(quantizer, backend="aot_eager")
    assert torch.equal(drawn(graph), drawn(quantizer))
    assert not torch.equal(drawn(graph), graph(maps()).indices)
