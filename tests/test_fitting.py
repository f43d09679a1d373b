"""The fit loop: any optimiser, players, early stopping, exact resume, several processes, and what it says on the way."""

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import scoretk as stk
from scoretk.learn import Player, Recipe, fit, processes
from scoretk.learn.resume import from_tensors, packed, to_tensors, unpacked
from scoretk.models.digits.flow_matching import FLOW
from scoretk.models.digits.stored import read_weights
from tests.marks import slow_but
from tests.processes import environment
from tests.trainings import (
    KINDS,
    PARTED,
    RECIPE,
    contrastive,
    deterministic,
    game,
    network,
    noisy,
    rows,
)

ROOT = Path(__file__).parent.parent
WHOLE = replace(PARTED, parts=1)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def near(a, b):
    return a.keys() == b.keys() and all(
        torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-5) for name in a
    )


class Weight(nn.Module):
    """Two equal weights."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value))


class Stop(Exception):
    """What a kill does to the loop."""


def stop_after(step):
    def report(progress):
        if progress.step >= step:
            raise Stop

    return report


def objective(path, *, scale=1.0, augment=None, activation=nn.SiLU, cd=None, seed=0):
    """A fit whose loss holds what it is given; the network starts elsewhere each time."""
    with torch.random.fork_rng([]):
        net = nn.Sequential(nn.Linear(2, 4), activation(), nn.Linear(4, 1))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape) * (next(OBJECTIVES) + i))
    field, state = stk.Energy(lambda x: net(x)[:, 0] + x.square().sum(1), (2,)), None
    if cd is not None:
        state = stk.ContrastiveDivergence(stk.ULA(0.1), steps=cd, start=stk.ReplayBuffer(32))

    def loss(x, _):
        x = x if augment is None else augment(x)
        return scale * field.energy(x) if state is None else state(field, x).loss

    recipe = Recipe(4, batch=8, evaluations=2, held_out=0.0)
    return fit(net, loss, rows(), recipe, checkpoint=path, state=state, seed=seed)


OBJECTIVES = itertools.count(1)


class TestResume:
    @pytest.mark.filterwarnings(
        "ignore:held_out"
    )  # of contrastive divergence: what is kept is not asked here
    @pytest.mark.thorough
    @pytest.mark.parametrize("recipe", slow_but([WHOLE, PARTED], PARTED), ids=["whole", "parts"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_run_stopped_anywhere_ends_with_the_bits_of_one_that_was_not(
        self, tmp_path, kind, recipe
    ):
        straight = KINDS[kind](recipe)
        for at in ([2, 4, 10], [12]):
            path = tmp_path / f"{at}.checkpoint"
            for step in at:
                with pytest.raises(Stop):
                    KINDS[kind](recipe, checkpoint=path, report=stop_after(step))
            told = []
            done = KINDS[kind](recipe, checkpoint=path, report=told.append)
            assert equal(done.weights, straight.weights)
            assert done.history == straight.history
            assert done.step == straight.step
            assert told == straight.history[at[-1] // 2 :]
            again = KINDS[kind](
                recipe, checkpoint=path, report=stop_after(0)
            )  # nothing is left to do
            assert equal(again.weights, straight.weights)

    def test_a_stop_between_evaluations_goes_back_to_the_last(self, tmp_path):
        net, calls, straight = network(2), [], deterministic()

        def loss(x, _):
            if net.training:
                calls.append(1)
            if len(calls) == 8:
                raise Stop
            return (net(x) - x.flip(1)).square().sum(1)

        for _ in range(2):
            with pytest.raises(Stop):
                fit(net, loss, rows(), RECIPE, checkpoint=tmp_path / "c")
            calls[:] = (
                [1] * 5
            )  # the second run starts at step 6 and ends, two steps on, inside the same interval
        calls[:] = [1] * 9
        done = fit(net, loss, rows(), RECIPE, checkpoint=tmp_path / "c")
        assert equal(done.weights, straight.weights)

    @pytest.mark.parametrize(
        ("there", "here", "said"),
        [
            ({}, {"scale": 2.0}, r"scale: 1.0 there, 2.0 here"),
            ({}, {"augment": lambda x: x.flip(0)}, r"augment: None there, code"),
            ({}, {"activation": nn.ReLU}, r"module: .*SiLU.* there, .*ReLU.* here"),
            ({"cd": 3}, {"cd": 4}, r"steps'.: 3 there, 4 here"),
            ({}, {"scale": 2.0, "seed": 5, "activation": nn.ReLU}, "seed: .*module: .*scale: "),
        ],
        ids=["a constant", "an augmentation", "another network", "a state", "all of them"],
    )
    def test_another_loss_does_not_take_it_up(self, tmp_path, there, here, said):
        """And says in what it differs; weights and states that it has changed itself are no difference."""
        path = tmp_path / "c"
        assert equal(objective(path, **there).weights, objective(path, **there).weights)
        content = path.read_bytes()
        with pytest.raises(stk.CheckpointError, match=f"(?s){said}"):
            objective(path, **there | here)
        assert path.read_bytes() == content

    def test_without_the_code_of_the_loss_another_takes_it_up(self, tmp_path, monkeypatch):
        """The mutant."""
        monkeypatch.setattr("scoretk.learn.resume.differences", lambda *_: [])
        objective(tmp_path / "c")
        objective(tmp_path / "c", scale=2.0)

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda p: deterministic(replace(RECIPE, steps=24), checkpoint=p), "recipe"),
            (
                lambda p: deterministic(replace(RECIPE, optimiser=torch.optim.SGD), checkpoint=p),
                "SGD",
            ),
            (lambda p: deterministic(seed=1, checkpoint=p), "seed: 0 there, 1 here"),
            (lambda p: deterministic(settings={"smoothing": 0.1}, checkpoint=p), "smoothing"),
            (lambda p: noisy(RECIPE, checkpoint=p), "weights"),
            (
                lambda p: fit(network(2), lambda x, _: x.sum(1), rows(61), RECIPE, checkpoint=p),
                "data",
            ),
        ],
    )
    def test_another_runs_checkpoint_is_refused(self, tmp_path, make, said):
        path = tmp_path / "c"
        deterministic(checkpoint=path)
        before = path.read_bytes()
        with pytest.raises(stk.CheckpointError, match=said):
            make(path)
        assert path.read_bytes() == before

    def test_damaged_and_foreign_files_are_refused_and_kept(self, tmp_path):
        path = tmp_path / "c"
        deterministic(checkpoint=path)
        whole = path.read_bytes()
        for content in (whole[:-9], whole[:100], b"", b"else", whole[:-5] + b"\xff" + whole[-4:]):
            path.write_bytes(content)
            with pytest.raises(stk.CheckpointError, match="untouched"):
                deterministic(checkpoint=path)
            assert path.read_bytes() == content
        stk.sample("gaussian", stk.ULA(0.1), chains=2, steps=2, checkpoint=tmp_path / "run")
        with pytest.raises(stk.CheckpointError, match="another run"):
            deterministic(checkpoint=tmp_path / "run")
        with pytest.raises(stk.InvalidArgument, match="folder"):
            deterministic(checkpoint=tmp_path / "nowhere" / "c")

    def test_whatever_an_optimiser_keeps_goes_through_the_file(self):
        tensor = torch.tensor([1.0, math.nan], dtype=torch.bfloat16)
        value = {"a": [tensor, (0.1, math.inf, None)], 3: {"x": True}, "e": [], "s": ("",)}
        for back in (from_tensors(to_tensors(value)), unpacked(packed(value))):
            assert repr(back) == repr(value)
        with pytest.raises(stk.CheckpointError, match="object"):
            packed({"a": object()})

    @pytest.mark.parametrize(
        "optimiser",
        [
            partial(torch.optim.SGD, lr=0.02, momentum=0.9),
            partial(torch.optim.Adagrad, lr=0.05),
            partial(torch.optim.Rprop, lr=0.01),
            partial(torch.optim.LBFGS, lr=0.5, max_iter=4),
        ],
        ids=lambda o: o.func.__name__,
    )
    def test_any_torch_optimiser_learns_and_resumes(self, tmp_path, optimiser):
        recipe = Recipe(40, batch=60, evaluations=4, clip=100.0, decay=0.5, optimiser=optimiser)
        straight = deterministic(recipe)
        assert straight.history[-1].held_out < 0.5 * straight.history[0].held_out
        with pytest.raises(Stop):
            deterministic(recipe, checkpoint=tmp_path / "c", report=stop_after(20))
        assert equal(deterministic(recipe, checkpoint=tmp_path / "c").weights, straight.weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two gloo processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(ROOT / "tests" / "trainings.py"), str(folder)]
    settings = environment(OMP_NUM_THREADS="1")
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=settings, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_an_optimiser_that_asks_again_meets_the_same_noise():
    net, drawn = network(2), []

    def loss(x, generator):
        if net.training:
            drawn.append(torch.rand((), generator=generator).item())
        return (net(x) - x.flip(1)).square().sum(1)

    search = partial(torch.optim.LBFGS, lr=0.1, max_iter=4, tolerance_change=0.0)
    fit(net, loss, rows(), replace(RECIPE, optimiser=search, batch=60))
    assert len(drawn) > 2 * RECIPE.steps
    assert len(set(drawn)) == RECIPE.steps


class TestSeveralProcesses:
    @pytest.mark.filterwarnings(
        "ignore:held_out"
    )  # of contrastive divergence: what is kept is not asked here
    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", KINDS)
    def test_they_end_with_the_weights_of_one_process_on_the_joined_batch(self, folder, kind):
        ours, theirs = (load_file(folder / f"{kind}-{rank}.safetensors") for rank in (0, 1))
        alone = KINDS[kind]()
        assert equal(ours, theirs)
        assert near(ours, alone.weights)
        if kind != "deterministic":  # the test can fail: other noise is seen
            assert not near(ours, KINDS[kind](replace(PARTED, parts=3)).weights)

    @pytest.mark.filterwarnings(
        "ignore:held_out"
    )  # of contrastive divergence: what is kept is not asked here
    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", ["noisy", "contrastive", "game"])
    def test_their_checkpoint_serves_one_process(self, folder, kind):
        done = KINDS[kind](checkpoint=folder / f"{kind}.checkpoint", report=stop_after(0))
        assert equal(done.weights, load_file(folder / f"{kind}-0.safetensors"))

    @pytest.mark.thorough
    def test_the_command_writes_once_and_the_same_weights(self, folder):
        one = read_weights(folder / "flow.safetensors", "digits-flow")
        alone = FLOW.train(rows(), steps=4, width=8, dropout=0.0)
        assert one.notes == {**alone.notes, "dropout": 0.0}
        assert one.weights.keys() == alone.weights.keys()
        assert not list(folder.glob(".*"))

    def test_parts_add_up_to_the_whole(self):
        whole = deterministic(replace(PARTED, parts=1)).weights
        assert near(deterministic(PARTED).weights, whole)
        assert near(deterministic(replace(PARTED, parts=15)).weights, whole)
        with pytest.raises(stk.InvalidArgument, match="15 rows"):
            deterministic(replace(PARTED, parts=16))

    def test_a_state_that_cannot_be_parted_is_refused(self):
        state = type(
            "Counter", (), {"state_dict": lambda self: {}, "load_state_dict": lambda self, _: None}
        )()
        with pytest.raises(stk.InvalidArgument, match="for_part"):
            deterministic(PARTED, state=state)


class TestPlayers:
    def test_each_moves_its_own_weights_as_often_as_it_should(self):
        nets = nn.ModuleDict({"a": Weight(0.0), "b": Weight(0.0)})

        def loss(x, _):  # the gradient is 1 for each of them
            return nets["a"].weight.sum() + nets["b"].weight.sum()

        players = [Player("a", nets["a"], loss, steps=3), Player("b", nets["b"], loss)]
        slope = partial(torch.optim.SGD, lr=0.5)
        recipe = Recipe(
            10,
            held_out=0.0,
            optimiser=slope,
            clip=9.0,
            schedule="constant",
            decay=0.0,
            evaluations=10,
        )
        done = fit(nets, players, rows(), recipe)
        assert nets["a"].weight.tolist() == [-15, -15]
        assert nets["b"].weight.tolist() == [-5, -5]
        assert nets["a"].weight.grad.tolist() == [1, 1]  # nothing from the other's turn
        assert done.history[0].health["a loss"] == -1  # 0, -1 and -2 in its three turns
        assert done.history[0].loss == done.history[0].health["b loss"] == -3

    def test_the_best_held_out_value_is_kept(self):
        done = game()
        assert done.step == min(done.history, key=lambda p: p.held_out).step
        assert {"critic gap", "critic gradient", "generator loss"} <= done.history[0].health.keys()

    def test_a_game_says_what_it_needs(self):
        net = network(2)
        player = Player("p", net, lambda x, _: net(x).sum(1))
        other = Player("q", network(1), lambda x, _: net(x).sum(1))
        with pytest.raises(stk.InvalidArgument, match="held-out"):
            fit(net, [player, player], rows(), RECIPE)
        with pytest.raises(stk.InvalidArgument, match="part of the module"):
            fit(net, [player, other], rows(), replace(RECIPE, held_out=0.0))
        with pytest.raises(stk.InvalidArgument, match="evaluate"):
            fit(net, [], rows(), replace(RECIPE, held_out=0.0))
        with pytest.raises(stk.InvalidArgument, match="steps"):
            Player("p", net, player.loss, steps=0)


class TestHealth:
    @pytest.mark.filterwarnings(
        "ignore:held_out"
    )  # of contrastive divergence: what is kept is not asked here
    @pytest.mark.thorough
    def test_contrastive_divergence_tells_gap_acceptance_age_and_failures(self):
        told = []
        contrastive(report=told.append)
        assert told[0].health.keys() == {"gradient", "energy_gap", "accept", "buffer_age", "failed"}
        assert told[-1].health["buffer_age"] > told[0].health["buffer_age"]
        assert 0 < told[-1].health["accept"] <= 1
        for name in ("loss", "gradient", "energy_gap", "accept", "buffer_age", "failed 0"):
            assert f"  {name}" in str(told[-1])

    def test_numbers_are_means_since_the_last_evaluation(self):
        net, calls = network(2), []

        def loss(x, _):
            if net.training:
                calls.append(1)
            return net(x).square().sum(1), {
                "call": len(calls),
                "twice": torch.tensor(2.0 * len(calls)),
            }

        done = fit(net, loss, rows(), RECIPE)
        assert [p.health["call"] for p in done.history] == [1.5, 3.5, 5.5, 7.5, 9.5, 11.5]
        assert [p.health["twice"] for p in done.history] == [3, 7, 11, 15, 19, 23]

    def test_a_loss_of_the_wrong_kind_is_refused(self):
        net = network(2)
        with pytest.raises(stk.InvalidArgument, match="a dict of numbers"):
            fit(net, lambda x, _: (net(x), x), rows(), RECIPE)

    def test_patience_stops_and_keeps_the_best_also_after_a_resume(self, tmp_path):
        recipe = Recipe(400, batch=16, learning_rate=0.05, decay=0.0, evaluations=100, patience=3)

        def train(**options):  # the held-out value falls, then rises
            net = Weight(0.0)
            return fit(
                net,
                lambda x, _: -net.weight.sum(),
                rows(),
                recipe,
                evaluate=lambda x, _: (net.weight.sum() - 1).abs(),
                **options,
            )

        done = train()
        values = [p.held_out for p in done.history]
        assert len(values) < 100
        assert values.index(min(values)) == len(values) - 4
        assert done.step == done.history[-4].step
        with pytest.raises(Stop):
            train(checkpoint=tmp_path / "c", report=stop_after(done.history[-3].step))
        again = train(checkpoint=tmp_path / "c")
        assert again.history == done.history
        assert equal(again.weights, done.weights)
        with pytest.raises(stk.InvalidArgument, match="patience"):
            Recipe(10, held_out=0.0, patience=3)

    def test_rows_of_ones_own_choose_the_weights(self, tmp_path):
        """None of the data is held out beside them, and they belong to the checkpoint's run."""
        own, seen = torch.full((3, 2), 7.0), []
        net = Weight(0.0)

        def measure(x, _):
            seen.append(x)
            return (net.weight.sum() - 1).abs()

        def train(held_out=own, **options):
            return fit(
                net,
                lambda x, _: -net.weight.sum() + 0 * x.sum(),
                rows(),
                Recipe(40, batch=10**6, learning_rate=0.05, decay=0.0, repeats=1),
                evaluate=measure,
                held_out=held_out,
                **options,
            )

        done = train(checkpoint=tmp_path / "c")
        assert len(seen) == len(done.history) == 20
        assert all(torch.equal(x, own) for x in seen)
        assert done.step == min(done.history, key=lambda p: p.held_out).step < 40
        assert train(checkpoint=tmp_path / "c").history == done.history
        with pytest.raises(stk.CheckpointError, match="another"):
            train(own + 1, checkpoint=tmp_path / "c")
        with pytest.raises(stk.InvalidArgument, match="held_out"):
            train(torch.zeros(3, 5))


