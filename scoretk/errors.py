"""What can fail: exceptions for calls that cannot be served, a status for chains that fail.

A *call* that is wrong or cannot be carried out raises a `ScoretkError`, whose message says what it
got, what was expected and what to do. A *chain* that fails while its neighbours are well does not
raise: it carries a `Status` code, is frozen at its last finite state, and the run goes on.

This module imports nothing but the standard library, so that everything may import it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from reprlib import Repr
from typing import Any
from unicodedata import category

__all__ = [
    "AmbiguousName",
    "BrokenPlugin",
    "Busy",
    "ChainFailure",
    "CheckpointError",
    "FitFailure",
    "InvalidArgument",
    "MissingCapability",
    "MissingDependency",
    "OutputExists",
    "RankFailure",
    "ScoretkError",
    "SingularConversion",
    "Status",
    "StoreError",
    "UnknownArgument",
    "UnknownName",
]


SHOWN, LONGEST = 80, 2000
"""The most characters that a message shows of a value, and that it has."""

# It stops early: the repr of a long list takes time in proportion to its length.
_REPR = Repr()
MOST_NAMES = 12
"""The most names that a message lists."""
_REPR.maxother = _REPR.maxlong = 2 * SHOWN
_REPR.maxstring = SHOWN  # of a long path the end says most: texts are shown by both ends
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = _REPR.maxfrozenset = (
    _REPR.maxdeque
) = _REPR.maxarray = SHOWN


class Status(IntEnum):
    """What became of one chain.

    `draws.status` holds these codes, `draws.failed_at` the step at which the chain failed (-1 where
    it did not).
    """

    OK = 0
    NONFINITE = 1
    """Position, energy or score became NaN or infinite (or were so at the start)."""
    DIVERGED = 2
    """Left the region in which the solver's numbers are meaningful, while still finite."""
    MAX_STEPS = 3
    """An adaptive solver used up its steps before it reached the end of its interval."""
    UNTRUSTED = 4
    """An estimate whose standard error is not to be trusted."""


class ScoretkError(Exception):
    """Base of every error that scoretk raises on purpose.

    All can be pickled, so that they reach the caller from other processes. A message has at most
    `LONGEST` characters, whatever the repr of a value or another library puts into it.
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(
            *(_cut(part, LONGEST) if isinstance(part, str) else part for part in parts)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(
    kind: type[ScoretkError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> ScoretkError:
    """An error from its parts, past `__init__`, whose arguments are not those of the message."""
    error = kind.__new__(kind, *args)
    error.args = args  # which a kind of OSError takes in `__init__` alone
    error.__dict__.update(attributes)
    return error


class InvalidArgument(ScoretkError, ValueError):
    """An argument has a wrong value, type, shape, dtype or device.

    Args:
        argument: Its name, which begins the message.
        got: Its value.
        expected: What was expected, in words.
        hint: What to do, or nothing.
    """

    def __init__(self, argument: str, got: object, expected: str, hint: str = "") -> None:
        self.argument = argument
        text = f"{argument}: expected {expected}, got {_short(got)}"
        super().__init__(f"{text}. {hint}" if hint else text)


class MissingCapability(ScoretkError, TypeError):
    """What is needed is not offered by a field and cannot be derived from what it offers.

    Args:
        field: What the message calls the field.
        offers: The capabilities that it offers.
        needs: The capabilities that are needed.
        bridge: What would help, a sentence.
    """

    def __init__(
        self, field: str, offers: Iterable[str], needs: Iterable[str], bridge: str
    ) -> None:
        self.offers, self.needs = frozenset(offers), frozenset(needs)
        missing = self.needs - self.offers
        if missing:
            lacks = f"{field} offers {_listing(self.offers)}, but {_listing(missing)} is needed"
        else:
            lacks = f"{field} does not serve here, although it offers {_listing(self.needs)}"
        super().__init__(f"{lacks}. {bridge}")


class SingularConversion(ScoretkError, ArithmeticError):
    """One of data, noise, score, velocity and v does not determine another at this time."""


class UnknownArgument(ScoretkError, TypeError):
    """A function has no argument of this name.

    Args:
        function: What the message calls the function.
        name: The name given.
        known: The names that it has.
        hint: What is meant, or what else takes it; "" where that is not known.
    """

    def __init__(self, function: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.name, self.known = name, list(known)
        takes = f"It takes {', '.join(self.known) or 'nothing'}"
        said = f"{hint}. {takes}" if hint and not hint.endswith("?") else f"{hint} {takes}".strip()
        super().__init__(f"{function} has no argument {name!r}. {said}")


class UnknownName(ScoretkError, LookupError):
    """No model, solver, method or option has this name.

    Args:
        kind: What the name is of, such as "solver".
        name: The name asked for.
        known: The names that there are.
        hint: What to do, in place of the nearest known name.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.name, self.known = name, sorted(known)
        instead = f". {hint}" if hint else near_match(name, self.known)
        super().__init__(f"unknown {kind} {name!r}{instead}. Known: {_some_of(name, self.known)}")


