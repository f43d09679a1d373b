"""Parts of solvers, of methods in time, of losses and of runs answer to odd arguments as they did (`tests/recorded.py`).

As `test_recorded_functions.py`, of the rooms whose functions take what only these rooms make; public ones that say by name or
kind what they take, and have an entry below or need none.
"""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import distributions as td
from torch import nn

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.fields.base import as_base
from scoretk.fields.resolve import resolve
from scoretk.models.latent.autoregressive import (
    Autoregressive,
    Backbone,
    Bernoullis,
    BinaryAutoregressive,
    Categoricals,
    Logistics,
    TokenAutoregressive,
)
from scoretk.models.latent.energies import LatentEnergy
from scoretk.models.latent.vae import VAE, Marginal
from scoretk.models.targets.analytic import Semicircle, eight_schools, funnel
from scoretk.models.targets.lattices import IndependentUnits, ising, potts, rbm
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.ode.grids import grid
from scoretk.ode.registry import every_method
from scoretk.ode.tableaus import tableau
from scoretk.solvers.parts.leapfrog import Point
from scoretk.solvers.warmup.scales import accumulate, begin_window
from scoretk.solvers.warmup.step_size import Averaging, restart
from tests.laws.test_recorded_functions import functions, takes
from tests.odd import (
    PLAIN,
    TENSORS,
    WAVE,
    WELL,
    asked,
    bad,
    in_order,
    network,
    or_its_error,
    outcome,
    outcomes,
    public,
    quadratic,
    some,
)
from tests.recorded import recorded

ROOMS = ("ode", "solvers", "learn", "inference", "conformance", "models", "run", "adapters")
"""Rooms of which those functions are asked that are named below."""

