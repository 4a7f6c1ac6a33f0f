"""The command `cvq`: parses, calls the library, prints. Heavy imports happen inside the commands."""

import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from channelvq.car.settings import SamplingSettings
from channelvq.cli.compare import compare
from channelvq.cli.data import data_app
from channelvq.cli.evaluate import evaluate_app
from channelvq.cli.inputs import batches, measured
from channelvq.cli.options import (
    DataArgument,
    GuidanceOption,
    JsonOption,
    MaxImagesOption,
    OutputOption,
    PrefixOption,
    SeedOption,
    TemperatureOption,
    TokenizerArgument,
    TokenizerOption,
    TopKOption,
    TopPOption,
    note_older,
    target,
)
from channelvq.errors import InputError

Precision = Literal["float32", "bfloat16", "float16"]
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.command()(compare)


def _output_name(number: int, source: str | Path) -> str:
    """Number and stem, safe in any file system; the number tells files of the same name apart."""
    stem = re.sub(r"[^-+@. \w]", "_", Path(source).stem)[:60]
    return f"{number:04d}-{stem}.png"


@app.command()
def tokenize(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    output: OutputOption = Path("tokens.json"),
    tokenizer: TokenizerOption = "bundled",
) -> None:
    """Images -> ids, as a JSON file."""
    from channelvq import CVQTokenizer
    from channelvq.evaluate.token_file import TokenRow, write_tokens

    target(file=output)
    tok = CVQTokenizer.from_pretrained(tokenizer)
    rows = []
    for names, pictures in batches(images, tok.image_size):
        ids = tok.tokenize(pictures).tolist()
        rows += [TokenRow(str(name), row) for name, row in zip(names, ids, strict=True)]
    write_tokens(output, tokenizer, tok, rows)
    typer.echo(f"{len(rows)} image(s), {tok.num_tokens} tokens each -> {output}")


@app.command()
def detokenize(
    tokens: Annotated[Path, typer.Argument(help="A file that `cvq tokenize` wrote.")],
    output: OutputOption = Path("decoded"),
    num_tokens: PrefixOption = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", help="Default: the one named in the file.")
    ] = None,
) -> None:
    """Ids -> images, from all tokens or any prefix of them."""
    from channelvq import CVQTokenizer
    from channelvq.evaluate.token_file import check_fits, decode_rows, read_tokens
    from channelvq.images import save_image

    target(folder=output)
    file = read_tokens(tokens)
    tok = CVQTokenizer.from_pretrained(tokenizer or file.tokenizer)
    check_fits(file, tokens, tok, num_tokens)
    written: list[Path] = []
    for number, image in decode_rows(tok, file.rows, num_tokens):
        written.append(output / _output_name(number, file.rows[number].image))
        save_image(image, written[-1])
    typer.echo(f"{len(file.rows)} image(s) -> {output}/")
    note_older(output, written)


