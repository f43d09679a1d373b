"""A field's weights in a folder that says what they are, and back: safetensors, JSON, a model card.

A folder holds `model.safetensors` (every module's state, and answers of the field at fixed points),
`config.json` (how the field is made, its shape and what it offers) and `README.md`, a model card.
No code and no pickle is stored: a field is made by a registered model's name and settings, or by
the caller, and its weights are put in; the answers at the fixed points show whether it is the same.

A folder of this form is a repository of the Hugging Face hub as it stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from scoretk.core.arguments import conditions
from scoretk.core.dependencies import required
from scoretk.core.keywords import explained
from scoretk.core.modules import outermost_modules
from scoretk.core.sealed import Unreadable, plain_json, read_sealed, write_sealed
from scoretk.core.versions import versions
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument
from scoretk.fields.fingerprint import (
    OF_THE_NETWORK,
    answers,
    closeness,
    precision,
    predicted,
    same,
)
from scoretk.fields.protocols import field_name, is_field, offers
from scoretk.fields.resolve import resolve
from scoretk.plugins import find_model, load

__all__ = ["load_pretrained", "save_pretrained"]

KIND, WEIGHTS, CONFIG, CARD = "pretrained", "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
COND = "cond."


@explained
def save_pretrained(
    field: Any,
    folder: str | os.PathLike[str],
    *,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    cond: Mapping[str, Tensor] | None = None,
    card: str = "",
    push_to_hub: str | None = None,
) -> Path:
    """Write a field's weights, how it is made, and a model card into a folder.

    Args:
        field: The field; the weights of all its modules are stored.
        folder: Where to; it is made, and files of the same names are replaced.
        model: The name of the registered model that makes it, for `load_pretrained` without a
            field; None where the caller will make it.
        settings: What that model, or the caller's function, takes: plain values of JSON, whose
            lists stand for tuples too.
        cond: Conditions by name, a few rows of each, for a field that does not answer without: at
            them it is asked for the answers that tell it from another. `{}` stores such a field without
            its answers.
        card: Text for the model card.
        push_to_hub: The id of a repository of the Hugging Face hub, "user/name", where the folder is
            published too; it is made where there is none. None for the folder alone.

    Returns:
        The folder.

    Warns:
        UserWarning: The field does not answer without conditions, and `cond` is `{}`.

    Raises:
        InvalidArgument: It is no field, has no module with weights, holds state that is no tensor,
            does not answer at the conditions, or without, the settings are not plain, or the hub does
            not take the folder, which is written then.
        MissingDependency: It is to be published, and huggingface_hub is not installed.
        UnknownName: No model has this name.
    """
    if not is_field(field):
        resolve(field, ())  # raises, with the way to wrap it
    _check_texts(model=model, card=card, push_to_hub=push_to_hub)
    hub = None if push_to_hub is None else _hub(push_to_hub)
    if settings is not None and not isinstance(settings, Mapping):
        raise InvalidArgument("settings", settings, "settings by name")
    tensors = _states(field)
    if not tensors:
        raise InvalidArgument(
            "field", field_name(field), "a field with modules, whose weights can be stored"
        )
    rows = conditions(cond)
    conditions(cond, len(next(iter(rows.values()), ())))
    config: dict[str, Any] = {
        **versions(),
        "model": None if model is None else find_model(model).id,
        "settings": dict(settings or {}),
        "event_shape": list(field.event_shape),
        "provides": sorted(offers(field)),
        "predicts": predicted(field),
        "field": type(field).__name__,
        "asked": precision(field),
    }
    text = _plain(config)
    found, want = answers(field, rows)
    if not found.keys() & OF_THE_NETWORK:
        _tell_of_no_answers(field, cond, want)
    held = tensors | found | {f"{COND}{name}": value.cpu() for name, value in rows.items()}
    path = _path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_sealed(path / WEIGHTS, KIND, held, config)
        (path / CONFIG).write_text(text + "\n", encoding="utf-8")
        (path / CARD).write_text(_card(config, card), encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(
            "folder", str(path), "a folder that can be written", str(error)
        ) from error
    except ValueError as error:
        raise InvalidArgument(
            "field", field_name(field), "weights of dtypes that safetensors holds", str(error)
        ) from error
    if hub is not None:
        try:
            hub.create_repo(push_to_hub, exist_ok=True)
            hub.upload_folder(repo_id=push_to_hub, folder_path=path, allow_patterns=[*FILES])
        except Exception as error:  # the hub's own, of HTTP and of rights
            raise InvalidArgument(
                "push_to_hub",
                push_to_hub,
                "a repository of the hub that you may write to",
                f"hf auth login, or HF_TOKEN. {path} is written. The hub said: {error}",
            ) from error
    return path


@explained
def load_pretrained(
    folder: str | os.PathLike[str], field: Any = None, *, revision: str | None = None
) -> Any:
    """The field whose weights are in a folder, or in a repository of the Hugging Face hub.

    Args:
        folder: What `save_pretrained` wrote; or, where no such folder exists and huggingface_hub is
            installed, the id of a repository, "user/name".
        field: A field of the same build, whose weights are replaced; or a function that makes one,
            called with the stored settings. None for a field that a registered model makes.
        revision: Of the repository: a branch, a tag or a commit.

    Returns:
        The field.

    Warns:
        UserWarning: Weights are rounded to the field's own dtypes; or no answers of the field are
            stored, by which another of the same weights would be told from it.

    Raises:
        InvalidArgument: The folder holds no such files, the weights do not fit the field, or it
            answers otherwise than the one that was stored; then it is as it was.
        MissingDependency: It is no folder, and huggingface_hub is not installed.
    """
    path = _folder(folder, revision)
    try:
        tensors, header = read_sealed(path / WEIGHTS, KIND)
        config = dict(header)
        settings = dict(config["settings"])
        model = config["model"]
        shape = tuple(config["event_shape"])
    except (Unreadable, KeyError, TypeError) as error:
        raise InvalidArgument(
            "folder", str(path), "a folder that scoretk.save_pretrained wrote", str(error)
        ) from error
    _check_config(path / CONFIG, config)
    stored = {n: tensors.pop(n) for n in list(tensors) if n.partition(".")[0] == "answers"}
    cond = {n.removeprefix(COND): tensors.pop(n) for n in list(tensors) if n.startswith(COND)}
    made = _made(field, model, settings)
    predicts = config.get("predicts", predicted(made))
    told = (tuple(made.event_shape), predicted(made))
    if told != (shape, predicts):
        raise InvalidArgument(
            "field",
            f"{field_name(made)} of {_told(*told)}",
            f"the field whose weights these are, of {_told(shape, predicts)}",
        )
    if not stored.keys() & OF_THE_NETWORK:
        warn(
            f"load_pretrained: {path} holds no answers of its field, which was saved without conditions: "
            "a field of the same weights that answers otherwise is not told from it"
        )
    before = _states(made)
    try:
        _put(made, tensors)
        _check_answers(made, cond, stored, config.get("asked"))
    except InvalidArgument:
        if before.keys() == tensors.keys():
            _put(made, before)
        raise
    return made


def _tell_of_no_answers(
    field: Any, cond: Mapping[str, Tensor] | None, want: Exception | None
) -> None:
    """Say that what a field answers cannot be stored, as it wants conditions.

    Warns:
        UserWarning: `cond` is empty: it was asked to be stored without.

    Raises:
        InvalidArgument: It is not.
    """
    name = field_name(field)
    without = "A field of the same weights that answers otherwise would not be told from it"
    if cond is None:
        raise InvalidArgument(
            "cond",
            None,
            f"a few rows of each condition, as {name} does not answer without conditions",
            f"{without}; cond={{}} stores it all the same. It raised {type(want).__name__}: {want}",
        ) from want
    warn(
        f"save_pretrained: {name} did not answer without conditions. {without}. It raised {type(want).__name__}: {want}"
    )


def _plain(config: Mapping[str, Any]) -> str:
    """The text of config.json.

    Raises:
        InvalidArgument: The settings are no plain values, or would come back as others.
    """
    settings = config["settings"]
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument("settings", settings, "plain values for JSON", str(error)) from error
    if not _has_texts_for_keys(settings):
        raise InvalidArgument("settings", settings, "plain values for JSON, texts for keys")
    return text


def _has_texts_for_keys(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _has_texts_for_keys(v) for k, v in value.items())
    return not isinstance(value, list | tuple) or all(map(_has_texts_for_keys, value))


def _check_config(path: Path, config: dict[str, Any]) -> None:
    """Check that config.json, where it is there, says what is sealed with the weights.

    Raises:
        InvalidArgument: It does not: an edit of it would have no effect.
    """
    try:
        written = plain_json(path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InvalidArgument("folder", str(path), "a config.json", str(error)) from error
    if written != config:
        raise InvalidArgument(
            "folder",
            str(path),
            "the config.json that was written with the weights",
            "It was edited, or is of another field: what counts is sealed with the weights. "
            "Give the field itself for other settings, and save it",
        )


def _told(shape: tuple[int, ...], predicts: str | None) -> str:
    return f"event shape {shape}" + ("" if predicts is None else f" that predicts {predicts}")


def _check_answers(
    field: Any, cond: Mapping[str, Tensor], stored: Mapping[str, Tensor], asked: Any
) -> None:
    """Check a field's answers at fixed points.

    Raises:
        InvalidArgument: They are not those that are stored.
    """
    found, want = answers(field, cond, stored.keys())
    close, events = closeness(asked, precision(field)), len(field.event_shape)
    if not all(same(name, found.get(name), v, close, events) for name, v in stored.items()):
        raise InvalidArgument(
            "field",
            field_name(field),
            "the field whose weights these are: it answers otherwise at the stored points",
            "What is not a weight differs, such as the path, what is predicted, or a constant"
            if want is None
            else f"It wants conditions: it raised {type(want).__name__}: {want}",
        ) from want


def _path(folder: Any) -> Path:
    """The path of a folder, which the file system can be asked about."""
    try:
        path = Path(folder)
        path.is_dir()
    except (OSError, TypeError, ValueError) as error:  # no path, a NUL, a name that is too long
        raise InvalidArgument("folder", folder, "the path of a folder", str(error)) from error
    return path


def _check_texts(**texts: Any) -> None:
    for name, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise InvalidArgument(name, text, "a text, or None")


def _folder(folder: str | os.PathLike[str], revision: str | None) -> Path:
    path = _path(folder)
    _check_texts(revision=revision)
    if path.is_dir():
        return path
    if not isinstance(folder, str) or not _is_repository(folder):
        raise InvalidArgument(
            "folder", str(folder), "a folder, or the id of a repository, user/name"
        )
    hub = _hub(folder)
    try:
        found = hub.snapshot_download(folder, revision=revision, allow_patterns=[*FILES])
    except Exception as error:  # the hub's own, of HTTP and of the file system
        raise _unreached(folder, revision, error) from error
    return Path(found)


def _is_repository(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/"))


def _hub(repository: str) -> Any:
    """huggingface_hub, which `repository` is asked of."""
    if not _is_repository(repository):
        raise InvalidArgument("push_to_hub", repository, "the id of a repository, user/name")
    return required("huggingface_hub", "hub", f"The repository {repository!r}")


def _unreached(folder: str, revision: str | None, error: Exception) -> InvalidArgument:
    """The error for a repository that the hub does not hand over, with what to do."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "RevisionNotFoundError" in kinds:
        return InvalidArgument(
            "revision", revision, f"a branch, a tag or a commit of the repository {folder!r}"
        )
    if kinds & {"RepositoryNotFoundError", "GatedRepoError", "HFValidationError"}:
        return InvalidArgument(
            "folder",
            folder,
            "a folder, or a repository of the hub that exists and that you may read",
            "Of a private or gated one: hf auth login, or HF_TOKEN",
        )
    return InvalidArgument(
        "folder",
        folder,
        "a folder, or a repository of the hub that can be reached from here",
        f"Without a connection give the path of a copy of it. The hub said: {error}",
    )


