"""Teams: the ranks of a job that hold one model together (FSDP, tensor parallel)."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

from scoretk.core.ranks import Ranks
from scoretk.errors import InvalidArgument
from scoretk.run.group import dist

__all__ = ["agree_on_team", "lies_on", "team_of"]


def team_of(model_group: Any, rank: int) -> tuple[int, ...]:
    """The ranks of a model's group, the leader first."""
    if model_group is None:
        return (rank,)
    expected = "a process group or a one-dimensional DeviceMesh with this rank in it"
    from torch.distributed.device_mesh import DeviceMesh

    group = model_group.get_group() if isinstance(model_group, DeviceMesh) else model_group
    try:
        team = tuple(sorted(dist.get_process_group_ranks(group)))
    except (RuntimeError, LookupError, ValueError, AttributeError, TypeError) as error:
        raise InvalidArgument("model_group", model_group, expected, str(error)) from error
    if rank not in team:
        raise InvalidArgument("model_group", team, expected)
    return team


def agree_on_team(team: tuple[int, ...], store: Any, ranks: Ranks) -> None:
    """Refuse teams that overlap, whose ranks would wait for one another without end."""
    if len(team) == ranks.world_size == 1:
        return
    ours = json.dumps(team)
    for member in team:
        theirs = store.compare_set(f"team of {member}", "", ours).decode()
        if theirs != ours:
            hint = f"Another rank says {theirs} of rank {member}, and rank {ranks.rank} {ours}"
            raise InvalidArgument("model_group", team, "the same on each of its ranks", hint)


def lies_on(part: Any) -> list[int]:
    """The ranks to which a part of a model sends messages in a step.

    Those among which a tensor is sharded, not those that have the same of it; and the group of a
    module that wraps another (DDP, which sends buffers where it has some; FSDP).
    """
    mesh, group = getattr(part, "device_mesh", None), getattr(part, "process_group", None)
    if isinstance(part, Tensor) and mesh is not None:
        copies = [placement.is_replicate() for placement in getattr(part, "placements", ())]
        here = mesh.get_coordinate() or [slice(None)] * len(copies)
        index = [i if copy else slice(None) for i, copy in zip(here, copies, strict=True)]
        return mesh.mesh[tuple(index)].flatten().tolist() if not all(copies) else []
    if isinstance(part, nn.Module) and isinstance(group, dist.ProcessGroup):
        silent = isinstance(part, DDP) and not part.will_sync_module_buffers()
        return [] if silent else sorted(dist.get_process_group_ranks(group))
    return []
