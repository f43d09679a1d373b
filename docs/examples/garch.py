"""GARCH(1,1): returns `r_t ~ N(0, h_t)` whose variance remembers, `h_t = omega + alpha r_{t-1}^2 + beta h_{t-1}`.

Priors: omega ~ half-normal(1); (alpha, beta) uniform where alpha, beta > 0 and alpha + beta < 1.
Reference: Bollerslev, "Generalized autoregressive conditional heteroskedasticity" (1986).
"""

import torch
from torch.nn.functional import logsigmoid, pad

import scoretk as stk

TRUTH = {"omega": 0.1, "alpha": 0.25, "beta": 0.6}


def simulate(length: int = 600) -> torch.Tensor:
    """The returns, `(length,)`."""
    h, r = 1.0, []
    for e in torch.randn(100 + length, generator=torch.Generator().manual_seed(0)).tolist():
        r.append(h**0.5 * e)
        h = TRUTH["omega"] + TRUTH["alpha"] * r[-1] ** 2 + TRUTH["beta"] * h
    return torch.tensor(r[-length:])


SQUARES = simulate().square()
FIRST, STEPS = SQUARES.mean(), torch.arange(len(SQUARES) - 1)  # h_0: the variance of all returns
LAGGED = torch.stack([pad(SQUARES[: -1 - k], (k, 0)) for k in STEPS.tolist()])


def parameters(x: torch.Tensor) -> torch.Tensor:
    """`(omega, alpha, beta)` of any real numbers: what alpha leaves of 1 is broken once more for beta. `(..., 3)`."""
    alpha = x[..., 1].sigmoid()
    return torch.stack([x[..., 0].exp(), alpha, (1 - alpha) * x[..., 2].sigmoid()], -1)


def variances(x: torch.Tensor) -> torch.Tensor:
    """`h_1 ... h_{T-1}`, the recursion written out as `h_t = sum_{k<t} beta^k (omega + alpha r_{t-1-k}^2) + beta^t h_0`."""
    omega, alpha, beta = parameters(x)[..., None].unbind(-2)
    powers = beta**STEPS
    return omega * powers.cumsum(-1) + alpha * (powers @ LAGGED) + beta * powers * FIRST


def energy(x: torch.Tensor) -> torch.Tensor:
    """Negative log posterior in unconstrained coordinates, `(batch, 3) -> (batch,)`."""
    h = variances(x)
    likelihood = (h.log() + SQUARES[1:] / h).sum(1) / 2
    breaks = logsigmoid(x[:, 1:]) + logsigmoid(-x[:, 1:])  # log of the sigmoids' slopes
    jacobian = x[:, 0] + breaks.sum(1) + logsigmoid(-x[:, 1])  # beta is scaled by 1 - alpha
    return likelihood + x[:, 0].exp().square() / 2 - jacobian


def main(steps: int = 200, warmup: int = 300) -> None:
    draws = stk.sample(stk.Energy(energy, (3,)), chains=64, steps=steps, warmup=warmup)
    found = parameters(draws.x).flatten(0, 1)
    print(f"{'':10}{'truth':>8}{'mean':>8}{'sd':>8}")
    for (name, truth), values in zip(TRUTH.items(), found.T, strict=True):
        print(f"{name:10}{truth:8.3f}{values.mean():8.3f}{values.std():8.3f}")


if __name__ == "__main__":
    main()
