"""Images that commands are given: files, folders and named held-out sets."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import typer

from channelvq.errors import InputError, did_you_mean
from channelvq.terminal import printable

BATCH_SIZE = 64  # images in memory at a time
HELD_OUT_IMAGES = 768  # 12 N tokens of the bundled tokenizer
MOST_SPLIT_IMAGES = 4096  # without --max-images: of drawn scenes there is no end
Split = Literal["validation", "test"]


def batches(
    paths: list[Path], size: int | tuple[int, int] | Callable[[tuple[int, int]], tuple[int, int]]
) -> Iterator[tuple[list[Path], list[Any]]]:
    """Names and resized images of files and folders, a batch at a time; what cannot be read is named and counted.

    size: as in `channelvq.images.read_images`.
    """
    from channelvq.images import read_images

    pairs, skipped = read_images(paths, size=size)
    batch = list(islice(pairs, BATCH_SIZE))
    if not batch:
        raise InputError(f"none of {len(skipped)} image files can be read; the first: {skipped[0].reason}")
    try:
        while batch:
            yield [name for name, _ in batch], [image for _, image in batch]
            batch = list(islice(pairs, BATCH_SIZE))
    finally:  # also where the caller wants no more of them
        for entry in skipped:
            typer.echo(printable(f"skipped {entry.path}: {entry.reason}"), err=True)
        if skipped:
            typer.echo(f"{len(skipped)} file(s) skipped", err=True)


def measured(
    tokenizer: str, data: str | None, max_images: int | None, device: str, split: Split | None = None,
    size: int | tuple[int, int] | None = None, run: Path | None = None,
) -> tuple[Any, Any, dict[str, Any]]:  # fmt: skip
    """The tokenizer, uint8 images (n, 3, h, w) and their protocol.

    data: a folder, or the name of a held-out set, which means that set even where there is a folder of its name.
    split: instead of data, the images of a split of what the tokenizer's own recipe trains on, or that of the folder
    `run`. size: (height, width) or a side; None: the tokenizer's own.
    """
    import torch

    from channelvq import CVQTokenizer
    from channelvq.evaluate.held_out import DESCRIPTIONS, held_out, held_out_protocol
    from channelvq.evaluate.results import protocol
    from channelvq.images import to_tensor

    if run is not None and split is None:
        raise InputError(f"--run {run}: it says whose split is measured; give --split test")
    if data is not None and split is not None:
        raise InputError(f"DATA {data} and --split {split}: give one of them")
    tok = CVQTokenizer.from_pretrained(tokenizer, device=device)
    shape = _measured_size(tok, size)
    if data is None:
        return tok, *_own_split(tok, tokenizer, split, max_images, shape, run)
    if data in DESCRIPTIONS:
        if Path(data).exists():
            typer.echo(f"note: {data} is the held-out set of that name; the folder here is ./{data}", err=True)
        if shape[0] != shape[1]:
            raise InputError(f"--size {shape[0]}x{shape[1]}: {data} is a set of squares; give one number, or a folder")
        images = held_out(data, max_images or HELD_OUT_IMAGES, shape[0])
        return tok, images, held_out_protocol(data, images, tok)
    if not Path(data).exists():
        sets, near = ", ".join(DESCRIPTIONS), "" if "/" in data else did_you_mean(data, DESCRIPTIONS)
        raise InputError(
            f"DATA {data!r}: no such file or folder; expected a folder of images, or a held-out set ({sets}){near}"
        )
    if _trained_on(tok, Path(data)):
        line = f"warning: {data}: the tokenizer was trained on images of it; --split test instead measures the others"
        typer.echo(printable(line), err=True)
    pictures = (picture for _, batch in batches([Path(data)], shape) for picture in batch)
    images = torch.stack([to_tensor(picture) for picture in islice(pictures, max_images)])
    crop = "centred square" if shape[0] == shape[1] else "centred, to the aspect of the size"
    how = {"split": "given", "resize": "antialiased", "crop": crop}
    return tok, images, protocol(images, data=data, tokenizer=tok, **how)


def _measured_size(tok: Any, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of what is measured; of a tokenizer without a resampler any, for pictures can be resized."""
    from channelvq.images.encoded import MOST_PIXELS
    from channelvq.images.geometry import check_size

    if size is None or tok.resampler is not None:
        return tok.check_output_size(size, "--size", worked_at=True)
    height, width = check_size(size)
    if height * width > MOST_PIXELS:
        raise InputError(f"--size {height}x{width}: more than the {MOST_PIXELS} pixels allowed")
    return height, width


