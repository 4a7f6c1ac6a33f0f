"""Float32 products as such, whatever the process has allowed them to be rounded to.

torch has two ways to allow TF32 or bfloat16 in float32 products; calls of the older one fail where they disagree:

    torch.set_float32_matmul_precision("medium")     the older one: it also sets both backends below
    torch.backends.fp32_precision = "tf32"           from 2.9 on (transformers' enable_tf32): for all backends, of which
    torch.backends.cuda.matmul.fp32_precision = ...  one that says "none" takes over what stands above it
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from channelvq.threads import shared

_BACKENDS: Any = torch.backends  # what it has is made at run time


@shared
@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products in float32 inside, by either way; afterwards both are as before, also after an exception."""
    backends: tuple[Any, ...] = ()
    if hasattr(_BACKENDS, "fp32_precision"):
        backends = (_BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul)
    own = [_own_precision(backend) for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        # With both backends exact the older way can be asked without a refusal. Kernels on CUDA compare the two.
        with _older_highest():
            yield
    finally:
        for backend, precision in zip(backends, own, strict=True):
            backend.fp32_precision = precision


def _own_precision(backend: Any) -> str:
    """What a backend was set to, "none" where it takes over what stands above it: its attribute does not tell which."""
    seen, above = backend.fp32_precision, _BACKENDS.fp32_precision
    _BACKENDS.fp32_precision = "tf32" if seen == "ieee" else "ieee"
    own = "none"
    if backend.fp32_precision == seen:  # it does not follow that, but perhaps torch.backends.cudnn.fp32_precision
        backend.fp32_precision = "none"
        own = "none" if backend.fp32_precision == seen else seen
    _BACKENDS.fp32_precision = above
    return own


@contextmanager
def _older_highest() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    if before == "highest":  # the usual case; setting it once more could warn that the way is an old one
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
