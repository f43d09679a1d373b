r"""Posteriors of the Inference Gym, from the user's folder of its data.

The folder holds `datasets.npz`, with the arrays of the data sets as `dataset/NAME`, and
`ground_truth.npz`, with means, their standard errors and standard deviations as
`posterior/IDENTITY_PARAMETER_MEAN` and its kin; both may lie in a folder `inference_gym` of it.
Nothing of either is part of this package.

Energies are of unconstrained coordinates u and include the Jacobian of the map to the parameters,
which are what is judged: s = softplus(u) for the scales of the Brownian motion and the volatility,
exp(u) for those of the regression, 2 / (1 + exp(-u)) - 1 for the persistence of the volatility.

Of the Brownian motion truths are exact: given both scales it is a normal law, and these are summed
over. Of the others E x^2 is the square of the mean plus that of the standard deviation, of the Gym's own long runs.
What these do not have is Var x^2: of the German credit it is by a long run of our own
(`scoretk.demo.bench.spreads`), of the others that of a normal with the same mean m and deviation s,
4 m^2 s^2 + 2 s^4. This is too small for scales, whose tails are heavier (for those of the German
credit by up to 16 times), so that errors of the volatility's look larger than they are.

References:
    Sountsov, Radul and contributors, "Inference Gym" (2020), for models, data and ground truths.
    Kim, Shephard, Chib, "Stochastic volatility: likelihood inference and comparison with ARCH
    models" (1998).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, pad, softplus

from scoretk.core.devices import constant_like
from scoretk.demo.bench import spreads
from scoretk.demo.bench.published import BROWNIAN, GERMAN_CREDIT, ITEM_RESPONSE, VOLATILITY
from scoretk.demo.bench.recursion import autoregressive
from scoretk.demo.bench.target import Moments, Target, unchanged
from scoretk.errors import InvalidArgument

__all__ = ["brownian", "german_credit", "item_response", "volatility"]

Arrays = dict[str, NDArray[Any]]
LOG_SCALES = (-14.0, 8.0, 221)
"""The grid of both scales of the Brownian motion: least, greatest, how many."""
ROWS, ROWS_ACCELERATOR = 4, 1024
"""How many chains' answers are looked at together."""


@dataclass(frozen=True, eq=False)
class Brownian:
    """A Brownian motion of 30 steps, seen with noise in the first and the last ten; scales unknown.

        log s, log r ~ N(0, 2^2),    x_t ~ N(x_(t-1), s^2), x_(-1) = 0,    y_t ~ N(x_t, r^2)

    Args:
        seen: y, `(30,)`, NaN where nothing was seen.
    """

    seen: Tensor

    observed: int = field(init=False)

    def __post_init__(self) -> None:  # counted once: a device would wait for it in each energy
        object.__setattr__(self, "observed", int((~self.seen.isnan()).sum()))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2 + len(self.seen),)

    def parameters(self, u: Tensor) -> Tensor:
        """(s, r, x_0, ...), `(batch, 32)`."""
        return torch.cat([softplus(u[:, :2]), u[:, 2:]], 1)

    def moments(self) -> Moments:
        r"""Those of the squares of (s, r, x_0, ...), by sums over a grid of (log s, log r).

        Given both, x is normal. With K the covariance of x / s before anything was seen, k_i its
        columns at what was seen, and `K_yy = U diag(e) U^T`,

            w = U^T y,    q_i = U^T k_i,    t = s^2 e + r^2,
            y ~ N(0, U diag(t) U^T),    E x_i = s^2 q_i^T (w / t),
            Var x_i = s^2 K_ii - s^4 q_i^T (q_i / t).
        """
        there = ~self.seen.isnan()
        order = torch.arange(1, len(self.seen) + 1, dtype=torch.float64)
        covariance = torch.minimum(order[:, None], order)
        values, vectors = torch.linalg.eigh(covariance[there][:, there])
        w, q = vectors.T @ self.seen[there].double(), covariance[:, there] @ vectors
        logs = torch.linspace(*LOG_SCALES, dtype=torch.float64)
        log_s, log_r = (v.flatten() for v in torch.meshgrid(logs, logs, indexing="ij"))
        s, r = (2 * log_s).exp(), (2 * log_r).exp()  # squares
        t = s[:, None] * values + r[:, None]
        density = -(w.square() / t + t.log()).sum(1) / 2 - (log_s.square() + log_r.square()) / 8
        share = density.softmax(0)
        mean = s[:, None] * (w / t @ q.T)
        variance = s[:, None] * covariance.diagonal() - s[:, None] ** 2 * (t.reciprocal() @ q.T**2)
        second = mean**2 + variance
        fourth = mean**4 + 6 * mean**2 * variance + 3 * variance**2
        scales = torch.stack([s, r], 1)
        square, power = (
            share @ torch.cat(columns, 1)
            for columns in ((scales, second), (scales.square(), fourth))
        )
        return Moments(
            square, power - square**2, "exact: sums over both scales", None, self.parameters
        )

    def energy(self, u: Tensor) -> Tensor:
        """The negative log posterior up to a constant, `(batch,)`."""
        log_s, x = softplus(u[:, :2]).log(), u[:, 2:]
        prior = (log_s + log_s.square() / 8 - logsigmoid(u[:, :2])).sum(1)
        y = constant_like(self.seen, u)
        steps = (x - pad(x[:, :-1], (1, 0))).square().sum(1)
        missed = torch.where(y.isnan(), 0.0, x - y).square().sum(1)
        log_step, log_noise = log_s[:, 0], log_s[:, 1]
        return (
            prior
            + len(y) * log_step
            + (-2 * log_step).exp() * steps / 2
            + self.observed * log_noise
            + (-2 * log_noise).exp() * missed / 2
        )


