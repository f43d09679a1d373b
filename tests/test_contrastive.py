"""Contrastive divergence against the exact gradient of a Gaussian energy; the buffer's lineages; failures not hidden."""

import functools
import math

import pytest
import torch
from torch import nn

import scoretk as stk
from tests.evidence import mean_z, z_limit
from tests.marks import slow_but


class GaussianEnergy(nn.Module):
    """`E(x) = |x - mu|^2 / (2 s^2)` with s = exp(log_s): its likelihood gradient is known."""

    def __init__(self, dim, mu=0.4, s=0.8):
        super().__init__()
        self.mu = nn.Parameter(torch.full((dim,), mu, dtype=torch.float64))
        self.log_s = nn.Parameter(torch.tensor(math.log(s), dtype=torch.float64))

    def forward(self, x):
        return (x - self.mu).square().sum(1) / (2 * torch.exp(2 * self.log_s))


def data(n, dim, seed=0):
    return (
        1.3
        * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        - 0.2
    )


@functools.cache
def gradients(start, dim, solver=None, steps=24, repeats=40, n=500):
    """CD's gradient minus the exact one, a row a repeat: for mu and log s."""
    rows = []
    for r in range(repeats):
        net = GaussianEnergy(dim)
        field, batch = stk.Energy(net, (dim,)), data(n, dim, seed=r)
        cd = stk.ContrastiveDivergence(solver or stk.MALA(0.4), steps=steps, start=start, seed=r)
        cd(field, batch).loss.backward()
        s2 = float(torch.exp(2 * net.log_s.detach()))
        exact_mu = -(batch.mean(0) - 0.4) / s2  # d/dmu (mean E(data) + log Z)
        exact_s = dim - (batch - 0.4).square().sum(1).mean() / s2
        rows.append(torch.cat([net.mu.grad - exact_mu, (net.log_s.grad - exact_s)[None]]))
    return torch.stack(rows)


@pytest.mark.thorough
@pytest.mark.parametrize("dim", slow_but([1, 2, 8], 2))
@pytest.mark.parametrize("start", slow_but(["data", "noise"], "noise"))
def test_long_chains_give_the_exact_gradient(start, dim):
    z = mean_z(gradients(start, dim), torch.zeros(dim + 1))
    assert z.abs().max() < z_limit(dim + 1)


@pytest.mark.thorough
def test_the_gradient_test_sees_a_factor_and_a_short_chain():
    """Half the gradient, and CD-1 with tiny steps (whose negatives are still the data), are both caught."""
    right = gradients("data", 2)
    assert mean_z(
        gradients("data", 2, stk.MALA(1e-3), steps=1), torch.zeros(3)
    ).abs().max() > 2 * z_limit(3)
    exact_s = 2 - data(500, 2).sub(0.4).square().sum(1).mean() / 0.64
    assert mean_z(right - 0.5 * exact_s, torch.zeros(3)).abs().max() > 2 * z_limit(3)


@pytest.mark.slow
def test_learning_recovers_the_gaussian():
    net = GaussianEnergy(2)
    field = stk.Energy(net, (2,))
    cd = stk.ContrastiveDivergence(
        stk.MALA(0.5), steps=10, start=stk.ReplayBuffer(400, refresh=0.02)
    )
    optimiser, batch = torch.optim.Adam(net.parameters(), 0.05), data(400, 2)
    for _ in range(150):
        optimiser.zero_grad()
        cd(field, batch).loss.backward()
        optimiser.step()
    spread = float((batch - batch.mean(0)).square().mean().sqrt())
    assert float((net.mu.detach() - batch.mean(0)).abs().max()) < 0.2
    assert float(torch.exp(net.log_s.detach())) == pytest.approx(spread, rel=0.1)
    assert 0 < cd.last["accept"] <= 1


