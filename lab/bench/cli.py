"""`python -m lab bench`: speed as ratios, measured in one run on this machine."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from channelvq.cli.options import JsonOption
from channelvq.outputs import check_outputs

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

    from lab.bench.lookup import load_cases, run, shown

    check_outputs([json_file])
    cases = load_cases(codes or [1024, 16384, 65536], dim or [256, 1024], rows, tokenizer)
    rich.print(shown(run(cases, rounds, json_file)).terminal())


@bench_app.command("passes")
def bench_passes(json_file: JsonOption = None) -> None:
    """Which arithmetics the exact lookup needs: rows that each pass is asked about, and the time without it."""
    import rich

    from lab.bench.passes import run, shown

    check_outputs([json_file])
    rich.print(shown(run(json_file)).terminal())


@bench_app.command("generate")
def bench_generate(
    codes: Annotated[list[int] | None, typer.Option(help="Codebook sizes. [default: 4096 65536]")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens of an image. [default: 64 256]")] = None,
    images: Annotated[list[int] | None, typer.Option(help="Images at once. [default: 1 8]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repetitions.")] = 5,
    json_file: JsonOption = None,
) -> None:
    """Sampling beside transformers' generate with the same weights, and the time to the first preview."""
    from itertools import product

    import rich
    from rich.console import Console

    from lab.bench.generate import check, run, shown

    check_outputs([json_file])
    settings = check([*product(codes or [4096, 65536], tokens or [64, 256], images or [1, 8])])
    rich.print(shown(run(settings, rounds, json_file, Console(stderr=True).print)).terminal())


@bench_app.command("onnx")
def bench_onnx(json_file: JsonOption = None) -> None:
    """The bundled tokenizers as ONNX: the decoder's weights as float32 and as int8, size, quality and time."""
    import rich

    from lab.bench.onnx_weights import run, shown

    check_outputs([json_file])
    rich.print(shown(run(json_file)).terminal())


@bench_app.command("latency")
def bench_latency(
    codes: Annotated[int, typer.Option(min=2, help="Codebook size.")] = 65536,
    images: Annotated[list[int] | None, typer.Option(min=1, help="Images at once. [default: 1 8]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved repetitions.")] = 7,
    json_file: JsonOption = None,
) -> None:
    """Image to tokens and text to image with many codes, channel-wise beside patch-wise."""
    import rich

    from lab.bench.latency import run, shown

    check_outputs([json_file])
    rich.print(shown(run(codes, images or [1, 8], rounds, json_file)).terminal())


@bench_app.command("codec")
def bench_codec(
    images: Annotated[int, typer.Option(min=2, help="Of each kind.")] = 24,
    scenes: Annotated[int, typer.Option(min=1, help="For the generator.")] = 24,
    json_file: JsonOption = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for the plot and the strip.")] = None,
) -> None:
    """Bytes against quality of .cvq files, beside JPEG, WebP, AVIF, JPEG XL and PCA."""
    import rich

    from lab.bench.codec import beside, run, shown

    check_outputs([json_file], pictures, overwrite=True)
    result = run(images, scenes, json_file, pictures)
    rich.print(shown(result).terminal())
    rich.print(beside(result).terminal())


