"""Chains have ids: those of a range are those of a whole run, to the bit, and say who they are."""

from dataclasses import replace

import pytest
import torch

import scoretk as stk
from scoretk.core.cost import Cost
from scoretk.core.noise import Noise
from scoretk.inference import planned
from scoretk.models.targets.mixture import gaussian, ring_mixture


def bumpy(x):
    return (x.square() / 2 + x.cos()).sum(1)


FIELD = stk.Energy(bumpy, (2,))
TUNED = {"steps": 6, "warmup": 16, "seed": 5, "thin": 2}


def pilot(chains, warmup=16):
    return {"warmup": stk.Warmup(warmup, pilot=chains)}


SOLVERS = [
    (stk.ULA(0.1), FIELD, {"steps": 6}),
    (stk.HMC(0.3, 3, metric="none"), FIELD, {"steps": 6, "warmup": 2}),
    (stk.HMC(leapfrogs=3), FIELD, TUNED),
    (stk.ChEES(), FIELD, TUNED | pilot(10)),
    (stk.ChEES(), FIELD, TUNED | pilot(4)),
    (stk.ChEES(), FIELD, TUNED | pilot(12) | {"keep": "last"}),
    pytest.param(stk.NUTS(), FIELD, TUNED | pilot(6) | {"keep": "moments"}, marks=pytest.mark.slow),
    (stk.ParallelTempering(replicas=3), FIELD, TUNED | pilot(6)),
    (stk.ProbabilityFlow(steps=5), ring_mixture(), {}),
    (stk.AIS(levels=4), FIELD, {}),
    (stk.GibbsWithGradients(), "ising", {"steps": 5}),
    (stk.SMC(levels=4, island=4), FIELD, {"keep": "all"}),
]


def timed(solver, field):
    return stk.smoothed(gaussian(2), stk.VP()) if isinstance(solver, stk.ProbabilityFlow) else field


def same(part, whole, rows):
    assert part.kept == whole.kept
    for name in (*["x"] * bool(part.kept), "final", "status", "failed_at", "mean", "var"):
        ours, theirs = getattr(part, name), getattr(whole, name)
        assert (ours is None) is (theirs is None)
        assert ours is None or torch.equal(ours, theirs[rows]), name
    assert part.stats.keys() == whole.stats.keys()
    for name, value in part.stats.items():
        assert torch.equal(value.nan_to_num(), whole.stats[name][rows].nan_to_num()), name
    assert torch.equal(part.chains, whole.chains[rows])
    for name, value in part.tuned.items():
        assert torch.equal(value, whole.tuned[name]), name


