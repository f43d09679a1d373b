"""Small objects that stand in for those of libraries that are large: classes of their names, with what adapters read of them.

They are written from what the libraries document, and hold an adapter to its own formulas; that these are the library's is
for `make adapters`, which has the libraries themselves.
"""

import contextlib
import math
import sys
import types

import torch
from torch import nn

MEAN, STD = 0.3, 0.4
"""The law of each number of the data that exact models are of."""


def of(package, name, *bases, **body):
    """A class of another package."""
    return types.new_class(name, bases, {}, lambda space: space.update(body, __module__=package))


def denoised(x, alpha, sigma):
    """The mean of the data given `x = alpha data + sigma noise`."""
    alpha, sigma = (torch.as_tensor(v).to(x) for v in (alpha, sigma))
    alpha, sigma = (v.reshape(-1, *(1 for _ in x.shape[1:])) for v in (alpha, sigma))
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def prediction(kind, x, alpha, sigma):
    data = denoised(x, alpha, sigma)
    alpha, sigma = (
        torch.as_tensor(v).to(x).reshape(-1, *(1 for _ in x.shape[1:])) for v in (alpha, sigma)
    )
    noise = (x - alpha * data) / sigma
    return {"epsilon": noise, "sample": data, "v_prediction": alpha * noise - sigma * data}[kind]


# diffusers

TABLE = 20
"""N, the timesteps of a table."""