class AmbiguousName(ScoretkError, LookupError):
    """A short name that several distributions register.

    Args:
        name: The short name.
        ids: The full ids that it may mean.
    """

    def __init__(self, name: str, ids: Iterable[str]) -> None:
        self.name, self.ids = name, sorted(ids)
        super().__init__(
            f"{name!r} is claimed by several plugins: {', '.join(self.ids)}. Ask for one by its "
            f"full id"
        )


class BrokenPlugin(ScoretkError, RuntimeError):
    """A plugin that was asked for failed; the message has the cause and what to do."""


class MissingDependency(ScoretkError, ImportError):
    """An optional package is needed for what was asked.

    Args:
        package: The name of the package.
        extra: The extra of scoretk that installs it.
        purpose: What needs it.
        cause: What is wrong with it, where it is installed.
    """

    def __init__(self, package: str, extra: str, purpose: str, cause: str = "") -> None:
        named = f"{package!r}, {cause}" if cause else repr(package)
        super().__init__(f"{purpose} needs {named}: pip install 'scoretk[{extra}]'")


class CheckpointError(ScoretkError, RuntimeError):
    """A checkpoint is damaged, truncated, of another run, or cannot be written.

    The file is left as it was.
    """


class RankFailure(ScoretkError, RuntimeError):
    """A process of a job hangs, has ended, or cannot be reached by the others."""


class StoreError(ScoretkError, RuntimeError):
    """A store of draws cannot be written or read, is damaged, or is another run's.

    What was written before stays readable.
    """


class Busy(ScoretkError, RuntimeError):
    """Another job writes to the same path at this time."""


class FitFailure(ScoretkError, RuntimeError):
    """Loss or gradient became NaN or infinite in training.

    Attributes:
        step: The step at which it did.
        weights: The weights of the step before.
    """

    def __init__(self, step: int, weights: dict[str, Any]) -> None:
        self.step, self.weights = step, weights
        super().__init__(
            f"the loss or its gradient is not finite at step {step}; the weights of the step "
            "before are kept. Try a lower learning rate, or look for extreme values in the data"
        )


class OutputExists(ScoretkError, FileExistsError):
    """An output file exists and overwriting was not asked for."""


class ChainFailure(ScoretkError, RuntimeError):
    """Chains failed and `on_failure="raise"` was asked for.

    Attributes:
        chains: The ids of the chains that failed.
        status: Their `Status` codes.
        failed_at: The steps at which they failed.
    """

    def __init__(self, chains: list[int], status: list[int], failed_at: list[int]) -> None:
        self.chains, self.status, self.failed_at = chains, status, failed_at
        shown = ", ".join(
            f"chain {c}: {Status(s).name if s in Status._value2member_map_ else s} at step {f}"
            for c, s, f in list(zip(chains, status, failed_at, strict=True))[:5]
        )
        more = f", and {len(chains) - 5} more" if len(chains) > 5 else ""
        super().__init__(
            f"{len(chains)} chain(s) failed ({shown}{more}). on_failure='flag' returns all the "
            f"others"
        )


def near_match(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'mala'?)"`, or nothing where no known name is near."""
    near = get_close_matches(str(name).lower(), {k.lower(): k for k in known}, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _some_of(name: str, known: list[str]) -> str:
    """All the names where they are few, else those that are nearest to the one asked for."""
    if len(known) <= MOST_NAMES:
        return ", ".join(known) or "none"
    near = get_close_matches(str(name).lower(), known, n=MOST_NAMES // 2, cutoff=0.0)
    return f"{', '.join(sorted(near))} and {len(known) - len(near)} more"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def printable(text: object, keep: str = "") -> str:
    r"""A text with what would control a terminal, or cannot be encoded, as escapes.

    Args:
        text: Anything, by its `str`.
        keep: Characters to leave as they are, such as "\n".
    """
    return "".join(
        c if c in keep or category(c) not in _UNPRINTABLE else c.encode("unicode_escape").decode()
        for c in str(text)
    )


_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Control and format characters (escape sequences, marks of the direction of writing), surrogates,
line separators.
"""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, or its type where none does."""
    lines = str(error).splitlines()
    return next((line for line in lines if line.strip()), type(error).__name__)


def _short(value: object) -> str:
    """How a message shows a value: an array by its shape, a text by both ends, all else by the beginning of its repr."""
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            return _cut(
                f"{type(value).__name__} of shape {tuple(shape)}, {getattr(value, 'dtype', '')}",
                SHOWN,
            )
        return _cut(_REPR.repr(value), SHOWN)
    # An integer of 5000 digits, or an object whose repr fails: the message must not.
    except Exception:  # noqa: BLE001
        return f"an object of type {type(value).__name__}"


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
