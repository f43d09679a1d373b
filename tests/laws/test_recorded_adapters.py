"""Adapters make of stand-ins for large libraries (`tests/stand_ins.py`) what they made, and what the formulas say.

The libraries themselves are asked by `make adapters`, which most machines cannot run.
"""

import itertools
import math
import types

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn

import scoretk as stk
from scoretk.adapters import law_supports
from scoretk.adapters.clocks import CLOCKS, clock_of
from scoretk.core.noise import Noise
from scoretk.fields.protocols import offers
from tests import stand_ins
from tests.odd import in_order, or_its_error, told
from tests.recorded import or_error, randn, recorded
from tests.stand_ins import denoised, law_of, of, scheduler, wave

X = randn(4, 2, 3)
FLAT = randn(4, 3)
TIMES = [0.05, torch.tensor([0.0, 0.5, 0.9, 1.0]).double()]
LABELS = torch.arange(4.0)


def answers(field, x=X, conditions=({},)):
    """All that a field in time says."""
    found = {
        "repr": in_order(repr(field)),
        "shape": field.event_shape,
        "offers": sorted(offers(field)),
    }
    for name in ("predicts", "null", "base"):
        value = getattr(field, name, None)
        found[name] = value if name != "base" else value.draw(4, Noise(5, 4, dtype=torch.float64))
    for name in ("velocity", "denoise", "predict", "energy"):
        ask = getattr(field, name, None)
        for cond in conditions if callable(ask) else ():
            found[f"{name} {sorted(cond)}"] = [
                or_error(lambda a=ask, t=t, c=cond: a(x, t, **c)) for t in TIMES
            ]
    return found


# diffusers

