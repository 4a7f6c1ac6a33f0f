import os
import threading
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from channelvq.errors import InputError
from channelvq.images import (
    Skipped,
    find_images,
    grid,
    load_image,
    random_crop,
    read_images,
    resize_crop,
    save_image,
    strip,
)

RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


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


# Geometry


def test_resize_crop_keeps_the_centre_and_the_aspect():
    image = Image.new("RGB", (30, 10), RED)
    image.paste(GREEN, (10, 0, 20, 10))
    assert pixels(resize_crop(image, 10)) == [[list(GREEN)] * 10] * 10
    assert pixels(resize_crop(image, (10, 30))) == pixels(image)
    assert resize_crop(image, (7, 4)).size == (4, 7)


def test_resizing_is_antialiased():
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert np.abs(np.asarray(resize_crop(board, 8), dtype=int) - 127.5)[1:-1, 1:-1].max() <= 1


def test_random_crop_depends_on_its_generator_alone():
    image = picture(80, 120)
    crops = [pixels(random_crop(image, 16, 20, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
    assert crops[0] == crops[1] != crops[2]


def test_random_crop_covers_all_sides_and_places():
    gradient = np.zeros((12, 16, 3), np.uint8)
    gradient[..., 0], gradient[..., 1] = np.arange(16) * 10, np.arange(12)[:, None] * 10
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(400):
        crop = np.asarray(random_crop(Image.fromarray(gradient), 11, 11, generator))
        assert crop.shape == (11, 11, 3)
        if np.ptp(crop[..., 0]) == 100:  # side 11: copied without resampling
            seen.add((crop[0, 0, 0] // 10, crop[0, 0, 1] // 10))
    assert {place for place in seen if place[1] <= 1} == {(x, y) for x in range(6) for y in range(2)}


def test_random_crop_of_a_small_image_takes_its_short_side():
    image = Image.new("RGB", (5, 3), BLUE)
    assert pixels(random_crop(image, 4, 256, torch.Generator())) == [[list(BLUE)] * 4] * 4
    with pytest.raises(InputError, match=r"min_side: expected .* got 0"):
        random_crop(image, 4, 0, torch.Generator())


# Folders


def make(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(4, 5), "PNG") if content is None else content)


def test_folder_is_read_in_sorted_order_with_a_report(tmp_path):
    for name in ("b/2.PNG", "b/1.png", "a.webp", "c.jpg", ".hidden.png", ".git/x.png", "notes.txt"):
        make(tmp_path / name)
    make(tmp_path / "b" / "0.png", b"")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert names == ["a.webp", "b/0.png", "b/1.png", "b/2.PNG", "c.jpg"]
    images, skipped = read_images([tmp_path], size=4)
    read = [(path.name, image.size) for path, image in images]
    assert read == [(name, (4, 4)) for name in ("a.webp", "1.png", "2.PNG", "c.jpg")]
    assert [s.path for s in skipped] == [tmp_path / "b" / "0.png"]
    assert isinstance(skipped[0], Skipped)
    assert "it is empty" in skipped[0].reason


def test_all_named_files_that_cannot_be_read_are_in_one_error(tmp_path):
    make(tmp_path / "good.png")
    make(tmp_path / "folder/broken.png", b"")  # within a folder: skipped
    broken = [tmp_path / f"{i}.png" for i in range(7)]
    for path in broken:
        make(path, b"")
    for count, more in ((1, ""), (2, ""), (7, "; and 2 more")):
        images, _ = read_images([tmp_path / "good.png", tmp_path / "folder", *broken[:count]], size=4)
        with pytest.raises(InputError) as caught:
            list(images)
        reasons = "; ".join(f"cannot read image file {str(path)!r}: it is empty" for path in broken[:count][:5])
        assert str(caught.value) == f"{count} of {count + 2} images cannot be used, leave them out: {reasons}{more}"
    with pytest.raises(InputError, match=r"^cannot read image file '.*': it is empty$"):
        list(read_images(broken[:1], size=4)[0])
    with pytest.raises(InputError, match=r"^images '.*gone'; '.*lost': no such file or folder; expected an image or"):
        read_images([tmp_path / "gone", tmp_path / "good.png", tmp_path / "lost"], size=4)


def test_linked_folders_are_followed_once(tmp_path):
    make(tmp_path / "elsewhere" / "a.png")
    root = tmp_path / "root"
    make(root / "b.png")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert [path.relative_to(root).as_posix() for path in find_images(root)] == ["b.png", "link/a.png"]


def test_folder_that_is_none(tmp_path):
    make(tmp_path / "a.png")
    for wrong, reason in ((tmp_path / "gone", "no such folder"), (tmp_path / "a.png", "it is a file")):
        with pytest.raises(InputError, match=reason):
            find_images(wrong)


def test_save_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.png"
    save_image(picture(), path)
    assert pixels(load_image(path)) == pixels(picture())
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.jpg"):
        save_image(picture().convert("RGBA"), path.with_suffix(".jpg"))
    for suffix in (".xyz", ""):
        with pytest.raises(InputError, match="no image format"):
            save_image(picture(), path.with_suffix(suffix))
    assert os.listdir(path.parent) == ["a.png"]
    assert path.read_bytes() == before


def test_readers_never_meet_half_a_file(tmp_path):
    path, done, failures = tmp_path / "a.png", threading.Event(), []
    save_image(picture(200, 200), path)

    def read():
        while not done.is_set():
            try:
                load_image(path)
            except InputError as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for seed in range(10):
        save_image(picture(200, 200, seed), path)
    done.set()
    thread.join()
    assert failures == []


# Contact sheets


def test_strip_enlarges_each_pixel_and_keeps_order():
    sheet = np.asarray(strip([Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), BLUE)], scale=3))
    assert sheet.shape == (6, 14, 3)
    assert (sheet[:, :6] == RED).all()
    assert (sheet[:, 6:8] == WHITE).all()
    assert (sheet[:, 8:] == BLUE).all()
    one = picture(3, 4)
    assert pixels(strip([one], scale=2)) == np.asarray(one).repeat(2, 0).repeat(2, 1).tolist()


def test_grid_fills_row_by_row():
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(5)]
    sheet = np.asarray(grid(images, 3))
    assert sheet.shape == (10, 16, 3)
    assert [sheet[y, x, 0] for y in (1, 7) for x in (1, 7, 13)] == [0, 1, 2, 3, 4, 255]
    assert grid(images, 100).size == (28, 4)


def test_captions_are_drawn_inside_their_cell():
    images = [Image.new("RGB", (40, 8), RED)] * 2
    sheet = np.asarray(strip(images, captions=["a very long caption\nof two lines, \u4e2d", ""]), dtype=int)
    band = sheet[8:]
    assert band.shape[0] > 8
    assert band[:, :40].min() < 100
    assert band[:, 42:].min() == 255
    assert (sheet[:8, :40] == RED).all()
    assert pixels(strip(images, captions=["caf\u00e9", ""])) == pixels(strip(images, captions=["cafe", ""]))
    dark = np.asarray(grid(images, 2, captions=["a", "b"], background=BLACK))
    assert dark[8:].max() > 150


def test_sheet_errors():
    one = [picture()]
    for call in (
        lambda: strip([]),
        lambda: grid(one, 0),
        lambda: grid(one, 1, scale=0),
        lambda: strip(one, captions=["a", "b"]),
    ):
        with pytest.raises(InputError, match="contact sheet"):
            call()
