"""Warmup as an object: who learns, what is learned by parts of its own, and that a kernel says what of it can be."""

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.demo.bench.gym import Volatility
from scoretk.fields import resolve
from tests.marks import slow_but

FIELD = stk.Energy(lambda x: (x / torch.tensor([1.0, 3.0]).to(x)).square().sum(1) / 2, (2,))
RUN = {"chains": 12, "steps": 3, "seed": 2, "dtype": torch.float64}
KINDS = [
    stk.HMC,
    stk.ChEES,
    stk.NUTS,
    stk.MCLMC,
    stk.AdjustedMCLMC,
    stk.PreconditionedLangevin,
    stk.ParallelTempering,
]


@pytest.mark.thorough
def test_a_number_is_a_warmup_of_so_many_steps():
    one, other = (stk.sample(FIELD, stk.HMC(), warmup=w, **RUN) for w in (25, stk.Warmup(25)))
    assert torch.equal(one.x, other.x)
    assert one.provenance == other.provenance
    assert (one.provenance["warmup"], one.provenance["pilot"]) == (25, 256)
    kept = stk.sample(FIELD, stk.ULA(0.1), warmup=stk.Warmup(7, pilot=2), **RUN)
    assert torch.equal(kept.x, stk.sample(FIELD, stk.ULA(0.1), warmup=7, **RUN).x)
    assert "pilot" not in kept.provenance


@pytest.mark.thorough
def test_the_pilot_alone_learns():
    few, many = (
        stk.sample(FIELD, stk.HMC(), warmup=stk.Warmup(25, pilot=n), **RUN).tuned for n in (4, 12)
    )
    alone = stk.sample(FIELD, stk.HMC(), warmup=25, **(RUN | {"chains": 4})).tuned
    assert all(torch.equal(few[name], alone[name]) for name in few)
    assert not torch.equal(few["step_size"], many["step_size"])


def test_for_a_release_a_solver_takes_its_pilot_and_says_where_it_has_gone():
    for kind in KINDS:
        with pytest.warns(
            DeprecationWarning, match=rf"{kind.__name__}\(pilot=\) .*Warmup\(pilot=5\)"
        ):
            solver = kind(pilot=5)
        assert solver == kind()
        with pytest.raises(stk.InvalidArgument, match="pilot"):
            kind(pilot=0)
    with pytest.warns(DeprecationWarning, match="pilot"):
        old = stk.sample(FIELD, stk.HMC(pilot=5), warmup=25, **RUN)
    new, other = (
        stk.sample(FIELD, stk.HMC(), warmup=stk.Warmup(25, pilot=n), **RUN) for n in (5, 6)
    )
    assert torch.equal(old.x, new.x)
    assert not torch.equal(old.x, other.x)


@pytest.mark.parametrize(
    ("warmup", "named"),
    [
        ({"steps": -1}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"pilot": 0}, "pilot"),
        ({"pilot": True}, "pilot"),
    ],
)
def test_what_is_wrong_with_a_warmup_is_named(warmup, named):
    with pytest.raises(stk.InvalidArgument, match=f"^{named}"):
        stk.Warmup(**warmup)


def test_a_tuned_solver_needs_a_warmup_and_a_grid_takes_none():
    with pytest.raises(stk.InvalidArgument, match="warmup"):
        stk.sample(FIELD, stk.HMC(), warmup=stk.Warmup(0), **RUN)
    with pytest.raises(stk.InvalidArgument, match="warmup"):
        stk.sample("ring-mixture", stk.AIS(levels=3), warmup=stk.Warmup(5), chains=2)
    with pytest.raises(stk.InvalidArgument, match="warmup"):
        stk.sample(FIELD, stk.HMC(), warmup=-3, **RUN)


def gaussian(scale):
    return stk.Energy(lambda x: (x / scale).square().sum(1) / 2, (5,))


