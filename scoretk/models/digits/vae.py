r"""digits-vae, digits-vae-binary, digits-latent-energy: variational autoencoders of digits.

The first two are trained by the importance-weighted bound (`learn.likelihoods`). The decoder is
Gaussian with a learned mean and standard deviation of each pixel, or Bernoulli. The third learns a
prior with the energy `E(z) = |z|^2 / 2 + f(z)`,

    p(z) = exp(-f(z)) N(z; 0, I) / Z
    loss = -E_q [log p(x | z) - log q(z | x)] + E_q E(z) - mean E(z-)

with z- the persistent Langevin chains of contrastive divergence. This is the negative ELBO, whose
last two terms are contrastive divergence; through them the encoder learns as well.

References:
    Kingma, Welling, "Auto-encoding variational Bayes" (2014).
    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016).
    Pang, Han, Nijkamp, Zhu, Wu, "Learning latent space energy-based prior model" (2020).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch import distributions as td

from scoretk.core.arguments import count, finite
from scoretk.fields import Energy
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.learn.fitting import Recipe
from scoretk.learn.likelihoods import negative_elbo, negative_iwae, reparametrised
from scoretk.models.digits.data import binarised, load_digits
from scoretk.models.digits.networks import ConfinedEnergy, Dropout, EnergyMLP, PrincipalAxes, fresh
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import File, Report, TrainingRequest, dequantised, prepare
from scoretk.models.latent.vae import VAE, check_states
from scoretk.solvers import ULA

__all__ = ["BINARY", "GAUSSIAN", "LATENT_ENERGY", "LearnedPrior", "VAEVariant"]


FLOOR = 0.01
"""The least standard deviation of the decoder, over that of the data; and the least distance from 0
and 1 of the pixel means that a Bernoulli decoder starts from.
"""
BIN = 0.125
"""The distance between neighbouring grey levels of the digits."""


BITS = (0.0, 1.0)


class Network(nn.Module):
    """Encoder and decoder as MLPs, and f of a learned prior.

    Args:
        settings: Shapes, widths and dropout, and whether pixels are binary.
        mean: The mean of the data, `(d,)`.
        std: Their standard deviation, `()`.
        generator: The generator of the initial weights, None to leave them to the caller.
    """

    mean: Tensor
    std: Tensor
    prior: ConfinedEnergy | None

    def __init__(
        self,
        settings: dict[str, Any],
        mean: Tensor,
        std: Tensor,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.shape = tuple(settings["data_shape"])
        self.binary = settings["binary"]
        self.latent = settings["latent"]
        width, dropout, d = settings["width"], settings["dropout"], math.prod(self.shape)

        def made(make: Callable[[], nn.Module]) -> nn.Module:
            return make() if generator is None else fresh(make, generator)

        self.encoder = made(lambda: _mlp((d, width, width, 2 * self.latent), dropout, 0))
        self.decoder = made(
            lambda: _mlp((self.latent, width, width, d if self.binary else 2 * d), dropout, 10)
        )
        self.prior = None
        if settings["prior_width"]:
            f = made(lambda: EnergyMLP(self.latent, settings["prior_width"]))
            self.prior = ConfinedEnergy(
                f, PrincipalAxes(torch.zeros(self.latent), None, torch.ones(self.latent))
            )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def posterior(self, x: Tensor) -> td.Independent[td.Distribution]:
        """The encoder q(z | x): from x `(batch, *shape)` a normal law over `(latent,)`."""
        rows = rearrange(x.to(self.mean.dtype), "batch ... -> batch (...)")
        centre, log_std = self.encoder((rows - self.mean) / self.std).chunk(2, 1)
        return _independent(td.Normal(centre, log_std.exp(), validate_args=False), 1)

    def likelihood(self, z: Tensor) -> td.Independent[td.Distribution]:
        """The decoder p(x | z): from z `(rows, latent)` a law over `shape`."""
        out = self.decoder(z.to(self.mean.dtype))
        if self.binary:
            logits = (self.mean.logit(FLOOR) + out).unflatten(1, self.shape)
            return _independent(td.Bernoulli(logits=logits, validate_args=False), len(self.shape))
        centre, log_std = out.chunk(2, 1)
        centre = (self.mean + self.std * centre).unflatten(1, self.shape)
        scale = (self.std * (FLOOR + log_std.exp())).unflatten(1, self.shape)
        return _independent(td.Normal(centre, scale, validate_args=False), len(self.shape))

    def field(self) -> VAE:
        """The network as a field over the latents."""
        prior = None if self.prior is None else Energy(self.prior, (self.latent,))
        states = BITS if self.binary else None
        return VAE(self.posterior, self.likelihood, (self.latent,), self.shape, prior, states)


def _mlp(sizes: tuple[int, ...], dropout: float, seed: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.SiLU(), Dropout(dropout, seed + i)] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _independent(law: td.Distribution, axes: int) -> td.Independent[td.Distribution]:
    return td.Independent(law, axes, validate_args=False)


@dataclass(frozen=True)
class VAEVariant:
    """A model of this family with the prior N(0, I).

    Args:
        model: The name of the model.
        binary: Whether its pixels are 0 and 1.
    """

    model: str
    binary: bool

    def build(self, weights: File = None) -> VAE:
        """The autoencoder with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        return _built(self.model, weights)

    def default_data(self) -> Tensor:
        """What the shipped weights were trained on: the digits' training images, `(1437, 1, 8, 8)`."""
        images = load_digits().train
        return binarised(images) if self.binary else images

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 4000,
        latent: int = 12,
        width: int = 128,
        dropout: float = 0.1,
        draws: int = 3,
        bin: float | None = None,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the autoencoder to data.

        Args:
            data: The data, `(n, *data_shape)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            latent: The number of latents.
            width: The width of the hidden layers of encoder and decoder.
            dropout: The share of their hidden units dropped in training.
            draws: K, how many importance weights the bound has (1: the ELBO).
            bin: The width of the uniform noise put on the data, None for the digits' 1/8, 0 for
                data that are continuous or binary.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights of the best bound on a held-out tenth of the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        count("draws", draws, least=1)
        bin = (0.0 if self.binary else BIN) if bin is None else finite("bin", bin)
        rows = _training_rows(self.default_data() if data is None else data, self.binary)
        network = _fresh(
            rows,
            seed,
            binary=self.binary,
            latent=latent,
            width=width,
            dropout=dropout,
            prior_width=0,
        )
        unit = td.Independent(td.Normal(torch.zeros(latent), torch.ones(latent)), 1)

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            x = dequantised(batch, bin, generator)
            normals = torch.randn((draws, len(x), latent), generator=generator)
            if draws == 1:
                return negative_elbo(
                    x, network.posterior(x), network.likelihood, unit, normals, exact_kl=True
                )
            return negative_iwae(x, network.posterior(x), network.likelihood, unit, normals)

        asked = {
            "steps": steps,
            "latent": latent,
            "width": width,
            "dropout": dropout,
            "draws": draws,
            "bin": bin,
        }
        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, asked)
        done = training.fit(network, loss, rows, Recipe(steps))
        return training.stored(network.settings, done.weights)


@dataclass(frozen=True)
class LearnedPrior:
    """The model with a Gaussian decoder and a learned prior."""

    model: str

    def build(self, weights: File = None) -> VAE:
        """As `VAEVariant.build`."""
        return _built(self.model, weights)

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 3500,
        latent: int = 12,
        width: int = 128,
        dropout: float = 0.1,
        prior_width: int = 64,
        chain_steps: int = 20,
        step_size: float = 0.05,
        chains: int = 2000,
        refresh: float = 0.01,
        decay: float = 1e-3,
        bin: float = BIN,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit autoencoder and prior to data together.

        Args:
            data: As in `VAEVariant.train`.
            seed: As in `VAEVariant.train`.
            steps: As in `VAEVariant.train`.
            latent: As in `VAEVariant.train`.
            width: As in `VAEVariant.train`.
            dropout: As in `VAEVariant.train`.
            prior_width: The width of the hidden layers of f.
            chain_steps: How many Langevin steps of latents precede each step of the optimiser.
            step_size: The size of these steps.
            chains: The number of chains in the replay buffer.
            refresh: The share of the chains that start anew from N(0, I) when read.
            decay: The weight of f^2 in the loss.
            bin: The width of the uniform noise put on the data, 0 for continuous data.
            report: As in `VAEVariant.train`.
            checkpoint: As in `VAEVariant.train`.

        Returns:
            The averaged weights of the last step.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
            ChainFailure: Where every chain failed.
        """
        rows = _training_rows(load_digits().train if data is None else data, binary=False)
        network = _fresh(
            rows,
            seed,
            binary=False,
            latent=latent,
            width=width,
            dropout=dropout,
            prior_width=prior_width,
        )
        prior = network.field().prior
        divergence = ContrastiveDivergence(
            ULA(step_size), chain_steps, ReplayBuffer(chains, refresh), seed
        )

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            x = dequantised(batch, finite("bin", bin), generator)
            q = network.posterior(x)
            z = reparametrised(q, torch.randn((len(x), latent), generator=generator))
            # E_q E(z), through which the encoder learns, less the mean E of the chains
            gap, negatives = divergence(prior, z)
            f = prior.fn.correction(torch.cat([z.detach(), negatives]))
            return (
                q.log_prob(z) - network.likelihood(z).log_prob(x) + gap + decay * f.square().mean()
            )

        asked = {
            "steps": steps,
            "latent": latent,
            "width": width,
            "dropout": dropout,
            "prior_width": prior_width,
            "chain_steps": chain_steps,
            "step_size": step_size,
            "chains": chains,
            "refresh": refresh,
            "decay": decay,
            "bin": bin,
        }
        recipe = Recipe(steps, batch=min(Recipe.batch, chains), held_out=0.0)
        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, asked)
        done = training.fit(network, loss, rows, recipe, state=divergence)
        return training.stored(network.settings, done.weights)


GAUSSIAN = VAEVariant("digits-vae", binary=False)


BINARY = VAEVariant("digits-vae-binary", binary=True)


LATENT_ENERGY = LearnedPrior("digits-latent-energy")


def _built(model: str, weights: str | os.PathLike[str] | None) -> VAE:
    stored = read_weights(weights, model)
    d = math.prod(stored.settings["data_shape"])
    network = stored.into(lambda: Network(stored.settings, torch.zeros(d), torch.ones(())))
    assert isinstance(network, Network)
    return network.field()


def _training_rows(data: Any, binary: bool) -> Tensor:
    rows = prepare(data, 1.0).rows
    if binary:
        check_states("data", rows, BITS)
    return rows


def _fresh(rows: Tensor, seed: int, **settings: Any) -> Network:
    mean, std = rows.flatten(1).mean(0), rows.flatten(1).var(0).mean().sqrt()
    settings = {"data_shape": list(rows.shape[1:]), **settings}
    return Network(settings, mean, std, torch.Generator().manual_seed(seed))
