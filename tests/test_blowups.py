"""Blow-ups on a grid: a chain that is finite, and farther out than its path and its start know, is DIVERGED with its step."""

from typing import NamedTuple

import pytest
import torch

import scoretk as stk
from scoretk.models.targets.mixture import gaussian
from scoretk.run.moment import Moment, outcome
from tests.marks import in_turn


class Place(NamedTuple):
    x: torch.Tensor


UNSTABLE = [
    stk.ProbabilityFlow("euler", 50),
    stk.ProbabilityFlow("heun", 50),
    stk.ProbabilityFlow("adams_3", 50),
    stk.ReverseSDE("euler", 50),
    stk.ReverseSDE("dpmpp_2m", 50),
    stk.AnnealedLangevin(20, 5),
]
PATHS = [stk.VP(), stk.Linear(), stk.EDM(), stk.VE(0.01, 50.0)]


def named(case):
    """Paths by their kinds, all else as it is written."""
    return type(case).__name__ if case in PATHS else repr(case)


def growing(path, factor=50.0):
    """A denoiser that takes x for `factor` times the data; where `grow` is False, exact for data at the origin."""
    return stk.Diffusion(
        lambda x, t, grow: torch.where(grow[:, None], factor * x, 0.0), (2,), path, "data"
    )


@pytest.mark.parametrize(("solver", "path"), in_turn(UNSTABLE, PATHS), ids=named)
def test_a_blow_up_on_a_grid_is_diverged_and_its_neighbours_are_not(path, solver):
    """With the step, and the position before it; in float64 too, where nothing overflows."""
    for dtype in (torch.float32, torch.float64):
        grow = torch.tensor([True, False, True])
        draws = stk.sample(
            growing(path), solver, chains=3, cond={"grow": grow}, dtype=dtype, keep="all"
        )
        assert draws.status.tolist() == [2, 0, 2]
        assert float(draws.final.abs().max()) < 1e10
        step = int(draws.failed_at[0])
        assert 0 < step < draws.x.shape[1]
        assert bool((draws.x[0, step:] == draws.final[0]).all())
        well = stk.sample(
            growing(path), solver, chains=3, cond={"grow": ~torch.ones_like(grow)}, dtype=dtype
        )
        assert torch.equal(well.final[1], draws.final[1])


@pytest.mark.thorough
def test_a_blow_up_without_a_path_is_diverged():
    field = stk.Velocity(lambda x, t: 100 * x, (2,), base=torch.ones(1, 2))
    assert stk.sample(field, stk.ProbabilityFlow("rk4", 50), chains=3).failures == {"DIVERGED": 3}
    with pytest.raises(stk.ChainFailure, match="step 8"):
        stk.sample(field, stk.ProbabilityFlow("rk4", 50), chains=3, on_failure="raise")
    cold = stk.AnnealedLangevin(8, 100, step_size=30.0)
    unstable = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
    assert stk.sample(unstable, cold, chains=3, dtype=torch.float64).failures == {"DIVERGED": 3}


def test_without_reach_a_blow_up_is_an_answer(monkeypatch):
    """The mutant: 1e15 and more, and nothing said."""
    monkeypatch.setattr("scoretk.run.moment.reach_of", lambda *_: None)
    draws = stk.sample(
        growing(stk.VP()),
        UNSTABLE[0],
        chains=3,
        cond={"grow": torch.ones(3, dtype=torch.bool)},
        dtype=torch.float64,
    )
    assert draws.failures == {}
    assert float(draws.final.abs().max()) > 1e15


@pytest.mark.thorough
@pytest.mark.parametrize(("path", "scale"), in_turn(PATHS, [1e-4, 1.0, 1e4, 1e6]), ids=named)
def test_data_of_any_usual_scale_raise_no_alarm(path, scale):
    for width in (scale, 1e-3 * scale):
        field = gaussian(dim=2, mean=scale, std=width).noised(path)
        for solver in UNSTABLE:
            assert not stk.sample(field, solver, chains=8).failures, solver


def test_a_run_that_was_stopped_diverges_at_the_same_step(tmp_path):
    left = [10]

    def net(x, t):
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("stopped")
        return 50 * x

    field, saved = stk.Diffusion(net, (2,), stk.VP(), "data"), tmp_path / "run.ckpt"
    start = torch.tensor([[1e-3, 0.0], [1.0, 1.0], [300.0, 0.0]])
    with pytest.raises(RuntimeError, match="stopped"):
        stk.sample(field, UNSTABLE[0], init=start, checkpoint=saved)
    resumed = stk.sample(field, UNSTABLE[0], init=start, checkpoint=saved)
    straight = stk.sample(field, UNSTABLE[0], init=start)
    assert straight.failures == {"DIVERGED": 3}
    assert torch.equal(resumed.failed_at, straight.failed_at)
    assert torch.equal(resumed.final, straight.final)


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
def test_a_compiled_run_diverges_at_the_same_step():
    field = growing(stk.VP())
    cond = {"grow": torch.tensor([True, False, True])}
    eager, compiled = (
        stk.sample(field, UNSTABLE[0], chains=3, cond=cond, compile=c) for c in (False, True)
    )
    assert compiled.status.tolist() == eager.status.tolist() == [2, 0, 2]
    assert torch.equal(compiled.failed_at, eager.failed_at)


