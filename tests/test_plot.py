"""What pictures show is what the draws, fields and paths are: the data of axes are compared with the numbers themselves."""

import inspect
import itertools
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributions import Gamma, Independent, constraints

import scoretk as stk
from scoretk.core import arvizplots
from scoretk.diagnostics.plot import chains as of_chains
from scoretk.diagnostics.plot import marginals, plane, sheet

pytest.importorskip("matplotlib")
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def normal(*shape):
    """Normal numbers that leave torch's global generator alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


NORMAL = stk.Energy(lambda x: (x - 1).square().sum(1) / 2, (2,))
NAMED = stk.Energy(
    lambda mu, tau: tau + (mu**2).sum(1) / 2, variables={"mu": (2,), "tau": constraints.positive}
)


@pytest.fixture(autouse=True)
def nothing_is_shown():
    before = pyplot.get_fignums()
    yield
    assert pyplot.get_fignums() == before


@pytest.fixture(scope="module")
def draws():
    return stk.sample(NAMED, stk.MALA(0.3), chains=5, steps=12)


@pytest.fixture
def by_matplotlib():
    with mock.patch.object(of_chains, "find_spec", return_value=None):
        yield


def lines(axes):
    return [np.asarray(line.get_ydata()) for line in axes.lines]


def shows(panel, values):
    """Whether each chain of values `(chains, kept)` is a line of the panel."""
    found = lines(panel)
    return all(any(np.array_equal(line, chain) for line in found) for chain in values)


def check_traces(figure, draws, of):
    panels = {axes.get_title(): axes for axes in figure.axes[1::2]}
    assert [*panels] == [*of]
    for name, value in of.items():
        assert shows(panels[name], value.double().numpy()), name


def named(draws):
    return {"mu[0]": draws["mu"][..., 0], "mu[1]": draws["mu"][..., 1], "tau": draws["tau"]}


@pytest.mark.thorough
@pytest.mark.usefixtures("by_matplotlib")
def test_traces_are_the_draws(draws):
    check_traces(draws.plot(), draws, named(draws))
    check_traces(draws.plot("trace", "tau"), draws, {"tau": draws["tau"]})
    check_traces(draws.plot(names=["tau", "mu[1]"]), draws, dict([*named(draws).items()][:0:-1]))
    with pytest.raises(AssertionError):
        check_traces(draws.plot(), draws, named(draws) | {"tau": draws["tau"].log()})


@pytest.mark.parametrize("kind", of_chains.KINDS)
@pytest.mark.parametrize("installed", [True, False])
def test_chains_are_drawn_by_arviz_where_it_is_installed_and_by_us_where_not(
    draws, kind, installed
):
    asked = []

    def ours(*made):
        asked.append("matplotlib")
        return matplotlib.figure.Figure()

    def theirs(named, *made):
        asked.append(f"ArviZ's {named}")
        return matplotlib.figure.Figure()

    with (
        mock.patch.object(of_chains, "find_spec", return_value=object() if installed else None),
        mock.patch.object(of_chains, "chain_figure", theirs),
        mock.patch.dict(of_chains.KINDS, {kind: ours}),
    ):
        draws.plot(kind)
    assert asked == [f"ArviZ's {kind}" if installed else "matplotlib"]


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("kind", arvizplots.BEFORE)
def test_arviz_draws_into_no_window_whether_figures_are_shown_by_themselves_or_not(kind, shown):
    """And leaves pyplot as it was, without the figure."""
    seen = []

    def drawn(data, **told):
        seen.append(pyplot.isinteractive())
        return pyplot.subplots()[1]

    az = SimpleNamespace(__version__="0.20", **{arvizplots.BEFORE[kind][0]: drawn})
    with (
        mock.patch.object(arvizplots, "arviz", return_value=az),
        mock.patch.object(arvizplots, "inference_data"),
        pyplot.ion() if shown else pyplot.ioff(),
    ):
        open_before = pyplot.get_fignums()
        arvizplots.chain_figure(kind, {"x": np.zeros((2, 5))})
        assert seen == [False]
        assert pyplot.isinteractive() == shown
        assert pyplot.get_fignums() == open_before


@pytest.mark.parametrize("ended", [None, np.eye(2, 5)])
@pytest.mark.parametrize("version", ["0.20", "1.1"])
@pytest.mark.parametrize("kind", arvizplots.BEFORE)
def test_arviz_is_given_the_draws_and_which_of_them_diverged(kind, version, ended):
    told, figure = {}, matplotlib.figure.Figure()
    made = SimpleNamespace(viz={"figure": np.array(figure)}) if version > "1" else figure.subplots()
    table = arvizplots.FROM_1_ON if version > "1" else arvizplots.BEFORE

    def drawn(data, **options):
        told.update(options)
        return made

    az = SimpleNamespace(__version__=version, **{table[kind][0]: drawn})
    with (
        mock.patch.object(arvizplots, "arviz", return_value=az),
        mock.patch.object(arvizplots, "inference_data") as groups,
    ):
        assert arvizplots.chain_figure(kind, {"x": np.ones((2, 5))}, ended) is figure
    given, *no_names = groups.call_args.args
    assert given["posterior"]["x"].tolist() == np.ones((2, 5)).tolist()
    assert no_names[:3] == [{}, {}, {}]
    assert ("sample_stats" in given) == (ended is not None)
    if ended is not None:
        assert given["sample_stats"]["diverging"].tolist() == (ended > 0).tolist()
    marks = kind == "pairs" and version < "1" and ended is not None
    assert told == table[kind][1] | (
        {"divergences": True} if marks else {"backend": "matplotlib"} if version > "1" else {}
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("arviz") is None, reason="ArviZ is not installed")
@pytest.mark.parametrize("kind", ["trace", "rank", "pairs"])
def test_arviz_draws_where_it_is_installed(draws, kind):
    figure = draws.plot(kind)
    assert isinstance(figure, matplotlib.figure.Figure)
    told = " ".join(
        text for a in figure.axes for text in (a.get_title(), a.get_xlabel(), a.get_ylabel())
    )
    for name in ("mu", "tau"):
        assert name in told
    if kind == "trace":
        panels = figure.axes[1::2]
        for panel, value in zip(panels, named(draws).values(), strict=True):
            assert shows(panel, value.double().numpy())


@pytest.mark.usefixtures("by_matplotlib")
def test_ranks_are_even_where_chains_agree_and_shifted_where_not():
    x = normal(4, 400, 1)
    ok = torch.ones(4, dtype=torch.bool)

    def heights(x):
        panel = of_chains.plot_chains("rank", x, ["x"], ok).axes[0]
        return np.array([bar.get_height() for bar in panel.patches]).reshape(4, -1)

    even = heights(x)
    assert even.sum(1) == pytest.approx(of_chains.BINS / 2.2)  # the share of a full row
    assert even.max() < 2.2 / 2.2 * 2
    x[3] += 5
    apart = heights(x)
    assert apart[3, :10].sum() == 0
    assert apart[:3, -4:].sum() == 0


@pytest.mark.usefixtures("by_matplotlib")
def test_pairs_are_each_entry_over_each_other(draws):
    figure = draws.plot("pairs")
    assert len(figure.axes) == 3 + 3
    flat = {name: value.flatten().double().numpy() for name, value in named(draws).items()}
    points = [np.asarray(a.collections[0].get_offsets()) for a in figure.axes if a.collections]
    wanted = [("mu[0]", "mu[1]"), ("mu[0]", "tau"), ("mu[1]", "tau")]
    for found, (x, y) in zip(points, wanted, strict=True):
        assert np.array_equal(found, np.stack([flat[x], flat[y]], 1))
    assert {a.get_ylabel() for a in figure.axes} >= {"mu[0]", "mu[1]", "tau"}


def test_divergences_are_marked():
    x = torch.arange(8.0).reshape(2, 4, 1)
    x = torch.cat([x, -x], 2)
    mark = torch.zeros(2, 4)
    mark[1, 2] = 1
    with mock.patch.object(of_chains, "find_spec", return_value=None):
        figure = of_chains.plot_chains("pairs", x, ["a", "b"], torch.ones(2) > 0, diverging=mark)
    marked = figure.axes[1].collections[1].get_offsets()
    assert np.array_equal(marked, [[6.0, -6.0]])


@pytest.mark.usefixtures("by_matplotlib")
def test_what_is_left_out_is_said(draws):
    status = torch.tensor([0, 1, 0, 0, 0])
    some = stk.Draws(draws.x, draws.final, status, status - 1, draws.stats)
    figure = some.plot(most=1)
    assert "1 of 3 entries" in figure.get_suptitle()
    assert "without 1 failed chains" in figure.get_suptitle()
    assert not shows(figure.axes[1], draws.x[1:2, :, 0].double().numpy())
    many = stk.sample(NORMAL, stk.MALA(0.3), chains=20, steps=4)
    assert "8 of 20 chains" in many.plot().get_suptitle()


def test_what_has_no_picture_says_why(draws):
    moments = stk.sample(NORMAL, stk.MALA(0.3), chains=2, steps=4, keep="moments")
    with pytest.raises(stk.InvalidArgument, match="picture needs the draws themselves"):
        moments.plot()
    last = stk.sample(NORMAL, stk.MALA(0.3), chains=2, steps=4, keep="last")
    with pytest.raises(stk.InvalidArgument, match="keep='all'"):
        last.plot()
    failed = torch.ones(5, dtype=torch.long)
    none = stk.Draws(draws.x, draws.final, failed, failed)
    for ask in (
        none.plot,
        lambda: stk.plot.samples(none),
        lambda: stk.plot.field(NORMAL, draws=none),
    ):
        with pytest.raises(stk.InvalidArgument, match=r"all failed|events \(2,\)"):
            ask()
    with pytest.raises(stk.UnknownName, match="tau"):
        draws.plot(names="taw")
    with pytest.raises(stk.UnknownName, match="trace"):
        draws.plot("traces")
    with pytest.raises(stk.InvalidArgument, match="trace"):
        draws.plot("pairs", "tau")
    broken = stk.Draws(draws.x / 0, draws.final, draws.status, draws.failed_at)
    with pytest.raises(stk.InvalidArgument, match="not finite"):
        broken.plot()


def test_a_missing_matplotlib_is_named(draws, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for ask in (
        draws.plot,
        lambda: stk.plot.samples(draws),
        lambda: stk.plot.field(NORMAL),
        lambda: stk.plot.path(stk.VP()),
    ):
        with pytest.raises(stk.MissingDependency, match=r"scoretk\[plot\]"):
            ask()


def image(figure):
    return np.asarray(figure.axes[0].images[0].get_array().filled(np.nan))


def test_a_sheet_of_images_is_the_draws():
    x = normal(7, 1, 3, 4)
    found = image(stk.plot.samples(x, columns=4))
    assert found.shape == (2 * 4 - 1, 4 * 5 - 1)
    for i, one in enumerate(x[:, 0].double().numpy()):
        top, left = 4 * (i // 4), 5 * (i % 4)
        assert np.array_equal(found[top : top + 3, left : left + 4], one)
    assert np.isnan(found[3]).all()
    assert np.isnan(found[4:, 15:]).all()
    flat = stk.plot.samples(x.reshape(7, 12), shape=(3, 4), columns=4)
    assert np.array_equal(image(flat), found, equal_nan=True)
    few = stk.plot.samples(x, most=2)
    assert "2 of 7" in few.axes[0].get_title()
    coloured = stk.plot.samples(normal(4, 3, 5, 5))
    assert coloured.axes[0].images[0].get_array().shape == (11, 11, 3)


def test_a_sheet_of_points_numbers_and_curves():
    x = normal(50, 2)
    points = stk.plot.samples(x).axes[0].collections[0].get_offsets()
    assert np.array_equal(points, x.double().numpy())
    counts = [bar.get_height() for bar in stk.plot.samples(x[:, :1]).axes[0].patches]
    assert sum(counts) == 50
    curves = stk.plot.samples(normal(5, 9), most=3)
    assert [len(line) for line in lines(curves.axes[0])] == [9, 9, 9]
    with pytest.raises(stk.InvalidArgument, match="shape="):
        stk.plot.samples(normal(5, 2, 3, 4, 5))
    with pytest.raises(stk.InvalidArgument, match="12 entries"):
        stk.plot.samples(normal(5, 12), shape=(5, 5))
    with pytest.raises(stk.InvalidArgument, match="not finite"):
        stk.plot.samples(x / 0)


def test_a_sheet_leaves_failed_chains_out_and_weights_the_others():
    final = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    status = torch.tensor([0, 1, 0])
    log_weight = torch.tensor([[-50.0], [9.0], [0.0]])
    plain = stk.Draws(final[:, None], final, status, status)
    figure = stk.plot.samples(plain)
    assert np.array_equal(figure.axes[0].collections[0].get_offsets(), final[[0, 2]])
    assert "without 1 failed" in figure.axes[0].get_title()
    weighted = stk.Draws(final[:, None], final, status, status, {"log_weight": log_weight})
    figure = stk.plot.samples(weighted)
    assert np.array_equal(figure.axes[0].collections[0].get_offsets(), final[[2, 2]])
    assert "by weight" in figure.axes[0].get_title()
    rows = sheet._resampled(torch.tensor([0.1, 0.2, 0.7]).log().repeat_interleave(10))
    kinds = torch.bincount(rows // 10) / len(rows)
    assert kinds.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=1 / len(rows))


def test_pictures_draw_into_axes_of_ones_own():
    figure = matplotlib.figure.Figure()
    left, right = figure.subplots(1, 2)
    assert stk.plot.samples(normal(5, 2), axes=left) is figure
    assert stk.plot.field(NORMAL, bounds=(-1, 3, -1, 3), axes=right) is figure
    assert left.collections
    assert right.collections
    with pytest.raises(stk.InvalidArgument, match="axes"):
        stk.plot.samples(normal(5, 2), axes=figure)


def arrows(figure):
    (found,) = (c for c in figure.axes[0].collections if type(c).__name__ == "Quiver")
    return np.stack([found.X, found.Y], 1), np.stack([found.U, found.V], 1)


def check_arrows(figure, of):
    """The arrows have the direction of the function at their places."""
    places, found = arrows(figure)
    wanted = of(torch.tensor(places)).numpy()
    length = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    assert ((wanted * found).sum(1) / length).min() > 0.999


@pytest.mark.parametrize(
    ("centre", "std"), [((1.0, 1.0), 1.0), ((100.0, -50.0), 0.05), ((0.0, 0.0), 30.0)]
)
def test_a_density_is_found_wherever_it_is(centre, std):
    at = torch.tensor(centre)
    energy = stk.Energy(lambda x: ((x - at.to(x)) / std).square().sum(1) / 2 + 1e4, (2,))
    figure = stk.plot.field(energy)
    axes = figure.axes[0]
    for (low, high), middle in zip((axes.get_xlim(), axes.get_ylim()), centre, strict=True):
        assert 2.5 * std < middle - low < 5 * std
        assert 2.5 * std < high - middle < 5 * std
    check_arrows(figure, lambda x: at - x)
    with pytest.raises(AssertionError):
        check_arrows(figure, lambda x: x - at)


def test_the_density_under_a_constraint_is_that_of_the_users_space():
    """Of Gamma(3, 1) x Gamma(2, 1) the mode is at (2, 1); that of the free coordinates at (3, 2)."""
    law = Independent(Gamma(torch.tensor([3.0, 2.0]), torch.ones(2)), 1)
    free = stk.from_distribution(law).in_free_space()
    window = plane._zoomed(lambda z: free.energy(z.reshape(-1, 2)).reshape(z.shape[:-1]))
    mesh = plane._mesh(
        lambda z: free.energy(z.reshape(-1, 2)).reshape(z.shape[:-1]),
        free.constrain,
        plane._square(window, 200),
    )
    mode = mesh.places.reshape(-1, 2)[mesh.density.argmax()]
    assert mode == pytest.approx([2.0, 1.0], abs=0.15)
    wanted = law.log_prob(torch.tensor(mesh.places).float().clamp(min=1e-30)).double().exp().numpy()
    assert mesh.density == pytest.approx(wanted / wanted.max(), abs=2e-3)
    assert len(stk.plot.field(law).axes) == 1


def test_a_field_in_time_shows_its_flow_or_one_time():
    path = stk.Linear()

    def data(x, t):
        """Of data at (2.9, 2.9): every way ends there."""
        return torch.full_like(x, 2.9)

    field = stk.Diffusion(data, (2,), path, predicts="data")
    figure = stk.plot.field(field, chains=7)
    ways = figure.axes[0].lines
    assert len(ways) == 7
    for way in ways:
        x = np.stack(way.get_data(), 1)
        assert x[-1] == pytest.approx([2.9, 2.9], abs=1e-3)
        (a, b), (c, d) = (x - x[0]).T, x[-1] - x[0]
        assert np.abs(a * d - b * c).max() < 1e-2  # a straight line
    check_arrows(stk.plot.field(field, 0.5), lambda x: 2.9 - x)
    kept = stk.sample(field, stk.ProbabilityFlow(steps=6), chains=3, keep="all")
    shown = stk.plot.field(field, draws=kept)
    assert np.array_equal(
        np.stack(shown.axes[0].lines[1].get_data(), 1), kept.x[1].double().numpy()
    )


@pytest.mark.thorough
def test_the_window_of_a_flow_is_that_of_its_data_where_the_noise_is_wide():
    """EDM's noise has std 80, these data 1; the noise of VP has 1 too, and all of a way is shown."""
    edm = stk.EDM(sigma_min=0.002, sigma_max=80.0)
    for path, least, most in ((edm, 2.0, 6.0), (stk.VP(), 2.0, 6.0)):

        def data(x, t, path=path):
            a, s = path.alpha(t)[:, None], path.sigma(t)[:, None]
            return a * x / (a**2 + s**2)

        field = stk.Diffusion(data, (2,), path, predicts="data")
        for side in (
            stk.plot.field(field).axes[0].get_xlim,
            stk.plot.field(field).axes[0].get_ylim,
        ):
            assert least < -side()[0] < most
            assert least < side()[1] < most
    wide = stk.plot.field(field, bounds=(-9, 9, -8, 8)).axes[0]
    assert (*wide.get_xlim(), *wide.get_ylim()) == (-9, 9, -8, 8)
    point = stk.Diffusion(lambda x, t: torch.full_like(x, 2.9), (2,), edm, predicts="data")
    assert stk.plot.field(point).axes[0].get_xlim()[1] > 50
    with mock.patch.object(plane, "DOT", 0.0):  # a mutant: every way, whatever the noise
        shown = stk.plot.field(
            stk.Diffusion(lambda x, t: x / (1 + edm.sigma(t)[:, None] ** 2), (2,), edm)
        )
        assert shown.axes[0].get_xlim()[1] > 50


