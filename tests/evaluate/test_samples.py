"""Samples for the scorers of others: what is drawn, in which order, and the one file of all of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.car.conftest import make_car

from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError
from channelvq.evaluate.samples import draw_samples, read_texts, write_npz

TEXTS = ["a green dog", "a red car", "two cats"]


def test_samples_of_all_prompts_alternate_and_a_stopped_call_goes_on(tmp_path: Path) -> None:
    car, sampling, seen = make_car(), SamplingSettings(seed=5), []
    files = draw_samples(car, TEXTS, 7, sampling, tmp_path / "whole", lambda *done: seen.append(done))
    assert seen[-1] == (7, 7)
    drawn = car.generate([TEXTS[i % 3] for i in range(7)], seed=5, exact=False)
    assert [np.asarray(Image.open(file)).tolist() for file in files] == [np.asarray(i).tolist() for i in drawn.images]
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    draw_samples(car, TEXTS, 7, sampling, tmp_path / "whole", lambda *_: None)
    assert [file.read_bytes() for file in files] == before
    with pytest.raises(InputError, match="other guidance_scale"):
        draw_samples(car, TEXTS, 7, SamplingSettings(2.0, seed=5), tmp_path / "whole", lambda *_: None)


def pictures(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    rng, files = np.random.default_rng(0), []
    for i, (height, width) in enumerate(sizes):
        files.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(files[-1])
    return files


def test_the_file_is_what_numpy_reads_as_arr_0(tmp_path: Path) -> None:
    files = pictures(tmp_path, (6, 8), (6, 8), (6, 8))
    write_npz(files, tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as stored:
        assert stored.files == ["arr_0"]
        assert stored["arr_0"].dtype == np.uint8
        assert (stored["arr_0"] == np.stack([np.asarray(Image.open(file)) for file in files])).all()


def test_pictures_of_other_sizes_and_damaged_ones_are_named_and_leave_no_file(tmp_path: Path) -> None:
    files = pictures(tmp_path, (6, 8), (8, 6))
    with pytest.raises(InputError, match=r"1\.png: expected a picture of 8 x 6 px"):
        write_npz(files, tmp_path / "samples.npz")
    files[1].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png: the picture cannot be read"):
        write_npz(files, tmp_path / "samples.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_texts_are_the_lines(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("tench\n\n  gold fish \n", encoding="utf-8")
    assert read_texts(tmp_path / "texts") == ["tench", "gold fish"]
    (tmp_path / "texts").write_text("\n")
    for path in (tmp_path / "texts", tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="expected a"):
            read_texts(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command(cvq, here: Path) -> None:  # type: ignore[no-untyped-def]
    make_car().save_pretrained(here / "car")
    (here / "texts.txt").write_text("\n".join(TEXTS))
    words = ["evaluate", "samples", "car", "texts.txt", "-o", "samples", "-n", 4, "--npz", "all.npz", "--seed", 2]
    code, out, err = cvq(*words)
    assert code == 0, err
    assert "4 samples of 3 prompts" in out
    with np.load(here / "all.npz") as stored:
        assert stored["arr_0"].shape == (4, 16, 16, 3)
    assert json.loads((here / "samples.json").read_text())["seed"] == 2
    code, _, err = cvq("evaluate", "samples", "car", "texts.txt", "-o", "samples", "--npz", "texts.txt")
    assert (code, "texts.txt" in err) == (2, True)
