"""Tokens of clips: groups of frames by what changes, beside the same bytes frame by frame, animated WebP and H.264."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from channelvq.data.clips import ClipsConfig, ClipSource, with_frames
from channelvq.data.stream import position_generator
from channelvq.evaluate.clips import clip_psnr, flicker
from channelvq.evaluate.metrics import mean_with_interval, ssim
from channelvq.evaluate.results import make_record, protocol, write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, to_pil, to_uint8
from channelvq.packed_size import num_bytes
from channelvq.pretrained import tensor_sha256
from channelvq.quantize.usage import CodebookUsage
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.clip_task import ClipRecipe
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from channelvq.video import ClipTokenizer
from lab import clip_codecs
from lab.results import read_result
from lab.store import DEFAULT_STORE, trained, trained_clips
from lab.study import Study, Tables

HOURS = 4
RESULT = "clips.json"
ALL_PACKS = "data.sources.clips.packs=4"
CLIPS, FRAMES = "small/clips", "small/clips-frames"
# Tokens of the first frame and of each later group; the last is all there are.
PREFIXES = ((4, 4), (8, 8), (16, 16), (32, 32), (64, 8), (64, 16), (64, 32), (64, 64))
SHOWN, SHOWN_PREFIX = 4, (64, 16)
DATA = "animated emoji"
NAMES = {
    "clips": "clips, group by group", "frames": "frame by frame, trained on frames", "own": "frame by frame, its own",
    "webp": "animated WebP", "h264": "H.264",
}  # fmt: skip
Clips = UInt8[Tensor, "n T 3 h w"]


def recipes() -> tuple[ClipRecipe, TokenizerRecipe]:
    """The tokenizer of clips, and that of single frames."""
    return load_recipe(CLIPS, [ALL_PACKS], of=ClipRecipe), load_recipe(FRAMES, [ALL_PACKS], of=TokenizerRecipe)


def held_out(recipe: ClipRecipe) -> tuple[Clips, list[float]]:
    """Each clip of the test split once, on a background that is always the same, and how many seconds it is."""
    config = recipe.data.sources["clips"]
    assert isinstance(config, ClipsConfig)
    source = with_frames(config, recipe.model.frames).build(recipe.model.image.image_size, "test")
    return drawn(source), [source.seconds(i) for i in range(len(source))]


def drawn(source: ClipSource) -> Clips:
    """All clips of a source."""
    return torch.stack([source.sample(i, position_generator(0, i)).image for i in range(len(source))])


def run(path: Path, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Train (or take from the store), measure, write the result and the sheet beside it."""
    recipe, of_frames = recipes()
    (tokenizer, done), (single, done_single) = trained_clips(recipe, store), trained(of_frames, store)
    clips, seconds = held_out(recipe)
    facts = {"clips": _facts(recipe.train, done), "frames": _facts(of_frames.train, done_single)}
    records, pictures = measure(tokenizer, single, clips, sum(seconds), facts)
    how = protocol(
        clips[:, 0], data="animated Fluent emoji (4 packages), test labels", split="test", resize="antialiased",
        crop="centred square", tokenizer=tokenizer,
    )  # fmt: skip
    how |= clip_codecs.PROTOCOL | {
        "data_sha256": tensor_sha256(clips), "frames": clips.shape[1], "group": tokenizer.config.group,
        "seconds": sum(seconds) / len(clips),
        "metrics": "means over clips; psnr: mean over frames; flicker: root mean square error of the differences "
        f"between successive frames, in 0..255; {how['metrics']}",
        "interval": "95% percentile bootstrap over clips, 2000 resamples",
    }  # fmt: skip
    write_json(path, {"protocol": how, "records": records})
    draw(clips, pictures, path.with_suffix(".png"))
    return load(path)


def _facts(train: Any, done: dict[str, Any]) -> dict[str, Any]:
    return {"seed": train.seed, "steps": train.steps, **done}


def measure(
    tokenizer: ClipTokenizer, single: CVQTokenizer, clips: Clips, seconds: float, facts: dict[str, dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Clips]]:
    """The records of all ways at all budgets; and by way, what is shown. seconds: of all clips together."""
    ids = tokenizer.tokenize(normalize(clips))
    frames = normalize(clips.flatten(0, 1))
    singles = {"frames": (single, single.tokenize(frames)), "own": (tokenizer.image, tokenizer.image.tokenize(frames))}
    files = {codec: [clip_codecs.ladder(clip, codec) for clip in clips] for codec in clip_codecs.PROTOCOL}
    records: list[dict[str, Any]] = []
    shown: dict[str, Clips] = {}
    for prefix in PREFIXES:
        first, later = (min(tokens, tokenizer.num_tokens) for tokens in prefix)
        total = first + (ids.shape[1] - 1) * later
        budget = num_bytes(total, tokenizer.codebook_size)
        there = to_uint8(tokenizer.detokenize(ids[:, :, :first], frames=clips.shape[1], num_tokens=later))
        more = {"first_tokens": first, "tokens": later, **_use(ids, later, tokenizer.codebook_size)}
        ways = {"clips": Way(there, budget, more)}
        ways |= {name: _frame_by_frame(*pair, clips, total) for name, pair in singles.items()}
        ways |= {codec: _coded(ladders, clips, budget) for codec, ladders in files.items()}
        for name, way in ways.items():
            trained_as = facts.get("clips" if name == "own" else name, {})
            metrics = _metrics(way.clips, clips)
            record = make_record(tokenizer.config.image, data=DATA, split="held-out", metrics=metrics, **trained_as)
            rate = 8 * way.bytes * len(clips) / seconds
            place = {"name": name, "budget": budget, "bytes": way.bytes, "bits_per_second": rate}
            records.append(record | place | way.more)
        if prefix == SHOWN_PREFIX:
            shown = {name: way.clips for name, way in ways.items()}
    return records, shown


