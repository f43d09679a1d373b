"""The Python blocks of docs/learning.md run as they stand, one after another; Lightning's where it is installed."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "learning.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
LIGHTNING = [block for block in BLOCKS if "import lightning" in block]


def run(blocks):
    names: dict = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    return names


def spread(x):
    """How far from the unit circle, on average."""
    return float((x.norm(dim=1) - 1).abs().mean())


@pytest.mark.thorough
def test_the_page_runs(capsys):
    names = run([block for block in BLOCKS if block not in LIGHTNING])
    assert spread(torch.randn(500, 2, generator=torch.Generator().manual_seed(0))) > 0.4
    assert spread(names["draws"].final) < 0.2
    assert spread(names["own"].final) < 0.2
    assert spread(names["half"].final) < 0.3
    assert float((names["half"].final[:, 0] > 0).float().mean()) > 0.9
    told = capsys.readouterr().out
    assert "step 20 of 400  loss" in told
    for number in ("held-out", "gradient", "energy_gap", "accept", "buffer_age", "failed 0"):
        assert number in told


@pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")
@pytest.mark.filterwarnings("default")  # its own
def test_lightning_runs():
    assert len(LIGHTNING) == 1
    assert spread(run([BLOCKS[0], *LIGHTNING])["lit"].final) < 0.2
