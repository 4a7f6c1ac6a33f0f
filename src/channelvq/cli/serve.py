"""`cvq serve`: a generator behind OpenAI's images API."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from channelvq.cli.options import MODEL_HELP, DeviceOption
from channelvq.errors import InputError


def serve(
    model: Annotated[str, typer.Option("--model", "-m", help=f"Its name for clients, too. {MODEL_HELP}")] = "bundled",
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in; then give --api-key-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with the key that clients must send.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="http://HOST:PORT of vLLM, SGLang, llama.cpp, ... that serves the export which --model is."),
    ] = None,
    backend_model: Annotated[str | None, typer.Option(help="Its name there; default: the one that is listed.")] = None,
    backend_key_file: Annotated[Path | None, typer.Option(help="A file with the backend's API key.")] = None,
    device: DeviceOption = "cpu",
    batches: Annotated[int, typer.Option(help="Of 8 images, at once; more pay on a GPU.")] = 1,
    max_images: Annotated[int, typer.Option(help="Images of a request.")] = 10,
    max_waiting: Annotated[int, typer.Option(help="Images that may wait; then 429.")] = 128,
    timeout: Annotated[float, typer.Option(help="Seconds in which a request must be answered.")] = 120.0,
) -> None:
    """An HTTP server with OpenAI's images API: text to images, images to ids and back."""
    try:
        from channelvq.serve.backend import Backend
        from channelvq.serve.server import read_key
        from channelvq.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise InputError(
            f"cvq serve needs {error.name}, which is not installed: pip install 'channelvq[serve]'"
        ) from None
    from channelvq import CAR
    from channelvq.car.exported import Exported
    from channelvq.serve.limits import Limits

    limits = Limits(images=max_images, waiting=max_waiting, batches=batches, seconds=timeout)
    key = None if api_key_file is None else read_key(api_key_file)
    if key is None and host not in ("127.0.0.1", "::1", "localhost"):
        typer.echo(f"warning: whoever reaches {host}:{port} can draw images; give --api-key-file", err=True)
    if backend is None and (backend_model or backend_key_file):
        raise InputError("--backend-model and --backend-key-file go with --backend")
    with ExitStack() as stack:
        drawn: CAR | Backend
        if backend is None:
            drawn = CAR.from_pretrained(model, device=device)
        else:
            backend_key = None if backend_key_file is None else read_key(backend_key_file)
            drawn = stack.enter_context(
                Backend(backend, Exported(model, device), model=backend_model, key=backend_key, seconds=timeout)
            )
        typer.echo(f"http://{host}:{port}/v1 serves {model!r}; http://{host}:{port}/docs describes it", err=True)
        run(drawn, model, host, port, limits, key)
