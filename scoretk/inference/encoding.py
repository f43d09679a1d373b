r"""The probability flow from data to noise: `encode`, and `interpolate` between latents.

A Gaussian path in polar coordinates, and x in units of the radius,

    alpha = rho sin(phi),    sigma = rho cos(phi),    z = x / rho,

has the flow, whatever the path,

    dz/dphi = cos(phi) D - sin(phi) e = -v / rho,

from phi near 0 (noise) to phi = pi/2 (sigma = 0, the data). The rate is bounded at both ends, also
where the velocity in t is not (sigma' of VP), so that ends are ordinary points. Without a Gaussian
path the flow is taken in t, with rho = 1.

The end correction. A field that predicts the data does not determine `e = (x - alpha D) / sigma` at
sigma = 0. But `e = -sigma score`, so for data with a density e vanishes there, in proportion to
sigma. From such an end the first step, to phi_1, is the trapezoid rule with that limit, `z + (phi_1
- pi/2) / 2 rate(z, phi_1)`, which leaves an error of order (pi/2 - phi_1)^4. (Song et al. (2021)
start at phi_1 from x as it is, as if x were noised by sigma(phi_1): an error of second order.)

A model's own velocity, such as `(data - x) / (1 - t)`, may have no value at t = 1 and is not
evaluated there. The first step, of a length h so short that h^3 is below the tolerance, is then a
midpoint step, `z + h rate(z + h/2 rate(z, phi_1), phi_m)`, with phi_m half way to phi_1.

The methods are those of `scoretk.ode.registry` that integrate a velocity; here they integrate the
rate in phi. Methods for the denoiser, which are made for a form of their own
(`scoretk.ode.tableaus`), are refused.

References:
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through
    stochastic differential equations" (2021).
    Salimans, Ho, "Progressive distillation for fast sampling of diffusion models" (2022): the angle
    and v.
    Shoemake, "Animating rotation with quaternion curves" (1985).
    White, "Sampling generative networks" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from scoretk.core.arguments import conditions, count, counts, positive, tensor_like
from scoretk.core.cost import Cost
from scoretk.core.keywords import explained
from scoretk.core.modules import as_networks_take, check_place, left_as_found
from scoretk.core.rows import across, finite_rows, row_dot, select_rows
from scoretk.errors import InvalidArgument, Status
from scoretk.fields.convert import coefficients
from scoretk.fields.derivatives import check_derivative
from scoretk.fields.protocols import field_name
from scoretk.fields.resolve import TimedField, of_rows, resolve
from scoretk.fields.wrapped import check_flow
from scoretk.ode.grids import grid as times_of
from scoretk.ode.registry import Method, every_method, velocity_method

__all__ = ["Flow", "Latents", "Rate", "Solve", "encode", "interpolate", "parts"]

Rate = Callable[[Tensor, float | Tensor], Tensor]
"""`(z, phi)` to dz/dphi, like z, phi being a number or one a row."""

CLOSEST = 1e-3
"""The distance in phi, and so in sigma/alpha, at which an adaptive solve begins from an end where
the rate is not determinate: that of Song et al. (2021) on VP, 1e-5 from the end in t. Nearer,
`x - alpha D` would be lost in float32.
"""
LOOKED_AT = 8
"""In how many rows it is tested whether autograd has the derivative of a model."""


@dataclass(frozen=True)
class Latents:
    """The result of `encode`.

    Args:
        x: The latents at t = 0, `(batch, *event_shape)`, NaN where the status is not OK.
        status: The `Status` code of each row, `(batch,)`.
        method: How they were found.
        cost: How many evaluations it took.
    """

    x: Tensor
    status: Tensor
    method: str
    cost: Cost

    @property
    def ok(self) -> Tensor:
        """Which rows are well, `(batch,)` of bool."""
        return self.status == int(Status.OK)


@dataclass(frozen=True)
class Flow:
    """The probability flow of a field in the angle phi (see the module)."""

    field: TimedField

    def angle(self, t: float) -> float:
        """The angle phi at time t; t itself where there is no Gaussian path."""
        path = self.field.path
        return t if path is None else math.atan2(float(path.alpha(t)), float(path.sigma(t)))

    def radius(self, t: float) -> float:
        """The radius rho at time t, where `x = rho z`; 1 where there is no Gaussian path."""
        path = self.field.path
        return 1.0 if path is None else math.hypot(float(path.alpha(t)), float(path.sigma(t)))

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The angles of noise and data."""
        return self.angle(0.0), self.angle(1.0)

    @cached_property
    def determinate(self) -> bool:
        """Whether the field's prediction determines the rate at the data end."""
        path = self.field.path
        return path is None or all(
            bool(c.isfinite()) for c in coefficients(path, 1.0, self.field.source, "v")
        )

    def of(self, rows: Tensor) -> Flow:
        """The flow of some of the rows, `(k,)`, which have their own conditions."""
        return Flow(of_rows(self.field, rows))

    @cached_property
    def unasked(self) -> bool:
        """Whether the field is not evaluated at the data end, as it may have no value there."""
        path = self.field.path
        return self.field.source == "velocity" and (path is None or float(path.sigma(1.0)) == 0)

    def time(self, angle: float) -> float:
        """The time of this angle, exact at the ends."""
        path, (noise, data) = self.field.path, self.ends
        if path is None:
            return angle
        if angle <= noise or angle >= data:
            return 0.0 if angle <= noise else 1.0
        return min(max(float(path.t(2 * math.log(math.tan(angle)))), 0.0), 1.0)

    def times(self, angles: Tensor) -> Tensor:
        """The times of angles `(rows,)`, as `time`."""
        path, (noise, data) = self.field.path, self.ends
        if path is None:
            return angles
        inside = path.t(2 * angles.clamp(noise, data).tan().log()).clamp(0, 1)
        return torch.where(angles <= noise, 0.0, torch.where(angles >= data, 1.0, inside))

    def rate(self, z: Tensor, angle: float | Tensor) -> Tensor:
        """The rate `dz/dphi`, like z, at an angle that is a number or one a row."""
        t = self.times(angle) if isinstance(angle, Tensor) else self.time(angle)
        path = self.field.path
        if path is None:
            return self.field.velocity(z, t)
        if not isinstance(t, Tensor):
            rho: float | Tensor = self.radius(t)
        else:
            rho = across(torch.hypot(path.alpha(t), path.sigma(t)).to(z.dtype), z)
        return -self.field.to("v", rho * z, t) / rho


