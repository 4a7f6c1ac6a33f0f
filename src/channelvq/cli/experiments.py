"""`cvq experiment`: tables of the documentation, from stored results or made again."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from channelvq.cli.options import JsonOption, target
from channelvq.experiments.study_list import STUDIES

Result = dict[str, Any]
experiment_app = typer.Typer(
    no_args_is_help=True, help="Tables of the documentation: stored results, or trained again."
)
PackageOption = Annotated[Path, typer.Option(help="Where the package keeps its weights.")]
ResultsOption = Annotated[Path, typer.Option(help="Folder of result files.")]
StoredOption = Annotated[
    Path | None, typer.Option(help="The result that is read, or written by --rerun; default: the one in results/.")
]
RerunOption = Annotated[bool, typer.Option("--rerun", help="Train what is not in the store and measure again.")]


def _path(study: str) -> Path:
    return Path(f"results/{study}-small.json")


def _study(name: str, stored: Path | None, json_file: Path | None, rerun: bool) -> None:
    from channelvq.experiments import studies

    _show(partial(studies.run, name), studies.load, studies.table, stored or _path(name), json_file, rerun)


def _show(
    run: Callable[[Path], Result],
    load: Callable[[Path], Result],
    table: Callable[[Result], Any],
    path: Path,
    json_file: Path | None,
    rerun: bool,
) -> None:
    """Print a stored result, or a new one."""
    import rich

    from channelvq.evaluate.report import write_json

    target(file=json_file)
    if rerun:
        target(file=path)
    result = run(path) if rerun else load(path)
    rich.print(table(result))
    if json_file:
        write_json(json_file, result)


def _add_study(name: str, question: str) -> None:
    @experiment_app.command(name, help=question)
    def study(stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False) -> None:
        _study(name, stored, json_file, rerun)


for _name, _about in STUDIES.items():
    _add_study(_name, _about.question)


@experiment_app.command("bundle")
def experiment_bundle(
    run_dir: Annotated[Path, typer.Argument(help="A finished run of small/bundled.")] = Path("runs/bundled"),
    package: PackageOption = Path("src/channelvq/bundled"),
    results: ResultsOption = Path("results"),
) -> None:
    """Put a finished run into the package: half-precision weights, model card, PCA baseline, results."""
    from channelvq.experiments.bundled import bundle

    bundle(run_dir, package, results, "cvq train small/bundled")


@experiment_app.command("generator")
def experiment_generator(stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False) -> None:
    """Next-channel prediction: nested dropout or not, three sizes, exposure bias."""
    from channelvq.experiments import generator

    _show(generator.run, generator.load, generator.table, stored or _path("generator"), json_file, rerun)


@experiment_app.command("orderings")
def experiment_orderings(stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False) -> None:
    """Nested dropout beside channels sorted after training: every prefix, and the generator's nats."""
    from channelvq.experiments import orderings

    _show(orderings.run, orderings.load, orderings.table, stored or _path("orderings"), json_file, rerun)


@experiment_app.command("domains")
def experiment_domains(stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False) -> None:
    """The bundled tokenizer on other kinds of pictures, untouched and finetuned; where it fails, and what helps."""
    from channelvq.experiments import domains

    _show(domains.run, domains.load, domains.table, stored or Path("results/domains.json"), json_file, rerun)


@experiment_app.command("bundle-generator")
def experiment_bundle_generator(
    run_dir: Annotated[Path, typer.Argument(help="A finished run of small/scenes-car.")] = Path("runs/scenes-car"),
    package: PackageOption = Path("src/channelvq/bundled"),
    results: ResultsOption = Path("results"),
) -> None:
    """Put a finished generator into the package: half-precision weights, model card, results."""
    from channelvq.experiments.bundled_generator import bundle

    bundle(run_dir, package, results, "cvq train small/scenes-car")


@experiment_app.command("bundle-perceptual")
def experiment_bundle_perceptual(
    run_dir: Annotated[Path, typer.Argument(help="A finished run of small/perceptual.")] = Path("runs/perceptual"),
    package: PackageOption = Path("src/channelvq/bundled"),
    results: ResultsOption = Path("results"),
) -> None:
    """Put a finished perceptual network into the package: half-precision weights, model card, cross-style test."""
    from channelvq.experiments.bundled_perceptual import bundle

    bundle(run_dir, package, results, "cvq train small/perceptual")


@experiment_app.command("bundle-detector")
def experiment_bundle_detector(
    run_dir: Annotated[Path, typer.Argument(help="A finished run of small/detector.")] = Path("runs/detector"),
    package: PackageOption = Path("src/channelvq/bundled"),
    results: ResultsOption = Path("results"),
) -> None:
    """Put a finished detector into the package: half-precision weights, model card, scores on real scenes."""
    from channelvq.experiments.bundled_detector import bundle

    bundle(run_dir, package, results, "cvq train small/detector")


@experiment_app.command("geneval-sampling")
def experiment_geneval_sampling(
    stored: StoredOption = None, json_file: JsonOption = None, rerun: RerunOption = False
) -> None:
    """Guidance and temperature of the bundled generator, by GenEval on validation prompts."""
    from channelvq.experiments import geneval_sampling as study

    _show(study.run, study.load, study.table, stored or study.STORED, json_file, rerun)


@experiment_app.command("tables")
def experiment_tables(
    pages: Annotated[list[Path], typer.Argument(help="Markdown pages with <!-- table: NAME --> sections.")],
    results: ResultsOption = Path("results"),
) -> None:
    """Write the tables of pages anew from the result files."""
    from channelvq.experiments.tables import render

    for page in pages:
        page.write_text(render(page, results))
