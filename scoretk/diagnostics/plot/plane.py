r"""A field of the plane: its density, its arrows, and ways through it.

The density is `exp(-(E - min E))`. Of a field that is sampled in free space, x = T(z), it is drawn
where draws are, by the change of variables

    log p(x) = -E(z) - log |det dT/dz|,    z on a grid.

The window is found by zooming: the marginal masses of a grid that reaches to +-200, with cells that
grow with the distance from 0, bound a smaller grid, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from scoretk.core.arguments import conditions, count, finite
from scoretk.core.keywords import explained
from scoretk.core.modules import as_networks_take, field_tensors, left_as_found
from scoretk.core.noise import Noise
from scoretk.core.rows import finite_rows
from scoretk.diagnostics.plot.figures import COLORS, array, dot, the_axes
from scoretk.errors import InvalidArgument
from scoretk.fields.base import base_of
from scoretk.fields.distribution import from_distribution, in_free_space
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, optional
from scoretk.fields.resolve import StaticField, TimedField, resolve
from scoretk.plugins.models import load
from scoretk.solvers.probability_flow import ProbabilityFlow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["field"]

Bounds = tuple[float, float, float, float]
"""The least and the largest x[0], the least and the largest x[1]."""

REACH = 6.0
"""The first grid has its points at sinh(u), abs(u) <= REACH."""
ZOOMS = 4
INSIDE = 2e-3
"""The share of the mass that may be left out at each side of the window."""
GRID, ARROWS = 120, 18
"""Points a side at which density and arrows are taken."""
POINT, DOT = 1e-4, 0.1
"""Data that take less of a picture's side than the second are a dot, than the first one point."""
PLAIN = (-3.0, 3.0, -3.0, 3.0)
"""The window where nothing says where the field lives."""


class Plane(NamedTuple):
    """What is drawn of a field without a time, as functions of places `(..., 2)`.

    Attributes:
        energy: `(..., 2) -> (...)`; None where the field has none.
        arrows: `(..., 2) -> (..., 2)`, its score or velocity; None where they are not drawn.
        constrain: The map to where draws are; None where x is sampled itself.
    """

    energy: Callable[[Tensor], Tensor] | None
    arrows: Callable[[Tensor], Tensor] | None
    constrain: Callable[[Tensor], Tensor] | None = None


class Mesh(NamedTuple):
    """Places in the plane and the density there.

    Attributes:
        places: `(n, n, 2)`, where draws are.
        density: `(n, n)`, its largest value 1.
    """

    places: np.ndarray
    density: np.ndarray


@explained
def field(
    field: Any,
    t: float | None = None,
    *,
    draws: Any = None,
    bounds: Sequence[float] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    chains: int = 100,
    seed: int = 0,
    axes: Axes | None = None,
) -> Figure:
    """A field of two dimensions: density, arrows of the score or velocity, ways through it.

    A static field shows its density, where it has an energy, and arrows along its score; a field in
    time shows ways of its flow from noise to data, or with `t` the density and the arrows of that
    time. Under a constraint the density is that of the user's space, without arrows.

    Args:
        field: A field with events of shape `(2,)`, a distribution, or a model's name.
        t: A time in [0, 1], of a field in time; None for its flow.
        draws: What `scoretk.sample` returned: its draws as points, or where every step of a flow was
            kept (`keep="all"`) as ways.
        bounds: The window `(x0_min, x0_max, x1_min, x1_max)`; None to find one: of a flow all of
            its ways, or its data where these are small beside the noise, as in EDM.
        cond: Condition values by name, one row, as for one chain.
        chains: How many ways of a flow are drawn where there are no draws.
        seed: The seed of where they start.
        axes: Where to draw; None for a new figure.

    Returns:
        The figure.

    Raises:
        InvalidArgument: The field is not of the plane, or is one of discrete states.
        MissingCapability: It has neither an energy nor a score nor a velocity.
        MissingDependency: matplotlib is not installed.
    """
    model = _opened(field)
    window = None if bounds is None else _window(bounds)
    points = None if draws is None else _points(draws)
    (rows,) = as_networks_take(model, conditions(cond, 1))
    panel = the_axes(axes, (5.0, 5.0))
    with torch.no_grad(), left_as_found(model):
        if is_timed(model) and t is None:
            n = count("chains", chains, least=1)
            ways = _ways(model, rows, n, seed) if points is None else points
            _draw_ways(panel, ways)
            window = window or _of_the_data(array(ways))
        else:
            window = _draw_plane(panel, _plane(model, t, rows), window, points)
    if window is not None:
        panel.set(xlim=window[:2], ylim=window[2:])
    panel.set(xlabel="x[0]", ylabel="x[1]", title="" if t is None else f"t = {t:g}")
    figure: Figure = panel.get_figure(root=True)  # type: ignore[assignment]
    return figure


