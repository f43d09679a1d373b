"""Var x^2 of the German credit's parameters, by a long run: what `scoretk/demo/bench/spreads.py` holds.

    python benchmarks/spreads.py FOLDER      # of the Inference Gym's data; half an hour of a core

Prints E x^2 with its standard error over chains, the Inference Gym's, and Var x^2, one parameter a line.
"""

import sys
from pathlib import Path

import torch

import scoretk as stk
from scoretk.demo.bench import gym, spreads

CHAINS, DRAWS, SEED = 64, 1500, 11


def main(folder):
    torch.set_num_threads(1)
    target = gym.german_credit(folder)
    solver = stk.solvers.ChEES(metric="fisher")
    draws = stk.sample(target.field, solver, CHAINS, DRAWS, 1000, seed=SEED)
    u = draws.x.double().flatten(0, 1)
    features = (u.shape[1] - 1) // 2
    effects = u[:, 1 : 1 + features].exp() * u[:, 1 + features :]
    squares, fourths = spreads.given_effects(effects)
    g = (2 * u[:, :1]).exp()
    squares, fourths = torch.cat([g, squares], 1), torch.cat([g.square(), fourths], 1)
    mean = squares.mean(0)
    error = squares.unflatten(0, (CHAINS, DRAWS)).mean(1).std(0) / CHAINS**0.5
    variance = fourths.mean(0) - mean.square()
    for row in zip(mean, error, target.moments.mean_square, variance, strict=True):
        print("{:.4g} +- {:.2g}  {:.4g}  {:.4g}".format(*map(float, row)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
