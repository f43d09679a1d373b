"""Whether laws of Pyro and numpyro that are made of others live where they say.

A transformed law says to live where its last transform may lead, wherever its first begins; a mixture,
where its first component does, or where its user says. A sampler goes all over that support: where it
is larger than the law the density's formula goes on (of `1 + 2 u`, u exponential, it rises for ever),
where it is smaller a part of the law is never met. So of each pair of spaces that have to be one,
points of either, as far out as rounding allows, are looked for in the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from scoretk.core.dependencies import required
from scoretk.errors import InvalidArgument

__all__ = ["bare_support", "check_density", "check_supports", "is_angle", "supports_within"]

REACH = (-30.0, -8.0, -3.0, -0.5, 0.0, 0.5, 3.0, 8.0, 30.0)
"""Free coordinates of the points that are looked for: `exp` of them is from 1e-13 to 1e13."""
ROUNDING = 1e-5
"""What bounds may differ by, relatively, that are computed in two ways."""
NEAR = (-2.0, -0.7, 0.3, 1.1)
"""Free coordinates of points that a transform and its inverse have to lead back."""
CENSORED = "CensoredDistribution"
"""The end of the names of numpyro's laws of observations of which a bound is known, and no value."""
OF_POINTS = ("Delta", "Empirical", "ZeroInflatedDistribution")
"""Laws with point masses, of Pyro and numpyro; those of counts are discrete anyway."""
ANGLES = ("SineBivariateVonMises", "VonMises")
"""Laws of angles that Pyro and torch say to be on all of R."""
MOVED = "TransformedDistribution"
BACK = 1e-2
"""How far from a point, in units of 1 + |x|, its image may be led back to."""

WAY_OUT = (
    "Sample the law itself, and transform its value, as a deterministic site; or give numpyro's "
    "AffineTransform or ExpTransform its domain"
)
OF_MIXTURES = (
    "Sample laws on one support each, as sites, and choose among their values; or say by support=, of "
    "numpyro's MixtureGeneral, what the components span together"
)


def bare_support(support: Any) -> Any:
    """The constraint of one number, of one of many of these, of torch's or numpyro's."""
    while type(support).__name__ in ("_IndependentConstraint", "MixtureSameFamilyConstraint"):
        mixed, support = "Mixture" in type(support).__name__, support.base_constraint
        support = _of_one_component(support, support.event_dim) if mixed else support
    return support


def _of_one_component(support: Any, events: int) -> Any:
    """The support of the first of a mixture's components, which has an axis of bounds for them.

    Args:
        support: That of all components.
        events: How many axes one value has, which come after the components'.
    """
    one = copy(support)
    for name, part in vars(support).items():
        if isinstance(part, Tensor) and part.ndim > events:
            setattr(one, name, part.select(-1 - events, 0))
        elif isinstance(part, constraints.Constraint):
            setattr(one, name, _of_one_component(part, events))
    return one


def supports_within(law: Any) -> Iterator[Any]:
    """What a law, and all that it is made of, say of where they live."""
    for part in _laws_within(law):
        yield part.support


def check_density(name: str, law: Any) -> None:
    """Check that a site's law has a density, and so does all that it is made of.

    Raises:
        InvalidArgument: It has a point mass: where that is, no chain ever is.
    """
    for part in _laws_within(law):
        kind = type(part).__name__
        if kind.endswith(CENSORED):
            raise InvalidArgument(
                "model",
                f"site {name!r}, of a law of censored observations ({kind})",
                "sites whose laws have a density: that of what is censored is a probability",
                "Such laws are for data, obs=. Sample the law within it, and censor its value as a "
                "deterministic site",
            )
        if kind in OF_POINTS:
            raise InvalidArgument(
                "model",
                f"site {name!r}, a point mass ({kind})"
                if part is law
                else f"site {name!r}, with a point mass ({kind}) in it",
                "sites whose laws have a density",
                "What is fixed, or follows from other sites, is a deterministic site; of a spike and "
                "a slab the spike may be a narrow normal, or each a model of its own, by their evidence",
            )


