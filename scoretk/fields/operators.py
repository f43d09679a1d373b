"""Linear measurements with Gaussian noise, `y = A x + std eps`, and operators A for images.

An operator is any linear callable of rows, `A(x)`: `(batch, *event_shape) -> (batch, *measured)`.
Its adjoint is the pullback of A, which autograd gives exactly and which is the same at every point;
of an operator that autograd cannot see through it is given by the user. Either is checked by
`<A x, w> = <x, A^T w>` before it is used.

Complex measurements (MRI) are pairs of real ones: A x in `C^m` is taken as its real and imaginary
parts in `R^2m`, each with noise of its own of standard deviation std, and so the adjoint as the
real part of `A^H w`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

from scoretk.core.arguments import counts, function, numbers, positive, tensor_like
from scoretk.core.devices import constant_like, on, wide
from scoretk.core.rows import row_dot, row_sum
from scoretk.errors import InvalidArgument, ScoretkError, first_line
from scoretk.fields.derivatives import probes, value_and_pullback

__all__ = ["Blur", "Downsample", "LinearGaussian", "Mask", "Matrix", "value_and_pullback"]

PROBE = -2.0
"""The weight c in the check `A(u + c v) = A u + c A v`: negative, so that neither |x| nor a ReLU
passes for linear.
"""

Map = Callable[[Tensor], Tensor]
RAISED = (RuntimeError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What a callable may raise for events, or measurements, of a shape that it cannot take."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """`A x = matrix x`, x flattened: `(batch, *event_shape) -> (batch, m)`.

    Args:
        matrix: `(m, d)`, real or complex.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _numbers("matrix", self.matrix, (None, None)))

    def __call__(self, x: Tensor) -> Tensor:
        rows = rearrange(x, "batch ... -> batch (...)")
        rows = rows.to(x.dtype.to_complex()) if self.matrix.is_complex() else rows
        return rows @ constant_like(self.matrix, rows).T


@dataclass(frozen=True, eq=False)
class Mask:
    """The entries of x where the mask is True, in row-major order (inpainting).

    It maps `(batch, *event_shape) -> (batch, m)`.

    Args:
        mask: Of bool, `event_shape`, not False throughout.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        mask = numbers("mask", self.mask)
        if mask.dtype is not torch.bool or not bool(mask.any()):
            raise InvalidArgument(
                "mask",
                self.mask,
                "a tensor of bool, True where x is measured, and not False throughout",
            )
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "_entries", mask.flatten().nonzero()[:, 0])

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.mask.shape:
            raise InvalidArgument("mask", self.mask, f"the shape of an event, {tuple(x.shape[1:])}")
        rows = rearrange(x, "batch ... -> batch (...)")
        return rows.index_select(1, on(self._entries, x.device))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Downsample:
    """Means over squares of `factor x factor` pixels.

    It maps `(batch, ..., h, w) -> (batch, ..., h / factor, w / factor)`.

    Args:
        factor: A divisor of height and width.
    """

    factor: int

    def __post_init__(self) -> None:
        counts(self, factor=1)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise InvalidArgument(
                "factor", self.factor, f"a divisor of height and width of {tuple(x.shape[1:])}"
            )
        return reduce(x, "... (h a) (w b) -> ... h w", "mean", a=self.factor, b=self.factor)


@dataclass(frozen=True, eq=False)
class Blur:
    """A correlation with a kernel in each channel, zeros beyond the edges; like x.

    `(A x)_i = sum_j kernel_j x_(i+j)`, j counted from the kernel's centre.

    Args:
        kernel: `(a, b)`, both odd.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        kernel = tensor_like("kernel", self.kernel, (None, None))
        if not all(n % 2 for n in kernel.shape):
            raise InvalidArgument(
                "kernel", self.kernel, "odd height and width, so that it has a centre"
            )
        object.__setattr__(self, "kernel", kernel)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3:
            raise InvalidArgument(
                "kernel",
                self.kernel,
                f"images (..., h, w), but an event has shape {tuple(x.shape[1:])}",
            )
        planes = rearrange(x, "... h w -> (...) 1 h w")
        return functional.conv2d(
            planes, constant_like(self.kernel, x)[None, None], padding="same"
        ).reshape(x.shape)


