"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels in [-1, 1], in one fixed split."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scoretk.core.dependencies import required

__all__ = ["EVENT_SHAPE", "HELD_OUT", "SPLIT_SEED", "Digits", "binarised", "load_digits"]

EVENT_SHAPE = (1, 8, 8)
HELD_OUT = 360
SPLIT_SEED = 0


class Digits(NamedTuple):
    """The data: images of float32 in [-1, 1] and their int64 labels 0 to 9.

    The training images are `(1437, 1, 8, 8)`, the test images `(360, 1, 8, 8)`.
    """

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """The data and their split, stratified by label and the same at every call.

    Raises:
        MissingDependency: Where scikit-learn is not installed.
    """
    datasets, model_selection = (
        required(f"sklearn.{name}", "demo", "The digits data")
        for name in ("datasets", "model_selection")
    )
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels / 8 - 1).astype("float32").reshape(-1, *EVENT_SHAPE)
    parts = model_selection.train_test_split(
        images, labels, test_size=HELD_OUT, stratify=labels, random_state=SPLIT_SEED
    )
    train, test, train_labels, test_labels = (torch.tensor(part) for part in parts)
    return Digits(train, test, train_labels.long(), test_labels.long())


def binarised(images: Tensor) -> Tensor:
    """Images as 0 and 1, like them: 1 for every pixel with any ink, above -1."""
    return (images > -1).to(images)
