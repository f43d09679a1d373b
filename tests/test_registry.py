"""One registry of ODE methods: one meaning a name, what each method states of itself, and a new one by one entry."""

import ast
import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import integrate as scipy_integrate
from torchdiffeq._impl.odeint import SOLVERS

import scoretk as stk
from scoretk.models.targets.mixture import GaussianMixture, ring_mixture
from scoretk.ode import names, registry, rowwise, tableaus
from scoretk.ode.adaptive import TORCHDIFFEQ
from scoretk.ode.registry import Method, every_method, find_method
from scoretk.ode.rowwise import PAIRS
from scoretk.ode.tableaus import GRID_RULES, LINEAR, RungeKutta
from scoretk.solvers import reverse_sde
from scoretk.solvers.base import Solver, traits
from scoretk.solvers.reverse_sde import SDE_STEPS
from tests.marks import slow_but

ALL = {method.name: method for method in every_method()}
ALONG_A_GRID = [m.name for m in ALL.values() if m.needs == "velocity" and not m.adaptive]
ADAPTIVE = [m.name for m in ALL.values() if m.adaptive]
SSPRK3 = RungeKutta(
    3,
    LINEAR,
    (0.0, 1.0, 1 / 2),
    ((1.0,), (1 / 4, 1 / 4), (1 / 6, 1 / 6, 2 / 3)),
    GRID_RULES["ralston_3"],
)  # Shu and Osher's, which no table has


# --- what a method states of itself


def order_conditions(rule):
    """What every rooted tree of up to five nodes asks of the weights, by its number of nodes: `sum = 1 / density`."""
    a = np.zeros((rule.stages, rule.stages))
    for i, row in enumerate(rule.weights[:-1], 1):
        a[i, : len(row)] = row
    b, c = np.array(rule.weights[-1]), np.array(rule.nodes)
    one = np.ones_like(c)
    trees = {
        1: [(one, 1)],
        2: [(c, 2)],
        3: [(c**2, 3), (a @ c, 6)],
        4: [(c**3, 4), (c * (a @ c), 8), (a @ c**2, 12), (a @ a @ c, 24)],
        5: [
            (c**4, 5),
            (c**2 * (a @ c), 10),
            (c * (a @ c**2), 15),
            (c * (a @ a @ c), 30),
            ((a @ c) ** 2, 20),
            (a @ c**3, 20),
            (a @ (c * (a @ c)), 40),
            (a @ a @ c**2, 60),
            (a @ a @ a @ c, 120),
        ],
    }
    assert np.allclose(a @ one, c)
    return {n: max(abs(b @ value - 1 / density) for value, density in trees[n]) for n in trees}


def stated_order_is_the_true_one(rule):
    off = order_conditions(rule)
    return all(off[n] < 1e-14 for n in range(1, rule.order + 1)) and off[rule.order + 1] > 1e-3


RULES_OF_STAGES = {
    **{name: rule for name, rule in GRID_RULES.items() if isinstance(rule, RungeKutta)},
    **{
        f"{name}, closing": rule.closing
        for name, rule in GRID_RULES.items()
        if getattr(rule, "closing", None)
    },
    "a new one": SSPRK3,
}


@pytest.mark.parametrize("name", RULES_OF_STAGES)
def test_the_order_conditions_hold_up_to_the_order_stated_and_not_beyond(name):
    rule = RULES_OF_STAGES[name]
    assert stated_order_is_the_true_one(rule)
    assert not stated_order_is_the_true_one(
        replace(rule, order=rule.order - 1 or 2)
    )  # mutants: another order stated
    *rows, last = rule.weights
    assert not stated_order_is_the_true_one(
        replace(rule, weights=(*rows, (last[0] + 0.01, *last[1:])))
    )


def forced(x, t):
    """Nonlinear, and with a time of its own: wrong nodes are seen as well as wrong weights."""
    return torch.stack([x[:, 1], -torch.sin(x[:, 0]) + math.cos(3 * t)], 1)


