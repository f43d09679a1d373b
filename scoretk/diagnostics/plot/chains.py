"""Chains as pictures: traces, ranks and pairs, by ArviZ where it is installed.

Ranks are those of all draws of the shown chains together. Chains of one law have uniform ranks each
(Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: an
improved R-hat for assessing convergence of MCMC", 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import count, option
from scoretk.core.arvizplots import chain_figure
from scoretk.diagnostics.plot.figures import COLORS, array, canvas
from scoretk.errors import InvalidArgument

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "plot_chains"]

MOST_CHAINS = 8
"""How many chains are told apart in a picture."""
MOST_POINTS = 4000
"""How many points a panel of pairs shows."""
LEAST = {"trace": 2, "rank": 4, "pairs": 1}
"""How many draws of each chain a picture needs."""
BINS = 20


def plot_chains(
    kind: str,
    x: Tensor,
    labels: Sequence[str],
    ok: Tensor,
    *,
    names: Sequence[str] | str | None = None,
    most: int = 6,
    diverging: Tensor | None = None,
) -> Figure:
    """A picture of the chains that are well.

    Args:
        kind: "trace", "rank" or "pairs".
        x: Draws, `(chains, kept, entries)`.
        labels: What the entries are called.
        ok: Which chains are well, `(chains,)`.
        names: The entries, or the variables, to show; None for the first ones.
        most: How many entries are shown.
        diverging: Which draws ended a divergent trajectory, `(chains, kept)`; None if unknown.

    Returns:
        The figure, whose title says what is left out.

    Raises:
        InvalidArgument: There is nothing to show, or it is not finite.
        UnknownName: There is no such kind or entry.
        MissingDependency: matplotlib is not installed.
    """
    kind = option("kind", kind, KINDS)
    named = _chosen(labels, names)
    shown = named[: count("most", most, least=1)]
    if kind == "pairs" and len(shown) < 2:
        raise InvalidArgument("kind", kind, "'trace' or 'rank', where one entry is to be shown")
    if x.shape[1] < LEAST[kind]:
        hint = "keep='all' keeps every draw of a chain"
        expected = f"at least {LEAST[kind]} draws of each chain for {kind!r}"
        raise InvalidArgument("draws", f"{x.shape[1]} a chain", expected, hint)
    well = ok.cpu().nonzero().flatten()
    if not len(well):
        hint = "draws.failures says how; solvers with smaller steps fail less"
        raise InvalidArgument("draws", f"{len(ok)} chains, all failed", "one that is well", hint)
    rows = _told_apart(kind, well, x.shape[1])
    values = {labels[i]: array(x[rows.to(x.device), :, i]) for i in shown}
    for name, value in values.items():
        if wrong := int((~np.isfinite(value)).sum()):
            raise InvalidArgument("draws", f"{name} with {wrong} that are not finite", "numbers")
    stat = None if diverging is None else array(diverging[rows.to(diverging.device)]) > 0
    left_out = {"failed chains": len(ok) - len(well)}
    notes = [f"{len(shown)} of {len(named)} entries"] if len(shown) < len(named) else []
    notes += [f"{len(rows)} of {len(well)} chains"] if len(rows) < len(well) else []
    notes += [f"without {n} {what}" for what, n in left_out.items() if n]
    made = _thinned(kind, values), None if stat is None else _thinned(kind, {"": stat})[""]
    canvas((1, 1))  # says what to install, before ArviZ is asked
    figure = chain_figure(kind, *made) if find_spec("arviz") else KINDS[kind](*made)
    if notes:
        figure.suptitle(", ".join(notes), fontsize=10)
    return figure


def _chosen(labels: Sequence[str], names: Sequence[str] | str | None) -> list[int]:
    """The numbers of the entries that are asked for: "theta" means all of theta[...]."""
    if names is None:
        return list(range(len(labels)))
    if not isinstance(names, Sequence):
        raise InvalidArgument("names", names, "names of variables or entries")
    variable = [label.partition("[")[0] for label in labels]
    found: list[int] = []
    for name in [names] if isinstance(names, str) else names:
        option("names", name, dict.fromkeys([*labels, *variable]))
        found += [i for i, label in enumerate(labels) if name in (label, variable[i])]
    if not found:
        raise InvalidArgument("names", names, "names of variables or entries")
    return list(dict.fromkeys(found))


def _told_apart(kind: str, well: Tensor, kept: int) -> Tensor:
    """The chains that are shown: evenly spaced ones where all would be too many."""
    most = max(MOST_POINTS // kept, 1) if kind == "pairs" else MOST_CHAINS
    if len(well) <= most:
        return well
    return well[torch.linspace(0, len(well) - 1, most).round().long()]


def _thinned(kind: str, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every k-th draw, where a panel of pairs would have more points than can be seen."""
    step = 1
    if kind == "pairs":
        chains, kept = next(iter(values.values())).shape
        step = max(-(-chains * kept // MOST_POINTS), 1)
    return {name: value[:, ::step] for name, value in values.items()}


def _trace(values: Mapping[str, np.ndarray], diverging: np.ndarray | None) -> Figure:
    """Histograms of each chain on the left, the chains over their draws on the right."""
    figure = canvas((9.0, 1.8 * len(values)))
    for row, (name, value) in zip(
        figure.subplots(len(values), 2, squeeze=False), values.items(), strict=True
    ):
        edges = np.histogram_bin_edges(value, BINS)
        for chain in value:
            row[0].hist(chain, edges, histtype="step", density=True)
            row[1].plot(chain, linewidth=0.6)
        row[0].set(title=name, yticks=[])
        row[1].set(title=name, xlabel="draw", xlim=(0, max(value.shape[1] - 1, 1)))
        ends = np.flatnonzero(diverging.any(0)) if diverging is not None else np.empty(0)
        if len(ends):
            row[1].plot(ends, np.full(len(ends), value.min()), "|", color="black")
    return figure


def _rank(values: Mapping[str, np.ndarray], diverging: np.ndarray | None) -> Figure:
    """Histograms of each chain's ranks among all draws, one above the other."""
    across = min(len(values), 3)
    down = -(-len(values) // across)
    figure = canvas((3.2 * across, 2.4 * down))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for spare in axes[len(values) :]:
        spare.remove()
    for panel, (name, value) in zip(axes, values.items(), strict=False):
        # Ties are broken by the order of a permutation that is the same at each call.
        mixed = np.random.default_rng(0).permutation(value.size)
        ranks = np.empty(value.size)
        ranks[mixed[np.argsort(value.ravel()[mixed], kind="stable")]] = np.arange(value.size)
        even = value.shape[1] / BINS
        for i, of_chain in enumerate(ranks.reshape(value.shape)):
            heights, edges = np.histogram(of_chain, BINS, (0, value.size))
            panel.bar(edges[:-1], heights / (2.2 * even), np.diff(edges), i, align="edge")
            panel.axhline(i + 1 / 2.2, color="black", linewidth=0.5, linestyle="--")
        panel.set(title=name, xlabel="rank among all", ylabel="chain", yticks=range(len(value)))
    return figure


def _pairs(values: Mapping[str, np.ndarray], diverging: np.ndarray | None) -> Figure:
    """Scatter plots of each entry over each before it, and the histogram of each."""
    k, names = len(values), list(values)
    flat = [value.ravel() for value in values.values()]
    figure = canvas((1.9 * k, 1.9 * k))
    axes = figure.subplots(k, k, squeeze=False, sharex="col")
    marked = None if diverging is None else diverging.ravel()
    for i, j in np.ndindex(k, k):
        panel: Any = axes[i, j]
        if j > i:
            panel.remove()
        elif i == j:
            panel.hist(flat[i], 30, color=COLORS["way"])
            panel.set(yticks=[])
        else:
            panel.scatter(flat[j], flat[i], s=3, linewidths=0, alpha=0.5, color=COLORS["way"])
            if marked is not None and marked.any():
                panel.scatter(flat[j][marked], flat[i][marked], s=6, color=COLORS["draws"])
        if i == k - 1:
            panel.set_xlabel(names[j])
        if j == 0:
            panel.set_ylabel(names[i])
    return figure


KINDS: Mapping[str, Callable[..., Figure]] = {"trace": _trace, "rank": _rank, "pairs": _pairs}
"""The pictures that there are, as they are drawn without ArviZ."""
