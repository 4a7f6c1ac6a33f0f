"""SigLIP's vision transformer (Zhai et al. 2023, arXiv 2303.15343) by the library transformers.

image (B, 3, H, W) in [-1, 1] -> patches of p x p -> L layers -> norm -> features (B, E, H/p, W/p)

[-1, 1] is the range that SigLIP was trained on, so images go in as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor

from channelvq.errors import InputError

# transformers takes seconds to import, and few tokenizers need it: it is imported where it is used.
if TYPE_CHECKING:
    from transformers import SiglipVisionConfig, SiglipVisionModel

# Shapes of published checkpoints (their config.json), for planning without their files.
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
PUBLISHED: dict[str, dict[str, int]] = {
    "google/siglip-base-patch16-256": _BASE | {"image_size": 256, "patch_size": 16},
    "google/siglip-large-patch16-256": _LARGE | {"image_size": 256, "patch_size": 16},
    "google/siglip-so400m-patch14-384": _SO400M | {"image_size": 384, "patch_size": 14},
}


def siglip_settings(**settings: int) -> "SiglipVisionConfig":
    """A shape in the words of transformers, without the pooling head, which nothing here needs."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(vision_use_head=False, **settings)  # type: ignore[arg-type]


def build_siglip(config: "SiglipVisionConfig") -> "SiglipVisionModel":
    """A vision transformer of this shape with fresh weights."""
    from transformers import SiglipVisionModel

    return SiglipVisionModel(config)


def load_siglip(source: str) -> "SiglipVisionModel":
    """All layers of a checkpoint, a folder or a hub id, in float32 and without the pooling head.

    Raises InputError where it cannot be read, or is of another architecture or incomplete.
    """
    from transformers import SiglipVisionModel

    config = siglip_config(source, published=False)
    try:
        with _quiet():
            # It tells of the text tower, which a checkpoint has and the vision transformer has no use for.
            loaded = SiglipVisionModel.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(source, error) from None
    model, report = cast("tuple[SiglipVisionModel, dict[str, set[str]]]", loaded)
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"SigLIP {source!r}: the checkpoint lacks {len(missing)} tensor(s), such as {missing[0]}")
    return model


def siglip_config(source: str, *, published: bool = True) -> "SiglipVisionConfig":
    """The shape of a checkpoint by name; published: for one that is not here, what `PUBLISHED` says of it."""
    from transformers import AutoConfig, SiglipVisionConfig

    if published and source in PUBLISHED and not Path(source).is_dir():
        return siglip_settings(**PUBLISHED[source])
    try:
        checkpoint = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from None
    config = getattr(checkpoint, "vision_config", checkpoint)
    if not isinstance(config, SiglipVisionConfig):
        raise InputError(
            f"SigLIP {source!r}: this is a {checkpoint.model_type}, expected a siglip or siglip_vision_model"
        )
    config.vision_use_head = False
    return config


def siglip_features(model: "SiglipVisionModel", x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B E h w"]:
    """Features of every patch after the last norm, for images of any multiple of the patch's size."""
    side = int(model.config.patch_size)  # type: ignore[arg-type]
    # Position embeddings are resampled for images of another size than the model's, and exact for those of its own.
    hidden = model(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state
    return hidden.transpose(1, 2).unflatten(2, (x.shape[2] // side, x.shape[3] // side))


def _unreadable(source: str, error: Exception) -> InputError:
    return InputError(
        f"SigLIP {source!r}: no folder or hub repository that can be read ({error}); give the folder of a checkpoint, "
        "or a name such as google/siglip-base-patch16-256 with the hub within reach"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
