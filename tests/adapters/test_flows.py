"""Flows of other libraries: their own densities, gradients of these, and draws from our noise through their own maps."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.adapters.flows import FlowField
from scoretk.core.noise import Noise
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.gradient import grad_energy
from tests.evidence import assert_mean

BRINGS = [
    (
        "a flow of zuko",
        "stk.from_flow(flow)",
        "its `log_prob` and inverse",
        "zuko==1.6.0",
        ["TestFlows.test_the_density_is_the_librarys_own", "TestFlows.test_draws_have_the_density"],
    ),
    (
        "a flow of nflows",
        "stk.from_flow(flow)",
        "its `log_prob` and inverse",
        "nflows==0.14",
        ["TestFlows.test_the_density_is_the_librarys_own", "TestFlows.test_draws_have_the_density"],
    ),
    (
        "a flow of normflows",
        "stk.from_flow(flow)",
        "its `log_prob` and inverse",
        "normflows==1.7.3",
        ["TestFlows.test_the_density_is_the_librarys_own", "TestFlows.test_draws_have_the_density"],
    ),
    (
        "a network of FrEIA",
        "stk.from_flow(inn)",
        "its Jacobian and inverse",
        "FrEIA==0.2",
        ["TestFlows.test_the_density_is_the_librarys_own", "TestFlows.test_draws_have_the_density"],
    ),
]

D, C, N = 2, 3, 6
REAL = td.constraints.real


def zuko_flow(name, context=0):
    zuko = pytest.importorskip("zuko")
    return getattr(zuko.flows, name)(D, context)


def zuko_mixture(context=0):
    zuko = pytest.importorskip("zuko")
    return zuko.flows.GMM(D, context, components=3)


def nflow(context=None, base=None):
    pytest.importorskip("nflows")
    from nflows.distributions.normal import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform

    parts = [MaskedAffineAutoregressiveTransform(D, 8, context_features=context) for _ in range(2)]
    return Flow(CompositeTransform(parts), StandardNormal([D]) if base is None else base)


def nflow_diagonal():
    pytest.importorskip("nflows")
    from nflows.distributions.normal import DiagonalNormal

    base = DiagonalNormal([D])
    with torch.no_grad():
        base.mean_.copy_(torch.tensor([[1.0, -2.0]]))
        base.log_std_.copy_(torch.tensor([[0.3, -0.2]]))
    return nflow(base=base)


def nflow_by_context():
    pytest.importorskip("nflows")
    from nflows.distributions.normal import ConditionalDiagonalNormal

    return nflow(C, ConditionalDiagonalNormal([D], torch.nn.Linear(C, 2 * D)))


def normflow(base=None, conditional=False):
    nf = importing("normflows")
    base = nf.distributions.DiagGaussian(D) if base is None else base
    layers = [
        nf.flows.AutoregressiveRationalQuadraticSpline(D, 1, 8, num_context_channels=C)
        if conditional
        else nf.flows.MaskedAffineFlow(
            torch.tensor([1.0, 0.0]), nf.nets.MLP([D, 8, D]), nf.nets.MLP([D, 8, D])
        )
    ]
    made = nf.ConditionalNormalizingFlow if conditional else nf.NormalizingFlow
    return made(base, layers)


def freia(conditional=False):
    fr, modules = importing("FrEIA.framework"), importing("FrEIA.modules")
    flow = fr.SequenceINN(D)

    def subnet(inward, outward):
        return torch.nn.Sequential(
            torch.nn.Linear(inward, 8), torch.nn.Tanh(), torch.nn.Linear(8, outward)
        )

    extra = {"cond": 0, "cond_shape": (C,)} if conditional else {}
    for _ in range(2):
        flow.append(modules.AllInOneBlock, subnet_constructor=subnet, **extra)
    return flow


def freia_graph():
    fr, modules = importing("FrEIA.framework"), importing("FrEIA.modules")
    start, c = fr.InputNode(D, name="x"), fr.ConditionNode(C, name="c")
    block = fr.Node(
        start, modules.AllInOneBlock, {"subnet_constructor": torch.nn.Linear}, conditions=c
    )
    return fr.GraphINN([start, c, block, fr.OutputNode(block, name="z")])


def freia_sequence(*places):
    """A sequence whose layers look at these places of its list of conditions."""
    fr, modules = importing("FrEIA.framework"), importing("FrEIA.modules")
    flow = fr.SequenceINN(D)
    for place in places:
        flow.append(
            modules.AllInOneBlock, subnet_constructor=torch.nn.Linear, cond=place, cond_shape=(C,)
        )
    return flow


def freia_graph_of_two():
    fr, modules = importing("FrEIA.framework"), importing("FrEIA.modules")
    start, given = (
        fr.InputNode(D, name="x"),
        [fr.ConditionNode(C, name=name) for name in ("a", "b")],
    )
    first, second = ({"subnet_constructor": torch.nn.Linear} for _ in range(2))
    one = fr.Node(start, modules.AllInOneBlock, first, conditions=given[0])
    two = fr.Node(one, modules.AllInOneBlock, second, conditions=given[1])
    return fr.GraphINN([start, *given, one, two, fr.OutputNode(two, name="z")])


def importing(name):
    with warnings.catch_warnings():  # of the library itself, at its first import
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def seeded(make):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        return make().eval()


FLOWS = {
    "zuko NSF": (lambda: zuko_flow("NSF"), None),
    "zuko MAF, given c": (lambda: zuko_flow("MAF", C), "c"),
    "zuko NICE": (lambda: zuko_flow("NICE"), None),
    "zuko GMM": (zuko_mixture, None),
    "nflows": (nflow, None),
    "nflows, diagonal base": (nflow_diagonal, None),
    "nflows, given context": (lambda: nflow(C), "context"),
    "nflows, base by context": (nflow_by_context, "context"),
    "normflows": (normflow, None),
    "normflows, given context": (lambda: normflow(conditional=True), "context"),
    "FrEIA": (freia, None),
    "FrEIA, given c": (lambda: freia(True), "c"),
    "FrEIA graph, given c": (freia_graph, "c"),
}


def own_log_prob(flow, x, cond):
    """The library's own log density, by its own call."""
    package = type(flow).__module__.partition(".")[0]
    if package == "zuko":
        return flow(*cond.values()).log_prob(x)
    if package == "FrEIA":
        z, log_det = flow(x, c=list(cond.values()) or None)
        return td.Independent(td.Normal(torch.zeros(D), 1.0), 1).log_prob(z) + log_det
    return flow.log_prob(x, **cond)


