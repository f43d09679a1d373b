"""The same chains on one process or many, and what becomes of a job whose processes fail, hang or are killed.

Law: inside `distributed` every rank has what one process has with the same `batch=`: draws, status, statistics, what was
tuned, cost and provenance, to the bit, at any number of ranks and after any kills.
"""

import contextlib
import itertools
import pickle
import re
import subprocess
import sys
import threading
import time
from concurrent import futures
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core.ranks import Ranks
from scoretk.errors import RankFailure
from scoretk.run import batches, group, heartbeat, messages
from scoretk.run import ranks as processes
from tests import accelerator, jobs
from tests.processes import environment

HERE = Path(__file__).parent

pytestmark = pytest.mark.timeout(900)  # twenty processes, which share what cores there are


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank of every job had."""
    folder = tmp_path_factory.mktemp("jobs")
    return in_jobs(folder, "found = jobs.all_of_them(folder)")


def in_jobs(folder, program, seconds=900):
    """What a program that has `jobs` and `folder` puts into `found`."""
    program = f"""
import pathlib, pickle, torch
torch.set_num_threads(1)
from tests import jobs
folder = pathlib.Path({str(folder)!r})
{program}
(folder / "found").write_bytes(pickle.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR"),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads((folder / "found").read_bytes())


@pytest.mark.parametrize("name", jobs.CALLS)
def test_every_rank_has_the_draws_of_one_process(found, name):
    expected = found["one process"][name]
    for size, ranks in found["shared draws"].items():
        assert [ranks[n][name] for n in range(size)] == [expected] * size


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 4])
def test_at_any_number_of_ranks(found, size, tmp_path):
    ranks = in_jobs(tmp_path, f"found = jobs.Job({size}, jobs.shared_draws).wait()")
    assert [ranks[n] for n in range(size)] == [found["one process"]] * size


def test_the_bits_hang_on_the_batch_alone(found):
    """The law has teeth: another composition of batches, and another seed, would be seen."""
    draws = jobs.CALLS["moments"](batch=jobs.BATCH)
    assert jobs.digest(draws) == found["one process"]["moments"]
    assert jobs.digest(jobs.CALLS["moments"](batch=7)) != jobs.digest(draws)
    assert jobs.digest(jobs.CALLS["moments"](batch=jobs.BATCH, seed=1)) != jobs.digest(draws)


def test_a_network_may_lie_on_two_ranks(found):
    """FSDP gathers the weights, to the bits of one process."""
    for n in (0, 1):
        assert np.array_equal(found["fsdp"][n], found["whole network"])


def test_a_network_on_two_ranks_is_refused_where_they_are_no_team(found):
    """Each would run its own batch, and the layers would add up what belongs to two of them."""
    for n in (0, 1):
        for (kind, text, _), said in zip(
            found["other teams"][n], ("lies", "the same on each", "around this one"), strict=True
        ):
            assert kind == "InvalidArgument"
            assert text.startswith("model_group: ")
            assert said in text


def test_who_loses_one_of_its_team_says_so(found):
    """And where the run is, where the backend has words of its own for it alone."""
    kind, text, notes = found["loses one"][0]
    assert (found["loses one"][1], kind) == (None, "RankFailure")
    assert "another process, or the store" in text
    assert any("The run so far is in" in note for note in notes)


def test_copies_of_a_network_are_no_team(found):
    """Each rank asks its own, at its own times; a wrapper that sends in each step would wait for the others, or take theirs."""
    for n in (0, 1):
        (kind, text, _), *draws = found["whole on each"][n]
        assert kind == "InvalidArgument"
        assert "net.module" in text
        for x in draws:
            assert np.array_equal(x, found["whole network"])


def test_what_lives_on_a_device_stays_there(found):
    """Whatever ranks tell one another goes by the host where the process group does not serve the device, and comes back.

    Nothing is mixed: an operation on tensors of both raises there. Draws, moments, what was tuned, weights: to the bit.
    """
    (alone,) = found["on a device, alone"].values()
    on_it = {name for name, (place, _) in alone.items() if place == accelerator.NAME}
    assert {"tuned/x", "moments/var", "a grid/final", "weights/0.weight"} <= on_it
    for ranks in found["on a device"].values():
        assert isinstance(ranks, dict), ranks  # else the error that it ended with
        assert ranks.keys() == alone.keys()
        for name, (place, value) in ranks.items():
            assert place == alone[name][0], name
            assert np.array_equal(value, alone[name][1]), name


def test_more_than_a_store_takes_at_once_is_told(found):
    """Answers of a field of images, what was tuned of many numbers; of an error with a tensor its text."""
    (zero, told), (one, own) = (found["tells much"][n] for n in (0, 1))
    assert zero == one
    assert (told, own) == ("RankFailure", "ValueError")


def test_who_keeps_the_store_leaves_last(found):
    """With a process group of one's own, whose store is in rank 0."""
    assert found["keeps the store"] == {0: 0, 1: 1}


