"""Tokens of clips: a picture is a clip of one frame, later frames change nothing of earlier ones, prefixes decode."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from channelvq import ClipTokenizer, CVQTokenizer
from channelvq.config import from_dict
from channelvq.errors import InputError
from channelvq.images import normalize, to_pil
from channelvq.video import ClipConfig

IMAGE = {
    "image_size": 16, "latent_channels": 8, "quantizer": {"kind": "ema", "codebook_size": 64},
    "network": {"kind": "conv", "stem": 4, "base_channels": 8, "multipliers": [1], "num_blocks": 1},
}  # fmt: skip


def made(image: dict[str, object] | None = None, **settings: object) -> ClipTokenizer:
    """Weights at random everywhere: a start at zero would hide what sees too much."""
    config = from_dict(ClipConfig, {"image": IMAGE | (image or {}), "width": 16, "num_blocks": 1, **settings})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        tok = ClipTokenizer(config).eval()
        for parameter in tok.parameters():
            parameter.normal_(0, 0.1)
        x = clips(16, 5, seed=9)
        z = tok.image.latents(x.flatten(0, 1)).unflatten(0, (16, 5))
        tok.image.quantizer.start_from(z[:, 0], torch.Generator().manual_seed(0))
        tok.motion_quantizer.start_from(tok.changes(z), torch.Generator().manual_seed(0))
    return tok


def clips(count: int, frames: int, seed: int = 0, size: int = 16) -> Tensor:
    shape = (count, frames, 3, size, size)
    return normalize(torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8))


@pytest.fixture(scope="module")
def tok() -> ClipTokenizer:
    return made()


def test_a_clip_of_one_frame_is_the_picture(tok: ClipTokenizer) -> None:
    x = clips(3, 1)
    ids = tok.tokenize(x)
    assert ids.shape == (3, 1, 8)
    assert torch.equal(ids[:, 0], tok.image.tokenize(x[:, 0]))
    assert torch.equal(tok.detokenize(ids)[:, 0], tok.image.detokenize(ids[:, 0], "tensor"))
    assert torch.equal(tok.detokenize(ids[:, :, :3])[:, 0], tok.image.detokenize(ids[:, 0, :3], "tensor"))


@pytest.mark.parametrize("group", [1, 2, 3])
def test_later_frames_change_nothing_of_the_groups_before(group: int) -> None:
    tok = made(group=group)
    x = clips(2, 7)
    ids, frames = tok.tokenize(x), tok.detokenize(tok.tokenize(x))
    for groups in range(1, ids.shape[1]):
        first = tok.config.num_frames(groups)
        other = torch.cat([x[:, :first], clips(2, 7 - first, seed=1)], dim=1)
        changed = tok.tokenize(other)
        assert torch.equal(changed[:, :groups], ids[:, :groups])
        assert not torch.equal(changed, ids)
        assert torch.equal(tok.tokenize(x[:, :first]), ids[:, :groups])
        assert torch.equal(tok.detokenize(changed)[:, :first], frames[:, :first])
        assert torch.equal(tok.detokenize(ids[:, :groups]), frames[:, :first])


def test_later_channels_change_nothing_that_a_prefix_decodes(tok: ClipTokenizer) -> None:
    ids = tok.tokenize(clips(2, 5))
    other = ids.clone()
    other[:, :, 3:] = 0
    assert torch.equal(tok.detokenize(ids[:, :2, :3]), tok.detokenize(other[:, :2, :3]))
    assert not torch.equal(tok.detokenize(ids), tok.detokenize(other))


def test_a_group_is_seen_through_what_was_decoded_before_it(tok: ClipTokenizer) -> None:
    """The encoder's past is the decoder's: frames of a clip and of its own reconstruction's first frame agree."""
    x = clips(1, 5)
    ids = tok.tokenize(x)
    worse = tok.tokenize(torch.cat([clips(1, 1, seed=3), x[:, 1:]], dim=1))
    assert not torch.equal(ids[:, 1:], worse[:, 1:])
    z = tok.image.latents(x[0])[None]
    coded = tok.code(z)
    assert torch.equal(coded.indices, ids)
    assert torch.equal(coded.maps, tok.maps_of(ids, 3))


def test_clips_do_not_depend_on_their_neighbours(tok: ClipTokenizer) -> None:
    x = clips(11, 5)
    ids = tok.tokenize(x)
    alone = torch.cat([tok.tokenize(clip[None]) for clip in x])
    assert torch.equal(ids, alone)
    assert torch.equal(tok.detokenize(ids)[10:], tok.detokenize(ids[10:]))


def test_a_last_group_that_is_not_full_stands_still(tok: ClipTokenizer) -> None:
    x = clips(1, 4)
    ids = tok.tokenize(x)
    assert torch.equal(ids, tok.tokenize(torch.cat([x, x[:, -1:]], dim=1)))
    assert tok.detokenize(ids, frames=4).shape == (1, 4, 3, 16, 16)
    assert torch.equal(tok.detokenize(ids, frames=4), tok.detokenize(ids)[:, :4])


def test_a_clip_goes_on_without_tokens(tok: ClipTokenizer) -> None:
    ids = tok.tokenize(clips(1, 5))
    longer = tok.detokenize(ids[:, :2], frames=9)
    assert torch.equal(longer[:, :3], tok.detokenize(ids[:, :2]))
    assert torch.equal(longer, tok.detokenize(ids[:, :2], frames=11)[:, :9])
    # With no token of the later groups it is as if there were no such groups.
    assert torch.equal(tok.detokenize(ids, num_tokens=0), tok.detokenize(ids[:, :1], frames=5))
    assert torch.equal(tok.detokenize(ids, num_tokens=8), tok.detokenize(ids))