@pytest.fixture
def given(request):
    make, name = FLOWS[request.param]
    flow = seeded(make)
    cond = {} if name is None else {name: torch.linspace(-1, 1, N * C).reshape(N, C)}
    x = torch.stack([torch.linspace(-2, 1.5, N), torch.linspace(1, -1, N)], 1)
    return flow, stk.from_(flow), x, cond


@pytest.mark.parametrize("given", FLOWS, indirect=True)
class TestFlows:
    def test_the_density_is_the_librarys_own(self, given):
        flow, field, x, cond = given
        assert isinstance(field, FlowField)
        assert field.event_shape == (D,)
        torch.testing.assert_close(field.log_prob(x, **cond), own_log_prob(flow, x, cond))
        torch.testing.assert_close(field.energy(x, **cond), -own_log_prob(flow, x, cond))

    def test_the_score_is_its_gradient(self, given):
        flow, field, x, cond = given
        expected = -grad_energy(lambda y: -own_log_prob(flow, y, cond), x)[1]
        torch.testing.assert_close(field.score(x, **cond), expected)

    def test_rows_are_their_own(self, given):
        _, field, x, cond = given
        alone = field.log_prob(x[2:3], **{k: v[2:3] for k, v in cond.items()})
        torch.testing.assert_close(field.log_prob(x, **cond)[2:3], alone)

    def test_a_missing_or_unknown_condition_is_named(self, given):
        _, field, x, cond = given
        with pytest.raises(InvalidArgument, match="the flow's conditions"):
            field.log_prob(x, nonsense=x)
        if cond:
            with pytest.raises(InvalidArgument, match=next(iter(cond))):
                field.log_prob(x)

    def test_draws_are_a_function_of_the_chain(self, given):
        _, field, _, cond = given
        if "draw" not in field.provides:
            with pytest.raises(MissingCapability, match="diagonal normal base"):
                field.draw(N, Noise(1, N))
            return
        with torch.no_grad():
            x = field.draw(N, Noise(1, N), **cond)
            part = field.draw(2, Noise(1, range(2, 4)), **{k: v[2:4] for k, v in cond.items()})
        torch.testing.assert_close(x[2:4], part)
        assert field.log_prob(x, **cond).isfinite().all()

    def test_draws_have_the_density(self, given):
        """By Stein's identity E[score] = 0 and E[x . score] = -d, in standard errors."""
        _, field, _, cond = given
        if "draw" not in field.provides:
            return
        n = 2000
        rows = {k: v[:1].expand(n, -1) for k, v in cond.items()}
        with torch.no_grad():
            x = field.draw(n, Noise(5, n), **rows)
        score = field.score(x, **rows)
        assert_mean(score, [0.0] * D, "E[score]")
        assert_mean((x * score).sum(1, keepdim=True), [-float(D)], "E[x . score]")


