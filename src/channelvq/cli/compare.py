"""`cvq compare`: result files side by side."""

from pathlib import Path
from typing import Annotated

import typer

from channelvq.cli.options import JsonOption, MarkdownOption, outputs


def compare(
    results: Annotated[list[Path], typer.Argument(help="Result files; the others are compared with the first.")],
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A key of the protocol that may differ, such as libraries.torch."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Only records of this data, such as emoji.")] = None,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
) -> None:
    """Figures of result files in one table; results that were measured in different ways are refused."""
    import rich

    from channelvq.evaluate.compare import compare as run
    from channelvq.evaluate.results import write_json, write_text

    outputs(json_file, markdown, inputs=results)
    comparison = run(results, allow=allow or (), data=data)
    rich.print(comparison.table())
    for note in comparison.notes():
        typer.echo(note)
    if markdown:
        write_text(markdown, comparison.markdown())
    if json_file:
        write_json(json_file, comparison.to_dict())
