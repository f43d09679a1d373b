"""What a run returns: draws, the status of each chain, statistics, cost, and provenance."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import count
from scoretk.core.files import file_to_read, file_to_write, write_atomically
from scoretk.core.sealed import Unreadable, plain_json, read_sealed, write_sealed
from scoretk.diagnostics.summary import Summary, arviz, divergent_draws, summarise
from scoretk.errors import InvalidArgument, MissingDependency, OutputExists, ScoretkError, Status

__all__ = ["FORMATS", "Cost", "Draws", "check_output"]

ARVIZ_NAMES = {
    "accept": "acceptance_rate",
    "hamiltonian": "energy",
    "leapfrogs": "n_steps",
    "depth": "tree_depth",
}
FORMATS = (".safetensors", ".nc", ".npy")
KIND = "draws"
OUTCOME = ("status", "failed_at")
PLAIN = {"x", "final", "mean", "var", "chains", *OUTCOME}
"""The tensors of draws, beside statistics and what was tuned."""
WITHOUT_IDS = {"ids": False}
"""The entry of a header that says that chains had no ids, as in files from before checksums."""


class Cost(dict[str, int]):
    """Model evaluations by kind ("energy", "score", "velocity"), counted by rows.

    A batch of 100 counts 100. An energy that is evaluated together with its gradient counts one of
    each.
    """

    @property
    def total(self) -> int:
        """The sum over kinds."""
        return sum(self.values())

    def __int__(self) -> int:
        return self.total


class Tuning(dict[str, Tensor]):
    """What a run's warmup has tuned, by name, and of which run it is.

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
        """This itself, as draws have it."""
        return self


