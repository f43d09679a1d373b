"""The built-in models as plugins: light specs, registered through the same entry points as others."""

from scoretk.plugins.spec import ModelSpec

__all__ = [
    "digits_class_diffusion",
    "digits_diffusion",
    "digits_edm",
    "digits_energy",
    "digits_ffjord",
    "digits_flow",
    "digits_flow_classes",
    "digits_flow_ot",
    "digits_fvsbn",
    "digits_gan",
    "digits_interpolant",
    "digits_jem",
    "digits_latent_energy",
    "digits_made",
    "digits_maf",
    "digits_nade",
    "digits_ncsn",
    "digits_ncsnv2",
    "digits_nice",
    "digits_pixelcnn",
    "digits_rbm",
    "digits_realnvp",
    "digits_spline",
    "digits_subvp",
    "digits_transformer",
    "digits_v",
    "digits_vae",
    "digits_vae_binary",
    "digits_ve",
    "digits_wgan",
    "eight_schools",
    "funnel",
    "gaussian",
    "ising",
    "linear_regression",
    "logistic_regression",
    "potts",
    "rbm",
    "ring_mixture",
    "semicircle",
]

_EXACT = frozenset({"energy", "score", "log_prob", "draw"})

gaussian = ModelSpec(
    name="gaussian",
    family="analytic",
    factory="scoretk.models.targets.mixture:gaussian",
    provides=_EXACT,
    event_shape=None,
    summary="a Gaussian N(mean, std^2 I) in any dimension",
    parameters={"dim": 2, "mean": 0.0, "std": 1.0},
)
ring_mixture = ModelSpec(
    name="ring-mixture",
    family="analytic",
    factory="scoretk.models.targets.mixture:ring_mixture",
    provides=_EXACT,
    event_shape=(2,),
    summary="equal Gaussians on a circle in the plane, 8 by default",
    parameters={"components": 8, "radius": 2.0, "std": 0.25},
)
funnel = ModelSpec(
    name="funnel",
    family="analytic",
    factory="scoretk.models.targets.analytic:funnel",
    provides={"energy", "log_prob", "draw"},
    event_shape=None,
    summary="Neal's funnel: scales that differ by orders of magnitude",
    parameters={"dim": 10, "scale": 3.0},
)
semicircle = ModelSpec(
    name="semicircle",
    family="analytic",
    factory="scoretk.models.targets.analytic:semicircle",
    provides={"energy", "log_prob", "draw"},
    event_shape=(1,),
    summary="the semicircle law, whose energy is NaN outside (-1, 1)",
)
eight_schools = ModelSpec(
    name="eight-schools",
    family="bayesian",
    factory="scoretk.models.targets.analytic:eight_schools",
    provides={"energy"},
    event_shape=(10,),
    summary="the eight-schools posterior (Rubin 1981), non-centred, unconstrained",
)
linear_regression = ModelSpec(
    name="linear-regression",
    family="bayesian",
    factory="scoretk.models.targets.regression:linear_regression",
    provides={"energy", "score"},
    event_shape=(12,),
    summary="linear regression with unknown noise on scikit-learn's diabetes data",
)
logistic_regression = ModelSpec(
    name="logistic-regression",
    family="bayesian",
    factory="scoretk.models.targets.regression:logistic_regression",
    provides={"energy", "score"},
    event_shape=(31,),
    summary="logistic regression on scikit-learn's breast-cancer data",
)
ising = ModelSpec(
    name="ising",
    family="energy-based",
    factory="scoretk.models.targets.lattices:ising",
    provides={"energy", "score", "states", "couplings"},
    event_shape=None,
    summary="the Ising model on a periodic square lattice; exact where it can be enumerated",
    parameters={"size": 4, "coupling": 0.3, "field": 0.0},
)
potts = ModelSpec(
    name="potts",
    family="energy-based",
    factory="scoretk.models.targets.lattices:potts",
    provides={"energy", "score", "states", "couplings"},
    event_shape=None,
    summary="the Potts model on a periodic square lattice, one-hot; exact where it can be "
    "enumerated",
    parameters={"size": 4, "colours": 3, "coupling": 0.5},
)
rbm = ModelSpec(
    name="rbm",
    family="energy-based",
    factory="scoretk.models.targets.lattices:rbm",
    provides={"energy", "score", "states", "gibbs"},
    event_shape=None,
    summary="a restricted Boltzmann machine over binary units; exact where it can be enumerated",
    parameters={"visible": 6, "hidden": 4, "seed": 0},
)

