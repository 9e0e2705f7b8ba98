"""Results of trials as pictures: PSNR over training time, and crops of held-out views with their errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from zipnerf_ns.tools.trials.report import group_by_scene
from zipnerf_ns.tools.trials.trial import VIEWS, written_whole

Shown = tuple[Mapping[str, Any], Path]
"""A result, and the folder of its trial."""

CROP_SIDE, CELL = 96, 240
"""Of a crop, at most, and of the square in which it is shown, pixels."""
ERROR_GAIN = 4.0
"""Errors are shown this many times larger, black to red to yellow to white."""
VIEWS_PER_SCENE = 2
MARGIN, TEXT = 4, 16


def save_curves(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Draws PSNR of the held-out views over seconds of training, one plot for each scene."""
    # Here and not above: it takes seconds to import, and needs to know first that there is no screen.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scenes = group_by_scene([result for result in results if result["status"] == "done"])
    if not scenes:
        return
    figure, axes = pyplot.subplots(1, len(scenes), figsize=(5.5 * len(scenes), 4.0), squeeze=False)
    for axis, (scene, group) in zip(axes[0], scenes.items(), strict=True):
        for result in group:
            seconds = [point["seconds"] for point in result["curve"]]
            psnr = [point["psnr"] for point in result["curve"]]
            axis.plot(seconds, psnr, marker="o", markersize=3, label=result["trial"]["method"])
        axis.set(title=scene, xlabel="seconds of training", ylabel="PSNR of held-out views, dB")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
    pyplot.close(figure)


def save_crops(path: Path, shown: Sequence[Shown]) -> None:
    """Draws, for some held-out views of each scene, the crop where methods err most: truth, methods, their errors."""
    scenes = group_by_scene([result for result, _ in shown if result["status"] == "done"])
    folders = {id(result): folder for result, folder in shown}
    strips = []
    for scene, group in scenes.items():
        for index in _chosen_views(group):
            strips.append(_strip(scene, index, [(result, folders[id(result)]) for result in group]))
    if not strips:
        return
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    with written_whole(path) as unfinished:
        sheet.save(unfinished, format="PNG")


def _chosen_views(group: Sequence[Mapping[str, Any]]) -> list[int]:
    """Views that every method kept: the first and the last, which with several scales are of different sizes."""
    common = sorted(set.intersection(*(set(result["kept_views"]) for result in group)))
    return common if len(common) <= VIEWS_PER_SCENE else [common[0], common[-1]]


def _read(folder: Path, index: int, name: str) -> npt.NDArray[np.float32]:
    with Image.open(folder / VIEWS / f"{index:04d}_{name}.png") as picture:
        return np.asarray(picture, dtype=np.float32) / 255.0


def worst_square(errors: npt.NDArray[np.float32], side: int) -> tuple[int, int]:
    """Top and left of the square in which a map of errors has its largest sum.

    Args:
        errors: ``[height, width]``.
        side: of the square, pixels; at most the map's sides.
    """
    sums = np.pad(errors.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(int(squares.argmax()), squares.shape)
    return int(top), int(left)


def heat(errors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Colors of errors in [0, 1], ``[height, width, 3]``: black, red, yellow, white."""
    level = 3.0 * np.clip(errors * ERROR_GAIN, 0.0, 1.0)
    return np.stack([np.clip(level - shift, 0.0, 1.0) for shift in (0.0, 1.0, 2.0)], axis=-1)


def _strip(scene: str, index: int, group: Sequence[Shown]) -> Image.Image:
    """One view: a row of crops, and under each rendering its error."""
    pictures = [(_read(folder, index, "truth"), _read(folder, index, "rendering")) for _, folder in group]
    errors = [np.abs(rendering - truth).mean(axis=-1) for truth, rendering in pictures]
    # Splatfacto sees other pixels where the lens distorts: only pictures of one size are averaged.
    alike = [error for error in errors if error.shape == errors[0].shape]
    side = min(CROP_SIDE, *(min(error.shape) for error in errors))
    top, left = worst_square(np.mean(alike, axis=0), side)
    square = (slice(top, top + side), slice(left, left + side))
    columns: list[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32] | None]] = [
        ("truth", pictures[0][0][square], None)
    ]
    for (result, _), (_, rendering), error in zip(group, pictures, errors, strict=True):
        psnr = result["per_image"][index]["psnr"]
        columns.append((f"{result['trial']['method']}  {psnr:.2f} dB", rendering[square], heat(error[square])))
    sheet = Image.new("RGB", (len(columns) * (CELL + MARGIN), 2 * (CELL + MARGIN) + 2 * TEXT), "white")
    draw = ImageDraw.Draw(sheet)
    scale = group[0][0]["per_image"][index].get("scale")
    title = f"{scene}, view {index}" + ("" if scale is None else f", at 1/{scale}")
    draw.text((MARGIN, 2), title, fill="black")
    for column, (label, crop, error_map) in enumerate(columns):
        x = column * (CELL + MARGIN)
        draw.text((x + MARGIN, TEXT + 2), label, fill="black")
        sheet.paste(_enlarged(crop), (x, 2 * TEXT))
        if error_map is not None:
            sheet.paste(_enlarged(error_map), (x, 2 * TEXT + CELL + MARGIN))
    return sheet


def _enlarged(crop: npt.NDArray[np.float32]) -> Image.Image:
    """A crop in its square, pixels as pixels."""
    picture = Image.fromarray((crop * 255.0).round().astype(np.uint8))
    return picture.resize((CELL, CELL), Image.Resampling.NEAREST)