RESTARTED = """
import os, pathlib, signal, time, torch
import scoretk as stk
from scoretk.run import ranks
from tests import jobs

torch.set_num_threads(1)
folder, place = pathlib.Path({folder!r}), {place!r}
begun, out, killed = (folder / name for name in ("begun", "out of claims", "killed"))
collected, steps = ranks._Shared.collected, []

def told(*arguments):
    out.touch()
    return collected(*arguments)

def energy(x):
    steps.append(len(x))
    if not killed.exists() and jobs.rank() == 1:
        begun.touch()
        time.sleep(0.2 if place == "out of claims" else 0.0)
        if out.exists() or (place == "in a batch" and len(steps) == 40):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    while jobs.rank() == 0 and not begun.exists():
        time.sleep(0.01)
    return jobs.bumpy(x)

ranks._Shared.collected = told
with stk.distributed(timeout=30.0):
    draws = stk.sample(
        stk.Energy(energy, (3,)), stk.MALA(0.3), chains=jobs.CHAINS, steps=200, batch=jobs.BATCH,
        checkpoint=stk.Checkpoint(folder / "run", every=1e-3),
    )
torch.save(draws.x, folder / f"{{jobs.rank()}}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["in a batch", "out of claims"])
def test_torchrun_restarts_a_job_whose_rank_is_killed(place, tmp_path):
    """Its store stays, with all that the first attempt has said in it: claims, counts of who is where, errors."""
    (tmp_path / "script.py").write_text(RESTARTED.format(folder=str(tmp_path), place=place))
    torchrun = (
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
    )
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, tmp_path / "script.py"],
        env=environment(OMP_NUM_THREADS="1", TORCH_CPP_LOG_LEVEL="ERROR"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    run = {"chains": jobs.CHAINS, "steps": 200, "batch": jobs.BATCH}
    whole = stk.sample(jobs.FIELD, stk.MALA(0.3), **run)
    for n in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{n}.pt"), whole.x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spread", "size"),
    [(how, n) for how in ("fsdp", "tensor parallel") for n in (2, 4)] + [("copies of fsdp", 4)],
)
def test_teams_of_two(tmp_path, spread, size):
    """Tensor parallelism adds in another order than one process, and alike on all ranks."""
    whole, ranks = in_jobs(
        tmp_path,
        f"ranks = jobs.Job({size}, jobs.in_teams, {spread!r}, folder / 'run').wait()\n"
        "found = jobs.of_network(jobs.network()).x.numpy(), ranks",
    )
    assert len(ranks) == size
    for draws in ranks.values():
        np.testing.assert_allclose(draws, whole, atol=0.0 if "fsdp" in spread else 1e-3)
        assert np.array_equal(draws, ranks[0])


@pytest.mark.parametrize(
    ("mutant", "call"), [("tuned apart", "tuned"), ("in order of ranks", "moments")]
)
def test_mutants_are_caught(found, mutant, call):
    assert found["one process"][call] not in found[mutant].values()
    assert len(found[mutant]) == 2


def test_the_command_line(found):
    """Both ranks sample, the first one writes and prints; the draws are those of one process."""
    assert found["command"] == {0: (0, True), 1: (0, False)}
    draws = stk.sample("funnel", stk.MALA(0.1), chains=20, steps=4, batch=8)
    assert np.array_equal(draws.x.numpy(), found["written"])


@pytest.mark.parametrize("name", ["value", "interrupt", "steps", "field", "answers"])
def test_an_error_of_one_rank_is_raised_on_all(found, name):
    zero, one = (found["errors"][n][name] for n in (0, 1))
    assert zero is not None
    assert zero[:2] == one[:2]
    notes = [note for note in zero[2] + one[2] if "raised on rank" in note]
    assert len(notes) == 1, "who has not raised it says who has"


def test_errors_say_what_happened(found):
    errors = found["errors"][0]
    kind, text, (given, raised) = errors["value"]
    assert (kind, text, raised) == ("ValueError", "no such value", "It was raised on rank 1.")
    assert "given all chains at once" in given
    assert errors["odd"] == ("RankFailure", "Odd: 1 and 2", ["It was raised on rank 1."])
    assert found["errors"][1]["odd"][0] == "Odd"
    assert errors["steps"][0] == errors["field"][0] == "InvalidArgument"
    assert "steps: " in errors["steps"][1]
    assert "field.fn.shift: " in errors["field"][1]
    assert errors["answers"][0] == "InvalidArgument"
    assert "at the start of the first batch: " in errors["answers"][1]


@pytest.mark.parametrize("name", ["drawn", "of twelve"])
def test_a_field_that_cannot_be_compared_is_believed(found, name):
    """One that answers otherwise each time, and one that does not answer at four rows."""
    assert [found["errors"][n][name] for n in (0, 1)] == [None, None]


@pytest.mark.parametrize("name", ["leaves", "leaves in vain"])
def test_a_rank_that_leaves_the_run_is_no_success_of_the_others(found, name):
    """`sys.exit()` on one rank ends it as it wishes; another one would end with the same 0 in its place."""
    code = "0" if name == "leaves" else "3"
    assert found["errors"][1][name][:2] == ("SystemExit", code)
    kind, text, notes = found["errors"][0][name]
    assert (kind, text) == ("RankFailure", f"rank 1 of the job has left it: SystemExit: {code}")
    assert notes == ["It was raised on rank 1."]


def test_who_keeps_the_store_waits_for_all_to_have_heard(found):
    """Who was in a long step would find the store gone, and raise that in place of the error."""
    for ends in found["hears late"].values():
        assert ends[:2] == ("ValueError", "no such value")


def test_all_ranks_may_leave_at_the_end(found):
    """`sys.exit(main())` within the context, on each of them."""
    assert found["all leave"] == {0: ("SystemExit", "0", []), 1: ("SystemExit", "0", [])}


def test_where_the_run_is_saved_is_said_once(found):
    """By who failed; who was told and has saved too has it from there."""
    for n in (0, 1):
        kind, _, notes = found["errors"][n]["saved"]
        assert kind == "ValueError"
        assert sum("The run so far is in" in note for note in notes) == 1


def test_one_context_follows_another(found):
    """Who left the first one early asked the store that the others were about to close, and met nobody."""
    assert found["enters again"] == {0: None, 1: None}


def test_ranks_that_make_other_calls_hear_where_each_is(found):
    for n in (0, 1):
        kind, text, notes = found["skips a call"][n]
        assert kind == "RankFailure"
        assert re.search(
            r"rank 0 of 2 .* not come to call 2 of the context, and came to call 1"
            r"|rank 1 of 2 .* not come to the end, and came to call 2",
            text,
        )
        assert len(notes) <= 1


def test_a_rank_that_does_not_come_is_told(found):
    kind, text, _ = found["waits"][0]
    assert kind == "RankFailure"
    assert "rank 0 of 2 has not met the others" in text


def test_ranks_ask_for_one_store_and_hear_whole_errors(found):
    pytest.importorskip("zarr")
    for n in (0, 1):
        kind, text, _ = found["stores"][n]["paths"]
        assert kind == "InvalidArgument"
        assert "store: " in text
        kind, text, _ = found["stores"][n]["there"]
        assert kind == "OutputExists"
        assert "exists and is kept" in text


@pytest.mark.parametrize(
    "error",
    [
        *(kind("a text") for kind in (stk.OutputExists, stk.Busy, stk.StoreError)),
        stk.InvalidArgument("x", 1, "two", "more"),
        stk.ChainFailure([1], [2], [3]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_their_text_on_the_way(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_a_field_may_name_its_ranks(found):
    """As for their device: it is another number on each, and the same field."""
    assert [found["errors"][n]["its ranks"] for n in (0, 1)] == [None, None]


def test_the_ranks_go_on_after_an_error(found):
    assert [found["errors"][n]["after"] for n in (0, 1)] == [found["one process"]["moments"]] * 2


def test_an_error_between_two_calls_ends_all(found):
    expected = ("LookupError", "nothing to do", ["It was raised on rank 0."])
    assert found["leaves early"][1] == expected


def test_a_job_may_take_longer_than_its_timeout(found):
    """Whoever came first to the end did not find the other there, and counted its silence from the job's start."""
    assert found["outlasts"] == {0: None, 1: None}


