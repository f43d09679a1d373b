"""The conformance kit: right models pass every law, and each law catches the wrong model made for it."""

import ast
import dataclasses
import random
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn

import scoretk as stk
from scoretk.conformance import (
    CHECKS,
    CheckResult,
    NotApplicable,
    Violation,
    check_model,
    kit,
    laws,
    parametrize_with_checks,
)
from scoretk.conformance.kit import Check
from scoretk.conformance.precision import COARSE, in_float64
from scoretk.conformance.subject import Case, Subject
from scoretk.plugins import ModelSpec
from tests.lawful import broken_laws, checked
from tests.marks import slow_but

BY_NAME = {check.name: check for check in CHECKS}


def failures(model, **options):
    try:
        results = check_model(model, **options)
    except NotApplicable:  # which pytest would take for a skipped test
        pytest.fail("check_model let a skip through")
    return {result.check: result.detail for result in results if result.status == "failed"}


def quadratic(x):
    return x.flatten(1).pow(2).sum(1) / 2


class Net(nn.Module):
    """A small network of (x, t), with weights that do not depend on the global generator."""

    def __init__(self, features=2):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Linear(features + 1, 16), nn.Tanh(), nn.Linear(16, features)
            )

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


class Exact(stk.fields.GaussianPathField):
    """The timed field of one standard Gaussian on the linear path: D = alpha x / (alpha^2 + sigma^2)."""

    event_shape = (2,)
    path = stk.Linear()
    predicts = "data"
    base = stk.fields.standard_normal((2,))

    def predict(self, x, t):
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        return t * x / (t**2 + (1 - t) ** 2)


def mlp_energy():
    net = Net()
    return stk.Energy(lambda x: net(x, torch.zeros(len(x), dtype=x.dtype)).sum(1), (2,))


GOOD = {
    "energy": stk.Energy(quadratic, (2, 3)),
    "scalar-event": stk.Energy(lambda x: x**2, ()),
    "mlp-energy": mlp_energy(),
    "score": stk.Score(lambda x: -x, (2,)),
    "distribution": stk.from_distribution(
        td.Independent(td.Normal(torch.zeros(2), torch.ones(2)), 1)
    ),
    "tempered": stk.tempered(stk.Energy(quadratic, (2,)), 2.0),
    "product": stk.product(stk.Energy(quadratic, (2,)), stk.Score(lambda x: -x, (2,))),
    "diffusion": stk.Diffusion(Net(), (2,)),
    "diffusion-v": stk.Diffusion(Net(), (2,), path=stk.SubVP(), predicts="v"),
    "diffusion-data": stk.Diffusion(Net(), (2,), path=stk.EDM(), predicts="data"),
    "flow": stk.Velocity(Net(), (2,)),
    "flow-between-data": stk.Velocity(Net(), (2,), base=torch.randn(9, 2)),
    "exact": Exact(),
}


@pytest.mark.usefixtures("fewer_cases")
@parametrize_with_checks([GOOD["diffusion"], GOOD["distribution"]])
def test_the_checks_are_tests(model, check):
    check(model)


OF_EACH_KIND = ("energy", "scalar-event", "distribution", "diffusion", "flow", "exact")


@pytest.mark.parametrize("name", slow_but(GOOD, *OF_EACH_KIND))
def test_right_models_obey(name):
    """And a law that skips everything would let everything pass."""
    results = checked(GOOD[name])
    assert [result for result in results if result.status == "failed"] == []
    skipped = {result.check for result in results if result.status == "skipped"}
    timed = {"scalar_time", "ends", "held_time", "conversions", "start"}
    assert skipped <= timed | {"gradient", "together", "density", "draws"}
    if name in ("diffusion", "diffusion-v", "diffusion-data", "flow", "exact"):
        assert not skipped & timed
    if name == "distribution":
        assert skipped == timed


# --- wrong models, at least one for each law ---------------------------------------------------------------------


