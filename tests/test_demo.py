"""The demo on a machine that has nothing but the package."""

import sys
from pathlib import Path

import pytest

from channelvq import demo


def test_without_extras_it_draws_what_it_can_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    monkeypatch.setattr(demo, "find_package", lambda name: None)
    monkeypatch.setattr(demo, "draw_prompts", lambda output, device: 1.0)
    monkeypatch.setattr(demo, "draw_clothes", lambda output, device: 1.0)
    rows = demo.run(tmp_path)
    told = " ".join(capsys.readouterr().out.split())
    assert "without photographs, which come with scikit-image: pip install 'channelvq[demo]'" in told
    assert "without emoji, which `cvq data fetch fluent-emoji emojibase-data` brings" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "contact-sheet.png", "scene-0.png", "scene-1.png", "scene-2.png",
    ]  # fmt: skip
    assert {row.method for row in rows} == {"CVQ", "PCA", "JPEG", "WebP"}
