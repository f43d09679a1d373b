"""Learning: contrastive divergence, the losses of the other families, and a small fit loop."""

from scoretk.core.keywords import explained_class
from scoretk.learn.adversarial import (
    DIVERGENCES,
    Divergence,
    f_gan_critic,
    f_gan_generator,
    gradient_penalty,
    wasserstein_critic,
    wasserstein_generator,
)
from scoretk.learn.contrastive import CDStep, ContrastiveDivergence, ReplayBuffer
from scoretk.learn.couplings import COUPLINGS, independent_coupling, optimal_coupling
from scoretk.learn.fitting import Fit, Player, Progress, Recipe, fit
from scoretk.learn.likelihoods import (
    log_weights,
    negative_elbo,
    negative_iwae,
    negative_log_likelihood,
    reparametrised,
)
from scoretk.learn.losses import (
    denoising_score_matching,
    flow_matching,
    noise_prediction,
    prediction_error,
    stratified,
)
from scoretk.learn.noise_contrastive import flow_contrastive, noise_contrastive
from scoretk.learn.sampler_divergence import nearest_neighbour_entropy, sampler_divergence
from scoretk.learn.score_matching import implicit_score_matching, sliced_score_matching
from scoretk.learn.weightings import WEIGHTINGS, weighting

__all__ = [
    "COUPLINGS",
    "DIVERGENCES",
    "WEIGHTINGS",
    "CDStep",
    "ContrastiveDivergence",
    "Divergence",
    "Fit",
    "Player",
    "Progress",
    "Recipe",
    "ReplayBuffer",
    "denoising_score_matching",
    "f_gan_critic",
    "f_gan_generator",
    "fit",
    "flow_contrastive",
    "flow_matching",
    "gradient_penalty",
    "implicit_score_matching",
    "independent_coupling",
    "log_weights",
    "nearest_neighbour_entropy",
    "negative_elbo",
    "negative_iwae",
    "negative_log_likelihood",
    "noise_contrastive",
    "noise_prediction",
    "optimal_coupling",
    "prediction_error",
    "reparametrised",
    "sampler_divergence",
    "sliced_score_matching",
    "stratified",
    "wasserstein_critic",
    "wasserstein_generator",
    "weighting",
]


for _made in (ContrastiveDivergence, Player, Recipe, ReplayBuffer):
    explained_class(_made)


def __dir__() -> list[str]:
    """The public names alone: the modules beside them have nothing to call."""
    return sorted(__all__)
