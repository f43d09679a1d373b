r"""Grey images in bits per dimension: a flow of couplings, flow matching and diffusion.

A grey level g of 256 is spread evenly, `y = (g + u) / 256`, and taken to the real line,

    z = logit(a + (1 - 2 a) y),    log p(y) = log p(z) + sum_i log |dz_i / dy_i|
    bits per dimension = -log2 p(y) / d + 8

an upper bound in the mean over u of `-log2 P(g) / d` for the probability P of the levels. Models are
of z; they start as the Gaussian with the mean and covariance of the data's z. That of a Gaussian
path has its density by the probability flow, whose divergence is found by random probes; on a few
images it is also found exactly.

References:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using real NVP" (2017), for the logits.
    Theis, van den Oord, Bethge, "A note on the evaluation of generative models" (2016).
    Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud, "FFJORD: free-form continuous dynamics for
    scalable reversible generative models" (2019).
    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-based generative modeling through
    stochastic differential equations" (2021).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scoretk.core.devices import sent
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.demo.bench.mnist.data import Split
from scoretk.demo.bench.mnist.estimates import CHUNK, Nats, Second, joint_error, mean_of_rows
from scoretk.demo.bench.mnist.families import CHOOSING, PIXELS, SHAPE, drawn_exactly, words
from scoretk.demo.bench.mnist.training import Plan, Task, Trained, fitted
from scoretk.fields import Diffusion, GaussianPath
from scoretk.inference.likelihood import Estimate, log_prob
from scoretk.inference.sampling import sample
from scoretk.learn.losses import prediction_error, stratified
from scoretk.learn.recipe import Recipe
from scoretk.models.digits.diffusion import Levels
from scoretk.models.digits.flows import REALNVP, FlowNetwork, NormalizingFlow
from scoretk.models.digits.networks import PathNetwork, PrincipalAxes, TimeMLP, fresh
from scoretk.solvers import ProbabilityFlow

__all__ = ["Couplings", "OnPath", "as_pixels", "logits"]

LEVELS = 256
SQUEEZE = 1e-6
"""a, which keeps the logits of black and white finite."""
FLOOR = 0.01
"""The least standard deviation of a direction of the data's Gaussian."""
OF_SPREAD = 10_000
"""How many images the Gaussian is of."""


def logits(y: Tensor) -> tuple[Tensor, Tensor]:
    """The logits z of y in [0, 1], and the log of the Jacobian: `(batch, *shape)`, `(batch,)`."""
    squeezed = SQUEEZE + (1 - 2 * SQUEEZE) * y
    z = torch.logit(squeezed)
    slope = softplus(z) + softplus(-z) + math.log(1 - 2 * SQUEEZE)  # -log s (1 - s)
    return z, slope.flatten(1).sum(1)


def as_pixels(z: Tensor) -> Tensor:
    """The y in [0, 1] of logits z, like z."""
    return ((torch.sigmoid(z) - SQUEEZE) / (1 - 2 * SQUEEZE)).clamp(0, 1)


