r"""Energies over a generator's latents.

Where an estimate says how much likelier data are than its draws.

A generator G and z ~ N(0, I) give the law Q of G(z), a critic V says how much likelier data are
there, log p/q ~ a V + b, and

    E(z) = |z|^2 / 2 - a V(G(z))

is the energy of the latents whose images follow q exp(a V) ~ p: discriminator driven latent
sampling. Chains start from N(0, I), the generator's own samples; `field.prior` is the law without
the critic, `field.critic` the energy -log p/q of an image. a and b give held-out data the highest
likelihood (`calibrate`): only as good as V, so measure what the chains gain.

References:
    Azadi, Olsson, Darrell, Goodfellow, Odena, "Discriminator rejection sampling" (2019), which
    calibrates too.
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

__all__ = ["GeneratorPrior", "LatentEnergy", "calibrate"]


Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class GeneratorPrior:
    """The latents' own law, N(0, I) over `event_shape`.

    Decoded, its draws are the generator's samples.
    """

    generator: Decoder
    event_shape: tuple[int, ...]

    provides = frozenset({"energy", "score", "log_prob", "draw", "decode"})

    def energy(self, z: Tensor) -> Tensor:
        """`|z|^2 / 2`, `(batch,)`."""
        return standard_normal(self.event_shape).energy(z)

    def score(self, z: Tensor) -> Tensor:
        """`-z`, like z."""
        return -z

    def log_prob(self, z: Tensor) -> Tensor:
        """Normalised log density, `(batch,)`."""
        return standard_normal(self.event_shape).log_prob(z)

    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, `(n, *event_shape)`."""
        return standard_normal(self.event_shape).draw(n, noise)

    def decode(self, z: Tensor) -> Tensor:
        """`G(z)`, in data space."""
        return self.generator(z)


@dataclass(frozen=True, eq=False)
class LatentEnergy:
    """`E(z) = |z|^2 / 2 - log_ratio(G(z))`.

    Where `log_ratio = log p/q + const`, decoded samples of it follow p.

    References:
        Che et al. (2020).

    Args:
        generator: `(batch, *event_shape) -> (batch, *data_shape)`.
        log_ratio: `(batch, *data_shape) -> (batch,)`.
        event_shape: Of a latent.
        data_shape: Of what the generator makes.
    """

    generator: Decoder
    log_ratio: Callable[[Tensor], Tensor]
    event_shape: tuple[int, ...]
    data_shape: tuple[int, ...]

    provides = frozenset({"energy", "decode"})

    def energy(self, z: Tensor) -> Tensor:
        """`E(z)`, `(batch, *event_shape) -> (batch,)`."""
        return row_sum(z * z) / 2 - self.log_ratio(self.generator(z)).to(z.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """`G(z)`, `(batch, *event_shape) -> (batch, *data_shape)`."""
        return self.generator(z)

    @property
    def prior(self) -> GeneratorPrior:
        """N(0, I): sampling from the generator without the critic."""
        return GeneratorPrior(self.generator, self.event_shape)

    @property
    def critic(self) -> Energy:
        """`-log p/q` over data space.

        An energy relative to the generator's law, on its own not normalisable.
        """
        return Energy(partial(_minus, self.log_ratio), self.data_shape)


def _minus(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return -function(x)


def calibrate(data: Tensor, draws: Tensor, effective: float = 50.0) -> tuple[float, float]:
    """The scale a and shift b for which `q exp(a V + b)` is normalised and gives the data the
    highest likelihood.

        max_a  a mean V(x) - log mean exp(a V(y)),      b = -log mean exp(a V(y))

    a is where V has the same mean over the data and, by importance weights, over the tilted draws.
    At the best critic of "gan", "js" and "reverse-kl" the answer is (1, 0), of "kl" (1, -1), of
    "hellinger" (2, 0).

    References:
        Arbel, Zhou, Gretton, "Generalized energy based models" (2021), for the objective.

    Args:
        data: The critic's values V there, `(n,)` and `(m,)`.
        draws: The critic's values V there, `(n,)` and `(m,)`.
        effective: The number of draws that the weights must be worth, `(sum w)^2 / sum w^2`: a is
            at most where they are worth less.

    Raises:
        `InvalidArgument`.
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
