"""First Gaussians from a field: pixels put where their rays meet something (RadSplat, Niemeyer et al. 2024, 3.2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.cameras.rays import PixelRays
from zipnerf_ns.errors import InputError
from zipnerf_ns.render.chunks import rays_that_fit
from zipnerf_ns.render.pictures import SOLID
from zipnerf_ns.splats.distill.views import Pinhole
from zipnerf_ns.splats.gaussians import SH_C0, Gaussians

OPACITY = 0.8
"""Opacity of a Gaussian at first: together they hide what is behind a surface. (3DGS has 0.1, for points that err.)"""
NEIGHBORS, SPREAD = 3, 0.7
"""A Gaussian's first standard deviation is a share of its nearest neighbors' mean distance."""
AROUND, THINNEST = 8, 0.1
"""Neighbors whose plane a Gaussian lies in, and its least thickness, of its size."""
SHELL = 500.0
"""Distance of the sky, in extents of the cameras: at a thousand pixels of focal length, a camera that moves through
all of the extent sees the sky shift by two. (.spz holds coordinates up to 2048.)"""
RAYS = 1 << 15
"""Rendered at a time."""


def extent(cameras: list[Pinhole]) -> float:
    """Distance of the cameras' places from their center, of the farthest and with a tenth more, as in 3DGS."""
    places = torch.stack([camera.pose[:, 3] for camera in cameras])
    return max(1.1 * float((places - places.mean(dim=0)).norm(dim=-1).max()), 1e-3)


@torch.no_grad()
def first_gaussians(
    model: Any, cameras: list[Pinhole], count: int, degree: int, is_open: bool, generator: torch.Generator
) -> Gaussians:
    """Gaussians at the median depths of random pixels, with the field's colors, on the model's device.

    Args:
        model: in evaluation mode; from bundles of rays to ``rgb``, ``accumulation`` and ``depth``.
        cameras: from which pixels are drawn.
        count: of pixels.
        degree: of the spherical harmonics; but for the constant they are zero.
        is_open: whether what a ray does not meet is the sky, and not nothing.
        generator: on the CPU.
    Raises:
        InputError: if no ray meets anything.
    """
    lenses = {name: torch.tensor([getattr(each, name) for each in cameras])
              for name in ("fx", "fy", "cx", "cy", "width", "height")}  # fmt: skip
    poses = torch.stack([camera.pose for camera in cameras])
    rays = PixelRays(Cameras(poses, **lenses), model.device, model.config.implementation)
    drawn = torch.randint(len(cameras), (count,), generator=generator)
    shares = torch.rand(count, 2, generator=generator)
    sizes = torch.stack([lenses["height"], lenses["width"]], dim=-1)[drawn]
    pixels = torch.minimum((shares * sizes).long(), sizes - 1)
    shell = SHELL * extent(cameras)
    most = min(RAYS, rays_that_fit(model.device, model.uses_kernels))
    points, colors = [], []
    for indices in torch.cat([drawn[:, None], pixels], dim=-1).split(most):
        bundle = rays(indices)
        outputs = model(bundle)
        is_solid = outputs["accumulation"] >= SOLID
        distances = torch.where(is_solid, outputs["depth"], shell).clamp_max(shell)
        directions = torch.nn.functional.normalize(bundle.directions, dim=-1)
        kept = slice(None) if is_open else is_solid[:, 0]
        points.append((bundle.origins + distances * directions)[kept])
        colors.append(outputs["rgb"][kept].float())
    return gaussians_at(torch.cat(points), torch.cat(colors), degree)


def gaussians_at(points: Float[Tensor, "points 3"], colors: Float[Tensor, "points 3"], degree: int) -> Gaussians:
    """Gaussians at points, almost as large as their neighbors are far, and as thin as these lie in a plane.

    Args:
        points: at least two.
        colors: in [0, 1], the same from everywhere.
        degree: of the spherical harmonics.
    Raises:
        InputError: for fewer points.
    """
    if len(points) < 2:
        raise InputError("the field shows nothing but empty space, of which no Gaussians can be made.")
    places = points.cpu().double().numpy()
    distances, near = cKDTree(places).query(places, min(AROUND, len(points) - 1) + 1, workers=-1)
    sizes = np.log((SPREAD * distances[:, 1 : NEIGHBORS + 1].mean(axis=1)).clip(1e-7))
    around = places[near] - places[near].mean(axis=1, keepdims=True)
    variances, axes = np.linalg.eigh(around.swapaxes(1, 2) @ around)
    thin = np.sqrt(variances[:, 0].clip(0.0) / variances[:, 1:].mean(axis=1).clip(1e-30)).clip(THINNEST, 1.0)
    axes[:, :, 2] *= np.linalg.det(axes)[:, None]
    quats = Rotation.from_matrix(axes).as_quat()[:, [3, 0, 1, 2]]
    scales = np.stack([sizes + np.log(thin), sizes, sizes], axis=1)
    sh = points.new_zeros(len(points), (degree + 1) ** 2, 3)
    sh[:, 0] = (colors - 0.5) / SH_C0
    opacities = points.new_full((len(points),), math.log(OPACITY / (1.0 - OPACITY)))
    quats, scales = (torch.from_numpy(each).to(points) for each in (quats, scales))
    return Gaussians(points, quats, scales, opacities, sh, antialiased=True)
