"""Files of pictures of other sizes, by a tokenizer with a resampler: whole, bounded, and at home as they ever were."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from channelvq.codec import compress, compress_ids, decompress, decompress_ids, read_header
from channelvq.codec.exact import in_float64
from channelvq.errors import InputError
from channelvq.images import normalize, to_pil, to_tensor, to_uint8
from channelvq.nn.resampler import ResamplerConfig
from channelvq.refine import refine_ids
from channelvq.tokenizer import CVQTokenizer


@pytest.fixture(scope="module")
def any_size(tokenizer: CVQTokenizer) -> CVQTokenizer:
    config = replace(tokenizer.config, resampler=ResamplerConfig(width=8, num_heads=2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tok = CVQTokenizer(config).eval()
        tok.load_state_dict(tok.state_dict() | tokenizer.state_dict())
        assert tok.resampler is not None
        for parameter in tok.resampler.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return tok


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = torch.randint(256, (1, 3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return to_pil(pixels)[0]


PICTURES = [picture(16, 16), picture(24, 32), picture(16, 16, seed=1), picture(24, 32, seed=2), picture(33, 17)]
SIZES = [(16, 16), (24, 32), (16, 16), (24, 32), (32, 16)]


def test_pictures_of_mixed_sizes_come_back_at_theirs(any_size: CVQTokenizer) -> None:
    files = compress(PICTURES, any_size)
    headers = [read_header(file)[0] for file in files]
    assert [(header.height, header.width) for header in headers] == SIZES
    ids = torch.tensor([one.ids for one in decompress_ids(files, any_size)])
    assert torch.equal(ids, any_size.tokenize(PICTURES))
    exact = in_float64(any_size)
    for number, (size, shown) in enumerate(zip(SIZES, decompress(files, any_size), strict=True)):
        expected = to_uint8(exact.detokenize(ids[number], "tensor", size=size))[0]
        assert (shown.height, shown.width) == size
        assert torch.equal(to_tensor(shown), expected)
    # Neither side depends on what else is in the call.
    assert [compress([one], any_size)[0] for one in PICTURES] == files
    alone = decompress(files[1:2], any_size)[0]
    assert alone.tobytes() == decompress(files, any_size)[1].tobytes()


def test_a_prefix_and_the_beginning_of_nothing(any_size: CVQTokenizer) -> None:
    file = compress(PICTURES[1:2], any_size)[0]
    start = read_header(file)[1]
    assert [p.size for p in decompress([file[:start], file[: start + 8]], any_size)] == [(32, 24)] * 2
    assert decompress([file], any_size, num_tokens=3)[0].size == (32, 24)


def test_at_home_files_are_those_of_the_tokenizer_without_a_resampler(
    tokenizer: CVQTokenizer, any_size: CVQTokenizer
) -> None:
    home = [PICTURES[0], PICTURES[2]]
    own, other = compress(home, any_size), compress(home, tokenizer)
    # But for whose they are: 4 bytes of the header, and so its checksum.
    start = read_header(own[0])[1]
    assert [file[start:] for file in own] == [file[start:] for file in other]
    shown = zip(decompress(own, any_size), decompress(other, tokenizer), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in shown)


def test_bytes_psnr_and_effort_at_other_sizes(any_size: CVQTokenizer) -> None:
    full = compress(PICTURES, any_size)
    assert all(len(file) <= 40 for file in compress(PICTURES, any_size, num_bytes=40))
    few = compress(PICTURES[:2], any_size, psnr=1.0)
    assert [read_header(file)[0].num_tokens for file in few] == [1] * 2
    assert compress(PICTURES[1:2], any_size, psnr=99.0) == full[1:2]
    refined = refine_ids(any_size, PICTURES, steps=2)
    assert torch.equal(refine_ids(any_size, PICTURES, steps=0), any_size.tokenize(PICTURES))
    assert compress(PICTURES[1:2], any_size, effort=2)[0] == compress_ids(
        refine_ids(any_size, PICTURES[1:2], steps=2), any_size, sizes=[(24, 32)])[0]  # fmt: skip
    for number, size in enumerate(SIZES):
        if PICTURES[number].size == size[::-1]:
            x = normalize(to_tensor(PICTURES[number]))[None]
            errors = [float((any_size.detokenize(ids[number], "tensor", size=size) - x).square().mean())
                      for ids in (refined, any_size.tokenize(PICTURES))]  # fmt: skip
            assert errors[0] <= errors[1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(24, 33)], r"\(24, 33\) is none that the tokenizer works at, the nearest is \(24, 32\)"),
        ([(10**6, 2)], r"\(1000000, 2\) is more than a file can say, at most 65535 a side"),
        ([(16, 16)] * 2, "2 for 1 pictures"),
        ([(0, 16)], "size="),
    ],
)
def test_sizes_that_cannot_be_written_are_named(
    sizes: list[tuple[int, int]], message: str, any_size: CVQTokenizer
) -> None:
    with pytest.raises(InputError, match=message):
        compress_ids(torch.zeros(1, 4, dtype=torch.int64), any_size, sizes=sizes)


@pytest.mark.parametrize("size", [(65_535, 65_535), (24, 31), (65_534, 2), (512, 512)])
def test_a_header_that_asks_for_another_size_is_refused_before_it_costs(
    size: tuple[int, int], any_size: CVQTokenizer
) -> None:
    file = compress(PICTURES[1:2], any_size)[0]
    header, start = read_header(file)
    forged = replace(header, height=size[0], width=size[1]).write() + file[start:]
    with pytest.raises(InputError, match="the header is not one that it wrote"):
        decompress([forged], any_size)


def test_without_a_resampler_other_sizes_are_refused(tokenizer: CVQTokenizer) -> None:
    with pytest.raises(InputError, match=r"none that the tokenizer works at, the nearest is \(16, 16\)"):
        compress_ids(torch.zeros(1, 4, dtype=torch.int64), tokenizer, sizes=[(24, 32)])
