r"""Noise-conditional score networks (NCSN) of handwritten digits, over a ladder of noise levels.

The levels `s_1 > ... > s_L` are geometric, and one of them is drawn for each row. The loss is
denoising score matching, weighted by `s_i^2`,

    E_i |s_i score(x + s_i eps, s_i) + eps|^2 / d

    digits-ncsn      Twelve levels from 2 to .01, for pixels in [-1, 1] (NCSN has ten, as near to one
                     another, from 1 to .01 for pixels in [0, 1]). The network is told the level.
    digits-ncsnv2    Levels from the data's largest distance (technique 1), near enough to overlap
                     (technique 2). The network is not told the level: `score(x, s) = net(x) / s`
                     (technique 3).

As fields they are timed, on the path VE(s_L, s_1); between the levels of the ladder the networks
interpolate. Langevin steps suit both: `AnnealedLangevin.ncsn()`, and `AnnealedLangevin.ncsnv2(data,
.05, 20)`, whose step size is technique 4's. Solvers without Langevin steps, and densities by the
probability flow, are less accurate: NCSN's start N(0, s_1^2 I) is not quite the noised data; and
the score of NCSNv2, which takes the level from x, is no longer for a point too far out than for any
other, so that a flow never brings it in.

References:
    Song, Ermon, "Generative modeling by estimating gradients of the data distribution" (2019).
    Song, Ermon, "Improved techniques for training score-based generative models" (2020).
    Vincent, "A connection between score matching and denoising autoencoders" (2011).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import count, positive
from scoretk.errors import InvalidArgument
from scoretk.fields import VE, Diffusion
from scoretk.learn.fitting import Recipe
from scoretk.learn.losses import denoising_score_matching
from scoretk.models.digits.networks import PathNetwork, TimeMLP, fresh
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import File, Report, TrainingRequest, prepare
from scoretk.solvers.annealed import largest_distance, ncsnv2_ratio, unconditional

__all__ = ["DIGITS_NCSN", "DIGITS_NCSNV2", "NCSNVariant"]


@dataclass(frozen=True)
class NCSNVariant:
    """One score model.

    Args:
        name: The name of the model.
        told: Whether its network is told the level.
        sigma_min: The lowest level of the ladder, by default, in units of the data.
        sigma_max: The highest level, by default; None for the largest distance of two data points
            (NCSNv2's technique 1).
        levels: How many levels, by default; None for as many as overlap enough (technique 2).
    """

    name: str
    told: bool
    sigma_min: float
    sigma_max: float | None = None
    levels: int | None = None

    def build(self, weights: str | os.PathLike[str] | None = None) -> Diffusion:
        """The score model with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.name)
        settings = stored.settings
        network = stored.into(
            lambda: PathNetwork(_backbone(settings), _path(settings), self._predicts, stored.spread)
        )
        return self._field(settings, network)

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 6000,
        smoothing: float = 0.06,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        levels: int | None = None,
        width: int = 144,
        blocks: int = 2,
        dropout: float = 0.3,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the score model to data.

        Args:
            data: The data, `(n, *event_shape)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            smoothing: The standard deviation of the noise that is put on the data against
                overfitting, over their own.
            sigma_min: The lowest level, in units of the data, None for the variant's.
            sigma_max: The highest level, None for the variant's.
            levels: How many levels, None for the variant's.
            width: The width of the network's hidden layers.
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
        """
        ready = prepare(data, smoothing)
        settings = {
            "event_shape": list(ready.rows.shape[1:]),
            **self._ladder(ready.rows, sigma_min, sigma_max, levels),
            "width": width,
            "blocks": blocks,
            "dropout": dropout,
        }
        backbone = fresh(lambda: _backbone(settings), torch.Generator().manual_seed(seed))
        network = PathNetwork(backbone, _path(settings), self._predicts, ready.spread)
        field = self._field(settings, network)
        times = torch.linspace(0, 1, settings["levels"], dtype=torch.float64)
        ladder = field.path.sigma(times)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            x = ready.blurred(rows, generator)
            noise = torch.randn(x.shape, generator=generator)
            level = torch.randint(len(ladder), (len(x),), generator=generator)
            return denoising_score_matching(
                lambda y: field.score(y, times[level]), x, noise, ladder[level]
            )

        chosen = {name: value for name, value in settings.items() if name != "event_shape"}
        asked = {"steps": steps, "smoothing": smoothing, **chosen}
        training = TrainingRequest(self.name, data is None, seed, report, checkpoint, asked)
        done = training.fit(network, loss, ready.rows, Recipe(steps))
        return training.stored(settings, done.weights)

    def _ladder(
        self, rows: Tensor, low: float | None, high: float | None, levels: int | None
    ) -> dict[str, Any]:
        """The settings of the ladder: its ends and how many levels."""
        low = positive("sigma_min", self.sigma_min if low is None else low)
        high = self.sigma_max if high is None else high
        high = largest_distance(rows) if high is None else positive("sigma_max", high)
        if not low < high:
            raise InvalidArgument("sigma_min, sigma_max", (low, high), "0 < sigma_min < sigma_max")
        n = self.levels if levels is None else levels
        if n is None:
            # in fewer than 5 dimensions levels of any ratio overlap
            ratio = ncsnv2_ratio(max(5, rows[0].numel()))
            n = 1 + math.ceil(math.log(high / low) / math.log(ratio))
        return {"sigma_min": low, "sigma_max": high, "levels": count("levels", n, least=2)}

    @property
    def _predicts(self) -> str:
        return "score" if self.told else "noise"

    def _field(self, settings: dict[str, Any], network: Any) -> Diffusion:
        shape, path = tuple(settings["event_shape"]), _path(settings)
        if self.told:
            return Diffusion(network, shape, path, "score")
        return unconditional(_untold(network), shape, path)


DIGITS_NCSN = NCSNVariant("digits-ncsn", told=True, sigma_min=0.01, sigma_max=2.0, levels=12)
DIGITS_NCSNV2 = NCSNVariant("digits-ncsnv2", told=False, sigma_min=0.05)


def _untold(network: PathNetwork) -> Callable[[Tensor], Tensor]:
    """The network of x alone that over the level is the score.

    It is minus the predicted noise at the level that x itself shows.
    """
    return lambda x: -network(x, network.apparent_time(x))


def _path(settings: dict[str, Any]) -> VE:
    return VE(settings["sigma_min"], settings["sigma_max"])


def _backbone(settings: dict[str, Any]) -> TimeMLP:
    return TimeMLP(
        math.prod(settings["event_shape"]),
        settings["width"],
        settings["blocks"],
        settings["dropout"],
    )