def order_of(rule, counts):
    """The slope of log error against log step count on a pendulum, on an uneven grid that runs backwards."""
    x = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
    exact = [
        scipy_integrate.solve_ivp(
            lambda t, y: [y[1], -math.sin(y[0]) + math.cos(3 * t)],
            (2, -0.5),
            row,
            "DOP853",
            rtol=1e-13,
            atol=1e-13,
        ).y[:, -1]
        for row in x.tolist()
    ]
    errors = []
    for n in counts:
        seen = []
        stops = [2 - 2.5 * (i / n + 0.05 * math.sin(2 * math.pi * i / n)) for i in range(n + 1)]
        found, status, evaluations = rule.solve(
            lambda x, t, seen=seen: (seen.append(t), forced(x, t))[1], x, stops
        )
        assert status.tolist() == [0, 0]
        assert evaluations.tolist() == [len(seen)] * 2
        assert min(stops) <= min(seen) <= max(seen) <= max(stops)
        errors.append(float((found - torch.tensor(np.stack(exact))).norm()))
    return math.log(errors[0] / errors[-1]) / math.log(counts[-1] / counts[0])


def keeps_its_order(rule):
    return abs(order_of(rule, (40, 160)) - rule.order) < 0.35


@pytest.mark.parametrize("name", ALONG_A_GRID)
def test_every_rule_of_a_velocity_has_its_order_in_any_equation(name):
    assert keeps_its_order(ALL[name].rule)


@pytest.mark.parametrize("name", ["adams_3", "adams_4", "adams_pc_3"])
def test_multistep_rules_need_a_past_as_accurate_as_they_are(name, monkeypatch):
    monkeypatch.setattr(tableaus, "STARTER", tableaus._EULER)
    assert not keeps_its_order(ALL[name].rule)


def no_correction(self, *args):
    return [1.0]


def test_wrong_averages_cost_order(monkeypatch):
    monkeypatch.setattr(tableaus.Multistep, "_shares", no_correction)
    for name in ("adams_2", "adams_pc_2"):
        assert not keeps_its_order(ALL[name].rule)


@pytest.mark.parametrize("name", TORCHDIFFEQ)
def test_what_is_said_of_torchdiffeq_s_is_so_there(name):
    assert TORCHDIFFEQ[name].name == name.removeprefix("torchdiffeq/")
    solver = SOLVERS[TORCHDIFFEQ[name].name]
    assert (ALL[name].order, ALL[name].stages) == (solver.order, len(solver.tableau.alpha))


@pytest.mark.parametrize(("name", "theirs"), [("dopri5", "RK45"), ("bosh3", "RK23")])
def test_pairs_are_those_of_scipy_under_their_other_names(name, theirs):
    pair, known = find_method(theirs).rule, getattr(scipy_integrate, theirs)
    assert pair is PAIRS[name]
    for i, row in enumerate(pair.weights[:-1], 1):
        np.testing.assert_allclose(row, known.A[i, :i], rtol=1e-14)
    np.testing.assert_allclose(pair.weights[-1], known.B, rtol=1e-14)
    np.testing.assert_allclose(np.abs(pair.error), np.abs(known.E), rtol=1e-12)


@pytest.mark.parametrize("name", slow_but(ADAPTIVE, "bosh3", "torchdiffeq/bosh3"))
def test_a_row_is_its_own_where_the_method_says_so(name):
    """A neighbour that asks for short steps, in samples, latents and densities."""
    field = stk.Velocity(
        lambda x, t: x.sin() * (1 + 20 * (x.abs() > 2)),
        (1,),
        base=torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), 1.0), 1),
    )
    x, options = torch.tensor([[0.4], [2.6]], dtype=torch.float64), {"rtol": 1e-3, "atol": 1e-3}
    solver = stk.ProbabilityFlow(name, **options)
    for follow in (
        lambda rows: stk.sample(field, solver, init=rows).final,
        lambda rows: stk.encode(field, rows, method=name, **options).x,
        lambda rows: stk.log_prob(field, rows, method=name, **options).value,
    ):
        assert torch.equal(follow(x)[:1], follow(x[:1])) == ALL[name].rowwise
    assert ALL[name].embedded


