"""Pictures: sheets of samples, fields in the plane, paths; those of chains are `draws.plot()`.

Each function returns a matplotlib figure: nothing is shown and no file is written. A notebook shows
what a cell returns; `figure.savefig("picture.png")` writes it; `axes=` draws into axes of one's own.
"""

from scoretk.diagnostics.plot.marginals import path
from scoretk.diagnostics.plot.plane import field
from scoretk.diagnostics.plot.sheet import samples

__all__ = ["field", "path", "samples"]


def __dir__() -> list[str]:
    """The public names alone: the modules beside them have nothing to call."""
    return sorted(__all__)
