"""What a run keeps, counts and masks, in plain numbers."""

import dataclasses
import math
import sys
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core import marks
from scoretk.core.identity import weights_digest
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import CheckpointError, InvalidArgument, Status
from scoretk.fields.resolve import resolve
from scoretk.fields.states import uniform_states
from scoretk.models.targets.mixture import GaussianMixture, gaussian
from scoretk.run import batches, progress, ranks
from scoretk.run.drive import drive
from scoretk.run.moment import BEYOND_PATH, BEYOND_START, Loop, begin, reach_of
from scoretk.run.progress import ProgressBar
from scoretk.run.record import Constraining, KeepAll, KeepMoments, OfRows, Record
from scoretk.run.schedule import Schedule
from scoretk.run.settle import settle
from scoretk.run.state import all_finite, checked_step, finite_chains, tuned_leaves
from scoretk.run.witness import contradiction, witness
from scoretk.solvers import EXAMPLES, SOLVERS
from scoretk.solvers.base import adapts, is_grid


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("thin", [1, 2, 5])
def test_a_schedule_keeps_the_last_of_each_stride(warmup, thin):
    schedule = Schedule(17 + warmup, warmup, thin)
    kept = [s for s in range(schedule.total) if schedule.keeps(s)]
    assert kept == list(range(warmup + thin - 1, schedule.total, thin))
    for step in range(schedule.total + 1):
        assert schedule.kept_before(step) == sum(s < step for s in kept)


@pytest.mark.parametrize("thin", [1, 3])
@pytest.mark.parametrize("warmup", [0, 4])
def test_a_block_is_as_long_as_there_is_room_for_its_draws(warmup, thin):
    """Not a draw more, and with a step more it would be."""
    schedule = Schedule(40, warmup, thin)
    for step in range(20):
        for draws in (0, 1, 5):
            steps = schedule.steps_for(step, draws)
            kept = [schedule.keeps(step + i) for i in range(steps + 1)]
            assert (sum(kept[:-1]), kept[-1]) == (draws, True)
        assert schedule.steps_for(step, math.inf) == math.inf
    assert Schedule(3, kept=(True, False, True)).steps_for(0, 2) == 2


def test_a_grid_counts_intervals_and_keeps_what_it_is_told():
    milestones = (False, True, True, False, True)
    schedule = Schedule(5, kept=(False,) * 4 + (True,), milestones=milestones)
    steps = torch.tensor([-1, 0, 1, 2, 3, 4, 5])
    assert schedule.intervals(steps).tolist() == [-1, 0, 0, 1, 2, 2, 3]
    assert [schedule.kept_before(s) for s in range(6)] == [0, 0, 0, 0, 0, 1]


