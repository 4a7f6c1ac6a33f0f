"""What torch.compile needs."""

import shutil

from channelvq.errors import InputError


def check_compiler(setting: str, on_gpu: bool) -> None:
    """InputError where torch.compile has no C++ compiler, which a GPU needs not; setting: what asked for it."""
    if not on_gpu and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise InputError(
            f"{setting}: torch.compile needs a C++ compiler (g++ or clang++) on the CPU; install one, or leave it out"
        )
