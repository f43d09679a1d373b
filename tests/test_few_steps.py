"""Few steps: grids that are searched, and the table of errors by evaluations."""

import math

import pytest
import torch

import scoretk as stk
from scoretk.demo.bench import few_steps as bench
from scoretk.demo.bench.few_steps import CONTESTANTS, COUNTS, Contestant, Task
from scoretk.demo.bench.rows import Asked, Measured
from scoretk.models.targets.mixture import gaussian, ring_mixture
from scoretk.ode import grids
from scoretk.ode.search import follow, search_shares
from scoretk.ode.tableaus import GRID_RULES, tableau

DOUBLE = {"dtype": torch.float64}
EDM = stk.EDM(0.002, 80.0)
RING = ring_mixture().noised(EDM)


def normals(*shape, seed=0):
    return torch.randn(*shape, **DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", GRID_RULES)
@pytest.mark.parametrize("path", [EDM, stk.VP(), stk.Linear()], ids=repr)
def test_a_table_that_is_followed_leads_where_the_solver_goes(name, path):
    field, closes = ring_mixture().noised(path), float(path.sigma(1.0)) > 0
    x = float(path.sigma(0.0)) * normals(5, 2)
    solver = stk.ProbabilityFlow(name, 6, denoise=closes)
    table = tableau(name, path, solver.times(field), closes)
    end = follow(table, x, field.predict)
    torch.testing.assert_close(end, stk.sample(field, solver, init=x).final, rtol=1e-9, atol=1e-9)


def test_a_search_finds_the_least_error_with_as_many_tries_as_it_may_take():
    aim, asked = torch.tensor([0.05, 0.1, 0.2, 0.25, 0.4], **DOUBLE), []

    def error(shares):
        asked.append(shares)
        return float((shares / aim).log().square().sum())

    found = search_shares(error, torch.full((5,), 0.2, **DOUBLE), 1000)
    torch.testing.assert_close(found, aim, rtol=1e-2, atol=0)
    assert len(asked) < 1000  # it ended by its moves
    asked.clear()
    search_shares(error, torch.full((5,), 0.2, **DOUBLE), 17)
    assert len(asked) == 17


def test_a_search_leaves_a_grid_that_nothing_betters():
    even = torch.full((4,), 0.25, **DOUBLE)
    found = search_shares(lambda s: float((s - 0.25).abs().sum() > 1e-12), even, 50)
    torch.testing.assert_close(found, even, rtol=1e-12, atol=0)


def ends_apart(grid, method, steps, x, exact, denoise=True):
    solver = stk.ProbabilityFlow(method, steps, grid, denoise)
    return float((stk.sample(RING, solver, init=x).final - exact).norm(dim=1).median())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "steps", "part"), [("adams_pc_2", 5, 0.2), ("dpmpp_2m", 8, 0.15), ("heun", 5, 0.6)]
)
def test_a_grid_that_was_searched_is_nearer_to_the_end_on_other_noise(method, steps, part):
    """Measured: .10, .07 and .49 of the default grid's error."""
    x = 80 * normals(256, 2, seed=3)
    exact = stk.sample(RING, stk.ProbabilityFlow("adams_pc_3", 500, denoise=True), init=x).final
    found = grids.search(RING, steps - 1, method, denoise=True, tries=150)
    assert found.shape == (steps,)
    assert found.dtype == torch.float64
    assert (float(found[0]), float(found[-1])) == (0.0, 1.0)
    assert bool((found.diff() > 0).all())
    assert torch.equal(found, grids.search(RING, steps - 1, method, denoise=True, tries=150))
    got, plain = (ends_apart(g, method, steps, x, exact) for g in (found, None))
    assert got < part * plain


def test_a_search_begins_at_the_best_grid_that_has_a_name():
    """With no try beyond it."""
    times = grids.search(RING, 6, "euler", denoise=True, tries=1)
    known = [grids.grid(name, EDM, 6) for name in grids.GRIDS]
    assert any(torch.equal(times, one) for one in known)


