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

from scoretk.errors import MissingDependency

__all__ = ["arviz", "check_netcdf", "inference_data", "netcdf"]

NETCDF = ("h5netcdf", "h5py")
"""What writes netCDF; h5netcdf does not always bring h5py along."""


def arviz(purpose: str) -> Any:
    """The ArviZ module.

    Args:
        purpose: What needs it, for the message.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import arviz as module
    except ImportError as error:
        raise MissingDependency("arviz", "arviz", purpose) from error
    return module


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


def check_netcdf(purpose: str) -> None:
    """Check that netCDF can be written.

    Raises:
        MissingDependency: A package is not installed.
    """
    arviz(purpose)
    for package in NETCDF:
        if find_spec(package) is None:
            raise MissingDependency(package, "arviz", purpose)


def netcdf(data: Any) -> bytes:
    """ArviZ's data as the bytes of a netCDF file, which `arviz.from_netcdf` reads."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "draws.nc"
        data.to_netcdf(str(file), engine="h5netcdf")
        return file.read_bytes()