@pytest.mark.parametrize("batch", [4, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("solver", "field", "run"), SOLVERS, ids=lambda v: repr(v).split(" at 0x")[0][:40]
)
def test_a_range_is_a_part_of_the_whole_run(solver, field, run, batch):
    field = timed(solver, field)
    whole = stk.sample(field, solver, chains=16, batch=batch, **run)
    assert whole.chains.tolist() == list(range(16))
    same(stk.sample(field, solver, chains=range(8, 16), batch=batch, **run), whole, slice(8, 16))


@pytest.mark.parametrize(
    "ids", [range(16), range(0, 16, 3), range(1, 16, 7), range(15, 16)], ids=repr
)
@pytest.mark.parametrize("solver", [stk.ULA(0.1), stk.ChEES()], ids=repr)
def test_any_rising_range_will_do(solver, ids):
    run = {"steps": 4, "seed": 2, **pilot(4, 10)}
    whole = stk.sample(FIELD, solver, chains=16, **run)
    part = stk.sample(FIELD, solver, chains=ids, **run)
    same(part, whole, slice(ids.start, ids.stop, ids.step))


def test_rows_instead_of_ids_are_caught(monkeypatch):
    """The mutant: the noise of the first chains for any."""
    whole = stk.sample(FIELD, stk.ULA(0.1), chains=16, steps=3)
    monkeypatch.setattr(
        planned, "Noise", lambda seed, ids, **kind: stk.Noise(seed, len(ids), **kind)
    )
    wrong = stk.sample(FIELD, stk.ULA(0.1), chains=range(8, 16), steps=3)
    assert not torch.equal(wrong.x, whole.x[8:])


def test_starts_and_conditions_have_a_row_for_each_chain_in_the_range():
    start, shift = torch.arange(32.0).reshape(16, 2) / 8, torch.arange(16.0)
    field = stk.Energy(lambda x, shift: ((x - shift[:, None]) ** 2).sum(1), (2,))
    run = {"steps": 3, "seed": 1}
    whole = stk.sample(field, stk.MALA(0.1), init=start, cond={"shift": shift}, **run)
    part = {"init": start[8:], "cond": {"shift": shift[8:]}}
    same(stk.sample(field, stk.MALA(0.1), chains=range(8, 16), **part, **run), whole, slice(8, 16))
    with pytest.raises(stk.InvalidArgument, match=r"^init: expected one row a chain, 7 rows"):
        stk.sample(field, stk.MALA(0.1), chains=range(9, 16), **part, **run)


@pytest.mark.parametrize(
    "given",
    [{"init": torch.zeros(8, 2)}, {"cond": {"c": torch.zeros(8)}}],
    ids=lambda g: next(iter(g)),
)
def test_a_pilot_without_rows_is_refused(given):
    field = stk.Energy(lambda x, c=None: x.square().sum(1), (2,))
    run = {"steps": 3, "warmup": 5}
    with pytest.raises(
        stk.InvalidArgument, match=rf"^{next(iter(given))}: .*tuned by chains 0 to 15"
    ):
        stk.sample(field, stk.ChEES(), chains=range(8, 16), **given, **run)
    stk.sample(field, stk.ChEES(), chains=range(8), **given, **run)
    stk.sample(field, stk.HMC(0.1, metric="none"), chains=range(8, 16), **given, **run)


def test_what_the_pilot_cost_is_counted():
    run = {"steps": 4, "seed": 2, **pilot(6, 10)}
    solver = stk.HMC(leapfrogs=2)
    far, whole = (
        stk.sample(FIELD, solver, chains=ids, **run).cost["energy"] for ids in (range(8, 16), 16)
    )
    assert whole - far == 2 * 15 + 6 * 4  # chains 6 and 7, and the pilot's steps after warmup


@pytest.mark.parametrize(
    "wrong",
    [
        range(0),
        range(5, 5),
        range(3, -1, -1),
        range(-2, 4),
        range(2**32 - 1, 2**32 + 1),
        [1, 2],
        torch.arange(3),
        (0, 4),
    ],
)
def test_what_is_no_range_of_chains_is_refused(wrong):
    with pytest.raises(stk.InvalidArgument, match=r"^chains: "):
        stk.sample(FIELD, stk.ULA(0.1), chains=wrong, steps=1)


def test_the_last_id_there_is():
    draws = stk.sample(FIELD, stk.ULA(0.1), chains=range(2**32 - 2, 2**32), steps=1)
    assert draws.chains.tolist() == [2**32 - 2, 2**32 - 1]


def test_failures_name_the_chain():
    field = stk.Energy(
        lambda x: torch.where(x[:, 0] > 0.5, torch.nan, 0.0) + x.square().sum(1), (2,)
    )
    whole = stk.sample(field, stk.ULA(0.1), chains=16, steps=60)
    same(
        stk.sample(field, stk.ULA(0.1), chains=range(8, 16), steps=60), whole, slice(8, 16)
    )  # starts are redrawn as there
    with pytest.raises(stk.ChainFailure) as failure:
        stk.sample(field, stk.ULA(0.1), chains=range(8, 16), steps=60, on_failure="raise")
    assert failure.value.chains
    assert set(failure.value.chains) <= set(whole.chains[8:][~whole.ok[8:]].tolist())


def test_ids_are_saved_and_tell_checkpoints_apart(tmp_path):
    run = {"steps": 3, "checkpoint": tmp_path / "run"}
    draws = stk.sample(FIELD, stk.ULA(0.1), chains=range(8, 16), **run)
    assert draws.provenance["chains"] == "range(8, 16)"
    assert torch.equal(stk.Draws.load(draws.save(tmp_path / "a.safetensors")).chains, draws.chains)
    assert torch.equal(stk.sample(FIELD, stk.ULA(0.1), chains=range(8, 16), **run).x, draws.x)
    for other in (8, range(8), range(9, 17), range(8, 24, 2)):
        with pytest.raises(stk.CheckpointError, match="chains"):
            stk.sample(FIELD, stk.ULA(0.1), chains=other, **run)


def test_islands_are_those_of_the_whole_run():
    with pytest.raises(stk.InvalidArgument, match=r"^chains: .*whole islands"):
        stk.sample(FIELD, stk.SMC(levels=3, island=4), chains=range(2, 10))
    with pytest.raises(stk.InvalidArgument, match=r"^chains: .*whole islands"):
        stk.sample(FIELD, stk.SMC(levels=3, island=4), chains=range(0, 16, 2))


def test_one_draw_has_no_variance():
    moments = stk.sample(FIELD, stk.ULA(0.1), chains=3, steps=1, keep="moments")
    assert bool(moments.var.isnan().all())
    assert torch.equal(moments.mean, moments.final.double())
    many = stk.sample(FIELD, stk.ULA(0.1), chains=3, steps=2, keep="moments")
    every = stk.sample(FIELD, stk.ULA(0.1), chains=3, steps=2)
    torch.testing.assert_close(many.var, every.x.double().var(1))


def test_noise_made_ahead_is_given_back_after_each_batch(monkeypatch):
    """A thousand batches hold no more of it than one."""
    held = []
    forget = Noise.forget

    def told(noise):
        held.append(len(noise._windows))
        forget(noise)
        assert not noise._windows

    monkeypatch.setattr(Noise, "forget", told)
    stk.sample("gaussian", stk.ULA(0.1), chains=6, batch=2, steps=8)
    assert len(held) == 3
    assert min(held) > 0


def test_what_no_pilot_chain_has_tuned_runs_no_other():
    """All of the pilot begins where the energy is not finite: nothing was learned, and all say so."""
    field = stk.Energy(lambda x: torch.where(x > 50, torch.nan, x.square() / 2).sum(1), (2,))
    start = torch.zeros(12, 2)
    start[:4] = 100.0
    for kernel in (stk.MALA(), stk.HMC()):
        warmup = stk.Warmup(10, pilot=4)
        draws = stk.sample(field, kernel, init=start, steps=4, warmup=warmup, batch=4)
        assert (draws.status == stk.Status.NONFINITE).all()
    fine = stk.sample(field, stk.MALA(), init=start.flip(0), steps=4, warmup=warmup, batch=4)
    assert (fine.status[:8] == stk.Status.OK).all()


PLANE = stk.Energy(lambda x: x.square().sum(1), (2,))
NAMED = stk.Energy(lambda mu, s: mu.square() + s.square().sum(1), variables={"mu": (), "s": (2,)})


@pytest.mark.parametrize(
    ("field", "init", "sizes"),
    [
        (PLANE, torch.zeros(2), "16, 2"),
        (NAMED, {"mu": 0.0, "s": torch.zeros(16, 2)}, "16"),
        (NAMED, {"mu": torch.zeros(16), "s": [0.0, 0.0]}, "16, 2"),
    ],
)
@pytest.mark.parametrize("chains", [16, range(4, 20)])
def test_one_point_for_all_chains_is_told_to_be_expanded(field, init, sizes, chains):
    said = rf"a tensor of 16 rows, one a chain, .*expand\({sizes}\)"
    with pytest.raises(stk.InvalidArgument, match=said):
        stk.sample(field, stk.ULA(0.1), chains=chains, steps=2, init=init)


EDGES = {
    "no evaluations": {"cost": Cost()},
    "none of a kind": {"cost": Cost(energy=0, score=3)},
    "no statistics": {"stats": {}},
    "no provenance": {"provenance": {}},
    "nothing kept": {"x": None, "stats": {}},
    "nothing tuned": {"tuned": {}},
    "a number tuned": {"tuned": {"step_size": torch.tensor(0.5)}},
}


@pytest.mark.parametrize("edge", EDGES)
def test_draws_at_every_edge_are_read_as_they_were_saved(edge, tmp_path):
    draws = stk.sample(FIELD, stk.MALA(0.1), chains=3, steps=4)
    draws = replace(draws, **EDGES[edge])
    read = stk.Draws.load(draws.save(tmp_path / "a.safetensors"))
    same(read, draws, slice(None))
    assert (read.cost, read.provenance) == (draws.cost, draws.provenance)
    assert read.stats.keys() == draws.stats.keys()
    assert read.tuned.keys() == draws.tuned.keys()


DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["stats", "tuned"])
def test_numbers_of_every_type_are_read_as_they_were_saved(kind, dtype, tmp_path):
    """What a solver reports is a flag, a count or a number, one a draw or several."""
    draws = stk.sample(FIELD, stk.MALA(0.1), chains=3, steps=4)
    some = {
        "one": torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 1]]).to(dtype),
        "several": torch.tensor([0, 1, 1]).to(dtype)[:, None, None].expand(3, 4, 2).clone(),
        "none": torch.zeros(3, 4, 0, dtype=dtype),
    }
    read = stk.Draws.load(replace(draws, **{kind: some}).save(tmp_path / "a.safetensors"))
    found = getattr(read, kind)
    assert {*found} == {*some}
    for name, value in some.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("failed", [0, 1, 3])
