"""ChannelVQ in somebody else's autoencoder of clothes: what each kind restores after 200, 600 and 2,000 steps.

A convolutional autoencoder as a tutorial has it, on Fashion-MNIST, with every kind at its own defaults in the middle,
three seeds each. One run of 2,000 steps is measured on its way. Beside them: two kinds whose gradient takes another way
through the rounding (lab/estimators.py); VectorQuantize of vector-quantize-pytorch on the same maps, as its README sets
it; and nothing in the middle, which is the most that a quantizer can reach here. A run has collapsed when its held-out
codes are as good as fewer than a tenth of N (perplexity / N below 0.1).
"""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, UInt8
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from channelvq import ChannelVQ
from channelvq.config import digest
from channelvq.evaluate.metrics import psnr
from channelvq.evaluate.plots import blank_figure, check_plot, save_figure
from channelvq.evaluate.results import git_revision, protocol
from channelvq.evaluate.tables import TextTable
from channelvq.images import normalize
from channelvq.images.tensors import to_uint8
from channelvq.quantize.channel_vq import DEFAULT_KIND
from channelvq.quantize.registry import QUANTIZERS
from channelvq.quantize.usage import CodebookUsage
from lab.clothes import pictures
from lab.estimators import ESTIMATORS, Estimated
from lab.results import read_result
from lab.store import DEFAULT_STORE
from lab.study import Study, Tables, collect

HOURS = 0.4
RESULT = "autoencoder.json"
CODES, TOKENS, DIM = 256, 32, 8 * 8
BATCH, RATE = 32, 1e-3
STEPS = (200, 600, 2_000)
SEEDS = 3
IMAGES = 1_000  # 32,000 tokens, 125 for each code
COLLAPSED = 0.1  # perplexity / N
NOTHING, PEER = "nothing", "vector-quantize-pytorch"
KINDS = tuple(name for name in QUANTIZERS.names() if name != "simvq-residual")  # here it has no numbers to share
BSQ = "BSQ"  # Zhao et al. 2024, arXiv 2406.07548: LFQ on the sphere
ESTIMATED = (*(f"{kind}, {way}" for kind in ("ema", "plain") for way in ESTIMATORS), BSQ)
MIDDLES = (*KINDS, *ESTIMATED, PEER, NOTHING)


@dataclass(frozen=True)
class Run:
    """What decides the result of a run."""

    middle: str
    seed: int
    codes: int = CODES
    tokens: int = TOKENS
    batch: int = BATCH
    rate: float = RATE
    steps: tuple[int, ...] = STEPS


RUNS = {f"{middle}, seed {seed}": Run(middle, seed) for seed in range(SEEDS) for middle in MIDDLES}


