r"""digits-rbm: a restricted Boltzmann machine of handwritten digits as binary images.

    p(v, h) = exp(b . v + c . h + v^T W h) / Z,    v_i, h_j = 0 or 1
    E(v) = -b . v - sum_j log(1 + exp(c_j + (v W)_j))

It is fitted by the gradient of `mean E(v+) - mean E(v-)`, v+ being the data and v- the outcome of
block Gibbs sweeps that start from

    cd            the data (Hinton 2002)
    persistent    the negatives of the step before (Tieleman 2008)
    tempered      these, swapped with replicas at machines on the way from independent units
                  (Desjardins et al. 2010)

Sample it with `BlockGibbs()`, `GibbsWithGradients()` or `DiscreteLangevin(0.5)`; log Z is

    stk.log_partition(field, base=IndependentUnits.of(data), kernel=stk.BlockGibbs())

annealed from independent units at the data's rates (Salakhutdinov, Murray 2008), of which log Z is
known, along machines with the parameters `(1 - w) b_0 + w b, w W, w c`.

References:
    Hinton, "Training products of experts by minimizing contrastive divergence" (2002).
    Tieleman, "Training restricted Boltzmann machines using approximations to the likelihood
    gradient" (2008).
    Desjardins, Courville, Bengio, Vincent, Delalleau, "Tempered Markov chain Monte Carlo for
    training of restricted Boltzmann machines" (2010).
    Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks" (2008).
    Hinton, "A practical guide to training restricted Boltzmann machines" (2010).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from scoretk.core.arguments import count, option, tensor_like
from scoretk.core.noise import Noise, derive
from scoretk.core.rows import select_rows
from scoretk.errors import InvalidArgument
from scoretk.fields.discrete import DiscreteField
from scoretk.inference.sampling import sample
from scoretk.learn.contrastive import CDStep, ContrastiveDivergence, ReplayBuffer
from scoretk.learn.fitting import Recipe
from scoretk.models.digits.data import binarised, load_digits
from scoretk.models.digits.stored import Stored, read_weights
from scoretk.models.digits.training import File, Report, TrainingRequest
from scoretk.models.targets.lattices import RBM, IndependentUnits
from scoretk.solvers import BlockGibbs

__all__ = ["NEGATIVES", "Tempered", "TemperedDivergence", "build", "default_data", "train"]

MODEL = "digits-rbm"
NEGATIVES = ("cd", "persistent", "tempered")
INITIAL_SCALE = 0.01
"""The standard deviation of the weights at the start (Hinton 2010)."""


def build(weights: File = None) -> RBM:
    """The machine with these weights, by default the shipped ones.

    Event shape `(1, 8, 8)` for the digits, pixels 0 or 1.

    Raises:
        InvalidArgument: Where the file holds no weights of this model.
    """
    stored = read_weights(weights, MODEL)
    settings = stored.settings
    network = stored.into(lambda: Parameters(tuple(settings["event_shape"]), settings["hidden"]))
    return RBM(*(p.detach() for p in network.parameters()))


def default_data() -> Tensor:
    """The data of the shipped weights: the digits' training images, ink as 1, `(1437, 1, 8, 8)`."""
    return binarised(load_digits().train)


