"""Keyword arguments from elsewhere: the error says which of ours is meant, or what else takes it."""

import dataclasses
import enum
import inspect
import operator
import pickle

import pytest

import scoretk as stk
from scoretk.core.keywords import _OURS, MEANT, WAYS, explained
from scoretk.solvers import EXAMPLES, SOLVERS

FIELD = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
ASKED = {
    "num_samples": "mean 'steps'",
    "draws": "mean 'steps'",
    "tune": "mean 'warmup'",
    "num_chains": "mean 'chains'",
    "random_seed": "mean 'seed'",
    "initvals": "mean 'init'",
    "kernel": "mean 'solver'",
    "num_inference_steps": r"ProbabilityFlow\(steps=\.\.\.\)",
    "nfe": r"ProbabilityFlow\(steps=\.\.\.\)",
    "step_size": r"of ULA, MALA, .*scoretk\.ULA\(step_size=\.\.\.\)",
    "target_accept": "'accept' is an argument of MALA",
    "max_treedepth": r"scoretk\.NUTS\(max_depth=\.\.\.\)",
    "sigma_max": r"scoretk\.EDM",
    "guidance_scale": r"scoretk\.guided",
    "cores": "batch=",
    "stpes": "mean 'steps'",
    "zzz": "It takes field, solver",
}
MADE = {
    ("NUTS", "num_samples"): r"scoretk\.sample\(field, solver, \.\.\.\) takes 'steps'",
    ("NUTS", "target_accept"): "mean 'accept'",
    ("HMC", "num_steps"): "mean 'leapfrogs'",
    ("MALA", "stepsize"): "mean 'step_size'",
    ("ULA", "chains"): r"scoretk\.sample\(field, solver, \.\.\.\) takes 'chains'",
    ("ProbabilityFlow", "num_inference_steps"): "mean 'steps'",
    ("ProbabilityFlow", "sigma_max"): r"scoretk\.EDM",
    ("Energy", "dim"): "mean 'event_shape'",
    ("EDM", "sigmamax"): "mean 'sigma_max'",
    ("from_diffusers", "unet"): "mean 'model'",
    ("from_flow", "shape"): "mean 'event_shape'",
    ("guided", "cfg_scale"): "mean 'weight'",
    ("ContrastiveDivergence", "k_steps"): "mean 'steps'",
    ("ContrastiveDivergence", "persistent"): "mean 'start'",
    ("LinearGaussian", "noise_std"): "mean 'std'",
    ("learn.Recipe", "lr"): "mean 'learning_rate'",
    ("learn.Recipe", "batch_size"): "mean 'batch'",
    ("learn.fit", "steps"): r"It is a setting: Recipe\(steps=\.\.\.\)",
    ("learn.fit", "lr"): r"It is a setting: Recipe\(learning_rate=\.\.\.\)",
    ("learn.fit", "evalute"): "mean 'evaluate'",
    ("learn.fit", "progress"): "mean 'report'",
    ("log_partition", "cond"): "Bind the condition first",
    ("product", "weights"): r"scoretk\.tempered\(field, 1 / w\).*It takes \*fields$",
    ("diagnostics.rhat", "draws"): "It takes x",
}


@pytest.mark.parametrize("name", ASKED)
def test_sample_says_what_was_meant(name):
    with pytest.raises(stk.UnknownArgument, match=ASKED[name]) as caught:
        stk.sample(FIELD, **{name: 1})
    assert isinstance(caught.value, TypeError)
    assert caught.value.name == name


@pytest.mark.parametrize(("where", "name"), MADE)
def test_solvers_fields_and_adapters_say_what_was_meant(where, name):
    with pytest.raises(stk.UnknownArgument, match=MADE[where, name]):
        operator.attrgetter(where)(stk)(**{name: 1})


MADE_OF = ("ContrastiveDivergence", "Energy", "Diffusion", "EDM", "LinearGaussian")
ROOMS = ("learn", "diagnostics", "plot", "grids", "conformance")
ANSWERS = (
    *("Broken", "Cost", "Draws", "Estimate", "Finding", "Latents", "Lazy", "Ranks"),
    *("StoredDraws", "Summary"),
    *("learn.CDStep", "learn.Divergence", "learn.Fit", "learn.Progress"),
    *("ModelSpec", "SolverSpec"),  # of plugins, which import nothing
    "Noise",  # made at every step
)
"""Public classes whose objects are answers of calls, and those with a reason."""


def public(kind):
    found = {name: getattr(stk, name) for name in stk.__all__}
    return {name: value for name, value in found.items() if kind(value)}


