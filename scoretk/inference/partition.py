r"""Log partition functions `log Z`, `Z = int exp(-E(x)) dx`, by AIS or sequential Monte Carlo.

A pilot, a population that is resampled at every level, finds the ladder: each next weight such that
the effective share of the population stays at .9, the kernel's step size at each level by its
acceptance, its units by the population's spread, and the number of its moves by how soon the gains
of log weights decorrelate. Then the ladder is frozen, and the run proper uses noise of its own, so
that the mean weight is unbiased whatever the pilot found.

    log Z = log Z_base + log mean_c w_c,    stderr = sd(w) / (mean(w) sqrt(n))

over n independent chains in annealed importance sampling. In sequential Monte Carlo the w are
summed over *families*: all chains that descend from one first draw, 0 where none does. Resampled
weights are not independent; the sums of different families nearly are.

References:
    Neal, "Annealed importance sampling" (2001).
    Del Moral, Doucet, Jasra, "Sequential Monte Carlo samplers" (2006).
    Lee, Whiteley, "Variance estimation in the particle filter" (2018), for the families.
    Zhou, Johansen, Aston, "Toward automatic model comparison: an adaptive sequential Monte Carlo
    approach" (2016), for the ladder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.distributions import Independent, Normal

from scoretk.core.anatomy import check_place, left_as_found, state_like
from scoretk.core.arguments import count, finite, flag, float_dtype, option
from scoretk.core.arguments import device as as_device
from scoretk.core.cost import Cost
from scoretk.core.devices import wide, widest
from scoretk.core.keywords import explained
from scoretk.core.noise import Noise, derive
from scoretk.core.streams import Stream
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument, MissingCapability, Status
from scoretk.fields.base import plain_base
from scoretk.fields.bridge import Bridge, Stretched, states_of
from scoretk.fields.constrained import Constrained
from scoretk.fields.distribution import as_field, from_distribution, in_free_space
from scoretk.fields.protocols import field_name, offers, optional
from scoretk.fields.resolve import StaticField, resolve, static
from scoretk.fields.wrapped import Kind, Wrapped
from scoretk.inference.likelihood import Estimate
from scoretk.inference.sampling import sample
from scoretk.run.draws import Draws
from scoretk.solvers.base import Steps, check_settled, has_step_size, traits
from scoretk.solvers.clusters import SwendsenWang
from scoretk.solvers.discrete import BlockGibbs, GibbsWithGradients
from scoretk.solvers.hmc import HMC, ChEES
from scoretk.solvers.importance import (
    AIS,
    SMC,
    Ladder,
    check_path,
    kernel_at,
    law_at,
    log_gain,
    move,
    offered_between,
    resampled,
    rising,
)
from scoretk.solvers.parts.jumps import energies_of_jumps, jump, quantiles_of
from scoretk.solvers.parts.nested import NestedNoise, as_kernel, with_step_size

__all__ = ["Found", "Normalised", "Population", "find_ladder", "log_evidence", "log_partition"]

SHARE = 0.9
SPREAD = 0.5
"""The variance of log weights to which the ladder of annealed importance sampling is refined."""
NOTHING = -10.0
PILOT_MOVES = 5
MOST_LEVELS = 5000
MOST_MOVES = 20
FORGOTTEN = 0.5
"""The largest correlation of the log weights' gains before and after the moves at a level."""
EXACT = 1e-3
"""How exactly a level on a path of the field's own is found, as a share of its distance from the one
before.
"""
FIRST_STEP = 0.3
WIDER, FARTHER = (1.5, 2.0), (10.0, 10.0)
"""How much wider than a short run a base is, and one from which the pilot searches for regions that it has
not seen, at most; and sqrt(d) times the most of its logarithm for d coordinates: the levels on the
way back to the field's own width grow like that.
"""
BEYOND, SEARCHES = 1.5, 3
"""How many times its spread away from a base the pilot's chains count as beyond, and the most searches."""
ROOM = 0.125
"""The least share of draws where the field has density, of a base from which to search."""
LOOK_CHAINS, LOOK_STEPS, LOOK_WARMUP, LOOK_LEAPFROGS = 64, 100, 200, 32
"""The settings of the short run whose moments make the base; its trajectories are short."""
TARGET_ACCEPT = 0.8
LARGE = 0.15
"""The largest standard error to be trusted, in nats. It is that of 45 equal weights among many that
are 0: with fewer the mean of so skewed a law is not normal, and the largest weights are likely not
among those seen.
"""
ISLAND = 256
FALSE_ALARM = 1e-4
"""The rate of false alarms of the check against a Hamiltonian run."""
STUCK = 2.0
JUMPS = 3
"""How many jumps there are by default where chains stay in regions."""
QUARTILES = 1.349
"""The distance between a standard normal's quartiles."""


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
            of a period; for discrete states `SwendsenWang` where the field has couplings (a
            lattice), `BlockGibbs` where it has a path of its own from the base (a Boltzmann machine), else
            `GibbsWithGradients`.
        moves: The least number of steps of the kernel at each level; where the pilot finds that
            they decorrelate slowly there are up to 20.
        jumps: After the kernel's steps at each level, how often it is proposed to put some
            coordinates where chains of the pilot were, each coordinate by itself. A few are enough to
            go between regions that no kernel goes between, where coordinates hang together little.
            Each takes an energy, and one more a level. By default 3 where the chains of the short run
            stay in regions that they began in; none elsewhere, without a short run (a base is given,
            and `check=False`), and for discrete states.
        island: How many chains are resampled together; by default 256, or all where they are fewer.
        pilot: How many chains find the ladder.
        check: Whether the weighted draws are compared with a short tuned Hamiltonian run, where
            states are continuous; and where the base is made of that run, whether its energy
            explores slowly.
        seed: As in `sample`.
        batch: As in `sample`.
        device: As in `sample`.
        dtype: As in `sample`.
        progress: As in `sample`.

    Returns:
        An `Estimate`, value and stderr `()`, in nats. Where few chains carry the weight, the kernel
        is too slow for the ladder, or a check fails, the standard error is not to be trusted: a
        warning is given, `method` says so, and `status` is `UNTRUSTED`.

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
    inner = _settled(_default_kernel(field, start) if given is None else given)
    resolve(field, inner.needs, timed=False)
    population = Population(pilot, derive(seed, 1), device, dtype)
    look = partial(_look, field, seed, device, dtype)

    def find(base: Any, usual: int) -> Found:
        return find_ladder(
            field,
            base,
            inner,
            population,
            moves=moves,
            jumps=usual if jumps is None else jumps,
            levels=levels,
            refine=method == "ais",
        )

    if made:
        begun = _made(look, find, partial(_room, field, population))
    else:
        seen = look() if check and states_of(field) is None else None
        begun = _Beginning(start, _usual_jumps(seen), seen, [] if seen is None else [seen.cost])
    found = find(begun.base, begun.jumps)
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
    doubts = _doubts(float(stderr), apart, ladder, blind=begun.blind and check)
    for doubt in doubts:
        warn(f"log_partition: {doubt}")
    known = _log_z(begun.base, draws.final.dtype, draws.final.device, seed)
    cost = _together([draws.cost, found.cost, *begun.costs])
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


