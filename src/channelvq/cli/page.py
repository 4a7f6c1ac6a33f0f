"""`cvq app`: the page on which tokens can be seen and changed."""

from typing import Annotated, Any

import typer

from channelvq.cli.options import MODEL_HELP, DeviceOption
from channelvq.errors import InputError


def app(
    model: Annotated[str, typer.Option("--model", "-m", help=f"The generator. {MODEL_HELP}")] = "bundled",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "-t",
            help=f"Of the tabs Tokenize and Codebook; default: the generator's own, but for 'bundled' "
            f"the better one of that name. {MODEL_HELP}",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1; other machines cannot reach it.")] = 7860,
    device: DeviceOption = "cpu",
) -> None:
    """A page in the browser: pictures as tokens, pictures from text, the codebook. It asks nothing of the network."""
    try:
        from channelvq.app.page import run
    except ModuleNotFoundError as error:
        raise InputError(f"cvq app needs {error.name}, which is not installed: pip install 'channelvq[app]'") from None

    def load() -> Any:
        from channelvq import CAR, CVQTokenizer
        from channelvq.app.studio import Studio

        name = tokenizer or ("bundled" if model == "bundled" else None)
        other = CVQTokenizer.from_pretrained(name, device=device) if name else None
        return Studio(CAR.from_pretrained(model, device=device), other)

    run(load, port, lambda address: typer.echo(f"{address} (Ctrl-C ends it)", err=True))