# --- names


def test_a_name_is_in_one_table():
    assert sum(map(len, registry.TABLES)) == len(ALL)
    for name, method in ALL.items():
        assert find_method(name) == method
        assert stk.ProbabilityFlow(name).method == name  # as runs saved under it have it
        assert (
            names.FOREIGN.get(names.spelled(name), names.Foreign(name)).flow == name
        )  # not another's, misspelt


def known_here(name):
    return name in ALL or name in SDE_STEPS or name in stk.grids.GRIDS


def test_names_from_elsewhere_lead_to_what_exists():
    for name, meant in names.FOREIGN.items():
        assert meant.flow in ALL or meant.sde in SDE_STEPS or meant.advice, name
        quoted = re.findall(r"'(\w+(?:/\w+)?)'", meant.advice.replace("'_3'", ""))
        assert all(map(known_here, quoted)), meant.advice
        assert meant.flow or quoted or not meant.sde


SAME = {
    "euler": "ddim DDIM DDIMScheduler DDIMSampler k_euler sample_euler EulerDiscreteScheduler",
    "heun": "sample_heun HeunDiscreteScheduler Heun HeunSampler",
    "dpmpp_2m": "dpm++2m dpm++_2m dpm++-2m sample_dpmpp_2m DPM++2M DPMSolverMultistepScheduler dpmsolver++",
    "dopri5": "rk45 RK45 ode45",
    "bosh3": "rk23 RK23",
    "dopri8": "torchdiffeq/dopri8",
    "fehlberg2": "torchdiffeq/fehlberg2",
    "adaptive_heun": "torchdiffeq/adaptive_heun",
}


@pytest.mark.parametrize("name", SAME)
def test_a_method_answers_to_what_others_call_it(name):
    field, options = ring_mixture().noised(stk.VE(0.05, 5.0)), {"rtol": 1e-2, "atol": 1e-2}
    steps = None if ALL[name].adaptive else 3
    own = stk.sample(field, stk.ProbabilityFlow(name, steps, **options), chains=2).final
    for other in SAME[name].split():
        assert find_method(other) == ALL[name]
        assert stk.ProbabilityFlow(other) == stk.ProbabilityFlow(name)
        assert torch.equal(
            stk.sample(field, stk.ProbabilityFlow(other, steps, **options), chains=2).final, own
        ), other
    assert find_method("DPM++ 2M").name == "dpmpp_2m"


