"""What becomes of an error in the code of a plugin, and which plugin a name means."""

import os
import sys
from dataclasses import astuple
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from scoretk.errors import (
    AmbiguousName,
    BrokenPlugin,
    InvalidArgument,
    MissingDependency,
    ScoretkError,
    UnknownName,
)
from scoretk.plugins import ModelSpec, catalog, describe_solver, discovery, models, solvers
from scoretk.plugins.capabilities import CAPABILITIES, offers
from scoretk.plugins.catalog import Catalog
from scoretk.plugins.discovery import Broken, Entry, normalised
from scoretk.plugins.models import build
from scoretk.plugins.targets import BUILT_IN_TARGETS, list_targets
from scoretk.solvers import SOLVERS

OWN = {"mala": "scoretk.solvers.mala:MALA", "ula": "scoretk.solvers.ula:ULA"}


def of_others(*names):
    """Entries of other packages, `(distribution, name)`."""
    return [Entry(f"{d}/{n}", n, d, "1.0", f"{d}:{n}") for d, n in names]


@pytest.fixture
def known(monkeypatch):
    others = of_others(("other", "mala"), ("one", "walk"), ("two", "walk"), ("my-pkg", "jump"))
    monkeypatch.setattr(catalog, "discover", lambda group: others)
    return Catalog("scoretk.nothing", "solver", OWN)


def test_a_name_means_an_id_then_a_built_in_then_whoever_alone_has_it(known):
    assert known.find("mala").id == "scoretk/mala"
    assert known.find("other/mala").id == "other/mala"
    assert known.find("jump").id == known.find("My_Pkg/jump").id == "my-pkg/jump"
    assert normalised("My__Pkg.x") == "my-pkg-x"
    with pytest.raises(AmbiguousName):
        known.find("walk")
    with pytest.raises(UnknownName):
        known.find("one/mala")


def raised(known, error, stage="load", given=None):
    entry = known.find("ula")
    with pytest.raises(BaseException) as caught, known.isolated(entry, stage, given):
        raise error
    recorded = [item for item in known.listing() if item.id == entry.id]
    return caught.value, isinstance(recorded[0], Broken)


def test_an_error_is_recorded_until_the_same_stage_succeeds(known):
    told, recorded = raised(known, RuntimeError("no"))
    assert isinstance(told, BrokenPlugin)
    assert isinstance(told.__cause__, RuntimeError)
    assert recorded
    entry = known.find("ula")
    with known.isolated(entry, "describe"):
        pass
    assert any(isinstance(item, Broken) for item in known.listing())
    with known.isolated(entry, "load"):
        pass
    assert not any(isinstance(item, Broken) for item in known.listing())


def test_what_is_no_fault_of_the_plugin_passes_as_it_is(known):
    missing = MissingDependency("POT", "transport", "optimal_coupling")
    assert raised(known, missing) == (missing, False)
    refused = InvalidArgument("step_size", -1, "a positive number")
    assert raised(known, refused, given={"step_size": -1}) == (refused, False)
    told, recorded = raised(known, refused)
    assert isinstance(told, BrokenPlugin)
    assert recorded


def test_nothing_is_recorded_of_arguments_that_may_be_at_fault(known):
    told, recorded = raised(known, ValueError("bad"), given={"width": 3})
    assert isinstance(told, BrokenPlugin)
    assert "width=3" in str(told)
    assert not recorded


def test_an_interrupt_passes_but_in_a_survey(known):
    told, recorded = raised(known, KeyboardInterrupt())
    assert isinstance(told, KeyboardInterrupt)
    assert not recorded
    with known.survey():
        told, recorded = raised(known, KeyboardInterrupt())
    assert isinstance(told, ScoretkError)
    assert recorded


