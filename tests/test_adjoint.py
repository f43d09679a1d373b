"""Gradients by the adjoint equation: against finite differences, the plain graph and closed forms; memory; every refusal."""

import math
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

import scoretk as stk
from scoretk.ode import adjoint, rowwise
from scoretk.ode.registry import every_method
from scoretk.solvers import probability_flow
from tests.marks import slow_but, slow_rows_but

TIGHT, USUAL = {"rtol": 1e-10, "atol": 1e-10}, {"rtol": 1e-6, "atol": 1e-6}
PATHS = (stk.VP(), stk.Linear(), stk.VE(0.05, 5.0))
ADAPTIVE = [m.name for m in every_method() if m.adaptive]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Net(torch.nn.Module):
    """A denoiser of data about one wide, with a matrix of its own, and a condition a row."""

    def __init__(self, dtype=torch.float64, path=PATHS[0]):
        super().__init__()
        self.path = path
        self.weight = torch.nn.Parameter((normal(3, 3, seed=1) / 2).to(dtype))
        self.frozen = torch.nn.Parameter(normal(3, seed=2).to(dtype), requires_grad=False)

    def forward(self, x, t, shift):
        alpha, sigma = self.path.alpha(t)[:, None], self.path.sigma(t)[:, None]
        known, guess = (
            x * alpha,
            torch.tanh(x @ self.weight + self.frozen + t[:, None] * shift) @ self.weight.T,
        )
        return (known + sigma**2 * guess) / (alpha**2 + sigma**2)


def run(grad, method="dopri5", path=PATHS[0], steps=None, net=None, x=None, shift=None, **options):
    net = net or Net(path=path)
    field = stk.Diffusion(net, (3,), path, "data")
    x = float(path.sigma(0.0)) * normal(5, 3, seed=3) if x is None else x
    shift = normal(5, 3, seed=4) if shift is None else shift
    if grad:
        x, shift = x.clone().requires_grad_(), shift.clone().requires_grad_()
    solver = stk.ProbabilityFlow(method, steps=steps, **(USUAL | options))
    return stk.sample(field, solver, init=x, cond={"shift": shift}, grad=grad), net, x, shift


def gradients(grad, loss=lambda x: x.pow(3).sum(), **options):
    draws, net, x, shift = run(grad, **options)
    assert draws.failures == {}
    loss(draws.final).backward()
    assert net.frozen.grad is None
    return net.weight.grad, x.grad, shift.grad


def largest_difference(found, truth):
    """Of any number, relative to the largest of its kind."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, truth, strict=True)
    )


# --- the gradients

ALLOWED = 1e-4  # at tolerances of 1e-6 a step


# One method on each path, and each family of methods on one.
@pytest.mark.parametrize(
    ("method", "path"),
    slow_rows_but(
        [(method, path) for method in ADAPTIVE for path in PATHS],
        *(("dopri5", path) for path in PATHS),
        ("tsit5", PATHS[0]),
        ("dopri8", PATHS[0]),
    ),
    ids=str,
)
def test_they_are_those_of_the_plain_graph(method, path):
    options = {"method": method, "path": path}
    allowed = (
        10 * ALLOWED if method in ("fehlberg2", "adaptive_heun") else ALLOWED
    )  # the plain graph's error is the larger one
    assert largest_difference(gradients("adjoint", **options), gradients(True, **options)) < allowed


@pytest.mark.thorough
@pytest.mark.parametrize("method", slow_but(["dopri5", "tsit5", "dopri8"], "dopri5"))
def test_they_are_those_of_finite_differences(method):
    options = {"method": method, "steps": 2, "path": PATHS[2]} | TIGHT
    found = gradients("adjoint", **options)
    net, x, shift = (
        Net(path=PATHS[2]),
        PATHS[2].sigma_max * normal(5, 3, seed=3),
        normal(5, 3, seed=4),
    )
    places = (net.weight.data, x, shift)
    for place, gradient in zip(places, found, strict=True):
        direction, values = normal(*place.shape, seed=5), []
        for sign in (1, -2):
            place += sign * 1e-4 * direction
            values.append(
                float(run(False, net=net, x=x, shift=shift, **options)[0].final.pow(3).sum())
            )
        place += 1e-4 * direction
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(
            float((gradient * direction).sum()), rel=1e-6
        )


def test_they_are_exact_where_the_flow_is_known():
    """dx/dt = -theta x: x_1 = x_0 exp(-theta), a row's share of dL/dtheta is -x_1 dL/dx_1, and half of the rows have no loss."""
    theta = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))
    field = stk.Velocity(Scaled(theta), (2,), base=torch.ones(1, 2))
    x = normal(6, 2).requires_grad_()
    draws = stk.sample(field, stk.ProbabilityFlow("dopri5", **TIGHT), init=x, grad="adjoint")
    draws.final[::2].square().sum().backward()
    decayed = x.detach() * math.exp(-1.3)
    torch.testing.assert_close(x.grad[::2], 2 * decayed[::2] * math.exp(-1.3), rtol=1e-7, atol=0)
    assert not x.grad[1::2].any()
    torch.testing.assert_close(theta.grad, -2 * decayed[::2].square().sum(), rtol=1e-7, atol=0)


