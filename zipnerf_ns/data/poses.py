"""A scene's poses, judged one by one and as a set in float64, before a reader rounds them to float32.

Limits are derived from what a picture shows of an error, for a focal length of 1000 pixels, and from the model's grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from zipnerf_ns.errors import InputError, say, shorten

LARGEST_ENTRY = 1e30
"""Beyond, sums of a few thousand entries and what readers compute of them leave float32 (3.4e38)."""
SINGULAR = 1e-6
"""A rotation's singular values are one; with a ratio of the least to the largest below this it cannot be inverted."""
EXACT = 1e-6
"""Rotations that are this near to exact (float32 resolves 1.2e-7) are left bit for bit as they are."""
SAID_BEND = 1e-3
"""Ratio of a rotation's singular values, minus one, that turns rays by half of it: half a pixel at 1000 pixels."""
LARGEST_BEND = 1e-2
"""Five pixels, which no rounding to three digits makes: the matrix is no rotation."""
SAME_PLACE = 1e-9
"""Share of their distance from the origin within which cameras stand at one place: 5 mm for the 5,400 km of a northing
in float64, whose own steps are less than a millionth of that."""
FLOAT32_STEP = 2.0**-24
"""Largest relative error of rounding to float32."""
SAME_PLACE_ROUNDED = 8.0 * FLOAT32_STEP
"""The same share for positions that were written in float32: four neighboring values, which show no path."""
LARGEST_ROUNDING = 1e-4
"""Rounding of positions, as a share of the cameras' reach: a tenth of a pixel, for what is seen from that distance."""
SAID_SHRINKING, LARGEST_SHRINKING = 20.0, 1000.0
"""How many times smaller a few far cameras make the scene, where all are scaled into the unit cube.

The grid's finest cells are 1/2048 of a unit: the others then reach over a hundred of them, and over two.
"""
LEAST_CLUSTER = 3
"""Cameras that make a scene of their own: fewer are a pair, of which another may stand at any distance."""
LINE = 1e-3
"""Cameras stand on a line if they leave it by no more than this share of its length."""


class PoseSet(NamedTuple):
    """Poses that can be read in float32."""

    matrices: Float[np.ndarray, "cameras 4 4"]
    """Camera to world: rotations without scale, centered where that was asked for."""
    center: Float[np.ndarray, "3"]
    """What was subtracted from all positions."""
    notes: tuple[str, ...]
    """What a person should know, a line each."""


def check_poses(
    matrices: Sequence[Any],
    names: Sequence[str],
    source: object,
    *,
    is_centered: bool = False,
    is_whole: bool = True,
    views: Sequence[Hashable] | None = None,
) -> PoseSet:
    """Checks poses, takes out what does no harm, and refuses what cannot be right.

    Args:
        matrices: camera to world, 3x4 or 4x4, as they were read: nothing is taken for granted.
        names: the cameras' images.
        source: the file or folder that says so, for messages.
        is_centered: whether the reader subtracts a center anyway: then it is done here, before it rounds.
        is_whole: whether these are all cameras of a training; a few held-out ones may stand anywhere.
        views: cameras of one pose are the same only where these are equal, too; by default everywhere.
    Raises:
        InputError: naming the source, the images and the mend.
    """
    if len(matrices) == 0:
        raise InputError(f"{source}: there are no frames. Check --data, or run ns-process-data again.")
    named = zip(matrices, names, strict=True)
    poses = np.stack([read_pose(matrix, f"{source}: frame {name}") for matrix, name in named])
    notes = _straighten(poses, names, source)
    positions = poses[:, :3, 3]
    is_coarse = bool((positions == positions.astype(np.float32)).all())
    magnitude = float(np.abs(positions).max())
    center = positions.mean(axis=0) if is_centered else np.zeros(3)
    reach = _reach(positions)
    if is_whole and len(poses) > 1:
        same = SAME_PLACE_ROUNDED if is_coarse else SAME_PLACE
        if reach <= same * magnitude:
            raise InputError(
                f"{source}: all {len(poses)} cameras stand at one place. Depth cannot be told "
                "without parallax: take photographs from several places, or write positions with more digits."
            )
        notes += _check_rounding(is_coarse or not is_centered, is_centered, magnitude, reach, source)
        notes += _check_outliers(positions, names, source)
        notes += _note_line(positions, source)
        notes += _note_duplicates(poses, names, source, views)
    # In place: positions are a view of them.
    positions -= center
    return PoseSet(poses, center, tuple(notes))


