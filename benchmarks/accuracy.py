"""Median error of probability-flow samplers by their number of evaluations, beside azula, diffusers and flow_matching.

    python benchmarks/accuracy.py [--counts 10 20 36 72] [--points 64] [--seed 0] [--peers NAME ...] [--json FILE]

The data are 8 Gaussians of std .25 on a circle of radius 2, whose denoiser is known. 64 points are led from noise of std 80 to
0, and compared with DOP853's in float64 (rtol 1e-12): the median of their distances. All samplers ask one and the same model,
which counts; a setting makes as many steps as its evaluations suffice for. A count is no timing: it comes out alike anywhere.

scoretk is shown as it comes (80 to .002, and to 0 in the last step), with other methods on its default grid and, like the rest,
with the best that any of its solvers reached on any of the ladders of noise levels below, for each count by itself; found on the
points that it is judged by. The ladders are those of the peers, and scoretk's default one in a row of its own; each leads to
.002 and on to 0 in the solver's last step, or there by the denoiser, or straight to 0. flow_matching, which integrates in
time, has the paths of its own schedulers too. It is installed by hand (`pip install flow_matching`): its license forbids
commercial use, so it is no requirement here.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import scipy.stats
import torch
from measure import machine
from scipy.integrate import solve_ivp
from torch import Tensor

import scoretk as stk

HIGH, LOW = 80.0, 0.002
MEANS = 2 * torch.tensor(
    [[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)], dtype=torch.float64
)
VARIANCE = 0.25**2


class Model:
    """`(D, e)`, the data and the noise to be expected in `x = data + level noise`.

    It counts how often it is asked of all points; what a run asks of a few rows before it begins is no step of it.
    """

    def __init__(self, points: int = 1) -> None:
        self.points, self.evaluations = points, 0

    def __call__(self, x: Tensor, level: Tensor | float) -> tuple[Tensor, Tensor]:
        self.evaluations += len(x) >= self.points
        level = torch.as_tensor(level, dtype=torch.float64)
        variance, off = VARIANCE + level**2, x.double()[:, None] - MEANS
        shares = torch.softmax(-off.square().sum(-1) / (2 * variance), 1)[..., None]
        data = (shares * (MEANS + VARIANCE / variance * off)).sum(1)
        noise = (shares * (level / variance * off)).sum(1)
        return data.to(x.dtype), noise.to(x.dtype)


def exact(x: Tensor) -> Tensor:
    """Where the points end: `dx/dlevel = e(x, level)` from 80 to 0."""
    model = Model()
    slope = lambda level, y: model(torch.from_numpy(y).view_as(x), level)[1].numpy().ravel()  # noqa: E731
    return torch.from_numpy(
        solve_ivp(slope, (HIGH, 0), x.numpy().ravel(), "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    ).view_as(x)


# --- ladders: levels sigma/alpha at equal distances in some function of them


def spaced(
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], Tensor],
    steps: int,
    last: float,
) -> Tensor:
    """`steps + 1` levels from 80 to the last."""
    first, final = forward(torch.tensor([HIGH, last], dtype=torch.float64))
    levels = backward(
        torch.lerp(first, final, torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    )
    levels[0], levels[-1] = HIGH, last
    return levels


def karras(rho: float) -> Callable[[int, float], Tensor]:
    """Karras et al.'s; rho = 7 is their choice."""
    return partial(spaced, lambda s: s ** (1 / rho), lambda r: r**rho)


def vp(low: float = 0.1, high: float = 20.0) -> Callable[[int, float], Tensor]:
    """Equal steps of the variance-preserving path's time."""
    rise = high - low
    forward = lambda s: (torch.sqrt(low**2 + 2 * rise * torch.log1p(s**2)) - low) / rise  # noqa: E731
    return partial(spaced, forward, lambda r: torch.expm1(low * r + rise * r**2 / 2).sqrt())


