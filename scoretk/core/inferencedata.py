"""ArviZ's data, for both ArviZ: an `InferenceData` of 0.x, an xarray `DataTree` of 1.x.

What differs between the two is here and nowhere else: how groups are handed over, where their
attributes go, and what is warned of. The module needs numpy and ArviZ alone, so that Python
versions are tested without torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scoretk.core.dependencies import required
from scoretk.errors import MissingDependency

__all__ = [
    "ARVIZ_NAMES",
    "STORE",
    "WRITTEN_BY",
    "arviz",
    "check_format",
    "inference_data",
    "netcdf",
    "zarr",
]

WRITTEN_BY = {".nc": ("h5netcdf", "h5py"), ".zarr": ("zarr",)}
"""What writes a format, by its ending; h5netcdf does not always bring h5py along."""
ARVIZ_NAMES = {
    "accept": "acceptance_rate",
    "hamiltonian": "energy",
    "leapfrogs": "n_steps",
    "depth": "tree_depth",
}
"""What ArviZ calls what solvers report."""
STORE = ("zarr.json", ".zgroup")
"""Files of which one is in each folder of zarr, of its formats 3 and 2."""


def arviz(purpose: str) -> Any:
    """The ArviZ module.

    Args:
        purpose: What needs it, for the message.

    Raises:
        MissingDependency: It is not installed.
    """
    return required("arviz", "arviz", purpose)


def inference_data(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    attrs: Mapping[str, Any],
    purpose: str,
) -> Any:
    """ArviZ's data, as the installed ArviZ has them.

    Args:
        groups: Arrays `(chain, draw, ...)` by name, by group: "posterior", "sample_stats".
        dims: The names of the axes after chain and draw, by variable.
        coords: The labels along axes, by the names of these.
        attrs: Attributes of the whole.
        purpose: What needs ArviZ, for the message.

    Returns:
        An `InferenceData` of ArviZ 0.x, a `DataTree` of 1.x.

    Raises:
        MissingDependency: ArviZ is not installed.
    """
    az = arviz(purpose)
    named = {name: list(axes) for name, axes in dims.items()}
    with warnings.catch_warnings():
        # many short chains are what this package is for
        warnings.filterwarnings("ignore", message="More chains")
        if is_tree(az):
            whole = {"/": dict(attrs)}
            return az.from_dict(dict(groups), dims=named, coords=dict(coords), attrs=whole)
        return az.from_dict(**groups, dims=named, coords=dict(coords), attrs=dict(attrs))


def is_tree(az: Any) -> bool:
    """Whether an ArviZ has its data in trees, as it has from 1.0 on."""
    return int(az.__version__.partition(".")[0]) >= 1


def check_format(ending: str) -> None:
    """Check that ArviZ's data can be written in a format.

    Args:
        ending: One of `WRITTEN_BY`.

    Raises:
        MissingDependency: A package is not installed.
    """
    purpose = f"a {ending} file"
    arviz(purpose)
    for package in WRITTEN_BY[ending]:
        if find_spec(package) is None:
            extra = "zarr" if package == "zarr" else "arviz"
            raise MissingDependency(package, extra, purpose)


def netcdf(data: Any) -> bytes:
    """ArviZ's data as the bytes of a netCDF file, which `arviz.from_netcdf` reads."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "draws.nc"
        data.to_netcdf(str(file), engine="h5netcdf")
        return file.read_bytes()


def zarr(data: Any, folder: Path) -> None:
    """Write ArviZ's data as a folder of zarr, which `xarray.open_datatree` reads.

    So does `arviz.from_zarr` of ArviZ 1.x; that of 0.x knows zarr's format 2 only.
    """
    tree = data.to_datatree() if hasattr(data, "to_datatree") else data
    with warnings.catch_warnings():
        # labels are strings, which zarr's format 3 has but does not promise to keep
        warnings.filterwarnings("ignore", message=".*Zarr V3 specification")
        tree.to_zarr(str(folder), consolidated=False)


def stored_data(folder: Path, chains: Any, purpose: str) -> Any:
    """ArviZ's data in a folder of zarr, not read yet.

    Args:
        folder: The folder.
        chains: Which chains, by their place; None for all.
        purpose: What needs ArviZ, for the message.

    Returns:
        An `InferenceData` of ArviZ 0.x, a `DataTree` of 1.x.

    Raises:
        MissingDependency: ArviZ or zarr is not installed.
    """
    az = arviz(purpose)
    xarray = required("xarray", "zarr", purpose)
    tree = xarray.open_datatree(folder, engine="zarr", consolidated=False, chunks=None)
    kept = tree.filter(lambda node: "byte" not in node.dims)  # what is scoretk's own
    tree = kept if chains is None else kept.isel(chain=chains)
    if is_tree(az):
        return tree
    groups = {name: tree[name].to_dataset() for name in tree.children}
    return az.InferenceData(**groups, attrs=dict(tree.attrs))
