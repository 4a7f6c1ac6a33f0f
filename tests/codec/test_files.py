import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import channelvq.codec.pillow  # noqa: F401  # what is tested
from channelvq.car.model import CAR
from channelvq.codec import (
    CodeTables,
    DamagedWarning,
    at_hand,
    compress,
    compress_ids,
    decompress,
    decompress_ids,
    read_header,
)
from channelvq.codec.car_scores import CARScores
from channelvq.codec.exact import in_float64
from channelvq.errors import InputError
from channelvq.evaluate.metrics import psnr
from channelvq.images import to_tensor, to_uint8
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.config import TrainConfig
from channelvq.train.launch import own_threads


@pytest.fixture(scope="module")
def scores(car: CAR) -> CARScores:
    return CARScores(car)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(4)) * 2 - 1


def rows(files: list[bytes], tokenizer: CVQTokenizer, **options) -> list[list[int]]:
    return [list(decoded.ids) for decoded in decompress_ids(files, tokenizer, **options)]


@pytest.mark.parametrize("model", ["static", "car"])
def test_every_prefix_of_tokens_comes_back(model, tokenizer, scores, ids) -> None:
    car = scores if model == "car" else None
    for k in range(1, ids.shape[1] + 1, 1 if car is None else 7):
        files = compress_ids(ids[:, :k], tokenizer, car=car)
        assert rows(files, tokenizer, car=car) == ids[:, :k].tolist()
    assert read_header(files[0])[0].kind == model


@pytest.mark.parametrize("model", ["static", "car"])
def test_a_cut_file_gives_the_first_tokens_and_the_index_says_how_many(model, tokenizer, scores, ids) -> None:
    car = scores if model == "car" else None
    file = compress_ids(ids[:1], tokenizer, car=car, chunk_tokens=5)[0]
    header, start = read_header(file)
    cuts = range(start, len(file) + 1, 1 if car is None else 6)
    found = decompress_ids([file[:end] for end in cuts], tokenizer, car=car)
    assert not any(decoded.damaged for decoded in found)
    lengths = [len(decoded.ids) for decoded in found]
    assert lengths == sorted(lengths)
    for end, decoded in zip(cuts, found, strict=True):
        assert list(decoded.ids) == ids[0, : len(decoded.ids)].tolist()
        assert len(decoded.ids) >= 5 * sum(start + e <= end for e in header.ends[:-1])
    assert lengths[0] == 0
    assert decompress([file[:start]], tokenizer, car=car)[0].size == (16, 16)


@pytest.mark.parametrize("model", ["static", "car"])
def test_a_file_does_not_depend_on_its_neighbours(model, tokenizer, scores, ids) -> None:
    car = scores if model == "car" else None
    together = compress_ids(ids, tokenizer, car=car)
    alone = [compress_ids(row[None], tokenizer, car=car)[0] for row in ids]
    assert together == alone
    assert rows(together[3:4], tokenizer, car=car) == rows(together, tokenizer, car=car)[3:4]


def test_pictures_are_computed_in_float64(tokenizer, ids) -> None:
    """A file's picture is the rounded one of float64, in which threads and batches move nothing near a level."""
    for each in (tokenizer, CVQTokenizer.from_pretrained("bundled")):
        own = ids % each.codebook_size
        exact, values = in_float64(each), []
        for threads, rows_at_once in ((1, 5), (2, 1)):
            with own_threads(TrainConfig(threads=threads)):
                parts = own.split(rows_at_once)
                values.append(torch.cat([exact.detokenize(part, "tensor", exact=False) for part in parts]))
        assert values[0].dtype == torch.float64
        assert (values[0] - values[1]).abs().max() < 1e-11  # a layer that computed in float32 would show 1e-7
        shown = torch.stack([to_tensor(p) for p in decompress(compress_ids(own, each), each)])
        assert torch.equal(shown, to_uint8(values[0]))
        with pytest.raises(AssertionError):
            torch.testing.assert_close(each.detokenize(own, "tensor").double(), values[0], atol=1e-11, rtol=0)


