r"""Log partition functions `log Z`, `Z = int exp(-E(x)) dx`, by AIS or sequential Monte Carlo.

A pilot finds the ladder (`inference.pilot`), from a base that is given or found
(`inference.beginning`). Then the ladder is frozen, and the run proper uses noise of its own, so that
the mean weight is unbiased whatever the pilot found.

    log Z = log Z_base + log mean_c w_c,    stderr = sd(w) / (mean(w) sqrt(n))

over n independent chains in annealed importance sampling. In sequential Monte Carlo the w are
summed over *families*: all chains that descend from one first draw, 0 where none does. Resampled
weights are not independent; the sums of different families nearly are.

References:
    Neal, "Annealed importance sampling" (2001).
    Del Moral, Doucet, Jasra, "Sequential Monte Carlo samplers" (2006).
    Lee, Whiteley, "Variance estimation in the particle filter" (2018), for the families.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from scoretk.core.arguments import count, finite, flag, float_dtype, option
from scoretk.core.arguments import device as as_device
from scoretk.core.cost import together
from scoretk.core.devices import wide, widest
from scoretk.core.keywords import explained
from scoretk.core.noise import Noise, derive
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument, MissingCapability, Status
from scoretk.fields.base import plain_base
from scoretk.fields.bridge import Stretched, states_of
from scoretk.fields.constrained import Constrained
from scoretk.fields.distribution import as_field, in_free_space
from scoretk.fields.protocols import field_name, offers, optional
from scoretk.fields.resolve import StaticField, resolve, static
from scoretk.fields.wrapped import Kind, Wrapped
from scoretk.inference.beginning import (
    agreeing,
    beginning,
    given_base,
    in_quartiles,
    room_about,
    short_run,
)
from scoretk.inference.likelihood import Estimate
from scoretk.inference.pilot import MOST_MOVES, Aims, Found, Population, find_ladder
from scoretk.inference.sampling import sample
from scoretk.run.draws import Draws
from scoretk.solvers.base import Steps, check_settled, traits
from scoretk.solvers.clusters import SwendsenWang
from scoretk.solvers.discrete import BlockGibbs, GibbsWithGradients
from scoretk.solvers.hmc import HMC
from scoretk.solvers.importance import AIS, SMC, Ladder, offered_between
from scoretk.solvers.mclmc import AdjustedMCLMC
from scoretk.solvers.parts.nested import as_kernel, with_step_size

__all__ = ["Normalised", "log_evidence", "log_partition"]

FIRST_STEP = 0.3
LARGE = 0.15
"""The largest standard error to be trusted, in nats. It is that of 45 equal weights among many that
are 0: with fewer the mean of so skewed a law is not normal, and the largest weights are likely not
among those seen.
"""
ISLAND = 256
FALSE_ALARM = 1e-4
"""The rate of false alarms of the check against a Hamiltonian run."""
OF_ALL_SIZES = AdjustedMCLMC(
    0.5, leapfrogs=16, integrator="leapfrog", metric="none", accept=0.65, spread=16.0
)
"""The default kernel where the short run explores slowly: a step size that suits the neck of a funnel
is some hundredths of one that crosses its mouth.
"""


@dataclass(frozen=True, eq=False)
class Normalised(Wrapped):
    """A static field with an energy and a known log Z, which gives `log_prob(x) = -E(x) - log Z`.

    So `bits_per_dim` and the like serve it.

    Args:
        field: A static field with an energy.
        log_z: A number, such as `float(log_partition(field).value)`. Its standard error, which all
            rows share, is not in the standard errors made of `log_prob`: add it, over d log 2 for
            bits per dimension.
    """

    field: Any
    log_z: float

    kind = Kind.SAME
    computed = frozenset({"energy", "score", "log_prob"})

    @property
    def inner(self) -> tuple[Any, ...]:
        return (self.field,)

    def __post_init__(self) -> None:
        resolve(self.field, {"energy"} | ({"states"} & offers(self.field)), timed=False)
        super().__post_init__()
        finite("log_z", self.log_z)

    def energy(self, x: Tensor) -> Tensor:
        """The field's energy, `(batch,)`."""
        energy: Tensor = self.field.energy(x)
        return energy

    def score(self, x: Tensor) -> Tensor:
        """The field's score, like x."""
        return static(self.field).score(x)

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and its gradient, for the price of one where the field allows."""
        return static(self.field).energy_and_grad(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log density `-E(x) - log Z`, `(batch,)`."""
        return -self.energy(x) - self.log_z

    def users_log_prob(self, x: Tensor) -> Tensor:
        """The log density of a constrained field in the user's space, `(batch,)`; `-inf` outside."""
        energy: Tensor = self.field.users_energy(x)
        return -energy - self.log_z


