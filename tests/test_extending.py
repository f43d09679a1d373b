"""A finished run is extended by a larger `steps`, to the bits of a run that never stopped."""

import functools
from itertools import product

import pytest
import torch

import scoretk as stk
from scoretk.run import resume
from tests.marks import slow_rows_but
from tests.test_capture import made, no_loop

__all__ = ["made", "no_loop"]

FIELD = stk.Energy(lambda x: x.square().sum(1) / 2 + (x**4).sum(1) / 40, (2,))
SOLVERS = {
    "ula": stk.ULA(0.1),
    "hmc": stk.HMC(leapfrogs=2),
    "tempering": stk.ParallelTempering(stk.MALA(0.1), replicas=3),
}


def assert_equal(a, b):
    assert a.kept == b.kept
    for name in (*["x"] * bool(a.kept), "final", "mean", "var", "status", "failed_at"):
        one, other = getattr(a, name), getattr(b, name)
        assert one is other is None or torch.equal(one, other), name
    assert a.stats.keys() == b.stats.keys()
    assert all(torch.equal(a.stats[n], b.stats[n]) for n in a.stats)
    assert all(torch.equal(a.tuned[n], b.tuned[n]) for n in b.tuned)
    assert (a.cost, a.provenance) == (b.cost, b.provenance)


# Every way of keeping draws of one solver, and each of them with others that tune themselves.
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("solver", "batch", "keep"),
    slow_rows_but(
        list(product(SOLVERS, (None, 3), ("all", "last", "moments"))),
        ("ula", None, "all"),
        ("ula", 3, "last"),
        ("hmc", 3, "moments"),
        ("tempering", 3, "all"),
    ),
)
def test_an_extended_run_has_the_bits_of_an_undisturbed_one(tmp_path, solver, batch, keep):
    more = {"thin": 3} if keep == "all" else {}
    run = functools.partial(
        stk.sample,
        FIELD,
        SOLVERS[solver],
        chains=8,
        batch=batch,
        keep=keep,
        warmup=stk.Warmup(30, pilot=4),
        seed=3,
        **more,
    )
    run(steps=20, checkpoint=tmp_path / "c")
    run(steps=31, checkpoint=tmp_path / "c")
    assert_equal(run(steps=50, checkpoint=tmp_path / "c"), run(steps=50))


def test_a_run_stopped_on_its_way_is_extended_too(tmp_path):
    class Stop(Exception):
        pass

    left = [60]

    def energy(x):
        left[0] -= 1
        if left[0] == 0:
            raise Stop
        return FIELD.fn(x)

    run = functools.partial(
        stk.sample, stk.Energy(energy, (2,)), stk.ULA(0.1), chains=5, batch=2, seed=1
    )
    with pytest.raises(Stop):
        run(steps=40, checkpoint=tmp_path / "c")
    left[0] = -1
    assert_equal(run(steps=70, checkpoint=tmp_path / "c"), run(steps=70))


def test_a_run_is_not_shortened(tmp_path):
    run = functools.partial(stk.sample, FIELD, stk.ULA(0.1), chains=2, checkpoint=tmp_path / "c")
    run(steps=20)
    content = (tmp_path / "c").read_bytes()
    with pytest.raises(
        stk.CheckpointError,
        match="20 steps, and steps=10 asks for fewer: a run can be extended, not shortened",
    ):
        run(steps=10)
    with pytest.raises(
        stk.CheckpointError, match=r"seed: 0 there, 4 here.*not shortened; solver\.step_size"
    ):  # all that differs, not the first alone
        stk.sample(FIELD, stk.ULA(0.2), chains=2, steps=10, seed=4, checkpoint=tmp_path / "c")
    with pytest.raises(stk.CheckpointError, match="warmup: 0 there, 5 here"):
        run(steps=20, warmup=5)
    with pytest.raises(stk.CheckpointError, match="thin: 1 there, 2 here"):
        run(steps=40, thin=2)
    assert (tmp_path / "c").read_bytes() == content


@pytest.mark.parametrize("keep", ["all", "last", "moments"])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_run_of_one_chain_is_saved(tmp_path, name, keep):
    """Its statistics are columns of one row, which count as contiguous whatever their strides are."""
    run = {"chains": 1, "warmup": 4, "steps": 4, "keep": keep}
    found = stk.sample(FIELD, SOLVERS[name], **run, checkpoint=tmp_path / "run")
    assert_equal(stk.sample(FIELD, SOLVERS[name], **run, checkpoint=tmp_path / "run"), found)


@pytest.mark.parametrize(
    "solver", [stk.HMC(leapfrogs=30), stk.AdjustedMCLMC(leapfrogs=14)], ids=repr
)
def test_a_run_from_far_off_is_extended_whatever_its_steps_cost(tmp_path, solver):
    """The first steps of a warmup take fewer evaluations than later ones, where these are long."""
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
    run = {"init": torch.full((4, 2), 1e4), "warmup": 30, "seed": 1}
    stk.sample(field, solver, steps=2, checkpoint=tmp_path / "run", **run)
    longer = stk.sample(field, solver, steps=5, checkpoint=tmp_path / "run", **run)
    expected = stk.sample(field, solver, steps=5, **run)
    assert torch.equal(longer.x, expected.x)
    assert longer.cost == expected.cost


@pytest.mark.parametrize("make", [stk.ReverseSDE, stk.ProbabilityFlow])
def test_a_solver_with_a_grid_of_its_own_is_not_extended(tmp_path, make):
    field = stk.Diffusion(lambda x, t: 0.5 * x, (2,), predicts="data")
    stk.sample(field, make(steps=4), chains=2, checkpoint=tmp_path / "c")
    with pytest.raises(stk.CheckpointError, match=r"steps: 4 there, 8 here"):
        stk.sample(field, make(steps=8), chains=2, checkpoint=tmp_path / "c")


def compiled_run(path, solver, steps, warmup=None):
    return stk.sample(
        FIELD,
        solver,
        chains=8,
        steps=steps,
        warmup=warmup,
        seed=3,
        compile=True,
        checkpoint=path,
        progress=False,
    )


@pytest.mark.parametrize("solver", [stk.MALA(0.1), stk.NUTS(0.3, metric="none")], ids=repr)
def test_a_compiled_run_is_extended_from_any_step(tmp_path, made, solver):
    """By a loop, and where parts are compiled: all steps are made alike."""
    compiled_run(tmp_path / "c", solver, 13)
    assert_equal(compiled_run(tmp_path / "c", solver, 30), compiled_run(tmp_path / "d", solver, 30))


@pytest.mark.parametrize(("known", "warmup"), [(True, 0), (False, 0), (True, 5)])
def test_a_run_by_calls_of_several_steps_is_extended_from_a_multiple(
    tmp_path, made, no_loop, monkeypatch, known, warmup
):
    """Those of its warmup count. A file that does not say how its last steps were made is taken for one of such a run."""
    if not known:
        monkeypatch.setattr(resume, "opened", lambda *a, of=resume.opened: forgotten(*of(*a)))
    solver = stk.MALA(0.1)
    compiled_run(tmp_path / "c", solver, 13 - warmup, warmup)
    with pytest.raises(
        stk.CheckpointError, match="13 steps, the last few of which were not made by"
    ):
        compiled_run(tmp_path / "c", solver, 30, warmup)
    compiled_run(tmp_path / "d", solver, 16 - warmup, warmup)
    assert compiled_run(tmp_path / "d", solver, 30, warmup).x.shape[1] == 30


def forgotten(tensors, header):
    for batch in header["batches"]:
        del batch["alone"]
    return tensors, header
