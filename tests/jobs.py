"""Jobs of several processes that share their runs, for tests that start them in a process without threads."""

import contextlib
import hashlib
import io
import multiprocessing
import os
import resource
import signal
import time
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import wait

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import scoretk as stk
from scoretk import cli
from scoretk.core import files, noise
from scoretk.core.identity import Identity
from scoretk.learn import Recipe, fit
from scoretk.run import batches, checkpoint, heartbeat, ranks, store
from tests import accelerator
from tests.processes import held_port

FORK = multiprocessing.get_context("fork")
STORES = find_spec("zarr") is not None and find_spec("xarray") is not None
if STORES:  # here, once, and not in each process
    import_module("zarr")
    xarray = import_module("xarray")
CHAINS, BATCH = 60, 12
PILOT = stk.Warmup(24, pilot=16)
SIZES = (3,)
"""Of jobs that every test run has, beside the process alone; 1, 2 and 4 are slow tests'."""


def bumpy(x):
    return x.square().sum(1) / 2 + torch.sin(3 * x).sum(1)


FIELD = stk.Energy(bumpy, (3,))
FLOW = stk.Velocity(lambda x, t: torch.tanh(x) * (1 - t[:, None]), (2,))


def digest(draws):
    """All that draws hold, cost and provenance among it."""
    tensors, header = draws._parts()
    told = hashlib.sha256(repr(sorted(map(str, header.items()))).encode())
    for name, value in sorted(tensors.items()):
        told.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    return told.hexdigest()


CALLS = {
    "tuned": lambda **more: stk.sample(FIELD, chains=CHAINS, steps=8, warmup=PILOT, **more),
    "moments": lambda **more: stk.sample(
        FIELD, stk.MALA(0.3), chains=CHAINS, steps=9, keep="moments", **more
    ),
    "last": lambda **more: stk.sample(
        FIELD, stk.HMC(0.2, 3), chains=7, steps=9, warmup=12, keep="last", **more
    ),
    "a grid": lambda **more: stk.sample(FLOW, stk.ProbabilityFlow(steps=4), chains=CHAINS, **more),
    "a range": lambda **more: stk.sample(
        FIELD, stk.MALA(), chains=range(10, 50), steps=4, warmup=PILOT, keep="moments", **more
    ),
}


def one_process():
    """The digests of the same calls in one process."""
    return {name: digest(call(batch=BATCH)) for name, call in CALLS.items()}


def shared_draws():
    with stk.distributed():
        return one_process()


def command(folder):
    """The command line as torchrun starts it: the first rank alone writes and prints."""
    os.environ["TORCHELASTIC_RUN_ID"] = "jobs"
    words = ["sample", "funnel", "--solver", "mala", "--set", "step_size=0.1", "--batch", "8"]
    words += ["--chains", "20", "--steps", "4", "-o", str(folder / "draws.safetensors")]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = cli.main(words)
    return code, bool(told.getvalue())


def network():
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))
    for value in net.parameters():
        value.data = torch.randn(value.shape, generator=generator) / 3
    return net


def of_network(net, solver=None, **more):
    field = stk.Energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2, (3,))
    warmup = stk.Warmup(12, pilot=8)
    return stk.sample(field, solver, chains=24, steps=4, warmup=warmup, batch=8, **more)


