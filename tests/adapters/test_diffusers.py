"""Models of diffusers: its own schedulers, step for step from the same noise, and what their configuration says."""

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields import EDM, Linear, Tabulated

BRINGS = [
    (
        "a network, or a pipeline, of diffusers",
        "stk.from_diffusers(unet, scheduler)",
        "DDIM, DDPM, Euler, Heun, DPM++(2M), FlowMatchEuler and "
        "FlowMatchHeun (`trapezoid`), EDMEuler: 12 steps from "
        "the same noise, to 1e-4 of scale, every spacing, choice of sigmas, prediction "
        "and zero terminal SNR; five pipelines' own runs",
        "diffusers==0.42.1",
        [
            "test_methods_on_a_table_are_reproduced",
            "test_every_step_is_the_schedulers",
            "test_flow_matching_is_reproduced",
            "test_heun_on_a_line_is_in_its_time",
            "test_edm_is_reproduced",
            "test_zero_terminal_snr_is_read_from_the_configuration",
            "test_clocks.test_a_pipelines_own_run_is_reproduced",
        ],
    )
]

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
    if float(table[-1]) > 0 and bool((table[:-1] < table[-1]).any()):
        table = table.clamp(min=float(table[-1]))  # where a scheduler put 2^-24 in the place of 0
    log_alpha = table.clamp(min=1e-30).log() / 2

    def net(x, k):
        k = torch.as_tensor(k, dtype=torch.float64).expand(len(x)).clamp(0, len(table) - 1)
        low = k.floor().long().clamp(max=len(table) - 2)
        alpha = torch.lerp(log_alpha[low], log_alpha[low + 1], k - low).exp().to(x)
        alpha = torch.where(k < len(table) - 1, alpha, table[-1].sqrt().to(alpha))
        alpha = alpha.reshape(-1, *(1 for _ in x.shape[1:]))
        return prediction(kind, x, alpha, (1 - alpha**2).sqrt())

    return net


def flow_of(made):
    """The exact model of N(MEAN, STD^2) data on a line."""

    def net(x, k):
        s = torch.as_tensor(k).expand(len(x)).reshape(-1, 1, 1, 1) / made.config.num_train_timesteps
        data = prediction("sample", x, 1 - s, s.clamp(min=1e-9))
        return (x - data) / s.clamp(min=1e-9)

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


METHODS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
DIVIDED_BY_ALPHA = ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
SPACINGS, KINDS = ("leading", "trailing", "linspace"), ("epsilon", "sample", "v_prediction")
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def cases():
    """Scheduler and configuration: spacings, sigmas, zero terminal signal-to-noise ratio, offsets."""
    for name in METHODS:
        options = {"clip_sample": False} if name.startswith("DD") else {}
        for spacing in SPACINGS:
            if name == "DDIMScheduler" and spacing == "linspace":
                continue  # it steps by N // 12, to where its next step is not: no grid has these
            given = {**options, "timestep_spacing": spacing}
            if name == "DDIMScheduler":
                given["num_train_timesteps"] = (
                    600  # a multiple of the steps, as it steps by 600 // 12
                )
            yield name, given
            if name != "HeunDiscreteScheduler":
                yield name, {**given, "rescale_betas_zero_snr": True}
        if not name.startswith("DD"):
            for levels in LEVELS:
                if levels in inspect.signature(getattr(diffusers, name)).parameters:
                    yield name, {levels: True}
        yield name, {**options, "beta_schedule": "scaled_linear"}
    yield ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1})


def named(case):
    return f"{case[0].removesuffix('Scheduler')} {' '.join(map(str, case[1].values()))}"


def apart(found, expected):
    """The largest difference in units of the result's scale."""
    return float((found - expected).abs().max() / expected.abs().max())


