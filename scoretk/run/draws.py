"""What a run returns: draws, the status of each chain, statistics, cost, and provenance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import UNREADABLE, count, is_integer, option
from scoretk.core.cost import Cost
from scoretk.core.dependencies import required
from scoretk.core.devices import has_float64
from scoretk.core.files import (
    as_path,
    file_to_read,
    file_to_write,
    folder_to_write,
    replace_folder,
    write_atomically,
)
from scoretk.core.inferencedata import (
    ARVIZ_NAMES,
    STORE,
    WRITTEN_BY,
    check_format,
    inference_data,
    netcdf,
    zarr,
)
from scoretk.core.keywords import explained
from scoretk.core.sealed import Unreadable, plain_json, read_sealed, write_sealed
from scoretk.diagnostics.halves import Halves, halves_from, halves_of, summarise_halves
from scoretk.diagnostics.plot.chains import plot_chains
from scoretk.diagnostics.summary import Summary, divergent_draws, entry_names, summarise
from scoretk.diagnostics.verdict import Sampler
from scoretk.errors import InvalidArgument, OutputExists, ScoretkError, Status
from scoretk.fields.layout import Layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BY_CHAIN", "FORMATS", "READERS", "Draws", "check_output"]

FORMATS = (".safetensors", ".nc", ".zarr", ".npy")
READ_BY = {
    ".nc": "arviz.from_netcdf(path)",
    ".zarr": "xarray.open_datatree(path, engine='zarr')",
    ".npy": "numpy.load(path)",
}
"""What reads the other formats."""
STREAMED = ".zarr"
READERS: dict[str, Callable[[str | Path], Draws]] = {}
"""Readers of draws that are folders, registered by the modules that know the format."""
SHOWN = 20
"""How many rows of the summary a notebook shows."""
KIND = "draws"
OUTCOME = ("status", "failed_at")
HALVES = ("half_mean", "half_var", "half_draws")
BY_CHAIN = ("x", "final", *OUTCOME, "mean", "var", *HALVES, "named", "chains")
"""The tensors of draws, of which each has a row for a chain, beside statistics and what was tuned."""
_THEIRS = {
    "draws.x, (chains, kept, *event), or of a variable draws['mu']": "samples sample draws trace "
    "values get_samples get_chain chain positions posterior",
    "draws.x.numpy(), or of a variable draws['mu'].numpy()": "numpy array to_numpy",
    "draws.to_pandas()": "to_dataframe dataframe df to_df pandas",
    "draws.to_arviz()": "to_xarray to_inference_data to_inferencedata idata inference_data",
    "the solver reported draws.stats['accept']": "acceptance acceptance_rate accept_rate "
    "acceptance_probability is_accepted",
    "minus draws.stats['energy'], up to a constant": "log_prob lp logp log_probs logdensity log_density",
    "draws.divergent": "divergences diverging",
    "draws.summary(), or scoretk.diagnostics.rhat(draws) and ess(draws)": "rhat r_hat ess",
    "draws.provenance has it": "solver seed steps warmup thin",
    "draws.summary()": "print_summary describe",
    "draws.plot()": "plot_trace show",
}
ELSEWHERE = {name: way for way, names in _THEIRS.items() for name in names.split()}
"""Where to find what other packages call by these names."""
WITHOUT_IDS = {"ids": False}
"""The entry of a header that says that chains had no ids, as in files from before checksums."""


class Tuning(dict[str, Tensor]):
    """The values that a run's warmup tuned, by name, with the run's provenance.

    Attributes:
        provenance: As in `Draws`.
        final: As in `Draws`.
    """

    def __init__(
        self, values: Mapping[str, Tensor], provenance: Mapping[str, Any], final: Tensor
    ) -> None:
        super().__init__(values)
        self.provenance, self.final = provenance, final

    @property
    def tuned(self) -> Tuning:
        """Itself, so that a `Tuning` can be given where draws can."""
        return self


class _Kept:
    """The attribute x of `Draws`: a tensor, or an error that says what there is in its place."""

    def __get__(self, draws: Draws | None, owner: type[Draws]) -> Any:
        if draws is None:
            return self
        x: Tensor | None = vars(draws)["x"]
        if x is None:
            expected = "draws.mean and draws.var"
            hint = "keep='all' or 'last' keeps the draws themselves"
            raise InvalidArgument("draws.x", "draws of which moments were kept", expected, hint)
        return x

    def __set__(self, draws: Draws, value: Tensor | None) -> None:
        vars(draws)["x"] = value


@dataclass
class Draws:
    """The outcome of `sample`.

    Args:
        x: The draws, `(chains, kept, *event_shape)`; None where only moments were kept: asked for,
            that raises `InvalidArgument`.
        final: The last positions, `(chains, *event_shape)`.
        status: The `Status` code of each chain, `(chains,)`.
        failed_at: The step at which the chain failed, -1 where it did not, `(chains,)`.
        stats: What the solver reported, by name: `(chains, kept)`, or averages `(chains,)` where
            only the last draw or moments were kept.
        cost: How many evaluations the run took, by kind.
        provenance: Plain values that say how to make the same draws again.
        mean: The mean of each chain, `(chains, *event_shape)`, where moments were kept.
        var: The variance of each chain (divisor n - 1), like it, where moments were kept.
        half_mean: The mean of the first half of each chain's draws, like `mean`, where moments were
            kept of four draws or more.
        half_var: The variance of the first half, like it.
        half_draws: The number of draws in each half, `(chains, 2)`.
        tuned: The values that warmup tuned, by name, such as "step_size" and "scale";
            `solver.tuned_by(draws.tuned)`, or `tuned_by(draws)`, gives it back to a solver.
        chains: The id of each chain, which its noise depends on, `(chains,)`.
        layout: Which named variables x holds side by side; None where they have no names.
        named: The variables side by side, `(chains, kept, layout.size)`, where they are functions
            of x; None where x holds them itself.

    The sequence of the draws of each chain: `len(draws)` counts chains, `draws[3]`, `draws[:10]` and
    `draws[draws.ok]` are draws of some of them. By a name, `draws["tau"]`, one has a variable.
    """

    x: Tensor
    final: Tensor
    status: Tensor
    failed_at: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    provenance: dict[str, Any] = field(default_factory=dict)
    mean: Tensor | None = None
    var: Tensor | None = None
    half_mean: Tensor | None = None
    half_var: Tensor | None = None
    half_draws: Tensor | None = None
    tuned: dict[str, Tensor] = field(default_factory=dict)
    chains: Tensor = None  # type: ignore[assignment]
    layout: Layout | None = None
    named: Tensor | None = None

    def __post_init__(self) -> None:
        if self.chains is None:
            self.chains = torch.arange(len(self.final))
        self.tuned = Tuning(self.tuned, self.provenance, self.final)

    @property
    def kept(self) -> int:
        """How many draws of each chain there are in x; 0 where only moments were kept."""
        x: Tensor | None = vars(self)["x"]
        return 0 if x is None else x.shape[1]

    @property
    def ok(self) -> Tensor:
        """Which chains are well, `(chains,)` of bool."""
        return self.status == int(Status.OK)

    @property
    def failures(self) -> dict[str, int]:
        """How many chains failed, by status name; empty where none did."""
        counts = {
            Status(c).name: int((self.status == c).sum()) for c in Status if c is not Status.OK
        }
        return {name: n for name, n in counts.items() if n}

    def __repr__(self) -> str:
        if vars(self)["x"] is not None:
            kept = f"x={tuple(self.x.shape)}"
        else:
            kept = f"moments of {tuple(self.final.shape)}"
        wrong = f", failed={self.failures}" if self.failures else ""
        names = "" if self.layout is None else f" of {self.layout.told()}"
        solver = self.provenance.get("solver")
        return f"Draws({kept}{names}{wrong}, solver={solver}, cost={dict(self.cost)})"

    if not TYPE_CHECKING:  # which would take any name

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}{self._way_to(name)}",
                name=name,
                obj=self,
            )

    def _way_to(self, name: str) -> str:
        """Where to find what is asked for by this name; "" where that is not known."""
        held = vars(self)
        layout, stats = held.get("layout"), held.get("stats") or {}
        if layout is not None and name in layout.shapes:
            return f": it is a variable, draws[{name!r}]"
        if name in stats:
            return f": the solver reported it, draws.stats[{name!r}]"
        return f": {ELSEWHERE[name]}" if name in ELSEWHERE else ""

    def __array__(self, *asked: Any, **how: Any) -> Any:
        raise TypeError(f"draws are no array: {ELSEWHERE['numpy']}")

    @property
    def variables(self) -> dict[str, Tensor]:
        """The variables by name, `(chains, kept, *shape)`; "x" alone where they have no names.

        Raises:
            InvalidArgument: Where draws were not kept.
        """
        x = self._kept("a variable needs the draws themselves; draws.mean and draws.var hold all")
        return {"x": x} if self.layout is None else self.layout.split(self._values(x))

    def _kept(self, why: str) -> Tensor:
        if vars(self)["x"] is None:
            raise InvalidArgument("keep", "moments", f"'all' or 'last': {why}")
        return self.x

    def _values(self, x: Tensor) -> Tensor:
        """The numbers that the names refer to: the variables side by side, or x itself."""
        return x if self.named is None else self.named

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: int | slice | Tensor | Sequence[int]) -> Draws: ...
    def __getitem__(self, key: Any) -> Tensor | Draws:
        """A variable by its name, `(chains, kept, *shape)`; else the draws of some chains.

        Raises:
            UnknownName: No variable has this name.
            IndexError: There is no such chain.
            InvalidArgument: It is neither a name nor chains.
        """
        if isinstance(key, str):
            variables = self.variables
            return variables[option("variable", key, variables)]
        return self._chosen(_rows(key, len(self)))

    def __len__(self) -> int:
        return len(self.final)

    def __iter__(self) -> Iterator[Draws]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, name: object) -> bool:
        return name in (("x",) if self.layout is None else self.layout.shapes)

    def _chosen(self, rows: Any) -> Draws:
        """The draws of some chains; cost and what was tuned stay those of the whole run."""
        held = {name: vars(self)[name] for name in BY_CHAIN}
        parts: dict[str, Any] = {n: None if v is None else v[rows] for n, v in held.items()}
        return replace(self, stats={n: v[rows] for n, v in self.stats.items()}, **parts)

    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the variance (divisor n - 1) of each chain's draws, `(chains, *event_shape)`."""
        if self.mean is not None and self.var is not None:
            return self.mean, self.var
        wide = self.x.double() if has_float64(self.x.device.type) else self.x
        return wide.mean(1), wide.var(1)

    def halves(self) -> Halves:
        """The moments of the first and of the second half of each chain's draws.

        Raises:
            InvalidArgument: There are fewer than four draws, or the draws are from a file of a
                version that did not keep moments of halves.
        """
        first, first_var, draws = (vars(self)[name] for name in HALVES)
        if first is not None and first_var is not None and draws is not None:
            return halves_from(self.moments(), (first, first_var), draws)
        if vars(self)["x"] is None or self.kept < 4:
            expected = "at least four draws of each chain, for R-hat of halves"
            hint = "More steps, with keep='all', a store, or 'moments', have them"
            raise InvalidArgument("draws", f"{self!r:.200}", expected, hint)
        return self._halves()

    def _halves(self) -> Halves:
        return halves_of(self.x)

    def to_arviz(self) -> Any:
        """The draws as ArviZ has them: an `InferenceData` of ArviZ 0.x, a `DataTree` of 1.x.

        Its posterior has the variables by name, with their dims and coords, or "x"; its
        sample_stats have ArviZ's names: "lp" (minus the energy), "energy" (of the Hamiltonian),
        "acceptance_rate", "n_steps", "tree_depth", "diverging", and each chain's "status" and
        "failed_at".

        Raises:
            MissingDependency: Where ArviZ is not installed.
            InvalidArgument: Where draws were not kept.
        """
        x = self._kept("ArviZ needs the draws themselves")
        layout = self.layout
        # where the last draw alone was kept, averages are of that one
        ours = {n: v[:, None] if v.ndim == 1 else v for n, v in self.stats.items()}
        stats = {n: _numpy(v) for n, v in ours.items() if v.shape == x.shape[:2]}
        if "energy" in stats:
            stats["lp"] = -stats.pop("energy")
        stats = {ARVIZ_NAMES.get(name, name): value for name, value in stats.items()}
        if "diverging" in stats:
            stats["diverging"] = stats["diverging"].astype(bool)
        for name, value in (("status", self.status), ("failed_at", self.failed_at)):
            stats[name] = np.broadcast_to(_numpy(value).astype(np.int32)[:, None], x.shape[:2])
        return inference_data(
            {
                "posterior": {name: _numpy(value) for name, value in self.variables.items()},
                "sample_stats": stats,
            },
            dims={} if layout is None else layout.dims,
            coords={"chain": _numpy(self.chains), **({} if layout is None else layout.coords)},
            attrs={"scoretk": json.dumps(self.provenance)},
            purpose="to_arviz",
        )

    @explained
    def summary(self, most: int = 100) -> Summary:
        """Means, Monte-Carlo errors, effective draws, R-hat, and a verdict with likely fixes.

        All coordinates are judged, by tests with stated rates of false alarms
        (docs/diagnostics.md). Where moments were kept, R-hat is that of the moments of halves, and
        less is judged.

        Args:
            most: How many coordinates get a row of the table.

        Returns:
            A `Summary`, which prints as a table and a verdict.

        Raises:
            InvalidArgument: Where moments were kept of fewer than four draws, or on the way along the
                grid of a solver.
        """
        if vars(self)["x"] is None:
            return self._summary_of_moments(most)
        x = self.x
        rows, solver = count("most", most, least=1), str(self.provenance.get("solver", ""))
        exact = self.provenance.get("exact_ends") is True
        labels = None if self.layout is None else self.layout.labels
        return summarise(
            self._values(x), self.status, self.failed_at, self.stats, rows, solver, exact, labels
        )

    def _summary_of_moments(self, most: int) -> Summary:
        solver = str(self.provenance.get("solver", ""))
        if Sampler(solver).independent:
            hint = "Draws of a solver with a grid of its own are its ends: keep='last'"
            raise InvalidArgument("draws", f"{self!r:.200}", "draws that are a chain's", hint)
        labels = None if self.layout is None else self.layout.labels
        rows = count("most", most, least=1)
        return summarise_halves(
            self.halves(), self.status, self.failed_at, self.stats, rows, solver, labels
        )

    @explained
    def plot(
        self, kind: str = "trace", names: Sequence[str] | str | None = None, most: int = 6
    ) -> Figure:
        """Chains as a picture: by ArviZ where it is installed, else by matplotlib.

        Chains that failed are left out. Sheets of samples: `scoretk.plot.samples(draws)`.

        Args:
            kind: "trace" (histograms and the way of each chain), "rank" (ranks among all draws, even
                where chains agree) or "pairs" (each entry over each other one).
            names: The variables, or entries such as "theta[3]", to show; None for the first ones.
            most: How many entries are shown.

        Returns:
            A matplotlib figure, which is neither shown nor written: `figure.savefig(path)`.

        Raises:
            InvalidArgument: Draws were not kept, every chain failed, or numbers are not finite.
            UnknownName: There is no such kind, variable or entry.
            MissingDependency: Where matplotlib is not installed.
        """
        x = self._kept("a picture needs the draws themselves")
        values = self._values(x)
        labels = entry_names(x.shape[2:]) if self.layout is None else self.layout.labels
        diverging = self.stats.get("diverging")
        return plot_chains(
            kind,
            values.reshape(*values.shape[:2], len(labels)),
            labels,
            self.ok,
            names=names,
            most=most,
            diverging=diverging if diverging is not None and diverging.ndim == 2 else None,
        )

    def _repr_html_(self) -> str:
        """The first rows of the summary and the verdict, for notebooks."""
        head = f"<p><code>{escape(repr(self))}</code></p>"
        try:
            return head + self.summary(SHOWN)._repr_html_()
        except InvalidArgument:  # too few moments to judge
            return head

    def to_pandas(self) -> Any:
        """The draws as a pandas `DataFrame`: a row a draw, a column an entry of the variables.

        Its index has the levels "chain" (the ids) and "draw"; columns are "mu", "theta[3]".

        Raises:
            MissingDependency: Where pandas is not installed.
            InvalidArgument: Where draws were not kept.
        """
        x = self._kept("a table needs the draws themselves")
        pandas = required("pandas", "pandas", "to_pandas")
        labels = entry_names(x.shape[2:]) if self.layout is None else self.layout.labels
        values = _numpy(self._values(x)).reshape(x.shape[0] * x.shape[1], len(labels))
        index = pandas.MultiIndex.from_product(
            [_numpy(self.chains), range(x.shape[1])], names=["chain", "draw"]
        )
        return pandas.DataFrame(values, index=index, columns=labels)

    @property
    def divergent(self) -> Tensor:
        """The draws at which a trajectory diverged, `(n, *event_shape)`; n = 0 without reports.

        Raises:
            InvalidArgument: Where draws were not kept.
        """
        x = self._kept("where trajectories diverged needs the draws themselves")
        return divergent_draws(x, self.stats)

    @explained
    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write the draws to a file, which is replaced as a whole or not at all.

        Args:
            path: Its ending says what is written: `.safetensors` (everything), `.nc` or `.zarr`
                (what ArviZ takes; the latter is a folder) or `.npy` (x alone).
            force: Whether a file that exists is replaced.

        Returns:
            The path.

        Raises:
            OutputExists: Where the file exists and `force` is not given.
            InvalidArgument: For another ending, or a place that cannot be written.
        """
        target = check_output(path, force)
        try:
            if target.suffix == ".safetensors":
                named, header = self._parts()
                write_sealed(target, KIND, named, header)
            elif target.suffix == ".npy":
                write_atomically(target, [self._npy()])
            elif target.suffix == ".nc":
                write_atomically(target, [netcdf(self.to_arviz())])
            else:
                data = self.to_arviz()
                replace_folder(target, lambda folder: zarr(data, folder))
        except ScoretkError:
            raise
        except OSError as error:
            raise InvalidArgument(
                "path", str(target), "a place that can be written", str(error)
            ) from error
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise InvalidArgument(
                "draws", self._shapes(), "draws of tensors and plain values", str(error)
            ) from error
        return target

    @staticmethod
    def load(path: str | Path) -> Draws:
        """Draws from a `.safetensors` file that `save` wrote, or in a store of `keep=scoretk.Zarr`.

        Those of a store, a folder, are `StoredDraws`: they are read when they are asked for.

        Raises:
            InvalidArgument: For anything else.
        """
        expected = "a .safetensors file of draws that Draws.save wrote"
        suffix = as_path("path", path).suffix
        if os.path.isdir(path) and STREAMED in READERS:
            return READERS[STREAMED](path)
        reader = READ_BY.get(suffix)
        if reader is not None and Path(path).exists():
            raise InvalidArgument("path", str(path), expected, f"This one is read by {reader}")
        file = file_to_read("path", path, "the path of a .safetensors file of draws")
        try:
            tensors, header = read_sealed(file, KIND, _unsealed)
            return _draws(tensors, header)
        except (Unreadable, ValueError, TypeError, KeyError) as error:
            raise InvalidArgument("path", str(path), expected, str(error)) from error

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name, and the header with all else."""
        named: Mapping[str, Tensor | None] = {
            "x": vars(self)["x"],
            "final": self.final,
            "status": self.status,
            "failed_at": self.failed_at,
            "mean": self.mean,
            "var": self.var,
            "half_mean": self.half_mean,
            "half_var": self.half_var,
            "half_draws": self.half_draws,
            "named": self.named,
            "chains": self.chains,
            **{f"stats/{name}": value for name, value in self.stats.items()},
            **{f"tuned/{name}": value for name, value in self.tuned.items()},
        }
        names = {} if self.layout is None else {"layout": self.layout.plain()}
        return {n: v for n, v in named.items() if v is not None}, {
            "cost": dict(self.cost),
            "provenance": self.provenance,
            **names,
        }

    def _shapes(self) -> dict[str, Any]:
        return {
            name: tuple(getattr(value, "shape", ()))
            for name, value in vars(self).items()
            if name in BY_CHAIN
        }

    def _npy(self) -> bytes:
        x = self._kept("moments have no x to put into a .npy file: '.safetensors' has all")
        buffer = BytesIO()
        np.save(buffer, _numpy(x), allow_pickle=False)
        return buffer.getvalue()


