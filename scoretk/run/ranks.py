"""The processes of one job (`torchrun`, torch.distributed): who runs which batch, what they tell.

Inside `distributed` every rank makes the same calls. The unit of work is the batch: ranks claim the
numbers of batches from the store of the process group, an atomic addition each, so that what a
batch is depends on `batch=` and on nothing else, and a slow rank claims fewer. What warmup has tuned
goes through the store; what became of the batches is broadcast when all are over, so that every
rank returns what one process would have.

Ranks that hold one model together (`model_group`: FSDP, tensor parallel) are a *team*. Its first
rank, the leader, claims for all of them, and they make the same steps.

While ranks work or wait they say so, and look for the others (`scoretk.run.heartbeat`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scoretk.core.arguments import positive
from scoretk.core.identity import Identity, differences
from scoretk.core.ranks import Ranks
from scoretk.core.sealed import from_bytes, to_bytes
from scoretk.errors import InvalidArgument, RankFailure, ScoretkError
from scoretk.run.group import (
    TIMEOUT,
    broadcast,
    check_apart,
    dist,
    forms,
    gathered,
    is_lost,
    joined,
    kind_on,
)
from scoretk.run.heartbeat import BEGIN, END, Heartbeat
from scoretk.run.messages import Answering, StoreThread, lost, packed, unpacked
from scoretk.run.teams import agree_on_team, lies_on, team_of

__all__ = ["Alone", "Share", "check_team", "distributed", "shared_call", "shares", "unshared"]

FAREWELL = 3.0
"""The most seconds that a rank with an error waits for the others to end with it: those that start
processes end all that are left when the first one fails.
"""
PART = 4 << 20
"""The most bytes that go through the store at once: it closes the connection of who sends more than 8 MiB."""
CPU = torch.device("cpu")

Outcome = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Job:
    """The processes between which calls are shared.

    Args:
        ranks: Where this one stands.
        team: The ranks that hold one model together with this one, the leader first.
        store: What all of them read and write.
        timeout: As in `distributed`.
        calls: Counts the calls that were shared, alike on every rank.
        changed: Names of parts of fields that calls have changed on any rank, such as a counter.
        known: The errors of calls that all ranks know of.
        thread: Asks the store; None in a process by itself, whose store is its own.
    """

    ranks: Ranks
    team: tuple[int, ...]
    store: Any
    timeout: float
    thread: StoreThread | None = None
    calls: Iterator[int] = field(default_factory=count)
    changed: set[str] = field(default_factory=set)
    known: list[BaseException] = field(default_factory=list)


_JOB: ContextVar[_Job | None] = ContextVar("scoretk_job", default=None)


@contextmanager
def distributed(model_group: Any = None, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """A context in which the processes of a job share the batches of `sample`.

    Every rank makes the same calls, and gets the same draws as one process with that `batch=`, to
    the bit, at any number of ranks. They are those that `torchrun` has started, or of a process
    group of torch.distributed that is there already; in a plain process the context does nothing
    but give `batch` its default.

    An error on one rank is raised on all. Within another such context it is that one: with its team,
    and with its timeout.

    Args:
        model_group: The ranks that hold this rank's copy of the model together, a process group or
            a one-dimensional `DeviceMesh`: for networks that one device does not hold (FSDP, tensor
            parallel). None where each rank has a model of its own.
        timeout: The seconds after which a rank without a heartbeat is named, and the job ends. A step,
            and whatever a rank does alone between two calls, has to be shorter.

    Yields:
        The number of this rank, how many there are, and its device.

    Raises:
        InvalidArgument: The ranks make different calls, or `model_group` is none, or not that of the
            context around this one.
        RankFailure: A rank hangs or has ended.
    """
    positive("timeout", timeout)
    outer = _JOB.get()
    if outer is not None:  # within a function that shares on its own account
        team = outer.team if model_group is None else team_of(model_group, outer.ranks.rank)
        if team != outer.team:
            around = f"{list(outer.team)}, the ranks that the context around this one has"
            raise InvalidArgument("model_group", list(team), f"None or {around}")
        yield outer.ranks
        return
    with joined(timeout) as (ranks, store):
        if store is None:
            raise ScoretkError("this build of torch has no torch.distributed")
        thread = StoreThread(timeout) if ranks.world_size > 1 else None
        job = _Job(ranks, team_of(model_group, ranks.rank), store, timeout, thread)
        begin, end = (_Shared(job, name) for name in (BEGIN, END))  # a wait each: own heartbeats
        token = _JOB.set(job)
        try:
            with end.failing_together():
                asked = Answering(store, thread)
                check_apart(ranks, asked)
                agree_on_team(job.team, asked, ranks)
                begin.meet("with its team")  # within its first step none hears of a refusal
                yield ranks
                end.meet("at the end")
        finally:
            _JOB.reset(token)
            if thread is not None:
                thread.close()


def check_team(parts: Iterable[Any]) -> None:
    """Refuse a model that lies on ranks which are not said to hold it together.

    Each would run a batch of its own, and what they send one another in a step would mix the two.

    Args:
        parts: All that the model is made of.

    Raises:
        InvalidArgument: There is such a tensor or module.
    """
    job = _JOB.get()
    for part in () if job is None else parts:
        place = lies_on(part)
        if job is not None and not {*place} <= {*job.team}:
            expected = f"the group of ranks {place}, on which the field's network lies"
            wrapped = "or the module without its wrapper, net.module, where each has all of it"
            hint = f"distributed(model_group=mesh){f', {wrapped}' if isinstance(part, nn.Module) else ''}"
            raise InvalidArgument("model_group", job.team, expected, hint)


def shares() -> bool:
    """Whether this process shares its calls, as inside `distributed`."""
    return _JOB.get() is not None


@contextmanager
def unshared() -> Iterator[None]:
    """A context in which calls are this process's own, as where each rank has other data."""
    token = _JOB.set(None)
    try:
        yield
    finally:
        _JOB.reset(token)


