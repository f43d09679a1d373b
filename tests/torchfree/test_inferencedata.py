"""ArviZ's data by whichever ArviZ is installed: names, dims, coords and values there and back.

Nothing here needs torch, so that it runs under each Python that ArviZ runs under:
`python -m pytest --confcutdir tests/torchfree tests/torchfree`.
"""

import json
import sys

import numpy as np
import pytest

arviz = pytest.importorskip("arviz")
xarray = pytest.importorskip("xarray")

from scoretk.core import inferencedata  # noqa: E402
from scoretk.errors import MissingDependency  # noqa: E402

RNG = np.random.default_rng(1)
VALUES = {
    "mu": RNG.normal(size=(4, 25)),
    "theta": RNG.normal(size=(4, 25, 3)).astype(np.float32),
    "m": RNG.normal(size=(4, 25, 2, 3)),
}
LP = RNG.normal(size=(4, 25))
FROM_1_ON = int(arviz.__version__.split(".")[0]) >= 1


def made(**changed):
    given = {
        "groups": {"posterior": VALUES, "sample_stats": {"lp": LP, "diverging": LP > 0}},
        "dims": {"mu": (), "theta": ("school",), "m": ("m_dim_0", "school")},
        "coords": {"chain": np.array([7, 8, 9, 11]), "school": ["a", "b", "c"]},
        "attrs": {"scoretk": json.dumps({"seed": 3})},
    }
    return inferencedata.inference_data(**given | changed, purpose="a test")


def violations(data):
    """What is wrong with data that should be `made()`."""
    posterior, stats = data["posterior"], data["sample_stats"]
    found = [
        name for name, v in VALUES.items() if not np.array_equal(np.asarray(posterior[name]), v)
    ]
    held = {
        "the log density": np.array_equal(np.asarray(stats["lp"]), LP),
        "flags": np.asarray(stats["diverging"]).dtype == bool,
        "dims": posterior["m"].dims == ("chain", "draw", "m_dim_0", "school"),
        "coords": np.asarray(posterior["school"]).tolist() == ["a", "b", "c"],
        "chains": np.asarray(posterior["chain"]).tolist() == [7, 8, 9, 11],
        "attributes": json.loads(data.attrs["scoretk"]) == {"seed": 3},
    }
    return found + [what for what, holds in held.items() if not holds]


def test_the_data_are_those_of_the_installed_arviz():
    assert violations(made()) == []
    assert isinstance(made(), xarray.DataTree if FROM_1_ON else arviz.InferenceData)
    assert inferencedata.is_tree(arviz) == FROM_1_ON


def test_netcdf_there_and_back(tmp_path):
    pytest.importorskip("h5netcdf")
    inferencedata.check_format(".nc")
    file = tmp_path / "d.nc"
    file.write_bytes(inferencedata.netcdf(made()))
    read = arviz.from_netcdf(file)
    assert violations(read) == []
    assert type(read) is type(made())


def test_zarr_there_and_back(tmp_path):
    pytest.importorskip("zarr")
    inferencedata.check_format(".zarr")
    inferencedata.zarr(made(), tmp_path / "d.zarr")
    assert any((tmp_path / "d.zarr" / mark).exists() for mark in inferencedata.STORE)
    tree = xarray.open_datatree(tmp_path / "d.zarr", engine="zarr", consolidated=False)
    assert violations(tree.load()) == []
    if FROM_1_ON:
        assert violations(arviz.from_zarr(tmp_path / "d.zarr", consolidated=False)) == []
    else:
        assert violations(arviz.from_datatree(tree)) == []


LOST = {
    "theta": {"groups": {"posterior": VALUES | {"theta": -VALUES["theta"]}, "sample_stats": {}}},
    "dims": {"dims": {"theta": ("school",), "m": ("other", "school")}},
    "coords": {"coords": {"chain": np.array([7, 8, 9, 11]), "school": ["b", "c", "a"]}},
    "chains": {"coords": {"school": ["a", "b", "c"]}},
    "attributes": {"attrs": {"scoretk": "{}"}},
}


@pytest.mark.parametrize("wrong", LOST)
def test_what_is_lost_on_the_way_is_found(wrong):
    changed = LOST[wrong]
    if "groups" in changed:
        changed["groups"]["sample_stats"] = {"lp": LP, "diverging": LP > 0}
    assert violations(made(**changed)) == [wrong]


def test_summaries_and_diagnostics_of_arviz_take_the_data():
    table = arviz.summary(made())
    assert len(table) == 1 + 3 + 6
    assert any("theta[a]" in str(row) for row in table.index)


CHAINS, STEPS = np.meshgrid(np.arange(12), np.arange(40), indexing="ij")
OF_SUPERCHAINS = np.sin(1.3 * CHAINS * STEPS + CHAINS) + 0.4 * (CHAINS // 3)
NESTED_R_HAT = 1.253166100370746
"""Of these draws, by `scoretk.diagnostics.nested_rhat` (tests/test_summary.py holds it to that)."""


@pytest.mark.skipif(not hasattr(arviz, "rhat_nested"), reason="ArviZ has it from 1.0 on")
def test_nested_r_hat_is_that_of_arviz():
    ids = (np.arange(12) // 3).tolist()
    found = arviz.rhat_nested(OF_SUPERCHAINS, superchain_ids=ids, method="identity")
    assert float(found) == pytest.approx(NESTED_R_HAT, rel=1e-12)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    for ending, package, extra in ((".nc", "h5py", "arviz"), (".zarr", "zarr", "zarr")):
        with monkeypatch.context() as patch:
            patch.setattr(inferencedata, "find_spec", lambda name, p=package: name != p or None)
            with pytest.raises(MissingDependency, match=rf"{package}.*scoretk\[{extra}\]"):
                inferencedata.check_format(ending)
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(MissingDependency, match=r"scoretk\[arviz\]"):
        made()
