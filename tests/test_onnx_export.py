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

from channelvq import onnx_export
from channelvq.devices import ExportedWeights
from channelvq.errors import InputError
from channelvq.images.tensors import to_uint8
from channelvq.onnx_export import LAYOUT_FILE, export_onnx
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from channelvq.train.run import load_recipe, train

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(torch.__version__ < onnx_export.OLDEST_TORCH, reason="the extra needs a newer torch")

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
    ("recipe", "more", "weights"),
    [
        ("small/tokens-residual", [*SMALL, "model.network.slots=100"], "float32"),
        ("small/tokens-channel", SMALL, "float32"),
        ("small/axis-patch", ["model.network.base_channels=16"], "int8"),
    ],
    ids=["residual", "tokenwise", "patch, int8"],
)
def test_equal_ids_and_pictures(
    recipe: str, more: list[str], weights: ExportedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    tokenizer, folder, images = trained(recipe, tmp_path / "run", *more), tmp_path / "onnx", pictures()
    check = export_onnx(tokenizer, folder, weights)
    levels = 1 if weights == "float32" else 6
    assert check.different_ids == 0
    assert check.largest_difference <= levels
    layout = json.loads((folder / LAYOUT_FILE).read_text())
    assert layout["weights"] == weights
    encoder, decoder = (onnxruntime.InferenceSession(folder / layout[name]) for name in ("encoder", "decoder"))
    ids = tokenizer.tokenize(images)
    theirs = encoder.run(None, {"images": images.numpy()})[0]
    assert theirs.dtype == np.int64
    assert np.array_equal(theirs, ids.numpy())  # a tie within float32's rounding could differ; there is none in these
    for count in (1, 3, tokenizer.num_tokens):
        (decoded,) = decoder.run(None, {"ids": theirs, "num_tokens": np.array(count)})
        ours = to_uint8(tokenizer.detokenize(ids[:, :count], output="tensor")).int()
        assert (ours - to_uint8(torch.from_numpy(decoded)).int()).abs().max() <= levels
    behind = theirs.copy()
    behind[:, 3:] = 0
    again = [decoder.run(None, {"ids": given, "num_tokens": np.array(3)})[0] for given in (theirs, behind)]
    assert np.array_equal(*again)
    size, network = (folder / layout["decoder"]).stat().st_size, sum(4 * p.numel() for p in tokenizer.parameters())
    written = [(folder / layout[name]).read_bytes() for name in ("encoder", "decoder")]
    assert all(b"onnx_export.py" not in content for content in written)  # paths of sources
    if weights == "int8":
        assert size < 0.5 * network
        monkeypatch.setattr(onnx_export, "LEAST_PSNR", 99.0)
        with pytest.raises(InputError, match=r"PSNR \d\d\.\d dB\); nothing was written \(weights=int8; float32 may do"):
            onnx_export._checked(tokenizer, folder, images[:2], weights)


def test_large_matrices_are_stored_as_bytes_and_nothing_else_is(tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    from channelvq.byte_rows import SCALE, to_byte_rows
    from channelvq.onnx_export import LEAST_NUMBERS, OPSET, _session, store_as_bytes

    numbers = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 64)[:, None]
    tensors = {"large": numbers, "small": numbers[:63], "flat": numbers.flatten(), "stack": numbers[None],
               "double": numbers.double()}  # fmt: skip
    assert numbers.numel() == LEAST_NUMBERS
    given = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in tensors.items()]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [64]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["large", "x"], ["y"])], "g", [x], [y], given)
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), path)
    store_as_bytes(path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer}
    rows, scale = to_byte_rows(numbers)
    expected = {name: tensors[name] for name in ("small", "flat", "stack", "double")} | {
        "large.rows": rows,
        "large" + SCALE: scale,
    }
    assert stored.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())
    (product,) = _session(path).run(None, {"x": np.eye(64, dtype=np.float32)[5]})
    assert np.array_equal(product, (rows.float() * scale[:, None])[:, 5].numpy())


def test_the_command_and_the_code_of_the_page(cvq: Callable[..., tuple[int, str, str]], here: Path) -> None:
    page = Path(__file__).parents[1] / "docs/guide/onnx.md"
    command, smaller = re.findall(r"^cvq (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert smaller == f"{command} --weights int8"
    code, out, err = cvq(*command.split())
    assert code == 0, err
    assert "256 ids compared, 0 differ" in out
    assert {path.name for path in (here / "tokenizer-onnx").iterdir()} == {
        "encoder.onnx", "decoder.onnx", "channelvq-onnx.json",
    }  # fmt: skip
    photo().save("photo.png")
    for example in blocks(page, "python"):
        exec(example, {})
    with Image.open("coarse.png") as picture:
        assert picture.size == (64, 64)
    code, _, err = cvq("export", "bundled", "other", "--format", "onnx", "--dtype", "bfloat16")
    assert code == 2
    assert "--dtype" in err
    code, _, err = cvq("export", "bundled", "other", "--weights", "int8")
    assert code == 2
    assert "--weights int8 is for --format gguf and onnx" in err


def test_a_kind_without_a_graph_and_other_weights_are_refused(tmp_path: Path) -> None:
    from channelvq.config import from_dict

    pytest.importorskip("vector_quantize_pytorch")
    settings: dict[str, Any] = {"image_size": 32, "latent_channels": 4, "network": {"base_channels": 8}}
    for kind, part in (("lfq", "quantizer kind 'lfq' has no ONNX graph"), ("plain", "torch.bfloat16")):
        config = from_dict(CVQConfig, settings | {"quantizer": {"kind": kind, "codebook_size": 16}})
        tokenizer = CVQTokenizer(config)
        with pytest.raises(InputError, match=part):
            export_onnx(tokenizer if kind == "lfq" else tokenizer.bfloat16(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