class TestFailure:
    @pytest.mark.parametrize("fault", ["loss", "gradient", "weights"])
    def test_what_is_not_finite_stops_with_the_last_good_weights(self, fault):
        net, calls, optimisers = Weight(1.0), [], []

        def sgd(parameters):
            optimisers.append(torch.optim.SGD(parameters, lr=0.1))
            return optimisers[0]

        def loss(x, _):
            calls.append(1)
            if len(calls) < 5:
                return net.weight.sum()
            if fault == "loss":
                return net.weight.sum() * math.nan
            if fault == "gradient":
                return (net.weight - net.weight.detach()).abs().sqrt().sum()
            optimisers[0].param_groups[0]["lr"] = math.inf
            return net.weight.sum()

        with pytest.raises(stk.FitFailure, match="step 4") as caught:
            fit(net, loss, rows(), Recipe(20, held_out=0.0, optimiser=sgd))
        assert caught.value.step == 4
        assert bool(torch.isfinite(net.weight).all())
        assert torch.equal(net.weight, caught.value.weights["weight"])
        assert not net.training

    def test_a_held_out_value_that_is_nan_stops_too(self):
        net = network(2)
        with pytest.raises(stk.FitFailure, match="step 2"):
            fit(
                net,
                lambda x, _: net(x).sum(1),
                rows(),
                RECIPE,
                evaluate=lambda x, _: x.sum() * math.nan,
            )


