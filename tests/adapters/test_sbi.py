"""Posteriors of sbi: the potential, the prior's support, an observation or one a chain."""

import warnings

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields import Constrained

BRINGS = [
    (
        "a posterior, or a potential, of sbi",
        "stk.from_sbi(posterior, x)",
        "its potential; its own MCMC on two moons and SLCP (`slow`)",
        "sbi==0.27.0",
        ["test_values_are_the_potentials", "test_our_draws_agree_with_its_own_mcmc"],
    )
]

pytestmark = pytest.mark.filterwarnings("ignore")
D, N = 2, 6


@pytest.fixture(scope="module")
def sbi():
    with warnings.catch_warnings():  # of the library itself, at its first import
        warnings.simplefilter("ignore")
        pytest.importorskip("sbi")
        import sbi.inference
        import sbi.neural_nets
        import sbi.utils
    return sbi


def theta():
    return torch.linspace(-0.8, 0.7, N * D).reshape(N, D)


def rows():
    return torch.linspace(-1, 1, N * 3).reshape(N, 3)


PRIORS = {
    "box": lambda sbi: sbi.utils.BoxUniform(-torch.ones(D), torch.ones(D)),
    "normal": lambda sbi: td.MultivariateNormal(torch.zeros(D), torch.eye(D)),
}


def simulated(prior):
    samples = prior.sample((50,))
    return samples, torch.randn(50, 3)


