r"""Small networks for the trained families, and the Gaussian answer that each of them starts from.

Data with mean m and covariance `U diag(s^2) U^T` seen through a Gaussian path, `x_t = alpha x_1 +
sigma eps`, have the linear predictors (Wiener's; exact for Gaussian data)

    D = m + U [alpha s^2 / w^2] c,    e = U [sigma / w^2] c,    c = U^T (x_t - alpha m),    w^2 = alpha^2 s^2 + sigma^2

What is left of data and noise once these are taken away is one and the same vector of unit
variance, scaled:

    x_1 - D = U [s sigma / w] F,      eps - e = -U [alpha s / w] F

So a network that predicts F serves every prediction alike, is well scaled at every time, and before
training already describes the Gaussian with the data's mean and covariance. With one s for all
directions this is the preconditioning of Karras et al. (`EDMNetwork`, in their symbols). An energy
starts from the same Gaussian: `E = |s^-1 U^T (x - m)|^2 / 2 + f(x)`, where f grows at most
linearly, so that the quadratic confines the chains whatever f has learned.

References:
    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
    models" (2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from scoretk.core.arguments import option
from scoretk.errors import InvalidArgument
from scoretk.fields import GaussianPath
from scoretk.fields.convert import check_prediction
from scoretk.fields.paths import PathPoint

__all__ = [
    "ConfinedEnergy",
    "Dropout",
    "EDMNetwork",
    "EnergyMLP",
    "OnSpread",
    "PathNetwork",
    "PrincipalAxes",
    "TimeMLP",
    "fresh",
    "principal_axes",
    "zero_start",
]

Module = TypeVar("Module", bound=nn.Module)

FULL_COVARIANCE = 1024
"""Up to this many dimensions the covariance is used whole; beyond, one variance for all directions.
"""

HARMONICS = 8
"""Frequencies at which the networks see the path's angle."""


class PrincipalAxes(NamedTuple):
    """A Gaussian: mean `(d,)`, principal directions as columns `(d, d)` (None: any), and stds along
    them `(d,)`.
    """

    mean: Tensor
    basis: Tensor | None
    std: Tensor


def principal_axes(data: Tensor, floor: float) -> PrincipalAxes:
    """Mean and covariance of data `(n, *event_shape)`, `floor^2` added to the variance of every
    direction.
    """
    rows = data.detach().to("cpu", torch.float64).reshape(len(data), -1)
    mean, d = rows.mean(0), rows.shape[1]
    centred = rows - mean
    if d > FULL_COVARIANCE or len(rows) <= d:
        std = (centred.square().mean() + floor**2).sqrt()
        return PrincipalAxes(mean.float(), None, std.float().expand(d).clone())
    variance, basis = torch.linalg.eigh(centred.T @ centred / len(rows))
    return PrincipalAxes(
        mean.float(), basis.float(), (variance.clamp(min=0) + floor**2).sqrt().float()
    )


def fresh(make: Callable[[], Module], generator: torch.Generator) -> Module:
    """The module that `make` builds, its weights from this generator and not, as torch's own, from
    the global one.

    Fan-in uniform weights and zero biases for every linear layer; zero weights for those marked
    `zero_start`.
    """
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = 0.0 if getattr(layer, "zero_start", False) else 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()  # ones and zeros: no randomness
    return module


def zero_start(layer: nn.Linear) -> nn.Linear:
    """Mark a layer whose output starts at zero, so that a residual network starts as its skip."""
    layer.zero_start = True  # type: ignore[assignment]
    return layer


class Dropout(nn.Module):
    """Inverted dropout with a generator of its own, as torch's draws from the global one."""

    def __init__(self, share: float, seed: int = 0) -> None:
        super().__init__()
        self.share = share
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """In training a share of the entries zero and the others scaled up; else x."""
        if not self.training or self.share == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device="cpu") >= self.share
        return x * kept.to(x) / (1 - self.share)