@pytest.mark.parametrize("status", [s for s in stk.Status if s is not stk.Status.OK])
def test_failures_are_counted_by_what_befell_each_chain(status, failed):
    """All kinds but one are there, in numbers of their own."""
    others = [s for s in stk.Status if s not in (stk.Status.OK, status)]
    times = {status: failed} | {s: 2 + i for i, s in enumerate(others)}
    codes = [0, 0] + [int(s) for s, n in times.items() for _ in range(n)]
    draws = stk.sample(FIELD, stk.MALA(0.1), chains=len(codes), steps=2)
    draws = replace(draws, status=torch.tensor(codes, dtype=draws.status.dtype))
    assert draws.failures == {s.name: n for s, n in times.items() if n}
    assert draws.ok.tolist() == [code == 0 for code in codes]


@pytest.mark.parametrize("keep", ["all", "moments"])
@pytest.mark.parametrize("most", [0, -1, 1.5, "1", True, None, 1, 2, 3])
def test_a_summary_has_as_many_rows_as_are_asked_for(keep, most):
    """One or more, whatever was kept."""
    draws = stk.sample(FIELD, stk.MALA(0.1), chains=8, steps=40, keep=keep)
    if type(most) is not int or most < 1:
        with pytest.raises(stk.InvalidArgument, match="most"):
            draws.summary(most=most)
    else:
        assert len(draws.summary(most=most).rows) == min(most, 2)