def test_at_the_start_a_group_without_tokens_is_the_frame_before(tok: ClipTokenizer) -> None:
    fresh = ClipTokenizer(tok.config).eval()
    out = fresh.detokenize(torch.zeros(1, 1, 8, dtype=torch.int64), frames=3)
    assert torch.equal(out[:, 1], out[:, 0])
    assert torch.equal(out[:, 2], out[:, 0])


def test_forward_is_what_tokens_decode_to_and_dropped_tokens_are_not_seen(tok: ClipTokenizer) -> None:
    x = clips(2, 5)
    with torch.no_grad():
        whole, coded = tok(x)
        keep = torch.ones(2, 3, 8, dtype=torch.bool)
        keep[:, :, 3:] = False
        keep[:, 2] = False
        part, _ = tok(x, keep)
    assert torch.allclose(whole.clamp(-1, 1), tok.detokenize(coded.indices), atol=1e-5)
    ids = tok.code(tok.image.latents(x.flatten(0, 1)).unflatten(0, (2, 5)), keep).indices
    assert torch.allclose(part.clamp(-1, 1), tok.detokenize(ids[:, :2, :3], frames=5), atol=1e-5)


def test_all_parts_learn_from_a_clip() -> None:
    tok = made({"quantizer": {"kind": "plain", "codebook_size": 64}}).train()
    out, coded = tok(clips(2, 5))
    (out.square().mean() + sum(coded.losses.values())).backward()
    assert [name for name, p in tok.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_saved_tokenizer_is_the_same(tok: ClipTokenizer, tmp_path: Path) -> None:
    tok.save_pretrained(tmp_path / "tok")
    again = ClipTokenizer.from_pretrained(tmp_path / "tok")
    ids = tok.tokenize(clips(2, 5))
    assert torch.equal(again.tokenize(clips(2, 5)), ids)
    assert torch.equal(again.detokenize(ids), tok.detokenize(ids))
    with pytest.raises(InputError, match="there is no such setting"):
        CVQTokenizer.from_pretrained(tmp_path / "tok")


def test_files_are_clips_of_evenly_spaced_frames(tok: ClipTokenizer, tmp_path: Path) -> None:
    frames = to_pil(clips(1, 18, size=24)[0])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    ids = tok.tokenize(tmp_path / "a.webp")
    assert ids.shape == (1, 5, 8)
    taken = torch.stack([tok.image.latents(frames[i])[0] for i in range(0, 18, 2)])[None]
    assert torch.equal(ids, tok.code(taken).indices)
    assert torch.equal(
        tok.tokenize([tmp_path / "a.webp"] * 2, frames=3)[1], tok.tokenize(tmp_path / "a.webp", frames=3)[0]
    )
    assert isinstance(tok.detokenize(ids, "pil")[0][8], Image.Image)


def test_frames_of_any_size_with_a_resampler() -> None:
    tok = made({"resampler": {"width": 16, "num_heads": 2}})
    x = clips(1, 3, size=32)[..., :24]
    ids = tok.tokenize(x)
    assert torch.equal(ids[:, 0], tok.image.tokenize(x[:, 0]))
    assert tok.detokenize(ids, size=(32, 24)).shape == (1, 3, 3, 32, 24)
    assert tok.detokenize(ids).shape == (1, 3, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2, 3, 16), r"expected clips \(B, T, 3, H, W\) or one \(T, 3, H, W\).* got \(2, 3, 16\)"),
        (torch.zeros(1, 1025, 3, 1, 1), "at most 1024 frames"),
        (torch.full((1, 2, 3, 16, 16), 3.0), "expected \\[-1, 1\\]"),
        ([], "no clips given"),
        ("nowhere.webp", "nowhere.webp.*no such file"),
        ("nowhere.mp4", "nowhere.mp4"),
    ],
)
def test_what_is_no_clip_is_named(given: object, message: str, tok: ClipTokenizer) -> None:
    with pytest.raises(InputError, match=message):
        tok.tokenize(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.zeros(1, 2, 9, dtype=torch.int64), {}, r"k in 1..8 .*got \(1, 2, 9\)"),
        (torch.zeros(4, dtype=torch.int64), {}, r"expected \(B, G, k\)"),
        (torch.full((1, 2, 8), 64), {}, "64 at image 0, token 0 is outside 0..63"),
        (torch.zeros(1, 2, 8), {}, "expected whole numbers"),
        (torch.zeros(1, 2, 8, dtype=torch.int64), {"frames": 0}, "frames: expected a whole number in 1..1024, got 0"),
        (torch.zeros(1, 2, 8, dtype=torch.int64), {"frames": 10**9}, "frames: expected a whole number in 1..1024"),
        (torch.zeros(1, 2, 8, dtype=torch.int64), {"num_tokens": 9}, "num_tokens, .* in 0..8, got 9"),
        (torch.zeros(1, 2, 8, dtype=torch.int64), {"size": 32}, "size .*makes images of .* alone"),
        (torch.zeros(1, 2, 8, dtype=torch.int64), {"output": "gif"}, "output is 'tensor' or 'pil'"),
    ],
)  # fmt: skip
def test_ids_that_cannot_be_decoded_are_named(
    ids: Tensor, options: dict[str, object], message: str, tok: ClipTokenizer
) -> None:
    with pytest.raises(InputError, match=message):
        tok.detokenize(ids, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": IMAGE | {"axis": "patch"}}, "clips are for tokens of channels"),
        ({"image": {"image_size": 16, "network": {"kind": "linear"}}}, "its maps have no places"),
        ({"image": IMAGE, "group": 0}, "group"),
        ({"image": IMAGE, "frames": 5000}, "at most 1024"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(ClipConfig, settings)
