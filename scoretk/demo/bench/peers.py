r"""Other libraries' samplers on the same targets, their gradients counted as ours.

Each has the energy in plain arithmetic, which JAX and NumPy both read, as many chains and starts as ours, float32, and
the library's own tuning:

    blackjax-mclmc   `blackjax.mclmc_find_L_and_step_size`, each chain its own; two gradients a step
                     of the minimal-norm integrator
    numpyro-nuts     dual averaging and variances in `WARMUP` steps, each chain its own; a gradient
                     a leapfrog step, `num_steps` of them a draw

Tuning of MCLMC takes as many gradients as a row may have to count as reached.

References:
    Cabezas, Corenflos, Lao, Louf and others, "BlackJAX: composable Bayesian inference in JAX" (2024).
    Phan, Pradhan, Jankowiak, "Composable effects for flexible and accelerated probabilistic programming in
    NumPyro" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretk.core.dependencies import required
from scoretk.core.noise import derive
from scoretk.demo.bench.low_error import Contestant, Plan
from scoretk.errors import InvalidArgument

__all__ = ["ENERGIES", "PEERS", "begun", "serves"]

WARMUP = 500
TUNING_STEPS = 1000
"""Steps of MCLMC in tuning: 2,000 gradients."""
MCLMC_BLOCK, NUTS_BLOCK = 1024, 128
"""How many draws are made by a call, always the same, so that it is compiled once."""
VARIANCES = np.logspace(-1, 1, 100, dtype=np.float32)


def _banana(x: Any) -> Any:
    return x[0] ** 2 / 200 + (x[1] - 0.03 * (x[0] ** 2 - 100)) ** 2 / 2


def _ill_conditioned(x: Any) -> Any:
    return (x**2 / VARIANCES).sum() / 2


ENERGIES: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"banana": _banana, "ill-conditioned": _ill_conditioned}
)
"""The energies of targets, by name, of one point `(d,)`: those of `load_target(name).field`."""


@dataclass
class MCLMCRun:
    """A run of blackjax's MCLMC.

    Args:
        walk: `(key, states)` to states and draws `(chains, n, d)`, compiled.
        states: Where the chains are.
        key: The next key.
        tuning: Gradients a chain in tuning.
        failed: Which chains have left the numbers, `(chains,)`.
    """

    walk: Callable[[Any, Any], tuple[Any, Any]]
    states: Any
    key: Any
    tuning: float
    failed: Tensor

    def block(self, steps: int) -> tuple[Tensor, float]:
        """Draws `(chains, n, d)` and their gradients a chain."""
        jax = required("jax", "jax", "blackjax-mclmc")
        self.key, now = jax.random.split(self.key)
        self.states, x = self.walk(now, self.states)
        return _taken(self, x), 2.0 * MCLMC_BLOCK


@dataclass
class NUTSRun:
    """A run of numpyro's NUTS.

    Args:
        mcmc: The `numpyro.infer.MCMC` after its warmup.
        tuning: As in `MCLMCRun`.
        failed: As in `MCLMCRun`.
    """

    mcmc: Any
    tuning: float
    failed: Tensor

    def block(self, steps: int) -> tuple[Tensor, float]:
        """Draws `(chains, n, d)` and their gradients a chain."""
        self.mcmc.post_warmup_state = self.mcmc.last_state
        self.mcmc.run(self.mcmc.last_state.rng_key, extra_fields=("num_steps",))
        taken = _leapfrogs(self.mcmc)
        return _taken(self, self.mcmc.get_samples(group_by_chain=True)), taken


def _taken(run: MCLMCRun | NUTSRun, x: Any) -> Tensor:
    """Draws as a tensor; chains with one that is no number have failed."""
    draws = torch.from_numpy(np.array(x))
    run.failed = run.failed | ~draws.flatten(1).isfinite().all(1)
    return draws


def _leapfrogs(mcmc: Any) -> float:
    """Gradients a chain of the last run."""
    return float(np.asarray(mcmc.get_extra_fields()["num_steps"]).sum()) / int(mcmc.num_chains)


def _started(name: str, plan: Plan) -> tuple[Any, Any, Any]:
    """A key for tuning, one for the run and starts from N(0, I)."""
    jax = required("jax", "peers", name)
    seed = derive(plan.seed, 0) % 2**31
    one, two, three = jax.random.split(jax.random.key(seed), 3)
    return one, two, three


def _blackjax_mclmc(energy: Callable[[Any], Any], dim: int, plan: Plan) -> Contestant:
    blackjax = required("blackjax", "peers", "blackjax-mclmc")
    jax = required("jax", "peers", "blackjax-mclmc")
    tune_key, key, start_key = _started("blackjax-mclmc", plan)

    def log_density(x: Any) -> Any:
        return -energy(x)

    kernel = blackjax.mclmc.build_kernel()

    def tuned(key: Any, x: Any) -> Any:
        one, two = jax.random.split(key)
        state, parameters, steps = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=kernel,
            num_steps=3 * TUNING_STEPS,  # of which a tenth, a tenth and its third, and a tenth
            state=blackjax.mclmc.init(x, log_density, one),
            rng_key=two,
            logdensity_fn=log_density,
        )
        return state, parameters, steps

    starts = jax.random.normal(start_key, (plan.chains, dim))
    keys = jax.random.split(tune_key, plan.chains)
    states, parameters, steps = jax.jit(jax.vmap(tuned))(keys, starts)

    def step(states: Any, key: Any) -> tuple[Any, Any]:
        def one(key: Any, state: Any, p: Any) -> Any:
            return kernel(key, state, log_density, p.inverse_mass_matrix, p.L, p.step_size)[0]

        states = jax.vmap(one)(jax.random.split(key, plan.chains), states, parameters)
        return states, states.position

    def walk(key: Any, states: Any) -> tuple[Any, Any]:
        states, x = jax.lax.scan(step, states, jax.random.split(key, MCLMC_BLOCK))
        return states, x.swapaxes(0, 1)

    taken = 2 * float(np.asarray(steps).mean())
    return MCLMCRun(jax.jit(walk), states, key, taken, torch.zeros(plan.chains, dtype=torch.bool))


def _numpyro_nuts(energy: Callable[[Any], Any], dim: int, plan: Plan) -> Contestant:
    infer = required("numpyro.infer", "peers", "numpyro-nuts")
    jax = required("jax", "peers", "numpyro-nuts")
    tune_key, _, start_key = _started("numpyro-nuts", plan)
    mcmc = infer.MCMC(
        infer.NUTS(potential_fn=energy),
        num_warmup=WARMUP,
        num_samples=NUTS_BLOCK,
        num_chains=plan.chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    starts = jax.random.normal(start_key, (plan.chains, dim))
    mcmc.warmup(tune_key, init_params=starts, extra_fields=("num_steps",), collect_warmup=True)
    return NUTSRun(mcmc, _leapfrogs(mcmc), torch.zeros(plan.chains, dtype=torch.bool))


PEERS: Mapping[str, Callable[[Callable[[Any], Any], int, Plan], Contestant]] = MappingProxyType(
    {"blackjax-mclmc": _blackjax_mclmc, "numpyro-nuts": _numpyro_nuts}
)
"""`(energy, coordinates, plan)` to a run that is tuned, by the name of a row."""


def serves(target: str) -> bool:
    """Whether peers know the energy of the target of this name."""
    return target in ENERGIES


def begun(peer: str, target: str, dim: int, plan: Plan) -> Contestant:
    """A peer's run on a target, after its tuning.

    Args:
        peer: A name in `PEERS`.
        target: A name in `ENERGIES`.
        dim: How many coordinates it has.
        plan: Chains and seed.

    Raises:
        MissingDependency: The library is not installed.
        InvalidArgument: Its energy is not written for peers.
    """
    if not serves(target):
        raise InvalidArgument("target", target, f"one of {', '.join(ENERGIES)}")
    return PEERS[peer](ENERGIES[target], dim, plan)
