"""What a transforms file says of a frame's lens: every statement is checked, and two of one thing are compared.

A frame's own statement wins over the one at the file's top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType

from zipnerf_ns.errors import InputError

LENS = ("k1", "k2", "k3", "k4", "p1", "p2")
"""Coefficients of distortion in the order of ``distortion_params``."""
POSITIVE = {
    **dict.fromkeys(("fl_x", "fl_y", "w", "h", "fisheye_crop_radius"), "a number of pixels"),
    **dict.fromkeys(("camera_angle_x", "camera_angle_y"), "an angle in radians"),
    **dict.fromkeys(("x_fov", "y_fov"), "an angle in degrees"),
    **dict.fromkeys(("applied_scale", "aabb_scale"), "a number"),
}
"""Keys whose numbers are positive, and what they count."""
NOT_MODELED = ("k5", "k6", "s1", "s2", "s3", "s4", "omega", "rolling_shutter")
"""Keys of lenses and shutters that the rays do not follow; they may be there if they say nothing."""
CAMERA_KEYS = frozenset({*LENS, *POSITIVE, *NOT_MODELED, "cx", "cy", "distortion_params", "camera_model", "is_fisheye"})
RENDERED_ONLY = ("OMNIDIRECTIONALSTEREO_L", "OMNIDIRECTIONALSTEREO_R", "VR180_L", "VR180_R")
"""Camera models whose rays Nerfstudio generates for whole pictures only, for headsets."""
UNDISTORTED = ("PINHOLE", "SIMPLE_PINHOLE", "EQUIRECTANGULAR")
"""Camera models without distortion."""
FISHEYE_MODEL = "OPENCV_FISHEYE"
TOLERANCE = 0.01
"""How far two statements of a focal length may be apart, as a share of it."""
WIDEST, NARROWEST = 1 / 20, 1000
"""Focal lengths, in widths of the image, beyond which a number is not one in pixels."""


def to_number(value: Any, where: str, what: str = "a number", is_positive: bool = False) -> float:
    """A finite number.

    Raises:
        InputError: starting with ``where``, for anything else.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (is_positive and number <= 0.0):
        raise InputError(f"{where} is {_shown(value)}. It must be {what}{', positive' if is_positive else ', finite'}.")
    return number


