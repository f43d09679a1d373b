"""The demo, `scoretk demo`: every built-in model through every solver that serves it."""

from scoretk.demo.main import run_demo
from scoretk.demo.rows import Demo, Row
from scoretk.demo.table import print_tables

__all__ = ["Demo", "Row", "print_tables", "run_demo"]