@dataclass
class Draws:
    """The outcome of `sample`.

    Args:
        x: The draws, `(chains, kept, *event_shape)`; None where only moments were kept.
        final: The last positions, `(chains, *event_shape)`.
        status: The `Status` code of each chain, `(chains,)`.
        failed_at: The step at which the chain failed, -1 where it did not, `(chains,)`.
        stats: What the solver reported, by name: `(chains, kept)`, or averages `(chains,)` where
            only the last draw or moments were kept.
        cost: How many evaluations the run took, by kind.
        provenance: Plain values that say how to make the same draws again.
        mean: The mean of each chain, `(chains, *event_shape)`, where moments were kept.
        var: The variance of each chain (divisor n - 1), like it, where moments were kept.
        tuned: What warmup has tuned, by name, such as "step_size" and "scale";
            `solver.tuned_by(draws.tuned)`, or `tuned_by(draws)`, gives it back to a solver.
        chains: The id of each chain, which its noise depends on, `(chains,)`.
    """

    x: Tensor | None
    final: Tensor
    status: Tensor
    failed_at: Tensor
    stats: dict[str, Tensor] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    provenance: dict[str, Any] = field(default_factory=dict)
    mean: Tensor | None = None
    var: Tensor | None = None
    tuned: dict[str, Tensor] = field(default_factory=dict)
    chains: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.chains is None:
            self.chains = torch.arange(len(self.final))
        self.tuned = Tuning(self.tuned, self.provenance, self.final)

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
        kept = (
            f"x={tuple(self.x.shape)}"
            if self.x is not None
            else f"moments of {tuple(self.final.shape)}"
        )
        wrong = f", failed={self.failures}" if self.failures else ""
        return (
            f"Draws({kept}, solver={self.provenance.get('solver')}, cost={dict(self.cost)}{wrong})"
        )

    def to_arviz(self) -> Any:
        """The draws as an ArviZ `InferenceData`.

        Its posterior has the variable "x"; its sample_stats have ArviZ's names: "lp" (minus the
        energy), "energy" (of the Hamiltonian), "acceptance_rate", "n_steps", "tree_depth",
        "diverging", and each chain's "status" and "failed_at".

        Raises:
            MissingDependency: Where ArviZ is not installed.
            InvalidArgument: Where draws were not kept.
        """
        if self.x is None:
            raise InvalidArgument(
                "keep", "moments", "'all' or 'last': ArviZ needs the draws themselves"
            )
        az = arviz("to_arviz")
        stats = {n: _numpy(v) for n, v in self.stats.items() if v.ndim == 2}
        if "energy" in stats:
            stats["lp"] = -stats.pop("energy")
        stats = {ARVIZ_NAMES.get(name, name): value for name, value in stats.items()}
        if "diverging" in stats:
            stats["diverging"] = stats["diverging"].astype(bool)
        for name, value in (("status", self.status), ("failed_at", self.failed_at)):
            stats[name] = np.broadcast_to(_numpy(value).astype(np.int32)[:, None], self.x.shape[:2])
        with warnings.catch_warnings():
            # many short chains are what this package is for
            warnings.filterwarnings("ignore", message="More chains")
            return az.from_dict(
                posterior={"x": _numpy(self.x)},
                sample_stats=stats,
                coords={"chain": _numpy(self.chains)},
                attrs={"scoretk": json.dumps(self.provenance)},
            )

    def summary(self, most: int = 100) -> Summary:
        """Means, Monte-Carlo errors, effective draws, R-hat, and a verdict with likely fixes.

        All coordinates are judged, by tests with stated rates of false alarms
        (docs/diagnostics.md).

        Args:
            most: How many coordinates get a row of the table.

        Returns:
            A `Summary`, which prints as a table and a verdict.

        Raises:
            InvalidArgument: Where draws were not kept.
        """
        if self.x is None:
            raise InvalidArgument("keep", "moments", "'all': a summary needs the draws themselves")
        rows, solver = count("most", most, least=1), str(self.provenance.get("solver", ""))
        exact = self.provenance.get("exact_ends") is True
        return summarise(self.x, self.status, self.failed_at, self.stats, rows, solver, exact)

    @property
    def divergent(self) -> Tensor:
        """The draws at which a trajectory diverged, `(n, *event_shape)`; n = 0 without reports.

        Raises:
            InvalidArgument: Where draws were not kept.
        """
        if self.x is None:
            raise InvalidArgument(
                "keep", "moments", "'all': where trajectories diverged needs the draws themselves"
            )
        return divergent_draws(self.x, self.stats)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write the draws to a file, which is replaced as a whole or not at all.

        Args:
            path: Its ending says what is written: `.safetensors` (everything), `.nc` (what ArviZ
                takes) or `.npy` (x alone).
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
            else:
                write_atomically(target, self._netcdf() if target.suffix == ".nc" else self._npy())
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
        """Draws from a `.safetensors` file that `save` wrote.

        Raises:
            InvalidArgument: For anything else.
        """
        file = file_to_read("path", path, "the path of a .safetensors file of draws")
        try:
            tensors, header = read_sealed(file, KIND, _unsealed)
            return _draws(tensors, header)
        except (Unreadable, ValueError, TypeError, KeyError) as error:
            raise InvalidArgument(
                "path", str(path), "a .safetensors file of draws that Draws.save wrote", str(error)
            ) from error

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name, and the header with all else."""
        named: Mapping[str, Tensor | None] = {
            "x": self.x,
            "final": self.final,
            "status": self.status,
            "failed_at": self.failed_at,
            "mean": self.mean,
            "var": self.var,
            "chains": self.chains,
            **{f"stats/{name}": value for name, value in self.stats.items()},
            **{f"tuned/{name}": value for name, value in self.tuned.items()},
        }
        return {n: v for n, v in named.items() if v is not None}, {
            "cost": dict(self.cost),
            "provenance": self.provenance,
        }

    def _shapes(self) -> dict[str, Any]:
        return {
            name: tuple(getattr(value, "shape", ()))
            for name, value in vars(self).items()
            if name in PLAIN
        }

    def _npy(self) -> bytes:
        if self.x is None:
            raise InvalidArgument(
                "path", ".npy", "'.safetensors': moments have no x to put into a .npy file"
            )
        buffer = BytesIO()
        np.save(buffer, _numpy(self.x), allow_pickle=False)
        return buffer.getvalue()

    def _netcdf(self) -> bytes:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "draws.nc"
            self.to_arviz().to_netcdf(str(file), engine="h5netcdf")
            return file.read_bytes()


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
    if not isinstance(header, dict) or header.keys() != {"cost", "provenance"}:
        raise ValueError("its header has other entries than cost and provenance")
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
    if (
        len(plain) + sum(map(len, parts.values())) < len(tensors)
        or not needed <= plain.keys() <= PLAIN
    ):
        raise ValueError(f"it holds {', '.join(sorted(tensors))}")
    chains, event = plain["final"].shape[:1], plain["final"].shape[1:]
    for name, value in plain.items():
        whole = name in (*OUTCOME, "chains")
        shape = (
            tuple(chains)
            if whole
            else (*chains, *(value.shape[1:2] if name == "x" else ()), *event)
        )
        kind_fits = value.dtype == torch.int64 if whole else value.is_floating_point()
        if not chains or tuple(value.shape) != shape or not kind_fits:
            raise ValueError(f"{name} has shape {tuple(value.shape)} and {value.dtype}")
    if not bool(torch.isin(plain["status"], torch.tensor([int(code) for code in Status])).all()):
        raise ValueError("status holds a code that there is not")
    for name, value in parts["stats"].items():
        if value.shape[:1] != chains:
            raise ValueError(f"the statistic {name} has shape {tuple(value.shape)}")
    return Draws(cost=Cost(cost), provenance=provenance, **parts, **{"x": None} | plain)  # type: ignore[arg-type]


def check_output(path: str | Path, force: bool, endings: tuple[str, ...] = FORMATS) -> Path:
    """The path to write draws to, checked before a run has spent anything.

    Raises:
        InvalidArgument: As `Draws.save`.
        OutputExists: As `Draws.save`.
        MissingDependency: Where the ending needs a package that is not installed.
    """
    target = file_to_write("path", path)
    if target.suffix not in endings:
        raise InvalidArgument("path", str(path), f"a file name that ends in {', '.join(endings)}")
    if target.suffix == ".nc":
        arviz("a .nc file")
        if importlib.util.find_spec("h5netcdf") is None:
            raise MissingDependency("h5netcdf", "arviz", "a .nc file")
    if target.exists() and not force:
        raise OutputExists(
            f"{target} exists and is kept: choose another name, or overwrite it with force=True "
            f"(--force)"
        )
    return target


def _numpy(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
