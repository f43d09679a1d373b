"""Everything on an accelerator: the same draws as on the CPU, made there and nowhere else.

By default the accelerator is a pretend one (`tests/accelerator.py`), which computes on the CPU: equal to the bit. With
`--device cuda` or `mps` it is the real one: equal to rounding, from the same noise.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar
from unittest import mock

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

import scoretk as stk
from scoretk.core import noise as core_noise
from scoretk.core.identity import Identity, weights_digest
from scoretk.core.rows import across
from scoretk.demo.bench import gym, low_error
from scoretk.demo.bench.evidence import evidence_of
from scoretk.demo.bench.mnist.data import Split
from scoretk.demo.bench.mnist.published import FAMILIES
from scoretk.demo.bench.mnist.training import Plan as Training
from scoretk.demo.bench.target import Moments, Target
from scoretk.fields.resolve import StaticField
from scoretk.inference import beginning, pilot
from scoretk.learn import (
    Recipe,
    denoising_score_matching,
    fit,
    flow_matching,
    prediction_error,
    stratified,
)
from scoretk.run import replay
from scoretk.run.record import KeepAll, KeepMoments
from scoretk.run.settle import AtTheEnd
from scoretk.run.streaming import Streaming
from scoretk.solvers import EXAMPLES, SOLVERS, is_grid
from scoretk.solvers.warmup import learning, length
from scoretk.solvers.warmup.adaptation import Adaptation
from scoretk.solvers.warmup.scales import approach_steps
from tests import accelerator
from tests.evidence import assert_mean, assert_second_moment, z_limit
from tests.marks import in_turn, slow_but

CHAINS = 31
"""A number that no other axis has: a row a chain is known by it."""
D = 4
QUIET = {"progress": False}


@dataclass(frozen=True)
class Machine:
    """A device under test, and what is measured on it."""

    name: str
    pretended: bool
    float64: bool = True

    @contextmanager
    def on(self):
        """Its ledger, within the block."""
        opened = (
            accelerator.pretend(rows=CHAINS, float64=self.float64)
            if self.pretended
            else accelerator.watch(torch.device(self.name).type, rows=CHAINS)
        )
        with opened as ledger:
            yield ledger

    @property
    def dtype(self):
        return torch.float64 if self.float64 else torch.float32


def machine(asked: str, *, float64: bool) -> Machine:
    if asked == "cpu":
        return Machine(accelerator.NAME, True, float64)
    if float64 != (torch.device(asked).type != "mps"):
        pytest.skip(f"{asked} has float64, or has not")
    return Machine(asked, False, float64)


@pytest.fixture
def device(request):
    """The accelerator, pretended or real."""
    asked = request.config.getoption("--device")
    return machine(asked, float64=torch.device(asked).type != "mps")


@pytest.fixture
def narrow(request):
    """An accelerator without float64."""
    return machine(request.config.getoption("--device"), float64=False)


def tensors(value):
    """All tensors of draws, latents, estimates and their like, by name."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    if isinstance(value, stk.Draws):
        names = ("x", "final", "status", "failed_at", "mean", "var")
        found = {n: vars(value)[n] for n in names}  # x is asked of moments too
        return {n: v for n, v in found.items() if v is not None} | dict(value.stats)
    if isinstance(value, stk.Latents):
        return {"x": value.x, "status": value.status}
    if isinstance(value, stk.Estimate):
        return {"value": value.value, "stderr": value.stderr}
    if isinstance(value, dict):
        return {f"{n}/{m}": v for n, part in value.items() for m, v in tensors(part).items()}
    return {f"{i}/{m}": v for i, part in enumerate(value) for m, v in tensors(part).items()}


HOSTS_OWN = ("a test", "run/checkpoint.py", "core/identity.py")
"""Who may work with rows of chains on the CPU: the tests, and what is written to files or hashed."""


def same_on(
    machine: Machine, run, *, host: tuple[str, ...] = (), rounding: float = 0.0, decides=False
):
    """What `run(device)` gives there is what it gives on the CPU, and was computed there.

    Args:
        host: Where else in the package the host may work with rows of chains.
        rounding: How far the pretended device may be from the CPU; a real one by 1e-5 at least.
        decides: Whether the last digit decides what comes next, as in a tuned run: on a real device
            other sums then make other chains, of which means and spreads are compared.
    """
    here = tensors(run("cpu"))
    with machine.on() as ledger, pytest.MonkeyPatch.context() as patch:
        if machine.pretended:  # a CPU makes it, in windows that take a hundred times these steps
            patch.setattr(core_noise, "WINDOW_FIRST_ACCELERATOR", core_noise.WINDOW_FIRST)
        there = tensors(run(machine.name))
        for name, value in there.items():
            assert value.device.type == torch.device(machine.name).type, f"{name}: {value.device}"
        home = {name: value.detach().cpu() for name, value in there.items()}
        strays = {k: n for k, n in ledger.strays.items() if not k[1].startswith(HOSTS_OWN + host)}
        assert ledger.kernels
    assert not strays, f"computed on the CPU: {strays}"
    assert home.keys() == here.keys()
    if decides and not machine.pretended:
        assert torch.equal(here["status"], home["status"])
        for name in ("x", "final"):
            one, other = here[name].double(), home[name].double()
            assert other.isfinite().all()
            off = (one.mean(0) - other.mean(0)).abs() / (one.std(0) + other.std(0)).clamp(min=1e-9)
            assert off.max() < 3 / math.sqrt(len(one) / 2)  # six standard errors
        return here
    limit = rounding if machine.pretended else max(rounding, 1e-5)
    for name, value in here.items():
        value, other = value.detach(), home[name]
        if value.is_floating_point():
            torch.testing.assert_close(
                other,
                value,
                rtol=limit,
                atol=limit,
                equal_nan=True,
                msg=lambda m, name=name: f"{name}: {m}",
            )
        else:
            assert torch.equal(value, other), name
    return here


# --- fields, made where they are asked for


def well(device="cpu"):
    """A double well beside a Gaussian."""
    return stk.Energy(lambda x: 4 * (x[:, 0] ** 2 - 1) ** 2 + x[:, 1:].square().sum(1) / 2, (D,))


def gaussian_score(device="cpu"):
    return stk.Score(lambda x: -x, (D,))


class Net(nn.Module):
    """A small network of a point and a time, made of the same numbers everywhere."""

    def __init__(self, dim=D, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        shapes = {"enter": (16, dim + 1), "leave": (dim, 16)}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64) / 4
            setattr(self, name, nn.Parameter(value.to(dtype)))

    def forward(self, x, t=None, label=None):
        t = x.new_zeros(len(x)) if t is None else t.to(x.dtype)
        t = t if label is None else t + 0.1 * label.to(x.dtype)
        return torch.tanh(torch.cat([x, t[:, None]], 1) @ self.enter.T) @ self.leave.T


def net(device, dtype=torch.float64):
    return Net(dtype=dtype).to(device)


def module_energy(device, dtype=torch.float64):
    f = net(device, dtype)
    return stk.Energy(lambda x: f(x).sum(1) + x.square().sum(1) / 2, (D,))


def diffusion(device, predicts="data", path=None, dtype=torch.float64):
    return stk.Diffusion(net(device, dtype), (D,), path or stk.EDM(), predicts)


def velocity(device, dtype=torch.float64):
    return stk.Velocity(net(device, dtype), (D,))


def table(n=50):
    return torch.cumprod(1 - torch.linspace(1e-3, 0.2, n, dtype=torch.float64), 0)


def by_timesteps(device):
    f = net(device)
    return stk.from_timesteps(lambda x, k: f(x, k / 50), table(), (D,))


def by_sigmas(device):
    f = net(device)
    return stk.from_sigmas(lambda x, s: f(x, s.log()), (D,))


def by_reversed_time(device):
    return stk.from_reversed_time(net(device), (D,))


def potts(device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    j = torch.randn(6, 6, generator=generator, dtype=torch.float64).to(dtype).to(device)
    return stk.Discrete(stk.Energy(lambda x: -((x @ (j + j.T)) * x).sum(1) / 8, (6,)), (-1.0, 1.0))


def half_line(device):
    return stk.constrained(
        stk.Energy(lambda x: (x - 2 * x.log()).sum(1), (3,)),
        torch.distributions.constraints.positive,
    )


def simplex(device):
    return stk.constrained(
        stk.Energy(lambda x: -(x.log()).sum(1), (3,)), torch.distributions.constraints.simplex
    )


def gamma(device):
    shape = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64, device=device)
    return Independent(torch.distributions.Gamma(shape, shape), 1)


def gamma_of_the_cpu(device):
    return gamma("cpu")


