"""Outputs: never an input, nobody else's folder, one process at a time; what killed writers leave is swept."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from channelvq import files
from channelvq.errors import InputError
from channelvq.files import filled_folder, only_writer, replaced_folder, workplace, write_text_atomically
from channelvq.outputs import check_outputs
from channelvq.pretrained import PACKAGE

Cvq = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("tokenizer", "car"):
        shutil.copytree(PACKAGE / "bundled" / name, tmp_path / name)
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.new("RGB", (64, 64), (90 * i, 0, 0)).save(tmp_path / f"photos/{i}.png")
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/mother.txt").write_text("dear")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


ONTO_INPUTS = (
    "export car car",
    "export car .",
    "export car letters",
    "tokenize photos/0.png -o photos/0.png",
    "tokenize photos -o photos/1.png",
    "tokenize photos -t tokenizer -o tokenizer/model.safetensors",
    "tokenize photos -o ./photos/../photos/0.png",
    "doctor tokenizer photos --json tokenizer/config.json",
    "doctor tokenizer photos -o tokenizer",
    "doctor tokenizer photos -o photos",
    "doctor tokenizer photos -o letters",
    "reconstruct photos -o photos",
    "reconstruct photos -o letters",
    "evaluate reconstruction tokenizer photos --json tokenizer/config.json",
    "evaluate reconstruction tokenizer photos --markdown tokenizer/README.md",
    "evaluate reconstruction tokenizer photos --plot photos/0.png",
    "evaluate geneval car --json car/config.json",
    "evaluate geneval car -o car",
    "evaluate geneval car -o letters",
    "generate x --car car -o car",
    "generate x -o letters",
    "generate x -o new --stream letters",
    "report car -o car",
    "report bundled -o letters",
    "report car --json car/tokenizer/config.json",
    "demo -o letters",
    "data shard photos photos",
    "data shard photos letters",
    "compare results.json results.json --json results.json",
    "detokenize results.json -o tokenizer -t tokenizer",
    "train small/smoke train.output_dir=tokenizer",
    "train small/smoke train.output_dir=letters",
)


@pytest.mark.parametrize("words", ONTO_INPUTS)
def test_nothing_is_written_onto_what_is_read_or_into_a_folder_of_something_else(
    words: str, cvq: Cvq, here: Path
) -> None:
    before = content(here)
    code, _, err = cvq(*words.split())
    assert code == 2, err
    assert err.startswith("error: cannot write"), err
    assert len(err.splitlines()) == 1
    assert content(here) == before


def test_overwrite_opens_a_folder_of_something_else_and_no_input(cvq: Cvq, here: Path) -> None:
    assert cvq("reconstruct", "photos", "-o", "letters", "--overwrite")[0] == 0
    assert {"mother.txt", "0000-0.png", "0001-1.png"} <= content(here / "letters").keys()
    assert cvq("reconstruct", "photos", "-o", "letters")[0] == 0  # now it is one of ours
    assert cvq("export", "car", "car", "--overwrite")[0] == 2
    assert cvq("tokenize", "photos", "-o", "photos/tokens.json")[0] == 0  # beside what is read, not onto it


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    for given in ({"files": [tmp_path / name]}, {"folder": tmp_path / name}, {"files": [tmp_path / name / "a.json"]}):
        with pytest.raises(InputError, match="no file can have this name"):
            check_outputs(**given)  # type: ignore[arg-type]


def test_links_lead_to_what_they_are_of(here: Path) -> None:
    (here / "link.png").symlink_to(here / "photos/0.png")
    (here / "alias").symlink_to(here / "tokenizer")
    for file, folder in (("link.png", None), (None, "alias")):
        with pytest.raises(InputError, match="cannot write"):
            check_outputs(
                [Path(file) if file else None], Path(folder) if folder else None, inputs=("photos/0.png", "tokenizer")
            )


# One process at a time

HOLD = """
import sys, time
from pathlib import Path
from channelvq.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    "words",
    ["reconstruct photos -o out", "generate x -o out", "generate x -o other --stream out", "export car out",
     "data shard photos out", "train small/smoke train.output_dir=out"],
)  # fmt: skip
def test_a_second_process_is_refused_until_the_first_is_gone(words: str, cvq: Cvq, here: Path) -> None:
    with holder(here / "out") as process:
        code, _, err = cvq(*words.split())
        assert code == 2
        assert "out: another process is writing to it" in err
        process.send_signal(signal.SIGKILL)
    with only_writer(here / "out"):  # a lock dies with its holder
        pass
    assert content(here).keys() >= {"photos/0.png"}
    assert not (here / "out/.lock").exists()


