r"""The quality of samples where labelled or training data are at hand.

Class balance, confidence, and copies.

For shares `p_c` of C classes the balance is the entropy `-sum_c p_c log p_c / log C`: 1 where all
are equal, 0 for one class.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import finite
from scoretk.diagnostics.distances import sample_rows
from scoretk.errors import InvalidArgument, MissingDependency

__all__ = ["Classifier", "Copies", "Verdict", "balance", "copies"]


class Verdict(NamedTuple):
    """What a classifier says of samples.

    `counts` `(classes,)`, their `balance`, and the mean top probability.
    """

    counts: Tensor
    balance: float
    confidence: float


class Copies(NamedTuple):
    """Mean distance of the samples, and of held-out data, to the nearest training row.

    The share that count as copies.

    `share` is about the quantile (.01) for new draws of the data's distribution, and 1 for copies.
    """

    distance: float
    held_out_distance: float
    share: float


class Classifier:
    """A multinomial logistic regression trained on real labelled data, to judge samples by.

    Args:
        x: `(n, *event_shape)` and labels `(n,)`, integers from 0.

    Raises:
        `InvalidArgument`; `MissingDependency` where scikit-learn is not installed.
    """

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise MissingDependency("scikit-learn", "demo", "Classifier") from error
        rows = sample_rows("x", x)
        if len(labels) != len(rows):
            raise InvalidArgument("labels", labels, f"one label a row of x, {len(rows)}")
        self.classes = int(max(labels)) + 1
        self._model = LogisticRegression(max_iter=5000).fit(
            rows.numpy(), torch.as_tensor(labels).numpy()
        )

    def probabilities(self, x: Tensor) -> Tensor:
        """`(n, *event_shape) -> (n, classes)`, float64."""
        found = torch.from_numpy(self._model.predict_proba(sample_rows("x", x).numpy()))
        every = found.new_zeros(len(found), self.classes)
        every[:, torch.from_numpy(self._model.classes_).long()] = found
        return every

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """The share of samples put into the class that they are labelled with."""
        return float((self.probabilities(x).argmax(1) == torch.as_tensor(labels)).double().mean())

    def judge(self, x: Tensor) -> Verdict:
        """Balance of the predicted classes and mean top probability."""
        top, label = self.probabilities(x).max(1)
        counts = torch.bincount(label, minlength=self.classes)
        return Verdict(counts, balance(counts), float(top.mean()))


def balance(counts: Any) -> float:
    """Entropy of the shares of the classes over that of equal shares: in [0, 1].

    Args:
        counts: `(classes,)`, at least two classes and one count.
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


def copies(x: Tensor, train: Tensor, held_out: Tensor, quantile: float = 0.01) -> Copies:
    """Whether samples are copies of training data.

    How near they come to them, beside how near held-out data come.

    Args:
        x: `(n, *event_shape)`.
        train: Of the same event shape.
        held_out: Of the same event shape.
        quantile: The share of the held-out rows that sets the distance below which a sample counts
            as a copy.
    """
    rows = [
        sample_rows(name, v) for name, v in (("x", x), ("train", train), ("held_out", held_out))
    ]
    ours, real = (torch.cdist(r, rows[1]).amin(1) for r in (rows[0], rows[2]))
    limit = torch.quantile(real, finite("quantile", quantile))
    return Copies(float(ours.mean()), float(real.mean()), float((ours < limit).double().mean()))