def spaced(steps, spacing):
    """Timesteps of a table, as diffusers spaces them."""
    if spacing == "linspace":
        return torch.linspace(0, TABLE - 1, steps, dtype=torch.float64).flip(0)
    if spacing == "leading":
        return (torch.arange(steps) * (TABLE // steps)).flip(0).double()
    return (TABLE - torch.arange(steps) * (TABLE / steps)).round().double() - 1


class Scheduler:
    """What all schedulers have: their configuration."""

    def _keep(self, **config):
        self.config = {"num_train_timesteps": TABLE, **config}
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(0.01, 0.3, TABLE), 0)
        self.__dict__.update(timesteps=torch.arange(TABLE).flip(0))

    def exact(self, kind=None):
        """The exact model on its table, a function of x and the timestep."""

        def network(x, k):
            levels = self.alphas_cumprod.double()
            a = levels[torch.as_tensor(k).reshape(-1).round().long().clamp(0, TABLE - 1)].sqrt()
            return prediction(kind or self.config["prediction_type"], x, a, (1 - a**2).sqrt())

        return network


class OnTable(Scheduler):
    def __init__(
        self,
        num_train_timesteps=TABLE,
        prediction_type="epsilon",
        timestep_spacing="leading",
        clip_sample=False,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        thresholding=False,
        variance_type="fixed_small",
    ):
        self._keep(**{k: v for k, v in locals().items() if k != "self"})

    def set_timesteps(self, steps):
        self.timesteps = spaced(steps, self.config["timestep_spacing"]).long()


class ByLevels(Scheduler):
    def __init__(
        self,
        num_train_timesteps=TABLE,
        prediction_type="epsilon",
        timestep_spacing="linspace",
        use_karras_sigmas=False,
        timestep_type="discrete",
        final_sigmas_type="zero",
        euler_at_final=False,
        lower_order_final=False,
        solver_order=2,
        rounds=False,
        reach=1.0,
        interpolation_type="linear",
    ):
        self._keep(**{k: v for k, v in locals().items() if k != "self"})
        self.sigmas = (1 / self.alphas_cumprod.double() - 1).sqrt().flip(0)

    def set_timesteps(self, steps):
        config, k = self.config, spaced(steps, self.config["timestep_spacing"])
        every = (1 / self.alphas_cumprod.double() - 1).sqrt()
        low = k.floor().long().clamp(max=TABLE - 2)
        sigmas = torch.lerp(every[low], every[low + 1], k - low)
        if config["use_karras_sigmas"]:
            ends = every[[-1, 0]] ** (1 / 7)
            sigmas = torch.lerp(*ends, torch.linspace(0, 1, steps, dtype=torch.float64)) ** 7
            above = torch.searchsorted(every, sigmas).clamp(1, TABLE - 1)
            a, b = every[above - 1].log(), every[above].log()
            k = above - 1 + ((sigmas.log() - a) / (b - a)).clamp(0, 1)
        sigmas = sigmas * config["reach"]
        if config["timestep_type"] == "continuous":
            k = sigmas.log() / 4
        elif config["rounds"]:
            k = k.round().long()
        last = 0.0 if config["final_sigmas_type"] == "zero" else float(every[0])
        self.timesteps, self.sigmas = k, torch.cat([sigmas, sigmas.new_tensor([last])])


class OnLine(Scheduler):
    def __init__(
        self,
        num_train_timesteps=TABLE,
        prediction_type=None,
        use_flow_sigmas=True,
        invert_sigmas=False,
        use_dynamic_shifting=False,
        shift=1.0,
        whole=False,
        stochastic_sampling=False,
    ):
        self._keep(**{k: v for k, v in locals().items() if k not in ("self",) and v is not None})
        del self.alphas_cumprod
        self.sigmas = torch.linspace(1, 1 / TABLE, TABLE)

    def set_timesteps(self, steps, mu=None):
        s = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
        shift = self.config["shift"] if mu is None else math.exp(mu)
        s = shift * s / (1 + (shift - 1) * s)
        s = 1 - s if self.config["invert_sigmas"] else s
        end = 1.0 if self.config["invert_sigmas"] else 0.0
        self.sigmas = torch.cat([s, s.new_tensor([end])])
        self.timesteps = (s * TABLE).long() if self.config["whole"] else s * TABLE


class OfEDM(Scheduler):
    def __init__(
        self,
        num_train_timesteps=TABLE,
        prediction_type="epsilon",
        sigma_min=0.01,
        sigma_max=20.0,
        sigma_data=0.5,
        rho=5.0,
    ):
        self._keep(**{k: v for k, v in locals().items() if k != "self"})
        del self.alphas_cumprod

    def set_timesteps(self, steps):
        low, high, rho = (self.config[n] for n in ("sigma_min", "sigma_max", "rho"))
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        self.timesteps, self.sigmas = levels.log() / 4, torch.cat([levels, levels.new_zeros(1)])


class Rising(OnTable):
    def set_timesteps(self, steps):
        super().set_timesteps(steps)
        self.timesteps = self.timesteps.flip(0)


class Nameless(Scheduler):
    """A scheduler whose class names none of its settings."""

    def __init__(self, **config):
        self._keep(**config)

    def set_timesteps(self, steps):
        self.timesteps = spaced(steps, "leading").long()


def scheduler(name, kind, **config):
    return of("diffusers.schedulers", name, kind)(**config)


class Wave(nn.Module):
    """A network of diffusers: a function of x, its time and conditions that tells them apart."""

    def __init__(self, halves=False, **config):
        super().__init__()
        self.halves, self.config = halves, config
        self.weight = nn.Parameter(torch.tensor(0.75))

    def forward(self, sample, timestep, class_labels=None, added_cond_kwargs=None):
        k = timestep.to(sample).reshape(-1, *(1 for _ in sample.shape[1:]))
        found = torch.sin(2 * sample) * self.weight + torch.cos(k / 3)
        for value in (class_labels, *(added_cond_kwargs or {}).values()):
            if value is not None:
                found = found + value.to(found).reshape(-1, *(1 for _ in sample.shape[1:])) / 8
        if self.halves:
            found = torch.cat([found, 9 + found], 1)
        return types.SimpleNamespace(sample=found)


def wave(name="UNet2DModel", **config):
    return of("diffusers.models", name, Wave)(**config)


class Decoder:
    def __init__(self, **config):
        self.config = config

    def decode(self, z):
        return (z.repeat(1, 1, 2, 1),)


# denoisers and velocities


def azula(vector=True):
    """A denoiser of azula on `alpha = 1 - t`, `sigma^2 = t^2 + .01`, which takes a time a row or one for all."""

    def call(self, x, t, **cond):
        alpha, sigma = self.schedule(t)
        if not vector and t.ndim:
            raise TypeError("a time for all rows")
        return types.SimpleNamespace(mean=denoised(x, alpha, sigma) + sum(cond.values(), 0.0))

    body = {"__call__": call, "schedule": lambda self, t: (1 - t, (t**2 + 0.01).sqrt())}
    name = "Ours" if vector else "GaussianDenoiser"
    return of("azula.denoise", name, of("azula.denoise", "Denoiser"), **body)()


def k_diffusion(name="Denoiser", **own):
    def call(self, x, sigma, **cond):
        return denoised(x, torch.ones_like(sigma), sigma) + sum(cond.values(), 0.0)

    return of("k_diffusion.external", name, __call__=call, **own)()


def velocity(x, alpha, sigma, dalpha, dsigma):
    """The mean of dx/dt given x."""
    data = denoised(x, alpha, sigma)
    shaped = [
        torch.as_tensor(v).to(x).reshape(-1, *(1 for _ in x.shape[1:]))
        for v in (alpha, sigma, dalpha, dsigma)
    ]
    alpha, sigma, dalpha, dsigma = shaped
    return dalpha * data + dsigma * (x - alpha * data) / sigma


def line(x, t):
    t = torch.as_tensor(t)
    return velocity(x, t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


def matcher(name, sigma=0.0, **body):
    methods = dict.fromkeys(
        ("compute_mu_t", "compute_sigma_t", "sample_xt", "compute_conditional_flow")
    )
    for method in methods:
        methods[method] = lambda self: None
        methods[method].__module__ = "torchcfm.conditional_flow_matching"
    return of("torchcfm.conditional_flow_matching", name, sigma=sigma, **methods | body)()


class Rows(nn.Module):
    """A model of torchcfm on rows, with the time as their last entry."""

    def forward(self, rows):
        return line(rows[:, :-1], rows[:, -1])


def affine(alpha, sigma):
    """A path of flow_matching."""
    found = lambda self, t: types.SimpleNamespace(alpha_t=alpha(t), sigma_t=sigma(t))  # noqa: E731
    schedule = of("flow_matching.path.scheduler", "Scheduler", __call__=found)()
    return of("flow_matching.path", "AffineProbPath", scheduler=schedule)()


# language models


class Causal(nn.Module):
    """A causal model: logits of the next token by the mean of the embeddings so far, and of the last one."""

    ahead = 0

    def __init__(self, vocabulary=5, width=3, **config):
        super().__init__()
        self.config = types.SimpleNamespace(**config)
        self.table = nn.utils.skip_init(nn.Embedding, vocabulary, width)
        self.head = nn.utils.skip_init(nn.Linear, 2 * width, vocabulary)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.sin(1.7 * torch.arange(p.numel()).reshape(p.shape) + p.ndim))
        self.double()

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, inputs_embeds=None, position_ids=None):
        e = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        if self.counts is not None:  # positions by ids, those of the pad token apart
            if position_ids is None:
                counted = (
                    (input_ids != self.counts).long()
                    if input_ids is not None
                    else torch.ones(e.shape[:2])
                )
                position_ids = counted.cumsum(1) * counted + self.counts
            e = e + torch.cos(position_ids.to(e))[..., None] / 2
        count = torch.arange(1, e.shape[1] + 1).to(e)[:, None]
        around = e.cumsum(1) / count
        if self.ahead:
            around = around + self.ahead * (e.sum(1, keepdim=True) - e) / 4
        return types.SimpleNamespace(logits=self.head(torch.cat([e, around], -1)))

    counts = None


