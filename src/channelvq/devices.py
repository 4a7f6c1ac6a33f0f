"""Where and how precisely to compute: what users and commands say of it, as a torch.device and a torch.dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from channelvq.errors import InputError

ExportedWeights = Literal["float32", "int8"]  # how exports for other programs hold the large matrices

if TYPE_CHECKING:
    import torch


def resolve_device(given: str | torch.device = "auto") -> torch.device:
    """The device of "auto" (a CUDA GPU where there is one, else the CPU), "cpu", "cuda" or "cuda:n".

    A torch.device of type "meta" passes, for modules whose weights are not needed. Raises InputError for a device that
    is not here, and for kinds on which this library does not work.
    """
    import torch

    if given == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        raise InputError(f"device {given!r}: expected auto, cpu, cuda or cuda:n, such as cuda:0") from None
    if device.type == "mps":
        raise InputError(f"device {str(given)!r}: it has no float64, which the exact lookup needs; use cpu")
    if device.type == "cuda":
        _check_cuda(device)
    elif device.type != "cpu" and not (device.type == "meta" and isinstance(given, torch.device)):
        raise InputError(f"device {str(given)!r}: expected auto, cpu, cuda or cuda:n, such as cuda:0")
    return device


DTYPES = ("float32", "bfloat16", "float16", "float64")


def resolve_dtype(given: str | torch.dtype | None) -> torch.dtype | None:
    """The floating-point type of a name in DTYPES, or of torch; None stays None. Raises InputError for any other."""
    import torch

    kinds = {name: getattr(torch, name) for name in DTYPES}
    if given is None or given in kinds.values():
        return cast("torch.dtype | None", given)
    if not isinstance(given, str) or given not in kinds:
        raise InputError(f"dtype {given!r}: expected {', '.join(DTYPES)}, or torch's own of that name")
    return kinds[given]


def _check_cuda(device: torch.device) -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"device '{device}': torch {torch.__version__} finds no CUDA GPU; use cpu, or install the build of torch "
            "that https://pytorch.org/get-started/locally/ names for your driver"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise InputError(f"device '{device}': there are {count} CUDA GPUs, give cuda:0 to cuda:{count - 1}")
