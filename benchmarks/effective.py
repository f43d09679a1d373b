"""Effective draws a second: scoretk's default solver, numpyro's NUTS, blackjax's NUTS and ChEES; the same energies and starts.

    python benchmarks/effective.py [--device cpu] [--threads N] [--chains 256] [--warmup 500] [--steps 1000] [--rounds 3]
                                   [--targets NAME ...] [--peers NAME ...] [--json FILE]

    pip install "jax[cpu]" numpyro blackjax     # beside the other peers; none of them brings a torch of its own

Everyone samples in float32 from N(0, I) with the same number of chains and steps, its own defaults for the rest, and the
process is held to `--threads` cores. blackjax's ChEES leaves the optimiser and a first step size, here 0.1, to its user. Its
default, without scales, runs with Adam at 0.5 as in blackjax's own tests (0.025 does not get there in warmup); once more it
runs with scales and at 0.025 as in the paper: each is the better with its own rate.

On a device the process keeps all cores, as only compilers use them, and jax leaves memory to the others.

An effective draw is one of the least ArviZ bulk ESS (scoretk's own, which is the same, where there is no ArviZ) over
coordinates and their squares (the funnel: of the neck and its square). `compile` is tracing and compiling, ahead of time, in
jax; in torch by how much the first of two equal runs is slower than the second (eager: a first call of one step, which for the
first target is the process's first). `warmup` and `sampling` come after. `to 1000` is compile + warmup + 1000 / (ESS /
sampling).
Contestants run in turn, one seed a round; figures are medians of rounds. `x best` is the ratio to the best of the others, above
1 where better. What shows whether a figure means anything stands beside: the largest R-hat of what the ESS is of, and `off`,
the largest distance of a coordinate's mean from the truth (where it is not known: from the contestants' median) in standard
deviations of the target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import OF_JAX, at_hand, machine, versions
from numpy.typing import NDArray
from torch import Tensor, nn

import scoretk as stk
from scoretk import diagnostics

ENOUGH = 1000
FIRST_SEED = 1


@dataclass(frozen=True)
class Target:
    """The same energy in torch, `(n, d) -> (n,)`, and in jax, `(d,) -> ()`.

    `watched` says how many leading coordinates are looked at, `truth` their means and standard deviations where known.
    """

    field: Any
    energy: Callable[[Any], Any]
    dim: int
    watched: int
    truth: tuple[NDArray, NDArray] | None = None


class Diagonal(nn.Module):
    """Energy of a centred Gaussian with variances from 1e-2 to 1e2."""

    def __init__(self, dim: int = 100) -> None:
        super().__init__()
        self.register_buffer("precision", torch.logspace(2, -2, dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x.square() * self.precision).sum(1) / 2


class Logistic(nn.Module):
    """Logistic regression under a standard normal prior; row i of `signed` is (2 y_i - 1) (1, features_i)."""

    def __init__(self, signed: Tensor) -> None:
        super().__init__()
        self.register_buffer("signed", signed)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(-(x @ self.signed.T)).sum(1) + x.square().sum(1) / 2


def arrays() -> Any:
    """jax.numpy; numpy where there is no jax, for the check of the energies alone."""
    return import_module("jax.numpy" if find_spec("jax") else "numpy")


def eight_schools() -> Target:
    """Ten coordinates, non-centred."""
    jnp = arrays()
    field = stk.load("eight-schools")
    effects, errors = jnp.asarray(field.effects), jnp.asarray(field.errors)

    def energy(x: Any) -> Any:
        mu, log_tau, raw = x[0], x[1], x[2:]
        tau = jnp.exp(log_tau)
        likelihood = (((effects - mu - tau * raw) / errors) ** 2).sum() / 2
        return likelihood + mu**2 / 50 + jnp.log1p(tau**2 / 25) + (raw**2).sum() / 2 - log_tau

    # the energy alone: that of the peers does not name its variables either
    return Target(stk.Energy(field.energy, (10,)), energy, 10, 10)


def logistic() -> Target:
    """Breast cancer, 569 x 30 standardised, and an intercept."""
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    rows = np.concatenate([np.ones((len(features), 1)), features], 1) * (2 * labels[:, None] - 1)
    jnp = arrays()
    signed = jnp.asarray(rows, dtype=jnp.float32)

    def energy(x: Any) -> Any:
        return jnp.logaddexp(0.0, -(signed @ x)).sum() + (x**2).sum() / 2

    return Target(
        stk.Energy(Logistic(torch.tensor(rows, dtype=torch.float32)), (31,)), energy, 31, 31
    )


def gaussian() -> Target:
    """A hundred dimensions, standard deviations from 0.1 to 10."""
    jnp, module = arrays(), Diagonal()
    precision = jnp.asarray(module.precision.numpy())
    deviations = module.precision.numpy() ** -0.5
    truth = (np.zeros_like(deviations), deviations)
    return Target(
        stk.Energy(module, (100,)), lambda x: (x**2 * precision).sum() / 2, 100, 100, truth
    )


def funnel() -> Target:
    """Ten dimensions, a neck of standard deviation 3."""
    jnp = arrays()

    def energy(x: Any) -> Any:
        neck, rest = x[0], x[1:]
        return neck**2 / 18 + jnp.exp(-neck) * (rest**2).sum() / 2 + 9 * neck / 2

    return Target(stk.load("funnel"), energy, 10, 1, (np.zeros(1), np.full(1, 3.0)))


TARGETS = {
    "eight-schools": eight_schools,
    "logistic": logistic,
    "gaussian": gaussian,
    "funnel": funnel,
}


@dataclass(frozen=True)
class Size:
    """What is asked of everyone."""

    chains: int
    warmup: int
    steps: int
    device: torch.device


@dataclass(frozen=True)
class Run:
    """Draws `(chains, steps, d)`, and seconds of warmup and of sampling."""

    x: NDArray
    warmup: float
    sampling: float


@dataclass(frozen=True)
class Contestant:
    """Seconds to compile, and a run from a seed."""

    compile: float
    run: Callable[[int], Run]


class Clocked(stk.ChEES):
    """The default solver, which remembers when the last step of its warmup ended."""

    def trial(self, *arguments: Any) -> Any:
        found = super().trial(*arguments)
        self.__dict__["warm_at"] = time.perf_counter()
        return found


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def by_scoretk(target: Target, size: Size, parts: bool = False) -> Contestant:
    """`stk.sample` as it comes, or with compile=True."""

    field = stk.to_device(target.field, size.device)

    def sample(seed: int, steps: int, warmup: int) -> Run:
        solver = Clocked()
        started = time.perf_counter()
        draws = stk.sample(
            field,
            solver,
            chains=size.chains,
            steps=steps,
            warmup=warmup,
            seed=seed,
            device=size.device,
            compile=parts,
        )
        synchronize(size.device)
        ended = time.perf_counter()
        if draws.failures:
            raise RuntimeError(f"chains of scoretk failed: {draws.failures}")
        warm_at = solver.__dict__["warm_at"]
        return Run(draws.x.cpu().numpy(), warm_at - started, ended - warm_at)

    def seconds(steps: int, warmup: int) -> float:
        started = time.perf_counter()
        sample(FIRST_SEED, steps, warmup)
        return time.perf_counter() - started

    def again(seed: int) -> Run:
        if parts:  # what is compiled depends on the lengths that this seed's warmup finds
            sample(seed, 64, size.warmup)
        return sample(seed, size.steps, size.warmup)

    spent = seconds(64, size.warmup) - seconds(64, size.warmup) if parts else seconds(1, 1)
    return Contestant(spent, again)


def compiled(
    warm: Callable[..., Any], draw: Callable[..., Any], target: Target, size: Size
) -> Contestant:
    """A contestant from `warm(key, starts)`, a state, and `draw(key, state)`, positions `(chains, steps, d)`."""
    import jax

    def begin(seed: int) -> tuple[Any, Any, Any]:
        one, two, three = jax.random.split(jax.random.key(seed), 3)
        return one, two, jax.random.normal(three, (size.chains, target.dim))

    key, other, starts = begin(0)
    started = time.perf_counter()
    warming = jax.jit(warm).lower(key, starts).compile()
    state = jax.eval_shape(warm, key, starts)
    drawing = jax.jit(draw).lower(other, state).compile()
    seconds = time.perf_counter() - started

    def run(seed: int) -> Run:
        key, other, starts = jax.block_until_ready(begin(seed))
        started = time.perf_counter()
        state = jax.block_until_ready(warming(key, starts))
        warm_at = time.perf_counter()
        x = jax.block_until_ready(drawing(other, state))
        return Run(np.asarray(x), warm_at - started, time.perf_counter() - warm_at)

    return Contestant(seconds, run)


def by_numpyro(target: Target, size: Size) -> Contestant:
    """numpyro's NUTS, vectorised over chains. Called plainly it compiles at every call; here it does so once."""
    from numpyro.infer import MCMC, NUTS

    kernel = NUTS(potential_fn=target.energy)
    counts = {"num_warmup": size.warmup, "num_samples": size.steps, "num_chains": size.chains}
    mcmc = MCMC(kernel, chain_method="vectorized", progress_bar=False, **counts)

    def warm(key: Any, starts: Any) -> Any:
        mcmc.warmup(key, init_params=starts)
        return mcmc.post_warmup_state

    def draw(key: Any, state: Any) -> Any:
        mcmc.post_warmup_state = state
        mcmc.run(key)
        return mcmc.get_samples(group_by_chain=True)

    return compiled(warm, draw, target, size)


