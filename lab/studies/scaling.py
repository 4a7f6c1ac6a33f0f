"""From 1,024 to 65,536 codes, channel-wise and patch-wise: use and quality.

Both axes, and three of the family at 16,384. Paper: the codebook-size study (65,536 codes: 100 % use against 1.1 %).
"""

from pathlib import Path

from lab.plots import line_panels
from lab.study import RecipeStudy, Result, Tables, runs_table

HOURS = 1.5
RESULT = "scaling-small.json"
_SHORT = (
    "train.steps=700", "train.evaluate_every=700", "train.checkpoint_every=350",
    "objective.start_images=2048", "model.quantizer.kmeans_iterations=5",  # 131,072 tokens to start 65,536 codes from
)  # fmt: skip
_SIZES = (1024, 4096, 16384, 65536)
_RUNS = (
    *((axis, "", codes) for codes in _SIZES for axis in ("channel", "patch")),
    ("channel", "simvq", 16384),
    ("channel", "ibq", 16384),
    ("patch", "simvq", 16384),
)


def draw(result: Result, path: Path) -> None:
    """Use, evenness and PSNR over the codebook size, a line for each axis and quantizer."""
    labels = {"use": "use of the codebook", "perplexity_ratio": "perplexity / N", "psnr": "PSNR (dB)"}
    names = dict.fromkeys((row["axis"], row["quantizer"]) for row in result["records"])
    panels = [
        ("codes", label, {
            f"{axis}, {kind}": [
                (row["codes"], row["metrics"][metric])
                for row in result["records"]
                if (row["axis"], row["quantizer"]) == (axis, kind)
            ]
            for axis, kind in names
        })
        for metric, label in labels.items()
    ]  # fmt: skip
    line_panels(panels, path)


STUDY = RecipeStudy(
    {
        " ".join(filter(None, (axis, kind, f"{codes:,}"))): (
            f"small/axis-{axis}",
            (*_SHORT, f"model.quantizer.kind={kind or 'plain'}", f"model.quantizer.codebook_size={codes}"),
        )
        for axis, kind, codes in _RUNS
    },
    images=4096,  # 524,288 tokens, 8 for each of 65,536 codes
    plot=draw,
)
TABLES: Tables = {"scaling": (RESULT, runs_table)}
