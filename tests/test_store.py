"""Draws that are streamed to a store: the bits of a run in memory, read lazily, whatever stops the run; one job at a time."""

import contextlib
import itertools
import json
import math
import operator
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.distributions import constraints

import scoretk as stk
from scoretk.core.locks import held, held_with_others, lock_of
from scoretk.errors import Busy, InvalidArgument, OutputExists, StoreError
from scoretk.inference import asked, storing
from scoretk.run import store as files
from scoretk.run.record import Record
from scoretk.run.store import Store, chains_a_chunk
from scoretk.run.stored import Lazy
from scoretk.run.streaming import Streaming
from scoretk.solvers import EXAMPLES
from scoretk.solvers.base import is_grid

pytest.importorskip("zarr")
xarray = pytest.importorskip("xarray")

NAMED = stk.Energy(
    lambda mu, tau, theta: (mu.square() + tau + theta.square().sum(1)) / 2,
    variables={
        "mu": (),
        "tau": constraints.positive,
        "theta": stk.Variable((3,), dims=("school",), coords={"school": ["a", "b", "c"]}),
    },
)
PLAIN = stk.Energy(lambda x: x.square().sum((1, 2)) / 2, (2, 3))
HMC, RUN = stk.HMC(leapfrogs=3), {"chains": 10, "steps": 45, "warmup": 20, "seed": 2, "batch": 4}


def drawn(path=None, field=NAMED, solver=HMC, draws=16, **changes):
    keep = {} if path is None else {"keep": stk.Zarr(path, draws=draws)}
    return stk.sample(field, solver, **(RUN | keep | changes))


def alike(stats, others):
    """That statistics have the names, shapes, dtypes and values of others."""
    assert stats.keys() == others.keys()
    for name, value in others.items():
        found = stats[name]
        assert (found.shape, found.dtype) == (value.shape, value.dtype), name
        assert torch.equal(found[:], value), name


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same draws in memory and in a store."""
    return drawn(), drawn(tmp_path_factory.mktemp("pair") / "d.zarr")


@pytest.fixture(scope="module")
def parts(tmp_path_factory, pair):
    """The same draws in memory and in two stores, whose chains lie between each other."""
    folder = tmp_path_factory.mktemp("parts")
    each = (range(0, 10, 2), range(1, 10, 2))
    tuned = HMC.tuned_by(pair[0])
    run = {"solver": tuned, "seed": 5, "warmup": 0}
    stores = [drawn(folder / f"{i}.zarr", chains=ids, **run) for i, ids in enumerate(each)]
    return drawn(**run), stk.concatenate(stores)


class TestTheSameDraws:
    @pytest.mark.parametrize(
        ("field", "solver", "changes"),
        [
            (NAMED, HMC, {}),
            (PLAIN, stk.ULA(0.1), {"warmup": None, "thin": 3, "chains": range(3, 12)}),
            (PLAIN, HMC, {"chains": range(2, 9), "warmup": stk.Warmup(20, pilot=4)}),
            ("eight-schools", HMC, {"steps": 20}),
            (PLAIN, stk.ULA(0.1), {"warmup": None, "steps": 5, "draws": 1}),
            (PLAIN, stk.ULA(0.1), {"warmup": None, "steps": 200, "draws": 1000}),
        ],
        ids=["names", "thinned", "pilot", "derived", "short", "long"],
    )
    def test_to_the_bit(self, field, solver, changes, tmp_path):
        own = {n: v for n, v in changes.items() if n != "draws"}
        here, there = (
            drawn(None, field, solver, **own),
            drawn(tmp_path / "d", field, solver, **changes),
        )
        for name in ("x", "final", "status", "failed_at", "chains"):
            assert torch.equal(getattr(here, name), getattr(there, name)), name
        assert here.stats.keys() == there.stats.keys()
        for name, value in here.stats.items():
            assert torch.equal(value, there.stats[name].load())
            assert value.dtype == there.stats[name].dtype
        for name, value in here.variables.items():
            assert torch.equal(value, there[name])
            assert value.shape == there[name].shape

    @pytest.mark.parametrize("keep", ["all", "last"])
    @pytest.mark.parametrize(
        ("field", "name"),
        [
            *((NAMED, name) for name in ("mala", "nuts", "parallel-tempering", "ais")),
            ("ising", "swendsen-wang"),
            (stk.Velocity(lambda x, t: -x, (2,)), "probability-flow"),
        ],
    )
    def test_statistics_are_those_of_memory(self, field, name, keep, tmp_path):
        """Names, shapes, dtypes and values, of what `sample` returns, of what is loaded, of some chains, of parts joined."""
        solver = EXAMPLES[name]
        run = {"batch": 4} | ({} if is_grid(solver) else {"steps": 6})

        def made(path=None, chains=8):
            kept = keep if path is None else stk.Zarr(tmp_path / path, keep=keep, draws=4)
            return stk.sample(field, solver, chains=chains, keep=kept, **run)

        here, there = made(), made("whole")
        parts = [made(f"{i}", range(4 * i, 4 * i + 4)) for i in (0, 1)]
        joined = stk.concatenate(parts[::-1])
        assert here.stats or name == "probability-flow"
        for draws in (there, stk.Draws.load(tmp_path / "whole"), joined, there.in_memory()):
            alike(draws.stats, here.stats)
            alike(draws[[5, 2]].stats, here[[5, 2]].stats)
        assert str(there.summary()) == str(here.summary())
        ours, theirs = (draws.to_arviz()["sample_stats"] for draws in (here, there))
        for kind in here.stats:
            at = files.stored_name(kind)
            assert ours[at].dims == theirs[at].dims == ("chain", "draw")
            assert np.array_equal(ours[at].values, theirs[at].values)

    def test_of_a_grid_its_last_point_or_the_way_to_it(self, tmp_path):
        flow = stk.Velocity(lambda x, t: -x, (2,))
        for kept, keep in (("last", None), ("all", "all")):
            here = stk.sample(flow, stk.ProbabilityFlow(steps=20), chains=6, batch=4, keep=kept)
            where = stk.Zarr(tmp_path / kept, keep=keep, draws=3)
            there = stk.sample(flow, stk.ProbabilityFlow(steps=20), chains=6, batch=4, keep=where)
            assert torch.equal(here.x, there.x)

    @pytest.mark.thorough
    def test_a_ring_that_flushes_within_a_block_is_caught(self, tmp_path, monkeypatch):
        """Chains that fail in a block have it made again, with masks: what went before was not to stay."""
        field = stk.Energy(lambda x: torch.where(x > 2.5, torch.nan, x.square() / 2).sum(1), (1,))
        run = {"steps": 300, "warmup": None, "chains": 12, "batch": 12}
        here = drawn(None, field, stk.ULA(0.3), **run)
        there = drawn(tmp_path / "d", field, stk.ULA(0.3), **run)
        assert len(here) - here.ok.sum() > 0
        assert torch.equal(here.x, there.x)
        assert torch.equal(here.status, there.status)

        monkeypatch.setattr("scoretk.run.batches.BLOCK_SECONDS", 1e3)
        monkeypatch.setattr(Streaming, "most", lambda self: 10_000)  # more than the ring holds
        assert not torch.equal(here.x, drawn(tmp_path / "e", field, stk.ULA(0.3), **run).x)

    @pytest.mark.parametrize("every", [1, 2])
    def test_blocks_go_round_the_ring_as_draws_do(self, every):
        """Of a compiled run's blocks the ring holds what it holds of their draws, one after another."""
        store = SimpleNamespace(
            draws_a_chunk=lambda like: 5,
            as_store_errors=contextlib.nullcontext,
            made=lambda like, chunk: None,
        )
        x = torch.arange(180.0).reshape(60, 3, 1)
        stats = {"energy": x[..., 0] ** 2}
        rings = []
        for block in (1, 7):
            streaming, record, kept = Streaming(store, slice(0, 3)), Record(), 0
            for start in range(0, 60, block):
                some = slice(start, start + block)
                part = {name: value[some] for name, value in stats.items()}
                chosen = [i for i in range(len(x[some])) if (start + i) % every == 0]
                record = streaming.extend(record, x[some], part, chosen, kept, 60)
                kept += len(chosen)
            rings.append(record.flat())
        assert 7 < len(rings[0]["x"]) < kept
        for name, ring in rings[0].items():
            assert torch.equal(ring, rings[1][name])

    def test_failed_chains_are_flagged_in_the_store(self, tmp_path):
        field = stk.Energy(lambda x: torch.where(x > 2.5, torch.nan, x.square() / 2).sum(1), (1,))
        draws = drawn(tmp_path / "d", field, stk.ULA(0.3), steps=20, warmup=None)
        tree = xarray.open_datatree(tmp_path / "d", engine="zarr")
        assert np.array_equal(tree["sample_stats"]["status"], draws.status)
        assert np.array_equal(tree["sample_stats"]["failed_at"], draws.failed_at)
        assert 0 < (draws.status != 0).sum() < len(draws)


