"""The gallery's examples run, without a warning, and each leaves pictures; the site's build runs them as they stand."""

import re
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
EXAMPLES = sorted(GALLERY.glob("*.py"))
QUICK = {"guidance", "inverse_problem", "noise_levels"}
"""Run by default; all others by `slow`, and by each build of the site."""
LONGEST = 30
"""Seconds of two cores that an example may take."""

pytest.importorskip("matplotlib")


def pictures(example):
    """Run an example block by block, as sphinx-gallery does; returns its figures."""
    names: dict = {"__name__": "example"}
    found = []
    with torch.random.fork_rng():
        for block in example.read_text().split("\n# %%\n"):
            exec(compile(block, str(example), "exec"), names)
            found += [figure] if (figure := names.pop("figure", None)) else []
    return found


@pytest.mark.thorough
@pytest.mark.parametrize(
    "example",
    [
        pytest.param(e, id=e.stem, marks=[] if e.stem in QUICK else [pytest.mark.slow])
        for e in EXAMPLES
    ],
)
def test_an_example_makes_its_pictures(example):
    began = time.process_time()
    found = pictures(example)
    assert time.process_time() - began < 2 * LONGEST
    assert found
    for figure in found:
        figure.canvas.draw()
        assert all(axes.has_data() for axes in figure.axes)


def test_there_are_enough_and_each_says_what_it_is():
    assert len(EXAMPLES) >= 12
    titles = [re.match(r'"""\n(.+)\n(=+)\n', e.read_text()) for e in EXAMPLES]
    assert all(title and len(title[1]) == len(title[2]) for title in titles)
    assert len({title[1] for title in titles}) == len(EXAMPLES)


@pytest.mark.skipif(find_spec("sphinx_gallery") is None, reason="sphinx-gallery is not installed")
def test_the_site_runs_all_of_them():
    import runpy

    config = runpy.run_path(str(GALLERY.parent / "site" / "gallery.py"))["CONFIG"]
    assert all(re.search(config["filename_pattern"], str(e)) for e in EXAMPLES)
    assert config["abort_on_example_error"]
    assert config["plot_gallery"]
