"""Public functions, and methods of public classes, answer to odd arguments (`tests/odd.py`) as they did (`tests/recorded.py`)."""

import contextlib
import contextvars
import copy
import importlib
import inspect
import math
import pkgutil
from itertools import islice

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch import nn

import scoretk as stk
from scoretk.conformance.bench import bench_for, steep_for
from scoretk.conformance.subject import Case, Subject
from scoretk.core.cost import Cost
from scoretk.core.noise import Noise
from scoretk.core.sealed import to_bytes
from scoretk.diagnostics.halves import halves_of
from scoretk.diagnostics.verdict import judge
from scoretk.diagnostics.weights import weights
from scoretk.fields.base import as_base, plain_base, standard_normal
from scoretk.fields.bridge import bridge
from scoretk.fields.convert import PREDICTIONS
from scoretk.fields.freelaws import free_law
from scoretk.fields.layout import layout_of
from scoretk.fields.posterior import POSTERIOR_METHODS
from scoretk.fields.posterior.likelihoods import as_likelihood
from scoretk.fields.posterior.method import PriorMoments
from scoretk.fields.protocols import is_field, is_timed, offers
from scoretk.fields.resolve import resolve
from scoretk.fields.supports import bijection, ordered
from scoretk.fields.variables import variables_of
from tests.odd import (
    ARRAYS,
    CONDITIONS,
    KINDS,
    LINEAR,
    PLAIN,
    TENSORS,
    THINGS,
    WAVE,
    WELL,
    Plain,
    asked,
    bad,
    network,
    or_its_error,
    outcome,
    outcomes,
    public,
    quadratic,
    shown,
    some,
)
from tests.recorded import recorded, summed

ROOMS = ("core", "fields", "diagnostics", "plugins")
APART = {
    "core": {
        "arvizplots",
        "compiling",  # needs the compiler
        "files",
        "inferencedata",
        "locks",
        "memory",
        "noise_kernel",
        "versions",
        "warned",
    },
    "fields": {"pretrained"},
    "diagnostics": {"plot"},
    "plugins": {"containment", "discovery", "models", "solvers", "targets", "catalog"},
}
"""Modules of functions that write files, run a compiler or say what this machine has."""
ALONE = {
    "core.anatomy.key_of",  # where an object lies
    "core.anatomy.names_in",
    "core.arguments.device",  # the devices that there are
    "core.anatomy.parts",
    "core.anatomy.walk",
    "core.arrayfiles.read_array",
    "core.columns.tell_the_compiler",
    "core.dependencies.required",
    "core.sealed.open_sealed",
    "core.sealed.read_sealed",
    "core.sealed.write_sealed",
    "diagnostics.discrepancies.classifier_test",  # fits a network
    "fields.variables.outside",
    "fields.foreign.owners",
    "fields.protocols.drawn",  # marks what it is given
    "core.anatomy.learning",
    "core.devices.copies_noted",
}
"""Functions whose answers are of this process, or are files."""


def functions(room):
    """The public functions of a room that take something, by module and name."""
    package, found = importlib.import_module(f"scoretk.{room}"), {}
    for module in pkgutil.walk_packages(package.__path__, f"scoretk.{room}."):
        short = module.name.removeprefix("scoretk.")
        if short.split(".")[1] in APART.get(room, ()):
            continue
        part = importlib.import_module(module.name)
        for name in sorted(getattr(part, "__all__", ())):
            made = getattr(part, name)
            if inspect.isfunction(made) and made.__module__ == module.name:
                found[f"{short}.{name}"] = made
    return {name: made for name, made in found.items() if name not in ALONE}


