"""Checks of what a user brings, made before any long work; each failure names the place and the mend."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE

from zipnerf_ns.errors import InputError, shorten

MIN_DETERMINANT = 1e-6
"""A camera's rotation has determinant 1, times its scale cubed; below this share of that it is singular."""

OPTIONAL_FILES = {
    "mask_path": "Give every image a mask (all white where everything is used), or none.",
    "depth_file_path": "Depth is not used: remove it from the frames.",
}
"""Files that a frame of Nerfstudio's format may name; its parser wants them of all frames or of none."""
RENDERED_ONLY = ("OMNIDIRECTIONALSTEREO_L", "OMNIDIRECTIONALSTEREO_R", "VR180_L", "VR180_R")
"""Camera models whose rays Nerfstudio generates for whole pictures only, for headsets."""
DISTORTION_KEYS = ("k1", "k2", "k3", "p1", "p2", "distortion_params")
"""Entries of which one makes Nerfstudio's parser take the distortion from the file instead of the frames."""


def check_transforms(path: Path, is_blender: bool = False) -> None:
    """Checks a transforms.json before anything reads it: frames, poses, focal lengths, image files, splits.

    Args:
        path: the file.
        is_blender: the file is in the layout of the NeRF-synthetic scenes, one angle instead of focal lengths.
    Raises:
        InputError: naming the file, the frame and the mend.
    """
    meta = _read_json(path)
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path}: no 'frames'. Run ns-process-data again, or list at least two images there.")
    if len(frames) == 1 and not is_blender:
        check_train_split(1, path)
    if is_blender:
        _check_positive(meta.get("camera_angle_x"), f"{path}: 'camera_angle_x'", "an angle in radians")
    for index, frame in enumerate(frames):
        name = frame.get("file_path") if isinstance(frame, dict) else None
        if not name:
            raise InputError(f"{path}: frame {index} has no 'file_path'. Give it the path of its image.")
        where = f"{path}: frame {index} ({name})"
        check_pose(frame.get("transform_matrix"), where, rows=(4,))
        for key in () if is_blender else ("fl_x", "fl_y", "w", "h"):
            # The file's own value wins over the frame's, as in Nerfstudio's parser.
            source, value = (f"{path}", meta[key]) if key in meta else (where, frame.get(key))
            _check_positive(value, f"{source}: '{key}'", "a number of pixels")
        _check_frame_image(path.parent, name, where)
    if not is_blender:
        for key, mend in OPTIONAL_FILES.items():
            _check_all_or_none(path, frames, key, mend)
        _check_camera_models(path, meta)
    listed = meta.get("train_filenames")
    if listed is not None and not listed:
        raise InputError(f"{path}: 'train_filenames' is empty. List the images to train on, or remove the key.")


def check_pose(matrix: Any, where: str, rows: tuple[int, ...] = (3, 4)) -> None:
    """Checks one camera-to-world matrix: shape, finite numbers, a rotation that can be inverted.

    Raises:
        InputError: starting with ``where``.
    """
    try:
        pose = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.zeros(0)
    if pose.shape not in [(count, 4) for count in rows]:
        raise InputError(f"{where}: 'transform_matrix' is not a 4x4 matrix. Estimate this image's pose again.")
    if not np.isfinite(pose).all():
        raise InputError(f"{where}: the pose contains NaN or infinity. Remove the frame or estimate its pose again.")
    if abs(np.linalg.det(pose[:3, :3])) <= MIN_DETERMINANT * np.abs(pose[:3, :3]).max() ** 3:
        raise InputError(f"{where}: the pose's rotation is singular. Remove the frame or estimate its pose again.")


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
        except OSError as error:
            raise InputError(f"image {filename} cannot be read ({error}). Replace it or remove its frame.") from error
        if sizes is not None and tuple(size) != tuple(sizes[index]):
            raise InputError(
                f"image {filename} has {size[0]}x{size[1]} pixels, its camera {sizes[index][0]}x{sizes[index][1]}. "
                "Correct w and h (and the focal length) in the transforms, or the downscale factor."
            )
    return has_alpha


def check_cameras(camera_to_worlds: Tensor, fx: Tensor, fy: Tensor, filenames: Sequence[Path]) -> None:
    """Checks parsed cameras, whatever the data's format was.

    Args:
        camera_to_worlds: ``[cameras, 3, 4]``.
        fx, fy: focal lengths in pixels, ``[cameras, 1]``.
        filenames: the cameras' images, to name them.
    Raises:
        InputError: naming the image.
    """
    for index, filename in enumerate(filenames):
        check_pose(camera_to_worlds[index].tolist(), f"camera of {filename}")
        for name, focal in (("fx", fx), ("fy", fy)):
            value = float(focal.reshape(-1)[index])
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Check --data, or run ns-process-data first.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). Write it again with ns-process-data.") from error
    if not isinstance(meta, dict):
        raise InputError(f"{path} is not a JSON object with 'frames'. Write it again with ns-process-data.")
    return meta


def _check_frame_image(folder: Path, name: str, where: str) -> None:
    """A frame's image must be there under its name, with .png added (Blender's layout), or in a downscaled folder."""
    path = Path(name)
    candidates: list[Path] = [folder / path, folder / f"{name}.png"]
    candidates += [folder / f"{path.parent}_{factor}" / path.name for factor in (2, 4, 8)]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        raise InputError(f"{where}: image {folder / path} is missing. Restore it or remove the frame.")
    # Nerfstudio's parsers open the first image themselves.
    check_images(found)


def _check_all_or_none(path: Path, frames: Sequence[Mapping[str, Any]], key: str, mend: str) -> None:
    without = [index for index, frame in enumerate(frames) if not frame.get(key)]
    if 0 < len(without) < len(frames):
        names = shorten(str(frames[index]["file_path"]) for index in without)
        raise InputError(f"{path}: '{key}' is missing for {names}. {mend}")


def _check_camera_models(path: Path, meta: Mapping[str, Any]) -> None:
    """Nerfstudio's parser takes the file's model for all frames, and knows some that only rendering can use."""
    model = meta.get("camera_model", "OPENCV")
    if model not in CAMERA_MODEL_TO_TYPE or model in RENDERED_ONLY:
        known = ", ".join(name for name in CAMERA_MODEL_TO_TYPE if name not in RENDERED_ONLY)
        raise InputError(f"{path}: 'camera_model' is {model}. It must be one of {known}; undistort other images.")
    for index, frame in enumerate(meta["frames"]):
        where = f"{path}: frame {index} ({frame['file_path']})"
        own = frame.get("camera_model", model)
        if CAMERA_MODEL_TO_TYPE.get(own) != CAMERA_MODEL_TO_TYPE[model]:
            raise InputError(
                f"{where} has 'camera_model' {own}, but all frames have the one at the file's top, here {model}. "
                "Write it there, or undistort the images of a scene that mixes models."
            )
        if model == "FISHEYE624":
            # As in Nerfstudio's parser, the file's own values win, if it has any of distortion.
            source = meta if any(key in meta for key in DISTORTION_KEYS) else frame
            if len(source.get("distortion_params") or ()) != 12:
                raise InputError(
                    f"{where}: FISHEYE624 needs 'distortion_params', 12 numbers: k1 to k6, p1, p2, s1 to s4."
                )


def _check_positive(value: Any, where: str, what: str) -> None:
    try:
        is_positive = math.isfinite(float(value)) and float(value) > 0.0
    except (TypeError, ValueError):
        is_positive = False
    if not is_positive:
        raise InputError(f"{where} is {value}. It must be {what}, positive.")
