"""The README's Python blocks run as they stand, one after another."""

import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from scoretk.inference import asked

README = Path(__file__).parent.parent / "README.md"
VERDICT = "No problem found: the chains agree, and there are effective draws enough."


def held(blocks):
    """Run the blocks, in which `draws` are of MALA; returns what they define."""
    assert len(blocks) >= 3
    names: dict = {}
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    assert VERDICT in README.read_text()
    assert VERDICT in str(names["tuned"].summary())
    assert "the chains disagree" in str(names["stuck"].summary())
    draws = names["draws"]
    assert draws.x.shape == (256, draws.x.shape[1], 2)
    assert draws.failures == {}
    assert names["loss"].requires_grad
    return names


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_tour_runs_as_it_stands():
    names = held(blocks())
    assert names["draws"].x.shape == (256, 1000, 2)
    assert dict(names["draws"].cost) == {"energy": 307456, "score": 307456}
    for name in ("draws", "mixed"):
        assert VERDICT in str(names[name].summary())


@pytest.mark.thorough
def test_the_tour_runs():
    """With a tenth of its hundreds of steps, and so short a warmup where it leaves its length open."""
    shorter = [re.sub(r"\b(steps|warmup)=(\d+)00\b", r"\1=\g<2>0", block) for block in blocks()]
    with mock.patch.object(asked, "DEFAULT_WARMUP", 30):
        draws = held(shorter)["draws"]
    assert draws.x.shape == (256, 100, 2)
    assert dict(draws.cost) == dict.fromkeys(("energy", "score"), 256 * (1 + 20 + 100))
