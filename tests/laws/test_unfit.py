"""What does not go together is refused, in the words that were written: shapes, kinds, spaces and numbers that each could be
right alone."""

import math
from dataclasses import replace

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk import diagnostics, grids, learn
from tests.recorded import randn, recorded


def net(x, t):
    return torch.sin(3 * x)


def quadratic(x):
    return x.square().flatten(1).sum(1) / 2


def _of_mu(mu):
    return quadratic(mu)


POSITIVE = td.constraints.positive
WELL, WIDE = stk.Energy(quadratic, (2,)), stk.Energy(quadratic, (3,))
SCORE = stk.Score(lambda x: -x, (2,))
TIMED, OTHER = (stk.Diffusion(net, (2,), path, "noise") for path in (stk.VP(), stk.Linear()))
FOUR = stk.Diffusion(net, (4,), stk.VP(), "noise")
LARGE = stk.Diffusion(net, (3,), stk.VP(), "noise")
FLOW = stk.Velocity(net, (2,))
CALLED = stk.Energy(_of_mu, variables={"mu": (2,)})
INSIDE = stk.constrained(WELL, POSITIVE)
BITS = stk.Discrete(WELL, (0.0, 1.0))
LINEAR = stk.LinearGaussian(torch.eye(2), torch.ones(2), 0.5)
MALA = stk.MALA(0.1)
X = torch.zeros(3, 2)


def sampled(field=WELL, solver=MALA, **options):
    return stk.sample(field, solver, **{"chains": 3, "steps": 2} | options)


def flowed(solver=None, field=TIMED, **options):
    return stk.sample(field, solver or stk.ProbabilityFlow("euler", steps=2), chains=3, **options)


def drawn(**options):
    return flowed(keep="all", **options)


def measured(operator, y=(0.0, 0.0), field=TIMED, noise=0.5, **options):
    return stk.posterior(field, stk.LinearGaussian(operator, torch.as_tensor(y), noise, **options))


def named(**variables):
    return stk.Energy(lambda **v: 0, variables=variables)


