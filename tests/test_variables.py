"""Named variables: the law, the names and the starts are those of the variables, whatever wraps the field."""

import datetime
import json
import math
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import scoretk as stk
from scoretk.errors import InvalidArgument, UnknownName
from scoretk.fields import layout, resolve
from scoretk.fields import variables as vs
from scoretk.fields.layout import Layout, layout_of, variable_name
from scoretk.fields.variables import named, variables_of
from scoretk.inference import asked
from scoretk.inference.partition import Normalised
from tests.evidence import assert_mean, mean_z, z_limit
from tests.promises import blocks, run_blocks

POSITIVE = constraints.positive
LOW, HIGH = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 7.0])

SUPPORTS = {
    "real": stk.Variable((2,)),
    "positive": POSITIVE,
    "above": stk.Variable((2,), constraints.greater_than(-2.0)),
    "bounded": stk.Variable((3,), constraints.interval(LOW, HIGH)),
    "shares": stk.Variable((4,), constraints.simplex),
    "rows": stk.Variable((2, 3), constraints.simplex),
    "ordered": stk.Variable((3,), stk.ordered),
    "factor": stk.Variable((3, 3), constraints.lower_cholesky),
    "correlation": stk.Variable((3, 3), constraints.corr_cholesky),
    "covariance": stk.Variable((2, 2), constraints.positive_definite),
    "array": stk.Variable((2, 2), constraints.independent(POSITIVE, 2)),
}


def of(name):
    """An energy of one variable, in which no two entries play the same part."""

    def energy(value):
        flat = value.reshape(len(value), -1)
        weights = 0.3 + torch.arange(flat.shape[1], dtype=flat.dtype)
        return len(name) * (weights * (flat - 0.7).square()).sum(1)

    return energy


def together(**values):
    return sum(of(name)(value) for name, value in values.items())


ALL = stk.Energy(together, variables=SUPPORTS)


def alone(name):
    """The same variable as a field of its own, by way of `constrained`."""
    spec = SUPPORTS[name]
    v = spec if isinstance(spec, stk.Variable) else stk.Variable((), spec)
    field = stk.Energy(of(name), v.shape)
    return field if v.constraint is constraints.real else stk.constrained(field, v.constraint)


def points(n, size, seed=1):
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def law_is_that_of_the_parts(field):
    z, total, at = points(7, *field.event_shape), 0.0, 0
    for name in SUPPORTS:
        part = alone(name)
        size = math.prod(part.event_shape)
        total = total + part.energy(z[:, at : at + size].reshape(7, *part.event_shape))
        at += size
    assert at == z.shape[1]
    return all(
        torch.allclose(found, total, rtol=1e-10)
        for found in (
            field.energy(z),
            field.energy_and_grad(z)[0],
            field.around(field.field).energy(z),  # by way of x
            resolve(field, {"energy"}).energy(z),
        )
    )


def test_the_energy_is_the_users_and_the_jacobian_of_every_variable():
    assert law_is_that_of_the_parts(ALL)
    z = points(5, *ALL.event_shape)
    torch.testing.assert_close(ALL.unconstrain(ALL.constrain(z)), z)
    y = z.clone().requires_grad_()
    torch.testing.assert_close(
        -torch.autograd.grad(ALL.energy(y).sum(), y)[0], resolve(ALL, {"score"}).score(z)
    )


