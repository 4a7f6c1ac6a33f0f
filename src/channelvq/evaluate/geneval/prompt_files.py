"""Prompt files of the official benchmarks, by path, and the folders that their scorers read.

    GenEval    FILE.jsonl, a record a line       ->  00000/metadata.jsonl (the line), 00000/samples/00000.png, ...
    DPG-Bench  FOLDER of ITEM.txt, a paragraph   ->  ITEM.png, the samples without gaps, two a row
    MJHQ-30K   FILE.json {id: {category, prompt}} ->  category/id.png, one image each

Layouts: github.com/djghosh13/geneval, github.com/TencentQQGYLab/ELLA, huggingface.co/datasets/playgroundai/MJHQ-30K.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from channelvq.errors import InputError
from channelvq.evaluate.geneval.drawing import Picture
from channelvq.evaluate.geneval.score import Prompt, prompt_of
from channelvq.files import parse_json

Benchmark = Literal["GenEval", "DPG-Bench", "MJHQ-30K"]


@dataclass(frozen=True)
class GenevalLine:
    """A line of a GenEval prompt file. content: its very bytes, without the end of the line."""

    prompt: Prompt
    content: bytes
    where: str


@dataclass(frozen=True)
class PromptFile:
    """What a path holds. pictures: the files that a scorer reads. lines: of a GenEval file."""

    benchmark: Benchmark
    pictures: tuple[Picture, ...]
    lines: tuple[GenevalLine, ...] = ()


def read_prompts(path: Path, samples: int) -> PromptFile:
    """The prompts at a path, `samples` images each (MJHQ-30K: one); raises InputError that names what is wrong."""
    if path.is_dir():
        return PromptFile("DPG-Bench", tuple(_paragraphs(path, samples)))
    if not path.is_file():
        raise InputError(f"prompts {str(path)!r}: there is no such file or folder")
    if path.suffix == ".jsonl":
        lines = tuple(_lines(path))
        return PromptFile("GenEval", geneval_pictures(lines, samples), lines)
    if path.suffix == ".json":
        return PromptFile("MJHQ-30K", tuple(_entries(path)))
    raise InputError(
        f"prompts {str(path)!r}: expected GenEval's .jsonl, MJHQ-30K's meta_data.json, or DPG-Bench's folder of .txt"
    )


def geneval_pictures(lines: tuple[GenevalLine, ...], samples: int) -> tuple[Picture, ...]:
    """`samples` pictures a line, in the official folders."""
    return tuple(
        Picture(Path(f"{i:05d}/samples/{k:05d}.png"), line.prompt.text, line.where)
        for i, line in enumerate(lines)
        for k in range(samples)
    )


def _lines(path: Path) -> Iterator[GenevalLine]:
    content = [line.rstrip(b"\r") for line in _bytes(path).split(b"\n")]
    if not any(line.strip() for line in content):
        raise InputError(f"{path}: the file has no line")
    for number, line in enumerate(content, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield GenevalLine(prompt_of(_json(line)), line, where)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None


def _paragraphs(folder: Path, samples: int) -> Iterator[Picture]:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise InputError(f"prompts {str(folder)!r}: the folder has no .txt file; DPG-Bench has one for each item")
    for file in files:
        text = _text(_bytes(file), file).strip()
        if not text:
            raise InputError(f"{file}: the file is empty")
        yield Picture(Path(f"{file.stem}.png"), text, str(file), samples)


def _entries(path: Path) -> Iterator[Picture]:
    try:
        entries = _json(_bytes(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(entries, dict) or not entries:
        raise InputError(f'{path}: expected {{id: {{"category": ..., "prompt": ...}}}} as in MJHQ-30K')
    for name, entry in entries.items():
        where = f"{path}, entry {name!r}"
        values = [entry.get(key) if isinstance(entry, dict) else None for key in ("category", "prompt")]
        if not all(isinstance(value, str) and value for value in values):
            raise InputError(f"{where}: expected a category and a prompt, got {entry!r}")
        category, text = map(str, values)
        yield Picture(Path(_file_name(category, where)) / f"{_file_name(name, where)}.png", text, where)


def _file_name(name: str, where: str) -> str:
    """A name that stays in its folder."""
    if Path(name).name != name or name in (".", ".."):
        raise InputError(f"{where}: {name!r} cannot be the name of a file")
    return name


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 ({error})") from None


def _json(content: bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise InputError(f"expected JSON ({error})") from None
