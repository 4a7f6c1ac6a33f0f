"""The language model inside CAR: any decoder of `transformers`, by its settings or by its name."""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Cache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from channelvq.car.config import SMALL_QWEN3
from channelvq.errors import InputError
from channelvq.nn.modes import evaluating
from channelvq.pretrained import undrawn

# Of a saved transformers config: where it came from, and what a decoder without a text head has no use for.
_NOT_SETTINGS = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "id2label", "label2id"}
_LEGACY = {"rope_theta", "rope_scaling"}  # taken by transformers, but kept under rope_parameters

# Settings by which a type of transformers lets tokens see later ones, and what they have to be.
_CAUSAL: dict[str, tuple[object, ...]] = {
    "is_decoder": (True,),
    "causal": (True,),
    "attn_type": ("uni",),
    "use_bidirectional_attention": (None, False),
}
# What makes transformers fetch code or build with other packages, and what its types call the number of their layers.
_CODE = {"auto_map", "attn_implementation", "quantization_config", "trust_remote_code", "custom_pipelines"}
_UNDERSCORED = {"_sliding_window_pattern", "_remove_final_layer_norm"}  # settings all the same, of gemma3_text and opt
_LAYERS = re.compile(r"(num_|n_)?(hidden_|decoder_|encoder_)?layers?")
_AT_LEAST_ONE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SHORT = 256  # positions: the scores of all pairs are little memory
TRIED_UP_TO = 50_000_000  # parameters of a backbone that costs next to nothing to try

# Shapes of the paper's backbones (their config.json), for planning without their files.
_QWEN3: dict[str, Any] = {"model_type": "qwen3", "num_hidden_layers": 36, "num_attention_heads": 32,
                          "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
                          "max_position_embeddings": 40_960}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-4B": _QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728},
    "Qwen/Qwen3-8B": _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12_288},
}


def build_backbone(source: str | dict[str, Any], vocab_size: int, generator: torch.Generator | None) -> PreTrainedModel:
    """The decoder without its text head: with fresh weights from settings, or with its weights by name.

    source: settings of a transformers config, or a folder or hub id such as "Qwen/Qwen3-4B". vocab_size: text tokens
    that it must embed at least; settings without a vocab_size get this one. generator: decides the fresh weights; None
    leaves them undrawn and untried, for a file to fill.
    Raises InputError for what is no causal language model, or that transformers cannot build or run.
    """
    if isinstance(source, str):
        model = _pretrained(source)
    else:
        model = _from_config(_config(resolve_settings(source, vocab_size)), generator)
    if generator is not None:
        _try(model)
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if rows < vocab_size:
        raise InputError(
            f"backbone: it embeds {rows} text tokens, the text tokenizer has {vocab_size}; they do not belong together"
        )
    return model


