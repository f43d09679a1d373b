"""Blocks that are computed again: the same numbers, less memory, and a network that is left as it was."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import scoretk as stk
from scoretk.fields import recompute


class Block(nn.Module):
    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.inside = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.calls = 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return x + scale * self.inside(x)


class Net(nn.Module):
    """An energy of two coordinates by six blocks."""

    def __init__(self, dropout=0.0):
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(2, 16), nn.Linear(16, 1)
            self.blocks = nn.ModuleList([Block(16, dropout) for _ in range(6)])

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = block(h, scale=0.5)
        return self.last(h)[:, 0] + x.square().sum(1)


def kept(field, x):
    """The bytes that a gradient keeps at once for its way back, parameters apart, and the gradient."""
    own, held = {p.data_ptr() for p in field.fn.parameters()}, 0

    def pack(t):
        nonlocal held
        held += 0 if t.data_ptr() in own else t.numel() * t.element_size()
        return t

    with saved_tensors_hooks(pack, lambda t: t), torch.enable_grad():
        energy = field.energy(x.clone().requires_grad_())
    return held, energy


def test_the_same_numbers_for_less_memory():
    net, x = Net().eval(), torch.linspace(-1, 1, 64).reshape(32, 2)
    plain, again = (stk.Energy(f, (2,)) for f in (net, stk.recomputed(net, Block)))
    for a, b in zip(plain.energy_and_grad(x), again.energy_and_grad(x), strict=True):
        assert torch.equal(a, b)
    assert kept(again, x)[0] < kept(plain, x)[0] / 3
    assert all("forward" not in block.__dict__ for block in net.blocks)
    solver = stk.MALA(0.1)
    one, two = (stk.sample(f, solver, chains=8, steps=10, seed=1).x for f in (plain, again))
    assert torch.equal(one, two)


def test_each_block_is_computed_again_and_once_where_no_gradient_is_asked():
    net = Net().eval()
    field = stk.Energy(stk.recomputed(net, Block), (2,))
    field.energy_and_grad(torch.ones(3, 2))
    assert [block.calls for block in net.blocks] == [2] * 6
    with torch.no_grad():
        field.energy(torch.ones(3, 2))
    assert [block.calls for block in net.blocks] == [3] * 6


def test_derivatives_of_derivatives_and_of_parameters():
    x = torch.linspace(-1, 1, 6).reshape(3, 2).requires_grad_()
    found = []
    for wrap in (lambda net: net, lambda net: stk.recomputed(net, Block)):
        net = Net().eval()
        score = stk.Energy(wrap(net), (2,)).score(x)
        score.square().sum().backward()
        found.append([p.grad for p in net.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("preserved", [True, False])
def test_dropout_is_the_same_both_times(monkeypatch, preserved):
    """In training; the mutant draws it anew, which is another function's gradient."""
    if not preserved:
        again = recompute.checkpoint
        monkeypatch.setattr(
            recompute,
            "checkpoint",
            lambda *a, **k: again(*a, **(k | {"preserve_rng_state": False})),
        )
    x, grads = torch.ones(4, 2), []
    net = Net(dropout=0.5).train()
    for module in (net, stk.recomputed(net, Block)):
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            net.zero_grad()
            module(x).sum().backward()
            grads.append(net.first.weight.grad.clone())
    assert torch.allclose(*grads) is preserved


def test_dropout_alone_in_training_is_the_same_both_times():
    """Monte Carlo dropout: the block itself is in eval mode."""
    x, net, grads = torch.ones(4, 2), Net(dropout=0.5).eval(), []
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    for module in (net, stk.recomputed(net, Block)):
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            net.zero_grad()
            module(x).sum().backward()
            grads.append(net.first.weight.grad.clone())
    assert torch.equal(*grads)


def test_a_block_that_changes_when_it_is_called_is_refused():
    with torch.random.fork_rng([]):
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    again = stk.recomputed(net, nn.BatchNorm1d)
    x = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(stk.InvalidArgument, match="num_batches_tracked"):
        again.train()(x)
    assert again.eval()(x).shape == (3, 1)


def test_threads_leave_the_network_as_it_was():
    net, x = Net().eval(), torch.ones(3, 2)
    field = stk.Energy(stk.recomputed(net, Block), (2,))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: field.energy_and_grad(x)[1], range(40)))
    assert all(torch.equal(g, found[0]) for g in found)
    assert not any("forward" in block.__dict__ for block in net.blocks)


def test_a_forward_of_the_users_own_stays_and_errors_leave_nothing_behind():
    net = Net().eval()
    own = net.blocks[0].forward
    net.blocks[0].forward = own
    field = stk.Energy(stk.recomputed(net, Block), (2,))
    field.energy_and_grad(torch.ones(3, 2))
    assert net.blocks[0].__dict__["forward"] is own
    with pytest.raises(RuntimeError):
        field.fn(torch.ones(3, 5))
    assert "forward" not in net.blocks[1].__dict__


@pytest.mark.parametrize(
    ("module", "of"),
    [
        (Net(), nn.Conv2d),
        (Block(2), Block),
        (Net(), ()),
        (Net(), "Block"),
        (lambda x: x, Block),
        (Net(), (Block, int)),
    ],
)
def test_what_saves_nothing_is_refused(module, of):
    with pytest.raises(stk.InvalidArgument):
        stk.recomputed(module, of)


def scaled(block):
    """A block whose forward is its own, as a library that patches blocks leaves it."""
    forward = block.forward
    block.forward = lambda x, **given: 2 * forward(x, **given)


@pytest.mark.parametrize("patched", [(), (0,), (0, 3, 5), range(6)], ids=str)
def test_a_forward_of_a_blocks_own_is_computed_again_and_stays(patched):
    plain, again = Net().eval(), Net().eval()
    for net in (plain, again):
        for i in patched:
            scaled(net.blocks[i])
    own = [block.__dict__.get("forward") for block in again.blocks]
    field, x = stk.Energy(stk.recomputed(again, Block), (2,)), torch.ones(64, 2)
    for a, b in zip(
        stk.Energy(plain, (2,)).energy_and_grad(x), field.energy_and_grad(x), strict=True
    ):
        assert torch.equal(a, b)
    assert [block.calls for block in again.blocks] == [2] * 6
    assert [block.__dict__.get("forward") for block in again.blocks] == own


@pytest.mark.parametrize("kinds", [(Block, nn.Linear), (nn.Linear, Block)], ids=["first", "last"])
def test_blocks_of_every_type_that_is_named_are_computed_again(kinds):
    net = Net().eval()
    stk.Energy(stk.recomputed(net, kinds), (2,)).energy_and_grad(torch.ones(3, 2))
    assert [block.calls for block in net.blocks] == [2] * 6