def test_moments_are_those_of_all_draws():
    xs = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)) * 3 + 5
    record, recorder = Record(), KeepMoments()
    for i, x in enumerate(xs):
        record = recorder.add(record, x, {"accept": x[:, 0]}, i, 7)
    torch.testing.assert_close(record.tensors["mean"], xs.double().mean(0))
    torch.testing.assert_close(record.tensors["m2"] / 6, xs.double().var(0))
    torch.testing.assert_close(record.stats["accept"], xs[:, :, 0].double().sum(0))
    kept, moments = (
        stk.sample(gaussian(2), stk.MALA(0.5), chains=5, steps=9, warmup=4, thin=2, seed=3, keep=k)
        for k in ("all", "moments")
    )
    torch.testing.assert_close(moments.mean, kept.x.double().mean(1))
    torch.testing.assert_close(moments.var, kept.x.double().var(1))
    torch.testing.assert_close(moments.stats["accept"], kept.stats["accept"].double().mean(1))
    first = kept.x[:, : kept.kept // 2].double()
    torch.testing.assert_close(moments.half_mean, first.mean(1))
    torch.testing.assert_close(moments.half_var, first.var(1))


class TestMomentsInPlace:
    """Within a block of steps moments are added to in place; what a moment holds does not change."""

    def run(self, held, total=8, cuts=(3,)):
        """The record after `total` draws in blocks, and whether those that moments held are as they were."""
        xs = torch.randn(total, 4, 3, generator=torch.Generator().manual_seed(1)).double()
        record, recorder, kept = Record(), KeepMoments(), []
        for i, x in enumerate(xs):
            record = recorder.add(record, x, {"energy": x[:, 0]}, i, total)
            if i in cuts:
                record = held(record)
                kept.append((record, {n: v.clone() for n, v in record.flat().items()}))
        whole = torch.equal(xs.sum(0)[:, 0], record.stats["energy"])  # and no draw was added to
        half = torch.allclose(record.tensors["half_mean"], xs[: total // 2].mean(0))
        same = all(torch.equal(v, was[n]) for r, was in kept for n, v in r.flat().items())
        return whole and half and same

    @pytest.mark.parametrize("cuts", [(), (0,), (2, 3, 4), (3, 6)])
    def test_what_a_moment_holds_stays(self, cuts):
        assert self.run(Record.held, cuts=cuts)

    def test_a_record_that_is_not_held_is_changed(self):
        assert not self.run(lambda record: record, cuts=(2,))

    def test_halves_that_go_on_being_written_are_caught(self, monkeypatch):
        monkeypatch.setattr(KeepMoments, "add", _always_in_place(KeepMoments.add))
        assert not self.run(Record.held, cuts=())

    def test_no_step_takes_memory(self):
        record, x = Record(), torch.ones(5, 2)
        places = set()
        for i in range(3):
            record = KeepMoments().add(record, x, {"accept": x[:, 0]}, i, 100)
            places.add(tuple(value.data_ptr() for value in record.flat().values()))
        assert len(places) == 1

    def test_a_block_that_is_interrupted_has_changed_nothing(self):
        """So that a run goes on from the moment before."""
        moments, calls = [], [0]

        def energy(x):
            calls[0] += 1
            if calls[0] > 40:
                raise KeyboardInterrupt
            return x.square().sum(1) / 2

        solver, field = stk.MALA(0.5), resolve(stk.Energy(energy, (2,)), {"score", "energy"})
        noise = Noise(0, 5)
        loop = Loop(solver, field, noise, Schedule(100), KeepMoments())
        start = noise.normal(0, Stream.START, (2,), torch.float32)
        with suppress(KeyboardInterrupt):
            for moment in drive(loop, begin(solver, field, start, noise), seconds=0.0):
                kept = {n: v.clone() for n, v in moment.record.flat().items()}
                moments.append((moment.record.flat(), kept))
        assert moments
        for flat, kept in moments:
            assert all(torch.equal(value, kept[name]) for name, value in flat.items())


def _always_in_place(add):
    """The mutant: what was kept of the first half is written on."""

    def mutant(self, record, *rest):
        found = add(self, record, *rest)
        found.own = True
        return found

    return mutant


class State(tuple):
    _fields = ("x", "energy")
    x = property(lambda self: self[0])

    def __new__(cls, x, energy):
        return super().__new__(cls, (x, energy))


def test_settling_keeps_what_was_finite_and_marks_what_is_not():
    ok, bad, out, late = range(4)
    old = State(torch.zeros(4, 2), torch.zeros(4))
    new = State(torch.ones(4, 2), torch.ones(4))
    new.x[bad, 1] = torch.nan
    new.x[out] = 1e9
    status = torch.tensor([0, 0, 0, int(Status.MAX_STEPS)])
    failed_at = torch.tensor([-1, -1, -1, 2])
    reach = torch.full((4,), 1e7)
    info = {"accept": torch.ones(4)}
    state, status, failed_at, stats = settle(new, old, info, status, failed_at, 5, reach)
    assert state[0][:, 0].tolist() == [1, 0, 0, 0]
    assert state[1].tolist() == [1, 0, 0, 0]
    assert status.tolist() == [
        0,
        int(Status.NONFINITE),
        int(Status.DIVERGED),
        int(Status.MAX_STEPS),
    ]
    assert failed_at.tolist() == [-1, 5, 5, 2]
    assert stats["accept"].isnan().tolist() == [False, True, True, True]
    assert (ok, late) == (0, 3)


def test_what_a_run_costs_is_what_it_asks():
    calls = {"n": 0}

    def energy(x):
        calls["n"] += len(x)
        return (x**2).sum(1) / 2

    field = stk.Energy(energy, (2,))
    found = stk.sample(field, stk.MALA(0.3), chains=6, steps=10, warmup=4)
    assert found.cost["energy"] == found.cost["score"] == 6 * 15 == calls["n"]
    calls["n"] = 0
    found = stk.sample(
        field, stk.HMC(0.3, leapfrogs=3, metric="none"), chains=6, steps=10, warmup=4
    )
    assert found.cost["score"] == 6 * (1 + 14 * 3) == calls["n"]
    for solver in (
        stk.MALA(),
        stk.HMC(leapfrogs=3),
        stk.ChEES(),
        stk.MCLMC(),
        stk.NUTS(max_depth=3),
    ):
        calls["n"] = 0
        found = stk.sample(field, solver, chains=6, steps=2, warmup=20, seed=1)
        assert found.cost["score"] == calls["n"], solver


def test_starts_made_anew_are_wider_and_narrower_in_turn():
    asked = []

    def energy(x):
        asked.append(float(x.detach().std()))
        return (x**2).sum(1) * torch.nan

    field = stk.Energy(energy, (20,))
    with pytest.warns(UserWarning, match="found no start"):
        stk.sample(field, stk.ULA(1e-9), chains=16, steps=1, dtype=torch.float64)
    spreads = [1.0]
    for k in range(1, 9):
        spreads += [2.0**-k, 2.0**k]
    found = [s for s in asked if s > 0][: len(spreads)]
    np.testing.assert_allclose(np.log2(found), np.log2(spreads), atol=0.3)


def test_chains_of_later_batches_take_over_what_the_first_have_tuned():
    field = gaussian(2)
    run = {"chains": 12, "steps": 2, "seed": 2}
    warmup = stk.Warmup(steps=20, pilot=8)
    apart = stk.sample(field, stk.MALA(), warmup=warmup, batch=3, **run)
    whole = stk.sample(field, stk.MALA(), warmup=warmup, **run)
    assert torch.equal(apart.x, whole.x)
    assert torch.equal(apart.tuned["step_size"], whole.tuned["step_size"])


def test_a_digest_of_weights_follows_their_values():
    weight = torch.zeros(3)
    before = weights_digest([weight])
    assert weights_digest([weight]) == before
    weight[1] = 2.0
    assert weights_digest([weight]) != before
    with torch.no_grad():
        weight.data[2] = 1.0
    third = weights_digest([weight])
    assert third not in (before, weights_digest([torch.zeros(3)]))
    assert weights_digest([torch.zeros(3)]) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 3 * 4096 + 9], ids=["small", "large"])
def test_a_digest_of_weights_sees_what_torch_does_not_count(size, dtype, monkeypatch):
    """Changes by way of `.data`, however small beside the whole, in tensors wherever they begin."""
    monkeypatch.setattr(marks, "SMALL", 0)
    for start in (0, 1):
        room = 1e4 * torch.randn(size + 1, generator=torch.Generator().manual_seed(0)).to(dtype)
        weight = room[start : start + size]
        seen = {weights_digest([weight])}
        version = weight._version
        for two in ([3, -5], [0, 1]):
            weight.data[two] = weight.data[two].flip(0)
            seen.add(weights_digest([weight]))
        for sign in (*range(1, 5), -1):
            weight.data[sign] *= -1
            seen.add(weights_digest([weight]))
        bits = weight.data.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
        bits[7] += 1  # the last bit of one number
        seen.add(weights_digest([weight]))
        assert weight._version == version
        assert len(seen) == 9


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def _flipped(x: torch.Tensor) -> None:
    x.data.copy_(x.data.flip(0))


def _last_negated(x: torch.Tensor) -> None:
    x.data[-1, -2:] *= -1


def _rows_changed(x: torch.Tensor) -> None:
    x.data[[0, 1]] = x.data[[1, 0]]


def _corners(x: torch.Tensor) -> None:
    """Four numbers, so that the sums of the rows of bits and of the columns are as they were."""
    bits = x.data.view(torch.int64)
    for change, at in ((8, (0, 0)), (8, (5, 7)), (-8, (0, 7)), (-8, (5, 0))):
        bits[at] += change


def _wider(x: torch.Tensor) -> None:
    x.data = x.data.view(-1, 2 * x.shape[1])


def _as_integers(x: torch.Tensor) -> None:
    x.data = x.data.view(torch.int64)


@pytest.mark.parametrize("columns", [100, 1024])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (_normal, lambda x: x.data.neg_()),
        (_normal, _last_negated),
        (_normal, _rows_changed),
        (torch.eye, _flipped),
        (_normal, _corners),
        (torch.zeros, lambda x: x.data[3].neg_()),
        (_normal, _wider),
        (_normal, _as_integers),
    ],
    ids=["negated", "two signs", "rows", "permuted", "corners", "zeros", "shape", "dtype"],
)
def test_a_digest_of_weights_sees_changes_that_cancel_in_a_sum(kind, change, columns):
    weight = kind(100, columns, dtype=torch.float64)
    before, version = weights_digest([weight]), weight._version
    change(weight)
    assert weight._version == version
    assert weights_digest([weight]) != before
    assert weights_digest([weight]) == weights_digest([weight.clone()])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_digest_of_quantised_weights_is_read_as_their_numbers():
    values = _normal(200, 200)
    seen = {
        weights_digest([torch.quantize_per_tensor(values, scale, 0, torch.quint8)])
        for scale in (0.1, 0.1, 0.2)
    }
    assert len(seen) == 2


