"""How models of other libraries are asked: in eval mode, whatever mode they are in, and for rows of their event shape."""

import warnings

import pytest
import torch

import scoretk as stk
from scoretk.core.modules import asked, learning
from scoretk.errors import InvalidArgument
from scoretk.learn import Recipe, fit
from tests.adapters.test_denoisers import external  # noqa: F401 (a fixture)
from tests.adapters.test_flows import importing

D, N = 2, 5
X = torch.linspace(-1, 2, N * D).reshape(N, D)


class Dropping(torch.nn.Module):
    """A network of rows that drops half of its units in train mode, and keeps count of what it is asked."""

    def __init__(self, at=0, width=D):
        super().__init__()
        self.at = at
        self.layer, self.drop = torch.nn.Linear(width, width), torch.nn.Dropout(0.5)
        self.norm = torch.nn.BatchNorm1d(width)

    def forward(self, *given, x=None, **_):
        return self.drop(self.norm(self.layer(given[self.at] if x is None else x)))


def of_language(wrappers):
    transformers = importing("transformers")
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
    config = transformers.GPT2Config(
        vocab_size=6, n_positions=8, n_embd=8, n_layer=1, n_head=2, **ends, **drop
    )
    lm = transformers.GPT2LMHeadModel(config)
    field = stk.from_language_model(lm, 3)
    x = field.one_hot(torch.tensor([[1, 2, 3], [0, 5, 4]]))
    return lm, field, x, ("log_prob", "energy", "score")


def of_diffusers(wrappers):
    diffusers = importing("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        dropout=0.5,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    field = stk.from_diffusers(unet, diffusers.DDIMScheduler(clip_sample=False))
    return unet, field, torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8), TIMED


def of_torchcfm(wrappers):
    return (net := Dropping(1)), stk.from_torchcfm(net, (D,)), X, TIMED


def of_flow_matching(wrappers):
    importing("flow_matching")
    return (net := Dropping()), stk.from_flow_matching(net, (D,)), X, TIMED


def of_azula(wrappers):
    denoise, noise = importing("azula.denoise"), importing("azula.noise")
    denoiser = denoise.KarrasDenoiser(Dropping(), noise.VPSchedule())
    return denoiser, stk.from_azula(denoiser, (D,)), X, TIMED


def of_k_diffusion(wrappers):
    denoiser = wrappers.VDenoiser(Dropping())
    return denoiser, stk.from_k_diffusion(denoiser, (D,)), X, TIMED


def of_a_function(wrappers):
    net = Dropping(1)
    return net, stk.from_torchcfm(lambda t, x: 2 * net(t, x), (D,)), X, TIMED


def of_flow(wrappers):
    importing("nflows")
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    layers = [
        transforms.BatchNorm(D),
        transforms.MaskedAffineAutoregressiveTransform(D, 8, dropout_probability=0.5),
    ]
    flow = Flow(transforms.CompositeTransform(layers), StandardNormal([D]))
    return flow, stk.from_flow(flow), X, ("log_prob", "energy", "score")


def of_sbi(wrappers):
    importing("sbi.inference")
    from tests.adapters import test_sbi

    prior = torch.distributions.MultivariateNormal(torch.zeros(D), torch.eye(D))
    potential = test_sbi.potential_of(importing("sbi"), "nle", prior)
    held = potential.likelihood_estimator
    for part in held.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    field = stk.from_sbi(potential, torch.zeros(3))
    return field.fn.potential.likelihood_estimator, field, X, ("energy", "score")


TIMED = ("denoise", "score", "velocity")
MADE = (
    of_language,
    of_diffusers,
    of_torchcfm,
    of_flow_matching,
    of_azula,
    of_k_diffusion,
    of_a_function,
    of_flow,
    of_sbi,
)


@pytest.fixture
def given(request, external):  # noqa: F811
    return seeded_in_train_mode(request.param, external)


def seeded_in_train_mode(make, wrappers):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        network, *rest = make(wrappers)
    return network.train(), *rest


