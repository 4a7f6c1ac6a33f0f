"""PSNR and flicker of clips against closed forms."""

import math

import pytest
import torch

from channelvq.errors import InputError
from channelvq.evaluate.clips import clip_psnr, flicker


def gray(*levels: int) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[None, :, None, None, None].expand(1, len(levels), 3, 4, 4)


def test_psnr_of_a_clip_is_the_mean_over_its_frames() -> None:
    value = clip_psnr(gray(100, 100), gray(110, 101))
    assert value.tolist() == pytest.approx([(20 * math.log10(25.5) + 20 * math.log10(255)) / 2])


def test_flicker_is_the_error_of_what_changes() -> None:
    moving = gray(0, 40, 80)
    assert flicker(moving, moving).tolist() == [0.0]
    assert flicker(gray(7, 47, 87), moving).tolist() == [0.0]  # a wrong level that stays
    assert flicker(gray(5, 40, 85), moving).tolist() == pytest.approx([5.0])
    assert flicker(gray(40, 40, 40), moving).tolist() == pytest.approx([40.0])
    assert math.isnan(flicker(gray(4), gray(5)).item())


@pytest.mark.parametrize("other", [gray(1, 2, 3), gray(1, 2).float(), gray(1, 2)[0]])
def test_clips_that_do_not_go_together_are_refused(other: torch.Tensor) -> None:
    for measure in (clip_psnr, flicker):
        with pytest.raises(InputError, match="expected two uint8 tensors"):
            measure(gray(1, 2), other)
