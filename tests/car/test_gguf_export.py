"""A GGUF file holds the exported language model to the bit, in llama.cpp's names and order."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.car.conftest import BACKBONE
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from channelvq.car.export import ExportLayout, export_car, stock_model
from channelvq.car.gguf_export import GGUF_FILE, export_gguf
from channelvq.car.model import CAR
from channelvq.cli import app
from channelvq.errors import InputError

gguf = pytest.importorskip("gguf")
KINDS = ("qwen3", "qwen2", "llama")
PROMPTS = ["a photo of two bananas", "a green dog", "three small black cats", ""]


def car_of(new_car: Callable[..., CAR], kind: str, **settings: object) -> CAR:
    """Two heads of keys and values for four of queries: a wrong order of either shows."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return new_car(backbone=BACKBONE | heads | {"model_type": kind} | settings)


def read(folder: Path) -> Any:
    return gguf.GGUFReader(folder / GGUF_FILE)


def value(reader: Any, name: str) -> Any:
    return reader.get_field(name).contents()


@pytest.mark.parametrize("kind", KINDS)
def test_another_reader_of_gguf_gets_our_logits_to_the_bit(
    new_car: Callable[..., CAR], kind: str, tmp_path: Path
) -> None:
    """That of transformers, which turns the rows of Llama back by its own code."""
    car = car_of(new_car, kind)
    layout = export_gguf(car, tmp_path)
    stock, _ = stock_model(car)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=GGUF_FILE, config=stock.config).eval()
    tokens = torch.tensor([[5, 9, layout.marker_id, *range(layout.first_image_id, layout.first_image_id + 7)]])
    with torch.no_grad():
        assert torch.equal(theirs(tokens).logits, stock(tokens).logits)


