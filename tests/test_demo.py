"""The demo on a small scale: every model meets every solver, what is empty says why, and the pictures are there."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import scoretk as stk
from scoretk.demo.cells import Cell, Size, cells
from scoretk.demo.likelihoods import Likelihood, compared, likelihoods
from scoretk.demo.main import _built_in, _run, run_demo
from scoretk.demo.quality import Quality, judge, reference
from scoretk.demo.rows import Demo, Done, Row
from scoretk.demo.table import tables
from scoretk.solvers import SOLVERS
from tests.test_cli import run

SMALL = Size(chains=24, steps=4, trajectories=2, rounds=1, likelihood_rows=2, annealed=16)
MODELS = (
    "digits-energy",
    "digits-flow",
    "digits-flow-classes",
    "digits-fvsbn",
    "digits-gan",
    "digits-realnvp",
    "eight-schools",
    "ising",
    "ring-mixture",
    "semicircle",
)


FEW = ("digits-made", "ring-mixture", "semicircle")
DRAWN = {"digits-fvsbn", "digits-gan", "digits-made", "digits-realnvp"}


@pytest.fixture(
    scope="module", params=[FEW, pytest.param(MODELS, marks=pytest.mark.slow)], ids=["few", "many"]
)
def models(request):
    return request.param


@pytest.fixture(scope="module")
def demo(models, tmp_path_factory, coarse_pictures):
    folder = tmp_path_factory.mktemp("demo") / "made" / "here"
    return folder, run_demo(folder, models=models, size=SMALL)


@pytest.mark.slow
def test_tokens_are_judged_as_images_and_their_likelihood_is_a_pixels(tmp_path):
    size = Size(chains=64, steps=16, trajectories=2, rounds=1, likelihood_rows=32, annealed=16)
    found = run_demo(tmp_path, models=["digits-transformer"], size=size)
    (likelihood,) = found.likelihoods
    assert (likelihood.method, likelihood.unit) == ("exact", "bits/pixel")
    assert 1.5 < likelihood.value < 2.2  # 1.85 on all test images
    ran = {row.solver: row for row in found.rows if row.quality.distance is not None}
    assert {"draw", "gibbs-with-gradients", "discrete-langevin"} <= ran.keys()
    assert ran["draw"].quality.distance < 1.6 < ran["gibbs-with-gradients"].quality.distance
    assert (tmp_path / "digits-transformer.png").exists()


@pytest.mark.thorough
def test_every_model_meets_every_solver(demo, models):
    rows = demo[1].rows
    assert {(r.model, r.solver) for r in rows if r.solver != "draw"} == {
        (m, s) for m in models for s in SOLVERS
    }
    assert {r.model for r in rows if r.solver == "draw"} == DRAWN & set(models)
    for row in rows:
        assert bool(row.reason) == (row.chains == 0), row
        assert row.reason or row.evaluations > 0 or row.solver == "draw", row


@pytest.mark.thorough
def test_what_is_empty_is_empty_for_a_reason():
    empty = {
        (model, cell.solver): cell.reason
        for model in ("digits-energy", "digits-flow", "digits-flow-classes", "ising")
        for cell in cells(stk.load(model), SMALL)
        if cell.reason
    }
    assert empty[("digits-flow", "mala")] == "no energy"
    assert ("digits-energy", "probability-flow") not in empty
    assert "discrete states" in empty[("ising", "probability-flow")]
    assert ("ising", "smc") not in empty
    assert ("digits-flow", "ula") not in empty
    assert empty[("digits-flow-classes", "ula")] == "no score"


def test_draws_that_are_shown_many_times_over_are_marked():
    """Resampled from a handful: in the table, on the page and over the picture."""
    handful = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))

    def drawn(copies):
        def run(seed):
            status = torch.zeros(90, dtype=torch.int64)
            x = (
                handful[torch.arange(90) % 3]
                if copies
                else torch.randn(90, 2, generator=torch.Generator().manual_seed(seed))
            )
            return stk.Draws(x=x[:, None], final=x, status=status, failed_at=status - 1)

        return Cell("ais", "resampled", run)

    rows = []
    for copies in (True, False):
        real = reference(stk.load("ring-mixture"), 90, digits=False)
        rows.append(_run(stk.describe("ring-mixture"), drawn(copies), lambda x: x, real, 1)[0])
    assert rows[0].shown == "resampled [3 different draws, shown as 90]"
    assert rows[1].shown == "resampled"
    assert "3 different draws" in str(tables(Demo(rows=rows))[1].lines)


@pytest.mark.thorough
def test_failed_chains_are_in_the_table(demo):
    rows = demo[1].rows
    row = next(r for r in rows if (r.model, r.solver) == ("semicircle", "ula"))
    assert row.failed > 0
    assert next(r for r in rows if (r.model, r.solver) == ("semicircle", "mala")).failed == 0


@pytest.mark.thorough
def test_files(demo, models):
    folder, found = demo
    table = json.loads((folder / "table.json").read_text())
    assert len(table["rows"]) == len(found.rows)
    assert len(table["likelihoods"]) == len(found.likelihoods)
    page = (folder / "index.html").read_text()
    assert {f"{model}.png" for model in models if model.startswith("digits")} | {
        "plane.png"
    } <= set(found.pictures)
    for name in found.pictures:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f'src="{name}"' in page
    for text in (
        {row.model for row in found.rows} | set(SOLVERS) | {v.method for v in found.likelihoods}
    ):
        assert text in page


@pytest.mark.thorough
def test_without_names_it_is_every_built_in_model():
    assert {spec.name for spec in _built_in()} == {
        e.name for e in stk.list_models() if e.distribution == "scoretk"
    }


@pytest.mark.thorough
def test_ways_to_one_likelihood_agree():
    field = stk.load("ring-mixture")
    found = {
        v.method: v
        for v in likelihoods("ring-mixture", field, field.draw(50, stk.Noise(5, 50)), digits=False)
    }
    exact, flow, sampled = (
        found[m] for m in ("exact", "probability flow", "annealed importance sampling")
    )
    assert exact.own_error == 0
    assert abs(flow.value - exact.value) < 0.01
    assert abs(sampled.value - exact.value) < 4 * sampled.own_error
    assert 0 < sampled.own_error < 0.1


def test_a_method_that_another_contradicts_is_marked():
    def at(method, value, own):
        return Likelihood("m", method, value, 0.5, own, "nats", "few weights" * (own == 0.2))

    one, none = at("exact", -2.0, 0.0), Likelihood("m", "none", None, None, None, "nats")
    off, near = at("annealed importance sampling", -1.0, 0.2), at("probability flow", -2.1, 0.05)
    few, trace = at("flow (4 rows)", -3.0, 0.01), at("flow, exact trace (4 rows)", -3.02, 0.0)
    found = compared([one, off, near, few, trace, none])
    assert [v.note for v in found] == ["", "5.0 errors off exact; few weights", "", "", "", ""]
    assert [replace(v, note="") for v in found] == [
        replace(v, note="") for v in (one, off, near, few, trace, none)
    ]
    assert compared([few, replace(trace, value=-3.05)])[0].note == (
        "5.0 errors off flow, exact trace (4 rows)"
    )


@pytest.mark.thorough
def test_the_map_has_a_cell_for_every_model_and_solver(demo, models):
    page = (demo[0] / "index.html").read_text()
    body = page[page.index('class="map"') : page.index("</table>")]
    solvers = list(dict.fromkeys(row.solver for row in demo[1].rows))
    assert body.count("<th><span>") == len(solvers)
    assert body.count("<tr") == len(models) + 1
    assert body.count("<td") == len(models) * (len(solvers) + 2)
    row = next(r for r in demo[1].rows if (r.model, r.solver) == ("semicircle", "ula"))
    assert f"{row.quality.distance:.1f}!</td>" in body  # chains failed there


@pytest.mark.thorough
def test_one_line_a_model(demo):
    rows = [r for r in demo[1].rows if r.model == "semicircle"]
    done = Done.of(rows)
    assert done.runs + done.empty == len(rows)
    assert done.failed > 0
    best = min(
        (r for r in rows if r.quality.distance is not None and r.solver != "draw"),
        key=lambda r: r.quality.distance,
    )
    assert f"nearest: {best.solver} {best.quality.distance:.2f}" in str(done)
    assert len(str(done)) < 100
    assert Done.of([r for r in rows if r.reason]).nearest is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ring-mixture",
        pytest.param("digits-vae-binary", marks=pytest.mark.slow),
        pytest.param("digits-rbm", marks=pytest.mark.slow),
        pytest.param("digits-vae", marks=pytest.mark.slow),
        pytest.param("digits-nice", marks=pytest.mark.slow),
        pytest.param("digits-edm", marks=pytest.mark.slow),
    ],
)
def test_likelihoods_are_stable_from_seed_to_seed(name):
    """Every way of every model, its numbers of two seeds within four of their own errors; what draws anything differs."""
    model, digits = stk.load(name), name.startswith("digits")
    rows = reference(model, 120, digits).rows[:20]
    one, two = (
        list(likelihoods(name, model, rows, digits, chains=60, seed=seed)) for seed in (1, 2)
    )
    assert [v.method for v in one] == [v.method for v in two]
    for a, b in zip(one, two, strict=True):
        error = math.hypot(a.own_error, b.own_error)
        assert abs(a.value - b.value) <= 4 * error + (0.0 if error else 1e-9), a.method
        assert (a.value != b.value) == (error > 0), a.method


@pytest.mark.slow
def test_workers_change_nothing_but_the_time(tmp_path):
    names = ["ising", "potts"]  # which few solvers take
    size = Size(chains=8, steps=4, trajectories=2, rounds=1, likelihood_rows=2, annealed=16)
    found = [run_demo(tmp_path / str(n), models=names, size=size, workers=n) for n in (1, 2)]
    one, two = ([dataclasses.replace(row, seconds=0) for row in f.rows] for f in found)
    assert repr(one) == repr(two)
    assert repr(found[0].likelihoods) == repr(found[1].likelihoods)


@pytest.mark.thorough
def test_judging_tells_good_from_bad():
    field = stk.load("ring-mixture")
    real = reference(field, 200, digits=False)
    good = judge(field.draw(200, stk.Noise(5, 200)), real)
    bad = judge(0.5 * field.draw(200, stk.Noise(5, 200)), real)
    assert good.distance < 2 < bad.distance
    assert good.mmd < 5 * real.mmd_floor < bad.mmd
    schools = stk.load("eight-schools")
    x = stk.sample(schools, stk.MALA(0.3), chains=400, steps=300, keep="last").final
    known = reference(schools, 200, digits=False)
    assert judge(x, known).z < 5 < judge(x + 0.5, known).z


def test_a_solver_that_the_demo_does_not_know_is_said(monkeypatch):
    monkeypatch.setitem(SOLVERS, "another", stk.ULA)
    found = [c for c in cells(stk.load("gaussian"), SMALL) if c.solver == "another"]
    assert [c.reason for c in found] == ["no settings for it in the demo"]


@pytest.mark.thorough
def test_command(capsys, tmp_path, monkeypatch, coarse_pictures):
    monkeypatch.setattr("scoretk.demo.main.Size", lambda: SMALL)
    alone = ("demo", "--workers", "1", "--models", "semicircle")
    code, out, err = run(capsys, *alone, "-o", tmp_path / "d")
    assert code == 0, err
    runs, empty = map(
        int, re.search(r"demo done: 1 models, (\d+) runs, (\d+) cells without one", out).groups()
    )
    assert runs > 10
    assert "failed" in out
    code, out, _ = run(capsys, *alone, "-o", tmp_path / "d", "--json")
    assert len(json.loads(out)["rows"]) == runs + empty
    assert run(capsys, "demo", "--models", "semicirkle", "-o", tmp_path / "d")[0] == 2
    (tmp_path / "file").touch()
    assert run(capsys, "demo", "--models", "semicircle", "-o", tmp_path / "file")[0] == 2


def test_a_row_without_density_is_left_out_and_said():
    class Part:
        event_shape, provides = (2,), frozenset({"log_prob"})

        def log_prob(self, x):
            return torch.where(x[:, 0] > 0, -x.square().sum(1), torch.nan)

    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    (found,) = likelihoods("part", Part(), x, digits=False)
    assert (found.value, found.note) == (-2.5, "1 of 3 rows failed")
    (none,) = likelihoods("part", Part(), x[1:2].expand(3, 2), digits=False)
    assert (none.value, none.note) == (None, "3 of 3 rows failed")


def test_what_is_not_finite_is_null_in_json():
    row = Row("m", "f", "s", "", quality=Quality(distance=math.inf, z=math.nan, mmd=0.5))
    found = json.loads(json.dumps(Demo(rows=[row]).plain(), allow_nan=False))["rows"][0]["quality"]
    assert (found["distance"], found["z"], found["mmd"]) == (None, None, 0.5)


def test_nothing_is_judged_where_every_chain_failed():
    schools = stk.load("eight-schools")
    assert judge(torch.empty(0, 10), reference(schools, 20, digits=False)) == Quality()


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where it is ignored
from scoretk.cli import main
sys.exit(main(["demo", "--workers", "2", "-o", sys.argv[1]]))
"""


def of_session(session):
    """The processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", ["interrupted", "killed"])
def test_no_process_outlives_the_demo(tmp_path, end):
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while (
            len(of_session(child.pid)) < 4 and time.monotonic() < deadline
        ):  # it, two workers, and their tracker
            time.sleep(0.2)
        time.sleep(10)
        assert len(of_session(child.pid)) >= 4
        child.send_signal(signal.SIGINT if end == "interrupted" else signal.SIGKILL)
        _, err = child.communicate(timeout=60)
        assert child.returncode == (130 if end == "interrupted" else -signal.SIGKILL), err
        deadline = time.monotonic() + 60
        while of_session(child.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert of_session(child.pid) == []
    finally:
        for process in of_session(child.pid):
            os.kill(process, signal.SIGKILL)
