r"""Small networks for the trained families, each starting as the predictor for Gaussian data.

Data with mean m and covariance `U diag(s^2) U^T`, seen through a Gaussian path, `x_t = alpha x_1 +
sigma eps`, have the linear predictors (Wiener's; exact for Gaussian data)

    D = m + U [alpha s^2 / w^2] c,    e = U [sigma / w^2] c
    c = U^T (x_t - alpha m),          w^2 = alpha^2 s^2 + sigma^2

What remains of data and noise is one and the same vector F of unit variance, scaled:

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
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from scoretk.core.arguments import option
from scoretk.core.devices import sent
from scoretk.errors import InvalidArgument
from scoretk.fields import GaussianPath
from scoretk.fields.convert import prediction_name
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
"""Up to this many dimensions the full covariance is used; beyond, one variance for all directions.
"""
HARMONICS = 8
"""How many harmonics of the path's angle the networks get."""


class PrincipalAxes(NamedTuple):
    """A Gaussian by its principal axes.

    Args:
        mean: `(d,)`.
        basis: The principal directions as columns, `(d, d)`; None where all directions are alike.
        std: The standard deviations along them, `(d,)`.
    """

    mean: Tensor
    basis: Tensor | None
    std: Tensor


def principal_axes(data: Tensor, floor: float) -> PrincipalAxes:
    """The Gaussian with the mean and the covariance of data.

    Args:
        data: `(n, *event_shape)`.
        floor: Its square is added to the variance of every direction.
    """
    rows = rearrange(data.detach().to("cpu", torch.float64), "rows ... -> rows (...)")
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
    """The module that `make` builds, with initial weights from a given generator.

    (Torch's own initial weights are from the global generator.) Every linear layer has zero biases
    and weights that are uniform by its fan-in, or zero where it is marked `zero_start`.
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
    """Mark a layer whose output starts at zero, so that a residual block starts as the identity."""
    layer.zero_start = True  # type: ignore[assignment]
    return layer


class Dropout(nn.Module):
    """Inverted dropout with a generator of its own, where torch's draws from the global one.

    Args:
        share: The share of the entries that are set to zero in training, in [0, 1).
        seed: The seed of the generator.
    """

    def __init__(self, share: float, seed: int = 0) -> None:
        super().__init__()
        self.share = share
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """In training x with a share of its entries zero and the others scaled up; else x."""
        if not self.training or self.share == 0:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device="cpu") >= self.share
        return x * sent(kept, x.device).to(x) / (1 - self.share)


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
        """The block's output: `(batch, width), (batch, features) -> (batch, width)`."""
        scale, shift = self.modulation(features).chunk(2, 1)
        return h + self.outer(self.dropout(silu(self.inner(self.norm(h)) * (1 + scale) + shift)))


class TimeMLP(nn.Module):
    """A residual MLP of x, of an angle in [-pi/2, pi/2] that stands for the time, and of a class.

    Args:
        dim: The dimension of x.
        width: The width of the hidden layers.
        blocks: The number of residual blocks.
        dropout: The share of hidden units dropped in training.
        features: The number of features of the time.
        classes: The number of classes, 0 for none.
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
        """The network's output.

        Args:
            x: `(batch, dim)`.
            angle: `(batch,)`.
            label: Whole numbers, `(batch,)`, -1 for no class in particular; None for -1 in all
                rows.

        Returns:
            `(batch, dim)`.

        Raises:
            InvalidArgument: For a label outside -1 ... classes - 1. Under compilation or on an
                accelerator, where the check would stall the device, such a label is no class.
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
        """One-hot rows of labels, `(batch,) -> (batch, classes)`: zeros for no class."""
        known = torch.arange(self.classes, device=label.device)
        if label.device.type == "cpu" and not torch.compiler.is_compiling():
            allowed = torch.arange(-1, self.classes)
            if label.ndim != 1 or not bool((label[:, None] == allowed).any(1).all()):
                raise InvalidArgument(
                    "label", label, f"one whole number a row, -1 (none) to {self.classes - 1}"
                )
        return label[:, None] == known


class EnergyMLP(nn.Module):
    """A residual MLP with smooth activations and one number a row, zero at the start.

    Args:
        dim: The dimension of x.
        width: The width of the hidden layers.
        blocks: The number of residual blocks.
        outputs: How many numbers a row, None for one without an axis.
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
        """The network's output: `(batch, dim) -> (batch,)`, or `(batch, outputs)`."""
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
"""The weights `(a, b)` of a prediction `a D + b e` other than the noise, at a point of the path."""


