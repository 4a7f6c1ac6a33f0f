from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from channelvq.errors import InputError
from channelvq.images import (
    FirstFrameWarning,
    images_to_batch,
    load_image,
    normalize,
    to_pil,
    to_tensor,
    to_uint8,
)

RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


def u8(values):
    return np.array(values, dtype=np.uint8)


def noise(height=37, width=53, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def picture(height=37, width=53, seed=0):
    return Image.fromarray(noise(height, width, seed).permute(1, 2, 0).numpy())


def encoded(image, format_name, **options):
    buffer = BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def pixels(image):
    return np.asarray(image).tolist()


# Reading files


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_formats_give_every_pixel_back(format_name):
    assert pixels(load_image(encoded(picture(), format_name))) == pixels(picture())


def test_path_string_bytes_and_pil_image_agree(tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    with Image.open(path) as opened:
        sources = [path, str(path), path.read_bytes(), opened]
        assert all(pixels(load_image(source)) == pixels(picture()) for source in sources)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("as_pil", [False, True])
def test_exif_rotation_is_applied(orientation, as_pil):
    undo = {
        1: lambda im: im,
        2: ImageOps.mirror,
        3: lambda im: im.rotate(180),
        4: ImageOps.flip,
        5: lambda im: im.transpose(Image.Transpose.TRANSPOSE),
        6: lambda im: im.transpose(Image.Transpose.ROTATE_90),  # stored turned left, to be turned right
        7: lambda im: im.transpose(Image.Transpose.TRANSVERSE),
        8: lambda im: im.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(undo(picture()), "PNG", exif=exif)
    source = Image.open(BytesIO(data)) if as_pil else data
    assert pixels(load_image(source)) == pixels(picture())


def test_gray_and_one_bit():
    assert pixels(load_image(encoded(Image.fromarray(u8([[0, 77, 255]])), "PNG"))) == [[[v] * 3 for v in (0, 77, 255)]]
    assert pixels(load_image(encoded(Image.fromarray(np.array([[True, False]])), "PNG"))) == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("background", [WHITE, (10, 200, 30)])
def test_transparency_is_composited_on_the_background(background):
    half = [round((a * 128 + b * 127) / 255) for a, b in zip(RED, background, strict=True)]
    rgba = Image.fromarray(u8([[(*RED, 255), (*RED, 0), (*RED, 128)]]))
    got = pixels(load_image(encoded(rgba, "PNG"), background=background))[0]
    assert got[0] == list(RED)
    assert got[1] == list(background)
    assert np.abs(np.subtract(got[2], half)).max() <= 1
    gray = Image.merge("LA", [Image.new("L", (1, 1), 9), Image.new("L", (1, 1), 0)])
    assert pixels(load_image(gray, background=background)) == [[list(background)]]


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert pixels(load_image(encoded(palette, "PNG"))) == [[list(RED), list(BLUE)]]
    for transparency in (1, b"\xff\x00"):
        data = encoded(palette, "PNG", transparency=transparency)
        assert pixels(load_image(data, background=GREEN)) == [[list(RED), list(GREEN)]]
    assert pixels(load_image(encoded(palette, "GIF", transparency=0), background=GREEN)) == [[list(GREEN), list(BLUE)]]


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_one_transparent_colour(mode):
    key = {"L": 7, "RGB": (7, 8, 9), "I;16": 1799}[mode]
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), key)
    data = encoded(image, "PNG", transparency=key)
    assert pixels(load_image(data, background=GREEN)) == [[list(BLACK), list(GREEN)]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_gray_is_scaled_by_rounding(mode):
    values = [0, 128, 129, 257, 32768, 65406, 65407, 65535]
    image = Image.fromarray(np.array([values], dtype={"I;16": np.uint16, "I;16B": ">u2", "I": np.int32}[mode]))
    assert image.mode == mode
    expected = [round(v / 257) for v in values]
    assert [p[0] for p in pixels(load_image(image))[0]] == expected == [0, 0, 1, 1, 128, 254, 255, 255]
    assert [p[0] for p in pixels(load_image(encoded(image, "TIFF")))[0]] == expected


def test_sixteen_bit_png_file():
    image = Image.fromarray(np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16))
    assert np.asarray(load_image(encoded(image, "PNG")))[..., 1].ravel().tolist() == list(range(256))


def test_float_gray_is_in_zero_to_one():
    image = Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32))
    assert [p[2] for p in pixels(load_image(image))[0]] == [0, 128, 255]
    with pytest.raises(InputError, match=r"values from 0\.0 to 255\.0, expected \[0, 1\]"):
        load_image(Image.fromarray(np.array([[0, 255]], dtype=np.float32)))