class TimeBlock(nn.Module):
    """A residual block whose hidden layer is scaled and shifted by the time's features."""

    def __init__(self, width: int, features: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.modulation = zero_start(nn.Linear(features, 2 * width))
        self.dropout = Dropout(dropout, seed)
        self.outer = zero_start(nn.Linear(width, width))

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        """`(batch, width), (batch, features) -> (batch, width)`."""
        scale, shift = self.modulation(features).chunk(2, 1)
        return h + self.outer(self.dropout(silu(self.inner(self.norm(h)) * (1 + scale) + shift)))


class TimeMLP(nn.Module):
    """A residual MLP of x, an angle in [-pi / 2, pi / 2] that stands for the time, and a class
    where there are any.

    Args:
        dim: Of x.
        width: The width.
        blocks: The blocks.
        dropout: The share of hidden units dropped in training.
        features: Of the time.
        classes: How many, 0 for none.
    """

    def __init__(
        self,
        dim: int,
        width: int = 256,
        blocks: int = 3,
        dropout: float = 0.3,
        features: int = 32,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.enter = nn.Linear(dim, width)
        self.time = nn.Linear(2 * HARMONICS, features)
        self.blocks = nn.ModuleList(
            [TimeBlock(width, features, dropout, seed) for seed in range(blocks)]
        )
        self.norm = nn.LayerNorm(width)
        self.leave = zero_start(nn.Linear(width, dim))
        if classes:
            self.label = nn.Linear(classes, features, bias=False)

    def forward(self, x: Tensor, angle: Tensor, label: Tensor | None = None) -> Tensor:
        """`(batch, dim), (batch,), (batch,) -> (batch, dim)`.

        Label -1, or None for all rows, is no class in particular.

        Raises:
            `InvalidArgument` for a label outside -1 ... classes - 1, except under compilation or on
            an accelerator, where asking would stall the device: there it is none.
        """
        phase = 2 * angle[:, None] * torch.arange(1, HARMONICS + 1, dtype=x.dtype, device=x.device)
        features = self.time(torch.cat([phase.cos(), phase.sin()], 1))
        if label is not None:
            features = features + self.label(self._one_hot(label).to(x))
        features = silu(features)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, features)
        return self.leave(silu(self.norm(h)))

    def _one_hot(self, label: Tensor) -> Tensor:
        """`(batch,) -> (batch, classes)`: zeros where the label is no class."""
        known = torch.arange(self.classes, device=label.device)
        if label.device.type == "cpu" and not torch.compiler.is_compiling():
            allowed = torch.arange(-1, self.classes)
            if label.ndim != 1 or not bool((label[:, None] == allowed).any(1).all()):
                raise InvalidArgument(
                    "label", label, f"one whole number a row, -1 (none) to {self.classes - 1}"
                )
        return label[:, None] == known


class EnergyMLP(nn.Module):
    """A residual MLP with smooth activations and one number a row, or so many `outputs`, zero at
    the start.
    """

    def __init__(
        self, dim: int, width: int = 256, blocks: int = 1, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.outputs = outputs
        self.leave = zero_start(nn.Linear(width, outputs or 1))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, dim) -> (batch,)`, or `(batch, outputs)`."""
        h = silu(self.enter(x))
        for block in self.blocks:
            h = h + silu(block(h))
        return self.leave(h) if self.outputs else self.leave(h).squeeze(1)


OF_DATA_AND_NOISE: dict[str, Callable[[PathPoint], tuple[Tensor, Tensor]]] = {
    "data": lambda p: (torch.ones_like(p.alpha), torch.zeros_like(p.alpha)),
    "score": lambda p: (torch.zeros_like(p.alpha), -1 / p.sigma),
    "velocity": lambda p: (p.dalpha, p.dsigma),
    "v": lambda p: (-p.sigma, p.alpha),
}
"""A prediction other than the noise as `a D + b e`: `(a, b)` at a point of the path."""


class OnSpread(nn.Module):
    """What both kinds share: a Gaussian as buffers, and coordinates in it.

    The module computes in its own dtype.
    """

    mean: Tensor
    basis: Tensor | None
    std: Tensor

    def __init__(self, spread: PrincipalAxes) -> None:
        super().__init__()
        self.register_buffer("mean", spread.mean)
        self.register_buffer("basis", spread.basis)
        self.register_buffer("std", spread.std)

    def _into(self, rows: Tensor) -> Tensor:
        return rows if self.basis is None else rows @ self.basis

    def _out_of(self, coordinates: Tensor) -> Tensor:
        return coordinates if self.basis is None else coordinates @ self.basis.T

    @property
    def _scale(self) -> Tensor:
        """The root mean variance, one number."""
        return self.std.square().mean().sqrt()


class PathNetwork(OnSpread):
    """One of the predictions on a Gaussian path: the Gaussian answer plus a learned F.

    Args:
        backbone: `(x, angle, **cond) -> like x` on rows `(batch, d)`.
        path: The path.
        predicts: A name in `scoretk.fields.convert.PREDICTIONS`, of which "velocity" needs a path
            whose sigma' is finite and "score" one whose sigma is never 0.
        spread: Of the data.
    """

    def __init__(
        self, backbone: nn.Module, path: GaussianPath, predicts: str, spread: PrincipalAxes
    ) -> None:
        super().__init__(spread)
        check_prediction(predicts)
        self.backbone, self.path, self.predicts = backbone, path, predicts

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """`(batch, *event_shape), (batch,) -> (batch, *event_shape)`.

        Cond, one row a row, goes to the backbone.
        """
        alpha, sigma = (
            value.to(self.mean.dtype)[:, None] for value in (self.path.alpha(t), self.path.sigma(t))
        )
        centred = x.to(self.mean.dtype).flatten(1) - alpha * self.mean
        signal, w2 = alpha * self.std, (alpha * self.std).square() + sigma.square()
        seen = centred / ((alpha * self._scale).square() + sigma.square()).sqrt()
        learned = self._into(
            self.backbone(seen, torch.atan2(alpha * self._scale, sigma).squeeze(1), **cond)
        )
        noise = sigma / w2 * self._into(centred) - signal / w2.sqrt() * learned
        if self.predicts == "noise":
            return self._out_of(noise).reshape(x.shape)
        data = signal * self.std / w2 * self._into(centred) + self.std * sigma / w2.sqrt() * learned
        a, b = (
            value.to(self.mean.dtype)[:, None]
            for value in OF_DATA_AND_NOISE[self.predicts](self.path(t))
        )
        return (self._out_of(a * data + b * noise) + a * self.mean).reshape(x.shape)

    def apparent_time(self, x: Tensor) -> Tensor:
        r"""The time that x itself shows on a path with alpha = 1, `(batch,)`.

        It is that of the noise level

            s(x)^2 = sum_i (c_i / s_i)^2 / sum_i s_i^-2,    whose mean at level sigma is sigma^2 + d / sum_i s_i^-2

        the second term being small where the data leave some directions almost empty.
        """
        c = self._into(x.to(self.mean.dtype).flatten(1) - self.mean)
        level2 = (c / self.std).square().sum(1) / self.std.pow(-2).sum()
        return self.path.t(-level2.log()).clamp(0, 1)


class EDMNetwork(OnSpread):
    r"""EDM's preconditioned denoiser, of data about their mean m and of one standard deviation s in
    all directions.

        D = m + c_skip y + c_out F(c_in y, c_noise),    y = x - m,    w^2 = sigma^2 + s^2
        c_skip = s^2 / w^2,    c_out = sigma s / w,    c_in = 1 / w,    c_noise = log(sigma) / 4

    References:
        Karras, Aittala, Aila, Laine (2022), table 1 (whose data have mean 0).

    Args:
        backbone: F, `(x, c_noise) -> like x` on rows `(batch, d)`.
        path: Variance exploding.
        predicts: "data".
        spread: Of the data, of which the mean and the total variance are used.
    """

    def __init__(
        self, backbone: nn.Module, path: GaussianPath, predicts: str, spread: PrincipalAxes
    ) -> None:
        mean, std = spread.mean, spread.std
        super().__init__(
            PrincipalAxes(mean, None, std.square().mean().sqrt().expand(len(std)).clone())
        )
        self.backbone, self.path, self.predicts = (
            backbone,
            path,
            option("predicts", predicts, ["data"]),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """D, `(batch, *event_shape), (batch,) -> (batch, *event_shape)`."""
        sigma, s = self.path.sigma(t).to(self.mean.dtype)[:, None], self._scale
        y, w = x.to(self.mean.dtype).flatten(1) - self.mean, (sigma.square() + s.square()).sqrt()
        learned = self.backbone(y / w, sigma.log().squeeze(1) / 4)
        return (self.mean + (s / w).square() * y + sigma * s / w * learned).reshape(x.shape)


class ConfinedEnergy(OnSpread):
    """`E(x) = |s^-1 U^T (x - m)|^2 / 2 + f((x - m) / s)`: a Gaussian's energy plus a learned f.

    Args:
        backbone: F, `(batch, d) -> (batch,)`.
        spread: Of the data.
    """

    def __init__(self, backbone: nn.Module, spread: PrincipalAxes) -> None:
        super().__init__(spread)
        self.backbone = backbone

    def confinement(self, x: Tensor) -> Tensor:
        """The Gaussian's energy, `(batch, *event_shape) -> (batch,)`."""
        coordinates = self._into(x.to(self.mean.dtype).flatten(1) - self.mean) / self.std
        return coordinates.square().sum(1) / 2

    def correction(self, x: Tensor) -> Tensor:
        """f, `(batch, *event_shape)` to what the backbone gives, `(batch,)`."""
        return self.backbone((x.to(self.mean.dtype).flatten(1) - self.mean) / self._scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, *event_shape) -> (batch,)`."""
        return self.confinement(x) + self.correction(x)