def test_dots_are_smaller_where_they_are_many():
    sizes = [
        float(stk.plot.samples(normal(n, 2)).axes[0].collections[0].get_sizes()[0])
        for n in (10, 400, 100_000)
    ]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("arviz") is None, reason="ArviZ is not installed")
def test_no_title_lies_on_another_panels_ticks(draws):
    """Of two rows: what is drawn of each panel, its title too, ends before the next."""

    def apart(figure):
        figure.canvas.draw()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        return not any(
            min(a.x1, b.x1) > max(a.x0, b.x0) + 1 and min(a.y1, b.y1) > max(a.y0, b.y0) + 1
            for a, b in itertools.combinations(boxes, 2)
        )

    assert apart(draws.plot())
    with mock.patch.object(matplotlib.figure.Figure, "set_layout_engine"):  # a mutant
        assert not apart(draws.plot())


@pytest.mark.parametrize("name", sorted(stk._MODULES - {"errors", "grids"}))
def test_a_public_package_lists_its_names_and_not_the_modules_beside_them(name):
    module = getattr(stk, name)
    assert dir(module) == sorted(module.__all__)
    for listed in dir(module):
        assert not inspect.ismodule(getattr(module, listed)) or listed in stk._MODULES


def test_conditions_networks_and_modes_are_as_in_sampling():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x, y):
            assert not self.training
            assert x.dtype == torch.float64
            return (self.scale * (x - y).square()).sum(1) / 2

    net = Net().train()
    field = stk.Energy(net, (2,))
    figure = stk.plot.field(field, cond={"y": torch.tensor([[4.0, -4.0]])})
    check_arrows(figure, lambda x: torch.tensor([4.0, -4.0]) - x)
    assert net.training
    assert net.scale.requires_grad


