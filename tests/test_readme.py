"""The README's Python blocks run as they stand, one after another."""

import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from scoretk.inference import sampling

README = Path(__file__).parent.parent / "README.md"


def held(blocks):
    """Run the blocks, in which `draws` are of MALA; returns their number of steps, and the evaluations."""
    assert len(blocks) >= 3
    names: dict = {}
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    draws = names["draws"]
    assert draws.x.shape == (256, draws.x.shape[1], 2)
    assert draws.failures == {}
    assert names["loss"].requires_grad
    return draws.x.shape[1], dict(draws.cost)


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_tour_runs_as_it_stands():
    assert held(blocks()) == (1000, {"energy": 307456, "score": 307456})


def test_the_tour_runs():
    """With a tenth of its hundreds of steps, and so short a warmup where it leaves its length open."""
    shorter = [re.sub(r"\b(steps|warmup)=(\d+)00\b", r"\1=\g<2>0", block) for block in blocks()]
    with mock.patch.object(sampling, "DEFAULT_WARMUP", 30):
        assert held(shorter) == (100, dict.fromkeys(("energy", "score"), 256 * (1 + 20 + 100)))
