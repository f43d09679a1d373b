"""What a fit and its losses say of arguments from which nothing can be learned."""

import inspect

import pytest
import torch

import scoretk as stk
from scoretk import learn
from scoretk.learn import Recipe, fit, flow_matching, stratified

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
SHORT = Recipe(steps=4, batch=16, evaluations=2)
OBJECTIVES = {
    name: value
    for name in learn.__all__
    if inspect.isfunction(value := getattr(learn, name))
    and "Tensor" in {p.annotation for p in inspect.signature(value).parameters.values()}
    and name not in ("fit", "reparametrised", "weighting")
}


def network(out=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(2, out)


class Silent(torch.nn.Module):
    def score(self, x):
        return -x


def given(function, name, value):
    """Arguments for a loss, of which one is this value."""
    kinds = {p.name: str(p.annotation) for p in inspect.signature(function).parameters.values()}
    x = torch.zeros(3, 2)
    return {
        n: value if n == name else x if kind == "Tensor" else (lambda *rows: rows[0])
        for n, kind in kinds.items()
        if kind == "Tensor" or kind.startswith(("Callable", "Critic", "Network", "PerRow", "Score"))
    }


TENSORS = [
    (name, p.name)
    for name, function in OBJECTIVES.items()
    for p in inspect.signature(function).parameters.values()
    if p.annotation == "Tensor"
]
CALLED = [
    (name, argument)
    for name, function in OBJECTIVES.items()
    for argument in list(inspect.signature(function).parameters)[:1]
    if argument in ("net", "score", "energy", "log_prob", "critic")
]


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_an_objective_names_what_is_no_tensor(name, argument):
    function = OBJECTIVES[name]
    for value in (0.1, torch.Generator(), None):
        with pytest.raises(stk.InvalidArgument, match=f"^{argument}: expected a tensor for {name}"):
            function(**given(function, argument, value))


@pytest.mark.parametrize(("name", "argument"), CALLED)
def test_an_objective_names_what_is_no_function(name, argument):
    function, told = OBJECTIVES[name], f"^{argument}: expected a function for {name}"
    for value in (DATA, stk.Score(lambda x: -x, (2,)), Silent(), None):
        with pytest.raises(stk.InvalidArgument, match=told):
            function(**given(function, argument, value))


def test_a_field_in_place_of_its_method_is_told_which():
    for value in (stk.Score(lambda x: -x, (2,)), Silent()):
        with pytest.raises(stk.InvalidArgument, match=r"Its own: \w+\.score$"):
            learn.implicit_score_matching(value, DATA)
    with pytest.raises(stk.InvalidArgument, match="lambda rows, generator"):
        fit(network(), learn.implicit_score_matching, DATA, SHORT)


def test_a_loss_that_teaches_nothing_is_refused():
    other, net = network(), network()
    before = [p.detach().clone() for p in net.parameters()]
    for loss, why in (
        (lambda rows, g: other(rows).square().mean(), "another module"),
        (lambda rows, g: net(rows).detach().square().mean(), "detach"),
        (lambda rows, g: rows.square().mean(), "detach"),
    ):
        with pytest.raises(stk.InvalidArgument, match=f"^loss: .*depends on the module.*{why}"):
            fit(net, loss, DATA, SHORT)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    frozen = torch.nn.ModuleList([net, network()])  # a part that the loss leaves alone is no fault
    fit(frozen, lambda rows, g: net(rows).square().mean(), DATA, SHORT)


@pytest.mark.parametrize("module", [lambda x: x, stk.Score(network(), (2,)), [network()], None])
def test_what_is_fitted_is_a_module(module):
    with pytest.raises(stk.InvalidArgument, match=r"^module: expected a torch\.nn\.Module"):
        fit(module, lambda rows, g: rows.sum(), DATA, SHORT)


def test_an_error_of_a_loss_says_what_it_was_given():
    net = network()
    with pytest.raises(RuntimeError) as told:
        fit(net, lambda rows, g: net(rows).square().mean(), DATA.double(), SHORT)
    (note,) = told.value.__notes__
    assert "(16, 2), torch.float64" in note
    assert "parameters are torch.float32" in note


@pytest.mark.parametrize("kept", [True, False])
def test_a_fit_that_is_stopped_leaves_its_average_and_says_how_to_go_on(tmp_path, kept):
    net, then = network(), []

    def stop(progress):
        then.extend(p.detach().clone() for p in net.parameters())
        raise KeyboardInterrupt

    recipe = Recipe(steps=4, batch=16, evaluations=2, held_out=0.0, decay=0.0)  # the last weights
    rest = {"report": stop, "checkpoint": tmp_path / "file" if kept else None}
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(net, lambda rows, g: net(rows).square().mean(), DATA, recipe, **rest)
    (note,) = stopped.value.__notes__
    assert "averaged weights of step 2" in note
    assert ("goes on from " + str(tmp_path / "file") in note) == kept
    assert all(torch.equal(a, b) for a, b in zip(then, net.parameters(), strict=True))
    assert not net.training


class TestContrastiveDivergence:
    def contrast(self, **options):
        net = network(1)
        energy = stk.Energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2, (2,))
        start = stk.ReplayBuffer(64, refresh=0.0)
        return net, energy, stk.ContrastiveDivergence(stk.ULA(0.05), 2, start, **options)

    def test_its_loss_does_not_choose_weights_in_silence(self):
        net, energy, cd = self.contrast()
        with pytest.warns(UserWarning, match="held_out: the loss of contrastive divergence"):
            fit(net, lambda rows, g: cd(energy, rows).loss, DATA, SHORT)
        loss, told = lambda rows, g: cd(energy, rows).loss, lambda rows, g: net(rows).mean()
        fit(net, loss, DATA, Recipe(steps=2, batch=16, held_out=0.0))
        fit(net, loss, DATA, SHORT, evaluate=told)

    @pytest.mark.parametrize("named", [True, False])
    def test_its_chains_are_in_the_checkpoint_whether_it_is_named_as_state(self, tmp_path, named):
        ends, recipe = [], Recipe(steps=6, batch=16, held_out=0.0, evaluations=6)

        def stop(progress):
            if progress.step == 3:
                raise KeyboardInterrupt

        for report, file in ((None, "whole"), (stop, "part"), (None, "part")):
            net, energy, cd = self.contrast()
            rest = {"report": report, "checkpoint": tmp_path / file, "state": cd if named else None}
            try:
                fit(net, lambda r, g, c=cd, e=energy: c(e, r).loss, DATA, recipe, **rest)
                ends.append((cd.calls, cd.start.samples, *net.parameters()))
            except KeyboardInterrupt:
                pass
        (calls, *whole), (again, *resumed) = ends
        assert calls == again == 6
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))

    def test_its_step_is_no_outcome_of_a_loss(self):
        net, energy, cd = self.contrast()
        recipe = Recipe(steps=2, batch=16, held_out=0.0)
        with pytest.raises(stk.InvalidArgument, match=r"step\.loss, cd\.last"):
            fit(net, lambda rows, g: cd(energy, rows), DATA, recipe)


def test_objectives_still_take_what_they_took():
    net = network()
    times = stratified(64, torch.Generator())
    value = flow_matching(lambda x, t: net(x) * t[:, None], DATA, times, DATA)
    assert value.shape == (64,)
