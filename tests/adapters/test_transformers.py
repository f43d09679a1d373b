"""Language models: log densities by token ids, all texts enumerated, ancestral draws, infilling by discrete solvers."""

import itertools
import math
import warnings
from functools import partial

import pytest
import torch
from scipy.stats import chi2

import scoretk as stk
from scoretk.adapters.transformers import LanguageField
from scoretk.core.noise import Noise
from scoretk.errors import InvalidArgument, MissingCapability
from tests.evidence import FALSE_ALARM

BRINGS = [
    (
        "a causal or masked language model of transformers",
        "stk.from_language_model(lm, length)",
        "its logits on token ids, all texts enumerated; 20 architectures",
        "transformers==5.24.0",
        [
            "test_a_causal_models_law_is_its_own_and_normalised",
            "test_a_masked_model_has_its_pseudo_likelihood",
            "test_the_energy_is_that_of_token_ids",
        ],
    )
]

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
        field, stk.GibbsWithGradients(), chains=1024, steps=40, warmup=20, keep="last"
    )
    assert draws.failures == {}
    first = field.decode(draws.final)[:, 0]
    truth = log_likelihood(gpt2, ids).softmax(0)
    expected = torch.zeros(V).index_add(0, ids[:, 0], truth)
    assert gap(first, expected) < most_apart(len(first))
    # a mutant: the law of the first token, which does not know the one that follows
    unaware = log_likelihood(gpt2, every(length=1)).softmax(0)
    assert float((unaware - expected).abs().max()) > 2 * most_apart(len(first))


def gap(found, expected):
    """The largest difference of a share of tokens from its probability."""
    share = torch.bincount(found, minlength=len(expected)) / len(found)
    return float((share - expected).abs().max())


def most_apart(n):
    """What one of V shares of n independent chains exceeds with probability FALSE_ALARM at most.

    By Hoeffding's inequality, `P(|share - p| > e) <= 2 exp(-2 n e^2)`, and a union over the tokens.
    """
    return math.sqrt(math.log(2 * V / FALSE_ALARM) / (2 * n))


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


IDS = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SMALL = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 32}
DECODER = {
    "d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16,
    "scale_embedding": True, "max_position_embeddings": 32,
}  # fmt: skip
STATES = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "conv_kernel": 2}
MASKED = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
MODELS = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}),
    "LlamaForCausalLM": ("LlamaConfig", SMALL | GROUPED),
    "MistralForCausalLM": ("MistralConfig", SMALL | GROUPED),
    "Qwen2ForCausalLM": ("Qwen2Config", SMALL | {"num_key_value_heads": 1}),
    "GemmaForCausalLM": ("GemmaConfig", SMALL | GROUPED),  # embeddings scaled by sqrt(8)
    "Gemma2ForCausalLM": ("Gemma2Config", SMALL | GROUPED),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", SMALL | GROUPED),
    "OPTForCausalLM": (  # whose positions are offset, and whose embeddings are projected
        "OPTConfig",
        {"hidden_size": 8, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"word_embed_proj_dim": 4, "max_position_embeddings": 32},
    ),
    "BartForCausalLM": ("BartConfig", DECODER),  # scaled, and offset
    "PegasusForCausalLM": ("PegasusConfig", DECODER),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL),
    "BloomForCausalLM": ("BloomConfig", {"hidden_size": 8, "n_layer": 1, "n_head": 2}),
    "GraniteForCausalLM": (
        "GraniteConfig", SMALL | {"num_key_value_heads": 1, "embedding_multiplier": 3.0}
    ),
    "MambaForCausalLM": ("MambaConfig", STATES | {"time_step_rank": 2}),
    "RwkvForCausalLM": ("RwkvConfig", {"hidden_size": 32, "num_hidden_layers": 2}),
    "BertLMHeadModel": ("BertConfig", SMALL | {"is_decoder": True}),
    "BertForMaskedLM": ("BertConfig", SMALL),
    "RobertaForCausalLM": (
        "RobertaConfig", SMALL | MASKED | {"is_decoder": True, "max_position_embeddings": 32}
    ),
    "RobertaForMaskedLM": ("RobertaConfig", SMALL | MASKED | {"max_position_embeddings": 32}),
    "DistilBertForMaskedLM": (
        "DistilBertConfig", {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    ),
    "AlbertForMaskedLM": ("AlbertConfig", SMALL | {"embedding_size": 4}),
}  # fmt: skip