def correlated(device):
    return torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64, device=device),
        torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64, device=device),
    )


def inner(device):
    return torch.distributions.MultivariateNormal(
        torch.zeros(D, dtype=torch.float64, device=device),
        torch.eye(D, dtype=torch.float64, device=device),
    )


def measured(device, operator=None):
    matrix = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    return stk.LinearGaussian(
        stk.Matrix(matrix if operator is None else operator), [0.5, -0.5], 0.3
    )


def posterior(device, prior=diffusion, method=None):
    return stk.posterior(prior(device), measured(device), method)


def conditional(device):
    return stk.Diffusion(net(device), (D,), stk.EDM(), "data", {"label": torch.tensor(0.0)})


def log_of_class(x, t, label):
    return -(x[:, 0] - label).square()


def ring_in_time(device):
    return stk.load("ring-mixture").noised(stk.VP())


def of_variables(device):
    low, high = torch.tensor([0.0, -1.0]), torch.tensor([1.0, 3.0])
    return stk.Energy(
        lambda mu, share, bounded: mu.square() + share.square().sum(1) + bounded.square().sum(1),
        variables={
            "mu": (),
            "share": stk.Variable((3,), torch.distributions.constraints.simplex),
            "bounded": stk.Variable((2,), torch.distributions.constraints.interval(low, high)),
        },
    )


STATIC = {
    "energy": well,
    "energy of variables": of_variables,
    "energy of a module": module_energy,
    "constrained": half_line,
    "simplex": simplex,
    "distribution": gamma,
    "distribution of the CPU": gamma_of_the_cpu,
    "correlated distribution": correlated,
    "product": lambda d: stk.product(well(), inner(d)),
    "tempered": lambda d: stk.tempered(well(), 2.0),
    "mixture": lambda d: stk.mixture([inner(d), stk.from_distribution(inner(d))], [0.3, 0.7]),
    "posterior": lambda d: stk.posterior(inner(d), measured(d)),
    "bridge": lambda d: stk.bridge(inner(d), well(), 0.5),
    "ring-mixture": lambda d: stk.load("ring-mixture"),
    "eight-schools": lambda d: stk.load("eight-schools"),
    "funnel": lambda d: stk.load("funnel"),
    "logistic-regression": lambda d: stk.load("logistic-regression"),
}
TIMED = {
    "data": diffusion,
    **{
        n: partial(diffusion, predicts=n, path=stk.VP())
        for n in ("noise", "score", "velocity", "v")
    },
    "subvp": partial(diffusion, path=stk.SubVP()),
    "linear": partial(diffusion, path=stk.Linear()),
    "cosine": partial(diffusion, path=stk.Cosine()),
    "timesteps": by_timesteps,
    "sigmas": by_sigmas,
    "reversed time": by_reversed_time,
    "smoothed": lambda d: stk.smoothed(well(), samples=8),
    "guided": lambda d: stk.guided(diffusion(d), 2.0, diffusion(d)),
    "guided in an interval": lambda d: stk.guided(
        diffusion(d), 2.0, diffusion(d), interval=(0.5, 2.0)
    ),
    "rescaled": lambda d: stk.guided(diffusion(d), 2.0, diffusion(d), rescale=0.5),
    "posterior": posterior,
    **{
        f"posterior by {type(m).__name__}": partial(posterior, method=m)
        for m in (stk.PiGDM(), stk.DPS(), stk.MMPS(), stk.TMPD(), stk.Replacement())
        if not isinstance(m, stk.Replacement)
    },
    "noised mixture": ring_in_time,
}
SCORED = {
    "tempered": lambda d: stk.tempered(diffusion(d), 2.0),
    "product": lambda d: stk.product(diffusion(d), diffusion(d)),
}
"""Those of which no flow from time to time is known."""


@dataclass(frozen=True)
class Case:
    """A field and the solver that is run on it."""

    field: object
    solver: object
    warmup: int | None = None
    steps: int | None = 6
    keep: str | None = None

    def __call__(self, device):
        grid = is_grid(self.solver)
        field = self.field(device)
        return stk.sample(
            field,
            self.solver,
            chains=CHAINS,
            steps=None if grid else self.steps,
            warmup=self.warmup,
            seed=5,
            keep=self.keep,
            device=device,
            dtype=torch.float64,
            **QUIET,
        )


def case_of(name):
    solver = EXAMPLES[name]
    if name == "swendsen-wang":
        return Case(lambda d: stk.load("ising"), solver)
    if name in ("gibbs-with-gradients", "discrete-langevin"):
        return Case(potts, solver)
    if name == "block-gibbs":
        return Case(lambda d: stk.load("rbm"), solver)
    if name in ("probability-flow", "reverse-sde"):
        return Case(diffusion, solver)
    if name in ("split-gibbs", "daps"):
        turns = "sweeps" if name == "split-gibbs" else "levels"
        return Case(posterior, replace(solver, steps=1, **{turns: 2}))
    if name == "twisted-smc":
        return Case(posterior, replace(solver, island=CHAINS))
    fewer = {"ais": {"levels": 4}, "smc": {"levels": 4, "island": CHAINS}}
    return Case(well, replace(solver, **fewer.get(name, {})))


LONG = ("split-gibbs", "daps")
"""Solvers that solve a linear system at each turn: thousands of operations of this device."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in SOLVERS]
)
def test_every_solver(name, device):
    same_on(device, case_of(name))


TUNED = {
    "HMC": stk.HMC(leapfrogs=3),
    "HMC dense": stk.HMC(leapfrogs=3, metric="dense"),
    "ChEES": stk.ChEES(most=20),
    "ChEES dense": stk.ChEES(metric="dense", most=20),
    "ChEES fisher": stk.ChEES(metric="fisher", most=20),
    "NUTS": stk.NUTS(max_depth=4),
    "NUTS dense": stk.NUTS(max_depth=4, metric="dense"),
    "MCLMC": stk.MCLMC(),
    "AdjustedMCLMC": stk.AdjustedMCLMC(most=20),
    "AdjustedMCLMC leapfrogs": stk.AdjustedMCLMC(leapfrogs=3),
    "PreconditionedLangevin": stk.PreconditionedLangevin(),
    "ParallelTempering": stk.ParallelTempering(),
    "ParallelTempering NUTS": stk.ParallelTempering(stk.NUTS(0.3, metric="none", max_depth=3)),
}


@pytest.fixture
def sums_of_a_device(monkeypatch):
    """Sums over chains with zeros for those that do not count, on the CPU too, which leaves these out: where a chain
    does not count, as while it halves its step, the two sums differ in the last digit.
    """

    def with_zeros(values, counted):
        return torch.where(across(counted, values), values, values.new_zeros(()))

    for user in (learning, length):
        monkeypatch.setattr(user, "counted_of", with_zeros)


@pytest.mark.thorough
@pytest.mark.usefixtures("sums_of_a_device")
@pytest.mark.parametrize("name", slow_but(TUNED, "ChEES"))
def test_every_warmup(name, device):
    same_on(device, Case(well, TUNED[name], warmup=24), decides=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TUNED if "Tempering" not in n])
def test_warmup_from_afar(name, device):
    far = partial(stk.Energy, lambda x: (x[:, 0] / 1e-4).square() / 2 + x.square().sum(1), (D,))
    same_on(device, Case(lambda d: far(), TUNED[name], warmup=60), decides=True)


SHARED_STEPS = ["dopri8", "adaptive_heun"]
ADAPTIVE = ["dopri5", "tsit5", "bosh3", *SHARED_STEPS]
METHODS = ["euler", "adams_3", "adams_4", "heun", "trapezoid", "rk4", "ralston_3", "dpmpp_2m"]
METHODS += ["unipc_2", "adams_pc_3", *ADAPTIVE]


@pytest.mark.thorough
@pytest.mark.parametrize("method", slow_but(METHODS, "adams_3", "dpmpp_2m", "dopri5", "dopri8"))
def test_every_method_of_the_flow(method, device):
    tolerances = {"rtol": 1e-3, "atol": 1e-3} if method in ADAPTIVE else {}
    same_on(device, Case(diffusion, stk.ProbabilityFlow(method, steps=5, **tolerances)))


@pytest.mark.parametrize(
    "method", slow_but(["euler", "ancestral", "ddim", "dpmpp_2m"], "ancestral")
)
def test_every_reverse_sde(method, device):
    same_on(device, Case(diffusion, stk.ReverseSDE(method, steps=5)))


def test_ends_and_corrections(device):
    same_on(device, Case(diffusion, stk.ProbabilityFlow(steps=5, denoise=True)))
    same_on(device, Case(diffusion, stk.ReverseSDE("ancestral", steps=5, corrector=1), keep="all"))
    same_on(device, Case(diffusion, stk.AnnealedLangevin(4, steps_per_level=2)))


@pytest.mark.parametrize(
    "name",
    slow_but(
        STATIC,
        "energy of a module",
        "constrained",
        "distribution of the CPU",
        "product",
        "posterior",
        "ring-mixture",
    ),
)
def test_every_static_field(name, device):
    same_on(device, Case(STATIC[name], stk.HMC(0.05, leapfrogs=2, metric="none"), steps=3))


@pytest.mark.parametrize(
    "name",
    slow_but(
        TIMED, "noise", "timesteps", "sigmas", "guided in an interval", "posterior", "smoothed"
    ),
)
def test_every_field_in_time(name, device):
    same_on(device, Case(TIMED[name], stk.ProbabilityFlow("heun", steps=4)))


@pytest.mark.filterwarnings("ignore:AnnealedLangevin. with 2 steps")  # no law is asked for here
@pytest.mark.parametrize("name", SCORED)
def test_every_field_without_a_flow(name, device):
    same_on(device, Case(SCORED[name], stk.AnnealedLangevin(3, steps_per_level=2)))


def test_scores_and_velocities(device):
    same_on(device, Case(gaussian_score, stk.ULA(0.1)))
    same_on(device, Case(velocity, stk.ProbabilityFlow("dopri5", steps=2)))


@pytest.mark.parametrize("keep", ["all", "last", "moments"])
def test_what_is_kept(keep, device):
    same_on(device, Case(well, stk.ULA(0.01), keep=keep))


def test_chains_are_chosen_by_what_is_on_the_device(device):
    """A status is there, and the numbers of the chains are the host's."""
    with device.on():
        draws = stk.sample(
            well(device.name), stk.ULA(0.01), chains=CHAINS, steps=3, device=device.name
        )
        assert len(draws[draws.ok]) == CHAINS
        assert len(draws[torch.tensor([0, 2], device=device.name)]) == 2