class Share(Protocol):
    """This process's share of a call.

    Attributes:
        alone: Whether it is all of it.
        first: Whether this is the first process, which makes folders and shows how far the call is.
        leads: Whether this process is the first one of its team, which writes its files.
        steady: Whether other processes make the same steps at the same time.
    """

    alone: bool
    first: bool
    leads: bool
    steady: bool

    def claims(self, batches: int) -> Iterator[int]: ...

    def publish(self, name: str, tensors: Outcome) -> None: ...

    def fetch(self, name: str, place: torch.device = CPU) -> Outcome: ...

    def pulse(self, batch: int, step: int, made: int) -> int: ...

    def agreed(self, value: Any) -> Any: ...

    def once(self, name: str, make: Callable[[], object]) -> None: ...

    def meet(self, where: str) -> None: ...

    def collected(
        self, mine: Mapping[int, Outcome], batches: int, place: torch.device
    ) -> Iterator[Outcome]: ...


class Alone:
    """All of a call."""

    alone, first, leads, steady = True, True, True, False

    def __init__(self) -> None:
        self._made, self._published = 0, dict[str, Outcome]()

    def claims(self, batches: int) -> Iterator[int]:
        """The numbers of the batches to run, in order."""
        return iter(range(batches))

    def publish(self, name: str, tensors: Outcome) -> None:
        """Give tensors to those who ask for them by this name."""
        self._published[name] = tensors

    def fetch(self, name: str, place: torch.device = CPU) -> Outcome:
        """What was published under a name; waits for it.

        Args:
            name: The name.
            place: The device of this process's state; what is on the CPU where it was published
                stays there.
        """
        return self._published[name]

    def pulse(self, batch: int, step: int, made: int) -> int:
        """Say that `made` steps were made, in a batch that is now after `step`.

        Returns:
            How many steps the call has made so far.
        """
        self._made += made
        return self._made

    def agreed(self, value: Any) -> Any:
        """A plain value as the leader of the team has it."""
        return value

    def once(self, name: str, make: Callable[[], object]) -> None:
        """Do by one process what all need done before they go on.

        Args:
            name: What it is, of which there is one in a call.
            make: Does it.
        """
        make()

    def meet(self, where: str) -> None:
        """Wait until every process is here."""

    def collected(
        self, mine: Mapping[int, Outcome], batches: int, place: torch.device
    ) -> Iterator[Outcome]:
        """What became of every batch, in order.

        Args:
            mine: What became of those that ran here, by number.
            batches: How many there are.
            place: The device of this process's state; what other ranks have on the CPU stays there.
        """
        return (mine[i] for i in range(batches))