def test_the_folder_of_a_killed_command_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/atlas.png").write_bytes(b"one of the first pictures of a report")
    killed = holder(tmp_path / "out")
    killed.kill()
    killed.communicate()
    check_outputs(folder=tmp_path / "out", own=("report.html",))
    with only_writer(tmp_path / "out"):
        pass
    for left in ("", "what another program keeps there"):
        if left:
            (tmp_path / "out/.lock").write_text(left)
        with pytest.raises(InputError, match="something else"):
            check_outputs(folder=tmp_path / "out", own=("report.html",))


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with only_writer(tmp_path / "new"):
        assert (tmp_path / "new/.lock").exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with only_writer(tmp_path / "old"):
        (tmp_path / "old/result").write_text("")
    assert content(tmp_path / "old").keys() == {"result"}


# Killed writers

WRITE = """
import sys, time
from pathlib import Path
from channelvq import files
kind, place = sys.argv[1], Path(sys.argv[2])
def stop(new):
    (new / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
if kind == "file":
    def write(stream):
        stream.write(b"half")
        stop(Path(stream.name).parent)
    files.write_atomically(place, write)
else:
    with getattr(files, kind)(place) as new:
        stop(new)
"""
WRITERS: dict[str, Callable[[Path], object]] = {
    "file": lambda place: write_text_atomically(place, "whole"),
    "filled_folder": lambda place: fill(filled_folder, place),
    "replaced_folder": lambda place: fill(replaced_folder, place),
    "workplace": lambda place: fill(workplace, place),
}


def fill(kind: Callable, place: Path) -> None:
    with kind(place) as new:
        (new / "whole").write_text("whole")


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_writer_left_is_swept_and_a_living_one_is_let_be(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "YOUNG", 0.0)
    place = tmp_path / "deep/a [name]"

    def halves() -> list[Path]:
        return list(tmp_path.rglob("half"))

    writing = []
    for _ in range(2):
        command = [sys.executable, "-c", WRITE, kind, str(place)]
        writing.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert writing[-1].stdout.readline() == "writing\n"
    killed, living = writing
    killed.kill()
    killed.communicate()
    assert len(halves()) == 2
    WRITERS[kind](place)
    assert len(halves()) == 1
    living.kill()
    living.communicate()
    WRITERS[kind](place)
    assert not halves()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"a [name]", "whole"}


def test_a_young_workplace_is_left_alone(tmp_path: Path) -> None:
    left = tmp_path / ".a.young"
    left.mkdir()
    (left / files.WORKPLACE_LOCK).touch()
    write_text_atomically(tmp_path / "a", "")
    assert left.exists()  # its writer may be about to take the lock
    old = time.time() - 60
    os.utime(left / files.WORKPLACE_LOCK, (old, old))
    write_text_atomically(tmp_path / "a", "")
    assert not left.exists()


def test_what_writers_of_other_places_left_is_swept_and_folders_of_the_user_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "YOUNG", 0.0)
    for name in (".b.with_a_lock", ".b.x1y2z3_4", ".mine", ".mine.x1y2z3_4"):
        (tmp_path / name).mkdir()
    (tmp_path / ".b.with_a_lock" / files.WORKPLACE_LOCK).touch()
    (tmp_path / ".mine.x1y2z3_4" / "text").touch()
    write_text_atomically(tmp_path / "a", "")
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".mine", ".mine.x1y2z3_4"}


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, full_disk: Callable) -> None:
    write_text_atomically(tmp_path / "a.json", "before")
    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        write_text_atomically(tmp_path / "a.json", "x" * 10**6)
    assert caught.value.filename == str(tmp_path / "a.json")
    assert content(tmp_path) == {"a.json": b"before"}
