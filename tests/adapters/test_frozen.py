"""A function of JAX is taken as it is when the field is made: its data, its code, in both precisions."""

import dataclasses
import importlib.util
from functools import partial

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.adapters import jaxprs
from scoretk.core import anatomy, identity
from scoretk.core.identity import Identity
from scoretk.errors import CheckpointError, ScoretkError
from tests.adapters.test_flows import importing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
EXACT = {"rtol": 1e-14, "atol": 1e-14}


def of_array(a, kind):
    """`-|x|^2 - a_0` where x_0 > 1.5, and `-|x|^2` elsewhere, with a held in one of many ways."""
    jax = importing("jax")
    jnp, a = jax.numpy, jax.numpy.array([a, 1.0])

    def cliff(x, a):
        return -(x**2).sum() - jnp.where(x[0] > 1.5, a[0], 0.0)

    if kind == "closure":
        logp = lambda x: cliff(x, a)  # noqa: E731
    elif kind == "nested jit":
        inner = jax.jit(jax.jit(lambda x: cliff(x, a)))
        logp = jax.jit(inner)
    elif kind == "partial":
        logp = partial(cliff, a=a)
    elif kind == "default":

        def logp(x, tree={"a": [a, (a, 2)]}):  # noqa: B006
            return cliff(x, tree["a"][1][0])

    elif kind == "dataclass":

        @dataclasses.dataclass(frozen=True, eq=False)
        class Model:
            a: object

            def __call__(self, x):
                return cliff(x, self.a)

        logp = Model(a)
    elif kind == "numpy":
        a = np.array(a)
        logp = jax.jit(lambda x: cliff(x, a))
    else:
        key = jax.random.key(int(a[0]))
        logp = lambda x: cliff(x, jax.random.normal(key, (2,)))  # noqa: E731
    return stk.from_jax(logp, jnp.zeros(2))


KINDS = ["closure", "nested jit", "partial", "default", "dataclass", "numpy", "key"]


def digest(field):
    return Identity(field=field).summary()["digest"]


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_part_of_what_a_field_is(kind):
    assert digest(of_array(0.0, kind)) == digest(of_array(0.0, kind)) != digest(of_array(5.0, kind))


def test_a_mutant_that_does_not_read_arrays_knows_no_difference(monkeypatch):
    monkeypatch.setattr(identity, "is_array", lambda kind: False)
    assert digest(of_array(0.0, "closure")) == digest(of_array(5.0, "closure"))


def test_an_array_of_another_library_counts_by_its_numbers():
    jnp = importing("jax").numpy
    a, b, c = (Identity(a=jnp.array(v)).values for v in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]))
    assert a == b != c
    assert list(a) == ["a"]
    assert anatomy.parts(jnp.ones(3)) == []
    assert (
        Identity(a=jnp.ones(2, jnp.bfloat16)).values
        != Identity(a=jnp.zeros(2, jnp.bfloat16)).values
    )
    gone = jnp.ones(2)
    gone.delete()
    assert "without numbers" in Identity(a=gone).values["a"]


def of_data(y):
    numpyro, dist = importing("numpyro"), importing("numpyro.distributions")
    jnp = importing("jax").numpy

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.factor("cliff", jnp.where(mu > 3.0, y[0], 0.0))

    return stk.from_numpyro(model, y)


@pytest.mark.parametrize("library", ["jax", "numpyro"])
def test_a_checkpoint_of_other_data_is_refused(library, tmp_path):
    jnp = importing("jax").numpy
    if library == "jax":
        first, other = of_array(0.0, "closure"), of_array(50.0, "closure")
    else:
        first, other = of_data(jnp.array([1.0, 2.0])), of_data(jnp.array([5.0, 2.0]))
    path = tmp_path / "run"
    options = {
        "solver": stk.MALA(0.3),
        "chains": 3,
        "init": torch.zeros(3, *first.event_shape),
        "seed": 5,
        "checkpoint": path,
    }
    stk.sample(first, steps=5, **options)
    with pytest.raises(ScoretkError, match=r"array .* there, array .* here"):
        stk.sample(other, steps=8, **options)
    assert stk.sample(first, steps=8, **options).failures == {}


