"""Contact sheets: many small pictures on one, for training samples and demonstrations."""

from collections.abc import Sequence
from math import ceil
from unicodedata import combining, normalize

from PIL import Image, ImageDraw, ImageFont

from channelvq.checks import check_whole_number
from channelvq.errors import InputError
from channelvq.images.load import WHITE, Color

CAPTION_HEIGHT = 14
GAP = 2


def grid(
    images: Sequence[Image.Image],
    columns: int,
    *,
    captions: Sequence[str] | None = None,
    scale: int = 1,
    background: Color = WHITE,
) -> Image.Image:
    """A sheet with the images row by row, each enlarged `scale` times without smoothing, in cells of one size.

    With `captions`, one for each image, there is a line of text below every cell, shortened to the cell's width.
    Raises InputError for no images, another number of captions, and columns or scale below 1.
    """
    _check(images, columns, captions, scale)
    columns = min(columns, len(images))
    width, height = (scale * max(image.size[axis] for image in images) for axis in (0, 1))
    step_x, step_y = width + GAP, height + GAP + (0 if captions is None else CAPTION_HEIGHT)
    rows = ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * step_x - GAP, rows * step_y - GAP), background)
    for i, image in enumerate(images):
        left, top = i % columns * step_x, i // columns * step_y
        large = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        sheet.paste(large, (left + (width - large.width) // 2, top + (height - large.height) // 2))
        if captions is not None:
            _write(sheet, captions[i], (left, top + height), width, background)
    return sheet


def strip(images: Sequence[Image.Image], *, captions: Sequence[str] | None = None, scale: int = 1) -> Image.Image:
    """A `grid` of one row."""
    return grid(images, max(1, len(images)), captions=captions, scale=scale)


def _check(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None, scale: int) -> None:
    if not images:
        raise InputError("a contact sheet needs at least one image, none was given")
    check_whole_number("contact sheet: columns", columns, 1)
    check_whole_number("contact sheet: scale", scale, 1)
    if captions is not None and len(captions) != len(images):
        raise InputError(
            f"contact sheet of {len(images)} images with {len(captions)} captions: give one for each image"
        )


def _write(sheet: Image.Image, caption: str, corner: tuple[int, int], width: int, background: Color) -> None:
    font, draw = ImageFont.load_default(), ImageDraw.Draw(sheet)
    # Pillow's own font has ASCII letters only (others are boxes or, without FreeType, an error): é is written as e.
    letters = (c for c in normalize("NFKD", " ".join(caption.split())) if not combining(c))
    text = "".join(letters).encode("ascii", "replace").decode()
    short = text
    while short and draw.textlength(short, font=font) > width:
        text = text[:-1]
        short = text + "..." if text else ""
    draw.text(corner, short, fill=WHITE if sum(background) < 384 else (0, 0, 0), font=font)
