"""The noise of `scoretk.core.noise` in one kernel of Triton, for CUDA.

The same words and the same transforms, in one launch where eager torch needs a hundred. Integers
and uniforms have the bits of the reference; normals agree to rounding. Step, key and chain ids are
read on the device, so that a launch waits for nothing and can stand in a CUDA graph that is
replayed at another step.

References:
    Tillet, Kung, Cox, "Triton: an intermediate language and compiler for tiled neural network
    computations" (2019).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["fused_noise"]

NORMAL, UNIFORM, RADEMACHER = (tl.constexpr(kind) for kind in range(3))
LOW_HALF = tl.constexpr(1 << 31)
BLOCKS = 256
"""How many blocks of four values each program of the grid makes."""


@triton.jit
def _words(key, block, chain, step, word):
    seed = (tl.load(key + 1).to(tl.uint64) << 32) | tl.load(key).to(tl.uint64)
    return tl.philox(seed, block, chain, step, word, 10)


@triton.jit
def _fraction(high, low, DOUBLE: tl.constexpr):
    if DOUBLE:
        return (low.to(tl.float64) * 2.0**-64 + 2.0**-65) + high.to(tl.float64) * 2.0**-32
    else:
        return high.to(tl.float32) * 2.0**-32 + 2.0**-33


@triton.jit
def _pair(h0, h1, l0, l1, unit, below_one, KIND: tl.constexpr, DOUBLE: tl.constexpr):
    if KIND == NORMAL:
        radius = tl.sqrt(-2.0 * tl.log(_fraction(h0, l0, DOUBLE)))
        angle = h1.to(tl.int32, bitcast=True).to(unit.dtype)
        if DOUBLE:
            angle += l1.to(tl.float64) * 2.0**-32
        angle *= unit
        return radius * tl.cos(angle), radius * tl.sin(angle)
    elif KIND == UNIFORM:
        return (
            tl.minimum(_fraction(h0, l0, DOUBLE), below_one),
            tl.minimum(_fraction(h1, l1, DOUBLE), below_one),
        )
    else:
        return 1 - 2 * (h0 >> 31).to(unit.dtype), 1 - 2 * (h1 >> 31).to(unit.dtype)


@triton.jit(do_not_specialize=["word", "rows", "n_chains"])
def _fill(
    out,
    key,
    steps,
    chains,
    constants,
    word,
    rows,
    n_chains,
    n,
    KIND: tl.constexpr,
    DOUBLE: tl.constexpr,
    SIZE: tl.constexpr,
):
    blocks = (n + 3) // 4
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    row, block = i // blocks, i % blocks
    here = row < rows
    chain = tl.load(chains + row % n_chains, mask=here, other=0).to(tl.uint32)
    step = tl.load(steps + row // n_chains, mask=here, other=0).to(tl.uint32)
    b = block.to(tl.uint32)
    stream = tl.full((SIZE,), word, tl.uint32)
    h0, h1, h2, h3 = _words(key, b, chain, step, stream)
    if DOUBLE:
        l0, l1, l2, l3 = _words(key, b, chain, step, stream | LOW_HALF)
    else:
        l0, l1, l2, l3 = h0, h1, h2, h3
    unit, below_one = tl.load(constants), tl.load(constants + 1)
    z0, z1 = _pair(h0, h1, l0, l1, unit, below_one, KIND, DOUBLE)
    z2, z3 = _pair(h2, h3, l2, l3, unit, below_one, KIND, DOUBLE)
    e = 4 * block
    at = out + row * n + e
    tl.store(at, z0, mask=here)
    tl.store(at + 1, z1, mask=here & (e + 1 < n))
    tl.store(at + 2, z2, mask=here & (e + 2 < n))
    tl.store(at + 3, z3, mask=here & (e + 3 < n))


def fused_noise(
    kind: int, key: Tensor, constants: Tensor, word: int, steps: Tensor, chains: Tensor, n: int
) -> Tensor:
    """The first n values of every step and chain.

    Args:
        kind: 0 for normals, 1 for uniforms, 2 for signs.
        key: The two words of the seed, the low one first, `(2,)` of int64.
        constants: Those of `transform_constants`, in the dtype that is wanted.
        word: The last word of the counter: stream and kind.
        steps: `(w,)` of int64.
        chains: Their ids, `(chains,)` of int64.
        n: Values of each chain, at least one.

    Returns:
        `(w, chains, n)`, in the dtype of the constants.
    """
    rows, dtype = len(steps) * len(chains), constants.dtype
    out = torch.empty((len(steps), len(chains), n), dtype=dtype, device=chains.device)
    grid = (-(-rows * -(-n // 4) // BLOCKS),)
    with torch.cuda.device(chains.device) if chains.is_cuda else nullcontext():
        _fill[grid](
            out,
            key,
            steps.contiguous(),
            chains.contiguous(),
            constants,
            word,
            rows,
            len(chains),
            n,
            KIND=kind,
            DOUBLE=dtype == torch.float64,
            SIZE=BLOCKS,
        )
    return out


@cache
def transform_constants(dtype: torch.dtype, device: torch.device) -> Tensor:
    """`pi 2^-31` and the largest number below one, as a tensor.

    A number in the text of a kernel would be rounded to float32.

    Args:
        dtype: torch.float32 or torch.float64.
        device: Where the kernel runs.

    Returns:
        `(2,)`, in that dtype on that device.
    """
    numbers = [math.pi * 2.0**-31, 1.0 - torch.finfo(dtype).eps / 2]
    return torch.tensor(numbers, dtype=dtype, device=device)