def model(transformers, name):
    config, options = MODELS[name]
    made_from = getattr(transformers, config)(**(IDS | options))
    lm = made(getattr(transformers, name), made_from)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        for p in lm.parameters():
            if p.ndim > 1:  # answers that differ by more than rounding
                torch.nn.init.normal_(p, std=0.5)
    return lm


@torch.no_grad()
def by_ids(lm, ids, before, mask):
    """The (pseudo-)log-likelihood by token ids, as the model is usually called."""
    if mask is None:
        return log_likelihood(lm, ids, before)
    whole = torch.cat([torch.tensor(before).expand(len(ids), -1), ids], 1)
    total = torch.zeros(len(ids))
    for i in range(ids.shape[1]):
        hidden = whole.clone()
        hidden[:, len(before) + i] = mask
        logs = lm(input_ids=hidden).logits.float().log_softmax(-1)[:, len(before) + i]
        total += logs.gather(1, ids[:, i : i + 1])[:, 0]
    return total


@pytest.mark.parametrize("name", MODELS)
def test_the_energy_is_that_of_token_ids(transformers, name):
    """Whatever the embedding layer does to its weights, and wherever positions begin."""
    lm = model(transformers, name)
    given = {"before": [0, 5], "mask": 3} if "Masked" in name else {"before": [0, 5]}
    field = stk.from_language_model(lm, L, **given)
    ids = torch.randint(3, 11, (6, L), generator=torch.Generator().manual_seed(5))
    expected = by_ids(lm, ids, [0, 5], given.get("mask"))
    torch.testing.assert_close(-field.energy(field.one_hot(ids)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "RobertaForCausalLM", "GPT2LMHeadModel"])
def test_a_pad_token_in_the_text_has_the_position_that_it_has_by_ids(transformers, name):
    """RoBERTa's kind leaves it out of the count, and gives it a position of its own."""
    lm = model(transformers, name)
    pad = lm.config.pad_token_id
    given = {"before": [0, 5], "mask": 3} if "Masked" in name else {"before": [0, 5]}
    field = stk.from_language_model(lm, L, **given)
    ids = torch.tensor([[4, pad, 6], [pad, pad, 7], [8, 9, pad], [8, 9, 4]])
    x = field.one_hot(ids)
    expected = by_ids(lm, ids, [0, 5], given.get("mask"))
    torch.testing.assert_close(-field.energy(x), expected, rtol=1e-4, atol=1e-4)
    assert field.score(x).shape == x.shape
    within = stk.from_language_model(lm, L, {1: pad}, **given)
    torch.testing.assert_close(-within.energy(x[:1, [0, 2]]), expected[:1], rtol=1e-4, atol=1e-4)


def test_a_pad_token_that_is_another_one_by_ids_is_told(transformers, monkeypatch):
    lm = model(transformers, "BertForMaskedLM")
    forward = lm.forward

    def other(input_ids=None, **given):
        found = forward(input_ids=input_ids, **given)
        if input_ids is not None:
            found.logits = found.logits + (input_ids == 2).sum()
        return found

    monkeypatch.setattr(lm, "forward", other)
    with pytest.warns(UserWarning, match="hold the pad token, 2, are others"):
        stk.from_language_model(lm, L, before=[0], mask=3)


def test_positions_that_are_counted_from_behind_the_pad_token_are_fewer(transformers):
    lm = model(transformers, "RobertaForMaskedLM")
    assert stk.from_language_model(lm, 30, mask=3).event_shape == (30, 11)  # of 32, and pad is 1
    with pytest.raises(InvalidArgument, match="length 31 exceeds the model's 30 positions"):
        stk.from_language_model(lm, 31, mask=3)


def test_a_model_within_a_wrapper_of_torchs_is_the_same_field(transformers, gpt2):
    ids = torch.tensor([[1, 2, 0]])
    for held in (torch.compile(gpt2, backend="eager"), torch.nn.DataParallel(gpt2)):
        field, plain = stk.from_(held, L), stk.from_(gpt2, L)
        x = plain.one_hot(ids)
        with torch.no_grad():
            torch.testing.assert_close(field.energy(x), plain.energy(x))
    with pytest.raises(InvalidArgument, match="without arguments that are bound"):
        stk.from_(partial(gpt2, use_cache=False), L)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma3ForCausalLM", "BertForMaskedLM"])