SCHEDULERS = {
    "a table": [
        ("DDPMScheduler", stand_ins.OnTable, config)
        for config in (
            {},
            {"prediction_type": "sample", "timestep_spacing": "trailing"},
            {"prediction_type": "v_prediction", "timestep_spacing": "linspace"},
            {"clip_sample": True, "clip_sample_range": 0.5},
            {"set_alpha_to_one": False, "variance_type": "fixed_large"},
            {"thresholding": True},
            {"prediction_type": "no such"},
        )
    ]
    + [
        (
            name,
            stand_ins.OnTable,
            {"clip_sample": clip, "set_alpha_to_one": one, "timestep_spacing": spacing},
        )
        for name, clip, one, spacing in (
            ("DDIMScheduler", True, True, "leading"),
            ("DDIMScheduler", False, False, "trailing"),
            ("TCDScheduler", True, True, "trailing"),
            ("CogVideoXDDIMScheduler", True, False, "linspace"),
            ("LCMScheduler", False, True, "leading"),
        )
    ]
    + [("OursScheduler", stand_ins.Nameless, {"clip_sample": True, "prediction_type": "sample"})]
    + [("DDIMInverseScheduler", stand_ins.Rising, {})],
    "levels": [
        (name, stand_ins.ByLevels, config)
        for name in ("DPMSolverMultistepScheduler",)
        for config in (
            {},
            {"prediction_type": "v_prediction", "rounds": True},
            {"timestep_spacing": "trailing", "use_karras_sigmas": True},
            {
                "prediction_type": "sample",
                "final_sigmas_type": "sigma_min",
                "lower_order_final": True,
            },
            {"use_karras_sigmas": True, "rounds": True},
            {"prediction_type": "v_prediction", "timestep_type": "continuous"},
            {"prediction_type": "v_prediction", "timestep_type": "continuous", "reach": 30.0},
            {"reach": 3.0},
            {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
            {"euler_at_final": True, "final_sigmas_type": "sigma_min", "solver_order": 1},
        )
    ],
    "a line": [
        (name, stand_ins.OnLine, config)
        for name in ("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler")
        for config in (
            {"shift": 3.0},
            {"invert_sigmas": True},
            {"use_dynamic_shifting": True},
            {"whole": True},
            {"prediction_type": "flow_prediction"},
            {"prediction_type": "epsilon"},
            {"stochastic_sampling": True},
        )
    ]
    + [("FlowMatchLCMScheduler", stand_ins.OnLine, {})],
    "EDM": [
        ("EDMEulerScheduler", stand_ins.OfEDM, config)
        for config in (
            {},
            {"prediction_type": "v_prediction", "sigma_data": 1.0},
            {"prediction_type": "sample"},
        )
    ],
}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize(
    "options", [{}, {"integer": False, "clip": True}, {"integer": True, "clip": False}], ids=str
)
def test_what_a_scheduler_makes_of_a_network(kind, options):
    found = {}
    for i, (name, of_kind, config) in enumerate(SCHEDULERS[kind][: 7 if options else None]):
        made = scheduler(name, of_kind, **config)
        field, said = or_error(
            lambda made=made: stk.from_diffusers(wave(), made, (2, 3), **options)
        )
        if isinstance(field, str):
            found[f"{i} {name}"] = field, said
            continue
        grids = [
            or_error(lambda f=field, n=n, o=o: f.grid(n, **o))
            for n, o in ((7, {}), (4, {"mu": 0.7}))
        ]
        found[f"{i} {name}"] = answers(field), said, grids
    recorded(f"diffusers {kind} {sorted(options.items())}", found)


EXACT = [
    (name, of_kind, {"prediction_type": kind, **config})
    for name, of_kind, config in (
        ("DDPMScheduler", stand_ins.OnTable, {}),
        ("EulerDiscreteScheduler", stand_ins.ByLevels, {}),
        ("EulerDiscreteScheduler", stand_ins.ByLevels, {"use_karras_sigmas": True, "rounds": True}),
        ("OursScheduler", stand_ins.Nameless, {}),
    )
    for kind in ("epsilon", "sample", "v_prediction")
]


def test_an_exact_network_on_a_table_has_the_exact_denoiser():
    for name, kind, config in EXACT:
        made = scheduler(name, kind, **config)
        field = stk.from_diffusers(made.exact(), made, (2, 3), integer=True)
        for k in (0, 3, 11, 19):
            t, a = 1 - (k + 1) / stand_ins.TABLE, made.alphas_cumprod[k].double()
            assert abs(float(field.path.alpha(t)) - float(a.sqrt())) < 1e-6, name
            exact = denoised(X, a.sqrt(), (1 - a).sqrt())
            assert (field.denoise(X, t) - exact).abs().max() < 1e-4, (name, config, k)


def test_an_exact_network_of_edm_and_of_a_line_has_the_exact_denoiser():
    """That of EDM has the skip and the scales of the paper; a line's predicts noise - data at `k = N s`."""

    def of_edm(x, k):
        s, spread = (4 * k).exp(), 0.5
        shaped = s.reshape(-1, 1, 1)
        total = (shaped**2 + spread**2).sqrt()
        data = denoised(x * total, torch.ones_like(s), s)
        return (data - spread**2 / total**2 * x * total) * total / (shaped * spread)

    def on_a_line(x, k):
        return -stand_ins.line(x, 1 - torch.as_tensor(k, dtype=x.dtype) / stand_ins.TABLE)

    edm = stk.from_diffusers(of_edm, scheduler("EDMEulerScheduler", stand_ins.OfEDM), (2, 3))
    flow = stk.from_diffusers(
        on_a_line, scheduler("FlowMatchEulerDiscreteScheduler", stand_ins.OnLine), (2, 3)
    )
    for field in (edm, flow):
        for t in (0.1, 0.5, 0.9):
            exact = denoised(X, field.path.alpha(t), field.path.sigma(t))
            assert (field.denoise(X, t) - exact).abs().max() < 1e-4, (field, t)
    levels = 1 / torch.exp(edm.path.log_snr(edm.grid(5)) / 2)
    expected = (20**0.2 + torch.linspace(0, 1, 5).double() * (0.01**0.2 - 20**0.2)) ** 5
    assert torch.allclose(levels, expected, rtol=1e-6)


def test_networks_are_asked_in_each_of_their_ways():
    made, found = scheduler("DDPMScheduler", stand_ins.OnTable), {}
    null = {"class_labels": torch.tensor(0.0)}
    conditions = ({}, {"class_labels": LABELS}, {"time_ids": LABELS, "text_embeds": LABELS / 2})
    double = wave(in_channels=2, sample_size=3, halves=True)
    for name, network, options in (
        ("of diffusers", wave(), {"event_shape": (2, 3)}),
        ("with a variance", double, {"event_shape": (2, 3), "null": null}),
        ("a shape of its own", wave(in_channels=2, sample_size=3), {}),
        ("one axis", wave("UNet1DModel", in_channels=2, sample_size=3), {}),
        ("two sizes", wave(in_channels=2, sample_size=[1, 3]), {}),
        ("no size", wave(in_channels=2), {}),
        ("bfloat16", wave().bfloat16(), {"event_shape": (2, 3)}),
        (
            "a function",
            lambda x, k: (x.cos() + k.reshape(-1, 1, 1) / 9, 3),
            {"event_shape": (2, 3)},
        ),
        (
            "a time of another name",
            lambda x, timesteps: timesteps.reshape(-1, 1, 1) + x,
            {"event_shape": (2, 3)},
        ),
        (
            "a list",
            lambda x, k, **c: [x + sum(c.values()).reshape(-1, 1, 1)],
            {"event_shape": (2, 3)},
        ),
        ("a class", stand_ins.Wave, {"event_shape": (2, 3)}),
        ("a scale", wave(), {"event_shape": (2, 3), "time_scale": 2.0}),
    ):
        field, said = or_error(lambda n=network, o=options: stk.from_diffusers(n, made, **o))
        shaped = getattr(field, "event_shape", None) == (2, 3)
        found[name] = (answers(field, conditions=conditions) if shaped else str(field)), said
    recorded("networks of diffusers", found)


def test_parts_of_pipelines():
    made, found = scheduler("DDPMScheduler", stand_ins.OnTable), {}
    vaes = [
        None,
        {},
        {"scaling_factor": 0.5, "shift_factor": 0.25},
        {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 0.5], "scaling_factor": 2.0},
        {"latents_mean": [0.5, -1.0]},
    ]
    for i, config in enumerate(vaes):
        vae = None if config is None else stand_ins.Decoder(**config)
        pipeline = types.SimpleNamespace(unet=wave(), scheduler=made, vae=vae)
        field = stk.from_diffusers(pipeline, None, (2, 3, 1))
        found[i] = sorted(offers(field)), field.decode and field.decode(X[..., None])
    for parts in (
        {"transformer": wave()},
        {"unet": wave(), "transformer": wave()},
        {},
        {"unet": wave(), "controlnet": wave()},
    ):
        pipeline = types.SimpleNamespace(scheduler=made, **parts)
        found[str(sorted(parts))] = told(
            or_error(lambda p=pipeline: stk.from_diffusers(p, None, (2, 3)).predict(X, 0.4))
        )
    recorded("pipelines of diffusers", found)