def read_pose(matrix: Any, where: str) -> Float[np.ndarray, "4 4"]:
    """One camera to world, of which three or four rows were given.

    Raises:
        InputError: starting with ``where``, for what is no such matrix, or has no finite numbers.
    """
    try:
        rows = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        rows = np.zeros(0)
    if rows.shape not in ((3, 4), (4, 4)):
        raise InputError(f"{where}: the pose is not a 4x4 matrix of numbers. Estimate it again, or remove the frame.")
    if not (np.abs(rows) < LARGEST_ENTRY).all():
        raise InputError(f"{where}: the pose contains NaN, infinity or numbers beyond all use. Estimate it again.")
    pose = np.eye(4)
    pose[:3] = rows[:3]
    if np.abs(rows[3:] - pose[3:][: len(rows) - 3]).max(initial=0.0) > EXACT:
        # Positions below instead of beside the rotation are the mark of column-major matrices.
        is_transposed = not rows[:3, 3].any() and abs(rows[3, 3] - 1.0) <= EXACT
        mend = "Transpose the matrix." if is_transposed else "Write the matrix as camera to world, rows first."
        raise InputError(f"{where}: the pose's last row is {_row(rows[3])} instead of 0 0 0 1. {mend}")
    return pose


def spread_of_views(views: Float[np.ndarray, "cameras 3"]) -> float:
    """Mean square of the sine of the angles between unit directions and the one that they are nearest to, 0 to 2/3."""
    return float(np.linalg.eigvalsh(np.eye(3) - np.einsum("ni,nj->ij", views, views) / len(views))[0])


def check_axes(
    poses: Float[np.ndarray, "cameras 4 4"],
    orientation: Literal["pca", "up", "vertical", "none"],
    center: Literal["poses", "focus", "none"],
    source: object,
) -> None:
    """Checks that the reader's way of orienting and centering poses has a result for these.

    Raises:
        InputError: naming another way.
    """
    if orientation in ("up", "vertical") and np.linalg.norm(poses[:, :3, 1].mean(axis=0)) < EXACT:
        raise InputError(
            f"{source}: the cameras' upward directions cancel out, so nothing says where up is. "
            "Give --orientation-method pca or none."
        )
    if center == "focus" and spread_of_views(poses[:, :3, 2]) < EXACT:
        raise InputError(
            f"{source}: all cameras look the same way, so they have no point in common. Give --center-method poses."
        )


