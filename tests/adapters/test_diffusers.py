"""Models of diffusers: its own schedulers, step for step from the same noise, and what their configuration says."""

import warnings
from types import SimpleNamespace

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields import EDM, Linear, Tabulated

with warnings.catch_warnings():  # of the library itself, at its first import
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")

# diffusers' own use of numpy, in the loops of its schedulers
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE, CHAINS, STEPS = (1, 8, 8), 2, 12
MEAN, STD = 0.3, 0.4


def unet(channels=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            **options,
        ).eval()


NET = unet()


def scheduler(name, **options):
    return getattr(diffusers, name)(**options)


def prediction(kind, x, alpha, sigma):
    """What the exact model of N(MEAN, STD^2) data predicts at these levels."""
    spread = alpha**2 * STD**2 + sigma**2
    data = MEAN + alpha * STD**2 / spread * (x - alpha * MEAN)
    noise = (x - alpha * data) / sigma
    return {"epsilon": noise, "sample": data, "v_prediction": alpha * noise - sigma * data}[kind]


def exact(made):
    """The exact model of N(MEAN, STD^2) data on a scheduler's table, between timesteps by its sigmas' logarithms."""
    table, kind = made.alphas_cumprod.double(), made.config.prediction_type
    log_alpha = table.log() / 2

    def net(x, k):
        k = torch.as_tensor(k, dtype=torch.float64).expand(len(x)).clamp(0, len(table) - 1)
        low = k.floor().long().clamp(max=len(table) - 2)
        alpha = torch.lerp(log_alpha[low], log_alpha[low + 1], k - low).exp().to(x)
        alpha = alpha.reshape(-1, *(1 for _ in x.shape[1:]))
        return prediction(kind, x, alpha, (1 - alpha**2).sqrt())

    return net


def noise(seed=4, step=0, stream=Stream.START):
    return Noise(seed, CHAINS).normal(step, stream, SHAPE)


@torch.no_grad()
def theirs(made, net, x, draws=None, **options):
    """The scheduler's own loop; `draws` are the noise of its steps."""
    made.set_timesteps(STEPS, **options)
    fresh = iter(draws or ())
    with pytest.MonkeyPatch.context() as patch:
        module = type(made).__module__
        patch.setattr(f"{module}.randn_tensor", lambda *a, **k: next(fresh), raising=False)
        for t in made.timesteps:
            seen = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
            found = net(seen, t)
            x = made.step(getattr(found, "sample", found), t, x).prev_sample
    return x


def vp_start(made, x):
    """A scheduler's own start, x times 1/alpha, for normals x, in the coordinates of its table."""
    made.set_timesteps(STEPS)
    if getattr(made, "sigmas", None) is None:
        return x, x
    level = made.sigmas[0]
    return x * level, x * level / (1 + level**2).sqrt()


TABLE_METHODS = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, "ddim"),
    "DDIM, trailing": (
        "DDIMScheduler",
        {"clip_sample": False, "timestep_spacing": "trailing", "num_train_timesteps": 600},
        "ddim",
    ),
    "DDIM, last alpha": (
        "DDIMScheduler",
        {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        "ddim",
    ),
    "Euler": ("EulerDiscreteScheduler", {}, "euler"),
    "Euler, leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler"),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "euler"),
    "Heun": ("HeunDiscreteScheduler", {}, "heun"),
    "DPM++": ("DPMSolverMultistepScheduler", {"beta_schedule": "scaled_linear"}, "dpmpp_2m"),
    "DPM++, trailing": (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "trailing", "num_train_timesteps": 600},
        "dpmpp_2m",
    ),
}
DIVIDED_BY_ALPHA = ("EulerDiscreteScheduler", "HeunDiscreteScheduler")


def apart(found, expected):
    """The largest difference in units of the result's scale."""
    return float((found - expected).abs().max() / expected.abs().max())


