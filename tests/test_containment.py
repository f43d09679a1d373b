"""Whatever a plugin does as it is imported or built, the caller's process and its output are as they were."""

import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk import cli
from scoretk.errors import printable
from scoretk.plugins import Broken, containment, list_models, verify
from scoretk.plugins.catalog import Catalog
from scoretk.plugins.containment import contained, outside
from tests.processes import environment

MODULE = """
{before}
from scoretk.plugins import ModelSpec

class Field:
    event_shape = (2,)
    def energy(self, x):
        return x.square().sum(1) / 2

def build():
    {inside}
    return Field()

spec = ModelSpec(name="m", family="test", factory="{module}:build", provides={{"energy"}}, event_shape=(2,), summary="s")
"""

MISCHIEF = {
    "seeds torch": "import torch; torch.manual_seed(3); torch.rand(5)",
    "seeds the rest": "import random, numpy; random.seed(3); numpy.random.seed(3)",
    "default dtype": "import torch; torch.set_default_dtype(torch.float64)",
    "default device": "import torch; torch.set_default_device('meta')",
    "gradients": "import torch; torch.set_grad_enabled(False)",
    "threads": "import torch; torch.set_num_threads(3)",
    "determinism": "import torch; torch.use_deterministic_algorithms(True, warn_only=True); torch.set_flush_denormal(True)",
    "backends": "import torch; torch.backends.cudnn.benchmark = True; torch.set_float32_matmul_precision('medium')",
    "anomalies": "import torch; torch.autograd.set_detect_anomaly(True); torch.set_printoptions(precision=2)",
    "numpy's errors": "import numpy; numpy.seterr(all='raise'); numpy.set_printoptions(precision=2)",
    "warnings": "import warnings; warnings.simplefilter('ignore'); warnings.showwarning = print",
    "logging": "import logging; logging.basicConfig(level=10); logging.disable(50)",
    "signals": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "environment": "import os; os.environ['SCORETK_X'] = '1'; os.environ['HOME'] = '/'",
    "folder": "import os; os.chdir('/')",
    "system": "import sys; sys.path.insert(0, '/nowhere'); sys.argv[:] = ['x']; sys.excepthook = print",
    "streams": "import sys, io; sys.stdout = sys.stderr = io.StringIO()",
    "prints": "import os; print('noise'); os.write(1, b'noise'); import ctypes; ctypes.CDLL(None).puts(b'noise')",
}


def state():
    """All of this process that a plugin must leave alone."""
    return {
        "random": hash(random.getstate()),
        "numpy": (
            np.random.get_state()[1].tobytes(),
            np.random.get_state()[2],
            np.geterr(),
            str(np.get_printoptions()),
        ),
        "torch": (
            torch.get_rng_state().numpy().tobytes(),
            torch.get_default_dtype(),
            str(torch.get_default_device()),
        ),
        "modes": (torch.is_grad_enabled(), torch.get_num_threads(), torch.is_anomaly_enabled()),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            float(torch.tensor(1e-40, device="cpu", dtype=torch.float32) * 1),
        ),
        "backends": (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()),
        "printing": (str(vars(torch._tensor_str.PRINT_OPTS))),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": (
            logging_root().handlers[:],
            logging_root().level,
            logging_root().manager.disable,
        ),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "system": (
            sys.path[0],
            sys.argv[:],
            sys.excepthook,
            sys.getrecursionlimit(),
            sys.stdout,
            sys.stderr,
        ),
    }


def logging_root():
    return logging.getLogger()


def plugin(site, name, before="", inside="pass", about=None, key="m"):
    """A distribution of metadata and one module, with code that runs at import or when it is built."""
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(MODULE.format(before=before, inside=inside, module=module))
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" if about is None else about
    (info / "METADATA").write_bytes(about.encode() if isinstance(about, str) else about)
    (info / "entry_points.txt").write_text(f"[scoretk.models]\n{key} = {module}:spec\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


THEIRS = """
import sys
from scoretk import cli
from scoretk.plugins import models
every = models.list_models
models.list_models = cli.list_models = lambda: [e for e in every() if e.distribution != "scoretk"]
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command line over the plugins of others: to build all built-in models takes long."""


def command(site, *arguments, code=THEIRS, **options):
    run = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        run,
        check=False,
        capture_output=True,
        text=True,
        env=environment(site),
        timeout=120,
        **options,
    )


@pytest.mark.parametrize("at", ["import", "build"])
@pytest.mark.parametrize("what", MISCHIEF)
def test_the_process_is_as_it_was(site, capfd, what, at):
    name = f"mischief-{at}-{sorted(MISCHIEF).index(what)}"
    plugin(site, name, **{"before" if at == "import" else "inside": MISCHIEF[what]})
    before = state()
    stk.load(f"{name}/m")
    assert state() == before
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("noise") == (3 if what == "prints" else 0)


