"""No option is ignored: what is asked of fields, paths and methods differs with each of its options.

Solvers have a law of their own, `test_settings.py`; what needs another library, its adapter's tests.
"""

import inspect
from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves

import scoretk as stk
from scoretk.fields.base import NormalBase
from tests.recorded import recorded

D = 3
SCALES = torch.tensor([0.3, 1.0, 2.5])
TIMES = torch.tensor([0.2, 0.5, 0.8, 0.95])
X = torch.tensor([[0.3, -0.4, 0.9], [1.2, 0.1, -2.0], [-0.7, 0.8, 0.2], [0.1, 2.0, 1.1]])
NET = torch.nn.Linear(D, D)
with torch.no_grad():
    NET.weight.copy_(torch.tensor([[0.7, -0.2, 0.1], [0.3, 0.9, -0.4], [-0.1, 0.2, 1.1]]))
    NET.bias.copy_(torch.tensor([0.1, -0.3, 0.2]))


def energy(x):
    return ((x / SCALES) ** 2 / 2 + torch.cos(2 * x)).sum(1)


def timed(x, t, label=None):
    wave = torch.sin(3 * NET(x)) * (1 + t)[:, None]
    return wave if label is None else wave * (1 + label[:, None])


WELL = stk.Energy(energy, (D,))
PRIOR = stk.Diffusion(timed, (D,), stk.VP(), "noise")
LABELLED = stk.Diffusion(timed, (D,), stk.VP(), "noise", null={"label": 0.0})
LABELS = {"label": torch.tensor([1.0, 2.0, 3.0, 4.0])}
MEASURED = stk.LinearGaussian(torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), [0.4, -0.2], 0.3)
OTHERS = stk.Energy(lambda x: (x.square() + x**4).sum(1), (D,))


def rows(field, **cond):
    """A timed field's velocity at rows and times."""
    return field.velocity(X, TIMES, **cond)


def of_path(path):
    return path.alpha(TIMES), path.sigma(TIMES)


def net_of(make, *middle, **options):
    return rows(make(lambda x, s: torch.sin(NET(x)) * (2 + s)[:, None], *middle, **options))


def loss_of(**options):
    """Two losses of contrastive divergence with their negatives, the buffer kept between."""
    cd = stk.ContrastiveDivergence(stk.ULA(0.05), **{"steps": 2} | options)
    return [cd(WELL, X) for _ in range(2)]


def replayed(**options):
    buffer = stk.ReplayBuffer(4, **options)
    return [stk.ContrastiveDivergence(stk.ULA(0.05), 2, buffer)(WELL, X)[1] for _ in range(2)]


ROUGH = {"rtol": 0.03, "atol": 0.03}


def of_estimate(found):
    return found.value, found.stderr, found.method, found.cost


def density(**options):
    return of_estimate(stk.log_prob(LABELLED, X, **{"cond": LABELS, **ROUGH} | options))


def latents(**options):
    return stk.encode(LABELLED, X, **{"cond": LABELS, **ROUGH} | options).x


def bits(**options):
    return of_estimate(
        stk.bits_per_dim(PRIOR, (X.abs() * 100).round(), method="euler", steps=3, **options)
    )


def evidence(**options):
    usual = {"chains": 64, "levels": 4, "pilot": 32, "check": False, "kernel": stk.MALA(0.1)}
    return of_estimate(stk.log_partition(WELL, **{"base": NormalBase((D,), 2.0)} | usual | options))


def drawn(**options):
    usual = {"solver": stk.MALA(0.1), "chains": 4, "steps": 4}
    draws = stk.sample(WELL, **usual | options)
    return draws.x, draws.mean, draws.final, draws.tuned, draws.cost


def learned(**options):
    run = {"chains": 32, "steps": 1, "warmup": stk.Warmup(**{"steps": 20} | options)}
    return stk.sample(WELL, stk.MALA(), **run).final


def energies(**options):
    return stk.Energy(lambda x: NET(x).square().sum(1), (D,), **options).energy_and_grad(X)


def spotted(x, t=None, label=0.0):
    """A likelihood that takes the label, where it is told."""
    return -(x.sum(1) - label).square()


def drawn_of(field):
    return stk.sample(field, FLOW, chains=4).final


