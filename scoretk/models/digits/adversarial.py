r"""digits-gan and digits-wgan: a generator's latent space as a field, corrected by its critic.

The field is `models.latent.energies.LatentEnergy`: N(0, I) over the latents, corrected by the
calibrated critic that the generator was trained with.

The game is f-GAN's or Wasserstein's (`learn.adversarial`), with noise of standard deviation
`smoothing` on data and draws, so that both have densities. The averaged generator is kept, and the
critic is trained on against it. All is computed in standard units, y = (x - mean) / std, with one
mean for each entry and one std for all. There

    G(z) = c(A z + F(z)),    c(u) = low + softplus(u - low) - softplus(u - high)

with A the first principal components of the data, so that the start is the Gaussian closest to
them; F a network that starts at zero; and c a soft clip of each entry to its range in the data,
with corners as wide as the noise.

References:
    Goodfellow et al., "Generative adversarial nets" (2014).
    Nowozin, Cseke, Tomioka, "f-GAN: training generative neural samplers using variational
    divergence minimization" (2016).
    Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved training of Wasserstein GANs" (2017).
    Mescheder, Geiger, Nowozin, "Which training methods for GANs do actually converge?" (2018), for
    the penalty on slopes.
    Azadi, Olsson, Darrell, Goodfellow, Odena, "Discriminator rejection sampling" (2019), for the
    calibration.
    Che, Zhang, Sohl-Dickstein, Larochelle, Paull, Cao, Bengio, "Your GAN is secretly an
    energy-based model and you should use discriminator driven latent sampling" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from scoretk.core.arguments import count, option
from scoretk.learn.adversarial import (
    DIVERGENCES,
    f_gan_critic,
    f_gan_generator,
    gradient_penalty,
    wasserstein_critic,
    wasserstein_generator,
)
from scoretk.learn.fitting import Player, Recipe, fit
from scoretk.models.digits.networks import EnergyMLP, fresh, zero_start
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import File, Report, TrainingRequest, prepare
from scoretk.models.latent.energies import LatentEnergy, calibrate

__all__ = ["GAN", "WGAN"]

Loss = Callable[[Tensor, torch.Generator], Tensor]

HELD_OUT = 0.1
"""The share of the data that is kept for the calibration."""
CALIBRATION_DRAWS = 20_000


class Generator(nn.Module):
    """The generator `G(z) = c(A z + F(z))`, in standard units (see the module).

    Args:
        latent: The dimension of z.
        dim: The dimension of G(z).
        width: The width of F's hidden layers.
        blocks: The number of F's residual blocks.
        corner: The width of c's corners.
    """

    axes: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, latent: int, dim: int, width: int, blocks: int, corner: float) -> None:
        super().__init__()
        self.corner = corner
        self.enter = nn.Linear(latent, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(blocks)])
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.leave = zero_start(nn.Linear(width, dim))
        for name, shape in (("axes", (dim, latent)), ("low", (dim,)), ("high", (dim,))):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, z: Tensor) -> Tensor:
        """The generator's output, `(batch, latent) -> (batch, dim)`."""
        h = silu(self.enter(z))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + silu(block(norm(h)))
        u, sharpness = z @ self.axes.T + self.leave(h), 1 / self.corner
        return self.low + softplus(u - self.low, sharpness) - softplus(u - self.high, sharpness)