def test_clocks_of_all_architectures():
    seen = {}
    for name in [*CLOCKS, "UnknownTransformer2DModel"]:
        kinds = stand_ins.Wave, of("diffusers", "ModelMixin")
        network = of("diffusers.models", name, *kinds)(timestep_scale=0.5)
        for held in (network, nn.Sequential(network), nn.DataParallel(network)):
            for scale in (None, 2.0, 0.0) if name in list(CLOCKS)[::9] else (None,):
                kind = "" if held is network else type(held).__name__
                seen[f"{name} {kind} {scale}"] = or_error(
                    lambda n=held, s=scale: clock_of(n, 20, s)
                )
    recorded("clocks of diffusers", seen)


# denoisers and velocities

NORMAL = td.Independent(td.Normal(torch.zeros(3), torch.ones(3)), 1)


def turned(t, x):
    return stand_ins.line(x, t)


ROOT = lambda t: (1 - t**2).sqrt()  # noqa: E731
FOREIGN = {
    "azula": lambda: stk.from_azula(stand_ins.azula(), (3,)),
    "azula, a time for all": lambda: stk.from_azula(stand_ins.azula(vector=False), (3,)),
    "azula, a function": lambda: stk.from_azula(lambda x, t: x, (3,)),
    "k-diffusion": lambda: stk.from_k_diffusion(stand_ins.k_diffusion(), (3,)),
    "k-diffusion, VE": lambda: stk.from_k_diffusion(
        stand_ins.k_diffusion("VDenoiser"), (3,), stk.VE()
    ),
    "k-diffusion, a schedule": lambda: stk.from_k_diffusion(
        stand_ins.k_diffusion(
            "DiscreteSchedule",
            sigmas=torch.tensor([0.1, 9.0]),
            sigma_min=torch.tensor(0.1),
            sigma_max=torch.tensor(9.0),
        ),
        (3,),
    ),
    "k-diffusion, a function": lambda: stk.from_k_diffusion(lambda x, s: x, (3,)),
    "torchcfm": lambda: stk.from_torchcfm(turned, (3,)),
    "torchcfm, rows": lambda: stk.from_torchcfm(
        of("torchcfm.models", "MLP", stand_ins.Rows)(), (3,)
    ),
    "torchcfm, a base": lambda: stk.from_torchcfm(turned, (3,), base=NORMAL),
    "torchcfm, an object": lambda: stk.from_torchcfm(lambda t, x: x, (3,), object()),
    "torchcfm, a kind of its own": lambda: stk.from_torchcfm(
        lambda t, x: x,
        (3,),
        stand_ins.matcher("ConditionalFlowMatcher", compute_mu_t=lambda self: 3),
    ),
    **{
        f"torchcfm, {name} {sigma}": lambda name=name, sigma=sigma: stk.from_torchcfm(
            lambda t, x: stand_ins.velocity(x, *scales(name, sigma, t)),
            (3,),
            stand_ins.matcher(name, sigma),
        )
        for name in (
            "ConditionalFlowMatcher",
            "TargetConditionalFlowMatcher",
            "VariancePreservingConditionalFlowMatcher",
            "ExactOptimalTransportConditionalFlowMatcher",
            "SchrodingerBridgeConditionalFlowMatcher",
            "NoSuchMatcher",
        )
        for sigma in (0.0, 0.25)
    },
    "flow_matching": lambda: stk.from_flow_matching(stand_ins.line, (3,)),
    "flow_matching, affine": lambda: stk.from_flow_matching(
        lambda x, t: stand_ins.velocity(x, t, ROOT(t), torch.ones_like(t), -t / ROOT(t)),
        (3,),
        stand_ins.affine(lambda t: t, ROOT),
    ),
    "flow_matching, a time for all": lambda: stk.from_flow_matching(
        lambda x, t: stand_ins.line(x, float(t)),
        (3,),
        stand_ins.affine(lambda t: t, lambda t: 1 - t),
    ),
    "flow_matching, another path": lambda: stk.from_flow_matching(lambda x, t: x, (3,), object()),
    "flow_matching, a base": lambda: stk.from_flow_matching(
        stand_ins.line, (3,), stand_ins.affine(lambda t: t, lambda t: 1 - t), NORMAL
    ),
}