@app.command()
def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    output: OutputOption = Path("reconstructed"),
    num_tokens: PrefixOption = None,
    tokenizer: TokenizerOption = "bundled",
) -> None:
    """Images -> tokens -> images: for each a strip of the original and 1, 2, 4, ... tokens."""
    from channelvq import CVQTokenizer
    from channelvq.images import save_image
    from channelvq.pictures import prefix_strips

    target(folder=output)
    tok = CVQTokenizer.from_pretrained(tokenizer)
    written: list[Path] = []
    for names, pictures in batches(images, tok.image_size):
        for name, picture in zip(names, prefix_strips(tok, pictures, num_tokens), strict=True):
            written.append(output / _output_name(len(written), name))
            save_image(picture, written[-1])
    typer.echo(f"{len(written)} strip(s) -> {output}/")
    note_older(output, written)


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several.")],
    car: Annotated[
        str, typer.Option("--car", "-c", help="'bundled', a folder written by save_pretrained, or a hub repository.")
    ] = "bundled",
    output: OutputOption = Path("generated"),
    stream: Annotated[Path | None, typer.Option(help="Also write the image as it gets richer to this folder.")] = None,
    every: Annotated[int, typer.Option(help="Tokens between two streamed images.")] = 8,
    seed: SeedOption = SamplingSettings.seed,
    num_tokens: PrefixOption = None,
    guidance_scale: GuidanceOption = SamplingSettings.guidance_scale,
    temperature: TemperatureOption = SamplingSettings.temperature,
    top_k: TopKOption = SamplingSettings.top_k,
    top_p: TopPOption = SamplingSettings.top_p,
) -> None:
    """Text -> images, by next-channel prediction."""
    from channelvq import CAR
    from channelvq.images import save_image

    target(folder=output)
    target(folder=stream)
    model = CAR.from_pretrained(car)
    done, written = None, list[Path]()
    steps = model.stream(
        prompts, every if stream else model.num_tokens, seed=seed, num_tokens=num_tokens,
        guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    for done in steps:
        for i, image in enumerate(done.images if stream else ()):
            written.append(Path(stream or "") / f"{i:04d}-{done.ids.shape[1]:04d}.png")
            save_image(image, written[-1])
    for i, image in enumerate(done.images if done else ()):
        written.append(output / f"{i:04d}.png")
        save_image(image, written[-1])
    typer.echo(f"{len(prompts)} image(s) -> {output}/")
    for folder in {output, stream or output}:
        note_older(folder, written)


@app.command()
def export(
    car: Annotated[str, typer.Argument(help="'bundled', a folder written by save_pretrained, or a hub repository.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    dtype: Annotated[Precision, typer.Option(help="Of the stored weights.")] = "float32",
) -> None:
    """CAR -> a stock causal language model for transformers, vLLM or SGLang."""
    import torch

    from channelvq import CAR
    from channelvq.car.export import export_car

    target(folder=output)
    layout = export_car(CAR.from_pretrained(car), output, getattr(torch, dtype))
    last = layout.first_image_id + layout.codebook_size - 1
    typer.echo(f"image tokens {layout.first_image_id}..{last} after the marker {layout.marker_id} -> {output}/")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, such as small/smoke, or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as train.steps=100.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Train by a recipe; the same command with train.resume=true goes on after a stop."""
    from channelvq.evaluate.results import write_json
    from channelvq.train.launch import leave
    from channelvq.train.run import load_recipe
    from channelvq.train.run import train as run

    target(file=json_file)
    config = load_recipe(recipe, overrides or ())
    figures = run(config)
    main_process = leave()
    if figures is None or not main_process:  # stopped; or a rank that did not evaluate
        return
    if json_file:
        write_json(json_file, {"recipe": recipe, "output_dir": config.train.output_dir, "metrics": figures})
    typer.echo(f"done: {config.train.output_dir}/final  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))


@app.command()
def recipes() -> None:
    """Names of the recipes that come with the library."""
    from channelvq.config import recipe_names

    typer.echo("\n".join(recipe_names()))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, such as paper/car-4b, or the path of a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs that share the weights' states.")] = 8,
    peak: Annotated[float, typer.Option(help="TFLOP/s of one GPU in the training precision (989: H100, bf16).")] = 989,
    mfu: Annotated[float, typer.Option(help="Share of the peak that training reaches.")] = 0.4,
    json_file: JsonOption = None,
) -> None:
    """What a recipe costs: parameters, tokens, FLOPs, memory, GPU-hours; built without memory."""
    import rich

    from channelvq.evaluate.results import write_json
    from channelvq.train.plan import Machine, table
    from channelvq.train.plan import plan as make
    from channelvq.train.run import load_recipe

    target(file=json_file)
    found = make(recipe, load_recipe(recipe, overrides or ()), Machine(gpus, peak, mfu))
    rich.print(table(found))
    if json_file:
        write_json(json_file, found.to_dict())


@app.command()
def doctor(
    tokenizer: TokenizerArgument,
    data: DataArgument,
    json_file: JsonOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write report.html and pictures here.")] = None,
    max_images: MaxImagesOption = None,
) -> None:
    """What ails a codebook: use, entropy, errors, dead and duplicate codes, each finding with its remedy."""
    import rich

    from channelvq.evaluate.doctor import page
    from channelvq.evaluate.doctor.examine import examine

    target(file=json_file, folder=output)
    tok, images, how = measured(tokenizer, data, max_images)
    report, seen = examine(tok, images)
    rich.print(page.text(report, tokenizer))
    if json_file:
        page.write_record(json_file, report, how)
    if output:
        typer.echo(f"report: {page.write_page(output, tokenizer, how['data'], tok, images, report, seen)}")


@app.command()
def report(
    car: Annotated[str, typer.Argument(help="'bundled', a folder written by save_pretrained, or a hub repository.")],
    output: OutputOption = Path("report"),
    recipe: Annotated[str, typer.Option(help="The recipe that trained it: it draws the held-out images.")] = (
        "small/bundled-car"
    ),
    prompts: Annotated[int, typer.Option(min=2, help="Held-out captions to draw.")] = 64,
    seeds: Annotated[int, typer.Option(min=2, help="Images of each.")] = 4,
    guidance_scale: GuidanceOption = SamplingSettings.guidance_scale,
    temperature: TemperatureOption = SamplingSettings.temperature,
    top_k: TopKOption = SamplingSettings.top_k,
    top_p: TopPOption = SamplingSettings.top_p,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also guidance 1 to 5 and two temperatures.")] = False,
    json_file: JsonOption = None,
) -> None:
    """An honest look at a generator: prediction, prompt, copies, diversity, guidance; report.html with pictures."""
    import rich

    from channelvq import CAR
    from channelvq.evaluate.results import write_json
    from channelvq.report.generator import ReportSettings, figures, run
    from channelvq.terminal import terminal_table
    from channelvq.train.car_task import CARRecipe
    from channelvq.train.run import load_recipe

    target(file=json_file, folder=output)
    sampling = SamplingSettings(guidance_scale, temperature, top_k, top_p)
    settings = ReportSettings(prompts, seeds, sampling, sweep)
    result = run(CAR.from_pretrained(car), car, load_recipe(recipe, of=CARRecipe), output, settings, typer.echo)
    rich.print(terminal_table(("figure", "value"), figures(result), car))
    if json_file:
        write_json(json_file, result)
    typer.echo(f"report: {output / 'report.html'}")


@app.command()
def demo(output: OutputOption = Path("demo"), json_file: JsonOption = None) -> None:
    """Tokenize pictures that the bundled tokenizer never saw; strips, a contact sheet and a table."""
    from channelvq.demo import run
    from channelvq.evaluate.results import write_json

    target(file=json_file, folder=output)
    rows = run(output)
    if json_file:
        write_json(json_file, [asdict(row) for row in rows])


def main() -> None:
    """Entry point of `cvq`."""
    guarded(app)


def guarded(command: Callable[[], object]) -> None:
    """Run a command: what a user can mend is one line on stderr and exit code 2, never a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, FloatingPointError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error) or repr(error))
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # how safetensors tells of a full disk or a broken file
            raise
        _fail(str(error))


def _show_warning(message: Warning | str, *_where: Any) -> None:
    """Where in the code a warning comes from helps no user."""
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
