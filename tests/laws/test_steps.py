"""Steps of every solver against a second transcription of its formula in plain numpy, with the same random numbers."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.errors import InvalidArgument
from scoretk.fields.paths import VP
from scoretk.fields.resolve import resolve
from scoretk.models.targets.lattices import ising
from scoretk.models.targets.mixture import gaussian
from scoretk.solvers import EXAMPLES
from scoretk.solvers.base import is_grid
from scoretk.solvers.importance import AISState, Ladder, check_islands, resampled
from scoretk.solvers.nuts import Span, join
from scoretk.solvers.parts.metropolis import decide
from scoretk.solvers.parts.nested import NestedNoise
from scoretk.solvers.warmup.length import Decorrelation, Spread

N, D, STEPS = 6, 3, 5
K, COUPLING = np.array([0.6, 1.0, 2.5]), 0.4
DIAGONAL = np.array([0.7, 1.1, 1.6])
DENSE = np.array([[0.8, 0.0, 0.0], [0.3, 1.1, 0.0], [-0.4, 0.2, 0.6]])


def energy(x):
    k = torch.tensor(K, dtype=x.dtype)
    return (k * x**2 / 2 + x**4 / 8).sum(1) + COUPLING * x[:, 0] * x[:, 1]


def E(x):
    return (K * x**2 / 2 + x**4 / 8).sum(-1) + COUPLING * x[..., 0] * x[..., 1]


def G(x):
    g = K * x + x**3 / 2
    g[..., 0] += COUPLING * x[..., 1]
    g[..., 1] += COUPLING * x[..., 0]
    return g


class Draw:
    """The random numbers of a run, in numpy."""

    def __init__(self, noise):
        self.noise = noise

    def z(self, step, stream=Stream.PROPOSAL, shape=(D,)):
        return self.noise.normal(step, stream, shape, torch.float64).numpy()

    def u(self, step, stream=Stream.ACCEPT, shape=()):
        return self.noise.uniform(step, stream, shape, torch.float64).numpy()

    def signs(self, step, stream, shape):
        return self.noise.rademacher(step, stream, shape, torch.float64).numpy()


def begun(solver, field=None, spread=1.0, **leaves):
    """The noise, the bound field and the state of a few chains, with leaves of one's own."""
    noise = Noise(11, N, dtype=torch.float64)
    field = stk.Energy(energy, (D,)) if field is None else field
    bound = resolve(field, solver.needs, timed=solver.timed)
    x = spread * noise.normal(0, Stream.USER, (D,), torch.float64)
    state = solver.init(bound, x, noise)
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in leaves.items()}
    return noise, bound, state._replace(**given)


def followed(solver, one, steps=STEPS, check=("accept",), **options):
    """Hold so many steps of a solver to `one(draw, step, x, memory) -> (x, info, memory)`."""
    noise, bound, state = begun(solver, **options)
    draw, x, memory = Draw(noise), state.x.numpy().copy(), None
    rejected = 0
    for step in range(steps):
        before = x
        state, info = solver.step(bound, state, noise)
        x, told, memory = one(draw, step, x, memory)
        np.testing.assert_allclose(state.x.numpy(), x, rtol=1e-9, atol=1e-9)
        for name in check:
            np.testing.assert_allclose(
                info[name].double().numpy(), told[name], rtol=1e-8, atol=1e-10
            )
        rejected += int((before == x).all(1).sum())
    if "accept" in check:
        assert rejected, "no proposal was rejected"
    return state


def chosen(draw, step, x, proposed, log_ratio):
    """Metropolis' decision and what it reports."""
    accept = np.log(draw.u(step)) < log_ratio
    return np.where(accept[:, None], proposed, x), np.exp(np.minimum(log_ratio, 0))


def test_ula():
    h, heat, clip, box = 0.4, 1.7, 0.8, (-1.5, 1.2)

    def one(draw, step, x, _):
        g = np.clip(G(x), -clip, clip)
        return np.clip(x - h * g + math.sqrt(2 * h * heat) * draw.z(step), *box), {}, None

    followed(stk.ULA(h, heat, clip, box), one, check=())
    assert stk.ULA.with_noise(h, 0.3).temperature == pytest.approx(0.3**2 / (2 * h))


def log_normal(x, mean, variance):
    return -np.square(x - mean).sum(-1) / (2 * variance)


def test_mala():
    h, heat = 0.5, 1.7

    def one(draw, step, x, _):
        there = x - h * G(x) + math.sqrt(2 * h * heat) * draw.z(step)
        ratio = (E(x) - E(there)) / heat
        ratio += log_normal(x, there - h * G(there), 2 * h * heat)
        ratio -= log_normal(there, x - h * G(x), 2 * h * heat)
        x, accept = chosen(draw, step, x, there, ratio)
        return x, {"accept": accept, "energy": E(x)}, None

    followed(stk.MALA(h, heat), one, check=("accept", "energy"), spread=1.5)
    assert stk.MALA(temperature=heat).of_leapfrog(0.6, D) == pytest.approx(0.36 / (2 * heat))


def test_barker():
    h, heat = 0.9, 1.7

    def density(there, x):
        """Of the jump, each coordinate forwards or backwards."""
        y = there - x
        return (-(y**2) / (4 * h * heat) - np.log1p(np.exp(y * G(x) / heat))).sum(-1)

    def one(draw, step, x, _):
        z = math.sqrt(2 * h * heat) * draw.z(step)
        forwards = draw.u(step, Stream.CORRECTION, (D,)) < 1 / (1 + np.exp(z * G(x) / heat))
        there = x + np.where(forwards, z, -z)
        ratio = (E(x) - E(there)) / heat + density(x, there) - density(there, x)
        x, accept = chosen(draw, step, x, there, ratio)
        return x, {"accept": accept}, None

    followed(stk.Barker(h, heat), one, spread=1.5)


