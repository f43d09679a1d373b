"""The site that `make docs` builds: the pages of this folder, the README, and a reference from docstrings."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "site"), str(HERE.parent)]

from gallery import CONFIG  # noqa: E402

from scoretk import __version__  # noqa: E402

project = "scoretk"
copyright = "scoretk contributors, Apache-2.0"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "reference",
    "repository",
]
sphinx_gallery_conf = CONFIG
suppress_warnings = ["config.cache"]  # the gallery's settings hold a function: they are not cached
exclude_patterns = [
    "plugin-template/**",
    "site/**",
    "examples/**",
    "pictures/**",
    "gallery/**",
    "auto_gallery/*.py",
    "auto_gallery/*.ipynb",
    "auto_gallery/*.zip",
    "auto_gallery/*.json",
]

default_role = "code"  # docstrings name code in single backticks, as Markdown does
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Sources", "returns_style")]

html_theme = "furo"
html_title = f"scoretk {release}"
html_static_path = ["site/static"]
html_css_files = ["narrow.css"]
html_theme_options = {
    "source_repository": "https://github.com/scoretk/scoretk/",
    "source_branch": "main",
    "source_directory": "docs/",
}
