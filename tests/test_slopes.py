"""The gradient of an energy is that of its values, or the run is refused when it starts."""

from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

import scoretk as stk
from scoretk.errors import InvalidArgument
from scoretk.fields.derivatives import check_derivative
from scoretk.fields.resolve import resolve
from scoretk.run import batches
from scoretk.run.slopes import check_slopes
from tests.evidence import z_limit


def gaussian(x):
    return x.square().sum(1) / 2


def partly_detached(x):
    return gaussian(torch.cat([x[:, :1].detach(), x[:, 1:]], 1))


def through_numpy(x):
    return gaussian(x) + torch.as_tensor((x.detach().numpy() ** 4).sum(1))


class Own:
    """A field with an energy and a gradient or a score of its own."""

    event_shape = (2,)

    def __init__(self, slope):
        self.slope = slope

    def energy(self, x):
        return gaussian(x)


class OwnGradient(Own):
    def energy_and_grad(self, x):
        return gaussian(x), self.slope * x


class OwnScore(Own):
    def score(self, x):
        return -self.slope * x


class InSteps(torch.autograd.Function):
    """A step with the gradient of the identity, as quantised networks have."""

    @staticmethod
    def forward(ctx, x):
        return (x * 50).round() / 50

    @staticmethod
    def backward(ctx, g):
        return g


