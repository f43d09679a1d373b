"""Links that hold in the repository hold on the site: to the page that a file is there, else to the file itself."""

import re
from os.path import relpath
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

__all__ = ["PAGES", "setup", "with_links"]

ROOT = Path(__file__).parent.parent.parent
ONLINE = "https://github.com/scoretk/scoretk"

PAGES = {
    "README.md": "tour.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "docs/examples": "examples.md",
}
"""Files and folders of the repository that are shown as a page of another name."""

_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def with_links(text: str, file: Path, page: Path) -> str:
    """Markdown of `file` with the relative links that it needs as (a part of) `page`."""

    def mended(found: re.Match[str]) -> str:
        target = (file.parent / found[1]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return found[0]
        name = str(target.relative_to(ROOT))
        if name in PAGES:
            return f"]({relpath(ROOT / 'docs' / PAGES[name], page.parent)})"
        if target.suffix in {".md", ".png"} and name.startswith("docs/") and "template" not in name:
            return f"]({relpath(target, page.parent)}{found[2] or ''})"
        return f"]({ONLINE}/{'tree' if target.is_dir() else 'blob'}/main/{name})"

    return _LINK.sub(mended, text)


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(docname)).resolve()
    source[0] = with_links(source[0], page, page)


def _included(app: Sphinx, path: Path, docname: str, source: list[str]) -> None:
    file = (Path(app.srcdir) / path).resolve()
    source[0] = with_links(source[0], file, Path(app.env.doc2path(docname)).resolve())


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx asks for this."""
    app.connect("source-read", _read)
    app.connect("include-read", _included)
    return {"parallel_read_safe": True}
