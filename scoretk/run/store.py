"""Draws streamed to a store of zarr, which need not fit in memory.

A store is a folder of zarr's format 3 in xarray's conventions, with the groups `posterior` (a named
variable an array, or "x"; where variables are functions of x, that is in the group `positions`) and
`sample_stats` (in ArviZ's names, with each chain's `status`, `failed_at` and `kept`, how many of
its draws are there). When the run is over, `outcome` holds what else `Draws` have.

All arrays have their whole size from the first draw on; what is not there yet is NaN, False or -1.
They are made by the process that comes to it first. A chunk has the draws of chains of one batch,
so that batches of several processes are written without locks, and each file is replaced as a
whole: who reads meanwhile finds chunks that are there or not.

Draws get there by `scoretk.run.streaming`.
"""

from __future__ import annotations

import json
import math
import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import count, option
from scoretk.core.dependencies import required
from scoretk.core.files import as_path, folder_to_write, replace_folder
from scoretk.core.inferencedata import ARVIZ_NAMES
from scoretk.core.keywords import explained_class
from scoretk.core.sealed import from_bytes, to_bytes
from scoretk.errors import InvalidArgument, OutputExists, StoreError
from scoretk.fields.layout import Layout
from scoretk.run.record import Record
from scoretk.run.writer import Writer

__all__ = [
    "Contents",
    "Store",
    "StoredRun",
    "Zarr",
    "chains_a_chunk",
    "column",
    "finished",
    "part_of",
    "zarr_module",
]

MARK = "zarr.json"
OUTCOME = "outcome"
"""The group of what the other groups do not hold."""
READ_BY_XARRAY = "xarray.open_datatree(path, engine='zarr')"
RING = 1 << 26
"""Bytes of a ring, about, where the user says nothing of the length of a chunk."""
LARGEST_CHUNK = 1 << 26
"""Bytes of a chunk, at most, where it has more than one chain."""
ADVICE = (
    "Choose another path or remove it; to take up the run that wrote it, give the checkpoint= that "
    "it was saved to"
)
ABSENT = -1
"""The fill value of integers."""


@dataclass(frozen=True)
class Zarr:
    """A store for draws, as `keep=scoretk.Zarr("run.zarr")`: they are streamed to it, and read lazily.

    Args:
        path: The folder, which is made. One that exists is refused, unless it is taken up: by the
            same call, with the `checkpoint=` that the run was saved to.
        keep: "all" for each kept step, "last" for the last one of each chain; by default what the
            solver keeps.
        draws: How many draws of a chain a chunk has; by default so many that about 64 MB are
            collected in memory.

    Raises:
        InvalidArgument: For wrong arguments, or a path that cannot be written.
        MissingDependency: Where zarr is not installed.
    """

    path: str | os.PathLike[str]
    keep: str | None = None
    draws: int | None = None

    def __post_init__(self) -> None:
        folder_to_write("keep", self.path, (MARK,))
        if self.keep is not None:
            option("keep", self.keep, ("all", "last"))
        if self.draws is not None:
            count("draws", self.draws, least=1)
        zarr_module()

    @property
    def folder(self) -> Path:
        """The path from the root on: it is read later, wherever the process works then."""
        return as_path("keep", os.path.abspath(self.path))


explained_class(Zarr)


def zarr_module() -> Any:
    """The module zarr.

    Raises:
        MissingDependency: It is not installed.
    """
    return required("zarr", "zarr", "keep=scoretk.Zarr(path)")