Draws.x = _Kept()  # type: ignore[assignment]  # its annotation is what there is to read


def _unsealed(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header of draws that were saved before files had checksums.

    Raises:
        Unreadable: Where there is none.
    """
    if set(metadata) != {"scoretk_draws"}:
        raise Unreadable("it holds no draws")
    header = plain_json(metadata["scoretk_draws"])
    return header | WITHOUT_IDS if isinstance(header, dict) else header


def _draws(tensors: dict[str, Tensor], header: Any) -> Draws:
    """Draws from the tensors and the header of a file.

    Raises:
        ValueError: Where they are not those of draws; also TypeError or KeyError.
    """
    named = not isinstance(header, dict) or header.pop("ids", True)
    if not isinstance(header, dict) or header.keys() - {"layout"} != {"cost", "provenance"}:
        raise ValueError("its header has other entries than cost, provenance and layout")
    layout = Layout.from_plain(header["layout"]) if "layout" in header else None
    cost, provenance = header["cost"], header["provenance"]
    if not isinstance(cost, dict) or not all(type(n) is int and n >= 0 for n in cost.values()):
        raise ValueError("its cost is no number of evaluations by kind")
    if not isinstance(provenance, dict):
        raise ValueError("its provenance is no dict")
    needed = {"final", *OUTCOME, *(["chains"] if named else [])}
    plain = {name: value for name, value in tensors.items() if "/" not in name}
    parts = {
        kind: {n[6:]: v for n, v in tensors.items() if n.startswith(f"{kind}/")}
        for kind in ("stats", "tuned")
    }
    if len(plain) + sum(map(len, parts.values())) < len(tensors) or not needed <= plain.keys() <= {
        *BY_CHAIN
    }:
        raise ValueError(f"it holds {', '.join(sorted(tensors))}")
    _check_plain(plain, layout)
    chains = plain["final"].shape[:1]
    for name, value in parts["stats"].items():
        if value.shape[:1] != chains:
            raise ValueError(f"the statistic {name} has shape {tuple(value.shape)}")
    held: dict[str, Any] = {"x": None} | plain
    return Draws(cost=Cost(cost), provenance=provenance, layout=layout, **parts, **held)  # type: ignore[arg-type]


def _check_plain(plain: dict[str, Tensor], layout: Layout | None) -> None:
    """Check that the tensors of draws, but for statistics and tuned values, fit together.

    Raises:
        ValueError: They do not.
    """
    chains, event = plain["final"].shape[:1], plain["final"].shape[1:]
    if layout is not None and "named" not in plain and tuple(event) != (layout.size,):
        raise ValueError(f"its layout is of {layout.size} entries")
    if "named" in plain and (layout is None or "x" not in plain):
        raise ValueError("it holds variables without a layout")
    if 0 < len(plain.keys() & {*HALVES}) < len(HALVES):
        raise ValueError("it holds a part of the moments of halves")
    for name, value in plain.items():
        whole = name in (*OUTCOME, "chains", "half_draws")
        each = (layout.size,) if name == "named" and layout is not None else event
        kept = plain["x"].shape[1:2] if name in ("x", "named") else ()
        both = (2,) if name == "half_draws" else ()
        shape = (*chains, *both) if whole else (*chains, *kept, *each)
        kind_fits = value.dtype == torch.int64 if whole else value.is_floating_point()
        if not chains or tuple(value.shape) != shape or not kind_fits:
            raise ValueError(f"{name} has shape {tuple(value.shape)} and {value.dtype}")
    if not bool(torch.isin(plain["status"], torch.tensor([int(code) for code in Status])).all()):
        raise ValueError("status holds a code that there is not")


def check_output(path: str | Path, force: bool, endings: tuple[str, ...] = FORMATS) -> Path:
    """The path to write draws to, checked before a run has spent anything.

    Raises:
        InvalidArgument: As `Draws.save`.
        OutputExists: As `Draws.save`.
        MissingDependency: Where the ending needs a package that is not installed.
    """
    is_folder = as_path("path", path).suffix == ".zarr"
    target = folder_to_write("path", path, STORE) if is_folder else file_to_write("path", path)
    if target.suffix not in endings:
        raise InvalidArgument("path", str(path), f"a file name that ends in {', '.join(endings)}")
    if target.suffix in WRITTEN_BY:
        check_format(target.suffix)
    if target.exists() and not force:
        raise OutputExists(
            f"{target} exists and is kept: choose another name, or overwrite it with force=True "
            f"(--force)"
        )
    return target


def _rows(key: Any, chains: int) -> Any:
    """Chains by a number, a slice, numbers or a mask, as what selects rows and keeps the axis.

    Raises:
        IndexError: There is no such chain.
        InvalidArgument: It is none of these.
    """
    if isinstance(key, slice):
        if key.step is not None and (not is_integer(key.step) or int(key.step) == 0):
            raise InvalidArgument("draws[...]", key, "a slice of chains whose step is not 0")
        return torch.tensor(range(chains)[key], dtype=torch.int64) if (key.step or 1) < 0 else key
    if is_integer(key):
        if not -chains <= (i := int(key)) < chains:
            raise IndexError(f"chain {i} of {chains}")
        return slice(i % chains, i % chains + 1)
    expected = "a variable's name, or chains: a number, a slice, numbers, or a mask of all"
    hint = "Draws of a chain: draws.x[chain, draw]" if isinstance(key, tuple) else ""
    try:
        rows = torch.as_tensor(key).cpu()  # which selects on any device
    except UNREADABLE as error:
        raise InvalidArgument("draws[...]", key, expected, hint) from error
    mask = rows.dtype is torch.bool
    if isinstance(key, tuple) or rows.ndim != 1 or (mask and len(rows) != chains):
        raise InvalidArgument("draws[...]", key, expected, hint)
    if not len(rows):
        return rows.long()
    if mask:
        return rows
    if rows.is_floating_point() or rows.is_complex():
        raise InvalidArgument("draws[...]", key, expected, hint)
    if int(rows.min()) < -chains or int(rows.max()) >= chains:
        raise IndexError(f"chains {rows.tolist()} of {chains}")
    return rows.long()


def _numpy(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