def in_teams(spread, folder, solver=None):
    """Draws of a network that two ranks hold together, in as many pairs as there are; saved, and taken up."""
    distributed.init_process_group("gloo")
    mesh = init_device_mesh(
        "cpu", (distributed.get_world_size() // 2, 2), mesh_dim_names=("a", "b")
    )
    net, found = network(), []
    if "fsdp" in spread:  # its copies lie on other pairs
        for layer in (net[0], net[2], net[4], net):
            fully_shard(layer, mesh=mesh if spread == "copies of fsdp" else mesh["b"])
    else:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(net, mesh["b"], plan)
    placed, written = store.Store._placed, []
    store.Store._placed = lambda *told: written.append(told[1]) or placed(*told)
    more = {"keep": stk.Zarr(folder.with_suffix(".zarr"), draws=3)} if STORES else {}
    with stk.distributed(model_group=mesh["b"]):
        for _ in range(2):  # saved at each step, the last one too
            draws = of_network(net, solver, checkpoint=stk.Checkpoint(folder, every=1e-6), **more)
            found.append(draws.x[:])
    assert torch.equal(*found)
    assert not (written and rank() % 2)  # the leader writes what both have
    distributed.barrier()
    return draws.x[:].numpy()


def loses_one_of_its_team(folder):
    """A network on two ranks, one of which is killed in the middle of a run that is saved."""
    distributed.init_process_group("gloo")
    mesh, net, steps = init_device_mesh("cpu", (2,)), network(), []
    parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})

    def dying(x):
        steps.append(len(x))
        if rank() and len(steps) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return net(x)

    def call():
        with stk.distributed(model_group=mesh, timeout=10.0):
            of_network(dying, stk.MALA(0.3), checkpoint=stk.Checkpoint(folder, every=1e-6))

    return raised(call)


def other_teams():
    """A network of two ranks that nobody says to be held together, and teams that overlap."""
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    net, one = network(), distributed.new_group([0])
    parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})

    def call(group):
        with stk.distributed(model_group=group, timeout=20.0):
            of_network(net, stk.MALA())

    def within():
        with stk.distributed(timeout=20.0):
            call(mesh)

    apart = lambda: call(mesh if rank() else one)  # noqa: E731
    return raised(lambda: call(None)), raised(apart), raised(within)


def whole_on_each():
    """Networks of which each rank has all, and one that sends its buffers in each step."""
    distributed.init_process_group("gloo")
    mesh, alike = init_device_mesh("cpu", (2,)), [Replicate()]
    copies = distribute_module(
        network(),
        mesh,
        input_fn=lambda _, x, mesh: DTensor.from_local(x[0], mesh, alike, run_check=False),
        output_fn=lambda _, y, mesh: y.to_local(),
    )
    norm = nn.BatchNorm1d(1, affine=False).eval()

    def call(net):
        with stk.distributed(timeout=20.0):
            return of_network(net, stk.MALA()).x.numpy()

    refused = raised(lambda: call(DistributedDataParallel(nn.Sequential(network(), norm))))
    return refused, call(copies), call(DistributedDataParallel(network()))


def on_a_device(folder):
    """Draws and weights that live on a device which the process group does not serve, as they came: each kind of messages."""
    place, net = accelerator.NAME, network()
    noise.WINDOW_FIRST_ACCELERATOR = (
        noise.WINDOW_FIRST
    )  # of a window the pretended device looks at every step
    with accelerator.pretend(), stk.distributed(timeout=60.0):
        shift = torch.linspace(0.0, 1.0, 3).to(place)
        field = stk.Energy(lambda x: bumpy(x - shift), (3,))
        call = {"chains": 10, "steps": 4, "batch": 3, "device": place}
        plan = stk.Warmup(6, pilot=4)
        runs = {
            "tuned": stk.sample(field, stk.MALA(), warmup=plan, checkpoint=folder / "c", **call),
            "taken up": stk.sample(field, stk.MALA(), warmup=plan, checkpoint=folder / "c", **call),
            "moments": stk.sample(field, stk.MALA(0.3), keep="moments", **call),
            "a grid": stk.sample(
                FLOW, stk.ProbabilityFlow(steps=2), chains=10, batch=3, device=place
            ),
        }
        if STORES:
            keep = stk.Zarr(folder / "d.zarr", draws=2)
            stored = stk.sample(field, stk.HMC(0.2, 2), keep=keep, warmup=plan, **call)
            runs["a store"] = stored
        found = {
            f"{name}/{part}": value
            for name, draws in runs.items()
            for part, value in draws._parts()[0].items()
        }
        net.to(place)
        rows, loss = (
            shift + torch.arange(12.0, device=place)[:, None] / 9,
            lambda x, _: net(x).square(),
        )
        done = fit(net, loss, rows, Recipe(3, batch=8, learning_rate=0.1, parts=2))
        found |= {f"weights/{name}": value for name, value in done.weights.items()}
        return {name: (value.device.type, value.cpu().numpy()) for name, value in found.items()}