class Scaled(torch.nn.Module):
    """-theta x^power."""

    def __init__(self, theta, power=1, seen=None):
        super().__init__()
        self.theta, self.power, self.seen = theta, power, seen

    def forward(self, x, t):
        if self.seen is not None:
            self.seen.append((len(x), float(t.min()), float(t.max())))
        return -self.theta * x**self.power


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_a_loss_times_a_number_has_gradients_times_it(factor):
    """However small the loss: the tolerances are relative to the adjoint's size."""
    ordinary = gradients("adjoint", rtol=1e-4, atol=1e-4)
    for one, other in zip(
        ordinary,
        gradients("adjoint", lambda x: factor * x.pow(3).sum(), rtol=1e-4, atol=1e-4),
        strict=True,
    ):
        torch.testing.assert_close(other / factor, one, rtol=1e-9, atol=0)


@pytest.mark.thorough
def test_a_row_goes_back_by_itself():
    """Its gradient alone is that in the batch, to the bit; and the gradient to the weights is the sum of the rows'."""

    def at(rows):
        field = stk.Velocity(
            Scaled(theta := torch.nn.Parameter(torch.tensor(1.3).double()), 3),
            (2,),
            base=torch.ones(1, 2),
        )
        x = (
            (torch.tensor([[0.1], [1.0], [6.0], [30.0]]) * torch.ones(2))
            .double()[rows]
            .requires_grad_()
        )
        stk.sample(
            field, stk.ProbabilityFlow("dopri5"), init=x, grad="adjoint"
        ).final.square().sum().backward()
        return x.grad, theta.grad

    together, alone = at([0, 1, 2, 3]), [at([i]) for i in range(4)]
    assert torch.equal(together[0], torch.cat([to_x for to_x, _ in alone]))
    torch.testing.assert_close(
        together[1], sum(to_theta for _, to_theta in alone), rtol=1e-12, atol=0
    )


def test_float32_stays_float32():
    net, x = Net(torch.float32), normal(5, 3, seed=3).float()
    found = gradients(
        "adjoint", net=net, x=x, shift=normal(5, 3, seed=4).float(), rtol=1e-5, atol=1e-5
    )
    assert all(one.dtype == torch.float32 for one in found)
    assert (
        largest_difference([one.double() for one in found], gradients(True, rtol=1e-5, atol=1e-5))
        < 2e-3
    )


