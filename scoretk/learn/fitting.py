r"""A small fit loop for every family: any torch optimiser, clipped gradients, averaged weights.

At step k

    w <- optimiser(w, clip(grad loss)),    a <- d a + (1 - d) w,    d = min(decay, (k + 1) / (k + 10))

The averaged weights a are evaluated, and kept: those with the best value on held-out rows, or the
last where none are held out. All randomness comes from one `torch.Generator` with the caller's seed
and from those that the modules hold; the global one is left alone.

**Players** of a game, such as a critic and a generator, take turns within a step, each with its own
loss and optimiser.

**Parts**: a batch may be computed in P slices whose gradients are added up. With P > 1 the
randomness of slice p in turn k is a function of (seed, k, p) alone. So W processes (`torchrun`;
each calls `fit` with the same arguments, computes P / W of the slices and ends with the same
weights) do what one process does with the same P, up to the rounding of a sum. Without P they
compute one slice each; a loss that draws nothing then has the result of the default P = 1 too.

**Checkpoints** are written at evaluations: weights, average, optimisers, generators, history, and
the state of the loss. The same call goes on from there and ends with the same bits; with the same
P, so may another number of processes.

References:
    Kingma, Ba, "Adam: a method for stochastic optimization" (2015).
    Loshchilov, Hutter, "Decoupled weight decay regularization" (2019).
    Polyak, Juditsky, "Acceleration of stochastic approximation by averaging" (1992).
    Li et al., "PyTorch distributed: experiences on accelerating data parallel training" (2020).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoretk.core.keywords import explained
from scoretk.core.warned import warn
from scoretk.errors import FitFailure
from scoretk.learn import processes
from scoretk.learn.recipe import Fit, Loss, Player, Progress, Recipe
from scoretk.learn.resume import checkpoint_file, read_moment, write_moment
from scoretk.learn.training import NotFinite, Training

__all__ = ["Fit", "Player", "Progress", "Recipe", "fit"]

BRIGHT, PIXEL_ROWS = 100, 256
"""Above which value the largest of so many rows of whole numbers is one of pixels."""


@partial(explained, settings=Recipe)
def fit(
    module: nn.Module,
    loss: Loss | Sequence[Player],
    data: Tensor,
    recipe: Recipe,
    *,
    seed: int = 0,
    report: Callable[[Progress], Any] | None = None,
    evaluate: Loss | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state: Any = None,
    settings: Mapping[str, Any] | None = None,
    held_out: Tensor | None = None,
) -> Fit:
    """Minimise a loss over the rows of data.

    The module ends in eval mode with the weights that are returned, and after Ctrl-C with the
    averaged ones of then.

    Args:
        module: The parameters to fit.
        loss: `loss(rows, generator)` of shape `()` or `(batch,)`, a function of the module's
            present parameters, or that and a dict of numbers for the progress; or a sequence of
            `Player`, each with its own.
        data: The rows to fit to, `(n, *event_shape)`.
        recipe: How to optimise.
        seed: The seed of the random numbers.
        report: Called with the `Progress` after each evaluation (by the first process).
        evaluate: What is measured on held-out rows, the lower the better, with the signature of a
            loss; None for the loss itself. A game needs it unless nothing is held out.
        checkpoint: The file to save to, and to go on from where it exists; None for none.
        state: An object with `state_dict` and `load_state_dict` that belongs to the training, such
            as an average of yours. (A loss that has these methods is found by itself, and so is a
            `ContrastiveDivergence` that it calls.)
        settings: Plain values that tell the checkpoints of this run from others'.
        held_out: Rows of one's own to choose the weights by, such as a benchmark's validation set,
            in place of a share of the data; None for `Recipe.held_out`, which then is not read.

    Returns:
        The kept weights, their step, and the progress.

    Raises:
        InvalidArgument: For arguments that do not fit one another.
        FitFailure: Where loss, gradient, weights or held-out value are not finite. It carries the
            step and the last good averaged weights, which the module is left with.
        CheckpointError: Where the checkpoint is damaged or another run's.
    """
    players = list(loss) if isinstance(loss, Sequence) else [Player("", module, loss)]
    run = Training(module, players, data, recipe, seed, evaluate, state, held_out)
    _warn_of_pixels(data)
    if run.widest_gap:
        warn(
            "held_out: the loss of contrastive divergence does not say how good an energy is, and "
            "the weights of the lowest one on held-out rows would be kept. held_out=0.0 in the "
            "Recipe keeps the last; evaluate= measures something else, such as a distance of draws"
        )
    file = None if checkpoint is None else checkpoint_file(checkpoint)
    whose, changed = None if file is None else run.whose(data, settings), list[str]()
    if file is not None and whose is not None and file.exists():
        moment, changed = read_moment(file, whose)
        run.restore(moment)
    every = max(1, recipe.steps // recipe.evaluations)
    try:
        with processes.unshared():  # each rank samples for its own slice
            while run.step < recipe.steps and (
                recipe.patience is None or run.stale < recipe.patience
            ):
                run.advance()
                if run.step % every == 0 or run.step == recipe.steps:
                    run.evaluate()
                    moment = None if file is None else run.moment()
                    if file is not None and whose is not None and processes.rank() == 0:
                        write_moment(file, moment, whose, changed)
                    if report is not None and processes.rank() == 0:
                        report(run.best.history[-1])
    except NotFinite as error:
        run.settle(run.averaged())
        raise FitFailure(run.step, run.averaged()) from error
    except KeyboardInterrupt as stopped:
        run.settle(run.averaged())
        way = f"the same call goes on from {file}" if file is not None and file.exists() else ""
        stopped.add_note(
            f"The module has the averaged weights of step {run.step}"
            + (f"; {way}." if way else ". With checkpoint=, the same call goes on from there.")
        )
        raise
    run.settle(run.best.weights)
    return run.best


def _warn_of_pixels(data: Tensor) -> None:
    """Say where data are pixels as files have them, whole numbers up to 255.

    The noise of every path, and the N(0, I) from which chains start, are of size 1 beside them: the
    levels overlap nothing, and what is learned is a lattice of points.
    """
    rows = torch.as_tensor(data)[:PIXEL_ROWS]
    if rows.ndim < 2 or not rows.numel() or rows.is_complex() or rows.dtype is torch.bool:
        return  # rows of one number may be indices
    low, high = float(rows.amin()), float(rows.amax())
    if low >= 0 and BRIGHT < high <= 255 and bool((rows == rows.round()).all()):
        warn(
            f"data: whole numbers from {low:g} to {high:g}, as pixels in files, beside noise of size "
            "1. Scale them: x / 127.5 - 1 gives [-1, 1]; bits_per_dim takes the pixels themselves"
        )
