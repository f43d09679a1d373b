"""The laws of a field, each a function of a subject and a case that raises `Violation`.

The docstring of a law is the law in words, as reports show it.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from scoretk.conformance.precision import in_float64
from scoretk.conformance.subject import Case, NotApplicable, Subject, close, demand
from scoretk.core.rows import finite_rows, row_dot
from scoretk.errors import MissingCapability, SingularConversion
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import CAPABILITIES, is_timed, offers, optional
from scoretk.fields.resolve import StaticField, TimedField, resolve

__all__ = ["LAWS", "Law"]

Law = Callable[[Subject, Case], None]

SCALARS = ("energy", "log_prob")
PREDICTION = {"denoise": "data", "score": "score", "velocity": "velocity"}


def _arrange(shape: tuple[int, ...], n: int, name: str) -> tuple[int, ...]:
    return (n,) if name in SCALARS else (n, *shape)


def claimed(s: Subject, case: Case) -> None:
    """Every claimed capability is there, and solvers can use it"""
    shape = s.field.event_shape
    sizes = all(type(n) is int and n > 0 for n in shape)
    demand(
        isinstance(shape, tuple) and sizes,
        f"event_shape: {shape!r} is no tuple of positive integers",
    )
    for name in sorted(s.claims | offers(s.field)):
        demand(name in CAPABILITIES, f"{name} is claimed, which is no capability")
        demand(name in offers(s.field), f"{name} is claimed but not offered")
        demand(
            getattr(s.field, name, None) is not None,
            f"{name} is offered but the field has no such attribute",
        )
    resolve(
        s.field,
        (set(s.methods) & {"energy", *PREDICTION}) | (offers(s.field) & {"states", "gibbs"}),
    )


def unclaimed(s: Subject, case: Case) -> None:
    """A method that is not offered says so with MissingCapability"""
    for name in sorted(
        set(CAPABILITIES) - offers(s.field) - s.claims - {"base", "states", "gibbs"}
    ):
        if not callable(getattr(s.field, name, None)):
            continue
        try:
            s.ask(name, case)
        except MissingCapability:
            continue
        demand(False, f"{name} is not offered, yet calling it does not raise MissingCapability")


def shapes(s: Subject, case: Case) -> None:
    """shape, dtype and device are kept"""
    for name, x, _, got in s.answers(case):
        demand(isinstance(got, Tensor), f"{name} returned a {type(got).__name__}, not a tensor")
        expected = (
            (case.rows, *got.shape[1:]) if name == "decode" else _arrange(s.shape, case.rows, name)
        )
        demand(
            tuple(got.shape) == expected, f"{name}: shape {tuple(got.shape)}, expected {expected}"
        )
        demand(got.dtype == x.dtype, f"{name}: {got.dtype} for x of {x.dtype}")
        demand(got.device == x.device, f"{name}: on {got.device} for x on {x.device}")


def finite(s: Subject, case: Case) -> None:
    """Somewhere near its start the field is finite"""
    wide = replace(case, rows=64)
    for name, _, _, got in s.answers(wide):
        demand(
            bool(finite_rows(got).any()),
            f"{name}: NaN or infinite at all of {wide.rows} starting points",
        )


def repeatable(s: Subject, case: Case) -> None:
    """The same question has the same answer"""
    for name, x, t, first in s.answers(case):
        close(name, s(name, x, t), first, "asked twice", factor=0.0)


def alone(s: Subject, case: Case) -> None:
    """Row i of a batch equals its single evaluation"""
    for name, x, t, whole in s.answers(case):
        for i in range(case.rows):
            one = s(name, x[i : i + 1], t[i : i + 1], [i])
            close(name, whole[i : i + 1], one, f"row {i} of {case.rows}, in the batch and alone")


def permuted(s: Subject, case: Case) -> None:
    """Rows may be permuted"""
    order = torch.arange(case.rows).roll(1 + case.seed % max(1, case.rows - 1))
    for name, x, t, whole in s.answers(case):
        moved = s(name, x[order.to(x.device)], t[order.to(x.device)], order.tolist())
        close(name, moved, whole[order.to(x.device)], "rows permuted before and after")


def unmutated(s: Subject, case: Case) -> None:
    """The input is not mutated"""
    for name in s.methods:
        x, t = s.points(case), s.times(case)
        before = x.clone(), t.clone()
        s(name, x, t)
        demand(torch.equal(x, before[0]), f"{name} changed its input x")
        demand(torch.equal(t, before[1]), f"{name} changed its input t")


def quiet(s: Subject, case: Case) -> None:
    """The global random generators are not touched"""
    for name in [*s.methods, *({"draw"} & offers(s.field))]:
        with torch.random.fork_rng([s.device] if s.device.type == "cuda" else []):
            torch.manual_seed(2**40 + case.seed)  # not where an earlier call may have left it
            before = _generators(s.device)
            s.ask(name, case)
            after = _generators(s.device)
        demand(all(map(_same, before, after)), f"{name} used or set a global random generator")


def empty(s: Subject, case: Case) -> None:
    """An empty batch is answered with an empty batch"""
    for name in s.methods:
        x, t = s.points(case)[:0], s.times(case)[:0]
        got = s(name, x, t)
        expected = (0, *got.shape[1:]) if name == "decode" else _arrange(s.shape, 0, name)
        demand(
            tuple(got.shape) == expected,
            f"{name}: shape {tuple(got.shape)} for no rows, expected {expected}",
        )


def noncontiguous(s: Subject, case: Case) -> None:
    """The memory layout of the batch does not matter"""
    for name, x, t, expected in s.answers(case):
        strided = torch.stack([x, x], dim=-1)[..., 0]
        close(name, s(name, strided, t), expected, "x strided and contiguous")
        turned = x.movedim(0, -1).contiguous().movedim(-1, 0)
        close(name, s(name, turned, t), expected, "x with its batch axis innermost and contiguous")
        repeated = s(name, x[:1].expand(x.shape), t[:1].expand(t.shape), [0] * case.rows)
        close(name, repeated, expected[:1].expand(expected.shape), "one row expanded and alone")


def scalar_time(s: Subject, case: Case) -> None:
    """A scalar t equals a vector of it, and each row has its own t"""
    _only(s.timed)
    for name in (m for m in s.methods if m in ("energy", *PREDICTION)):
        x, times = s.points(case), s.times(case)
        vector = s(name, x, torch.full_like(times, case.t))
        close(name, s(name, x, case.t), vector, f"t = {case.t} as a number and as a vector")
        close(
            name,
            s(name, x, times.new_tensor(case.t)),
            vector,
            f"t = {case.t} as a 0-d tensor and as a vector",
        )
        own = torch.cat([s(name, x[i : i + 1], float(times[i]), [i]) for i in range(case.rows)])
        close(name, s(name, x, times), own, "one t a row, and row by row")


def ends(s: Subject, case: Case) -> None:
    """At t = 0 and t = 1 an answer is finite or SingularConversion"""
    _only(s.timed)
    for name in (m for m in s.methods if m in PREDICTION):
        for t in (0.0, 1.0):
            x = s.points(case)
            try:
                got = s(name, x, t)
            except SingularConversion:
                continue
            demand(bool(finite_rows(got).all()), f"{name} is not finite at t = {t}")


def held_time(s: Subject, case: Case) -> None:
    """at(t) is the static field of that time"""
    _only(s.timed and "score" in offers(s.field))
    x, still = s.points(case), s.field.at(case.t)
    demand(
        not is_timed(still),
        f"at(t) returned {type(still).__name__}, which is still a field in time",
    )
    demand(
        tuple(still.event_shape) == s.shape,
        f"at(t) has event shape {tuple(still.event_shape)}, not {s.shape}",
    )
    bound = s.conditions(range(case.rows))
    close(
        "score",
        StaticField(still, bound).score(x),
        s("score", x, case.t),
        f"of at({case.t}) and at t = {case.t}",
    )


def conversions(s: Subject, case: Case) -> None:
    """Its predictions agree with its path"""
    _only(s.timed and isinstance(optional(s.field, "path"), GaussianPath))
    # log-SNRs where no conversion magnifies rounding much
    log_snr = torch.tensor(6 * case.t - 3, dtype=torch.float64)
    x, t = s.points(case), min(max(float(s.field.path.t(log_snr)), 0.0), 1.0)
    bound = s.conditions(range(case.rows))
    derived = resolve(s.field, (), bound)
    assert isinstance(derived, TimedField)
    for name in (m for m in s.methods if m in PREDICTION):
        meaning = f"the field's own at t = {t:.4f}, and by the path from its {derived.source}"
        close(name, s(name, x, t), derived.to(PREDICTION[name], x, t), meaning, factor=10.0)


def gradient(s: Subject, case: Case) -> None:
    """Score = -grad energy, by finite differences in float64"""
    _only("energy" in offers(s.field))
    with in_float64(s, case) as (at, tolerance):
        _descends(at, case, partial(_score, at), tolerance, "-score")


def together(s: Subject, case: Case) -> None:
    """energy_and_grad equals energy and -score, or the slope of the energy"""
    own = getattr(s.field, "energy_and_grad", None)
    _only(callable(own) and "energy" in offers(s.field))
    x, t = s.points(case), s.times(case)
    value, gradient = s("energy_and_grad", x, t)
    close("energy_and_grad", value, s("energy", x, t), "its energy and energy")
    if "score" in offers(s.field):
        close("energy_and_grad", gradient, -s("score", x, t), "its gradient and -score")
        return
    with in_float64(s, case) as (at, tolerance):
        own = partial(at, "energy_and_grad")
        _descends(at, case, lambda x, t: -own(x, t)[1], tolerance, "its gradient")


def density(s: Subject, case: Case) -> None:
    """log_prob = -energy + const"""
    _only({"log_prob", "energy"} <= offers(s.field) and not s.timed)
    x = s.points(replace(case, rows=case.rows + 1))
    constant = s("log_prob", x) + s("energy", x)
    constant = constant[constant.isfinite()]
    close(
        "log_prob",
        constant,
        constant[:1].expand(constant.shape),
        "log_prob + energy, here and at another point",
        10.0,
    )


def draws(s: Subject, case: Case) -> None:
    """Draw is a pure function of the noise, chain by chain"""
    _only("draw" in offers(s.field))
    n = case.rows + 2
    noise = s.noise(replace(case, rows=n))
    x = s.field.draw(n, noise)
    demand(
        tuple(x.shape) == (n, *s.shape), f"draw: shape {tuple(x.shape)}, expected {(n, *s.shape)}"
    )
    demand(bool(finite_rows(x).all()), "draw: a sample is NaN or infinite")
    repeated = s.field.draw(n, s.noise(replace(case, rows=n)))
    close("draw", repeated, x, "drawn twice from the same noise", factor=0.0)
    close(
        "draw",
        s.field.draw(2, noise.select(slice(1, 3))),
        x[1:3],
        "two chains, alone and among the others",
    )
    other = s.field.draw(n, s.noise(replace(case, rows=n, seed=case.seed + 1)))
    demand(not torch.equal(other, x), "draw: another seed gives the same samples")
    demand(not bool((x == x[:1]).all()), "draw: all chains are the same")


def start(s: Subject, case: Case) -> None:
    """The base has the field's event shape and can be drawn from"""
    _only("base" in offers(s.field))
    base = s.field.base
    demand(
        tuple(base.event_shape) == s.shape,
        f"base: event shape {tuple(base.event_shape)}, not {s.shape}",
    )
    x = base.draw(case.rows, s.noise(case))
    demand(tuple(x.shape) == (case.rows, *s.shape), f"base.draw: shape {tuple(x.shape)}")
    demand(bool(finite_rows(x).all()), "base.draw: a sample is NaN or infinite")