KERNELS = [
    (stk.MALA(), 1e-2),
    (stk.MALA(), 1e2),
    (stk.GHMC(), 1e2),
    (stk.Barker(), 1e2),
    *(
        pytest.param(kernel, scale, marks=pytest.mark.slow)
        for kernel, scale in (
            (stk.MALA(), 1.0),
            (stk.GHMC(), 1e-2),
            (stk.Barker(), 1e-2),
            (stk.Barker(temperature=2.0), 1.0),
            (stk.GHMC(), 1.0),
            (stk.MALA(temperature=2.0), 1e-2),
            (stk.MALA(temperature=2.0), 1e2),
            (stk.ParallelTempering(stk.MALA(), temperatures=(1.0, 2.0)), 1e-2),
            (stk.ParallelTempering(stk.GHMC(), replicas=3), 1e2),
        )
    ),
]
BAND, FAR_OFF = 0.05, 3.3
"""How far from its target an acceptance may be; the standard errors that one of a thousand variances is beyond."""


@pytest.mark.thorough
@pytest.mark.parametrize(("kernel", "scale"), KERNELS)
def test_a_step_size_is_found_at_every_scale_and_the_law_is_there_right_after(kernel, scale):
    draws = stk.sample(
        gaussian(scale), kernel, chains=64, steps=60, warmup=300, seed=1, dtype=torch.float64
    )
    inner = getattr(kernel, "kernel", kernel)
    assert abs(float(draws.stats["accept"].mean()) - inner.accept) < (
        BAND if inner is kernel else 3 * BAND
    )
    of_chain = (draws.x / scale).square().mean((1, 2))  # chains are independent
    error = float(of_chain.std()) / 8
    assert abs(float(of_chain.mean()) - getattr(kernel, "temperature", 1.0)) < FAR_OFF * error


def test_with_one_step_size_for_all_scales_the_band_is_missed():
    """The mutant: what is found at one scale, at another."""
    found = float(
        stk.sample(gaussian(1.0), stk.MALA(), chains=32, steps=1, warmup=200).tuned["step_size"]
    )
    draws = stk.sample(gaussian(1e-2), stk.MALA(found), init=torch.zeros(32, 5), steps=20)
    assert abs(float(draws.stats["accept"].mean()) - 0.574) > 5 * BAND


@pytest.mark.thorough
def test_discrete_langevin_is_tuned_by_its_own_steps():
    run = {"chains": 32, "steps": 60, "warmup": 200, "seed": 1}
    for accept in (0.574, 0.7):
        draws = stk.sample("ising", stk.DiscreteLangevin(accept=accept), **run)
        assert abs(float(draws.stats["accept"].mean()) - accept) < BAND
    given = stk.DiscreteLangevin(float(draws.tuned["step_size"]))
    again = stk.DiscreteLangevin().tuned_by(draws)
    runs = [stk.sample("ising", s, init=draws.final, steps=5, seed=3).x for s in (given, again)]
    assert (
        float((runs[0] == runs[1]).double().mean()) > 0.999
    )  # the same number in other arithmetic
    with pytest.raises(stk.InvalidArgument, match=r"step_size: .*no acceptance"):
        stk.DiscreteLangevin(adjusted=False)


@pytest.mark.parametrize("kernel", [stk.MALA, stk.GHMC, stk.Barker])
def test_a_tuned_step_size_counts_whatever_the_solver_names(kernel):
    draws = stk.sample(FIELD, kernel(), warmup=50, **RUN)
    run = {"init": draws.final, "steps": 4, "seed": 3}
    found = kernel(float(draws.tuned["step_size"]))
    one, other, given = (
        stk.sample(FIELD, s, **run)
        for s in (kernel().tuned_by(draws), kernel(9.0).tuned_by(draws), found)
    )
    assert torch.equal(one.x, other.x)
    assert torch.allclose(one.x, given.x, rtol=1e-9)
    assert one.tuned["step_size"] == draws.tuned["step_size"]