FLOW = stk.ProbabilityFlow("euler", steps=4)
DATA = stk.Noise(3, 20).normal(0, 1, (64,))
TABLE = torch.linspace(0.999, 0.01, 20)
GRID = (0.0, 0.3, 0.6, 1.0)
EULER = {"method": "euler", "steps": 4}
HALF = torch.bfloat16
PATHS = {
    stk.VP: {"beta_min": 0.2, "beta_max": 10.0},
    stk.SubVP: {"beta_min": 0.2, "beta_max": 10.0},
    stk.VE: {"sigma_min": 0.1, "sigma_max": 9.0},
    stk.EDM: {"sigma_min": 0.1, "sigma_max": 9.0, "rho": 3.0},
    stk.Interpolant: {"bulge": 1.0},
}
METHODS = {
    stk.DPS: {"scale": 0.5, "spread": 2.0},
    stk.PiGDM: {"spread": 2.0},
    stk.Replacement: {"spread": 2.0},
    stk.MMPS: {"iterations": 1},
    stk.DiffPIR: {"prior_weight": 4.0},
}
NULLED = {
    stk.Diffusion: stk.Diffusion,
    stk.Velocity: stk.Velocity,
    stk.from_sigmas: stk.from_sigmas,
    stk.from_reversed_time: stk.from_reversed_time,
    stk.from_timesteps: lambda net, shape, **o: stk.from_timesteps(net, TABLE, shape, **o),
}
FLOW_OPTIONS = {"rtol": 0.3, "atol": 0.3, "max_steps": 2, "method": "bosh3"}

