"""Solvers by name: this package's own, and those of the entry-point group `scoretk.solvers`.

An entry point's value points at a solver class. A name means that class with its defaults; a
setting without a default is given to `load_solver` as a keyword. Listing imports neither the
classes nor torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from numbers import Integral
from types import MappingProxyType
from typing import Any

from scoretk.errors import InvalidArgument, near_match
from scoretk.plugins.catalog import Catalog, pointed_at
from scoretk.plugins.discovery import Broken, Entry

__all__ = [
    "BUILT_IN_SOLVERS",
    "SOLVER_PROTOCOL",
    "SolverSpec",
    "as_solver",
    "check_attributes",
    "describe_solver",
    "find_solver",
    "list_solvers",
    "load_solver",
    "load_solver_class",
    "verify_solvers",
]

BUILT_IN_SOLVERS: Mapping[str, str] = MappingProxyType(
    {
        "ula": "scoretk.solvers.ula:ULA",
        "mala": "scoretk.solvers.mala:MALA",
        "barker": "scoretk.solvers.barker:Barker",
        "preconditioned-langevin": "scoretk.solvers.preconditioned:PreconditionedLangevin",
        "underdamped": "scoretk.solvers.underdamped:Underdamped",
        "ghmc": "scoretk.solvers.underdamped:GHMC",
        "hmc": "scoretk.solvers.hmc:HMC",
        "chees": "scoretk.solvers.hmc:ChEES",
        "nuts": "scoretk.solvers.nuts:NUTS",
        "mclmc": "scoretk.solvers.mclmc:MCLMC",
        "adjusted-mclmc": "scoretk.solvers.mclmc:AdjustedMCLMC",
        "gibbs-with-gradients": "scoretk.solvers.discrete:GibbsWithGradients",
        "discrete-langevin": "scoretk.solvers.discrete:DiscreteLangevin",
        "block-gibbs": "scoretk.solvers.discrete:BlockGibbs",
        "swendsen-wang": "scoretk.solvers.clusters:SwendsenWang",
        "parallel-tempering": "scoretk.solvers.tempering:ParallelTempering",
        "ais": "scoretk.solvers.importance:AIS",
        "smc": "scoretk.solvers.importance:SMC",
        "annealed-langevin": "scoretk.solvers.annealed:AnnealedLangevin",
        "reverse-sde": "scoretk.solvers.reverse_sde:ReverseSDE",
        "twisted-smc": "scoretk.solvers.twisted:TwistedSMC",
        "split-gibbs": "scoretk.solvers.split_gibbs:SplitGibbs",
        "daps": "scoretk.solvers.daps:DAPS",
        "probability-flow": "scoretk.solvers.probability_flow:ProbabilityFlow",
    }
)
"""This package's solvers by name, in the order in which they are shown."""

SOLVER_PROTOCOL = ("needs", "timed", "init_cost", "step_cost", "capturable", "init", "step")
"""What every solver object has; `scoretk.solvers.base.Solver` says what each means."""
_HAVING = f"which every solver has: {', '.join(SOLVER_PROTOCOL)}"

_SOLVERS = Catalog("scoretk.solvers", "solver", BUILT_IN_SOLVERS)


@dataclass(frozen=True)
class SolverSpec:
    """What a solver class says about itself, in plain values.

    Args:
        id: The canonical id, `distribution/name`.
        solver: The class, "module:Class".
        summary: The first paragraph of its docstring.
        settings: The defaults of its settings by name.
        required: The settings without a default.
        needs: The methods of the field that it calls, with default settings; None where they depend
            on settings that have no default.
        timed: Whether it works on fields in time (True), on static ones (False), or on both (None).
    """

    id: str
    solver: str
    summary: str
    settings: Mapping[str, Any]
    required: tuple[str, ...]
    needs: tuple[str, ...] | None
    timed: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The spec ready for JSON; a default that is no plain value as its `repr`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["settings"] = {name: _plain(value) for name, value in self.settings.items()}
        plain["required"] = list(self.required)
        plain["needs"] = None if self.needs is None else list(self.needs)
        return plain