NOISY = torch.Generator().manual_seed(1)
WRONG = {
    "a coordinate is detached": stk.Energy(partly_detached, (2,)),
    "a part is numpy's": stk.Energy(through_numpy, (3,)),
    "another's gradient": OwnGradient(0.5),
    "minus its gradient": OwnGradient(-1.0),
    "a score of twice the slope": OwnScore(2.0),
    "tempered": stk.tempered(stk.Energy(partly_detached, (2,)), 2.0),
    "in a product": stk.product(
        stk.Energy(gaussian, (2,)), stk.Energy(lambda x: gaussian(2 * x.detach() - x), (2,))
    ),
}
RIGHT = {
    "smooth": stk.Energy(gaussian, (2,)),
    "own gradient": OwnGradient(1.0),
    "own score": OwnScore(1.0),
    "kinks": stk.Energy(lambda x: x.abs().sum(1), (2,)),
    "flat in parts": stk.Energy(lambda x: x.clamp(-1, 1).square().sum(1) + 0 * x.sum(1), (2,)),
    "a large constant": stk.Energy(lambda x: gaussian(x) + 1e5, (2,)),
    "in steps, on purpose": stk.Energy(lambda x: gaussian(InSteps.apply(x)), (2,)),
    "in bfloat16": stk.Energy(lambda x: gaussian(x.bfloat16()).to(x.dtype), (2,)),
    "noise of its own": stk.Energy(
        lambda x: gaussian(x) + torch.randn(len(x), generator=NOISY), (2,)
    ),
    "steep": stk.Energy(lambda x: 1e6 * gaussian(x), (2,)),
    "with an edge": stk.Energy(lambda x: torch.where((x > 0).all(1), x.sum(1), torch.inf), (2,)),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("solver", [stk.ULA(0.01), stk.MCLMC(0.1, length=1.0, metric="none")])
def test_a_gradient_that_is_not_the_energys_is_refused(name, solver):
    with pytest.raises(stk.InvalidArgument, match=r"Along one direction.*let it be this energy's"):
        stk.sample(WRONG[name], solver, chains=64, steps=100)


def test_the_opposite_sign_is_told():
    for name in ("minus its gradient", "another's gradient"):
        with pytest.raises(InvalidArgument) as refused:
            stk.sample(WRONG[name], stk.ULA(0.01), chains=64, steps=100)
        assert ("the opposite sign" in str(refused.value)) == name.startswith("minus")


@pytest.mark.parametrize("solver", [stk.MALA(0.1), stk.HMC(0.3, metric="none", leapfrogs=4)])
def test_a_kernel_that_is_right_with_any_gradient_warns(solver):
    with pytest.warns(UserWarning, match="slow here, though exact.*let it be this energy's"):
        draws = stk.sample(WRONG["another's gradient"], solver, chains=400, steps=200, keep="last")
    # the mean of n squares of N(0, 1), whose standard error is sqrt(2 / n)
    n = draws.final.numel()
    assert abs(float(draws.final.square().mean()) - 1) < z_limit() * (2 / n) ** 0.5


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_others_are_sampled(name, dtype):
    stk.sample(
        RIGHT[name],
        stk.ULA(1e-8),
        chains=64,
        steps=40,
        dtype=dtype,
        init=0.1
        + torch.rand(64, RIGHT[name].event_shape[0], generator=torch.Generator().manual_seed(2)),
    )


KINKS = {
    "relu": lambda x: (x.square() / 2 + x.relu()).sum(1),
    "an asymmetric law of Laplace": lambda x: torch.where(x > 0, 2 * x, -x).sum(1),
}


@pytest.mark.parametrize("name", KINKS)
def test_chains_may_start_on_a_kink(name):
    """There the quotients of all steps agree with each other, and with no derivative."""
    field = stk.Energy(KINKS[name], (2,))
    stk.sample(field, stk.ULA(1e-3), init=torch.zeros(64, 2), steps=40)


def test_what_takes_no_few_rows_or_raises_beside_its_places_is_run():
    data = torch.linspace(-1, 1, 32).reshape(16, 2)
    of_rows = stk.Energy(lambda x: (x - data.to(x)).square().sum(1), (2,))
    assert stk.sample(of_rows, stk.ULA(1e-3), chains=16, steps=200).ok.all()

    def brittle(x):
        if x.requires_grad or (x == 0.5).all():
            return gaussian(x)
        raise ValueError("made for one place")

    draws = stk.sample(
        stk.Energy(brittle, (2,)), stk.ULA(1e-9), init=torch.full((64, 2), 0.5), steps=40
    )
    assert draws.ok.all()


class Place(NamedTuple):
    x: torch.Tensor
    energy: torch.Tensor
    step: torch.Tensor


class Walk:
    """A random walk with Metropolis' correction, for which values are enough."""

    needs, timed, capturable, exact = frozenset({"energy"}), False, False, True
    init_cost = step_cost = MappingProxyType({"energy": 1})

    def init(self, field, x, noise):
        return Place(x, field.energy(x), torch.zeros((), dtype=torch.int64))

    def step(self, field, state, noise):
        x = state.x + noise.normal(state.step, 0, tuple(state.x.shape[1:]), state.x.dtype)
        energy = field.energy(x)
        u = noise.uniform(state.step, 1, (), energy.dtype)
        moves = u.log() < state.energy - energy
        x = torch.where(moves[:, None], x, state.x)
        return Place(x, torch.where(moves, energy, state.energy), state.step + 1), {}


@pytest.mark.parametrize("name", ["a coordinate is detached", "minus its gradient"])
def test_a_kernel_that_asks_for_no_gradient_is_told_of_none(name):
    stk.sample(WRONG[name], Walk(), chains=16, steps=60)


def test_what_no_gradient_follows_is_not_asked():
    rows = []
    field = stk.Energy(lambda x: (rows.append(len(x)), partly_detached(x))[1], (2,))
    stk.sample(field, stk.ULA(0.01), chains=3, steps=20)  # it would cost more than the run
    assert sum(rows) == 3 * 21


def test_without_the_question_another_law_is_sampled(monkeypatch):
    """The mutant: no such question, and a coordinate never hears of its energy."""
    monkeypatch.setattr(batches, "check_slopes", lambda *run: None)
    draws = stk.sample(
        WRONG["a coordinate is detached"], stk.ULA(0.05), chains=64, steps=400, keep="last"
    )
    assert bool(draws.ok.all())
    assert draws.final[:, 0].var() > 10  # a walk of 400 steps of variance .1, where 1 is right
    assert draws.final[:, 1].var() < 3


def silent(x, t=None):
    with torch.no_grad():
        return -(x**3)


@pytest.mark.parametrize(
    ("field", "solver"),
    [
        (stk.Velocity(silent, (2,)), stk.ProbabilityFlow("euler", steps=4)),
        (stk.Velocity(lambda x, t: x.detach() * x, (2,)), stk.ProbabilityFlow("dopri5")),
        (stk.Score(silent, (2,)), stk.ULA(0.1)),
        (
            stk.Energy(lambda x: (x**4).sum(1), (2,), grad=lambda x: 4 * x**3),
            stk.HMC(0.1, metric="none"),
        ),
    ],
)
def test_a_run_that_is_differentiated_refuses_what_autograd_does_not_see(field, solver):
    """Its derivative would be that of a field which is constant."""
    steps = None if isinstance(solver, stk.ProbabilityFlow) else 3
    x = torch.full((2, 2), 0.7)
    stk.sample(field, solver, chains=2, steps=steps, init=x, seed=1)
    with pytest.raises(InvalidArgument, match=r"torch can differentiate|first derivatives only"):
        stk.sample(field, solver, chains=2, steps=steps, init=x, grad=True, seed=1)


@pytest.mark.parametrize("chains", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize(
    "name", ["another's gradient", "minus its gradient", "a score of twice the slope"]
)
def test_however_few_chains_there_are_they_are_asked(name, chains):
    """One place is enough, where steps enough are made for it."""
    x, solver = torch.ones(chains, 2), stk.ULA(0.01)
    wrong, right = (resolve(f, solver.needs, timed=False) for f in (WRONG[name], OwnGradient(1.0)))
    with pytest.raises(InvalidArgument, match="Along one direction"):
        check_slopes(wrong, solver, x, 10**6)
    check_slopes(right, solver, x, 10**6)


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("slope", [1.0, 2.0, -1.0])
@pytest.mark.parametrize("coarse", [None, 2.0**-5])
def test_what_goes_in_small_steps_is_judged_by_larger_ones(slope, steps, coarse):
    """A network in few bits is flat where one looks closely: its slope is that of its course."""

    def of(x):
        return gaussian((x * 1000 * steps).round() / (1000 * steps))

    x = torch.rand(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    ask = partial(check_derivative, of, x, "energy", of, "", lambda y: slope * y)
    if coarse is None or slope != 1:
        with pytest.raises(InvalidArgument, match="Along one direction"):
            ask(coarse)
    else:
        ask(coarse)
