"""The study of clips at a tiny size: what stands beside each other has the bytes that it says."""

from io import BytesIO

import pytest
import torch
from PIL import Image

from channelvq.config import from_dict
from channelvq.images import to_pil, to_uint8
from channelvq.packed_size import num_bytes
from channelvq.video import ClipConfig, ClipTokenizer
from lab import clip_codecs
from lab.studies import clips as study

IMAGE = {
    "image_size": 32, "latent_channels": 64, "quantizer": {"kind": "ema", "codebook_size": 16},
    "network": {"kind": "conv", "stem": 8, "base_channels": 8, "multipliers": [1], "num_blocks": 1},
}  # fmt: skip


def moving(count: int, frames: int) -> torch.Tensor:
    """Smooth waves that go to the right."""
    x = torch.linspace(0, 6.3, 32)
    at = torch.arange(frames)[None, :, None] * 0.4 + torch.arange(count)[:, None, None] + x
    return to_uint8(at.sin()[:, :, None, None, :].expand(count, frames, 3, 32, 32).contiguous())


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ClipTokenizer(from_dict(ClipConfig, {"image": IMAGE, "width": 16, "num_blocks": 1, "frames": 5})).eval()


def test_all_ways_at_every_budget(tokenizer: ClipTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr(clip_codecs, "QUALITIES", (0, 50))
    monkeypatch.setattr(clip_codecs, "RATES", (30, 51))
    monkeypatch.setattr(clip_codecs, "SCALES", (1, 2))
    monkeypatch.setattr(study, "PREFIXES", ((4, 4), (64, 16)))
    clips = moving(2, 5)
    records, shown = study.measure(
        tokenizer, tokenizer.image, clips, 4.0, {"clips": {"seed": 3}, "frames": {"seed": 4}}
    )
    assert [row["name"] for row in records] == list(study.NAMES) * len(study.PREFIXES)
    for row in records:
        if row["name"] in ("frames", "own"):
            assert row["bytes"] <= max(row["budget"], num_bytes(5, 16))
        if row["name"] == "clips":
            assert row["budget"] == row["bytes"] == num_bytes(row["first_tokens"] + 2 * row["tokens"], 16)
            assert len(row["use_by_group"]) == 3
        assert row["bits_per_second"] == pytest.approx(8 * row["bytes"] * 2 / 4)
        assert row["seed"] == {"frames": 4, "clips": 3, "own": 3}.get(row["name"])
    assert list(shown) == list(study.NAMES)
    table = study.at_bytes({"records": records, "protocol": {"n": 2, "frames": 5}})
    assert len(table.rows) == len(study.PREFIXES)
    assert {len(row) for row in table.rows} == {len(table.headings)}


def test_webp_is_charged_for_its_image_data_alone() -> None:
    clip = moving(1, 3)[0]
    file = BytesIO()
    pictures = to_pil(clip)
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], quality=50, method=6)
    total, payload = len(file.getvalue()), clip_codecs.webp_payload(file.getvalue())
    # RIFF, VP8X and ANIM take 12 + 18 + 14; each frame's own chunk 24, and 8 + 10 for its bitstream.
    assert total - (12 + 18 + 14) - 3 * (24 + 8 + 10) - 3 <= payload <= total - (12 + 18 + 14) - 3 * (24 + 8 + 10)
    still = BytesIO()
    pictures[0].save(still, "WEBP", quality=50, method=6)
    assert (
        len(still.getvalue()) - 12 - 8 - 10 - 1
        <= clip_codecs.webp_payload(still.getvalue())
        <= len(still.getvalue()) - 30
    )


def test_h264_is_charged_for_slices_alone() -> None:
    told, parameters, first, later = b"\x06" + b"x264" * 99, b"\x67abc", b"\x65" + b"a" * 20, b"\x41" + b"b" * 7
    assert clip_codecs.slices(b"".join(b"\0\0\0\1" + unit for unit in (parameters, told, first, later))) == 21 + 8
    assert clip_codecs.slices(b"\0\0\1" + later) == 8
    pytest.importorskip("av")
    files = clip_codecs.ladder(moving(1, 3)[0], "h264")
    assert min(file.num_bytes for file in files) < 60  # soft waves, where x264's own text has some 700 bytes


def test_the_best_file_within_a_budget_and_the_smallest_where_none_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_codecs, "QUALITIES", (0, 40, 90))
    clip = moving(1, 3)[0]
    files = clip_codecs.ladder(clip, "webp")
    assert len(files) == 9
    assert all(file.clip.shape == clip.shape for file in files)
    errors = {file.num_bytes: float((file.clip.double() - clip.double()).square().mean()) for file in files}
    budget = sorted(errors)[len(errors) // 2]
    chosen = clip_codecs.best(files, clip, budget)
    assert errors[chosen.num_bytes] == min(error for size, error in errors.items() if size <= budget)
    assert clip_codecs.best(files, clip, 0).num_bytes == min(errors)


def test_a_clip_that_stands_still_has_all_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_codecs, "QUALITIES", (50,))
    clip = moving(1, 1)[0].expand(4, -1, -1, -1)
    assert all(len(file.clip) == 4 for file in clip_codecs.ladder(clip, "webp"))
    assert isinstance(to_pil(clip)[0], Image.Image)
