"""Differential equations as numbers.

Grids of times, tableaus, steps row by row, and their adjoints.
"""