class Static:
    """A correct standard Gaussian in plain Python, to be made wrong in one place each."""

    event_shape = (2,)

    def energy(self, x):
        return quadratic(x)

    def score(self, x):
        return -x

    def log_prob(self, x):
        return -quadratic(x) - np.log(2 * np.pi)

    def draw(self, n, noise):
        return noise.normal(0, stk.Stream.START, (2,))

    def decode(self, z):
        return z.repeat(1, 2)


def static(law, about):
    def register(cls):
        wrong = type(cls.__name__, (cls, Static), {})
        WRONG.append(pytest.param(law, wrong(), about, id=f"{law}-{cls.__name__}"))
        return cls

    return register


def timed(law, about):
    def register(cls):
        wrong = type(cls.__name__, (cls, Exact), {})
        WRONG.append(pytest.param(law, wrong(), about, id=f"{law}-{cls.__name__}"))
        return cls

    return register


WRONG: list = []


@static("claimed", "velocity is offered but the field has no such attribute")
class PromisesVelocity:
    provides = frozenset({"energy", "velocity"})


@static("claimed", "energi is claimed, which is no capability")
class PromisesNonsense:
    provides = frozenset({"energy", "energi"})


@static("claimed", "event_shape")
class ShapeIsAList:
    event_shape = [2]  # noqa: RUF012


@static("unclaimed", "is not offered, yet calling it does not raise")
class AnswersUnasked:
    provides = frozenset({"energy", "score", "draw"})


@static("unclaimed", "RuntimeError")
class RefusesWithAnotherError:
    provides = frozenset({"energy", "score"})

    def draw(self, n, noise):
        raise RuntimeError("cannot")

    log_prob = decode = None


@static("shapes", "energy: shape")
class EnergyKeepsAnAxis:
    def energy(self, x):
        return quadratic(x)[:, None]


@static("shapes", "energy: torch.float64 for x of torch.float32")
class EnergyIsFloat64:
    def energy(self, x):
        return quadratic(x).double()


@static("shapes", "not a tensor")
class EnergyIsNumpy:
    def energy(self, x):
        return quadratic(x).detach().numpy()


@static("shapes", "decode: shape")
class DecodeLosesTheBatch:
    def decode(self, z):
        return z.sum(0, keepdim=True).repeat(len(z) + 1, 1)


@static("finite", "NaN or infinite at all of 64")
class NeverFinite:
    def score(self, x):
        return x / 0


@static("repeatable", "asked twice")
class Dithers:
    calls = 0

    def score(self, x):
        type(self).calls += 1
        return -x + 1e-6 * type(self).calls


@static("alone", "in the batch and alone")
class CentresTheBatch:
    def score(self, x):
        return -(x - 0.01 * x.mean(0))


@static("alone", "in the batch and alone")
class ClipsByTheBatchNorm:
    def score(self, x):
        return -x / x.norm().clamp(min=1)


@static("permuted", "rows permuted")
class DependsOnPosition:
    def score(self, x):
        return -x + 0.01 * torch.arange(len(x)).to(x)[:, None]


@static("unmutated", "score changed its input x")
class WritesIntoX:
    def score(self, x):
        return x.neg_() if not x.requires_grad else -x


@timed("unmutated", "changed its input t")
class WritesIntoT:
    def predict(self, x, t):
        out = Exact.predict(self, x, t)
        if isinstance(t, torch.Tensor):
            t.mul_(0.5)
        return out


@static("quiet", "score used or set a global random generator")
class DrawsGlobally:
    def score(self, x):
        torch.rand(1)
        return -x


@static("quiet", "energy used or set a global random generator")
class DrawsFromNumpy:
    def energy(self, x):
        np.random.rand()
        return quadratic(x)


@static("quiet", "used or set a global random generator")
class SeedsInDraw:
    def draw(self, n, noise):
        torch.manual_seed(0)
        return Static.draw(self, n, noise)


@static("empty", "RuntimeError")
class NeedsARow:
    def score(self, x):
        return -x + 0 * x.flatten().max()


@static("empty", "for no rows")
class InventsARow:
    def score(self, x):
        return -x if len(x) else x.new_zeros(1, 2)


