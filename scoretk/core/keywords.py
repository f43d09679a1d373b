"""Keyword arguments that a function does not have: which one is meant, and where it belongs.

People bring names from other libraries, `num_samples=` or `tune=`, and give a solver's settings to
`sample`. A function marked by `explained` says in its error which of its arguments that is, or what
else takes it. No call that binds is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, TypeVar

from scoretk.errors import UnknownArgument

__all__ = ["MEANT", "WAYS", "explained", "explained_class"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_OURS = {
    "accept": "target_accept target_accept_prob target_accept_rate target_acceptance "
    "target_acceptance_rate adapt_delta acceptance_rate",
    "atol": "abs_tol absolute_tolerance",
    "batch": "batch_size minibatch",
    "chains": "num_chains n_chains nchains n_chain num_particles n_particles n_walkers nwalkers "
    "batch_size n_samples num_images num_images_per_prompt",
    "cond": "condition conditions context conditioning class_labels labels prompt_embeds "
    "encoder_hidden_states",
    "event_shape": "shape size dim ndim dims features sample_shape x_shape input_shape in_shape",
    "field": "model target logp log_prob log_prob_fn logdensity_fn potential potential_fn energy "
    "score score_fn score_model denoiser denoise_fn network unet posterior distribution",
    "friction": "gamma damping",
    "grid": "timesteps sigmas time_grid schedule t_grid time_steps",
    "init": "initvals init_params init_position initial_position initial_state initial_point inits "
    "x0 x_0 x_init start start_params current_state latents z0 noise",
    "keep": "return_samples store save trace backend",
    "leapfrogs": "num_steps n_steps l num_integration_steps num_leapfrog_steps n_leapfrog num_leapfrog leapfrog_steps "
    "int_steps",
    "learning_rate": "lr",
    "length": "trajectory_length path_length int_time",
    "logp": "logdensity logdensity_fn log_prob log_prob_fn log_density fn target potential_fn",
    "max_depth": "max_tree_depth max_treedepth max_num_doublings",
    "method": "solver_order algorithm integrator sampler",
    "metric": "mass_matrix inverse_mass_matrix inv_mass scaling dense_mass",
    "model": "network net unet transformer pipeline pipe denoiser velocity module",
    "net": "model network fn denoiser score_fn unet",
    "path": "schedule noise_schedule sde process",
    "predicts": "prediction_type parameterization parametrization model_type",
    "progress": "progressbar progress_bar show_progress display_progress show_progressbars verbose",
    "replicas": "num_replicas n_temps ntemps",
    "report": "progress progress_bar progressbar verbose callback callbacks logger",
    "rtol": "rel_tol relative_tolerance",
    "seed": "random_seed random_state rng rng_key key prng_key generator rng_seed",
    "solver": "kernel sampler step method algorithm nuts_sampler inference_method",
    "std": "noise noise_std noise_level sigma sigma_y scale",
    "start": "persistent buffer replay_buffer",
    "step_size": "stepsize step epsilon eps lr learning_rate dt h delta initial_step_size scale "
    "step_scale",
    "steps": "num_samples n_samples nsamples num_draws n_draws ndraws draws iter_sampling iterations "
    "num_iterations n_iterations n_iter num_iters num_results num_steps n_steps nsteps niter "
    "num_inference_steps inference_steps num_timesteps nfe sampling_steps sample_steps samples "
    "k k_steps cd_k epochs num_epochs n_epochs max_epochs max_steps",
    "temperature": "temp t beta",
    "thin": "thinning thin_by num_steps_between_results",
    "warmup": "num_warmup n_warmup tune n_tune burn_in burnin n_burn nburn num_burnin_steps "
    "iter_warmup warmup_steps num_tune adapt_steps num_adaptation_steps",
    "weight": "guidance_scale cfg_scale guidance cfg scale",
    "x": "observation x_o x_obs obs data default_x",
}
MEANT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        name: tuple(ours for ours, theirs in _OURS.items() if name in theirs.split())
        for name in {name for theirs in _OURS.values() for name in theirs.split()}
    }
)
"""The arguments of this package that a name from elsewhere may mean."""

WAYS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("guidance_scale", "cfg_scale", "guidance", "cfg", "negative_prompt"),
        "Guidance is of the field: scoretk.guided(field, weight, null=...)",
    )
    | dict.fromkeys(
        ("cores", "num_cores", "n_jobs", "parallel", "chain_method", "num_workers", "processes"),
        "All chains run at once: batch= limits how many, scoretk.distributed has many processes",
    )
    | dict.fromkeys(
        ("weights", "powers", "exponents"),
        "A power p^w is scoretk.tempered(field, 1 / w); shares are those of "
        "scoretk.mixture(fields, weights)",
    )
    | dict.fromkeys(
        ("return_inferencedata", "idata_kwargs", "inference_data"),
        "draws.to_arviz() gives ArviZ's data",
    )
    | dict.fromkeys(
        ("sigma_max", "sigma_min", "rho", "beta_min", "beta_max", "beta_start", "beta_end"),
        "Levels of noise are of the field's path: scoretk.Diffusion(net, event_shape, scoretk.EDM("
        "sigma_min, sigma_max, rho), predicts)",
    )
)
"""What to do with a name that is no argument of any function here, as what takes it is elsewhere."""

OF_A_GRID = frozenset(
    [
        "num_inference_steps",
        "inference_steps",
        "num_timesteps",
        "nfe",
        "sampling_steps",
        "sample_steps",
    ]
)
"""What others call the steps of a solver with a grid."""
_OWN_STEPS = "A solver with a grid has its own: scoretk.ProbabilityFlow(steps=...)"

_BIND = (
    "Bind the condition first: "
    "scoretk.Energy(lambda x: field.energy(x, y=y.expand(len(x), *y.shape)), event_shape)"
)

_TAKERS: dict[str, list[str]] = {}
"""The classes that take an argument, by its name; in the order in which they were made."""


def explained(function: _Function, label: str = "", *, settings: type | None = None) -> _Function:
    """The same function, which says what was meant by a keyword argument that it does not have.

    Args:
        function: A function; one that takes any keyword is given back as it is.
        label: What the message calls it; "" for its name.
        settings: The class of one of its arguments that holds its settings, which are looked for
            there first.

    Returns:
        The function, with its signature.
    """
    parameters = signature(function).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return function
    by_keyword = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    known = {p.name: None for p in parameters if p.kind in by_keyword and p.name != "self"}
    shown = [f"*{p.name}" for p in parameters if p.kind is Parameter.VAR_POSITIONAL]
    hidden = getattr(function, "__kwdefaults__", None) or {}  # what a wrapper of it takes beside
    called = label or f"{getattr(function, '__name__', 'the function')}()"

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if not options.keys() <= known.keys() | hidden.keys():
            unknown = next(name for name in options if name not in {**known, **hidden})
            way = _setting(unknown, settings) or _way(unknown, known)
            raise UnknownArgument(called, unknown, [*shown, *known], way)
        return function(*args, **options)

    return call  # type: ignore[return-value]  # whose signature is the function's


def explained_class(made: type, *, named: bool = False) -> None:
    """Let the constructor of a class say what was meant by an argument that it does not have.

    The class stays the same object.

    Args:
        made: The class.
        named: Whether others name it where they are given an argument that it has.
    """
    own = made.__init__  # type: ignore[misc]
    for name in list(signature(own).parameters)[1:] if named else ():
        _TAKERS.setdefault(name, []).append(made.__name__)
    setattr(made, "__init__", explained(own, f"{made.__name__}()"))  # noqa: B010


def _setting(name: str, settings: type | None) -> str:
    """Which setting is meant, of a class that holds them; "" where none is."""
    if settings is None:
        return ""
    own = list(signature(settings).parameters)
    meant = [name] if name in own else [ours for ours in MEANT.get(name.lower(), ()) if ours in own]
    return f"It is a setting: {settings.__name__}({meant[0]}=...)" if meant else ""


def _way(name: str, known: Iterable[str]) -> str:
    """What to do about an argument of this name, where these are the arguments that there are."""
    asked, taken = name.lower().strip("_"), list(known)
    meant = [ours for ours in MEANT.get(asked, ()) if ours in taken]
    if meant:
        said = f"Did you mean {' or '.join(map(repr, meant))}?"
        on_a_grid = asked in OF_A_GRID and "solver" in taken
        return f"{said} {_OWN_STEPS}" if on_a_grid else said
    if asked in WAYS:
        return WAYS[asked]
    if asked == "cond" and "field" in taken:
        return _BIND
    near = get_close_matches(asked, taken, n=1)
    return (
        _elsewhere(name)
        or (f"Did you mean {near[0]!r}?" if near else "")
        or next(filter(None, map(_elsewhere, MEANT.get(asked, ()))), "")
    )


def _elsewhere(name: str) -> str:
    """What else takes an argument of this name; "" where nothing known does."""
    if name in _ELSEWHERE:
        return f"{_ELSEWHERE[name]} takes {name!r}"
    takers = _TAKERS.get(name)
    if not takers:
        return ""
    some = ", ".join(takers[:6]) + (", ..." if len(takers) > 6 else "")
    return f"{name!r} is an argument of {some}: such as scoretk.{takers[0]}({name}=...)"


_ELSEWHERE: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("chains", "steps", "warmup", "thin", "seed", "init", "keep", "progress", "cond"),
        "scoretk.sample(field, solver, ...)",
    )
    | {"weight": "scoretk.guided(field, weight)"}
)
"""What takes an argument that is no class's."""
