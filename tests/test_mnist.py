"""The bench of MNIST: files, draws, families and estimators, on files that the tests write."""

import gzip
import itertools
import json
import math
import struct
from dataclasses import replace

import pytest
import torch
from torch import distributions as td

import scoretk as stk
from scoretk.cli import main
from scoretk.core.noise import Noise
from scoretk.core.streams import Stream
from scoretk.demo.bench.mnist import grey as grey_images
from scoretk.demo.bench.mnist import table, training
from scoretk.demo.bench.mnist.data import Split, binarised, grey_split, split
from scoretk.demo.bench.mnist.estimates import CHUNK, Nats, Second, by_log_z, by_weights, exactly
from scoretk.demo.bench.mnist.families import Masked
from scoretk.demo.bench.mnist.grey import OnPath
from scoretk.demo.bench.mnist.idx import Images, find_images, find_labels, read_images, read_labels
from scoretk.demo.bench.mnist.judge import Judge, judge_of
from scoretk.demo.bench.mnist.masks import ManyMasks, OrderMixture
from scoretk.demo.bench.mnist.mixture import BernoulliMixture, expectation_maximisation
from scoretk.demo.bench.mnist.published import FAMILIES
from scoretk.demo.bench.mnist.training import Plan, Point, Trained, limited, looks, timed
from scoretk.demo.bench.rows import Asked, Curve
from scoretk.models.digits.networks import fresh
from scoretk.models.latent.autoregressive import Backbone
from scoretk.models.latent.vae import VAE
from scoretk.models.targets.lattices import IndependentUnits, rbm
from tests.evidence import assert_mean, z_limit
from tests.marks import slow_but

NAMES = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


