"""`python -m lab`: studies, benches, bundles and tables; from stored results or made again."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from channelvq.cli.options import JsonOption, target
from channelvq.errors import InputError
from lab.bench.cli import bench_app
from lab.study_list import STUDIES

Result = dict[str, Any]
Run = Callable[[Path], Result]
Load = Callable[[Path], Result]
Show = Callable[[Result], Any]
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Tables of the documentation: stored results, or trained again.",
)
app.add_typer(bench_app, name="bench")
PackageOption = Annotated[Path, typer.Option(help="Where the package keeps its weights.")]
ResultsOption = Annotated[Path, typer.Option(help="Folder of result files.")]
StoredOption = Annotated[
    Path | None, typer.Option(help="The result that is read, or written by --rerun; default: the one in results/.")
]
RerunOption = Annotated[bool, typer.Option("--rerun", help="Train what is not in the store and measure again.")]
MissingOption = Annotated[
    bool, typer.Option("--missing", help="Train and measure what the result lacks; it is written after each run.")
]
ScaleOption = Annotated[
    Literal["small"],
    typer.Option(
        help="Of the recipes: 64 px, on two cores. Larger recipes are trained by cvq train, see paper/ and gpu/."
    ),
]
DeviceOption = Annotated[
    Literal["auto", "cuda"],
    typer.Option(help="Where it trains; auto: a GPU if there is one. cuda: not without one."),
]
# Beside the studies of recipes: the module by the command's name, the result file, about how many hours all of it takes
# on two cores, and what it answers.
OTHERS = {
    "generator": ("generator-small", 2.5, "Next-channel prediction: nested dropout or not, three sizes, exposure "
                  "bias."),
    "car-tokens": ("car-tokens-small", 4, "Generators on channels, nested or not, and on patches: what they draw, "
                   "by GenEval."),
    "orderings": ("orderings-small", 1.5, "Nested dropout beside channels sorted after training: every prefix, and the "
                  "generator's nats."),
    "domains": ("domains", 0.3, "The bundled tokenizer on other kinds of pictures, untouched and finetuned; where it "
                "fails, and what helps."),
    "geneval-sampling": ("geneval-sampling", 0.3, "Guidance and temperature of the bundled generator, by GenEval on "
                         "validation prompts."),
}  # fmt: skip
# The recipe of the run, and what is put into the package.
BUNDLES = {
    "bundle": ("small/bundled", "run into the package: half-precision weights, model card, PCA baseline, results."),
    "bundle-generator": ("small/bundled-car", "generator into the package: half-precision weights, model card, "
                         "results."),
    "bundle-perceptual": ("lab/bundle/perceptual.yaml", "perceptual network into the "
                          "package: half-precision weights, model card, cross-style test."),
    "bundle-detector": ("lab/bundle/detector.yaml", "detector into the package: "
                        "half-precision weights, model card, scores on real scenes."),
}  # fmt: skip


def _show(
    run: Run,
    load: Load,
    table: Show,
    path: Path,
    json_file: Path | None,
    rerun: bool,
) -> None:
    """Print a stored result, or a new one."""
    import rich

    from channelvq.evaluate.results import reading, write_json

    target(file=json_file)
    if rerun:
        target(file=path)
    result = run(path) if rerun else load(path)
    with reading(path):
        shown = table(result)
    rich.print(shown)
    if json_file:
        write_json(json_file, result)


def _add(name: str, question: str, path: Path, study: Callable[[], tuple[Run, Load, Show]]) -> None:
    """A command that shows a stored result or makes it anew; study: loads what that takes, when it is called."""

    @app.command(name, help=question)
    def command(stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False) -> None:
        _show(*study(), stored or path, json_file, rerun)


def _add_growing(name: str, question: str, path: Path, study: Callable[[], tuple[Any, Load, Show]]) -> None:
    """As `_add`, for a study whose result may grow run by run."""

    @app.command(name, help=question)
    def command(
        stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False,
        missing: MissingOption = False, scale: ScaleOption = "small", device: DeviceOption = "auto",
    ) -> None:  # fmt: skip
        _check_device(device)
        run, load, table = study()
        _show(partial(run, missing=missing), load, table, stored or path, json_file, rerun or missing)


def _check_device(device: str) -> None:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no CUDA device here; leave --device out to train on the CPU")


def _study(name: str) -> tuple[Any, Load, Show]:
    from lab import study as studies

    return partial(studies.run, name), studies.load, studies.table


def _module(name: str) -> tuple[Any, Load, Show]:
    module = import_module(f"lab.studies.{name}")
    return module.run, module.load, module.table


def _with_budget(question: str, hours: float) -> str:
    return f"{question} About {hours:g} h on 2 cores from an empty store."


for _name, _about in STUDIES.items():
    _path = Path(f"results/{_name}-small.json")
    _add_growing(_name, _with_budget(_about.question, _about.hours), _path, partial(_study, _name))
for _name, (_file, _hours, _question) in OTHERS.items():
    _new = _add_growing if _name == "car-tokens" else _add
    _path = Path(f"results/{_file}.json")
    _new(_name, _with_budget(_question, _hours), _path, partial(_module, _name.replace("-", "_")))


def _add_bundle(name: str, recipe: str, what: str) -> None:
    """A command that puts a finished run of a recipe into the package."""
    usual = Path(f"runs/{recipe.removeprefix('small/')}")

    @app.command(name, help=f"Put a finished {what}")
    def command(
        run_dir: Annotated[Path, typer.Argument(help=f"A finished run of {recipe}.")] = usual,
        package: PackageOption = Path("src/channelvq/bundled"),
        results: ResultsOption = Path("results"),
    ) -> None:
        for folder in (package, results):
            target(folder=folder)
        module = import_module(f"lab.bundle.{name.removeprefix('bundle').lstrip('-') or 'tokenizer'}")
        module.bundle(run_dir, package, results, f"cvq train {recipe}")


for _name, (_recipe, _what) in BUNDLES.items():
    _add_bundle(_name, _recipe, _what)


@app.command("tables")
def experiment_tables(
    pages: Annotated[list[Path], typer.Argument(help="Markdown pages with <!-- table: NAME --> sections.")],
    results: ResultsOption = Path("results"),
) -> None:
    """Write the tables of pages anew from the result files."""
    from channelvq.evaluate.results import write_text
    from lab.tables import render

    for page in pages:
        write_text(page, render(page, results))
