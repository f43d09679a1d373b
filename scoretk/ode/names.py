"""The names that users of other packages bring, and what is meant by them here.

A name leads to a method where that is the same one: equal in formula, on the same grid, at every
setting that it has here. Otherwise it is refused, and the message says what comes nearest. Why
those that lead somewhere are the same:

    ddim        at eta = 0 `x' = alpha' D + sigma' e`, a step with D constant: "euler".
                k-diffusion's "euler" is its form in `x/alpha` and `sigma/alpha`, as is the Euler
                step of Karras et al.
    heun        of Karras et al., in `sigma/alpha`, with an Euler step to 0
    dpm++ 2m    D extrapolated in log-SNR to the middle of the step, first order at first and to
                sigma = 0
    euler a     ancestral steps with `sigma_up = eta sigma' sqrt(1 - sigma'^2/sigma^2)` in units of
                alpha: DDIM's noise
    ddpm        the posterior `q(x' | x, x_1 = D)`: ancestral steps at eta = 1
    rk45, rk23  the pairs of Dormand and Prince, and of Bogacki and Shampine

Why others do not: UniPC, DEIS, PNDM, LMS and exponential Adams methods put polynomials through the
same predictions but in another variable (log-SNR, t, the index, sigma), where those here have w, so
that their coefficients differ; the SDE form of DPM++ scales the square of the noise with its eta;
torchdiffeq's "rk4" is the 3/8 rule.

References:
    Song, Meng, Ermon, "Denoising diffusion implicit models" (2021).
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022).
    Lu, Zhou, Bao, Chen, Li, Zhu, "DPM-Solver++: fast solver for guided sampling of diffusion
    probabilistic models" (2022).
    Liu, Ren, Lin, Zhao, "Pseudo numerical methods for diffusion models on manifolds" (2022).
    Zhang, Chen, "Fast sampling of diffusion models with exponential integrator" (2023).
    Zhao, Bai, Rao, Zhou, Lu, "UniPC: a unified predictor-corrector framework for fast sampling of
    diffusion models" (2023).
    Ho, Jain, Abbeel, "Denoising diffusion probabilistic models" (2020).
    The names are those of the documentation of diffusers, k-diffusion, azula, SciPy and
    torchdiffeq.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["FOREIGN", "Foreign", "spelled"]


class Foreign(NamedTuple):
    """What a name from elsewhere means.

    Attributes:
        flow: The same method of `ProbabilityFlow`, if there is one.
        sde: The same method of `ReverseSDE`, if there is one.
        advice: What to use where there is none.
    """

    flow: str = ""
    sde: str = ""
    advice: str = ""


def spelled(name: str) -> str:
    """A name in lower case, of letters and digits only.

    `sample_` or `k_` before it and `Scheduler` or `Sampler` behind it are dropped; "+" becomes "p".
    """
    bare = re.sub(r"^(sample_|k_)|(scheduler|sampler)$", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", bare.replace("+", "p"))


def _meant(names: str, flow: str = "", sde: str = "", advice: str = "") -> dict[str, Foreign]:
    return {spelled(name): Foreign(flow, sde, advice) for name in names.split(", ")}


_SAME = "It has no noise: ProbabilityFlow('{}')"
_NOISY = "It has noise: ReverseSDE('{}')"

FOREIGN: dict[str, Foreign] = {
    **_meant("ddim", "euler", "ddim"),
    **_meant("euler, euler discrete", "euler", advice=_SAME.format("euler")),
    **_meant("heun, heun discrete", "heun", advice=_SAME.format("heun")),
    **_meant(
        "dpm++ 2m, dpmsolver++, dpm solver multistep", "dpmpp_2m", advice=_SAME.format("dpmpp_2m")
    ),
    **_meant("torchdiffeq/dopri8", "dopri8", advice=_SAME.format("dopri8")),
    **_meant("torchdiffeq/fehlberg2", "fehlberg2", advice=_SAME.format("fehlberg2")),
    **_meant("torchdiffeq/adaptive_heun", "adaptive_heun", advice=_SAME.format("adaptive_heun")),
    **_meant("rk45, ode45", "dopri5", advice=_SAME.format("dopri5")),
    **_meant("rk23, ode23", "bosh3", advice=_SAME.format("bosh3")),
    **_meant(
        "euler a, euler ancestral, euler ancestral discrete",
        sde="ddim",
        advice=_NOISY.format("ddim"),
    ),
    **_meant(
        "euler maruyama",
        advice="It has noise. The nearest is ReverseSDE('euler'), which keeps the scale of x",
    ),
    **_meant("ddpm, ancestral", sde="ancestral", advice=_NOISY.format("ancestral")),
    **_meant(
        "dpm++ 2m sde, sde-dpmsolver++",
        advice="It has noise: ReverseSDE('dpmpp_2m', eta=...), the square of whose eta is the eta "
        "there",
    ),
    **_meant(
        "dpm++ 3m sde, dpm++ sde, dpm++ 2s a, dpm++ 2s ancestral, dpm solver sde, dpm2 a, dpm2 "
        "ancestral, kdpm2 ancestral discrete",
        advice="It has noise. The nearest is ReverseSDE('dpmpp_2m')",
    ),
    **_meant("pc, predictor corrector", advice="ReverseSDE('ancestral', corrector=1)"),
    **_meant(
        "unipc, unipc multistep",
        advice="The nearest of ProbabilityFlow are 'unipc_2' (the order that is usual there) and "
        "'unipc_3'",
    ),
    **_meant(
        "lms, lms discrete, ab, adams bashforth, pndm, plms, ipndm",
        advice="The nearest of ProbabilityFlow is 'noise_multistep_4'; 'adams_3' is more accurate",
    ),
    **_meant(
        "deis, deis multistep, tab3",
        advice="The nearest of ProbabilityFlow are 'noise_multistep_2' and '_3'",
    ),
    **_meant(
        "eab, zab, reab, dpm++ 3m",
        advice="The nearest of ProbabilityFlow are 'multistep_2' and 'multistep_3'",
    ),
    **_meant(
        "dpm2, kdpm2 discrete, dpm++ 2s",
        advice="The nearest of ProbabilityFlow with two evaluations a step are 'midpoint', 'heun' "
        "and 'trapezoid'",
    ),
    **_meant(
        "dpmsolver, dpm solver singlestep, dpm fast",
        advice="The nearest of ProbabilityFlow are 'noise_multistep_2' and 'noise_multistep_3'",
    ),
    **_meant(
        "dpm adaptive",
        advice="The adaptive methods of ProbabilityFlow are 'bosh3', 'tsit5' and 'dopri5'",
    ),
    **_meant("edm", advice="ProbabilityFlow('heun', grid='edm')"),
    **_meant("edm euler", advice="ProbabilityFlow('euler', grid='edm')"),
    **_meant("edm dpm solver multistep", advice="ProbabilityFlow('dpmpp_2m', grid='edm')"),
    **_meant(
        "flow match euler, flow match euler discrete",
        advice="ProbabilityFlow('euler'), which on the linear path is that; their shifted times go "
        "in grid=",
    ),
    **_meant(
        "flow match heun, flow match heun discrete, heun2",
        advice="ProbabilityFlow('trapezoid'), Heun's rule in t",
    ),
    **_meant(
        "heun3, torchdiffeq/heun3, rk3, ssprk3, kutta3",
        advice="Of third order with three stages is 'ralston_3'",
    ),
    **_meant(
        "torchdiffeq/rk4",
        advice="That is Kutta's 3/8 rule, here 'rk4_38'; 'rk4' is the classical one",
    ),
    **_meant("torchdiffeq/euler", advice="'euler' here, on a grid of its own"),
    **_meant("torchdiffeq/midpoint", advice="'midpoint' here, on a grid of its own"),
    **_meant(
        "explicit adams, implicit adams, fixed adams, torchdiffeq/explicit_adams, "
        "torchdiffeq/implicit_adams, torchdiffeq/fixed_adams",
        advice="'adams_3', or with a corrector 'adams_pc_3'",
    ),
    **_meant("dop853, dopri853", advice="Of order 8 is 'dopri8', another pair"),
    **_meant(
        "lsoda, bdf, radau, scipy solver, torchdiffeq/scipy_solver",
        advice="None is for stiff problems; adaptive are 'dopri5', 'tsit5', 'bosh3'",
    ),
    **_meant(
        "dpm++ 2m karras",
        advice="Its noise levels are a grid: ProbabilityFlow('dpmpp_2m', grid='edm')",
    ),
    **_meant(
        "euler karras", advice="Its noise levels are a grid: ProbabilityFlow('euler', grid='edm')"
    ),
    **_meant(
        "karras ve, edm stochastic",
        advice="It has noise; without, ProbabilityFlow('heun', grid='edm')",
    ),
    **_meant(
        "score sde ve, score sde vp",
        advice="ReverseSDE('ancestral'), with corrector=1 for the predictor-corrector form",
    ),
    **_meant("sa solver", advice="It has noise. The nearest is ReverseSDE('dpmpp_2m')"),
    **_meant(
        "repaint", advice="It conditions: scoretk.posterior(field, measured, scoretk.Replacement())"
    ),
    **_meant("cogvideox ddim", advice="ProbabilityFlow('euler') on the path of its table"),
    **_meant(
        "lcm, tcd, cm stochastic iterative",
        advice="It is for distilled networks that jump to the data: no flow is followed",
    ),
}
"""By `spelled` names. This package's own names are exact and come first."""
