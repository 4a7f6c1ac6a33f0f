"""Images made worse, by the generator alone, in more than one way and never beyond recognition; other colours."""

import torch
from PIL import Image

from channelvq.data.drawn.scenes import SceneSource
from channelvq.evaluate.metrics import psnr
from channelvq.images import to_pil, to_tensor
from lab.bundle.degrade import degrade, shift_colours


def picture() -> Image.Image:
    return to_pil(SceneSource(64, "train", "shapes").scene(4).image[None])[0]


def worse(seed: int) -> torch.Tensor:
    return to_tensor(degrade(picture(), torch.Generator().manual_seed(seed)))


def test_the_generator_decides_and_nothing_else() -> None:
    assert torch.equal(worse(5), worse(5))
    before = picture().tobytes()
    image = picture()
    degrade(image, torch.Generator().manual_seed(5))
    assert image.tobytes() == before


def test_some_stay_as_they_are_and_the_others_are_worse_but_recognisable() -> None:
    made = torch.stack([worse(seed) for seed in range(60)])
    quality = psnr(made, to_tensor(picture()).expand_as(made).contiguous())
    same = int((quality == 100).sum())
    assert 5 <= same <= 30  # (1 - 0.3)^4 is about a quarter
    assert len({image.numpy().tobytes() for image in made}) == 60 - same + 1
    assert 15 < float(quality.min()) < 30


def test_shifted_colours_leave_the_shapes_and_reach_every_hue() -> None:
    red = Image.new("RGB", (4, 4), (222, 36, 36))
    hues, bright = set(), []
    for seed in range(200):
        shifted = shift_colours(red, torch.Generator().manual_seed(seed))
        assert len(shifted.getcolors() or ()) == 1
        hue, _, value = shifted.convert("HSV").getpixel((0, 0))  # type: ignore[misc]
        hues.add(hue // 32)
        bright.append(value)
    assert hues == set(range(8))
    assert min(bright) < 185 < 235 < max(bright)
    image = picture()
    edges = (to_tensor(image).int().diff(dim=2).abs().sum(0) > 60).float()
    shifted = to_tensor(shift_colours(image, torch.Generator().manual_seed(1))).int().diff(dim=2).abs().sum(0)
    assert float(shifted[edges > 0].float().mean()) > 5 * float(shifted[edges == 0].float().mean())
    assert torch.equal(to_tensor(shift_colours(image, torch.Generator().manual_seed(1))), to_tensor(
        shift_colours(image, torch.Generator().manual_seed(1))))  # fmt: skip
