"""Blocks of a page run as they stand, and each line that ends in `# True` is held to it."""

import re

import torch


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_blocks(page, pieces):
    """The names that the blocks of a page make, one after the other; torch's global generator is left alone."""
    names: dict = {}
    with torch.random.fork_rng():
        for block in pieces:
            exec(compile(block, f"docs/{page}", "exec"), names)
            for promise in re.findall(r"^(.*?)  # True$", block, re.MULTILINE):
                assert bool(eval(promise, names)), promise
    return names
