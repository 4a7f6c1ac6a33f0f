"""Ids chosen by the error of their picture."""

import pytest
import torch

from channelvq import CVQTokenizer
from channelvq.codec import compress, decompress
from channelvq.errors import InputError
from channelvq.evaluate.held_out import held_out
from channelvq.evaluate.metrics import psnr
from channelvq.images import normalize, to_tensor
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.channel_vq import QuantizerConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.quantize.fsq import FSQConfig
from channelvq.quantize.simvq import SimVQConfig
from channelvq.refine import refine_ids
from channelvq.tokenizer import CVQConfig

QUANTIZERS = (
    PlainConfig(codebook_size=64, start="data"),
    SimVQConfig(codebook_size=64),
    FSQConfig(codebook_size=64, levels=(4, 4, 4)),
)


def small(quantizer: QuantizerConfig, axis: str = "channel") -> CVQTokenizer:
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CVQConfig(16, 12, axis=axis, network=network, quantizer=quantizer)  # type: ignore[arg-type]
        tokenizer = CVQTokenizer(config).eval()
        for parameter in tokenizer.decoder.parameters():  # a fresh decoder hardly looks at its input
            parameter.data += 0.3 * torch.randn_like(parameter)
    tokenizer.quantizer.start_from(tokenizer.latents(noise(40)), torch.Generator().manual_seed(0))
    return tokenizer


def noise(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def errors(tokenizer: CVQTokenizer, ids: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (tokenizer.detokenize(ids, "tensor") - images).square().mean((1, 2, 3))


@pytest.mark.parametrize("axis", ["channel", "patch"])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda each: each.kind)
def test_no_picture_is_worse_at_the_length_that_is_asked_for(quantizer: QuantizerConfig, axis: str) -> None:
    tokenizer, images = small(quantizer, axis), noise(10)
    weights = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
    for length in (tokenizer.num_tokens, 3):
        before = errors(tokenizer, tokenizer.tokenize(images)[:, :length], images)
        ids = refine_ids(tokenizer, images, steps=10, num_tokens=length)
        after = errors(tokenizer, ids, images)
        assert ids.shape == (10, length)
        assert (after <= before).all()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tokenizer.state_dict().items())
    assert all(parameter.grad is None for parameter in tokenizer.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_inference_mode_are_searched_as_well(dtype: torch.dtype) -> None:
    tokenizer, images = small(PlainConfig(codebook_size=64, start="data")).to(dtype), noise(3)
    with torch.inference_mode():
        ids = refine_ids(tokenizer, images, steps=3)
    before = errors(tokenizer, tokenizer.tokenize(images), images)
    assert (errors(tokenizer, ids, images) <= before).all()
    assert tokenizer.dtype == dtype


def test_dark_neighbours_change_nothing() -> None:
    """The rate is in each image's own units."""
    tokenizer, images = CVQTokenizer.from_pretrained("bundled"), normalize(held_out("photos", 1))
    flat = torch.zeros(3, 3, 64, 64)
    alone = refine_ids(tokenizer, images, steps=3)
    beside = refine_ids(tokenizer, torch.cat([images, flat]), steps=3)[:1]
    assert (alone != beside).sum() <= 1  # a close call at most; by a rate over all images it was 16


def test_no_steps_are_the_nearest_codewords() -> None:
    tokenizer, images = small(PlainConfig(codebook_size=64, start="data")), noise(3)
    assert torch.equal(refine_ids(tokenizer, images, steps=0), tokenizer.tokenize(images))
    with pytest.raises(InputError, match="steps: expected a whole number of at least 0, got -1"):
        refine_ids(tokenizer, images, steps=-1)
    with pytest.raises(InputError, match=r"num_tokens: expected a whole number in 1\.\.12, got 13"):
        refine_ids(tokenizer, images, num_tokens=13)


def test_a_file_of_the_same_length_restores_more() -> None:
    tokenizer, images = CVQTokenizer.from_pretrained("bundled"), held_out("photos", 4)
    restored = {
        effort: torch.stack([to_tensor(p) for p in decompress(files, tokenizer)])
        for effort in (0, 5)
        if (files := compress(normalize(images), tokenizer, effort=effort))
    }
    assert psnr(restored[5], images).mean() > psnr(restored[0], images).mean() + 0.1
    for limit in ({"num_bytes": 40}, {"psnr": 20.0}):
        with pytest.raises(InputError, match="give num_tokens, not num_bytes or psnr"):
            compress(normalize(images), tokenizer, effort=5, **limit)