def test_the_process_is_as_it_was(known, monkeypatch):
    monkeypatch.setenv("SCORETK_BEFORE", "1")
    path, folder = list(sys.path), os.getcwd()
    with known.isolated(known.find("ula"), "load"):
        os.environ["SCORETK_WITHIN"] = os.environ.pop("SCORETK_BEFORE")
        sys.path[:] = ["/nowhere", *sys.path[1:]]
        os.chdir("/")
    assert os.environ["SCORETK_BEFORE"] == "1"
    assert "SCORETK_WITHIN" not in os.environ
    assert sys.path == [*path, "/nowhere"]
    assert os.getcwd() == folder
    sys.path.remove("/nowhere")


def test_what_every_call_of_a_trainer_takes_is_no_setting_of_it():
    with pytest.raises(InvalidArgument) as told:
        models.train("digits-rbm", stepz=3)
    settings = str(told.value).split("It takes ")[1].split(", ")
    assert "steps" in settings
    assert not {"data", "seed", "report", "checkpoint"} & set(settings)


class Trained:
    def save(self, path):
        """Nothing to save."""


def talking(data, *, seed, report):
    """A trainer that prints, and reports."""
    print("said by the trainer")
    report("progress")
    print("said by the trainer")
    return Trained()


def test_what_the_users_own_report_prints_goes_where_the_user_prints(monkeypatch, capfd):
    """And what the trainer prints does not, before or after."""
    spec = ModelSpec(
        name="talking",
        family="energy-based",
        factory=f"{__name__}:Trained",
        provides={"energy"},
        event_shape=(2,),
        summary="One that talks.",
        parameters={"weights": None},
        trainer=f"{__name__}:talking",
    )
    monkeypatch.setattr(models, "_spec", lambda entry: spec)
    models.train("digits-rbm", report=lambda told: print("report:", told))
    out, err = capfd.readouterr()
    assert out.split("\n") == ["report: progress", ""]
    assert err.count("said by the trainer") == 2


def test_a_field_offers_what_it_says_and_else_what_it_has():
    """One that says it offers nothing offers nothing, whatever it has."""

    class Silent:
        energy, score = (lambda self, x: x.sum(1)), None

    def saying(*names):
        return type("Saying", (Silent,), {"provides": names})()

    assert offers(Silent()) == {"energy"}
    assert offers(saying()) == frozenset()
    assert offers(saying("score")) == {"score"}
    assert offers(saying(*CAPABILITIES)) == set(CAPABILITIES)


def test_what_metadata_say_is_shown_without_characters_that_control_a_terminal(monkeypatch):
    """In all of an entry, and of a record of what failed."""
    told = "\x1b[2J\r\u202e"
    points = EntryPoints([EntryPoint(f"na{told}me", f"mod:at{told}tr", "some.group")])

    class Odd:
        metadata, entry_points = {"Version": f"1{told}", "Name": f"pk{told}g"}, points

        def read_text(self, name):
            return "[some.group]"

    monkeypatch.setattr(discovery, "distributions", lambda: [Odd()])
    monkeypatch.setattr(discovery, "distribution", lambda name: Odd())
    (entry,) = discovery.discover("some.group")
    failed = Broken.by(ValueError(f"no{told}"), entry, "load")
    for text in (*astuple(entry), *astuple(failed)):
        assert text.isprintable(), text
    assert entry.value.startswith("mod:at")


def test_what_this_package_has_is_shown_first_in_its_own_order(monkeypatch):
    others = of_others(("aardvark", "zebra"), ("zoo", "ant"))
    monkeypatch.setattr(catalog, "discover", lambda group: others)
    shown = [entry.id for entry in list_targets()]
    assert shown == [*(f"scoretk/{name}" for name in BUILT_IN_TARGETS), "aardvark/zebra", "zoo/ant"]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_described_by_what_it_needs_as_it_comes(name):
    """Where that depends on its settings, by what it needs with those that it has by default."""
    told, kind = describe_solver(name), SOLVERS[name]
    kind = kind if told.required else kind()
    assert told.needs == tuple(sorted(kind.needs))
    assert told.timed == kind.timed


class Shaped:
    """A field of the shape that its factory is told."""

    def __init__(self, dim=2):
        self.event_shape = (dim,)

    def energy(self, x):
        return x.sum(1)


