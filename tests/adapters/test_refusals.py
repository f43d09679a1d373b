"""What a library would raise by itself, or nobody: told in this package's words, with what to do."""

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.errors import InvalidArgument
from scoretk.fields.foreign import answered
from tests.adapters.test_flows import importing

NORMAL = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))


# --- any model


def raising(error):
    def ask():
        raise error

    return ask


def test_an_error_of_the_library_is_told_with_the_shapes_and_kept_as_the_cause():
    x, cond = torch.zeros(4, 3), {"c": torch.zeros(4, 5)}
    with pytest.raises(InvalidArgument, match=r"c of shape \(4, 5\).*KeyError: 'n'") as caught:
        answered(raising(KeyError("n")), NORMAL, x, cond)
    assert isinstance(caught.value.__cause__, KeyError)
    for kind in (MemoryError, stk.CheckpointError, torch.OutOfMemoryError):
        with pytest.raises(kind):
            answered(raising(kind("none")), NORMAL, x, cond)
    law = torch.distributions.Exponential(torch.ones(2), validate_args=True)
    with pytest.raises(ValueError, match="support") as refused:  # whose rows are rejected
        answered(lambda: law.log_prob(-torch.ones(4, 2)), NORMAL, x, cond)
    assert not isinstance(refused.value, InvalidArgument)


class Silent(torch.nn.Module):
    def forward(self, *args, **options):
        raise RuntimeError("shapes cannot be multiplied")


def network(library):
    if library == "diffusers":
        return stk.from_diffusers(Silent(), importing("diffusers").DDIMScheduler(), (2,))
    if library == "flow_matching":
        importing("flow_matching")
        return stk.from_flow_matching(Silent(), (2,))
    if library == "torchcfm":
        return stk.from_torchcfm(Silent(), (2,))
    denoise, noise = importing("azula.denoise"), importing("azula.noise")
    return stk.from_azula(denoise.KarrasDenoiser(Silent(), noise.VPSchedule()), (2,))


@pytest.mark.parametrize("library", ["diffusers", "flow_matching", "torchcfm", "azula"])
def test_a_network_that_does_not_take_the_event_is_told_so(library):
    with pytest.raises(InvalidArgument, match=r"event_shape.*cannot be multiplied"):
        stk.sample(network(library), stk.ProbabilityFlow(steps=2), chains=4)


def test_steps_that_a_scheduler_cannot_set_are_told():
    field = network("diffusers")
    with pytest.raises(InvalidArgument, match=r"DDIMScheduler can set.*5000"):
        field.grid(5000)
    with pytest.raises(InvalidArgument, match=r"mu=3.*unexpected keyword"):
        field.grid(5, mu=3)


# --- JAX


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ((1.0, 2.0), "no tuple"),
        ([1.0, 2.0], "no tuple"),
        ({"a": {"b": 1.0}}, r"example\['a'\]"),
        (torch.zeros(2, dtype=torch.complex64), "imaginary parts side by side"),
        ({"a": 1j}, "imaginary parts side by side"),
        (None, "an array of real numbers"),
        ("x", "an array of real numbers"),
    ],
)
def test_an_example_that_is_no_point_is_refused(example, said):
    importing("jax")
    with pytest.raises(InvalidArgument, match=said):
        stk.from_jax(lambda x: 0.0, example)


def test_what_is_counted_is_no_variable():
    importing("jax")
    import numpy as np
    from jax import numpy as jnp

    def logp(p):
        return -(p["a"] ** 2).sum() / 2 if isinstance(p, dict) else -(p**2).sum() / 2

    whole = (3, True, np.arange(2), np.int8(3), np.array([True]), jnp.arange(2), jnp.array(False))
    for example in (*whole, torch.tensor([3, 4]), torch.tensor([3], dtype=torch.uint8)):
        for given in (example, {"b": 0.5, "a": example}):
            with pytest.raises(InvalidArgument, match=r"example.*floating point.*sum it out"):
                stk.from_jax(logp, given)
    for example in (3.0, np.float32(3), np.zeros(2, np.float16), jnp.zeros(2), torch.zeros(2)):
        stk.from_jax(logp, {"a": example})


def test_densities_are_real():
    jnp = importing("jax").numpy

    def logp(x):
        return -jnp.sum(x**2) / 2

    x = torch.tensor([[1.0, 2.0]])
    for example in (torch.zeros(2), jnp.zeros(2, jnp.bfloat16)):
        torch.testing.assert_close(stk.from_jax(logp, example).energy(x), torch.tensor([2.5]))
    for wrong in (lambda x: x.astype(int).sum(), lambda x: x.sum() * 1j, lambda x: x):
        with pytest.raises(InvalidArgument, match=r"one number a point, .* of floating point"):
            stk.from_jax(wrong, torch.zeros(2))
    with pytest.raises(InvalidArgument, match="It raised"):
        stk.from_jax(lambda x: None, torch.zeros(2))


def test_arrays_of_numpy_and_of_jax_are_asked_in_both_precisions():
    jnp = importing("jax").numpy
    data = torch.tensor([0.1, 0.2, 0.3]).double().numpy()
    for held in (data, jnp.asarray(data)):
        field = stk.from_jax(lambda x, held=held: -(held * x**2).sum(), jnp.zeros(3))
        for dtype in (torch.float32, torch.float64, torch.float32):
            x = torch.ones(2, 3, dtype=dtype)
            torch.testing.assert_close(
                field.score(x), -2 * torch.tensor(data).to(x).expand(2, 3), rtol=1e-5, atol=1e-6
            )


