"""IDX files, in which the images of MNIST come.

Two zero bytes, a byte for the type (8 for whole numbers up to 255), a byte for the number of axes,
the size of each axis in four bytes, most significant first, and then the numbers, the last axis
fastest. The files may be compressed by gzip.

References:
    LeCun, Cortes, Burges, "The MNIST database of handwritten digits" (1998).
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.errors import InvalidArgument

__all__ = ["SIDE", "Images", "find_images", "find_labels", "read_images", "read_labels"]

SIDE = 28
"""The rows and the columns of an image."""
MAGIC, LABELS_MAGIC = 0x00000803, 0x00000801
"""Whole numbers up to 255 on three axes, and on one."""
MOST = 1_000_000
"""More images than this are a damaged header."""
FOLDERS = (".", "raw", "MNIST/raw")
"""Where in the folder that the user names files may lie: torchvision makes MNIST/raw."""
TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
TRAIN_LABELS, TEST_LABELS = "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"
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
    """Read both files of images.

    Args:
        folder: The user's folder; the files may also lie in its `raw` or `MNIST/raw`.

    Raises:
        InvalidArgument: Where a file is not there, or is none of MNIST's.
    """
    if folder is None:
        raise InvalidArgument("--data", None, "the folder of MNIST's IDX files", WHERE)
    return Images(*(read_images(_named(folder, name)) for name in (TRAIN, TEST)))


def find_labels(folder: Path, images: Images) -> Images | None:
    """Read both files of labels, `(n,)` of int64 each; None where one is not there.

    Args:
        folder: As in `find_images`.
        images: The images that they are of.

    Raises:
        InvalidArgument: Where a file is none of MNIST's, or there is not one label an image.
    """
    paths = [_found(folder, name) for name in (TRAIN_LABELS, TEST_LABELS)]
    if None in paths:
        return None
    labels = Images(*(read_labels(path) for path in paths if path is not None))
    for path, own, of in zip(paths, labels, images, strict=True):
        if len(own) != len(of):
            raise InvalidArgument(str(path), f"{len(own)} labels", f"one an image, {len(of)}")
    return labels


def _named(folder: Path, name: str) -> Path:
    found = _found(folder, name)
    if found is None:
        raise InvalidArgument("--data", str(folder), f"a folder with {name}", WHERE)
    return found


def _found(folder: Path, name: str) -> Path | None:
    for inner in FOLDERS:
        for ending in ("", ".gz"):
            path = folder / inner / (name + ending)
            if path.is_file():
                return path
    return None


def read_images(path: Path) -> Tensor:
    """The images of an IDX file, `(n, 28, 28)` of uint8.

    Args:
        path: The file, compressed where its name ends in .gz.

    Raises:
        InvalidArgument: Where the file cannot be read, has another magic number or shape, or does
            not have as many bytes as its header says.
    """
    content, (n, *size) = _content(path, MAGIC, axes=3)
    if size != [SIDE, SIDE] or not 0 < n <= MOST:
        raise _wrong(path, (n, *size), f"images of {SIDE} x {SIDE} pixels, shape (n, 28, 28)")
    return _numbers(path, content, n * SIDE**2, f"{n} images").reshape(n, SIDE, SIDE)


def read_labels(path: Path) -> Tensor:
    """The labels of an IDX file, `(n,)` of int64, from 0 to 9.

    Args:
        path: As in `read_images`.

    Raises:
        InvalidArgument: As `read_images`, and for numbers above 9.
    """
    content, (n,) = _content(path, LABELS_MAGIC, axes=1)
    labels = _numbers(path, content, n, f"{n} labels").long()
    if n and int(labels.max()) > 9:
        raise _wrong(path, int(labels.max()), "digits from 0 to 9")
    return labels


def _content(path: Path, magic: int, axes: int) -> tuple[bytes, tuple[int, ...]]:
    """What is in a file after its header, one byte more than its header says at most; and its shape."""
    head = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(head)
            if len(header) < head:
                raise _wrong(path, f"{len(header)} bytes", f"a header of {head} bytes")
            found, *shape = struct.unpack(f">{1 + axes}I", header)
            if found != magic:
                several = "on three axes" if axes > 1 else "on one axis"
                raise _wrong(
                    path, f"{found:#010x}", f"the magic number {magic:#010x}, of bytes {several}"
                )
            most = math.prod((min(shape[0], MOST), *(min(side, SIDE) for side in shape[1:])))
            return file.read(most + 1), tuple(shape)
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(
            path, str(error), "a whole file, compressed by gzip where it ends in .gz"
        ) from error


def _numbers(path: Path, content: bytes, n: int, of: str) -> Tensor:
    if len(content) != n:
        got = f"{len(content)} bytes" if len(content) < n else "more"
        raise _wrong(path, got, f"{n} bytes of {of}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _wrong(path: Path, got: object, expected: str) -> InvalidArgument:
    return InvalidArgument(str(path), got, expected, "The file is damaged, or is none of MNIST's")
