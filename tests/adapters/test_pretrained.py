"""Weights in a folder and back: the same bits, a field of a registered model or of the caller's, and no other field."""

import inspect
import sys
import types
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import torch

import scoretk as stk
from scoretk.core import modules
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
            "test_a_folder_is_published_where_it_is_asked_for",
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
        for p in modules.modules_of(field)[0].parameters():
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


def test_a_folder_is_published_where_it_is_asked_for(trained, tmp_path, monkeypatch):
    """By calls that the library itself takes, of the three files alone; and read back from there."""
    hub, made, there = types.ModuleType("huggingface_hub"), [], tmp_path / "there"
    hub.create_repo = lambda *args, **options: made.append((args, options))

    def upload_folder(*, repo_id, folder_path, allow_patterns):
        assert repo_id == "someone/field"
        there.mkdir()
        for name in allow_patterns:
            (there / name).write_bytes((folder_path / name).read_bytes())

    hub.upload_folder = upload_folder
    hub.snapshot_download = lambda name, **options: str(there)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    stk.save_pretrained(trained, tmp_path / "a", push_to_hub="someone/field")
    assert made == [(("someone/field",), {"exist_ok": True})]
    found = stk.load_pretrained("someone/field", diffusion())
    assert torch.equal(found.velocity(X, 0.3), trained.velocity(X, 0.3))


def test_what_is_called_to_publish_is_the_hubs(trained):
    hub = pytest.importorskip("huggingface_hub")
    inspect.signature(hub.create_repo).bind("someone/field", exist_ok=True)
    told = {"repo_id": "someone/field", "folder_path": ".", "allow_patterns": ["README.md"]}
    inspect.signature(hub.upload_folder).bind(**told)


@pytest.mark.parametrize("kind", [OSError, RuntimeError, ValueError, KeyError, AssertionError])
def test_a_hub_that_takes_nothing_leaves_the_folder(trained, tmp_path, monkeypatch, kind):
    hub, error = types.ModuleType("huggingface_hub"), kind("403 forbidden")

    def refuses(*args, **options):
        raise error

    hub.create_repo = refuses
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(InvalidArgument, match=r"may write to.*hf auth login.*403") as told:
        stk.save_pretrained(trained, tmp_path / "a", push_to_hub="someone/field")
    assert told.value.__cause__ is error
    stk.load_pretrained(tmp_path / "a", diffusion())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"scoretk\[hub\]"):
        stk.save_pretrained(trained, tmp_path / "b", push_to_hub="someone/field")
    with pytest.raises(InvalidArgument, match="user/name"):
        stk.save_pretrained(trained, tmp_path / "b", push_to_hub="field")
    assert not (tmp_path / "b").exists()


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


@pytest.mark.parametrize(
    "other",
    [
        lambda net: stk.Diffusion(net, (2,), predicts="data"),
        lambda net: stk.Diffusion(net, (2,), predicts="velocity"),
        lambda net: stk.Diffusion(net, (2,), predicts="score"),
        lambda net: stk.Diffusion(net, (2,), predicts="v"),
        lambda net: stk.Diffusion(net, (2,), stk.EDM()),
        lambda net: stk.Diffusion(net, (2,), stk.Linear()),
        lambda net: stk.Diffusion(net, (2,), stk.Cosine()),
        lambda net: stk.Velocity(net, (2,)),
    ],
)
def test_another_path_or_prediction_of_the_same_weights_is_refused(other, trained, tmp_path):
    folder, given = stk.save_pretrained(trained, tmp_path), Net()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    with pytest.raises(InvalidArgument, match="the field whose weights these are"):
        stk.load_pretrained(folder, other(given))
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())


class OfClasses(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x, t, y):
        return self.layers(x) * (1 + y[:, None])


