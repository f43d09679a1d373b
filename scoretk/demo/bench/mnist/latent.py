"""Families with latent variables: a restricted Boltzmann machine and autoencoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from scoretk.core.devices import sent
from scoretk.core.noise import Noise, derive
from scoretk.demo.bench.mnist.data import Split
from scoretk.demo.bench.mnist.estimates import Nats, by_log_z, by_weights, log_z
from scoretk.demo.bench.mnist.families import CHOOSING, PIXELS, SHAPE, place, words
from scoretk.demo.bench.mnist.training import Plan, Task, Trained, fitted
from scoretk.inference.sampling import sample
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.learn.likelihoods import negative_elbo, negative_iwae
from scoretk.learn.recipe import Progress, Recipe
from scoretk.models.digits.boltzmann import Parameters
from scoretk.models.digits.vae import Network
from scoretk.models.targets.lattices import RBM, IndependentUnits
from scoretk.solvers import BlockGibbs

__all__ = ["Autoencoder", "Machine"]


@dataclass(frozen=True)
class Machine:
    """A restricted Boltzmann machine, by persistent contrastive divergence.

    Args:
        recipe: How it is fitted; no images choose its weights, as their likelihood needs log Z.
        hidden: The number of hidden units.
        sweeps: How many block Gibbs sweeps a step makes.
        chains: How many chains log Z is found by.
        levels: How many levels they have, None for as many as a pilot finds.
        curve_chains: How many chains find log Z for the curve.
        mixing: How many sweeps a sample takes, from independent fair bits.
    """

    recipe: Recipe
    hidden: int = 500
    sweeps: int = 1
    chains: int = 256
    levels: int | None = 10_000
    curve_chains: int = 256
    mixing: int = 2000

    def train(self, data: Split, plan: Plan) -> Trained:
        """As `scoretk.demo.bench.mnist.families.Family.train`; the curve is of the step's own weights."""
        units, valid = IndependentUnits.of(data.train), data.valid[:CHOOSING]

        def start() -> Task:
            network = Parameters(SHAPE, self.hidden)
            network.start(units.bias.cpu(), torch.Generator().manual_seed(plan.seed))
            network.to(data.train.device)
            buffer = ReplayBuffer(self.recipe.batch, refresh=0.0)
            divergence = ContrastiveDivergence(BlockGibbs(), self.sweeps, buffer, plan.seed)

            def loss(x: Tensor, _: torch.Generator) -> Tensor:
                return divergence(network.machine, x).loss / PIXELS

            @torch.no_grad()
            def nats(progress: Progress) -> float:
                seed, machine = derive(plan.seed, progress.step), network.machine
                found = log_z(machine, units, "smc", self.curve_chains, None, seed)
                return float(machine.energy(valid).mean() + found.value)

            return Task(network, loss, nats)

        network, steps, curve = fitted(start, data, None, self.recipe, plan)
        assert isinstance(network, Parameters)
        name = f"{self.hidden} hidden units, persistent chains, {self.sweeps} block Gibbs sweep{'s' * (self.sweeps > 1)} a step"
        machine = RBM(*(p.detach() for p in network.parameters()))
        return Trained(machine, steps, self.recipe.steps, curve, words(name, self.recipe))

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """By log Z, of two estimators."""
        units = IndependentUnits.of(data.train)
        return by_log_z(field, units, data.test, self.chains, self.levels, seed)

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Where block Gibbs chains are after their sweeps, `(n, 28, 28)`: no exact draws."""
        made = sample(
            field, BlockGibbs(), chains=n, steps=self.mixing, seed=seed, keep="last", progress=False
        )
        return made.final


@dataclass(frozen=True)
class Autoencoder:
    """A variational autoencoder with a Bernoulli decoder and the prior N(0, I).

    Args:
        recipe: How it is fitted.
        latent: The number of latents.
        width: The width of the two hidden layers of encoder and decoder each.
        weights: How many importance weights the bound has in training; 1 for the ELBO.
        weights_each: How many weights an image has in the test.
        few: How many images are annealed too.
    """

    recipe: Recipe
    latent: int = 50
    width: int = 400
    weights: int = 1
    weights_each: int = 1000
    few: int = 16

    def train(self, data: Split, plan: Plan) -> Trained:
        """As `scoretk.demo.bench.mnist.families.Family.train`; the curve is of the bound that is fitted."""
        zeros = data.train.new_zeros(self.latent)
        unit = td.Independent(td.Normal(zeros, zeros + 1, validate_args=False), 1)
        settings = {
            "data_shape": list(SHAPE),
            "binary": True,
            "latent": self.latent,
            "width": self.width,
            "dropout": 0.0,
            "prior_width": 0,
        }
        flat = data.train.flatten(1)
        mean, std = flat.mean(0), flat.var(0).mean().sqrt()

        def start() -> Task:
            generator = torch.Generator().manual_seed(plan.seed)
            network = Network(settings, mean, std, generator).to(data.train.device)

            def loss(x: Tensor, generator: torch.Generator) -> Tensor:
                shape = self.weights, len(x), self.latent
                normals = sent(torch.randn(shape, generator=generator), x.device)
                q, p = network.posterior(x), network.likelihood
                if self.weights == 1:
                    return negative_elbo(x, q, p, unit, normals, exact_kl=True) / PIXELS
                return negative_iwae(x, q, p, unit, normals) / PIXELS

            return Task(network, loss, lambda p: PIXELS * (p.held_out or 0.0))

        network, steps, curve = fitted(start, data, data.valid[:CHOOSING], self.recipe, plan)
        assert isinstance(network, Network)
        bound = "ELBO" if self.weights == 1 else f"bound of {self.weights} weights"
        name = f"{self.latent} latents, two layers of {self.width}, {bound}"
        return Trained(network.field(), steps, self.recipe.steps, curve, words(name, self.recipe))

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """By importance weights, and on a few images by annealing."""
        return by_weights(field, data.test, self.weights_each, self.few, seed)

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Exact draws of latents, then of pixels given these, `(n, 28, 28)`."""
        noise = Noise(seed, n, device=place(field))
        with torch.no_grad():
            drawn: Tensor = field.observe(field.draw(n, noise), noise)
        return drawn
