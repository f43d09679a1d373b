r"""digits-transformer: a causal transformer over the levels of ink of handwritten digits.

The algorithm of large language models, at the size of a digit. An image is a text of 64 tokens, its
pixels in row-major order, over a vocabulary of the 17 levels of ink; the model is

    log p(x) = sum_i log softmax(a_i(x_1, .., x_{i-1}))_{x_i},

where a_i comes from layers of self-attention that look at no token from i on. A token is a one-hot
row, so that gradients are over tokens (`models.latent.autoregressive`).

References:
    Vaswani et al., "Attention is all you need" (2017).
    Radford, Wu, Child, Luan, Amodei, Sutskever, "Language models are unsupervised multitask
    learners" (2019): layer norms before each layer, and one after the last.
    Chen et al., "Generative pretraining from pixels" (2020): pixels as tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, one_hot, scaled_dot_product_attention

from scoretk.errors import InvalidArgument
from scoretk.models.digits.autoregressive import MaximumLikelihood
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.networks import Dropout, PrincipalAxes
from scoretk.models.digits.stored import Stored
from scoretk.models.digits.training import File, Report
from scoretk.models.latent.autoregressive import Backbone, Categoricals, TokenAutoregressive

__all__ = ["TRANSFORMER", "CausalTransformer", "as_tokens"]

LEVELS = 17
"""The levels of ink of a pixel."""


class _Layer(nn.Module):
    """Causal self-attention and two layers on each token alone, each after a layer norm."""

    def __init__(self, width: int, heads: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout, seed)

    def forward(self, h: Tensor) -> Tensor:
        """The layer's output, like h: `(batch, tokens, width)`."""
        ask, key, value = rearrange(
            self.ask(self.before(h)),
            "batch token (three head part) -> three batch head token part",
            three=3,
            head=self.heads,
        )
        seen = scaled_dot_product_attention(ask, key, value, is_causal=True)
        seen = rearrange(seen, "batch head token part -> batch token (head part)")
        h = h + self.dropout(self.join(seen))
        return h + self.dropout(self.narrow(gelu(self.widen(self.between(h)))))


class CausalTransformer(Backbone):
    """A transformer over one-hot tokens, whose numbers of a token depend on those before it.

    Args:
        tokens: How many tokens an event has.
        vocabulary: How many tokens there are to choose from.
        width: The width of the layers, a multiple of `heads`.
        heads: The number of attention heads.
        layers: The number of layers.
        dropout: The share of the layers' entries dropped in training.
    """

    def __init__(
        self, tokens: int, vocabulary: int, width: int, heads: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.enter, self.place = nn.Linear(vocabulary, width), nn.Linear(tokens, width, bias=False)
        self.layers = nn.ModuleList([_Layer(width, heads, dropout, i) for i in range(layers)])
        self.after, self.leave = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of all tokens, like x: `(batch, tokens, vocabulary)`; x may be the first alone."""
        before = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]  # the first token sees none
        place = math.sqrt(self.place.in_features) * self.place.weight.T  # entries of order 1
        h = self.enter(before) + place[: x.shape[1]]
        for layer in self.layers:
            h = layer(h)
        logits: Tensor = self.leave(self.after(h))
        return logits

    def at(self, x: Tensor, i: int) -> Tensor:
        """The logits of token i alone, `(batch, vocabulary)`, from the tokens up to it."""
        return self(x[:, : i + 1])[:, i]


class _Transformer(MaximumLikelihood):
    """digits-transformer."""

    name = "digits-transformer"
    field = TokenAutoregressive
    learning_rate = 3e-3
    batch = 64

    def train(
        self,
        data: Tensor | None = None,
        *,
        seed: int = 0,
        steps: int = 1000,
        width: int = 48,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
        weight_decay: float = 0.1,
        report: Report = None,
        checkpoint: File = None,
    ) -> Stored:
        """Fit the model to data.

        Args:
            data: The data, one-hot rows `(n, *sites, vocabulary)`, None for the digits.
            seed: The seed of the random numbers.
            steps: How many steps the optimiser makes.
            width: The width of the layers, a multiple of `heads`.
            heads: The number of attention heads.
            layers: The number of layers.
            dropout: The share of the layers' entries dropped in training.
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
            width=width,
            heads=heads,
            layers=layers,
            dropout=dropout,
            weight_decay=weight_decay,
        )

    def default_data(self) -> Tensor:
        """The digits' training images as one-hot levels of ink, `(1437, 1, 8, 8, 17)`."""
        return as_tokens(load_digits().train)

    def _admit(self, rows: Tensor) -> None:
        if rows.ndim < 3 or not bool(((rows == 0) | (rows == 1)).all() & (rows.sum(-1) == 1).all()):
            raise InvalidArgument(
                "data",
                rows,
                "one-hot rows (n, *sites, vocabulary)",
                "Of token ids: torch.nn.functional.one_hot(ids).float()",
            )

    def _conditionals(self, backbone: Backbone, spread: PrincipalAxes) -> nn.Module:
        return Categoricals(backbone)

    def _backbone(self, settings: dict[str, Any]) -> Backbone:
        *sites, vocabulary = settings["event_shape"]
        width, heads = settings["width"], settings["heads"]
        if width % heads:
            raise InvalidArgument("width", width, f"a multiple of heads = {heads}")
        return CausalTransformer(
            math.prod(sites), vocabulary, width, heads, settings["layers"], settings["dropout"]
        )


def as_tokens(images: Tensor) -> Tensor:
    """Images with pixels in [-1, 1] as one-hot levels of ink, `(*images.shape, 17)`."""
    levels = ((images + 1) * (LEVELS - 1) / 2).round().long()
    return one_hot(levels, LEVELS).to(torch.float32)


TRANSFORMER = _Transformer()
