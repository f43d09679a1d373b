"""A pretend accelerator: tensors that say they are on another device, and compute on the CPU.

`pretend()` registers torch's own device for backends from outside (PrivateUse1) under the name "pretend". A tensor there is a
wrapper about a CPU tensor; a mode below autograd (`Watching`) sees every operation on it. It

- computes on the wrapped tensors, so that results are those of the CPU to the bit;
- refuses tensors of two devices in one operation as CUDA does: a 0-d tensor of the CPU may steer an elementwise operation, and
  an index may come from the CPU; all else raises;
- refuses to be sent to other processes, as a device for which the process group has no backend;
- without `float64`, refuses float64 and complex128 as MPS does;
- writes a `Ledger`: kernels (operations that are no views), waits (where the host stands still until the device has caught up: a
  number read, a copy in either direction, a shape that depends on values), and *strays*, operations on CPU tensors with a row
  a chain, all with the line of the package that asked.

Copies to the host in a stream of their own (`Stream`) are made late: when its event is waited for, or another stream waits
for it. So who reads the host's memory too early finds what was there before.

`watch()` keeps the same ledger for a real device, and for the CPU. Not pretended: steps in streams of their own, memory, the
device's own rounding, and its compiler.
"""

import functools
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
PACKAGE = f"{Path(__file__).parents[1] / 'scoretk'}/"


def _words(text):
    return frozenset(text.split())


# Elementwise operations, whose kernels take a 0-d tensor of the CPU as a number.
TAKE_NUMBERS = _words(
    """
    add sub rsub mul div true_divide floor_divide remainder fmod pow float_power atan2 hypot copysign
    nextafter maximum minimum fmax fmin eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and
    bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __lshift__
    __rshift__ where copy fill masked_fill logaddexp logaddexp2 xlogy heaviside addcmul addcdiv clamp
    clamp_min clamp_max index_put _index_put_impl sigmoid_backward tanh_backward threshold_backward
    """
)
TAKE_INDICES = frozenset(("index", "index_put", "_index_put_impl"))
# What starts no kernel: views, what only allocates, questions about a shape.
NO_KERNEL = _words(
    """
    view _unsafe_view reshape _reshape_alias slice select unbind expand permute transpose t unsqueeze
    squeeze detach alias as_strided split split_with_sizes diagonal lift lift_fresh unflatten chunk
    narrow movedim empty empty_like new_empty empty_strided new_empty_strided is_same_size sym_size
    sym_stride sym_numel sym_storage_offset stride size set resize view_as_real view_as_complex unfold
    swapaxes squeeze_ unsqueeze_ t_ transpose_ real imag conj _conj resolve_conj resolve_neg
    _local_scalar_dense is_pinned
    """
)
WAITS = _words(
    """
    _local_scalar_dense nonzero masked_select _unique _unique2 unique_dim unique_consecutive equal
    is_nonzero
    """
)


_CPU = torch.device("cpu")
_PYTHONS_OWN = (
    *((torch, name) for name in ("tensor", "as_tensor", "asarray")),
    *((torch.Tensor, name) for name in ("new_tensor", "tolist")),
)


@dataclass
class Ledger:
    """What a device was asked.

    Kernels by operation, waits and strays by operation and line; `rows` is the number of chains by which strays are known (an odd
    one: nothing else may have it).
    """

    rows: int | None = None
    kernels: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    strays: Counter = field(default_factory=Counter)

    def clear(self):
        for counter in (self.kernels, self.waits, self.strays):
            counter.clear()


def asking(depth: int = 2) -> str:
    """The innermost lines of the package that led here."""
    found, frame = [], sys._getframe(1)
    while frame is not None and len(found) < depth:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            found.append(f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found) or "a test"


@functools.cache
def _place():
    return torch.device(NAME, 0)


class There(torch.Tensor):
    """A tensor on the pretend device: all that is known of it is in `held`, on the CPU."""

    __slots__ = ("held",)

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_place(),
        )

    def __init__(self, held):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    def record_stream(self, stream):
        """Nothing: memory that is asked for is kept until the copy is made."""

    def __repr__(self):
        return f"There({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: the pretend device is there within `pretend()` only")


class Stream:
    """What is still to be copied beside the steps."""

    def __init__(self):
        self.copies, self.lock = [], threading.Lock()

    def make(self):
        with self.lock:
            for to, held in self.copies:
                to.copy_(held)
            self.copies.clear()

    def wait_stream(self, other):
        other.make()

    def wait_event(self, event):
        event.stream.make()

    def record_event(self):
        return Event(self)


@dataclass(frozen=True)
class Event:
    """The end of what a stream was asked so far."""

    stream: Stream

    def synchronize(self):
        """The host waits: only that of the steps counts."""
        if threading.current_thread() is threading.main_thread() and _LEDGERS:
            _LEDGERS[-1].waits["event", asking()] += 1
        self.stream.make()


