"""The first pass of the lookup as one kernel for CUDA: the (N, M) products never leave the processor.

    rows z (M, D), codewords e (N, D) -> bfloat16 -> dot, accumulated in float32 -> |e|^2/2 - z.e -> minima of groups

The same bound holds as for the processor's bfloat16 product (lookup/bfloat16.py): its operands are rounded alike, its
sums are not rounded to bfloat16. What the bound leaves open is settled by the same code.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float64
from torch import Tensor

ROWS, WORDS, NUMBERS = 64, 128, 32  # of one program, and of one step of its product


@triton.jit
def _rounded(x):
    """Float32 numbers to the nearest that bfloat16 holds, even ones on a tie; a plain cast is left free to truncate."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def _group_minima(
    rows, words, half, minima, num_rows, num_words, dim, row_stride, column_stride, word_stride, number_stride, scale,
    ROWS: tl.constexpr, WORDS: tl.constexpr, NUMBERS: tl.constexpr, GROUP: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    products = tl.zeros((WORDS, ROWS), dtype=tl.float32)
    for start in range(0, dim, NUMBERS):
        number = start + tl.arange(0, NUMBERS)
        e = tl.load(
            words + word[:, None] * word_stride + number[None, :] * number_stride,
            mask=(word < num_words)[:, None] & (number < dim)[None, :], other=0.0,
        )  # fmt: skip
        z = tl.load(
            rows + at[None, :] * row_stride + number[:, None] * column_stride,
            mask=(at < num_rows)[None, :] & (number < dim)[:, None], other=0.0,
        )  # fmt: skip
        left, right = _rounded(e.to(tl.float32) * scale), _rounded(z)
        if not INTERPRETED:  # the interpreter multiplies the bits of bfloat16 numbers as if they were integers
            left, right = left.to(tl.bfloat16), right.to(tl.bfloat16)
        products += tl.dot(left, right)
    halves = tl.load(half + word, mask=word < num_words, other=float("inf"))
    scores = tl.reshape(halves[:, None] - products, (WORDS // GROUP, GROUP, ROWS))
    group = tl.program_id(1) * (WORDS // GROUP) + tl.arange(0, WORDS // GROUP)
    tl.store(minima + group[:, None] * num_rows + at[None, :], tl.min(scores, axis=1), mask=(at < num_rows)[None, :])


def group_minima(
    rows: Float[Tensor, "M D"], words: Float[Tensor, "N D"], norms: Float64[Tensor, " n"], scale: float, group: int
) -> Float[Tensor, "H M"]:
    """Least |e|^2/2 - z.e of every `group` codewords, infinity past the last; rows are scaled already, words not.

    norms: of the scaled codewords, filled up with zeros to n = H * group, a multiple of WORDS.
    """
    minima = rows.new_empty(len(norms) // group, len(rows), dtype=torch.float32)
    grid = (triton.cdiv(len(rows), ROWS), len(norms) // WORDS)
    interpreted = not isinstance(_group_minima, triton.JITFunction)
    sizes = {"ROWS": ROWS, "WORDS": WORDS, "NUMBERS": NUMBERS, "GROUP": group, "INTERPRETED": interpreted}
    strides = (rows.stride(0), rows.stride(1), words.stride(0), words.stride(1))
    half = (norms.square() / 2).float()
    _group_minima[grid](rows, words, half, minima, len(rows), len(words), rows.shape[1], *strides, scale, **sizes)
    return minima
