"""The quality of samples beside exact draws, held-out images or known moments.

Each distance is shown with that between two sets of real samples, its noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import Noise
from scoretk.diagnostics import Classifier, copies, mmd, sliced_wasserstein
from scoretk.fields.protocols import offers, optional
from scoretk.inference.sampling import sample
from scoretk.models.digits.data import Digits, binarised, load_digits
from scoretk.models.digits.transformer import as_tokens
from scoretk.models.targets.analytic import EightSchools
from scoretk.solvers import BlockGibbs, ChEES

__all__ = ["Quality", "judge", "reference"]

SCHOOLS = torch.tensor(
    [
        [4.4105, 3.3091],
        [3.6021, 3.1983],
        [6.1505, 5.6156],
        [4.9396, 4.6453],
        [3.9059, 5.2804],
        [4.7960, 4.7707],
        [3.6144, 4.6145],
        [4.0511, 4.7960],
        [6.3172, 5.0026],
        [4.8840, 5.3174],
    ],
    dtype=torch.float64,
)
"""Posterior means and standard deviations of mu, tau and theta_1..8, from the reference draws of
posteriordb's eight schools.
"""

DRAWS_SEED = 987
LONG_CHAINS, LONG_STEPS = 256, 400
"""The size of the run that gives the moments of a posterior without published ones: long beside the
runs that are judged.
"""
ENOUGH = 2000


@dataclass(frozen=True)
class Quality:
    """The quality of the samples of one run; None where a measure does not apply.

    Args:
        distance: The sliced Wasserstein distance over its floor.
        mmd: The squared maximum mean discrepancy.
        mmd_floor: Its floor.
        z: The largest error of a mean, in standard errors.
        balance: The balance of the classes that a classifier trained on real digits sees.
        confidence: Its mean confidence.
        real_confidence: Its mean confidence on held-out digits.
        real_accuracy: Its accuracy on held-out digits.
        copied: The share of samples nearer to a training image than 99 % of held-out images are.
    """

    distance: float | None = None
    mmd: float | None = None
    mmd_floor: float | None = None
    z: float | None = None
    balance: float | None = None
    confidence: float | None = None
    real_confidence: float | None = None
    real_accuracy: float | None = None
    copied: float | None = None


@dataclass(frozen=True)
class Moments:
    """Known moments of a law.

    Args:
        of: Takes positions `(n, *event_shape)` to k numbers each, `(n, k)`.
        mean: Their means, `(k,)`.
        std: Their standard deviations, `(k,)`.
    """

    of: Callable[[Tensor], Tensor]
    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: real samples, or known moments.

    Args:
        rows: Real samples, `(n, *event_shape)`, or None.
        floor: The sliced Wasserstein distance of two sets of them.
        mmd_floor: Their squared maximum mean discrepancy.
        digits: Whether they are images of digits.
        binary: Whether their pixels are 0 and 1.
        one_class: Whether they are of a single class.
        moments: Known moments, or None.
    """

    rows: Tensor | None = None
    floor: float = math.nan
    mmd_floor: float = math.nan
    digits: bool = False
    binary: bool = False
    one_class: bool = False
    moments: Moments | None = None


@cache
def _digits() -> tuple[Digits, Classifier]:
    digits = load_digits()
    return digits, Classifier(digits.train, digits.train_labels)


def reference(model: Any, chains: int, digits: bool, label: int | None = None) -> Reference:
    """What a model's samples are compared with.

    Args:
        model: The model.
        chains: How many samples there will be.
        digits: Whether they are digits: then held-out ones, else exact draws or known moments.
        label: The class of the digits, None for all.
    """
    binary = False
    if digits:
        data, generator = _digits()[0], torch.Generator().manual_seed(0)
        held_out, train = data.test, data.train
        if label is not None:
            held_out = data.test[data.test_labels == label]
            train = data.train[data.train_labels == label]
        real = [train[torch.randperm(len(train), generator=generator)[:chains]] for _ in range(5)]
        states = optional(optional(model, "marginal") or model, "states")
        binary = states is not None and not isinstance(states, str)  # tokens are shown decoded
        if binary:
            held_out, *real = map(binarised, (held_out, *real))
    elif isinstance(model, EightSchools):
        return Reference(moments=Moments(partial(_schools, model), *SCHOOLS.unbind(1)))
    elif "draw" in offers(model):
        held_out, *real = model.draw(6 * chains, Noise(DRAWS_SEED, 6 * chains)).split(chains)
    else:
        solver = BlockGibbs() if "gibbs" in offers(model) else ChEES()
        long = sample(model, solver, chains=LONG_CHAINS, steps=LONG_STEPS, seed=DRAWS_SEED).x
        assert long is not None
        long = long.double().flatten(2)
        return Reference(
            moments=Moments(lambda x: x.double().flatten(1), long.mean((0, 1)), long.std((0, 1)))
        )
    floor = sum(sliced_wasserstein(r, held_out, seed=i) for i, r in enumerate(real)) / len(real)
    mmd_floor = sum(abs(mmd(r, held_out)) for r in real) / len(real)
    return Reference(held_out, floor, mmd_floor, digits, binary, label is not None)


def _schools(model: EightSchools, x: Tensor) -> Tensor:
    mu, tau, theta = model.parameters(x.double())
    return torch.cat([mu[:, None], tau[:, None], theta], 1)


def as_events(model: Any, images: Tensor) -> Tensor:
    """Images of digits as a model of them takes them: as one-hot levels of ink where it has tokens."""
    return as_tokens(images) if optional(model, "states") == "one-hot" else images


def judge(x: Tensor, against: Reference) -> Quality:
    """The quality of finite samples, `(n, *event_shape)`; without values for fewer than two."""
    if len(x) < 2:
        return Quality()
    if against.moments is not None:
        values, known = against.moments.of(x), against.moments
        return Quality(
            z=float(((values.mean(0) - known.mean) / known.std).abs().max()) * math.sqrt(len(x))
        )
    if against.rows is None:
        return Quality()
    distance = sliced_wasserstein(x, against.rows) / against.floor
    found = Quality(distance, mmd(x[:ENOUGH], against.rows[:ENOUGH]), against.mmd_floor)
    if not against.digits:
        return found
    digits, classifier = _digits()
    train, test = (
        (binarised(digits.train), binarised(digits.test))
        if against.binary
        else (digits.train, digits.test)
    )
    ours, real = (
        classifier.judge(2 * rows - 1 if against.binary else rows) for rows in (x, against.rows)
    )
    return replace(
        found,
        balance=None if against.one_class else ours.balance,
        confidence=ours.confidence,
        real_confidence=real.confidence,
        real_accuracy=classifier.accuracy(digits.test, digits.test_labels),
        copied=copies(x, train, test).share,
    )
