"""What a loss is given: tensors where it takes tensors, functions where it takes functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn

from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument

__all__ = ["typed"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
FUNCTIONS = ("Callable", "Critic", "Decoder", "Network", "PerRow", "Score")
"""How the annotations begin of arguments that are called."""


def typed(function: _Function) -> _Function:
    """The same function, as `explained`, which refuses what is no tensor and no function.

    Args:
        function: One with annotations: "Tensor" for a tensor, `FUNCTIONS` for what it calls.

    Returns:
        The function, with its signature.
    """
    parameters = signature(function).parameters
    tensors = {name for name, p in parameters.items() if p.annotation == "Tensor"}
    called = {name for name, p in parameters.items() if str(p.annotation).startswith(FUNCTIONS)}
    named, loop = function.__name__, ", ".join(parameters)

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for name, value in chain(zip(parameters, args, strict=False), options.items()):
            if name in tensors and not isinstance(value, Tensor):
                way = f"It takes ({loop}); in a fit, lambda rows, generator: {named}(...)"
                raise InvalidArgument(name, value, f"a tensor for {named}", way)
            if name in called and not _can_be_called(value):
                raise InvalidArgument(name, value, f"a function for {named}", _way(name, value))
        return function(*args, **options)

    return explained(call)  # type: ignore[return-value]  # whose signature is the function's


def _can_be_called(value: Any) -> bool:
    """Whether a call has an answer: a module without `forward` is callable too."""
    if isinstance(value, nn.Module):
        return type(value).forward is not nn.Module.forward
    return callable(value)


def _way(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return "fit calls a loss with (rows, generator): lambda rows, generator: ..."
    return f"Its own: {type(value).__name__}.{name}" if hasattr(value, name) else ""
