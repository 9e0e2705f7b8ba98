"""Masks that say which pixels are used: any kind of picture, light for used and dark for ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, Sequence, Tuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from zipnerf_ns.errors import InputError

USED_FROM = 128
"""Least brightness, of 255, of a pixel that is used: what lossy compression leaves in black is still black."""

LOSSY_FORMATS = ("JPEG", "MPO")
"""Formats, as Pillow names them, that cannot hold labels: what is nearly black in them is black."""

NOTHING_USED = "the masks leave no pixel: white marks what is used, black what is ignored."
"""Said of masks that ignore all of every image."""


def check_masks(filenames: Sequence[Path], sizes: Sequence[Tuple[int, int]]) -> None:
    """Checks that every mask is there, can be opened and has its image's size; only headers are read.

    Args:
        filenames: masks.
        sizes: width and height of their images, pixels.
    Raises:
        InputError: naming the file.
    """
    for filename, size in zip(filenames, sizes, strict=True):
        if not Path(filename).is_file():
            raise InputError(f"mask {filename} is missing. {_mend_missing(Path(filename))}")
        try:
            with Image.open(filename) as mask:
                found = mask.size
        except OSError as error:
            raise InputError(f"mask {filename} cannot be read ({error}). Replace it.") from error
        if tuple(found) != tuple(size):
            raise InputError(
                f"mask {filename} has {found[0]}x{found[1]} pixels, its image {size[0]}x{size[1]}. "
                "Write it in its image's size."
            )


def _mend_missing(filename: Path) -> str:
    """Pictures above 1600 pixels are read at half their size, from folders that Nerfstudio writes; masks are not."""
    folder, _, factor = filename.parent.name.rpartition("_")
    if folder and factor.isdigit():
        original = filename.parent.with_name(folder) / filename.name
        if original.is_file():
            return (
                f"Reduce {original} to 1/{factor} of its width and height for it, or read everything in full size "
                "with nerfstudio-data --downscale-factor 1 at the end of the command."
            )
    return "Restore it, or remove mask_path from all frames."


def check_some_used(filenames: Iterable[Path]) -> None:
    """Checks that masks leave a pixel; they are read one after the other until one does.

    Raises:
        InputError: if all ignore all, or one cannot be decoded.
    """
    if not any(bool(read_mask(filename).any()) for filename in filenames):
        raise InputError(NOTHING_USED)


def read_mask(filename: Path, scale_factor: float = 1.0) -> Bool[Tensor, "height width 1"]:
    """Which pixels are used; transparent ones are not.

    Args:
        filename: of a picture of any mode.
        scale_factor: size of the result over that of the file.
    Raises:
        InputError: if its pixels cannot be decoded.
    """
    try:
        with Image.open(filename) as mask:
            used = Image.fromarray(used_pixels(mask))
    except OSError as error:
        raise InputError(f"mask {filename} cannot be decoded ({error}). Replace it.") from error
    if scale_factor != 1.0:
        size = (int(used.width * scale_factor), int(used.height * scale_factor))
        used = used.resize(size, resample=Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(used))[..., None]


def white_of_integers(image: Image.Image, largest: float) -> float:
    """What white is in a picture of 16 or 32 bits: 255 in one of 32 bits without a larger value, else 65535.

    Files of 32 bits do not say how many of them are used. A PNG has at most 16, in whatever mode it is opened.

    Args:
        image: as it was opened.
        largest: of its values.
    """
    has_32_bits = image.mode == "I" and image.format != "PNG"
    return 255.0 if has_32_bits and largest <= 255.0 else 65535.0


def used_pixels(mask: Image.Image) -> Bool[np.ndarray, "height width"]:
    """Which pixels a picture of any mode marks as used."""
    return np.asarray(_brightness(mask)) >= USED_FROM


def _brightness(mask: Image.Image) -> Image.Image:
    if mask.mode.startswith("I"):
        wide = np.asarray(mask, dtype=np.float64)
        return Image.fromarray((255.0 * wide / _white(mask, wide)).clip(0.0, 255.0).astype(np.uint8))
    if "A" in mask.getbands() or "transparency" in mask.info:
        over_black = Image.new("RGBA", mask.size, (0, 0, 0, 255))
        return Image.alpha_composite(over_black, mask.convert("RGBA")).convert("L")
    brightness = mask.convert("L")
    # Labels 0 and 1 in 8 bits: stretched, or all would be ignored. Lossy compression leaves such values in black.
    are_labels = brightness.getextrema()[1] == 1 and mask.format not in LOSSY_FORMATS
    return brightness.point(lambda value: 255 * value) if are_labels else brightness


def _white(mask: Image.Image, values: Float[np.ndarray, "height width"]) -> float:
    """What white is in a mask of 16 or 32 bits: 1 or 255 where nothing but 0 and it occurs, else its format's."""
    largest = float(values.max())
    if largest in (1.0, 255.0) and bool(np.isin(values, (0.0, largest)).all()):
        return largest
    return white_of_integers(mask, largest)