class Autoencoder(nn.Module):
    """(B, 1, 32, 32) -> 32 maps of 8 x 8 -> what is in the middle -> (B, 1, 32, 32)."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, TOKENS, 3, 1, 1)
        )
        self.middle = middle
        self.decoder = nn.Sequential(
            nn.Conv2d(TOKENS, 32, 3, 1, 1), nn.SiLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "B 1 32 32"]) -> tuple[Tensor, Tensor | None, Tensor]:
        """The pictures as they come out, the ids (B, 32) of their tokens, and the loss of the middle."""
        z_q, ids, loss = self.middle(self.encoder(x))
        return self.decoder(z_q), ids, loss


class _Nothing(nn.Module):
    def forward(self, z: Tensor) -> tuple[Tensor, None, Tensor]:
        return z, None, z.new_zeros(())


class _Peer(nn.Module):
    """A quantizer of vector-quantize-pytorch on maps: a token for each channel, by reshaping."""

    def __init__(self, library: nn.Module) -> None:
        super().__init__()
        self.library = library

    def forward(self, z: Float[Tensor, "B C h w"]) -> tuple[Tensor, Tensor, Tensor]:
        z_q, ids, loss = self.library(z.flatten(2))
        return z_q.view_as(z), ids, loss.sum()


def middle(name: str) -> nn.Module:
    """What stands between encoder and decoder, by its name in MIDDLES."""
    from vector_quantize_pytorch import LFQ, VectorQuantize

    if name == NOTHING:
        return _Nothing()
    if name == BSQ:
        return _Peer(LFQ(dim=DIM, codebook_size=CODES, spherical=True))
    if name == PEER:
        return _Peer(VectorQuantize(dim=DIM, codebook_size=CODES, kmeans_init=True, threshold_ema_dead_code=2))
    if name in ESTIMATED:
        kind, way = name.split(", ")
        return Estimated(_quantizer(kind), way)
    return _quantizer(name)


def _quantizer(kind: str) -> ChannelVQ:
    return ChannelVQ(CODES, DIM, num_tokens=TOKENS, kind=kind)


def run(path: Path, store: Path = DEFAULT_STORE, missing: bool = False) -> dict[str, Any]:
    """Train, measure, write and return the result, and draw it; missing: see `Study`. Nothing is kept in the store."""
    del store
    check_plot()
    train, test = pictures("train")[0], pictures("test", IMAGES)[0]
    how = protocol(test, data="the first test pictures", split="test", resize="none", crop="none")
    keys = {name: digest(one) for name, one in RUNS.items()}
    collect(
        path, how | {"collapsed": f"perplexity / N below {COLLAPSED}"}, keys,
        lambda name: _record(name, keys[name], train, test), load if missing else None,
    )  # fmt: skip
    result = load(path)
    draw(result, path.with_suffix(".png"))
    return result


def _record(name: str, key: str, train: UInt8[Tensor, "m 3 32 32"], test: UInt8[Tensor, "n 3 32 32"]) -> dict[str, Any]:
    of = RUNS[name]
    by_steps, seconds = trained(of, train, test)
    return {
        "name": name, "axis": "channel", "quantizer": of.middle, "codes": CODES, "dim": DIM, "tokens": TOKENS,
        "seed": of.seed, "steps": of.steps[-1], "data": "fashion-mnist", "split": "held-out", "by_steps": by_steps,
        "metrics": by_steps[-1], "seconds": seconds, "git": git_revision(), "run": key,
    }  # fmt: skip


def trained(
    of: Run, train: UInt8[Tensor, "m 3 32 32"], test: UInt8[Tensor, "n 3 32 32"]
) -> tuple[list[dict[str, float]], float]:
    """(the metrics after each of its steps, seconds of training): the loop of a tutorial."""
    torch.manual_seed(of.seed)  # layers of torch and the peer draw from the global generator
    model = Autoencoder(middle(of.middle))
    optimizer = torch.optim.AdamW(model.parameters(), lr=of.rate)
    order = torch.Generator().manual_seed(of.seed)
    measured, seconds = [], 0.0
    for step in range(1, of.steps[-1] + 1):
        began = time.perf_counter()
        images = normalize(train[torch.randint(len(train), (of.batch,), generator=order), :1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peer's own
            restored, _, loss = model(images)
        error = (restored - images).square().mean()
        optimizer.zero_grad()
        (error + loss).backward()
        optimizer.step()
        seconds += time.perf_counter() - began
        if step in of.steps:
            measured.append({"steps": step, **measure(model, test)})
    return measured, seconds


@torch.no_grad()
def measure(model: Autoencoder, test: UInt8[Tensor, "n 3 32 32"]) -> dict[str, float]:
    """PSNR, and the use of the codebook where there is one."""
    model.eval()
    usage, values = CodebookUsage(CODES, per_position=False), []
    for images in test.split(250):
        restored, ids, _ = model(normalize(images[:, :1]))
        values.append(psnr(to_uint8(restored.clamp(-1, 1)).expand(-1, 3, -1, -1), images))
        if ids is not None:
            usage.update(ids)
    model.train()
    return {"psnr": float(torch.cat(values).mean())} | (usage.result().to_dict() if usage.counts.any() else {})


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    needs = ("records.name", "records.run", "records.quantizer", "records.seconds", "records.by_steps.psnr")
    return read_result(path, needs, "make it with --rerun, or run by run with --missing")


def _over_seeds(result: dict[str, Any], name: str, metric: str) -> list[list[float]]:
    """Of a middle, for each of STEPS the metric of every seed."""
    runs = [row["by_steps"] for row in result["records"] if row["quantizer"] == name]
    return [[measured[metric] for measured in seeds] for seeds in zip(*runs, strict=True)]


def _spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _names(result: dict[str, Any]) -> list[str]:
    """The middles there are, the best of the longest training first."""
    names = {row["quantizer"] for row in result["records"]}
    return sorted(names, key=lambda name: -fmean(_over_seeds(result, name, "psnr")[-1]))


def kinds(result: dict[str, Any]) -> TextTable:
    """A row a kind: PSNR on the way, use of the codebook at the end, runs that collapsed."""
    headings = ["in the middle", *(f"PSNR, {steps:,} steps" for steps in STEPS), "use", "perplexity / N", "collapsed",
                "ms a step"]  # fmt: skip
    rows = []
    for name in _names(result):
        seconds = [row["seconds"] for row in result["records"] if row["quantizer"] == name]
        cells = [f"`{name}`, the default" if name == DEFAULT_KIND else f"`{name}`" if name in KINDS else name]
        cells += [_spread(values) for values in _over_seeds(result, name, "psnr")]
        if name == NOTHING:
            cells += [""] * 3
        else:
            use = _over_seeds(result, name, "use")[-1]
            even = _over_seeds(result, name, "perplexity_ratio")
            fallen = [sum(value < COLLAPSED for value in values) for values in even]
            cells += [
                f"{fmean(use):.1%}", _spread(even[-1]), ", ".join(f"{n} of {len(even[0])}" for n in fallen)
            ]  # fmt: skip
        rows.append([*cells, f"{1000 * fmean(seconds) / STEPS[-1]:.0f}"])
    note = (
        f"PSNR of {result['protocol']['n']:,} held-out pictures and perplexity: the mean of {SEEDS} seeds, and the "
        f"lowest and highest. Collapsed: runs with {result['protocol']['collapsed']} after {STEPS[0]}, {STEPS[1]} and "
        f"{STEPS[2]:,} steps. `simvq-residual` is left out: no numbers are shared here, and it is `simvq-tokenwise` "
        "with another start. One thread, beside other work: the times are a hint."
    )
    return TextTable(headings, rows, note=note)


def draw(result: dict[str, Any], path: Path) -> None:
    """PSNR and use over the steps with the seeds' spread, and the share of runs that have collapsed."""
    figure = blank_figure(13, 5.4)
    quality, use, fallen = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    names = [name for name in _names(result) if name not in ESTIMATED]
    for place, name in enumerate(names):
        colour, width = "black" if name == NOTHING else f"C{place % 10}", 2.5 if name == DEFAULT_KIND else 1.2
        at = [steps * 1.05 ** (place - len(names) / 2) for steps in STEPS]  # beside each other, to be told apart
        for axes, key, scale in ((quality, "psnr", 1), (use, "use", 100)):
            if key == "use" and name == NOTHING:
                continue
            values = [[scale * value for value in of] for of in _over_seeds(result, name, key)]
            means = [fmean(of) for of in values]
            below = [mean - min(of) for mean, of in zip(means, values, strict=True)]
            above = [max(of) - mean for mean, of in zip(means, values, strict=True)]
            axes.errorbar(
                at, means, yerr=[below, above], marker="o", capsize=2, label=name, color=colour, linewidth=width
            )
    _draw_collapsed(fallen, result, [name for name in reversed(names) if name != NOTHING])
    for axes, label in ((quality, "PSNR of held-out pictures (dB)"), (use, "codes in use (%)")):
        axes.set_xscale("log")
        axes.set_xticks(STEPS, [f"{steps:,}" for steps in STEPS])
        axes.minorticks_off()
        axes.set_xlabel("steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    save_figure(figure, path)


def _draw_collapsed(axes: Any, result: dict[str, Any], names: Sequence[str]) -> None:
    for i, steps in enumerate(STEPS):
        even = [_over_seeds(result, name, "perplexity_ratio")[i] for name in names]
        share = [100 * sum(value < COLLAPSED for value in of) / len(of) for of in even]
        places = [place + 0.25 * (1 - i) for place in range(len(names))]
        axes.barh(places, share, height=0.22, label=f"after {steps:,} steps", color=f"{0.75 - 0.3 * i}")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 100)
    axes.set_xlabel("runs that have collapsed (%)")
    axes.legend()


STUDY = Study(run, load, grows=True)
TABLES: Tables = {"autoencoder": (RESULT, kinds)}
