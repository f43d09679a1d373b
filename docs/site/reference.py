"""The directives of the reference: chapters of public names, in full or a line each, from their docstrings."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from chapters import chapter
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["setup"]


def value(name: str) -> Any:
    """What has this dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def autodoc(name: str) -> str:
    """The directive of a dotted name, in reStructuredText."""
    thing = value(name)
    if isinstance(thing, Mapping):  # whose docstring is that of its type
        return f".. py:data:: {name}\n\n   By name: {', '.join(f'``{key}``' for key in thing)}.\n"
    if not callable(thing):
        return f".. autodata:: {name}\n   :annotation: = {thing!r}\n"
    if not isinstance(thing, type):
        return f".. autofunction:: {name}\n"
    if issubclass(thing, BaseException):
        return f".. autoexception:: {name}\n   :show-inheritance:\n"
    return f".. autoclass:: {name}\n   :members:\n"


def bars(line: str) -> str:
    """A line of a docstring where |x| is a norm: docutils would look for a substitution x."""
    parts = re.split("(`[^`]*`)", line)
    return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)


def _first_line(thing: Any) -> str:
    doc = (thing.__doc__ or "").strip() if callable(thing) else ""
    return bars(" ".join(doc.split("\n\n")[0].split()))


class _Chapter(SphinxDirective):
    """A chapter's names, each as one piece of reStructuredText."""

    required_arguments = 1

    def piece(self, name: str) -> str:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        pieces = [self.piece(name) for name in chapter(self.arguments[0])]
        text = "\n".join(["```{eval-rst}", *pieces, "```"])
        holder = nodes.container()
        lines = StringList(text.splitlines(), source=self.env.docname)
        self.state.nested_parse(lines, 0, holder)
        return holder.children


class Public(_Chapter):
    """`{public} fields`: each name in full."""

    def piece(self, name: str) -> str:
        return autodoc(name)


class Names(_Chapter):
    """`{names} fields`: a line for each name."""

    def piece(self, name: str) -> str:
        return f"- :py:obj:`{name}`: {_first_line(value(name))}"


def _docstring(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = map(bars, lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx asks for this."""
    app.add_directive("public", Public)
    app.add_directive("names", Names)
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True}