FIELDS = {
    "a path of nothing": lambda: stk.Diffusion(net, (2,), "vp", "noise"),
    "betas that fall": lambda: stk.VP(2.0, 1.0),
    "levels that fall": lambda: stk.VE(2.0, 1.0),
    "levels that are one": lambda: stk.EDM(1.0, 1.0),
    "a bulge inwards": lambda: stk.Interpolant(-0.1),
    "a table that rises": lambda: stk.Tabulated([0.1, 0.5]),
    "a table of one": lambda: stk.Tabulated([0.1]),
    "a table from 1": lambda: stk.Tabulated([1.0, 0.5]),
    "a table with two zeros": lambda: stk.Tabulated([0.5, 0.0, 0.0]),
    "noise of a table to 0": lambda: stk.from_timesteps(net, [0.5, 0.2, 0.0], (2,)),
    "sigmas of another path": lambda: stk.from_sigmas(net, (2,), stk.VP()),
    "a prediction without a path": lambda: stk.from_reversed_time(net, (2,), predicts="noise"),
    "one state": lambda: stk.Discrete(WELL, (1.0,)),
    "states twice": lambda: stk.Discrete(WELL, (1.0, 1.0)),
    "one-hot of one": lambda: stk.Discrete(stk.Energy(quadratic, (3, 1)), "one-hot"),
    "states of a score": lambda: stk.Discrete(SCORE, (0.0, 1.0)),
    "a base of another shape": lambda: stk.Velocity(
        net, (2,), td.Independent(td.Normal(torch.zeros(3), 1.0), 1)
    ),
    "a base of no samples": lambda: stk.Velocity(net, (2,), torch.zeros(0, 2)),
    "a base with NaN": lambda: stk.Velocity(net, (2,), torch.full((3, 2), math.nan)),
    "a base that is none": lambda: stk.Velocity(net, (2,), "normal"),
    "a constrained score": lambda: stk.constrained(SCORE, POSITIVE),
    "constrained in time": lambda: stk.constrained(TIMED, POSITIVE),
    "names on names": lambda: stk.constrained(CALLED, {"nu": (2,)}),
    "a constraint of another shape": lambda: stk.constrained(WELL, [(POSITIVE, 3)]),
    "a matrix of two numbers": lambda: stk.constrained(WELL, td.constraints.corr_cholesky),
    "a simplex of one": lambda: stk.constrained(
        stk.Energy(quadratic, (1,)), td.constraints.simplex
    ),
    "a constraint of a word": lambda: stk.constrained(WELL, "positive"),
    "a constraint without a map": lambda: stk.constrained(
        WELL, td.constraints.integer_interval(0, 3)
    ),
    "a start outside": lambda: sampled(INSIDE, init=-torch.ones(3, 2)),
    "no shape": lambda: stk.Energy(quadratic),
    "a shape and variables": lambda: stk.Energy(quadratic, (2,), variables={"mu": (2,)}),
    "variables and a gradient": lambda: stk.Energy(
        quadratic, variables={"mu": (2,)}, grad=lambda x: x
    ),
    "autocast to integers": lambda: stk.Energy(quadratic, (2,), autocast=torch.int32),
    "no variables": named,
    "a variable of a word": lambda: named(mu="two"),
    "a variable of a list of constraints": lambda: named(mu=((2,), POSITIVE)),
    "a variable with a slash": lambda: stk.Energy(lambda **v: 0, variables={"a/b": ()}),
    "a variable that is an axis": lambda: named(chain=()),
    "a variable that is the other axis": lambda: named(draw=()),
    "a variable that is an entry": lambda: stk.Energy(
        lambda **v: 0, variables={"mu": (2,), "mu[0]": ()}
    ),
    "a number as a name": lambda: stk.Energy(lambda **v: 0, variables={3: ()}),
    "axes of two sizes": lambda: named(
        a=stk.Variable((2,), dims=("k",)), b=stk.Variable((3,), dims=("k",))
    ),
    "an axis named as a variable": lambda: named(k=(), b=stk.Variable((3,), dims=("k",))),
    "labels of two kinds": lambda: named(
        a=stk.Variable((2,), dims=("k",), coords={"k": ["u", "v"]}),
        b=stk.Variable((2,), dims=("k",), coords={"k": ["u", "w"]}),
    ),
    "too many dims": lambda: stk.Variable((2,), dims=("k", "l")),
    "dims twice": lambda: stk.Variable((2, 2), dims=("k", "k")),
    "an axis of all draws": lambda: stk.Variable((2,), dims=("chain",)),
    "labels of no axis": lambda: stk.Variable((2,), dims=("k",), coords={"l": [1, 2]}),
    "too few labels": lambda: stk.Variable((2,), dims=("k",), coords={"k": ["u"]}),
    "labels of any kind": lambda: stk.Variable(
        (2,), dims=("k",), coords={"k": [object(), object()]}
    ),
    "an old date": lambda: stk.Variable(
        (1,), dims=("k",), coords={"k": [__import__("datetime").date(1500, 1, 1)]}
    ),
    "a constraint of no kind": lambda: stk.Variable((2,), "positive"),
    "a simplex as a number": lambda: named(mu=stk.Variable((), td.constraints.simplex)),
    "a function of other names": lambda: stk.Energy(lambda nu: 0, variables={"mu": ()}),
    "a start without a variable": lambda: sampled(CALLED, init={"nu": X}),
    "a start of another shape": lambda: sampled(CALLED, init={"mu": torch.zeros(3, 3)}),
    "smoothed in time": lambda: stk.smoothed(TIMED, stk.VP()),
    "smoothed by nothing": lambda: stk.smoothed(WELL, "vp"),
    "smoothed by an odd number": lambda: stk.smoothed(WELL, stk.VP(), samples=9),
    "smoothed without an energy": lambda: stk.smoothed(SCORE, stk.VP()),
    "smoothed about one sample": lambda: stk.smoothed(WELL, stk.VP(), reference=torch.zeros(1, 2)),
    "smoothed about a point": lambda: stk.smoothed(WELL, stk.VP(), reference=(0.0, 0.0)),
    "smoothed about three": lambda: stk.smoothed(WELL, stk.VP(), reference=(0.0, 1.0, 2.0)),
    "a batch of distributions": lambda: stk.from_distribution(td.Normal(torch.zeros(2), 1.0)),
    "a discrete distribution": lambda: stk.from_distribution(td.Poisson(torch.tensor(2.0))),
    "a bridge of two shapes": lambda: stk.bridge(WELL, WIDE, 0.5),
    "a bridge in time": lambda: stk.bridge(TIMED, WELL, 0.5),
    "a bridge of a score": lambda: stk.bridge(WELL, SCORE, 0.5),
    "a bridge beyond": lambda: stk.bridge(WELL, WELL, 1.5),
    "a bond to itself": lambda: stk.Couplings(torch.tensor([0]), torch.tensor([0]), torch.ones(1)),
    "bonds of floats": lambda: stk.Couplings(torch.zeros(1), torch.tensor([0]), torch.ones(1)),
    "strengths of another number": lambda: stk.Couplings(
        torch.tensor([0]), torch.tensor([1]), torch.ones(2)
    ),
    "weights in one axis": lambda: stk.Couplings(
        torch.tensor([0]), torch.tensor([1]), torch.ones(1), torch.ones(2)
    ),
}
TOGETHER = {
    "no fields": stk.product,
    "no mixture": lambda: stk.mixture([], []),
    "two shapes": lambda: stk.product(WELL, WIDE),
    "in time and not": lambda: stk.product(WELL, TIMED),
    "two paths": lambda: stk.product(TIMED, OTHER),
    "two paths of three": lambda: stk.product(TIMED, TIMED, OTHER),
    "two spaces": lambda: stk.product(WELL, INSIDE, INSIDE),
    "two constraints": lambda: stk.product(
        INSIDE, stk.constrained(WELL, td.constraints.unit_interval)
    ),
    "an energy of scores": lambda: stk.product(WELL, SCORE).energy(X),
    "too few weights": lambda: stk.mixture([WELL, WELL], [1.0]),
    "a mixture of scores": lambda: stk.mixture([SCORE, SCORE], [1, 1]),
    "a mixture of energies": lambda: stk.mixture([WELL, WELL], [1, 1]),
    "constants in time": lambda: stk.mixture([TIMED, TIMED], [1, 1], log_partition=[0.0, 0.0]),
    "a mixture without densities in time": lambda: stk.mixture([TIMED, TIMED], [1, 1]),
    "a classifier of a static field": lambda: stk.classifier_guided(WELL, quadratic),
    "guided by none": lambda: stk.guided(TIMED, 2.0),
    "guided by both": lambda: stk.guided(TIMED, 2.0, TIMED, null={"label": 0.0}),
    "guided by a static field": lambda: stk.guided(TIMED, 2.0, WELL),
    "guided by another shape": lambda: stk.guided(TIMED, 2.0, LARGE),
    "guided on another path": lambda: stk.guided(TIMED, 2.0, OTHER),
    "guided by nothing": lambda: stk.guided(TIMED, 2.0, "uncond"),
    "a null of a list": lambda: stk.guided(TIMED, 2.0, null=[0.0]),
    "a null of numbers": lambda: stk.guided(TIMED, 2.0, null={0: 0.0}),
    "an interval that falls": lambda: stk.guided(TIMED, 2.0, TIMED, interval=(2.0, 1.0)),
    "an interval below 0": lambda: stk.guided(TIMED, 2.0, TIMED, interval=(-1.0, 1.0)),
    "an interval of three": lambda: stk.guided(TIMED, 2.0, TIMED, interval=(0.0, 1.0, 2.0)),
    "rescaled beyond": lambda: stk.guided(TIMED, 2.0, TIMED, rescale=1.5),
    "rescaled numbers": lambda: (lambda f: stk.guided(f, 2.0, f, rescale=0.5))(
        stk.Diffusion(net, (1,), stk.VP(), "noise")
    ),
    "an interval of a static field": lambda: stk.guided(WELL, 2.0, WELL, interval=(0.0, 1.0)),
    "a static field rescaled": lambda: stk.guided(WELL, 2.0, WELL, rescale=0.5),
    "a power of a flow": lambda: flowed(field=stk.tempered(TIMED, 2.0)),
    "a method for a static prior": lambda: stk.posterior(WELL, LINEAR, "dps"),
    "no prior": lambda: stk.posterior("prior", LINEAR),
    "a class as a method": lambda: stk.posterior(TIMED, LINEAR, stk.DPS),
    "a linear method": lambda: stk.posterior(TIMED, lambda x: -quadratic(x), "pigdm"),
    "a likelihood of another shape": lambda: stk.posterior(TIMED, WIDE),
    "a likelihood in time": lambda: stk.posterior(TIMED, TIMED),
    "a likelihood of a score": lambda: stk.posterior(TIMED, SCORE),
    "measured beside y": lambda: stk.posterior(TIMED, LINEAR, measured="y"),
    "a flow without a path": lambda: stk.posterior(
        stk.Velocity(net, (2,), torch.zeros(3, 2)), LINEAR
    ),
    "an energy of a score": lambda: stk.posterior(SCORE, LINEAR).energy(X),
    "a measurement that is not given": lambda: flowed(
        field=stk.posterior(TIMED, stk.LinearGaussian(torch.eye(2), "y", 0.5))
    ),
    "a mask of numbers": lambda: stk.Mask(torch.ones(2)),
    "an empty mask": lambda: stk.Mask(torch.zeros(2) > 0),
    "a mask of another shape": lambda: measured(stk.Mask(torch.ones(3) > 0), (0.0, 0.0, 0.0)),
    "pixels that are left": lambda: stk.Downsample(2)(torch.zeros(1, 3, 4)),
    "pixels in a row": lambda: stk.Downsample(2)(torch.zeros(1, 4)),
    "an even kernel": lambda: stk.Blur(torch.ones(2, 3)),
    "a blur of a row": lambda: stk.Blur(torch.ones(3, 3))(torch.zeros(1, 4)),
    "y of another size": lambda: measured(torch.eye(2), (0.0, 0.0, 0.0)),
    "complex y": lambda: measured(torch.eye(2), torch.zeros(2) + 0j),
    "a map that moves": lambda: measured(lambda x: x + 1),
    "a map that bends": lambda: measured(torch.abs),
    "a ReLU": lambda: measured(torch.relu),
    **{
        f"the size of entry {i}": lambda i=i: measured(
            lambda x: x[:, i : i + 1].abs(), (0.0,), FOUR
        )
        for i in range(4)
    },
    "a map of rows together": lambda: measured(lambda x: x - x.mean(0)),
    "a map to one": lambda: measured(lambda x: x.sum()),
    "a map to a list": lambda: measured(lambda x: [1.0]),
    "a map that fails": lambda: measured(lambda x: x @ torch.ones(5)),
    "a map without a gradient": lambda: measured(lambda x: torch.tensor(x.detach().numpy())),
    "a wrong adjoint": lambda: measured(lambda x: 2 * x, adjoint=lambda w: w),
    "an adjoint of another shape": lambda: measured(lambda x: 2 * x, adjoint=lambda w: w[:, :1]),
}


