r"""The marginals of a Gaussian path, from noise to data.

Of data x_1, ..., x_n the law at time t is known exactly, a mixture of n normals:

    p_t(x) = 1/n sum_i N(x; alpha(t) x_i, sigma(t)^2 I).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoretk.core.arguments import numbers
from scoretk.core.keywords import explained
from scoretk.diagnostics.plot.figures import COLORS, array, grid, the_axes
from scoretk.errors import InvalidArgument
from scoretk.fields.paths import GaussianPath
from scoretk.fields.protocols import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["path"]

TIMES, PLACES = 121, 160
"""Of the picture of one dimension: how many times and how many x."""
NARROWEST = 1.5
"""The least standard deviation of a normal, in pixels: at the data it would be none."""
PANELS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The times of the panels of two dimensions."""
MOST = 2000
"""How many of the data are used."""


@explained
def path(path: Any, data: Any = None, *, seed: int = 0, axes: Axes | None = None) -> Figure:
    """How a Gaussian path leads from noise to data.

    Without data the coefficients alpha and sigma over time. With data of one dimension the density
    of every time, each time with its largest value in full colour; of two dimensions samples
    `alpha x + sigma eps` at five times.

    Args:
        path: A Gaussian path such as `scoretk.VP()`, or a field in time that has one.
        data: A tensor `(n,)`, `(n, 1)` or `(n, 2)`; None for the coefficients.
        seed: The seed of the noise in two dimensions.
        axes: Where to draw; None for a new figure. Two dimensions make a figure of their own.

    Returns:
        The figure.

    Raises:
        InvalidArgument: There is no Gaussian path, or the data have another shape.
        MissingDependency: matplotlib is not installed.
    """
    found = path if isinstance(path, GaussianPath) else optional(path, "path")
    if not isinstance(found, GaussianPath):
        raise InvalidArgument(
            "path", path, "a Gaussian path, such as scoretk.VP(), or a field with one"
        )
    if data is None:
        return _coefficients(found, the_axes(axes, (4.5, 3.2)))
    x = _data(data)
    if x.shape[1] == 1:
        return _heat(found, x[:, 0], the_axes(axes, (5.5, 3.6)))
    if axes is not None:
        raise InvalidArgument(
            "axes", axes, "None for data of two dimensions: five panels are drawn"
        )
    return _panels(found, x, seed)


def _data(data: Any) -> Tensor:
    """The data `(n, d)`, d 1 or 2, evenly spaced ones where there are very many."""
    x = numbers("data", data).detach().cpu().double()
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.shape[1] not in (1, 2) or not len(x):
        raise InvalidArgument("data", data, "a tensor (n,), (n, 1) or (n, 2)")
    if not bool(x.isfinite().all()):
        raise InvalidArgument("data", data, "numbers that are finite")
    return x[torch.linspace(0, len(x) - 1, min(len(x), MOST)).round().long()]


def _curves(path: GaussianPath, times: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma at times, `(n,)` each, in float64."""
    return path.alpha(times), path.sigma(times)


def _coefficients(path: GaussianPath, panel: Axes) -> Figure:
    times = torch.linspace(0, 1, TIMES, dtype=torch.float64)
    for curve, label in zip(_curves(path, times), ("alpha", "sigma"), strict=True):
        panel.plot(array(times), array(curve), label=label)
    panel.set(xlabel="t", xlim=(0, 1), title=repr(path))
    panel.legend()
    return _whole(panel)


def _whole(panel: Axes) -> Figure:
    figure: Figure = panel.get_figure(root=True)  # type: ignore[assignment]
    return figure


def _heat(path: GaussianPath, x: Tensor, panel: Axes) -> Figure:
    """The density over time and place, each time divided by its largest value."""
    times = torch.linspace(0, 1, TIMES, dtype=torch.float64)
    alpha, sigma = _curves(path, times)
    reach = 1.05 * float((alpha * x.abs().max() + 2.5 * sigma).max())
    places = torch.linspace(-reach, reach, PLACES, dtype=torch.float64)
    width = sigma.clamp(min=NARROWEST * 2 * reach / PLACES)
    density = torch.stack([marginal(places, a * x, s) for a, s in zip(alpha, width, strict=True)])
    shown = density / density.amax(1, keepdim=True)
    panel.pcolormesh(array(times), array(places), array(shown.T), cmap=COLORS["density"])
    panel.set(xlabel="t", ylabel="x", title=repr(path))
    return _whole(panel)


def marginal(places: Tensor, centres: Tensor, std: Tensor) -> Tensor:
    """The density of a mixture of normals at places, `1/n sum_i N(x; c_i, s^2)`.

    Args:
        places: `(m,)`.
        centres: `(n,)`.
        std: Their common standard deviation, `()`.

    Returns:
        `(m,)`.
    """
    standard = (places[:, None] - centres) / std
    return (-standard.square() / 2).exp().mean(1) / (std * math.sqrt(2 * math.pi))


def _panels(path: GaussianPath, x: Tensor, seed: int) -> Figure:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    figure, panels = grid(len(PANELS), len(PANELS), (2.2, 2.4))
    for t, panel in zip(PANELS, panels, strict=True):
        at = array(float(path.alpha(t)) * x + float(path.sigma(t)) * noise)
        panel.scatter(at[:, 0], at[:, 1], s=3, linewidths=0, color=COLORS["draws"])
        panel.set(title=f"t = {t:g}", aspect="equal", xticks=[], yticks=[])
    return figure
