"""What memory does not hold is refused before anything is spent, with the gigabytes and the ways out."""

import pytest
import torch

import scoretk as stk
from scoretk.conformance import solver_laws
from scoretk.core import memory
from scoretk.run import fits
from scoretk.run.fits import Kept, check_fits
from scoretk.solvers.base import DRIVERS, traits
from scoretk.solvers.examples import EXAMPLES

CPU = torch.device("cpu")


def asked_nothing(x):
    raise AssertionError("the field was asked")


@pytest.mark.parametrize(
    ("free", "run", "said"),
    [
        (10**10, {"chains": 10**6, "steps": 10**7, "batch": 10**4}, "80,000 GB"),
        (10**10, {"chains": 4, "steps": 10**12}, "32,000 GB"),
        (10**9, {"chains": 2 * 10**6, "steps": 1000, "thin": 10, "batch": 10**4}, "1.66 GB"),
        (10**7, {"chains": 2 * 10**6, "steps": 9, "keep": "moments", "batch": 10**4}, "0.192 GB"),
        # whose ids alone are 34 GB
        (10**10, {"chains": 2**32 - 1, "steps": 9, "keep": "moments"}, "412 GB"),
    ],
    ids=["draws", "steps", "thinned", "moments", "as many as there can be"],
)
def test_what_does_not_fit_is_refused_before_the_field_is_asked(free, run, said, monkeypatch):
    monkeypatch.setattr("scoretk.run.fits.available", lambda device, processes: free)
    field = stk.Energy(asked_nothing, (2,))
    with pytest.raises(stk.InvalidArgument) as refused:
        stk.sample(field, stk.ULA(0.1), dtype=torch.float32, warmup=500, **run)
    text = str(refused.value)
    assert said in text
    assert f"{free / 1e9:.3g} GB are free" in text
    ways = ("chains=range",) if run.get("keep") else ("keep='moments'", "thin=", "Zarr(")
    assert all(way in text for way in ways), text


@pytest.mark.parametrize(
    ("kept", "size"),
    [
        (Kept("all", 10, 7, 3, 3, 0, torch.float64, CPU), 10 * ((7 * 3 + 3) * 8 + 24)),
        (Kept("all", 10, 7, 5, 3, 2, torch.float32, CPU), 10 * ((7 * 7 + 3) * 4 + 24)),
        (Kept("last", 10, 1, 3, 3, 0, torch.float32, CPU), 10 * (6 * 4 + 24)),
        (Kept("last", 10, 1, 3, 3, 2, torch.float32, CPU), 10 * (6 * 4 + 2 * 8 + 24)),
        (Kept("moments", 10, 7, 3, 3, 2, torch.float32, CPU), 10 * (3 * (4 + 32) + 2 * 8 + 24)),
        (Kept("all", 10, 7, 3, 3, 2, torch.float32, CPU, streamed=True), 10 * (3 * 4 + 24)),
    ],
)
def test_to_the_byte(kept, size, monkeypatch):
    assert kept.bytes == size
    monkeypatch.setattr(fits, "LITTLE", 0)
    monkeypatch.setattr("scoretk.run.fits.available", lambda device, processes: size)
    check_fits(kept)
    monkeypatch.setattr("scoretk.run.fits.available", lambda device, processes: size - 1)
    with pytest.raises(stk.InvalidArgument):
        check_fits(kept)


@pytest.mark.parametrize(
    ("draws", "processes", "asked"), [(100, 1, 0), (101, 1, 1), (50, 2, 0), (51, 2, 1)]
)
def test_the_system_is_asked_for_more_than_a_little(monkeypatch, draws, processes, asked):
    """Of all processes together: to ask takes longer than a short run."""
    calls = []
    monkeypatch.setattr(fits, "available", lambda *_: calls.append(1))
    kept = Kept("all", 1, draws, 1, 0, 0, torch.float32, CPU)
    monkeypatch.setattr(fits, "LITTLE", 100 * 4 + processes * fits.FATE)
    check_fits(kept, processes)
    assert len(calls) == asked


@pytest.mark.parametrize("keep", ["all", "last", "moments"])
@pytest.mark.parametrize("name", ["mala", "nuts", "parallel-tempering", "ula", "adjusted-mclmc"])
def test_what_is_counted_is_what_draws_hold(name, keep, monkeypatch):
    """But flags, a byte each, and what moments of the first half share, which is there in a run of four draws."""
    counted = []
    monkeypatch.setattr(
        "scoretk.inference.sampling.check_fits", lambda kept, _: counted.append(kept)
    )
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (3,))
    draws = stk.sample(field, EXAMPLES[name], chains=8, steps=9, keep=keep, batch=4)
    held = [value for name, value in vars(draws).items() if isinstance(value, torch.Tensor)]
    held = [value for value in held if value is not draws.half_draws]
    held += [value for value in draws.stats.values() if value.dtype is not torch.bool]
    flags = "diverging" in draws.stats and keep != "all"  # as sums, numbers like any other
    assert counted[0].bytes == sum(value.nbytes for value in held) - flags * 8 * 8


