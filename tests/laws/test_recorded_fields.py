"""Paths, conversions, fields, laws, constraints and measurements answer what they did (`tests/recorded.py`)."""

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.fields.convert import PREDICTIONS, coefficients
from scoretk.fields.distribution import in_free_space
from scoretk.fields.posterior import POSTERIOR_METHODS
from scoretk.fields.resolve import offers
from tests.laws.test_fields import ALL_PATHS, INSIDE
from tests.laws.test_rows_alone import FIELDS, LABEL, STATIC, TIMES, X
from tests.recorded import or_error, randn, recorded
from tests.test_supports import LAWS, REAL, points

ENDS = torch.tensor([0.0, 1e-3, 0.2, 0.45, 0.7, 0.999, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("path", ALL_PATHS, ids=lambda p: type(p).__name__)
def test_paths_and_conversions(path):
    inner = ENDS[1:-1]
    curves = {n: getattr(path, n)(ENDS) for n in ("alpha", "sigma", "dalpha", "dsigma")}
    turns = path.sigma_dsigma(ENDS), path.log_snr(inner), path.t(path.log_snr(inner)), path(0.3)
    pairs = {
        f"{a} from {b} at {t}": or_error(lambda a=a, b=b, t=t: coefficients(path, t, b, a))
        for a in PREDICTIONS
        for b in PREDICTIONS
        for t in (0.0, 0.37, 1.0)
    }
    recorded(f"path {path!r}", (curves, turns, path.t(torch.tensor([-400.0, 400.0])), pairs))


@pytest.mark.parametrize("name", FIELDS)
def test_fields_in_time(name):
    make, cond = FIELDS[name]
    field = make()
    noise = Noise(3, 4, dtype=torch.float64)
    answers = {a: getattr(field, a)(X, TIMES, **cond) for a in ("denoise", "score", "velocity")}
    start = or_error(lambda: field.base.draw(4, noise))
    recorded(
        f"field {name}",
        (sorted(offers(field)), answers, start, or_error(lambda: field.at(0.4).score(X, **cond))),
    )


@pytest.mark.parametrize("name", STATIC)
def test_static_fields(name):
    field, noise = STATIC[name](), Noise(3, 4, dtype=torch.float64)
    asked = [
        a
        for a in ("energy", "score", "energy_and_grad", "constrain")
        if callable(getattr(field, a, None))
    ]
    answers = {
        a: or_error(lambda a=a: getattr(field, a)(X, **{} if a == "constrain" else LABELLED))
        for a in asked
    }
    starts = [
        or_error(lambda n=n: getattr(field, n)(4, noise))
        for n in ("initial", "draw")
        if callable(getattr(field, n, None))
    ]
    recorded(f"static field {name}", (sorted(offers(field)), answers, starts))


LABELLED = {"label": LABEL}


@pytest.mark.parametrize("name", [*LAWS, *REAL])
def test_distributions(name):
    law = (LAWS | REAL)[name]
    view, z = in_free_space(law), points(law)
    field, noise, x = (
        stk.from_distribution(law),
        Noise(5, 3, dtype=torch.float64),
        getattr(view, "constrain", lambda z: z)(z),
    )
    drawn = [
        or_error(lambda n=n: getattr(field, n)(3, noise))
        for n in ("draw", "initial")
        if callable(getattr(field, n, None))
    ]
    told = (
        sorted(offers(field)),
        field.event_shape,
        view.event_shape,
        or_error(lambda: field.score(x)),
    )
    recorded(
        f"law {name}",
        (view.energy(z), view.score(z), x, or_error(lambda: field.energy(-x)), drawn, told),
    )


@pytest.mark.parametrize("name", INSIDE)
def test_constraints(name):
    constraint, shape = INSIDE[name]
    field = stk.constrained(stk.Energy(lambda x: (x**2).flatten(1).sum(1) / 2, shape), constraint)
    z = randn(3, *field.event_shape)
    x = field.constrain(z)
    far = field.constrain(40 * z), field.constrain(-40 * z)
    answers = field.energy(z), field.score(z), field.unconstrain(x), far
    recorded(
        f"constraint {name}",
        (field.event_shape, x, answers, or_error(lambda: field.unconstrain(-x))),
    )


OPERATORS = {
    "a matrix": (
        stk.LinearGaussian(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), [0.4, -0.2], 0.3),
        (3,),
    ),
    "a mask": (
        stk.LinearGaussian(stk.Mask(torch.tensor([1, 0, 1, 1]) > 0), torch.ones(3), 0.2),
        (4,),
    ),
    "means": (stk.LinearGaussian(stk.Downsample(2), torch.ones(1, 2, 2), 0.2), (1, 4, 4)),
    "a blur": (
        stk.LinearGaussian(
            stk.Blur(torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.4, 0.0], [0.0, 0.2, 0.1]])),
            torch.ones(1, 4, 4),
            0.2,
        ),
        (1, 4, 4),
    ),
    "waves": (stk.LinearGaussian(torch.fft.fft, torch.ones(4) + 0j, 0.2), (4,)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_measurements(name):
    likelihood, shape = OPERATORS[name]
    x = randn(2, *shape)
    field = stk.Diffusion(lambda x, t: torch.sin(3 * x), shape, stk.VP(), "noise")
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    answers = [
        or_error(lambda m=m: stk.posterior(field, likelihood, m).denoise(x, t))
        for m in (None, *POSTERIOR_METHODS)
    ]
    image = or_error(lambda: likelihood.forward(x))
    static = or_error(
        lambda: stk.posterior(
            stk.Energy(lambda x: x.square().flatten(1).sum(1), shape), likelihood
        ).score(x)
    )
    recorded(
        f"measurement {name}",
        (repr(likelihood), image, or_error(lambda: likelihood.log_likelihood(x)), static, answers),
    )