@static("noncontiguous", "view size is not compatible")
class Views:
    def score(self, x):
        return -x.view(-1).view(x.shape)


@static("noncontiguous", "contiguous")
class ReadsRawMemory:
    def score(self, x):
        return -torch.as_strided(x, x.shape, (2, 1))


@static("noncontiguous", "x strided and contiguous")
class ReadsRawScalars:
    event_shape = ()
    provides = frozenset({"energy"})

    def energy(self, x):
        return torch.as_strided(x, x.shape, (1,)) ** 2


@static("noncontiguous", "one row expanded and alone")
class KnowsExpandedRows:
    def score(self, x):
        return -2 * x if x.stride(0) == 0 and len(x) > 1 else -x


@timed("scalar_time", "as a number and as a vector")
class ScalarTimeShifted:
    def predict(self, x, t):
        return Exact.predict(self, x, t) * (1 if isinstance(t, torch.Tensor) else 1.01)


@timed("scalar_time", "as a 0-d tensor and as a vector")
class ZeroDTimeShifted:
    def predict(self, x, t):
        return Exact.predict(self, x, t) * (
            1.01 if isinstance(t, torch.Tensor) and t.ndim == 0 else 1
        )


@timed("scalar_time", "one t a row")
class FirstTimeForAll:
    def predict(self, x, t):
        return Exact.predict(self, x, t.reshape(-1)[0] if isinstance(t, torch.Tensor) else t)


@timed("ends", "not finite at t = 1.0")
class DividesBySigma:
    def denoise(self, x, t):
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        return Exact.predict(self, x, t) * (1 - t) / (1 - t)


@timed("held_time", "of at(")
class HeldAtAnotherTime:
    def at(self, t):
        return Exact.at(self, 0.9 * t)


@timed("held_time", "still a field in time")
class AtReturnsItself:
    def at(self, t):
        return self


@timed("conversions", "by the path from its data")
class ScoreSign:
    def score(self, x, t):
        return -Exact.score(self, x, t)


@timed("conversions", "by the path from its data")
class AnotherPath:
    def velocity(self, x, t):
        return 1.05 * Exact.velocity(self, x, t)


@static("gradient", "along a unit vector")
class WrongSign:
    def score(self, x):
        return x


@static("gradient", "along a unit vector")
class WrongByOnePercent:
    def score(self, x):
        return -1.01 * x


@static("gradient", "along a unit vector")
class DetachedTerm:
    score = None

    def energy(self, x):
        return quadratic(x) + 0.1 * quadratic(x.detach())


@static("together", "its energy and energy")
class OtherEnergyTogether:
    def energy_and_grad(self, x):
        return 2 * quadratic(x), x


@static("together", "its gradient and -score")
class ScoreTogether:
    def energy_and_grad(self, x):
        return quadratic(x), -x


@static("together", "its gradient gives")
class ScoreTogetherAndNoOther:
    score = None

    def energy_and_grad(self, x):
        return quadratic(x), -x


@static("density", "log_prob + energy")
class DensityOfAnotherWidth:
    def log_prob(self, x):
        return -quadratic(x) / 2


@static("draws", "drawn twice")
class DrawsAnew:
    calls = 0

    def draw(self, n, noise):
        type(self).calls += 1
        return Static.draw(self, n, noise) + 0.001 * type(self).calls


@static("draws", "alone and among the others")
class DrawsByPosition:
    def draw(self, n, noise):
        return Static.draw(self, n, noise) + torch.arange(n).to(noise.dtype)[:, None]


@static("draws", "another seed gives the same")
class IgnoresTheNoise:
    def draw(self, n, noise):
        return noise.chains.to(noise.dtype)[:, None].repeat(1, 2)


@static("draws", "all chains are the same")
class OneSampleForAll:
    def draw(self, n, noise):
        one = stk.Noise(noise.seed, 1, dtype=noise.dtype).normal(0, stk.Stream.START, (2,))
        return one.expand(n, 2)