def chains_a_chunk(batches: list[int], bytes_of_one: int) -> int:
    """How many chains a chunk has, so that none has chains of two batches.

    Args:
        batches: How many chains each batch has, in their order.
        bytes_of_one: The bytes of one chain's draws in a chunk.
    """
    ends = np.cumsum(batches[:-1]).tolist()
    # the last batch may end anywhere: no chunk follows
    common = math.gcd(*ends) if ends else batches[-1]
    most = max(1, LARGEST_CHUNK // max(1, bytes_of_one))
    return max(n for n in range(1, min(common, most) + 1) if common % n == 0)


@dataclass(frozen=True)
class Contents:
    """The contents of a store, as the run describes them.

    Args:
        ids: The ids of the chains.
        total: How many draws of each.
        layout: The named variables; None for "x" alone.
        values: Makes the variables of x, side by side; None where x holds them.
        told: What tells the run from others, plain values.
        provenance: As in `Draws`.
    """

    ids: range
    total: int
    layout: Layout | None
    values: Callable[[Tensor], Tensor] | None
    told: Mapping[str, Any]
    provenance: Mapping[str, Any]


class Store:
    """The store of a run.

    Args:
        asked: What the user asked for.
        contents: What it is to hold.
        batches: How many chains each batch has.
        saved: The run's checkpoint, there or not, with which a store that is there is taken up: from
            what was saved, or, where nothing was, from the beginning, if it is the same run.
        known: The store's number, as another process of the job has found it.
        once: As `Share.once`: has the arrays made by one process.
        writes: Whether this process writes draws: of a team, which all make them, its leader does. What
            another wrote a little later would take back the count that the leader's checkpoint knows of.

    Attributes:
        id: A number of its own, which its checkpoint knows it by.

    Raises:
        OutputExists: Something is there, and is not to be taken up.
        StoreError: It is another run's.
    """

    def __init__(
        self,
        asked: Zarr,
        contents: Contents,
        batches: list[int],
        saved: Path | None,
        known: str | None = None,
        once: Callable[[str, Callable[[], object]], object] = lambda _, make: make(),
        writes: bool = True,
    ) -> None:
        self.folder, self.contents, self.batches = asked.folder, contents, batches
        self.arrays, self.writer = dict[str, Any](), Writer()
        self._draws, self._once, self._made, self._writes = asked.draws, once, False, writes
        self._way_on = (
            "when there is room the same call, with its checkpoint=, goes on from there"
            if saved is not None
            else "a run without checkpoint= cannot go on from there: when there is room, make it anew"
        )
        if known is not None:
            self.id = known
        elif not self.folder.exists():
            self.id = uuid.uuid4().hex
        elif saved is None:
            raise OutputExists(f"{self.folder} exists and is kept. {ADVICE}")
        else:
            self.id = self._number(same=not saved.exists())
            for left in self.folder.rglob("*.partial"):  # of processes killed while zarr wrote
                left.unlink(missing_ok=True)

    def _number(self, same: bool) -> str:
        """The number of the store that is there.

        Args:
            same: Whether it has to say of itself that it is this run's, where no checkpoint does.

        Raises:
            StoreError: It is no store of this run.
        """
        try:
            about = _group(self.folder, "r").attrs["scoretk_run"]
            number, theirs = about["id"], about["told"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.folder} is no store of draws of a run: {error}. {ADVICE}"
            ) from error
        ours = json.loads(json.dumps(dict(self.contents.told)))
        other = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        if other and same:
            said = "; ".join(
                f"{k}: {theirs.get(k)!r:.80} there, {ours.get(k)!r:.80} here" for k in other
            )
            raise StoreError(f"{self.folder} holds another run's draws ({said}). {ADVICE}")
        return str(number)

    def draws_a_chunk(self, like: Tensor) -> int:
        """How many draws a chunk has: as in the store that is there, or as asked, or by bytes."""
        if (self.folder / MARK).exists():
            group = self._opened()
            if "chunk" in group.attrs["scoretk_run"]:
                return int(group.attrs["scoretk_run"]["chunk"])
        most = max(self.batches) * like[0].numel() * like.element_size()
        asked = max(1, RING // (3 * max(1, most))) if self._draws is None else self._draws
        return min(asked, self.contents.total)

    def _opened(self) -> Any:
        try:
            return _group(self.folder, "r+")
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.folder} cannot be read: {error}") from error

    def made(self, like: Mapping[str, Tensor], chunk: int) -> None:
        """Have the arrays made where they are not there yet, and longer where the run is extended.

        Args:
            like: One draw of a batch, and its statistics, by the names of `Record.flat`.
            chunk: How many draws a chunk has.
        """
        if not self._made:
            self._once("store", lambda: self._make(like, chunk))
            self.open()
            self._made = True

    def _make(self, like: Mapping[str, Tensor], chunk: int) -> None:
        """Make the store beside its place, so that it is whole when it is there; or change it there."""
        about = {
            "scoretk": json.dumps(dict(self.contents.provenance)),
            "scoretk_run": {"id": self.id, "told": dict(self.contents.told), "chunk": chunk},
        }
        if (self.folder / MARK).exists():
            group = self._opened()
            group.attrs.update(about)
            self._fill(group, like, chunk)
            _consolidate(self.folder)
            return

        def made(folder: Path) -> None:
            group = zarr_module().create_group(folder, zarr_format=3, attributes=about)
            self._fill(group, like, chunk)
            _consolidate(folder)

        replace_folder(self.folder, made)

    def _fill(self, group: Any, like: Mapping[str, Tensor], chunk: int) -> None:
        """Make the arrays in a group; arguments as in `made`."""
        contents, x = self.contents, like["x"]
        chains, n, lead = len(contents.ids), contents.total, ("chain", "draw")
        rows = chains_a_chunk(self.batches, chunk * x[0].numel() * x.element_size())

        def array(where: str, shape: tuple[int, ...], dtype: Any, dims: tuple[str, ...]) -> None:
            kept = (rows, chunk)[: len(shape)] if dims[0] == "chain" else shape[:1]
            chunks = (*kept, *shape[len(kept) :])
            _array(group, where, shape, chunks, np.dtype(dtype), dims)

        dtype = str(x.dtype).removeprefix("torch.")
        event = tuple(x.shape[1:])
        if contents.layout is None or contents.values is not None:
            group_of_x = "posterior" if contents.layout is None else "positions"
            dims = tuple(f"x_dim_{i}" for i in range(len(event)))
            array(f"{group_of_x}/x", (chains, n, *event), dtype, (*lead, *dims))
        if contents.layout is not None:
            for name, shape in contents.layout.shapes.items():
                dims = contents.layout.dims[name]
                array(f"posterior/{name}", (chains, n, *shape), dtype, (*lead, *dims))
        for name, value in Record.from_flat(dict(like)).stats.items():
            kind = "bool" if name in TRUTHS else str(value.dtype).removeprefix("torch.")
            there, more = f"sample_stats/{stored_name(name)}", tuple(value.shape[1:])
            dims = tuple(f"{name}_dim_{i}" for i in range(len(more)))
            array(there, (chains, n, *more), kind, (*lead, *dims))
        for name in ("status", "failed_at", "kept"):
            array(f"sample_stats/{name}", (chains,), "int64", ("chain",))
        for place in ("posterior", "sample_stats", *(["positions"] if contents.values else [])):
            _coordinates(group[place], contents)

    def finish(self, outcome: Mapping[str, Tensor], cost: Mapping[str, int]) -> None:
        """Mark the store as complete, and write what its arrays do not hold.

        Args:
            outcome: Tensors by name: "final", and what was tuned as "tuned/...".
            cost: As in `Draws`.

        Raises:
            StoreError: The disk refuses.
        """
        with self.as_store_errors():
            group = self._opened()
            content = np.frombuffer(to_bytes(outcome), np.uint8)
            place = group.require_group(OUTCOME)
            there = place.create_array(
                "tensors",
                shape=content.shape,
                chunks=content.shape,
                dtype="uint8",
                dimension_names=("byte",),
                compressors=_compressor(),
                overwrite=True,
            )
            there[:] = content
            self._check_written(range(len(self.contents.ids)), self.contents.total)
            layout = self.contents.layout
            names = None if layout is None else layout.plain()
            done = {"cost": dict(cost), "layout": names}
            group.attrs["scoretk_run"] = {**group.attrs["scoretk_run"], "done": done}
            _consolidate(self.folder)

    def _check_written(self, chains: range, draws: int) -> None:
        """Check that so many draws of these chains are there.

        Raises:
            StoreError: There are fewer, as in a store that was put back from an older copy.
        """
        array = _arrays(self._opened())["sample_stats/kept"]
        kept = np.asarray(array[chains.start : chains.stop])  # of what is lost, -1
        if len(kept) and int(kept.min()) < draws:
            raise StoreError(
                f"{self.folder} has {max(0, int(kept.min()))} draws of a chain, where {draws} were "
                f"written: it is older than the run's checkpoint. Take both from one copy, or make the "
                f"run again"
            )

    def close(self) -> None:
        """End the thread that writes, and give its memory back, when all is written that can be."""
        self.writer.close()
        self.writer = Writer()

    def open(self) -> None:
        """Open the arrays that are there, so that each chunk is written, also one of NaN alone."""
        with self.as_store_errors(), zarr_module().config.set({"array.write_empty_chunks": True}):
            self.arrays = _arrays(self._opened())

    def names(self) -> list[str]:
        """The statistics in the store, by the names of a solver."""
        return _statistics(self.arrays)

    def write(self, rows: slice, start: int, values: Mapping[str, np.ndarray]) -> None:
        """Write draws of some chains, where this process writes them.

        Args:
            rows: Which chains of the run.
            start: The number of the first draw.
            values: By the names of `Record.flat`, and "named", `(draws, chains, ...)`; "status",
                "failed_at" and "kept", `(chains,)`.

        Raises:
            StoreError: The disk refuses.
        """
        if not self._writes:
            return
        with self.as_store_errors():
            for name, value in values.items():
                for where, part in self._placed(name, value):
                    if value.ndim == 1:
                        self.arrays[where][rows] = part
                        continue
                    end = min(start + len(part), self.contents.total)
                    self.arrays[where][rows, start:end] = np.swapaxes(part[: end - start], 0, 1)

    @contextmanager
    def as_store_errors(self) -> Iterator[None]:
        """A context in which errors of the disk are raised as a `StoreError`."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"cannot write draws to {self.folder}: {error}. What was written before can be "
                f"read by {READ_BY_XARRAY}; {self._way_on}"
            ) from error

    def _placed(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Where a part of a record goes, and as what."""
        layout, derived = self.contents.layout, self.contents.values is not None
        if name in ("status", "failed_at", "kept"):
            return [(f"sample_stats/{name}", value)]
        if name.startswith("stats/"):
            there = stored_name(name[6:])
            return [(f"sample_stats/{there}", as_stored(name[6:], value))]
        if layout is None or (name == "x" and derived):
            return [(f"{'positions' if derived else 'posterior'}/x", value)]
        parts = layout.split(torch.from_numpy(value))
        return [(f"posterior/{variable}", part.numpy()) for variable, part in parts.items()]

    def read(self, name: str, rows: slice, start: int, end: int) -> np.ndarray:
        """Draws of some chains as they were in a record, `(draws, chains, ...)`.

        Args:
            name: As in `write`.
            rows: Which chains.
            start: The number of the first draw.
            end: The number of the draw after the last.

        Raises:
            StoreError: They cannot be read.
        """
        chains, draws = range(*rows.indices(len(self.contents.ids))), slice(start, end)
        self._check_written(chains, end)
        try:
            if name.startswith("stats/"):
                there = self.arrays[f"sample_stats/{stored_name(name[6:])}"]
                return as_reported(name[6:], np.swapaxes(part_of(there, chains, draws), 0, 1))
            if self.contents.layout is None or self.contents.values is not None:
                where = "posterior" if self.contents.layout is None else "positions"
                return np.swapaxes(part_of(self.arrays[f"{where}/x"], chains, draws), 0, 1)
            parts = [
                part_of(self.arrays[f"posterior/{n}"], chains, draws)
                for n in self.contents.layout.names
            ]
            flat = np.concatenate([p.reshape(*p.shape[:2], -1) for p in parts], -1)
            return np.swapaxes(flat, 0, 1)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise StoreError(f"cannot read draws from {self.folder}: {error}") from error


