"""What is computed in blocks, for memory, is what it is in one: for each such constant of the package, with blocks that
do not divide what they are of.
"""

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core import marks, noise, sealed
from scoretk.core.streams import Stream
from scoretk.demo.bench.mnist import data as mnist_data
from scoretk.demo.bench.mnist import estimates, mixture
from scoretk.diagnostics import calibration, convergence, discrepancies, judging
from scoretk.fields import discrete
from scoretk.fields.variables import Derived, variables_of
from scoretk.inference import likelihood, outcome
from scoretk.run import record, stored
from scoretk.solvers import annealed

_generator = torch.Generator().manual_seed(0)
ROWS = torch.randn(31, 3, generator=_generator, dtype=torch.float64)
OTHERS = torch.randn(23, 3, generator=_generator, dtype=torch.float64) + 0.2
IMAGES = torch.randint(256, (23, 4, 4), generator=_generator).to(torch.uint8)
BINARY = (IMAGES > 128).double()
CHAINS = torch.randn(4, 40, 5, generator=_generator, dtype=torch.float64).cumsum(1)


def moments():
    keep, kept = record.KeepMoments(), record.Record()
    for i in range(3):
        kept = keep.add(kept, ROWS * (i + 1), {}, i, 3)
    return kept.tensors["mean"], kept.tensors["m2"]


def spins():
    field = stk.Discrete(stk.Energy(lambda x: x @ torch.arange(5.0).to(x), (5,)), (-1.0, 1.0))
    return field.exact_log_partition(), field.log_prob(torch.ones(1, 5))


def mixtures():
    return mixture.expectation_maximisation(BINARY, 3, torch.Generator().manual_seed(1))


def mixed():
    found = next(islice(mixtures(), 2, None))
    return found.log_shares, found.logits


def estimated():
    found = estimates.exactly(next(mixtures()), BINARY)
    return torch.tensor([found.value, found.rows])


def traces():
    matrix, x = torch.eye(5).double().roll(1, 0) + 0.3, torch.ones(2, 5).double()
    probes = torch.cos(torch.arange(70.0).double()).reshape(7, 2, 5)
    return tuple(
        likelihood.divergence(lambda y, t: torch.sin(y @ matrix), x, 0.0, directions)[1]
        for directions in (None, probes)
    )


def judged():
    found = judging.judge(CHAINS.numpy(), list("abcde"), None, chunk=judging.CHUNK)
    ways = [*found.drift.values(), *found.memory.values(), *found.between.values()]
    return torch.tensor(np.stack(ways)), torch.tensor(found.bulk)


def compared():
    slopes = -ROWS
    found = [
        discrepancies.kernel_stein_discrepancy(ROWS, slopes, bootstraps=30),
        discrepancies.mmd_test(ROWS, OTHERS, permutations=30),
    ]
    return tuple(torch.tensor([f.statistic, f.threshold, f.p_value]) for f in found)


def ranked():
    draws = CHAINS[..., :3]
    found = calibration.sbc_test(ROWS[:4], draws, permutations=30)
    band = calibration.rank_band(7, 5, simulations=30)
    return torch.tensor([found.statistic, found.threshold, found.p_value]), band.low, band.high


def made():
    own = stk.Noise(3, 9, dtype=torch.float64, window=3)
    return tuple(own.normal(s, Stream.USER, (7,)).clone() for s in (0, 5, 300))


def written(folder):
    path = folder / "a.safetensors"
    sealed.write_sealed(path, "run", {"x": ROWS}, {"n": 1})
    return (sealed.read_sealed(path, "run")[0]["x"],)


def derived():
    square = Derived(variables_of({"a": CHAINS.shape[2:]}), lambda x: {"a": x.square()}, None)
    return (outcome._values(square, CHAINS),)


def marked():
    (found,) = marks.marks([ROWS[0, 0] * torch.arange(17 * marks.COLUMNS + 3.0)])
    return (torch.tensor(found[-1]),)


def streamed(folder):
    store = stk.Zarr(folder / f"store {len(list(folder.iterdir()))}", draws=4)
    quartic = stk.Energy(lambda x: (x**4).sum(1) / 4, (3,))
    return stk.sample(quartic, stk.ULA(0.1), chains=3, steps=22, keep=store).moments()


BLOCKS = {
    (marks, "BLOCK"): lambda _: marked(),
    (annealed, "BLOCK"): lambda _: (annealed.largest_distance(ROWS),),
    (likelihood, "ABREAST"): lambda _: traces(),
    (discrete, "CHUNK"): lambda _: spins(),
    (record, "CHUNK"): lambda _: moments(),
    (convergence, "CHUNK"): lambda _: (stk.diagnostics.ess(CHAINS), stk.diagnostics.rhat(CHAINS)),
    (judging, "CHUNK"): lambda _: judged(),
    (discrepancies, "BLOCK"): lambda _: compared(),
    (calibration, "BLOCK"): lambda _: ranked(),
    (noise, "CHUNK"): lambda _: made(),
    (sealed, "CHUNK"): written,
    (outcome, "CHUNK"): lambda _: derived(),
    (stored, "CHUNK"): streamed,
    (mnist_data, "CHUNK"): lambda _: (mnist_data.binarised(IMAGES, 0),),
    (mixture, "CHUNK"): lambda _: mixed(),
    (estimates, "CHUNK"): lambda _: estimated(),
}


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("where", BLOCKS, ids=lambda where: where[0].__name__.partition(".")[2])
def test_what_is_computed_in_blocks_is_what_it_is_in_one(where, size, monkeypatch, tmp_path):
    whole = BLOCKS[where](tmp_path)
    monkeypatch.setattr(*where, size)
    for one, other in zip(BLOCKS[where](tmp_path), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_every_size_of_blocks_is_asked_about():
    """A constant that is named so, of another device than this one's aside."""
    named = {
        (path.stem, name)
        for path in Path(stk.__file__).parent.rglob("*.py")
        for line in re.findall(r"^[A-Z_]+(?:, [A-Z_]+)* = ", path.read_text(), re.MULTILINE)
        for name in re.findall(r"\b(?:BLOCK|CHUNK|ABREAST)\b", line)
    }
    assert named == {(m.__name__.rpartition(".")[2], name) for m, name in BLOCKS}
