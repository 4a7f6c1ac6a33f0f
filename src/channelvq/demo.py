"""`cvq demo`: pictures that the bundled tokenizer never saw, and pictures for prompts, from 1, 2, 4, ... tokens."""

import importlib
import time
from dataclasses import dataclass
from pathlib import Path

import rich
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.data.drawn.scenes import SceneSource
from channelvq.data.fetched.emoji import EmojiSource
from channelvq.data.fetched.fashion import CLASSES
from channelvq.data.fetched.packages import find_package
from channelvq.data.source import Source
from channelvq.evaluate.baselines import PCABaseline, jpeg, webp
from channelvq.evaluate.metrics import psnr, ssim
from channelvq.images import grid, load_image, normalize, resize_crop, save_image, strip, to_pil, to_tensor, to_uint8
from channelvq.packed_size import num_bytes
from channelvq.pictures import prefix_lengths
from channelvq.terminal import plain, terminal_table
from channelvq.tokenizer import CVQTokenizer

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
PROMPTS = (
    "a photo of two bananas",
    "a photo of a red car left of a blue umbrella",
    "a photo of a green dog",
    "a photo of three apples",
    "a photo of a cat above a chair",
    "a photo of a purple bus and a yellow bird",
)
SEED = 0
CLOTHES_ROWS = 4
CLOTHES_GUIDANCE = 3.0  # whose samples are nearest to the validation pictures: results/bundled-fashion.json
CODEC_BUDGETS = (12, 24, 48, 96)  # bytes, those of 8, 16, 32 and 64 tokens of 4,096 codes


@dataclass(frozen=True)
class Row:
    """One line of the table: means over the pictures; seconds are for all of them."""

    method: str
    tokens: int | None
    num_bytes: float
    psnr: float
    ssim: float
    seconds: float


def run(output: Path, device: str = "cpu") -> list[Row]:
    """Write a strip for each picture and contact-sheet.png to `output`, print the table and return its rows."""
    tokenizer = CVQTokenizer.from_pretrained("bundled", device=device)
    names, images, left_out = _pictures(tokenizer.image_size)
    rows, decoded = _tokenizer_rows(tokenizer, images)
    baseline_rows, baselines = _baseline_rows(images)
    _write_pictures(output, names, images, decoded, baselines)
    rich.print(_table(rows + baseline_rows, len(images)))
    for line in left_out:
        rich.print(plain(line))
    rich.print(plain(f"{len(images)} strips and {output / 'contact-sheet.png'} written"))
    seconds = draw_prompts(output, device)
    rich.print(plain(f"{len(PROMPTS)} prompts drawn in {seconds:.0f} s: {output / 'generated.png'}"))
    seconds = draw_clothes(output, device)
    rich.print(plain(f"{CLOTHES_ROWS * len(CLASSES)} clothes drawn in {seconds:.0f} s: {output / 'clothes.png'}"))
    return rows + baseline_rows


def draw_prompts(output: Path, device: str = "cpu") -> float:
    """Draw every prompt with the bundled generator, from 1, 2, 4, ... tokens, as generated.png; gives the seconds."""
    began = time.perf_counter()
    car = CAR.from_pretrained("bundled", device=device)
    ids = car.generate(PROMPTS, seed=SEED, guidance_scale=3.0, top_p=0.8).ids
    lengths = prefix_lengths(car.num_tokens)
    decoded = [car.tokenizer.detokenize(ids[:, :k]) for k in lengths]
    captions = [f"{k} token{'s' if k > 1 else ''}" for k in lengths]
    strips = [strip(pictures, captions=captions, scale=2) for pictures in zip(*decoded, strict=True)]
    for i, picture in enumerate(strips):
        save_image(picture, output / f"prompt-{i}.png")
    save_image(grid(strips, 1, captions=PROMPTS), output / "generated.png")
    return time.perf_counter() - began


def draw_clothes(output: Path, device: str = "cpu") -> float:
    """Draw the classes of Fashion-MNIST with the bundled generator of clothes, as clothes.png; gives the seconds."""
    began = time.perf_counter()
    car = CAR.from_pretrained("bundled-fashion", device=device)
    drawn = car.generate(CLASSES * CLOTHES_ROWS, seed=SEED, guidance_scale=CLOTHES_GUIDANCE).images
    captions = [*CLASSES, *[""] * (len(drawn) - len(CLASSES))]
    save_image(grid(drawn, len(CLASSES), captions=captions, scale=2), output / "clothes.png")
    return time.perf_counter() - began