def list_solvers() -> list[Entry | Broken]:
    """All registered solvers sorted by id, from metadata alone.

    Returns:
        An `Entry` for each; a `Broken` as in `list_models`.
    """
    return _SOLVERS.listing()


def find_solver(name: str) -> Entry:
    """The entry of a solver, from metadata alone.

    Args:
        name: A full id ("my-package/my-kernel") or a short name ("mala").

    Returns:
        The entry.

    Raises:
        UnknownName: Nothing has this name; the message has the nearest.
        AmbiguousName: Solvers of several packages have this short name.
        BrokenPlugin: The distribution's metadata cannot be read.
    """
    return _SOLVERS.find(name)


def load_solver_class(name: str) -> type[Any]:
    """The class of a registered solver.

    Args:
        name: A full id or a short name.

    Returns:
        The class.

    Raises:
        UnknownName: Nothing has this name.
        AmbiguousName: Solvers of several packages have this short name.
        BrokenPlugin: It cannot be imported or is no solver class.
    """
    return _class(_SOLVERS.find(name))


def load_solver(name: str, /, **settings: Any) -> Any:
    """The solver of this name with these settings, its defaults for the others.

    Args:
        name: A full id ("my-package/my-kernel") or a short name ("mala").
        settings: Keyword arguments of the class; `kernel` may itself be a name.

    Returns:
        The solver object.

    Raises:
        UnknownName: Nothing has this name.
        AmbiguousName: Solvers of several packages have this short name.
        BrokenPlugin: It cannot be imported, is no solver class, or fails.
        InvalidArgument: The class does not have a setting, a setting without a default is not
            given, or the class refuses a value.
    """
    entry = _SOLVERS.find(name)
    kind = _class(entry)
    with _SOLVERS.isolated(entry, "load"):
        known = _settings(kind)
        unheard = sorted(settings.keys() - known.keys() - _outdated(kind))
    if unheard and not _takes_any(kind):
        hint = f"It takes {', '.join(known) or 'none'}"
        raise InvalidArgument(
            unheard[0],
            settings[unheard[0]],
            f"a setting of {name}{near_match(unheard[0], known)}",
            hint,
        )
    missing = [n for n, default in known.items() if default is MISSING and n not in settings]
    if missing:
        wanted = ", ".join(f"{n}=VALUE" for n in missing)
        raise InvalidArgument(
            "solver",
            name,
            f"{wanted} for {name}, as {'these have' if len(missing) > 1 else 'this has'} no "
            "default",
            f"Give a solver object, {_spelled(entry, kind)}({wanted}); on the command line, "
            + " ".join(f"--set {n}=VALUE" for n in missing),
        )
    with _SOLVERS.isolated(entry, "load", settings):
        return kind(**settings)


def describe_solver(name: str) -> SolverSpec:
    """What a solver's class says about itself; imports its module only.

    Args:
        name: A full id or a short name.

    Returns:
        A `SolverSpec`.

    Raises:
        UnknownName: Nothing has this name.
        AmbiguousName: Solvers of several packages have this short name.
        BrokenPlugin: It cannot be imported or is no solver class.
    """
    entry = _SOLVERS.find(name)
    kind = _class(entry)
    with _SOLVERS.isolated(entry, "describe"):
        known = _settings(kind)
        required = tuple(n for n, default in known.items() if default is MISSING)
        shown = kind if required else kind()  # what depends on settings is a property
        lacking = [name for name in SOLVER_PROTOCOL if not hasattr(shown, name)]
        if lacking:
            raise TypeError(f"{kind.__name__} has no {' and no '.join(lacking)}, {_HAVING}")
        needs, timed = (None if isinstance(v, property) else v for v in (shown.needs, shown.timed))
        first = (inspect.getdoc(kind) or "").strip().partition("\n\n")[0]
        return SolverSpec(
            id=entry.id,
            solver=f"{kind.__module__}:{kind.__qualname__}",
            summary=" ".join(first.split()),
            settings={n: default for n, default in known.items() if default is not MISSING},
            required=required,
            needs=None if needs is None else tuple(sorted(needs)),
            timed=timed,
        )


