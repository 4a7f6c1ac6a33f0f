"""`cvq encode`, `decode`, `info`, `tables`: images as .cvq files, any prefix of which is a picture, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from channelvq.cli.inputs import batches
from channelvq.cli.options import (
    MODEL_HELP,
    NUMBERED,
    DeviceOption,
    OverwriteOption,
    TokenizerOption,
    note_older,
    output_name,
    outputs,
)
from channelvq.devices import resolve_device
from channelvq.errors import InputError
from channelvq.terminal import progress_bar

SUFFIX = ".cvq"
GROUP = 8  # pictures that a generator scores at once
FilesArgument = Annotated[list[Path], typer.Argument(help=".cvq files, or folders of them.")]
KeepOption = Annotated[int | None, typer.Option("--tokens", "-k", min=1, help="The first k tokens only.")]
CaptionOption = Annotated[str | None, typer.Option(help="What the generator is told of every picture.")]


def encode(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .cvq file for one image, or a folder.")],
    tokens: KeepOption = None,
    num_bytes: Annotated[int | None, typer.Option("--bytes", min=1, help="As many tokens as fit these bytes.")] = None,
    psnr: Annotated[float | None, typer.Option(help="The fewest tokens that give this PSNR in dB.")] = None,
    effort: Annotated[
        int, typer.Option(min=0, help="Steps in search of tokens that restore more; 30 take seconds an image.")
    ] = 0,
    model: Annotated[
        Literal["static", "car"], typer.Option(help="static: the tokenizer's tables; car: a generator, slower.")
    ] = "static",
    caption: CaptionOption = None,
    store_caption: Annotated[
        bool, typer.Option("--store-caption/--no-store-caption", help="Without it, decoding needs --caption.")
    ] = True,
    tokenizer: TokenizerOption = "bundled",
    car: Annotated[str, typer.Option("--car", "-c", help=f"With --model car. {MODEL_HELP}")] = "bundled",
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Images -> .cvq files."""
    from channelvq import CVQTokenizer
    from channelvq.codec import compress
    from channelvq.files import write_atomically

    single = output.suffix == SUFFIX
    _check(output, single, (*images, tokenizer, car), SUFFIX, overwrite)
    scores = _scores(car, device) if model == "car" else None
    if scores is not None and tokenizer != "bundled":
        raise InputError("--tokenizer: with --model car it is the generator's own; leave it out")
    tok = CVQTokenizer.from_pretrained(tokenizer, device=device) if scores is None else scores.tokenizer
    written, total = list[Path](), 0
    with _progress("encoding") as step:
        for names, pictures in batches(images, tok.config.read_at):
            if single and len(written) + len(names) > 1:
                raise InputError(f"{output}: one file for several images; give a folder as --output")
            files = compress(
                pictures, tok, num_tokens=tokens, num_bytes=num_bytes, psnr=psnr, effort=effort, car=scores,
                captions=None if caption is None else [caption] * len(names), store_captions=store_caption,
            )  # fmt: skip
            for name, data in zip(names, files, strict=True):
                path = output if single else output / output_name(len(written), name, SUFFIX)
                write_atomically(path, lambda stream, data=data: stream.write(data))
                written.append(path)
                total += len(data)
            step(len(names))
    typer.echo(f"{len(written)} image(s), {total / len(written):.1f} bytes each with header -> {output}")
    if not single:
        note_older(output, written, SUFFIX)


def decode(
    files: FilesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="An image file for one, or a folder.")],
    tokens: KeepOption = None,
    caption: CaptionOption = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", help="Default: of the bundled ones the one that wrote the file.")
    ] = None,
    car: Annotated[str | None, typer.Option("--car", "-c", help="The same for a generator.")] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """.cvq files, or beginnings of them -> images."""
    from channelvq import CVQTokenizer
    from channelvq.codec import Header, at_hand, decompress
    from channelvq.images import save_image

    single = bool(output.suffix)
    _check(output, single, (*files, tokenizer, car), ".png", overwrite)
    place = resolve_device(device)
    given = None if tokenizer is None else CVQTokenizer.from_pretrained(tokenizer, device=place)
    scores = None if car is None else _scores(car, place)

    def owners(header: Header, name: str) -> tuple[Any, Any]:
        used = (scores or at_hand.scores_for(header, name).to(place)) if header.kind == "car" else None
        if used is not None:
            return given or used.tokenizer, used
        return given or at_hand.tokenizer_for(header, name).to(place), None

    written = list[Path]()
    with _progress("decoding") as step:
        opened = _opened(files, owners)
        for (tok, used), members in groupby(opened, key=lambda member: member[3]):
            while group := list(islice(members, GROUP)):
                paths, contents, headers, _ = zip(*group, strict=True)
                if single and len(written) + len(paths) > 1:
                    raise InputError(f"{output}: one file for several pictures; give a folder as --output")
                told = [caption or "" if header.caption == "needed" else "" for header in headers]
                pictures = decompress(
                    contents, tok, num_tokens=tokens, car=used, captions=told, names=list(map(str, paths))
                )
                for path, picture in zip(paths, pictures, strict=True):
                    written.append(output if single else output / output_name(len(written), path))
                    save_image(picture, written[-1])
                step(len(paths))
    if not written:
        raise InputError("none of the files can be decoded")
    typer.echo(f"{len(written)} picture(s) -> {output}")
    if not single:
        note_older(output, written)


