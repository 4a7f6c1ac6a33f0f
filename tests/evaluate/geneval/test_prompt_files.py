"""Official prompt files in, the folders of official scorers out: bytes, names, resuming, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from channelvq import CAR, SamplingSettings
from channelvq.evaluate.geneval.drawing import Picture, draw_files
from channelvq.images import load_image, to_tensor

Cvq = Callable[..., tuple[int, str, str]]
# As the official file is written, and as somebody else may write it.
LINES = (
    b'{"tag": "counting", "include": [{"class": "banana", "count": 2}], "exclude": [{"class": "banana", "count": 3}], '
    b'"prompt": "a photo of two bananas"}',
    b'{"prompt":"a photo of a red car",  "include":[{"class":"car","count":1,"color":"red"}],"tag":"colors"}',
)
BENCH = b'{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def geneval(cvq: Cvq, car_folder: Path, detector_folder: Path) -> Cvq:
    """The command with our tiny generator and detector."""
    return lambda *words: cvq("evaluate", "geneval", car_folder, "--detector", detector_folder, *words)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, stderr = result
    assert code == 2, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    for part in parts:
        assert part in stderr


def test_geneval_folders_are_the_official_ones_to_the_byte(geneval: Cvq, here: Path) -> None:
    (here / "p.jsonl").write_bytes(LINES[0] + b"\n" + LINES[1] + b"\r\n")
    code, stdout, stderr = geneval("--prompts", "p.jsonl", "-o", "out", "--json", "r.json", "--samples", 2)
    assert code == 0, stderr
    names = [f"0000{i}/{name}" for i in (0, 1) for name in ("metadata.jsonl", "samples/00000.png", "samples/00001.png")]
    assert files(here / "out") == names
    assert [(here / f"out/0000{i}/metadata.jsonl").read_bytes() for i in (0, 1)] == list(LINES)
    result = json.loads((here / "r.json").read_text())
    assert set(result["generator"]) == {"overall", "counting", "colors"}
    assert result["protocol"]["samples_per_prompt"] == 2
    assert "overall" in stdout


def test_classes_of_another_world_are_drawn_but_not_scored(geneval: Cvq, here: Path) -> None:
    (here / "p.jsonl").write_bytes(b"\n".join([LINES[0], BENCH]))
    code, stdout, _ = geneval("--prompts", "p.jsonl", "-o", "out", "--json", "r.json", "--samples", 1)
    assert code == 0
    assert "not scored here: the detector does not know bench" in stdout
    assert len(files(here / "out")) == 4
    assert json.loads((here / "r.json").read_text()) == {
        "benchmark": "GenEval", "folder": "out", "images": 2, "unknown_to_detector": ["bench"]
    }  # fmt: skip


def test_dpg_bench_tiles_four_images_without_gaps(geneval: Cvq, here: Path, car_folder: Path) -> None:
    (here / "prompts").mkdir()
    for name, text in (("partiprompts3", "a red car.\n"), ("COCOval2014000", "two bananas")):
        (here / f"prompts/{name}.txt").write_text(text)
    assert geneval("--prompts", "prompts", "-o", "out", "--json", "r.json")[0] == 0
    assert files(here / "out") == ["COCOval2014000.png", "partiprompts3.png"]
    sheet = load_image(here / "out/partiprompts3.png")
    assert sheet.size == (32, 32)
    # Items in order of their names, four seeds each.
    alone = CAR.from_pretrained(car_folder).generate(["two bananas"] * 4 + ["a red car."] * 4, exact=False).images
    for i, corner in enumerate([(0, 0), (16, 0), (0, 16), (16, 16)]):
        tile = sheet.crop((*corner, corner[0] + 16, corner[1] + 16))
        assert torch.equal(to_tensor(tile), to_tensor(alone[4 + i]))


def test_mjhq_has_an_image_a_prompt_in_its_categorys_folder(geneval: Cvq, here: Path) -> None:
    entries = {"ab12": {"category": "animals", "prompt": "a cat"}, "cd34": {"category": "food", "prompt": "bananas"}}
    (here / "meta_data.json").write_text(json.dumps(entries))
    code, stdout, _ = geneval("--prompts", "meta_data.json", "-o", "out")
    assert code == 0
    assert files(here / "out") == ["animals/ab12.png", "food/cd34.png"]
    assert "2 file(s) for MJHQ-30K" in stdout


def test_what_is_there_is_not_drawn_again_and_the_rest_is_the_same(car_folder: Path, tmp_path: Path) -> None:
    car = CAR.from_pretrained(car_folder)
    pictures = [Picture(Path(f"{i}.png"), f"a photo of {i}", "a test", copies=1 + i % 3) for i in range(70)]
    assert draw_files(car, pictures, SamplingSettings(seed=3), tmp_path / "whole", lambda *_: None) == 70
    whole = content(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.copy(tmp_path / "whole.json", tmp_path / "part.json")
    for i in (2, 40, 41, 69):
        (tmp_path / f"part/{i}.png").unlink()
    (tmp_path / "part/3.png").write_bytes(b"kept")
    seen: list[tuple[int, int]] = []
    assert draw_files(car, pictures, SamplingSettings(seed=3), tmp_path / "part", lambda *d: seen.append(d)) == 4
    assert content(tmp_path / "part") == whole | {"3.png": b"kept"}
    assert seen[-1] == (4, 4)
    assert len(set(whole.values())) == 70


def test_images_of_unknown_settings_are_not_taken(geneval: Cvq, here: Path) -> None:
    (here / "p.jsonl").write_bytes(LINES[0])
    assert geneval("--prompts", "p.jsonl", "-o", "out")[0] == 0
    shutil.copytree(here / "out", here / "copy")
    assert_refused(geneval("--prompts", "p.jsonl", "-o", "copy", "--seed", 9), "copy.json", "is missing")
    assert not (here / "copy.json").exists()
    assert_refused(geneval("--prompts", "p.jsonl", "-o", "/"), "give a folder that has a name")


def test_images_of_other_settings_are_not_taken(geneval: Cvq, here: Path) -> None:
    (here / "p.jsonl").write_bytes(LINES[0])
    assert geneval("--prompts", "p.jsonl", "-o", "out")[0] == 0
    before = content(here / "out")
    assert_refused(geneval("--prompts", "p.jsonl", "-o", "out", "--seed", 9), "out", "other seed", "another --output")
    (here / "p.jsonl").write_bytes(LINES[1])
    assert_refused(geneval("--prompts", "p.jsonl", "-o", "out"), "other pictures")
    assert content(here / "out") == before


def test_no_file_takes_the_place_of_the_settings_beside_the_folder(geneval: Cvq, here: Path) -> None:
    (here / "p.jsonl").write_bytes(LINES[0])
    (here / "m.json").write_text(json.dumps({"a": {"category": "food", "prompt": "bananas"}}))
    before = content(here)
    given = ("--prompts", "p.jsonl", "--samples", 1, "-o")
    assert_refused(geneval(*given, "out", "--json", "out.json"), "'out.json'", "another place")
    assert_refused(geneval(*given, "out/", "--json", here / "x/../out.json"), "out.json", "another place")
    assert_refused(geneval(*given, "out", "--json", "p.jsonl"), "p.jsonl", "another place")
    assert_refused(geneval("--prompts", "m.json", "-o", "m"), "--output m", "m.json", "--prompts")
    assert content(here) == before
    for other in ("[]", '{"overall": 1}', "{"):  # of somebody else, whatever is in the folder
        (here / "out.json").write_text(other)
        assert_refused(geneval(*given, "out"), "out.json", "give another --output")
        assert (here / "out.json").read_text() == other
    assert not (here / "out").exists()
    (here / "out.json").unlink()
    for _ in range(2):  # the second goes on from the first
        assert geneval(*given, "out", "--json", "r.json")[0] == 0


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (b"", ["p.jsonl", "no line"]),
        (LINES[0] + b"\n{", ["p.jsonl, line 2", "JSON"]),
        (LINES[0] + b"\n\n[]", ["p.jsonl, line 3", "expected an object"]),
        (LINES[0] + b"\n\xff", ["p.jsonl, line 2", "JSON"]),
        (b'{"tag": "x", "include": [{"class": "car"}], "prompt": "a"}', ["line 1", "include[0].count"]),
        (b'{"tag": "x", "include": [{"class": "car", "count": 1}]}', ["line 1", "prompt: expected text"]),
        (
            LINES[0] + b"\n" + LINES[1].replace(b"red car", b"red car " * 40),
            ["p.jsonl, line 2", "at most 24", "shorten"],
        ),
    ],
)
def test_bad_lines_are_named_by_their_number(geneval: Cvq, here: Path, lines: bytes, parts: list[str]) -> None:
    (here / "p.jsonl").write_bytes(lines)
    assert_refused(geneval("--prompts", "p.jsonl", "-o", "out"), *parts)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([], ["expected {id:"]),
        ({"a": {"category": "food"}}, ["entry 'a'", "a category and a prompt"]),
        ({"a": {"category": "..", "prompt": "x"}}, ["entry 'a'", "'..' cannot be the name of a file"]),
        ({"../a": {"category": "food", "prompt": "x"}}, ["'../a' cannot be the name of a file"]),
    ],
)
def test_bad_entries_are_named(geneval: Cvq, here: Path, given: Any, parts: list[str]) -> None:
    (here / "m.json").write_text(json.dumps(given))
    assert_refused(geneval("--prompts", "m.json", "-o", "out"), "m.json", *parts)


def test_bad_places_are_named(geneval: Cvq, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "p.txt").write_text("a cat")
    (here / "p.jsonl").write_bytes(LINES[0])
    (here / "blank").mkdir()
    (here / "blank/a.txt").write_text(" \n")
    assert_refused(geneval("--prompts", "none.jsonl", "-o", "out"), "none.jsonl", "no such file")
    assert_refused(geneval("--prompts", "empty", "-o", "out"), "'empty'", "no .txt file")
    assert_refused(geneval("--prompts", "blank", "-o", "out"), "a.txt", "empty")
    assert_refused(geneval("--prompts", "p.txt", "-o", "out"), "p.txt", "expected GenEval's .jsonl")
    assert_refused(geneval("--prompts", "p.jsonl"), "give --output")
    assert_refused(geneval("--prompts", "p.jsonl", "-o", "p.txt"), "p.txt", "cannot write")
    assert_refused(geneval("--prompts", "p.jsonl", "-o", "out", "--temperature", -1), "temperature")
    assert_refused(geneval("--json", "empty"), "cannot write", "empty")
