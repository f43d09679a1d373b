"""Jumps of coordinates to where a pilot's chains were: they leave every law as it is, and find regions again."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

import scoretk as stk
from scoretk.core.streams import Stream
from scoretk.fields.resolve import resolve
from scoretk.inference import beginning, partition
from scoretk.inference.beginning import JUMPS
from scoretk.solvers.importance import Ladder
from scoretk.solvers.parts import jumps
from scoretk.solvers.parts.jumps import INTERVALS, jump, quantiles_of
from tests.evidence import assert_mean, mean_z, z_limit

CHAINS = 20_000
APART = 4.0
SHARE = 0.25


def energy(x):
    """Two normals in the first coordinate, one of them a quarter, and a third that follows the second."""
    near, far = (-((x[:, 0] - c) ** 2) / 2 for c in (0.0, APART))
    first = torch.logaddexp(near + math.log(1 - SHARE), far + math.log(SHARE))
    return -first + x[:, 1] ** 2 / 2 + (x[:, 2] - x[:, 1]) ** 2


LAW = resolve(stk.Energy(energy, (3,)), {"energy"})


def exact(noise, step=0):
    z = noise.normal(step, Stream.START, (3,))
    far = noise.uniform(step, Stream.START, ()) < SHARE
    return torch.stack([z[:, 0] + APART * far, z[:, 1], z[:, 1] + z[:, 2] * 0.5**0.5], 1)


def moments(x):
    return torch.stack(
        [x[:, 0], x[:, 0] ** 2, (x[:, 0] > APART / 2).double(), x[:, 1] * x[:, 2], x[:, 2] ** 2], 1
    )


ABOVE = 1 - 0.5 * math.erfc(APART / 2 / 2**0.5)
TRUE = [SHARE * APART, 1 + SHARE * APART**2, SHARE * ABOVE + (1 - SHARE) * (1 - ABOVE), 1.0, 1.5]


def after(times, quantiles, start=None):
    noise = stk.Noise(5, CHAINS, dtype=torch.float64)
    return jump(LAW, exact(noise) if start is None else start, quantiles, noise, 0, times)


def pilot(scale=1.0, shift=0.0):
    return quantiles_of(scale * exact(stk.Noise(6, 256, dtype=torch.float64)) + shift)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.6, 0.5), (3.0, -1.0)])
def test_the_law_stays_whatever_the_pilot_found(scale, shift):
    """Chains beyond all that it found among them."""
    x = after(3, pilot(scale, shift))
    assert_mean(moments(x), TRUE)
    assert bool((x != exact(stk.Noise(5, CHAINS, dtype=torch.float64))).any(0).all())


def unlike(*arguments, of=torch.where):
    """Densities of proposals are left out of the ratio, where the third argument is the number 0."""
    return of(arguments[0], 0.0, 0.0) if isinstance(arguments[2], float) else of(*arguments)


def test_without_the_proposals_densities_it_does_not(monkeypatch):
    """The mutant."""
    monkeypatch.setattr(torch, "where", unlike)
    assert mean_z(moments(after(3, pilot(0.6, 0.5))), TRUE).abs().max() > 2 * z_limit(5)


def in_float32(times):
    """A normal so far out that single precision has 160 numbers to a standard deviation, in its units."""
    law = resolve(stk.Energy(lambda x: ((x - 1000) / 0.01).square().sum(1) / 2, (1,)), {"energy"})
    start, of_pilot = (
        1000 + 0.01 * stk.Noise(k, n).normal(0, 0, (1,)) for k, n in ((5, CHAINS), (6, 256))
    )
    x = jump(law, start, quantiles_of(of_pilot), stk.Noise(5, CHAINS), 0, times)
    return (x.double() - 1000) / 0.01


def test_what_single_precision_rounds_is_proposed_and_found_alike():
    x = in_float32(60)
    assert_mean(torch.cat([x, x.square()], 1), [0.0, 1.0])


def test_else_chains_gather_where_proposals_are_rounded_to(monkeypatch):
    """The mutant: the lowest end is outside, and a proposal from outside is taken."""
    where = torch.where

    def old(*arguments):
        if isinstance(arguments[1], int):
            return arguments[2]
        return where(*arguments)

    monkeypatch.setattr(torch, "where", old)
    monkeypatch.setattr(
        torch.Tensor, "any", lambda self, *axes: torch.zeros(len(self), dtype=torch.bool)
    )
    x = in_float32(60)
    assert mean_z(x.square(), [1.0]).abs().max() > 2 * z_limit()


def test_regions_are_found_again_in_their_shares():
    noise = stk.Noise(5, CHAINS, dtype=torch.float64)
    start = exact(noise)
    start[:, 0].clamp_(max=APART / 2)  # all in the greater one
    x = after(60, pilot(), start)
    assert_mean((x[:, 0] > APART / 2).double(), TRUE[2])
    assert not bool((start[:, 0] > APART / 2).any())


@pytest.mark.parametrize("chains", [1, 2, 16, 256, 5000])
def test_intervals_rise_and_reach_beyond_all_chains(chains):
    x = exact(stk.Noise(7, chains)).reshape(chains, 3, 1)
    ends = quantiles_of(x)
    assert ends.shape[1:] == (3, 1)
    assert len(ends) - 1 <= INTERVALS
    assert bool((ends.diff(dim=0) > 0).all())
    assert bool((ends[0] < x.amin(0)).all())
    assert bool((ends[-1] > x.amax(0)).all())
    copies = quantiles_of(x[:1].expand(chains, 3, 1))
    assert bool((copies.diff(dim=0) > 0).all())


@pytest.mark.parametrize("end", [0, 1, -1])
def test_from_every_end_of_an_interval_a_chain_jumps_as_from_within_or_not_at_all(end):
    """The lowest is within, to where a proposal may be rounded; the highest is within."""
    flat = resolve(stk.Energy(lambda x: 0 * x.sum(1), (1,)), {"energy"})
    ends = torch.linspace(-1.0, 2.0, 7)[:, None]
    start = ends[end].expand(64, 1).clone()
    x = jump(flat, start, ends, stk.Noise(2, 64), 0, 8)
    assert (x != start).all()
    assert ((x >= ends[0]) & (x <= ends[-1])).all()


def test_of_many_chains_intervals_are_equally_likely():
    x = exact(stk.Noise(8, CHAINS, dtype=torch.float64))
    ends = quantiles_of(x)
    held = torch.stack([(x >= a) & (x < b) for a, b in pairwise(ends[1:-1])])
    inner = len(ends) - 3
    assert (held.sum(1) - CHAINS / inner).abs().max() <= 2


@pytest.mark.filterwarnings("ignore:log_partition")  # few chains
@pytest.mark.parametrize("method", ["ais", "smc"])
def test_evaluations_are_counted_and_batches_do_not_matter(method):
    asked = []

    def counted(x):
        asked.append(len(x))
        return energy(x)

    field = stk.Energy(counted, (3,))
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 2.0), 1)
    run = {"method": method, "chains": 64, "island": 32, "check": False, "kernel": stk.MALA(0.3)}
    found = stk.log_partition(field, base, jumps=2, progress=False, **run)
    # what is asked beside the run: whether gradients are right, and the like, of few rows
    assert 0 <= sum(asked) - found.cost["energy"] < 0.1 * sum(asked)
    truth = math.log(2 * math.pi) + math.log(math.pi) / 2
    assert abs(found.value - truth) < z_limit() * found.stderr
    parts = stk.log_partition(field, base, jumps=2, batch=32, progress=False, **run)
    assert torch.equal(found.value, parts.value)
    without = stk.log_partition(field, base, progress=False, **run)
    assert without.cost["energy"] < found.cost["energy"]


def test_what_fits_no_jumps_is_refused():
    ends = torch.arange(8.0).reshape(2, 4, 1)
    for wrong in (
        ends[:1],
        ends.flip(1),
        ends[:, :1],
        ends[0],
        torch.full_like(ends, torch.nan),
        "x",
    ):
        with pytest.raises(stk.InvalidArgument, match="quantiles"):
            Ladder((0.0, 0.5, 1.0), quantiles=wrong, jumps=1)
    with pytest.raises(stk.InvalidArgument, match="jumps"):
        Ladder((0.0, 0.5, 1.0), jumps=1)
    for jumps_ in (-1, 1.5, True, "2"):
        with pytest.raises(stk.InvalidArgument, match="jumps"):
            Ladder((0.0, 0.5, 1.0), quantiles=ends, jumps=jumps_)
    with pytest.raises(stk.InvalidArgument, match="jumps"):
        stk.log_partition(stk.load("ising", size=4), jumps=1)
    of_another = Ladder((0.0, 0.5, 1.0), quantiles=ends, jumps=1)
    with pytest.raises(stk.InvalidArgument, match="quantiles of continuous events"):
        stk.sample(stk.Energy(energy, (3,)), stk.AIS(ladder=of_another), chains=4)


def test_a_ladder_is_named_by_where_its_jumps_lead():
    ends = torch.arange(8.0).reshape(2, 4, 1)
    names = {
        repr(Ladder((0.0, 0.5, 1.0), quantiles=q, jumps=n))
        for q, n in ((None, 0), (ends, 1), (ends, 2), (ends + 1, 1))
    }
    assert len(names) == 4
    assert jumps.energies_of_jumps(0) == 0


def wells(dim):
    """A law of two far wells in each coordinate, which no kernel of small steps goes between."""
    return stk.Energy(lambda x: 4 * (x.square() - 4).square().sum(1), (dim,))


@pytest.mark.filterwarnings("ignore:log_partition")
@pytest.mark.parametrize(
    ("field", "by_default", "otherwise"),
    [(wells(2), JUMPS, 0), (stk.load("gaussian", dim=2), 0, JUMPS)],
    ids=["far wells", "one region"],
)
def test_chains_jump_where_those_of_the_short_run_stay(field, by_default, otherwise, monkeypatch):
    """By default, with the noise of a run that is asked to."""
    monkeypatch.setattr(partition, "short_run", cache(beginning.short_run))
    monkeypatch.setattr(beginning, "SEARCHES", 0)
    run = {"chains": 16, "levels": 2, "pilot": 16, "progress": False}
    found, same, other = (
        stk.log_partition(field, **run, **given)
        for given in ({}, {"jumps": by_default}, {"jumps": otherwise})
    )
    assert torch.equal(found.value, same.value)
    assert found.cost == same.cost
    assert not torch.equal(found.value, other.value)
