"""Token shards on the disk: given back as they were written, in the splits of their pictures, or refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from channelvq.bulk import tokenize_shards
from channelvq.config import from_dict
from channelvq.data.build import DataConfig, build_mixture
from channelvq.data.files import token_shards
from channelvq.data.files.shards import ShardSource
from channelvq.data.files.token_shards import (
    TokenManifest,
    TokenShard,
    id_type,
    read_manifest,
    read_token_folder,
    read_token_shard,
    size_of,
    write_manifest,
    write_token_shard,
)
from channelvq.data.files.tokens import TokensConfig, TokenSource
from channelvq.data.options import ImageOptions, Shares
from channelvq.data.split import EmptySplitError
from channelvq.errors import InputError

SPLITS = ("train", "validation", "test")
KEYS = ("a.png", "b/\udc80.png", "日本\u2028.png")
CAPTIONS = ("", "two\nlines", 'a "quoted" \U0001f431')


@pytest.mark.parametrize(("codes", "dtype"), [(65_536, torch.uint16), (65_537, torch.uint32), (2**22, torch.uint32)])
def test_what_is_written_is_read(tmp_path: Path, codes: int, dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, codes - 1], [1, 2], [codes - 1, codes // 2]])
    path = tmp_path / "a.b.safetensors"
    write_token_shard(path, ids.to(id_type(codes)), CAPTIONS, KEYS)
    assert load_file(path)["ids"].dtype == dtype
    found = read_token_shard(path)
    assert found.ids.tolist() == ids.tolist()
    assert (found.captions, found.keys) == (CAPTIONS, KEYS)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.b.jsonl", "a.b.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".jsonl"])
def test_a_changed_byte_or_a_missing_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "x.safetensors"
    write_token_shard(path, torch.arange(6).view(3, 2).to(torch.uint16), CAPTIONS, KEYS)
    file = path.with_suffix(suffix)
    content = file.read_bytes()
    for place in (0, 9, len(content) // 2, len(content) - 2):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"token shard .*x\.safetensors cannot be read"):
            read_token_shard(path)
    file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_token_shard(path)


def write_folder(folder: Path, ids: torch.Tensor, count: int = 2, **changes: Any) -> Path:
    """A folder of one shard whose manifest promises `count` images of 2 tokens of 32 codes."""
    folder.mkdir(exist_ok=True)
    write_token_shard(folder / "x.safetensors", ids, ["a"] * len(ids), ["a.png"] * len(ids))
    shard = TokenShard("x", count, count, size_of(folder, "x") or 0, (1, 2))
    manifest = TokenManifest("bundled", "0" * 16, 2, 32, "caption", shards=(shard,))
    write_manifest(folder, replace(manifest, **changes))
    return folder


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[0, 32], [1, 1]]).to(torch.uint16), r"ids outside of 0\.\.31"),
        (torch.tensor([[-1, 3], [1, 1]]).to(torch.int32), r"ids outside of 0\.\.31"),
        (torch.tensor([[2**32 - 1, 3], [1, 1]]).to(torch.uint32), r"ids outside of 0\.\.31"),
        (torch.zeros(3, 2, dtype=torch.uint16), r"of shape \(3, 2\), its manifest says \(2, 2\)"),
        (torch.zeros(2, 5, dtype=torch.uint16), r"of shape \(2, 5\), its manifest says \(2, 2\)"),
        (torch.zeros(2, 2), "its ids are torch.float32"),
        (torch.zeros(2, 2, 1, dtype=torch.uint16), r"of shape \(2, 2, 1\)"),
    ],
)
def test_a_shard_that_does_not_fit_its_manifest_is_refused(tmp_path: Path, ids: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_token_folder(write_folder(tmp_path / "tokens", ids))


@pytest.mark.parametrize("lines", ['{"text": 1, "key": "a"}', '{"text": "a"}', "[1]", '{"text": "", "key": ""}', "["])
def test_lines_that_are_of_another_kind_are_refused(
    tmp_path: Path, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Even with the right digest, which anybody can compute.
    path = tmp_path / "x.safetensors"
    monkeypatch.setattr(
        token_shards.json, "dumps", lambda row: lines if row["key"] == "0" else json.dumps(row, indent=1)
    )
    monkeypatch.setattr(token_shards, "tensors_sha256", lambda tensors, text: "same")
    write_token_shard(path, torch.zeros(2, 2, dtype=torch.uint16), [""], ["0"])
    with pytest.raises(
        InputError, match=r"cannot be read: (a line beside it|it has 2 rows of ids and 1 lines|Expecting)"
    ):
        read_token_shard(path)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(images=10**12), "its counts are not those of its shards"),
        (lambda content: content["shards"].append(content["shards"][0]), "its counts are not those"),
        (lambda content: content["shards"][0].update(name="../x"), "expected the name of a file in the folder"),
        (lambda content: content.update(codebook_size=10**12), "codebook_size: .*less than or equal to"),
        (lambda content: content.update(num_tokens=0), "num_tokens: .*greater than 0"),
        (lambda content: content.update(format=2), "format: "),
        (lambda content: content.pop("tokenizer_digest"), "tokenizer_digest: "),
        (lambda content: content.update(pending=["y"]), "holds 1 of 2 token shards; .*goes on"),
        (lambda content: content["shards"][0].update(bytes=7), "missing or not as it was written"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    folder = write_folder(tmp_path / "tokens", torch.zeros(2, 2, dtype=torch.uint16))
    assert len(read_token_folder(folder)[1]) == 2
    change(folder, edit)
    with pytest.raises(InputError, match=message):
        read_token_folder(folder)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, '"x"'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"holds no manifest\.json: expected a folder that `cvq data tokenize` wrote"):
        read_manifest(tmp_path)


@pytest.fixture
def tokens(tars: Path, tiny_tokenizer: Path, tmp_path: Path) -> Path:
    tokenize_shards(tars, tmp_path / "tokens", tiny_tokenizer)
    return tmp_path / "tokens"


def test_tokens_are_in_the_split_of_their_pictures(tars: Path, tokens: Path) -> None:
    urls, seen = str(tars / "images-{00000..00002}.tar"), []
    for split in SPLITS:
        shares = {"validation": 0.3, "test": 0.3}
        pictures = ShardSource(urls, 16, split, ImageOptions(**shares))
        source = TokenSource(tokens, 16, split, Shares(**shares))
        wanted = [pictures.sample(i, torch.Generator()) for i in range(len(pictures))]
        assert list(source.tokens.keys) == [sample.key for sample in wanted]
        assert list(source.tokens.captions) == [sample.text for sample in wanted]
        seen += source.tokens.keys
    assert len(set(seen)) == len(seen) == 14


def test_captions_and_places_of_splits(tokens: Path, tmp_path: Path) -> None:
    captioned = TokenSource(tokens, 16, "all", captioned=True)
    assert len(captioned) == 9
    assert all(captioned.tokens.captions)
    config = TokensConfig(root=str(tokens), validation_root=str(tokens), test=0)
    assert [len(config.build(16, split)) for split in ("train", "validation")] == [14, 14]
    with pytest.raises(EmptySplitError, match="no image in split 'test'"):
        config.build(16, "test")
    data = DataConfig(sources={"mine": TokensConfig(root=str(tokens), validation=0, test=0)})
    with pytest.raises(InputError, match=r"set for example data\.sources\.mine\.validation=0\.2"):
        build_mixture(data, 16, "validation", 0)
    with pytest.raises(InputError, match=r"crop: there is no such setting"):
        from_dict(DataConfig, {"sources": {"mine": {"kind": "tokens", "root": "x", "crop": "random"}}})


def test_tokens_are_no_pictures(tokens: Path) -> None:
    source = TokenSource(tokens, 16, "all")
    with pytest.raises(InputError, match="hold no pictures: they are for training generators"):
        source.sample(0, torch.Generator())