@pytest.mark.parametrize("interval", [None, (0.06, 100.0), (0.0, 40.0)])
def test_another_interval_of_guidance_is_refused(interval, tmp_path):
    """Of noise levels near the ends, which differ from the stored one at few times only."""

    def made(interval):
        null = {"y": torch.tensor(0.0)}
        return stk.guided(
            stk.Diffusion(OfClasses(), (2,)), weight=3.0, null=null, interval=interval
        )

    stored = made((0.06, 40.0))
    folder = stk.save_pretrained(stored, tmp_path, cond={"y": torch.tensor([1.0, 2.0, 3.0])})
    with pytest.raises(InvalidArgument, match="answers otherwise"):
        stk.load_pretrained(folder, made(interval))
    stk.load_pretrained(folder, made((0.06, 40.0)))


def test_another_base_is_refused(tmp_path):
    folder = stk.save_pretrained(stk.Velocity(Net(), (2,)), tmp_path)
    samples = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InvalidArgument, match="answers otherwise"):
        stk.load_pretrained(folder, stk.Velocity(Net(), (2,), base=samples))


class Told(torch.nn.Module):
    """A network that fails in its own way where it is not told y."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x, t, y=None):
        return self.layers(x) + torch.cat([y, y], 1)


def test_fields_that_are_told_conditions(tmp_path):
    """Without rows of these the path, the shape and the prediction are compared; with some the answers."""
    told, folder = stk.Diffusion(Told(), (2,)), tmp_path / "a"
    with pytest.raises(InvalidArgument, match=r"a few rows of each condition.*cond=\{\} stores it"):
        stk.save_pretrained(told, folder)
    with pytest.raises(
        InvalidArgument, match=r"conditions at which .* answers, got \{'y': \(3, 5\)\}"
    ):
        stk.save_pretrained(told, folder, cond={"y": torch.zeros(3, 5)})
    assert not folder.exists()
    with pytest.warns(UserWarning, match="did not answer without conditions"):
        stk.save_pretrained(told, folder, cond={})
    with pytest.warns(UserWarning, match="holds no answers of its field"):
        stk.load_pretrained(folder, stk.Diffusion(Told(), (2,)))
    for other in (
        stk.Diffusion(Told(), (2,), predicts="data"),
        stk.Diffusion(Told(), (2,), stk.EDM()),
        stk.Diffusion(Told(), (3,)),
    ):
        with warnings.catch_warnings():  # that no answers are stored
            warnings.simplefilter("ignore", UserWarning)
            with pytest.raises(InvalidArgument, match="the field whose weights these are"):
                stk.load_pretrained(folder, other)
    y = torch.tensor([[1.0], [2.0], [3.0]])
    folder = stk.save_pretrained(stk.Diffusion(Told(), (2,)), tmp_path / "b", cond={"y": y})
    assert (
        stk.load_pretrained(folder, stk.Diffusion(Told(), (2,)))
        .net.layers[0]
        .weight.isfinite()
        .all()
    )
    twice = Told()
    twice.forward = lambda x, t, y: Told.forward(twice, x, t, 2 * y)
    with pytest.raises(InvalidArgument, match="answers otherwise"):
        stk.load_pretrained(folder, stk.Diffusion(twice, (2,)))


class Fails(Net):
    """A network that fails in a way that has nothing to do with conditions, at some times."""

    def __init__(self, error, before=1.0):
        super().__init__()
        self.error, self.before = error, before

    def forward(self, x, t):
        if bool((t < self.before).any()):
            raise self.error
        return super().forward(x, t)


@pytest.mark.parametrize("cond", [None, {}])
@pytest.mark.parametrize("before", [1.0, 0.01])
@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel for it"), KeyError("scale"), TypeError("of a NoneType")]
)
def test_a_failure_of_another_kind_is_no_want_of_conditions(error, before, cond, tmp_path):
    with pytest.raises(InvalidArgument, match="answers at points") as told:
        stk.save_pretrained(stk.Diffusion(Fails(error, before), (2,)), tmp_path / "a", cond=cond)
    assert told.value.__cause__ is error
    assert str(error) in str(told.value)
    assert not (tmp_path / "a").exists()


class Wide(Net):
    """A network that takes a condition, beside which it fails in the way of any matrix."""

    def forward(self, x, t, y=None):
        return super().forward(x if y is None else x + y, t) @ torch.ones(3, 3)


def test_what_fails_of_itself_is_told_although_it_takes_a_condition(tmp_path):
    with pytest.raises(InvalidArgument, match=r"shapes cannot.*If it needs y: cond= takes"):
        stk.save_pretrained(stk.Diffusion(Wide(), (2,)), tmp_path, cond={})
    with pytest.raises(InvalidArgument, match="shapes cannot") as told:
        stk.save_pretrained(stk.Diffusion(Wide(), (2,)), tmp_path, cond={"y": torch.zeros(3, 2)})
    assert isinstance(told.value.__cause__, RuntimeError)


class ByKey(Net):
    def forward(self, x, t, **cond):
        return super().forward(x, t) + cond["y"]


def guided():
    null = {"y": torch.tensor(0.0)}
    return stk.guided(stk.Diffusion(OfClasses(), (2,)), weight=3.0, null=null)


def tilted():
    net, prior = network(), stk.Energy(lambda x: x.square().sum(1), (2,))
    return stk.posterior(prior, lambda x, y: -(net(x) - y).square().sum(1))


WANTING = {
    "an argument": lambda: stk.Diffusion(OfClasses(), (2,)),
    "None in its place": lambda: stk.Diffusion(Told(), (2,)),
    "a key": lambda: stk.Diffusion(ByKey(), (2,)),
    "guided": guided,
    "a likelihood's": tilted,
}


@pytest.mark.parametrize("kind", WANTING)
def test_a_want_of_conditions_is_told_and_kept_as_the_cause(kind, tmp_path):
    with pytest.raises(InvalidArgument, match="a few rows of each condition") as told:
        stk.save_pretrained(WANTING[kind](), tmp_path / "a")
    assert told.value.__cause__ is not None
    assert str(told.value.__cause__) in str(told.value)
    with pytest.warns(UserWarning, match="did not answer without conditions.*It raised"):
        stk.save_pretrained(WANTING[kind](), tmp_path / "a", cond={})


def test_a_network_of_diffusers_wants_its_classes(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        unet = diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=11,
        )  # fmt: skip
    field = stk.from_diffusers(unet, diffusers.DDIMScheduler(clip_sample=False))
    with pytest.raises(InvalidArgument, match=r"a few rows of each condition.*class_labels"):
        stk.save_pretrained(field, tmp_path)
    stk.save_pretrained(field, tmp_path, cond={"class_labels": torch.tensor([1, 2])})


def test_a_flow_wants_its_context(tmp_path):
    zuko = pytest.importorskip("zuko")
    with torch.random.fork_rng():
        field = stk.from_flow(zuko.flows.NSF(2, context=3))
    with pytest.raises(InvalidArgument, match=r"a few rows of each condition.*conditions: c"):
        stk.save_pretrained(field, tmp_path)
    stk.save_pretrained(field, tmp_path, cond={"c": torch.zeros(2, 3)})


def test_what_raises_when_it_is_loaded_is_told(trained, tmp_path):
    folder, error = stk.save_pretrained(trained, tmp_path), RuntimeError("no kernel for it")
    given = stk.Diffusion(Fails(error), (2,))
    before = given.net.layers[0].weight.clone()
    with pytest.raises(InvalidArgument, match="no kernel for it") as told:
        stk.load_pretrained(folder, given)
    assert told.value.__cause__ is error
    assert torch.equal(given.net.layers[0].weight, before)
    with pytest.raises(InvalidArgument, match=r"It wants conditions.*'y'"):
        stk.load_pretrained(folder, stk.Diffusion(OfClasses(), (2,)))


def test_of_a_field_of_states_no_score_is_asked_beyond_them(tmp_path):
    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Parameter(torch.arange(3.0))

        def forward(self, x):
            assert bool((x.sum(2) == 1).all()), "no states"
            return self.table[x.argmax(2)].sum(1)

    folder = stk.save_pretrained(stk.Discrete(stk.Energy(Table(), (2, 3)), "one-hot"), tmp_path)
    stk.load_pretrained(folder, stk.Discrete(stk.Energy(Table(), (2, 3)), "one-hot"))


@pytest.mark.parametrize("wrong", [scaled, lambda: diffusion(9)])
def test_a_refusal_leaves_the_field_as_it_was(wrong, trained, tmp_path):
    """Of the second the last layer's bias fits: torch puts in what does, and then raises an error."""
    folder, given = stk.save_pretrained(trained, tmp_path), wrong()
    torch.nn.init.ones_(given.net.layers[2].bias)
    with pytest.raises(InvalidArgument):
        stk.load_pretrained(folder, given)
    assert bool((given.net.layers[2].bias == 1).all())


