"""State dicts: what identifies them, and whether they fit a model."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes of a tensor, in hexadecimal digits."""
    return _digest({"": tensor})


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's state dict: names in order, dtypes, shapes and bytes; independent of device and file."""
    return _digest(module.state_dict())


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of two state dicts has, or that have another shape, in order."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (state, own)]
    return sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()
