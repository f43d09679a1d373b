"""What a run returns: draws, what became of each chain, statistics, cost, and where it all came from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from scoretk.arguments import count
from scoretk.checkpoint import write_atomically
from scoretk.errors import InvalidArgument, OutputExists, Status
from scoretk.summary import Summary, arviz, divergent_draws, summarise

__all__ = ["FORMATS", "Cost", "Draws", "check_output"]

ARVIZ_NAMES = {
    "accept": "acceptance_rate", "hamiltonian": "energy", "leapfrogs": "n_steps", "depth": "tree_depth",
}  # fmt: skip
FORMATS = (".safetensors", ".nc", ".npy")


class Cost(dict[str, int]):
    """Model evaluations by kind ("energy", "score", "velocity"), one a row: a batch of 100 counts 100.

    An energy evaluated together with its gradient counts one of each.
    """

    @property
    def total(self) -> int:
        """The sum over kinds."""
        return sum(self.values())

    def __int__(self) -> int:
        return self.total


@dataclass
class Draws:
    """The outcome of `sample`.

    Attributes: x, `(chains, kept, *event_shape)`, None where only moments were kept; final, the last position,
    `(chains, *event_shape)`; mean and var (of n - 1), `(chains, *event_shape)`, where moments were kept; status and
    failed_at, `(chains,)`: a `Status` code, and the step at which the chain failed, -1 where all is well; stats, by
    name, `(chains, kept)` beside `x`, or `(chains,)` averages where only the last draw or moments were kept; cost;
    provenance, plain values that tell how to make the same draws again; tuned, by name what warmup tuned, such as
    "step_size" and "scale".
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

    @property
    def ok(self) -> Tensor:
        """Which chains are well, `(chains,)` of bool."""
        return self.status == int(Status.OK)

    @property
    def failures(self) -> dict[str, int]:
        """How many chains failed, by status name; empty where none did."""
        counts = {Status(c).name: int((self.status == c).sum()) for c in Status if c is not Status.OK}
        return {name: n for name, n in counts.items() if n}

    def __repr__(self) -> str:
        kept = f"x={tuple(self.x.shape)}" if self.x is not None else f"moments of {tuple(self.final.shape)}"
        wrong = f", failed={self.failures}" if self.failures else ""
        return f"Draws({kept}, solver={self.provenance.get('solver')}, cost={dict(self.cost)}{wrong})"

    def to_arviz(self) -> Any:
        """An ArviZ `InferenceData`: posterior with variable "x", and sample_stats under ArviZ's names: "lp" (minus the energy),
        "energy" (the Hamiltonian's), "acceptance_rate", "n_steps", "tree_depth", "diverging", and each chain's "status" and
        "failed_at".

        Raises: `MissingDependency` without ArviZ; `InvalidArgument` where draws were not kept.
        """
        if self.x is None:
            raise InvalidArgument("keep", "moments", "'all' or 'last': ArviZ needs the draws themselves")
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
            warnings.filterwarnings("ignore", message="More chains")  # many short chains are what this package is for
            return az.from_dict(
                posterior={"x": _numpy(self.x)},
                sample_stats=stats,
                attrs={"scoretk": json.dumps(self.provenance)},
            )

    def summary(self, most: int = 100) -> Summary:
        """Means, Monte-Carlo errors, effective sample sizes, R-hat, and a plain verdict with the most likely fixes.

        Arguments: most, how many coordinates get a row. Print what is returned.
        Raises: `MissingDependency` without ArviZ; `InvalidArgument` where draws were not kept.
        """
        if self.x is None:
            raise InvalidArgument("keep", "moments", "'all': a summary needs the draws themselves")
        stats = {name: value for name, value in self.stats.items() if value.ndim == 2}
        return summarise(self.x, self.status, self.failed_at, stats, count("most", most, least=1))

    @property
    def divergent(self) -> Tensor:
        """The draws at which a trajectory diverged, `(n, *event_shape)`; none where the kernel reports none."""
        if self.x is None:
            raise InvalidArgument("keep", "moments", "'all': where trajectories diverged needs the draws themselves")
        return divergent_draws(self.x, self.stats)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write the draws. The ending says how: `.safetensors` (everything), `.nc` (ArviZ), `.npy` (x alone).

        Raises: `OutputExists` where the file exists and `force` is not given; `InvalidArgument` for another ending or
        an unwritable place. A file that exists is replaced whole or not at all.
        """
        target = check_output(path, force)
        writers = {".safetensors": self._safetensors, ".nc": self._netcdf, ".npy": self._npy}
        try:
            write_atomically(target, writers[target.suffix]())
        except OSError as error:
            raise InvalidArgument("path", str(target), "a place that can be written", str(error)) from error
        return target

    @staticmethod
    def load(path: str | Path) -> Draws:
        """Draws from a `.safetensors` file that `save` wrote. Raises `InvalidArgument` for anything else."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("scoretk_draws", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidArgument("path", str(path), "a .safetensors file of draws", str(error)) from error
        if not isinstance(header, dict):
            raise InvalidArgument("path", str(path), "a file that Draws.save wrote")
        stats = {name[6:]: value for name, value in tensors.items() if name.startswith("stats/")}
        tuned = {name[6:]: value for name, value in tensors.items() if name.startswith("tuned/")}
        plain = {name: value for name, value in tensors.items() if "/" not in name}
        return Draws(
            x=plain.get("x"), final=plain["final"], status=plain["status"], failed_at=plain["failed_at"], stats=stats,
            cost=Cost(header["cost"]), provenance=header["provenance"], mean=plain.get("mean"), var=plain.get("var"),
            tuned=tuned,
        )  # fmt: skip

    def _safetensors(self) -> bytes:
        named: Mapping[str, Tensor | None] = {
            "x": self.x, "final": self.final, "status": self.status, "failed_at": self.failed_at, "mean": self.mean,
            "var": self.var, **{f"stats/{name}": value for name, value in self.stats.items()},
            **{f"tuned/{name}": value for name, value in self.tuned.items()},
        }  # fmt: skip
        tensors = {n: v.detach().to("cpu", copy=True).contiguous() for n, v in named.items() if v is not None}
        header = json.dumps({"cost": dict(self.cost), "provenance": self.provenance}, sort_keys=True)
        return to_bytes(tensors, {"scoretk_draws": header})

    def _npy(self) -> bytes:
        if self.x is None:
            raise InvalidArgument("path", ".npy", "'.safetensors': moments have no x to put into a .npy file")
        buffer = BytesIO()
        np.save(buffer, _numpy(self.x), allow_pickle=False)
        return buffer.getvalue()

    def _netcdf(self) -> bytes:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "draws.nc"
            self.to_arviz().to_netcdf(str(file), engine="h5netcdf")
            return file.read_bytes()


def check_output(path: str | Path, force: bool, endings: tuple[str, ...] = FORMATS) -> Path:
    """The path to write to. Raises what `Draws.save` raises, before a run has spent anything."""
    target = Path(path)
    if target.suffix not in endings:
        raise InvalidArgument("path", str(path), f"a file name that ends in {', '.join(endings)}")
    if target.exists() and not force:
        raise OutputExists(
            f"{target} exists and is kept: choose another name, or overwrite it with force=True (--force)"
        )
    if not target.parent.is_dir():
        raise InvalidArgument("path", str(path), "a path in a folder that exists")
    return target


def _numpy(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