def test_captions_change_the_bytes_and_are_stored_or_needed(tokenizer, scores, ids) -> None:
    told = ["a red cat"] * len(ids)
    stored = compress_ids(ids, tokenizer, car=scores, captions=told)
    bare = compress_ids(ids, tokenizer, car=scores, captions=told, store_captions=False)
    none = compress_ids(ids, tokenizer, car=scores)
    streams = [file[read_header(file)[1] :] for file in (stored[0], bare[0], none[0])]
    assert streams[0] == streams[1] != streams[2]
    assert read_header(stored[0])[0].text == "a red cat"
    assert rows(stored, tokenizer, car=scores) == ids.tolist()
    assert rows(bare, tokenizer, car=scores, captions=told) == ids.tolist()
    with pytest.raises(InputError, match="caption that it does not hold"):
        rows(bare, tokenizer, car=scores)
    wrong = decompress_ids(bare, tokenizer, car=scores, captions=["a cat"] * len(ids))
    assert all(decoded.damaged and decoded.ids != tuple(row) for decoded, row in zip(wrong, ids.tolist(), strict=True))
    with pytest.raises(InputError, match="helps only a generator"):
        compress_ids(ids, tokenizer, captions=told)


def test_a_damaged_chunk_ends_the_picture_with_a_warning(tokenizer, ids) -> None:
    file = bytearray(compress_ids(ids[:1], tokenizer, chunk_tokens=6)[0])
    header, start = read_header(bytes(file))
    file[start + header.ends[1] - 4] ^= 64  # in the second of four chunks
    decoded = decompress_ids([bytes(file)], tokenizer)[0]
    assert decoded.damaged
    assert list(decoded.ids) == ids[0, :6].tolist()
    with pytest.warns(DamagedWarning, match="x: damaged.*the 6 of 24 tokens"):
        picture = decompress([bytes(file)], tokenizer, names=["x"])[0]
    assert picture.tobytes() == tokenizer.detokenize(ids[:1, :6])[0].tobytes()


def test_as_many_bytes_and_as_much_psnr_as_asked_for(tokenizer, pictures) -> None:
    for budget in (30, 33, 37):
        files = compress(pictures, tokenizer, num_bytes=budget)
        assert all(len(file) <= budget for file in files)
        more = [compress(pictures, tokenizer, num_tokens=read_header(f)[0].num_tokens + 1) for f in files]
        assert all(len(longer[i]) > budget for i, longer in enumerate(more))
    with pytest.raises(InputError, match="smallest file, of one token, takes"):
        compress(pictures, tokenizer, num_bytes=10)
    ids, pixels = tokenizer.tokenize(pictures), ((pictures + 1) * 127.5).round().to(torch.uint8)
    curve = [
        psnr(torch.stack([to_tensor(p) for p in tokenizer.detokenize(ids[:, :k])]), pixels)
        for k in range(1, tokenizer.num_tokens + 1)
    ]
    wanted = float(torch.stack(curve).amax(0).min()) - 1e-6
    for i, file in enumerate(compress(pictures, tokenizer, psnr=wanted)):
        assert read_header(file)[0].num_tokens == 1 + next(k for k, v in enumerate(curve) if v[i] >= wanted)
    with pytest.raises(InputError, match="give one of"):
        compress(pictures, tokenizer, psnr=10, num_tokens=3)


def test_other_tokenizers_tables_and_generators_are_refused(tokenizer, car, scores, ids, tmp_path) -> None:
    file, coded = compress_ids(ids[:1], tokenizer)[0], compress_ids(ids[:1], tokenizer, car=scores)[0]
    tokenizer.save_pretrained(tmp_path)
    same = CVQTokenizer.from_pretrained(tmp_path)
    assert rows([file], same) == ids[:1].tolist()
    CodeTables.fit(same, ids.repeat(5, 1)).save(tmp_path)
    with pytest.raises(InputError, match="other code tables"):
        rows([file], same)
    with pytest.raises(InputError, match="written with a generator; give it"):
        rows([coded], tokenizer)
    with torch.no_grad():
        next(same.decoder.parameters()).add_(1)
    with pytest.raises(InputError, match="belong to another tokenizer"):
        compress_ids(ids, same)
    same.folder = None
    with pytest.raises(InputError, match=r"file 0: it was written with another tokenizer .* give that one"):
        rows([file], same)
    with pytest.raises(InputError, match="one of another image tokenizer"):
        compress_ids(ids, same, car=car)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f + b"xy", "2 byte.s. follow the end"),
        (lambda f: f[:3] + b"\2" + f[4:], "version 2 of the format.*update"),
        (lambda f: f[:12], "cut within its header, after 12 bytes"),
        (lambda f: f[:4] + b"\7" + f[5:], "code model of kind 0x07"),
        (lambda f: f[:12] + b"\x11" + f[13:], "checksum is another"),
        (lambda f: f[:11] + b"\x90\x00" + f[12:], "not in its shortest form"),
        (lambda f: b"\x89PNG" + f[4:], "expected a .cvq file"),
        (lambda f: b"", "this one is empty"),
    ],
)
def test_what_is_wrong_with_a_header_is_said(change, message, tokenizer, ids) -> None:
    with pytest.raises(InputError, match=message):
        decompress_ids([change(compress_ids(ids[:1], tokenizer)[0])], tokenizer)