@explained
def log_partition(
    field: Any,
    base: Any = None,
    *,
    method: str = "ais",
    chains: int = 1024,
    levels: int | None = None,
    kernel: Steps | str | None = None,
    moves: int = 1,
    jumps: int | None = None,
    island: int | None = None,
    pilot: int = 256,
    check: bool = True,
    seed: int = 0,
    batch: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: bool | None = None,
) -> Estimate:
    """The log partition function `log Z` of a static energy, or its difference between two fields.

    Args:
        field: A static field with an energy.
        base: Where the annealing begins: a static field with `energy` and `draw`, or a torch
            distribution; for a constrained field a law of free space, or a distribution with the
            same support. By default, for discrete states, the uniform law; else a Gaussian about a
            short run of `ChEES`, 1.5 times as wide (less so of more than 24 coordinates), or about
            the chains of a pilot from ten times as far out, where these come to regions beyond it.
            Where a base has `log_prob` its own log Z is known and added; where not, the value is
            `log Z - log Z_base`.
        method: "ais" (annealed importance sampling) or "smc" (sequential Monte Carlo).
        chains: How many chains there are; for "smc" whole islands.
        levels: How many levels the ladder has; by default as many as the pilot finds it to need.
            Of more than that each makes its share of the moves.
        kernel: An exact kernel, or its name; by default HMC with 2 leapfrog steps, about a quarter
            of a period; where the short run explores slowly, as in a funnel, `AdjustedMCLMC` with steps
            of a spread of sizes, and as many levels for "smc" as for "ais"; for discrete states
            `SwendsenWang` where the field has couplings (a
            lattice), `BlockGibbs` where it has a path of its own from the base (a Boltzmann machine), else
            `GibbsWithGradients`.
        moves: The least number of steps of the kernel at each level; where the pilot finds that
            they decorrelate slowly there are up to 20.
        jumps: After the kernel's steps at each level, how often it is proposed to put some
            coordinates where chains of the pilot were, each coordinate by itself. A few are enough to
            go between regions that no kernel goes between, where coordinates hang together little.
            Each takes an energy, and one more a level. By default 6 where the chains of the short run
            stay in regions that they began in; none elsewhere, without a short run (a base is given,
            and `check=False`), and for discrete states.
        island: How many chains are resampled together; by default 256, or all where they are fewer.
        pilot: How many chains find the ladder.
        check: Whether the weighted draws are compared with a short tuned Hamiltonian run, where
            states are continuous; and whether its energy explores slowly, where the base is made
            of that run or falls faster far out than the field.
        seed: As in `sample`.
        batch: As in `sample`.
        device: As in `sample`.
        dtype: As in `sample`.
        progress: As in `sample`.

    Returns:
        An `Estimate`, value and stderr `()`, in nats. Where few chains carry the weight, the kernel
        is too slow for the ladder, or a check fails, the standard error is not to be trusted: a
        warning is given, `method` says so, and `status` is `UNTRUSTED`.

        A region that no chain comes to leaves no trace, and is not told: one farther away than about
        forty standard deviations of what the short run sees, or one much narrower than the others,
        in two dimensions a tenth of their width, in five three tenths, in ten a half. Where there
        may be such regions give a `base` that covers them, or compare with chains that `init` puts
        there.

    Raises:
        InvalidArgument: For wrong arguments, and a base from which the field is not reached.
        MissingCapability: Where the field has no energy, or the base cannot be drawn from.
    """
    field, base = _in_free_space(field, base)
    option("method", method, ("ais", "smc"))
    chains, pilot = count("chains", chains, least=2), count("pilot", pilot, least=16)
    moves, check = count("moves", moves, least=1), flag("check", check)
    jumps = None if jumps is None else count("jumps", jumps, least=0)
    if jumps and states_of(field) is not None:
        raise InvalidArgument("jumps", jumps, "0 for discrete states")
    levels = None if levels is None else count("levels", levels, least=1)
    given = None if kernel is None else as_kernel(kernel, sweeps=True)
    device = None if device is None else as_device("device", device)
    dtype = None if dtype is None else float_dtype("dtype", dtype)
    island = min(chains, ISLAND) if island is None else count("island", island, least=2)
    if method == "smc" and chains % island:
        raise InvalidArgument("chains", chains, f"whole islands of {island}: a multiple of it")
    made = base is None and states_of(field) is None
    start = None if made else _base(field, base)
    usual = _settled(_default_kernel(field, start) if given is None else given)
    resolve(field, usual.needs, timed=False)
    population = Population(pilot, derive(seed, 1), device, dtype)
    look = partial(short_run, field, seed, device, dtype)

    def find(base: Any, by_default: int, kernel: Any = usual) -> Found:
        aims = Aims(refine=method == "ais")
        if kernel is OF_ALL_SIZES:
            aims = Aims(refine=True, accept=kernel.accept, metric="fisher", every=True)
        return find_ladder(
            field,
            base,
            kernel,
            population,
            moves=moves,
            jumps=by_default if jumps is None else jumps,
            levels=levels,
            aims=aims,
        )

    if made:
        begun = beginning(look, find, partial(room_about, field, population))
    else:
        seen = look() if check and states_of(field) is None else None
        begun = given_base(start, seen, field, population)
    # which takes two dimensions at least
    spread = given is None and begun.slow and math.prod(field.event_shape) > 1
    inner = OF_ALL_SIZES if spread else usual
    found = find(begun.base, begun.jumps, inner)
    ladder = found.ladder
    run: AIS | SMC = AIS(base=begun.base, kernel=inner, moves=moves, ladder=ladder)
    if method == "smc":
        run = SMC(base=begun.base, kernel=inner, moves=moves, ladder=ladder, island=island)
    draws = sample(
        field,
        run,
        chains=chains,
        seed=seed,
        batch=batch,
        device=device,
        dtype=dtype,
        progress=progress,
        keep="all",
    )
    log_weight = torch.where(draws.ok, wide(draws.stats["log_weight"][:, -1]), torch.nan)
    value, stderr, effective = _log_mean(_families(log_weight, draws.stats["ancestor"][:, -1]))
    seen = begun.look if check else None
    apart = 0.0 if seen is None else _disagreement(seen, draws, log_weight)
    doubts = _doubts(float(stderr), apart, ladder, blind=begun.slow and not begun.covers and check)
    for doubt in doubts:
        warn(f"log_partition: {doubt}")
    known = _log_z(begun.base, draws.final.dtype, draws.final.device, seed)
    cost = together([draws.cost, found.cost, *begun.costs])
    ratio = "" if known is not None else "ratio to the base, "
    how = f"{method.upper()} ({ratio}{ladder.levels} levels, effective {effective:.0f} of {chains} chains)"
    return _told(Estimate(value + (known or 0.0), stderr, how, cost), draws, bool(doubts))