def verify_solvers() -> list[Entry | Broken]:
    """All registered solvers after each was asked what it is, as `describe_solver` does.

    See `Catalog.verified`.
    """
    return _SOLVERS.verified(describe_solver)


def as_solver(argument: str, value: Any) -> Any:
    """The solver that an argument means: an object as it is, a name as `load_solver` reads it.

    Args:
        argument: The argument's name, for errors.
        value: A solver object, or the name of a registered solver.

    Returns:
        The solver object.

    Raises:
        InvalidArgument: It is neither, or the named solver cannot be made without settings.
        UnknownName: Nothing has this name.
        AmbiguousName: Solvers of several packages have this short name.
        BrokenPlugin: The named solver cannot be imported or fails.
    """
    if isinstance(value, str):
        return load_solver(value)
    lacking = [name for name in SOLVER_PROTOCOL if not hasattr(value, name)]
    if isinstance(value, type) or {"init", "step"} & set(lacking):
        raise InvalidArgument(
            argument, value, "a solver object or the name of one", "Such as scoretk.HMC(), or 'hmc'"
        )
    if lacking:
        having = f"a solver, which has {', '.join(SOLVER_PROTOCOL)}"
        raise InvalidArgument(argument, value, having, f"It has no {' and no '.join(lacking)}")
    return value


def check_attributes(argument: str, solver: Any) -> None:
    """Check what a solver says of its needs and costs, before a run relies on it.

    Args:
        argument: The argument's name, for errors.
        solver: The solver object.

    Raises:
        InvalidArgument: `needs` is no set of names, or a cost no mapping of names to numbers.
    """
    if isinstance(solver.needs, str) or not all(isinstance(name, str) for name in solver.needs):
        raise InvalidArgument(
            f"{argument}.needs", solver.needs, "a set of names, such as frozenset({'energy'})"
        )
    for name in ("init_cost", "step_cost"):
        cost = getattr(solver, name)
        if not isinstance(cost, Mapping) or not all(
            isinstance(kind, str) and isinstance(n, Integral) and int(n) >= 0
            for kind, n in cost.items()
        ):
            raise InvalidArgument(
                f"{argument}.{name}",
                cost,
                "evaluations a chain by the method's name, such as {'energy': 1}",
            )


def _class(entry: Entry) -> type[Any]:
    with _SOLVERS.isolated(entry, "load"):
        solver = pointed_at(entry.value)
        if not isinstance(solver, type):
            raise TypeError(f"{entry.value} is of type {type(solver).__name__}, not a solver class")
        lacking = [
            method for method in ("init", "step") if not callable(getattr(solver, method, None))
        ]
        if lacking:
            raise TypeError(
                f"{entry.value} is no solver class: it has no {' and no '.join(lacking)}"
            )
    return solver


def _settings(kind: type[Any]) -> dict[str, Any]:
    """The settings of a class and their defaults, `MISSING` where there is none."""
    if is_dataclass(kind):
        return {
            f.name: f.default_factory() if f.default_factory is not MISSING else f.default
            for f in fields(kind)
            if f.init
        }
    return {
        name: MISSING if p.default is p.empty else p.default
        for name, p in inspect.signature(kind).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _outdated(kind: type[Any]) -> set[str]:
    """Keywords that a class takes besides its settings.

    They are those of wrappers around its constructor, which take names of earlier releases.
    """
    begin: Any = kind.__init__
    taken: set[str] = set()
    while hasattr(begin, "__wrapped__"):
        own = inspect.signature(begin, follow_wrapped=False).parameters.values()
        taken |= {p.name for p in own if p.kind is p.KEYWORD_ONLY}
        begin = begin.__wrapped__
    return taken


def _takes_any(kind: type[Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values())


def _spelled(entry: Entry, kind: type[Any]) -> str:
    if entry.value == BUILT_IN_SOLVERS.get(entry.name):
        return f"scoretk.{kind.__name__}"
    return entry.value.replace(":", ".")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return repr(value)
