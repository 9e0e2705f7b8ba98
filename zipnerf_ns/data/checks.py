"""Checks of what a user brings, made before any long work; each failure names the place and the mend."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from traceback import walk_stack
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from nerfstudio.cameras import camera_utils
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from zipnerf_ns.data.dataparsers.names import scene_folder
from zipnerf_ns.data.images import LOSSY_FORMATS, check_masks, check_some_used
from zipnerf_ns.data.poses import check_poses, spread_of_views
from zipnerf_ns.errors import InputError, say, shorten

ORIENTATION = 0x0112
"""EXIF's tag of how an image is turned for display: by a quarter from 5 on."""
MOST_OFF_MIDDLE = 0.25
"""Share of an image's side by which a principal point is off its middle before that is said."""
MOST_STRETCHED = 1.1
"""Ratio of the two focal lengths before that is said."""
MOST_LOST = 1.0
"""Pixels by which an undistorted point may miss itself."""
LEAST_BEHIND = 8
"""Cameras that look away from one point before that is said: of fewer it may be chance."""
MOST_PARALLEL = 0.01
"""Least :func:`~zipnerf_ns.data.poses.spread_of_views`: below, they have no point in common."""
BORDER = [[x, y] for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0) if (x, y) != (0.5, 0.5)]
"""Points of an image's border, in shares of its sides."""
FRUITLESS_RAYS = 1 << 18
"""Rays of which at least one must end in the box of an export: of so many, a box that holds one in 20,000 misses all
once in half a million times."""


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
    has_alpha, turned = False, []
    for index, filename in enumerate(filenames):
        if not Path(filename).is_file():
            raise InputError(f"image {filename} is missing. Restore it or remove its frame.")
        try:
            with Image.open(filename) as image:
                size = image.size
                has_alpha = has_alpha or image.has_transparency_data
                # Of other formats notes may lie behind the pixels; by a quarter, the size tells whether it was turned.
                orientation = image.getexif().get(ORIENTATION, 1) if image.format in LOSSY_FORMATS else 1
                if orientation in (2, 3, 4) or (orientation > 4 and size[0] == size[1]):
                    turned.append(str(filename))
        except Exception as error:
            raise InputError(f"image {filename} cannot be read ({error}). Replace it or remove its frame.") from error
        if sizes is not None and size[::-1] == tuple(sizes[index]) != size and _is_turned(filename):
            raise InputError(
                f"image {filename} lies on its side, and its EXIF data turn it: images are read as they are stored. "
                "Store it upright (mogrify -auto-orient), or find its pose again."
            )
        if sizes is not None and tuple(size) != tuple(sizes[index]):
            raise InputError(
                f"image {filename} has {size[0]}x{size[1]} pixels, its camera {sizes[index][0]}x{sizes[index][1]}. "
                "Correct w and h (and the focal length) in the transforms, or the downscale factor."
            )
    if turned and sizes is not None:
        say(
            f"EXIF data turn {shorten(turned)}: images are read as they are stored. Right if their poses were found "
            "so, else store them upright (mogrify -auto-orient)."
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
    folder = os.path.abspath(scene_folder(data))
    outside = [str(name) for name in filenames if not Path(os.path.abspath(name)).is_relative_to(folder)]
    if outside:
        say(f"{len(outside)} pictures lie outside of {folder}, and are read from there: {shorten(outside)}.")


def _is_turned(filename: Path) -> bool:
    with Image.open(filename) as image:
        return image.getexif().get(ORIENTATION, 1) > 4


def check_outputs(outputs: DataparserOutputs, source: Path) -> bool:
    """Checks what a dataparser gives: cameras, masks, and images against both.

    Args:
        source: what was read.
    Returns:
        Whether any image has an alpha channel.
    Raises:
        InputError: naming the image or the mask.
    """
    cameras, filenames = outputs.cameras, outputs.image_filenames
    say_outside([*filenames, *(outputs.mask_filenames or ())], source)
    check_cameras(cameras, filenames, source)
    sizes = list(zip(cameras.width.reshape(-1).tolist(), cameras.height.reshape(-1).tolist(), strict=True))
    if outputs.mask_filenames is not None:
        check_masks(outputs.mask_filenames, sizes)
        check_some_used(outputs.mask_filenames)
    return check_images(filenames, sizes)


def check_cameras(cameras: Cameras, filenames: Sequence[Path], source: Path) -> None:
    """Checks parsed cameras, whatever the data's format was; says what of a lens is possible but hardly right.

    Args:
        filenames: the cameras' images, to name them.
        source: what they were read from.
    Raises:
        InputError: naming the image.
    """
    if len(filenames) == 0:
        return
    names = [str(name) for name in filenames]
    check_poses(cameras.camera_to_worlds.tolist(), names, source, is_whole=False)
    _tell_of_backs(cameras.camera_to_worlds.double().cpu(), source)
    for key in ("fx", "fy"):
        for name, value in zip(names, getattr(cameras, key).flatten().tolist(), strict=True):
            if not math.isfinite(value) or value <= 0.0:
                raise InputError(f"camera of {name}: focal length {key} is {value}. It must be positive.")
    for key in ("cx", "cy"):
        for name, value in zip(names, getattr(cameras, key).flatten().tolist(), strict=True):
            if not math.isfinite(value):
                raise InputError(f"camera of {name}: principal point {key} is {value}. It must be finite.")
    has_lens = (cameras.camera_type == CameraType.PERSPECTIVE.value) | (cameras.camera_type == CameraType.FISHEYE.value)
    if has_lens.all():
        _check_lenses(cameras, names, source)


def _tell_of_backs(poses: Float[Tensor, "cameras 3 4"], source: Path) -> None:
    """With the axes of OpenCV or COLMAP instead of OpenGL's, cameras turn their backs on what they photograph."""
    positions, views = poses[:, :, 3], -torch.nn.functional.normalize(poses[:, :, 2], dim=-1)
    if len(poses) < LEAST_BEHIND or spread_of_views(views.numpy()) < MOST_PARALLEL:
        return
    across = torch.eye(3).double() - views[:, :, None] * views[:, None]
    middle = torch.linalg.solve(across.sum(dim=0), torch.einsum("nij,nj->i", across, positions))
    if (((middle - positions) * views).sum(dim=-1) < 0.0).all():
        say(
            f"{source}: all cameras look away from the point that their views come nearest to. Right if the capture "
            "looks outwards, else their axes are OpenCV's: negate the second and third column of every rotation."
        )


def _check_lenses(cameras: Cameras, names: Sequence[str], source: Path) -> None:
    center, size, focal = (
        torch.cat(pair, dim=-1).double()
        for pair in ((cameras.cx, cameras.cy), (cameras.width, cameras.height), (cameras.fx, cameras.fy))
    )
    _tell_of(
        ((center / size - 0.5).abs() > MOST_OFF_MIDDLE).any(dim=-1),
        names,
        f"{source}: 'cx' and 'cy' are far from the middle of the image for",
        "Right if images were cropped; otherwise they are of another size, for which the lens must be scaled.",
    )
    _tell_of(
        (focal[:, 0] / focal[:, 1]).log().abs() > math.log(MOST_STRETCHED),
        names,
        f"{source}: 'fl_x' and 'fl_y' differ for",
        "Right if images were stretched; otherwise correct one of them.",
    )
    if cameras.distortion_params is None:
        return
    border = (torch.tensor(BORDER, dtype=torch.float64) * size[:, None] - center[:, None]) / focal[:, None]
    lens = cameras.distortion_params[:, None, :6].double()
    for share, is_refused in ((0.5, True), (1.0, False)):
        is_lost = (_distortion_error(share * border, lens) * focal.amax(dim=-1) > MOST_LOST).cpu()
        mend = "Undistort the images, or estimate the lens again."
        if is_refused and is_lost.any():
            wrong = shorten(name for name, lost in zip(names, is_lost.tolist(), strict=True) if lost)
            raise InputError(f"{source}: no lens distorts as is said of {wrong}. {mend}")
        what = f"{source}: towards the border, the distortion cannot be undone and rays are wrong, for"
        _tell_of(is_lost, names, what, mend)


def _tell_of(is_odd: Bool[Tensor, "cameras"], names: Sequence[str], what: str, mend: str) -> None:
    if is_odd.any():
        odd = [name for name, each in zip(names, is_odd.tolist(), strict=True) if each]
        say(f"{what} {shorten(odd)}. {mend}")


def _distortion_error(
    coordinates: Float[Tensor, "cameras points 2"], lens: Float[Tensor, "cameras 1 6"]
) -> Float[Tensor, "cameras"]:
    """By how much, at most, points are missed that are undistorted as rays are, and distorted again; infinite where
    the image is folded there."""
    found = camera_utils.radial_and_tangential_undistort(coordinates, lens)
    (x, y), (x_there, y_there) = found.unbind(dim=-1), coordinates.unbind(dim=-1)
    # Residuals, and their derivatives by x and by y.
    dx, dy, dx_x, dx_y, dy_x, dy_y = camera_utils._compute_residual_and_jacobian(x, y, x_there, y_there, lens)
    error = torch.hypot(dx, dy).nan_to_num(nan=math.inf)
    return torch.where(dx_x * dy_y > dx_y * dy_x, error, math.inf).amax(dim=-1)


def check_train_split(num_images: int, source: Path) -> None:
    """Checks that there is something to train on.

    Raises:
        InputError: for fewer than two images.
    """
    if num_images == 0:
        raise InputError(f"{source}: the train split is empty. Choose another --eval-mode or list train_filenames.")
    if num_images == 1:
        raise InputError(f"{source}: only one image to train on. A scene needs at least two, better fifty.")


def check_points_are_found(num_rays: int) -> None:
    """Nerfstudio's export of points draws rays until enough of them end in its box, if need be for ever.

    Args:
        num_rays: of a batch.
    Raises:
        InputError: if it has drawn many, and none did.
    """
    drawing = (frame for frame, _ in walk_stack(sys._getframe(1)) if frame.f_code.co_name == "generate_point_cloud")
    batches = next((frame.f_locals.get("points", []) for frame in drawing), [])
    if len(batches) * num_rays >= FRUITLESS_RAYS and not any(len(points) for points in batches):
        raise InputError(
            f"of {len(batches) * num_rays:,} rays none ends on something opaque in the box. Check --obb-center, "
            "--obb-rotation and --obb-scale (in the frame that the model was trained in), or leave them out."
        )


def check_counts(config: Any) -> None:
    """Refuses a datamanager's configuration whose numbers of rays or images cannot be.

    Raises:
        InputError: naming the setting and its range.
    """
    for name in ("train_num_rays_per_batch", "eval_num_rays_per_batch", "patch_size"):
        if getattr(config, name) < 1:
            raise InputError(f"{name} is {getattr(config, name)}: it must be at least 1.")
    for name in ("train_num_images_to_sample_from", "eval_num_images_to_sample_from"):
        if getattr(config, name) < 1 and getattr(config, name) != -1:
            raise InputError(f"{name} is {getattr(config, name)}: it must be -1 (all images) or at least 1.")
