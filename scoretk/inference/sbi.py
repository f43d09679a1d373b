"""Posteriors of sbi whose samples are made here.

References:
    Tejero-Cantero, Boelts, Deistler, Lueckmann, Durkan, Goncalves, Greenberg, Macke, "sbi: a toolkit
    for simulation-based inference" (2020).
"""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

import torch
from torch import Tensor

from scoretk.adapters.sbi import from_sbi, potential_at
from scoretk.core.arguments import integer, numbers
from scoretk.core.dependencies import required
from scoretk.core.noise import derive
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.inference.sampling import sample

__all__ = ["to_sbi"]


def to_sbi(posterior: Any, solver: Any = None, **options: Any) -> Any:
    """A posterior of sbi whose samples a solver of this package makes.

    Args:
        posterior: A posterior of sbi, of any of its methods, or a potential that has its prior.
        solver: As in `scoretk.sample`.
        options: What `scoretk.sample` takes besides: "chains" (by default 100), "steps", "warmup",
            "seed", ...

    Returns:
        A posterior of sbi, of the same default observation. Its `sample(shape, x)` takes as many of
        each chain's draws as are needed, evenly from all that are kept, and
        `sample_batched(shape, x)` the same for each of several observations, in one run; each call
        has noise of its own, and the same calls in the same order draw the same. `log_prob` is the
        given posterior's own. Chains that fail are an error, unless `on_failure="flag"` is among the options.

    Raises:
        MissingDependency: sbi is not installed.
    """
    base = required("sbi.inference.posteriors.base_posterior", "sbi", "A posterior of sbi")
    settings = {"chains": 100, "on_failure": "raise"} | options | {"keep": "all"}

    calls, seed_of_all = count(), integer("seed", settings.pop("seed", 0), below=2**64)
    own = copy.deepcopy(getattr(posterior, "log_prob", None))

    class Sampled(base.NeuralPosterior):  # type: ignore[misc, name-defined]
        def log_prob(self, theta: Tensor, x: Any = None, **given: Any) -> Tensor:
            if own is None:
                raise MissingCapability(
                    "to_sbi(potential)",
                    {"sample", "sample_batched", "potential"},
                    {"log_prob"},
                    "A potential is known up to a constant: ask .potential(theta, x), or make it of "
                    "a posterior",
                )
            log_prob: Tensor = own(theta, self._x_else_default_x(x), **given)
            return log_prob

        def sample(
            self, sample_shape: Any = (), x: Any = None, show_progress_bars: bool = False
        ) -> Tensor:
            wanted = torch.Size(sample_shape)
            field = from_sbi(self.potential_fn, self._x_else_default_x(x))
            draws = sample(field, solver, **_run(show_progress_bars, next(calls)))
            return _spread(draws.x, wanted.numel()).reshape(*wanted, *draws.x.shape[2:])

        def sample_batched(
            self, sample_shape: Any, x: Any, show_progress_bars: bool = False
        ) -> Tensor:
            wanted, rows = torch.Size(sample_shape), numbers("x", x)
            run = _run(show_progress_bars, next(calls))
            each = run["chains"]
            held = copy.deepcopy(self.potential_fn)
            held.set_x(None)
            of_each = {"x_o": rows.repeat_interleave(each, 0)}
            run |= {"chains": each * len(rows), "cond": of_each}
            draws = sample(from_sbi(held), solver, **run)
            found = [_spread(part, wanted.numel()) for part in draws.x.split(each)]
            return torch.stack(found, 1).reshape(*wanted, len(rows), *draws.x.shape[2:])

    def _run(shown: bool, call: int) -> dict[str, Any]:
        seed = derive(seed_of_all, call) if call else seed_of_all
        return ({"progress": True} if shown else {}) | settings | {"seed": seed}

    return Sampled(potential_at(posterior, None))


def _spread(x: Tensor, n: int) -> Tensor:
    """So many draws, `(n, *event)`, evenly from all chains, and from each chain's `(chains, kept)`.

    Raises:
        InvalidArgument: There are fewer.
    """
    chains, kept = x.shape[:2]
    each = -(-n // chains)
    if each > kept:
        hint = f"Ask for steps={each} or more, or for more chains"
        raise InvalidArgument("sample_shape", n, f"at most {chains * kept} draws", hint)
    places = torch.linspace(kept - 1, 0, each, dtype=torch.float64).round().long()
    return x[:, places].transpose(0, 1).flatten(0, 1)[:n]
