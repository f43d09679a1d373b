"""The causal transformer: normalised by enumeration, draws against densities, no token sees a later one; with mutants."""

import math

import pytest
import torch
from scipy.stats import chi2

import scoretk as stk
from scoretk.diagnostics import copies, sliced_wasserstein
from scoretk.models import specs
from scoretk.models.digits import transformer
from scoretk.models.digits.data import load_digits
from scoretk.models.digits.networks import fresh
from scoretk.models.digits.stored import read_weights, shipped
from scoretk.models.latent.autoregressive import Categoricals, TokenAutoregressive
from scoretk.plugins.models import build
from tests.evidence import FALSE_ALARM
from tests.lawful import checked

TOKENS, WORDS, CHAINS = 3, 4, 4000


def backbone(tokens=TOKENS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = fresh(
        lambda: transformer.CausalTransformer(tokens, WORDS, 8, 2, 2, 0.1), generator
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net.eval()


def target(net=None):
    net = backbone() if net is None else net
    return TokenAutoregressive(Categoricals(net), (TOKENS, WORDS))


def texts():
    ids = torch.cartesian_prod(*[torch.arange(WORDS)] * TOKENS)
    return torch.nn.functional.one_hot(ids, WORDS).double()


def dependence(net):
    """Whether the logits of token i depend on token j, `(tokens, tokens)` of bool."""
    x = torch.rand(1, TOKENS, WORDS, generator=torch.Generator().manual_seed(1)).double()
    jacobian = torch.autograd.functional.jacobian(lambda rows: net(rows)[0], x)[:, :, 0]
    return (jacobian != 0).any(3).any(1)


EARLIER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(-1)


def test_a_token_sees_all_before_it_and_no_other(monkeypatch):
    net = backbone()
    assert torch.equal(dependence(net), EARLIER)
    x = torch.rand(5, TOKENS, WORDS, generator=torch.Generator().manual_seed(2)).double()
    each = torch.stack([net.at(x, i) for i in range(TOKENS)], 1)
    torch.testing.assert_close(each, net(x))
    attend = transformer.scaled_dot_product_attention

    def to_all(*asked, is_causal):  # the mutant
        return attend(*asked)

    monkeypatch.setattr(transformer, "scaled_dot_product_attention", to_all)
    assert not torch.equal(dependence(net), EARLIER)
    assert abs(float(target(net).log_prob(texts()).exp().sum().detach()) - 1) > 1e-3


def test_probabilities_of_all_texts_add_up_to_one_and_the_score_is_the_gradient():
    field = target()
    assert float(field.log_prob(texts()).exp().sum().detach()) == pytest.approx(1)
    assert field.exact_log_partition() == 0
    x = texts()[:5]
    step = torch.zeros_like(x)
    step[:, 1, 2] = 1e-5
    slope = (field.energy(x + step) - field.energy(x - step)) / 2e-5
    torch.testing.assert_close(-field.score(x)[:, 1, 2], slope.detach(), rtol=1e-4, atol=1e-6)


def counted(field, x):
    """Pearson's statistic of texts under a field's law, and what it exceeds with probability FALSE_ALARM."""
    place = (x.argmax(-1) * torch.tensor([WORDS**2, WORDS, 1])).sum(1)
    expected = len(x) * field.log_prob(texts()).exp().detach()
    seen = torch.bincount(place, minlength=WORDS**TOKENS).double()
    rare = expected < 5
    seen, expected = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (seen, expected))
    kept = expected > 0
    statistic = ((seen - expected).square() / expected)[kept].sum()
    return float(statistic), chi2.isf(FALSE_ALARM, int(kept.sum()) - 1)


@pytest.mark.thorough
def test_draws_and_steps_of_discrete_solvers_have_the_law():
    field = target()
    x = field.draw(CHAINS, stk.Noise(0, CHAINS, dtype=torch.float64))
    statistic, limit = counted(field, x)
    assert statistic < limit
    assert counted(target(backbone(seed=1)), x)[0] > limit  # a mutant: another model's law
    for solver in (stk.GibbsWithGradients(), stk.DiscreteLangevin(0.5)):
        draws = stk.sample(field, solver, chains=CHAINS, steps=2, warmup=0, init=x, keep="last")
        assert draws.failures == {}
        statistic, limit = counted(field, draws.final)
        assert statistic < limit


def data(n=60, words=WORDS):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(words, (n, 1), generator=generator).expand(n, 2)
    return torch.nn.functional.one_hot(ids, words).float()


@pytest.mark.thorough
def test_a_short_training_round_trips_and_raises_the_likelihood(tmp_path):
    reports, short = [], {"steps": 40, "width": 8, "heads": 2}
    stored = transformer.TRANSFORMER.train(data(), report=reports.append, **short)
    assert reports[-1].held_out < reports[0].held_out - 0.01
    again = transformer.TRANSFORMER.train(data(), **short)
    assert all(torch.equal(stored.weights[key], again.weights[key]) for key in stored.weights)
    stored.save(tmp_path / "w.safetensors")
    field = stk.load("digits-transformer", weights=str(tmp_path / "w.safetensors"))
    assert field.event_shape == (2, WORDS)
    assert field.draw(5, stk.Noise(0, 5)).shape == (5, 2, WORDS)


@pytest.mark.parametrize(
    "bad",
    [torch.ones(9, 2, 3), torch.eye(4), torch.full((9, 2, 3), math.nan), torch.zeros(9, 2, 3)],
    ids=["ones", "ids", "nan", "zeros"],
)
def test_training_refuses_what_is_not_one_hot(bad):
    with pytest.raises(stk.InvalidArgument, match="data"):
        transformer.TRANSFORMER.train(bad, steps=1)


@pytest.mark.parametrize(
    "setting", [{"heads": 5}, {"heads": 0}, {"width": 0}, {"dropout": 1.0}, {"layers": 0}], ids=str
)
def test_training_refuses_bad_settings(setting):
    with pytest.raises(stk.InvalidArgument, match=rf"{next(iter(setting))}|width"):
        transformer.TRANSFORMER.train(data(), steps=1, **setting)


# The shipped model


@pytest.fixture(scope="module")
def field():
    return build(specs.digits_transformer)


def test_the_shipped_model_is_made_with_the_default_settings():
    path = shipped("digits-transformer")
    assert path.stat().st_size < 200_000
    made = read_weights(path, "digits-transformer").notes
    default = transformer.TRANSFORMER.train.__kwdefaults__
    assert made["command"].startswith("scoretk fit digits-transformer --seed 0 --set steps=")
    assert {k: v for k, v in default.items() if k not in ("report", "checkpoint")}.items() <= (
        made.items()
    )


@pytest.mark.slow
def test_the_shipped_model_obeys_the_laws(field):
    assert field.provides == specs.digits_transformer.provides
    assert [r for r in checked(field) if r.status == "failed"] == []


def test_it_knows_digits_better_than_sites_apart(field):
    digits = load_digits()
    train, test = (transformer.as_tokens(x).flatten(1, -2) for x in (digits.train, digits.test))
    torch.testing.assert_close(field.decode(test.reshape(-1, 1, 8, 8, 17)), digits.test)
    share = (train.mean(0) * len(train) + 0.1) / (len(train) + 1.7)
    apart = -(test * share.log()).sum((1, 2))
    own = field.energy(test.reshape(-1, 1, 8, 8, 17)).detach()
    assert float((own - apart).mean()) < -20  # nats an image: it has 82, sites apart 108


@pytest.mark.slow
def test_its_draws_look_like_digits(field):
    digits = load_digits()
    images = field.decode(field.draw(360, stk.Noise(0, 360)))
    generator = torch.Generator().manual_seed(0)
    real = (digits.train[torch.randperm(1437, generator=generator)[:360]] for _ in range(5))
    floor = sum(sliced_wasserstein(r, digits.test, seed=i) for i, r in enumerate(real)) / 5
    assert sliced_wasserstein(images, digits.test) < 1.5 * floor
    assert copies(images, digits.train, digits.test).share < 0.1