def test_the_average_is_of_the_tied_weights_too():
    """One tensor under two names: both hold the average."""
    net = nn.ModuleDict({"a": network(2), "b": network(2)})
    net["b"][0].weight = net["a"][0].weight
    before = net["a"][0].weight.detach().clone()
    done = fit(
        net, lambda x, _: (net["b"](net["a"](x)) - x).square().sum(1), rows(), Recipe(30, batch=16)
    )
    assert torch.equal(done.weights["a.0.weight"], done.weights["b.0.weight"])
    assert not torch.equal(done.weights["a.0.weight"], before)


PIXELS = torch.arange(128.0).reshape(64, 2) * 2


def fitted(data):
    net = nn.Linear(2, 2).to(data.dtype if data.is_floating_point() else None)
    return fit(net, lambda x, _: (net(x) - 1).square().sum(1), data, Recipe(1, batch=8))


@pytest.mark.parametrize("data", [PIXELS, PIXELS.to(torch.uint8), PIXELS.double() + 1])
def test_pixels_as_files_have_them_are_told(data):
    with torch.random.fork_rng([]), pytest.warns(UserWarning, match=r"x / 127.5 - 1 gives"):
        fitted(data)


@pytest.mark.parametrize(
    "data", [PIXELS / 127.5 - 1, PIXELS + 0.5, PIXELS * 4, PIXELS / 16, -PIXELS]
)
def test_other_data_raise_no_alarm(data):
    with torch.random.fork_rng([]):
        fitted(data)


