"""`cvq evaluate`: quality of tokenizers and generators on held-out data."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from channelvq.car.settings import SamplingSettings
from channelvq.cli.inputs import measured, training_data
from channelvq.cli.options import (
    MODEL_HELP,
    DataArgument,
    DeviceOption,
    GuidanceOption,
    JsonOption,
    MarkdownOption,
    MaxImagesOption,
    OverwriteOption,
    SeedOption,
    SplitOption,
    TemperatureOption,
    TokenizerArgument,
    TopKOption,
    TopPOption,
    outputs,
    parse_size,
)
from channelvq.errors import InputError
from channelvq.terminal import counted

evaluate_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure a model on held-out data.")
DRAWN = ("[0-9]*", "*.png", "*.jpg")  # what the official scorers call images and their folders
NATS_IMAGES = 8192  # that the predictor learns from
BASELINE_IMAGES = 256  # JPEG and WebP are searched for each image and budget
FeaturesOption = Annotated[
    str,
    typer.Option(
        "--features",
        help="Network of the distances between sets: inception (FID), bundled, a folder, none, or auto.",
    ),
]
PcaOption = Annotated[
    str | None, typer.Option(help="PCA on the plot, a file of PCABaseline.save; default: the bundled one at 64 px.")
]


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    tokenizer: TokenizerArgument,
    data: DataArgument = None,
    split: SplitOption = None,
    of_run: Annotated[
        Path | None, typer.Option("--run", help="With --split: of what this run trains on, whatever the tokenizer.")
    ] = None,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw PSNR against bytes, with PCA, JPEG and WebP, to this file.")
    ] = None,
    target_psnr: Annotated[float | None, typer.Option(help="Name the smallest prefix with this mean PSNR.")] = None,
    max_images: MaxImagesOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in work at a time; no figure depends on it.")] = 64,
    features: FeaturesOption = "auto",
    nats: Annotated[
        bool, typer.Option("--nats", help="Also how well a small model predicts the tokens: minutes.")
    ] = False,
    per_image: Annotated[bool, typer.Option(help="Keep the values of each image in the JSON file.")] = True,
    pca: PcaOption = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Measure at 96 or 96x128 (height x width). Without a resampler pictures are resized before and after."
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Quality, distances and codebook use for 1, 2, 4, ... C tokens."""
    import rich

    from channelvq.evaluate.measures import choose_measures
    from channelvq.evaluate.plots import check_plot
    from channelvq.evaluate.reconstruction import evaluate_reconstruction as run
    from channelvq.evaluate.results import machine, make_record, write_json, write_text

    outputs(json_file, markdown, plot, inputs=(tokenizer, data, pca, features))
    if plot:
        check_plot(plot)
    if nats and size is not None:
        raise InputError("--nats: the small model learns from tokens of the home size; leave --size out")
    tok, images, how = measured(tokenizer, data, max_images, device, split, parse_size(size), of_run)
    shape = (images.shape[2], images.shape[3])
    measures = choose_measures(min(shape), features, tok.device)
    how |= measures.protocol(len(images))
    baseline = _load_pca(pca, shape) if plot else None
    sources = training_data(tok, data) if nats else None
    began = time.perf_counter()
    report = run(_at_size(tok, shape), images, batch_size=batch_size, measures=measures)
    seconds = time.perf_counter() - began
    rich.print(report.table())
    record = make_record(tok.config, data=data or how["data"], split=how["split"], metrics=report.to_dict())
    record |= {"tokenizer": tokenizer, "evaluation_seconds": seconds, "images_per_second": len(images) / seconds}
    record["machine"] = machine()
    if target_psnr is not None:
        record["target_psnr"] = _target(report, target_psnr)
    if sources is not None:
        record["predictability"] = _predictability(tok, sources, images)
    if per_image:
        record["per_image"] = report.per_image()
    if markdown:
        write_text(markdown, report.markdown())
    result = {"protocol": how, "records": [record]}
    if json_file:
        write_json(json_file, result)
    if plot:  # what is measured already is kept, whatever happens here
        record["baselines"] = _plot(plot, report, images, *(baseline or (None, None)))
        if json_file:
            write_json(json_file, result)


