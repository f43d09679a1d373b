"""The demo on a small scale: every model meets every solver, what is empty says why, and the pictures are there."""

import json
import re

import pytest

import scoretk as stk
from scoretk.demo.cells import Size, cells
from scoretk.demo.main import run_demo
from scoretk.demo.quality import judge, reference
from scoretk.solvers import SOLVERS
from tests.test_cli import run

SMALL = Size(chains=24, steps=20, likelihood_rows=3)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made" / "here"
    return folder, run_demo(folder, size=SMALL)


def test_every_model_meets_every_solver(demo):
    _, rows = demo
    models = {e.name for e in stk.list_models() if e.distribution == "scoretk"}
    assert {(r.model, r.solver) for r in rows} == {(m, s) for m in models for s in SOLVERS}
    for row in rows:
        assert bool(row.reason) == (row.chains == 0), row
        assert row.reason or row.evaluations > 0, row


def test_what_is_empty_is_empty_for_a_reason(demo):
    _, rows = demo
    empty = {(r.model, r.solver): r.reason for r in rows if r.reason}
    assert empty[("digits-flow", "mala")] == "field without energy"
    assert "static" in empty[("digits-energy", "probability-flow")]
    assert ("ring-mixture", "probability-flow") not in empty
    assert ("digits-diffusion", "ula") not in empty


def test_failed_chains_are_in_the_table(demo):
    _, rows = demo
    row = next(r for r in rows if (r.model, r.solver) == ("semicircle", "ula"))
    assert row.failed > 0
    assert next(r for r in rows if (r.model, r.solver) == ("semicircle", "mala")).failed == 0


def test_files(demo):
    folder, rows = demo
    table = json.loads((folder / "table.json").read_text())
    assert len(table["rows"]) == len(rows)
    for name in ("digits-energy", "digits-flow", "digits-diffusion", "plane"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_judging_tells_good_from_bad():
    field = stk.load("ring-mixture")
    real = reference(field, 10, 200)
    good = judge(field.draw(200, stk.Noise(5, 200)), real)
    bad = judge(0.5 * field.draw(200, stk.Noise(5, 200)), real)
    assert good.distance < 2 < bad.distance
    assert good.mmd < 5 * real.mmd_floor < bad.mmd
    schools = stk.load("eight-schools")
    x = stk.sample(schools, stk.MALA(0.3), chains=400, steps=300, keep="last").final
    known = reference(schools, 10, 200)
    assert judge(x, known).z < 5 < judge(x + 0.5, known).z


def test_a_solver_that_the_demo_does_not_know_is_said(monkeypatch):
    monkeypatch.setitem(SOLVERS, "another", stk.ULA)
    found = [c for c in cells(stk.load("gaussian"), SMALL) if c.solver == "another"]
    assert [c.reason for c in found] == ["no settings for it in the demo"]


def test_command(capsys, tmp_path):
    code, out, err = run(capsys, "demo", "--models", "semicircle", "-o", tmp_path / "d")
    assert code == 0, err
    runs, empty = map(int, re.search(r"demo done: 1 models, (\d+) runs, (\d+) cells without one", out).groups())
    assert runs > 10
    assert "failed" in out
    code, out, _ = run(capsys, "demo", "--models", "semicircle", "-o", tmp_path / "d", "--json")
    assert len(json.loads(out)) == runs + empty
    assert run(capsys, "demo", "--models", "semicirkle", "-o", tmp_path / "d")[0] == 2
    (tmp_path / "file").touch()
    assert run(capsys, "demo", "--models", "semicircle", "-o", tmp_path / "file")[0] == 2