@dataclass(frozen=True)
class Solve:
    """How a flow is solved from data to noise: by an adaptive method, or on a grid.

    The settings are those of `encode`.
    """

    method: str = "dopri5"
    steps: int | None = None
    grid: str | Sequence[float] | None = None
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", velocity_method(self.method).name)
        for name, value in (("steps", self.steps), ("grid", self.grid)):
            if value is not None and self.adaptive:
                others = ", ".join(
                    m.name for m in every_method() if m.needs == "velocity" and not m.adaptive
                )
                raise InvalidArgument(
                    name,
                    value,
                    f"nothing: {self.method} chooses its own steps",
                    f"Or a method of {others}",
                )
        if self.steps is not None:
            counts(self, steps=1)
        positive("rtol", self.rtol)
        positive("atol", self.atol)
        counts(self, max_steps=1)

    @property
    def ode_method(self) -> Method:
        """The method's entry in `scoretk.ode.registry`."""
        return velocity_method(self.method)

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.ode_method.adaptive

    def describe(self, flow: Flow) -> str:
        """The method, its steps, and whether its end is corrected, as text."""
        steps = "" if self.adaptive else f", {len(self._angles(flow)) - 1} steps"
        return f"{self.method}{steps}{'' if flow.determinate else ', end corrected'}"

    def angles(self, flow: Flow) -> list[float]:
        """The angles of the grid, from data to noise.

        Where a field is not evaluated at the data, the second one is a short way off.
        """
        found = self._angles(flow)
        if not flow.unasked:
            return found
        near = min(CLOSEST, max(0.1 * math.sqrt(self.atol), 1e-5), (found[0] - found[1]) / 2)
        return [found[0], found[0] - near, *found[1:]]

    def _angles(self, flow: Flow) -> list[float]:
        if self.adaptive:
            noise, data = flow.ends
            return [data, noise] if flow.determinate else [data, data - CLOSEST, noise]
        times = times_of(self.grid, flow.field.path, 32 if self.steps is None else self.steps)
        if float(times[0]) != 0 or float(times[-1]) != 1:
            raise InvalidArgument("grid", times, "times from 0 to 1")
        return [flow.angle(t) for t in reversed(times.tolist())]

    def run(
        self, flow: Flow, rate_of: Callable[[Tensor], Rate], start: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Integrate rows from the data end to the noise end.

        Args:
            flow: The flow, which gives the angles.
            rate_of: Takes indices of rows, `(k,)`, to their rate `rate(y, phi)`, like y.
            start: The rows y at the data end, `(batch, ...)`.

        Returns:
            The rows at the noise end; their `Status` codes, `(batch,)`; and the evaluations of
            each, `(batch,)`.
        """
        angles, y, opening = self.angles(flow), start, 0
        rate = rate_of(torch.arange(len(y), device=y.device))
        if flow.unasked:
            y, angles, opening = short_of_the_end(rate, start, angles), angles[1:], 2
        elif not flow.determinate:
            y, angles, opening = corrected_end(rate, start, angles), angles[1:], 1
        alive = finite_rows(y)
        y = select_rows(alive, y, torch.zeros_like(y))
        limits = {"rtol": self.rtol, "atol": self.atol, "max_steps": self.max_steps}
        y, status, made = self.ode_method.rule.solve(rate, y, angles, select=rate_of, **limits)
        alive = alive & finite_rows(y)
        return y, torch.where(alive, status, int(Status.NONFINITE)), made + opening


def corrected_end(rate: Rate, y: Tensor, angles: Sequence[float]) -> Tensor:
    """The first step from an end at sigma = 0, by the trapezoid rule with the rate's limit 0 there."""
    return y + (angles[1] - angles[0]) / 2 * rate(y, angles[1])


def short_of_the_end(rate: Rate, y: Tensor, angles: Sequence[float]) -> Tensor:
    """The first step from an end where the field is not evaluated, by the midpoint rule.

    Its first stage is at the next angle instead of the end.
    """
    half = (angles[1] - angles[0]) / 2
    return y + 2 * half * rate(y + half * rate(y, angles[1]), angles[0] + half)


@explained
def encode(
    field: Any,
    x: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    method: str = "dopri5",
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
    batch: int | None = None,
) -> Latents:
    """The latents of data: the rows of x taken along the probability flow from t = 1 back to t = 0.

    The way back is `stk.sample(field, stk.ProbabilityFlow(...), init=latents.x, cond=cond)`; the
    round trip is exact up to the error of the two solves. Latents of data follow the field's
    `base`.

    Args:
        field: A timed field.
        x: Data, `(rows, *event_shape)`.
        cond: Condition values by name, one row for each row of x.
        method: An adaptive method ("dopri5", "tsit5", "bosh3", each row with its own steps;
            "dopri8" and its like, whose steps a batch shares), or one on a grid ("euler", "heun",
            "rk4", "adams_3", ...: those of `ProbabilityFlow` that integrate a velocity).
        steps: The number of steps of a method on a grid, None for 32.
        grid: The grid of such a method, as in `ProbabilityFlow`.
        rtol: The relative tolerance of an adaptive method, as in `ProbabilityFlow`.
        atol: The absolute tolerance of an adaptive method.
        max_steps: The most steps of an adaptive method.
        batch: How many rows are solved at a time, for memory; None for all. The latents are the
            same, to the tolerances where a batch shares its steps.

    Returns:
        The `Latents`; a row that failed is NaN and has its status. Where x or a condition requires
        gradients (and autograd is on) so do the latents, to these and to the field's parameters:
        those of the steps that the solve took.

    Raises:
        MissingCapability: For a field that is not timed, or without a probability flow (powers,
            products).
        InvalidArgument: For other wrong arguments.
    """
    check_flow(field)
    (given,) = as_networks_take(field, conditions(cond))
    bound = resolve(field, {"velocity"}, given, timed=True)
    assert isinstance(bound, TimedField)
    rows = tensor_like("x", x, (None, *bound.event_shape))
    check_place(field, rows.device)
    conditions(cond, len(rows))
    (rows,) = as_networks_take(field, rows)
    solve, flow = Solve(method, steps, grid, rtol, atol, max_steps), Flow(bound)
    asked = asks_for_gradients(rows, cond)
    with left_as_found(field, grad=asked), torch.set_grad_enabled(asked):
        if asked:
            check_differentiable(bound, rows)
        found = [_encoded(solve, flow, rows, part) for part in parts(len(rows), batch)]
    latents, status, calls = (torch.cat(values) for values in zip(*found, strict=True))
    given_gradients(latents, asked, field)
    return Latents(latents, status, solve.describe(flow), Cost(velocity=int(calls.sum())))


def _encoded(solve: Solve, flow: Flow, x: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The latents of some rows of x, their status and their evaluations."""
    places = torch.arange(len(x), device=x.device)[part]
    z, status, calls = solve.run(
        flow, lambda rows: flow.of(places[rows]).rate, x[part] / flow.radius(1.0)
    )
    latents = select_rows(
        status == int(Status.OK), flow.radius(0.0) * z, torch.full_like(z, torch.nan)
    )
    return latents, status, calls


def parts(n: int, batch: int | None) -> list[slice]:
    """The slices of n rows, `batch` at a time; one slice where that is None or there are no rows."""
    size = n if batch is None else count("batch", batch, least=1)
    return [slice(i, min(i + size, n)) for i in range(0, n, size)] if n else [slice(0, 0)]


def asks_for_gradients(x: Tensor, cond: Mapping[str, Tensor] | None) -> bool:
    """Whether the caller wants gradients: x or a condition requires them, and autograd is on."""
    given = (x, *(value for value in (cond or {}).values() if isinstance(value, Tensor)))
    return torch.is_grad_enabled() and any(value.requires_grad for value in given)


def check_differentiable(bound: TimedField, x: Tensor) -> None:
    """Refuse a model whose dependence on x autograd does not see, as gradients would be wrong.

    Raises:
        InvalidArgument: In that case.
    """
    few = {name: value[:LOOKED_AT] for name, value in bound.cond.items()}
    part = TimedField(bound.native, bound.path, few)
    hint = "Its network detaches x, or runs under no_grad or in numpy"
    check_derivative(lambda z: part.predict(z, 0.5), x[:LOOKED_AT], "field", bound.native, hint)


def given_gradients(found: Tensor, asked: bool, field: object) -> Tensor:
    """The result `found`, which must require gradients where they were asked for.

    Raises:
        InvalidArgument: Where it does not.
    """
    if asked and not found.requires_grad:
        raise InvalidArgument(
            "x",
            found,
            f"rows that require no gradients, as {field_name(field)} gives none",
            "Its computation is cut from the graph (torch.no_grad, detach, numpy): take x.detach()",
        )
    return found


@explained
def interpolate(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Spherical interpolation from latents a to latents b, at equal angles.

    With `u` the unit vectors and `Omega` the angle between them the points are, for w = 0, ..., 1,

        (sin((1 - w) Omega) u_a + sin(w Omega) u_b) / sin(Omega)  times  (1 - w) |a| + w |b|

    The norm goes from |a| to |b| in equal parts, so that it is kept where both are the same. In
    many dimensions latents from N(0, s^2 I) have norms near s sqrt(d), which a straight line would
    leave: half way it falls to s sqrt(d / 2).

    Args:
        a: The first latents, `(batch, *event_shape)`.
        b: The last latents, like them.
        n: How many points, at least 2, the ends among them.

    Returns:
        `(batch, n, *event_shape)`; `.flatten(0, 1)` is an `init` for `stk.sample`.

    Raises:
        InvalidArgument: Where a row is zero, or b points opposite to a, so that there is no
            shortest way.
    """
    if not isinstance(a, Tensor) or a.ndim == 0:
        raise InvalidArgument("a", a, "latents (batch, *event_shape)")
    start, end = tensor_like("a", a, tuple(a.shape)), tensor_like("b", b, tuple(a.shape))
    count("n", n, least=2)
    w = torch.linspace(0, 1, n, dtype=start.dtype, device=start.device)
    rows = [rearrange(v, "batch ... -> batch 1 (...)") for v in (start, end)]
    norms = [row_dot(v, v).sqrt().reshape(-1, 1, 1) for v in rows]
    first, last = (v / norm for v, norm in zip(rows, norms, strict=True))
    apart, along = (row_dot(v, v).sqrt().reshape(-1, 1, 1) for v in (first - last, first + last))
    if not bool((along > math.sqrt(torch.finfo(start.dtype).eps)).all()):
        raise InvalidArgument(
            "a, b", start, "rows that are not zero, and not opposite to each other"
        )
    omega = 2 * torch.atan2(apart, along)
    share = w[:, None]
    # sin(w Omega) / sin(Omega) by sinc, whose limit w at Omega = 0 is exact
    parts = [
        s * torch.sinc(s * omega / math.pi) / torch.sinc(omega / math.pi)
        for s in (1 - share, share)
    ]
    points = (parts[0] * first + parts[1] * last) * torch.lerp(norms[0], norms[1], share)
    return points.reshape(len(start), n, *start.shape[1:])