@bench_app.command("codec-machines")
def bench_codec_machines(
    other: Annotated[list[Path] | None, typer.Option(help="A Python program that has another torch.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Whether .cvq files are the same under other threads, batches, instruction sets and torch versions."""
    import rich

    from lab.bench.codec_machines import run, shown

    check_outputs([json_file])
    rich.print(shown(run(other or [], json_file)).terminal())


@bench_app.command("train")
def bench_train(
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each kind, in turns.")] = 15,
    json_file: JsonOption = None,
) -> None:
    """A step of the engine beside a plain PyTorch loop, and the quantizer's share of a step of the paper's recipe."""
    import rich

    from lab.bench.train import run, shown

    check_outputs([json_file])
    rich.print(shown(run(rounds, json_file)).terminal())


@bench_app.command("packing")
def bench_packing(
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each kind, in turns.")] = 15,
    json_file: JsonOption = None,
) -> None:
    """A step of a generator in packed rows beside one with a row for each caption, short captions and long-tailed."""
    import rich

    from lab.bench.packing import run, shown

    check_outputs([json_file])
    rich.print(shown(run(rounds, json_file)).terminal())


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

    from channelvq.evaluate.results import write_json
    from lab.bench.reached import reached, shown

    check_outputs([json_file])
    figures = reached(run_dir, peak)
    rich.print(shown(figures).terminal())
    if json_file:
        write_json(json_file, figures)


@bench_app.command("serve")
def bench_serve(
    model: Annotated[str, typer.Option("--model", "-m", help="Of the server.")] = "bundled",
    clients: Annotated[list[int] | None, typer.Option(min=1, help="At once. [default: 1 8 50]")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of each number of clients.")] = 60,
    json_file: JsonOption = None,
) -> None:
    """`cvq serve` under load: throughput, time to the first partial image, answers that are lost or another's."""
    import rich

    from lab.bench.serve import run, shown

    check_outputs([json_file])
    rich.print(shown(run(model, clients or [1, 8, 50], seconds, json_file)).terminal())


@bench_app.command("llama-cpp")
def bench_llama_cpp(
    car: Annotated[str, typer.Option("--car", "-c", help="The generator to export.")] = "bundled",
    json_file: JsonOption = None,
) -> None:
    """Ids of llama.cpp from a GGUF export beside those of transformers; needs `pip install xllamacpp`."""
    import rich

    from lab.bench.llama_cpp import run, shown

    check_outputs([json_file])
    rich.print(shown(run(car, json_file)).terminal())


@bench_app.command("fuzz")
def bench_fuzz(
    inputs: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 10_000,
    kind: Annotated[list[str] | None, typer.Option(help="Only these; what the file holds of others stays.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Damaged and absurd inputs of every kind: refused in one line or taken, in bounded time and memory."""
    import rich

    from lab.bench.fuzz import run, shown

    check_outputs([json_file])
    rich.print(shown(run(inputs, json_file, kind)).terminal())


@bench_app.command("gpu")
def bench_gpu(
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu: with --tiny, to see that it runs.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="Sizes of no meaning that take seconds.")] = False,
    peak: Annotated[float, typer.Option(min=1e-6, help="TFLOP/s of the GPU in bfloat16 (989: H100, H200).")] = 989,
    limit: Annotated[float, typer.Option(min=1, help="Seconds of everything.")] = 480,
    json_file: JsonOption = None,
) -> None:
    """Lookup, steps of training, sampling and equality of ids on one GPU; a part that fails stops no other."""
    import rich

    from lab.bench.gpu import failed, run, shown

    check_outputs([json_file])
    result = run(device, peak, limit, json_file, tiny=tiny)
    rich.print(shown(result).terminal())
    if names := failed(result):
        typer.echo(f"failed: {', '.join(names)}", err=True)
        raise typer.Exit(1)


@bench_app.command("kills")
def bench_kills(
    kills: Annotated[int, typer.Option(min=1, help="In all.")] = 200,
    command: Annotated[list[str] | None, typer.Option(help="Only these; what the file holds of others stays.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Every command that writes, killed and given again: equal to an uninterrupted call, and nothing left over."""
    import rich

    from lab.bench.kills import run, shown

    check_outputs([json_file])
    rich.print(shown(run(kills, json_file, command)).terminal())


@bench_app.command("bulk")
def bench_bulk(
    images: Annotated[int, typer.Option(help="Small made pictures, in shards of a thousand.")] = 100_000,
    json_file: JsonOption = None,
) -> None:
    """`cvq data tokenize --engine ray`, killed twice: exactly once each, and its processor time beside a plain loop."""
    import rich

    from lab.bench.bulk import run, shown, shown_drill

    check_outputs([json_file])
    result = run(images, json_file)
    rich.print(shown_drill(result).terminal())
    rich.print(shown(result).terminal())


@bench_app.command("payloads")
def bench_payloads(json_file: JsonOption = None) -> None:
    """Code planted in every file that a stranger may have written, and how much of it is run by who reads it."""
    import rich

    from lab.bench.payloads import run, shown

    check_outputs([json_file])
    rich.print(shown(run(json_file)).terminal())


@bench_app.command("restart")
def bench_restart(json_file: JsonOption = None) -> None:
    """A rank of two is killed: it is named, torchrun begins again, training goes on from the checkpoint."""
    import rich

    from lab.bench.restart import run, shown

    check_outputs([json_file])
    rich.print(shown(run(json_file)).terminal())


@bench_app.command("ranks")
def bench_ranks(json_file: JsonOption = None) -> None:
    """One, two and four processes train the same tokenizer and the same generator: how far apart they end."""
    import rich

    from lab.bench.ranks import run, shown

    check_outputs([json_file])
    rich.print(shown(run(json_file)).terminal())


@bench_app.command("cost")
def bench_cost(
    tiny: Annotated[bool, typer.Option("--tiny", help="Sizes of no meaning that take seconds.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Time and memory of a step over tokens, codes, codeword size, batch and text length. About 10 minutes."""
    import rich

    from lab.bench.cost import run, shown, shown_heads, shown_paper

    check_outputs([json_file])
    result = run(json_file, tiny=tiny)
    for table in (shown, shown_heads, shown_paper):
        rich.print(table(result).terminal())
