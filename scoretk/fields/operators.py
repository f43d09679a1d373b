r"""Linear measurements with Gaussian noise, `y = A x + std eps`, and the operators A that images are measured with.

An operator is any linear callable of rows, `A(x)`: `(batch, *event_shape) -> (batch, *measured)`. Its adjoint is the pullback
of A, which autograd gives exactly, and which is the same wherever it is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from scoretk.arguments import counts, positive, tensor_like
from scoretk.errors import InvalidArgument
from scoretk.rows import row_sum

__all__ = ["Blur", "Downsample", "LinearGaussian", "Mask", "Matrix", "value_and_pullback"]

PROBE = -2.0
"""What a probe is multiplied with, and its image must be: negative, so that neither |x| nor a ReLU passes for linear."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """`A x = matrix x`, x flattened: `(batch, *event_shape) -> (batch, m)`. Arguments: matrix `(m, d)`."""

    matrix: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", tensor_like("matrix", self.matrix, (None, None)))

    def __call__(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1) @ self.matrix.to(x).T


@dataclass(frozen=True, eq=False)
class Mask:
    """The entries of x where mask is True: `(batch, *event_shape) -> (batch, m)`, in row-major order (inpainting).

    Arguments: mask, of bool, `event_shape`.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        mask = torch.as_tensor(self.mask)
        if mask.dtype is not torch.bool or not bool(mask.any()):
            raise InvalidArgument(
                "mask", self.mask, "a tensor of bool, True where x is measured, and not False throughout"
            )
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "_entries", mask.flatten().nonzero()[:, 0])

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.mask.shape:
            raise InvalidArgument("mask", self.mask, f"the shape of an event, {tuple(x.shape[1:])}")
        rows = x.reshape(len(x), self.mask.numel())
        return rows.index_select(1, self._entries.to(x.device))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Downsample:
    """Means over squares of `factor x factor` pixels: `(batch, ..., h, w) -> (batch, ..., h / factor, w / factor)`."""

    factor: int

    def __post_init__(self) -> None:
        counts(self, factor=1)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise InvalidArgument("factor", self.factor, f"a divisor of height and width of {tuple(x.shape[1:])}")
        return x.unflatten(-1, (-1, self.factor)).unflatten(-3, (-1, self.factor)).mean((-3, -1))


@dataclass(frozen=True, eq=False)
class Blur:
    """`(A x)_i = sum_j kernel_j x_(i+j)` in each channel, j about the kernel's centre, zeros beyond the edges; x as it was.

    Arguments: kernel `(a, b)`, both odd.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        kernel = tensor_like("kernel", self.kernel, (None, None))
        if not all(n % 2 for n in kernel.shape):
            raise InvalidArgument("kernel", self.kernel, "odd height and width, so that it has a centre")
        object.__setattr__(self, "kernel", kernel)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise InvalidArgument(
                "kernel", self.kernel, f"images (..., h, w), but an event has shape {tuple(x.shape[1:])}"
            )
        planes = x.reshape(-1, 1, *x.shape[-2:])
        return functional.conv2d(planes, self.kernel.to(x)[None, None], padding="same").reshape(x.shape)


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    r"""The likelihood of `y = A x + std eps`, `eps ~ N(0, I)`.

    Arguments:
        operator: A, a linear callable of rows, `(batch, *event_shape) -> (batch, *measured)`, such as `Mask(mask)`,
            `Downsample(2)`, `Blur(kernel)`, or a matrix `(m, d)` that acts on the flattened event.
        y: what was measured, of shape `measured`, the same for all chains; or the name of the condition that holds one
            measurement a chain, `sample(..., cond={name: (chains, *measured)})`.
        std: the standard deviation of the noise of each entry of y.
    Raises: `InvalidArgument`.
    """

    operator: Callable[[Tensor], Tensor] | Tensor
    y: Tensor | Sequence[float] | str
    std: float

    def __post_init__(self) -> None:
        if isinstance(self.operator, Tensor):
            object.__setattr__(self, "operator", Matrix(self.operator))
        if not callable(self.operator):
            raise InvalidArgument("operator", self.operator, "a linear callable, or a matrix (m, d)")
        if not isinstance(self.y, str):
            y = torch.as_tensor(self.y)
            object.__setattr__(self, "y", tensor_like("y", y, tuple(y.shape)))
        positive("std", self.std)

    @property
    def measured(self) -> frozenset[str]:
        """The names of the condition values that the likelihood takes."""
        return frozenset({self.y}) if isinstance(self.y, str) else frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """`A x`, `(batch, *measured)`."""
        return self.operator(x)  # type: ignore[operator]

    def adjoint(self, w: Tensor, x: Tensor) -> Tensor:
        """`A^T w`, `(batch, *measured) -> (batch, *event_shape)`, like x, whose values play no part."""
        keep = w.requires_grad and torch.is_grad_enabled()
        return value_and_pullback(self.forward, torch.zeros_like(x), keep=keep)[1](w)

    def residual(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`y - A x`, `(batch, *measured)`."""
        image = self.forward(x)
        y = (cond[self.y] if isinstance(self.y, str) else self.y[None]).to(image)  # type: ignore[call-overload]
        if y.shape[1:] != image.shape[1:]:
            raise InvalidArgument("y", y[0], f"the shape of what the operator measures, {tuple(image.shape[1:])}")
        return y - image

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log N(y; A x, std^2 I)`, `(batch,)`."""
        z = self.residual(x, **cond) / self.std
        entries = math.prod(z.shape[1:])
        return -row_sum(z.square()) / 2 - entries * math.log(self.std * math.sqrt(2 * math.pi))

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Raise `InvalidArgument` unless the operator takes such events, is linear, and y has the shape of what it measures."""
        like = self.y if isinstance(self.y, Tensor) else torch.empty(0)
        entries = torch.arange(1, math.prod(event_shape) + 1, dtype=like.dtype, device=like.device)
        probe = entries.cos().reshape(1, *event_shape)
        with torch.no_grad():
            try:
                image, scaled = self.forward(probe), self.forward(PROBE * probe)
            except (RuntimeError, IndexError) as error:
                takes = f"a map of events of shape {event_shape}, with a batch axis before it"
                raise InvalidArgument("operator", self.operator, takes, str(error)) from error
        if image.shape[:1] != (1,):
            shape = tuple(image.shape)
            raise InvalidArgument(
                "operator", self.operator, "one that keeps the batch axis", f"One event became {shape}"
            )
        if not torch.allclose(scaled, PROBE * image, rtol=1e-3, atol=1e-5):
            raise InvalidArgument("operator", self.operator, "a linear map", "A x + b is one of y - b")
        if not isinstance(self.y, str):
            self.residual(probe)


def value_and_pullback(
    f: Callable[[Tensor], Tensor], x: Tensor, *, keep: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`f(x)` and `v -> J^T v` with `J = df/dx`, row by row and as often as is liked, for one evaluation of f.

    Arguments: keep, whether both are differentiable themselves; otherwise no graph outlives the pullback.
    """
    if torch.compiler.is_compiling():
        pulled = torch.func.vjp(f, x)
        return pulled[0], lambda v: pulled[1](v)[0]
    with torch.enable_grad():
        y = x if x.requires_grad and keep else x.detach().requires_grad_()
        value = f(y)
    if not value.requires_grad:  # it does not depend on x
        return value, lambda v: torch.zeros_like(x)

    def pullback(v: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(value, y, v, retain_graph=True, create_graph=keep, materialize_grads=True)
        return gradient

    return value if keep else value.detach(), pullback