def is_angle(name: str, law: Any) -> bool:
    """Whether a law is of angles: its density is that of one period, and goes on beyond it.

    Args:
        name: What the message calls it: "site 'a'".
        law: A distribution of Pyro, which says that angles are on all of R.

    Raises:
        InvalidArgument: It is one of these transformed, or beside another.
    """
    within = list(_laws_within(law))
    angles = [type(part).__name__ in ANGLES for part in within if not _parts(part)]
    if any(angles) and (not all(angles) or any(_kind(p) == MOVED for p in within)):
        raise InvalidArgument(
            "model",
            f"{name}, made of a law of angles, whose density is that of one period",
            "angles as they are, from -pi to pi",
            "Sample the angle itself, and transform its value, as a deterministic site",
        )
    return any(angles)


def _laws_within(law: Any) -> Iterator[Any]:
    """A law, and all that it is made of."""
    yield law
    for part in _parts(law):
        yield from _laws_within(part)


def check_supports(name: str, law: Any) -> None:
    """Check that a law lives where it says, and so does all that it is made of.

    Args:
        name: What the message calls it: "site 'a'".
        law: A distribution of Pyro, torch or numpyro.

    Raises:
        InvalidArgument: It lives on a part of that, or beyond; or it has a transform without an
            inverse.
    """
    kind = _kind(law)
    if kind == MOVED and law.transforms:
        _check_chain(name, law)
    elif kind == "MixtureGeneral":
        _check_mixture(name, law)
    elif kind == "MixtureSameFamily":
        _check_family(name, law)
    for part in _parts(law):
        check_supports(name, part)


def _kind(law: Any) -> str:
    """The class that says where a law lives: its own, or what it is derived from."""
    return next((k.__name__ for k in type(law).__mro__ if "support" in vars(k)), "")


def _parts(law: Any) -> Sequence[Any]:
    """The laws that a law is made of and has its density from."""
    kind = _kind(law)
    if kind == "MixtureGeneral":
        return list(law.component_distributions)
    if kind == "MixtureSameFamily":
        return [law.component_distribution]
    if kind == "MaskedMixture":
        return [law.component0, law.component1]
    base = getattr(law, "base_dist", None)
    return [] if base is None else [base]


def _check_chain(name: str, law: Any) -> None:
    """Check that each transform of a law is given all of its domain, and no more."""
    given = law.base_dist.support
    shape = tuple(law.base_dist.batch_shape + law.base_dist.event_shape)
    for transform in law.transforms:
        domain = transform.domain
        if not (_holds(given, domain, shape) and _holds(domain, given, shape)):
            raise InvalidArgument(
                "model",
                f"{name}, {type(transform).__name__} of {bare_support(domain)}, given what is on "
                f"{bare_support(given)}: said to be on {bare_support(law.support)}",
                "transformed laws that say where they live",
                WAY_OUT,
            )
        if not _leads_back(transform, shape):
            raise InvalidArgument(
                "model",
                f"{name}, {type(transform).__name__} of {bare_support(domain)}",
                "transforms that are one to one",
                WAY_OUT,
            )
        reached = tuple(transform.forward_shape(shape))
        if not _leads_onto(transform, shape, reached):
            raise InvalidArgument(
                "model",
                f"{name}, {type(transform).__name__} of {bare_support(domain)}, said to lead onto "
                f"{bare_support(transform.codomain)}",
                "transforms that lead onto the space that they say, and nowhere else",
                WAY_OUT,
            )
        given, shape = transform.codomain, reached


def _check_mixture(name: str, law: Any) -> None:
    """Check that the components of a mixture live where it says, and nowhere else."""
    parts = law.component_distributions
    spaces = [part.support for part in parts]
    shape = tuple(law.batch_shape + law.event_shape)
    # without support= the density of a component counts as its formula goes on
    masked = law._support is not None
    together = _holds_any if masked else _holds_all
    fits = together(spaces, law.support, shape) and all(
        _holds(law.support, space, shape) for space in spaces
    )
    if not fits:
        raise _apart(name, law.support, spaces)


def _check_family(name: str, law: Any) -> None:
    """Check that the components of a mixture, which are along an axis, live on one space."""
    inner = law.component_distribution
    axis, space = -1 - len(inner.event_shape), bare_support(inner.support)
    for bound in _bounds(space):
        # a bound of fewer axes than the components have is the same along theirs
        if bound.ndim >= -axis and not np.allclose(
            bound, bound.take([0], axis), rtol=ROUNDING, atol=0.0
        ):
            raise _apart(name, law.support, [space])