@dataclass(frozen=True)
class StoredRun:
    """The store of a finished run, opened.

    Args:
        folder: Where it is.
        arrays: Its arrays, by group and name.
        layout: The named variables; None for "x" alone.
        statistics: The names of the statistics.
        chains: The ids of the chains.
        outcome: As in `Store.finish`.
        cost: As in `Draws`.
        provenance: As in `Draws`.
    """

    folder: Path
    arrays: dict[str, Any]
    layout: Layout | None
    statistics: list[str]
    chains: Tensor
    outcome: dict[str, Tensor]
    cost: dict[str, int]
    provenance: dict[str, Any]


def finished(path: str | os.PathLike[str]) -> StoredRun:
    """Open the store of a finished run.

    Raises:
        InvalidArgument: It is none, or of a run that is not over.
        StoreError: A part of it is lost.
    """
    folder, expected = as_path("path", path), "a store that keep=scoretk.Zarr(path) wrote"
    try:
        group = _group(folder, "r")
        about, arrays = group.attrs["scoretk_run"], _arrays(group)
        if "done" not in about:
            hint = (
                "Its run goes on, or was stopped: the same call takes it up where it has a checkpoint=; "
                f"what is there is read by {READ_BY_XARRAY}"
            )
            raise InvalidArgument("path", str(folder), expected, hint)
        layout = about["done"]["layout"]
        content = np.asarray(group[OUTCOME]["tensors"][:])
        return StoredRun(
            folder,
            arrays,
            None if layout is None else Layout.from_plain(layout),
            _statistics(arrays),
            torch.from_numpy(column(arrays["posterior/chain"])),
            from_bytes(content.tobytes()),
            {str(kind): int(n) for kind, n in about["done"]["cost"].items()},
            dict(json.loads(group.attrs["scoretk"])),
        )
    except (InvalidArgument, StoreError):
        raise
    except Exception as error:  # whatever zarr and the formats say of a folder that is none
        hint = f"{error}. A store of another program is read by {READ_BY_XARRAY}"
        raise InvalidArgument("path", str(folder), expected, hint) from error


