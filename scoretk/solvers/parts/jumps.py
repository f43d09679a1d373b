"""Jumps of some coordinates to where a pilot's chains were, in one Metropolis step.

A kernel that moves little by little does not cross between regions; what chains of a pilot know of
each coordinate by itself is enough to propose it anew at once. Proposed are a few coordinates or
many: each with a chance r of its own chain, whose logarithm is uniform between those of 1 / d and 1.
Their new values have the law of the pilot's, coordinate by coordinate: equally likely intervals
between its quantiles, evenly filled. The law that is asked for stays as it is, whatever the pilot
found; what it has found decides how often a jump is accepted.

References:
    Gasemyr, "On an adaptive version of the Metropolis-Hastings algorithm with independent proposal
    distribution" (2003).
    South, Pettitt, Drovandi, "Sequential Monte Carlo samplers with independent Markov chain Monte
    Carlo proposals" (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoretk.core.arguments import tensor_like
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField

__all__ = ["check_quantiles", "energies_of_jumps", "jump", "quantiles_of"]

INTERVALS = 32
"""The most intervals between a coordinate's quantiles."""
OF_EACH = 8
"""How many chains an interval is to hold, of few chains."""
THINNEST, NOTHING = 1e-4, 1e-30
"""The least width of an interval, of all of them together; what is 0 counts as this. Chains that are
copies of each other have none between them.
"""


def quantiles_of(x: Tensor) -> Tensor:
    """The ends of intervals that are about equally likely, for each coordinate of some chains.

    Beyond the least and the greatest value there is one interval more, as wide as the mean one.

    Args:
        x: Position, `(chains, *event_shape)`.

    Returns:
        `(intervals + 1, *event_shape)`, rising.
    """
    inner = max(1, min(INTERVALS - 2, len(x) // OF_EACH))
    place = torch.linspace(0, len(x) - 1, inner + 1, dtype=x.dtype, device=x.device)
    below, rows = place.long(), x.reshape(len(x), -1).sort(0).values
    above = (below + 1).clamp(max=len(x) - 1)
    ends = torch.lerp(rows[below], rows[above], (place - below)[:, None])
    extent = ends[-1:] - ends[:1]
    mean = extent / inner
    least = 8 * torch.finfo(x.dtype).eps * ends.abs().amax(0).clamp(min=NOTHING)
    widths = torch.cat([mean, ends.diff(dim=0), mean]).clamp(min=(THINNEST * extent).maximum(least))
    first = ends[:1] - widths[:1]
    return torch.cat([first, first + widths.cumsum(0)]).reshape(-1, *x.shape[1:])


def check_quantiles(name: str, quantiles: Tensor, levels: int) -> None:
    """Refuse what are no ends of intervals, `(levels, intervals + 1, *event_shape)`, rising.

    Raises:
        InvalidArgument: In that case.
    """
    shape = tuple(quantiles.shape) if isinstance(quantiles, Tensor) else ()
    fits = len(shape) > 1 and shape[0] == levels and shape[1] > 1
    if not fits or not bool((tensor_like(name, quantiles, shape).diff(dim=1) > 0).all()):
        raise InvalidArgument(
            name, quantiles, f"None or rising numbers ({levels}, intervals + 1, *event_shape)"
        )


def energies_of_jumps(times: int) -> int:
    """How many energies so many jumps take: that of where they begin, and one each."""
    return times + 1 if times else 0


def jump(
    field: StaticField, x: Tensor, quantiles: Tensor, noise: NoiseSource, start: int, times: int
) -> Tensor:
    """Some jumps of all chains, each of which leaves the law of the field as it is.

    Args:
        field: The law, with an energy.
        x: Position, `(chains, *event_shape)`.
        quantiles: As `quantiles_of` makes them, on the device and in the dtype of x.
        noise: The noise of the chains.
        start: The index of the first jump's noise; each jump has one.
        times: How many jumps.

    Returns:
        The new x.
    """
    shape, d = x.shape, x[0].numel()
    ends = quantiles.reshape(len(quantiles), d)
    edges, widths = ends.T.contiguous(), ends.diff(dim=0)
    intervals = len(widths)

    def log_density(rows: Tensor) -> Tensor:
        """Of each coordinate by itself, but for a constant; -inf beyond all intervals."""
        place = torch.searchsorted(edges, rows.T.contiguous()).T - 1
        place = torch.where(rows == ends[:1], 0, place)  # to which a proposal may be rounded
        inside = (place >= 0) & (place < intervals)
        return torch.where(
            inside, -widths.log().gather(0, place.clamp(0, intervals - 1)), -torch.inf
        )

    rows, energy = x.reshape(len(x), d), field.energy(x)
    before = log_density(rows)
    for k in range(start, start + times):
        u = noise.uniform(k, Stream.JUMP, (2 * d + 2,), x.dtype)
        chosen = u[:, :d] < d ** -u[:, -2:-1]
        at = u[:, d : 2 * d] * intervals
        place = at.long().clamp(max=intervals - 1)
        drawn = ends[:-1].gather(0, place) + (at - place) * widths.gather(0, place)
        new = torch.where(chosen, drawn, rows)
        after = log_density(new)
        energy_new = field.energy(new.reshape(shape))
        ratio = energy - energy_new + torch.where(chosen, before - after, 0.0).sum(1)
        nowhere = (chosen & (after == -torch.inf)).any(1)  # rounded beyond all intervals
        accepted = (u[:, -1].log() < ratio) & ~nowhere
        rows, before = (
            torch.where(accepted[:, None], one, other)
            for one, other in ((new, rows), (after, before))
        )
        energy = torch.where(accepted, energy_new, energy)
    return rows.reshape(shape)