def enters_again():
    """Contexts one after the other, of which the process with the store in it leaves each last."""
    leave = distributed.destroy_process_group

    def late(*told):
        time.sleep(0.0 if rank() else 0.5)
        leave(*told)

    distributed.destroy_process_group = late

    def call():
        for _ in range(3):
            with stk.distributed(timeout=5.0):
                pass

    return raised(call)


def skips_a_call():
    """Ranks of which one makes a call that the other does not."""

    def call():
        with stk.distributed(timeout=2.0):
            for _ in range(1 + rank()):
                stk.sample(FIELD, stk.MALA(0.3), 8, 2, batch=4)

    return raised(call)


def keeps_the_store():
    """The process with the store in it is the last to come to the end, and is gone before others look again."""
    distributed.init_process_group("gloo")
    heartbeat.LOOK = 2.0
    with stk.distributed(timeout=20.0) as where:
        time.sleep(0.0 if where.rank else 1.5)
    return where.rank


def tells_much():
    """What is published in the store, of more bytes than it takes at once: images, a leaf that was tuned, an error."""
    shape = (3, 256, 256)
    images = stk.Velocity(lambda x, t: -x * t[:, None, None, None], shape)

    with stk.distributed(timeout=600.0):
        run = {"chains": 4, "batch": 2, "keep": "last"}
        draws = stk.sample(images, stk.ProbabilityFlow(steps=2), **run)
        with ranks.shared_call({}, Identity()) as share:
            leaf = torch.arange(5 << 20, dtype=torch.float32)
            if rank() == 0:
                share.publish("pilot", {"x": leaf})
            assert torch.equal(share.fetch("pilot")["x"], leaf)
        field = fails_on(1, ValueError("too much", leaf))
        error = raised(lambda: stk.sample(field, stk.ULA(0.1), CHAINS, 4, batch=BATCH))
    return float(draws.final.sum()), error[0]


def tuned_apart():
    """The mutant: every batch tunes for itself, on whatever rank it is."""
    batches._Pilot.of = staticmethod(lambda share, i, *rest: batches._Pilot(asked=not i))
    with stk.distributed():
        return digest(CALLS["tuned"](batch=BATCH))


def in_order_of_ranks():
    """The mutant: draws are put together by ranks, not by the numbers of batches."""
    exchanged = ranks._Shared._exchanged

    def by_rank(share, *rest):
        return reversed(list(exchanged(share, *rest)))

    ranks._Shared._exchanged = by_rank
    with stk.distributed():
        return digest(CALLS["moments"](batch=BATCH))