STATIC = [resolve(WELL, ("energy", "score"), {}), resolve(stk.tempered(WELL, 2.0), ("energy",), {})]
POINTS = [
    Point(x, *STATIC[0].energy_and_grad(x)) for x in (PLAIN, PLAIN.float(), bad(PLAIN), 1e3 * PLAIN)
]
BASES = [
    as_base(law, (3,)) for law in (td.Independent(td.Normal(torch.zeros(3).double(), 2.0), 1),)
]
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.0, -1.0, 0.5]]).double()
SCALES = [
    PLAIN.new_ones(3),
    some(3).abs() + 0.25,
    FACTOR,
    PLAIN.new_zeros(3),
    PLAIN.new_tensor([1.0, torch.nan, 2.0]),
]
UNIFORM = [
    some(4, seed=3).abs() % 1,
    torch.zeros(4).double(),
    torch.ones(4).double(),
    some(4).float().abs() % 1,
]
RATIOS = [
    some(4, seed=4),
    bad(some(4, seed=4)),
    torch.zeros(4),
    torch.full((4,), -torch.inf).double(),
]
SOME = [torch.tensor(v) for v in ([True, False, True, False], [False] * 4, [True] * 4)]
WINDOWS = [
    accumulate(accumulate(begin_window(PLAIN, p), PLAIN), 3 + 2 * some(4, 3, seed=9))
    for p in (True, False)
] + [
    begin_window(PLAIN, True),
    accumulate(begin_window(PLAIN, True), bad(PLAIN)),
    accumulate(begin_window(PLAIN, True), 0 * PLAIN),
]
GRIDS = [
    grid(None, stk.VP(), 5),
    torch.tensor([0.0, 0.3, 1.0]).double(),
    torch.tensor([0.2, 0.9]).double(),
]
CALLS = [
    lambda x, t: -x * (1 + t),
    lambda x, t: x.square(),
    lambda x, t: x / (0.5 - t),
    lambda x, t: 0 * x,
]
PER_ROW = [
    quadratic,
    lambda x: x[:, 0],
    lambda x: x.detach().sum(1),
    lambda x: x,
    lambda x: x[:, 0] / 0,
]
LAW = td.Independent(td.Normal(some(4, 2), some(4, 2, seed=1).abs() + 0.5), 1)
KINDS_OF = {
    "StaticField": STATIC,
    "TimedField": [
        resolve(WAVE, (), {}),
        resolve(stk.Diffusion(network, (3,), stk.VE(), "data"), (), {}),
    ],
    "Point": POINTS,
    "Window": WINDOWS,
    "GaussianPath | None": [stk.VP(), stk.Linear(), stk.EDM(), stk.VE(), None],
    "Critic": PER_ROW,
    "PerRow": PER_ROW,
    "Score": [lambda x: -x, torch.sin, lambda x: -x.detach(), lambda x: x[:, :1]],
    "Network": [network, lambda x, t: x, lambda x, t: x[:, :2], lambda x, t: t],
    "Decoder": [lambda z: td.Independent(td.Normal(torch.cat([z, z[:, :1]], 1), 0.5), 1)],
    "Density": [td.Independent(td.Normal(torch.zeros(2).double(), 1.0), 1)],
    "Averaging": [Averaging(restart(0.5)), Averaging(restart(0.01) + 1)],
    "torch.Size": [torch.Size([3])],
    "Solver": [stk.MALA(0.3), stk.HMC(), stk.ProbabilityFlow(), stk.SMC()],
}
"""What is given for annotations of these rooms."""
X = [PLAIN, PLAIN.float(), bad(PLAIN), PLAIN[:0], 1e3 * PLAIN, PLAIN[:1]]
ENDS = {"start": [0.0, 0.25, 1.0], "end": [1.0, 0.75, 0.0], "x": X}
MOVE = {
    "momentum": [some(4, 3, seed=5)],
    "scale": SCALES,
    "eps": [0.25, torch.tensor(0.5), some(4).abs()],
    "steps": [1, 3, 0],
}
HALF_STEPS = MOVE | {
    "along": [0.25 * SCALES[1], some(4, 3).abs(), torch.tensor(0.5).double()],
    "kinetic": [some(4).abs()],
    "u": UNIFORM,
    "here": [(PLAIN, some(4, 3, seed=8)), (PLAIN, bad(some(4, 3)))],
}
PROPOSED = {
    "current": POINTS[:1],
    "proposed": POINTS[2:] + POINTS[:1],
    "log_ratio": RATIOS,
    "u": UNIFORM,
    "barker": [0.0, 1.0],
}
ACCEPT = {
    "accept": [some(4).abs() % 1, torch.zeros(4).double(), bad(some(4)).abs()],
    "usual": SOME,
    "counted": SOME,
    "diverging": SOME,
    "values": [some(4), bad(some(4)), some(4, 3)],
}
CRITICS = {"x": X[:4], "y": [some(5, 3, seed=6), some(4, 3, seed=7), PLAIN.float()]}
ELBO = {
    "x": [some(4, 3), some(3, 3)],
    "posterior": [LAW],
    "noise": [some(2, 4, 2, seed=5), some(1, 4, 2), some(4, 2)],
}
USUAL = {
    "ode.adaptive.integrate": ENDS
    | {
        "velocity": CALLS,
        "method": ["torchdiffeq/dopri5", "torchdiffeq/bosh3", "dopri5", "no such"],
        "max_steps": [2000, 1, 3],
    },
    "ode.adaptive.largest_row_rms": {},
    "ode.rowwise.integrate_rows": ENDS
    | {
        "velocity": [
            lambda x, t: -x * (1 + torch.as_tensor(t).reshape(-1, 1)),
            lambda x, t: x.sin(),
            lambda x, t: 0 * x,
        ],
        "method": ["dopri5", "bosh3", "tsit5", "euler", "no such"],
        **{
            name: [
                1e-3,
                0.0,
                -1.0,
                torch.full((4,), 1e-3).double(),
                torch.tensor([1e-3, 0.0, 1e-3, 1.0]),
                torch.ones(3),
            ]
            for name in ("rtol", "atol")
        },
        "max_steps": [200, 1, 3],
        "at": [None, [0.5], torch.tensor([0.1, 0.9]).double(), [2.0], [[0.5]], []],
        "select": [None],
        "along": [None],
    },
    "ode.grids.adapt": {
        "field": [WAVE],
        "steps": [3, 1, 0],
        "order": [3, 1],
        "chains": [4],
        "fine": [16, 4],
        "cond": [None],
    },
    "ode.grids.table": {
        "given": [(9.0, 1.0, 0.1), [0.1, 1.0], torch.tensor([5.0, 0.5]), (), (1.0,)],
        "steps": [None, 2, 3],
    },
    "ode.grids.grid": {
        "spec": [None, "karras", "edm", "uniform", [0.0, 0.5, 1.0], [0.5, 0.2], GRIDS[1]],
        "path": [stk.VP(), None],
    },
    **{
        f"ode.grids.{name}": {"steps": [4, 1, 0]}
        for name in ("cosine", "edm", "karras", "log_snr", "logistic", "uniform")
    },
    "ode.grids.levels": {"t": GRIDS},
    "ode.search.follow": {
        "table": [
            tableau(m, p, GRIDS[0], d)
            for m in ("euler", "heun", "rk4")
            for p, d in ((stk.VP(), False), (stk.VP(), True))
        ],
        "x": X,
        "predict": CALLS,
    },
    "ode.search.search_shares": {
        "error": [lambda s: float((s - 0.3).square().sum()), lambda s: 1.0],
        "shares": [torch.full((3,), 1 / 3).double()],
        "tries": [5, 1, 0],
    },
    "ode.tableaus.knots": {"times": GRIDS, "denoise": [False, True]},
    "ode.tableaus.tableau": {
        "method": [m.name for m in every_method()] + ["no such"],
        "path": [stk.VP(), None],
        "times": GRIDS,
    },
    **{
        f"ode.registry.{name}": {
            "name": [m.name for m in every_method()]
            + ["rk4", "DDIM", "unipc", "dpm++2m", "", 3, None]
        }
        for name in ("find_method", "has_method", "velocity_method")
    },
    "ode.names.spelled": {"name": ["DPM++ 2M", "dpm-solver", "RK4", "euler_a", ""]},
    **{
        f"learn.adversarial.{name}": CRITICS
        | {
            "divergence": [
                "gan",
                "kl",
                "reverse-kl",
                "jensen-shannon",
                "pearson",
                "hellinger",
                "no such",
            ],
            "mix": [some(4, seed=2).abs() % 1],
            "slope": [1.0, 0.5],
            "penalty": [10.0, 0.5],
        }
        for name in (
            "f_gan_critic",
            "f_gan_generator",
            "gradient_penalty",
            "wasserstein_critic",
            "wasserstein_generator",
        )
    },
    **{
        f"learn.noise_contrastive.{name}": CRITICS
        | {
            "log_z": [0.5, torch.tensor(-1.0), torch.zeros(2)],
            "energy": PER_ROW,
            "noise_log_prob": PER_ROW,
            "flow_log_prob": PER_ROW,
        }
        for name in ("flow_contrastive", "noise_contrastive")
    },
    **{
        f"learn.likelihoods.{name}": ELBO
        for name in ("log_weights", "negative_elbo", "negative_iwae")
    },
    "learn.likelihoods.negative_log_likelihood": {"x": X},
    "learn.likelihoods.reparametrised": {
        "distribution": [
            LAW,
            td.Normal(some(4), 2.0),
            td.MultivariateNormal(torch.zeros(3).double(), FACTOR @ FACTOR.T),
            td.Gamma(1.0, 1.0),
        ],
        "noise": [some(4, 2), some(4), some(4, 3)],
    },
    "learn.losses.denoising_score_matching": {
        "x": X,
        "noise": [some(4, 3, seed=5), some(4, 3).float()],
    },
    "learn.losses.flow_matching": {"x": X, "t": [some(4).abs() % 1], "start": [some(4, 3, seed=5)]},
    **{
        f"learn.losses.{name}": {
            "x": X,
            "t": [some(4).abs() % 1, torch.zeros(4).double()],
            "noise": [some(4, 3, seed=5)],
            "predicts": ["noise", "data", "velocity", "v", "score", "F", "no such"],
        }
        for name in ("noise_prediction", "prediction_error")
    },
    "learn.score_matching.implicit_score_matching": {"x": X},
    "learn.score_matching.sliced_score_matching": {
        "x": X,
        "probes": [some(4, 3, seed=5).sign(), some(2, 4, 3)],
    },
    "learn.weightings.weighting": {
        "name": ["uniform", "snr", "min-snr", "sigmoid", "edm", "no such"],
        "t": [some(4).abs() % 1, torch.zeros(2).double(), torch.ones(2).double()],
    },
    "learn.couplings.independent_coupling": {"start": X, "x": X},
    "learn.couplings.optimal_coupling": {"start": X[:4], "x": [some(4, 3, seed=6), PLAIN]},
    "learn.sampler_divergence.nearest_neighbour_entropy": {
        "x": X,
        "others": [some(5, 3, seed=6), PLAIN],
    },
    "learn.sampler_divergence.sampler_divergence": {
        "energy": PER_ROW,
        "negatives": X,
        "others": [some(5, 3, seed=6)],
    },
    "solvers.annealed.ncsnv2_step_size": {
        "sigmas": [[3.0, 1.0, 0.1], torch.tensor([2.0, 0.5]), [1.0], [], [0.1, 1.0]],
        "steps_per_level": [5, 1, 0],
    },
    "solvers.annealed.ncsnv2_ladder": {
        "data": [*X, 4 * some(9, 3)],
        "sigma_min": [0.01, 0.5],
        "ratio": [None, 0.5, 0.9],
    },
    "solvers.annealed.ncsnv2_overlap": {"ratio": [0.5, 0.9, 1.0], "dim": [1, 3, 100]},
    "solvers.annealed.ncsnv2_ratio": {"dim": [1, 3, 100], "overlap": [0.5, 0.1]},
    "solvers.annealed.largest_distance": {"data": [*X, some(9, 2, 3)]},
    "solvers.clusters.clusters": {
        "there": [torch.tensor([[True, False, True], [False, False, False]])],
        "first": [torch.tensor([0, 1, 3])],
        "second": [torch.tensor([1, 2, 0])],
        "sites": [4, 5],
    },
    "solvers.importance.resampled": {"log_weight": RATIOS, "u": UNIFORM},
    "solvers.importance.resample_islands": {
        "log_weight": RATIOS,
        "dead": SOME,
        "island": [2, 4, 1],
        "threshold": [0.5, 1.0, 0.0],
        "u": [some(2).abs() % 1, some(1).abs() % 1, some(4).abs() % 1],
    },
    **{
        f"solvers.importance.{name}": {
            "base": BASES,
            "x": X[:3],
            "weight": [0.25, 0.0, 1.0],
            "scale": [1.0, SCALES[1]],
        }
        for name in ("log_gain", "law_at", "kernel_at", "offered_between")
    },
    **{
        f"solvers.parts.leapfrog.{name}": HALF_STEPS
        for name in ("leapfrog", "one_step", "last_step", "last_step_and_decision")
    },
    "solvers.parts.leapfrog.paces": MOVE | {"x": X},
    "solvers.parts.leapfrog.stretch": {"scale": SCALES, "p": X},
    "solvers.parts.leapfrog.unstretch": {"scale": SCALES, "x": X},
    "solvers.parts.leapfrog.is_factor": {"scale": SCALES, "event_shape": [(3,), (3, 3), ()]},
    **{
        f"solvers.parts.metropolis.{name}": PROPOSED | {"step": [torch.tensor(3)]}
        for name in ("choose", "decide", "metropolis")
    },
    "solvers.parts.metropolis.rejected_if_nan": {"log_ratio": RATIOS},
    "solvers.parts.jumps.quantiles_of": {"x": [*X, some(300, 2), some(65, 2).round()]},
    "solvers.parts.jumps.jump": {
        "x": X,
        "quantiles": [some(4, 3).abs().cumsum(0)[None].expand(1, 4, 3)[0]],
        "start": [0, 5],
        "times": [2, 0],
    },
    "solvers.parts.alternation.descent": {
        "level": [0.5, 0.01],
        "steps": [3, 1],
        "exponent": [1.0, 7.0],
    },
    "solvers.parts.nested.as_kernel": {
        "kernel": [stk.MALA(0.3), "mala", stk.HMC(), stk.ProbabilityFlow(), None, stk.MALA]
    },
    "solvers.parts.nested.settled_kernel": {
        "value": [stk.MALA(0.3), "mala", stk.HMC(), stk.ProbabilityFlow(), None]
    },
    "solvers.tempering.swap_log_ratio": {
        "energy": [some(4, 3), bad(some(4, 3))],
        "beta": [torch.tensor([1.0, 0.5, 0.1]).double()],
    },
    "solvers.warmup.halving.next_idle": {
        "idle": [torch.tensor([0, 3, 9, 1])],
        "accept": ACCEPT["accept"],
    },
    "solvers.warmup.halving.shortening": {
        "idle": [torch.tensor([0, 3, 9, 100])],
        "dtype": [torch.float64, torch.float32],
    },
    "solvers.warmup.ladder.even_ladder": {
        "beta": [torch.tensor([1.0, 0.5, 0.1]).double(), torch.tensor([1.0, 0.1]).double()],
        "rejection": [
            torch.tensor([0.1, 0.8]).double(),
            torch.tensor([0.0]),
            torch.tensor([1.0, 1.0]),
        ],
    },
    "solvers.warmup.ladder.window_ends": {"step": [0, 3, 7, 15, 31, 99], "warmup": [100, 8, 0]},
    "solvers.warmup.learning.counted_of": ACCEPT,
    "solvers.warmup.learning.mean_where": ACCEPT,
    "solvers.warmup.scales.accumulate": {"x": X},
    **{
        f"solvers.warmup.scales.{name}": {"before": [PLAIN.new_ones(3), FACTOR]}
        for name in ("deviations", "factor", "pays", "emptied")
    },
    "solvers.warmup.scales.fisher_scales": {
        "window": [
            accumulate(
                begin_window(torch.stack([x, -2 * x], 1), False), torch.stack([x, -2 * x], 1)
            )
            for x in (PLAIN, bad(PLAIN), 0 * PLAIN)
        ],
        "before": [PLAIN.new_ones(3), SCALES[1]],
    },
    "solvers.warmup.scales.mean_growth": {
        "before": SCALES[:3],
        "after": SCALES,
        "event_shape": [torch.Size([3])],
    },
    "solvers.warmup.scales.window_end": {
        "step": [0, 3, 7, 15, 31, 75, 99],
        "warmup": [100, 8, 0, 1000],
    },
    "solvers.warmup.scales.approach_steps": {"warmup": [0, 1, 20, 100, 1000]},
    "solvers.warmup.step_size.first_step_size": {
        "accept": [lambda e: 2.0 ** (-8 * e), lambda e: 1.0, lambda e: 0.0, lambda e: float("nan")],
        "target": [0.8, 0.5],
    },
    "solvers.warmup.step_size.next_step_size": {
        "accept": [0.9, 0.1, float("nan")],
        "target": [0.8],
        "last": [False, True],
    },
    **{
        f"solvers.warmup.step_size.{name}": ACCEPT
        for name in ("harmonic_acceptance", "pooled_acceptance")
    },
    "solvers.base.read_row": {
        "table": [PLAIN, PLAIN[:, 0]],
        "index": [torch.tensor(2), torch.tensor([0, 3])],
    },
    **{
        f"solvers.base.{name}": {"solver": [*stk.solvers.EXAMPLES.values()]}
        for name in ("adapts", "as_data", "has_step_size", "is_grid", "is_tuned", "traits")
    },
    "inference.beginning.agreeing": {
        "values": [
            some(6, 20, 4),
            bad(some(6, 20, 4)),
            torch.ones(3, 8, 2),
            torch.cat([some(6, 20, 3), some(6, 20, 1) + some(6, 1, 1)], 2),
        ]
    },
    "inference.beginning.in_quartiles": {
        "x": [some(9, 3), PLAIN],
        "known": [some(20, 3, seed=5), PLAIN],
    },
    "inference.asked.chain_ids": {
        "chains": [None, 4, range(3), range(2, 9, 2), 0, -1, range(0), True],
        "start": [None, PLAIN, PLAIN[:1]],
    },
    "inference.asked.condition_rows": {
        "cond": [None, {"a": PLAIN}, {"a": PLAIN[:1]}, {"a": 3}, {"a": PLAIN[0]}],
        "chains": [4, 1, 3],
    },
    "inference.asked.default_batch": {"chains": [1, 4, 1000, 10**6]},
    "inference.asked.default_solver": {
        "model": [
            WELL,
            WAVE,
            stk.Discrete(WELL, (0.0, 1.0)),
            stk.Score(lambda x: -x, (3,)),
            stk.Velocity(network, (3,)),
            stk.constrained(WELL, td.constraints.positive),
            stk.posterior(WAVE, stk.LinearGaussian(torch.eye(3)[:2], torch.ones(2), 0.5)),
        ]
    },
    "inference.asked.warmup_plan": {
        "solver": [*stk.solvers.EXAMPLES.values()][::4],
        "warmup": [None, 0, 5, 100, stk.Warmup(steps=20), -1, 2.5],
    },
    "inference.asked.by_adjoint": {
        "solver": [
            stk.MALA(0.3),
            stk.ProbabilityFlow("dopri5"),
            stk.ProbabilityFlow("euler", steps=3),
        ]
    },
    "inference.encoding.encode": {
        "field": [WAVE, stk.Velocity(network, (3,)), WELL],
        "x": X[:4],
        "cond": [None],
        "method": ["euler", "dopri5", "rk4", "no such"],
        "steps": [3, None, 0],
        "grid": [None, "uniform", [0.0, 0.5, 1.0]],
        "max_steps": [100, 1],
        "batch": [None, 3, 1],
        "rtol": [1e-3],
        "atol": [1e-3],
    },
    "inference.encoding.interpolate": {
        "a": X[:4],
        "b": [some(4, 3, seed=6), PLAIN, -PLAIN],
        "n": [3, 1, 0],
    },
    "inference.encoding.parts": {"n": [7, 1, 0], "batch": [None, 3, 1, 9, 0]},
    "inference.likelihood.log_prob": {
        "field": [WAVE, stk.Velocity(network, (3,)), WELL],
        "x": X[:3],
        "cond": [None],
        "method": ["euler"],
        "steps": [3, None],
        "grid": [None],
        "trace": [None, "exact", "hutchinson", "no such"],
        "probe_law": ["rademacher", "normal", "no such"],
        "probes": [2, 1],
        "rows": [None, range(3, 7), torch.tensor([9, 2, 0, 4]), 5, range(2)],
        "batch": [None, 3],
        "rtol": [1e-2],
        "atol": [1e-2],
        "max_steps": [100],
    },
    "inference.likelihood.divergence": {
        "velocity": [
            lambda x, t: x.square() * (1 + torch.as_tensor(t).reshape(-1, 1)),
            lambda x, t: x.detach(),
        ],
        "x": X[:3],
        "t": [0.4, some(4)],
        "directions": [None, some(2, 4, 3).sign()],
        "sketch": [None],
    },
    "run.settle.within": {
        "x": X,
        "reach": [torch.tensor(2.0).double(), torch.tensor([1.0, 2.0, 0.5]).double()],
    },
    "run.moment.failures": {"status": [torch.tensor([0, 1, 3, 0]), torch.zeros(0).long()]},
    "run.moment.extent": {"x": X},
    "run.store.chains_a_chunk": {
        "batches": [[4], [4, 4], [100, 3], [1] * 9],
        "bytes_of_one": [8, 10**6, 10**9],
    },
    "run.state.all_finite": {"state": [*POINTS], "but": [None, *SOME]},
    **{
        f"run.state.{name}": {
            "state": [*POINTS],
            "nest": [*POINTS, {"a": POINTS[0], "b": [PLAIN, 3]}],
        }
        for name in (
            "chain_leaves",
            "finite_chains",
            "floating_leaves",
            "state_leaves",
            "tuned_leaves",
        )
    },
    "run.state.select_state": {"chosen": SOME, "new": [*POINTS], "old": POINTS[:1]},
    "run.joining.concatenate": {},
    "conformance.subject.close": {
        "got": TENSORS,
        "expected": [PLAIN, PLAIN + 1e-9, PLAIN + 1e-3],
        "factor": [1.0, 1e6],
    },
    **{
        f"conformance.bench.{name}": {"solver": [*stk.solvers.EXAMPLES.values()][::3]}
        for name in ("bench_for", "steep_for")
    },
    "models.digits.networks.principal_axes": {"data": [some(9, 3), PLAIN], "floor": [0.0, 0.5]},
    "models.digits.data.binarised": {"images": [some(4, 3).abs() % 1]},
    "models.latent.energies.calibrate": {
        "data": [some(20), bad(some(20))],
        "draws": [some(30, seed=3), torch.ones(30)],
        "effective": [5.0, 50.0],
    },
    "models.targets.analytic.funnel": {},
    "models.targets.lattices.ising": {
        "size": [2, 3, 1],
        "coupling": [0.3, -0.5],
        "field": [0.0, 0.25],
    },
    "models.targets.lattices.potts": {
        "size": [2, 3, 1],
        "colours": [3, 2],
        "coupling": [0.5, -0.5],
    },
    "models.targets.lattices.rbm": {"visible": [3], "hidden": [2], "seed": [0, 3]},
    "models.targets.mixture.gaussian": {},
    "models.targets.mixture.ring_mixture": {},
    "adapters.schedules.each_time": {
        "ask": [lambda x, t, c: x * t + sum(c.values()), lambda x, t, c: x.float()],
        "x": [PLAIN],
        "t": [some(4), torch.tensor([0.5, 0.1, 0.5, 0.1]).double(), torch.ones(4).double()],
        "cond": [{}, {"c": some(4, 1)}],
    },
    "adapters.flows.supports.flat_axis": {
        "log_prob": [
            lambda x: -x[:, 1].square(),
            lambda x: -x.square().sum(1),
            lambda x: -(x[:, 1] - x[:, 0]).square(),
        ],
        "origin": [PLAIN[:1], PLAIN[0]],
    },
    "adapters.law_supports.bare_support": {},
    "adapters.law_supports.is_angle": {},
}