MOMENTS = [
    PriorMoments(
        PLAIN,
        lambda u: 0.5 * u,
        torch.tensor(a).double(),
        torch.tensor([0.9, 0.5, 0.2, s]).double(),
    )
    for a, s in ((0.4, 0.1), (1.0, 0.0), (0.0, 1.0))
]
HALVES = [
    halves_of(x)
    for x in (
        some(6, 20, 3),
        some(20, 9, 3, seed=1).cumsum(1),
        torch.ones(6, 8, 3).double(),
        bad(some(18, 12, 3, seed=2)),
    )
]
CHAINS = [
    some(6, 50, 3).cumsum(1) / 8,
    some(6, 51, seed=1).float(),
    some(2, 8, 2, 3, seed=2),
    some(1, 40, 2, seed=3),
    some(6, 20, 2, seed=4).round(),
    torch.ones(4, 8, 2).double(),
    bad(some(4, 12, 2, seed=5)),
    some(4, 1, 2, seed=6),
    some(4, 3, 2, seed=6),
    some(4, 4, 2, seed=6),
    torch.cat([some(4, 9, 2), torch.ones(4, 9, 1).double()], 2),
    some(0, 9, 2),
    some(4, 0, 2),
    torch.arange(40).reshape(4, 10),
    1e200 * some(4, 9, 2, seed=7),
    1e9 + some(4, 9, 2, seed=7),
]
DRAWS = [
    stk.Draws(x=x, final=x[:, -1], status=status, failed_at=status - 1, stats=stats)
    for x, status, stats in (
        (some(5, 9, 2), torch.tensor([0, 0, 3, 0, 0]), {}),
        (some(4, 9, 2), torch.zeros(4).long(), {"accept": torch.full((4, 9), 0.5)}),
    )
]
KEPT = [
    stk.Draws(
        x=None,
        final=x[:, -1],
        status=torch.zeros(6).long(),
        failed_at=torch.full((6,), -1),
        mean=1e6 + 4 * x[:, 1],
        var=x[:, 2].square() + 1,
        half_mean=1e6 + 4 * x[:, 3],
        half_var=x[:, 4].square(),
        half_draws=torch.tensor([[10, 9]]).expand(6, 2),
        provenance={"kept": 19},
    )
    for x in (some(6, 5, 2), some(6, 5, 2).float())
]
PAIRS = [
    some(40, 2),
    some(40, 2).float() + 0.25,
    some(30, 2, seed=1).round(),
    some(9, 2, seed=2),
    some(1, 2, seed=3),
    torch.ones(12, 2).double(),
    bad(some(12, 2, seed=4)),
    some(12, 2, 3, seed=5),
    some(12, seed=6),
    some(12, 2, seed=7) * 1e9,
]
RANKED = [
    some(40, 9, 2),
    some(40, 9, 2, seed=1).float().round(),
    some(40, 1, 2, seed=2),
    some(30, 4, 2, seed=3),
    torch.ones(40, 3, 2).double(),
    some(40, 3, 2, 3, seed=4),
]
FIELDS = [
    *THINGS[:8],
    stk.guided(WAVE, 2.0, WAVE),
    stk.product(WELL, stk.Score(lambda x: -x, (3,))),
]
LAWS = [
    td.Independent(td.Normal(torch.ones(3), 2.0), 1),
    td.Independent(td.Gamma(torch.ones(3), 2.0), 1),
    td.Normal(torch.zeros(3), 2.0),
    td.Gamma(torch.ones(3), 2.0),
    td.Categorical(torch.ones(3) / 3),
    td.MultivariateNormal(torch.zeros(3), torch.eye(3)),
    td.Uniform(torch.zeros(3), 2.0),
    td.Laplace(0.0, 1.0),
]
LIKELIHOODS = [LINEAR, lambda x: -(x - 1).square().sum(1), WELL]
EXACT_X = [PLAIN, PLAIN.float(), bad(PLAIN), PLAIN[:0]]
DISTRIBUTION = dict.fromkeys(("d", "distribution"), LAWS)
NUMBER = [0.5, 0.0, -1.0, 3, True, math.inf, math.nan, "1", None, torch.tensor(0.25), np.float32(2)]
ROWS = [torch.tensor([0.0, 1.0, 2.5, -1.0]).double(), torch.arange(4)]
CHOSEN = [torch.tensor([True, False, True, False]), torch.zeros(4) > 0]
STATE_ROWS = [torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), torch.ones(2, 3).double()]
LATTICE = [np.zeros(2, bool), np.array([True, False])]
USUAL = {
    "core.anatomy.is_array": {"kind": [torch.Tensor, np.ndarray, np.float32, list, object, int]},
    "core.anatomy.check_place": {"field": FIELDS},
    "core.arguments.conditions": {"rows": [4, None, 1, 3], "value": CONDITIONS},
    "core.arguments.count": {"value": [2, *NUMBER, 2**63], "least": [0, 2, 3]},
    "core.arguments.event_shape": {"value": [(2, 3), (), [4], (0,), 3, (True,), (2.0,)]},
    "core.arguments.finite": {"value": NUMBER},
    "core.arguments.flag": {"value": [True, False, 1, 0, None]},
    "core.arguments.float_dtype": {"value": [torch.float32, torch.float64, torch.float16, "x"]},
    "core.arguments.function": {"value": [quadratic, torch.sin, Plain, Plain(), nn.Linear(1, 1)]},
    "core.arguments.integer": {
        "value": [2, 0, -1, 7, 2**63, 2**63 - 1, *NUMBER],
        "below": [2**63, 3, 8],
    },
    "core.arguments.names": {"value": ["a", ["a", "b"], ("a", 2), {"b"}, "", None, []]},
    "core.arguments.numbers": {"value": [[1, 2.5], (3,), PLAIN[0], 2, [], [math.nan], ["a"]]},
    "core.arguments.option": {"value": ["energy", "enrgy", 3], "known": [("energy", "score")]},
    "core.arguments.pair": {"value": [(1, 2.5), [2, 1], (1,), (1, 1), (1, math.inf), PLAIN[0, :2]]},
    "core.arguments.positive": {"value": NUMBER},
    "core.arguments.tensor_like": {
        "value": [PLAIN, PLAIN.float(), PLAIN.tolist(), [[1, 2, 3]], bad(PLAIN), 3, "x"],
        "shape": [(None, 3), (4, 3), (4, None), (), (None, 2)],
    },
    "core.arguments.a_row_each": {
        "value": [PLAIN, PLAIN[:1], PLAIN[0], 3],
        "shape": [(3,), (), (2,)],
        "rows": [4, None, 3, 1],
    },
    "core.cost.together": {"parts": [[Cost(energy=2), Cost(energy=1, score=3)], [], [Cost()]]},
    "core.devices.flags_like": {"flags": [PLAIN > 0]},
    "core.devices.on": {"constant": TENSORS[:3]},
    "core.identity.weights_digest": {"weights": [[PLAIN], [PLAIN, PLAIN.float()], []]},
    "core.identity.tensor_digest": {"tensors": [{"a": PLAIN}, {"b": PLAIN, "a": PLAIN[0]}, {}]},
    "core.identity.stable_text": {"text": ["<a object at 0x7f01>", "a", "0x12 and 0x13"]},
    "core.identity.is_among": {
        "way": ["field.net", "field", "field.net.weight", "fiel", "solver"],
        "ways": [("field.net",), ("field", "solver"), ()],
    },
    "core.identity.differences": {
        "theirs": [{"x": "1", "k": "2"}, {}, {"k": "3"}],
        "ours": [{"x": "1", "k": "3"}, {}, {"x": "2"}],
    },
    "core.noise.philox4x32": {
        "counter": [(1, 2, 3, 4), (0, 0, 0, 0)],
        "key": [(5, 6), (2**32 - 1, 0)],
    },
    "core.noise.derive": {"seed": [0, 3, 2**63, 2**64 - 1]},
    "core.rows.select_rows": {"chosen": CHOSEN, "new": TENSORS[:4], "old": [-PLAIN]},
    "core.rows.across": {"values": [*ROWS, PLAIN.new_tensor(2.0)]},
    "core.rows.row_product": {"matrix": [some(3, 3), PLAIN[:3]]},
    "core.rows.add_scaled": {"y": [-PLAIN], "factor": [0.5, PLAIN.new_tensor(2.0), *ROWS]},
    "core.sealed.from_bytes": {"content": [to_bytes({"a": PLAIN}), b"", b"x", b"\0" * 8]},
    "core.sealed.to_bytes": {
        "tensors": [{"a": PLAIN, "b": CHOSEN[0]}],
        "metadata": [None, {"k": "v"}],
    },
    "core.sealed.plain_json": {
        "text": ['{"a": [1, 2.5, null]}', b"[]", "NaN", '{"a": 1, "a": 2}', "{"]
    },
    "core.sealed.check_header": {"found": [{"a": 1}, {"b": 1}, {"a": -1}, [], None]},
    "core.sealed.is_count": {"value": [3, 0, -1, True, 2.0, 2**63], "most": [2**63 - 1, 2]},
    "diagnostics.calibration.sbc_ranks": {"truth": [some(40, 2, seed=9)], "draws": RANKED},
    "diagnostics.calibration.sbc_test": {
        "truth": [some(40, 2, seed=9)],
        "draws": RANKED,
        "permutations": [20],
        "level": [0.05, 0.5, 0.0, 1.0],
    },
    "diagnostics.calibration.tarp_ranks": {
        "truth": [some(40, 2, seed=9)],
        "draws": RANKED,
        "references": [None, some(40, 2, seed=8), some(3, 2)],
    },
    "diagnostics.calibration.tarp_test": {
        "truth": [some(40, 2, seed=9)],
        "draws": RANKED,
        "references": [None, some(40, 2, seed=8), some(3, 2)],
        "permutations": [20],
        "level": [0.05, 0.5, 0.0, 1.0],
    },
    "diagnostics.calibration.rank_band": {
        "n": [20, 1, 7, 0],
        "draws": [9, 1, 30],
        "simulations": [50],
        "level": [0.05, 0.5, 0.0],
    },
    "diagnostics.convergence.ess": {
        "x": [*CHAINS, *DRAWS, *KEPT],
        "method": ["bulk", "tail", "mean", "std", "median", "q5", "q99", "q", "q100"],
    },
    "diagnostics.convergence.mcse": {
        "x": [*CHAINS, *DRAWS, *KEPT],
        "of": ["mean", "sd", "median", "std", "q5", "q99", "no such"],
    },
    "diagnostics.convergence.rhat": {"x": [*CHAINS, *DRAWS, *KEPT]},
    "diagnostics.convergence.nested_rhat": {
        "x": [*CHAINS, *DRAWS, *KEPT],
        "superchains": [2, 3, 1, 6, 7, 0],
    },
    "diagnostics.convergence.bfmi": {"energy": [x[..., 0] if x.ndim > 2 else x for x in CHAINS]},
    "diagnostics.halves.split_rhat": {"draws": [*CHAINS, *DRAWS, *KEPT]},
    "diagnostics.halves.halves_of": {"x": CHAINS},
    "diagnostics.halves.halves_from": {
        "whole": [h.whole for h in HALVES],
        "first": [(h.mean[:, 0], h.var[:, 0]) for h in HALVES],
        "draws": [h.draws for h in HALVES],
    },
    "diagnostics.halves.summarise_halves": {
        "halves": HALVES,
        "status": [torch.zeros(6).long(), torch.zeros(20).long(), torch.arange(6) // 4],
        "failed_at": [torch.full((6,), -1), torch.full((20,), -1)],
        "stats": [{}, {"accept": torch.full((6,), 0.02)}, {"diverging": torch.full((6,), 0.5)}],
        "most": [9, 2, 1],
        "solver": ["", "MALA(step_size=0.1)", "Gibbs()"],
        "labels": [None, ["a", "b", "c"]],
    },
    **{
        f"diagnostics.discrepancies.{name}": {
            "x": PAIRS,
            "y": [some(30, 2, seed=9), some(30, 2, seed=1).round()],
            "permutations": [20],
            "directions": [8],
            "level": [0.05, 0.5, 0.0, 1.0],
        }
        for name in ("mmd_test", "sliced_wasserstein_test")
    },
    "diagnostics.discrepancies.kernel_stein_discrepancy": {
        "x": PAIRS,
        "score": [lambda x: -x, -PAIRS[0], lambda x: x.sum(1), lambda x: x / 0],
        "kernel": ["imq", "rbf", "no such"],
        "bootstraps": [20],
        "level": [0.05, 0.5, 0.0, 1.0],
    },
    "diagnostics.distances.mmd": {"x": PAIRS, "y": [some(30, 2, seed=9)], "bandwidth": [None, 0.5]},
    "diagnostics.distances.sliced_wasserstein": {
        "x": PAIRS,
        "y": [some(30, 2, seed=9)],
        "directions": [8, 0],
    },
    "diagnostics.distances.sample_rows": {"value": [*PAIRS, *DRAWS]},
    "diagnostics.quality.balance": {"counts": [[3, 0, 5, 2], PLAIN[0], [0, 0], [1], [], [-1, 2]]},
    "diagnostics.quality.copies": {
        "x": PAIRS,
        "train": [some(30, 2, seed=9), some(40, 2)],
        "held_out": [some(20, 2, seed=8), some(1, 2)],
        "quantile": [0.1, 0.0, 1.0, 0.01],
    },
    "diagnostics.mixing.nested_r_hat": {"superchains": [np.arange(18).reshape(3, 6) % 2]},
    "diagnostics.mixing.nested_r_hat_of": {
        "means": [some(3, 6).numpy()],
        "inside": [some(3, 6, seed=1).square().numpy()],
        "superchains": [np.arange(18).reshape(3, 6) % 2, np.arange(18).reshape(3, 6) // 9],
    },
    "diagnostics.mixing.paired": {
        "difference": [a.mean(2) for a in (*ARRAYS[:5], ARRAYS[6])],
        "lattice": [np.zeros(3, bool), np.zeros(2, bool), np.ones(3, bool)],
    },
    **{
        f"diagnostics.mixing.{name}": {"lattice": [np.zeros(3, bool), *LATTICE, np.ones(3, bool)]}
        for name in ("drift", "alternation")
    },
    "diagnostics.verdict.judge": {
        "x": [a.transpose(1, 2, 0) for a in ARRAYS[:8]],
        "names": [["x", "y", "z"], ["x", "y"]],
        "discrete": [None, False, True],
        "chunk": [10**6, 100],
    },
    "diagnostics.verdict.findings": {
        "x": [a.transpose(1, 2, 0) for a in ARRAYS[:8]],
        "names": [["x", "y", "z"], ["x", "y"]],
        "status": [torch.zeros(6).long(), torch.zeros(20).long()],
        "failed_at": [torch.full((6,), -1), torch.full((20,), -1)],
    },
    "diagnostics.verdict.broken": {"counts": [np.array([0, 2, 5]), np.zeros(3, int), np.arange(5)]},
    "diagnostics.verdict.failures": {
        "status": [torch.tensor([0, 1, 2, 2, 3]), torch.zeros(5).long(), torch.ones(5).long()],
        "failed_at": [torch.tensor([-1, 0, 4, 7, 2])],
    },
    "diagnostics.verdict.listed": {
        "names": [["x", "y", "z"], ["a"]],
        "found": [np.array([True, False, True]), np.ones(3, bool), np.array([True])],
        "worst": [None, 2, 0],
    },
    "diagnostics.verdict.different": {
        "rows": [
            *(a.reshape(len(a), -1) for a in ARRAYS),
            np.concatenate([np.full((5, 99), 0.25), some(5, 2).numpy()], 1),
        ]
    },
    "diagnostics.weights.weights": {"n": [6, 5]},
    "diagnostics.weights.measured_alike": {"n": [6, 5]},
    "fields.adapters.from_reversed_time": {
        "net": [network],
        "event_shape": [(3,), 3],
        "path": [None, stk.VP(), stk.Cosine()],
        "predicts": ["noise", "score", "velocity", "no such"],
        "base": [None],
        "null": [None, {"label": 0.5}],
        "autocast": [None, torch.bfloat16],
    },
    "fields.adapters.from_sigmas": {
        "net": [network],
        "event_shape": [(3,)],
        "path": [None, stk.VE(), stk.EDM(), stk.VP()],
        "predicts": ["noise", "score", "data", "velocity"],
        "null": [None, {"label": 0.5}],
        "autocast": [None, torch.bfloat16],
    },
    "fields.adapters.from_timesteps": {
        "net": [network],
        "alphas_cumprod": [[0.9, 0.5, 0.1], torch.tensor([0.99, 0.5, 0.25]), [0.1, 0.5], []],
        "event_shape": [(3,)],
        "predicts": ["noise", "score", "data", "v"],
        "integer": [True, False],
        "null": [None, {"label": 0.5}],
        "autocast": [None, torch.bfloat16],
    },
    "fields.layout.layout_of": {
        "specs": [
            {"a": stk.Variable((2,)), "b": stk.Variable(())},
            {"a": stk.Variable((2,), dims=("k",))},
            {},
        ]
    },
    "fields.posterior.likelihoods.look_for_steps": {
        "likelihood": [
            as_likelihood(f, frozenset(), (3,))
            for f in (lambda x: -(x - 1).square().sum(1), lambda x: x.round().sum(1), WELL)
        ],
        "x": [PLAIN],
        "cond": [{}],
    },
    "fields.recompute.recomputed": {
        "module": [nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))],
        "of": [nn.Linear, nn.Conv2d, (nn.Linear, nn.ReLU), object],
    },
    "fields.answers.check_asked": {"x": TENSORS, "event_shape": [(3,), ()]},
    "fields.answers.check_energy": {"got": [some(4), *TENSORS], "x": [PLAIN]},
    "fields.answers.check_rows": {
        "got": TENSORS,
        "shape": [(4, 3), (4,)],
        "dtype": [None, torch.float64, torch.float32],
    },
    "fields.answers.unwritten": {"evaluate": [quadratic, lambda x: x.mul_(2)]},
    "fields.answers.written_into": {"evaluate": [quadratic, lambda x: x.mul_(2)]},
    "fields.base.as_base": {"value": [PLAIN, None, *LAWS], "event_shape": [(3,), (2,), ()]},
    "fields.base.plain_base": {"field": FIELDS},
    "fields.base.standard_normal": {"event_shape": [(3,), ()], "std": [1.0, 2.5, 0.0]},
    "fields.bridge.bridge": {
        "start": FIELDS,
        "end": FIELDS[:1] + FIELDS,
        "weight": [0.25, 0.0, 1.0, 2.0],
    },
    "fields.combine.classifier.classifier_guided": {
        "field": [WAVE, *FIELDS],
        "log_prob": [lambda x, t, label: -x.square().sum(1)],
        "measured": ["label", ["label", "t"], "x", ()],
        "interval": [None, (0.5, 1.5), (2, 1)],
    },
    "fields.combine.guidance.guided": {
        "field": [WAVE, *FIELDS],
        "weight": [2.0, 1.0, 0.0, -1.0],
        "unconditional": [WAVE, None, WELL],
        "null": [None, {"label": 0.5}, {"label": None}, {}],
        "interval": [None, (0.5, 1.5), (2, 1)],
        "rescale": [0.0, 0.5, 2.0],
    },
    "fields.combine.mixtures.mixture": {
        "fields": [[stk.from_distribution(d) for d in LAWS[:2]], [stk.from_distribution(LAWS[0])]],
        "weights": [(0.25, 0.75), (1, 1), (1, 0), (0, 0), (-1, 2)],
        "log_partition": [None, (0.0, 1.0), (1,)],
    },
    "fields.combine.powers.exponents": {"field": FIELDS},
    "fields.combine.powers.tempered": {"field": FIELDS, "temperature": [2.0, 1.0, 0.0, 0.25]},
    "fields.conditions.own": {
        "takes": [[frozenset({"label"}), None], [frozenset()], [frozenset({"y"}), frozenset({"k"})]]
    },
    "fields.conditions.taken": {"field": FIELDS},
    "fields.constrained.constrained": {
        "field": [WELL, *FIELDS],
        "constraint": [
            td.constraints.positive,
            td.constraints.unit_interval,
            td.constraints.real,
            [(td.constraints.positive, 1), (td.constraints.real, 2)],
            {"a": (2,), "b": ()},
            td.constraints.boolean,
        ],
    },
    "fields.constrained.users_shape": {"field": FIELDS},
    "fields.convert.convert": {"value": TENSORS, "x": [-PLAIN], "source": list(PREDICTIONS)},
    "fields.convert.row_coefficients": {
        "t": [torch.tensor([0.1, 0.5, 0.9]), torch.tensor(0.3), torch.zeros(2), torch.ones(2)],
        "target": list(PREDICTIONS),
        "source": [*list(PREDICTIONS)[1:], "data"],
    },
    "fields.derivatives.check_derivative": {
        "f": [quadratic, lambda x: x.detach().square().sum(1)],
        "x": EXACT_X[:2],
        "gradient": [None, lambda x: x],
        "worth": [None],
    },
    "fields.distribution.draw_from": DISTRIBUTION,
    "fields.distribution.explicit": DISTRIBUTION,
    "fields.distribution.from_distribution": DISTRIBUTION,
    "fields.distribution.as_field": {"value": [*FIELDS, *LAWS]},
    "fields.distribution.in_free_space": {"value": [*FIELDS, *LAWS]},
    "fields.fingerprint.closeness": {
        "one": [None, {"answers": "float32"}, {}],
        "other": [{"answers": "float32"}, {"answers": "bfloat16"}, {}],
    },
    "fields.fingerprint.answers": {"field": FIELDS, "only": [None, ("answers",)], "cond": [{}]},
    "fields.fingerprint.precision": {"field": FIELDS},
    "fields.fingerprint.predicted": {"field": FIELDS},
    "fields.fingerprint.same": {
        "found": TENSORS,
        "stored": [PLAIN, PLAIN + 1e-9, PLAIN + 0.125],
        "close": [1e-6, 0.25, 0.0],
        "events": [1, 2, 0],
    },
    "fields.foreign.answered": {"ask": [lambda: PLAIN], "x": [PLAIN]},
    "fields.freelaws.free_law": DISTRIBUTION,
    "fields.freelaws.log_density": DISTRIBUTION,
    "fields.freelaws.moved": {"part": LAWS},
    "fields.freelaws.support_of": DISTRIBUTION,
    "fields.freelaws.unvalidated": DISTRIBUTION,
    "fields.gradient.grad_energy": {"energy": [quadratic]},
    "fields.posterior.apart.drawn_near": {
        "cond": [{}],
        "centre": EXACT_X,
        "width": [0.5, 1e-3, 10.0],
        "normals": [lambda n: some(4, n, seed=4)],
    },
    "fields.posterior.early.informed": {
        "t": [0.3, 0.0, 1.0, torch.tensor([0.1, 0.5, 0.9, 0.0]).double()],
        "earliest": [0.2, 0.0],
    },
    "fields.posterior.joining.posterior": {
        "prior": [WAVE, WELL, FIELDS[2], FIELDS[4], FIELDS[6]],
        "likelihood": LIKELIHOODS,
        "method": [None, *POSTERIOR_METHODS, "no such"],
        "measured": [(), "y"],
    },
    "fields.posterior.likelihoods.as_likelihood": {
        "value": LIKELIHOODS,
        "measured": [frozenset(), frozenset({"y"})],
        "event_shape": [(3,), (2,)],
    },
    "fields.posterior.likelihoods.split": {"own": [frozenset({"y"}), frozenset(), frozenset("k")]},
    **{
        f"fields.posterior.systems.{name}": {"prior": MOMENTS, "spread": [1.0, 0.25], "cond": [{}]}
        for name in ("pulled_residual", "weighed_residual")
    },
    "fields.posterior.systems.weighed_by": {
        "prior": MOMENTS,
        "variance": [PLAIN.new_tensor(0.5), some(4).abs()],
        "cond": [{}],
    },
    "fields.posterior.systems.conjugate_gradients": {
        "product": [lambda u: u * u.new_tensor([1.0, 2.0, 4.0]), torch.zeros_like],
        "iterations": [5, 1, 0],
        "least": [0.5, 1.0],
    },
    "fields.posterior.twist.twisted": {
        "method": [m() for m in POSTERIOR_METHODS.values()],
        "likelihood": [LINEAR],
        "prior": MOMENTS,
        "cond": [{}],
    },
    "fields.protocols.optional": {"field": FIELDS, "name": ["score", "states", "base", "path"]},
    "fields.protocols.field_name": {"field": FIELDS},
    "fields.resolve.of_rows": {"field": [resolve(f, ()) for f in FIELDS[:4]], "rows": CHOSEN},
    "fields.resolve.prediction": {"field": FIELDS},
    "fields.resolve.gaussian_path": {"field": FIELDS},
    "fields.resolve.static": {"field": FIELDS},
    "fields.resolve.resolve": {
        "field": FIELDS,
        "needs": [(), ("energy",), ("score",), ("states",), ("no such",)],
        "cond": [{}],
        "timed": [None, True, False],
    },
    "fields.protocols.without_law": {"has": [frozenset({"energy"}), frozenset({"score"})]},
    "fields.smoothed.smoothed": {
        "field": [WELL, *FIELDS],
        "estimator": ["monte-carlo", "langevin", "no such"],
        "samples": [8, 1, 0],
        "steps": [3, 0],
        "reference": [None, (0.0, 2.0), (0.0, 0.0), PLAIN],
    },
    "fields.states.check_states": {"event_shape": [(3,), (2, 3), ()]},
    "fields.states.layout": {"event_shape": [(2, 3), (3,), (4,), ()]},
    "fields.states.uniform_states": {
        "event_shape": [(2, 3), (3,), ()],
        "noise": KINDS["NoiseSource"],
    },
    "fields.states.labels": {"x": [*STATE_ROWS, torch.eye(3)[None]]},
    "fields.states.weigh": {"s": [*STATE_ROWS, torch.eye(3)[None]]},
    "fields.states.place": {
        "label": [torch.tensor([[0, 1, 1], [1, 0, 0]]), torch.zeros(2, 3).long()],
        "event_shape": [(3,), (3, 2)],
        "dtype": [torch.float64, torch.float32],
    },
    "fields.states.pick": {
        "logits": [
            some(4, 3, 2),
            some(4, 3, 5),
            torch.full((4, 3, 2), -math.inf),
            bad(some(4, 3, 2)),
        ],
        "u": [some(4, 3, seed=1).abs() % 1, torch.zeros(4, 3), torch.ones(4, 3)],
    },
    "fields.validation.told": {"evaluate": [lambda: 3, lambda **k: len(k)]},
    "fields.variables.rows_by_name": {
        "values": [{"a": PLAIN, "b": PLAIN[:, 0]}, {"a": PLAIN}, {"a": PLAIN, "b": PLAIN}, []],
        "shapes": [{"a": (3,), "b": ()}, {"a": (2,)}],
    },
    "fields.variables.variables_of": {
        "value": [{"a": (2,), "b": td.constraints.positive}, {"a": stk.Variable((2,))}, {}],
        "name_of": [str],
    },
    "fields.variables.named": {"law": FIELDS},
    "fields.wrapped.check_flow": {"field": FIELDS},
    "fields.wrapped.without_flow": {"field": FIELDS},
    "fields.variables.check_takes": {
        "fn": [lambda a: a, lambda b: b, lambda a, c: a, lambda **k: k],
        "layout": [layout_of({"a": stk.Variable((2,))})],
    },
}


