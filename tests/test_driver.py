"""The run: the same chain whatever the batch, chunking, compilation or resume; failures flagged; models left as found."""

import json
import random
import runpy
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from torch import nn

import scoretk as stk
from scoretk.core import identity, marks
from scoretk.models.targets.mixture import gaussian, ring_mixture
from tests.marks import named
from tests.processes import IS_TESTED, environment

# An energy whose gradient is elementwise, so that rows agree to the bit whatever the batch
QUADRATIC = stk.Energy(lambda x: (x * x).sum(1) / 2 + (x**4).sum(1) / 40, (3,))
KERNELS = [stk.ULA(0.1), stk.MALA(0.3)]
SOLVERS = [
    *((QUADRATIC, k) for k in KERNELS),
    (QUADRATIC, stk.AnnealedLangevin(levels=(4.0, 1.0), step_size=0.05)),
    *(
        (
            stk.Diffusion(lambda x, t: -x * t[:, None], (3,), stk.VP(), "data"),
            stk.ProbabilityFlow(m, steps=9),
        )
        for m in ("euler", "heun", "dpmpp_2m")
    ),
]
IDS = [f"{type(s).__name__}-{getattr(s, 'method', '')}" for _, s in SOLVERS]


@pytest.mark.parametrize(("field", "solver"), SOLVERS, ids=IDS)
def test_chains_do_not_depend_on_the_batch(field, solver):
    steps = {} if hasattr(solver, "milestones") else {"steps": 10}
    whole = stk.sample(field, solver, chains=17, seed=5, keep="all", **steps)
    for batch in (1, 4, 16):
        parts = stk.sample(field, solver, chains=17, seed=5, keep="all", batch=batch, **steps)
        assert torch.equal(whole.x, parts.x)
        assert torch.equal(whole.final, parts.final)
        assert dict(whole.cost) == dict(parts.cost)
        for name in whole.stats:
            assert torch.equal(whole.stats[name], parts.stats[name])


