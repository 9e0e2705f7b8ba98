"""World space into the unit cube that the hash grid covers: position and scale always travel together.

Unbounded scenes use mip-NeRF 360's contraction, C(x) = x inside the unit ball and (2 - 1/|x|) x/|x| outside, so all
of space lands in a ball of radius 2; the unit cube is (C + 2) / 4. Bounded scenes use their box.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY

CONTRACTED_RADIUS = 2.0
"""Radius of the ball into which all of space is contracted."""
CUBE_PER_CONTRACTED = 1.0 / (2.0 * CONTRACTED_RADIUS)
"""Length in the unit cube of one unit of contracted space."""


def contract(x: Float[Tensor, "*batch 3"]) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 1"]]:
    """mip-NeRF 360's contraction (eq. 10).

    Args:
        x: world coordinates.
    Returns:
        contracted coordinates, and max(|x|, 1) in world units, from which the Jacobian follows.
    """
    # Dividing by the largest coordinate first keeps squares finite up to the largest float32.
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(1.0).detach()
    scaled = x / largest
    radius = torch.sqrt(scaled.square().sum(dim=-1, keepdim=True).clamp_min(largest.reciprocal().square())) * largest
    return scaled * ((2.0 - radius.reciprocal()) * (largest / radius)), radius


def contract_points(
    x: Float[Tensor, "*batch 3"], std: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    """Isotropic Gaussians from the world into the unit cube (Zip-NeRF, section 2 and supplement).

    std is scaled by the cube root of |det J|, the geometric mean of the contraction's three stretches: 1/r^2 along
    the radius r and (2r-1)/r^2 across it, twice.

    Args:
        x: means, world coordinates.
        std: standard deviations, world units.
    Returns:
        means in the unit cube, standard deviations in units of the cube's side.
    """
    contracted, radius = contract(x)
    radius = radius.squeeze(-1)
    stretch = (2.0 - radius.reciprocal()) ** (2.0 / 3.0) * radius ** (-4.0 / 3.0)
    return contracted * CUBE_PER_CONTRACTED + 0.5, std * stretch * CUBE_PER_CONTRACTED


def contract_cone_gaussians(
    mean: Float[Tensor, "*batch 3"],
    direction: Float[Tensor, "*batch 3"],
    t_var: Float[Tensor, "*batch"],
    r_var: Float[Tensor, "*batch"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    """Cone Gaussians from the world into the unit cube, as mean and root of the covariance's trace.

    The covariance is t_var d d^T + r_var (1 - d d^T). With the Jacobian's stretches a along the radius and b across,
    and c the cosine between d and the radius, |J d|^2 = a^2 c^2 + b^2 (1 - c^2) and |J|_F^2 = a^2 + 2 b^2, so the
    trace of J Sigma J^T needs no matrix.

    Args:
        mean: world coordinates.
        direction: unit.
        t_var, r_var: variance along the direction, and along each axis across it, world units squared.
    Returns:
        means in the unit cube, sqrt(trace) in units of the cube's side.
    """
    contracted, radius = contract(mean)
    radius = radius.squeeze(-1)
    along = radius.reciprocal().square()
    across = (2.0 - radius.reciprocal()) / radius
    cosine = (mean * direction).sum(dim=-1) / radius
    along2, across2 = along.square(), across.square()
    # Inside the unit ball the stretches are both 1 and the cosine drops out.
    j_direction2 = across2 + (along2 - across2) * cosine.square().clamp(max=1.0)
    trace = t_var * j_direction2 + r_var * (along2 + 2.0 * across2 - j_direction2)
    scale = torch.sqrt(trace.clamp_min(TINY)) * CUBE_PER_CONTRACTED
    return contracted * CUBE_PER_CONTRACTED + 0.5, scale


def box_points(
    x: Float[Tensor, "*batch 3"], std: Float[Tensor, "*batch"], aabb: Float[Tensor, "2 3"]
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    """Like :func:`contract_points` for a bounded scene: the box [aabb[0], aabb[1]] becomes the unit cube.

    std is divided by the geometric mean of the box's sides.
    """
    sides = aabb[1] - aabb[0]
    return (x - aabb[0]) / sides, std / torch.prod(sides) ** (1.0 / 3.0)


def points_in_cube(
    x: Float[Tensor, "*batch 3"], std: Float[Tensor, "*batch"], aabb: Float[Tensor, "2 3"] | None
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    """:func:`box_points` of a bounded scene, else :func:`contract_points`."""
    return contract_points(x, std) if aabb is None else box_points(x, std, aabb)


def box_cone_gaussians(
    mean: Float[Tensor, "*batch 3"],
    direction: Float[Tensor, "*batch 3"],
    t_var: Float[Tensor, "*batch"],
    r_var: Float[Tensor, "*batch"],
    aabb: Float[Tensor, "2 3"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch"]]:
    """Like :func:`contract_cone_gaussians` for a bounded scene."""
    inverse_sides = 1.0 / (aabb[1] - aabb[0])
    j_direction2 = (direction * inverse_sides).square().sum(dim=-1)
    trace = t_var * j_direction2 + r_var * (inverse_sides.square().sum() - j_direction2)
    return (mean - aabb[0]) * inverse_sides, torch.sqrt(trace.clamp_min(TINY))