def test_models_of_half_precision_have_states_of_float32(transformers, name):
    lm, given = model(transformers, name), {"before": [0], "mask": 3}
    given = given if "Masked" in name else {"before": [0]}
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    full = stk.from_language_model(lm, L, **given)
    expected = full.energy(full.one_hot(ids)).detach()
    field = stk.from_language_model(lm.to(torch.bfloat16), L, **given)
    x = field.one_hot(ids)
    assert x.dtype == field.score(x).dtype == torch.float32
    torch.testing.assert_close(field.energy(x).detach(), expected, rtol=0.1, atol=0.1)


def test_an_embedding_that_is_not_what_ids_see_is_refused(transformers, monkeypatch):
    """A mutant: the weights of the layer, which this one scales."""
    lm = model(transformers, "Gemma3ForCausalLM")
    monkeypatch.setattr(LanguageField, "_table", lambda self: lm.get_input_embeddings().weight)
    with pytest.raises(InvalidArgument, match="otherwise to embeddings"):
        stk.from_language_model(lm, L)


def test_a_model_that_is_not_causal_is_refused_as_one(transformers):
    config = transformers.BertConfig(**(IDS | SMALL))  # not a decoder
    with pytest.raises(InvalidArgument, match="no causal model"):
        stk.from_language_model(made(transformers.BertLMHeadModel, config), L)


def test_models_of_another_kind_are_refused(transformers):
    for kind, config in (
        ("T5ForConditionalGeneration", transformers.T5Config(d_model=8, d_ff=16, num_layers=1,
            num_heads=2, d_kv=4, vocab_size=11, decoder_start_token_id=0)),
        ("BartForConditionalGeneration", transformers.BartConfig(**IDS, d_model=8, encoder_layers=1,
            decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)),
    ):  # fmt: skip
        with pytest.raises(InvalidArgument, match="given a source"):
            stk.from_language_model(made(getattr(transformers, kind), config), L)


@pytest.mark.parametrize(
    "ids",
    [[V + 2], [-1], [1.5], [[1, 2]], "12", 3, torch.tensor([0.5]), torch.tensor([[1]]), {1: 2}, [None]],
    ids=repr,
)  # fmt: skip
def test_ids_around_the_text_are_checked(gpt2, bert, ids):
    for name in ("before", "after"):
        with pytest.raises(InvalidArgument, match=name):
            stk.from_language_model(bert, L, mask=3, **{name: ids})
    with pytest.raises(InvalidArgument, match="before"):
        stk.from_language_model(gpt2, L, before=ids)