def _at_size(tok: Any, shape: tuple[int, int]) -> Any:
    from channelvq.evaluate.resized import Resized

    return tok if tok.resampler is not None or shape == (tok.image_size,) * 2 else Resized(tok, shape)


def _predictability(tok: Any, sources: Any, images: Any) -> dict[str, Any]:
    """The nats of the fixed predictor, on the terminal and as data."""
    from channelvq.evaluate.predictability import predictability
    from channelvq.images import normalize
    from channelvq.train.car_task import token_set

    train = token_set(sources, tok, "train", NATS_IMAGES).ids
    with counted("predicting") as progress:
        found = predictability(tok, train, tok.tokenize(normalize(images)).cpu(), progress=progress)
    (low, high), image = found.nats_interval, found.nats * found.tokens
    typer.echo(
        f"nats a token by a small model: {found.nats:.3f} ({low:.3f} to {high:.3f}), {image:.1f} an image; by counts "
        f"alone {found.nats_counts:.3f}"
    )
    return found.to_dict()


def _target(report: Any, psnr: float) -> dict[str, Any]:
    """The smallest prefix that reaches a PSNR, on the terminal and as data."""
    shortest = report.smallest_prefix_for(psnr)
    if shortest is None:
        typer.echo(f"no prefix has {psnr:g} dB: all {report.prefixes[-1].num_tokens} tokens have "
                   f"{report.prefixes[-1].psnr.mean:.2f} dB")  # fmt: skip
        return {"psnr": psnr, "tokens": None, "bytes": None}
    typer.echo(f"{psnr:g} dB: {shortest.num_tokens} tokens, {shortest.num_bytes} bytes ({shortest.psnr.mean:.2f} dB)")
    return {"psnr": psnr, "tokens": shortest.num_tokens, "bytes": shortest.num_bytes}


def _load_pca(given: str | None, size: tuple[int, int]) -> tuple[str, Any] | None:
    """The name and the baseline to draw, of images of (height, width); None where there is none."""
    from channelvq.evaluate.baselines import PCABaseline

    source = given or ("bundled" if size == (64, 64) else None)
    if source is None:
        typer.echo("no PCA on the plot: the bundled one is for 64 px, give one with --pca", err=True)
        return None
    baseline = PCABaseline.load(source)
    if (baseline.height, baseline.width) != size:
        raise InputError(
            f"--pca {source}: fitted on images of {baseline.height} x {baseline.width}, expected {size[0]} x {size[1]}"
        )
    return source, baseline


def _plot(path: Path, report: Any, images: Any, source: str | None, pca: Any) -> dict[str, Any]:
    """Draw the report beside the baselines; returns these as data. pca: of `_load_pca`, or None."""
    from channelvq.evaluate.baselines import PROTOCOL, baseline_curves
    from channelvq.evaluate.plots import quality_against_bytes

    shown = images[:BASELINE_IMAGES]
    curves = baseline_curves(shown, [prefix.num_bytes for prefix in report.prefixes], pca)
    quality_against_bytes(report, curves, path, note=f"baselines: {len(shown)} of {len(images)} images")
    points = {name: [point.to_dict() for point in curve] for name, curve in curves.items()}
    return {"images": f"the first {len(shown)}", "pca": source, "protocol": PROTOCOL, "curves": points}


