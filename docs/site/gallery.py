"""The gallery: its examples, as sphinx-gallery runs them, and how the figures that they make are found."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

__all__ = ["CONFIG", "figures"]

DPI = 90


def figures(block: Any, variables: dict[str, Any], config: dict[str, Any]) -> str:
    """The figure that a block of an example leaves by the name `figure`, as a picture of its page."""
    figure = variables["example_globals"].pop("figure", None)
    if not isinstance(figure, Figure):
        return ""
    path = Path(next(variables["image_path_iterator"]))
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return figure_rst([str(path)], config["src_dir"])


CONFIG = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": "/",  # all of them run
    "image_scrapers": (figures,),
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1,
    "plot_gallery": True,
    "show_signature": False,
    "write_computation_times": False,
    "only_warn_on_example_error": False,
}
"""The settings of sphinx-gallery. An example that has not changed keeps the pages that it made."""
