"""The doctor's pictures: codewords as images, codes among features, tokens one by one, and what each token adds."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64, UInt8
from PIL import Image
from torch import Tensor

from channelvq.evaluate.doctor.examine import DoctorReport, Observation, decode_codes, knockout_codes
from channelvq.evaluate.metrics import psnr
from channelvq.evaluate.plots import blank_figure
from channelvq.images import grid, resize_crop, to_pil
from channelvq.nn.modes import evaluating
from channelvq.tokenizer import CVQTokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATLAS_CODES = 256
KNOCKOUT_SHOWN = 3  # images
TILES = 64  # tokens shown for each of them
TILE_SIDE = 64  # pixels, at most
_COLUMNS = 17  # the image, its reconstruction and 64 tokens fill four rows
_MAP_CODES, _MAP_DEAD = 512, 256
_TSNE_PERPLEXITY = 30  # neighbours that count, the usual setting; it needs a few times as many points


def pictures(
    tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"], report: DoctorReport, seen: Observation
) -> dict[str, tuple[Image.Image, str]]:
    """All pictures with a caption each, by name; raises InputError where matplotlib is missing."""
    return {
        "tokens": token_plot(report),
        "atlas": atlas(tokenizer, seen),
        "map": code_map(tokenizer, seen),
        "knockout": knockout(tokenizer, images[:KNOCKOUT_SHOWN], report),
    }


@torch.no_grad()
def atlas(tokenizer: CVQTokenizer, seen: Observation) -> tuple[Image.Image, str]:
    """The most used codes as pictures: each alone at the position where it is used most, the mean codeword elsewhere.

    Shown is the change from the image of the mean codewords, enlarged around gray: what the codeword adds.
    """
    total = seen.counts.sum(dim=0)
    codes = total.argsort(descending=True, stable=True)[: min(ATLAS_CODES, int(total.count_nonzero()))]
    positions = seen.counts[:, codes].argmax(dim=0)
    mean = seen.mean_codes.to(tokenizer.device, tokenizer.dtype)
    placed = mean.expand(len(codes), -1, -1).clone()
    placed[torch.arange(len(codes)), positions] = _codewords(tokenizer, codes, positions).to(placed)
    with evaluating(tokenizer):
        changes = decode_codes(tokenizer, placed).float() - decode_codes(tokenizer, mean[None]).float()
    tiles, gain = _around_gray(changes)
    captions = [f"{code} @{position}" for code, position in zip(codes.tolist(), positions.tolist(), strict=True)]
    what = "channel" if seen.axis == "channel" else "patch"
    return grid(tiles, 16, captions=captions), (
        f"What each codeword adds to an image: the {len(codes)} most used, most used first, as 'code @{what}'. Each is "
        f"put alone on the {what} where it is used most, over the mean codewords of the others; the change of the "
        f"decoded image is shown {gain:g} times enlarged around gray."
    )


def _codewords(tokenizer: CVQTokenizer, codes: Tensor, positions: Tensor) -> Tensor:
    """What each code stands for at a token of its own: of some quantizers that differs from token to token."""
    ids = torch.zeros(len(codes), tokenizer.num_tokens, dtype=torch.int64)
    rows = torch.arange(len(codes))
    ids[rows, positions] = codes
    return tokenizer.quantizer.indices_to_codes(ids.to(tokenizer.device))[rows, positions].detach().cpu()


def code_map(tokenizer: CVQTokenizer, seen: Observation) -> tuple[Image.Image, str]:
    """Codes among the features that they stand for, on a plane."""
    total = seen.counts.sum(dim=0)
    order = total.argsort(descending=True, stable=True)
    used = order[: min(_MAP_CODES, int(total.count_nonzero()))]
    dead = (total == 0).nonzero().flatten()[:_MAP_DEAD]
    shown = torch.cat([used, dead])
    # Each code where it is used most: an unused one at the first token.
    codewords = _codewords(tokenizer, shown, seen.counts[:, shown].argmax(dim=0))
    points = torch.cat([seen.features, codewords]).double()
    plane, method = _on_a_plane(points)
    features, live, gone = plane.split([len(seen.features), len(used), len(dead)])
    figure = blank_figure(9, 7.5)
    axes = figure.add_subplot()
    what = "channel" if seen.axis == "channel" else "patch"
    dots = axes.scatter(*features.T, c=seen.feature_positions, s=9, cmap="viridis", alpha=0.7, linewidths=0)
    figure.colorbar(dots, ax=axes, label=f"{what} of the feature", fraction=0.04)
    axes.scatter(*live.T, s=16, c="black", marker="+", linewidths=0.8, label=f"{len(used)} most used codes")
    if len(dead):
        axes.scatter(*gone.T, s=16, c="red", marker="x", linewidths=0.8, label=f"{len(dead)} unused codes")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(loc="upper right", framealpha=0.9)
    axes.set_title(f"{method} of {len(features)} features and {len(used) + len(dead)} codes")
    return _picture(figure), (
        f"Features (dots, coloured by {what}) and codes on a plane by {method}. Codes that lie among the dots are of "
        "use; codes in heaps of their own are not where the features are."
    )


def token_plot(report: DoctorReport) -> tuple[Image.Image, str]:
    """Entropy, quantization error and knock-out loss of each token."""
    figure = blank_figure(10, 7.5)
    panels = figure.subplots(3, 1, sharex=True)
    order = range(len(report.position_bits))
    most = torch.tensor(float(report.codebook_size)).log2().item()
    for axes, values, label in zip(
        panels,
        (report.position_bits, report.position_errors, report.knockout),
        ("entropy (bits)", "quantization error / variance", "PSNR lost without it (dB)"),
        strict=True,
    ):
        axes.bar(order, values.nan_to_num(0.0).tolist(), width=0.8)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, axis="y")
    panels[0].axhline(most, color="black", linewidth=0.8, linestyle="--", label=f"log2 N = {most:g}")
    panels[1].axhline(
        report.gaussian_error, color="black", linewidth=0.8, linestyle="--",
        label=f"white noise at log2 N bits: {report.gaussian_error:.2f}",
    )  # fmt: skip
    for axes in panels[:2]:
        axes.set_ylim(top=1.18 * axes.get_ylim()[1])  # room for the legend above the bars
        axes.legend(loc="upper right", framealpha=0.9)
    panels[-1].set_xlabel(report.position)
    panels[-1].margins(x=0.01)
    return _picture(figure), (
        f"Each {report.position} alone: the information in its ids, how far its codewords are from its features (above "
        "1 they are worse than its mean), and what an image loses when it is set to zero."
    )


@torch.no_grad()
def knockout(
    tokenizer: CVQTokenizer, images: UInt8[Tensor, "n 3 h w"], report: DoctorReport
) -> tuple[Image.Image, str]:
    """For each image what one token adds to it: the difference that setting this token to zero makes."""
    shown = report.knockout.argsort(descending=True, stable=True)[:TILES].sort().values.tolist()
    sheets, changes, losses = [], [], []
    with evaluating(tokenizer):
        complete = decode_codes(tokenizer, codes := knockout_codes(tokenizer, images))
        for position in shown:
            less = codes.clone()
            less[:, position] = 0.0
            decoded = decode_codes(tokenizer, less)
            changes.append(complete.float() - decoded.float())
            losses.append(psnr(complete, images.cpu()) - psnr(decoded, images.cpu()))
    tiles, gain = _around_gray(torch.stack(changes, dim=1).flatten(0, 1))
    for i, (image, restored) in enumerate(zip(_small(images.cpu()), _small(complete), strict=True)):
        row = [image, restored, *tiles[i * len(shown) : (i + 1) * len(shown)]]
        # Adding 0 to a rounded number turns -0.00 into 0.00.
        lost = [f"{k}: {round(loss[i].item(), 2) + 0.0:.2f}" for k, loss in zip(shown, losses, strict=True)]
        captions = ["image", "all tokens", *lost]
        sheets.append(grid(row, _COLUMNS, captions=captions))
    return grid(sheets, 1, captions=[""] * len(sheets)), (
        f"What one {report.position} adds: the image with all tokens minus the image without this one (set to zero), "
        f"{gain:g} times enlarged around gray; below each '{report.position}: PSNR lost in dB'."
        + ("" if len(shown) == len(report.knockout) else f" The {len(shown)} that cost most.")
    )


def _around_gray(changes: Float[Tensor, "n 3 h w"]) -> tuple[list[Image.Image], float]:
    """Differences of pixels as pictures around gray, and the factor that makes all but the largest fit."""
    large = changes.abs().flatten(1).amax(dim=1).quantile(0.75).item()
    gain = max(1.0, round(127 / max(large, 1.0)))
    return _small((128 + gain * changes).round().clamp(0, 255).to(torch.uint8)), gain


def _small(images: UInt8[Tensor, "n 3 h w"]) -> list[Image.Image]:
    pictures = to_pil(images)
    return [p if p.width <= TILE_SIDE else resize_crop(p, TILE_SIDE) for p in pictures]


def _on_a_plane(points: Float64[Tensor, "n D"]) -> tuple[Float64[Tensor, "n 2"], str]:
    """t-SNE; where scikit-learn is missing, or the points are too few or all one, the two main axes."""
    centred = points - points.mean(dim=0)
    if len(points) > 3 * _TSNE_PERPLEXITY and bool(centred.any()):
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            pass
        else:
            # From the main axes, and seeded: the same points give the same map.
            tsne = TSNE(n_components=2, perplexity=_TSNE_PERPLEXITY, init="pca", random_state=0)
            return torch.from_numpy(tsne.fit_transform(points.float().numpy())).double(), "t-SNE"
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
    plane = centred @ axes.T
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1])), "PCA"


def _picture(figure: "Figure") -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    figure.set_dpi(110)
    canvas.draw()
    return Image.fromarray(torch.frombuffer(canvas.buffer_rgba(), dtype=torch.uint8).view(
        *reversed(canvas.get_width_height()), 4).numpy()).convert("RGB")  # fmt: skip