def public_everywhere(kind):
    found = public(kind)
    for room in ROOMS:
        home = getattr(stk, room)
        names = getattr(home, "__all__", dir(home))
        found |= {f"{room}.{name}": getattr(home, name) for name in names}
    return {name: value for name, value in found.items() if kind(value)}


def test_every_public_function_is_explained():
    """But those that list plugins, which are loaded without torch, and those that pass options on."""
    for name, function in public_everywhere(inspect.isfunction).items():
        signature = inspect.signature(function)
        passes = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        if not passes and not function.__module__.startswith("scoretk.plugins"):
            assert inspect.unwrap(function) is not function, f"{name}: core.keywords.explained"
            assert inspect.signature(inspect.unwrap(function)) == signature
            assert pickle.loads(pickle.dumps(function)) is function


def is_made(value):
    """Whether something is a class of which users make objects."""
    plain = inspect.isclass(value) and not issubclass(value, BaseException | enum.Enum)
    return plain and not getattr(value, "_is_protocol", False)


def test_every_public_class_that_users_make_is_explained():
    made = {n: kind for n, kind in public_everywhere(is_made).items() if n not in ANSWERS}
    mine = {n: kind for n, kind in made.items() if not n.startswith(("diagnostics", "conformance"))}
    assert len(mine) > 50
    for name, kind in mine.items():
        assert hasattr(kind.__init__, "__wrapped__"), f"{name}: core.keywords.explained_class"


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_explained_and_made_as_before(name):
    kind = SOLVERS[name]
    with pytest.raises(stk.UnknownArgument, match="it_is_not_one"):
        kind(it_is_not_one=1)
    assert dataclasses.replace(EXAMPLES[name]) == EXAMPLES[name]


def test_what_is_meant_exists():
    made = {name: kind for name, kind in public(inspect.isclass).items() if name in MADE_OF}
    functions = public(inspect.isfunction) | made | SOLVERS
    taken = {
        name for function in functions.values() for name in inspect.signature(function).parameters
    }
    assert set(_OURS) <= taken
    assert not MEANT.keys() & {"steps", "chains", "warmup", "seed", "init"}
    assert all(hasattr(stk, word) for way in WAYS.values() for word in ways_named(way))


def ways_named(way):
    return [part.split("(")[0].split()[0] for part in way.split("scoretk.")[1:]]


def test_a_mutant_that_is_not_explained_says_nothing():
    def plain(steps):
        return steps

    with pytest.raises(TypeError, match="unexpected keyword") as caught:
        plain(num_samples=1)
    assert not isinstance(caught.value, stk.ScoretkError)
    with pytest.raises(stk.UnknownArgument, match=r"plain\(\) .* mean 'steps'"):
        explained(plain)(num_samples=1)
    with pytest.raises(TypeError, match="missing 1 required"):
        explained(plain)()
    assert explained(plain)(steps=2) == 2


def test_beside_a_field_nothing_is_taken_without_a_word():
    with pytest.raises(stk.InvalidArgument, match="Leave out step="):
        stk.from_(FIELD, step=1)
    assert stk.from_(FIELD) is FIELD


def test_all_that_is_public_is_listed():
    assert set(stk.__all__) | {"errors", "plot", "learn", "grids", "conformance"} <= set(dir(stk))
    assert all(hasattr(stk, name) for name in dir(stk))


def test_warnings_point_at_the_users_line():
    """Through wrappers, and from however deep."""
    with pytest.warns(DeprecationWarning, match="pilot") as outdated:
        stk.HMC(pilot=5)
    energy = stk.Energy(lambda x: x.square().sum(1) / 2, (2,), grad=lambda x: 3 * x)
    with pytest.warns(UserWarning, match="slow here, though exact") as deep:
        stk.sample(energy, stk.MALA(0.1), chains=16, steps=60, progress=False)
    assert [w.filename for w in (*outdated, *deep)] == [__file__] * 2


MISSPELT = {
    "Mala": r"mean 'MALA'\?",
    "sampl": r"mean 'sample'\?",
    "ProbabilityFlows": r"mean 'ProbabilityFlow'\?",
    "fit": r": it is scoretk\.learn\.fit$",
    "rhat": r": it is scoretk\.diagnostics\.rhat$",
    "zzzzz": r"no attribute 'zzzzz'$",
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_name_that_is_not_here_is_told_where_it_is_or_how_it_is_spelt(name):
    with pytest.raises(AttributeError, match=MISSPELT[name]):
        getattr(stk, name)
