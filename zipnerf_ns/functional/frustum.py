"""A pixel's cone cut into intervals: its Gaussian moments, and six points that carry the same moments."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_MULTISAMPLES = 6
"""Points per conical frustum (Zip-NeRF, section 2)."""
STD_SCALE = 0.5
"""Standard deviation of a multisample over its distance from the cone's axis (Zip-NeRF, section 2)."""
CONE_PER_PIXEL = 2.0 / math.sqrt(12.0)
"""Radius of a pixel's cone over the pixel's side: the disc's variance is then that of the square."""


def cone_radius(pixel_area: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Radius of a pixel's cone at distance 1 along the unit direction (mip-NeRF, section 3.1).

    ``pixel_area`` is nerfstudio's: the area of the pixel's footprint between unit directions. Where it is zero, so is
    the radius, which has no slope there.
    """
    least = torch.finfo(pixel_area.dtype).tiny
    root = torch.where(pixel_area < least, 0.0, torch.sqrt(pixel_area.clamp_min(least)))
    return root * CONE_PER_PIXEL


def pinhole_cones(
    poses: Float[Tensor, "rays 3 4"],
    pixels: Float[Tensor, "rays 2"],
    focal: Float[Tensor, "2"],
    center: Float[Tensor, "2"],
) -> tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 3"], Float[Tensor, "rays 1"]]:
    """Origins, unit directions and radii at distance 1 of pixels' cones, world frame, without lens distortion.

    Args:
        poses: camera-to-world matrices, OpenGL axes: x right, y up, the camera looks along -z.
        pixels: x to the right and y down, from the picture's top left corner; a pixel's center lies at a half.
        focal: focal lengths along x and y, pixels.
        center: principal point, pixels.
    """
    steps = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=pixels.dtype, device=pixels.device)
    x, y = ((pixels[:, None] + steps - center) / focal).unbind(-1)
    directions = torch.stack([x, -y, -torch.ones_like(x)], dim=-1) @ poses[:, :, :3].transpose(1, 2)
    middle, right, below = torch.nn.functional.normalize(directions, dim=-1).unbind(1)
    area = (right - middle).norm(dim=-1, keepdim=True) * (below - middle).norm(dim=-1, keepdim=True)
    return poses[:, :, 3], middle, cone_radius(area)


def gaussian_moments(
    starts: Float[Tensor, "*batch n"], ends: Float[Tensor, "*batch n"], radius: Float[Tensor, "*batch 1"]
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
    """Mean and variances of a conical frustum (mip-NeRF, eq. 7, in its numerically stable form).

    Args:
        starts, ends: the interval along the unit direction, world units.
        radius: the cone's radius at distance 1.
    Returns:
        mean distance, variance along the ray, variance along each axis across it.
    """
    middle, half = 0.5 * (starts + ends), 0.5 * (ends - starts)
    m2, d2 = middle.square(), half.square()
    # Ratios of d^2 to the sum avoid d^4 and its square, which overflow float32 for t beyond 1e9.
    denominator = (3.0 * m2 + d2).clamp_min(torch.finfo(starts.dtype).tiny)
    ratio = d2 / denominator
    t_mean = middle + 2.0 * middle * ratio
    t_var = d2 / 3.0 - (4.0 / 15.0) * ratio * ratio * (12.0 * m2 - d2)
    r_var = radius.square() * (0.25 * m2 + (5.0 / 12.0) * d2 - (4.0 / 15.0) * d2 * ratio)
    return t_mean, t_var.clamp_min(0.0), r_var


def cone_gaussians(
    origins: Float[Tensor, "*batch 3"],
    directions: Float[Tensor, "*batch 3"],
    starts: Float[Tensor, "*batch n"],
    ends: Float[Tensor, "*batch n"],
    radius: Float[Tensor, "*batch 1"],
) -> tuple[Float[Tensor, "*batch n 3"], Float[Tensor, "*batch n"], Float[Tensor, "*batch n"]]:
    """World-space mean of each frustum and its variances along and across the ray (mip-NeRF, eq. 8)."""
    t_mean, t_var, r_var = gaussian_moments(starts, ends, radius)
    return origins[..., None, :] + t_mean[..., None] * directions[..., None, :], t_var, r_var


def multisample_distances(starts: Float[Tensor, "*batch"], ends: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 6"]:
    """Distances of a frustum's six multisamples along the ray (Zip-NeRF, section 2).

    t_j = t0 + d/(d^2+3m^2) (t1^2 + 2m^2 + (3/sqrt 7)(2j/5 - 1) sqrt((d^2-m^2)^2 + 4m^4)), with m the middle and d
    half the length. Written here with every length divided by t1, so that no fourth power of a distance occurs.
    """
    scale = ends.clamp_min(torch.finfo(ends.dtype).tiny)
    start, end = starts / scale, torch.ones_like(ends)
    middle, half = 0.5 * (start + end), 0.5 * (end - start)
    m2, d2 = middle.square(), half.square()
    spread = (3.0 / math.sqrt(7.0)) * torch.sqrt((d2 - m2).square() + 4.0 * m2.square())
    j = torch.arange(NUM_MULTISAMPLES, device=starts.device, dtype=starts.dtype)
    steps = (2.0 / (NUM_MULTISAMPLES - 1)) * j - 1.0
    relative = (half / (d2 + 3.0 * m2))[..., None] * ((end + 2.0 * m2)[..., None] + steps * spread[..., None])
    return starts[..., None] + ends[..., None] * relative


def multisample_turns(device: torch.device) -> Int[Tensor, "6"]:
    """Angle of each multisample in sixths of a turn, 0, 2, 4, 3, 5, 1: two triangles, one offset (Zip-NeRF, section 2).

    Computed on the device: a copy of the host's numbers would keep a step out of a CUDA graph.
    """
    j = torch.arange(NUM_MULTISAMPLES, device=device)
    return torch.remainder(2 * j + 3 * (j >= 3), 6)


def multisamples(
    origins: Float[Tensor, "*batch 3"],
    directions: Float[Tensor, "*batch 3"],
    starts: Float[Tensor, "*batch n"],
    ends: Float[Tensor, "*batch n"],
    radius: Float[Tensor, "*batch 1"],
    rotation: Float[Tensor, "*batch n"],
    reverse: Bool[Tensor, "*batch n"],
) -> tuple[Float[Tensor, "*batch n 6 3"], Float[Tensor, "*batch n 6"]]:
    """Six points per conical frustum with mip-NeRF's mean and variances, and their std (Zip-NeRF, section 2).

    Args:
        origins, directions: of the rays, world frame; directions are unit.
        starts, ends: the intervals along the direction, world units.
        radius: of the cone at distance 1.
        rotation: turns each interval's pattern about the ray, radians.
        reverse: mirrors each interval's pattern in the angle's order.
    Returns:
        points in the world frame, and their standard deviations in world units.
    """
    t = multisample_distances(starts, ends)
    turns = multisample_turns(t.device).to(t.dtype) * (math.pi / 3.0)
    angles = torch.where(reverse[..., None], turns.flip(0), turns) + rotation[..., None]
    off_axis = t * (radius[..., None] / math.sqrt(2.0))
    across_u, across_v = orthonormal_basis(directions)
    points = (
        origins[..., None, None, :]
        + t[..., None] * directions[..., None, None, :]
        + (off_axis * torch.cos(angles))[..., None] * across_u[..., None, None, :]
        + (off_axis * torch.sin(angles))[..., None] * across_v[..., None, None, :]
    )
    return points, STD_SCALE * off_axis


def orthonormal_basis(
    directions: Float[Tensor, "*batch 3"],
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Two unit vectors across a unit direction, without a singular case (Duff et al., JCGT 2017)."""
    x, y, z = directions.unbind(dim=-1)
    sign = torch.where(z < 0.0, -1.0, 1.0).to(z.dtype)
    a = -1.0 / (sign + z)
    b = x * y * a
    u = torch.stack([1.0 + sign * x * x * a, sign * b, -sign * x], dim=-1)
    v = torch.stack([b, sign + y * y * a, -y], dim=-1)
    return u, v
