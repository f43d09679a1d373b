r"""Log densities: exact where the family has them, else by the probability flow.

Along `dx/dt = u(x, t)` the density changes by the divergence,

    log p_1(x_1) = log p_0(x_0) - int_0^1 div u(x_t, t) dt,

integrated from the data end back to the noise in one augmented solve of `(x, integral)`. The divergence is exact (one
vector-Jacobian product a dimension) or estimated with probes e of independent signs, `div u ~ e^T (du/dx) e`, each probe
fixed during the solve and with an integral of its own, so that their spread gives the standard error.

References: Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations" (2018); Grathwohl, Chen,
Bettencourt, Sutskever, Duvenaud, "FFJORD: free-form continuous dynamics for scalable reversible generative models" (2019);
Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through stochastic differential
equations" (2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import torch
from torch import Tensor

from scoretk.arguments import count, option, positive, tensor_like
from scoretk.draws import Cost
from scoretk.errors import MissingCapability, Status
from scoretk.fields.protocols import field_name, is_timed, offers
from scoretk.fields.resolve import TimedField, resolve
from scoretk.modules import left_as_found
from scoretk.noise import Noise
from scoretk.rows import row_dot
from scoretk.solvers.adaptive import ADAPTIVE, integrate
from scoretk.solvers.probability_flow import velocity_determinate
from scoretk.streams import Stream

__all__ = ["Estimate", "divergence", "log_prob"]

EXACT_TRACE_UP_TO = 32
SINGULAR_END = 1e-5  # how far from a data end without a determinate velocity the solve starts, as in Song et al. (2021)


@dataclass(frozen=True)
class Estimate:
    """A number a row (or one number) with its standard error: `value`, `stderr`, how it was made, and what it cost.

    `status` holds a `Status` code a row where a row can fail; the value of a failed row is NaN.
    """

    value: Tensor
    stderr: Tensor
    method: str
    cost: Cost
    status: Tensor = dataclass_field(default_factory=lambda: torch.zeros((), dtype=torch.int64))


def log_prob(
    field: Any,
    x: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
    trace: str | None = None,
    probes: int = 8,
    seed: int = 0,
) -> Estimate:
    """Log density of the rows of x, in nats.

    Arguments: field, with `log_prob` of its own (used as it is) or timed with a velocity and a base that has a density;
    x `(batch, *event_shape)`; cond, one row a row of x; method, rtol, atol and max_steps of the adaptive solve; trace,
    "exact" or "hutchinson" (None: exact up to 32 dimensions); probes, how many for Hutchinson's estimate; seed, of the
    probes.
    Returns: `Estimate` with value and stderr of shape `(batch,)`; the standard error is 0 where nothing is estimated.
    Raises: `MissingCapability` where the field has no normalised density; `InvalidArgument`.
    """
    if not hasattr(field, "event_shape"):
        resolve(field, ())
    rows = tensor_like("x", x, (None, *field.event_shape))
    if "log_prob" in offers(field):
        with left_as_found(field), torch.no_grad():
            value = field.log_prob(rows, **(cond or {}))
        return Estimate(
            value, torch.zeros_like(value), "exact", Cost(log_prob=len(rows)), torch.zeros_like(value).long()
        )
    if not is_timed(field):
        raise MissingCapability(
            field_name(field), offers(field), {"log_prob"},
            "Its energy is known up to a constant only: a normalised density needs the partition function",
        )  # fmt: skip
    option("method", method, ADAPTIVE)
    option("trace", trace or "exact", ("exact", "hutchinson"))
    for name, value in (("rtol", rtol), ("atol", atol)):
        positive(name, value)
    bound = resolve(field, {"velocity"}, cond, timed=True)
    assert isinstance(bound, TimedField)
    if not callable(getattr(bound.base, "log_prob", None)):
        raise MissingCapability(
            field_name(field), offers(field), {"log_prob"},
            "The flow's base has no density: give Velocity(base=...) a distribution rather than samples",
        )  # fmt: skip
    dimension = math.prod(field.event_shape)
    exact = trace == "exact" or (trace is None and dimension <= EXACT_TRACE_UP_TO)
    directions = None if exact else _probes(seed, rows, count("probes", probes, least=2))
    with left_as_found(field), torch.no_grad():
        return _by_flow(bound, rows, directions, method, rtol, atol, max_steps)


def _probes(seed: int, x: Tensor, n: int) -> Tensor:
    noise = Noise(seed, len(x), device=x.device, dtype=x.dtype)
    return noise.rademacher(0, Stream.PROBE, (n, *x.shape[1:]), x.dtype).movedim(1, 0)


def divergence(velocity: Any, x: Tensor, t: float, directions: Tensor | None) -> tuple[Tensor, Tensor]:
    """`u(x, t)`, like x, and its divergence `(k, batch)`: one exact row, or one estimate a probe.

    Arguments: velocity, `(x, t) -> like x`, rows independent; directions, probes `(k, batch, *event)` or None for the
    exact trace.
    """
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        u = velocity(y, t)
        if not u.requires_grad:  # a velocity that does not depend on x
            return u, x.new_zeros((1 if directions is None else len(directions), len(x)))
        if directions is None:
            return u.detach(), _exact_trace(u, y)[None]
        estimates = []
        for e in directions:
            (back,) = torch.autograd.grad(u, y, e, retain_graph=True)
            estimates.append(row_dot(back, e))
    return u.detach(), torch.stack(estimates)


def _exact_trace(u: Tensor, y: Tensor) -> Tensor:
    flat = u.reshape(len(u), -1)
    total = torch.zeros_like(flat[:, 0])
    for i in range(flat.shape[1]):
        (back,) = torch.autograd.grad(flat[:, i].sum(), y, retain_graph=True)
        total = total + back.reshape(len(u), -1)[:, i]
    return total


def _by_flow(
    bound: TimedField,
    x: Tensor,
    directions: Tensor | None,
    method: str,
    rtol: float,
    atol: float,
    max_steps: int,
) -> Estimate:
    k = 1 if directions is None else len(directions)
    batch, d = len(x), math.prod(bound.event_shape)
    end = 1.0 if velocity_determinate(bound, 1.0) else 1 - SINGULAR_END

    def augmented(z: Tensor, t: float) -> Tensor:
        u, traces = divergence(bound.velocity, z[:, :d].reshape(x.shape), t, directions)
        return torch.cat([u.reshape(batch, d), -traces.T], 1)

    start = torch.cat([x.reshape(batch, d), x.new_zeros((batch, k))], 1)
    z, status, calls = integrate(augmented, start, end, 0.0, method=method, rtol=rtol, atol=atol, max_steps=max_steps)
    # each probe's integral is an estimate of its own; the base's density is common to all
    values = bound.base.log_prob(z[:, :d].reshape(x.shape))[:, None] - z[:, d:]
    value = torch.where(status == int(Status.OK), values.mean(1), torch.nan)
    stderr = torch.zeros_like(value) if directions is None else values.std(1) / math.sqrt(k)
    cost = Cost(velocity=calls * batch, vjp=calls * batch * (d if directions is None else k))
    how = "exact trace" if directions is None else f"{k} Rademacher probes"
    near = "" if end == 1.0 else f", from t = 1 - {SINGULAR_END:g}"
    return Estimate(value, stderr, f"probability flow ({method}, {how}{near})", cost, status)
