"""Weights in a folder and back: the same bits, a field of a registered model or of the caller's, and no other field."""

import sys
import types
from importlib import import_module

import pytest
import torch

import scoretk as stk
from scoretk.core import anatomy
from scoretk.errors import InvalidArgument, MissingDependency, UnknownName

BRINGS = [
    (
        "a folder, or a repository of the Hub",
        "stk.load_pretrained(folder)",
        "bits of what `stk.save_pretrained` wrote; the Hub's errors",
        "huggingface_hub==2.4.0",
        [
            "test_a_field_of_the_callers_own_comes_back",
            "test_a_repository_of_the_hub_is_a_folder_of_this_form",
            "test_errors_of_the_hub_say_what_to_do",
        ],
    )
]


def network(width=8):
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return torch.nn.Sequential(
            torch.nn.Linear(2, width), torch.nn.SiLU(), torch.nn.Linear(width, 2)
        )


class Net(torch.nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = network(width)

    def forward(self, x, t):
        return self.layers(x) * t[:, None]


def diffusion(width=8, predicts="noise"):
    return stk.Diffusion(Net(width), (2,), predicts=predicts)


X = torch.linspace(-1, 1, 6).reshape(3, 2)


@pytest.fixture
def trained():
    field = diffusion()
    with torch.no_grad():
        for i, p in enumerate(field.net.parameters()):
            p.add_(0.1 * (i + 1))
    return field


def test_a_field_of_the_callers_own_comes_back(trained, tmp_path):
    folder = stk.save_pretrained(trained, tmp_path / "a", settings={"width": 8}, card="A test.")
    assert {f.name for f in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert "A test." in (folder / "README.md").read_text()
    for given in (diffusion(), diffusion):  # a field, or a function of the settings
        found = stk.load_pretrained(folder, given)
        assert torch.equal(found.velocity(X, 0.3), trained.velocity(X, 0.3))
    assert not torch.equal(diffusion().velocity(X, 0.3), trained.velocity(X, 0.3))


def test_a_registered_model_comes_back_by_its_name(tmp_path):
    field = stk.load("digits-energy")
    with torch.no_grad():
        for p in anatomy.modules_of(field)[0].parameters():
            p.mul_(1.01)
    folder = stk.save_pretrained(field, tmp_path, model="digits-energy")
    found = stk.load_pretrained(folder)
    x = torch.zeros(2, *field.event_shape)
    assert torch.equal(found.energy(x), field.energy(x))


def test_what_is_another_field_is_refused(trained, tmp_path):
    folder = stk.save_pretrained(trained, tmp_path)
    with pytest.raises(InvalidArgument, match="answers otherwise"):
        stk.load_pretrained(folder, scaled())
    with pytest.raises(InvalidArgument, match="stored shapes"):
        stk.load_pretrained(folder, diffusion(9))
    with pytest.raises(InvalidArgument, match="stored weights"):
        stk.load_pretrained(folder, stk.Diffusion(Other(), (2,)))
    with pytest.raises(InvalidArgument, match="a function that makes one"):
        stk.load_pretrained(folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9] + bytes(9))
    with pytest.raises(InvalidArgument, match="save_pretrained wrote"):
        stk.load_pretrained(folder, diffusion())


def scaled():
    """A field of the same weights, that answers otherwise."""
    net = Net()
    net.forward = lambda x, t: 2 * net.layers(x) * t[:, None]
    return stk.Diffusion(net, (2,))


class Other(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.other = network()

    def forward(self, x, t):
        return self.other(x)


def test_what_cannot_be_stored_is_refused(trained, tmp_path):
    with pytest.raises(InvalidArgument, match="a field with modules"):
        stk.save_pretrained(stk.Energy(lambda x: x.square().sum(1), (2,)), tmp_path)
    with pytest.raises(InvalidArgument, match="plain values"):
        stk.save_pretrained(trained, tmp_path, settings={"net": trained})
    with pytest.raises(UnknownName, match="no-such-model"):
        stk.save_pretrained(trained, tmp_path, model="no-such-model")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="folder that can be written"):
        stk.save_pretrained(trained, tmp_path / "file" / "under")


def test_a_repository_of_the_hub_is_a_folder_of_this_form(trained, tmp_path, monkeypatch):
    folder = stk.save_pretrained(trained, tmp_path)
    hub, asked = types.ModuleType("huggingface_hub"), []
    hub.snapshot_download = lambda name, **options: asked.append((name, options)) or str(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    found = stk.load_pretrained("someone/field", diffusion(), revision="v1")
    assert torch.equal(found.velocity(X, 0.3), trained.velocity(X, 0.3))
    assert asked[0][0] == "someone/field"
    assert asked[0][1]["revision"] == "v1"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"scoretk\[hub\]"):
        stk.load_pretrained("someone/field", diffusion())
    with pytest.raises(InvalidArgument, match="a folder, or the id"):
        stk.load_pretrained(str(tmp_path / "nothing" / "here"))


HUB_ERRORS = {
    "RepositoryNotFoundError": "exists and that you may read",
    "GatedRepoError": "hf auth login",
    "RevisionNotFoundError": "revision: expected a branch, a tag or a commit",
    "LocalEntryNotFoundError": "can be reached from here",
    "OfflineModeIsEnabled": "path of a copy",
    "HfHubHTTPError": "The hub said",
    "HFValidationError": "exists and that you may read",
}


@pytest.mark.parametrize("name", HUB_ERRORS)
def test_errors_of_the_hub_say_what_to_do(name, monkeypatch):
    """The hub's own classes, raised where it would."""
    hub = pytest.importorskip("huggingface_hub")
    kind = getattr(import_module("huggingface_hub.errors"), name)

    def fails(*args, **options):
        raise kind.__new__(kind, "it broke")

    monkeypatch.setattr(hub, "snapshot_download", fails)
    with pytest.raises(InvalidArgument, match=HUB_ERRORS[name]):
        stk.load_pretrained("someone/field", diffusion(), revision="v9")


def test_a_repository_without_a_connection(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    constants = import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InvalidArgument, match="can be reached from here"):
        stk.load_pretrained("someone/field", diffusion())
    with pytest.raises(InvalidArgument, match="exists and that you may read"):
        stk.load_pretrained("some one/field", diffusion())