@dataclass(frozen=True, eq=False)
class Way:
    """clips: as they are restored. bytes: of a clip. more: what else its record says."""

    clips: Clips
    bytes: float
    more: dict[str, Any]


def _frame_by_frame(tokenizer: CVQTokenizer, ids: Int64[Tensor, "nT C"], clips: Clips, total: int) -> Way:
    """As many tokens a clip, the same number for each frame, rounded down."""
    frames = clips.shape[1]
    k = min(tokenizer.num_tokens, max(1, total // frames))
    there = to_uint8(tokenizer.detokenize(ids[:, :k], "tensor")).unflatten(0, clips.shape[:2])
    return Way(there, num_bytes(k * frames, tokenizer.codebook_size), {"first_tokens": k, "tokens": k})


def _coded(ladders: list[list[clip_codecs.Coded]], clips: Clips, budget: int) -> Way:
    best = [clip_codecs.best(ladder, clip, budget) for ladder, clip in zip(ladders, clips, strict=True)]
    sizes = [file.num_bytes for file in best]
    fits = sum(size <= budget for size in sizes) / len(best)
    # Of no tokens; the record's own are the tokenizer's.
    none = {"first_tokens": None, "tokens": None, "axis": None, "quantizer": None, "codes": None, "dim": None}
    return Way(torch.stack([file.clip for file in best]), sum(sizes) / len(best), none | {"fits": fits})


def _use(ids: Int64[Tensor, "n G C"], later: int, codes: int) -> dict[str, Any]:
    """Use of the codebook of changes by the tokens of the prefix, and of both by each group by itself."""

    def used(part: Tensor) -> Any:
        usage = CodebookUsage(codes, per_position=False)
        usage.update(part.flatten(0, -2))
        return usage.result()

    groups = [used(ids[:, g, : ids.shape[2] if g == 0 else later]) for g in range(ids.shape[1])]
    together = used(ids[:, 1:, :later])
    rows = [{"use": group.use, "perplexity": group.perplexity} for group in groups]
    return {"use": {"changes": together.use, "if_uniform": together.use_if_uniform, "perplexity": together.perplexity},
            "use_by_group": rows}  # fmt: skip


def _metrics(there: Clips, clips: Clips) -> dict[str, Any]:
    values: dict[str, Callable[[], Tensor]] = {
        "psnr": lambda: clip_psnr(there, clips), "flicker": lambda: flicker(there, clips),
        "psnr_first": lambda: clip_psnr(there[:, :1], clips[:, :1]),
        "psnr_last": lambda: clip_psnr(there[:, -1:], clips[:, -1:]),
        "ssim": lambda: ssim(there.flatten(0, 1), clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1),
    }  # fmt: skip
    metrics: dict[str, Any] = {}
    for name, value in values.items():
        interval = mean_with_interval(value(), seed=0)
        metrics |= {name: interval.mean, f"{name}_interval": [interval.low, interval.high]}
    return metrics


def draw(clips: Clips, pictures: dict[str, Clips], path: Path) -> None:
    """A sheet: of some clips the frames, and below them those of every way of NAMES at about the same bytes."""
    columns = clips.shape[1]
    rows = [
        (name, there[i])
        for i in range(min(SHOWN, len(clips)))
        for name, there in {"original": clips, **pictures}.items()
    ]
    captions = [text for name, _ in rows for text in (name, *[""] * (columns - 1))]
    save_image(grid([p for _, row in rows for p in to_pil(row)], columns, captions=captions), path)


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    measured = [f"{name}{end}" for name in ("psnr", "flicker", "psnr_first") for end in ("", "_interval")]
    needs = ("protocol.n", "records.name", "records.budget", "records.bytes", "records.bits_per_second",
             *(f"records.metrics.{name}" for name in measured))  # fmt: skip
    return read_result(path, needs, "make it with --rerun (two trainings of one to two hours)")


def at_bytes(result: dict[str, Any]) -> TextTable:
    """PSNR and flicker of every way at each budget."""
    by_place = {(row["budget"], row["name"]): row for row in result["records"]}
    rows = []
    for row in result["records"]:
        if row["name"] != "clips":
            continue
        ways = [by_place[row["budget"], name] for name in NAMES]
        cells = [f"{way['metrics']['psnr']:.2f} / {way['metrics']['flicker']:.1f}" for way in ways]
        missed = [f"{name} at {by_place[row['budget'], name]['bytes']:.0f}" for name in ("webp", "h264")
                  if by_place[row["budget"], name]["fits"] < 0.5]  # fmt: skip
        rows.append([f"{row['first_tokens']} + {row['tokens']}", f"{row['budget']}", f"{row['bits_per_second']:.0f}",
                     *cells, ", ".join(missed)])  # fmt: skip
    headings = ("tokens of the first frame + of a group", "bytes", "bits a second",
                *(f"{name}: PSNR / flicker" for name in NAMES.values()), "over the budget, bytes")  # fmt: skip
    note = (
        f"{result['protocol']['n']} held-out clips of {result['protocol']['frames']} frames of 64 px; PSNR in dB, "
        "flicker the error of what changes from frame to frame (0..255, lower is better). Last column: codecs whose "
        "smallest file is larger for most clips, with its mean bytes."
    )
    return TextTable(headings, rows, note=note)


STUDY = Study(run, load)
TABLES: Tables = {"clips": (RESULT, at_bytes)}
