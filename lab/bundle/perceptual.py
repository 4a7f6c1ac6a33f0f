"""The perceptual network that ships in the package: from a finished run to weights, model card and results."""

from pathlib import Path
from typing import Any

from channelvq.data.fetched.catalogue import PACKAGES
from channelvq.evaluate.tables import TextTable
from channelvq.files import replaced_folder
from channelvq.nn.perceptual import PerceptualNetwork
from lab.bundle.cross_style import GALLERY, STYLES, cross_style_accuracy, pixels_16, style_pictures
from lab.bundle.perceptual_task import PerceptualRecipe
from lab.bundle.tokenizer import copy_stored, credits_of, finished_run, halve, write_with_card
from lab.study import Tables

RECIPE = "lab/bundle/perceptual.yaml"
SOURCES = ("emojibase-data", "fluent-emoji", "noto", "twemoji")


def bundle(run_dir: Path, package: Path, results: Path, command: str) -> dict[str, Any]:
    """Half-precision weights and model card into `package`/perceptual, the cross-style test into `results`.

    Measured on the weights as they are stored; the package keeps what it had until all of it is there. Raises
    InputError where the run is not finished or the emoji packages are not there.
    """
    recipe, facts = finished_run(run_dir, PerceptualRecipe, command)
    with replaced_folder(package / "perceptual") as folder:
        copy_stored(run_dir / "final", folder, halve)
        result = {"run": facts, **cross_style(PerceptualNetwork.load(folder), recipe.image_size)}
        return write_with_card(results / "perceptual.json", result, folder, model_card)


def cross_style(network: PerceptualNetwork, size: int) -> dict[str, Any]:
    """{"protocol", "records"}: the cross-style test of the network and of 16 x 16 pixels on the test labels."""
    pictures, queries = style_pictures("test", size)
    how = {"queries": queries, "gallery": GALLERY, "styles": list(STYLES), "split": "test", "image_size": size,
           "background": "white", "test": "nearest by cosine; queries are labels that no recipe trains on"}  # fmt: skip
    records = [
        {"features": name, "accuracy": cross_style_accuracy(embed, pictures, queries)}
        for name, embed in (("network", network), ("pixels 16 x 16", pixels_16))
    ]
    return {"protocol": how, "records": records}


def model_card(result: dict[str, Any]) -> str:
    """README.md of the bundled network, every figure from the result file."""
    run, (network, pixels) = result["run"], (r["accuracy"] for r in result["records"])
    rows = "\n".join(f"| {pair} | {network[pair]:.3f} | {pixels[pair]:.3f} |" for pair in network)
    return CARD.format(
        command=run["command"], steps=run["steps"], minutes=run["training_seconds"] / 60, machine=run["machine"],
        torch=run["torch"], git=run["git"], queries=result["protocol"]["queries"], rows=rows, gallery=GALLERY,
        works=credits_of(w for source in SOURCES for w in PACKAGES[source].works),
    )  # fmt: skip


def cross_style_table(result: dict[str, Any]) -> TextTable:
    """The cross-style test by pair of art sets."""
    names = list(result["records"][0]["accuracy"])
    rows = [[r["features"], *(f"{r['accuracy'][name]:.3f}" for name in names)] for r in result["records"]]
    return TextTable(["features", *names], rows)


TABLES: Tables = {"perceptual": ("perceptual.json", cross_style_table)}


CARD = """---
library_name: channelvq
license: apache-2.0
tags: [perceptual-loss]
---
# The bundled perceptual network

A small convolutional network that recognises the same emoji in three art sets. The distance of its features is the
perceptual loss of `objective.perceptual.network=bundled`; it is not LPIPS and its figures are not comparable to LPIPS.

`{command}`: {steps} steps, {minutes:.0f} minutes on {machine}, torch {torch}, revision `{git}`.
Stored in half precision.

## Cross-style test

{queries} labels that were never trained on, each looked for among {gallery} emoji of another art set. Every figure is
in `results/perceptual.json`.

| from to | network | 16 x 16 pixels |
|---|---|---|
{rows}

## Sources of the training images, with licences

{works}
"""