@pytest.mark.parametrize("given", ["zuko NSF", "nflows", "FrEIA"], indirect=True)
def test_stein_sees_draws_of_another_base(given):
    """A mutant: draws whose base is 10 % too wide."""
    _, field, _, _ = given
    noise = Noise(5, 4000)
    wide = type("Wide", (), {"chains": noise.chains})()
    wide.normal = lambda *a, **k: 1.1 * noise.normal(*a, **k)
    with torch.no_grad():
        x = field.draw(4000, wide)
    with pytest.raises(AssertionError, match=r"E\[x \. score\]"):
        assert_mean((x * field.score(x)).sum(1, keepdim=True), [-float(D)], "E[x . score]")


def test_a_solver_samples_a_flow():
    field = stk.from_flow(seeded(lambda: zuko_flow("NICE")))
    draws = stk.sample(field, stk.MALA(0.1), chains=8, steps=5)
    assert draws.x.shape == (8, 5, D)
    assert draws.failures == {}
    torch.testing.assert_close(stk.log_prob(field, draws.final).value, field.log_prob(draws.final))


def test_a_conditional_flow_is_sampled_by_cond():
    field = stk.from_flow(seeded(lambda: zuko_flow("MAF", C)))
    rows = torch.linspace(-1, 1, 8 * C).reshape(8, C)
    draws = stk.sample(field, stk.MALA(0.1), chains=8, steps=3, cond={"c": rows})
    assert draws.failures == {}
    with pytest.raises(InvalidArgument, match="conditions: c"):
        stk.sample(field, stk.MALA(0.1), chains=8, steps=3)


def test_a_distribution_that_zuko_made_works_or_names_the_way():
    flow = seeded(lambda: zuko_flow("NSF"))
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_flow"):
        stk.from_distribution(flow())
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_flow"):
        stk.sample(flow(), stk.MALA(0.1), chains=2)
    x = torch.zeros(2, D)
    torch.testing.assert_close(stk.from_(flow()).log_prob(x), flow().log_prob(x))
    batched = seeded(lambda: zuko_flow("MAF", C))(torch.zeros(4, C))
    with pytest.raises(InvalidArgument, match=r"cond=\{'c': rows\}"):
        stk.from_flow(batched)


def test_a_flow_that_does_not_say_its_shape_is_told():
    class Silent(zuko_class("LazyDistribution")):
        def forward(self, c=None):
            if c is None:
                raise ValueError("a context is needed")
            return td.Independent(td.Normal(c, 1.0), 1)

    with pytest.raises(InvalidArgument, match="event_shape"):
        stk.from_flow(Silent())
    field = stk.from_flow(Silent(), (D,))
    assert "draw" not in field.provides
    x = torch.ones(2, D)
    value = field.log_prob(x, c=torch.ones(2, D))
    torch.testing.assert_close(value, torch.full((2,), -D / 2 * math.log(2 * math.pi)))


def zuko_class(name):
    return getattr(pytest.importorskip("zuko").lazy, name)


def test_parts_of_flows_and_shapes_that_are_not_said_are_told():
    importing("nflows")
    from nflows.distributions import MADEMoG
    from nflows.flows import Flow
    from nflows.transforms import IdentityTransform

    mixture = seeded(lambda: MADEMoG(D, 8, None))
    for take in (stk.from_, stk.from_flow, stk.sample):
        with pytest.raises(InvalidArgument, match=r"base of a flow: .*IdentityTransform"):
            take(mixture)
    with pytest.raises(InvalidArgument, match=r"transform of nflows: .*Flow\(transform"):
        stk.from_(IdentityTransform())
    flow = Flow(IdentityTransform(), mixture)
    for unsaid in (flow, seeded(lambda: zuko_mixture(C))):
        with pytest.raises(InvalidArgument, match=r"does not say.*event_shape=\(2,\)") as caught:
            stk.from_flow(unsaid)
        assert "attribute" not in str(caught.value)
    x = torch.linspace(-1, 1, 6).reshape(3, D)
    torch.testing.assert_close(stk.from_flow(flow, (D,)).log_prob(x), mixture.log_prob(x))


