"""Frames of animations and videos: those that are shown at even times, whatever the file."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from channelvq.errors import InputError
from channelvq.images import clips
from channelvq.images.clips import check_clip, read_clip, save_clip

GRAYS = range(0, 250, 10)


def animation(path: Path, count: int = 10, duration: int | list[int] = 40) -> Path:
    frames = [Image.new("RGB", (12, 8), (gray, gray, gray)) for gray in GRAYS[:count]]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, lossless=True)
    return path


def shown(path: Path, count: int) -> list[int]:
    return [frame.convert("RGB").getpixel((0, 0))[0] // 10 for frame in read_clip(path, count).frames]  # type: ignore[index]


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.png"])
def test_frames_are_evenly_spaced_from_the_first(name: str, tmp_path: Path) -> None:
    path = animation(tmp_path / name)
    assert shown(path, 10) == list(range(10))
    assert shown(path, 5) == [0, 2, 4, 6, 8]
    assert shown(path, 1) == [0]
    assert shown(path, 4) == [0, 2, 5, 7]
    assert shown(path, 20) == [i // 2 for i in range(20)]
    assert read_clip(path, 3).seconds == pytest.approx(0.4)


def test_time_counts_and_not_the_number_of_frames(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", 3, [100, 100, 800])
    assert shown(path, 10) == [0, 1, 2, 2, 2, 2, 2, 2, 2, 2]


def test_a_still_picture_stands_still(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (70, 70, 70)).save(tmp_path / "a.png")
    assert shown(tmp_path / "a.png", 3) == [7, 7, 7]
    assert read_clip(tmp_path / "a.png", 3).seconds == 0


def test_long_files_are_thinned_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "HELD", 4)
    path = animation(tmp_path / "a.webp", 25)
    assert shown(path, 3) == [0, 8, 16]
    held: list[int] = []

    def change(frame: Image.Image) -> Image.Image:
        held.append(frame.width)
        return frame

    read_clip(path, 3, change)
    assert len(held) < 25  # the others are passed over


def test_clear_frames_stay_clear_and_frames_are_changed_as_they_are_read(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (8, 8), (200, 0, 0, alpha)) for alpha in (0, 128, 255)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=10, lossless=True)
    small = read_clip(tmp_path / "a.webp", 3, lambda frame: frame.resize((2, 2))).frames
    assert [frame.size for frame in small] == [(2, 2)] * 3
    assert [frame.getchannel("A").getpixel((0, 0)) for frame in small] == [0, 128, 255]


def test_bytes_of_an_animation(tmp_path: Path) -> None:
    data = animation(tmp_path / "a.webp").read_bytes()
    assert len(read_clip(data, 4).frames) == 4
    with pytest.raises(InputError, match="image of 100 bytes"):
        read_clip(data[:100], 4)


def test_video_by_pyav(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        for gray in range(0, 200, 20):
            picture = Image.new("RGB", (32, 32), (gray, gray, gray))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    clip = read_clip(path, 5)
    assert [round(frame.getpixel((0, 0))[0] / 40) for frame in clip.frames] == [0, 1, 2, 3, 4]  # type: ignore[index]
    assert clip.seconds == pytest.approx(0.4, abs=0.01)
    path.write_bytes(b"no video")
    with pytest.raises(InputError, match=r"a\.mp4.*broken or no video"):
        check_clip(path)


@pytest.mark.parametrize("count", [0, 1025, 2.0])
def test_a_number_of_frames_that_there_cannot_be(count: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frames of a clip: expected a whole number in 1\.\.1024"):
        read_clip(BytesIO().getvalue(), count)


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_saved_frames_come_back_in_time(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (12, 8), (gray, gray, gray)) for gray in GRAYS[:5]]
    save_clip(frames, tmp_path / "new" / name, seconds=1)
    assert shown(tmp_path / "new" / name, 5) == list(range(5))
    assert read_clip(tmp_path / "new" / name, 5).seconds == pytest.approx(1)
    with pytest.raises(InputError, match=r"expected frames, seconds above 0 and a \.webp or \.gif"):
        save_clip(frames, tmp_path / "a.mp4", seconds=1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot save"):
        save_clip(frames, tmp_path / "file/a.gif", seconds=1)
