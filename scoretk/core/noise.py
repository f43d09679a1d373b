"""Counter-based noise: a pure function of seed, chain, step, stream and element.

The generator is Philox4x32-10: a keyed bijection of 128-bit counters, here four words `w_0..w_3` of
32 bits each,

    (w_0, w_1, w_2, w_3) = Philox(counter, key)

where the key is the 64-bit seed, its low 32 bits first, and the four words of the counter hold

    word 0   block b = e // 4 of element e of a chain's event, in row-major order     32 bits
    word 1   chain, its global id                                                     32 bits
    word 2   step                                                                     32 bits
    word 3   stream (bits 0-23), kind of value (bits 24-30), half of the value (bit 31)

so chain 17 has the same noise alone, in a batch, in chunks, on several machines and after a resume.
What does not fit these widths is refused. Kinds (normal, uniform, Rademacher) have words of their
own even in the same stream.

Element e is made from word `w_{e % 4}` of its block. A float64 value has 64 bits: that word, and
below it the same word of the counter with bit 31 of its last word set. So a float64 value is the
float32 value with more digits, and agrees with it to the resolution of 32 bits. With `W` the 32 or
64 bits read as a fraction in (0, 1), half a unit added:

    uniform     u = W, and the largest number below 1 where that rounds to 1;
                resolution 2^-32 (float64: 2^-64) near zero
    normal      (z_0, z_1) = sqrt(-2 log W_0) (cos, sin)(2 pi W_1), and z_2, z_3 likewise from
                W_2, W_3 (Box-Muller); the largest |z| is 6.8 in float32 and 9.5 in float64
    Rademacher  +1 where the word is below 2^31, else -1

On CUDA all of this is one kernel of Triton, where that is installed (`scoretk.core.noise_kernel`);
on a CPU the words are NumPy's; elsewhere, and in what `torch.compile` fuses, all are torch's own
operations.

Integers and uniforms have the same bits everywhere. Normals agree between devices, and between
eager and compiled, to rounding; on one CPU they have the same bits whatever the batch.

References:
    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
    Box, Muller, "A note on the generation of random normal deviates" (1958).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoretk.core.arguments import device as as_device
from scoretk.core.arguments import float_dtype, integer
from scoretk.core.devices import has_float64
from scoretk.core.streams import Stream
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument

__all__ = ["DerivedNoise", "Noise", "Stream", "derive", "philox4x32"]

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

STREAMS = 2**24
LOW_HALF = 1 << 31

# Blocks worked on at once. On a CPU torch does not split operations of this size among threads, whose
# synchronisation would cost more than they gain; of half the size, whose six buffers of 64-bit
# integers stay in a core's second-level cache, calls cost more than that gains.
CHUNK = 2**15
CHUNK_ACCELERATOR = 2**22
# Values made ahead of need: few at first, where most of the cost is that of the call, then more.
WINDOW_FIRST = 2**12
WINDOW_MOST = 2**18  # in a CPU's cache
# On a device each window starts a hundred kernels, or one, whatever its size.
WINDOW_FIRST_ACCELERATOR = 2**18
WINDOW_MOST_ACCELERATOR = 2**24
WINDOWS_KEPT = 16

_MULTIPLIERS = np.array(MULTIPLIERS, np.uint64).reshape(2, 1, 1, 1, 1)
_MASK, _HALF = np.uint64(MASK), np.uint64(32)


class _Kind:
    """Which transform the words of a block go through: bits 24 to 30 of the counter's last word.

    Plain integers, as they are parts of keys that are looked up at every step, compiled or not.
    """

    NORMAL, UNIFORM, RADEMACHER = range(3)
    SEED = 127


def philox4x32(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, ...]:
    """Philox4x32: four words from a counter of four words and a key of two.

    One round is, with `M_0 c_0 = 2^32 h_0 + l_0` and `M_1 c_2 = 2^32 h_1 + l_1`,

        (c_0, c_1, c_2, c_3) <- (h_1 ^ c_1 ^ k_0, l_1, h_0 ^ c_3 ^ k_1, l_0)
                  (k_0, k_1) <- (k_0 + A_0, k_1 + A_1).

    References:
        Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Args:
        counter: Four words in [0, 2^32), each a Python integer or an int64 tensor; tensors
            broadcast.
        key: Two words, likewise.

    Returns:
        Four words in [0, 2^32), of the broadcast shape.
    """
    c, k = tuple(counter), tuple(key)
    for _ in range(ROUNDS):
        c, k = _round(c, k), _bump(k)
    return c


def _round(c: Sequence[Any], k: Sequence[Any]) -> tuple[Any, ...]:
    # M c overflows a signed 64-bit integer, which allows a compiler to drop masks; (M - 2^32) c
    # does not.
    q0, q1 = c[0] * (MULTIPLIERS[0] - 2**32), c[2] * (MULTIPLIERS[1] - 2**32)
    high0, high1 = (q0 >> 32) + c[0], (q1 >> 32) + c[2]
    return high1 ^ c[1] ^ k[0], q1 & MASK, high0 ^ c[3] ^ k[1], q0 & MASK


def _bump(k: Sequence[Any]) -> tuple[Any, Any]:
    return (k[0] + WEYL[0]) & MASK, (k[1] + WEYL[1]) & MASK


def derive(seed: int, *indices: int) -> int:
    """A new 64-bit seed from a seed and indices, such as that of the n-th update of a training run.

    `derive(seed, i, j) == derive(derive(seed, i), j)`, and `derive(seed) == seed`. The words are of
    a kind of their own, so that a derived seed is never among the words that some `Noise` is made
    from.

    Args:
        seed: In [0, 2^64).
        indices: Each in [0, 2^64).

    Returns:
        An integer in [0, 2^64).

    Raises:
        InvalidArgument: One of them is no integer in this range.
    """
    seed = integer("seed", seed, below=2**64)
    for index in indices:
        index = integer("indices", index, below=2**64)
        low, high, *_ = philox4x32(
            (index & MASK, index >> 32, 0, _Kind.SEED << 24), (seed & MASK, seed >> 32)
        )
        seed = low | high << 32
    return seed


class _Window(NamedTuple):
    """The noise of the steps [start, stop), made at once.

    Attributes:
        start: The first step.
        stop: The step after the last.
        rows: The noise of each step, views of `values`.
        values: `(stop - start, chains, *shape)`.
        version: torch's count of writes to `values` when they were made: it has changed where
            somebody wrote into them.
    """

    start: int
    stop: int
    rows: tuple[Tensor, ...]
    values: Tensor
    version: int


class Noise:
    """Counter-based noise bound to a seed and to global chain ids.

    The value of element e of chain c at step s in stream k is a pure function of (seed, c, s, k,
    e): see the module's docstring for the layout. Nothing is drawn from torch's global generator,
    and no call changes what another returns.

    On a CPU, and wherever the step is a Python integer, the noise of many steps is made at once and
    served from there (a tensor returned is a view: clone it before you write into it). Where the
    step is a tensor on an accelerator, or under `torch.compile`, the step enters the arithmetic as
    a tensor: no synchronisation, no recompilation as it changes, and the caller answers for its
    range.

    Args:
        seed: In [0, 2^64).
        chains: A number of chains n (their ids are 0..n-1), a range, or an integer tensor `(n,)` of
            ids, all in [0, 2^32).
        device: Where the noise is made; None for that of `chains` where it is a tensor, else the
            CPU.
        dtype: torch.float32 or torch.float64, where a call asks for no other. A device without
            float64 makes float32 of either: the same values with fewer digits.
        window: Steps made at once; None chooses by size. It affects the speed only.

    Raises:
        InvalidArgument: One of these is out of its range.
    """

    def __init__(
        self,
        seed: int,
        chains: int | Tensor | range,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        window: int | None = None,
    ) -> None:
        self.seed = integer("seed", seed, below=2**64)
        self.chains = _chain_ids(chains, None if device is None else as_device("device", device))
        self.dtype = float_dtype("dtype", dtype, "Convert the noise afterwards")
        self.window = None if window is None else integer("window", window, 1, 2**32)
        self._bind()

    def _bind(self) -> None:
        self._key = (self.seed & MASK, self.seed >> 32)
        # A compiled function reads the key from a tensor: one compilation serves every seed.
        self._key_tensor = torch.tensor(self._key, dtype=torch.int64, device=self.chains.device)
        self._zero = torch.zeros((), dtype=torch.int64, device=self.chains.device)
        self._windows: dict[Any, _Window] = {}

    def __repr__(self) -> str:
        return (
            f"Noise(seed={self.seed}, {len(self.chains)} chains, {self.chains.device}, "
            f"{self.dtype})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seed", "chains", "dtype", "window")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    def forget(self) -> None:
        """Give the memory of noise made ahead of need back; what is asked for later is made again."""
        self._windows.clear()

    def select(self, rows: slice) -> Noise:
        """The noise of some of the chains.

        Args:
            rows: Their positions: a slice, a mask or an index tensor.

        Returns:
            The same noise for those chains alone.
        """
        part = object.__new__(Noise)
        part.__setstate__({**self.__getstate__(), "chains": self.chains[rows]})
        return part

    def normal(
        self,
        step: int | Tensor,
        stream: int,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Standard normals.

        Args:
            step: In [0, 2^32), an integer or an int64 tensor of shape ().
            stream: In [0, 2^24), see `Stream`.
            shape: The shape of one chain's values.
            dtype: torch.float32 or torch.float64; None for that of the noise.

        Returns:
            `(chains, *shape)`.
        """
        return self._draw(_Kind.NORMAL, step, stream, shape, dtype)

    def uniform(
        self,
        step: int | Tensor,
        stream: int,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Uniforms in the open interval (0, 1); arguments and result as in `normal`."""
        return self._draw(_Kind.UNIFORM, step, stream, shape, dtype)

    def rademacher(
        self,
        step: int | Tensor,
        stream: int,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Signs, +1 or -1 with equal probability; arguments and result as in `normal`."""
        return self._draw(_Kind.RADEMACHER, step, stream, shape, dtype)

    def ahead(
        self,
        method: str,
        steps: Tensor,
        stream: int,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The noise of several steps as one expression, which a compiler can fuse.

        Args:
            method: "normal", "uniform" or "rademacher".
            steps: `(w,)` of int64.
            stream: As in `normal`.
            shape: As in `normal`.
            dtype: As in `normal`.

        Returns:
            `(w, chains, *shape)`.
        """
        return self._inline(
            getattr(_Kind, method.upper()), steps[:, None, None], stream, shape, dtype
        )

    def at_once(
        self,
        method: str,
        steps: range,
        stream: int,
        shape: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The noise of several steps, made at once and not kept.

        Args:
            method: "normal", "uniform" or "rademacher".
            steps: Their indices.
            stream: As in `normal`.
            shape: As in `normal`.
            dtype: As in `normal`.

        Returns:
            `(len(steps), chains, *shape)`, with the bits of one step after another.
        """
        kind, shape = getattr(_Kind, method.upper()), _shape(shape)
        return self._made(kind, steps, _stream_word(kind, stream), shape, self._dtype(dtype))

    def _made(
        self, kind: int, steps: range, word: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """As `at_once`, from what the counter's last word holds."""
        n, chains = math.prod(shape), self.chains
        # Not in inference mode, so that autograd can use the values later.
        with torch.inference_mode(False), torch.no_grad():
            if has_kernel(chains.device):
                at = torch.arange(steps.start, steps.stop, device=chains.device)
                values = _by_kernel(kind, self._key_tensor, word, at, chains, n, dtype)
            else:
                values = _generate(kind, self._key, word, steps, chains, n, dtype)
        return values.reshape(len(steps), len(chains), *shape)

    def _draw(
        self,
        kind: int,
        step: int | Tensor,
        stream: int,
        shape: Sequence[int],
        dtype: torch.dtype | None,
    ) -> Tensor:
        if torch.compiler.is_compiling():
            if isinstance(step, Tensor):
                _step_tensor(step)
            return self._inline(kind, step, stream, shape, dtype)
        if isinstance(step, Tensor):
            _step_tensor(step)
            if step.device.type != "cpu":
                return self._inline(kind, step, stream, shape, dtype)
            step = int(step)
        elif type(step) is not int:
            step = integer("step", step, below=2**32)
        shape = shape if type(shape) is tuple else _shape(shape)
        asked = (kind, stream, shape, dtype)
        found = self._windows.get(asked)
        if (
            found is not None
            and found.start <= step < found.stop
            and found.values._version == found.version
        ):
            return found.rows[step - found.start]
        return self._ahead(asked, step)

    def _dtype(self, asked: torch.dtype | None) -> torch.dtype:
        """The dtype of the values when this is asked for: float32 on a device without float64."""
        dtype = float_dtype(
            "dtype", self.dtype if asked is None else asked, "Convert the noise afterwards"
        )
        narrow = dtype == torch.float64 and not has_float64(self.chains.device.type)
        return torch.float32 if narrow else dtype

    def _inline(
        self,
        kind: int,
        step: int | Tensor,
        stream: int,
        shape: Sequence[int],
        dtype: torch.dtype | None,
    ) -> Tensor:
        """The noise as one expression without state or synchronisation, which a compiler can fuse.

        Steps of shape `(w, 1, 1)` give the noise of w steps.
        """
        step = self._zero + step  # (), or (w, 1, 1) for the noise of w steps
        rows = (*step.shape[:1], len(self.chains))
        word, shape = _stream_word(kind, stream), _shape(shape)
        n, dtype = (math.prod(shape), self._dtype(dtype))
        if not n or not len(self.chains):
            return self.chains.new_zeros((*rows, *shape), dtype=dtype)
        if not torch.compiler.is_compiling() and has_kernel(self.chains.device):
            made = _by_kernel(kind, self._key_tensor, word, step.flatten(), self.chains, n, dtype)
            return made.reshape(*rows, *shape)
        # Without the xor the compiler folds the products of an arange into its index arithmetic,
        # which has too few bits.
        block = torch.arange(-(-n // 4), device=self.chains.device) ^ self._zero
        key = self._key_tensor.unbind()
        halves = [
            philox4x32((block, self.chains[:, None], step, half), key)
            for half in _halves(word, dtype)
        ]
        values = [
            value
            for pair in range(0, min(n, 4), 2)
            for value in TRANSFORMS[kind](halves, pair, dtype)
        ]
        return torch.stack(values[:n], -1).reshape(*rows, -1)[..., :n].reshape(*rows, *shape)

    def _ahead(
        self, asked: tuple[int, int, tuple[int, ...], torch.dtype | None], step: int
    ) -> Tensor:
        """Make and keep the window in which this step lies; the noise of the step."""
        kind, stream, shape, dtype = asked
        step = integer("step", step, below=2**32)
        word, shape = _stream_word(kind, stream), _shape(shape)
        n, dtype = (math.prod(shape), self._dtype(dtype))
        on_cpu = self.chains.device.type == "cpu"
        if on_cpu:
            limits = (WINDOW_FIRST, WINDOW_MOST)
        else:
            limits = (WINDOW_FIRST_ACCELERATOR, WINDOW_MOST_ACCELERATOR)
        start, stop = _span(step, 4 * -(-n // 4) * len(self.chains), self.window, limits)
        values = self._made(kind, range(start, stop), word, shape, dtype)
        with torch.inference_mode(False), torch.no_grad():
            rows = values.unbind() if stop - start > 1 else (values[0],)
        self._windows.pop(asked, None)
        if len(self._windows) >= WINDOWS_KEPT:
            self._windows.pop(next(iter(self._windows)))
        if stop - start > 1:
            self._windows[asked] = _Window(start, stop, rows, values, values._version)
        return rows[step - start]


class DerivedNoise:
    """A source of noise made from another one: its three methods call `_ask`."""

    def _ask(
        self, method: str, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None
    ) -> Tensor:
        """What the method of this name answers."""
        raise NotImplementedError

    def normal(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.normal`."""
        return self._ask("normal", step, stream, shape, dtype)

    def uniform(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.uniform`."""
        return self._ask("uniform", step, stream, shape, dtype)

    def rademacher(
        self, step: Any, stream: int, shape: Sequence[int], dtype: torch.dtype | None = None
    ) -> Tensor:
        """As `Noise.rademacher`."""
        return self._ask("rademacher", step, stream, shape, dtype)


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the noise of a device is made by one kernel (`scoretk.core.noise_kernel`).

    Warns where Triton is there and makes none for the device: torch's own operations then serve.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    none = torch.zeros(2, dtype=torch.int64, device=device)
    try:
        _by_kernel(_Kind.NORMAL, none, 0, none, none, 1, torch.float32)
    except Exception as error:  # noqa: BLE001 (whatever a compiler raises that is not whole)
        warn(
            f"noise on {device} takes a hundred launches where one would do: Triton makes no kernel "
            f"there ({type(error).__name__}: {error})"
        )
        return False
    return True


def _by_kernel(
    kind: int, key: Tensor, word: int, steps: Tensor, chains: Tensor, n: int, dtype: torch.dtype
) -> Tensor:
    """As `_generate`, with a key and steps that are tensors."""
    from scoretk.core.noise_kernel import fused_noise, transform_constants

    constants = transform_constants(dtype, chains.device)
    values: Tensor = fused_noise(kind, key, constants, word, steps, chains, n)
    return values


def _span(
    step: int,
    values: int,
    window: int | None,
    limits: tuple[int, int] = (WINDOW_FIRST, WINDOW_MOST),
) -> tuple[int, int]:
    """The window [start, stop) of a step.

    Windows are aligned to their length, and grow from the first of the limits, in values, to the
    second.
    """
    if window is not None:
        length = window
    elif not values:
        length = 1
    else:
        least, most = (1 << max(limit // values, 1).bit_length() - 1 for limit in limits)
        start = step - step % least
        length = min(most, max(least, start & -start))
    start = step - step % length
    return start, min(start + length, 2**32)


def _generate(
    kind: int,
    key: tuple[int, int],
    word: int,
    steps: range,
    chains: Tensor,
    n: int,
    dtype: torch.dtype,
) -> Tensor:
    """The first n values of every step and chain, made in chunks that fit a cache.

    Returns:
        `(len(steps), len(chains), n)`.
    """
    blocks, width = -(-n // 4), min(n, 4)
    sizes = (len(steps), len(chains), blocks)
    out = torch.empty((*sizes, width), dtype=dtype, device=chains.device)
    if not out.numel():
        return out.reshape(len(steps), len(chains), n)
    parts = _chunks(sizes, chains.device)
    halves = _halves(word, dtype)
    make = _words_on_cpu if chains.device.type == "cpu" else _words
    at_once = torch.arange(steps.start, steps.stop, device=chains.device)[:, None, None]
    for at, chain, block in itertools.product(*parts):
        of_block = torch.arange(block.start, block.stop, device=chains.device)
        words = make((of_block, chains[chain, None], at_once[at]), halves, key)
        here = out[at, chain, block]
        for pair in range(0, width, 2):
            for e, value in enumerate(TRANSFORMS[kind](words, pair, dtype), pair):
                if e < width:
                    here[..., e] = value
    out = out.reshape(len(steps), len(chains), -1)
    return out if out.shape[-1] == n else out[..., :n].contiguous()


def _chunks(sizes: tuple[int, int, int], device: torch.device) -> list[list[slice]]:
    """Slices of each of the axes (steps, chains, blocks), whose product makes even chunks."""
    room = CHUNK if device.type == "cpu" else CHUNK_ACCELERATOR
    parts: list[list[slice]] = []
    extent = 1
    for size in reversed(sizes):
        pieces = -(-size // max(room // extent, 1))
        length = -(-size // pieces)
        parts.insert(0, [slice(i, min(i + length, size)) for i in range(0, size, length)])
        extent *= length
    return parts


def _words(
    counter: tuple[Tensor, Tensor, Tensor], halves: Sequence[int], key: tuple[int, int]
) -> list[tuple[Tensor, ...]]:
    """The four words of each half of the values.

    Args:
        counter: Block `(blocks,)`, chain `(chains, 1)` and step `(steps, 1, 1)`.
        halves: The last word of the counter, for each half.
        key: The two words of the key.

    Returns:
        For each half four tensors `(steps, chains, blocks)` of int64.
    """
    return [philox4x32((*counter, half), key) for half in halves]


def _words_on_cpu(
    counter: tuple[Tensor, Tensor, Tensor], halves: Sequence[int], key: tuple[int, int]
) -> list[tuple[Tensor, ...]]:
    """`_words` in five operations a round, in place, for all halves at once.

    The counter is held as two pairs, `a = (c_0, c_2)` and `b = (c_1, c_3)`. With `M a = 2^32 h + l`,
    and `~` for a pair the other way round, which is a view, a round is

        (a, b) <- (~h ^ b ^ k, ~l).

    NumPy starts an operation in less time than torch does, and has 64 bits without a sign.
    """
    block, chain, step = (word.numpy() for word in counter)
    shape = (2, len(halves), len(step), len(chain), len(block))
    a, b, high = (np.empty(shape, np.uint64) for _ in range(3))
    a[0], a[1], b[0], b[1] = block, step, chain, np.reshape(halves, (-1, 1, 1, 1))
    for k in _pairs(key):
        a *= _MULTIPLIERS
        np.right_shift(a, _HALF, out=high)
        a &= _MASK
        b ^= high[::-1]
        b ^= k
        a, b = b, a[::-1]
    return [
        tuple(torch.from_numpy(word[half].view(np.int64)) for word in (a[0], b[0], a[1], b[1]))
        for half in range(len(halves))
    ]


def _pairs(key: tuple[int, int]) -> NDArray[np.uint64]:
    """The keys of all rounds, `(ROUNDS, 2, 1, 1, 1, 1)`."""
    keys = [key]
    for _ in range(ROUNDS - 1):
        keys.append(_bump(keys[-1]))
    return np.array(keys, np.uint64).reshape(ROUNDS, 2, 1, 1, 1, 1)


def _halves(word: int, dtype: torch.dtype) -> tuple[int, ...]:
    return (word, word | LOW_HALF) if dtype == torch.float64 else (word,)


def _fraction(halves: Sequence[Sequence[Tensor]], word: int, dtype: torch.dtype) -> Tensor:
    """`W` of the module's docstring, in [2^-33, 1] (float64: [2^-65, 1])."""
    if dtype == torch.float32:
        return halves[0][word].to(dtype).mul_(2.0**-32).add_(2.0**-33)
    low = halves[1][word].to(dtype).mul_(2.0**-64).add_(2.0**-65)
    if torch.compiler.is_compiling():  # which multiplies an integer by `alpha` in float32 on CUDA
        return low.add_(halves[0][word].to(dtype).mul_(2.0**-32))
    return low.add_(halves[0][word], alpha=2.0**-32)


def _angle(halves: Sequence[Sequence[Tensor]], word: int, dtype: torch.dtype) -> Tensor:
    """`2 pi W` in [-pi, pi).

    A signed number is nearer zero, where floating point is finer, and cheaper to convert.
    """
    angle = halves[0][word].to(torch.int32).to(dtype)
    if dtype == torch.float64:
        angle += halves[1][word].to(dtype).mul_(2.0**-32)
    return angle.mul_(math.pi * 2.0**-31)


def _normals(
    halves: Sequence[Sequence[Tensor]], word: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    radius = _fraction(halves, word, dtype).log_().mul_(-2.0).sqrt_()
    angle = _angle(halves, word + 1, dtype)
    return torch.cos(angle).mul_(radius), angle.sin_().mul_(radius)


def _uniforms(
    halves: Sequence[Sequence[Tensor]], word: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    below_one = 1.0 - torch.finfo(dtype).eps / 2
    return _fraction(halves, word, dtype).clamp_(max=below_one), _fraction(
        halves, word + 1, dtype
    ).clamp_(max=below_one)


def _signs(
    halves: Sequence[Sequence[Tensor]], word: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return 1 - 2 * (halves[0][word] >> 31).to(dtype), 1 - 2 * (halves[0][word + 1] >> 31).to(dtype)


TRANSFORMS = (_normals, _uniforms, _signs)
"""By kind."""


def _stream_word(kind: int, stream: int) -> int:
    return integer("stream", stream, below=STREAMS) | kind << 24


def _step_tensor(step: Tensor) -> None:
    if step.ndim or step.dtype != torch.int64:
        raise InvalidArgument("step", step, "an integer or an int64 tensor of shape ()")


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or any(
        isinstance(s, bool) or not isinstance(s, Integral) or s < 0 for s in shape
    ):
        raise InvalidArgument("shape", shape, "a tuple of integers of at least 0")
    if math.prod(shape) > 2**34:
        raise InvalidArgument("shape", shape, "at most 2**34 elements a chain")
    return tuple(shape)


def _chain_ids(chains: int | Tensor | range, device: torch.device | str | None) -> Tensor:
    if isinstance(chains, Tensor) and chains.ndim:
        if (
            chains.ndim != 1
            or chains.is_floating_point()
            or chains.is_complex()
            or chains.dtype == torch.bool
        ):
            raise InvalidArgument("chains", chains, "an integer tensor of shape (chains,)")
        ids = chains.to(device=device, dtype=torch.int64)
        low, high = ids.aminmax() if len(ids) else (0, 0)
        low, high = int(low), int(high)
    else:
        if not isinstance(chains, range):
            chains = range(integer("chains", chains, below=2**32 + 1))
        low, high = (min(chains[0], chains[-1]), max(chains[0], chains[-1])) if chains else (0, 0)
    if low < 0 or high >= 2**32:
        raise InvalidArgument(
            "chains", chains, "chain ids in [0, 2**32)", f"They reach from {low} to {high}"
        )
    if isinstance(chains, range):
        ids = torch.arange(chains.start, chains.stop, chains.step, dtype=torch.int64, device=device)
    return ids