def test_a_witness_contradicts_another_field():
    solver = stk.MALA(0.1)
    fields = [stk.Energy(lambda x, k=k: k * (x**2).sum(1), (2,)) for k in (1.0, 1.0, 1.01)]
    bounds = [resolve(f, solver.needs, timed=False) for f in fields]
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    said = witness(bounds[0], solver.needs, x)
    assert contradiction(bounds[1], solver.needs, said) is None
    assert "energy" in contradiction(bounds[2], solver.needs, said)
    assert math.isfinite(float(said["energy"].sum()))


@pytest.mark.parametrize("lost", [[0], [0, 1, 2, 3], [2, 5], list(range(8))], ids=str)
def test_a_witness_is_asked_where_chains_are_at_numbers(lost):
    """Where there are none it would agree with any field; conditions are those of the same rows."""

    class Scaled:
        event_shape, provides = (2,), frozenset({"energy"})

        def __init__(self, factor):
            self.factor = factor

        def energy(self, x, *, at):
            return self.factor * (x - at[:, None]).square().sum(1)

    at, x = torch.arange(8.0), torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    x[lost, 1] = math.nan
    bounds = [resolve(Scaled(k), {"energy"}, {"at": at}, timed=False) for k in (1.0, 1.01)]
    said = witness(bounds[0], frozenset({"energy"}), x)
    rows = [i for i in range(8) if i not in lost][:4]
    assert said["rows"].tolist() == rows
    assert torch.equal(said["x"], x[rows])
    if rows:
        torch.testing.assert_close(said["energy"], (x - at[:, None]).square().sum(1)[rows])
    assert contradiction(bounds[0], frozenset({"energy"}), said) is None
    assert (contradiction(bounds[1], frozenset({"energy"}), said) is None) == (not rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("off", "told"), [(0.1, False), (10.0, True)])
def test_a_witness_bears_what_another_machine_rounds(dtype, off, told):
    """Half of the digits of its largest answer, and no more."""

    def bound(shift):
        field = stk.Energy(lambda x: x.square().sum(1) + shift, (2,))
        return resolve(field, {"energy"}, timed=False)

    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)
    said = witness(bound(0.0), frozenset({"energy"}), x)
    shift = off * torch.finfo(dtype).eps ** 0.5 * float(said["energy"].max())
    assert (contradiction(bound(shift), frozenset({"energy"}), said) is not None) == told


