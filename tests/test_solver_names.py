"""A solver's name goes wherever a solver goes: those of this package, and those of others by the same rules as models'."""

import dataclasses
import json
import re
import subprocess
import sys
from types import MappingProxyType

import pytest
import torch

import scoretk as stk
from scoretk.cli import main
from scoretk.plugins import as_solver, verify_solvers
from scoretk.plugins.solvers import SOLVER_PROTOCOL
from scoretk.solvers import EXAMPLES, SOLVERS
from scoretk.solvers.base import Solver, Traits, traits
from scoretk.solvers.warmup.tuned import Before, Tunable, Tuned

FIELD = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
SPINS = stk.Discrete(stk.Energy(lambda x: x.sum(1), (2,)), (0.0, 1.0))

KERNEL = '''
from dataclasses import dataclass
import scoretk as stk

@dataclass(frozen=True)
class {name}(stk.ULA):
    """A kernel of another package.

    More of it.
    """

    step_size: float = {size}
    temperature: float = 1.0
'''


def install(site, distribution, source, **kernels):
    """A distribution on this path, as an installer would leave it: a module and its entry points."""
    module = f"{distribution.replace('-', '_')}_kernels"
    (site / f"{module}.py").write_text(source)
    info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
    points = "\n".join(f"{key} = {module}:{name}" for key, name in kernels.items())
    (info / "entry_points.txt").write_text(f"[scoretk.solvers]\n{points}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    source = KERNEL.format(name="One", size=0.1) + KERNEL.format(name="Two", size=0.2)
    install(tmp_path, "lab-one", source, walker="One", shared="One", hmc="One")
    install(tmp_path, "lab-two", source, shared="Two", half="NotThere")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("lab_")]:
        del sys.modules[name]


