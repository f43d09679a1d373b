"""The field of a flow, by its library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from scoretk.adapters.flows.field import FlowField
from scoretk.adapters.flows.freia import _FrEIA
from scoretk.adapters.flows.law import _Flow
from scoretk.adapters.flows.nflows import _NFlows
from scoretk.adapters.flows.normflows import _NormFlows
from scoretk.adapters.flows.onto import ASKED, _asked_onto, _check_falls_off
from scoretk.adapters.flows.zuko import _Zuko, _ZukoLaw
from scoretk.adapters.owned import generators_kept
from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.keywords import explained
from scoretk.core.modules import left_as_found, modules_of
from scoretk.errors import InvalidArgument
from scoretk.fields.constrained import constrained
from scoretk.fields.foreign import adapter_of, no_field, owners, within

__all__ = ["from_flow"]


@explained
def from_flow(
    flow: Any, event_shape: Sequence[int] | None = None, support: Any = None
) -> FlowField:
    """A field with energy, score, `log_prob` and `draw` from a normalizing flow.

    A conditional flow takes its condition by the name that its library has for it, one row a chain:
    "c" (zuko, FrEIA; of several in FrEIA "c0", "c1", ...), "context" (nflows, normflows), "y"
    (classes in normflows).

    Args:
        flow: A flow of zuko (or a distribution that it has made), nflows, normflows or FrEIA, whose
            networks lead from data to N(0, I).
        event_shape: The shape of one x, where the flow does not say.
        support: Where x lives, as a constraint is given to `scoretk.constrained`; None for what the
            flow's parts say, which for circular flows is one period.

    Returns:
        The field, of the user's space: outside the support the density is 0, and solvers work in
        free space. It has `draw` where the flow's base is a known transform of noise.

    Raises:
        InvalidArgument: It is no such flow, its event shape is not known, or its density does not
            fall off where x is said to live.
    """
    if isinstance(flow, partial) and adapter_of(flow) == "from_flow":
        raise InvalidArgument(
            "flow",
            type(flow),
            "the flow itself",
            "What it is bound to is a condition: scoretk.from_flow(flow), and cond={name: rows}",
        )
    flow = within(flow)
    kind = next((_KINDS[owner] for owner in owners(flow) if owner in _KINDS), None)
    if kind is None:
        raise no_field("flow", flow, "a flow of zuko, nflows, normflows or FrEIA")
    with _copy_to_ask(flow) as copied, generators_kept():  # a layer may draw, and is refused then
        field = _field(kind(copied), event_shape, support)
    return replace(field, flow=kind(flow))


def _field(law: _Flow, event_shape: Sequence[int] | None, support: Any) -> FlowField:
    """The field of a flow, which is asked what it does not say."""
    if law.discrete:
        raise InvalidArgument(
            "flow",
            type(law.flow),
            "a flow whose base has a density",
            "Its base is a law of counts or classes: what a flow makes of it has probabilities, and no "
            "density to sample by",
        )
    if event_shape is None:
        try:
            event_shape = law.shape()
        except Exception as error:  # whatever a flow of unknown build raises
            raise InvalidArgument(
                "event_shape",
                None,
                f"the shape of one x, which this {type(law.flow).__name__} does not say",
                "scoretk.from_flow(flow, event_shape=(2,)), of two numbers, say: its base does not tell "
                "it, or only with a condition",
            ) from error
    shape = as_event_shape(event_shape)
    provides = {"energy", "score", "log_prob"} | ({"draw"} if law.explicit else set())
    field = FlowField(law, shape, frozenset(provides), law.conditional(shape))
    within = law.support(shape) if support is None else support
    if within is not None:
        over = constrained(field, within)
        field = replace(field, support=over.transform, within=over.constraint)
    if not field.conditional:
        _check_falls_off(field)
    some = law.some_conditions(ASKED) if field.conditional else {}
    if some is not None and law.explicit:
        field = _asked_onto(field, some)
    return field


@contextmanager
def _copy_to_ask(flow: Any) -> Iterator[Any]:
    """A copy of a flow in eval mode: a layer that takes what it is asked for data spoils that alone.

    Raises:
        InvalidArgument: Asking has changed the copy, so that the flow's density is none yet.
    """
    try:
        copied = deepcopy(flow)
    except RuntimeError:  # torch copies no tensors that are results
        copied = flow
    before = [t.detach().clone() for t in _tensors_of(copied)]
    try:
        with left_as_found(copied):
            yield copied
    finally:
        after = _tensors_of(copied)
        if len(after) != len(before) or not all(map(_same, before, after)):
            raise InvalidArgument(
                "flow",
                type(flow),
                "a flow that is the same after it was asked",
                "A layer takes its first batch for data, as ActNorm does: give the flow a batch of "
                "your data first, or what it was trained to",
            )


def _tensors_of(flow: Any) -> list[Tensor]:
    """The parameters and buffers of all modules of a flow."""
    held = (v for m in modules_of(flow) for v in (*m._parameters.values(), *m._buffers.values()))
    return [tensor for tensor in held if tensor is not None]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether tensors hold the same numbers, or none at the same places."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


_KINDS: dict[tuple[str, str], Callable[[Any], _Flow]] = {
    ("zuko", "LazyDistribution"): _Zuko,
    ("zuko", "NormalizingFlow"): _ZukoLaw,
    ("nflows", "Flow"): _NFlows,
    ("normflows", "NormalizingFlow"): _NormFlows,
    ("normflows", "ClassCondFlow"): _NormFlows,
    ("normflows", "MultiscaleFlow"): _NormFlows,
    ("FrEIA", "SequenceINN"): _FrEIA,
    ("FrEIA", "GraphINN"): _FrEIA,
}
"""How a library's flows are asked, by package and class."""
