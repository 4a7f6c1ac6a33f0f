"""`cvq evaluate`: quality of tokenizers and generators on held-out data."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from channelvq.cli.inputs import measured
from channelvq.cli.options import DataArgument, JsonOption, MarkdownOption, MaxImagesOption, TokenizerArgument, target

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on held-out data.")
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
    data: DataArgument,
    json_file: JsonOption = None,
    markdown: MarkdownOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw PSNR against bytes, with PCA, JPEG and WebP, to this file.")
    ] = None,
    target_psnr: Annotated[float | None, typer.Option(help="Name the smallest prefix with this mean PSNR.")] = None,
    max_images: MaxImagesOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in work at a time; no figure depends on it.")] = 64,
    features: FeaturesOption = "auto",
    per_image: Annotated[bool, typer.Option(help="Keep the values of each image in the JSON file.")] = True,
    pca: PcaOption = None,
) -> None:
    """Quality, distances and codebook use for 1, 2, 4, ... C tokens."""
    import rich

    from channelvq.evaluate.measures import choose_measures
    from channelvq.evaluate.reconstruction import evaluate_reconstruction as run
    from channelvq.evaluate.report import machine, make_record, write_json, write_text

    for file in (json_file, markdown, plot):
        target(file=file)
    tok, images, how = measured(tokenizer, data, max_images)
    measures = choose_measures(tok.image_size, features)
    how |= measures.protocol(len(images))
    began = time.perf_counter()
    report = run(tok, images, batch_size=batch_size, measures=measures)
    seconds = time.perf_counter() - began
    rich.print(report.table())
    record = make_record(tok.config, data=str(data), split=how["split"], metrics=report.to_dict())
    record |= {"tokenizer": tokenizer, "evaluation_seconds": seconds, "images_per_second": len(images) / seconds}
    record["machine"] = machine()
    if target_psnr is not None:
        record["target_psnr"] = _target(report, target_psnr)
    if per_image:
        record["per_image"] = report.per_image()
    if plot:
        record["baselines"] = _plot(plot, report, images, pca)
    if markdown:
        write_text(markdown, report.markdown())
    if json_file:
        write_json(json_file, {"protocol": how, "records": [record]})


def _target(report: Any, psnr: float) -> dict[str, Any]:
    """The smallest prefix that reaches a PSNR, on the terminal and as data."""
    found = report.smallest_prefix_for(psnr)
    if found is None:
        typer.echo(f"no prefix has {psnr:g} dB: all {report.prefixes[-1].num_tokens} tokens have "
                   f"{report.prefixes[-1].psnr.mean:.2f} dB")  # fmt: skip
        return {"psnr": psnr, "tokens": None, "bytes": None}
    typer.echo(f"{psnr:g} dB: {found.num_tokens} tokens, {found.num_bytes} bytes ({found.psnr.mean:.2f} dB)")
    return {"psnr": psnr, "tokens": found.num_tokens, "bytes": found.num_bytes}


def _plot(path: Path, report: Any, images: Any, pca: str | None) -> dict[str, Any]:
    """Draw the report beside the baselines; returns these as data."""
    from channelvq.evaluate.baselines import PROTOCOL, PCABaseline, baseline_curves
    from channelvq.evaluate.plots import quality_against_bytes

    source = pca or ("bundled" if images.shape[-1] == 64 else None)
    if source is None:
        typer.echo("no PCA on the plot: the bundled one is for 64 px, give one with --pca", err=True)
    baseline = None if source is None else PCABaseline.load(source)
    shown = images[:BASELINE_IMAGES]
    curves = baseline_curves(shown, [prefix.num_bytes for prefix in report.prefixes], baseline)
    quality_against_bytes(report, curves, path, note=f"baselines: {len(shown)} of {len(images)} images")
    points = {name: [point.to_dict() for point in curve] for name, curve in curves.items()}
    return {"images": f"the first {len(shown)}", "pca": source, "protocol": PROTOCOL, "curves": points}
