"""`cvq demo`: what the bundled weights can do."""

from dataclasses import asdict
from pathlib import Path

from channelvq.cli.options import DeviceOption, JsonOption, OutputOption, OverwriteOption, outputs


def demo(
    output: OutputOption = Path("demo"),
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Tokenize pictures that the bundled tokenizer never saw; strips, a contact sheet and a table."""
    from channelvq.demo import run
    from channelvq.evaluate.results import write_json

    outputs(json_file, folder=output, own=("contact-sheet.png", "generated.png", "clothes.png"), overwrite=overwrite)
    rows = run(output, device)
    if json_file:
        write_json(json_file, [asdict(row) for row in rows])
