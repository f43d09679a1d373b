"""Pictures of samples: digits in rows, restored digits below the originals, scatter plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretk.core.dependencies import required

__all__ = ["digit_sheet", "plane_sheet", "restored_sheet"]

COLUMNS, ROWS = 20, 5


def _pyplot() -> Any:
    purpose = "The demo's pictures"
    required("matplotlib", "demo", purpose).use("Agg")
    return required("matplotlib.pyplot", "demo", purpose)


def _grid(
    pyplot: Any,
    rows: int,
    columns: int,
    size: tuple[float, float],
    margins: tuple[float, float, float],
) -> tuple[Any, Any]:
    """A figure of panels with margins that are known: to find them takes longer than to draw.

    Args:
        pyplot: The module.
        rows: How many panels stand above one another.
        columns: How many stand side by side.
        size: Width and height of a panel with its margins, in inches.
        margins: Those on the left, on the right and above, in inches; below is as on the left.

    Returns:
        The figure and its axes, `(rows, columns)`.
    """
    (width, height), (left, right, above) = size, margins
    across, down = columns * width, rows * height
    inner = width - left - right, height - left - above
    return pyplot.subplots(
        rows,
        columns,
        figsize=(across, down),
        squeeze=False,
        gridspec_kw={
            "left": left / across,
            "right": 1 - right / across,
            "bottom": left / down,
            "top": 1 - above / down,
            "wspace": (left + right) / inner[0],
            "hspace": (left + above) / inner[1],
        },
    )


def digit_sheet(path: Path, panels: list[tuple[str, Tensor]]) -> None:
    """Write a picture with a block of small images for each panel, under its title.

    Args:
        path: The file.
        panels: Titles and images, `(n, 1, 8, 8)` in [-1, 1], or zeros and ones.
    """
    pyplot = _pyplot()
    figure, axes = _grid(pyplot, len(panels), 1, (10.0, 2.9), (0.1, 0.1, 0.3))
    for axis, (title, images) in zip(axes[:, 0], panels, strict=True):
        axis.imshow(
            _mosaic(_levels(images), ROWS, COLUMNS),
            cmap="gray",
            vmin=-1,
            vmax=1,
            interpolation="nearest",
        )
        axis.set_title(title, fontsize=10, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def restored_sheet(path: Path, title: str, rows: list[tuple[str, Tensor]], columns: int) -> None:
    """Write a picture with rows of small images, NaN in blue.

    Args:
        path: The file.
        title: Its title.
        rows: The names of the rows and their images, `(n, 1, 8, 8)` in [-1, 1].
        columns: How many images of each row are shown.
    """
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(0.56 * columns, 0.56 * len(rows)))
    canvas = _mosaic(torch.cat([images[:columns] for _, images in rows]), len(rows), columns)
    axis.imshow(
        canvas, cmap=pyplot.get_cmap("gray").with_extremes(bad="steelblue"), vmin=-1, vmax=1
    )
    axis.set_title(title, fontsize=10, loc="left")
    axis.set(xticks=[], yticks=[9 * i + 4.5 for i in range(len(rows))])
    axis.set_yticklabels([name for name, _ in rows], fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _levels(images: Tensor) -> Tensor:
    """Images in [-1, 1], those of zeros and ones scaled to it."""
    return 2 * images - 1 if bool(((images == 0) | (images == 1)).all()) else images


def _mosaic(images: Tensor, rows: int, columns: int) -> Any:
    """The images as one array, `(9 rows + 1, 9 columns + 1)`, with grey lines between them."""
    canvas = images.new_zeros(rows * 9 + 1, columns * 9 + 1)
    for i, image in enumerate(images[: rows * columns, 0]):
        top, left = divmod(i, columns)
        canvas[top * 9 + 1 : top * 9 + 9, left * 9 + 1 : left * 9 + 9] = image
    return canvas.cpu().numpy()


def plane_sheet(path: Path, panels: list[tuple[str, Tensor]]) -> None:
    """Write a picture with scatter plots of points `(n, 2)`, on one scale, four in a row."""
    pyplot = _pyplot()
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = _grid(pyplot, rows, columns, (3.0, 3.2), (0.4, 0.1, 0.5))
    limit = 1.1 * max(float(points.abs().max()) for _, points in panels)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, points) in zip(axes.flat, panels, strict=False):
        axis.scatter(*points.T.cpu().numpy(), s=4, linewidths=0)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axis.set_title(title.replace(": ", "\n"), fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
