"""A tokenizer as ONNX files gives the ids and the pictures of the tokenizer, without torch."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pages import blocks, photo

from channelvq.errors import InputError
from channelvq.images.tensors import to_uint8
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.run import load_recipe, train

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TINY = ["model.image_size=32", "model.latent_channels=6", "model.quantizer.codebook_size=64", "train.steps=2",
        "data.sources={drawn: {kind: waves}}", "data.validation_images=8", "objective.start_images=64",
        "train.batch_size=8", "train.device=cpu", "train.threads=1"]  # fmt: skip
SMALL = ["model.network.start_images=64", "model.network.components=60",
         *(f"model.network.{part}.{setting}" for part in ("encoder", "decoder")
           for setting in ("base_channels=8", "num_blocks=1"))]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(recipe: str, folder: Path, *more: str) -> CVQTokenizer:
    """Two steps of a recipe, so that every part of it, the fitted ones too, has numbers of its own."""
    train(load_recipe(recipe, [*TINY, *more, f"train.output_dir={folder}"]))
    return CVQTokenizer.from_pretrained(folder / "final")


def pictures(count: int = 40) -> torch.Tensor:
    noise = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(noise, size=(32, 32), mode="bicubic").clamp(0, 1) * 2 - 1


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("small/tokens-residual", [*SMALL, "model.network.slots=100"]),
        ("small/tokens-channel", SMALL),
        ("small/axis-patch", ["model.network.base_channels=8"]),
    ],
    ids=["residual", "tokenwise", "patch"],
)
def test_equal_ids_and_pictures(recipe: str, more: list[str], tmp_path: Path) -> None:
    import onnxruntime

    from channelvq.onnx_export import LAYOUT_FILE, export_onnx

    tokenizer, folder, images = trained(recipe, tmp_path / "run", *more), tmp_path / "onnx", pictures()
    check = export_onnx(tokenizer, folder)
    assert check.different_ids == 0
    assert check.largest_difference <= 1
    layout = json.loads((folder / LAYOUT_FILE).read_text())
    encoder, decoder = (onnxruntime.InferenceSession(folder / layout[name]) for name in ("encoder", "decoder"))
    ids = tokenizer.tokenize(images)
    theirs = encoder.run(None, {"images": images.numpy()})[0]
    assert theirs.dtype == np.int64
    assert np.array_equal(theirs, ids.numpy())  # a tie within float32's rounding could differ; there is none in these
    for count in (1, 3, tokenizer.num_tokens):
        (decoded,) = decoder.run(None, {"ids": theirs, "num_tokens": np.array(count)})
        ours = to_uint8(tokenizer.detokenize(ids[:, :count], output="tensor")).int()
        assert (ours - to_uint8(torch.from_numpy(decoded)).int()).abs().max() <= 1
    behind = theirs.copy()
    behind[:, 3:] = 0
    again = [decoder.run(None, {"ids": given, "num_tokens": np.array(3)})[0] for given in (theirs, behind)]
    assert np.array_equal(*again)


def test_the_command_and_the_code_of_the_page(cvq: Callable[..., tuple[int, str, str]], here: Path) -> None:
    page = Path(__file__).parents[1] / "docs/guide/onnx.md"
    (command,) = re.findall(r"^cvq (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    code, out, err = cvq(*command.split())
    assert code == 0, err
    assert "256 ids compared, 0 differ" in out
    assert {path.name for path in (here / "tokenizer-onnx").iterdir()} == {
        "encoder.onnx", "decoder.onnx", "channelvq-onnx.json",
    }  # fmt: skip
    photo().save("photo.png")
    (example,) = blocks(page, "python")
    exec(example, {})
    with Image.open("coarse.png") as picture:
        assert picture.size == (64, 64)
    code, _, err = cvq("export", "bundled", "other", "--format", "onnx", "--dtype", "bfloat16")
    assert code == 2
    assert "--dtype" in err


def test_a_kind_without_a_graph_and_other_weights_are_refused(tmp_path: Path) -> None:
    from channelvq.config import from_dict
    from channelvq.onnx_export import export_onnx

    pytest.importorskip("vector_quantize_pytorch")
    settings: dict[str, Any] = {"image_size": 32, "latent_channels": 4, "network": {"base_channels": 8}}
    for kind, part in (("lfq", "quantizer kind 'lfq' has no ONNX graph"), ("plain", "torch.bfloat16")):
        config = from_dict(CVQConfig, settings | {"quantizer": {"kind": kind, "codebook_size": 16}})
        tokenizer = CVQTokenizer(config)
        with pytest.raises(InputError, match=part):
            export_onnx(tokenizer if kind == "lfq" else tokenizer.bfloat16(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