def decay(gamma: float = 0.1) -> Callable[[int, float], Tensor]:
    """Equal steps of the time of azula's `DecaySchedule`."""
    forward = lambda s: torch.log(1 - s / (1 + s) * (1 - gamma)) / math.log(gamma)  # noqa: E731
    shares = lambda r: (1 - gamma**r) / (1 - gamma)  # noqa: E731
    return partial(spaced, forward, lambda r: shares(r) / (1 - shares(r)))


def beta(steps: int, last: float) -> Tensor:
    """Quantiles of Beta(.6, .6), as in diffusers."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return last + (HIGH - last) * torch.from_numpy(scipy.stats.beta.ppf(u.numpy(), 0.6, 0.6))


OURS = "scoretk's logistic"
LADDERS: dict[str, Callable[[int, float], Tensor]] = {
    **{f"karras {rho}": karras(rho) for rho in (5, 7)},
    "exponential": partial(spaced, torch.log, torch.exp),
    "beta": beta,
    "vp": vp(),
    "cosine": partial(spaced, torch.atan, torch.tan),
    "linear": partial(spaced, lambda s: s / (1 + s), lambda r: r / (1 - r)),
    "decay": decay(),
    OURS: partial(spaced, lambda s: 1 / (1 + s**0.8), lambda r: (1 / r - 1) ** (1 / 0.8)),
}


# --- samplers: each takes a model, points and levels, and returns the points at the last level

Sampler = Callable[[Model, Tensor, Tensor], Tensor]
Setting = Callable[[Model, Tensor, int], Tensor]


def then_zero(
    sampler: Sampler, ladder: Callable[[int, float], Tensor], model: Model, x: Tensor, steps: int
) -> Tensor:
    """To .002, and to 0 in the last step."""
    return sampler(
        model, x, torch.cat([ladder(steps - 1, LOW), torch.zeros(1, dtype=torch.float64)])
    )


def straight(
    sampler: Sampler, ladder: Callable[[int, float], Tensor], model: Model, x: Tensor, steps: int
) -> Tensor:
    """To 0 as the ladder goes."""
    return sampler(model, x, ladder(steps, 0.0))


def denoised(
    sampler: Sampler, ladder: Callable[[int, float], Tensor], model: Model, x: Tensor, steps: int
) -> Tensor:
    """To .002, and what the model expects of the data there."""
    return model(sampler(model, x, ladder(steps - 1, LOW)), LOW)[0]


ENDS = {"then 0": then_zero, "straight to 0": straight, "denoised": denoised}


def on_ladders(samplers: Mapping[str, Sampler]) -> Iterator[tuple[str, Setting]]:
    """Every sampler on every ladder with every end."""
    for name, sampler in samplers.items():
        for kind, ladder in LADDERS.items():
            for end, finish in ENDS.items():
                yield f"{name}; {kind}, {end}", partial(finish, sampler, ladder)


def by_scoretk(method: str, grid: str | None, model: Model, x: Tensor, steps: int) -> Tensor:
    """scoretk on EDM's path."""
    path = stk.EDM(LOW, HIGH)
    field = stk.Diffusion(lambda x, t: model(x, path.sigma(t[0]))[0], (2,), path, predicts="data")
    return stk.sample(
        field, stk.ProbabilityFlow(method, steps, grid=grid, denoise=True), init=x
    ).final


METHODS = (
    "adams_pc_2",
    "adams_pc_3",
    "adams_4",
    "unipc_2",
    "unipc_3",
    "dpmpp_2m",
    "trapezoid",
    "heun",
    "rk4",
    "euler",
)


def by_scoretk_along(method: str, model: Model, x: Tensor, levels: Tensor) -> Tensor:
    """scoretk on the linear path, `x_t = t data + (1 - t) noise`, along any ladder."""
    times = 1 / (1 + levels)
    field = stk.Diffusion(
        lambda x, t: model(x / t[0], (1 - t[0]) / t[0])[0], (2,), stk.Linear(), predicts="data"
    )
    return (
        stk.sample(field, stk.ProbabilityFlow(method, grid=times), init=times[0] * x).final
        / times[-1]
    )