@contextmanager
def shared_call(settings: Mapping[str, Any], identity: Identity | None) -> Iterator[Share]:
    """A context for one call, of which this process has a share; an error in it reaches all ranks.

    Args:
        settings: What the call is, plain values, which are the same on every rank.
        identity: What field and solver are made of, which is as well; None in a process that
            shares nothing.

    Raises:
        InvalidArgument: They are not.
    """
    job = _JOB.get()
    if job is None or identity is None:
        yield Alone()
        return
    share = _Shared(job, str(next(job.calls)))
    with share.failing_together():
        share.check(settings, identity)
        yield share


class _Shared:
    """A share of a call that the ranks of a job make together; methods as in `Alone`.

    Args:
        job: The processes.
        call: The name of the call, the same on every rank.
    """

    def __init__(self, job: _Job, call: str) -> None:
        self.job, self.call = job, call
        self.rank, self.world_size = job.ranks.rank, job.ranks.world_size
        self.alone, self.first = False, self.rank == 0
        self.leads, self.steady = self.rank == job.team[0], len(job.team) > 1
        self.store = Answering(dist.PrefixStore(call, job.store), job.thread)
        of_all = Answering(job.store, job.thread)
        self.heartbeat = Heartbeat(
            (self.store, of_all), job.ranks, call, job.timeout, known=job.known
        )
        self._published, self._turns, self._made = dict[str, Outcome](), count(), 0
        self.identity: Identity | None = None

    def check(self, settings: Mapping[str, Any], identity: Identity) -> None:
        """Refuse a call that is not the one that the first rank to come here makes."""
        self.identity, summary = identity, identity.summary(self.job.changed)
        self.heartbeat.begin()
        ours = json.dumps([self.rank, settings, summary])
        rank, theirs, made_of = json.loads(self.store.compare_set("call", "", ours))
        _, here, summary = json.loads(ours)
        other = [
            f"{name}: {theirs.get(name)!r:.80} there, {here.get(name)!r:.80} here"
            for name in {**theirs, **here}
            if json.dumps(theirs.get(name)) != json.dumps(here.get(name))
        ] + differences(made_of, summary)
        if other:
            raise InvalidArgument(
                "distributed",
                f"another one on rank {self.rank}",
                "the same call on every rank",
                f"What rank {rank} has there, and rank {self.rank} here: {'; '.join(other)}. Build "
                f"the field alike on all (seeds, weights); a call of one rank's own stands outside",
            )

    def claims(self, batches: int) -> Iterator[int]:
        while (i := self.agreed_on(lambda: self.store.add("claims", 1) - 1)) < batches:
            self.heartbeat.beat(f"the start of batch {i}")
            yield i

    def publish(self, name: str, tensors: Outcome) -> None:
        self._published[name] = tensors
        if self.leads:
            placed = {f"{value.device.type}/{n}": value for n, value in tensors.items()}
            self._set_in_parts(f"published/{name}", to_bytes(placed))

    def fetch(self, name: str, place: torch.device = CPU) -> Outcome:
        if name not in self._published:
            placed = from_bytes(self._got_in_parts(f"published/{name}"))
            parts = {n: n.partition("/") for n in placed}
            self._published[name] = {
                parts[n][2]: value.to(kind_on(parts[n][0], place)) for n, value in placed.items()
            }
        return self._published[name]

    def pulse(self, batch: int, step: int, made: int) -> int:
        self._made += made
        self.heartbeat.beat_if_due(f"step {step} of batch {batch}")
        return self._made

    def agreed(self, value: Any) -> Any:
        return self.agreed_on(lambda: value)

    def once(self, name: str, make: Callable[[], object]) -> None:
        if self.store.add(f"begun/{name}", 1) == 1:
            make()
            self.store.set(f"done/{name}", b"1")
        else:
            self._waited_for(f"done/{name}")

    def agreed_on(self, made: Callable[[], Any]) -> Any:
        """What the leader of the team makes, on each of its ranks."""
        if not self.steady:
            return made()
        name = f"team {self.job.team[0]}/{next(self._turns)}"
        if not self.leads:
            return json.loads(self._waited_for(name))
        value = made()
        self.store.set(name, json.dumps(value))
        return value

    def collected(
        self, mine: Mapping[int, Outcome], batches: int, place: torch.device
    ) -> Iterator[Outcome]:
        if self.leads:
            self.store.add("over", len(mine))
        self.heartbeat.until(lambda: self.store.add("over", 0) >= batches, "for the other batches")
        self.meet("with all batches")
        if self.world_size == 1:
            return (mine[i] for i in range(batches))
        return self._exchanged(mine, batches, place)

    def _exchanged(
        self, mine: Mapping[int, Outcome], batches: int, place: torch.device
    ) -> Iterator[Outcome]:
        ours = {i: forms(outcome) for i, outcome in mine.items()} if self.leads else {}
        changed = [] if self.identity is None else list(self.identity.changing())
        try:
            told = [json.loads(part) for part in gathered(json.dumps([ours, changed]).encode())]
            self.job.changed.update(*(names for _, names in told))
            whose = {int(i): (rank, each[i]) for rank, (each, _) in enumerate(told) for i in each}
            for i in range(batches):
                rank, form = whose[i]
                yield {
                    name: broadcast(mine.get(i, {}).get(name), kind, rank, place)
                    for name, kind in form.items()
                }
        except RuntimeError as error:
            if not is_lost(error):  # such as too little memory for the draws
                raise
            raise RankFailure(f"the ranks cannot send each other their draws: {error}") from error

    def meet(self, where: str) -> None:
        """Wait until every rank is here."""
        self.store.add(where, 1)
        self.heartbeat.until(
            lambda: self.store.add(where, 0) >= self.world_size, f"for all to be {where}"
        )

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A context in which the first error of any rank is raised on all of them."""
        try:
            yield
        except BaseException as error:
            own = lost(error, self.heartbeat.silence()) if is_lost(error) else error
            try:
                first = self._first(own)
            except dist.DistError:  # nobody can be told any more
                first = own
            if first is error:
                raise
            raise first from error

    def _first(self, error: BaseException) -> BaseException:
        """The first error of this call.

        Whose it is waits a little until the other ranks have it, and so does rank 0 at the end of
        all, which may keep the store that they hear it from.
        """
        known = any(error is other for other in self.job.known)
        first = unpacked(
            self.store.compare_set("error", "", packed(error, self.rank)), self.rank, error
        )
        self.store.add("ended", 1)
        waits = (first is error and not known) or (self.rank == 0 and self.call == END)
        over = time.monotonic() + (FAREWELL if waits else 0.0)
        while self.store.add("ended", 0) < self.world_size and time.monotonic() < over:
            time.sleep(FAREWELL / 60)
        self.job.known.append(first)
        return error if known else first

    def _waited_for(self, name: str) -> bytes:
        self.heartbeat.until(lambda: self.store.check([name]), f"for {name}")
        found: bytes = self.store.get(name)
        return found

    def _set_in_parts(self, name: str, content: bytes) -> None:
        """Write bytes, however many: how many parts they have last, so that who finds it finds all."""
        starts = range(0, len(content), PART)
        for i, start in enumerate(starts):
            self.store.set(f"{name}/{i}", content[start : start + PART])
        self.store.set(name, str(len(starts)))

    def _got_in_parts(self, name: str) -> bytes:
        parts = range(int(self._waited_for(name)))
        return b"".join(self.store.get(f"{name}/{i}") for i in parts)
