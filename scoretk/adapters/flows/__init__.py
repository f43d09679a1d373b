"""Normalizing flows of zuko, nflows, normflows and FrEIA as fields.

A flow is a bijection f from data to noise with a base law on the noise:

    log p(x | c) = log p_base(f(x; c)) + log |det df/dx|
    x = f^-1(z; c),  z ~ p_base

Density and score are the flow's own. Its samples are made from this package's noise, so that chain
17 draws the same x anywhere; that needs a base that is a known transform of normals or uniforms.
"""

from __future__ import annotations

from scoretk.adapters.flows.field import FlowField
from scoretk.adapters.flows.made import from_flow

__all__ = ["FlowField", "from_flow"]