OPTIONS = [
    *((kind, lambda kind=kind, **o: of_path(kind(**o)), others) for kind, others in PATHS.items()),
    *(
        (kind, lambda kind=kind, **o: rows(stk.posterior(PRIOR, MEASURED, kind(**o))), others)
        for kind, others in METHODS.items()
    ),
    (
        stk.Diffusion,
        lambda **o: rows(stk.Diffusion(timed, (D,), **o)),
        {"path": stk.VE(), "predicts": "data", "autocast": HALF},
    ),
    *(
        (
            kind,
            lambda make=make, **o: rows(stk.guided(make(timed, (D,), **o), 2.0), **LABELS),
            {"null": {"label": -0.5}},
            {"null": {"label": 0.0}},
        )
        for kind, make in NULLED.items()
    ),
    (stk.Score, lambda **o: stk.Score(NET, (D,), **o).score(X), {"autocast": HALF}),
    (
        stk.Velocity,
        lambda **o: drawn_of(stk.Velocity(timed, (D,), **o)),
        {"base": NormalBase((D,), 2.0), "autocast": HALF},
    ),
    (stk.Energy, energies, {"autocast": HALF, "grad": lambda x: x}),
    (
        stk.Energy,
        lambda **o: stk.Energy(lambda x: x.square().sum(tuple(range(1, x.ndim))), **o).event_shape,
        {"event_shape": (1, D)},
        {"event_shape": (D,)},
    ),
    (
        stk.Energy,
        lambda **o: stk.Energy(lambda tau: tau.square().sum(1), **o).energy(X),
        {"variables": {"tau": stk.Variable((D,), torch.distributions.constraints.positive)}},
        {"variables": {"tau": (D,)}},
    ),
    (
        stk.guided,
        lambda **o: rows(stk.guided(LABELLED, 2.0, **o), **LABELS),
        {
            "unconditional": stk.Diffusion(lambda x, t, label=0: -x, (D,), stk.VP(), "noise"),
            "null": {"label": -0.5},
            "interval": (0.1, 1.0),
            "rescale": 0.7,
        },
    ),
    (
        stk.classifier_guided,
        lambda **o: rows(stk.classifier_guided(PRIOR, lambda x, t: -x.square().sum(1), **o)),
        {"weight": 3.0, "interval": (0.1, 1.0)},
    ),
    (
        stk.classifier_guided,
        lambda **o: rows(stk.classifier_guided(LABELLED, spotted, **o), **LABELS),
        {"measured": "label"},
    ),
    (stk.posterior, lambda **o: rows(stk.posterior(PRIOR, MEASURED, **o)), {"method": "dps"}),
    (
        stk.posterior,
        lambda **o: rows(stk.posterior(LABELLED, spotted, **o), **LABELS),
        {"measured": "label"},
    ),
    (
        stk.mixture,
        lambda **o: stk.mixture([WELL, OTHERS], [0.3, 0.7], **o).score(X),
        {"log_partition": [0.0, 2.0]},
        {"log_partition": [0.0, 0.0]},
    ),
    (
        stk.smoothed,
        lambda **o: rows(stk.smoothed(WELL, **{"samples": 8, "steps": 2} | o)),
        {
            "path": stk.VE(0.1, 5.0),
            "estimator": "langevin",
            "samples": 16,
            "reference": (0.0, 2.0),
            "seed": 1,
        },
    ),
    (
        stk.smoothed,
        lambda **o: rows(stk.smoothed(WELL, estimator="langevin", samples=8, **o)),
        {"steps": 3, "step_size": 0.01},
        {"steps": 2},
    ),
    (
        stk.from_timesteps,
        lambda **o: net_of(partial(stk.from_timesteps, event_shape=(D,)), TABLE, **o),
        {"predicts": "data", "integer": False, "autocast": HALF},
    ),
    (
        stk.from_sigmas,
        lambda **o: net_of(stk.from_sigmas, (D,), **o),
        {"path": stk.VE(), "predicts": "score", "autocast": HALF},
    ),
    (
        stk.from_reversed_time,
        lambda **o: net_of(stk.from_reversed_time, (D,), **o),
        {"autocast": HALF},
    ),
    (
        stk.from_reversed_time,
        lambda **o: net_of(stk.from_reversed_time, (D,), **o),
        {"predicts": "noise", "path": stk.VP()},
        {"predicts": "data", "path": stk.Linear()},
    ),
    (
        stk.from_reversed_time,
        lambda **o: drawn_of(stk.from_reversed_time(timed, (D,), **o)),
        {"base": NormalBase((D,), 2.0)},
    ),
    (
        stk.ContrastiveDivergence,
        loss_of,
        {"steps": 3, "start": "noise", "seed": 1, "energy_decay": 0.1},
    ),
    (stk.ReplayBuffer, replayed, {"refresh": 0.9}),
    (
        stk.log_prob,
        density,
        FLOW_OPTIONS | {"cond": {"label": torch.zeros(4)}, "trace": "hutchinson"},
    ),
    (stk.log_prob, partial(density, **EULER), {"steps": 5}, {"steps": 4}),
    (stk.log_prob, partial(density, method="euler"), {"grid": GRID}),
    (
        stk.log_prob,
        partial(density, trace="hutchinson", **EULER),
        {"probes": 2, "probe_law": "gaussian", "seed": 1, "rows": 7},
    ),
    (stk.encode, latents, FLOW_OPTIONS | {"cond": {"label": torch.zeros(4)}}),
    (stk.encode, partial(latents, method="euler"), {"steps": 5, "grid": GRID}),
    (
        stk.bits_per_dim,
        bits,
        {"levels": 300, "interval": (-1.0, 1.0), "draws": 3, "seed": 1, "rows": 7},
    ),
    (
        stk.log_partition,
        evidence,
        {
            "base": NormalBase((D,), 3.0),
            "method": "smc",
            "chains": 128,
            "levels": 5,
            "kernel": stk.MALA(0.05),
            "moves": 2,
            "jumps": 2,
            "pilot": 48,
            "seed": 1,
            "dtype": torch.float64,
            "check": True,
        },
    ),
    (stk.log_partition, partial(evidence, method="smc"), {"island": 16}),
    (
        stk.sample,
        drawn,
        {
            "solver": stk.ULA(0.1),
            "chains": range(2, 6),
            "steps": 6,
            "warmup": 2,
            "thin": 2,
            "seed": 1,
            "init": X,
            "keep": "last",
            "dtype": torch.float64,
        },
    ),
    (
        stk.sample,
        lambda **o: stk.sample(LABELLED, FLOW, **o).final,
        {"cond": LABELS},
        {"chains": 4, "cond": {"label": torch.zeros(4)}},
    ),
    (stk.Warmup, learned, {"steps": 25, "pilot": 16}),
    (stk.ncsnv2_ratio, lambda **o: stk.ncsnv2_ratio(64, **o), {"overlap": 0.3}),
    (
        stk.ncsnv2_ladder,
        lambda **o: stk.ncsnv2_ladder(DATA, **o),
        {"sigma_min": 0.1, "overlap": 0.3, "ratio": 1.1},
    ),
    (stk.Noise, lambda **o: stk.Noise(0, 4, **o).normal(0, 1, (D,)), {"dtype": torch.float64}),
]
CASES = [
    (kind, answer, name, value, (usual or [{}])[0])
    for kind, answer, others, *usual in OPTIONS
    for name, value in others.items()
]
FASTER = {"batch", "device", "progress", "checkpoint", "report", "compile", "window"}
"""What changes time, memory and what is seen, of which there are laws: the same draws whatever they are."""
RESULTS = {
    stk.StoredDraws,
    stk.Lazy,
    stk.Ranks,
    stk.Draws,
    stk.Estimate,
    stk.Finding,
    stk.Summary,
    stk.Status,
    stk.Stream,
}
FILES = {stk.Zarr, stk.Checkpoint, stk.train, stk.save_pretrained, stk.load_pretrained}
PLUGINS = {stk.ModelSpec, stk.Variable}
"""Of which only names, shapes and labels are told; their tests are those of the listing and of named draws."""
ELSEWHERE = {
    (stk.Couplings, "weights"): "test_clusters",
    (stk.distributed, "model_group"): "test_distributed",
    (stk.distributed, "timeout"): "test_distributed",
    (stk.LinearGaussian, "adjoint"): "the same numbers, and another is refused",
    (stk.sample, "grad"): "the same numbers, with a graph",
    (stk.sample, "on_failure"): "what is done where chains fail",
    (stk.Ladder, "step_sizes"): "test_partition",
    (stk.Ladder, "scales"): "test_partition",
    (stk.Ladder, "moves"): "test_partition",
    (stk.Ladder, "quantiles"): "test_jumps",
    (stk.Ladder, "jumps"): "test_jumps",
}