def test_pillow_opens_files_and_says_what_is_wrong(tokenizer, ids, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(at_hand, "_kept", [])
    file = compress_ids(ids[:1], tokenizer)[0]
    (tmp_path / "x.cvq").write_bytes(file)
    with Image.open(tmp_path / "x.cvq") as image:
        assert (image.size, image.mode, image.format) == ((16, 16), "RGB", "CVQ")
        with pytest.raises(InputError, match=r"x\.cvq.*not at hand"):
            image.load()
        at_hand.keep(tokenizer)
        assert image.convert("RGB").tobytes() == tokenizer.detokenize(ids[:1])[0].tobytes()
    with pytest.raises(InputError, match="follow the end"):
        Image.open(io.BytesIO(file + b"x"))


def test_tables_code_what_they_counted_in_fewer_bytes_and_at_their_entropy(tokenizer, tmp_path) -> None:
    generator = torch.Generator().manual_seed(5)
    shares = torch.rand(24, 60, generator=generator) ** 8  # some codes often, each place its own
    ids = torch.multinomial(shares, 4000, replacement=True, generator=generator).T.contiguous()
    tokenizer.save_pretrained(tmp_path)
    own = CVQTokenizer.from_pretrained(tmp_path)
    CodeTables.fit(own, ids[:3900]).save(tmp_path)
    tables = CodeTables.of(own)
    test = ids[3900:]
    shares = shares / shares.sum(1, keepdim=True)
    entropy = -(shares * shares.log2()).nan_to_num().sum()
    assert float(tables.bits(test).sum(1).mean()) < 1.04 * entropy  # 100 pictures: some per cent of chance
    headers = [read_header(file) for file in compress_ids(test, own, chunk_tokens=24)]
    coded = torch.tensor([8.0 * header.ends[-1] for header, _ in headers]) - 8  # without the checksum
    assert float((coded - tables.bits(test).sum(1)).mean()) < 8  # rounded up to a byte
    assert rows(compress_ids(test, own), own) == test.tolist()


def test_nothing_that_a_file_may_hold_is_more_than_an_error(tokenizer, ids) -> None:
    """Every byte flipped, and random bytes behind a right and a wrong header: tokens that fit, or an InputError."""
    file = compress_ids(ids[:1], tokenizer)[0]
    _, start = read_header(file)
    generator = torch.Generator().manual_seed(6)
    noise = [bytes(torch.randint(256, (n,), generator=generator, dtype=torch.uint8).tolist()) for n in range(1, 150)]
    tried = [file[:i] + bytes([file[i] ^ flip]) + file[i + 1 :] for i in range(len(file)) for flip in (1, 128, 255)]
    tried += [file[:start] + n for n in noise] + noise + [b"CVQ\1" + n for n in noise]
    right, refused = 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedWarning)
        for data in tried:
            try:
                decoded = decompress_ids([data], tokenizer)[0]
            except InputError:
                refused += 1
                continue
            right += decoded.ids == tuple(ids[0].tolist())
            assert all(0 <= token < 60 for token in decoded.ids)
            assert decompress([data], tokenizer)[0].size == (16, 16)
    assert refused > 3 * start
    assert right <= 6  # flips of the last bits, which decide nothing, and damage that a checksum of 8 bits lets pass


def test_of_10_000_random_files_none_passes_as_a_header() -> None:
    """Behind nothing, behind the magic, and behind a header that is right up to its sizes."""
    rng = np.random.default_rng(7)
    for i in range(10_000):
        before = (b"", b"CVQ\1", b"CVQ\1\0" + bytes(6), b"CVQ\1\x11" + bytes(6))[i % 4]
        with pytest.raises(InputError):
            read_header(before + rng.bytes(int(rng.integers(0, 200))))


def test_a_tokenizer_of_few_tokens_has_chunks_of_as_many(tiny_tokenizer: Path) -> None:
    few = CVQTokenizer.from_pretrained(tiny_tokenizer)
    ids = torch.arange(8)[None]
    file = compress_ids(ids, few)[0]
    assert read_header(file)[0].chunk_tokens == few.num_tokens == 8
    assert decompress_ids([file], few)[0].ids == tuple(range(8))
