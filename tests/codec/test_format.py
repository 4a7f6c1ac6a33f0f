"""docs/format.md describes the files: its decoder, written from the page alone, reads what the library writes."""

import re
from pathlib import Path

import torch

from channelvq.codec import CodeTables, compress_ids, decompress_ids
from channelvq.codec.encode import CHUNK_TOKENS
from channelvq.tokenizer import CVQTokenizer

PAGE = Path(__file__).parents[2] / "docs/format.md"


def test_the_decoder_of_the_page_reads_every_prefix_as_the_library_does(
    tokenizer: CVQTokenizer, ids: torch.Tensor
) -> None:
    code = re.search(r"## A decoder\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code
    page: dict = {}
    exec(code[1], page)
    tables = CodeTables.of(tokenizer).depths.tolist()
    for row, file in zip(ids.tolist(), compress_ids(ids, tokenizer), strict=True):
        start = len(decompress_ids([file], tokenizer)[0].header.write())
        assert page["decode"](file, tables) == row
        cuts = [file[:end] for end in range(start, len(file))]
        own = [list(decoded.ids) for decoded in decompress_ids(cuts, tokenizer)]
        assert [page["decode"](cut, tables) for cut in cuts] == own
        assert own[0] == []
        assert len(own[-1]) >= len(row) - 2


def test_the_header_is_as_long_as_the_page_says() -> None:
    tok = CVQTokenizer.from_pretrained("bundled")
    file = compress_ids(torch.zeros(1, tok.num_tokens, dtype=torch.int64), tok)[0]
    header = decompress_ids([file], tok)[0].header
    assert (tok.num_tokens, header.chunk_tokens) == (64, CHUNK_TOKENS) == (64, 16)
    said = re.search(r"in chunks of 16 have a header of (\d+) bytes", PAGE.read_text().replace("\n", " "))
    assert said
    assert len(header.write()) == int(said[1])