class Numbers:
    """A third-party field whose energy torch does not see."""

    event_shape = (2,)

    def energy(self, x):
        return torch.from_numpy((x.detach().numpy() ** 2).sum(1))


def unseen(x):
    return Numbers().energy(x)


RUNS = {
    "an energy that torch does not see": lambda: sampled(stk.Energy(unseen, (2,))),
    "a field that torch does not see": lambda: sampled(Numbers()),
    "a power of what torch does not see": lambda: sampled(stk.tempered(Numbers(), 2.0)),
    "a prior that torch does not see": lambda: sampled(stk.posterior(Numbers(), LINEAR)),
    "no chains": lambda: sampled(chains=0),
    "chains backwards": lambda: sampled(chains=range(3, 0, -1)),
    "a start of other chains": lambda: sampled(init=torch.zeros(2, 2)),
    "a start of another event": lambda: sampled(init=torch.zeros(3, 3)),
    "a start in time that is none": lambda: flowed(init=torch.zeros(2, 2)),
    "steps of a grid": lambda: flowed(steps=3),
    "warmup of a grid": lambda: flowed(warmup=3),
    "thinned grid": lambda: flowed(thin=2),
    "thinned to nothing": lambda: sampled(thin=5),
    "nothing to tune with": lambda: sampled(solver=stk.MALA(), warmup=0),
    "conditions of nothing": lambda: sampled(cond={"label": torch.zeros(3)}),
    "a kernel in time": lambda: sampled(TIMED),
    "a flow of a static field": lambda: flowed(field=WELL),
    "a kernel on states": lambda: sampled(BITS),
    "states of none": lambda: sampled(solver=stk.GibbsWithGradients()),
    "states between": lambda: sampled(BITS, stk.GibbsWithGradients(), init=torch.full((3, 2), 0.4)),
    "bonds of none": lambda: sampled(BITS, stk.SwendsenWang()),
    "blocks of none": lambda: sampled(BITS, stk.BlockGibbs()),
    "an energy of a score": lambda: sampled(SCORE),
    "islands that are left": lambda: flowed(stk.SMC(2, kernel=MALA, island=2), WELL),
    "islands of other chains": lambda: stk.sample(
        WELL, stk.SMC(2, kernel=MALA, island=2), chains=range(1, 5)
    ),
    "annealing from another shape": lambda: flowed(stk.AIS(2, WIDE, kernel=MALA), WELL),
    "annealing that would be tuned": lambda: flowed(stk.AIS(2, kernel=stk.MALA()), WELL),
    "annealing from no base": lambda: stk.AIS(2, SCORE),
    "a ladder from the middle": lambda: stk.Ladder((0.5, 1.0)),
    "a ladder of other steps": lambda: stk.Ladder((0.0, 1.0), step_sizes=(0.1, 0.1)),
    "a ladder of temperatures that falls": lambda: stk.ParallelTempering(
        MALA, temperatures=(2.0, 1.0)
    ),
    "a ladder from 2": lambda: stk.ParallelTempering(MALA, temperatures=(2.0, 3.0)),
    "one temperature": lambda: stk.ParallelTempering(MALA, temperatures=(1.0,)),
    "a kernel in a kernel": lambda: stk.ParallelTempering(stk.AIS(2)),
    "noise levels that rise": lambda: stk.AnnealedLangevin(levels=(1.0, 2.0)),
    "no rule over temperatures": lambda: flowed(stk.AnnealedLangevin(levels=(2.0, 1.0)), WELL),
    "too many steps": lambda: flowed(stk.AnnealedLangevin(levels=(2.0, 1.0), step_size=1e-12)),
    "states that are not adjusted": lambda: stk.DiscreteLangevin(adjusted=False),
    "a jitter of all": lambda: stk.HMC(jitter=1.0),
    "a rate of 1": lambda: stk.HMC(accept=1.0),
    "a rate of 0": lambda: stk.NUTS(accept=0.0),
    "steps and a length": lambda: stk.AdjustedMCLMC(0.1, length=1.0, leapfrogs=3),
    "a box that falls": lambda: stk.ULA(0.1, box=(1.0, 0.0)),
    "a grid that falls": lambda: stk.ProbabilityFlow(grid=(0.5, 0.0)),
    "named levels of a flow": lambda: flowed(
        stk.ProbabilityFlow("euler", steps=3, grid="karras"),
        stk.Velocity(net, (2,), torch.zeros(3, 2)),
    ),
    "a reverse SDE of a flow": lambda: flowed(
        stk.ReverseSDE(), stk.Velocity(net, (2,), torch.zeros(3, 2))
    ),
    "a name of no solver": lambda: sampled(solver="malla"),
    "a name of no model": lambda: sampled("two-moon"),
    "a class as a solver": lambda: sampled(solver=stk.MALA),
    "progress of a word": lambda: sampled(progress="yes"),
    "an int as dtype": lambda: sampled(dtype=torch.int32),
    "a device that is none": lambda: sampled(device="tpu9"),
    "x of another event": lambda: stk.encode(TIMED, torch.zeros(3, 3)),
    "x of integers": lambda: stk.bits_per_dim(TIMED, torch.full((3, 2), 300.0)),
    "half pixels": lambda: stk.bits_per_dim(TIMED, torch.full((3, 2), 0.5)),
    "a density of an energy": lambda: stk.log_prob(WELL, X),
    "a likelihood by SDE": lambda: stk.log_prob(TIMED, X, method="dpmpp_2m", steps=3),
    "steps of an adaptive density": lambda: stk.log_prob(TIMED, X, steps=3),
    "evidence of a score": lambda: stk.log_partition(SCORE),
    "evidence in time": lambda: stk.log_partition(TIMED),
    "evidence of uneven islands": lambda: stk.log_partition(
        WELL, method="smc", chains=10, island=4
    ),
    "a base of another event": lambda: stk.log_partition(WELL, WIDE, levels=2, pilot=16, chains=16),
    "draws twice": lambda: stk.concatenate([drawn(), drawn()]),
    "draws of another run": lambda: stk.concatenate(
        [sampled(chains=range(2)), sampled(chains=range(2, 4), seed=1)]
    ),
    "no draws": lambda: stk.concatenate([]),
    "a float as a chain": lambda: drawn()[torch.tensor([0.5])],
    "a mask of other chains": lambda: drawn()[torch.tensor([True])],
    "a step of 0": lambda: drawn()[::0],
    "two axes": lambda: drawn()[0, 1],
    "a name of no variable": lambda: sampled(CALLED)["nu"],
    "halves of one draw": lambda: sampled(keep="last").halves(),
    "the draws of moments": lambda: sampled(keep="moments").x,
    "another ending": lambda: drawn().save("draws.csv"),
    "no file": lambda: stk.Draws.load("there is none.safetensors"),
}