@explained
def log_evidence(draws: Draws) -> Estimate:
    """The evidence log p(y) that weighted draws of a posterior have found on their way.

    Args:
        draws: Of `TwistedSMC`, of one measurement; those of several are told apart by slices,
            `log_evidence(draws[:256])`. Also of `AIS` and `SMC`: then it is `log Z - log Z_base`.

    Returns:
        An `Estimate`, value and stderr `()`, in nats: the error is that of the spread of families, all chains
        that descend from one start. Above .15 it is not to be trusted, which is warned of, and said by
        `method` and `status`. The prior is the law of the steps that were taken, which is off by the
        order of 1 / steps: that is not in the error.

    Raises:
        InvalidArgument: Draws without weights, or of several measurements.
    """
    if isinstance(draws, Draws) and not draws.kept:
        expected = "'all' or 'last': of moments there is the mean of the weights on the way"
        raise InvalidArgument("keep", "moments", expected)
    stats = draws.stats if isinstance(draws, Draws) else {}
    kept = {name: stats.get(name) for name in ("log_weight", "ancestor", "measurement")}
    log_weight, ancestor, measurement = (
        None if value is None else value.reshape(len(value), -1)[:, -1] for value in kept.values()
    )
    if log_weight is None or ancestor is None:
        raise InvalidArgument("draws", draws, "draws of TwistedSMC, AIS or SMC, which have weights")
    measurement = None if measurement is None else measurement[draws.ok]
    if measurement is not None and bool((measurement != measurement[:1]).any()):
        raise InvalidArgument(
            "draws", draws, "draws of one measurement", "Select its chains: draws[0:256]"
        )
    families = _families(
        torch.where(draws.ok, wide(log_weight), torch.nan), ancestor.unique(return_inverse=True)[1]
    )
    value, stderr, effective = _log_mean(families)
    error = float(stderr.detach())
    doubts = not error <= LARGE
    if doubts:
        warn(
            f"log_evidence: the standard error is {error:.3g}, above {LARGE}, and not to be "
            "trusted; use more chains, more steps, or a better guidance"
            if bool(draws.ok.all())
            else f"log_evidence: {int((~draws.ok).sum())} of {len(draws)} chains failed, and their weights are "
            "not known"
        )
    how = f"weights (effective {effective:.0f} of {len(log_weight)} chains)"
    return _told(Estimate(value, stderr, how, draws.cost), draws, doubts)


