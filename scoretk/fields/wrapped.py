"""What a field made of fields keeps of them: one rule for every capability and kind of wrapper.

A wrapper makes a law of laws. What its fields can do beyond energy and score is of two sorts:

- *Where a law lives* (`SPACE`) is part of what it is: the discrete `states`, and the map
`constrain` from the space of the solver to that of the user. A wrapper keeps it or cannot be made:
left out, every solver would sample another law without a word.
- *What can be done with a law* may be kept, or done anew by the wrapper's own method; else it is
refused where it is asked for.

A wrapper says what it does to the law (`Kind`), and `RULES` what follows for each capability. What
`RULES` does not name for a kind is refused, so that a new capability is never passed on by
accident.

A law in the user's space is combined *there*: a field over a map has `around(field)`, the same map
around another field, and

    tempered(constrained(f, c), T) = constrained(tempered(f, T), c)
    product(constrained(f, c), constrained(g, c)) = constrained(product(f, g), c)

so that the Jacobian is neither tempered nor counted twice (`shared_map`).

*In time* a wrapper makes a density at each t of those of its fields. The probability flow and the
reverse SDE lead from one to the next only where they are the noised densities of the law at t = 1,
which holds where what the wrapper does commutes with noising. Mixing does; powers and products do
not, `(p_t)^(1/T)` is not `(p^(1/T))_t` (`FLOWS`, `check_flow`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from functools import cached_property
from typing import Any, ClassVar

from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.alike import alike
from scoretk.fields.protocols import CAPABILITIES, field_name, is_timed, offers, optional

__all__ = [
    "FLOWS",
    "RULES",
    "SPACE",
    "Kind",
    "Rule",
    "Wrapped",
    "check_flow",
    "check_within",
    "defines",
    "not_kept",
    "shared_map",
    "without_flow",
]


class Kind(Enum):
    """What a wrapper does to the law of its fields."""

    SAME = auto()
    """The same law: a known normalisation."""
    VIEW = auto()
    """What a solver shows another solver of a field: other coordinates, known values."""
    POWER = auto()
    """Powers and products, `prod p_i^(a_i)` where the a_i do not add up to 1."""
    BLEND = auto()
    """Geometric means, `prod p_i^(a_i)` with a_i that add up to 1: bridges, guidance."""
    TILT = auto()
    """A law times a factor that is no law: posteriors."""
    MIXTURE = auto()
    """`sum_i w_i p_i`."""
    MOMENT = auto()
    """A field in time, held at one time."""
    NOISED = auto()
    """A static field as the end of a field in time."""
    RESTRICTED = auto()
    """A law on real numbers, restricted to states."""
    MOVED = auto()
    """A law in the user's space, seen from free space."""


class Rule(Enum):
    """What becomes of a capability of the fields in their wrapper."""

    KEEP = auto()
    """That of those fields that have it; they must agree."""
    SHARE = auto()
    """As `KEEP`, and either all have it or none."""
    FIRST = auto()
    """That of the first field that has it: any of them will do."""
    OWN = auto()
    """What the wrapper makes of it itself; refused where it makes nothing."""
    ANEW = auto()
    """As `OWN`, of fields that have none: one that has it cannot be wrapped so."""
    REFUSE = auto()
    """Not the wrapper's: refused where it is asked for."""
    BAR = auto()
    """A field that has it cannot be wrapped so."""


_COMBINED = (Kind.POWER, Kind.BLEND, Kind.TILT, Kind.MIXTURE)


def _rules(rule: Rule, *kinds: Kind, **others: Rule) -> Mapping[Kind, Rule]:
    """One rule for some kinds, others by name; all kinds that are not named refuse."""
    return (
        dict.fromkeys(Kind, Rule.REFUSE)
        | dict.fromkeys(kinds, rule)
        | {Kind[k]: r for k, r in others.items()}
    )


_MAP = _rules(
    Rule.KEEP,
    Kind.SAME,
    Kind.BLEND,
    Kind.MOMENT,
    Kind.NOISED,
    MIXTURE=Rule.SHARE,
    POWER=Rule.BAR,
    TILT=Rule.BAR,
    RESTRICTED=Rule.BAR,
    MOVED=Rule.ANEW,
)

