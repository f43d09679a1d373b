r"""Test nats with their errors: exact, by a partition function, or by importance weights.

The mean over n test images has the standard error of their spread, sd / sqrt(n). What is estimated
has an error of its own beside it: that of log Z, which all rows share, or that of the weights of
each row. Where two estimators exist that share nothing but the model, both are made, and their
distance is told in the standard errors of both.

References:
    Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks" (2008).
    Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders" (2016).
    Wu, Burda, Salakhutdinov, Grosse, "On the quantitative analysis of decoder-based generative
    models" (2017).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoretk.core.noise import derive
from scoretk.errors import Status
from scoretk.inference.likelihood import Estimate, log_prob
from scoretk.inference.partition import log_partition
from scoretk.models.latent.vae import VAE
from scoretk.models.targets.lattices import RBM, IndependentUnits
from scoretk.solvers import BlockGibbs

__all__ = [
    "AGREE",
    "CHUNK",
    "Nats",
    "Second",
    "by_log_z",
    "by_weights",
    "exactly",
    "joint_error",
    "log_z",
    "mean_of_rows",
]

CHUNK = 250
"""How many images are scored at a time."""
ISLAND = 32
"""How many chains are resampled together: many small islands, whose weights are independent."""
PILOT = 64
"""How many chains find the ladder of a machine."""
AGREE = 4.0
"""Two right estimates of normal errors differ by more standard errors once in 16,000 times."""


@dataclass(frozen=True)
class Second:
    """How a second estimator agrees with the first.

    Args:
        first: The first one's estimate, in nats or bits per dimension.
        second: The second one's.
        stderr: The standard error of their difference.
        how: What they are.
        trusted: Whether both say that their errors are to be trusted.
    """

    first: float
    second: float
    stderr: float
    how: str
    trusted: bool = True

    @property
    def z(self) -> float:
        """Their difference in its standard errors; 0 where there is none."""
        apart = self.second - self.first
        return (
            apart / self.stderr if self.stderr else math.copysign(math.inf, apart) if apart else 0.0
        )

    @property
    def agrees(self) -> bool:
        """Whether both are trusted, and no farther apart than chance makes them."""
        return self.trusted and abs(self.z) <= AGREE


@dataclass(frozen=True)
class Nats:
    """Mean negative log likelihood of test images, in nats, or of grey ones in bits per dimension.

    Args:
        value: The mean.
        rows: Its standard error by the spread of the images.
        estimate: Its standard error by what was estimated, 0 where it is exact.
        how: How it was made.
        second: How a second estimator agrees, None where there is none.
    """

    value: float
    rows: float
    estimate: float
    how: str
    second: Second | None = None

    @property
    def stderr(self) -> float:
        """Both errors together."""
        return math.hypot(self.rows, self.estimate)


def exactly(field: Any, test: Tensor) -> Nats:
    """By the field's own density."""
    mean, rows = mean_of_rows(-log_prob(field, test, batch=CHUNK).value)
    return Nats(mean, rows, 0.0, "exact")


def by_log_z(
    machine: RBM, units: IndependentUnits, test: Tensor, chains: int, levels: int | None, seed: int
) -> Nats:
    """By the energy, and log Z by annealed importance sampling; sequential Monte Carlo is beside it.

    Args:
        machine: The machine.
        units: Independent units at the data's rates, where annealing begins.
        test: The images.
        chains: How many chains each method has.
        levels: How many levels annealing has, None for as many as a pilot finds.
        seed: The seed.
    """
    ais, smc = (
        log_z(machine, units, method, chains, levels, derive(seed, i))
        for i, method in enumerate(("ais", "smc"))
    )
    with torch.no_grad():
        energy = torch.cat([machine.energy(part) for part in test.split(CHUNK)])
    mean, rows = mean_of_rows(energy)
    along = "" if levels is None else f" along {levels:,} levels"
    how = f"log Z by AIS and by SMC, {chains} chains each{along}"
    second = Second(
        float(ais.value),
        float(smc.value),
        math.hypot(ais.stderr, smc.stderr),
        how,
        all(int(found.status) == Status.OK for found in (ais, smc)),
    )
    return Nats(mean + float(ais.value), rows, float(ais.stderr), how, second)


def log_z(
    machine: RBM, units: IndependentUnits, method: str, chains: int, levels: int | None, seed: int
) -> Estimate:
    """The log Z of a machine, annealed from independent units by block Gibbs sweeps.

    Args:
        machine: The machine.
        units: Where annealing begins.
        method: "ais" or "smc".
        chains: As in `log_partition`.
        levels: As in `log_partition`.
        seed: As in `log_partition`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is not to be trusted is told in the row
        return log_partition(
            machine,
            units,
            method=method,
            kernel=BlockGibbs(),
            device=machine.weights.device,
            chains=chains,
            levels=levels,
            island=min(ISLAND, chains),
            pilot=PILOT,
            seed=seed,
            progress=False,
        )


def by_weights(vae: VAE, test: Tensor, draws: int, few: int, seed: int) -> Nats:
    """By importance weights of the encoder: a lower bound of log p in the mean.

    On a few images log p is also estimated by annealing from prior to posterior, and by weights
    whose proposals know the posterior's modes.

    Args:
        vae: The autoencoder.
        test: The images.
        draws: How many weights an image has.
        few: How many images are annealed.
        seed: The seed.
    """
    own = replace(vae.marginal, draws=draws, newton=0)
    found = log_prob(own, test, seed=seed, batch=CHUNK)
    mean, rows = mean_of_rows(-found.value)
    at_modes = replace(vae.marginal, draws=max(2, draws))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        annealed = vae.marginal.annealed_log_prob(test[:few], seed=seed, progress=False)
        weighed = log_prob(at_modes, test[:few], seed=derive(seed, 1))
    second = Second(
        float(-weighed.value.mean()),
        float(-annealed.value.mean()),
        joint_error(weighed.stderr, annealed.stderr),
        f"{draws} weights at modes and AIS, {few} images",
    )
    return Nats(mean, rows, joint_error(found.stderr), f"IWAE bound, {draws} draws", second)


def joint_error(*stderr: Tensor) -> float:
    """The standard error of a difference of means over rows, by the errors of rows `(n,)`."""
    return math.sqrt(sum(float(e.double().square().mean()) / len(e) for e in stderr))


def mean_of_rows(values: Tensor) -> tuple[float, float]:
    """The mean of rows and its standard error."""
    wide = values.double()
    return float(wide.mean()), float(wide.std()) / math.sqrt(len(wide))