def potential_of(sbi, method, prior):
    """The potential of an untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        samples, x = simulated(prior)
        if method == "npe":
            net = sbi.neural_nets.posterior_nn("maf", hidden_features=8, num_transforms=2)
            make = sbi.inference.posterior_estimator_based_potential
        elif method == "nle":
            net = sbi.neural_nets.likelihood_nn("maf", hidden_features=8, num_transforms=2)
            make = sbi.inference.likelihood_estimator_based_potential
        else:
            net = sbi.neural_nets.classifier_nn("mlp", hidden_features=8)
            make = sbi.inference.ratio_estimator_based_potential
        estimator = net(samples, x).eval()
        return make(estimator, prior, None)[0]


@pytest.mark.parametrize("prior_name", PRIORS)
@pytest.mark.parametrize("method", ["npe", "nle", "nre"])
def test_values_are_the_potentials(sbi, method, prior_name):
    prior = PRIORS[prior_name](sbi)
    potential = potential_of(sbi, method, prior)
    one = rows()[1]
    field = stk.from_sbi(potential, one)
    potential.set_x(one)
    expected = -potential(theta(), track_gradients=False)
    users = field.field if isinstance(field, Constrained) else field
    assert isinstance(field, Constrained) == (prior_name == "box")
    torch.testing.assert_close(users.energy(theta()), expected, rtol=1e-5, atol=1e-5)
    x = theta().requires_grad_()
    (gradient,) = torch.autograd.grad(potential(x).sum(), x)
    torch.testing.assert_close(users.score(theta()), gradient, rtol=1e-4, atol=1e-4)
    by_row = stk.from_sbi(potential_of(sbi, method, prior))
    users = by_row.field if isinstance(by_row, Constrained) else by_row
    found = users.energy(theta(), x_o=rows())
    torch.testing.assert_close(found[1:2], expected[1:2], rtol=1e-4, atol=1e-4)
    draws = stk.sample(by_row, stk.MALA(0.05), chains=N, steps=3, cond={"x_o": rows()})
    assert draws.failures == {}
    if prior_name == "box":
        assert bool((draws.x.abs() <= 1).all())


def test_a_posterior_has_its_own_observation_and_keeps_it(sbi):
    prior = PRIORS["box"](sbi)
    potential = potential_of(sbi, "nle", prior)
    potential.set_x(rows()[0])
    posterior = sbi.inference.MCMCPosterior(potential, proposal=prior, theta_transform=None)
    field = stk.from_(posterior)
    other = stk.from_(posterior, rows()[2])
    gap = field.field.energy(theta()) - other.field.energy(theta())
    assert float(gap.abs().max()) > 1e-3
    torch.testing.assert_close(posterior.potential_fn.x_o, rows()[:1])


def posterior_of(sbi, prior, x=None):
    potential = potential_of(sbi, "nle", prior)
    potential.set_x(x)
    return sbi.inference.MCMCPosterior(potential, proposal=prior, theta_transform=None)


def test_a_default_observation_counts_and_not_the_last_that_was_asked_for(sbi):
    prior = PRIORS["box"](sbi)
    potential = potential_of(sbi, "nle", prior)
    truth = [stk.from_sbi(potential, row).field.energy(theta()) for row in rows()]
    posterior = posterior_of(sbi, prior, rows()[0])
    posterior.set_default_x(rows()[2])
    posterior.potential(theta(), x=rows()[3])  # which leaves it in the potential
    torch.testing.assert_close(stk.from_sbi(posterior).field.energy(theta()), truth[2])
    torch.testing.assert_close(stk.from_sbi(posterior, rows()[1]).field.energy(theta()), truth[1])
    torch.testing.assert_close(posterior.potential_fn.x_o, rows()[3:4])
    free = posterior_of(sbi, prior)
    free.potential(theta(), x=rows()[3])
    by_row = stk.from_sbi(free).field
    found = by_row.energy(theta(), x_o=rows()[2].expand(N, -1))
    torch.testing.assert_close(found, truth[2], rtol=1e-4, atol=1e-4)


def test_our_sampler_keeps_the_default_and_its_own_observation(sbi):
    prior = PRIORS["box"](sbi)
    posterior = posterior_of(sbi, prior, rows()[0])
    posterior.set_default_x(rows()[2])
    posterior.potential(theta(), x=rows()[3])
    ours = stk.to_sbi(posterior, stk.MALA(0.1), chains=20, steps=10)
    torch.testing.assert_close(ours.default_x, rows()[2:3])
    run = {"solver": stk.MALA(0.1), "chains": 20, "steps": 10}
    expected = stk.sample(stk.from_sbi(posterior, rows()[2]), **run).x[:, -1]
    torch.testing.assert_close(ours.sample((20,)), expected)
    posterior.potential(theta(), x=rows()[4])  # theirs is theirs
    again = stk.to_sbi(posterior, stk.MALA(0.1), chains=20, steps=10)
    torch.testing.assert_close(again.sample((20,)), expected)
    assert ours.sample().shape == (D,)
    with pytest.raises(TypeError):
        ours.sample((20,), num_chains=3)


def test_each_call_of_our_sampler_has_noise_of_its_own(sbi):
    """As those of sbi do; calls with one seed would be correlated over observations."""
    posterior = posterior_of(sbi, PRIORS["box"](sbi), rows()[0])

    def calls(seed):
        ours = stk.to_sbi(posterior, stk.MALA(0.3), chains=20, steps=10, seed=seed)
        batch = ours.sample_batched((20,), x=rows()[:1])[:, 0]
        return [batch, ours.sample((20,)), ours.sample((20,))]

    found = calls(5)
    assert all(map(torch.equal, found, calls(5)))
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert not torch.equal(found[first], found[second])
    assert not torch.equal(found[0], calls(6)[0])


@pytest.mark.parametrize("method", ["npe", "nle"])
def test_the_log_density_of_our_sampler_is_the_posteriors_own(sbi, method):
    prior = PRIORS["box"](sbi)
    potential = potential_of(sbi, method, prior)
    if method == "npe":
        with torch.random.fork_rng():
            posterior = sbi.inference.DirectPosterior(potential.posterior_estimator, prior)
    else:
        posterior = sbi.inference.MCMCPosterior(potential, proposal=prior, theta_transform=None)
    posterior.set_default_x(rows()[2])
    ours = stk.to_sbi(posterior, stk.MALA(0.1), chains=20, steps=10)
    options = {"leakage_correction_params": {"num_rejection_samples": 50}, "norm_posterior": False}
    options = options if method == "npe" else {}
    with torch.random.fork_rng():
        found = ours.log_prob(theta(), **options)
        torch.testing.assert_close(found, posterior.log_prob(theta(), **options))
        other = ours.log_prob(theta(), x=rows()[3], **options)
        torch.testing.assert_close(other, posterior.log_prob(theta(), x=rows()[3], **options))
    assert float((found - other).abs().max()) > 1e-3
    of_potential = stk.to_sbi(potential, stk.MALA(0.1))
    with pytest.raises(MissingCapability, match=r"\.potential\(theta, x\)"):
        of_potential.log_prob(theta(), x=rows()[3])


def test_a_prior_of_sbi_names_its_adapter(sbi):
    with pytest.raises(InvalidArgument, match=r"BoxUniform: scoretk\.from_distribution"):
        stk.from_sbi(PRIORS["box"](sbi))


def test_several_observations_in_one_run_are_each_its_own(sbi):
    prior = PRIORS["box"](sbi)
    posterior = posterior_of(sbi, prior, rows()[0])
    run = {"chains": 20, "steps": 10, "init": torch.zeros(60, D)}
    ours = stk.to_sbi(posterior, stk.ULA(1e-8), **run)
    assert ours.sample_batched((5, 4), x=rows()[:3]).shape == (5, 4, 3, D)
    torch.testing.assert_close(
        ours.sample_batched((20,), x=rows()[:3]), torch.zeros(20, 3, D), rtol=0, atol=1e-2
    )
    seen = []

    def potential(theta, x_o):
        seen.append(x_o.clone())
        return -((theta - x_o) ** 2).sum(1) / 0.02

    shifted = sbi.inference.potentials.base_potential.CustomPotentialWrapper(potential, prior)
    sampler = stk.to_sbi(shifted, stk.MALA(0.05), chains=20, steps=100, warmup=200)
    at = torch.tensor([[0.5, -0.5], [0.0, 0.3], [-0.4, 0.4]])
    found = sampler.sample_batched((100,), x=at)
    torch.testing.assert_close(found.mean(0), at, rtol=0, atol=0.05)  # five errors of it
    assert len(seen) > 0


def test_a_potential_by_chance_and_chains_that_fail_are_refused(sbi):
    prior = PRIORS["box"](sbi)
    wrap = sbi.inference.potentials.base_potential.CustomPotentialWrapper
    noisy = wrap(lambda theta, x_o: theta.sum(1) * torch.rand(()), prior, torch.zeros(1, 2))
    with pytest.raises(InvalidArgument, match="a function of the point"):
        stk.from_sbi(noisy)
    nowhere = wrap(lambda theta, x_o: theta.sum(1) + torch.nan, prior, torch.zeros(1, 2))
    with pytest.raises(stk.ScoretkError):
        stk.to_sbi(nowhere, stk.ULA(0.1), chains=4, steps=3).sample((2,))


def test_our_solvers_are_a_sampler_of_its(sbi):
    prior = PRIORS["box"](sbi)
    potential = potential_of(sbi, "nle", prior)
    theirs = stk.to_sbi(potential, stk.MALA(0.1), chains=20, steps=10)
    assert isinstance(theirs, sbi.inference.posteriors.base_posterior.NeuralPosterior)
    found = theirs.sample((15, 2), x=rows()[1])
    assert found.shape == (15, 2, D)
    draws = stk.sample(stk.from_sbi(potential, rows()[1]), stk.MALA(0.1), chains=20, steps=10)
    torch.testing.assert_close(found.reshape(30, D)[:20], draws.x[:, -1])
    torch.testing.assert_close(found.reshape(30, D)[20:], draws.x[:10, 0])
    assert theirs.potential(found.reshape(30, D), x=rows()[1]).isfinite().all()
    with pytest.raises(InvalidArgument, match="steps=50 or more"):
        theirs.sample((1000,), x=rows()[1])


@pytest.mark.parametrize("method", ["npe", "nle"])
def test_a_prior_that_lives_on_a_part_of_what_it_says_is_refused(sbi, method):
    """`1 + 2 u` of a uniform u says to be on all of R: the potential has mass beyond."""
    one = td.Independent(td.Uniform(torch.zeros(2), torch.ones(2)), 1)
    moved = td.TransformedDistribution(one, [td.AffineTransform(1.0, 2.0)])
    each = td.TransformedDistribution(
        td.Uniform(torch.zeros(1), torch.ones(1)), [td.AffineTransform(1.0, 2.0)]
    )
    with torch.random.fork_rng():  # it draws
        several = sbi.utils.MultipleIndependent([each, td.Normal(torch.zeros(1), torch.ones(1))])
    x = torch.zeros(1, 3)
    for prior in (moved, several):
        potential = potential_of(sbi, method, prior)
        with pytest.raises(InvalidArgument, match="a prior that says where it lives, or support="):
            stk.from_sbi(potential, x)
    box = td.constraints.interval(1.0, 3.0)
    field = stk.from_sbi(potential_of(sbi, method, moved), x, support=box)
    draws = stk.sample(field, stk.MALA(0.5), chains=8, steps=10).x
    assert bool(((draws >= 1) & (draws <= 3)).all())
    wide = td.TransformedDistribution(PRIORS["normal"](sbi), [td.AffineTransform(1.0, 2.0)])
    assert not isinstance(stk.from_sbi(potential_of(sbi, method, wide), x), Constrained)


def test_what_is_no_posterior_is_refused(sbi):
    with pytest.raises(InvalidArgument, match="posterior of sbi"):
        stk.from_sbi(lambda theta: theta)
    potential = potential_of(sbi, "nle", PRIORS["box"](sbi))
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_sbi"):
        stk.sample(potential, chains=2)


def two_moons(sbi):
    """The likelihood of the two moons in closed form, as a potential of sbi."""
    prior = PRIORS["box"](sbi)

    def potential(theta, x_o):
        shift = torch.stack(
            [-(theta.sum(-1).abs()) / 2**0.5, (theta[..., 1] - theta[..., 0]) / 2**0.5], -1
        )
        p = x_o - shift - torch.tensor([0.25, 0.0])
        r = p.square().sum(-1).sqrt()
        inside = p[..., 0] > 0
        value = -((r - 0.1) ** 2) / (2 * 0.01**2) - r.log()
        return torch.where(inside, value, -torch.inf)

    from sbi.inference.potentials.base_potential import CustomPotentialWrapper

    return CustomPotentialWrapper(potential, prior, torch.zeros(1, 2)), prior


def slcp(sbi):
    """Simple likelihood, complex posterior: four points of a normal law whose covariance has four signs of its parameters.

    Papamakarios, Sterratt, Murray, "Sequential neural likelihood" (2019).
    """
    prior = sbi.utils.BoxUniform(-3 * torch.ones(5), 3 * torch.ones(5))
    observed = torch.tensor([[1.4, -3.5, -0.1, -3.1, 0.9, -2.4, 0.6, -2.2]])

    def potential(theta, x_o):
        across, along = (theta[:, i, None].square() for i in (2, 3))
        rho = theta[:, 4, None].tanh()
        left = x_o.reshape(-1, 4, 2) - theta[:, None, :2]
        u, v = left[..., 0] / across, left[..., 1] / along
        quadratic = (u.square() - 2 * rho * u * v + v.square()) / (1 - rho.square())
        return (-quadratic / 2 - (across * along * (1 - rho.square()).sqrt()).log()).sum(1)

    from sbi.inference.potentials.base_potential import CustomPotentialWrapper

    return CustomPotentialWrapper(potential, prior, observed), prior


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", [two_moons, slcp])
def test_our_draws_agree_with_its_own_mcmc(sbi, task):
    """A classifier tells the draws of both no better than by chance (C2ST)."""
    potential, prior = task(sbi)
    from sbi.utils.metrics import c2st

    with torch.random.fork_rng():
        torch.manual_seed(0)
        posterior = sbi.inference.MCMCPosterior(
            potential,
            proposal=prior,
            # A wrapped function says nothing of the prior: without its transform the chains leave the box.
            theta_transform=sbi.utils.mcmc_transform(prior),
            method="slice_np_vectorized",
            num_chains=100,
            thin=5,
            warmup_steps=200,
        )
        theirs = posterior.sample((1000,), x=potential.x_o, show_progress_bars=False)
        field = stk.from_sbi(posterior)
        draws = stk.sample(field, stk.ParallelTempering(), chains=250, steps=400, warmup=300)
        assert draws.failures == {}
        ours = draws.x[:, ::100].flatten(0, 1)[:1000]
        score = float(c2st(ours, theirs))
        folded = float(c2st(ours.abs(), theirs))
    assert score < 0.6
    assert folded > 0.65  # draws folded onto one of the modes are told apart


@pytest.mark.parametrize("method", ["npe", "nle"])
@pytest.mark.parametrize(
    "x", [torch.zeros(1, 4), torch.full((1, 3), float("nan"))], ids=["width", "not a number"]
)
def test_an_observation_that_does_not_fit_is_told(sbi, method, x):
    potential = potential_of(sbi, method, PRIORS["normal"](sbi))
    with pytest.raises(stk.InvalidArgument, match="An observation has the shape of one x"):
        stk.from_sbi(potential, x)


def test_rows_of_observations_that_are_missing_or_do_not_fit_are_told(sbi):
    field = stk.from_sbi(potential_of(sbi, "npe", PRIORS["normal"](sbi)))
    with pytest.raises(stk.InvalidArgument, match="an observation a chain"):
        stk.sample(field, stk.MALA(0.1), chains=N, steps=2)
    with pytest.raises(stk.InvalidArgument, match="An observation has the shape of one x"):
        stk.sample(field, stk.MALA(0.1), chains=N, steps=2, cond={"x_o": torch.zeros(N, 5)})


def test_an_ensemble_has_one_observation(sbi):
    """Its members would take rows for trials of one."""
    prior = PRIORS["box"](sbi)
    whole = sbi.inference.EnsemblePosterior([posterior_of(sbi, prior, rows()[0]) for _ in "ab"])
    with pytest.raises(stk.InvalidArgument, match="an observation, of an ensemble"):
        stk.from_sbi(whole)
    field = stk.from_sbi(whole, rows()[1])
    expected = -whole.set_default_x(rows()[1]).potential(theta(), track_gradients=False)
    torch.testing.assert_close(field.field.energy(theta()), expected)