ELSEWHERE = {
    "unipc": "unipc_2",
    "UniPCMultistepScheduler": "unipc_3",
    "lms": "noise_multistep_4",
    "LMSDiscreteScheduler": "adams_3",
    "plms": "noise_multistep_4",
    "pndm": "noise_multistep_4",
    "deis": "noise_multistep_2",
    "eab": "multistep_2",
    "dpm_2": "midpoint",
    "dpm_adaptive": "tsit5",
    "ddpm": "ReverseSDE('ancestral')",
    "euler_a": "ReverseSDE('ddim')",
    "Euler a": "ReverseSDE('ddim')",
    "euler_ancestral": "ReverseSDE('ddim')",
    "ancestral": "ReverseSDE('ancestral')",
    "dpmpp_2m_sde": "the square of whose eta",
    "dpmpp_sde": "ReverseSDE('dpmpp_2m')",
    "edm": "grid='edm'",
    "torchdiffeq/rk4": "rk4_38",
    "dop853": "'dopri8'",
    "heun3": "ralston_3",
    "heun2": "trapezoid",
    "sample_dpm_2_ancestral": "has noise",
    "torchdiffeq/heun3": "ralston_3",
    "torchdiffeq/explicit_adams": "adams_3",
    "DPM++ 2M Karras": "grid='edm'",
    "KarrasVeScheduler": "grid='edm'",
    "ScoreSdeVeScheduler": "corrector=1",
    "SASolverScheduler": "ReverseSDE('dpmpp_2m')",
    "RePaintScheduler": "scoretk.posterior",
    "CogVideoXDDIMScheduler": "euler",
    "LCMScheduler": "distilled",
    "adams3": "did you mean 'adams_3'",
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_another_method_is_refused_with_what_is_nearest(name):
    field = ring_mixture().noised(stk.VE())
    for refused in (
        lambda: stk.ProbabilityFlow(name),
        lambda: stk.encode(field, torch.zeros(1, 2), method=name),
        lambda: stk.log_prob(field, torch.zeros(1, 2), method=name),
        lambda: stk.bits_per_dim(field, torch.zeros(1, 2, dtype=torch.uint8), method=name),
    ):
        with pytest.raises(stk.UnknownName, match=re.escape(ELSEWHERE[name])):
            refused()


@pytest.mark.parametrize(
    "wrong", [None, 3, b"euler", ["euler"], "", "torchdiffeq/", "torchdiffeq/tsit5"]
)
def test_no_other_name_is_taken(wrong):
    for refused in (stk.ProbabilityFlow, stk.ReverseSDE):
        with pytest.raises(stk.ScoretkError, match="method"):
            refused(wrong)


NOISELESS = {
    "heun": "ProbabilityFlow('heun')",
    "adams_3": "ProbabilityFlow('adams_3')",
    "k_euler": "ProbabilityFlow('euler')",
}


@pytest.mark.parametrize("name", [*NOISELESS, "unipc", "dpmpp_2m_sde"])
def test_methods_without_noise_are_refused_where_there_is_noise(name):
    with pytest.raises(
        stk.UnknownName, match=re.escape(NOISELESS.get(name, "eta" if "sde" in name else "unipc_2"))
    ):
        stk.ReverseSDE(name)


LEVELS = (40.0, 11.0, 3.0, 0.9, 0.2)


def ancestral_of_k_diffusion(s, s_after, eta):
    """Euler's step down to `sigma_down`, and noise up to the next level, as weights of x, D and z (Karras et al., 2022)."""
    up = min(s_after, eta * math.sqrt(s_after**2 * (s**2 - s_after**2) / s**2))
    down = math.sqrt(s_after**2 - up**2)
    return down / s, 1 - down / s, up


def posterior_of_ddpm(s, s_after, eta):
    """`q(x' | x, x_1 = D)` of Ho, Jain, Abbeel (2020), from their products `abar = 1 / (1 + s^2)`, in units of alpha."""
    abar, abar_after = 1 / (1 + s**2), 1 / (1 + s_after**2)
    kept = abar / abar_after
    of_data = math.sqrt(abar_after) * (1 - kept) / (1 - abar)
    of_x = math.sqrt(kept) * (1 - abar_after) / (1 - abar)
    spread = math.sqrt((1 - kept) * (1 - abar_after) / (1 - abar))
    return tuple(v / math.sqrt(abar_after) for v in (of_x * math.sqrt(abar), of_data, spread))


def agree(method, formula, eta):
    for s, s_after in pairwise(LEVELS):
        now, after = (tableaus.Knot(0.5, 1.0, level) for level in (s, s_after))
        gain, rate, before, spread = SDE_STEPS[method](None, now, after, eta)
        if before or not np.allclose((gain, rate, spread), formula(s, s_after, eta), rtol=1e-12):
            return False
    return True


def test_what_others_call_ancestral_is_what_it_leads_to():
    for eta in (0.0, 0.4, 1.0):
        assert agree(reverse_sde._named("euler_a"), ancestral_of_k_diffusion, eta)
    assert agree(reverse_sde._named("ddpm"), posterior_of_ddpm, 1.0)
    assert not agree(
        "ancestral", ancestral_of_k_diffusion, 0.4
    )  # which only at eta = 0 and 1 are the same
    assert not agree("euler", ancestral_of_k_diffusion, 1.0)
    assert not agree("euler", posterior_of_ddpm, 1.0)
    field = ring_mixture().noised(stk.VE(0.05, 5.0))
    for other, own in (
        ("euler_a", "ddim"),
        ("EulerAncestralDiscreteScheduler", "ddim"),
        ("DDPMSampler", "ancestral"),
    ):
        draws = [
            stk.sample(field, stk.ReverseSDE(m, steps=4), chains=3).final for m in (other, own)
        ]
        assert torch.equal(*draws)


# --- every method where it makes sense


BLOB = GaussianMixture(
    torch.full((1, 2), 0.25), torch.tensor([0.5]), torch.ones(1)
)  # exact in float32


def slopes_back(method, path, counts):
    """Of the errors of latents and of log densities on the way from data to noise, which are known."""
    x = torch.tensor([[0.1, 0.9], [-0.7, 0.4]], dtype=torch.float64)
    (a0, s0), (a1, s1) = (map(float, path(t)[:2]) for t in (0.0, 1.0))
    gain = math.hypot(a0 * 0.5, s0) / math.hypot(a1 * 0.5, s1)
    truth = a0 * 0.25 + (x - a1 * 0.25) * gain
    field, errors = BLOB.noised(path), []
    base = field.base.log_prob(truth) + 2 * math.log(gain)
    for n in counts:
        latents = stk.encode(field, x, method=method, steps=n, grid="cosine").x
        value = stk.log_prob(field, x, method=method, steps=n, grid="cosine").value
        errors.append(((latents - truth).norm() / s0, (value - base).norm()))
    return [
        math.log(a / b) / math.log(counts[-1] / counts[0])
        for a, b in zip(errors[0], errors[-1], strict=True)
    ]


@pytest.mark.parametrize("name", slow_but(ALONG_A_GRID, "midpoint", "adams_3"))
def test_latents_and_densities_have_the_order_of_their_method(name):
    for slope in slopes_back(name, stk.VE(0.3, 20.0), (8, 24)):
        assert slope > ALL[name].order - 0.45


@pytest.mark.parametrize("name", [m.name for m in ALL.values() if m.needs == "denoise"])
def test_integrators_of_the_denoiser_follow_no_flow_back(name):
    field, x = BLOB.noised(stk.VP()), torch.zeros(1, 2)
    for refused in (stk.encode, stk.log_prob):
        with pytest.raises(
            stk.InvalidArgument, match=r"integrator of the velocity, one of euler, .*adams_3"
        ):
            refused(field, x, method=name)


# --- a new method


def places_of(name):
    """Where the package's code, not its prose, has this name."""
    root = Path(stk.__file__).parent
    return [
        f.relative_to(root).as_posix()
        for f in root.rglob("*.py")
        if name in f.read_text()
        for node in ast.walk(ast.parse(f.read_text()))
        if isinstance(node, ast.Constant) and node.value == name
    ]


@pytest.mark.thorough
def test_a_new_tableau_is_one_entry(monkeypatch):
    """Its order, its law, and all that takes a method follow: none of them is told."""
    assert places_of("ralston_3") == ["ode/tableaus.py"]  # as those that are there were entered
    monkeypatch.setitem(GRID_RULES, "ssprk_3", SSPRK3)
    method = find_method("ssprk_3")
    assert method == Method(
        "ssprk_3", SSPRK3, 3, 3, embedded=False, adaptive=False, rowwise=True, needs="velocity"
    )
    assert method in every_method()
    assert keeps_its_order(method.rule)
    assert min(slopes_back("ssprk_3", stk.VE(0.3, 20.0), (8, 24))) > 2.55
    field = BLOB.noised(stk.Linear())
    draws = stk.sample(field, stk.ProbabilityFlow("ssprk_3", 24), chains=8, dtype=torch.float64)
    exact = stk.sample(field, stk.ProbabilityFlow("adams_pc_3", 48), chains=8, dtype=torch.float64)
    torch.testing.assert_close(draws.final, exact.final, rtol=0, atol=1e-3)
    assert draws.cost["velocity"] == 8 * 24 * 3
    bits = stk.bits_per_dim(
        field, torch.full((1, 2), 130), interval=(-1.0, 1.0), method="ssprk_3", draws=2
    )
    assert bits.status.tolist() == [0]
    with pytest.raises(stk.InvalidArgument, match="steps are the map"):
        stk.sample(field, stk.ProbabilityFlow("ssprk_3"), chains=2, grad="adjoint")


def test_a_new_pair_is_one_entry(monkeypatch):
    monkeypatch.setitem(PAIRS, "bs_32", PAIRS["bosh3"])
    field, x = BLOB.noised(stk.Linear()), torch.tensor([[0.4, 0.1]], dtype=torch.float64)
    how = {"rtol": 1e-2, "atol": 1e-2}
    for follow in (
        lambda m: stk.sample(field, stk.ProbabilityFlow(m, **how), init=x).final,
        lambda m: (
            stk.sample(
                field,
                stk.ProbabilityFlow(m, **how),
                init=x.clone().requires_grad_(),
                grad="adjoint",
            ).final
        ),
        lambda m: stk.encode(field, x, method=m, **how).x,
        lambda m: stk.log_prob(field, x, method=m, **how).value,
    ):
        assert torch.equal(follow("bs_32"), follow("bosh3"))


# --- who has an adjoint


class Position(NamedTuple):
    """A state of one leaf."""

    x: torch.Tensor


@dataclass(frozen=True)
class Own:
    """A third party's solver: a step of `dx/dt = -x` to its end, exactly."""

    told: tuple = ()
    needs, timed, capturable, init_cost, step_cost = (
        frozenset({"velocity"}),
        True,
        False,
        {},
        {"velocity": 1},
    )

    def with_adjoint(self):
        return replace(self, told=("adjoint",))

    def milestones(self, field):
        return (True,)

    def init(self, field, x, noise):
        return Position(x)

    def step(self, field, state, noise):
        assert self.told == ("adjoint",)
        return state._replace(x=state.x * math.exp(-1)), {}


def test_a_solver_says_itself_that_it_has_an_adjoint():
    assert isinstance(Own(), Solver)
    x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    field = stk.Velocity(lambda x, t: -x, (1,))
    stk.sample(field, Own(), init=x, grad="adjoint").final.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, math.exp(-1)))
    for name, method in ALL.items():
        own = traits(stk.ProbabilityFlow(name)).with_adjoint
        assert own() == stk.ProbabilityFlow(name, adjoint=True) if method.adaptive else own is None


def test_no_row_is_followed_back_by_a_rule_of_another_order(monkeypatch):
    """Rows that torchdiffeq took there go back by themselves; a pair of ours goes back by itself."""
    used = []
    integrate = rowwise.integrate_rows
    monkeypatch.setattr(
        "scoretk.ode.adjoint.integrate_rows",
        lambda *a, **k: (used.append(k["method"]), integrate(*a, **k))[1],
    )
    for name in ("bosh3", "torchdiffeq/bosh3"):
        x = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
        draws = stk.sample(
            stk.Velocity(lambda x, t: -x, (1,)), stk.ProbabilityFlow(name), init=x, grad="adjoint"
        )
        draws.final.sum().backward()
    assert used == [PAIRS["bosh3"], PAIRS["dopri5"]]
