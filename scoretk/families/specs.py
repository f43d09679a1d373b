"""The built-in models as plugins: light specs, registered through the same entry points as everybody's."""

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
    factory="scoretk.families.mixture:gaussian",
    provides=_EXACT,
    event_shape=None,
    summary="a Gaussian N(mean, std^2 I) in any dimension",
    parameters={"dim": 2, "mean": 0.0, "std": 1.0},
)
ring_mixture = ModelSpec(
    name="ring-mixture",
    family="analytic",
    factory="scoretk.families.mixture:ring_mixture",
    provides=_EXACT,
    event_shape=(2,),
    summary="equal Gaussians on a circle in the plane, 8 by default",
    parameters={"components": 8, "radius": 2.0, "std": 0.25},
)
funnel = ModelSpec(
    name="funnel",
    family="analytic",
    factory="scoretk.families.analytic:funnel",
    provides={"energy", "log_prob", "draw"},
    event_shape=None,
    summary="Neal's funnel: scales that differ by orders of magnitude",
    parameters={"dim": 10, "scale": 3.0},
)
semicircle = ModelSpec(
    name="semicircle",
    family="analytic",
    factory="scoretk.families.analytic:semicircle",
    provides={"energy", "log_prob", "draw"},
    event_shape=(1,),
    summary="the semicircle law, whose energy is NaN outside (-1, 1)",
)
eight_schools = ModelSpec(
    name="eight-schools",
    family="bayesian",
    factory="scoretk.families.analytic:eight_schools",
    provides={"energy"},
    event_shape=(10,),
    summary="the eight-schools posterior (Rubin 1981), non-centred, unconstrained",
)
linear_regression = ModelSpec(
    name="linear-regression",
    family="bayesian",
    factory="scoretk.families.regression:linear_regression",
    provides={"energy", "score"},
    event_shape=(12,),
    summary="linear regression with unknown noise on scikit-learn's diabetes data",
)
logistic_regression = ModelSpec(
    name="logistic-regression",
    family="bayesian",
    factory="scoretk.families.regression:logistic_regression",
    provides={"energy", "score"},
    event_shape=(31,),
    summary="logistic regression on scikit-learn's breast-cancer data",
)
ising = ModelSpec(
    name="ising",
    family="energy-based",
    factory="scoretk.families.discrete:ising",
    provides={"energy", "score", "states"},
    event_shape=None,
    summary="the Ising model on a periodic square lattice; exact where it can be enumerated",
    parameters={"size": 4, "coupling": 0.3, "field": 0.0},
)
potts = ModelSpec(
    name="potts",
    family="energy-based",
    factory="scoretk.families.discrete:potts",
    provides={"energy", "score", "states"},
    event_shape=None,
    summary="the Potts model on a periodic square lattice, one-hot; exact where it can be enumerated",
    parameters={"size": 4, "colours": 3, "coupling": 0.5},
)
rbm = ModelSpec(
    name="rbm",
    family="energy-based",
    factory="scoretk.families.discrete:rbm",
    provides={"energy", "score", "states", "gibbs"},
    event_shape=None,
    summary="a restricted Boltzmann machine over binary units; exact where it can be enumerated",
    parameters={"visible": 6, "hidden": 4, "seed": 0},
)

_PATH = frozenset({"velocity", "score", "denoise", "base"})