SEVERAL = {
    "sequence": (lambda: freia_sequence(0, 1), ("c0", "c1"), (0, 1)),
    "sequence, the second alone": (lambda: freia_sequence(1, 1), ("c1",), (None, 0)),
    "sequence, one with a gap": (lambda: freia_sequence(2, 0), ("c0", "c2"), (0, None, 1)),
    "graph": (freia_graph_of_two, ("c0", "c1"), (0, 1)),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_conditions_of_freia_go_to_their_places(name):
    make, names, places = SEVERAL[name]
    flow = seeded(make)
    field = stk.from_flow(flow)
    rows = [torch.linspace(-1, 1, N * C).reshape(N, C) * (1 + i) for i in range(len(names))]
    x = torch.linspace(-1, 1, N * D).reshape(N, D)
    cond = dict(zip(names, rows, strict=True))
    z, log_det = flow(x, c=[None if i is None else rows[i] for i in places])
    expected = td.Independent(td.Normal(torch.zeros(D), 1.0), 1).log_prob(z) + log_det
    torch.testing.assert_close(field.log_prob(x, **cond), expected)
    assert field.draw(N, Noise(0, N), **cond).shape == (N, D)
    swapped = dict(zip(names, rows[::-1], strict=True))
    if len(names) > 1:  # a mutant: the conditions in another order
        assert not torch.allclose(field.log_prob(x, **swapped), expected, atol=1e-3)
    for left_out in names:
        rest = {n: v for n, v in cond.items() if n != left_out}
        with pytest.raises(InvalidArgument, match=left_out):
            field.log_prob(x, **rest)
        with pytest.raises(InvalidArgument, match=left_out):
            field.draw(N, Noise(0, N), **rest)


# --- where a flow's density lives


def of_angles():
    """A flow of normflows for an angle and a number; its base says the same beyond its box."""
    nf = importing("normflows")
    base = nf.distributions.UniformGaussian(D, [0], scale=torch.tensor([2 * math.pi, 1.0]))
    layer = nf.flows.CircularAutoregressiveRationalQuadraticSpline(
        D, 1, 8, [0], tail_bound=torch.tensor([math.pi, 5.0])
    )
    return nf.NormalizingFlow(base, [layer])


def of_shares():
    pytest.importorskip("nflows")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, Logit, PointwiseAffineTransform

    parts = [Logit(), PointwiseAffineTransform(shift=0.5, scale=1.5)]
    return Flow(CompositeTransform(parts), StandardNormal([D]))


def of_shares_of_a_line():
    """Of data that are scaled and put into another order before the logit."""
    importing("nflows")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        Logit,
        PointwiseAffineTransform,
        ReversePermutation,
    )

    line = PointwiseAffineTransform(shift=torch.tensor([-0.5, 1.5]), scale=torch.tensor(0.25))
    parts = [line, ReversePermutation(D), CompositeTransform([Logit()])]
    return Flow(CompositeTransform(parts), StandardNormal([D]))


def zuko_of(*transforms):
    zuko = pytest.importorskip("zuko")
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(D), torch.ones(D), buffer=True
    )
    return zuko.lazy.Flow([zuko.lazy.UnconditionalTransform(*part) for part in transforms], base)


def logit():
    return td.SigmoidTransform().inv


def zuko_shares_of_a_line():
    """Of data in (2, 6)."""
    return zuko_of((td.AffineTransform, torch.tensor(-0.5), torch.tensor(0.25)), (logit,))


def normflows_logit():
    """Of pixels in (0, 1) as normflows has them: the density goes a little beyond."""
    nf = importing("normflows")
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(D), [nf.transforms.Logit(alpha=0.1)])


PI = math.pi
BOUNDED = {
    "nflows, from shares of a line": (of_shares_of_a_line, [2, -6], [6, -2]),
    "zuko, from shares of a line": (zuko_shares_of_a_line, [2, 2], [6, 6]),
    "normflows, a logit": (normflows_logit, [-0.125, -0.125], [1.125, 1.125]),
    "zuko NCSF": (lambda: zuko_flow("NCSF"), [-PI, -PI], [PI, PI]),
    "nflows, from shares": (of_shares, [0, 0], [1, 1]),
    "normflows, an angle": (of_angles, [-PI, -5], [PI, 5]),
}


def on_a_grid(field, low, high, sides=100):
    """Points of a grid on a box, and the share of mass that a density puts at each."""
    axes = [
        torch.linspace(a, b, sides + 1)[:-1] + (b - a) / sides / 2
        for a, b in zip(low, high, strict=True)
    ]
    points = torch.cartesian_prod(*axes)
    cell = math.prod((b - a) / sides for a, b in zip(low, high, strict=True))
    return points, field.log_prob(points).exp() * cell