_EXACT_STATES = _EXACT | {"states"}
_FLOW = _EXACT | {"decode"}
_LATENT = frozenset({"energy", "decode"})
_PATH = frozenset({"velocity", "score", "denoise", "base"})
_VELOCITY = frozenset({"velocity", "base"})


def _digits(
    name: str,
    family: str,
    trained: str,
    provides: frozenset[str],
    summary: str,
    event_shape: tuple[int, ...] = (1, 8, 8),
) -> ModelSpec:
    """The spec of a model of scikit-learn's handwritten digits.

    Args:
        name: Its name.
        family: Its family.
        trained: A module under `scoretk.models.digits`, or "module:object" in it, with `build` and
            `train`.
        provides: What its field provides.
        summary: One line about it.
        event_shape: The shape of an event.
    """
    at = f"scoretk.models.digits.{trained}" + ("." if ":" in trained else ":")
    return ModelSpec(
        name=name,
        family=family,
        factory=f"{at}build",
        trainer=f"{at}train",
        provides=provides,
        event_shape=event_shape,
        summary=summary,
        parameters={"weights": None},
    )


digits_fvsbn = _digits(
    "digits-fvsbn",
    "autoregressive",
    "autoregressive:FVSBN",
    _EXACT_STATES,
    "logistic autoregression on scikit-learn's handwritten digits, pixels 0 or 1",
)
digits_nade = _digits(
    "digits-nade",
    "autoregressive",
    "autoregressive:NADE",
    _EXACT_STATES,
    "a neural autoregressive estimator of scikit-learn's handwritten digits, pixels 0 or 1",
)
digits_made = _digits(
    "digits-made",
    "autoregressive",
    "autoregressive:MADE",
    _EXACT,
    "a masked autoencoder on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_pixelcnn = _digits(
    "digits-pixelcnn",
    "autoregressive",
    "autoregressive:PIXELCNN",
    _EXACT,
    "masked convolutions on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_transformer = _digits(
    "digits-transformer",
    "autoregressive",
    "transformer:TRANSFORMER",
    _EXACT_STATES | {"decode"},
    "a causal transformer, a language model whose text is a digit: tokens are levels of ink",
    (1, 8, 8, 17),
)
digits_vae = _digits(
    "digits-vae",
    "variational autoencoder",
    "vae:GAUSSIAN",
    frozenset({"energy", "log_prob", "draw", "decode"}),
    "a VAE with a Gaussian decoder on scikit-learn's handwritten digits, sampled in its latents",
    (12,),
)
digits_vae_binary = _digits(
    "digits-vae-binary",
    "variational autoencoder",
    "vae:BINARY",
    frozenset({"energy", "log_prob", "draw", "decode"}),
    "a VAE with a Bernoulli decoder on scikit-learn's handwritten digits, pixels 0 or 1, sampled "
    "in its latents",
    (12,),
)
digits_latent_energy = _digits(
    "digits-latent-energy",
    "variational autoencoder",
    "vae:LATENT_ENERGY",
    _LATENT,
    "a VAE whose prior is an energy learned by contrastive divergence, on scikit-learn's "
    "handwritten digits",
    (12,),
)
digits_nice = _digits(
    "digits-nice",
    "normalizing flow",
    "flows:NICE",
    _FLOW,
    "NICE, additive couplings, on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_realnvp = _digits(
    "digits-realnvp",
    "normalizing flow",
    "flows:REALNVP",
    _FLOW,
    "real NVP, affine couplings, on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_maf = _digits(
    "digits-maf",
    "normalizing flow",
    "flows:MAF",
    _FLOW,
    "masked autoregressive flow, affine, on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_spline = _digits(
    "digits-spline",
    "normalizing flow",
    "flows:SPLINE",
    _FLOW,
    "neural spline flow, rational-quadratic couplings, on scikit-learn's handwritten digits, "
    "pixels in [-1, 1]",
)
digits_ffjord = _digits(
    "digits-ffjord",
    "normalizing flow",
    "flows:FFJORD",
    _VELOCITY,
    "FFJORD, a continuous flow by maximum likelihood, on scikit-learn's handwritten digits, pixels "
    "in [-1, 1]",
)
digits_gan = _digits(
    "digits-gan",
    "adversarial",
    "adversarial:GAN",
    _LATENT,
    "a GAN's latents under its critic's energy, on scikit-learn's handwritten digits; decode gives "
    "images",
    (64,),
)
digits_wgan = _digits(
    "digits-wgan",
    "adversarial",
    "adversarial:WGAN",
    _LATENT,
    "a Wasserstein GAN's latents under its critic's energy, on scikit-learn's digits; decode gives "
    "images",
    (64,),
)
digits_energy = _digits(
    "digits-energy",
    "energy-based",
    "energy",
    frozenset({"energy"}),
    "persistent contrastive divergence on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_rbm = _digits(
    "digits-rbm",
    "energy-based",
    "boltzmann",
    frozenset({"energy", "score", "states", "gibbs"}),
    "a restricted Boltzmann machine of scikit-learn's handwritten digits, pixels 0 or 1",
)
digits_jem = _digits(
    "digits-jem",
    "energy-based",
    "jem",
    frozenset({"energy", "score"}),
    "a classifier that is an energy-based model too, of scikit-learn's handwritten digits, pixels "
    "in [-1, 1]",
)
digits_ncsn = _digits(
    "digits-ncsn",
    "score",
    "ncsn:DIGITS_NCSN",
    _PATH,
    "a noise-conditional score network over twelve levels, scikit-learn's handwritten digits",
)
digits_ncsnv2 = _digits(
    "digits-ncsnv2",
    "score",
    "ncsn:DIGITS_NCSNV2",
    _PATH,
    "one score network for all levels (NCSNv2), scikit-learn's handwritten digits",
)
digits_diffusion = _digits(
    "digits-diffusion",
    "diffusion",
    "diffusion:DIGITS_DIFFUSION",
    _PATH,
    "noise prediction (VP) on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_subvp = _digits(
    "digits-subvp",
    "diffusion",
    "diffusion:DIGITS_SUBVP",
    _PATH,
    "noise prediction on the sub-VP path, scikit-learn's handwritten digits",
)
digits_ve = _digits(
    "digits-ve",
    "diffusion",
    "diffusion:DIGITS_VE",
    _PATH,
    "score prediction on the VE path, scikit-learn's handwritten digits",
)
digits_edm = _digits(
    "digits-edm",
    "diffusion",
    "diffusion:DIGITS_EDM",
    _PATH,
    "data prediction in EDM's preconditioning, scikit-learn's handwritten digits",
)
digits_v = _digits(
    "digits-v",
    "diffusion",
    "diffusion:DIGITS_V",
    _PATH,
    "v prediction on the cosine path, scikit-learn's handwritten digits",
)
digits_class_diffusion = _digits(
    "digits-class-diffusion",
    "diffusion",
    "diffusion:DIGITS_CLASS",
    _PATH,
    "noise prediction (VP) given the digit or not, for classifier-free guidance",
)
digits_flow = _digits(
    "digits-flow",
    "flow matching",
    "flow_matching:FLOW",
    _PATH,
    "flow matching on scikit-learn's handwritten digits, pixels in [-1, 1]",
)
digits_flow_ot = _digits(
    "digits-flow-ot",
    "flow matching",
    "flow_matching:OPTIMAL",
    _VELOCITY,
    "flow matching with minibatch optimal transport: straighter paths, fewer steps; handwritten "
    "digits",
)
digits_flow_classes = _digits(
    "digits-flow-classes",
    "flow matching",
    "flow_matching:CLASSES",
    _VELOCITY,
    "flow matching from one class of handwritten digits (3) to another (8)",
)
digits_interpolant = _digits(
    "digits-interpolant",
    "flow matching",
    "flow_matching:INTERPOLANT",
    _PATH,
    "a stochastic interpolant between noise and handwritten digits, velocity and score",
)