def read_similarity(transform: Any, scale: Any, source: object) -> tuple[Float[np.ndarray, "4 4"], float]:
    """A file's ``applied_transform`` (three or four rows; None for none) and ``applied_scale`` (None for 1).

    Raises:
        InputError: for what is no such thing.
    """
    matrix = np.eye(4)
    if transform is not None:
        try:
            rows = np.asarray(transform, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            rows = np.zeros(0)
        if rows.shape not in ((3, 4), (4, 4)) or (rows[3:] != matrix[3]).any():
            raise InputError(
                f"{source}: 'applied_transform' is no 3x4 matrix, nor a 4x4 one that ends in 0 0 0 1. "
                "Correct it, or remove it."
            )
        matrix[:3] = rows[:3]
        if not np.isfinite(rows).all() or np.linalg.cond(matrix[:3, :3]) > 1.0 / SINGULAR:
            raise InputError(f"{source}: 'applied_transform' cannot be inverted. Correct it, or remove it.")
    try:
        factor = 1.0 if scale is None else float(scale)
    except (TypeError, ValueError):
        factor = 0.0
    if not 1.0 / LARGEST_ENTRY < factor < LARGEST_ENTRY:
        raise InputError(f"{source}: 'applied_scale' is {scale}. It must be a number, positive; 1 for none.")
    return matrix, factor


def check_scale(positions: Float[np.ndarray, "cameras 3"], space: float, source: object) -> None:
    """Checks that cameras reach about as far as the space in which the model has its detail.

    Args:
        positions: in the model's frame.
        space: how far that space reaches from the origin.
    Raises:
        InputError: where all detail would be lost; where much would, it is said.
    """
    reach = float(np.abs(positions).max())
    if space / SAID_SHRINKING <= reach <= SAID_SHRINKING * space:
        return
    text = (
        f"{source}: cameras reach {_number(reach)} from the origin, where the model has its detail within "
        f"{_number(space)}. Scale the poses by an option of the dataparser (--scale-factor, --scene-scale, "
        "--auto-scale-poses True), or in the file."
    )
    if not space / LARGEST_SHRINKING <= reach <= LARGEST_SHRINKING * space:
        raise InputError(text)
    say(text)


def rounds_too_much(positions: Float[np.ndarray, "cameras 3"]) -> bool:
    """Whether float32 would move cameras against each other by what a picture shows; never for a single camera."""
    reach = _reach(positions)
    return FLOAT32_STEP * float(np.abs(positions).max()) > LARGEST_ROUNDING * reach > 0.0


def _straighten(poses: Float[np.ndarray, "cameras 4 4"], names: Sequence[str], source: object) -> list[str]:
    """Makes rotations of the matrices' first three columns, in place; the notes on what was taken out."""
    left, scales, right = np.linalg.svd(poses[:, :3, :3])
    _refuse(
        scales[:, 2] <= SINGULAR * scales[:, 0],
        names,
        f"{source}: the pose's rotation is singular",
        "Estimate these poses again, or remove the frames.",
    )
    _refuse(
        np.linalg.det(left @ right) < 0,
        names,
        f"{source}: the pose is left-handed, its determinant negative",
        "Export right-handed poses: from Unity or Unreal with one axis of the world and the camera's x negated.",
    )
    bend = scales[:, 0] / scales[:, 2] - 1.0
    _refuse(
        bend > LARGEST_BEND,
        names,
        f"{source}: the pose's rotation is sheared or stretched",
        "Write its axes at right angles and equally long, or remove the frames.",
    )
    mean = scales.mean(axis=1)
    notes = []
    if (bend > SAID_BEND).any():
        bent = shorten(names[index] for index in np.flatnonzero(bend > SAID_BEND))
        notes.append(f"{source}: rotations of {bent} are off by up to {bend.max():.1%} and were straightened.")
    is_scaled = np.abs(mean - 1.0) > SAID_BEND
    if is_scaled.any():
        low, high = mean[is_scaled].min(), mean[is_scaled].max()
        factor = _number(low) if high - low < SAID_BEND * high else f"{_number(low)} to {_number(high)}"
        scaled = shorten(names[index] for index in np.flatnonzero(is_scaled))
        notes.append(f"{source}: rotations of {scaled} had a scale of {factor}, which was taken out.")
    is_inexact = (bend > EXACT) | (np.abs(mean - 1.0) > EXACT)
    # The nearest rotation: the polar factor.
    poses[is_inexact, :3, :3] = (left @ right)[is_inexact]
    return notes


def _refuse(is_wrong: Bool[np.ndarray, "cameras"], names: Sequence[str], what: str, mend: str) -> None:
    if is_wrong.any():
        wrong = shorten(names[index] for index in np.flatnonzero(is_wrong))
        raise InputError(f"{what}: {wrong} ({is_wrong.sum()} of {len(names)} frames). {mend}")


def _check_rounding(is_rounded: bool, is_centered: bool, magnitude: float, reach: float, source: object) -> list[str]:
    """What float32 does to positions far from the origin: refused if the reader rounds, noted if the file has."""
    error = FLOAT32_STEP * magnitude
    if not is_rounded or error <= LARGEST_ROUNDING * reach:
        return []
    far = f"{source}: cameras within {_number(reach)} of each other stand {_number(magnitude)} from the origin"
    if not is_centered:
        raise InputError(
            f"{far}, where float32 rounds positions by {_number(error)}. Subtract one place near them from all "
            "positions (nerfstudio-data does so by itself with --center-method poses)."
        )
    return [f"{far} and were written in float32, which rounded them by up to {_number(error)}. Export them in float64."]


def _check_outliers(positions: Float[np.ndarray, "cameras 3"], names: Sequence[str], source: object) -> list[str]:
    """The few cameras that stand far from most: what gaps along an axis cut off, as long as half of all are left.

    Any two clusters that are far apart for their size have such a gap along one axis at least. Cameras at ever larger
    distances are no outliers: each cut has to make the rest that much smaller by itself.
    """
    orders = [np.argsort(positions[:, axis], kind="stable") for axis in range(3)]
    most, reach, whole = np.arange(len(positions)), _reach(positions), _reach(positions)
    while reach > 0.0:
        gaps = [np.diff(positions[order, axis]) for axis, order in enumerate(orders)]
        widest = max(range(3), key=lambda axis: gaps[axis].max())
        cut, order = int(gaps[widest].argmax()) + 1, orders[widest]
        left = max(order[:cut], order[cut:], key=len)
        if len(left) < max(LEAST_CLUSTER, len(positions) / 2):
            break
        before, reach = reach, _reach(positions[left])
        if before >= SAID_SHRINKING * reach > 0.0:
            most = left
        is_left = np.isin(np.arange(len(positions)), left)
        orders = [order[is_left[order]] for order in orders]
    if len(most) == len(positions):
        return []
    far = np.setdiff1d(np.arange(len(positions)), most)
    shrinking = whole / _reach(positions[most])
    text = (
        f"{source}: {shorten(names[index] for index in far)} ({len(far)} of {len(positions)} frames) stand far from "
        f"all other cameras, which alone reach {_number(shrinking)} times less far: too little detail is left for them."
    )
    if shrinking > LARGEST_SHRINKING:
        raise InputError(f"{text} Remove the frames, or estimate their poses again.")
    return [f"{text} Remove the frames if their poses are wrong."]


def _note_line(positions: Float[np.ndarray, "cameras 3"], source: object) -> list[str]:
    lengths = np.linalg.svd(positions - positions.mean(axis=0), compute_uv=False)
    if len(positions) < LEAST_CLUSTER or lengths[1] > LINE * lengths[0]:
        return []
    return [
        f"{source}: all {len(positions)} cameras stand on one line, so depth along it is hardly seen, and "
        "--orientation-method pca would turn the scene about it at random. Right for a rail; otherwise check the poses."
    ]


def _note_duplicates(
    poses: Float[np.ndarray, "cameras 4 4"], names: Sequence[str], source: object, views: Sequence[Hashable] | None
) -> list[str]:
    """Different images with one pose, to the last bit."""
    groups: dict[Hashable, list[str]] = {}
    for index, name in enumerate(names):
        group = groups.setdefault((poses[index].tobytes(), None if views is None else views[index]), [])
        if name not in group:
            group.append(name)
    same = [" = ".join(group) for group in groups.values() if len(group) > 1]
    if not same:
        return []
    return [
        f"{source}: the same pose for different images: {shorten(same)}. Right if the camera stood still; "
        "otherwise a pose was copied, and the frame should go."
    ]


def _reach(positions: Float[np.ndarray, "cameras 3"]) -> float:
    """Largest distance from the mean along an axis: what a reader scales to one."""
    return float(np.abs(positions - positions.mean(axis=0)).max())


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else f"{value:,.0f}" if value < 1e9 else f"{value:.2e}"


def _row(values: np.ndarray) -> str:
    return " ".join(f"{value:g}" for value in values)
