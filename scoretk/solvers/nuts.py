r"""The No-U-Turn sampler: Hamiltonian Monte Carlo whose trajectories end before they turn back.

With momentum p ~ N(0, I), scales S and leapfrog steps as in `hmc`, a trajectory is doubled again
and again: for d = 0, 1, ... a random sign says at which end a subtree of 2^d steps is added. The
trajectory ends when a part of it turns back. A part whose first and last points have momenta p and
p', and whose momenta have the sum rho over all its points, turns back where

    <p, rho> <= 0    or    <p', rho> <= 0,

and a part made of halves a and b also where a with the first point of b does, or the last point of
a with b. This is tested in all parts that repeated halving makes, so that every point of a
trajectory would have made the same trajectory with the same probability. A subtree that turns back
in itself, or meets an error H - H_0 of the total energy above 1000 or a value that is not finite,
is dropped whole and ends the trajectory. A trajectory that turns back as a whole is kept and grows
no further.

With weights w = exp(H_0 - H), each point of a subtree is chosen with probability w / sum w. The
chosen point replaces that of the trajectory so far with probability min(1, W_subtree / W_before), W
being the sums of the weights (biased progressive sampling).

The chains take their leapfrog steps together. The recursion of the papers becomes a stack of parts
that all chains share: as in a binary counter, step n (from 1) of a subtree pushes a part of one
point, and joins the two parts on top as often as 2 divides n. When many chains have ended they are
taken out of the batch, so that few gradients are evaluated in vain. The host looks for them after
each leapfrog step; on a device, which waits for it, after each doubling.

References:
    Hoffman, Gelman, "The No-U-Turn sampler" (2014).
    Betancourt, "A conceptual introduction to Hamiltonian Monte Carlo" (2017), for the weights and
    the criterion.
    Stan development team, "Stan reference manual", for the tests across two halves.
    Phan, Pradhan, Jankowiak, "Composable effects for flexible and accelerated probabilistic
    programming in NumPyro" (2019), and Lao, Dillon, "Unrolled implementation of No-U-Turn sampler"
    (2019), for doing without recursion.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import counts
from scoretk.core.rows import across, finite_rows, log_add_exp, row_dot, select_rows
from scoretk.core.streams import Stream
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField, of_rows
from scoretk.solvers.base import Info
from scoretk.solvers.hmc import HMCState, Stepping
from scoretk.solvers.parts.leapfrog import DIVERGENCE, Point, one_step, paces
from scoretk.solvers.parts.nested import NestedNoise
from scoretk.solvers.warmup.plan import takes_pilot

__all__ = ["NUTS"]

CROWD = 0.75
"""Chains that have ended are taken out of the batch where less than this share of it goes on."""


class End(NamedTuple):
    """An end of a trajectory: the point and its momentum."""

    point: Point
    momentum: Tensor


class Span(NamedTuple):
    """A part of a trajectory: the momenta at its first and last point, and the sum of all.

    Each is like x.
    """

    first: Tensor
    last: Tensor
    total: Tensor


class Found(NamedTuple):
    """The outcome of trajectories: the point chosen from each, and what happened.

    `chain` is the row in the batch, `accept` the sum of min(1, exp(H_0 - H)) over its `leapfrogs`,
    `depth` the number of subtrees kept, `diverging` whether an error of the total energy ended it,
    `evaluations` the number of gradients, those in vain included. All but the point `(rows,)`.
    """

    point: Point
    chain: Tensor
    accept: Tensor
    leapfrogs: Tensor
    depth: Tensor
    diverging: Tensor
    evaluations: Tensor


class Tree(NamedTuple):
    """Trajectories, one a row.

    What they have found, whether they go on (`growing`), their ends backward and forward in time
    (`left`, `right`), the sum of their momenta (`total`), H_0 (`start`), and the log of the sum of
    their weights.
    """

    found: Found
    growing: Tensor
    left: End
    right: End
    total: Tensor
    start: Tensor
    log_weight: Tensor


class Subtree(NamedTuple):
    """The subtrees being added: last point, chosen point, log of the sum of weights, and parts.

    `eps` `(rows,)` is the step size, negative backward in time; `log_u` `(rows, 2^d)` are the logs
    of the uniforms that choose among the points.
    """

    eps: Tensor
    end: End
    point: Point
    log_weight: Tensor
    log_u: Tensor
    parts: tuple[Span, ...]


def select(chosen: Tensor, new: Any, old: Any) -> Any:
    """Row by row `new` where chosen, else `old`, for all tensors in nested tuples."""
    if isinstance(new, Tensor):
        return select_rows(chosen, new, old)
    return type(new)(*(select(chosen, *pair) for pair in zip(new, old, strict=True)))


def rows_of(nest: Any, rows: Tensor) -> Any:
    """These rows of all tensors in nested tuples."""
    if isinstance(nest, Tensor):
        return nest[rows]
    kept = (rows_of(value, rows) for value in nest)
    return type(nest)(*kept) if hasattr(nest, "_fields") else tuple(kept)


def turns(part: Span) -> Tensor:
    """Which rows of a part turn back, `(rows,)` of bool."""
    return (row_dot(part.first, part.total) <= 0) | (row_dot(part.last, part.total) <= 0)


def join(a: Span, b: Span, size: int) -> tuple[Span, Tensor]:
    """Two neighbouring parts of `size` points each as one, and which rows of it turn back."""
    whole = Span(a.first, b.last, a.total + b.total)
    turned = turns(whole)
    if size > 1:  # else the other two are the whole
        turned = turned | turns(Span(a.first, b.first, a.total + b.first))
        turned = turned | turns(Span(a.last, b.last, a.last + b.total))
    return whole, turned


def single_point(start: Point, momentum: Tensor) -> Tree:
    """Trajectories of one point."""
    zero = torch.zeros_like(start.energy)
    none, here = torch.zeros_like(zero, dtype=torch.int64), End(start, momentum)
    chain = torch.arange(len(zero), device=zero.device)
    found = Found(start, chain, zero, none, none, none.bool(), none)
    return Tree(
        found,
        ~none.bool(),
        here,
        here,
        momentum,
        start.energy + row_dot(momentum, momentum) / 2,
        zero,
    )


def empty_subtree(tree: Tree, eps: Tensor, log_u: Tensor) -> Subtree:
    """A subtree without points."""
    end = select(eps > 0, tree.right, tree.left)
    return Subtree(eps, end, end.point, torch.full_like(tree.log_weight, -math.inf), log_u, ())


def extend(tree: Tree, subtree: Subtree, end: End, n: int) -> tuple[Tree, Subtree]:
    """Trees and subtrees with one point more, `end`, the n-th of the subtree from 1."""
    point, momentum = end
    error = point.energy + row_dot(momentum, momentum) / 2 - tree.start
    sound = finite_rows(point.x) & error.isfinite() & (error < DIVERGENCE)
    log_w = torch.where(sound, -error, -math.inf)
    log_weight = log_add_exp(subtree.log_weight, log_w)
    chosen = select(subtree.log_u[:, n - 1] < log_w - log_weight, point, subtree.point)
    *parts, last = (*subtree.parts, Span(momentum, momentum, momentum))
    growing, size = tree.growing & sound, 1
    while n % (2 * size) == 0:
        last, turned = join(parts.pop(), last, size)
        growing, size = growing & ~turned, 2 * size
    found = tree.found._replace(
        accept=tree.found.accept + torch.where(tree.growing, log_w.clamp(max=0).exp(), 0.0),
        leapfrogs=tree.found.leapfrogs + tree.growing,
        diverging=tree.found.diverging | (tree.growing & ~sound),
        evaluations=tree.found.evaluations + 1,
    )
    subtree = subtree._replace(end=end, point=chosen, log_weight=log_weight, parts=(*parts, last))
    return tree._replace(found=found, growing=growing), subtree


def merge(tree: Tree, subtree: Subtree, log_u: Tensor, size: int) -> Tree:
    """The trajectories with their finished subtrees of `size` points, where these are sound.

    `log_u` `(rows,)` are the logs of the uniforms that decide which point is kept.
    """
    forward, (part,) = subtree.eps > 0, subtree.parts
    left, right = tree.left.momentum, tree.right.momentum
    before = Span(select_rows(forward, left, right), select_rows(forward, right, left), tree.total)
    whole, turned = join(before, part, size)
    chosen = tree.growing & (log_u < subtree.log_weight - tree.log_weight)
    found = tree.found._replace(
        point=select(chosen, subtree.point, tree.found.point), depth=tree.found.depth + tree.growing
    )
    return tree._replace(
        found=found,
        growing=tree.growing & ~turned,
        left=select(forward, tree.left, subtree.end),
        right=select(forward, subtree.end, tree.right),
        total=whole.total,
        log_weight=log_add_exp(tree.log_weight, subtree.log_weight),
    )


def in_order(pieces: list[Found]) -> Found:
    """The rows of all pieces, by chain."""
    if len(pieces) == 1:
        return pieces[0]
    order = torch.cat([piece.chain for piece in pieces]).argsort()
    columns = zip(*((*piece.point, *piece[1:]) for piece in pieces), strict=True)
    x, energy, grad, *rest = (torch.cat(values)[order] for values in columns)
    return Found(Point(x, energy, grad), *rest)


@takes_pilot
@dataclass(frozen=True)
class NUTS(Stepping):
    """The No-U-Turn sampler with multinomial weights.

    Each chain's trajectory is as long as the target asks where it is.

    Reports "accept" (the mean over a trajectory's points of min(1, exp(H_0 - H))), "energy",
    "hamiltonian" (at the start), "diverging" (the trajectory was ended by an error of the total
    energy above 1000, or by a value that is not finite), "leapfrogs" and "depth" (the doublings
    kept).

    Args:
        step_size: eps > 0 of the leapfrog steps, in scaled space; None to tune it in warmup.
        metric: "auto", "diagonal", "fisher", "dense" or "none": the scales learned in warmup
            (`warmup.scales`); "auto" is dense where coordinates are strongly correlated, and else
            diagonal.
        accept: The mean of "accept", in (0, 1), that warmup tunes the step size to.
        max_depth: The largest number of doublings of a trajectory.
    """

    step_size: float | None = None
    metric: str = "auto"
    accept: float = 0.8
    _: KW_ONLY
    max_depth: int = 10

    reports: ClassVar[tuple[str, ...]] = (
        "accept",
        "energy",
        "hamiltonian",
        "diverging",
        "leapfrogs",
        "depth",
    )
    capturable: ClassVar[bool] = False
    step_cost: ClassVar[dict[str, int]] = {}
    varying: ClassVar[tuple[str, ...]] = ("energy", "score")

    def __post_init__(self) -> None:
        self._check()
        counts(self, max_depth=1)

    def _stepped(
        self, field: StaticField, state: HMCState, noise: NoiseSource, eps: Tensor
    ) -> tuple[HMCState, Info]:
        """A step with leapfrog step size eps, `()` or `(chains,)`."""
        momentum = noise.normal(
            state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype
        )
        tree = single_point(Point(state.x, state.energy, state.grad), momentum)
        found = self._grown(field, tree, state, noise, eps)
        info = {
            "accept": found.accept / found.leapfrogs,
            "energy": found.point.energy,
            "hamiltonian": tree.start,
            "diverging": found.diverging,
            "leapfrogs": found.leapfrogs.to(state.x.dtype),
            "depth": found.depth.to(state.x.dtype),
            "evaluations": found.evaluations,
        }
        return HMCState(
            *found.point, state.step + 1, state.step_size, state.scale, state.length
        ), info

    def _grown(
        self, field: StaticField, tree: Tree, state: HMCState, noise: NoiseSource, eps: Tensor
    ) -> Found:
        """The outcome of all trajectories, in the order of the chains."""
        dtype, bound = state.x.dtype, field
        # inside another solver the field may hold values by row, and must be given all rows
        nested = isinstance(noise, NestedNoise)
        waits = state.x.device.type != "cpu"
        done: list[Found] = []
        signs = noise.rademacher(state.step, Stream.LENGTH, (self.max_depth,), dtype)
        signed = signs * (across(eps, signs) if eps.ndim else eps)
        log_u = noise.uniform(state.step, Stream.ACCEPT, (self.max_depth,), dtype).log()
        for depth, n in ((d, n) for d in range(self.max_depth) for n in range(1, 2**d + 1)):
            chain = tree.found.chain
            if n == 1:  # element 2^d + n - 1 of the uniforms belongs to point n of subtree d
                within = noise.uniform(state.step, Stream.PROPOSAL, (2 << depth,), dtype)[
                    chain, 1 << depth :
                ]
                subtree = empty_subtree(tree, signed[chain, depth], within.log())
            along = paces(across(subtree.eps, state.x), state.scale, subtree.end.point.x)
            end = one_step(bound, *subtree.end, along, scale=state.scale)
            tree, subtree = extend(tree, subtree, End(*end), n)
            if n == 2**depth:
                tree = merge(tree, subtree, log_u[chain, depth], n)
            if waits and n < 2**depth:
                continue
            going = int(tree.growing.sum())
            if not going:
                break
            if going < CROWD * len(chain) and not nested:
                # as nonzero would say, which asks the device once more how many they are
                order = tree.growing.to(torch.int8).argsort(descending=True, stable=True)
                growing, ended = order[:going], order[going:]
                done.append(rows_of(tree.found, ended))
                tree, subtree = rows_of((tree, subtree), growing)
                bound = of_rows(field, tree.found.chain)
        done.append(tree.found)
        return in_order(done)