def info(files: FilesArgument) -> None:
    """What .cvq files say of themselves; no tokenizer is needed."""
    for path, data, header, _ in _opened(files):
        start = len(header.write())
        chunks = sum(start + end <= len(data) for end in header.ends)
        have = min(chunks * header.chunk_tokens, header.num_tokens)
        typer.echo(f"{path}: {header.width} x {header.height} px, {header.num_tokens} tokens")
        typer.echo(f"  bytes: {len(data)} of {start + header.ends[-1]}, {start} of them header")
        typer.echo(f"  whole: {have} tokens, {chunks} of {header.num_chunks} chunks")
        cuts = zip(range(1, header.num_chunks + 1), header.ends, strict=True)
        places = (f"{min(n * header.chunk_tokens, header.num_tokens)} at byte {start + end}" for n, end in cuts)
        typer.echo(f"  tokens to cut at: {', '.join(places)}")
        model = "the tokenizer's tables" if header.kind == "static" else "a generator"
        typer.echo(f"  tokenizer: {header.tokenizer.hex()}...")
        typer.echo(f"  code model: {model}, {header.model.hex()}...")
        if header.caption != "none":
            typer.echo(f"  caption: {header.text or 'not in the file, needed to decode it'}")


def tables(
    images: Annotated[list[Path], typer.Argument(help="Training images: files or folders of them.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", "-t", help="The tokenizer's folder; they are put there.")],
    device: DeviceOption = "auto",
) -> None:
    """Count how often a tokenizer uses each code, for smaller .cvq files."""
    import torch

    from channelvq import CVQTokenizer
    from channelvq.codec import CodeTables
    from channelvq.pretrained import CODE_TABLES

    if not tokenizer.is_dir():
        raise InputError(f"--tokenizer {str(tokenizer)!r}: expected the folder of a saved tokenizer")
    outputs(tokenizer / CODE_TABLES, inputs=images)
    tok, parts = CVQTokenizer.from_pretrained(tokenizer, device=device), list[Any]()
    with _progress("counting") as step:
        for names, pictures in batches(images, tok.config.read_at):
            parts.append(tok.tokenize(pictures))
            step(len(names))
    ids = torch.cat(parts)
    CodeTables.fit(tok, ids).save(tokenizer)
    typer.echo(
        f"{len(ids)} image(s) counted -> {tokenizer / CODE_TABLES}; older .cvq files of it need the older tables"
    )


def _check(output: Path, single: bool, inputs: tuple[str | Path | None, ...], suffix: str, overwrite: bool) -> None:
    """The rule of all outputs, for one file or for a folder of numbered ones."""
    own = tuple(str(Path(name).with_suffix(suffix)) for name in NUMBERED)
    outputs(
        *([output] if single else []), folder=None if single else output, inputs=inputs, own=own, overwrite=overwrite
    )


def _scores(car: str, device: Any) -> Any:
    from channelvq import CAR
    from channelvq.codec.car_scores import CARScores

    return CARScores(CAR.from_pretrained(car, device=device))


def _opened(paths: list[Path], owners: Any = None) -> Iterator[tuple[Path, bytes, Any, Any]]:
    """Path, bytes, header and its owners (as `owners` says, None without) of files, and of those in folders.

    A file of a folder that cannot be used is named and counted, one that was named itself is an InputError.
    """
    from channelvq.codec import read_header
    from channelvq.codec.container import check_length

    files = [(file, path.is_dir()) for path in paths for file in _inside(path)]
    if not files:
        raise InputError(f"no {SUFFIX} file in {', '.join(map(str, paths))} or below")
    skipped = 0
    for path, in_folder in files:
        try:
            header, start = read_header(data := _read(path), str(path))
            check_length(data, header, start, str(path))
            used = owners(header, str(path)) if owners else None
        except InputError as error:
            if not in_folder:
                raise
            skipped += 1
            typer.echo(f"skipped {error}", err=True)
        else:
            yield path, data, header, used
    if skipped:
        typer.echo(f"{skipped} file(s) skipped", err=True)


def _inside(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob(f"*{SUFFIX}") if file.is_file()) if path.is_dir() else [path]


def _read(path: Path) -> bytes:
    from channelvq.codec.container import MOST_BYTES

    with path.open("rb") as stream:
        return stream.read(MOST_BYTES + 1)  # the header says what is expected of them


@contextmanager
def _progress(what: str) -> Iterator[Any]:
    """A line that counts, on a terminal only."""
    from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

    with progress_bar(TextColumn(what), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda count: bar.advance(task, count)
