"""What draws say of names that other packages have for what is in them."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch

import scoretk as stk
from scoretk.run.draws import ELSEWHERE

FIELD = stk.Energy(lambda mu, tau: mu**2 + tau, variables={"mu": (), "tau": ()})
DRAWS = stk.sample(FIELD, stk.ULA(0.1), chains=4, steps=8)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_from_elsewhere_is_told_where_it_is(name):
    with pytest.raises(AttributeError, match=re.escape(ELSEWHERE[name])):
        getattr(DRAWS, name)
    assert not hasattr(DRAWS, name)
    for own in re.findall(r"draws\.(\w+)", ELSEWHERE[name]):
        assert hasattr(DRAWS, own)


def test_variables_and_statistics_are_told_by_their_own_names():
    draws = stk.sample(FIELD, stk.MALA(0.1), chains=4, steps=8)
    with pytest.raises(AttributeError, match=r"a variable, draws\['tau'\]"):
        _ = draws.tau
    with pytest.raises(AttributeError, match=r"reported it, draws\.stats\['accept'\]"):
        _ = draws.accept
    with pytest.raises(AttributeError, match=r"no attribute 'other'$"):
        _ = draws.other


def test_draws_are_no_array():
    for take in (np.asarray, np.array):
        with pytest.raises(TypeError, match=r"draws\.x\.numpy\(\)"):
            take(DRAWS)


@pytest.mark.parametrize("call", ["summary", "plot", "save"])
def test_arguments_that_a_method_does_not_have_are_told(call):
    given = ("file",) if call == "save" else ()
    with pytest.raises(stk.UnknownArgument, match=rf"{call}\(\) has no argument 'var_names'"):
        getattr(DRAWS, call)(*given, var_names=["mu"])


def test_copies_are_as_before():
    for same in (copy.copy(DRAWS), copy.deepcopy(DRAWS), pickle.loads(pickle.dumps(DRAWS))):
        assert torch.equal(same.x, DRAWS.x)
    assert "1 coordinate more" in str(DRAWS.summary(most=1))
