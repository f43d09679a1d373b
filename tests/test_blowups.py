"""Blow-ups on a grid: a chain that is finite, and farther out than its path and its start know, is DIVERGED with its step."""

import pytest
import torch

import scoretk as stk
from scoretk.models.targets.mixture import gaussian
from tests.marks import slow_but

UNSTABLE = [
    stk.ProbabilityFlow("euler", 50),
    stk.ProbabilityFlow("heun", 50),
    stk.ProbabilityFlow("adams_3", 50),
    stk.ReverseSDE("euler", 50),
    stk.ReverseSDE("dpmpp_2m", 50),
    stk.AnnealedLangevin(20),
]
PATHS = [stk.VP(), stk.Linear(), stk.EDM(), stk.VE(0.01, 50.0)]


def growing(path, factor=50.0):
    """A denoiser that takes x for `factor` times the data; where `grow` is False, exact for data at the origin."""
    return stk.Diffusion(
        lambda x, t, grow: torch.where(grow[:, None], factor * x, 0.0), (2,), path, "data"
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", UNSTABLE, ids=repr)
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


@pytest.mark.parametrize("scale", slow_but([1e-4, 1.0, 1e4, 1e6], 1e-4, 1e6))
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
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
