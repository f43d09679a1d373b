r"""Diffusion models of handwritten digits: one recipe, and what each variant of it chooses.

Data are seen through a Gaussian path, `x_t = alpha x_1 + sigma eps`, and a network learns one of
the predictions y of `scoretk.fields.convert` by regression, at random times t and with weights w,

    E_t w(t) |net(x_t, t) - y(x_1, eps, t)|^2 / d

    variant                  path       predicts   times and weights
    digits-diffusion         VP         noise      balanced
    digits-subvp             sub-VP     noise      balanced
    digits-ve                VE         score      balanced
    digits-edm               EDM        data       log-normal sigma, 1 / c_out^2, as EDM
    digits-v                 cosine     v          uniform, 1
    digits-class-diffusion   VP         noise      balanced; given the class, for some rows not

where "balanced" lets every noise level count alike for data of standard deviation s: the angle
`atan2(alpha s, sigma)` is uniform on (0, pi / 2), and the weight is that of v, in units of s. With
it the preconditioned network learns the same function on every path. The recipe serves any array of
real numbers; the shipped weights are its outcome on the digits' training images.

References:
    Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020): noise.
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through
    stochastic differential equations" (2021): VP, sub-VP, VE.
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022): EDM.
    Salimans, Ho, "Progressive distillation for fast sampling of diffusion models" (2022): v.
    Nichol, Dhariwal, "Improved denoising diffusion probabilistic models" (2021): cosine.
    Ho, Salimans, "Classifier-free diffusion guidance" (2022): the class left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import fraction
from scoretk.core.identity import tensor_digest
from scoretk.fields import EDM, VE, VP, Cosine, Diffusion, GaussianPath, SubVP
from scoretk.learn.fitting import Recipe
from scoretk.learn.losses import prediction_error, stratified
from scoretk.learn.weightings import weighting
from scoretk.models.digits.networks import EDMNetwork, PathNetwork, TimeMLP, fresh
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import (
    File,
    Prepared,
    Report,
    TrainingRequest,
    labelled,
    prepare,
)

__all__ = [
    "DIGITS_CLASS",
    "DIGITS_DIFFUSION",
    "DIGITS_EDM",
    "DIGITS_SUBVP",
    "DIGITS_V",
    "DIGITS_VE",
    "VARIANTS",
    "ClassConditional",
    "DiffusionVariant",
    "Levels",
    "balanced",
    "log_normal",
    "uniform",
]

Levels = Callable[[Tensor, GaussianPath, str, float], tuple[Tensor, Tensor]]
"""`(u, path, predicts, s) -> (t, weight)`, all `(batch,)`; u uniform on [0, 1)."""

Condition = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
"""`(indices of rows, generator) -> cond`, the conditions to train these rows with."""

P_MEAN, P_STD = -1.2, 1.2
"""The mean and the standard deviation of log sigma, as EDM draws it."""


def balanced(u: Tensor, path: GaussianPath, predicts: str, s: float) -> tuple[Tensor, Tensor]:
    """Times at which `atan2(alpha s, sigma)` is `pi u / 2`, and weights that balance noise levels.

    The weight is `1 + (sigma / (alpha s))^2` for noise prediction, and its equivalent for others.
    """
    # the path's own ends are not at 0 and 1
    ratio = torch.tan(torch.pi / 2 * u.double().clamp(0.002, 0.998))
    t = path.t(2 * torch.log(ratio / s)).clamp(0, 1)
    alpha, sigma = path.alpha(t), path.sigma(t)
    weight = 1 + (sigma / (alpha * s)).square()
    if predicts != "noise":
        weight = weight / weighting(predicts, path, t)
    return t.to(u), weight.to(u)


def uniform(u: Tensor, path: GaussianPath, predicts: str, s: float) -> tuple[Tensor, Tensor]:
    """Uniform times t = u, and weights 1."""
    return u, torch.ones_like(u)


def log_normal(u: Tensor, path: GaussianPath, predicts: str, s: float) -> tuple[Tensor, Tensor]:
    """EDM's times, `log sigma ~ N(P_MEAN, P_STD^2)` within the path, and weights `1 / c_out^2`."""
    normal = torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))
    t = path.t(-2 * (P_MEAN + P_STD * normal)).clamp(0, 1)
    sigma = path.sigma(t)
    return t.to(u), ((sigma**2 + s**2) / (sigma * s) ** 2).to(u)


