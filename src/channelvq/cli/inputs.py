"""Images that commands are given: files, folders and named held-out sets."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from channelvq.errors import InputError
from channelvq.terminal import printable

BATCH_SIZE = 64  # images in memory at a time


def batches(paths: list[Path], size: int) -> Iterator[tuple[list[Path], list[Any]]]:
    """Names and resized images of files and folders, a batch at a time; what cannot be read is named and counted."""
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


def measured(tokenizer: str, data: Path, max_images: int | None, device: str) -> tuple[Any, Any, dict[str, Any]]:
    """The tokenizer, uint8 images (n, 3, h, w) of a folder or of a named held-out set, and their protocol."""
    import torch

    from channelvq import CVQTokenizer
    from channelvq.evaluate.held_out import DESCRIPTIONS, held_out, held_out_protocol
    from channelvq.evaluate.results import protocol
    from channelvq.images import to_tensor

    tok = CVQTokenizer.from_pretrained(tokenizer, device=device)
    if (name := str(data)) in DESCRIPTIONS and not data.exists():
        images = held_out(name, max_images or 768, tok.image_size)  # 12 N tokens of the bundled tokenizer
        return tok, images, held_out_protocol(name, images, tok)
    pictures = (picture for _, batch in batches([data], tok.image_size) for picture in batch)
    images = torch.stack([to_tensor(picture) for picture in islice(pictures, max_images)])
    how = {"split": "given", "resize": "antialiased", "crop": "centred square"}
    return tok, images, protocol(images, data=name, tokenizer=tok, **how)
