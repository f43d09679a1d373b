"""Calls that a device plays again: what is copied to where a graph reads and from where it writes, and when.

A stand-in makes the calls again in the place of a CUDA graph, into the memory that the first ones gave back. On a real
device compiled runs are made by `tests/test_device.py`.
"""

import time
import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves

import scoretk as stk
from scoretk.core import devices
from scoretk.run import capture, replay, tape
from scoretk.run.drive import engine_of
from scoretk.run.moment import begin
from scoretk.solvers import EXAMPLES
from tests.marks import slow_but
from tests.test_capture import Alternating, edged, in_blocks, loop_of, made, no_loop, run, same_run

__all__ = ["made", "no_loop"]

EDGED = stk.Energy(edged, (3,))
SOLVERS = slow_but(["ula", "mala", "hmc", "ghmc", "underdamped"], "ula", "ghmc")
STEPS = 104


@pytest.fixture
def replays(made, no_loop, monkeypatch):
    """The number of replays so far, on a device that is the CPU."""
    count = []

    def stand_in(function, device):
        written = function()

        def play():
            count.append(device)
            for memory, new in zip(tree_leaves(written), tree_leaves(function()), strict=True):
                if memory is not None:
                    memory.copy_(new)

        return written, play

    monkeypatch.setattr(replay, "recorded", stand_in)
    monkeypatch.setattr(replay, "WORTH", 0.0)
    monkeypatch.setattr(capture, "TURNS", 2)
    monkeypatch.setattr(capture, "can_play", lambda device: True)
    return count


@pytest.mark.parametrize("blocks", [(STEPS,), (8, 56, 3, 37)], ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_steps_that_are_played_are_those_that_are_made(replays, name, blocks):
    """Of chains that fail on the way, too."""
    loop, x = loop_of(EXAMPLES[name], EDGED, steps=STEPS)
    assert same_run(in_blocks(loop, x, blocks), run(loop, x, False))
    assert len(replays) > 0


def test_kinds_of_steps_are_played_each_by_itself(replays):
    loop, x = loop_of(Alternating(), steps=41)
    assert same_run(run(loop, x, True), run(loop, x, False))
    assert len(replays) == 41 - 2  # each kind is called once


def positions(loop, x, compiled):
    """Those of the moments of a run, read when it is over."""
    engine, moments = (
        engine_of(loop, compiled=compiled),
        [begin(loop.solver, loop.field, x, loop.noise)],
    )
    while moments[-1].step < STEPS:
        moments.append(engine.block(moments[-1], min(16, STEPS - moments[-1].step)))
    return torch.stack([moment.state.x for moment in moments])


@pytest.mark.parametrize(
    ("home", "name", "mutant"),
    [(torch, "_foreach_copy_", lambda memory, given: None), (replay, "_own", lambda value: value)],
    ids=["unread", "shared"],
)
def test_nothing_is_shared_with_a_graph(replays, monkeypatch, home, name, mutant):
    """The mutants: a graph reads what it was recorded with; its memory is handed out, and written over."""
    monkeypatch.setattr(replay, "_same", lambda one, other: True)
    loop, x = loop_of(stk.MALA(0.2), EDGED, steps=STEPS)
    assert torch.equal(positions(loop, x, True), positions(loop, x, False))
    monkeypatch.setattr(home, name, mutant)
    assert not torch.equal(positions(loop, x, True), positions(loop, x, False))
    assert replays


@pytest.mark.parametrize("well", [2, 4])
def test_what_is_played_first_is_compared_with_calls(replays, well):
    """A function that gives other numbers after so many calls, as one with random numbers, is called on.

    Of the calls the second is recorded, and then each is made and played, twice.
    """
    calls = []

    def changing(x):
        calls.append(0)
        return x + max(0, len(calls) - well)

    function, zero = replay.Replayed(changing), torch.zeros(2)
    function(zero)
    if well > 2:
        function(zero)
    with pytest.warns(
        UserWarning, match="a CUDA graph does not hold them: they give other numbers"
    ):
        function(zero)
    assert torch.equal(function(zero), torch.full((2,), len(calls) - well))
    assert len(replays) == well // 2


def test_what_cannot_be_recorded_is_called_on(replays, monkeypatch):
    def fails(function, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(replay, "recorded", fails)
    loop, x = loop_of(stk.ULA(0.2), EDGED, steps=STEPS)
    with pytest.warns(
        UserWarning, match="hold them: operation not permitted when stream is capturing$"
    ) as said:
        played = run(loop, x, True)
    assert len(said) == 1
    assert same_run(played, run(loop, x, False))


def test_few_calls_are_not_worth_it(replays, monkeypatch):
    monkeypatch.setattr(replay, "WORTH", 1e6)
    run(*loop_of(stk.ULA(0.2), EDGED, steps=STEPS), True)
    assert not replays


def test_answers_that_are_no_number_are_equal(replays):
    function = replay.Replayed(lambda x: (x / 0.0, x > 0, x.long()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            function(torch.tensor([0.0, 1.0, -1.0]))
    assert len(replays) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor([0.0, torch.nan]), torch.tensor([torch.nan, 0.0])),
        (torch.tensor([1.0]), torch.tensor([torch.inf])),
        (torch.tensor([True]), torch.tensor([False])),
        (torch.tensor([torch.inf]), torch.tensor([torch.finfo(torch.float32).max])),
    ],
)
def test_what_is_not_the_same(one, other):
    assert replay._same((one, {"a": other}), (one, {"a": other}))
    assert not replay._same((one, {"a": other}), (one, {"a": one}))


def test_the_memory_of_what_is_played_is_bounded():
    class Noted:
        length, asked, noise = 8, (), stk.Noise(0, 10)

    assert capture._turns(Noted, 20) == capture.TURNS
    assert capture._turns(Noted, capture.TURNS_VALUES // 16) == 2
    assert capture._turns(Noted, capture.TURNS_VALUES) == 1
    Noted.asked = (tape.Request("normal", 1, (capture.TURNS_VALUES // 160,), torch.float32),)
    assert capture._turns(Noted, 20) == 1


def test_a_graph_is_recorded_anew_when_a_constant_of_the_hosts_was_written_into(
    replays, monkeypatch
):
    """Which it has as a copy, that it keeps."""
    constant, there = torch.ones(2), torch.device("meta")
    function = replay.Replayed(lambda x: x + float(devices.on(constant, there).numel()))
    for _ in range(4):
        function(torch.zeros(2))
    ((known, _, copy),) = function._player.copies[-1:]
    assert known is constant
    assert copy is devices.on(constant, there)
    before = function._player
    constant.add_(1)
    function(torch.zeros(2))
    assert function._player is not before
    assert function._player is not None


def test_what_the_first_call_takes_is_the_compilers(replays, monkeypatch):
    monkeypatch.setattr(replay, "WORTH", 0.05)

    def slow(x):
        time.sleep(0.1 if not made_before else 0.03)
        made_before.append(0)
        return x + 1

    made_before = []
    function = replay.Replayed(slow)
    function(torch.zeros(2))
    function(torch.zeros(2))
    assert function._player is None
    function(torch.zeros(2))
    assert function._player is not None