_STEPS = Stream()
_STREAMS = [_STEPS]
_LEDGERS: list[Ledger] = []


@contextmanager
def _stream(own):
    _STREAMS.append(own)
    try:
        yield
    finally:
        _STREAMS.pop()


@dataclass(frozen=True, slots=True)
class _Operation:
    """What is known of an operation of torch before it is seen."""

    name: str
    base: str
    starts: bool
    copies: bool
    indexes: bool
    may_wait: bool
    takes_numbers: bool
    writes: bool
    sends: bool


_OPERATIONS: dict[int, _Operation] = {}
"""By the id of torch's object, which lives as long as the process: its hash is a call of Python's."""


def _operation(func) -> _Operation:
    """`add_.Tensor` of an operation, `add`, in place or not, whether it starts a kernel, and so on."""
    name = func._schema.name.split("::")[1]
    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    copies, indexes = base in ("_to_copy", "copy"), base in TAKE_INDICES
    known = _Operation(
        name=f"{name}.{func._schema.overload_name}".rstrip("."),
        base=base,
        starts=base not in NO_KERNEL,
        copies=copies,
        indexes=indexes,
        may_wait=copies or indexes or base in WAITS or base == "repeat_interleave",
        takes_numbers=base in TAKE_NUMBERS,
        writes=func._schema.is_mutable,
        sends=func._schema.name.startswith("c10d::"),
    )
    return _OPERATIONS.setdefault(id(func), known)


def _beside(args, kwargs):
    """Whether a copy is one to the host that nobody waits for."""
    asked = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    return (
        asked
        and _STREAMS[-1] is not _STEPS
        and isinstance(args[1], There)
        and not isinstance(args[0], There)
    )


class Watching(TorchDispatchMode):
    """Keeps the ledger of one type of device, and carries out what is asked of the pretend one.

    A run makes tens of thousands of operations, and each is looked at: its arguments once.
    """

    def __init__(self, ledger: Ledger, kind: str, *, float64: bool = True):
        super().__init__()
        self.ledger, self.kind, self.float64 = ledger, kind, float64

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # its guard against the compiler costs as much as the rest

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = _OPERATIONS.get(id(func)) or _operation(func)
        there, here, kwargs = [], [], kwargs or {}
        given = self._given(args, there, here)
        if kwargs:
            named = dict(zip(kwargs, self._given(kwargs.values(), there, here), strict=True))
        else:
            named = kwargs
        if self.kind == NAME:
            if known.base == "copy" and _beside(args, kwargs):
                _STREAMS[-1].copies.append((args[0], args[1].held))
                return args[0]
            if there and known.sends:
                raise RuntimeError(f"No backend type associated with device type {NAME}")
            if there and here:
                _refuse_mixture(func, known, args, there, here)
            out = self._carried_out(func, known, args, given, named, there)
        else:
            out = func(*args, **kwargs)
        arrives = self._arrives(out)
        on_it = there or arrives
        if known.starts:
            if on_it:
                self.ledger.kernels[known.name] += 1
            elif here and self._is_of_chains((*here, out)):
                self.ledger.strays[known.name, asking()] += 1
        if on_it and known.may_wait and (waits := self._waits(known, args, there, arrives)):
            self.ledger.waits[waits, asking()] += 1
        return out

    def _given(self, values, there, here):
        """Arguments as the CPU takes them; the tensors among them, one deep in lists, are put where they are."""
        given = []
        for value in values:
            if isinstance(value, There):
                there.append(value)
                value = value.held
            elif isinstance(value, torch.Tensor):
                place = value.device.type
                if place == self.kind:
                    there.append(value)
                elif place == "cpu":
                    here.append(value)
            elif isinstance(value, list | tuple):
                value = self._given(value, there, here)
            given.append(value)
        return given

    def _arrives(self, out):
        """Whether some of what an operation has made is on the device."""
        if isinstance(out, torch.Tensor):
            return isinstance(out, There) or out.device.type == self.kind
        return isinstance(out, list | tuple) and any(map(self._arrives, out))

    def _is_of_chains(self, values):
        """Whether a tensor among them, or in a list among them, has a row a chain."""
        for value in values:
            if isinstance(value, torch.Tensor):
                if self.ledger.rows in value.shape:
                    return True
            elif isinstance(value, list | tuple) and self._is_of_chains(value):
                return True
        return False

    def _carried_out(self, func, known, args, given, named, there):
        """On the tensors that are held; what comes of it is wrapped where it belongs on the device."""
        belongs = bool(there)
        if named:
            if (asked := named.get("device")) is not None:
                belongs, named["device"] = _is_there(asked), _CPU
            if named.get("pin_memory"):
                named["pin_memory"] = False
        out = func(*given, **named)
        if known.base == "copy":
            belongs = isinstance(args[0], There)
        return self._wrapped(func, out, there) if belongs else out

    def _wrapped(self, func, value, there):
        """What is written in place is the tensor that it was."""
        if isinstance(value, torch.Tensor):
            for known in there:
                if known.held is value:
                    return known
            return self._arrived(func, value)
        if isinstance(value, list | tuple):
            return type(value)(self._wrapped(func, v, there) for v in value)
        return value

    def _arrived(self, func, value):
        if not self.float64 and value.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                f"{func}: cannot make {value.dtype} on the pretend device, which has no float64"
            )
        return There(value)

    def _waits(self, known, args, there, arrives):
        """What makes the host stand still in an operation, or ""."""
        if known.copies:
            source = args[1] if known.base == "copy" else args[0]
            leaves = source.device.type == self.kind
            return "" if leaves == arrives else "device to host" if leaves else "host to device"
        if not there:
            return ""
        if known.indexes:
            indices = [i for i in args[1] if isinstance(i, torch.Tensor)]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                return "mask as an index"
            return "host to device" if any(i.device.type != self.kind for i in indices) else ""
        return known.base


