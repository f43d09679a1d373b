"""Small trainings of every kind, for the tests of the fit loop; as a program, two processes that train together.

python tests/trainings.py FOLDER     # writes each one's weights to FOLDER/NAME-RANK.safetensors
"""

import multiprocessing
import os
import sys
from functools import partial
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import distributed, nn

import scoretk as stk
from scoretk import cli
from scoretk.learn import Player, Recipe, fit, flow_matching
from scoretk.learn.processes import joined, rank
from scoretk.models.digits.networks import Dropout, fresh
from tests.processes import held_port

STEPS = 12
RECIPE = Recipe(STEPS, batch=16, learning_rate=0.02, evaluations=6)
PARTED = Recipe(
    STEPS, batch=15, learning_rate=0.02, evaluations=6, parts=2
)  # slices of 8 and of 7 rows


def rows(n=60, dim=2):
    return 1 + torch.randn(n, dim, generator=torch.Generator().manual_seed(1))


def network(out, dim=2, dropout=0.0):
    def make():
        return nn.Sequential(nn.Linear(dim, 8), nn.SiLU(), Dropout(dropout), nn.Linear(8, out))

    return fresh(make, torch.Generator().manual_seed(2))


def deterministic(recipe=RECIPE, **options):
    """A loss that draws nothing."""
    net = network(2)
    return fit(net, lambda x, _: (net(x) - x.flip(1)).square().sum(1), rows(), recipe, **options)


def noisy(recipe=PARTED, **options):
    """Noise, times and dropout."""
    net = network(2, 3, dropout=0.3)

    def loss(x, generator):
        t, start = (
            torch.rand(len(x), generator=generator),
            torch.randn(x.shape, generator=generator),
        )
        return flow_matching(lambda y, s: net(torch.cat([y, s[:, None]], 1)), x, t, start)

    return fit(net, loss, rows(), recipe, **options)


def contrastive(recipe=PARTED, **options):
    """Persistent chains."""
    net = network(1)
    field = stk.Energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 4, (2,))
    divergence = stk.ContrastiveDivergence(
        stk.MALA(0.3), steps=2, start=stk.ReplayBuffer(20, refresh=0.2)
    )

    def loss(x, _):
        return divergence(field, x).loss, divergence.last

    return fit(net, loss, rows(), recipe, state=divergence, **options)


def game(recipe=PARTED, **options):
    """A critic that moves twice a step, and a generator."""
    nets = nn.ModuleDict({"critic": network(1), "generator": network(2)})

    def fakes(x, generator):
        return nets["generator"](torch.randn(x.shape, generator=generator))

    def critic_loss(x, generator):
        gap = nets["critic"](fakes(x, generator)).mean() - nets["critic"](x).mean()
        return gap + nets["critic"](x).square().mean(), {"gap": gap.detach()}

    def generator_loss(x, generator):
        return -nets["critic"](fakes(x, generator)).squeeze(1)

    def evaluate(x, generator):
        return (fakes(x, generator).mean(0) - x.mean(0)).square()

    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.5)
    players = [
        Player("critic", nets["critic"], critic_loss, steps=2, optimiser=sgd),
        Player("generator", nets["generator"], generator_loss),
    ]
    return fit(nets, players, rows(), recipe, evaluate=evaluate, **options)


KINDS = {f.__name__: f for f in (deterministic, noisy, contrastive, game)}


def main(folder):
    """Every kind in this process, and a command."""
    with joined():
        for name, train in KINDS.items():
            told = []
            done = train(checkpoint=folder / f"{name}.checkpoint", report=told.append)
            save_file(done.weights, folder / f"{name}-{rank()}.safetensors")
            assert len(told) == (0 if rank() else len(done.history))
        if rank() == 0:
            np.save(folder / "rows.npy", rows())
        distributed.barrier()
        chosen = ["--set", "steps=4", "--set", "width=8", "--set", "dropout=0.0"]
        command = ["fit", "digits-flow", "--data", str(folder / "rows.npy"), *chosen]
        assert cli.main([*command, "-o", str(folder / "flow.safetensors")]) == 0


def one_of_two(number, port, folder):
    """`main` with the variables that `torchrun` sets."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "trainings",
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    main(folder)


def launch(folder):
    """Two processes, forked before torch has threads: `torchrun` would import torch three times.

    What optimisers and ranks import when they are first used is imported here, once.
    """
    for name in ("torch._dynamo", "torch.distributed.fsdp"):
        import_module(name)
    held = held_port()
    port = held.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=one_of_two, args=(n, port, folder)) for n in (0, 1)]
    for process in both:
        process.start()
    running, failed = {process.sentinel: process for process in both}, False
    while running:
        for ended in wait(list(running)):
            process = running.pop(ended)
            process.join()  # its pipe is closed before it can be asked how it ended
            failed |= process.exitcode != 0
        for process in running.values() if failed else ():
            process.terminate()  # it would wait for the one that failed
    held.close()
    return int(failed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(launch(Path(sys.argv[1])))
