r"""Normalizing flows on handwritten digits: NICE, real NVP, MAF, neural splines, a continuous flow.

A flow is an invertible f from data to standard normals, so that

    log p(x) = log N(f(x); 0, I) + log |det df/dx|

and x = f^-1(z) with z ~ N(0, I) is an exact draw. Here f is whitening, `u = U s^-1 U^T (x - m)`,
which mixes pixels as little as possible, followed by steps that are the identity before training:
the flow starts as the Gaussian with the data's mean m and covariance `U diag(s^2) U^T`. A step
changes each coordinate by an increasing function - an addition, an affine function or a
rational-quadratic spline - whose parameters a network makes of other coordinates: in a coupling
those of one half from the other half; in an autoregressive step those of each from those before it,
by masked weights. The transforms are zuko's, their networks our own.

digits-ffjord is a flow in time, `du/dt = F(u, t)` from normals at t = 0 to whitened data at t = 1.
In data space that is

    x_t = t m + U s^t U^T u_t,        dx/dt = m + U [log(s) s^t U^T u + s^t U^T F(u, t)],

again exactly the data's Gaussian where F = 0. It is trained by maximum likelihood through the
package's own solver, back in time from (u_1, 0, 0) along

    d/dt (u, l, k) = (F, e^T (dF/du) e, -|F|^2)
    log p(x) = log N(u_0; 0, I) + l_0 - sum log s

with random signs e that are fixed during a solve. The kinetic energy k_0 is kept small by a
penalty, as straight paths need few steps. The path is not Gaussian, so the model has a velocity, a
base and hence a density, but neither score nor denoiser.

References:
    Dinh, Krueger, Bengio, "NICE: non-linear independent components estimation" (2015).
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using real NVP" (2017).
    Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation"
    (2015).
    Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation" (2017).
    Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows" (2019).
    Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud, "FFJORD: free-form continuous dynamics for
    scalable reversible generative models" (2019).
    Finlay, Jacobsen, Nurbekyan, Oberman, "How to train your neural ODE: the world of Jacobian and
    kinetic regularization" (2020).
    Rozet et al., "Zuko: normalizing flows in PyTorch" (2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from scoretk.core.arguments import count, finite
from scoretk.core.dependencies import required
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields import NoiseSource, Velocity
from scoretk.fields.base import standard_normal
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import drawn
from scoretk.inference.sampling import sample
from scoretk.learn.fitting import Recipe
from scoretk.learn.likelihoods import negative_log_likelihood
from scoretk.models.digits.networks import (
    HARMONICS,
    Dropout,
    OnSpread,
    PrincipalAxes,
    fresh,
    principal_axes,
    zero_start,
)
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import File, Report, TrainingRequest, dequantised, prepare
from scoretk.solvers import ProbabilityFlow

__all__ = [
    "FFJORD",
    "MAF",
    "NICE",
    "REALNVP",
    "SPLINE",
    "Continuous",
    "ContinuousNetwork",
    "FlowNetwork",
    "NormalizingFlow",
    "Stepwise",
]

BINS = 8
PARAMETERS = {"additive": 1, "affine": 2, "spline": 3 * BINS - 1}
"""How many parameters a univariate function has, by its kind."""
KNOTS = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
"""Where the soft steps of each coordinate lie that the continuous flow's network sees."""


class MaskedLinear(nn.Linear):
    """A linear layer in which an output sees the inputs whose degree is at most its own.

    Args:
        inputs: The degrees of the inputs.
        outputs: The degrees of the outputs.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__(len(inputs), len(outputs))
        self.degrees = tuple(inputs), tuple(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, `(batch, inputs) -> (batch, outputs)`."""
        return linear(x, self.weight * _mask(*self.degrees, x.device), self.bias)


@lru_cache(maxsize=256)
def _mask(inputs: tuple[int, ...], outputs: tuple[int, ...], device: torch.device) -> Tensor:
    """Which output sees which input, `(outputs, inputs)` of bool."""
    with torch.inference_mode(False):  # so that autograd may use what inference mode made
        return torch.tensor(outputs, device=device)[:, None] >= torch.tensor(inputs, device=device)


