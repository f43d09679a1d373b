"""Barker's proposal: exact at any step size, robust to one that is too large; and what adding a kernel takes."""

import re
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import pytest
import torch

import scoretk as stk
from scoretk.core.streams import Stream
from scoretk.fields import resolve
from scoretk.models.targets.mixture import gaussian
from scoretk.solvers import SOLVERS
from scoretk.solvers.barker import Barker
from scoretk.solvers.parts.metropolis import metropolis
from scoretk.solvers.warmup.tuned import StepTunedState
from tests.evidence import assert_mean, assert_second_moment, mean_z, z_limit
from tests.test_langevin import invariance_z

SIZES = {"gaussian": 0.9, "ring": 0.03, "semicircle": 0.2}


@dataclass(frozen=True)
class Uncorrected(Barker):
    """Decides by the energies alone, as if the proposal were symmetric."""

    def step(self, field, state, noise):
        shape = tuple(state.x.shape[1:])
        z = noise.normal(state.step, Stream.PROPOSAL, shape, state.x.dtype) * sqrt(
            2 * self.step_size
        )
        u = noise.uniform(state.step, Stream.CORRECTION, shape, state.x.dtype)
        x = state.x + torch.where(u < torch.sigmoid(-z * state.grad), z, -z)
        proposed = StepTunedState(x, *field.energy_and_grad(x), state.step + 1)
        chosen, accept = metropolis(
            state, proposed, state.energy - proposed.energy, state.step, noise
        )
        return chosen, {"accept": accept}


@pytest.mark.parametrize("name", SIZES)
def test_exact_draws_stay_exact(name):
    assert invariance_z(Barker(SIZES[name]), name) < 1


@pytest.mark.parametrize("name", SIZES)
def test_invariance_catches_a_decision_without_the_ratio_of_the_proposals(name):
    assert invariance_z(Uncorrected(SIZES[name]), name) > 1.5


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_target_at_a_temperature(temperature):
    start = sqrt(temperature) * torch.randn(
        40_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    draws = stk.sample(gaussian(dim=1), Barker(0.7, temperature), init=start, steps=2, seed=4)
    assert_mean(draws.final, 0.0)
    assert_second_moment(draws.final, 0.0, temperature)
    hot = stk.sample(
        gaussian(dim=1), Barker(0.7), init=start, steps=2, seed=4
    ).final  # another temperature is told
    assert mean_z(hot.square(), temperature).abs() > 2 * z_limit()


def test_each_coordinate_jumps_as_far_as_its_noise_and_mostly_downhill():
    """From x on N(0, 1), where the energy has slope x: the mean jump is E[z tanh(-z x / 2)], -h x to first order."""
    h, n = 1e-3, 200_000
    noise, x = stk.Noise(2, n, dtype=torch.float64), torch.full((n, 1), 3.0, dtype=torch.float64)
    field = resolve(gaussian(dim=1), {"energy", "score"})
    solver = Barker(h)
    moved = solver.step(field, solver.init(field, x, noise), noise)[0].x - x
    taken = moved[moved[:, 0] != 0]
    z = noise.normal(0, Stream.PROPOSAL, (1,), torch.float64) * sqrt(2 * h)
    torch.testing.assert_close(taken.abs(), z[moved[:, 0] != 0].abs(), atol=1e-12, rtol=1e-9)
    expected = float((z * torch.tanh(-z * 3 / 2)).mean())
    assert expected == pytest.approx(-h * 3, rel=0.02)
    assert float(moved.mean()) == pytest.approx(expected, rel=0.05)


def test_it_bears_a_step_size_under_which_mala_stands_still():
    """From far out on a quartic, whose gradient throws MALA's proposals to the other side and further."""
    steep = stk.Energy(lambda x: x.pow(4).sum(1), (1,))
    start = torch.full((64, 1), 10.0, dtype=torch.float64)
    runs = {
        kind: stk.sample(steep, kind(0.02), init=start, steps=200, seed=1)
        for kind in (stk.MALA, Barker)
    }
    assert float(runs[stk.MALA].stats["accept"].max()) == 0
    assert float(runs[Barker].final.abs().max()) < 2


def test_a_new_kernel_is_its_own_file_one_line_in_the_table_and_one_example():
    """Counted: beside these (and the stub, which makes it public) no file of the package knows of it."""
    root = Path(stk.__file__).parent
    mention = re.compile(r"solvers\.barker\b|\bBarker\(")
    found = {
        str(path.relative_to(root)): [
            line for line in path.read_text().splitlines() if mention.search(line)
        ]
        for path in [*root.rglob("*.py"), *root.rglob("*.pyi")]
        if path.stem != "barker"
    }
    found = {name: lines for name, lines in found.items() if lines}
    assert set(found) == {"plugins/solvers.py", "solvers/examples.py", "__init__.pyi"}
    assert len(found["plugins/solvers.py"]) == 1
    assert len([line for line in found["solvers/examples.py"] if "import" not in line]) == 1
    assert SOLVERS["barker"] is stk.Barker
    assert stk.load_solver("barker", step_size=0.5) == stk.Barker(0.5)
