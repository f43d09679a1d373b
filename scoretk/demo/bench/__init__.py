"""The published tables, run with this package's solvers: `scoretk bench`."""

from scoretk.demo.bench.low_error import Plan, Reached, gradients_to_low_error
from scoretk.demo.bench.rows import Asked
from scoretk.demo.bench.tables import TABLES
from scoretk.demo.bench.target import Moments, Published, Target

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