def _apart(name: str, support: Any, spaces: Sequence[Any]) -> InvalidArgument:
    found = ", ".join(dict.fromkeys(str(bare_support(space)) for space in spaces))
    return InvalidArgument(
        "model",
        f"{name}, a mixture said to be on {bare_support(support)} of laws on {found}",
        "mixtures whose components say together where they live",
        OF_MIXTURES,
    )


def _holds_any(spaces: Sequence[Any], other: Any, shape: tuple[int, ...]) -> bool:
    """Whether the points of a space are in one of some spaces at least."""
    if any(_is_same(space, other) for space in spaces):
        return True
    return all(any(_contains(space, x) for space in spaces) for x in _points(other, shape, REACH))


def _holds_all(spaces: Sequence[Any], other: Any, shape: tuple[int, ...]) -> bool:
    return all(_holds(space, other, shape) for space in spaces)


def _holds(space: Any, other: Any, shape: tuple[int, ...]) -> bool:
    """Whether the points of another space are in a space."""
    if _is_same(space, other):
        return True
    return all(_contains(space, x) for x in _points(other, shape, REACH))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two constraints are of one kind with the same bounds, but for rounding."""
    one, other = bare_support(one), bare_support(other)
    if one is other:
        return True
    ours, theirs = _bounds(one), _bounds(other)
    if type(one) is not type(other) or len(ours) != len(theirs):
        return False
    return all(
        (a.shape == b.shape or 1 in (a.size, b.size)) and np.allclose(a, b, rtol=ROUNDING, atol=0.0)
        for a, b in zip(ours, theirs, strict=True)
    )


def _bounds(space: Any) -> list[Any]:
    """The numbers in a constraint, as arrays of numpy."""
    values = [v.tolist() if hasattr(v, "tolist") else v for v in vars(space).values()]
    return [
        np.asarray(v) for v in values if not isinstance(v, str) and np.asarray(v).dtype != object
    ]


def _contains(space: Any, x: Any) -> bool:
    """Whether all entries of an array are in a space, which does not say it where it is of others."""
    try:
        return bool(np.asarray(bare_support(space).check(x)).all())
    except Exception:  # noqa: BLE001 (a library's own, of an array of another shape)
        return False


def _bijection(space: Any) -> Any:
    """The map from free coordinates onto a space, of the library that the space is of.

    Raises:
        NotImplementedError: None is known.
    """
    if isinstance(space, constraints.Constraint):
        return biject_to(space)
    made = required("numpyro.distributions.transforms", "numpyro", "A law of numpyro")
    return made.biject_to(space)


def _points(space: Any, shape: tuple[int, ...], free: Sequence[float]) -> Iterator[Any]:
    """Arrays of a shape in a space; none of one without a known bijection."""
    space = bare_support(space)
    try:
        onto = _bijection(space)
        lead = tuple(onto.inverse_shape(shape))
    except NotImplementedError:
        return
    for value in free:
        of_torch = isinstance(space, constraints.Constraint)
        yield onto(torch.full(lead, value) if of_torch else np.full(lead, value, np.float32))


def _leads_back(transform: Any, shape: tuple[int, ...]) -> bool:
    """Whether a transform and its inverse lead points to themselves."""
    with warnings.catch_warnings():  # numpyro warns of an inverse that is none
        warnings.simplefilter("ignore")
        for x in _points(transform.domain, shape, NEAR):
            try:
                back = transform.inv(transform(x))
            except NotImplementedError:
                return False
            if not _are_near(x, back):
                return False
    return True


def _leads_onto(transform: Any, shape: tuple[int, ...], reached: tuple[int, ...]) -> bool:
    """Whether a transform leads points into its codomain, and some to each point there.

    Args:
        transform: A transform that has an inverse.
        shape: The shape of what it is given.
        reached: The shape of what it makes of that.
    """
    space = bare_support(transform.codomain)
    try:
        onto = _bijection(space)
    except NotImplementedError:  # none is known: it is no support of a variable either
        return True
    led = [transform(x) for x in _points(transform.domain, shape, NEAR)]
    held = all(_are_near(y, onto(onto.inv(y))) for y in led)
    return held and all(
        _are_near(y, transform(transform.inv(y))) for y in _points(space, reached, NEAR)
    )


def _are_near(one: Any, other: Any) -> bool:
    """Whether two arrays are one but for rounding; what is no number is near nothing."""
    a, b = np.asarray(one), np.asarray(other)
    return bool((np.abs(a - b) <= BACK * (1 + np.abs(a))).all())
