"""Options that several commands share, and where their results may go."""

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from channelvq.errors import InputError
from channelvq.files import only_writer
from channelvq.outputs import check_outputs

MODEL_HELP = "'bundled' or 'bundled-fashion', a folder written by save_pretrained, or a hub repository."
TokenizerOption = Annotated[str, typer.Option("--tokenizer", "-t", help=MODEL_HELP)]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Where to write.")]
PrefixOption = Annotated[int | None, typer.Option("--num-tokens", "-k", help="Use the first k tokens only.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]
MarkdownOption = Annotated[Path | None, typer.Option("--markdown", help="Also write the table to this file.")]
TokenizerArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
DataArgument = Annotated[
    str | None, typer.Argument(help="A folder of images (./photos), or a held-out set: emoji, photos or scenes.")
]
SplitOption = Annotated[
    Literal["validation", "test"] | None,
    typer.Option("--split", help="Instead of DATA: this split of what the tokenizer's own run trains on."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Where to compute: auto (a GPU where there is one), cpu, cuda or cuda:n.")
]
SeedOption = Annotated[int, typer.Option(help="Image i uses seed + i.")]
GuidanceOption = Annotated[float, typer.Option("--guidance-scale", help="1 is no guidance.")]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopKOption = Annotated[int, typer.Option("--top-k", help="0: all.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="1: all.")]
MaxImagesOption = Annotated[int | None, typer.Option(min=1, help="Stop after this many images.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Write into a folder that holds files of something else.")
]
NUMBERED = ("[0-9][0-9][0-9][0-9].png", "[0-9][0-9][0-9][0-9]-*.png")  # what commands call the images of a folder
HELD = ExitStack()  # locks of the running command's folders


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """--size: 96 as 96, 96x128 as (96, 128), height first; raises InputError for anything else."""
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,6}(x\d{1,6})?", text, re.ASCII):
        raise InputError(f"--size: expected 96 or 96x128 (height x width), got {text!r:.40}")
    height, _, width = text.partition("x")
    return (int(height), int(width)) if width else int(height)


def output_name(number: int, source: str | Path, suffix: str = ".png") -> str:
    """Number and stem, safe in any file system; the number tells files of the same name apart."""
    stem = re.sub(r"[^-+@. \w]", "_", Path(source).stem)[:60]
    return f"{number:04d}-{stem}{suffix}"


def note_older(folder: Path, written: Iterable[Path], suffix: str = ".png") -> None:
    """Say which numbered images of an earlier call are still among those just written; they are left alone."""
    older = sorted(set(folder.glob(f"[0-9][0-9][0-9][0-9]*{suffix}")) - set(written))
    if older:
        typer.echo(f"note: {folder}/ also holds {len(older)} older image(s): {older[0].name}, ...", err=True)


def outputs(
    *files: Path | None,
    folder: Path | None = None,
    inputs: Iterable[str | Path | None] = (),
    own: tuple[str, ...] = (),
    overwrite: bool = False,
) -> None:
    """`channelvq.outputs.check_outputs` before the work; the command is the folder's only writer until it ends."""
    check_outputs(files, folder, inputs=inputs, own=own, overwrite=overwrite)
    if folder is not None:
        HELD.enter_context(only_writer(folder))
