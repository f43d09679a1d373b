"""Models of diffusers as fields: the network, and the scheduler that says how it was trained.

A scheduler's configuration fixes what the network means. Three conventions are known:

    trained on     path                               network's time          prediction_type
    a table        Tabulated(alphas_cumprod)          k = N - 1 ... 0         epsilon, sample,
                                                      (or log(s) / 4)         v_prediction
    levels beyond  EDM(sigma_min, sigma_max)          log(s) / 4              v_prediction
    a line         Linear, s = 1 - t                  by architecture         noise - data = dx/ds
    EDM            EDM(sigma_min, sigma_max, rho)     log(s) / 4              F, preconditioned

with s the noise level. The table is the scheduler's own, rescaled to zero terminal signal-to-noise
ratio where that is asked for; x is in the variance-preserving coordinates of the network, so that
`scale_model_input` has nothing left to do: a scheduler's sample in units of 1/alpha, as those with
sigmas have it, is `sqrt(1 + s^2) x`. On a line the time that a network is called with is a matter of
its architecture (`scoretk.adapters.clocks`). The steps of a scheduler are `field.grid(steps)`, times for
`ProbabilityFlow(grid=...)`:

    DDIM             ProbabilityFlow("ddim")       Euler, FlowMatchEuler     ProbabilityFlow("euler")
    DDPM             ReverseSDE("ddpm")            Heun                      ProbabilityFlow("heun")
    DPMSolver++(2M)  ProbabilityFlow("dpmpp_2m")   FlowMatchHeun             ProbabilityFlow("trapezoid")

Some schedulers round the timesteps that they find for their levels, and some cut them; which, is seen
by the steps that one sets.

Where the noise levels of a scheduler with `timestep_type="continuous"` go beyond its table, as those
of Stable Video Diffusion do, the network is one of EDM for data of spread 1.

A scheduler that clips its prediction of the data has a field whose denoiser is clipped, and whose
noise follows from it; DDIM clips only one of the two.

References:
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022): the preconditioning of EDM.
    Lin, Liu, Li, Yang, "Common diffusion noise schedules and sample steps are flawed" (2024).
    Esser et al., "Scaling rectified flow transformers for high-resolution image synthesis" (2024):
    the shift of a line's grid.
"""

from __future__ import annotations

from scoretk.adapters.diffusers.field import DiffusersField, from_diffusers

__all__ = ["DiffusersField", "from_diffusers"]
