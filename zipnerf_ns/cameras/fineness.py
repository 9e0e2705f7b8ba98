"""How fine photos' pixels are, and how wide their cones wherever they look: other widths are not known."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns.functional.contraction import CONTRACTED_RADIUS
from zipnerf_ns.functional.frustum import CONE_PER_PIXEL
from zipnerf_ns.functional.numerics import TINY

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
FARTHEST = 100.0
"""Where what lies beyond contracted space is taken to be, world units."""


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
    """How finely a scene was photographed."""

    finest: float
    """The smallest of :func:`pixel_angles`; infinite where there is none."""
    coarsest: float
    """The largest of those that there are; zero where there is none."""

    @classmethod
    def of(cls, cameras: Cameras) -> Photos:
        """What there is to say of training cameras."""
        angles = pixel_angles(cameras)
        return cls(float(angles.min()), float(torch.where(angles.isfinite(), angles, 0.0).max()))

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


def seen_widths(
    cameras: Cameras, aabb: Float[Tensor, "2 3"] | None, side: int = 32
) -> Float[Tensor, "1 2 z y x"] | None:
    """With which widths cameras see each place, as ``functional.cones.known_share`` takes them.

    Nothing hides behind anything else, and distortion is not heeded. A place in no picture counts as in all.

    Args:
        cameras: of the training photos.
        aabb: box of a bounded scene, world frame; None for contracted space.
        side: cells along each side of the unit cube.
    Returns:
        on the cameras' device; None if pixels of none of them have an angle.
    """
    angles = pixel_angles(cameras)
    known = angles.isfinite()
    if not known.any():
        return None
    middles = (torch.arange(side, device=cameras.device) + 0.5) / side
    z, y, x = torch.meshgrid(middles, middles, middles, indexing="ij")
    places = places_in_world(torch.stack([x, y, z], dim=-1).view(-1, 3), aabb)
    # Of the cameras that see a place, and of all.
    least, most = places.new_full((2, len(places)), math.inf), places.new_zeros(2, len(places))
    shown = torch.zeros_like(most[0], dtype=torch.bool)
    poses = cameras.camera_to_worlds.reshape(-1, 3, 4)
    numbers = [value.reshape(-1) for value in (cameras.fx, cameras.fy, cameras.cx, cameras.cy)]
    kinds, sizes = cameras.camera_type.flatten().tolist(), (cameras.width.reshape(-1), cameras.height.reshape(-1))
    for index in known.nonzero()[:, 0].tolist():
        fx, fy, cx, cy = (value[index] for value in numbers)
        away = places - poses[index, :, 3]
        distance = away.norm(dim=-1)
        right, up, back = (away @ poses[index, :, :3]).unbind(dim=-1)
        width = every = angles[index] * distance
        is_seen = torch.ones_like(distance, dtype=torch.bool)
        if kinds[index] == CameraType.PERSPECTIVE.value:
            depth = (-back).clamp_min(TINY)
            column, row = cx + fx * right / depth, cy - fy * up / depth
            is_seen = (back < 0.0) & (column >= 0.0) & (column <= sizes[0][index])
            is_seen &= (row >= 0.0) & (row <= sizes[1][index])
            # Pixels away from the axis are smaller, as seen from the camera.
            width = width * (depth / distance.clamp_min(TINY)).clamp(max=1.0) ** 1.5
        least = torch.minimum(least, torch.stack([torch.where(is_seen, width, math.inf), every]))
        most = torch.maximum(most, torch.stack([torch.where(is_seen, width, 0.0), every]))
        shown |= is_seen
    logs = torch.log2(torch.stack([least, most]).clamp_min(TINY)) + math.log2(CONE_PER_PIXEL)
    return torch.where(shown, logs[:, 0], logs[:, 1]).view(1, 2, side, side, side)


def places_in_world(cube: Float[Tensor, "places 3"], aabb: Float[Tensor, "2 3"] | None) -> Float[Tensor, "places 3"]:
    """World coordinates of places in the unit cube; beyond contracted space, far ones."""
    if aabb is not None:
        return aabb[0] + cube * (aabb[1] - aabb[0])
    contracted = (cube - 0.5) * (2.0 * CONTRACTED_RADIUS)
    norm = contracted.norm(dim=-1, keepdim=True).clamp_min(TINY)
    radius = torch.where(norm <= 1.0, norm, 1.0 / (CONTRACTED_RADIUS - norm).clamp_min(1.0 / FARTHEST))
    return contracted * (radius / norm)


def square_for(factor: float) -> int:
    """Side of the squares whose rays share their proposals where photos' pixels are larger by a factor.

    Such a square is what one ray of a photo sees. Neighbors as large as photos' pixels, on either side of an edge, need
    proposals of their own: of lego at an eighth of its size, 50x50, squares of two cost 0.4 dB.
    """
    return next((side for side in SQUARES if factor >= side), 1)
