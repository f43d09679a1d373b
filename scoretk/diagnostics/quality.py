r"""The quality of samples beside labelled or training data: class balance, confidence, copies.

For shares `p_c` of C classes the balance is the entropy `-sum_c p_c log p_c / log C`: 1 where all
are equal, 0 for one class.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import fraction
from scoretk.core.dependencies import required
from scoretk.core.keywords import explained
from scoretk.diagnostics.distances import sample_rows
from scoretk.errors import InvalidArgument

__all__ = ["Classifier", "Copies", "Verdict", "balance", "copies"]


class Verdict(NamedTuple):
    """What a classifier says of samples.

    Args:
        counts: How many samples it puts into each class, `(classes,)`.
        balance: The balance of these counts, in [0, 1].
        confidence: The mean of the largest class probability.
    """

    counts: Tensor
    balance: float
    confidence: float


class Copies(NamedTuple):
    """How near samples come to training data.

    Args:
        distance: The mean distance of the samples to the nearest training row.
        held_out_distance: That of held-out data.
        share: The share of the samples that count as copies: about the quantile (.01) for new draws
            of the data's law, 1 for copies.
    """

    distance: float
    held_out_distance: float
    share: float


class Classifier:
    """A multinomial logistic regression trained on real labelled data, to judge samples by.

    Args:
        x: Data, `(n, *event_shape)`.
        labels: Their classes, `(n,)`, integers from 0.

    Raises:
        InvalidArgument: Where there is not one label a row, or the data are not finite.
        MissingDependency: Where scikit-learn is not installed.
    """

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        linear_model = required("sklearn.linear_model", "demo", "Classifier")
        rows = sample_rows("x", x)
        if len(labels) != len(rows):
            raise InvalidArgument("labels", labels, f"one label a row of x, {len(rows)}")
        self.classes = int(max(labels)) + 1
        self._model = linear_model.LogisticRegression(max_iter=5000).fit(
            rows.numpy(), torch.as_tensor(labels).numpy()
        )

    def probabilities(self, x: Tensor) -> Tensor:
        """The class probabilities of samples, `(n, *event_shape) -> (n, classes)`, float64."""
        found = torch.from_numpy(self._model.predict_proba(sample_rows("x", x).numpy()))
        every = found.new_zeros(len(found), self.classes)
        every[:, torch.from_numpy(self._model.classes_).long()] = found
        return every

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """The share of samples put into the class that they are labelled with."""
        return float((self.probabilities(x).argmax(1) == torch.as_tensor(labels)).double().mean())

    def judge(self, x: Tensor) -> Verdict:
        """The balance of the predicted classes of samples x, and the mean confidence."""
        top, label = self.probabilities(x).max(1)
        counts = torch.bincount(label, minlength=self.classes)
        return Verdict(counts, balance(counts), float(top.mean()))


@explained
def balance(counts: Any) -> float:
    """The entropy of the shares of classes over that of equal shares, in [0, 1].

    Args:
        counts: Non-negative counts of at least two classes, `(classes,)`, not all zero.

    Raises:
        InvalidArgument: For other counts.
    """
    shares = torch.as_tensor(counts, dtype=torch.float64)
    if (
        shares.ndim != 1
        or len(shares) < 2
        or not bool((shares >= 0).all())
        or not float(shares.sum()) > 0
    ):
        raise InvalidArgument(
            "counts", counts, "non-negative counts of at least two classes, not all zero"
        )
    shares = shares / shares.sum()
    return float(-torch.special.xlogy(shares, shares).sum() / math.log(len(shares)))


@explained
def copies(x: Tensor, train: Tensor, held_out: Tensor, quantile: float = 0.01) -> Copies:
    """Compare how near samples come to training data with how near held-out data come.

    Args:
        x: Samples, `(n, *event_shape)`.
        train: Training data of the same event shape.
        held_out: Held-out data of the same event shape.
        quantile: The quantile of the held-out rows' distances below which a sample counts as a
            copy.

    Raises:
        InvalidArgument: For empty or non-finite samples or data, data of another event shape, or a
            quantile outside [0, 1].
    """
    rows = [
        sample_rows(name, v) for name, v in (("x", x), ("train", train), ("held_out", held_out))
    ]
    for name, data in (("train", train), ("held_out", held_out)):
        if data.shape[1:] != x.shape[1:]:
            raise InvalidArgument(name, data, f"the event shape of x, {tuple(x.shape[1:])}")
    ours, real = (torch.cdist(r, rows[1]).amin(1) for r in (rows[0], rows[2]))
    fraction("quantile", quantile)
    limit = torch.quantile(real, quantile)
    return Copies(float(ours.mean()), float(real.mean()), float((ours < limit).double().mean()))
