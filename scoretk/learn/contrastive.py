r"""Contrastive divergence: learning an energy with the model's own samples as negatives.

    grad_theta (-log p(x+)) = grad_theta E(x+) - E_{x- ~ p} grad_theta E(x-)

The negatives x- come from the same solvers and the same loop as all samples of this package: k
steps from the data (CD-k), from noise, or from a replay buffer (persistent).

References:
    Hinton, "Training products of experts by minimizing contrastive divergence" (2002).
    Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
    gradient" (2008).
    Du, Mordatch, "Implicit generation and modeling with energy-based models" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretk.core.arguments import conditions, count, counts, finite, fraction, tensor_like
from scoretk.core.modules import as_networks_take, check_place, left_as_found
from scoretk.core.noise import Noise, derive
from scoretk.core.rows import select_rows
from scoretk.core.streams import Stream
from scoretk.errors import ChainFailure, InvalidArgument, Status
from scoretk.fields.protocols import optional
from scoretk.fields.resolve import resolve
from scoretk.run.drive import drive
from scoretk.run.moment import Loop, Moment, begin
from scoretk.run.record import KeepLast
from scoretk.run.schedule import Schedule
from scoretk.solvers.parts.nested import settled_kernel

__all__ = ["CDStep", "ContrastiveDivergence", "ReplayBuffer"]


class CDStep(NamedTuple):
    """The outcome of a call of `ContrastiveDivergence`.

    `loss` is a scalar to call backward on, `negatives` `(batch, *event_shape)` are detached.
    """

    loss: Tensor
    negatives: Tensor


class ReplayBuffer:
    """Persistent chains: `size` slots, each the present state of one chain.

    A read takes distinct slots; of these a fraction `refresh` starts anew from noise; after
    sampling, each chain is written back to the slot that it was read from. So a lineage ends only
    by a refresh (or a failure), never by being overwritten.

    `samples` `(size, *event_shape)` are the chains, None before the first use; `age` `(size,)`
    counts the reads of each since its start from noise; `lineage` `(size,)` is a number that
    changes whenever a slot starts anew.

    Args:
        size: The number of slots.
        refresh: The share of the chains read that start anew, in [0, 1].
    """

    def __init__(self, size: int, refresh: float = 0.05) -> None:
        self.size = count("size", size, least=1)
        self.refresh = fraction("refresh", refresh)
        self.samples: Tensor | None = None
        self.age = torch.zeros(self.size, dtype=torch.int64)
        self.lineage = torch.arange(self.size)
        self._next_lineage = self.size

    def __repr__(self) -> str:
        return f"ReplayBuffer(size={self.size}, refresh={self.refresh})"

    def read(self, n: int, fresh: Any, noise: Noise) -> tuple[Tensor, Tensor]:
        """Choose slots at random, and start some of their chains anew.

        Args:
            n: How many slots, at most `size`.
            fresh: `fresh(slots)` -> `(m, *event_shape)`, new starts for these slots `(m,)`.
            noise: Noise with one chain for each slot.

        Returns:
            The distinct slots, `(n,)`, and the points to start from, `(n, *event_shape)`.

        Raises:
            InvalidArgument: Where n is larger than `size`.
        """
        if n > self.size:
            raise InvalidArgument(
                "batch", n, f"at most {self.size} rows, the slots of the replay buffer"
            )
        everything = torch.arange(self.size)
        if self.samples is None:
            self.samples = fresh(everything)
        keys = noise.uniform(0, Stream.REPLAY, (2,), torch.float64).cpu()
        slots = keys[:, 0].argsort()[:n]
        anew = slots[keys[slots, 1] < self.refresh]
        self.restart(anew, fresh)
        return slots, self.samples[slots.to(self.samples.device)]

    def restart(self, slots: Tensor, fresh: Any) -> None:
        """Start the chains of these slots anew, as new lineages."""
        if len(slots) == 0 or self.samples is None:
            return
        self.samples[slots.to(self.samples.device)] = fresh(slots)
        self.age[slots] = 0
        self.lineage[slots] = torch.arange(self._next_lineage, self._next_lineage + len(slots))
        self._next_lineage += len(slots)

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Put chains x, `(n, *event_shape)`, back into the slots `(n,)` that they came from."""
        assert self.samples is not None
        self.samples[slots.to(self.samples.device)] = x.to(self.samples)
        self.age[slots] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on exactly from here."""
        state = {
            "age": self.age,
            "lineage": self.lineage,
            "next_lineage": torch.tensor(self._next_lineage),
        }
        return state if self.samples is None else state | {"samples": self.samples}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`.

        Raises:
            InvalidArgument: For the state of a buffer of another size.
        """
        if len(state["age"]) != self.size:
            raise InvalidArgument(
                "state", state["age"], f"the state of a buffer of {self.size} slots"
            )
        self.age, self.lineage = state["age"].clone(), state["lineage"].clone()
        self._next_lineage = int(state["next_lineage"])
        self.samples = state["samples"].clone() if "samples" in state else None


