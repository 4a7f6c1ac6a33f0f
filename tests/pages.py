"""What tests of pages and examples share: the blocks of code of a page, and a photograph for them."""

import re
from pathlib import Path

import numpy as np
from PIL import Image


def blocks(page: Path, *languages: str) -> list[str]:
    """The code of a page's blocks in these languages."""
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def photo(shift: int = 0) -> Image.Image:
    """A soft picture of 120 x 90, moved to the right."""
    pixels = np.linspace(0, 255, 90 * 120 * 3).reshape(90, 120, 3).astype(np.uint8)
    return Image.fromarray(np.roll(pixels, shift, axis=1))
