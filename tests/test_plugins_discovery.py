"""Discovery on metadata written by hand: shadowing, damage, names, and which groups and ids come out."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from scoretk.errors import AmbiguousName, BrokenPlugin, InvalidArgument, UnknownName
from scoretk.plugins import Broken, Entry, list_models, verify
from scoretk.plugins.catalog import Catalog
from scoretk.plugins.discovery import discover, normalised

GROUP = "scoretk.tests"


def metadata(
    site: Path,
    name: str,
    entry_points: str | bytes | None,
    version: str = "1.0",
    about: str | None = None,
):
    """A distribution of which there is only the metadata."""
    info = site / f"{normalised(name).replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" if about is None else about
    (info / "METADATA").write_text(about)
    if isinstance(entry_points, str):
        entry_points = entry_points.encode()
    if entry_points is not None:
        (info / "entry_points.txt").write_bytes(entry_points)


def points(*keys: str, group: str = GROUP, value: str = "nowhere:spec") -> str:
    return f"[{group}]\n" + "".join(f"{key} = {value}\n" for key in keys)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture
def catalog():
    return Catalog(GROUP, "model")


def test_entries_carry_id_version_and_value_sorted_by_id(site):
    metadata(site, "Zeta_Models", points("b", "a", value="z.m:s"), version="2.0.1")
    metadata(site, "alpha.models", points("z"))
    assert discover(GROUP) == [
        Entry("alpha-models/z", "z", "alpha-models", "1.0", "nowhere:spec"),
        Entry("zeta-models/a", "a", "zeta-models", "2.0.1", "z.m:s"),
        Entry("zeta-models/b", "b", "zeta-models", "2.0.1", "z.m:s"),
    ]


def test_other_groups_and_plain_distributions_are_left_out(site):
    metadata(site, "other", points("x", group="console_scripts"))
    metadata(site, "longer", points("x", group=GROUP + ".more"))
    metadata(site, "plain", None)
    metadata(site, "both", points("x", group="console_scripts") + points("mine"))
    assert [item.id for item in discover(GROUP)] == ["both/mine"]


def test_the_first_on_the_path_wins_and_is_reported_once(site, tmp_path, monkeypatch):
    metadata(site, "twice", points("old", "kept"), version="1.0")
    monkeypatch.syspath_prepend(tmp_path / "earlier")
    metadata(tmp_path / "earlier", "Twice", points("kept", "new"), version="2.0")
    assert [(item.id, item.version) for item in discover(GROUP)] == [
        ("twice/kept", "2.0"),
        ("twice/new", "2.0"),
    ]


def test_an_earlier_copy_that_registers_nothing_shadows_a_later_one(site, tmp_path, monkeypatch):
    metadata(site, "twice", points("old"))
    monkeypatch.syspath_prepend(tmp_path / "earlier")
    metadata(tmp_path / "earlier", "twice", None, version="2.0")
    assert discover(GROUP) == []


def test_the_same_directory_twice_on_the_path_is_reported_once(site, monkeypatch):
    metadata(site, "once", points("m"))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    assert [item.id for item in discover(GROUP)] == ["once/m"]


def test_of_a_key_written_twice_the_first_counts(site):
    metadata(site, "pkg", points("m", value="first:spec") + points("m", value="second:spec"))
    assert [item.value for item in discover(GROUP)] == ["first:spec"]


@pytest.mark.parametrize(
    ("entry_points", "error"),
    [
        (points("m") + "no equals sign\n", "TypeError"),
        (points("m").encode() + b"\xff = a:b\n", "UnicodeDecodeError"),
    ],
)
def test_a_damaged_entry_point_file_is_broken_at_list_and_breaks_no_other(
    site, catalog, entry_points, error
):
    metadata(site, "damaged", entry_points)
    metadata(site, "good", points("m"))
    broken, good = catalog.listing()
    assert good == Entry("good/m", "m", "good", "1.0", "nowhere:spec")
    assert isinstance(broken, Broken)
    assert (broken.id, broken.distribution, broken.version) == ("damaged/*", "damaged", "1.0")
    assert broken.stage == "list"
    assert broken.error.startswith(error)
    assert str(site) in broken.error
    assert catalog.find("m").id == "good/m"


def test_asking_for_a_model_of_a_damaged_distribution_says_why(site, catalog):
    metadata(site, "damaged", points("m") + "no equals sign\n", version="3.1")
    for name in ("damaged/m", "Damaged/anything", "damaged/*"):
        with pytest.raises(
            BrokenPlugin,
            match=r"damaged/\* \(damaged 3\.1\) failed at list: (?s:.*)reinstall damaged",
        ) as caught:
            catalog.find(name)
        assert isinstance(caught.value.__cause__, TypeError)
    assert str(site) in catalog.listing()[0].error
    with pytest.raises(UnknownName):
        catalog.find("elsewhere/m")


def test_a_repaired_distribution_is_forgotten_as_broken(site, catalog):
    metadata(site, "damaged", points("m") + "no equals sign\n")
    with pytest.raises(BrokenPlugin):
        catalog.find("damaged/m")
    next(site.glob("*.dist-info/entry_points.txt")).write_text(points("m"))
    assert catalog.listing() == [catalog.find("damaged/m")]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_distribution_without_a_name_is_reported(site):
    metadata(site, "nameless", points("m"), about="Metadata-Version: 2.1\nVersion: 1\n")
    metadata(site, "good", points("m"))
    good, broken = discover(GROUP)
    assert good.id == "good/m"
    assert (broken.id, broken.stage) == ("unknown/*", "list")
    assert str(site) in broken.error


def test_unreadable_metadata_of_packages_that_register_nothing_here_is_not_reported(site):
    metadata(site, "stranger", points("x", group="console_scripts") + "no equals sign\n", about="")
    assert discover(GROUP) == []


def test_finding_by_short_name_full_id_and_unnormalised_id(site, catalog):
    metadata(site, "my-pkg", points("m", "group/deep"))
    assert catalog.find("m").id == "my-pkg/m"
    assert catalog.find("my-pkg/m").id == "my-pkg/m"
    assert catalog.find("My_Pkg/m").id == "my-pkg/m"
    assert catalog.find("group/deep").id == "my-pkg/group/deep"
    assert catalog.find("my-pkg/group/deep").id == "my-pkg/group/deep"


def test_a_name_of_two_distributions_is_ambiguous_and_the_ids_are_not(site, catalog):
    metadata(site, "two", points("m"))
    metadata(site, "one", points("m"))
    with pytest.raises(AmbiguousName) as caught:
        catalog.find("m")
    assert caught.value.ids == ["one/m", "two/m"]
    assert [catalog.find(id).distribution for id in caught.value.ids] == ["one", "two"]


def test_a_short_name_of_a_built_in_means_the_built_in(site, catalog):
    metadata(site, "aaa", points("m"))
    metadata(site, "scoretk", points("m"))
    metadata(site, "scoretk-extras", points("m"))
    assert catalog.find("m").id == "scoretk/m"
    assert catalog.find("aaa/m").id == "aaa/m"


def test_unknown_names_are_answered_with_the_near_match(site, catalog):
    metadata(site, "pkg", points("double-well", "banana"))
    with pytest.raises(
        UnknownName, match=r"unknown model 'doublewell' \(did you mean 'double-well'\?\)"
    ) as caught:
        catalog.find("doublewell")
    assert caught.value.known == ["banana", "double-well"]
    with pytest.raises(UnknownName, match=r"did you mean 'pkg/banana'\?") as caught:
        catalog.find("pkg/bananna")
    assert caught.value.known == ["pkg/banana", "pkg/double-well"]
    for name in ("", "/", "pkg/", "/banana", "pkg"):
        with pytest.raises(UnknownName):
            catalog.find(name)


@pytest.mark.parametrize("name", [None, 3, b"m", ["m"]])
def test_a_name_is_a_string(catalog, name):
    with pytest.raises(InvalidArgument, match=r"^name: expected the name of a model"):
        catalog.find(name)


def test_a_broken_finder_of_others_leaves_ours_alone(site, monkeypatch):
    class Odd(importlib.metadata.Distribution):
        def read_text(self, filename):
            raise OSError("disk on fire")

        def locate_file(self, path):
            return Path("odd") / path

    real = importlib.metadata.distributions
    monkeypatch.setattr("scoretk.plugins.discovery.distributions", lambda: [Odd(), *real()])
    metadata(site, "good", points("m"))
    good, broken = discover(GROUP)
    assert good.id == "good/m"
    assert broken.error.startswith("OSError: disk on fire")


@pytest.mark.thorough
def test_verify_passes_over_metadata_that_cannot_be_read(site):
    metadata(site, "damaged", points("m", group="scoretk.models") + "no equals sign\n")
    before = [item for item in list_models() if item.distribution == "damaged"]
    after = [item for item in verify() if item.distribution == "damaged"]
    assert [item.id for item in before] == ["damaged/*"]
    assert after == before