def walk(step: Callable[..., Any], key: Any, states: Any, size: Size) -> Any:
    """Positions `(chains, steps, d)` of so many steps of `step(keys, states)`."""
    import jax

    def body(states: Any, key: Any) -> tuple[Any, Any]:
        states, _ = step(jax.random.split(key, size.chains), states)
        return states, states.position

    return jax.lax.scan(body, states, jax.random.split(key, size.steps))[1].swapaxes(0, 1)


def by_blackjax(target: Target, size: Size) -> Contestant:
    """blackjax's NUTS: each chain tunes itself by window adaptation."""
    import blackjax
    import jax

    def log_density(x: Any) -> Any:
        return -target.energy(x)

    adaptation, kernel = (
        blackjax.window_adaptation(blackjax.nuts, log_density),
        blackjax.nuts.build_kernel(),
    )

    def warm(key: Any, starts: Any) -> Any:
        found, _ = jax.vmap(lambda k, x: adaptation.run(k, x, size.warmup))(
            jax.random.split(key, size.chains), starts
        )
        return found.state, found.parameters["step_size"], found.parameters["inverse_mass_matrix"]

    def draw(key: Any, tuned: Any) -> Any:
        states, eps, inverse_mass = tuned
        step = jax.vmap(lambda k, s, e, m: kernel(k, s, log_density, e, m))
        return walk(lambda keys, states: step(keys, states, eps, inverse_mass), key, states, size)

    return compiled(warm, draw, target, size)


