"""Functions of rows: right, and the same bits for a row wherever it stands in a tensor."""

import math

import pytest
import torch

from scoretk.core import rows
from scoretk.core.devices import all_and_any, on

DTYPES = [torch.float32, torch.float64]
OURS = {
    "log_add_exp": (lambda x: rows.log_add_exp(x, 1 - x), lambda x: torch.logaddexp(x, 1 - x)),
    "power": (lambda x: rows.power(x.abs(), 5.7), lambda x: x.abs() ** 5.7),
    "sigmoid": (rows.sigmoid, torch.sigmoid),
    "softplus": (rows.softplus, torch.nn.functional.softplus),
}


def moved_bits(function, x):
    """In how many short pieces of x, cut at any place, the function has other bits than in the whole."""
    whole = function(x)
    pieces = [(i, i + n) for i in range(200) for n in (1, 3, 7, 15)]
    return sum(not torch.equal(function(x[i:j].clone()), whole[i:j]) for i, j in pieces)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OURS)
def test_a_row_has_the_same_bits_wherever_it_stands(name, dtype):
    x = 3 * torch.randn(997, dtype=dtype, generator=torch.Generator().manual_seed(0))
    ours, torchs = OURS[name]
    torch.testing.assert_close(
        ours(x), torchs(x), rtol=32 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps
    )
    assert moved_bits(ours, x) == 0


def test_torchs_own_functions_fail_it():
    """Not all do on every machine; were there none, the functions of `rows` would not be needed."""
    x = 3 * torch.randn(997, generator=torch.Generator().manual_seed(0))
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this machine computes one number at a time")
    assert any(moved_bits(torchs, x) for _, torchs in OURS.values())


def moved_products(product, d, dtype):
    """For how many pieces of rows a product with a matrix, as it is or turned, has other bits than in the whole."""
    g = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(101, d, dtype=dtype, generator=g), torch.randn(d, d, generator=g)
    pieces = [(i, i + n) for i in (0, 1, 3, 40) for n in (1, 2, 3, 5, 8, 33)]
    ways = [way.to(dtype) for way in (matrix, matrix.T)]
    return sum(
        not torch.equal(product(x[i:j].clone(), way), product(x, way)[i:j])
        for i, j in pieces
        for way in ways
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 5, 8, 15, 16, 31, 64, 129, 256])
def test_a_row_of_a_product_has_the_same_bits_wherever_it_stands(d, dtype):
    assert moved_products(rows.row_product, d, dtype) == 0


def test_products_of_rows_are_products():
    g = torch.Generator().manual_seed(0)
    for n, d, e in ((0, 3, 3), (1, 1, 1), (3, 5, 2), (16, 16, 32)):
        x, matrix = torch.randn(n, d, generator=g).double(), torch.randn(d, e, generator=g).double()
        torch.testing.assert_close(rows.row_product(x, matrix), x @ matrix)
    x = torch.tensor([[1.0, math.nan], [1.0, 2.0], [math.inf, 1.0]])
    torch.testing.assert_close(
        rows.row_product(x, torch.eye(2) + 1), x @ (torch.eye(2) + 1), equal_nan=True
    )


def test_torchs_own_products_fail_it():
    """As `test_torchs_own_functions_fail_it`."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this machine computes one number at a time")
    assert any(moved_products(torch.matmul, d, torch.float64) for d in (16, 31, 129))


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        (-math.inf, -math.inf, -math.inf),
        (math.inf, math.inf, math.inf),
        (-math.inf, 2.0, 2.0),
        (math.inf, 2.0, math.inf),
        (1e5, 1e5, 1e5 + math.log(2)),
        (math.nan, 0.0, math.nan),
    ],
)
def test_ends_of_log_add_exp(a, b, both):
    found = rows.log_add_exp(torch.tensor([a, b]), torch.tensor([b, a]))
    torch.testing.assert_close(found, torch.tensor([both, both]), equal_nan=True)


def test_ends_of_the_others():
    far = torch.tensor([-math.inf, -1e4, 0.0, 1e4, math.inf])
    assert rows.sigmoid(far).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert rows.softplus(far).tolist() == [0.0, 0.0, pytest.approx(math.log(2)), 1e4, math.inf]
    assert rows.power(torch.tensor([0.0, 1.0, 4.0]), 0.5).tolist() == [0.0, 1.0, pytest.approx(2.0)]


def test_gradients():
    x = torch.tensor(
        [-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4], dtype=torch.float64, requires_grad=True
    )
    (found,) = torch.autograd.grad(rows.softplus(x).sum(), x)
    torch.testing.assert_close(found, torch.sigmoid(x.detach()))
    (found,) = torch.autograd.grad(rows.sigmoid(x).sum(), x)
    torch.testing.assert_close(found, torch.sigmoid(x.detach()) * torch.sigmoid(-x.detach()))


@pytest.mark.parametrize(
    "factor", [0.3, 1e300, -1e300, torch.tensor(0.3), torch.tensor([[2.0], [3.0]])]
)
def test_a_factor_may_be_larger_than_its_dtype_holds(factor):
    """torch takes no such `alpha`: products are infinite, as those of tensors are."""
    x, y = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]]), torch.tensor([[2.0, 1.0, -3.0]] * 2)
    assert torch.equal(
        rows.add_scaled(x, y, factor), torch.addcmul(x, y, torch.as_tensor(factor).to(x))
    )


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_values_stay_where_all_parts_of_a_row_are_finite(shape):
    """Parts of a row's own shape, of the values' and of one that came before: none of them goes into the values."""
    values = torch.tensor([1.5, -2.0, 4.0, 0.25])
    part = torch.arange(4.0).reshape(-1, *(1 for _ in shape)).expand(4, *shape) + 7
    assert torch.equal(rows.nan_unless_finite(values, part, 2 * part), values)
    for spoilt in (0, 1):
        parts = [part.clone(), 2 * part]
        parts[spoilt][2] = math.inf
        found = rows.nan_unless_finite(values, *parts)
        assert found.isnan().tolist() == [False, False, True, False]
        assert torch.equal(found[[0, 1, 3]], values[[0, 1, 3]])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_what_is_remembered_serves_whatever_mode_it_was_made_in(mode):
    """A copy on another device goes into a graph later, and flags that are written are read again."""
    constant, flags = torch.ones(2), torch.tensor([True, True])
    with mode():
        copy = on(constant, torch.device("meta"))
        own = flags.clone()
        assert all_and_any(own) == (True, True)
        own[0] = False
        assert all_and_any(own) == (False, True)
    assert on(constant, torch.device("meta")) is copy
    assert not copy.is_inference()


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 0.0, 5e-324, 1e308, math.nan])
@pytest.mark.parametrize("shapes", [[()], [(3,)], [(2, 2), (3,)], [(), (3,), (3,)]], ids=str)
def test_values_of_any_kind_stay_as_they_are(value, shapes):
    """An infinite one too, such as the ratio of a point outside a support: it is a number to be compared."""
    values = torch.tensor([value, 1.0, value], dtype=torch.float64)
    parts = [torch.full((3, *shape), -2.5, dtype=torch.float64) for shape in shapes]
    torch.testing.assert_close(
        rows.nan_unless_finite(values, *parts), values, rtol=0, atol=0, equal_nan=True
    )
    for part in parts:
        part[1] = -math.inf
        found = rows.nan_unless_finite(values, *parts)
        assert found.isnan().tolist() == [value != value, True, value != value]
        part[1] = 0
