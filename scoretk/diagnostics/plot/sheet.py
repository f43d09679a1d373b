"""Samples as a sheet: images side by side, points of the plane, histograms of numbers, curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import count, event_shape, numbers
from scoretk.core.keywords import explained
from scoretk.diagnostics.plot.figures import COLORS, array, dot, the_axes
from scoretk.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["samples"]

COLORED = (3, 4)
"""How many channels an image with colours has."""


@explained
def samples(
    draws: Any,
    *,
    shape: Sequence[int] | None = None,
    most: int = 64,
    columns: int | None = None,
    title: str | None = None,
    axes: Axes | None = None,
) -> Figure:
    """The last draw of each chain that is well, all on one sheet.

    Events `(h, w)`, `(1, h, w)` and `(3, h, w)` are images, on one scale of grey or, with three
    channels, of colours; `(2,)` are points, `()` and `(1,)` numbers, of which a histogram is drawn,
    other vectors are curves. Draws with weights, as of AIS and SMC, are resampled by these.

    Args:
        draws: What `scoretk.sample` returned, or a tensor `(n, *event_shape)`.
        shape: The shape of an event as a picture, such as `(8, 8)` for `(64,)`; None for its own.
        most: How many images or curves are shown. Points and numbers are shown all.
        columns: How many images stand side by side; None for about as many as below one another.
        title: A title; None for what is left out, where something is.
        axes: Where to draw; None for a new figure.

    Returns:
        The figure.

    Raises:
        InvalidArgument: Every chain failed, a number is not finite, or an event is no picture.
        MissingDependency: matplotlib is not installed.
    """
    x, left_out = _rows(draws)
    x = x if shape is None else _reshaped(x, event_shape(shape, "shape"))
    event, n = tuple(x.shape[1:]), count("most", most, least=1)
    if not bool(x.isfinite().all()):
        raise InvalidArgument(
            "draws", f"{int((~x.isfinite()).sum())} that are not finite", "numbers"
        )
    if event in ((), (1,)):
        shown, panel = x, the_axes(axes, (4.5, 3.2))
        panel.hist(array(x).ravel(), min(60, max(10, len(x) // 20)), color=COLORS["way"])
        panel.set(xlabel="x", yticks=[])
    elif event == (2,):
        shown, panel = x, the_axes(axes, (4.5, 4.5))
        at = array(x)
        panel.scatter(at[:, 0], at[:, 1], s=dot(len(x)), linewidths=0, color=COLORS["draws"])
        panel.set(aspect="equal", xlabel="x[0]", ylabel="x[1]")
    elif len(event) == 1:
        shown, panel = x[:n], the_axes(axes, (5.5, 3.2))
        panel.plot(array(shown).T, color=COLORS["way"], linewidth=0.6, alpha=0.7)
        panel.set(xlabel="entry", xlim=(0, event[0] - 1))
    else:
        shown, panel = x[:n], _images(x[:n], columns, axes)
    notes = [f"{len(shown)} of {len(x)}"] if len(shown) < len(x) else []
    panel.set_title(", ".join(notes + left_out) if title is None else title, fontsize=10)
    return _figure_of(panel)


def _figure_of(panel: Any) -> Figure:
    figure: Figure = panel.get_figure(root=True)
    return figure


def _rows(draws: Any) -> tuple[Tensor, list[str]]:
    """The events to show, `(n, *event_shape)`, and what is left out, in words."""
    if isinstance(draws, Tensor):
        if draws.ndim == 0 or not len(draws):
            raise InvalidArgument("draws", draws, "a tensor (n, *event_shape) with n > 0")
        return numbers("draws", draws).detach(), []
    final, ok = (getattr(draws, name, None) for name in ("final", "ok"))
    if not isinstance(final, Tensor) or not isinstance(ok, Tensor):
        expected = "what scoretk.sample returned, or a tensor (n, *event_shape)"
        raise InvalidArgument("draws", draws, expected)
    well = ok.to(final.device)
    if not bool(well.any()):
        raise InvalidArgument("draws", f"{len(final)} chains, all failed", "one that is well")
    failed = int((~well).sum())
    notes = [f"without {failed} failed chains"] if failed else []
    weight = draws.stats.get("log_weight")
    if weight is None:
        return final[well].detach(), notes
    last = weight.to(final.device).reshape(len(final), -1)[:, -1][well]
    return final[well].detach()[_resampled(last)], [*notes, "resampled by weight"]


def _resampled(log_weight: Tensor) -> Tensor:
    """Systematic resampling, `(n,)`: row i is taken `n w_i` times, rounded up or down."""
    share = log_weight.double().cpu().softmax(0)
    at = (torch.arange(len(share), dtype=torch.float64) + 0.5) / len(share)
    rows = torch.searchsorted(share.cumsum(0), at).clamp(max=len(share) - 1)
    return rows.to(log_weight.device)


def _reshaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if math.prod(shape) != math.prod(x.shape[1:]):
        raise InvalidArgument("shape", shape, f"{math.prod(x.shape[1:])} entries in all")
    return x.reshape(len(x), *shape)


def _images(x: Tensor, columns: int | None, axes: Axes | None) -> Axes:
    """The images as one, with a line between them."""
    channels = x.shape[1] if x.ndim == 4 else 1
    if x.ndim not in (3, 4) or channels not in (1, *COLORED):
        hint = "Say by shape= how an event is seen, such as shape=(8, 8)"
        raise InvalidArgument(
            "draws", f"events of shape {tuple(x.shape[1:])}", "points, curves or images", hint
        )
    pixels = array(x).reshape(len(x), channels, *x.shape[-2:])
    low, high = pixels.min(), pixels.max()
    across = math.ceil(math.sqrt(len(x))) if columns is None else count("columns", columns, least=1)
    sheet = mosaic(pixels, across)
    height, width = sheet.shape[:2]
    size = 6.0 * min(width / height, 1.6)
    panel = the_axes(axes, (size, size * height / width))
    if channels in COLORED:
        panel.imshow(np.nan_to_num((sheet - low) / max(high - low, 1e-12), nan=1.0))
    else:
        shades = panel.imshow(sheet[..., 0], cmap="gray", vmin=low, vmax=high)
        shades.set_cmap(shades.get_cmap().with_extremes(bad=COLORS["between"]))
    panel.set_axis_off()
    return panel


def mosaic(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Images `(n, channels, h, w)` in rows, `(rows (h + 1) - 1, columns (w + 1) - 1, channels)`.

    Between them and in places that are left is NaN, which is drawn as nothing.
    """
    n, channels, h, w = pixels.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, channels), np.nan)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (h + 1), (i % columns) * (w + 1)
        sheet[top : top + h, left : left + w] = image.transpose(1, 2, 0)
    return sheet