def test_underdamped_is_baoab():
    h, friction, heat = 0.3, 1.4, 1.7
    c = math.exp(-friction * h)

    def one(draw, step, x, v):
        if v is None:
            v = math.sqrt(heat) * draw.z(0, Stream.MOMENTUM)
        v = v - h / 2 * G(x)
        x = x + h / 2 * v
        v = c * v + math.sqrt((1 - c**2) * heat) * draw.z(step)
        x = x + h / 2 * v
        return x, {}, v - h / 2 * G(x)

    followed(stk.Underdamped(h, friction, heat), one, check=())


def test_ghmc():
    h, friction = 0.7, 0.6
    c = math.exp(-friction * h)

    def one(draw, step, x, v):
        if v is None:
            v = draw.z(0, Stream.MOMENTUM)
        v = c * v + math.sqrt(1 - c**2) * draw.z(step)
        p = v - h / 2 * G(x)
        there = x + h * p
        p = p - h / 2 * G(there)
        start = E(x) + (v**2).sum(1) / 2
        ratio = start - E(there) - (p**2).sum(1) / 2
        accept = np.log(draw.u(step)) < ratio
        v = np.where(accept[:, None], p, -v)
        x, rate = chosen(draw, step, x, there, ratio)
        return x, {"accept": rate, "hamiltonian": start}, v

    followed(stk.GHMC(h, friction), one, steps=9, check=("accept", "hamiltonian"), spread=1.5)


def leapfrog(x, p, eps, steps, scale):
    """So many steps with the scales S: `x <- x + eps S p`."""
    e = np.reshape(eps, (-1, 1))
    p = p - e / 2 * (G(x) @ scale)
    for i in range(steps):
        x = x + e * (p @ scale.T)
        p = p - e * (G(x) @ scale) * (1 if i < steps - 1 else 1 / 2)
    return x, p


def hamiltonian_step(draw, step, x, eps, steps, scale):
    p = draw.z(step)
    there, after = leapfrog(x, p, eps, steps, scale)
    start = E(x) + (p**2).sum(1) / 2
    error = E(there) + (after**2).sum(1) / 2 - start
    x, accept = chosen(draw, step, x, there, -error)
    return x, {"accept": accept, "hamiltonian": start, "diverging": np.abs(error) >= 1000}


@pytest.mark.parametrize(("metric", "scale"), [("diagonal", DIAGONAL), ("dense", DENSE)])
def test_hmc(metric, scale):
    eps, steps, jitter = 0.55, 4, 0.3

    def one(draw, step, x, _):
        size = eps * (1 + jitter * (2 * draw.u(step, Stream.LENGTH) - 1))
        whole = scale if scale.ndim == 2 else np.diag(scale)
        return *hamiltonian_step(draw, step, x, size, steps, whole), None

    told = ("accept", "hamiltonian", "diverging")
    followed(stk.HMC(eps, steps, jitter, metric), one, check=told, scale=scale, spread=2.0)


def test_a_trajectory_diverges_by_the_size_of_its_error_also_where_the_energy_falls():
    for off, told in ((-5000.0, True), (5000.0, True), (900.0, False), (-900.0, False)):
        solver = stk.HMC(0.1, leapfrogs=3, metric="none")
        noise, bound, state = begun(solver)
        state = state._replace(energy=state.energy + off)
        found = solver.step(bound, state, noise)[1]["diverging"]
        assert bool(found.all() if told else ~found.any())


def van_der_corput(n):
    """The bits of n behind the point, turned round."""
    return sum(int(bit) / 2**i for i, bit in enumerate(reversed(f"{n:b}"), 1))


def test_chees_takes_the_halton_sequences_share_of_twice_its_length():
    eps, length = 0.4, 1.3

    def one(draw, step, x, _):
        steps = max(math.ceil(2 * van_der_corput(step + 1) * length / eps), 1)
        x, info = hamiltonian_step(draw, step, x, eps, steps, np.eye(D))
        return x, info | {"leapfrogs": steps}, None

    solver = stk.ChEES(eps, length, "none")
    followed(solver, one, steps=8, check=("accept", "leapfrogs"), spread=2.0)


def turning(a, b):
    """Whether the momenta of two neighbouring halves turn back, as a whole and at the joint."""
    parts = [
        (a[0], b[-1], sum(a) + sum(b)),
        (a[0], b[0], sum(a) + b[0]),
        (a[-1], b[-1], a[-1] + sum(b)),
    ]
    return any(first @ total <= 0 or last @ total <= 0 for first, last, total in parts)


def no_u_turn(draw, step, row, x, eps, depths):
    """One chain's step from a list of all of its points; what it reports."""
    p = draw.z(step)[row]
    start = E(x) + p @ p / 2
    signs = draw.signs(step, Stream.LENGTH, (depths,))[row]
    between = np.log(draw.u(step, Stream.ACCEPT, (depths,))[row])
    points, momenta, weight, pick = [x], [p], 0.0, x
    rates, depth = [], 0
    for d in range(depths):
        forward, size = signs[d] > 0, 2**d
        within = np.log(draw.u(step, Stream.PROPOSAL, (2 * size,))[row, size:])
        y, q = (points[-1], momenta[-1]) if forward else (points[0], momenta[0])
        made, moved, total, best = [], [], -np.inf, None
        for n in range(1, size + 1):
            y, q = (v[0] for v in leapfrog(y[None], q[None], signs[d] * eps, 1, np.eye(D)))
            made.append(y)
            moved.append(q)
            log_w = start - E(y) - q @ q / 2
            rates.append(min(1.0, math.exp(min(log_w, 0.0))))
            total = np.logaddexp(total, log_w)
            best = y if within[n - 1] < log_w - total else best
            width, turned = 1, -log_w > 1000
            while n % (2 * width) == 0:
                turned |= turning(moved[n - 2 * width : n - width], moved[n - width : n])
                width *= 2
            if turned:
                return pick, np.mean(rates), len(rates), depth
        pick = best if between[d] < total - weight else pick
        ordered = momenta if forward else momenta[::-1]
        ended = turning(ordered, moved)
        points = points + made if forward else made[::-1] + points
        momenta = momenta + moved if forward else moved[::-1] + momenta
        weight, depth = np.logaddexp(weight, total), depth + 1
        if ended:
            break
    return pick, np.mean(rates), len(rates), depth


