r"""Variational autoencoders, as fields over their latents.

A prior p(z), a decoder p(x | z) and an encoder q(z | x) give one model several targets, all of
which the solvers sample:

    VAE(z)             E = -log p(z)                    N(0, I) or a learned prior, with `decode`
    posterior(x)(z)    E = -log p(x | z) - log p(z)     its partition function is p(x)
    joint(z, x)        E = -log p(x | z) - log p(z)     over the flat (z, x)
    marginal(x)        p(x) = int p(x | z) p(z) dz      exact draws; its density is estimated

The density of the marginal has two unbiased estimates that share nothing but the model: importance
weights `w_k = p(x, z_k) / q(z_k | x)`, `z_k ~ q`, whose mean is p(x), and annealed importance
sampling from prior to posterior. E log w is the ELBO. The prior may be learned.

References:
    Kingma, Welling, "Auto-encoding variational Bayes" (2014).
    Rezende, Mohamed, Wierstra, "Stochastic backpropagation and approximate inference in deep
    generative models" (2014).
    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016).
    Wu, Burda, Salakhutdinov, Grosse, "On the quantitative analysis of decoder-based generative
    models" (2017): annealed importance sampling.
    Pang, Han, Nijkamp, Zhu, Wu, "Learning latent space energy-based prior model" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch import distributions as td

from scoretk.core.arguments import count, option, tensor_like
from scoretk.core.cost import Cost
from scoretk.core.devices import constant_like, wide
from scoretk.core.modules import left_as_found
from scoretk.core.noise import Noise, derive
from scoretk.core.rows import select_rows
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument, MissingCapability, Status
from scoretk.fields import NoiseSource
from scoretk.fields.base import standard_normal
from scoretk.fields.protocols import drawn, field_name, offers
from scoretk.inference.encoding import interpolate
from scoretk.inference.likelihood import Estimate, row_ids
from scoretk.inference.partition import log_partition
from scoretk.learn.likelihoods import reparametrised
from scoretk.solvers import HMC

__all__ = ["VAE", "Joint", "Marginal", "Posterior"]

AT_ONCE = 2**15
"""How many rows the decoder gets at once where many importance weights are computed."""
WIDER = 1.2
"""How much wider than the curvature says a proposal for importance weights is, so that the weights
are bounded.
"""
STIFFEST = 1e10
"""The largest curvature that is used; larger ones are clamped."""


@dataclass(frozen=True, eq=False)
class VAE:
    """A variational autoencoder as the static field of its latents.

    Args:
        encoder: `x -> q(z | x)`, a normal law of batch shape `(batch,)`, as in
            `scoretk.learn.negative_elbo`.
        decoder: `z -> p(x | z)`, a normal or Bernoulli law of batch shape `(batch,)`.
        event_shape: `(latent,)`, the number of latents.
        data_shape: The shape of one x.
        prior: A static field over latents, None for N(0, I).
        pixel_states: (0.0, 1.0) where the decoder is Bernoulli, else None.

    Raises:
        InvalidArgument: Where the shape or the prior does not fit.
    """

    encoder: Callable[[Tensor], td.Distribution]
    decoder: Callable[[Tensor], td.Distribution]
    event_shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    prior: Any = None
    pixel_states: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.event_shape) != 1:
            raise InvalidArgument(
                "event_shape", self.event_shape, "(latent,), the number of latents"
            )
        if self.prior is None:
            object.__setattr__(self, "prior", standard_normal(self.event_shape))
        if "energy" not in offers(self.prior) or tuple(self.prior.event_shape) != tuple(
            self.event_shape
        ):
            raise InvalidArgument(
                "prior",
                field_name(self.prior),
                f"a static field with an energy, of event shape {self.event_shape}",
            )

    @property
    def provides(self) -> frozenset[str]:
        """Energy and decoder; log_prob and draw where the prior has them."""
        return frozenset({"energy", "decode"}) | (offers(self.prior) & {"log_prob", "draw"})

    def energy(self, z: Tensor) -> Tensor:
        """The prior's energy, -log p(z) up to a constant, `(batch, latent) -> (batch,)`."""
        return self.prior.energy(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """The prior's log density log p(z), normalised, `(batch,)`.

        Raises:
            MissingCapability: Where the prior is known up to a constant only.
        """
        return self._asked_of_prior("log_prob").log_prob(z)

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws of the prior, `(n, latent)`.

        Raises:
            MissingCapability: Where the prior has none.
        """
        return self._asked_of_prior("draw").draw(n, noise)

    def decode(self, z: Tensor) -> Tensor:
        """The decoder's mean, `(batch, latent) -> (batch, *data_shape)`."""
        return self.decoder(z).mean.to(z.dtype)

    def observe(self, z: Tensor, noise: NoiseSource) -> Tensor:
        """A draw of p(x | z), the decoder's noise included, `(batch, *data_shape)`.

        It reads the noise at step 1, as draws of the prior read it at step 0.
        """
        law = self.decoder(z)
        if self.pixel_states is None:
            return reparametrised(law, noise.normal(1, Stream.START, self.data_shape, z.dtype))
        return (noise.uniform(1, Stream.START, self.data_shape, z.dtype) < law.mean).to(z)

    def encode(self, x: Tensor) -> Tensor:
        """The encoder's mean, `(batch, *data_shape) -> (batch, *latent)`."""
        with left_as_found(self), torch.no_grad():
            rows = self.data_rows(x)
            return self.encoder(rows).mean.to(rows.dtype)

    def interpolate(self, a: Tensor, b: Tensor, n: int, *, way: str = "spherical") -> Tensor:
        """Images between images, by interpolation of their latents.

        Args:
            a: The first images, `(batch, *data_shape)`.
            b: The last images, `(batch, *data_shape)`.
            n: How many, at least 2, the reconstructions of a and b among them.
            way: "spherical" (`scoretk.interpolate`) or "linear".

        Returns:
            `(batch, n, *data_shape)`.
        """
        start, end = self.encode(a), self.encode(b)
        count("n", n, least=2)
        if option("way", way, ("spherical", "linear")) == "spherical":
            z = interpolate(start, end, n)
        else:
            z = torch.stack([torch.lerp(start, end, k / (n - 1)) for k in range(n)], 1)
        with left_as_found(self), torch.no_grad():
            images = self.decode(rearrange(z, "rows n ... -> (rows n) ..."))
            return rearrange(images, "(rows n) ... -> rows n ...", n=n)

    def posterior(self, x: Tensor | None = None) -> Posterior:
        """The field of p(z | x), of one image x for all chains.

        Without x each chain has an image of its own, given as `cond={"x": rows}`.
        """
        return Posterior(self, None if x is None else tensor_like("x", x, self.data_shape))

    @property
    def joint(self) -> Joint:
        """The field of p(z, x).

        Raises:
            MissingCapability: Where x is discrete.
        """
        if self.pixel_states is not None:
            raise MissingCapability(
                field_name(self),
                offers(self),
                {"joint"},
                "Its pixels are discrete: sample z (this field, or its posterior), or draw x from "
                "`marginal`",
            )
        return Joint(self)

    @property
    def marginal(self) -> Marginal:
        """The law of the data, p(x).

        `dataclasses.replace(vae.marginal, draws=...)` changes the accuracy of its density.
        """
        return Marginal(self)

    def elbo(
        self, x: Tensor, *, draws: int = 64, seed: int = 0, rows: int | range | Tensor | None = None
    ) -> Estimate:
        """The evidence lower bound, `E_q log(p(x, z) / q(z | x)) <= log p(x)`, in nats.

        Args:
            x: `(batch, *data_shape)`.
            draws: How many draws of q a row has, at least 2.
            seed: The seed of the draws.
            rows: The ids of the rows, which their draws depend on, as in `scoretk.log_prob`.

        Returns:
            `Estimate`, value and stderr `(batch,)`.
        """
        log_w = self.log_weights(x, draws=draws, seed=seed, rows=rows)
        spread = ((log_w - log_w.mean(0)).square().sum(0) / (draws * (draws - 1))).sqrt()
        return _estimate(self, log_w.mean(0), spread, f"ELBO ({draws} draws)", log_w.numel())

    def log_weights(
        self,
        x: Tensor,
        *,
        draws: int,
        newton: int = 0,
        seed: int = 0,
        rows: int | range | Tensor | None = None,
    ) -> Tensor:
        """The log weights `log p~(z_k) + log p(x | z_k) - log q(z_k)` of draws z_k of q.

        Here p~ is the prior, normalised or not.

        Args:
            x: `(batch, *data_shape)`.
            draws: How many draws a row has, at least 2.
            newton: 0 for q the encoder. Else q is half the encoder and half a normal law at a mode
                of the posterior, found by so many Newton steps.
            seed: The seed of the draws.
            rows: The ids of the rows, which their draws depend on, as in `scoretk.log_prob`.

        Returns:
            `(draws, batch)`; the mean of w is `Z p(x)` with Z that of p~ (`log_z`).
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
            # each draw reads a step of the noise: row i has the same draws in any batch
            for first in range(0, k, together):
                steps = range(first, min(first + together, k))
                normals = torch.stack(
                    [noise.normal(s, Stream.PROBE, self.event_shape) for s in steps]
                )
                z = torch.cat(
                    [reparametrised(law, normals[i :: len(laws)]) for i, law in enumerate(laws)]
                )
                found.append(
                    self._log_joint(data, z) - _log_mixed([law.log_prob(z) for law in laws], k)
                )
            return torch.cat(found)

    def _log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """The joint log density `log p~(z) + log p(x | z)`, `(k, batch)`."""
        flat = rearrange(z, "k batch ... -> (k batch) ...")
        images = repeat(x, "batch ... -> (k batch) ...", k=len(z))
        joint = self.log_likelihood(images, flat) + self.log_prior(flat)
        return rearrange(joint, "(k batch) -> k batch", k=len(z))

    def data_rows(self, x: Tensor) -> Tensor:
        """The data x, checked to be rows `(batch, *data_shape)`.

        Raises:
            InvalidArgument: For other shapes, or values that pixels do not take.
        """
        rows = tensor_like("x", x, (None, *self.data_shape))
        if self.pixel_states is not None:
            check_states("x", rows, self.pixel_states)
        return rows

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """The log likelihood log p(x | z), `(batch,)`."""
        # torch's Independent takes no empty batch
        return self.decoder(z).log_prob(x) if len(z) else z.new_zeros(0)

    def log_prior(self, z: Tensor) -> Tensor:
        """The prior's log density log p~(z), `(batch,)`, normalised where the prior has it so."""
        return self.prior.log_prob(z) if "log_prob" in offers(self.prior) else -self.prior.energy(z)

    @cached_property
    def log_z(self) -> Estimate:
        """The log Z of p~, computed once.

        0 where the prior is normalised, else by annealed importance sampling from N(0, I).
        """
        if "log_prob" in offers(self.prior):
            return Estimate(torch.zeros(()), torch.zeros(()), "exact", Cost())
        kernel = HMC(0.3, leapfrogs=8, metric="none")
        return log_partition(self.prior, standard_normal(self.event_shape), kernel=kernel)

    def _asked_of_prior(self, what: str) -> Any:
        if what not in offers(self.prior):
            raise MissingCapability(
                field_name(self),
                offers(self),
                {what},
                "Its prior is learned, known up to a constant: sample it with a kernel such as HMC "
                "or ULA",
            )
        return self.prior


@dataclass(frozen=True, eq=False)
class Posterior:
    """The field of p(z | x), `E(z) = -log p(x | z) - log p(z)`.

    Its partition function is p(x) (times that of the prior). Good starts of chains are
    `init=vae.encode(rows)`.

    Args:
        vae: The autoencoder.
        x: One image for all chains, or None: then each chain has its own, given as `cond={"x":
            rows}`.
    """

    vae: VAE
    x: Tensor | None = None

    provides = frozenset({"energy", "decode"})

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.vae.event_shape

    def energy(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """The energy `-log p(x | z) - log p(z)`.

        Args:
            z: `(batch, latent)`.
            x: The images of the rows, `(batch, *data_shape)`, where the field has none.

        Returns:
            `(batch,)`.

        Raises:
            InvalidArgument: Where there is not one image a row.
        """
        shape = (len(z), *self.vae.data_shape)
        rows = constant_like(self.x, z).expand(shape) if self.x is not None else x
        if rows is None or rows.shape != shape:
            raise InvalidArgument(
                "x", rows, f'the data, one row a chain, shape {shape}: cond={{"x": rows}}'
            )
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
        return zx[:, :latent].reshape(-1, *self.vae.event_shape), zx[:, latent:].reshape(
            -1, *self.vae.data_shape
        )

    def energy(self, zx: Tensor) -> Tensor:
        """The energy `-log p(x | z) - log p(z)`, `(batch,)`."""
        z, x = self.split(zx)
        return -self.vae.log_likelihood(x, z) + self.vae.energy(z)

    def log_prob(self, zx: Tensor) -> Tensor:
        """The log density log p(z, x), normalised, `(batch,)`."""
        z, x = self.split(zx)
        return self.vae.log_likelihood(x, z) + self.vae.log_prob(z)

    @torch.no_grad()
    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws, `(n, latent + pixels)`, without gradients."""
        z = self.vae.draw(n, noise)
        return torch.cat([z.flatten(1), self.vae.observe(z, noise).flatten(1)], 1)

    def decode(self, zx: Tensor) -> Tensor:
        """The data in it, `(batch, *data_shape)`."""
        return self.split(zx)[1]


@dataclass(frozen=True, eq=False)
class Marginal:
    """The law p(x) of the data: exact draws where the prior has them, and estimates of its density.

    Args:
        vae: The autoencoder.
        draws: How many importance weights a row has.
        newton: How many Newton steps find the proposal, as in `VAE.log_weights`.
    """

    vae: VAE
    draws: int = 1000
    newton: int = 30

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.vae.data_shape

    @property
    def states(self) -> tuple[float, ...] | None:
        """The values that pixels take where they are discrete, else None."""
        return self.vae.pixel_states

    @property
    def provides(self) -> frozenset[str]:
        """What it offers: "draw" where the prior has it, "states" where pixels are discrete."""
        return (self.vae.provides & {"draw"}) | (
            {"states"} if self.states is not None else frozenset()
        )

    @torch.no_grad()
    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact draws, `(n, *data_shape)`, without gradients.

        Each is a draw z of the prior, and then x of the decoder, its noise included.
        """
        return self.vae.observe(self.vae.draw(n, noise), noise)

    def estimate_log_prob(
        self, x: Tensor, *, seed: int = 0, rows: int | range | Tensor | None = None
    ) -> Estimate:
        """What `scoretk.log_prob` asks for: `importance_log_prob`."""
        return self.importance_log_prob(x, seed=seed, rows=rows)

    def importance_log_prob(
        self, x: Tensor, *, seed: int = 0, rows: int | range | Tensor | None = None
    ) -> Estimate:
        """The importance-weighted estimate of log p(x), `log (1/K sum_k w_k)`, in nats.

        Its bias is downwards, by half the squared standard error, which is by the delta method.
        Half of the draws are of the encoder and half of a normal law at a mode of the posterior:
        with the encoder alone, which is narrower than the posterior and not correlated, few weights
        count. Where the effective number of weights is still small (the estimate's method says it
        for the worst row), more draws are needed, or `annealed_log_prob`.

        Args:
            x: `(batch, *data_shape)`.
            seed: The seed of the draws.
            rows: The ids of the rows, which their draws depend on, as in `scoretk.log_prob`.

        Returns:
            An `Estimate`, value and stderr `(batch,)`.

        References:
            Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016).
        """
        log_w = self.vae.log_weights(x, draws=self.draws, newton=self.newton, seed=seed, rows=rows)
        value, stderr, effective = _log_mean(log_w)
        least = f", at least {float(effective.min()):.0f} effective" if len(effective) else ""
        how = f"importance-weighted ({self.draws} draws{least})"
        return _estimate(self.vae, value, stderr, how, log_w.numel())

    def annealed_log_prob(
        self,
        x: Tensor,
        *,
        chains: int = 64,
        seed: int = 0,
        rows: int | range | Tensor | None = None,
        **options: Any,
    ) -> Estimate:
        """Log p(x) as the log partition function of the posterior, by annealed importance sampling.

        Annealing begins at the prior.

        Args:
            x: `(batch, *data_shape)`.
            chains: How many chains a row has.
            seed: The seed of the chains.
            rows: The ids of the rows, which their draws depend on, as in `scoretk.log_prob`.
            options: Options of `scoretk.log_partition`.

        Returns:
            An `Estimate`, value and stderr `(batch,)`, in nats.

        References:
            Wu, Burda, Salakhutdinov, Grosse, "On the quantitative analysis of decoder-based
            generative models" (2017).
        """
        data = self.vae.data_rows(x)
        if {"draw", "log_prob"} <= offers(self.vae.prior):
            base = self.vae.prior
        else:
            base = standard_normal(self.vae.event_shape)
        found = [
            log_partition(
                self.vae.posterior(row), base, chains=chains, seed=derive(seed, i), **options
            )
            for i, row in zip(row_ids(rows, data).tolist(), data, strict=True)
        ]
        value, stderr = (
            torch.stack([getattr(f, name) for f in found]) for name in ("value", "stderr")
        )
        spent = sum(f.cost.total for f in found)
        return _estimate(self.vae, value, stderr, f"AIS ({chains} chains)", spent)


def _log_mean(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log of the mean of k weights, from log weights `(k, ...)`.

    Returns:
        It, its standard error by the delta method, and the effective number of weights, `(...)`.
    """
    n = len(log_w)
    effective = 1 / torch.softmax(log_w, 0).square().sum(0)
    return (
        log_w.logsumexp(0) - math.log(n),
        ((n / effective - 1).clamp(min=0) / (n - 1)).sqrt(),
        effective,
    )


def _log_mixed(logs: list[Tensor], draws: int) -> Tensor:
    """The log density of the mixture of proposals that take turns over `draws` draws."""
    shares = [len(range(i, draws, len(logs))) / draws for i in range(len(logs))]
    return torch.stack(
        [log + math.log(share) for log, share in zip(logs, shares, strict=True)]
    ).logsumexp(0)


def _laplace(vae: VAE, x: Tensor, z: Tensor, steps: int) -> td.MultivariateNormal:
    """A normal law at a mode of p(z | x), a little wider than the curvature there says.

    The mode is found by Newton steps from z, row by row, with the absolute values of the
    curvatures, of at least those of the prior N(0, I); a step is taken where the energy falls.
    """

    def derivatives(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            y = z.detach().requires_grad_()
            energy = -vae.log_likelihood(x, y) - vae.log_prior(y)
            (slope,) = torch.autograd.grad(energy.sum(), y, create_graph=True)
            rows = [torch.autograd.grad(s.sum(), y, retain_graph=True)[0] for s in slope.unbind(1)]
        hessian = wide(torch.stack(rows, 1)).nan_to_num(0, 0, 0)
        size, axes = torch.linalg.eigh((hessian + hessian.mT) / 2)
        return (
            energy.detach(),
            slope.detach(),
            axes / size.abs().clamp(1.0, STIFFEST).sqrt()[:, None],
        )

    length = z.new_ones((len(x), 1))
    energy, slope, factor = derivatives(z)
    for _ in range(steps):
        step = (factor @ factor.mT @ wide(slope)[..., None]).squeeze(-1)
        tried = z - length * step.to(z)
        found = derivatives(tried)
        better = found[0] < energy
        z, energy, slope, factor = (
            select_rows(better, new, old)
            for new, old in zip((tried, *found), (z, energy, slope, factor), strict=True)
        )
        length = select_rows(better, (2 * length).clamp(max=1), length / 4)
    upper = torch.linalg.qr(factor.mT).R  # of the covariance: F F^T = R^T R
    lower = WIDER * upper.mT * upper.diagonal(dim1=1, dim2=2).sign()[:, None]
    return td.MultivariateNormal(z, scale_tril=lower.to(z), validate_args=False)


def _estimate(vae: VAE, value: Tensor, stderr: Tensor, method: str, energies: int) -> Estimate:
    """The estimate of log p(x), from one of log Z p(x) with Z that of the prior."""
    value = value - vae.log_z.value.to(value)
    stderr = torch.hypot(stderr, vae.log_z.stderr.to(stderr))
    status = torch.where(value.isnan(), int(Status.NONFINITE), int(Status.OK))
    return Estimate(value, stderr, method, Cost(energy=energies), status)


def check_states(name: str, rows: Tensor, states: tuple[float, ...]) -> None:
    if not bool(torch.isin(rows, rows.new_tensor(states)).all()):
        raise InvalidArgument(name, rows, f"pixels among {', '.join(f'{s:g}' for s in states)}")
