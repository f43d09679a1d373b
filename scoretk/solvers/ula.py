r"""The unadjusted Langevin algorithm.

    x' = x - h grad E(x) + sqrt(2 h T) z,    z ~ N(0, I)

The Euler-Maruyama discretisation of Langevin dynamics at temperature T, whose target is `p^(1/T)`.
It is biased by the step size: on N(0, 1) at T = 1 its stationary variance is `1 / (1 - h / 2)`.

Image models are often sampled with the noise and the step size chosen apart, the gradient clipped
and the pixels kept in a box. Noise of standard deviation s beside a step h is temperature `T = s^2
/ (2 h)`, which the presets report: theirs are far below 1, so that such chains do not sample p.

References:
    Roberts, Tweedie, "Exponential convergence of Langevin distributions and their discrete
    approximations" (1996).
    Du, Mordatch, "Implicit generation and modeling with energy-based models" (2019).
    Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi, Swersky, "Your classifier is secretly an energy
    based model and you should treat it like one" (2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import finite, positive
from scoretk.core.rows import add_scaled
from scoretk.core.scalars import root
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.solvers.base import Info

__all__ = ["ULA"]


class ULAState(NamedTuple):
    """The state of `ULA`.

    Position and its score (clipped where the solver clips), each `(chains, *event_shape)`; the
    index of the next step.
    """

    x: Tensor
    score: Tensor
    step: Tensor


@dataclass(frozen=True)
class ULA:
    """Unadjusted Langevin: `x' = x - h grad E + sqrt(2 h T) z`.

    Args:
        step_size: h > 0, in squared units of x.
        temperature: T > 0; the target is `p^(1/T)`.
        clip: The largest magnitude of each entry of the gradient, None for no clipping.
        box: `(low, high)`, to which each entry of x is clamped after a step, None for no box.
            Clipping and a box change the law that is sampled.
    """

    step_size: float
    temperature: float = 1.0
    clip: float | None = None
    box: tuple[float, float] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"score"})
    timed: ClassVar[bool | None] = False
    exact: ClassVar[bool] = False
    capturable: ClassVar[bool] = True
    as_data: ClassVar[tuple[str, ...]] = ("step_size", "temperature", "clip", "box")
    init_cost: ClassVar[dict[str, int]] = {"score": 1}
    step_cost: ClassVar[dict[str, int]] = {"score": 1}

    def __post_init__(self) -> None:
        positive("step_size", self.step_size)
        positive("temperature", self.temperature)
        if self.clip is not None:
            positive("clip", self.clip)
        if self.box is not None:
            object.__setattr__(self, "box", _box(self.box))

    @classmethod
    def with_noise(
        cls,
        step_size: float,
        noise: float,
        clip: float | None = None,
        box: tuple[float, float] | None = None,
    ) -> ULA:
        """The solver whose noise has a given standard deviation.

        Its temperature is `noise^2 / (2 step_size)`.

        Args:
            step_size: h > 0, in squared units of x.
            noise: The standard deviation of the noise of a step, > 0, in units of x.
            clip: As in `ULA`.
            box: As in `ULA`.
        """
        return cls(
            step_size,
            positive("noise", noise) ** 2 / (2 * positive("step_size", step_size)),
            clip,
            box,
        )

    @classmethod
    def du_mordatch(cls) -> ULA:
        """Du and Mordatch's settings for images in [0, 1].

        Step 10, noise .005, gradient clipped at .01 (temperature 1.25e-6).
        """
        return cls.with_noise(10.0, 0.005, clip=0.01, box=(0.0, 1.0))

    @classmethod
    def jem(cls) -> ULA:
        """Grathwohl et al.'s settings for images in [-1, 1].

        Step 1, noise .01 (temperature 5e-5).
        """
        return cls.with_noise(1.0, 0.01)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> ULAState:
        return ULAState(x, self._drift(field, x), torch.zeros((), dtype=torch.int64))

    def step(
        self, field: StaticField, state: ULAState, noise: NoiseSource
    ) -> tuple[ULAState, Info]:
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        drifted = add_scaled(state.x, state.score, self.step_size)
        x = add_scaled(drifted, z, root(2 * self.step_size * self.temperature))
        if self.box is not None:
            x = x.clamp(*self.box)
        return ULAState(x, self._drift(field, x), state.step + 1), {}

    def _drift(self, field: StaticField, x: Tensor) -> Tensor:
        score = field.score(x)
        return score if self.clip is None else score.clamp(-self.clip, self.clip)


def _box(value: object) -> tuple[float, float]:
    expected = "two numbers, the lower one first"
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InvalidArgument("box", value, expected)
    low, high = (finite("box", v) for v in value)
    if not low < high:
        raise InvalidArgument("box", value, expected)
    return low, high
