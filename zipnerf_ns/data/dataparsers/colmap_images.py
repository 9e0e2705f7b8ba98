"""Nerfstudio's parser of COLMAP models, which writes reduced images itself where it would ask on a terminal."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nerfstudio.data.dataparsers.colmap_dataparser import MAX_AUTO_RESOLUTION, ColmapDataParser
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from zipnerf_ns.data.dataparsers.reduction import tell_of_others
from zipnerf_ns.data.disk.files import whole_file
from zipnerf_ns.errors import InputError

JPEG_QUALITY = 95
"""Quality of reduced images of JPEG photographs."""
ROUND = {"floor": torch.floor, "round": lambda sides: torch.floor(sides + 0.5), "ceil": torch.ceil}
"""How Nerfstudio's cameras round their reduced sides."""


class ReducingColmapDataParser(ColmapDataParser):
    """Images and masks that a reduction wants and that are not there are written before they are looked for."""

    def _setup_downscale_factor(
        self, image_filenames: list[Path], mask_filenames: list[Path], depth_filenames: list[Path]
    ) -> Any:
        is_first = self._downscale_factor is None
        factor = self._downscale_factor or self.config.downscale_factor or _automatic_factor(image_filenames[0])
        self._downscale_factor = factor
        if factor > 1:
            kinds = ((self.config.images_path, image_filenames, Image.Resampling.BOX),)
            if mask_filenames:
                kinds += ((self.config.masks_path, mask_filenames, Image.Resampling.NEAREST),)
            for path, originals, resampling in kinds:
                folder = self.config.data / path
                reduced = folder.with_name(f"{folder.name}_{factor}")
                pairs = [(original, reduced / original.relative_to(folder)) for original in originals]
                if is_first:
                    tell_of_others(pairs)
                self._write_missing(pairs, reduced, resampling)
        return super()._setup_downscale_factor(image_filenames, mask_filenames, depth_filenames)

    def _write_missing(self, pairs: list[tuple[Path, Path]], folder: Path, resampling: Image.Resampling) -> None:
        missing = [pair for pair in pairs if not pair[1].is_file()]
        if not missing:
            return
        factor, rounding = self._downscale_factor, self.config.downscale_rounding_mode
        CONSOLE.log(f"Reducing {len(missing)} images to 1/{factor} of their sides, into {folder}")
        with ThreadPoolExecutor() as pool, get_progress(f"Reducing {len(missing)} images") as progress:
            tasks = [pool.submit(_reduce, *pair, factor, rounding, resampling) for pair in missing]
            try:
                for task in progress.track(tasks):
                    task.result()
            finally:
                pool.shutdown(cancel_futures=True)


def _automatic_factor(filename: Path) -> int:
    """The power of two that brings an image to Nerfstudio's limit.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        with Image.open(filename) as image:
            longest = max(image.size)
    except OSError as error:
        raise InputError(f"image {filename} of COLMAP's model cannot be read ({error}). Restore it.") from error
    factor = 1
    while longest > MAX_AUTO_RESOLUTION * factor:
        factor *= 2
    return factor


def _reduce(original: Path, target: Path, factor: int, rounding: str, resampling: Image.Resampling) -> None:
    """Writes a reduced image in its original's format, whole or not at all."""
    try:
        with Image.open(original) as image:
            if image.mode == "P":
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            # As the cameras' sides are rounded, products in float32 included.
            sides = ROUND[rounding](torch.tensor(image.size) * torch.tensor(1.0 / factor)).int().tolist()
            # A pixel covers a whole square: what is left at the right and the bottom is cut off.
            box = tuple(min(side * factor, full) for side, full in zip(sides, image.size, strict=True))
            reduced = image.resize(sides, resampling, box=(0, 0, *box))
    except (OSError, ValueError) as error:
        raise InputError(f"image {original} cannot be reduced ({error}). Replace it or remove it.") from error
    try:
        options = {"quality": JPEG_QUALITY} if image.format in ("JPEG", "MPO") else {}
        with whole_file(target) as unfinished:
            reduced.save(unfinished, format=Image.registered_extensions()[target.suffix.lower()], **options)
    except OSError as error:
        raise InputError(
            f"reduced images cannot be written to {target.parent} ({error}). Write them yourself, or read the full "
            "size with colmap --downscale-factor 1 at the end of the command."
        ) from error