@pytest.mark.parametrize("name", BOUNDED)
def test_a_flow_on_a_part_of_the_space_is_sampled_there_alone(name):
    make, low, high = BOUNDED[name]
    field = stk.from_(seeded(make))
    with torch.no_grad():
        points, mass = on_a_grid(field, low, high)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-2)
    outside = torch.tensor(high) + 1.0
    assert field.log_prob(outside.expand(2, D) * torch.tensor([[1.0], [-1.0]])).tolist() == [
        -math.inf,
        -math.inf,
    ]
    draws = stk.sample(field, stk.MALA(0.3), chains=128, steps=1, warmup=40, seed=1)
    assert draws.failures == {}
    assert bool(((draws.x >= torch.tensor(low)) & (draws.x <= torch.tensor(high))).all())
    waves = torch.tensor([1.0, 2.0])
    expected = mass @ torch.cat([(waves * points).cos(), points.sin()], 1)
    x = draws.final
    assert_mean(torch.cat([(waves * x).cos(), x.sin()], 1), expected.tolist(), name)
    joint = stk.product(field, field)
    assert bool((stk.sample(joint, stk.MALA(0.3), chains=4, steps=3).x <= torch.tensor(high)).all())


@pytest.mark.parametrize("family", ["Exponential", "Gamma", "Beta"])
def test_outside_its_bases_support_a_flow_has_no_density(family):
    """Where torch's own formula goes on: of Exponential it rises for ever."""
    zuko = pytest.importorskip("zuko")
    two = torch.full((D,), 2.0)
    given = {"Exponential": (two,), "Gamma": (two, two), "Beta": (two, two)}[family]
    make, turn = getattr(td, family), torch.tensor([[0.8, -0.6], [0.6, 0.8]])

    def law(*given):
        return td.Independent(make(*given), 1)

    base = zuko.lazy.UnconditionalDistribution(law, *given, buffer=True)
    turned = zuko.lazy.UnconditionalTransform(zuko.transforms.RotationTransform, turn, buffer=True)
    flow = zuko.lazy.Flow([turned], base)
    for made in (flow, flow()):
        field = stk.from_flow(made)
        with torch.no_grad():
            _, mass = on_a_grid(field, [-8.0, -8.0], [8.0, 8.0], sides=400)
        assert float(mass.sum()) == pytest.approx(1, abs=2e-2)
        assert field.log_prob(torch.tensor([[0.0, -9.0]])).tolist() == [-math.inf]


def test_a_mutant_without_the_support_leaves_it():
    flow = seeded(lambda: zuko_flow("NCSF"))
    assert stk.from_(flow()).within.upper_bound == PI
    field = stk.from_flow(flow).bare()
    draws = stk.sample(field, stk.MALA(1.0), chains=16, steps=30, seed=1)
    assert bool((draws.x.abs() > PI).any())


def test_a_flow_given_a_condition_knows_where_it_lives():
    field = stk.from_flow(seeded(lambda: zuko_flow("NCSF", C)))
    draws = stk.sample(field, stk.ULA(0.5), chains=8, steps=9, cond={"c": torch.zeros(8, C)})
    assert bool((draws.x.abs() <= PI).all())


def test_a_density_that_falls_off_nowhere_asks_for_its_support():
    zuko = pytest.importorskip("zuko")
    flow = seeded(lambda: zuko_flow("NCSF"))
    turned = zuko.lazy.UnconditionalTransform(
        zuko.transforms.RotationTransform, torch.eye(D)[[1, 0]] * torch.tensor([[1.0], [0.0]])
    )
    turned = zuko.lazy.Flow([turned, *flow.transform.transforms], flow.base)
    with pytest.raises(InvalidArgument, match=r"support=torch\.distributions"):
        stk.from_flow(turned)
    nf = importing("normflows")
    base = nf.distributions.UniformGaussian(D, [0])
    shifted = nf.NormalizingFlow(base, [nf.flows.AffineConstFlow(D)])
    with pytest.raises(InvalidArgument, match="entry 0"):
        stk.from_flow(shifted)
    with pytest.raises(InvalidArgument, match="entry 1"):  # which leads all beyond 5 to one point
        stk.from_flow(seeded(of_angles), support=[(td.constraints.interval(-PI, PI), 1), (REAL, 1)])
    parts = [(td.constraints.interval(-0.5, 0.5), 1), (REAL, 1)]
    field = stk.from_flow(shifted, support=parts)
    assert field.log_prob(torch.tensor([[0.6, 0.0]])).tolist() == [-math.inf]
    with pytest.raises(InvalidArgument, match="constraint"):
        stk.from_flow(shifted, support=[(td.constraints.positive, 3)])