class Conditioner(nn.Module):
    """A residual MLP that makes the parameters of each output from inputs of a lower degree.

    The parameters are zero at the start. In a coupling, where all outputs have one degree, hidden
    units are smooth rectifiers. In an autoregressive step they are bounded (tanh): each coordinate
    of a draw enters all that follow, and what grows with them could explode.

    Args:
        inputs: The degrees of the inputs.
        outputs: The degrees of the outputs.
        parameters: How many parameters an output has.
        width: The width of the hidden layers.
        blocks: The number of residual blocks.
        dropout: The share of hidden units dropped in training.
        seed: The seed of the dropout.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        parameters: int,
        width: int,
        blocks: int,
        dropout: float,
        seed: int,
    ) -> None:
        super().__init__()
        hidden = [k % max(outputs) for k in range(width)]
        self.shape = len(outputs), parameters
        self.activation = silu if max(outputs) == 1 else torch.tanh
        self.enter = MaskedLinear(inputs, hidden)
        self.blocks = nn.ModuleList([MaskedLinear(hidden, hidden) for _ in range(blocks)])
        self.dropouts = nn.ModuleList([Dropout(dropout, seed + i) for i in range(blocks + 1)])
        self.leave = zero_start(
            MaskedLinear(hidden, [degree - 1 for degree in outputs for _ in range(parameters)])
        )

    def forward(self, x: Tensor) -> Tensor:
        """The parameters, `(batch, inputs) -> (batch, outputs, parameters)`."""
        first, *others = self.dropouts
        h = first(self.activation(self.enter(x)))
        for block, dropout in zip(self.blocks, others, strict=True):
            h = h + dropout(self.activation(block(h)))
        outputs = self.shape[0]
        return rearrange(self.leave(h), "batch (output p) -> batch output p", output=outputs)


class Step(nn.Module):
    """A coupling, or an autoregressive step.

    Args:
        kind: The kind of the univariate functions, a name in `PARAMETERS`.
        kept: Which coordinates a coupling keeps, from which it makes the functions of the others;
            None for an autoregressive step.
        order: The place of each coordinate in an autoregressive step.
        width: As in `Conditioner`.
        blocks: As in `Conditioner`.
        dropout: As in `Conditioner`.
        seed: As in `Conditioner`.
    """

    def __init__(
        self,
        kind: str,
        kept: Sequence[bool] | None,
        order: Sequence[int],
        width: int,
        blocks: int,
        dropout: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.kind, self.kept, self.order = kind, kept, order
        inputs = order if kept is None else [0 for keep in kept if keep]
        outputs = order if kept is None else [1 for keep in kept if not keep]
        self.conditioner = Conditioner(
            inputs, outputs, PARAMETERS[kind], width, blocks, dropout, seed
        )

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The step towards the normals, and its log determinant.

        Args:
            u: `(batch, d)`.

        Returns:
            z, `(batch, d)`, and log |det dz/du|, `(batch,)`.
        """
        z, ladj = self._transform().call_and_ladj(u)
        return z, ladj.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """The step back, `(batch, d) -> (batch, d)`.

        An autoregressive step determines one coordinate in each pass.
        """
        if self.kept is not None:
            return self._transform().inv(z)
        u, order = torch.zeros_like(z), torch.tensor(self.order, device=z.device)
        # one by one, and not all at once as zuko does: what is not known yet could overflow
        for place in range(len(self.order)):
            u = torch.where(order == place, self._univariate(u).inv(z), u)
        return u

    def _transform(self) -> Any:
        zuko = _transforms()
        if self.kept is None:
            return zuko.AutoregressiveTransform(self._univariate, len(self.order))
        device = self.conditioner.enter.weight.device
        return zuko.CouplingTransform(self._univariate, torch.tensor(self.kept, device=device))

    def _univariate(self, x: Tensor) -> Any:
        """The functions of the outputs, given the inputs x `(batch, inputs)`."""
        zuko, parameters = _transforms(), self.conditioner(x)
        if self.kind == "additive":
            return zuko.AdditiveTransform(parameters[..., 0])
        if self.kind == "affine":
            return zuko.MonotonicAffineTransform(*parameters.unbind(-1))
        return zuko.MonotonicRQSTransform(*parameters.split([BINS, BINS, BINS - 1], -1))


