r"""A small fit loop: Adam with decoupled weight decay, clipped gradients, averaged weights, a held-out share.

    w <- AdamW(w, clip(grad loss)),    a <- d a + (1 - d) w,    d = min(decay, (k + 1) / (k + 10)) at step k

The averaged weights a are what is evaluated and kept: those of the best held-out loss, else the last. All randomness
comes from one `torch.Generator` with the caller's seed; the global one is left alone.

References: Kingma, Ba, "Adam: a method for stochastic optimization" (2015); Loshchilov, Hutter, "Decoupled weight decay
regularization" (2019); Polyak, Juditsky, "Acceleration of stochastic approximation by averaging" (1992).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoretk.arguments import count, finite, positive, tensor_like
from scoretk.errors import FitFailure, InvalidArgument

__all__ = ["Fit", "Progress", "Recipe", "fit"]

Loss = Callable[[Tensor, torch.Generator], Tensor]


class Progress(NamedTuple):
    """One evaluation: steps done, mean training loss since the last one, held-out loss (None without held-out data)."""

    step: int
    loss: float
    held_out: float | None

    def __str__(self) -> str:
        chosen = "" if self.held_out is None else f"  held-out {self.held_out:.5g}"
        return f"step {self.step}  loss {self.loss:.5g}{chosen}"


@dataclass(frozen=True)
class Recipe:
    """How to optimise.

    Arguments: steps; batch, rows a step; learning_rate, at its highest, after 2 % of the steps as warmup and before a
    cosine to a fiftieth; betas and weight_decay of AdamW; clip, the largest gradient norm; decay, of the averaged
    weights; held_out, the share of the rows kept for choosing the weights, 0 for none; repeats, draws of the loss's
    randomness for each held-out row; evaluations, how many, evenly spaced.
    """

    steps: int
    batch: int = 256
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    decay: float = 0.999
    held_out: float = 0.1
    repeats: int = 8
    evaluations: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "repeats", "evaluations"):
            count(name, getattr(self, name), least=1)
        for name in ("learning_rate", "clip"):
            positive(name, getattr(self, name))
        for name in ("decay", "held_out"):
            if not 0 <= finite(name, getattr(self, name)) < 1:
                raise InvalidArgument(name, getattr(self, name), "a share in [0, 1)")

    def rate(self, step: int) -> float:
        """The learning rate of a step, over `learning_rate`."""
        warmup = min(1.0, (step + 1) / max(1, self.steps // 50))
        return warmup * (0.02 + 0.98 * (1 + math.cos(math.pi * step / self.steps)) / 2)


@dataclass
class Fit:
    """The outcome: `weights`, a state dict; `step`, how many steps they had; `history`, one `Progress` an evaluation."""

    weights: dict[str, Tensor]
    step: int
    history: list[Progress] = field(default_factory=list)


def fit(
    module: nn.Module, loss: Loss, data: Tensor, recipe: Recipe, *, seed: int = 0,
    report: Callable[[Progress], Any] | None = None,
) -> Fit:  # fmt: skip
    """Minimise a loss over the rows of data. The module ends in eval mode with the weights that are returned.

    Arguments: module, the parameters to fit; loss, `loss(rows, generator)` of shape `()` or `(batch,)`, a function of the
        module's present parameters; data `(n, *event_shape)`; recipe; seed; report, called after each evaluation.
    Returns: `Fit`.
    Raises: `InvalidArgument`; `FitFailure` where loss or gradient is not finite: it carries the step and the last good
        averaged weights, which the module is left with.
    """
    rows = tensor_like("data", data, (None, *data.shape[1:]))
    generator = torch.Generator().manual_seed(count("seed", seed))
    train, held_out = _split(rows, recipe.held_out, generator)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    average = _Average(module, recipe.decay)
    best, since = Fit(average.weights(), 0), 0.0
    lowest, every = math.inf, max(1, recipe.steps // recipe.evaluations)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * recipe.rate(step)
        batch = train[torch.randint(len(train), (min(recipe.batch, len(train)),), generator=generator)]
        value = _descend(module.train(), loss, batch, generator, optimiser, parameters, recipe.clip)
        if value is None:
            module.load_state_dict(average.weights())
            module.eval()
            raise FitFailure(step, average.weights())
        average.update(step)
        since += value
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            found = _held_out_loss(module, average, loss, held_out, recipe)
            best.history.append(Progress(step + 1, since / ((step % every) + 1), found))
            since = 0.0
            if found is None or found < lowest:
                lowest = math.inf if found is None else found
                best.weights, best.step = average.weights(), step + 1
            if report is not None:
                report(best.history[-1])
    module.load_state_dict(best.weights)
    module.eval()
    return best


def _split(rows: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(rows), generator=generator)
    kept = round(share * len(rows))
    if len(rows) - kept < 1:
        raise InvalidArgument("data", rows, "at least one row to fit, beside those held out")
    return rows[order[kept:]], rows[order[:kept]]


def _descend(
    module: nn.Module, loss: Loss, batch: Tensor, generator: torch.Generator, optimiser: torch.optim.Optimizer,
    parameters: list[nn.Parameter], clip: float,
) -> float | None:  # fmt: skip
    """One step; None, and no step, where loss or gradient is not finite."""
    optimiser.zero_grad()
    value = loss(batch, generator).mean()
    if not bool(torch.isfinite(value)):
        return None
    value.backward()
    if not bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, clip))):
        return None
    optimiser.step()
    return float(value.detach())


class _Average:
    """The exponential average of a module's parameters; buffers are taken as they are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}

    def update(self, step: int) -> None:
        """Take in the module's present parameters."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, p in self.module.named_parameters():
            self.parameters[name].lerp_(p.detach(), 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """A state dict of its own."""
        everything = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        return everything | {name: value.clone() for name, value in self.parameters.items()}


def _held_out_loss(module: nn.Module, average: _Average, loss: Loss, held_out: Tensor, recipe: Recipe) -> float | None:
    """The averaged weights' loss on held-out rows, with the same randomness at each evaluation."""
    if len(held_out) == 0:
        return None
    present = copy.deepcopy(module.state_dict())
    module.load_state_dict(average.weights())
    module.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        value = torch.stack([loss(held_out, generator).mean() for _ in range(recipe.repeats)]).mean()
    module.load_state_dict(present)
    return float(value)
