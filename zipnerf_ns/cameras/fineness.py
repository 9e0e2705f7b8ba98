"""How fine photos' pixels are, and from where they look: networks do not know cones of other widths."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns.functional.frustum import CONE_PER_PIXEL

ANGLES = {
    CameraType.PERSPECTIVE.value: 1.0,
    CameraType.FISHEYE.value: 1.0,
    CameraType.FISHEYE624.value: 1.0,
    CameraType.EQUIRECTANGULAR.value: math.pi,
}
"""By type of camera, the angle in radians between neighboring pixels at its axis, times the focal length in pixels."""
SQUARES = (4, 2)
"""Sides of the squares of pixels whose rays may share their proposals."""
MOST_TIMES = 4
"""The most by which a picture is enlarged, before the mean over areas is taken."""


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


class Photos(NamedTuple):
    """How finely a scene was photographed, and from where."""

    finest: float
    """The smallest of :func:`pixel_angles`; infinite where there is none."""
    coarsest: float
    """The largest of those that there are; zero where there is none."""
    cones: Float[Tensor, "photos 8"]
    """What ``functional.cones.known_share`` takes, of the photos whose pixels have an angle."""
    are_perspective: bool
    """Whether all of these are of perspective cameras."""

    @classmethod
    def of(cls, cameras: Cameras) -> Photos:
        """What there is to say of training cameras."""
        angles, kinds = pixel_angles(cameras), cameras.camera_type.reshape(-1)
        poses = cameras.camera_to_worlds.reshape(-1, 3, 4)
        is_round = (kinds == CameraType.EQUIRECTANGULAR.value)[:, None]
        axes = torch.where(is_round, poses[:, :, 1], -poses[:, :, 2])
        forms = torch.where(kinds == CameraType.PERSPECTIVE.value, 0.0, torch.where(is_round[:, 0], 2.0, 1.0))
        cones = torch.cat([poses[:, :, 3], axes, CONE_PER_PIXEL * angles[:, None], forms[:, None]], dim=1)
        known = angles.isfinite()
        finest, coarsest = float(angles.min()), float(torch.where(known, angles, 0.0).max())
        return cls(finest, coarsest, cones[known], not bool(forms[known].any()))

    def beside(self, camera: Cameras) -> float:
        """The factor that makes photos' pixels of a camera's: above 1 where those are finer than every photo's, below 1
        where they are coarser, and 1 if either has none."""
        angle = finest_angle(camera)
        if not (math.isfinite(angle) and 0.0 < self.coarsest):
            return 1.0
        return min(max(angle, self.finest), self.coarsest) / angle


def beside_photos(camera: Cameras, photos: Photos | None, enlarges: bool) -> tuple[Cameras, int, float]:
    """A picture's camera beside the photos', if they are known: with as many times as many rows and columns as make its
    pixels as small as theirs, where it may be enlarged; how many that is, up to :data:`MOST_TIMES`; and the factor
    (:meth:`Photos.beside`) that is left."""
    factor = 1.0 if photos is None else photos.beside(camera)
    times = max(1, min(round(1.0 / factor), MOST_TIMES)) if enlarges else 1
    if times > 1:
        camera = copy.deepcopy(camera)
        camera.rescale_output_resolution(float(times))
        factor = photos.beside(camera)
    return camera, times, factor


def square_for(factor: float) -> int:
    """Side of the squares whose rays share their proposals where photos' pixels are larger by a factor.

    Such a square is what one ray of a photo sees. Neighbors as large as photos' pixels, on either side of an edge, need
    proposals of their own: of lego at an eighth of its size, 50x50, squares of two cost 0.4 dB.
    """
    return next((side for side in SQUARES if factor >= side), 1)
