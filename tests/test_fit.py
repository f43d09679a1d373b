"""`scoretk fit`: a user's own array in, weights out that `load` takes; and every way in which that can go wrong."""

import json

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.core.arrayfiles import read_array
from scoretk.models.digits.flow_matching import FromNoise
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.plugins.models import train
from tests.marks import slow_but, slow_rows_but
from tests.test_cli import run

SHORT = ("--set", "steps=3", "--set", "width=16")
TRAINABLE = [
    e.name for e in stk.list_models() if e.id.startswith("scoretk/") and stk.describe(e.id).trainer
]
ONE_HOT = ["digits-transformer"]
BINARY = ["digits-fvsbn", "digits-nade", "digits-rbm", "digits-vae-binary"]
LABELLED = ["digits-class-diffusion", "digits-jem"]
OF_EACH_FAMILY = {stk.describe(name).family: name for name in reversed(TRAINABLE)}.values()
EVERY = slow_but(TRAINABLE, *OF_EACH_FAMILY, "digits-class-diffusion", "digits-flow-classes")
"""By default a model a family, and those that take labels or a start: what a fit asks of a trainer is the family's."""

CHAINS = {"chains": 30, "chain_steps": 2}
LATENT = {"width": 8, "latent": 2}
GAME = {"width": 8, "critic_width": 8, "latent": 3, "refine": 2}
FLOW = {"width": 8, "layers": 2}
SMALL = {
    "digits-energy": {"width": 8, **CHAINS},
    "digits-jem": {"width": 8, **CHAINS},
    "digits-rbm": {"hidden": 4, "chains": 8},
    "digits-vae": LATENT,
    "digits-vae-binary": LATENT,
    "digits-latent-energy": {**LATENT, "prior_width": 4, **CHAINS},
    "digits-gan": GAME,
    "digits-wgan": GAME,
    "digits-fvsbn": {},
    "digits-pixelcnn": {"width": 4, "blocks": 1},
    "digits-nice": FLOW,
    "digits-realnvp": FLOW,
    "digits-maf": FLOW,
    "digits-spline": FLOW,
}
"""Settings that make a training short; {"width": 8} for all others."""


def rows(n=40, shape=(3,), seed=0):
    return np.random.default_rng(seed).normal(5.0, 2.0, (n, *shape))


def write(folder, ending, array, stem="x", **more):
    path = folder / f"{stem}.{ending}"
    if ending == "npy":
        np.save(path, array)
    elif ending == "npz":
        np.savez(path, x=array, **more)
    else:
        np.savetxt(path, array, delimiter=",", header="a,b,c", comments="", fmt="%.17g")
    return path


