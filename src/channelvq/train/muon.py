"""Muon for hidden matrices with AdamW for the rest, as one optimizer: a model has one backward pass a step."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from channelvq.nn.processor import has_bfloat16_tiles


def hidden_matrices(backbone: PreTrainedModel) -> list[Tensor]:
    """The matrices of a backbone's layers (of GPT-2 they are called Conv1D): all but its tables of embeddings."""
    return [
        module.weight
        for module in backbone.modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not backbone.get_output_embeddings()
    ]


class MuonWithAdamW(Optimizer):
    """Both of torch's optimizers behind one state and one list of groups: schedules and checkpoints see one optimizer.

    adamw: parameter groups of AdamW, with their own "lr" and "weight_decay". matrices: what Muon updates, by steps of
    the size that AdamW's would have (Jordan 2024; Liu et al., arXiv 2502.16982), with the peak rate `muon_lr`.
    """

    shardable = False  # Muon needs its matrices in one piece

    def __init__(
        self,
        adamw: Sequence[dict[str, Any]],
        matrices: Sequence[Tensor],
        *,
        muon_lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self._adamw = AdamW(adamw, betas=betas, fused=True)
        self._muon = Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        super().__init__([*self._adamw.param_groups, *self._muon.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The two work on the state and the groups that this one shows."""
        count = len(self._adamw.param_groups)
        self._adamw.state = self._muon.state = self.state
        self._adamw.param_groups, self._muon.param_groups = self.param_groups[:count], self.param_groups[count:]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._adamw.step()
        slow = self.param_groups[-1]["params"][0].device.type == "cpu" and not has_bfloat16_tiles()
        with _InFloat32() if slow else nullcontext():
            self._muon.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer."""
        super().load_state_dict(state_dict)
        self._share()


class _InFloat32(TorchFunctionMode):
    # Torch's Muon makes a gradient orthogonal in bfloat16 and has no setting for it. A processor without tiles for it
    # spends more time on that than on the whole forward and backward pass of a small model.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.bfloat16:
            return args[0].float().clone()  # it is written over
        return func(*args, **(kwargs or {}))
