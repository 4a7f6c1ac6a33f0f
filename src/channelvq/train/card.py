"""The model card of what a user trained: final/README.md, with the run's last picture beside it.

A licence stands there only where `train.license` names one: whose pictures they are, and what they may be used for, is
for the user to say.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from channelvq import __version__
from channelvq.config import to_dict
from channelvq.evaluate.results import machine
from channelvq.evaluate.tables import TextTable
from channelvq.files import write_text_atomically
from channelvq.pretrained import PLAIN, WEIGHTS, read_header
from channelvq.train.task import Figures, Recipe

PICTURE = "samples.png"
WRITTEN = "Written by `cvq train`"  # a card without these words, and not the plain one, is the user's own, and stays
PLACES = ("root", "path", "urls", "name", "style", "sprites")  # settings that tell one data set from another
FOLDER = "the path of this folder, or its id on a hub"
CALL = "channelvq.train.run.train(...)"
USES = {
    "tokenizer": (
        'from channelvq import CVQTokenizer\n\ntok = CVQTokenizer.from_pretrained("{folder}")  # {what}\n'
        'ids = tok.tokenize("picture.png")\ntok.detokenize(ids[:, :16])[0].save("coarse.png")  # any prefix decodes'
    ),
    "clips": (
        'from channelvq import ClipTokenizer\n\ntok = ClipTokenizer.from_pretrained("{folder}")  # {what}\n'
        'ids = tok.tokenize("moving.webp")\nclip = tok.detokenize(ids[:, :2, :16])  # any prefix decodes'
    ),
    "car": (
        'from channelvq import CAR\n\ncar = CAR.from_pretrained("{folder}")  # {what}\n'
        'car.generate("{prompt}", seed=0).images[0].save("drawn.png")'
    ),
}
TAGS = {
    "tokenizer": "[image-tokenizer, vector-quantization]",
    "clips": "[video-tokenizer, vector-quantization]",
    "car": "[text-to-image, autoregressive]",
}
PICTURED = {
    "tokenizer": "Held-out images (above) and what is restored of them (below); nothing picked.",
    "clips": "Held-out clips, each above what is restored of it; nothing picked.",
    "car": "Held-out images as the tokenizer restores them (above), and images drawn for their captions (below).",
}


def write_card(
    recipe: Recipe, figures: Figures, seconds: float, command: str | None, held_out_pictures: int | None = None
) -> None:
    """Write the card of a run that has ended, from its last figures; a card of the user's own is left alone.

    seconds: that the steps took. command: that trained it, where it was one. held_out_pictures: see `Task`.
    """
    run = Path(recipe.train.output_dir)
    path = run / "final" / "README.md"
    if not path.parent.is_dir():  # a task of somebody's own may save nothing there
        return
    before = path.read_text(encoding="utf-8") if path.is_file() else PLAIN
    if WRITTEN not in before and PLAIN not in before:
        return
    pictures = sorted((run / "samples").glob("step-*.png"))
    if pictures:
        shutil.copyfile(pictures[-1], run / "final" / PICTURE)
    write_text_atomically(path, card(recipe, figures, seconds, command, bool(pictures), held_out_pictures))


def card(
    recipe: Recipe, figures: Figures, seconds: float, command: str | None, pictured: bool,
    held_out_pictures: int | None = None,
) -> str:  # fmt: skip
    """The text of it."""
    task, train = recipe.task, recipe.train
    name, license_ = Path(train.output_dir).resolve().name, train.license
    header = ["---", "library_name: channelvq"]
    header += [f"license: {license_}"] if license_ else []
    header += [f"tags: {TAGS[task]}"] if task in TAGS else []
    size = _size(Path(train.output_dir) / "final" / WEIGHTS)
    parts = ["\n".join([*header, "---"]), f"# {name}"]
    if pictured:
        parts.append(f"![samples]({PICTURE})\n\n{PICTURED.get(task, 'Samples of the last evaluation.')}")
    if task in USES:
        parts.append(f"```python\n{USES[task].format(folder=name, what=FOLDER, prompt='a caption')}\n```")
    parts += [
        f"## Data\n\n{_data(recipe)}",
        f"## Training\n\n`{_private(command or CALL)}`: {train.steps:,} steps of {train.batch_size} "
        f"images, {_duration(seconds)} on {machine()}, channelvq {__version__}.{size}",
        f"## Figures\n\nOn {_held_out(recipe, held_out_pictures)}, at the end of training:\n\n{_figures(figures)}",
        "## Licence\n\n" + (license_ or "None is given yet: who trained it names one by `train.license`, or here."),
        f"{WRITTEN} {__version__}; change it, but for this line, as you like.",
    ]
    return "\n\n".join(parts) + "\n"


def _private(command: str) -> str:
    """A command without the folders above what its settings name."""
    return re.sub(r"(?<==)[~/]\S*/(?=[^\s/])", "", command)


def _data(recipe: Recipe) -> str:
    """A line for each source: what it is and where, without the folders above."""
    sources: Mapping[str, Any] = getattr(getattr(recipe, "data", None), "sources", {})
    lines = []
    for name, source in sources.items():
        if not source.weight:
            continue
        settings = to_dict(source)
        places = [f"{key} `{Path(str(value)).name}`" for key in PLACES if (value := settings.get(key))]
        lines.append(f"- {name}: {', '.join([f'kind `{source.kind}`', *places])}, weight {source.weight:g}")
    return "\n".join(lines) or "As the task says."


def _held_out(recipe: Recipe, pictures: int | None) -> str:
    count = getattr(getattr(recipe, "data", None), "validation_images", None)
    if not count:
        return "held-out data"
    if pictures is not None and pictures < count:
        return f"{count} views of the {pictures} images of the validation split"
    return f"{count} images of the validation split"


def _size(weights: Path) -> str:
    if not weights.is_file():
        return ""
    return f" {sum(tensor.numel() for tensor in read_header(weights).values()) / 1e6:.2f} M numbers."


def _figures(figures: Figures) -> str:
    return TextTable(["figure", "value"], [[name, f"{value:.4g}"] for name, value in figures.items()]).markdown()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
