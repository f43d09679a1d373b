r"""Flow matching on scikit-learn's handwritten digits.

One velocity, four ways to say which start meets which datum.

    u(x, t) = E[d/dt x_t | x_t = x]        carries the distribution of x_0 to that of x_1 along dx/dt = u

    digits-flow           x_t = (1 - t) x_0 + t x_1, x_0 ~ N(0, I) on its own: a Gaussian path, so u tells the score as well
    digits-flow-ot        x_0 ~ N(0, I), paired with the x_1 of its batch by optimal transport: the lines cross less, so paths are
                          straighter and few steps do. x_t is no Gaussian path: a velocity, a density, but no score
    digits-flow-classes   x_0 a digit of one class, x_1 of another, paired likewise: any p_init, here Gaussians around images
    digits-interpolant    x_t = (1 - t) x_0 + t x_1 + gamma(t) z, both x_0 and z ~ N(0, I): a Gaussian path (see `Interpolant`)

All recipes serve any array of real numbers; the shipped weights are their outcome on the digits'
training images.

References:
    Lipman, Chen, Ben-Hamu, Nickel, Le, "Flow matching for generative modeling" (2023).
    Tong, Fatras, Malkin, Huguet, Zhang, Rector-Brooks, Wolf, Bengio, "Improving and generalizing
    flow-based generative models with minibatch optimal transport" (2024).
    Pooladian, Ben-Hamu, Domingo-Enrich, Amos, Lipman, Chen, "Multisample flow matching" (2023).
    Albergo, Boffi, Vanden-Eijnden, "Stochastic interpolants: a unifying framework for flows and
    diffusions" (2023).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scoretk.core.arguments import count, tensor_like
from scoretk.core.arrayfiles import read_array
from scoretk.errors import InvalidArgument
from scoretk.fields import Diffusion, GaussianPath, Interpolant, Linear, Velocity, standard_normal
from scoretk.learn.couplings import COUPLINGS, optimal_coupling
from scoretk.learn.fitting import Progress, Recipe
from scoretk.learn.losses import flow_matching, prediction_error, stratified
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.networks import (
    PathNetwork,
    PrincipalAxes,
    TimeMLP,
    fresh,
    principal_axes,
)
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import TrainingRequest, prepare
from scoretk.models.targets.mixture import GaussianMixture
from scoretk.run.checkpoint import tensor_digest

__all__ = ["CLASSES", "FLOW", "INTERPOLANT", "OPTIMAL", "BetweenData", "FromNoise", "Interpolated"]

Weights = str | os.PathLike[str] | None
Report = Callable[[Progress], Any] | None


@dataclass(frozen=True)
class FromNoise:
    """A flow from N(0, I).

    The model's name, the coupling of starts and data (a name in `COUPLINGS`), the network's width.
    """

    model: str
    coupling: str
    width: int

    def build(self, weights: Weights = None) -> Velocity:
        """The flow with these weights, by default the shipped ones.

        Raises:
            `InvalidArgument` where the file holds no weights of this model.
        """
        stored = _read(weights, self.model)
        shape = tuple(stored.settings["event_shape"])
        base = None if self.coupling == "independent" else standard_normal(shape)
        return Velocity(_trained(stored, Linear()), shape, base)

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 6000,
        smoothing: float = 0.06,
        width: int | None = None,
        blocks: int = 3,
        dropout: float = 0.3,
        report: Report = None,
        checkpoint: Weights = None,
    ) -> Stored:
        """Fit the flow to data.

        Args:
            data: `(n, *event_shape)`, None for the digits.
            seed: Of the random numbers.
            steps: Of the optimiser.
            smoothing: The standard deviation of the noise that is put on the data (against their
                discreteness, and against learning them by heart) over their own.
            width: (None: the model's own), blocks and dropout of the network.
            report: Called after each evaluation.
            checkpoint: A file to save to and to go on from.

        Returns:
            the weights of the lowest loss on a held-out tenth of the rows.

        Raises:
            `InvalidArgument`, `FitFailure`, `CheckpointError`; `MissingDependency` for optimal
            coupling without POT.
        """
        ready, couple = (
            prepare(load_digits().train if data is None else data, smoothing),
            COUPLINGS[self.coupling],
        )
        asked: dict[str, Any] = {
            "steps": steps,
            "smoothing": smoothing,
            "width": self.width if width is None else width,
            "blocks": blocks,
            "dropout": dropout,
        }
        settings = _settings(ready.rows, asked)
        network = _fresh(settings, Linear(), ready.spread, seed)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            x = ready.blurred(rows, generator)
            start = torch.randn(x.shape, generator=generator)
            return flow_matching(network, x, stratified(len(x), generator), couple(start, x))

        training = TrainingRequest(self.model, data is None, seed, report, checkpoint)
        return training.fitted(network, loss, ready.rows, Recipe(steps), settings, **asked)


@dataclass(frozen=True)
class Interpolated:
    """A stochastic interpolant between N(0, I) and data.

    Velocity and score, for `ReverseSDE` with any amount of noise.
    """

    model: str

    def build(self, weights: Weights = None) -> Diffusion:
        """The interpolant's field with these weights, by default the shipped ones.

        Raises:
            `InvalidArgument` where the file holds no weights of this model.
        """
        stored = _read(weights, self.model)
        path = Interpolant(stored.settings["bulge"])
        return Diffusion(
            _trained(stored, path), tuple(stored.settings["event_shape"]), path, "velocity"
        )

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        bulge: float = 2.0,
        steps: int = 6000,
        smoothing: float = 0.06,
        width: int = 144,
        blocks: int = 3,
        dropout: float = 0.3,
        report: Report = None,
        checkpoint: Weights = None,
    ) -> Stored:
        """Fit the velocity to data, by matching `alpha' x_1 + sigma' eps`.

        Bulge is the path's (see `Interpolant`).

        Other arguments, what is returned and what is raised: as `FromNoise.train`.
        """
        ready, path = (
            prepare(load_digits().train if data is None else data, smoothing),
            Interpolant(bulge),
        )
        asked: dict[str, Any] = {
            "bulge": bulge,
            "steps": steps,
            "smoothing": smoothing,
            "width": width,
            "blocks": blocks,
            "dropout": dropout,
        }
        settings = _settings(ready.rows, asked) | {"bulge": path.bulge}
        network = _fresh(settings, path, ready.spread, seed)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            x = ready.blurred(rows, generator)
            noise = torch.randn(x.shape, generator=generator)
            return prediction_error(
                network, x, stratified(len(x), generator), noise, path, "velocity"
            )

        training = TrainingRequest(self.model, data is None, seed, report, checkpoint)
        return training.fitted(network, loss, ready.rows, Recipe(steps), settings, **asked)


@dataclass(frozen=True)
class BetweenData:
    """A flow from some data to other data, coupled by optimal transport.

    Its base is a Gaussian around each start.
    """

    model: str

    def build(self, weights: Weights = None) -> Velocity:
        """The flow with these weights, by default the shipped ones.

        With the density of its base it has one too.

        Raises:
            `InvalidArgument` where the file holds no weights of this model.
        """
        stored = _read(weights, self.model)
        start, std = stored.weights.pop("start"), stored.settings["std"]
        base = GaussianMixture(start, torch.full((len(start),), std), torch.ones(len(start)))
        net = _InUnits(_trained(stored, Linear()), Units.of(start, std))
        return Velocity(net, tuple(stored.settings["event_shape"]), base)

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        source: int = 3,
        target: int = 8,
        start: Tensor | str | None = None,
        blur: float = 0.7,
        steps: int = 300,
        smoothing: float = 0.1,
        width: int = 64,
        blocks: int = 3,
        dropout: float = 0.3,
        report: Report = None,
        checkpoint: Weights = None,
    ) -> Stored:
        """Fit the flow from starts to data.

        Args:
            source: The digits' classes to start from and to end at, where there are no data.
            target: The digits' classes to start from and to end at, where there are no data.
            data: The end, and start, the beginning, rows `(n, *event_shape)` each, start a tensor
                or a file such as `scoretk fit --data` takes.
            blur: The standard deviations of the noise that is put on starts and on data, over their
                own: of the training threes a blur of 0.7 has the largest leave-one-out likelihood.
                The others as `FromNoise.train`.
            smoothing: The standard deviations of the noise that is put on starts and on data, over
                their own: of the training threes a blur of 0.7 has the largest leave-one-out
                likelihood. The others as `FromNoise.train`.

        Returns:
            the weights of the lowest loss on a held-out tenth of the data, with the starts.

        Raises:
            `InvalidArgument`, `FitFailure`; `MissingDependency` without POT.
        """
        first, last = _two_ends(data, start, source, target)
        before, ready = prepare(first, blur), prepare(last, smoothing)
        units = Units.of(before.rows, before.std)
        ends = {"source": source, "target": target} if data is None else {"start": "FILE"}
        asked: dict[str, Any] = ends | {
            "blur": blur,
            "steps": steps,
            "smoothing": smoothing,
            "width": width,
            "blocks": blocks,
            "dropout": dropout,
        }
        settings = _settings(ready.rows, asked) | {"std": before.std}
        network = _fresh(
            settings,
            Linear(),
            principal_axes(units.into(ready.rows), ready.std / units.scale),
            seed,
        )

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            chosen = before.rows[torch.randint(len(before.rows), (len(rows),), generator=generator)]
            x_0, x = (
                units.into(before.blurred(chosen, generator)),
                units.into(ready.blurred(rows, generator)),
            )
            return flow_matching(
                network, x, stratified(len(x), generator), optimal_coupling(x_0, x)
            )

        training = TrainingRequest(self.model, data is None, seed, report, checkpoint)
        stored = training.fitted(
            network,
            loss,
            ready.rows,
            Recipe(steps),
            settings,
            tell={"start": tensor_digest({"start": before.rows})},
            **asked,
        )
        return replace(stored, weights=stored.weights | {"start": before.rows})


@dataclass(frozen=True, eq=False)
class Units:
    """Units in which starts have mean 0 and root mean variance 1.

    `(x - mean) / scale`, mean `event_shape`.
    """

    mean: Tensor
    scale: float

    @classmethod
    def of(cls, start: Tensor, std: float) -> Units:
        """Of starts `(n, *event_shape)` with noise of this standard deviation on them."""
        return cls(
            start.mean(0), math.sqrt(float(start.double().var(0, correction=0).mean()) + std**2)
        )

    def into(self, x: Tensor) -> Tensor:
        """X in these units, like x."""
        return (x - self.mean.to(x)) / self.scale


@dataclass(frozen=True, eq=False)
class _InUnits:
    """`scale net((x - mean) / scale, t)`.

    The velocity of a flow whose network lives in other units.
    """

    network: nn.Module
    units: Units

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.units.scale * self.network(self.units.into(x), t)


FLOW = FromNoise("digits-flow", "independent", width=256)
OPTIMAL = FromNoise("digits-flow-ot", "optimal", width=144)
CLASSES = BetweenData("digits-flow-classes")
INTERPOLANT = Interpolated("digits-interpolant")


def _two_ends(data: Any, start: Any, source: int, target: int) -> tuple[Tensor, Tensor]:
    """Starts and data: the digits of two classes, or a user's own."""
    if data is None and start is None:
        digits = load_digits()
        classes = int(digits.train_labels.max()) + 1
        for name, label in (("source", source), ("target", target)):
            if count(name, label) >= classes:
                raise InvalidArgument(name, label, f"a digit, less than {classes}")
        return digits.train[digits.train_labels == source], digits.train[
            digits.train_labels == target
        ]
    if data is None or start is None:
        raise InvalidArgument(
            "start" if start is None else "data",
            None,
            "rows (n, *event_shape), as its other end is given",
        )
    first = read_array(start, argument="start") if isinstance(start, str) else start
    return tensor_like("start", first, (None, *getattr(data, "shape", ())[1:])), data


def _settings(rows: Tensor, asked: dict[str, Any]) -> dict[str, Any]:
    """What builds the network again."""
    return {
        "event_shape": list(rows.shape[1:]),
        **{name: asked[name] for name in ("width", "blocks", "dropout")},
    }


def _backbone(settings: dict[str, Any]) -> TimeMLP:
    dim = math.prod(settings["event_shape"])
    return TimeMLP(dim, settings["width"], settings["blocks"], settings["dropout"])


def _fresh(
    settings: dict[str, Any], path: GaussianPath, spread: PrincipalAxes, seed: int
) -> PathNetwork:
    backbone = fresh(lambda: _backbone(settings), torch.Generator().manual_seed(seed))
    return PathNetwork(backbone, path, "velocity", spread)


def _read(weights: Weights, model: str) -> Stored:
    return read_weights(weights, model)


def _trained(stored: Stored, path: GaussianPath) -> nn.Module:
    return stored.into(
        lambda: PathNetwork(_backbone(stored.settings), path, "velocity", stored.spread)
    )
