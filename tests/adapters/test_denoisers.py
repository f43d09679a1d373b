"""Denoisers and velocities of azula, flow_matching, torchcfm and k-diffusion: values, direction of time, parametrisation."""

import importlib.util
import math
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

import scoretk as stk
from scoretk.adapters.schedules import Scheduled
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields import EDM, VP, Cosine, Linear

BRINGS = [
    (
        "a denoiser of azula",
        "stk.from_azula(denoiser, event_shape)",
        "its posterior's mean, its schedules",
        "azula==0.11.1",
        ["TestAzula.test_values_are_its_own_against_the_time"],
    ),
    (
        "a velocity model of flow_matching",
        "stk.from_flow_matching(model, event_shape, path)",
        "its `velocity_to_target`, its `ODESolver`",
        "flow_matching==1.0.10",
        [
            "TestFlowMatching.test_values_are_its_own_on_its_path",
            "TestFlowMatching.test_its_solver_goes_the_same_way",
        ],
    ),
    (
        "a velocity model of torchcfm",
        "stk.from_torchcfm(model, event_shape, matcher)",
        "what its matchers regress to, for Gaussian data",
        "torchcfm==1.0.7",
        ["TestTorchCFM.test_the_matchers_regression_is_the_fields_velocity"],
    ),
    (
        "a wrapped model of k-diffusion",
        "stk.from_k_diffusion(denoiser, event_shape)",
        "its wrappers' values",
        "k-diffusion==0.1.1.post1",
        ["TestKDiffusion.test_a_model_on_a_table", "TestKDiffusion.test_a_model_of_v"],
    ),
]

D, N, MEAN, STD = 2, 5, 0.4, 0.6
X = torch.linspace(-1.5, 2, N * D).reshape(N, D)
T = 0.35


def importing(name):
    with warnings.catch_warnings():  # of the library itself, at its first import
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def denoised(x, alpha, sigma):
    """E[x_1 | x_t = x] of N(MEAN, STD^2) data."""
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def velocity(x, path, t):
    """dx/dt of the probability flow of these data on a path, from their exact denoiser."""
    alpha, sigma, dalpha, dsigma = (
        v.to(x)[:, None] for v in path(torch.as_tensor(t).expand(len(x)))
    )
    data = denoised(x, alpha, sigma)
    return dalpha * data + dsigma * (x - alpha * data) / sigma


def flows_to_the_data(field):
    """Draws of the probability flow have the data's moments, wherever it starts."""
    draws = stk.sample(field, stk.ProbabilityFlow(steps=24), chains=4000).final
    end = float(field.path.sigma(1.0))  # a path may end above sigma = 0
    assert abs(float(draws.mean()) - MEAN) < 0.04
    assert abs(float(draws.std()) - math.hypot(STD, end)) < 0.03


def test_a_path_of_functions_has_the_derivatives_and_the_inverse_of_the_path():
    path, known = Scheduled(lambda t: (VP().alpha(t), VP().sigma(t))), VP()
    t = torch.linspace(0.01, 0.99, 7, dtype=torch.float64)
    for name in ("alpha", "sigma", "dalpha", "dsigma", "sigma_dsigma"):
        torch.testing.assert_close(getattr(path, name)(t), getattr(known, name)(t))
    torch.testing.assert_close(path.t(known.log_snr(t)), t)
    torch.testing.assert_close(path.dalpha(0.3), known.dalpha(0.3))
    end = Scheduled(lambda t: (t, (1 - t**2).sqrt()))
    assert float(end.dsigma(1.0)) == -math.inf
    assert float(end.sigma_dsigma(1.0)) == pytest.approx(-1, abs=1e-5)


