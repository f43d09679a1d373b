"""How networks on lines count time: the pipelines of diffusers themselves, run with networks of random weights."""

import functools
import warnings

import pytest
import torch

import scoretk as stk
from scoretk.adapters.clocks import CLOCKS, within
from scoretk.errors import InvalidArgument

with warnings.catch_warnings():  # of the library itself, at its first import
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers", minversion="0.35")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, which has many

B, TEXT = 2, 3
AXES = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
SMALL = {"patch_size": 1, "in_channels": 16, "num_layers": 1}
JOINT = {"sample_size": 4, "attention_head_dim": 8, "num_attention_heads": 2}


def rows(*shape, seed=0):
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(seed))


def sd3():
    net = made(
        "SD3Transformer2DModel", **JOINT, patch_size=1, in_channels=4, out_channels=4, num_layers=1,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8,
    )  # fmt: skip
    cond = {"encoder_hidden_states": rows(TEXT, 8), "pooled_projections": rows(8, seed=1)}
    asked = {
        "prompt_embeds": cond["encoder_hidden_states"],
        "pooled_prompt_embeds": cond["pooled_projections"],
    }
    return net, (4, 4, 4), cond, "StableDiffusion3Pipeline", asked


def flux():
    net = made(
        "FluxTransformer2DModel", **SMALL, **AXES, num_single_layers=1, joint_attention_dim=8,
        pooled_projection_dim=8,
    )  # fmt: skip
    cond = {
        "encoder_hidden_states": rows(TEXT, 8),
        "pooled_projections": rows(8, seed=1),
        "img_ids": image_ids(),
        "txt_ids": torch.zeros(B, TEXT, 3),
    }
    asked = {
        "prompt_embeds": cond["encoder_hidden_states"],
        "pooled_prompt_embeds": cond["pooled_projections"],
    }
    return net, (4, 16), cond, "FluxPipeline", asked


def auraflow():
    net = made(
        "AuraFlowTransformer2DModel", **JOINT, patch_size=2, in_channels=4, out_channels=4,
        num_mmdit_layers=1, num_single_dit_layers=1, caption_projection_dim=16,
        joint_attention_dim=8, pos_embed_max_size=16,
    )  # fmt: skip
    cond = {"encoder_hidden_states": rows(TEXT, 8)}
    asked = {
        "prompt_embeds": cond["encoder_hidden_states"],
        "prompt_attention_mask": torch.ones(B, TEXT),
    }
    return net, (4, 4, 4), cond, "AuraFlowPipeline", asked


def lumina2():
    net = made(
        "Lumina2Transformer2DModel", sample_size=4, patch_size=2, in_channels=4, hidden_size=24,
        num_layers=1, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=4,
        axes_dim_rope=(4, 4, 4), axes_lens=(16, 16, 16), cap_feat_dim=8,
    )  # fmt: skip
    cond = {
        "encoder_hidden_states": rows(TEXT, 8),
        "encoder_attention_mask": torch.ones(B, TEXT, dtype=torch.bool),
    }
    asked = {
        "prompt_embeds": cond["encoder_hidden_states"],
        "prompt_attention_mask": cond["encoder_attention_mask"],
    }
    return net, (4, 4, 4), cond, "Lumina2Pipeline", asked


def sana():
    net = made(
        "SanaTransformer2DModel", sample_size=1, patch_size=1, in_channels=4, out_channels=4,
        num_layers=1, attention_head_dim=4, num_attention_heads=2, num_cross_attention_heads=2,
        cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, timestep_scale=0.5,
    )  # fmt: skip
    cond = {"encoder_hidden_states": rows(TEXT, 8), "encoder_attention_mask": torch.ones(B, TEXT)}
    asked = {
        "prompt_embeds": cond["encoder_hidden_states"],
        "prompt_attention_mask": cond["encoder_attention_mask"],
        "use_resolution_binning": False,
    }
    return net, (4, 1, 1), cond, "SanaPipeline", asked


def image_ids():
    ids = torch.zeros(2, 2, 3)
    ids[..., 1], ids[..., 2] = torch.arange(2)[:, None], torch.arange(2)[None]
    return ids.reshape(4, 3).expand(B, -1, -1)


