"""A context in which plugin code runs: afterwards the process is as it was before.

Put back, where changed: the random generators of Python, numpy and torch; torch's default dtype and
device, gradient mode, number of threads, deterministic and backend flags; numpy's handling of
errors; the filters of warnings, the root logger, signal handlers, the environment, the working
directory, the hooks and streams of `sys`. Entries that a plugin adds to `sys.path` stay, behind
those that were there, as it may import from them later. What is written to standard output goes to
standard error, from Python and from C alike, so that output which a program reads holds nothing
else.

torch and numpy are not imported here. Where one is loaded it is guarded; where the plugin imports
it, it is guarded from the end of its import on.

What a process cannot undo is not contained: threads that were started, functions that were
replaced, `os._exit`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.abc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["Interrupts", "contained", "outside"]

Restore = Callable[[], object]
SIGNALS = [s for s in signal.valid_signals() if s < 32] if os.name == "posix" else []
"""The signals with a name. Two of them cannot be handled: their handler never changes."""


@contextmanager
def contained() -> Iterator[Interrupts]:
    """Run the code of a plugin, and put back what it changes.

    Yields:
        What tells an interrupt by the user from one that the code raised by itself.
    """
    with Interrupts() as interrupts, _process_kept(), _STREAMS.redirected():
        yield interrupts


class Interrupts:
    """Listens for Ctrl-C.

    Attributes:
        pressed: Whether a signal came, so that a `KeyboardInterrupt` is not the code's own.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other is interrupted
            before = signal.getsignal(signal.SIGINT)
            if callable(before):

                def note(number: int, frame: Any) -> Any:
                    self.pressed = True
                    return before(number, frame)

                self._before = before
                signal.signal(signal.SIGINT, note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


@contextmanager
def _process_kept() -> Iterator[None]:
    """Put back what belongs to this process, in the reverse order in which it was recorded."""
    with contextlib.ExitStack() as kept:
        for keep in _KEPT:
            kept.callback(keep())
        for name in filter(_is_loaded, _GUARDED):
            kept.callback(_GUARDED[name](sys.modules[name]))
        watch = _Watch(kept)
        sys.meta_path.insert(0, watch)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(watch)


def _keep_random() -> Restore:
    state = random.getstate()
    return lambda: random.getstate() == state or random.setstate(state)


def _keep_warnings() -> Restore:
    filters, show = list(warnings.filters), warnings.showwarning

    def restore() -> None:
        warnings.showwarning = show
        if list(warnings.filters) != filters:
            with warnings.catch_warnings():  # leaving it tells Python that filters have changed
                pass
            warnings.filters[:] = filters  # type: ignore[index]
            with warnings.catch_warnings():
                pass

    return restore


def _keep_logging() -> Restore:
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable

    def restore() -> None:
        root.handlers[:] = handlers
        if root.level != level:
            root.setLevel(level)
        if root.manager.disable != disabled:
            logging.disable(disabled)

    return restore


def _keep_signals() -> Restore:
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore


def _keep_environment() -> Restore:
    before = dict(os.environ)

    def restore() -> None:
        now = dict(os.environ)
        for name in now.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if now.get(name) != value})

    return restore


def _keep_folder() -> Restore:
    try:
        before = os.getcwd()
    except OSError:  # the folder has been removed
        return lambda: None

    def restore() -> None:
        try:
            moved = os.getcwd() != before
        except OSError:
            moved = True
        if moved:
            with contextlib.suppress(OSError):  # the folder has been removed
                os.chdir(before)

    return restore


def _keep_system() -> Restore:
    names = ("stdin", "stdout", "stderr", "excepthook", "displayhook", "dont_write_bytecode")
    before = {name: getattr(sys, name) for name in names}
    path, argv, recursion = list(sys.path), list(sys.argv), sys.getrecursionlimit()

    def restore() -> None:
        for name, value in before.items():
            setattr(sys, name, value)
        sys.path[:] = path + [entry for entry in sys.path if entry not in path]
        sys.argv[:] = argv
        sys.setrecursionlimit(recursion)

    return restore


_KEPT = (
    _keep_random,
    _keep_warnings,
    _keep_logging,
    _keep_signals,
    _keep_environment,
    _keep_folder,
    _keep_system,
)


