"""How fine photos' pixels are, and from where they look: networks do not know cones of other widths."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns.functional.frustum import cone_radius
from zipnerf_ns.functional.numerics import TINY

ANGLES = {
    CameraType.PERSPECTIVE.value: 1.0,
    CameraType.FISHEYE.value: 1.0,
    CameraType.FISHEYE624.value: 1.0,
    CameraType.EQUIRECTANGULAR.value: math.pi,
}
"""By type of camera, the angle in radians between neighboring pixels at its axis, times the focal length in pixels."""
ANGLES_FROM_AXIS, PIXELS_FROM_AXIS = 33, 64
"""At how many angles widths of cones are kept, and how many pixels they are made of."""
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
    cones: Float[Tensor, "photos numbers"]
    """What ``functional.cones.known_share`` takes, of the photos whose pixels have an angle."""

    @classmethod
    def of(cls, cameras: Cameras) -> Photos:
        """What there is to say of training cameras."""
        angles, cameras = pixel_angles(cameras), cameras.flatten()
        known = angles.isfinite()
        finest, coarsest = float(angles.min()), float(torch.where(known, angles, 0.0).max())
        poses, axes = cameras.camera_to_worlds[known], _axes(cameras)[known]
        cones = torch.cat([poses[:, :, 3], axes, _widths_by_angle(cameras, axes, known.nonzero())], dim=1)
        return cls(finest, coarsest, cones)

    def beside(self, camera: Cameras) -> float:
        """The factor that makes photos' pixels of a camera's: above 1 where those are finer than every photo's, below 1
        where they are coarser, and 1 if either has none."""
        angle = finest_angle(camera)
        if not (math.isfinite(angle) and 0.0 < self.coarsest):
            return 1.0
        return min(max(angle, self.finest), self.coarsest) / angle


def _axes(cameras: Cameras) -> Float[Tensor, "cameras 3"]:
    """The axis about which each camera's pixels are alike: where it looks, or of a panorama the way up."""
    poses, is_panorama = cameras.camera_to_worlds, cameras.camera_type == CameraType.EQUIRECTANGULAR.value
    return torch.where(is_panorama, poses[:, :, 1], -poses[:, :, 2])


def _widths_by_angle(
    cameras: Cameras, axes: Float[Tensor, "known 3"], numbers: Int[Tensor, "known 1"]
) -> Float[Tensor, "known angles"]:
    """Widths at distance 1 of some cameras' cones at :data:`ANGLES_FROM_AXIS` angles from their axes, from 0 to pi.

    Of pixels from the principal point to the farthest corner, of a panorama from its lowest row to its highest; beyond
    the last of them as there.
    """
    if not len(numbers):
        return axes.new_zeros(0, ANGLES_FROM_AXIS)
    cx, cy, width, height = (
        value[numbers].float().reshape(-1, 1) for value in (cameras.cx, cameras.cy, cameras.width, cameras.height)
    )
    share = torch.linspace(0.0, 1.0, PIXELS_FROM_AXIS, device=cx.device)
    # Nerfstudio divides 0 by 0 along a fisheye's axis, and has no pixels on a panorama's poles.
    column = cx + torch.where(2.0 * cx < width, width - cx, -cx) * share + 0.25
    row = cy + torch.where(2.0 * cy < height, height - cy, -cy) * share + 0.25
    is_panorama = cameras.camera_type[numbers[:, 0]] == CameraType.EQUIRECTANGULAR.value
    column = torch.where(is_panorama, 0.5 * width, column)
    row = torch.where(is_panorama, 0.5 + (height - 1.0) * (1.0 - share), row)
    rays = cameras.generate_rays(
        numbers.repeat_interleave(PIXELS_FROM_AXIS, dim=0), coords=torch.stack([row, column], dim=-1).view(-1, 2)
    )
    cosines = (rays.directions.view(*row.shape, 3) * axes[:, None]).sum(dim=-1)
    widths = cone_radius(rays.pixel_area).view(row.shape)
    # Where a lens's formula has no inverse there is no pixel.
    is_there = cosines.isfinite() & widths.isfinite()
    angles, order = torch.where(is_there, torch.acos(cosines.clamp(-1.0, 1.0)), math.inf).sort(dim=1)
    widths = torch.where(is_there, widths, 0.0).gather(1, order)
    wanted = torch.linspace(0.0, math.pi, ANGLES_FROM_AXIS, device=cx.device).expand(len(numbers), -1).contiguous()
    after = torch.searchsorted(angles, wanted).clamp(1, PIXELS_FROM_AXIS - 1)
    begin, end = (angles.gather(1, each) for each in (after - 1, after))
    between = ((wanted - begin) / (end - begin).clamp_min(TINY)).clamp(0.0, 1.0)
    return torch.lerp(widths.gather(1, after - 1), widths.gather(1, after), between.nan_to_num(0.0))


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