def _told(found: Estimate, draws: Draws, doubted: bool) -> Estimate:
    """An estimate whose method and status say whether it is to be trusted."""
    status = Status.UNTRUSTED if doubted else Status.OK
    if not bool(draws.ok.all()):
        status = Status.NONFINITE
    method = found.method + (", not to be trusted" if doubted else "")
    return replace(found, method=method, status=torch.tensor(int(status)))


def _in_free_space(field: Any, base: Any) -> tuple[Any, Any]:
    """The field and the base in free space, where kernels work.

    They have no map to the user's space, so that draws stay in free space.
    """
    field, base = in_free_space(field), as_field(base)
    if not isinstance(field, Constrained):
        return field, base
    if optional(base, "support") is not None:
        base = Constrained(base, field.transform, field.event_shape, field.constraint)
    return Stretched(field, 1.0), base


def _base(field: Any, base: Any) -> Any:
    if base is None:
        return plain_base(field)
    if not {"energy", "draw"} <= offers(base):
        raise MissingCapability(
            field_name(base),
            offers(base),
            {"energy", "draw"},
            "The base must be one that can be drawn from exactly, by a transform of uniforms or "
            "normals: Normal, Exponential, LogNormal, Uniform and their like can, Gamma, Beta and "
            "Dirichlet cannot. Leave base out, and one is found",
        )
    if tuple(base.event_shape) != tuple(field.event_shape):
        raise InvalidArgument(
            "base", field_name(base), f"a field of event shape {tuple(field.event_shape)}"
        )
    return base


def _disagreement(look: Draws, draws: Draws, log_weight: Tensor) -> float:
    """How far the weighted draws are from the short run: the largest |z| over the limit of |z|.

    Above 1 they are of two laws. Compared are the means of each coordinate u, in units of its
    quartiles and clamped at 3 so that no tail decides, and of u^2, where the chains of the short
    run agree among themselves in both: where they stay in the regions that they began in, how often
    each is met says nothing, and the square has a share in that. A region that the annealed chains
    never find cannot be seen in their weights, but here.
    """
    known = look.x[look.ok]
    if len(known) < 2:
        return 0.0
    ours, theirs = in_quartiles(draws.final[:, None], known)[:, 0], in_quartiles(known, known)
    chains = theirs.mean(1)
    weight = torch.softmax(log_weight, 0)[:, None]
    mean = (weight * ours).sum(0)
    family = torch.zeros_like(ours).index_add_(
        0, draws.stats["ancestor"][:, -1], weight * (ours - mean)
    )
    z = (chains.mean(0) - mean) / (chains.var(0) / len(chains) + family.square().sum(0)).sqrt()
    judged = z[agreeing(theirs) & z.isfinite()]
    limit = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * max(len(judged), 1)))
    return float(judged.abs().max()) / limit if len(judged) else 0.0


