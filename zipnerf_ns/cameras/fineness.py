"""How fine photos' pixels are, and how wide their cones wherever they look: other widths were never learned."""

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
from zipnerf_ns.rays import AS_PHOTOS, CameraWidth

ANGLES = {
    CameraType.PERSPECTIVE.value: 1.0,
    CameraType.FISHEYE.value: 1.0,
    CameraType.FISHEYE624.value: 1.0,
    CameraType.EQUIRECTANGULAR.value: math.pi,
}
"""By type of camera, the angle in radians between neighboring pixels at its axis, times the focal length in pixels."""
SQUARES = (4, 2)
"""Sides of the squares of pixels whose rays may share their proposals."""
SLACK = 1.05
"""By how much pixels are larger than photos', or a camera is farther out, before networks are told."""
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
    """From where, and how finely, a scene was photographed."""

    finest: float
    """The smallest of :func:`pixel_angles`; infinite where there is none."""
    coarsest: float
    """The largest of those that there are; zero where there is none."""
    center: Float[Tensor, "3"]
    """Mean position of the cameras, world frame."""
    reach: float
    """Distance of the farthest from it."""

    @classmethod
    def of(cls, cameras: Cameras) -> Photos:
        """What there is to say of training cameras."""
        angles, positions = pixel_angles(cameras), cameras.camera_to_worlds[..., :3, 3].reshape(-1, 3)
        center = positions.mean(dim=0)
        coarsest = torch.where(angles.isfinite(), angles, 0.0).max()
        return cls(float(angles.min()), float(coarsest), center, float((positions - center).norm(dim=-1).max()))

    def width_of(self, camera: Cameras) -> CameraWidth:
        """A picture's camera beside the photos': its pixels may be larger, or it may be farther out."""
        angle, position = finest_angle(camera), camera.camera_to_worlds[..., :3, 3].reshape(3)
        if not (math.isfinite(angle) and 0.0 < self.coarsest):
            return AS_PHOTOS
        natural = min(max(angle, self.finest), self.coarsest) / angle
        is_farther = float((position.to(self.center) - self.center).norm()) > SLACK * self.reach
        return CameraWidth(natural, is_farther or SLACK * natural < 1.0)


def beside_photos(camera: Cameras, photos: Photos | None, enlarges: bool) -> tuple[Cameras, int, CameraWidth]:
    """A picture's camera beside the photos', if they are known: with as many times as many rows and columns as make its
    pixels as small as theirs, where it may be enlarged; how many that is, up to :data:`MOST_TIMES`; and its width."""
    width = AS_PHOTOS if photos is None else photos.width_of(camera)
    times = max(1, min(round(1.0 / width.natural), MOST_TIMES)) if enlarges else 1
    if times > 1:
        camera = copy.deepcopy(camera)
        camera.rescale_output_resolution(float(times))
        width = photos.width_of(camera)
    return camera, times, width


def seen_widths(
    cameras: Cameras, aabb: Float[Tensor, "2 3"] | None, side: int = 32
) -> Float[Tensor, "1 3 z y x"] | None:
    """With which widths cameras see each place, as ``functional.cones.width_as_seen`` takes them.

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
    sums, counts = torch.zeros_like(most), torch.zeros_like(most)
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
        sums += torch.log2(torch.stack([torch.where(is_seen, width, 1.0), every]).clamp_min(TINY))
        counts += torch.stack([is_seen, torch.ones_like(is_seen)])
    least, most = (torch.log2(each.clamp_min(TINY)) for each in (least, most))
    logs = torch.stack([least, sums / counts.clamp_min(1.0), most])
    logs = torch.where(counts[0] > 0.0, logs[:, 0], logs[:, 1]) + math.log2(CONE_PER_PIXEL)
    return logs.view(1, 3, side, side, side)


def places_in_world(cube: Float[Tensor, "places 3"], aabb: Float[Tensor, "2 3"] | None) -> Float[Tensor, "places 3"]:
    """World coordinates of places in the unit cube; beyond contracted space, far ones."""
    if aabb is not None:
        return aabb[0] + cube * (aabb[1] - aabb[0])
    contracted = (cube - 0.5) * (2.0 * CONTRACTED_RADIUS)
    norm = contracted.norm(dim=-1, keepdim=True).clamp_min(TINY)
    radius = torch.where(norm <= 1.0, norm, 1.0 / (CONTRACTED_RADIUS - norm).clamp_min(1.0 / FARTHEST))
    return contracted * (radius / norm)


def square_for(factor: float) -> int:
    """Side of the squares whose rays share their proposals where cones are wider than pixels by a factor.

    A square's rays then see what one ray of a photo does. Where cones are their pixels' own, neighbors on either side
    of an edge need proposals of their own: of lego at an eighth of its size, 50x50, squares of two cost 0.4 dB.
    """
    return next((side for side in SQUARES if factor >= side), 1)
