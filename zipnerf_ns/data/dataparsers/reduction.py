"""Images with larger pixels: the mean of the squares that they cover.

Of the stored values, weighted by alpha (averaged with premultiplied colors, then made straight again), as in the
multi-scale scenes of mip-NeRF.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from zipnerf_ns.data.disk.files import whole_file
from zipnerf_ns.data.images import brightness, used_pixels
from zipnerf_ns.errors import InputError, say, shorten

COMPARED = 4
"""Reduced images that are compared with their originals."""
SQUARES = 16
"""Squares along each side of an image that is compared."""
MOST_DIFFERENT = 8.0
"""Mean change of a square's brightness, of 255, that filters and compression do not make."""


def reduce_image(image: Image.Image, scale: int) -> npt.NDArray[np.uint8]:
    """An image with pixels ``scale`` times as large, ``[height, width, 3 or 4]``; straight alpha in and out."""
    has_alpha = image.has_transparency_data
    pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"), dtype=np.float32)
    if not has_alpha:
        return _to_bytes(_squares(pixels, scale).mean(axis=(1, 3)))
    colors, alpha = pixels[..., :3], pixels[..., 3:] / 255.0
    mean_alpha = _squares(alpha, scale).mean(axis=(1, 3))
    mean_colors = _squares(colors * alpha, scale).mean(axis=(1, 3)) / np.maximum(mean_alpha, 1e-6)
    return _to_bytes(np.concatenate([mean_colors, 255.0 * mean_alpha], axis=-1))


def reduce_mask(image: Image.Image, scale: int) -> npt.NDArray[np.uint8]:
    """A mask of any kind with pixels ``scale`` times as large: used only where all of the pixel is."""
    used = _squares(used_pixels(image)[..., None], scale).all(axis=(1, 3))[..., 0]
    return np.where(used, 255, 0).astype(np.uint8)


def _squares(pixels: npt.NDArray, scale: int) -> npt.NDArray:
    """``[rows, scale, columns, scale, channels]``; what is left at the right and the bottom is cut off."""
    rows, columns = pixels.shape[0] // scale, pixels.shape[1] // scale
    return pixels[: rows * scale, : columns * scale].reshape(rows, scale, columns, scale, -1)


def _to_bytes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.rint(values.clip(0.0, 255.0)).astype(np.uint8)


def tell_of_others(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Says which reduced images show something else than their originals, as those of an earlier run may.

    Args:
        pairs: originals and reduced images; a few of them, spread over all, are looked at.
    """
    there = [pair for pair in pairs if pair[0].is_file() and pair[1].is_file()]
    chosen = there[:: max(1, -(-len(there) // COMPARED))]
    others = [str(reduced) for original, reduced in chosen if _difference(original, reduced) > MOST_DIFFERENT]
    if others:
        say(
            f"{shorten(others)}: of {len(chosen)} reduced images that were compared with their originals, "
            f"{len(others)} show something else. Remove the folder and reduce the images again, or read the full size."
        )


def _difference(first: Path, second: Path) -> float:
    """Mean difference of two images' brightness, of 255, by squares; 0 where one cannot be decoded."""
    try:
        squares = []
        for path in (first, second):
            with Image.open(path) as image:
                # JPEG is decoded small at once.
                image.draft(None, (4 * SQUARES, 4 * SQUARES))
                bright = brightness(image).resize((SQUARES, SQUARES), Image.Resampling.BOX)
            squares.append(np.asarray(bright, dtype=np.float64))
    except (OSError, ValueError):
        # Whoever loads it will say so.
        return 0.0
    return float(np.abs(squares[0] - squares[1]).mean())


def write_reduced(
    original: Path, target: Path, scale: int, function: Callable[[Image.Image, int], npt.NDArray[np.uint8]]
) -> None:
    """Writes a reduced image as PNG, unless it is there already and its original has not changed.

    Raises:
        InputError: where the original cannot be read or the reduced image not be written.
    """
    changed = original.stat().st_mtime_ns
    # The reduced image bears its original's date: a newer or an older original is another image.
    if target.is_file() and target.stat().st_mtime_ns == changed:
        return
    try:
        with Image.open(original) as image:
            if image.mode[0] in "IF":
                raise InputError(f"image {original} has more than 8 bits a channel. Convert it to 8 bits first.")
            reduced = function(image, scale)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"image {original} cannot be reduced ({error}). Replace it or remove its frame.") from error
    try:
        with whole_file(target) as unfinished:
            Image.fromarray(reduced).save(unfinished, format="PNG", compress_level=1)
            os.utime(unfinished, ns=(changed, changed))
    except OSError as error:
        raise InputError(
            f"reduced images cannot be written to {target.parent} ({error}). Give another --cache-dir."
        ) from error
