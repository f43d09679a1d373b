"""Optional packages, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from scoretk.errors import MissingDependency

__all__ = ["required"]

PACKAGES = {"ot": "POT", "pyro": "pyro-ppl", "sklearn": "scikit-learn"}
"""What a package is installed as, by the module that it brings, where these differ."""


def required(module: str, extra: str, purpose: str) -> Any:
    """A module of an optional package.

    Args:
        module: Its full name, such as "numpyro.infer.util".
        extra: The extra of scoretk that installs it.
        purpose: What needs it, as the subject of the message.

    Returns:
        The module.

    Raises:
        MissingDependency: Its package is not installed, or fails to import.
    """
    top = module.partition(".")[0]
    try:
        import_module(top)  # which may be gone while a part of it is still loaded
        return import_module(module)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(
            f"{error.name}."
        )
        cause = "" if absent else f"which does not import here ({error})"
        raise MissingDependency(PACKAGES.get(top, top), extra, purpose, cause) from error