# --- kernels without a grid, which no acceptance turns back

QUADRATIC = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
TOO_LONG = {
    "ula": (stk.ULA(3.0), 20),
    "ula, longer": (stk.ULA(2.2), 120),
    "underdamped": (stk.Underdamped(2.5), 40),
    "preconditioned": (stk.PreconditionedLangevin(3.0, metric="none", adjusted=False), 20),
}
WELL = {
    "ula": stk.ULA(0.1),
    "a third below the limit": stk.ULA(1.3),
    "underdamped": stk.Underdamped(0.3),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_kernel_that_blows_up_before_anything_overflows_is_diverged(name):
    solver, steps = TOO_LONG[name]
    for keep in ("last", "moments", "all"):
        draws = stk.sample(QUADRATIC, solver, chains=8, steps=steps, keep=keep)
        assert draws.failures == {"DIVERGED": 8}
        assert draws.failed_at.tolist() == [steps] * 8
    with pytest.raises(stk.ChainFailure, match=f"DIVERGED at step {steps}"):
        stk.sample(QUADRATIC, solver, chains=8, steps=steps, on_failure="raise")


@pytest.mark.parametrize(("far", "name"), in_turn([0.0, 1e4], WELL, "ula"))
def test_what_wanders_or_goes_to_its_target_raises_no_alarm(name, far):
    wide = stk.Energy(lambda x: ((x - far) / (1 + far)).square().sum(1) / 2, (2,))
    there = stk.Energy(lambda x: (x - far).square().sum(1) / 2, (2,))
    for field in (wide, there, stk.Score(lambda x: 0 * x, (2,))):
        for chains in (1, 16):
            draws = stk.sample(field, WELL[name], chains=chains, steps=60, keep="last")
            assert draws.failures == {}


@pytest.mark.parametrize(
    ("others", "end", "status"),
    [
        (1e3, 1e3, 0),  # from the origin to where all are
        (1e3, 2e5, 2),  # and beyond
        (1.0, 99.0, 0),  # a hundredfold is the limit, and 1 the least of scales
        (1.0, 101.0, 2),
        (1e-3, 99.0, 0),
    ],
)
def test_how_far_is_too_far_is_told_by_where_all_chains_were(others, end, status):
    earlier = torch.tensor([0.0, *[others] * 6])
    moment = Moment(
        Place(torch.tensor([[end, 0.0], *[[0.0, others]] * 6])),
        torch.zeros(7, dtype=torch.int64),
        torch.full((7,), -1),
        step=40,
        looks=torch.stack([earlier, torch.full_like(earlier, torch.nan)]),
    )
    found, failed_at = outcome(moment)
    assert found.tolist() == [status, 0, 0, 0, 0, 0, 0]
    assert failed_at.tolist() == [40 if status else -1, -1, -1, -1, -1, -1, -1]


def test_blow_ups_are_told_in_resumed_and_in_compiled_blocks_alike(tmp_path):
    saved, run = tmp_path / "run.ckpt", {"chains": 4, "seed": 3}
    for steps in (12, 24, 40):
        draws = stk.sample(QUADRATIC, stk.ULA(3.0), steps=steps, checkpoint=saved, **run)
        assert draws.failures == stk.sample(QUADRATIC, stk.ULA(3.0), steps=steps, **run).failures
        assert torch.equal(draws.x, stk.sample(QUADRATIC, stk.ULA(3.0), steps=steps, **run).x)


def test_without_a_look_back_a_kernels_blow_up_is_an_answer(monkeypatch):
    """The mutant."""
    monkeypatch.setattr("scoretk.run.moment.GROWN", float("inf"))
    draws = stk.sample(QUADRATIC, stk.ULA(3.0), chains=8, steps=20, keep="last")
    assert draws.failures == {}
    assert float(draws.final.abs().min()) > 1e4


SLOWLY = [(stk.ULA(2.046), 100, 130), (stk.ULA(2.1), 40, 60), (stk.ULA(2.035), 70, 200)]


def of_an_extension(folder, solver, short, long):
    """The outcomes of a run that was extended, and of one that never stopped."""
    run = {"chains": 64, "seed": 3, "keep": "last"}
    for steps in (short, long):
        extended = stk.sample(QUADRATIC, solver, steps=steps, checkpoint=folder / "run.ckpt", **run)
    undisturbed = stk.sample(QUADRATIC, solver, steps=long, **run)
    assert torch.equal(extended.x, undisturbed.x)
    return extended.status, undisturbed.status


@pytest.mark.parametrize(("solver", "short", "long"), SLOWLY)
def test_an_extended_run_tells_of_the_blow_ups_of_an_undisturbed_one(tmp_path, solver, short, long):
    extended, undisturbed = of_an_extension(tmp_path, solver, short, long)
    assert torch.equal(extended, undisturbed)


def test_looks_at_parts_of_the_run_would_tell_of_others(tmp_path, monkeypatch):
    """The mutant: a run is looked at after a quarter and a half of its length."""

    def next_look(self, step, _):
        return next(n for n in (self.total // 4, self.total // 2, 10**9) if n > step)

    monkeypatch.setattr("scoretk.run.schedule.Schedule.next_look", next_look)
    extended, undisturbed = of_an_extension(tmp_path, *SLOWLY[0])
    assert not torch.equal(extended, undisturbed)