EXCHANGED = {
    "gradients": lambda: processes.summed([nn.Parameter(torch.ones(3))], torch.tensor(0.5)),
    "the first's weights": lambda: processes.same_start(nn.LayerNorm(2)),
    "the first's number": lambda: processes.agreed(3.0),
}


@pytest.mark.parametrize("what", EXCHANGED)
def test_what_processes_exchange_goes_by_a_device_that_their_group_serves(what, monkeypatch):
    class Sent(Exception):
        pass

    def sent(message, *_):
        raise Sent(message.device.type)

    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "carrier", lambda place: torch.device("meta"))
    for call in ("all_reduce", "broadcast"):
        monkeypatch.setattr(processes.distributed, call, sent)
    with pytest.raises(Sent, match="meta"):
        EXCHANGED[what]()


def test_a_parameter_that_no_process_has_a_gradient_of_stays_without(monkeypatch):
    """An optimiser leaves those as they are; a gradient of zeros would let momentum and decay move them."""
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes.distributed, "all_reduce", lambda message: message.mul_(2))
    monkeypatch.setattr(processes, "carrier", lambda place: place)
    used, unused = (nn.Parameter(torch.ones(n)) for n in (3, 2))
    used.grad = torch.tensor([1.0, 2.0, 3.0])
    assert float(processes.summed([used, unused], torch.tensor(0.5))) == 1.0
    assert used.grad.tolist() == [2, 4, 6]
    assert unused.grad is None