@pytest.mark.thorough
def test_options_of_a_search_all_count():
    usual = {"steps": 4, "tries": 60, "chains": 2}
    field = ring_mixture().noised(stk.EDM(0.3, 80.0))  # where the step that closes it is long
    times = grids.search(field, **usual)
    for other in (
        {"seed": 1},
        {"chains": 16},
        {"tries": 6},
        {"denoise": True},
        {"method": "euler"},
    ):
        assert not torch.equal(times, grids.search(field, **usual | other)), other


@pytest.mark.thorough
def test_a_search_knows_conditions():
    """A velocity whose fast part comes early or late, as the condition says."""
    field = stk.Velocity(
        lambda x, t, late: 30 * torch.exp(-30 * (late - t[:, None]).abs()) * torch.ones_like(x) + x,
        (1,),
        base=normals(50, 1),
    )
    early, late = (
        grids.search(field, 6, "euler", chains=8, cond={"late": torch.full((8, 1), c)})
        for c in (0.1, 0.9)
    )
    assert float(early[3]) < 0.5 < float(late[3])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"method": "dopri5"}, "along a given grid"),
        ({"steps": 0}, "steps"),
        ({"tries": 0}, "tries"),
    ],
)
def test_a_search_refuses_what_it_cannot_do(wrong, told):
    with pytest.raises(stk.InvalidArgument, match=told):
        grids.search(RING, **{"steps": 4} | wrong)


def test_a_model_is_left_as_it_was_found():
    with torch.random.fork_rng():
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    field = stk.Diffusion(net_of(net), (2,), stk.VP(), "noise")
    grids.search(field, 3, tries=3, chains=4)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def net_of(net):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    return Model()


# The table


def small(monkeypatch):
    monkeypatch.setattr(bench, "POINTS", 64)
    monkeypatch.setattr(bench, "LAW", 256)


@pytest.mark.parametrize("name", GRID_RULES)
def test_no_method_has_more_evaluations_than_its_column_says(name):
    task = bench._ring()
    for count in COUNTS:
        steps = task.steps(name, count)
        if steps:
            solver = stk.ProbabilityFlow(name, steps, denoise=True)
            cost = stk.sample(RING, solver, chains=3).cost
            assert sum(cost.values()) <= 3 * count
            more = stk.sample(RING, stk.ProbabilityFlow(name, steps + 1, denoise=True), chains=3)
            assert sum(more.cost.values()) > 3 * count
        else:
            assert count < 2 * GRID_RULES[name].stages


def test_errors_are_those_of_the_exact_flow(monkeypatch):
    """On a normal, whose flow is `x1 = x0 std / sqrt(sigma^2 + std^2)`: against a median by hand."""
    small(monkeypatch)
    law = gaussian(2, std=0.5)
    task = Task(law.noised(stk.VP()), False, True, {})
    x = task.starts(64, stk.core.noise.derive(0, 0))
    a, s = (float(f(0.0)) for f in (stk.VP().alpha, stk.VP().sigma))
    b, r = (float(f(1.0)) for f in (stk.VP().alpha, stk.VP().sigma))
    exact = x * math.sqrt(b**2 * 0.25 + r**2) / math.sqrt(a**2 * 0.25 + s**2)
    torch.testing.assert_close(task.solved(x), exact, rtol=1e-6, atol=1e-6)
    found = bench.ends(task, Contestant("euler"))
    for count in COUNTS:
        end = stk.sample(task.field, stk.ProbabilityFlow("euler", count), init=x).final
        median = float((end - exact).norm(dim=1).median())
        assert found[count].value == pytest.approx(median, rel=1e-3)
        assert 0.02 * median < found[count].stderr < 0.3 * median


