"""`scoretk demo`: every built-in model through every solver that serves it, as one table and pictures."""

from scoretk.demo.main import Row, run_demo
from scoretk.demo.table import print_table

__all__ = ["Row", "print_table", "run_demo"]