def ours(field, method, start, steps=None):
    grid = field.grid(STEPS if steps is None else steps)
    if method == "ddpm":
        solver = stk.ReverseSDE("ddpm", grid=grid.tolist())
    else:
        solver = stk.ProbabilityFlow(method, grid=grid)
    return stk.sample(field, solver, chains=CHAINS, init=start, seed=9).final


def own_noise():
    """What `ours` draws in the steps of DDPM."""
    return [noise(9, i, Stream.PROPOSAL) for i in range(STEPS)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*cases()], ids=named)
def test_methods_on_a_table_are_reproduced(case, kind):
    name, options = case
    if options.get("rescale_betas_zero_snr") and kind == "epsilon":
        kind = "v_prediction"  # which noise says nothing of the data there: refused, below
    made = scheduler(name, prediction_type=kind, **options)
    scaled, start = vp_start(made, noise()) if name in DIVIDED_BY_ALPHA else (noise(),) * 2
    for net in (NET, exact(made)):
        field = stk.from_diffusers(net, made, SHAPE)
        assert isinstance(field.path, Tabulated)
        expected = theirs(made, net, scaled, own_noise() if name == "DDPMScheduler" else None)
        if float(field.grid(STEPS)[-1]) < 1:
            assert not made.config.set_alpha_to_one
        assert apart(ours(field, METHODS[name], start), expected) < 1e-4


def warned(field, steps):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        field.grid(steps)
    return any("not where its next timestep is" in str(w.message) for w in found)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [7, 10])