class Masked(Causal):
    ahead = 1


def language(kind=Causal, name="OursLMHeadModel", counts=None, **config):
    return of("transformers.models", name, kind, counts=counts)(**config)


# Pyro


class _Trace:
    def __init__(self):
        self.nodes = {}

    def log_prob_sum(self):
        return sum(
            (
                site["fn"].log_prob(site["value"]).sum()
                for site in self.nodes.values()
                if site["type"] == "sample"
            ),
            torch.zeros(()),
        )


class Pyro:
    """Effect handlers as Pyro has them, a few lines of each, as modules that can be imported within `installed()`."""

    def __init__(self):
        self.traces, self.held, self.starts = [], [], []

    def sample(self, name, law, obs=None):
        site = {"type": "sample", "name": name, "fn": law, "mask": None, "args": (), "kwargs": {}}
        held = next((data[name] for data in reversed(self.held) if name in data), None)
        start = self.starts[-1] if self.starts else lambda site: site["fn"]()
        observed = obs is not None or held is not None
        site |= {"is_observed": observed, "value": obs if obs is not None else held}
        if not observed:
            site["value"] = start(site)
        if self.traces:
            self.traces[-1].nodes[name] = site
        return site["value"]

    def _within(self, stack, value, model):
        def run(*args, **options):
            stack.append(value() if callable(value) and stack is self.traces else value)
            try:
                return model(*args, **options)
            finally:
                stack.pop()

        return run

    def trace(self, model):
        def get_trace(*args, **options):
            made = _Trace()
            self._within(self.traces, lambda: made, model)(*args, **options)
            return made

        return types.SimpleNamespace(get_trace=get_trace)

    def modules(self):
        poutine = types.ModuleType("pyro.poutine")
        poutine.trace = self.trace
        poutine.condition = lambda model, data: self._within(self.held, data, model)
        poutine.is_validation_enabled = lambda: True
        poutine.enable_validation = lambda on: None
        begin = types.ModuleType("pyro.infer.autoguide.initialization")
        begin.InitMessenger = lambda start: lambda model: self._within(self.starts, start, model)
        names = ("pyro", "pyro.infer", "pyro.infer.autoguide")
        return {name: types.ModuleType(name) for name in names} | {
            poutine.__name__: poutine,
            begin.__name__: begin,
        }

    @contextlib.contextmanager
    def installed(self):
        before = {name: sys.modules.get(name) for name in self.modules()}
        sys.modules.update(self.modules())
        try:
            yield self
        finally:
            for name, module in before.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


