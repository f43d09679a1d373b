r"""Variational autoencoders, as fields over their latents.

A prior p(z), a decoder p(x | z) and an encoder q(z | x) give one model several targets, all of which the solvers sample:

    VAE(z)              E = -log p(z)                          N(0, I), or the learned prior below; `decode` gives images
    posterior(x)(z)     E = -log p(x | z) - log p(z)           its partition function is p(x)
    joint(z, x)         E = -log p(x | z) - log p(z)           over the flat (z, x)
    marginal(x)         p(x) = int p(x | z) p(z) dz            exact draws; its density is estimated

The density of the marginal has two unbiased estimates, with nothing in common but the model: importance weights
`w_k = p(x, z_k) / q(z_k | x)`, `z_k ~ q`, whose mean is p(x), and annealed importance sampling from prior to posterior.
E log w is the ELBO. The decoder is Gaussian with a learned mean and std a pixel, or Bernoulli. The learned prior is tilted,

    p(z) = exp(-f(z)) N(z; 0, I) / Z,    loss = -E_q [log p(x | z) - log q(z | x)] + E_q E(z) - mean E(z-)

with z- the persistent Langevin chains of contrastive divergence. As `E(z) = |z|^2 / 2 + f(z)`, the loss is the negative ELBO and
the last two terms are contrastive divergence's, through which the encoder learns as well.

References: Kingma, Welling, "Auto-encoding variational Bayes" (2014); Rezende, Mohamed, Wierstra, "Stochastic
backpropagation and approximate inference in deep generative models" (2014); Burda, Grosse, Salakhutdinov, "Importance weighted
autoencoders" (2016); Wu, Burda, Salakhutdinov, Grosse, "On the quantitative analysis of decoder-based generative models"
(2017): annealed importance sampling; Pang, Han, Nijkamp, Zhu, Wu, "Learning latent space energy-based prior model" (2020).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from scoretk.arguments import count, finite, option, tensor_like
from scoretk.core.anatomy import left_as_found
from scoretk.draws import Cost
from scoretk.encoding import interpolate
from scoretk.errors import InvalidArgument, MissingCapability, Status
from scoretk.families.digits_data import binarised, load_digits
from scoretk.families.networks import ConfinedEnergy, Dropout, EnergyMLP, Spread, fresh
from scoretk.families.stored import Stored, read_weights
from scoretk.families.training import dequantised, notes, prepare
from scoretk.fields import Energy, NoiseSource
from scoretk.fields.base import standard_normal
from scoretk.fields.protocols import field_name, offers
from scoretk.learn.contrastive import ContrastiveDivergence, ReplayBuffer
from scoretk.learn.fitting import Progress, Recipe, fit
from scoretk.learn.likelihoods import negative_elbo, negative_iwae, reparametrised
from scoretk.likelihood import Estimate, row_ids
from scoretk.noise import Noise, derive
from scoretk.partition import log_partition
from scoretk.rows import select_rows
from scoretk.solvers import HMC, ULA
from scoretk.streams import Stream

__all__ = ["BINARY", "GAUSSIAN", "LATENT_ENERGY", "VAE", "Joint", "LatentEnergy", "Marginal", "Posterior", "Variant"]

AT_ONCE = 2**15
"""Rows that the decoder sees at once where many importance weights are made."""
FLOOR = 0.01
"""Of the decoder's std, over the data's, and of the pixel means that a Bernoulli decoder starts from."""
WIDER = 1.2
"""How much wider than the curvature says a proposal for importance weights is, against weights without bounds."""
STIFFEST = 1e10
"""The largest curvature that is taken at its word."""
BIN = 0.125
"""How far the digits' levels are apart."""
BITS = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class VAE:
    """A variational autoencoder as the static field of its latents.

    Arguments: encoder, `x -> q(z | x)`, a normal distribution of batch shape `(batch,)`, and decoder, `z -> p(x | z)`, normal
        or Bernoulli, as in `scoretk.learn.negative_elbo`; event_shape, (latent,); data_shape, of one x; prior, a static
        field over latents, None for N(0, I); pixel_states, (0.0, 1.0) where the decoder is Bernoulli, else None.
    """

    encoder: Callable[[Tensor], td.Distribution]
    decoder: Callable[[Tensor], td.Distribution]
    event_shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    prior: Any = None
    pixel_states: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.event_shape) != 1:
            raise InvalidArgument("event_shape", self.event_shape, "(latent,), the number of latents")
        if self.prior is None:
            object.__setattr__(self, "prior", standard_normal(self.event_shape))
        if "energy" not in offers(self.prior) or tuple(self.prior.event_shape) != tuple(self.event_shape):
            raise InvalidArgument(
                "prior", field_name(self.prior), f"a static field with an energy, of event shape {self.event_shape}"
            )

    @property
    def provides(self) -> frozenset[str]:
        """Energy and decoder; log_prob and draw where the prior has them."""
        return frozenset({"energy", "decode"}) | (offers(self.prior) & {"log_prob", "draw"})

    def energy(self, z: Tensor) -> Tensor:
        """`-log p(z)` up to a constant, `(batch, latent) -> (batch,)`."""
        return self.prior.energy(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """`log p(z)`, normalised, `(batch,)`. Raises `MissingCapability` where the prior is not."""
        return self._asked_of_prior("log_prob").log_prob(z)

    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws of the prior, `(n, latent)`. Raises `MissingCapability` where it has none."""
        return self._asked_of_prior("draw").draw(n, noise)

    def decode(self, z: Tensor) -> Tensor:
        """The decoder's mean, `(batch, latent) -> (batch, *data_shape)`."""
        return self.decoder(z).mean.to(z)

    def observe(self, z: Tensor, noise: NoiseSource) -> Tensor:
        """A draw of p(x | z), `(batch, *data_shape)`: the decoder's mean and its noise, at step 1 as the prior's own is at 0."""
        law = self.decoder(z)
        if self.pixel_states is None:
            return reparametrised(law, noise.normal(1, Stream.START, self.data_shape, z.dtype))
        return (noise.uniform(1, Stream.START, self.data_shape, z.dtype) < law.mean).to(z)

    def encode(self, x: Tensor) -> Tensor:
        """The encoder's mean, `(batch, *data_shape) -> (batch, *latent)`."""
        with left_as_found(self), torch.no_grad():
            rows = self.data_rows(x)
            return self.encoder(rows).mean.to(rows)

    def interpolate(self, a: Tensor, b: Tensor, n: int, *, way: str = "spherical") -> Tensor:
        """Images between images, by way of their latents.

        Arguments: a and b `(batch, *data_shape)`; n, how many, at least 2, the reconstructions of a and b among them; way,
            "spherical" (`scoretk.interpolate`) or "linear". Returns: `(batch, n, *data_shape)`.
        """
        start, end = self.encode(a), self.encode(b)
        count("n", n, least=2)
        if option("way", way, ("spherical", "linear")) == "spherical":
            z = interpolate(start, end, n)
        else:
            z = torch.stack([torch.lerp(start, end, k / (n - 1)) for k in range(n)], 1)
        with left_as_found(self), torch.no_grad():
            return self.decode(z.flatten(0, 1)).unflatten(0, (len(z), n))

    def posterior(self, x: Tensor | None = None) -> Posterior:
        """The field of p(z | x): of one image x, `data_shape`; without it, of a row a chain, `cond={"x": rows}`."""
        return Posterior(self, None if x is None else tensor_like("x", x, self.data_shape))

    @property
    def joint(self) -> Joint:
        """The field of p(z, x). Raises `MissingCapability` where x is discrete."""
        if self.pixel_states is not None:
            raise MissingCapability(
                field_name(self), offers(self), {"joint"},
                "Its pixels are discrete: sample z (this field, or its posterior), or draw x from `marginal`",
            )  # fmt: skip
        return Joint(self)

    @property
    def marginal(self) -> Marginal:
        """The model of the data, p(x); `dataclasses.replace(vae.marginal, draws=...)` has other accuracy."""
        return Marginal(self)

    def elbo(self, x: Tensor, *, draws: int = 64, seed: int = 0, rows: int | range | Tensor | None = None) -> Estimate:
        """The evidence lower bound, `E_q log(p(x, z) / q(z | x)) <= log p(x)`, in nats.

        Arguments: x `(batch, *data_shape)`; draws of q a row, at least 2; seed; rows, ids as in `scoretk.log_prob`.
        Returns: `Estimate`, value and stderr `(batch,)`.
        """
        log_w = self.log_weights(x, draws=draws, seed=seed, rows=rows)
        spread = ((log_w - log_w.mean(0)).square().sum(0) / (draws * (draws - 1))).sqrt()
        return _estimate(self, log_w.mean(0), spread, f"ELBO ({draws} draws)", log_w.numel())

    def log_weights(
        self, x: Tensor, *, draws: int, newton: int = 0, seed: int = 0, rows: int | range | Tensor | None = None
    ) -> Tensor:
        """`log w_k = log p~(z_k) + log p(x | z_k) - log q(z_k)`, p~ the prior, normalised or not.

        Arguments: x `(batch, *data_shape)`; draws, how many a row, at least 2; newton, 0 for q the encoder, else q is half
            the encoder and half a normal at a mode of the posterior that so many Newton steps found; seed; rows, ids as in
            `scoretk.log_prob`.
        Returns: `(draws, batch)`; the mean of w is `Z p(x)` with Z that of p~ (`log_z`).
        """
        data, k = self.data_rows(x), count("draws", draws, least=2)
        noise = Noise(seed, row_ids(rows, data), dtype=data.dtype)
        if not len(data):
            return data.new_zeros((k, 0))
        together = 2 * max(1, AT_ONCE // (2 * len(data)))
        with left_as_found(self), torch.no_grad():
            laws, found = [self.encoder(data)], []
            if count("newton", newton):
                laws.append(_laplace(self, data, laws[0].mean, newton))
            for first in range(0, k, together):  # one step of the noise a draw: row i has the same draws in any batch
                steps = range(first, min(first + together, k))
                normals = torch.stack([noise.normal(s, Stream.PROBE, self.event_shape) for s in steps])
                z = torch.cat([reparametrised(law, normals[i :: len(laws)]) for i, law in enumerate(laws)])
                found.append(self._log_joint(data, z) - _log_mixed([law.log_prob(z) for law in laws], k))
            return torch.cat(found)

    def _log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p~(z) + log p(x | z)`, `(k, batch)`."""
        flat = z.flatten(0, 1)
        return (self.log_likelihood(x.expand(len(z), *x.shape).flatten(0, 1), flat) + self.log_prior(flat)).reshape(
            z.shape[:2]
        )

    def data_rows(self, x: Tensor) -> Tensor:
        """x as rows `(batch, *data_shape)`. Raises `InvalidArgument`."""
        rows = tensor_like("x", x, (None, *self.data_shape))
        if self.pixel_states is not None:
            _check_states("x", rows, self.pixel_states)
        return rows

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x | z)`, `(batch,)`."""
        return self.decoder(z).log_prob(x) if len(z) else z.new_zeros(0)  # torch's Independent takes no empty batch

    def log_prior(self, z: Tensor) -> Tensor:
        """`log p~(z)`, `(batch,)`: normalised where the prior can be."""
        return self.prior.log_prob(z) if "log_prob" in offers(self.prior) else -self.prior.energy(z)

    @cached_property
    def log_z(self) -> Estimate:
        """log Z of p~, made once: 0 where the prior is normalised, else by annealed importance sampling from N(0, I)."""
        if "log_prob" in offers(self.prior):
            return Estimate(torch.zeros(()), torch.zeros(()), "exact", Cost())
        kernel = HMC(0.3, leapfrogs=8, metric="none")
        return log_partition(self.prior, standard_normal(self.event_shape), kernel=kernel)

    def _asked_of_prior(self, what: str) -> Any:
        if what not in offers(self.prior):
            raise MissingCapability(
                field_name(self), offers(self), {what},
                "Its prior is learned, known up to a constant: sample it with a kernel such as HMC or ULA",
            )  # fmt: skip
        return self.prior


@dataclass(frozen=True, eq=False)
class Posterior:
    """The field of p(z | x): `E(z) = -log p(x | z) - log p(z)`, whose partition function is p(x) (times that of the prior).

    Arguments: vae; x, one image that all chains are given, or None: then each has its own, as `cond={"x": rows}`. Chains
    begin well at `init=vae.encode(rows)`.
    """

    vae: VAE
    x: Tensor | None = None

    provides = frozenset({"energy", "decode"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.vae.event_shape

    def energy(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """`-log p(x | z) - log p(z)`, `(batch, latent), (batch, *data_shape) -> (batch,)`."""
        shape = (len(z), *self.vae.data_shape)
        rows = self.x.to(z).expand(shape) if self.x is not None else x
        if rows is None or rows.shape != shape:
            raise InvalidArgument("x", rows, f'the data, one row a chain, shape {shape}: cond={{"x": rows}}')
        return -self.vae.log_likelihood(rows, z) - self.vae.log_prior(z)

    def decode(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The decoder's mean, `(batch, *data_shape)`."""
        return self.vae.decode(z)


@dataclass(frozen=True, eq=False)
class Joint:
    """The field of p(z, x) over the flat (z, x), of event shape (latent + pixels,)."""

    vae: VAE

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (math.prod(self.vae.event_shape) + math.prod(self.vae.data_shape),)

    @property
    def provides(self) -> frozenset[str]:
        """As the autoencoder itself."""
        return self.vae.provides

    def split(self, zx: Tensor) -> tuple[Tensor, Tensor]:
        """The latents `(batch, latent)` and the data `(batch, *data_shape)`."""
        latent = math.prod(self.vae.event_shape)
        return zx[:, :latent].reshape(-1, *self.vae.event_shape), zx[:, latent:].reshape(-1, *self.vae.data_shape)

    def energy(self, zx: Tensor) -> Tensor:
        """`-log p(x | z) - log p(z)`, `(batch,)`."""
        z, x = self.split(zx)
        return -self.vae.log_likelihood(x, z) + self.vae.energy(z)

    def log_prob(self, zx: Tensor) -> Tensor:
        """`log p(z, x)`, normalised, `(batch,)`."""
        z, x = self.split(zx)
        return self.vae.log_likelihood(x, z) + self.vae.log_prob(z)

    @torch.no_grad()
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws, `(n, latent + pixels)`, without gradients."""
        z = self.vae.draw(n, noise)
        return torch.cat([z.flatten(1), self.vae.observe(z, noise).flatten(1)], 1)

    def decode(self, zx: Tensor) -> Tensor:
        """The data in it, `(batch, *data_shape)`."""
        return self.split(zx)[1]


@dataclass(frozen=True, eq=False)
class Marginal:
    """p(x) in data space: exact draws where the prior has them, and its log density by two estimates.

    Arguments: vae; draws, how many importance weights a row, and newton, of which proposal, as in `VAE.log_weights`.
    """

    vae: VAE
    draws: int = 1000
    newton: int = 30

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.vae.data_shape

    @property
    def states(self) -> tuple[float, ...] | None:
        """What pixels take where they are discrete, else None."""
        return self.vae.pixel_states

    @property
    def provides(self) -> frozenset[str]:
        """draw where the prior has it, states where pixels have them."""
        return (self.vae.provides & {"draw"}) | ({"states"} if self.states is not None else frozenset())

    @torch.no_grad()
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws, without gradients: z of the prior, then x of the decoder, its noise included. `(n, *data_shape)`."""
        return self.vae.observe(self.vae.draw(n, noise), noise)

    def estimate_log_prob(self, x: Tensor, *, seed: int = 0, rows: int | range | Tensor | None = None) -> Estimate:
        """What `scoretk.log_prob` asks for: `importance_log_prob`."""
        return self.importance_log_prob(x, seed=seed, rows=rows)

    def importance_log_prob(self, x: Tensor, *, seed: int = 0, rows: int | range | Tensor | None = None) -> Estimate:
        """`log (1/K sum_k w_k)`, in nats: log p(x) but for a bias of half its squared standard error, downwards.

        The standard error is the delta method's. Half of the draws are the encoder's and half those of a normal at a mode of
        the posterior, since an encoder alone, narrower than the posterior and not correlated, leaves few weights that count.
        Where few still do (the method says how many, in the worst row) more draws are needed, or `annealed_log_prob`.
        Reference: Burda, Grosse, Salakhutdinov (2016).
        Arguments: x `(batch, *data_shape)`; seed; rows, the ids that each row's draws hang on, as in `scoretk.log_prob`.
        Returns: `Estimate`, value and stderr `(batch,)`.
        """
        log_w = self.vae.log_weights(x, draws=self.draws, newton=self.newton, seed=seed, rows=rows)
        value, stderr, effective = _log_mean(log_w)
        least = f", at least {float(effective.min()):.0f} effective" if len(effective) else ""
        how = f"importance-weighted ({self.draws} draws{least})"
        return _estimate(self.vae, value, stderr, how, log_w.numel())

    def annealed_log_prob(
        self, x: Tensor, *, chains: int = 64, seed: int = 0, rows: int | range | Tensor | None = None, **options: Any
    ) -> Estimate:
        """log p(x) as the partition function of the posterior, by annealed importance sampling from the prior.

        Reference: Wu, Burda, Salakhutdinov, Grosse (2017).
        Arguments: x `(batch, *data_shape)`; chains a row; seed; rows, ids as in `scoretk.log_prob`; options of
        `scoretk.log_partition`.
        Returns: `Estimate`, value and stderr `(batch,)`, in nats.
        """
        data = self.vae.data_rows(x)
        base = (
            self.vae.prior if {"draw", "log_prob"} <= offers(self.vae.prior) else standard_normal(self.vae.event_shape)
        )
        found = [
            log_partition(self.vae.posterior(row), base, chains=chains, seed=derive(seed, i), **options)
            for i, row in zip(row_ids(rows, data).tolist(), data, strict=True)
        ]
        value, stderr = (torch.stack([getattr(f, name) for f in found]) for name in ("value", "stderr"))
        spent = sum(f.cost.total for f in found)
        return _estimate(self.vae, value, stderr, f"AIS ({chains} chains)", spent)


def _log_mean(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`log mean_k w_k`, its standard error by the delta method, and the effective number, of `(k, ...)`."""
    n = len(log_w)
    effective = 1 / torch.softmax(log_w, 0).square().sum(0)
    return log_w.logsumexp(0) - math.log(n), ((n / effective - 1).clamp(min=0) / (n - 1)).sqrt(), effective


def _log_mixed(logs: list[Tensor], draws: int) -> Tensor:
    """The log density of the mixture of proposals that take turns over so many draws."""
    shares = [len(range(i, draws, len(logs))) / draws for i in range(len(logs))]
    return torch.stack([log + math.log(share) for log, share in zip(logs, shares, strict=True)]).logsumexp(0)


def _laplace(vae: VAE, x: Tensor, z: Tensor, steps: int) -> td.MultivariateNormal:
    """A normal at a mode of p(z | x), as wide as the curvature there says and a little wider.

    Newton steps from z, each row's its own, of an absolute curvature of at least the prior's, taken where the energy falls.
    """

    def derivatives(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            y = z.detach().requires_grad_()
            energy = -vae.log_likelihood(x, y) - vae.log_prior(y)
            (slope,) = torch.autograd.grad(energy.sum(), y, create_graph=True)
            rows = [torch.autograd.grad(s.sum(), y, retain_graph=True)[0] for s in slope.unbind(1)]
        hessian = torch.stack(rows, 1).double().nan_to_num(0, 0, 0)
        size, axes = torch.linalg.eigh((hessian + hessian.mT) / 2)
        return energy.detach(), slope.detach(), axes / size.abs().clamp(1.0, STIFFEST).sqrt()[:, None]

    length = z.new_ones((len(x), 1))
    energy, slope, factor = derivatives(z)
    for _ in range(steps):
        step = (factor @ factor.mT @ slope.double()[..., None]).squeeze(-1)
        tried = z - length * step.to(z)
        found = derivatives(tried)
        better = found[0] < energy
        z, energy, slope, factor = (
            select_rows(better, new, old) for new, old in zip((tried, *found), (z, energy, slope, factor), strict=True)
        )
        length = select_rows(better, (2 * length).clamp(max=1), length / 4)
    upper = torch.linalg.qr(factor.mT).R  # of the covariance: F F^T = R^T R
    lower = WIDER * upper.mT * upper.diagonal(dim1=1, dim2=2).sign()[:, None]
    return td.MultivariateNormal(z, scale_tril=lower.to(z), validate_args=False)


def _estimate(vae: VAE, value: Tensor, stderr: Tensor, method: str, energies: int) -> Estimate:
    """What was found of `log Z p(x)`, less log Z of the prior."""
    value, stderr = value - vae.log_z.value.to(value), torch.hypot(stderr, vae.log_z.stderr.to(stderr))
    status = torch.where(value.isnan(), int(Status.NONFINITE), int(Status.OK))
    return Estimate(value, stderr, method, Cost(energy=energies), status)


def _check_states(name: str, rows: Tensor, states: tuple[float, ...]) -> None:
    if not bool(torch.isin(rows, rows.new_tensor(states)).all()):
        raise InvalidArgument(name, rows, f"pixels among {', '.join(f'{s:g}' for s in states)}")


class Network(nn.Module):
    """Encoder and decoder as MLPs, and f of a learned prior.

    Arguments: settings, of the variant; mean `(d,)` and std `()` of the data; generator of the weights, None for none.
    """

    mean: Tensor
    std: Tensor
    prior: ConfinedEnergy | None

    def __init__(
        self, settings: dict[str, Any], mean: Tensor, std: Tensor, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.shape, self.binary, self.latent = tuple(settings["data_shape"]), settings["binary"], settings["latent"]
        width, dropout, d = settings["width"], settings["dropout"], math.prod(self.shape)

        def made(make: Callable[[], nn.Module]) -> nn.Module:
            return make() if generator is None else fresh(make, generator)

        self.encoder = made(lambda: _mlp((d, width, width, 2 * self.latent), dropout, 0))
        self.decoder = made(lambda: _mlp((self.latent, width, width, d if self.binary else 2 * d), dropout, 10))
        self.prior = None
        if settings["prior_width"]:
            f = made(lambda: EnergyMLP(self.latent, settings["prior_width"]))
            self.prior = ConfinedEnergy(f, Spread(torch.zeros(self.latent), None, torch.ones(self.latent)))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def posterior(self, x: Tensor) -> td.Independent:
        """q(z | x), `(batch, *shape)` to a normal over `(latent,)`."""
        centre, log_std = self.encoder((x.to(self.mean).flatten(1) - self.mean) / self.std).chunk(2, 1)
        return _independent(td.Normal(centre, log_std.exp(), validate_args=False), 1)

    def likelihood(self, z: Tensor) -> td.Independent:
        """p(x | z), `(rows, latent)` to a distribution over `shape`."""
        out = self.decoder(z.to(self.mean))
        if self.binary:
            logits = (self.mean.logit(FLOOR) + out).unflatten(1, self.shape)
            return _independent(td.Bernoulli(logits=logits, validate_args=False), len(self.shape))
        centre, log_std = out.chunk(2, 1)
        centre = (self.mean + self.std * centre).unflatten(1, self.shape)
        scale = (self.std * (FLOOR + log_std.exp())).unflatten(1, self.shape)
        return _independent(td.Normal(centre, scale, validate_args=False), len(self.shape))

    def field(self) -> VAE:
        """The field that it is."""
        prior = None if self.prior is None else Energy(self.prior, (self.latent,))
        states = BITS if self.binary else None
        return VAE(self.posterior, self.likelihood, (self.latent,), self.shape, prior, states)


def _mlp(sizes: tuple[int, ...], dropout: float, seed: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.SiLU(), Dropout(dropout, seed + i)] if i else []
        layers.append(nn.Linear(before, after))
    return nn.Sequential(*layers)


def _independent(law: td.Distribution, axes: int) -> td.Independent:
    return td.Independent(law, axes, validate_args=False)


@dataclass(frozen=True)
class Variant:
    """A model of this family with the prior N(0, I): its name, and whether its pixels are 0 and 1."""

    model: str
    binary: bool

    def build(self, weights: str | os.PathLike[str] | None = None) -> VAE:
        """The autoencoder with these weights, by default the shipped ones.

        Raises: `InvalidArgument` where the file holds no weights of this model.
        """
        return _built(self.model, weights)

    def default_data(self) -> Tensor:
        """What the shipped weights were trained on: the digits' training images, `(1437, 1, 8, 8)`."""
        images = load_digits().train
        return binarised(images) if self.binary else images

    def train(
        self, data: Tensor | None = None, *, seed: int = 0, steps: int = 4000, latent: int = 12, width: int = 128,
        dropout: float = 0.1, draws: int = 3, bin: float | None = None, report: Callable[[Progress], Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Stored:  # fmt: skip
        """Fit the autoencoder to data.

        Arguments: data `(n, *data_shape)`, None for the digits; seed; steps of the optimiser; latent, how many; width and
            dropout of both networks; draws, how many importance weights the bound has (1: the ELBO); bin, the width of the
            uniform noise put on the data, None for the digits' 1/8, 0 for data that are continuous or binary; report, called
            after each evaluation; checkpoint, a file to save to and to go on from.
        Returns: the weights of the best bound on a held-out tenth of the rows.
        Raises: `InvalidArgument`, `FitFailure`, `CheckpointError`.
        """
        count("draws", draws, least=1)
        bin = (0.0 if self.binary else BIN) if bin is None else finite("bin", bin)
        rows = _training_rows(self.default_data() if data is None else data, self.binary)
        network = _fresh(rows, seed, binary=self.binary, latent=latent, width=width, dropout=dropout, prior_width=0)
        unit = td.Independent(td.Normal(torch.zeros(latent), torch.ones(latent)), 1)

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            x = dequantised(batch, bin, generator)
            normals = torch.randn((draws, len(x), latent), generator=generator)
            if draws == 1:
                return negative_elbo(x, network.posterior(x), network.likelihood, unit, normals, exact_kl=True)
            return negative_iwae(x, network.posterior(x), network.likelihood, unit, normals)

        made = notes(
            self.model, data is None, seed, steps=steps, latent=latent, width=width, dropout=dropout, draws=draws, bin=bin
        )  # fmt: skip
        done = fit(network, loss, rows, Recipe(steps), seed=seed, report=report, checkpoint=checkpoint, settings=made)
        return Stored(self.model, network.settings, done.weights, made)


@dataclass(frozen=True)
class LatentEnergy:
    """The Gaussian model with a learned prior."""

    model: str

    def build(self, weights: str | os.PathLike[str] | None = None) -> VAE:
        """As `Variant.build`."""
        return _built(self.model, weights)

    def train(
        self, data: Tensor | None = None, *, seed: int = 0, steps: int = 3500, latent: int = 12, width: int = 128,
        dropout: float = 0.1, prior_width: int = 64, chain_steps: int = 20, step_size: float = 0.05, chains: int = 2000,
        refresh: float = 0.01, decay: float = 1e-3, bin: float = BIN, report: Callable[[Progress], Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> Stored:  # fmt: skip
        """Fit autoencoder and prior to data together.

        Arguments: as `Variant.train`; prior_width of f; chain_steps, Langevin steps of step_size in latents before each step
            of the optimiser; chains, slots of the replay buffer; refresh, the share of the chains that start anew from
            N(0, I) when read; decay, of `f^2`.
        Returns: the averaged weights of the last step.
        Raises: `InvalidArgument`, `FitFailure`, `CheckpointError`; `ChainFailure` where every chain failed.
        """
        rows = _training_rows(load_digits().train if data is None else data, binary=False)
        network = _fresh(rows, seed, binary=False, latent=latent, width=width, dropout=dropout, prior_width=prior_width)
        prior = network.field().prior
        divergence = ContrastiveDivergence(ULA(step_size), chain_steps, ReplayBuffer(chains, refresh), seed)

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            x = dequantised(batch, finite("bin", bin), generator)
            q = network.posterior(x)
            z = reparametrised(q, torch.randn((len(x), latent), generator=generator))
            gap, negatives = divergence(prior, z)  # E_q E(z), through which the encoder learns, less E of the chains
            f = prior.fn.correction(torch.cat([z.detach(), negatives]))
            return q.log_prob(z) - network.likelihood(z).log_prob(x) + gap + decay * f.square().mean()

        recipe = Recipe(steps, held_out=0.0)
        recipe = replace(recipe, batch=min(recipe.batch, chains))
        made = notes(
            self.model, data is None, seed, steps=steps, latent=latent, width=width, dropout=dropout, prior_width=prior_width,
            chain_steps=chain_steps, step_size=step_size, chains=chains, refresh=refresh, decay=decay, bin=bin,
        )  # fmt: skip
        done = fit(
            network, loss, rows, recipe, seed=seed, report=report, checkpoint=checkpoint, state=divergence, settings=made,
        )  # fmt: skip
        return Stored(self.model, network.settings, done.weights, made)


GAUSSIAN = Variant("digits-vae", binary=False)
BINARY = Variant("digits-vae-binary", binary=True)
LATENT_ENERGY = LatentEnergy("digits-latent-energy")


def _built(model: str, weights: str | os.PathLike[str] | None) -> VAE:
    stored = read_weights(weights, model)
    d = math.prod(stored.settings["data_shape"])
    network = stored.into(lambda: Network(stored.settings, torch.zeros(d), torch.ones(())))
    assert isinstance(network, Network)
    return network.field()


def _training_rows(data: Any, binary: bool) -> Tensor:
    rows = prepare(data, 1.0).rows
    if binary:
        _check_states("data", rows, BITS)
    return rows


def _fresh(rows: Tensor, seed: int, **settings: Any) -> Network:
    mean, std = rows.flatten(1).mean(0), rows.flatten(1).var(0).mean().sqrt()
    settings = {"data_shape": list(rows.shape[1:]), **settings}
    return Network(settings, mean, std, torch.Generator().manual_seed(seed))