# --- what else is asked of a field


def points(device, n=CHAINS, dim=D, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64).to(dtype).to(device)


def labels(device):
    return {"label": (torch.arange(CHAINS, dtype=torch.float64) % 3).to(device)}


def gradient_of_a_run(device, grad=True, solver=None):
    """Of the draws' squares to the start and to the model's parameters."""
    f, start = net(device), points(device).requires_grad_()
    field = stk.Diffusion(f, (D,), stk.EDM(), "data")
    draws = stk.sample(
        field, solver or stk.ProbabilityFlow(steps=3), init=start, grad=grad, **QUIET
    )
    found = torch.autograd.grad(draws.final.square().sum(), [start, *f.parameters()])
    return dict(zip(("start", "enter", "leave"), found, strict=True))


QUESTIONS = {
    "log_prob": lambda d: stk.log_prob(velocity(d), points(d), steps=4, method="rk4"),
    "log_prob, adaptive": lambda d: stk.log_prob(
        diffusion(d), points(d), rtol=1e-2, atol=1e-2, trace="hutchinson", probes=2
    ),
    "log_prob, hutch++": lambda d: stk.log_prob(
        diffusion(d), points(d), steps=3, method="rk4", trace="hutch++", probes=6
    ),
    "log_prob of a distribution": lambda d: stk.log_prob(gamma("cpu"), points(d)[:, :3].exp()),
    "log_prob given labels": lambda d: stk.log_prob(
        conditional(d), points(d), cond=labels(d), steps=3, method="rk4"
    ),
    "bits_per_dim": lambda d: stk.bits_per_dim(
        velocity(d), points(d).mul(20).round().clamp(0, 255), steps=3, method="rk4"
    ),
    "encode": lambda d: stk.encode(diffusion(d), points(d), rtol=1e-2, atol=1e-2),
    "encode along a grid": lambda d: stk.encode(velocity(d), points(d), steps=4, method="adams_3"),
    "interpolate": lambda d: stk.interpolate(points(d, 2), points(d, 2) + 1, 5),
    "log_prob of a mixture": lambda d: stk.log_prob(stk.load("ring-mixture"), points(d, dim=2)),
    "a run given labels": lambda d: stk.sample(
        conditional(d), stk.ProbabilityFlow(steps=4), cond=labels(d), init=points(d), **QUIET
    ),
    "a guided run given labels": lambda d: stk.sample(
        stk.guided(conditional(d), 2.0),
        stk.ProbabilityFlow(steps=4),
        cond=labels(d),
        init=points(d),
        **QUIET,
    ),
    "a run led by a classifier": lambda d: stk.sample(
        stk.classifier_guided(diffusion(d), log_of_class, measured="label"),
        stk.ProbabilityFlow(steps=4),
        cond=labels(d),
        init=points(d),
        **QUIET,
    ),
    "a run to the gradient": gradient_of_a_run,
    "a run by the adjoint": lambda d: gradient_of_a_run(
        d, grad="adjoint", solver=stk.ProbabilityFlow("dopri5", steps=2, rtol=1e-2, atol=1e-2)
    ),
    "posterior given measurements": lambda d: stk.sample(
        stk.posterior(diffusion(d), stk.LinearGaussian(stk.Mask(torch.arange(D) < 2), "seen", 0.3)),
        stk.ProbabilityFlow(steps=3),
        cond={"seen": points(d)[:, :2]},
        init=points(d),
        **QUIET,
    ),
    "posterior by replacement": lambda d: stk.sample(
        stk.posterior(diffusion(d), measured(d), stk.Replacement()),
        stk.ReverseSDE(steps=3),
        chains=CHAINS,
        dtype=torch.float64,
        device=d,
        **QUIET,
    ),
    "from rows of data": lambda d: stk.sample(
        stk.Velocity(net(d), (D,), base=points("cpu", 50)),
        stk.ProbabilityFlow("heun", steps=3),
        chains=CHAINS,
        dtype=torch.float64,
        device=d,
        **QUIET,
    ),
    "from a law of the CPU": lambda d: stk.sample(
        stk.Velocity(net(d), (D,), base=inner("cpu")),
        stk.ProbabilityFlow("heun", steps=3),
        chains=CHAINS,
        dtype=torch.float64,
        device=d,
        **QUIET,
    ),
}


@pytest.mark.parametrize(
    "name",
    slow_but(
        QUESTIONS,
        "log_prob of a distribution",
        "log_prob given labels",
        "bits_per_dim",
        "encode along a grid",
        "a guided run given labels",
        "a run to the gradient",
        "posterior given measurements",
        "from rows of data",
        "from a law of the CPU",
    ),
)
def test_every_question(name, device):
    if "hutch++" in name and not device.pretended:
        # its directions depend on the last digit of a factorisation: two estimates of one value
        here, there = QUESTIONS[name]("cpu"), QUESTIONS[name](device.name)
        error = torch.hypot(here.stderr, there.stderr.cpu()) + 1e-5 * here.value.abs()
        assert ((here.value - there.value.cpu()).abs() < 6 * error).all()
        return
    same_on(device, QUESTIONS[name], rounding=1e-12 if "gradient" in name else 0)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:log_partition")  # nor a small error
@pytest.mark.parametrize("method", slow_but(["ais", "smc"], "ais"))
def test_normalising_constants(method, device):
    def run(d):
        return stk.log_partition(
            well(),
            inner(d),
            method=method,
            chains=CHAINS * (2 if method == "smc" else 1),
            levels=2,
            kernel=stk.HMC(0.3, leapfrogs=1, metric="none"),
            pilot=CHAINS,
            check=False,
            device=d,
            dtype=torch.float64,
            **({"island": CHAINS} if method == "smc" else {}),
        )

    same_on(device, run)


def two_normals(device):
    """Of a short run, a search that finds, a run from there, jumps, and levels between the pilot's."""

    def energy(x):
        return -torch.logaddexp(-x.square().sum(1) / 2, -(x - 15).square().sum(1) / 2)

    run = {"chains": CHAINS, "pilot": CHAINS, "device": device, "dtype": torch.float32, **QUIET}
    short = mock.patch.multiple(beginning, LOOK_STEPS=20, LOOK_WARMUP=60)
    with short, mock.patch.object(pilot, "MOST_MOVES", 5):
        return stk.log_partition(stk.Energy(energy, (2,)), **run)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:log_partition")
def test_a_base_that_is_searched_for(device):
    if device.pretended:
        same_on(device, two_normals, host=("diagnostics/",))  # a summary of the run is the host's
    else:  # of other rounding, and so another ladder
        with device.on():
            is_that_of_two_normals(two_normals(device.name))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:log_partition")
def test_a_base_that_is_searched_for_without_float64(narrow):
    """Its moments are of other rounding, and so the ladder: it is right, not the same."""
    with narrow.on():
        is_that_of_two_normals(two_normals(narrow.name))