@static("draws", "draw: shape")
class DrawsOneMore:
    def draw(self, n, noise):
        return Static.draw(self, n, noise)[: n - 1]


@timed("start", "base: event shape (3,), not (2,)")
class BaseOfAnotherShape:
    base = stk.fields.standard_normal((3,))


@dataclass
class _NanBase:
    event_shape: tuple = (2,)

    def draw(self, n, noise):
        return torch.full((n, 2), torch.nan)


@timed("start", "base.draw: a sample is NaN")
class BaseIsNan:
    base = _NanBase()


@pytest.mark.parametrize(("law", "model", "about"), WRONG)
def test_the_wrong_model_is_caught_by_its_law(law, model, about):
    with pytest.raises(Violation) as caught:
        BY_NAME[law](model)
    assert about in str(caught.value)
    assert "Case(rows=" in str(caught.value)


@pytest.mark.thorough
def test_the_plain_models_that_were_made_wrong_are_right():
    assert broken_laws(Static()) == {}
    assert broken_laws(Exact()) == {}


def test_every_law_has_a_wrong_model():
    assert {param.values[0] for param in WRONG} == set(BY_NAME)


# --- each method in turn, each way wrong -------------------------------------------------------------------------


def _drawn(draw):
    def spoil(answer, x, *t):
        draw()
        return answer

    return spoil


def _changed(which):
    def spoil(answer, x, *t):
        (x, *t)[which].mul_(0.5)
        return answer

    return spoil


def _where(wrong):
    """An answer that is off where the points, or the times, are of this kind."""
    return lambda answer, x, *t: answer * 1.01 + 0.01 if wrong(x, *t) else answer


def _at(end):
    return lambda answer, x, t: answer / 0 if not torch.is_tensor(t) and t == end else answer


class _Counted:
    calls = 0

    def __call__(self, answer, x, *t):
        self.calls += 1
        return answer + 1e-6 * self.calls


SPOILS = {
    "shapes": {
        "each row twice": lambda answer, x, *t: answer.repeat_interleave(2, 0),
        "in float64": lambda answer, x, *t: answer.double() if x.dtype == torch.float32 else answer,
        "on another device": lambda answer, x, *t: answer.to("meta"),
        "an array": lambda answer, x, *t: answer.detach().numpy(),
    },
    "finite": {"nowhere": lambda answer, x, *t: answer / 0 * 0},
    "repeatable": {"by the call": _Counted()},
    "alone": {"the batch's mean": lambda answer, x, *t: answer + 0.01 * x.mean()},
    "permuted": {
        "by position": lambda answer, x, *t: (answer.movedim(0, -1) + torch.arange(len(x))).movedim(
            -1, 0
        )
    },
    "unmutated": {"x": _changed(0), "t": _changed(1)},
    "quiet": {
        "torch's": _drawn(lambda: torch.rand(1)),
        "NumPy's": _drawn(np.random.rand),
        "Python's": _drawn(random.random),
    },
    "empty": {
        "a row": lambda answer, x, *t: answer if len(x) else answer.new_zeros(1, *answer.shape[1:])
    },
    "noncontiguous": {
        "strided": _where(lambda x, *t: x.stride(-1) == 2),
        "turned": _where(lambda x, *t: len(x) > 1 and x.stride() == (1, len(x))),
        "expanded": _where(lambda x, *t: len(x) > 1 and x.stride(0) == 0),
    },
    "scalar_time": {
        "a number": _where(lambda x, t: not torch.is_tensor(t)),
        "a 0-d tensor": _where(lambda x, t: torch.is_tensor(t) and t.ndim == 0),
        "the first time": lambda answer, x, t: (
            answer + t[:1, None].to(x) if torch.is_tensor(t) and t.ndim else answer
        ),
    },
    "ends": {"noise": _at(0.0), "data": _at(1.0)},
    "conversions": {"by a twentieth": lambda answer, x, *t: 1.05 * answer},
}
"""Ways to be wrong in a method's answer, by the law that sees them and a name."""
STATIC, IN_TIME = ("energy", "score", "log_prob", "decode"), ("velocity", "score", "denoise")
OF_TIME = ("scalar_time", "ends", "conversions")