class CriticAndGenerator(nn.Module):
    """Generator and critic in standard units, with the data's mean and std and the calibration.

    `mean` is `(dim,)`, `std` `()`, and `calibration` the numbers `(a, b)` of `log_ratio`.

    Args:
        settings: The shape of an event, and the sizes of the networks.
    """

    mean: Tensor
    std: Tensor
    calibration: Tensor

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.shape = tuple(settings["event_shape"])
        dim, latent, width = math.prod(self.shape), settings["latent"], settings["width"]
        self.generator = Generator(latent, dim, width, settings["blocks"], settings["smoothing"])
        self.critic = EnergyMLP(dim, settings["critic_width"], settings["critic_blocks"])
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))

    def generate(self, z: Tensor) -> Tensor:
        """Images, `(batch, latent) -> (batch, *event_shape)`."""
        return (
            (self.mean + self.std * self.generator(z.to(self.mean.dtype)))
            .reshape(len(z), *self.shape)
            .to(z.dtype)
        )

    def log_ratio(self, x: Tensor) -> Tensor:
        """The estimate `a V(x) + b` of log p/q, `(batch, *event_shape) -> (batch,)`."""
        a, b = self.calibration
        return a * self.critic(self.standard(x.to(self.mean.dtype))) + b

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Take mean, std, range and principal components from data `(n, *event_shape)`."""
        flat, made = rearrange(rows, "n ... -> n (...)").double(), self.generator
        std = flat.var(0, correction=0).mean().sqrt()
        y = (flat - flat.mean(0)) / std
        spread, axes = torch.linalg.svd(y / math.sqrt(len(y)), full_matrices=False)[1:]
        used = min(len(spread), made.axes.shape[1])
        made.axes.zero_()[:, :used] = (axes.T * spread)[:, :used]
        made.low.copy_(y.amin(0)), made.high.copy_(y.amax(0))
        (
            self.mean.copy_(flat.mean(0)),
            self.std.copy_(std),
            self.calibration.copy_(torch.tensor([1.0, 0.0])),
        )

    def standard(self, rows: Tensor) -> Tensor:
        """Data `(n, *event_shape)` in standard units, `(n, dim)`."""
        return (rearrange(rows, "n ... -> n (...)") - self.mean) / self.std


@dataclass(frozen=True)
class _Game:
    """What both models share: `build`, and training with a pair of losses.

    Args:
        model: The name of the model.
    """

    model: str

    def build(self, weights: File = None) -> LatentEnergy:
        """The latent energy with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.model)
        pair = stored.into(lambda: CriticAndGenerator(stored.settings))
        assert isinstance(pair, CriticAndGenerator)
        return LatentEnergy(pair.generate, pair.log_ratio, (stored.settings["latent"],), pair.shape)

    def _fit(
        self,
        data: Tensor | None,
        losses: Callable[[CriticAndGenerator], tuple[CriticLoss, GeneratorLoss]],
        seed: int,
        report: Report,
        checkpoint: File,
        **chosen: Any,
    ) -> Stored:
        """Play the game, train the critic against the averaged generator, and calibrate it."""
        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, chosen)
        ready = prepare(data, chosen["smoothing"])
        settings = {
            "event_shape": list(ready.rows.shape[1:]),
            **{name: chosen[name] for name in _SHAPING},
        }
        generator = torch.Generator().manual_seed(count("seed", seed))
        pair = fresh(lambda: CriticAndGenerator(settings), generator)
        pair.start(ready.rows)
        rows = pair.standard(ready.rows)[torch.randperm(len(ready.rows), generator=generator)]
        held = max(1, round(HELD_OUT * len(rows)))
        of_critic, of_generator = losses(pair)

        def blurred(y: Tensor, g: torch.Generator) -> Tensor:
            return y + chosen["smoothing"] * torch.randn(y.shape, generator=g)

        def draws(n: int, g: torch.Generator) -> Tensor:
            return blurred(pair.generator(torch.randn(n, settings["latent"], generator=g)), g)

        def critic_loss(x: Tensor, g: torch.Generator) -> Tensor:
            with torch.no_grad():
                y = draws(len(x), g)
            return of_critic(blurred(x, g), y, g)

        def generator_loss(x: Tensor, g: torch.Generator) -> Tensor:
            return of_generator(draws(len(x), g))

        recipe = partial(
            Recipe, batch=128, betas=(0.0, 0.99), weight_decay=0.0, clip=1e3, held_out=0.0
        )
        players = [
            Player("critic", pair.critic, critic_loss, steps=chosen["critic_steps"]),
            Player("generator", pair.generator, generator_loss),
        ]
        game = recipe(chosen["steps"], learning_rate=chosen["learning_rate"])
        training.fit(pair, players, rows[held:], game)
        if chosen["refine"]:
            refine = recipe(chosen["refine"], learning_rate=1e-3, decay=0.99)
            fit(pair.critic, critic_loss, rows[held:], refine, seed=seed, report=report)
        with torch.no_grad():
            z = torch.randn(CALIBRATION_DRAWS, settings["latent"], generator=generator)
            found = calibrate(pair.critic(rows[:held]), pair.critic(pair.generator(z)))
        pair.calibration.copy_(torch.tensor(found))
        return training.stored(settings, pair.state_dict())


CriticLoss = Callable[[Tensor, Tensor, torch.Generator], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]

_SHAPING = ("latent", "width", "blocks", "critic_width", "critic_blocks", "smoothing")
"""The settings that build the networks."""


