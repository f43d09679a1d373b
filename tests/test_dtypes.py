"""One rule for dtypes: the state has that of the network's parameters, and what the user gives is cast to it."""

import pytest
import torch
from torch import nn

import scoretk as stk
from scoretk.solvers import EXAMPLES
from scoretk.solvers.base import is_grid

ROWS = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(8, 2)
KERNEL = stk.HMC(step_size=0.1, leapfrogs=2, metric="none")


def linear(inputs, outputs, dtype):
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    net = nn.Linear(inputs, outputs).to(dtype)
    torch.random.set_rng_state(state)
    return net


def energy(dtype):
    net = linear(4, 1, dtype)
    return stk.Energy(lambda x, c: net(torch.cat([x, c], 1))[:, 0] + x.square().sum(1), (2,))


def flow(dtype):
    net = linear(4, 2, dtype)
    return stk.Velocity(lambda x, t, c: net(torch.cat([x, c], 1)), (2,))


def plain(dtype):
    net = linear(2, 1, dtype)
    return stk.Energy(lambda x: net(x)[:, 0] + x.square().sum(1), (2,))


CALLS = {
    "sample": lambda d, x: stk.sample(energy(d), KERNEL, init=x, cond={"c": x}, steps=2).x,
    "sample a flow": lambda d, x: stk.sample(flow(d), init=x, cond={"c": x}).final,
    "log_prob": lambda d, x: stk.log_prob(flow(d), x, cond={"c": x}).value,
    "encode": lambda d, x: stk.encode(flow(d), x, cond={"c": x}).x,
    "bits_per_dim": lambda d, x: stk.bits_per_dim(flow(d), x.abs().ceil(), cond={"c": x}).value,
    "contrastive divergence": lambda d, x: stk.ContrastiveDivergence(stk.ULA(0.1))(plain(d), x)[0],
    "posterior": lambda d, x: (
        stk.sample(
            stk.posterior(plain(d), stk.LinearGaussian(torch.eye(2).to(x), x[0], 0.5)),
            KERNEL,
            chains=8,
            steps=2,
        ).x
    ),
}
KINDS = [torch.float32, torch.float64]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", KINDS)
def test_what_is_given_is_cast_to_the_networks_dtype(call, given, dtype):
    if call == "posterior" and given == torch.float16:
        with pytest.raises(stk.InvalidArgument, match=r"expected torch\.float32 or"):
            CALLS[call](dtype, ROWS.to(given))
        return
    assert CALLS[call](dtype, ROWS.to(given)).dtype == dtype


def test_without_a_network_init_decides():
    field = stk.Energy(lambda x: x.square().sum(1), (2,))
    for dtype in KINDS:
        assert stk.sample(field, KERNEL, init=ROWS.to(dtype), steps=2).x.dtype == dtype


@pytest.mark.parametrize("asked", KINDS)
def test_a_dtype_that_the_network_does_not_take_is_refused_in_ones_words(asked):
    other = KINDS[1 - KINDS.index(asked)]
    for call in (
        lambda: stk.sample(plain(other), KERNEL, chains=2, dtype=asked, steps=2),
        lambda: plain(other).energy(ROWS.to(asked)),
    ):
        with pytest.raises(stk.InvalidArgument, match=r"dtype: expected that of all.*leave it out"):
            call()


def test_where_the_network_is_not_asked_data_of_another_dtype_fail(monkeypatch):
    """The mutant."""
    for module in ("inference.likelihood", "inference.encoding", "learn.contrastive"):
        monkeypatch.setattr(f"scoretk.{module}.as_networks_take", lambda field, *given: given)
    for call in ("log_prob", "encode", "contrastive divergence"):
        with pytest.raises(stk.InvalidArgument, match="dtype"):
            CALLS[call](torch.float32, ROWS)


def test_a_measurement_that_numpy_has_written_into_is_seen():
    """No copy in another dtype outlives what it was made of."""
    y = torch.zeros(2, dtype=torch.float64)
    known = stk.posterior(
        stk.Energy(lambda x: x.square().sum(1) / 2, (2,)), stk.LinearGaussian(torch.eye(2), y, 0.1)
    )
    x = torch.ones(1, 2)
    before = known.energy(x)
    y.numpy()[:] = 5.0
    assert known.energy(x) > before + 100


def network(inputs, outputs, hidden=64):
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
    torch.random.set_rng_state(state)
    return net


HALVED = {
    "energy": lambda **o: stk.Energy(lambda x: well(x)[:, 0] + x.square().sum(1) / 2, (2,), **o),
    "score": lambda **o: stk.Score(lambda x: drift(x) - x, (2,), **o),
    "diffusion": lambda **o: stk.Diffusion(lambda x, t: drift(x), (2,), **o),
    "velocity": lambda **o: stk.Velocity(lambda x, t: drift(x), (2,), **o),
    "timesteps": lambda **o: stk.from_timesteps(
        lambda x, k: drift(x), torch.linspace(0.99, 0.01, 20), (2,), **o
    ),
    "sigmas": lambda **o: stk.from_sigmas(
        lambda x, s: drift(x / (1 + s[:, None] ** 2).sqrt()), (2,), **o
    ),
    "reversed": lambda **o: stk.from_reversed_time(lambda x, s: drift(x), (2,), **o),
}
SOLVERS = {"energy": KERNEL, "score": stk.ULA(0.05)}
LEFT = {"energy": 0.5, "sigmas": 0.25}
"""What bfloat16, 1/256 a product, may leave: a decision of HMC's turned; an error of D for each of EDM's ten e-folds of sigma."""
well, drift = network(2, 1), network(2, 2)


