"""What the processes of one training (`torchrun`, torch.distributed) send to one another.

With a single process these functions do nothing but return what they were given. Gradients are
summed in one message a step, on the device where they are if the process group serves it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from scoretk.run.group import carrier, gathered, joined
from scoretk.run.ranks import unshared

__all__ = [
    "agreed",
    "gathered",
    "joined",
    "own",
    "process_count",
    "rank",
    "same_start",
    "summed",
    "unshared",
]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _several() else 1


def rank() -> int:
    """The number of this process, from 0; process 0 reports and writes files."""
    return distributed.get_rank() if _several() else 0


def own(parts: int) -> range:
    """Which of the parts of a batch this process computes.

    Args:
        parts: The number of parts, a multiple of the number of processes.
    """
    each = parts // process_count()
    return range(rank() * each, (rank() + 1) * each)


def same_start(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if process_count() > 1:
        for tensor in module.state_dict().values():
            message = tensor.detach().to(carrier(tensor.device))
            distributed.broadcast(message, 0)
            tensor.detach().copy_(message)


def summed(parameters: Sequence[nn.Parameter], value: Tensor) -> Tensor:
    """Sum gradients, in place, and a scalar over the processes.

    Args:
        parameters: Those whose `grad` is summed. One without a gradient in any process stays so.
        value: A scalar.

    Returns:
        The sum of the scalar.
    """
    if process_count() == 1:
        return value
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    has = torch.tensor([p.grad is not None for p in parameters], device=value.device)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = torch.cat([v.detach().to(wide).flatten() for v in (value, has, *grads)])
    carried = message.to(carrier(message.device))
    distributed.all_reduce(carried)
    message = carried.to(message.device)
    sums = message[1 + len(parameters) :].split([p.numel() for p in parameters])
    for p, some, total in zip(parameters, message[1:].tolist(), sums, strict=False):
        p.grad = total.view_as(p).to(p) if some else None
    return message[0]


def agreed(value: float | None) -> float | None:
    """The value that the first process has, in all of them; None where it is None."""
    if value is None or process_count() == 1:
        return value
    message = torch.tensor(value, dtype=torch.float64, device=carrier(torch.device("cpu")))
    distributed.broadcast(message, 0)
    return float(message)