def test_a_field_may_count_its_calls(found):
    (first, again), other = found["counted"][0], found["counted"][1]
    assert first == again
    assert other == [first, again]


@pytest.mark.parametrize(("name", "ranks"), [("hangs", [0]), ("is killed", [0, 2])])
def test_a_rank_that_hangs_or_is_gone_is_named(found, name, ranks):
    for n in ranks:
        kind, text, _ = found[name][n]
        assert kind == "RankFailure"
        assert text.startswith("rank 1 of ")
        assert "the start of batch" in text


def test_a_rank_that_is_stopped_with_the_store_in_it_is_no_wait_without_end(found):
    for n in (1, 2):
        kind, text, _ = found["stops"][n]
        assert kind == "RankFailure"
        assert "rank 0 keeps, cannot be reached: it has not answered for 10 s" in text


def test_a_run_goes_on_with_another_number_of_ranks(found):
    (expected,) = found["never stopped"].values()
    runs, kills, left = found["killed"]
    assert (kills, left) == (2, 0)
    assert runs
    for ranks in runs:
        assert set(ranks.values()) == {expected}


def in_one_store(ranks, seen):
    """What holds of a store that several ranks have written, and of what was seen of it meanwhile."""
    run = {"chains": jobs.CHAINS, "steps": 24, "batch": 7}
    whole = stk.sample(jobs.FIELD, stk.MALA(0.3), **run)
    for x, rank_normalised in ranks.values():
        assert np.array_equal(x, whole.x)
        assert np.array_equal(rank_normalised, stk.diagnostics.rhat(whole.x))
    assert seen
    for kept, x in seen:  # a file that is replaced meanwhile may be newer than the count, not older
        for chain, n in enumerate(kept):
            assert np.array_equal(x[chain, : max(n, 0)], whole.x[chain, : max(n, 0)])


