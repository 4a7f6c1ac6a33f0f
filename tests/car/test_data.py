"""Images as ids, once: what is kept of them, and when it is made again."""

import shutil
from pathlib import Path

import pytest
import torch
from tests.train.squares import Squares, tokenizer_of_squares

from channelvq.car import data as car_data
from channelvq.car.data import tokenized, tokenizer_digest
from channelvq.data.files.folder import FolderSource
from channelvq.data.stream import Mixture
from channelvq.images import normalize, to_pil
from channelvq.tokenizer import CVQTokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_of_squares(tmp_path_factory.mktemp("tokenizer"))


def test_images_are_tokenized_once(tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(car_data, "SHARD_IMAGES", 16)
    tokenizer = CVQTokenizer.from_pretrained(tokenizer_folder)
    mixture = Mixture({"squares": Squares()}, {"squares": 1.0}, seed=0)
    said: list[str] = []

    def read(count: int, settings: str = "a") -> car_data.TokenSet:
        return tokenized(tokenizer, mixture, count, settings, cache=tmp_path, progress=said.append)

    first = read(40)
    assert [line.split()[2] for line in said] == ["0", "16", "32"]
    images = torch.stack([mixture[p].image for p in range(40)]).float() / 127.5 - 1
    assert torch.equal(first.ids.long(), tokenizer.tokenize(images))
    assert first.captions == tuple(mixture[p].text for p in range(40))
    assert first.keys == tuple(mixture[p].key for p in range(40))

    said.clear()
    again, more = read(40), read(64)
    assert torch.equal(again.ids, first.ids)
    assert torch.equal(more.ids[:40], first.ids)
    assert [line.split()[2] for line in said] == ["32", "48"]  # whole shards are used by the larger set

    said.clear()
    read(16, settings="b")
    with torch.no_grad():
        tokenizer.quantizer.quantizer.weight.add_(0.1)
    read(16)
    assert len(said) == 2  # other settings, other weights: other ids


@pytest.mark.parametrize("suffix", [".safetensors", ".jsonl"])
def test_ids_that_are_not_as_they_were_are_made_again(suffix: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = CVQTokenizer.from_pretrained(tokenizer_folder)
    mixture = Mixture({"squares": Squares()}, {"squares": 1.0}, seed=0)

    def read() -> car_data.TokenSet:
        return tokenized(tokenizer, mixture, 4, "a", cache=tmp_path)

    first = read()
    (path,) = tmp_path.rglob(f"*{suffix}")
    content = path.read_bytes()
    for place in (0, 9, len(content) // 2, len(content) - 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        again = read()
        assert torch.equal(again.ids, first.ids)
        assert (again.captions, again.keys) == (first.captions, first.keys)
        assert path.read_bytes() == content
    path.unlink()
    assert torch.equal(read().ids, first.ids)


def test_mended_files_are_tokenized_again(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer, folder = CVQTokenizer.from_pretrained(tokenizer_folder), tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        sample = Squares().sample(i, torch.Generator())
        to_pil(normalize(sample.image[None]))[0].save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(sample.text)

    def read() -> car_data.TokenSet:
        source = FolderSource(folder, 16, "all")
        return tokenized(tokenizer, Mixture({"mine": source}, {"mine": 1.0}, 0), 20, "a", cache=tmp_path / "cache")

    first = read()
    assert read().captions == first.captions
    last = first.keys[-1]  # not among the first samples
    (folder / last).with_suffix(".txt").write_text("a square that was named wrongly")
    assert read().captions == (*first.captions[:-1], "a square that was named wrongly")
    shutil.copy(folder / first.keys[0], folder / last)
    assert torch.equal(read().ids[-1], first.ids[0])


def test_the_digest_of_a_tokenizer_is_that_of_its_content(tokenizer_folder: Path) -> None:
    one, two = CVQTokenizer.from_pretrained(tokenizer_folder), CVQTokenizer.from_pretrained(tokenizer_folder)
    assert tokenizer_digest(one) == tokenizer_digest(two)
    with torch.no_grad():
        next(two.decoder.parameters()).view(-1)[0] += 1e-3
    assert tokenizer_digest(one) != tokenizer_digest(two)