class TestAzula:
    SCHEDULES = ("VPSchedule", "VESchedule", "CosineSchedule", "RectifiedSchedule")

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_values_are_its_own_against_the_time(self, name):
        azula = importing("azula.denoise")
        schedule = getattr(importing("azula.noise"), name)()
        covariance = importing("azula.linalg.covariance")
        denoiser = azula.GaussianDenoiser(
            torch.full((D,), MEAN), covariance.IsotropicCovariance(torch.tensor(STD**2)), schedule
        )
        field = stk.from_(denoiser, (D,))
        alpha, sigma = schedule(torch.tensor(1 - T))
        torch.testing.assert_close(field.denoise(X, T), denoised(X, alpha, sigma))
        torch.testing.assert_close(field.denoise(X, T), denoiser(X, torch.tensor(1 - T)).mean)
        torch.testing.assert_close(field.path.alpha(T).float(), alpha)
        score = (alpha * denoised(X, alpha, sigma) - X) / sigma**2
        torch.testing.assert_close(field.score(X, T), score, rtol=1e-3, atol=1e-4)
        flows_to_the_data(field)

    def test_a_denoiser_of_one_time_is_asked_for_each(self):
        azula, noise = importing("azula.denoise"), importing("azula.noise")
        covariance = importing("azula.linalg.covariance")
        denoiser = azula.GaussianDenoiser(
            torch.full((D,), MEAN),
            covariance.IsotropicCovariance(torch.tensor(STD**2)),
            noise.VPSchedule(),
        )
        field, x, t = stk.from_azula(denoiser, (D,)), X[[3, 0, 1]], torch.tensor([0.9, 0.2, 0.9])
        expected = torch.cat([denoiser(x[i : i + 1], 1 - t[i]).mean for i in range(3)])
        torch.testing.assert_close(field.denoise(x, t), expected)
        torch.testing.assert_close(field.denoise(x[:2], t[:2]), expected[:2])
        with pytest.raises(RuntimeError):
            denoiser(x[:2], 1 - t[:2])

    def test_a_network_with_conditions_and_times_a_row(self):
        azula, noise = importing("azula.denoise"), importing("azula.noise")

        class Backbone(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.Parameter(torch.tensor(0.5))

            def forward(self, x, t, label):
                return self.w * x * torch.tanh(t).reshape(-1, 1) + label[:, None]

        denoiser = azula.KarrasDenoiser(Backbone(), noise.VPSchedule())
        field, label = stk.from_azula(denoiser, (D,)), torch.arange(float(N))
        t = torch.linspace(0.1, 0.9, N)
        with torch.no_grad():
            expected = denoiser(X, 1 - t, label=label).mean
            torch.testing.assert_close(field.denoise(X, t, label=label), expected)
        draws = stk.sample(field, stk.ProbabilityFlow(steps=3), chains=N, cond={"label": label})
        assert draws.failures == {}


class TestFlowMatching:
    def scheduler(self, name):
        schedulers = importing("flow_matching.path.scheduler")
        return getattr(schedulers, name)(*((3,) if name.startswith("Poly") else ()))

    @pytest.mark.parametrize(
        "name", ["CondOTScheduler", "CosineScheduler", "VPScheduler", "PolynomialConvexScheduler"]
    )
    def test_values_are_its_own_on_its_path(self, name):
        scheduler = self.scheduler(name)
        path = importing("flow_matching.path").AffineProbPath(scheduler)
        wrapper = importing("flow_matching.utils").ModelWrapper
        model = wrapper(
            exact := Exactly(Scheduled(lambda t: (scheduler(t).alpha_t, scheduler(t).sigma_t)))
        )
        field = stk.from_(model, (D,), path)
        rows = torch.full((N,), T)
        torch.testing.assert_close(field.velocity(X, T), exact(X, rows))
        torch.testing.assert_close(field.velocity(X, T), model(X, rows))
        found = scheduler(torch.tensor(T))
        torch.testing.assert_close(
            field.denoise(X, T), denoised(X, found.alpha_t, found.sigma_t), rtol=1e-4, atol=1e-4
        )
        # its own conversion, by its public method
        own = path.velocity_to_target(velocity=field.velocity(X, T), x_t=X, t=torch.tensor(T))
        torch.testing.assert_close(field.denoise(X, T), own, rtol=1e-4, atol=1e-4)
        if not name.startswith("Poly"):  # whose velocity says nothing of the data at t = 0
            flows_to_the_data(field)

    @pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6])
    def test_as_many_times_as_there_are_coordinates_are_times(self, rows):
        """A model of one time takes them for numbers of x without an error."""
        field = stk.from_flow_matching(lambda x, t, gain: t * x * gain[:, None], (4,))
        generator = torch.Generator().manual_seed(rows)
        x, t, gain = (torch.rand(rows, *shape, generator=generator) for shape in ((4,), (), ()))
        expected = t[:, None] * x * gain[:, None]
        torch.testing.assert_close(field.velocity(x, t, gain=gain), expected)

    def test_models_that_take_one_time_are_asked_for_each(self):
        path = importing("flow_matching.path.scheduler")
        wrapper = importing("flow_matching.utils").ModelWrapper

        class OneTime(torch.nn.Module):
            def forward(self, x, t, gain):
                return float(t) * x * gain[:, None]

        x, t, gain = X[:3], torch.tensor([0.7, 0.2, 0.7]), torch.tensor([1.0, 2.0, 3.0])
        field = stk.from_flow_matching(wrapper(OneTime()), (D,))
        expected = t[:, None] * x * gain[:, None]
        torch.testing.assert_close(field.velocity(x, t, gain=gain), expected)
        old, new = path.CondOTScheduler(), path.PolynomialConvexScheduler(3)
        inner = Exactly(Scheduled(lambda t: (old(t).alpha_t, old(t).sigma_t)))
        turned = path.ScheduleTransformedModel(ByRows(inner), old, new)
        field = stk.from_(turned, (D,), importing("flow_matching.path").AffineProbPath(new))
        rows = torch.tensor([0.7, 0.2])
        own = torch.cat([turned(x=x[i : i + 1], t=rows[i]) for i in range(2)])
        torch.testing.assert_close(field.velocity(x[:2], rows), own)
        exact = Exactly(Scheduled(lambda t: (new(t).alpha_t, new(t).sigma_t)))
        torch.testing.assert_close(own, exact(x[:2], rows), rtol=1e-3, atol=1e-3)
        mutant = turned(x=x[:2], t=rows)  # a time a row, taken for one an entry
        assert float((mutant - own).abs().max()) > 1e-2

    def test_what_stands_beside_a_base_is_looked_at(self):
        importing("flow_matching")
        base = torch.distributions.MultivariateNormal(torch.ones(D), torch.eye(D))
        with pytest.raises(InvalidArgument, match="path: expected an AffineProbPath"):
            stk.from_flow_matching(lambda x, t: x, (D,), "straight", base=base)

    def test_its_solver_goes_the_same_way(self):
        solver = importing("flow_matching.solver").ODESolver
        model = importing("flow_matching.utils").ModelWrapper(Exactly(Linear()))
        grid = torch.linspace(0, 1, 9)[:-1]
        with torch.no_grad():
            theirs = solver(model).sample(X, step_size=None, method="euler", time_grid=grid)
        field = stk.from_flow_matching(model, (D,))
        found = stk.sample(
            field, stk.ProbabilityFlow("euler", grid=grid.tolist()), chains=N, init=X
        ).final
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)