@pytest.mark.thorough
def test_an_energy_field_in_time_and_a_scalar_event():
    """A score that is itself a gradient, and x of shape (rows,)."""
    scale = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

    class Scalar(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = scale

        def forward(self, x, t):
            with torch.enable_grad():
                y = x if x.requires_grad else x.detach().requires_grad_()
                energy = (self.scale * y).cosh().log().sum()
                return torch.autograd.grad(energy, y, create_graph=True)[0]

    def gradient(grad):
        scale.grad = None
        x = normal(4, seed=6).requires_grad_()
        field = stk.Diffusion(Scalar(), (), stk.VP(), "data")
        stk.sample(
            field, stk.ProbabilityFlow("tsit5", rtol=1e-6, atol=1e-6), init=x, grad=grad
        ).final.square().sum().backward()
        return x.grad, scale.grad

    for found, truth in zip(gradient("adjoint"), gradient(True), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-7)


# --- what it takes


def held(grad, **options):
    """Bytes that autograd holds for the way back when the run is done."""
    kept = {}

    def pack(value):
        kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        draws, *_ = run(grad, **options)
    assert draws.final.requires_grad
    return sum(value.untyped_storage().nbytes() for value in kept.values())


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_steps():
    coarse, fine = {"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-9, "atol": 1e-9}
    assert held("adjoint", **fine) == held("adjoint", **coarse)
    assert held(True, **fine) > 3 * held(True, **coarse)
    assert held("adjoint", **fine) < 0.02 * held(True, **fine)


def test_no_evaluation_outside_the_interval_and_none_for_rows_without_a_loss():
    seen = []
    field = stk.Velocity(
        Scaled(torch.nn.Parameter(torch.tensor(2.0)), seen=seen), (2,), base=torch.ones(1, 2)
    )
    draws = stk.sample(field, stk.ProbabilityFlow("dopri5"), init=torch.ones(4, 2), grad="adjoint")
    forwards = len(seen)
    draws.final[1].sum().backward()
    assert {rows for rows, *_ in seen[forwards:]} == {1}
    assert min(low for _, low, _ in seen) >= 0
    assert max(high for *_, high in seen) <= 1


def test_the_way_back_finds_the_model_as_the_way_there_did():
    """In eval mode, though the run is over; then in the mode that it was in, its batch statistics untouched."""

    class Dropping(Net):
        def forward(self, x, t, shift):
            return super().forward(torch.nn.functional.dropout(x, training=self.training), t, shift)

    found = gradients("adjoint", net=(net := Dropping().train()))
    assert net.training
    assert all(map(torch.equal, found, gradients("adjoint")))


def test_the_draws_are_those_of_a_run_without_gradients():
    for method in ("dopri5", "dopri8"):
        assert torch.equal(
            run("adjoint", method, steps=3)[0].final, run(False, method, steps=3)[0].final
        )


# --- failures and refusals


def test_a_row_that_failed_passes_no_gradient_on():
    x = torch.tensor([[0.5], [1e3]]).double().requires_grad_()
    field = stk.Velocity(
        Scaled(torch.nn.Parameter(torch.tensor(-1.0).double()), 2), (1,), base=torch.ones(1, 1)
    )
    draws = stk.sample(
        field, stk.ProbabilityFlow("dopri5", max_steps=60, **USUAL), init=x, grad="adjoint"
    )
    assert draws.status[0] == 0
    assert draws.status[1] != 0
    draws.final.sum().backward()
    torch.testing.assert_close(
        x.grad, torch.tensor([[1 / 0.25], [0.0]]).double(), rtol=1e-4, atol=0
    )


def test_a_way_back_that_fails_says_so():
    with pytest.raises(stk.ScoretkError, match=r"1 row.*first row 2.*NONFINITE"):
        gradients("adjoint", lambda x: x[2].sum() * math.inf)


def test_weights_changed_before_the_way_back_are_noticed():
    draws, net, *_ = run("adjoint")
    net.weight.data = net.weight.data  # what `data` does is not seen; what an optimiser does is
    with torch.no_grad():
        net.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        draws.final.sum().backward()


def test_a_dependence_that_the_field_hides_is_refused():
    hidden = threading.local()  # whose attributes are not to be seen from outside its thread
    hidden.weight = torch.ones(3, dtype=torch.float64, requires_grad=True)

    with pytest.raises(stk.InvalidArgument, match=r"shape \(3,\) is hidden"):
        run("adjoint", net=lambda x, t, shift: x * hidden.weight)


def test_what_a_module_holds_unregistered_is_shown():
    class Unregistered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = [torch.ones(3, dtype=torch.float64, requires_grad=True)]

        def forward(self, x, t, shift):
            alpha, sigma = PATHS[0].alpha(t)[:, None], PATHS[0].sigma(t)[:, None]
            return alpha * x + sigma**2 * self.parts[0]  # of N(1, 1)

    def gradient(grad):
        net = Unregistered()
        run(grad, net=net)[0].final.square().sum().backward()
        return net.parts[0].grad

    assert torch.allclose(gradient("adjoint"), gradient(True), rtol=1e-4)


@pytest.mark.parametrize(
    "solver",
    [stk.ProbabilityFlow("euler"), stk.ProbabilityFlow(), stk.ReverseSDE(), stk.AnnealedLangevin()],
)
def test_it_is_refused_where_the_steps_are_the_map(solver):
    with pytest.raises(
        stk.InvalidArgument,
        match=r"grad: expected True or 'checkpoint' with .*ProbabilityFlow\('dopri5'\)",
    ):
        stk.sample(stk.Diffusion(Net(), (3,), stk.VP(), "data"), solver, chains=2, grad="adjoint")
    with pytest.raises(stk.InvalidArgument, match="adaptive"):
        stk.ProbabilityFlow("euler", adjoint=True)


def test_compiled_and_checkpointed_runs_are_refused():
    for options in ({"compile": True}, {"checkpoint": "nowhere"}):
        with pytest.raises(stk.InvalidArgument, match="grad"):
            stk.sample(
                stk.Diffusion(Net(), (3,)),
                stk.ProbabilityFlow("dopri5"),
                chains=2,
                grad="adjoint",
                **options,
            )


# --- mutants


def mutated(module, old, new):
    """The module with a piece of its text replaced."""
    text = Path(module.__file__).read_text()
    assert text.count(old) == 1, old
    made = ModuleType(module.__name__)
    exec(compile(text.replace(old, new), "mutant", "exec"), made.__dict__)
    return made


EVALUATED = """    with torch.enable_grad():
        y = x.detach().requires_grad_()
        return y, way.velocity_of(rows)(y, t)"""
WITHOUT_GRAPH = "    velocity = way.velocity_of(rows)\n" + EVALUATED.replace(
    "way.velocity_of(rows)", "velocity"
)
MUTANTS = {
    "the adjoint's sign": (adjoint, "-_pulled(u, [y]", "_pulled(u, [y]"),
    "the integral's sign": (adjoint, "pull = -z", "pull = z"),
    "units not given back to the weights": (adjoint, "weight * size[which]", "weight"),
    "units not given back to the start": (
        adjoint,
        "found.x[:, 1] * across(size, a)",
        "found.x[:, 1]",
    ),
    "conditions of other rows": (
        adjoint,
        "way.velocity_of(rows)(y, t)",
        "way.velocity_of(rows.flip(0))(y, t)",
    ),
    "conditions without a graph": (adjoint, EVALUATED, WITHOUT_GRAPH),
}


@pytest.mark.parametrize(
    "name", slow_but(MUTANTS, "the adjoint's sign", "conditions of other rows")
)
def test_mutants_are_caught(name, monkeypatch):
    module, old, new = MUTANTS[name]
    monkeypatch.setattr(probability_flow, "with_adjoint", mutated(module, old, new).with_adjoint)
    assert (
        largest_difference(gradients("adjoint", steps=2), gradients(True, steps=2)) > 10 * ALLOWED
    )


def off_along(integrate_rows, method):
    """The integral of the velocity along each row's way against how far the row came, where steps are rejected."""
    summed = torch.zeros(4, 2, dtype=torch.float64)
    widths = torch.tensor([0.02, 0.05, 0.2, 1.0], dtype=torch.float64)

    def velocity(rows):
        return lambda x, t: (
            (20 * torch.exp(-(((t - 0.6) / widths[rows]) ** 2)) - 1)[:, None] * torch.cos(x)
        )

    def along(rows, x, t, weight):
        summed.index_add_(0, rows, weight[:, None] * velocity(rows)(x, t))

    x = normal(4, 2)
    found = integrate_rows(
        velocity(torch.arange(4)), x, 1.0, 0.0, method=method, select=velocity, along=along
    )
    assert not found.status.any()
    return float((summed - (found.x - x)).abs().max())


@pytest.mark.parametrize("method", rowwise.PAIRS)
def test_integrals_along_the_way_are_of_its_own_steps(method):
    assert off_along(rowwise.integrate_rows, method) < 1e-12


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "torch.lerp(t, after, shared.nodes)), strict",
            "torch.lerp(after, t, shared.nodes)), strict",
        ),
        (
            "step.accepted.nonzero()[:, 0]\n    rows,",
            "step.t.isfinite().nonzero()[:, 0]\n    rows,",
        ),
        (
            "_combine(weights, k[: len(weights)])) if weights",
            "_combine(weights, k[: len(weights)])) if False",
        ),
        ("b * h,\n", "b * h.abs(),\n"),
    ],
)
def test_mutants_of_the_integral_are_caught(old, new):
    assert off_along(mutated(rowwise, old, new).integrate_rows, "dopri5") > 1e-6