def test_the_last_step_is_evaluated_also_where_evaluations_are_at_others():
    net = network(2)
    recipe = Recipe(7, batch=4, evaluations=3, held_out=0.0)
    done = fit(net, lambda x, _: net(x).square().sum(1), rows(), recipe, seed=0)
    assert [p.step for p in done.history] == [2, 4, 6, 7]


def small():
    """A module to fit, made without the global generator."""
    with torch.random.fork_rng():
        return nn.Linear(2, 1)


ROWS = torch.zeros(20, 2)
NOT_ONE_ARRAY = {
    "a pair": (ROWS, torch.arange(20)),
    "a list": [ROWS, ROWS],
    "a data set": torch.utils.data.TensorDataset(ROWS),
    "a loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ROWS)),
    "nothing": None,
}
NO_LOSS = {
    "a number": 3,
    "of rows alone": lambda rows: rows.sum(),
    "a class": nn.MSELoss,
    "of a player": [Player("one", small(), lambda rows: rows.sum())],
}


@pytest.mark.parametrize("name", NOT_ONE_ARRAY)
def test_data_that_are_no_single_array_are_told_how_labels_go_along(name):
    with pytest.raises(stk.InvalidArgument, match=r"^data: .*y\[rows\.long\(\)\]"):
        fit(small(), lambda rows, generator: rows.sum(), NOT_ONE_ARRAY[name], Recipe(1))


@pytest.mark.parametrize("name", NO_LOSS)
def test_a_loss_is_a_function_of_rows_and_a_generator(name):
    with pytest.raises(stk.InvalidArgument, match=r"^loss: .*loss\(rows, generator\)"):
        fit(small(), NO_LOSS[name], ROWS, Recipe(1, held_out=0.0))


def test_a_fit_is_shown_in_a_line_without_its_weights():
    net = small()
    done = fit(net, lambda rows, generator: net(rows).square().sum(), ROWS, Recipe(2))
    assert repr(done).startswith("Fit(weights of 2 tensors after step ")
    assert "held-out" in repr(done)
    assert len(repr(done)) < 120
