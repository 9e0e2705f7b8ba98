"""How fine a picture's pixels are beside the photos': finer than theirs nothing was learned."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras, CameraType

ANGLES = {
    CameraType.PERSPECTIVE.value: 1.0,
    CameraType.FISHEYE.value: 1.0,
    CameraType.FISHEYE624.value: 1.0,
    CameraType.EQUIRECTANGULAR.value: math.pi,
}
"""By type of camera, the angle in radians between neighboring pixels at its axis, times the focal length in pixels."""
SQUARES = (4, 2)
"""Sides of the squares of pixels whose rays may share their proposals."""


def pixel_angles(cameras: Cameras) -> Float[Tensor, "cameras"]:
    """Radians between neighboring pixels at the axis of each camera; infinite for types whose pixels have none."""
    types, focal = cameras.camera_type.reshape(-1), torch.sqrt(cameras.fx * cameras.fy).reshape(-1)
    angles = torch.full_like(focal, math.inf)
    for kind, angle in ANGLES.items():
        angles = torch.where(types == kind, angle / focal, angles)
    return angles


def finest_angle(cameras: Cameras) -> float:
    """The smallest of :func:`pixel_angles`."""
    return float(pixel_angles(cameras).min())


def widening(camera: Cameras, photos: float) -> float:
    """Factor, one at least, that makes a picture's cones as wide as those of the finest photo.

    Args:
        camera: of the picture.
        photos: the photos' :func:`finest_angle`; zero where it is not known, which changes nothing.
    """
    return max(photos / finest_angle(camera), 1.0) if math.isfinite(photos) else 1.0


def square_for(factor: float) -> int:
    """Side of the squares whose rays share their proposals where cones are wider than pixels by a factor.

    A square's rays then see what one ray of a photo does. Where cones are their pixels' own, neighbors on either side
    of an edge need proposals of their own: of lego at an eighth of its size, 50x50, squares of two cost 0.4 dB.
    """
    return next((side for side in SQUARES if factor >= side), 1)