@pytest.mark.parametrize(
    ("dtype", "nothing"), [("f4", math.nan), ("f8", math.nan), ("?", False), ("i8", -1), ("u1", 0)]
)
def test_what_is_not_written_yet_reads_as_nothing(dtype, nothing, tmp_path):
    group = files.zarr_module().open_group(tmp_path / "s", mode="w")
    files._array(group, "posterior/x", (2, 3), (2, 2), np.dtype(dtype), ("chain", "draw"))
    found = np.asarray(group["posterior/x"][:])
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, np.full((2, 3), nothing, dtype), equal_nan=dtype[0] == "f")


class TestReading:
    @pytest.mark.parametrize(
        "key",
        [
            *(3, -1, slice(2, 7), (slice(None), -1), (slice(1, 9, 2), slice(-20, None, 3), 1)),
            *(torch.tensor([4, 1, 7]), [3, -1], (torch.tensor([1, 2]), torch.tensor([3, 9]))),
            *((Ellipsis, 0), (0, 0, 0), (slice(None), [1, 2]), torch.arange(10) % 3 == 0),
            *((slice(4, 4), slice(None)), (None, 0), (slice(None), torch.arange(45) > 40)),
            *([], ([],), (2, []), (torch.tensor([[0, 1], [1, 0]]), 0), torch.tensor(True), True),
            *((slice(None), slice(3), [[0], [2]]), ([0, 1], torch.tensor([[0], [4]]))),
        ],
        ids=str,
    )
    def test_an_index_gives_what_it_gives_of_a_tensor(self, pair, key):
        here, there = pair
        assert torch.equal(here.x[key], there.x[key])

    @pytest.mark.parametrize("rows", [range(10), range(9, -1, -1), range(7, 1, -3), range(3, 3)])
    def test_chains_come_in_the_order_that_is_asked_for(self, pair, rows):
        for array in pair[1].x.arrays:
            found = files.part_of(array, rows, slice(3, 30, 4))
            assert np.array_equal(found, np.asarray(array[:])[list(rows), 3:30:4])

    @pytest.mark.parametrize(
        "key",
        [
            3,
            slice(2, 7),
            (slice(None), -1),
            (slice(1, 9, 2), slice(5, 30, 3), 1),
            ([3, -1], 4),
            (Ellipsis, 0),
        ],
        ids=str,
    )
    def test_of_several_stores_too(self, parts, key):
        here, there = parts
        assert here.chains.tolist() == there.chains.tolist()
        assert torch.equal(here.x[key], there.x[key])
        rows = key[0] if isinstance(key, tuple) else key
        some, their = ((d if rows is Ellipsis else d[rows]) for d in parts)
        assert torch.equal(some.final, their.final)
        assert torch.equal(some["tau"][:, 3:9], their["tau"][:, 3:9])
        for name, value in some.stats.items():
            other = their.stats[name]
            assert torch.equal(value[:, 2:40:5], other[:, 2:40:5]), name
        if some.x.ndim > 2:
            for ours, theirs in zip(some.moments(), their.moments(), strict=True):
                torch.testing.assert_close(ours, theirs)

    def test_wrong_indices_are_as_of_a_tensor(self, pair):
        for key in (10, -11, (0, 45), [10], torch.ones(9, dtype=torch.bool)):
            for draws in pair:
                with pytest.raises(IndexError):
                    draws.x[key]

    def test_only_what_is_asked_for_is_read(self, pair, monkeypatch):
        _, there = pair
        whole = type(there.x).read

        def read(self, chains, draws):
            assert len(range(*chains.indices(10))) * len(range(*draws.indices(45))) <= 45
            return whole(self, chains, draws)

        monkeypatch.setattr(type(there.x), "read", read)
        assert there.x[3].shape == (45, 5)
        assert there["theta"][:, -1].shape == (10, 3)
        assert len(there) == 10
        assert there.x.shape == (10, 45, 5)
        assert there[2:5].x.shape == (3, 45, 5)
        assert "Lazy" in repr(there.x)
        assert repr(there) == repr(pair[0])
        with pytest.raises(AssertionError):
            there.x.mean()

    def test_chains_of_draws_are_draws(self, pair):
        for rows in (3, slice(2, 8), torch.arange(10) % 2 == 0, [5, 1]):
            here, there = (draws[rows] for draws in pair)
            assert torch.equal(here.x, there.x)
            assert torch.equal(here["tau"], there["tau"])
            assert torch.equal(here.stats["accept"], there.stats["accept"].load())
            assert torch.equal(here[0:1].x, there[0:1].x)

    def test_torch_and_numpy_take_it(self, pair):
        here, there = pair
        assert torch.equal(torch.cat([here.x, here.x]), torch.cat([there.x, there.x]))
        assert torch.equal(here.x * 2, there.x * 2)
        assert torch.equal(1 - here.x, 1 - there.x)
        assert torch.equal(here.x.mean((0, 1)), there.x.mean((0, 1)))
        assert np.array_equal(here.x.numpy(), np.asarray(there.x))
        with pytest.raises(AttributeError):
            there.x.no_such_thing  # noqa: B018

    @pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "floordiv", "pow", "mod"])
    def test_arithmetic_takes_it_from_either_side(self, pair, name):
        here, there = (draws.x for draws in pair)
        made = getattr(operator, name)
        assert torch.equal(made(here, 3.0), made(there, 3.0))
        torch.testing.assert_close(made(5.0, here), made(5.0, there), equal_nan=True)

    def test_products_of_matrices_from_either_side(self, pair):
        here, there = (draws.x for draws in pair)
        a = torch.eye(5)
        assert torch.equal(here @ a, there @ a)
        assert torch.equal(torch.eye(45) @ here, torch.eye(45) @ there)

    @pytest.mark.parametrize("chunk", [1, 45 * 5 * 4 * 4, 1 << 25])
    def test_chains_one_after_another_read_each_chunk_once(self, pair, chunk, monkeypatch):
        here, there = pair
        monkeypatch.setattr("scoretk.run.stored.CHUNK", chunk)
        reads, whole = [], Lazy.read

        def read(self, *where):
            reads.append(where)
            return whole(self, *where)

        monkeypatch.setattr(Lazy, "read", read)
        for one, other in zip(here.x, there.x, strict=True):
            assert torch.equal(one, other)
        assert len(reads) <= math.ceil(10 / there.x.arrays[0].chunks[0])

    @pytest.mark.parametrize("free", [4 * 10 * 5 * 4, 4 * 10 * 5 * 4 * 3, 10 * 5 * 45 * 4 * 2])
    def test_pieces_fit_into_what_memory_is_free(self, pair, free, monkeypatch):
        """Also where a chunk of all chains does not: of a draw a piece in the end."""
        here, there = pair
        monkeypatch.setattr("scoretk.run.stored.available", lambda device: free)
        pieces = list(there.x.pieces())
        assert max(piece.nbytes for _, piece in pieces) <= free // 4
        assert torch.equal(torch.cat([piece for _, piece in pieces], 1), here.x)
        for some in (slice(0, 1), slice(1, 4)):
            if here.x[:, :, some].nbytes <= free:
                assert torch.equal(there.x.entries(some), here.x[:, :, some])

    def test_moments_of_no_chain(self, pair):
        for found in pair[1][:0].moments():
            assert found.shape == (0, 5)

    def test_the_summary_is_that_of_memory(self, pair):
        here, there = pair
        assert str(here.summary()) == str(there.summary())

    def test_moments_are_read_in_pieces(self, pair, monkeypatch):
        here, there = pair
        monkeypatch.setattr("scoretk.run.stored.CHUNK", 1)
        assert len(list(there.x.pieces())) == 3
        for one, other in zip(here.moments(), there.moments(), strict=True):
            torch.testing.assert_close(one, other)

    def test_a_summary_of_more_than_fits_judges_some_and_averages_all(self, pair, monkeypatch):
        here, there = pair
        monkeypatch.setattr("scoretk.run.stored.JUDGED", 10 * 5 * 4 * 20)
        some, whole = there.summary(), here.summary()
        assert some.chains * some.draws < whole.chains * whole.draws
        for name, row in whole.rows.items():
            assert some.rows[name]["mean"] == pytest.approx(row["mean"], rel=1e-5)
            assert some.rows[name]["sd"] == pytest.approx(row["sd"], rel=1e-5)

    def test_what_does_not_fit_into_memory_is_not_read(self, pair, monkeypatch):
        monkeypatch.setattr("scoretk.run.stored.available", lambda device: 500)
        with pytest.raises(InvalidArgument, match="pieces"):
            pair[1].x.mean()
        assert pair[1].x[0, :5].shape == (5, 5)

    def test_saved_as_those_in_memory(self, pair, tmp_path):
        here, there = pair
        for name in ("d.safetensors", "d.npy"):
            there.save(tmp_path / name)
        again = stk.Draws.load(tmp_path / "d.safetensors")
        assert torch.equal(again.x, here.x)
        assert torch.equal(again.stats["accept"], here.stats["accept"])
        assert np.array_equal(np.load(tmp_path / "d.npy"), here.x)

    @pytest.mark.thorough
    def test_a_store_is_loaded_as_what_sample_returned(self, pair, tmp_path):
        derived = drawn(tmp_path / "e", "eight-schools", steps=5)
        for made in (pair[1], derived):
            again = stk.Draws.load(made.store)
            assert isinstance(again, stk.StoredDraws)
            assert repr(again) == repr(made)
            assert (again.cost, again.provenance) == (made.cost, made.provenance)
            for name in ("x", "final", "status", "failed_at", "chains"):
                assert torch.equal(getattr(again, name), getattr(made, name)), name
            for kind in ("tuned", "stats", "variables"):
                ours, theirs = getattr(again, kind), getattr(made, kind)
                assert ours.keys() == theirs.keys()
                assert all(torch.equal(ours[name], value) for name, value in theirs.items()), kind
            assert str(again.summary()) == str(made.summary())

    @pytest.mark.thorough
    def test_what_is_no_store_of_a_run_that_is_over_is_not_loaded(self, tmp_path):
        with pytest.raises(Stop):
            drawn(tmp_path / "stopped", stopping(150), **SHORT)
        with pytest.raises(InvalidArgument, match="takes it up"):
            stk.Draws.load(tmp_path / "stopped")
        xarray.Dataset({"x": ("n", [1.0])}).to_zarr(tmp_path / "other", consolidated=False)
        (tmp_path / "empty").mkdir()
        for name in ("other", "empty", "nothing"):
            with pytest.raises(InvalidArgument, match="path"):
                stk.Draws.load(tmp_path / name)
        drawn(tmp_path / "d", PLAIN, **SHORT)
        shutil.rmtree(tmp_path / "d" / "outcome")
        with pytest.raises(InvalidArgument, match="path"):
            stk.Draws.load(tmp_path / "d")

    @pytest.mark.thorough
    @pytest.mark.parametrize("where", ["posterior/x", "sample_stats/lp"])
    def test_a_chunk_that_is_lost_is_told_and_not_read_as_nan(self, where, tmp_path):
        run = {"checkpoint": tmp_path / "c", **SHORT, "solver": stk.MALA(0.3)}
        made = drawn(tmp_path / "d", PLAIN, **run)
        event = ("0", "0") if where == "posterior/x" else ()
        (tmp_path / "d" / where).joinpath("c", "1", "12", *event).unlink()
        for draws in (made, stk.Draws.load(tmp_path / "d")):
            lazy = draws.x if where == "posterior/x" else draws.stats["energy"]
            assert bool(lazy[:4].isfinite().all())  # of another chunk
            assert bool(lazy[:, :96].isfinite().all())
            for ask in (lazy.load, lambda some=lazy: some[[9, 5]], draws.in_memory):
                with pytest.raises(StoreError, match="has lost draws"):
                    ask()
        with pytest.raises(StoreError, match="has lost draws"):
            drawn(tmp_path / "d", PLAIN, **run | {"steps": 101})

    @pytest.mark.thorough
    @pytest.mark.parametrize(
        "where", ["posterior/chain", "sample_stats/status", "sample_stats/failed_at"]
    )
    def test_what_is_lost_of_chains_is_told_and_not_read_as_none(self, where, tmp_path):
        drawn(tmp_path / "d.zarr", PLAIN, **SHORT)
        (tmp_path / "d.zarr" / where / "c" / "0").unlink()
        with pytest.raises(StoreError, match="has lost draws"):
            stk.Draws.load(tmp_path / "d.zarr")

    @pytest.mark.thorough
    @pytest.mark.parametrize("checked", [True, False], ids=["", "mutant"])
    def test_a_bit_that_a_disk_has_changed_is_an_error(self, checked, tmp_path, monkeypatch):
        if not checked:
            plain = files.zarr_module().codecs.ZstdCodec(checksum=False)
            monkeypatch.setattr(files, "_compressor", lambda: plain)
        run = {"steps": 20, "warmup": None, "draws": 20}
        made = drawn(tmp_path / "d", PLAIN, stk.MALA(0.3), **run)
        x, final = made.x[:], made.final
        unseen = 0
        for chunk in (
            p for p in (tmp_path / "d").rglob("*") if p.is_file() and p.suffix != ".json"
        ):
            if "posterior/x/" in str(chunk) or "outcome" in str(chunk):
                content = chunk.read_bytes()
                for at in range(len(content) // 3, len(content), len(content) // 4):
                    chunk.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
                    with contextlib.suppress(StoreError, InvalidArgument):
                        again = stk.Draws.load(tmp_path / "d")
                        same = torch.equal(again.x[:], x) and torch.equal(again.final, final)
                        unseen += not same
                chunk.write_bytes(content)
        assert (unseen == 0) is checked

    def test_a_store_is_read_wherever_the_process_works(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        run = {"warmup": None, "steps": 3}
        made = drawn("d", PLAIN, stk.ULA(0.1), **run)
        monkeypatch.chdir("/")
        assert torch.equal(made.x[:], drawn(None, PLAIN, stk.ULA(0.1), **run).x)

    @pytest.mark.thorough
    def test_xarray_and_arviz_read_it_while_the_run_goes_on(self, tmp_path):
        arviz = pytest.importorskip("arviz")
        seen, calls = [], [0]

        def energy(x):
            calls[0] += 1
            # the first batch is over, the second on its way: looked at until its first chunk is written
            if calls[0] >= 160 and not (seen and seen[0][4] > 0):
                seen.clear()
                with xarray.open_datatree(tmp_path / "d", engine="zarr") as tree:
                    data = arviz.from_datatree(tree) if hasattr(arviz, "from_datatree") else tree
                    seen.append(data["sample_stats"]["kept"].values)
                    seen.append(data["posterior"]["x"].values)
                    seen.append(arviz.rhat(seen[1][:4, :, 0, 0]))
            return x.square().sum((1, 2)) / 2

        field = stk.Energy(energy, (2, 3))
        run = {"solver": stk.MALA(0.3), "warmup": None, "steps": 100}
        here = drawn(tmp_path / "d", field, draws=25, **run).x[:]
        kept, x, r_hat = seen
        assert kept[:4].tolist() == [100] * 4
        assert 0 < kept[4] < 100
        assert kept[8:].tolist() == [-1] * 2
        for chain, n in enumerate(kept):
            assert np.array_equal(x[chain, : max(n, 0)], here[chain, : max(n, 0)])
            assert np.isnan(x[chain, max(n, 0) + 50 :]).all()  # a chunk may be on its way
        assert r_hat == pytest.approx(float(stk.diagnostics.rhat(here[:4])[0, 0]), rel=1e-6)

    def test_arviz_has_the_same_and_reads_it_when_asked(self, pair):
        pytest.importorskip("arviz")
        here, there = (draws.to_arviz() for draws in pair)
        for data in (there, pair[1][[4, 2]].to_arviz()):  # nothing of the package's own
            names = data.groups() if callable(data.groups) else data.groups
            assert {name.strip("/") for name in names} - {""} == {"posterior", "sample_stats"}
        for group in ("posterior", "sample_stats"):
            for name, value in here[group].data_vars.items():
                other = there[group][name]
                assert np.array_equal(
                    value.values.reshape(10, 45, -1)[:, 0],
                    other.values.reshape(10, -1)[:, : value[0, 0].size],
                )
        assert list(there["posterior"]["school"].values) == ["a", "b", "c"]
        some = pair[1][[4, 2]].to_arviz()
        assert list(some["posterior"]["chain"].values) == [4, 2]


class Stop(Exception):
    pass


def stopping(after):
    """A field that stops a run after so many calls, once."""
    calls = [after]

    def energy(x):
        calls[0] -= 1
        if calls[0] == 0:
            raise Stop
        return x.square().sum((1, 2)) / 2

    return stk.Energy(energy, (2, 3))


OF_STORES = ("draws", "checkpoint")
SHORT = {"solver": stk.ULA(0.1), "warmup": None, "steps": 100, "draws": 8}


class TestTakingUp:
    @pytest.mark.parametrize("after", [60, 280])
    def test_a_run_that_was_stopped_goes_on_to_the_bit(self, after, tmp_path):
        here = drawn(None, stopping(-1), stk.ULA(0.1), warmup=None, steps=100)
        field, saved = stopping(after), stk.Checkpoint(tmp_path / "c", every=1e-9)
        with pytest.raises(Stop):
            drawn(tmp_path / "d", field, checkpoint=saved, **SHORT)
        there = drawn(tmp_path / "d", field, checkpoint=saved, **SHORT)
        assert torch.equal(here.x, there.x)
        assert [p.name for p in sorted(tmp_path.iterdir())] == ["c", "d"]

    @pytest.mark.thorough
    def test_what_a_kill_left_half_written_is_cleared(self, tmp_path):
        """zarr writes beside a file's place, and warns of what it finds there."""
        run = {"checkpoint": tmp_path / "c", **SHORT}
        drawn(tmp_path / "d", PLAIN, **run)
        for where in ("", "posterior", "posterior/x", "posterior/x/c/0/0/0", "sample_stats"):
            (tmp_path / "d" / where / "zarr.0123.partial").write_bytes(b"{")
        drawn(tmp_path / "d", PLAIN, **run)
        assert not list((tmp_path / "d").rglob("*.partial"))

    @pytest.mark.thorough
    def test_metadata_that_a_kill_left_older_than_the_store_are_not_believed(
        self, tmp_path, monkeypatch
    ):
        """Killed when all is written, and what xarray reads first is not."""
        run, own = {"checkpoint": tmp_path / "c", **SHORT}, files._consolidate
        with monkeypatch.context() as patch:
            patch.setattr(files, "_consolidate", lambda at: (at / "outcome").exists() or own(at))
            made = drawn(tmp_path / "d", PLAIN, **run)
        assert torch.equal(stk.Draws.load(tmp_path / "d").x[:], made.x[:])
        assert torch.equal(drawn(tmp_path / "d", PLAIN, **run).x[:], made.x[:])
        there = drawn(tmp_path / "d", PLAIN, **run | {"steps": 120})
        assert torch.equal(there.x[:, :100], made.x[:])

    @pytest.mark.thorough
    def test_a_checkpoint_holds_no_draws(self, tmp_path):
        big = SHORT | {"steps": 800, "draws": 200}
        drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", **big)
        assert (tmp_path / "c").stat().st_size < 20_000

    @pytest.mark.thorough
    @pytest.mark.parametrize("shared", [False, True], ids=["a file", "a folder"])
    def test_a_run_that_was_stopped_in_its_warmup_has_no_store_yet(self, shared, tmp_path):
        """Its checkpoint waits for the store, which is made at the first draw; and not for one that had draws."""
        run = {"warmup": stk.Warmup(40, pilot=4), "steps": 20, "draws": 8, "solver": stk.MALA()}
        run["checkpoint"] = stk.Checkpoint(tmp_path / "c", every=1e-9)
        field, where = stopping(60), tmp_path / "d"
        with stk.distributed() if shared else contextlib.nullcontext():
            with pytest.raises(Stop):
                drawn(where, field, **run)
            assert not where.exists()
            there = drawn(where, field, **run)
            here = drawn(None, field, **{n: v for n, v in run.items() if n not in OF_STORES})
            assert torch.equal(here.x, there.x)
            shutil.rmtree(where)
            with pytest.raises(stk.CheckpointError, match="store"):
                drawn(where, field, **run)

    def test_a_store_of_another_number_would_not_be_taken_up(self, tmp_path, monkeypatch):
        """The mutant: what was saved in warmup waits for a store that nobody makes."""
        run = {
            "warmup": stk.Warmup(40, pilot=4),
            "solver": stk.MALA(),
            "checkpoint": tmp_path / "c",
        }
        field = stopping(60)
        with pytest.raises(Stop):
            drawn(tmp_path / "d", field, **run)
        monkeypatch.setattr(storing, "awaited_store", lambda *_: None)
        with pytest.raises(stk.CheckpointError, match="store"):
            drawn(tmp_path / "d", field, **run)

    @pytest.mark.thorough
    def test_a_longer_run_goes_on_from_a_shorter_one(self, tmp_path):
        drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", **SHORT)
        more = SHORT | {"steps": 133}
        there = drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", **more)
        assert torch.equal(drawn(None, PLAIN, stk.ULA(0.1), warmup=None, steps=133).x, there.x)
        tree = xarray.open_datatree(tmp_path / "d", engine="zarr")
        assert tree["posterior"].sizes["draw"] == 133

    @pytest.mark.thorough
    def test_a_run_that_was_never_saved_begins_anew_in_its_own_store_only(self, tmp_path):
        drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", **SHORT)
        (tmp_path / "c").unlink()
        again = drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", **SHORT)
        assert torch.equal(drawn(None, PLAIN, stk.ULA(0.1), warmup=None, steps=100).x, again.x)
        (tmp_path / "c").unlink()
        with pytest.raises(StoreError, match="seed: 2 there, 3 here"):
            drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", seed=3, **SHORT)
        assert torch.equal(again.x, again.x)

    @pytest.mark.thorough
    def test_another_field_does_not_begin_anew_in_a_store(self, tmp_path):
        moved = stk.Energy(lambda x: (x - 5).square().sum((1, 2)) / 2, (2, 3))
        there = drawn(tmp_path / "a", PLAIN, **SHORT)
        before = there.x.load()
        for field in (moved, PLAIN):  # which was saved nowhere
            with pytest.raises(StoreError, match="another run"):
                drawn(tmp_path / "a", field, checkpoint=tmp_path / "c", **SHORT)
        assert torch.equal(there.x.load(), before)
        drawn(tmp_path / "b", PLAIN, checkpoint=tmp_path / "d", **SHORT)
        with pytest.raises(StoreError, match="field and solver are made of"):
            drawn(tmp_path / "b", moved, checkpoint=tmp_path / "mistyped", **SHORT)

    @pytest.mark.thorough
    def test_a_store_older_than_its_checkpoint_is_refused(self, tmp_path):
        run = {"checkpoint": tmp_path / "c", **SHORT, "draws": 1000}
        drawn(tmp_path / "d", PLAIN, **run | {"steps": 40})
        shutil.copytree(tmp_path / "d", tmp_path / "old")
        drawn(tmp_path / "d", PLAIN, **run | {"steps": 70})
        shutil.rmtree(tmp_path / "d")
        (tmp_path / "old").rename(tmp_path / "d")
        for steps in (70, 100):
            with pytest.raises(StoreError, match=r"has 40 draws of a chain, where 70"):
                drawn(tmp_path / "d", PLAIN, **run | {"steps": steps})

    @pytest.mark.thorough
    def test_what_is_there_is_kept_and_the_message_says_how_to_take_it_up(self, tmp_path):
        drawn(tmp_path / "d", PLAIN, **SHORT)
        with pytest.raises(OutputExists, match="checkpoint="):
            drawn(tmp_path / "d", PLAIN, **SHORT)
        (tmp_path / "other").mkdir()
        with pytest.raises(InvalidArgument, match=r"zarr\.json"):
            stk.Zarr(tmp_path / "other")
        drawn(tmp_path / "e", PLAIN, checkpoint=tmp_path / "c", **SHORT)
        shutil.rmtree(tmp_path / "e")
        with pytest.raises(stk.CheckpointError, match="store"):
            drawn(tmp_path / "e", PLAIN, checkpoint=tmp_path / "c", **SHORT)

    def test_what_was_drawn_before_an_interrupt_can_be_read(self, tmp_path):
        with pytest.raises(Stop):
            drawn(tmp_path / "d", stopping(150), **SHORT)
        tree = xarray.open_datatree(tmp_path / "d", engine="zarr")
        here = drawn(None, PLAIN, stk.ULA(0.1), warmup=None, steps=100)
        kept = tree["sample_stats"]["kept"].values
        assert kept.max() > 0
        for chain, n in enumerate(kept):
            there = tree["posterior"]["x"].values[chain, : max(n, 0)]
            assert np.array_equal(there, here.x[chain, : max(n, 0)])

    def test_a_checkpoint_lies_outside_of_the_store(self, tmp_path):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "zarr.json").write_text("{}")
        with pytest.raises(InvalidArgument, match=r"checkpoint: .*outside of the store"):
            drawn(tmp_path / "e", PLAIN, checkpoint=tmp_path / "e", **SHORT)
        with pytest.raises(InvalidArgument, match=r"checkpoint: .*outside of the store"):
            drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "d" / "c", **SHORT)

    def test_gradients_have_no_store(self, tmp_path):
        with pytest.raises(InvalidArgument, match="grad"):
            drawn(tmp_path / "d", PLAIN, grad=True, **SHORT)