def test_ids_after_the_text_are_seen_by_a_masked_model(bert):
    ids = torch.tensor([[1, 2, 3], [4, 0, 1]])
    field = stk.from_language_model(bert, L, before=[V], after=torch.tensor([0, 4]), mask=V + 1)
    around = torch.cat([ids, torch.tensor([[0, 4]]).expand(2, -1)], 1)
    whole = torch.cat([torch.full((2, 1), V), around], 1)
    expected = torch.zeros(2)
    with torch.no_grad():
        for i in range(L):
            hidden = whole.clone()
            hidden[:, 1 + i] = V + 1
            logs = bert(input_ids=hidden).logits.log_softmax(-1)[:, 1 + i]
            expected += logs.gather(1, ids[:, i : i + 1])[:, 0]
    torch.testing.assert_close(-field.energy(field.one_hot(ids)), expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("place", [L, -1, 9, 2**40, "a"])
def test_a_place_beyond_the_text_is_told_where_places_are(gpt2, place):
    with pytest.raises(InvalidArgument, match=r"a place in 0\.\.2 of a text of 3 tokens"):
        stk.from_language_model(gpt2, L, constraint={place: 1})


def test_given_ids_beyond_the_vocabulary_are_told(gpt2):
    size = gpt2.config.vocab_size
    for wrong in ({0: size}, {1: size}, [size + 3, None, None]):
        with pytest.raises(InvalidArgument, match=rf"constraint: expected ids below {size}"):
            stk.from_language_model(gpt2, 3, constraint=wrong)


def test_a_text_longer_than_the_models_positions_is_refused(gpt2, bert):
    with pytest.raises(InvalidArgument, match="length 50 exceeds the model's 8 positions"):
        stk.from_language_model(gpt2, 50)
    with pytest.raises(InvalidArgument, match="at most 7"):  # one is for the token before it
        stk.from_language_model(gpt2, 8)
    with pytest.raises(InvalidArgument, match="length 9 exceeds the model's 8 positions"):
        stk.from_language_model(bert, 9, mask=3)
    assert stk.from_language_model(gpt2, 7).event_shape == (7, V)
    assert stk.from_language_model(bert, 8, mask=3).event_shape[0] == 8


def test_settings_of_generate_that_change_its_law_are_told(transformers):
    """They are no part of the field's, which is that of the logits."""
    lm = model(transformers, "GPT2LMHeadModel")
    plain = stk.from_language_model(lm, L)
    x = plain.one_hot(torch.tensor([[4, 5, 6]]))
    expected = plain.log_prob(x)
    for name, value in {
        "temperature": 0.5, "top_k": 3, "top_p": 0.9, "repetition_penalty": 1.2, "min_length": 5,
        "bad_words_ids": [[3]], "suppress_tokens": [4], "forced_bos_token_id": 5,
    }.items():  # fmt: skip
        lm.generation_config = transformers.GenerationConfig(**{name: value})
        with pytest.warns(
            UserWarning, match=rf"{name}=.* of its generation_config are for generate"
        ):
            field = stk.from_language_model(lm, L)
        assert torch.equal(field.log_prob(x), expected)
    lm.generation_config = transformers.GenerationConfig(temperature=1.0, top_p=1.0, max_length=9)
    stk.from_language_model(lm, L)  # (a warning would be an error)


def test_logits_of_their_own_place_are_refused(transformers, monkeypatch):
    """Shifted by one: those at a place are of its own token, and hang on the tokens before."""
    lm = model(transformers, "GPT2LMHeadModel")
    forward = lm.forward

    def shifted(**given):
        found = forward(**given)
        first = torch.zeros_like(found.logits[:, :1])
        found.logits = torch.cat([first, found.logits[:, :-1]], 1)
        return found

    monkeypatch.setattr(lm, "forward", shifted)
    with pytest.raises(InvalidArgument, match="Move its logits one place ahead"):
        stk.from_language_model(lm, L)


def test_logits_that_no_token_moves_are_a_law(transformers, monkeypatch):
    lm = model(transformers, "GPT2LMHeadModel")
    forward = lm.forward

    def unmoved(**given):
        found = forward(**given)
        found.logits = found.logits * 0 + torch.arange(11.0)
        return found

    monkeypatch.setattr(lm, "forward", unmoved)
    field = stk.from_language_model(lm, 1)
    expected = torch.arange(11.0).log_softmax(0)[[7]]
    torch.testing.assert_close(field.log_prob(field.one_hot(torch.tensor([[7]]))), expected)


def test_a_pad_token_that_the_configuration_does_not_say(transformers):
    """MPNet's positions leave token 1 out of the count, whatever its configuration says."""
    config = transformers.MPNetConfig(**(IDS | SMALL | {"max_position_embeddings": 32}))
    lm = made(transformers.MPNetForMaskedLM, config)
    field = stk.from_language_model(lm, L, before=[0], mask=3)
    ids = torch.tensor([[4, 1, 6], [1, 2, 7], [8, 9, 4]])
    expected = by_ids(lm, ids, [0], 3)
    torch.testing.assert_close(-field.energy(field.one_hot(ids)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:from_language_model. texts that hold the pad token")
@pytest.mark.parametrize("causal", [False, True])
def test_a_model_that_is_of_either_kind_is_masked_by_its_mask_token(transformers, causal):
    config = transformers.XLMConfig(
        n_words=11, emb_dim=8, n_layers=1, n_heads=2, max_position_embeddings=32, causal=causal,
        pad_index=2, unk_index=3, mask_index=4, bos_index=0, eos_index=1,
    )  # fmt: skip
    lm = made(transformers.XLMWithLMHeadModel, config)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    if causal:
        with pytest.raises(InvalidArgument, match="mask: expected nothing with a causal model"):
            stk.from_language_model(lm, L, before=[0], mask=4)
        field, mask = stk.from_language_model(lm, L, before=[0]), None
    else:
        with pytest.raises(InvalidArgument, match="A masked one is told by its mask token"):
            stk.from_language_model(lm, L, before=[0])
        field, mask = stk.from_language_model(lm, L, before=[0], mask=4), 4
    expected = by_ids(lm, ids, [0], mask)
    torch.testing.assert_close(-field.energy(field.one_hot(ids)), expected, rtol=1e-4, atol=1e-4)


def test_a_head_is_known_by_itself(transformers):
    """`BertGenerationDecoder` has one, and says so in no part of its name."""
    config = transformers.BertGenerationConfig(
        **(IDS | SMALL), is_decoder=True, max_position_embeddings=32
    )
    lm = made(transformers.BertGenerationDecoder, config)
    field = stk.from_language_model(lm, L)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(-field.energy(field.one_hot(ids)), by_ids(lm, ids, [0], None))
