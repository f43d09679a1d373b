r"""Log densities: exact where a field has them, else by its own estimator or probability flow.

Along a flow `dz/dphi = u(z, phi)` the density changes by the divergence,

    log p_1(z_1) = log p_0(z_0) - int div u(z, phi) dphi,

integrated from the data end back to the noise in one augmented solve of `(z, integral)`, in the
coordinates and with the end correction of `scoretk.inference.encoding`; `log p(x) = log p(z) - d
log rho`. The divergence, the trace of `J = du/dz`, is

    exact        one product with J for each dimension
    hutchinson   e^T J e for random e with E[e e^T] = I: independent signs, or standard normals.
                 With S = (J + J^T) / 2 its variance over e is 2 sum_{i != j} S_ij^2 for signs and
                 2 sum_{ij} S_ij^2 for normals.
    hutch++      tr(Q^T J Q), exact, with Q an orthonormal basis of J^T R, R being a third of the
                 probes; and for each other probe e, with g = (I - Q Q^T) e, the unbiased g^T J g -
                 c (|g|^2 - tr(I - Q Q^T)), c being the ratio of the sums of g^T J g and |g|^2 over
                 all others. It is better where few directions make most of S_ij; where the diagonal
                 does, as in models of small images, signs alone are better.

with the products `e^T J` of all e by one vectorised backward pass. Probes are fixed during the
solve, and each has an integral of its own, so that their spread gives the standard error.

References:
    Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations" (2018).
    Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud, "FFJORD: free-form continuous dynamics for
    scalable reversible generative models" (2019).
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through
    stochastic differential equations" (2021).
    Meyer, Musco, Musco, Woodruff, "Hutch++: optimal stochastic trace estimation" (2021).
    Theis, van den Oord, Bethge, "A note on the evaluation of generative models" (2016):
    dequantisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from inspect import signature
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from scoretk.core.arguments import conditions, count, integer, is_integer, option, pair, tensor_like
from scoretk.core.arrays import aligned, aligned_values
from scoretk.core.cost import Cost
from scoretk.core.keywords import explained
from scoretk.core.modules import as_networks_take, check_place, left_as_found
from scoretk.core.noise import Noise, derive
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability, Status
from scoretk.fields.base import base_of
from scoretk.fields.constrained import users_shape
from scoretk.fields.distribution import as_field
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, optional, without_law
from scoretk.fields.resolve import TimedField, resolve
from scoretk.fields.validation import rejecting
from scoretk.fields.wrapped import check_flow
from scoretk.inference.encoding import (
    Flow,
    Rate,
    Solve,
    asks_for_gradients,
    check_differentiable,
    given_gradients,
    parts,
)

__all__ = ["Estimate", "bits_per_dim", "divergence", "log_prob"]

EXACT_TRACE_UP_TO = 32
TRACES = ("exact", "hutchinson", "hutch++")
ABREAST = 64
"""How many directions a vectorised backward pass takes at once."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with its standard error, one for each row or one number.

    Args:
        value: The estimate, `(batch,)` or `()`; NaN for a row that failed.
        stderr: Its standard error, like it.
        method: How it was made.
        cost: How many evaluations it took.
        status: `Status` codes, like the value where rows can fail.
    """

    value: Tensor
    stderr: Tensor
    method: str
    cost: Cost
    status: Tensor = dataclass_field(default_factory=lambda: torch.zeros((), dtype=torch.int64))


@explained
def log_prob(
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
    trace: str | None = None,
    probes: int = 8,
    probe_law: str = "rademacher",
    seed: int = 0,
    rows: int | range | Tensor | None = None,
    batch: int | None = None,
) -> Estimate:
    """Log density of the rows of x, in nats.

    A path that ends above sigma = 0 (VE, EDM) has the density of its end: that of the data noised
    by sigma(1). At an end sigma = 0 where the field does not determine its rate (one that predicts
    the data) the end correction of `scoretk.inference.encoding` is made; Song et al. (2021) make
    none, and so have the density of data noised by sigma = 1e-3.

    Args:
        field: A field with `log_prob` of its own (which is used), a torch distribution, or a timed
            field with a base that has a density.
        x: `(batch, *event_shape)`; for a `constrained` field in the user's space, as draws are, and
            so is the density.
        cond: Condition values by name, one row for each row of x.
        method: The method of the solve, as in `encode`.
        steps: As in `encode`.
        grid: As in `encode`.
        rtol: As in `encode`.
        atol: As in `encode`.
        max_steps: As in `encode`.
        trace: "exact", "hutchinson" or "hutch++"; None for exact up to 32 dimensions, else
            Hutchinson's.
        probes: How many products with the Jacobian an estimate may take. (Hutch++ has a third each
            for the range and for the trace in it.)
        probe_law: "rademacher" or "gaussian", the law of the probes.
        seed: The seed of the probes.
        rows: The ids of the rows, which their probes depend on: a number, that of the first row; a
            range; or an integer tensor `(batch,)`; None for 0, 1, 2, ... A row has the same probes
            in any batch, and rows scored apart have independent ones where their ids differ: pass
            `rows=i` with `x[i : i + 1]`.
        batch: How many rows are solved at a time, for memory; None for all. The values are the same
            (to the tolerances with methods whose steps a batch shares; to rounding where a
            network's matrix products round by the batch).

    Returns:
        An `Estimate`, value and stderr `(batch,)`, NaN where the row's status is not OK. The
        standard error is that of the probes, 0 where nothing is estimated; the error of the solve
        is not in it. Where x or a condition requires gradients (and autograd is on) so does the
        value, to these and to the field's parameters: those of the steps that the solve took, with
        all of them in memory.

    Raises:
        MissingCapability: Where the field has no normalised density, or is a power or product in
            time.
        InvalidArgument: For other wrong arguments.
    """
    field = as_field(field)
    if not is_field(field):
        resolve(field, ())
    points = tensor_like("x", x, (None, *users_shape(field)))
    check_place(field, points.device)
    ids, given = row_ids(rows, points), conditions(cond, len(points))
    points, given = as_networks_take(field, points, given)
    solve = Solve(method, steps, grid, rtol, atol, max_steps)
    option("trace", "exact" if trace is None else trace, TRACES)
    option("probe_law", probe_law, ("rademacher", "gaussian"))
    score = _own_density(field, seed, plain=rows is None and batch is None) or _flow_density(
        field, solve, trace, probes, probe_law, seed
    )
    asked = asks_for_gradients(points, cond)
    with left_as_found(field, grad=asked), torch.set_grad_enabled(asked):
        found = _joined(
            [
                score(
                    aligned(points[part]),
                    ids[part],
                    aligned_values({n: value[part] for n, value in given.items()}),
                )
                for part in parts(len(points), batch)
            ]
        )
    given_gradients(found.value, asked, field)
    return found


Scorer = Callable[[Tensor, Tensor, dict[str, Tensor]], Estimate]
"""Takes rows of x, their ids and their conditions to the estimates of their densities."""


def row_ids(rows: int | range | Tensor | None, x: Tensor) -> Tensor:
    """The ids of the rows of x, `(batch,)`, from the argument `rows` of `log_prob`.

    Raises:
        InvalidArgument: Where there is not one id in [0, 2^32) for each row.
    """
    if rows is None or is_integer(rows):
        first = 0 if rows is None else integer("rows", rows, below=2**32)
        rows = range(first, first + len(x))
    if not (isinstance(rows, range) or (isinstance(rows, Tensor) and rows.ndim == 1)) or (
        len(rows) != len(x)
    ):
        expected = f"a number, or a range or an integer tensor of {len(x)} ids, one a row of x"
        raise InvalidArgument("rows", rows, expected)
    try:
        return Noise(0, rows, device=x.device).chains
    except InvalidArgument as error:
        raise InvalidArgument("rows", rows, "ids in [0, 2**32)") from error


def _own_density(field: Any, seed: int, *, plain: bool) -> Scorer | None:
    """The field's own density, or its own estimator; None where it has neither.

    `plain` says that neither ids of rows nor batches were asked for.
    """

    def exact(x: Tensor, ids: Tensor, cond: dict[str, Tensor]) -> Estimate:
        known = (
            field.log_prob if optional(field, "constrained_shape") is None else field.users_log_prob
        )
        value = rejecting(known, x, cond, -torch.inf)
        status = torch.where(value.isnan(), int(Status.NONFINITE), int(Status.OK))
        return Estimate(value, torch.zeros_like(value), "exact", Cost(log_prob=len(x)), status)

    if "log_prob" in offers(field):
        return exact
    own = optional(field, "estimate_log_prob")
    if not callable(own):
        return None
    by_row = "rows" in signature(own).parameters
    if not (by_row or plain):
        raise InvalidArgument(
            "rows, batch",
            field_name(field),
            "a field whose estimate_log_prob takes rows=, the ids of the rows",
            "Without, rows scored apart would share their noise",
        )
    return lambda x, ids, cond: own(x, seed=seed, **({"rows": ids} if by_row else {}), **cond)


def _flow_density(
    field: Any, solve: Solve, trace: str | None, probes: int, probe_law: str, seed: int
) -> Scorer:
    """The density by the probability flow.

    Raises:
        MissingCapability: Where the field has no flow, or its base no density.
    """
    if not is_timed(field):
        raise MissingCapability(
            field_name(field),
            offers(field),
            {"log_prob"},
            "Its energy is known up to a constant only: scoretk.log_partition(field) estimates log "
            "Z, and -field.energy(x) - log Z is the log density"
            if offers(field) & {"energy", "score"}
            else without_law(offers(field)),
        )
    check_flow(field)
    base = base_of(field)
    if not callable(optional(base, "log_prob")):
        raise MissingCapability(
            field_name(field),
            offers(field),
            {"log_prob"},
            "The flow's base has no density: give Velocity(base=...) a distribution rather than "
            "samples",
        )
    exact = (trace or "exact") == "exact" and (
        trace is not None or math.prod(field.event_shape) <= EXACT_TRACE_UP_TO
    )

    def score(x: Tensor, ids: Tensor, cond: dict[str, Tensor]) -> Estimate:
        bound = resolve(field, {"velocity"}, cond, timed=True)
        assert isinstance(bound, TimedField)
        check_differentiable(bound, x)
        if exact:
            return _by_flow(bound, x, None, None, solve, "exact trace")
        drawn = _probes(
            Noise(seed, ids, dtype=x.dtype), x, probes, probe_law, sketched=trace == "hutch++"
        )
        return _by_flow(bound, x, *drawn, solve, f"{len(drawn[0])} {probe_law.capitalize()} probes")

    return score


def _joined(found: list[Estimate]) -> Estimate:
    """Estimates of consecutive rows as one."""
    first = found[0]
    if len(found) == 1:
        return first
    methods = sorted({f.method for f in found})
    how = methods[0] if len(methods) == 1 else f"{first.method}; and so on, in {len(found)} batches"
    cost = Cost({kind: sum(f.cost[kind] for f in found) for kind in first.cost})
    status = torch.cat([f.status.expand(len(f.value)) for f in found])
    return Estimate(
        torch.cat([f.value for f in found]), torch.cat([f.stderr for f in found]), how, cost, status
    )


def bits_per_dim(
    field: Any,
    x: Tensor,
    *,
    levels: int = 256,
    interval: tuple[float, float] = (0.0, 1.0),
    draws: int = 2,
    seed: int = 0,
    rows: int | range | Tensor | None = None,
    **options: Any,
) -> Estimate:
    """Bits per dimension of quantised data, by uniform dequantisation.

    With `y = low + (high - low) (x + u) / levels`, u uniform on the unit cube, and d dimensions,

        -E_u[log2 p(y)] / d + log2(levels / (high - low)),

    an upper bound of `-log2 P(x) / d` for the probability P that the density gives to the cell of x
    (Theis et al. 2016). The second term is 8 for 256 levels in [0, 1], 7 in [-1, 1].

    Args:
        field: As in `log_prob`, a density over `interval`.
        x: Whole numbers in [0, levels), `(batch, *event_shape)`.
        levels: The number of levels.
        interval: (low, high), the range of the field's data.
        draws: How many draws of u (and of probes) a row has, at least 2.
        seed: The seed of both.
        rows: The ids of the rows, which both depend on, as in `log_prob`.
        options: Other arguments of `log_prob`, such as `trace`, `probes`, `method`, `cond`,
            `batch`.

    Returns:
        An `Estimate`, value and stderr `(batch,)`, from the spread of the draws; NaN where a draw
        failed.

    Raises:
        InvalidArgument: For x that is not of whole numbers in [0, levels), or as `log_prob`.
        MissingCapability: As `log_prob`.
    """
    low, high = pair("interval", interval)
    count("levels", levels, least=2)
    count("draws", draws, least=2)
    field = as_field(field)
    if not is_field(field):
        resolve(field, ())
    cells = tensor_like("x", x, (None, *users_shape(field)))
    if not bool(((cells == cells.floor()) & (cells >= 0) & (cells < levels)).all()):
        raise InvalidArgument(
            "x",
            x,
            f"whole numbers from 0 to {levels - 1}",
            f"Of data in [0, 1]: (x * {levels - 1}).round()",
        )
    found, ids = [], row_ids(rows, cells)
    (cells,) = as_networks_take(field, cells)
    for i in range(draws):
        own = derive(seed, i)
        u = Noise(own, ids, dtype=cells.dtype).uniform(
            0, Stream.START, tuple(cells.shape[1:]), cells.dtype
        )
        found.append(
            log_prob(
                field,
                low + (high - low) * (cells + u) / levels,
                seed=own,
                rows=None if rows is None else ids,
                **options,
            )
        )
    bits = -torch.stack([f.value for f in found]) / (math.prod(cells.shape[1:]) * math.log(2))
    cost = Cost({kind: sum(f.cost[kind] for f in found) for kind in found[0].cost})
    how = f"{found[0].method}, {draws} dequantisations to {levels} levels of [{low:g}, {high:g}]"
    status = torch.stack([f.status for f in found]).amax(0)
    return Estimate(
        bits.mean(0) + math.log2(levels / (high - low)),
        _standard_error(bits.T.contiguous()),
        how,
        cost,
        status,
    )


def _probes(
    noise: Noise, x: Tensor, n: int, law: str = "rademacher", *, sketched: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The probes of each row of x, and where `sketched` those that find the range for Hutch++.

    Hutch++ takes a third of the n products for the sketch (at most d) and as many for the trace in
    its range.

    Args:
        noise: One chain for each row.
        x: `(batch, *event_shape)`.
        n: How many products with the Jacobian may be taken.
        law: "rademacher" or "gaussian".
        sketched: Whether the probes are for Hutch++.

    Returns:
        The probes, `(n, batch, *event_shape)` or fewer where sketched; and the sketch, `(r, batch,
        *event_shape)`, or None.
    """
    count("probes", n, least=4 if sketched else 2)
    range_of = min(n // 3, math.prod(x.shape[1:])) if sketched else 0
    draw = noise.rademacher if law == "rademacher" else noise.normal
    drawn = draw(0, Stream.PROBE, (n - range_of, *x.shape[1:]), x.dtype).movedim(1, 0)
    return drawn[range_of:], drawn[:range_of] if sketched else None


def divergence(
    velocity: Callable[[Tensor, Any], Tensor],
    x: Tensor,
    t: float | Tensor,
    directions: Tensor | None,
    sketch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A velocity and its divergence, differentiable where autograd is on.

    Args:
        velocity: u, `(x, t)` to a tensor like x, its rows independent.
        x: `(batch, *event_shape)`.
        t: The second argument of u, a time or an angle: a number, or one a row.
        directions: Probes, `(k, batch, *event_shape)`, or None for the exact trace.
        sketch: The sketch of Hutch++, `(r, batch, *event_shape)`, or None for Hutchinson's.

    Returns:
        `u(x, t)`, like x, and the divergence: exact, `(1, batch)`, or one estimate for each probe,
        `(k, batch)`.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        y = x if keep and x.requires_grad else x.detach().requires_grad_()
        u = velocity(y, t)
        if not u.requires_grad:  # a velocity that does not depend on x
            return u, x.new_zeros((1 if directions is None else len(directions), len(x)))
        if directions is None:
            traces = _exact_trace(u, y, keep)[None]
        elif sketch is None:
            traces = _inner(products(u, y, directions, keep), directions)
        else:
            traces = _hutch_pp(u, y, directions, sketch, keep)
    return (u, traces) if keep else (u.detach(), traces.detach())


def products(u: Tensor, y: Tensor, directions: Tensor, keep: bool = False) -> Tensor:
    """The products `e^T du/dy` for every direction e.

    They are vectorised, or taken one by one where a model cannot be.

    Args:
        u: A function of y, like it.
        y: `(batch, *event_shape)`, a leaf of the graph of u.
        directions: The directions e, `(k, batch, *event_shape)`.
        keep: Whether the products are to be differentiable themselves.

    Returns:
        `(k, batch, *event_shape)`.
    """

    def pulled(e: Tensor, together: bool) -> Tensor:
        how = {"is_grads_batched": together, "create_graph": keep, "allow_unused": True}
        (found,) = torch.autograd.grad(u, y, e, retain_graph=True, **how)
        # torch's own zeros of a u without y in its graph lack the axis of the directions
        return torch.zeros_like(e, dtype=y.dtype) if found is None else found

    try:
        return torch.cat([pulled(part, True) for part in directions.split(ABREAST)])
    except RuntimeError:  # an operation without a batching rule, or too little memory
        return torch.stack([pulled(e, False) for e in directions])


def _standard_error(values: Tensor) -> Tensor:
    """The standard error of the mean of each row's values, `(batch, k) -> (batch,)`.

    It does not use torch's `std`, whose rounding of a row depends on the number of rows.
    """
    k = values.shape[1]
    return ((values - values.mean(1, keepdim=True)).square().sum(1) / ((k - 1) * k)).sqrt()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the event axes, of `(k, batch, *event_shape)`: `(k, batch)`."""
    return (a * b).flatten(2).sum(-1) if a.ndim > 2 else a * b


def _exact_trace(u: Tensor, y: Tensor, keep: bool) -> Tensor:
    d = math.prod(y.shape[1:])
    basis = (
        torch.eye(d, dtype=y.dtype, device=y.device).reshape(d, 1, *y.shape[1:]).expand(d, *y.shape)
    )
    return torch.stack(
        [_inner(products(u, y, part, keep), part).sum(0) for part in basis.split(ABREAST)]
    ).sum(0)


def _hutch_pp(u: Tensor, y: Tensor, directions: Tensor, sketch: Tensor, keep: bool) -> Tensor:
    """Hutch++ for `J^T`, which has the trace of J: one estimate for each probe, `(k, batch)`.

    Each contains the exact trace in the sketched range. The estimate is unbiased whatever the
    basis, and so is its gradient with the basis held fixed. The term in c removes what a multiple
    of the identity adds to the variance, as signs do before they are projected.
    """
    seen = products(u, y, sketch, keep)
    basis = torch.linalg.qr(_columns(seen)).Q.detach()  # (batch, d, r)
    probes = _columns(directions)
    rest = probes - basis @ (basis.mT @ probes)
    both = rearrange(torch.cat([basis, rest], 2), "batch d k -> k batch d").reshape(-1, *y.shape)
    within, beyond = _inner(products(u, y, both, keep), both).split([len(sketch), len(directions)])
    norms, known = rest.square().sum(1).T, basis.shape[1] - basis.shape[2]
    others = (norms.sum(0) - norms).clamp(min=torch.finfo(norms.dtype).tiny)
    estimate: Tensor = within.sum(0) + beyond - (beyond.sum(0) - beyond) / others * (norms - known)
    return estimate


def _columns(vectors: Tensor) -> Tensor:
    """Vectors as the columns of matrices, `(k, batch, *event_shape) -> (batch, d, k)`."""
    return rearrange(vectors, "k batch ... -> batch (...) k")


def _by_flow(
    bound: TimedField,
    x: Tensor,
    directions: Tensor | None,
    sketch: Tensor | None,
    solve: Solve,
    how: str,
) -> Estimate:
    flow, batch, d = Flow(bound), len(x), math.prod(bound.event_shape)
    k = 1 if directions is None else len(directions)

    def augmented(rows: Tensor) -> Rate:
        rate = flow.of(rows).rate
        own, seen = (None if probes is None else probes[:, rows] for probes in (directions, sketch))

        def both(state: Tensor, angle: float | Tensor) -> Tensor:
            u, traces = divergence(
                rate, state[:, :d].reshape(len(state), *x.shape[1:]), angle, own, seen
            )
            return torch.cat([u.reshape(len(state), d), traces.T], 1)

        return both

    noise, data = flow.radius(0.0), flow.radius(1.0)
    start = torch.cat([x.reshape(batch, d) / data, x.new_zeros((batch, k))], 1)
    state, status, calls = solve.run(flow, augmented, start)
    # each probe's integral from data to noise is an estimate of its own; the base is common to all
    base = bound.base.log_prob(noise * state[:, :d].reshape(x.shape)) + d * math.log(noise / data)
    value = base + state[:, d:].mean(1)
    stderr = torch.zeros_like(value) if directions is None else _standard_error(state[:, d:])
    status = torch.where((status == int(Status.OK)) & value.isnan(), int(Status.NONFINITE), status)
    value, stderr = (v.where(status == int(Status.OK), torch.nan) for v in (value, stderr))
    products_each = d if directions is None else k + (0 if sketch is None else 2 * len(sketch))
    made = int(calls.sum())
    cost = Cost(velocity=made + batch, vjp=made * products_each)
    rank = "" if sketch is None else f" beyond a range of {len(sketch)}"
    return Estimate(
        value, stderr, f"probability flow ({solve.describe(flow)}, {how}{rank})", cost, status
    )
