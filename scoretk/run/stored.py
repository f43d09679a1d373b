"""Draws in a store of zarr, read when they are asked for."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import count
from scoretk.core.cost import Cost
from scoretk.core.inferencedata import stored_data
from scoretk.core.memory import available, gigabytes
from scoretk.diagnostics.halves import Halves
from scoretk.diagnostics.summary import Summary, entry_names, summarise
from scoretk.errors import InvalidArgument, StoreError
from scoretk.fields.layout import Layout
from scoretk.run.draws import READERS, Draws
from scoretk.run.store import Store, StoredRun, as_reported, column, finished, part_of, stored_name

__all__ = ["Chained", "Draws", "Lazy", "StoredDraws", "load", "stored_draws"]

CHUNK = 1 << 25
"""Bytes that are read at a time, about."""
SHARE = 4
"""The part of free memory, one in so many, that a piece takes at most: what is made of it comes on top."""
JUDGED = 1 << 27
"""Bytes of draws that a summary judges at most; of more, it judges draws that are evenly spaced."""


def _as_is(value: np.ndarray) -> np.ndarray:
    return value


@dataclass(frozen=True, eq=False)
class Lazy:
    """Draws `(chains, kept, *event)` on the disk, of which only the parts asked for are read.

    Indexed, it gives a tensor of the part that the index names: of chains and draws no others are
    read. Where torch, numpy or arithmetic take it, they get all of it as one tensor, if it fits
    into memory.

    Args:
        arrays: The arrays of the store, `(chains, kept, ...)`; several are laid side by side.
        rows: Which chains of them.
        event: The shape of one draw.
        reported: Makes what a solver reported of what is stored.
    """

    arrays: tuple[Any, ...]
    rows: range | np.ndarray
    event: tuple[int, ...]
    reported: Callable[[np.ndarray], np.ndarray] = field(default=_as_is, repr=False)

    @property
    def shape(self) -> torch.Size:
        """As a tensor's."""
        return torch.Size((len(self.rows), self.arrays[0].shape[1], *self.event))

    @property
    def dtype(self) -> torch.dtype:
        """As a tensor's."""
        return torch.from_numpy(np.empty(0, self.arrays[0].dtype)).dtype

    @property
    def device(self) -> torch.device:
        """The device of what is read: the CPU."""
        return torch.device("cpu")

    @property
    def ndim(self) -> int:
        """As a tensor's."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes all of it takes in memory."""
        return self.numel() * self.element_size()

    def numel(self) -> int:
        """As a tensor's."""
        return math.prod(self.shape)

    def element_size(self) -> int:
        """As a tensor's."""
        return int(self.arrays[0].dtype.itemsize)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Lazy(shape={tuple(self.shape)}, dtype={self.dtype}, in a store)"

    def __getitem__(self, key: Any) -> Tensor:
        keys = list(key) if isinstance(key, tuple) else [key]
        boxes = [slice(0, self.shape[0]), slice(0, self.shape[1])]
        for axis, size in enumerate(self.shape[:2]):
            if axis >= len(keys) or keys[axis] is None or keys[axis] is Ellipsis:
                break
            found = _box(keys[axis], size)
            if found is None:  # a mask of several axes, or something that torch may know
                return self.load()[key]
            boxes[axis], keys[axis] = found
        return self.read(*boxes)[tuple(keys) if isinstance(key, tuple) else keys[0]]

    def __iter__(self) -> Iterator[Tensor]:
        for some in self._blocks():
            yield from self.read(some, slice(None))

    def _blocks(self) -> Iterator[slice]:
        """Chains in blocks of about `CHUNK` bytes, or of a chunk's chains where all of them fit."""
        of_one = max(1, self.nbytes // max(1, len(self)))
        size, chunk, most = CHUNK // of_one, self.arrays[0].chunks[0], _room() // SHARE // of_one
        size = max(1, min(size, most))
        if chunk <= most:  # then each chunk is read once
            size = max(chunk, size // chunk * chunk)
        return (slice(i, i + size) for i in range(0, len(self), size))

    def chosen(self, rows: Any) -> Lazy:
        """Some chains, not read yet; `rows` is what selects rows of a tensor."""
        if isinstance(rows, slice):
            own = self.rows[rows]
        else:
            own = np.asarray(self.rows)[rows.numpy()]
        return replace(self, rows=own)

    def read(self, chains: slice, draws: slice) -> Tensor:
        """Read a part, `(chains, draws, *event)`.

        Raises:
            InvalidArgument: It does not fit into memory.
            StoreError: It cannot be read.
        """
        rows, n = self.rows[chains], len(range(self.shape[1])[draws])
        _check_fits(len(rows) * n * math.prod(self.event) * self.element_size())
        try:
            parts = [np.asarray(_taken(array, rows, draws)) for array in self.arrays]
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise StoreError(f"draws cannot be read: {error}") from error
        shape = (len(rows), n, *self.event)
        if len(parts) > 1:
            flat = [part.reshape(*shape[:2], math.prod(part.shape[2:])) for part in parts]
            parts = [np.concatenate(flat, -1)]
        return torch.from_numpy(np.ascontiguousarray(self.reported(parts[0]).reshape(shape)))

    def load(self) -> Tensor:
        """All of it.

        Raises:
            InvalidArgument: It does not fit into memory.
        """
        return self.read(slice(None), slice(None))

    def entries(self, some: slice) -> Tensor:
        """Some entries of all draws, laid in a row, `(chains, draws, entries)`.

        Raises:
            InvalidArgument: They do not fit into memory.
            StoreError: They cannot be read.
        """
        n = len(range(math.prod(self.event))[some])
        _check_fits(math.prod(self.shape[:2]) * n * self.element_size())
        found = torch.empty((*self.shape[:2], n), dtype=self.dtype)
        for chains in self._blocks():
            found[chains] = self.read(chains, slice(None)).flatten(2)[:, :, some]
        return found

    def pieces(self, first: int = 0, last: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """All of it, some draws of all chains at a time: which draws, and these.

        As many as a chunk has, each of which is read once, where these fit into memory with room to
        spare; else fewer.

        Args:
            first: The number of the first draw.
            last: The number of the draw after the last; None for all.
        """
        whole = self.shape[1] if last is None else min(last, self.shape[1])
        step = self.arrays[0].chunks[1]
        size = max(1, self.nbytes // max(1, self.shape[1]))
        step *= max(1, CHUNK // (size * step))
        step = max(1, min(step, _room() // SHARE // size))
        ends = [first, *range((first // step + 1) * step, whole, step), whole]
        for start, end in pairwise(ends):
            if start < end:
                yield slice(start, end), self.read(slice(None), slice(start, end))

    def moments(self, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """The mean and the variance (divisor n - 1) of each chain, `(chains, *event)`, float64.

        Some chains at a time, so that intermediates stay small.

        Args:
            first: As in `pieces`.
            last: As in `pieces`.
        """
        rows, draws = self.arrays[0].chunks[:2]
        of_one = draws * math.prod(self.event) * self.element_size()
        block = rows * max(1, CHUNK // max(1, rows * of_one))
        some = (self.chosen(slice(i, i + block)) for i in range(0, max(1, len(self)), block))
        found = [part._moments(first, last) for part in some]
        mean, var = (torch.cat(values) for values in zip(*found, strict=True))
        return mean, var

    def _moments(self, first: int, last: int | None) -> tuple[Tensor, Tensor]:
        """As `moments`, of all chains at a time.

        References:
            Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
            variances" (1979).
        """
        mean = torch.zeros((len(self), *self.event), dtype=torch.float64)
        m2, n = torch.zeros_like(mean), 0
        for _, piece in self.pieces(first, last):
            part, k = piece.double(), piece.shape[1]
            own = part.mean(1)
            gap = own - mean
            m2 += (part - own[:, None]).square().sum(1) + gap.square() * (n * k / (n + k))
            mean += gap * (k / (n + k))
            n += k
        return mean, m2 / (n - 1)

    def halves(self) -> Halves:
        """The moments of the first and of the second half of each chain's draws."""
        cut = self.shape[1] // 2
        parts = [self.moments(0, cut), self.moments(cut)]
        mean, var = (torch.stack(list(of), 1) for of in zip(*parts, strict=True))
        return Halves(mean, var, torch.tensor([cut, self.shape[1] - cut]).expand(len(self), 2))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return func(*map(_loaded, args), **{k: _loaded(v) for k, v in (kwargs or {}).items()})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.load().numpy().astype(dtype or self.arrays[0].dtype, copy=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.load(), name)


ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "mod")


def _arithmetic(name: str) -> Callable[..., Any]:
    own = getattr(operator, name, None)

    def method(self: Lazy, *others: Any) -> Any:
        if own is None:  # the other operand came first
            return getattr(self.load(), name)(*map(_loaded, others))
        return own(self.load(), *map(_loaded, others))

    return method


for _name in (
    *(lead + name for name in ARITHMETIC for lead in ("", "r")),
    *("neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge"),
    *("and", "or", "xor", "invert"),
):
    setattr(Lazy, f"__{_name}__", _arithmetic(f"__{_name}__"))
Lazy.__hash__ = object.__hash__  # type: ignore[method-assign]


def _loaded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_loaded, value))
    return value.load() if isinstance(value, Lazy) else value


def _room() -> int:
    """The bytes of memory that are free; where the system does not say, enough for a chunk."""
    room = available(torch.device("cpu"))
    return SHARE * CHUNK if room is None else room


def _check_fits(size: int) -> None:
    room = available(torch.device("cpu"))
    if room is not None and size > room:
        raise InvalidArgument(
            "draws",
            f"{gigabytes(size)} of draws",
            f"a part that memory holds: {gigabytes(room)} are free",
            "Ask for some chains or draws, draws.x[:, -1000:], or a piece at a time, "
            "draws.x.pieces()",
        )


@dataclass(frozen=True, eq=False)
class Chained:
    """Arrays of several stores as one, chain after chain.

    Args:
        arrays: The arrays, `(chains, kept, ...)`, alike but for their chains.
        which: In which of them each chain is, `(chains,)`.
        rows: In which row of that, `(chains,)`.
    """

    arrays: tuple[Any, ...]
    which: np.ndarray
    rows: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """As an array's."""
        return (len(self.rows), *self.arrays[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """As an array's."""
        found: np.dtype = self.arrays[0].dtype
        return found

    @property
    def chunks(self) -> tuple[int, ...]:
        """Those of the first array."""
        return tuple(self.arrays[0].chunks)

    def taken(self, rows: range | np.ndarray, draws: slice) -> np.ndarray:
        """Some chains and draws."""
        chosen = np.asarray(rows, dtype=np.int64)
        n = len(range(self.shape[1])[draws])
        found = np.empty((len(chosen), n, *self.shape[2:]), self.dtype)
        for part in np.unique(self.which[chosen]):
            at = np.flatnonzero(self.which[chosen] == part)
            found[at] = _taken(self.arrays[part], _as_range(self.rows[chosen[at]]), draws)
        return found


def chained(parts: Sequence[Lazy], order: np.ndarray) -> Lazy:
    """The chains of several `Lazy`, in this order of all of them one after the other, not read yet."""
    which = np.repeat(np.arange(len(parts)), [len(part) for part in parts])[order]
    rows = np.concatenate([np.asarray(part.rows, dtype=np.int64) for part in parts])[order]
    columns = zip(*(part.arrays for part in parts), strict=True)
    arrays = tuple(Chained(tuple(column), which, rows) for column in columns)
    return replace(parts[0], arrays=arrays, rows=range(len(order)))


def _as_range(rows: np.ndarray) -> range | np.ndarray:
    """Rows that follow one another as a range, which reads each chunk once."""
    if len(rows) and (np.diff(rows) == 1).all():
        return range(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _taken(array: Any, rows: range | np.ndarray, draws: slice) -> Any:
    """Some chains and draws of an array."""
    if isinstance(array, Chained):
        return array.taken(rows, draws)
    return part_of(array, rows, draws)


WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)


def _box(key: Any, size: int) -> tuple[slice, Any] | None:
    """The smallest range of an axis that an index needs, and the index within it; None for any."""
    if isinstance(key, slice):
        chosen = range(size)[key]
        if chosen.step < 0:  # as torch has it
            raise ValueError("step must be greater than zero")
        return slice(chosen.start, max(chosen.start, chosen.stop), chosen.step), slice(None)
    try:
        picked = torch.as_tensor(key)
    except (TypeError, ValueError, RuntimeError):
        return None
    mask = picked.dtype is torch.bool and picked.ndim == 1
    if picked.ndim > 1 or not (mask or picked.dtype in WHOLE):
        return None
    if picked.ndim == 0:
        at = int(picked)
        if not -size <= at < size:
            raise IndexError(f"index {at} of {size}")
        at %= size
        return slice(at, at + 1), 0
    if mask:
        if len(picked) != size:
            raise IndexError(f"a mask of {len(picked)} for {size}")
        picked = picked.nonzero().flatten()
    if not len(picked):
        return slice(0, 0), picked.long()
    if int(picked.min()) < -size or int(picked.max()) >= size:
        raise IndexError(f"indices {picked.tolist()!r:.80} of {size}")
    picked = torch.where(picked < 0, picked + size, picked).long()
    low = int(picked.min())
    return slice(low, int(picked.max()) + 1), picked - low


@dataclass(repr=False)
class StoredDraws(Draws):
    """The outcome of `sample(keep=scoretk.Zarr(path))`: draws that are read when they are asked for.

    `x`, variables and statistics of each draw are `Lazy`; all else is as in `Draws`.

    Args:
        store: The folder of the store; None where they are in several, which were joined.
        values: The variables side by side; x itself where they have no names.
    """

    store: Path | None = None
    values: Lazy = None  # type: ignore[assignment]

    @property
    def variables(self) -> dict[str, Tensor]:
        """The variables by name, `(chains, kept, *shape)`, each `Lazy`."""
        if self.layout is None:
            return {"x": self._values(None)}
        shapes = zip(self.values.arrays, self.layout.shapes.items(), strict=True)
        made: Any = {n: Lazy((array,), self.values.rows, shape) for array, (n, shape) in shapes}
        return dict(made)

    def _values(self, x: Any) -> Any:
        return self.values

    def _chosen(self, rows: Any) -> Draws:
        own: Any = {n: getattr(self, n)[rows] for n in ("final", "status", "failed_at", "chains")}
        own |= {name: getattr(self, name).chosen(rows) for name in ("x", "values")}
        stats: Any = {
            name: value.chosen(rows) if isinstance(value, Lazy) else value[rows]
            for name, value in self.stats.items()
        }
        return replace(self, stats=stats, **own)

    @staticmethod
    def joined(parts: Sequence[StoredDraws], order: Tensor, **rest: Any) -> StoredDraws:
        """Draws of several stores as one, of which none is read.

        Args:
            parts: The draws, alike but for their chains.
            order: Which chain of all, one part after the other, is each chain of the whole.
            rest: All else of `Draws`.
        """
        at = order.cpu().numpy()
        x = chained([_lazy(part.x) for part in parts], at)
        same = all(part.values.arrays == _lazy(part.x).arrays for part in parts)
        values = x if same else chained([part.values for part in parts], at)
        stats: Any = {}
        for name, first in parts[0].stats.items():
            every: Any = [part.stats[name] for part in parts]
            lazy = isinstance(first, Lazy)
            stats[name] = chained(every, at) if lazy else torch.cat(every)[order]
        whole: Any = x
        return StoredDraws(x=whole, values=values, stats=stats, **rest)

    def in_memory(self) -> Draws:
        """The same draws in memory, as `sample` with keep="all" gives them.

        Raises:
            InvalidArgument: They do not fit.
        """
        own = {f.name: getattr(self, f.name) for f in fields(Draws)}
        x: Any = own["x"]
        derived = self.layout is not None and self.values.arrays != x.arrays
        own |= {
            "x": x.load(),
            "stats": {name: _loaded(value) for name, value in self.stats.items()},
            "named": self.values.load() if derived else None,
        }
        return Draws(**own)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """As `Draws.save`, by way of `in_memory`; the store itself is saved already."""
        return self.in_memory().save(path, force)

    def moments(self) -> tuple[Tensor, Tensor]:
        return _lazy(self.x).moments()

    def _halves(self) -> Halves:
        return _lazy(self.x).halves()

    def to_arviz(self) -> Any:
        """The store as ArviZ has it, not read yet: a `DataTree`, an `InferenceData` of ArviZ 0.x.

        Draws of several stores come into memory.

        Raises:
            MissingDependency: ArviZ is not installed.
            InvalidArgument: Draws of several stores do not fit.
        """
        if self.store is None:
            return self.in_memory().to_arviz()
        rows = self.values.rows
        whole = isinstance(rows, range) and rows == range(self.values.arrays[0].shape[0])
        return stored_data(self.store, None if whole else np.asarray(rows), "to_arviz")

    def summary(self, most: int = 100) -> Summary:
        """As `Draws.summary`.

        Of more than `JUDGED` bytes, draws that are an odd number of steps apart are judged, and of
        very many chains evenly spaced ones. Means and standard deviations are of all.
        """
        values, rows = self.values, count("most", most, least=1)
        chains, draws = _judged(values)
        part = values.read(chains, draws)
        stats: Any = {
            name: value[chains, draws] if isinstance(value, Lazy) else value[chains]
            for name, value in self.stats.items()
        }
        solver = str(self.provenance.get("solver", ""))
        exact = self.provenance.get("exact_ends") is True
        labels = entry_names(values.event) if self.layout is None else self.layout.labels
        status, failed_at = self.status[chains], self.failed_at[chains]
        made = summarise(part, status, failed_at, stats, rows, solver, exact, labels)
        if part.shape == values.shape or made.independent:
            return made
        mean, sd = _pooled(values.chosen(self.ok))
        at = {label: i for i, label in enumerate(labels)}
        table = {
            name: row | {"mean": float(mean[at[name]]), "sd": float(sd[at[name]])}
            for name, row in made.rows.items()
        }
        return replace(made, rows=table)


def _lazy(x: Any) -> Lazy:
    """Draws that are annotated as a tensor, as what they are."""
    found: Lazy = x
    return found


def _judged(values: Lazy) -> tuple[slice, slice]:
    """Which chains and draws are judged: evenly spaced ones, so many that memory holds them."""
    chains, kept = values.shape[:2]
    most = max(1, JUDGED // max(1, math.prod(values.event) * values.element_size()))
    few = max(min(kept, 1000), most // max(1, chains))
    thin = math.ceil(kept / few)
    thin += 1 - thin % 2  # which keeps period two visible
    apart = math.ceil(chains / max(1, most // math.ceil(kept / thin)))
    return slice(0, chains, apart), slice(0, kept, thin)


def _pooled(values: Lazy) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of all draws of all chains, by entry, float64."""
    mean, var = values.moments()
    n = values.shape[1]
    within = var.nan_to_num(0.0) * (n - 1)
    total = mean.mean(0)
    squares = (within + (mean - total).square() * n).sum(0)
    sd = (squares / (len(mean) * n - 1)).sqrt()
    return total.reshape(-1), sd.reshape(-1)


def stored_draws(store: Store, **rest: Any) -> StoredDraws:
    """The draws in a store.

    Args:
        store: The store, all written.
        rest: All else of `Draws`.
    """
    store.open()
    return _draws_in(store.folder, store.arrays, store.contents.layout, store.names(), **rest)


def load(path: str | os.PathLike[str]) -> StoredDraws:
    """The draws in the store at a path, which are read when they are asked for.

    Raises:
        InvalidArgument: There is none, or its run is not over.
    """
    found: StoredRun = finished(path)
    tuned = {
        n.removeprefix("tuned/"): v for n, v in found.outcome.items() if n.startswith("tuned/")
    }
    fates = {
        name: torch.from_numpy(column(found.arrays[f"sample_stats/{name}"]))
        for name in ("status", "failed_at")
    }
    return _draws_in(
        found.folder,
        found.arrays,
        found.layout,
        found.statistics,
        final=found.outcome["final"],
        cost=Cost(found.cost),
        provenance=found.provenance,
        tuned=tuned,
        chains=found.chains,
        **fates,
    )


READERS[".zarr"] = load


def _draws_in(
    folder: Path,
    arrays: Mapping[str, Any],
    layout: Layout | None,
    statistics: list[str],
    **rest: Any,
) -> StoredDraws:
    """Draws of these arrays, by group and name, with all else of `Draws`."""
    event = tuple(rest["final"].shape[1:])
    chains = range(len(rest["final"]))
    named = [] if layout is None else [arrays[f"posterior/{name}"] for name in layout.names]
    values = Lazy(tuple(named), chains, (layout.size,)) if layout is not None else None
    x = values
    if values is None or "positions/x" in arrays:
        place = "posterior" if layout is None else "positions"
        x = Lazy((arrays[f"{place}/x"],), chains, event)
    stats: Any = {}
    for name in statistics:
        array = arrays[f"sample_stats/{stored_name(name)}"]
        reported = partial(as_reported, name)
        of_each = Lazy((array,), chains, tuple(array.shape[2:]), reported)
        # the average over the one draw that was kept, as in memory
        last = rest["provenance"]["keep"].startswith("last")
        stats[name] = of_each.load()[:, 0].double() if last else of_each
    lazy: Any = x
    return StoredDraws(
        x=lazy, stats=stats, layout=layout, store=folder, values=values or lazy, **rest
    )