def scales(name, sigma, t):
    """`(alpha, sigma, alpha', sigma')` of a path of torchcfm."""
    one = torch.ones_like(t)
    if name.startswith("Target"):
        return t, 1 - (1 - sigma) * t, one, -(1 - sigma) * one
    if name.startswith("Variance"):
        a = math.pi / 2
        return (a * t).sin(), (a * t).cos(), a * (a * t).cos(), -a * (a * t).sin()
    spread = ((1 - t) ** 2 + sigma**2).sqrt()
    return t, spread, one, -(1 - t) / spread


@pytest.mark.parametrize("name", FOREIGN)
def test_denoisers_and_velocities(name):
    field, said = or_error(FOREIGN[name])
    if isinstance(field, str):
        recorded(f"foreign {name}", (field, said))
        return
    conditions = (
        ({}, {"c": torch.linspace(0, 1, 4).double()[:, None]}) if "t, x" not in name else ({},)
    )
    try:
        found = answers(field, FLAT, conditions)
    except TypeError:
        found = answers(field, FLAT)
    recorded(f"foreign {name}", (found, said))
    if "denoise" in offers(field):
        for t in (0.2, 0.5, torch.tensor([0.3, 0.6, 0.9, 0.4]).double()):
            exact = denoised(FLAT, field.path.alpha(t), field.path.sigma(t))
            assert (field.denoise(FLAT, t) - exact).abs().max() < 1e-4, (name, t)


# language models

MODELS = {
    "causal": (
        stand_ins.Causal,
        "OursLMHeadModel",
        {"bos_token_id": 1},
        [{}, {"before": [2, 3]}, {"before": []}],
    ),
    "causal, given": (
        stand_ins.Causal,
        "OursForCausalLM",
        {},
        [
            {},
            {"before": [0], "constraint": [4, None, 2]},
            {"before": [0], "constraint": {2: 1}},
            {"before": [0], "constraint": {3: 1}},
            {"before": [0], "constraint": [1, 2, 3]},
            {"before": [0], "after": [1]},
            {"before": [0], "mask": 1},
            {"before": [7]},
            {"before": "text"},
            {"before": [0], "constraint": [None, 9, None]},
        ],
    ),
    "masked": (
        stand_ins.Masked,
        "OursForMaskedLM",
        {},
        [
            {"mask": 0},
            {"mask": 4, "before": [1], "after": [2, 3]},
            {},
            {"mask": 4, "constraint": [None, 2, None]},
            {"mask": 4, "constraint": {0: 2}},
            {"mask": 5},
        ],
    ),
    "masked, said": (stand_ins.Masked, "OursForMaskedLM", {"mask_token_id": 0}, [{}, {"mask": 3}]),
    "either": (stand_ins.Masked, "OursWithLMHeadModel", {}, [{"mask": 2}, {}, {"before": [1]}]),
    "short": (stand_ins.Causal, "OursLMHeadModel", {"bos_token_id": 1, "n_positions": 3}, [{}]),
    "long enough": (
        stand_ins.Causal,
        "OursLMHeadModel",
        {"bos_token_id": 1, "max_position_embeddings": 4},
        [{}],
    ),
    "no head": (stand_ins.Causal, "OursModel", {}, [{"before": [1]}]),
}