def law_of(dist):
    """A law of torch that is called for a draw, as Pyro's are."""
    kind = type(dist)
    own = {"__call__": lambda self: self.sample(), "shape": lambda self: self._extended_shape()}
    dist.__class__ = type(kind.__name__, (kind,), own)
    return dist


# normalizing flows


class Map(nn.Module):
    """A layer: one to one, each entry by itself, from the data to the noise, with the logarithm of its Jacobian.

    `forward` and `inverse` of nflows; those of normflows are the other way round.
    """

    bounded = False

    def __init__(self, kind, shift=0.0, log_scale=0.0, context_features=None, turned=False):
        super().__init__()
        self.kind, self.context_features, self.turned = kind, context_features, turned
        self.register_buffer("shift", torch.as_tensor(shift).double())
        self.register_buffer("log_scale", torch.as_tensor(log_scale).double())

    def _moved(self, x, context):
        return self.shift if context is None else self.shift + context[:, :1]

    def to_noise(self, x, context=None):
        if self.kind == "affine":
            return (x - self._moved(x, context)) * self.log_scale.exp(), self.log_scale.expand_as(
                x
            ).sum(1)
        if self.kind == "sigmoid":
            return x.sigmoid(), (nn.functional.logsigmoid(x) + nn.functional.logsigmoid(-x)).sum(1)
        if self.kind == "tanh":
            return x.tanh(), (1 - x.tanh() ** 2).log().sum(1)
        if self.kind == "square":  # of (0, 1) to itself
            return x.square(), (2 * x).log().sum(1)
        if self.kind == "noisy":
            return x + torch.rand_like(x), 0 * x.sum(1)
        assert self.kind == "flip"
        return x.flip(1), 0 * x.sum(1)

    def to_data(self, z, context=None):
        x = {
            "affine": lambda: z * (-self.log_scale).exp() + self._moved(z, context),
            "sigmoid": z.logit,
            "tanh": z.atanh,
            "square": z.sqrt,
            "noisy": lambda: z,
            "flip": lambda: z.flip(1),
        }[self.kind]()
        return x, -self.to_noise(x, context)[1]

    def forward(self, x, context=None):
        return self.to_data(x, context) if self.turned else self.to_noise(x, context)

    def inverse(self, z, context=None):
        return self.to_noise(z, context) if self.turned else self.to_data(z, context)


def layer(package, name, kind, *given, **options):
    return of(f"{package}.transforms", name, Map)(
        kind, *given, turned=package == "normflows", **options
    )


