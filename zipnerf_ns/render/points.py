"""A field at points instead of along rays: what meshes and measurements ask, with the field's own prefiltering.

A field knows intervals of cones. A point with an extent is one interval of a cone of its own, as long and as wide as
the extent says; whatever the field does to intervals (contraction, multisamples, prefilter weights) then holds for
points too, and nothing of it is written a second time here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.field import ZipNerfField
from zipnerf_ns.rays import Rays

APEX_DISTANCE = 64.0
"""Distance of a cone's apex from its point, in standard deviations of the point's extent: there it is nearly a
cylinder."""


class Moment(NamedTuple):
    """When a scene that moves is asked."""

    time: float
    """From 0 to 1."""
    shutter: float
    """Length of the moment about it, as the model's rays have it."""


def point_cones(
    points: Float[Tensor, "points 3"], directions: Float[Tensor, "points 3"], std: float, moment: Moment | None = None
) -> Rays:
    """Cones, each with the one interval between near and far whose Gaussian (mip-NeRF, eq. 7) has the point as its mean
    and is isotropic.

    Args:
        points: world frame.
        directions: unit; along which the points are looked at.
        std: standard deviation along each axis, world units, positive.
        moment: of a scene that moves.
    """
    distance = APEX_DISTANCE * std
    # A slab of length l has variance l^2/12, a disc of radius r has r^2/4 along each axis.
    half_length = math.sqrt(3.0) * std
    middle = torch.full_like(points[:, :1], distance)
    radius, valid = torch.full_like(middle, 2.0 * std / distance), torch.ones_like(middle, dtype=torch.bool)
    origins = points - distance * directions
    rays = Rays(origins, directions, radius, middle - half_length, middle + half_length, valid)
    if moment is None:
        return rays
    return rays._replace(times=torch.full_like(middle, moment.time), shutter=moment.shutter)


@torch.no_grad()
def query_points(
    field: ZipNerfField,
    points: Float[Tensor, "points 3"],
    directions: Float[Tensor, "points 3"],
    std: float,
    moment: Moment | None = None,
) -> tuple[Float[Tensor, "points"], Float[Tensor, "points 3"]]:
    """Density per world unit, zero outside the box of a bounded scene, and color in [0, 1], of points.

    Args:
        field: in evaluation mode.
        points, directions, std, moment: as for :func:`point_cones`; the color is that seen along ``directions``.
    """
    cones = _as_known(field, point_cones(points, directions, std, moment))
    radiance = field(cones, torch.cat([cones.near, cones.far], dim=-1))
    return _inside(radiance.density[:, 0], points, field.aabb), radiance.colors[:, 0].float().clamp(0.0, 1.0)


@torch.no_grad()
def query_density(
    field: ZipNerfField, points: Float[Tensor, "points 3"], std: float, moment: Moment | None = None
) -> Float[Tensor, "points"]:
    """Density per world unit of points, zero outside the box of a bounded scene.

    Args:
        field: in evaluation mode.
        points, std, moment: as for :func:`point_cones`.
    """
    # An isotropic extent looks the same from everywhere; a diagonal favors no axis of the grid.
    directions = torch.full_like(points, 1.0 / math.sqrt(3.0))
    cones = _as_known(field, point_cones(points, directions, std, moment))
    density = field.density(cones, torch.cat([cones.near, cones.far], dim=-1))
    return _inside(density[:, 0], points, field.aabb)


def _as_known(field: ZipNerfField, cones: Rays) -> Rays:
    """Points of an extent that no photo need have: without the prefilter's weights where the field can do without."""
    return cones._replace(told=torch.zeros_like(cones.radius)) if field.can_be_untold else cones


def _inside(
    density: Float[Tensor, "points"], points: Float[Tensor, "points 3"], aabb: Float[Tensor, "2 3"] | None
) -> Float[Tensor, "points"]:
    """The density where rays of a bounded scene would look; beyond the box the grid only repeats its faces."""
    if aabb is None:
        return density
    inside = ((points >= aabb[0]) & (points <= aabb[1])).all(dim=-1)
    return torch.where(inside, density, 0.0)