RULES: Mapping[str, Mapping[Kind, Rule]] = {
    "states": _rules(
        Rule.KEEP,
        Kind.SAME,
        Kind.VIEW,
        Kind.POWER,
        Kind.BLEND,
        Kind.TILT,
        MIXTURE=Rule.SHARE,
        RESTRICTED=Rule.OWN,
        MOMENT=Rule.BAR,
        NOISED=Rule.BAR,
        MOVED=Rule.BAR,
    ),
    "constrain": _MAP,
    "unconstrain": _MAP,
    "constrained_shape": _MAP,
    # the names of what draws hold
    "variables": _rules(
        Rule.KEEP,
        Kind.SAME,
        *_COMBINED,
        Kind.MOMENT,
        Kind.NOISED,
        MIXTURE=Rule.SHARE,
        RESTRICTED=Rule.KEEP,
        MOVED=Rule.OWN,
    ),
    "around": _rules(Rule.OWN, Kind.MOVED),
    "in_free_space": _rules(Rule.REFUSE),
    "support": _rules(Rule.REFUSE),
    # any point of the space will do for a start
    "initial": _rules(Rule.FIRST, Kind.SAME, *_COMBINED, RESTRICTED=Rule.OWN, MOVED=Rule.OWN),
    # acts on draws, which are in the user's space
    "decode": _rules(Rule.KEEP, Kind.SAME, *_COMBINED, Kind.NOISED, Kind.RESTRICTED, Kind.MOVED),
    "null": _rules(
        Rule.KEEP, Kind.SAME, *_COMBINED, Kind.MOMENT, Kind.NOISED, Kind.RESTRICTED, Kind.MOVED
    ),
    "base": _rules(Rule.SHARE, Kind.SAME, *_COMBINED, NOISED=Rule.OWN),
    "draw": _rules(Rule.KEEP, Kind.SAME, RESTRICTED=Rule.OWN, MOVED=Rule.OWN),
    "log_prob": _rules(Rule.OWN, Kind.SAME, Kind.MIXTURE, Kind.MOMENT, Kind.RESTRICTED, Kind.MOVED),
    "log_prob_at": _rules(Rule.OWN, Kind.MIXTURE),
    "exact_log_partition": _rules(Rule.KEEP, Kind.SAME, RESTRICTED=Rule.OWN),
    "estimate_log_prob": _rules(Rule.REFUSE),
    # of states, whether these are the field's own or given to it
    "gibbs": _rules(Rule.KEEP, Kind.SAME, Kind.RESTRICTED),
    "gibbs_shape": _rules(Rule.KEEP, Kind.SAME, Kind.RESTRICTED),
    "couplings": _rules(Rule.KEEP, Kind.SAME, Kind.RESTRICTED, BLEND=Rule.OWN),
    "between": _rules(Rule.KEEP, Kind.SAME),
    "twist": _rules(Rule.KEEP, Kind.SAME, TILT=Rule.OWN),
    "log_likelihood": _rules(Rule.KEEP, Kind.SAME, TILT=Rule.OWN),
    "separated": _rules(Rule.KEEP, Kind.SAME, TILT=Rule.OWN),
    "noised": _rules(Rule.REFUSE),
    "marginal": _rules(Rule.REFUSE),
    "observe": _rules(Rule.REFUSE),
}
"""What becomes of each optional capability under each kind of wrapper."""

SPACE = ("states", "constrain")
"""The capabilities that say where a law lives."""

FLOWS = frozenset(Kind) - {Kind.POWER}
"""The kinds whose densities in time a flow follows.

Guidance and posterior methods are among them: approximations that are used as flows, with what is
lost in their docstrings.
"""

_BRIDGES = {
    "states": "Take a field on real numbers, or one on the same states",
    "constrain": "Combine the fields in the user's space, and then constrain the result, all of "
    "them by one constraint",
    "base": "Give the chains their start: init=",
    "decode": "Decode with the `decode` of one of its fields",
    "draw": "Sample it with a solver",
    "log_prob": "A normalised density needs the partition function: scoretk.log_partition, and "
    "scoretk.Normalised",
    "gibbs": "GibbsWithGradients and DiscreteLangevin need an energy only",
    "couplings": "GibbsWithGradients and DiscreteLangevin need an energy only",
}