@dataclass(frozen=True)
class Couplings:
    """A flow of affine couplings, by maximum likelihood.

    Args:
        recipe: How it is fitted.
        layers: How many couplings there are.
        width: The width of their networks' hidden layers.
    """

    recipe: Recipe
    layers: int = 8
    width: int = 256

    def train(self, data: Split, plan: Plan) -> Trained:
        """As `scoretk.demo.bench.mnist.families.Family.train`."""
        spread = _spread(data.train, plan.seed)
        settings = {
            "event_shape": SHAPE,
            "layers": self.layers,
            "width": self.width,
            "blocks": 1,
            "dropout": 0.0,
        }

        def start() -> Task:
            generator = torch.Generator().manual_seed(plan.seed)
            steps = fresh(lambda: REALNVP.transforms(settings), generator)
            flow = NormalizingFlow(FlowNetwork(steps, spread).to(data.train.device), SHAPE)

            def loss(x: Tensor, generator: torch.Generator) -> Tensor:
                z, slope = logits(_spread_evenly(x, generator))
                return _bits(flow.log_prob(z) + slope)

            return Task(flow.network, loss, lambda p: p.held_out or 0.0)

        network, steps, curve = fitted(start, data, data.valid[:CHOOSING], self.recipe, plan)
        assert isinstance(network, FlowNetwork)
        name = f"{self.layers} affine couplings of logits, width {self.width}"
        field = NormalizingFlow(network, SHAPE)
        return Trained(field, steps, self.recipe.steps, curve, words(name, self.recipe))

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """By the flow's own density, one draw of u an image."""
        found, slope = _scored(field, data.test, seed)
        value, rows = mean_of_rows(_bits(found.value + slope))
        return Nats(value, rows, 0.0, "exact, dequantised uniformly")

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Exact draws, `(n, 28, 28)` in [0, 1]."""
        return as_pixels(drawn_exactly(field, n, seed))


@dataclass(frozen=True)
class OnPath:
    """A network of a Gaussian path, by regression.

    Args:
        recipe: How it is fitted.
        path: The path.
        predicts: What the network predicts, a name in `scoretk.fields.convert.PREDICTIONS`.
        levels: How times are drawn and weighted.
        width: The width of the network's hidden layers.
        blocks: The number of its residual blocks.
        rows: How many test images its density is found on.
        few: On how many of them the divergence is found exactly too.
        steps: How many steps the flow is solved in.
    """

    recipe: Recipe
    path: GaussianPath
    predicts: str
    levels: Levels
    width: int = 512
    blocks: int = 3
    rows: int = 128
    few: int = 2
    steps: int = 16

    def train(self, data: Split, plan: Plan) -> Trained:
        """As `scoretk.demo.bench.mnist.families.Family.train`; the curve is of the regression's loss."""
        made = self.network(data.train, plan.seed).to(data.train.device)
        scale = float(made.std.square().mean().sqrt())

        def start() -> Task:
            network = copy.deepcopy(made)

            def loss(x: Tensor, generator: torch.Generator) -> Tensor:
                z, _ = logits(_spread_evenly(x, generator))
                noise = sent(torch.randn(z.shape, generator=generator), z.device)
                u = sent(stratified(len(z), generator), z.device)
                t, weight = self.levels(u, self.path, self.predicts, scale)
                return weight * prediction_error(network, z, t, noise, self.path, self.predicts)

            return Task(network, loss, lambda p: p.held_out or 0.0)

        network, steps, curve = fitted(start, data, data.valid[:CHOOSING], self.recipe, plan)
        assert isinstance(network, PathNetwork)
        path = type(self.path).__name__
        name = f"{self.predicts} on the path {path}, {self.blocks} blocks of {self.width}, logits"
        field = Diffusion(network, SHAPE, self.path, self.predicts)
        return Trained(field, steps, self.recipe.steps, curve, words(name, self.recipe))

    def network(self, train: Tensor, seed: int) -> PathNetwork:
        """The untrained network of training images `(n, 28, 28)`."""
        generator = torch.Generator().manual_seed(seed)
        backbone = fresh(lambda: TimeMLP(PIXELS, self.width, self.blocks, 0.0), generator)
        return PathNetwork(backbone, self.path, self.predicts, _spread(train, seed))

    def judge(self, field: Any, data: Split, seed: int) -> Nats:
        """By the probability flow: random probes on all its images, exactly on a few of them."""
        solve = {"method": "rk4", "steps": self.steps}
        found, slope = _scored(field, data.test[: self.rows], seed, trace="hutchinson", **solve)
        few = data.test[: self.few]
        exact, _ = _scored(field, few, seed, trace="exact", **solve)
        bits, each = _bits(found.value + slope), found.stderr / (PIXELS * math.log(2))
        value, rows = mean_of_rows(bits)
        second = Second(
            float(_bits(exact.value + slope[: self.few]).mean()),
            float(bits[: self.few].mean()),
            joint_error(each[: self.few]),
            f"divergence exactly and by 8 probes, {len(few)} images",
        )
        how = f"probability flow, {self.steps} steps of rk4, {len(bits)} images"
        return Nats(value, rows, joint_error(each), how, second)

    def draws(self, field: Any, n: int, seed: int) -> Tensor:
        """Where the probability flow leads normals, `(n, 28, 28)` in [0, 1]."""
        solver = ProbabilityFlow("rk4", steps=self.steps)
        return as_pixels(sample(field, solver, chains=n, seed=seed, progress=False).final)


def _spread_evenly(x: Tensor, generator: torch.Generator) -> Tensor:
    """Levels over 256, each spread evenly over its own share of [0, 1], like x."""
    return x + sent(torch.rand(x.shape, generator=generator), x.device) / LEVELS


def _bits(log_p: Tensor) -> Tensor:
    """Bits per dimension of log densities of y, like them."""
    return -log_p / (PIXELS * math.log(2)) + math.log2(LEVELS)


def _scored(field: Any, test: Tensor, seed: int, **options: Any) -> tuple[Estimate, Tensor]:
    """The log density of the logits of test images, one u an image, and the log of the Jacobian."""
    u = Noise(seed, len(test), device=test.device).uniform(0, Stream.START, tuple(test.shape[1:]))
    z, slope = logits(test + u / LEVELS)
    return log_prob(field, z, seed=seed, batch=CHUNK, **options), slope


def _spread(train: Tensor, seed: int) -> PrincipalAxes:
    """The Gaussian with the mean and covariance of the logits of images."""
    generator = torch.Generator().manual_seed(seed)
    z = logits(_spread_evenly(train[:OF_SPREAD].cpu(), generator))[0].flatten(1).double()
    mean = z.mean(0)
    centred = z - mean
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(z))
    std = (variance.clamp(min=0) + FLOOR**2).sqrt()
    return PrincipalAxes(mean.float(), basis.float(), std.float())
