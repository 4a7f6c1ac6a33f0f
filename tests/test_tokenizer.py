"""CVQTokenizer: ids, prefixes, batch independence, files."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from channelvq import CVQTokenizer
from channelvq.errors import InputError
from channelvq.nn.conv import ConvConfig
from channelvq.nn.layers import AttentionBlock, ResBlock
from channelvq.nn.modes import row_independent_kernels
from channelvq.quantize.axis import Axis, from_vectors, to_vectors
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig


def config(axis: Axis = "channel", **settings: object) -> CVQConfig:
    network = ConvConfig(stem=2, base_channels=16, multipliers=(1, 2), num_blocks=1)
    return CVQConfig(image_size=16, latent_channels=12, axis=axis, network=network,
                     quantizer=PlainConfig(codebook_size=40, **settings))  # fmt: skip


def images(count: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(params=["channel", "patch"])
def tokenizer(request: pytest.FixtureRequest) -> CVQTokenizer:
    torch.manual_seed(0)
    tok = CVQTokenizer(config(request.param))
    with torch.no_grad():
        tok.quantizer.start_from(tok.encoder(images(64, seed=1)), torch.Generator().manual_seed(0))
    return tok.eval()


def test_ids_have_the_promised_form(tokenizer: CVQTokenizer) -> None:
    ids = tokenizer.tokenize(images())
    assert ids.shape == (11, 12 if tokenizer.config.axis == "channel" else 16)
    assert ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() < 40
    assert len(ids.unique()) > 10


def test_ids_of_an_image_do_not_depend_on_its_batch(tokenizer: CVQTokenizer) -> None:
    x = images()
    together = tokenizer.tokenize(x)
    assert torch.equal(torch.cat([tokenizer.tokenize(row[None]) for row in x]), together)
    assert torch.equal(tokenizer.tokenize(x.flip(0)).flip(0), together)
    assert torch.equal(tokenizer.tokenize(x[2:9]), together[2:9])


def test_full_length_decodes_what_encode_and_decode_give(tokenizer: CVQTokenizer) -> None:
    x = images(8)
    with torch.no_grad(), row_independent_kernels(x.device):
        quantized = tokenizer.encode(x)
        expected = tokenizer.decode(quantized.z_q).clamp(-1, 1)
    assert torch.equal(tokenizer.ids_to_latents(quantized.indices), quantized.z_q)
    assert torch.equal(tokenizer.detokenize(quantized.indices, "tensor"), expected)


def test_a_prefix_decodes_as_nested_dropout_trained_it(tokenizer: CVQTokenizer) -> None:
    x = images(8)
    for k in (1, 5, tokenizer.num_tokens):
        keep = (torch.arange(tokenizer.num_tokens) < k).expand(8, -1)
        with torch.no_grad():
            expected, quantized = tokenizer(x, keep)
        ids = tokenizer.tokenize(x)
        assert torch.equal(ids, quantized.indices)
        torch.testing.assert_close(tokenizer.detokenize(ids[:, :k], "tensor"), expected.clamp(-1, 1), rtol=0, atol=1e-5)
    # Tokens past the prefix cannot matter.
    other = ids.clone()
    other[:, 3:] = 0
    assert torch.equal(tokenizer.detokenize(ids[:, :3], "tensor"), tokenizer.detokenize(other[:, :3], "tensor"))


def test_images_of_every_form_give_the_same_ids(tokenizer: CVQTokenizer, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    expected = tokenizer.tokenize(tensor)
    for form in (
        picture,
        [picture],
        pixels,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
    ):
        assert torch.equal(tokenizer.tokenize(form), expected)


def test_detokenize_as_pictures(tokenizer: CVQTokenizer) -> None:
    ids = tokenizer.tokenize(images(2))
    pictures = tokenizer.detokenize(ids)
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    assert len(tokenizer.detokenize(ids[0])) == 1
    tensor = tokenizer.detokenize(ids, "tensor")
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    shown = torch.from_numpy(np.array(pictures[1])).permute(2, 0, 1)
    assert torch.equal(shown, ((tensor[1] + 1) * 127.5).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 40]], "40 at image 0, token 1 is outside 0..39"),
        ([[0, 1], [-1, 0]], "-1 at image 1, token 0"),
        ([[0.5]], "whole numbers"),
        ([[0] * 99], r"k in 1..\d+, got shape \(1, 99\)"),
        ([[]], "whole numbers|k in 1"),
    ],
)
def test_bad_ids_are_named(tokenizer: CVQTokenizer, ids: list[list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.detokenize(torch.tensor(ids))


def test_round_trip_through_files(tokenizer: CVQTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "t")
    assert {p.name for p in (tmp_path / "t").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = CVQTokenizer.from_pretrained(tmp_path / "t")
    x = images()
    assert again.config == tokenizer.config
    assert torch.equal(again.tokenize(x), tokenizer.tokenize(x))
    assert torch.equal(
        again.detokenize(again.tokenize(x), "tensor"), tokenizer.detokenize(tokenizer.tokenize(x), "tensor")
    )


def test_files_that_do_not_fit_are_refused(tokenizer: CVQTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantizer"]["codebook_size"] = 41
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"does not fit its config\.json: it asks for more weights than there are"):
        CVQTokenizer.from_pretrained(folder)
    settings["quantizer"]["codebok_size"] = 41
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="codebok_size: there is no such setting"):
        CVQTokenizer.from_pretrained(folder)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        CVQTokenizer.from_pretrained(tmp_path)


def test_damaged_files_are_named(tokenizer: CVQTokenizer, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        tokenizer.save_pretrained(tmp_path / name)
        path = tmp_path / name / name
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(InputError, match="damaged"):
            CVQTokenizer.from_pretrained(tmp_path / name)


def test_prefix_without_codebook_drops_tokens_of_the_axis(tokenizer: CVQTokenizer) -> None:
    x, num = images(2), tokenizer.num_tokens
    keep = (torch.arange(num) < 3).expand(2, -1)
    with torch.no_grad():
        masked, quantized = tokenizer(x, keep, quantize=False)
        vectors = to_vectors(tokenizer.encoder(x), tokenizer.config.axis)
        expected = tokenizer.decode(from_vectors(vectors * keep[:, :, None], tokenizer.config.axis, (4, 4)))
    assert quantized is None
    torch.testing.assert_close(masked, expected)


def test_training_mode_of_every_part_is_put_back(tokenizer: CVQTokenizer) -> None:
    tokenizer.train()
    tokenizer.encoder.eval()
    tokenizer.tokenize(images(1))
    assert tokenizer.training
    assert not tokenizer.encoder.training


def test_half_precision_files_load_as_float32(tokenizer: CVQTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    half = {n: t.half() if t.is_floating_point() else t for n, t in load_file(path).items()}
    save_file(half, path)
    again = CVQTokenizer.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert torch.equal(again.quantizer.codes(), tokenizer.quantizer.codes().half().float())


def test_wrong_tensors_are_refused(tokenizer: CVQTokenizer) -> None:
    with pytest.raises(InputError, match=r"expected images \(B, 3, 16, 16\)"):
        tokenizer.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="'pil' or 'tensor'"):
        tokenizer.detokenize(torch.zeros(1, 1, dtype=torch.long), "jpeg")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="multiple of the network's downsampling"):
        CVQConfig(image_size=18, network=ConvConfig(stem=4, multipliers=(1, 2)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"encode: .* float in \[-1, 1\], got .* torch.uint8"),
        (torch.zeros(0, 3, 16, 16), r"B >= 1, .* got \(0, 3, 16, 16\)"),
        (torch.zeros(3, 16, 16), r"\(B, 3, 16, 16\)"),
        (np.zeros((1, 3, 16, 16), np.float32), "got ndarray"),
        (255 * torch.rand(1, 3, 16, 16), r"values from .* to 25\d.*, expected \[-1, 1\]; .*normalize"),
        (torch.full((1, 3, 16, 16), float("nan")), "values from nan"),
        (torch.zeros(1, 3, 16, 16, device="meta"), "the tensor is on meta, the tokenizer on cpu"),
    ],
)
def test_what_encode_cannot_take_is_named(tokenizer: CVQTokenizer, x: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer.encode(x)


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 8, 8), None])
def test_what_forward_cannot_take_is_named(tokenizer: CVQTokenizer, x: Any) -> None:
    for quantize in (True, False):
        with pytest.raises(InputError, match="forward: expected images"):
            tokenizer(x, quantize=quantize)


def test_encode_and_decode_convert_other_precisions(tokenizer: CVQTokenizer) -> None:
    x = images(2).half()
    with torch.no_grad():
        expected = tokenizer.encode(x.float())
        for other in (x, x.double()):
            assert torch.equal(tokenizer.encode(other).indices, expected.indices)
        assert torch.equal(tokenizer.decode(expected.z_q.double()), tokenizer.decode(expected.z_q))
        tokenizer.bfloat16()
        assert tokenizer.decode(tokenizer.encode(x).z_q).dtype == torch.bfloat16


def test_what_a_decoder_gives_is_taken_back(tokenizer: CVQTokenizer) -> None:
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(1.3 * images(2)).indices, tokenizer(1.3 * images(2))[1].indices)


@pytest.mark.parametrize(
    ("keep", "got"),
    [
        (lambda k: torch.ones(2, k), "torch.float32"),
        (lambda k: torch.ones(2, k - 1, dtype=torch.bool), r"torch.bool, got \(2, \d+\), torch.bool"),
        (lambda k: torch.ones(k, dtype=torch.bool), r"got \(\d+,\)"),
        (lambda k: [True] * k, "got list"),
        (lambda k: torch.ones(2, k, dtype=torch.bool, device="meta"), "it is on meta, the tokens are on cpu"),
    ],
)
def test_a_keep_that_does_not_fit_is_named(tokenizer: CVQTokenizer, keep: Callable[[int], Any], got: str) -> None:
    wrong = keep(tokenizer.num_tokens)
    for call in (tokenizer.encode, tokenizer, partial(tokenizer, quantize=False)):
        with pytest.raises(InputError, match=f"keep: .*{got}"):
            call(images(2), wrong)


@pytest.mark.parametrize(
    "z_q",
    [torch.zeros(1, 12, 5, 5), torch.zeros(12, 4, 4), torch.zeros(0, 12, 4, 4), torch.zeros(1, 12, 4, 4).long(), 3],
)
def test_what_decode_cannot_take_is_named(tokenizer: CVQTokenizer, z_q: Any) -> None:
    with pytest.raises(InputError, match=r"decode: expected feature maps \(B, 12, 4, 4\)"):
        tokenizer.decode(z_q)


@pytest.mark.parametrize("ids", [torch.zeros(1, 70).long(), torch.zeros(1, 2), torch.tensor([[40]]), None])
def test_ids_to_latents_refuses_what_detokenize_refuses(tokenizer: CVQTokenizer, ids: Any) -> None:
    with pytest.raises(InputError, match=r"^ids: "):
        tokenizer.ids_to_latents(ids)


@pytest.mark.parametrize("block", [ResBlock(16, 16), ResBlock(16, 32), AttentionBlock(16)])
def test_residual_branches_start_at_zero(block: ResBlock | AttentionBlock) -> None:
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    skip = block.skip(x) if isinstance(block, ResBlock) else x
    assert torch.equal(block(x), skip)


def test_every_parameter_gets_a_gradient(tokenizer: CVQTokenizer) -> None:
    tokenizer.train()
    x = images(8)
    # Residual branches start at zero, where only their last convolution learns; here they have left it.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05, generator=generator)
    x_hat, quantized = tokenizer(x)
    ((x_hat - x).square().mean() + quantized.loss).backward()
    silent = [n for n, p in tokenizer.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert silent == []
