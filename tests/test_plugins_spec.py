"""`ModelSpec`: what it accepts, what it refuses and with which words, and that it is a value."""

import copy
import dataclasses
import json
import pickle

import pytest

from scoretk.errors import InvalidArgument
from scoretk.plugins import CAPABILITIES, INTERFACES, ModelSpec

GOOD = {
    "name": "my-model",
    "family": "energy-based",
    "factory": "my_pkg.models:build",
    "provides": {"energy"},
    "event_shape": (2,),
    "summary": "a model",
    "parameters": {"width": 64, "widths": [1, [2]], "weights": None},
}


def spec(**changes):
    return ModelSpec(**{**GOOD, **changes})


def test_keeps_immutable_copies():
    given = {"width": 64, "widths": [1, [2]]}
    provides = {"energy", "score"}
    it = spec(provides=provides, event_shape=[1, 8, 8], parameters=given)
    given["width"] = 1
    given["widths"].append(3)
    provides.add("draw")

    assert it.provides == frozenset({"energy", "score"})
    assert type(it.provides) is frozenset
    assert it.event_shape == (1, 8, 8)
    assert type(it.event_shape) is tuple
    assert dict(it.parameters) == {"width": 64, "widths": (1, (2,))}
    with pytest.raises(TypeError):
        it.parameters["width"] = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        it.name = "other"


def test_is_a_value():
    one, same = (
        spec(),
        spec(provides=["energy"], event_shape=[2], parameters=dict(GOOD["parameters"])),
    )
    assert one == same
    assert hash(one) == hash(same)
    for field, other in [
        ("name", "other"),
        ("family", "flow"),
        ("factory", "m:f"),
        ("provides", {"score"}),
        ("event_shape", None),
        ("summary", "other"),
        ("parameters", {}),
    ]:
        assert spec(**{field: other}) != one, field


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_can_be_copied_and_pickled(clone):
    assert clone(spec()) == spec()
    assert clone(spec(event_shape=None)).event_shape is None
    with pytest.raises(TypeError):
        clone(spec()).parameters["width"] = 2


def test_as_dict_is_json_in_a_fixed_order():
    plain = spec(provides=set(CAPABILITIES)).as_dict()
    assert list(plain) == [*GOOD, "trainer", "interface"]
    assert plain["provides"] == list(CAPABILITIES)
    assert plain["event_shape"] == [2]
    assert json.loads(json.dumps(plain))["parameters"] == {
        "width": 64,
        "widths": [1, [2]],
        "weights": None,
    }
    assert ModelSpec(**plain) == spec(provides=set(CAPABILITIES))
    assert spec(event_shape=None).as_dict()["event_shape"] is None


def test_defaults():
    it = ModelSpec(**{k: v for k, v in GOOD.items() if k != "parameters"})
    assert it.parameters == {}
    assert it.interface == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a/b"),
        ("name", "-a"),
        ("name", "a b"),
        ("name", "a\n"),
        ("name", None),
        ("family", ""),
        ("family", " "),
        ("family", 3),
        ("factory", "my_pkg.models"),
        ("factory", "my_pkg.models:"),
        ("factory", ":build"),
        ("factory", "a b:c"),
        ("factory", "1a:b"),
        ("factory", print),
        ("provides", "energy"),
        ("provides", set()),
        ("provides", None),
        ("provides", {"energy", 1}),
        ("provides", {"energy": 1}),
        ("event_shape", 2),
        ("event_shape", (0,)),
        ("event_shape", (-1,)),
        ("event_shape", (2.0,)),
        ("event_shape", (True,)),
        ("event_shape", "ab"),
        ("summary", "two\nlines"),
        ("summary", ""),
        ("summary", b"bytes"),
        ("parameters", [("width", 64)]),
        ("parameters", {1: 2}),
        ("parameters", {"not a name": 2}),
        ("interface", "1"),
        ("interface", True),
        ("interface", 1.0),
        ("interface", 0),
        ("interface", None),
    ],
)
def test_refuses_wrong_fields_by_name(field, value):
    with pytest.raises(InvalidArgument) as caught:
        spec(**{field: value})
    assert caught.value.argument == field
    assert str(caught.value).startswith(f"{field}: expected ")


@pytest.mark.parametrize("value", [object(), {1}, {"a": 1}, print, [1, object()]])
def test_refuses_parameters_that_are_not_plain(value):
    with pytest.raises(InvalidArgument, match=r"^parameters\['width'\]: expected None, a boolean"):
        spec(parameters={"width": value})


def test_an_unknown_capability_is_answered_with_the_near_match():
    with pytest.raises(InvalidArgument, match=r"did you mean 'velocity'\?"):
        spec(provides={"energy", "velocty"})


@pytest.mark.parametrize("shape", [(), (1,), (3, 32, 32), None])
def test_accepts_every_event_shape(shape):
    assert spec(event_shape=shape).event_shape == shape


def test_every_supported_interface_is_accepted():
    assert [spec(interface=i).interface for i in INTERFACES] == list(INTERFACES)


def test_a_newer_interface_says_upgrade_scoretk_even_with_fields_of_the_future():
    newer = INTERFACES.stop
    for extra in ({}, {"field_of_the_future": 1}):
        with pytest.raises(
            InvalidArgument, match=r"newer scoretk: pip install --upgrade scoretk"
        ) as caught:
            spec(interface=newer, **extra)
        assert caught.value.argument == "interface"


def test_an_older_interface_says_upgrade_the_plugin(monkeypatch):
    monkeypatch.setattr("scoretk.plugins.spec.INTERFACES", range(3, 5))
    with pytest.raises(
        InvalidArgument, match=r"expected 3 or 4, got 2\. .*older scoretk: upgrade the plugin"
    ):
        spec(interface=2)


def test_a_misspelt_field_is_a_type_error():
    with pytest.raises(TypeError, match="event_shap"):
        spec(event_shap=(2,))


def test_fields_and_plugins_speak_of_the_same_capabilities():
    fields = pytest.importorskip("scoretk.fields")
    assert fields.CAPABILITIES == CAPABILITIES