def by_scoretk_of_velocity(method: str, model: Model, x: Tensor, levels: Tensor) -> Tensor:
    """As `by_scoretk_along`, from the velocity, which has a value at sigma = 0."""
    times = 1 / (1 + levels)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        data, noise = model(x / t[0], (1 - t[0]) / t[0])
        return data - noise

    field = stk.Velocity(velocity, (2,))
    return (
        stk.sample(field, stk.ProbabilityFlow(method, grid=times), init=times[0] * x).final
        / times[-1]
    )


OF_VELOCITY = ("rk4_38", "ralston_4")


def scoretk() -> Iterator[tuple[str, Setting]]:
    """Its methods, of the denoiser and of the velocity, which differ in the last step of Runge-Kutta methods alone."""
    yield from on_ladders(
        {method: partial(by_scoretk_along, method) for method in ("adams_3", *METHODS)}
    )
    yield from on_ladders(
        {f"{method}, velocity": partial(by_scoretk_of_velocity, method) for method in OF_VELOCITY}
    )


def by_azula(make: Callable[..., object], model: Model, x: Tensor, levels: Tensor) -> Tensor:
    """azula's samplers on a schedule that is the ladder."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.noise import Schedule

    steps = len(levels) - 1

    class Ladder(Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ones_like(t), levels[((1 - t) * steps).round().long()]

    class Ring(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = Ladder()

        def forward(self, x_t: Tensor, t: Tensor, **_: Tensor) -> DiracPosterior:
            return DiracPosterior(mean=model(x_t, self.schedule(t)[1])[0])

    return make(Ring(), steps=steps, silent=True, dtype=torch.float64)(x)


def azula() -> Iterator[tuple[str, Setting]]:
    """Its deterministic samplers."""
    from azula import sample

    samplers = {
        name: partial(by_azula, getattr(sample, name)) for name in ("EulerSampler", "HeunSampler")
    }
    for name in ("zABSampler", "vABSampler", "zEABSampler", "xEABSampler", "REABSampler"):
        for order in (2, 3, 4):
            samplers[f"{name}({order})"] = partial(
                by_azula, partial(getattr(sample, name), order=order)
            )
    return on_ladders(samplers)


def by_diffusers(
    name: str, settings: dict[str, object], model: Model, x: Tensor, levels: Tensor
) -> Tensor:
    """diffusers' schedulers with the ladder in the place of their sigmas, in the loop that its pipelines write.

    Those that think in alpha and sigma have `alpha^2 + sigma^2 = 1`, the others (Euler, Heun, LMS) leave the data as they are.
    """
    import diffusers

    diffusers.logging.set_verbosity_error()
    steps, preserving = len(levels) - 1, name not in ("Euler", "Heun", "LMS")
    kind = f"{name}DiscreteScheduler" if name in ("Euler", "Heun", "LMS") else f"{name}Scheduler"
    own = {key: value for key, value in settings.items() if key != "order"}
    if name == "IPNDM":
        own["trained_betas"] = (levels / (1 + levels**2).sqrt()).tolist()
    scheduler = getattr(diffusers, kind)(**own)
    scheduler.set_timesteps(steps)
    if name != "IPNDM":
        twice = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
        scheduler.sigmas = levels = twice if name == "Heun" else levels
        scheduler.timesteps = torch.arange(len(levels) - 1.0, 0, -1)
    scheduler.set_begin_index(0)
    alpha = (1 + levels**2).rsqrt() if preserving else torch.ones_like(levels)
    x = alpha[0] * x
    order = {"order": settings["order"]} if "order" in settings else {}
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)  # which it insists on; the model takes x as it is
        data, noise = model(x / alpha[i], levels[i])
        output = alpha[i] * (noise - levels[i] * data) if name == "IPNDM" else noise
        x = scheduler.step(output, t, x, **order).prev_sample
    return x / alpha[-1]


def diffusers() -> Iterator[tuple[str, Setting]]:
    """Its deterministic schedulers, but PNDM and KDPM2, which cannot be given a ladder."""
    settings: list[tuple[str, dict[str, object]]] = [("Euler", {}), ("Heun", {}), ("IPNDM", {})]
    settings += [("LMS", {"order": k}) for k in (2, 3, 4)]
    for name in ("DPMSolverMultistep", "DPMSolverSinglestep"):
        for k, rule in ((2, "midpoint"), (2, "heun"), (3, "midpoint")):
            for algorithm, last in (
                ("dpmsolver++", "zero"),
                ("dpmsolver++", "sigma_min"),
                ("dpmsolver", "sigma_min"),
            ):
                part = {
                    "solver_order": k,
                    "solver_type": rule,
                    "algorithm_type": algorithm,
                    "final_sigmas_type": last,
                }
                settings.append((name, part))
    for k, lower in product((2, 3), (True, False)):
        settings.append(("DEISMultistep", {"solver_order": k, "lower_order_final": lower}))
        for rule, of_data in product(("bh1", "bh2"), (True, False)):
            part = {
                "solver_order": k,
                "solver_type": rule,
                "predict_x0": of_data,
                "lower_order_final": lower,
            }
            settings.append(("UniPCMultistep", part))
    return on_ladders(
        {
            f"{name}({', '.join(map(str, part.values()))})": partial(by_diffusers, name, part)
            for name, part in settings
        }
    )


def by_flow_matching(
    method: str, path: object, options: dict[str, float], model: Model, x: Tensor, levels: Tensor
) -> Tensor:
    """flow_matching's solver along the ladder, in the time of one of its schedulers."""
    from flow_matching.solver import ODESolver

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        at = path(t)
        data, noise = model(x / at.alpha_t, at.sigma_t / at.alpha_t)
        return at.d_alpha_t * data + at.d_sigma_t * noise

    times = torch.where(levels > 0, path.snr_inverse(1 / levels), 1.0)
    alpha = path(times).alpha_t
    return (
        ODESolver(velocity).sample(alpha[0] * x, None, method, time_grid=times, **options)
        / alpha[-1]
    )