def test_the_shape_that_a_spec_says_is_that_of_its_own_parameters():
    of_shape = {"name": "shaped", "family": "energy-based", "summary": "a plane"}
    of_shape |= {"factory": f"{__name__}:Shaped", "provides": {"energy"}}
    spec = ModelSpec(**of_shape, event_shape=(2,))
    assert build(spec).event_shape == (2,)
    assert build(spec, dim=5).event_shape == (5,)
    wrong = ModelSpec(**of_shape, event_shape=(3,))
    with pytest.raises(ValueError, match="the spec says event_shape"):
        build(wrong)


SPEC = """
from scoretk.plugins import ModelSpec
spec = ModelSpec(name="m", family="test", factory="{module}:build", provides={{"energy"}}, event_shape=(2,), summary="s")
class Field:
    event_shape = (2,)
    def energy(self, x):
        return x.square().sum(1)
def build():
    {build}
"""
KIND = """
class Kind:
    timed, init_cost, step_cost, capturable = False, {{}}, {{}}, False
    {needs}
    def __init__(self):
        {begin}
    def init(self, field, x, noise):
        return x
    step = init
"""
RAISES = "raise RuntimeError('here')"
WRONG = {
    "models": {
        RAISES: ("describe", "RuntimeError: here"),
        "other = 3": ("describe", "AttributeError"),
        "spec = 3": ("describe", "not a scoretk.ModelSpec"),
        SPEC.replace('"m"', '"n"').replace("{build}", "return Field()"): (
            "describe",
            "name is 'n'",
        ),
        SPEC.replace("{build}", RAISES): ("load", "RuntimeError: here"),
        SPEC.replace("{build}", "return 3"): ("load", "Error"),
        SPEC.replace("{build}", "return Field()").replace('"energy"', '"score"'): ("load", "score"),
    },
    "solvers": {
        RAISES: ("load", "RuntimeError: here"),
        "spec = 3": ("load", "not a solver class"),
        "class Kind:\n    pass\nspec = Kind": ("load", "no init"),
        KIND.replace("{needs}", "needs = {{'energy'}}").replace("{begin}", RAISES)
        + "spec = Kind": ("describe", "RuntimeError: here"),
        KIND.replace("{needs}", "needs = 3").replace("{begin}", "pass") + "spec = Kind": (
            "describe",
            "TypeError",
        ),
    },
}
"""By kind, the code of a plugin, and at which stage it fails at first, and how."""
CASES = [(kind, code) for kind, some in WRONG.items() for code in some]
FIRST = {
    "models": (models.describe, models.load),
    "solvers": (describe_solver, solvers.load_solver),
}


@pytest.mark.parametrize(("kind", "code"), CASES, ids=range(len(CASES)))
def test_a_plugin_fails_at_the_stage_where_it_is_wrong(kind, code, tmp_path, monkeypatch):
    """As the record says, and the error; what asks for an earlier stage alone is answered."""
    module = f"of_another_{kind}_{CASES.index((kind, code))}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{module}.py").write_text(code.format(module=module) if "{" in code else code)
    entry = Entry("other/m", "m", "other", "1.0", f"{module}:spec")
    own = Catalog(f"scoretk.{kind}", kind.rstrip("s"), {})
    monkeypatch.setattr(catalog, "discover", lambda group: [entry])
    monkeypatch.setattr(*((models, "_MODELS") if kind == "models" else (solvers, "_SOLVERS")), own)
    stage, told = WRONG[kind][code]
    describe, load = FIRST[kind]
    asked = describe if stage == "describe" or kind == "solvers" else load
    if stage == "load" and kind == "models":
        assert describe("other/m").name == "m"
    with pytest.raises(BrokenPlugin, match=f"failed at {stage}: ") as raised:
        asked("other/m")
    (record,) = own.listing()
    assert isinstance(record, Broken)
    assert (record.id, record.stage) == ("other/m", stage)
    assert told in record.error
    assert told in str(raised.value)
