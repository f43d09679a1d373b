"""docs/bring-your-own.md: its table is what the tests declare, its blocks run where their libraries are installed."""

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version

import pytest

import scoretk as stk
from scoretk.fields.foreign import ADAPTERS
from tests.adapters import table
from tests.promises import blocks, run_blocks

PAGE = table.PAGE.read_text()
SECTIONS = {
    title: blocks(text)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("title", [title for title, found in SECTIONS.items() if found])
def test_a_section_runs(title):
    for block in SECTIONS[title]:
        for package in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
    run_blocks(table.PAGE.name, SECTIONS[title])


def test_the_table_is_what_the_tests_declare():
    found = table.OLD.findall(PAGE)
    assert found == [table.table()], "python -m tests.adapters.table writes it"


def test_every_library_has_an_extra_or_a_line_of_its_own():
    named = {name for row in table.brought() if (name := row.library.partition("==")[0])}
    alone = named - table.extras().keys()
    assert alone == table.ALONE, (
        "an extra that begins with the library, or a reason to install it alone"
    )
    offered = re.findall(r"\w+", table.toml()["adapters"][0])[1:]
    assert {table.extras()[name] for name in named - alone} == {*offered, "flows", "torchcfm"}


@pytest.mark.thorough
def test_every_test_that_is_declared_is_there():
    for row in table.brought():
        assert row.tests, row
        for name in row.tests:
            other, _, test = name.rpartition(".")
            elsewhere = other.startswith("test_")
            module, test = (f"adapters/{other}", test) if elsewhere else (row.module, name)
            assert test in table.tests_of(module), (row.module, name)
    assert "test_that_is_not" not in table.tests_of("adapters/test_sbi")


def test_a_module_that_holds_an_adapter_declares_it():
    """Each adapter's line is in a declaration, and each declared line is of a public name."""
    named = {re.match(r"stk\.(\w+)\(", row.line)[1] for row in table.brought()}
    assert named | {"from_distribution"} >= {*ADAPTERS.values()}
    assert all(hasattr(stk, name) for name in named)


@pytest.mark.slow
@pytest.mark.parametrize("library", sorted({row.library for row in table.brought()} - {""}))
def test_the_version_that_is_named_is_the_one_that_is_tried(library):
    name, _, wanted = library.partition("==")
    try:
        installed = version(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    assert installed == wanted