def test_nuts():
    eps, depths = 0.35, 5

    def one(draw, step, x, _):
        rows = [no_u_turn(draw, step, row, x[row], eps, depths) for row in range(N)]
        told = {
            name: [r[i] for r in rows] for i, name in enumerate(("accept", "leapfrogs", "depth"), 1)
        }
        return np.array([r[0] for r in rows]), told, None

    noise, bound, state = begun(stk.NUTS(eps, "none", max_depth=depths))
    solver = stk.NUTS(eps, "none", max_depth=depths)
    draw, x = Draw(noise), state.x.numpy().copy()
    for step in range(12):
        state, info = solver.step(bound, state, noise)
        x, told, _ = one(draw, step, x, None)
        np.testing.assert_allclose(state.x.numpy(), x, rtol=1e-8, atol=1e-8)
        for name, values in told.items():
            np.testing.assert_allclose(info[name].numpy(), values, rtol=1e-8)


def test_a_trajectory_turns_as_a_whole_or_at_either_joint():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 4000, 3)) + np.array([0.9, 0, 0])
    a_first, a_last, a_total, b_first, b_last, b_total = vectors
    spans = [(a_first, a_last, a_total), (b_first, b_last, b_total)]
    a, b = (Span(*map(torch.tensor, span)) for span in spans)

    def turns(first, last, total):
        return ((first * total).sum(1) <= 0) | ((last * total).sum(1) <= 0)

    each = [
        turns(a_first, b_last, a_total + b_total),
        turns(a_first, b_first, a_total + b_first),
        turns(a_last, b_last, a_last + b_total),
    ]
    for i in range(3):
        alone = each[i] & ~each[i - 1] & ~each[i - 2]
        assert alone.sum() > 50
    whole, turned = join(a, b, 2)
    assert np.array_equal(turned.numpy(), np.any(each, 0))
    assert np.array_equal(join(a, b, 1)[1].numpy(), each[0])
    assert torch.equal(whole.first, a.first)
    assert torch.equal(whole.last, b.last)
    torch.testing.assert_close(whole.total, a.total + b.total)


NORM = 0.1931833275037836


def turned(u, g, time):
    """The velocity after a turn by the gradient g that stands still, and d - 1 times the log of its shrinkage."""
    size = np.linalg.norm(g, axis=1, keepdims=True)
    e, delta = -g / size, time * size / (D - 1)
    c = (e * u).sum(1, keepdims=True)
    shrinkage = np.cosh(delta) + c * np.sinh(delta)
    return (u + e * (np.sinh(delta) + c * (np.cosh(delta) - 1))) / shrinkage, (D - 1) * np.log(
        shrinkage[:, 0]
    )


def isokinetic(x, u, eps, steps, scale):
    kinetic, e = 0.0, np.reshape(eps, (-1, 1))
    start = E(x)
    for _ in range(steps):
        for share, drift in zip((NORM, 1 - 2 * NORM, NORM), (1 / 2, 1 / 2, 0.0), strict=True):
            u, change = turned(u, scale * G(x), share * e)
            kinetic = kinetic + change
            x = x + drift * e * scale * u
    return x, u, E(x) - start + kinetic


def unit(v):
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_mclmc():
    eps, length = 0.7, 1.9
    kept = math.exp(-eps / length)

    def one(draw, step, x, u):
        u = unit(draw.z(0, Stream.MOMENTUM)) if u is None else u
        u = unit(kept * u + math.sqrt((1 - kept**2) / D) * draw.z(step))
        x, u, error = isokinetic(x, u, eps, 1, DIAGONAL)
        return x, {"energy": E(x), "energy_error": error}, u

    told = ("energy", "energy_error")
    followed(stk.MCLMC(eps, length), one, check=told, scale=DIAGONAL)
    assert stk.MCLMC().of_leapfrog(0.5, 9) == pytest.approx(0.5 * 3 * 2)
    assert stk.MCLMC(integrator="leapfrog").of_leapfrog(0.5, 9) == pytest.approx(0.5 * 3)


@pytest.mark.parametrize("wide", [1.0, 1.6])
def test_adjusted_mclmc(wide):
    eps, steps, jitter = 1.8, 2, 0.3

    def one(draw, step, x, _):
        v = 2 * draw.u(step, Stream.LENGTH) - 1
        size = eps * (1 + jitter * v) * wide**v
        there, _, error = isokinetic(x, unit(draw.z(step)), size, steps, DIAGONAL)
        x, accept = chosen(draw, step, x, there, -error)
        return x, {"accept": accept}, None

    solver = stk.AdjustedMCLMC(eps, leapfrogs=steps, jitter=jitter, spread=wide)
    followed(solver, one, scale=DIAGONAL, spread=2.0, steps=8)


def test_preconditioned_langevin_is_mala_with_a_preconditioner():
    h = 0.5
    covariance = DENSE @ DENSE.T

    def mean(x):
        return x - h * G(x) @ covariance

    def log_q(there, x):
        off = np.linalg.solve(DENSE, (there - mean(x)).T)
        return -(off**2).sum(0) / (4 * h)

    def one(draw, step, x, _):
        there = mean(x) + math.sqrt(2 * h) * draw.z(step) @ DENSE.T
        ratio = E(x) - E(there) + log_q(x, there) - log_q(there, x)
        x, accept = chosen(draw, step, x, there, ratio)
        return x, {"accept": accept}, None

    followed(stk.PreconditionedLangevin(h, "dense"), one, scale=DENSE, spread=2.0)


PATH = VP(0.2, 12.0)


def data(x, t):
    return np.tanh(1.2 * x + 0.3) * (0.4 + t)


TIMED = stk.Diffusion(
    lambda x, t: torch.tanh(1.2 * x + 0.3) * (0.4 + t[:, None]), (D,), PATH, "data"
)


def scales(t):
    return float(PATH.alpha(t)), float(PATH.sigma(t))


def timed(solver):
    noise = Noise(11, N, dtype=torch.float64)
    bound = resolve(TIMED, solver.needs, timed=True)
    x = noise.normal(0, Stream.USER, (D,), torch.float64)
    return Draw(noise), x.numpy(), bound, solver.init(bound, x, noise), noise