LAWS: tuple[Law, ...] = (
    claimed,
    unclaimed,
    shapes,
    finite,
    repeatable,
    alone,
    permuted,
    unmutated,
    quiet,
    empty,
    noncontiguous,
    scalar_time,
    ends,
    held_time,
    conversions,
    gradient,
    together,
    density,
    draws,
    start,
)


def _only(applies: bool) -> None:
    if not applies:
        raise NotApplicable("says nothing about this model")


def _descends(
    s: Subject, case: Case, scored: Callable[..., Tensor], tolerance: float, named: str
) -> None:
    """A score is that of the energy: its slope along unit vectors, by finite differences."""
    x, t, v = s.points(case), s.times(case), s.directions(case)
    energy, score = s("energy", x, t), scored(x, t)
    slope, size = -row_dot(score, v), row_dot(score, score).sqrt()
    bound = tolerance * size + 1e-3 * tolerance * (1 + energy.abs())
    steps = [10.0**-k * float(x.abs().mean().clamp(min=1)) for k in range(1, 7)]
    differences = [(s("energy", x + h * v, t) - s("energy", x - h * v, t)) / (2 * h) for h in steps]
    error, best = (torch.stack(differences) - slope).abs().nan_to_num(torch.inf).min(0)
    wrong = finite_rows(energy) & finite_rows(score) & ~(error <= bound)
    for i in wrong.nonzero().flatten().tolist():
        difference = float(differences[int(best[i])][i])
        demand(
            False,
            f"row {i}: along a unit vector {named} gives {float(slope[i]):.6g}, the energy "
            f"{difference:.6g}",
        )


def _score(s: Subject, x: Tensor, t: Tensor) -> Tensor:
    if "score" in offers(s.field) or s.timed:
        return s("score", x, t)
    return StaticField(s.field, s.conditions(range(len(x)))).score(x)


def _generators(device: torch.device) -> list[object]:
    states: list[object] = [torch.random.get_rng_state(), random.getstate(), np.random.get_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return pickle.dumps(a) == pickle.dumps(b)