def test_a_field_without_memory_is_told(trained, tmp_path):
    folder, bare = stk.save_pretrained(trained, tmp_path), diffusion()
    bare.net.to("meta")
    with pytest.raises(InvalidArgument, match="to_empty"):
        stk.load_pretrained(folder, bare)


def test_an_answer_that_is_nan_is_the_same_answer(tmp_path):
    class Halved(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.rate * x).sum(1) - x[:, 0].log()

    folder, given = stk.save_pretrained(stk.Energy(Halved(), (2,)), tmp_path), Halved()
    torch.nn.init.zeros_(given.rate)
    found = stk.load_pretrained(folder, stk.Energy(given, (2,)))
    assert bool(found.energy(-torch.ones(1, 2)).isnan())
    assert torch.equal(given.rate, torch.ones(2))


def test_weights_of_another_precision_are_told(tmp_path):
    folder = stk.save_pretrained(stk.Diffusion(Net().double(), (2,)), tmp_path / "a")
    with pytest.warns(
        UserWarning, match="rounded: layers.0.bias from torch.float64 to torch.float32"
    ):
        stk.load_pretrained(folder, diffusion())
    folder = stk.save_pretrained(diffusion(), tmp_path / "b")
    assert (
        stk.load_pretrained(folder, stk.Diffusion(Net().double(), (2,))).net.layers[0].weight.dtype
        == torch.float64
    )