@dataclass(frozen=True)
class _FGan(_Game):
    """The game of an f-divergence."""

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        divergence: str = "gan",
        steps: int = 2000,
        refine: int = 2000,
        smoothing: float = 0.25,
        penalty: float = 0.05,
        latent: int = 64,
        width: int = 128,
        blocks: int = 2,
        critic_width: int = 160,
        critic_blocks: int = 1,
        critic_steps: int = 1,
        learning_rate: float = 3e-4,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit generator and critic to data.

        Args:
            data: The data, `(n, *event_shape)`, None for the digits.
            seed: The seed of the random numbers.
            divergence: A name in `DIVERGENCES`, whose non-saturating form the generator minimises.
            steps: How many steps the game has.
            refine: How many steps of the critic alone follow.
            smoothing: The standard deviation of the noise on data and draws, over the data's own.
            penalty: The weight of the critic's mean squared gradient at the data (R1).
            latent: The number of latents.
            width: The width of the generator's hidden layers.
            blocks: The number of its residual blocks.
            critic_width: The width of the critic's hidden layers.
            critic_blocks: The number of its residual blocks.
            critic_steps: How many steps the critic makes for each step of the generator.
            learning_rate: The learning rate of both.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save the game to and to go on from, None for none.

        Returns:
            The averaged weights of the last step, the critic's calibrated on a held-out tenth of
            the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        option("divergence", divergence, DIVERGENCES)

        def losses(pair: CriticAndGenerator) -> tuple[CriticLoss, GeneratorLoss]:
            def of_critic(x: Tensor, y: Tensor, _: torch.Generator) -> Tensor:
                slopes = gradient_penalty(pair.critic, x, 0.0).mean()
                return f_gan_critic(pair.critic, x, y, divergence) + penalty / 2 * slopes

            return of_critic, lambda y: f_gan_generator(pair.critic, y, divergence)

        return self._fit(
            data,
            losses,
            seed,
            report,
            checkpoint,
            divergence=divergence,
            steps=steps,
            refine=refine,
            smoothing=smoothing,
            penalty=penalty,
            latent=latent,
            width=width,
            blocks=blocks,
            critic_width=critic_width,
            critic_blocks=critic_blocks,
            critic_steps=critic_steps,
            learning_rate=learning_rate,
        )


@dataclass(frozen=True)
class _Wasserstein(_Game):
    """The game of the Wasserstein distance, with a penalty on gradients of norm other than 1."""

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 1500,
        refine: int = 1000,
        smoothing: float = 0.25,
        penalty: float = 10.0,
        latent: int = 64,
        width: int = 128,
        blocks: int = 2,
        critic_width: int = 160,
        critic_blocks: int = 1,
        critic_steps: int = 3,
        learning_rate: float = 3e-4,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit generator and critic to data.

        Args:
            data: As for `digits-gan`.
            seed: As for `digits-gan`.
            steps: As for `digits-gan`.
            refine: As for `digits-gan`.
            smoothing: As for `digits-gan`.
            penalty: The weight of `(|grad V| - 1)^2` between data and draws.
            latent: As for `digits-gan`.
            width: As for `digits-gan`.
            blocks: As for `digits-gan`.
            critic_width: As for `digits-gan`.
            critic_blocks: As for `digits-gan`.
            critic_steps: As for `digits-gan`.
            learning_rate: As for `digits-gan`.
            report: As for `digits-gan`.
            checkpoint: As for `digits-gan`.

        Returns:
            The averaged weights of the last step, the critic's calibrated on a held-out tenth of
            the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """

        def losses(pair: CriticAndGenerator) -> tuple[CriticLoss, GeneratorLoss]:
            def of_critic(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
                return wasserstein_critic(
                    pair.critic, x, y, torch.rand(len(x), generator=g), penalty
                )

            return of_critic, lambda y: wasserstein_generator(pair.critic, y)

        return self._fit(
            data,
            losses,
            seed,
            report,
            checkpoint,
            steps=steps,
            refine=refine,
            smoothing=smoothing,
            penalty=penalty,
            latent=latent,
            width=width,
            blocks=blocks,
            critic_width=critic_width,
            critic_blocks=critic_blocks,
            critic_steps=critic_steps,
            learning_rate=learning_rate,
        )


GAN = _FGan("digits-gan")
"""digits-gan: "gan" by default, or any other of `learn.adversarial.DIVERGENCES`."""
WGAN = _Wasserstein("digits-wgan")
"""digits-wgan: Wasserstein with gradient penalty."""