def made(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return getattr(diffusers, name)(**options).eval()


EXAMPLES = {make.__name__: make for make in (sd3, flux, auraflow, lumina2, sana)}


def flow(**options):
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pipelines_own_run_is_reproduced(name):
    """Its latents, from the same noise, without guidance: the time that it hands over, and the sign."""
    net, shape, cond, pipeline, asked = EXAMPLES[name]()
    kind, scheduler = getattr(diffusers, pipeline), flow()
    parts = dict.fromkeys(kind.__init__.__annotations__, None)
    pipe = kind(**{**parts, "scheduler": scheduler, "transformer": net})
    pipe.set_progress_bar_config(disable=True)
    x, times = rows(*shape, seed=5), []
    hook = net.register_forward_pre_hook(
        lambda _, args, given: times.append(given.get("timestep")), with_kwargs=True
    )
    found = pipe(
        prompt=None, **asked, height=32, width=32, guidance_scale=1.0, latents=x, num_inference_steps=3,
        output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    handed = [float(t.flatten()[0]) for t in times]
    times.clear()
    field = stk.from_diffusers(net, flow(), shape)
    grid = (1 - pipe.scheduler.sigmas.double()).tolist()
    ours = stk.sample(
        field, stk.ProbabilityFlow("euler", grid=grid), chains=B, init=x, cond=cond
    ).final
    hook.remove()
    own = [float(t.flatten()[0]) for t in times]
    torch.testing.assert_close(own[-3:], handed, rtol=1e-4, atol=1e-4)
    scale = float(found.abs().max())
    assert float((ours - found).abs().max()) < 1e-4 * scale
    # the mutant: the scheduler's timesteps for all
    if handed[0] < 900:
        wrong = stk.from_diffusers(net, flow(), shape, time_scale=1000)
        other = wrong.predict(x, 0.3, **cond) - field.predict(x, 0.3, **cond)
        assert float(other.abs().max()) > 1e-4 * scale


def test_every_architecture_of_the_table_is_there_and_others_are_refused():
    for name in CLOCKS:
        assert hasattr(diffusers, name) or diffusers.__version__ < "0.42", name

    class Unheard(diffusers.ModelMixin):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))

        def forward(self, hidden_states, timestep):
            return self.one * hidden_states * timestep[:, None, None]

    with pytest.raises(InvalidArgument, match="time_scale="):
        stk.from_diffusers(Unheard(), flow(), (1, 1))
    x = torch.ones(B, 1, 1)
    field = stk.from_diffusers(Unheard(), flow(), (1, 1), time_scale=1)
    torch.testing.assert_close(field.velocity(x, 0.25), -0.75 * x)
    for scale in (0, float("nan"), "1"):
        with pytest.raises(InvalidArgument, match="time_scale"):
            stk.from_diffusers(Unheard(), flow(), (1, 1), time_scale=scale)
    with pytest.raises(InvalidArgument, match="time_scale"):
        stk.from_diffusers(Unheard(), diffusers.DDIMScheduler(), (1, 1), time_scale=1)


def test_what_wraps_a_network_passes_its_clock_on_or_is_asked():
    net, shape, cond, *_ = flux()
    x, scheduler = rows(*shape), flow()
    expected = stk.from_diffusers(net, scheduler, shape).predict(x, 0.3, **cond)
    rest = {n: cond.pop(n) for n in ("img_ids", "txt_ids")}

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, hidden_states, timestep, **cond):
            return self.net(hidden_states, timestep=timestep, **rest, **cond)

    compiled = torch.compile(net, backend="eager")  # of torch's own class, which holds the network
    assert within(compiled) is net
    passing = stk.from_diffusers(functools.partial(net, **rest), scheduler, shape)
    torch.testing.assert_close(passing.predict(x, 0.3, **cond), expected)
    for own in (Wrapped(), lambda x, timestep, **cond: net(x, timestep=timestep, **rest, **cond)):
        with pytest.raises(InvalidArgument, match="FluxTransformer2DModel: time_scale="):
            stk.from_diffusers(own, scheduler, shape)
        found = stk.from_diffusers(own, scheduler, shape, time_scale=1).predict(x, 0.3, **cond)
        torch.testing.assert_close(found, expected)


def test_networks_that_are_not_of_diffusers_and_unets_have_the_schedulers_timesteps():
    def net(x, k):
        return x * k.reshape(-1, 1)

    x = torch.ones(B, 1)
    field = stk.from_diffusers(net, flow(), (1,))
    torch.testing.assert_close(field.velocity(x, 0.25), -750 * x)
    inverted = stk.from_diffusers(net, flow(invert_sigmas=True), (1,))
    torch.testing.assert_close(inverted.velocity(x, 0.25), 250 * x)


def test_a_flow_of_a_scheduler_with_a_table():
    """Timesteps cut to integers, as it does; a prediction of something else is refused."""
    asked = []

    def net(x, k):
        asked.append(k)
        return x * k.reshape(-1, 1) / 1000

    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    made = diffusers.DPMSolverMultistepScheduler(**options)
    field, x = stk.from_diffusers(net, made, (1,)), torch.linspace(-1, 1, B)[:, None]
    solver = stk.ProbabilityFlow("dpmpp_2m", grid=field.grid(6))
    found = stk.sample(field, solver, chains=B, init=x).final
    made.set_timesteps(6)
    assert [float(k[0]) for k in asked[-6:]] == made.timesteps.tolist()
    y = x
    for t in made.timesteps:
        y = made.step(net(y, t.expand(B)), t, y).prev_sample
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)
    made = diffusers.UniPCMultistepScheduler(**options)
    grid = stk.from_diffusers(net, made, (1,)).grid(6)
    stk.from_diffusers(net, made, (1,)).velocity(x, grid[0])
    made.set_timesteps(6)
    assert float(asked[-1][0]) == float(made.timesteps[0]) == 999  # an embedding has no 1000
    wrong = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True)
    with pytest.raises(InvalidArgument, match="use_flow_sigmas with prediction_type 'epsilon'"):
        stk.from_diffusers(net, wrong, (1,))