def answers(field, x, methods):
    timed = (0.5,) if methods == TIMED else ()
    return [getattr(field, name)(x, *timed).detach() for name in methods]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", MADE, indirect=True, ids=lambda make: make.__name__)
class TestInTrainMode:
    def test_it_is_asked_in_eval_mode_and_keeps_its_own(self, given):
        network, field, x, methods = given
        before = {name: value.clone() for name, value in network.state_dict().items()}
        modes = [m.training for m in network.modules()]
        first, again = answers(field, x, methods), answers(field, x, methods)
        assert modes == [m.training for m in network.modules()]
        assert any(modes)
        assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())
        network.eval()
        for one, two, expected in zip(first, again, answers(field, x, methods), strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, expected)

    def test_a_mutant_that_leaves_the_mode_is_seen(self, given):
        """As where modules are trained, which are meant to drop units."""
        _, field, x, methods = given
        with learning(), torch.random.fork_rng():
            first, again = answers(field, x, methods), answers(field, x, methods)
        assert not all(map(torch.equal, first, again))

    def test_rows_of_another_shape_are_refused(self, given):
        """Which broadcast, or are whatever the network makes of them."""
        _, field, x, methods = given
        narrow, timed = x[..., :1], (0.5,) if methods == TIMED else ()
        for wrong in (narrow, x[0], x[None], x.flatten(), torch.zeros(()), x.numpy()):
            for name in methods:
                with pytest.raises(InvalidArgument, match=r"x: expected a tensor of rows, \(batch"):
                    getattr(field, name)(wrong, *timed)


def test_draws_of_a_model_in_train_mode_are_those_of_eval_mode():
    for make in (of_language, of_flow):
        network, field, _, _ = seeded_in_train_mode(make, None)
        x = field.draw(4, stk.Noise(0, 4))
        assert network.training
        assert torch.equal(x, field.draw(4, stk.Noise(0, 4)))
        network.eval()
        assert torch.equal(x, field.draw(4, stk.Noise(0, 4)))


def layers():
    return torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)


def test_a_model_of_pyro_that_holds_a_network_in_train_mode_is_taken():
    pyro = importing("pyro")
    net = seeded_in_train_mode(lambda _: (torch.nn.Sequential(*layers()),), None)[0]

    def model():
        x = pyro.sample("x", pyro.distributions.Normal(0.0, 1.0))
        pyro.sample("y", pyro.distributions.Normal(net(x.reshape(1))[0], 1.0), obs=torch.ones(()))

    field = stk.from_pyro(model)
    z = torch.zeros(3, 1)
    assert torch.equal(field.energy(z), field.energy(z))
    assert net.training


def test_what_is_fitted_learns_in_train_mode():
    flow = seeded_in_train_mode(of_flow, None)[0]
    field = stk.from_flow(flow)
    asked_in = []
    flow.register_forward_pre_hook(lambda module, _: asked_in.append(module.training))
    own = flow.log_prob
    flow.log_prob = lambda *a, **k: (asked_in.append(flow.training), own(*a, **k))[1]
    recipe = Recipe(steps=2, batch=4, held_out=0.2)
    with torch.random.fork_rng():
        fit(flow, lambda x, _: -field.log_prob(x).mean(), X, recipe)
    assert True in asked_in
    assert False in asked_in  # of the rows held out


def test_what_is_asked_within_an_error_has_its_mode_back():
    net = seeded_in_train_mode(lambda _: (Dropping(),), None)[0]
    with pytest.raises(ZeroDivisionError):
        asked(lambda: 1 / 0, net)
    assert all(m.training for m in net.modules())


def test_a_network_that_is_put_in_the_place_of_another_is_held_too():
    outer, other = (
        seeded_in_train_mode(lambda _: (torch.nn.Sequential(Dropping()),), None)[0]
        for _ in range(2)
    )
    asked(lambda: outer(X), outer)
    outer[0] = other[0]
    assert torch.equal(asked(lambda: outer(X), outer), asked(lambda: outer(X), outer))
