"""Colour profiles become sRGB, by a closed form, and a large picture takes little more memory than its pixels."""

import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from channelvq.images import load_image


def with_profile(mode: str, primaries: str, color: tuple[int, ...]) -> bytes:
    """A PNG or JPEG whose numbers are those of another RGB space, by a profile made of its primaries."""
    buffer = BytesIO()
    image = Image.new(mode, (8, 8), color)
    image.save(buffer, "PNG", icc_profile=rgb_profile(*PRIMARIES[primaries]))
    return buffer.getvalue()


# xy of red, green, blue, and the gamma; white is D65.
PRIMARIES = {
    "Display P3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), 2.4),
    "Adobe RGB": ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), 2.2),
    "sRGB copy": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), 2.4),
}
TO_D50 = np.array(
    [
        [1.0479298, 0.0229468, -0.0501922],
        [0.0296278, 0.9904345, -0.0170738],
        [-0.0092430, 0.0150552, 0.7518743],
    ]
)  # Bradford


def rgb_profile(*space: object) -> bytes:
    """An ICC profile (version 2) of a matrix and a gamma, after the specification's chapters 7 to 10."""
    *corners, gamma = space
    name = next(key for key, value in PRIMARIES.items() if value == space).encode()
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T  # type: ignore[misc]
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = TO_D50 @ (xyz * np.linalg.solve(xyz, white))

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(n * 65536)) for n in numbers)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(float(gamma) * 256)) + bytes(2)  # type: ignore[arg-type]
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(1 + 78 + len(name) % 2),
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
        **{t: b"XYZ " + bytes(4) + fixed(*columns[:, i]) for i, t in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    head += bytes(68 - len(head)) + fixed(0.9642, 1, 0.8249)
    return head + bytes(128 - len(head)) + table + body


def in_srgb(color: tuple[int, ...], primaries: str) -> np.ndarray:
    """The closed form: linear light by the gamma, the two matrices, and sRGB's curve."""
    corners, gamma = PRIMARIES[primaries][:3], PRIMARIES[primaries][3]
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])

    def matrix(points: object) -> np.ndarray:
        xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in points]).T  # type: ignore[attr-defined]
        return xyz * np.linalg.solve(xyz, white)

    light = matrix(corners) @ (np.array(color[:3]) / 255) ** gamma
    rgb = np.linalg.solve(matrix(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))), light).clip(0, 1)
    return np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize("primaries", ["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("color", [(120, 90, 60), (200, 180, 160), (90, 110, 100)])
def test_other_colour_spaces_become_srgb(primaries: str, color: tuple[int, int, int]) -> None:
    expected = in_srgb(color, primaries)
    assert np.abs(expected - color).max() > 3
    for mode, given in (("RGB", color), ("RGBA", (*color, 255))):
        found = np.asarray(load_image(with_profile(mode, primaries, given)))
        assert np.abs(found[0, 0] - expected).max() < 1.5


def test_srgb_keeps_its_bits_and_a_broken_profile_says_nothing() -> None:
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no profile", b""):
        buffer = BytesIO()
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.save(buffer, "PNG", icc_profile=profile)
        assert np.array_equal(np.asarray(load_image(buffer.getvalue())), np.asarray(image))


MEMORY = """
import resource, sys
from channelvq.images import load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = load_image(sys.argv[1])
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (image.width * image.height))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_a_small_file_of_a_large_palette_picture_takes_little_more_than_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("P", (6000, 6000), 1).save(path, transparency=0)
    assert path.stat().st_size < 100_000
    done = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 8  # bytes a pixel: 3 of the result, 1 and 1 of what was read and turned upright