class Scaling(nn.Module):
    """A learned factor for each coordinate, which additive steps need as they keep volumes.

    Its logarithm is a linear layer of the input 1, so that `fresh` starts it at zero.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log = zero_start(nn.Linear(1, dim))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled coordinates and the log determinant, `(batch, d) -> (batch, d), (batch,)`."""
        logarithm = self._logarithm
        return u * logarithm.exp(), logarithm.sum().expand(len(u))

    def inverse(self, z: Tensor) -> Tensor:
        """The inverse, `(batch, d) -> (batch, d)`."""
        return z * (-self._logarithm).exp()

    @property
    def _logarithm(self) -> Tensor:
        return self.log(self.log.weight.new_ones(1))


class FlowNetwork(OnSpread):
    """The flow from data to normals: whitening, then steps."""

    def __init__(self, steps: nn.ModuleList, spread: PrincipalAxes) -> None:
        super().__init__(spread)
        self.steps = steps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The normals f(x) `(batch, d)` and log |det df/dx| `(batch,)`, x `(batch, *event_shape)`."""
        z = self._out_of(self._into(self._rows(x) - self.mean) / self.std)
        total = -self.std.log().sum().expand(len(z))
        for step in self.steps:
            z, ladj = step(z)
            total = total + ladj
        return z, total

    def inverse(self, z: Tensor) -> Tensor:
        """The inverse f^-1(z), `(batch, d) -> (batch, d)`."""
        u = z.to(self.mean.dtype)
        step: Any
        for step in reversed(self.steps):
            u = step.inverse(u)
        return self._unwhitened(u)

    def gaussian(self, z: Tensor) -> Tensor:
        """Normals z with the mean and the covariance of the data, like z: f^-1 without its steps."""
        return self._unwhitened(self._rows(z)).reshape(z.shape).to(z.dtype)

    def _unwhitened(self, u: Tensor) -> Tensor:
        return self.mean + self._out_of(self._into(u) * self.std)


@dataclass(frozen=True, eq=False)
class NormalizingFlow:
    """A flow as a static field, whose density and draws are exact.

    Args:
        network: The flow.
        event_shape: The shape of an event.
    """

    network: FlowNetwork
    event_shape: tuple[int, ...]

    provides = frozenset({"energy", "score", "log_prob", "draw", "decode"})

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density `log N(f(x); 0, I) + log |det df/dx|`, normalised, `(batch,)`."""
        z, ladj = self.network(x)
        return (_normal_log_prob(z) + ladj).to(x.dtype)

    def energy(self, x: Tensor) -> Tensor:
        """The energy `-log p(x)`, `(batch,)`."""
        return -self.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        """The score `grad log p(x)`, like x."""
        return -self.energy_and_grad(x)[1]

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and its gradient."""
        return grad_energy(self.energy, x)

    def encode(self, x: Tensor) -> Tensor:
        """The latents f(x) of data, like x."""
        return self.network(x)[0].reshape(x.shape).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """The data f^-1(z) of latents, like z."""
        return self.network.inverse(z.flatten(1)).reshape(z.shape).to(z.dtype)

    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, the data of standard normal latents, `(n, *event_shape)`."""
        with torch.no_grad():
            return self.decode(noise.normal(0, Stream.START, self.event_shape))

    def initial(self, n: int, noise: NoiseSource) -> Tensor:
        """Where chains start, `(n, *event_shape)`: the data's Gaussian with half its spread.

        Far out, as at N(0, I) in the pixels, the energy of affine couplings is too steep for any
        step.
        """
        with torch.no_grad():
            return self.network.gaussian(noise.normal(0, Stream.START, self.event_shape) / 2)


