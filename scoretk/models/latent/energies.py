r"""Energies over a generator's latents, by an estimate of the density ratio of data and draws.

A generator G and z ~ N(0, I) give the law Q of G(z), with density q; a critic V estimates the log
density ratio of data and draws, log p/q ~ a V + b. Then

    E(z) = |z|^2 / 2 - a V(G(z))

is the energy of latents whose images follow q exp(a V) ~ p: discriminator driven latent sampling.
Chains start from N(0, I), the generator's own samples; `field.prior` is the law without the critic,
`field.critic` the energy -log p/q of an image. The numbers a and b maximise the likelihood of
held-out data (`calibrate`). The samples are only as good as V: measure what the chains gain.

References:
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

from torch import Tensor

from scoretk.core.arguments import tensor_like
from scoretk.core.rows import row_sum
from scoretk.fields import Energy, NoiseSource, standard_normal
from scoretk.fields.protocols import drawn

__all__ = ["GeneratorPrior", "LatentEnergy", "calibrate"]


Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class GeneratorPrior:
    """The law of the latents without a critic, N(0, I): decoded draws are the generator's samples.

    Args:
        generator: G, `(batch, *event_shape)` to data space.
        event_shape: The shape of a latent.
    """

    generator: Decoder
    event_shape: tuple[int, ...]

    provides = frozenset({"energy", "score", "log_prob", "draw", "decode"})

    def energy(self, z: Tensor) -> Tensor:
        """The energy `|z|^2 / 2`, `(batch,)`."""
        return standard_normal(self.event_shape).energy(z)

    def score(self, z: Tensor) -> Tensor:
        """The score `-z`, like z."""
        return -z

    def log_prob(self, z: Tensor) -> Tensor:
        """Normalised log density, `(batch,)`."""
        return standard_normal(self.event_shape).log_prob(z)

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, `(n, *event_shape)`."""
        return standard_normal(self.event_shape).draw(n, noise)

    def decode(self, z: Tensor) -> Tensor:
        """The generator's output G(z), in data space."""
        return self.generator(z)


@dataclass(frozen=True, eq=False)
class LatentEnergy:
    """The energy of latents `E(z) = |z|^2 / 2 - log_ratio(G(z))`.

    Where `log_ratio = log p/q + const`, decoded samples follow p.

    Args:
        generator: G, `(batch, *event_shape) -> (batch, *data_shape)`.
        log_ratio: An estimate of log p/q, `(batch, *data_shape) -> (batch,)`.
        event_shape: The shape of a latent.
        data_shape: The shape of what the generator makes.

    References:
        Che, Zhang, Sohl-Dickstein, Larochelle, Paull, Cao, Bengio, "Your GAN is secretly an
        energy-based model and you should use discriminator driven latent sampling" (2020).
    """

    generator: Decoder
    log_ratio: Callable[[Tensor], Tensor]
    event_shape: tuple[int, ...]
    data_shape: tuple[int, ...]

    provides = frozenset({"energy", "decode"})

    def energy(self, z: Tensor) -> Tensor:
        """The energy E(z), `(batch, *event_shape) -> (batch,)`."""
        return row_sum(z * z) / 2 - self.log_ratio(self.generator(z)).to(z.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """The generator's output G(z), `(batch, *event_shape) -> (batch, *data_shape)`."""
        return self.generator(z)

    @property
    def prior(self) -> GeneratorPrior:
        """The law N(0, I) of the latents: sampling from the generator without the critic."""
        return GeneratorPrior(self.generator, self.event_shape)

    @property
    def critic(self) -> Energy:
        """The energy `-log_ratio` over data space.

        It is relative to the generator's law, and on its own not normalisable.
        """
        return Energy(partial(_minus, self.log_ratio), self.data_shape)


def _minus(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return -function(x)


def calibrate(data: Tensor, draws: Tensor, effective: float = 50.0) -> tuple[float, float]:
    """Calibrate a critic: a and b that maximise the likelihood of data under `q exp(a V + b)`.

        max_a  a mean V(x) - log mean exp(a V(y)),      b = -log mean exp(a V(y))

    At this a the mean of V over the data is that over the draws with weights w = exp(a V). At the
    best critic of "gan", "js" and "reverse-kl" the answer is (1, 0), of "kl" (1, -1), of
    "hellinger" (2, 0).

    Args:
        data: V at held-out data, `(n,)`.
        draws: V at draws of the generator, `(m,)`.
        effective: The least effective number of draws, `(sum w)^2 / sum w^2`, which bounds a.

    Returns:
        a and b.

    Raises:
        InvalidArgument: For values that are not finite vectors.

    References:
        Arbel, Zhou, Gretton, "Generalized energy based models" (2021), for the objective.
    """
    x, y = (
        tensor_like(name, v, (None,)).detach().double()
        for name, v in (("data", data), ("draws", draws))
    )
    aim, unit = x.mean(), float(y.std()) + 1e-12
    low, high = 0.0, 100 / unit
    for _ in range(60):
        a = (low + high) / 2
        w = (a * y).softmax(0)
        if (w * y).sum() < aim and 1 / w.square().sum() > effective:
            low = a
        else:
            high = a
    return low, math.log(len(y)) - float((low * y).logsumexp(0))
