"""CAR as the code model: p(x_k | x_<k, caption), made the same on every machine.

    float64 throughout --> logits, equal to about 1e-14 --> levels, whose boundaries lie 1e-9 or more from any logit

The writer looks at all scores of a picture and chooses, of 256 places for the boundaries, one that no score is near to;
the file says which. So a reader finds the same levels although its last bits are others.
"""

import copy
import hashlib
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int32, Int64
from torch import Tensor
from torch.overrides import TorchFunctionMode

from channelvq.car.group import Group, sampling_mode
from channelvq.car.model import CAR
from channelvq.car.request import Request
from channelvq.car.settings import SamplingSettings
from channelvq.codec.container import MODEL_DIGEST
from channelvq.codec.levels import FINE, fine_scores, levels_of, safe_shifts
from channelvq.nn.modes import CHUNK_ROWS
from channelvq.pretrained import weights_sha256

_KEPT_BITS = 16  # of numbers that are computed when a model is built


class CARScores:
    """The scores of a generator; it keeps a copy of the model in float64."""

    kind: ClassVar[Literal["car"]] = "car"

    def __init__(self, car: CAR) -> None:
        self.tokenizer = car.tokenizer
        # Not its settings: a newer transformers may know more of them.
        content = f"{weights_sha256(car)}/{car.text.digest()}"
        self.digest = hashlib.sha256(content.encode()).digest()[:MODEL_DIGEST]
        self._model = copy.deepcopy(car).double().eval()
        _round_computed(self._model)

    @property
    def num_tokens(self) -> int:
        """The most tokens of a picture that there are scores of."""
        return self._model.num_tokens

    def to(self, device: torch.device) -> "CARScores":
        """Moved there; the levels, and so the files, are those of every device."""
        self._model.to(device)
        self.tokenizer.to(device)
        return self

    def start(self, captions: list[str]) -> "CARWalk":
        """The walk through the tokens of at most 8 pictures; a caption "" is none."""
        return CARWalk(self._model, captions)


class CARWalk:
    """Scores of one token after the other, of pictures whose tokens are told on the way."""

    def __init__(self, model: CAR, captions: list[str]) -> None:
        text, none = (
            model.text.encode(words, model.config.max_text_tokens).to(model.device)
            for words in (captions, [""] * len(captions))
        )
        nothing = torch.empty(len(captions), 0, dtype=torch.int64, device=model.device)
        request = Request(text, none, (0,) * len(captions), nothing, model.num_tokens)
        with sampling_mode(model, True), _Double():
            settings = SamplingSettings(guidance_scale=1.0)
            self._group = Group(model, settings, request, CHUNK_ROWS, exact=True, compiled=False)
        self._model, self._rows = model, len(captions)
        self.safe: Bool[np.ndarray, "B FINE"] = np.ones((self._rows, FINE), dtype=bool)  # shifts, so far

    def logits(self, ids: Int64[Tensor, "B k"]) -> Float64[np.ndarray, "B N"]:
        """Scores of the token after the first k, in nats; k does not go down from call to call."""
        missing = ids.new_zeros(CHUNK_ROWS - len(ids), ids.shape[1])
        self._group.ids = torch.cat([ids, missing]).to(self._model.device)
        with sampling_mode(self._model, True), _Double():
            return self._group.next_logits()[: self._rows].cpu().numpy()

    def fine(self, ids: Int64[Tensor, "B k"]) -> Int32[np.ndarray, "B N"]:
        """The same on the fine grid; k goes up by one from call to call."""
        logits = self.logits(ids)
        self.safe &= np.stack([safe_shifts(row) for row in logits])
        return fine_scores(logits)

    def levels(self, ids: Int64[Tensor, "B k"], shifts: list[int]) -> Int32[np.ndarray, "B N"]:
        """Levels of the token after the first k, for each picture."""
        return np.stack([levels_of(row, shift) for row, shift in zip(self.fine(ids), shifts, strict=True)])


class _Double(TorchFunctionMode):
    """Keeps float64 where a layer asks for float32: transformers' norms, rotary angles and softmax do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func is Tensor.to:
                args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def _round_computed(model: CAR) -> None:
    """Round what is computed when a model is built, such as rotary frequencies: its last bits are a machine's."""
    saved = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name not in saved and buffer.dtype == torch.float64:
            mantissa, exponent = torch.frexp(buffer)
            buffer.copy_(torch.ldexp((mantissa * 2**_KEPT_BITS).round() / 2**_KEPT_BITS, exponent))
