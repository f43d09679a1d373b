"""IDX files, in which the images of MNIST come.

Two zero bytes, a byte for the type (8 for whole numbers up to 255), a byte for the number of axes,
the size of each axis in four bytes, most significant first, and then the numbers, the last axis
fastest. The files may be compressed by gzip.

References:
    LeCun, Cortes, Burges, "The MNIST database of handwritten digits" (1998).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument

__all__ = ["SIDE", "Images", "find_images", "read_images"]

SIDE = 28
"""The rows and the columns of an image."""
MAGIC = 0x00000803
"""Whole numbers up to 255 on three axes."""
MOST = 1_000_000
"""More images than this are a damaged header."""
FOLDERS = (".", "raw", "MNIST/raw")
"""Where in the folder that the user names files may lie: torchvision makes MNIST/raw."""
TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
WHERE = (
    f"The folder of {TRAIN} and {TEST}, .gz or not, such as torchvision's MNIST/raw: "
    "scoretk bench mnist --data FOLDER"
)


class Images(NamedTuple):
    """The images of both files, `(n, 28, 28)` of uint8 each.

    Args:
        train: Those to fit to and to choose by, 60,000 in MNIST.
        test: Those to judge by, 10,000.
    """

    train: Tensor
    test: Tensor


def find_images(folder: Path | None) -> Images:
    """Read both files of images; labels are not needed.

    Args:
        folder: The user's folder; the files may also lie in its `raw` or `MNIST/raw`.

    Raises:
        InvalidArgument: Where a file is not there, or is none of MNIST's.
    """
    if folder is None:
        raise InvalidArgument("--data", None, "the folder of MNIST's IDX files", WHERE)
    return Images(*(read_images(_found(folder, name)) for name in (TRAIN, TEST)))


def _found(folder: Path, name: str) -> Path:
    for inner in FOLDERS:
        for ending in ("", ".gz"):
            path = folder / inner / (name + ending)
            if path.is_file():
                return path
    raise InvalidArgument("--data", str(folder), f"a folder with {name}", WHERE)


def read_images(path: Path) -> Tensor:
    """The images of an IDX file, `(n, 28, 28)` of uint8.

    Args:
        path: The file, compressed where its name ends in .gz.

    Raises:
        InvalidArgument: Where the file cannot be read, has another magic number or shape, or does
            not have as many bytes as its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(16)
            if len(header) < 16:
                raise _wrong(path, f"{len(header)} bytes", "a header of 16 bytes")
            magic, n, *size = struct.unpack(">4I", header)
            if magic != MAGIC:
                expected = f"the magic number {MAGIC:#010x}, of bytes on three axes"
                raise _wrong(path, f"{magic:#010x}", expected)
            if size != [SIDE, SIDE] or not 0 < n <= MOST:
                raise _wrong(
                    path, (n, *size), f"images of {SIDE} x {SIDE} pixels, shape (n, 28, 28)"
                )
            pixels = file.read(n * SIDE**2 + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(
            path, str(error), "a whole file, compressed by gzip where it ends in .gz"
        ) from error
    if len(pixels) != n * SIDE**2:
        got = f"{len(pixels)} bytes" if len(pixels) < n * SIDE**2 else "more"
        raise _wrong(path, got, f"{n * SIDE**2} bytes of {n} images")
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(n, SIDE, SIDE)


def _wrong(path: Path, got: object, expected: str) -> InvalidArgument:
    return InvalidArgument(str(path), got, expected, "The file is damaged, or is none of MNIST's")
