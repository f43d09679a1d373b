"""Integers are integers, whoever made them: Python's, numpy's, tensors of no dimension. Truth values and lists are none."""

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core.arguments import count, integer, is_integer
from scoretk.models.targets.mixture import ring_mixture

KINDS = [
    int,
    np.int64,
    np.int32,
    np.uint8,
    np.array,
    torch.tensor,
    lambda n: torch.tensor(n, dtype=torch.int32),
]
NONE = [
    True,
    np.True_,
    torch.tensor(True),
    3.0,
    np.float64(3),
    torch.tensor(3.0),
    torch.tensor([3]),
    np.array([3]),
    "3",
    None,
    torch.tensor(3, device="meta"),
    torch.tensor(3 + 0j),
    [3],
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_integer_is_one(kind):
    assert is_integer(kind(3))
    assert type(integer("n", kind(3))) is int
    assert count("n", kind(3), least=3) == 3


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_nothing_else_is(value):
    assert not is_integer(value)
    for check in (integer, count):
        with pytest.raises(stk.InvalidArgument, match=r"^n: expected an integer"):
            check("n", value)


def test_what_no_tensor_holds_is_refused():
    for number in (10**400, 2**63, -1):
        with pytest.raises(stk.InvalidArgument, match=r"^n: "):
            count("n", number)
    assert integer("seed", 2**64 - 1, below=2**64) == 2**64 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_same_run(kind, tmp_path):
    """Settings and solvers hold plain integers, so that a checkpoint of one is the other's."""
    plain = {"chains": 3, "steps": 4, "thin": 2, "seed": 3, "batch": 2}
    draws = stk.sample(
        ring_mixture(),
        stk.HMC(0.1, 3, metric="none"),
        warmup=stk.Warmup(1, 100),
        checkpoint=tmp_path / "run",
        **plain,
    )
    other = {name: kind(value) for name, value in plain.items()}
    solver = stk.HMC(0.1, kind(3), metric="none")
    assert repr(solver) == repr(stk.HMC(0.1, 3, metric="none"))
    warmup = stk.Warmup(kind(1), pilot=kind(100))
    assert repr(warmup) == repr(stk.Warmup(1, 100))
    again = stk.sample(ring_mixture(), solver, warmup=warmup, checkpoint=tmp_path / "run", **other)
    assert torch.equal(again.x, draws.x)
    assert again.provenance == draws.provenance
    assert stk.Energy(lambda x: x.sum(1), (kind(2),)).event_shape == (2,)
    assert stk.fields.resolve(ring_mixture(), {"energy"}).event_shape == (2,)
    logp = [stk.log_prob(ring_mixture(), draws.final, seed=k(3)).value for k in (int, kind)]
    assert torch.equal(*logp)
    assert torch.equal(
        stk.Noise(kind(3), kind(2)).normal(1, 0, (2,)), stk.Noise(3, 2).normal(1, 0, (2,))
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda n: stk.HMC(leapfrogs=n),
        lambda n: stk.ChEES(most=n),
        lambda n: stk.ProbabilityFlow(steps=n),
        stk.AnnealedLangevin,
        lambda n: stk.ParallelTempering(replicas=n),
        lambda n: stk.NUTS(max_depth=n),
        lambda n: stk.ReverseSDE(steps=n),
        lambda n: stk.learn.Recipe(steps=n),
    ],
)
def test_solvers_hold_plain_integers(make):
    assert repr(make(np.int64(5))) == repr(make(torch.tensor(5))) == repr(make(5))
    with pytest.raises(stk.InvalidArgument):
        make(True)