def train(
    data: Tensor | None = None,
    *,
    seed: int = 0,
    steps: int = 6000,
    method: str = "persistent",
    hidden: int = 128,
    sweeps: int = 1,
    chains: int = 256,
    replicas: int = 8,
    learning_rate: float = 5e-3,
    decay: float = 0.1,
    report: Report = None,
    checkpoint: File = None,
) -> Stored:
    """Fit the machine to data.

    Args:
        data: The data, `(n, *event_shape)` of 0 and 1, None for the digits.
        seed: The seed of the random numbers.
        steps: How many steps the optimiser makes.
        method: "cd", "persistent" or "tempered".
        hidden: The number of hidden units.
        sweeps: How many block Gibbs sweeps are made before each step of the optimiser.
        chains: How many persistent chains there are.
        replicas: How many replicas each chain has, at least 2, with "tempered".
        learning_rate: The learning rate of the optimiser.
        decay: Its decoupled weight decay.
        report: Called with the progress after each evaluation.
        checkpoint: The file to save to and to go on from, None for none.

    Returns:
        The averaged weights of the last step.

    Raises:
        InvalidArgument: For data or settings that do not fit.
        UnknownName: For an unknown method.
        FitFailure: Where loss, gradient or weights are no longer finite.
        CheckpointError: Where the checkpoint is damaged or another run's.
    """
    rows = _states(default_data() if data is None else data)
    option("method", method, NEGATIVES)
    count("replicas", replicas, least=2)
    shape, units = tuple(rows.shape[1:]), IndependentUnits.of(rows)
    network = Parameters(shape, count("hidden", hidden, least=1))
    network.start(units.bias, torch.Generator().manual_seed(seed))
    batch = min(256, count("chains", chains, least=1))
    divergence: Any
    if method == "tempered":
        divergence = TemperedDivergence(units, batch, sweeps, replicas, seed)
    else:
        start: Any = ReplayBuffer(chains, refresh=0.0) if method == "persistent" else "data"
        divergence = ContrastiveDivergence(BlockGibbs(), sweeps, start, seed)
    recipe = Recipe(
        steps,
        batch=batch,
        learning_rate=learning_rate,
        betas=(0.5, 0.99),
        weight_decay=decay,
        clip=10.0,
        held_out=0.0,
    )
    asked = {
        "steps": steps,
        "method": method,
        "hidden": hidden,
        "sweeps": sweeps,
        "chains": chains,
        "replicas": replicas,
        "learning_rate": learning_rate,
        "decay": decay,
    }
    training = TrainingRequest(MODEL, data is None, seed, report, checkpoint, asked)
    done = training.fit(
        network, lambda x, _: divergence(network.machine, x).loss, rows, recipe, state=divergence
    )
    return training.stored({"event_shape": list(shape), "hidden": hidden}, done.weights)


class Parameters(nn.Module):
    """The parameters W, b and c of a machine, by the names and in the order of `RBM`."""

    def __init__(self, event_shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(math.prod(event_shape), hidden))
        self.visible_bias = nn.Parameter(torch.zeros(event_shape))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))

    @torch.no_grad()
    def start(self, bias: Tensor, generator: torch.Generator) -> None:
        """Set W to small normal numbers and b to `bias`; c stays 0."""
        self.weights.normal_(0.0, INITIAL_SCALE, generator=generator)
        self.visible_bias.copy_(bias)

    @property
    def machine(self) -> RBM:
        """The machine with the present parameters, differentiable in them."""
        return RBM(self.weights, self.visible_bias, self.hidden_bias)


@dataclass(frozen=True, eq=False)
class Tempered(DiscreteField):
    """Replicas of a machine along the way from independent units, as one field.

    Replica k is at the machine that is w_k of the way, and `E(x) = sum_k E_k(x_k)`. A sweep is one
    of each replica, followed by exact swaps of neighbours, of places 0 and 1, 2 and 3, ..., then of
    1 and 2, 3 and 4, ..., accepted with probability

        min(1, exp(E_k(x_k) + E_l(x_l) - E_k(x_l) - E_l(x_k))),    l = k + 1

    So `BlockGibbs` on it is parallel tempering of the machine, whose law is that of the first
    replica.

    Args:
        machine: The machine, at w = 1.
        units: The independent units, at w = 0.
        replicas: K, at w evenly spaced from 1 first to 0 last.
    """

    machine: RBM
    units: IndependentUnits
    replicas: int

    states = (0.0, 1.0)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.replicas, *self.machine.event_shape)

    @property
    def provides(self) -> frozenset[str]:
        """What `DiscreteField` provides, and a Gibbs sweep."""
        return super().provides | {"gibbs"}

    @cached_property
    def laws(self) -> list[RBM]:
        """The machines of the replicas, K of them."""
        between = [
            self.machine.between(self.units, 1 - k / (self.replicas - 1))
            for k in range(self.replicas)
        ]
        return [law for law in between if law is not None]

    @property
    def gibbs_shape(self) -> tuple[int, ...]:
        """The uniforms of each replica's sweep, and one for each pair of neighbours."""
        return (self.replicas * self.machine.gibbs_shape[0] + self.replicas - 1,)

    def energy(self, x: Tensor) -> Tensor:
        """The replicas' energies summed, `(batch,)`."""
        return torch.stack([law.energy(x[:, k]) for k, law in enumerate(self.laws)]).sum(0)

    def score(self, x: Tensor) -> Tensor:
        """Each replica's own score, like x."""
        return torch.stack([law.score(x[:, k]) for k, law in enumerate(self.laws)], 1)

    def gibbs(self, x: Tensor, u: Tensor) -> Tensor:
        """A sweep of each replica and a round of swaps.

        Args:
            x: `(batch, K, *event_shape of the machine)`.
            u: Uniforms, `(batch, *gibbs_shape)`.

        Returns:
            The new x.
        """
        own, of_swaps = u.tensor_split([-(self.replicas - 1)], 1)
        sweeps = zip(self.laws, x.unbind(1), own.chunk(self.replicas, 1), strict=True)
        swept = [law.gibbs(x_k, u_k) for law, x_k, u_k in sweeps]
        for k in (*range(0, self.replicas - 1, 2), *range(1, self.replicas - 1, 2)):
            below, above = self.laws[k], self.laws[k + 1]
            here, there = swept[k : k + 2]
            gain = (
                below.energy(here) + above.energy(there) - below.energy(there) - above.energy(here)
            )
            swap = of_swaps[:, k].log() < gain
            swept[k : k + 2] = select_rows(swap, there, here), select_rows(swap, here, there)
        return torch.stack(swept, 1)


