r"""Flow matching on handwritten digits, with four couplings of starts x_0 and data x_1.

The velocity

    u(x, t) = E[d/dt x_t | x_t = x]

carries the law of x_0 to that of x_1 along dx/dt = u.

    digits-flow           x_t = (1 - t) x_0 + t x_1, with x_0 ~ N(0, I) independent of x_1. This is a
                          Gaussian path, so that u determines the score as well.
    digits-flow-ot        x_0 ~ N(0, I), paired with the x_1 of its batch by optimal transport. The
                          lines cross less, so that paths are straighter and few steps are enough.
                          The path is not Gaussian: a velocity and a density, but no score.
    digits-flow-classes   x_0 a digit of one class, x_1 of another, paired likewise: p_init is a
                          mixture of Gaussians around images.
    digits-interpolant    x_t = (1 - t) x_0 + t x_1 + gamma(t) z, with x_0 and z ~ N(0, I): a
                          Gaussian path (see `Interpolant`).

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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoretk.core.arguments import count, tensor_like
from scoretk.core.arrayfiles import read_array
from scoretk.core.identity import tensor_digest
from scoretk.errors import InvalidArgument
from scoretk.fields import Diffusion, GaussianPath, Interpolant, Linear, Velocity, standard_normal
from scoretk.learn.couplings import COUPLINGS, optimal_coupling
from scoretk.learn.fitting import Recipe
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
from scoretk.models.digits.training import File, Report, TrainingRequest, prepare
from scoretk.models.targets.mixture import GaussianMixture

__all__ = ["CLASSES", "FLOW", "INTERPOLANT", "OPTIMAL", "BetweenData", "FromNoise", "Interpolated"]


@dataclass(frozen=True)
class FromNoise:
    """A flow from N(0, I).

    Args:
        model: The name of the model.
        coupling: The coupling of starts and data, a name in `COUPLINGS`.
        width: The width of the network's hidden layers, by default.
    """

    model: str
    coupling: str
    width: int

    def build(self, weights: File = None) -> Velocity:
        """The flow with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.model)
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
        checkpoint: File = None,
    ) -> Stored:
        """Fit the flow to data.

        Args:
            data: The data, `(n, *event_shape)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            smoothing: The standard deviation of the noise that is put on the data, as they are
                discrete and against overfitting, over their own.
            width: The width of the network's hidden layers, None for the model's own.
            blocks: The number of its residual blocks.
            dropout: The share of hidden units dropped in training.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights of the lowest loss on a held-out tenth of the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
            MissingDependency: Where a package that it needs is not installed.
            coupling without POT.
        """
        ready, couple = (prepare(data, smoothing), COUPLINGS[self.coupling])
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

        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, asked)
        done = training.fit(network, loss, ready.rows, Recipe(steps))
        return training.stored(settings, done.weights)


@dataclass(frozen=True)
class Interpolated:
    """A stochastic interpolant between N(0, I) and data.

    It has a velocity and a score, so that `ReverseSDE` samples it with any amount of noise.

    Args:
        model: The name of the model.
    """

    model: str

    def build(self, weights: File = None) -> Diffusion:
        """The interpolant's field with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.model)
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
        checkpoint: File = None,
    ) -> Stored:
        """Fit the velocity to data, by regression on `alpha' x_1 + sigma' eps`.

        Args:
            data: As in `FromNoise.train`.
            seed: As in `FromNoise.train`.
            bulge: The factor in `gamma = bulge t (1 - t)`, at least 0 (see `Interpolant`).
            steps: As in `FromNoise.train`.
            smoothing: As in `FromNoise.train`.
            width: The width of the network's hidden layers.
            blocks: As in `FromNoise.train`.
            dropout: As in `FromNoise.train`.
            report: As in `FromNoise.train`.
            checkpoint: As in `FromNoise.train`.

        Returns:
            The weights of the lowest loss on a held-out tenth of the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        ready, path = (prepare(data, smoothing), Interpolant(bulge))
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

        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, asked)
        done = training.fit(network, loss, ready.rows, Recipe(steps))
        return training.stored(settings, done.weights)


@dataclass(frozen=True)
class BetweenData:
    """A flow from some data to other data, coupled by optimal transport.

    Its base is a mixture of Gaussians, one around each start.

    Args:
        model: The name of the model.
    """

    model: str

    def build(self, weights: File = None) -> Velocity:
        """The flow with these weights, by default the shipped ones.

        As its base has a density, so has the flow.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.model)
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
        checkpoint: File = None,
    ) -> Stored:
        """Fit the flow from starts to data.

        Args:
            data: x_1, `(n, *event_shape)`; None, together with `start`, for digits of two classes.
            seed: The seed of the random numbers.
            source: The class of digits to start from, where there are no data.
            target: The class of digits to end at, where there are no data.
            start: x_0, `(m, *event_shape)`, or a file of them such as `scoretk fit --data` takes.
            blur: The standard deviation of the noise that is put on starts, over their own. (For
                the training threes 0.7 has the largest leave-one-out likelihood.)
            steps: How many steps the optimiser makes.
            smoothing: The standard deviation of the noise that is put on data, over their own.
            width: The width of the network's hidden layers.
            blocks: The number of its residual blocks.
            dropout: The share of hidden units dropped in training.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights of the lowest loss on a held-out tenth of the data, with the starts.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            MissingDependency: Where a package that it needs is not installed.
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
            x_0 = units.into(before.blurred(chosen, generator))
            x = units.into(ready.blurred(rows, generator))
            return flow_matching(
                network, x, stratified(len(x), generator), optimal_coupling(x_0, x)
            )

        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, asked)
        tell = {"start": tensor_digest({"start": before.rows})}
        done = training.fit(network, loss, ready.rows, Recipe(steps), tell=tell)
        return training.stored(settings, done.weights | {"start": before.rows})


@dataclass(frozen=True, eq=False)
class Units:
    """Units `(x - mean) / scale` in which starts have mean 0 and mean variance 1.

    Args:
        mean: Like an event.
        scale: One number.
    """

    mean: Tensor
    scale: float

    @classmethod
    def of(cls, start: Tensor, std: float) -> Units:
        """The units of starts `(n, *event_shape)` with noise of this standard deviation on them."""
        return cls(
            start.mean(0), math.sqrt(float(start.double().var(0, correction=0).mean()) + std**2)
        )

    def into(self, x: Tensor) -> Tensor:
        """The rows x in these units, like x."""
        return (x - self.mean.to(x)) / self.scale


@dataclass(frozen=True, eq=False)
class _InUnits:
    """The velocity `scale net((x - mean) / scale, t)` of a network in other units."""

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
    """The settings that build the network."""
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


def _trained(stored: Stored, path: GaussianPath) -> nn.Module:
    return stored.into(
        lambda: PathNetwork(_backbone(stored.settings), path, "velocity", stored.spread)
    )
