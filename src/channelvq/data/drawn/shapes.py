"""Simple shapes drawn with Pillow: things to show when no picture package is at hand."""

from math import cos, pi, sin

from PIL import Image, ImageDraw

from channelvq.errors import InputError

SHAPES = (
    "arrow", "circle", "crescent", "cross", "diamond", "drop", "heart", "hexagon", "house", "lightning bolt",
    "semicircle", "ring", "square", "star", "triangle", "zigzag",
)  # fmt: skip
SUPERSAMPLING = 4

# Corners in units of the side, (0, 0) at the top left.
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "arrow": [(0, 0.35), (0.55, 0.35), (0.55, 0.1), (1, 0.5), (0.55, 0.9), (0.55, 0.65), (0, 0.65)],
    "cross": [(0.35, 0), (0.65, 0), (0.65, 0.35), (1, 0.35), (1, 0.65), (0.65, 0.65), (0.65, 1), (0.35, 1),
              (0.35, 0.65), (0, 0.65), (0, 0.35), (0.35, 0.35)],
    "diamond": [(0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)],
    "hexagon": [(0.5 + 0.5 * cos(k * pi / 3), 0.5 + 0.5 * sin(k * pi / 3)) for k in range(6)],
    "house": [(0.5, 0), (1, 0.45), (0.85, 0.45), (0.85, 1), (0.6, 1), (0.6, 0.65), (0.4, 0.65), (0.4, 1),
              (0.15, 1), (0.15, 0.45), (0, 0.45)],
    "lightning bolt": [(0.6, 0), (0.15, 0.55), (0.45, 0.55), (0.35, 1), (0.85, 0.4), (0.53, 0.4)],
    "square": [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)],
    "star": [(0.5 + (0.5, 0.2)[k % 2] * sin(k * pi / 5), 0.5 - (0.5, 0.2)[k % 2] * cos(k * pi / 5)) for k in range(10)],
    "triangle": [(0.5, 0.05), (1, 0.95), (0, 0.95)],
    "zigzag": [(0, 0.55), (0.25, 0.2), (0.5, 0.55), (0.75, 0.2), (1, 0.55), (1, 0.8), (0.75, 0.45), (0.5, 0.8),
               (0.25, 0.45), (0, 0.8)],
}  # fmt: skip


def draw_shape(name: str, side: int) -> Image.Image:
    """The shape called `name`: RGBA of side x side pixels, grey, brighter towards its top."""
    if name not in SHAPES:
        raise InputError(f"shape {name!r} is unknown: the shapes are {', '.join(SHAPES)}")
    mask = _mask(name, side * SUPERSAMPLING).resize((side, side), Image.Resampling.BOX)
    grey = Image.linear_gradient("L").resize((side, side)).point([190 - value // 2 for value in range(256)])
    return Image.merge("RGBA", (grey, grey, grey, mask))


def _mask(name: str, n: int) -> Image.Image:
    mask = Image.new("L", (n, n))
    draw = ImageDraw.Draw(mask)
    if name in _POLYGONS:
        draw.polygon([(x * (n - 1), y * (n - 1)) for x, y in _POLYGONS[name]], fill=255)
        return mask
    match name:
        case "circle":
            draw.ellipse((0, 0, n - 1, n - 1), fill=255)
        case "ring":
            draw.ellipse((0, 0, n - 1, n - 1), fill=255)
            draw.ellipse((0.28 * n, 0.28 * n, 0.72 * n, 0.72 * n), fill=0)
        case "crescent":
            draw.ellipse((0, 0, n - 1, n - 1), fill=255)
            draw.ellipse((0.35 * n, -0.08 * n, 1.25 * n, 0.82 * n), fill=0)
        case "semicircle":
            draw.pieslice((0, 0, n - 1, n - 1), 90, 270, fill=255)
        case "heart":
            draw.ellipse((0, 0.05 * n, 0.54 * n, 0.57 * n), fill=255)
            draw.ellipse((0.46 * n, 0.05 * n, n - 1, 0.57 * n), fill=255)
            draw.polygon([(0.045 * n, 0.44 * n), (0.955 * n, 0.44 * n), (0.5 * n, 0.97 * n)], fill=255)
        case "drop":
            draw.ellipse((0.18 * n, 0.36 * n, 0.82 * n, n - 1), fill=255)
            draw.polygon([(0.5 * n, 0), (0.21 * n, 0.56 * n), (0.79 * n, 0.56 * n)], fill=255)
    return mask
