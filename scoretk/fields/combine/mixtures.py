"""`mixture`: `sum_i w_i p_i` of normalised densities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import finite, positive
from scoretk.core.keywords import explained
from scoretk.core.rows import across
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.combine.members import Members, OfMany, fitting
from scoretk.fields.distribution import in_one_space
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import field_name, offers
from scoretk.fields.resolve import static
from scoretk.fields.wrapped import Kind, shared_map

__all__ = ["Mixture", "MixtureTimed", "mixture"]


@explained
def mixture(
    fields: Sequence[object], weights: Sequence[float], log_partition: Sequence[float] | None = None
) -> object:
    """The mixture `sum_i w_i p_i`.

    Densities add up; scores and denoisers are averaged in the shares
    `w_i p_i(x) / sum_j w_j p_j(x)`. Shares compare densities, so each must be normalised: energies
    known up to a constant do not mix, nor do scores.

    Args:
        fields: All static, each with `log_prob`; or all timed on one and the same Gaussian path,
            each with `log_prob` in its `at(t)`, and then the result is the exactly noised mixture.
            One event shape.
        weights: w, positive; they are normalised here.
        log_partition: For static fields with an energy E_i instead, the `log Z_i` of
            `p_i = exp(-E_i) / Z_i`, such as `scoretk.log_partition` estimates; an error in it
            shifts the log weight of its component by as much.

    Returns:
        A field, timed or static as its components are.

    Raises:
        InvalidArgument: The fields do not fit together, or an argument is out of its range.
        MissingCapability: A component has no normalised density, or a timed one no Gaussian path.
    """
    if isinstance(fields, Sequence) and not isinstance(fields, str):
        fields = in_one_space(fields, all_or_none=True)
    timed, members = fitting("fields", fields, "mixture"), tuple(fields)
    space = shared_map("fields", members)
    if space is not None:
        return space.around(mixture([f.field for f in members], weights, log_partition))
    shares = [positive("weights", w) for w in _numbers("weights", weights, len(members))]
    logs = tuple(math.log(w / math.fsum(shares)) for w in shares)
    if timed:
        if log_partition is not None:
            raise InvalidArgument(
                "log_partition", log_partition, "None for timed fields, whose constants vary with t"
            )
        for f in members:
            _demand(f, f.at(0.5), "log_prob", "at(t)")
        return MixtureTimed(members, logs)
    if log_partition is None:
        for f in members:
            _demand(f, f, "log_prob", "the field")
        return Mixture(members, logs)
    constants = tuple(
        finite("log_partition", v) for v in _numbers("log_partition", log_partition, len(members))
    )
    for f in members:
        _demand(f, f, "energy", "the field")
    return Mixture(members, logs, constants)


def _numbers(name: str, values: Any, n: int) -> list[Any]:
    listed = values.tolist() if isinstance(values, Tensor) else values
    if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != n:
        raise InvalidArgument(name, values, f"{n} numbers, one a field")
    return list(listed)


def _demand(field: Any, asked: Any, what: str, where: str) -> None:
    if what not in offers(asked):
        raise MissingCapability(
            field_name(field),
            offers(asked),
            {what},
            f"A mixture compares normalised densities: {where} needs {what}. For static energies "
            "give log_partition; without densities draw from each field the share of the samples "
            "that is its weight, which is exact",
        )


@dataclass(frozen=True, eq=False)
class Mixture(Members):
    """A static mixture `sum_i w_i p_i`.

    Attributes:
        fields: The components.
        log_weights: log w_i, normalised.
        log_partition: log Z_i of components with energies; None where they have `log_prob`.
    """

    fields: tuple[Any, ...]
    log_weights: tuple[float, ...]
    log_partition: tuple[float, ...] | None = None

    kind = Kind.MIXTURE
    computed = frozenset({"energy", "score", "log_prob"})

    def joint(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`log(w_i p_i(x))`, `(batch, fields)`.

        A component that is NaN, as outside a support, has density 0 there, unless all are NaN.
        """
        if self.log_partition is None:
            logs = [f.log_prob(x, **own) for f, own in self.told(cond)]
        else:
            logs = [
                -f.energy(x, **own) - z
                for (f, own), z in zip(self.told(cond), self.log_partition, strict=True)
            ]
        joint = torch.stack([p + w for p, w in zip(logs, self.log_weights, strict=True)], 1)
        absent = joint.isnan()
        return torch.where(absent & ~absent.all(1, keepdim=True), -torch.inf, joint)

    def log_prob(self, x: Tensor, **cond: Tensor) -> Tensor:
        """The normalised log density, `(batch,)`."""
        return torch.logsumexp(self.joint(x, **cond), 1)

    def energy(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`-log p(x)`, `(batch,)`."""
        return -self.log_prob(x, **cond)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """`sum_i r_i score_i(x)`, like x."""
        return -self.energy_and_grad(x, **cond)[1]

    def energy_and_grad(self, x: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """`-log p(x)`, `(batch,)`, and its gradient, like x."""
        joint = self.joint(x, **cond)
        return -torch.logsumexp(joint, 1), -_shared(
            joint, [self._score(f, x, own) for f, own in self.told(cond)]
        )

    def _score(self, field: Any, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        if offers(field) & {"energy", "score"}:
            return static(field).score(x, **cond)
        return -grad_energy(lambda y: -field.log_prob(y, **cond), x)[1]


@dataclass(frozen=True, eq=False)
class MixtureTimed(OfMany):
    """The noised mixture: denoisers averaged in the shares of the noised densities.

    Attributes:
        fields: The components.
        log_weights: log w_i, normalised.
    """

    fields: tuple[Any, ...]
    log_weights: tuple[float, ...]

    kind = Kind.MIXTURE
    predicts = "data"

    def predict(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`sum_i r_i D_i(x, t)`, like x."""
        return _shared(self.at(t).joint(x, **cond), [f.denoise(x, t) for f in self.views(cond)])

    def score(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`sum_i r_i score_i(x, t)`, like x; at sigma = 0 too where the components have it."""
        return self.at(t).score(x, **cond)

    def log_prob_at(self, x: Tensor, t: float | Tensor, **cond: Tensor) -> Tensor:
        """`log p_t(x)`, `(batch,)`."""
        return self.at(t).log_prob(x, **cond)

    def at(self, t: float | Tensor) -> Mixture:  # type: ignore[override]
        """The static mixture of the fields at time t, normalised."""
        return Mixture(tuple(f.at(t) for f in self.fields), self.log_weights)


def _shared(joint: Tensor, values: Iterable[Tensor]) -> Tensor:
    """`sum_i r_i v_i` with the shares `r = softmax(joint)`.

    A value whose share is 0 may be infinite.

    Args:
        joint: `(batch, fields)`.
        values: For each field a tensor `(batch, *event_shape)`.

    Returns:
        `(batch, *event_shape)`.
    """
    shares = torch.softmax(joint, 1).unbind(1)  # of the fields' dtype, which may be another
    pairs = ((across(r, v).to(v.dtype), v) for r, v in zip(shares, values, strict=True))
    return reduce(add, (torch.where(r == 0, 0, r * v) for r, v in pairs))