def test_what_would_come_back_as_something_else_is_refused(trained, tmp_path):
    for settings in ({4: 4}, {"m": {4: 4}}, {"m": [{"a": {1: 2}}]}, {"m": float("nan")}):
        with pytest.raises(InvalidArgument, match="plain values"):
            stk.save_pretrained(trained, tmp_path, settings=settings)
    folder = stk.save_pretrained(trained, tmp_path, settings={"width": 8})
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"width": 8', '"width": 9'))
    with pytest.raises(InvalidArgument, match="was edited"):
        stk.load_pretrained(folder, diffusion)
    config.unlink()
    stk.load_pretrained(folder, diffusion)


class Extra(Net):
    def get_extra_state(self):
        return {"a": 1}


class Lazy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.LazyLinear(2)

    def forward(self, x, t):
        return self.layer(x)


class Spectral(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("c", torch.zeros(2, dtype=torch.complex128))


@pytest.mark.parametrize(
    ("net", "says"),
    [(Extra, "is dict"), (Lazy, "Call the network once"), (Spectral, "safetensors")],
)
def test_state_that_is_no_stored_tensor_is_refused(net, says, tmp_path):
    with pytest.raises(InvalidArgument, match=says):
        stk.save_pretrained(stk.Diffusion(net(), (2,)), tmp_path)


class Bonds(torch.nn.Module):
    """An energy of states alone: it looks them up."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))

    def forward(self, x):
        return (x * self.table).sum((1, 2))


def test_a_discrete_field_comes_back(tmp_path):
    folder = stk.save_pretrained(stk.Discrete(stk.Energy(Bonds(), (2, 3)), "one-hot"), tmp_path)
    given = Bonds()
    torch.nn.init.zeros_(given.table)
    found = stk.load_pretrained(folder, stk.Discrete(stk.Energy(given, (2, 3)), "one-hot"))
    assert torch.equal(given.table, Bonds().table)
    given.forward = lambda x: 2 * Bonds.forward(given, x)
    with pytest.raises(InvalidArgument, match="answers otherwise"):
        stk.load_pretrained(folder, found)


class Nearly(torch.nn.Module):
    """A network with a constant that is no weight."""

    def __init__(self, factor=1.0, dtype=torch.float32, rows=0.0):
        super().__init__()
        self.layers, self.factor, self.rows = network().to(dtype), factor, rows

    def forward(self, x, t):
        found = self.layers(x.to(self.layers[0].weight.dtype)).to(x) * self.factor
        return torch.cat([(1 + self.rows) * found[:1], 3 * found[1:]])


@pytest.mark.parametrize(
    ("dtype", "told"), [(torch.float64, 1e-5), (torch.float32, 5e-4), (torch.bfloat16, 0.5)]
)
def test_answers_are_compared_in_the_precision_that_they_are_made_in(dtype, told, tmp_path):
    def made(*args):
        return stk.Diffusion(Nearly(*args), (2,))

    folder = stk.save_pretrained(made(1.0, dtype), tmp_path)
    stk.load_pretrained(folder, made(1.0, dtype))
    stk.load_pretrained(folder, made(1 + torch.finfo(dtype).eps / 2, dtype))
    with pytest.raises(InvalidArgument, match="answers otherwise"):
        stk.load_pretrained(folder, made(1 + told, dtype))
    with pytest.raises(InvalidArgument, match="answers otherwise"):  # of the least row alone
        stk.load_pretrained(folder, made(1.0, dtype, told))


class Uneven(torch.nn.Module):
    """Answers whose rows are of different sizes, and whose last entries are nothing beside their first."""

    def __init__(self, shape, row=0.0, entry=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        sizes = torch.logspace(0, -8, torch.Size(shape).numel())
        sizes[-1] += entry
        self.sizes, self.row = Whole(sizes.reshape(shape)), row

    def forward(self, x, t):
        rows = 0.1 ** (torch.arange(len(x)) % 2).reshape(-1, *(1 for _ in x.shape[1:]))
        return self.weight * rows * (1 + self.row * (rows < 1)) * self.sizes.value


@dataclass(frozen=True)
class Whole:
    """A tensor that is no state of a network."""

    value: torch.Tensor


SHAPES = [(), (3,), (2, 2), (1, 2, 3), (3, 2, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_answers_are_compared_by_the_largest_of_each_event_whatever_its_shape(shape, tmp_path):
    """A part of 5e-6 of that is rounding, in whichever entry; one of 1e-2 is another field, in whichever row."""

    def made(**options):
        return stk.Diffusion(Uneven(shape, **options), shape)

    folder = stk.save_pretrained(made(), tmp_path)
    stk.load_pretrained(folder, made(row=5e-6))
    stk.load_pretrained(folder, made(entry=5e-6))
    for other in ({"row": 1e-2}, {"entry": 1e-2}):
        with pytest.raises(InvalidArgument, match="answers otherwise"):
            stk.load_pretrained(folder, made(**other))


class FailsOnStates(torch.nn.Module):
    """A network that serves gradients between states, and fails at them."""

    def __init__(self, error):
        super().__init__()
        self.table, self.error = torch.nn.Parameter(torch.ones(2)), error

    def forward(self, x):
        if bool((x == x.round()).all()):
            raise self.error
        return (x * self.table).sum(1)


@pytest.mark.parametrize("error", [RuntimeError("no kernel for it"), ValueError("of the model")])
def test_a_field_of_states_that_fails_at_them_is_not_stored(error, tmp_path):
    field = stk.Discrete(stk.Energy(FailsOnStates(error), (2,)), (0.0, 1.0))
    with pytest.raises(InvalidArgument, match="answers at points") as told:
        stk.save_pretrained(field, tmp_path / "a")
    assert told.value.__cause__ is error
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["a file", "nothing", "nothing/at/all"])
@pytest.mark.parametrize("kind", [str, Path])
def test_what_is_no_folder_is_told_as_such(kind, name, tmp_path, trained):
    (tmp_path / "a file").write_text("")
    with pytest.raises(InvalidArgument, match=r"a folder, or the id of a repository, user/name"):
        stk.load_pretrained(kind(tmp_path / name), trained)
