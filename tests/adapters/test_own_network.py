"""Networks of one's own, in each convention of time and each prediction, against the exact law of Gaussian data."""

import pytest
import torch
from torch import nn

import scoretk as stk

BRINGS = [
    (
        "a network of one's own, the score of x",
        "stk.Score(net, event_shape)",
        "the exact law of Gaussian data",
        "",
        ["test_a_score_of_x_is_sampled"],
    ),
    (
        "one of x and t, t = 0 noise",
        "stk.Diffusion(net, event_shape, path, predicts=...)",
        "the same, every prediction",
        "",
        ["test_each_prediction_is_told_the_data"],
    ),
    (
        "one of x and sigma",
        "stk.from_sigmas(net, event_shape, predicts=...)",
        "the same",
        "",
        ["test_each_prediction_is_told_the_data"],
    ),
    (
        "one of x and a timestep",
        "stk.from_timesteps(net, alphas_cumprod, event_shape, predicts=...)",
        "the same",
        "",
        ["test_each_prediction_is_told_the_data"],
    ),
    (
        "one of x and t, t = 1 noise",
        "stk.from_reversed_time(net, event_shape, path, predicts=...)",
        "the same",
        "",
        ["test_each_prediction_is_told_the_data"],
    ),
    (
        "a velocity of x and t",
        "stk.Velocity(net, event_shape)",
        "the same",
        "",
        ["test_a_velocity_is_told_the_data"],
    ),
]
MEAN, STD = 1.0, 0.5
TABLE = torch.linspace(0.99, 0.01, 20, dtype=torch.float64)


def denoised(x, alpha, sigma):
    """`E[x_1 | x]` of data N(MEAN, STD^2)."""
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return MEAN + gain * (x - alpha * MEAN)


class Exact(nn.Module):
    """A trained network, as it would be without error.

    Args:
        scales: Its time `(batch,)` to alpha and sigma.
        predicts: What it predicts.
    """

    def __init__(self, scales, predicts):
        super().__init__()
        self.scales, self.predicts = scales, predicts

    def forward(self, x, time):
        alpha, sigma = (value.to(x)[:, None] for value in self.scales(time))
        data = denoised(x, alpha, sigma)
        noise = (x - alpha * data) / sigma
        return {
            "data": data,
            "noise": noise,
            "score": -noise / sigma,
            "v": alpha * noise - sigma * data,
        }[self.predicts]


VP = stk.VP()
CONVENTIONS = {
    "t": lambda p: stk.Diffusion(
        Exact(lambda t: (VP.alpha(t), VP.sigma(t)), p), (2,), VP, predicts=p
    ),
    "sigma": lambda p: stk.from_sigmas(
        Exact(lambda s: (torch.ones_like(s), s), p), (2,), predicts=p
    ),
    "timestep": lambda p: stk.from_timesteps(
        Exact(lambda k: (TABLE[k].sqrt(), (1 - TABLE[k]).sqrt()), p), TABLE, (2,), p
    ),
    "reversed": lambda p: stk.from_reversed_time(
        Exact(lambda s: (VP.alpha(1 - s), VP.sigma(1 - s)), p), (2,), VP, p
    ),
}
X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-2.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("predicts", ["data", "noise", "score", "v"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_each_prediction_is_told_the_data(convention, predicts):
    field = CONVENTIONS[convention](predicts)
    for t in (0.1, 0.5, 0.9):  # of 20 timesteps these are whole ones
        alpha, sigma = (float(f(t)) for f in (field.path.alpha, field.path.sigma))
        torch.testing.assert_close(field.denoise(X, t), denoised(X, alpha, sigma))
    assert stk.sample(field, stk.ProbabilityFlow(steps=6), chains=4).ok.all()


def velocity(x, t):
    t = t[:, None].double()
    data = denoised(x, t, 1 - t)
    return (data - (x - t * data) / (1 - t)).to(x)


def test_a_velocity_is_told_the_data():
    field = stk.Velocity(velocity, (2,))
    for t in (0.1, 0.5, 0.9):
        torch.testing.assert_close(field.denoise(X, t), denoised(X, t, 1 - t))


def test_a_score_of_x_is_sampled():
    field = stk.Score(_score_network(), (2,))
    torch.testing.assert_close(field.score(X.float()), -(X.float() - MEAN) / STD**2)
    assert stk.sample(field, stk.ULA(0.01), chains=4, steps=5).ok.all()


def _score_network():
    net = nn.Linear(2, 2, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        net.weight.copy_(-torch.eye(2) / STD**2)
        net.bias.fill_(MEAN / STD**2)
    return net