@pytest.mark.parametrize("solver", KERNELS, ids=lambda s: type(s).__name__)
def test_moments_and_last_agree_with_all(solver):
    options = {
        "chains": 8,
        "steps": 200,
        "warmup": 20,
        "thin": 4,
        "seed": 1,
        "dtype": torch.float64,
    }
    every = stk.sample(QUADRATIC, solver, **options)
    moments = stk.sample(QUADRATIC, solver, keep="moments", **options)
    last = stk.sample(QUADRATIC, solver, keep="last", **options)
    assert every.x.shape == (8, 50, 3)
    assert moments.kept == 0
    with pytest.raises(stk.InvalidArgument, match=r"draws\.x.*draws\.mean"):
        _ = moments.x
    torch.testing.assert_close(moments.mean, every.x.mean(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(moments.var, every.x.var(1), rtol=1e-10, atol=1e-12)
    assert torch.equal(last.x[:, 0], last.final)
    assert torch.equal(every.final, last.final)
    for name, value in every.stats.items():
        torch.testing.assert_close(
            moments.stats[name], value.mean(1).double(), rtol=1e-6, atol=1e-9
        )


def test_thinning_keeps_the_right_steps():
    every = stk.sample(QUADRATIC, stk.ULA(0.1), chains=2, steps=12, warmup=5, seed=0)
    thinned = stk.sample(QUADRATIC, stk.ULA(0.1), chains=2, steps=12, warmup=5, thin=5, seed=0)
    assert torch.equal(thinned.x, every.x[:, [4, 9]])


def test_evaluations_are_counted():
    calls = []
    field = stk.Energy(lambda x: (calls.append(len(x)), x.square().sum(1))[1], (2,))
    for solver in KERNELS:
        calls.clear()
        draws = stk.sample(field, solver, chains=6, steps=10, batch=4)
        assert draws.cost["score"] == sum(calls) == 6 * 11
    seen = []
    timed = stk.Diffusion(lambda x, t: (seen.append(len(x)), -x)[1], (2,), stk.VP(), "noise")
    for method in ("euler", "heun", "dopri5"):
        seen.clear()
        draws = stk.sample(timed, stk.ProbabilityFlow(method, steps=5), chains=3)
        assert draws.cost["velocity"] == sum(seen)


@pytest.mark.thorough
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # torch's own, on its way through the compiler
@pytest.mark.parametrize(
    ("solver", "backend"),
    [
        (stk.ULA(0.05), "aot_eager"),
        pytest.param(stk.ULA(0.05), "inductor", marks=pytest.mark.compiled),
        pytest.param(stk.MALA(0.1), "inductor", marks=[pytest.mark.compiled, pytest.mark.slow]),
    ],
    ids=named,
)
def test_compiled_steps_agree_with_eager_ones(monkeypatch, solver, backend):
    """By default up to the graph that the compiler makes code of: that code is C++, which takes seconds to compile."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    ring = stk.Energy(lambda x: (x * x).sum(1) / 2, (2,))
    eager = stk.sample(ring, solver, chains=5, steps=12, seed=2)
    compiled = stk.sample(ring, solver, chains=5, steps=12, seed=2, compile=True)
    torch.testing.assert_close(compiled.x, eager.x, rtol=0, atol=1e-5)


class TestFailures:
    def test_a_chain_that_leaves_the_numbers_is_frozen_and_flagged(self):
        """An energy that is NaN beyond 2: chains that step there stop at their last finite place; the others go on."""
        field = stk.Energy(
            lambda x: torch.where(x[:, 0].abs() < 2, x.square().sum(1) / 2, torch.nan), (1,)
        )
        draws = stk.sample(field, stk.ULA(0.3), init=torch.zeros(300, 1), steps=60, seed=0)
        failed = draws.status == int(stk.Status.NONFINITE)
        assert 20 < int(failed.sum()) < 300
        assert bool((draws.final.abs() < 2).all())
        assert bool((draws.failed_at[~failed] == -1).all())
        for chain in torch.nonzero(failed).flatten()[:20].tolist():
            at = int(draws.failed_at[chain])
            if at > 0:
                assert torch.equal(
                    draws.x[chain, at:], draws.x[chain, at - 1].expand_as(draws.x[chain, at:])
                )
        alone = stk.sample(
            field, stk.ULA(0.3), init=torch.zeros(300, 1), steps=60, seed=0, batch=110
        )
        assert torch.equal(alone.x, draws.x)

    def test_a_start_without_finite_energy_is_flagged_and_not_moved(self):
        field = stk.Energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1), torch.nan), (1,))
        for solver in KERNELS:
            draws = stk.sample(field, solver, init=torch.tensor([[1.0], [-1.0]]), steps=20)
            assert draws.status.tolist()[1] == int(stk.Status.NONFINITE)
            assert draws.failed_at.tolist()[1] == 0
            assert bool((draws.x[1] == -1).all())

    def test_exploding_steps_end_as_nonfinite_and_never_as_zeros(self):
        field = stk.Energy(lambda x: (x**4).sum(1), (2,))
        draws = stk.sample(field, stk.ULA(1.0), init=torch.full((4, 2), 3.0), steps=50)
        assert draws.failures == {"NONFINITE": 4}
        assert bool(torch.isfinite(draws.final).all())
        assert bool((draws.final.abs() > 1).all())

    def test_raise(self):
        field = stk.Energy(lambda x: (x**4).sum(1), (2,))
        with pytest.raises(stk.ChainFailure, match=r"chain 0: NONFINITE at step") as failure:
            stk.sample(
                field, stk.ULA(1.0), init=torch.full((4, 2), 3.0), steps=50, on_failure="raise"
            )
        assert failure.value.chains == [0, 1, 2, 3]
        quiet = torch.zeros(4, 2)
        quiet[3] = 3.0
        with pytest.raises(stk.ChainFailure) as failure:
            stk.sample(
                field, stk.ULA(1e-3), init=quiet * 100, steps=50, on_failure="raise", batch=2
            )
        assert failure.value.chains == [3]  # by its own number, not by its place in the batch


class TestModelsAreLeftAsFound:
    def test_batch_norm_gradients_and_mode(self):
        with torch.random.fork_rng():
            net = nn.Sequential(
                nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
            )
        field = stk.Energy(lambda x: net(x).squeeze(1) + x.square().sum(1), (2,))
        before = {k: v.clone() for k, v in net.state_dict().items()}
        net[0].weight.requires_grad_(False)
        a = stk.sample(field, stk.MALA(0.1), chains=4, steps=5)
        b = stk.sample(field, stk.MALA(0.1), chains=4, steps=5)
        assert torch.equal(a.x, b.x)  # no dropout
        assert net.training
        assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
        assert all(p.grad is None for p in net.parameters())
        assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())

    def test_restored_after_an_error(self):
        with torch.random.fork_rng():
            net = nn.Linear(2, 1)

        def fails(x):
            net(x)
            raise RuntimeError("theirs")

        with pytest.raises(RuntimeError, match="theirs"):
            stk.sample(stk.Energy(fails, (2,)), stk.ULA(0.1), chains=2)
        assert net.training
        assert net.weight.requires_grad


RUN = """
import sys, torch, scoretk as stk
torch.set_num_threads(1)
field = stk.Energy(lambda x: (x * x).sum(1) / 2 + (x**4).sum(1) / 40, (3,))
def slow(x):
    import time; time.sleep(0.0004)
    return (x * x).sum(1) / 2 + (x**4).sum(1) / 40
saved = stk.Checkpoint(sys.argv[1], every=0.05) if len(sys.argv) > 3 else None
draws = stk.sample(stk.Energy(slow, (3,)), stk.MALA(0.3), chains=7, steps=300, warmup=20, thin=3, batch=4, seed=9,
                   keep=sys.argv[3] if len(sys.argv) > 3 else "all", checkpoint=saved)
draws.save(sys.argv[2], force=True)
"""


def _child(tmp_path, *args):
    script = tmp_path / "run.py"
    script.write_text(f"{IS_TESTED}\n{RUN}")
    return [sys.executable, str(script), *map(str, args)]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("keep", "kills"),
    [("all", 1), *(pytest.param(keep, 14, marks=pytest.mark.slow) for keep in ("all", "moments"))],
)
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bits(
    tmp_path, monkeypatch, keep, kills
):
    """By default it goes on in this process, which spares one."""
    straight = stk.sample(
        stk.Energy(lambda x: (x * x).sum(1) / 2 + (x**4).sum(1) / 40, (3,)),
        stk.MALA(0.3),
        chains=7,
        steps=300,
        warmup=20,
        thin=3,
        batch=4,
        seed=9,
        keep=keep,
    )
    saved, out = tmp_path / "run.ckpt", tmp_path / "out.safetensors"
    command, chance = _child(tmp_path, saved, out, keep), random.Random(4)
    killed = 0
    while killed < kills:
        child = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment())
        deadline = time.monotonic() + 20
        seen = saved.stat().st_mtime_ns if saved.exists() else 0
        while (
            child.poll() is None
            and time.monotonic() < deadline
            and (saved.stat().st_mtime_ns if saved.exists() else 0) == seen
        ):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.communicate()
        killed += 1
    assert killed >= min(kills, 5), "the run ended before it could be killed a few times"
    if kills > 1:
        subprocess.run(command, check=True, env=environment())
    else:
        monkeypatch.setattr(sys, "argv", command[1:])
        runpy.run_path(command[1], run_name="__main__")
    resumed = stk.Draws.load(out)
    for name in ("x", "mean", "var", "final", "status", "failed_at"):
        a, b = getattr(straight, name), getattr(resumed, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b), name
    assert all(torch.equal(straight.stats[n], resumed.stats[n]) for n in straight.stats)
    assert dict(straight.cost) == dict(resumed.cost)


class TestCheckpointFiles:
    def run(self, path, **changes):
        options = {"chains": 3, "steps": 20, "seed": 1} | changes
        return stk.sample(QUADRATIC, stk.ULA(0.1), checkpoint=path, **options)

    def test_a_finished_run_is_taken_up_as_it_is(self, tmp_path):
        path = tmp_path / "c"
        assert torch.equal(self.run(path).x, self.run(path).x)

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "other tensors"])
    def test_damage_is_refused_and_the_file_left_alone(self, tmp_path, damage):
        path = tmp_path / "c"
        self.run(path)
        content = bytearray(path.read_bytes())
        if damage == "truncated":
            content = content[:-7]
        elif damage == "flipped":
            content[-5] ^= 1
        elif damage == "text":
            content = bytearray(b"hello")
        else:
            from safetensors.torch import save

            content = bytearray(save({"x": torch.zeros(2)}))
        path.write_bytes(content)
        with pytest.raises(stk.CheckpointError, match="left untouched"):
            self.run(path)
        assert path.read_bytes() == bytes(content)

    def test_another_runs_checkpoint_is_refused_with_the_difference(self, tmp_path):
        path = tmp_path / "c"
        self.run(path)
        with pytest.raises(stk.CheckpointError, match="seed: 1 there, 2 here"):
            self.run(path, seed=2)

    def test_an_interrupt_saves_the_run(self, tmp_path):
        path, calls = tmp_path / "c", []

        def energy(x):
            calls.append(1)
            if len(calls) == 200:
                raise KeyboardInterrupt
            return x.square().sum(1) / 2

        options = {"chains": 3, "steps": 400, "seed": 1}
        with pytest.raises(KeyboardInterrupt):
            stk.sample(stk.Energy(energy, (2,)), stk.ULA(0.1), checkpoint=path, **options)
        resumed = stk.sample(stk.Energy(energy, (2,)), stk.ULA(0.1), checkpoint=path, **options)
        straight = stk.sample(stk.Energy(energy, (2,)), stk.ULA(0.1), **options)
        assert torch.equal(resumed.x, straight.x)


class TestDrawsFiles:
    def test_round_trip_and_no_overwriting(self, tmp_path):
        draws = stk.sample("ring-mixture", stk.MALA(0.02), chains=3, steps=5)
        path = draws.save(tmp_path / "d.safetensors")
        again = stk.Draws.load(path)
        assert torch.equal(again.x, draws.x)
        assert again.provenance == draws.provenance
        assert again.cost == draws.cost
        with pytest.raises(stk.OutputExists):
            draws.save(path)
        draws.save(path, force=True)
        with pytest.raises(stk.InvalidArgument, match="ends in"):
            draws.save(tmp_path / "d.pt")

    def test_arviz_reads_the_netcdf(self, tmp_path):
        arviz = pytest.importorskip("arviz")
        draws = stk.sample("ring-mixture", stk.MALA(0.02), chains=3, steps=5)
        data = arviz.from_netcdf(draws.save(tmp_path / "d.nc"))
        assert dict(data.posterior.sizes) == {"chain": 3, "draw": 5, "x_dim_0": 2}
        assert data.sample_stats["acceptance_rate"].shape == (3, 5)
        lp = torch.from_numpy(data.sample_stats["lp"].values)
        assert torch.equal(lp, -draws.stats["energy"])
        assert json.loads(data.attrs["scoretk"])["seed"] == 0


@pytest.mark.thorough
def test_no_memory_grows_with_the_steps():
    """With moments, what is kept after 10 steps and after 1000 is the same."""
    few = stk.sample(gaussian(), stk.ULA(0.1), chains=4, steps=10, keep="moments")
    many = stk.sample(gaussian(), stk.ULA(0.1), chains=4, steps=1000, keep="moments")
    sizes = [
        {n: tuple(v.shape) for n, v in d.stats.items()} | {"mean": d.mean.shape}
        for d in (few, many)
    ]
    assert sizes[0] == sizes[1]
    assert many.kept == 0


WRONG = [
    ({"chains": 0}, "chains"),
    ({"chains": 2.5}, "chains"),
    ({"steps": -1}, "steps"),
    ({"thin": 0}, "thin"),
    ({"thin": 2000}, "thin"),
    ({"warmup": "a"}, "warmup"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"keep": "some"}, "keep"),
    ({"batch": 0}, "batch"),
    ({"device": "tpu9"}, "device"),
    ({"dtype": torch.int64}, "dtype"),
    ({"init": torch.zeros(3)}, "init"),
    ({"init": torch.full((3, 2), torch.nan)}, "init"),
    ({"cond": 3}, "cond"),
    ({"cond": {"a": torch.zeros(5)}, "chains": 4}, "cond"),
    ({"on_failure": "ignore"}, "on_failure"),
    ({"compile": 1}, "compile"),
    ({"progress": "yes"}, "progress"),
    ({"checkpoint": 3}, "checkpoint"),
    ({"checkpoint": "/nowhere/at/all"}, "checkpoint"),
    ({"init": torch.zeros(3, 2), "chains": 4}, "init"),
]


@pytest.mark.parametrize(("options", "named"), WRONG, ids=lambda v: str(v)[:30])
def test_wrong_arguments_are_named(options, named):
    with pytest.raises(stk.ScoretkError, match=named):
        stk.sample(ring_mixture(), stk.ULA(0.1), **options)


@pytest.mark.parametrize("name", ["steps", "warmup", "thin"])
def test_grids_refuse_what_belongs_to_kernels(name):
    with pytest.raises(stk.InvalidArgument, match=f"{name}: expected nothing"):
        stk.sample(ring_mixture().noised(stk.VP()), stk.ProbabilityFlow(), chains=2, **{name: 3})


@pytest.mark.parametrize("solver", [stk.MALA, 3])
def test_something_that_is_no_solver(solver):
    with pytest.raises(stk.InvalidArgument, match="solver"):
        stk.sample(ring_mixture(), solver, chains=2)


def test_something_that_is_no_field():
    for field in (3, lambda x: x, None):
        with pytest.raises(stk.InvalidArgument, match="field"):
            stk.sample(field, stk.ULA(0.1))
    with pytest.raises(stk.UnknownName, match=r"did you mean '(scoretk/)?funnel'"):
        stk.sample("funel", stk.ULA(0.1))


def test_weights_are_read_again_only_where_they_have_changed(monkeypatch):
    read = []
    whole = identity.tensor_value
    monkeypatch.setattr(identity, "tensor_value", lambda x: read.append(1) or whole(x))
    monkeypatch.setattr(marks, "SMALL", 0)
    net = torch.nn.LayerNorm(2)  # which starts from ones and zeros
    field = stk.Energy(lambda x: net(x).square().sum(1), (2,))

    def seen():
        read.clear()
        return stk.sample(field, stk.ULA(0.1), chains=2, steps=1).provenance["weights"], len(read)

    first, parts = seen()
    assert parts == 2
    assert seen() == (first, 0)
    with torch.no_grad():
        net.bias.add_(1)
    counted = seen()
    net.bias.data.add_(1)  # of which torch keeps no count
    hidden = seen()
    assert [n for _, n in (counted, hidden)] == [1, 1]
    assert len({first, counted[0], hidden[0]}) == 3
    net.bias.data.sub_(2)
    assert seen()[0] == first
