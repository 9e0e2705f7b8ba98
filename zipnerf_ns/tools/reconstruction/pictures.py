"""Photographs of any kind as upright pictures of 8 bits in one folder, and the camera that took each."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from zipnerf_ns.data.dataparsers.reduction import reduce_image, reduce_mask
from zipnerf_ns.data.disk.files import whole_file
from zipnerf_ns.data.images import used_pixels, white_of_integers
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.reconstruction.sources import HEIF, RAW, Photo

MAX_SIDE = 1600
"""Longest side in which pictures are trained, pixels: beyond it Nerfstudio takes those of images_2, images_4, ..."""
JPEG_QUALITY = 95
ORIENTATION = 0x0112
_EXIF_IFD = 0x8769
_BODY_TAGS = (0x010F, 0x0110)
_LENS_TAGS = (0xA434, 0x920A, 0xA405, 0xA404)
"""Maker and model; and lens, focal length, the same for 35 mm film, digital zoom."""
_LOSSLESS = ("PNG", "TIFF", "BMP")


class Picture(NamedTuple):
    """An upright picture that features are found in."""

    name: str
    """Name of its file in the folder of pictures."""
    size: tuple[int, int]
    """Width and height, pixels."""
    camera: str
    """What tells the camera with its lens and size: pictures with the same have the same intrinsics."""
    sequence: int
    has_mask: bool = False


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Within it, what a decoder says becomes an error that names the file."""
    try:
        yield
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as a photograph ({error}). Replace it or take it out.") from error


def open_photo(path: Path) -> Image.Image:
    """A photograph, not yet turned; its pixels are decoded when they are asked for, those of RAW at once, upright.

    Raises:
        InputError: if it cannot be read.
    """
    suffix = path.suffix.lower()
    with _naming(path):
        if suffix in RAW:
            import rawpy

            try:
                with rawpy.imread(str(path)) as raw:
                    # Upright; all in one exposure, where LibRaw would brighten each by what it shows.
                    pixels = raw.postprocess(use_camera_wb=True, no_auto_bright=True, adjust_maximum_thr=0.0)
                image = Image.fromarray(pixels)
                image.info["exif"] = _exif_of_raw(path)
                return image
            except rawpy.LibRawError as error:
                raise OSError(str(error)) from error
        if suffix in HEIF:
            import pillow_heif

            pillow_heif.register_heif_opener()
        return Image.open(path)


def _exif_of_raw(path: Path) -> bytes:
    """What a RAW file tells of camera and lens, if it is laid out as TIFF, like most; not how it was held."""
    read, kept = Image.Exif(), Image.Exif()
    with suppress(SyntaxError, OSError, struct.error):
        read.load(b"Exif\0\0" + path.read_bytes())
    for tags, source, target in (
        (_BODY_TAGS, read, kept),
        (_LENS_TAGS, read.get_ifd(_EXIF_IFD), kept.get_ifd(_EXIF_IFD)),
    ):
        target.update({tag: source[tag] for tag in tags if tag in source})
    return kept.tobytes()


def identify(path: Path) -> tuple[tuple[int, int], str]:
    """The upright size of a photograph, and what tells its camera from others; of most kinds only the header is read.

    A camera turned by a quarter has another size, by a half another distortion: each counts as one.

    Raises:
        InputError: if it cannot be read.
    """
    # Whatever is decoded for its EXIF data may fail, too.
    with _naming(path), open_photo(path) as image:
        exif = image.getexif()
        turned = exif.get(ORIENTATION, 1)
        lens = exif.get_ifd(_EXIF_IFD)
        size = image.size if turned < 5 else image.size[::-1]
    values = [exif.get(tag) for tag in _BODY_TAGS] + [lens.get(tag) for tag in _LENS_TAGS]
    return size, "|".join(str(value).strip("\0 ") for value in (*size, turned, *values))