def test_the_table_holds_every_public_solver_once():
    """A solver is what can be made, stepped and named: no class of the public names that is one is left out of the table."""
    assert len(set(SOLVERS.values())) == len(SOLVERS)
    assert {name: type(solver) for name, solver in EXAMPLES.items()} == SOLVERS
    public = {
        v
        for n in stk.__all__
        if isinstance(v := getattr(stk, n), type) and callable(getattr(v, "step", None))
    }
    assert {kind for kind in public if not getattr(kind, "_is_protocol", False)} == set(
        SOLVERS.values()
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_every_name_means_its_class_with_the_defaults(name):
    spec = stk.describe_solver(name)
    assert spec.id == f"scoretk/{name}"
    assert spec.solver.endswith(f":{SOLVERS[name].__name__}")
    assert json.loads(json.dumps(spec.as_dict()))["summary"].endswith(".")
    if not spec.required:
        assert stk.load_solver(name) == stk.load_solver(f"scoretk/{name}") == SOLVERS[name]()
        assert isinstance(stk.load_solver(name), Solver)
        return
    with pytest.raises(stk.InvalidArgument, match=f"{spec.required[0]}=VALUE for {name}"):
        stk.load_solver(name)
    given = dict.fromkeys(spec.required, 0.25)
    assert stk.load_solver(name, **given) == SOLVERS[name](**given)


def test_no_solver_is_made_from_another_one():
    """Classes are abstract or final."""
    for kind in SOLVERS.values():
        assert not set(kind.__mro__[1:]) & set(SOLVERS.values()), kind


def test_what_a_class_takes_for_one_more_release_it_takes_by_name_too():
    with pytest.warns(DeprecationWarning, match="Warmup"):
        assert stk.load_solver("hmc", pilot=8) is not None
    assert "pilot" not in stk.describe_solver("hmc").settings


def test_the_protocol_is_written_once_and_what_lacks_some_of_it_is_told():
    assert {n for n in vars(Solver) if not n.startswith("_")} == set(SOLVER_PROTOCOL)

    class Half:
        needs, timed, capturable, step_cost = frozenset({"score"}), False, True, {}

        def init(self, field, x, noise): ...

        def step(self, field, state, noise): ...

    with pytest.raises(stk.InvalidArgument, match="It has no init_cost"):
        stk.sample(FIELD, Half(), chains=2)


METHODS = ("init", "step")


@pytest.mark.parametrize("lacking", [METHODS[:1], METHODS[1:], METHODS], ids=" and ".join)
def test_a_class_that_lacks_a_method_is_no_solver_class(lacking, tmp_path, monkeypatch):
    """Under its entry point it is broken, and as an object it is no solver."""
    source = "class Half:\n    needs = frozenset({'score'})\n" + "".join(
        f"    def {name}(self, *given): ...\n" for name in METHODS if name not in lacking
    )
    install(tmp_path, "lab-half", source, half="Half")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(stk.BrokenPlugin, match=f"it has no {' and no '.join(lacking)}"):
        stk.load_solver("half")
    with pytest.raises(stk.InvalidArgument, match="a solver object or the name of one"):
        stk.sample(FIELD, sys.modules.pop("lab_half_kernels").Half(), chains=2)


def test_what_a_solver_says_of_itself_counts_and_the_rest_has_its_default():
    """Each of `Traits` reaches what asks for it; `tuned_by` and nested solvers pass on what theirs say."""

    class Quiet:
        needs = frozenset({"score", "energy"})

    assert traits(Quiet()) == Traits(varying=("energy",))
    assert traits(stk.HMC()).varying == ("score",) == traits(stk.AIS()).varying
    assert not traits(stk.MCLMC()).exact
    assert not traits(stk.DiscreteLangevin(1.0, adjusted=False)).exact
    assert traits(stk.ULA(0.1, temperature=2.0)).temperature == 2
    assert traits(stk.AnnealedLangevin((3.0, 2.0), 1, 0.1)).temperature == 2
    assert traits(stk.AnnealedLangevin(4, 1, 0.1)).temperature == 1
    tuned = stk.MCLMC().tuned_by(stk.sample(FIELD, stk.MCLMC(), chains=4, steps=1, warmup=4))
    assert traits(tuned).given_back
    assert not traits(tuned).exact


def test_a_name_goes_wherever_a_solver_goes():
    named, given = (
        stk.sample(FIELD, solver, chains=4, steps=2, warmup=3, seed=1)
        for solver in ("hmc", stk.HMC())
    )
    assert torch.equal(named.x, given.x)
    assert named.provenance == given.provenance
    gibbs = stk.GibbsWithGradients()
    for kind in (stk.AIS, stk.SMC, stk.ParallelTempering):
        assert kind(kernel="gibbs-with-gradients") == kind(kernel=gibbs)
    estimates = [
        stk.log_partition(SPINS, kernel=k, chains=16, pilot=16).value
        for k in ("gibbs-with-gradients", gibbs)
    ]
    assert torch.equal(*estimates)
    assert stk.ContrastiveDivergence("gibbs-with-gradients").solver == gibbs
    assert stk.load_solver("smc", kernel="gibbs-with-gradients", levels=3) == stk.SMC(
        3, kernel=gibbs
    )


@pytest.mark.parametrize("start", [torch.zeros(2).numpy(), torch.zeros(2), "nowhere", None])
def test_contrastive_divergence_says_from_where_it_can_start(start):
    """An array compares entry by entry, and has no truth of its own."""
    with pytest.raises(stk.InvalidArgument, match="start"):
        stk.ContrastiveDivergence(stk.ULA(0.1), start=start)


TAKERS = {
    "sample": lambda name: stk.sample(FIELD, name, chains=2),
    "ais": lambda name: stk.AIS(kernel=name),
    "smc": lambda name: stk.SMC(kernel=name),
    "tempering": lambda name: stk.ParallelTempering(kernel=name),
    "log_partition": lambda name: stk.log_partition(SPINS, kernel=name),
    "contrastive divergence": stk.ContrastiveDivergence,
}


@pytest.mark.parametrize("taker", TAKERS)
def test_what_is_no_name_and_no_solver_is_told(taker, site):
    with pytest.raises(stk.UnknownName, match=r"did you mean 'gibbs-with-gradients'"):
        TAKERS[taker]("gibs-with-gradients")
    with pytest.raises(stk.AmbiguousName, match="lab-one/shared, lab-two/shared"):
        TAKERS[taker]("shared")
    with pytest.raises(stk.BrokenPlugin, match="NotThere"):
        TAKERS[taker]("half")
    with pytest.raises(stk.InvalidArgument, match="step_size=VALUE for ula"):
        TAKERS[taker]("ula")
    for wrong in (3, stk.HMC, object()):
        with pytest.raises(stk.InvalidArgument):
            TAKERS[taker](wrong)


def test_solvers_of_other_packages_go_by_name(site):
    found = {e.id for e in stk.list_solvers()}
    assert {
        "lab-one/walker",
        "lab-one/shared",
        "lab-two/shared",
        "lab-one/hmc",
        "lab-two/half",
        "scoretk/hmc",
    } <= found
    draws = stk.sample(FIELD, "lab-one/walker", chains=4, steps=3)
    assert torch.equal(draws.x, stk.sample(FIELD, stk.ULA(0.1), chains=4, steps=3).x)
    assert stk.load_solver("walker", step_size=0.3).step_size == 0.3
    assert as_solver("solver", "Lab_Two/shared").step_size == 0.2
    assert isinstance(stk.load_solver("hmc"), stk.HMC)  # nobody takes the short name of a built-in
    assert type(stk.load_solver("lab-one/hmc")).__name__ == "One"
    spec = stk.describe_solver("walker")
    assert (spec.id, spec.solver) == ("lab-one/walker", "lab_one_kernels:One")
    assert (spec.summary, spec.settings["step_size"]) == ("A kernel of another package.", 0.1)
    assert (spec.needs, spec.timed, spec.required) == (("score",), False, ())
    with pytest.raises(stk.InvalidArgument, match="did you mean 'step_size'"):
        stk.load_solver("walker", stepsize=1)
    with pytest.raises(
        stk.InvalidArgument, match="positive"
    ):  # what the class itself refuses passes as it is
        stk.load_solver("walker", step_size=-1.0)
    assert [e.id for e in verify_solvers() if isinstance(e, stk.Broken)] == ["lab-two/half"]


BREAKINGS = {
    "it is not there": "",
    "no class": "Broken = 3",
    "the module fails": "import not_there",
    "the class fails": "class Broken:\n    def __init__(self):\n        raise RuntimeError('weights')",
    "nothing of a solver": "class Broken: pass",
    "half of a solver": "class Broken:\n    needs = {'energy'}\n    def init(self, field, x): ...",
}


@pytest.mark.parametrize("source", BREAKINGS.values(), ids=BREAKINGS)
def test_a_broken_solver_is_listed_whatever_is_wrong_with_it(site, capsys, source):
    """`list --verify` ends with all of the others, and names the broken one."""
    install(site, "lab-three", source, broken="Broken")
    assert "lab-three/broken" in [e.id for e in verify_solvers() if isinstance(e, stk.Broken)]
    assert main(["list", "--verify", "--solvers"]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows if "BROKEN" in row] == [
        "lab-three/broken",
        "lab-two/half",
    ]
    assert {"mala", "lab-one/walker"} <= {row.split()[0] for row in rows if row}
    with pytest.raises(stk.BrokenPlugin):
        stk.describe_solver("lab-three/broken")


@pytest.mark.thorough
def test_the_command_line_shows_solvers(site, capsys):
    def run(*arguments):
        code = main(arguments)
        return code, capsys.readouterr()

    assert run("list")[0] == 0
    listed = json.loads(run("list", "--json")[1].out)["solvers"]
    assert {"scoretk/mala", "lab-one/walker"} <= {row["id"] for row in listed}
    assert not any(row["broken"] for row in listed if row["distribution"] == "scoretk")
    code, told = run("describe", "walker")
    assert code == 0
    assert "step_size=0.1" in told.out
    assert "A kernel of another package." in told.out
    code, told = run("describe", "mala", "--json")
    assert json.loads(told.out) == stk.describe_solver("mala").as_dict()
    code, told = run("describe", "walke")
    assert code == 2
    assert "unknown model or solver 'walke' (did you mean 'walker'?)" in told.err
    assert run("describe", "mala", "--kind", "model")[0] == 2
    code, told = run("sample", "gaussian", "--solver", "walker", "--chains", "4", "--steps", "2")
    assert code == 0, told.err


@pytest.mark.thorough
def test_listing_needs_no_torch():
    code = "import sys; from scoretk.cli import main; main(['list']); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search("^  mala  +Metropolis-adjusted", run.stdout, re.MULTILINE)
    assert run.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("needs", "energy"),
        ("needs", (3,)),
        ("step_cost", 3),
        ("step_cost", {"energy": -1}),
        ("init_cost", {"energy": 0.5}),
        ("init_cost", {1: 1}),
        ("step_cost", None),
    ],
)
def test_what_a_solver_says_of_itself_is_checked(name, odd):
    class Odd(stk.ULA):
        pass

    setattr(Odd, name, odd)
    with pytest.raises(stk.InvalidArgument, match=rf"^solver\.{name}"):
        stk.sample(FIELD, Odd(0.1), chains=4, steps=2)


@pytest.mark.parametrize("name", [None, *EXAMPLES])
def test_a_solver_with_what_was_tuned_says_all_that_it_says_without(name):
    class Quiet(Tunable):
        needs, timed, capturable = frozenset({"score"}), False, False
        init_cost, step_cost = MappingProxyType({}), MappingProxyType({"score": 1})

    solver = Quiet() if name is None else EXAMPLES[name]
    tuned = Tuned(solver, {}, Before(0, 0, torch.zeros(0)))
    for said in dataclasses.fields(Traits):
        if said.name not in ("given_back", "with_adjoint", "as_data", "step_size"):
            assert getattr(traits(tuned), said.name) == getattr(traits(solver), said.name), said
    for said in ("needs", "timed", "init_cost", "step_cost", "capturable"):
        assert getattr(tuned, said) == getattr(solver, said), said
