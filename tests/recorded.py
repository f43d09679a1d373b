"""Answers as they were when they were last looked at: `recorded(name, answer)` fails where one has changed.

A law says why a number is right; a record only that it is what it was, wherever no law reaches: constants, order of terms, what
is counted, texts. Whoever changes one on purpose reads the difference and records it anew:

    SCORETK_RECORD=1 python -m pytest tests/laws tests/test_verdict.py

An answer is told by its texts and by one number for each of its tensors, the mean of its entries with weights that differ:
compared within a millionth of their size (a thousandth for float32), since machines round otherwise.
"""

import atexit
import dataclasses
import hashlib
import json
import math
import os
import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import distributions as td

import scoretk as stk

FILE = Path(__file__).parent / "data" / "recorded.json"
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d*(?:e[+-]?\d+)?(?!\w)|(?<![\w.])-?\d+e[+-]?\d+")
ADDRESS = re.compile(r" at 0x[0-9a-f]+|/tmp/\S*")
ROUNDING, ROUNDING_OF_SINGLES, ROUNDING_OF_TEXT = 1e-6, 1e-3, 2e-2
LARGE, SHOWN = 1e3, 120
"""Longer texts are kept as their digest."""


def leaves(answer):
    """All texts and numbers of an answer, in order: `(text, values, rounding)`."""
    if isinstance(answer, torch.Tensor):
        value = answer.detach().cpu()
        exact = not (value.is_floating_point() or value.is_complex())
        rounding = ROUNDING if exact or value.dtype is torch.float64 else ROUNDING_OF_SINGLES
        yield f"{value.dtype} {tuple(value.shape)}", value.double().flatten(), rounding
    elif isinstance(answer, np.ndarray | np.generic) and answer.dtype.kind in "biuf":
        yield from leaves(torch.from_numpy(np.array(answer)))
    elif isinstance(answer, bool | int) or answer is None:
        yield repr(answer), torch.zeros(0, dtype=torch.float64), ROUNDING
    elif isinstance(answer, float):
        yield "float", torch.tensor([answer], dtype=torch.float64), ROUNDING_OF_SINGLES
    elif isinstance(answer, dict):
        for key, value in answer.items():
            yield from leaves(str(key))
            yield from leaves(value)
    elif dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        yield from leaves(type(answer).__name__)
        for field in dataclasses.fields(answer):
            yield from leaves(getattr(answer, field.name))
    elif isinstance(answer, set | frozenset):
        yield from leaves(sorted(map(str, answer)))
    elif isinstance(answer, list | tuple):
        yield from leaves(f"{type(answer).__name__} of {len(answer)}")
        for value in answer:
            yield from leaves(value)
    else:
        text = ADDRESS.sub("", str(answer))
        found = torch.tensor([float(v) for v in NUMBER.findall(text)], dtype=torch.float64)
        yield NUMBER.sub("#", text), found, ROUNDING_OF_TEXT


def squeezed(values):
    """Values beyond a thousand by their logarithm, so that the largest number that there is does not hide the others."""
    size = values.abs().clamp(min=LARGE)
    return torch.where(
        values.abs() > LARGE, values.sign() * LARGE * (1 + (size / LARGE).log()), values
    )


def summed(answer):
    """The texts of an answer as one, and of each leaf with numbers the weighted mean, its size and its rounding."""
    texts, numbers = [], []
    for text, values, rounding in leaves(answer):
        texts.append(text)
        if len(values):
            whole = squeezed(values.nan_to_num(nan=math.pi))
            weights = torch.cos(1.0 + torch.arange(len(whole), dtype=torch.float64))
            size = float(whole.square().mean().sqrt())
            numbers.append((float((weights * whole).mean()), size, rounding))
    text = " | ".join(texts)
    return text, numbers


def short(text):
    return text if len(text) <= SHOWN else hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def known():
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def write():
    """All that is known, a line an answer: once, when the process ends."""
    rows = [f"{json.dumps(key)}: {json.dumps(known()[key])}" for key in sorted(known())]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


RECORDS = bool(os.environ.get("SCORETK_RECORD"))
if RECORDS:
    atexit.register(write)


def recorded(name, answer):
    """Hold an answer to what it was."""
    text, numbers = summed(answer)
    if RECORDS:
        known()[name] = [short(text), [float(f"{value:.9g}") for value, _, _ in numbers]]
        return
    assert name in known(), f"{name} is not recorded"
    old_text, old = known()[name]
    assert short(text) == old_text, f"{name}: {text}"
    for i, ((value, size, rounding), before) in enumerate(zip(numbers, old, strict=True)):
        assert abs(value - before) <= rounding * size + 1e-12, f"{name}: number {i}"


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def or_error(ask):
    """The answer, or the error that the package gives in its place."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            answer = ask()
        return answer, [str(w.message) for w in told]
    except stk.ScoretkError as error:
        return type(error).__name__, str(error)


@cache
def drawn(**options):
    return stk.sample(
        NAMED, stk.MALA(0.3), **{"chains": 5, "steps": 12, "dtype": torch.float64} | options
    )


NAMED = stk.Energy(
    lambda mu, tau: tau + (mu**2).sum(1) / 2,
    variables={"mu": stk.Variable((2,), dims=("side",)), "tau": td.constraints.positive},
)
