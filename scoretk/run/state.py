"""A solver's state as tensors by name, and row by row.

Leaves have the chains on axis 0, except those without an axis and those that the state names in
`shared` (see `scoretk.solvers.base`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from scoretk.core.rows import finite_rows, select_rows
from scoretk.errors import InvalidArgument

__all__ = [
    "all_finite",
    "chain_leaves",
    "checked_start",
    "checked_step",
    "finite_chains",
    "floating_leaves",
    "select_state",
    "state_leaves",
    "tuned_leaves",
    "with_leaves",
]


def checked_start(state: Any, x: Tensor) -> Any:
    """What a solver's `init` returned at x, where it is a state that can be run.

    Raises:
        InvalidArgument: It is no NamedTuple of tensors with a position like x.
    """
    named = isinstance(state, tuple) and hasattr(state, "_fields")
    if not named or not all(isinstance(leaf, Tensor) for leaf in state_leaves(state).values()):
        raise InvalidArgument("solver", state, f"a NamedTuple of tensors from its init {_BRIDGE}")
    _check_position(state, x, "init")
    return state


def checked_step(answer: Any, old: Any) -> tuple[Any, dict[str, Tensor]]:
    """What a solver's `step` returned from the state `old`, where it is `(state, info)`.

    What is asked is known without reading a tensor, so that a step on a device is not waited for.

    Raises:
        InvalidArgument: It is not that; the state is of another kind or its position of another
            shape; or something reported is not one value, or one row, a chain.
    """
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], dict):
        raise InvalidArgument("solver", answer, f"(state, info) from its step, a dict {_BRIDGE}")
    new, info = answer
    if type(new) is not type(old):
        raise InvalidArgument("solver", new, f"a {type(old).__name__} from its step, as from init")
    _check_position(new, old.x, "step")
    for name, value in info.items():
        if not isinstance(value, Tensor) or value.shape[:1] != old.x.shape[:1]:
            raise InvalidArgument(
                "solver", value, f"info[{name!r}] with a value for each of {len(old.x)} chains"
            )
    return new, info


_BRIDGE = "(scoretk.conformance.check_solver holds a solver to its protocol)"


def _check_position(state: Any, x: Tensor, call: str) -> None:
    place = getattr(state, "x", None)
    if not isinstance(place, Tensor) or place.shape != x.shape or place.dtype != x.dtype:
        raise InvalidArgument(
            "solver", place, f"a position x of shape {tuple(x.shape)}, {x.dtype}, from its {call}"
        )


def state_leaves(nest: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested NamedTuples and tuples by name; those of a plain tuple by number."""
    leaves: dict[str, Tensor] = {}
    for name, value in zip(getattr(nest, "_fields", range(len(nest))), nest, strict=True):
        leaves |= (
            state_leaves(value, f"{prefix}{name}.")
            if isinstance(value, tuple)
            else {f"{prefix}{name}": value}
        )
    return leaves


def with_leaves(nest: Any, leaves: dict[str, Tensor], prefix: str = "") -> Any:
    """The same nest with other tensors, by the names of `state_leaves`."""
    names = getattr(nest, "_fields", range(len(nest)))
    values = [
        with_leaves(value, leaves, f"{prefix}{name}.")
        if isinstance(value, tuple)
        else leaves[f"{prefix}{name}"]
        for name, value in zip(names, nest, strict=True)
    ]
    return type(nest)(*values) if hasattr(nest, "_fields") else tuple(values)


def tuned_leaves(state: Any) -> dict[str, Tensor]:
    """What warmup has tuned: the leaves that all chains share, without the index of the step."""
    shared: frozenset[str] = getattr(state, "shared", frozenset()) - {"step"}
    return {name: value for name, value in state_leaves(state).items() if name in shared}


def chain_leaves(state: Any) -> dict[str, Tensor]:
    """The chains' own leaves by name, with the chains on axis 0."""
    shared: frozenset[str] = getattr(state, "shared", frozenset())
    return {
        n: v for n, v in state_leaves(state).items() if v.ndim and n.split(".")[0] not in shared
    }


def floating_leaves(state: Any) -> Iterator[Tensor]:
    """The chains' own leaves of floating-point numbers, each once where neighbours are the same."""
    shared, before = getattr(state, "shared", ()), None
    for name, value in zip(state._fields, state, strict=True):
        if value is before or name in shared:
            continue
        before = value
        for leaf in state_leaves(value).values() if isinstance(value, tuple) else (value,):
            if leaf.ndim and leaf.is_floating_point():
                yield leaf


def all_finite(state: Any, but: Tensor | None = None) -> bool:
    """Whether all of the state is finite, by sums that the host reads, which is cheap on the CPU.

    Where a sum overflows the answer is wrongly no: then masks are computed, with the same bits.

    Args:
        state: A solver's state.
        but: A leaf that is known to be.
    """
    total = 0.0
    for leaf in floating_leaves(state):
        if leaf is not but:
            total += leaf.sum().item()
    return total - total == 0


def finite_chains(state: Any) -> Tensor:
    """Of which chains all leaves are finite, `(chains,)` of bool."""
    finite = [
        finite_rows(leaf) for leaf in chain_leaves(state).values() if leaf.is_floating_point()
    ]
    return torch.stack(finite).all(0) if len(finite) > 1 else finite[0]


def select_state(chosen: Tensor, new: Any, old: Any) -> Any:
    """The new state of the chosen chains `(chains,)`, the old one of the others."""
    ours, theirs = chain_leaves(new), chain_leaves(old)
    merged = state_leaves(new) | {n: select_rows(chosen, v, theirs[n]) for n, v in ours.items()}
    return with_leaves(new, merged)
