"""Images and masks of any kind, with errors that name the file; light in a mask is used, dark is ignored."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import get_progress

from zipnerf_ns.errors import InputError

# Pillow takes pictures of more than 179 megapixels for an attack. These are the person's own.
Image.MAX_IMAGE_PIXELS = None

DECODING_BYTES = 8
"""Memory that a pixel takes while it is decoded: four bytes by Pillow's way, and the array that is made of it."""
DECODING_SHARE = 0.1
"""Memory for images that are being decoded, over that of all that are read."""
DECODING_ROOM = 2**26
"""Bytes that this takes in any case: where images are small, all threads have work."""
ROWS = 64
"""Rows of an image that are copied at a time."""
FLOAT_OVERSHOOT = 0.5
"""How far values of floating-point images may leave [0, 1], as sharpening makes them; they are clipped."""
USED_FROM = 128
"""Least brightness, of 255, of a pixel that is used: what lossy compression leaves in black is still black."""

LOSSY_FORMATS = ("JPEG", "MPO")
"""Formats, as Pillow names them, that cannot hold labels: what is nearly black in them is black."""

GRAY = 128
"""Brightness of what stands for an image that is not there."""
NOTHING_USED = "the masks leave no pixel: white marks what is used, black what is ignored."
"""Said of masks that ignore all of every image."""


class CheckedDataset(InputDataset):
    """Images as 8-bit RGB(A), whatever their files hold, and masks that are true where a pixel is used.

    Nerfstudio's own stops at palettes and gray with alpha, wraps 16 bits round, and takes for used whatever is not
    exactly black.
    """

    has_alpha: bool = False
    """Whether any image has an alpha channel; then all get one, for batches of images must have equal channels."""
    ignore_masks: bool = False
    """Whether every pixel is used; masks then only say where ``mask_color`` is painted."""
    crop_radius: float | None = None
    """Radius of a fisheye's circle around the middle of the image, pixels; what is outside of it is masked."""
    has_stand_ins: bool = False
    """Whether a gray image stands for one whose file is not there, for those who want to see a run without its data."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of every image as it is read, pixels."""
        cameras, scale = self._dataparser_outputs.cameras, self.scale_factor
        sides = zip(cameras.width.reshape(-1).tolist(), cameras.height.reshape(-1).tolist(), strict=True)
        return [(int(width * scale), int(height * scale)) for width, height in sides]

    @property
    def channels(self) -> int:
        """Channels of every image: 3, or 4 with alpha."""
        return 4 if self.has_alpha else 3

    @property
    def is_masked(self) -> bool:
        """Whether :meth:`used` leaves some pixels out."""
        has_masks = self._dataparser_outputs.mask_filenames is not None and not self.ignore_masks
        return has_masks or self.crop_radius is not None

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The image as ``[height, width, 3 or 4]``.

        Raises:
            InputError: if its pixels cannot be decoded, or have values of which nobody knows the white.
        """
        filename = self._dataparser_outputs.image_filenames[image_idx]
        if self.has_stand_ins and not filename.is_file():
            width, height = (int(getattr(self.cameras, side)[image_idx]) for side in ("width", "height"))
            return np.full((height, width, 3), GRAY, dtype=np.uint8)
        try:
            with Image.open(filename) as image:
                decoded = _to_rgb_or_rgba(image, self.has_alpha, filename)
        except InputError:
            raise
        # Of a file that was made to, Pillow's readers may stumble over anything.
        except Exception as error:
            raise InputError(
                f"image {filename} cannot be decoded ({error}). Replace it or remove its frame."
            ) from error
        if self.scale_factor != 1.0:
            size = (int(decoded.width * self.scale_factor), int(decoded.height * self.scale_factor))
            decoded = decoded.resize(size, resample=Image.Resampling.BOX)
        return _to_array(decoded)

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """``image_idx``, ``image`` [height, width, 3 or 4], of bytes or of floats in [0, 1], and where there are masks
        or a fisheye's circle ``mask`` [height, width, 1], true where used.

        The dataparser's ``mask_color``, in [0, 1], is painted over what the mask ignores.

        Raises:
            InputError: if the image or its mask cannot be decoded.
            ValueError: for another type.
        """
        if image_type not in ("uint8", "float32"):
            raise ValueError(f"image_type={image_type!r} is unknown: choose 'uint8' or 'float32'.")
        image = self.get_image_uint8(image_idx) if image_type == "uint8" else self.get_image_float32(image_idx)
        data = {"image_idx": image_idx, "image": image}
        if self._dataparser_outputs.mask_filenames is not None and self.mask_color is not None:
            white = 255.0 if image_type == "uint8" else 1.0
            # Opaque, where there is alpha.
            paint = white * torch.tensor([*self.mask_color, 1.0][: image.shape[-1]])
            data["image"] = torch.where(self._read_mask(image_idx), image, paint.to(image.dtype))
        used = self.used(image_idx)
        if used is not None:
            data["mask"] = used
        return {**data, **self.get_metadata(data)}

    def used(self, image_idx: int) -> Bool[Tensor, "height width 1"] | None:
        """Which pixels of an image its mask and a fisheye's circle leave; ``None`` where there is neither.

        Raises:
            InputError: if the mask cannot be decoded.
        """
        used = None
        if self._dataparser_outputs.mask_filenames is not None and not self.ignore_masks:
            used = self._read_mask(image_idx)
        if self.crop_radius is not None:
            width, height = self.sizes[image_idx]
            circle = _circle(height, width, self.crop_radius)
            used = circle if used is None else used & circle
        return used

    def _read_mask(self, image_idx: int) -> Bool[Tensor, "height width 1"]:
        return read_mask(self._dataparser_outputs.mask_filenames[image_idx], self.scale_factor)


def read_all(dataset: CheckedDataset, description: str) -> Iterator[dict[str, Any]]:
    """The data of every image in 8 bits, in order: decoded by several threads, with a progress bar.

    No more are decoded ahead than a tenth of all takes, for nobody may want to keep them.

    Raises:
        InputError: for the first that cannot be decoded.
    """
    threads = decoding_threads(dataset.sizes, dataset.channels)
    indices, ahead = iter(range(len(dataset))), deque()
    with ThreadPoolExecutor(threads) as pool, get_progress(description) as progress:
        try:
            for _ in progress.track(range(len(dataset))):
                for index in islice(indices, threads - len(ahead)):
                    ahead.append(pool.submit(dataset.get_data, index, image_type="uint8"))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def decoding_threads(sizes: Sequence[tuple[int, int]], channels: int) -> int:
    """How many images are decoded at a time: as many as the processor can, and memory beside what is kept.

    Args:
        sizes: width and height of all images, pixels.
        channels: of each.
    """
    pixels = [width * height for width, height in sizes]
    room = max(DECODING_SHARE * channels * sum(pixels), DECODING_ROOM)
    return max(1, min(int(room / (DECODING_BYTES * max(pixels, default=1))), (os.cpu_count() or 1) + 4))


def _to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels of an RGB or RGBA image; Numpy's own way makes two copies more."""
    pixels = np.empty((image.height, image.width, len(image.getbands())), dtype=np.uint8)
    for top in range(0, image.height, ROWS):
        bottom = min(top + ROWS, image.height)
        pixels[top:bottom] = image.crop((0, top, image.width, bottom))
    return pixels


