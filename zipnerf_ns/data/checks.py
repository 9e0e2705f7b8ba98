"""Checks of what a user brings, made before any long work; each failure names the place and the mend."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from zipnerf_ns.data.poses import check_poses
from zipnerf_ns.errors import InputError, say, shorten


def check_images(filenames: Sequence[Path], sizes: Sequence[tuple[int, int]] | None = None) -> bool:
    """Checks that every image is there, can be opened and has its camera's size.

    Only headers are read: the pixels are checked when they are loaded.

    Args:
        filenames: images.
        sizes: width and height that the cameras say, in pixels.
    Returns:
        Whether any image has an alpha channel.
    Raises:
        InputError: naming the file.
    """
    has_alpha = False
    for index, filename in enumerate(filenames):
        if not Path(filename).is_file():
            raise InputError(f"image {filename} is missing. Restore it or remove its frame.")
        try:
            with Image.open(filename) as image:
                size = image.size
                has_alpha = has_alpha or "A" in image.getbands() or "transparency" in image.info
        except Exception as error:
            raise InputError(f"image {filename} cannot be read ({error}). Replace it or remove its frame.") from error
        if sizes is not None and tuple(size) != tuple(sizes[index]):
            raise InputError(
                f"image {filename} has {size[0]}x{size[1]} pixels, its camera {sizes[index][0]}x{sizes[index][1]}. "
                "Correct w and h (and the focal length) in the transforms, or the downscale factor."
            )
    return has_alpha


def say_outside(filenames: Sequence[Path], data: Path) -> None:
    """Says so where images lie outside of a scene's folder: its files may name any place.

    Only plain files are read, and as pictures alone: see :func:`check_images`.

    Args:
        filenames: images and masks.
        data: the scene's folder, or a file in it.
    """
    # Not where links lead: they are the person's own.
    folder = os.path.abspath(data.parent if data.is_file() else data)
    outside = [str(name) for name in filenames if not Path(os.path.abspath(name)).is_relative_to(folder)]
    if outside:
        say(f"{len(outside)} pictures lie outside of {folder}, and are read from there: {shorten(outside)}.")


def check_cameras(camera_to_worlds: Tensor, fx: Tensor, fy: Tensor, filenames: Sequence[Path], source: Path) -> None:
    """Checks parsed cameras, whatever the data's format was.

    Args:
        camera_to_worlds: ``[cameras, 3, 4]``.
        fx, fy: focal lengths in pixels, ``[cameras, 1]``.
        filenames: the cameras' images, to name them.
        source: what they were read from.
    Raises:
        InputError: naming the image.
    """
    if len(filenames) > 0:
        check_poses(camera_to_worlds.tolist(), [str(name) for name in filenames], source, is_whole=False)
    for name, focals in (("fx", fx), ("fy", fy)):
        for filename, value in zip(filenames, focals.flatten().tolist(), strict=True):
            if not math.isfinite(value) or value <= 0.0:
                raise InputError(f"camera of {filename}: focal length {name} is {value}. It must be positive.")


def check_train_split(num_images: int, source: Path) -> None:
    """Checks that there is something to train on.

    Raises:
        InputError: for fewer than two images.
    """
    if num_images == 0:
        raise InputError(f"{source}: the train split is empty. Choose another --eval-mode or list train_filenames.")
    if num_images == 1:
        raise InputError(f"{source}: only one image to train on. A scene needs at least two, better fifty.")