@dataclass(frozen=True)
class DiffusionVariant:
    """One diffusion model.

    Args:
        name: The name of the model.
        path: Its Gaussian path.
        predicts: What its network predicts, a name in `scoretk.fields.convert.PREDICTIONS`.
        levels: How its times are drawn and weighted.
        network: The class of its network, made of `(backbone, path, predicts, spread)`.
        width: The width of the backbone's hidden layers, by default.
        blocks: The number of its residual blocks, by default.
    """

    name: str
    path: GaussianPath
    predicts: str
    levels: Levels = balanced
    network: type[PathNetwork] | type[EDMNetwork] = PathNetwork
    width: int = 144
    blocks: int = 2

    def build(self, weights: File = None) -> Diffusion:
        """The diffusion model with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.name)
        settings = stored.settings
        network = stored.into(
            lambda: self.network(_backbone(settings), self.path, self.predicts, stored.spread)
        )
        null = {"label": None} if "classes" in settings else None
        return Diffusion(network, tuple(settings["event_shape"]), self.path, self.predicts, null)

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 6000,
        smoothing: float = 0.06,
        width: int | None = None,
        blocks: int | None = None,
        dropout: float = 0.3,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the diffusion model to data.

        Args:
            data: The data, `(n, *event_shape)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            smoothing: The standard deviation of the noise that is put on the data, as they are
                discrete and against overfitting, over their own.
            width: The width of the network's hidden layers, None for the variant's.
            blocks: The number of its residual blocks, None for the variant's.
            dropout: The share of hidden units dropped in training.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights of the lowest loss on a held-out tenth of the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        ready = prepare(data, smoothing)
        chosen = self.sized(width, blocks, dropout)
        settings = {"event_shape": list(ready.rows.shape[1:]), **chosen}
        asked = {"steps": steps, "smoothing": smoothing, **chosen}
        training = TrainingRequest(self.name, data is None, seed, report, checkpoint, asked)
        return self.fitted(training, ready, settings)

    def fitted(
        self,
        training: TrainingRequest,
        ready: Prepared,
        settings: dict[str, Any],
        condition: Condition = lambda index, generator: {},
        tell: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Stored:
        """Train, and store what is found.

        Args:
            training: What is asked for.
            ready: The data.
            settings: What builds the backbone.
            condition: Gives the conditions of each batch of rows.
            tell: What `condition` tells of, so that checkpoints know it.
        """
        generator = torch.Generator().manual_seed(training.seed)
        backbone = fresh(lambda: _backbone(settings), generator)
        network = self.network(backbone, self.path, self.predicts, ready.spread)
        scale = float(ready.spread.std.square().mean().sqrt())

        def loss(index: Tensor, generator: torch.Generator) -> Tensor:
            x = ready.blurred(ready.rows[index.long()], generator)
            noise = torch.randn(x.shape, generator=generator)
            t, weight = self.levels(stratified(len(x), generator), self.path, self.predicts, scale)
            given = partial(network, **condition(index.long(), generator))
            return weight * prediction_error(given, x, t, noise, self.path, self.predicts)

        # the indices of the rows, so that labels go with them
        rows = torch.arange(len(ready.rows), dtype=torch.float64)
        known = {"data": tensor_digest({"rows": ready.rows, **tell})}
        done = training.fit(network, loss, rows, Recipe(training.asked["steps"]), tell=known)
        return training.stored(settings, done.weights)

    def sized(self, width: int | None, blocks: int | None, dropout: float) -> dict[str, Any]:
        """The backbone's settings, the variant's own in place of None."""
        own = self.width if width is None else width, self.blocks if blocks is None else blocks
        return {"width": own[0], "blocks": own[1], "dropout": dropout}


@dataclass(frozen=True)
class ClassConditional:
    """A variant that is told the class, but not for all rows, so that it can guide itself.

    `cond={"label": (chains,)}` holds whole numbers, -1 for no class in particular, as without cond.
    `scoretk.guided(field, weight)` guides it.

    Args:
        of: The variant.

    References:
        Ho, Salimans, "Classifier-free diffusion guidance" (2022).
    """

    of: DiffusionVariant

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.of.name

    def build(self, weights: File = None) -> Diffusion:
        """As `DiffusionVariant.build`."""
        return self.of.build(weights)

    def train(
        self,
        data: Tensor | None = None,
        *,
        labels: Tensor | File = None,
        seed: int = 0,
        steps: int = 6000,
        smoothing: float = 0.06,
        width: int | None = None,
        blocks: int | None = None,
        dropout: float = 0.3,
        unlabelled: float = 0.15,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the model to data and their labels.

        Args:
            data: As in `DiffusionVariant.train`; None, together with the labels, for the digits.
            labels: The classes of the data, whole numbers from 0, or -1 where unknown, `(n,)`, or a
                file of them such as `scoretk fit --data` takes.
            seed: As in `DiffusionVariant.train`.
            steps: As in `DiffusionVariant.train`.
            smoothing: As in `DiffusionVariant.train`.
            width: As in `DiffusionVariant.train`.
            blocks: As in `DiffusionVariant.train`.
            dropout: As in `DiffusionVariant.train`.
            unlabelled: The share of the rows that are trained without their label, in [0, 1).
            report: As in `DiffusionVariant.train`.
            checkpoint: As in `DiffusionVariant.train`.

        Returns:
            The weights of the lowest loss on a held-out tenth of the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        ready, known = labelled(data, labels, smoothing, least=-1)
        fraction("unlabelled", unlabelled, "[0, 1)")
        chosen = self.of.sized(width, blocks, dropout)
        settings = {
            "event_shape": list(ready.rows.shape[1:]),
            "classes": int(known.max()) + 1,
            **chosen,
        }

        def condition(index: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            hidden = torch.rand(len(index), generator=generator) < unlabelled
            return {"label": known[index].masked_fill(hidden, -1)}

        asked = {
            "steps": steps,
            "smoothing": smoothing,
            **chosen,
            "unlabelled": unlabelled,
            **({} if data is None else {"labels": "FILE"}),
        }
        training = TrainingRequest(self.name, data is None, seed, report, checkpoint, asked)
        return self.of.fitted(training, ready, settings, condition, {"labels": known})


DIGITS_DIFFUSION = DiffusionVariant("digits-diffusion", VP(), "noise", width=256, blocks=3)
DIGITS_SUBVP = DiffusionVariant("digits-subvp", SubVP(), "noise")
DIGITS_VE = DiffusionVariant("digits-ve", VE(), "score")
DIGITS_EDM = DiffusionVariant("digits-edm", EDM(), "data", log_normal, EDMNetwork)
DIGITS_V = DiffusionVariant("digits-v", Cosine(), "v", uniform)
DIGITS_CLASS = ClassConditional(DiffusionVariant("digits-class-diffusion", VP(), "noise"))

VARIANTS = (DIGITS_DIFFUSION, DIGITS_SUBVP, DIGITS_VE, DIGITS_EDM, DIGITS_V, DIGITS_CLASS)


def _backbone(settings: dict[str, Any]) -> TimeMLP:
    dim = math.prod(settings["event_shape"])
    return TimeMLP(
        dim,
        settings["width"],
        settings["blocks"],
        settings["dropout"],
        classes=settings.get("classes", 0),
    )