def _is_there(device) -> bool:
    return torch.device(device).type == NAME


def _refuse_mixture(func, known, args, there, here):
    """Raise as CUDA does where an operation gets tensors of both devices."""
    if known.copies:
        return
    if known.indexes and isinstance(args[0], There):
        here = [t for t in here if not any(t is i for i in args[1])]
    written = args[0] if args and isinstance(args[0], torch.Tensor) else None
    in_place = known.writes and not isinstance(written, There)
    if here and (in_place or not known.takes_numbers or any(t.ndim for t in here)):
        shown = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in (*there, *here))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got {shown} (at {asking()})"
        )


@contextmanager
def _made_there(watching: Watching):
    """What does not come as an operation: tensors made of Python's numbers, and those read back as a list.

    On a device torch makes such a tensor on the CPU and copies it, in one call, which waits.
    """
    kept = {(owner, name): getattr(owner, name) for owner, name in _PYTHONS_OWN}

    def from_numbers(original):
        def make(data, *args, **kwargs):
            asked = kwargs.get("device")
            if asked is None or not _is_there(asked):
                return original(data, *args, **kwargs)
            if isinstance(data, torch.Tensor):
                return data.to(asked, kwargs.get("dtype", data.dtype))
            wants = kwargs.pop("requires_grad", False)
            kwargs.pop("device")
            return original(data, *args, **kwargs).to(asked).requires_grad_(wants)

        return make

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        dtype, device = dtype or self.dtype, self.device if device is None else device
        return torch.tensor(data, dtype=dtype, device=device, requires_grad=requires_grad)

    def tolist(self):
        if not isinstance(self, There):
            return kept[torch.Tensor, "tolist"](self)
        watching.ledger.waits["tolist", asking()] += 1
        return self.held.tolist()

    try:
        for name in ("tensor", "as_tensor", "asarray"):
            setattr(torch, name, from_numbers(kept[torch, name]))
        torch.Tensor.new_tensor, torch.Tensor.tolist = new_tensor, tolist
        yield
    finally:
        for (owner, name), original in kept.items():
            setattr(owner, name, original)


class _Module:
    """What torch asks of a backend by name: from the registration on also beside work on the CPU."""

    Stream, Event, stream = Stream, Event, staticmethod(_stream)
    current_stream = staticmethod(lambda *_: _STREAMS[-1])
    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = set_rng_state = staticmethod(lambda *_, **__: None)
    get_rng_state = staticmethod(lambda *_, **__: torch.zeros(0, dtype=torch.uint8))
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])


@functools.cache
def _registered() -> None:
    """The device, for the rest of the process: torch takes none back."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


@contextmanager
def pretend(*, rows: int | None = None, float64: bool = True):
    """A device of the name "pretend" within the block, and its ledger; without float64 where this is so."""
    _registered()
    ledger = Ledger(rows)
    watching = Watching(ledger, NAME, float64=float64)
    # torch counts its devices at the first backward pass of a process, which may have been: a pass in
    # the caller's own thread asks for no count, and shows who asked.
    _LEDGERS.append(ledger)
    try:
        with torch.autograd.set_multithreading_enabled(False), _made_there(watching), watching:
            yield ledger
    finally:
        _LEDGERS.pop()


@contextmanager
def watch(kind: str, *, rows: int | None = None):
    """The ledger of a real type of device."""
    ledger = Ledger(rows)
    with Watching(ledger, kind):
        yield ledger