WRITTEN_INTO = ("fields.answers.unwritten", "fields.answers.written_into")
"""Functions that are given a function which writes into its argument."""
FUNCTIONS = {room: functions(room) for room in ROOMS}
MODULES = sorted({name.rpartition(".")[0] for found in FUNCTIONS.values() for name in found})


@pytest.mark.parametrize("module", MODULES)
def test_functions(module):
    """Whatever they answer or refuse, nothing of it is left in the context."""
    context = contextvars.copy_context()
    before = dict(context.items())
    for name, function in FUNCTIONS[module.partition(".")[0]].items():
        if name.rpartition(".")[0] == module:
            given = asked(function, USUAL.get(name, {}), few=not name.startswith("core."))
            told = (
                [context.run(outcome, function, *of) for of in given]
                if name in WRITTEN_INTO
                else context.run(outcomes, function, given)
            )
            recorded(f"function {name}", told)
            left = {v.name for v, held in context.items() if before.get(v) is not held}
            assert not left, f"{name} leaves {left}"


LOW = torch.tensor([0.25, 0.5, 2.0]).double()
IN_ANY_MODE = [name for room in ("core", "diagnostics", "plugins") for name in FUNCTIONS[room]]


@pytest.mark.parametrize("module", sorted({name.rpartition(".")[0] for name in IN_ANY_MODE}))
def test_functions_answer_in_inference_mode_what_they_answer_elsewhere(module):
    """But where a field is among the arguments that differentiates."""
    for name in (n for n in IN_ANY_MODE if n.rpartition(".")[0] == module):
        function, told = FUNCTIONS[name.partition(".")[0]][name], []
        for mode in (torch.inference_mode, contextlib.nullcontext):
            with mode():
                given = asked(function, USUAL.get(name, {}), few=not name.startswith("core."))
                told.append([summed(outcome(function, *of)) for of in islice(given, 5)])
        for here, elsewhere in zip(*told, strict=True):
            assert "score" in elsewhere[0] or str(here) == str(elsewhere), name


