"""Images made worse: by the generator alone, in more than one way, and never beyond recognition."""

import torch
from PIL import Image

from channelvq.data.degrade import degrade
from channelvq.data.scenes import SceneSource
from channelvq.evaluate.metrics import psnr
from channelvq.images import to_pil, to_tensor


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
