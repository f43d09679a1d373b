"""No result depends on where in memory its inputs lie: fields are asked aligned tensors, and views give the bits of copies.

The probe is a field that looks at the addresses it is asked with; the bits are those of a product of a matrix and a vector, whose
order of summation follows the address on most processors.
"""

import sys
from dataclasses import dataclass, field

import pytest
import torch

import scoretk as stk
from scoretk.core import arrays
from scoretk.core.arrays import aligned, fresh, is_aligned
from scoretk.learn import Recipe, fit
from scoretk.learn.resume import packed, unpacked
from scoretk.solvers import is_grid
from tests.test_failures import EVERY

PATH = stk.VP()
WEIGHTS = torch.linspace(-1, 1, 7).sin()


def view(x, offset=1):
    """The same numbers, misaligned."""
    memory = x.new_empty(x.numel() + offset)[offset:].view(x.shape)
    return memory.copy_(x)


def strided(x):
    """The same numbers, with gaps."""
    return torch.stack([x, x], -1)[..., 0]


def transposed(x):
    """The same numbers, the first axis running fastest."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


LAYOUTS = {"misaligned": view, "strided": strided, "transposed": transposed}


@dataclass
class Probe:
    """A static field, in the free plane or on some points, or one in time; it notes whether all it is asked is aligned."""

    event_shape: tuple[int, ...] = (7,)
    seen: list[bool] = field(default_factory=list)

    def note(self, *tensors):
        self.seen += [is_aligned(t) for t in tensors if isinstance(t, torch.Tensor) and t.ndim]


class Static(Probe):
    provides = frozenset({"energy"})

    def energy(self, x, c=None):
        self.note(x, c)
        return (x @ WEIGHTS.to(x)).square() / 8 + x.square().sum(1) / 2


class States(Static):
    provides = frozenset({"energy", "states", "gibbs", "couplings"})
    states = (-2.0, -1.0, 1.0, 2.0)
    couplings = stk.Couplings(
        torch.arange(6), torch.arange(1, 7), torch.full((6,), 0.3), torch.zeros(7, 4)
    )
    gibbs_shape = (7,)

    def gibbs(self, x, u, c=None):
        self.note(x, u, c)
        return torch.where(u < (x @ WEIGHTS.to(x)).sigmoid()[:, None], x, -x)


class Timed(Probe):
    provides = frozenset({"velocity", "score", "denoise"})
    path, predicts = PATH, "data"
    base = stk.Diffusion(lambda x, t: x, (7,), PATH, "data").base

    def at(self, t):
        raise NotImplementedError

    def predict(self, x, t, c=None):
        self.note(x, t, c)
        return 0.5 * x + (x @ WEIGHTS.to(x))[:, None] * WEIGHTS.to(x) / 8


GRIDS = {
    "flow": stk.ProbabilityFlow(steps=5),
    "dopri5": stk.ProbabilityFlow("dopri5"),
    "heun": stk.ProbabilityFlow("heun", steps=4),
    "reverse": stk.ReverseSDE(steps=4),
}
SOLVERS = EVERY | GRIDS


def drawn(name, lay):
    """Draws by a solver from starts and with conditions in this layout, and what the field noted."""
    solver = SOLVERS[name]
    model = (
        Timed()
        if name in GRIDS
        else States()
        if "states" in solver.needs or "gibbs" in solver.needs
        else Static()
    )
    start = stk.Noise(3, 16).normal(0, 0, (7,))
    start = (
        torch.tensor(States.states)[(start.abs() * 2).long().clamp(max=3)]
        if isinstance(model, States)
        else start
    )
    options = {} if is_grid(solver) else {"steps": 3}
    draws = stk.sample(
        model,
        solver,
        init=lay(start),
        cond={"c": lay(start.square())},
        batch=8,
        seed=2,
        keep="all",
        **options,
    )
    return draws, model.seen


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_asks_of_aligned_memory_and_gives_the_bits_of_a_copy(name):
    wanted, _ = drawn(name, torch.clone)
    for lay in (view, transposed):
        draws, seen = drawn(name, lay)
        assert seen
        assert all(seen)
        assert torch.equal(draws.x, wanted.x)


@pytest.mark.parametrize(
    "ask",
    [
        lambda field, x: stk.log_prob(field, x, method="heun", steps=3).value,
        lambda field, x: (
            stk.log_prob(field, x, method="heun", steps=3, trace="hutch++", probes=6).value
        ),
        lambda field, x: stk.encode(field, x, method="heun", steps=3).x,
    ],
    ids=["log_prob", "hutch++", "encode"],
)
def test_log_prob_and_encode(ask):
    x, wanted = stk.Noise(1, 11).normal(0, 0, (7,)), None
    for lay in (torch.clone, *LAYOUTS.values()):
        model = Timed()
        value = ask(model, lay(x))
        stk.encode(model, lay(x), batch=3, cond={"c": lay(x)}, method="euler", steps=2)
        assert all(model.seen)
        wanted = value if wanted is None else wanted
        assert torch.equal(value, wanted)


def test_what_has_its_own_log_prob_and_contrastive_divergence():
    class Own(Static):
        provides = frozenset({"energy", "log_prob"})

        def log_prob(self, x, c=None):
            self.note(x, c)
            return -self.energy(x)

    x = stk.Noise(1, 11).normal(0, 0, (7,))
    for lay in LAYOUTS.values():
        model = Own()
        assert torch.equal(stk.log_prob(model, lay(x)).value, stk.log_prob(Own(), x).value)
        stk.log_prob(model, lay(x), batch=3, cond={"c": lay(x)})
        for start in ("data", "noise", stk.ReplayBuffer(16)):
            cd = stk.ContrastiveDivergence(stk.ULA(0.1), steps=2, start=start)
            for _ in range(2):
                cd(model, lay(x))
        assert all(model.seen)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("lay", LAYOUTS)
def test_a_fit_sees_aligned_rows_and_learns_the_same(lay, parts):
    data, seen, found = stk.Noise(5, 23).normal(0, 0, (7,)), [], []
    for given in (data, LAYOUTS[lay](data)):
        net = torch.nn.utils.skip_init(torch.nn.Linear, 7, 1)
        net.load_state_dict({"weight": WEIGHTS[None], "bias": torch.zeros(1)})

        def loss(x, _, net=net):
            seen.append(is_aligned(x))
            return (net(x)[:, 0] - x.sum(1)).square()

        recipe = Recipe(steps=6, batch=7, evaluations=2, parts=parts)
        found.append(fit(net, loss, given, recipe).weights["weight"])
    assert all(seen)
    assert torch.equal(*found)


def test_observations_and_operators_are_aligned():
    matrix, y = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    prior, found = stk.Diffusion(lambda x, t: 0.5 * x, (7,), PATH, "data"), []
    for lay in (torch.clone, *LAYOUTS.values()):
        posterior = stk.posterior(prior, stk.LinearGaussian(lay(matrix), lay(y), 0.5))
        found.append(stk.sample(posterior, stk.ProbabilityFlow(steps=4), chains=5).final)
    assert all(torch.equal(found[0], other) for other in found[1:])


class TestWhatIsRead:
    def test_every_tensor_of_a_file_is_fresh(self, tmp_path):
        draws = stk.sample(Static(), stk.HMC(), chains=3, steps=5, warmup=20)
        again = stk.Draws.load(draws.save(tmp_path / "d.safetensors"))
        tensors = [
            again.x,
            again.final,
            again.status,
            again.failed_at,
            *again.stats.values(),
            *again.tuned.values(),
        ]
        assert all(map(is_aligned, tensors))

    def test_what_processes_send_each_other_is_fresh(self):
        values = unpacked(packed([torch.ones(n) for n in range(1, 9)]))
        assert all(map(is_aligned, values))

    def test_a_run_goes_on_from_aligned_memory_with_the_same_bits(self, tmp_path):
        class Stop(Exception):
            pass

        class Stopping(Static):
            def energy(self, x, c=None):
                if len(self.seen) > 40 and armed:
                    armed.clear()  # what a run itself has changed does not tell it from another
                    raise Stop
                return super().energy(x, c)

        run, armed = {"chains": 5, "steps": 60, "seed": 4}, [True]
        straight = stk.sample(Static(), stk.MALA(0.1), **run)
        stopping = Stopping()
        with pytest.raises(Stop):
            stk.sample(stopping, stk.MALA(0.1), checkpoint=tmp_path / "c", **run)
        stopping.seen.clear()
        resumed = stk.sample(stopping, stk.MALA(0.1), checkpoint=tmp_path / "c", **run)
        assert all(stopping.seen)
        assert torch.equal(resumed.x, straight.x)


class TestMutants:
    """Without the copy the probe sees it, and on a processor where sums follow addresses the bits differ."""

    @pytest.fixture(autouse=True)
    def _no_copy(self, monkeypatch):
        for name in (
            "scoretk.core.arguments",
            "scoretk.inference.planned",
            "scoretk.fields.resolve",
        ):
            monkeypatch.setattr(sys.modules[name], "aligned", lambda x: x)
        monkeypatch.setattr(sys.modules["scoretk.fields.resolve"], "aligned_values", dict)

    def test_the_probe_sees_misaligned_starts_and_conditions(self):
        for lay in LAYOUTS.values():
            _, seen = drawn("ula", lay)
            assert not all(seen)

    def test_the_bits_differ_where_sums_follow_addresses(self):
        x = stk.Noise(1, 11).normal(0, 0, (7,))
        sums = {tuple((view(x, k) @ WEIGHTS).tolist()) for k in range(16)}
        found = {tuple(Static().energy(view(x, k)).tolist()) for k in range(16)}
        assert (len(found) > 1) == (len(sums) > 1)


class TestAligned:
    def test_aligned_is_itself_and_all_else_is_copied(self):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        assert aligned(x) is x
        row = torch.empty_strided((6, 1), (1, 9)).fill_(2.0)
        for other in (view(x), x.T, x[1:], x[:, ::2], x.expand(2, 6, 4), row):
            made = aligned(other)
            assert is_aligned(made)
            assert torch.equal(made, other)
            assert made.stride() == torch.empty(other.shape).stride()
            assert is_aligned(fresh(other))
            assert fresh(other).data_ptr() != other.data_ptr()

    def test_gradients_pass_and_transformations_are_let_through(self):
        x = view(torch.ones(3, 2)).requires_grad_()
        aligned(x).square().sum().backward()
        assert torch.equal(x.grad, torch.full((3, 2), 2.0))
        assert torch.equal(
            torch.vmap(lambda v: aligned(v) * 2)(torch.ones(3, 2)), torch.full((3, 2), 2.0)
        )
        assert torch.equal(
            torch.func.grad(lambda v: aligned(v).square().sum())(torch.ones(2)),
            torch.full((2,), 2.0),
        )

    def test_the_alignment_is_what_torch_gives(self):
        assert all(torch.empty(n).data_ptr() % arrays.ALIGNMENT == 0 for n in range(1, 200))
