"""`cvq tokenize`, `detokenize`, `reconstruct`: images to tokens and back."""

from pathlib import Path
from typing import Annotated

import typer

from channelvq.cli.inputs import batches
from channelvq.cli.options import (
    NUMBERED,
    DeviceOption,
    OutputOption,
    OverwriteOption,
    PrefixOption,
    TokenizerOption,
    note_older,
    output_name,
    outputs,
)
from channelvq.files import is_stream
from channelvq.terminal import printable


def tokenize(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    output: OutputOption = Path("tokens.json"),
    tokenizer: TokenizerOption = "bundled",
    device: DeviceOption = "auto",
) -> None:
    """Images -> ids, as a JSON file."""
    from channelvq import CVQTokenizer
    from channelvq.evaluate.token_file import TokenRow, write_tokens

    outputs(output, inputs=(*images, tokenizer))
    tok = CVQTokenizer.from_pretrained(tokenizer, device=device)
    any_size = tok.resampler is not None
    rows = []
    for names, pictures in batches(images, tok.config.read_at):
        ids = tok.tokenize(pictures).tolist()
        rows += [
            TokenRow(str(name), row, (picture.height, picture.width) if any_size else None)
            for name, row, picture in zip(names, ids, pictures, strict=True)
        ]
    write_tokens(output, tokenizer, tok, rows)
    line = printable(f"{len(rows)} image(s), {tok.num_tokens} tokens each -> {output}")
    typer.echo(line, err=is_stream(output))  # not among the tokens


def detokenize(
    tokens: Annotated[Path, typer.Argument(help="A file that `cvq tokenize` wrote.")],
    output: OutputOption = Path("decoded"),
    num_tokens: PrefixOption = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: the file's own.")] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Ids -> images, from all tokens or any prefix of them."""
    from channelvq import CVQTokenizer
    from channelvq.evaluate.token_file import check_fits, decode_rows, read_tokens
    from channelvq.images import save_image

    outputs(folder=output, inputs=(tokens, tokenizer), own=NUMBERED, overwrite=overwrite)
    file = read_tokens(tokens)
    tok = CVQTokenizer.from_pretrained(tokenizer or file.tokenizer, device=device)
    check_fits(file, tokens, tok, num_tokens)
    written: list[Path] = []
    for number, image in decode_rows(tok, file.rows, num_tokens):
        written.append(output / output_name(number, file.rows[number].image))
        save_image(image, written[-1])
    typer.echo(printable(f"{len(file.rows)} image(s) -> {output}/"))
    note_older(output, written)


def reconstruct(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.")],
    output: OutputOption = Path("reconstructed"),
    num_tokens: PrefixOption = None,
    tokenizer: TokenizerOption = "bundled",
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Images -> tokens -> images: for each a strip of the original and 1, 2, 4, ... tokens."""
    from channelvq import CVQTokenizer
    from channelvq.images import save_image
    from channelvq.pictures import prefix_strips

    outputs(folder=output, inputs=(*images, tokenizer), own=NUMBERED, overwrite=overwrite)
    tok = CVQTokenizer.from_pretrained(tokenizer, device=device)
    written: list[Path] = []
    for names, pictures in batches(images, tok.image_size):
        for name, picture in zip(names, prefix_strips(tok, pictures, num_tokens), strict=True):
            written.append(output / output_name(len(written), name))
            save_image(picture, written[-1])
    typer.echo(printable(f"{len(written)} strip(s) -> {output}/"))
    note_older(output, written)
