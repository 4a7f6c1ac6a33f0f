import io

import pytest
import torch
from PIL import Image
from skimage import data

from channelvq.errors import InputError
from channelvq.evaluate import codecs
from channelvq.evaluate.baselines import PCABaseline, baseline_curves, jpeg, webp
from channelvq.evaluate.metrics import psnr
from channelvq.images import to_tensor


def photos() -> torch.Tensor:
    chelsea = Image.fromarray(data.chelsea())
    boxes = [(100, 30, 300, 230), (0, 0, 128, 128)]
    return torch.stack([to_tensor(chelsea.crop(box).resize((64, 64), Image.Resampling.LANCZOS)) for box in boxes])


@pytest.mark.parametrize("codec", [jpeg, webp])
def test_more_bytes_are_better_and_never_too_many(codec) -> None:
    images = photos()
    previous = torch.zeros(2)
    for budget in (64, 200, 800, 3_000):
        result = codec(images, budget)
        assert result.fits.all()
        assert (result.num_bytes <= budget).all()
        quality = psnr(result.images, images)
        assert (quality > previous).all()
        previous = quality
    assert (previous > 32).all()


@pytest.mark.parametrize("codec", [jpeg, webp])
def test_what_cannot_fit_is_said_with_the_smallest_size(codec) -> None:
    images = photos()
    result = codec(images, 1)
    assert not result.fits.any()
    smallest = int(result.num_bytes[0])
    assert 1 < smallest < 64
    assert codec(images[:1], smallest).fits.all()
    assert not codec(images[:1], smallest - 1).fits.any()


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_the_search_is_as_good_as_trying_everything(name: str) -> None:
    codec = {"jpeg": codecs._JPEG, "webp": codecs._WEBP}[name]
    image, budget = photos()[0], 96
    pixels = image.permute(1, 2, 0).numpy()
    files = [
        codec.encode(small, quality, settings)
        for small in codecs._downscaled(pixels)[1:]
        for settings in codec.settings
        for quality in codec.qualities[:: 1 if name == "jpeg" else 3]
    ]
    best = min(codecs._squared_error(f, pixels) for f in files if codec.payload(f) <= budget)
    found = codecs._squared_error(codecs._best_file(pixels, budget, codec), pixels)
    assert found <= best * 1.01


def test_payload_of_a_jpeg_is_its_scan() -> None:
    gray = Image.new("RGB", (8, 8), (128, 128, 128))
    file = io.BytesIO()
    gray.save(file, "JPEG", quality=50, subsampling="4:4:4")
    scan = file.getvalue().split(b"\xff\xda")[1]
    # behind the marker: a header of 12 bytes, the scan, the end marker of 2
    assert codecs._jpeg_payload(file.getvalue()) == len(scan) - 12 - 2
    # three blocks of a zero DC (2 + 2 + 2 bits) and an end of block (4 + 2 + 2 bits): 14 bits
    assert codecs._jpeg_payload(file.getvalue()) == 2


def test_payload_of_a_webp_is_its_frame() -> None:
    file = io.BytesIO()
    Image.fromarray(data.chelsea()[:64, :64]).save(file, "WEBP", quality=30)
    # RIFF header 12, chunk header 8, frame tag 3, start code 3, dimensions 4, perhaps a byte of padding
    assert len(file.getvalue()) - 30 - codecs._webp_payload(file.getvalue()) in (0, 1)
    assert file.getvalue()[23:26] == b"\x9d\x01\x2a"


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    images = photos()
    assert torch.equal(jpeg(images, 96).images[1:], jpeg(images[1:], 96).images)


def test_odd_and_tiny_images() -> None:
    image = torch.randint(0, 256, (1, 3, 5, 19), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for codec in (jpeg, webp):
        assert codec(image, 500).images.shape == image.shape


def test_curves_hold_every_method_and_budget() -> None:
    images = photos()
    pca = PCABaseline.fit(torch.cat([images, images.flip(-1), images.flip(-2)]))
    curves = baseline_curves(images, [2, 96], pca)
    assert list(curves) == ["jpeg", "webp", "pca"]
    assert all([point.budget for point in curve] == [2, 96] for curve in curves.values())
    assert curves["pca"][0].num_bytes == 2
    assert curves["webp"][0].fits == 0.0
    assert curves["webp"][0].num_bytes > 2
    assert curves["jpeg"][1].psnr == pytest.approx(psnr(jpeg(images, 96).images, images).mean().item())
    assert set(curves["jpeg"][1].to_dict()) == {"budget", "num_bytes", "psnr", "ssim", "fits"}
    assert "pca" not in baseline_curves(images[:1], [96])


def test_unusable_input_is_refused() -> None:
    with pytest.raises(InputError, match="num_bytes"):
        jpeg(photos(), 0)
    with pytest.raises(InputError, match="uint8"):
        webp(photos().float(), 96)
