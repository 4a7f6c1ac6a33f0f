"""`cvq evaluate`: quality of tokenizers and generators on held-out data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from channelvq.cli.inputs import measured
from channelvq.cli.options import DataArgument, JsonOption, MaxImagesOption, TokenizerArgument, target
from channelvq.errors import InputError

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on held-out data.")


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    tokenizer: TokenizerArgument, data: DataArgument, json_file: JsonOption = None, max_images: MaxImagesOption = None
) -> None:
    """PSNR, SSIM and codebook use for 1, 2, 4, ... C tokens."""
    import rich

    from channelvq.evaluate.reconstruction import evaluate_reconstruction as run
    from channelvq.evaluate.report import write_json

    target(file=json_file)
    tok, images, how = measured(tokenizer, data, max_images)
    report = run(tok, images)
    rich.print(report.table())
    if json_file:
        write_json(json_file, {"protocol": how, "records": [{"metrics": report.to_dict()}]})


@evaluate_app.command("geneval")
def evaluate_geneval(
    car: Annotated[str, typer.Argument(help="A generator: 'bundled', a folder or a hub repository.")],
    json_file: JsonOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="GenEval's .jsonl, DPG-Bench's folder of .txt or MJHQ-30K's .json; default: closed world."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the images, as official scorers read it.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images a prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Image i uses seed + i.")] = 0,
    guidance_scale: Annotated[float, typer.Option(help="1 is no guidance.")] = 3.0,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1: all.")] = 1.0,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Of the closed world's prompts.")] = "test",
    detector: Annotated[str, typer.Option(help="'bundled', or a folder of cvq train small/detector.")] = "bundled",
) -> None:
    """GenEval over the classes of our scenes; with --prompts, images for the official scorers.

    The same command with --output goes on after a stop.
    """
    from channelvq import CAR
    from channelvq.evaluate.drawing import Sampling, settings_path
    from channelvq.evaluate.geneval_run import run_closed_world, run_file
    from channelvq.evaluate.prompt_files import read_prompts
    from channelvq.evaluate.report import write_json
    from channelvq.nn.detector import Detector

    target(file=json_file, folder=output)
    if output:
        target(file=settings_path(output))
    sampling = Sampling(seed, guidance_scale, temperature, top_k, top_p)
    file = read_prompts(prompts, samples) if prompts else None
    if file and not output:
        raise InputError("--prompts: give --output, the folder for the images")
    model, judge = CAR.from_pretrained(car), Detector.load(detector)
    with _progress("drawing") as progress:
        if file and output:
            result = run_file(model, judge, file, samples, sampling, output, progress)
        else:
            result = run_closed_world(model, judge, split, samples, sampling, output, progress)
    _tell(result)
    if json_file:
        write_json(json_file, result)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task(what)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def _tell(result: dict[str, Any]) -> None:
    """Scores as a table, or why there are none."""
    import rich

    from channelvq.evaluate.geneval_report import table

    if "generator" in result:
        rich.print(table(result))
        return
    typer.echo(f"{result['images']} file(s) for {result['benchmark']} in {result['folder']}")
    if outside := result.get("unknown_to_detector"):
        typer.echo(f"not scored here: the detector does not know {', '.join(outside)}; use the official scorer")