def test_wide_integers_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"-1 to 70000, expected \[0, 65535\]"):
        load_image(Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)))


@pytest.mark.parametrize(
    ("mode", "format_name"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("LAB", "TIFF")]
)
def test_other_colour_spaces(mode, format_name):
    solid = Image.new("RGB", (16, 16), (200, 40, 90))
    if mode == "LAB":
        stored = Image.new("LAB", (16, 16), (115, 70 + 128, 20 + 128))
        assert load_image(encoded(stored, format_name)).mode == "RGB"
        return
    got = np.asarray(load_image(encoded(solid.convert(mode), format_name, quality=100)), dtype=int)
    assert np.abs(got - [200, 40, 90]).max() <= 6


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame_and_says_so(tmp_path, format_name):
    options = {"lossless": True} if format_name == "WEBP" else {}
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, BLUE)]
    path = tmp_path / "moving"
    path.write_bytes(encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options))
    with pytest.warns(FirstFrameWarning, match=r"moving' has several frames: only number 1"):
        assert pixels(load_image(path))[3][4] == list(RED)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_sizes(size):
    image = picture(*size)
    assert pixels(load_image(encoded(image, "PNG"))) == pixels(image)
    assert images_to_batch(image, size=8).shape == (1, 3, 8, 8)
    assert images_to_batch(image, size=np.int64(8)).shape == (1, 3, 8, 8)


# Files that must be refused


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.97])
def test_truncated_files_are_refused(tmp_path, format_name, part):
    data = encoded(picture(), format_name)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match=r"cut\.img"):
        load_image(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(41, 5000), st.integers(0, 7))
def test_a_flipped_bit_in_a_png_is_never_a_wrong_picture(position, bit):
    data = bytearray(encoded(picture(), "PNG"))
    data[position % (len(data) - 53) + 41] ^= 1 << bit
    try:
        got = pixels(load_image(bytes(data)))
    except InputError:
        return
    assert got == pixels(picture())


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "it is empty"), (b"hello, not an image", "not an image that Pillow can identify")]
)
def test_empty_and_foreign_files(tmp_path, content, reason):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.png'.*{reason}"):
        load_image(path)
    with pytest.raises(InputError, match=rf"image of {len(content)} bytes: .*{reason}"):
        load_image(content)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png': no such file"):
        load_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match="it is a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("limit", [40 * 30 // 4, 40 * 30 - 1])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match="too many pixels"):
        load_image(encoded(picture(40, 30), "PNG"))


def test_image_without_pixels_and_wrong_type():
    with pytest.raises(InputError, match=r"no pixels \(0 x 5\)"):
        load_image(Image.new("RGB", (0, 5)))
    with pytest.raises(InputError, match="from a int"):
        load_image(3)  # pyright: ignore[reportArgumentType]


# Arrays and tensors


def test_arrays_of_every_type_agree():
    values = np.asarray(picture())
    for array in (
        values,
        values.astype(np.uint16) * 257,
        values / 255,
        (values / 255).astype(np.float32),
        values[::, ::],
    ):
        assert pixels(load_image(array)) == values.tolist()
    gray = values[..., 0]
    for array in (gray, gray[..., None], gray.astype(np.uint16) * 257, gray / 255):
        assert pixels(load_image(array)) == np.stack([gray] * 3, -1).tolist()
    assert pixels(load_image(np.array([[True, False]]))) == [[[255] * 3, [0] * 3]]
    assert pixels(load_image(values[:, ::-1])) == values[:, ::-1].tolist()


def test_array_with_alpha():
    assert pixels(load_image(u8([[(*RED, 0), (*RED, 255)]]), background=BLUE)) == [[list(BLUE), list(RED)]]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((8, 8, 3), np.int64),
        np.full((8, 8, 3), 255.0),
        np.full((8, 8, 3), -0.5),
        np.full((8, 8, 3), np.nan),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}-{array.max(initial=0)}",
)
def test_ambiguous_arrays_are_refused(array):
    with pytest.raises(InputError, match=r"array of shape \(.*expected"):
        load_image(array)


