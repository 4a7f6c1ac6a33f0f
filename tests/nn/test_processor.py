"""What the processor multiplies faster is tried, not asked for."""

from collections.abc import Iterator

import pytest
import torch

from channelvq.nn import processor


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.dtype]]:
    """The types that were tried, of which bfloat16 takes four seconds and float32 one."""
    seen: list[torch.dtype] = []

    def once(matrix: torch.Tensor) -> float:
        seen.append((matrix @ matrix).dtype)
        return 4.0 if matrix.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(processor, "_once", once)
    processor.bfloat16_speedup.cache_clear()
    yield seen
    processor.bfloat16_speedup.cache_clear()


def test_speedup_is_tried_once_in_the_two_types_also_under_autocast(tried: list[torch.dtype]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert processor.bfloat16_speedup() == processor.bfloat16_speedup() == 0.25
    assert tried == [torch.float32] * processor._TRIES + [torch.bfloat16] * processor._TRIES