# --- models of numpyro that are none


def test_what_is_no_model_of_numpyro_is_told():
    numpyro, dist = importing("numpyro"), importing("numpyro.distributions")
    for wrong in (None, 3, "x", [], torch.zeros(2)):
        with pytest.raises(
            InvalidArgument, match=r"model: expected a function with numpyro\.sample"
        ):
            stk.from_numpyro(wrong)
    with pytest.raises(InvalidArgument, match="'s', a point mass"):
        stk.from_numpyro(lambda: numpyro.sample("s", dist.Delta(1.0)))
    for take in (stk.from_, stk.sample):
        with pytest.raises(InvalidArgument, match=r"from_numpyro\(lambda: numpyro\.sample\('x'"):
            take(dist.Normal(jnp_zeros(), 1.0).to_event(1))


def jnp_zeros():
    return importing("jax").numpy.zeros(2)


def test_laws_of_numpyro_below_a_bound_are_taken():
    numpyro, dist = importing("numpyro"), importing("numpyro.distributions")
    field = stk.from_numpyro(lambda: numpyro.sample("x", dist.TruncatedNormal(0.0, 1.0, high=1.0)))
    draws = stk.sample(field, stk.MALA(0.5), chains=8, steps=5)
    assert bool((draws["x"] < 1).all())


# --- noise of as many chains


def test_draws_are_of_noise_of_as_many_chains():
    fields = [
        stk.from_distribution(NORMAL),
        stk.constrained(stk.from_distribution(NORMAL), torch.distributions.constraints.real),
        stk.load("funnel"),
        stk.load("ring-mixture"),
    ]
    for field in fields:
        assert field.draw(3, Noise(1, 3)).shape[0] == 3
        for wrong in (Noise(1, 5), Noise(1, 1), 0, None):
            with pytest.raises(InvalidArgument, match="noise of n = 3 chains"):
                field.draw(3, wrong)
        with pytest.raises(InvalidArgument, match="n: expected an integer"):
            field.draw(3.0, Noise(1, 3))


def test_a_mutant_that_does_not_ask_draws_another_number():
    field = stk.from_distribution(NORMAL)
    assert len(type(field).draw.__wrapped__(field, 3, Noise(1, 5))) == 5


# --- chains backwards, names of starts, classes, parts of pipelines


def test_chains_are_chosen_by_any_slice():
    draws = stk.sample(NORMAL, stk.MALA(0.1), chains=5, steps=2)
    for rows in (slice(None, None, -2), slice(3, 0, -1), slice(None, None, -1), slice(4, None, -9)):
        assert torch.equal(draws[rows].x, draws.x[list(range(5))[rows]])
    with pytest.raises(InvalidArgument, match="step is not 0"):
        draws[::0]


def test_names_of_a_start_that_are_missing_or_none_are_told():
    field = stk.Energy(lambda mu, tau: mu.square() + tau.square(), variables={"mu": (), "tau": ()})
    zeros = torch.zeros(4)
    with pytest.raises(InvalidArgument, match="tau missing"):
        stk.sample(field, stk.MALA(0.1), init={"mu": zeros})
    with pytest.raises(InvalidArgument, match="'nu' is no variable"):
        stk.sample(field, stk.MALA(0.1), init={"mu": zeros, "tau": zeros, "nu": zeros})
    with pytest.raises(
        InvalidArgument, match=r"mu missing; .Mu. is no variable .did you mean .mu."
    ):
        stk.sample(field, stk.MALA(0.1), init={"Mu": zeros, "tau": zeros})


def test_a_class_in_place_of_an_object_is_told_so():
    flow = importing("zuko").flows.NSF
    for take in (stk.from_, stk.from_flow, stk.sample):
        with pytest.raises(InvalidArgument, match=r"NSF is a class: scoretk\.from_flow"):
            take(flow)
    with pytest.raises(InvalidArgument, match="Normal is a class"):
        stk.from_distribution(torch.distributions.Normal)
    with pytest.raises(InvalidArgument, match="Silent is a class: make an object of it"):
        stk.from_diffusers(Silent, importing("diffusers").DDIMScheduler())


def test_parts_of_scikit_learn_that_hold_the_density_are_named():
    mixture = importing("sklearn.mixture").GaussianMixture()
    search = importing("sklearn.model_selection").GridSearchCV(mixture, {"n_components": [1, 2]})
    steps = importing("sklearn.pipeline").make_pipeline(mixture)
    for take in (stk.from_, stk.from_sklearn, stk.sample):
        with pytest.raises(InvalidArgument, match=r"search\.best_estimator_"):
            take(search)
        with pytest.raises(InvalidArgument, match=r"pipeline\[-1\]"):
            take(steps)


# --- reprs


NAMES = {"mu": (), "tau": torch.distributions.constraints.positive}


def schools(mu, tau):
    return mu.square() + tau


def test_fields_are_shown_in_a_line():
    named = stk.Energy(schools, variables=NAMES)
    shown = {
        named: "Energy(schools, mu, tau)",
        named.in_free_space(): "constrained(Energy(schools, (2,)), mu, tau)",
        stk.Energy(lambda x: x.sum(1), (2,)): "Energy(<lambda>, (2,))",
        stk.Score(torch.nn.ReLU(), (2,)): "Score(ReLU, (2,))",
        stk.Diffusion(schools, (2,), stk.VE(0.1, 9.0), "data"): (
            "Diffusion(schools, (2,), VE(sigma_min=0.1, sigma_max=9.0), 'data')"
        ),
    }
    for field, text in shown.items():
        assert repr(field) == text