def test_without_containment_each_would_be_seen(site, monkeypatch, capfd):
    """The mutant: plugin code in the open. The state differs, so that the test above can fail."""
    for what, code in MISCHIEF.items():
        if what == "prints":
            continue
        with contained():  # which here only tidies up after the mutant
            before = state()
            exec(code, {})
            after = state()
        assert after != before, what


def _of(owner, name, *others):
    """How an attribute is read, how it is set, and other values of it."""
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value), others


def _in_place(held, *others):
    """As `_of`, for the entries of a list."""
    return lambda: list(held), lambda value: held.__setitem__(slice(None), value), others


def _entry(name, *others):
    """As `_of`, for an entry of the environment, None where it is not there."""

    def put(value):
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})

    return lambda: os.environ.get(name), put, others


def _handler(number):
    return lambda: signal.getsignal(number), lambda f: signal.signal(number, f), (signal.SIG_IGN,)


def _noise_of(seed, state, put):
    """As `_of`, for a generator's state, after another seed and one number on."""

    def other(how):
        before = state()
        how()
        made, _ = state(), put(before)
        return made

    return state, put, [other(how) for how in seed]


def _numpys():
    name, key, *rest = np.random.get_state()
    return name, tuple(key.tolist()), *rest


def _torchs():
    return tuple(torch.get_rng_state().tolist())


def _with_warnings(value):
    warnings.filters[:] = value


def _default_device(value):
    torch.set_default_device(None if value == torch.device("cpu") else value)


def _deterministic(value):
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _each_alone():
    """By name, of each piece of this process that a plugin must leave alone: how it is read and put, and others of it."""
    root, backends, printing = logging_root(), torch.backends, torch._tensor_str.PRINT_OPTS
    yield (
        "random",
        _noise_of((lambda: random.seed(3), random.random), random.getstate, random.setstate),
    )
    yield (
        "numpy.random",
        _noise_of((lambda: np.random.seed(3), np.random.rand), _numpys, np.random.set_state),
    )
    yield (
        "torch's generator",
        _noise_of(
            (lambda: torch.manual_seed(3), lambda: torch.rand(1)),
            _torchs,
            lambda s: torch.set_rng_state(torch.tensor(s, dtype=torch.uint8)),
        ),
    )
    yield (
        "warnings.filters",
        (lambda: list(warnings.filters), _with_warnings, ([], [warnings.filters[0]])),
    )
    yield "warnings.showwarning", _of(warnings, "showwarning", print)
    yield "the root logger's handlers", _in_place(root.handlers, [logging.NullHandler()])
    yield "the root logger's level", (lambda: root.level, root.setLevel, (10, 40))
    yield "logging.disable", (lambda: root.manager.disable, logging.disable, (50,))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        yield number.name, _handler(number)
    yield "an entry of the environment", _entry("HOME", "/", None)
    yield "a new entry of the environment", _entry("SCORETK_X", "1", "")
    yield "the folder", (os.getcwd, os.chdir, ("/",))
    for name, other in {
        "stdin": None,
        "stderr": io.StringIO(),
        "excepthook": print,
        "displayhook": print,
        "dont_write_bytecode": not sys.dont_write_bytecode,
    }.items():
        yield f"sys.{name}", _of(sys, name, other)
    yield "sys.argv", _in_place(sys.argv, ["x"], [])
    yield "sys.path", _in_place(sys.path, sys.path[1:], sys.path[::-1])
    yield "the recursion limit", (sys.getrecursionlimit, sys.setrecursionlimit, (5000,))
    yield (
        "numpy's errors",
        (np.geterr, lambda e: np.seterr(**e), (dict.fromkeys(np.geterr(), "raise"),)),
    )
    yield (
        "numpy's printing",
        (
            np.get_printoptions,
            lambda o: np.set_printoptions(**o),
            (np.get_printoptions() | {"precision": 2},),
        ),
    )
    yield "gradients", (torch.is_grad_enabled, torch.set_grad_enabled, (False,))
    yield "the default dtype", (torch.get_default_dtype, torch.set_default_dtype, (torch.float64,))
    yield "the default device", (torch.get_default_device, _default_device, (torch.device("meta"),))
    yield "threads", (torch.get_num_threads, torch.set_num_threads, (3,))
    yield (
        "determinism",
        (
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            _deterministic,
            ((True, True), (True, False)),
        ),
    )
    yield (
        "products of matrices",
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, ("medium",)),
    )
    yield (
        "numbers that are flushed",
        (lambda: float(torch.tensor(1e-40) * 1) == 0, torch.set_flush_denormal, (True,)),
    )
    yield "anomalies", (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, (True,))
    yield "repeated warnings", (torch.is_warn_always_enabled, torch.set_warn_always, (True,))
    for part, name in (
        (backends.cudnn, "benchmark"),
        (backends.cudnn, "deterministic"),
        (backends.cudnn, "enabled"),
        (backends.mkldnn, "enabled"),
    ):
        yield f"{part.__name__}.{name}", _of(part, name, not getattr(part, name))
    for name in ("precision", "threshold", "edgeitems", "linewidth"):
        yield f"torch's printing, {name}", _of(printing, name, getattr(printing, name) + 1)


