"""What torch.compile needs."""

import shutil

import torch

from channelvq.errors import InputError


def check_compiler(setting: str, device: torch.device | None = None) -> None:
    """InputError where torch.compile has no C++ compiler; setting: what asked for it. device: a GPU needs none."""
    on_cpu = not torch.cuda.is_available() if device is None else device.type == "cpu"
    if on_cpu and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise InputError(
            f"{setting}: torch.compile needs a C++ compiler (g++ or clang++) on the CPU; install one, or leave it out"
        )