def flow_matching() -> Iterator[tuple[str, Setting]]:
    """torchdiffeq's methods through its solver: on ladders, and adaptive ones by tolerance."""
    from flow_matching.path import scheduler

    paths = {
        "CondOT": scheduler.CondOTScheduler(),
        "PolynomialConvex(2)": scheduler.PolynomialConvexScheduler(2),
        "VP": scheduler.VPScheduler(),
        "LinearVP": scheduler.LinearVPScheduler(),
        "Cosine": scheduler.CosineScheduler(),
    }
    fixed = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams")
    samplers = {
        f"{m}, {name}": partial(by_flow_matching, m, path, {})
        for m in fixed
        for name, path in paths.items()
    }
    yield from on_ladders(samplers)
    for method in ("dopri5", "bosh3", "adaptive_heun", "fehlberg2", "dopri8"):
        for name, path in paths.items():
            for end, finish in ENDS.items():
                whole = partial(spaced, torch.atan, torch.tan)  # its ends only
                yield f"{method}, {name}; {end}", partial(tolerated, finish, method, path, whole)


def tolerated(
    finish, method: str, path: object, ladder, model: Model, x: Tensor, steps: int
) -> Tensor:
    """An adaptive run along one interval, whose number of "steps" stands for a tolerance: from .3 to 3e-8."""
    tolerance = 10 ** (-steps / 10)
    sampler = partial(by_flow_matching, method, path, {"rtol": tolerance, "atol": tolerance})
    return finish(sampler, ladder, model, x, 1 if finish is straight else 2)


# --- the contest