def _circle(height: int, width: int, radius: float) -> Bool[Tensor, "{height} {width} 1"]:
    """Whether pixels' centers are within a circle around the image's."""
    y = torch.arange(height)[:, None] + 0.5 - height / 2
    x = torch.arange(width) + 0.5 - width / 2
    return (torch.hypot(x, y) <= radius)[..., None]


def _to_rgb_or_rgba(image: Image.Image, has_alpha: bool, filename: Path) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.asarray(image, dtype=np.float64)
        _check_values(wide, (0.0, 65535.0), filename)
        image = Image.fromarray(np.round(255.0 * wide / white_of_integers(image, wide.max())).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        limits = (-FLOAT_OVERSHOOT, 1.0 + FLOAT_OVERSHOOT)
        _check_values(values, limits, filename)
        image = Image.fromarray(np.round(values.clip(0.0, 1.0) * 255.0).astype(np.uint8))
    mode = "RGBA" if has_alpha or image.has_transparency_data else "RGB"
    # Pillow would copy what is right already.
    image.load()
    return image if image.mode == mode else image.convert(mode)


def _check_values(values: npt.NDArray[np.float64], limits: tuple[float, float], filename: Path) -> None:
    low, high = float(values.min()), float(values.max())
    # A comparison with NaN is false.
    if not (low >= limits[0] and high <= limits[1]):
        raise InputError(
            f"image {filename} has values from {low:g} to {high:g}. "
            "Write it with 8 or 16 bits a channel, or with floating-point values from 0 (black) to 1 (white)."
        )


def check_masks(filenames: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
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
        except Exception as error:
            raise InputError(f"mask {filename} cannot be read ({error}). Replace it.") from error
        if tuple(found) != tuple(size):
            raise InputError(
                f"mask {filename} has {found[0]}x{found[1]} pixels, its image {size[0]}x{size[1]}. "
                "Write it in its image's size."
            )


def _mend_missing(filename: Path) -> str:
    """Images above 1600 pixels are read at half their size, from folders that Nerfstudio writes; masks are not."""
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
        filename: of an image of any mode.
        scale_factor: size of the result over that of the file.
    Raises:
        InputError: if its pixels cannot be decoded.
    """
    try:
        with Image.open(filename) as mask:
            used = Image.fromarray(used_pixels(mask))
    except Exception as error:
        raise InputError(f"mask {filename} cannot be decoded ({error}). Replace it.") from error
    if scale_factor != 1.0:
        size = (int(used.width * scale_factor), int(used.height * scale_factor))
        used = used.resize(size, resample=Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(used))[..., None]


def white_of_integers(image: Image.Image, largest: float) -> float:
    """What white is in an image of 16 or 32 bits: 255 in one of 32 bits without a larger value, else 65535.

    Files of 32 bits do not say how many of them are used. A PNG has at most 16, in whatever mode it is opened.

    Args:
        image: as it was opened.
        largest: of its values.
    """
    has_32_bits = image.mode == "I" and image.format != "PNG"
    return 255.0 if has_32_bits and largest <= 255.0 else 65535.0


def used_pixels(mask: Image.Image) -> Bool[np.ndarray, "height width"]:
    """Which pixels an image of any mode marks as used."""
    return np.asarray(brightness(mask)) >= USED_FROM


def brightness(mask: Image.Image) -> Image.Image:
    """An image of any mode in 8 bits of gray; black where it is transparent."""
    if mask.mode.startswith("I"):
        wide = np.asarray(mask, dtype=np.float64)
        return Image.fromarray((255.0 * wide / _white(mask, wide)).clip(0.0, 255.0).astype(np.uint8))
    if mask.has_transparency_data:
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
