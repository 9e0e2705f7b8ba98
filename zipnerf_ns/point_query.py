"""A field at points instead of along rays: what meshes and measurements ask, with the field's own prefiltering.

A field knows intervals of cones. A point with an extent is one interval of a cone of its own, as long and as wide as
the extent says; whatever the field does to intervals (contraction, multisamples, prefilter weights) then holds for
points too, and nothing of it is written a second time here.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.rays import Frustums, RaySamples

from zipnerf_ns.field import ZipNerfField

APEX_DISTANCE = 64.0
"""Of a point's cone, in standard deviations of its extent: far enough for the cone to be nearly a cylinder."""


class PointCones(NamedTuple):
    """One interval for each point."""

    origins: Float[Tensor, "points 3"]
    """Apexes, world units."""
    directions: Float[Tensor, "points 3"]
    """Unit; as the point is looked at."""
    radius: Float[Tensor, "points 1"]
    """Of the cone at distance 1."""
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
) -> Tuple[Float[Tensor, "points"], Float[Tensor, "points 3"]]:
    """Density per world unit, zero outside the box of a bounded scene, and colour in [0, 1], of points.

    Args:
        field: in evaluation mode.
        points, directions, std: as for :func:`point_cones`; the colour is that seen along ``directions``.
    """
    samples = _ray_samples(point_cones(points, directions, std))
    output = field(samples)
    density = _inside(output.density[:, 0, 0], points, field.aabb)
    return density, field.color(samples, output.hidden)[:, 0].clamp(0.0, 1.0)


@torch.no_grad()
def query_density(field: ZipNerfField, points: Float[Tensor, "points 3"], std: float) -> Float[Tensor, "points"]:
    """Density per world unit of points, zero outside the box of a bounded scene.

    Args:
        field: in evaluation mode.
        points, std: as for :func:`point_cones`.
    """
    # An isotropic extent looks the same from everywhere; a diagonal favours no axis of the grid.
    directions = torch.full_like(points, 1.0 / math.sqrt(3.0))
    density = field.density(_ray_samples(point_cones(points, directions, std)))[:, 0, 0]
    return _inside(density, points, field.aabb)


def _inside(
    density: Float[Tensor, "points"], points: Float[Tensor, "points 3"], aabb: Optional[Float[Tensor, "2 3"]]
) -> Float[Tensor, "points"]:
    """The density where rays of a bounded scene would look; beyond the box the grid only repeats its faces."""
    if aabb is None:
        return density
    inside = ((points >= aabb[0]) & (points <= aabb[1])).all(dim=-1)
    return torch.where(inside, density, 0.0)


def _ray_samples(cones: PointCones) -> RaySamples:
    """The intervals as nerfstudio's RaySamples, ``[points, 1]``."""
    # The inverse of functional.frustum.cone_radius.
    pixel_area = (cones.radius * (math.sqrt(12.0) / 2.0)).square()
    frustums = Frustums(
        origins=cones.origins[:, None],
        directions=cones.directions[:, None],
        starts=cones.tdist[:, None, :1],
        ends=cones.tdist[:, None, 1:],
        pixel_area=pixel_area[:, None],
    )
    camera_indices = torch.zeros_like(cones.radius, dtype=torch.long)[:, None]
    return RaySamples(frustums=frustums, camera_indices=camera_indices, deltas=cones.tdist.diff(dim=-1)[:, None])
