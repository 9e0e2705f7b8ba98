"""Results of trials as pictures: PSNR over training time, and crops of held-out views with their errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from zipnerf_ns.tools.trials.report import Result, group_by_method, group_by_scene, scene_name, succeeded
from zipnerf_ns.tools.trials.trial import VIEWS

CROP_SIDE, CELL = 96, 2.5
"""Longest side of a crop, pixels, and side of the square in which it is shown, inches."""
ERROR_GAIN = 4.0
"""Errors are shown this many times larger, black to red to yellow to white."""


Crop = tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32] | None]
"""A title, a picture ``[side, side, 3]`` in [0, 1], and its error ``[side, side]``, which the truth has none of."""


@contextmanager
def figure(path: Path, rows: int, columns: int, width: float, height: float) -> Iterator[Any]:
    """A grid of plots, each of a size in inches, that is written as PNG."""
    # Here and not above: it takes seconds to import, and needs to know first that there is no screen.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (width * columns, height * rows)
    drawn, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    yield axes
    drawn.savefig(path, dpi=120)
    pyplot.close(drawn)


def save_curves(path: Path, results: Sequence[Result]) -> None:
    """Draws PSNR of the held-out views over seconds of training, one plot for each scene."""
    scenes = group_by_scene(succeeded(results))
    if not scenes:
        return
    with figure(path, 1, len(scenes), 5.5, 4.0) as axes:
        for axis, (scene, group) in zip(axes[0], scenes.items(), strict=True):
            for number, (method, results) in enumerate(group_by_method(group).items()):
                for result in results:
                    seconds, psnr = zip(*((point["seconds"], point["psnr"]) for point in result["curve"]), strict=True)
                    # One color for all seeds of a method, and one line of the legend.
                    label = method if result is results[0] else None
                    axis.plot(seconds, psnr, marker="o", markersize=3, color=f"C{number}", label=label)
            axis.set(title=scene, xlabel="seconds of training", ylabel="PSNR of held-out views, dB")
            axis.grid(alpha=0.3)
            axis.legend()


def save_crops(path: Path, results: Sequence[Result], folders: Sequence[Path]) -> None:
    """Draws, for some held-out views of each scene, the crop where methods err most: truth, methods, their errors.

    Of several seeds of a method the first is shown.

    Args:
        path: of the PNG; nothing is written where no trial succeeded.
        results: of trials.
        folders: theirs, in the same order.
    """
    own = {id(result): folder / VIEWS for result, folder in zip(results, folders, strict=True)}
    rows = []
    for scene in group_by_scene(succeeded(results)).values():
        group = [of_method[0] for of_method in group_by_method(scene).values()]
        # The first and the last that all kept, which with several scales are of different sizes.
        common = sorted(set.intersection(*(set(result["kept_views"]) for result in group)))
        for index in dict.fromkeys(common[:1] + common[-1:]):
            rows.append(crops_of_view(index, group, [own[id(result)] for result in group]))
    if not rows:
        return
    with figure(path, 2 * len(rows), max(map(len, rows)), CELL, CELL) as axes:
        for axis in axes.flat:
            axis.axis("off")
        for row, crops in enumerate(rows):
            for (above, below), (title, picture, error) in zip(axes[2 * row : 2 * row + 2].T, crops, strict=False):
                above.set_title(title, fontsize=8)
                above.imshow(picture, interpolation="nearest")
                if error is not None:
                    below.imshow(error, "hot", vmin=0.0, vmax=1.0 / ERROR_GAIN, interpolation="nearest")


def crops_of_view(index: int, group: Sequence[Result], folders: Sequence[Path]) -> list[Crop]:
    """The truth and each method's picture of one view, where the methods err most together.

    Args:
        index: of the view.
        group: results on one scene.
        folders: where their views are kept.
    """
    pictures = [[_read(folder, index, name) for name in ("truth", "rendering")] for folder in folders]
    errors = [np.abs(rendering - truth).mean(axis=-1) for truth, rendering in pictures]
    # Splatfacto sees other pixels where the lens distorts: only pictures of one size are averaged.
    alike = [error for error in errors if error.shape == errors[0].shape]
    side = min(CROP_SIDE, *(min(error.shape) for error in errors))
    top, left = worst_square(np.mean(alike, axis=0), side)
    square = (slice(top, top + side), slice(left, left + side))
    scale = group[0]["per_image"][index].get("scale")
    view = f"{scene_name(group[0]['trial']['scene'])}, view {index}" + ("" if scale is None else f", at 1/{scale}")
    crops: list[Crop] = [(f"{view}\ntruth", pictures[0][0][square], None)]
    for result, (_, rendering), error in zip(group, pictures, errors, strict=True):
        psnr = result["per_image"][index]["psnr"]
        crops.append((f"{result['trial']['method']}  {psnr:.2f} dB", rendering[square], error[square]))
    return crops


def _read(folder: Path, index: int, name: str) -> npt.NDArray[np.float32]:
    with Image.open(folder / f"{index:04d}_{name}.png") as picture:
        return np.asarray(picture, dtype=np.float32) / 255.0


def worst_square(errors: npt.NDArray[np.float32], side: int) -> tuple[int, int]:
    """Top and left of the square in which a map of errors has its largest sum.

    Args:
        errors: ``[height, width]``.
        side: of the square, pixels; at most the map's sides.
    """
    windows = np.lib.stride_tricks.sliding_window_view
    squares = windows(windows(errors.astype(np.float64), side, 0).sum(axis=-1), side, 1).sum(axis=-1)
    top, left = np.unravel_index(int(squares.argmax()), squares.shape)
    return int(top), int(left)
