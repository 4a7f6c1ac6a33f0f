"""`cvq evaluate`: quality of tokenizers and generators on held-out data."""

import typer

from channelvq.cli.inputs import measured
from channelvq.cli.options import DataArgument, JsonOption, MaxImagesOption, TokenizerArgument, target

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model on held-out data.")


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    tokenizer: TokenizerArgument, data: DataArgument, json_file: JsonOption = None, max_images: MaxImagesOption = None
) -> None:
    """PSNR, SSIM and codebook use for 1, 2, 4, ... C tokens."""
    import rich

    from channelvq.evaluate.reconstruction import evaluate_reconstruction as run
    from channelvq.evaluate.report import write_json

    target(file=json_file)
    tok, images, how = measured(tokenizer, data, max_images)
    report = run(tok, images)
    rich.print(report.table())
    if json_file:
        write_json(json_file, {"protocol": how, "records": [{"metrics": report.to_dict()}]})
