"""Families whose likelihood is exact: a mixture by EM, and autoregressive networks.

A family is a frozen dataclass of its settings with three methods, `Family`'s. The weights that are
kept are those with the lowest nats on the images for choosing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scoretk.core.modules import state_like
from scoretk.core.noise import Noise
from scoretk.demo.bench.mnist.data import Split
from scoretk.demo.bench.mnist.estimates import CHUNK, Nats, exactly
from scoretk.demo.bench.mnist.idx import SIDE
from scoretk.demo.bench.mnist.masks import ManyMasks, OrderMixture
from scoretk.demo.bench.mnist.mixture import expectation_maximisation
from scoretk.demo.bench.mnist.training import Plan, Point, Stopwatch, Task, Trained, fitted, looks
from scoretk.learn.recipe import Recipe
from scoretk.models.digits.networks import fresh
from scoretk.models.latent.autoregressive import Backbone, Bernoullis, BinaryAutoregressive

__all__ = [
    "CHOOSING",
    "PIXELS",
    "SHAPE",
    "Family",
    "Masked",
    "Mixture",
    "Shuffled",
    "drawn_exactly",
    "place",
    "words",
]

SHAPE, PIXELS = (SIDE, SIDE), SIDE**2
CHOOSING = 2000
"""How many images for choosing are looked at."""


class Family(Protocol):
    """What a row is made by."""

    def train(self, data: Split, plan: Plan) -> Trained:
        """Fit the model to `data.train`, as far as the plan goes."""

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """The mean negative log likelihood of `data.test` under the trained field."""

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Samples of the trained field, `(n, 28, 28)` in [0, 1]."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of products of Bernoulli laws, by EM.

    Args:
        components: How many laws there are.
        iterations: The most iterations.
        evaluations: How often the images for choosing are looked at, at most.
    """

    components: int = 500
    iterations: int = 200
    evaluations: int = 40

    def train(self, data: Split, plan: Plan) -> Trained:
        """As `Family.train`; a step is an iteration over all images."""
        generator = torch.Generator().manual_seed(plan.seed)
        mixtures = expectation_maximisation(data.train, self.components, generator)
        watch = Stopwatch()
        kept = mixture = next(mixtures)
        steps = plan.of(self.iterations, lambda: float(watch))
        curve, lowest, at = list[Point](), torch.inf, looks(steps, self.evaluations)
        for step in range(1, steps + 1):
            mixture = mixture if step == 1 else next(mixtures)
            if step in at:
                nats = float(-mixture.log_prob(data.valid).mean())
                curve.append(Point(step, nats, float(watch)))
                if nats < lowest:
                    kept, lowest = mixture, nats
        recipe = f"{self.components} components by EM, the rates under a Beta law about the data's"
        return Trained(kept, steps, self.iterations, tuple(curve), recipe)

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """Exact."""
        return exactly(field, data.test)

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Exact draws, `(n, 28, 28)`."""
        return drawn_exactly(field, n, seed)


@dataclass(frozen=True)
class Masked:
    """An autoregressive network, by maximum likelihood.

    Args:
        backbone: Makes it.
        recipe: How it is fitted.
        name: What it is, in words.
        sparse: The rate of a Laplace law of the weights, but not of the biases, in nats of all
            images: what data say little about is 0.
    """

    backbone: Callable[[], Backbone]
    recipe: Recipe
    name: str
    sparse: float = 0.0

    def train(self, data: Split, plan: Plan) -> Trained:
        """As `Family.train`."""

        def start() -> Task:
            generator = torch.Generator().manual_seed(plan.seed)
            network = Bernoullis(fresh(self.backbone, generator)).to(data.train.device)
            law = BinaryAutoregressive(network, SHAPE)

            def loss(x: Tensor, _: torch.Generator) -> Tensor:
                # NADE's hidden units of each site of 2,000 images are more than memory holds
                learns = law.network.training
                parts = x.split(len(x) if learns else CHUNK)
                nats = -torch.cat([law.log_prob(part) for part in parts])
                if learns and self.sparse:
                    nats = nats + self.sparse * _size(network) / len(data.train)
                return nats / PIXELS

            return Task(law.network, loss, lambda p: PIXELS * (p.held_out or 0.0))

        network, steps, curve = fitted(start, data, data.valid[:CHOOSING], self.recipe, plan)
        assert isinstance(network, Bernoullis)
        field = BinaryAutoregressive(network, SHAPE)
        return Trained(field, steps, self.recipe.steps, curve, words(self.name, self.recipe))

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """Exact."""
        return exactly(field, data.test)

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Exact draws, `(n, 28, 28)`."""
        return drawn_exactly(field, n, seed)


@dataclass(frozen=True)
class Shuffled:
    """A masked network under many masks, by maximum likelihood of one at a step.

    Args:
        recipe: How it is fitted.
        width: The width of the two hidden layers.
        masks: How many masks there are.
        dropout: The share of hidden units dropped in training.
        looked: How many of the masks choose the weights.
    """

    recipe: Recipe
    width: int = 1000
    masks: int = 32
    dropout: float = 0.0
    looked: int = 2

    def train(self, data: Split, plan: Plan) -> Trained:
        """As `Family.train`; the curve is of the mixture of the first masks."""

        def start() -> Task:
            generator = torch.Generator().manual_seed(plan.seed)
            network = fresh(
                lambda: ManyMasks(PIXELS, self.width, 2, self.masks, self.dropout), generator
            ).to(data.train.device)

            def loss(x: Tensor, generator: torch.Generator) -> Tensor:
                rows = x.flatten(1)
                if not network.training:
                    return -network.mixed_log_prob(rows, self.looked) / PIXELS
                k = int(torch.randint(self.masks, (), generator=generator))
                return -network.log_prob(rows, k) / PIXELS

            return Task(network, loss, lambda p: PIXELS * (p.held_out or 0.0))

        network, steps, curve = fitted(start, data, data.valid[:CHOOSING], self.recipe, plan)
        assert isinstance(network, ManyMasks)
        name = f"two layers of {self.width}, {self.masks} masks, an order each, mixed in the test"
        field = OrderMixture(network, SHAPE)
        return Trained(field, steps, self.recipe.steps, curve, words(name, self.recipe))

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """Exact."""
        return exactly(field, data.test)

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Exact draws, `(n, 28, 28)`."""
        return drawn_exactly(field, n, seed)


def drawn_exactly(field: Any, n: int, seed: int) -> Tensor:
    """A field's own draws, `(n, 28, 28)`, on its device."""
    drawn: Tensor = field.draw(n, Noise(seed, n, device=place(field)))
    return drawn


def place(field: Any) -> torch.device:
    """The device of a field's weights, where `sample` has its chains too."""
    return state_like(field)[0].device


def _size(network: nn.Module) -> Tensor:
    """The sum of the magnitudes of all weights, without biases, `()`."""
    weights = [w.abs().sum() for w in network.parameters() if w.ndim > 1]
    return torch.stack(weights).sum()


def words(name: str, recipe: Recipe) -> str:
    """A recipe, for the reader."""
    return (
        f"{name}; AdamW, rate {recipe.learning_rate:g} ({recipe.schedule}), decay "
        f"{recipe.weight_decay:g}, batch {recipe.batch}, averaged weights"
    )
