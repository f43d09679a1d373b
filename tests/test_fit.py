"""`scoretk fit`: a user's own array in, weights out that `load` takes; and every way in which that can go wrong."""

import json

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.arrays import read_array
from scoretk.families.flow_matching import FromNoise
from scoretk.families.stored import Stored, read_weights
from scoretk.plugins.models import train
from tests.test_cli import run

SHORT = ("--set", "steps=3", "--set", "width=16")
TRAINABLE = ["digits-energy", "digits-diffusion", "digits-flow"]


def rows(n=40, shape=(3,)):
    return np.random.default_rng(0).normal(5.0, 2.0, (n, *shape))


def write(folder, ending, array, **more):
    path = folder / f"x.{ending}"
    if ending == "npy":
        np.save(path, array)
    elif ending == "npz":
        np.savez(path, x=array, **more)
    else:
        np.savetxt(path, array, delimiter=",", header="a,b,c", comments="", fmt="%.17g")
    return path


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("ending", ["npy", "npz", "csv"])
def test_fit_writes_weights_of_a_users_data_that_load_takes(capsys, tmp_path, name, ending):
    data, out = write(tmp_path, ending, rows()), tmp_path / "w.safetensors"
    code, printed, told = run(capsys, "fit", name, "--data", data, *SHORT, "-o", out, "--json")
    assert code == 0
    assert json.loads(printed)["output"] == str(out)
    assert "step 3  loss" in told
    assert stk.load(name, weights=str(out)).event_shape == (3,)
    made = read_weights(out, name).notes
    assert made["command"].startswith(f"scoretk fit {name} --data FILE --seed 0 --set steps=3")
    again = train(name, read_array(data), steps=3, width=16)
    again.save(tmp_path / "again.safetensors")
    assert out.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    solver = ("ula", "--set", "step_size=0.01", "--steps", 3) if "energy" in name else ("probability-flow",)
    code, _, err = run(capsys, "sample", name, "--param", f"weights={out}", "--solver", *solver, "--chains", 4)
    assert code == 0, err


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_killed_fit_goes_on_from_its_checkpoint(capsys, tmp_path, name):
    data, saved, out = write(tmp_path, "npy", rows()), tmp_path / "c", tmp_path / "w.safetensors"
    settings = {"steps": 6, "width": 16}

    def kill(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stk.train(name, read_array(data), report=kill, checkpoint=saved, **settings)
    fit = ("fit", name, "--data", data, *(f"--set={k}={v}" for k, v in settings.items()), "--checkpoint", saved)
    code, _, told = run(capsys, *fit, "-o", out)
    assert code == 0, told
    assert "step 3 " not in told
    assert "step 4 " in told
    stk.train(name, read_array(data), **settings).save(tmp_path / "straight.safetensors")
    assert out.read_bytes() == (tmp_path / "straight.safetensors").read_bytes()
    code, _, err = run(capsys, *fit, "--set", "smoothing=0.3", "-o", tmp_path / "other.safetensors")
    assert code == 1
    assert "another run" in err
    assert "smoothing" in err


def test_a_trainer_without_checkpoints_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FromNoise, "train", lambda _, data=None, *, seed=0, report=None: Stored("digits-flow", {}, {}))
    code, _, err = run(capsys, "fit", "digits-flow", "--checkpoint", "c")
    assert code == 2
    assert "keeps no checkpoints" in err
    assert run(capsys, "fit", "digits-flow")[0] == 0


@pytest.mark.parametrize("name", TRAINABLE)
def test_without_data_the_models_own_are_used(name):
    stored = stk.train(name, steps=1, width=8)
    assert stored.settings["event_shape"] == [1, 8, 8]
    assert "--data" not in stored.notes["command"]


def test_a_csv_without_headings_and_one_column(tmp_path):
    (tmp_path / "x.csv").write_text("1\n2\n3.5\n")
    torch.testing.assert_close(read_array(tmp_path / "x.csv"), torch.tensor([[1.0], [2.0], [3.5]]).double())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not an array", "can be read"),
        (b"", "can be read"),
        (np.zeros(5), "n, 1"),
        (np.zeros((5, 2), dtype=complex), "real numbers"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.array([[{}]], dtype=object), "can be read"),
        (np.full((9, 2), np.nan), "finite"),
        (np.ones((9, 2)), "differ"),
        (np.ones((1, 2)), "two rows"),
    ],
)
def test_bad_data_are_wrong_use(capsys, tmp_path, content, said):
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    code, _, err = run(capsys, "fit", "digits-flow", "--data", path, *SHORT, "-o", tmp_path / "w.safetensors")
    assert code == 2
    assert "data" in err
    assert said in err
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "digits-flaw"), "digits-flow"),
        (("fit", "ring-mixture"), "scoretk/digits-energy"),
        (("fit", "digits-flow", "--set", "step=3"), "steps"),
        (("fit", "digits-flow", "--set", "steps=-3"), "steps"),
        (("fit", "digits-flow", "--set", "steps=three"), "steps"),
        (("fit", "digits-flow", "--seed", "-1"), "seed"),
        (("fit", "digits-flow", "--data", "nowhere.npy"), "nowhere.npy"),
        (("fit", "digits-flow", "--data", "x.pickle"), ".csv"),
        (("fit", "digits-flow", "-o", "w.pt"), ".safetensors"),
        (("fit", "digits-flow", "-o", "no/folder/w.safetensors"), "folder"),
    ],
)
def test_wrong_use_says_what_is_right(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2, err
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_several_arrays_need_a_name_and_outputs_are_kept(capsys, tmp_path):
    data, out = write(tmp_path, "npz", rows(), y=rows(9)), tmp_path / "w.safetensors"
    start = ("fit", "digits-flow", "--data", data, *SHORT, "-o", out)
    code, _, err = run(capsys, *start)
    assert code == 2
    assert "x, y" in err
    assert run(capsys, *start, "--array", "z")[0] == 2
    assert run(capsys, *start, "--array", "y")[0] == 0
    before = out.read_bytes()
    code, _, err = run(capsys, *start, "--array", "x")
    assert code == 2
    assert "--force" in err
    assert out.read_bytes() == before
    assert run(capsys, *start, "--array", "x", "--force")[0] == 0
    assert out.read_bytes() != before


def test_a_trainer_that_diverges_is_a_failed_run(capsys, tmp_path):
    np.save(tmp_path / "x.npy", rows())
    fit = ("fit", "digits-energy", "--data", tmp_path / "x.npy", "-o", tmp_path / "w.safetensors")
    code, _, err = run(capsys, *fit, *SHORT, "--set", "step_size=1e30")
    assert code == 1, err
    assert not (tmp_path / "w.safetensors").exists()


def test_a_spec_with_a_trainer_takes_weights():
    given = {"name": "m", "family": "f", "factory": "p:b", "provides": {"energy"}, "event_shape": (2,), "summary": "s"}
    with pytest.raises(stk.InvalidArgument, match="weights"):
        stk.ModelSpec(**given, trainer="p:train")
    with pytest.raises(stk.InvalidArgument, match="trainer"):
        stk.ModelSpec(**given, trainer="train", parameters={"weights": None})
    assert stk.ModelSpec(**given, trainer="p:train", parameters={"weights": None}).as_dict()["trainer"] == "p:train"


def test_stored_saves_itself(tmp_path):
    Stored("m", {}, {"w": torch.ones(2)}).save(tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors", "m").weights["w"].tolist() == [1, 1]