def ours(field, made, method, start):
    grid = field.grid(STEPS)
    solver = method if not isinstance(method, str) else stk.ProbabilityFlow(method, grid=grid)
    return stk.sample(field, solver, chains=CHAINS, init=start).final


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", TABLE_METHODS)
def test_methods_on_a_table_are_reproduced(name, kind):
    scheduler_name, options, method = TABLE_METHODS[name]
    made = scheduler(scheduler_name, prediction_type=kind, **options)
    scaled, start = (
        vp_start(made, noise()) if scheduler_name in DIVIDED_BY_ALPHA else (noise(),) * 2
    )
    for net in (NET, exact(made)):
        field = stk.from_diffusers(net, made, SHAPE)
        assert isinstance(field.path, Tabulated)
        expected = theirs(made, net, scaled)
        if float(field.grid(STEPS)[-1]) < 1:
            assert not made.config.set_alpha_to_one
        assert apart(ours(field, made, method, start), expected) < 1e-4


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_ddpm_is_reproduced_on_the_same_noise(kind, clip):
    made = scheduler("DDPMScheduler", prediction_type=kind, clip_sample=clip)
    for net in (NET, exact(made)):
        field = stk.from_diffusers(net, made, SHAPE)
        draws = [noise(9, i, Stream.PROPOSAL) for i in range(STEPS)]
        expected = theirs(made, net, noise(), draws)
        solver = stk.ReverseSDE("ddpm", grid=field.grid(STEPS).tolist())
        found = stk.sample(field, solver, chains=CHAINS, init=noise(), seed=9).final
        assert apart(found, expected) < 1e-4


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_flow_matching_is_reproduced(options):
    made = scheduler("FlowMatchEulerDiscreteScheduler", **options)
    mu = {"mu": 0.7} if "use_dynamic_shifting" in options else {}

    def exact_flow(x, k):
        s = torch.as_tensor(k).expand(len(x)).reshape(-1, 1, 1, 1) / 1000
        data = prediction("sample", x, 1 - s, s.clamp(min=1e-9))
        return (x - data) / s.clamp(min=1e-9)

    for net in (NET, exact_flow):
        field = stk.from_diffusers(net, made, SHAPE)
        assert field.path == Linear()
        solver = stk.ProbabilityFlow("euler", grid=field.grid(STEPS, **mu))
        found = stk.sample(field, solver, chains=CHAINS, init=noise()).final
        assert apart(found, theirs(made, net, noise(), **mu)) < 1e-4


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_edm_is_reproduced(kind):
    made = scheduler("EDMEulerScheduler", prediction_type=kind)
    field = stk.from_diffusers(NET, made)
    assert field.event_shape == SHAPE
    assert field.path == EDM(0.002, 80.0, 7.0)
    grid = field.grid(STEPS)
    solver = stk.ProbabilityFlow("euler", steps=STEPS, grid=grid, denoise=True)
    found = stk.sample(field, solver, chains=CHAINS, init=80 * noise()).final
    assert apart(found, theirs(made, NET, 80 * noise())) < 1e-4


def test_zero_terminal_snr_is_read_from_the_configuration():
    made = scheduler(
        "DDIMScheduler",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        num_train_timesteps=600,
    )
    field = stk.from_diffusers(NET, made)
    assert float(field.path.alpha(0.0)) == 0
    assert apart(ours(field, made, "ddim", noise()), theirs(made, NET, noise())) < 1e-4
    with pytest.raises(InvalidArgument, match="zero terminal"):
        stk.from_diffusers(NET, scheduler("DDIMScheduler", rescale_betas_zero_snr=True))


def test_a_wrong_reading_would_be_seen():
    """Mutants: another prediction, another spacing, time one step off, a velocity with the other sign."""
    made = scheduler("DDIMScheduler", clip_sample=False)
    expected = theirs(made, exact(made), noise())
    other = scheduler("DDIMScheduler", clip_sample=False, prediction_type="v_prediction")
    assert (
        apart(ours(stk.from_diffusers(exact(made), other, SHAPE), other, "ddim", noise()), expected)
        > 0.1
    )
    trailing = scheduler("DDIMScheduler", clip_sample=False, timestep_spacing="trailing")
    field = stk.from_diffusers(exact(made), trailing, SHAPE)
    assert apart(ours(field, trailing, "ddim", noise()), expected) > 1e-3
    late = stk.from_diffusers(lambda x, k: exact(made)(x, k - 20), made, SHAPE)
    assert apart(ours(late, made, "ddim", noise()), expected) > 1e-3