@evaluate_app.command("geneval")
def evaluate_geneval(
    car: Annotated[str, typer.Argument(help=f"A generator: {MODEL_HELP}")],
    json_file: JsonOption = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="GenEval's .jsonl, DPG-Bench's folder of .txt or MJHQ-30K's .json; default: closed world."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for official scorers; goes on after a stop."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images a prompt; MJHQ-30K has one.")] = 4,
    seed: SeedOption = SamplingSettings.seed,
    guidance_scale: GuidanceOption = SamplingSettings.guidance_scale,
    temperature: TemperatureOption = SamplingSettings.temperature,
    top_k: TopKOption = SamplingSettings.top_k,
    top_p: TopPOption = SamplingSettings.top_p,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Of the closed world's prompts.")] = "test",
    detector: Annotated[str, typer.Option(help="'bundled', or a folder of a detector.")] = "bundled",
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """GenEval over the classes of our scenes; with --prompts, images for the official scorers."""
    from channelvq import CAR
    from channelvq.evaluate.geneval.drawing import settings_path
    from channelvq.evaluate.geneval.prompt_files import read_prompts
    from channelvq.evaluate.geneval.run import run_closed_world, run_file
    from channelvq.evaluate.results import write_json
    from channelvq.nn.detector import Detector

    settings = settings_path(output) if output else None
    if settings and prompts and settings.resolve() == prompts.resolve():
        raise InputError(
            f"--output {output}: {settings.name} beside it would take the place of --prompts; give another"
        )
    read = (car, detector, prompts)
    outputs(settings, json_file, folder=output, inputs=read, own=DRAWN, overwrite=overwrite)
    sampling = SamplingSettings(guidance_scale, temperature, top_k, top_p, seed)
    file = read_prompts(prompts, samples) if prompts else None
    if file and not output:
        raise InputError("--prompts: give --output, the folder for the images")
    model = CAR.from_pretrained(car, device=device)
    judge = Detector.load(detector).to(model.device)
    with counted("drawing") as progress:
        if file and output:
            result = run_file(model, judge, file, samples, sampling, output, progress)
        else:
            result = run_closed_world(model, judge, split, samples, sampling, output, progress)
    _tell(result)
    if json_file:
        write_json(json_file, result)


@evaluate_app.command("samples")
def evaluate_samples(
    car: Annotated[str, typer.Argument(help=f"A generator: {MODEL_HELP}")],
    texts: Annotated[Path, typer.Argument(help="A prompt in each line, such as the names of ImageNet's classes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the samples; goes on after a stop.")],
    npz: Annotated[Path | None, typer.Option(help="Also all samples in one file, as ADM's evaluator reads it.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Samples; of each prompt as many.")] = 50_000,
    seed: SeedOption = SamplingSettings.seed,
    guidance_scale: GuidanceOption = SamplingSettings.guidance_scale,
    temperature: TemperatureOption = SamplingSettings.temperature,
    top_k: TopKOption = SamplingSettings.top_k,
    top_p: TopPOption = SamplingSettings.top_p,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Samples for the scorers of others: gFID by the official protocol, torch-fidelity and the like."""
    from channelvq import CAR
    from channelvq.evaluate.geneval.drawing import settings_path
    from channelvq.evaluate.samples import draw_samples, read_texts, write_npz

    outputs(settings_path(output), npz, folder=output, inputs=(car, texts), own=DRAWN, overwrite=overwrite)
    prompts, model = read_texts(texts), CAR.from_pretrained(car, device=device)
    sampling = SamplingSettings(guidance_scale, temperature, top_k, top_p, seed)
    with counted("drawing") as progress:
        files = draw_samples(model, prompts, count, sampling, output, progress)
    if npz is not None:
        write_npz(files, npz)
    typer.echo(f"{len(files)} samples of {len(prompts)} prompts -> {output}/" + (f", {npz}" if npz else ""))


def _tell(result: dict[str, Any]) -> None:
    """Scores as a table, or why there are none."""
    import rich

    from channelvq.evaluate.geneval.report import scores_by_task

    if "generator" in result:
        rich.print(scores_by_task(result).terminal())
        return
    typer.echo(f"{result['images']} file(s) for {result['benchmark']} in {result['folder']}")
    if outside := result.get("unknown_to_detector"):
        typer.echo(f"not scored here: the detector does not know {', '.join(outside)}; use the official scorer")