def test_tensors():
    x = noise()
    for tensor in (x, x[None], normalize(x), normalize(x)[None], normalize(x).double()):
        assert torch.equal(to_tensor(load_image(tensor)), x)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(8, 8, 3), "expected \\(3, H, W\\)"),
        (torch.zeros(2, 3, 8, 8), "expected one image"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "expected float in"),
        (torch.full((3, 8, 8), 255.0), "values from 255 to 255, expected \\[-1, 1\\]"),
        (torch.full((3, 8, 8), float("nan")), "nan"),
    ],
)
def test_ambiguous_tensors_are_refused(tensor, message):
    with pytest.raises(InputError, match=message):
        load_image(tensor)
    if "one image" not in message:
        with pytest.raises(InputError, match=message):
            images_to_batch(tensor)


def test_range_rule_is_exact_on_all_values():
    u = torch.arange(256, dtype=torch.uint8)
    x = normalize(u)
    assert x.dtype == torch.float32
    assert (x[0], x[255]) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), u)
    assert torch.equal(to_uint8(x.double()), u)
    assert torch.equal(to_uint8(x.half()), u)  # 10 bits of precision suffice, bfloat16's 8 do not


def test_to_uint8_rounds_and_clamps():
    x = torch.tensor([-3.0, -1.0, (100.4 / 127.5) - 1, (100.6 / 127.5) - 1, 1.0, 1.5])
    assert to_uint8(x).tolist() == [0, 0, 100, 101, 255, 255]
    with pytest.raises(InputError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))


def test_to_pil_inverts_to_tensor():
    batch = torch.stack([noise(seed=1), noise(seed=2)])
    for x in (batch, normalize(batch).requires_grad_()):
        assert torch.equal(torch.stack([to_tensor(image) for image in to_pil(x)]), batch)
    with pytest.raises(InputError, match="B, 3, H, W"):
        to_pil(batch[0])
    with pytest.raises(InputError, match="mode L"):
        to_tensor(Image.new("L", (2, 2)))


# Batches


def test_batch_of_one_of_each_kind(tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    x = normalize(noise())
    images = [path, str(path), path.read_bytes(), picture(), np.asarray(picture()), noise(), x]
    got = images_to_batch(images)
    assert got.dtype == torch.float32
    assert torch.equal(got, x.expand(7, -1, -1, -1))
    assert all(torch.equal(images_to_batch(image), x[None]) for image in images)


def test_float_batch_keeps_its_values():
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(images_to_batch(x), x)
    assert torch.equal(images_to_batch(list(x)), x)
    assert torch.equal(images_to_batch(x, size=(5, 7)), x)
    assert torch.equal(images_to_batch(x.double().requires_grad_()), x)
    assert images_to_batch(torch.full((1, 3, 2, 2), 1.0009)).max() == 1
    with pytest.raises(InputError, match=r"1\.002"):
        images_to_batch(torch.full((1, 3, 2, 2), 1.002))


def test_batch_with_size_treats_files_and_tensors_alike():
    from_files = images_to_batch([picture(), picture(90, 40, seed=1)], size=(16, 24))
    assert from_files.shape == (2, 3, 16, 24)
    from_tensors = images_to_batch([normalize(noise()), noise(90, 40, seed=1)], size=(16, 24))
    assert torch.equal(from_files, from_tensors)
    assert torch.equal(images_to_batch(normalize(noise())[None], size=(16, 24)), from_files[:1])


def test_batch_errors():
    with pytest.raises(InputError, match=r"image 0: \(37, 53\), image 2: \(9, 8\); give size="):
        images_to_batch([picture(), picture(), picture(9, 8)])
    with pytest.raises(InputError, match=r"image 1 of the list: .*it is empty"):
        images_to_batch([picture(), b""])
    with pytest.raises(InputError, match="no images given"):
        images_to_batch([])
    with pytest.raises(InputError, match=r"image 0 of the list: tensor of shape \(2, 3, 4, 4\)"):
        images_to_batch([torch.zeros(2, 3, 4, 4)])
    for size in (0, (4, -1), (1, 2, 3), 2.5, True, (), "8"):
        with pytest.raises(InputError, match="size="):
            images_to_batch(picture(), size=size)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default:Image size")
def test_a_warning_of_pillow_is_told_with_the_name_of_its_picture(
    cvq: Callable[..., tuple[int, str, str]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (64, 64 if name == "one" else 60)).save(here / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    code, _, stderr = cvq("tokenize", "one.png", "two.png")
    assert code == 0
    lines = [line for line in stderr.splitlines() if "exceeds limit" in line]
    assert [line.split(":")[1] for line in lines] == [" image file 'one.png'", " image file 'two.png'"]
