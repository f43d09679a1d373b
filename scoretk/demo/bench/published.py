"""What the literature reached, by target."""

from __future__ import annotations

from types import MappingProxyType

from scoretk.demo.bench.target import Published

__all__ = [
    "BANANA",
    "BIMODAL",
    "BROWNIAN",
    "COLUMNS",
    "FUNNEL",
    "GERMAN_CREDIT",
    "ILL_CONDITIONED",
    "ITEM_RESPONSE",
    "ROSENBROCK",
    "VOLATILITY",
]

COLUMNS = ("NUTS", "best unadjusted", "best adjusted")
SOURCE = (
    "a public benchmark of samplers (sampler-benchmarks, of the authors of MAMS), as quoted in the "
    "field; not run again by us; tuning apart, 20,000 to 40,000 gradients a chain for unadjusted "
    "methods and 1e5 to 1e6 for the others"
)


def _reached(*values: float | None) -> Published:
    return Published(MappingProxyType(dict(zip(COLUMNS, values, strict=True))), SOURCE)


BANANA = _reached(9_789, 6_580, 14_304)
ROSENBROCK = _reached(220_823, 67_638, 94_707)
BROWNIAN = _reached(33_462, 8_834, 14_366)
GERMAN_CREDIT = _reached(200_842, 32_083, 56_953)
ITEM_RESPONSE = _reached(71_758, 19_020, 40_073)
VOLATILITY = _reached(1_329_027, 318_704, 402_531)
BIMODAL = _reached(248_728, None, 193_336)
FUNNEL = _reached(None, None, 1_432_043)
ILL_CONDITIONED = _reached(21_674, None, None)