def _together(parts: list[Cost]) -> Cost:
    """What several parts cost."""
    return Cost({kind: sum(p.get(kind, 0) for p in parts) for part in parts for kind in part})


def _in_free_space(field: Any, base: Any) -> tuple[Any, Any]:
    """The field and the base in the space that kernels work in.

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


def _look(field: Any, seed: int, device: Any, dtype: Any, start: Tensor | None = None) -> Draws:
    """A short tuned Hamiltonian run of the field, from some of these positions if there are any."""
    return sample(
        field,
        ChEES(most=LOOK_LEAPFROGS),
        chains=None if start is not None else LOOK_CHAINS,
        steps=LOOK_STEPS,
        warmup=LOOK_WARMUP,
        init=None if start is None else start[:LOOK_CHAINS],
        seed=derive(seed, 2),
        device=device,
        dtype=dtype,
        progress=False,
    )


def _fitted(look: Draws) -> Any:
    """The normal law about a short run; N(0, I) where that fails."""
    x = rearrange(wide(look.x[look.ok]), "chains draws ... -> (chains draws) ...")
    if len(x) >= LOOK_STEPS:
        return _about(x)
    zero = torch.zeros_like(wide(look.x[0, 0]))
    return Independent(Normal(zero, zero + 1), zero.ndim)


def _about(x: Tensor) -> Any:
    """The normal law with the means of some positions, in each coordinate somewhat wider."""
    x = wide(x)
    spread = x.std(0).clamp(min=torch.finfo(torch.float32).tiny)
    return _widened(Independent(Normal(x.mean(0), spread), x.ndim - 1), WIDER)


def _widened(law: Any, by: tuple[float, float]) -> Any:
    """A normal law with the same means, so many times as wide: see `WIDER`."""
    most, of_root = by
    wider = min(most, math.exp(of_root / math.sqrt(law.mean.numel())))
    return Independent(Normal(law.mean, wider * law.stddev), law.mean.ndim)


_Room = Callable[[Any], tuple[float, Cost]]


class _Beginning(NamedTuple):
    """Where the annealing begins, and what was spent to find it.

    Args:
        base: A field to draw from.
        jumps: How many jumps there are at each level by default.
        look: The short run that the weighted draws are held to, if there is one.
        costs: Those of short runs and of searches.
        blind: Whether the base is made of a short run that has not seen all of the field.
    """

    base: Any
    jumps: int
    look: Draws | None
    costs: list[Cost]
    blind: bool = False


def _made(look: Callable[..., Draws], find: Callable[[Any, int], Found], room: _Room) -> _Beginning:
    """A base about a short run, or about regions beyond it where a search comes to any.

    Args:
        look: Makes a short run, from some positions where they are given.
        find: Makes a pilot from a base, with so many jumps by default.
        room: The share of a law's draws where the field has density, and what it cost.
    """
    seen = look()
    law, jumps, costs = _fitted(seen), _usual_jumps(seen), [seen.cost]
    if _explores_slowly(seen):
        return _Beginning(from_distribution(law), jumps, seen, costs, blind=True)
    reached = None
    for _ in range(SEARCHES):
        far, spent = _far(law, room)
        costs.append(spent)
        if far is None:
            break
        found = find(from_distribution(far), jumps)
        costs.append(found.cost)
        about = _about(found.x)
        if not _beyond(about, law):
            break
        law, reached = about, found.x
    if reached is None:
        return _Beginning(from_distribution(law), jumps, seen, costs)
    seen = look(reached)
    blind = _explores_slowly(seen)
    return _Beginning(from_distribution(law), JUMPS, seen, [*costs, seen.cost], blind)


def _far(law: Any, room: _Room) -> tuple[Any, Cost]:
    """A law from which to search, as far out as the field has room for; None where it has none.

    Where hardly any draw of a wide law has density, as of a field on a ball, the pilot would be
    copies of few chains, which say nothing of where the field is.
    """
    spent: list[Cost] = []
    most, of_root = FARTHER
    while most > 1:
        far = _widened(law, (most, of_root))
        share, cost = room(far)
        spent.append(cost)
        if share >= ROOM:
            return far, _together(spent)
        most, of_root = most / 2, of_root / 2
    return None, _together(spent)


def _room(field: Any, population: Population, law: Any) -> tuple[float, Cost]:
    """The share of a law's draws where the field has density, and what it cost."""
    noise = population.noise(field)
    with left_as_found(field), torch.no_grad():
        bound = resolve(field, {"energy"}, timed=False)
        assert isinstance(bound, StaticField)
        x = from_distribution(law).draw(population.chains, noise)
        energy = bound.energy(x.to(noise.chains.device, noise.dtype))
    share = int((energy < torch.inf).sum()) / population.chains
    return share, Cost({"energy": population.chains})