def test_a_field_that_is_no_plane_says_so():
    for wrong, said in (
        (stk.Energy(lambda x: x.square().sum(1), (3,)), r"events of shape \(2,\)"),
        (stk.load("ising"), "states"),
        (stk.Discrete(NORMAL, (0.0, 1.0)), "states"),
        (torch.distributions.Dirichlet(torch.ones(3)), r"events of shape \(2,\)"),
        (3.0, "a field"),
    ):
        with pytest.raises(stk.InvalidArgument, match=said):
            stk.plot.field(wrong)
    with pytest.raises(stk.InvalidArgument, match="no field in time"):
        stk.plot.field(NORMAL, 0.5)
    with pytest.raises(stk.InvalidArgument, match="four numbers"):
        stk.plot.field(NORMAL, bounds=(1, 0, 0, 1))
    nowhere = stk.Energy(lambda x: torch.full_like(x[:, 0], torch.inf), (2,))
    with pytest.raises(stk.InvalidArgument, match="no energy is finite"):
        stk.plot.field(nowhere)


def test_the_marginals_of_a_path_are_mixtures_of_normals():
    data = torch.tensor([-1.0, 1.0, 1.0])
    places = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    for path in (stk.VP(), stk.Linear()):
        for t in (0.2, 0.6):
            density = marginals.marginal(places, path.alpha(t) * data.double(), path.sigma(t))
            mean, square = ((density * places**k).sum() * 16 / 4000 for k in (1, 2))
            assert density.sum() * 16 / 4000 == pytest.approx(1, abs=1e-6)
            assert mean == pytest.approx(float(path.alpha(t)) / 3, abs=1e-6)
            assert square == pytest.approx(float(path.alpha(t) ** 2 + path.sigma(t) ** 2), abs=1e-6)
    shown = stk.plot.path(stk.VP(), data).axes[0].collections[0].get_array()
    assert shown.shape == (marginals.PLACES, marginals.TIMES)
    at = np.linspace(-1, 1, marginals.PLACES)
    ends = np.flatnonzero(shown[:, -1] > 0.4)
    reach = stk.plot.path(stk.VP(), data).axes[0].get_ylim()[1]
    assert {*np.round(at[ends] * reach, 0)} == {-1.0, 1.0}


