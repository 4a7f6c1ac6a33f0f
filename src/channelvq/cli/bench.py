"""`cvq bench`: speed as ratios, measured in one run on this machine."""

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
