r"""What the tests of `mixing` find in draws, coordinate by coordinate.

Each coordinate is looked at in three ways:

    place    Its normal scores: where chains are.
    spread   Its folded normal scores, of |x - median|: how wide they are.
    turn     Its normal scores times (-1)^t: whether chains alternate between two classes of states.

For drift its values are a fourth: a few draws of a start far away weigh little in ranks, and much
in the mean that a user takes.

Where there are very many values a coordinate is judged by draws that are an odd number of steps
apart, which keeps period two visible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from statistics import NormalDist
from typing import Any

import numpy as np
from einops import rearrange

from scoretk.diagnostics.mixing import (
    alternation,
    between,
    drift,
    effective,
    flipped,
    fold,
    memory,
    normal_scores,
    outlying,
    r_hat,
    split,
    tail_effective,
)

__all__ = [
    "ATOM",
    "COINCIDENCE",
    "PLACE",
    "RATE",
    "SPREAD",
    "TURN",
    "VALUE",
    "Array",
    "Chains",
    "judge",
    "not_held",
]

RATE = 1e-3
SLACK = 2.0
"""The factor by which the variance of chains' means must exceed that expected from within chains."""
FEW_VALUES = 16
"""A coordinate with at most so many values, or with integers alone, is taken to be discrete."""
ATOM, ATOM_VISITS = 0.005, 5
COINCIDENCE = 5e-4
BUDGET, LEAST, CHUNK = 1 << 23, 1 << 13, 1 << 21
"""How many values are judged in all, how many of a coordinate at least, and how many at a time."""
Array = Any
PLACE, SPREAD, TURN, VALUE = "place", "spread", "turn", "value"


@dataclass(frozen=True)
class Chains:
    """The results of the tests, by coordinate `(d,)`; the dicts are by the way of looking.

    Args:
        names: The names of the coordinates.
        constant: Whether all draws of all chains have one value.
        still: Whether each chain stays at one value, and chains differ.
        broken: How many draws are not finite, or have squares that are not.
        lattice: Whether the values are discrete.
        bulk: Effective draws of normal scores.
        tail: Effective draws of the tails.
        atom: The largest share of moves that lead to one value, and that value.
        coincidence: The probability that two moves lead to one value.
        drift: z, and by how much the second half is larger.
        memory: z, and the nested R-hat.
        between: z, and R-hat.
        apart: Whether each chain stands apart from the others, `(chains,)`.
    """

    names: list[str]
    constant: Array
    still: Array
    broken: Array
    lattice: Array
    bulk: Array
    tail: Array
    atom: tuple[Array, Array]
    coincidence: Array
    drift: dict[str, tuple[Array, Array]] = dataclass_field(default_factory=dict)
    memory: dict[str, tuple[Array, Array]] = dataclass_field(default_factory=dict)
    between: dict[str, tuple[Array, Array]] = dataclass_field(default_factory=dict)
    apart: dict[str, Array] = dataclass_field(default_factory=dict)

    @property
    def judged(self) -> Array:
        """Which coordinates are judged: those that are not constant and have finite draws."""
        return ~self.constant & (self.broken == 0)


