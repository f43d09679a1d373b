"""The command line as a script meets it: what it prints, writes, and exits with."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import scoretk as stk
from scoretk._version import __version__
from scoretk.cli import main
from scoretk.cli.output import FitLine
from scoretk.learn.recipe import Progress
from scoretk.plugins import describe_solver
from scoretk.solvers import SOLVERS
from tests.lawful import broken_laws
from tests.marks import slow_but


def run(capsys, *arguments):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(("kind", "other"), [("models", "solvers"), ("solvers", "models")])
def test_a_list_of_one_kind(capsys, kind, other):
    code, out, _ = run(capsys, "list", f"--{kind}")
    assert code == 0
    assert out.startswith(f"{kind}\n")
    assert f"\n{other}\n" not in out
    assert [*json.loads(run(capsys, "list", f"--{kind}", "--json")[1])] == [kind]


def test_wrong_words_name_the_nearest_and_the_commands_own_usage(capsys):
    code, _, err = run(capsys, "sampl", "funnel")
    assert code == 2
    assert "did you mean 'sample'?" in err
    code, _, err = run(capsys, "list", "--bogus")
    assert code == 2
    assert err.startswith("usage: scoretk list ")
    assert "--bogus" in err
    assert "did you mean 'last'?" in run(capsys, "sample", "funnel", "--keep", "lst")[2]


@pytest.mark.thorough
def test_draws_go_to_a_store(capsys, tmp_path):
    pytest.importorskip("zarr")
    folder = tmp_path / "run.zarr"
    asked = ("sample", "funnel", "--solver", "mala", "--chains", 4, "--steps", 20, "--keep", folder)
    code, out, _ = run(capsys, *asked)
    assert code == 0
    assert f"written  {folder}" in out
    assert stk.Draws.load(folder).x.shape[:2] == (4, 20)
    code, _, err = run(capsys, *asked)
    assert code == 2
    assert "exists" in err


@pytest.mark.thorough
def test_list_and_describe(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert re.search(r"^  ring-mixture +analytic +equal Gaussians on a circle", out, re.MULTILINE)
    assert re.search(r"^  mala +Metropolis-adjusted Langevin", out, re.MULTILINE)
    code, out, _ = run(capsys, "list", "--json")
    assert {"scoretk/funnel", "scoretk/eight-schools"} <= {
        m["id"] for m in json.loads(out)["models"]
    }
    code, out, _ = run(capsys, "describe", "funnel", "--json")
    assert json.loads(out)["parameters"] == {"dim": 10, "scale": 3.0}
    code, _, _ = run(capsys, "list", "--verify")
    assert code == 0


@pytest.mark.thorough
def test_what_is_said_of_solvers_without_their_import_is_what_they_say(capsys):
    _, out, _ = run(capsys, "list")
    said = dict(line.split(None, 1) for line in out.partition("\nsolvers\n")[2].splitlines())
    assert {name: said[name] for name in SOLVERS} == {
        name: describe_solver(name).summary for name in SOLVERS
    }


@pytest.mark.thorough
def test_list_by_family(capsys):
    code, out, _ = run(capsys, "list", "--family", "score")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["digits-ncsn", "digits-ncsnv2"]
    code, _, err = run(capsys, "list", "--family", "scores")
    assert code == 2
    assert "did you mean 'score'" in err
    for given in (
        ["--model", "ising"],
        ["--solver", "mala"],
        ["--model", "ising", "--solver", "mala"],
    ):
        code, _, err = run(capsys, "list", *given)  # it is for the matrix
        assert code == 2
        assert f"{' and '.join(given[::2])}: expected --matrix" in err
        assert f"scoretk list --matrix {' '.join(given)}" in err
    code, _, err = run(capsys, "list", "--matrix", "--family", "scores")
    assert code == 2
    assert "did you mean 'score'" in err
    code, out, _ = run(capsys, "list", "--matrix", "--family", "score", "--json")
    assert set(json.loads(out)["mala"]) == {"digits-ncsn", "digits-ncsnv2"}


@pytest.mark.thorough
def test_the_matrix_is_of_a_width_and_says_in_words_what_one_model_has(capsys):
    code, out, _ = run(capsys, "list", "--matrix")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    code, out, _ = run(capsys, "list", "--matrix", "--model", "ising")
    said = dict(line.split(None, 1) for line in out.splitlines())
    assert set(said) >= set(SOLVERS)
    assert said["gibbs-with-gradients"] == "+  as it is"
    assert said["mala"] == "-  not: discrete states, which it would leave"
    code, out, _ = run(capsys, "list", "--matrix", "--solver", "mala,ais", "--model", "rbm,funnel")
    assert re.search(r"^funnel +\+ \+ ", out, re.MULTILINE)
    code, out, _ = run(capsys, "list", "--matrix", "--solver", "mala", "--json")
    assert list(json.loads(out)) == ["mala"]
    for option, word in (("--model", "funel"), ("--solver", "mala,maala")):
        assert "did you mean" in run(capsys, "list", "--matrix", option, word)[2]


@pytest.fixture
def third(tmp_path, monkeypatch):
    """A package of a model and a solver, as an installation leaves it on the path."""
    info = tmp_path / "third_party-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Third.Party\nVersion: 2.0\n")
    points = "[scoretk.models]\nhump = third_party_code:spec\n\n[scoretk.solvers]\nhop = third_party_code:Hop\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "third_party_code.py").write_text(
        "import scoretk as stk\n"
        "spec = stk.ModelSpec(name='hump', family='analytic', factory='third_party_code:build', provides={'energy'},\n"
        "                     event_shape=(3,), summary='a hump', parameters={'width': 1.0})\n"
        "def build(width):\n"
        "    return stk.Energy(lambda x: ((x / width) ** 4).sum(1), (3,))\n"
        "class Hop(stk.ULA):\n"
        "    'Langevin steps.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("third_party_code", None)


NAMED = (("funnel", "scoretk/funnel"), ("hump", "third-party/hump", "Third.Party/hump"))


@pytest.mark.parametrize("names", NAMED, ids=str)
def test_a_short_name_and_the_full_id_are_one_name_to_every_command(third, capsys, names):
    for words in (
        ("describe", "NAME"),
        ("list", "--matrix", "--model", "NAME"),
        ("list", "--matrix", "--model", "NAME", "--family", "analytic", "--json"),
        ("sample", "NAME", "--solver", "ula", "--set", "step_size=0.1", "--steps", 2, "--json"),
    ):
        told = [run(capsys, *(name if w == "NAME" else w for w in words)) for name in names]
        assert [code for code, *_ in told] == [0] * len(names), told
        assert len({out for _, out, _ in told}) == 1, told


def test_draws_say_the_versions_of_the_packages_whose_plugins_made_them(third, tmp_path):
    fewest = {"chains": 2, "steps": 1}
    hop = stk.load_solver("hop", step_size=0.1)
    for field, solver in (("hump", "mala"), ("funnel", hop), ("hump", hop)):
        draws = stk.sample(field, solver, warmup=1 if solver == "mala" else 0, **fewest)
        draws.save(tmp_path / "draws.safetensors", force=True)
        for told in (draws, stk.Draws.load(tmp_path / "draws.safetensors")):
            named = {"third-party": "2.0"} if field == "hump" else None
            assert told.provenance.get("packages") == named
    for options in ((), ("--param", "width=2.0")):
        words = ["sample", "hump", "--solver", "hop", "--set", "step_size=0.1", *options]
        output = ("-o", str(tmp_path / "told.safetensors"), "--force")
        assert main([*words, "--chains", "2", "--steps", "1", *output]) == 0
        told = stk.Draws.load(tmp_path / "told.safetensors").provenance
        assert told["packages"] == {"third-party": "2.0"}


def test_the_matrix_knows_solvers_by_both_names_and_says_which_it_has_not(third, capsys):
    told = [
        run(capsys, "list", "--matrix", "--solver", name)[:2] for name in ("mala", "scoretk/mala")
    ]
    assert told[0] == told[1]
    for name in ("hop", "third-party/hop"):
        code, _, err = run(capsys, "list", "--matrix", "--solver", name)
        assert code == 2
        assert "third-party/hop" in err
        assert "scoretk describe third-party/hop" in err


def test_what_people_type_first(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert "usage: scoretk" in out
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, f"scoretk {__version__}\n")
    asked = subprocess.run(
        [sys.executable, "-m", "scoretk", "--version"], capture_output=True, text=True, check=True
    )
    assert asked.stdout == out


def test_names_that_are_many_are_not_all_listed(capsys):
    _, _, err = run(capsys, "describe", "digits-nope")
    assert "did you mean 'digits-nice'" in err
    assert re.search(r"and \d+ more$", err)
    assert len(err) < 300


@pytest.mark.thorough
@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=repr)
def test_a_reader_that_leaves_is_no_error(unbuffered):
    """`scoretk list | head -1`."""
    command, pipe = [sys.executable, "-c", UNREAD], subprocess.PIPE
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | unbuffered
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=buffered) as child:
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 141


UNREAD = """
import signal, sys
from scoretk.cli import main
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
sys.exit(main(["list"]))
"""


@pytest.mark.thorough
def test_a_shell_is_told_how_a_line_goes_on(tmp_path):
    pytest.importorskip("argcomplete")
    for line, words in (
        ("scoretk ", {"list", "sample", "fit"}),
        ("scoretk sample digits-v", {"digits-v", "digits-vae", "digits-ve"}),
        ("scoretk sample rbm --solver chee", {"chees"}),
    ):
        told = tmp_path / "told"
        asked = {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(told),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        }
        command = [sys.executable, "-c", "import scoretk.cli as c; c.main()"]
        subprocess.run(command, env=os.environ | asked, check=True, timeout=60)
        assert words <= {w.strip() for w in re.split(r"[\x0b\n]", told.read_text())}


def test_the_progress_of_a_fit_is_one_line_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr("time.monotonic", iter([0.0, 10.0, 20.0] * 2).__next__)
    steps = [Progress(k, 1 / k, None, of=400) for k in (100, 200, 300)]
    line = FitLine()
    for step in steps:
        line(step)
    line.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 100 of 400  loss 0.01"
    assert lines[2] == "step 300 of 400  loss 0.0033333  10 steps/s  10 s left"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = FitLine()
    for step in steps:
        line(step)
    line.close()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_models_name_is_kept_with_its_parameters(capsys):
    _, out, _ = run(
        capsys,
        "sample",
        "gaussian",
        "--param",
        "dim=3",
        "--solver",
        "ula",
        "--set",
        "step_size=0.1",
        "--steps",
        5,
        "--chains",
        2,
        "--json",
    )
    assert json.loads(out)["provenance"]["model"] == "scoretk/gaussian(dim=3)"


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
    code, out, _ = run(capsys, "check", "gaussian", "--param", "dim=3")
    assert code == 0, out
    assert re.search(r"^gaussian: \d+ passed, 0 failed, \d+ skipped", out, re.MULTILINE)
    assert re.search(r"^passed +alone +Row i of a batch equals", out, re.MULTILINE)
    assert run(capsys, "check", "mala", "--param", "dim=3")[0] == 2


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


def test_what_no_chain_tells_is_null(capsys):
    """JSON has no NaN: the statistics of a run in which every chain has failed."""
    run_of = (
        "sample",
        "funnel",
        "--solver",
        "underdamped",
        "--set",
        "step_size=50",
        "--chains",
        8,
        "--steps",
        30,
    )
    code, out, _ = run(capsys, *run_of, "--json")
    assert code == 1
    told = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["failed"]


def test_messages_name_options_of_the_line(capsys, tmp_path):
    """Not the arguments of Python that they stand for."""
    words = ["sample", "eight-schools", "--solver", "mala", "--set", "step_size=0.1", "--chains", 4]
    saved = ["--checkpoint", tmp_path / "steps=3.ckpt"]
    assert run(capsys, *words, *saved, "--steps", 20)[0] == 0
    code, _, err = run(capsys, *words, *saved, "--steps", 10)
    assert code == 1
    assert "and --steps 10 asks for fewer" in err
    assert "steps=3.ckpt" in err, "a path stays as it is"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "the same call, with its checkpoint=, goes on",
            "the same call, with its --checkpoint, goes on",
        ),
        (
            "keep='moments' keeps a mean, thin=k every k-th",
            "--keep moments keeps a mean, --thin k every k-th",
        ),
        ("keep=scoretk.Zarr(path) streams", "--keep NAME.zarr streams"),
        ("Give batch= and Warmup(pilot=)", "Give --batch and Warmup(pilot=)"),
        (
            "sample(chains=range(0, 8)) and step_size=0.1",
            "sample(chains=range(0, 8)) and step_size=0.1",
        ),
    ],
)
def test_arguments_in_messages(capsys, monkeypatch, text, said):
    def fails(*_, **__):
        raise stk.StoreError(text)

    monkeypatch.setattr("scoretk.cli.commands.describe", fails)
    code, _, err = run(capsys, "sample", "funnel")
    assert (code, err) == (1, f"scoretk: {said}\n")


HEEDED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in a shell's background, which ignores it
from scoretk.run.checkpoint import Checkpoint
from scoretk.cli import main
begin = Checkpoint.begin
Checkpoint.begin = lambda self: (begin(self), print("begun", flush=True))  # so that the test need not guess when
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.thorough
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