digits_diffusion = ModelSpec(
    name="digits-diffusion",
    family="diffusion",
    factory="scoretk.families.diffusion:DIGITS_DIFFUSION.build",
    trainer="scoretk.families.diffusion:DIGITS_DIFFUSION.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="noise prediction (VP) on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_energy = ModelSpec(
    name="digits-energy",
    family="energy-based",
    factory="scoretk.families.digits_energy:build",
    trainer="scoretk.families.digits_energy:train",
    provides={"energy"},
    event_shape=(1, 8, 8),
    summary="persistent contrastive divergence on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_flow = ModelSpec(
    name="digits-flow",
    family="flow matching",
    factory="scoretk.families.flow_matching:FLOW.build",
    trainer="scoretk.families.flow_matching:FLOW.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="flow matching on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_flow_ot = ModelSpec(
    name="digits-flow-ot",
    family="flow matching",
    factory="scoretk.families.flow_matching:OPTIMAL.build",
    trainer="scoretk.families.flow_matching:OPTIMAL.train",
    provides={"velocity", "base"},
    event_shape=(1, 8, 8),
    summary="flow matching with minibatch optimal transport: straighter paths, fewer steps; handwritten digits",
    parameters={"weights": None},
)
digits_flow_classes = ModelSpec(
    name="digits-flow-classes",
    family="flow matching",
    factory="scoretk.families.flow_matching:CLASSES.build",
    trainer="scoretk.families.flow_matching:CLASSES.train",
    provides={"velocity", "base"},
    event_shape=(1, 8, 8),
    summary="flow matching from one class of handwritten digits (3) to another (8)",
    parameters={"weights": None},
)
digits_interpolant = ModelSpec(
    name="digits-interpolant",
    family="flow matching",
    factory="scoretk.families.flow_matching:INTERPOLANT.build",
    trainer="scoretk.families.flow_matching:INTERPOLANT.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="a stochastic interpolant between noise and handwritten digits, velocity and score",
    parameters={"weights": None},
)
digits_vae = ModelSpec(
    name="digits-vae",
    family="variational autoencoder",
    factory="scoretk.families.vae:GAUSSIAN.build",
    trainer="scoretk.families.vae:GAUSSIAN.train",
    provides={"energy", "log_prob", "draw", "decode"},
    event_shape=(12,),
    summary="a VAE with a Gaussian decoder on scikit-learn's handwritten digits, sampled in its latents",
    parameters={"weights": None},
)
digits_vae_binary = ModelSpec(
    name="digits-vae-binary",
    family="variational autoencoder",
    factory="scoretk.families.vae:BINARY.build",
    trainer="scoretk.families.vae:BINARY.train",
    provides={"energy", "log_prob", "draw", "decode"},
    event_shape=(12,),
    summary="a VAE with a Bernoulli decoder on scikit-learn's handwritten digits, pixels 0 or 1, sampled in its latents",
    parameters={"weights": None},
)
digits_latent_energy = ModelSpec(
    name="digits-latent-energy",
    family="variational autoencoder",
    factory="scoretk.families.vae:LATENT_ENERGY.build",
    trainer="scoretk.families.vae:LATENT_ENERGY.train",
    provides={"energy", "decode"},
    event_shape=(12,),
    summary="a VAE whose prior is an energy learned by contrastive divergence, on scikit-learn's handwritten digits",
    parameters={"weights": None},
)
digits_subvp = ModelSpec(
    name="digits-subvp",
    family="diffusion",
    factory="scoretk.families.diffusion:DIGITS_SUBVP.build",
    trainer="scoretk.families.diffusion:DIGITS_SUBVP.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="noise prediction on the sub-VP path, scikit-learn's handwritten digits",
    parameters={"weights": None},
)
digits_ve = ModelSpec(
    name="digits-ve",
    family="diffusion",
    factory="scoretk.families.diffusion:DIGITS_VE.build",
    trainer="scoretk.families.diffusion:DIGITS_VE.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="score prediction on the VE path, scikit-learn's handwritten digits",
    parameters={"weights": None},
)
digits_edm = ModelSpec(
    name="digits-edm",
    family="diffusion",
    factory="scoretk.families.diffusion:DIGITS_EDM.build",
    trainer="scoretk.families.diffusion:DIGITS_EDM.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="data prediction in EDM's preconditioning, scikit-learn's handwritten digits",
    parameters={"weights": None},
)
digits_v = ModelSpec(
    name="digits-v",
    family="diffusion",
    factory="scoretk.families.diffusion:DIGITS_V.build",
    trainer="scoretk.families.diffusion:DIGITS_V.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="v prediction on the cosine path, scikit-learn's handwritten digits",
    parameters={"weights": None},
)
digits_class_diffusion = ModelSpec(
    name="digits-class-diffusion",
    family="diffusion",
    factory="scoretk.families.diffusion:DIGITS_CLASS.build",
    trainer="scoretk.families.diffusion:DIGITS_CLASS.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="noise prediction (VP) given the digit or not, for classifier-free guidance",
    parameters={"weights": None},
)
digits_ncsn = ModelSpec(
    name="digits-ncsn",
    family="score",
    factory="scoretk.families.ncsn:DIGITS_NCSN.build",
    trainer="scoretk.families.ncsn:DIGITS_NCSN.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="a noise-conditional score network over twelve levels, scikit-learn's handwritten digits",
    parameters={"weights": None},
)
digits_ncsnv2 = ModelSpec(
    name="digits-ncsnv2",
    family="score",
    factory="scoretk.families.ncsn:DIGITS_NCSNV2.build",
    trainer="scoretk.families.ncsn:DIGITS_NCSNV2.train",
    provides=_PATH,
    event_shape=(1, 8, 8),
    summary="one score network for all levels (NCSNv2), scikit-learn's handwritten digits",
    parameters={"weights": None},
)
_EXACT_STATES = _EXACT | {"states"}
digits_fvsbn = ModelSpec(
    name="digits-fvsbn",
    family="autoregressive",
    factory="scoretk.families.autoregressive:FVSBN.build",
    trainer="scoretk.families.autoregressive:FVSBN.train",
    provides=_EXACT_STATES,
    event_shape=(1, 8, 8),
    summary="logistic autoregression on scikit-learn's handwritten digits, pixels 0 or 1",
    parameters={"weights": None},
)
digits_nade = ModelSpec(
    name="digits-nade",
    family="autoregressive",
    factory="scoretk.families.autoregressive:NADE.build",
    trainer="scoretk.families.autoregressive:NADE.train",
    provides=_EXACT_STATES,
    event_shape=(1, 8, 8),
    summary="a neural autoregressive estimator of scikit-learn's handwritten digits, pixels 0 or 1",
    parameters={"weights": None},
)
digits_made = ModelSpec(
    name="digits-made",
    family="autoregressive",
    factory="scoretk.families.autoregressive:MADE.build",
    trainer="scoretk.families.autoregressive:MADE.train",
    provides=_EXACT,
    event_shape=(1, 8, 8),
    summary="a masked autoencoder on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_pixelcnn = ModelSpec(
    name="digits-pixelcnn",
    family="autoregressive",
    factory="scoretk.families.autoregressive:PIXELCNN.build",
    trainer="scoretk.families.autoregressive:PIXELCNN.train",
    provides=_EXACT,
    event_shape=(1, 8, 8),
    summary="masked convolutions on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_rbm = ModelSpec(
    name="digits-rbm",
    family="energy-based",
    factory="scoretk.families.boltzmann:build",
    trainer="scoretk.families.boltzmann:train",
    provides={"energy", "score", "states", "gibbs"},
    event_shape=(1, 8, 8),
    summary="a restricted Boltzmann machine of scikit-learn's handwritten digits, pixels 0 or 1",
    parameters={"weights": None},
)
digits_jem = ModelSpec(
    name="digits-jem",
    family="energy-based",
    factory="scoretk.families.jem:build",
    trainer="scoretk.families.jem:train",
    provides={"energy", "score"},
    event_shape=(1, 8, 8),
    summary="a classifier that is an energy-based model too, of scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_gan = ModelSpec(
    name="digits-gan",
    family="adversarial",
    factory="scoretk.families.adversarial:GAN.build",
    trainer="scoretk.families.adversarial:GAN.train",
    provides={"energy", "decode"},
    event_shape=(64,),
    summary="a GAN's latents under its critic's energy, on scikit-learn's handwritten digits; decode gives images",
    parameters={"weights": None},
)
digits_wgan = ModelSpec(
    name="digits-wgan",
    family="adversarial",
    factory="scoretk.families.adversarial:WGAN.build",
    trainer="scoretk.families.adversarial:WGAN.train",
    provides={"energy", "decode"},
    event_shape=(64,),
    summary="a Wasserstein GAN's latents under its critic's energy, on scikit-learn's digits; decode gives images",
    parameters={"weights": None},
)
_FLOW = _EXACT | {"decode"}
digits_nice = ModelSpec(
    name="digits-nice",
    family="normalizing flow",
    factory="scoretk.families.flows:NICE.build",
    trainer="scoretk.families.flows:NICE.train",
    provides=_FLOW,
    event_shape=(1, 8, 8),
    summary="NICE, additive couplings, on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_realnvp = ModelSpec(
    name="digits-realnvp",
    family="normalizing flow",
    factory="scoretk.families.flows:REALNVP.build",
    trainer="scoretk.families.flows:REALNVP.train",
    provides=_FLOW,
    event_shape=(1, 8, 8),
    summary="real NVP, affine couplings, on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_maf = ModelSpec(
    name="digits-maf",
    family="normalizing flow",
    factory="scoretk.families.flows:MAF.build",
    trainer="scoretk.families.flows:MAF.train",
    provides=_FLOW,
    event_shape=(1, 8, 8),
    summary="masked autoregressive flow, affine, on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_spline = ModelSpec(
    name="digits-spline",
    family="normalizing flow",
    factory="scoretk.families.flows:SPLINE.build",
    trainer="scoretk.families.flows:SPLINE.train",
    provides=_FLOW,
    event_shape=(1, 8, 8),
    summary="neural spline flow, rational-quadratic couplings, on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
digits_ffjord = ModelSpec(
    name="digits-ffjord",
    family="normalizing flow",
    factory="scoretk.families.flows:FFJORD.build",
    trainer="scoretk.families.flows:FFJORD.train",
    provides={"velocity", "base"},
    event_shape=(1, 8, 8),
    summary="FFJORD, a continuous flow by maximum likelihood, on scikit-learn's handwritten digits, pixels in [-1, 1]",
    parameters={"weights": None},
)
