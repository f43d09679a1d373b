"""`torch.compile` for functions that many different runs share, and for parts of a step.

A step that cannot be compiled whole, because what it does next depends on data, has *parts* that
can: functions of a field and of tensors. They are marked by `part`, and what a step does over and
over goes through `iterate`. Both are plain calls until a run says who compiles them
(`parts_compiled_by`).
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from threading import Lock
from traceback import walk_tb
from types import CodeType, FunctionType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental import _config as symbols
from torch.utils._pytree import tree_map

from scoretk.core.columns import Turned, apart, tell_the_compiler
from scoretk.errors import ScoretkError

LOOPS = all(find_spec(f"torch._higher_order_ops.{name}") for name in ("scan", "while_loop"))
"""Whether this torch has its prototypes of loops within a graph."""
if LOOPS:
    from torch._higher_order_ops.scan import scan
    from torch._higher_order_ops.while_loop import while_loop

__all__ = [
    "LOOPS",
    "PartCompiler",
    "Uncompilable",
    "Unsettled",
    "any_length",
    "apart",
    "as_a_loop",
    "compiled",
    "iterate",
    "over_rows",
    "part",
    "parts_compiled_by",
]

KEPT = 64
UNROLLED = 12
"""The most repetitions that a graph holds one after another; more are a loop in it."""
AGAIN = 3
"""How often a function is compiled in one run: what it reads of the model's may have changed since
the last, and one step may be a variant of its own, but what changes at each call is not worth it.
"""
LIMIT_HIT = "FailOnRecompileLimitHit"  # by name: importing its home takes a second
COMPILER = ("torch._dynamo", "torch._functorch", "torch._inductor", "torch._subclasses", "torch.fx")
"""The modules of the compiler's own errors. What a model raises while it is traced becomes one of
them too.
"""
TRACER = "torch._dynamo.convert_frame"
"""The module in which functions are compiled: what is raised in it has not begun to run."""
OWN = (str(Path(__file__).parent), *torch.__path__)
STANDARD, INSTALLED = (get_path(name) for name in ("stdlib", "purelib"))
LIMIT_SAID = "torch._dynamo hit config."
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')

T = TypeVar("T")


class _Copy(NamedTuple):
    """A function with a code of its own, `self` among its arguments, and what compiles it."""

    code: CodeType
    compiled: Callable[..., Any]


_copies: OrderedDict[Hashable, _Copy] = OrderedDict()
_replacements: dict[tuple[Any, str], tuple[Any, int]] = {}
_replacing = Lock()


class Uncompilable(ScoretkError, RuntimeError):
    """The compiler cannot take a function: the message says why, and at which line of user code."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"{_place(error)}: {_reason(error)}")


class Unsettled(Uncompilable):
    """A function is compiled anew at every call, as something that it reads changes at every call."""

    def __init__(self) -> None:
        changes = "a counter, or a list that grows"
        super().__init__(RuntimeError(f"the model changes at each call what it reads ({changes})"))