@pytest.mark.parametrize("kind", HALVED)
def test_autocast_computes_products_in_halves_and_keeps_the_state(kind):
    """Draws differ from those in float32, by what bfloat16 leaves of them, and are float32."""
    solver = SOLVERS.get(kind, stk.ProbabilityFlow("heun", steps=8))
    run = {"chains": 32, "seed": 1} | ({"steps": 5} if kind in SOLVERS else {})
    whole, half = (stk.sample(HALVED[kind](**o), solver, **run) for o in ({}, BFLOAT))
    assert half.final.dtype == torch.float32
    assert half.ok.all()
    assert not torch.equal(half.final, whole.final)
    apart = (half.final - whole.final).abs().max() / whole.final.abs().max()
    assert apart < LEFT.get(kind, 0.05)
    parts = stk.sample(HALVED[kind](**BFLOAT), solver, batch=8, **run)
    assert torch.allclose(parts.final, half.final, rtol=0.02, atol=0.02) or kind == "energy"


BFLOAT = {"autocast": torch.bfloat16}


@pytest.mark.parametrize("odd", [torch.float32, "bfloat16", True, torch.zeros(2)])
def test_autocast_is_to_halves(odd):
    for make in HALVED.values():
        with pytest.raises(stk.InvalidArgument, match="autocast"):
            make(autocast=odd)


def test_autocast_belongs_to_the_run_and_reaches_the_networks_within(tmp_path):
    seen = []

    def fn(x):
        seen.append((torch.is_autocast_enabled("cpu"), well.training))
        return well(x)[:, 0]

    field = stk.Energy(fn, (2,), torch.bfloat16)
    well.train()
    stk.sample(field, KERNEL, chains=4, steps=2, checkpoint=tmp_path / "c")
    assert set(seen) == {(True, False)}
    with pytest.raises(stk.CheckpointError):
        stk.sample(stk.Energy(fn, (2,)), KERNEL, chains=4, steps=2, checkpoint=tmp_path / "c")


class Precise:
    """A field of its own that computes in float64, whatever x has."""

    event_shape, provides = (2,), frozenset({"energy", "score"})

    def energy(self, x):
        return x.double().square().sum(1) / 2

    def score(self, x):
        return -x.double()


class PreciseFlow:
    event_shape, provides = (2,), frozenset({"velocity"})

    def velocity(self, x, t):
        return -x.double()

    def at(self, t):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("field", "solver", "run"),
    [
        (Precise(), stk.ULA(0.1), {"steps": 4}),
        (Precise(), stk.MALA(0.1), {"steps": 4}),
        (PreciseFlow(), stk.ProbabilityFlow("heun", steps=4), {}),
        (PreciseFlow(), stk.ProbabilityFlow("dopri5"), {}),
    ],
)
def test_a_field_that_computes_in_float64_leaves_the_states_dtype(field, solver, run):
    draws = stk.sample(field, solver, init=torch.ones(8, 2), **run)
    assert draws.final.dtype == torch.float32
    assert draws.ok.all()


STATIC = [name for name, solver in EXAMPLES.items() if not solver.timed]


@pytest.mark.parametrize("name", [n for n in STATIC if "states" not in EXAMPLES[n].needs])
def test_energies_of_a_wider_dtype_leave_positions_theirs_under_every_solver(name):
    solver = EXAMPLES[name]
    run = {} if is_grid(solver) else {"steps": 3}
    draws = stk.sample(Precise(), solver, chains=8, dtype=torch.float32, **run)
    assert draws.final.dtype == torch.float32
    assert draws.ok.all()


def test_replicas_move_from_a_base_of_a_wider_dtype():
    """As those of `log_partition`'s own search are."""
    base = torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1.0)
    inner = EXAMPLES["parallel-tempering"]
    base = stk.from_distribution(torch.distributions.Independent(base, 1))
    solver = stk.AIS(base=base, levels=4, kernel=inner)
    field = stk.Energy(lambda x: x.square().sum(1) / 2, (2,))
    draws = stk.sample(field, solver, chains=8, dtype=torch.float32)
    assert draws.final.dtype == torch.float32
    assert draws.stats["log_weight"].std() < 1e-5


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_network_of_half_precision_is_told_of_autocast(half):
    net = network(2, 2).to(half)
    for field, solver, steps in (
        (stk.Score(net, (2,)), stk.ULA(0.1), {"steps": 2}),
        (stk.Diffusion(lambda x, t: net(x), (2,)), stk.ProbabilityFlow(steps=2), {}),
    ):
        with pytest.raises(stk.InvalidArgument, match=rf"autocast={half}.*x\.to\({half}\)") as no:
            stk.sample(field, solver, chains=2, **steps)
        assert "leave it out" not in str(no.value)
    field = stk.Score(net, (2,), autocast=half)
    assert stk.sample(field, stk.ULA(0.1), chains=2, steps=2).x.dtype == torch.float32