def test_ddim_is_reproduced_or_told_apart(spacing, steps):
    """Its steps go down by N // steps, wherever its next timestep is."""
    made = scheduler("DDIMScheduler", clip_sample=False, timestep_spacing=spacing)
    net = exact(made)
    field, x = stk.from_diffusers(net, made, SHAPE), noise()
    made.set_timesteps(steps)
    for t in made.timesteps:
        with torch.no_grad():
            x = made.step(net(x, t), t, x).prev_sample
    told = warned(field, steps)
    assert told == (spacing == "linspace" or (spacing == "trailing" and 1000 % steps > 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert (apart(ours(field, "ddim", noise(), steps), x) < 1e-4) is not told
    assert not warned(stk.from_diffusers(net, scheduler("DDPMScheduler"), SHAPE), steps)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_the_schedulers(kind):
    """The states between, which the last one could hide."""
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        made = scheduler(name, prediction_type=kind, timestep_spacing="leading")
        made.register_to_config(**({"clip_sample": False} if name.startswith("DD") else {}))
        scaled, x = vp_start(made, noise()) if name in DIVIDED_BY_ALPHA else (noise(),) * 2
        field, y = stk.from_diffusers(NET, made), scaled
        grid = field.grid(STEPS)
        made.set_timesteps(STEPS)
        for i, t in enumerate(made.timesteps):
            with torch.no_grad():
                seen = made.scale_model_input(y, t)
                y = made.step(NET(seen, t).sample, t, y).prev_sample
            solver = stk.ProbabilityFlow(METHODS[name], grid=grid[i : i + 2].tolist())
            x = stk.sample(field, solver, chains=CHAINS, init=x).final
            level = made.sigmas[i + 1] if name in DIVIDED_BY_ALPHA else torch.zeros(())
            assert apart(x, y / (1 + level**2).sqrt()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_is_the_schedulers(kind):
    made = scheduler("DDPMScheduler", prediction_type=kind, clip_sample=True)
    for net in (NET, exact(made)):
        field = stk.from_diffusers(net, made, SHAPE)
        expected = theirs(made, net, noise(), own_noise())
        assert apart(ours(field, "ddpm", noise()), expected) < 1e-4


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDIMParallelScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_ddim_clips_by_half_is_told(name, kind):
    """It keeps the noise that was predicted with the data that it clips, if not told otherwise."""
    made = scheduler(name, prediction_type=kind, clip_sample=True, clip_sample_range=0.2)
    field, x = stk.from_diffusers(NET, made, SHAPE), noise()
    with pytest.warns(UserWarning, match="keeps the noise of that without"):
        found = ours(field, "ddim", x)
    made.set_timesteps(STEPS)
    ways = {}
    for clipped in (True, False):
        y = x
        for k in made.timesteps:
            with torch.no_grad():
                said = NET(y, k).sample
            y = made.step(said, k, y, use_clipped_model_output=clipped).prev_sample
        ways[clipped] = apart(found, y)
    assert ways[True] < 1e-4 < 1e-2 < ways[False]


def test_what_only_stands_in_a_configuration_clips_nothing():
    """CogVideoX's DDIM has clip_sample=True by default, and never clips."""
    made, x = scheduler("CogVideoXDDIMScheduler"), noise()
    field = stk.from_diffusers(NET, made, SHAPE)
    made.set_timesteps(STEPS)
    y = x
    for k in made.timesteps:
        with torch.no_grad():
            y = made.step(NET(y, k).sample, k, y).prev_sample
    assert apart(ours(field, "ddim", x), y) < 1e-4


FROM = {
    "clip_sample": ("DDPMScheduler", {"clip_sample": True, "clip_sample_range": 0.5}),
    "thresholding": ("DDPMScheduler", {"thresholding": True}),
    "set_alpha_to_one": ("PNDMScheduler", {"set_alpha_to_one": False}),
    "use_flow_sigmas": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    ),
}


@pytest.mark.parametrize("setting", FROM)
@pytest.mark.parametrize(
    "name",
    ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DDPMScheduler", "LMSDiscreteScheduler"],
)
def test_settings_that_another_scheduler_has_left_say_nothing(name, setting):
    """`from_config` keeps what the scheduler does not read, as pipelines do whose scheduler is swapped."""
    kind, options = FROM[setting]
    if setting in inspect.signature(getattr(diffusers, name).__init__).parameters:
        pytest.skip("the scheduler's own")
    left = scheduler(kind, **options).config
    swapped = getattr(diffusers, name).from_config({**left, "prediction_type": "epsilon"})
    assert setting in swapped.config
    plain = scheduler(
        name,
        **{
            k: v
            for k, v in swapped.config.items()
            if k in inspect.signature(getattr(diffusers, name).__init__).parameters
        },
    )
    found, expected = (stk.from_diffusers(NET, made, SHAPE) for made in (swapped, plain))
    x, t = noise(), torch.full((len(noise()),), 0.4)
    torch.testing.assert_close(found.denoise(x, t), expected.denoise(x, t), rtol=0, atol=0)
    torch.testing.assert_close(found.grid(5), expected.grid(5), rtol=0, atol=0)


def test_a_scheduler_that_names_no_settings_is_taken_by_its_configuration():
    """One around another, as for logging."""
    made = scheduler("DDIMScheduler", prediction_type="v_prediction", clip_sample=False)

    class Around:
        def __init__(self, inner):
            self.inner, self.config = inner, inner.config

        def __getattr__(self, name):
            return getattr(self.__dict__.get("inner", made), name)

    assert stk.from_diffusers(NET, Around(made), SHAPE).predicts == "v"


@pytest.mark.parametrize("beside", ["transformer_2", "controlnet", "adapter"])
def test_a_pipeline_of_which_more_than_one_network_predicts_is_refused(beside):
    made = scheduler("DDIMScheduler")
    pipeline = SimpleNamespace(unet=NET, scheduler=made, **{beside: NET})
    with pytest.raises(stk.InvalidArgument, match=f"{beside!r} beside it"):
        stk.from_diffusers(pipeline)
    setattr(pipeline, beside, None)
    assert stk.from_diffusers(pipeline, event_shape=SHAPE).event_shape == SHAPE


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_a_learned_variance_is_split_off_as_the_scheduler_does(variance):
    """The last step of DDPM draws no noise: of it all that is seen is the mean."""
    made, net = scheduler("DDPMScheduler", variance_type=variance, clip_sample=False), unet(2)
    field = stk.from_diffusers(net, made, SHAPE)
    made.set_timesteps(STEPS)
    with torch.no_grad():
        found = net(noise(), made.timesteps[-1]).sample
    expected = made.step(found, made.timesteps[-1], noise()).prev_sample
    with pytest.warns(UserWarning, match="of another variance"):
        grid = field.grid(STEPS)
    solver = stk.ProbabilityFlow("ddim", grid=grid[-2:].tolist())
    assert apart(stk.sample(field, solver, chains=CHAINS, init=noise()).final, expected) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"shift_terminal": 0.1},
        {"num_train_timesteps": 500},
    ],
    ids=str,
)
def test_flow_matching_is_reproduced(options):
    made = scheduler("FlowMatchEulerDiscreteScheduler", **options)
    mu = {"mu": 0.7} if "use_dynamic_shifting" in options else {}

    for net in (NET, flow_of(made)):
        field = stk.from_diffusers(net, made, SHAPE)
        assert field.path == Linear()
        solver = stk.ProbabilityFlow("euler", grid=field.grid(STEPS, **mu))
        found = stk.sample(field, solver, chains=CHAINS, init=noise()).final
        assert apart(found, theirs(made, net, noise(), **mu)) < 1e-4