def spoilt(cls, name, spoil):
    """A plain model of which one method's answers are spoilt."""

    def method(self, x, *t):
        with torch.no_grad():
            before = x.clone(), *(s.clone() if torch.is_tensor(s) else s for s in t)
            return spoil(getattr(cls, name)(self, *before), x, *t)

    return type("Spoilt", (cls,), {name: method})()


def _spoilt_models():
    """All but a static one that changes t, and what is singular at the data."""
    for law, ways in SPOILS.items():
        for cls, names in ((Static, STATIC), (Exact, IN_TIME)):
            for name in names if cls is Exact or law not in OF_TIME else ():
                for way, spoil in ways.items():
                    if (cls, way) != (Static, "t") and (way != "data" or name == "denoise"):
                        yield law, name, way, spoilt(cls, name, spoil)


def _violation(law, model):
    with pytest.raises(Violation) as caught:
        BY_NAME[law](model)
    return caught


@cache
def _found(law):
    """What a law says of each method that is spoilt in a way that it is to see: `(name, way, violation)`."""
    return [(n, w, _violation(law, m).value) for of, n, w, m in _spoilt_models() if of == law]


@pytest.mark.usefixtures("fewer_cases")
@pytest.mark.parametrize("law", SPOILS)
def test_a_law_sees_what_is_wrong_in_each_method(law):
    for name, way, found in _found(law):
        assert name in str(found) or law == "conversions", (name, way, found)


def _tripped(error, told):
    """The lines of a file that were on the way to an error."""
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename == told:
                yield line
        error = error.__cause__


def demands(file):
    """The lines of each demand of a file of laws."""
    tree = ast.parse(Path(file).read_text())
    return [
        range(n.lineno, n.end_lineno + 1)
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("demand", "close")
    ]


class NotThere(Static):
    """It claims what it does not offer."""


class StillOfAnotherShape(Exact):
    def at(self, t):
        return stk.Score(lambda x: -x, (3,))


class BaseDrawsOneMore(Exact):
    class base:
        event_shape = (2,)

        def draw(n, noise):
            return torch.zeros(n + 1, 2)


class DrawsNaN(Static):
    def draw(self, n, noise):
        return torch.full((n, 2), torch.nan)


@pytest.mark.usefixtures("fewer_cases")
def test_every_demand_of_every_law_is_made_of_a_wrong_model():
    wrong = [param.values[:2] for param in WRONG]
    wrong += [("held_time", StillOfAnotherShape()), ("start", BaseDrawsOneMore())]
    wrong += [("draws", DrawsNaN())]
    with pytest.raises(Violation) as claimed:
        BY_NAME["claimed"].hold(NotThere(), frozenset({"velocity"}))
    told = [claimed.value, *(_violation(law, model).value for law, model in wrong)]
    told += [violation for law in SPOILS for _, _, violation in _found(law)]
    lines = {line for violation in told for line in _tripped(violation, laws.__file__)}
    unmet = [d.start for d in demands(laws.__file__) if not lines & {*d}]
    assert not unmet


class Labelled:
    """Its condition says where its mean is."""

    event_shape = (2,)

    def energy(self, x, label):
        return quadratic(x - label[:, None])

    def score(self, x, label):
        return label[:, None] - x


WAYS = {
    "check_model": lambda model, cond: [r.status for r in kit.check_model(model, cond=cond)][1:],
    "a check that is called": lambda model, cond: [_status(c, model, cond) for c in CHECKS],
    "result": lambda model, cond: [
        c.result(model, frozenset({"energy", "score"}), cond).status for c in CHECKS
    ],
    "parametrize": lambda model, cond: [
        _status(p.values[1], p.values[0])
        for p in parametrize_with_checks([model], cond).mark.args[1]
    ],
}


def _status(check, *given):
    try:
        check(*given)
    except NotApplicable:
        return "skipped"
    except Violation:
        return "failed"
    return "passed"