@pytest.mark.thorough
def test_a_law_is_told_from_another_and_not_from_itself(monkeypatch):
    small(monkeypatch)
    task = bench._ring()
    floor = bench._floor.__wrapped__(task, 0)
    found = bench.laws(task, Contestant("dpmpp_2m", noisy=True))
    assert found[5].value > 2 * floor.value
    assert found[20].value < floor.value + 5 * math.hypot(found[20].stderr, floor.stderr)
    exact = bench._apart(task.drawn(2048, 10), task.drawn(2048, 11))
    assert abs(exact.value - floor.value) < 5 * math.hypot(exact.stderr, floor.stderr)
    wider = bench._apart(1.3 * task.drawn(2048, 10), task.drawn(2048, 11))
    assert wider.value > floor.value + 5 * math.hypot(wider.stderr, floor.stderr)


def rows_of(made, peers=None, floor=0.1):
    task = Task(RING, True, True, peers or {})
    errors = {n: (dict.fromkeys(COUNTS, Measured(v, v / 10)), 0.0) for n, v in made.items()}
    return {r["solver"]: r for r in bench._rows("ring", task, errors, Measured(floor, 0.01))}


def test_a_row_is_reached_where_nobody_is_ahead():
    rows = rows_of({"adams_3": 0.1, "euler": 0.5, "heun/edm": 0.3, "dpmpp_2m/sde": 0.2})
    assert rows["adams_3"]["reached"] == "yes"
    assert rows["adams_3"]["best at"] == "5, 8, 10, 20"
    assert rows["heun/edm"]["reached"] == "yes"  # the literature's own best
    assert rows["heun/edm"]["best at"] == ""
    assert (
        rows["euler"]["cause"]
        == "behind the best of the literature and peers at 5, 8, 10, 20 evaluations"
    )
    assert "1.5 times the floor" in rows["dpmpp_2m/sde"]["cause"]
    behind = rows_of({"adams_3": 0.1, "heun/edm": 0.3}, {20: 0.05})
    assert "at 20 evaluations" in behind["adams_3"]["cause"]
    nothing = rows_of({"adams_3": math.inf})
    assert nothing["adams_3"]["reached"] == "yes"  # nobody is there
    assert rows_of({"adams_3": math.nan})["adams_3"]["reached"] == "no"


@pytest.mark.thorough
def test_rows_are_those_asked_for(monkeypatch):
    small(monkeypatch)
    ask = Asked(solvers=("euler", "dpmpp_2m/sde"), named=("few-steps",))
    rows = list(bench.few_steps(ask))
    assert [r["solver"] for r in rows] == ["euler", "dpmpp_2m/sde"]
    assert {r["target"] for r in rows} == {"ring"}
    assert rows[0]["5 evaluations"].value > rows[0]["20 evaluations"].value
    assert not list(bench.few_steps(Asked(solvers=("mclmc",))))
    assert not list(bench.few_steps(Asked(targets=("banana",))))
    with pytest.raises(stk.UnknownName, match="nobody"):
        list(bench.few_steps(Asked(solvers=("nobody",), named=("few-steps",))))


@pytest.mark.thorough
def test_the_found_grid_is_ahead_of_all_on_the_ring(monkeypatch):
    """At 5, 8 and 10 evaluations with few tries, by more than its standard error."""
    monkeypatch.setattr(bench, "COUNTS", (5, 8, 10))
    made = bench.ends(bench._ring(), CONTESTANTS["adams_pc_2/found"], tries=100)
    for count, error in made.items():
        assert error.value + 4 * error.stderr < bench.PEERS[count], count


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(
    "path",
    [stk.Linear(), stk.VP(), stk.VE(), stk.EDM(), stk.Cosine(), stk.SubVP(), stk.Interpolant()],
    ids=repr,
)
def test_a_search_makes_steps_on_every_path_however_few_they_are(path, steps):
    """Also where some grids with a name have no room for their ends."""
    field = stk.Diffusion(lambda x, t: torch.tanh(x), (1,), path, "data")
    times = grids.search(field, steps, "euler", chains=2, tries=1)
    assert times.shape == (steps + 1,)
    assert bool((times.diff() > 0).all())
    assert times[[0, -1]].tolist() == [0.0, 1.0]
