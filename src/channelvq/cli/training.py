"""`cvq train`, `recipes`, `plan`: a recipe from its name to its result, or what it would cost."""

from typing import Annotated

import typer

from channelvq.cli.options import JsonOption, outputs


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

    outputs(json_file, inputs=(recipe,))
    config = load_recipe(recipe, overrides or ())
    figures = run(config)
    main_process = leave()
    if figures is None or not main_process:  # stopped; or a rank that did not evaluate
        return
    if json_file:
        write_json(json_file, {"recipe": recipe, "output_dir": config.train.output_dir, "metrics": figures})
    typer.echo(f"done: {config.train.output_dir}/final  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))


def recipes() -> None:
    """Names of the recipes that come with the library."""
    from channelvq.config import recipe_names

    typer.echo("\n".join(recipe_names()))


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

    outputs(json_file, inputs=(recipe,))
    costs = make(recipe, load_recipe(recipe, overrides or ()), Machine(gpus, peak, mfu))
    rich.print(table(costs))
    if json_file:
        write_json(json_file, costs.to_dict())
