"""`cvq bench`: speed as ratios, measured in one run on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from channelvq.cli.options import JsonOption, target

bench_app = typer.Typer(no_args_is_help=True, help="Speed beside other implementations, in one interleaved run.")


@bench_app.command("lookup")
def bench_lookup(
    codes: Annotated[list[int] | None, typer.Option(help="Codebook sizes. [default: 1024 16384 65536]")] = None,
    dim: Annotated[list[int] | None, typer.Option(help="Numbers in a codeword. [default: 256 1024]")] = None,
    rows: Annotated[int, typer.Option(help="Vectors looked up at once.")] = 2048,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repetitions.")] = 7,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Also its codebook and tokens.")] = None,
    json_file: JsonOption = None,
) -> None:
    """The exact nearest-codeword lookup beside cdist, the expanded square, vector-quantize-pytorch and faiss."""
    import rich

    from channelvq.experiments.lookup_bench import load_cases, run, table

    target(file=json_file)
    cases = load_cases(codes or [1024, 16384, 65536], dim or [256, 1024], rows, tokenizer)
    rich.print(table(run(cases, rounds, json_file)))


@bench_app.command("train")
def bench_train(
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each kind, in turns.")] = 15,
    json_file: JsonOption = None,
) -> None:
    """A step of the engine beside a plain PyTorch loop, and the quantizer's share of a step of the paper's recipe."""
    import rich

    from channelvq.experiments.train_bench import run, table

    target(file=json_file)
    rich.print(table(run(rounds, json_file)))


@bench_app.command("run")
def bench_run(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run, finished or not.")],
    peak: Annotated[
        float, typer.Option(min=1e-6, help="TFLOP/s of one GPU in the training precision (989: H100, bf16).")
    ] = 989,
    json_file: JsonOption = None,
) -> None:
    """What a run has reached: images a second, peak of memory, share of the machine's FLOPs (MFU)."""
    import rich

    from channelvq.evaluate.report import write_json
    from channelvq.train.reached import reached, table

    target(file=json_file)
    found = reached(run_dir, peak)
    rich.print(table(found))
    if json_file:
        write_json(json_file, found)
