"""What torch.compile needs."""

import os
import shutil
import sys

from channelvq.errors import InputError

_USUAL = {"darwin": "clang++", "win32": "cl"}


def compiler() -> str:
    """The C++ compiler that torch.compile calls on the CPU: $CXX, or the platform's usual one."""
    return os.environ.get("CXX", _USUAL.get(sys.platform, "g++"))


def check_compiler(setting: str, on_gpu: bool) -> None:
    """InputError where torch.compile has no C++ compiler, which a GPU needs not; setting: what asked for it."""
    if not on_gpu and shutil.which(compiler()) is None:
        raise InputError(
            f"{setting}: torch.compile needs a C++ compiler on the CPU, and there is no {compiler()}; install it, name "
            "another one in the environment variable CXX, or leave it out"
        )