def _guard_numpy(numpy: Any) -> Restore:
    generator, errors = numpy.random.get_state(), numpy.geterr()
    options = numpy.get_printoptions()

    def restore() -> None:
        if any(
            (a != b).any() if hasattr(a, "any") else a != b
            for a, b in _pairs(numpy.random.get_state(), generator)
        ):
            numpy.random.set_state(generator)
        numpy.seterr(**errors)
        if numpy.get_printoptions() != options:
            numpy.set_printoptions(**options)

    return restore


def _pairs(now: Any, before: Any) -> list[tuple[Any, Any]]:
    return list(zip(now, before, strict=True))


def _guard_torch(torch: Any) -> Restore:
    """Record torch's generators and process-wide settings; how to put them back."""
    generator = torch.get_rng_state()
    accelerators = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    device = torch.get_default_device()
    printing = dict(vars(torch._tensor_str.PRINT_OPTS))
    settings = [(get, put, get()) for get, put in _torch_settings(torch)]

    def restore() -> None:
        for get, put, before in settings:
            if get() != before:
                put(before)
        if torch.get_default_device() != device:
            torch.set_default_device(None)
            if torch.get_default_device() != device:
                torch.set_default_device(device)
        if not torch.equal(torch.get_rng_state(), generator):
            torch.set_rng_state(generator)
        if accelerators is not None:
            torch.cuda.set_rng_state_all(accelerators)
        for name, value in printing.items():
            setattr(torch._tensor_str.PRINT_OPTS, name, value)

    return restore


def _torch_settings(torch: Any) -> list[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How each setting is read and put back."""

    def flushes() -> bool:
        return bool(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1 == 0)

    def deterministic() -> tuple[bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)

    return [
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (
            deterministic,
            lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
        ),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (flushes, torch.set_flush_denormal),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (torch.is_warn_always_enabled, torch.set_warn_always),
        attribute(torch.backends.cudnn, "benchmark"),
        attribute(torch.backends.cudnn, "deterministic"),
        attribute(torch.backends.cudnn, "enabled"),
        attribute(torch.backends.mkldnn, "enabled"),
    ]


_GUARDED: dict[str, Callable[[Any], Restore]] = {"numpy": _guard_numpy, "torch": _guard_torch}


def _is_loaded(name: str) -> bool:
    """Whether a module is loaded, and not in the middle of its import."""
    module = sys.modules.get(name)
    return module is not None and not getattr(
        getattr(module, "__spec__", None), "_initializing", False
    )


class _Watch(importlib.abc.MetaPathFinder):
    """Guards torch and numpy from the end of their import on."""

    def __init__(self, kept: contextlib.ExitStack) -> None:
        self.kept = kept

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _GUARDED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Noting(spec.loader, self.kept)
                return spec
        return None


class _Noting(importlib.abc.Loader):
    """A module's own loader, after which the module is guarded.

    The module's attributes show its own loader, as they would without this.
    """

    def __init__(self, loader: Any, kept: contextlib.ExitStack) -> None:
        self.loader, self.kept = loader, kept

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.kept.callback(_GUARDED[module.__name__](module))


class _Streams:
    """Standard output as standard error, while any thread is within `contained`."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.RLock(), 0
        self.saved: int | None = None
        self.output: Any = None

    @contextmanager
    def redirected(self) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self._turn()
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    self._turn_back()

    def _turn(self) -> None:
        self.output = sys.stdout
        self.saved = None
        _flush(self.output)
        with contextlib.suppress(OSError):  # a process may have closed them
            self.saved = os.dup(1)
            os.dup2(2, 1)
        sys.stdout = sys.stderr

    def _turn_back(self) -> None:
        _flush(sys.stdout, self.output)
        if self.saved is not None:
            os.dup2(self.saved, 1)
            os.close(self.saved)
        sys.stdout, self.output, self.saved = self.output, None, None


_STREAMS = _Streams()


def outside(function: Callable[..., Any]) -> Callable[..., Any]:
    """The caller's function, to be called by a plugin: meanwhile standard output is the real one.

    Args:
        function: Such as the `report` of a training.

    Returns:
        A function of the same arguments.
    """

    def called(*args: Any, **kwargs: Any) -> Any:
        with _STREAMS.lock:
            within = _STREAMS.inside > 0
            if within:
                _STREAMS._turn_back()
        try:
            return function(*args, **kwargs)
        finally:
            with _STREAMS.lock:
                if within:
                    _STREAMS._turn()

    return called


def _flush(*streams: Any) -> None:
    """Write out what Python's streams and C's still hold, so that it goes where it was meant to."""
    for stream in streams:
        with contextlib.suppress(Exception):  # whatever a plugin has put there
            stream.flush()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)
