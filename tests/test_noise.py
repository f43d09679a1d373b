"""The noise: the published vectors, the layout, what a value may not depend on, and the distributions.

Every statistical test is at a false-alarm rate of `ALARM`, divided by its number of comparisons, on fixed seeds; next to
each stands a wrong version that it must catch.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import cache

import pytest
import torch
from scipy import stats
from torch import Tensor

from scoretk.core import noise as module
from scoretk.core.noise import Noise, Stream, derive, philox4x32
from scoretk.errors import InvalidArgument
from tests.marks import slow_but, slow_rows_but

ALARM = 1e-6
FLOATS = (torch.float32, torch.float64)
KINDS = ("normal", "uniform", "rademacher")
LARGE = 2**64 - 5
# torch's compiler imports parts of torch that torch has deprecated.
COMPILES = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

# Random123, file kat_vectors: counter, key, result.
VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


# The generator


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_philox_gives_the_published_vectors(
    counter: list[int], key: list[int], words: list[int], device
) -> None:
    assert list(philox4x32(counter, key)) == words
    tensors = philox4x32(
        torch.tensor(counter, device=device).unbind(), torch.tensor(key, device=device).unbind()
    )
    assert [int(word) for word in tensors] == words


def random_words(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**32, shape, generator=generator)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 37), (1, 41, 1), (5, 7, 1), (3, 5, 7), (1, 9, 11)]
)
@pytest.mark.parametrize("halves", [(0xFFFFFFFF,), (0x07000001, 0x87000001)])
def test_the_fast_path_has_the_bits_of_the_plain_one(
    shape: tuple[int, int, int], halves: tuple[int, ...]
) -> None:
    steps, chains, blocks = shape
    counter = (
        random_words(blocks, seed=2),
        random_words(chains, 1, seed=3),
        random_words(steps, 1, 1, seed=1),
    )
    key = (0xFFFFFFFB, 0x9E3779B9)
    fast = module._words_on_cpu(counter, halves, key)
    plain = module._words(counter, halves, key)
    for ours, theirs in zip(fast, plain, strict=True):
        assert all(map(torch.equal, ours, (word.expand(shape) for word in theirs)))


def reference(kind: str, seed: int, chain: int, step: int, stream: int, e: int, bits: int) -> float:
    """One value in Python integers and floats, from the layout that the module's docstring states."""
    last = stream | KINDS.index(kind) << 24
    key = (seed % 2**32, seed >> 32)
    high = philox4x32((e // 4, chain, step, last), key)
    low = philox4x32((e // 4, chain, step, last | 1 << 31), key) if bits == 64 else (0,) * 4

    def fraction(word: int) -> float:
        if bits == 64:
            return high[word] * 2.0**-32 + (low[word] * 2.0**-64 + 2.0**-65)
        return float(torch.tensor(high[word]).to(torch.float32) * 2.0**-32 + 2.0**-33)

    if kind == "uniform":
        return min(fraction(e % 4), 1 - 2.0 ** (-53 if bits == 64 else -24))
    if kind == "rademacher":
        return 1.0 if high[e % 4] < 2**31 else -1.0
    first = e % 4 // 2 * 2
    angle = 2 * math.pi * fraction(first + 1)
    return math.sqrt(-2 * math.log(fraction(first))) * (
        math.cos(angle) if e % 2 == 0 else math.sin(angle)
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1, 2**32, LARGE])
def test_every_value_is_where_the_layout_says(
    kind: str, dtype: torch.dtype, seed: int, device
) -> None:
    ids = torch.tensor([0, 1, 17, 2**31, 2**32 - 1])
    noise = Noise(seed, ids, device=device, dtype=dtype)
    bits = torch.finfo(dtype).bits
    for step, stream in [(0, 0), (3, 2**24 - 1), (2**32 - 1, 5)]:
        values = getattr(noise, kind)(step, stream, (2, 3)).cpu()
        assert values.dtype == dtype
        assert values.shape == (5, 2, 3)
        expected = torch.tensor(
            [[reference(kind, seed, int(c), step, stream, e, bits) for e in range(6)] for c in ids],
            dtype=dtype,
        )
        if kind == "normal":
            atol = 2e-6 if bits == 32 else 1e-14
            torch.testing.assert_close(values.reshape(5, 6), expected, rtol=0, atol=atol)
        else:
            assert torch.equal(values.reshape(5, 6), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_is_float32_with_more_digits(kind: str, device) -> None:
    draw = getattr(Noise(5, 100, device=device), kind)
    single, double = (draw(2, 1, (50,), dtype).cpu().double() for dtype in FLOATS)
    torch.testing.assert_close(single, double, rtol=0, atol=2e-6)
    if kind != "rademacher":
        assert not torch.equal(single, double)


# What a value does not depend on


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_chain_does_not_depend_on_its_batch(kind: str, dtype: torch.dtype, device) -> None:
    noise = Noise(LARGE, 100, device=device)
    whole = getattr(noise, kind)(7, 1, (5,), dtype)
    ids = torch.tensor([99, 3, 17, 17])
    for part, rows in [
        (noise.select(slice(17, 18)), slice(17, 18)),
        (noise.select(slice(40, None)).select(slice(2, 9, 3)), slice(42, 49, 3)),
        (Noise(LARGE, range(10, 90, 7), device=device), slice(10, 90, 7)),
        (Noise(LARGE, ids, device=device), ids),
        (Noise(LARGE, ids.int().to(device)), ids),
    ]:
        assert torch.equal(part.chains, torch.arange(100, device=device)[rows])
        assert torch.equal(getattr(part, kind)(7, 1, (5,), dtype), whole[rows])


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_element_does_not_depend_on_the_size_of_the_event(
    kind: str, dtype: torch.dtype, device
) -> None:
    draw = getattr(Noise(3, 3, device=device), kind)
    whole = draw(7, 1, (150,), dtype)
    for n in range(75):
        assert torch.equal(draw(7, 1, (n,), dtype), whole[:, :n])
    assert torch.equal(draw(7, 1, (), dtype), whole[:, 0])
    assert torch.equal(draw(7, 1, (2, 5, 15), dtype).flatten(1), whole)


@pytest.mark.parametrize("shape", [(), (2,), (3, 5)])
def test_a_step_does_not_depend_on_the_window(kind: str, shape: tuple[int, ...], device) -> None:
    single = Noise(11, 10, device=device, window=1)
    others = [Noise(11, 10, device=device, window=w) for w in (None, 2, 7, 64)]
    steps = [*range(100), 4096, 4095, 5000, 17, 2**20, 2**32 - 1, 2**32 - 2, 0]
    for step in steps:
        expected = getattr(single, kind)(step, 3, shape)
        for noise in others:
            assert torch.equal(getattr(noise, kind)(step, 3, shape), expected)
            assert torch.equal(getattr(noise, kind)(torch.tensor(step), 3, shape), expected)


@pytest.mark.parametrize(
    ("chunk", "n"), [(1, 2), (1, 10), (3, 2), (3, 10), (64, 10), (64, 301), (2**20, 301)]
)
def test_a_value_does_not_depend_on_the_chunks(
    kind: str, chunk: int, n: int, device, monkeypatch
) -> None:
    def values() -> Tensor:
        noise = Noise(11, 13, device=device, window=4)
        return torch.stack([getattr(noise, kind)(step, 3, (n,)) for step in range(4)])

    expected = values()
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "CHUNK_ACCELERATOR", chunk)
    assert torch.equal(values(), expected)


def test_a_value_does_not_depend_on_the_number_of_threads(kind: str) -> None:
    threads = torch.get_num_threads()
    try:
        values = []
        for count in (1, 2):
            torch.set_num_threads(count)
            values.append(getattr(Noise(1, 1001), kind)(5, 2, (301,)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(values[0], values[1])


def test_a_step_on_the_device_gives_the_same(kind: str, device) -> None:
    noise = Noise(LARGE, 20, device=device)
    for step in (0, 5, 2**32 - 1):
        inline = noise._inline(
            getattr(module._Kind, kind.upper()), torch.tensor(step, device=device), 1, (7,), None
        )
        torch.testing.assert_close(inline, getattr(noise, kind)(step, 1, (7,)), rtol=0, atol=2e-6)


@pytest.mark.compiled
@COMPILES
@pytest.mark.parametrize("shape", [(2,), (13,)])
def test_compiled_noise_is_the_same_and_serves_every_step_and_seed(
    shape: tuple[int, ...], device
) -> None:
    ids = torch.arange(40, device=device) * 110_000_000 + 1

    def draws(noise: Noise, step: int | Tensor) -> list[Tensor]:
        return [
            getattr(noise, kind)(step, Stream.PROBE, shape, dtype)
            for kind in KINDS
            for dtype in FLOATS
        ]

    torch._dynamo.reset()
    compiled = torch.compile(draws, fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, LARGE):
            noise = Noise(seed, ids)
            for step in (0, 1, 77, 2**31, 2**32 - 1):
                got, expected = (
                    compiled(noise, torch.tensor(step, device=device)),
                    draws(noise, step),
                )
                for ours, plain in zip(got, expected, strict=True):
                    atol = 2e-6 if plain.dtype == torch.float32 else 1e-13
                    torch.testing.assert_close(ours, plain, rtol=0, atol=atol)
                    assert ours.dtype == plain.dtype
                for ours, plain in zip(got[2:], expected[2:], strict=True):
                    assert torch.equal(ours, plain)


@pytest.mark.compiled
@COMPILES
@pytest.mark.parametrize("dtype", FLOATS)
def test_compiled_normals_are_numbers_where_a_fraction_is_nearly_1(dtype, device) -> None:
    """It is 1 less 2e-8 for chain 81; one beyond 1 has a logarithm without a root."""
    noise = Noise(1, 256, device=device)
    step = torch.tensor(2451, device=device)
    plain = noise.normal(step, Stream.PROPOSAL, (100,), dtype)
    assert float(plain[81, 16:18].norm()) < 3e-4
    torch._dynamo.reset()
    made = torch.compile(lambda k: noise.normal(k, Stream.PROPOSAL, (100,), dtype))(step)
    atol = 2e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(made, plain, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_no_whole_number_is_multiplied_in_a_precision_that_the_compiler_chooses(kind) -> None:
    """In what is compiled no `alpha` multiplies one tensor of two of other dtypes.

    On CUDA an integer times `alpha` is one of float32, whatever it is added to.
    """
    asked: list[torch.fx.Node] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        asked.extend(graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    noise = Noise(1, 4)
    torch.compile(
        lambda step: getattr(noise, kind)(step, Stream.PROBE, (3,), torch.float64), backend=backend
    )(torch.tensor(5))
    assert asked
    assert not [node for node in asked if "alpha" in node.kwargs]


@pytest.mark.compiled
@COMPILES
def test_compiled_noise_takes_the_step_as_a_python_integer(device) -> None:
    noise = Noise(LARGE, 40, device=device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda step: noise.normal(step, 1, (13,)), fullgraph=True)
    for step in (0, 1, 2, 3, 2**32 - 1):
        torch.testing.assert_close(compiled(step), noise.normal(step, 1, (13,)), rtol=0, atol=2e-6)


def test_torch_s_generator_is_neither_read_nor_written(kind: str, device) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = getattr(Noise(1, 5, device=device), kind)(0, 0, (3,))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(getattr(Noise(1, 5, device=device), kind)(0, 0, (3,)), first)


def test_writing_into_a_result_changes_no_later_one(device) -> None:
    noise, fresh = (Noise(1, 5, device=device) for _ in range(2))
    for step in (3, 3, 4, 3):
        values = noise.normal(step, 0, (2,))
        assert torch.equal(values, fresh.normal(step, 0, (2,)))
        values.mul_(10.0)
        fresh = Noise(1, 5, device=device)


def test_noise_made_in_inference_mode_serves_autograd_later(device) -> None:
    noise = Noise(1, 5, device=device)
    with torch.inference_mode():
        noise.normal(0, 0, (2,))
    weight = torch.ones(2, device=device, requires_grad=True)
    z = noise.normal(1, 0, (2,))
    (z * weight).sum().backward()
    assert torch.equal(weight.grad, z.sum(0))
    assert not z.requires_grad


def test_the_store_of_windows_is_bounded(device) -> None:
    noise = Noise(1, 5, device=device)
    for n in range(100):
        noise.normal(0, 0, (n,))
    assert len(noise._windows) <= module.WINDOWS_KEPT


@pytest.mark.parametrize("values", [4, 40, 3000, 2**13, 2**17, 2**20])
def test_windows_are_aligned_and_grow(values: int) -> None:
    step, lengths = 0, []
    for _ in range(30):
        start, stop = module._span(step, values, None)
        assert start == step
        lengths.append(stop - start)
        step = stop
    assert lengths == sorted(lengths)
    assert lengths[-1] == 2 ** math.floor(math.log2(max(module.WINDOW_MOST // values, 1)))
    for step in (0, 1, 12345, 2**32 - 1):
        start, stop = module._span(step, values, None)
        assert start <= step < stop <= 2**32
        assert start % (stop - start) == 0


def test_empty_batches_and_events(kind: str, device) -> None:
    for dtype in FLOATS:
        empty = getattr(Noise(0, 0, device=device), kind)(0, 0, (3,), dtype)
        assert (empty.shape, empty.dtype) == ((0, 3), dtype)
        assert getattr(Noise(0, 4, device=device), kind)(0, 0, (2, 0), dtype).shape == (4, 2, 0)


def test_noise_can_be_pickled(device) -> None:
    noise = Noise(LARGE, range(3, 9), device=device, dtype=torch.float64)
    noise.normal(0, 0, (2,))
    again = pickle.loads(pickle.dumps(noise))
    assert torch.equal(again.normal(4, 1, (2,)), noise.normal(4, 1, (2,)))
    assert repr(again) == repr(noise)
    assert "6 chains" in repr(noise)


# Derived seeds


def test_derived_seeds() -> None:
    assert derive(LARGE) == LARGE
    assert derive(7, 1, 2) == derive(derive(7, 1), 2)
    low, high, *_ = philox4x32((5, 9, 0, 127 << 24), (LARGE % 2**32, LARGE >> 32))
    assert derive(LARGE, 5 + (9 << 32)) == low + (high << 32)
    seeds = {derive(s, i) for s in range(20) for i in range(500)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**64 for seed in seeds)
    bits = torch.tensor([[seed >> b & 1 for b in range(64)] for seed in seeds]).double()
    z = (bits.mean(0) - 0.5) * 2 * math.sqrt(len(seeds))
    assert float(z.abs().max()) < threshold(64)


# Refusals


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True])
def test_a_wrong_seed_is_refused(seed: object) -> None:
    with pytest.raises(InvalidArgument, match="seed"):
        Noise(seed, 3)
    with pytest.raises(InvalidArgument, match="seed"):
        derive(seed, 3)


@pytest.mark.parametrize("index", [-1, 2**64, 1.0, None])
def test_a_wrong_index_is_refused(index: object) -> None:
    with pytest.raises(InvalidArgument, match="indices"):
        derive(0, 1, index)


@pytest.mark.parametrize(
    "chains",
    [
        -1,
        2**32 + 1,
        2.0,
        True,
        None,
        range(-1, 3),
        range(3, -5, -1),
        range(2**32 - 1, 2**32 + 1),
        torch.tensor([0, -1]),
        torch.tensor([2**32]),
        torch.tensor([0.0]),
        torch.tensor([True]),
        torch.tensor(3.0),
        torch.zeros(2, 2, dtype=torch.int64),
    ],
)
def test_wrong_chains_are_refused(chains: object) -> None:
    with pytest.raises(InvalidArgument, match="chains"):
        Noise(0, chains)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        *[
            ("step", {"step": s})
            for s in (-1, 2**32, 1.0, None, torch.tensor([1]), torch.tensor(1.0), torch.tensor(-1))
        ],
        *[("stream", {"stream": s}) for s in (-1, 2**24, 0.5, None)],
        *[("shape", {"shape": s}) for s in ((-1,), (1.0,), (2**20, 2**20), 3, (True,))],
        *[
            ("dtype", {"dtype": d})
            for d in (torch.float16, torch.bfloat16, torch.int64, torch.complex64)
        ],
    ],
)
def test_wrong_calls_are_refused(
    kind: str, argument: str, change: dict[str, object], device
) -> None:
    draw = getattr(Noise(0, 3, device=device), kind)
    with pytest.raises(InvalidArgument, match=argument):
        draw(**{"step": 0, "stream": 0, "shape": (2,), **change})


def test_a_wrong_default_dtype_or_window_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="dtype"):
        Noise(0, 3, dtype=torch.float16)
    with pytest.raises(InvalidArgument, match="window"):
        Noise(0, 3, window=0)


# Distributions


def threshold(comparisons: int) -> float:
    """|z| that a standard normal passes with probability `ALARM` in so many comparisons."""
    return float(stats.norm.isf(ALARM / (2 * comparisons)))


def normal_faults(z: Tensor) -> list[str]:
    """What is wrong with a sample of standard normals: moments, tails, Kolmogorov-Smirnov."""
    z = z.flatten().double().cpu()
    n = len(z)
    scores = {
        "mean": (z.mean(), 1.0),
        "variance": ((z**2).mean() - 1, 2.0),
        "skewness": ((z**3).mean(), 15.0),
        "kurtosis": ((z**4).mean() - 3, 96.0),
    }
    tails = (1.0, 2.0, 3.0, 4.0, 4.5)
    limit = ALARM / (len(scores) + len(tails) + 1)
    p = {
        name: 2 * stats.norm.sf(abs(float(m)) * math.sqrt(n / variance))
        for name, (m, variance) in scores.items()
    }
    for t in tails:
        p[f"tail beyond {t}"] = stats.binomtest(
            int((z.abs() > t).sum()), n, 2 * stats.norm.sf(t)
        ).pvalue
    p["Kolmogorov-Smirnov"] = stats.kstest(z[: 2**19].numpy(), "norm", mode="asymp").pvalue
    return [name for name, value in p.items() if not value > limit]


def repeats(rows: Tensor) -> list[str]:
    """Pairs of rows (m, n) of independent values of mean 0 and variance 1 that are correlated, or whose squares are."""
    rows = rows.double().cpu()
    m, n = rows.shape
    limit = threshold(m * (m - 1)) / math.sqrt(n)
    found = []
    for name, x in (("values", rows), ("squares", rows**2 - (rows**2).mean())):
        x = x / x.std()
        found += [
            f"{name} {i}, {j}" for i, j in ((x @ x.T / n).triu(1).abs() > limit).nonzero().tolist()
        ]
    return found


# Which words of the counter vary in a sample of 2^21 values: chains, elements, steps.
ARRANGEMENTS = {
    "elements": (1, 2**21, 1),
    "chains": (2**19, 4, 1),
    "steps": (4, 4, 2**17),
    "all": (128, 128, 128),
}


# By default each arrangement in one dtype: both are made of the same words, which is a law of its own above.
OF_BOTH = slow_rows_but(
    [(name, dtype) for name in ARRANGEMENTS for dtype in FLOATS],
    *zip(ARRANGEMENTS, FLOATS * 2, strict=True),
)


@pytest.mark.parametrize(("arrangement", "dtype"), OF_BOTH)
def test_normals_are_normal(arrangement: str, dtype: torch.dtype, device) -> None:
    chains, elements, steps = ARRANGEMENTS[arrangement]
    noise = Noise(2024, chains, device=device, dtype=dtype, window=steps)
    z = torch.stack([noise.normal(step, Stream.PROPOSAL, (elements,)) for step in range(steps)])
    assert normal_faults(z) == []


WRONG_NORMALS: dict[str, Callable[[Tensor], Tensor]] = {
    "off by sqrt 2": lambda z: z * math.sqrt(2),
    "one per cent too wide": lambda z: z * 1.01,
    "shifted": lambda z: z + 0.01,
    "clipped at 4": lambda z: z.clamp(-4, 4),
    "sum of twelve uniforms": lambda z: torch.special.ndtr(z.reshape(12, -1).double()).sum(0) - 6,
    "never negative": lambda z: z.abs(),
}


@cache
def many_normals(device: torch.device) -> Tensor:
    return Noise(2024, 2**9, device=device).normal(0, 0, (2**10 * 12,))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", slow_but(WRONG_NORMALS, "one per cent too wide", "sum of twelve uniforms")
)
def test_wrong_normals_are_caught(name: str, device) -> None:
    assert normal_faults(WRONG_NORMALS[name](many_normals(device))) != []


def tail_mass(
    transform: Callable[..., tuple[Tensor, Tensor]], t: float, dtype: torch.dtype
) -> float:
    """P(|z| > t) of a Box-Muller transform, by summing over the words that reach so far instead of sampling.

    With radius r the mass is (2 / pi) arccos(t / r), and every radius word has probability 2^-32.
    """
    zeros = torch.zeros(2**17, dtype=torch.int64)
    words = torch.arange(2**17)
    if dtype == torch.float32:
        halves, weight = [[words, zeros]], 2.0**-32
    else:  # the high word is 0, the low word is sampled evenly
        halves, weight = [[zeros, zeros], [words << 15, zeros]], 2.0**-32 * 2.0**-17
    radius = transform(halves, 0, dtype)[0].double().abs()
    assert float(radius[-1]) < t  # all words that count are among them
    return float((2 / math.pi * torch.arccos((t / radius).clamp(max=1.0))).sum() * weight)


@pytest.mark.parametrize(("t", "within"), [(4.7, 1e-3), (5.0, 2e-3), (5.5, 1e-2), (6.0, 5e-2)])
def test_the_far_tail_is_right_in_float32(t: float, within: float) -> None:
    assert tail_mass(module._normals, t, torch.float32) == pytest.approx(
        2 * stats.norm.sf(t), rel=within
    )


@pytest.mark.parametrize("t", [6.8, 7.5, 8.0])
def test_the_far_tail_is_right_in_float64(t: float) -> None:
    assert tail_mass(module._normals, t, torch.float64) == pytest.approx(
        2 * stats.norm.sf(t), rel=1e-2
    )


def test_a_tail_of_24_bits_is_caught() -> None:
    def truncated(
        halves: list[list[Tensor]], word: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        u = ((halves[0][word] >> 8).to(dtype) + 0.5) * 2.0**-24
        angle = 2 * math.pi * halves[0][word + 1].to(dtype) * 2.0**-32
        radius = torch.sqrt(-2 * torch.log(u))
        return radius * torch.cos(angle), radius * torch.sin(angle)

    assert tail_mass(truncated, 5.5, torch.float32) != pytest.approx(
        2 * stats.norm.sf(5.5), rel=1e-2
    )
    assert tail_mass(truncated, 6.0, torch.float32) == 0.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_normals_are_finite(dtype: torch.dtype) -> None:
    zero, ones = torch.tensor([0]), torch.tensor([0xFFFFFFFF])
    for word in (zero, ones):
        for angle in (zero, ones):
            words = [word, angle, word, angle]
            for value in module._normals([words, words], 0, dtype):
                assert math.isfinite(float(value))
                assert abs(float(value)) < (6.8 if dtype == torch.float32 else 9.5)


def uniform_faults(u: Tensor) -> list[str]:
    u = u.flatten().double().cpu()
    n = len(u)
    counts = torch.bincount((u * 256).long().clamp(0, 255), minlength=256)
    small = 2.0**-14
    p = {
        "open interval": float(bool(((u > 0) & (u < 1)).all())),
        "Kolmogorov-Smirnov": stats.kstest(u[: 2**19].numpy(), "uniform", mode="asymp").pvalue,
        "bins": stats.chisquare(counts.numpy()).pvalue,
        "near 0": stats.binomtest(int((u < small).sum()), n, small).pvalue,
        "near 1": stats.binomtest(int((u > 1 - small).sum()), n, small).pvalue,
    }
    return [name for name, value in p.items() if not value > ALARM / len(p)]


@pytest.mark.thorough
@pytest.mark.parametrize(("arrangement", "dtype"), OF_BOTH)
def test_uniforms_are_uniform(arrangement: str, dtype: torch.dtype, device) -> None:
    chains, elements, steps = ARRANGEMENTS[arrangement]
    noise = Noise(2025, chains, device=device, dtype=dtype, window=steps)
    u = torch.stack([noise.uniform(step, Stream.ACCEPT, (elements,)) for step in range(steps)])
    assert uniform_faults(u) == []


@pytest.mark.parametrize(
    "wrong", [lambda u: u * 1.001, lambda u: u**1.01, lambda u: (u * 4096).floor() / 4096]
)
def test_wrong_uniforms_are_caught(wrong: Callable[[Tensor], Tensor], device) -> None:
    assert uniform_faults(wrong(Noise(2025, 2**10, device=device).uniform(0, 0, (2**11,)))) != []


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniforms_never_reach_0_or_1(dtype: torch.dtype, device) -> None:
    for word in (0, 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1):
        words = [torch.tensor([word], device=device)] * 2
        for value in module._uniforms([words, words], 0, dtype):
            assert value.dtype == dtype
            assert 0.0 < float(value) < 1.0


def test_signs_are_balanced(device) -> None:
    noise = Noise(2026, 1000, device=device)
    signs = torch.stack(
        [noise.rademacher(step, Stream.PROBE, (64,)) for step in range(16)]
    ).double()
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    for axes, count in (((0, 1), 64), ((0, 2), 1000), ((1, 2), 16)):
        z = signs.sum(axes) / math.sqrt(signs.numel() / count)
        assert float(z.abs().max()) < threshold(count)
    assert abs(float(signs.sum())) / math.sqrt(signs.numel()) < threshold(1)


def test_the_bits_of_the_words_are_balanced_and_independent() -> None:
    words = module.philox4x32((torch.arange(2**16), 3, 5, 7), (1, 2))
    bits = torch.stack([(word >> b & 1) * 2 - 1 for word in words for b in range(32)]).double()
    assert float((bits.sum(1) / 2**8).abs().max()) < threshold(128)
    correlation = (bits @ bits.T / 2**8).triu(1)
    assert float(correlation.abs().max()) < threshold(128 * 127 // 2)


def independent_rows(draw: Callable[[int, int, int, int, int], Tensor]) -> Tensor:
    """Rows of 4096 values, no two of the same seed, chains, step and stream."""
    rows = []
    for seed in (0, 1, 2**32):
        for step in (0, 1, 2):
            for stream in (0, 1, 2):
                for first in (0, 2048, 4096):
                    rows.append(draw(seed, first, step, stream, 4))
    return torch.stack(rows)


def _draw(seed: int, first: int, step: int, stream: int, elements: int) -> Tensor:
    return Noise(seed, range(first, first + 1024)).normal(step, stream, (elements,)).flatten()


def test_seeds_chains_steps_and_streams_are_independent() -> None:
    assert repeats(independent_rows(_draw)) == []


WRONG_COUNTERS: dict[str, Callable[[int, int, int, int, int], Tensor]] = {
    "chains repeat": lambda seed, first, step, stream, n: _draw(seed, 0, step, stream, n),
    "steps repeat": lambda seed, first, step, stream, n: _draw(seed, first, 0, stream, n),
    "streams repeat": lambda seed, first, step, stream, n: _draw(seed, first, step, 0, n),
    "step and stream share a word": lambda seed, first, step, stream, n: _draw(
        seed, first, step + stream, 0, n
    ),
    "seed and step share a word": lambda seed, first, step, stream, n: _draw(
        seed + step, first, 0, stream, n
    ),
    "half of the seed is lost": lambda seed, first, step, stream, n: _draw(
        seed % 2**32, first, step, stream, n
    ),
    "chain and step share a word": lambda seed, first, step, stream, n: _draw(
        seed, first + 2048 * step, 0, stream, n
    ),
}


@pytest.mark.parametrize("name", WRONG_COUNTERS)
def test_wrong_counters_are_caught(name: str) -> None:
    assert repeats(independent_rows(WRONG_COUNTERS[name])) != []


def test_neighbouring_chains_elements_and_kinds_are_independent(device) -> None:
    noise = Noise(1, 64, device=device, window=4096)
    z = torch.stack(
        [noise.normal(step, 0, (2,)) for step in range(4096)]
    )  # (steps, chains, elements)
    assert repeats(z.flatten(1).T) == []
    chain = Noise(1, 1, device=device)
    assert repeats(chain.normal(0, 0, (2**19,)).reshape(-1, 128).T) == []
    kinds = [
        chain.normal(0, 0, (4096,))[0],
        (chain.uniform(0, 0, (4096,))[0] - 0.5) * math.sqrt(12),
        chain.rademacher(0, 0, (4096,))[0],
    ]
    sample = torch.stack(kinds).double()
    correlation = (sample @ sample.T / 4096).triu(1).abs().max()
    assert float(correlation) < threshold(3) / math.sqrt(4096)


def test_a_shared_word_of_two_kinds_would_be_caught(device) -> None:
    u = Noise(1, 1, device=device).uniform(0, 0, (4096,))[0]
    sample = torch.stack([torch.special.ndtri(u.double()), (u - 0.5) * math.sqrt(12)]).double()
    assert repeats(sample) != []
