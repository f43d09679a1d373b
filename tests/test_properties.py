# ruff: noqa: PLW0108  (one shape for every row of the tables)
"""Whatever is passed to the public functions, what comes out is a result or a `ScoretkError` that names the argument."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import scoretk as stk
from scoretk.models.targets.mixture import ring_mixture

settings.register_profile(
    "scoretk", deadline=None, database=None, derandomize=True, max_examples=25
)
settings.load_profile("scoretk")

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5),
    st.floats(),
    # Of all that UTF-8 has: asked of by the codec's name, each of a million characters is encoded.
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.just(torch.zeros(2)),
    st.just(torch.full((2, 2), torch.nan)),
    st.just((1, 2)),
    st.just({}),
    st.just(torch.float16),
    st.just(object()),
)
SAMPLE = (
    "chains",
    "steps",
    "warmup",
    "thin",
    "seed",
    "init",
    "cond",
    "keep",
    "grad",
    "batch",
    "device",
    "dtype",
    "compile",
    "checkpoint",
    "progress",
    "on_failure",
)


def named_or_fine(call, *names):
    said = None
    try:
        call()
    except stk.ScoretkError as error:
        said = str(error)
    assert said is None or any(name in said for name in names), f"does not name {names}: {said}"


@given(name=st.sampled_from(SAMPLE), value=ANYTHING)
def test_sample(name, value):
    if (name in ("compile", "progress") and value is True) or (
        name == "checkpoint" and isinstance(value, str)
    ):
        return
    options = {"chains": 3, "steps": 2} | {name: value}
    if name == "init":
        options.pop("chains")
    named_or_fine(lambda: stk.sample(ring_mixture(), stk.ULA(0.1), **options), name)


@pytest.mark.thorough
@given(value=ANYTHING)
def test_sample_refuses_fields_and_solvers(value):
    named_or_fine(lambda: stk.sample(value, stk.ULA(0.1), chains=2, steps=1), "field", "model")
    named_or_fine(lambda: stk.sample(ring_mixture(), value, chains=2, steps=1), "solver")


SOLVER_OPTIONS = [
    (stk.ULA, "step_size"),
    (stk.ULA, "temperature"),
    (stk.ULA, "clip"),
    (stk.ULA, "box"),
    (stk.MALA, "step_size"),
    (stk.AnnealedLangevin, "levels"),
    (stk.AnnealedLangevin, "steps_per_level"),
    (stk.AnnealedLangevin, "step_size"),
    (stk.ProbabilityFlow, "method"),
    (stk.HMC, "step_size"),
    (stk.HMC, "leapfrogs"),
    (stk.HMC, "jitter"),
    (stk.HMC, "metric"),
    (stk.HMC, "accept"),
    (stk.Warmup, "pilot"),
    (stk.Warmup, "steps"),
    (stk.Underdamped, "step_size"),
    (stk.Underdamped, "friction"),
    (stk.Underdamped, "temperature"),
    (stk.GHMC, "friction"),
    (stk.ChEES, "step_size"),
    (stk.ChEES, "length"),
    (stk.ChEES, "learning_rate"),
    (stk.ChEES, "most"),
    (stk.ProbabilityFlow, "steps"),
    (stk.ProbabilityFlow, "grid"),
    (stk.ProbabilityFlow, "rtol"),
    (stk.ProbabilityFlow, "max_steps"),
]


@given(option=st.sampled_from(SOLVER_OPTIONS), value=ANYTHING)
def test_solver_options(option, value):
    solver, name = option
    needed = {"step_size": 0.1} if solver in (stk.ULA, stk.MALA, stk.Underdamped, stk.GHMC) else {}
    named_or_fine(lambda: solver(**(needed | {name: value})), name)


FIELDS = [
    (lambda v: stk.Energy(v, (2,)), "fn"),
    (lambda v: stk.Energy(torch.sum, v), "event_shape"),
    (lambda v: stk.Score(v, (2,)), "fn"),
    (lambda v: stk.Diffusion(torch.sin, v), "event_shape"),
    (lambda v: stk.Diffusion(torch.sin, (2,), v), "path"),
    (lambda v: stk.Diffusion(torch.sin, (2,), stk.VP(), v), "prediction"),
    (lambda v: stk.Velocity(torch.sin, (2,), base=v), "base"),
    (lambda v: stk.tempered(ring_mixture(), v), "temperature"),
    (lambda v: stk.VP(v), "beta"),
    (lambda v: stk.VE(v), "sigma"),
    (lambda v: stk.EDM(rho=v), "rho"),
    (lambda v: stk.Tabulated(v), "alphas_cumprod"),
    (lambda v: stk.from_distribution(v), "distribution"),
    (lambda v: stk.log_prob(ring_mixture(), v), "x"),
    (lambda v: stk.ReplayBuffer(v), "size"),
    (lambda v: stk.ReplayBuffer(3, v), "refresh"),
    (lambda v: stk.ContrastiveDivergence(stk.ULA(0.1), steps=v), "steps"),
    (lambda v: stk.guided(ring_mixture(), v, null={}), "weight"),
    (lambda v: stk.Noise(v, 2), "seed"),
    (lambda v: stk.Noise(0, v), "chains"),
    (lambda v: stk.load(v), "name"),
]


@given(case=st.sampled_from(FIELDS), value=ANYTHING)
def test_fields_and_the_rest(case, value):
    call, name = case
    named_or_fine(lambda: call(value), name, "model")
