"""Tokenizers of images of any size: ids, sizes, files, and nothing that changes without a resampler."""

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from channelvq import CVQTokenizer
from channelvq.config import digest, from_dict, to_dict
from channelvq.errors import InputError
from channelvq.evaluate.metrics import psnr
from channelvq.evaluate.reconstruction import bits_for
from channelvq.evaluate.token_file import TokenRow, check_fits, read_tokens, write_tokens
from channelvq.images import images_to_list, normalize, to_pil, to_uint8, working_size
from channelvq.nn.conv import ConvConfig
from channelvq.nn.resampler import ResamplerConfig
from channelvq.quantize.axis import Axis
from channelvq.quantize.codebook import PlainConfig
from channelvq.quantize.registry import QUANTIZERS
from channelvq.tokenizer import CVQConfig

HOME = 16
RESAMPLER = ResamplerConfig(width=16, num_heads=2)


def config(axis: Axis = "channel", quantizer: Any = None, resampler: ResamplerConfig | None = RESAMPLER) -> CVQConfig:
    network = ConvConfig(stem=2, base_channels=16, multipliers=(1, 2), num_blocks=1)
    return CVQConfig(image_size=HOME, latent_channels=12, axis=axis, network=network,
                     quantizer=quantizer or PlainConfig(codebook_size=40), resampler=resampler)  # fmt: skip


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth and colourful, float in [-1, 1]."""
    coarse = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


def build(settings: CVQConfig) -> CVQTokenizer:
    """With a codebook from data and, where there is one, a resampler that has left its zeros."""
    torch.manual_seed(0)
    tok = CVQTokenizer(settings)
    with torch.no_grad():
        if tok.resampler is not None:
            for parameter in tok.resampler.parameters():
                parameter.normal_(std=0.2)
        home = torch.stack([picture(HOME, HOME, seed) for seed in range(64)])
        tok.quantizer.start_from(tok.encoder(home), torch.Generator().manual_seed(0))
    return tok.eval()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["channel", "patch"])
def tokenizer(request: pytest.FixtureRequest) -> CVQTokenizer:
    return build(config(request.param))


def mixed() -> list[torch.Tensor]:
    """All sizes that the decoder works at, some twice, in no order."""
    sizes = [(16, 16), (24, 24), (16, 32), (24, 24), (12, 20), (16, 16), (32, 16), (64, 64), (24, 24)]
    return [picture(height, width, seed) for seed, (height, width) in enumerate(sizes)]


def test_ids_of_an_image_do_not_depend_on_the_others_of_the_call(tokenizer: CVQTokenizer) -> None:
    images = mixed()
    together = tokenizer.tokenize(images)
    assert together.shape == (len(images), tokenizer.num_tokens)
    assert torch.equal(torch.cat([tokenizer.tokenize(image) for image in images]), together)
    assert torch.equal(tokenizer.tokenize(images[::-1]).flip(0), together)
    assert torch.equal(tokenizer.tokenize(images[2:7]), together[2:7])
    latents = tokenizer.latents(images)
    assert torch.equal(torch.cat([tokenizer.latents(image) for image in images]), latents)
    assert len({tuple(row) for row in together.tolist()}) == len(images)


def test_ids_are_those_of_encode_at_the_images_own_size(tokenizer: CVQTokenizer) -> None:
    images = torch.stack([picture(24, 32, seed) for seed in range(3)])
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(images).indices, tokenizer.tokenize(images))
        x_hat, quantized = tokenizer(images)
        assert x_hat.shape == images.shape
        assert quantized.z_q.shape == (3, 12, 4, 4)
        torch.testing.assert_close(tokenizer.decode(quantized.z_q, (24, 32)), x_hat)
        plain, nothing = tokenizer(images, quantize=False)
    assert plain.shape == images.shape
    assert nothing is None
    decoded = tokenizer.detokenize(quantized.indices, "tensor", size=(24, 32))
    torch.testing.assert_close(decoded, x_hat.clamp(-1, 1), rtol=0, atol=1e-5)


def test_at_home_all_is_as_without_a_resampler() -> None:
    bare, full = build(config(resampler=None)), build(config())
    full.load_state_dict(bare.state_dict(), strict=False)
    images = [picture(HOME, HOME, seed) for seed in range(11)]
    ids = bare.tokenize(images)
    assert torch.equal(full.tokenize(images), ids)
    assert torch.equal(full.latents(images), bare.latents(images))
    for size in (None, HOME, (HOME, HOME)):
        assert torch.equal(full.detokenize(ids, "tensor", size=size), bare.detokenize(ids, "tensor"))
    assert torch.equal(bare.detokenize(ids, "tensor", size=HOME), bare.detokenize(ids, "tensor"))
    weights = [build(settings).state_dict() for settings in (config(resampler=None), config())]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())  # the first, by one seed


def test_a_codebook_is_of_the_home_size_whatever_quantizes() -> None:
    for kind in QUANTIZERS.names():
        if kind in ("fsq", "lfq"):
            pytest.importorskip("vector_quantize_pytorch")
        quantizer = QUANTIZERS[kind](codebook_size=16)
        tok = build(config(quantizer=quantizer))
        ids = tok.tokenize(mixed())
        assert ids.shape == (9, 12), kind
        assert torch.equal(tok.tokenize(mixed()[4]), ids[4:5]), kind
        assert tok.detokenize(ids, "tensor", size=(12, 20)).shape == (9, 3, 12, 20), kind


def test_a_prefix_decodes_at_any_size(tokenizer: CVQTokenizer) -> None:
    image = picture(24, 40)[None]
    ids = tokenizer.tokenize(image)
    keep = (torch.arange(tokenizer.num_tokens) < 3)[None]
    with torch.no_grad():
        expected = tokenizer(image, keep)[0].clamp(-1, 1)
    torch.testing.assert_close(tokenizer.detokenize(ids[:, :3], "tensor", size=(24, 40)), expected, rtol=0, atol=1e-5)


def test_pictures_of_any_size_come_back_at_the_size_asked_for(tokenizer: CVQTokenizer) -> None:
    ids = tokenizer.tokenize([picture(17, 33), picture(50, 23)])
    assert [image.size for image in tokenizer.detokenize(ids, size=(17, 33))] == [(33, 17)] * 2
    assert tokenizer.detokenize(ids, "tensor", size=(17, 33)).shape == (2, 3, 17, 33)
    assert tokenizer.detokenize(ids, "tensor", size=300).shape == (2, 3, 300, 300)  # above what it works at
    assert tokenizer.detokenize(ids[0])[0].size == (HOME, HOME)
    # One that is worked at as it is, is not resized after.
    with torch.no_grad():
        z_q = tokenizer.ids_to_latents(ids)
        assert torch.equal(
            tokenizer.detokenize(ids, "tensor", size=(20, 24), exact=False),
            tokenizer.decode(z_q, (20, 24)).clamp(-1, 1),
        )


def test_nothing_is_cropped(tokenizer: CVQTokenizer) -> None:
    wide = picture(16, 48)
    other = wide.clone()
    other[:, :, :6] = -other[:, :, :6].sign()  # outside the centred square
    assert not torch.equal(tokenizer.tokenize(wide), tokenizer.tokenize(other))
    bare = build(config(resampler=None))
    assert torch.equal(bare.tokenize(wide), bare.tokenize(other))


def test_a_picture_between_sizes_is_resized_to_the_nearest(tokenizer: CVQTokenizer) -> None:
    pixels = ((picture(17, 30).permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
    given = Image.fromarray(pixels)
    nearest = given.resize((32, 16), Image.Resampling.BICUBIC)  # 30 is halfway between: to the even multiple
    assert torch.equal(tokenizer.tokenize(given), tokenizer.tokenize(nearest))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (64, 64)), ((67, 69), (64, 72)), ((1, 1), (8, 8)), ((3, 300), (8, 304)), ((3000, 4000), (112, 144)),
        ((128, 128), (128, 128)), ((129, 128), (128, 128)), ((1, 10**9), (8, 2048)), ((10**9, 2), (2048, 8)),
    ],
)  # fmt: skip
def test_working_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    found = working_size(size, 8, 128**2)
    assert found == expected
    assert found[0] * found[1] <= 128**2
    assert working_size(found, 8, 128**2) == found


def test_every_working_size_is_within_its_bounds() -> None:
    for height in range(1, 200, 7):
        for width in range(1, 400, 11):
            found = working_size((height, width), 4, 40**2)
            assert found[0] % 4 == found[1] % 4 == 0
            assert 16 <= found[0] * found[1] <= 40**2
            assert working_size(found, 4, 40**2) == found


def test_a_photo_of_twelve_megapixels_is_reduced_before_it_becomes_floats() -> None:
    tok = build(config())
    photos = [Image.new("RGB", (4000, 3000), (200, 10 * i, 90)) for i in range(3)]
    seen: list[tuple[int, ...]] = []
    tok.encoder.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape)))
    tracemalloc.start()
    sizes = [tuple(x.shape[1:]) for x in images_to_list(photos, tok.config.working_size)]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [(56, 72)] * 3
    assert most < 4_000_000  # of the 36 MB of each photo nothing but the small one is copied
    tok.tokenize(photos)
    assert {shape[0] * shape[2] * shape[3] for shape in seen} <= {h * w for h, w in sizes}  # a chunk is one of them


def test_max_pixels_is_a_setting() -> None:
    small = config(resampler=ResamplerConfig(width=16, num_heads=2, max_pixels=20 * 20))
    assert small.working_size((100, 100)) == (20, 20)
    assert config().max_pixels == 64**2
    with pytest.raises(InputError, match=r"resampler.max_pixels 255 must be at least .* image_size, 256"):
        from_dict(CVQConfig, to_dict(config()) | {"resampler": {"max_pixels": 255}})


def test_files_carry_it(tokenizer: CVQTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "t")
    again = CVQTokenizer.from_pretrained(tmp_path / "t")
    assert again.config == tokenizer.config
    ids = tokenizer.tokenize(mixed())
    assert torch.equal(again.tokenize(mixed()), ids)
    assert torch.equal(
        again.detokenize(ids, "tensor", size=(12, 20)), tokenizer.detokenize(ids, "tensor", size=(12, 20))
    )
    settings = json.loads((tmp_path / "t/config.json").read_text())
    del settings["resampler"]
    (tmp_path / "t/config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"does not fit its config.json: .*resampler"):
        CVQTokenizer.from_pretrained(tmp_path / "t")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_decodes_at_any_size(dtype: torch.dtype) -> None:
    tokenizer = build(config()).to(dtype)
    ids = tokenizer.tokenize([picture(48, 32), picture(32, 32)])
    images = tokenizer.detokenize(ids, "tensor", size=(48, 32))
    assert (images.dtype, tuple(images.shape)) == (dtype, (2, 3, 48, 32))


def test_a_token_file_may_not_ask_for_a_size_that_no_picture_was_worked_at(tmp_path: Path) -> None:
    tokenizer = build(config())
    row = TokenRow("one.png", tokenizer.tokenize([picture(48, 32)])[0].tolist(), (4096, 4096))
    write_tokens(tmp_path / "t.json", "own", tokenizer, [row])
    with pytest.raises(InputError, match=r"'one.png' has the size \[4096, 4096\], which the tokenizer does not work"):
        check_fits(read_tokens(tmp_path / "t.json"), tmp_path / "t.json", tokenizer, None)


def test_without_one_settings_digests_and_files_know_nothing_of_it(tmp_path: Path) -> None:
    bare = config(resampler=None)
    assert "resampler" not in to_dict(bare)
    assert digest(bare) == "7f5d5169604fa7ff"  # of before there was such a setting
    build(bare).save_pretrained(tmp_path)
    assert "resampler" not in (tmp_path / "config.json").read_text()
    assert from_dict(CVQConfig, to_dict(bare) | {"resampler": None}) == bare
    assert to_dict(config())["resampler"] == {"width": 16, "num_heads": 2, "attention": True, "max_pixels": None}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tok, ids: tok.detokenize(ids, size=(16, 24)), r"\(16, 24\): .* of \(16, 16\) alone; .*model.resampler"),
        (lambda tok, ids: tok.detokenize(ids, "tensor", size=32), r"size \(32, 32\)"),
        (lambda tok, ids: tok.decode(tok.ids_to_latents(ids), (16, 24)), r"decode: size \(16, 24\)"),
        (lambda tok, ids: tok.encode(torch.zeros(1, 3, 24, 24)), r"encode: expected images \(B, 3, 16, 16\)"),
    ],
)  # fmt: skip
def test_other_sizes_are_refused_without_one(call: Callable[..., Any], message: str) -> None:
    tok = build(config(resampler=None))
    with pytest.raises(InputError, match=message):
        call(tok, tok.tokenize(picture(16, 16)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tok, ids: tok.detokenize(ids, size=(0, 16)), r"size=\(0, 16\): expected .* each at least 1"),
        (lambda tok, ids: tok.detokenize(ids, size="large"), "size='large'"),
        (lambda tok, ids: tok.detokenize(ids, size=10**6), r"size \(1000000, 1000000\): more than the \d+ pixels"),
        (lambda tok, ids: tok.decode(tok.ids_to_latents(ids), (18, 16)), r"size \(18, 16\) is none .* \(16, 16\)"),
        (lambda tok, ids: tok.encode(torch.zeros(1, 3, 22, 24)), r"images \(B, 3, 24, 24\).*got \(1, 3, 22, 24\)"),
        (lambda tok, ids: tok.encode(torch.zeros(1, 3, 0, 24)), r"got \(1, 3, 0, 24\)"),
        (lambda tok, ids: tok.tokenize([]), "no images given"),
        (lambda tok, ids: tok.tokenize([picture(16, 16), "nothing.png"]), "image 1 of the list: .*nothing.png"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_named(tokenizer: CVQTokenizer, call: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(tokenizer, tokenizer.tokenize(picture(16, 16)))


@pytest.mark.parametrize("network", [{"kind": "linear"}, {"kind": "vit"}])
def test_networks_of_one_size_refuse_it(network: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"resampler: a network of kind {network['kind']} takes images of one size"):
        from_dict(CVQConfig, {"image_size": 32, "network": network, "resampler": {}})


def test_every_parameter_gets_a_gradient_at_another_size(tokenizer: CVQTokenizer) -> None:
    tokenizer.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    x = torch.stack([picture(24, 32, seed) for seed in range(8)])
    x_hat, quantized = tokenizer(x)
    ((x_hat - x).square().mean() + quantized.loss).backward()
    silent = [n for n, p in tokenizer.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert [name for name in silent if not name.endswith("keys.bias")] == []


def test_the_commands_keep_whole_pictures_and_their_sizes(cvq: Callable[..., tuple[int, str, str]], here: Path) -> None:
    tok = build(config())
    tok.save_pretrained(here / "tok")
    for name, (height, width) in {"a": (24, 32), "b": (16, 48), "c": (300, 200)}.items():
        pixels = ((picture(height, width).permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
        Image.fromarray(pixels).save(here / f"{name}.png")
    pictures = [here / f"{name}.png" for name in "abc"]
    assert cvq("tokenize", *pictures, "-t", here / "tok", "-o", here / "t.json", "--device", "cpu")[0] == 0
    rows = json.loads((here / "t.json").read_text())["images"]
    assert [row["size"] for row in rows] == [[24, 32], [16, 48], list(tok.config.working_size((300, 200)))]
    assert [row["ids"] for row in rows] == tok.tokenize(pictures).tolist()
    assert cvq("detokenize", here / "t.json", "-o", here / "out", "--device", "cpu")[0] == 0
    for row, path in zip(rows, sorted((here / "out").iterdir()), strict=True):
        with Image.open(path) as decoded:
            assert [decoded.height, decoded.width] == row["size"]
    rows[0]["size"] = [0, 3]
    (here / "t.json").write_text(json.dumps(json.loads((here / "t.json").read_text()) | {"images": rows}))
    code, _, told = cvq("detokenize", here / "t.json", "-o", here / "out2", "--device", "cpu")
    assert code == 2
    assert "images[0].size is [0, 3], it should be [height, width]" in " ".join(told.split())


def test_quality_is_measured_at_another_size(cvq: Callable[..., tuple[int, str, str]], here: Path) -> None:
    tok = build(config())
    tok.save_pretrained(here / "tok")
    (here / "mine").mkdir()
    images = to_uint8(torch.stack([picture(24, 32, seed) for seed in range(3)]))
    for i, image in enumerate(to_pil(images)):
        image.save(here / f"mine/{i}.png")
    command = ("evaluate", "reconstruction", here / "tok", here / "mine", "--features", "none", "--device", "cpu")
    code, _, told = cvq(*command, "--size", "24x32", "--json", here / "r.json")
    assert code == 0, told
    result = json.loads((here / "r.json").read_text())
    assert result["protocol"]["image_size"] == [24, 32]
    restored = to_uint8(tok.detokenize(tok.tokenize(normalize(images)), "tensor", size=(24, 32)))
    metrics = result["records"][0]["metrics"]
    assert metrics["psnr"] == pytest.approx(float(psnr(restored, images).mean()), rel=1e-5)
    assert metrics["bits_per_pixel"] == pytest.approx(bits_for(tok.num_tokens, tok.codebook_size) / (24 * 32), rel=1e-5)
    for words, message in (
        (("--size", "24x33"), "size (24, 33) is none that the decoder works at, the nearest is (24, 32)"),
        (("--size", "big"), "--size: expected 96 or 96x128"),
        (("--size", "24x32", "--nats"), "leave --size out"),
    ):
        code, _, told = cvq(*command, *words)
        assert (code, message in " ".join(told.split())) == (2, True), told
    code, _, told = cvq("evaluate", "reconstruction", here / "tok", "scenes", "--size", "32x48")
    assert (code, "scenes is a set of squares" in told) == (2, True)


def test_files_of_the_commands_hold_whole_pictures(cvq: Callable[..., tuple[int, str, str]], here: Path) -> None:
    build(config()).save_pretrained(here / "tok")
    for name, (height, width) in {"a": (24, 32), "b": (40, 20)}.items():
        to_pil(picture(height, width)[None])[0].save(here / f"{name}.png")
    use = ("-t", here / "tok", "--device", "cpu")
    assert cvq("encode", here / "a.png", here / "b.png", "-o", here / "out", *use)[0] == 0
    code, said, _ = cvq("info", here / "out")
    assert (code, re.findall(r"\d+ x \d+ px", said)) == (0, ["32 x 24 px", "20 x 40 px"])
    assert cvq("decode", here / "out", "-o", here / "back", *use)[0] == 0
    sizes = []
    for path in sorted((here / "back").iterdir()):
        with Image.open(path) as decoded:
            sizes.append((decoded.height, decoded.width))
    assert sizes == [(24, 32), (40, 20)]