def raised(call):
    """What a call raises, and what is noted there."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 (an interrupt too)
        return type(error).__name__, str(error), list(getattr(error, "__notes__", []))
    return None


def rank():
    return int(os.environ["RANK"])


def fails_on(number, error):
    """A field that raises on one rank."""

    def energy(x):
        if rank() == number:
            raise error
        time.sleep(0.1)  # so that the other one has a batch too
        return bumpy(x)

    return stk.Energy(energy, (3,))


def by_rank(x):
    """An energy that depends on what nobody sees who looks at what it is made of."""
    time.sleep(0.05)  # so that the other rank has a batch too
    return bumpy(x) * (1 + 1e-3 * rank())


def drawn(x):
    """Another energy each time, as of a part of the data that is drawn anew: alike once in a hundred thousand times."""
    return bumpy(x) + 10 ** (30 * int.from_bytes(os.urandom(8)) / 2**64)


def of_twelve(x):
    """An energy that is made for batches of one size."""
    return bumpy(x.reshape(BATCH, 3))


class Odd(Exception):
    """One that cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def errors(folder):
    """Errors of one rank, and that the ranks go on together after each."""
    found = {}
    with stk.distributed() as where:
        for name, error in (
            ("value", ValueError("no such value")),
            ("odd", Odd(1, 2)),
            ("interrupt", KeyboardInterrupt()),
            ("leaves", SystemExit(0)),
            ("leaves in vain", SystemExit(3)),
        ):
            found[name] = raised(
                lambda e=error: stk.sample(fails_on(1, e), stk.ULA(0.1), CHAINS, 4, batch=BATCH)
            )
        found["steps"] = raised(
            lambda: stk.sample(FIELD, stk.ULA(0.1), CHAINS, 4 + rank(), batch=BATCH)
        )
        shift = float(rank())
        other = stk.Energy(lambda x: bumpy(x - shift), (3,))
        found["field"] = raised(lambda: stk.sample(other, stk.ULA(0.1), CHAINS, 4, batch=BATCH))
        for name, energy in (("answers", by_rank), ("drawn", drawn), ("of twelve", of_twelve)):
            field = stk.Energy(energy, (3,))
            found[name] = raised(
                lambda f=field: stk.sample(f, stk.MALA(0.1), CHAINS, 4, batch=BATCH)
            )
        own = stk.Energy(lambda x: bumpy(x.to(where.device)), (3,))
        found["its ranks"] = raised(lambda: stk.sample(own, stk.ULA(0.1), CHAINS, 4, batch=BATCH))
        field, saved = fails_on(1, ValueError("no such value")), folder / "fails"
        found["saved"] = raised(
            lambda: stk.sample(field, stk.ULA(0.1), CHAINS, 4, batch=BATCH, checkpoint=saved)
        )
        found["after"] = digest(CALLS["moments"](batch=BATCH))
    return found


def other_stores(folder):
    """Ranks that ask for stores at other paths, one that is there, and what each raises."""
    found = {}
    for name, path in (("paths", f"r{rank()}"), ("there", "there")):
        if STORES:
            found[name] = raised(lambda p=path: streamed(folder / p))
            found[name] = found[name] or raised(lambda p=path: streamed(folder / p))
    return found


def loads_at_once(folder):
    """Ranks that load the store as soon as they have its draws, though its last words take long to write."""
    finish = store.Store.finish

    def slowly(*told):
        time.sleep(0.5)
        finish(*told)

    store.Store.finish = slowly
    with stk.distributed(timeout=60.0):
        draws = stk.sample(
            FIELD, stk.MALA(0.3), chains=8, steps=4, batch=2, keep=stk.Zarr(folder / "at-once.zarr")
        )
        return torch.equal(stk.Draws.load(folder / "at-once.zarr").x.load(), draws.x.load())


def waits_for_another():
    """One rank of two, of which the other does not come."""
    os.environ["WORLD_SIZE"] = "2"
    return raised(lambda: saved(None, timeout=2.0))


def outlasts():
    """A job that takes longer than its timeout, to whose begin and end one rank comes after the other."""
    distributed.init_process_group("gloo")
    time.sleep(rank())

    def call():
        with stk.distributed(timeout=9.0):
            for _ in range(4):
                stk.sample(FIELD, stk.MALA(0.3), 8, 2, batch=4)
                time.sleep(3.0)
            time.sleep(0.5 * rank())

    return raised(call)


def leaves_early():
    """One rank ends with an error between two calls."""

    def call():
        with stk.distributed():
            if rank() == 0:
                raise LookupError("nothing to do")
            CALLS["moments"](batch=BATCH)

    return raised(call)


def hears_late():
    """A rank raises while another is in a long step, and the one with the store in it hears of it at once."""

    def energy(x):
        if rank() == 2:
            raise ValueError("no such value")
        time.sleep(0.3 if rank() == 1 else 0.01)
        return bumpy(x)

    def call():
        with stk.distributed(timeout=20.0):
            stk.sample(stk.Energy(energy, (3,)), stk.ULA(0.1), CHAINS, 4, batch=BATCH)

    return raised(call)


