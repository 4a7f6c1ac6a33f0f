"""The same ids whatever else the process does: autocast, threads, precision and defaults that others have set."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from channelvq import CAR, CVQTokenizer
from channelvq.lookup.precision import full_float32
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.channel_vq import ChannelVQ
from channelvq.quantize.ema import EMAConfig
from channelvq.threads import shared
from channelvq.tokenizer import CVQConfig

NETWORK = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=True, stem=2)


def images(count: int = 9, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def car() -> CAR:
    return CAR.from_pretrained("bundled")


@pytest.fixture
def small() -> CVQTokenizer:
    torch.manual_seed(0)
    config = CVQConfig(image_size=16, latent_channels=8, network=NETWORK, quantizer=EMAConfig(codebook_size=32))
    tokenizer = CVQTokenizer(config)
    tokenizer(images(8, 16))
    return tokenizer


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def attention_kernels() -> tuple[bool, ...]:
    kinds = torch.backends.cuda
    return kinds.flash_sdp_enabled(), kinds.mem_efficient_sdp_enabled(), kinds.math_sdp_enabled()


def calls(car: CAR) -> dict[str, Callable[[], torch.Tensor]]:
    tokenizer, x = car.tokenizer, images()
    ids = tokenizer.tokenize(x)
    return {
        "tokenize": lambda: tokenizer.tokenize(x),
        "encode": lambda: tokenizer.encode(x).indices,
        "latents": lambda: tokenizer.latents(x),
        "detokenize": lambda: tokenizer.detokenize(ids, "tensor"),
        "decode": lambda: tokenizer.decode(tokenizer.ids_to_latents(ids)),
        "generate": lambda: car.generate(["a photo of a red cat"], num_tokens=6).ids,
        "stream": lambda: list(car.stream(["a photo of a red cat"], 3, num_tokens=6))[-1].ids,
        "score": lambda: car.score(["a photo of a red cat"], ids[:1, :6]),
    }


CALLS = ("tokenize", "encode", "latents", "detokenize", "decode", "generate", "stream", "score")


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_autocast_around_a_public_call_changes_nothing(car: CAR, name: str) -> None:
    call = calls(car)[name]
    expected = call()
    car._table.__init__()  # what was computed outside of autocast must not help
    with torch.autocast("cpu", torch.bfloat16):
        found = call()
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert torch.equal(call(), expected)  # nothing rounded was kept


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_default_dtype_of_others_changes_nothing(car: CAR, name: str) -> None:
    call = calls(car)[name]
    expected = call()
    with default_dtype(torch.float64):
        found = call()
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_what_is_loaded_under_another_default_dtype_is_what_was_saved(car: CAR) -> None:
    x, alone = images(), CVQTokenizer.from_pretrained("bundled")
    ids, others, generated = car.tokenizer.tokenize(x), alone.tokenize(x), car.generate(["a photo of a red cat"]).ids
    with default_dtype(torch.float64):
        loaded = CAR.from_pretrained("bundled")
        assert {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()} == {torch.float32}
        assert torch.equal(loaded.tokenizer.tokenize(x), ids)
        assert torch.equal(CVQTokenizer.from_pretrained("bundled").tokenize(x), others)
    assert torch.equal(loaded.generate(["a photo of a red cat"]).ids, generated)


@pytest.mark.parametrize("kind", ["plain", "ema", "simvq", "simvq-tokenwise", "ibq", "lc", "fsq", "lfq"])
@pytest.mark.filterwarnings("ignore:kmeans. 8 distinct vectors")
def test_a_codebook_starts_from_data_under_another_default_dtype(kind: str) -> None:
    with default_dtype(torch.float64):
        quantizer = ChannelVQ(16, 4, kind=kind, **({"num_tokens": 8} if kind == "simvq-tokenwise" else {}))
        out = quantizer(torch.randn(1, 8, 2, 2).repeat(4, 1, 1, 1))  # so few that centres are twins at first
        assert out.z_q.isfinite().all()


def test_eight_threads_leave_the_process_and_the_tokenizer_as_they_were(small: CVQTokenizer) -> None:
    small.train()
    small.decoder.eval()  # somebody froze a part
    codes, modes, kernels = small.quantizer.codes().clone(), [m.training for m in small.modules()], attention_kernels()
    x = images(3, 16)
    expected = small.tokenize(x)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: small.tokenize(x), range(48)))
    assert all(torch.equal(ids, expected) for ids in found)
    assert torch.equal(small.quantizer.codes(), codes)
    assert [m.training for m in small.modules()] == modes
    assert attention_kernels() == kernels


def test_full_precision_lasts_for_the_last_of_two_threads() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        first, second = full_float32(), full_float32()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        second.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_shared_state_is_set_once_and_restored_by_the_last() -> None:
    log: list[str] = []

    @shared
    @contextmanager
    def state() -> Iterator[None]:
        log.append("set")
        try:
            yield
        finally:
            log.append("restored")

    first, second = state(), state()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert log == ["set"]
    second.__exit__(None, None, None)
    assert log == ["set", "restored"]
    with pytest.raises(RuntimeError), state():
        raise RuntimeError
    assert log == ["set", "restored"] * 2