def same(one, other):
    ones, others = tree_leaves(one), tree_leaves(other)
    return len(ones) == len(others) and all(map(equal, ones, others))


def equal(a, b):
    tensors = isinstance(a, torch.Tensor), isinstance(b, torch.Tensor)
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) if all(tensors) else repr(a) == repr(b)


USUAL = {}


def as_usual(answer, usual):
    """The answer without the option, asked once for all of them."""
    key = id(answer), tuple(usual)
    if key not in USUAL:
        USUAL[key] = answer(**usual)
    return USUAL[key]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "answer", "name", "value", "usual"),
    CASES,
    ids=[f"{kind.__name__}-{name}" for kind, _, name, *_ in CASES],
)
def test_another_value_of_an_option_gives_another_answer(kind, answer, name, value, usual):
    other = answer(**usual | {name: value})
    assert not same(as_usual(answer, usual), other)
    recorded(f"{kind.__name__} {sorted(usual)} with {name}", other)


def options_of(made):
    """The names of what may be left out."""
    try:
        found = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {p.name for p in found if p.default is not p.empty and not p.name.startswith("_")}


def asked_here(made):
    """Whether it is asked of here: no solver, adapter, error, file, plugin or result."""
    kinds = RESULTS | FILES | PLUGINS | {type(solver) for solver in stk.solvers.EXAMPLES.values()}
    error = isinstance(made, type) and issubclass(made, Exception)
    adapter = made.__module__.startswith("scoretk.adapters.") or made is stk.to_sbi
    return made not in kinds and not error and not adapter


def test_every_option_is_asked_about():
    public = [getattr(stk, name) for name in stk.__all__]
    made = {thing for thing in public if callable(thing) and asked_here(thing)}
    left = {(thing, name) for thing in made for name in options_of(thing) - FASTER}
    asked = {(kind, name) for kind, _, name, *_ in CASES} | ELSEWHERE.keys()
    assert {name for name in asked if name not in left and name[1] != "autocast"} == set()
    assert left - asked == set()


def test_an_option_that_is_ignored_is_found():
    def deaf(**options):
        return density(**{"cond": options.get("cond", LABELS)})

    with pytest.raises(AssertionError):
        test_another_value_of_an_option_gives_another_answer(stk.log_prob, deaf, "rtol", 0.1, {})
