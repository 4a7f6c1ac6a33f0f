"""The language model inside CAR: any decoder of `transformers`, by its settings or by its name."""

import inspect
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Cache, PreTrainedConfig, PreTrainedModel

from channelvq.car.config import SMALL_QWEN3
from channelvq.errors import InputError

# Of a saved transformers config: where it came from, and what a decoder without a text head has no use for.
_NOT_SETTINGS = {"_name_or_path", "architectures", "dtype", "transformers_version", "use_cache", "id2label", "label2id"}
_LEGACY = {"rope_theta", "rope_scaling"}  # taken by transformers, but kept under rope_parameters

# Shapes of the paper's backbones (their config.json), for planning without their files.
_QWEN3: dict[str, Any] = {"model_type": "qwen3", "num_hidden_layers": 36, "num_attention_heads": 32,
                          "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
                          "max_position_embeddings": 40_960}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-4B": _QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728},
    "Qwen/Qwen3-8B": _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12_288},
}


def build_backbone(source: str | dict[str, Any], vocab_size: int, generator: torch.Generator) -> PreTrainedModel:
    """The decoder without its text head: with fresh weights from settings, or with its weights by name.

    source: settings of a transformers config, or a folder or hub id such as "Qwen/Qwen3-4B". vocab_size: text tokens
    that it must embed at least; settings without a vocab_size get this one. generator: decides the fresh weights.
    """
    if isinstance(source, str):
        model = _pretrained(source)
    else:
        config = _config(resolve_settings(source, vocab_size))
        # transformers initialises from the global generator: lent to it, and given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device="cpu")))
            model = AutoModel.from_config(config)
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if rows < vocab_size:
        raise InputError(
            f"backbone: it embeds {rows} text tokens, the text tokenizer has {vocab_size}; they do not belong together"
        )
    return model


def resolve_settings(settings: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The settings with what follows from others filled in; raises InputError for a setting that does not exist."""
    settings = dict(settings) if "model_type" in settings else SMALL_QWEN3 | settings
    known = _known_settings(settings["model_type"])
    if unknown := sorted(settings.keys() - known):
        raise InputError(f"backbone: a {settings['model_type']} has no setting(s) {', '.join(unknown)}")
    if "vocab_size" in known:
        settings.setdefault("vocab_size", vocab_size)
    heads = settings.get("num_attention_heads")
    if heads and "num_key_value_heads" in known:
        settings.setdefault("num_key_value_heads", heads)
    if heads and "head_dim" in known and "hidden_size" in settings:
        settings.setdefault("head_dim", settings["hidden_size"] // heads)
    return settings


def settings_of(model: PreTrainedModel) -> dict[str, Any]:
    """The settings from which `build_backbone` makes the same architecture again, without the name's files."""
    config = model.config
    known = _known_settings(config.model_type) - _NOT_SETTINGS
    return {key: value for key, value in config.to_dict().items() if key in known and value is not None}


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


@lru_cache
def _cache_argument(kind: type[PreTrainedModel]) -> str:
    # It has had two names in transformers 5.
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


def _config(settings: dict[str, Any]) -> PreTrainedConfig:
    try:
        return AutoConfig.for_model(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"backbone: these settings cannot be used: {error}") from None


def _known_settings(model_type: str) -> set[str]:
    try:
        return set(AutoConfig.for_model(model_type).to_dict()) | _LEGACY
    except ValueError:
        raise InputError(f"backbone: transformers has no model_type {model_type!r}; for example qwen3, llama") from None


def _pretrained(name: str) -> PreTrainedModel:
    try:
        # float32: these weights are trained; lower precision is the training's choice (train.precision).
        return AutoModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"backbone {name!r}: no folder or hub repository that can be read ({error})") from None