PACKAGES: dict[str, Callable[[], Iterator[tuple[str, Setting]]]] = {
    "scoretk": scoretk,
    "azula": azula,
    "diffusers": diffusers,
    "flow_matching": flow_matching,
}
PEERS = ("azula", "diffusers", "flow_matching")


@dataclass(frozen=True)
class Row:
    """The median error of one contestant at one count, what it spent, and with which setting."""

    name: str
    count: int
    error: float
    evaluations: int
    setting: str


def within(setting: Setting, x: Tensor, count: int) -> tuple[Tensor, int] | None:
    """The run with the most steps that the evaluations suffice for, and how many it used; None where there is none."""
    steps = count
    while steps > 0:
        model = Model(len(x))
        try:
            with torch.no_grad():
                found = setting(model, x, steps)
        except (ValueError, RuntimeError, AssertionError, IndexError, ZeroDivisionError):
            found = torch.full_like(x, math.nan)  # no such number of steps, say
        if model.evaluations <= count:
            return (found, model.evaluations) if bool(found.isfinite().all()) else None
        steps = min(steps - 1, steps * count // model.evaluations + 1)
    return None


def best(
    name: str, settings: Iterator[tuple[str, Setting]], x: Tensor, truth: Tensor, counts: list[int]
) -> list[Row]:
    """The best setting at each count."""
    rows = {count: Row(name, count, math.inf, 0, "none") for count in counts}
    for label, setting in settings:
        for count in counts:
            found = within(setting, x, count)
            if found is not None and (error := median_error(found[0], truth)) < rows[count].error:
                rows[count] = Row(name, count, error, found[1], label)
    return list(rows.values())


def better(name: str, one: list[Row], other: list[Row]) -> list[Row]:
    """At each count the better of two."""
    return [
        replace(min(pair, key=lambda row: row.error), name=name)
        for pair in zip(one, other, strict=True)
    ]


def contest(name: str, x: Tensor, truth: Tensor, counts: list[int]) -> list[Row]:
    """A package at its best on the ladders of the peers; the better of that and of scoretk's ladder."""
    settings = list(PACKAGES[name]())
    theirs = best(f"{name}, best", iter(s for s in settings if OURS not in s[0]), x, truth, counts)
    ours = best("", iter(s for s in settings if OURS in s[0]), x, truth, counts)
    return theirs + better(f"{name}, best, with our ladder", theirs, ours)


def median_error(x: Tensor, truth: Tensor) -> float:
    """The median of the distances."""
    return float((x - truth).norm(dim=1).median())


def show(rows: list[Row]) -> list[Row]:
    """Prints the errors, a line a contestant."""
    for name in dict.fromkeys(row.name for row in rows):
        print(
            f"{name:42}" + "".join(f"{row.error:>10.1e}" for row in rows if row.name == name),
            flush=True,
        )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="+", default=[10, 20, 36, 72], type=int)
    parser.add_argument("--points", default=64, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    options, counts = (found := arguments()), found.counts
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # what integrators of extreme settings say of them
    about = machine(torch.device("cpu")) | {name: version(name) for name in options.peers}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    x = HIGH * torch.randn(
        options.points,
        2,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(options.seed),
    )
    truth = exact(x)
    print(f"\n{'median error, evaluations':42}" + "".join(f"{count:>10}" for count in counts))
    rows = []
    for name, method in {
        "scoretk": "adams_3",
        **{f"scoretk {method}": method for method in METHODS},
    }.items():
        rows += show(
            best(name, iter([("default", partial(by_scoretk, method, None))]), x, truth, counts)
        )
    for name in ("scoretk", *options.peers):
        rows += show(contest(name, x, truth, counts))
    print("\nchosen, evaluations used")
    for row in rows:
        if row.setting != "default":
            print(f"{row.name:42}{row.count:>4}{row.evaluations:>5}   {row.setting}")
    if options.json:
        settings = {"points": options.points, "seed": options.seed}
        report = {"machine": about, "settings": settings, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
