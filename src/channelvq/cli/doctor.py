"""`cvq doctor`: what ails a codebook."""

from pathlib import Path
from typing import Annotated

import typer

from channelvq.cli.inputs import measured
from channelvq.cli.options import (
    DataArgument,
    DeviceOption,
    JsonOption,
    MaxImagesOption,
    OverwriteOption,
    SplitOption,
    TokenizerArgument,
    outputs,
)


def doctor(
    tokenizer: TokenizerArgument,
    data: DataArgument = None,
    split: SplitOption = None,
    json_file: JsonOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write report.html and pictures here.")] = None,
    max_images: MaxImagesOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """What ails a codebook: use, entropy, errors, dead and duplicate codes, each finding with its remedy."""
    import rich

    from channelvq.evaluate.doctor import page
    from channelvq.evaluate.doctor.examine import examine
    from channelvq.evaluate.plots import check_plot
    from channelvq.terminal import counted

    if output:
        check_plot()  # before minutes of work
    outputs(json_file, folder=output, inputs=(tokenizer, data), own=("report.html",), overwrite=overwrite)
    tok, images, how = measured(tokenizer, data, max_images, device, split)
    with counted("examining") as progress:
        report, seen = examine(tok, images, progress)
    rich.print(page.text(report, tokenizer))
    if json_file:
        page.write_record(json_file, report, how)
    if output:
        typer.echo(f"report: {page.write_page(output, tokenizer, how['data'], tok, images, report, seen)}")
