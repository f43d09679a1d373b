"""Fields made of fields.

A combination wraps the field, not the solver, so that every solver can sample every combination.

    tempered(field, T)           p^(1/T)                 energy / T, score / T
    product(f, g, ...)           p_f p_g ...             sums of energies, of scores
    mixture((f, g, ...), w)      w_f p_f + w_g p_g + ... normalised densities; scores in the
                                                         shares r_f = w_f p_f(x) / sum_i w_i p_i(x)
    guided(field, weight, ...)   u + weight (c - u)      classifier-free guidance; 1 means none
    classifier_guided(field, l)  score + weight grad log p(y | x_t)
                                                         guidance by a classifier; 0 means none

All of them commute with time: `product(f, g).at(t)` is `product(f.at(t), g.at(t))`. But are the
densities p_t so found the noised density of t = 1? Noising is linear: of a *mixture* they are, and
every solver in time samples it. Noising commutes with neither powers nor products: `p_t^(1/T)` is
not `(p^(1/T))_t`, `p_t q_t` is not `(p q)_t`, nor is guidance, `c_t^w u_t^(1-w)`. These are a
sequence of densities that ends in the right one, but that no flow or reverse SDE of their scores
follows: however fine the grid, the samples are of another density. For N(0, .5^2)^(1/2), of
standard deviation .707, VP's flow ends at 13.8: so it is refused for powers and products
(`wrapped.check_flow`), and for guidance, where it is common practice, it is not. Langevin
corrections at each time make it right (Du et al.):

    ReverseSDE("ancestral", corrector=k), AnnealedLangevin
        needs scores only; biased by the step size, which a product needs smaller, as n experts
        are up to n times as curved as one
    MALA or HMC on `field.at(t)`, from one t to the next
        exact for p_t; needs an energy of each `f.at(t)`

Powers and products start from the power or product of the normal bases. Where the weights of the
scores do not add up to one the "denoiser" `(x + sigma^2 score) / alpha` is no mean of data, and
infinite at alpha = 0: begin the grid of such a path later.

References:
    Du, Durkan, Strudel, Tenenbaum, Dieleman, Fergus, Sohl-Dickstein, Doucet, Grathwohl, "Reduce,
    reuse, recycle: compositional generation with energy-based diffusion models and MCMC" (2023).
    Ho, Salimans, "Classifier-free diffusion guidance" (2022).
    Dhariwal, Nichol, "Diffusion models beat GANs on image synthesis" (2021).
    Kynkaanniemi, Aittala, Karras, Laine, Aila, Lehtinen, "Applying guidance in a limited interval
    improves sample and distribution quality in diffusion models" (2024).
    Lin, Liu, Li, Yang, "Common diffusion noise schedules and sample steps are flawed" (2024).
    Hinton, "Training products of experts by minimizing contrastive divergence" (2002).
"""

from scoretk.fields.combine.classifier import classifier_guided
from scoretk.fields.combine.guidance import guided
from scoretk.fields.combine.mixtures import mixture
from scoretk.fields.combine.powers import product, tempered

__all__ = ["classifier_guided", "guided", "mixture", "product", "tempered"]