def test_one_answer_whatever_the_number_of_rows():
    jax = importing("jax")
    box, held = {"a": 1.0}, np.ones(2, np.float32)
    inner = jax.jit(lambda x: held * x**2)
    logp = lambda x: -(box["a"] * inner(x)).sum()  # noqa: E731
    field = stk.from_jax(logp, jax.numpy.zeros(2))
    naive = jax.jit(jax.vmap(logp))  # what jit alone says: a mutant
    rows = [torch.ones(n, 2) for n in (1, 2, 3)]
    torch.testing.assert_close(field.energy(rows[0]), torch.tensor([2.0]))
    mutant = [float(-naive(jax.numpy.ones((1, 2)))[0])]
    box["a"], held[:] = 5.0, 7.0
    for x in rows:
        torch.testing.assert_close(field.energy(x), torch.full((len(x),), 2.0))
        torch.testing.assert_close(field.score(x), torch.full((len(x), 2), -2.0))
    mutant += [float(-naive(jax.numpy.ones((n, 2)))[0]) for n in (1, 2)]
    assert mutant[0] == mutant[1] != mutant[2]
    with pytest.raises(ScoretkError, match="data or code that have changed"):
        field.energy(rows[0].double())
    assert float(stk.from_jax(logp, jax.numpy.zeros(2)).energy(rows[0])) > 9.0


def test_a_global_of_numpyro_that_is_bound_anew_is_as_it_was():
    numpyro, dist = importing("numpyro"), importing("numpyro.distributions")
    box = {"y": importing("jax").numpy.array([1.0, 2.0])}

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0).expand([2]), obs=box["y"])

    field = stk.from_numpyro(model)
    before = field.energy(torch.zeros(1, 1))
    box["y"] = 10 * box["y"]
    for n in (1, 2, 5):
        torch.testing.assert_close(field.energy(torch.zeros(n, 1)), before.expand(n))


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_arrays_of_numpy_have_the_precision_of_the_rows(first):
    jax = importing("jax")
    jnp, p = jax.numpy, np.array([0.1, 0.2, 1 / 3])
    inner = jax.jit(lambda x: (p * x).sum())

    def logp(x):
        return -(p * x**2).sum() - jnp.dot(p, x) - inner(x) - jnp.where(p > 0.15, x, p).sum()

    def energy(x):
        q = torch.as_tensor(p).to(x)
        return q @ (x.mT**2 + 2 * x.mT) + torch.where(q > 0.15, x, q).sum(1)

    field = stk.from_jax(logp, jnp.zeros(3))
    x = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(4, 3)
    for dtype in (first, *({torch.float32, torch.float64} - {first}), first):
        close = EXACT if dtype == torch.float64 else {}
        torch.testing.assert_close(field.energy(x.to(dtype)), energy(x.to(dtype)), **close)
    # what is asked of JAX itself afterwards is as it was
    assert float(jax.jit(logp)(jnp.ones(3))) == pytest.approx(-float(energy(torch.ones(1, 3))))
    draws = stk.sample(field, stk.MALA(0.1), chains=2, steps=2, dtype=torch.float64)
    assert draws.failures == {}


def test_a_mutant_without_cleared_caches_rounds_or_fails(monkeypatch):
    jax = importing("jax")
    p = np.array([0.1, 0.2, 1 / 3])
    x = torch.ones(1, 3, dtype=torch.float64)

    def answer():
        field = stk.from_jax(lambda x: -jax.numpy.dot(p, x), jax.numpy.zeros(3))
        return abs(float(field.energy(x)) - p.sum())

    with monkeypatch.context() as patch:
        patch.setattr(jaxprs, "forget", lambda: None)
        kept = jax.jit(lambda x: jax.numpy.dot(p, x))
        kept(jax.numpy.ones(3))  # a function of the user's, which keeps p as it met it
        assert answer() > 1e-9
    assert answer() < 1e-15


def test_one_process_of_two_precisions():
    jax = importing("jax")
    p = np.array([0.1, 0.2, 1 / 3])
    a, b = (stk.from_jax(lambda x: -(p * x).sum(), jax.numpy.zeros(3)) for _ in range(2))
    wide, narrow = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3)
    for _ in range(2):
        assert abs(float(a.energy(wide)[0]) - p.sum()) < 1e-15
        torch.testing.assert_close(b.energy(narrow), torch.full((2,), float(p.sum())))
    c = stk.from_jax(lambda x: -(p * x).sum(), jax.numpy.zeros(3))
    torch.testing.assert_close(c.energy(narrow), b.energy(narrow))
    assert abs(float(b.energy(wide)[0]) - p.sum()) < 1e-15


