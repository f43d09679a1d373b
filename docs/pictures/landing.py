"""The picture of the landing page: an energy and its draws, a diffusion's trajectories, digits of a shipped model."""

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import scoretk as stk

PICTURE = Path(__file__).with_suffix(".png")
DRAWS = "#d9480f"


def energy_and_draws(axes, steps):
    """Two wells along a bent valley, and draws of parallel tempering, which visits both."""

    def fn(x):
        return 3 * (x[:, 0].square() - 1).square() + 6 * (x[:, 1] - x[:, 0].square() + 1).square()

    draws = stk.sample(stk.Energy(fn, (2,)), stk.ParallelTempering(), chains=64, steps=steps)
    u, v = torch.meshgrid(
        torch.linspace(-1.9, 1.9, 90), torch.linspace(-1.9, 1.6, 90), indexing="xy"
    )
    height = fn(torch.stack([u, v], -1).reshape(-1, 2)).reshape(u.shape)
    axes.contourf(u.numpy(), v.numpy(), (-height).exp().numpy(), levels=12, cmap="Blues")
    axes.scatter(*draws.x[:, -8:].reshape(-1, 2).T.numpy(), s=3, color=DRAWS, linewidths=0)
    axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.6), xticks=[], yticks=[], title="an energy")


def trajectories(axes, chains):
    """Data at -2 (a third) and 1 (two thirds), of standard deviation .2: the exact denoiser's flow."""
    path, means, shares = stk.Linear(), torch.tensor([-2.0, 1.0]), torch.tensor([1 / 3, 2 / 3])

    def denoiser(x, t):
        alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
        var = (0.2 * alpha).square() + sigma.square()
        weight = (shares.log() - (x - alpha * means).square() / (2 * var)).softmax(1)
        return (weight * (means + 0.04 * alpha / var * (x - alpha * means))).sum(1, keepdim=True)

    field = stk.Diffusion(denoiser, (1,), path, predicts="data")
    flow = stk.ProbabilityFlow(steps=64, grid="uniform")
    draws = stk.sample(field, flow, chains=chains, keep="all")
    way = draws.x[..., 0].T
    axes.plot(
        torch.linspace(0, 1, len(way) + 1)[1:], way, color="#1c7ed6", linewidth=0.5, alpha=0.6
    )
    axes.set(xlim=(0, 1), xticks=[0, 1], yticks=[], title="a diffusion", xlabel="t")


def digits(axes):
    """Sixteen draws of a shipped flow."""
    x = stk.sample("digits-flow", chains=16).final.reshape(4, 4, 8, 8)
    framed = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-1.0)
    axes.imshow(framed.permute(0, 2, 1, 3).reshape(40, 40).numpy(), cmap="gray_r", vmin=-1, vmax=1)
    axes.set(xticks=[], yticks=[], title="a trained flow")


def picture(steps=200, chains=80):
    """The figure."""
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    energy_and_draws(left, steps)
    trajectories(middle, chains)
    digits(right)
    return figure


if __name__ == "__main__":
    picture().savefig(PICTURE, dpi=100, metadata={"Software": None})