def part_of(array: Any, rows: range | np.ndarray, draws: slice) -> np.ndarray:
    """Some chains and draws of an array of a store.

    Raises:
        StoreError: A chunk is not there, in whose place zarr would read NaN.
    """
    chosen, kept = range(array.shape[1])[draws], range(0)
    if len(chosen):
        kept = range(chosen[0] // array.chunks[1], chosen[-1] // array.chunks[1] + 1)
    for i in np.unique(np.asarray(rows, dtype=np.int64) // array.chunks[0]).tolist():
        for j in kept:
            _check_there(array, (i, j, *(0,) * (array.ndim - 2)))
    if not isinstance(rows, range):
        return np.asarray(array.oindex[rows, draws])
    ahead = rows if rows.step > 0 else rows[::-1]
    found = np.asarray(
        array[slice(ahead.start, ahead.stop, ahead.step) if len(ahead) else slice(0), draws]
    )
    return found if rows.step > 0 else found[::-1]


def column(array: Any) -> np.ndarray:
    """Read a whole array of one number a chain.

    Raises:
        StoreError: A chunk is not there.
    """
    for i in range(-(-array.shape[0] // array.chunks[0])):
        _check_there(array, (i,))
    return np.asarray(array[:])


def _check_there(array: Any, chunk: tuple[int, ...]) -> None:
    folder = Path(array.store.root) / array.path
    key = array.metadata.encode_chunk_key(chunk)
    if not (folder / key).exists():
        raise StoreError(
            f"{folder} has lost draws: chunk {key} is not there. Take the store from where it "
            f"was copied from, or make the run again"
        )


def _group(folder: Path, mode: str) -> Any:
    """Open a store's root by its own metadata: the consolidated ones may be older, after a kill."""
    return zarr_module().open_group(folder, mode=mode, use_consolidated=False)


def _arrays(group: Any) -> dict[str, Any]:
    """The arrays of a store, by group and name."""
    return {
        f"{place}/{name}": found
        for place in ("posterior", "positions", "sample_stats")
        if place in group
        for name, found in group[place].arrays()
    }


def _statistics(arrays: Mapping[str, Any]) -> list[str]:
    places = [where.partition("/")[2] for where in arrays if where.startswith("sample_stats/")]
    own = ("status", "failed_at", "kept", "chain", "draw")
    return [solver_name(name) for name in places if name not in own and "_dim_" not in name]


def _consolidate(folder: Path) -> None:
    """Consolidate the metadata, so that a reader opens one file instead of one for each array."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr_module().consolidate_metadata(folder)


def _array(
    group: Any,
    where: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype,
    dims: tuple[str, ...],
) -> None:
    """Make an array of the store, or make it longer than it was."""
    place, name = where.split("/")
    inside = group.require_group(place)
    if name in inside:
        found = inside[name]
        if found.shape[0] != shape[0] or found.shape[2:] != shape[2:] or found.dtype != dtype:
            raise StoreError(f"{where} is {found.dtype} of {found.shape}, not {dtype} of {shape}")
        if found.shape != shape:
            found.resize(shape)
        return
    empty = {"f": math.nan, "b": False, "i": ABSENT}.get(dtype.kind, 0)
    inside.create_array(
        name,
        shape=shape,
        chunks=tuple(max(1, min(c, s)) for c, s in zip(chunks, shape, strict=True)),
        dtype=dtype,
        fill_value=empty,
        dimension_names=dims,
        compressors=_compressor(),
    )


def _compressor() -> Any:
    """The compressor of chunks, with a checksum: a bit changed on the disk is an error."""
    return zarr_module().codecs.ZstdCodec(level=0, checksum=True)


def _coordinates(group: Any, contents: Contents) -> None:
    """The labels along all axes of a group."""
    own = contents.ids
    labels: dict[str, Any] = {
        "chain": np.arange(own.start, own.stop, own.step),
        "draw": np.arange(contents.total),
    }
    coords = {} if contents.layout is None else contents.layout.coords
    for _, array in list(group.arrays()):
        for dim, size in zip(array.metadata.dimension_names, array.shape, strict=True):
            labels.setdefault(dim, np.asarray(coords[dim]) if dim in coords else np.arange(size))
    for dim, values in labels.items():
        if dim in group:
            group[dim].resize(values.shape)
        else:
            with warnings.catch_warnings():
                # strings, which zarr's format 3 has but does not promise to keep
                warnings.filterwarnings("ignore", message=".*Zarr V3 specification")
                text = values.dtype.kind == "U"
                group.create_array(
                    dim,
                    shape=values.shape,
                    chunks=(max(1, min(len(values), 1 << 20)),),
                    dtype=str if text else values.dtype,
                    dimension_names=(dim,),
                    compressors=_compressor(),
                )
        group[dim][:] = values.astype(object) if values.dtype.kind == "U" else values


TRUTHS = frozenset({"diverging"})
"""Statistics that ArviZ stores as booleans."""


def stored_name(name: str) -> str:
    """The name of a solver's statistic in ArviZ."""
    return "lp" if name == "energy" else ARVIZ_NAMES.get(name, name)


def solver_name(name: str) -> str:
    """The inverse of `stored_name`."""
    return "energy" if name == "lp" else {v: k for k, v in ARVIZ_NAMES.items()}.get(name, name)


def as_stored(name: str, value: np.ndarray) -> np.ndarray:
    """A solver's statistic as ArviZ stores it: the negative of an energy, lp."""
    return -value if name == "energy" else value.astype(bool) if name in TRUTHS else value


def as_reported(name: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `as_stored`."""
    return -value if name == "energy" else value