def static_fields():
    return [
        *(field for field in THINGS[:8] if not is_timed(field)),
        stk.product(WELL, stk.Score(lambda x: -x, (3,))),
        stk.mixture([stk.from_distribution(d) for d in LAWS[:2]], (0.25, 0.75)),
        stk.posterior(WELL, LINEAR),
        stk.constrained(WELL, {"a": (2,), "b": td.constraints.positive}),
        stk.Energy(lambda a, b: b + a.sum(1), variables={"a": (2,), "b": td.constraints.positive}),
        bridge(WELL, stk.from_distribution(LAWS[0]), 0.25),
    ]


def fields_in_time():
    return [
        *(field for field in THINGS[:8] if is_timed(field)),
        stk.Diffusion(network, (3,), stk.VE(), "data"),
        stk.guided(WAVE, 2.0, stk.Diffusion(network, (3,), stk.VP(), "data"), interval=(0.5, 1.5)),
        stk.product(WAVE, stk.Diffusion(network, (3,), stk.VP(), "v")),
        stk.smoothed(WELL, stk.VP(), samples=8),
        stk.posterior(WAVE, LINEAR, "dps"),
        stk.posterior(WAVE, lambda x: -(x - 1).square().sum(1)),
        stk.Velocity(network, (3,), LAWS[0]),
        stk.Velocity(network, (3,), PLAIN),
    ]


