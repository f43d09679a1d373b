"""scoretk: one sampler and score toolkit for every generative model family.

A model offers a *field* (an energy, a score or a velocity); one solver layer samples from it. The
public names are written once, in the stub beside this file, and loaded on first use, so that
listing plugins or importing the package needs no torch.
"""

import ast
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from scoretk.core.moved import Moved

_HOME = {
    alias.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
"""In which module each public name is; the package's own name: it is a module itself."""

_MODULES = {"conformance", "diagnostics", "errors", "grids", "learn", "plot"}
"""The public modules: they are loaded when asked for, `from scoretk import *` leaves them alone."""

__all__ = sorted(_HOME.keys() - _MODULES)  # noqa: PLE0605

sys.meta_path.insert(0, Moved())


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'scoretk' has no attribute {name!r}{_meant(name)}")
    home = _HOME[name]
    value = (
        import_module(f"{home}.{name}") if name in _MODULES else getattr(import_module(home), name)
    )
    globals()[name] = value
    return value


def _meant(name: str) -> str:
    """Which name may have been meant: one of a public module, or one that is spelt alike."""
    for room in ("learn", "diagnostics"):
        source = Path(__file__).parent.joinpath(room, "__init__.py").read_text(encoding="utf-8")
        if f'"{name}",' in source:
            return f": it is scoretk.{room}.{name}"
    plain = {known.lower(): known for known in _HOME}
    near = get_close_matches(name.lower(), plain, n=1, cutoff=0.75)
    return f". Did you mean {plain[near[0]]!r}?" if near else ""


def __dir__() -> list[str]:
    return sorted(_HOME)