def texts(length, vocabulary=5):
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("counts", [None, 1])
def test_language_models(name, counts):
    kind, title, config, options = MODELS[name]
    found = {}
    for chosen in options:
        lm = stand_ins.language(kind, title, counts, pad_token_id=counts, **config)
        field, said = or_error(lambda lm=lm, o=chosen: stk.from_language_model(lm, 3, **o))
        if isinstance(field, str):
            found[str(chosen)] = field, said
            continue
        noise = Noise(3, 6, dtype=torch.float64)
        soft = torch.softmax(randn(4, *field.event_shape), -1)
        hard = nn.functional.one_hot(texts(field.event_shape[0]), 5).double()
        ids = field.decode(hard)
        assert (field.energy(hard) + by_ids(lm, field, ids)).abs().max() < 1e-9
        found[str(chosen)] = [
            repr(field), field.event_shape, sorted(offers(field)), field.energy(soft), field.score(soft),
            field.energy_and_grad(hard[:9]), ids, field.initial(6, noise), field.one_hot(ids),
            or_error(lambda f=field, x=hard: f.log_prob(x)), or_error(lambda f=field: f.draw(6, Noise(3, 6))),
            *(or_error(lambda f=field, i=i: f.one_hot(i)) for i in (ids[:, :1], ids + 1, ids.double())), said,
        ]  # fmt: skip
        if "log_prob" in offers(field):
            assert abs(float(field.log_prob(hard).detach().exp().sum()) - 1) < 1e-9
    recorded(f"language {name} {counts}", found)


def by_ids(lm, field, ids):
    """The log likelihood of texts by their ids, or the pseudo-log-likelihood, as the formulas have them."""
    n = len(ids)
    before, after = (part.expand(n, -1) for part in (field.before, field.after))
    whole = torch.cat([before, ids, after], 1)
    k, total = before.shape[1], torch.zeros(n).double()
    for i in range(k, k + ids.shape[1]):
        if field.masked:
            hidden = whole.clone()
            hidden[:, i] = field.mask
            if field.pad == field.mask:
                return -field.energy(nn.functional.one_hot(ids[:, field.template < 0], 5).double())
            logits = lm(input_ids=hidden).logits[:, i]
        else:
            logits = lm(input_ids=whole).logits[:, i - 1]
        total += torch.log_softmax(logits, -1)[torch.arange(n), whole[:, i]]
    return total


# Pyro


def models_of_pyro(pyro):
    late_calls, leaving_calls, count = (
        iter((0.0, 0.0, 0.0, 1.0)),
        iter((0, 0, 1, 0)),
        itertools.count(),
    )
    y = torch.tensor([0.5, -1.0, 2.0])

    def normal(data=y):
        mu = pyro.sample("mu", law_of(td.Normal(0.0, 2.0)))
        tau = pyro.sample("tau", law_of(td.Gamma(2.0, 3.0)))
        return pyro.sample("y", td.Normal(mu, tau), obs=data)

    def by_value():
        mu = pyro.sample("mu", law_of(td.Normal(0.0, 2.0)))
        if mu > 0:
            pyro.sample("y", td.Normal(mu, 1.0), obs=y)

    def moving():
        mu = pyro.sample("mu", law_of(td.Normal(0.0, 2.0)))
        pyro.sample("k", law_of(td.Uniform(mu, mu + 1)))

    def late():
        pyro.sample("k", law_of(td.Uniform(0.0, 1.0 + next(late_calls))))

    def leaving():
        pyro.sample("a", law_of(td.Normal(0.0, 1.0)))
        if next(leaving_calls):
            pyro.sample("b", law_of(td.Normal(0.0, 1.0)))

    def observed():
        pyro.sample("y", td.Normal(0.0, 1.0), obs=y)

    def discrete():
        pyro.sample("k", law_of(td.Poisson(torch.tensor(3.0))))

    def changing():
        mu = pyro.sample("mu", law_of(td.Normal(0.0, 2.0)))
        pyro.sample("y", td.Normal(mu + next(count), 1.0), obs=y)

    def refused():
        tau = pyro.sample("tau", law_of(td.Normal(0.0, 1.0)))
        pyro.sample("y", td.Gamma(1.0 - tau, 1.0, validate_args=False), obs=y.abs())

    def failing():
        raise ValueError("theirs")

    def several():
        w = pyro.sample("w", law_of(td.Dirichlet(torch.tensor([1.0, 2.0, 3.0]))))
        z = pyro.sample("z", law_of(td.Independent(td.Normal(torch.zeros(2), 1.0), 1)))
        pyro.sample("y", td.Normal(w.sum() + z.sum(), 1.0), obs=torch.tensor(0.25))

    return (
        normal,
        by_value,
        moving,
        late,
        leaving,
        observed,
        discrete,
        changing,
        refused,
        failing,
        several,
    )


def test_models_of_pyro():
    pyro, found = stand_ins.Pyro(), {}
    with pyro.installed():
        for model in models_of_pyro(pyro):
            field, said = or_error(lambda m=model: stk.from_pyro(m))
            if isinstance(field, str):
                found[model.__name__] = field, said
                continue
            z = randn(4, *field.event_shape).float()
            found[model.__name__] = (
                repr(field),
                sorted(offers(field)),
                field.energy(z),
                field.score(z),
                said,
            )
    recorded("models of Pyro", found)