def is_that_of_two_normals(found):
    value, stderr = float(found.value), float(found.stderr)
    assert abs(value - math.log(4 * math.pi)) < z_limit() * stderr


@pytest.mark.parametrize("start", slow_but(["data", "noise", "buffer"], "buffer"))
def test_contrastive_divergence(start, device):
    def run(d):
        f = net(d)
        field = stk.Energy(lambda x: f(x).sum(1) + x.square().sum(1) / 2, (D,))
        begin = stk.ReplayBuffer(2 * CHAINS, 0.3) if start == "buffer" else start
        cd, found = stk.ContrastiveDivergence(stk.ULA(0.01), 2, begin), {}
        for i in range(2):
            loss, negatives = cd(field, points(d))
            loss.backward()
            found |= {f"negatives {i}": negatives, f"loss {i}": loss.detach()}
        return found | {n: p.grad for n, p in f.named_parameters()}

    same_on(device, run, host=("learn/contrastive.py",))  # which slots are read is the host's


LOSSES = {
    "diffusion": lambda f, x, t, z: prediction_error(f, x, t, z, stk.EDM()),
    "flow": flow_matching,
    "score": lambda f, x, t, z: denoising_score_matching(f, x, z, 0.3),
}


@pytest.mark.parametrize("kind", slow_but(LOSSES, "diffusion"))
def test_training(kind, device, tmp_path):
    """With a checkpoint half way, which is gone on from on the other device as well."""

    def run(d, steps=4, file=None):
        f = net(d)

        def loss(rows, generator):
            t = stratified(len(rows), generator).to(rows).clamp(0.01, 0.99)
            z = torch.randn(rows.shape, generator=generator, dtype=rows.dtype).to(rows.device)
            return LOSSES[kind](f, rows, t, z)

        recipe = Recipe(steps, batch=16, evaluations=2)
        return fit(f, loss, points(d, 40), recipe, seed=3, checkpoint=file).weights

    whole = same_on(device, run)
    with device.on():
        run(device.name, file=tmp_path / "there")
        again = run(device.name, file=tmp_path / "there")
        for (name, value), other in zip(again.items(), whole.values(), strict=True):
            torch.testing.assert_close(value.cpu(), other, msg=lambda m, name=name: f"{name}: {m}")
    for name, value in run("cpu", file=tmp_path / "there").items():
        assert value.device.type == "cpu", name


# --- models by name, and modules that sit elsewhere

NAMES = [name.id.removeprefix("scoretk/") for name in stk.list_models()]


def default_run(name, device):
    """A short run of a model by its name."""
    spec = stk.describe(name)
    timed = "velocity" in spec.provides or "denoise" in spec.provides
    solver = (
        stk.ProbabilityFlow(steps=3)
        if timed
        else stk.ULA(1e-4)
        if "states" not in spec.provides
        else stk.GibbsWithGradients()
    )
    return stk.sample(
        name, solver, chains=CHAINS, steps=None if timed else 2, device=device, **QUIET
    )


@pytest.mark.parametrize(
    "name",
    slow_but(
        NAMES, "digits-energy", "digits-diffusion", "digits-flow", "digits-gan", "digits-made"
    ),
)
def test_a_model_by_its_name_goes_to_the_device(name, device):
    same_on(device, partial(default_run, name), rounding=1e-4 if device.pretended else 1e-3)


def test_a_module_elsewhere_is_refused_and_said_where(device):
    f = net("cpu")
    fields = {
        "energy": (stk.Energy(lambda x: f(x).sum(1), (D,)), stk.ULA(0.1)),
        "velocity": (stk.Velocity(f, (D,)), stk.ProbabilityFlow(steps=2)),
        "within": (
            stk.tempered(stk.product(well(), stk.Energy(lambda x: f(x).sum(1), (D,))), 2.0),
            stk.ULA(0.1),
        ),
        "loaded": (stk.load("digits-energy"), stk.ULA(1e-4)),
    }
    with device.on():
        for field, solver in fields.values():
            with pytest.raises(stk.InvalidArgument, match=r"(Net|ConfinedEnergy) on cpu"):
                stk.sample(field, solver, chains=3, device=device.name, **QUIET)
        x = points(device.name)
        for ask in (stk.log_prob, stk.encode):
            with pytest.raises(stk.InvalidArgument, match="Net on cpu"):
                ask(fields["velocity"][0], x)
        with pytest.raises(stk.InvalidArgument, match="Net on cpu"):
            stk.log_partition(fields["energy"][0], inner(device.name), device=device.name)
        with pytest.raises(stk.InvalidArgument, match="Net on cpu"):
            stk.ContrastiveDivergence(stk.ULA(0.1))(fields["energy"][0], x)
        matrix = torch.eye(D, dtype=torch.float64)
        with pytest.raises(stk.InvalidArgument, match="tensors on cpu"):
            stk.sample(
                stk.Energy(lambda x: (x @ matrix).square().sum(1), (D,)),
                stk.ULA(0.1),
                init=x,
                **QUIET,
            )
        moved = stk.to_device(fields["velocity"][0], device.name)
        assert stk.encode(moved, x, steps=2, method="euler").x.device == x.device


# --- few launches, no waiting


def gaussian(dim=100):
    """Seven kernels an energy with its gradient, by torch's own account."""
    return stk.Energy(lambda x: x.square().sum(1) / 2, (dim,))


def one_window(patch, machine, chains):
    """The noise of a hundred steps at once, and not of thousands, whose views would take most of a test's time."""
    if machine.pretended:
        patch.setattr(core_noise, "WINDOW_FIRST_ACCELERATOR", 1024 * chains)


def counted(device, solver, field=gaussian, chains=16, *, of="steps", lengths=(64, 80)):
    """Kernels and waits a step, or a step of warmup, by what a longer run has more than a shorter one."""
    run = partial(stk.sample, field(), solver, chains=chains, keep="last", dtype=torch.float32)
    with device.on() as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "scoretk.run.batches.BLOCK_SECONDS", 0.0
        )  # no longer blocks on a faster machine
        one_window(patch, device, chains)
        found = []
        for n in (min(8, lengths[0]), *lengths):  # the first makes what is kept for all runs
            ledger.clear()
            run(**({"steps": 1, "warmup": 0} | {of: n}), device=device.name, **QUIET)
            found.append((ledger.kernels.total(), ledger.waits.total()))
    return [(b - a) / (lengths[1] - lengths[0]) for a, b in zip(*found[1:], strict=True)]


@torch.library.custom_op("scoretk_tests::noise", mutates_args=())
def noise_in_one(
    kind: int,
    key: torch.Tensor,
    word: int,
    steps: torch.Tensor,
    chains: torch.Tensor,
    n: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The noise as one operation, as Triton's kernel makes it on CUDA."""
    span = range(int(steps[0]), int(steps[-1]) + 1)
    return core_noise._generate(kind, tuple(key.tolist()), word, span, chains, n, dtype)


@pytest.fixture
def with_kernel(device, monkeypatch):
    """The device, which has a kernel for the noise."""
    if device.pretended:
        monkeypatch.setattr(core_noise, "has_kernel", lambda where: where.type != "cpu")
        monkeypatch.setattr(core_noise, "_by_kernel", noise_in_one)
    return device


# With 16 chains and 4096; of HMC's the energy and its gradient are 70.
MOST_KERNELS = {
    "ULA": (stk.ULA(1e-2), 20),
    "MALA": (stk.MALA(1e-2), 35),
    "HMC": (stk.HMC(0.1, leapfrogs=10, metric="none"), 120),
}


@pytest.mark.parametrize("chains", slow_but([16, 4096], 16))
@pytest.mark.parametrize("name", slow_but(MOST_KERNELS, "ULA", "MALA"))
def test_steps_are_few_kernels_and_hardly_wait(name, chains, with_kernel):
    solver, most = MOST_KERNELS[name]
    kernels, waits = counted(with_kernel, solver, chains=chains)
    assert kernels <= most
    assert waits <= 0.1


@pytest.mark.thorough
def test_steps_with_masks_are_many_kernels(with_kernel, monkeypatch):
    """The mutant: a run that masks each step, as it does once a chain has failed."""
    monkeypatch.setattr(AtTheEnd, "passes", lambda *_: False)
    assert counted(with_kernel, stk.ULA(1e-2))[0] > 20


WARMUP = {"of": "warmup", "lengths": (64, 80), "field": partial(gaussian, 5)}


@pytest.mark.thorough
@pytest.mark.parametrize("solver", slow_but([stk.ChEES(most=2), stk.MCLMC()], stk.ChEES(most=2)))
def test_a_step_of_warmup_waits_once(solver, device):
    """But for the first, of chains that may begin far off, and for ends of windows and blocks."""
    assert counted(device, solver, **WARMUP)[1] <= 1.5


def first_waits(device, monkeypatch, scale):
    """Waits of each of the first steps of a warmup, from about 1 / scale standard deviations off."""
    found, update = [], Adaptation.update

    def counting(self, at, state, learned):
        before = ledger.waits.total()
        after = update(self, at, state, learned)
        found.append(ledger.waits.total() - before)
        return after

    monkeypatch.setattr(Adaptation, "update", counting)
    field = stk.Energy(lambda x: (x / scale).square().sum(1) / 2, (3,))
    run = {"chains": 16, "steps": 1, "warmup": 40, "dtype": torch.float32, **QUIET}
    with device.on() as ledger:
        stk.sample(field, stk.HMC(leapfrogs=1), device=device.name, **run)
    return found[1 : approach_steps(40) - 1]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "most"), [(1.0, 1), (1e-4, 0)], ids=["near", "far"])