def nflow_of(*names, first=()):
    importing("nflows")
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    parts = [getattr(transforms, name)() for name in names]
    return Flow(transforms.CompositeTransform([*first, *parts]), StandardNormal([D]))


def freia_into_a_part(conditional=False, layer="InvertibleSigmoid"):
    modules, flow = importing("FrEIA.modules"), freia(conditional)
    flow.append(getattr(modules, layer) if layer != "Clamped" else clamped(modules))
    return flow


def clamped(modules):
    class Clamped(modules.InvertibleModule):
        """tanh, whose inverse leads all beyond (-1, 1) to its ends."""

        def forward(self, x, c=None, rev=False, jac=True):
            (x,) = x
            y = x.clamp(-1 + 1e-6, 1 - 1e-6).atanh() if rev else x.tanh()
            slope = torch.log1p(-((x if rev else y) ** 2)).sum(1)
            return (y,), -slope if rev else slope

        def output_dims(self, dims):
            return dims

    return Clamped


INTO_A_PART = {
    "FrEIA": freia_into_a_part,
    "FrEIA, given c": lambda: freia_into_a_part(True),
    "FrEIA, a layer of one's own": lambda: freia_into_a_part(layer="Clamped"),
    "nflows, sigmoid": lambda: nflow_of("Sigmoid"),
    "nflows, tanh": lambda: nflow_of("Tanh"),
    "zuko": lambda: zuko_of((td.SigmoidTransform,)),
}


@pytest.mark.parametrize("name", INTO_A_PART)
def test_a_flow_into_a_part_of_its_bases_space_has_no_density(name):
    with pytest.raises(InvalidArgument, match="onto all of the space of its base"):
        stk.from_flow(seeded(INTO_A_PART[name]))


@pytest.mark.parametrize("name", ["FrEIA", "nflows, tanh", "zuko"])
def test_a_mutant_that_believes_it_has_another_mass(name, monkeypatch):
    monkeypatch.setattr("scoretk.adapters.flows.made._asked_onto", lambda field, _: field)
    field = stk.from_flow(seeded(INTO_A_PART[name]))
    with torch.no_grad():
        _, mass = on_a_grid(field, [-40, -40], [40, 40], 200)
        assert float(mass.sum()) < 0.6
        with pytest.raises(InvalidArgument, match=r"no x leads|raised"):
            field.draw(64, Noise(0, 64))


def test_a_flow_that_does_not_reach_far_in_numbers_has_no_density():
    """zuko's GF cuts what it leads to, at 4.9 for each layer: made anew it has half of a mass."""
    flow = seeded(lambda: zuko_flow("GF"))
    with torch.no_grad():
        found = type("Own", (), {"log_prob": lambda _, x: flow().log_prob(x)})()
        _, mass = on_a_grid(found, [-60, -60], [60, 60], 400)
    assert float(mass.sum()) < 0.7
    with pytest.raises(InvalidArgument, match="onto all of the space of its base"):
        stk.from_flow(flow)


def test_an_inverse_by_bisection_that_ends_too_early_draws_nothing():
    """zuko looks for x within (-10, 10), of which it gave the ends; the density is as it was."""
    zuko = pytest.importorskip("zuko")
    flow = zuko_of((lambda: zuko.transforms.MonotonicTransform(lambda x: x / 50),))
    field = stk.from_flow(flow)
    with torch.no_grad():
        _, mass = on_a_grid(field, [-300, -300], [300, 300], 60)
        assert float(mass.sum()) == pytest.approx(1, abs=1e-2)
        assert float(field.flow.inverse(torch.ones(1, D), {}).abs().max()) < 10.1
        with pytest.raises(MissingCapability, match=r"f\(f\^-1\(z\)\) is not z.*MALA"):
            field.draw(64, Noise(0, 64))
        believed = replace(field, provides=field.provides | {"draw"})  # as a conditional flow is
        with pytest.raises(InvalidArgument, match=r"f\(f\^-1\(z\)\) is not z.*MALA"):
            believed.draw(64, Noise(0, 64))


def test_a_flow_whose_inverse_fails_for_a_little_of_its_noise_keeps_its_density():
    zuko = pytest.importorskip("zuko")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = zuko.flows.NAF(D, hidden_features=(8,), transforms=2)
    x = torch.linspace(-1, 1, 6).reshape(3, D)
    torch.testing.assert_close(stk.from_flow(flow).log_prob(x), flow().log_prob(x))


