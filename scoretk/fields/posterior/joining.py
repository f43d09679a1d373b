"""`posterior`: a prior and a likelihood made one field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scoretk.core.arguments import names, option
from scoretk.core.keywords import explained
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.distribution import as_field, in_one_space
from scoretk.fields.foreign import no_field
from scoretk.fields.operators import LinearGaussian
from scoretk.fields.posterior.diffpir import DiffPIR
from scoretk.fields.posterior.dps import DPS
from scoretk.fields.posterior.likelihoods import Likelihood, as_likelihood
from scoretk.fields.posterior.method import PosteriorMethod, trait
from scoretk.fields.posterior.mmps import MMPS
from scoretk.fields.posterior.pigdm import PiGDM
from scoretk.fields.posterior.replacement import Replacement
from scoretk.fields.posterior.static import StaticPosterior
from scoretk.fields.posterior.timed import TimedPosterior
from scoretk.fields.posterior.tmpd import TMPD
from scoretk.fields.protocols import field_name, is_field, is_timed, offers, without_law
from scoretk.fields.resolve import gaussian_path
from scoretk.fields.variables import of_some
from scoretk.fields.wrapped import check_within, shared_map

__all__ = ["POSTERIOR_METHODS", "posterior"]


POSTERIOR_METHODS: dict[str, Callable[[], PosteriorMethod]] = {
    "mmps": MMPS,
    "pigdm": PiGDM,
    "dps": DPS,
    "replacement": Replacement,
    "tmpd": TMPD,
    "diffpir": DiffPIR,
}
"""The methods for priors in time, by name; a new one is a file of its own and a line here."""


@explained
def posterior(
    prior: Any,
    likelihood: Any,
    method: str | PosteriorMethod | None = None,
    *,
    measured: str | Iterable[str] = (),
) -> Any:
    """The posterior of a prior and a likelihood, as a field.

    See the docstring of `scoretk.fields.posterior`.

    Args:
        prior: A static field, whose posterior is exact: energies, or scores, add up; or a timed
            field on a Gaussian path, whose posterior is timed and starts from the same `base`.
            `prior.at(t)` is static.
        likelihood: `LinearGaussian(operator, y, std)`; a callable
            `log_likelihood(x, **cond) -> (batch,)`, or of a prior's named variables
            `log_likelihood(mu, tau, **cond)`, of those that it takes; or a static field with an energy, `-log L`.
        method: For a timed prior, "mmps" (the default for a `LinearGaussian`), "pigdm",
            "tmpd", "replacement", "diffpir" or "dps" (the default, and the only one, for any other likelihood), or an
            object with settings, such as `MMPS(iterations=10)`. None for a static prior.
        measured: The names of the condition values that the likelihood takes; all others go to the
            prior alone. A `LinearGaussian` names its own.

    Returns:
        A field, timed or static as the prior is.

    Raises:
        InvalidArgument: The arguments do not fit together.
        UnknownName: No method has this name.
        MissingCapability: A timed prior has no Gaussian path, a static one neither energy nor
            score.
    """
    prior, likelihood = (
        in_one_space((prior, likelihood))
        if is_field(as_field(likelihood))
        else (*in_one_space((prior,)), likelihood)
    )
    if not is_field(prior):
        raise no_field(
            "prior",
            prior,
            "a field, such as scoretk.Energy(fn, event_shape) or scoretk.Diffusion(...)",
            "Priors by name are one energy: scoretk.Energy(fn, variables={'mu': (), 'tau': "
            "constraints.positive}), fn(mu, tau) minus the sum of their log densities"
            if isinstance(prior, Mapping)
            else "",
        )
    taken = names("measured", measured)
    likelihood = likelihood if is_field(likelihood) else of_some(likelihood, prior)
    if is_field(likelihood):
        if shared_map("prior, likelihood", (prior, likelihood)) is not None:
            likelihood = likelihood.field
        else:
            check_within("likelihood", likelihood, prior)
    space = shared_map("prior", (prior,))
    if space is not None:
        return space.around(posterior(space.field, likelihood, method, measured=taken))
    law = as_likelihood(likelihood, taken, tuple(prior.event_shape))
    if is_timed(prior):
        return TimedPosterior(prior, law, as_method(method, law), gaussian_path(prior, "posterior"))
    if not offers(prior) & {"energy", "score"}:
        raise MissingCapability(
            field_name(prior), offers(prior), {"energy"}, without_law(offers(prior))
        )
    if method is not None:
        raise InvalidArgument(
            "method", method, "None for a static prior, whose posterior needs no approximation"
        )
    return StaticPosterior(prior, law)


def as_method(value: str | PosteriorMethod | None, likelihood: Likelihood) -> PosteriorMethod:
    """The method for a likelihood: by name, as an object, or the usual one.

    Args:
        value: A name in `POSTERIOR_METHODS`, an object, or None for "mmps" (linear measurements) or
            "dps" (any other likelihood).
        likelihood: What it is to be used with.

    Returns:
        A `PosteriorMethod`.

    Raises:
        InvalidArgument: It is no method, or one for linear measurements alone with another
            likelihood.
        UnknownName: No method has this name.
    """
    linear = isinstance(likelihood, LinearGaussian)
    if value is None:
        value = "mmps" if linear else "dps"
    if isinstance(value, str):
        method = POSTERIOR_METHODS[option("method", value, POSTERIOR_METHODS)]()
    else:
        method = value
    if isinstance(method, type) or not callable(getattr(method, "shift", None)):
        raise InvalidArgument("method", value, "a method, such as scoretk.MMPS(iterations=10)")
    if not linear and trait(method, "linear"):
        raise InvalidArgument("method", value, "'dps' for a likelihood that is no LinearGaussian")
    return method