class _Linear(torch.autograd.Function):
    """`A x` of a map that autograd does not see, with its adjoint as derivative.

    The derivative of the adjoint is A again, and so on to any order.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Map, back: Map) -> Tensor:
        ctx.there, ctx.back = there, back
        return there(x)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor, None, None]:
        return _linear(w, ctx.back, ctx.there), None, None


def _linear(x: Tensor, there: Map, back: Map) -> Tensor:
    image: Tensor = _Linear.apply(x, there, back)  # type: ignore[no-untyped-call]
    return image


@dataclass(frozen=True, eq=False, init=False)
class LinearGaussian:
    """The likelihood of `y = A x + std eps`, `eps ~ N(0, I)`.

    Args:
        operator: A, a linear callable of rows, `(batch, *event_shape) -> (batch, *measured)`, such
            as `Mask(mask)`, `Downsample(2)`, `Blur(kernel)`, or a matrix `(m, d)` that acts on the
            flattened event; its values are real or complex.
        y: What was measured, of shape `measured`, the same for all chains, complex where the
            operator's values are; or the name of the condition that holds one measurement a chain,
            `sample(..., cond={name: (chains, *measured)})`.
        std: The standard deviation of the noise of each entry of y; of a complex entry, of its real
            and of its imaginary part.
        adjoint: `A^T`, `(batch, *measured) -> (batch, *event_shape)`, of a complex operator the
            conjugate transpose `A^H`, kept as `transposed`; None: by autograd. An operator that
            runs under `torch.no_grad` or in numpy needs it.

    Raises:
        InvalidArgument: An argument does not fit. Linearity and adjoint are checked by `check`.
    """

    operator: Map
    y: Tensor | str
    std: float
    transposed: Map | None
    _pairs: bool | None = field(repr=False)

    def __init__(
        self,
        operator: Map | Tensor | Sequence[Sequence[float]],
        y: Tensor | Sequence[float] | str,
        std: float,
        adjoint: Map | None = None,
    ) -> None:
        chosen: Any = Matrix(operator) if _is_array(operator) else operator  # type: ignore[arg-type]
        function("operator", chosen, "x -> A x that is linear, or a matrix (m, d)")
        if adjoint is not None:
            function("adjoint", adjoint, "w -> A^T w, or None")
        measured = y if isinstance(y, str) else _numbers("y", y, None)
        _check_std(std)
        pairs = None if isinstance(measured, str) else measured.is_complex()
        values = {
            "operator": chosen,
            "y": measured,
            "std": std,
            "transposed": adjoint,
            "_pairs": pairs,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def measured(self) -> frozenset[str]:
        """The names of the condition values that the likelihood takes."""
        return frozenset({self.y}) if isinstance(self.y, str) else frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """`A x`, `(batch, *measured)`; complex numbers as pairs, `(batch, *measured, 2)`."""
        return _as_real(self._image(x))

    def adjoint(self, w: Tensor, x: Tensor) -> Tensor:
        """`A^T w`.

        Args:
            w: Like `forward` returns.
            x: `(batch, *event_shape)`, for its shape, dtype and device.

        Returns:
            Like x.
        """
        if self.transposed is None:
            keep = w.requires_grad and torch.is_grad_enabled()
            return value_and_pullback(self.forward, torch.zeros_like(x), keep=keep)[1](w)
        if torch.compiler.is_compiling() or not (w.requires_grad and torch.is_grad_enabled()):
            return self._back(w.detach(), x)
        return _linear(w, lambda v: self._back(v, x), lambda v: _as_real(self._seen(v)))

    def residual(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`y - A x`, `(batch, *measured)`; complex numbers as pairs, `(batch, *measured, 2)`."""
        image = self._image(x)
        y = cond[self.y] if isinstance(self.y, str) else self.y[None]
        if y.is_complex() != image.is_complex():
            kinds = ("real", "complex") if image.is_complex() else ("complex", "real")
            raise InvalidArgument(
                "y",
                y[0],
                f"{kinds[1]} numbers, as the operator measures them, not {kinds[0]} ones",
                "A magnitude is no linear measurement: give the operator's own complex values, or "
                "an operator that ends in .real",
            )
        if y.shape[1:] != image.shape[1:]:
            raise InvalidArgument(
                "y", y[0], f"the shape of what the operator measures, {tuple(image.shape[1:])}"
            )
        known = y.to(image) if isinstance(self.y, str) else constant_like(self.y, image)[None]
        return _as_real(known) - _as_real(image)

    def log_likelihood(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log N(y; A x, std^2 I)`, `(batch,)`."""
        z = self.residual(x, **cond) / self.std
        entries = math.prod(z.shape[1:])
        return -row_sum(z.square()) / 2 - entries * math.log(self.std * math.sqrt(2 * math.pi))

    def slope(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`log L(x)`, `(batch,)`, and its gradient `A^T (y - A x) / std^2`, like x.

        Both are differentiable where x asks for gradients.
        """
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            pulled = self.adjoint(self.residual(x, **cond), x) / self.std**2
            return self.log_likelihood(x, **cond), pulled

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Check that the operator maps such events to the shape of y, row by row, and linearly.

        Args:
            event_shape: The shape of one x.

        Raises:
            InvalidArgument: It does not, or its adjoint is not the adjoint.
        """
        dtype = torch.get_default_dtype() if isinstance(self.y, str) else self.y.abs().dtype
        device = None if isinstance(self.y, str) else self.y.device
        u, v = probes(torch.empty((1, *event_shape), dtype=dtype, device=device), 2, 0)
        stacked = torch.stack([u, v, u + PROBE * v])
        with torch.no_grad():
            try:
                image, alone = self.forward(stacked), self.forward(stacked[:1])
            except ScoretkError:
                raise
            except RAISED as error:
                takes = f"a map of events of shape {event_shape}, with a batch axis before it"
                raise InvalidArgument("operator", self.operator, takes, str(error)) from error
        if (image.shape[:1], alone.shape[:1]) != ((3,), (1,)):
            shape = tuple(alone.shape)
            raise InvalidArgument(
                "operator",
                self.operator,
                "one that keeps the batch axis",
                f"One event became {shape}",
            )
        if not image.numel():
            found = f"{tuple(image.shape[1:])} for each event, which are no numbers"
            raise InvalidArgument(
                "operator", self.operator, "one that measures something", f"It gives {found}"
            )
        close = 4 * torch.finfo(dtype).eps ** 0.5
        size = image.abs().amax()
        if not bool((image[0] + PROBE * image[1] - image[2]).abs().amax() <= close * size):
            raise InvalidArgument(
                "operator", self.operator, "a linear map", "A x + b is one of y - b"
            )
        if not bool((image[:1] - alone).abs().amax() <= close * size):
            hint = "A row's image depends on the rows beside it"
            raise InvalidArgument("operator", self.operator, "a map of each row by itself", hint)
        if not isinstance(self.y, str):
            with torch.no_grad():
                self.residual(stacked[:1])
        self._check_adjoint(stacked[:2], image[:2], close)

    def _check_adjoint(self, x: Tensor, image: Tensor, close: float) -> None:
        """The dot-product test, `<A x, w> = <x, A^T w>`.

        With standard normal w either side is of the size of |A x|.
        """
        w = probes(image, len(image), 1)
        try:
            back = self.adjoint(w, x)
        except InvalidArgument as error:
            if self.transposed is not None:
                raise
            raise self._without_adjoint("Autograd sees nothing of it") from error
        except RAISED as error:
            raise self._without_adjoint(first_line(error)) from error
        there, here = row_dot(wide(image), wide(w)), row_dot(wide(x), wide(back))
        if not bool(((there - here).abs() <= close * row_dot(image, image).sqrt()).all()):
            raise self._without_adjoint(
                f"<A x, w> is {float(there[0]):.6g} and <x, A^T w> {float(here[0]):.6g} for one x "
                f"and w"
            )

    def _without_adjoint(self, found: str) -> InvalidArgument:
        if self.transposed is not None:
            hint = f"{found}. Of a complex operator it is the conjugate transpose"
            return InvalidArgument(
                "adjoint", self.transposed, "the adjoint of the operator, A^T w like x", hint
            )
        hint = (
            f"{found}: part of it runs under torch.no_grad, behind detach, or in numpy. "
            "Give its adjoint: LinearGaussian(..., adjoint=f), f(w) = A^T w"
        )
        return InvalidArgument(
            "operator", self.operator, "a map that torch can differentiate with respect to x", hint
        )

    def _complex(self, x: Tensor) -> bool:
        """Whether the operator's values are complex: as y is, or, where y is a condition, as one
        image is.
        """
        if self._pairs is None:
            with torch.no_grad():
                object.__setattr__(
                    self, "_pairs", self._applied(torch.zeros_like(x[:1])).is_complex()
                )
        return self._pairs  # type: ignore[return-value]

    def _image(self, x: Tensor) -> Tensor:
        """`A x` as the operator gives it; its derivative is by the adjoint where one is given."""
        if self.transposed is None:
            return self._applied(x)
        if torch.compiler.is_compiling() or not (x.requires_grad and torch.is_grad_enabled()):
            return self._seen(x)
        image = _linear(x, lambda v: _as_real(self._seen(v)), lambda w: self._back(w, x))
        return torch.view_as_complex(image) if self._complex(x) else image

    def _applied(self, x: Tensor) -> Tensor:
        """What the operator makes of x; refused where it is no tensor."""
        image = self.operator(x)
        if not isinstance(image, Tensor):
            hint = (
                f"It gave {type(image).__name__}. One that works in numpy gives "
                "torch.from_numpy(...), and its adjoint"
            )
            raise InvalidArgument("operator", self.operator, "a map from tensors to tensors", hint)
        return image

    def _seen(self, x: Tensor) -> Tensor:
        """`A x` without a graph, in a tensor that autograd may keep."""
        image = self._applied(x.detach())
        return image.clone() if image.is_inference() else image

    def _back(self, w: Tensor, x: Tensor) -> Tensor:
        """The given adjoint of w, which is shaped as `forward` has it; like x."""
        assert self.transposed is not None
        with torch.no_grad():
            w = w.detach()
            back = self.transposed(torch.view_as_complex(w.contiguous()) if self._complex(x) else w)
        if not isinstance(back, Tensor) or back.shape != x.shape:
            shape = tuple(back.shape) if isinstance(back, Tensor) else type(back).__name__
            raise InvalidArgument(
                "adjoint", self.transposed, f"A^T w of shape {tuple(x.shape)}", f"It gave {shape}"
            )
        back = back.real if back.is_complex() else back
        return (back.clone() if back.is_inference() else back).to(x)


def _check_std(std: Any) -> None:
    """Refuse what is no standard deviation of all entries of y, with how it is written.

    Raises:
        InvalidArgument: It is none.
    """
    if _is_array(std):
        hint = (
            "Of noise that differs from entry to entry: LinearGaussian(lambda x: A(x) / std, y / std, "
            "1.0), whose log p(y) is that of y / std, less the sum of log std"
        )
        raise InvalidArgument("std", std, "one positive finite number", hint)
    if isinstance(std, int | float) and std == 0:
        hint = "Without noise: a std that is small beside that of the data, such as 1e-3 of it"
        raise InvalidArgument("std", std, "a positive finite number", hint)
    positive("std", std)


def _is_array(value: Any) -> bool:
    """Whether it is numbers in an array, or in lists."""
    return isinstance(value, Tensor | list | tuple) or (hasattr(value, "ndim") and value.ndim > 0)


def _as_real(values: Tensor) -> Tensor:
    """Complex numbers as pairs, `(...) -> (..., 2)`; real ones as they are."""
    return torch.view_as_real(values) if values.is_complex() else values


def _numbers(name: str, value: Any, shape: tuple[int | None, ...] | None) -> Tensor:
    """As `tensor_like`, but of any shape where that is None, and complex where the value is."""
    tensor = numbers(name, value)
    shape = tuple(tensor.shape) if shape is None else shape
    if not tensor.is_complex():
        return tensor_like(name, tensor, shape)
    tensor_like(name, torch.view_as_real(tensor), (*shape, 2))
    return tensor
