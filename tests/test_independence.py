"""A field answers row by row: what does not is refused when a run starts, and rounding is no dependence."""

import pytest
import torch
from torch import nn

import scoretk as stk
from scoretk.run import batches, independence

SHORT = {"steps": 2}
HALF = stk.ULA(step_size=1e-3)


def square(x):
    return x.square().sum(1) / 2


def net(inputs, outputs=1, norm=False):
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    between = [nn.BatchNorm1d(16, track_running_stats=False)] if norm else []
    made = nn.Sequential(nn.Linear(inputs, 16), *between, nn.SiLU(), nn.Linear(16, outputs))
    torch.random.set_rng_state(torch_state)
    return made


NORMED = net(3, norm=True)
COUPLED = {
    "another axis": lambda x: x.square().sum(0) / 2,
    "minus the mean": lambda x: square(x) - square(x).mean(),
    "minus the largest": lambda x: square(x) - square(x).max(),
    "minus the median": lambda x: square(x) - square(x).median(),
    "softmax over the batch": lambda x: torch.log_softmax(square(x), 0),
    "divided by the batch": lambda x: square(x) / len(x),
    "a standardised batch": lambda x: square((x - x.mean(0)) / x.std(0)),
    "batch normalisation": lambda x: NORMED(x[:, :3])[:, 0] if len(x) > 1 else square(x),
    "a running sum": lambda x: square(x).cumsum(0),
    "the row before": lambda x: square(x - x.roll(1, 0)),
    "one number for all": lambda x: x.square().sum().expand(len(x)),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("chains", [4, 5, 64])
def test_rows_that_depend_on_others_are_refused(name, chains):
    """As many chains as coordinates where that is needed for the shape, and more chains where not."""
    field = stk.Energy(COUPLED[name], (chains,))
    with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
        stk.sample(field, HALF, chains=chains, **SHORT)


@pytest.mark.parametrize("chains", [2, 3])
def test_two_and_three_chains_are_told_apart_too(chains):
    field = stk.Energy(lambda x: x.square().sum(0) / 2, (chains,))
    for seed in range(5):
        with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
            stk.sample(field, HALF, chains=chains, seed=seed, **SHORT)


def schools(theta, mu, tau):
    """`tau` of shape `(batch,)` meets `theta` of `(batch, n)`: where both are n, along the wrong axis."""
    return ((theta - mu[:, None]) / tau).square().sum(1) / 2 + mu.square() + tau


def right(theta, mu, tau):
    return schools(theta, mu, tau[:, None]).diagonal()


POSITIVE = torch.distributions.constraints.positive
VARIABLES = {"mu": (), "tau": POSITIVE}


@pytest.mark.parametrize("chains", [2, 3, 4, 8, 10])
def test_a_variable_as_long_as_there_are_chains_is_asked_for(chains):
    field = stk.Energy(schools, variables=VARIABLES | {"theta": (chains,)})
    with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
        stk.sample(field, HALF, chains=chains, **SHORT)
    law = stk.Energy(right, variables=field.variables.specs)
    assert stk.sample(law, HALF, chains=chains, **SHORT).failures == {}
    flat = stk.Energy(lambda x: schools(x[:, 2:], x[:, 0], x[:, 1]), (chains + 2,))
    flat = stk.constrained(flat, VARIABLES | {"theta": (chains,)})
    with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
        stk.sample(flat, HALF, chains=chains, **SHORT)


@pytest.mark.parametrize("chains", [3, 8])
def test_an_event_as_long_as_there_are_chains_in_the_users_space_alone(chains):
    law = stk.constrained(
        stk.Energy(lambda x: x.square().sum(0), (chains,)), torch.distributions.constraints.simplex
    )
    with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
        stk.sample(law, HALF, chains=chains, **SHORT)


@pytest.mark.parametrize("chains", [2, 4, 10])
def test_few_chains_of_a_long_run_are_asked_too(chains):
    for name in ("minus the mean", "minus the largest", "divided by the batch", "a running sum"):
        with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
            stk.sample(stk.Energy(COUPLED[name], (3,)), HALF, chains=chains, steps=400)


def test_scores_velocities_and_rows_that_start_alike():
    cases = [
        (stk.Score(lambda x: -x + x.mean(0), (3,)), HALF, None),
        (stk.Diffusion(lambda x, t: x - x.mean(0), (3,)), None, None),
        (stk.Velocity(lambda x, t: -x / x.norm(), (3,)), None, None),
        (stk.Energy(COUPLED["minus the mean"], (3,)), HALF, torch.ones(32, 3)),
    ]
    for field, solver, init in cases:
        with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
            stk.sample(field, solver, chains=32, init=init, **({} if solver is None else SHORT))


def noisy(generator):
    return lambda x: -x + torch.randn(x.shape, generator=generator)


MLP, REGRESSORS = net(6), torch.linspace(-3, 3, 6000).reshape(1000, 6).sin()
FAR = torch.arange(36.0).reshape(6, 6).cos()


def coarse(x):
    """What sums in bfloat16 do, whose order hangs on the size of the batch."""
    return square(x) + 500 * (1 + (len(x) % 4) * 2.0**-8)


RIGHT = {
    "sums in bfloat16": stk.Energy(coarse, (6,)),
    "a network": stk.Energy(lambda x: MLP(x)[:, 0], (6,)),
    "a network squeezed": stk.Energy(lambda x: MLP(x).squeeze(), (6,)),
    "a large regression": stk.Energy(lambda x: (x @ REGRESSORS.T - 300).square().sum(1), (6,)),
    "a difference of large numbers": stk.Energy(
        lambda x: (1e4 + x @ FAR).square().sum(1) - 6e8, (6,)
    ),
    "one constant away": stk.Energy(lambda x: (1e6 + square(x)) - 1e6, (6,)),
    "flat": stk.Energy(lambda x: 0 * x[:, 0], (6,)),
    "infinite in half": stk.Energy(lambda x: torch.where(x[:, 0] > 0, square(x), torch.inf), (6,)),
    "a constant a chain": stk.Energy(
        lambda x: square(x - torch.linspace(-1, 1, 24)[:, None]), (6,)
    ),
    "noise of its own": stk.Score(noisy(torch.Generator().manual_seed(0)), (6,)),
    "as many coordinates": stk.Energy(square, (24,)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_rounding_and_noise_are_no_dependence(name):
    field = RIGHT[name]
    for init in (
        None,
        torch.zeros(24, *field.event_shape),
        torch.full((24, *field.event_shape), 9.0),
    ):
        stk.sample(field, HALF, chains=24, init=init, **SHORT)


def test_without_room_for_them_coarse_sums_would_be_refused(monkeypatch):
    monkeypatch.setattr(independence, "COARSE", 0.0)
    with pytest.raises(stk.InvalidArgument, match="in a batch of 2"):
        stk.sample(RIGHT["sums in bfloat16"], HALF, chains=24, **SHORT)


def test_without_the_question_coupled_rows_pass(monkeypatch):
    """The mutant of the laws above."""
    monkeypatch.setattr(batches, "check_rows_apart", lambda *run: None)
    for name in ("another axis", "divided by the batch"):
        stk.sample(stk.Energy(COUPLED[name], (24,)), HALF, chains=24, **SHORT)


def test_it_costs_less_than_an_evaluation():
    rows = []
    field = stk.Energy(lambda x: (rows.append(len(x)), square(x))[1], (2,))
    for chains, steps, least in (
        (20, 3, 0),
        (64, 3, 20),
        (4, 40, 0),
        (4, 200, 20 + 12 + 24),  # 12 of `run.outwards`, 24 of `run.slopes`
    ):
        rows.clear()
        draws = stk.sample(field, HALF, chains=chains, steps=steps)
        assert sum(rows) == draws.cost["score"] + least


@pytest.mark.parametrize(("share", "told"), [(0.003, False), (0.1, True)])
def test_a_difference_is_one_where_it_is_clear_beside_those_between_rows(share, told):
    """What hangs on another row by less than a hundredth of how far answers lie apart may be the way it is computed."""

    def energy(x):
        return square(x) + share * square(x).roll(1, 0)

    field = stk.Energy(energy, (4,))
    if not told:
        assert stk.sample(field, HALF, chains=64, steps=100).ok.all()
        return
    with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
        stk.sample(field, HALF, chains=64, steps=100)


@pytest.mark.parametrize("apart", [0.0, 10.0, 1000.0])
@pytest.mark.parametrize(("chains", "steps"), [(4, 200), (64, 2)])
def test_columns_that_lie_apart_hide_nothing(chains, steps, apart):
    """How far answers lie apart is how far rows do, in each column."""

    def score(x):
        return -x - 0.1 * x.roll(1, 0) + apart * torch.linspace(-1, 1, 3, dtype=x.dtype)

    field = stk.Score(score, (3,))
    with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
        stk.sample(field, HALF, chains=chains, steps=steps, dtype=torch.float64)


@pytest.mark.parametrize("entry", range(4))
@pytest.mark.parametrize("shape", [(4,), (2, 2)], ids=str)
@pytest.mark.parametrize(
    "how", [lambda z: z.mean(0), lambda z: z.roll(1, 0)], ids=["mean", "before"]
)
def test_each_number_of_an_answer_depends_on_its_row_alone(how, shape, entry):
    """Of a score, a velocity or a prediction: the first entry, the last and those between."""

    def coupled(x, *_):
        flat = x.flatten(1)
        beside = torch.zeros_like(flat)
        beside[:, entry] = how(flat)[..., entry]
        return -(flat + 0.5 * beside).reshape(x.shape)

    fields = (
        (stk.Score(coupled, shape), HALF, {"steps": 2}),
        (stk.Velocity(coupled, shape), stk.ProbabilityFlow("euler", 3), {}),
        (stk.Diffusion(coupled, shape, predicts="data"), stk.ProbabilityFlow("ddim", 3), {}),
    )
    for field, solver, run in fields:
        with pytest.raises(stk.InvalidArgument, match="depends on that row alone"):
            stk.sample(field, solver, chains=16, **run)
