"""Nested dropout beside channels sorted after training: every prefix, and the generator's nats.

The channels of an un-nested tokenizer are sorted by energy, by variance over images, or greedily by what each adds to
the picture; what is measured is the quality of every prefix, and the nats of a generator that writes the channels in
that order. Sorting is free, nested dropout costs quality at full length: what does each buy?
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from channelvq.data.stream import fixed_images
from channelvq.evaluate.metrics import mean_with_interval, with_interval
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.plots import check_plot
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.pictures import prefix_lengths
from channelvq.report.token_sets import scenes
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab import channel_order
from lab.plots import line_panels
from lab.results import read_result
from lab.store import DEFAULT_STORE, ordered_generator_key, record, trained, trained_on_order
from lab.studies import car_tokens, generator
from lab.study import Study, Tables

HOURS = 1.5
RESULT = "orderings-small.json"
SORTED_BY = 256  # training images
GREEDY_BY = 32  # of them: each decides over 2,080 decodings
_SHORT = (
    "train.steps=700", "train.evaluate_every=700", "train.checkpoint_every=350", "train.threads=1",
    "objective.train_images=12288", "objective.lm_steps=50", "objective.stage1_steps=50",
)  # fmt: skip
ORDERS = ("nested", "as trained", "energy", "variance", "greedy")


def recipes(order: str) -> tuple[TokenizerRecipe, CARRecipe]:
    """Of the tokenizer, which is one of the study of kinds of tokens, and of the generator."""
    tokenizer = car_tokens.tokenizer_recipe("nested" if order == "nested" else "not nested")
    return tokenizer, load_recipe("small/scenes-car", _SHORT, of=CARRecipe)


def keys() -> dict[str, str]:
    """The run key of every record of the result."""
    return {order: ordered_generator_key(*recipes(order), _sorted(order)) for order in ORDERS}


def _sorted(order: str) -> str | None:
    return None if order in ("nested", "as trained") else order


def orders(
    tokenizer: CVQTokenizer, maps: Float[Tensor, "n C s s"], images: UInt8[Tensor, "n 3 h w"]
) -> dict[str, Int64[Tensor, " C"]]:
    """By name, from training images and their maps."""
    return {
        "as trained": torch.arange(tokenizer.num_tokens),
        "energy": channel_order.by_energy(maps),
        "variance": channel_order.by_variance(maps),
        "greedy": channel_order.greedy(tokenizer, maps[:GREEDY_BY], images[:GREEDY_BY]),
    }


def run(path: Path, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Train what is not in the store, measure on held-out scenes, write and return the result."""
    check_plot()
    records = []
    for nested in (True, False):
        first = "nested" if nested else "as trained"
        recipe, car_recipe = recipes(first)
        tokenizer, _ = trained(recipe, store)
        sets = generator.token_sets(car_recipe, tokenizer)
        training = fixed_images(scenes(car_recipe, tokenizer, "train"), SORTED_BY)
        maps = channel_order.quantized_maps(tokenizer, training)
        tests, mean = channel_order.quantized_maps(tokenizer, sets.images), maps.mean(0)
        compared = {first: torch.arange(tokenizer.num_tokens)} if nested else orders(tokenizer, maps, training)
        for name, order in compared.items():
            quality = _prefixes(tokenizer, tests, sets.images, order, mean)
            car, done = trained_on_order(recipe, car_recipe, order, _sorted(name), store)
            own = generator.token_sets(car_recipe, car.tokenizer) if _sorted(name) else sets
            metrics = quality | evaluate_next_channel(car, own.test, own.train_ids).to_dict()
            extra = {"name": name, "order": order.tolist(), "steps": car_recipe.train.steps}
            records.append(record(recipe, done, "scenes", metrics) | extra)
    how = generator.scene_protocol(sets.images) | {
        "orders": f"found on {SORTED_BY} training scenes, greedily on {GREEDY_BY} of them",
        "fill": "channels beyond the prefix are zero, as nested dropout trains it, or at their mean map",
    }
    write_json(path, {"protocol": how, "records": records})
    result = load(path)
    draw(result, path.parent / "orderings.png")
    return result


def _prefixes(tokenizer: CVQTokenizer, maps: Tensor, images: Tensor, order: Tensor, mean: Tensor) -> dict[str, Any]:
    """PSNR of every prefix, the rest at zero and at the mean."""
    lengths = prefix_lengths(tokenizer.num_tokens)
    fills = {"psnr_zero": torch.zeros_like(mean), "psnr_mean": mean}
    metrics: dict[str, Any] = {"lengths": lengths}
    for name, fill in fills.items():
        values = channel_order.prefix_psnr(tokenizer, maps, images, order, lengths, fill)
        intervals = [mean_with_interval(row, seed=0) for row in values]
        metrics[name] = [interval.mean for interval in intervals]
        metrics[f"{name}_intervals"] = [[interval.low, interval.high] for interval in intervals]
    return metrics


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    metrics = ("nats", "nats_shuffled", "psnr_zero", "psnr_mean")
    needs = ("protocol.n", "records.name", *(f"records.metrics.{name}" for name in metrics))
    return read_result(path, needs, "make it with --rerun")


def draw(result: Mapping[str, Any], path: Path) -> None:
    """In each order, PSNR of every prefix with the rest at zero, and the mean nats of its tokens."""
    psnr, nats = {}, {}
    for row in result["records"]:
        m, name = row["metrics"], row["name"]
        psnr[name] = list(zip(m["lengths"], m["psnr_zero"], strict=True))
        nats[name] = [(k, sum(m["by_channel"]["nats"][:k]) / k) for k in m["lengths"]]
    line_panels([("tokens", "PSNR (dB)", psnr), ("tokens", "nats a token, of the tokens so far", nats)], path)


HEADINGS = ("order", "the rest is", *(f"{k}" for k in prefix_lengths(64)), "nats (95 %)", "other caption")


def prefixes_and_nats(result: Mapping[str, Any]) -> TextTable:
    """Two rows an order: PSNR of its prefixes in dB, with the rest at zero and at the mean."""
    rows = []
    for row in result["records"]:
        m = row["metrics"]
        for fill, ends in (("zero", [with_interval(m, "nats"), f"{m['nats_shuffled']:.3f}"]), ("mean", ["", ""])):
            rows.append([row["name"], fill, *(f"{value:.2f}" for value in m[f"psnr_{fill}"]), *ends])
    return TextTable(HEADINGS, rows, f"{result['protocol']['n']} held-out scenes: PSNR (dB) by tokens")


STUDY = Study(run, load)
TABLES: Tables = {"orderings": (RESULT, prefixes_and_nats)}
