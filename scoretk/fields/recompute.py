"""Activation checkpointing: parts of a network are computed again in the backward pass.

The gradient of an energy keeps every activation of the network until it has gone back through it.
Where memory does not hold that, some blocks keep their inputs alone, and their inside is computed a
second time when the gradient needs it: a third more time, and of n equal blocks the memory of one
and n inputs.

References:
    Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost" (2016).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument

__all__ = ["Recomputed", "recomputed"]


class Recomputed(nn.Module):
    """A network whose blocks of some kinds keep their inputs alone; made by `recomputed`.

    Attributes:
        module: The network.
        of: The kinds of the blocks.
    """

    def __init__(self, module: nn.Module, of: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.module, self.of = module, of

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network says."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self.module(*args, **kwargs)
        with _again(list(_outermost(self.module, self.of))):
            return self.module(*args, **kwargs)


@explained
def recomputed(module: nn.Module, of: type[nn.Module] | tuple[type[nn.Module], ...]) -> Recomputed:
    """A network that needs less memory for a gradient, and the time of another forward pass.

    It is for energies, and for whatever differentiates a network: posteriors of fields in time,
    training. The numbers are the same.

    Args:
        module: The network, such as one of `nn.TransformerEncoderLayer`.
        of: The type, or types, of its blocks whose activations are computed again. Of nested ones
            the outermost count.

    Returns:
        A module that is called as the network is. It has the network's own parameters; the network
        itself is left as it was.

    Raises:
        InvalidArgument: It has no such blocks, or is one itself, which would save nothing; when it
            is called, a block that changes its buffers then (batch normalisation in training).
    """
    kinds = of if isinstance(of, tuple) else (of,)
    if not isinstance(module, nn.Module):
        raise InvalidArgument("module", module, "a torch.nn.Module")
    if not kinds or not all(isinstance(k, type) and issubclass(k, nn.Module) for k in kinds):
        raise InvalidArgument("of", of, "a subclass of torch.nn.Module, or a tuple of them")
    found = list(_outermost(module, kinds))
    if not found or found == [module]:
        held = ", ".join(sorted({type(m).__name__ for m in module.modules()} - {""}))
        raise InvalidArgument(
            "of", of, "the type of blocks within the module", f"It consists of {held}"
        )
    return Recomputed(module, kinds)


def _outermost(module: nn.Module, of: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """The blocks, none within another, each once."""
    seen: set[int] = set()

    def walk(part: nn.Module) -> Iterator[nn.Module]:
        if id(part) in seen:
            return
        seen.add(id(part))
        if isinstance(part, of):
            yield part
            return
        for child in part.children():
            yield from walk(child)

    yield from walk(module)


_PATCHING = threading.RLock()


@contextmanager
def _again(blocks: list[nn.Module]) -> Iterator[None]:
    """Let the blocks keep their inputs alone, within the context, which one thread enters at a time."""
    with _PATCHING:
        before = [block.__dict__.get("forward") for block in blocks]
        for block in blocks:
            block.__dict__["forward"] = partial(_kept, block, block.forward)
        try:
            yield
        finally:
            for block, own in zip(blocks, before, strict=True):
                if own is None:
                    del block.__dict__["forward"]
                else:
                    block.__dict__["forward"] = own


def _kept(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a block says, its inputs kept alone.

    The global generator is looked at only where a part of it may draw from it.
    """
    training = any(module.training for module in block.modules())
    held = {name: (buffer, buffer._version) for name, buffer in block.named_buffers()}
    told = checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=training, **kwargs)
    changed = sorted(name for name, (buffer, version) in held.items() if buffer._version != version)
    if changed:
        raise InvalidArgument(
            "of",
            f"{type(block).__name__}, which changes its {', '.join(changed)} when it is called",
            "blocks that stay as they are",
            "Computed again it would be another: put it into eval mode, or leave it out",
        )
    return told