def _made(field: Any, model: str | None, settings: dict[str, Any]) -> Any:
    """The field to put weights into."""
    if field is None:
        if model is None:
            raise InvalidArgument(
                "field", None, "a field, or a function that makes one: no registered model does"
            )
        return load(model, **settings)
    if is_field(field):
        return field
    made = field(**settings) if callable(field) else field
    if not is_field(made):
        raise InvalidArgument("field", field, "a field, or a function that makes one")
    return made


def _states(field: Any) -> dict[str, Tensor]:
    """Copies of all state of a field's modules, by name.

    Raises:
        InvalidArgument: Some of it is no tensor, or has not been made yet.
    """
    found = {
        f"{i}.{name}": value
        for i, root in enumerate(outermost_modules(field))
        for name, value in root.state_dict().items()
    }
    for name, value in found.items():
        if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta:
            hint = "Call the network once" if isinstance(value, Tensor) else "No pickle is stored"
            if isinstance(value, Tensor) and value.is_meta:
                hint = "Give it memory: network.to_empty(device='cpu')"
            raise InvalidArgument(
                "field",
                f"{field_name(field)}, whose {name.partition('.')[2]} is {type(value).__name__}",
                "modules whose state is tensors that have been made",
                hint,
            )
    return {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}


def _put(field: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put the weights into the modules of a field."""
    roots = outermost_modules(field)
    own = {f"{i}.{name}" for i, root in enumerate(roots) for name in root.state_dict()}
    if own != tensors.keys():
        apart = sorted(own ^ tensors.keys())[:5]
        raise InvalidArgument(
            "field",
            field_name(field),
            f"modules with the stored weights; apart: {', '.join(apart)}",
        )
    rounded = sorted(
        f"{name} from {tensors[f'{i}.{name}'].dtype} to {held.dtype}"
        for i, root in enumerate(roots)
        for name, held in root.state_dict().items()
        if torch.promote_types(tensors[f"{i}.{name}"].dtype, held.dtype) != held.dtype
    )
    if rounded:
        warn(
            f"load_pretrained: weights are rounded: {', '.join(rounded[:3])}, {len(rounded)} in all"
        )
    for i, root in enumerate(roots):
        lead = f"{i}."
        state = {n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)}
        try:
            root.load_state_dict(state)
        except RuntimeError as error:
            raise InvalidArgument(
                "field", field_name(field), "modules of the stored shapes", str(error)
            ) from error


def _card(config: Mapping[str, Any], text: str) -> str:
    made = (
        f"scoretk.load_pretrained(folder)  # {config['model']}"
        if config["model"]
        else "scoretk.load_pretrained(folder, field)  # a field of the same build"
    )
    shape = tuple(config["event_shape"])
    return (
        "---\nlibrary_name: scoretk\ntags:\n- scoretk\n---\n\n# A field of scoretk\n\n"
        + (f"{text.strip()}\n\n" if text.strip() else "")
        + f"Events of shape {shape}; offers {', '.join(config['provides'])}.\n\n"
        + f"```python\nimport scoretk\n\nfield = {made}\n```\n"
    )
