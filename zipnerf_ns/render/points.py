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


class PointCones(NamedTuple):
    """One interval for each point."""

    origins: Float[Tensor, "points 3"]
    """Apexes, world units."""
    directions: Float[Tensor, "points 3"]
    """Unit; as the point is looked at."""
    radius: Float[Tensor, "points 1"]
    """Radius of the cone at distance 1 along the unit direction."""
    tdist: Float[Tensor, "points 2"]
    """Where the interval begins and ends, world units."""


def point_cones(points: Float[Tensor, "points 3"], directions: Float[Tensor, "points 3"], std: float) -> PointCones:
    """Intervals whose Gaussians (mip-NeRF, eq. 7) have the points as means and are isotropic.

    Args:
        points: world frame.
        directions: unit; along which the points are looked at.
        std: standard deviation along each axis, world units, positive.
    """
    distance = APEX_DISTANCE * std
    # A slab of length l has variance l^2/12, a disc of radius r has r^2/4 along each axis.
    half_length = math.sqrt(3.0) * std
    column = torch.full_like(points[:, :1], distance)
    return PointCones(
        origins=points - distance * directions,
        directions=directions,
        radius=torch.full_like(column, 2.0 * std / distance),
        tdist=torch.cat([column - half_length, column + half_length], dim=-1),
    )


@torch.no_grad()
def query_points(
    field: ZipNerfField, points: Float[Tensor, "points 3"], directions: Float[Tensor, "points 3"], std: float
) -> tuple[Float[Tensor, "points"], Float[Tensor, "points 3"]]:
    """Density per world unit, zero outside the box of a bounded scene, and color in [0, 1], of points.

    Args:
        field: in evaluation mode.
        points, directions, std: as for :func:`point_cones`; the color is that seen along ``directions``.
    """
    cones = point_cones(points, directions, std)
    radiance = field(_rays(cones), cones.tdist)
    return _inside(radiance.density[:, 0], points, field.aabb), radiance.colors[:, 0].float().clamp(0.0, 1.0)


@torch.no_grad()
def query_density(field: ZipNerfField, points: Float[Tensor, "points 3"], std: float) -> Float[Tensor, "points"]:
    """Density per world unit of points, zero outside the box of a bounded scene.

    Args:
        field: in evaluation mode.
        points, std: as for :func:`point_cones`.
    """
    # An isotropic extent looks the same from everywhere; a diagonal favors no axis of the grid.
    directions = torch.full_like(points, 1.0 / math.sqrt(3.0))
    cones = point_cones(points, directions, std)
    density = field.density(_rays(cones), cones.tdist)
    return _inside(density[:, 0], points, field.aabb)


def _inside(
    density: Float[Tensor, "points"], points: Float[Tensor, "points 3"], aabb: Float[Tensor, "2 3"] | None
) -> Float[Tensor, "points"]:
    """The density where rays of a bounded scene would look; beyond the box the grid only repeats its faces."""
    if aabb is None:
        return density
    inside = ((points >= aabb[0]) & (points <= aabb[1])).all(dim=-1)
    return torch.where(inside, density, 0.0)


def _rays(cones: PointCones) -> Rays:
    """The points' cones as rays, each with its one interval between near and far."""
    near, far = cones.tdist.split(1, dim=-1)
    return Rays(cones.origins, cones.directions, cones.radius, near, far, far > near)
