"""Warmup as an object: who learns, what is learned by parts of its own, and that a kernel says what of it can be."""

import pytest
import torch

import scoretk as stk

FIELD = stk.Energy(lambda x: (x / torch.tensor([1.0, 3.0]).to(x)).square().sum(1) / 2, (2,))
RUN = {"chains": 12, "steps": 3, "seed": 2, "dtype": torch.float64}
KINDS = [stk.HMC, stk.ChEES, stk.NUTS, stk.MCLMC, stk.AdjustedMCLMC, stk.PreconditionedLangevin, stk.ParallelTempering]


def test_a_number_is_a_warmup_of_so_many_steps():
    one, other = (stk.sample(FIELD, stk.HMC(), warmup=w, **RUN) for w in (25, stk.Warmup(25)))
    assert torch.equal(one.x, other.x)
    assert one.provenance == other.provenance
    assert (one.provenance["warmup"], one.provenance["pilot"]) == (25, 256)
    kept = stk.sample(FIELD, stk.ULA(0.1), warmup=stk.Warmup(7, pilot=2), **RUN)
    assert torch.equal(kept.x, stk.sample(FIELD, stk.ULA(0.1), warmup=7, **RUN).x)
    assert kept.provenance["pilot"] is None


def test_the_pilot_alone_learns():
    few, many = (stk.sample(FIELD, stk.HMC(), warmup=stk.Warmup(25, pilot=n), **RUN).tuned for n in (4, 12))
    alone = stk.sample(FIELD, stk.HMC(), warmup=25, **(RUN | {"chains": 4})).tuned
    assert all(torch.equal(few[name], alone[name]) for name in few)
    assert not torch.equal(few["step_size"], many["step_size"])


def test_for_a_release_a_solver_takes_its_pilot_and_says_where_it_has_gone():
    for kind in KINDS:
        with pytest.warns(DeprecationWarning, match=rf"{kind.__name__}\(pilot=\) .*Warmup\(pilot=5\)"):
            solver = kind(pilot=5)
        assert solver == kind()
        with pytest.raises(stk.InvalidArgument, match="pilot"):
            kind(pilot=0)
    with pytest.warns(DeprecationWarning, match="pilot"):
        old = stk.sample(FIELD, stk.HMC(pilot=5), warmup=25, **RUN)
    new, other = (stk.sample(FIELD, stk.HMC(), warmup=stk.Warmup(25, pilot=n), **RUN) for n in (5, 6))
    assert torch.equal(old.x, new.x)
    assert not torch.equal(old.x, other.x)


@pytest.mark.parametrize(
    ("warmup", "named"),
    [({"steps": -1}, "steps"), ({"steps": 2.5}, "steps"), ({"pilot": 0}, "pilot"), ({"pilot": True}, "pilot")],
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
