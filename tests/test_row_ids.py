"""Row by row means row by row: what a row's number is hangs on its id and on nothing beside it."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.errors import Status
from scoretk.inference import likelihood
from scoretk.models.targets.mixture import GaussianMixture, ring_mixture
from tests.evidence import assert_mean
from tests.marks import slow_but

FIELD = ring_mixture().noised(stk.VP())
X = ring_mixture().draw(7, stk.Noise(1, 7, dtype=torch.float64)).double()
EASY = {"rtol": 1e-3, "atol": 1e-3}
FLOWS = [
    *({"method": method, "rtol": 1e-3, "atol": 1e-3} for method in ("dopri5", "tsit5", "bosh3")),
    *({"method": method, "steps": 3} for method in ("euler", "heun", "rk4")),
]
TRACES = [
    {"trace": "exact"},
    {"trace": "hutchinson"},
    {"trace": "hutchinson", "probe_law": "gaussian"},
]
SHARED = [
    "dopri8",
    *(pytest.param(method, marks=pytest.mark.slow) for method in ("fehlberg2", "adaptive_heun")),
]


def tilted(dim=12):
    """Correlated data, so that probes err: the linear flow of N(0, S) with S far from diagonal."""
    lift = torch.randn(
        dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ) / math.sqrt(dim)
    cov = lift @ lift.T + 0.1 * torch.eye(dim, dtype=torch.float64)
    path = stk.Linear()

    def velocity(x, t):
        a, s = t.double()[:, None, None], 1 - t.double()[:, None, None]
        there = a**2 * cov + s**2 * torch.eye(dim, dtype=torch.float64)
        gain = (a * cov - s * torch.eye(dim, dtype=torch.float64)) @ torch.linalg.inv(there)
        return (gain @ x.double()[:, :, None])[..., 0].to(x)

    return stk.Diffusion(velocity, (dim,), path, "velocity"), torch.linalg.cholesky(cov)


def equal(a, b):
    assert torch.equal(a.value, b.value)
    assert torch.equal(a.stderr, b.stderr)
    assert torch.equal(a.status, b.status)
    assert a.cost == b.cost


@pytest.mark.parametrize(
    "options", slow_but(FLOWS, FLOWS[0], *FLOWS[3:]), ids=lambda o: o["method"]
)
def test_latents_and_densities_do_not_depend_on_the_batch(options):
    whole = stk.encode(FIELD, X, **options)
    dense = stk.log_prob(FIELD, X, trace="hutchinson", **options)
    for batch in (3,):
        parts = stk.encode(FIELD, X, batch=batch, **options)
        assert torch.equal(parts.x, whole.x)
        assert torch.equal(parts.status, whole.status)
        assert parts.cost == whole.cost
        equal(stk.log_prob(FIELD, X, trace="hutchinson", batch=batch, **options), dense)


@pytest.mark.thorough
@pytest.mark.parametrize("method", SHARED)
def test_methods_whose_steps_a_batch_shares_agree_to_the_tolerance(method):
    whole, parts = (stk.encode(FIELD, X, method=method, batch=batch).x for batch in (None, 2))
    torch.testing.assert_close(parts, whole, rtol=0.01, atol=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options", slow_but(TRACES, {"trace": "hutchinson"}), ids=lambda o: "-".join(o.values())
)
def test_rows_scored_one_by_one_are_those_of_the_whole(options):
    options = options | EASY
    whole = stk.log_prob(FIELD, X, seed=3, **options)
    some = [0, 3, 6]
    alone = [stk.log_prob(FIELD, X[i : i + 1], seed=3, rows=i, **options) for i in some]
    assert torch.equal(torch.cat([a.value for a in alone]), whole.value[some])
    assert torch.equal(torch.cat([a.stderr for a in alone]), whole.stderr[some])
    ids = torch.tensor([4, 1, 6])
    equal(
        stk.log_prob(FIELD, X[ids], seed=3, rows=ids, **options),
        stk.log_prob(FIELD, X[ids], seed=3, rows=ids, batch=1, **options),
    )
    assert torch.equal(
        stk.log_prob(FIELD, X[ids], seed=3, rows=ids, **options).value, whole.value[ids]
    )
    assert torch.equal(
        stk.log_prob(FIELD, X[3:], seed=3, rows=range(3, 7), **options).value, whole.value[3:]
    )


def test_sketches_are_the_rows_own():
    field = GaussianMixture(
        torch.randn(3, 6, generator=torch.Generator().manual_seed(1)),
        torch.full((3,), 0.5),
        torch.ones(3),
    )
    x = field.draw(4, stk.Noise(2, 4, dtype=torch.float64)).double()
    options = {"trace": "hutch++", "probes": 6, "method": "heun", "steps": 4}
    whole = stk.log_prob(field.noised(stk.Linear()), x, **options)
    parts = stk.log_prob(field.noised(stk.Linear()), x, batch=1, **options)
    torch.testing.assert_close(parts.value, whole.value, rtol=1e-10, atol=1e-10)


@pytest.mark.thorough
def test_errors_of_rows_scored_apart_average_out():
    """Twenty rows, each alone, average to the truth with ids of their own; the mutant, one id for all, errs as one row does."""
    field, scale = tilted()
    x = scale @ torch.full((12,), 0.3, dtype=torch.float64)
    options = {"trace": "hutchinson", "probes": 2, "method": "rk4", "steps": 4}
    truth = stk.log_prob(field, x[None], trace="exact", method="rk4", steps=4).value
    alone = torch.cat([stk.log_prob(field, x[None], rows=i, **options).value for i in range(20)])
    assert_mean(alone, truth)
    shared = torch.cat([stk.log_prob(field, x[None], **options).value for _ in range(3)])
    assert shared.unique().numel() == 1
    assert abs(float(shared[0] - truth)) > float(alone.std()) / math.sqrt(
        20
    )  # what twenty rows err by together


@pytest.mark.thorough
def test_bits_per_dim_take_ids_and_batches():
    cells = (torch.arange(10.0).reshape(5, 2) * 7 % 16).double()
    field = GaussianMixture(torch.full((1, 2), 0.5), torch.tensor([0.4]), torch.ones(1)).noised(
        stk.VP()
    )
    options = {"levels": 16, "trace": "hutchinson", "method": "heun", "steps": 6}
    whole = stk.bits_per_dim(field, cells, **options)
    equal(stk.bits_per_dim(field, cells, batch=2, **options), whole)
    alone = torch.cat(
        [stk.bits_per_dim(field, cells[i : i + 1], rows=i, **options).value for i in range(5)]
    )
    assert torch.equal(alone, whole.value)
    assert not torch.equal(stk.bits_per_dim(field, cells[1:2], **options).value, whole.value[1:2])


class Weighted:
    """A field that estimates its density, by noise of the rows."""

    event_shape, provides = (2,), frozenset()

    def estimate_log_prob(self, x, *, seed=0, rows=None):
        noise = stk.Noise(seed, likelihood.row_ids(rows, x)).normal(0, stk.Stream.PROBE, ())
        return stk.Estimate(
            x.sum(1) + noise, torch.ones(len(x)), f"of {len(x)}", stk.Cost(energy=len(x))
        )


class Placed(Weighted):
    """One that knows no ids."""

    def estimate_log_prob(self, x, *, seed=0):
        return super().estimate_log_prob(x, seed=seed)


def test_a_fields_own_estimate_gets_the_ids():
    x = X.float()
    whole = stk.log_prob(Weighted(), x)
    parts = stk.log_prob(Weighted(), x, batch=3)
    assert torch.equal(parts.value, whole.value)
    assert parts.status.shape == (7,)
    assert parts.cost == whole.cost
    assert torch.equal(stk.log_prob(Weighted(), x[5:], rows=5).value, whole.value[5:])
    assert torch.equal(stk.log_prob(Placed(), x).value, whole.value)
    for given in ({"rows": 5}, {"batch": 3}):
        with pytest.raises(stk.InvalidArgument, match=r"^rows, batch: .*takes rows="):
            stk.log_prob(Placed(), x, **given)


@pytest.mark.slow
def test_importance_weights_take_ids():
    marginal = stk.load("digits-vae").marginal
    x = marginal.draw(4, stk.Noise(0, 4))
    whole = stk.log_prob(marginal, x)
    torch.testing.assert_close(
        stk.log_prob(marginal, x, batch=2).value, whole.value, rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(
        stk.log_prob(marginal, x[2:], rows=2).value, whole.value[2:], rtol=1e-4, atol=1e-3
    )
    assert (stk.log_prob(marginal, x[2:]).value - whole.value[2:]).abs().max() > 2e-3


def test_conditions_are_split_with_the_rows():
    base = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1
    )
    field = stk.Velocity(lambda x, t, c: c[:, None] * x, (2,), base=base)
    x, c = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 5)
    for ask in (stk.encode, stk.log_prob):
        whole, parts = ask(field, x, cond={"c": c}), ask(field, x, cond={"c": c}, batch=2)
        assert torch.equal(*(v.x if hasattr(v, "x") else v.value for v in (whole, parts)))
        with pytest.raises(stk.InvalidArgument, match=r"^cond\['c'\]: expected a tensor .*5 rows"):
            ask(field, x, cond={"c": c[:3]})


@pytest.mark.thorough
def test_a_row_that_fails_fails_alone_in_any_batch():
    field = stk.Velocity(
        lambda x, t: torch.where((x > 3).any(1, keepdim=True), torch.nan, -x), (2,)
    )
    x = torch.tensor([[0.5, 0.1], [9.0, 0.1], [0.2, 0.3]])
    for batch in (None, 1, 2):
        found = stk.log_prob(field, x, batch=batch)
        assert found.status.tolist() == [0, int(Status.NONFINITE), 0]
        assert torch.equal(found.value[[0, 2]], stk.log_prob(field, x).value[[0, 2]])


def test_no_rows_are_no_rows():
    for batch in (None, 3):
        assert stk.log_prob(FIELD, X[:0], batch=batch).value.shape == (0,)
        assert stk.encode(FIELD, X[:0], batch=batch).x.shape == (0, 2)


@pytest.mark.parametrize(
    "rows",
    [
        range(3),
        torch.arange(3),
        -1,
        2**32 - 1,
        2.0,
        True,
        "all",
        torch.zeros(7),
        torch.arange(-1, 6),
    ],
)
def test_what_are_no_ids_is_refused(rows):
    for ask in (stk.log_prob, lambda f, x, rows: stk.bits_per_dim(f, x.abs().floor(), rows=rows)):
        with pytest.raises(stk.InvalidArgument, match=r"^rows: "):
            ask(FIELD, X, rows=rows)


@pytest.mark.parametrize("batch", [0, -1, 2.5, True, "two"])
def test_what_is_no_batch_is_refused(batch):
    for ask in (stk.log_prob, stk.encode):
        with pytest.raises(stk.InvalidArgument, match=r"^batch: "):
            ask(FIELD, X, batch=batch)