def _opened(field: Any) -> Any:
    """The field, of events that lie in the plane.

    Raises:
        InvalidArgument: They do not.
    """
    model = load(field) if isinstance(field, str) else field
    model = from_distribution(model) if isinstance(model, Distribution) else model
    if not is_field(model):
        resolve(model, ())  # raises, with the way to wrap it
    if optional(model, "states") is not None:
        hint = "scoretk.plot.samples(draws) shows its draws"
        raise InvalidArgument("field", field_name(model), "one of real x, not of states", hint)
    free = in_free_space(model)
    users = tuple(optional(free, "constrained_shape") or free.event_shape)
    if (tuple(free.event_shape), users) != ((2,), (2,)):
        got = f"{field_name(model)} with events of shape {users}"
        hint = "scoretk.plot.samples(draws) shows draws of any shape, draws.plot('pairs') entries"
        raise InvalidArgument("field", got, "events of shape (2,)", hint)
    return free


def _window(bounds: Sequence[float]) -> Bounds:
    expected = "four numbers: the least and the largest x[0], the least and the largest x[1]"
    if isinstance(bounds, str) or not isinstance(bounds, Sequence) or len(bounds) != 4:
        raise InvalidArgument("bounds", bounds, expected)
    a, b, c, d = (finite("bounds", side) for side in bounds)
    if not (a < b and c < d):
        raise InvalidArgument("bounds", bounds, expected)
    return a, b, c, d


def _points(draws: Any) -> Tensor:
    """The draws of the chains that are well, `(chains, kept, 2)`.

    Raises:
        InvalidArgument: They are no draws of the plane.
    """
    x, ok = (getattr(draws, name, None) for name in ("x", "ok"))
    if not isinstance(x, Tensor) or not isinstance(ok, Tensor) or x.shape[2:] != (2,):
        raise InvalidArgument("draws", draws, "what scoretk.sample returned, of events (2,)")
    if not bool(ok.any()):
        raise InvalidArgument("draws", f"{len(ok)} chains, all failed", "one that is well")
    return x.detach()[ok.to(x.device)]


def _plane(model: Any, t: float | None, rows: dict[str, Tensor]) -> Plane:
    """What is drawn of a static field, or of a field in time at a time.

    Raises:
        InvalidArgument: A time of a static field, or none in [0, 1].
        MissingCapability: There is nothing to draw.
    """
    ask = partial(_asked, model, rows)
    if not is_timed(model):
        if t is not None:
            raise InvalidArgument("t", t, f"None: {field_name(model)} is no field in time")
        has, constrain = offers(model), optional(model, "constrain")
        still = resolve(model, has & {"energy", "score"} or {"score"}, timed=False)
        assert isinstance(still, StaticField)
        arrows = partial(ask, still.score) if constrain is None else None
        return Plane(partial(ask, still.energy) if "energy" in has else None, arrows, constrain)
    time = finite("t", t)
    if not 0 <= time <= 1:
        raise InvalidArgument("t", t, "a time in [0, 1]: 0 is noise, 1 data")
    moving, then = resolve(model, {"velocity"}, timed=True), model.at(time)
    assert isinstance(moving, TimedField)

    def velocity(x: Tensor, **cond: Tensor) -> Tensor:
        return replace(moving, cond=cond).velocity(x, time)

    has = offers(then)
    return Plane(partial(ask, then.energy) if "energy" in has else None, partial(ask, velocity))


