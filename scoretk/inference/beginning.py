"""Where annealing begins if no base is given: about a short run, or about what a search comes to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.distributions import Independent, Normal

from scoretk.core.cost import Cost, together
from scoretk.core.devices import wide
from scoretk.core.modules import left_as_found
from scoretk.core.noise import derive
from scoretk.fields.distribution import from_distribution
from scoretk.fields.resolve import StaticField, resolve
from scoretk.inference.pilot import Found, Population
from scoretk.inference.sampling import sample
from scoretk.run.draws import Draws
from scoretk.solvers.hmc import ChEES

__all__ = [
    "JUMPS",
    "Beginning",
    "agreeing",
    "beginning",
    "covers",
    "given_base",
    "in_quartiles",
    "room_about",
    "short_run",
    "usual_jumps",
]

WIDER, FARTHER = (1.5, 2.0), (10.0, 10.0)
"""How much wider than a short run a base is, and one from which the pilot searches for regions that it has
not seen, at most; and sqrt(d) times the most of its logarithm for d coordinates: the levels on the
way back to the field's own width grow like that.
"""
BEYOND, SEARCHES = 1.5, 3
"""How many times its spread away from a base the pilot's chains count as beyond, and the most searches."""
ROOM = 0.125
"""The least share of draws where the field has density, of a base from which to search."""
LOOK_CHAINS, LOOK_STEPS, LOOK_WARMUP, LOOK_LEAPFROGS = 64, 100, 200, 32
"""The settings of the short run whose moments make the base; its trajectories are short."""
STUCK = 2.0
JUMPS = 6
"""How many jumps there are by default where chains stay in regions."""
OUTWARDS, RISE, LIGHTER = (8.0, 16.0), math.log(2) / 2, 0.05
"""Between how many times and how many times as far out as a base's draws a field is held to it, by how
much their log ratio rises where the base falls faster, and for what share of draws it may.
"""
QUARTILES = 1.349
"""The distance between a standard normal's quartiles."""


def short_run(
    field: Any,
    seed: int,
    device: torch.device | None,
    dtype: torch.dtype | None,
    start: Tensor | None = None,
) -> Draws:
    """A short tuned Hamiltonian run of the field, from some of these positions if there are any."""
    return sample(
        field,
        ChEES(most=LOOK_LEAPFROGS),
        chains=None if start is not None else LOOK_CHAINS,
        steps=LOOK_STEPS,
        warmup=LOOK_WARMUP,
        init=None if start is None else start[:LOOK_CHAINS],
        seed=derive(seed, 2),
        device=device,
        dtype=dtype,
        progress=False,
    )


def _fitted(look: Draws) -> Any:
    """The normal law about a short run; N(0, I) where that fails."""
    x = rearrange(wide(look.x[look.ok]), "chains draws ... -> (chains draws) ...")
    if len(x) >= LOOK_STEPS:
        return _about(x)
    zero = torch.zeros_like(wide(look.x[0, 0]))
    return Independent(Normal(zero, zero + 1), zero.ndim)


def _about(x: Tensor) -> Any:
    """The normal law with the means of some positions, in each coordinate somewhat wider."""
    x = wide(x)
    spread = x.std(0).clamp(min=torch.finfo(torch.float32).tiny)
    return _widened(Independent(Normal(x.mean(0), spread), x.ndim - 1), WIDER)


def _widened(law: Any, by: tuple[float, float]) -> Any:
    """A normal law with the same means, so many times as wide: see `WIDER`."""
    most, of_root = by
    wider = min(most, math.exp(of_root / math.sqrt(law.mean.numel())))
    return Independent(Normal(law.mean, wider * law.stddev), law.mean.ndim)


ShareWithDensity = Callable[[Any], tuple[float, Cost]]


class Beginning(NamedTuple):
    """Where the annealing begins, and what was spent to find it.

    Args:
        base: A field to draw from.
        jumps: How many jumps there are at each level by default.
        look: The short run that the weighted draws are held to, if there is one.
        costs: Those of short runs and of searches.
        slow: Whether the energy of that run explores slowly, so that it has not seen all of the field.
        covers: Whether the base does all the same: one that is given, and far out no lighter than
            the field.
    """

    base: Any
    jumps: int
    look: Draws | None
    costs: list[Cost]
    slow: bool = False
    covers: bool = False


def beginning(
    look: Callable[..., Draws], find: Callable[[Any, int], Found], room: ShareWithDensity
) -> Beginning:
    """A base about a short run, or about regions beyond it where a search comes to any.

    Args:
        look: Makes a short run, from some positions where they are given.
        find: Makes a pilot from a base, with so many jumps by default.
        room: The share of a law's draws where the field has density, and what it cost.
    """
    seen = look()
    law, jumps, costs = _fitted(seen), usual_jumps(seen), [seen.cost]
    if _explores_slowly(seen):
        return Beginning(from_distribution(law), jumps, seen, costs, slow=True)
    reached = None
    for _ in range(SEARCHES):
        far, spent = _far(law, room)
        costs.append(spent)
        if far is None:
            break
        found = find(from_distribution(far), jumps)
        costs.append(found.cost)
        about = _about(found.x)
        if not _beyond(about, law):
            break
        law, reached = about, found.x
    if reached is None:
        return Beginning(from_distribution(law), jumps, seen, costs)
    seen = look(reached)
    slow = _explores_slowly(seen)
    return Beginning(from_distribution(law), JUMPS, seen, [*costs, seen.cost], slow)