class TemperedDivergence:
    """Persistent contrastive divergence with tempered chains.

    `loss, negatives = divergence(machine, batch)`.

    Args:
        units: The independent units from which the replicas' way begins.
        chains: How many chains are kept, each with its replicas.
        sweeps: How many block Gibbs sweeps a call makes.
        replicas: How many replicas a chain has.
        seed: The seed of the chains' noise.

    References:
        Desjardins, Courville, Bengio, Vincent, Delalleau, "Tempered Markov chain Monte Carlo for
        training of restricted Boltzmann machines" (2010).
    """

    def __init__(
        self, units: IndependentUnits, chains: int, sweeps: int, replicas: int, seed: int
    ) -> None:
        self.units = units
        self.chains = chains
        self.sweeps = count("sweeps", sweeps, least=1)
        self.replicas = replicas
        self.seed, self.calls, self.part = seed, 0, 0
        self.x: Tensor | None = None  # the replicas, once there are any

    def __call__(self, machine: RBM, batch: Tensor) -> CDStep:
        """The loss `mean E(batch) - mean E(negatives)`, and the negatives: all first replicas."""
        if self.x is None:
            n = self.chains * self.replicas
            start: Any = Noise(self._of_call(), n)
            self.x = self.units.draw(n, start).unflatten(0, (self.chains, self.replicas))
        self.calls += 1
        tempered = Tempered(machine, self.units, self.replicas)
        draws = sample(
            tempered,
            BlockGibbs(),
            steps=self.sweeps,
            seed=self._of_call(),
            init=self.x,
            keep="last",
            progress=False,
        )
        self.x = draws.final.detach()
        negatives = self.x[:, 0]
        return CDStep(machine.energy(batch).mean() - machine.energy(negatives).mean(), negatives)

    def _of_call(self) -> int:
        """The seed of the present call's noise."""
        return derive(derive(self.seed, 2**64 - self.part) if self.part else self.seed, self.calls)

    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on exactly from here: the number of calls, and the replicas."""
        state = {"calls": torch.tensor(self.calls), "part": torch.tensor(self.part)}
        return state if self.x is None else state | {"x": self.x}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.calls, self.part, self.x = int(state["calls"]), int(state["part"]), state.get("x")

    def for_part(self, part: int) -> None:
        """As `ContrastiveDivergence.for_part`."""
        self.part = part


def _states(data: Any) -> Tensor:
    """Data of 0 and 1, at least two rows, in float32 on the CPU.

    Raises:
        InvalidArgument: For other data.
    """
    shape = tuple(getattr(data, "shape", ()))
    if len(shape) < 2 or shape[0] < 2:
        raise InvalidArgument("data", data, "at least two rows, shape (n, *event_shape)")
    rows = tensor_like("data", data, (None, *shape[1:])).detach().to("cpu", torch.float32)
    if not bool(((rows == 0) | (rows == 1)).all()):
        raise InvalidArgument("data", data, "rows of 0 and 1", "Of images: (x > threshold).float()")
    return rows