def test_a_path_without_data_shows_its_coefficients():
    path = stk.Cosine()
    figure = stk.plot.path(stk.Diffusion(lambda x, t: x, (2,), path))
    alpha, sigma = lines(figure.axes[0])
    times = torch.linspace(0, 1, len(alpha), dtype=torch.float64)
    assert alpha == pytest.approx(path.alpha(times).numpy())
    assert sigma == pytest.approx(path.sigma(times).numpy())
    panels = stk.plot.path(path, torch.tensor([[1.0, -1.0]] * 9)).axes
    assert [axes.get_title() for axes in panels] == [f"t = {t:g}" for t in marginals.PANELS]
    assert np.asarray(panels[-1].collections[0].get_offsets()) == pytest.approx(
        np.array([[1.0, -1.0]] * 9), abs=1e-6
    )
    with pytest.raises(stk.InvalidArgument, match="Gaussian path"):
        stk.plot.path(NORMAL)
    with pytest.raises(stk.InvalidArgument, match=r"\(n,\)"):
        stk.plot.path(path, normal(5, 3))


def test_tensors_of_a_device_and_of_few_bits_are_shown(device):
    x = normal(6, 2).to(device)
    points = stk.plot.samples(x.bfloat16()).axes[0].collections[0].get_offsets()
    assert np.array_equal(points, x.bfloat16().double().cpu().numpy())
    draws = stk.sample(NORMAL, stk.MALA(0.3), chains=3, steps=5, device=device)
    with mock.patch.object(of_chains, "find_spec", return_value=None):
        assert shows(draws.plot().axes[1], draws.x[..., 0].double().cpu().numpy())
    assert stk.plot.field(NORMAL, draws=draws).axes


@pytest.mark.parametrize("kind", ["trace", "pairs"])
def test_of_many_chains_those_are_shown_that_are_well(kind):
    well = torch.arange(1000)[torch.arange(1000) % 3 == 1]
    shown = of_chains._told_apart(kind, well, 50)
    assert 1 < len(shown) < len(well)
    assert bool(torch.isin(shown, well).all())
    assert shown[0] == well[0]
    assert shown[-1] == well[-1]


@pytest.mark.parametrize("kind", of_chains.LEAST)
def test_a_picture_is_drawn_of_the_least_draws_that_it_needs(draws, kind):
    least = of_chains.LEAST[kind]
    enough = stk.Draws(draws.x[:, :least], draws.final, draws.status, draws.failed_at)
    with mock.patch.object(of_chains, "find_spec", return_value=None):
        enough.plot(kind)
    if least > 1:
        few = stk.Draws(draws.x[:, : least - 1], draws.final, draws.status, draws.failed_at)
        with pytest.raises(stk.InvalidArgument, match=f"at least {least} draws"):
            few.plot(kind)