def given(name, function):
    """Values for what a function takes, by its name or its kind."""
    usual = {}
    for p in inspect.signature(function).parameters.values():
        found = USUAL[name].get(p.name) or KINDS_OF.get(str(p.annotation))
        if found:
            usual[p.name] = found
    return usual


FUNCTIONS = {
    name: made for room in ROOMS for name, made in functions(room).items() if name in USUAL
}


@pytest.mark.parametrize("module", sorted({name.rpartition(".")[0] for name in FUNCTIONS}))
def test_functions(module):
    for name, function in FUNCTIONS.items():
        if name.rpartition(".")[0] == module:
            told = outcomes(function, asked(function, given(name, function)))
            recorded(f"part {name}", told)


def test_each_function_that_is_named_is_there():
    assert USUAL.keys() == FUNCTIONS.keys()


def coded(states=None):
    """A small autoencoder: of normals, or of bits where there are states."""
    weight = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.25, -0.75]]).double()

    def decoder(z):
        mean = z @ weight.T.to(z)
        law = (
            td.Bernoulli(logits=mean, validate_args=False)
            if states
            else td.Normal(mean, 0.5, validate_args=False)
        )
        return td.Independent(law, 1, validate_args=False)

    def encoder(x):
        return td.Independent(
            td.Normal(x @ weight.to(x) / 2, 0.75, validate_args=False), 1, validate_args=False
        )

    return VAE(encoder, decoder, (2,), (3,), None, states)