@dataclass(frozen=True)
class Stepwise:
    """A flow of couplings or autoregressive steps as a model.

    Args:
        model: The name of the model.
        kind: The kind of its univariate functions, a name in `PARAMETERS`.
        autoregressive: Whether its steps are autoregressive instead of couplings.
        layers: How many steps the flow has, by default.
        width: The width of their networks' hidden layers, by default.
        blocks: The number of their residual blocks, by default.
        dropout: The share of hidden units dropped in training, by default.
        steps: How many steps the optimiser makes, by default.
    """

    model: str
    kind: str
    autoregressive: bool
    layers: int
    width: int
    blocks: int
    dropout: float
    steps: int

    def build(self, weights: File = None) -> NormalizingFlow:
        """The flow with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
            MissingDependency: Where zuko is not installed.
        """
        _transforms()
        stored = read_weights(weights, self.model)
        network = stored.into(lambda: FlowNetwork(self.transforms(stored.settings), stored.spread))
        return NormalizingFlow(network, tuple(stored.settings["event_shape"]))  # type: ignore[arg-type]

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int | None = None,
        bin: float = 0.125,
        layers: int | None = None,
        width: int | None = None,
        blocks: int | None = None,
        dropout: float | None = None,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the flow to data by maximum likelihood.

        Args:
            data: The data, `(n, *event_shape)` of at least two numbers a row, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes, None for the model's own number.
            bin: The distance of the data's levels, over which they are spread evenly, 0 for data
                that are continuous already.
            layers: How many steps the flow has, None for the model's own number.
            width: The width of their networks' hidden layers, None for the model's own.
            blocks: The number of their residual blocks, None for the model's own.
            dropout: The share of hidden units dropped in training, None for the model's own.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights of the lowest loss on a held-out tenth of the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
            MissingDependency: Where a package that it needs is not installed.
        """
        _transforms()
        rows, spread = _prepared(data, bin)
        chosen: dict[str, Any] = {
            name: getattr(self, name) if value is None else value
            for name, value in {
                "layers": layers,
                "width": width,
                "blocks": blocks,
                "dropout": dropout,
            }.items()
        }
        settings = {"event_shape": list(rows.shape[1:]), **chosen}
        generator = torch.Generator().manual_seed(seed)
        network = FlowNetwork(fresh(lambda: self.transforms(settings), generator), spread)
        flow, dim = NormalizingFlow(network, tuple(rows.shape[1:])), math.prod(rows.shape[1:])

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            return negative_log_likelihood(flow.log_prob, dequantised(rows, bin, generator)) / dim

        steps = self.steps if steps is None else steps
        asked = {"steps": steps, "bin": bin, **chosen}
        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, asked)
        done = training.fit(network, loss, rows, Recipe(steps))
        return training.stored(settings, done.weights)

    def transforms(self, settings: dict[str, Any]) -> nn.ModuleList:
        """The untrained steps of these settings: event_shape, layers, width, blocks and dropout."""
        dim, places = math.prod(settings["event_shape"]), range(math.prod(settings["event_shape"]))
        network = settings["width"], settings["blocks"], settings["dropout"]
        steps: list[nn.Module] = []
        for i in range(settings["layers"]):
            kept = None if self.autoregressive else [_half(place, i, dim) for place in places]
            steps.append(
                Step(self.kind, kept, places if i % 2 == 0 else places[::-1], *network, seed=16 * i)
            )
        return nn.ModuleList([*steps, *([Scaling(dim)] if self.kind == "additive" else [])])


NICE = Stepwise(
    "digits-nice", "additive", False, layers=6, width=64, blocks=1, dropout=0.1, steps=2000
)
REALNVP = Stepwise(
    "digits-realnvp", "affine", False, layers=6, width=80, blocks=1, dropout=0.2, steps=2000
)
MAF = Stepwise("digits-maf", "affine", True, layers=4, width=96, blocks=0, dropout=0.1, steps=2000)
SPLINE = Stepwise(
    "digits-spline", "spline", False, layers=4, width=48, blocks=1, dropout=0.2, steps=1000
)


class Drift(nn.Module):
    """The drift F(u, t) of whitened coordinates, zero at the start.

    It is an MLP of the coordinates and of soft steps of each, plus a linear function of the same.
    The steps, `tanh(3 (u_i - k))`, let the law of a single coordinate be sharp, as is that of a
    pixel that is mostly black. The time scales and shifts the hidden layers.

    Args:
        dim: The dimension of u.
        width: The width of the hidden layers.
        features: The number of features of the time.
    """

    def __init__(self, dim: int, width: int, features: int = 32) -> None:
        super().__init__()
        seen = dim * (1 + len(KNOTS))
        self.time = nn.Linear(2 * HARMONICS, features)
        self.enter = nn.Linear(seen, width)
        self.inner = nn.Linear(width, width)
        self.modulations = nn.ModuleList(
            [zero_start(nn.Linear(features, 2 * width)) for _ in range(2)]
        )
        self.leave = zero_start(nn.Linear(width, dim))
        self.direct = zero_start(nn.Linear(seen, dim))

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        """The drift at u and t: `(batch, dim), (batch,) -> (batch, dim)`."""
        phase = (
            math.pi * t[:, None] * torch.arange(1, HARMONICS + 1, dtype=u.dtype, device=u.device)
        )
        features = silu(self.time(torch.cat([phase.cos(), phase.sin()], 1)))
        (scale, shift), (inner_scale, inner_shift) = (
            layer(features).chunk(2, 1) for layer in self.modulations
        )
        steps = torch.tanh(
            3 * (u[:, :, None] - torch.tensor(KNOTS, dtype=u.dtype, device=u.device))
        )
        seen = torch.cat([u, rearrange(steps, "batch dim knot -> batch (dim knot)")], 1)
        h = silu(self.enter(seen) * (1 + scale) + shift)
        h = h + silu(self.inner(h) * (1 + inner_scale) + inner_shift)
        return self.leave(h) + self.direct(seen)


class ContinuousNetwork(OnSpread):
    """The velocity dx/dt of the continuous flow, from the drift F(u, t) of whitened coordinates."""

    def __init__(self, drift: nn.Module, spread: PrincipalAxes) -> None:
        super().__init__(spread)
        self.drift = drift

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at x and t: `(batch, *event_shape), (batch,) -> (batch, *event_shape)`."""
        time, rate = t.to(self.mean.dtype)[:, None], self.std.log()
        at, scale = (self._into(self._rows(x) - time * self.mean), (time * rate).exp())
        moved = rate * at + scale * self._into(self.drift(self._out_of(at / scale), time[:, 0]))
        return (self.mean + self._out_of(moved)).reshape(x.shape)

    def solved(self, x: Tensor, signs: Tensor, solver: ProbabilityFlow) -> tuple[Tensor, Tensor]:
        """Solve back from x for its log density and kinetic energy, differentiable in the weights.

        Args:
            x: `(batch, *event_shape)`.
            signs: The probes e, random signs, `(batch, d)`.
            solver: The solver.

        Returns:
            An estimate of log p(x), and k_0, each `(batch,)`.
        """
        dim = x[0].numel()

        def back(state: Tensor, t: Tensor, signs: Tensor) -> Tensor:
            kept = torch.is_grad_enabled()
            with torch.enable_grad():
                u = state[:, :dim] if kept else state[:, :dim].detach().requires_grad_()
                rate = self.drift(u, 1 - t)
                (product,) = torch.autograd.grad(rate, u, signs, create_graph=kept)
            trace = (signs * product).sum(1, keepdim=True)
            kinetic = rate.square().sum(1, keepdim=True)
            return -torch.cat([rate, trace, -kinetic], 1)

        start = self._out_of(self._into(self._rows(x) - self.mean) / self.std)
        start, shape = torch.cat([start, start.new_zeros(len(x), 2)], 1), (dim + 2,)
        # with a base of its own, and so on no Gaussian path
        field = Velocity(back, shape, base=standard_normal(shape))
        grad = torch.is_grad_enabled()
        end = sample(
            field, solver, chains=len(x), init=start, cond={"signs": signs}, grad=grad
        ).final
        return _normal_log_prob(end[:, :dim]) + end[:, dim] - self.std.log().sum(), end[:, dim + 1]


