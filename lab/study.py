"""What studies share: a result that grows run by run, and recipes trained alike and measured on the same images.

A study is one file in lab/studies/. It says its question (the first paragraph of the file), HOURS, RESULT (a file of
results/), how it is made (STUDY) and its TABLES by name: the file that each is made from, and how.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq.evaluate.held_out import DESCRIPTIONS, held_out
from channelvq.evaluate.measures import Measures, choose_measures
from channelvq.evaluate.metrics import with_interval
from channelvq.evaluate.plots import check_plot
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import protocol, write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, to_pil
from channelvq.pictures import restored
from channelvq.train.engine import read_metrics
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.results import read_result
from lab.store import DEFAULT_STORE, kept_records, record, run_key, trained

Result = dict[str, Any]
Record = dict[str, Any]
Run = tuple[str, tuple[str, ...]]  # a recipe's name and what is changed in it
Tables = dict[str, tuple[str, Callable[[Result], TextTable]]]
MEASURED = ("psnr", "ssim", "use", "use_if_uniform", "perplexity", "perplexity_ratio")
NEEDS = (
    "protocol.n", "records.name", "records.run", "records.steps", "records.seconds",
    *(f"records.metrics.{name}" for name in MEASURED),
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """How a result is made and read.

    run: (path, store) trains what is not in the store, measures, writes and returns the result; where the study
    `grows` it also takes missing=True: measure only what the result at `path` lacks, and write after each record. load:
    a stored result; raises InputError for another file.
    """

    run: Callable[..., Result]
    load: Callable[[Path], Result]
    grows: bool = False


@dataclass(frozen=True)
class RecipeStudy:
    """A `Study` of recipes that are trained alike and measured on the same held-out images.

    runs: by name. kinds: of held-out images (`held_out`), `images` of each. every_prefix: measure prefixes too, not the
    full length alone. features: also distances by our network. per_image: metrics whose value for each image is kept.
    shown: how many images of each kind are drawn as every run restores them, beside the result. plot: draws the result.
    more: what else a record says, from the folder of its run.
    """

    runs: dict[str, Run]
    kinds: tuple[str, ...] = ("emoji", "photos")
    images: int = 768  # 2 * 768 * 64 = 98,304 tokens, 24 for each of 4,096 codes
    every_prefix: bool = False
    features: bool = False
    per_image: tuple[str, ...] = ()
    shown: int = 0
    plot: Callable[[Result, Path], None] | None = None
    more: Callable[[Path], Record] | None = None
    grows: bool = True

    def recipes(self) -> dict[str, TokenizerRecipe]:
        """The resolved recipes by name."""
        return {name: load_recipe(base, more, of=TokenizerRecipe) for name, (base, more) in self.runs.items()}

    def keys(self) -> dict[str, str]:
        """The run key of every record of the result."""
        return {name: run_key(recipe) for name, recipe in self.recipes().items()}

    def run(self, path: Path, store: Path = DEFAULT_STORE, missing: bool = False) -> Result:
        """See `Study`. Raises InputError where the records to be kept were measured in another way."""
        if self.plot:
            check_plot()
        images = torch.cat([held_out(kind, self.images) for kind in self.kinds])
        measures = choose_measures(images.shape[-1], "bundled" if self.features else "none")
        data = "; ".join(f"{self.images} {kind}: {DESCRIPTIONS[kind]}" for kind in self.kinds)
        how = protocol(images, data=data, split="test", resize="antialiased", crop="see data")
        how |= measures.protocol(len(images))
        collect(
            path, how, self.keys(), lambda name: self._measured(name, images, measures, store),
            self.load if missing else None,
        )  # fmt: skip
        result = self.load(path)
        if self.plot:
            self.plot(result, path.with_suffix(".png"))
        if self.shown:
            self.draw_restored(images, path.with_suffix(".png"), store)
        return result

    def _measured(self, name: str, images: UInt8[Tensor, "n 3 h w"], measures: Measures, store: Path) -> Record:
        base, overrides = self.runs[name]
        recipe = load_recipe(base, overrides, of=TokenizerRecipe)
        tokenizer, done = trained(recipe, store)
        prefixes = None if self.every_prefix else [tokenizer.num_tokens]
        report = evaluate_reconstruction(tokenizer, images, prefixes=prefixes, measures=measures)
        folder = store / done["run"]
        facts: Record = {"name": name, "recipe": base, "overrides": list(overrides), "validation": _validation(folder)}
        facts |= self.more(folder) if self.more else {}
        if self.per_image:
            facts["per_image"] = {metric: report.per_image()[metric] for metric in self.per_image}
        return facts | record(recipe, done, "+".join(self.kinds), report.to_dict())

    def draw_restored(self, images: UInt8[Tensor, "n 3 h w"], path: Path, store: Path = DEFAULT_STORE) -> None:
        """The first images of each kind, and below them what every run makes of them."""
        originals = torch.cat([images[i * self.images :][: self.shown] for i in range(len(self.kinds))])
        sheets = {"original": originals}
        sheets |= {name: restored(trained(recipe, store)[0], originals) for name, recipe in self.recipes().items()}
        beside = [""] * (len(originals) - 1)
        captions = [text for name in sheets for text in (name, *beside)]
        pictures = [picture for sheet in sheets.values() for picture in to_pil(normalize(sheet))]
        save_image(grid(pictures, len(originals), captions=captions, scale=2), path)

    def load(self, path: Path) -> Result:
        """A stored result; raises InputError when there is none."""
        return read_result(path, NEEDS, "make it with --rerun, or run by run with --missing")


def collect(
    path: Path,
    how: Mapping[str, Any],
    keys: Mapping[str, str],
    make: Callable[[str], Record],
    load: Callable[[Path], Result] | None,
) -> None:
    """Write the result whose records have these names, in their order.

    how: its protocol. make: measures the record of a name. load: reads the result at `path`, whose records of `keys`
    stay, and each new one is written at once (None: all are made, and written at the end). Raises InputError where what
    stays was measured in another way.
    """
    records = kept_records(load(path), path, how, keys) if load and path.exists() else {}
    for name in keys:
        if name not in records:
            records[name] = make(name)
            if load:
                _write(path, how, keys, records)
    _write(path, how, keys, records)


def _write(path: Path, how: Mapping[str, Any], names: Iterable[str], records: Mapping[str, Record]) -> None:
    write_json(path, {"protocol": how, "records": [records[name] for name in names if name in records]})


def _validation(folder: Path) -> dict[str, float]:
    """The last figures on validation images, which choices may be made by."""
    lines = [line for line in read_metrics(folder) if line["kind"] == "evaluate"]
    return {key: value for key, value in lines[-1].items() if isinstance(value, float)}


def runs_table(result: Result) -> TextTable:
    """Use, perplexity and quality of each run of a study."""
    headings = ("run", "steps", "use", "perplexity", "perplexity/N", "PSNR (95 %)", "SSIM (95 %)", "seconds")
    rows = [
        [
            row["name"], str(row["steps"]), f"{m['use']:.1%}", f"{m['perplexity']:.0f}",
            f"{m['perplexity_ratio']:.2f}", with_interval(m, "psnr"), with_interval(m, "ssim"),
            f"{row['seconds']:.0f}",
        ]
        for row in result["records"]
        for m in [row["metrics"]]
    ]  # fmt: skip
    first = result["records"][0]["metrics"]
    note = (
        f"{result['protocol']['n']} held-out images, {first['usage_tokens']} tokens; codes drawn at random would "
        f"be used to {first['use_if_uniform']:.1%}."
    )
    return TextTable(headings, rows, note=note)


def prefix_table(records: Sequence[Record], name: str = "name") -> TextTable:
    """PSNR of every record at every prefix; name: the key of what a row is called."""
    rows = [
        [record[name], *(f"{prefix['psnr']:.2f}" for prefix in record["metrics"]["prefixes"])] for record in records
    ]
    first = records[0]["metrics"]["prefixes"]
    headings = ["PSNR (dB)", *(f"{prefix['tokens']} ({prefix['bytes']} B)" for prefix in first)]
    return TextTable(headings, rows)