class Exactly(torch.nn.Module):
    """The exact velocity of Gaussian data on a path."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x, t):
        return velocity(x, self.path, t.clamp(1e-4, 1 - 1e-4))


class ByRows(torch.nn.Module):
    """A model of a time a row that is asked with one for all."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t):
        return self.model(x, t.expand(len(x)))


class TestTorchCFM:
    @pytest.mark.parametrize("method", ["compute_mu_t", "compute_sigma_t", "sample_xt"])
    def test_a_matcher_with_a_path_of_its_own_is_refused(self, method):
        kind = importing("torchcfm.conditional_flow_matching").TargetConditionalFlowMatcher
        own = type("Own", (kind,), {method: lambda self, *given: given[0]})
        for base in (None, torch.distributions.MultivariateNormal(torch.ones(D), torch.eye(D))):
            with pytest.raises(InvalidArgument, match=f"It has {method}"):
                stk.from_torchcfm(lambda t, x: x, (D,), own(0.1), base=base)
        stk.from_torchcfm(lambda t, x: x, (D,), type("Same", (kind,), {"note": 1})(0.1))

    def matcher(self, name, *args):
        return getattr(importing("torchcfm.conditional_flow_matching"), name)(*args)

    @pytest.mark.parametrize(
        ("name", "args"),
        [
            ("ConditionalFlowMatcher", (0.0,)),
            ("ConditionalFlowMatcher", (0.3,)),
            ("TargetConditionalFlowMatcher", (0.2,)),
            ("VariancePreservingConditionalFlowMatcher", (0.0,)),
        ],
    )
    def test_the_matchers_regression_is_the_fields_velocity(self, name, args):
        """In the mean over x_1 given x_t, of Gaussian data by linear regression: what training would find."""
        matcher, n = self.matcher(name, *args), 100_000
        generator = torch.Generator().manual_seed(0)
        x0, x1 = (torch.randn(n, 1, generator=generator) for _ in range(2))
        x1 = MEAN + STD * x1
        t = torch.full((n,), T)
        eps = torch.randn(n, 1, generator=generator)
        xt = matcher.sample_xt(x0, x1, t, eps)
        target = matcher.compute_conditional_flow(x0, x1, t, xt)
        slope = ((xt - xt.mean()) * (target - target.mean())).mean() / xt.var()
        field = stk.from_torchcfm(lambda t, x: x, (1,), matcher)
        expected = velocity(torch.tensor([[0.0], [1.0]]), field.path, T)[:, 0]
        assert float(expected[1] - expected[0]) == pytest.approx(float(slope), abs=0.02)
        fitted = target.mean() - slope * xt.mean()
        assert float(expected[0]) == pytest.approx(float(fitted), abs=0.02)
        exact = stk.from_torchcfm(
            lambda t, x: velocity(x, field.path, t.clamp(1e-4, 1 - 1e-4)), (1,), matcher
        )
        flows_to_the_data(exact)

    def test_models_are_called_as_it_calls_them(self):
        models = importing("torchcfm.models")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            mlp = models.MLP(dim=D, time_varying=True)
        field, t = stk.from_(mlp, (D,)), torch.full((N, 1), T)
        torch.testing.assert_close(
            field.velocity(X, T), mlp(torch.cat([X, t], 1)).detach(), atol=1e-5, rtol=1e-4
        )
        wrapped = importing("torchcfm.utils").torch_wrapper(mlp)
        torch.testing.assert_close(
            field.velocity(X, T), wrapped(torch.tensor(T), X).detach(), atol=1e-5, rtol=1e-4
        )

    def test_a_coupling_leaves_a_velocity_only(self):
        matcher = self.matcher("ExactOptimalTransportConditionalFlowMatcher", 0.1)
        field = stk.from_torchcfm(lambda t, x: x, (D,), matcher)
        torch.testing.assert_close(field.velocity(X, T), X)
        with pytest.raises(MissingCapability, match="velocity"):
            field.score(X, T)
        with pytest.raises(InvalidArgument, match="matcher"):
            stk.from_torchcfm(lambda t, x: x, (D,), "ot")
        assert (
            stk.from_torchcfm(
                lambda t, x: x, (D,), self.matcher("VariancePreservingConditionalFlowMatcher")
            ).path
            == Cosine()
        )


