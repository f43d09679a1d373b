"""Pictures of chains by whichever ArviZ is installed show the draws; see `test_inferencedata` for how this runs without torch."""

import numpy as np
import pytest

pytest.importorskip("arviz")
pytest.importorskip("matplotlib").use("Agg")
from matplotlib import pyplot  # noqa: E402

from scoretk.core.arvizplots import chain_figure  # noqa: E402

RNG = np.random.default_rng(2)
VALUES = {
    "mu": RNG.normal(size=(4, 25)),
    "theta[1]": RNG.normal(size=(4, 25)),
    "one": np.ones((4, 25)),
}


def told(figure):
    return " ".join(t for a in figure.axes for t in (a.get_title(), a.get_xlabel(), a.get_ylabel()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trace", "rank", "pairs"])
def test_a_picture_shows_each_entry_by_its_name(kind):
    figure = chain_figure(kind, VALUES, VALUES["mu"] > 2)
    assert all(name in told(figure) for name in VALUES)
    assert len(figure.axes) >= {"trace": 6, "rank": 3, "pairs": 5}[kind]
    assert pyplot.get_fignums() == []


@pytest.mark.slow
def test_traces_are_the_draws():
    figure = chain_figure("trace", VALUES)
    for panel, value in zip(figure.axes[1::2], VALUES.values(), strict=True):
        shown = [np.asarray(line.get_ydata()) for line in panel.lines]
        assert all(any(np.array_equal(line, chain) for line in shown) for chain in value)
