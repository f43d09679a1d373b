"""`conformance.check_on_data`: what a network predicts, and the sign and scale of a score, are told by data."""

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.conformance import check_on_data
from scoretk.fields.convert import PREDICTIONS, convert
from scoretk.models.digits.data import load_digits

PATHS = [stk.VP(), stk.VE(), stk.EDM(), stk.Linear(), stk.Cosine()]
GENERATOR = torch.Generator().manual_seed(2)
DATA = 1 + 0.5 * torch.randn(256, 2, generator=GENERATOR)


def normal(path, is_, says, mean=1.0):
    """The field of N(mean, 1/4) by a network that predicts `is_` and is said to predict `says`."""

    def net(x, t):
        alpha, sigma = (of(t.double()).to(x)[:, None] for of in (path.alpha, path.sigma))
        shrink = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return convert(mean + shrink * (x - alpha * mean), x, t, path, "data", is_)

    return stk.Diffusion(net, (2,), path, predicts=says)


def statuses(field, data=DATA, **options):
    return {result.check: result.status for result in check_on_data(field, data, **options)}


@pytest.mark.parametrize("says", PREDICTIONS)
@pytest.mark.parametrize("is_", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_network_that_is_read_as_it_was_not_trained_is_told(path, is_, says):
    """And none that is read as it was, under any seed."""
    for seed in range(3 if is_ == says else 1):
        results = check_on_data(normal(path, is_, says), DATA, seed=seed)
        assert (results[1].status == "passed") == (is_ == says)
        assert is_ == says or f"predicts={is_!r}" in results[1].detail
        assert results[0].status == "passed" or is_ != says


def test_a_law_elsewhere_is_told():
    """Which time the other way round would not mend."""
    told = check_on_data(normal(stk.VP(), "noise", "noise", mean=4.0), DATA)
    assert told[0].status == "failed"
    assert "from_reversed_time" not in told[1].detail


@pytest.mark.parametrize("is_", PREDICTIONS)
@pytest.mark.parametrize("path", [stk.Linear(), stk.VP()], ids=repr)
def test_a_time_that_runs_back_is_told_with_what_would_mend_it(path, is_):
    net = normal(path, is_, is_).predict
    sign = -1 if is_ == "velocity" else 1
    back = lambda x, t: sign * net(x, 1 - t)  # noqa: E731
    told = check_on_data(stk.Diffusion(back, (2,), path, predicts=is_), DATA)
    assert told[1].status == "failed"
    assert f"from_reversed_time(..., predicts={is_!r})" in told[1].detail
    mended = stk.from_reversed_time(back, (2,), path, predicts=is_)
    assert statuses(mended) == {"denoises": "passed", "predicts": "passed"}


@pytest.mark.parametrize(
    ("factor", "status"), [(1, "passed"), (-1, "failed"), (0.2, "failed"), (4, "failed")]
)
@pytest.mark.parametrize("kind", ["energy", "score"])
def test_a_score_of_another_sign_or_scale_is_told(kind, factor, status):
    field = (
        stk.Energy(lambda x: factor * 2 * (x - 1).square().sum(1), (2,))
        if kind == "energy"
        else stk.Score(lambda x: -factor * 4 * (x - 1), (2,))
    )
    (result,) = check_on_data(field, DATA)
    assert (result.check, result.status) == ("slopes", status)
    assert ("wrong sign" in result.detail) == (factor < 0)


@pytest.mark.parametrize(
    "name", ["digits-diffusion", "digits-edm", "digits-v", "digits-flow", "digits-ncsn"]
)
def test_shipped_models_are_what_they_are_said_to_be(name):
    field = stk.load(name)
    data = load_digits().test.reshape(-1, *field.event_shape)[:64]
    assert set(statuses(field, data).values()) == {"passed"}


def test_conditions_are_rows_beside_the_data():
    field = normal(stk.VP(), "noise", "noise")
    given = stk.Diffusion(
        lambda x, t, shift: field.predict(x - 0 * shift, t), (2,), stk.VP(), predicts="noise"
    )
    assert set(statuses(given, cond={"shift": torch.ones(256, 1)}).values()) == {"passed"}


@pytest.mark.parametrize(
    "data",
    [
        DATA[:31],
        DATA[:, :1],
        DATA.tolist(),
        torch.ones(64, 2),
        DATA.where(DATA < 2, torch.nan),
        DATA.long(),
    ],
    ids=["few", "shape", "no tensor", "alike", "NaN", "whole"],
)
def test_data_that_say_nothing_are_refused(data):
    for field in (normal(stk.VP(), "noise", "noise"), stk.load("gaussian", dim=2)):
        with pytest.raises(stk.InvalidArgument, match="data"):
            check_on_data(field, data)


@pytest.mark.parametrize("wrong", [False, True])
def test_data_of_a_constrained_law_are_in_the_users_space(wrong):
    """As its draws are; outside its support there are none."""
    laws = {
        "gamma": (td.Gamma(3.0, 1.0), td.Gamma(3.0, 50.0)),
        "simplex": (td.Dirichlet(torch.full((3,), 4.0)), td.Dirichlet(torch.full((3,), 200.0))),
    }
    for law, other in laws.values():
        field = stk.from_distribution(other if wrong else law)
        with torch.random.fork_rng():
            torch.manual_seed(4)
            data = law.sample((400,))
        assert statuses(field, data) == {"slopes": "failed" if wrong else "passed"}
        with pytest.raises(stk.InvalidArgument, match="inside the constraint"):
            check_on_data(field, -data)


def test_a_flow_without_a_gaussian_path_is_refused():
    flow = stk.Velocity(lambda x, t: x, (2,), base=stk.load("gaussian", dim=2))
    with pytest.raises(stk.MissingCapability, match="Gaussian path"):
        check_on_data(flow, DATA)
