r"""Binarised and grey images, and which of them are for what.

Binarised, each pixel is drawn once, `x ~ Bernoulli(grey / 255)`, by the seed; the draw of image i is a
function of the seed and i alone. The last sixth of the training file is for choosing weights:
50,000, 10,000 and 10,000 images of MNIST.

References:
    Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks" (2008), for the
    draws. (The files of Larochelle that later papers use are another such draw.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.demo.bench.mnist.idx import Images
from scoretk.errors import InvalidArgument

__all__ = ["Split", "binarised", "grey_split", "split", "split_rows"]

SHARE = 6
"""One in so many images of the training file is for choosing weights."""
CHUNK = 4096
TEST_ROWS = 2**31
"""The number of the first image of the test file, for its draws."""


class Split(NamedTuple):
    """Images of 0 and 1, or grey ones in [0, 1), `(n, 28, 28)` of float32 each.

    Args:
        train: Those to fit to.
        valid: Those to choose weights by.
        test: Those to judge by.
    """

    train: Tensor
    valid: Tensor
    test: Tensor

    def first(self, train: int, valid: int, test: int) -> Split:
        """The first so many images of each."""
        return Split(self.train[:train], self.valid[:valid], self.test[:test])

    def to(self, device: str) -> Split:
        """The same images on a device, where families are then trained and judged."""
        return Split(*(part.to(device) for part in self))


def split(images: Images, seed: int) -> Split:
    """The images, binarised and split.

    Raises:
        InvalidArgument: Where there are too few images to have some for each.
    """
    train, test = binarised(images.train, seed), binarised(images.test, seed, TEST_ROWS)
    return split_rows(Images(train, test))


def grey_split(images: Images) -> Split:
    """The grey levels over 256, split as the binarised images are.

    Raises:
        InvalidArgument: As `split`.
    """
    return split_rows(Images(*(part.float() / 256 for part in images)))


def split_rows(rows: Images) -> Split:
    """Rows of both files, such as labels, split as the images are.

    Raises:
        InvalidArgument: As `split`.
    """
    kept = len(rows.train) // SHARE
    if not kept:
        raise InvalidArgument("--data", len(rows.train), f"at least {SHARE} images to train on")
    return Split(rows.train[:-kept], rows.train[-kept:], rows.test)


def binarised(images: Tensor, seed: int, first: int = 0) -> Tensor:
    """One Bernoulli draw a pixel, `(n, *shape)` of uint8 to 0 and 1 of float32.

    Args:
        images: Grey levels from 0 to 255; 0 is always 0, and 255 always 1.
        seed: The seed of the draws.
        first: The number of the first image, which its draw depends on.
    """
    drawn = []
    for at in range(0, len(images), CHUNK):
        part = images[at : at + CHUNK]
        noise = Noise(seed, range(first + at, first + at + len(part)))
        u = noise.uniform(0, Stream.START, tuple(part.shape[1:]))
        drawn.append((255 * u < part).float())
    return torch.cat(drawn)
