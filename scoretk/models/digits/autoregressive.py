r"""digits-fvsbn, -nade, -made and -pixelcnn: autoregressive networks of handwritten digits.

    digits-fvsbn     a fully visible sigmoid belief network: a = b + L x, L strictly lower triangular
    digits-nade      one hidden layer with shared weights: a_i = b_i + V_i . sigmoid(c + W_{.,<i} x_{<i})
    digits-made      an MLP with masked weights: each hidden unit sees the sites up to its own
    digits-pixelcnn  convolutions whose kernels see the pixels above, and those to the left

Here a_i are the numbers that give the law of site i. Sites of the first two models are binary,
those of the other two real (`models.latent.autoregressive`).

References:
    Frey, Hinton, Dayan, "Does the wake-sleep algorithm produce good density estimators?" (1996).
    Larochelle, Murray, "The neural autoregressive distribution estimator" (2011).
    Germain, Gregor, Murray, Larochelle, "MADE: masked autoencoder for distribution estimation"
    (2015).
    van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, silu

from scoretk.core.arguments import count, finite, fraction
from scoretk.errors import InvalidArgument
from scoretk.learn.fitting import Recipe
from scoretk.models.digits.data import binarised, load_digits
from scoretk.models.digits.networks import Dropout, PrincipalAxes, fresh
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import File, Report, TrainingRequest, dequantised, prepare
from scoretk.models.latent.autoregressive import (
    Autoregressive,
    Backbone,
    Bernoullis,
    BinaryAutoregressive,
    Logistics,
)

__all__ = ["FVSBN", "MADE", "NADE", "PIXELCNN", "Mask", "MaximumLikelihood"]


def _sees(order: Tensor, of_inputs: Tensor, *, equals: bool) -> Tensor:
    """Which inputs each unit sees, `(units, inputs)` of bool.

    They are those that come before it in order, and where `equals` those at its own place.
    """
    return order[:, None] >= of_inputs if equals else order[:, None] > of_inputs


def _masked(layer: Any, x: Tensor, seen: Tensor) -> Tensor:
    return linear(x, layer.weight * seen, layer.bias)


class SigmoidBelief(Backbone):
    """The logistic regression of each site on those before it, for d = `dim` sites."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of all sites, `(batch, d) -> (batch, d, 1)`."""
        site = torch.arange(x.shape[1], device=x.device)
        return _masked(self.layer, x, _sees(site, site, equals=False))[..., None]


class SharedHidden(Backbone):
    """NADE: for each site a hidden layer of `width` units, of the sites before it."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(dim, width), nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of all sites, `(batch, d) -> (batch, d, 1)`."""
        before = (x[..., None] * self.enter.weight.T)[:, :-1].cumsum(1)
        before = nn.functional.pad(before, (0, 0, 1, 0))  # the first site sees none
        hidden = torch.sigmoid(self.enter.bias + before)
        return ((hidden * self.leave.weight).sum(2) + self.leave.bias)[..., None]

    def at(self, x: Tensor, i: int) -> Tensor:
        """The logit of site i alone, `(batch, 1)`, for a dth of the work."""
        hidden = torch.sigmoid(linear(x[:, :i], self.enter.weight[:, :i], self.enter.bias))
        return linear(hidden, self.leave.weight[i : i + 1], self.leave.bias[i : i + 1])


class Mask(NamedTuple):
    """What decides a masked network's zeros.

    Args:
        place: The place of each site in the order, `(d,)` of int64.
        last: The last place that each hidden unit sees, `(width,)` of int64.
    """

    place: Tensor
    last: Tensor