class Module(torch.nn.Module):
    """One number to fit."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))


SAMPLE, SMALL = randn(20, 2), randn(20, 3)
SPEC = {
    "name": "m",
    "family": "energy-based",
    "factory": "a.b:c",
    "provides": {"energy"},
    "event_shape": (2,),
    "summary": "A model.",
}
NUMBERS = {
    "few permutations": lambda: diagnostics.mmd_test(SAMPLE, SAMPLE, permutations=10),
    "a level of 1": lambda: diagnostics.mmd_test(SAMPLE, SAMPLE, level=1.0),
    "two shapes": lambda: diagnostics.mmd(SAMPLE, SMALL),
    "one sample": lambda: diagnostics.mmd(SAMPLE[:1], SAMPLE),
    "one and the same": lambda: diagnostics.mmd_test(torch.ones(9, 2), torch.ones(9, 2)),
    "NaN": lambda: diagnostics.sliced_wasserstein(SAMPLE / 0 * 0, SAMPLE),
    "nothing": lambda: diagnostics.sliced_wasserstein(SAMPLE[:0], SAMPLE),
    "integers with a score": lambda: diagnostics.kernel_stein_discrepancy(
        torch.ones(9, 2).long(), lambda x: x
    ),
    "scores of another shape": lambda: diagnostics.kernel_stein_discrepancy(SAMPLE, SMALL),
    "negative counts": lambda: diagnostics.balance([1, -1]),
    "no counts": lambda: diagnostics.balance([0, 0]),
    "one class": lambda: diagnostics.balance([3]),
    "superchains that are left": lambda: diagnostics.nested_rhat(randn(5, 9, 2), 2),
    "superchains of one": lambda: diagnostics.nested_rhat(randn(4, 9, 2), 4),
    "three draws": lambda: diagnostics.rhat(randn(4, 3, 2)),
    "no chains": lambda: diagnostics.ess(randn(0, 9, 2)),
    "halves of three": lambda: diagnostics.split_rhat(randn(4, 3, 2)),
    "energies of two": lambda: diagnostics.bfmi(randn(4, 2)),
    "ranks of other truths": lambda: diagnostics.sbc_ranks(SAMPLE, randn(20, 9, 3)),
    "ranks of other rows": lambda: diagnostics.sbc_ranks(SAMPLE, randn(19, 9, 2)),
    "references of another shape": lambda: diagnostics.tarp_ranks(
        SAMPLE, randn(20, 9, 2), references=SMALL
    ),
    "a loss of a number": lambda: learn.fit(
        Module(), lambda x, g: 1.0, randn(8, 2), learn.Recipe(2)
    ),
    "nothing to fit": lambda: learn.fit(
        torch.nn.Identity(), lambda x, g: x.sum(), randn(8, 2), learn.Recipe(2)
    ),
    "more parts than rows": lambda: learn.fit(
        Module(), lambda x, g: x.sum(), randn(8, 2), learn.Recipe(2, 2, parts=3)
    ),
    "patience without rows": lambda: learn.Recipe(2, held_out=0.0, patience=1),
    "a share of 1": lambda: learn.Recipe(2, decay=1.0),
    "betas of 1": lambda: learn.Recipe(2, betas=(0.9, 1.0)),
    "three betas": lambda: learn.Recipe(2, betas=(0.9, 0.9, 0.9)),
    "noise of another shape": lambda: learn.flow_matching(net, SAMPLE, torch.ones(20), SMALL),
    "times of other rows": lambda: learn.flow_matching(net, SAMPLE, torch.ones(3), SAMPLE),
    "noise of another event": lambda: learn.noise_contrastive(
        quadratic, torch.zeros(()), quadratic, SAMPLE, SMALL
    ),
    "noise of other rows": lambda: learn.flow_contrastive(
        quadratic, torch.zeros(()), quadratic, SAMPLE, SAMPLE[:3]
    ),
    "probes of another shape": lambda: learn.sliced_score_matching(torch.sin, SAMPLE, SAMPLE),
    "neighbours of another event": lambda: learn.nearest_neighbour_entropy(SAMPLE, SMALL),
    "a grid as a kernel": lambda: stk.ContrastiveDivergence(stk.ProbabilityFlow()),
    "a kernel to tune": lambda: stk.ContrastiveDivergence(stk.MALA()),
    "a start of a word": lambda: stk.ContrastiveDivergence(MALA, start="prior"),
    "a larger batch": lambda: stk.ContrastiveDivergence(MALA, 2, stk.ReplayBuffer(2))(WELL, X),
    "levels that rise": lambda: grids.table(stk.VP(), (0.1, 0.5)),
    "levels below 0": lambda: grids.table(stk.VP(), (0.5, -0.1)),
    "levels between 0": lambda: grids.table(stk.VP(), (0.5, 0.0), 3),
    "times beyond": lambda: grids.grid((0.0, 1.5), stk.VP(), 1),
    "few dimensions": lambda: stk.ncsnv2_ratio(4),
    "an overlap of all": lambda: stk.ncsnv2_ratio(64, overlap=0.95),
    "a ratio that falls": lambda: stk.ncsnv2_ladder(randn(9, 8), ratio=0.9),
    "a floor above": lambda: stk.ncsnv2_ladder(randn(9, 8), sigma_min=1e3),
    "one row of data": lambda: stk.ncsnv2_ladder(randn(1, 8)),
    "a ladder that rises": lambda: stk.ncsnv2_step_size((1.0, 2.0), 8),
    **{
        f"a spec with {name} {value!r}": lambda n=name, v=value: stk.ModelSpec(**SPEC | {n: v})
        for name, some in {
            "name": ("", 3, "a/b"),
            "family": ("", 3),
            "factory": ("builder", 3),
            "provides": ({"magic"}, "energy", ()),
            "event_shape": (2, (0,), "two"),
            "summary": ("", 3, "two\nlines"),
            "parameters": ((), {3: 4}),
            "interface": (99, 0, "one"),
        }.items()
        for value in some
    },
    "an unknown parameter": lambda: stk.load("funnel", widht=3),
    "an unknown setting": lambda: stk.load_solver("mala", step=0.1),
    "a setting that is needed": lambda: stk.load_solver("ula"),
}


class Silent:
    """A field in time that answers nothing."""

    event_shape = (2,)

    def at(self, t):
        return WELL


class Starting(stk.Energy):
    """A field whose own start has another shape."""

    def initial(self, n, noise):
        return torch.zeros(n, 3)


TUNED = sampled(solver=stk.MALA(), warmup=4)
REACHED = {
    "a prediction towards noise": lambda: stk.Diffusion(net, (2,), stk.VP(), "flow_prediction"),
    "a base by rejection": lambda: stk.Velocity(
        net, (2,), td.Independent(td.Gamma(torch.ones(2), 1.0), 1)
    ),
    "a base that is not drawn": lambda: stk.Velocity(net, (2,), WELL),
    "a simplex of a number": lambda: named(p=stk.Variable((), td.constraints.simplex)),
    "a correlation of one": lambda: named(p=stk.Variable((1, 1), td.constraints.corr_cholesky)),
    "a simplex of numbers": lambda: stk.constrained(
        stk.Energy(quadratic, ()), td.constraints.simplex
    ),
    "couplings of lists": lambda: stk.Couplings([0], [1], [0.3]),
    "couplings without weights": lambda: stk.Couplings(torch.tensor([0]), torch.tensor([1]), 0.3),
    "times of other rows": lambda: TIMED.velocity(X, torch.tensor([0.2, 0.5])),
    "times of two axes": lambda: TIMED.denoise(X, torch.full((3, 1), 0.5)),
    "an energy of a list": lambda: WELL.energy([[0.0, 1.0]]),
    "a gradient at a list": lambda: WELL.energy_and_grad([[0.0, 1.0]]),
    "a field in time without answers": lambda: flowed(field=Silent()),
    "a store by its path": lambda: sampled(keep="draws.zarr"),
    "a start of another shape": lambda: sampled(Starting(quadratic, (2,))),
    "latents of a list": lambda: stk.interpolate([[0.0, 1.0]], X, 3),
    "latents of a number": lambda: stk.interpolate(torch.tensor(1.0), torch.tensor(2.0), 3),
    "a buffer of another size": lambda: stk.ReplayBuffer(4).load_state_dict(
        stk.ReplayBuffer(8).state_dict()
    ),
    "all rows held out": lambda: learn.fit(
        Module(), lambda x, g: x.sum(), randn(2, 2), learn.Recipe(2, held_out=0.9)
    ),
    "an overlap of less than 1": lambda: stk.ncsnv2_overlap(0.9, 4),
    "an overlap of NaN": lambda: stk.ncsnv2_overlap(math.nan, 4),
    "a closing step alone": lambda: flowed(
        stk.ProbabilityFlow("euler", steps=1, denoise=True),
        stk.Diffusion(net, (2,), stk.EDM(), "noise"),
    ),
    "a score of nothing": lambda: flowed(
        stk.ReverseSDE(steps=3), stk.Diffusion(net, (2,), stk.Linear(), "score")
    ),
    "what was tuned elsewhere": lambda: sampled(
        WIDE, stk.HMC().tuned_by(sampled(solver=stk.HMC(), warmup=4))
    ),
    "what was tuned by another": lambda: stk.HMC().tuned_by(TUNED),
    "what was tuned to NaN": lambda: stk.MALA().tuned_by(
        replace(TUNED, tuned={"step_size": torch.tensor(math.nan)})
    ),
    "what was tuned to less than 0": lambda: stk.MALA().tuned_by(
        replace(TUNED, tuned={"step_size": torch.tensor(-0.1)})
    ),
    "what was tuned to a number": lambda: stk.MALA().tuned_by(
        replace(TUNED, tuned={"step_size": 0.1})
    ),
    "a layout of texts": lambda: stk.Energy(quadratic, variables={"mu": "two"}),
    "complex numbers to fit": lambda: learn.fit(
        Module(), lambda x, g: x.sum(), randn(8, 2) + 0j, learn.Recipe(2)
    ),
    "flags to fit": lambda: learn.fit(
        Module(), lambda x, g: x.sum(), randn(8, 2) > 0, learn.Recipe(2)
    ),
    "a mixture of one field": lambda: stk.mixture(WELL, [1.0]),
    "a mixture of a set": lambda: stk.mixture({WELL}, [1.0]),
}
CASES = {
    f"{room}: {name}": make
    for room, table in (
        ("fields", FIELDS),
        ("together", TOGETHER),
        ("runs", RUNS),
        ("numbers", NUMBERS),
        ("reached", REACHED),
    )
    for name, make in table.items()
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_what_does_not_go_together_is_refused(name):
    with pytest.raises((stk.ScoretkError, IndexError)) as found:
        CASES[name]()
    recorded(f"unfit: {name}", (type(found.value).__name__, str(found.value)))
