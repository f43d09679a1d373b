"""Figures that are returned, not shown, and what pictures take of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "array", "canvas", "dot", "grid", "the_axes"]

COLORS = {
    "density": "Blues",
    "draws": "#d9480f",
    "way": "#1c7ed6",
    "arrow": "#495057",
    "between": "#a5b8cc",
}
"""The colours of all pictures, by what they are of."""


def canvas(size: tuple[float, float]) -> Figure:
    """An empty figure of a width and a height in inches.

    It is made by pyplot, so that a notebook knows how to show it, and taken out of pyplot's hands,
    so that it is shown once, where it is asked for, and is gone with its last reference.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    pyplot = required("matplotlib.pyplot", "plot", "A picture")
    with pyplot.ioff():
        figure: Figure = pyplot.figure(figsize=size, layout="constrained")
    pyplot.close(figure)
    return figure


def the_axes(axes: Any, size: tuple[float, float]) -> Axes:
    """The axes to draw into: those given, else those of a new figure of this size.

    Raises:
        InvalidArgument: What is given are no axes.
        MissingDependency: matplotlib is not installed.
    """
    if axes is None:
        return canvas(size).subplots()
    from matplotlib.axes import Axes

    if not isinstance(axes, Axes):
        hint = "Such as figure, axes = matplotlib.pyplot.subplots()"
        raise InvalidArgument("axes", axes, "matplotlib axes, or None for a new figure", hint)
    return axes


def grid(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with panels in rows, each of a width and a height in inches.

    Returns:
        The figure and `count` axes; places in the last row that are left stay empty.
    """
    across = min(columns, count)
    down = -(-count // across)
    figure = canvas((across * size[0], down * size[1]))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.remove()
    return figure, list(axes[:count])


def dot(n: int) -> float:
    """How large a dot is among n, an area in square points: many cover no more than few, about."""
    return min(max(4000 / n, 1.0), 30.0)


def array(value: Tensor) -> np.ndarray:
    """The numbers of a tensor of any dtype and device, in float64 where they are real."""
    here = value.detach().cpu()
    return np.asarray((here.double() if here.is_floating_point() else here).numpy())