def test_a_log_density_without_a_gradient_has_its_values():
    jax = importing("jax")
    logp = lambda x: -jax.lax.while_loop(lambda v: v < 3.0, lambda v: v + 1.0, x[0])  # noqa: E731
    field = stk.from_jax(logp, jax.numpy.zeros(1))
    torch.testing.assert_close(field.energy(torch.zeros(2, 1)), torch.full((2,), 3.0))
    with pytest.raises(ScoretkError, match=r"jax\.grad's, in reverse mode"):
        field.score(torch.zeros(2, 1))


@pytest.mark.slow
def test_models_of_pymc_that_are_alike_are_one():
    """PyTensor counts its variables: a model that is made again has other names within."""
    importing("jax")
    pymc = importing("pymc")

    def of(y):
        with pymc.Model() as model:
            mu = pymc.Normal("mu", 0.0, 5.0)
            pymc.Normal("y", mu, 1.0, observed=pymc.Data("data", y))
        return stk.from_pymc(model)

    first, again, other = (of(np.array([1.0, y])) for y in (2 / 3, 2 / 3, 2.5))
    assert digest(first) == digest(again) != digest(other)
    x = torch.tensor([[1 / 7]], dtype=torch.float64)
    normal = torch.distributions.Normal
    data = torch.tensor([1.0, 2 / 3], dtype=torch.float64)
    expected = -normal(0.0, 5.0).log_prob(x[0, 0]) - normal(x[0, 0], 1.0).log_prob(data).sum()
    for field in (first, again):  # as exact, whichever model of the process it is
        torch.testing.assert_close(field.energy(x)[0], expected, rtol=1e-14, atol=0)


@pytest.mark.slow
def test_so_are_those_that_pymc_computes_itself(monkeypatch, tmp_path):
    """Without JAX: a run of a model that is made again is taken up, and of no other one."""
    pymc = importing("pymc")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "jax" else find(name, *a)
    )

    def of(y=2.0, spread=1.0, group=(0, 1), turned=False, rho=0.5):
        with pymc.Model() as model:
            mu = pymc.Normal("mu", 0.0, 5.0, shape=2)
            mean = (mu[::-1] if turned else mu)[np.array(group)]
            pymc.Normal("y", mean, spread, observed=pymc.Data("data", np.array([1.0, y])))
            start = pymc.Normal.dist(0.0, 1.0, size=1)
            pymc.AR("x", rho=[rho], sigma=1.0, steps=2, init_dist=start)  # a scan
        return stk.from_pymc(model)

    first = of()
    assert digest(first) == digest(of())
    for other in ({"y": 2.5}, {"spread": 2.0}, {"group": (1, 0)}, {"turned": True}, {"rho": 0.6}):
        assert digest(of(**other)) != digest(first), other
    run = {"solver": stk.MALA(0.1), "chains": 2, "checkpoint": tmp_path / "run"}
    begun = stk.sample(first, steps=2, **run)
    assert torch.equal(stk.sample(of(), steps=3, **run).x[:, :2], begun.x)
    with pytest.raises(CheckpointError, match="another run"):
        stk.sample(of(y=2.5), steps=4, **run)


def test_a_model_of_pymc_leaves_jaxs_precision_alone():
    """PyTensor turns 64 bits on for the process when it first meets JAX: then functions of the user's were others."""
    jax, pm = importing("jax"), importing("pymc")
    for before in (False, True):
        with jax.enable_x64(before):
            config = jax.config.jax_enable_x64
            with pm.Model() as model:
                mu = pm.Normal("mu")
                pm.Normal("y", mu, 1.0, observed=np.array([1.0, 2.0]))
            field = stk.from_pymc(model)
            x = torch.zeros(1, 1, dtype=torch.float64)
            value = -sum(
                torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(v))
                for v in (0.0, 1.0, 2.0)
            )
            assert float(field.energy(x)) == pytest.approx(float(value))
            assert jax.config.jax_enable_x64 is config is before