def test_the_energy_of_a_model_of_pyro_is_that_of_its_laws():
    pyro, y = stand_ins.Pyro(), torch.tensor([0.5, -1.0, 2.0])
    with pyro.installed():
        field = stk.from_pyro(models_of_pyro(pyro)[0], y + 1)
        z = randn(4, 2).float()
        mu, tau = z[:, 0], z[:, 1].exp()
        log = td.Normal(0.0, 2.0).log_prob(mu) + td.Gamma(2.0, 3.0).log_prob(tau) + z[:, 1]
        log = log + td.Normal(mu[:, None], tau[:, None]).log_prob(y + 1).sum(1)
        assert torch.allclose(field.energy(z), -log, atol=1e-5)


# normalizing flows


def affine(package, name="Affine", shift=0.5, log_scale=0.25, **options):
    return stand_ins.layer(package, name, "affine", shift, log_scale, **options)


def of_class(package, name, kind):
    return lambda: stand_ins.layer(package, name, kind)


SIGMOID, TANH = of_class("nflows", "Sigmoid", "sigmoid"), of_class("nflows", "Tanh", "tanh")
SPLINE = of_class("nflows", "PiecewiseRationalQuadraticCDF", "square")
FLOWS = {
    "nflows": lambda: stand_ins.nflows(affine("nflows"), affine("nflows", shift=-1.0)),
    "nflows, a base of its own": lambda: stand_ins.nflows(affine("nflows"), base="DiagonalNormal", mean=1.0, log_std=0.5),
    "nflows, another base": lambda: stand_ins.nflows(affine("nflows"), base="Theirs"),
    "nflows, of states": lambda: stand_ins.nflows(affine("nflows"), base="ConditionalIndependentBernoulli"),
    "nflows, a context": lambda: stand_ins.nflows(affine("nflows", context_features=3)),
    "nflows, a base by a context": lambda: stand_ins.nflows(
        affine("nflows", context_features=3), base="ConditionalDiagonalNormal"
    ),
    "nflows, onto a part": lambda: stand_ins.nflows(affine("nflows"), SIGMOID()),
    "nflows, from a part": lambda: stand_ins.nflows(stand_ins.inverse_of_nflows(SIGMOID()), affine("nflows")),
    "nflows, from a part that is led back": lambda: stand_ins.nflows(
        affine("nflows"), stand_ins.inverse_of_nflows(TANH()), affine("nflows")
    ),
    "nflows, a spline": lambda: stand_ins.nflows(SPLINE(), stand_ins.inverse_of_nflows(SIGMOID())),
    "nflows, a spline within": lambda: stand_ins.nflows(
        SIGMOID(), SPLINE(), stand_ins.inverse_of_nflows(SIGMOID())
    ),
    "nflows, turned": lambda: stand_ins.nflows(
        stand_ins.inverse_of_nflows(stand_ins.nflows(SIGMOID(), affine("nflows"))._transform)
    ),
    "nflows, by chance": lambda: stand_ins.nflows(stand_ins.layer("nflows", "Noisy", "noisy")),
    "normflows": lambda: stand_ins.normflows(affine("normflows"), affine("normflows", shift=-1.0)),
    "normflows, hot": lambda: stand_ins.normflows(affine("normflows"), temperature=2.0),
    "normflows, another base": lambda: stand_ins.normflows(affine("normflows"), base="Theirs"),
    "FrEIA": lambda: stand_ins.freia(affine("FrEIA"), stand_ins.layer("FrEIA", "Flip", "flip")),
    "FrEIA, a condition": lambda: stand_ins.freia(affine("FrEIA"), affine("FrEIA"), conditions=(None, 0)),
    "FrEIA, two conditions": lambda: stand_ins.freia(affine("FrEIA"), affine("FrEIA"), conditions=(2, 0)),
    "FrEIA, onto a part": lambda: stand_ins.freia(stand_ins.layer("FrEIA", "Sigmoid", "sigmoid")),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_flows(name):
    flow = FLOWS[name]()
    field, said = or_error(lambda: stk.from_flow(flow))
    if isinstance(field, str):
        return recorded(f"flow {name}", (field, said))
    cond = (
        {n: torch.linspace(-1, 1, 4 * 3).double().reshape(4, 3) for n in field.flow.names}
        if field.conditional
        else {}
    )
    if "FrEIA" in name:
        cond = {n: v[:, :1] for n, v in cond.items()}
    x = randn(4, 2, seed=5)
    found = [
        repr(field),
        field.event_shape,
        sorted(offers(field)),
        field.conditional,
        str(field.within),
        *(
            or_error(lambda y=y: field.log_prob(y, **cond))
            for y in (x, 0.9 * x.sigmoid(), x[:0], 4 * x)
        ),
        or_error(lambda: field.score(0.9 * x.sigmoid(), **cond)),
        or_error(lambda: field.draw(4, Noise(3, 4), **cond)),
        or_error(lambda: field.draw(4, Noise(3, 4), strange=x)),
        or_error(lambda: field.log_prob(x, **{n: v[:1] for n, v in cond.items()})),
        said,
    ]
    recorded(f"flow {name}", found)
    if "draw" in offers(
        field
    ):  # the density of a draw is its base's at the noise, over the Jacobian
        drawn = field.draw(4, Noise(3, 4), **cond)
        z = field.flow.forward(drawn, cond)
        torch.testing.assert_close(z, field.flow.base(Noise(3, 4), cond).to(z))
    if not cond:
        assert abs(mass(field) - 1) < 0.02


def mass(field, n=220):
    """The integral of a density of two independent numbers, on a grid."""
    ends = (-9.0, 9.0)
    line = torch.linspace(*ends, n).double()
    at = torch.cartesian_prod(line, line)
    fine = field.log_prob(at).exp().sum() * (line[1] - line[0]) ** 2
    if field.support is None:
        return float(fine)
    free = field.over_support()
    return float((-free.energy(at)).exp().sum() * (line[1] - line[0]) ** 2)


# sbi

BOX = td.Independent(
    td.Uniform(-torch.ones(2), 2 * torch.ones(2), validate_args=False), 1, validate_args=False
)
GAUSS = td.Independent(td.Normal(torch.zeros(2), 1.0), 1)
TWO = td.Independent(
    td.TransformedDistribution(td.Uniform(torch.zeros(2), 1.0), [td.AffineTransform(1.0, 2.0)]), 1
)
OBSERVED = torch.tensor([0.5, -1.0])
POSTERIORS = {
    "an observation": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(GAUSS), OBSERVED),
    "trials": lambda: stk.from_sbi(
        stand_ins.posterior_of_sbi(GAUSS), torch.stack([OBSERVED, -OBSERVED])
    ),
    "a default": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(GAUSS, OBSERVED)),
    "a default and another": lambda: stk.from_sbi(
        stand_ins.posterior_of_sbi(GAUSS, OBSERVED), 2 * OBSERVED
    ),
    "a box": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(BOX), OBSERVED),
    "a support": lambda: stk.from_sbi(
        stand_ins.posterior_of_sbi(GAUSS), OBSERVED, support=td.constraints.greater_than(-3.0)
    ),
    "a prior on a part": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(TWO), OBSERVED),
    "rows": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(GAUSS)),
    "a potential": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(GAUSS).potential_fn, OBSERVED),
    "by chance": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(GAUSS, chance=True), OBSERVED),
    "another shape of x": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(GAUSS), torch.ones(3)),
    "no prior": lambda: stk.from_sbi(stand_ins.posterior_of_sbi(None), OBSERVED),
    "a function": lambda: stk.from_sbi(lambda theta: theta, OBSERVED),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors_of_sbi(name):
    field, said = or_error(POSTERIORS[name])
    if isinstance(field, str):
        return recorded(f"posterior of sbi, {name}", (field, said if name != "by chance" else ""))
    theta = randn(4, *field.event_shape, seed=5).float()
    rows = torch.stack([OBSERVED * k for k in range(1, 5)])
    conditions = ({}, {"x_o": rows}, {"x_o": rows[:, :1]})
    found = [
        or_error(lambda c=c: field.energy(theta, **c))
        for c in conditions
        if not c or name == "rows"
    ]
    recorded(f"posterior of sbi, {name}", (field.event_shape, found, said))
    if name in ("an observation", "a default", "a potential"):
        exact = GAUSS.log_prob(theta) - (theta - OBSERVED).square().sum(1) / 2
        torch.testing.assert_close(field.energy(theta), -exact)
    if name == "rows":
        exact = GAUSS.log_prob(theta) - (theta - rows).square().sum(1) / 2
        torch.testing.assert_close(field.energy(theta, x_o=rows), -exact)