def by_blackjax_chees(
    target: Target, size: Size, scales: str | None = None, rate: float = 0.5
) -> Contestant:
    """blackjax's ChEES, with or without scales learned in warmup."""
    import blackjax
    import jax
    import optax

    def log_density(x: Any) -> Any:
        return -target.energy(x)

    adaptation = blackjax.chees_adaptation(log_density, size.chains, mass_matrix_estimation=scales)
    optimiser = optax.adam(rate, b1=0.0, b2=0.95)
    functions: dict[str, Any] = {}

    def warm(key: Any, starts: Any) -> Any:
        found, _ = adaptation.run(
            key, starts, 0.1, optimiser, size.warmup, max_sampling_steps=size.steps
        )
        functions.update(
            {name: value for name, value in found.parameters.items() if callable(value)}
        )
        return found.state, {
            name: value for name, value in found.parameters.items() if not callable(value)
        }

    def draw(key: Any, tuned: Any) -> Any:
        states, parameters = tuned
        return walk(
            jax.vmap(blackjax.dynamic_hmc(log_density, **parameters, **functions).step),
            key,
            states,
            size,
        )

    return compiled(warm, draw, target, size)


PEERS: dict[str, Callable[[Target, Size], Contestant]] = {
    "scoretk": by_scoretk,
    "scoretk compiled": partial(by_scoretk, parts=True),
    "numpyro NUTS": by_numpyro,
    "blackjax NUTS": by_blackjax,
    "blackjax ChEES": by_blackjax_chees,
    "blackjax ChEES, scales": lambda target, size: by_blackjax_chees(
        target, size, "diagonal", 0.025
    ),
}


def check(name: str, target: Target) -> None:
    """Nobody is timed on another computation: both energies agree up to rounding."""
    x = np.random.default_rng(0).standard_normal((8, target.dim)).astype(np.float32)
    ours = target.field.energy(torch.from_numpy(x)).numpy()
    theirs = np.array([float(target.energy(row)) for row in x])
    if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise RuntimeError(
            f"the two energies of {name} differ by {np.abs(ours - theirs).max():.2g}"
        )


def quality(x: NDArray) -> tuple[float, float]:
    """The least bulk ESS, and the largest R-hat, of coordinates `(chains, steps, d)` and their squares."""
    if not find_spec("arviz"):
        both = torch.from_numpy(np.stack([x, np.square(x)], -1))
        return float(diagnostics.ess(both).min()), float(diagnostics.rhat(both).max())
    import arviz

    data = arviz.convert_to_dataset({"x": x, "square": np.square(x)})
    sizes, ratios = arviz.ess(data, method="bulk"), arviz.rhat(data)
    least = min(float(sizes[name].min()) for name in data.data_vars)
    return least, max(float(ratios[name].max()) for name in data.data_vars)


@dataclass
class Row:
    """What one contestant did on one target; seconds, and ESS a second without and with warmup."""

    target: str
    name: str
    ess: float
    rhat: float
    off: float
    compile: float
    warmup: float
    sampling: float
    rate: float
    rate_with_warmup: float
    to_enough: float
    ratio: float = math.nan
    ratio_with_warmup: float = math.nan
    ratio_to_enough: float = math.nan