def all_leave():
    """Ranks that leave the process within the context, each by itself."""

    def call():
        with stk.distributed(timeout=20.0):
            CALLS["moments"](batch=BATCH)
            raise SystemExit(0)

    return raised(call)


def counted():
    """A field that counts its calls, so that it is another on every rank after the first."""
    calls = []

    def energy(x):
        calls.append(len(x))
        return bumpy(x)

    with stk.distributed():
        field = stk.Energy(energy, (3,))
        runs = [stk.sample(field, stk.MALA(0.3), CHAINS, 4, batch=BATCH) for _ in range(2)]
    return [digest(draws) for draws in runs]


def first_of(n):
    """Keeps the other ranks until rank n has had the time to claim a batch, at their first evaluation alone."""
    waited = []

    def wait():
        if rank() != n and not waited:
            waited.append(True)
            time.sleep(3.0)

    return wait


def hangs():
    """One rank hangs in the field."""

    wait = first_of(1)

    def energy(x):
        wait()
        if rank() == 1:
            time.sleep(60)
        return bumpy(x)

    def call():
        with stk.distributed(timeout=10.0):
            stk.sample(stk.Energy(energy, (3,)), stk.ULA(0.1), CHAINS, 4, batch=BATCH)

    return raised(call)


def stops():
    """The rank that keeps the store is stopped, as a machine that freezes: its connections stay open."""

    wait = first_of(0)

    def energy(x):
        wait()
        if rank() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return bumpy(x)

    def call():
        with stk.distributed(timeout=10.0):
            stk.sample(stk.Energy(energy, (3,)), stk.ULA(0.1), CHAINS, 4, batch=BATCH)

    return raised(call)


def is_killed():
    """One rank is killed in the field, where nothing else ends the others."""

    wait = first_of(1)

    def energy(x):
        wait()
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return bumpy(x)

    def call():
        with stk.distributed(timeout=10.0):
            stk.sample(stk.Energy(energy, (3,)), stk.ULA(0.1), CHAINS, 4, batch=BATCH)

    return raised(call)


def saved(folder, pause=0.0, timeout=60.0):
    """A run that is saved after each block; each evaluation takes a pause, which is no part of it."""
    os.environ["PAUSE"] = str(pause)

    def energy(x):
        time.sleep(float(os.environ["PAUSE"]))
        return bumpy(x)

    with stk.distributed(timeout=timeout):
        draws = stk.sample(
            stk.Energy(energy, (3,)),
            chains=CHAINS,
            steps=24,
            warmup=PILOT,
            batch=BATCH,
            checkpoint=stk.Checkpoint(folder, every=1e-3),
        )
    return digest(draws)


def streamed(path, pause=0.0, checkpoint=None, timeout=60.0, **more):
    """A run whose ranks write one store; as the digest of what is read back."""
    os.environ["PAUSE"] = str(pause)

    def energy(x):
        time.sleep(float(os.environ["PAUSE"]))
        return bumpy(x)

    return streamed_with(energy, path, checkpoint, timeout, **more)


def streamed_with(energy, path, checkpoint=None, timeout=60.0, **more):
    run = {"chains": CHAINS, "steps": 24, "batch": 7, "checkpoint": checkpoint} | more
    with stk.distributed(timeout=timeout):
        keep = stk.Zarr(path, draws=5)
        draws = stk.sample(stk.Energy(energy, (3,)), stk.MALA(0.3), keep=keep, **run)
    return draws.x[:].numpy(), stk.diagnostics.rhat(draws.x).numpy()


def on_a_full_disk(folder, streams, room=0):
    """A run of many ranks, of which rank 1 cannot write files of more than so many bytes; 0 for as many as it likes.

    Metadata and the state of a batch fit, its draws do not: a disk that is full holds the one and not the other.
    """
    os.environ["PAUSE"] = "0.003" if room and rank() == 0 else "0"  # so that rank 1 has a batch
    if room and rank() == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    def energy(x):
        time.sleep(float(os.environ["PAUSE"]))
        return bumpy(x)

    keep = stk.Zarr(folder / "d.zarr", draws=300) if streams else "all"
    run = {"chains": CHAINS, "steps": 300, "batch": 20, "keep": keep}
    saved = stk.Checkpoint(folder / "c", every=1e-3)
    with stk.distributed(timeout=60.0):
        draws = stk.sample(stk.Energy(energy, (3,)), stk.MALA(0.3), checkpoint=saved, **run)
    return draws.x[:].numpy()