def copy_upright(photo: Photo, folder: Path, masks: Path | None) -> Picture:
    """Copies a photograph upright into a folder, and its mask; nothing is done where that has been done.

    Files that need no change are copied as they are; others become JPEG, or PNG where they lose nothing yet.

    Args:
        masks: folder of masks, where any photograph has one: all get one then, white where everything is used.

    Raises:
        InputError: if it cannot be decoded, or its mask has another size.
    """
    size, camera = identify(photo.path)
    date = photo.path.stat().st_mtime_ns
    done = [path for suffix in (".jpg", ".png") if (path := folder / f"{photo.stem}{suffix}").is_file()]
    target = done[0] if done and done[0].stat().st_mtime_ns == date else _write_upright(photo.path, folder, photo.stem)
    os.utime(target, ns=(date, date))
    if masks is not None:
        _write_mask(photo, size, masks / f"{target.name}.png")
    return Picture(target.name, size, camera, photo.sequence, photo.mask is not None)


def _write_upright(path: Path, folder: Path, stem: str) -> Path:
    with _naming(path), open_photo(path) as image:
        image.load()
        # Of several exposures in one file (MPO) the first counts; written anew, the others are gone.
        keeps = image.getexif().get(ORIENTATION, 1) == 1 and image.mode in ("RGB", "RGBA")
        if keeps and image.format in ("JPEG", "PNG"):
            target = folder / f"{stem}{'.jpg' if image.format == 'JPEG' else '.png'}"
            with whole_file(target) as unfinished:
                shutil.copyfile(path, unfinished)
            return target
        lossless = image.format in _LOSSLESS
        upright = ImageOps.exif_transpose(_to_8_bits(image, path))
    target = folder / f"{stem}{'.png' if lossless or upright.mode == 'RGBA' else '.jpg'}"
    # The focal length stays in the copy, which is where COLMAP looks for it.
    save(upright, target, exif=upright.getexif())
    return target


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{path} has floating-point values. Write it with 8 or 16 bits a channel.")
    exif = image.getexif()
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        eight = np.rint(255.0 * values / white_of_integers(image, float(values.max()))).clip(0, 255)
        result = Image.fromarray(eight.astype(np.uint8)).convert("RGB")
    else:
        result = image.convert("RGBA" if image.has_transparency_data else "RGB")
    result.info["exif"] = exif.tobytes()
    return result


def _write_mask(photo: Photo, size: tuple[int, int], target: Path) -> None:
    if target.is_file():
        return
    if photo.mask is None:
        save(Image.new("L", size, 255), target)
        return
    try:
        with Image.open(photo.mask) as mask:
            used = Image.fromarray(np.where(used_pixels(mask), 255, 0).astype(np.uint8))
    except OSError as error:
        raise InputError(f"mask {photo.mask} cannot be read ({error}). Replace it.") from error
    if used.size != size:
        with open_photo(photo.path) as image:
            # Drawn on the photograph as its file has it: turned with it.
            if used.size == image.size:
                used.info["exif"] = _only_orientation(image.getexif().get(ORIENTATION, 1))
                used = ImageOps.exif_transpose(used)
    if used.size != size:
        raise InputError(
            f"mask {photo.mask} has {used.width}x{used.height} pixels, its photograph {size[0]}x{size[1]}. "
            "Write it in the photograph's size."
        )
    save(used, target)


def _only_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def scales(pictures: list[Picture]) -> list[int]:
    """The reductions 2, 4, ... until the largest picture is not above MAX_SIDE."""
    longest = max(max(picture.size) for picture in pictures)
    result = []
    while longest / (result[-1] if result else 1) > MAX_SIDE:
        result.append(2 * (result[-1] if result else 1))
    return result


def reduce_picture(folder: Path, name: str, scale: int, is_mask: bool = False) -> None:
    """Writes a picture or a mask with pixels ``scale`` times as large into the folder beside its own."""
    original = folder / name
    target = folder.with_name(f"{folder.name}_{scale}") / name
    if target.is_file() and target.stat().st_mtime_ns == original.stat().st_mtime_ns:
        return
    with Image.open(original) as image:
        reduced = Image.fromarray((reduce_mask if is_mask else reduce_image)(image, scale))
    save(reduced, target)
    date = original.stat().st_mtime_ns
    os.utime(target, ns=(date, date))


def save(image: Image.Image, target: Path, **options: object) -> None:
    """Writes a JPEG or PNG as its name says, whole or not at all."""
    if target.suffix == ".jpg":
        options |= {"format": "JPEG", "quality": JPEG_QUALITY, "subsampling": 0}
    else:
        options |= {"format": "PNG", "compress_level": 1}
    with whole_file(target) as unfinished:
        image.save(unfinished, **options)