# supports of laws, and scikit-learn


def mixed(law):
    return td.MixtureSameFamily(
        td.Categorical(torch.ones(law.batch_shape[-1:])), law, validate_args=False
    )


LOW = torch.tensor([[0.0, -1.0, 2.0], [0.0, -1.0, 2.0]])
MIXTURES = {
    "one box": mixed(td.Independent(td.Uniform(LOW, LOW + 1), 1)),
    "two boxes": mixed(td.Independent(td.Uniform(LOW + torch.tensor([[0.0], [0.5]]), LOW + 2), 1)),
    "two ends": mixed(td.Independent(td.Uniform(LOW, LOW + torch.tensor([[1.0], [2.0]])), 1)),
    "numbers": mixed(td.Uniform(torch.zeros(2), 1.0)),
    "numbers apart": mixed(td.Uniform(torch.tensor([0.0, 0.5]), 2.0)),
    "ends by rounding": mixed(td.Uniform(torch.zeros(2), torch.tensor([1.0, 1.0 + 1e-7]))),
    "real": mixed(td.Independent(td.Normal(LOW, 1.0), 1)),
    "positive": mixed(td.Independent(td.Gamma(LOW.abs() + 1, 1.0), 1)),
    "vectors": mixed(td.MultivariateNormal(LOW, torch.eye(3))),
    "simplex": mixed(td.Dirichlet(LOW.abs() + 1)),
    "matrices of boxes": mixed(td.Independent(td.Uniform(torch.stack([LOW, LOW]), torch.stack([LOW, LOW]) + 1), 2)),
    "matrices apart": mixed(td.Independent(td.Uniform(torch.stack([LOW, LOW - 1]), torch.stack([LOW, LOW]) + 1), 2)),
    "of a mixture": td.Independent(mixed(td.Uniform(torch.zeros(3, 2), 1.0)), 1),
    "of mixtures apart": td.Independent(mixed(td.Uniform(torch.tensor([0.0, 0.5]).expand(3, 2), 2.0)), 1),
    "Pareto": mixed(td.Pareto(torch.tensor([1.0, 2.0]), 3.0)),
    "transformed": mixed(td.TransformedDistribution(td.Uniform(torch.zeros(2), 1.0), [td.AffineTransform(1.0, 2.0)])),
    "exp": td.TransformedDistribution(td.Normal(torch.zeros(3), 1.0), [td.ExpTransform()]),
    "sigmoid": td.TransformedDistribution(td.Normal(torch.zeros(3), 1.0), [td.SigmoidTransform(), td.AffineTransform(-1.0, 2.0)]),
    "moved": td.TransformedDistribution(td.Gamma(torch.ones(3), 1.0), [td.AffineTransform(1.0, -2.0)]),
    "half": td.HalfNormal(torch.ones(3)),
    "angle": td.VonMises(torch.zeros(3), 1.0),
    "counts": td.Poisson(torch.ones(3)),
}  # fmt: skip


