"""The list of wrong versions fits the package as it is: `make mutants` runs the tests on each of them."""

from pathlib import Path

import pytest

import scoretk
from tests.mutants.listed import ROOT, ROUNDS, Mutant, covering, covers, mutants

PACKAGE = Path(scoretk.__file__).parent
PACKAGES = ("fields", "ode", "solvers", "run", "inference", "learn", "diagnostics", "plugins")


@pytest.mark.parametrize("name", ROUNDS)
def test_every_edit_can_be_made(name):
    for mutant in mutants(name):
        assert mutant.applied((PACKAGE / mutant.file).read_text())
        assert mutant.new != mutant.old


def test_the_list_is_long_enough_and_of_every_package():
    assert len(mutants("first")) >= 120
    assert {m.package for m in mutants("first")} == set(PACKAGES)
    edits = [(m.file, m.old, m.new) for m in mutants()]
    assert len(set(edits)) == len(edits)


def test_every_file_of_these_packages_and_of_the_list_has_tests_that_exist():
    for package in PACKAGES:
        for path in (PACKAGE / package).rglob("*.py"):
            assert covering(str(path.relative_to(PACKAGE)))
    for mutant in mutants():
        assert covering(mutant.file)
    for tests in (*covers().values(), *covers("rooms").values()):
        for name in tests:
            assert (ROOT / "tests" / name).is_file(), name


def test_an_edit_that_fits_nowhere_or_twice_is_refused():
    for source in ("x = 1\n", "x = 0\ny = x = 0\n"):
        with pytest.raises(ValueError, match="times"):
            Mutant("first", "a.py", "x = 0", "x = 2", "").applied(source)
    assert Mutant("first", "a.py", "x = 0", "x = 2", "").applied("x = 0\n") == "x = 2\n"