def _beyond(found: Any, law: Any) -> bool:
    """Whether a normal law reaches out of another in some coordinate."""
    reach = (found.mean - law.mean).abs() + found.stddev
    return bool((reach > BEYOND * law.stddev).any())


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
    ours, theirs = _in_quartiles(draws.final[:, None], known)[:, 0], _in_quartiles(known, known)
    chains = theirs.mean(1)
    weight = torch.softmax(log_weight, 0)[:, None]
    mean = (weight * ours).sum(0)
    family = torch.zeros_like(ours).index_add_(
        0, draws.stats["ancestor"][:, -1], weight * (ours - mean)
    )
    z = (chains.mean(0) - mean) / (chains.var(0) / len(chains) + family.square().sum(0)).sqrt()
    judged = z[_agreeing(theirs) & z.isfinite()]
    limit = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * max(len(judged), 1)))
    return float(judged.abs().max()) / limit if len(judged) else 0.0


def _in_quartiles(x: Tensor, known: Tensor) -> Tensor:
    """Each coordinate u in units of the quartiles of known draws, clamped at 3, then all u^2.

    `(chains, draws, *event_shape) -> (chains, draws, 2 d)`.
    """
    x, known = (
        rearrange(wide(part), "chains draws ... -> chains draws (...)") for part in (x, known)
    )
    low, centre, high = torch.quantile(
        rearrange(known, "chains draws d -> (chains draws) d"),
        known.new_tensor([0.25, 0.5, 0.75]),
        0,
    )
    unit = ((high - low) / QUARTILES).clamp(min=torch.finfo(known.dtype).tiny)
    u = ((x - centre) / unit).clamp(-3, 3)
    return torch.cat([u, u.square()], -1)