def test_our_solvers_do_better_at_equal_evaluations():
    """Against the exact sample of Gaussian data: each method of diffusers, and our default on the same timesteps."""
    made = scheduler("EulerDiscreteScheduler", timestep_spacing="trailing")
    field = stk.from_diffusers(exact(made), made, SHAPE, integer=False)
    x = noise()
    sigma = float(field.path.sigma(0.0))
    alpha = float(field.path.alpha(0.0))
    exactly = MEAN + STD * (sigma * x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5
    found = stk.sample(
        field, stk.ProbabilityFlow(steps=STEPS, grid="logistic"), chains=CHAINS, init=sigma * x
    )
    error = apart(found.final, exactly)
    scaled = {"DDIM": x, "Euler": None, "DPM++": x}
    for name, start in scaled.items():
        scheduler_name, options, _ = TABLE_METHODS[name]
        peer = scheduler(scheduler_name, **options)
        start = vp_start(peer, x)[0] if start is None else start
        assert error < apart(theirs(peer, exact(peer), start), exactly)


def test_outputs_labels_and_learned_variance():
    made = scheduler("DDIMScheduler", clip_sample=False)
    field = stk.from_diffusers(NET, made)
    x, t = noise(), 0.5
    plain = field.predict(x, t)
    for wrapped in (
        lambda x, k: (NET(x, k).sample, "more"),
        lambda x, k: NET(x, k).sample,
        lambda x, k: SimpleNamespace(sample=torch.cat([NET(x, k).sample, x], 1)),
    ):
        torch.testing.assert_close(stk.from_diffusers(wrapped, made, SHAPE).predict(x, t), plain)
    by_class = unet(num_class_embeds=3)
    labelled = stk.from_diffusers(by_class, made, null={"class_labels": 0})
    rows = torch.tensor([1, 2])
    found = labelled.predict(x, t, class_labels=rows)
    k = labelled.path.timestep(torch.tensor(0.5, dtype=torch.float64)).round().long()
    with torch.no_grad():
        expected = by_class(x, k, class_labels=rows).sample
    torch.testing.assert_close(found, expected)
    guided = stk.guided(labelled, 2.0)
    none = labelled.predict(x, t, class_labels=torch.zeros_like(rows))
    torch.testing.assert_close(
        guided.noise(x, t, class_labels=rows), none + 2 * (found - none), atol=1e-5, rtol=1e-4
    )
    draws = stk.sample(
        guided, stk.ProbabilityFlow(steps=2), chains=CHAINS, cond={"class_labels": rows}
    )
    assert draws.failures == {}


def test_prompts_go_where_the_network_takes_them():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            cross_attention_dim=4,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=4 * 6 + 5,
        ).eval()
    field = stk.from_(net, scheduler("EulerDiscreteScheduler"))
    cond = {
        "encoder_hidden_states": torch.linspace(-1, 1, CHAINS * 8).reshape(CHAINS, 2, 4),
        "text_embeds": torch.linspace(0, 1, CHAINS * 5).reshape(CHAINS, 5),
        "time_ids": torch.ones(CHAINS, 6),
    }
    x = noise()
    k = field.path.timestep(torch.tensor(0.5, dtype=torch.float64)).float()
    with torch.no_grad():
        expected = net(
            x,
            k,
            encoder_hidden_states=cond["encoder_hidden_states"],
            added_cond_kwargs={"text_embeds": cond["text_embeds"], "time_ids": cond["time_ids"]},
        ).sample
    torch.testing.assert_close(field.predict(x, 0.5, **cond), expected)
    draws = stk.sample(field, stk.ProbabilityFlow(steps=2), chains=CHAINS, cond=cond)
    assert draws.failures == {}


def test_a_pipeline_with_latents():
    class Decoder(torch.nn.Module):
        config = {"scaling_factor": 0.5, "shift_factor": 0.1}  # noqa: RUF012

        def decode(self, z):
            return SimpleNamespace(sample=z.repeat(1, 3, 1, 1))

    made = scheduler("DDIMScheduler", clip_sample=False)
    pipeline = SimpleNamespace(unet=NET, scheduler=made, vae=Decoder())
    field = stk.from_diffusers(pipeline)
    assert "decode" in field.provides
    z = noise()
    torch.testing.assert_close(field.decode(z), (z / 0.5 + 0.1).repeat(1, 3, 1, 1))
    torch.testing.assert_close(field.predict(z, 0.5), stk.from_diffusers(NET, made).predict(z, 0.5))
    real = diffusers.DDIMPipeline(NET, made)
    assert stk.from_(real).event_shape == SHAPE


def test_what_is_not_known_is_refused_with_the_way():
    with pytest.raises(InvalidArgument, match="a scheduler of diffusers"):
        stk.from_diffusers(NET)
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_timesteps"):
        stk.from_diffusers(NET, scheduler("CMStochasticIterativeScheduler"))
    with pytest.raises(InvalidArgument, match="clip=False"):
        stk.from_diffusers(NET, scheduler("DDPMScheduler", thresholding=True, clip_sample=False))
    with pytest.raises(InvalidArgument, match="event_shape"):
        stk.from_diffusers(lambda x, k: x, scheduler("DDIMScheduler"))
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_diffusers"):
        stk.sample(NET, chains=2)


def test_the_models_weights_and_the_global_generator_are_left_alone():
    field = stk.from_diffusers(NET, scheduler("DDIMScheduler", clip_sample=False))
    before = [p.clone() for p in NET.parameters()]
    assert repr(field).startswith("from_diffusers(UNet2DModel")
    stk.sample(field, stk.ProbabilityFlow(steps=2), chains=2)
    assert all(torch.equal(a, b) for a, b in zip(before, NET.parameters(), strict=True))
    assert all(p.requires_grad for p in NET.parameters())
