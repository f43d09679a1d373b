"""The blocks of docs/bring-your-own.md run, where the libraries that they import are installed."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import scoretk as stk
from scoretk.fields.foreign import ADAPTERS

PAGE = (Path(__file__).parent.parent.parent / "docs/bring-your-own.md").read_text()
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if blocks])
def test_a_section_runs(title):
    names: dict = {}
    for block in SECTIONS[title]:
        for package in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        with torch.random.fork_rng():
            exec(compile(block, "docs/bring-your-own.md", "exec"), names)


def test_every_adapter_is_in_the_table():
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    named = set(re.findall(r"stk\.(from_\w+)\(", "\n".join(lines)))
    assert named | {"from_distribution"} >= {*ADAPTERS.values()}
    assert all(hasattr(stk, name) for name in named)
