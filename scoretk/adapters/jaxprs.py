"""Functions of JAX as they are at one moment: programs that have their own constants.

What a function closes over, and the globals that it reads, `jax.jit` takes at the first call of each
shape and dtype: a function whose data are changed between two calls answers by the old data or by
the new, by the number of its rows. Here a function is traced once, into a jaxpr with copies of all
its constants, and the jaxpr is what is mapped over rows, differentiated and compiled.

JAX 0.10 keeps an array of numpy in the precision in which it has met it first, also when
`jax.enable_x64` is another since: float64 data are rounded to float32 without a word, or the
function fails. Its caches are cleared where a trace shows this, and after a trace in a precision
that is not the process's own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoretk.core.dependencies import required
from scoretk.core.identity import stable_text

__all__ = ["Program", "import_jax", "program"]


def import_jax(purpose: str = "A function of JAX") -> Any:
    """The module jax.

    Raises:
        MissingDependency: It is not installed.
    """
    return required("jax", "jax", purpose)


@dataclass(frozen=True, eq=False)
class Program:
    """A function of one array, traced.

    Attributes:
        text: Its operations, with the numbers among them.
        constants: Its arrays.
        run: Takes an array of JAX, of the shape and dtype that it was traced for, to the list of
            the values of the function.
    """

    text: str
    constants: tuple[Any, ...]
    run: Callable[[Any], list[Any]]


def program(function: Callable[[Any], Any], point: Any, wide: bool) -> Program:
    """A function of one array as it is now.

    Args:
        function: The function; what it raises is raised.
        point: What has the shape and dtype of its argument.
        wide: Whether it is traced with float64.
    """
    try:
        made, dtypes = _trace(function, point, wide)
        mixed = not dtypes.isdisjoint(_NARROW if wide else _WIDE)
    except Exception:  # noqa: BLE001 (whatever a user's function raises: the same again, or mixed)
        mixed = True
    if mixed:
        forget()
        made, dtypes = _trace(function, point, wide)
    if wide and dtypes:
        forget()
    return made


def forget() -> None:
    """Clear what JAX has traced, and the arrays in it, which it keeps as long as anything does."""
    import_jax().clear_caches()
    gc.collect()


_NARROW = frozenset(map(np.dtype, ("float32", "int32", "uint32", "complex64")))
_WIDE = frozenset(map(np.dtype, ("float64", "int64", "uint64", "complex128")))


def _trace(function: Callable[[Any], Any], point: Any, wide: bool) -> tuple[Program, set[Any]]:
    """A program, and the dtypes of those of its constants that are arrays of numpy."""
    jax, core = import_jax(), required("jax.extend.core", "jax", "A function of JAX")
    constants: list[Any] = []
    dtypes: set[Any] = set()

    def own(constant: Any) -> Any:
        if isinstance(constant, np.ndarray | np.generic):
            dtypes.add(constant.dtype)
            with jax.enable_x64(True):  # as it was traced, whatever its precision
                constant = jax.numpy.array(np.array(constant))
        constants.append(constant)
        return constant

    def held(part: Any) -> Any:
        """A part of a jaxpr with constants of its own, also in the functions that it calls."""
        if isinstance(part, core.ClosedJaxpr):
            return part.replace(jaxpr=held(part.jaxpr), consts=[own(c) for c in part.consts])
        if isinstance(part, core.Jaxpr):
            calls = [
                eqn.replace(params={name: held(p) for name, p in eqn.params.items()})
                for eqn in part.eqns
            ]
            return part.replace(eqns=calls)
        return type(part)(map(held, part)) if type(part) in (tuple, list) else part

    with jax.enable_x64(wide):
        jaxpr = held(jax.make_jaxpr(function)(point))
    run = core.jaxpr_as_fun(jaxpr)
    return Program(stable_text(str(jaxpr)), tuple(constants), run), dtypes