def resolve_settings(settings: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The settings with what follows from others filled in; raises InputError for a setting that does not exist."""
    settings = dict(settings) if "model_type" in settings else SMALL_QWEN3 | settings
    if not isinstance(settings["model_type"], str):
        raise InputError(f"backbone: model_type is a name such as qwen3 or llama, got {settings['model_type']!r:.80}")
    known = _usual_settings(settings["model_type"]).keys()
    if unknown := sorted(settings.keys() - known):
        raise InputError(f"backbone: a {settings['model_type']} has no setting(s) {', '.join(unknown)}")
    if "vocab_size" in known:
        settings.setdefault("vocab_size", vocab_size)
    heads, width = settings.get("num_attention_heads"), settings.get("hidden_size")
    if isinstance(heads, int) and heads > 0:  # what else it may be is refused by its name later
        if "num_key_value_heads" in known:
            settings.setdefault("num_key_value_heads", heads)
        if "head_dim" in known and isinstance(width, int):
            settings.setdefault("head_dim", width // heads)
    return settings


def check_saved_settings(settings: dict[str, Any], num_tensors: int, where: str) -> None:
    """InputError for settings that no generator is saved with: they may come from a stranger.

    num_tensors: in the file of the weights; a layer has one at least, and transformers lists its layers before it
    builds any of them.
    """
    if not isinstance(settings.get("model_type"), str):
        raise InputError(f"{where}: backbone.model_type is missing; a saved generator names it")
    for key, value in _nested(settings):
        if (key.startswith("_") and key not in _UNDERSCORED) or key in _CODE:
            raise InputError(f"{where}: backbone.{key} is no setting of a saved generator; remove it")
        if _LAYERS.fullmatch(key) and isinstance(value, int) and value > num_tensors:
            raise InputError(f"{where}: backbone.{key} {value} does not fit weights of {num_tensors} tensors")


def _nested(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from _nested(value)


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings from which `build_backbone` makes the same architecture again, without the name's files."""
    usual = _usual_settings(config.model_type)
    known = usual.keys() - _NOT_SETTINGS
    # A None that is not the usual value is a setting: without it the usual one would come back.
    return {
        key: value
        for key, value in config.to_dict().items()
        if key in known and not (value is None and usual[key] is None)
    }


def run_backbone(
    model: PreTrainedModel,
    inputs: Float[Tensor, "B n E"],
    mask: Bool[Tensor, "B m"],
    cache: Cache | None = None,
    *,
    padded: bool = True,
) -> Float[Tensor, "B n H"]:
    """Last hidden states of n new inputs, of which the cache holds the m - n before them.

    mask: False on padding. Positions count what is not padding, so padding changes nothing. padded: False promises that
    there is none, which saves building an attention mask for every token.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
    memory = {} if cache is None else {_cache_argument(type(model)): cache}
    return model(
        inputs_embeds=inputs,
        attention_mask=mask.long() if padded else None,
        position_ids=positions,
        use_cache=cache is not None,
        **memory,
    ).last_hidden_state


def run_step(
    model: PreTrainedModel,
    inputs: Float[Tensor, "R 1 E"],
    mask: Float[Tensor, "R 1 1 m"],
    positions: Int64[Tensor, "R 1"],
    cache: Cache,
) -> Float[Tensor, "R 1 H"]:
    """Last hidden states of one new input a row. mask: added to the attention's scores of all entries of the cache."""
    memory = {_cache_argument(type(model)): cache}
    return model(
        inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=True, **memory
    ).last_hidden_state


def use_plain_attention(model: PreTrainedModel, positions: int) -> None:
    """Attention as two products and a softmax, where so few positions are trained on a CPU.

    The same function but for rounding: the fused kernel's backward pass is slower than all the rest of a small layer.
    """
    if positions <= SHORT:
        model.set_attn_implementation("eager")


def recompute_layers(model: PreTrainedModel) -> None:
    """In training each layer keeps its inputs alone and computes the rest again for its gradients; the same numbers.

    Raises InputError for a backbone of which transformers cannot do that.
    """
    if not model.supports_gradient_checkpointing:
        kind = model.config.model_type
        raise InputError(f"objective.activation_checkpointing: transformers does not have it for {kind}; leave it out")
    model.activation_checkpointing_enable()


@lru_cache
def _cache_argument(kind: type[PreTrainedModel]) -> str:
    # It has had two names in transformers 5.
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


@contextmanager
def _settings_in_use(model_type: str) -> Iterator[None]:
    """InputError for whatever transformers says of settings: it has a dozen types of errors for them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"backbone: these settings of a {model_type} cannot be used: {type(error).__name__}: {reason}"
        ) from error


def _config(settings: dict[str, Any]) -> PreTrainedConfig:
    with _settings_in_use(settings["model_type"]):
        config = AutoConfig.for_model(**settings)
        decoder = config.get_text_config(decoder=True)
        sizes = {name: value for name in _AT_LEAST_ONE if isinstance(value := getattr(decoder, name, None), int)}
    if small := [f"{name} {value}" for name, value in sizes.items() if value < 1]:
        raise InputError(f"backbone: expected numbers of at least 1, got {', '.join(small)}")
    _check_causal(config)
    return config


def _from_config(config: PreTrainedConfig, generator: torch.Generator | None) -> PreTrainedModel:
    with _settings_in_use(config.model_type):
        if generator is None:
            with undrawn():
                return AutoModel.from_config(config, trust_remote_code=False)
        # transformers initialises from the global generator: lent to it, and given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device="cpu")))
            return AutoModel.from_config(config, trust_remote_code=False)


def _check_causal(config: PreTrainedConfig) -> None:
    """InputError for a type of model whose tokens see later ones, or with a setting that lets them."""
    kind = config.model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise InputError(
            f"backbone: a {kind} is no decoder-only language model: its tokens would see later ones; "
            "choose a model_type such as qwen3, llama or gpt2"
        )
    for name, allowed in _CAUSAL.items():
        given = getattr(config.get_text_config(decoder=True), name, allowed[0])
        if given not in allowed:
            raise InputError(
                f"backbone: with {name}={given!r} the tokens of a {kind} see later ones; set {name}={allowed[0]!r}, or "
                "choose a model_type such as qwen3, llama or gpt2"
            )


@torch.no_grad()
def _try(model: PreTrainedModel) -> None:
    """InputError where a small model does not run on embeddings to finite numbers, or a token changes earlier ones."""
    kind, weight = model.config.model_type, next(model.parameters())
    if weight.is_meta or sum(p.numel() for p in model.parameters()) > TRIED_UP_TO:
        return
    with _settings_in_use(kind), evaluating(model):
        width = cast(nn.Embedding, model.get_input_embeddings()).embedding_dim
        inputs = torch.randn(1, 6, width, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(weight)
        other = torch.cat([inputs[:, :3], -inputs[:, 3:]], dim=1)
        mask = torch.ones(1, 6, dtype=torch.bool, device=weight.device)
        before, after = (run_backbone(model, x, mask)[:, :3] for x in (inputs, other))
    if not before.isfinite().all():
        raise InputError(f"backbone: a {kind} with these settings gives numbers that are not finite")
    if (before - after).abs().max() > 1e-3 * before.abs().max():
        raise InputError(f"backbone: a {kind} with these settings lets tokens see later ones; choose a decoder")


def _usual_settings(model_type: str) -> dict[str, Any]:
    """All settings that a type has, with their defaults."""
    try:
        config = AutoConfig.for_model(model_type)
    except ValueError:
        raise InputError(f"backbone: transformers has no model_type {model_type!r}; for example qwen3, llama") from None
    return dict.fromkeys(_LEGACY) | config.to_dict()


def named_config(name: str) -> PreTrainedConfig:
    """The config of a language model by folder or hub id; InputError for one that cannot be a backbone."""
    with _naming_source(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    _check_causal(config)
    return config


def _pretrained(name: str) -> PreTrainedModel:
    config = named_config(name)
    with _naming_source(name):
        # float32: these weights are trained; lower precision is the training's choice (train.precision).
        return AutoModel.from_pretrained(name, config=config, dtype=torch.float32, trust_remote_code=False)


@contextmanager
def _naming_source(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"backbone {name!r}: no folder or hub repository that can be read ({error})") from None