class Inverse(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self._transform = inner

    def forward(self, x, context=None):
        return self._transform.inverse(x, context)

    def inverse(self, z, context=None):
        return self._transform.forward(z, context)


class Composite(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self._transforms = nn.ModuleList(layers)

    def _each(self, layers, way, x, context):
        total = 0.0
        for part in layers:
            x, log = getattr(part, way)(x, context)
            total = total + log
        return x, total

    def forward(self, x, context=None):
        return self._each(self._transforms, "forward", x, context)

    def inverse(self, z, context=None):
        return self._each(reversed(self._transforms), "inverse", z, context)


class BaseOfNFlows(nn.Module):
    def __init__(self, size, mean=0.0, log_std=0.0):
        super().__init__()
        self._shape = torch.Size([size])
        self.register_buffer("mean_", torch.full((1, size), mean).double())
        self.register_buffer("log_std_", torch.full((1, size), log_std).double())

    def _compute_params(self, context):
        return context[:, :1] + self.mean_, self.log_std_

    def log_prob(self, z, context=None):
        mean, log_std = (
            (self.mean_, self.log_std_) if context is None else self._compute_params(context)
        )
        return (-(((z - mean) / log_std.exp()) ** 2) / 2 - log_std - math.log(2 * math.pi) / 2).sum(
            1
        )


class FlowOfNFlows(nn.Module):
    def __init__(self, transform, base):
        super().__init__()
        self._transform, self._distribution, self._embedding_net = transform, base, nn.Identity()

    def log_prob(self, x, context=None):
        z, log = self._transform(x, context)
        own = context if type(self._distribution).__name__.startswith("Conditional") else None
        return self._distribution.log_prob(z, own) + log


def nflows(*layers, base="StandardNormal", size=2, **options):
    transform = of("nflows.transforms", "CompositeTransform", Composite)(*layers)
    law = of("nflows.distributions", base, BaseOfNFlows)(size, **options)
    return of("nflows.flows", "Ours", FlowOfNFlows, of("nflows.flows", "Flow"))(transform, law)


def inverse_of_nflows(inner):
    return of("nflows.transforms", "InverseTransform", Inverse)(inner)


class BaseOfNormFlows(nn.Module):
    def __init__(self, size, temperature=None):
        super().__init__()
        self.shape, self.temperature = (size,), temperature
        self.register_buffer("loc", torch.full((1, size), 0.5).double())
        self.register_buffer("log_scale", torch.full((1, size), -0.25).double())

    def log_prob(self, z, log_scale=None):
        scale = self.log_scale + math.log(self.temperature or 1.0)
        return (-(((z - self.loc) / scale.exp()) ** 2) / 2 - scale - math.log(2 * math.pi) / 2).sum(
            1
        )


class FlowOfNormFlows(nn.Module):
    def __init__(self, base, layers):
        super().__init__()
        self.q0, self.flows = base, nn.ModuleList(layers)

    def forward(self, z):
        for part in self.flows:
            z = part(z)[0]
        return z

    def log_prob(self, x):
        total = 0.0
        for part in reversed(self.flows):
            x, log = part.inverse(x)
            total = total + log
        return self.q0.log_prob(x) + total


def normflows(*layers, base="DiagGaussian", size=2, **options):
    law = of("normflows.distributions", base, BaseOfNormFlows)(size, **options)
    return of("normflows", "NormalizingFlow", FlowOfNormFlows)(law, layers)


class SequenceINN(nn.Module):
    def __init__(self, size, *layers, conditions=()):
        super().__init__()
        self.dims_in, self.shapes = [(size,)], [(size,)]
        self.module_list = nn.ModuleList(layers)
        self.conditions = [*conditions] or [None] * len(layers)
        for part, at in zip(layers, self.conditions, strict=True):
            part.dims_c = [(1,)] if at is not None else []

    def forward(self, x, c=None, rev=False):
        total = 0.0
        for part, at in (
            reversed([*zip(self.module_list, self.conditions, strict=True)])
            if rev
            else zip(self.module_list, self.conditions, strict=True)
        ):
            own = None if at is None else c[at]
            x, log = part.inverse(x, own) if rev else part(x, own)
            total = total + log
        return x, total


def freia(*layers, size=2, conditions=()):
    return of("FrEIA.framework", "SequenceINN", SequenceINN)(size, *layers, conditions=conditions)


class Potential:
    """A potential of sbi: the log density of parameters at an observation that it holds."""

    device = "cpu"

    def __init__(self, prior, chance=False):
        self.prior, self.x_o, self.chance = prior, None, chance

    def set_x(self, x, x_is_iid=True):
        if x is not None and x.shape[-1] != 2:
            raise ValueError("an observation of two numbers")
        self.x_o, self.iid = x, x_is_iid

    def return_x_o(self):
        return self.x_o

    def __call__(self, theta, track_gradients=True):
        with torch.set_grad_enabled(track_gradients):
            x = self.x_o if self.x_o.ndim > 1 else self.x_o[None]
            each = -(theta[:, None, :2] - x[None]).square().sum(2) / 2
            found = each.sum(1) if self.iid else each.diagonal()
            inside = self.prior.log_prob(theta.to(torch.get_default_dtype()))
            inside = inside if inside.ndim == 1 else inside.sum(1)
            return found + inside + (torch.rand(()) if self.chance else 0)


def posterior_of_sbi(prior, default_x=None, **options):
    kind = of(
        "sbi.inference.posteriors",
        "MCMCPosterior",
        of("sbi.inference.posteriors", "NeuralPosterior"),
    )
    made = kind()
    made.potential_fn = of(
        "sbi.inference.potentials",
        "OwnPotential",
        Potential,
        of("sbi.inference.potentials", "BasePotential"),
    )(prior, **options)
    made.default_x, made.prior = default_x, prior
    return made