class MaskedMLP(Backbone):
    """MADE: a residual MLP with masked weights.

    Hidden unit j sees the sites up to number j mod (d - 1); the outputs of a site see the units
    that see only sites before it.

    Args:
        dim: d, the number of sites.
        width: The width of the hidden layers.
        layers: Their number.
        outputs: How many numbers a site has.
        dropout: The share of hidden units dropped in training.
    """

    def __init__(self, dim: int, width: int, layers: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(layers - 1)])
        self.dropout = Dropout(dropout)
        self.leave = nn.Linear(width, dim * outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The numbers of all sites, `(batch, d) -> (batch, d, outputs)`."""
        return self.masked(x, self._natural(x))

    def at(self, x: Tensor, i: int) -> Tensor:
        """The numbers of site i alone, `(batch, outputs)`, without computing those of the others."""
        return self.masked(x, self._natural(x), slice(i, i + 1))[:, 0]

    def masked(self, x: Tensor, mask: Mask, sites: slice = slice(None)) -> Tensor:
        """The numbers of some sites under any mask.

        Args:
            x: `(batch, d)`.
            mask: The places of sites, and what hidden units see.
            sites: Which sites.

        Returns:
            `(batch, sites, outputs)`.
        """
        place, last = mask
        h = silu(_masked(self.enter, x, _sees(last, place, equals=True)))
        for layer in self.hidden:
            h = h + silu(_masked(layer, self.dropout(h), _sees(last, last, equals=True)))
        d, outputs = x.shape[1], self.leave.out_features // x.shape[1]
        weight = self.leave.weight.unflatten(0, (d, outputs))[sites]
        seen = _sees(place[sites], last, equals=False)[:, None]
        bias = self.leave.bias.unflatten(0, (d, outputs))[sites]
        out = linear(self.dropout(h), (weight * seen).flatten(0, 1), bias.flatten())
        return rearrange(out, "batch (site output) -> batch site output", output=outputs)

    def _natural(self, x: Tensor) -> Mask:
        """Sites in a row, units with their numbers in turn."""
        last = torch.arange(self.enter.out_features, device=x.device) % max(1, x.shape[1] - 1)
        return Mask(torch.arange(x.shape[1], device=x.device), last)


class _MaskedConv(nn.Linear):
    """A convolution with a k x k kernel, k odd, that sees the pixels before each pixel.

    Where `equals` it sees the pixel itself as well.
    """

    def __init__(self, channels: int, width: int, k: int, equals: bool) -> None:
        super().__init__(channels * k * k, width)
        self.k, self.equals = k, equals

    def forward(self, x: Tensor) -> Tensor:
        """The output: `(batch, channels, rows, columns) -> (batch, width, rows, columns)`."""
        if self.k == 1 and self.equals:  # nothing to hide
            return conv2d(x, rearrange(self.weight, "out channel -> out channel 1 1"), self.bias)
        places = torch.arange(self.k**2, device=x.device)
        seen = _sees(places[self.k**2 // 2, None], places, equals=self.equals)
        kernel = rearrange(self.weight, "out (channel a b) -> out channel a b", a=self.k, b=self.k)
        kernel = kernel * rearrange(seen, "1 (a b) -> a b", a=self.k)
        return conv2d(x, kernel, self.bias, padding=self.k // 2)


class _Block(nn.Module):
    """The residual block of the PixelCNN: 1 x 1 to half the width, masked 3 x 3, 1 x 1 back."""

    def __init__(self, width: int, dropout: float, seed: int) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.narrow = _MaskedConv(width, half, 1, equals=True)
        self.middle = _MaskedConv(half, half, 3, equals=True)
        self.widen = _MaskedConv(half, width, 1, equals=True)
        self.dropout = Dropout(dropout, seed)

    def forward(self, h: Tensor) -> Tensor:
        """The block's output, like h: `(batch, width, rows, columns)`."""
        return h + self.widen(self.dropout(silu(self.middle(silu(self.narrow(silu(h)))))))


class MaskedConvolutions(Backbone):
    """The PixelCNN, for events of any shape.

    The last axis of an event are the columns; all others, flattened, are the rows. A first 7 x 7
    kernel sees earlier pixels, and residual blocks follow. (Stacked, the kernels miss some pixels
    to the upper right.) A bias for each channel and pixel is learned too, as the digits stand in
    the middle of their images.

    Args:
        shape: The shape of an event.
        width: The number of channels.
        blocks: The number of residual blocks.
        outputs: How many numbers a site has.
        dropout: The share of channels' entries dropped in training.
    """

    def __init__(
        self, shape: tuple[int, ...], width: int, blocks: int, outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.columns = shape[-1]
        self.enter = _MaskedConv(1, width, 7, equals=False)
        self.place = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList([_Block(width, dropout, seed) for seed in range(blocks)])
        self.leave = _MaskedConv(width, outputs, 1, equals=True)

    def forward(self, x: Tensor) -> Tensor:
        """The numbers of all sites: `(batch, d) -> (batch, d, outputs)`.

        x may also be the first rows of the image alone.
        """
        places = (self.place.weight + self.place.bias[:, None])[:, : x.shape[1]]
        image = rearrange(x, "batch (row column) -> batch 1 row column", column=self.columns)
        h = self.enter(image) + rearrange(
            places, "channel (row column) -> channel row column", column=self.columns
        )
        for block in self.blocks:
            h = block(h)
        return rearrange(self.leave(silu(h)), "batch out row column -> batch (row column) out")

    def at(self, x: Tensor, i: int) -> Tensor:
        """The numbers of site i alone, `(batch, outputs)`, from the rows of the image down to its."""
        return self(x[:, : (i // self.columns + 1) * self.columns])[:, i]


class MaximumLikelihood:
    """What the models share: a field from weights, and training by maximum likelihood.

    Its subclasses are kinds of data, and theirs the models.
    """

    name: str
    field: Callable[[Any, tuple[int, ...]], Any]
    learning_rate = 1e-3
    batch = 256

    def build(self, weights: File = None) -> Any:
        """The field with these weights, by default the shipped ones.

        Raises:
            InvalidArgument: Where the file holds no weights of this model.
        """
        stored = read_weights(weights, self.name)
        network = stored.into(
            lambda: self._conditionals(self._backbone(stored.settings), stored.spread)
        )
        return self.field(network, tuple(stored.settings["event_shape"]))

    def default_data(self) -> Tensor:
        """What the shipped weights were trained on: the digits' training images, `(1437, 1, 8, 8)`."""
        return load_digits().train

    def _fit(
        self, data: Tensor | None, seed: int, report: Report, checkpoint: File, **settings: Any
    ) -> Stored:
        """Train, and keep the weights of the highest likelihood on a held-out tenth of the rows.

        Training and held-out rows have the noise of `bin` on them.
        """
        rows = prepare(self.default_data() if data is None else data, 1.0).rows
        self._admit(rows)
        _check(settings)
        built, width = {**settings, "event_shape": list(rows.shape[1:])}, settings.get("bin", 0.0)
        backbone = fresh(lambda: self._backbone(built), torch.Generator().manual_seed(seed))
        network: Any = self._conditionals(backbone, PrincipalAxes(rows.mean(), None, rows.std()))

        law = self.field(network, tuple(rows.shape[1:]))
        sites = law.in_a_row[0]

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            loss: Tensor = -law.log_prob(dequantised(rows, width, generator)) / sites
            return loss

        recipe = Recipe(
            settings["steps"], self.batch, self.learning_rate, weight_decay=settings["weight_decay"]
        )
        training = TrainingRequest(self.name, data is None, seed, report, checkpoint, settings)
        return training.stored(built, training.fit(network, loss, rows, recipe).weights)

    def _admit(self, rows: Tensor) -> None:
        """Refuse data that are not of this kind.

        Raises:
            InvalidArgument: In that case.
        """

    def _conditionals(self, backbone: Backbone, spread: PrincipalAxes) -> nn.Module:
        """The conditional laws of the sites, with the numbers that the backbone gives."""
        raise NotImplementedError

    def _backbone(self, settings: dict[str, Any]) -> Backbone:
        """The untrained backbone of these settings."""
        raise NotImplementedError


def _check(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if name == "dropout":
            fraction(name, value, "[0, 1)")
        if name in ("bin", "weight_decay") and not finite(name, value) >= 0:
            raise InvalidArgument(name, value, "a number of at least 0")
        if name in ("width", "heads", "layers", "blocks", "components"):
            count(name, value, least=1)


class _Binary(MaximumLikelihood):
    """Models of binary sites."""

    field = BinaryAutoregressive
    learning_rate = 1e-2
    batch = 128

    def default_data(self) -> Tensor:
        """The digits' training images, 1 where there is ink and 0 elsewhere, `(1437, 1, 8, 8)`."""
        return binarised(load_digits().train)

    def _admit(self, rows: Tensor) -> None:
        if not bool(((rows == 0) | (rows == 1)).all()):
            raise InvalidArgument(
                "data",
                rows,
                "zeros and ones",
                "Of images with levels: (images > threshold).float()",
            )

    def _conditionals(self, backbone: Backbone, spread: PrincipalAxes) -> nn.Module:
        return Bernoullis(backbone)


class _Real(MaximumLikelihood):
    """Models of real sites."""

    field = Autoregressive
    learning_rate = 2e-3

    def _conditionals(self, backbone: Backbone, spread: PrincipalAxes) -> nn.Module:
        return Logistics(backbone, spread.mean, spread.std)


class _FVSBN(_Binary):
    """digits-fvsbn."""

    name = "digits-fvsbn"

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 2000,
        weight_decay: float = 0.1,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the model to data.

        Args:
            data: The data, zeros and ones, `(n, *event_shape)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            weight_decay: The decoupled weight decay of the optimiser, at least 0.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights that make a held-out tenth of the rows likeliest.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        return self._fit(data, seed, report, checkpoint, steps=steps, weight_decay=weight_decay)

    def _backbone(self, settings: dict[str, Any]) -> Backbone:
        return SigmoidBelief(math.prod(settings["event_shape"]))


class _NADE(_Binary):
    """digits-nade."""

    name = "digits-nade"

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 1500,
        width: int = 128,
        weight_decay: float = 0.1,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the model to data.

        Args:
            data: As for `digits-fvsbn`.
            seed: As for `digits-fvsbn`.
            steps: As for `digits-fvsbn`.
            width: The number of hidden units.
            weight_decay: As for `digits-fvsbn`.
            report: As for `digits-fvsbn`.
            checkpoint: As for `digits-fvsbn`.

        Returns:
            The weights that make a held-out tenth of the rows likeliest.
        """
        return self._fit(
            data, seed, report, checkpoint, steps=steps, width=width, weight_decay=weight_decay
        )

    def _backbone(self, settings: dict[str, Any]) -> Backbone:
        return SharedHidden(math.prod(settings["event_shape"]), settings["width"])


class _MADE(_Real):
    """digits-made."""

    name = "digits-made"

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 4000,
        bin: float = 0.125,
        width: int = 128,
        layers: int = 2,
        components: int = 3,
        dropout: float = 0.2,
        weight_decay: float = 0.1,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the model to data.

        Args:
            data: The data, `(n, *event_shape)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            bin: The width of the data's bins, in which each number is spread evenly, 0 for data
                that are continuous.
            width: The width of the hidden layers.
            layers: Their number.
            components: The number of components of each site's mixture.
            dropout: The share of hidden units dropped in training.
            weight_decay: The decoupled weight decay of the optimiser, at least 0.
            report: Called with the progress after each evaluation.
            checkpoint: The file to save to and to go on from, None for none.

        Returns:
            The weights that make a held-out tenth of the rows likeliest.

        Raises:
            InvalidArgument: For data or settings that do not fit.
            FitFailure: Where loss, gradient or weights are no longer finite.
            CheckpointError: Where the checkpoint is damaged or another run's.
        """
        return self._fit(
            data,
            seed,
            report,
            checkpoint,
            steps=steps,
            bin=bin,
            width=width,
            layers=layers,
            components=components,
            dropout=dropout,
            weight_decay=weight_decay,
        )

    def _backbone(self, settings: dict[str, Any]) -> Backbone:
        dim, outputs = math.prod(settings["event_shape"]), 3 * settings["components"]
        return MaskedMLP(dim, settings["width"], settings["layers"], outputs, settings["dropout"])


class _PixelCNN(_Real):
    """digits-pixelcnn."""

    name = "digits-pixelcnn"
    batch = 64

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 2000,
        bin: float = 0.125,
        width: int = 64,
        blocks: int = 3,
        components: int = 5,
        dropout: float = 0.2,
        weight_decay: float = 0.1,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the model to data.

        Args:
            data: As for `digits-made`.
            seed: As for `digits-made`.
            steps: As for `digits-made`.
            bin: As for `digits-made`.
            width: The number of channels.
            blocks: The number of residual blocks.
            components: As for `digits-made`.
            dropout: As for `digits-made`.
            weight_decay: As for `digits-made`.
            report: As for `digits-made`.
            checkpoint: As for `digits-made`.

        Returns:
            The weights that make a held-out tenth of the rows likeliest.
        """
        return self._fit(
            data,
            seed,
            report,
            checkpoint,
            steps=steps,
            bin=bin,
            width=width,
            blocks=blocks,
            components=components,
            dropout=dropout,
            weight_decay=weight_decay,
        )

    def _backbone(self, settings: dict[str, Any]) -> Backbone:
        shape, outputs = tuple(settings["event_shape"]), 3 * settings["components"]
        return MaskedConvolutions(
            shape, settings["width"], settings["blocks"], outputs, settings["dropout"]
        )


FVSBN, NADE, MADE, PIXELCNN = _FVSBN(), _NADE(), _MADE(), _PixelCNN()
