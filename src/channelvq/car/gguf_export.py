"""The exported language model as a GGUF file, which llama.cpp and what is built on it serve.

    LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM --names, order of rope pairs, vocabulary--> model.gguf

The file holds the text tokenizer too: llama.cpp appends the marker to a prompt, as its end-of-text token. It knows no
list of tokens that must not come: a request forbids text tokens by `logit_bias`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from channelvq.car.export import ExportLayout, stock_model, text_tokenizer, write_tokenizers
from channelvq.car.model import CAR
from channelvq.devices import ExportedWeights
from channelvq.errors import InputError
from channelvq.files import filled_folder

if TYPE_CHECKING:
    from gguf import GGUFWriter

GGUF_FILE = "model.gguf"
ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}  # of transformers -> of llama.cpp
# How a tokenizer cuts text into words -> llama.cpp's name for it.
WORDS = {
    "GPT-2": "gpt-2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
        "qwen2"
    ),
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (  # noqa: E501
        "llama-bpe"
    ),
}


def export_gguf(model: CAR, folder: str | Path, weights: ExportedWeights = "float32") -> ExportLayout:
    """Write GGUF_FILE and, beside it, what every export holds: both tokenizers and LAYOUT_FILE.

    weights: "int8" stores matrices as Q8_0, in blocks of 32 with a scale each; llama.cpp then rounds inputs of products
    so, too. Raises InputError as `export_car` does, without the extra `gguf`, and for a backbone or a text tokenizer
    that has no counterpart in llama.cpp here.
    """
    check_extra()
    stock, layout = stock_model(model)
    cast(nn.Module, stock).float()
    text = text_tokenizer(model, layout)
    with filled_folder(Path(folder)) as new:
        write_gguf(stock, text, layout, new / GGUF_FILE, weights)
        write_tokenizers(model, layout, new)
    return layout


def check_extra() -> None:
    """InputError without the extra `gguf`."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(f"export to GGUF needs the package {error.name}: pip install 'channelvq[gguf]'") from None


def write_gguf(
    stock: PreTrainedModel, text: PreTrainedTokenizerFast, layout: ExportLayout, path: Path, weights: ExportedWeights
) -> None:
    """Write an exported float32 model and its text tokenizer to one file; errors as of `export_gguf`."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter

    _check(stock.config)
    arch = MODEL_ARCH[ARCHITECTURES[stock.config.model_type]]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch])
    try:
        _add_settings(writer, stock.config, weights)
        _add_vocabulary(writer, text, layout)
        _add_tensors(writer, stock, arch, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check(config: Any) -> None:
    """InputError for what llama.cpp's model of that name does not have."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise InputError(f"export: GGUF is written for backbones of {', '.join(ARCHITECTURES)}, not for a {kind}")
    rope, layers = config.rope_parameters or {}, set(getattr(config, "layer_types", None) or ["full_attention"])
    odd = {
        "hidden_act": config.hidden_act != "silu",
        "rope_type": rope.get("rope_type", "default") != "default",
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "layer_types": layers != {"full_attention"},
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
    }
    if wrong := [name for name, is_odd in odd.items() if is_odd]:
        raise InputError(f"export: GGUF is not written for a {kind} with a {', '.join(wrong)} of its own")


def _add_settings(writer: "GGUFWriter", config: Any, weights: ExportedWeights) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_type("model")
    writer.add_name("channelvq")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType.ALL_F32 if weights == "float32" else LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add_vocabulary(writer: "GGUFWriter", text: PreTrainedTokenizerFast, layout: ExportLayout) -> None:
    from gguf import TokenType

    settings = json.loads(text.backend_tokenizer.to_str())
    words = _words(settings["pre_tokenizer"]) if settings["model"]["type"] == "BPE" else None
    if words not in WORDS:
        raise InputError("export: GGUF is written for byte-level BPE that cuts words as GPT-2, Qwen or Llama 3 do")
    names = sorted(text.get_vocab().items(), key=lambda item: item[1])
    special = {token["id"]: token["special"] for token in settings["added_tokens"]}
    kinds = {None: TokenType.NORMAL, True: TokenType.CONTROL, False: TokenType.USER_DEFINED}
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(WORDS[words])
    writer.add_token_list([name for name, _ in names])
    writer.add_token_types([kinds[special.get(token)] for _, token in names])
    pairs = settings["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in pairs])
    writer.add_pad_token_id(layout.marker_id + 1)
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(layout.marker_id)
    writer.add_add_eos_token(True)  # to a prompt: the marker


def _words(cut: dict[str, Any] | None) -> str | None:
    """A key of WORDS, or whatever else the settings of a pre-tokenizer say."""
    steps = (cut or {}).get("pretokenizers", [cut or {}])
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0]["use_regex"]:
        return "GPT-2"
    if [step.get("type") for step in steps] == ["Split", "ByteLevel"]:
        return steps[0]["pattern"].get("Regex")
    return None


def _add_tensors(writer: "GGUFWriter", stock: PreTrainedModel, arch: Any, weights: ExportedWeights) -> None:
    from gguf import GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quantize

    config, int8 = stock.config, GGMLQuantizationType.Q8_0
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    for theirs, tensor in cast(nn.Module, stock).state_dict().items():
        if (ours := names.get_name(theirs, (".weight", ".bias"))) is None:
            raise InputError(f"export: {theirs} has no name in a GGUF of {config.model_type}")
        data = _turned(theirs, tensor, config).numpy()
        if weights == "int8" and data.ndim == 2:
            if data.shape[1] % 32:
                raise InputError(f"export: int8 needs rows of a multiple of 32 numbers, {theirs} has {data.shape[1]}")
            writer.add_tensor(ours, quantize(data, int8), raw_dtype=int8)
        else:
            writer.add_tensor(ours, np.ascontiguousarray(data))


def _turned(name: str, tensor: Tensor, config: Any) -> Float[Tensor, "..."]:
    """Weights in llama.cpp's order of numbers: its Llama turns pairs (0, 1), (2, 3), ... of a head, transformers'
    pairs (0, h/2), (1, h/2 + 1), ... Its Qwen does as transformers does.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    tensor = tensor.detach().cpu()
    if config.model_type != "llama" or heads is None:
        return tensor
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