class TestReplayBuffer:
    @pytest.mark.thorough
    def test_lineages_end_by_refresh_only(self):
        """After 50 updates without refresh every one of 1000 lineages is alive; slots written in turn would lose most."""
        field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
        for refresh in (0.0, 0.05):
            buffer = stk.ReplayBuffer(1000, refresh=refresh)
            cd = stk.ContrastiveDivergence(stk.ULA(0.1), steps=1, start=buffer)
            for step in range(50):
                cd(field, data(100, 2, seed=step))
            alive = int((buffer.lineage < 1000).sum())
            assert len(buffer.lineage.unique()) == 1000
            if refresh == 0:
                assert alive == 1000
                assert int(buffer.age.sum()) == 50 * 100
            else:
                started = int(buffer.lineage.max()) - 999
                assert abs(started - 250) < 6 * math.sqrt(250)
                assert alive >= 1000 - started

    def test_slots_read_are_the_slots_written(self):
        field, buffer = (
            stk.Energy(lambda x: x.square().sum(1) / 2, (2,)),
            stk.ReplayBuffer(50, refresh=0.0),
        )
        cd = stk.ContrastiveDivergence(stk.ULA(0.1), steps=3, start=buffer)
        cd(field, data(50, 2))
        before = buffer.samples.clone()
        negatives = cd(field, data(10, 2)).negatives
        changed = (buffer.samples != before).any(1)
        assert int(changed.sum()) == 10
        there = torch.cdist(
            negatives, buffer.samples[changed], compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert float(there.min(1).values.max()) == 0.0

    def test_too_small_for_the_batch(self):
        field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
        with pytest.raises(stk.InvalidArgument, match="slots of the replay buffer"):
            stk.ContrastiveDivergence(stk.ULA(0.1), start=stk.ReplayBuffer(5))(field, data(6, 2))


def test_training_resumes_exactly():
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))

    def make():
        return stk.ContrastiveDivergence(stk.ULA(0.1), steps=2, start=stk.ReplayBuffer(30), seed=3)

    straight, first, second = make(), make(), make()
    for i in range(4):
        last = straight(field, data(8, 2, seed=i))
    for i in range(2):
        first(field, data(8, 2, seed=i))
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for i in range(2, 4):
        resumed = second(field, data(8, 2, seed=i))
    assert torch.equal(last.negatives, resumed.negatives)


def test_failed_chains_are_counted_and_total_failure_raises():
    cliff = stk.Energy(lambda x: torch.where(x[:, 0] < 0, torch.nan, x.square().sum(1)), (2,))
    cd = stk.ContrastiveDivergence(stk.ULA(0.01), steps=2, start="data")
    batch = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    assert torch.isfinite(
        cd(
            stk.Energy(lambda x: torch.where(x[:, 0] < -5, torch.nan, x.square().sum(1)), (2,)),
            batch,
        ).loss
    )
    cd(cliff, batch)
    assert cd.last["failed"] == 1
    with pytest.raises(stk.ChainFailure):
        cd(cliff, -batch.abs())


def test_the_model_keeps_its_mode_and_only_the_loss_has_a_graph():
    net = GaussianEnergy(2)
    cd = stk.ContrastiveDivergence(stk.MALA(0.4), steps=3)
    loss, negatives = cd(stk.Energy(net, (2,)), data(5, 2))
    assert net.training
    assert loss.requires_grad
    assert not negatives.requires_grad
    assert net.mu.grad is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"start": "dat"}, "start"),
        ({"seed": -1}, "seed"),
        ({"solver": stk.ProbabilityFlow()}, "solver"),
    ],
)
def test_wrong_arguments(options, named):
    with pytest.raises(stk.InvalidArgument, match=named):
        stk.ContrastiveDivergence(**({"solver": stk.ULA(0.1)} | options))


@pytest.mark.parametrize(
    "solver",
    [stk.HMC(), stk.ChEES(), stk.NUTS(), stk.MCLMC(), stk.PreconditionedLangevin()],
    ids=repr,
)
def test_what_warmup_would_tune_is_refused(solver):
    with pytest.raises(stk.InvalidArgument, match="nothing to tune"):
        stk.ContrastiveDivergence(solver)


class Shifted(nn.Module):
    """`E(x; shift) = |x - w shift|^2 / 2`: of each row its own law."""

    event_shape = (2,)

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))

    def energy(self, x, shift):
        return (x - self.w * shift[:, None]).square().sum(1) / 2


@pytest.mark.parametrize("start", ["data", "noise"])
def test_each_chain_is_under_the_condition_of_its_datum(start):
    field, x = Shifted(), data(24, 2)
    shift = torch.linspace(-50.0, 50.0, 24, dtype=torch.float64)
    cd = stk.ContrastiveDivergence(stk.MALA(0.3), steps=300, start=start)
    loss, negatives = cd(field, x, cond={"shift": shift})
    assert (negatives.mean(1) - shift).abs().max() < 4.5  # deviations of the mean of two: .7
    loss.backward()
    pulls = [(shift * (field.w.detach() * shift - y.mean(1)) * 2).mean() for y in (x, negatives)]
    torch.testing.assert_close(field.w.grad, pulls[0] - pulls[1])
    alone = stk.ContrastiveDivergence(stk.MALA(0.3), steps=300, start=start)
    half = alone(field, x[:12], {"shift": shift[:12]})
    torch.testing.assert_close(half.negatives, negatives[:12])


@pytest.mark.parametrize(
    ("cond", "start", "named"),
    [
        ({"shift": torch.zeros(3)}, "data", "cond"),
        ({"other": torch.zeros(24)}, "data", "cond"),
        ([1], "data", "cond"),
        ({"shift": torch.zeros(24)}, stk.ReplayBuffer(30), "cond"),
        (None, "data", "shift"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, start, named):
    cd = stk.ContrastiveDivergence(stk.ULA(0.1), steps=2, start=start)
    with pytest.raises(stk.InvalidArgument, match=named):
        cd(Shifted(), data(24, 2), cond)
