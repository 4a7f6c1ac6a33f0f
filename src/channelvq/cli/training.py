"""`cvq train`, `recipes`, `show`, `plan`: a recipe from its name to its result, or what it would cost."""

import shlex
import shutil
import warnings
from textwrap import wrap
from typing import Annotated, Literal

import typer

from channelvq.cli.options import JsonOption, outputs


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, such as small/smoke, or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as train.steps=100.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The result and errors only.")] = False,
    log_level: Annotated[
        Literal["info", "warning", "error"], typer.Option(help="info: progress, warning: what may go wrong, error.")
    ] = "info",
    json_file: JsonOption = None,
) -> None:
    """Train by a recipe; the same command with train.resume=true goes on after a stop."""
    from channelvq.evaluate.results import write_json
    from channelvq.train.launch import exit_code, leave
    from channelvq.train.progress import LOGGER
    from channelvq.train.run import load_recipe
    from channelvq.train.run import train as run
    from channelvq.train.signals import StopSignals

    outputs(json_file, inputs=(recipe,))
    level = "error" if quiet else log_level
    LOGGER.setLevel(level.upper())
    if level == "error":
        warnings.simplefilter("ignore")
    config = load_recipe(recipe, overrides or ())
    signals = StopSignals()
    figures = run(config, command=shlex.join(["cvq", "train", recipe, *(overrides or ())]), signals=signals)
    main_process = leave()
    if figures is None and signals.received is not None:  # so that what stands behind `&&` does not begin
        raise typer.Exit(exit_code(signals.received))
    if figures is None or not main_process:  # a rank that did not evaluate
        return
    if json_file:
        write_json(json_file, {"recipe": recipe, "output_dir": config.train.output_dir, "metrics": figures})
    typer.echo(f"done: {config.train.output_dir}/final  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))


def recipes() -> None:
    """The recipes that come with the library, and what each is for."""
    from channelvq.config import recipe_names
    from channelvq.train.recipe_text import purpose

    names = recipe_names()
    column = max(map(len, names)) + 2
    width = max(column + 40, min(120, shutil.get_terminal_size((100, 20)).columns))
    for name in names:
        first, *rest = wrap(purpose(name), width - column) or [""]
        typer.echo(f"{name:{column}}{first}".rstrip())
        for line in rest:
            typer.echo(" " * column + line)


def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the path of a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")] = None,
) -> None:
    """A recipe with all of its settings and what each means, as YAML that `cvq train` takes."""
    from channelvq.train.recipe_text import shown
    from channelvq.train.run import load_recipe

    typer.echo(shown(recipe, load_recipe(recipe, overrides or ())), nl=False)


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, such as paper/car-4b, or the path of a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs that share the weights' states; none given: 8 for paper/..., else 1.")
    ] = None,
    peak: Annotated[float, typer.Option(help="TFLOP/s of one GPU in the training precision (989: H100, bf16).")] = 989,
    mfu: Annotated[float, typer.Option(help="Share of the peak that training reaches.")] = 0.4,
    timed: Annotated[
        bool, typer.Option("--time", help="Also take three steps here and tell the hours on this machine.")
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """What a recipe costs: parameters, tokens, FLOPs, memory, GPU-hours; built without memory."""
    import rich

    from channelvq.evaluate.results import write_json
    from channelvq.train.plan import Machine, table
    from channelvq.train.plan import plan as make
    from channelvq.train.run import load_recipe

    outputs(json_file, inputs=(recipe,))
    config = load_recipe(recipe, overrides or ())
    if gpus is None:
        gpus = 8 if recipe.startswith("paper/") else 1
    costs = make(recipe, config, Machine(gpus, peak, mfu))
    rich.print(table(costs))
    result = costs.to_dict()
    if timed:
        from channelvq.train.timing import time_steps

        here = time_steps(config)
        result["this_machine"] = here.to_dict()
        typer.echo(
            f"on this machine ({here.device}, {here.threads} threads): {here.seconds:.2f} s a step, "
            f"{here.hours:.2f} hours for {here.steps:,} steps, evaluations not counted"
        )
    if json_file:
        write_json(json_file, result)