def test_ranks_write_one_store_which_is_read_meanwhile(found):
    pytest.importorskip("zarr")
    in_one_store(*found["store"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_many_ranks_make_one_store(size, tmp_path):
    """All come to it at once: without one that makes it, half of these jobs would fail."""
    pytest.importorskip("zarr")
    program = "found = [jobs.watched(SIZE, folder / f'{k}.zarr') for k in range(5)]"
    for ranks, seen in in_jobs(tmp_path, program.replace("SIZE", str(size))):
        in_one_store(ranks, seen)


def test_every_rank_loads_a_store_when_its_call_is_over(found):
    pytest.importorskip("zarr")
    assert found["loads"] == {0: True, 1: True}


@pytest.mark.slow
def test_ranks_that_all_make_the_store_are_seen(tmp_path):
    """The mutant: each makes the arrays where it does not find them, the second when the first has written draws."""
    pytest.importorskip("zarr")
    program = """
import time
from scoretk.run import ranks, store

replace = store.replace_folder

def slowly(path, make):
    time.sleep(0.5 + 1.5 * jobs.rank())
    replace(path, make)

def by_each(share, name, make):
    share.meet("here")
    make()

store.replace_folder, ranks._Shared.once = slowly, by_each
found = jobs.Job(2, jobs.streamed, folder / "d.zarr").wait()
"""
    kind, text, _ = in_jobs(tmp_path, program)[0]
    assert kind == "StoreError"
    # the last on a machine with other work, where the second comes while the first is in the folder
    told = ("has 0 draws of a chain, where 24", "has lost draws", "cannot write draws")
    assert any(words in text for words in told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "room", "kind"),
    [(True, 20_000, "StoreError"), (True, 4_000, "StoreError"), (False, 20_000, "CheckpointError")],
    ids=["a chunk", "no store", "a checkpoint"],
)
def test_a_disk_that_is_full_for_one_rank(streams, room, kind, tmp_path):
    """The rank is named, nothing is lost, and nobody left: with room again any number of ranks goes on to the bit."""
    if streams:
        pytest.importorskip("zarr")
    program = f"found = jobs.filled_up(folder, {streams}, {room})"
    ends, left, again = in_jobs(tmp_path, program)
    assert left == 0
    assert [end[0] for end in ends.values()] == [kind] * 2
    assert "File too large" in ends[0][1]
    assert "It was raised on rank 1." in ends[0][2]
    run = {"chains": jobs.CHAINS, "steps": 300, "batch": 20}
    whole = stk.sample(jobs.FIELD, stk.MALA(0.3), **run).x.numpy()
    assert len(again) == 3
    for x in again.values():
        assert np.array_equal(x, whole)


def test_two_jobs_do_not_run_in_one_folder(found):
    kind, text, _ = found["second"][0]
    assert kind == "Busy"
    assert "is being written by another job" in text


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_a_second_job_on_a_store_is_refused_and_a_killed_one_is_not_in_the_way(size, tmp_path):
    pytest.importorskip("zarr")
    program = f"""
import time
run = folder / "d.zarr", 0.05, folder / "c"
first = jobs.Job(2, jobs.streamed, *run)
while not (folder / "d.zarr" / "zarr.json").exists():
    time.sleep(0.01)
second = jobs.Job({size}, jobs.streamed, *run).wait()
first.kill()
left = sum(process.is_alive() for process in first.processes)
found = second, left, jobs.Job({size}, jobs.streamed, run[0], 0.0, run[2]).wait()
"""
    second, left, ends = in_jobs(tmp_path, program)
    assert left == 0
    assert len(second) == size
    for kind, text, _ in second.values():
        assert kind == "Busy"
        assert "is being written by another job" in text
    in_one_store(ends, [([], [])])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_job_is_refused_while_a_rank_of_the_one_before_still_runs(size, tmp_path):
    """Its rank 0 is dead and it does not know: what it writes at its next look would undo what the new job has counted."""
    pytest.importorskip("zarr")
    second, outlived, ends = in_jobs(tmp_path, f"found = jobs.outlived(folder, {size})")
    assert outlived
    assert {str(answer[0]) for answer in second.values()} == {"Busy"}
    in_one_store(ends, [([], [])])


class TestTheDeviceOfARank:
    """Told by stand-ins: a GPU each where a machine has one for each of its processes, and NCCL between these."""

    def machine(self, monkeypatch, gpus, **variables):
        """A machine with so many GPUs, of which a process of rank 5 of 8 sees these variables."""
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: gpus > 0)
        for name in {name for names in group.PLACES for name in names if name} | {*group.VISIBLE}:
            monkeypatch.delenv(name, raising=False)
        own = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        for name, value in (own | variables).items():
            monkeypatch.setenv(name, str(value))

    def met(self, monkeypatch, nccl=True):
        """The device of a rank, what it was made the process's, and the backend that was asked for."""
        made = {}
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: made.update(set=device))
        monkeypatch.setattr(group.dist, "is_nccl_available", lambda: nccl)
        monkeypatch.setattr(
            group.dist, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 5, 8)])
        )
        monkeypatch.setattr(group, "_number", lambda *_: "alone")
        monkeypatch.setattr(
            group.dist, "init_process_group", lambda kind, **_: made.update(kind=kind)
        )
        monkeypatch.setattr(group.dist, "destroy_process_group", lambda: None)
        with group.joined() as (found, _):
            made |= {"device": str(found.device), "rank": found.rank, "size": found.world_size}
        return made

    @pytest.mark.parametrize(
        ("gpus", "local", "world", "nccl", "device", "kind"),
        [
            (8, 5, 8, True, "cuda:5", "cpu:gloo,cuda:nccl"),
            (4, 1, 4, True, "cuda:1", "cpu:gloo,cuda:nccl"),
            (4, 1, 4, False, "cuda:1", "gloo"),
            (4, 1, 8, True, "cpu", "gloo"),
            (1, 0, 2, True, "cpu", "gloo"),
            (0, 1, 4, True, "cpu", "gloo"),
        ],
    )
    def test_one_each_or_none(self, gpus, local, world, nccl, device, kind, monkeypatch):
        self.machine(monkeypatch, gpus, LOCAL_RANK=local, LOCAL_WORLD_SIZE=world)
        made = self.met(monkeypatch, nccl)
        assert (made["device"], made["kind"]) == (device, kind)
        assert (made["rank"], made["size"]) == (5, 8)
        assert str(made.get("set", "cpu")) == device  # before NCCL is asked for anything

    @pytest.mark.parametrize(
        ("gpus", "variables", "device"),
        [
            (1, {"CUDA_VISIBLE_DEVICES": "3", "LOCAL_RANK": 3, "LOCAL_WORLD_SIZE": 8}, "cuda:0"),
            (1, {"ROCR_VISIBLE_DEVICES": "3", "SLURM_PROCID": 5, "SLURM_LOCALID": 1}, "cuda:0"),
            (0, {"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
            (4, {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "LOCAL_RANK": 1}, "cuda:1"),
            (4, {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 8}, "cpu"),
        ],
    )
    def test_a_process_that_was_given_one_has_it(self, gpus, variables, device, monkeypatch):
        """By what starts it, whatever its number on the machine."""
        self.machine(monkeypatch, gpus, **variables)
        assert self.met(monkeypatch)["device"] == device

    @pytest.mark.parametrize(
        ("variables", "device"),
        [
            (
                {"SLURM_PROCID": 5, "SLURM_LOCALID": 1, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
                "cuda:1",
            ),
            (
                {"SLURM_PROCID": 5, "SLURM_LOCALID": 1, "SLURM_STEP_TASKS_PER_NODE": "8(x3),2"},
                "cpu",
            ),
            ({"OMPI_COMM_WORLD_RANK": 5, "OMPI_COMM_WORLD_LOCAL_RANK": 3}, "cuda:3"),
            ({"MPI_RANKID": 5, "MPI_LOCALRANKID": 2, "MPI_LOCALNRANKS": 4}, "cuda:2"),
            # torchrun within srun, of one task a machine
            (
                {"SLURM_PROCID": 1, "SLURM_LOCALID": 0, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4},
                "cuda:1",
            ),
        ],
    )
    def test_its_number_on_the_machine_is_what_starts_it_says(self, variables, device, monkeypatch):
        self.machine(monkeypatch, 4, **variables)
        assert self.met(monkeypatch)["device"] == device

    @pytest.mark.parametrize("variables", [{}, {"SLURM_PROCID": 0, "SLURM_LOCALID": 0}])
    def test_who_does_not_know_its_number_is_told(self, variables, monkeypatch):
        """The second one's ranks were counted within one task, whose number is not theirs."""
        self.machine(monkeypatch, 4, **variables)
        with pytest.warns(UserWarning, match="4 GPUs and 8 processes.* LOCAL_RANK"):
            assert self.met(monkeypatch)["device"] == "cpu"
        self.machine(monkeypatch, 8, **variables)  # enough, wherever each is
        assert self.met(monkeypatch)["device"] == "cuda:5"

    def test_of_a_group_of_one_s_own_what_it_says(self, monkeypatch):
        """Its device, the current one that was chosen, else that of the rank; and "cuda" is that one within."""
        within, bound, current = [], [None], [0]
        found = SimpleNamespace(bound_device_id=None)
        fake = SimpleNamespace(
            is_available=lambda: True,
            is_initialized=lambda: True,
            get_rank=lambda: 5,
            get_world_size=lambda: 8,
            PrefixStore=lambda *_: "a store",
            distributed_c10d=SimpleNamespace(
                _get_default_store=lambda: None, _get_default_group=lambda: found
            ),
        )

        @contextlib.contextmanager
        def chosen(device):
            within.append(str(device))
            yield
            within.pop()

        self.machine(monkeypatch, 4, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
        monkeypatch.setattr(torch.cuda, "device", chosen)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
        monkeypatch.setattr(group, "dist", fake)
        monkeypatch.setattr(group, "_number", lambda *_: "alone")
        monkeypatch.setattr(group, "_meeting", lambda *_: contextlib.nullcontext())
        monkeypatch.setattr(group, "_leave", lambda: None)
        for bound, current[0], device in ((None, 0, 1), (None, 3, 3), (2, 3, 2)):
            found.bound_device_id = None if bound is None else torch.device("cuda", bound)
            with group.joined() as (ranks, _):
                assert within == [str(ranks.device)] == [f"cuda:{device}"]
        assert within == []

    def test_what_was_published_comes_to_the_rank_s_own(self, monkeypatch):
        """And not to the current one, the first where nobody has said otherwise."""
        job = processes._Job(stk.Ranks(1, 2), (1,), torch.distributed.HashStore(), 10.0)
        other, own = processes._Shared(job, "0"), processes._Shared(job, "0")
        tensors = {"scale": torch.ones(3), "": torch.tensor(True)}
        other.publish("pilot", tensors)
        fetched = own.fetch("pilot", torch.device("cuda", 3))
        assert {name: str(value.device) for name, value in fetched.items()} == {
            "scale": "cpu",
            "": "cpu",
        }
        of_a_gpu = SimpleNamespace(to=str)
        monkeypatch.setattr(
            processes, "from_bytes", lambda _: {"cuda/scale": of_a_gpu, "cpu/": of_a_gpu}
        )
        fetched = processes._Shared(job, "0").fetch("pilot", torch.device("cuda", 3))
        assert fetched == {"scale": "cuda:3", "": "cpu"}

    def test_a_batch_asks_for_it_where_its_chains_are(self):
        asked, place = {}, torch.device("meta")

        def fetch(name, at=None):
            asked[name] = at
            return {"": torch.tensor(False), "step_size": torch.tensor(0.1)}

        share = SimpleNamespace(alone=False, fetch=fetch)
        batches._Pilot.of(share, 1, stk.MALA(), place)
        share.fetch = lambda name, at=None: asked.update({name: at}) or {}
        batches._Alike(share, None, frozenset()).settle(1, torch.empty(2, 3, device=place))
        assert asked == {"pilot": place, "answers": place}

    @pytest.mark.parametrize(
        ("error", "lost"),
        [
            (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator"), False),
            (torch.OutOfMemoryError("CUDA out of memory"), False),
            (RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
            (torch.distributed.DistBackendError("NCCL error"), True),
        ],
    )
    def test_a_lack_of_memory_is_no_rank_that_is_gone(self, error, lost, monkeypatch):
        def broadcast(*_):
            raise error

        monkeypatch.setattr(processes, "broadcast", broadcast)
        monkeypatch.setattr(processes, "gathered", lambda content: [content])
        job = processes._Job(stk.Ranks(0, 2), (0,), torch.distributed.HashStore(), 10.0)
        share = processes._Shared(job, "0")
        with pytest.raises(RankFailure if lost else type(error)) as raised:
            list(share._exchanged({0: {"x": torch.ones(2)}}, 1, torch.device("cpu")))
        assert (raised.value is error) is not lost
        assert group.is_lost(error) is lost

    def test_two_ranks_with_one_gpu_are_told(self, monkeypatch):
        """NCCL would end the job when the draws are there, in words of its own."""
        uuids = {0: "a", 1: "b", 2: "a"}
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device: SimpleNamespace(uuid=uuids[device.index]),
        )
        store = torch.distributed.HashStore()

        def asked(rank, index):
            group.check_apart(stk.Ranks(rank, 3, torch.device("cuda", index)), store)

        monkeypatch.setattr(group.dist, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
        asked(0, 0)
        asked(1, 1)
        with pytest.raises(stk.InvalidArgument, match="one GPU for ranks 0 and 2"):
            asked(2, 2)
        monkeypatch.setattr(group.dist, "get_backend_config", lambda: "cpu:gloo")
        asked(2, 2)

    @pytest.mark.parametrize(
        ("served", "kind", "carried"),
        [
            ("cpu:gloo,cuda:nccl", "cuda", "cuda"),
            ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
            ("cpu:gloo", "cuda", "cpu"),
            ("cuda:nccl", "cpu", "cuda"),
        ],
    )
    def test_tensors_go_where_the_group_has_a_backend(self, served, kind, carried, monkeypatch):
        monkeypatch.setattr(group.dist, "get_backend_config", lambda: served)
        assert group.carrier(torch.device(kind)).type == carried


def sampled(path, **more):
    settings = {"chains": 20, "steps": 4, "batch": 6} | more
    return stk.sample(jobs.FIELD, stk.MALA(0.3), checkpoint=path, **settings)


class TestParts:
    """Parts of a run made apart, by `chains=range(a, b)`."""

    def parts(self, **more):
        ids = (range(9, 20), range(9))
        return [sampled(None, chains=some, batch=20, **more) for some in ids]

    @pytest.mark.parametrize("keep", ["all", "last", "moments"])
    def test_joined_they_are_the_run(self, keep):
        whole = sampled(None, batch=20, keep=keep)
        joined = stk.concatenate(self.parts(keep=keep))
        tensors, header = joined._parts()
        for name, value in whole._parts()[0].items():
            torch.testing.assert_close(tensors[name], value)
        assert torch.equal(joined.chains, torch.arange(20))
        assert header["provenance"]["chains"] == 20
        assert header["cost"] == dict(whole.cost)

    def test_every_second_chain(self):
        even, odd = (sampled(None, chains=range(i, 20, 2), batch=20) for i in (0, 1))
        torch.testing.assert_close(stk.concatenate([odd, even]).x, sampled(None, batch=20).x)
        assert stk.concatenate([odd]).provenance["chains"] == "range(1, 20, 2)"

    @pytest.mark.parametrize("more", [{"seed": 1}, {"steps": 3}, {"keep": "moments"}])
    def test_parts_of_other_runs_are_refused(self, more):
        one, other = self.parts()[0], self.parts(**more)[1]
        with pytest.raises(stk.InvalidArgument, match=next(iter(more))):
            stk.concatenate([one, other])

    def test_a_part_that_ends_before_the_pilot_says_so(self):
        """It tunes by fewer chains; with a pilot of no more chains than the first has, parts are the run."""
        field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
        ranges = (range(6), range(6, 12))

        def made(chains, pilot):
            warmup = stk.Warmup(steps=20, pilot=pilot)
            return stk.sample(field, stk.MALA(), chains=chains, warmup=warmup, steps=2, batch=12)

        with pytest.raises(stk.InvalidArgument, match=r"what was tuned: step_size.*pilot="):
            stk.concatenate([made(ids, 8) for ids in ranges])
        joined = stk.concatenate([made(ids, 6) for ids in ranges])
        torch.testing.assert_close(joined.x, made(12, 6).x)

    def test_a_chain_is_there_once(self):
        one, other = self.parts()
        with pytest.raises(stk.InvalidArgument, match=r"\[9, 10"):
            stk.concatenate([one, other, one])
        for none in ([], 0.5, [one, "other"]):
            with pytest.raises(stk.InvalidArgument, match="parts"):
                stk.concatenate(none)

    def test_those_in_stores_stay_there(self, tmp_path, monkeypatch):
        pytest.importorskip("zarr")
        run = {"steps": 4, "batch": 20}
        parts = [
            stk.sample(
                jobs.FIELD, stk.MALA(0.3), chains=ids, keep=stk.Zarr(tmp_path / str(i)), **run
            )
            for i, ids in enumerate((range(9, 20), range(0, 9, 2), range(1, 9, 2)))
        ]
        whole = sampled(None, batch=20)
        with monkeypatch.context() as patch:
            patch.setattr(type(parts[0].x), "read", None)  # so that nothing is read
            joined = stk.concatenate([*parts[:2], stk.Draws.load(tmp_path / "2")])
        assert isinstance(joined, stk.StoredDraws)
        assert torch.equal(joined.chains, torch.arange(20))
        for key in (slice(None), 3, -1, slice(8, 12), [4, 1, 19], (slice(None), -1)):
            assert torch.equal(joined.x[key], whole.x[key])
        for name, value in whole.stats.items():
            assert torch.equal(joined.stats[name].load(), value)
        assert str(joined[5:8].summary()) == str(whole[5:8].summary())
        again = stk.concatenate([joined[10:], joined[:10]])
        assert torch.equal(again.x[:], whole.x)
        for one, other in zip(joined.moments(), whole.moments(), strict=True):
            torch.testing.assert_close(one, other)
        with pytest.raises(stk.InvalidArgument, match="in_memory"):
            stk.concatenate([parts[0].in_memory(), *parts[1:]])
        with pytest.raises(stk.InvalidArgument, match=r"\[9, 10"):
            stk.concatenate([joined, parts[0]])


class TestFolders:
    """A run's folder, by one process."""

    def test_a_plain_process_goes_on_and_extends(self, tmp_path):
        with stk.distributed():
            first = sampled(tmp_path / "run")
        files = sorted(p.name for p in (tmp_path / "run").iterdir())
        batches = [f"batch-{i:06d}.safetensors" for i in range(4)]
        assert files == [*batches, "manifest.safetensors"]
        assert torch.equal(sampled(tmp_path / "run").x, first.x)
        assert torch.equal(
            sampled(tmp_path / "run", steps=9).x, sampled(tmp_path / "file", steps=9).x
        )
        with pytest.raises(stk.CheckpointError, match="extended, not shortened"):
            sampled(tmp_path / "run")

    def test_what_is_over_is_only_read(self, tmp_path):
        with stk.distributed():
            sampled(tmp_path / "run")
            before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*.safetensors")}
            sampled(tmp_path / "run")
        assert before == {p: p.stat().st_mtime_ns for p in before}

    def test_another_run_is_refused(self, tmp_path):
        with stk.distributed():
            sampled(tmp_path / "run")
            with pytest.raises(stk.CheckpointError, match="another run"):
                sampled(tmp_path / "run", seed=1)
            with pytest.raises(stk.CheckpointError, match="another run"):
                sampled(tmp_path / "run", batch=5)

    def test_a_batch_is_not_taken_for_another_nor_when_damaged(self, tmp_path):
        with stk.distributed():
            sampled(tmp_path / "run")
        one, two = (tmp_path / "run" / f"batch-00000{i}.safetensors" for i in (1, 2))
        two.write_bytes(one.read_bytes())
        with pytest.raises(stk.CheckpointError, match="batch-000002"):
            sampled(tmp_path / "run")
        two.write_bytes(one.read_bytes()[:-1])
        with pytest.raises(stk.CheckpointError, match="damaged"):
            sampled(tmp_path / "run")
        two.unlink()
        assert sampled(tmp_path / "run").x.shape == (20, 4, 3)

    @pytest.mark.parametrize("after", [5, 15, 1000])
    def test_a_field_may_count_its_calls(self, after, tmp_path):
        """Stopped or over, it is known by all but what the run has changed itself."""
        calls = [after]

        def energy(x):
            calls[0] -= 1
            if calls[0] == 0:
                raise LookupError
            return jobs.bumpy(x)

        run = {"chains": 20, "steps": 4, "batch": 6, "checkpoint": tmp_path / "run"}
        field = stk.Energy(energy, (3,))
        with stk.distributed():
            with contextlib.suppress(LookupError):
                stk.sample(field, stk.MALA(0.3), **run)
            again = stk.sample(field, stk.MALA(0.3), **run)
        assert torch.equal(again.x, sampled(None).x)

    def test_the_file_of_one_process_is_not_shared(self, tmp_path):
        sampled(tmp_path / "file")
        with (
            stk.distributed(),
            pytest.raises(stk.CheckpointError, match="a checkpoint is a folder"),
        ):
            sampled(tmp_path / "file")

    def test_another_folder_is_no_checkpoint(self, tmp_path):
        (tmp_path / "mine").mkdir()
        with stk.distributed(), pytest.raises(stk.InvalidArgument, match="not of a folder"):
            sampled(tmp_path / "mine")


def test_a_plain_process_is_a_job_of_one():
    with stk.distributed() as ranks:
        assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")
        with stk.distributed() as inner:
            assert inner is ranks
        draws = stk.sample(jobs.FIELD, stk.MALA(0.3), chains=600, steps=1)
    assert draws.provenance["batch"] == 256
    assert stk.sample(jobs.FIELD, stk.MALA(0.3), chains=60, steps=1).provenance["batch"] == 60


def test_a_build_of_torch_without_processes_is_told(monkeypatch):
    """As some for macOS: a context in which nothing is shared would be no such thing."""
    monkeypatch.setattr(group.dist, "is_available", lambda: False)
    with pytest.raises(stk.ScoretkError, match=r"no torch\.distributed"), stk.distributed():
        pass


@pytest.mark.parametrize("name", group.STARTED)
def test_processes_that_are_no_job_are_told(name, monkeypatch):
    """`srun python script.py`: each of them makes all chains."""
    monkeypatch.setenv(name, "4")
    with pytest.warns(UserWarning, match=f"{name}=4: .* torchrun"), stk.distributed() as ranks:
        assert ranks.world_size == 1
    monkeypatch.setenv(name, "1")  # a task of an array
    with stk.distributed():
        pass


def test_gradients_are_a_process_s_own():
    start = torch.zeros(8, 3, requires_grad=True)
    with stk.distributed():
        stk.sample(
            jobs.FIELD, stk.ULA(0.1), init=start, steps=2, grad=True, batch=3
        ).x.sum().backward()
    assert start.grad is not None


@pytest.mark.parametrize("bad", [3, "all", object()])
def test_a_model_group_is_one_of_torch_distributed(bad):
    with pytest.raises(stk.InvalidArgument, match="model_group"), stk.distributed(model_group=bad):
        pass


@pytest.mark.slow
def test_a_storm_of_kills(tmp_path):
    """Forty jobs of two to four ranks are killed, whole or in part, at random moments: nothing is lost, nobody left."""
    expected, (ends, kills, left) = in_jobs(
        tmp_path,
        "expected = jobs.Job(1, jobs.saved, folder / 'never').wait()\n"
        "found = expected, jobs.stormy(folder, 5, (2, 4, 3), 40, singly=True)",
        3000,
    )
    assert (kills, left) == (40, 0)
    assert ends
    for ranks in ends:
        assert set(ranks.values()) == set(expected.values())


@pytest.mark.slow
def test_killed_at_chosen_places(tmp_path):
    """Between any two writes that belong together: the same bits, and nothing is left beside."""
    pytest.importorskip("zarr")
    program = "found = {n: jobs.killed_at(folder / str(i), n) for i, n in enumerate(jobs.PLACES)}"
    whole = jobs.CALLS["tuned"](batch=jobs.BATCH)
    found = in_jobs(tmp_path, program)
    assert found.keys() == jobs.PLACES.keys()
    for place, (died, ranks, left) in found.items():
        assert died, place
        assert len(ranks) == 3, place
        for x, cost in ranks.values():
            assert np.array_equal(x, whole.x), place
            assert cost == sorted(whole.cost.items()), place
        assert left == ["c", "d.zarr"], place


def recipe(begins):
    """A block of code of docs/many-machines.md, by how it begins."""
    blocks = (HERE.parent / "docs" / "many-machines.md").read_text().split("```python\n")[1:]
    (found,) = [b.partition("```")[0] for b in blocks if b.startswith(begins)]
    return found


@pytest.mark.thorough
def test_the_page_s_first_script_and_dask(capsys):
    names = {}
    exec(compile(recipe("import torch"), "the page", "exec"), names)
    assert capsys.readouterr().out
    pytest.importorskip("dask")
    exec(compile(recipe("import dask"), "the page", "exec"), names)
    field = names["field"]
    whole = stk.sample(field, stk.MALA(0.3), chains=256, steps=20, batch=64)
    assert torch.equal(names["draws"].x, whole.x)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="the recipe for Ray needs ray")
def test_the_page_s_recipe_for_ray(tmp_path):
    """In a process of its own, which starts workers, and ends them."""
    field = recipe("import torch").partition("with stk.distributed()")[0]
    (tmp_path / "script.py").write_text(f"""
{field}
torch.set_num_threads(1)
{recipe("import ray")}
whole = stk.sample(field, stk.MALA(0.3), chains=256, steps=20, batch=64)
assert torch.equal(draws.x, whole.x)
assert draws.provenance["chains"] == 256
ray.shutdown()
print("the same")
""")
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        env=environment(OMP_NUM_THREADS="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.endswith("the same\n"), done.stderr


def test_an_array_of_jobs(found):
    """The page's recipe for SLURM."""
    assert np.array_equal(found["array"], sampled(None, batch=10).x)


def test_who_comes_after_one_that_died_is_answered(monkeypatch):
    """torchrun keeps its store when it starts processes anew: a greeting of a dead one is there, and answered first."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(group, "_ENTERED", itertools.repeat(0))
    store.set("scoretk/greeting 0 of 1", "of one that died")
    answered, wait = [], store.check

    def check(names):
        there = wait(names)
        if answered.append(names) or len(answered) == 3:  # rank 0 has answered the dead one by now
            begun.set()
        return there

    begun, numbers = threading.Event(), {}
    asked = SimpleNamespace(check=check, get=store.get, set=store.set, add=store.add)
    with futures.ThreadPoolExecutor(2) as pool:
        numbers[0] = pool.submit(group._number, asked, 0, 2, 5.0)
        assert begun.wait(5.0)
        numbers[1] = pool.submit(group._number, store, 1, 2, 5.0)
        assert numbers[0].result() == numbers[1].result()


def test_a_rank_hangs_where_its_heartbeat_has_been_the_same_for_too_long():
    """Not where it has said something new since, however long ago its first one was."""
    beats = {}
    store = SimpleNamespace(check=lambda names: names[0] in beats, get=lambda name: beats[name])
    heart = heartbeat.Heartbeat((store, store), stk.Ranks(0, 2), "0", 10.0, [])
    for now, beat in [(0, None), (8, b"batch 0, 1"), (16, b"batch 0, 2"), (24, b"batch 1, 3")]:
        beats |= {} if beat is None else {"heartbeat of 1": beat}
        heart.watch(1, float(now))
    heart.watch(1, 33.0)
    with pytest.raises(RankFailure, match=r"rank 1 of 2 .* last heartbeat was: batch 1"):
        heart.watch(1, 35.0)


def test_who_was_stopped_itself_does_not_take_the_next_rank_for_silent():
    """All ranks of a job are stopped together (Ctrl-Z), and whoever goes on first finds an old heartbeat."""
    store = SimpleNamespace(check=lambda names: True, get=lambda name: b"batch 0, 1")
    heart = heartbeat.Heartbeat((store, store), stk.Ranks(0, 2), "0", 10.0, [])
    for now in (0.0, 1.0, 3600.0, 3609.0):
        heart.watch(1, now)
    with pytest.raises(RankFailure, match="rank 1 of 2 has had no heartbeat"):
        heart.watch(1, 3611.0)


@pytest.mark.parametrize("timeout", [0.4, 2.0, 30.0, 1800.0])
def test_a_heart_beats_four_times_before_it_counts_as_silent(timeout, monkeypatch):
    """However short that is; and each second at least, for an error of another to end it soon."""
    clock, said = [0.0], []
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    store = SimpleNamespace(check=lambda names: False, set=lambda name, beat: said.append(clock[0]))
    heart = heartbeat.Heartbeat((store, store), stk.Ranks(0, 1), "0", timeout, [])
    heart.watch = lambda other, now: None
    while clock[0] < 4 * min(timeout, 4.0):
        heart.beat_if_due("a step")
        clock[0] += min(timeout, 4.0) / 400
    gaps = np.diff(said)
    assert float(gaps.max()) <= min(1.0, timeout / 4) + 0.02
    assert float(gaps.min()) >= min(1.0, timeout / 4) - 1e-9  # and no oftener than that


def test_an_answer_is_waited_for_in_parts(monkeypatch):
    """Of which a process that is stopped itself loses one: all of the time has passed, and nothing was asked yet."""
    thread, waited = messages.StoreThread(8.0), []

    def wait(answers, timeout):
        waited.append(timeout)
        left = [] if len(waited) == 1 else answers
        return futures.wait(left, 5.0)

    monkeypatch.setattr(messages, "wait", wait)
    assert thread.ask(lambda: 3) == 3
    assert waited == [2.0, 2.0]
    thread.close()


@pytest.mark.slow
def test_a_job_that_is_stopped_and_goes_on_is_over_as_ever(tmp_path):
    """Each rank for longer than its timeout: all of them, and each by itself, which the others then name."""
    program = """
import time, signal, os
found = {}
for which in ([0, 1], [1]):
    job = jobs.Job(2, jobs.saved, folder / str(len(which)), 0.02, 4.0)
    time.sleep(3.0)
    for send in (signal.SIGSTOP, signal.SIGCONT):
        for n in which:
            os.kill(job.processes[n].pid, send)
        time.sleep(12.0 if send == signal.SIGSTOP else 0.0)
    found[len(which)] = job.wait(120)
found["never"] = jobs.Job(1, jobs.saved, folder / "never").wait()
"""
    found = in_jobs(tmp_path, program)
    assert set(found[2].values()) == set(found["never"].values())
    assert found[1][0][0] == found[1][1][0] == "RankFailure"
    assert "rank 1 of 2 has had no heartbeat for 4 s" in found[1][0][1]
    assert "rank 0 of 2" not in found[1][1][1]
    assert "This process itself had no heartbeat for 1" in str(found[1][1][2])


@pytest.mark.parametrize("calls", [("0", "0"), ("0", "1"), ("0", processes.END)])
def test_a_rank_remembers_the_first_error_and_neither_waits_nor_asks_again(calls, monkeypatch):
    """Two ranks, of which the other is not there; the second call has an error of its own by then."""
    slept = []
    monkeypatch.setattr(processes, "FAREWELL", 0.02)
    monkeypatch.setattr(processes.time, "sleep", slept.append)
    store = torch.distributed.HashStore()
    job = processes._Job(Ranks(1, 2), (1,), store, 1.0)
    first, again = (processes._Shared(job, call) for call in calls)
    error = ValueError("the first")
    assert first._first(error) is error
    assert slept
    slept.clear()
    again.store.set("error", processes.packed(KeyError("another"), 0))
    assert again._first(error) is error
    assert not slept


class Turns:
    """The number of a process's next context, where each thread is a process."""

    def __init__(self):
        self.own = threading.local()

    def __next__(self):
        self.own.turn = getattr(self.own, "turn", -1) + 1
        return self.own.turn


def test_who_is_in_the_next_context_already_is_not_answered_in_this_one(monkeypatch):
    """Ranks meet twice beside one store; the second comes late, when the others would greet again."""
    store, late = torch.distributed.HashStore(), threading.Event()
    monkeypatch.setattr(group, "_ENTERED", Turns())

    def greet(name, value):
        store.set(name, value)
        if name.startswith("scoretk/greeting 1") or ("greeting 0" in name and name in there):
            late.set()
        there.add(name)

    there = set()
    asked = SimpleNamespace(
        check=store.check, get=store.get, set=greet, add=store.add, wait=store.wait
    )

    def process(rank):
        if rank == 2:
            assert late.wait(5.0)
            time.sleep(0.1)  # in which the first rank looks at what has come
        return [group._number(asked, rank, 3, 5.0) for _ in range(2)]

    with futures.ThreadPoolExecutor(3) as pool:
        told = [*pool.map(process, range(3))]
    assert told[0] == told[1] == told[2]
    assert len({*told[0]}) == 2


def test_a_store_that_once_did_not_answer_is_not_asked_again():
    """Whoever asks next is told at once: what it answers late is of another question."""
    thread, asked, late = messages.StoreThread(0.2), [], threading.Event()

    def question(number):
        asked.append(number)
        if number:
            late.wait(5.0)
        return number

    try:
        assert thread.ask(question, 0) == 0
        for number in (1, 2, 3):
            with pytest.raises(torch.distributed.DistStoreError, match="has not answered for"):
                thread.ask(question, number)
        assert asked == [0, 1]
    finally:
        late.set()
        thread.close()
    time.sleep(0.05)
    assert asked == [0, 1]