@dataclass
class ContrastiveDivergence:
    """Contrastive divergence: `loss, negatives = cd(field, batch)`, or `cd(field, batch, cond)`.

    The loss is `mean E(batch) - mean E(negatives)`, whose gradient is that of contrastive
    divergence. Each call makes its own noise from the seed and its number, so training can be
    repeated and resumed exactly (`state_dict`). Chains that fail are left out of the loss and start
    anew.

    `last` is a dict that tells of the latest call: "energy_gap", mean E(negatives) - mean E(batch),
    near 0 where the negatives follow the data; "failed", the number of chains that failed;
    "accept", the mean acceptance, where the kernel reports it; "buffer_age", the mean age of a
    replay buffer.

    Args:
        solver: A kernel such as `ULA` or `MALA`, or its name, with nothing left to tune, as a call
            has no warmup.
        steps: How many steps the kernel makes in a call.
        start: "data" (CD-k), "noise", or a `ReplayBuffer` (persistent CD).
        seed: The seed of the random numbers, in [0, 2^64).
        energy_decay: The weight of `mean E(batch)^2 + mean E(negatives)^2`, which holds the
            energy's free constant and its scale.

    References:
        Du, Mordatch, "Implicit generation and modeling with energy-based models" (2019), for
        `energy_decay`.
    """

    solver: Any
    steps: int = 20
    start: str | ReplayBuffer = "data"
    seed: int = 0
    energy_decay: float = 0.0

    def __post_init__(self) -> None:
        self.solver = settled_kernel("solver", self.solver)
        counts(self, steps=1)
        named = isinstance(self.start, str) and self.start in ("data", "noise")
        if not named and not isinstance(self.start, ReplayBuffer):
            raise InvalidArgument("start", self.start, "'data', 'noise' or a ReplayBuffer")
        derive(self.seed, 0)  # refuses what is no seed
        if finite("energy_decay", self.energy_decay) < 0:
            raise InvalidArgument("energy_decay", self.energy_decay, "at least 0")
        self.calls = 0
        self.part = 0
        self.last: dict[str, float] = {}

    def __call__(
        self, field: Any, batch: Tensor, cond: Mapping[str, Tensor] | None = None
    ) -> CDStep:
        """One estimate of the gradient.

        Args:
            field: A static field with an energy.
            batch: Data, `(batch, *event_shape)`.
            cond: Condition values by name, a row for each of the data, such as their labels: each
                chain is under those of the datum at its place. Not with a `ReplayBuffer`.

        Returns:
            The loss and the negatives, a `CDStep`.

        Raises:
            MissingCapability: For a field without an energy.
            InvalidArgument: For a batch of another shape, or larger than the replay buffer, and for
                conditions that do not fit.
            ChainFailure: Where every chain failed, for then there is nothing to learn from.
        """
        resolve(field, {"energy"} | (self.solver.needs & {"states"}), timed=False)
        (data,) = as_networks_take(field, tensor_like("batch", batch, (None, *field.event_shape)))
        check_place(field, data.device)
        rows = self._conditions(cond, data)
        moment, slots = self._negatives(field, data, rows)
        negatives, fine = moment.state.x.detach(), moment.status == int(Status.OK)
        self._write_back(field, slots, moment, fine, data)
        if not bool(fine.any()):
            n = len(fine)
            raise ChainFailure(list(range(n)), moment.status.tolist(), moment.failed_at.tolist())
        alive = {name: value[fine] for name, value in rows.items()}
        positive = field.energy(data, **rows)
        negative = field.energy(negatives[fine], **alive)
        loss = positive.mean() - negative.mean()
        if self.energy_decay:
            loss = loss + self.energy_decay * (positive.square().mean() + negative.square().mean())
        self.calls += 1
        self._report(moment, fine, float(negative.detach().mean() - positive.detach().mean()))
        return CDStep(loss, negatives)

    def _conditions(self, cond: Mapping[str, Tensor] | None, data: Tensor) -> dict[str, Tensor]:
        rows = {
            name: value.to(data.device, data.dtype if value.is_floating_point() else value.dtype)
            for name, value in conditions(cond, len(data)).items()
        }
        if rows and isinstance(self.start, ReplayBuffer):
            hint = "Its chains were under the conditions of other batches: start='data' or 'noise'"
            raise InvalidArgument("cond", ", ".join(rows), "nothing with a ReplayBuffer", hint)
        return rows

    def _negatives(
        self, field: Any, data: Tensor, rows: dict[str, Tensor]
    ) -> tuple[Moment, Tensor | None]:
        n, slots = len(data), None
        if isinstance(self.start, ReplayBuffer):
            whole = self._noise(self.start.size, data)
            slots, x = self.start.read(n, lambda ids: self._fresh(field, ids, data), whole)
            ids = slots
        else:
            ids = torch.arange(n)
            x = data.detach() if self.start == "data" else self._fresh(field, ids, data)
        noise = self._noise(ids, data)
        with left_as_found(field), torch.no_grad():
            bound = resolve(field, self.solver.needs, rows, timed=self.solver.timed)
            start = begin(self.solver, bound, x.to(data), noise)
            schedule = Schedule(self.steps, kept=(True,) * self.steps)
            loop = Loop(self.solver, bound, noise, schedule, KeepLast())
            *_, moment = drive(loop, start)
        return moment, slots

    def _noise(self, chains: int | Tensor, like: Tensor) -> Noise:
        # part p has a seed of its own, under a number that no call has
        seed = derive(self.seed, 2**64 - self.part) if self.part else self.seed
        return Noise(
            derive(seed, self.calls),
            chains,
            device=like.device,
            dtype=like.dtype,
            window=self.steps,  # a call makes no more
        )

    def _fresh(self, field: Any, ids: Tensor, like: Tensor) -> Tensor:
        """Starts from noise, `(n, *event_shape)`: the field's own `initial`, else N(0, I)."""
        noise = self._noise(ids, like)
        initial = optional(field, "initial")
        if callable(initial):
            return initial(len(ids), noise).to(like)
        return noise.normal(0, Stream.START, tuple(field.event_shape), like.dtype)

    def _write_back(
        self, field: Any, slots: Tensor | None, moment: Moment, fine: Tensor, data: Tensor
    ) -> None:
        if slots is None or not isinstance(self.start, ReplayBuffer) or self.start.samples is None:
            return
        old = self.start.samples[slots.to(self.start.samples.device)].to(data)
        self.start.write(slots, select_rows(fine, moment.state.x.detach(), old))
        self.start.restart(slots[~fine.cpu()], lambda ids: self._fresh(field, ids, data))

    def _report(self, moment: Moment, fine: Tensor, gap: float) -> None:
        self.last = {"energy_gap": gap, "failed": float((~fine).sum())}
        if "accept" in moment.record.stats:
            self.last["accept"] = float(moment.record.stats["accept"][fine].mean()) / self.steps
        if isinstance(self.start, ReplayBuffer):
            self.last["buffer_age"] = float(self.start.age.float().mean())

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on exactly from here: the number of calls, and the buffer."""
        state = {"calls": torch.tensor(self.calls), "part": torch.tensor(self.part)}
        if isinstance(self.start, ReplayBuffer):
            state |= {f"buffer/{name}": value for name, value in self.start.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.calls, self.part = int(state["calls"]), int(state["part"])
        if isinstance(self.start, ReplayBuffer):
            self.start.load_state_dict(
                {n[7:]: v for n, v in state.items() if n.startswith("buffer/")}
            )

    def for_part(self, part: int) -> None:
        """Become part number `part` of a batch that is computed in parts.

        The parts share seed and settings; each has noise, and a replay buffer, of its own.
        """
        self.part = part
