"""The registered models in three lazy stages, each isolated.

List (from metadata), describe (from the spec), load (the field).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from scoretk.errors import InvalidArgument, MissingCapability, ScoretkError, near_match
from scoretk.plugins.capabilities import offers
from scoretk.plugins.catalog import Catalog, pointed_at
from scoretk.plugins.containment import outside
from scoretk.plugins.discovery import Broken, Entry
from scoretk.plugins.spec import ModelSpec

__all__ = [
    "build",
    "describe",
    "describe_all",
    "find_model",
    "list_models",
    "load",
    "train",
    "verify",
]

_MODELS = Catalog("scoretk.models", "model")


def list_models() -> list[Entry | Broken]:
    """All registered models sorted by id. Imports neither the plugins nor torch.

    Returns:
        An `Entry` for each; a `Broken` for one whose metadata cannot be read, or that failed when
        this process used it.
    """
    return _MODELS.listing()


def find_model(name: str) -> Entry:
    """The entry of a model, from metadata alone.

    Args:
        name: A full id ("my-package/my-model") or a short name.

    Returns:
        The entry.

    Raises:
        UnknownName: Nothing has this name; the message has the nearest.
        AmbiguousName: Models of several packages have this short name.
        BrokenPlugin: The distribution's metadata cannot be read.
    """
    return _MODELS.find(name)


def describe(name: str) -> ModelSpec:
    """What the plugin says about its model; imports the spec's module only.

    Args:
        name: A full id or a short name.

    Returns:
        The model's spec.

    Raises:
        UnknownName: Nothing has this name.
        AmbiguousName: Models of several packages have this short name.
        BrokenPlugin: The plugin cannot be imported or holds no spec of this name.
    """
    return _spec(_MODELS.find(name))


def load(name: str, /, **parameters: Any) -> Any:
    """The field of a model.

    Args:
        name: A full id or a short name.
        parameters: Parameters of the model, in place of the defaults in its spec.

    Returns:
        The field.

    Raises:
        UnknownName: Nothing has this name.
        AmbiguousName: Models of several packages have this short name.
        InvalidArgument: The model does not have a parameter, or refuses its value.
        BrokenPlugin: The plugin cannot be imported, its factory fails or returns no field, or the
            field lacks what the spec claims.
    """
    entry = _MODELS.find(name)
    spec = _spec(entry)
    _refuse_unknown(parameters, list(spec.parameters), f"a parameter of {entry.id}")
    with _MODELS.isolated(entry, "load", parameters):
        return build(spec, **parameters)


def train(
    name: str,
    data: Any = None,
    /,
    *,
    seed: int = 0,
    report: Callable[[Any], Any] | None = None,
    checkpoint: Any = None,
    **settings: Any,
) -> Any:
    """Train a model anew.

    Args:
        name: A full id or a short name.
        data: A tensor `(n, *event_shape)`, or None for the data of the shipped weights.
        seed: The seed of the random numbers.
        report: Called with the progress after each evaluation.
        checkpoint: A file to save the training to and to continue it from, for a trainer that takes
            one.
        settings: Settings of the model's trainer, such as `steps`.

    Returns:
        An object with `save(path)`; `load(name, weights=path)` then gives the field.

    Raises:
        UnknownName: Nothing has this name.
        AmbiguousName: Models of several packages have this short name.
        MissingCapability: The model has no trainer.
        InvalidArgument: The trainer does not have a setting, or refuses its value.
        FitFailure: The loss or its gradient is not finite.
        BrokenPlugin: The plugin fails with an error of its own.
    """
    entry = _MODELS.find(name)
    spec = _spec(entry)
    if spec.trainer is None:
        specs = describe_all()
        trainable = (
            ", ".join(i for i, s in specs.items() if isinstance(s, ModelSpec) and s.trainer)
            or "none"
        )
        raise MissingCapability(
            entry.id,
            spec.provides,
            ["trainer"],
            f"It cannot be trained. Trainable here: {trainable}",
        )
    with _MODELS.isolated(entry, "train"):
        trainer = pointed_at(spec.trainer)
        takes = list(inspect.signature(trainer).parameters)
        known = [p for p in takes if p not in ("data", "seed", "report", "checkpoint")]
    _refuse_unknown(settings, known, f"a setting of {entry.id}")
    if checkpoint is not None:
        if "checkpoint" not in takes:
            raise InvalidArgument(
                "checkpoint", checkpoint, f"None, as the trainer of {entry.id} keeps no checkpoints"
            )
        settings = {**settings, "checkpoint": checkpoint}
    with _MODELS.isolated(entry, "train", {"seed": seed, **settings}):
        told = None if report is None else outside(report)
        trained = trainer(data, seed=seed, report=told, **settings)
        if not callable(getattr(trained, "save", None)):
            raise TypeError(f"{spec.trainer} returned {trained!r:.80}, which has no save(path)")
    return trained


def build(spec: ModelSpec, /, **parameters: Any) -> Any:
    """The field that a spec's factory makes, registered or not; its code runs unguarded.

    Args:
        spec: The model's spec.
        parameters: In place of the defaults in the spec.

    Returns:
        The field. What the factory raises is raised here.

    Raises:
        TypeError: The factory returns no field, or one that lacks what the spec claims.
        ValueError: The field has another event shape than the spec says.
    """
    field = pointed_at(spec.factory)(**{**spec.parameters, **parameters})
    _check_claims(spec, field, own=not parameters)
    return field


def describe_all() -> dict[str, ModelSpec | ScoretkError]:
    """The specs of all registered models by id; where describing one fails, the error."""
    found: dict[str, ModelSpec | ScoretkError] = {}
    with _MODELS.survey():
        for item in list_models():
            try:
                found[item.id] = describe(item.id)
            except ScoretkError as error:
                found[item.id] = error
    return found


def verify() -> list[Entry | Broken]:
    """All registered models after each has been taken through every stage: see `Catalog.verified`."""
    return _MODELS.verified(load)


def _spec(entry: Entry) -> ModelSpec:
    with _MODELS.isolated(entry, "describe"):
        spec = pointed_at(entry.value)
        if not isinstance(spec, ModelSpec):
            raise TypeError(
                f"{entry.value} is of type {type(spec).__name__}, not a scoretk.ModelSpec"
            )
        if spec.name != entry.name:
            raise ValueError(
                f"the entry point's key is {entry.name!r} but its spec's name is {spec.name!r}"
            )
    return spec


def _refuse_unknown(given: dict[str, Any], known: list[str], expected: str) -> None:
    for unknown in sorted(given.keys() - set(known)):
        hint = f"It takes {', '.join(known) or 'none'}"
        raise InvalidArgument(
            unknown, given[unknown], f"{expected}{near_match(unknown, known)}", hint
        )


def _check_claims(spec: ModelSpec, field: Any, own: bool) -> None:
    """Hold a field to its spec.

    Args:
        spec: What the plugin says about its model.
        field: What the factory made.
        own: Whether the parameters are the spec's own; only then the event shape is compared.
    """
    if isinstance(field, type) or not hasattr(field, "event_shape"):
        raise TypeError(
            f"{spec.factory} returned {field!r:.80}, which is no field: it has no event_shape"
        )
    if own and spec.event_shape is not None and tuple(field.event_shape) != spec.event_shape:
        raise ValueError(
            f"the spec says event_shape={spec.event_shape} but the field's is "
            f"{tuple(field.event_shape)}; event_shape=None is for a shape that depends on the "
            "parameters"
        )
    missing = spec.provides - offers(field)
    if missing:
        raise TypeError(
            f"the spec claims {', '.join(sorted(missing))}, which the loaded field does not offer"
        )
