"""Language models: log densities by token ids, all texts enumerated, ancestral draws, infilling by discrete solvers."""

import itertools
import math
import warnings

import pytest
import torch
from scipy.stats import chi2

import scoretk as stk
from scoretk.core.noise import Noise
from scoretk.errors import InvalidArgument, MissingCapability
from tests.evidence import FALSE_ALARM

V, L = 5, 3

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():  # of the library itself, at its first import
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def gpt2(transformers):
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.5,
    )  # fmt: skip
    return made(transformers.GPT2LMHeadModel, config)


@pytest.fixture(scope="module")
def bert(transformers):
    config = transformers.BertConfig(
        vocab_size=V + 2, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, initializer_range=0.5,
    )  # fmt: skip
    return made(transformers.BertForMaskedLM, config)


def made(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return kind(config).eval()


def every(vocabulary=V, length=L):
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


@torch.no_grad()
def log_likelihood(lm, ids, before=(0,)):
    """By token ids, as the model is usually called."""
    k = len(before)
    whole = torch.cat([torch.tensor(before).expand(len(ids), -1), ids], 1)
    logs = lm(input_ids=whole).logits.log_softmax(-1)[:, k - 1 : -1]
    return logs.gather(2, ids[..., None])[..., 0].sum(1)


def test_a_causal_models_law_is_its_own_and_normalised(gpt2):
    field = stk.from_(gpt2, L)
    ids = every()
    x = field.one_hot(ids)
    assert field.event_shape == (L, V)
    torch.testing.assert_close(field.log_prob(x), log_likelihood(gpt2, ids), rtol=1e-4, atol=1e-4)
    assert float(field.log_prob(x).logsumexp(0).detach()) == pytest.approx(0, abs=1e-4)
    assert torch.equal(field.decode(x), ids)
    y = x[:4].double().requires_grad_(False)
    step = torch.zeros_like(y)
    step[:, 1, 2] = 1e-2
    slope = (field.energy((y + step).float()) - field.energy((y - step).float())) / 2e-2
    torch.testing.assert_close(-field.score(x[:4])[:, 1, 2], slope, rtol=2e-2, atol=2e-2)


def test_draws_are_ancestral_and_a_chains_own(gpt2):
    field, n = stk.from_language_model(gpt2, L), 5000
    x = field.draw(n, Noise(3, n))
    assert torch.equal(x[7:9], field.draw(2, Noise(3, range(7, 9))))
    ids = field.decode(x)
    place = (ids * torch.tensor([V * V, V, 1])).sum(1)
    counts = torch.bincount(place, minlength=V**L).double()
    expected = n * log_likelihood(gpt2, every()).exp().double()
    enough = expected > 5
    rest = torch.stack([counts[~enough].sum(), expected[~enough].sum()])
    observed, wanted = (
        torch.cat([v[enough], rest[i : i + 1]]) for i, v in enumerate((counts, expected))
    )
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    assert statistic < chi2.isf(FALSE_ALARM, len(wanted) - 1)
    # a mutant: draws that do not know what came before
    shuffled = torch.stack([ids[torch.roll(torch.arange(n), i), i] for i in range(L)], 1)
    place = (shuffled * torch.tensor([V * V, V, 1])).sum(1)
    wrong = torch.bincount(place, minlength=V**L).double()
    observed = torch.cat([wrong[enough], wrong[~enough].sum()[None]])
    assert float(((observed - wanted) ** 2 / wanted).sum()) > chi2.isf(FALSE_ALARM, len(wanted) - 1)


def test_infilling_is_the_law_of_what_is_free(gpt2):
    field = stk.from_language_model(gpt2, L, constraint={1: 4})
    assert field.event_shape == (2, V)
    ids = every()
    ids = ids[ids[:, 1] == 4]
    x = field.one_hot(ids)
    assert torch.equal(field.decode(x), ids)
    torch.testing.assert_close(-field.energy(x), log_likelihood(gpt2, ids), rtol=1e-4, atol=1e-4)
    for name in ("log_prob", "draw"):
        assert name not in field.provides
    with pytest.raises(MissingCapability, match="given within it"):
        field.draw(2, Noise(0, 2))
    draws = stk.sample(
        field, stk.GibbsWithGradients(), chains=256, steps=40, warmup=20, keep="last"
    )
    assert draws.failures == {}
    first = field.decode(draws.final)[:, 0]
    truth = log_likelihood(gpt2, ids).softmax(0)
    expected = torch.zeros(V).index_add(0, ids[:, 0], truth)
    found = torch.bincount(first, minlength=V) / len(first)
    assert float((found - expected).abs().max()) < 5 * 0.5 / math.sqrt(256)


def test_given_tokens_at_the_beginning_are_a_prompt(gpt2):
    field = stk.from_language_model(gpt2, L, constraint=[2, 1, None])
    assert "draw" in field.provides
    ids = every(length=1)
    truth = log_likelihood(gpt2, ids, before=(0, 2, 1))
    torch.testing.assert_close(field.log_prob(field.one_hot(ids)), truth, rtol=1e-4, atol=1e-4)


def test_a_likelihood_constrains_the_text(gpt2):
    field = stk.from_language_model(gpt2, L)
    held = stk.posterior(field, lambda x: 30 * x[..., 3].amax(1))
    draws = stk.sample(held, stk.GibbsWithGradients(), chains=32, steps=40, warmup=0, keep="last")
    assert bool((field.decode(draws.final) == 3).any(1).all())


def test_a_masked_model_has_its_pseudo_likelihood(bert):
    mask = V + 1
    field = stk.from_language_model(bert, L, before=[V], mask=mask)
    assert field.event_shape == (L, V + 2)
    ids = every()[::7]
    with torch.no_grad():
        whole = torch.cat([torch.full((len(ids), 1), V), ids], 1)
        expected = torch.zeros(len(ids))
        for i in range(L):
            hidden = whole.clone()
            hidden[:, 1 + i] = mask
            logs = bert(input_ids=hidden).logits.log_softmax(-1)[:, 1 + i]
            expected += logs.gather(1, ids[:, i : i + 1])[:, 0]
    torch.testing.assert_close(-field.energy(field.one_hot(ids)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(MissingCapability, match="no joint law"):
        field.log_prob(field.one_hot(ids))
    draws = stk.sample(field, stk.DiscreteLangevin(), chains=4, steps=3, warmup=2)
    assert draws.failures == {}


def test_what_does_not_fit_is_refused(transformers, gpt2, bert):
    with pytest.raises(InvalidArgument, match="mask token"):
        stk.from_language_model(bert, L)
    with pytest.raises(InvalidArgument, match="some place free"):
        stk.from_language_model(bert, L, constraint=[1, 1, 1], mask=3)
    with pytest.raises(InvalidArgument, match="head over the vocabulary"):
        stk.from_language_model(gpt2.transformer, L)
    with pytest.raises(InvalidArgument, match="entries"):
        stk.from_language_model(gpt2, L, constraint=[1, None])
    with pytest.raises(InvalidArgument, match=r"scoretk\.from_language_model"):
        stk.sample(gpt2, chains=2)
    with pytest.raises(InvalidArgument, match="ids"):
        stk.from_language_model(gpt2, L).one_hot(torch.zeros(2, 2, dtype=torch.int64))