@pytest.mark.usefixtures("fewer_cases")
@pytest.mark.parametrize("way", WAYS)
def test_conditions_reach_the_laws_whichever_way_they_are_asked(way):
    statuses = WAYS[way](Labelled(), {"label": torch.arange(5.0)})
    assert len(statuses) == len(CHECKS)
    assert "failed" not in statuses
    assert "passed" in statuses


class Held(nn.Module):
    """Widths of a Gaussian that are held in some way, beside an entry that is a whole number."""

    def __init__(self, kind):
        super().__init__()
        width = torch.tensor([1.3, 0.7])
        if kind == "parameter":
            self.width = nn.Parameter(width)
        elif kind == "buffer":
            self.register_buffer("width", width)
        else:
            self.register_parameter("none", None)
            self.inner = Held(kind.removeprefix("inner "))
        self.register_buffer("number", torch.ones((), dtype=torch.int64))
        self.register_buffer("place", torch.zeros(2))

    def forward(self, x):
        width = self.width if hasattr(self, "width") else self.inner.width
        return ((x - self.place) @ torch.diag(width * self.number)).square().sum(1) / 2


@pytest.mark.usefixtures("fewer_cases")
@pytest.mark.parametrize("kind", ["parameter", "buffer", "inner parameter", "inner buffer"])
def test_half_a_percent_of_a_slope_is_seen_wherever_the_weights_are_held(kind):
    net = Held(kind)
    held = {name: (t, t.data_ptr(), t.dtype) for name, t in net.state_dict(keep_vars=True).items()}

    class Off:
        event_shape = (2,)
        model = net

        def energy(self, x):
            return net(x)

        def score(self, x):
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                return -1.005 * torch.autograd.grad(net(y).sum(), y)[0]

    assert "along a unit vector" in str(_violation("gradient", Off()).value)
    left = net.state_dict(keep_vars=True)
    for name, (tensor, place, dtype) in held.items():
        assert left[name] is tensor
        assert (tensor.data_ptr(), tensor.dtype) == (place, dtype)


@pytest.mark.thorough
def test_the_gradient_law_resolves_a_network_in_float32():
    """Its finite differences run in float64, so that half a percent shows, and its weights come back as they were."""
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]

    class Half:
        event_shape = (2,)

        def energy(self, x):
            return net(x, torch.zeros(len(x), dtype=x.dtype)).sum(1)

        def score(self, x):
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                return -1.005 * torch.autograd.grad(self.energy(y).sum(), y)[0]

        net = property(lambda self: net)

    model = Half()
    model.held = net
    assert "along a unit vector" in failures(model)["gradient"]
    assert all(
        torch.equal(p, q) and p.dtype == torch.float32
        for p, q in zip(net.parameters(), before, strict=True)
    )
    assert all(p.requires_grad for p in net.parameters())


def test_an_energy_that_computes_in_float32_whatever_it_is_given_is_not_blamed():
    assert broken_laws(stk.Energy(lambda x: quadratic(x.float()), (2,))) == {}


@pytest.mark.thorough
def test_conditions_go_with_their_rows():
    field = stk.Energy(lambda x, label: quadratic(x - label[:, None]), (2,))
    label = torch.arange(5.0)
    assert broken_laws(field, cond={"label": label}) == {}
    first = stk.Energy(lambda x, label: quadratic(x - label[:1, None]), (2,))
    assert "alone" in failures(first, cond={"label": label})
    assert "label" in failures(field)["shapes"]


@pytest.mark.thorough
def test_the_model_is_left_as_found():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    net.train()
    mean = net[1].running_mean.clone()
    assert failures(stk.Energy(lambda x: net(x).squeeze(-1), (2,))) == {}
    assert net.training
    assert torch.equal(net[1].running_mean, mean)


