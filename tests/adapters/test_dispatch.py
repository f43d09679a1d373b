"""What is no field names the adapter that makes one of it; names of other packages for predictions mean ours."""

import functools
import pathlib
import re
import types

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.adapters.dispatch import BY_NAME
from scoretk.conformance import check_model
from scoretk.errors import InvalidArgument, UnknownName
from scoretk.fields import PREDICTIONS, foreign
from scoretk.fields.convert import ALSO_KNOWN_AS, prediction_name
from tests.adapters.test_flows import importing

NORMAL = td.MultivariateNormal(torch.zeros(2), torch.eye(2))
PLAIN = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))


class Flow:
    """An object of another library, which has the shape of an event and nothing of a field."""

    event_shape = (2,)

    def log_prob(self, x):
        return x.sum(1)


Flow.__module__ = "nflows.flows.base"

CALLS = {
    "sample": lambda f: stk.sample(f, chains=2),
    "log_prob": lambda f: stk.log_prob(f, torch.zeros(2, 2)),
    "log_partition": stk.log_partition,
    "tempered": lambda f: stk.tempered(f, 2.0),
    "product": lambda f: stk.product(PLAIN, f),
    "mixture": lambda f: stk.mixture([PLAIN, f], (0.5, 0.5)),
    "bridge": lambda f: stk.bridge(PLAIN, f, 0.5),
    "guided": lambda f: stk.guided(PLAIN, 2.0, f),
    "posterior": lambda f: stk.posterior(f, PLAIN),
    "posterior, likelihood": lambda f: stk.posterior(PLAIN, f),
    "constrained": lambda f: stk.constrained(f, td.constraints.positive),
    "Discrete": lambda f: stk.Discrete(f, (0.0, 1.0)),
    "smoothed": stk.smoothed,
    "check_model": check_model,
    "from_distribution": stk.from_distribution,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_adapter_of_a_foreign_object_is_named(name):
    with pytest.raises(InvalidArgument, match=r"Flow: scoretk\.from_flow makes a field of it"):
        CALLS[name](Flow())


@pytest.mark.parametrize("name", ["constrained", "Discrete", "smoothed"])
def test_so_is_that_of_a_torch_distribution_where_it_is_not_taken(name):
    with pytest.raises(InvalidArgument, match=r"MultivariateNormal: scoretk\.from_distribution"):
        CALLS[name](NORMAL)


def test_a_foreign_object_with_the_methods_of_a_field_is_one():
    class Own(Flow):
        def energy(self, x):
            return x.square().sum(1) / 2

    field = Own()
    x = torch.zeros(2, 2)
    assert stk.sample(field, stk.MALA(0.1), chains=2, steps=2).x.shape == (2, 2, 2)
    assert torch.equal(stk.tempered(field, 2.0).energy(x), x[:, 0])


def test_what_is_already_a_field_stays_it():
    assert stk.from_(PLAIN) is PLAIN
    assert stk.from_(NORMAL).event_shape == (2,)
    with pytest.raises(InvalidArgument, match=r"Wrap a callable: scoretk\.Energy"):
        stk.from_(lambda x: x)
    with pytest.raises(InvalidArgument, match=r"Independent\(distribution, 1\)"):
        stk.from_(td.Normal(torch.zeros(3), 1.0))
    with pytest.raises(InvalidArgument, match=r"Independent\(distribution, 1\)"):
        stk.sample(td.Normal(torch.zeros(3), 1.0), chains=2)


OF = {f"{package}.some.module": package for package in foreign.NEAREST}


@pytest.mark.parametrize("module", OF)
@pytest.mark.parametrize("call", [stk.from_, CALLS["sample"], CALLS["tempered"]])
def test_another_object_of_a_library_names_what_its_adapter_takes(module, call):
    strange = type("Trainer", (), {"__module__": module})()
    said = re.escape(f"scoretk.{foreign.NEAREST[OF[module]]}")
    with pytest.raises(InvalidArgument, match=said):
        call(strange)


def test_what_is_nearest_is_a_public_adapter():
    named = {taken.split()[0] for taken in foreign.NEAREST.values()}
    assert named <= {*stk.__all__}
    packages = {package for package, _ in foreign.ADAPTERS} - {"torch", "sklearn"}
    assert packages <= foreign.NEAREST.keys()


def test_every_adapter_of_the_table_is_public_and_dispatched_to():
    assert {*foreign.ADAPTERS.values()} == BY_NAME.keys()
    assert BY_NAME.keys() <= {*stk.__all__}


def written_for(*packages):
    """A function that names modules of these packages, as a model imports them."""
    names = {package: types.ModuleType(f"{package}.some") for package in packages}
    scope = {f"m{i}": module for i, module in enumerate(names.values())}
    exec(f"def model(x): return [{', '.join(scope)}]", scope)
    return scope["model"]


@pytest.mark.parametrize(
    ("packages", "adapter"),
    [
        (["numpyro"], "from_numpyro"),
        (["jax", "numpyro"], "from_numpyro"),
        (["pyro", "torch"], "from_pyro"),
        (["jax", "torch"], "from_jax"),
    ],
)
@pytest.mark.parametrize("call", [stk.from_, CALLS["sample"], CALLS["tempered"]])
def test_a_function_shows_its_library_by_the_names_that_it_uses(packages, adapter, call):
    model = written_for(*packages)
    for one in (model, functools.partial(model, 1)):
        with pytest.raises(InvalidArgument, match=rf"\. scoretk\.{adapter} takes"):
            call(one)


@pytest.mark.parametrize("call", [stk.from_, CALLS["sample"], CALLS["tempered"]])
def test_a_function_of_no_library_is_told_all_ways(call):
    with pytest.raises(InvalidArgument) as refused:
        call(lambda x: later)
    said = str(refused.value)
    for adapter in foreign.FUNCTIONS.values():
        assert f"scoretk.{adapter}(" in said
    assert "jaxlib" not in said
    later = None


def test_a_model_that_its_adapter_cannot_run_names_the_library_that_it_is_of():
    by_helpers = types.FunctionType(
        compile("raise AssertionError", "", "exec"), {"__name__": "numpyro.primitives"}
    )
    try:
        by_helpers()
    except AssertionError as error:
        raised = error
    assert "scoretk.from_numpyro(" in str(foreign.unfit((lambda x: x), "pyro", raised))
    own = foreign.unfit((lambda x: x), "numpyro", raised)
    assert str(own).endswith("It raised AssertionError")
    assert "scoretk.from_pyro(" in str(foreign.unfit(written_for("pyro"), "numpyro"))
    assert "All of it is observed" in str(foreign.unfit(written_for("pyro"), "pyro"))


@pytest.mark.parametrize("call", [stk.from_, CALLS["tempered"]])
def test_a_name_is_told_who_makes_an_object_of_it(call):
    for name in ("digits-flow", "gpt2", pathlib.Path("folder")):
        with pytest.raises(InvalidArgument) as refused:
            call(name)
        for way in ("scoretk.load(", "scoretk.load_pretrained(", "scoretk.from_language_model("):
            assert way in str(refused.value)


@pytest.mark.parametrize("call", [stk.from_, CALLS["sample"], CALLS["tempered"]])
def test_a_density_of_scipy_names_the_way(call):
    stats = pytest.importorskip("scipy.stats")
    rows = [[0.0, 1.0, 2.0, 4.0], [1.0, 0.0, 3.0, 2.0]]
    for density, way in (
        (stats.multivariate_normal([0.0, 0.0]), r"scoretk\.from_distribution takes"),
        (stats.gaussian_kde(rows), r"scoretk\.from_sklearn takes .*grad=g"),
        (
            stats.norm(0.0, 1.0),
            r"scoretk\.Energy\(lambda x: -d\.logpdf\(x\), event_shape, grad=g\)",
        ),
    ):
        with pytest.raises(InvalidArgument, match=way):
            call(density)


def test_a_handler_around_a_model_of_numpyro_is_taken():
    """As `numpyro.handlers.condition(model, data)`."""
    condition = type(
        "condition", (type("Messenger", (), {"__module__": "numpyro.primitives"}),), {}
    )
    assert foreign.adapter_of(condition()) == "from_numpyro"


MAKERS = {
    "Energy": lambda f: stk.Energy(f, (2,)),
    "grad": lambda f: stk.Energy(lambda x: x.sum(1), (2,), grad=f),
    "Score": lambda f: stk.Score(f, (2,)),
    "Diffusion": lambda f: stk.Diffusion(f, (2,)),
    "Velocity": lambda f: stk.Velocity(f, (2,)),
    "from_timesteps": lambda f: stk.from_timesteps(f, [0.9, 0.5], (2,)),
    "from_sigmas": lambda f: stk.from_sigmas(f, (2,)),
    "from_reversed_time": lambda f: stk.from_reversed_time(f, (2,)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_no_function_names_its_adapter(name):
    with pytest.raises(
        InvalidArgument, match=r"a callable.*Flow: scoretk\.from_flow makes a field"
    ):
        MAKERS[name](Flow())
    with pytest.raises(InvalidArgument, match=r"expected a callable"):
        MAKERS[name](3)


# --- parametrisations


@pytest.mark.parametrize("alias", [*ALSO_KNOWN_AS, "v-prediction", "Epsilon", "X_Start", "DATA"])
def test_other_names_of_predictions_mean_ours(alias):
    name = prediction_name(alias)
    assert name in PREDICTIONS

    def net(x, t):
        return x * 0.3

    x, t = torch.linspace(-1, 1, 4)[:, None], torch.full((4,), 0.4)
    ours, theirs = (stk.Diffusion(net, (1,), predicts=p) for p in (name, alias))
    assert theirs.predicts == name
    torch.testing.assert_close(theirs.denoise(x, t), ours.denoise(x, t))
    table = [0.9, 0.5, 0.1]
    assert stk.from_timesteps(net, table, (1,), alias).predicts == name
    assert stk.from_sigmas(net, (1,), predicts=alias).predicts == name
    reverse = [stk.from_reversed_time(net, (1,), stk.Linear(), predicts=p) for p in (name, alias)]
    torch.testing.assert_close(reverse[0].velocity(x, t), reverse[1].velocity(x, t))


def test_a_third_partys_field_may_use_them():
    class Theirs:
        event_shape, path, predicts = (1,), stk.VP(), "epsilon"

        def at(self, t):
            raise NotImplementedError

        def predict(self, x, t):
            return 0.3 * x

    x = torch.linspace(-1, 1, 4)[:, None]
    ours = stk.Diffusion(lambda x, t: 0.3 * x, (1,), predicts="noise")
    found = stk.sample(Theirs(), stk.ProbabilityFlow(steps=4), chains=4, init=x).final
    torch.testing.assert_close(
        found, stk.sample(ours, stk.ProbabilityFlow(steps=4), chains=4, init=x).final
    )


def test_an_ambiguous_direction_is_refused_with_the_way():
    """diffusers' flow prediction is noise - data: read as dx/dt it would have the wrong sign."""
    for make in (stk.Diffusion, stk.from_sigmas):
        with pytest.raises(UnknownName, match="from_reversed_time"):
            make(lambda x, t: x, (1,), predicts="flow_prediction")
    with pytest.raises(UnknownName, match="did you mean 'noise'"):
        stk.Diffusion(lambda x, t: x, (1,), predicts="noize")


def test_an_unknown_prediction_is_told_the_names_of_other_packages():
    with pytest.raises(UnknownName) as refused:
        stk.Diffusion(lambda x, t: x, (1,), predicts="eps_pred")
    for alias, ours in ALSO_KNOWN_AS.items():
        assert re.search(rf"{ours} is also [^;]*\b{alias}\b", str(refused.value))


def test_wrappers_of_torch_and_python_are_looked_through():
    zuko = importing("zuko")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow, of_rows = zuko.flows.NSF(2, hidden_features=[4]), zuko.flows.NSF(2, 1)
    x = torch.tensor([[0.3, -1.0]])
    expected = stk.from_flow(flow).log_prob(x)
    held = torch.nn.DataParallel(flow)
    torch.testing.assert_close(stk.from_(held).log_prob(x), expected)
    with pytest.raises(InvalidArgument, match="bound to is a condition"):
        stk.from_(functools.partial(of_rows, torch.zeros(1)))
    with pytest.raises(InvalidArgument, match=r"DataParallel: scoretk\.from_flow makes"):
        stk.sample(held, chains=2)
