"""Learning: contrastive divergence, its replay buffer, losses and a small fit loop."""

from scoretk.learn.contrastive import CDStep, ContrastiveDivergence, ReplayBuffer
from scoretk.learn.fitting import Fit, Progress, Recipe, fit
from scoretk.learn.losses import denoising_score_matching, flow_matching, noise_prediction, stratified

__all__ = [
    "CDStep",
    "ContrastiveDivergence",
    "Fit",
    "Progress",
    "Recipe",
    "ReplayBuffer",
    "denoising_score_matching",
    "fit",
    "flow_matching",
    "noise_prediction",
    "stratified",
]