def read_statements(level: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the file's top, or a frame, says of the camera, as checked numbers; null says nothing.

    Raises:
        InputError: naming the key, for what is no number, or says something of a lens that rays do not follow.
    """
    said: dict[str, Any] = {}
    for key in CAMERA_KEYS & level.keys():
        value, place = level[key], f"{where}: '{key}'"
        if value is None:
            continue
        if key in NOT_MODELED:
            if value not in (0, [], [0] * 4):
                raise InputError(f"{place} is {_shown(value)}, which no ray follows. Undistort the images first.")
        elif key == "camera_model":
            said[key] = _known_model(value, place)
        elif key == "is_fisheye":
            if value not in (0, 1):
                raise InputError(f"{place} is {_shown(value)}. It must be true or false.")
            said[key] = bool(value)
        elif key == "distortion_params":
            said[key] = _coefficients(value, place)
        else:
            said[key] = to_number(value, place, POSITIVE.get(key, "a number"), key in POSITIVE)
            if key in ("w", "h") and not said[key].is_integer():
                raise InputError(f"{place} is {_shown(value)}. It must be a whole number of pixels.")
            if (key.startswith("camera_angle") and said[key] >= math.pi) or (key.endswith("fov") and said[key] >= 180):
                raise InputError(f"{place} is {_shown(value)}. It must be {POSITIVE[key]}, less than half a turn.")
    return said


def find_model(said: Mapping[str, Any], where: str) -> str | None:
    """The camera model that statements of one level name; None where they name none.

    Raises:
        InputError: if ``is_fisheye`` contradicts it.
    """
    model, is_fisheye = said.get("camera_model"), said.get("is_fisheye")
    if is_fisheye and model is None:
        return FISHEYE_MODEL
    has_circle = CAMERA_MODEL_TO_TYPE.get(model) in (CameraType.FISHEYE, CameraType.FISHEYE624)
    if model is not None and is_fisheye is not None and is_fisheye != has_circle:
        raise InputError(f"{where}: 'is_fisheye' is {is_fisheye}, but 'camera_model' is {model}. Remove the wrong one.")
    return model


def find_intrinsics(
    own: Mapping[str, Any], top: Mapping[str, Any], model: str, size: tuple[int, int], where: str
) -> dict[str, Any]:
    """Focal lengths, principal point, size and distortion of one frame.

    Args:
        own: what the frame says.
        top: what the file's top says.
        model: the frame's camera model.
        size: width and height of the full-resolution image, pixels.
    Raises:
        InputError: starting with ``where``, for what is missing, contradictory, or not in pixels.
    """
    camera_type = CAMERA_MODEL_TO_TYPE[model]
    is_perspective = camera_type == CameraType.PERSPECTIVE
    own_x, own_y = (_focal(own, axis, size[axis], is_perspective, where) for axis in (0, 1))
    top_x, top_y = (_focal(top, axis, size[axis], is_perspective, where) for axis in (0, 1))
    fx = own_x or top_x
    if camera_type == CameraType.EQUIRECTANGULAR and size[0] == 2 * size[1]:
        # The rays are those of a whole panorama with a focal length of its height, which is half its width.
        if any(given is not None and abs(given - size[1]) > TOLERANCE * size[1] for given in (fx, own_y, top_y)):
            raise InputError(
                f"{where}: 'fl_x' or 'fl_y' is not {size[1]}, but a panorama of {size[0]}x{size[1]} pixels shows all "
                "around. Remove both."
            )
        fx = size[1]
    if fx is None:
        angle = ", or 'camera_angle_x' in radians" if is_perspective else ""
        raise InputError(f"{where}: 'fl_x' is missing. Give it, a number of pixels, positive{angle}.")
    # A frame that has its own focal length in x alone has square pixels, whatever the top says.
    fy = own_y or (fx if own_x and top_x else top_y) or fx
    center = [own.get(key, top.get(key, side / 2)) for key, side in zip(("cx", "cy"), size, strict=True)]
    if is_perspective or camera_type in (CameraType.FISHEYE, CameraType.FISHEYE624):
        _check_in_pixels((fx, fy), center, size, where)
    return {
        "fl_x": fx, "fl_y": fy, "cx": center[0], "cy": center[1], "w": size[0], "h": size[1],
        "distortion_params": _distortion(own, top, model, where),
    }  # fmt: skip


def _focal(said: Mapping[str, Any], axis: int, side: int, is_perspective: bool, where: str) -> float | None:
    name = "xy"[axis]
    angles = {
        f"camera_angle_{name}": said.get(f"camera_angle_{name}"),
        f"{name}_fov": math.radians(said[f"{name}_fov"]) if f"{name}_fov" in said else None,
    }
    found = {f"fl_{name}": said[f"fl_{name}"]} if f"fl_{name}" in said else {}
    if is_perspective:
        found |= {key: side / 2 / math.tan(angle / 2) for key, angle in angles.items() if angle is not None}
    if found and max(found.values()) > min(found.values()) * (1 + TOLERANCE):
        told = " and ".join(f"'{key}' {value:.6g}" for key, value in found.items())
        raise InputError(f"{where}: focal lengths contradict each other, in pixels {told}. Remove the wrong one.")
    return next(iter(found.values()), None)


def _check_in_pixels(focals: tuple[float, float], center: list[float], size: tuple[int, int], where: str) -> None:
    if size[0] > 2 and size[1] > 2 and all(0.0 <= value <= 1.0 for value in center):
        raise InputError(
            f"{where}: 'cx' and 'cy' are {center[0]:g} and {center[1]:g}, shares of the image's {size[0]}x{size[1]} "
            "pixels. Give them in pixels, or remove them for the middle."
        )
    for key, value, side in zip(("cx", "cy"), center, size, strict=True):
        if not -side / 2 <= value <= 1.5 * side:
            raise InputError(f"{where}: '{key}' is {value:g}, far outside of an image of {side} pixels. Correct it.")
    for key, value, side in zip(("fl_x", "fl_y"), focals, size, strict=True):
        if not side * WIDEST <= value <= side * NARROWEST:
            raise InputError(f"{where}: '{key}' is {value:g} for {side} pixels, no focal length. Give it in pixels.")


def _distortion(own: Mapping[str, Any], top: Mapping[str, Any], model: str, where: str) -> list[float]:
    if model == "FISHEYE624":
        listed = own.get("distortion_params", top.get("distortion_params", ()))
        if len(listed) != 12:
            raise InputError(
                f"{where}: FISHEYE624 needs 'distortion_params', 12 numbers: k1 to k6, p1, p2, s1 to s4."
            )
        return listed
    merged = {**_named(top, where), **_named(own, where)}
    bent = [key for key, value in merged.items() if value]
    if bent and model in UNDISTORTED:
        raise InputError(
            f"{where}: 'camera_model' is {model}, which has no distortion, but '{bent[0]}' is {merged[bent[0]]:g}. "
            "Write OPENCV if the images are distorted, else remove the coefficients."
        )
    return [merged.get(key, 0.0) for key in LENS]


def _named(said: Mapping[str, Any], where: str) -> dict[str, float]:
    """One level's coefficients by name, whichever way they are written."""
    by_name = {key: said[key] for key in LENS if key in said}
    if "distortion_params" not in said:
        return by_name
    listed = said["distortion_params"]
    if len(listed) != len(LENS):
        raise InputError(f"{where}: 'distortion_params' has {len(listed)} numbers. It must have 6: {', '.join(LENS)}.")
    by_place = dict(zip(LENS, listed, strict=True))
    wrong = [key for key, value in by_name.items() if value != by_place[key]]
    if wrong:
        raise InputError(f"{where}: '{wrong[0]}' is not what 'distortion_params' says. Remove one of the two.")
    return by_place


def _coefficients(value: Any, where: str) -> list[float]:
    if not isinstance(value, list):
        raise InputError(f"{where} is {_shown(value)}. It must be a list of numbers.")
    return [to_number(each, where) for each in value]


def _known_model(value: Any, where: str) -> str:
    known = [name for name in CAMERA_MODEL_TO_TYPE if name not in RENDERED_ONLY]
    if not isinstance(value, str) or value not in known:
        raise InputError(f"{where} is {_shown(value)}. It must be one of {', '.join(known)}; undistort other images.")
    return value


def _shown(value: Any) -> str:
    text = str(value) if not isinstance(value, int) or abs(value) < 1e18 else f"{len(bin(value)) - 2} bits long"
    return text if len(text) <= 60 else f"{text[:57]}..."
