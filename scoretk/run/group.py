"""The process group of a job: how its processes meet, and the tensors that they send one another."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import count
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arrays import as_bytes
from scoretk.core.ranks import Ranks
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument, RankFailure

__all__ = [
    "TIMEOUT",
    "Form",
    "broadcast",
    "carrier",
    "check_apart",
    "dist",
    "forms",
    "gathered",
    "is_lost",
    "joined",
    "kind_on",
    "of_machine",
]

TIMEOUT = 600.0
"""Seconds without a heartbeat after which a rank is said to hang."""

STARTED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables in which what starts processes says how many there are: torchrun, srun, Open MPI, MPICH."""

PLACES = (
    (None, "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_RANKID", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Variables in which what starts processes says the rank that it means (None where that is ours), the
number among those of the machine, and how many these are: torchrun, srun, Open MPI, MPICH.
"""
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

_ENTERED = count()
_STORES: dict[tuple[object, ...], Any] = {}
"""Stores that this process has met the others at, and how: kept, as who came to a next context would
ask one that another rank is about to close.
"""
dist: Any = torch.distributed
"""What it has depends on how torch was built, and most of that is not typed."""
Form = tuple[str, list[int], str]
"""The dtype, the shape and the kind of device of a tensor."""


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[tuple[Ranks, Any]]:
    """A context in which the processes that `torchrun` has started are one process group.

    A group that is there is used, and left as it is. Tensors on the CPU go by gloo, those on GPUs by
    NCCL where each process of a machine has one of its own. A plain process is a job of one.

    Yields:
        Where this process stands, and the store of the group, None where torch cannot have one.
    """
    if dist.is_available() and dist.is_initialized():
        found = dist.distributed_c10d._get_default_store()
        place = dist.get_rank(), dist.get_world_size()
        with _meeting(*place, timeout):
            number = _number(found, *place, timeout)
        device = _chosen_device() or _device(*place)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            yield Ranks(*place, device), dist.PrefixStore(f"scoretk/{number}", found)
            _leave()
        return
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        _warn_of_others()
        store = dist.HashStore() if dist.is_available() else None
        yield Ranks(), store
        return
    device = _device(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, world_size = _met(device, timeout)
    try:
        yield Ranks(rank, world_size, device), store
        _leave()
    finally:
        dist.destroy_process_group()


def _warn_of_others() -> None:
    """Tell of processes that were started together, and are no job: each would do all, without a word."""
    for name in STARTED:
        said = os.environ.get(name, "")
        if said.isdecimal() and int(said) > 1:
            warn(
                f"{name}={said}: there are {said} processes, and they are no job of torch.distributed, "
                f"so that each does all of the work. Start them by torchrun, or set RANK, WORLD_SIZE, "
                f"MASTER_ADDR and MASTER_PORT"
            )


def _leave() -> None:
    """Wait for the others: one may keep the store that they ask, and gloo may abort without its peer."""
    try:
        gathered(b"")
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise RankFailure(f"another process has ended before the others: {error}") from error


def is_lost(error: BaseException) -> bool:
    """Whether torch.distributed says that another process is gone; gloo does in a plain error."""
    gloo = type(error) is RuntimeError and "gloo/" in str(error)
    return gloo or isinstance(error, dist.DistError)


def _met(device: torch.device, timeout: float) -> tuple[Any, int, int]:
    """The job's store beside the process group that is made, this process's number, and how many there are.

    Raises:
        RankFailure: Others have not come.
    """
    patience = timedelta(seconds=timeout)
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
    place = os.getpid(), *(os.environ[name] for name in names)
    with _meeting(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timeout):
        if place not in _STORES:
            _STORES[place] = next(dist.rendezvous("env://", timeout=patience))
        found, rank, world_size = _STORES[place]
        number = _number(found, rank, world_size, timeout)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo",
            store=dist.PrefixStore(f"group/{number}", found),
            rank=rank,
            world_size=world_size,
            timeout=patience,
        )
    return dist.PrefixStore(f"scoretk/{number}", found), rank, world_size


@contextmanager
def _meeting(rank: int, world_size: int, timeout: float) -> Iterator[None]:
    """A context in which who does not meet the others says so."""
    try:
        yield
    except dist.DistError as error:
        names = ("MASTER_ADDR", "MASTER_PORT")
        where = f" at {':'.join(os.environ[n] for n in names)}" if {*names} <= {*os.environ} else ""
        raise RankFailure(
            f"rank {rank} of {world_size} has not met the others{where} within {timeout:g} s: {error} "
            f"Start as many processes as WORLD_SIZE says, or give a longer timeout="
        ) from error


def _number(store: Any, rank: int, world_size: int, timeout: float) -> str:
    """A number of this job alone, the same on its ranks.

    `torchrun --max-restarts` starts processes anew beside the store of those that died, in which
    all that these have said is still found. So each process greets by a number of its own, drawn by
    chance; the first one answers whoever greets it, until as many have had an answer as there are.

    Raises:
        DistStoreError: Others have not come.
    """
    turn = next(_ENTERED)  # who is in the next context already does not greet in this one
    name, own = f"scoretk/greeting {turn} of ", secrets.token_hex(8)
    if rank:
        store.set(f"{name}{rank}", own)
        store.wait([f"scoretk/answer to {own}"], timedelta(seconds=timeout))
        number: str = store.get(f"scoretk/answer to {own}").decode()
        store.add(f"scoretk/{number}/heard", 1)
        return number
    answered, over, pause = dict[int, bytes](), time.monotonic() + timeout, 1e-3
    while store.add(f"scoretk/{own}/heard", 0) < world_size - 1:
        for other in range(1, world_size):
            if not store.check([f"{name}{other}"]):
                continue
            greeting = store.get(f"{name}{other}")
            if greeting != answered.get(other):  # else of one that died, or is on its way
                store.set(f"scoretk/answer to {greeting.decode()}", own)
                answered[other] = greeting
        if time.monotonic() > over:
            raise dist.DistStoreError(f"{len(answered)} of {world_size - 1} others have come.")
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return own


def _place(rank: int) -> tuple[int, int] | None:
    """This process's number among those of its machine, and how many these are; None if nobody says so."""
    for meant, number, size in PLACES:
        said = os.environ.get(number, ""), os.environ.get(size, "")
        if (meant is None or os.environ.get(meant) == str(rank)) and said[0].isdecimal():
            # of srun "2(x3),1", for each machine: the most, so that all of them do the same
            sizes = [int(n) for n in re.findall(r"(\d+)(?:\(x\d+\))?", said[1])]
            return int(said[0]), max(*sizes, int(said[0]) + 1, 1)
    return None


def of_machine() -> int:
    """How many processes of this machine are started together with this one, as far as it is known."""
    found = _place(int(os.environ.get("RANK", "0")))
    return 1 if found is None else found[1]


def _chosen_device() -> torch.device | None:
    """The device that is said to be this process's, for its group or as the current one."""
    bound: torch.device | None = dist.distributed_c10d._get_default_group().bound_device_id
    if bound is None and torch.cuda.is_initialized() and (chosen := torch.cuda.current_device()):
        return torch.device("cuda", chosen)  # the first one is so where nobody has said anything
    return bound


def _device(rank: int, world_size: int) -> torch.device:
    """The device of this process: a GPU of its own where there are as many as processes.

    Warns where that is not known, and the CPU is taken.
    """
    gpus, found = torch.cuda.device_count(), _place(rank)
    number, size = found or (rank, world_size)  # wherever they are, where all fit on one machine
    if size <= gpus:
        return torch.device("cuda", number)
    visible = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    if gpus == 1 and visible:  # a GPU a process
        return torch.device("cuda", 0)
    if gpus and found is None:
        warn(
            f"there are {gpus} GPUs and {world_size} processes, of which nobody says how many are on this "
            f"machine: the device of rank {rank} is the CPU. Start them by torchrun, or set LOCAL_RANK "
            f"and LOCAL_WORLD_SIZE"
        )
    return torch.device("cpu")


def check_apart(ranks: Ranks, store: Any) -> None:
    """Refuse one GPU for two ranks that would send each other messages by NCCL.

    Args:
        ranks: Where this process stands.
        store: What all of them read and write.

    Raises:
        InvalidArgument: Another rank has the GPU of this one.
    """
    if ranks.device.type != "cuda" or "nccl" not in dist.get_backend_config():
        return
    name = f"rank on GPU {torch.cuda.get_device_properties(ranks.device).uuid}"
    other = store.compare_set(name, "", str(ranks.rank)).decode()
    if other != str(ranks.rank):
        raise InvalidArgument(
            "distributed",
            f"one GPU for ranks {other} and {ranks.rank}",
            "a GPU for each process, or none",
            "Start fewer processes, show each its own by CUDA_VISIBLE_DEVICES, or none at all, by "
            "CUDA_VISIBLE_DEVICES=''",
        )


def kind_on(kind: str, place: torch.device) -> torch.device:
    """The device of a kind that is this process's own, whose state is at a place."""
    return place if place.type == kind else torch.device(kind)


def forms(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    """What others need to know of tensors to receive them."""
    return {
        name: (str(value.dtype).removeprefix("torch."), list(value.shape), value.device.type)
        for name, value in tensors.items()
    }


def broadcast(value: Tensor | None, form: Form, source: int, place: torch.device) -> Tensor:
    """A tensor that the rank `source` has, on all ranks, as bytes, which every backend takes."""
    dtype, shape, kind = form
    if value is None:
        value = torch.empty(shape, dtype=getattr(torch, dtype), device=kind_on(kind, place))
    message = value.detach().contiguous()
    if message.numel():
        carried = as_bytes(message).to(carrier(message.device))
        dist.broadcast(carried, source)
        message = carried.to(message.device).view(message.dtype).reshape(shape)
    return message


def carrier(device: torch.device) -> torch.device:
    """Where a tensor has to be for the process group: there, or where the group has a backend."""
    served = [part.partition(":")[0] for part in dist.get_backend_config().split(",")]
    return device if device.type in served else torch.device(served[0])


def gathered(content: bytes) -> list[bytes]:
    """The bytes of every process, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [content]
    place = carrier(torch.device("cpu"))
    sizes = [torch.zeros((), dtype=torch.int64, device=place) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(len(content), device=place))
    longest = max(1, *(int(n) for n in sizes))
    mine = torch.frombuffer(bytearray(content.ljust(longest, b"\0")), dtype=torch.uint8).to(place)
    every = [torch.empty_like(mine) for _ in sizes]
    dist.all_gather(every, mine)
    return [t[: int(n)].cpu().numpy().tobytes() for t, n in zip(every, sizes, strict=True)]