def test_annealed_langevin_over_noise_levels():
    levels, each, eps = (4.0, 1.5, 0.5), 2, 0.01
    solver = stk.AnnealedLangevin(levels, each, eps)
    draw, x, bound, state, noise = timed(solver)
    times = [float(PATH.t(-2 * math.log(s))) for s in levels]
    y = x / scales(times[0])[0]
    for i in range(len(levels) * each):
        state, _ = solver.step(bound, state, noise)
        t, s = times[i // each], levels[i // each]
        a = eps * (s / levels[-1]) ** 2
        alpha = scales(t)[0]
        y = y + a * (data(alpha * y, t) - y) / s**2 + math.sqrt(2 * a) * draw.z(i)
        np.testing.assert_allclose(state.x.numpy(), y, rtol=1e-8)
    state, _ = solver.step(bound, state, noise)
    np.testing.assert_allclose(
        state.x.numpy(), data(scales(times[-1])[0] * y, times[-1]), rtol=1e-8
    )


GRID = (0.05, 0.22, 0.41, 0.66, 0.9)


def kept_and_new(method, eta, q):
    """The parts k of the noise that a step keeps and renews, by the ratio q of the levels."""
    if method == "euler":
        g, new = 1 - (1 + eta**2) * (1 - q**2) / 2, eta * math.sqrt(1 - q**2)
        return g / math.hypot(g, new), new / math.hypot(g, new)
    k = math.sqrt(1 - eta**2 * (1 - q**2)) if method == "ddim" else q ** (eta**2)
    return k, math.sqrt(1 - k**2)


@pytest.mark.parametrize("method", ["euler", "ancestral", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("eta", [0.7, 1.0])
def test_reverse_sdes(method, eta):
    solver = stk.ReverseSDE(method, grid=GRID, eta=eta)
    draw, x, bound, state, noise = timed(solver)
    past, ratio = None, [scales(t)[1] / scales(t)[0] for t in GRID]
    for i in range(len(GRID) - 1):
        state, _ = solver.step(bound, state, noise)
        alpha, sigma = scales(GRID[i])
        d = data(x, GRID[i])
        after_alpha, after_sigma = scales(GRID[i + 1])
        k, renewed = kept_and_new(method, eta, ratio[i + 1] / ratio[i])
        used = d
        if method == "dpmpp_2m" and i:
            share = math.log(ratio[i + 1] / ratio[i]) / math.log(ratio[i] / ratio[i - 1]) / 2
            used = d + share * (d - past)
        # the noise that is kept belongs to the D used: x = alpha D + sigma e
        e = (x - alpha * used) / sigma
        x = after_alpha * used + after_sigma * (k * e + renewed * draw.z(i))
        past = d
        np.testing.assert_allclose(state.x.numpy(), x, rtol=1e-8)


@pytest.mark.parametrize("rule", ["level", "sample"])
def test_correctors_are_langevin_steps_at_their_level(rule):
    snr = 0.3
    solver = stk.ReverseSDE("ancestral", grid=GRID[1:3], corrector=2, snr=snr, rule=rule)
    draw, x, bound, state, noise = timed(solver)
    state, _ = solver.step(bound, state, noise)
    x = state.x.numpy()
    alpha, sigma = scales(GRID[2])
    s = sigma / alpha
    for i in (1, 2):
        state, _ = solver.step(bound, state, noise)
        y = x / alpha
        slope = (data(x, GRID[2]) - y) / s**2
        h = np.full((N, 1), 2 * snr**2 * s**2)
        if rule == "sample":
            h = np.minimum(2 * snr**2 * D / (slope**2).sum(1, keepdims=True), s**2)
        x = alpha * (y + h * slope + np.sqrt(2 * h) * draw.z(i))
        np.testing.assert_allclose(state.x.numpy(), x, rtol=1e-8)


def replicas(draw, step, stream, shape, count):
    """The numbers of replicas of chains: as many more at the end of the shape."""
    kind = draw.z if stream == Stream.PROPOSAL else draw.u
    values = np.moveaxis(kind(step, stream, (*shape, count)), -1, 1)
    return values.reshape(-1, *values.shape[2:])


def test_parallel_tempering():
    """MALA in stretched coordinates for every replica, then swaps of the even pairs and of the odd ones."""
    heats, h, inner = (1.0, 2.0, 4.0), 0.35, 2
    k = len(heats)
    solver = stk.ParallelTempering(stk.MALA(h), temperatures=heats, kernel_steps=inner)
    noise, bound, state = begun(solver, spread=1.5)
    draw, b = Draw(noise), 1 / np.array(heats)
    x = np.repeat(state.x.numpy()[:, None], k, 1)
    hot = np.zeros((N, k), bool)
    hot[:, -1] = True
    root = np.sqrt(np.tile(b, N))[:, None]
    trips = swaps = 0
    for step in range(12):
        state, info = solver.step(bound, state, noise)
        rate = 0.0
        y = x.reshape(-1, D) * root

        def law(y):
            return root[:, 0] ** 2 * E(y / root), root * G(y / root)

        for i in range(inner):
            e, g = law(y)
            at = step * inner + i
            there = y - h * g + math.sqrt(2 * h) * replicas(draw, at, Stream.PROPOSAL, (D,), k)
            e2, g2 = law(there)
            ratio = (
                e - e2 + log_normal(y, there - h * g2, 2 * h) - log_normal(there, y - h * g, 2 * h)
            )
            accept = np.log(replicas(draw, at, Stream.ACCEPT, (), k)) < ratio
            y = np.where(accept[:, None], there, y)
            rate = rate + np.exp(np.minimum(ratio, 0)).reshape(N, k)[:, 0] / inner
        x = (y / root).reshape(N, k, D)
        u = draw.u(step, Stream.SWAP, (k - 1,))
        told = []
        for i in range(step % 2, k - 1, 2):
            here = b[i] * E(x[:, i]) + b[i + 1] * E(x[:, i + 1])
            turned_round = b[i] * E(x[:, i + 1]) + b[i + 1] * E(x[:, i])
            ratio = here - turned_round
            told.append(np.exp(np.minimum(ratio, 0)))
            swap = np.log(u[:, i]) < ratio
            swaps += int(swap.sum())
            x[swap, i], x[swap, i + 1] = x[swap, i + 1], x[swap, i].copy()
            hot[swap, i], hot[swap, i + 1] = hot[swap, i + 1], hot[swap, i].copy()
        arrived = hot[:, 0].astype(float)
        trips += int(arrived.sum())
        hot[:, 0], hot[:, -1] = False, True
        np.testing.assert_allclose(state.replicas.numpy(), x, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(state.energy.numpy(), E(x), rtol=1e-8)
        np.testing.assert_allclose(state.grad.numpy(), G(x.copy()), rtol=1e-7, atol=1e-8)
        found = {
            "swap": np.mean(told, 0),
            "accept": rate,
            "round_trips": arrived,
            "energy": E(x[:, 0]),
        }
        for name, value in found.items():
            np.testing.assert_allclose(info[name].numpy(), value, rtol=1e-8, atol=1e-12)
    assert trips
    assert swaps


def test_annealed_importance_sampling():
    """The gain of a level at the place before it, then MALA at the level's law in stretched coordinates."""
    b, h, sizes, scale = (
        (0.0, 0.2, 0.6, 1.0),
        0.2,
        (0.15, 0.3, 0.2),
        np.array([[0.8, 1.2, 1.0]] * 3),
    )
    moves = (1, 2, 1)
    ladder = Ladder(b, sizes, torch.tensor(scale), moves)
    solver = stk.AIS(kernel=stk.MALA(h), ladder=ladder)
    noise, bound, state = begun(solver)
    draw, x, log_w = Draw(noise), state.x.numpy().copy(), np.zeros(N)

    def base(x):
        return (x**2).sum(1) / 2

    for k in range(3):
        state, info = solver.step(bound, state, noise)
        log_w += (b[k + 1] - b[k]) * (base(x) - E(x))
        w, s, h = b[k + 1], scale[k], sizes[k]

        def law(y):
            x = s * y  # noqa: B023
            return (1 - w) * base(x) + w * E(x), s * ((1 - w) * x + w * G(x))  # noqa: B023

        y, rate = x / s, 0.0
        for i in range(moves[k]):
            at = k * max(moves) + i
            e, g = law(y)
            there = y - h * g + math.sqrt(2 * h) * draw.z(at)
            e2, g2 = law(there)
            ratio = (
                e - e2 + log_normal(y, there - h * g2, 2 * h) - log_normal(there, y - h * g, 2 * h)
            )
            y = np.where((np.log(draw.u(at)) < ratio)[:, None], there, y)
            rate = rate + np.exp(np.minimum(ratio, 0)) / moves[k]
        x = s * y
        np.testing.assert_allclose(state.x.numpy(), x, rtol=1e-8)
        np.testing.assert_allclose(info["log_weight"].numpy(), log_w, rtol=1e-8)
        np.testing.assert_allclose(info["accept"].numpy(), rate, rtol=1e-8)


def systematic(share, u):
    """The rows that evenly spaced points, shifted by u, hit."""
    n, edges = len(share), np.cumsum(share)
    return [int(np.searchsorted(edges, (i + u) / n)) for i in range(n)]


def test_resampling_is_systematic_and_keeps_the_mean_weight():
    rng = np.random.default_rng(2)
    logs, u = rng.normal(size=(3, 8)) * 2, rng.uniform(size=3)
    found, share = resampled(torch.tensor(logs), torch.tensor(u))
    for row in range(3):
        w = np.exp(logs[row]) / np.exp(logs[row]).sum()
        assert found[row].tolist() == systematic(w, u[row])
        assert float(share[row]) == pytest.approx(1 / (8 * (w**2).sum()))
    island, b = 3, (0.0, 0.7, 1.0)
    solver = stk.SMC(kernel=stk.MALA(0.2), ladder=Ladder(b), island=island, threshold=1.0)
    noise, bound, state = begun(solver, spread=2.0)
    x = state.x.numpy()
    state, info = solver.step(bound, state, noise)
    log_w = (b[1] * ((x**2).sum(1) / 2 - E(x))).reshape(-1, island)
    mean = np.log(np.exp(log_w).mean(1))
    np.testing.assert_allclose(state.log_weight.numpy(), np.repeat(mean, island), rtol=1e-9)
    u = noise.uniform(0, Stream.SWAP, (), torch.float64).numpy()[::island]
    shares = np.exp(log_w) / np.exp(log_w).sum(1, keepdims=True)
    ancestors = [island * i + j for i in range(2) for j in systematic(shares[i], u[i])]
    assert info["ancestor"].tolist() == ancestors


def test_a_decision_looks_at_all_of_a_proposal_and_mixes_two_rules():
    here = (torch.zeros(4, 2), torch.zeros(4))
    there = (torch.ones(4, 2), torch.tensor([0.0, torch.nan, torch.inf, 0.0]))
    ratio = torch.tensor([-0.4, -0.4, -0.4, -1.1], dtype=torch.float64)
    State = type("State", (tuple,), {"_make": classmethod(lambda cls, v: tuple(v))})
    for c in (0.0, 0.25):
        rate = (1 - c) * ratio.exp().clamp(max=1) + c / (1 + (-ratio).exp())
        rate[1:3] = 0
        for u in (rate - 1e-3, rate + 1e-3):
            found, probability = decide(here, State(there), ratio, u.clamp(min=1e-9), c)
            torch.testing.assert_close(probability, rate)
            accepted = (u < rate) & (rate > 0)
            assert torch.equal(found[0][:, 0].bool(), accepted)


# Discrete states: the proposals in words.


def potts(x):
    return (x[:, 0] * x[:, 1] * 0.7 + (x - 0.3).square().sum(1) * 0.6 + x[:, 2] ** 3 * 0.2).double()


def slopes(x):
    y = torch.tensor(x, requires_grad=True)
    return torch.autograd.grad(potts(y).sum(), y)[0].numpy()


STATES = (-1.0, 0.5, 2.0)


def discrete(solver):
    noise = Noise(11, N, dtype=torch.float64)
    field = stk.Discrete(stk.Energy(potts, (D,)), STATES)
    bound = resolve(field, solver.needs, timed=False)
    state = solver.init(bound, field.initial(N, noise), noise)
    return Draw(noise), bound, state, noise


def worth(grad, row, site, value):
    """What going there lowers the energy by, to first order."""
    return -grad[site] * (value - row[site])


def one_change(grad, row, heat):
    """The probabilities of all changes of one site, in the order of sites and states."""
    every = list(itertools.product(range(D), STATES))
    logits = np.array(
        [worth(grad, row, i, v) / (2 * heat) if v != row[i] else -np.inf for i, v in every]
    )
    p = np.exp(logits - logits.max())
    return every, p / p.sum()


def changed(grad, row, u, heat):
    every, p = one_change(grad, row, heat)
    at = int(np.argmax(np.cumsum(p) > u))
    new = row.copy()
    new[every[at][0]] = every[at][1]
    return new, p[at]


def back(grad, there, here, heat):
    """The probability of the one change from there to here."""
    every, p = one_change(grad, there, heat)
    site = int(np.argmax(there != here))
    return p[every.index((site, here[site]))]


def test_gibbs_with_gradients():
    heat = 1.4
    solver = stk.GibbsWithGradients(heat)
    draw, bound, state, noise = discrete(solver)
    x, rejected = state.x.numpy().copy(), 0
    for step in range(12):
        state, info = solver.step(bound, state, noise)
        u, first = draw.u(step, Stream.PROPOSAL, (3,)), x.copy()
        for row in range(N):
            here, grad = first[row], slopes(first)[row]
            there, by = changed(grad, here, u[row, 0], heat)
            log_q, way = math.log(by), [here, there]
            if u[row, 2] < 0.5:
                there, by = changed(grad, there, u[row, 1], heat)
                log_q += math.log(by)
                way.append(there)
            home = slopes(there[None])[0]
            for a, b in zip(way[:0:-1], way[-2::-1], strict=True):
                log_q -= math.log(back(home, a, b, heat))
            energies = potts(torch.tensor(np.stack([here, there]))).numpy()
            ratio = (energies[0] - energies[1]) / heat - log_q
            assert float(info["accept"][row]) == pytest.approx(math.exp(min(ratio, 0)), rel=1e-8)
            accept = math.log(draw.u(step)[row]) < ratio
            rejected += not accept
            x[row] = there if accept else here
        np.testing.assert_allclose(state.x.numpy(), x)
    assert rejected


def test_discrete_langevin():
    heat, h = 1.4, 1.1
    solver = stk.DiscreteLangevin(h, temperature=heat)
    draw, bound, state, noise = discrete(solver)
    x = state.x.numpy().copy()

    def site_laws(row):
        grad = slopes(row[None])[0]
        logits = np.array(
            [
                [worth(grad, row, i, v) / (2 * heat) - (v - row[i]) ** 2 / (2 * h) for v in STATES]
                for i in range(D)
            ]
        )
        p = np.exp(logits)
        return p / p.sum(1, keepdims=True)

    for step in range(8):
        state, info = solver.step(bound, state, noise)
        u, coin = draw.u(step, Stream.PROPOSAL, (D,)), draw.u(step)
        for row in range(N):
            here, law = x[row].copy(), site_laws(x[row])
            at = [int(np.argmax(np.cumsum(law[i]) > u[row, i])) for i in range(D)]
            there = np.array([STATES[i] for i in at])
            home = site_laws(there)
            was = [STATES.index(v) for v in here]
            ratio = sum(math.log(home[i, was[i]] / law[i, at[i]]) for i in range(D))
            energies = potts(torch.tensor(np.stack([here, there]))).numpy()
            ratio += (energies[0] - energies[1]) / heat
            rate = 0.75 * math.exp(min(ratio, 0)) + 0.25 / (1 + math.exp(-ratio))
            x[row] = there if coin[row] < rate else here
            assert bool((state.x[row].numpy() == x[row]).all())
            told = float(info["accept"][row])
            assert told in (
                pytest.approx(rate, rel=1e-8),
                pytest.approx(math.exp(min(ratio, 0)), rel=1e-8),
            )


def test_distances_between_one_hot_states_are_those_of_their_vectors():
    from scoretk.solvers.discrete import _distances

    x = torch.eye(4, dtype=torch.float64)[None, [1, 3]]
    vectors = torch.eye(4, dtype=torch.float64)
    expected = (x[0][:, None] - vectors[None]).square().sum(-1)
    torch.testing.assert_close(_distances(x, "one-hot")[0], expected)


def test_published_settings():
    du = stk.ULA.du_mordatch()
    assert (du.step_size, du.clip, du.box) == (10.0, 0.01, (0.0, 1.0))
    assert math.sqrt(2 * du.step_size * du.temperature) == pytest.approx(0.005)
    jem = stk.ULA.jem()
    assert (jem.step_size, math.sqrt(2 * jem.temperature)) == (1.0, pytest.approx(0.01))
    ncsn = stk.AnnealedLangevin.ncsn()
    np.testing.assert_allclose(ncsn.levels, np.geomspace(1, 0.01, 10))
    assert (ncsn.steps_per_level, ncsn.step_size, ncsn.denoise) == (100, 1e-5, False)


def test_adjusted_mclmc_takes_the_steps_that_its_length_needs():
    eps, length = 0.4, 1.5

    def one(draw, step, x, _):
        there, _, error = isokinetic(x, unit(draw.z(step)), eps, 4, np.ones(D))
        x, accept = chosen(draw, step, x, there, -error)
        return x, {"accept": accept, "evaluations": 4 * 2}, None

    solver = stk.AdjustedMCLMC(eps, length, jitter=0.0, metric="none")
    noise, bound, state = begun(solver, spread=2.0)
    draw, x = Draw(noise), state.x.numpy().copy()
    for step in range(5):
        state, info = solver.step(bound, state, noise)
        x, told, _ = one(draw, step, x, None)
        np.testing.assert_allclose(state.x.numpy(), x, rtol=1e-8)
        assert info["evaluations"].tolist() == [told["evaluations"]] * N
    assert stk.AdjustedMCLMC()._length_parts() == (Spread(math.pi / 2),)
    assert stk.MCLMC()._length_parts() == (Decorrelation(),)


def test_five_steps_at_each_level_where_nobody_says_how_many():
    """At least: over noise levels as many more as bring the law's width within 2 %."""
    static = resolve(stk.Energy(lambda x: x.square().sum(1), (2,)), {"score"})
    assert len(stk.AnnealedLangevin(4, step_size=0.1).milestones(static)) == 5 * 4
    path = stk.VE(0.5, 0.6)
    timed = resolve(stk.Diffusion(lambda x, t: x, (2,), path, "noise"), {"score"})
    assert len(stk.AnnealedLangevin(32, denoise=False).milestones(timed)) == 5 * 32
    assert len(stk.AnnealedLangevin(2, denoise=False).milestones(timed)) > 5 * 2


def test_techniques_of_ncsnv2():
    """The overlap of the radii of two levels; the step after which the noise that is left is that of the next level."""
    ratio, dim = 1.05, 200
    shift = math.sqrt(2 * dim) * (ratio - 1)
    right = norm.cdf(shift + 3 * ratio) - norm.cdf(shift - 3 * ratio)
    assert stk.ncsnv2_overlap(ratio, dim) == pytest.approx(right, rel=1e-9)
    assert stk.ncsnv2_overlap(stk.ncsnv2_ratio(dim), dim) == pytest.approx(0.5)
    last, gamma, steps = 0.1, 1.2, 5
    eps = stk.ncsnv2_step_size([last * gamma, last], steps)

    def off(size):
        """By how much the variance left differs from that of the level, relative to it."""
        variance = (gamma * last) ** 2
        for _ in range(steps):  # Langevin on N(0, s^2): x' = (1 - eps / s^2) x + sqrt(2 eps) z
            variance = (1 - size / last**2) ** 2 * variance + 2 * size
        return abs(variance / last**2 - 1)

    assert off(eps) <= min(off(q * last**2) for q in np.linspace(0.001, 0.999, 999)) + 1e-6


@pytest.mark.parametrize("steps", [1, 5, 100])
@pytest.mark.parametrize("gamma", [1.01, 1.2, 3.0])
def test_no_step_near_that_of_technique_four_is_better(gamma, steps):
    """To a millionth of it."""
    q = np.float64(stk.ncsnv2_step_size([gamma, 1.0], steps))

    def off(q):
        k = 2 / (2 - q)
        return abs((1 - q) ** (2 * steps) * (gamma**2 - k) + k - 1)

    assert all(off(q * (1 + e)) >= off(q) - 1e-13 for e in (-1e-6, 1e-6) if q * (1 + e) < 1)


def test_draws_of_a_base_are_brought_to_the_first_level():
    solver = stk.AnnealedLangevin((2.0, 0.5), 1, 0.01)
    bound = resolve(TIMED, solver.needs, timed=True)
    x = torch.ones(2, D, dtype=torch.float64)
    t = float(PATH.t(-2 * math.log(2.0)))
    torch.testing.assert_close(solver.start(bound, x, None), x * scales(t)[1] / scales(0.0)[1])


def test_a_corrector_by_the_samples_own_score_goes_no_further_than_the_denoised_data():
    """Where the score is small the step of its rule is cut at s^2, which leads to D with the noise of that step."""
    field = stk.Diffusion(lambda x, t: x / PATH.alpha(t)[:, None] + 1e-3, (D,), PATH, "data")
    solver = stk.ReverseSDE("ancestral", grid=GRID[1:3], corrector=1, snr=0.5, rule="sample")
    noise = Noise(11, N, dtype=torch.float64)
    bound = resolve(field, solver.needs, timed=True)
    x = noise.normal(0, Stream.USER, (D,), torch.float64)
    state = solver.step(bound, solver.init(bound, x, noise), noise)[0]
    alpha, sigma = scales(GRID[2])
    y, s = state.x / alpha, sigma / alpha
    z = torch.tensor(Draw(noise).z(1))
    right = alpha * (y + 1e-3 + math.sqrt(2) * s * z)
    torch.testing.assert_close(solver.step(bound, state, noise)[0].x, right)


def test_an_energy_that_falls_far_ends_no_trajectory():
    """A chain comes home from 300 standard deviations; one that goes out so far diverges."""
    kernel = stk.NUTS(0.3, metric="none", max_depth=4)
    home = stk.sample(gaussian(dim=2), kernel, init=torch.full((8, 2), 300.0), steps=1)
    assert not home.stats["diverging"].any()
    assert (home.final.abs() < 290).all()
    cliff = stk.Energy(lambda x: 1e5 * torch.relu(x.norm(dim=1) - 1), (2,))
    out = stk.sample(cliff, kernel, init=torch.zeros(8, 2), steps=1)
    assert out.stats["diverging"].all()


@pytest.mark.parametrize(
    "solver",
    [
        *(s for s in EXAMPLES.values() if {"energy", "score"} == s.needs and not is_grid(s)),
        stk.PreconditionedLangevin(0.3, metric="none", adjusted=False),
    ],
    ids=repr,
)
def test_the_energy_that_a_step_reports_is_that_of_its_position(solver):
    noise, bound, state = begun(solver, spread=2.0)
    for _ in range(4):
        state, info = solver.step(bound, state, noise)
        if "energy" in info:
            torch.testing.assert_close(info["energy"], bound.energy(state.x))


def test_a_flow_or_a_reverse_sde_begins_at_the_scale_of_its_first_time():
    for t in (0.0, 0.2):
        solver = stk.ReverseSDE("ancestral", grid=(t, 0.6, 0.9))
        bound = resolve(TIMED, solver.needs, timed=True)
        x = torch.ones(2, D, dtype=torch.float64)
        torch.testing.assert_close(solver.start(bound, x, None), x * scales(t)[1] / scales(0.0)[1])


@pytest.mark.parametrize("kernel", [stk.MALA(0.1, temperature=2.0), stk.ULA(0.1), stk.ULA])
def test_a_kernel_inside_another_solver_is_exact_at_temperature_1(kernel):
    for outer in (stk.AIS, stk.SMC, stk.ParallelTempering):
        with pytest.raises(InvalidArgument, match="kernel"):
            outer(kernel=kernel)
    with pytest.raises(InvalidArgument, match="kernel"):
        stk.log_partition(gaussian(dim=2), kernel=kernel)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_resampling_keeps_the_mean_weight_of_each_island_also_of_one_with_dead_chains(threshold):
    """Whatever the weights are and however many of them are 0: chains go on from such that have a weight, where
    any has, and those that do are no longer dead."""
    island, islands = 6, 40
    n, rng = island * islands, np.random.default_rng(5)
    logs = rng.normal(size=(islands, island)) * rng.choice([0.1, 2.0], size=(islands, 1)) + 3
    dead = rng.uniform(size=(islands, island)) < rng.choice([0.0, 0.3, 1.0], size=(islands, 1))
    shown = np.where(dead, -np.inf, logs)
    noise, solver = Noise(4, n, dtype=torch.float64), stk.SMC(island=island, threshold=threshold)
    step = torch.zeros((), dtype=torch.int64)
    x, names = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) + 1000
    state = AISState(x, torch.tensor(logs).flatten(), torch.tensor(dead).flatten(), names, step)
    found = solver._resample(state, noise)
    after = np.where(found.dead, -np.inf, found.log_weight).reshape(islands, island)
    source = found.x[:, 0].long().reshape(islands, island).numpy()
    assert torch.equal(found.ancestor, names[source.flatten()])
    with np.errstate(divide="ignore"):
        means = [np.log(np.exp(w).mean(1)) for w in (shown, after)]
    np.testing.assert_allclose(*means, rtol=1e-12)
    kinds = set()
    for i in range(islands):
        w = np.exp(shown[i]) / max(np.exp(shown[i]).sum(), 1e-300)
        hopeless = dead[i].all()
        due = not hopeless and 1 / (island * (w**2).sum()) < threshold
        kinds.add((bool(hopeless), bool(due), bool(dead[i].any())))
        if due:
            assert (shown.flatten()[source[i]] > -np.inf).all()
            assert not found.dead.reshape(islands, island)[i].any()
            assert np.ptp(after[i]) == 0
        else:
            assert source[i].tolist() == list(range(i * island, (i + 1) * island))
            np.testing.assert_array_equal(after[i], shown[i])
    assert len(kinds) >= 3


def on_corners(x):
    return x.flatten(1).sum(1)


SITES = {
    "numbers": stk.Discrete(stk.Energy(on_corners, (D,)), STATES),
    "one-hot": stk.Discrete(stk.Energy(on_corners, (2, 3)), "one-hot"),
    "spins": ising(2),
}
ON_SITES = {
    "GibbsWithGradients": stk.GibbsWithGradients(),
    "DiscreteLangevin": stk.DiscreteLangevin(0.3),
    "BlockGibbs": stk.BlockGibbs(),
    "SwendsenWang": stk.SwendsenWang(),
    "ParallelTempering": stk.ParallelTempering(stk.GibbsWithGradients(), replicas=2),
}
OF_LATTICES = ("BlockGibbs", "SwendsenWang")
ON_STATES = [(k, f) for k in ON_SITES for f in SITES if k not in OF_LATTICES or f == "spins"]


@pytest.mark.parametrize(("kernel", "sites"), ON_STATES)
def test_a_kernel_on_states_begins_in_them_and_nowhere_between(kernel, sites):
    """Rounding is taken off; any one entry that is further from its state than that is refused."""
    solver, field = ON_SITES[kernel], SITES[sites]
    noise = Noise(3, 2, dtype=torch.float64)
    bound = resolve(field, solver.needs, timed=False)
    x = field.initial(2, noise).double()
    assert torch.equal(solver.init(bound, x + 1e-9, noise).x, x)
    for off, entry in itertools.product((1e-3, -0.03, 0.2), range(x[0].numel())):
        between = x.clone()
        between[1].view(-1)[entry] += off
        with pytest.raises(InvalidArgument, match="initial"):
            solver.init(bound, between, noise)


@pytest.mark.parametrize(
    "solver",
    [stk.HMC(0.8, leapfrogs=3), stk.ChEES(0.8, length=4.0), stk.AdjustedMCLMC(4.0, leapfrogs=4)],
    ids=repr,
)
def test_a_trajectory_to_where_there_is_no_number_diverges(solver):
    """Beyond x_0 = 0.8 the energy is not a number; a chain that went there, and none else, is said to diverge."""
    went = set()

    def told(x):
        beyond = x[:, 0] > 0.8
        went.update(beyond.nonzero().flatten().tolist())
        return torch.where(beyond, torch.nan, energy(x))

    noise, bound, state = begun(solver, stk.Energy(told, (D,)), spread=0.3)
    went.clear()
    _, info = solver.step(bound, state, noise)
    assert info["diverging"].nonzero().flatten().tolist() == sorted(went)
    assert 0 < len(went) < N


def test_islands_are_whole():
    """Chains that are as many as islands have, but parts of them, are refused."""
    chains = torch.arange(9)
    check_islands(3, torch.zeros(6, 2), Noise(0, chains[3:]))
    for some in (chains[1:7], chains[[0, 1, 2, 6, 7, 5]], chains[2:8]):
        with pytest.raises(InvalidArgument, match="whole islands"):
            check_islands(3, torch.zeros(6, 2), Noise(0, some))


def test_rows_of_replicas_are_said_to_be_of_the_chain_whose_noise_they_have():
    noise = NestedNoise(Noise(3, torch.tensor([8, 2, 5])), 4, replicas=2)
    rows = noise.normal(1, Stream.PROPOSAL, (2,))
    for row, chain in zip(rows, noise.chains.tolist(), strict=True):
        alone = NestedNoise(Noise(3, torch.tensor([chain])), 4, replicas=2)
        assert any(torch.equal(row, own) for own in alone.normal(1, Stream.PROPOSAL, (2,)))