def _agreeing(values: Tensor) -> Tensor:
    """Of which coordinates chains agree in both u and u^2 (R-hat below 2), `(2 d,)` of bool."""
    between, within = values.mean(1).var(0), values.var(1).mean(0)
    agree: Tensor = (between < within * (STUCK**2 - 1)).unflatten(0, (2, -1)).all(0)
    return agree.repeat(2)


def _usual_jumps(look: Draws | None) -> int:
    """`JUMPS` where the chains of a short run stay in regions that they began in, else none."""
    known = None if look is None else look.x[look.ok]
    if known is None or len(known) < 2:
        return 0
    return 0 if bool(_agreeing(_in_quartiles(known, known)).all()) else JUMPS


def _explores_slowly(look: Draws) -> bool:
    """Whether the energy of the short run explores slowly, which it does where tails are heavy.

    Then it has not seen all of the field: nor does a base that is made of it cover that, nor can
    draws be held to it.
    """
    x = look.x.flatten(2)[..., :1] if look.x.ndim > 2 else look.x  # all are not judged here
    one = replace(look, x=x, final=x[:, -1])
    return any(finding.kind == "energy" for finding in one.summary().findings)


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
        apart: As `_disagreement` has it.
        ladder: The ladder.
        blind: Whether the base is made of a short run that has not seen all of the field.
    """
    doubts = []
    if apart > 1:
        doubts.append(
            "the weighted draws disagree with a Hamiltonian run of the field, so that regions may "
            "be missing and the standard "
            f"error too small; use more levels than {ladder.levels}, more moves, another kernel or "
            f"base"
        )
    if not stderr <= LARGE:
        doubts.append(
            f"the standard error is {stderr:.3g}, above {LARGE}: so few weights count that neither "
            f"it nor the value is to be "
            f"trusted; use more levels than {ladder.levels}, more moves, more chains, or a base "
            f"nearer to the field"
        )
    if blind:
        doubts.append(
            "the energy of the Hamiltonian run that the base is made of explores slowly, as in "
            "funnels and heavy tails, so that regions may be missing and the standard error too "
            "small; give a base that covers the field, or write it in other coordinates"
        )
    slow = sum(moves >= MOST_MOVES for moves in ladder.moves or ())
    if slow:
        doubts.append(
            f"at {slow} of {ladder.levels} levels the kernel had not forgotten where it was after "
            f"{MOST_MOVES} steps, so that "
            "regions may be missing and the standard error too small; use another kernel, more "
            "moves or base"
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


class Population(NamedTuple):
    """The chains of a pilot.

    Args:
        chains: How many there are.
        seed: The seed of their noise.
        device: As in `sample`.
        dtype: As in `sample`.
    """

    chains: int
    seed: int
    device: Any = None
    dtype: torch.dtype | None = None

    def noise(self, field: Any) -> Noise:
        """The chains' noise, on the device and in the dtype of the field where none are given."""
        device, dtype = torch.device("cpu"), torch.get_default_dtype()
        for like in state_like(field)[:1]:
            device, dtype = like.device, like.dtype if like.is_floating_point() else dtype
        return Noise(
            self.seed,
            self.chains,
            device=device if self.device is None else torch.device(self.device),
            dtype=dtype if self.dtype is None else self.dtype,
        )


class Found(NamedTuple):
    """What a pilot found.

    Args:
        ladder: The ladder.
        cost: What it cost.
        x: Where its chains are at the field, `(chains, *event_shape)`.
    """

    ladder: Ladder
    cost: Cost
    x: Tensor


