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


def of_arrays(x):
    return 0.5 * np.sum((x.detach().numpy() @ A) ** 2, axis=1)


UNSEEN = {
    "outside of the graph": lambda x: 0.5 * np.sum((np.asarray(x) @ A) ** 2, axis=1),
    "detached": lambda x: torch.from_numpy(of_arrays(x)),
    "an array": of_arrays,
    "a method of arrays": lambda x: x.astype(float).sum(1),
}


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.parametrize(
    "around",
    [
        lambda f: f,
        lambda f: stk.tempered(f, 2.0),
        lambda f: stk.constrained(f, torch.distributions.constraints.positive),
    ],
)
def test_a_function_of_numpy_is_told_to_give_its_gradient(name, around):
    """By the name of the field, and not of what asks it."""
    field = around(stk.Energy(UNSEEN[name], (2,)))
    for solver in (None, stk.ULA(0.1)):
        with pytest.raises((InvalidArgument, AttributeError)) as refused:
            stk.sample(field, solver, chains=4, steps=2)
        said = "\n".join([str(refused.value), *getattr(refused.value, "__notes__", [])])
        assert "scoretk.Energy(fn, event_shape, grad=g)" in said
        assert " at 0x" not in said


def test_the_field_is_shown_that_has_no_gradient():
    with pytest.raises(
        InvalidArgument, match=r"got Energy\(in_numpy, \(2,\)\)\. Give its gradient"
    ):
        stk.sample(stk.Energy(in_numpy, (2,)), stk.ULA(0.1), chains=4, steps=2)


def in_numpy(x):
    return np.sum(np.asarray(x) ** 2, axis=1)


ARRAYS = {
    "energy": (lambda: stk.Energy(of_arrays, (2,)), lambda f: f.energy(X)),
    "score": (lambda: stk.Score(lambda x: -x.numpy() @ A, (2,)), lambda f: f.score(X)),
    "noise": (lambda: stk.Diffusion(lambda x, t: x.numpy(), (2,)), lambda f: f.noise(X, 0.5)),
    "velocity": (lambda: stk.Velocity(lambda x, t: x.numpy(), (2,)), lambda f: f.velocity(X, 0.5)),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_an_array_in_place_of_a_tensor_is_told_how_to_be_one(what):
    make, ask = ARRAYS[what]
    with pytest.raises(InvalidArgument, match=rf"{what}: .*ndarray.*torch\.from_numpy\("):
        ask(make())


@pytest.mark.parametrize(
    ("grad", "said"),
    [
        (lambda x: -2 * x, "grad= is not the gradient of fn, but minus it"),
        (lambda x: 3 * x, r"grad= is not the gradient of fn\.?$"),
    ],
)
def test_a_wrong_gradient_is_called_one(grad, said):
    field = stk.Energy(lambda x: np.sum(x**2, axis=1), (2,), grad=grad)
    with pytest.raises(InvalidArgument, match=said) as refused:
        stk.sample(field, stk.ULA(1e-3), chains=64, steps=100)
    assert "numpy" not in str(refused.value)
    with pytest.warns(UserWarning, match=said):
        stk.sample(field, stk.MALA(0.1), chains=64, steps=100)
    posterior = stk.posterior(stk.Energy(in_torch, (2,)), field)  # as a likelihood
    with pytest.raises(InvalidArgument, match=said):
        stk.sample(posterior, stk.ULA(1e-3), chains=64, steps=100)
    with pytest.raises(InvalidArgument, match="grad= of a part is not the gradient of its fn, or"):
        stk.sample(stk.tempered(field, 2.0), stk.ULA(1e-3), chains=64, steps=100)


ONE_ROW = {
    "fn": stk.Energy(lambda x: 0.5 * x @ T.to(x) @ x, (2,)),
    "fn, with grad": stk.Energy(lambda x: 0.5 * x @ A @ x, (2,), grad=lambda x: x @ A),
    "grad": stk.Energy(in_torch, (2,), grad=lambda x: A @ x),
    "score": stk.Score(lambda x: T.to(x) @ x, (2,)),
    "tempered": stk.tempered(stk.Energy(lambda x: 0.5 * x @ T.to(x) @ x, (2,)), 2.0),
}


@pytest.mark.parametrize("name", ONE_ROW)
def test_a_function_of_one_row_is_told_that_it_gets_all(name):
    with pytest.raises((RuntimeError, ValueError)) as raised:
        stk.sample(ONE_ROW[name], stk.ULA(0.1), chains=4, steps=2)
    (note,) = raised.value.__notes__
    assert "all chains at once" in note
    assert "x of shape (4, 2)" in note


def test_a_function_of_variables_is_told_of_these():
    field = stk.Energy(lambda mu, theta: theta @ theta + mu, variables={"mu": (), "theta": (3,)})
    with pytest.raises(RuntimeError) as raised:
        stk.sample(field, stk.ULA(0.1), chains=4, steps=2)
    (note,) = raised.value.__notes__
    assert "mu of shape (4,), theta of shape (4, 3)" in note