KILLED = """
import os, sys, time, torch
import scoretk as stk
from scoretk.run import store
torch.set_num_threads(1)
field = stk.Energy(lambda x: x.square().sum(1) / 2, (3,))
folder, limit = sys.argv[1], int(sys.argv[2])
if limit:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
saved = stk.Checkpoint(folder + "/c", every=1e-9)
try:
    run = dict(chains=8, steps=1500, seed=5, batch=4, checkpoint=saved)
    stk.sample(field, stk.ULA(0.1), keep=stk.Zarr(folder + "/d", draws=512), **run)
except stk.ScoretkError as error:
    print(type(error).__name__, error)
    sys.exit(3)
print("done")
"""


def job(folder, limit=0):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(limit)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def in_memory():
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (3,))
    return stk.sample(field, stk.ULA(0.1), chains=8, steps=1500, seed=5, batch=4)


class TestFaults:
    @pytest.mark.thorough
    def test_a_full_disk_is_told_what_was_written_stays_and_the_run_goes_on(
        self, tmp_path, monkeypatch, capsys
    ):
        # files of at most 20 kB: of the draws of a chunk, 25 kB, none fits, of metadata all
        full = job(tmp_path, 20_000)
        said = full.communicate(timeout=120)[0]
        assert full.returncode == 3, said
        assert "cannot write" in said
        xarray.open_datatree(tmp_path / "d", engine="zarr").close()
        monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "0"])
        exec(compile(KILLED, "<string>", "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out == "done\n"
        tree = xarray.open_datatree(tmp_path / "d", engine="zarr")
        assert np.array_equal(tree["posterior"]["x"].values, in_memory().x)

    @pytest.mark.parametrize("saved", [False, True])
    def test_a_full_disk_names_the_way_on_that_there_is(self, saved, tmp_path, monkeypatch):
        def refuses(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr(Store, "_placed", refuses)
        more = {"checkpoint": tmp_path / "c"} if saved else {}
        with pytest.raises(StoreError, match="No space left") as caught:
            drawn(tmp_path / "d", PLAIN, steps=20, **more)
        assert ("the same call, with its checkpoint=" in str(caught.value)) == saved
        assert ("make it anew" in str(caught.value)) == (not saved)

    @pytest.mark.slow
    def test_killed_at_any_moment_it_goes_on_to_the_bit(self, tmp_path):
        rng = np.random.default_rng(0)
        for _ in range(6):
            first = job(tmp_path)
            while first.poll() is None and not (tmp_path / "d" / "zarr.json").exists():
                pass
            try:
                first.wait(float(rng.uniform(0, 1.5)))
            except subprocess.TimeoutExpired:
                first.send_signal(signal.SIGKILL)
            first.communicate()
        assert job(tmp_path).communicate(timeout=120)[0].endswith("done\n")
        tree = xarray.open_datatree(tmp_path / "d", engine="zarr")
        assert np.array_equal(tree["posterior"]["x"].values, in_memory().x)

    @pytest.mark.parametrize("saved", [False, True])
    def test_what_ends_a_run_after_a_chunk_is_what_is_raised(self, saved, tmp_path):
        """The moment before it, which is saved, has fewer draws than are written by then."""
        outwards = stk.Score(lambda x: 5 * x, (2,))  # known for diverged when the run is over
        keep = stk.Zarr(tmp_path / "d", draws=8)
        more = {"checkpoint": tmp_path / "c"} if saved else {}
        run = {"chains": 3, "steps": 64, "init": torch.ones(3, 2), **more}
        with pytest.raises(stk.ChainFailure):
            stk.sample(outwards, stk.ULA(0.1), keep=keep, on_failure="raise", **run)
        tree = xarray.open_datatree(tmp_path / "d", engine="zarr")
        assert int(tree["sample_stats"]["kept"].min()) == 64

    def test_after_a_gap_nothing_is_counted(self, tmp_path, monkeypatch):
        """A disk that is full for a moment: `kept` is what readers go by."""
        write, asked = Store.write, []

        def failing_once(self, rows, start, values):
            asked.append(start)
            if len(asked) == 2:
                raise StoreError("the disk is full")
            write(self, rows, start, values)

        monkeypatch.setattr(Store, "write", failing_once)
        with pytest.raises(StoreError, match="full"):
            drawn(tmp_path / "d")
        kept = xarray.open_datatree(tmp_path / "d", engine="zarr")["sample_stats"]["kept"]
        assert len(asked) == 2
        assert int(kept.max()) == 16


class TestOneJobAtATime:
    def test_a_second_job_is_refused(self, tmp_path):
        for name in ("d", "c"):
            with held(tmp_path / name), pytest.raises(Busy, match=f"process {os.getpid()} on"):
                drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", steps=5)
        assert list(tmp_path.iterdir()) == []
        drawn(tmp_path / "d", PLAIN, checkpoint=tmp_path / "c", steps=5)

    def test_the_second_process_is_refused_and_a_killed_one_leaves_nothing_in_the_way(
        self, tmp_path
    ):
        code = (
            "import sys, time\nfrom scoretk.core.locks import held\n"
            f"with held({str(tmp_path / 'd')!r}):\n    print('held', flush=True)\n    time.sleep(600)"
        )
        first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert first.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {first.pid} "), held(tmp_path / "d"):
            pass
        first.kill()
        first.communicate()
        assert lock_of(tmp_path / "d").exists()
        with held(tmp_path / "d"):
            assert json.loads(lock_of(tmp_path / "d").read_text())["pid"] == os.getpid()
        assert not lock_of(tmp_path / "d").exists()

    @pytest.mark.parametrize("left", ["", "{", "3", "owner", "a job"])
    def test_a_lock_says_who_holds_it_whatever_was_left_there(self, left, tmp_path):
        """Less than that or more; it is read as a whole."""
        path = tmp_path / "d"
        gone = {"pid": 2**22 + 1, "host": socket.gethostname(), "since": "long ago " * 20}
        text = {"owner": json.dumps(gone), "a job": json.dumps(gone | {"job": "one"})}
        lock_of(path).write_text(text.get(left, left))
        for job in (None, "two"):
            with held(path, job=job):
                told = json.loads(lock_of(path).read_text())
                assert told.keys() == {"pid", "host", "since"} | ({"job"} if job else set())
                assert (told["pid"], told["host"]) == (os.getpid(), socket.gethostname())
                assert told.get("job") == job

    def test_processes_of_a_job_hold_it_until_the_last_has_left(self, tmp_path):
        path = tmp_path / "d"
        with pytest.raises(Busy), held_with_others(path, "one"):
            pass
        assert not lock_of(path).exists()
        with contextlib.ExitStack() as other:
            with held(path, job="one"):
                with pytest.raises(Busy), held_with_others(path, "another"):
                    pass
                other.enter_context(held_with_others(path, "one"))
            with pytest.raises(Busy), held(path):
                pass
        with held(path):
            pass
        assert not lock_of(path).exists()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="of systems that fork")
    def test_a_fork_neither_lets_go_of_it_nor_holds_it_on(self, tmp_path):
        code = (
            "import os, sys, time\nfrom scoretk.core.locks import held, lock_of\n"
            f"with held({str(tmp_path / 'd')!r}):\n"
            "    if not os.fork():\n        sys.exit()\n"
            f"    os.wait()\n    print(lock_of({str(tmp_path / 'd')!r}).exists(), flush=True)\n"
            "    if not os.fork():\n        print(os.getpid(), flush=True)\n"
            "    time.sleep(600)"
        )
        first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with first.stdout:
            there, child = first.stdout.readline(), int(first.stdout.readline())
        try:
            with pytest.raises(Busy), held(tmp_path / "d"):
                pass
            first.kill()
            first.wait()
            assert there == "True\n"
            with held(tmp_path / "d"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
            first.kill()
            first.wait()

    def test_without_locks_the_process_named_is_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr("scoretk.core.locks.fcntl", None)
        path, lock = tmp_path / "d", lock_of(tmp_path / "d")
        with held(path), pytest.raises(Busy), held(path):
            pass
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        lock.write_text(json.dumps({"pid": gone.pid, "host": socket.gethostname()}))
        with held(path):
            pass
        lock.write_text(json.dumps({"pid": gone.pid, "host": "elsewhere"}))
        with pytest.raises(Busy, match="elsewhere"), held(path):
            pass

    def test_without_locks_a_job_of_several_processes_leaves_none_behind(
        self, tmp_path, monkeypatch
    ):
        """The first, which lives on, would be in the way of its own next call."""
        monkeypatch.setattr("scoretk.core.locks.fcntl", None)
        path = tmp_path / "d"
        for job in ("one", "another"):
            with held(path, job=job), held_with_others(path, job), pytest.raises(Busy), held(path):
                pass
            assert not lock_of(path).exists()


class TestChunks:
    def test_no_chunk_has_chains_of_two_batches(self):
        for batches in ([256, 100, 100, 44], [64, 64, 1], [7], [10, 10], [12, 8, 8, 3]):
            size = chains_a_chunk(batches, 1)
            for end in np.cumsum(batches)[:-1]:
                assert end % size == 0
        assert chains_a_chunk([256, 100, 100, 44], 1) == 4
        assert chains_a_chunk([64, 64, 1], 1) == 64
        assert chains_a_chunk([64], files.LARGEST_CHUNK // 8) == 8
        assert chains_a_chunk([64], files.LARGEST_CHUNK * 8) == 1

    @pytest.mark.thorough
    def test_batches_that_make_many_small_files_are_told(self, tmp_path, monkeypatch):
        monkeypatch.setattr("scoretk.inference.storing.MANY_CHUNKS", 4)
        run = {"steps": 2, "warmup": stk.Warmup(2, pilot=6), "chains": 40}
        with pytest.warns(UserWarning, match=r"a chunk has 1 of 40 chains.*multiples of 256"):
            drawn(tmp_path / "d", PLAIN, batch=7, **run)
        drawn(tmp_path / "e", PLAIN, **{**run, "batch": 16, "warmup": stk.Warmup(2, pilot=16)})

    def test_shared_batches_are_multiples_of_the_pilot(self):
        with stk.distributed():
            for chains, size in (
                (5, 256),
                (600, 256),
                (16_384, 256),
                (16_385, 512),
                (10**6, 15_872),
            ):
                assert asked.default_batch(chains) == size
                assert -(-chains // size) <= 64
        assert asked.default_batch(600) == 600

    def test_it_is_read_without_a_warning(self, pair):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            xarray.open_datatree(pair[1].store, engine="zarr").load()


def contents_of(path):
    """All arrays of a store, with what is along their axes, as numbers."""
    tree = xarray.open_datatree(path, engine="zarr")
    return {
        f"{group.path}/{name}": (found.dims, found.to_numpy())
        for group in tree.subtree
        for name, found in group.to_dataset().variables.items()
    }


@pytest.mark.parametrize("field", [NAMED, PLAIN], ids=["names", "no names"])
def test_the_store_of_a_run_that_was_made_longer_is_that_of_one_run(field, tmp_path):
    """Its draws, statistics and labels."""
    run = {"solver": stk.ULA(0.1), "warmup": None, "draws": 4}
    for steps in (6, 11):
        drawn(tmp_path / "a", field, checkpoint=tmp_path / "c", steps=steps, **run)
    drawn(tmp_path / "b", field, steps=11, **run)
    longer, whole = contents_of(tmp_path / "a"), contents_of(tmp_path / "b")
    assert longer.keys() == whole.keys()
    for name, (dims, values) in whole.items():
        assert longer[name][0] == dims, name
        np.testing.assert_array_equal(longer[name][1], values, name)


@pytest.mark.parametrize(
    "rows", [range(6), range(2, 3), range(5, -1, -2), [0, 5], [3, 2], []], ids=str
)
@pytest.mark.parametrize("draws", [slice(None), slice(2, 5), slice(7, 8), slice(3, 3)], ids=str)
def test_each_chunk_that_is_asked_for_is_looked_for_and_no_other(rows, draws, tmp_path):
    """Where one is lost zarr would read NaN in its place."""
    values = np.arange(6 * 8 * 2.0).reshape(6, 8, 2)
    group = files.zarr_module().open_group(tmp_path / "s", mode="w")
    array = group.create_array("x", shape=values.shape, chunks=(2, 3, 2), dtype="f8")
    array[:] = values
    asked = np.zeros((6, 8), bool)
    asked[np.ix_(list(rows), range(8)[draws])] = True
    for i, j in itertools.product(range(3), range(3)):
        path = tmp_path / "s" / "x" / array.metadata.encode_chunk_key((i, j, 0))
        content = path.read_bytes()
        path.unlink()
        lost = bool(asked[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].any())
        some = rows if isinstance(rows, range) else np.asarray(rows, dtype=np.int64)
        with (
            pytest.raises(StoreError, match="has lost draws") if lost else contextlib.nullcontext()
        ):
            found = files.part_of(array, some, draws)
            assert np.array_equal(found, values[list(rows)][:, draws])
        path.write_bytes(content)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int64], ids=str)
@pytest.mark.parametrize("keep", ["all", "last"])
def test_arviz_is_given_flags_counts_and_numbers_as_such(kind, keep):
    """A flag of divergence is a truth value, however it was kept; all else has the type that it had."""
    draws = stk.sample(PLAIN, stk.MALA(0.1), chains=4, steps=6, keep=keep)
    shape = (4, 6) if keep == "all" else (4,)
    flags = (torch.arange(math.prod(shape)).reshape(shape) % 3 == 0).to(kind)
    counts = torch.arange(math.prod(shape)).reshape(shape)
    told = replace(draws, stats={"diverging": flags, "counts": counts, "numbers": counts / 2})
    found = told.to_arviz()["sample_stats"]
    assert found["diverging"].dtype == bool
    assert np.array_equal(found["diverging"].values.ravel(), flags.bool().numpy().ravel())
    assert found["counts"].dtype.kind == "i"
    assert found["numbers"].dtype.kind == "f"
    assert np.array_equal(found["numbers"].values.ravel(), (counts / 2).numpy().ravel())


class Place(NamedTuple):
    x: torch.Tensor
    step: torch.Tensor

    shared = frozenset({"step"})


class Reporting:
    """A solver of somebody else's that reports numbers of several shapes and types."""

    needs, timed, capturable = frozenset({"energy"}), False, False
    reports = ("one", "several", "a_table", "flags")
    init_cost, step_cost = MappingProxyType({}), MappingProxyType({"energy": 1})

    def init(self, field, x, noise):
        return Place(x, torch.zeros((), dtype=torch.int64))

    def step(self, field, state, noise):
        each, n = torch.arange(len(state.x)), int(state.step)
        told = {
            "one": each + n,
            "several": (each[:, None] + torch.arange(2.0)) * (n + 1),
            "a_table": (each[:, None, None] + torch.arange(6.0).reshape(2, 3)).double() + n,
            "flags": (each + n) % 2 == 0,
        }
        return Place(state.x + 1, state.step + 1), told


def test_what_a_solver_reports_is_in_a_store_as_in_memory(tmp_path):
    """Numbers of every shape and type, also where one draw at a time is written."""
    short = {"warmup": 0, "steps": 5, "chains": 6}
    here = drawn(None, PLAIN, Reporting(), **short)
    for draws in (2, 16):
        there = drawn(tmp_path / f"{draws}.zarr", PLAIN, Reporting(), draws, **short)
        alike(there.stats, here.stats)
        alike(there.in_memory().stats, here.stats)
        assert isinstance(there.in_memory().x, torch.Tensor)
        assert torch.equal(there.in_memory().x, here.x)