def test_supports_of_laws_are_told_and_checked():
    found = {}
    for name, law in MIXTURES.items():
        asks = {
            "density": lambda law=law: law_supports.check_density("x", law),
            "support": lambda law=law: law_supports.check_supports("x", law),
            "angle": lambda law=law: law_supports.is_angle("x", law),
            "within": lambda law=law: [str(s) for s in law_supports.supports_within(law)],
            "bare": lambda law=law: str(law_supports.bare_support(law.support)),
        }
        found[name] = {ask: or_its_error(made) for ask, made in asks.items()}
        apart = name in (
            "two boxes",
            "two ends",
            "numbers apart",
            "matrices apart",
            "of mixtures apart",
            "Pareto",
        )
        assert ("mixture said" in str(found[name]["support"])) is apart, name
    recorded("supports of laws", found)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_mixtures_of_scikit_learn_of_any_place_and_shape_are_taken(kind):
    mixture = pytest.importorskip("sklearn.mixture")
    precisions = pytest.importorskip(
        "sklearn.mixture._gaussian_mixture"
    )._compute_precision_cholesky
    spun = torch.linalg.qr(randn(2, 2, seed=3)).Q.numpy()
    for far, long in itertools.product((0.0, 1e2, 1e4, 1e7), (1.0, 1e2, 1e4)):
        gm = mixture.GaussianMixture(3, covariance_type=kind)
        gm.weights_ = np.array([0.5, 0.3, 0.2])
        gm.means_ = far + randn(3, 2, seed=4).numpy()
        full = spun @ np.diag([1.0, long**2]) @ spun.T
        gm.covariances_ = {
            "full": np.stack([full, 2 * full, np.eye(2)]),
            "tied": full,
            "diag": np.array([[1.0, long**2], [2.0, 1.0], [1.0, 1.0]]),
            "spherical": np.array([1.0, long**2, 0.25]),
        }[kind]
        gm.precisions_cholesky_ = precisions(gm.covariances_, kind)
        field, x = stk.from_sklearn(gm), gm.means_ + np.array([0.5, -long / 2])
        if far > 1e4:  # where its own has few digits
            continue
        np.testing.assert_allclose(
            field.log_prob(torch.as_tensor(x)), gm.score_samples(x), rtol=1e-5, atol=1e-5
        )
        gm.precisions_cholesky_ = gm.precisions_cholesky_ * 1.05
        with pytest.raises(stk.InvalidArgument, match="agree with each other"):
            stk.from_sklearn(gm)
