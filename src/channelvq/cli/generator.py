"""`cvq generate`, `export`, `report`: a generator at work, as a stock language model, and looked at honestly."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from channelvq.car.settings import SamplingSettings
from channelvq.cli.options import (
    MODEL_HELP,
    NUMBERED,
    DeviceOption,
    GuidanceOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    PrefixOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    note_older,
    outputs,
    parse_size,
)
from channelvq.devices import ExportedWeights
from channelvq.errors import InputError
from channelvq.terminal import printable

Precision = Literal["float32", "bfloat16", "float16"]


def generate(
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several.")],
    car: Annotated[str, typer.Option("--car", "-c", help=MODEL_HELP)] = "bundled",
    output: OutputOption = Path("generated"),
    stream: Annotated[Path | None, typer.Option(help="Also write the image as it gets richer to this folder.")] = None,
    every: Annotated[int, typer.Option(help="Tokens between two streamed images.")] = 8,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Of each prompt.")] = 1,
    start: Annotated[Path | None, typer.Option("--from", help="A picture whose first tokens stay.")] = None,
    keep: Annotated[int | None, typer.Option(help="With --from: how many of its tokens; default: an eighth.")] = None,
    size: Annotated[str | None, typer.Option(help="Of the images: 96, or 96x128 (height x width).")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also write all images as one, a row for each prompt.")] = None,
    seed: SeedOption = SamplingSettings.seed,
    num_tokens: PrefixOption = None,
    guidance_scale: GuidanceOption = SamplingSettings.guidance_scale,
    temperature: TemperatureOption = SamplingSettings.temperature,
    top_k: TopKOption = SamplingSettings.top_k,
    top_p: TopPOption = SamplingSettings.top_p,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Text -> images, by next-channel prediction."""
    from channelvq import CAR
    from channelvq.images import grid, save_image

    if keep is not None and start is None:
        raise InputError("--keep goes with --from, the picture whose tokens stay")
    asked = parse_size(size)
    outputs(sheet, folder=output, inputs=(car, start), own=NUMBERED, overwrite=overwrite)
    if stream is not None and stream.resolve() != output.resolve():
        outputs(folder=stream, inputs=(car, start), own=NUMBERED, overwrite=overwrite)
    model = CAR.from_pretrained(car, device=device)
    done, written = None, list[Path]()
    steps = model.stream(
        prompts, every if stream else model.num_tokens, seed=seed, num_tokens=num_tokens, size=asked,
        negative_prompt=negative_prompt, num_images_per_prompt=num_images,
        prefix_ids=None if start is None else _kept(model, start, keep).expand(len(prompts), -1),
        guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    for done in steps:
        for i, image in enumerate(done.images if stream else ()):
            written.append(Path(stream or "") / f"{i:04d}-{done.ids.shape[1]:04d}.png")
            save_image(image, written[-1])
    for i, image in enumerate(done.images if done else ()):
        written.append(output / f"{i:04d}.png")
        save_image(image, written[-1])
    count = len(prompts) * num_images
    richer = f", and as they get richer -> {stream}/" if stream is not None else ""
    typer.echo(printable(f"{count} image(s) -> {output}/{richer}"))
    if sheet is not None and done is not None:
        captions = [prompt if i == 0 else "" for prompt in prompts for i in range(num_images)]
        save_image(grid(done.images, num_images, captions=captions), sheet)
    for folder in {output, stream or output}:
        note_older(folder, written)


def _kept(model: Any, picture: Path, keep: int | None) -> Any:
    """The first tokens of a picture, (1, k)."""
    from channelvq.checks import check_whole_number

    most = model.num_tokens
    count = max(1, most // 8) if keep is None else check_whole_number("keep", keep, 1, most)
    return model.tokenizer.tokenize(picture)[:, :count]


def export(
    model: Annotated[str, typer.Argument(help=f"A generator, or with --format onnx a tokenizer: {MODEL_HELP}")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    kind: Annotated[
        Literal["transformers", "gguf", "onnx"],
        typer.Option(
            "--format", help="transformers, or gguf for llama.cpp: a generator; onnx: a tokenizer as two .onnx files."
        ),
    ] = "transformers",
    dtype: Annotated[Precision, typer.Option(help="Of the stored weights; gguf and onnx: float32 alone.")] = "float32",
    weights: Annotated[
        ExportedWeights,
        typer.Option(
            help="int8: with gguf the matrices in blocks of 32 (Q8_0), with onnx the decoder's: a quarter of the size."
        ),
    ] = "float32",
    overwrite: OverwriteOption = False,
) -> None:
    """A generator as a stock language model for transformers, vLLM, SGLang or llama.cpp; a tokenizer as ONNX."""
    if kind == "transformers" and weights != "float32":
        raise InputError(
            f"--weights {weights} is for --format gguf and onnx; a generator for transformers has --dtype bfloat16"
        )
    if kind != "transformers" and dtype != "float32":
        raise InputError(f"--dtype {dtype}: {kind} is written in float32; leave --dtype out")
    if kind == "onnx":
        _export_tokenizer(model, output, weights, overwrite)
    else:
        _export_generator(model, output, dtype, None if kind == "transformers" else weights, overwrite)


def _export_generator(car: str, output: Path, dtype: Precision, gguf: ExportedWeights | None, overwrite: bool) -> None:
    import torch

    from channelvq import CAR
    from channelvq.car.export import LAYOUT_FILE, export_car
    from channelvq.car.gguf_export import check_extra, export_gguf

    if gguf is not None:
        check_extra()  # before the model is loaded
    outputs(folder=output, inputs=(car,), own=(LAYOUT_FILE,), overwrite=overwrite)
    model = CAR.from_pretrained(car)
    layout = export_car(model, output, getattr(torch, dtype)) if gguf is None else export_gguf(model, output, gguf)
    typer.echo(
        f"image tokens {layout.first_image_id}..{layout.last_image_id} after the marker {layout.marker_id} -> {output}/"
    )


def _export_tokenizer(tokenizer: str, output: Path, weights: ExportedWeights, overwrite: bool) -> None:
    from channelvq import CVQTokenizer
    from channelvq.onnx_export import DECODER, ENCODER, LAYOUT_FILE, check_extra, export_onnx

    check_extra()  # before the model is loaded
    outputs(folder=output, inputs=(tokenizer,), own=(LAYOUT_FILE,), overwrite=overwrite)
    check = export_onnx(CVQTokenizer.from_pretrained(tokenizer), output, weights)
    typer.echo(
        f"{ENCODER}, {DECODER} -> {output}/; by onnxruntime on probe images: {check.ids} ids compared, "
        f"{check.different_ids} differ; pixels differ by up to {check.largest_difference} of 255"
    )


def report(
    car: Annotated[str, typer.Argument(help=MODEL_HELP)],
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
    device: DeviceOption = "auto",
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """An honest look at a generator: prediction, prompt, copies, diversity, guidance; report.html with pictures."""
    import rich

    from channelvq import CAR
    from channelvq.evaluate.results import write_json
    from channelvq.report.generator import ReportSettings, figures, run
    from channelvq.terminal import terminal_table
    from channelvq.train.car_task import CARRecipe
    from channelvq.train.run import load_recipe

    outputs(json_file, folder=output, inputs=(car, recipe), own=("report.html",), overwrite=overwrite)
    sampling = SamplingSettings(guidance_scale, temperature, top_k, top_p)
    settings = ReportSettings(prompts, seeds, sampling, sweep)
    model = CAR.from_pretrained(car, device=device)
    result = run(model, car, load_recipe(recipe, of=CARRecipe), output, settings, typer.echo)
    rich.print(terminal_table(("figure", "value"), figures(result), car))
    if json_file:
        write_json(json_file, result)
    typer.echo(f"report: {output / 'report.html'}")