@dataclass(frozen=True, eq=False)
class SparseLogistic:
    """A logistic regression with a sparse prior.

        g, l_i ~ Gamma(1/2, 1/2),    w_i ~ N(0, 1),    logit P(y = 1) = sum_i z_i g l_i w_i

    Its coordinates are (log g, log l, w).

    Args:
        features: z, `(n, k)`, a column of ones among them.
        labels: y, `(n,)`, 0 or 1.
    """

    features: Tensor
    labels: Tensor

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1 + 2 * self.features.shape[1],)

    def _scales(self) -> int:
        return 1 + self.features.shape[1]

    def parameters(self, u: Tensor) -> Tensor:
        """(g, l, w), `(batch, 51)`."""
        return torch.cat([u[:, : self._scales()].exp(), u[:, self._scales() :]], 1)

    def energy(self, u: Tensor) -> Tensor:
        """The negative log posterior up to a constant, `(batch,)`."""
        log_scales, w = u[:, : self._scales()], u[:, self._scales() :]
        prior = (log_scales.exp() - log_scales).sum(1) / 2 + w.square().sum(1) / 2
        z, y = constant_like(self.features, u), constant_like(self.labels, u)
        weights = (log_scales[:, :1] + log_scales[:, 1:]).exp() * w
        return prior + softplus(weights @ z.T).sum(1) - weights @ (z.T @ y)


@dataclass(frozen=True, eq=False)
class ItemResponse:
    """Answers of students to questions: `logit P(right) = m + a_i - b_j`.

        m ~ N(3/4, 1),    a_i, b_j ~ N(0, 1)

    Its coordinates are (m, b, a).

    Args:
        asked: Whether student i was asked question j, `(students, questions)`.
        right: 1 where the answer was right, else 0, like it.
    """

    asked: Tensor
    right: Tensor

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1 + sum(self.asked.shape),)

    def energy(self, u: Tensor) -> Tensor:
        """The negative log posterior up to a constant, `(batch,)`."""
        asked, right = constant_like(self.asked, u), constant_like(self.right, u)
        mean, questions = u[:, :1], u[:, 1 : 1 + asked.shape[1]]
        students = u[:, 1 + asked.shape[1] :] + mean
        prior = (mean - 0.75).square().sum(1) / 2 + u[:, 1:].square().sum(1) / 2
        told = students @ right.sum(1) - questions @ right.sum(0)
        answers = [
            (softplus(a[:, :, None] - b[:, None]) * asked).sum((1, 2))
            for a, b in _parts(students, questions)
        ]
        return prior + torch.cat(answers) - told

    def score(self, u: Tensor) -> Tensor:
        """The score, like u: answers given beside those expected."""
        asked, right = constant_like(self.asked, u), constant_like(self.right, u)
        mean, questions = u[:, :1], u[:, 1 : 1 + asked.shape[1]]
        students = u[:, 1 + asked.shape[1] :]
        by_student, by_question = list[Tensor](), list[Tensor]()
        for a, b in _parts(students + mean, questions):
            expected = (a[:, :, None] - b[:, None]).sigmoid_().mul_(asked)
            by_student.append(expected.sum(2))
            by_question.append(expected.sum(1))
        able = right.sum(1) - torch.cat(by_student)
        hard = torch.cat(by_question) - right.sum(0)
        return torch.cat(
            [0.75 - mean + able.sum(1, keepdim=True), hard - questions, able - students], 1
        )


