"""What a run takes beside what it keeps: draws are in memory once, whatever the batches, with a checkpoint and taken up again."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch.distributions import constraints

import scoretk as stk
from scoretk.core import sealed
from scoretk.inference import sampling
from scoretk.run import record
from tests.growth import on_linux, peak_of
from tests.marks import slow_but

WIDE = stk.Energy(lambda x: x.square().sum(1) / 2, (8_000,), grad=lambda x: x)
BOXED = stk.Energy(
    lambda u: u.square().sum(1) / 2, variables={"u": stk.Variable((8_000,), constraints.positive)}
)
RUN = {"chains": 8, "steps": 500, "seed": 3}
MOST, SAVED = 1.1, 1.15
"""Of the bytes of the draws: what may be taken at most, and with a checkpoint. They are 128 MB
here, since some 6 MB go to buffers whatever their size."""


class FallState(NamedTuple):
    x: torch.Tensor
    step: torch.Tensor


@dataclass(frozen=True)
class Fall:
    """Chains that only fall: a kernel whose steps cost little, so that draws are nearly all there is."""

    needs, timed, order, capturable = frozenset({"score"}), False, 1, True
    init_cost, step_cost = MappingProxyType({}), MappingProxyType({"score": 1})

    def init(self, field, x, noise):
        return FallState(x, torch.zeros((), dtype=torch.int64))

    def step(self, field, state, noise):
        x = state.x + 0.01 * field.score(state.x)
        return FallState(x, state.step + 1), {"height": x[:, 0].clone()}


def drawn(field=WIDE, **changes):
    return stk.sample(field, Fall(), **(RUN | changes))


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory):
    """What is imported or compiled at the first run is no part of what a run takes."""
    for field in (WIDE, BOXED):
        drawn(field, steps=2, checkpoint=tmp_path_factory.mktemp("first") / "c")


def share(call):
    draws, grown = peak_of(call)
    return grown / (draws.x.numel() * draws.x.element_size()), draws


@on_linux
class TestDrawsAreInMemoryOnce:
    @pytest.mark.thorough
    @pytest.mark.parametrize(
        "changes",
        slow_but([{}, {"batch": 3}, {"field": BOXED, "batch": 4}], {"field": BOXED, "batch": 4}),
    )
    def test_in_a_run(self, changes):
        assert share(lambda: drawn(**changes))[0] < MOST

    @pytest.mark.thorough
    def test_saved_on_the_way_and_taken_up(self, tmp_path):
        saved = stk.Checkpoint(tmp_path / "c", every=1e-9)
        taken, whole = share(lambda: drawn(checkpoint=saved, batch=4))
        assert taken < SAVED
        again, resumed = share(lambda: drawn(checkpoint=tmp_path / "c", batch=4))
        assert again < SAVED
        assert torch.equal(resumed.x, whole.x)

    @pytest.mark.thorough
    def test_a_copy_would_be_seen(self, monkeypatch):
        class Apart(record.Room):
            def of(self, name, like, rows, total):
                self.parts = [*getattr(self, "parts", ()), like.new_empty((total, *like.shape))]
                return self.parts[-1]

        monkeypatch.setattr(sampling, "Room", Apart)
        assert share(lambda: drawn(batch=4))[0] > 1.5

    @pytest.mark.slow
    def test_a_copy_on_the_way_to_a_file_would_be_seen(self, monkeypatch, tmp_path):
        monkeypatch.setattr(sealed, "_parts", lambda value: [value])
        taken, _ = share(lambda: drawn(checkpoint=tmp_path / "c", batch=4))
        assert taken > SAVED
