"""Gaussian-process regression: lengthscale l, amplitude a and noise s, with the function itself integrated out.

    y ~ N(0, K),  K_ij = a^2 exp(-(t_i - t_j)^2 / (2 l^2)) + s^2 [i = j],  log l, log a, log s ~ N(0, 1)

Reference: Rasmussen, Williams, "Gaussian Processes for Machine Learning" (2006), equation 2.30.
"""

import torch

import scoretk as stk

TRUTH = {"lengthscale": 0.8, "amplitude": 1.5, "noise": 0.3}


def covariance(x: torch.Tensor) -> torch.Tensor:
    """K at the inputs, `(batch, 3) -> (batch, n, n)`."""
    lengthscale, amplitude, noise = x.exp()[..., None, None].unbind(1)
    kernel = amplitude**2 * torch.exp(-((INPUTS[:, None] - INPUTS) ** 2) / (2 * lengthscale**2))
    return kernel + noise**2 * torch.eye(len(INPUTS), dtype=x.dtype)


def simulate() -> torch.Tensor:
    """Noisy values of one function of this process, `(n,)`."""
    root = torch.linalg.cholesky(
        covariance(torch.tensor([list(TRUTH.values())], dtype=torch.float64).log())
    )[0]
    return root @ torch.randn(
        len(INPUTS), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


INPUTS = torch.linspace(
    0, 10, 50, dtype=torch.float64
)  # the chains take this dtype, which Cholesky factors want
VALUES = simulate()


def energy(x: torch.Tensor) -> torch.Tensor:
    """Negative log posterior of `x = (log l, log a, log s)`, `(batch, 3) -> (batch,)`; inf where K is numerically singular."""
    root, info = torch.linalg.cholesky_ex(covariance(x))
    white = torch.linalg.solve_triangular(root, VALUES[:, None], upper=False)[..., 0]
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    return torch.where(
        info == 0, white.square().sum(1) / 2 + log_det + x.square().sum(1) / 2, torch.inf
    )


def main(steps: int = 200, warmup: int = 300) -> None:
    draws = stk.sample(stk.Energy(energy, (3,)), chains=64, steps=steps, warmup=warmup)
    print(f"{'':12}{'truth':>8}{'mean':>8}{'sd':>8}")
    for (name, truth), values in zip(TRUTH.items(), draws.x.exp().flatten(0, 1).T, strict=True):
        print(f"{name:12}{truth:8.3f}{values.mean():8.3f}{values.std():8.3f}")


if __name__ == "__main__":
    main()