def given_base(base: Any, look: Draws | None, field: Any, population: Population) -> Beginning:
    """A base that is given, and what a short run of the field shows, if there is one."""
    if look is None:
        return Beginning(base, usual_jumps(look), look, [])
    jumps, slow = usual_jumps(look), _explores_slowly(look)
    if not slow:
        return Beginning(base, jumps, look, [look.cost])
    covered, cost = covers(field, base, population)
    return Beginning(base, jumps, look, [look.cost, cost], slow, covered)


def covers(field: Any, base: Any, population: Population) -> tuple[bool, Cost]:
    """Whether a base falls no faster than the field along rays through its draws, and what it cost.

    Where it does, weights far out have no bound, and what is there is not seen by most runs: of
    heavy tails, or the mouth of a funnel, from a normal law.
    """
    noise = population.noise(field)
    with left_as_found(field), torch.no_grad():
        bound = resolve(field, {"energy"}, timed=False)
        assert isinstance(bound, StaticField)
        x = base.draw(population.chains, noise).to(noise.chains.device, noise.dtype)
        centre = x.mean(0)
        near, far = (
            wide(base.energy(there)) - wide(bound.energy(there))
            for there in (centre + times * (x - centre) for times in OUTWARDS)
        )
    lighter = float((far - near > RISE).double().mean())
    return lighter <= LIGHTER, Cost({"energy": len(OUTWARDS) * population.chains})


def _far(law: Any, room: ShareWithDensity) -> tuple[Any, Cost]:
    """A law to search from, as wide as the field has density for; None where it has none.

    Where hardly any draw of a wide law has density, as of a field on a ball, the pilot would be
    copies of few chains, which say nothing of where the field is.
    """
    spent: list[Cost] = []
    most, of_root = FARTHER
    while most > 1:
        far = _widened(law, (most, of_root))
        share, cost = room(far)
        spent.append(cost)
        if share >= ROOM:
            return far, together(spent)
        most, of_root = most / 2, of_root / 2
    return None, together(spent)


def room_about(field: Any, population: Population, law: Any) -> tuple[float, Cost]:
    """The share of a law's draws where the field has density, and what it cost."""
    noise = population.noise(field)
    with left_as_found(field), torch.no_grad():
        bound = resolve(field, {"energy"}, timed=False)
        assert isinstance(bound, StaticField)
        x = from_distribution(law).draw(population.chains, noise)
        energy = bound.energy(x.to(noise.chains.device, noise.dtype))
    share = int((energy < torch.inf).sum()) / population.chains
    return share, Cost({"energy": population.chains})


def _beyond(found: Any, law: Any) -> bool:
    """Whether one normal law reaches beyond another in some coordinate."""
    reach = (found.mean - law.mean).abs() + found.stddev
    return bool((reach > BEYOND * law.stddev).any())


def in_quartiles(x: Tensor, known: Tensor) -> Tensor:
    """Each coordinate u in units of the quartiles of known draws, clamped at 3, then all u^2.

    `(chains, draws, *event_shape) -> (chains, draws, 2 d)`.
    """
    x, known = (
        rearrange(wide(part), "chains draws ... -> chains draws (...)") for part in (x, known)
    )
    low, centre, high = torch.quantile(
        rearrange(known, "chains draws d -> (chains draws) d"),
        known.new_tensor([0.25, 0.5, 0.75]),
        0,
    )
    unit = ((high - low) / QUARTILES).clamp(min=torch.finfo(known.dtype).tiny)
    u = ((x - centre) / unit).clamp(-3, 3)
    return torch.cat([u, u.square()], -1)


def agreeing(values: Tensor) -> Tensor:
    """Of which coordinates chains agree in both u and u^2 (R-hat below 2), `(2 d,)` of bool."""
    between, within = values.mean(1).var(0), values.var(1).mean(0)
    agree: Tensor = (between < within * (STUCK**2 - 1)).unflatten(0, (2, -1)).all(0)
    return agree.repeat(2)


def usual_jumps(look: Draws | None) -> int:
    """`JUMPS` where the chains of a short run stay in regions that they began in, else none."""
    known = None if look is None else look.x[look.ok]
    if known is None or len(known) < 2:
        return 0
    return 0 if bool(agreeing(in_quartiles(known, known)).all()) else JUMPS


def _explores_slowly(look: Draws) -> bool:
    """Whether the energy of the short run explores slowly, as it does where tails are heavy.

    Then the run has not seen all of the field: a base made of it need not cover the field, and
    draws cannot be compared with it.
    """
    x = look.x.flatten(2)[..., :1] if look.x.ndim > 2 else look.x  # all are not judged here
    one = replace(look, x=x, final=x[:, -1])
    return any(finding.kind == "energy" for finding in one.summary().findings)