def filled_up(folder, streams, room):
    """What the ranks of a job raised whose second one met a full disk, and what another number had when there was room."""
    failed = Job(2, on_a_full_disk, folder, streams, room)
    ends, left = failed.wait(), sum(process.is_alive() for process in failed.processes)
    return ends, left, Job(3, on_a_full_disk, folder, streams).wait()


def task(number, folder):
    """A task of an array of jobs, as the page has it: it knows its number, and nothing of the others."""
    os.environ["SLURM_ARRAY_TASK_ID"] = str(number)
    i, each = int(os.environ["SLURM_ARRAY_TASK_ID"]), 10
    draws = stk.sample(FIELD, stk.MALA(0.3), chains=range(i * each, (i + 1) * each), steps=4)
    draws.save(f"{folder}/part-{i}.safetensors")


def reads(path, end):
    """What is seen of a store until this process is told to stop."""
    seen = []
    while not end.poll(0.05):
        if path.exists() and len(seen) < 100:
            with xarray.open_datatree(path, engine="zarr") as tree:
                kept = tree["sample_stats"]["kept"].values
                seen.append((kept, tree["posterior"]["x"].values))
    end.send(seen)


def watched(size, path):
    """What the ranks of a job read in their store, and how much of it another process has seen meanwhile.

    This process itself reads nothing: zarr has threads, and what is forked after it has none of them.
    """
    ours, theirs = FORK.Pipe()
    reader = FORK.Process(target=reads, args=(path, theirs))
    reader.start()
    ranks = Job(size, streamed, path, 0.01).wait(300)
    ours.send(None)
    seen = ours.recv()
    reader.join()
    return ranks, seen


