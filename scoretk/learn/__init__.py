"""Learning: contrastive divergence, its replay buffer, losses and a small fit loop."""

from scoretk.learn.contrastive import CDStep, ContrastiveDivergence, ReplayBuffer

__all__ = ["CDStep", "ContrastiveDivergence", "ReplayBuffer"]