def normflows_of(*layers):
    nf = importing("normflows")
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(D), [make(nf) for make in layers])


def test_a_flow_that_leads_one_way_only_has_no_density():
    for make in (lambda nf: nf.flows.Planar((D,)), lambda nf: nf.flows.Radial((D,))):
        with pytest.raises(InvalidArgument, match=r"from the data to the noise too.*has no"):
            stk.from_flow(seeded(lambda make=make: normflows_of(make)))
    leaky = seeded(lambda: normflows_of(lambda nf: nf.flows.Planar((D,), act="leaky_relu")))
    assert "log_prob" in stk.from_flow(leaky).provides


def test_a_flow_that_leads_to_the_noise_only_draws_nothing():
    importing("nflows")
    from nflows.transforms import InverseNotAvailable, PointwiseAffineTransform

    class OneWay(PointwiseAffineTransform):
        def inverse(self, inputs, context=None):
            raise InverseNotAvailable()

    flow = nflow_of(first=[OneWay(0.5, 2.0)])
    field = stk.from_flow(flow, (D,))
    assert field.provides == {"energy", "score", "log_prob"}
    x = torch.linspace(-1, 1, 6).reshape(3, D)
    torch.testing.assert_close(field.log_prob(x), flow.log_prob(x))


def test_a_flow_with_layers_that_draw_has_no_density():
    def made(nf):
        proposal = nf.distributions.DiagGaussianProposal((D,), 0.5)
        return nf.flows.MetropolisHastings(nf.distributions.DiagGaussian(D), proposal, 3)

    with pytest.raises(InvalidArgument, match="draws numbers of its own"):
        stk.from_flow(seeded(lambda: normflows_of(made)))


def test_a_jacobian_by_autograd_and_chance_is_told_as_that():
    """FrEIA's residual layer has one of probes, and finds it by gradients both ways."""
    importing("FrEIA")
    import FrEIA.framework as framework
    import FrEIA.modules as layers

    def made():
        flow = framework.SequenceINN(D)
        flow.append(layers.IResNetLayer)
        return flow

    flow = seeded(made)
    with pytest.raises(InvalidArgument, match="draws numbers of its own"):
        stk.from_flow(flow)


@pytest.mark.parametrize("library", ["zuko", "nflows"])
def test_a_flow_with_a_discrete_base_has_no_density(library):
    importing(library)
    if library == "zuko":
        import zuko

        def law(rate):
            return td.Independent(td.Poisson(rate), 1)

        base = zuko.lazy.UnconditionalDistribution(law, torch.ones(D), buffer=True)
        flow = seeded(lambda: zuko.lazy.Flow([zuko.flows.MAF(D).transform], base))
    else:
        from nflows import distributions, flows, transforms

        base = distributions.ConditionalIndependentBernoulli([D])
        flow = flows.Flow(transforms.IdentityTransform(), base)
    with pytest.raises(InvalidArgument, match="law of counts or classes"):
        stk.from_flow(flow)


@pytest.mark.parametrize("name", ["zuko NSF", "nflows", "normflows", "FrEIA, given c"])
def test_a_flow_of_float64_is_asked_in_it(name):
    flow = seeded(FLOWS[name][0]).double()
    field = stk.from_flow(flow)
    cond = {FLOWS[name][1]: torch.zeros(N, C).double()} if FLOWS[name][1] else {}
    x = field.draw(N, Noise(0, N), **cond)
    assert x.dtype == torch.float64
    assert field.log_prob(x, **cond).dtype == torch.float64


def test_a_domain_that_is_no_box_of_x_asks_for_its_support():
    importing("nflows")
    from nflows.transforms import LULinear

    def turned():
        return nflow_of("Logit", first=[LULinear(D, identity_init=False)])

    with pytest.raises(InvalidArgument, match="has no density everywhere"):
        stk.from_flow(seeded(turned))


@pytest.mark.parametrize("given", FLOWS, indirect=True)
def test_conditions_that_do_not_fit_are_told_in_a_sentence(given):
    _, field, x, cond = given
    for name in field.flow.names:
        wide = {name: torch.zeros(N, C + 2)}
        with pytest.raises(InvalidArgument, match=f"{name} of shape .*float32.*It raised"):
            field.log_prob(x, **wide)
    if not cond and field.flow.names == ("c",):
        with pytest.raises(InvalidArgument, match="was it made to take one"):
            field.log_prob(x, c=torch.zeros(N, C))