def of_models():
    """Objects of the models' rooms."""
    spins, bits = ising(2, 0.3, 0.25), coded((0.0, 1.0))
    seen = (some(4, 3) > 0).double()
    return [
        funnel(3),
        Semicircle(),
        eight_schools(),
        spins,
        ising(3),
        potts(2, 3, 0.5),
        IndependentUnits.of(seen),
        rbm(3, 2),
        gaussian(2, 0.5, 2.0),
        ring_mixture(3),
        ring_mixture(3).noised(stk.VP()),
        coded(),
        bits,
        coded().posterior(some(3, seed=2)),
        bits.posterior(seen[0]),
        coded().posterior(),
        coded().joint,
        replace(coded().marginal, draws=3),
        bits.marginal,
        LatentEnergy(lambda z: z.repeat(1, 2)[:, :3], quadratic, (2,), (3,)),
        LatentEnergy(lambda z: z.repeat(1, 2)[:, :3], quadratic, (2,), (3,)).prior,
        Autoregressive(
            Logistics(Before(6), torch.tensor(0.5).double(), torch.tensor(2.0).double()), (3,)
        ),
        BinaryAutoregressive(Bernoullis(Before(1)), (3,)),
        TokenAutoregressive(Categoricals(Before(4)), (3, 4)),
        *stk.solvers.EXAMPLES.values(),
    ]


