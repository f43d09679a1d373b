"""
Evidence: which polynomial?
===========================

The evidence of a model is the integral of prior times likelihood, here of polynomials of degree 0 to
4 with standard normal coefficients, whose evidence is known. The estimates are compared with it.
"""

import torch
from matplotlib.figure import Figure
from torch.distributions import MultivariateNormal, Normal

import scoretk as stk

t = torch.linspace(-1, 1, 30)
noise = torch.randn(30, generator=torch.Generator().manual_seed(0))
y = 1 - 2 * t**2 + 0.3 * noise


def model(degree: int) -> tuple[stk.Energy, torch.Tensor]:
    """Minus the log of prior times likelihood, and the exact log evidence."""
    powers = torch.stack([t**k for k in range(degree + 1)], 1)  # (30, degree + 1)

    def energy(x: torch.Tensor) -> torch.Tensor:
        likelihood = Normal(x @ powers.T, 0.3).log_prob(y).sum(1)
        return -likelihood - Normal(0.0, 1.0).log_prob(x).sum(1)

    covariance = powers @ powers.T + 0.09 * torch.eye(30)
    exact = MultivariateNormal(torch.zeros(30), covariance).log_prob(y)
    return stk.Energy(energy, (degree + 1,)), exact


exact, found, errors = [], [], []
for degree in range(5):
    field, known = model(degree)
    estimate = stk.log_partition(field, levels=30, chains=48)
    exact.append(float(known))
    found.append(float(estimate.value))
    errors.append(float(estimate.stderr))

# %%
# Degree 2 made the data, and has the most evidence.

figure = Figure(figsize=(5, 3.2), layout="constrained")
axes = figure.subplots()
axes.plot(range(5), exact, "--", color="gray", label="exact")
axes.errorbar(range(5), found, errors, fmt="o", label="log_partition")
axes.set(xlabel="degree", ylabel="log evidence")
axes.legend()
