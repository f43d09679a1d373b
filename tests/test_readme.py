"""The README's Python blocks run as they stand, one after another."""

import re
from pathlib import Path

import torch

README = Path(__file__).parent.parent / "README.md"


def test_the_tour_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    names: dict = {}
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)
    assert names["draws"].x.shape == (256, 1000, 2)
    assert dict(names["draws"].cost) == {"energy": 307456, "score": 307456}
    assert names["draws"].failures == {}
    assert names["loss"].requires_grad