class Before(Backbone):
    """Numbers of each site that depend on the sites before it."""

    def __init__(self, outputs):
        super().__init__()
        self.register_parameter("slope", nn.Parameter(some(outputs, seed=11)))

    def forward(self, x):
        flat = x if x.ndim == 2 else x @ torch.arange(1.0, 1 + x.shape[-1]).to(x)
        before = flat.cumsum(1) - flat
        return torch.sin(before[..., None] + 1) * self.slope.to(flat)


def optional(made, name, default):
    try:
        return getattr(made, name, default)
    except stk.ScoretkError:  # of a lattice that has none
        return default


def usual_of(made):
    """Values for the methods of an object, by the names of what they take."""
    shape = tuple(getattr(made, "event_shape", (3,)))
    data = tuple(getattr(made, "data_shape", shape))
    states = getattr(made, "states", None)
    if isinstance(made, VAE):
        states = made.pixel_states
    x = some(4, *data)
    if isinstance(states, tuple):
        x = torch.tensor(states).double()[(4 * x).long().abs() % len(states)]
    elif states == "one-hot":
        x = torch.eye(data[-1]).double()[(4 * x[..., 0]).long().abs() % data[-1]]
    z = some(4, *shape, seed=3)
    points = [x, x.float(), x[:0], 1e3 * x, bad(x)] if x.numel() > 3 else [x]
    return {
        "x": points[:2] if isinstance(made, Marginal) else points,
        "z": [z, z.float(), z[:0], 20 * z],
        "zx": [x],
        "a": [z],
        "b": [-z, some(4, *shape)],
        "u": [some(4, *optional(made, "gibbs_shape", (3,)), seed=5).abs() % 1],
        "n": [4, 0],
        "noise": [Noise(5, 4, dtype=torch.float64), Noise(5, 4)],
        "draws": [4, 3, 1],
        "newton": [2, 0],
        "seed": [0, 3],
        "rows": [None, range(3, 7), 5],
        "path": [stk.VP()],
        "t": [0.4, 0.0, 1.0, some(4).abs() % 1],
        "base": [made, IndependentUnits.of((some(4, 3) > 0).double()), None],
        "weight": [0.25, 1.0, 0.0],
        "way": ["spherical", "linear", "no such"],
        "field": STATIC[:1] if getattr(made, "timed", None) is False else KINDS_OF["TimedField"],
        "chains": [4],
        "levels": [3],
        "kernel": [stk.MALA(0.3)],
        "jumps": [0],
    }


APART = {"init", "step", "annealed_log_prob", "estimate_log_prob", "elements", "first_step"}
"""Methods that have laws of their own, or are whole runs."""


def test_methods():
    for i, made in enumerate(of_models()):
        name = f"{i} {type(made).__name__}"
        usual = usual_of(made)
        told = {"": in_order(repr(made)) if "at 0x" not in repr(made) else ""}
        for method, found in public(made):
            if method in APART:
                continue
            if found is None:
                told[method] = or_its_error(lambda made=made, method=method: getattr(made, method))
            elif takes(found):
                told[method] = [outcome(found, *of) for of in asked(found, usual)]
        recorded(f"object {name}", told)
