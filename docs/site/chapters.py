"""Which public names are in which chapter of the reference: all of `scoretk.__all__`, and of its public modules."""

from importlib import import_module

import scoretk as stk

__all__ = ["CHAPTERS", "chapter", "listed"]

CHAPTERS = {
    "sampling": ("scoretk.inference", "scoretk.ode.grids"),
    "fields": ("scoretk.fields",),
    "solvers": ("scoretk.solvers",),
    "draws": ("scoretk.run", "scoretk.diagnostics"),
    "learn": ("scoretk.learn",),
    "adapters": ("scoretk.adapters",),
    "plugins": ("scoretk.plugins",),
    "conformance": ("scoretk.conformance",),
    "errors": ("scoretk.errors",),
    "core": ("scoretk.core", "scoretk._version"),
}
"""Pages of docs/reference, and the packages whose public names they have."""


def chapter(page: str) -> list[str]:
    """The dotted names on a page as users write them: `scoretk.Energy`, `scoretk.learn.fit`."""
    short = [name for name in stk.__all__ if _page(stk._HOME[name]) == page]
    long = [
        f"{module}.{name}"
        for module in map(_module, sorted(stk._MODULES))
        if _page(module) == page
        for name in import_module(module).__all__
        if name not in stk.__all__
    ]
    return [*(f"scoretk.{name}" for name in short), *long]


def _module(name: str) -> str:
    return f"{stk._HOME[name]}.{name}"


def _page(home: str) -> str:
    for page, packages in CHAPTERS.items():
        if any(f"{home}.".startswith(f"{package}.") for package in packages):
            return page
    raise LookupError(f"docs/site/reference.py: {home} has public names and no chapter")


def listed() -> set[str]:
    """All names of all pages."""
    return {name for page in CHAPTERS for name in chapter(page)}