@pytest.mark.parametrize("kind", ["NET", "exact"])
def test_heun_on_a_line_is_in_its_time(kind):
    made = scheduler("FlowMatchHeunDiscreteScheduler")
    net = NET if kind == "NET" else flow_of(made)
    field = stk.from_diffusers(net, made, SHAPE)
    with torch.no_grad():
        expected = theirs(made, net, noise())
    methods = {"trapezoid": True, "heun": False}
    for method, same in methods.items():
        solver = stk.ProbabilityFlow(method, grid=field.grid(STEPS))
        found = stk.sample(field, solver, chains=CHAINS, init=noise()).final
        assert (apart(found, expected) < 1e-4) is same


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


# --- noise levels beyond a table, steps that are none of a grid's


def svd(**options):
    """The scheduler of Stable Video Diffusion: levels up to 700 on a table that ends at 157."""
    given = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    levels = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
    return scheduler("EulerDiscreteScheduler", **{**given, **levels, **options})


def exact_by_level(x, time):
    """v of N(MEAN, STD^2) data in the coordinates of a network of EDM for data of spread 1."""
    level = torch.exp(4 * torch.as_tensor(time)).expand(len(x)).reshape(-1, 1, 1, 1)
    alpha = (1 + level**2).rsqrt()
    return prediction("v_prediction", x, alpha, level * alpha)


@pytest.mark.parametrize("net", [NET, exact_by_level], ids=["unet", "exact"])
def test_levels_beyond_the_table_are_those_of_edm(net):
    made = svd()
    field = stk.from_diffusers(net, made, SHAPE)
    assert field.path.sigma(torch.zeros(())).item() == pytest.approx(700)
    solver = stk.ProbabilityFlow("euler", steps=STEPS, grid=field.grid(STEPS), denoise=True)
    found = stk.sample(field, solver, chains=CHAINS, init=700 * noise()).final
    expected = theirs(made, net, 700 * noise())
    assert apart(found, expected) < 1e-4
    wide = stk.Diffusion(lambda x, t: 1.1 * field.predict(x, t), SHAPE, field.path, "data")
    mutant = stk.sample(wide, solver, chains=CHAINS, init=700 * noise()).final
    assert apart(mutant, expected) > 1e-2


