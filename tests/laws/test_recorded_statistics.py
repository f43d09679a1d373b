"""Statistics and what pictures show are what they were (`tests/recorded.py`)."""

from functools import partial

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk import diagnostics
from scoretk.diagnostics.halves import halves_of, summarise_halves
from tests.recorded import drawn, or_error, randn, recorded


def network(x, t):
    return torch.sin(3 * x) * (1 + t)[:, None]


def sample_of(seed, shift=0.0):
    return randn(40, 2, seed=seed) + shift


CHAINS = randn(6, 50, 3).cumsum(1) / 5 + randn(6, 1, 3, seed=1)


STATISTICS = {
    **{
        f"ess, {m}": partial(diagnostics.ess, CHAINS, m)
        for m in ("bulk", "tail", "mean", "std", "median", "q5", "x")
    },
    **{f"mcse, {m}": partial(diagnostics.mcse, CHAINS, m) for m in ("mean", "std", "median", "x")},
    "rhat": partial(diagnostics.rhat, CHAINS),
    "nested_rhat": partial(diagnostics.nested_rhat, CHAINS, 3),
    "nested_rhat of an odd number": partial(diagnostics.nested_rhat, CHAINS, 4),
    "split_rhat": partial(diagnostics.split_rhat, CHAINS),
    "bfmi": partial(diagnostics.bfmi, CHAINS[..., 0]),
    "balance": partial(diagnostics.balance, [3, 0, 5, 2]),
    "copies": lambda: diagnostics.copies(sample_of(0), sample_of(1), sample_of(2), 0.1),
    "mmd": lambda: [diagnostics.mmd(sample_of(0), sample_of(1, 0.3), b) for b in (None, 0.5)],
    "sliced_wasserstein": lambda: diagnostics.sliced_wasserstein(
        sample_of(0), sample_of(1, 0.3), 16, 1
    ),
    "mmd_test": lambda: diagnostics.mmd_test(
        sample_of(0), sample_of(1, 0.3), permutations=60, level=0.1
    ),
    "sliced_test": lambda: diagnostics.sliced_wasserstein_test(
        sample_of(0), sample_of(1, 0.3), directions=8, permutations=60
    ),
    "classifier_test": lambda: diagnostics.classifier_test(sample_of(0), sample_of(1, 0.5)),
    "stein": lambda: [
        diagnostics.kernel_stein_discrepancy(
            sample_of(0, 0.2), lambda x: -x, kernel=k, bootstraps=60
        )
        for k in ("imq", "rbf")
    ],
    "sbc": lambda: (
        diagnostics.sbc_ranks(sample_of(0), RANKED),
        diagnostics.sbc_test(sample_of(0), RANKED, permutations=60),
    ),
    "tarp": lambda: (
        diagnostics.tarp_ranks(sample_of(0), RANKED),
        diagnostics.tarp_ranks(sample_of(0), RANKED, references=sample_of(4)),
        diagnostics.tarp_test(sample_of(0), RANKED, permutations=60),
    ),
    "rank_band": lambda: diagnostics.rank_band(20, 9, simulations=200),
}


RANKED = randn(40, 9, 2, seed=3)


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics(name):
    recorded(f"statistic {name}", or_error(STATISTICS[name]))


def shown(figure):
    """What the artists of a figure hold, in order."""
    told = []
    for axes in figure.axes:
        told += [
            axes.get_title(),
            axes.get_xlabel(),
            axes.get_ylabel(),
            axes.get_xlim(),
            axes.get_ylim(),
        ]
        told += [str(axes.get_aspect()), axes.axison]
        told += [
            (np.asarray(v.get_xdata(), float), np.asarray(v.get_ydata(), float)) for v in axes.lines
        ]
        told += [np.array(v.get_path().vertices) for v in axes.patches]
        told += [np.array(v.get_extents().get_points()) for v in axes.patches]
        told += [np.ma.filled(v.get_array(), np.pi).astype(float) for v in axes.images]
        for some in axes.collections:
            told += [np.ma.filled(some.get_offsets(), np.pi), some.get_alpha() or 1.0]
            for part in ("U", "V"):
                told += [np.ma.filled(getattr(some, part), np.pi)] if hasattr(some, part) else []
            told += (
                []
                if some.get_array() is None
                else [np.ma.filled(some.get_array(), np.pi).ravel().astype(float)]
            )
            told += [np.asarray(some.get_sizes(), float)] if hasattr(some, "get_sizes") else []
    return told, figure.get_suptitle(), figure.get_size_inches()