OBJECTS = {
    "noise": lambda: [
        Noise(3, 4),
        Noise(2**63, range(2, 10, 2), dtype=torch.float64),
        Noise(3, 4, dtype=torch.float64).select(slice(1, 3)),
        Noise(5, 3, window=1),
    ],
    "cost": lambda: [Cost(), Cost(energy=3, score=4)],
    "paths": lambda: [
        stk.VP(),
        stk.VE(0.1, 9.0),
        stk.Linear(),
        stk.EDM(),
        stk.SubVP(),
        stk.Cosine(),
        stk.Interpolant(0.5),
        stk.Tabulated([0.99, 0.5, 0.25, 0.01]),
    ],
    "points": lambda: [stk.VP()(0.3), stk.VE()(torch.tensor([0.0, 0.5]))],
    "bases": lambda: [
        standard_normal((3,)),
        standard_normal((2, 3), 2.5),
        *(as_base(value, (3,)) for value in (PLAIN, LAWS[0])),
        plain_base(stk.Discrete(WELL, (0.0, 1.0))),
    ],
    "maps": lambda: [
        bijection(of)
        for of in (
            td.constraints.positive,
            td.constraints.real,
            td.constraints.interval(-1.0, 2.5),
            td.constraints.less_than(0.5),
            td.constraints.simplex,
            td.constraints.greater_than(LOW),
            td.constraints.interval(-LOW, LOW),
            td.constraints.cat([td.constraints.positive, td.constraints.real], -1, [1, 2]),
            ordered,
        )
    ],
    "free laws": lambda: [
        free_law(d)
        for d in (
            td.Gamma(LOW, 2.0),
            td.Beta(LOW, 3.0),
            td.Kumaraswamy(LOW, LOW),
            td.Uniform(-LOW, LOW),
            td.LogNormal(LOW, 1.0),
            td.Dirichlet(LOW),
            td.HalfCauchy(LOW),
            td.Pareto(LOW, 1.5),
            td.Weibull(LOW, 1.5),
            td.Normal(LOW, 2.0),
            td.ContinuousBernoulli(torch.tensor([0.25, 0.5, 0.75]).double()),
            td.VonMises(LOW, 2.0),
            td.LogisticNormal(LOW[:2], LOW[:2]),
            td.TransformedDistribution(td.Normal(LOW, 1.0), [td.transforms.SigmoidTransform()]),
            *(td.GeneralizedPareto(LOW, 1.5, c) for c in (-0.5, 0.0, 0.5)),
        )
    ],
    "measurements": lambda: [
        LINEAR,
        stk.LinearGaussian(stk.Mask(torch.tensor([True, False, True])), torch.ones(3), 0.5),
        stk.LinearGaussian(torch.eye(3)[:2], "y", 0.25),
        *(as_likelihood(f, frozenset(), (3,)) for f in (lambda x: -(x - 1).square().sum(1), WELL)),
    ],
    "operators": lambda: [
        stk.Mask(torch.tensor([True, False, True])),
        stk.Downsample(2),
        stk.Blur(torch.tensor([[0.25, 0.5, 0.125], [0.125, 0.0, 0.5], [0.0, 0.25, 0.0]])),
        stk.LinearGaussian(torch.eye(3)[:2], torch.ones(2), 0.5).operator,
    ],
    "moments": lambda: [*MOMENTS],
    "methods": lambda: [method() for method in POSTERIOR_METHODS.values()],
    "layouts": lambda: [
        layout_of({"a": stk.Variable((2,), dims=("k",)), "b": stk.Variable(())}),
        variables_of({"a": (2,), "b": td.constraints.positive}),
    ],
    "static fields": static_fields,
    "fields in time": fields_in_time,
    "resolved": lambda: [
        resolve(field, needs, {})
        for field, needs in (
            (WELL, ("energy",)),
            (WELL, ("score",)),
            (WAVE, ()),
            (stk.Discrete(WELL, (0.0, 1.0)), ("states",)),
        )
    ],
    "held in time": lambda: [field.at(t) for field in fields_in_time() for t in (0.0, 0.5)],
    "halves": lambda: HALVES,
    "weights": lambda: [
        weights(stats, n)
        for stats, n in (
            ({}, 6),
            ({"log_weight": np.linspace(-3, 0, 6), "ancestor": np.arange(6) // 2}, 6),
            ({"log_weight": np.arange(6.0), "measurement": np.arange(6) % 2}, 6),
            ({"log_weight": np.full(6, -np.inf), "ancestor": np.zeros(6)}, 6),
        )
    ],
    "samplers": lambda: KINDS["Sampler"],
    "verdicts": lambda: [judge(some(6, 20, 2, seed=k).numpy(), ["x", "y"], None) for k in range(2)],
    "summaries": lambda: [draws.summary() for draws in DRAWS],
    "specs": lambda: [stk.describe("ring-mixture"), stk.describe_solver("mala")],
    "subjects": lambda: [Subject(WELL, offers(WELL)), Subject(WAVE, offers(WAVE), torch.float64)],
    "watched": lambda: [
        *bench_for(stk.MALA(0.3)),
        *steep_for(stk.DiscreteLangevin(0.5)),
        *bench_for(stk.DiscreteLangevin(0.5), 0.5),
        *bench_for(stk.ProbabilityFlow("euler", steps=2)),
    ],
}
"""Objects of public classes, by kind."""
OF_METHODS = {
    "x": [PLAIN, PLAIN.float(), bad(PLAIN), PLAIN[:0], 40 * PLAIN, some(4, 2, 2)],
    "z": [PLAIN, PLAIN.float(), bad(PLAIN), PLAIN[:0], 40 * PLAIN, 1e-3 * PLAIN],
    "u": [PLAIN, some(4, 2)],
    "y": [some(4, 2), PLAIN],
    "t": [0.4, 0.0, 1.0, 2.0, torch.tensor([0.1, 0.5, 0.9, 0.0]).double(), torch.tensor(0.3)],
    "n": [4, 0],
    "noise": [Noise(5, 4, dtype=torch.float64), Noise(5, 4)],
    "shape": [(3,), (), (2, 3), (5,), (0,)],
    "step": [0, 3, torch.tensor(3), -1],
    "stream": [0, stk.Stream.USER, 300],
    "like": [PLAIN, PLAIN.float()],
    "case": [Case(), Case(2, 3, 0.5, 0.25)],
    "likelihood": [LINEAR],
    "prior": MOMENTS,
    "cond": [{}],
    "values": [{"a": some(4, 2), "b": some(4).abs()}, some(6).numpy(), {"a": some(4, 2)}, PLAIN],
    "chosen": [slice(1, 3), torch.tensor([0, 2])],
}
OF_FIELDS = {
    "x": [PLAIN, PLAIN.float(), bad(PLAIN), PLAIN[:0]],
    "t": [0.4, 0.0, 1.0, torch.tensor([0.1, 0.5, 0.9, 0.0]).double(), torch.tensor(0.3)],
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_methods(kind):
    for i, made in enumerate(copy.deepcopy(OBJECTS[kind]())):
        told, usual = {"": shown(made)}, OF_METHODS | (OF_FIELDS if is_field(made) else {})
        for name, method in public(made):
            if method is None:
                told[name] = or_its_error(lambda made=made, name=name: getattr(made, name))
            elif name != "at" and takes(method):  # what is held in time has a kind of its own
                told[name] = [outcome(method, *of) for of in asked(method, usual)]
        recorded(f"methods of {kind} {i}", told)


def takes(method):
    with contextlib.suppress(TypeError, ValueError):
        return bool(inspect.signature(method)) or True
    return False