def compiled(
    function: Any, key: Hashable, *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """A function or a bound method compiled in one graph.

    It is for the shapes that it meets first, but for axes that `any_length` has marked.

    The compiler caches by code object, and takes a small number of variants of each. So each kind
    of run has its own copy of the code: equal runs find their compiled function again, and
    different ones do not use up each other's limit. A kind that reaches the limit all the same is
    compiled anew, once. The last 64 kinds are remembered.

    Args:
        function: A function or a bound method.
        key: What tells one kind of run from another.
        options: Those of torch's compiler, by its own names, as far as this torch has them.

    Returns:
        A function of the same arguments. Where the compiler fails, calling it raises
        `Uncompilable`; where the model fails while it is traced, `Uncompilable` as well, and the
        function itself raises the model's own error. Where it has been compiled anew more than
        `AGAIN` times, calling it raises `Unsettled`.
    """
    full_key = (getattr(function, "__func__", function), key)
    made, afresh, is_new = _compile(function, full_key, options), False, True
    graphs, times = _graphs(full_key), 0

    def run(*arguments: Any, **named: Any) -> Any:
        nonlocal made, afresh, is_new, graphs, times
        try:
            with _with_saved_tensors(), _traced() if is_new else nullcontext():
                answer = made(*arguments, **named)
        except Exception as error:
            if type(error).__name__ == LIMIT_HIT and not afresh:
                _copies.pop(full_key, None)
                made, afresh, graphs = _compile(function, full_key, options), True, 0
                return run(*arguments, **named)
            if not _of_the_compiler(error):
                raise
            if not is_new:  # compiled again, as something has changed
                is_new = True
                return run(*arguments, **named)
            raise Uncompilable(error) from error
        before, graphs = graphs, _graphs(full_key)
        is_new = graphs > before
        times += is_new
        if times > AGAIN:
            raise Unsettled
        return answer

    return run


def _graphs(key: Hashable) -> int:
    """How many graphs the compiler has for functions of this kind."""
    count = getattr(torch._C._dynamo.eval_frame, "_debug_get_cache_entry_list", None)
    known = _copies.get(key)  # another thread may take it out and put it back
    return 0 if count is None or known is None else len(count(known.code))


@contextmanager
def _traced() -> Iterator[None]:
    """A context for a call that the compiler traces.

    - Numbers and arrays of NumPy's that a field has from outside are guarded as they are. Torch 2.13
      takes those that it meets under a gradient for tensors of that gradient, and then fails at
      its own guard.
    - The compiler does not write on the screen that a kind has reached the limit on variants, as it
      is compiled anew.
    """
    from torch._numpy import _util

    log, known = logging.getLogger(TRACER), "_try_convert_to_tensor"
    log.addFilter(_is_not_of_the_limit)
    try:
        with _replaced(_util, known, lambda own: partial(_from_outside, own)):
            yield
    finally:
        log.removeFilter(_is_not_of_the_limit)


@contextmanager
def _with_saved_tensors() -> Iterator[None]:
    """A context that leaves the hooks of saved tensors as usable as they were.

    A trace that fails under a gradient may leave them off for good in torch 2.13, so that there
    could be no `torch.utils.checkpoint` any more.
    """
    autograd: Any = torch._C._autograd
    can_be = autograd._saved_tensors_hooks_is_enabled()
    try:
        yield
    finally:
        if can_be and not autograd._saved_tensors_hooks_is_enabled():
            autograd._saved_tensors_hooks_enable()


def _is_not_of_the_limit(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(LIMIT_SAID)


def _from_outside(own: Any, value: Any) -> Any:
    """A tensor of NumPy's values, outside all gradients that are being traced."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        return own(value)


def _compile(
    function: Any, key: Hashable, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    plain = getattr(function, "__func__", function)
    known = _copies.pop(key, None)
    made = _copies[key] = known or _copy(plain, options)
    while len(_copies) > KEPT:
        _copies.popitem(last=False)
    return made.compiled if plain is function else partial(made.compiled, function.__self__)


def _copy(plain: Any, options: dict[str, Any] | None) -> _Copy:
    """A copy of a function, to be compiled when it is called."""
    code = plain.__code__.replace()
    own = FunctionType(
        code, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    own.__kwdefaults__ = plain.__kwdefaults__
    if options is not None:  # each torch has its own
        options = {name: v for name, v in options.items() if hasattr(torch._inductor.config, name)}
    return _Copy(code, torch.compile(own, fullgraph=True, dynamic=False, options=options))


def _of_the_compiler(error: Exception) -> bool:
    """Whether it is the compiler that failed, if only on an assertion of its own."""
    kinds = type(error).__mro__
    places = (frame.f_globals.get("__name__") for frame, _ in walk_tb(error.__traceback__))
    return any(kind.__module__.startswith(COMPILER) for kind in kinds) or TRACER in places


def any_length(x: Tensor, *axes: int) -> Tensor:
    """The tensor, whose axes a function that is compiled for it may then have of any length.

    One graph serves all lengths but 1, unless what is compiled needs to know them. Within
    `as_a_loop` that holds of each axis by itself.
    """
    torch._dynamo.maybe_mark_dynamic(x, axes)
    return x


@contextmanager
def as_a_loop() -> Iterator[None]:
    """A context in which functions are compiled to graphs that hold loops of any length.

    - Axes that happen to be equally long need not be so in another call.
    - An attribute of a tensor that a field has from outside, such as `.T`, is read within the loop
      that asks for it. Torch 2.13 reads it before all loops, but keeps a value of it that is under
      the loop's gradient.
    - A tensor of one float64 is a tensor and nothing else. Torch traces a graph first as if it
      could be a Python number, and then once more, which is a fifth of the time to compile.
    - The memory that a loop begins with is for no other values after it. A loop of no turn hands
      back what it was given, in the same memory, which torch 2.13 takes for two that are free at
      different times.
    """
    from torch._dynamo.variables.misc import GetAttrVariable
    from torch._inductor import ir
    from torch._subclasses import fake_tensor

    read, asked = "create_getattr_proxy", "_is_plain_tensor"
    tell_the_compiler()
    with (
        symbols.patch(use_duck_shape=False),  # type: ignore[attr-defined]
        _replaced(GetAttrVariable, read, lambda _: staticmethod(_read_here)),
        _replaced(fake_tensor, asked, lambda own: partial(_is_plain, own)),
        _replaced(ir.WhileLoop, "create", lambda own: classmethod(partial(_kept_apart, own))),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """A context in which an attribute is replaced by `by(attribute)`, until the last thread leaves.

    An attribute that is not there, as in another torch, is not replaced.
    """
    with _replacing:
        own, inside = _replacements.get((owner, name), (vars(owner).get(name), 0))
        if own is not None:
            _replacements[owner, name] = own, inside + 1
            setattr(owner, name, by(own))
    try:
        yield
    finally:
        with _replacing:
            own, inside = _replacements.pop((owner, name), (None, 0))
            if inside > 1:
                _replacements[owner, name] = own, inside - 1
            elif own is not None:
                setattr(owner, name, own)


def _read_here(tensor: Any, name: str) -> Any:
    """The attribute of a tensor in the graph that is being traced, and not in that of the tensor."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    graph = InstructionTranslator.current_tx().output.current_tracer
    if tensor.tracer is graph:
        return getattr(tensor, name)
    return graph.create_proxy("call_function", getattr, (tensor, name), {})


def _kept_apart(own: Any, kind: Any, *arguments: Any, **named: Any) -> Any:
    """A loop in a graph, none of whose memory before and after it is given to other values."""
    from torch._inductor.virtualized import V

    after = own.__func__(kind, *arguments, **named)
    loop = next(made for made in reversed(V.graph.operations) if isinstance(made, kind))
    for value in [*after, *loop.carried_inputs]:
        V.graph.never_reuse_buffers.add(value.get_name())
    return after


def _is_plain(own: Any, x: Tensor) -> bool:
    return not (x.dtype is torch.float64 and x.dim() == 0) and bool(own(x))


class PartCompiler(Protocol):
    """Who compiles the parts of the steps of a run."""

    def serves(self, field: Any) -> bool:
        """Whether parts with this field are of the run's steps.

        Those of a field inside the run's own are not: they are within a part, or called on their
        own.
        """

    def call(self, function: Callable[..., T], field: Any, *rows: Any, **same: Any) -> T:
        """As `part`."""

    def iterate(
        self, body: Callable[..., T], field: Any, carry: T, times: int, *rows: Any, **same: Any
    ) -> T:
        """As `iterate`."""


_PARTS: ContextVar[PartCompiler | None] = ContextVar("parts", default=None)


@contextmanager
def parts_compiled_by(compiler: PartCompiler | None) -> Iterator[None]:
    """A context in which this compiles the parts of steps; with None they are plain calls."""
    token = _PARTS.set(compiler)
    try:
        yield
    finally:
        _PARTS.reset(token)


def _compiler_of(field: Any) -> PartCompiler | None:
    if torch.compiler.is_compiling():  # the part is inside a larger graph
        return None
    compiler = _PARTS.get()
    return compiler if compiler is not None and compiler.serves(field) else None


def part(function: Callable[..., T]) -> Callable[..., T]:
    """Mark a function `(field, *rows, **same)` as one that can be compiled on its own.

    It does not synchronise, and what it does depends on shapes and settings alone. What is given by
    position are tensors with the chains on axis 0, tensors without an axis, numbers, and tuples of
    these, and so is what it returns, dicts among it; the rows are independent of each other. What
    is given by name is the same for all chains: tensors, and settings.
    """

    @wraps(function)
    def run(field: Any, *rows: Any, **same: Any) -> T:
        compiler = _compiler_of(field)
        if compiler is None:
            return function(field, *rows, **same)
        return compiler.call(function, field, *rows, **same)

    return run


def iterate(
    body: Callable[..., T], field: Any, carry: T, times: int | Tensor, *rows: Any, **same: Any
) -> T:
    """`carry <- body(field, carry, *rows, **same)`, so many times.

    The one place for what a step does over and over, so that whoever compiles it may cut it. Within
    a graph it is a loop of the graph's own where the number of times is a tensor, or above
    `UNROLLED` on the CPU.

    Args:
        body: as what `part` marks.
        field: the field.
        carry: a tuple of tensors with the chains on axis 0.
        times: how often; a tensor `()` of int64 only within a graph.
        rows: the further arguments of the body, as in `part`.
        same: the further arguments of the body, as in `part`.
    """
    compiler = _compiler_of(field)
    if compiler is not None:
        assert isinstance(times, int)
        return compiler.iterate(body, field, carry, times, *rows, **same)
    if isinstance(times, Tensor) or (torch.compiler.is_compiling() and _is_long(carry, times)):
        looped: T = _loop(body, field, carry, times, rows, same)
        return looped
    for _ in range(times):
        carry = body(field, carry, *rows, **same)
    return carry


def _is_long(carry: Any, times: int) -> bool:
    return LOOPS and times > UNROLLED and all(leaf.device.type == "cpu" for leaf in carry)


def _loop(
    body: Callable[..., Any],
    field: Any,
    carry: Any,
    times: int | Tensor,
    rows: tuple[Any, ...],
    same: dict[str, Any],
) -> Any:
    """As `iterate`, as a loop in the graph, whose length it reads when it runs."""

    def goes_on(done: Tensor, *_: Tensor) -> Tensor:
        return done < times

    def once(done: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        return done + 1, *carried.carried(
            body(field, carried.back(before), *given.back(rows), **same)
        )

    none = torch.zeros((), dtype=torch.int64, device=carry[0].device)
    carried, given = Turned(carry), Turned(rows)
    start, rows = carried.carried(carry), given.carried(rows)
    _, *after = while_loop(goes_on, once, (none, *start))
    return carried.back(tuple(after))


def over_rows(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any) -> Any:
    """`carry, out_k = body(carry, rows_k)` for each k: the last carry, and what came out.

    Within a graph it is a loop of the graph's own, which holds the body once.

    Args:
        body: A function of a tuple of tensors, and of a tuple of those of one step. Both that it
            returns lie in memory of their own (`apart`), the carry as it was.
        carry: A tuple of tensors.
        rows: A tuple of tensors whose axis 0 are the steps, at least two of them.

    Returns:
        The carry after the last step, and the nest of what came out, a step a row.
    """
    if torch.compiler.is_compiling():
        return scan(body, carry, rows)
    outs = []
    for k in range(len(rows[0])):
        carry, out = body(carry, tuple(row[k] for row in rows))
        outs.append(out)
    return carry, tree_map(lambda *values: torch.stack(values), *outs)


def _place(error: Exception) -> str:
    """The last line of the user's among those that were being traced, else the last of any."""
    known = getattr(error, "real_stack", None) or ()
    frames: list[Any] = [(f.filename, f.lineno, f.name) for f in known] or FRAME.findall(str(error))
    theirs = [frame for frame in frames if not _ours(str(frame[0]))]
    if not frames:
        return "the compiler"
    file, line, name = (theirs or frames)[-1]
    return f"{file}:{line} in {name}"


def _ours(file: str) -> bool:
    """Whether this file is torch's, this package's, or Python's own."""
    return file.startswith(OWN) or (file.startswith(STANDARD) and not file.startswith(INSTALLED))


def _reason(error: Exception) -> str:
    """The first line of the compiler's message that is not empty, with the next where it announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return (first or type(error).__name__)[:200]