def test_the_first_steps_of_a_warmup_wait_once(scale, most, device, monkeypatch):
    """Whether the chains begin far off is asked in the first; those that do wait for nothing."""
    found = first_waits(device, monkeypatch, scale)
    assert found
    assert max(found) <= most


@pytest.mark.slow
def test_what_is_known_and_asked_again_is_seen(device, monkeypatch):
    """The mutant: each step asks which chains began far off."""

    def read(flags):
        return tuple(torch.stack([flags.all(), flags.any()]).tolist())

    monkeypatch.setattr("scoretk.solvers.warmup.adaptation.all_and_any", read)
    assert max(first_waits(device, monkeypatch, 1.0)) > 1


@pytest.mark.slow
def test_parts_that_are_read_one_by_one_are_seen(device, monkeypatch):
    """The mutant: each part of an adaptation reads what it has measured by itself."""

    def unread(self, memories, lesson):
        return list(memories), [None] * len(memories)

    monkeypatch.setattr(Adaptation, "_measured", unread)
    assert counted(device, stk.ChEES(most=2), **WARMUP)[1] > 1.5


TEMPERED = stk.ParallelTempering(stk.MALA(0.1), temperatures=(1.0, 2.0, 4.0))


@pytest.mark.slow
def test_a_ladder_of_temperatures_hardly_waits(device):
    """Neither for the ladder, nor to compare what the fields made at each step were given."""
    assert counted(device, TEMPERED, partial(gaussian, 5), lengths=(40, 48))[1] <= 0.1


@pytest.mark.slow
def test_views_that_are_looked_at_anew_are_seen(device, monkeypatch):
    """The mutant: what a solver makes of a field at each step is asked as for the first time."""
    monkeypatch.setattr(StaticField, "view", lambda self, native, name: StaticField(native))
    assert counted(device, TEMPERED, partial(gaussian, 5), lengths=(40, 48))[1] > 1


@pytest.mark.slow
def test_a_doubling_waits_once(device):
    """And not each of the leapfrog steps, fifteen in trajectories of four doublings."""
    solver = stk.NUTS(0.1, metric="none", max_depth=4)
    assert 1 < counted(device, solver, partial(gaussian, 5), lengths=(4, 8))[1] <= 4


def test_weights_that_have_not_changed_are_looked_at_with_one_wait(device):
    with device.on() as ledger:
        weights = [torch.full((3,), float(k), device=device.name) for k in range(10)]
        known = weights_digest(weights)
        ledger.clear()
        assert weights_digest(weights) == known
        assert ledger.waits.total() == 1
        weights[7].data.mul_(2)
        assert weights_digest(weights) != known


def test_what_a_field_is_made_of_is_looked_at_with_one_wait(device):
    with device.on() as ledger:
        weights = [torch.full((3,), float(k), device=device.name) for k in range(10)]
        field = stk.Energy(lambda x: (x + sum(weights)).sum(1), (3,))
        known = Identity(field=field).summary()
        ledger.clear()
        assert Identity(field=field).summary() == known
        assert ledger.waits.total() == 1


def streamed(device, folder, *, keep, steps, chunk=16, checkpoint=None):
    """Draws on the device and how often the host has waited; a block of steps has as many, however fast they are."""
    where = stk.Zarr(folder, draws=chunk) if keep == "zarr" else keep
    with device.on() as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoretk.run.batches.BLOCK_SECONDS", 0.0)
        draws = stk.sample(
            gaussian(5),
            stk.ULA(1e-2),
            chains=9,
            batch=9,
            steps=steps,
            keep=where,
            checkpoint=checkpoint,
            dtype=torch.float32,
            device=device.name,
            **QUIET,
        )
        return draws.x[:].cpu(), ledger.waits.total()


KEPT = {"all": KeepAll, "moments": KeepMoments, "zarr": Streaming}


@pytest.mark.parametrize("keep", KEPT)
def test_what_a_stopped_run_has_kept_is_where_its_chains_are_again(
    keep, device, tmp_path, monkeypatch
):
    """On the host it would be waited for at every step that is kept."""
    pytest.importorskip("zarr")
    monkeypatch.setattr("scoretk.run.batches.BLOCK_SECONDS", 0.0)
    restored, found, left = KEPT[keep].restored, [], [8]

    def energy(x):
        left[0] -= 1
        if left[0] == 0:
            raise InterruptedError
        return x.square().sum(1) / 2

    def seen(*args):
        found.append(restored(*args))
        raise InterruptedError

    monkeypatch.setattr(KEPT[keep], "restored", seen)
    with device.on():
        one_window(monkeypatch, device, 3)
        for _ in range(2):  # until it is stopped, and until it goes on
            with pytest.raises(InterruptedError):
                stk.sample(
                    stk.Energy(energy, (D,)),
                    stk.ULA(0.1),
                    chains=3,
                    steps=16,
                    keep=stk.Zarr(tmp_path / "d", draws=8) if keep == "zarr" else keep,
                    checkpoint=stk.Checkpoint(tmp_path / "c", every=1e-9),
                    device=device.name,
                    **QUIET,
                )
    kept = [v for v in found[0].flat().values() if v.ndim]
    assert kept
    assert {v.device.type for v in kept} == {torch.device(device.name).type}


