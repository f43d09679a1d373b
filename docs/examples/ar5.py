"""An autoregression of order 5: `y_t = c + phi_1 y_{t-1} + ... + phi_5 y_{t-5} + sigma eps_t`, all seven parameters unknown.

Priors: c and phi ~ N(0, 1), sigma ~ half-normal(1), sampled as log sigma.
"""

import torch

import scoretk as stk

NAMES = ["c", *(f"phi_{k}" for k in range(1, 6)), "sigma"]
TRUTH = [0.3, 0.5, -0.3, 0.2, -0.1, 0.25, 0.8]


def simulate(length: int = 500) -> torch.Tensor:
    """The series, `(length,)`."""
    eps = torch.randn(100 + length, generator=torch.Generator().manual_seed(0)).tolist()
    c, *phi, sigma = TRUTH
    y = [0.0] * 5
    for e in eps:
        y.append(c + sum(p * before for p, before in zip(phi, y[:-6:-1], strict=True)) + sigma * e)
    return torch.tensor(y[-length:])


SERIES = simulate()
NOW = SERIES[5:]
PAST = SERIES.unfold(0, 5, 1)[:-1].flip(1)  # (n, 5): the five values before each, the latest first


def energy(x: torch.Tensor) -> torch.Tensor:
    """Negative log posterior of `x = (c, phi_1..5, log sigma)`, given the first five values: `(batch, 7) -> (batch,)`."""
    c, phi, log_sigma = x[:, :1], x[:, 1:6], x[:, 6:]
    standard = (NOW - c - phi @ PAST.T) / log_sigma.exp()
    likelihood = (standard.square() / 2 + log_sigma).sum(1)
    prior = x[:, :6].square().sum(1) / 2 + (2 * log_sigma[:, 0]).exp() / 2
    return (
        likelihood + prior - log_sigma[:, 0]
    )  # the last term: the Jacobian of sigma = exp(log sigma)


def parameters(x: torch.Tensor) -> torch.Tensor:
    """`(c, phi, sigma)` of positions, `(..., 7)`."""
    return torch.cat([x[..., :6], x[..., 6:].exp()], -1)


def main(steps: int = 200, warmup: int = 300) -> None:
    draws = stk.sample(stk.Energy(energy, (7,)), chains=64, steps=steps, warmup=warmup)
    found = parameters(draws.x).flatten(0, 1)
    print(f"{'':10}{'truth':>8}{'mean':>8}{'sd':>8}")
    for name, truth, values in zip(NAMES, TRUTH, found.T, strict=True):
        print(f"{name:10}{truth:8.3f}{values.mean():8.3f}{values.std():8.3f}")


if __name__ == "__main__":
    main()
