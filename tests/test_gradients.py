"""Gradients through a run: those of the run itself, kept or computed again, and how much each holds in memory."""

import pytest
import torch

import scoretk as stk

SOLVERS = {
    "ula": (stk.ULA(0.05), False),
    "mala": (stk.MALA(0.01), False),
    "hmc": (stk.HMC(0.05, leapfrogs=3, metric="none"), False),
    "euler": (stk.ProbabilityFlow("euler", 12), True),
    "dpmpp_2m": (stk.ProbabilityFlow("dpmpp_2m", 12), True),
}


class Quartic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x):
        return self.scale * x.pow(4).sum(1) / 4


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        wide = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("wide", wide)

    def forward(self, x, t):
        return torch.tanh(self.scale * x @ self.wide) @ self.wide.T / 64


def run(name, grad, start=None, net=None):
    solver, timed = SOLVERS[name]
    net = net or (Net() if timed else Quartic())
    field = stk.Diffusion(net, (2,), stk.VP(), predicts="data") if timed else stk.Energy(net, (2,))
    x = (
        torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2
        if start is None
        else start
    )
    x = x.clone().requires_grad_(bool(grad))
    steps = {} if timed else {"steps": 12}
    draws = stk.sample(field, solver, init=x, grad=grad, seed=3, keep="last", **steps)
    return draws.final, x, net


def gradients(name, grad):
    final, x, net = run(name, grad)
    final.square().sum().backward()
    return x.grad, net.scale.grad


@pytest.mark.parametrize("name", SOLVERS)
def test_computed_again_they_are_the_same(name):
    for kept, again in zip(gradients(name, True), gradients(name, "checkpoint"), strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad", [True, "checkpoint"])
@pytest.mark.parametrize("name", SOLVERS)
def test_they_are_those_of_finite_differences(name, grad):
    to_start, to_scale = gradients(name, grad)
    _, x, net = run(name, False)
    direction = torch.randn(
        x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )

    def value(shift, turn):
        with torch.no_grad():
            net.scale.fill_((1.5 if isinstance(net, Quartic) else 0.7) + turn)
        return float(run(name, False, x + shift * direction, net)[0].square().sum())

    h = 1e-6
    along = (value(h, 0) - value(-h, 0)) / (2 * h)
    assert along == pytest.approx(float((to_start * direction).sum()), rel=1e-5, abs=1e-7)
    assert (value(0, h) - value(0, -h)) / (2 * h) == pytest.approx(
        float(to_scale), rel=1e-5, abs=1e-7
    )


def held(name, grad):
    """Bytes that autograd holds for the way back when the run is done."""
    kept = {}

    def pack(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        final, *_ = run(name, grad)
    assert final.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", ["hmc", "euler"])
def test_computing_again_holds_less(name):
    assert held(name, "checkpoint") < 0.35 * held(name, True)


def test_dropout_stays_off_on_the_way_back():
    net = torch.nn.Sequential(Net0(), torch.nn.Dropout(0.5)).double()
    gradients = []
    for grad in (True, "checkpoint"):
        net.zero_grad()
        x = torch.ones((3, 2), dtype=torch.float64)
        stk.sample(
            stk.Score(net, (2,)), stk.ULA(0.1), init=x, steps=4, grad=grad
        ).final.sum().backward()
        gradients.append(net[0].scale.grad.clone())
    assert net.training
    assert torch.equal(*gradients)


class Net0(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return -self.scale * x


def test_other_words_are_refused():
    for grad in ("everything", 2, None):
        with pytest.raises(stk.InvalidArgument, match="grad"):
            run("ula", grad)


def test_under_inference_mode_the_error_says_what_to_use():
    field = stk.Energy(Quartic(), (2,))
    with torch.inference_mode(), pytest.raises(stk.InvalidArgument, match="no_grad"):
        field.score(torch.zeros(1, 2, dtype=torch.float64))