@pytest.mark.thorough
@pytest.mark.parametrize("keep", slow_but(["zarr", "saved"], "zarr"))
def test_what_goes_to_the_disk_costs_one_wait_a_chunk_at_most(keep, device, tmp_path):
    """Of a longer run than another by four chunks; a checkpoint that is not due costs none."""
    pytest.importorskip("zarr")
    found = {}
    for steps in (32, 96):
        for kept in ("all", keep):
            saved = tmp_path / f"c{steps}" if kept == "saved" else None
            kind = "all" if kept == "saved" else kept
            folder = tmp_path / f"{keep}{steps}"
            found[kept, steps] = streamed(device, folder, keep=kind, steps=steps, checkpoint=saved)
        assert torch.equal(found["all", steps][0], found[keep, steps][0])
    more = {kept: found[kept, 96][1] - found[kept, 32][1] for kept in ("all", keep)}
    assert more[keep] - more["all"] <= (4 if keep == "zarr" else 0)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "mutant", slow_but(["waits for each copy", "does not wait to write"], "does not wait to write")
)
def test_copies_beside_the_steps_have_teeth(mutant, device, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    if not device.pretended:
        pytest.skip("a device that is fast enough forgives the second")
    if mutant == "waits for each copy":
        monkeypatch.delattr(accelerator._Module, "Stream")
    else:
        monkeypatch.setattr(accelerator.Event, "synchronize", lambda self: None)
    (here, waits), (there, more) = (
        streamed(device, tmp_path / "d", keep=keep, steps=96) for keep in ("all", "zarr")
    )
    assert more > waits + 6 if mutant == "waits for each copy" else not torch.equal(here, there)


def breaking(x):
    """A score that is not finite far out, where chains arrive at steps of their own."""
    return torch.where(x.norm(dim=1, keepdim=True) > 2.9, torch.nan, -x)


def refusing(x):
    """A score that takes no position that is not finite."""
    if not bool(x.isfinite().all()):
        raise ValueError("no such place")
    return breaking(x)


@dataclass(frozen=True)
class Recovering:
    """Langevin of which one chain is not finite for one step, and another is told as failed once."""

    needs = frozenset({"score"})
    timed = False
    exact = False
    capturable = False
    init_cost: ClassVar = {"score": 1}
    step_cost: ClassVar = {"score": 1}
    by_status: bool = False

    def init(self, field, x, noise):
        return stk.ULA(0.1).init(field, x, noise)

    def step(self, field, state, noise):
        clean = state._replace(x=state.x.nan_to_num(0.0), score=state.score.nan_to_num(0.0))
        new, info = stk.ULA(0.1).step(field, clean, noise)
        here = (torch.arange(len(new.x), device=new.x.device) == 3) & (int(state.step) == 21)
        if self.by_status:
            return new, info | {"status": torch.where(here, int(stk.Status.DIVERGED), 0)}
        return new._replace(x=torch.where(here[:, None], torch.nan, new.x)), info


FAILING = {
    "kernel": (stk.ULA(0.1), breaking),
    "model that refuses": (stk.ULA(0.1), refusing),
    "one step": (Recovering(), torch.neg),
    "by status": (Recovering(by_status=True), torch.neg),
}


def failing(name, keep="all"):
    solver, score = FAILING[name]
    field = stk.Score(score, (D,))
    return lambda d: stk.sample(
        field,
        solver,
        chains=CHAINS,
        steps=50,
        seed=2,
        init=torch.zeros(CHAINS, D, dtype=torch.float64).to(d),
        keep=keep,
        **QUIET,
    )


@pytest.mark.parametrize(("name", "keep"), in_turn(FAILING, ["all", "moments", "last"]))
def test_what_fails_within_a_block_is_as_on_the_cpu(name, keep, device):
    """Frozen at the last finite state, flagged at its step: to the bit, though seen at the end only."""
    found = same_on(device, failing(name, keep))
    failed_at = found["failed_at"]
    assert int((failed_at >= 0).sum()) >= (1 if name in ("one step", "by status") else 5)
    assert not set((failed_at[failed_at >= 0] % 16).tolist()) <= {15}


@pytest.mark.parametrize("most", [8 * CHAINS * D, 300], ids=["in portions", "one by one"])
def test_leaves_are_added_up_in_any_portions(most, device, monkeypatch):
    monkeypatch.setattr("scoretk.run.settle.TOGETHER", most)
    same_on(device, failing("kernel"))


def test_leaves_that_are_dropped_are_seen(device, monkeypatch):
    """The mutant: leaves of which there are too many to keep are not added up."""
    monkeypatch.setattr("scoretk.run.settle.TOGETHER", 8 * CHAINS * D)
    monkeypatch.setattr(AtTheEnd, "_add_up", lambda self: self.leaves.clear())
    with pytest.raises(AssertionError):
        same_on(device, failing("one step"))


@pytest.mark.parametrize("name", ["kernel", "one step", "by status"])
def test_a_block_that_is_not_asked_is_seen(name, device, monkeypatch):
    """The mutant: a device that is never asked how its chains are."""
    monkeypatch.setattr(AtTheEnd, "all_passed", lambda self: True)
    with pytest.raises(AssertionError):
        same_on(device, failing(name))


def test_a_models_own_error_is_raised_at_once(device):
    """Not after a second try, which is for chains that had failed."""
    calls = []

    def score(x):
        calls.append(len(x))
        if len(calls) == 9:
            raise ZeroDivisionError("its own")
        return -x

    with device.on(), pytest.raises(ZeroDivisionError, match="its own"):
        stk.sample(stk.Score(score, (D,)), stk.ULA(0.1), steps=40, device=device.name, **QUIET)
    assert len(calls) == 9


@pytest.mark.thorough
def test_the_length_of_a_tuned_langevin_step_is_one_number_for_all(device):
    """After warmup the step size is a number of the host, which took an axis on its way to the device."""
    # warmup sums over the chains that count alone on a CPU, over all on a device: last digits differ
    same_on(device, Case(well, stk.MALA(), warmup=24), rounding=1e-9, decides=True)


# --- files, and what is told of draws


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", slow_but(["mala", "chees", "smc", "probability-flow"], "mala", "probability-flow")
)
def test_a_checkpoint_goes_on_there_and_on_the_cpu(name, device, tmp_path):
    """Saved on the device, read on the device, and on the CPU: the same draws as at a stretch."""
    made = {
        "chees": stk.ChEES(most=10),
        "mala": stk.MALA(0.1),
        "smc": stk.SMC(levels=6, island=CHAINS),
        "probability-flow": stk.ProbabilityFlow(steps=6),
    }[name]
    field = ring_in_time if name == "probability-flow" else well
    kernel = name in ("mala", "chees")

    def run(d, path=None, steps=8):
        more = {"steps": steps, "warmup": 20 if name == "chees" else 0} if kernel else {}
        return stk.sample(
            field(d),
            made,
            chains=CHAINS,
            seed=5,
            device=d,
            dtype=torch.float64,
            checkpoint=path,
            **more,
            **QUIET,
        )

    whole = run("cpu")
    with device.on():
        there = tmp_path / "there"
        run(device.name, there, steps=4)
        again = run(device.name, there)
        torch.testing.assert_close(again.final.cpu(), whole.final)
        assert again.final.device.type != "cpu"
        here = tmp_path / "here"
        run(device.name, here, steps=4)
        taken = run("cpu", here)
        torch.testing.assert_close(taken.final, whole.final)
        assert taken.final.device.type == "cpu"
    back = tmp_path / "back"
    run("cpu", back, steps=4)
    with device.on():
        torch.testing.assert_close(run(device.name, back).final.cpu(), whole.final)


@pytest.mark.thorough
def test_what_is_told_of_draws(device, tmp_path):
    run = partial(
        stk.sample, well(), stk.MALA(0.1), chains=CHAINS, steps=40, dtype=torch.float64, **QUIET
    )
    here = run()
    with device.on():
        there = run(device=device.name)
        assert str(there) == str(here).replace("cpu", str(there.x.device))
        there.save(tmp_path / "draws.safetensors")
        kept = stk.Draws.load(tmp_path / "draws.safetensors")
        assert torch.equal(kept.x, there.x.cpu())
        assert there.failures == here.failures
        # by other rounding a real device may accept where the CPU does not: its own draws, there and here
        same = here if device.pretended else kept
        assert str(there.summary()) == str(same.summary())
        for name in ("rhat", "ess", "mcse"):
            measure = getattr(stk.diagnostics, name)
            torch.testing.assert_close(measure(there.x), measure(same.x))


# --- a device without float64


def narrow_run(name, device):
    """What the tests above do, in float32 throughout."""
    solver, field = case_of(name).solver, case_of(name).field
    narrow_prior = partial(diffusion, dtype=torch.float32)
    made = {
        diffusion: narrow_prior,
        posterior: partial(posterior, prior=narrow_prior),
        potts: partial(potts, dtype=torch.float32),
    }.get(field, field)
    more = {} if is_grid(solver) else {"steps": 6}
    return stk.sample(made(device), solver, chains=CHAINS, seed=5, device=device, **more, **QUIET)


def near(machine, run, rounding=1e-5):
    """Draws without float64 are those with it to the digits of float32."""
    here = tensors(run("cpu"))
    with machine.on():
        there = {name: value.detach().cpu() for name, value in tensors(run(machine.name)).items()}
    assert there.keys() == here.keys()
    for name, value in here.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                there[name].double(),
                value.detach().double(),
                rtol=rounding,
                atol=rounding,
                equal_nan=True,
                msg=lambda m, name=name: f"{name}: {m}",
            )


@pytest.mark.parametrize("name", slow_but(SOLVERS, "hmc", "ais", "gibbs-with-gradients"))
def test_every_solver_without_float64(name, narrow):
    near(narrow, partial(narrow_run, name))


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(TUNED, "MCLMC"))
def test_every_warmup_without_float64(name, narrow):
    def run(d):
        return stk.sample(well(), TUNED[name], chains=CHAINS, steps=2, warmup=20, device=d, **QUIET)

    with narrow.on() as ledger:
        draws = run(narrow.name)
        assert draws.final.cpu().isfinite().all()
        assert not draws.failures
        assert not {k: n for k, n in ledger.strays.items() if not k[1].startswith(HOSTS_OWN)}


@pytest.mark.thorough
@pytest.mark.parametrize("method", slow_but(METHODS, "adams_3", "dopri5", "dopri8"))
def test_every_method_of_the_flow_without_float64(method, narrow):
    tolerances = {"rtol": 1e-2, "atol": 1e-2} if method in ADAPTIVE else {}
    flow = stk.ProbabilityFlow(method, steps=3, **tolerances)

    def run(d):
        return stk.sample(diffusion(d, dtype=torch.float32), flow, chains=CHAINS, device=d, **QUIET)

    near(narrow, run, 2 * tolerances.get("rtol", 5e-5))