@dataclass(frozen=True)
class Continuous:
    """The continuous flow as a model.

    Args:
        model: The name of the model.
    """

    model: str

    def build(self, weights: File = None) -> Velocity:
        """The flow with these weights, by default the shipped ones.

        A velocity from N(0, I), of no Gaussian path.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.model)
        shape = tuple(stored.settings["event_shape"])
        network = stored.into(
            lambda: ContinuousNetwork(self._drift(stored.settings), stored.spread)
        )
        return Velocity(network, shape, base=standard_normal(shape))

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 800,
        bin: float = 0.125,
        width: int = 96,
        intervals: int = 3,
        kinetic: float = 0.01,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the flow to data by maximum likelihood, through the solver.

        Args:
            data: The data, `(n, *event_shape)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            bin: The distance of the data's levels, over which they are spread evenly, 0 for data
                that are continuous already.
            width: The width of the network's hidden layers.
            intervals: How many intervals the solver ("rk4") has in training.
            kinetic: The weight of the kinetic energy in the loss.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights of the lowest loss on a held-out tenth of the rows.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        rows, spread = _prepared(data, bin)
        settings = {"event_shape": list(rows.shape[1:]), "width": width}
        drift = fresh(lambda: self._drift(settings), torch.Generator().manual_seed(seed))
        network, solver = ContinuousNetwork(drift, spread), ProbabilityFlow("rk4", intervals)
        dim = math.prod(rows.shape[1:])

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            x = dequantised(rows, bin, generator)
            signs = 2.0 * torch.randint(2, (len(x), dim), generator=generator) - 1
            value, energy = network.solved(x, signs, solver)
            return (kinetic * energy - value) / dim

        recipe = Recipe(steps, batch=128, repeats=2, evaluations=10)
        asked = {
            "steps": steps,
            "bin": bin,
            "width": width,
            "intervals": intervals,
            "kinetic": kinetic,
        }
        training = TrainingRequest(self.model, data is None, seed, report, checkpoint, asked)
        done = training.fit(network, loss, rows, recipe)
        return training.stored(settings, done.weights)

    @staticmethod
    def _drift(settings: dict[str, Any]) -> Drift:
        return Drift(math.prod(settings["event_shape"]), settings["width"])


FFJORD = Continuous("digits-ffjord")


def _transforms() -> Any:
    """Zuko's transforms, imported where a flow is used.

    Raises:
        MissingDependency: Where zuko is not installed.
    """
    return required("zuko.transforms", "flows", "A normalizing flow")


def _prepared(data: Tensor | None, bin: float) -> tuple[Tensor, PrincipalAxes]:
    """The rows, and the Gaussian of the rows once they are spread over bins.

    Raises:
        InvalidArgument: For data or a bin that do not fit.
    """
    if finite("bin", bin) < 0:
        raise InvalidArgument(
            "bin", bin, "the distance of the data's levels, or 0 for continuous data"
        )
    rows = prepare(data, 1.0).rows
    count("numbers in a row of data", math.prod(rows.shape[1:]), least=2)
    spread = principal_axes(rows, bin / math.sqrt(12))
    if not float(spread.std.min()) > 1e-6 * float(spread.std.max()):
        hint = "Or give bin, the distance of their levels"
        raise InvalidArgument("data", rows, "rows that vary in every direction", hint)
    return rows, spread


def _half(place: int, layer: int, dim: int) -> bool:
    """Whether a coupling keeps the coordinate at a place.

    Pairs of layers take the bits of the place in turn: the first layer of a pair keeps the
    coordinates whose bit is 0, the second the others.
    """
    return (place >> layer // 2 % (dim - 1).bit_length()) % 2 == layer % 2


def _normal_log_prob(z: Tensor) -> Tensor:
    """The log density log N(z; 0, I), `(batch, d) -> (batch,)`."""
    return -(z.square() + math.log(2 * math.pi)).sum(1) / 2