def _asked(
    model: Any, rows: Mapping[str, Tensor], method: Callable[..., Tensor], z: Tensor
) -> Tensor:
    """What a method of the model says at places `(..., 2)`, asked where the model is."""
    (flat,) = as_networks_take(model, z.reshape(-1, 2).float().to(_place(model)))
    cond = {name: value.expand(len(flat), *value.shape[1:]) for name, value in rows.items()}
    found = method(flat, **cond).cpu().double()
    return found.reshape(*z.shape[:-1], *found.shape[1:])


def _place(model: Any) -> torch.device:
    held = field_tensors(model)
    return held[0].device if held else torch.device("cpu")


def _draw_plane(
    panel: Axes, plane: Plane, window: Bounds | None, points: Tensor | None
) -> Bounds | None:
    """Draw density, arrows and points; returns the window."""
    of_points = None if points is None else _around(array(points).reshape(-1, 2))
    if plane.energy is not None:
        free = window if window and plane.constrain is None else _zoomed(plane.energy)
        mesh = _mesh(plane.energy, plane.constrain, _square(free, GRID))
        window = window or (free if plane.constrain is None else _massive(mesh))
        panel.contourf(*np.moveaxis(mesh.places, 2, 0), mesh.density, 12, cmap=COLORS["density"])
    window = window or of_points or PLAIN
    if plane.arrows is not None:
        _draw_arrows(panel, plane.arrows, window)
    if points is not None:
        well = array(points).reshape(-1, 2)
        panel.scatter(well[:, 0], well[:, 1], s=dot(len(well)), linewidths=0, color=COLORS["draws"])
    return window


def _draw_arrows(panel: Axes, arrows: Callable[[Tensor], Tensor], window: Bounds) -> None:
    """Arrows, long ones shortened: `a / (1 + |a| / median |a|)`."""
    places = _square(window, ARROWS)
    found = arrows(places)
    length = found.norm(dim=-1, keepdim=True)
    typical = (
        length[length.isfinite()].median() if bool(length.isfinite().any()) else length.new_ones(())
    )
    shown = found / (1 + length / typical.clamp(min=1e-12))
    panel.quiver(
        *np.moveaxis(array(places), 2, 0),
        *np.moveaxis(array(shown), 2, 0),
        color=COLORS["arrow"],
        alpha=0.7,
        width=0.003,
        angles="xy",
    )


def _square(window: Bounds, n: int) -> Tensor:
    """The points of a grid, `(n, n, 2)`."""
    u, v = (torch.linspace(*side, n, dtype=torch.float64) for side in (window[:2], window[2:]))
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), -1)


def _mesh(
    energy: Callable[[Tensor], Tensor], constrain: Callable[[Tensor], Tensor] | None, z: Tensor
) -> Mesh:
    """The density where draws are, of the energy at places z of a grid.

    Raises:
        InvalidArgument: It is 0 everywhere.
    """
    log_density, places = -energy(z), z
    if constrain is not None:
        places, log_det = _moved(constrain, z)
        log_density = log_density - log_det
    log_density = torch.where(log_density.isfinite(), log_density, -math.inf)
    largest = log_density.max()
    if not bool(largest.isfinite()):
        raise InvalidArgument("bounds", "a window where no energy is finite", "one where it is")
    return Mesh(array(places), array((log_density - largest).exp()))


