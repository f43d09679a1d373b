"""Conversions between the five predictions of a model on a Gaussian path.

With `D = E[x_1 | x_t]` ("data") and `e = E[eps | x_t]` ("noise"):

    x_t      = alpha D + sigma e
    score    = -e / sigma
    velocity = alpha' D + sigma' e
    v        = alpha e - sigma D

Each is an affine function of any other and of `x_t`, so a conversion is a pair of coefficients of
the time alone: `target = a source + b x_t`. Where alpha, sigma or a denominator is zero the pair is
either determinate (the formulas below are arranged so that it then comes out exactly) or does not
exist, and `SingularConversion` is raised.

References:
    Salimans, Ho, "Progressive distillation for fast sampling of diffusion models" (2022): v.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from scoretk.core.arguments import option
from scoretk.core.devices import wide
from scoretk.core.rows import across, add_scaled
from scoretk.errors import InvalidArgument, SingularConversion, UnknownName, near_match
from scoretk.fields.paths import GaussianPath

__all__ = [
    "ALSO_KNOWN_AS",
    "PREDICTIONS",
    "coefficients",
    "convert",
    "prediction_name",
    "row_coefficients",
]

PREDICTIONS = ("data", "noise", "score", "velocity", "v")

ALSO_KNOWN_AS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("sample", "x0", "x_0", "x_start", "pred_x0", "pred_x_start"), "data"),
        **dict.fromkeys(("denoised", "denoiser"), "data"),
        **dict.fromkeys(("eps", "epsilon", "pred_noise"), "noise"),
        **dict.fromkeys(("v_prediction", "v_pred", "pred_v"), "v"),
        "flow": "velocity",
    }
)
"""Other packages' names of the predictions: of diffusers, k-diffusion, and the literature."""

_TOWARDS_NOISE = ("flow_prediction", "flow_pred")
"""Names for `noise - data`, the velocity of a time that runs from data to noise."""

_Pair = tuple[Tensor, Tensor]


def prediction_name(name: str) -> str:
    """The name of a prediction, from any that it is known by.

    Args:
        name: One of `PREDICTIONS`, or of `ALSO_KNOWN_AS` in any spelling ("v-prediction").

    Returns:
        One of `PREDICTIONS`.

    Raises:
        UnknownName: It is no such name.
        InvalidArgument: It is no string.
    """
    if isinstance(name, str) and name not in PREDICTIONS:
        plain = name.lower().replace("-", "_").replace(" ", "_")
        if plain in _TOWARDS_NOISE:
            hint = (
                "That is noise - data, in a time that runs to the noise: "
                "scoretk.from_reversed_time(net, event_shape), whose velocity it is"
            )
            raise UnknownName("prediction", name, PREDICTIONS, hint)
        name = ALSO_KNOWN_AS.get(plain, plain if plain in PREDICTIONS else name)
        if name not in PREDICTIONS:
            raise UnknownName("prediction", name, PREDICTIONS, _other_names(name))
    return option("prediction", name, PREDICTIONS)


def _other_names(name: str) -> str:
    """What the predictions are called elsewhere, after the nearest of ours."""
    others = {ours: [n for n, of in ALSO_KNOWN_AS.items() if of == ours] for ours in PREDICTIONS}
    told = (f"{ours} is also {', '.join(names)}" for ours, names in others.items() if names)
    return "; ".join([*filter(None, [near_match(name, PREDICTIONS).strip(" ()")]), *told])


def coefficients(path: GaussianPath, t: float | Tensor, source: str, target: str) -> _Pair:
    """`(a, b)` with `target = a source + b x_t` at time t.

    Args:
        path: The Gaussian path.
        t: A float, or a float64 tensor of any shape.
        source: The prediction that is known, a name in `PREDICTIONS`.
        target: The prediction that is wanted, a name in `PREDICTIONS`.

    Returns:
        Two tensors like t, not finite where the conversion is singular.

    Raises:
        UnknownName: Of a prediction.
    """
    source, target = prediction_name(source), prediction_name(target)
    if isinstance(t, float):
        t = torch.tensor(t, dtype=torch.float64)
    alpha, sigma, dalpha, dsigma = path(t)
    if source == target:
        return torch.ones_like(alpha), torch.zeros_like(alpha)
    # Through sigma sigma', which is finite where sigma' alone is not.
    if (source, target) == ("score", "velocity"):
        return dalpha * sigma**2 / alpha - path.sigma_dsigma(t), dalpha / alpha
    if (source, target) == ("velocity", "score"):
        determinant = dalpha * sigma**2 - alpha * path.sigma_dsigma(t)
        return alpha / determinant, -dalpha / determinant
    data, noise = _data_and_noise(source, alpha, sigma, dalpha, dsigma)
    if target == "data":
        return data
    if target == "noise":
        return noise
    if target == "score":
        return -noise[0] / sigma, -noise[1] / sigma
    if target == "v":
        return alpha * noise[0] - sigma * data[0], alpha * noise[1] - sigma * data[1]
    return dalpha * data[0] + dsigma * noise[0], dalpha * data[1] + dsigma * noise[1]