def of_a_user(folder, name, seed=0):
    """A user's data for this model as a file, and the settings that train on them: of any shape, for the PixelCNN images."""
    shape = (1, 4, 5) if name == "digits-pixelcnn" else (2, 3)
    array = rows(40, shape, seed)
    if name in ONE_HOT:
        array = np.eye(4, dtype=np.uint8)[np.clip(array // 3, 0, 3).astype(int)]
        shape = array.shape[1:]
    data = write(folder, "npy", (array > 5).astype(np.uint8) if name in BINARY else array)
    settings = {"steps": 4, **SMALL.get(name, {"width": 8})}
    if name in LABELLED:
        settings["labels"] = str(write(folder, "npy", np.arange(40) % 3, "labels"))
    if name == "digits-flow-classes":
        settings["start"] = str(write(folder, "npy", rows(30, shape) - 4, "start"))
    return data, settings, shape


def command(name, data, settings, *more):
    return ("fit", name, "--data", data, *(f"--set={k}={v}" for k, v in settings.items()), *more)


def natural_solver(spec):
    """What a model of this family, that offers this, is sampled by."""
    provides = spec.provides
    if spec.family == "score":
        return "annealed-langevin", "--set", "levels=3", "--set", "steps_per_level=2"
    if "velocity" in provides:
        return "probability-flow", "--set", "method=euler", "--set", "steps=3"
    if "states" in provides:
        return "block-gibbs" if "gibbs" in provides else "gibbs-with-gradients", "--steps", 3
    return "ula", "--set", "step_size=0.01", "--steps", 3


@pytest.mark.parametrize("name", EVERY)
def test_fit_writes_weights_of_a_users_data_that_load_takes(capsys, tmp_path, name):
    (data, settings, shape), out = of_a_user(tmp_path, name), tmp_path / "w.safetensors"
    code, printed, told = run(capsys, *command(name, data, settings, "-o", out, "--json"))
    assert code == 0, told
    assert json.loads(printed)["output"] == str(out)
    assert "step 4 of 4  loss" in told
    field = stk.load(name, weights=str(out))
    assert getattr(field, "data_shape", field.event_shape) == shape
    made = read_weights(out, name).notes["command"]
    assert made.startswith(f"scoretk fit {name} --data FILE --seed 0 --set ")
    assert all(
        f"--set {k}={'FILE' if k in ('labels', 'start') else v}" in made
        for k, v in settings.items()
    )
    spec = stk.describe(name)
    solver = natural_solver(spec)
    code, _, err = run(
        capsys, "sample", name, "--param", f"weights={out}", "--solver", *solver, "--chains", 4
    )
    assert code == 0, err
    if "draw" in spec.provides:
        assert field.draw(4, stk.Noise(0, 4)).isfinite().all()


@pytest.mark.parametrize("ending", ["npy", "npz", "csv"])
def test_files_of_every_kind_train_alike(capsys, tmp_path, ending):
    data, out = write(tmp_path, ending, rows()), tmp_path / "w.safetensors"
    assert run(capsys, *command("digits-flow", data, {"steps": 3, "width": 8}, "-o", out))[0] == 0
    again = train("digits-flow", torch.from_numpy(rows()), steps=3, width=8)
    again.save(tmp_path / "again.safetensors")
    assert out.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


KILLED = [(name, 2, {}) for name in TRAINABLE]
KILLED += [
    (name, 5, {}) for name in ("digits-gan", "digits-wgan")
]  # the critic's turn alone, after the game's four steps
KILLED += [("digits-rbm", 2, {"method": method}) for method in ("cd", "tempered")]
QUICK = [(name, 2, {}) for name in OF_EACH_FAMILY if name != "digits-ffjord"] + [
    ("digits-gan", 5, {}),
    ("digits-rbm", 2, {"method": "tempered"}),
]


@pytest.mark.parametrize(("name", "evaluations", "more"), slow_rows_but(KILLED, *QUICK))
def test_a_killed_fit_goes_on_from_its_checkpoint(capsys, tmp_path, name, evaluations, more):
    (data, settings, _), saved, out = (
        of_a_user(tmp_path, name),
        tmp_path / "c",
        tmp_path / "w.safetensors",
    )
    settings, array, seen = settings | more, read_array(data), []

    def kill(progress):
        seen.append(progress)
        if len(seen) == evaluations:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stk.train(name, array, report=kill, checkpoint=saved, **settings)
    code, _, told = run(capsys, *command(name, data, settings, "--checkpoint", saved, "-o", out))
    assert code == 0, told
    assert told.splitlines()[0].startswith("step 3 " if evaluations == 2 else "step 1 ")
    stk.train(name, array, **settings).save(tmp_path / "straight.safetensors")
    assert out.read_bytes() == (tmp_path / "straight.safetensors").read_bytes()


@pytest.mark.parametrize("name", EVERY)
def test_a_checkpoint_serves_no_other_run(capsys, tmp_path, name):
    (data, settings, _), saved, out = (
        of_a_user(tmp_path, name),
        tmp_path / "c",
        tmp_path / "w.safetensors",
    )
    fit = command(
        name, data, settings | {"steps": 1} | ({"refine": 1} if "refine" in settings else {})
    )
    assert run(capsys, *fit, "--checkpoint", saved, "-o", out)[0] == 0
    before = saved.read_bytes()

    def refused(*more):
        code, _, err = run(
            capsys, *fit, *more, "--checkpoint", saved, "-o", tmp_path / "other.safetensors"
        )
        assert saved.read_bytes() == before
        assert not (tmp_path / "other.safetensors").exists()
        return code == 1 and "another run" in err

    assert refused("--set", "steps=2")
    for given in {"labels", "start"} & settings.keys():
        array = np.load(settings[given])
        np.save(tmp_path / "changed.npy", array[::-1])
        assert refused("--set", f"{given}={tmp_path / 'changed.npy'}")
    of_a_user(tmp_path, name, seed=1)
    assert refused()


@pytest.mark.thorough
@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_taken_as_a_tensor_or_from_a_file(capsys, tmp_path, name):
    data, settings, _ = of_a_user(tmp_path, name)
    known = torch.arange(40) % 3
    np.savetxt(tmp_path / "labels.csv", known, header="label", comments="")
    given = (
        settings["labels"],
        tmp_path / "labels.npy",
        tmp_path / "labels.csv",
        known,
        known.double(),
        known.numpy(),
    )
    found = [stk.train(name, read_array(data), **settings | {"labels": labels}) for labels in given]
    assert found[0].settings["classes"] == 3
    for stored in found[1:]:
        assert all(torch.equal(stored.weights[k], v) for k, v in found[0].weights.items())
        assert stored.notes == found[0].notes
    for bad, said in (
        ((np.arange(39),), "40 rows"),
        ((np.arange(40) + 0.5,), "whole"),
        ((np.arange(40) - 2,), "from 0"),
    ):
        wrong = settings | {"labels": write(tmp_path, "npy", *bad, stem="bad")}
        code, _, err = run(capsys, *command(name, data, wrong, "-o", tmp_path / "w.safetensors"))
        assert code == 2, err
        assert "labels" in err
        assert said in err
    code, _, err = run(capsys, *command(name, data, settings | {"labels": "nowhere.npy"}))
    assert code == 2
    assert "labels" in err
    code, _, err = run(capsys, "fit", name, "--set", f"labels={settings['labels']}")
    assert code == 2
    assert "data" in err


def test_a_trainer_without_checkpoints_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        FromNoise,
        "train",
        lambda _, data=None, *, seed=0, report=None: Stored("digits-flow", {}, {}),
    )
    code, _, err = run(capsys, "fit", "digits-flow", "--checkpoint", "c")
    assert code == 2
    assert "keeps no checkpoints" in err
    assert run(capsys, "fit", "digits-flow")[0] == 0


@pytest.mark.parametrize("name", EVERY)
def test_without_data_the_models_own_are_used(name):
    stored = stk.train(name, steps=1, **SMALL.get(name, {"width": 8}))
    assert stored.settings.get("data_shape", stored.settings.get("event_shape")) == [1, 8, 8]
    assert "--data" not in stored.notes["command"]


def test_a_csv_without_headings_and_one_column(tmp_path):
    (tmp_path / "x.csv").write_text("1\n2\n3.5\n")
    torch.testing.assert_close(
        read_array(tmp_path / "x.csv"), torch.tensor([[1.0], [2.0], [3.5]]).double()
    )


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
    code, _, err = run(
        capsys, "fit", "digits-flow", "--data", path, *SHORT, "-o", tmp_path / "w.safetensors"
    )
    assert code == 2
    assert "data" in err
    assert said in err
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("name", EVERY)
def test_every_model_refuses_data_that_it_cannot_learn_from(capsys, tmp_path, name):
    (data, settings, _), out = of_a_user(tmp_path, name), tmp_path / "w.safetensors"
    good = np.load(data)
    wrong = [good[:1], np.where(good == good.max(), np.nan, good), good.reshape(-1)]
    wrong += [good + 0.5] if name in BINARY else [np.full_like(good, 7)]
    for array in wrong:
        np.save(data, array)
        code, _, err = run(capsys, *command(name, data, settings, "-o", out))
        assert code == 2, err
        assert "data" in err
    if "start" in settings:
        np.save(data, rows(40, (5,)))
        code, _, err = run(capsys, *command(name, data, settings, "-o", out))
        assert code == 2, err
        assert "start" in err
    assert not out.exists()


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
    given = {
        "name": "m",
        "family": "f",
        "factory": "p:b",
        "provides": {"energy"},
        "event_shape": (2,),
        "summary": "s",
    }
    with pytest.raises(stk.InvalidArgument, match="weights"):
        stk.ModelSpec(**given, trainer="p:train")
    with pytest.raises(stk.InvalidArgument, match="trainer"):
        stk.ModelSpec(**given, trainer="train", parameters={"weights": None})
    assert (
        stk.ModelSpec(**given, trainer="p:train", parameters={"weights": None}).as_dict()["trainer"]
        == "p:train"
    )


def test_stored_saves_itself(tmp_path):
    Stored("m", {}, {"w": torch.ones(2)}).save(tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors", "m").weights["w"].tolist() == [1, 1]