class NotKept(MissingCapability, AttributeError):
    """A capability that a wrapper does not have; to `getattr` and `hasattr` a missing attribute."""


def not_kept(wrapper: Any, name: str) -> NotKept:
    """The refusal of a capability that a wrapper does not have."""
    bridge = _BRIDGES.get(name, "Ask one of its fields")
    return NotKept(field_name(wrapper), offers(wrapper), {name}, bridge)


class Wrapped:
    """A field made of fields: its optional capabilities follow `RULES`.

    A subclass gives `kind`, `inner` and `computed`.
    """

    kind: ClassVar[Kind]

    @property
    def inner(self) -> tuple[Any, ...]:
        """The fields whose capabilities it may keep."""
        raise NotImplementedError  # abstract: this class is a mixin for frozen dataclasses

    @property
    def computed(self) -> frozenset[str]:
        """The capabilities among `CAPABILITIES` that the wrapper computes itself."""
        raise NotImplementedError

    @property
    def own_conditions(self) -> frozenset[str] | None:
        """The names of conditions that are its own, and not its fields'; None where it has no such."""
        return None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        kind = getattr(cls, "kind", None)
        for name, rules in RULES.items():
            if kind is not None and defines(cls, name) and rules[kind] in (Rule.REFUSE, Rule.BAR):
                raise TypeError(
                    f"{cls.__name__} defines {name}, which a wrapper of kind {kind.name} refuses: "
                    f"see RULES"
                )

    def __post_init__(self) -> None:
        """Refuse fields whose laws live where this wrapper cannot keep them."""
        for name in SPACE:
            _check_space(self, name)

    @property
    def flows(self) -> bool:
        """Whether its densities in time are the noised ones of its law, as those of its fields
        are.
        """
        return self.kind in FLOWS

    def exponents(self, parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
        """The exponents of its fields' densities in time, see `combine.powers.exponents`.

        Args:
            parts: Those of each of its fields in time, in the order of `inner`.
        """
        return min(least for least, _ in parts), max(most for _, most in parts)

    @cached_property
    def event_shape(self) -> tuple[int, ...]:
        """The event shape of its fields."""
        return tuple(self.inner[0].event_shape)

    def _provides(self) -> frozenset[str]:
        """What it computes itself, and what it keeps of its fields."""
        own = frozenset(n for n in RULES if defines(type(self), n) or n in vars(self))
        return self.computed | {
            n for n in CAPABILITIES if n in RULES and n not in own and _kept(self, n) is not None
        }

    provides: frozenset[str] = cached_property(_provides)  # type: ignore[assignment]


class _ByRule:
    """A capability that follows `RULES`, unless the wrapper's class or the wrapper has its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.__doc__ = f"`{name}` by `RULES`."

    def __get__(self, wrapper: Wrapped | None, owner: type) -> Any:
        if wrapper is None:
            return self
        found = _kept(wrapper, self.name)
        if found is None:
            raise not_kept(wrapper, self.name)
        return found


for _name in RULES:
    setattr(Wrapped, _name, _ByRule(_name))


def defines(cls: type, name: str) -> bool:
    """Whether a class of wrappers makes a capability itself, in place of what `RULES` says."""
    return not isinstance(getattr(cls, name), _ByRule)


def _kept(wrapper: Wrapped, name: str) -> Any:
    """A capability by its rule; None where it is not kept."""
    rule = RULES[name][wrapper.kind]
    if rule not in (Rule.KEEP, Rule.SHARE, Rule.FIRST):
        return None
    held = _held(wrapper, name)
    some = bool(held) and (rule is not Rule.SHARE or len(held) == len(wrapper.inner))
    return held[0] if some and (rule is Rule.FIRST or _agree(held)) else None


def _held(wrapper: Wrapped, name: str) -> list[Any]:
    """What the wrapper's fields have of a capability."""
    return [value for value in (_of(f, name) for f in wrapper.inner) if value is not None]


def _of(field: Any, name: str) -> Any:
    native = getattr(field, "native", field)  # the field behind a solver's view of it
    if isinstance(getattr(type(native), name, None), _ByRule) and name not in vars(native):
        return _kept(native, name)  # as reading it would give, without making an error
    return getattr(native, name, None)


def _agree(values: Sequence[Any]) -> bool:
    first, *others = map(_meaning, values)
    return all(alike(first, other) for other in others)


def _meaning(value: Any) -> Any:
    """The part of a capability that is compared.

    Of the maps to and from the user's space it is the bijection, whatever field it is around.
    """
    owner = getattr(value, "__self__", None)
    transform = getattr(owner, "transform", None)
    if owner is None or transform is None:
        return value
    return type(owner), value.__name__, transform, tuple(owner.event_shape)


def _check_space(wrapper: Wrapped, name: str) -> None:
    rule = RULES[name][wrapper.kind]
    if rule in (Rule.OWN, Rule.REFUSE) or (rule is Rule.KEEP and len(wrapper.inner) == 1):
        return  # (one field agrees with itself; solvers make such wrappers at every step)
    held = _held(wrapper, name)
    if not held or _kept(wrapper, name) is not None:
        return
    names = ", ".join(field_name(getattr(f, "native", f)) for f in wrapper.inner)
    apart = rule in (Rule.BAR, Rule.ANEW)
    wanted = f"fields without {name!r}" if apart else f"fields whose {name!r} is one and the same"
    raise InvalidArgument("field", names, wanted, _BRIDGES[name])


def check_within(argument: str, field: Any, law: Any) -> None:
    """Check that a field lives in the same space as a law that it joins.

    Args:
        argument: The argument that errors name.
        field: The field. It may also say nothing of the space.
        law: The law that it joins.

    Raises:
        InvalidArgument: It lives in another space.
    """
    for name in SPACE:
        own = _of(field, name)
        if own is not None and not _agree([own, _of(law, name)]):
            raise InvalidArgument(
                argument,
                field_name(field),
                f"a field without {name!r}, or of the same",
                _BRIDGES[name],
            )


def check_flow(field: Any) -> None:
    """Refuse a field in time whose probability flow would lead to another law than its own.

    Fields inside it are looked at to any depth; static ones are not, as `smoothed(tempered(f, T))`
    is noised as a whole.

    Args:
        field: A field in time, or a solver's view of one.

    Raises:
        MissingCapability: It is, or is made of, a power or a product of fields in time.

    References:
        Du, Durkan, Strudel, Tenenbaum, Dieleman, Fergus, Sohl-Dickstein, Doucet, Grathwohl,
        "Reduce, reuse, recycle: compositional generation with energy-based diffusion models and
        MCMC" (2023).
    """
    found = without_flow(field)
    if found is not None:
        raise MissingCapability(
            field_name(found),
            offers(found),
            {"a flow from each time to the next"},
            "Powers and products of noised densities are not the noised power or product: their "
            "flow ends in another law. Take AnnealedLangevin(), ReverseSDE('ancestral', "
            "corrector=n) on a path whose alpha(0) is above 0, or a kernel such as MALA on "
            "field.at(t); where the fields are known without noise, smoothed(...) of their power "
            "or product",
        )


def without_flow(field: Any) -> Any:
    """The first part of a field in time that no flow follows; None where there is none."""
    field = getattr(field, "native", field)
    if not isinstance(field, Wrapped) or not is_timed(field):
        return None
    if not field.flows:
        return field
    return next((part for part in map(without_flow, field.inner) if part is not None), None)


def shared_map(argument: str, fields: Sequence[Any]) -> Any:
    """The map from free space under which all the fields are, as a field over it.

    Args:
        argument: The argument that errors name.
        fields: Those that are to be combined.

    Returns:
        The first field over the map; None where none of them is over a map.

    Raises:
        InvalidArgument: Some are under a map and others are not, or under another.
    """
    moved = [f for f in fields if callable(optional(f, "around"))]
    if not moved:
        return None
    if len(moved) < len(fields) or not _agree([f.transform for f in moved]):
        shown = [optional(f, "constraint") for f in fields]
        orders = {tuple(getattr(f.transform, "names", ())) for f in moved}
        hint = (
            "Their laws live in different spaces: constrain all of them, and by the same"
            if len(moved) < len(fields) or len(orders) == 1 or len(set(map(frozenset, orders))) > 1
            else "Their variables have the same names in another order, which says what entries of x "
            f"are whose: give all of them in one, such as {', '.join(min(orders))}"
        )
        raise InvalidArgument(argument, shown, "fields under one and the same constraint", hint)
    return moved[0]