@pytest.mark.parametrize("mutant", [False, True])
def test_a_row_that_failed_leaves_the_gradient_of_the_others(mutant, monkeypatch):
    """dx/dt = k x^2 from 40 is infinite at t = 1/20, where its square is no number: nor is zero times that."""
    if mutant:  # the closing step is made of all rows
        closed = probability_flow.ProbabilityFlow._closed

        def of_all(self, field, x, start, end):
            far = x.new_full((1, *x.shape[1:]), torch.finfo(x.dtype).max)
            made, calls = closed(self, field, torch.cat([x, far]), start, end)
            return made[:-1] + 0 * made[-1:].nan_to_num(0, 0, 0), calls

        monkeypatch.setattr(probability_flow.ProbabilityFlow, "_closed", of_all)
    k = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    field = stk.Velocity(lambda x, t: k * x**2, (1,))
    init = torch.tensor([[0.5], [40.0], [-1.5]], dtype=torch.float64)
    draws = stk.sample(field, stk.ProbabilityFlow("dopri5"), init=init, grad="adjoint")
    assert draws.ok.tolist() == [True, False, True]
    draws.final[draws.ok].sum().backward()
    x = init[draws.ok]
    right = (x**2 / (1 - k.detach() * x) ** 2).sum()
    assert torch.allclose(k.grad, right, rtol=1e-3) is not mutant
