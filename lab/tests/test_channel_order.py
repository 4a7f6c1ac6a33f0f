"""Orders of channels, and tokenizers in another order."""

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate.metrics import psnr
from channelvq.images import normalize, to_uint8
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from lab.channel_order import by_energy, by_variance, greedy, permuted, prefix_psnr, quantized_maps

C = 6


def make(axis: str = "channel") -> CVQTokenizer:
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    quantizer = PlainConfig(codebook_size=16, start="uniform")
    config = CVQConfig(image_size=16, latent_channels=C, axis=axis, network=network, quantizer=quantizer)  # type: ignore[arg-type]
    tokenizer = CVQTokenizer(config).eval()
    # Codewords among the maps, so that different maps get different ones.
    tokenizer.quantizer.start_from(tokenizer.latents(normalize(pictures(32))), torch.Generator().manual_seed(0))
    return tokenizer


def pictures(n: int = 8) -> torch.Tensor:
    return torch.randint(256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_energy_and_variance_are_not_the_same_order() -> None:
    maps = torch.zeros(4, 3, 2, 2)
    maps[:, 0] = 5.0  # large, and always the same
    maps[:, 1] = torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None, None]
    maps[:, 2] = torch.tensor([-2.0, 2.0, -2.0, 2.0])[:, None, None]
    assert by_energy(maps).tolist() == [0, 2, 1]
    assert by_variance(maps).tolist() == [2, 1, 0]


def test_permuted_tokenizer_has_the_tokens_in_that_order_and_the_same_pictures() -> None:
    tokenizer, order = make(), torch.tensor([3, 0, 5, 1, 4, 2])
    other, images = permuted(tokenizer, order), normalize(pictures())
    ids = tokenizer.tokenize(images)
    assert len(ids.unique()) > 3
    assert torch.equal(other.tokenize(images), ids[:, order])
    torch.testing.assert_close(other.detokenize(ids[:, order], "tensor"), tokenizer.detokenize(ids, "tensor"))
    assert torch.equal(tokenizer.tokenize(images), ids)


def test_prefixes_of_an_order_are_those_of_the_permuted_tokenizer() -> None:
    tokenizer, order, images = make(), torch.tensor([3, 0, 5, 1, 4, 2]), pictures()
    other = permuted(tokenizer, order)
    found = prefix_psnr(tokenizer, quantized_maps(tokenizer, images), images, order, [2, C], torch.zeros(C, 4, 4))
    for row, length in zip(found, (2, C), strict=True):
        decoded = other.detokenize(other.tokenize(normalize(images))[:, :length], "tensor")
        torch.testing.assert_close(row, psnr(to_uint8(decoded), images), rtol=1e-3, atol=1e-3)


def test_greedy_is_best_at_its_first_step_and_never_worse_than_the_mean() -> None:
    tokenizer, images = make(), pictures()
    maps = quantized_maps(tokenizer, images)
    order, mean = greedy(tokenizer, maps, images), maps.mean(0)
    assert sorted(order.tolist()) == list(range(C))

    @torch.no_grad()
    def error(channels: list[int]) -> float:
        shown = mean.expand_as(maps).clone()
        shown[:, channels] = maps[:, channels]
        return float((tokenizer.decode(shown).clamp(-1, 1) - normalize(images)).square().mean())

    errors = [error([channel]) for channel in range(C)]
    assert int(torch.tensor(errors).argmin()) == int(order[0])
    second = [error([int(order[0]), channel]) for channel in range(C) if channel != order[0]]
    assert error(order[:2].tolist()) == min(second)


def test_what_has_no_channels_to_reorder_is_refused() -> None:
    with pytest.raises(InputError, match="channel-wise"):
        permuted(make("patch"), torch.arange(C))
    with pytest.raises(InputError, match=r"each of 0\.\.5 once"):
        permuted(make(), torch.zeros(C, dtype=torch.int64))