def _moved(constrain: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """`T(z)`, like z, and `log |det dT/dz|`, at points of the plane."""
    flat = z.reshape(-1, 2)
    with torch.enable_grad():
        leaf = flat.clone().requires_grad_()
        x = constrain(leaf)
        first, second = (
            torch.autograd.grad(x[:, i].sum(), leaf, retain_graph=True)[0] for i in (0, 1)
        )
    det = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    return x.detach().reshape(z.shape), det.abs().log().reshape(z.shape[:-1])


def _zoomed(energy: Callable[[Tensor], Tensor]) -> Bounds:
    """The window that holds the mass of `exp(-E)`."""
    u = torch.linspace(-REACH, REACH, GRID + 1, dtype=torch.float64)
    sides = [u.sinh(), u.sinh()]
    window = PLAIN
    for _ in range(ZOOMS):
        grid = torch.stack(torch.meshgrid(*sides, indexing="xy"), -1)
        cells = [torch.gradient(side)[0] for side in sides]
        mass = _normalised(-energy(grid) + cells[0].log() + cells[1].log()[:, None])
        if mass is None:
            return window
        ends = [_ends(side, mass.sum(axis)) for side, axis in zip(sides, (0, 1), strict=True)]
        window = (*ends[0], *ends[1])
        sides = [torch.linspace(*end, GRID + 1, dtype=torch.float64) for end in ends]
    return window


def _normalised(log_mass: Tensor) -> Tensor | None:
    """Masses that sum to 1; None where there is none."""
    known = log_mass.isfinite()
    if not bool(known.any()):
        return None
    return torch.where(known, log_mass, -math.inf).flatten().softmax(0).reshape(log_mass.shape)


def _ends(side: Tensor, mass: Tensor) -> tuple[float, float]:
    """The places between which a marginal has its mass, with a cell and a tenth more on each side."""
    below = mass.cumsum(0)
    low = int((below < INSIDE).sum())
    high = int((below < 1 - INSIDE).sum())
    first, last = side[max(low - 1, 0)], side[min(high + 1, len(side) - 1)]
    room = 0.05 * (last - first)
    return float(first - room), float(last + room)


def _around(points: np.ndarray) -> Bounds:
    """A window around points `(n, 2)`."""
    low, high = np.quantile(points, (INSIDE, 1 - INSIDE), axis=0)
    room = 0.15 * np.maximum(high - low, 1e-6)
    (a, c), (b, d) = low - room, high + room
    return float(a), float(b), float(c), float(d)


def _of_the_data(ways: np.ndarray) -> Bounds | None:
    """A window around the ends of ways `(chains, kept, 2)`, where noise makes them a dot.

    None where all of the ways is seen well in one picture, or where they end in one point.
    """
    ends, everything = _around(ways[:, -1]), _around(ways.reshape(-1, 2))
    share = max((ends[i + 1] - ends[i]) / (everything[i + 1] - everything[i]) for i in (0, 2))
    return ends if POINT < share < DOT else None


def _massive(mesh: Mesh) -> Bounds:
    """The window in which the density of a mesh is seen."""
    return _around(mesh.places[mesh.density > 0.01].reshape(-1, 2))


def _ways(model: Any, rows: dict[str, Tensor], chains: int, seed: int) -> Tensor:
    """The probability flow from the field's own base, `(chains, steps + 1, 2)`."""
    base = base_of(model)
    if base is None:
        hint = "Give draws=, of scoretk.sample(field, init=..., keep='all')"
        raise InvalidArgument("field", field_name(model), "one with a base to start from", hint)
    place = _place(model)
    noise = Noise(seed, chains, device=place)
    cond = {name: value.expand(chains, *value.shape[1:]) for name, value in rows.items()}
    flow = ProbabilityFlow()
    moving = resolve(model, flow.needs, cond, timed=True)
    assert isinstance(moving, TimedField)
    (start,) = as_networks_take(model, base.draw(chains, noise))
    state = flow.init(moving, start, noise)
    way = [state.x]
    for done in flow.milestones(moving):
        state, _ = flow.step(moving, state, noise)
        way += [state.x] if done else []
    found = torch.stack(way, 1)
    return found[finite_rows(found)]


def _draw_ways(panel: Axes, ways: Tensor) -> None:
    """Ways `(chains, kept, 2)` as lines, their ends as points."""
    way = array(ways)
    for line in way:
        panel.plot(*line.T, color=COLORS["way"], linewidth=0.5, alpha=0.5)
    panel.scatter(way[:, -1, 0], way[:, -1, 1], s=6, linewidths=0, color=COLORS["draws"], zorder=3)
    panel.set(aspect="equal")
