"""Old import paths, kept for one release.

Each name is found where it now is, with a `DeprecationWarning` that says where.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["FOLDERS", "MOVED", "PUBLIC", "Moved", "first_path"]

MOVED = {
    "arguments": "core.arguments",
    "rows": "core.rows",
    "noise": "core.noise",
    "streams": "core.streams",
    "compiling": "core.compiling",
    "arrays": "core.arrayfiles",
    "grids": "ode.grids",
    "plot": "diagnostics.plot",
    "solvers.tableaus": "ode.tableaus",
    "solvers.rowwise": "ode.rowwise",
    "solvers.adaptive": "ode.adaptive",
    "solvers.adjoint": "ode.adjoint",
    "matrix": "solvers.matrix",
    "solvers.metropolis": "solvers.parts.metropolis",
    "solvers.nested": "solvers.parts.nested",
    "solvers.tuning": "solvers.warmup.step_size solvers.warmup.scales solvers.warmup.halving",
    "solvers.tuned": "solvers.warmup.tuned",
    "mixing": "diagnostics.mixing",
    "verdict": "diagnostics.verdict diagnostics.judging",
    "summary": "diagnostics.summary",
    "record": "run.record",
    "checkpoint": "run.checkpoint",
    "witness": "run.witness",
    "drive": "run.drive run.moment run.schedule run.settle run.state",
    "draws": "run.draws",
    "runs": "run.batches run.batch run.resume",
    "progress": "run.progress",
    "tape": "run.capture",
    "sampling": "inference.sampling",
    "encoding": "inference.encoding",
    "likelihood": "inference.likelihood",
    "partition": "inference.partition",
    "families": "models",
    "families.specs": "models.specs",
    "families.mixture": "models.targets.mixture",
    "families.analytic": "models.targets.analytic",
    "families.regression": "models.targets.regression",
    "families.discrete": "models.targets.lattices",
    "families.vae": "models.latent.vae models.digits.vae",
    "families.autoregressive": "models.latent.autoregressive models.digits.autoregressive",
    "families.networks": "models.digits.networks",
    "families.digits_data": "models.digits.data",
    "families.stored": "models.digits.stored",
    "families.training": "models.digits.training",
    "families.digits_energy": "models.digits.energy",
    "families.adversarial": "models.digits.adversarial models.latent.energies",
    "families.boltzmann": "models.digits.boltzmann",
    "families.diffusion": "models.digits.diffusion",
    "families.flow_matching": "models.digits.flow_matching",
    "families.flows": "models.digits.flows",
    "families.jem": "models.digits.jem",
    "families.ncsn": "models.digits.ncsn",
    "adapters.fingerprint": "fields.fingerprint",
    "adapters.pretrained": "fields.pretrained",
}
"""Where the modules of release 0.1 went, from the package's root; several where one was divided."""

FOLDERS = {"bench": "demo.bench"}
"""Where folders went with all that is in them, but for what `MOVED` says."""

PUBLIC = {"grids", "plot"}
"""Modules whose short path is the public one: found there without a warning."""


_ROOT = __name__.partition(".")[0]


class Moved(MetaPathFinder, Loader):
    """Finds modules by their old paths, before all other finders.

    Those would take the old folder of a checkout, where cached code is left, for a package.
    """

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> ModuleSpec | None:
        root, _, old = fullname.partition(".")
        if root != _ROOT or not _homes(old):
            return None
        within = old.partition(".")[0] in FOLDERS or any(n.startswith(f"{old}.") for n in MOVED)
        return ModuleSpec(fullname, self, is_package=within)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Forward(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the names to be looked up on demand; at a public path put the module itself."""
        old = module.__name__.partition(".")[2]
        if old in PUBLIC:
            sys.modules[module.__name__] = import_module(f"{_ROOT}.{MOVED[old]}")


def first_path(module: str) -> str:
    """Where a module was before its folder moved: checkpoints name functions by that, old and new ones."""
    for old, new in FOLDERS.items():
        within = module.removeprefix(f"{_ROOT}.{new}.")
        if within != module:
            return f"{_ROOT}.{old}.{within}"
    return module


def _homes(old: str) -> list[str]:
    """The modules that have what an old one had, from the package's root; none where there was no such."""
    folder, _, rest = old.partition(".")
    if old in MOVED or folder not in FOLDERS:
        return MOVED.get(old, "").split()
    home = f"{FOLDERS[folder]}.{rest}".rstrip(".")
    return [home] if find_spec(f"{_ROOT}.{home}") else []


class _Forward(ModuleType):
    """A module of which only the old path is left."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        for home in (f"{_ROOT}.{new}" for new in _homes(self.__name__.partition(".")[2])):
            value = getattr(import_module(home), name, self)
            if value is not self:
                warnings.warn(
                    f"{self.__name__}.{name} is now {home}.{name}", DeprecationWarning, stacklevel=2
                )
                return value
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
