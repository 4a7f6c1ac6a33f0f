"""The naive sampler that the product's is tested against: one image at a time, without cache, padding or groups."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from channelvq.car.backbone import run_backbone
from channelvq.car.choice import choose, guide
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.nn.modes import evaluating


@torch.no_grad()
def naive_ids(
    model: CAR, prompts: Sequence[str], settings: SamplingSettings, against: str = ""
) -> Int64[Tensor, "B C"]:
    """What `Sampler(model, settings).generate(prompts, negative_prompt=against).ids` has to be in float64."""
    with evaluating(model):
        return torch.cat(
            [_image(model, prompt, against, settings, settings.seed + i) for i, prompt in enumerate(prompts)]
        )


def _image(model: CAR, prompt: str, against: str, settings: SamplingSettings, seed: int) -> Int64[Tensor, "1 C"]:
    text, other = (model.text.encode(words, model.config.max_text_tokens) for words in (prompt, against))
    words, others, nothing = text.ids[text.mask][None], other.ids[other.mask][None], text.ids[:, :0]
    uniform = torch.rand(model.num_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ids = nothing
    for k in range(model.num_tokens):
        logits = _logits(model, words, ids)
        if settings.guided:
            logits = guide(logits, _logits(model, others, ids), settings.guidance_scale)
        ids = torch.cat([ids, choose(logits, uniform[k : k + 1], settings)[:, None]], dim=1)
    return ids


def _logits(model: CAR, words: Tensor, ids: Tensor) -> Float[Tensor, "1 N"]:
    """Of the token after `ids`: the sequence from its start again, for every token."""
    text = model.text_embedding(words)
    inputs = torch.cat([text, model.image_inputs(ids).to(text.dtype)], dim=1)
    mask = torch.ones(inputs.shape[:2], dtype=torch.bool)
    return model.logits(run_backbone(model.backbone, inputs, mask)[:, -1:])[:, 0]