PLANE = stk.Energy(lambda x: ((x - 1).square() * torch.tensor([1.0, 4.0]).to(x)).sum(1) / 2, (2,))


FLAT = stk.Diffusion(network, (2,), stk.VP(), "noise")


KINDS = ("trace", "rank", "pairs")


def marked(failed=2, n=40, d=4, chains=6, stats=None):
    """Draws of which the last chains have failed, and some ended a trajectory that diverged."""
    x = changed(chains, n, d)
    failure = int(stk.Status.DIVERGED)
    status = torch.where(torch.arange(chains) < chains - failed, 0, failure)
    ended = {"diverging": (torch.arange(n) % 7 == torch.arange(chains)[:, None]).double()}
    at = torch.where(status > 0, 3, -1)
    return stk.Draws(x=x, final=x[:, -1], status=status, failed_at=at, stats=stats or ended)


def axes_of_ours():
    from matplotlib.figure import Figure

    return Figure().subplots(1, 2)[1]


PICTURES = {
    "trace": lambda: drawn().plot(),
    "rank": lambda: drawn().plot("rank"),
    "pairs": lambda: drawn().plot("pairs"),
    "some": lambda: drawn(chains=20).plot("trace", names=["tau"], most=1),
    "samples": lambda: stk.plot.samples(drawn(chains=30)["mu"][:, -1]),
    **{f"{n} numbers": lambda n=n: stk.plot.samples(randn(n, 1)) for n in (50, 850, 1500)},
    "curves": lambda: stk.plot.samples(randn(5, 9), most=3),
    "images": lambda: stk.plot.samples(randn(7, 1, 3, 4), columns=4),
    "a plane": lambda: stk.plot.field(PLANE),
    "a window": lambda: stk.plot.field(
        PLANE, bounds=(-1, 3, -1, 3), draws=stk.sample(PLANE, stk.ULA(0.1), chains=4, steps=5)
    ),
    "in time": lambda: stk.plot.field(FLAT, t=0.5),
    **{f"path {p!r}": lambda p=p: stk.plot.path(p) for p in (stk.VP(), stk.Linear(), stk.VE())},
    **{f"data on {p!r}": lambda p=p: stk.plot.path(p, randn(30, 1)) for p in (stk.VP(), stk.VE())},
    "planes of data": lambda: stk.plot.path(stk.VP(), randn(30, 2), seed=1),
    **{
        f"{kind}, {name}": lambda kind=kind, some=some: drawn().plot(kind, names=some)
        for kind in ("trace", "pairs")
        for name, some in {
            "entries twice": ["tau", "mu", "mu[1]", "tau"],
            "no entry": [],
            "one entry": "mu[0]",
            "other entries": ["nu"],
            "an entry that is no name": [3],
        }.items()
    },
    "two of entries that come twice": lambda: drawn().plot(
        "trace", names=["tau", "tau", "mu"], most=2
    ),
    **{f"{kind} of spoilt draws": lambda k=kind: marked().plot(k) for kind in KINDS},
    **{f"{kind} of failed draws": lambda k=kind: marked(6).plot(k) for kind in KINDS},
    **{f"{kind} of very many": lambda k=kind: marked(2, 700, 1, 11).plot(k) for kind in KINDS},
    **{f"{kind} of many": lambda k=kind: marked(2, 500, 2, 11).plot(k) for kind in KINDS},
    **{
        f"{kind} of {n} draws": lambda k=kind, n=n: marked(2, n, 2, 3).plot(k)
        for kind in KINDS
        for n in (1, 3)
    },
    "spoilt samples": lambda: stk.plot.samples(marked()),
    "samples by weight": lambda: stk.plot.samples(
        marked(d=2, stats={"log_weight": torch.linspace(-4, 0, 6).repeat(40, 1).T})
    ),
    "failed samples": lambda: stk.plot.samples(marked(6)),
    "no samples": lambda: stk.plot.samples(randn(0, 2)),
    "a number": lambda: stk.plot.samples(torch.tensor(1.0)),
    "samples in another shape": lambda: stk.plot.samples(randn(5, 6), shape=(2, 3), title="these"),
    "samples in no shape": lambda: stk.plot.samples(randn(5, 6), shape=(2, 4)),
    "images of one channel": lambda: stk.plot.samples(randn(5, 1, 2, 3), most=4),
    "images in colours": lambda: stk.plot.samples(randn(5, 3, 2, 3)),
    "images of two channels": lambda: stk.plot.samples(randn(5, 2, 2, 3)),
    "on axes of the caller": lambda: stk.plot.samples(randn(9, 2), axes=axes_of_ours()),
    "a law": lambda: stk.plot.field(
        torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 2.0), 1)
    ),
    "a law of three": lambda: stk.plot.field(
        torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 2.0), 1)
    ),
    "a law by name": lambda: stk.plot.field("ring-mixture"),
    "a field of states": lambda: stk.plot.field(stk.Discrete(PLANE, (0.0, 1.0))),
    "a function": lambda: stk.plot.field(lambda x: x),
    "a score": lambda: stk.plot.field(stk.Score(lambda x: 1 - x, (2,))),
    "under a constraint": lambda: stk.plot.field(
        stk.constrained(PLANE, torch.distributions.constraints.positive)
    ),
    "ways": lambda: stk.plot.field(FLAT, chains=5, seed=3),
    "ways of draws": lambda: stk.plot.field(
        FLAT, draws=stk.sample(FLAT, stk.ProbabilityFlow("euler", steps=4), chains=3, keep="all")
    ),
    "ways without a base": lambda: stk.plot.field(stk.Velocity(network, (2,), base="none")),
    "a condition": lambda: stk.plot.field(
        stk.Energy(lambda x, k: k * x.square().sum(1), (2,)), cond={"k": torch.tensor([3.0])}
    ),
    "a time of a static field": lambda: stk.plot.field(PLANE, t=0.5),
    "a time beyond": lambda: stk.plot.field(FLAT, t=1.5),
    "an empty window": lambda: stk.plot.field(PLANE, bounds=(1, 1, 0, 2)),
    "failed draws": lambda: stk.plot.field(PLANE, draws=marked(6, d=2)),
    "spoilt draws": lambda: stk.plot.field(PLANE, draws=marked(d=2)),
    "draws of three": lambda: stk.plot.field(PLANE, draws=marked(d=3)),
    "a path on axes": lambda: stk.plot.path(stk.VP(), axes=axes_of_ours()),
    "planes of data on axes": lambda: stk.plot.path(stk.VP(), randn(9, 2), axes=axes_of_ours()),
    "data that are infinite": lambda: stk.plot.path(stk.VP(), randn(9, 1) / 0),
    "data of three": lambda: stk.plot.path(stk.VP(), randn(9, 3)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name, monkeypatch):
    pytest.importorskip("matplotlib")
    from scoretk.diagnostics.plot import chains

    monkeypatch.setattr(chains, "find_spec", lambda name: None)
    recorded(f"picture {name}", or_error(lambda: shown(PICTURES[name]())))


