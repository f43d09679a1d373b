"""What memory does not hold is refused before anything is spent, with the gigabytes and the ways out."""

import pytest
import torch

import scoretk as stk
from scoretk.core import memory
from scoretk.run.fits import Kept, check_fits

CPU = torch.device("cpu")


def asked_nothing(x):
    raise AssertionError("the field was asked")


@pytest.mark.parametrize(
    ("free", "run", "said"),
    [
        (10**10, {"chains": 10**6, "steps": 10**7, "batch": 10**4}, "80,000 GB"),
        (10**10, {"chains": 4, "steps": 10**12}, "32,000 GB"),
        (10**9, {"chains": 2 * 10**6, "steps": 1000, "thin": 10, "batch": 10**4}, "1.62 GB"),
        (10**7, {"chains": 2 * 10**6, "steps": 9, "keep": "moments", "batch": 10**4}, "0.144 GB"),
        # whose ids alone are 34 GB
        (10**10, {"chains": 2**32 - 1, "steps": 9, "keep": "moments"}, "309 GB"),
    ],
    ids=["draws", "steps", "thinned", "moments", "as many as there can be"],
)
def test_what_does_not_fit_is_refused_before_the_field_is_asked(free, run, said, monkeypatch):
    monkeypatch.setattr("scoretk.run.fits.available", lambda device: free)
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
        (Kept("all", 10, 7, 3, 3, torch.float64, CPU), 10 * (7 * 3 + 3) * 8),
        (Kept("all", 10, 7, 5, 3, torch.float32, CPU), 10 * (7 * 5 + 3) * 4),
        (Kept("last", 10, 1, 3, 3, torch.float32, CPU), 10 * 6 * 4),
        (Kept("moments", 10, 7, 3, 3, torch.float32, CPU), 10 * 3 * (4 + 32)),
        (Kept("all", 10, 7, 3, 3, torch.float32, CPU, streamed=True), 10 * 3 * 4),
    ],
)
def test_to_the_byte(kept, size, monkeypatch):
    assert kept.bytes == size
    monkeypatch.setattr("scoretk.run.fits.available", lambda device: size)
    check_fits(kept)
    monkeypatch.setattr("scoretk.run.fits.available", lambda device: size - 1)
    with pytest.raises(stk.InvalidArgument):
        check_fits(kept)


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
