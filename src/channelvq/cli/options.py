"""Options that several commands share, and the check that their results can be written."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from channelvq.errors import InputError

MODEL_HELP = "'bundled', a folder written by save_pretrained, or a hub repository."
TokenizerOption = Annotated[str, typer.Option("--tokenizer", "-t", help=MODEL_HELP)]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Where to write.")]
PrefixOption = Annotated[int | None, typer.Option("--num-tokens", "-k", help="Use the first k tokens only.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]
MarkdownOption = Annotated[Path | None, typer.Option("--markdown", help="Also write the table to this file.")]
TokenizerArgument = Annotated[str, typer.Argument(help="'bundled', a folder or a hub repository.")]
DataArgument = Annotated[Path, typer.Argument(help="A folder of images, or emoji, photos or scenes.")]
SeedOption = Annotated[int, typer.Option(help="Image i uses seed + i.")]
GuidanceOption = Annotated[float, typer.Option("--guidance-scale", help="1 is no guidance.")]
TemperatureOption = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopKOption = Annotated[int, typer.Option("--top-k", help="0: all.")]
TopPOption = Annotated[float, typer.Option("--top-p", help="1: all.")]
MaxImagesOption = Annotated[int | None, typer.Option(min=1, help="Stop after this many images.")]


def output_name(number: int, source: str | Path, suffix: str = ".png") -> str:
    """Number and stem, safe in any file system; the number tells files of the same name apart."""
    stem = re.sub(r"[^-+@. \w]", "_", Path(source).stem)[:60]
    return f"{number:04d}-{stem}{suffix}"


def note_older(folder: Path, written: Iterable[Path], suffix: str = ".png") -> None:
    """Say which numbered images of an earlier call are still among those just written; they are left alone."""
    older = sorted(set(folder.glob(f"[0-9][0-9][0-9][0-9]*{suffix}")) - set(written))
    if older:
        typer.echo(f"note: {folder}/ also holds {len(older)} older image(s): {older[0].name}, ...", err=True)


def target(*, file: Path | None = None, folder: Path | None = None) -> None:
    """InputError, before the work, where its result could not be written."""
    from channelvq.images import check_target

    if file is not None:
        check_target(file)
    if folder is not None:
        check_target(folder, folder=True)


def targets(*files: Path | None, kept: Iterable[Path | None] = ()) -> None:
    """As `target`, for several files; also where one would take the place of another, or of a file to be kept."""
    taken = {path.resolve() for path in kept if path is not None}
    for file in filter(None, files):
        target(file=file)
        if file.resolve() in taken:
            raise InputError(
                f"cannot write {str(file)!r}: the same command reads or writes that file for something else; "
                "choose another place"
            )
        taken.add(file.resolve())
