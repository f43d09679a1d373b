"""What results and files say of the code that made them."""

from __future__ import annotations

import torch

from scoretk._version import __version__

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """The versions of this package and of torch, by name."""
    return {"scoretk": __version__, "torch": str(torch.__version__)}