def test_llama_alone_has_its_rows_turned(new_car: Callable[..., CAR], tmp_path: Path) -> None:
    """By the definition: row 2 i + j of a head is row j h/2 + i of transformers'."""
    for kind in KINDS:
        car = car_of(new_car, kind)
        export_gguf(car, tmp_path / kind)
        weight = car.backbone.state_dict()["layers.0.self_attn.q_proj.weight"].numpy()
        size = len(weight) // 4
        turned = [head * size + j * size // 2 + i for head in range(4) for i in range(size // 2) for j in range(2)]
        (stored,) = (t.data for t in read(tmp_path / kind).tensors if t.name == "blk.0.attn_q.weight")
        assert np.array_equal(stored, weight[turned] if kind == "llama" else weight)


def test_settings_and_vocabulary(car: CAR, tmp_path: Path) -> None:
    layout = export_gguf(car, tmp_path)
    assert layout == ExportLayout.load(tmp_path)
    reader, config = read(tmp_path), car.backbone.config
    for name, expected in {
        "general.architecture": "qwen3", "qwen3.block_count": 2, "qwen3.embedding_length": 32,
        "qwen3.attention.head_count": 2, "qwen3.attention.key_length": config.head_dim,
        "qwen3.rope.freq_base": config.rope_parameters["rope_theta"], "general.file_type": 0,
        "qwen3.context_length": config.max_position_embeddings, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.eos_token_id": layout.marker_id, "tokenizer.ggml.padding_token_id": layout.marker_id + 1,
    }.items():  # fmt: skip
        assert value(reader, name) == expected, name
    assert value(reader, "qwen3.attention.layer_norm_rms_epsilon") == pytest.approx(config.rms_norm_eps)
    text = AutoTokenizer.from_pretrained(tmp_path)
    names, kinds = value(reader, "tokenizer.ggml.tokens"), value(reader, "tokenizer.ggml.token_type")
    assert names == text.convert_ids_to_tokens(range(layout.last_image_id + 1))
    assert names[layout.marker_id :][:3] == ["<|image|>", "<|pad|>", "<|image_0|>"]
    control = [token for token, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL]
    assert control == [layout.marker_id, layout.marker_id + 1]
    assert set(kinds) == {gguf.TokenType.CONTROL, gguf.TokenType.NORMAL}
    assert len(value(reader, "tokenizer.ggml.merges")) == car.text.vocab_size - 256


def test_int8_is_within_half_a_step_of_each_block(car: CAR, tmp_path: Path) -> None:
    export_gguf(car, tmp_path / "a")
    export_gguf(car, tmp_path / "b", "int8")
    assert value(read(tmp_path / "b"), "general.file_type") == 7
    stored = {t.name: t for t in read(tmp_path / "b").tensors}
    int8 = 0
    for exact in read(tmp_path / "a").tensors:
        other = stored.pop(exact.name)
        got = gguf.quants.dequantize(other.data, other.tensor_type)
        if exact.data.ndim == 1:
            assert np.array_equal(got, exact.data)
            continue
        int8 += other.tensor_type == gguf.GGMLQuantizationType.Q8_0
        blocks, wrong = (x.reshape(-1, 32) for x in (exact.data, got - exact.data))
        step = np.abs(blocks).max(1, keepdims=True) / 127
        assert (np.abs(wrong) <= step * (0.5 + 127 * 2**-11) + 1e-7).all()  # the scale is rounded to float16
    assert not stored
    assert int8 == 2 * 7 + 2
    assert (tmp_path / "b" / GGUF_FILE).stat().st_size < (tmp_path / "a" / GGUF_FILE).stat().st_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llama", "attention_bias": True}, "a llama with a attention_bias of its own"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "with a rope_type of its own"),
        ({"model_type": "olmo2", "pad_token_id": 0}, "backbones of llama, qwen2, qwen3, not for a olmo2"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    new_car: Callable[..., CAR], settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export_gguf(new_car(backbone=BACKBONE | {"num_key_value_heads": 2} | settings), tmp_path / "out")
    assert not (tmp_path / "out" / GGUF_FILE).exists()


def test_the_command(car: CAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    car.save_pretrained(tmp_path / "car")
    words = ["export", str(tmp_path / "car"), str(tmp_path / "out"), "--format", "gguf"]
    result = CliRunner().invoke(app, [*words, "--weights", "int8"])
    assert result.exit_code == 0, result.output
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {GGUF_FILE, "tokenizer.json", "image_tokenizer"}
    for more, message in (
        (["--dtype", "float16"], "leave --dtype out"),
        (["--format", "transformers", "--weights", "int8"], "is for --format gguf and onnx"),
    ):
        assert message in str(CliRunner().invoke(app, [*words, *more]).exception)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install 'channelvq[gguf]'" in str(CliRunner().invoke(app, words).exception)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_writes_the_ids_of_transformers(new_car: Callable[..., CAR], kind: str, tmp_path: Path) -> None:
    """By its own server; skipped without `pip install xllamacpp`, a build of it."""
    llama = pytest.importorskip("xllamacpp")
    car = car_of(new_car, kind)
    layout = export_car(car, tmp_path / "stock")
    export_gguf(car, tmp_path / "gguf")
    settings = llama.CommonParams()
    settings.model.path = str(tmp_path / "gguf" / GGUF_FILE)
    settings.n_ctx, settings.n_parallel = 64, 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    server = llama.Server(settings)
    model, text = (kind.from_pretrained(tmp_path / "stock") for kind in (AutoModelForCausalLM, AutoTokenizer))
    for prompt in PROMPTS:
        tokens = text(prompt).input_ids if prompt else [layout.marker_id]
        asked = {
            "prompt": tokens, "max_tokens": car.num_tokens, "temperature": 0,
            "logit_bias": {str(token): -1e9 for token in range(layout.first_image_id)},
        }  # fmt: skip
        answer = server.handle_completions(asked)
        inputs = torch.tensor([tokens])
        written = model.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False)[0, len(tokens) :]
        assert answer["choices"][0]["text"] == text.decode(written)