def changed(chains=16, n=200, d=2, seed=0):
    """Independent draws to be spoilt."""
    return randn(chains, n, d, seed=seed)


def at_a_wall():
    """Three chains stay at 1 to the end, and others come by."""
    x = changed()
    x[:3, :, 0] = 1.0
    x[3:, ::9, 0] = 1.0
    return x


def with_(where, value):
    x = changed()
    x[where] = value
    return x


def of_one_parity(first):
    """Spins, an even number of which are up in half of the chains, and an odd one in the others."""
    x = 1.0 * (changed(d=4) > 0)
    x[..., 3] = (x[..., :3].sum(2) + torch.arange(16)[:, None] // 8) % 2
    x[0, 0] = first
    return x


SPOILT = {
    "spins that start down": lambda: of_one_parity(0.0),
    "spins that start up": lambda: of_one_parity(1.0),
    "as it is": changed,
    "a wall": at_a_wall,
    "a wall of some": lambda: torch.where(changed() > 0.8, 0.8, changed()),
    "on a lattice": lambda: changed().round(),
    "on a fine lattice": lambda: (changed() * 50).round() / 50,
    "two values": lambda: 1.0 * (changed() > 0),
    "a chain apart": lambda: with_((0, slice(None), 0), changed()[0, :, 0] + 4),
    "half apart": lambda: with_((slice(8), slice(None), 1), changed()[:8, :, 1] * 3),
    "stuck from the middle": lambda: with_((slice(2), slice(100, None)), 0.3),
    "never moved": lambda: with_((5, slice(None)), 0.7),
    "one value in all": lambda: with_((slice(None), slice(None), 1), 2.0),
    "all at one value": lambda: torch.ones(16, 200, 2).double(),
    "a trend": lambda: changed() + torch.linspace(0, 3, 200)[None, :, None],
    "a wider end": lambda: changed() * torch.linspace(1, 3, 200)[None, :, None],
    "slow": lambda: changed().cumsum(1) / 10,
    "slow in one": lambda: torch.stack([changed()[..., 0], changed()[..., 1].cumsum(1) / 10], -1),
    "turns": lambda: (
        changed() * (-1.0) ** torch.arange(200)[None, :, None]
        + (-1.0) ** torch.arange(200)[None, :, None]
    ),
    "copies": lambda: changed()[:1].expand(16, -1, -1).clone(),
    "copies of some": lambda: with_((slice(4, 8),), changed()[:4]),
    "infinite": lambda: with_((2, 7, 1), float("inf")),
    "NaN": lambda: with_((2, 7, 1), float("nan")),
    "huge": lambda: changed() * 1e200,
    "tiny": lambda: changed() * 1e-200,
    "far from 0": lambda: changed() + 1e8,
    "heavy tails": lambda: changed() / changed(seed=1),
    "few chains": lambda: changed(2),
    "one chain": lambda: changed(1),
    "few draws": lambda: changed(n=5),
    "one draw": lambda: changed(n=1),
    "many entries": lambda: changed(4, 40, 30),
}
REPORTED = {
    "little accepted": {"accept": torch.full((16, 200), 0.02)},
    "all accepted": {"accept": torch.ones(16, 200)},
    "diverging": {"diverging": (torch.arange(200) % 50 == 0).expand(16, 200).double()},
    "slow energies": {"energy": changed()[..., 0].cumsum(1)},
    "energies of which some are infinite": {
        "energy": with_((2, 7, 1), float("inf"))[..., 1].cumsum(1)
    },
    "energies of which some are NaN": {"energy": with_((2, 7, 1), float("nan"))[..., 1]},
    "high acceptance": {"accept": torch.full((16, 200), 0.995)},
    "acceptance of which some is NaN": {"accept": with_((2, slice(None), 0), float("nan"))[..., 0]},
    "energies": {"energy": changed()[..., 0]},
    "energies that drift": {"energy": changed()[..., 0] + torch.linspace(0, 5, 200)},
    "weights": {"log_weight": 4 * changed()[..., 0]},
    "swaps": {"swap": torch.zeros(16, 200)},
    "deep trees": {"depth": torch.full((16, 200), 10.0)},
}
SUMMARIES = {
    **{name: (make, {}) for name, make in SPOILT.items()},
    **{f"{name} reported": (changed, stats) for name, stats in REPORTED.items()},
}


@pytest.mark.parametrize("name", SUMMARIES)
def test_summaries(name):
    make, stats = SUMMARIES[name]
    x = make()
    status = torch.zeros(len(x), dtype=torch.int64)
    draws = stk.Draws(x=x, final=x[:, -1], status=status, failed_at=status - 1, stats=stats)
    recorded(
        f"spoilt: {name}", or_error(lambda: (lambda s: (s, str(s), s.verdict))(draws.summary(3)))
    )


MOMENTS = {name: parts for name, parts in SUMMARIES.items() if parts[0]().shape[1] >= 4} | {
    f"{name} reported of a chain that never moved": (SPOILT["never moved"], REPORTED[name])
    for name in ("little accepted", "all accepted")
}


@pytest.mark.parametrize("name", MOMENTS)
def test_summaries_of_moments(name):
    make, stats = MOMENTS[name]
    x = make()
    status = torch.zeros(len(x), dtype=torch.int64)
    means = {name: value.double().mean(1) for name, value in stats.items()}
    recorded(
        f"spoilt, of moments: {name}",
        or_error(
            lambda: (lambda s: (s, str(s)))(
                summarise_halves(halves_of(x), status, status - 1, means, 3)
            )
        ),
    )


def summaries(x, stats=()):
    """Findings of draws, and of their moments where there are enough, by kind."""
    status = torch.zeros(len(x), dtype=torch.int64)
    stats = dict(stats)
    draws = stk.Draws(x=x, final=x[:, -1], status=status, failed_at=status - 1, stats=stats)
    told = [draws.summary(9)]
    if x.shape[1] >= 4:
        means = {name: value.double().mean(1) for name, value in stats.items()}
        told.append(summarise_halves(halves_of(x), status, status - 1, means, 9))
    return [{f.kind: f.problem for f in found.findings} for found in told]


OF_THE_WHOLE = {"stuck", "copies", "unjudged"}
"""What is said of all coordinates of a chain together."""


@pytest.mark.parametrize(
    "name", [n for n in SPOILT if n not in ("huge", "infinite", "NaN", "many entries")]
)
def test_what_is_said_of_some_coordinates_does_not_hang_on_one_without_numbers(name):
    """Which is named itself, and nowhere else, wherever it stands."""
    x = SPOILT[name]()
    lost = torch.full_like(x[..., :1], float("nan"))
    place = 1 if len(name) % 2 else 0
    beside = torch.cat([x[..., :place], lost, x[..., place:]], -1)
    for found, plain in zip(summaries(beside), summaries(x), strict=True):
        if "broken" in found:  # moments of few draws say nothing
            assert f"x[{place}]" in found.pop("broken")
        assert found.keys() - OF_THE_WHOLE == plain.keys() - OF_THE_WHOLE
        named = [text for kind, text in found.items() if kind not in OF_THE_WHOLE]
        assert not any(f"x[{place}]" in text for text in named)


@pytest.mark.parametrize("rate", [0.02, 0.5])
@pytest.mark.parametrize("lost", [0, 1, 15, 16])
def test_what_is_said_of_acceptance_is_of_the_reports_that_are_numbers(rate, lost):
    accept = torch.full((16, 200), rate, dtype=torch.float64)
    accept[:lost] = float("nan")
    for found in summaries(changed(), {"accept": accept}):
        assert ("accept" in found) == (rate < 0.1 and lost < 16)


ADVISED = {
    "few": lambda: (changed(4, 40), {}, 0, 0),
    "few, all accepted": lambda: (
        changed(4, 40),
        {"accept": with_ends(torch.full((4, 40), 0.999))},
        0,
        0,
    ),
    "slow": lambda: (changed(4, 60).cumsum(1) / 5, {}, 0, 0),
    "slow, all accepted": lambda: (
        changed(4, 60).cumsum(1) / 5,
        {"accept": with_ends(torch.full((4, 60), 0.999))},
        0,
        0,
    ),
    "little accepted": lambda: (changed(4, 60), {"accept": torch.full((4, 60), 0.02)}, 0, 0),
    "diverging": lambda: (
        changed(4, 60),
        {"diverging": (torch.arange(60) % 6 == 0).expand(4, 60).double()},
        0,
        0,
    ),
    **{
        f"{code.name} at {at}": lambda code=code, at=at: (changed(4, 60), {}, int(code), at)
        for code in stk.Status
        if code is not stk.Status.OK
        for at in (0, 7)
    },
    "apart": lambda: (changed(4, 60) + torch.arange(4.0)[:, None, None], {}, 0, 0),
    "copies": lambda: (changed(4, 60)[:1].expand(4, -1, -1).clone(), {}, 0, 0),
}


def with_ends(accept):
    """Acceptance of which some is NaN, as of chains that have failed."""
    accept[0, -3:] = torch.nan
    return accept


ADVISERS = ["", *(f"{name}(step_size=0.1, no_such=3)" for name in ("ULA", "Theirs"))]


@pytest.mark.parametrize("name", [*stk.solvers.EXAMPLES, *ADVISERS])
def test_what_is_advised_is_of_the_solver(name):
    """What is found, and what to do, for each solver and each kind of trouble."""
    text, told = repr(stk.solvers.EXAMPLES[name]) if name in stk.solvers.EXAMPLES else name, {}
    for trouble, make in ADVISED.items():
        x, stats, code, at = make()
        status = torch.tensor([0, code, 0, code])
        draws = stk.Draws(
            x=x,
            final=x[:, -1],
            status=status,
            failed_at=torch.where(status > 0, at, -1),
            stats=stats,
            provenance={"solver": text},
        )
        found = draws.summary(1)
        told[trouble] = [(f.kind, f.problem, f.fix) for f in found.findings], found.verdict
    recorded(f"advice to {text}", told)