def grey(n, seed=0):
    """Blobs of ink: a disc of a radius of its own in each image."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(28.0)
    far = (place[:, None] - 13.5).square() + (place - 13.5).square()
    radius = 4 + 6 * torch.rand(n, 1, 1, generator=generator)
    return (255 * torch.sigmoid(radius - far.sqrt())).round().to(torch.uint8)


def idx(images, magic=0x803, size=None):
    return struct.pack(">4I", magic, *(size or images.shape)) + images.numpy().tobytes()


def write(folder, ending="", train=120, test=30):
    folder.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress if ending else bytes
    for name, images in zip(NAMES, (grey(train), grey(test, 1)), strict=True):
        (folder / (name + ending)).write_bytes(packed(idx(images)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mnist"), ".gz")


# Files.


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("inner", [".", "raw", "MNIST/raw"])
def test_images_are_read_as_they_were_written(inner, ending, tmp_path):
    write(tmp_path / inner, ending)
    images = find_images(tmp_path)
    assert torch.equal(images.train, grey(120))
    assert torch.equal(images.test, grey(30, 1))


WHOLE = idx(grey(3))
PACKED = gzip.compress(WHOLE)


@pytest.mark.parametrize(
    ("ending", "content", "says"),
    [
        ("", b"", "a header of 16 bytes, got '0 bytes'"),
        ("", WHOLE[:-1], "2352 bytes of 3 images, got '2351 bytes'"),
        ("", WHOLE + b"\0", "2352 bytes of 3 images, got 'more'"),
        ("", idx(grey(3), magic=0x801), "magic number 0x00000803.*got '0x00000801'"),
        ("", idx(grey(3), size=(3, 27, 28)), r"28 x 28 pixels.*got \(3, 27, 28\)"),
        ("", idx(grey(3), size=(0, 28, 28)), r"28 x 28 pixels.*got \(0, 28, 28\)"),
        ("", idx(grey(3), size=(2**32 - 1, 28, 28)), r"28 x 28 pixels.*got \(4294967295"),
        (".gz", WHOLE, "a whole file, compressed by gzip"),
        (".gz", PACKED[:-9], "a whole file, compressed by gzip"),
        (".gz", PACKED[:40] + bytes(8) + PACKED[48:], "a whole file, compressed by gzip"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(ending, content, says, tmp_path):
    path = tmp_path / ("images" + ending)
    path.write_bytes(content)
    with pytest.raises(stk.InvalidArgument, match=says):
        read_images(path)


def test_a_folder_without_the_files_is_refused(tmp_path, folder, capsys):
    assert main(["bench", "mnist", "--data", str(tmp_path)]) == 2
    assert NAMES[0] in capsys.readouterr().err
    assert main(["bench", "mnist"]) == 2
    assert "--data" in capsys.readouterr().err
    (tmp_path / NAMES[0]).write_bytes(WHOLE)
    with pytest.raises(stk.InvalidArgument, match=NAMES[1]):
        find_images(tmp_path)


def labels_idx(labels, magic=0x801):
    return struct.pack(">2I", magic, len(labels)) + bytes(labels)


def write_labels(folder, train=120, test=30):
    for name, n in (("train-labels-idx1-ubyte", train), ("t10k-labels-idx1-ubyte", test)):
        (folder / name).write_bytes(labels_idx([i % 10 for i in range(n)]))


def test_labels_are_read_as_they_were_written_where_they_are_there(tmp_path):
    write(tmp_path)
    images = find_images(tmp_path)
    assert find_labels(tmp_path, images) is None
    write_labels(tmp_path)
    labels = find_labels(tmp_path, images)
    assert labels.train.tolist() == [i % 10 for i in range(120)]
    assert labels.test.tolist() == [i % 10 for i in range(30)]
    write_labels(tmp_path, test=29)
    with pytest.raises(stk.InvalidArgument, match="one an image, 30"):
        find_labels(tmp_path, images)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (labels_idx([3, 10]), "digits from 0 to 9, got 10"),
        (labels_idx([3, 1])[:-1], "2 bytes of 2 labels, got '1 bytes'"),
        (labels_idx([3, 1], magic=0x803), "magic number 0x00000801.*got '0x00000803'"),
    ],
)
def test_damaged_labels_say_what_is_wrong(content, says, tmp_path):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(stk.InvalidArgument, match=says):
        read_labels(tmp_path / "labels")


# Draws and split.


def test_pixels_are_one_bernoulli_draw_each():
    images = torch.tensor([0, 77, 255], dtype=torch.uint8).expand(40_000, 3)
    drawn = binarised(images, seed=3)
    assert not drawn[:, 0].any()
    assert drawn[:, 2].all()
    assert_mean(drawn[:, 1], 77 / 255)
    with pytest.raises(AssertionError):
        assert_mean(drawn[:, 1], 85 / 255)


def test_the_draw_of_an_image_is_its_own():
    images = torch.full((9000, 2, 2), 128, dtype=torch.uint8)
    drawn = binarised(images, seed=0)
    assert torch.equal(drawn[5000:5003], binarised(images[:3], seed=0, first=5000))
    assert not torch.equal(drawn, binarised(images, seed=1))
    same = images[:60].repeat(1, 14, 14)
    data = split(Images(same, same), seed=0)
    assert not torch.equal(data.test[:10], data.train[:10]), "test images share no draw with others"


def test_the_last_sixth_is_for_choosing():
    images = torch.zeros(60, 28, 28, dtype=torch.uint8)
    images[50:] = 255
    data = split(Images(images, images[:7]), seed=0)
    assert [len(part) for part in data] == [50, 10, 7]
    assert data.valid.all()
    assert not data.train.any()
    with pytest.raises(stk.InvalidArgument, match="at least 6 images"):
        split(Images(images[:5], images), seed=0)


# The mixture.


def small_mixture():
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logits = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
    return BernoulliMixture(shares.log(), logits)


STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)


def test_likelihood_of_a_mixture_is_that_of_enumeration():
    mixture, x = small_mixture(), STATES.reshape(-1, 2, 3)
    law = td.MixtureSameFamily(
        td.Categorical(logits=mixture.log_shares),
        td.Independent(td.Bernoulli(logits=mixture.logits.flatten(1)), 1),
    )
    assert torch.allclose(mixture.log_prob(x), law.log_prob(STATES), rtol=0, atol=1e-12)
    assert float(mixture.log_prob(x).exp().sum()) == pytest.approx(1, abs=1e-12)
    slope = torch.autograd.grad(mixture.energy(x.requires_grad_()).sum(), x)[0]
    assert torch.allclose(mixture.score(x), -slope, rtol=0, atol=1e-12)


def test_draws_of_a_mixture_are_its_own():
    mixture, n = small_mixture(), 20_000
    drawn = mixture.draw(n, Noise(0, n, dtype=torch.float64)).flatten(1)
    share = mixture.log_prob(STATES.reshape(-1, 2, 3)).exp()
    assert_mean((drawn[:, None] == STATES).all(2).double(), share)
    with pytest.raises(AssertionError):
        assert_mean((drawn[:, None] == STATES).all(2).double(), share.flip(0))


def test_an_iteration_is_what_its_formula_says():
    """The second of two, written in plain sums, from the first."""
    data = (torch.rand(40, 2, 3, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    found = expectation_maximisation(data, 3, torch.Generator().manual_seed(2))
    before, after = next(found), next(found)
    overall = [(float(data.flatten(1)[:, i].sum()) + 0.5) / 41 for i in range(6)]
    m = torch.sigmoid(before.logits.double()).flatten(1).tolist()
    w = before.log_shares.exp().tolist()
    held, seen = [0.0] * 3, [[0.0] * 6 for _ in range(3)]
    for x in data.flatten(1).tolist():
        p = [w[k] * math.prod(m[k][i] if x[i] else 1 - m[k][i] for i in range(6)) for k in range(3)]
        for k in range(3):
            held[k] += p[k] / sum(p)
            seen[k] = [s + p[k] / sum(p) * x_i for s, x_i in zip(seen[k], x, strict=True)]
    shares = torch.tensor([h / 40 for h in held])
    rates = [[(seen[k][i] + overall[i]) / (held[k] + 1) for i in range(6)] for k in range(3)]
    assert torch.allclose(after.log_shares.exp(), shares, atol=1e-5)
    assert torch.allclose(torch.sigmoid(after.logits).flatten(1), torch.tensor(rates), atol=1e-5)


# Grey images.


def test_grey_levels_keep_the_split_of_binarised_images():
    images = torch.arange(60, dtype=torch.uint8)[:, None, None].expand(60, 28, 28)
    data = grey_split(Images(images, images[:7]))
    assert [len(part) for part in data] == [50, 10, 7]
    assert torch.equal(data.valid[:, 0, 0] * 256, torch.arange(50.0, 60.0))


def test_logits_have_the_jacobian_of_their_slopes():
    y = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, slope = grey_images.logits(y)
    assert torch.allclose(grey_images.as_pixels(z), y, rtol=0, atol=1e-12)
    step = 1e-6
    by_hand = (grey_images.logits(y + step)[0] - grey_images.logits(y - step)[0]) / (2 * step)
    assert torch.allclose(slope, by_hand.log().sum(1), rtol=0, atol=1e-6)


class UniformLogits:
    """Levels all alike: y uniform on [0, 1], as a law of its logits."""

    event_shape = (28, 28)
    provides = frozenset({"log_prob"})

    def log_prob(self, z):
        squeezed = torch.sigmoid(z.double())
        return (squeezed * (1 - squeezed)).log().flatten(1).sum(1).to(z)


def test_levels_that_are_all_alike_have_eight_bits(data):
    images = torch.linspace(0, 255, 4).floor()[:, None, None].expand(4, 28, 28) / 256
    family = FAMILIES["grey-couplings"].quick
    made = family.judge(UniformLogits(), data._replace(test=images), 0)
    assert made.value == pytest.approx(8, abs=1e-3)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", slow_but(["grey-flow-matching", "grey-diffusion"], "grey-diffusion")
)
def test_probes_agree_with_the_exact_divergence_and_with_the_gaussian(name, folder):
    """An untrained network is that of the Gaussian of the logits, whose density is known."""
    grey_data, family = grey_split(find_images(folder)), FAMILIES[name].quick
    family = replace(family, steps=8)
    network = family.network(grey_data.train, 0)
    for weights in network.backbone.parameters():
        weights.data.zero_()
    std = torch.tensor([3.0, 5.0]).repeat(392)
    mirror = torch.eye(784) - torch.ones(784, 784) / 392  # axes that no pixel has to itself
    for part, value in zip(
        (network.mean, network.basis, network.std), (torch.zeros(784), mirror, std), strict=True
    ):
        part.copy_(value)
    field = stk.Diffusion(network, (28, 28), family.path, family.predicts)
    made = family.judge(field, grey_data, seed=0)
    assert made.second.agrees
    assert 0 < made.second.stderr < 0.5
    u = Noise(0, 2).uniform(0, Stream.START, (28, 28))
    z, slope = grey_images.logits(grey_data.test[:2] + u / 256)
    normal = td.Normal(0.0, std).log_prob(z.flatten(1) @ mirror).sum(1)
    bits = 8 - (normal + slope).mean() / (784 * math.log(2))
    assert made.second.first == pytest.approx(float(bits), abs=0.02)


# The judge of samples.


def of_class(k, sure=50.0):
    """An image whose first ten pixels are the logits of `Reader`."""
    image = torch.zeros(28, 28)
    image[0, k] = sure
    return image


class Reader(torch.nn.Module):
    def forward(self, x):
        return x[:, :10]


def test_what_the_judge_says_is_what_its_formulas_say():
    test = torch.stack([of_class(k % 10) for k in range(40)])
    labels = torch.arange(40) % 10
    labels[:4] = 9
    judge = Judge(Reader(), torch.full((10,), 0.1), test, labels)
    made = judge.judged(torch.zeros(20, 28, 28))
    assert made.samples.entropy == pytest.approx(math.log(10))
    assert made.samples.apart == pytest.approx(0.9), "all in one class"
    assert made.floor.entropy == pytest.approx(0, abs=1e-9)
    assert made.floor.apart == pytest.approx(0, abs=1e-6)
    assert made.accuracy == 36 / 40
    one = judge.judged(test[:3])
    assert one.floor.apart == pytest.approx(0.7, abs=1e-6), "three images fill three classes"


def test_a_judge_is_trained_on_the_labelled_images():
    labels = torch.arange(600) % 10
    images = torch.stack([of_class(int(k), 1.0) for k in labels])
    data, digits = (Split(part[:400], part[400:500], part[500:]) for part in (images, labels))
    judge = judge_of(data, digits, quick=True)
    assert judge.judged(images[:100]).accuracy > 0.95
    assert judge.opinion(images[:100]).apart < 0.05


# Many masks.


def shuffled(dim=5, masks=3):
    network = fresh(
        lambda: ManyMasks(dim, 16, 2, masks, 0.0), torch.Generator().manual_seed(1)
    ).double()
    for weights in network.parameters():
        weights.data *= 4  # orders with laws apart
    return OrderMixture(network.requires_grad_(False), (dim,))


ROWS_OF_5 = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)), dtype=torch.float64)


def test_each_mask_is_an_autoregressive_law_in_its_own_order():
    network = shuffled().network
    for k, mask in enumerate(network.masks):
        assert float(network.log_prob(ROWS_OF_5, k).exp().sum()) == pytest.approx(1, abs=1e-9)
        x = ROWS_OF_5[11:12].clone().requires_grad_()
        a = network.net.masked(x, mask)[0, :, 0]
        slopes = torch.stack([torch.autograd.grad(each, x, retain_graph=True)[0][0] for each in a])
        assert torch.equal(slopes != 0, mask.place[:, None] > mask.place), (
            "sites before it, and all"
        )
    orders = {tuple(mask.place.tolist()) for mask in network.masks}
    assert len(orders) == len(network.masks)


def test_the_mixture_of_orders_is_normalised_and_its_draws_are_its_own():
    field, n = shuffled(), 20_000
    share = field.log_prob(ROWS_OF_5).exp()
    each = torch.stack([field.network.log_prob(ROWS_OF_5, k).exp() for k in range(3)])
    assert torch.allclose(share, each.mean(0), rtol=0, atol=1e-12)
    drawn = field.draw(n, Noise(0, n, dtype=torch.float64))
    assert_mean((drawn[:, None] == ROWS_OF_5).all(2).double(), share)
    with pytest.raises(AssertionError):
        assert_mean((drawn[:, None] == ROWS_OF_5).all(2).double(), each[0])
    x = ROWS_OF_5[:3].clone().requires_grad_()
    slope = torch.autograd.grad(field.energy(x).sum(), x)[0]
    assert torch.allclose(field.score(x.detach()), -slope, rtol=0, atol=1e-12)


# Estimators.


def test_log_z_of_a_small_machine_by_both_is_that_of_enumeration():
    machine = rbm(10, 5, seed=1)
    test = (torch.rand(300, 10, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    made = by_log_z(machine, IndependentUnits(torch.zeros(10)), test, 512, None, seed=0)
    right, second, limit = machine.exact_log_partition(), made.second, z_limit(2)
    assert second.agrees
    assert abs(second.first - right) < limit * made.estimate
    assert abs(second.second - right) < limit * second.stderr
    each = machine.energy(test).double() + right
    assert made.value - float(each.mean()) == pytest.approx(second.first - right, abs=1e-5)
    assert made.rows == pytest.approx(float(each.std()) / math.sqrt(300), rel=1e-5)
    assert made.stderr == math.hypot(made.rows, made.estimate)
    assert abs(second.first - right - 0.5) > limit * made.estimate, "half a nat would be seen"


def one_latent():
    """An autoencoder of one latent whose encoder is too wide, and its exact log p by quadrature."""
    slope = torch.tensor([2.0, -1.0, 1.5, 0.5])

    def encoder(x):
        centre = (x @ slope)[:, None] / 4
        return td.Independent(td.Normal(centre, torch.ones_like(centre)), 1, validate_args=False)

    def decoder(z):
        return td.Independent(td.Bernoulli(logits=z * slope - 0.3), 1, validate_args=False)

    def log_prob(x):
        z = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
        logits = z * slope.double() - 0.3
        each = td.Bernoulli(logits=logits[:, None]).log_prob(x.double()).sum(2)
        weight = td.Normal(0.0, 1.0).log_prob(z) + math.log(18 / 4000)
        return (each + weight).logsumexp(0)

    return VAE(encoder, decoder, (1,), (4,), pixel_states=(0.0, 1.0)), log_prob


def test_weights_and_annealing_find_the_likelihood_of_an_autoencoder():
    vae, log_prob = one_latent()
    test = (torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    made, right = by_weights(vae, test, 2000, 2, seed=0), -log_prob(test)
    limit = z_limit(3)
    assert abs(made.value - float(right.mean())) < limit * made.estimate
    assert made.second.agrees
    assert abs(made.second.first - float(right[:2].mean())) < limit * made.second.stderr
    assert abs(made.second.second - float(right[:2].mean())) < limit * made.second.stderr
    assert max(made.estimate, made.second.stderr) * limit < 0.3


# Training.


@pytest.fixture(scope="module")
def data(folder):
    return split(find_images(folder), 0)


def of_law(curve):
    return [(point.step, point.nats) for point in curve]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_that_of_the_seed_and_learns(name, data, folder):
    entry = FAMILIES[name]
    # chains begin far from the data, and a path at the Gaussian of a hundred of them
    steps = 40 if name in ("rbm", "grey-flow-matching", "grey-diffusion") else 6
    family, data = entry.quick, grey_split(find_images(folder)) if entry.grey else data
    data = data._replace(valid=data.train) if isinstance(family, OnPath) else data
    one, same, other = (family.train(data, Plan(steps=steps, seed=seed)) for seed in (0, 0, 1))
    assert of_law(one.curve) == of_law(same.curve)
    assert of_law(one.curve) != of_law(other.curve)
    assert one.curve[-1].step == one.steps == steps
    assert one.curve[-1].nats < one.curve[0].nats
    drawn, again, others = (family.draws(one.field, 3, seed) for seed in (0, 0, 1))
    assert drawn.shape == (3, 28, 28)
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    assert entry.grey or bool(((drawn == 0) | (drawn == 1)).all())
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, others)


@pytest.mark.parametrize("name", ["mixture", "made"])
def test_kept_is_what_the_curve_says_is_best(name, data):
    trained = FAMILIES[name].quick.train(data, Plan(steps=8))
    best = min(point.nats for point in trained.curve)
    assert exactly(trained.field, data.valid).value == pytest.approx(best, rel=1e-5)


class Watched(Backbone):
    """A logit for each site, and how many images it was asked of at once."""

    rows = ()

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Linear(784, 1)

    def forward(self, x):
        Watched.rows += (len(x),)
        return self.bias.weight.mT.expand(len(x), 784, 1)


def test_images_for_choosing_are_looked_at_in_parts(data):
    """NADE takes a hidden unit for each site of each image: of all at once it was killed for memory."""
    recipe = replace(FAMILIES["nade"].quick.recipe, batch=300)
    images = data._replace(train=data.train.repeat(4, 1, 1), valid=data.valid.repeat(20, 1, 1))
    Watched.rows = ()
    trained = Masked(Watched, recipe, "watched").train(images, Plan(steps=3))
    assert max(Watched.rows) == 300
    assert sorted({*Watched.rows}) == [150, CHUNK, 300]
    assert trained.curve[-1].nats == pytest.approx(exactly(trained.field, images.valid).value)


def test_weights_of_a_laplace_law_are_small_and_biases_are_not(data):
    """Of a steep law all are nearly 0; the law is not of the images that are looked at."""
    quick = FAMILIES["fvsbn"].quick
    recipe = replace(quick.recipe, steps=60, learning_rate=0.05, weight_decay=0.0)
    plain, lax, steep = (
        replace(quick, recipe=recipe, sparse=sparse).train(data, Plan()) for sparse in (0, 1, 500)
    )
    sizes = [
        t.field.network.backbone.layer.weight.tril(-1).abs().mean() for t in (plain, lax, steep)
    ]
    assert sizes[0] > sizes[1] > 5 * sizes[2]
    assert steep.field.network.backbone.layer.bias.abs().mean() > 0.5
    assert steep.curve[-1].nats == pytest.approx(exactly(steep.field, data.valid).value)


def test_minutes_are_steps_by_the_time_of_a_step():
    assert Plan(minutes=1.0).of(1000, lambda: 0.5) == 108
    assert Plan(minutes=1.0).of(100, lambda: 0.5) == 100
    assert Plan(minutes=1e-9).of(100, lambda: 0.5) == 1
    assert Plan().of(100, lambda: pytest.fail("no step is to be timed")) == 100
    assert Plan(minutes=1.0, steps=7).of(5, lambda: pytest.fail("nor here")) == 7
    assert limited(10, 1, 1e-9) == 10
    assert looks(10, 3) == {4, 8, 10}
    assert looks(2, 40) == {1, 2}


def test_a_step_is_timed_by_a_share_of_the_minutes(monkeypatch):
    """Steps of half a second, the first ten of which take five times as long: of 2 % of 30 minutes."""
    clock, made = [0.0], []
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])

    def steps(n):
        clock[0] += 0.5 * (n + 4 * max(0, min(n, 10 - sum(made))))
        made.append(n)

    assert timed(steps, Plan(minutes=30)) == 0.5
    assert made == [5, 10, 20, 40, 80]
    made.clear()
    assert timed(steps, Plan(minutes=1e-6)) == 2.5
    assert made == [5]


def test_few_minutes_make_few_steps(data):
    trained = FAMILIES["fvsbn"].quick.train(data, Plan(minutes=1e-6))
    assert (trained.steps, trained.of) == (1, 30)


# The table.


@pytest.mark.thorough
def test_mnist_by_the_command_line(tmp_path, capsys):
    folder = write(tmp_path / "mnist")
    write_labels(folder)
    words = ["bench", "mnist", "--data", str(folder), "--families", "mixture,rbm", "-o"]
    assert main([*words, str(tmp_path)]) == 0
    assert "bench done: 2 rows" in capsys.readouterr().out
    made = json.loads((tmp_path / "bench.json").read_text())
    mixture, machine = made["tables"]["mnist"]
    assert made["about"]["command"].endswith("--families mixture,rbm --data FOLDER --seed 0")
    assert (mixture["family"], mixture["published"]) == ("mixture", "137.64")
    assert mixture["test nats"]["value"] < 700
    assert [point[0] for point in mixture["curve"]] == [1, 2, 3, 4, 5]
    assert "z " in machine["two estimates"]
    assert (tmp_path / mixture["samples"]).read_bytes().startswith(b"\x89PNG")
    assert machine["judge"].startswith("right on 0.")
    page = (tmp_path / "index.html").read_text()
    assert '<a href="samples-mixture.png">' in page
    assert all(text in page for text in ("137.64", "86.34", "not checked", "5 of 5"))


ROWS = Asked(families=("mixture",), named=("mnist",))


def rows_of(folder, **changes):
    return list(table.mnist(replace(ROWS, data=folder, **changes)))


def test_full_rows_go_as_far_as_they_are_told(folder, monkeypatch):
    entry = FAMILIES["mixture"]
    small = replace(entry, family=replace(entry.family, components=4))
    monkeypatch.setitem(table.FAMILIES, "mixture", small)
    (row,) = rows_of(folder, quick=False, steps=2)
    assert row["steps"] == "2 of 200"
    assert row["reached"] == ("yes" if row["test nats"].value <= 137.64 else "no")


@pytest.mark.parametrize(
    ("value", "second", "cause"),
    [
        (137.0, None, ""),
        (140.0, None, "2.36 nats above the published number, after 5 of 9 steps"),
        (137.0, Second(1.0, 1.3, 0.1, "both"), ""),
        (137.0, Second(1.0, 1.5, 0.1, "both"), "two estimates are 5.0 standard errors apart"),
        (137.0, Second(1.0, 1.0, 0.1, "both", trusted=False), "not to be trusted"),
        (137.0, Second(1.0, 1.0, 0.0, "both"), ""),
        (137.0, Second(1.0, 1.1, 0.0, "both"), "two estimates are inf standard errors apart"),
        (math.nan, None, "nan nats above"),
    ],
)
def test_what_is_not_reached_says_why(value, second, cause, folder, monkeypatch):
    trained = Trained(None, 5, 9, (Point(5, 140.0, 1.0),), "none")
    made = Nats(value, 0.5, 0.0, "exact", second)

    class Known:
        def train(self, data, plan):
            return trained

        def judge(self, field, data, seed):
            return made

        def draws(self, field, n, seed):
            pytest.fail("nobody looks at samples: there is neither a folder nor a judge")

    entry = replace(FAMILIES["mixture"], quick=Known())
    monkeypatch.setitem(table.FAMILIES, "mixture", entry)
    (row,) = rows_of(folder)
    assert cause in row["cause"]
    assert row["reached"] == ("no" if cause else "yes")


def test_a_family_that_fails_says_so_in_its_row(folder, monkeypatch):
    class Broken:
        def train(self, data, plan):
            raise stk.FitFailure(3, {})

    monkeypatch.setitem(table.FAMILIES, "mixture", replace(FAMILIES["mixture"], quick=Broken()))
    (row,) = rows_of(folder)
    assert row["reached"] == "no"
    assert row["cause"]


def test_without_data_there_is_a_row_that_says_so_unless_the_table_was_named(tmp_path):
    (row,) = table.mnist(Asked(data=tmp_path))
    assert NAMES[0] in row["cause"]
    with pytest.raises(stk.InvalidArgument, match=NAMES[0]):
        rows_of(tmp_path)
    assert not list(table.mnist(Asked(data=tmp_path, targets=("banana",))))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mnist", "--families", "mixtures"], "mixture"),
        (["mnist", "--minutes", "3"], "--full beside it"),
        (["mnist", "--full", "--minutes", "-3"], "--minutes"),
        (["mnist", "--full", "--steps", "0"], "--steps"),
        (["evidence", "--families", "rbm"], "scoretk bench mnist"),
    ],
)
def test_wrong_words_are_refused(words, says, folder, capsys):
    assert main(["bench", *words, "--data", str(folder)]) == 2
    assert says in capsys.readouterr().err


def test_a_curve_is_shown_from_its_first_point_to_its_last():
    curve = Curve(tuple((i, 100.0 - i, 0.0) for i in range(1, 21)))
    shown = str(curve).split(", ")
    assert len(shown) <= 8
    assert (shown[0], shown[-1]) == ("1: 99.00", "20: 80.00")
    assert str(Curve(((1, 3.0, 0.0),))) == "1: 3.00"
