"""Which public names are in which chapter of the reference: all of `scoretk.__all__`, and of its public modules."""

from importlib import import_module

import scoretk as stk

__all__ = ["CHAPTERS", "chapter", "listed"]

CHAPTERS = {
    "sampling": ("scoretk.inference", "scoretk.ode.grids"),
    "fields": ("scoretk.fields",),
    "solvers": ("scoretk.solvers",),
    "draws": ("scoretk.run", "scoretk.diagnostics", "scoretk.core.cost"),
    "learn": ("scoretk.learn",),
    "adapters": (
        "scoretk.adapters",
        "scoretk.fields.adapters",
        "scoretk.fields.pretrained",
        "scoretk.inference.sbi",
    ),
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
    """The page of the longest of the packages that a module is in."""
    found = [
        (len(package), page)
        for page, packages in CHAPTERS.items()
        for package in packages
        if f"{home}.".startswith(f"{package}.")
    ]
    if not found:
        raise LookupError(f"docs/site/reference.py: {home} has public names and no chapter")
    return max(found)[1]


def listed() -> set[str]:
    """All names of all pages."""
    return {name for page in CHAPTERS for name in chapter(page)}
