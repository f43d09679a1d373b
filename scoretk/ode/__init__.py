"""Differential equations as numbers: grids of times, tableaus, steps row by row, and their adjoints."""
