"""Whether an energy grows outwards, found out at the start of a run.

A density that can be normalised falls along a ray, and its energy `-log p` rises in the end. One
with the wrong sign, the log density itself, falls without bound: every chain of any kernel runs away
along it, and what a run says of that, diverging trajectories, misleads. So a few rows are taken far
out along their rays. Energies that fall along all of them, faster than in proportion to the
distance, are refused; what falls more slowly, as networks without a confinement do in places, or
along some rays only, is left to the run.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scoretk.core.rows import across, row_dot
from scoretk.errors import InvalidArgument
from scoretk.fields.derivatives import probes
from scoretk.fields.protocols import offers
from scoretk.fields.resolve import Bound, StaticField, of_rows
from scoretk.run.asking import affordable

__all__ = ["check_grows"]

ROWS = 4
FAR = (1e4, 1e5, 1e6)
"""How far out, in units of the chains' own size or of 1; float32 holds the squares."""
FASTER = 30.0
"""How much more an energy falls to be refused where it is ten times as far out: ten for one that
falls in proportion to the distance, a hundred for a parabola.
"""


def check_grows(bound: Bound, x: Tensor, steps: int) -> None:
    """Refuse a static field whose energy falls without bound in all directions.

    Args:
        bound: The field as a solver receives it, with condition rows for the rows of x.
        x: `(chains, *event_shape)`, where the chains are.
        steps: How many steps the run makes; as in `affordable`.

    Raises:
        InvalidArgument: Along the rays through a few points the energy falls faster than in
            proportion to the distance; of a field without an energy, its score says so.
    """
    asked = ROWS * len(FAR)
    if not isinstance(bound, StaticField) or "states" in offers(bound.native) or not x.numel():
        return
    if not affordable(asked, x, steps):
        return
    size = x.detach().abs().amax().nan_to_num(1.0, 1.0, 1.0).clamp(min=1.0)
    far = torch.tensor(FAR, dtype=x.dtype, device=x.device).repeat_interleave(ROWS)
    points = probes(x[:1], ROWS, 5).repeat(len(FAR), *(1 for _ in x.shape[1:]))
    places = torch.arange(asked, device=x.device) % min(ROWS, len(x))
    try:
        with torch.no_grad():
            fallen = _fallen(bound, across(size * far, points) * points, places)
    except Exception:  # noqa: BLE001 (what it raises that far out says nothing of where chains go)
        return
    near, farther, farthest = fallen.reshape(len(FAR), ROWS)
    falls = (near > 0) & _faster(farther, near) & _faster(farthest, farther)
    if bool(falls.all()):
        raise InvalidArgument(
            "energy",
            f"one that falls without bound, to {-float(farthest[0]):.3g} far out",
            "minus a log density, which grows outwards in the end",
            "Is its sign right? Energy(lambda x: -log_density(x), event_shape); and a score points "
            "to where the density is larger",
        )


def _faster(farther: Tensor, near: Tensor) -> Tensor:
    """Whether what has fallen has more than its share of the distance, or all that numbers hold."""
    return (farther > FASTER * near) | (farther == torch.inf)


def _fallen(bound: StaticField, x: Tensor, rows: Tensor) -> Tensor:
    """Minus the energy, `(rows,)`; of a field that has none, how fast it falls along x times |x|."""
    here = replace(of_rows(bound, rows), asked=set())
    return -here.energy(x) if "energy" in offers(bound.native) else row_dot(here.score(x), x)
