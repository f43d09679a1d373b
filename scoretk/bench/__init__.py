"""The published tables, run with this package's solvers: `scoretk bench`."""

from scoretk.bench.low_error import Plan, Reached, gradients_to_low_error
from scoretk.bench.rows import Asked
from scoretk.bench.tables import TABLES
from scoretk.bench.target import Moments, Published, Target

__all__ = [
    "TABLES",
    "Asked",
    "Moments",
    "Plan",
    "Published",
    "Reached",
    "Target",
    "gradients_to_low_error",
]
