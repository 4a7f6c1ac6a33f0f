"""The lookup is exact whatever float32 products may be rounded to, and leaves those settings as they were."""

import os
import subprocess
import sys

import pytest
import torch

PRECISION = """
import os, torch
from channelvq.errors import InputError
from channelvq.lookup import nearest
from channelvq.lookup.nearest import nearest_codeword
b = torch.backends
older = torch.set_float32_matmul_precision
settings = {f"older {name}": lambda name=name: older(name) for name in ("highest", "high", "medium")}
if hasattr(b, "fp32_precision"):
    settings |= {
        "all tf32": lambda: setattr(b, "fp32_precision", "tf32"),
        "all bf16": lambda: setattr(b, "fp32_precision", "bf16"),
        "cuda": lambda: setattr(b.cuda.matmul, "fp32_precision", "tf32"),
        "cudnn": lambda: setattr(b.cudnn, "fp32_precision", "tf32"),
        "mkldnn tf32": lambda: setattr(b.mkldnn.matmul, "fp32_precision", "tf32"),
        "mkldnn bf16": lambda: setattr(b.mkldnn.matmul, "fp32_precision", "bf16"),
        "mixed": lambda: (older("medium"), setattr(b, "fp32_precision", "tf32"),
                          setattr(b.mkldnn.matmul, "fp32_precision", "none")),
    }

def older_precision():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "refused"

def state():  # what is set, and what of it would follow a later setting for all
    seen = [older_precision()]
    if hasattr(b, "fp32_precision"):
        before = b.fp32_precision
        for each in (before, "ieee", "tf32", before):
            b.fp32_precision = each
            seen += [b.cuda.matmul.fp32_precision, b.mkldnn.matmul.fp32_precision, b.cudnn.conv.fp32_precision]
    return seen

def fail(rows, codebook):
    raise InputError("from a pass")

for name, use in settings.items():
    if os.fork():  # in a process of its own, before the first kernel: the two ways cannot be told apart again
        assert os.wait()[1] == 0, name
        continue
    use()
    before = state()
    z, e = (torch.randn(shape, generator=torch.Generator().manual_seed(6)) for shape in ((300, 256), (800, 256)))
    z += 30  # large beside the differences that decide
    distances = torch.cdist(z.double(), e.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest_codeword(z, e), distances.argmin(1)), name
    assert state() == before, (name, before, state())
    nearest.bfloat16.pays = fail
    try:
        nearest_codeword(z, e)
    except InputError:
        pass
    else:
        raise AssertionError("the pass was not asked")
    assert state() == before, (name, before, state())
    print(name, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts a process for each setting")
def test_reduced_matmul_precision_changes_nothing_and_is_put_back() -> None:
    result = subprocess.run([sys.executable, "-c", PRECISION], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == (10 if hasattr(torch.backends, "fp32_precision") else 3)