def _settled(kernel: Any) -> Any:
    """The kernel with a first step size where it has none, which the pilot tunes.

    Raises:
        InvalidArgument: Something else of it is to be learned in a warmup.
    """
    if traits(kernel).step_size is None:
        kernel = with_step_size(kernel, FIRST_STEP)
    check_settled("kernel", kernel)
    return kernel


def _default_kernel(field: Any, base: Any) -> Any:
    if states_of(field) is None:
        return HMC(0.3, leapfrogs=2, metric="none")
    bound = resolve(field, {"energy", "states"}, timed=False)
    assert isinstance(bound, StaticField)
    offered = offered_between(bound, base)
    if "couplings" in offered:
        return SwendsenWang()
    return BlockGibbs() if "gibbs" in offered else GibbsWithGradients()


def _log_z(base: Any, dtype: torch.dtype, device: torch.device, seed: int) -> float | None:
    """The base's own log Z, from its normalised density and its energy at one draw.

    None where it has no normalised density.
    """
    if "log_prob" not in offers(base):
        return None
    x = wide(base.draw(1, Noise(seed, 1, device=device, dtype=widest(device))))
    return -float(base.log_prob(x) + base.energy(x))


def _families(log_weight: Tensor, ancestor: Tensor) -> Tensor:
    """The log of the summed weights of each ancestor's descendants, `(chains,)`; -inf without any.

    Resampled weights are not independent, but those of different ancestors nearly are: their spread
    is that of the estimate.
    """
    top = log_weight.max().clamp(min=torch.finfo(log_weight.dtype).min)
    summed = torch.zeros_like(log_weight).index_add_(0, ancestor, (log_weight - top).exp())
    return summed.log() + top


def _doubts(stderr: float, apart: float, ladder: Ladder, *, blind: bool = False) -> list[str]:
    """The reasons why a standard error is not to be trusted, as text; none where it is.

    Args:
        stderr: The standard error.
        apart: The result of `_disagreement`.
        ladder: The ladder.
        blind: Whether the short run has not seen all of the field, and the base does not cover it.
    """
    doubts = []
    if apart > 1:
        doubts.append(
            "the weighted draws disagree with a Hamiltonian run of the field, so that regions may "
            f"be missing and the standard error too small; use more levels than {ladder.levels}, "
            "more moves, another kernel or base"
        )
    if not stderr <= LARGE:
        doubts.append(
            f"the standard error is {stderr:.3g}, above {LARGE}: so few weights count that neither "
            f"it nor the value is to be trusted; use more levels than {ladder.levels}, more moves, "
            "more chains, or a base nearer to the field"
        )
    if blind:
        doubts.append(
            "the energy of a Hamiltonian run of the field explores slowly, as in funnels and heavy "
            "tails, and the base is made of that run or falls faster far out than the field, so that "
            "regions may be missing and the standard error too small; give a base that covers the "
            "field, or write it in other coordinates"
        )
    slow = sum(moves >= MOST_MOVES for moves in ladder.moves or ())
    if slow:
        doubts.append(
            f"at {slow} of {ladder.levels} levels the kernel had not forgotten where it was after "
            f"{MOST_MOVES} steps, so that regions may be missing and the standard error too small; "
            "use another kernel, more moves or base"
        )
    return doubts


def _log_mean(log_weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """The log of the mean weight, its standard error by the delta method, and the effective number."""
    n, top = len(log_weight), log_weight.max()
    w = (log_weight - top).exp() if bool(top > -torch.inf) else log_weight * torch.nan
    mean = w.mean()
    spread = w.std() if n > 1 else w.new_tensor(torch.nan)
    effective = w.sum().square() / w.square().sum()
    return top + mean.log(), spread / (mean * math.sqrt(n)), float(effective.detach())