class OnSpread(nn.Module):
    """A module with a Gaussian as buffers, and coordinates along its principal axes.

    It computes in its own dtype, whatever that of its inputs.
    """

    mean: Tensor
    basis: Tensor | None
    std: Tensor

    def __init__(self, spread: PrincipalAxes) -> None:
        super().__init__()
        self.register_buffer("mean", spread.mean)
        self.register_buffer("basis", spread.basis)
        self.register_buffer("std", spread.std)

    def _rows(self, x: Tensor) -> Tensor:
        """Events as rows, `(batch, *event_shape) -> (batch, d)`, in the module's dtype."""
        return rearrange(x.to(self.mean.dtype), "batch ... -> batch (...)")

    def _into(self, rows: Tensor) -> Tensor:
        return rows if self.basis is None else rows @ self.basis

    def _out_of(self, coordinates: Tensor) -> Tensor:
        return coordinates if self.basis is None else coordinates @ self.basis.T

    @property
    def _scale(self) -> Tensor:
        """The root of the mean variance, `()`."""
        return self.std.square().mean().sqrt()


class PathNetwork(OnSpread):
    """A prediction on a Gaussian path: that for Gaussian data plus a learned F.

    Args:
        backbone: F, `(x, angle, **cond)` to the shape of x, on rows `(batch, d)`.
        path: The Gaussian path.
        predicts: A name in `scoretk.fields.convert.PREDICTIONS`. "velocity" needs a path whose
            sigma' is finite, "score" one whose sigma is never 0.
        spread: The Gaussian of the data.
    """

    def __init__(
        self, backbone: nn.Module, path: GaussianPath, predicts: str, spread: PrincipalAxes
    ) -> None:
        super().__init__(spread)
        self.backbone, self.path, self.predicts = backbone, path, prediction_name(predicts)

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The prediction at x and t: `(batch, *event_shape), (batch,) -> (batch, *event_shape)`.

        `cond`, with one entry for each row, goes to the backbone.
        """
        alpha, sigma = (
            value.to(self.mean.dtype)[:, None] for value in (self.path.alpha(t), self.path.sigma(t))
        )
        centred = self._rows(x) - alpha * self.mean
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
        r"""An estimate of the time from x alone, on a path with alpha = 1, `(batch,)`.

        It is the time of the noise level

            s(x)^2 = sum_i (c_i / s_i)^2 / sum_i s_i^-2

        whose mean at level sigma is `sigma^2 + d / sum_i s_i^-2`. The second term is small where
        the data have almost no variance in some directions.
        """
        c = self._into(self._rows(x) - self.mean)
        level2 = (c / self.std).square().sum(1) / self.std.pow(-2).sum()
        return self.path.t(-level2.log()).clamp(0, 1)


class EDMNetwork(OnSpread):
    r"""EDM's preconditioned denoiser, for data with mean m and one standard deviation s.

        D = m + c_skip y + c_out F(c_in y, c_noise),    y = x - m,    w^2 = sigma^2 + s^2
        c_skip = s^2 / w^2,    c_out = sigma s / w,    c_in = 1 / w,    c_noise = log(sigma) / 4

    Args:
        backbone: F, `(x, c_noise)` to the shape of x, on rows `(batch, d)`.
        path: A variance-exploding path.
        predicts: "data".
        spread: The Gaussian of the data, of which the mean and the total variance are used.

    References:
        Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative
        models" (2022), table 1 (whose data have mean 0).
    """

    def __init__(
        self, backbone: nn.Module, path: GaussianPath, predicts: str, spread: PrincipalAxes
    ) -> None:
        mean, std = spread.mean, spread.std
        super().__init__(
            PrincipalAxes(mean, None, std.square().mean().sqrt().expand(len(std)).clone())
        )
        self.backbone = backbone
        self.path = path
        self.predicts = option("predicts", predicts, ["data"])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoiser D: `(batch, *event_shape), (batch,) -> (batch, *event_shape)`."""
        sigma, s = self.path.sigma(t).to(self.mean.dtype)[:, None], self._scale
        y, w = self._rows(x) - self.mean, (sigma.square() + s.square()).sqrt()
        learned = self.backbone(y / w, sigma.log().squeeze(1) / 4)
        return (self.mean + (s / w).square() * y + sigma * s / w * learned).reshape(x.shape)


class ConfinedEnergy(OnSpread):
    """A Gaussian's energy plus a learned f: `E(x) = |s^-1 U^T (x - m)|^2 / 2 + f((x - m) / s_0)`.

    Args:
        backbone: f, `(batch, d) -> (batch,)`, of x in units of s_0, the root of the mean variance.
        spread: The Gaussian of the data.
    """

    def __init__(self, backbone: nn.Module, spread: PrincipalAxes) -> None:
        super().__init__(spread)
        self.backbone = backbone

    def confinement(self, x: Tensor) -> Tensor:
        """The Gaussian's energy, `(batch, *event_shape) -> (batch,)`."""
        coordinates = self._into(self._rows(x) - self.mean) / self.std
        return coordinates.square().sum(1) / 2

    def correction(self, x: Tensor) -> Tensor:
        """The learned f: from `(batch, *event_shape)` what the backbone gives, `(batch,)`."""
        return self.backbone((self._rows(x) - self.mean) / self._scale)

    def forward(self, x: Tensor) -> Tensor:
        """The energy, `(batch, *event_shape) -> (batch,)`."""
        return self.confinement(x) + self.correction(x)