@pytest.mark.thorough
def test_results_are_records_in_the_order_of_the_checks():
    results = check_model(GOOD["score"])
    assert [result.check for result in results] == ["loads", *BY_NAME]
    assert results[0] == CheckResult("loads", "passed", "the model can be loaded")
    assert {result.status for result in results} == {"passed", "skipped"}
    by_name = {result.check: result for result in results}
    assert by_name["gradient"].status == "skipped"
    assert by_name["alone"].law == "Row i of a batch equals its single evaluation"
    assert all(check.law and "\n" not in check.law for check in CHECKS)


SPEC = {
    "name": "m",
    "family": "test",
    "factory": f"{__name__}:Static",
    "provides": {"energy", "score", "log_prob", "draw", "decode"},
    "event_shape": (2,),
    "summary": "a model",
}


@pytest.mark.thorough
def test_a_spec_is_built_and_checked_by_its_claims():
    assert failures(ModelSpec(**SPEC)) == {}
    (result,) = check_model(ModelSpec(**{**SPEC, "provides": {"velocity"}}))
    assert (result.check, result.status) == ("loads", "failed")
    assert "the spec claims velocity" in result.detail
    (result,) = check_model(ModelSpec(**{**SPEC, "factory": "a_missing_module:build"}))
    assert result.detail == "ModuleNotFoundError: No module named 'a_missing_module'"


def test_what_is_no_model_is_the_callers_fault():
    for wrong in (3, None, quadratic, Static):
        with pytest.raises(
            stk.InvalidArgument, match=r"^model: expected a registered model's name, a ModelSpec"
        ):
            check_model(wrong)
    with pytest.raises(stk.UnknownName):
        check_model("no-such-model")


def test_a_law_that_says_nothing_is_a_skipped_test():
    with pytest.raises(NotApplicable):
        BY_NAME["scalar_time"](GOOD["energy"])


def test_parametrised_names_are_readable():
    mark = parametrize_with_checks([ModelSpec(**SPEC), "digits-flow"]).mark
    ids = [param.id for param in mark.args[1]]
    assert ids[0] == "m-claimed"
    assert ids[-1] == f"digits-flow-{CHECKS[-1].name}"
    assert len(ids) == 2 * len(CHECKS)


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hypothesis", None)
    with pytest.raises(stk.MissingDependency, match=r"pip install 'scoretk\[check\]'"):
        check_model(GOOD["energy"])


@pytest.mark.thorough
def test_a_failure_is_shrunk_to_its_simplest_case():
    assert "[Case(rows=2, seed=0, scale=1.0, t=0.5)" in failures(CentresTheBatchPlain())["alone"]


class CentresTheBatchPlain(CentresTheBatch, Static):
    pass


def test_a_check_is_a_value():
    assert Check(BY_NAME["alone"].run) == BY_NAME["alone"]


def test_laws_are_held_in_cases_of_all_kinds():
    """One row and more, and of seeds, scales and times each several."""
    seen = []
    check = Check(lambda subject, case: seen.append(case))
    check(GOOD["score"])
    for field in dataclasses.fields(Case):
        assert len({getattr(case, field.name) for case in seen}) >= 3, field.name
    assert {case.rows for case in seen} >= {1, 2, 6}
    assert {case.scale < 1 for case in seen} == {case.t < 0.5 for case in seen} == {True, False}


def test_a_field_that_takes_no_float64_is_as_it_was_meanwhile():
    """All of its tensors, be they many; and so they are after, whatever is raised within."""
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()

    class Single:
        event_shape = (2,)
        model = net

        def energy(self, x):
            if x.dtype != torch.float32:
                raise TypeError("float32 alone")
            return net(x)[:, 0]

    (subject,) = Subject.all_of(Single(), frozenset({"energy"}), {})
    before = {name: t.clone() for name, t in net.state_dict().items()}

    def asked():
        with in_float64(subject, Case()) as (at, tolerance):
            assert at is subject
            assert tolerance == COARSE
            assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
            assert {t.dtype for t in net.state_dict().values()} == {torch.float32, torch.int64}
            raise KeyError

    with pytest.raises(KeyError):
        asked()
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name])
        assert t.dtype == before[name].dtype