def median(values: list[float]) -> float:
    """NaN where one of them is."""
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)


def compete(name: str, target: Target, peers: list[str], size: Size, rounds: int) -> list[Row]:
    """All contestants on one target."""
    contestants = {peer: PEERS[peer](target, size) for peer in peers}
    found: dict[str, list[tuple[float, ...]]] = {peer: [] for peer in peers}
    means: dict[str, list[NDArray]] = {peer: [] for peer in peers}
    deviations: list[NDArray] = []
    for seed in range(FIRST_SEED, FIRST_SEED + rounds):
        for peer, contestant in contestants.items():
            run = contestant.run(seed)
            x = run.x[..., : target.watched].astype(np.float64)
            ess, rhat = quality(x)
            enough = contestant.compile + run.warmup + ENOUGH * run.sampling / ess
            told = f"ESS {ess:.0f}, compile {contestant.compile:.2f}, warmup {run.warmup:.3f}"
            print(f"{name}, {peer}: {told}, sampling {run.sampling:.3f}", flush=True)
            found[peer].append(
                (
                    ess,
                    rhat,
                    run.warmup,
                    run.sampling,
                    ess / run.sampling,
                    ess / (run.warmup + run.sampling),
                    enough,
                )
            )
            means[peer].append(x.mean((0, 1)))
            deviations.append(x.std((0, 1)))
    centres = {peer: np.mean(means[peer], 0) for peer in peers}
    centre, spread = target.truth or (
        np.median(list(centres.values()), 0),
        np.median(deviations, 0),
    )
    rows = []
    for peer, values in found.items():
        ess, rhat, *others = (median(list(column)) for column in zip(*values, strict=True))
        off = float(np.abs((centres[peer] - centre) / spread).max())
        rows.append(Row(name, peer, ess, rhat, off, contestants[peer].compile, *others))
    return compare(rows)


def compare(rows: list[Row]) -> list[Row]:
    """Fills in the ratios to the best peer; above 1 is better than that."""
    others = [row for row in rows if not row.name.startswith("scoretk")] or rows
    rate, with_warmup = max(row.rate for row in others), max(row.rate_with_warmup for row in others)
    enough = min(row.to_enough for row in others)
    for row in rows:
        row.ratio, row.ratio_with_warmup = row.rate / rate, row.rate_with_warmup / with_warmup
        row.ratio_to_enough = enough / row.to_enough
    return rows


def show(rows: list[Row]) -> None:
    """Prints the table of one target."""
    heads = (
        "ESS",
        "R-hat",
        "off",
        "compile",
        "warmup",
        "sampling",
        "ESS/s",
        "x best",
        "with warmup",
        "x best",
    )
    print(
        f"\n{rows[0].target:24}"
        + "".join(f"{head:>12}" for head in (*heads, f"to {ENOUGH}", "x best"))
    )
    for row in rows:
        print(
            f"{row.name:24}{row.ess:12.0f}{row.rhat:12.3f}{row.off:12.3f}{row.compile:12.2f}{row.warmup:12.3f}"
            f"{row.sampling:12.3f}{row.rate:12.0f}{row.ratio:12.3f}{row.rate_with_warmup:12.0f}"
            f"{row.ratio_with_warmup:12.3f}{row.to_enough:12.2f}{row.ratio_to_enough:12.3f}",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    """Also holds the process to its cores, which jax sees only if it is imported later, and chooses jax's device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--chains", default=256, type=int)
    parser.add_argument("--warmup", default=500, type=int)
    parser.add_argument("--steps", default=1000, type=int)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument(
        "--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS), metavar="NAME"
    )
    parser.add_argument(
        "--peers", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="NAME"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "More chains", UserWarning)
    torch.set_num_threads(options.threads)
    if options.device.type == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ["JAX_PLATFORMS"] = options.device.type
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return options


def main() -> None:
    options = arguments()
    size = Size(options.chains, options.warmup, options.steps, options.device)
    about = machine(options.device) | versions((*OF_JAX, "arviz"))
    peers = list(at_hand(dict.fromkeys(options.peers)))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(
        f"{size.chains} chains, {size.warmup} steps of warmup, {size.steps} draws each; seconds, median of {options.rounds}"
    )
    rows = []
    for name in options.targets:
        target = TARGETS[name]()
        check(name, target)
        show(found := compete(name, target, peers, size, options.rounds))
        rows += found
    if options.json:
        settings = {
            "chains": size.chains,
            "warmup": size.warmup,
            "steps": size.steps,
            "rounds": options.rounds,
        }
        report = {"machine": about, "settings": settings, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
