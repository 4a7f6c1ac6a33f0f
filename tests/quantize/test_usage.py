import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channelvq.errors import InputError
from channelvq.quantize.usage import CodebookUsage


def report(ids: torch.Tensor, codebook_size: int):
    usage = CodebookUsage(codebook_size)
    usage.update(ids)
    return usage.result()


def test_each_code_once_is_full_use() -> None:
    result = report(torch.arange(16), 16)
    assert result.use == 1.0
    assert result.perplexity == pytest.approx(16.0, rel=1e-12)
    assert result.perplexity_ratio == pytest.approx(1.0, rel=1e-12)
    assert result.use_if_uniform == pytest.approx(1 - math.exp(-1), rel=1e-12)
    assert result.tokens == 16


def test_one_code_is_perplexity_one() -> None:
    result = report(torch.full((3, 5), 2), 10)
    assert result.use == pytest.approx(0.1)
    assert result.perplexity == 1.0
    assert result.position_bits == (0.0,) * 5


def test_unequal_frequencies_have_their_closed_form() -> None:
    # frequencies 1/2, 1/4, 1/4: entropy 1.5 bits
    result = report(torch.tensor([0, 0, 1, 2]), 8)
    assert result.perplexity == pytest.approx(2**1.5, rel=1e-12)
    assert result.use == 3 / 8


def test_positions_have_their_own_entropy() -> None:
    # position 0 never changes, 1 is a fair coin, 2 has four codes; together the entropy is another one
    ids = torch.tensor([[0, 0, 4], [0, 1, 5], [0, 0, 6], [0, 1, 7]])
    assert report(ids, 8).position_bits == pytest.approx((0.0, 1.0, 2.0), abs=1e-12)


def test_ids_without_positions_have_no_entropy_by_position() -> None:
    usage = CodebookUsage(4)
    usage.update(torch.tensor([[0, 1]]))
    usage.update(torch.tensor([2, 3, 3]))
    assert usage.result().position_bits is None
    assert usage.result().tokens == 5
    quiet = CodebookUsage(4, per_position=False)
    quiet.update(torch.tensor([[0, 1]]))
    assert quiet.result().position_bits is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=12, max_size=12), st.integers(1, 4))
def test_batches_do_not_matter(values: list[int], rows: int) -> None:
    ids = torch.tensor(values).reshape(4, 3)
    usage = CodebookUsage(7)
    for batch in ids.split(rows):
        usage.update(batch)
    assert usage.result() == report(ids, 7)


def test_uniform_random_ids_use_what_use_if_uniform_says() -> None:
    generator = torch.Generator().manual_seed(0)
    result = report(torch.randint(0, 4096, (500, 16), generator=generator), 4096)
    assert result.use == pytest.approx(result.use_if_uniform, abs=0.01)
    assert result.perplexity < 4096


def test_the_counts_stay_exact_where_a_float32_entropy_would_not() -> None:
    usage = CodebookUsage(2)
    usage.counts[:] = torch.tensor([2**40, 1])
    p = 1 / (2**40 + 1)
    assert math.log(usage.result().perplexity) == pytest.approx(p * (1 - math.log(p)), rel=1e-3)


@pytest.mark.parametrize("ids", [[0, 8], [-1, 0]])
def test_ids_out_of_range_are_named_and_nothing_is_counted(ids: list[int]) -> None:
    usage = CodebookUsage(8)
    with pytest.raises(InputError, match=r"id (8|-1) is outside 0\.\.7"):
        usage.update(torch.tensor(ids))
    assert not usage.counts.any()


def test_other_misuse() -> None:
    usage = CodebookUsage(8)
    with pytest.raises(InputError, match="no ids"):
        usage.result()
    with pytest.raises(InputError, match=r"expected whole numbers, got torch\.float32"):
        usage.update(torch.zeros(3))
    usage.update(torch.zeros(2, 3, dtype=torch.int32))
    with pytest.raises(InputError, match="4 positions, earlier ones had 3"):
        usage.update(torch.zeros(2, 4, dtype=torch.int64))
    assert usage.result().tokens == 6
    with pytest.raises(InputError, match="codebook_size"):
        CodebookUsage(0)
