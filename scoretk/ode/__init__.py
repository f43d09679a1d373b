"""Ordinary differential equations: grids of times, tableaus, row-wise adaptive steps, adjoints."""
