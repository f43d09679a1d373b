"""A user's own array read from a file: `.npy`, `.npz` or `.csv`, never pickle."""

from __future__ import annotations

import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.arguments import option
from scoretk.core.arrays import fresh
from scoretk.core.files import file_to_read
from scoretk.errors import InvalidArgument

__all__ = ["ENDINGS", "read_array"]

ENDINGS = (".npy", ".npz", ".csv")

_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    SyntaxError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    UserWarning,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
)
"""What numpy and the archive reader raise for malformed files: the header of an .npy is Python
source.
"""


def read_array(
    path: str | os.PathLike[str], name: str | None = None, *, argument: str = "data", axes: int = 2
) -> Tensor:
    """The numbers in a file, rows first.

    Args:
        path: Of a file that ends in .npy, .npz or .csv (commas, one row a line, with or without a
            line of headings).
        name: Which array of an .npz that holds several.
        argument: The argument that errors name.
        axes: The least number of axes of the array.

    Returns:
        `(n, *event_shape)`, float64 where the file has floating-point numbers of more than 4 bytes,
        else float32. Numbers that do not fit become infinite.

    Raises:
        InvalidArgument: The file cannot be read, holds no real numbers, has too few axes, or holds
            several arrays and no name is given.
        UnknownName: The file has no array of this name.
    """
    file = file_to_read(argument, path, f"the path of a file of numbers ({', '.join(ENDINGS)})")
    if file.suffix not in ENDINGS:
        raise InvalidArgument(argument, str(path), f"a file that ends in {', '.join(ENDINGS)}")
    try:
        array = _table(file) if file.suffix == ".csv" else _stored(file, name)
    except InvalidArgument:
        raise
    except _UNREADABLE as error:
        raise InvalidArgument(
            argument, str(path), "a file of numbers that can be read", str(error)
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise InvalidArgument(
            argument,
            str(path),
            "real numbers",
            f"It holds {getattr(array, 'dtype', type(array).__name__)}",
        )
    if array.ndim < axes:
        raise InvalidArgument(
            argument,
            f"shape {array.shape}",
            "rows, (n, *event_shape)",
            "One number a row is (n, 1)",
        )
    # What float64 cannot hold becomes infinite, which the caller refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        wide = array.dtype.kind == "f" and array.dtype.itemsize > 4
        return fresh(torch.from_numpy(array.astype(np.float64 if wide else np.float32)))


def _stored(file: Path, name: str | None) -> Any:
    with open(file, "rb") as opened:
        found = np.load(opened, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            return found
        with found:
            return _member(found, name)


def _table(file: Path) -> Any:
    with open(file, encoding="utf-8-sig") as lines:
        first = lines.readline()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="loadtxt: input contained no data")
        return np.loadtxt(
            file,
            delimiter=",",
            skiprows=0 if _is_numeric(first) else 1,
            ndmin=2,
            encoding="utf-8-sig",
        )


def _is_numeric(line: str) -> bool:
    try:
        [float(cell) for cell in line.split(",")]
    except ValueError:
        return False
    return True


def _member(archive: Any, name: str | None) -> Any:
    names = list(archive.files)
    if name is None and len(names) != 1:
        raise InvalidArgument("array", None, f"the name of one of its arrays: {', '.join(names)}")
    return archive[names[0] if name is None else option("array", name, names)]
