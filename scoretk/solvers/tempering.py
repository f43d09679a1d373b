r"""Parallel tempering: replicas at rising temperatures, of which neighbours swap places.

So modes far apart are visited. Each chain has K replicas at inverse temperatures ("places") 1 = b_1
> ... > b_K, whose joint law is `prod_k p(x_k)^(b_k)`. A step moves every replica by a kernel that
leaves `exp(-b_k E)` as it is, all of them as rows of one batch, in coordinates y with `x = y /
sqrt(b_k)`, in which modes are about as wide at every temperature: one step size serves all. Then
neighbours swap with

    probability min(1, exp((b_i - b_(i+1)) (E(x_i) - E(x_(i+1)))))

the pairs (1, 2), (3, 4), ... at even steps, the pairs (2, 3), (4, 5), ... at odd ones, so that a
replica that is on its way up or down goes on instead of diffusing. Where there are two places only,
they swap at every step.

The ladder. With r_k the mean rejection of the swap of places k and k + 1, the barrier up to place k
is L_k = r_1 + ... + r_(k-1). At the end of each window of warmup the places are put where the
barrier, interpolated linearly in log b, is even between the same ends: then all neighbours swap
equally often. The windows double in length; after the last one the ladder stays as it is.

What the reports say. A mean of "swap" near 1/2 is best for the cost; much less asks for more
replicas, much more for fewer or hotter ones. A round trip ends when a replica arrives at the first
place that has been at the last one since it was there: it brings a start that is independent of the
modes. With kernels that forget the energy from one swap to the next the mean of "round_trips" is

    1 / (2 + 2 sum_k r_k / (1 - r_k)),    or 1 - r_1 with two places,

at most 1/2 for any K above 2. A mean far below that says that each replica stays in its mode's
range of energies: more `kernel_steps` help, or a hotter end. A mean of 0 says that draws have not
forgotten where they started.

References:
    Geyer, "Markov chain Monte Carlo maximum likelihood" (1991).
    Hukushima, Nemoto, "Exchange Monte Carlo method and application to spin glass simulations"
    (1996).
    Okabe, Kawata, Okamoto, Mikami, "Replica-exchange Monte Carlo method for the isobaric-isothermal
    ensemble" (2001), for the order of swaps.
    Syed, Bouchard-Cote, Deligiannidis, Doucet, "Non-reversible parallel tempering: a scalable
    highly parallel MCMC scheme" (2022), for the barrier, the ladder and the rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from scoretk.core.arguments import counts, finite
from scoretk.core.devices import constant_like
from scoretk.core.rows import across
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.bridge import Bridge, Stretched, states_of
from scoretk.fields.protocols import NoiseSource
from scoretk.fields.resolve import StaticField
from scoretk.fields.wrapped import Kind, Wrapped
from scoretk.solvers.base import Info, TunedSolver, adapts, traits
from scoretk.solvers.hmc import HMC
from scoretk.solvers.parts.nested import NestedNoise, as_kernel, with_step_size
from scoretk.solvers.warmup.adaptation import Adaptation
from scoretk.solvers.warmup.ladder import TemperatureLadder
from scoretk.solvers.warmup.learning import Trial
from scoretk.solvers.warmup.plan import takes_pilot
from scoretk.solvers.warmup.tuned import Tunable

__all__ = ["ParallelTempering", "swap_log_ratio"]

SHARED = frozenset({"step", "step_size", "inverse_temperatures"})


class TemperingState(NamedTuple):
    """The state of `ParallelTempering`.

    `x` is the position at the first place, `(chains, *event_shape)`. By place, `(chains, K, ...)`,
    are the positions of all replicas, their energies at temperature 1 and the gradients of these,
    and whether the replica has been at the last place since it was at the first (`from_hottest`).
    Then the index of the next step, and what warmup tunes: the kernel's step size `()`, NaN where
    it has none, and b `(K,)`.
    """

    x: Tensor
    replicas: Tensor
    energy: Tensor
    grad: Tensor
    from_hottest: Tensor
    step: Tensor
    step_size: Tensor
    inverse_temperatures: Tensor

    @property
    def shared(self) -> frozenset[str]:
        """Names of the leaves that all chains share."""
        return SHARED


class Seen(NamedTuple):
    """What warmup sees of a step.

    The kernel's acceptance, `(chains, K)`, and the probability that neighbours swap, `(chains, K -
    1)`.
    """

    accept: Tensor
    swap: Tensor


@dataclass(frozen=True, eq=False)
class Evaluated(Wrapped):
    """A field at rows whose energy and gradient are known, so that a kernel starts at no cost."""

    field: Any
    here: tuple[Tensor, Tensor]

    kind = Kind.VIEW
    computed = frozenset({"energy", "score"})

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    def energy(self, x: Tensor) -> Tensor:
        """The known energy, `(batch,)`."""
        return self.here[0]

    def score(self, x: Tensor) -> Tensor:
        """Minus the known gradient, like x."""
        return -self.here[1]

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The known energy and its gradient."""
        return self.here


class Rows(NamedTuple):
    """All replicas as rows `(chains * K, ...)`.

    Their inverse temperatures b `(chains * K,)`, the scale in `x = scale y`, and the law of y.
    """

    beta: Tensor
    scale: Tensor
    target: StaticField


def _of_rows(rows: Rows, grad: Tensor) -> Tensor:
    """What gradients at temperature 1, of a dtype, are multiplied by in the rows' coordinates."""
    return across(rows.beta.to(grad.dtype), grad) * rows.scale


def swap_log_ratio(energy: Tensor, beta: Tensor) -> Tensor:
    """The log ratio of densities after and before the swap of places i and i + 1.

    Args:
        energy: Energies at temperature 1 of the replicas by place, `(chains, K)`.
        beta: Inverse temperatures, `(K,)`.

    Returns:
        `(b_i - b_(i+1)) (E(x_i) - E(x_(i+1)))`, `(chains, K - 1)`.
    """
    return (beta[:-1] - beta[1:]) * (energy[:, :-1] - energy[:, 1:])


@takes_pilot
@dataclass(frozen=True)
class ParallelTempering(Tunable):
    """Parallel tempering over an exact kernel, for laws whose modes are far apart.

    All replicas start where the chain starts. Reports "accept" and "energy" of the replica at the
    first place; "swap", the mean probability of the swaps tried; "round_trips", 1 where one ends
    with this step, else 0. A swap with an energy that is not finite is rejected.

    Args:
        kernel: An exact kernel or its name, such as HMC, NUTS or MALA, or GibbsWithGradients for
            discrete states (where x is not scaled). Its step size, where None, is tuned in warmup
            for all replicas together.
        replicas: K, from temperature 1 to the hottest, at first in equal ratios; warmup then finds
            the ladder.
        hottest: The temperature of the last place, above 1. At temperature T a barrier of height T
            is crossed easily; `p^(1/T)` must have a finite integral. (With 20, eight replicas swap
            one time in ten in 64 dimensions; with 100, one in a hundred.)
        temperatures: Rising from 1, a ladder that stays as it is, in place of `replicas` and
            `hottest`; or None.
        kernel_steps: How many steps the kernel makes between swaps.

    Raises:
        InvalidArgument: For a kernel with a temperature of its own, with more to tune than a step
            size, or whose state does not hold energy and gradient.
    """

    kernel: Any = dataclass_field(default_factory=lambda: HMC(leapfrogs=5, metric="none"))
    replicas: int = 8
    hottest: float = 20.0
    temperatures: tuple[float, ...] | None = None
    kernel_steps: int = 1

    reports: ClassVar[tuple[str, ...]] = ("accept", "energy", "swap", "round_trips")
    timed: ClassVar[bool | None] = False
    capturable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", as_kernel(self.kernel))
        if adapts(with_step_size(self.kernel, 1.0)):
            advice = "Such as HMC(leapfrogs=5, metric='none')"
            raise InvalidArgument(
                "kernel", self.kernel, "a kernel with nothing to tune but its step size", advice
            )
        counts(self, replicas=2)
        if finite("hottest", self.hottest) <= 1:
            raise InvalidArgument("hottest", self.hottest, "a temperature above 1")
        if self.temperatures is not None:
            if not isinstance(self.temperatures, tuple | list):
                raise InvalidArgument(
                    "temperatures", self.temperatures, "a tuple of numbers, or None"
                )
            rising = tuple(finite("temperatures", t) for t in self.temperatures)
            if (
                len(rising) < 2
                or rising[0] != 1
                or any(low >= high for low, high in pairwise(rising))
            ):
                raise InvalidArgument(
                    "temperatures", rising, "two numbers or more that begin with 1 and rise"
                )
            object.__setattr__(self, "temperatures", rising)
        counts(self, kernel_steps=1)

    @property
    def needs(self) -> frozenset[str]:
        """What the kernel needs."""
        needs: frozenset[str] = self.kernel.needs
        return needs

    @property
    def varying(self) -> tuple[str, ...]:
        """The kinds of the evaluations that the kernel reports."""
        return traits(self.kernel).varying

    @property
    def init_cost(self) -> Mapping[str, int]:
        """The cost of the kernel's `init` once: all replicas start at the same point."""
        cost: Mapping[str, int] = self.kernel.init_cost
        return cost

    @property
    def step_cost(self) -> Mapping[str, int]:
        """The cost of the kernel's steps for all replicas; swaps cost nothing."""
        return {
            kind: self._places * self.kernel_steps * n for kind, n in self.kernel.step_cost.items()
        }

    @property
    def adaptation(self) -> Adaptation:
        """The kernel's step size, common to all replicas, and the ladder, where not given."""
        step_size = self.kernel.adaptation.parts if isinstance(self.kernel, TunedSolver) else ()
        return Adaptation(
            (*step_size, *(() if self.temperatures is not None else (TemperatureLadder(),)))
        )

    @property
    def _places(self) -> int:
        return self.replicas if self.temperatures is None else len(self.temperatures)

    @property
    def _tunes_step_size(self) -> bool:
        return traits(self.kernel).step_size is None

    def _ladder(self) -> Tensor:
        if self.temperatures is not None:
            return 1 / torch.tensor(self.temperatures, dtype=torch.float64)
        return self.hottest ** -torch.linspace(0, 1, self.replicas, dtype=torch.float64)

    def init(self, field: StaticField, x: Tensor, noise: NoiseSource) -> TemperingState:
        start, k = self.kernel.init(field, x, noise), self._places
        shapes = [getattr(getattr(start, name, None), "shape", None) for name in ("energy", "grad")]
        if shapes != [x.shape[:1], x.shape]:  # one of this class holds those of all its replicas
            raise InvalidArgument(
                "kernel",
                self.kernel,
                "a kernel whose state holds energy and grad of its x, as that of HMC does",
            )
        own = (start.x, start.energy, start.grad)
        replicas, energy, grad = (v.repeat_interleave(k, 0).unflatten(0, (len(x), k)) for v in own)
        from_hottest = (torch.arange(k, device=x.device) == k - 1).repeat(len(x), 1)
        named = traits(self.kernel).step_size
        size = torch.tensor(1.0 if named is None else named, dtype=torch.float64)
        step = torch.zeros((), dtype=torch.int64)
        return TemperingState(
            start.x, replicas, energy, grad, from_hottest, step, size, self._ladder()
        )

    def step(
        self, field: StaticField, state: TemperingState, noise: NoiseSource
    ) -> tuple[TemperingState, Info]:
        return self._stepped(field, state, noise)[:2]

    def first_step(
        self, field: StaticField, state: TemperingState, noise: NoiseSource, alive: Tensor
    ) -> tuple[float, int]:
        """As `Tunable.first_step`: that of the kernel, from all replicas."""
        kernel: Any = self.kernel
        k = self._places
        inner, rows = NestedNoise(noise, 0, k), self._rows(field, state)
        start = self._started(rows, state, inner)
        size, tried = kernel.first_step(rows.target, start, inner, alive.repeat_interleave(k))
        return size, tried * k

    def trial(
        self, field: StaticField, state: TemperingState, noise: NoiseSource, shorter: Tensor
    ) -> Trial:
        """As `Tunable.trial`, with `shorter` `(chains, K)`.

        `Trial.seen` is the probability that neighbours swap, `(chains, K - 1)`.
        """
        state, info, seen = self._stepped(field, state, noise, shorter)
        return Trial(state, info, seen.accept, seen.swap)

    def _stepped(
        self,
        field: StaticField,
        state: TemperingState,
        noise: NoiseSource,
        shorter: Tensor | None = None,
    ) -> tuple[TemperingState, Info, Seen]:
        """One step; in warmup `shorter` `(chains, K)` are factors on the kernel's step size."""
        rows = self._rows(field, state, shorter)
        inner = NestedNoise(noise, int(state.step) * self.kernel_steps, self._places)
        kernel, moved = self._kernel(state), self._started(rows, state, inner)
        accept, spent = torch.zeros_like(rows.beta), torch.zeros_like(rows.beta, dtype=torch.int64)
        for _ in range(self.kernel_steps):
            moved, info = kernel.step(rows.target, moved, inner)
            accept = accept + info["accept"] / self.kernel_steps
            spent = spent + info.get("evaluations", 0)
        accept, spent = accept.reshape_as(state.energy), spent.reshape_as(state.energy)
        state = state._replace(
            replicas=(rows.scale * moved.x).reshape_as(state.replicas),
            energy=(moved.energy / rows.beta).reshape_as(state.energy),
            grad=(moved.grad / _of_rows(rows, moved.grad)).reshape_as(state.grad),
        )
        state, swap, report = self._swapped(state, noise)
        report |= {"accept": accept[:, 0], "evaluations": spent.sum(1)}
        return state, report, Seen(accept, swap)

    def _kernel(self, state: TemperingState) -> Any:
        if self._tunes_step_size:
            return with_step_size(self.kernel, float(state.step_size))
        return self.kernel

    def _rows(
        self, field: StaticField, state: TemperingState, shorter: Tensor | None = None
    ) -> Rows:
        beta = constant_like(state.inverse_temperatures, state.energy).expand_as(state.energy)
        scale = torch.ones_like(beta) if states_of(field) is not None else beta.rsqrt()
        if shorter is not None and states_of(field) is None:
            scale = scale * shorter
        # energies may be of a wider dtype than positions
        of_x = scale.flatten().to(state.replicas.dtype)
        beta, scale = beta.flatten(), across(of_x, state.replicas.flatten(0, 1))
        cond = {
            name: value.repeat_interleave(self._places, 0) for name, value in field.cond.items()
        }
        tempered = field.view(Bridge(None, replace(field, cond=cond), beta), "tempered")
        return Rows(beta, scale, field.view(Stretched(tempered, scale), "stretched"))

    def _started(self, rows: Rows, state: TemperingState, noise: NoiseSource) -> Any:
        """The kernel's state at all replicas."""
        x, energy, grad = (v.flatten(0, 1) for v in (state.replicas, state.energy, state.grad))
        here = Evaluated(rows.target, (rows.beta * energy, _of_rows(rows, grad) * grad))
        return self._kernel(state).init(rows.target.view(here, "known"), x / rows.scale, noise)

    def _swapped(
        self, state: TemperingState, noise: NoiseSource
    ) -> tuple[TemperingState, Tensor, Info]:
        """The state after a round of swaps, the probability of each swap, and the report.

        The probabilities are those of all pairs of neighbours, tried or not, `(chains, K - 1)`.
        """
        k, dtype = self._places, state.energy.dtype
        beta = constant_like(state.inverse_temperatures, state.energy)
        log_ratio = swap_log_ratio(state.energy, beta)
        log_ratio = torch.where(log_ratio.isfinite(), log_ratio, -torch.inf)
        probability = log_ratio.clamp(max=0.0).exp()
        first = int(state.step) % 2 if k > 2 else 0
        tried = torch.arange(k - 1, device=log_ratio.device) % 2 == first
        u = noise.uniform(state.step, Stream.SWAP, (k - 1,), dtype)
        swaps = (tried & (u.log() < log_ratio)).long()
        source = torch.arange(k, device=swaps.device) + pad(swaps, (0, 1)) - pad(swaps, (1, 0))
        chain = torch.arange(len(source), device=swaps.device)[:, None]
        replicas, energy, grad, from_hottest = (v[chain, source] for v in state[1:5])
        arrived = from_hottest[:, 0].to(dtype)
        from_hottest[:, 0], from_hottest[:, -1] = False, True
        info = {
            "energy": energy[:, 0],
            "swap": probability[:, first::2].mean(1),
            "round_trips": arrived,
        }
        moved = TemperingState(
            replicas[:, 0], replicas, energy, grad, from_hottest, state.step + 1, *state[6:]
        )
        return moved, probability, info