class Job:
    """Processes that are forked, before torch has threads, with the variables that `torchrun` sets.

    Args:
        size: How many.
        f: What each does.
        arguments: With what.
    """

    def __init__(self, size, f, *arguments):
        self.held = held_port()
        port = self.held.getsockname()[1]
        self.answers, ends = {}, []
        self.processes = []
        for number in range(size):
            ours, theirs = FORK.Pipe(duplex=False)
            process = FORK.Process(
                target=self._run, args=(number, size, port, theirs, f, arguments)
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            ends.append(ours)
        self.ends = ends

    @staticmethod
    def _run(number, size, port, end, f, arguments):
        os.environ |= {
            "RANK": str(number),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        answer = raised(lambda: end.send(f(*arguments)))
        if answer is not None:
            end.send(answer)

    def kill(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self, seconds=600.0, ranks=None):
        """What each rank had, None of one that was killed; those of `ranks` alone are waited for."""
        left = {end: n for n, end in enumerate(self.ends) if ranks is None or n in ranks}
        over = time.monotonic() + seconds
        while left and time.monotonic() < over:
            for end in wait(list(left), timeout=0.1):
                number = left.pop(end)
                try:
                    self.answers[number] = end.recv()
                except EOFError:
                    self.answers[number] = None
        if left or ranks is not None:
            self.kill()
        for process in self.processes:
            process.join()
        self.held.close()
        return self.answers


def stormy(folder, seed, sizes, kills, singly=False):
    """Runs whose jobs are killed at random moments and go on with another number of ranks.

    Args:
        folder: Where the runs are saved, one after the other: a run that is over makes room for the next.
        seed: Of the moments.
        sizes: The numbers of ranks, in turn.
        kills: How many jobs are killed while they run.
        singly: Whether every other time one rank alone is killed, and the others have to end by themselves.

    Returns:
        What the ranks of each job that nobody killed had, how many were killed, and how many processes were left over.
    """
    random, done, turn, left, ends = torch.Generator().manual_seed(seed), 0, 0, 0, []
    draw = lambda: float(torch.rand((), generator=random))  # noqa: E731
    while (done < kills or not ends) and turn < 10 * kills:
        pause = 0.004 if done < kills else 0.0
        size, patience = sizes[turn % len(sizes)], 20.0 if singly else 60.0
        job = Job(size, saved, folder / str(len(ends)), pause, patience)
        turn += 1
        over = wait([p.sentinel for p in job.processes], timeout=0.1 + draw()) if pause else True
        if over:
            ends.append(job.wait())
            continue
        done += 1
        if singly and done % 2:
            victim = int(draw() * len(job.processes))
            job.processes[victim].kill()
            for process in job.processes:
                process.join(60)
        else:
            job.kill()
        left += sum(process.is_alive() for process in job.processes)
        job.kill()
    return ends, done, left


def outlived(folder, ranks):
    """What jobs have that come after one whose rank 0 was killed, while its rank 1, not knowing, is in a long step.

    Returns:
        What one had, whether rank 1 still ran when it ended, and what one had after that.
    """
    first = Job(2, lingers, folder)
    while not (folder / "long").exists():
        time.sleep(0.01)
    first.processes[0].kill()
    first.processes[0].join()
    second = Job(ranks, lingers, folder).wait(120)
    lives = first.processes[1].is_alive()
    first.processes[1].join(60)
    return second, lives, Job(ranks, lingers, folder).wait(120)


def lingers(folder):
    """A run in a store, of which rank 1 makes one step that is long, once for all jobs."""
    steps = []

    def energy(x):
        steps.append(len(x))
        if rank() == 1 and len(steps) > 20 and not (folder / "long").exists():
            (folder / "long").touch()
            time.sleep(10)
        time.sleep(0.0 if (folder / "long").exists() else 0.01)
        return bumpy(x)

    return streamed_with(energy, folder / "d.zarr", checkpoint=stk.Checkpoint(folder / "c", 1e-3))


class System:
    """`os`, of which one module's own copy can be changed."""

    def __getattr__(self, name):
        return getattr(os, name)


def placing(name):
    """Whether `os.replace` is about to put something of this name into its place."""
    return lambda source, target: name in os.path.basename(target)


def publishing(name):
    return lambda share, published, tensors: published == name


PLACES = {
    "a run's folder is beside its place": ("system", "replace", placing("c"), 1),
    "a file of a batch is beside its place": ("system", "replace", placing("batch-"), 3),
    "the store is beside its place": ("system", "replace", placing("d.zarr"), 1),
    "the store has a number that nobody knows": (ranks._Shared, "publish", publishing("store"), 1),
    "warmup is over and not told": (ranks._Shared, "publish", publishing("pilot"), 1),
    "a chunk is written and not counted": (
        *(store.Store, "_placed", lambda of, name, value: name == "kept", 4),
    ),
    "draws are written and the state is not": (
        *(checkpoint.Checkpoint, "save", lambda *_, kind="run", **__: kind == "batch", 4),
    ),
    "all batches are over and nobody has said so": (ranks._Shared, "meet", lambda *_: True, 1),
    "the store is not said to be whole": (store.Store, "finish", lambda *_: True, 1),
    "the store says so and its metadata do not": (
        *(store, "_consolidate", lambda folder: (folder / store.OUTCOME).exists(), 1),
    ),
}
"""Where a rank is killed: what is about to be called there, with what, and the how manieth time."""


def dies_at(place):
    """Have this process killed at one of the places."""
    owner, name, matches, times = PLACES[place]
    if owner == "system":
        owner = files.os = System()
    own, left = getattr(owner, name), [times]

    def called(*arguments, **more):
        left[0] -= matches(*arguments, **more)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*arguments, **more)

    setattr(owner, name, called)


def tuned_in_a_store(folder, place=None):
    """A run with a pilot, a checkpoint and a store, whose ranks are killed at a place; what is in the store."""
    if place is not None:
        dies_at(place)
    kept = stk.Zarr(folder / "d.zarr", draws=5)
    saved = stk.Checkpoint(folder / "c", every=1e-3)
    with stk.distributed(timeout=60.0):
        draws = CALLS["tuned"](batch=BATCH, keep=kept, checkpoint=saved)
    return draws.x[:].numpy(), sorted(draws.cost.items())


def killed_at(folder, place):
    """Whether one of two ranks was killed at a place, what three had that went on, and the names left in the folder."""
    folder.mkdir()
    first = Job(2, tuned_in_a_store, folder, place)
    running = list(first.processes)
    while len(running) == len(first.processes):
        wait([process.sentinel for process in running], timeout=60)
        running = [process for process in running if process.is_alive()]
    for process in running:  # the other one hears of it, which may be before the killed one is gone
        process.join(60)
    died = any(process.exitcode == -signal.SIGKILL for process in first.processes)
    first.kill()
    again = Job(3, tuned_in_a_store, folder).wait(120)
    return died, again, sorted(path.name for path in folder.iterdir())


def made(folder):
    folder.mkdir()
    return folder


def all_of_them(folder):
    """All jobs of the default tests: what every rank of every job had, by the names of jobs and numbers of ranks."""
    found = {"one process": one_process()}
    found["whole network"] = of_network(network(), stk.MALA()).x.numpy()
    found["shared draws"] = {n: Job(n, shared_draws).wait() for n in SIZES}
    together = {
        "errors": (Job(2, errors, folder), None),
        "enters again": (Job(2, enters_again), None),
        "skips a call": (Job(2, skips_a_call), None),
        "leaves early": (Job(2, leaves_early), None),
        "hears late": (Job(3, hears_late), None),
        "all leave": (Job(2, all_leave), None),
        "outlasts": (Job(2, outlasts), None),
        "stores": (Job(2, other_stores, folder), None),
        **({"loads": (Job(2, loads_at_once, folder), None)} if STORES else {}),
        "waits": (Job(1, waits_for_another), None),
        "counted": (Job(2, counted), None),
        "command": (Job(2, command, folder), None),
        "fsdp": (Job(2, in_teams, "fsdp", folder / "fsdp", stk.MALA()), None),
        "on a device": (Job(2, on_a_device, made(folder / "device")), None),
        "on a device, alone": (Job(1, on_a_device, made(folder / "device-alone")), None),
        "other teams": (Job(2, other_teams), None),
        "loses one": (Job(2, loses_one_of_its_team, folder / "loses"), None),
        "whole on each": (Job(2, whole_on_each), None),
        "keeps the store": (Job(2, keeps_the_store), None),
        "tells much": (Job(2, tells_much), None),
        **{f"task {i}": (Job(1, task, i, folder), None) for i in (0, 1)},
        "tuned apart": (Job(2, tuned_apart), None),
        "in order of ranks": (Job(2, in_order_of_ranks), None),
        "hangs": (Job(2, hangs), [0]),
        "stops": (Job(3, stops), [1, 2]),
        "is killed": (Job(3, is_killed), [0, 2]),
    }
    for name, (job, waited) in together.items():
        found[name] = job.wait(ranks=waited)
    found["store"] = watched(2, folder / "draws.zarr") if STORES else None
    found["written"] = stk.Draws.load(folder / "draws.safetensors").x.numpy()
    parts = [stk.Draws.load(path) for path in sorted(folder.glob("part-*"))]
    found["array"] = stk.concatenate(parts).x.numpy()
    found["never stopped"] = Job(1, saved, folder / "never").wait()
    (folder / "killed").mkdir()
    found["killed"] = stormy(folder / "killed", 1, (3, 2), 2)
    first = Job(1, saved, folder / "held", 0.05)
    while not (folder / "held" / "manifest.safetensors").exists():
        time.sleep(0.01)
    found["second"] = Job(1, saved, folder / "held").wait()
    first.kill()
    return found