def test_another_attempt_at_a_start_has_numbers_of_its_own():
    """Half of the plane: the first numbers on another scale would lie in the other half for ever."""
    field = stk.Energy(lambda x: torch.where(x[:, 0] > 0, x.square().sum(1) / 2, torch.inf), (2,))
    draws = stk.sample(field, stk.MALA(0.01), chains=64, steps=1, seed=3)
    assert draws.failures == {}
    assert (draws.final[:, 0] > 0).all()


def test_how_far_a_chain_may_go_is_told_by_its_path_and_by_its_start():
    flow, x = stk.ProbabilityFlow("euler", steps=2), torch.tensor([[0.0], [3.0], [1e4]])
    field = stk.Diffusion(lambda x, t: x, (1,), stk.EDM(sigma_max=80.0), "data")
    bound = resolve(field, {"velocity"})
    far = [BEYOND_PATH * s for s in (80.0, 80.0, 1e4)]
    assert reach_of(flow, bound, x).tolist() == pytest.approx(far)
    still = resolve(gaussian(dim=1), {"score"})
    annealed = stk.AnnealedLangevin(3, 2, step_size=0.1)
    far = [BEYOND_START * s for s in (1.0, 3.0, 1e4)]
    assert reach_of(annealed, still, x).tolist() == pytest.approx(far)
    assert reach_of(stk.ULA(0.1), still, x) is None


def test_chains_go_on_where_all_of_their_state_is_finite():
    """A position that is finite with an energy that is not is no state to go on from, nor the reverse."""
    old, new = State(torch.zeros(4, 2), torch.zeros(4)), State(torch.ones(4, 2), torch.ones(4))
    new.x[1, 0], new[1][2] = torch.inf, torch.nan
    assert finite_chains(new).tolist() == [True, False, False, True]
    assert not all_finite(new)
    assert all_finite(old)
    well, never = torch.zeros(4, dtype=torch.int64), torch.full((4,), -1)
    state, status, failed_at, _ = settle(new, old, {}, well, never, 7)
    assert state[1].tolist() == [1, 0, 0, 1]
    assert status.tolist() == [0, int(Status.NONFINITE), int(Status.NONFINITE), 0]
    assert failed_at.tolist() == [-1, 7, 7, -1]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("asked", [None, True, False])
def test_a_progress_line_is_shown_where_it_is_asked_for_or_there_is_a_terminal(
    monkeypatch, asked, terminal
):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert (ProgressBar(asked, 3)._bar is not None) is (terminal if asked is None else asked)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_progress_line_is_shown_in_a_notebook(monkeypatch, widgets):
    """As rich tells a notebook: by the class of IPython's shell."""
    pytest.importorskip("rich")
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.setattr(progress, "find_spec", lambda name: widgets or None)
    assert ProgressBar(None, 3)._bar is None  # not while IPython is not loaded
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert (ProgressBar(None, 3)._bar is not None) is widgets


@pytest.mark.parametrize(("every", "cost"), [(30.0, 0.5), (2.0, 1.0), (1.0, 0.0)])
def test_saving_takes_at_most_a_twentieth_of_the_time(monkeypatch, tmp_path, every, cost):
    """The next write is due after `every` seconds, or after twenty times what the last one took."""
    now = [100.0]
    monkeypatch.setattr("scoretk.run.checkpoint.time.monotonic", lambda: now[0])

    def write(*_):
        now[0] += cost

    monkeypatch.setattr("scoretk.run.checkpoint.write", write)
    checkpoint = stk.Checkpoint(tmp_path / "run", every)
    checkpoint.begin()
    for wait in (every, max(every, 20 * cost)):
        before = now[0]
        now[0] = before + wait * 0.99
        assert not checkpoint.due()
        now[0] = before + wait * 1.01
        assert checkpoint.due()
        checkpoint.save({}, {})


def test_a_file_of_draws_keeps_the_ids_of_the_chains(tmp_path):
    """Whatever the format, as the noise of a chain follows from its id."""
    pytest.importorskip("arviz")
    draws = stk.sample(gaussian(2), stk.MALA(0.3), chains=range(3, 11, 2), steps=5)
    assert draws.chains.tolist() == [3, 5, 7, 9]
    assert stk.Draws.load(draws.save(tmp_path / "draws.safetensors")).chains.tolist() == [
        3,
        5,
        7,
        9,
    ]
    told = draws.to_arviz()
    assert told.posterior.chain.values.tolist() == [3, 5, 7, 9]
    assert told.sample_stats.chain.values.tolist() == [3, 5, 7, 9]