def test_levels_beyond_the_table_of_a_network_of_timesteps_are_told():
    field = stk.from_diffusers(NET, svd(timestep_type="discrete", prediction_type="epsilon"))
    with pytest.raises(InvalidArgument, match=r"its table, from 0\.01 to 157.*0\.002 to 700"):
        field.grid(STEPS)
    within = svd(timestep_type="discrete", sigma_min=0.1, sigma_max=10.0)
    assert float(stk.from_diffusers(NET, within).grid(STEPS)[0]) > 0


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"])
def test_steps_of_a_distilled_model_are_told(name):
    """Theirs begin from noise drawn anew: even with a network that says the exact law the samples are others."""
    options = {"clip_sample": False} if name == "LCMScheduler" else {}
    made = scheduler(name, **options)
    net = flow_of(made) if name.startswith("FlowMatch") else exact(made)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        field = stk.from_diffusers(net, made, SHAPE)
        grid = field.grid(STEPS)
    assert any(f"{name} draws all noise anew" in str(w.message) for w in found)
    sampled = stk.sample(
        field, stk.ProbabilityFlow("euler", grid=grid), chains=CHAINS, init=noise()
    ).final
    assert apart(sampled, theirs(made, net, noise(), own_noise())) > 1e-2


OTHER_STEPS = {
    "EulerDiscreteScheduler": ("interpolation_type", ("linear", "log_linear"), "asks its network"),
    "DDPMScheduler": (
        "variance_type",
        ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        "of another variance",
    ),
    "FlowMatchEulerDiscreteScheduler": (
        "stochastic_sampling",
        (False, True),
        "draws all noise anew",
    ),
}


@pytest.mark.parametrize("name", OTHER_STEPS)
def test_steps_that_no_solver_makes_are_told(name):
    """A warning if and only if the scheduler's own samples are not those of our method on its grid."""
    option, values, said = OTHER_STEPS[name]
    for value in values:
        options = {"clip_sample": False} if name.startswith("DD") else {}
        made = scheduler(name, **options, **{option: value})
        flow = name.startswith("FlowMatch")
        net = flow_of(made) if flow else exact(made)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", UserWarning)
            field = stk.from_diffusers(net, made, SHAPE)
            grid = field.grid(STEPS)
        told = any(said in str(w.message) for w in found)
        scaled, start = vp_start(made, noise()) if name in DIVIDED_BY_ALPHA else (noise(),) * 2
        expected = theirs(made, net, scaled, own_noise())
        solver = stk.ProbabilityFlow("euler", grid=grid)
        if name == "DDPMScheduler":
            solver = stk.ReverseSDE("ddpm", grid=grid.tolist())
        sampled = stk.sample(field, solver, chains=CHAINS, init=start, seed=9).final
        assert (apart(sampled, expected) < 1e-4) is not told
        assert told is (value not in (values[0], "fixed_small_log"))


