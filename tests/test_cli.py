"""The command line as a script meets it: what it prints, writes, and exits with."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from scoretk.cli import main
from tests.lawful import broken_laws
from tests.marks import slow_but


def run(capsys, *arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_list_and_describe(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "scoretk/ring-mixture" in out
    code, out, _ = run(capsys, "list", "--json")
    assert {"scoretk/funnel", "scoretk/eight-schools"} <= {
        m["id"] for m in json.loads(out)["models"]
    }
    code, out, _ = run(capsys, "describe", "funnel", "--json")
    assert json.loads(out)["parameters"] == {"dim": 10, "scale": 3.0}
    code, _, _ = run(capsys, "list", "--verify")
    assert code == 0


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["gaussian", "ring-mixture", "funnel", "semicircle", "eight-schools"],
        "ring-mixture",
        "semicircle",
        "eight-schools",
    ),
)
def test_the_built_in_models_obey_the_laws(name):
    assert broken_laws(name) == {}


@pytest.mark.usefixtures("fewer_cases")
def test_check_says_that_laws_hold(capsys):
    code, out, _ = run(capsys, "check", "gaussian")
    assert code == 0, out
    assert "laws hold" in out


@pytest.mark.parametrize("ending", ["safetensors", "npy"])
def test_sample_writes_what_it_says(capsys, tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    arguments = (
        "sample",
        "ring-mixture",
        "--solver",
        "mala",
        "--set",
        "step_size=0.05",
        "--chains",
        8,
        "--steps",
        20,
    )
    code, out, _ = run(capsys, *arguments, "-o", path, "--json")
    summary = json.loads(out)
    assert code == 0
    assert summary["shape"] == [8, 20, 2]
    assert 0 < summary["stats"]["accept"] <= 1
    if ending == "npy":
        assert np.load(path).shape == (8, 20, 2)
    before = path.read_bytes()
    code, _, err = run(capsys, *arguments, "-o", path)
    assert code == 2
    assert "--force" in err
    assert path.read_bytes() == before
    assert run(capsys, *arguments, "-o", path, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sample", "ring-mixture", "--solver", "mal"], "did you mean 'mala'"),
        (["sample", "ring-mixtur", "--solver", "mala", "--set", "step_size=1"], "ring-mixture"),
        (["sample", "ring-mixture", "--solver", "ula"], "--set step_size=VALUE"),
        (
            ["sample", "ring-mixture", "--solver", "mala", "--set", "step=1"],
            "did you mean 'step_size'",
        ),
        (["sample", "ring-mixture", "--solver", "mala", "--set", "step_size"], "NAME=VALUE"),
        (["sample", "ring-mixture", "--solver", "mala", "--set", "step_size=x"], "step_size"),
        (["sample", "ring-mixture", "--solver", "probability-flow"], "static field"),
        (
            ["sample", "gaussian", "--solver", "ula", "--set", "step_size=.1", "--param", "dims=3"],
            "dim",
        ),
        (
            ["sample", "gaussian", "--solver", "ula", "--set", "step_size=.1", "-o", "x.pt"],
            "ends in",
        ),
        (
            ["sample", "gaussian", "--solver", "ula", "--set", "step_size=.1", "--chains", "-3"],
            "chains",
        ),
        (["nonsense"], "invalid choice"),
    ],
)
def test_wrong_use_is_2_and_says_what(capsys, arguments, named):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert named in err


def test_a_run_that_fails_is_1(capsys):
    code, _, err = run(
        capsys,
        "sample",
        "funnel",
        "--solver",
        "ula",
        "--set",
        "step_size=50",
        "--chains",
        20,
        "--steps",
        50,
        "--on-failure",
        "raise",
    )
    assert code == 1
    assert "failed" in err


HEEDED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in a shell's background, which ignores it
from scoretk.run.checkpoint import Checkpoint
from scoretk.cli import main
begin = Checkpoint.begin
Checkpoint.begin = lambda self: (begin(self), print("begun", flush=True))  # so that the test need not guess when
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_saves_and_exits_130(tmp_path):
    saved = tmp_path / "run.ckpt"
    command = [
        sys.executable,
        "-c",
        HEEDED,
        "sample",
        "eight-schools",
        "--solver",
        "mala",
        "--set",
        "step_size=0.1",
        "--chains",
        "16",
        "--steps",
        "100000000",
        "--keep",
        "moments",
        "--checkpoint",
        str(saved),
    ]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "begun\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert saved.exists()
    assert "goes on from there" in err
