"""What a field can offer: the one list, and how it is read from a field.

energy    E(x) = -log p(x) + const
score     grad log p(x); of a field in time that of p_t
velocity  dx/dt of the flow from t = 0 to t = 1
denoise   E[x_1 | x_t = x]
log_prob  the normalised log density
draw      exact samples, a function of the noise
decode    from what is sampled (a latent) to the data
base      the law at t = 0
states    the states of each site, of a discrete field
gibbs     a sweep of block Gibbs sampling
couplings the bonds of a discrete field that couples pairs of sites alone
"""

from __future__ import annotations

__all__ = ["CAPABILITIES", "offers"]

CAPABILITIES = (
    "energy",
    "score",
    "velocity",
    "denoise",
    "log_prob",
    "draw",
    "decode",
    "base",
    "states",
    "gibbs",
    "couplings",
)
"""What a field can offer, in the order in which it is shown."""


def offers(field: object) -> frozenset[str]:
    """The names in `CAPABILITIES` that a field offers.

    Its own `provides` where it has one, else the capabilities that it has as attributes.
    """
    declared = getattr(field, "provides", None)
    if declared is not None:
        return frozenset(declared)
    return frozenset(name for name in CAPABILITIES if getattr(field, name, None) is not None)