def test_drawing_all_noise_anew_leads_to_half_of_the_variance():
    """Why `stochastic_sampling` is no method here: however many steps, it is another law of any model that is not distilled."""
    n, generator = 100, torch.Generator().manual_seed(3)
    made = scheduler("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True)
    draws = [torch.randn(CHAINS, *SHAPE, generator=generator) for _ in range(n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "STEPS", n)
        found = theirs(made, flow_of(made), noise(), draws)
    assert float(found.std()) / STD < 0.85  # of 128 normals: 5 standard errors below 1


def test_a_dynamic_shift_is_asked_for_in_our_words():
    made = scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    field = stk.from_diffusers(NET, made)
    with pytest.raises(
        InvalidArgument, match=r"mu: expected the shift.*field\.grid\(12, mu=0\.7\)"
    ):
        field.grid(STEPS)
    fixed = stk.from_diffusers(NET, scheduler("FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(InvalidArgument, match="mu: expected none"):  # which diffusers leaves out
        fixed.grid(STEPS, mu=0.7)
    assert not torch.equal(field.grid(STEPS, mu=0.7), field.grid(STEPS, mu=0.0))


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
    assert apart(ours(field, "ddim", noise()), theirs(made, NET, noise())) < 1e-4
    with pytest.raises(InvalidArgument, match="zero terminal"):
        stk.from_diffusers(NET, scheduler("DDIMScheduler", rescale_betas_zero_snr=True))


def test_a_wrong_reading_would_be_seen():
    """Mutants: another prediction, another spacing, time one step off, a velocity with the other sign."""
    made = scheduler("DDIMScheduler", clip_sample=False)
    expected = theirs(made, exact(made), noise())
    other = scheduler("DDIMScheduler", clip_sample=False, prediction_type="v_prediction")
    assert (
        apart(ours(stk.from_diffusers(exact(made), other, SHAPE), "ddim", noise()), expected) > 0.1
    )
    trailing = scheduler("DDIMScheduler", clip_sample=False, timestep_spacing="trailing")
    field = stk.from_diffusers(exact(made), trailing, SHAPE)
    with pytest.warns(UserWarning, match="goes down by"):  # and is said for these steps
        assert apart(ours(field, "ddim", noise()), expected) > 1e-3
    late = stk.from_diffusers(lambda x, k: exact(made)(x, k - 20), made, SHAPE)
    assert apart(ours(late, "ddim", noise()), expected) > 1e-3


def flowed(field, x):
    """Where the probability flow of N(MEAN, STD^2) data leads normals x, exactly."""
    alpha, sigma = (float(v) for v in (field.path.alpha(0.0), field.path.sigma(0.0)))
    spread = (alpha**2 * STD**2 + sigma**2) ** 0.5
    return MEAN + STD * (sigma * x - alpha * MEAN) / spread


def off(law, *args):
    """How far the law of what a loop makes of normals is from the data's, of which each is an affine function.

    `law(x, draws)` is asked once: pixel 0 is the image of 0, pixel j that of the j-th normal alone. Returns the
    Wasserstein distance of N(mean, std^2) to N(MEAN, STD^2).
    """
    units = torch.eye(64)[: STEPS + 2].reshape(-1, 1, *SHAPE)
    image = law(units[1].expand(CHAINS, *SHAPE), [u.expand(CHAINS, *SHAPE) for u in units[2:]])[0]
    image = image.flatten().double()
    std = (image[1 : STEPS + 2] - image[0]).square().sum().sqrt()
    return float(((image[0] - MEAN) ** 2 + (std - STD) ** 2).sqrt())


def beaten():
    for name in METHODS:
        for spacing in SPACINGS:
            yield name, {"timestep_spacing": spacing}
        if not name.startswith("DD"):
            for levels in LEVELS[:3]:
                yield name, {levels: True}
    for options in ({}, {"shift": 3.0}, {"use_karras_sigmas": True}, {"use_beta_sigmas": True}):
        yield "FlowMatchEulerDiscreteScheduler", options


@pytest.mark.parametrize("case", [*beaten()], ids=named)
def test_our_solvers_do_better_at_equal_evaluations(case):
    """Each scheduler of diffusers in its own loop, and our default from the same start, on Gaussian data."""
    name, options = case
    made = scheduler(name, **options, **({"clip_sample": False} if name.startswith("DD") else {}))
    flow, asked = name.startswith("FlowMatch"), []
    net = flow_of(made) if flow else exact(made)

    def counted(x, k):
        asked.append(k)
        return net(x, k)

    def peer(x, draws):
        start = vp_start(made, x)[0] if name in DIVIDED_BY_ALPHA else x
        return theirs(made, counted, start, draws)

    theirs_off, evaluations = off(peer), len(asked)
    field = stk.from_diffusers(counted, made, SHAPE, integer=False)

    def default(x, draws):
        start = float(field.path.sigma(0.0)) * x
        solver = stk.ProbabilityFlow(steps=evaluations, grid="logistic")
        return stk.sample(field, solver, chains=CHAINS, init=start).final

    asked.clear()
    assert off(default) < theirs_off
    assert len(asked) <= evaluations


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


def prompted():
    """A UNet like that of SDXL, and conditions for it."""
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
    return net, {
        "encoder_hidden_states": torch.linspace(-1, 1, CHAINS * 8).reshape(CHAINS, 2, 4),
        "text_embeds": torch.linspace(0, 1, CHAINS * 5).reshape(CHAINS, 5),
        "time_ids": torch.ones(CHAINS, 6),
    }


def test_prompts_go_where_the_network_takes_them():
    net, cond = prompted()
    field = stk.from_(net, scheduler("EulerDiscreteScheduler"))
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


@pytest.mark.parametrize("kept", ["configuration", "buffers"])
def test_the_latents_of_a_decoder_have_means_and_spreads_of_their_own(kept):
    """As SDXL's pipelines decode them: `z std / scale + mean`, each channel its own."""
    mean, std = [1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 3.0, 0.1]

    class Decoder(torch.nn.Module):
        config = {"scaling_factor": 0.5, "shift_factor": 0.1}  # noqa: RUF012

        def decode(self, z):
            return (z,)

    vae = Decoder()
    if kept == "buffers":
        vae.latents_mean, vae.latents_std = torch.tensor(mean), torch.tensor(std)
    else:
        vae.config = vae.config | {"latents_mean": mean, "latents_std": std}
    made = scheduler("DDIMScheduler", clip_sample=False)
    field = stk.from_diffusers(SimpleNamespace(unet=NET, scheduler=made, vae=vae))
    z = torch.linspace(-1, 1, 32).reshape(1, 4, 2, 4)
    expected = torch.stack([z[:, i] * std[i] / 0.5 + mean[i] for i in range(4)], 1)
    torch.testing.assert_close(field.decode(z), expected)


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
    for clips in ({}, {"clip_sample": True}, {"clip_sample": False}):  # diffusers then clips never
        with pytest.raises(InvalidArgument, match="clip=False"):
            stk.from_diffusers(NET, scheduler("DDIMScheduler", thresholding=True, **clips))
    with pytest.raises(InvalidArgument, match="event_shape"):
        stk.from_diffusers(lambda x, k: x, scheduler("DDIMScheduler"))
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_diffusers"):
        stk.sample(NET, chains=2)


@pytest.mark.filterwarnings("ignore:LCMScheduler draws")
@pytest.mark.parametrize("steps", [None, 10, 50])
@pytest.mark.parametrize(
    "name", [*METHODS, "PNDMScheduler", "UniPCMultistepScheduler", "LCMScheduler"]
)
def test_a_schedulers_history_does_not_matter(name, steps):
    """Some have timesteps of another dtype from `set_timesteps` on; and the scheduler stays as it was."""
    fresh, used = scheduler(name), scheduler(name)
    if steps is not None:
        used.set_timesteps(steps)
    before = {n: v.clone() for n, v in vars(used).items() if isinstance(v, torch.Tensor)}
    asked = []

    def net(x, k):
        asked.append(k)
        return x

    x = noise()
    for made in (fresh, used):
        field = stk.from_diffusers(net, made, SHAPE, clip=False)
        field.predict(x, 0.4321)
        field.grid(20)
    assert torch.equal(asked[0], asked[1])
    made = scheduler(name)
    made.set_timesteps(20)
    assert (
        asked[0].is_floating_point() == made.timesteps.is_floating_point()
    )  # the mutant: as found
    assert all(torch.equal(v, getattr(used, n)) for n, v in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_networks_of_half_precision_take_prompts(name, dtype):
    net, cond = prompted()
    made, x = scheduler(name, **({"clip_sample": False} if name.startswith("DD") else {})), noise()
    full = stk.from_diffusers(net, made).predict(x, 0.3, **cond)
    field = stk.from_diffusers(prompted()[0].to(dtype), made)
    found = field.predict(x, 0.3, **cond)
    assert found.dtype == torch.float32
    assert apart(found.detach(), full.detach()) < 40 * torch.finfo(dtype).eps
    draws = stk.sample(field, stk.ProbabilityFlow(steps=2), chains=CHAINS, cond=cond)
    assert draws.final.dtype == torch.float32
    assert draws.failures == {}


def test_a_network_of_ones_own_in_half_precision():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.time, self.label = torch.nn.Linear(1, 1), torch.nn.Linear(3, 1)

        def forward(self, x, k, label):
            k = self.time(k[:, None] / 1000)
            return x * (k + self.label(label)).reshape(-1, 1, 1, 1)

    with torch.random.fork_rng():
        net = Own().to(torch.bfloat16)
    field = stk.from_diffusers(net, scheduler("EulerDiscreteScheduler"), SHAPE)
    assert field.predict(noise(), 0.3, label=torch.ones(CHAINS, 3)).dtype == torch.float32


def test_the_models_weights_and_the_global_generator_are_left_alone():
    field = stk.from_diffusers(NET, scheduler("DDIMScheduler", clip_sample=False))
    before = [p.clone() for p in NET.parameters()]
    assert repr(field).startswith("from_diffusers(UNet2DModel")
    stk.sample(field, stk.ProbabilityFlow(steps=2), chains=2)
    assert all(torch.equal(a, b) for a, b in zip(before, NET.parameters(), strict=True))
    assert all(p.requires_grad for p in NET.parameters())


@pytest.mark.parametrize(
    ("options", "steps", "told"),
    [
        ({"final_sigmas_type": "zero"}, 12, False),
        ({"final_sigmas_type": "sigma_min"}, 12, True),
        ({"final_sigmas_type": "sigma_min", "lower_order_final": False}, 12, False),
        ({"final_sigmas_type": "sigma_min"}, 20, False),
        ({"final_sigmas_type": "sigma_min", "euler_at_final": True}, 20, True),
    ],
)
def test_a_last_step_of_lower_order_is_told(options, steps, told, monkeypatch):
    """A warning if and only if the scheduler's own samples are not those of our method on its grid."""
    monkeypatch.setattr(f"{__name__}.STEPS", steps)
    made = scheduler("DPMSolverMultistepScheduler", **options)
    field = stk.from_diffusers(exact(made), made, SHAPE)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        grid = field.grid(steps)
    assert any("at first order" in str(w.message) for w in found) is told
    solver = stk.ProbabilityFlow("dpmpp_2m", grid=grid)
    sampled = stk.sample(field, solver, chains=CHAINS, init=noise(), seed=9).final
    assert (apart(sampled, theirs(made, exact(made), noise())) < 1e-4) is not told


@pytest.mark.parametrize("name", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
@pytest.mark.parametrize("options", [{}, {"timestep_spacing": "trailing"}])
def test_a_scheduler_that_leads_to_the_noise_is_refused(name, options):
    scheduler = getattr(diffusers, name)(**options)
    with pytest.raises(InvalidArgument, match=rf"{name}.*rise.*scoretk\.encode"):
        stk.from_diffusers(unet(), scheduler)
    forward = getattr(diffusers, name.replace("Inverse", "")).from_config(scheduler.config)
    assert stk.from_diffusers(unet(), forward).event_shape == SHAPE


def test_a_scheduler_of_another_name_that_leads_to_the_noise_is_refused():
    class Own(diffusers.DDIMInverseScheduler):
        pass

    with pytest.raises(InvalidArgument, match="Own, whose timesteps rise"):
        stk.from_diffusers(unet(), Own())


def test_a_flow_of_a_table_with_a_dynamic_shift_is_taken():
    """UniPC sets no steps without mu, which is not known before `field.grid`."""
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    made = scheduler("UniPCMultistepScheduler", use_dynamic_shifting=True, **options)
    field = stk.from_diffusers(NET, made)
    made.set_timesteps(STEPS, mu=0.7)
    found = 1 - field.grid(STEPS, mu=0.7)
    torch.testing.assert_close(found, made.sigmas.double(), rtol=0, atol=1e-6)
    with pytest.raises(InvalidArgument, match="mu"):
        field.grid(STEPS)
