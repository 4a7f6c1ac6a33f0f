"""`python -m lab`: studies, benches, tables, and the making of bundled weights. Torch is loaded inside the commands."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from channelvq.cli.options import JsonOption
from channelvq.errors import InputError
from channelvq.outputs import check_outputs
from lab.bench.cli import bench_app
from lab.listing import About, studies, study_module

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Questions about the product, with their stored answers; benches, tables, bundled weights.",
)
app.add_typer(bench_app, name="bench")
OWN_TASKS = ("perceptual", "detector")  # lab/bundle/NAME.yaml, and NAME_task.py registers the task
PackageOption = Annotated[Path, typer.Option(help="Where the package keeps its weights.")]
ResultsOption = Annotated[Path, typer.Option(help="Folder of result files.")]
StoredOption = Annotated[
    Path | None,
    typer.Option(help="The result that is read, or written by --rerun and --missing; default: the one in results/."),
]
RerunOption = Annotated[bool, typer.Option("--rerun", help="Train what is not in the store and measure all again.")]
MissingOption = Annotated[
    bool, typer.Option("--missing", help="Train and measure what the result lacks; it is written after each run.")
]
DeviceOption = Annotated[
    Literal["auto", "cuda"],
    typer.Option(help="Where it trains; auto: a GPU if there is one. cuda: not without one."),
]


def _add_study(name: str, about: About) -> None:
    """A command that shows a stored result, or makes it anew."""

    @app.command(name, help=f"{about.question} About {about.hours:g} h on 2 cores from an empty store.")
    def command(
        stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False,
        missing: MissingOption = False, device: DeviceOption = "auto",
    ) -> None:  # fmt: skip
        from channelvq.evaluate.results import write_json

        path = stored or Path("results") / about.result
        check_outputs([json_file])
        if device == "cuda":
            _check_cuda()
        module = study_module(name)
        if missing and not module.STUDY.grows:
            raise InputError(f"{name}: its records are made together; --rerun trains only what the store lacks")
        if rerun or missing:
            check_outputs([path])
            result = module.STUDY.run(path, **({"missing": True} if missing else {}))
        else:
            result = module.STUDY.load(path)
        _show(result, path, module.TABLES)
        if json_file:
            write_json(json_file, result)


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device here; leave --device out to train on the CPU")


def _show(result: dict[str, Any], path: Path, tables: dict[str, Any]) -> None:
    """Every table of a result; of one that still grows, those that it has the records for."""
    import rich

    from channelvq.evaluate.results import reading

    refused: list[InputError] = []
    for name, (_, show) in tables.items():
        try:
            with reading(path):
                table = show(result)
        except InputError as error:
            refused.append(error)
            continue
        typer.echo(f"{name}:")
        rich.print(table.terminal())
    if len(refused) == len(tables):
        raise refused[0]
    for error in refused:
        typer.echo(f"not shown: {error}", err=True)


for _name, _about in studies().items():
    _add_study(_name, _about)


@app.command("bundle")
def bundle(
    what: Annotated[
        Literal["tokenizer", "generator", "fashion", "perceptual", "detector", "tables"],
        typer.Argument(help="Which model; tables: the code tables of .cvq files, after the tokenizers."),
    ],
    run_dir: Annotated[
        Path | None, typer.Argument(help="A finished run of its recipe; default: where the recipe puts it.")
    ] = None,
    package: PackageOption = Path("src/channelvq/bundled"),
    results: ResultsOption = Path("results"),
) -> None:
    """Put a finished run into the package: small weights, model card, results."""
    from channelvq.train.run import load_recipe

    for folder in (package, results):
        check_outputs(folder=folder, overwrite=True)
    if what == "tables":  # counted, not trained
        import_module("lab.bundle.tables").bundle(package, typer.echo)
        return
    module = import_module(f"lab.bundle.{what}")
    trainer = "python -m lab" if what in OWN_TASKS else "cvq"
    run_dir = run_dir or Path(load_recipe(module.RECIPE).train.output_dir)
    module.bundle(run_dir, package, results, f"{trainer} train {module.RECIPE}")


@app.command("train")
def train(
    recipe: Annotated[str, typer.Argument(help=f"{' or '.join(OWN_TASKS)}, or what cvq train takes.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")] = None,
    json_file: JsonOption = None,
) -> None:
    """As cvq train, also for the lab's own tasks: the perceptual network and the detector."""
    from channelvq.cli.training import train as train_recipe

    for task in OWN_TASKS:
        import_module(f"lab.bundle.{task}_task")
    own = Path(__file__).parent / f"bundle/{recipe}.yaml"
    train_recipe(str(own) if recipe in OWN_TASKS else recipe, overrides, json_file=json_file)


@app.command("tables")
def tables(
    pages: Annotated[
        list[Path] | None,
        typer.Argument(help="Markdown with <!-- table: NAME --> sections; default: README.md and docs/."),
    ] = None,
    results: ResultsOption = Path("results"),
) -> None:
    """Write the tables of pages anew from the result files."""
    from channelvq.evaluate.results import write_text
    from lab.tables import declared, pages_with_tables, render

    known = declared()
    for page in pages or pages_with_tables():
        write_text(page, render(page, results, known))
