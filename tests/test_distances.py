"""Distances and quality against known answers, each with a negative control."""

import math

import pytest
import torch

from scoretk.diagnostics import balance, copies, mmd, sliced_wasserstein
from scoretk.errors import InvalidArgument


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.thorough
def test_a_shift_moves_the_sliced_distance_by_its_length_over_root_d() -> None:
    x, shift = normal(500, 4, 0), torch.tensor([3.0, 0.0, 4.0, 0.0], dtype=torch.float64)
    found = sliced_wasserstein(x, x + shift, directions=20_000)
    assert found == pytest.approx(5 / math.sqrt(4), rel=0.02)
    assert found != pytest.approx(5.0, rel=0.02)  # the unsliced distance would be


def test_unequal_sizes_give_the_distance_of_the_repeated_samples() -> None:
    x, y = normal(6, 3, 1), normal(4, 3, 2)
    exact = sliced_wasserstein(x.repeat(2, 1), y.repeat(3, 1))
    assert sliced_wasserstein(x, y) == pytest.approx(exact, rel=1e-12)
    assert sliced_wasserstein(x[:4], y) != pytest.approx(
        exact, rel=1e-3
    )  # dropping rows is not the same


def test_the_sliced_distance_ignores_order_and_the_global_generator() -> None:
    x, y = normal(50, 3, 3), normal(50, 3, 4)
    before = torch.random.get_rng_state()
    assert sliced_wasserstein(x, y.flip(0)) == pytest.approx(sliced_wasserstein(y, x), rel=1e-12)
    assert torch.equal(before, torch.random.get_rng_state())
    assert sliced_wasserstein(x, x) == 0


def test_mmd_is_unbiased_and_sees_a_shift() -> None:
    same = torch.tensor(
        [mmd(normal(60, 2, 2 * s), normal(60, 2, 2 * s + 1), 1.0) for s in range(200)]
    )
    error = same.std() / math.sqrt(len(same))
    assert abs(same.mean()) < 4 * error
    # the biased estimate keeps the diagonal: about 2 (1 - E k) / n above, with E k = 1 / 3 in the plane
    assert 4 * error < 2 * (2 / 3) / 60
    # E k(x, y) = exp(-|m|^2 / 6) / 3 for unit Gaussians at distance |m|, bandwidth 1, d = 2
    exact = 2 / 3 * (1 - math.exp(-4 / 6))
    shift = torch.tensor([2.0, 0.0])
    assert mmd(normal(2000, 2, 7), normal(2000, 2, 8) + shift, 1.0) == pytest.approx(exact, rel=0.1)


def test_balance_and_copies() -> None:
    assert balance([5, 5, 5, 5]) == pytest.approx(1)
    assert balance([9, 0]) == 0
    train, held_out, fresh = (normal(400, 3, s) for s in (10, 11, 12))
    assert copies(train, train, held_out).share == 1
    assert copies(fresh, train, held_out).share < 0.1


def test_bad_samples_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        sliced_wasserstein(torch.ones(3, 2), torch.ones(3, 3))
    with pytest.raises(InvalidArgument):
        mmd(torch.ones(1, 2), torch.ones(3, 2))
    with pytest.raises(InvalidArgument):
        sliced_wasserstein(torch.full((3, 2), math.nan), torch.ones(3, 2))