@pytest.mark.parametrize("name", EXAMPLES)
def test_solvers_say_what_they_report(name):
    """All of it, which the laws of conformance ask where a solver says anything at all."""
    solver, noise = EXAMPLES[name], solver_laws._noise(solver_laws.FEW)
    for field, x in solver_laws._starts(solver):
        bound = solver_laws._bound(field, solver)
        _, info = solver.step(bound, solver.init(bound, x, noise), noise)
        assert {*traits(solver).reports} == info.keys() - DRIVERS


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """Each keeps all: none of four may have what is free, which the limit of a process is beside."""
    monkeypatch.setattr(memory, "_of_machine", lambda: 4000)
    monkeypatch.setattr(memory, "_of_groups", lambda: [2000])
    monkeypatch.setattr(memory, "_of_process", lambda: None)
    assert [memory.available(CPU, n) for n in (1, 2, 4)] == [2000, 1000, 500]
    monkeypatch.setattr(memory, "_of_process", lambda: 800)
    assert [memory.available(CPU, n) for n in (1, 4)] == [800, 500]
    field, run = stk.Energy(lambda x: x.square().sum(1) / 2, (2,)), {"chains": 16, "steps": 1}
    monkeypatch.setattr(fits, "LITTLE", 0)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    stk.sample(field, stk.ULA(0.1), **run)
    with stk.distributed(), pytest.raises(stk.InvalidArgument, match="free on cpu for each of 4"):
        stk.sample(field, stk.ULA(0.1), **run)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with stk.distributed():
        stk.sample(field, stk.ULA(0.1), **run)


def test_what_is_free_is_the_least_of_machine_container_and_process(tmp_path, monkeypatch):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (groups / "a" / "b").mkdir(parents=True)
    proc.mkdir()
    (proc / "meminfo").write_text("MemAvailable:  1000 kB\nSwapFree: 24 kB\n")
    (proc / "cgroup").write_text("0::/a/b\n")
    for name in ("MEMINFO", "CGROUP"):
        monkeypatch.setattr(memory, name, proc / name.lower())
    monkeypatch.setattr(memory, "GROUPS", groups)
    monkeypatch.setattr(memory, "_of_process", lambda: None)
    assert memory.available(CPU) == 1024 * 1024
    (groups / "a" / "memory.max").write_text("5000\n")
    (groups / "a" / "memory.current").write_text("3000\n")
    assert memory.available(CPU) == 2000
    (groups / "a" / "memory.stat").write_text("anon 7\ninactive_file 500\n")
    assert memory.available(CPU) == 2500
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    (groups / "a" / "b" / "memory.current").write_text("10\n")
    assert memory.available(CPU) == 2500
    monkeypatch.setattr(memory, "_of_process", lambda: 100)
    assert memory.available(CPU) == 100


@pytest.mark.parametrize("size", [10**400, 2**80, 1.5e15])
def test_any_size_is_told_in_gigabytes(size):
    """A whole number may be larger than any floating-point number."""
    assert memory.gigabytes(size).endswith(" GB")
    assert memory.gigabytes(2**80) == "1,208,925,819,614,629 GB"


@pytest.mark.parametrize("shape", [(10**400,), (2**32, 2**31), (10**30, 1)])
def test_no_event_has_more_numbers_than_a_tensor(shape):
    with pytest.raises(
        stk.InvalidArgument, match=r"event_shape: expected a shape of fewer than 2\*\*63"
    ):
        stk.Energy(lambda x: x.sum(1), shape)
    assert stk.Energy(lambda x: x.sum(1), (2**31, 2**31)).event_shape == (2**31, 2**31)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 3), (300_000, 7)], ids=str)
def test_room_is_like_a_tensor_of_torch(shape, dtype):
    """Of its shape and dtype, contiguous, at a multiple of 64 bytes, and of memory of its own."""
    one, other = (memory.room_like(torch.ones(2, dtype=dtype), shape) for _ in range(2))
    assert (one.shape, one.dtype, one.device) == (torch.Size(shape), dtype, CPU)
    assert one.is_contiguous()
    assert one.numel() == 0 or one.data_ptr() % 64 == 0
    one.fill_(1)
    other.fill_(0)
    assert bool((one == 1).all())


@pytest.mark.parametrize("kind", ["meta", "mps", "xpu", "privateuseone"])
def test_of_a_device_that_says_nothing_nothing_is_known(kind):
    """What the machine has is not what its devices have."""
    assert memory.available(torch.device(kind)) is None
    assert memory.available(CPU) is not None


CACHED = {
    "": 0,
    "inactive_file 300": 300,
    "total_inactive_file 500": 500,
    "inactive_file 300\ntotal_inactive_file 500": 500,
    "total_inactive_file 500\ninactive_file 300": 500,
    "active_file 700\nanon 9": 0,
    "inactive_file 2000": 1200,
}


@pytest.mark.parametrize("told", CACHED)
def test_what_a_group_has_cached_is_free_with_that_of_the_groups_within(
    told, monkeypatch, tmp_path
):
    """However it is told, and no more than the limit."""
    (tmp_path / "own").write_text("5:memory:/job\n")
    folder = tmp_path / "groups" / "memory" / "job"
    folder.mkdir(parents=True)
    for name, text in (
        ("memory.limit_in_bytes", "4000"),
        ("memory.usage_in_bytes", "1200"),
        ("memory.stat", told),
    ):
        (folder / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "own")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    assert memory._of_groups() == [4000 - 1200 + CACHED[told]]