@pytest.fixture(scope="module")
def external():
    """k-diffusion's own file of wrappers, without the image tools that its package imports beside them."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        pytest.skip("k_diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    sampling, utils = (
        types.ModuleType("k_diffusion.sampling"),
        types.ModuleType("k_diffusion.utils"),
    )
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sampling.append_zero = lambda x: torch.cat([x, x.new_zeros([1])])
    package.sampling, package.utils = sampling, utils
    with pytest.MonkeyPatch.context() as patch:
        for module in (package, sampling, utils):
            patch.setitem(sys.modules, module.__name__, module)
        path = Path(package.__path__[0]) / "external.py"
        spec = importlib.util.spec_from_file_location("k_diffusion.external", path)
        made = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "k_diffusion.external", made)
        spec.loader.exec_module(made)
        yield made


class TestKDiffusion:
    def test_a_model_on_a_table(self, external):
        table = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)

        def model(x, k):
            low = k.floor().long()
            alpha = (
                torch.lerp(table[low].log(), table[(low + 1).clamp(max=999)].log(), k - low)
                .mul(0.5)
                .exp()[:, None]
            )
            sigma = (1 - alpha**2).sqrt()
            return (x - alpha * denoised(x, alpha, sigma)) / sigma

        denoiser = external.DiscreteEpsDDPMDenoiser(model, table, quantize=False)
        field = stk.from_(denoiser, (D,))
        assert field.path == EDM(float(denoiser.sigma_min), float(denoiser.sigma_max))
        sigma = field.path.sigma(torch.full((N,), T))
        torch.testing.assert_close(field.denoise(X, T), denoiser(X, sigma))
        torch.testing.assert_close(
            field.denoise(X, T), denoised(X, torch.ones(()), sigma[:, None]), rtol=1e-3, atol=1e-3
        )
        flows_to_the_data(field)

    def test_a_model_of_v(self, external):
        denoiser = external.VDenoiser(lambda x, t: x * torch.cos(t)[:, None])
        field = stk.from_k_diffusion(denoiser, (D,))
        assert field.path == EDM()
        torch.testing.assert_close(
            field.denoise(X, T), denoiser(X, field.path.sigma(torch.full((N,), T)))
        )
        with pytest.raises(InvalidArgument, match="k-diffusion"):
            stk.from_k_diffusion(lambda x, s: x, (D,))

    def test_a_network_that_is_not_wrapped_is_refused(self):
        """Whose output is no denoised x."""
        kind = type(
            "ImageDenoiserModelV1", (torch.nn.Module,), {"__module__": "k_diffusion.models"}
        )
        with pytest.raises(InvalidArgument, match=r"k_diffusion\.layers\.Denoiser\(model"):
            stk.from_k_diffusion(kind(), (D,))

    def test_levels_that_end_at_0_are_times_without_it(self):
        sigmas = torch.tensor([80.0, 5.0, 0.5, 0.002, 0.0])
        times = stk.grids.table(stk.EDM(), sigmas[:-1])
        torch.testing.assert_close(
            stk.EDM().sigma(times), sigmas[:-1], check_dtype=False, rtol=1e-4, atol=1e-6
        )


def test_what_is_no_denoiser_of_azula_is_refused():
    with pytest.raises(InvalidArgument, match=r"azula\.denoise\.Denoiser"):
        stk.from_azula(torch.nn.Identity(), (D,))