def judge(x: Array, names: list[str], discrete: bool | None, chunk: int = CHUNK) -> Chains:
    """Apply all tests to draws, a few coordinates at a time.

    Args:
        x: Draws, `(chains, n, d)`, n >= 4.
        names: The d names of the coordinates.
        discrete: Whether the states are discrete, None where only the draws can tell.
        chunk: How many values are looked at together.
    """
    chains, n, d = x.shape
    values = max(BUDGET // max(d, 1), LEAST)
    thin = max(1, math.ceil(chains * n / values))
    thin = min(thin + 1 - thin % 2, max(1, (n // 16 - 1) | 1))
    size = max(1, chunk // max(chains * n // thin, 1))
    parts = [_judge_some(x[:, :, i : i + size], thin, d, discrete) for i in range(0, d, size)]

    def joined(*path: Any) -> Array:
        found: list[Any] = parts
        for key in path:
            found = [part[key] for part in found]
        return np.concatenate(found)

    def by_way(kind: str) -> dict[str, tuple[Array, Array]]:
        return {way: (joined(kind, way, 0), joined(kind, way, 1)) for way in parts[0][kind]}

    return Chains(
        names,
        constant=joined("constant"),
        still=joined("still"),
        broken=joined("broken"),
        lattice=joined("lattice"),
        bulk=joined("bulk"),
        tail=joined("tail"),
        atom=(joined("atom", 0), joined("atom", 1)),
        coincidence=joined("coincidence"),
        drift=by_way("drift"),
        memory=by_way("memory"),
        between=by_way("between"),
        apart={way: np.any([part["apart"][way] for part in parts], 0) for way in (PLACE, SPREAD)},
    )


def _judge_some(x: Array, thin: int, d: int, discrete: bool | None) -> dict[str, Any]:
    """The findings of `Chains` for some of d coordinates, `(chains, n, some)`, each `thin` apart."""
    broken = not_held(x)
    v = np.ascontiguousarray(
        rearrange(x[:, ::thin], "chains draws d -> d chains draws"), dtype=np.float64
    )
    if broken.any():  # in a copy, as v may be the draws themselves
        v = np.where((broken > 0)[:, None, None], 0.0, v)
    still = (v == v[:, :, :1]).all((1, 2))
    for i in np.flatnonzero(still & (thin > 1)):
        still[i] = bool((x[:, :, i] == x[:, :1, i]).all())
    constant = still & (v[:, :, 0] == v[:, :1, 0]).all(1)
    still &= ~constant
    lattice, atom, coincidence = _ties(v, discrete)
    scores, folded = normal_scores(v), normal_scores(fold(v))
    ways = {PLACE: scores, SPREAD: folded, TURN: flipped(scores)}
    centres = {PLACE: None, SPREAD: None, TURN: 0.0}
    outer = -NormalDist().inv_cdf(math.sqrt(RATE / (4 * d * len(x))))
    halves = {way: split(value) for way, value in ways.items()}
    ranked = split(v)
    return {
        "constant": constant,
        "still": still,
        "broken": broken,
        "lattice": lattice,
        "atom": atom,
        "coincidence": coincidence,
        "bulk": effective(normal_scores(ranked)),
        "tail": tail_effective(v),
        "drift": {
            PLACE: drift(scores, lattice),
            SPREAD: drift(folded, lattice),
            TURN: alternation(scores, lattice),
            VALUE: drift(v, lattice),
        },
        "memory": {way: memory(value) for way, value in ways.items()},
        "between": {
            way: (between(value, SLACK, centres[way]), r_hat(value))
            for way, value in halves.items()
        },
        "apart": {
            way: (outlying(ways[way], outer) & ~lattice[:, None] & ~constant[:, None]).any(0)
            for way in (PLACE, SPREAD)
        },
    }


def not_held(x: Array) -> Array:
    """How many of each coordinate's draws are not finite, or have squares beyond the dtype, `(d,)`.

    Draws are `(chains, n, d)`.
    """
    most = float(np.finfo(np.promote_types(x.dtype, np.float32)).max) ** 0.5
    counts = (~(np.maximum(x.max((0, 1)), -x.min((0, 1))) <= most)).astype(int)
    for i in np.flatnonzero(counts):
        counts[i] = np.count_nonzero(~(np.abs(x[:, :, i]) <= most))
    return counts


def _ties(v: Array, discrete: bool | None) -> tuple[Array, tuple[Array, Array], Array]:
    """Look for equal values in draws `(d, chains, n)`.

    A continuous law has no moves to a value that was there before. A chain that stays where it is
    makes no move.

    Returns:
        Which coordinates are discrete; the largest share of moves that lead to one value, and that
        value; and the probability that two moves lead to one value.
    """
    d, chains, _ = v.shape
    lattice, share, value, coincidence = np.zeros(d, bool), np.zeros(d), np.zeros(d), np.zeros(d)
    ordered = np.sort(v.reshape(d, -1), 1)
    total = ordered.shape[1]
    for i, row in enumerate(ordered):
        edges = np.flatnonzero(np.concatenate([[True], row[1:] != row[:-1], [True]]))
        if len(edges) > total:  # no two equal
            continue
        runs = np.diff(edges)
        lattice[i] = (
            len(runs) <= FEW_VALUES or bool((row == np.round(row)).all())
            if discrete is None
            else discrete
        )
        often = runs.max() >= ATOM * total / 2
        if (
            lattice[i]
            or len(runs) == 1
            or not (often or np.square(runs.astype(float)).sum() > COINCIDENCE * total**2)
        ):
            continue
        moved = v[i, :, 1:] != v[i, :, :-1]
        to = v[i, :, 1:][moved]
        if to.size < 2:
            continue
        found, counts = np.unique(to, return_counts=True)
        coincidence[i] = float((counts * (counts - 1.0)).sum() / (to.size * (to.size - 1.0)))
        most = int(counts.argmax())
        kept = found[most], int(counts[most])
        ends = int(((v[i] == row[edges[runs.argmax()]]).all(1)).sum())  # chains that never leave it
        if ends > 1:
            kept = row[edges[runs.argmax()]], ends + int((to == row[edges[runs.argmax()]]).sum())
        if kept[1] >= ATOM_VISITS:
            share[i], value[i] = max(kept[1] / to.size, ends / chains), kept[0]
    return lattice, (share, value), coincidence