def _data_and_noise(
    source: str, alpha: Tensor, sigma: Tensor, dalpha: Tensor, dsigma: Tensor
) -> tuple[_Pair, _Pair]:
    """The pairs of coefficients of D and of e in (source, x)."""
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    if source == "data":
        return (one, zero), (-alpha / sigma, 1 / sigma)
    if source == "noise":
        return (-sigma / alpha, 1 / alpha), (one, zero)
    if source == "score":
        return (sigma**2 / alpha, 1 / alpha), (-sigma, zero)
    if source == "v":
        square = alpha**2 + sigma**2
        return (-sigma / square, alpha / square), (alpha / square, sigma / square)
    # velocity: the 2 x 2 system is scaled, so that an infinite sigma' has its limit
    scale = dsigma.abs().clamp(min=1)
    slope = torch.where(dsigma.isinf(), dsigma.sign(), dsigma / scale)
    determinant = alpha * slope - sigma * dalpha / scale
    data = (-sigma / scale / determinant, slope / determinant)
    return data, (alpha / scale / determinant, -dalpha / scale / determinant)


@lru_cache(maxsize=65536)
def _float_coefficients(
    path: GaussianPath, t: float, source: str, target: str
) -> tuple[float, float]:
    a, b = coefficients(path, t, source, target)
    _refuse_singular(a, b, t, path, source, target)
    return float(a), float(b)


def convert(
    value: Tensor, x: Tensor, t: float | Tensor, path: GaussianPath, source: str, target: str
) -> Tensor:
    """Turn a model's `source` prediction at `(x_t, t)` into `target`.

    Args:
        value: The source prediction, `(batch, *event_shape)`.
        x: x_t, like value.
        t: A scalar or one time a row.
        path: The Gaussian path.
        source: The prediction that is known, a name in `PREDICTIONS`.
        target: The prediction that is wanted, a name in `PREDICTIONS`.

    Returns:
        The target prediction, like x.

    Raises:
        SingularConversion: The source does not determine the target at t. Under compilation, and
            with t on an accelerator, where asking would stall the device, the result is not finite
            instead.
    """
    if source == target:
        return value
    on_cpu = not isinstance(t, Tensor) or (
        t.device.type == "cpu" and not torch.compiler.is_compiling()
    )
    if on_cpu and (not isinstance(t, Tensor) or (t.ndim == 0 and not t.requires_grad)):
        a, b = _float_coefficients(path, float(t), source, target)
        return value * a if b == 0 else add_scaled(value * a, x, b)
    assert isinstance(t, Tensor)
    rate, shift = row_coefficients(path, t, source, target, x.dtype)
    return across(rate, x) * value + across(shift, x) * x


def row_coefficients(
    path: GaussianPath, t: Tensor, source: str, target: str, dtype: torch.dtype
) -> _Pair:
    """As `coefficients`, for times of any shape and dtype, in a given dtype.

    Args:
        path: The Gaussian path.
        t: Times.
        source: The prediction that is known.
        target: The prediction that is wanted.
        dtype: That of the result.

    Returns:
        Two tensors of the shape of t.

    Raises:
        SingularConversion: As in `convert`.
    """
    rate, shift = coefficients(path, wide(t), source, target)
    if t.device.type == "cpu" and not torch.compiler.is_compiling():
        _refuse_singular(rate, shift, t, path, source, target)
    return rate.to(dtype), shift.to(dtype)


def _refuse_singular(
    a: Tensor, b: Tensor, t: float | Tensor, path: GaussianPath, source: str, target: str
) -> None:
    if not bool((a.isfinite() & b.isfinite()).all()):
        raise SingularConversion(
            f"{target} is not determined by {source} at t = {t} of {path}, where alpha or sigma is "
            "0. Let the model predict something else, or ask at a time inside (0, 1)"
        )


def check_number(t: float) -> None:
    """Check that a number is a time in [0, 1].

    Raises:
        InvalidArgument: It is not, such as a timestep of another package.
    """
    if not 0 <= t <= 1:
        hint = "A network of timesteps or of sigma: scoretk.from_timesteps, scoretk.from_sigmas"
        raise InvalidArgument("t", t, "a time in [0, 1], from noise to data", hint)


def check_time(t: float | Tensor, x: Tensor) -> None:
    """Check that t is a scalar or one time a row of x.

    Raises:
        InvalidArgument: It has another shape, or is a number that is no time.
    """
    if not isinstance(t, Tensor):
        check_number(t)
    elif t.shape not in (torch.Size([]), x.shape[:1]):
        raise InvalidArgument("t", t, f"a scalar or one value a row, shape () or ({len(x)},)")