@pytest.mark.parametrize(
    "kernel", slow_but([stk.MALA(), stk.GHMC(), stk.Barker()], stk.MALA(), stk.GHMC()), ids=repr
)
def test_chains_of_any_batch_are_the_same_and_their_evaluations_counted(kernel):
    calls = []

    def energy(x):
        calls.append(len(x))
        return (x * torch.tensor([1.0, 30.0]).to(x)).square().sum(1) / 2

    run = RUN | {"warmup": stk.Warmup(30, pilot=5)}
    whole = stk.sample(stk.Energy(energy, (2,)), kernel, **run)
    assert sum(calls) == whole.cost["score"] + 12  # of `run.outwards`
    assert torch.equal(whole.x, stk.sample(stk.Energy(energy, (2,)), kernel, batch=3, **run).x)


UNTUNED = [
    stk.HMC(leapfrogs=2),
    stk.NUTS(max_depth=2),
    stk.ChEES(length=1.0),
    stk.MCLMC(),
    stk.MCLMC(integrator="leapfrog"),
    stk.AdjustedMCLMC(leapfrogs=2),
    stk.PreconditionedLangevin(),
    stk.MALA(),
    stk.GHMC(),
    stk.Barker(),
]


@pytest.mark.parametrize("dim", [2, 30, 1000])
@pytest.mark.parametrize("kernel", UNTUNED, ids=repr)
def test_a_step_of_warmup_that_is_too_long_leaves_chains_where_the_mass_is(kernel, dim):
    """With what other scales made of it, 30 and 300 times as long as one that suits the target."""
    field = resolve(stk.Energy(lambda x: x.square().sum(1) / 2, (dim,)), kernel.needs, timed=False)
    noise, alive = Noise(3, 16, dtype=torch.float64), torch.ones(16, dtype=torch.bool)
    x = noise.normal(0, Stream.USER, (dim,), torch.float64)
    state = kernel.init(field, x, noise)
    state, _, _ = kernel.adaptation.begin(kernel, field, state, noise, alive)
    for longer in (30.0, 300.0):
        there = kernel.trial(field, state, noise, torch.full((16,), longer, dtype=torch.float64))
        stayed = (there.state.x == x).all(1)
        assert torch.equal(there.state.energy[stayed], state.energy[stayed])
        assert (there.state.energy - state.energy).max() < 20 * dim**0.5
        assert (there.accept[~stayed] > 0).all()
        assert torch.equal(there.state.x, x) or not stayed.all()


def days(n):
    """Returns whose logarithmic variances are an AR(1) process of persistence .95 and shocks of .34, about -9.8."""
    noise = Noise(4, 1, dtype=torch.float64)
    shocks, returns = noise.normal(0, Stream.USER, (2, n), torch.float64)[0]
    h = [shocks[0] * 0.34 / (1 - 0.95**2) ** 0.5]
    for shock in shocks[1:]:
        h.append(0.95 * h[-1] + 0.34 * shock)
    return returns * ((torch.stack(h) - 9.8) / 2).exp()


ARRIVES = [stk.MCLMC(), pytest.param(stk.MCLMC(metric="fisher"), marks=pytest.mark.slow)]


@pytest.mark.parametrize("kernel", ARRIVES, ids=repr)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_chain_of_a_volatility_is_lost_on_the_way_from_normals(kernel, seed):
    """Where shocks are near 0 all days are alike, and nothing there leads back.

    Of the first windows of warmup the scales are how far apart chains began.
    """
    draws = stk.sample(Volatility(days(1000)), kernel, 8, 1, 80, seed=seed)
    persistence, mean, shock = draws.final[:, :3].T
    assert draws.failures == {}
    assert 1.5 < persistence.min() < persistence.max() < 5.5  # of .95 it is 3.7
    assert -11.5 < mean.min() < mean.max() < -8
    assert -2 < shock.min() < shock.max() < 0.7  # of .34 it is -.9
