"""`Energy(fn, shape, grad=g)`: functions that autograd does not see into, of numpy or of torch, with their own gradient."""

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.conformance import check_model
from scoretk.errors import InvalidArgument

BRINGS = [
    (
        "a function",
        "stk.Energy(fn, event_shape)",
        "`check_model`",
        "",
        ["test_a_law_of_the_kit_finds_a_wrong_gradient"],
    ),
    (
        "a function and its gradient, of numpy or torch",
        "stk.Energy(fn, event_shape, grad=g)",
        "the same energy in torch",
        "",
        ["test_values_and_gradients_are_those_of_the_functions"],
    ),
]

A = np.array([[2.0, 0.5], [0.5, 1.0]])
T = torch.as_tensor(A)


def in_torch(x):
    return ((x @ T.to(x)) * x).sum(1) / 2 + x.exp().sum(1)


FUNCTIONS = {
    "arrays": (
        lambda x: 0.5 * np.sum((x @ A) * x, axis=1) + np.sum(np.exp(x), axis=1),
        lambda x: x @ A + np.exp(x),
    ),
    "asarray": (
        lambda x: 0.5 * ((np.asarray(x) @ A) * np.asarray(x)).sum(1) + np.exp(np.asarray(x)).sum(1),
        lambda x: np.asarray(x) @ A + np.exp(np.asarray(x)),
    ),
    "tensors": (in_torch, lambda x: x @ T.to(x) + x.exp()),
    "ufuncs of tensors": (
        lambda x: 0.5 * ((np.asarray(x) @ A) * np.asarray(x)).sum(1) + np.asarray(np.exp(x)).sum(1),
        lambda x: np.asarray(x) @ A + np.asarray(np.exp(x)),
    ),
}
X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-2.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_the_functions(name, dtype):
    fn, grad = FUNCTIONS[name]
    ours, theirs = stk.Energy(in_torch, (2,)), stk.Energy(fn, (2,), grad=grad)
    x = X.to(dtype)
    for got, expected in zip(theirs.energy_and_grad(x), ours.energy_and_grad(x), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(theirs.score(x), ours.score(x))
    tilted = stk.posterior(theirs, lambda x: -x[:, 0].square())
    expected = stk.posterior(ours, lambda x: -x[:, 0].square())
    torch.testing.assert_close(tilted.score(x), expected.score(x))
    torch.testing.assert_close(stk.tempered(theirs, 3.0).score(x), stk.tempered(ours, 3.0).score(x))


def test_a_run_is_that_of_the_energy_in_torch():
    fn, grad = FUNCTIONS["arrays"]
    runs = [
        stk.sample(field, stk.MALA(0.2), chains=4, steps=5, dtype=torch.float64).x
        for field in (stk.Energy(in_torch, (2,)), stk.Energy(fn, (2,), grad=grad))
    ]
    torch.testing.assert_close(*runs)


def test_conditions_reach_both():
    field = stk.Energy(
        lambda x, y: 0.5 * np.sum((x - y) ** 2, axis=1), (2,), grad=lambda x, y: x - y
    )
    y = X.flip(1)
    torch.testing.assert_close(field.score(X, y=y), y - X)
    assert stk.sample(field, stk.MALA(0.1), chains=3, steps=2, cond={"y": y.float()}).failures == {}


@pytest.mark.slow
def test_a_law_of_the_kit_finds_a_wrong_gradient(fewer_cases):
    fn, grad = FUNCTIONS["arrays"]
    wrong = stk.Energy(fn, (2,), grad=lambda x: 1.05 * grad(x))
    for field, right in ((stk.Energy(fn, (2,), grad=grad), True), (wrong, False)):
        failed = [r.law for r in check_model(field) if r.status == "failed"]
        assert (failed == []) == right, failed


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidArgument, match="grad: expected a callable"):
        stk.Energy(in_torch, (2,), grad=3)
    with pytest.raises(InvalidArgument, match="shaped like x"):
        stk.Energy(in_torch, (2,), grad=lambda x: x[:, :1]).score(X)
    with pytest.raises(InvalidArgument, match="energy"):
        stk.Energy(np.sum, (2,), grad=lambda x: x).score(X)
    with pytest.raises(
        TypeError, match="nonsense"
    ):  # the function's own error, not that of a second try
        stk.Energy(nonsense, (2,), grad=lambda x: x).score(X)


def nonsense(x):
    raise TypeError("nonsense" if isinstance(x, torch.Tensor) else "the second")


def test_a_wrong_gradient_is_seen_in_finite_differences():
    fn, grad = FUNCTIONS["arrays"]
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    for factor, right in ((1.0, True), (1.05, False)):
        field = stk.Energy(fn, (2,), grad=lambda x, factor=factor: factor * grad(x))
        numeric = torch.stack(
            [(field.energy(X + h) - field.energy(X - h)) / 2e-5 for h in steps], 1
        )
        assert torch.allclose(-field.score(X), numeric, rtol=1e-6, atol=1e-6) == right


def test_a_second_derivative_is_refused_and_not_that_of_a_constant():
    """Through a score and a run's steps, whether the slopes are constants or not."""
    own = stk.Energy(lambda x: (x**4).sum(1), (3,), grad=lambda x: 4 * x**3)
    x = torch.full((2, 3), 0.7, requires_grad=True)
    for total in (own.score(x).sum(), own.score(x).square().sum()):
        with pytest.raises(InvalidArgument, match="first derivatives only"):
            torch.autograd.grad(total, x)
    with pytest.raises(InvalidArgument, match="first derivatives only"):
        stk.sample(own, stk.ULA(0.01), chains=2, steps=3, init=x, grad=True, seed=1)
    assert torch.equal(torch.autograd.grad(own.energy(x).sum(), x)[0], 4 * x.detach() ** 3)


def test_the_same_of_the_adjoint():
    flow = stk.Velocity(lambda x, t: -x * x, (1,))
    x = torch.full((2, 1), 0.5, requires_grad=True)
    solver = stk.ProbabilityFlow("dopri5")
    draws = stk.sample(flow, solver, chains=2, init=x, grad="adjoint", seed=1)
    (slope,) = torch.autograd.grad(draws.final.sum(), x, create_graph=True)
    assert torch.allclose(slope, torch.full_like(slope, 1.5**-2), rtol=1e-3)
    with pytest.raises(InvalidArgument, match="first derivatives only"):
        torch.autograd.grad(slope.sum(), x)


def test_both_functions_take_the_same_conditions_and_get_copies():
    field = stk.Energy(lambda x, m: (x - m).square().sum(1), (2,), grad=lambda x: 2 * x)
    with pytest.raises(InvalidArgument, match="takes m, as fn does"):
        stk.sample(field, stk.ULA(0.1), chains=2, steps=2, cond={"m": torch.ones(2, 2)})
    for double in (lambda x: x.mul_(2), lambda x: np.multiply(x.numpy(), 2, out=x.numpy())):
        field, x = stk.Energy(lambda x: x.square().sum(1), (2,), grad=double), torch.ones(3, 2)
        assert torch.equal(field.score(x), torch.full((3, 2), -2.0))
        assert torch.equal(x, torch.ones(3, 2))


def test_what_the_function_has_of_parameters_is_trained():
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    field = stk.Energy(lambda x: (w * x * x).sum(1), (2,), grad=lambda x: 2 * w.detach() * x)
    for x in (torch.ones(3, 2), torch.ones(3, 2, requires_grad=True)):
        (slope,) = torch.autograd.grad(field.energy(3 * x).sum(), w)
        assert torch.equal(slope, torch.full((2,), 27.0))