def test_questions_at_the_start_are_asked_without_float64(narrow):
    """With enough chains and steps for all of them, of a field in time and of a static one."""
    run = {"chains": 64, **QUIET}
    timed = partial(diffusion, dtype=torch.float32, path=stk.VP())
    near(narrow, lambda d: stk.sample(timed(d), stk.ReverseSDE(steps=20), device=d, **run), 5e-5)
    near(narrow, lambda d: stk.sample(well(), stk.ULA(1e-3), steps=20, device=d, **run), 5e-5)


NARROW = {
    "log_prob": lambda d: stk.log_prob(
        velocity(d, torch.float32), points(d, dtype=torch.float32), steps=3, method="rk4"
    ),
    "encode": lambda d: stk.encode(
        diffusion(d, dtype=torch.float32), points(d, dtype=torch.float32), rtol=1e-2, atol=1e-2
    ),
    "distribution": lambda d: stk.sample(
        gamma("cpu"), stk.MALA(0.1), chains=CHAINS, steps=3, dtype=torch.float32, device=d, **QUIET
    ),
    "mixture": lambda d: stk.sample(
        ring_in_time(d),
        stk.ProbabilityFlow(steps=4),
        chains=CHAINS,
        dtype=torch.float32,
        device=d,
        **QUIET,
    ),
    "smoothed": lambda d: stk.sample(
        stk.smoothed(well(), samples=8),
        stk.ProbabilityFlow(steps=3),
        chains=CHAINS,
        device=d,
        **QUIET,
    ),
    "guided in an interval": lambda d: stk.sample(
        stk.guided(
            diffusion(d, dtype=torch.float32),
            2.0,
            diffusion(d, dtype=torch.float32),
            interval=(0.5, 2),
        ),
        stk.ProbabilityFlow(steps=3),
        chains=CHAINS,
        device=d,
        **QUIET,
    ),
    "posterior": lambda d: stk.sample(
        stk.posterior(diffusion(d, dtype=torch.float32), measured(d)),
        stk.ProbabilityFlow(steps=3),
        chains=CHAINS,
        device=d,
        **QUIET,
    ),
    "moments": lambda d: stk.sample(
        well(), stk.ULA(0.01), chains=CHAINS, steps=5, keep="moments", device=d, **QUIET
    ),
    "digits": lambda d: stk.sample(
        "digits-energy", stk.ULA(1e-4), chains=5, steps=2, device=d, **QUIET
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(NARROW, "encode", "distribution", "smoothed", "moments"))
def test_every_question_without_float64(name, narrow):
    near(narrow, NARROW[name], 1e-4)


def test_float64_is_refused_where_there_is_none(narrow):
    with narrow.on(), pytest.raises(stk.InvalidArgument, match="has no float64"):
        stk.sample(well(), stk.ULA(0.1), chains=3, dtype=torch.float64, device=narrow.name, **QUIET)


# --- the bench


def bench_fields():
    """The energies of the bench that hold data, of few data."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    seen = normal[:, 0].clone()
    seen[3:5] = math.nan
    right = (normal > 0).double()
    return {
        "brownian": gym.Brownian(seen),
        "german-credit": gym.SparseLogistic(normal, right[:, 0]),
        "item-response": gym.ItemResponse(torch.ones(8, 5, dtype=torch.float64), right),
        "volatility": gym.Volatility(normal[:, 1] / 100),
    }


@pytest.mark.parametrize("name", ["brownian", "german-credit", "item-response", "volatility"])
def test_energies_of_the_bench_wait_for_no_device(device, name):
    field = bench_fields()[name]
    x = torch.randn(CHAINS, *field.event_shape, generator=torch.Generator().manual_seed(1))

    def asked(x):
        y = x.detach().requires_grad_()
        energy = field.energy(y)
        own = [field.score(x)] if hasattr(field, "score") else []
        return [energy.detach(), *torch.autograd.grad(energy.sum(), y), *own]

    here = asked(x)
    with device.on() as ledger:
        y = x.to(device.name)
        asked(y)  # constants are copied
        ledger.clear()
        there = asked(y)
        assert not ledger.waits
        assert not ledger.strays
        for one, other in zip(here, there, strict=True):
            torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["brownian", "volatility"])
def test_gradients_to_low_error_are_counted_there(device, name, monkeypatch):
    """The sums of squares too: a copy of each draw to the host would take longer than the steps."""
    field = bench_fields()[name]
    generator = torch.Generator().manual_seed(2)
    x = field.parameters(torch.randn(400, *field.event_shape, generator=generator))
    moments = Moments(
        x.square().mean(0).double(), x.square().var(0).double(), "", None, field.parameters
    )
    target, looks = Target(name, field, moments), []

    def spied(at, error, seed):
        looks.append((at, error))
        return low_error.Crossing(1.0, 0.0)

    monkeypatch.setattr(low_error, "crossing", spied)
    plan = low_error.Plan(chains=CHAINS, warmup=0, budget=100)
    solver = stk.MCLMC(0.1, 2.0, metric="none")
    low_error.gradients_to_low_error(target, solver, plan)
    here, looks[:] = list(looks), []
    with device.on() as ledger:
        made = low_error.gradients_to_low_error(target, solver, replace(plan, device=device.name))
        strays = {k for k in ledger.strays if not k[1].startswith(HOSTS_OWN)}
    assert made.failed == 0
    of_looks = "new_zeros", "stack", "masked_fill", "median"  # a number a chain and look
    assert {name.split(".")[0] for name, _ in strays} <= set(of_looks), strays
    for (at, error), (own_at, own) in zip(here, looks, strict=True):
        assert torch.equal(at, own_at)
        torch.testing.assert_close(own, error, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_evidence_of_the_bench_is_found_there(device):
    target = Target("normal", gaussian(2), log_z=math.log(2 * math.pi))
    with device.on() as ledger:
        evidence_of(target, "smc", 1, device=device.name)
        assert ledger.kernels


IMAGES = 31


def binary_images(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 28, 28, generator=generator) < 0.2).float()


@pytest.mark.parametrize("name", slow_but(FAMILIES, "nade"))
def test_recipes_of_mnist_are_trained_and_judged_there(device, name):
    """The host draws what the seed says and sends it; it computes no image."""
    entry = FAMILIES[name]
    data = Split(*(binary_images(n, i) for i, n in enumerate((60, 20, IMAGES))))
    data = data if not entry.grey else Split(*(part * 0.5 for part in data))

    def made(data):
        trained = entry.quick.train(data, Training(steps=3))
        nats = entry.quick.judge(trained.field, data, 0)
        return trained, nats, entry.quick.draws(trained.field, IMAGES, 0)

    here, nats, _ = made(data)
    # initial weights on "meta", which draw nothing, do so where operations are watched
    with torch.random.fork_rng(devices=[]), device.on() as ledger:
        there, own, drawn = made(data.to(device.name))
        assert drawn.device.type == torch.device(device.name).type
        assert ledger.kernels
        strays = {k: n for k, n in ledger.strays.items() if not k[1].startswith(HOSTS_OWN)}
    assert not strays
    limit = 1e-4 if device.pretended else 1e-2  # sums in another order, and steps from them
    assert own.value == pytest.approx(nats.value, rel=limit)
    assert there.curve[-1].nats == pytest.approx(here.curve[-1].nats, rel=limit)
    if nats.second is not None:
        assert own.second.first == pytest.approx(nats.second.first, rel=max(limit, 1e-3))


# --- the law, and what catches a run that is not on the device


def test_the_law_on_the_device(device):
    """Correlated normals by Hamiltonian steps from afar: their means and second moments."""
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    with device.on():
        law = torch.distributions.MultivariateNormal(
            torch.zeros(2, dtype=torch.float64), covariance
        )
        solver = stk.HMC(0.4, leapfrogs=4, metric="none")
        run = {"chains": 2001, "steps": 10, "keep": "last"}
        draws = stk.sample(law, solver, device=device.name, **run, **QUIET)
        x = draws.final.cpu()
    assert_mean(x, [0.0, 0.0])
    assert_mean(x[:, 0] * x[:, 1], 0.5, "covariance")
    assert_second_moment(x, 0.0, [1.0, 1.0])


def waits_a_step(run, device):
    """By line, how many more waits a run of 40 steps has than one of 24, a step.

    But for those of a block of steps, of which there are the fewer the faster a step is.
    """
    with device.on() as ledger, pytest.MonkeyPatch.context() as patch:
        one_window(patch, device, CHAINS)
        counts = []
        for steps in (24, 40):
            ledger.clear()
            run(device.name, steps)
            counts.append(ledger.waits.copy())
    more = {line: (n - counts[0][line]) / 16 for line, n in counts[1].items()}
    once = ("run/batches.py", "run/resume.py", "run/settle.py")
    return {k: n for k, n in more.items() if n > 0 and not k[1].startswith(once)}


FOLLOWING = {
    name: STATIC[name]
    for name in (
        "distribution of the CPU",
        "ring-mixture",
        "eight-schools",
        "logistic-regression",
        "posterior",
        "energy of a module",
    )
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(FOLLOWING, "distribution of the CPU", "posterior"))
def test_constants_are_copied_once(name, device):
    def run(d, steps):
        return stk.sample(
            FOLLOWING[name](d), stk.ULA(1e-3), chains=CHAINS, steps=steps, device=d, **QUIET
        )

    assert waits_a_step(run, device) == {}


def gaussian_of(loc):
    return stk.from_distribution(Independent(Normal(loc, torch.ones(D)), 1))


WRITTEN_INTO = {
    "a distribution's parameter": (torch.zeros(D), gaussian_of),
    "an operator's matrix": (
        torch.ones(1, D),
        lambda a: stk.posterior(
            gaussian_of(torch.zeros(D)), stk.LinearGaussian(a, torch.ones(1), std=0.5)
        ),
    ),
    "what was measured": (
        torch.ones(1),
        lambda y: stk.posterior(
            gaussian_of(torch.zeros(D)), stk.LinearGaussian(torch.ones(1, D), y, std=0.5)
        ),
    ),
}


@pytest.mark.parametrize("name", WRITTEN_INTO)
def test_a_constant_that_is_written_into_is_copied_again(name, device):
    value, made = WRITTEN_INTO[name]
    value = value.clone()
    field, x = made(value), torch.linspace(-1, 2, CHAINS * D).reshape(CHAINS, D)
    for _ in range(2):
        with device.on():
            there = stk.sample(
                field,
                stk.ULA(1e-3),
                init=x.to(device.name),
                steps=2,
                dtype=torch.float32,
                seed=1,
                **QUIET,
            ).final.cpu()
        here = stk.sample(field, stk.ULA(1e-3), init=x, steps=2, dtype=torch.float32, seed=1)
        torch.testing.assert_close(there, here.final, rtol=1e-5, atol=1e-6)
        value += 3.0


def test_what_is_copied_at_every_step_is_seen(device):
    """A mutant of a target: its constant is copied at every evaluation."""
    scale = torch.ones(D)

    def run(d, steps):
        field = stk.Energy(lambda x: (x * scale.to(x)).square().sum(1), (D,))
        return stk.sample(
            field, stk.ULA(1e-3), chains=CHAINS, steps=steps, device=d, dtype=torch.float32, **QUIET
        )

    assert sum(waits_a_step(run, device).values()) >= 1


def test_what_is_computed_on_the_cpu_is_seen(device):
    """A mutant of a model: it fetches x, computes, and sends the answer."""
    f = net("cpu")
    field = stk.Energy(lambda x: f(x.cpu()).sum(1).to(x.device), (D,))

    def run(d):
        start = points(d)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("scoretk.inference.sampling.check_place", lambda *_: None)
            return stk.sample(field, stk.ULA(0.1), steps=2, init=start, **QUIET)

    with pytest.raises(AssertionError, match="computed on the CPU"):
        same_on(device, run)


def test_a_scalar_with_an_axis_is_refused(device):
    """A mutant of `across`, as it was: one value for all, shaped like x, from the CPU."""

    def shaped(values, x):
        return values.reshape(values.shape + (1,) * (x.ndim - 1))

    with device.on(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoretk.solvers.mclmc.across", shaped)
        with pytest.raises(RuntimeError, match="same device"):
            case_of("mclmc")(device.name)


class TestPretended:
    """What CUDA refuses and allows, the pretended device does."""

    @pytest.fixture(autouse=True)
    def _beside_no_real_one(self, request):
        if request.config.getoption("--device") != "cpu":
            pytest.skip("torch takes a device from outside for the process's accelerator")

    def test_mixtures(self):
        here = torch.ones(3)
        with accelerator.pretend() as ledger:
            there = here.to(accelerator.NAME)
            refused = (
                lambda: there + here,
                lambda: torch.cat([there, here]),
                lambda: here.add_(there),
                lambda: torch.tensor(1.0).add_(there.sum()),
                lambda: torch.where(there > 0, here, 0.0),
                lambda: there @ here,
                lambda: here[there.long()],
                lambda: torch.stack([there.sum(), here.sum()]),
            )
            for mix in refused:
                with pytest.raises(RuntimeError, match="same device"):
                    mix()
            with pytest.raises((TypeError, RuntimeError)):
                there.numpy()
            ledger.clear()
            for allowed in (
                there * torch.tensor(2.0),
                torch.where(there > 0, torch.tensor(1.0), there),
                there.clamp(min=torch.tensor(0.5)),
                torch.tensor(2.0, dtype=torch.float64) - there,
            ):
                assert allowed.device.type == accelerator.NAME
                assert allowed.dtype == torch.float32
            assert not ledger.waits
            assert torch.equal(there[torch.tensor([0, 2])].cpu(), here[:2])
            assert ledger.waits.total() == 2  # an index from the host, and the answer to it

    def test_waits(self):
        with accelerator.pretend() as ledger:
            x = torch.tensor([1.0, 2.0], device=accelerator.NAME)
            asked = (
                lambda: float(x.sum()),
                lambda: bool((x > 0).all()),
                x.tolist,
                x.cpu,
                lambda: torch.ones(2).to(x),
                lambda: x[x > 1],
                x.nonzero,
                lambda: torch.tensor([1.0], device=x.device),
                lambda: x.new_tensor([1.0]),
                lambda: torch.empty(2).copy_(x),
            )
            for ask in asked:
                ledger.clear()
                ask()
                assert ledger.waits.total() == 1, ledger.waits
            ledger.clear()
            y = (x * 2 + 1).exp_().reshape(2, 1).expand(2, 3)
            assert ledger.kernels.total() == 3
            assert not ledger.waits
            assert y.device == x.device

    def test_gradients_and_writing(self):
        with accelerator.pretend():
            x = torch.tensor([1.0, 2.0], device=accelerator.NAME, requires_grad=True)
            (slope,) = torch.autograd.grad((x**2).sum(), x)
            assert torch.equal(slope.cpu(), torch.tensor([2.0, 4.0]))
            y = torch.zeros(2, device=accelerator.NAME)
            y[1] = 3
            y += 1
            assert y.tolist() == [1.0, 4.0]

    def test_without_float64(self):
        with accelerator.pretend(float64=False):
            for make in (
                lambda: torch.zeros(2, dtype=torch.float64, device=accelerator.NAME),
                lambda: torch.zeros(2, device=accelerator.NAME).double(),
                lambda: torch.zeros(2, dtype=torch.float64).to(accelerator.NAME),
            ):
                with pytest.raises(TypeError, match="no float64"):
                    make()

    def test_nothing_of_it_is_left(self):
        before = torch.tensor, torch.Tensor.tolist
        with accelerator.pretend():
            assert torch.tensor is not before[0]
        assert (torch.tensor, torch.Tensor.tolist) == before


def test_a_graph_gets_a_copy_of_a_constants_copy():
    """Which it may write into; the compiler knows what it is before it is made."""
    constant = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T
    for dtype in (torch.float32, torch.float64):
        torch.library.opcheck(torch.ops.scoretk.copied, (constant, torch.device("cpu"), dtype))
        torch.ops.scoretk.copied(constant, torch.device("cpu"), dtype).zero_()
    assert constant.sum() == 10


@pytest.mark.compiled
@pytest.mark.parametrize("solver", [stk.ULA(0.1), stk.MALA(0.1), stk.HMC(0.1, 3)], ids=repr)
def test_a_real_device_plays_compiled_steps(device, monkeypatch, solver):
    """Many by one launch, to the bits of calls; what cannot be recorded leaves the device as it was."""
    if device.pretended or not replay.can_play(torch.device(device.name)):
        pytest.skip("by CUDA graphs alone")
    played, real = [], replay.recorded

    def noted(function, where):
        written, play = real(function, where)
        return written, lambda: (played.append(0), play())

    monkeypatch.setattr(replay, "recorded", noted)
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (3,))
    draws = []
    for worth in (1e9, 0.0):
        monkeypatch.setattr(replay, "WORTH", worth)
        run = {"chains": 16, "steps": 2000, "seed": 1, "compile": True, "device": device.name}
        draws.append(stk.sample(field, solver, **run, **QUIET))
    assert len(played) > replay.LOOKS
    assert torch.equal(draws[0].x, draws[1].x)
    with pytest.raises(RuntimeError):
        real(lambda: torch.ones(2).to(device.name), torch.device(device.name))
    assert torch.randn(3, device=device.name, generator=None).isfinite().all()