def find_ladder(
    field: Any,
    base: Any,
    kernel: Any,
    population: Population,
    *,
    moves: int,
    jumps: int = 0,
    levels: int | None,
    refine: bool,
) -> Found:
    """Find the ladder by a pilot.

    Args:
        field: As in `log_partition`.
        base: As in `log_partition`, a field.
        kernel: As in `log_partition`, a solver.
        population: The pilot's chains.
        moves: As in `log_partition`.
        jumps: As in `log_partition`.
        levels: How many levels there are to be, None for as many as it takes.
        refine: Whether to divide them further until the variance of the log weights of chains that
            are not resampled is about `SPREAD`.

    Returns:
        The ladder, what the pilot cost, and where its chains came to.
    """
    if levels is not None:
        count("levels", levels, least=1)
    noise = population.noise(field)
    check_place(field, noise.chains.device)
    with left_as_found(field), torch.no_grad():
        bound = resolve(field, kernel.needs, timed=False)
        assert isinstance(bound, StaticField)
        check_path(kernel, bound, base)
        pilot = _Pilot(bound, base, kernel, moves, noise, jumps)
        pilot.run()
    found, among = pilot.ladder(), 1.0
    if levels is not None:
        among = max(1.0, levels / found.levels)
    elif refine:
        levels = min(found.levels * max(1, math.ceil(pilot.variance / SPREAD)), MOST_LEVELS)
    ladder = found if levels is None else _stretched(found, levels)
    return Found(_moving(ladder, moves, among), Cost(pilot.cost), pilot.x)


class _Pilot:
    """The pilot: a population on its way from the base to the field, and what it has found."""

    def __init__(
        self, field: StaticField, base: Any, kernel: Any, moves: int, noise: Any, jumps: int = 0
    ) -> None:
        self.field, self.base, self.kernel, self.noise = field, base, kernel, noise
        self.x = base.draw(len(noise.chains), noise).to(noise.chains.device, noise.dtype)
        self.least, self.moves, self.jumps = moves, [0], jumps
        self.quantiles: list[Tensor] = []
        self.own_path = not isinstance(law_at(field, base, 0.5).native, Bridge)
        self.discrete = states_of(field) is not None
        self.size = traits(kernel).step_size if has_step_size(kernel) else None
        self.weights, self.sizes, self.scales = [0.0], [], []  # type: ignore[var-annotated]
        self.variance, self.cost = 0.0, {}  # type: ignore[var-annotated]

    def run(self) -> None:
        while self.weights[-1] < 1:
            if len(self.weights) > MOST_LEVELS:
                raise InvalidArgument(
                    "base",
                    field_name(self.base),
                    f"a base from which the field is reached in {MOST_LEVELS} levels; this one got "
                    f"to {self.weights[-1]:.3g}",
                )
            self._level(len(self.weights) - 1)

    def _level(self, k: int) -> None:
        gain = rising(self.field, self.base, self.x, self.weights[-1])
        dead = gain(1.0)[1]
        if bool(dead.all()):
            raise InvalidArgument(
                "base",
                field_name(self.base),
                "a base with some of its draws where the field has density",
            )
        upper = self._upper(gain, dead)
        log_weight = torch.where(dead, -torch.inf, wide(gain(upper)[0]))
        self.variance += _variance(log_weight[~dead])
        u = self.noise.uniform(k, Stream.SWAP, (), torch.float64)[:1]
        self.x = self.x[resampled(log_weight[None], u)[0][0]]
        self.weights.append(1.0 if upper > 1 - 1e-9 else upper)
        scale = torch.ones_like(self.x[0]) if self.discrete else self.x.std(0).clamp(min=1e-6)
        before, made = self._whole_gain(), 0
        while made < max(self.least, PILOT_MOVES) or (
            made < MOST_MOVES and self._remembers(before)
        ):
            inner = NestedNoise(self.noise, k * MOST_MOVES + made)
            target = kernel_at(self.field, self.base, self.weights[-1], scale)
            self.x, accept, spent = move(
                with_step_size(self.kernel, self.size), target, self.x, scale, inner, 1
            )
            self._count({name: int(spent.sum()) for name in traits(self.kernel).varying})
            if self.size is not None:
                self.size *= math.exp((float(accept.mean()) - TARGET_ACCEPT) / (1 + made))
            made += 1
        # a correlation r after the moves made is r^(m / made) after m moves
        left = max(self._correlation(before), 1e-3) ** (1 / made)
        wanted = math.ceil(math.log(FORGOTTEN) / math.log(min(left, 0.999)))
        self.moves.append(max(self.least, wanted))
        n = len(self.x)
        self._count({"energy": n})  # of the gain on the way to this level
        for known in (self.kernel.init_cost, self.kernel.step_cost):
            self._count({name: each * n * made for name, each in known.items()})
        self.sizes.append(self.size)
        self.scales.append(scale)
        if self.jumps:
            law, ends = law_at(self.field, self.base, self.weights[-1]), quantiles_of(self.x)
            if not bool(ends.isfinite().all()):
                raise InvalidArgument(
                    "field",
                    field_name(self.field.native),
                    "one that falls far out: exp(-E) has no integral where chains go on without end",
                )
            self.x = jump(law, self.x, ends, self.noise, k * self.jumps, self.jumps)
            self.quantiles.append(ends)
            self._count({"energy": n * energies_of_jumps(self.jumps)})

    def _whole_gain(self) -> Tensor:
        """The gains of log weights on the whole way, `(chains,)`, by which moves are judged."""
        self._count({"energy": len(self.x)})
        return wide(log_gain(self.field, self.base, self.x)[0])

    def _correlation(self, before: Tensor) -> float:
        """The correlation of the log weights' gains before the moves and now, over the population."""
        found = float(torch.corrcoef(torch.stack([before, self._whole_gain()]))[0, 1])
        return found if math.isfinite(found) else 0.0

    def _remembers(self, before: Tensor) -> bool:
        return self._correlation(before) > FORGOTTEN

    def _upper(self, gain: Callable[[float], tuple[Tensor, Tensor]], dead: Tensor) -> float:
        """The highest next weight at which the effective share is `SHARE`, by bisection."""

        def share(upper: float) -> float:
            w = torch.softmax(torch.where(dead, -torch.inf, wide(gain(upper)[0])), 0)
            return float(1 / (w.square().sum() * (~dead).sum()))

        if share(1.0) >= SHARE:
            return 1.0
        low, high = self.weights[-1], 1.0
        for _ in range(60):
            if self.own_path and high - low <= EXACT * (low - self.weights[-1]):
                break  # each look takes the energies of two laws
            middle = (low + high) / 2
            low, high = (middle, high) if share(middle) >= SHARE else (low, middle)
        return max(low, self.weights[-1] + 1e-12)

    def _count(self, more: Mapping[str, int]) -> None:
        for name, n in more.items():
            self.cost[name] = self.cost.get(name, 0) + n

    def ladder(self) -> Ladder:
        sizes = None if self.size is None else tuple(self.sizes)
        scales = None if self.discrete else torch.stack(self.scales)
        ends = torch.stack(self.quantiles) if self.jumps else None
        return Ladder(tuple(self.weights), sizes, scales, tuple(self.moves[1:]), ends, self.jumps)


