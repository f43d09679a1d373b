"""Chains as ArviZ draws them, for both ArviZ: its functions have other names in 0.x and 1.x.

As `scoretk.core.inferencedata`, the module needs numpy, matplotlib and ArviZ alone, so that Python
versions are tested without torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scoretk.core.inferencedata import arviz, inference_data, is_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["chain_figure"]

FROM_1_ON: Mapping[str, tuple[str, dict[str, Any]]] = {
    "trace": ("plot_trace_dist", {"compact": False}),
    "rank": ("plot_rank", {}),
    "pairs": ("plot_pair", {}),
}
BEFORE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "trace": ("plot_trace", {"compact": False, "legend": False}),
    "rank": ("plot_rank", {"kind": "bars"}),
    "pairs": ("plot_pair", {"marginals": True}),
}
"""The functions of ArviZ that make a picture, and what they are told, by its kind."""


def chain_figure(kind: str, values: Mapping[str, np.ndarray], diverging: Any = None) -> Figure:
    """A picture of chains by ArviZ, which no window shows.

    Args:
        kind: "trace", "rank" or "pairs".
        values: The draws `(chain, draw)` by what their panels are called.
        diverging: Which draws ended a divergent trajectory, `(chain, draw)`; None if unknown.

    Returns:
        The figure.

    Raises:
        MissingDependency: ArviZ is not installed.
    """
    from matplotlib import pyplot

    az = arviz("this picture")
    stats = {} if diverging is None else {"sample_stats": {"diverging": diverging.astype(bool)}}
    data = inference_data({"posterior": dict(values), **stats}, {}, {}, {}, "this picture")
    function, told = (FROM_1_ON if is_tree(az) else BEFORE)[kind]
    told = told | ({"backend": "matplotlib"} if is_tree(az) else {})
    if kind == "pairs" and diverging is not None and not is_tree(az):
        told = told | {"divergences": True}
    with warnings.catch_warnings(), pyplot.ioff():
        # Of constants it says that they have one value, of its own calls that matplotlib changes.
        warnings.simplefilter("ignore")
        made = getattr(az, function)(data, **told)
        figure: Figure = made.viz["figure"].item() if is_tree(az) else np.ravel(made)[0].figure
        figure.set_layout_engine("constrained")  # else titles lie on the ticks of the row above
        figure.canvas.draw()  # what is placed at the first drawing warns then
    pyplot.close(figure)
    return figure