MUTANTS = {
    "no Jacobian": (vs.Variables, "_log_jacobian", lambda self, z, x: None),
    "one too little": (
        vs.Variables,
        "_log_jacobian",
        lambda self, z, x: sum(
            vs.trailing_sum(p.log_jacobian(z[n], x[n]), z[n].ndim - 1 - p.event_dim)
            for n, p in list(zip(self.specs, self.parts, strict=True))[:-1]
            if p is not vs.REAL and n != "rows"
        ),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_missing_jacobian_is_caught(mutant, monkeypatch):
    owner, name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(owner, name, wrong)
    assert not law_is_that_of_the_parts(ALL)


# Names, shapes and starts

SHAPES = {"a": (), "m": (2, 2), "v": stk.Variable((4,), dims="item", coords={"item": list("wxyz")})}
START = {
    "a": torch.tensor([1.0, 2.0, 3.0]),
    "m": torch.arange(12.0).reshape(3, 2, 2),
    "v": -torch.arange(12.0).reshape(3, 4),
}


def flat(a, m, v):
    return a.square() + m.square().sum((1, 2)) + v.square().sum(1)


SHAPED = stk.Energy(flat, variables=SHAPES)


def starts_where_it_is_told():
    draws = stk.sample(SHAPED, stk.ULA(1e-12), steps=2, init=START)
    seen = {}

    def look(a, m, v):
        seen.update(a=a.detach(), m=m.detach(), v=v.detach())
        return flat(a, m, v)

    stk.Energy(look, variables=SHAPES).energy(draws.final)
    return all(
        torch.allclose(draws[name][:, -1], value, atol=1e-3)
        and torch.allclose(seen[name], value, atol=1e-3)
        and draws[name].shape == (3, 2, *value.shape[1:])
        for name, value in START.items()
    )


def test_draws_and_starts_have_the_variables_by_name():
    assert starts_where_it_is_told()
    assert SHAPED.event_shape == (9,)
    reordered = {name: START[name] for name in reversed(START)}
    again = stk.sample(SHAPED, stk.ULA(1e-12), steps=1, init=reordered)
    torch.testing.assert_close(again["m"][:, 0], START["m"], atol=1e-3, rtol=0)


WRONG_POINTS = {
    "transposed": lambda v: v | {"m": v["m"].mT},
    "in the order of the dict": lambda v: dict(zip(v, [v["a"], *SWAPPED.values()], strict=True)),
    "shifted by a chain": lambda v: {n: one.roll(1, 0) for n, one in v.items()},
}
SWAPPED = {"m": START["v"].reshape(3, 2, 2), "v": START["m"].reshape(3, 4)}


@pytest.mark.parametrize("mutant", WRONG_POINTS)
def test_a_start_elsewhere_is_caught(mutant, monkeypatch):
    right = vs.Variables.point
    wrong = WRONG_POINTS[mutant]
    monkeypatch.setattr(vs.Variables, "point", lambda self, v: right(self, wrong(v)))
    assert not starts_where_it_is_told()


@pytest.mark.parametrize("owner", ["draws", "function"])
def test_names_that_are_shifted_by_one_are_caught(owner, monkeypatch):
    right = layout.Layout.split

    def shifted(self, x):
        by_function = x.ndim == 2
        return right(self, x.roll(1, -1) if by_function == (owner == "function") else x)

    monkeypatch.setattr(layout.Layout, "split", shifted)
    assert not starts_where_it_is_told()


@pytest.mark.parametrize("keep", ["all", "last", "moments"])
def test_names_with_everything_that_can_be_kept(keep):
    field = stk.Energy(
        lambda p, tau: tau + p.square().sum(1),
        variables={"p": stk.Variable((3,), constraints.simplex), "tau": POSITIVE},
    )
    draws = stk.sample(field, stk.HMC(0.3, metric="none"), chains=5, steps=6, keep=keep)
    if keep == "moments":
        assert draws.mean.shape == (5, 4)
        with pytest.raises(InvalidArgument, match="moments"):
            draws["tau"]
        return
    kept = 6 if keep == "all" else 1
    assert draws["tau"].shape == (5, kept)
    torch.testing.assert_close(draws["p"].sum(-1), torch.ones(5, kept))
    assert set(draws.variables) == {"p", "tau"}
    assert "tau" in draws
    assert "x" not in draws
    again = stk.sample(field, stk.ULA(1e-12), steps=1, init=draws.final)  # the draws' own space
    torch.testing.assert_close(again.final, draws.final, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnknownName, match="tau"):
        draws["tauu"]


# The law of draws


@pytest.mark.thorough
def test_a_conjugate_posterior():
    """`s^2 ~ InverseGamma(3, 2)`, `mu | s ~ N(0, s^2)`, y ~ N(mu, s^2)`, and shares of their own."""
    y = torch.tensor([1.0, 2.5, 0.5, 2.0])
    counts = torch.tensor([2.0, 5.0, 1.0])

    def energy(mu, var, p):
        prior = 4 * var.log() + 2 / var + 0.5 * var.log() + mu.square() / (2 * var)
        likelihood = 2 * var.log() + (y - mu[:, None]).square().sum(1) / (2 * var)
        return prior + likelihood - (counts * p.log()).sum(1)

    field = stk.Energy(
        energy, variables={"mu": (), "var": POSITIVE, "p": stk.Variable((3,), constraints.simplex)}
    )
    n, mean = len(y), float(y.mean())
    a = 3 + n / 2
    b = 2 + float((y - mean).square().sum()) / 2 + n * mean**2 / (2 * (n + 1))
    log_var = math.log(b) - float(torch.digamma(torch.tensor(a)))
    truth = {"mu": n * mean / (n + 1), "var": log_var, "p": (counts + 1) / (counts + 1).sum()}

    def wrong(made):
        kernel = stk.HMC(0.4, leapfrogs=4, metric="none")
        draws = stk.sample(made, kernel, chains=256, steps=24, warmup=12, seed=3)
        found = draws.variables | {"var": draws["var"].log()}
        zs = [mean_z(found[name].mean(1), value).abs().max() for name, value in truth.items()]
        return max(map(float, zs)) > z_limit(5)

    assert not wrong(field)
    assert wrong(stk.Energy(lambda **v: energy(**v) - v["var"].log(), variables=field.variables))


def test_conditions_reach_the_function_beside_the_variables():
    def energy(mu, *, y, scale=1.0):
        return (mu - y).square() / (2 * scale)

    field = stk.Energy(energy, variables={"mu": ()})
    y = torch.tensor([-5.0, 0.0, 5.0]).repeat(40)
    draws = stk.sample(
        field,
        stk.HMC(0.8, leapfrogs=3, metric="none"),
        chains=120,
        steps=40,
        warmup=10,
        cond={"y": y},
    )
    assert_mean(draws["mu"].mean(1) - y, 0.0)
    with pytest.raises(InvalidArgument, match=r"takes: scale, y"):
        stk.sample(field, stk.ULA(0.1), chains=120, steps=1, cond={"y": y, "z": y})
    with pytest.raises(InvalidArgument, match="got 'mu, y'"):
        stk.sample(field, stk.ULA(0.1), chains=120, steps=1, cond={"y": y, "mu": y})
    any_names = stk.Energy(lambda mu, **c: mu.square(), variables={"mu": ()})
    with pytest.raises(InvalidArgument, match="no variable has"):
        stk.sample(any_names, stk.ULA(0.1), chains=120, steps=1, cond={"mu": y})


def test_a_condition_may_have_the_name_of_what_methods_take():
    field = stk.Energy(
        lambda mu, tau, *, z: (mu - z).square() + tau, variables={"mu": (), "tau": POSITIVE}
    )
    for law in (field, stk.tempered(field, 2.0)):
        draws = stk.sample(law, stk.ULA(0.01), chains=2, steps=2, cond={"z": torch.zeros(2)})
        assert draws["tau"].shape == (2, 2)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, mu, tau):
        return self.scale * mu.square() + tau


def test_a_module_takes_names_and_its_parameters_are_found():
    net = Net()
    draws = stk.sample(
        stk.Energy(net, variables={"mu": (), "tau": POSITIVE}), stk.ULA(0.01), chains=2, steps=2
    )
    assert draws.x.dtype == torch.float64
    moved = stk.sample(
        stk.Energy(net, variables={"mu": (), "tau": POSITIVE}),
        stk.ULA(0.01),
        chains=2,
        steps=2,
        grad=True,
    )
    moved["mu"].sum().backward()
    assert net.scale.grad.abs() > 0


# What wraps a field keeps its names


def positive_energy(mu, tau):
    return mu.square() / 2 + tau - 2 * tau.log()


PAIR = {"mu": (), "tau": POSITIVE}
FIELD = stk.Energy(positive_energy, variables=PAIR)
SCHOOLS = stk.load("eight-schools")
WRAPPERS = {
    "tempered": lambda f: stk.tempered(f, 2.0),
    "product": lambda f: stk.product(f, f),
    "mixture": lambda f: stk.mixture([f, f], [0.5, 0.5], log_partition=[0.0, 0.3]),
    "posterior": lambda f: stk.posterior(f, lambda x: -x.square().sum(1)),
    "posterior of a field": lambda f: stk.posterior(f, f),
    "guided": lambda f: stk.guided(f, 1.5, f),
    "bridge": lambda f: stk.bridge(f, f, 0.5),
    "normalised": lambda f: Normalised(f, 0.0),
    "smoothed": stk.smoothed,
    "smoothed at a time": lambda f: stk.smoothed(f).at(0.5),
    "twice": lambda f: stk.tempered(stk.posterior(f, lambda x: -x.square().sum(1)), 2.0),
}


@pytest.mark.parametrize("inner", [FIELD, SCHOOLS], ids=["variables", "derived"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_keep_the_names(name, inner):
    assert named(WRAPPERS[name](inner)).layout == named(inner).layout


@pytest.mark.parametrize("name", ["tempered", "product", "posterior", "mixture", "twice"])
def test_wrappers_have_the_law_in_the_users_space(name):
    by_hand = stk.constrained(
        stk.Energy(lambda x: positive_energy(x[:, 0], x[:, 1]), (2,)),
        [(constraints.real, 1), (POSITIVE, 1)],
    )
    z = points(5, 2)
    torch.testing.assert_close(WRAPPERS[name](FIELD).energy(z), WRAPPERS[name](by_hand).energy(z))


@pytest.mark.parametrize("prior", [FIELD, SCHOOLS], ids=["variables", "derived"])
def test_a_likelihood_takes_the_variables_that_it_names(prior):
    def by_name(tau, *, y):
        return -(tau - y).square()

    def by_x(x, y):
        tau = x[:, 1] if prior is FIELD else SCHOOLS.parameters(x).tau
        return -(tau - y).square()

    y = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    z = points(3, *prior.event_shape)
    named_law = stk.posterior(prior, by_name, measured="y")
    plain = stk.posterior(prior, by_x, measured="y")
    torch.testing.assert_close(named_law.energy(z, y=y), plain.energy(z, y=y))
    assert not torch.allclose(named_law.energy(z, y=y), prior.energy(z))
    torch.testing.assert_close(named_law.score(z, y=y), plain.score(z, y=y))
    draws = stk.sample(named_law, stk.ULA(1e-3), chains=3, steps=2, cond={"y": y})
    assert draws["tau"].shape == (3, 2)


def test_a_product_with_other_names_is_refused():
    for other in (
        {"mu": (), "sigma": POSITIVE},
        {"tau": POSITIVE, "mu": ()},
        {"mu": (), "tau": ()},
    ):
        field = stk.Energy(lambda **v: sum(v.values()), variables=other)
        with pytest.raises(InvalidArgument, match="one and the same constraint"):
            stk.product(FIELD, field)
    with pytest.raises(InvalidArgument):
        stk.constrained(FIELD, POSITIVE)
    with pytest.raises(InvalidArgument, match="names"):
        stk.constrained(SCHOOLS, {"a": (10,)})


def test_names_for_a_field_of_one_x():
    field = stk.constrained(
        stk.Energy(lambda x: positive_energy(x[:, 0], x[:, 1]), (2,)), {"mu": (), "tau": POSITIVE}
    )
    z = points(5, 2)
    assert torch.equal(field.energy(z), FIELD.energy(z))
    assert stk.sample(field, stk.ULA(0.01), chains=2, steps=3)["tau"].shape == (2, 3)
    with pytest.raises(InvalidArgument, match="2 entries"):
        stk.constrained(stk.Energy(lambda x: x.sum(1), (3,)), PAIR)


# The built-in posteriors


def test_the_built_in_posteriors_have_names_and_the_bits_they_had():
    class Unnamed(type(SCHOOLS)):
        variables = None

    run = {"solver": stk.HMC(0.2, metric="none"), "chains": 3, "steps": 4, "seed": 5}
    draws, plain = stk.sample("eight-schools", **run), stk.sample(Unnamed(), **run)
    assert torch.equal(draws.x, plain.x)
    mu, tau, theta = SCHOOLS.parameters(draws.x)
    for name, value in (("mu", mu), ("tau", tau), ("theta", theta)):
        assert torch.equal(draws[name], value)
    start = {"mu": mu[:, -1], "tau": tau[:, -1], "theta": theta[:, -1]}
    again = stk.sample("eight-schools", stk.ULA(1e-12), steps=1, init=start)
    torch.testing.assert_close(again.final, draws.final, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidArgument, match=r"init\['tau'\]"):
        stk.sample("eight-schools", stk.ULA(1e-3), steps=1, init=start | {"tau": -tau[:, -1]})
    assert plain.layout is None


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("linear-regression", {"intercept": (), "slopes": (10,), "sigma": ()}),
        ("logistic-regression", {"intercept": (), "slopes": (30,)}),
    ],
)
def test_the_regressions_have_names(name, shapes):
    pytest.importorskip("sklearn")
    draws = stk.sample(name, stk.ULA(1e-4), chains=2, steps=3)
    assert {n: tuple(v.shape[2:]) for n, v in draws.variables.items()} == shapes
    assert torch.equal(draws["intercept"], draws.x[..., 0])
    if "sigma" in shapes:
        assert torch.equal(draws["sigma"], draws.x[..., -1].exp())
    back = stk.sample(
        name, stk.ULA(1e-12), steps=1, init={n: v[:, -1] for n, v in draws.variables.items()}
    )
    torch.testing.assert_close(back.final, draws.final, rtol=1e-4, atol=1e-5)


# Draws as people use them


@pytest.fixture(scope="module")
def drawn():
    return stk.sample(SHAPED, stk.HMC(0.2, metric="none"), chains=range(4, 9), steps=12, seed=2)


def test_draws_are_a_sequence_of_chains(drawn):
    assert len(drawn) == 5
    assert [c.chains.tolist() for c in drawn] == [[4], [5], [6], [7], [8]]
    assert torch.equal(drawn[-1]["m"], drawn["m"][4:])
    for key, rows in (
        (slice(1, 3), [1, 2]),
        (torch.tensor([True, False, True, False, False]), [0, 2]),
        ([3, 0], [3, 0]),
        (np.array([1]), [1]),
        (drawn.ok, [0, 1, 2, 3, 4]),
    ):
        some = drawn[key]
        assert isinstance(some, stk.Draws)
        for name in ("x", "final", "status", "failed_at", "chains"):
            assert torch.equal(getattr(some, name), getattr(drawn, name)[rows])
        assert torch.equal(some.stats["accept"], drawn.stats["accept"][rows])
        assert some.summary().chains == len(rows)
    for wrong in ((0, 1), 1.5, None, torch.ones(3, dtype=torch.bool), [[0]], [0.5]):
        with pytest.raises(InvalidArgument, match=r"draws\[...\]"):
            drawn[wrong]
    for beyond in (5, -6, [0, 7]):
        with pytest.raises(IndexError):
            drawn[beyond]
    with pytest.raises(InvalidArgument, match="init"):
        stk.sample(SHAPED, stk.ULA(0.1), steps=1, init=drawn)
    derived = stk.sample("eight-schools", stk.ULA(0.01), chains=3, steps=2)
    assert torch.equal(derived[1:]["theta"], derived["theta"][1:])


def test_rows_and_columns_are_called_by_name(drawn):
    labels = ["a", "m[0, 0]", "m[0, 1]", "m[1, 0]", "m[1, 1]", *(f"v[{i}]" for i in range(4))]
    rows = drawn.summary().rows
    assert list(rows) == labels
    assert rows["v[3]"]["mean"] == pytest.approx(float(drawn["v"][..., 3].double().mean()))
    assert rows["m[1, 0]"]["mean"] == pytest.approx(float(drawn["m"][..., 1, 0].double().mean()))
    table = drawn.to_pandas()
    assert list(table.columns) == labels
    assert table.index.names == ["chain", "draw"]
    assert table.loc[(6, 3), "m[0, 1]"] == float(drawn["m"][2, 3, 0, 1])
    shown = drawn._repr_html_()
    assert "<th>m[1, 0]</th>" in shown
    assert drawn.summary().verdict.split("\n")[0][:20] in shown
    plain = stk.sample("ring-mixture", stk.ULA(0.01), chains=2, steps=3)
    assert list(plain.to_pandas().columns) == ["x[0]", "x[1]"]
    assert torch.equal(plain["x"], plain.x)
    assert list(stk.sample("eight-schools", stk.ULA(0.01), chains=2, steps=5).summary().rows)[
        2:4
    ] == ["theta[0]", "theta[1]"]


def test_files_keep_names_dims_and_coords(drawn, tmp_path):
    derived = stk.sample("eight-schools", stk.ULA(0.01), chains=3, steps=2)
    for draws in (drawn, derived, drawn[1:3]):
        again = stk.Draws.load(draws.save(tmp_path / "d.safetensors", force=True))
        assert again.layout == draws.layout
        assert all(torch.equal(again[name], draws[name]) for name in draws.variables)
    data = drawn.to_arviz()
    assert data.posterior["v"].dims == ("chain", "draw", "item")
    assert data.posterior["item"].values.tolist() == list("wxyz")
    assert data.posterior["m"].dims == ("chain", "draw", "m_dim_0", "m_dim_1")
    assert np.array_equal(data.posterior["m"].values, drawn["m"].numpy())


@pytest.mark.slow
def test_zarr_is_replaced_as_a_whole_and_nothing_else_is(drawn, tmp_path):
    xarray, store = pytest.importorskip("xarray"), tmp_path / "d.zarr"
    pytest.importorskip("zarr")
    for draws in (drawn, drawn[:2]):
        assert draws.save(store, force=True) == store
        tree = xarray.open_datatree(store, engine="zarr", consolidated=False)
        assert np.array_equal(tree["posterior"]["m"].values, draws["m"].numpy())
        assert tree["posterior"]["item"].values.tolist() == list("wxyz")
        tree.close()
    with pytest.raises(stk.OutputExists):
        drawn.save(store)
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "thesis.txt").write_text("all of it")
    with pytest.raises(InvalidArgument, match=r"zarr\.json"):
        drawn.save(other, force=True)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["d.zarr", "other.zarr"]
    assert (other / "thesis.txt").exists()


