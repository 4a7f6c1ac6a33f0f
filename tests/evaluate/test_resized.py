"""A tokenizer measured at another size than its own."""

import pytest
import torch
from torch.nn import functional as F

from channelvq import CVQTokenizer
from channelvq.errors import InputError
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.resized import Resized
from channelvq.images import normalize, to_uint8


@pytest.fixture(scope="module")
def tokenizer() -> CVQTokenizer:
    return CVQTokenizer.from_pretrained("bundled-fashion")


def pictures(side: int) -> torch.Tensor:
    soft = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return to_uint8(F.interpolate(soft, (side, side), mode="bicubic", antialias=True).clamp(-1, 1))


def test_at_its_own_size_nothing_changes(tokenizer: CVQTokenizer) -> None:
    x = normalize(pictures(32))
    resized = Resized(tokenizer, (32, 32))
    assert torch.equal(resized.tokenize(x), tokenizer.tokenize(x))
    ids = tokenizer.tokenize(x)
    torch.testing.assert_close(resized.detokenize(ids), tokenizer.detokenize(ids, "tensor"), atol=1e-5, rtol=0)


def test_figures_are_of_pictures_of_the_asked_size(tokenizer: CVQTokenizer) -> None:
    large = pictures(64)
    report = evaluate_reconstruction(Resized(tokenizer, (64, 64)), large, prefixes=[16])
    ids = tokenizer.tokenize(normalize(to_uint8(F.interpolate(normalize(large), 32, mode="bicubic", antialias=True))))
    back = F.interpolate(tokenizer.detokenize(ids, "tensor"), 64, mode="bicubic", antialias=True)
    errors = (to_uint8(back.clamp(-1, 1)).double() - large.double()).square().mean((1, 2, 3))
    assert report.prefixes[-1].psnr.mean == pytest.approx(float((10 * (255**2 / errors).log10()).mean()), abs=1e-4)
    assert report.prefixes[-1].bits_per_pixel == pytest.approx(tokenizer.num_tokens * 10 / 64**2)  # 1,024 codes
    with pytest.raises(InputError):
        evaluate_reconstruction(tokenizer, large)
