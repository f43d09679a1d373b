"""An energy grows outwards in the end: one with the wrong sign is refused when a run starts."""

import pytest
import torch

import scoretk as stk
from scoretk.run import batches


def gaussian(x):
    return x.square().sum(1) / 2


NARROW, WIDE = stk.Energy(lambda x: 2 * gaussian(x), (2,)), stk.Energy(gaussian, (2,))
WRONG = {
    "a log density": stk.Energy(lambda x: -gaussian(x), (2,)),
    "of a mixture": stk.Energy(lambda x: torch.logaddexp(-gaussian(x - 4), -gaussian(x + 4)), (2,)),
    "with a large constant": stk.Energy(lambda x: 1e3 - 1e-3 * x.square().sum(1), (3,)),
    "a score": stk.Score(lambda x: x - 2, (2,)),
    "of what is positive": stk.Energy(
        lambda mu, tau: -tau - (mu / tau) ** 2 / 2,
        variables={"mu": (), "tau": torch.distributions.constraints.positive},
    ),
    "guided too far": stk.guided(WIDE, 3.0, NARROW),
}
RIGHT = {
    "far away": stk.Energy(lambda x: gaussian(x - 1e3), (2,)),
    "the other way round, bounded": stk.Energy(lambda x: -torch.exp(-gaussian(x)), (2,)),
    "heavy tails": stk.Energy(lambda x: torch.log1p(x.square()).sum(1), (2,)),
    "falls in proportion": stk.Energy(lambda x: -x.abs().sum(1), (2,)),
    "along one axis only": stk.Energy(lambda x: x[:, 0] ** 2 / 2 - x[:, 1].clamp(-3, 3) ** 2, (2,)),
    "along some rays only": stk.Energy(lambda x: -0.1 * x.prod(1), (2,)),
    "periodic": stk.Energy(lambda x: -x.cos().sum(1), (2,)),
    "no value far out": stk.Energy(lambda x: gaussian(x) + torch.log(10 - x.norm(dim=1)), (2,)),
    "of what is positive": stk.Energy(
        lambda mu, tau: tau + (mu / tau) ** 2 / 2,
        variables={"mu": (), "tau": torch.distributions.constraints.positive},
    ),
    "of a scale, which no number holds far out": stk.constrained(
        stk.Energy(lambda x: (x - 2 * x.log()).sum(1), (2,)),
        [(torch.distributions.constraints.positive, 2)],
    ),
    "a funnel": stk.load("funnel"),
    "guided": stk.guided(NARROW, 3.0, WIDE),
    "a score": stk.Score(lambda x: 2 - x, (2,)),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("chains", [2, 64])
def test_an_energy_that_falls_without_bound_is_refused(name, chains):
    with pytest.raises(stk.InvalidArgument, match=r"falls without bound.*sign right"):
        stk.sample(WRONG[name], stk.ULA(1e-3), chains=chains, steps=200)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_others_are_sampled(name, dtype):
    stk.sample(RIGHT[name], stk.ULA(1e-3), chains=16, steps=40, dtype=dtype)


def test_it_is_asked_of_the_default_solver_before_it_spends_anything():
    rows = []
    field = stk.Energy(lambda x: (rows.append(len(x)), -gaussian(x))[1], (2,))
    with pytest.raises(stk.InvalidArgument, match="sign right"):
        stk.sample(field, chains=32, steps=50)
    assert sum(rows) < 32 * 10  # a run of 550 steps takes thousands of evaluations


def test_without_the_question_chains_run_away(monkeypatch):
    """The mutant: no such question, and the run ends in failures or in no answer."""
    monkeypatch.setattr(batches, "check_grows", lambda *run: None)
    draws = stk.sample(WRONG["a log density"], stk.ULA(0.1), chains=8, steps=200)
    assert (draws.final.abs() > 1e3).all()