def test_what_else_reads_a_file_is_said(drawn, tmp_path):
    for name, reader in (
        ("d.nc", "arviz.from_netcdf"),
        ("d.npy", "numpy.load"),
        ("d.zarr", "xarray.open_datatree"),
    ):
        path = tmp_path / name
        path.mkdir() if name == "d.zarr" else path.write_bytes(b"something else")
        with pytest.raises(InvalidArgument, match=reader):
            stk.Draws.load(path)


def test_pandas_is_asked_for_by_its_extra(drawn, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(stk.MissingDependency, match=r"scoretk\[pandas\]"):
        drawn.to_pandas()


def test_a_run_goes_on_after_its_draws_were_looked_at(tmp_path):
    path = tmp_path / "run.safetensors"
    for field, other in (
        (
            FIELD,
            stk.Energy(positive_energy, variables={"mu": (), "tau": constraints.greater_than(0.5)}),
        ),
        (stk.load("eight-schools"), stk.tempered(SCHOOLS, 2.0)),
    ):
        run = {"solver": stk.MALA(0.1), "chains": 3, "checkpoint": path}
        draws = stk.sample(field, steps=6, **run)
        draws.summary(), draws.to_arviz(), draws.variables
        more = stk.sample(field, steps=9, **run)
        assert torch.equal(more.x[:, :6], draws.x)
        with pytest.raises(stk.CheckpointError, match="another run"):
            stk.sample(other, steps=12, **run)
        path.unlink()


def test_annealing_and_flows_speak_of_the_variables():
    """Gamma(3, 2) and N(0, 1), whose constant is `Gamma(3) / 2^3 sqrt(2 pi)`; that of the base is 2 pi."""
    field = stk.Energy(
        lambda mu, tau: mu.square() / 2 + 2 * tau - 2 * tau.log(),
        variables={"mu": (), "tau": POSITIVE},
    )
    draws = stk.sample(field, stk.AIS(levels=30), chains=1024, seed=1)
    weights = draws.stats["log_weight"].flatten().exp()
    assert_mean(weights * math.sqrt(2 * math.pi), math.gamma(3) / 2**3)
    assert draws["tau"].min() > 0
    flow = stk.sample(stk.smoothed(field, samples=8), stk.ProbabilityFlow(steps=4), chains=4)
    assert flow["tau"].shape == (4, 1)
    assert flow["tau"].min() > 0


# Names that no function takes, in files

OTHERS = ["lambda", "linear.weight", "theta[1]", "größe", "a b", "1a", "x-y", "tau"]


def layout_in(names):
    return layout_of(
        {name: stk.Variable((n % 3,) if n % 3 else ()) for n, name in enumerate(names)}
    )


@pytest.mark.parametrize("names", [OTHERS, OTHERS[::-1], sorted(OTHERS)], ids=str)
def test_a_layout_comes_back_from_a_file_with_its_names_in_their_order(names):
    """A file sorts the entries of a mapping: with it the numbers would go to other variables."""
    layout = layout_in(names)
    again = Layout.from_plain(json.loads(json.dumps(layout.plain(), sort_keys=True)))
    assert again.names == layout.names
    assert {**again.shapes} == {**layout.shapes}
    assert again.plain() == layout.plain()
    x = torch.arange(2.0 * layout.size).reshape(2, -1)
    for name, part in layout.split(x).items():
        assert torch.equal(again.split(x)[name], part)


def test_files_without_the_order_are_refused():
    spec = {"shape": [], "dims": []}
    with pytest.raises(InvalidArgument, match="did not keep"):
        Layout.from_plain({"variables": {"mu": spec, "tau": spec}, "coords": {}})
    assert Layout.from_plain({"variables": {"mu": spec}, "coords": {}}).names == ("mu",)


@pytest.mark.parametrize("ending", [".safetensors", ".nc"])
def test_draws_come_back_with_variables_that_are_not_sorted(tmp_path, ending):
    field = stk.Energy(
        lambda tau, mu: 9 * (mu - 5).square() + tau, variables={"tau": POSITIVE, "mu": ()}
    )
    draws = stk.sample(field, stk.MALA(0.1), chains=3, steps=4)
    path = draws.save(tmp_path / f"draws{ending}")
    if ending == ".nc":
        pytest.importorskip("xarray")
        found = xarray_of(path)
    else:
        found = {n: v.numpy() for n, v in stk.Draws.load(path).variables.items()}
    for name in ("mu", "tau"):
        assert (found[name] == draws[name].numpy()).all()


def xarray_of(path):
    import xarray

    with xarray.open_dataset(path, group="posterior") as data:
        return {name: data[name].values for name in ("mu", "tau")}


@pytest.mark.parametrize("name", ["a/b", "", " ", ".", "a\nb", "chain", "draw", 3, None])
def test_names_that_files_do_not_keep_are_refused(name):
    with pytest.raises(InvalidArgument):
        variables_of({name: stk.Variable()}, variable_name)


def test_a_variable_with_the_name_of_anothers_entry_is_refused():
    with pytest.raises(InvalidArgument, match="an entry of 'theta'"):
        layout_of({"theta": stk.Variable((2,)), "theta[1]": stk.Variable()})
    layout_of({"theta": stk.Variable((2,)), "theta[2]": stk.Variable()})


DAYS = [
    np.array(["2024-01-01", "2024-03-01"], dtype="datetime64[D]"),
    [datetime.date(2024, 1, 1), datetime.date(2024, 3, 1)],
    [datetime.datetime(2024, 1, 1), datetime.datetime(2024, 3, 1)],
    [np.datetime64("2024-01-01"), np.datetime64("2024-03-01T00:00")],
]


@pytest.mark.parametrize("days", DAYS, ids=["array", "date", "datetime", "datetime64"])
def test_labels_are_dates(days):
    layout = layout_of({"x": stk.Variable((2,), dims="day", coords={"day": days})})
    again = Layout.from_plain(json.loads(json.dumps(layout.plain())))
    assert again == layout
    assert list(again.coords["day"]) == list(DAYS[0])
    assert np.array(again.coords["day"]).dtype == "datetime64[ns]"


def test_labels_are_an_index_of_pandas():
    pd = pytest.importorskip("pandas")
    for index in (pd.DatetimeIndex(DAYS[0]), pd.Index(["a", "b"]), pd.RangeIndex(2)):
        layout = layout_of({"x": stk.Variable((2,), dims="day", coords={"day": index})})
        assert list(pd.Index(layout.coords["day"])) == list(index)
        assert Layout.from_plain(json.loads(json.dumps(layout.plain()))) == layout


def test_a_label_that_no_file_holds_is_refused():
    for label in (10**20, -(2**63) - 1):
        with pytest.raises(InvalidArgument, match="64 bits"):
            stk.Variable((1,), dims="a", coords={"a": [label]})


@pytest.mark.parametrize(
    "day",
    [
        np.datetime64("NaT"),
        np.datetime64("3000-01-01"),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    ],
    ids=["none", "far", "zone"],
)
def test_dates_that_tables_do_not_have_are_refused(day):
    with pytest.raises(InvalidArgument):
        stk.Variable((1,), dims="day", coords={"day": [day]})


# Hostile input

V = stk.Variable
REFUSED = {
    "none": {},
    "no mapping": [("mu", ())],
    "a number as a name": {1: ()},
    "no identifier": {"a b": ()},
    "a keyword": {"lambda": ()},
    "an axis of all draws": {"chain": ()},
    "a zero size": {"mu": (0,)},
    "a size that is none": {"mu": (-1,)},
    "a bare number": {"mu": 3},
    "a class of constraints": {"mu": constraints.interval},
    "a distribution": {"mu": td.HalfNormal(1.0)},
    "a constraint of vectors without a shape": {"mu": constraints.simplex},
    "bounds of another shape": {"mu": constraints.interval(LOW, HIGH)},
    "bounds the wrong way round": {"mu": constraints.interval(1.0, 0.0)},
    "bounds that are infinite": {"mu": constraints.interval(math.inf, math.inf)},
    "an end that is infinite for some": {
        "mu": constraints.interval(torch.zeros(2), torch.tensor([1.0, math.inf]))
    },
    "states": {"mu": constraints.boolean},
    "a matrix that is not square": {"mu": lambda: V((2, 3), constraints.corr_cholesky)},
    "a simplex of one": {"mu": lambda: V((1,), constraints.simplex)},
    "too many dims": {"mu": lambda: V((2,), dims=("a", "b"))},
    "a dim twice": {"mu": lambda: V((2, 2), dims=("a", "a"))},
    "a dim of all draws": {"mu": lambda: V((2,), dims="draw")},
    "a dim that is a variable": {"mu": lambda: V((2,), dims="nu"), "nu": ()},
    "dims of two sizes": {"mu": lambda: V((2,), dims="a"), "nu": lambda: V((3,), dims="a")},
    "coords of two kinds": {
        "mu": lambda: V((2,), dims="a", coords={"a": [1, 2]}),
        "nu": lambda: V((2,), dims="a", coords={"a": [3, 4]}),
    },
    "too few coords": {"mu": lambda: V((2,), dims="a", coords={"a": [1]})},
    "coords of another axis": {"mu": lambda: V((2,), dims="a", coords={"b": [1, 2]})},
    "coords that are no labels": {"mu": lambda: V((2,), dims="a", coords={"a": [None, None]})},
}


@pytest.mark.parametrize("case", REFUSED)
def test_variables_that_are_none_are_refused(case):
    given = REFUSED[case]
    with pytest.raises(InvalidArgument):
        stk.Energy(lambda **v: 0.0, variables=made(given))


def made(given):
    if not isinstance(given, dict):
        return given
    return {n: v() if getattr(v, "__name__", "") == "<lambda>" else v for n, v in given.items()}


def no_names(x):
    return x.sum(1)


def by_position(mu, tau, /):
    return mu + tau


def another(mu, sigma):
    return mu + sigma


@pytest.mark.parametrize("fn", [no_names, by_position, another, lambda *a: a[0], 3, Net])
def test_functions_that_do_not_take_the_names_are_refused(fn):
    with pytest.raises(InvalidArgument, match=r"fn: expected a callable fn\(mu, tau"):
        stk.Energy(fn, variables=PAIR)


def test_a_shape_beside_variables_is_refused():
    with pytest.raises(InvalidArgument, match="beside variables"):
        stk.Energy(positive_energy, (2,), variables=PAIR)
    with pytest.raises(InvalidArgument, match="event_shape"):
        stk.Energy(positive_energy)


WRONG_STARTS = {
    "one is missing": ({"mu": torch.zeros(3)}, r"each of mu, tau, got \['mu'\]. tau missing"),
    "one too many": ({"mu": torch.zeros(3), "tau": torch.ones(3), "nu": torch.ones(3)}, "mu, tau"),
    "another shape": ({"mu": torch.zeros(3, 1), "tau": torch.ones(3)}, r"init\['mu'\]"),
    "other rows": ({"mu": torch.zeros(2), "tau": torch.ones(3)}, r"init\['tau'\]"),
    "outside": ({"mu": torch.zeros(3), "tau": -torch.ones(3)}, r"init\['tau'\].*GreaterThan"),
    "on the edge": ({"mu": torch.zeros(3), "tau": torch.zeros(3)}, r"init\['tau'\]"),
    "not a number": ({"mu": torch.full((3,), math.nan), "tau": torch.ones(3)}, r"init\['mu'\]"),
    "words": ({"mu": "zero", "tau": torch.ones(3)}, r"init\['mu'\]"),
    "nothing": ({}, "mu, tau"),
    "no rows": ({"mu": torch.zeros(0), "tau": torch.ones(0)}, "init"),
}


@pytest.mark.parametrize("case", WRONG_STARTS)
def test_starts_that_do_not_fit_are_refused(case):
    start, said = WRONG_STARTS[case]
    with pytest.raises(InvalidArgument, match=said):
        stk.sample(FIELD, stk.ULA(0.01), steps=1, init=start)


def test_names_for_a_field_without_them_are_refused():
    start = {"mu": torch.zeros(3)}
    with pytest.raises(InvalidArgument, match="no named variables"):
        stk.sample("ring-mixture", stk.ULA(0.01), steps=1, init=start)
    with pytest.raises(InvalidArgument, match="latents"):
        stk.sample(stk.smoothed(FIELD), stk.ProbabilityFlow(steps=2), init=start)
    with pytest.raises(InvalidArgument, match="chains=4"):
        stk.sample(FIELD, stk.ULA(0.01), steps=1, chains=4, init=start | {"tau": torch.ones(3)})


def test_answers_that_are_no_energies_are_refused():
    z = torch.zeros(3, 2)
    for wrong in (
        lambda mu, tau: (mu + tau)[:, None],
        lambda mu, tau: (mu + tau).sum(),
        lambda mu, tau: 0.0,
        lambda mu, tau: (mu + tau).detach(),
        lambda mu, tau: torch.from_numpy((mu + tau).detach().numpy()),
    ):
        with pytest.raises(InvalidArgument):
            stk.Energy(wrong, variables=PAIR).energy_and_grad(z)
        with pytest.raises(InvalidArgument):
            stk.sample(stk.Energy(wrong, variables=PAIR), stk.ULA(0.1), chains=3, steps=1)


def test_draws_say_their_variables_and_failures():
    field = stk.Energy(
        lambda mu, tau: tau + mu.square().sum(1) / 2,
        variables={"mu": (2,), "tau": constraints.positive},
    )
    draws = stk.sample(field, stk.MALA(0.3), chains=3, steps=2)
    assert repr(draws).startswith("Draws(x=(3, 2, 3) of mu[2], tau, solver=MALA(")
    draws.status[1] = int(stk.Status.NONFINITE)
    assert "of mu[2], tau, failed={'NONFINITE': 1}" in repr(draws)


PAGE = Path(__file__).parent.parent / "docs" / "variables.md"


@pytest.mark.thorough
def test_the_page_runs(capsys):
    """With a tenth of its steps and a quarter of its chains; its eight schools are the built-in ones."""
    text = re.sub(r"\b(steps)=(\d+)0\b", r"\1=\g<2>", PAGE.read_text())
    text = text.replace("chains=64", "chains=16")
    with mock.patch.object(asked, "DEFAULT_WARMUP", 20):
        names = run_blocks(PAGE.name, blocks(text))
    assert "raw[7]" in capsys.readouterr().out
    assert names["data"].posterior["raw"].dims == ("chain", "draw", "school")
    z = points(6, 10)
    gap = names["schools"].energy(z) - SCHOOLS.energy(z)
    assert float(gap.std()) < 1e-5 < float(SCHOOLS.energy(z).std())


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_compiled_runs_have_names():
    draws, eager = (
        stk.sample(FIELD, stk.ULA(0.02), chains=4, steps=16, compile=c) for c in (True, False)
    )
    torch.testing.assert_close(draws["tau"], eager["tau"], rtol=1e-3, atol=1e-4)


def test_what_names_variables_is_told_where_neither_shape_nor_variables_are():
    with pytest.raises(InvalidArgument, match=r"or variables=\{\.\.\.\}"):
        stk.Energy(lambda x: x)


@pytest.mark.parametrize("spec", [((3,), constraints.positive), [(3,), constraints.positive]])
def test_a_shape_beside_a_constraint_is_told_to_be_a_variable(spec):
    said = r"scoretk\.Variable\(\(3,\), constraints\.positive\)"
    with pytest.raises(InvalidArgument, match=said):
        stk.Energy(lambda p: p, variables={"p": spec})


def test_one_entry_outside_is_outside():
    """Of any variable, whatever the others and the rest of its own entries are."""
    specs = {
        "mu": (2,),
        "tau": stk.Variable((2, 2), constraints.positive),
        "share": stk.Variable((3,), constraints.unit_interval),
    }
    field = stk.Energy(lambda mu, tau, share: tau.sum((1, 2)) + share.sum(1), variables=specs)
    inside = torch.tensor([[-1.0, 2.0, *[0.5] * 7]])
    x = torch.cat([inside, inside - 3 * torch.eye(9)])
    found = field.in_free_space().users_energy(x)
    assert found[:3].isfinite().all()  # itself, and with other values of mu
    assert (found[3:] == torch.inf).all()
    for row in x[3:]:
        with pytest.raises(InvalidArgument):
            stk.sample(field, stk.ULA(0.1), steps=1, init=row[None])


PRIOR = {"mu": (), "tau": constraints.positive}
TAKES_NAMES = {
    "an energy": lambda fails, of: stk.Energy(fails, variables=of),
    "a likelihood": lambda fails, of: stk.posterior(
        stk.Energy(lambda mu, tau: mu.square() + tau, variables=of), fails, measured="y"
    ),
}


@pytest.mark.parametrize("supports", [True, False])
@pytest.mark.parametrize("name", TAKES_NAMES)
def test_a_function_of_variables_that_fails_is_told_the_shapes_of_all_that_it_gets(name, supports):
    def fails(mu, tau, y):
        raise RuntimeError("the model's own")

    variables = dict(PRIOR) if supports else dict.fromkeys(PRIOR, ())
    with pytest.raises(RuntimeError, match="own") as raised:
        stk.sample(TAKES_NAMES[name](fails, variables), chains=4, cond={"y": torch.zeros(4, 3)})
    (note,) = [note for note in raised.value.__notes__ if note.startswith("scoretk: ")]
    for said in ("mu of shape (4,)", "tau of shape (4,)", "y of shape (4, 3)"):
        assert said in note


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        (td.HalfNormal(1.0), r"a HalfNormal, its support, law\.support"),
        (td.Normal(torch.zeros(8), 1.0), r"scoretk\.Variable\(\(8,\), law\.support\)"),
        (td.Dirichlet(torch.ones(3)), r"scoretk\.Variable\(\(3,\), law\.support\)"),
        (3, r"Of 3 numbers: \(3,\)"),
        ("positive", r"torch\.distributions\.constraints\.positive"),
        ("posit", r"got 'posit'$"),
        (0, "got 0$"),
    ],
)
def test_what_is_no_variable_says_what_would_be(spec, way):
    with pytest.raises(stk.InvalidArgument, match=way):
        stk.Energy(lambda tau: tau, variables={"tau": spec})


@pytest.mark.parametrize("combine", [stk.product, lambda f, g: stk.bridge(f, g, 0.5)])
def test_the_same_variables_in_another_order_are_told_so(combine):
    def of(**variables):
        return stk.Energy(lambda **v: sum(x**2 for x in v.values()), variables=variables)

    positive = constraints.positive
    first, other = of(mu=(), tau=positive), of(tau=positive, mu=())
    assert combine(first, of(mu=(), tau=positive))
    with pytest.raises(stk.InvalidArgument, match=r"in another order.* such as mu, tau"):
        combine(first, other)
    with pytest.raises(stk.InvalidArgument, match="one and the same") as told:
        combine(first, of(mu=(), sigma=positive))
    assert "another order" not in str(told.value)
