"""A mixture of two normals, `y_i ~ w N(m_1, s_1^2) + (1 - w) N(m_2, s_2^2)`, whose order `m_1 < m_2` tells them apart.

Priors: w uniform on (0, 1), m_k ~ N(0, 3^2) in order, s_k ~ half-normal(2). `stk.constrained` samples them in free space, with
the Jacobian; the energy, the start and the draws are in the parameters' own.
Reference: Betancourt, "Identifying Bayesian mixture models" (2017).
"""

import torch
from torch.distributions import constraints

import scoretk as stk

TRUTH = {"w": 0.3, "m_1": -1.0, "m_2": 2.0, "s_1": 0.5, "s_2": 1.0}


def simulate(length: int = 200) -> torch.Tensor:
    """The values, `(length,)`."""
    generator = torch.Generator().manual_seed(0)
    second = (torch.rand(length, generator=generator) > TRUTH["w"]).long()
    mean, scale = torch.tensor(list(TRUTH.values()))[1:].reshape(2, 2)
    return mean[second] + scale[second] * torch.randn(length, generator=generator)


VALUES = simulate()


def energy(x: torch.Tensor) -> torch.Tensor:
    """Negative log posterior of `x = (w, m_1, m_2, s_1, s_2)`, `(batch, 5) -> (batch,)`."""
    w, mean, scale = x[:, :1], x[:, 1:3], x[:, 3:]
    log_shares = torch.cat([w.log(), (-w).log1p()], 1)
    standard = (VALUES - mean[..., None]) / scale[..., None]  # (batch, 2, n)
    first, second = ((log_shares - scale.log())[..., None] - standard.square() / 2).unbind(1)
    likelihood = torch.logaddexp(first, second).sum(1)
    prior = (mean / 3).square().sum(1) / 2 + (scale / 2).square().sum(1) / 2
    return prior - likelihood


PARAMETERS = constraints.cat(
    [constraints.unit_interval, stk.ordered, constraints.positive], dim=-1, lengths=[1, 2, 2]
)


def main(steps: int = 200, warmup: int = 300) -> None:
    field = stk.constrained(stk.Energy(energy, (5,)), PARAMETERS)
    draws = stk.sample(field, chains=64, steps=steps, warmup=warmup)
    print(f"{'':10}{'truth':>8}{'mean':>8}{'sd':>8}")
    for (name, truth), values in zip(TRUTH.items(), draws.x.flatten(0, 1).T, strict=True):
        print(f"{name:10}{truth:8.3f}{values.mean():8.3f}{values.std():8.3f}")


if __name__ == "__main__":
    main()