def _variance(log_weight: Tensor) -> float:
    """The variance of log weights, clamped below at `NOTHING` relative to their mean.

    How far weights that do not count are below it says nothing of the others.
    """
    if len(log_weight) < 2:
        return 0.0
    relative = log_weight - (log_weight.logsumexp(0) - math.log(len(log_weight)))
    return float(relative.clamp(min=NOTHING).var())


def _stretched(ladder: Ladder, levels: int) -> Ladder:
    """The ladder with another number of levels, spread evenly over its intervals."""
    old = torch.tensor(ladder.weights, dtype=torch.float64)
    place = torch.arange(levels + 1, dtype=torch.float64) * ladder.levels / levels
    below = place.floor().clamp(max=ladder.levels - 1).long()
    weights = (old[below] + (place - below) * (old[below + 1] - old[below])).tolist()
    at = [max(math.ceil(p) - 1, 0) for p in place.tolist()[1:]]
    sizes = None if ladder.step_sizes is None else tuple(ladder.step_sizes[i] for i in at)
    scales = None if ladder.scales is None else torch.stack([ladder.scales[i] for i in at])
    moves = None if ladder.moves is None else tuple(ladder.moves[i] for i in at)
    ends = None if ladder.quantiles is None else torch.stack([ladder.quantiles[i] for i in at])
    return replace(
        ladder,
        weights=(0.0, *weights[1:-1], 1.0),
        step_sizes=sizes,
        scales=scales,
        moves=moves,
        quantiles=ends,
    )


def _moving(ladder: Ladder, least: int, among: float) -> Ladder:
    """The ladder whose moves at a level are shared among so many levels in its place."""
    shared = (math.ceil(moves / among) for moves in ladder.moves or ())
    return replace(ladder, moves=tuple(min(max(least, m), MOST_MOVES) for m in shared))