OTHERWISE = {
    "cond": {"cond": {"k": torch.tensor([1.0, 2.0, 4.0])}},
    "init": {"init": torch.full((3, 2), 0.5)},
    "seed": {"seed": 5},
    "warmup": {"warmup": 4},
    "thin": {"thin": 2},
    "keep": {"keep": "moments"},
    "batch": {"batch": 2},
    "dtype": {"dtype": torch.float64},
    "solver": {"solver": stk.MALA(0.4)},
    "the same": {},
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_checkpoint_is_taken_up_by_the_run_that_wrote_it_alone(tmp_path, name):
    """Each of the arguments on which draws depend tells one run from another, by its values."""
    run = {
        "solver": stk.MALA(0.3),
        "cond": {"k": torch.tensor([1.0, 2.0, 3.0])},
        "init": torch.zeros(3, 2),
        "steps": 6,
        "warmup": 2,
        "seed": 4,
    }
    field = stk.Energy(lambda x, k: k * x.square().sum(1) / 2, (2,))
    file = tmp_path / "run.safetensors"
    stk.sample(field, **run, checkpoint=file)
    if name == "the same":
        stk.sample(field, **run, checkpoint=file)
        return
    with pytest.raises(CheckpointError, match=name):
        stk.sample(field, **run | OTHERWISE[name], checkpoint=file)


@pytest.mark.parametrize("warmup", [3, 25, 64])
def test_what_is_tuned_stays_from_the_end_of_warmup_on(warmup):
    """Wherever warmup ends within a block of steps: a run is the beginning of a longer one."""
    run = {"chains": 4, "warmup": warmup, "seed": 2}
    short, longer = (stk.sample(gaussian(2), stk.MALA(), steps=n, **run) for n in (2, 23))
    assert torch.equal(short.tuned["step_size"], longer.tuned["step_size"])
    assert torch.equal(short.x, longer.x[:, :2])


def _required(kind):
    return [f for f in dataclasses.fields(kind) if f.init and f.default is f.default_factory]


class Counted:
    """An energy and its gradient, infinite beyond an edge, with the rows that each was asked for."""

    event_shape = (3,)

    def __init__(self, edge=-torch.inf):
        self.edge, self.asked = edge, {"energy": 0, "score": 0}

    def energy(self, x):
        self.asked["energy"] += len(x)
        return torch.where(x[:, 0] > self.edge, (x**2).sum(1) / 2, torch.inf)

    def score(self, x):
        self.asked["score"] += len(x)
        return -x

    def energy_and_grad(self, x):
        return self.energy(x), -self.score(x)


class CountedSpins(Counted):
    """Sites of two values, with sweeps."""

    states, gibbs_shape = (-1.0, 1.0), (3,)
    couplings = stk.Couplings(torch.tensor([0]), torch.tensor([1]), torch.tensor([0.3]))

    def __init__(self):
        super().__init__()
        self.asked["gibbs"] = 0

    def initial(self, n, noise):
        return uniform_states(self.states, self.event_shape, noise)

    def gibbs(self, x, u):
        self.asked["gibbs"] += len(x)
        return torch.where(u < 0.5, 1.0, -1.0)


def spent(field, solver):
    """A run of few chains, of which nothing is asked before it starts, and the cost that it tells of."""
    steps = {} if is_grid(solver) else {"steps": 3, "warmup": 2}
    chains = getattr(solver, "island", 4)  # a whole one
    return stk.sample(field, solver, chains=chains, seed=2, **steps).cost


@pytest.mark.parametrize("name", [n for n, s in EXAMPLES.items() if s.timed is not True])
def test_every_kernel_tells_what_it_asks(name):
    """Of each kind so many rows as the field was asked for; starts that are made again are starts too."""
    solver = EXAMPLES[name]
    fields = [CountedSpins()] if "states" in solver.needs else [Counted(), Counted(edge=0.5)]
    for field in fields[:1] if name in ("ais", "smc", "ula", "underdamped") else fields:
        cost = spent(field, solver)
        assert {k: n for k, n in cost.items() if n} == {k: n for k, n in field.asked.items() if n}


TUNES = {name: kind() for name, kind in SOLVERS.items() if not _required(kind)}
TUNES = {name: solver for name, solver in TUNES.items() if adapts(solver)}


@pytest.mark.parametrize("far", [(), (0, 1, 2, 3), (1, 3)])
@pytest.mark.parametrize("name", TUNES)
def test_a_warmup_tells_what_it_asks(monkeypatch, name, far):
    """Of trials too, of every solver that tunes itself, and of steps from far off, of all chains or of some."""
    spins = "states" in TUNES[name].needs
    if spins and far:
        return
    monkeypatch.setattr(batches, "_look_over", lambda *_: None)  # no evaluations of the run
    field, init = CountedSpins() if spins else Counted(), None
    if far:
        init = torch.where(torch.isin(torch.arange(4), torch.tensor(far))[:, None], 1e4, 0.1)
        init = init * torch.ones(4, 3)
    for warmup, batch in ((2, None), (20, None), (24, 2)):
        field.asked = dict.fromkeys(field.asked, 0)
        run = {"chains": None if far else 4, "seed": 2, "steps": 2, "init": init, "batch": batch}
        cost = stk.sample(field, TUNES[name], warmup=stk.Warmup(warmup, 2), **run).cost
        assert {k: n for k, n in cost.items() if n} == {k: n for k, n in field.asked.items() if n}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_kept_is_of_one_run(name):
    """The last draws are the last of all, and moments those of all: of chains, of grids, warmed up or not."""
    solver = EXAMPLES[name]
    if solver.timed is not False and solver.timed is not None:
        field = GaussianMixture(torch.zeros(1, 2), torch.ones(1), torch.ones(1)).noised(stk.VP())
    else:
        field = CountedSpins() if "states" in solver.needs else gaussian(3)
    steps = {} if is_grid(solver) else {"steps": 5, "warmup": 3 * adapts(solver)}
    chains = getattr(solver, "island", 4)
    dtype = None if isinstance(field, CountedSpins) else torch.float64
    every, last, moments = (
        stk.sample(field, solver, chains=chains, seed=2, keep=k, dtype=dtype, **steps)
        for k in ("all", "last", "moments")
    )
    assert torch.equal(last.x, every.x[:, -1:])
    for draws in (last, moments):
        assert torch.equal(draws.final, every.final)
        assert torch.equal(draws.status, every.status)
        assert draws.cost == every.cost
    x = every.x.double()
    torch.testing.assert_close(moments.mean, x.mean(1))
    if every.kept > 1:
        torch.testing.assert_close(moments.var, x.var(1))
    if every.kept > 3:
        torch.testing.assert_close(moments.half_mean, x[:, : every.kept // 2].mean(1))
    for name, value in every.stats.items():
        torch.testing.assert_close(
            moments.stats[name].double(), value.double().mean(1), equal_nan=True
        )


@pytest.mark.parametrize("name", [n for n, s in EXAMPLES.items() if s.timed is not False])
def test_every_solver_in_time_tells_what_it_asks(name):
    """Every evaluation is one of the network."""
    asked = []

    def net(x, t):
        asked.append(len(x))
        return -x * t[:, None]

    field = stk.Velocity(net, (3,))
    for solver in [
        EXAMPLES[name],
        *([stk.ProbabilityFlow("tsit5", rtol=1e-2, atol=1e-2)] if "flow" in name else []),
    ]:
        asked.clear()
        assert sum(spent(field, solver).values()) == sum(asked)
    if "flow" in name:
        for method in ("dopri5", "rk4", "adams_3"):
            asked.clear()
            found = stk.encode(
                field, torch.ones(4, 3), method=method, rtol=1e-2, atol=1e-2, batch=3
            )
            assert found.cost == {"velocity": sum(asked)}


class Bonded(CountedSpins):
    """Sites that are often in one cluster."""

    couplings = stk.Couplings(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([1.5, 1.5]))


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_chain_reports_is_its_own(name):
    """Beside others or in a batch of their own two chains, an island where there are such, say the same."""
    solver = EXAMPLES[name]
    if solver.timed is not False:
        net = lambda x, t: torch.sin(x) * (1 + t)[:, None]  # noqa: E731
        field = stk.Diffusion(net, (3,), stk.VE(0.05, 20.0), "noise")
    else:
        field = Bonded() if "states" in solver.needs else Counted()
    steps = {} if is_grid(solver) else {"steps": 4, "warmup": 0}
    size = getattr(solver, "island", 2)
    whole, parts = (
        stk.sample(field, solver, chains=3 * size, batch=b, seed=2, **steps)
        for b in (3 * size, size)
    )
    assert whole.stats.keys() == parts.stats.keys()
    for told, value in whole.stats.items():
        torch.testing.assert_close(value, parts.stats[told], equal_nan=True, msg=told)
    torch.testing.assert_close(whole.final, parts.final)


def test_a_run_that_is_extended_to_twice_its_length_has_its_halves(tmp_path):
    """The draws so far are the first half of the new run, of which nothing was said while they were made."""
    law, run = gaussian(2), {"chains": 3, "warmup": 2, "seed": 1, "keep": "moments"}
    stk.sample(law, stk.MALA(0.5), steps=6, checkpoint=tmp_path / "run", **run)
    found = stk.sample(law, stk.MALA(0.5), steps=12, checkpoint=tmp_path / "run", **run)
    expected = stk.sample(law, stk.MALA(0.5), steps=12, **run)
    for name in ("half_mean", "half_var", "half_draws"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("folder", [False, True])
def test_what_was_made_before_an_error_is_not_made_again(tmp_path, folder, monkeypatch):
    """An error of the field ends the run between two writes; what is taken up is the block before it."""
    monkeypatch.setattr("scoretk.run.batches.BLOCK_SECONDS", 0.0)  # of as few steps as can be
    asked = []

    def energy(x):
        asked.append(len(x))
        if len(asked) == 500:
            raise OSError("the machine that computes it is gone")
        return x.square().sum(1) / 2

    def run(**where):
        field = stk.Energy(energy, (2,))
        with stk.distributed() if folder else nullcontext():
            return stk.sample(field, stk.MALA(0.4), chains=4, steps=600, warmup=0, batch=4, **where)

    rare = stk.Checkpoint(tmp_path / "run", every=1e6)
    with pytest.raises(OSError, match="is gone"):
        run(checkpoint=rare)
    found = run(checkpoint=rare)
    again = len(asked) - 500
    expected = run()
    assert torch.equal(found.x, expected.x)
    assert again < len(asked) - 500 - again - 100


def test_chains_of_other_batches_go_on_where_one_of_the_pilot_fails_at_its_start():
    law = stk.Energy(lambda x: torch.where(x[:, 0] > 50, torch.nan, x.square().sum(1) / 2), (2,))
    init = torch.zeros(6, 2)
    init[1] = 100.0
    run = {"steps": 3, "warmup": stk.Warmup(4, pilot=3), "batch": 3}
    assert stk.sample(law, stk.MALA(), init=init, **run).ok.tolist() == [True, False] + [True] * 4
    init[:3] = 100.0
    assert not stk.sample(law, stk.MALA(), init=init, **run).ok.any()


ASKS = {
    "sample": lambda: stk.sample(GAUSSIAN, stk.ULA(0.1), chains=2, steps=2),
    "contrastive divergence": lambda: stk.ContrastiveDivergence(stk.ULA(0.1), 2)(
        GAUSSIAN, torch.ones(2, 2)
    ),
    "log_partition": lambda: stk.log_partition(
        GAUSSIAN, levels=2, chains=16, pilot=16, check=False, kernel=stk.MALA(0.1)
    ),
    "encode": lambda: stk.encode(IN_TIME, torch.ones(2, 2), method="euler", steps=2),
    "log_prob": lambda: stk.log_prob(IN_TIME, torch.ones(2, 2), method="euler", steps=2),
}
GAUSSIAN = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
IN_TIME = stk.Diffusion(lambda x, t: x, (2,), stk.VP(), "noise")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ASKS)
def test_nothing_is_compiled_unless_it_is_asked_for(name, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("the compiler was asked")

    monkeypatch.setattr(torch, "compile", compiled)
    ASKS[name]()


class Asked:
    """A recorder that notes what it is asked; its answers are other ones for each question."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def ask(*args):
            self.calls.append((name, args))
            return torch.arange(5.0) if name == "position" else name

        return ask


FATES = (torch.tensor([0, 1, 2, 3, 4]), torch.tensor([5, 6, 7, 8, 9]))
X, STATS, RECORD = torch.arange(5.0)[:, None], {"accept": torch.arange(10.0, 15.0)}, Record()
QUESTIONS = {
    "add": (RECORD, X, STATS, 3, 7),
    "filled": (RECORD, 3),
    "restored": ({}, 3, 7, torch.device("cpu")),
    "most": (),
    "passed": (RECORD, 3, *FATES),
    "flushed": (RECORD, 3, *FATES),
    "ended": (RECORD, 3, *FATES),
}
AROUND = {
    "constraining": (lambda inner: Constraining(inner, torch.exp), torch.exp, lambda v: v),
    "of rows": (lambda inner: OfRows(inner, slice(1, 3)), lambda x: x[1:3], lambda v: v[1:3]),
}
"""A recorder around another, and what that has of positions and of other tensors."""


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("what", QUESTIONS)
def test_recorders_around_another_ask_it_the_same(around, what):
    make, of_x, of_rows = AROUND[around]
    inner = Asked()
    answer = getattr(make(inner), what)(*QUESTIONS[what])
    ((name, found),) = inner.calls
    right = [
        of_x(v) if v is X else of_rows(v) if isinstance(v, torch.Tensor) else v
        for v in QUESTIONS[what]
    ]
    if what == "add":
        right[2] = {n: of_rows(v) for n, v in STATS.items()}
    assert name == what
    assert answer in (what, None)
    assert repr(list(found)) == repr(right)  # of small whole numbers, and of one record


def test_a_position_is_of_the_rows_in_the_users_space():
    assert torch.equal(OfRows(Asked(), slice(1, 3)).position(X), torch.tensor([1.0, 2.0]))
    assert torch.equal(Constraining(Asked(), torch.exp).position(X), X.exp())


def blocks_of(monkeypatch, seconds_a_step):
    """The steps at which the blocks of a run end, on a machine of this speed."""
    now, ends = [0.0], []

    def counted(self, batch, step, made):
        now[0] += made * seconds_a_step
        ends.append(step)
        return step

    monkeypatch.setattr(ranks.Alone, "pulse", counted)
    monkeypatch.setattr("scoretk.run.drive.time.perf_counter", lambda: now[0])
    stk.sample(gaussian(2), stk.ULA(0.1), chains=2, steps=500, warmup=0)
    return ends


@pytest.mark.parametrize("steady", [True, False])
def test_blocks_of_a_team_end_at_the_same_steps_however_fast_its_machines_are(monkeypatch, steady):
    """Those of a process by itself are the longer the faster it is."""
    monkeypatch.setattr(ranks.Alone, "steady", steady)
    slow, fast = (blocks_of(monkeypatch, seconds) for seconds in (0.2, 1e-4))
    assert (slow == fast) is steady
    assert slow[-1] == fast[-1] == 500


@pytest.mark.parametrize("failed", [0, 3])
def test_a_progress_line_says_how_far_how_fast_and_how_well(failed):
    pytest.importorskip("rich")
    with ProgressBar(True, 40) as bar:
        console = bar._bar.console
        with console.capture() as told:
            for second, done in enumerate((10, 20, 30)):
                bar._bar.get_time = lambda now=float(second): now
                bar.update(done, failed)
            console.print(bar._bar.get_renderable())
    line = " ".join(told.get().split())
    assert "sampling" in line
    assert "30/40" in line
    assert "10 steps/s" in line
    assert (f"{failed} failed" if failed else "all chains well") in line


@pytest.mark.parametrize("batch", [None, 2, 3])
def test_chains_that_have_failed_are_shown_whichever_batch_they_were_in(monkeypatch, batch):
    shown = []
    monkeypatch.setattr(
        ProgressBar, "update", lambda self, done, failed: shown.append((done, failed))
    )
    init = torch.tensor([[0.0], [9.0], [0.0], [9.0], [9.0], [0.0], [0.0]])
    field = stk.Energy(lambda x: torch.where(x > 5, torch.nan, x * x / 2).sum(1), (1,))
    draws = stk.sample(field, stk.ULA(0.1), init=init, steps=20, batch=batch)
    assert int((~draws.ok).sum()) == 3
    assert shown[-1][1] == 3
    assert shown == sorted(shown)


@pytest.mark.parametrize("time", [0.3, 0.7], ids=["early", "late"])
@pytest.mark.parametrize("what", ["denoise", "velocity", "score"])
def test_a_witness_asks_a_timed_field_at_each_of_its_times(what, time):
    """Another field may differ late, or early, alone."""

    def made(off):
        def fn(x, t):
            return x * (0.5 + off * ((t - time).abs() < 0.1).to(x))[:, None]

        if what == "velocity":
            return stk.Velocity(fn, (2,))
        return stk.Diffusion(fn, (2,), stk.VP(), {"denoise": "data", "score": "score"}[what])

    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    one, same, other = (resolve(made(k), {what}, timed=True) for k in (0.0, 0.0, 0.1))
    said = witness(one, frozenset({what}), x)
    assert len(said[what]) == 2 * len(said["rows"])
    assert contradiction(same, frozenset({what}), said) is None
    assert what in contradiction(other, frozenset({what}), said)


class Answering(NamedTuple):
    x: torch.Tensor


REPORTS = {
    "a number": (0.5, False),
    "a flag": (True, False),
    "nothing": (None, False),
    "a list": ([0.5] * 4, False),
    "an array": (np.zeros(4), False),
    "a tensor of one number": (torch.tensor(0.5), False),
    "a tensor of too few rows": (torch.zeros(3), False),
    "a tensor of too many rows": (torch.zeros(5), False),
    "a tensor of the rows as columns": (torch.zeros(1, 4), False),
    "a number a chain": (torch.zeros(4), True),
    "a flag a chain": (torch.zeros(4, dtype=torch.bool), True),
    "a count a chain": (torch.zeros(4, dtype=torch.int64), True),
    "a row a chain": (torch.zeros(4, 2), True),
}


@pytest.mark.parametrize("case", REPORTS)
@pytest.mark.parametrize("beside", [{}, {"accept": torch.zeros(4)}], ids=["alone", "second"])
def test_a_step_reports_a_value_for_each_chain(case, beside):
    value, right = REPORTS[case]
    old = Answering(torch.zeros(4, 2))
    answer = Answering(torch.ones(4, 2)), beside | {"told": value}
    if right:
        assert checked_step(answer, old) == answer
    else:
        with pytest.raises(InvalidArgument, match=r"told.*a value for each of 4 chains"):
            checked_step(answer, old)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_all_draws_and_all_that_is_told_of_them_have_their_graph(draws):
    """The first of them, the last and those between."""
    weight = torch.ones(draws, requires_grad=True)
    keep, record = KeepAll(), Record()
    for i in range(draws):
        x = torch.full((4, 2), 1.0) * weight[i]
        told = {"one": 2 * x[:, 0], "several": 3 * x}
        record = keep.add(record, x, told, i, draws)
    held = {"x": (record.tensors["x"], 8.0)}
    held |= {name: (record.stats[name], n) for name, n in (("one", 8.0), ("several", 24.0))}
    for value, slope in held.values():
        assert len(value) == draws
        (found,) = torch.autograd.grad(value.sum(), weight, retain_graph=True)
        assert found.tolist() == [slope] * draws


@pytest.mark.parametrize("solver", [stk.MALA(), stk.HMC(), stk.NUTS()], ids=["mala", "hmc", "nuts"])
def test_who_takes_over_what_others_have_tuned_has_memory_of_its_own(solver):
    """Chains that step in place, or on from there, do not change what others are given."""
    field, x, noise = gaussian(2), torch.ones(4, 2), Noise(0, 4)
    bound = resolve(field, solver.needs, timed=False)
    first = begin(solver, bound, x, noise, tunes=True)
    tuned = {name: value + 0.25 for name, value in tuned_leaves(first.state).items()}
    before = {name: value.clone() for name, value in tuned.items()}
    moments = [begin(solver, bound, x, noise, tuned=tuned) for _ in range(2)]
    for name, value in before.items():
        assert torch.equal(getattr(moments[0].state, name), value)
        getattr(moments[0].state, name).zero_()
        assert torch.equal(tuned[name], value)
        assert torch.equal(getattr(moments[1].state, name), value)
    assert before


class Wrong:
    """An energy that cannot be asked, is another each time, or is as it should be."""

    event_shape, provides = (2,), frozenset({"energy"})

    def __init__(self, kind):
        self.kind, self.asked = kind, 0

    def energy(self, x):
        self.asked += 1
        if self.kind == "fails":
            raise ValueError("not of so few rows")
        return x.square().sum(1) + self.asked * (self.kind == "changes")


@pytest.mark.parametrize("kind", ["fails", "changes", "answers"])
def test_what_the_first_batch_says_is_there_for_all_that_wait(kind):
    """Where it has nothing to say it says so: others would wait for ever."""
    told = {}
    share = SimpleNamespace(
        alone=False, publish=told.__setitem__, fetch=lambda name, place: told[name]
    )
    bound, needs = resolve(Wrong(kind), {"energy"}, timed=False), frozenset({"energy"})
    for batch in (0, 1):
        batches._Alike(share, bound, needs).settle(batch, torch.ones(5, 2))
    assert {*told} == {"answers"}
    assert bool(told["answers"]) is (kind == "answers")