def _parts(students: Tensor, questions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both in parts of a few rows, whose tables of answers stay in a processor's cache.

    On a device of many: each part is kernels of its own.
    """
    rows = ROWS if students.device.type == "cpu" else ROWS_ACCELERATOR
    return list(zip(students.split(rows), questions.split(rows), strict=True))


@dataclass(frozen=True, eq=False)
class Volatility:
    """Stochastic volatility, an AR(1) process h about a mean m, in its innovations z ~ N(0, I).

        (1 + phi) / 2 ~ Beta(20, 3/2),    m ~ Cauchy(5),    s ~ half-Cauchy(2)
        h_0 = s z_0 / sqrt(1 - phi^2),    h_t = phi h_(t-1) + s z_t,    r_t ~ N(0, exp(m + h_t))

    Args:
        returns: r, `(n,)`.
    """

    returns: Tensor

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3 + len(self.returns),)

    def parameters(self, u: Tensor) -> Tensor:
        """(phi, m, s, m + h), `(batch, 3 + n)`."""
        phi, shock = 2 * u[:, :1].sigmoid() - 1, softplus(u[:, 2:3])
        innovations = u[:, 3:]
        spread = (
            -(logsigmoid(u[:, :1]) + logsigmoid(-u[:, :1])) / 2
        ).exp() / 2  # phi may round to 1
        first = innovations[:, :1] * spread
        h = autoregressive(shock * torch.cat([first, innovations[:, 1:]], 1), phi)
        return torch.cat([phi, u[:, 1:2], shock, h + u[:, 1:2]], 1)

    def energy(self, u: Tensor) -> Tensor:
        """The negative log posterior up to a constant, `(batch,)`."""
        values = self.parameters(u)
        mean, shock, log_variance = values[:, 1], values[:, 2], values[:, 3:]
        prior = (
            -20 * logsigmoid(u[:, 0])
            - 1.5 * logsigmoid(-u[:, 0])
            + (mean / 5).square().log1p()
            + (shock / 2).square().log1p()
            - logsigmoid(u[:, 2])
            + u[:, 3:].square().sum(1) / 2
        )
        squares = constant_like(self.returns, u).square()
        return prior + (log_variance + squares * (-log_variance).exp()).sum(1) / 2


def _arrays(data: Path | None, name: str) -> Arrays:
    """The arrays of one of the folder's files.

    Raises:
        InvalidArgument: There is no folder, or not this file in it.
    """
    wanted = "the folder with datasets.npz and ground_truth.npz of the Inference Gym"
    if data is None:
        raise InvalidArgument("data", None, wanted, "Name it: scoretk bench --data FOLDER")
    for path in (data / name, data / "inference_gym" / name):
        if path.is_file():
            with np.load(path) as file:
                return dict(file)
    raise InvalidArgument("data", str(data), wanted)


def _part(arrays: Arrays, prefix: str) -> Arrays:
    found = {
        k.removeprefix(f"{prefix}/"): v for k, v in arrays.items() if k.startswith(f"{prefix}/")
    }
    if not found:
        raise InvalidArgument(
            "data", sorted({k.partition("/")[0] for k in arrays}), f"arrays of {prefix}"
        )
    return found


def _truth(
    data: Path | None,
    name: str,
    parts: tuple[str, ...],
    of: Any,
    spread: tuple[float, ...] | None = None,
) -> Moments:
    """The squares by the Gym's means and deviations.

    Args:
        data: The user's folder.
        name: The posterior's name.
        parts: The parameters side by side, as they are named.
        of: The map from the field's coordinates to these.
        spread: Var x^2, None for that of normal marginals.
    """
    truth = _part(_arrays(data, "ground_truth.npz"), name)

    def row(kind: str) -> Tensor:
        return torch.from_numpy(
            np.concatenate([np.atleast_1d(truth[f"{part}_{kind}"]) for part in parts])
        ).double()

    mean, error, deviation = row("MEAN"), row("MEAN_STANDARD_ERROR"), row("STANDARD_DEVIATION")
    normal = 4 * mean.square() * deviation.square() + 2 * deviation**4
    return Moments(
        mean.square() + deviation.square(),
        normal if spread is None else torch.tensor(spread, dtype=mean.dtype),
        f"means and deviations of the Inference Gym; Var x^2 {'of normals' if spread is None else 'by a run of our own'}",
        2 * mean.abs() * error,
        of,
    )


def brownian(data: Path | None) -> Target:
    """`Brownian`, with unknown scales and a missing middle."""
    arrays = _part(_arrays(data, "datasets.npz"), "brownian_motion_missing_middle_observations")
    seen = arrays["OBSERVED_LOC"]
    field = Brownian(torch.from_numpy(seen))
    return Target("brownian", field, field.moments(), BROWNIAN)


def german_credit(data: Path | None) -> Target:
    """`SparseLogistic` on the numeric German credit data, standardised, with a constant."""
    arrays = _part(_arrays(data, "datasets.npz"), "german_credit_numeric")
    x = torch.from_numpy(arrays["X"])
    x = (x - x.mean(0)) / x.std(0, correction=0)
    field = SparseLogistic(
        torch.cat([x, x.new_ones(len(x), 1)], 1), torch.from_numpy(arrays["y"]) - 1
    )
    name = "german_credit_numeric_sparse_logistic_regression"
    parts = ("IDENTITY_GLOBAL_SCALE", "IDENTITY_LOCAL_SCALES", "IDENTITY_UNSCALED_WEIGHTS")
    truth = _truth(data, name, parts, field.parameters, spreads.GERMAN_CREDIT)
    return Target("german-credit", field, truth, GERMAN_CREDIT)


def item_response(data: Path | None) -> Target:
    """`ItemResponse` on the synthetic answers of 400 students to 100 questions."""
    name = "synthetic_item_response_theory"
    arrays = _part(_arrays(data, "datasets.npz"), name)
    students, questions = (torch.from_numpy(arrays[f"{n}_IDS"]) for n in ("STUDENT", "QUESTION"))
    asked = torch.zeros(int(students.max()) + 1, int(questions.max()) + 1, dtype=torch.float64)
    right = asked.clone()
    asked[students, questions] = 1
    right[students, questions] = torch.from_numpy(arrays["CORRECT"]).double()
    field = ItemResponse(asked, right)
    parts = (
        "IDENTITY_MEAN_STUDENT_ABILITY",
        "IDENTITY_QUESTION_DIFFICULTY",
        "IDENTITY_CENTERED_STUDENT_ABILITY",
    )
    return Target("item-response", field, _truth(data, name, parts, unchanged), ITEM_RESPONSE)


def volatility(data: Path | None) -> Target:
    """`Volatility` of the logarithmic returns of S&P 500, about their mean."""
    prices = _part(_arrays(data, "datasets.npz"), "sp500_closing_prices")["CLOSING_PRICES"]
    returns = torch.from_numpy(np.diff(np.log(prices)))
    field = Volatility(returns - returns.mean())
    parts = (
        "IDENTITY_PERSISTENCE_OF_VOLATILITY",
        "IDENTITY_MEAN_LOG_VOLATILITY",
        "IDENTITY_WHITE_NOISE_SHOCK_SCALE",
        "IDENTITY_LOG_VOLATILITY",
    )
    truth = _truth(data, "stochastic_volatility_log_sp500", parts, field.parameters)
    return Target("volatility", field, truth, VOLATILITY)
