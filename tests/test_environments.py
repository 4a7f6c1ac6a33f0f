"""Where things are hard: no home, names with control characters, pipes, devices, broken members of folders."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from channelvq.data.fetched.packages import cache_root, fetch
from channelvq.errors import InputError
from channelvq.images import load_image, read_images
from channelvq.outputs import check_outputs
from channelvq.terminal import printable

Cvq = Callable[..., tuple[int, str, str]]
COMMAND = (sys.executable, "-m", "channelvq")
QUICK = (
    "train", "small/smoke", "train.steps=40", "train.log_every=1", "train.device=cpu", "train.batch_size=2",
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=16", "data.validation_images=4", "objective.start_images=16",
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two good pictures beside what is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "pictures" / name)
    return tmp_path


def test_members_that_are_no_pictures_are_skipped_and_counted(cvq: Cvq, here: Path) -> None:
    (here / "pictures/gone.png").symlink_to("nowhere")
    (here / "pictures/loop.png").symlink_to("loop.png")
    os.mkfifo(here / "pictures/pipe.png")
    code, stdout, stderr = cvq("tokenize", "pictures")
    assert (code, "2 image(s)" in stdout) == (0, True)
    assert "3 file(s) skipped" in stderr
    images, skipped = read_images(["pictures"], size=8)
    assert len(list(images)) == 2
    assert sorted(entry.path.name for entry in skipped) == ["gone.png", "loop.png", "pipe.png"]


@pytest.mark.parametrize("name", ["gone.png", "pipe.png", "/dev/zero"])
def test_what_was_named_itself_is_an_error_at_once(cvq: Cvq, here: Path, name: str) -> None:
    os.mkfifo(here / "pipe.png")
    code, _, stderr = cvq("tokenize", name)
    assert (code, stderr.count("\n")) == (2, 1)
    assert name in stderr
    with pytest.raises(InputError, match=name):
        load_image(name)


def test_tokens_go_into_a_pipe_without_a_word_between_them(here: Path) -> None:
    words = (*COMMAND, "tokenize", "pictures", "-o", "/dev/stdout")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["images"]) == 2
    assert "2 image(s)" in done.stderr


def test_a_device_may_be_written_to(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/dev")  # as for everybody but root
    check_outputs([Path("/dev/null")])
    with pytest.raises(InputError, match="no permission"):
        check_outputs([Path("/dev/new")])


def test_a_training_goes_on_when_nobody_reads_it(here: Path) -> None:
    with subprocess.Popen(
        (*COMMAND, *QUICK, "train.output_dir=run"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
        unread = [line for line in stderr.splitlines() if not line.startswith("warning: ")]  # torch 2.9 has one
        assert (process.wait(100), unread) == (0, [])
    assert (here / "run/final/model.safetensors").is_file()


@pytest.mark.parametrize("text", ["\x1b[31m", "bell\a", "nul\0", "line\rback", "half\udcff", "rtl\u202et", "\x9b31m"])
def test_what_a_terminal_would_obey_is_spelled_out(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert "\\" in shown


def test_names_of_files_cannot_colour_the_terminal(cvq: Cvq, here: Path) -> None:
    (here / "pictures/x\x1b[31m.png").write_bytes(b"no picture")
    (here / "pictures" / b"y\xff.png".decode("utf-8", "surrogateescape")).write_bytes(b"no picture")
    code, stdout, stderr = cvq("tokenize", "pictures", "-o", "out\x1b[31m\udcff.json")
    assert (code, "\x1b" in stdout + stderr) == (0, False)
    assert "2 file(s) skipped" in stderr
    code, _, stderr = cvq("tokenize", "no\x1b[31msuch.png")
    assert (code, "\x1b" in stderr) == (2, False)


def test_without_a_home_nothing_is_kept_and_fetching_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CHANNELVQ_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert not cache_root().exists()
    with pytest.raises(InputError, match="set CHANNELVQ_CACHE to a folder you can write to"):
        fetch("fluent-emoji")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become nobody in particular")
def test_commands_work_for_a_user_without_name_and_home(here: Path) -> None:
    os.chmod(here, 0o777)
    for folder in here.parents:
        if folder.stat().st_mode & 0o001 == 0:
            pytest.skip(f"{folder} is closed to others")
    words = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", *COMMAND)
    settings = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    for call in (("tokenize", "pictures"), (*QUICK, "data.sources={p: {kind: folder, root: pictures, validation: 0.5}}",
                                            "train.steps=1", "train.output_dir=run")):  # fmt: skip
        done = subprocess.run([*words, *call], env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "of split" in done.stderr or "split" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