def training_data(tokenizer: Any, data: str | None) -> Any:
    """The sources whose train split goes with the measured images: of a held-out set, or of the tokenizer's run.

    Raises InputError for a folder, of which nobody knows.
    """
    from channelvq.evaluate.held_out import KINDS, OTHERS

    recipe = _own_recipe(tokenizer) if data is None else None
    sources = recipe.data if recipe is not None else {**KINDS, **OTHERS}.get(data or "")
    if sources is None:
        raise InputError(
            f"--nats: what goes with the images of {data} for training is not known; give a held-out set "
            "(emoji, photos, scenes), or --split test of a run"
        )
    return sources


def _own_split(
    tok: Any, name: str, split: Split | None, max_images: int | None, shape: tuple[int, int], run: Path | None
) -> tuple[Any, dict[str, Any]]:
    """Images of a split of a trained tokenizer's own data, and their protocol; InputError where that is not known.

    name: of the tokenizer, as it was given. run: the folder whose data it is instead.
    """
    from channelvq.config import to_dict
    from channelvq.data.build import build_mixture
    from channelvq.data.sizes import SizedMixture
    from channelvq.data.stream import Stream, fixed_images
    from channelvq.evaluate.results import protocol

    if split is None:
        raise InputError("expected DATA, a folder or a held-out set, or --split test for that of the tokenizer's run")
    recipe = _own_recipe(tok) if run is None else _recipe_of(run)
    if recipe is None:
        raise InputError(
            f"--split {split}: {run} holds no config.yaml of a run; give the folder that `cvq train` wrote"
            if run
            else f"--split {split}: {name} is not the final/ of a run, beside its config.yaml, which says what "
            "it was trained on; give DATA, or --run FOLDER for the images that a run kept back"
        )
    # Of another shape: parts of square ones, as in training.
    parts = SizedMixture([shape], 1, 0, Stream.PARTS.seed(0), lambda side: build_mixture(recipe.data, side, split, 0))
    there = sum(map(len, parts.at_side[max(shape)].sources))
    images = fixed_images(parts, min(max_images or MOST_SPLIT_IMAGES, there))
    how = protocol(
        images, data="+".join(recipe.data.sources), split=split, resize="antialiased", crop="see recipe", tokenizer=tok
    )
    return images, how | {"recipe": to_dict(recipe.data)}


def _trained_on(tok: Any, data: Path) -> bool:
    """Whether a folder is one that the tokenizer's own recipe reads for training, or within it, or around it."""
    recipe = _own_recipe(tok)
    sources = () if recipe is None else recipe.data.sources.values()
    roots = [Path(root).resolve() for source in sources if source.weight and (root := getattr(source, "root", None))]
    data = data.resolve()
    return any(data == root or root in data.parents or data in root.parents for root in roots)


def _own_recipe(tok: Any) -> Any:
    """The recipe that trained a tokenizer, where that lies in its run's folder; None elsewhere."""
    return None if tok.folder is None else _recipe_of(tok.folder.resolve().parent)


def _recipe_of(run: Path) -> Any:
    """The recipe of a run's folder; None where there is none."""
    config = run / "config.yaml"
    if not config.is_file():
        return None
    from channelvq.train.run import load_recipe
    from channelvq.train.tokenizer_task import TokenizerRecipe

    return load_recipe(config, of=TokenizerRecipe)