ALONE = dict(_each_alone())


@pytest.mark.parametrize("what", ALONE)
def test_each_piece_of_the_process_is_put_back_alone(what):
    """From what it is to others, and from others, where a user has set them, to what it was."""
    read, put, others = ALONE[what]
    usual = read()
    try:
        for before, after in [p for other in others for p in ((usual, other), (other, usual))]:
            put(before)
            with contained():
                put(after)
                assert read() == after
            assert [what, read()] == [what, before]
    finally:
        put(usual)


class Finder:
    """A finder of modules that finds none."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None


@pytest.mark.parametrize("place", [0, 1, -1])
def test_finders_of_modules_are_those_that_were_there_and_the_plugins(place):
    before = list(sys.meta_path)
    own = Finder()
    try:
        with contained():
            sys.meta_path.insert(place if place >= 0 else len(sys.meta_path), own)
            there = [f for f in sys.meta_path if f in before or f is own]
        assert sys.meta_path == there
        with contained():
            sys.meta_path[:] = [f for f in sys.meta_path if f in before]
        assert sys.meta_path == before
    finally:
        sys.meta_path[:] = before


def test_a_plugin_that_fails_or_loads_another_leaves_it_as_it_was_too(site):
    plugin(site, "fails-badly", before="import torch; torch.manual_seed(5); raise SystemExit(3)")
    plugin(site, "inner-one", inside="import torch; torch.set_default_dtype(torch.float64)")
    plugin(
        site,
        "outer-one",
        inside="import scoretk, torch; scoretk.load('inner-one/m'); assert torch.rand(1).dtype == torch.float32",
    )
    before = state()
    with pytest.raises(stk.BrokenPlugin, match="SystemExit: 3"):
        stk.load("fails-badly/m")
    stk.load("outer-one/m")
    assert state() == before


@pytest.mark.thorough
def test_torch_is_guarded_where_the_plugin_is_the_first_to_import_it(site):
    plugin(
        site,
        "first-one",
        before="import torch, numpy; torch.manual_seed(5); torch.set_default_dtype(torch.float64); numpy.random.seed(1)",
    )
    code = (
        "import sys, json, scoretk; assert 'torch' not in sys.modules; "
        "{}; import torch, numpy; "
        "print(json.dumps([str(torch.get_default_dtype()), torch.initial_seed() == 5, str(torch.zeros(1).dtype), "
        "type(torch.__loader__).__name__, torch.__spec__.loader is torch.__loader__]))"
    )
    found = command(site, code=code.format("scoretk.describe('first-one/m')"))
    assert found.returncode == 0, found.stderr
    loader = torch.__spec__.loader
    assert loader is torch.__loader__
    assert json.loads(found.stdout) == [
        str(torch.float32),
        False,
        str(torch.float32),
        type(loader).__name__,
        True,
    ]


def test_what_a_plugin_puts_on_the_path_stays_behind(site):
    plugin(site, "adds-path", before="import sys; sys.path.insert(0, '/nowhere/at/all')")
    first = sys.path[0]
    try:
        stk.describe("adds-path/m")
        assert sys.path[0] == first
        assert sys.path[-1] == "/nowhere/at/all"
    finally:
        sys.path.remove("/nowhere/at/all")


class TestCommandLine:
    @pytest.mark.thorough
    def test_json_holds_nothing_else_and_every_plugin_is_gone_through(self, site):
        plugin(site, "prints", before=MISCHIEF["prints"], inside="print('more')")
        plugin(site, "gives-up", before="raise KeyboardInterrupt")
        plugin(site, "leaves", before="raise SystemExit")
        plugin(site, "gives-up-late", inside="raise KeyboardInterrupt('late')")
        plugin(site, "versionless", about="Metadata-Version: 2.1\nName: versionless\n")
        plugin(
            site,
            "not-utf",
            about=b"Metadata-Version: 2.1\nName: not-utf\nVersion: 1\nAuthor: \xff\xfe\n",
        )
        plugin(site, "colours", before="raise ValueError('\\x1b[2J\\x07\\u202e owned')")
        plugin(
            site, "versioned", about="Metadata-Version: 2.1\nName: versioned\nVersion: 1\x1b[31m\n"
        )
        plugin(site, "named", key="n\x1b[2Jm")
        plugin(site, "zz-last")
        run = command(site, "list", "--verify", "--json")
        rows = {row["id"]: row for row in json.loads(run.stdout)["models"]}
        assert run.returncode == 1
        assert rows["zz-last/m"]["broken"] is False
        assert rows["prints/m"]["broken"] is False
        assert rows["versionless/m"] == rows["versionless/m"] | {
            "broken": False,
            "version": "unknown",
        }
        for name in ("gives-up", "leaves", "gives-up-late"):
            assert rows[f"{name}/m"]["broken"], name
        assert "KeyboardInterrupt" in rows["gives-up/m"]["error"]
        assert any("not_utf" in row.get("error", "") for row in rows.values())
        assert not any(c in json.dumps(rows, ensure_ascii=False) for c in "\x1b\x07\u202e")
        shown = command(site, "list")
        assert shown.returncode == 0
        assert not any(c in shown.stdout + shown.stderr for c in "\x1b\x07\u202e")
        assert all(name in shown.stdout for name in ("versionless/m", "zz-last/m", r"\x1b[31m"))

    def test_a_terminal_that_knows_ascii_only_is_served(self, site):
        plugin(site, "accents", before="raise ValueError('d\\u00e9j\\u00e0')")
        run = subprocess.run(
            [sys.executable, "-m", "scoretk.cli", "describe", "accents/m"],
            check=False,
            capture_output=True,
            timeout=60,
            env=environment(site, PYTHONIOENCODING="ascii"),
        )
        assert run.returncode == 1
        assert rb"d\xe9j\xe0" in run.stderr
        assert b"Traceback" not in run.stderr

    def test_a_missing_extra_is_no_broken_plugin(self, site, monkeypatch, capsys):
        plugin(
            site,
            "wants-more",
            inside="from scoretk.errors import MissingDependency; raise MissingDependency('zuko', 'flows', 'this')",
        )
        with pytest.raises(stk.MissingDependency, match="zuko"):
            stk.load("wants-more/m")
        assert not any(
            isinstance(e, Broken) for e in list_models() if e.distribution == "wants-more"
        )
        own = Catalog.listing
        monkeypatch.setattr(
            Catalog, "listing", lambda all: [e for e in own(all) if e.distribution == "wants-more"]
        )
        (found,) = verify()
        assert not isinstance(found, Broken)
        assert "pip install 'scoretk[flows]'" in found.needs


class TestInterrupts:
    def test_a_signal_is_told_from_an_exception(self):
        with contained() as interrupts, pytest.raises(KeyboardInterrupt):
            raise KeyboardInterrupt
        assert not interrupts.pressed
        before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with contained() as interrupts, pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert interrupts.pressed
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            signal.signal(signal.SIGINT, before)


class TestStreams:
    def test_a_callers_function_writes_where_it_did(self, capfd):
        tell = outside(lambda: print("told"))
        with contained():
            print("inside")
            tell()
            print("inside again")
        tell()
        out, err = capfd.readouterr()
        assert out == "told\ntold\n"
        assert err == "inside\ninside again\n"

    def test_rooms_nest(self, capfd):
        with contained():
            with contained():
                print("a")
            print("b")
        print("c")
        assert capfd.readouterr() == ("c\n", "a\nb\n")
        assert containment._STREAMS.inside == 0


def test_printable():
    assert printable("a\x1b[0m\n\u202e\udcff\u00e9") == r"a\x1b[0m\n\u202e\udcffé"
    assert printable("a\nb", keep="\n") == "a\nb"


def test_the_moments_of_a_run_go_into_a_format_that_holds_them(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long path is abridged
    for name in ("a.nc", "a.npy"):
        assert cli.main(["sample", "gaussian", "--keep", "moments", "-o", name]) == 2
    assert "a.npy" in capsys.readouterr().err


def test_what_needs_arviz_is_refused_before_the_run(capsys, tmp_path, monkeypatch):
    def ran(*_, **__):
        raise AssertionError("it ran")

    monkeypatch.setattr("scoretk.inference.sampling.sample", ran)
    monkeypatch.setitem(sys.modules, "arviz", None)
    assert cli.main(["sample", "gaussian", "-o", str(tmp_path / "a.nc")]) == 1
    assert "scoretk[arviz]" in capsys.readouterr().err
