"""Every method for the probability flow: one name, one meaning.

A method is a rule: a `Multistep` or `RungeKutta` along a given grid (`ode.tableaus`), a `Pair` that
steps row by row (`ode.rowwise`), or one borrowed from torchdiffeq (`ode.adaptive`), whose steps a
batch shares. A rule stands in one of the tables below and states its order there. Whatever takes a
`method` looks it up here and asks the rule for the rest, so that a new entry can be used for
sampling, encoding and likelihoods as it stands. What other packages call their methods is in
`ode.names`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from scoretk.errors import InvalidArgument, UnknownName
from scoretk.ode.adaptive import TORCHDIFFEQ
from scoretk.ode.names import FOREIGN, Foreign, spelled
from scoretk.ode.rowwise import PAIRS
from scoretk.ode.tableaus import GRID_RULES
from scoretk.ode.velocities import Solved

__all__ = [
    "TABLES",
    "Method",
    "Rule",
    "every_method",
    "find_method",
    "has_method",
    "velocity_method",
]


class Rule(Protocol):
    """What every entry of the tables has."""

    @property
    def order(self) -> int:
        """The power of the step size in the error at the end."""

    @property
    def stages(self) -> int:
        """Evaluations of a step (of an attempt, where steps are chosen).

        Those of the step before that it uses do not count.
        """

    @property
    def embedded(self) -> bool:
        """Whether a step estimates its error."""

    @property
    def adaptive(self) -> bool:
        """Whether it chooses its steps by that; otherwise a grid is given."""

    @property
    def rowwise(self) -> bool:
        """Whether a row's steps are those that it has alone.

        Otherwise the hardest row sets those of all.
        """

    @property
    def of_velocity(self) -> bool:
        """Whether it integrates a velocity, in any ODE.

        Otherwise it needs the denoiser of a Gaussian path.
        """

    @property
    def solve(self) -> Callable[..., Solved]:
        """`solve(velocity, x, stops, *, select, rtol, atol, max_steps)`, `dx/dt = velocity(x, t)`.

        Rules along a grid go from stop to stop, and do not use the keywords.
        """


class Method(NamedTuple):
    """A rule and its name, with what can be said of it: see `Rule`.

    Attributes:
        name: The name in its table.
        rule: The object that carries it out.
        order: As in `Rule`.
        stages: As in `Rule`.
        embedded: As in `Rule`.
        adaptive: As in `Rule`.
        rowwise: As in `Rule`.
        needs: What it needs of the field, "velocity" or "denoise".
    """

    name: str
    rule: Any
    order: int
    stages: int
    embedded: bool
    adaptive: bool
    rowwise: bool
    needs: str

    @classmethod
    def of(cls, name: str, rule: Rule) -> Method:
        """The method of a rule."""
        needs = "velocity" if rule.of_velocity else "denoise"
        return cls(
            name, rule, rule.order, rule.stages, rule.embedded, rule.adaptive, rule.rowwise, needs
        )


TABLES: tuple[Mapping[str, Rule], ...] = (GRID_RULES, PAIRS, TORCHDIFFEQ)
"""All rules by their names, those along a grid first."""


def every_method() -> list[Method]:
    """All methods, in the order of the tables."""
    return [Method.of(name, rule) for table in TABLES for name, rule in table.items()]


def has_method(name: str) -> bool:
    """Whether a table has this very name."""
    return any(name in table for table in TABLES)


def find_method(name: Any) -> Method:
    """The method of this name, or of the name that another package has for the same method.

    Args:
        name: As a solver's `method` takes it.

    Returns:
        The method, under its own name.

    Raises:
        InvalidArgument: It is no string.
        UnknownName: No method has this name; the message says what to use instead where it is known
            from elsewhere.
    """
    if not isinstance(name, str):
        raise InvalidArgument(
            "method", name, f"a name, one of {', '.join(m.name for m in every_method())}"
        )
    for table in TABLES:
        if name in table:
            return Method.of(name, table[name])
    meant = FOREIGN.get(spelled(name), Foreign())
    if meant.flow:
        return find_method(meant.flow)
    raise UnknownName("method", name, [m.name for m in every_method()], meant.advice)


def velocity_method(name: Any) -> Method:
    """As `find_method`, for methods that integrate a velocity in any coordinates.

    Args:
        name: As a solver's `method` takes it.

    Returns:
        The method, under its own name.

    Raises:
        InvalidArgument: It is no string, or a method of the denoiser, which integrates along a
            Gaussian path only.
        UnknownName: No method has this name.
    """
    method = find_method(name)
    if method.needs != "velocity":
        known = ", ".join(m.name for m in every_method() if m.needs == "velocity")
        raise InvalidArgument(
            "method", name, f"an integrator of the velocity, one of {known}", "Such as 'adams_3'"
        )
    return method