def test_a_vector_is_no_row_a_chain():
    """zuko takes it for one condition of all rows: as long as there are chains, without a word."""
    field = stk.from_flow(seeded(lambda: zuko_flow("MAF", C)))
    with pytest.raises(InvalidArgument, match=r"c: expected a row a chain"):
        stk.sample(field, stk.MALA(0.1), chains=C, steps=2, cond={"c": torch.zeros(C)})
    with pytest.raises(InvalidArgument, match=r"c\.expand"):
        field.draw(C, Noise(0, C), c=torch.zeros(C))


def test_another_event_shape_is_no_missing_condition():
    field = stk.from_flow(seeded(lambda: zuko_flow("NSF")), (D + 3,))
    assert not field.conditional
    with pytest.raises(InvalidArgument, match="event_shape is the shape of one x"):
        field.log_prob(torch.zeros(2, D + 3))


def test_a_box_beneath_a_flow_refuses_rows_and_not_batches():
    zuko = pytest.importorskip("zuko")
    flow = seeded(lambda: zuko_flow("NSF"))
    flow.base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.BoxUniform, -5 * torch.ones(D), 5 * torch.ones(D), buffer=True
    )
    found = stk.from_flow(flow).log_prob(torch.tensor([[0.0, 0.0], [6.0, 0.0]]))
    assert bool(found[0].isfinite())
    assert found[1].tolist() == -math.inf


class TestAsking:
    """A flow is as it was when a field was made of it, whatever its layers take for data."""

    def made(self, layer, **changes):
        importing("nflows")
        from nflows import transforms
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow

        def build():
            layers = [
                getattr(transforms, layer)(D),
                transforms.MaskedAffineAutoregressiveTransform(D, 8, **changes),
            ]
            return Flow(transforms.CompositeTransform(layers), StandardNormal([D]))

        return seeded(build)

    @pytest.mark.parametrize("layer", ["ActNorm", "BatchNorm"])
    def test_in_training_mode(self, layer):
        flow = self.made(layer).train()
        before = {name: value.clone() for name, value in flow.state_dict().items()}
        stk.from_flow(flow)
        assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
        assert all(part.training for part in flow.modules())
        assert all(p.requires_grad for p in flow.parameters())

    def test_dropout_is_held_in_eval_mode(self):
        flow = self.made("BatchNorm", dropout_probability=0.5)
        field, x = (
            stk.from_flow(flow.train()),
            torch.randn(4, D, generator=torch.Generator().manual_seed(0)),
        )
        one, two = (stk.log_prob(field, x).value for _ in range(2))
        assert torch.equal(one, two)
        with torch.no_grad():
            torch.testing.assert_close(one, flow.eval().log_prob(x))

    def test_what_takes_its_first_batch_for_data_is_refused_until_it_has_one(self):
        nf = importing("normflows")

        def made():
            net = nf.nets.MLP([1, 8, 2], init_zeros=False)
            layers = [nf.flows.AffineCouplingBlock(net), nf.flows.ActNorm(2)]
            return nf.NormalizingFlow(nf.distributions.DiagGaussian(2), layers)

        flow = seeded(made)
        before = {name: value.clone() for name, value in flow.state_dict().items()}
        with pytest.raises(InvalidArgument, match="first batch for data"):
            stk.from_flow(flow)
        assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
        with torch.no_grad():
            flow.log_prob(torch.randn(64, 2, generator=torch.Generator().manual_seed(1)))
        assert stk.from_flow(flow).draw(3, stk.Noise(0, 3)).isfinite().all()

    def test_the_shape_is_that_of_x_and_not_of_the_noise(self):
        importing("nflows")
        from nflows import transforms
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow

        def build():
            layers = [transforms.SqueezeTransform(), transforms.OneByOneConvolution(4)]
            return Flow(transforms.CompositeTransform(layers), StandardNormal([4, 2, 2]))

        flow = seeded(build)
        field = stk.from_flow(flow)
        assert field.event_shape == (1, 4, 4)
        assert field.draw(3, stk.Noise(0, 3)).shape == (3, 1, 4, 4)

    def test_rows_of_a_condition_are_rows_of_x(self):
        zuko = importing("zuko")
        field = stk.from_flow(seeded(lambda: zuko.flows.NSF(2, context=C)))
        for x, c in (((3, 2), (1, C)), ((1, 2), (4, C)), ((3, 2), (3, 1, C))):
            with pytest.raises(InvalidArgument, match="cond"):
                field.log_prob(torch.zeros(x), c=torch.zeros(c))
        with pytest.raises(InvalidArgument, match="x: expected a tensor of rows"):
            field.log_prob(torch.zeros(3, 1), c=torch.zeros(3, C))
