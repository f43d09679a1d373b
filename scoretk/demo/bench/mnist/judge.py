r"""A classifier trained on real digits as the judge of samples, with the floor of real ones.

    entropy     the mean of -sum_c p(c | x) log p(c | x) over samples x, in nats: how unsure it is
    apart       1/2 sum_c |share of samples put into class c - share of digits c in training|

The floor is what as many real test images have, the mean over all groups of so many. A sampler as
good as the data has both at their floors; samples that are no digits have an entropy above, and
lost classes a distance above.

References:
    Salimans, Goodfellow, Zaremba, Cheung, Radford, Chen, "Improved techniques for training GANs"
    (2016), for a classifier of real images as judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from scoretk.demo.bench.mnist.data import Split
from scoretk.demo.bench.mnist.estimates import mean_of_rows
from scoretk.demo.bench.mnist.idx import SIDE
from scoretk.learn.fitting import fit
from scoretk.learn.recipe import Recipe
from scoretk.models.digits.networks import EnergyMLP, fresh

__all__ = ["Judge", "Judged", "Opinion", "judge_of"]

DIGITS = 10
WIDTH = 256
STEPS, QUICK_STEPS = 2000, 60


class Opinion(NamedTuple):
    """What the judge says of images.

    Args:
        entropy: The mean entropy of the class given the image, in nats.
        stderr: Its standard error.
        apart: The distance of the histogram of classes from that of the training labels, in [0, 1].
    """

    entropy: float
    stderr: float
    apart: float


class Judged(NamedTuple):
    """Samples and real images by one judge.

    Args:
        samples: Of the samples.
        floor: Of as many real test images.
        accuracy: The judge's share of test images put into their class.
    """

    samples: Opinion
    floor: Opinion
    accuracy: float


@dataclass(frozen=True)
class Judge:
    """A classifier, and the real images that samples are compared with.

    Args:
        network: `(n, 784)` to the logits of the classes, `(n, 10)`.
        shares: The share of each digit in training, `(10,)`.
        test: Real images that it was not trained on, `(n, 28, 28)`.
        labels: Their digits, `(n,)`.
    """

    network: nn.Module
    shares: Tensor
    test: Tensor
    labels: Tensor

    @torch.no_grad()
    def opinion(self, x: Tensor) -> Opinion:
        """Of images `(n, 28, 28)`, two or more."""
        log_p = self.network(x.flatten(1)).double().log_softmax(1)
        entropy, stderr = mean_of_rows(-(log_p.exp() * log_p).sum(1))
        found = torch.bincount(log_p.argmax(1), minlength=DIGITS) / len(x)
        return Opinion(entropy, stderr, float((found - self.shares).abs().sum() / 2))

    @torch.no_grad()
    def judged(self, x: Tensor) -> Judged:
        """Of samples `(n, 28, 28)`, n from 2 to the number of test images."""
        groups = [self.opinion(part) for part in self.test.split(len(x)) if len(part) == len(x)]
        floor = Opinion(*(sum(values) / len(groups) for values in zip(*groups, strict=True)))
        right = self.network(self.test.flatten(1)).argmax(1) == self.labels
        return Judged(self.opinion(x), floor, float(right.double().mean()))


def judge_of(data: Split, labels: Split, quick: bool) -> Judge:
    """A judge trained on `data.train`, with the weights that are best on `data.valid`.

    Args:
        data: The images.
        labels: Their digits, `(n,)` of int64 each.
        quick: Whether it is trained for seconds only.
    """
    network = fresh(lambda: EnergyMLP(SIDE**2, WIDTH, 1, DIGITS), torch.Generator().manual_seed(0))
    network.to(data.train.device)

    def loss(rows: Tensor, _: torch.Generator) -> Tensor:
        return cross_entropy(network(rows[:, :-1]), rows[:, -1].long())

    train, valid = (
        torch.cat([x.flatten(1), digits[:, None].to(x)], 1)
        for x, digits in ((data.train, labels.train), (data.valid, labels.valid))
    )
    steps = QUICK_STEPS if quick else STEPS
    recipe = Recipe(steps, 128, 2e-3, held_out=0.0, repeats=1, evaluations=4, decay=0.99)
    fit(network, loss, train, recipe, held_out=valid)
    shares = torch.bincount(labels.train, minlength=DIGITS) / len(labels.train)
    return Judge(network, shares, data.test, labels.test)