def _pictures(size: int) -> tuple[list[str], Tensor, list[str]]:
    """Names, uint8 pictures, and lines about what is left out.

    Test photographs and held-out emoji where they are at hand, and scenes of held-out combinations.
    """
    pictures: list[tuple[str, Tensor]] = []
    left_out: list[str] = []
    photographs = _photographs()
    if not photographs:
        left_out.append("without photographs, which come with scikit-image: pip install 'channelvq[demo]'")
    for name, photo in photographs.items():
        part = photo.crop((photo.width // 4, 0, photo.width * 3 // 4, photo.height // 2))
        views = {name: photo, f"{name}-part": part}
        pictures += [(view, to_tensor(resize_crop(shown, size))) for view, shown in views.items()]
    sources: dict[str, Source] = {"scene": SceneSource(size=size, split="test", sprites="shapes")}
    if find_package("fluent-emoji") and find_package("emojibase-data"):
        sources["emoji"] = EmojiSource(style="fluent", size=size, split="test")
    else:
        left_out.append("without emoji, which `cvq data fetch fluent-emoji emojibase-data` brings")
    for kind, source in sources.items():
        for i in range(3):
            pictures.append((f"{kind}-{i}", source.sample(7 * i + 1, torch.Generator().manual_seed(i)).image))
    return [name for name, _ in pictures], torch.stack([image for _, image in pictures]), left_out


def _photographs() -> dict[str, Image.Image]:
    """By name; none where scikit-image, in which they are, is not installed."""
    try:
        data = importlib.import_module("skimage.data")
    except ImportError:
        return {}
    return {name: load_image(getattr(data, name)()) for name in PHOTOGRAPHS}


def _tokenizer_rows(tokenizer: CVQTokenizer, images: Tensor) -> tuple[list[Row], dict[int, Tensor]]:
    began = time.perf_counter()
    ids = tokenizer.tokenize(normalize(images))
    encoding = time.perf_counter() - began
    rows, decoded = [], {}
    for k in prefix_lengths(tokenizer.num_tokens):
        began = time.perf_counter()
        decoded[k] = to_uint8(tokenizer.detokenize(ids[:, :k], "tensor")).cpu()
        seconds = encoding + time.perf_counter() - began
        rows.append(_row("CVQ", k, num_bytes(k, tokenizer.codebook_size), decoded[k], images, seconds))
    return rows, decoded


def _baseline_rows(images: Tensor) -> tuple[list[Row], dict[str, Tensor]]:
    pca = PCABaseline.load("bundled")
    rows, best = [], {}
    for budget in CODEC_BUDGETS:
        began = time.perf_counter()
        best["PCA"] = pca.reconstruct(images, budget)
        rows.append(_row("PCA", None, budget, best["PCA"], images, time.perf_counter() - began))
        for name, codec in (("JPEG", jpeg), ("WebP", webp)):
            began = time.perf_counter()
            result = codec(images, budget)
            seconds, best[name] = time.perf_counter() - began, result.images
            rows.append(_row(name, None, float(result.num_bytes.float().mean()), result.images, images, seconds))
    return rows, best


def _row(method: str, tokens: int | None, size: float, restored: Tensor, images: Tensor, seconds: float) -> Row:
    fidelity, similarity = (float(measure(restored, images).mean()) for measure in (psnr, ssim))
    return Row(method, tokens, size, fidelity, similarity, seconds)


def _write_pictures(
    output: Path, names: list[str], images: Tensor, decoded: dict[int, Tensor], baselines: dict[str, Tensor]
) -> None:
    columns = {"original": images} | {f"{k} token{'s' if k > 1 else ''}": x for k, x in decoded.items()}
    columns |= {f"{name} {CODEC_BUDGETS[-1]} B": x for name, x in baselines.items()}
    cells: list[Image.Image] = []
    for i, name in enumerate(names):
        row = to_pil(torch.stack([column[i] for column in columns.values()]))
        save_image(strip(row, captions=list(columns), scale=2), output / f"{name}.png")
        cells += row
    captions = list(columns) * len(names)
    save_image(grid(cells, len(columns), captions=captions, scale=2), output / "contact-sheet.png")


def _table(rows: list[Row], count: int) -> Table:
    cells = [
        (row.method, str(row.tokens or "-"), f"{row.num_bytes:.0f}", f"{row.psnr:.2f}", f"{row.ssim:.3f}",
         f"{row.seconds:.2f}")
        for row in rows
    ]  # fmt: skip
    return terminal_table(
        ("method", "tokens", "bytes", "PSNR (dB)", "SSIM", "seconds"), cells,
        f"{count} pictures of 64 x 64 px that were not trained on",
        "JPEG and WebP: best of four scales and all qualities, headers not counted; bytes are what they needed",
    )  # fmt: skip
