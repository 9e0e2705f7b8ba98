"""A few Gaussians to look at, and their picture as gsplat's formulas have it, without a GPU."""

from __future__ import annotations

import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from torch import Tensor

from zipnerf_ns.splats.gaussians import Gaussians


def ball(count: int = 400, degree: int = 3, seed: int = 0, antialiased: bool = True) -> Gaussians:
    """Flat Gaussians of many colors that cover the unit ball about the origin, shinier where the degree is higher."""
    generator = torch.Generator().manual_seed(seed)
    # Fibonacci's sphere: evenly spread.
    z = 1.0 - (2.0 * torch.arange(count) + 1.0) / count
    angle = torch.arange(count) * (torch.pi * (3.0 - 5.0**0.5))
    means = torch.stack([(1.0 - z**2).sqrt() * angle.cos(), (1.0 - z**2).sqrt() * angle.sin(), z], dim=-1)
    # Turned from the z axis to the normal: half way between the two is the axis of a half turn.
    middle = torch.nn.functional.normalize(means + torch.tensor([0.0, 0.0, 1.0 + 1e-6]), dim=-1)
    quats = torch.cat([torch.zeros(count, 1), middle], dim=-1)
    size = 1.3 * count**-0.5
    scales = torch.tensor([size, size, size / 5.0]).log() + 0.3 * torch.randn(count, 3, generator=generator)
    scales[::3] -= 3.0  # smaller than a pixel, where the anti-aliased mode shows
    color = 1.2 * torch.sin(torch.tensor([3.0, 4.0, 5.0]) * means.roll(1, 1)) + 0.3
    rest = 0.15 * torch.randn(count, (degree + 1) ** 2 - 1, 3, generator=generator)
    opacities = 2.0 + torch.randn(count, generator=generator)
    return Gaussians(means, quats, scales, opacities, torch.cat([color[:, None], rest], dim=1), antialiased)


def picture(gaussians: Gaussians, world_to_camera: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """What a camera sees before black, ``[height, width, 3]``.

    Projection, the anti-aliased mode's opacities and spherical harmonics are gsplat's torch forms; compositing, whose
    torch form calls CUDA, is written out.

    Args:
        world_to_camera: OpenCV's axes, ``[4, 4]``.
        intrinsics: ``[3, 3]``, pixels.
        size: width and height.
    """
    width, height = size
    covariances, _ = _quat_scale_to_covar_preci(gaussians.quats, gaussians.scales.exp(), compute_preci=False)
    radii, centers, depths, conics, compensations = _fully_fused_projection(
        gaussians.means, covariances, world_to_camera[None], intrinsics[None], width, height, calc_compensations=True
    )
    opacities = torch.sigmoid(gaussians.opacities)
    if gaussians.antialiased:
        opacities = opacities * compensations[0]
    position = -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]
    colors = _spherical_harmonics(gaussians.degree, gaussians.means - position, gaussians.sh)
    colors = (colors + 0.5).clamp(min=0.0)
    order = depths[0].argsort()
    order = order[radii[0, order] > 0]
    x0, y0 = (centers[0, order, i, None, None] for i in range(2))
    a, b, c = (conics[0, order, i, None, None] for i in range(3))
    rows = []
    for y in (torch.arange(height) + 0.5).split(max(1, (1 << 22) // (width * len(order)))):
        dx, dy = torch.arange(width) + 0.5 - x0, y[:, None] - y0
        alpha = opacities[order, None, None] * torch.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)
        alpha = torch.where(alpha < 1.0 / 255.0, 0.0, alpha.clamp(max=0.999))
        left = torch.cat([torch.ones_like(alpha[:1]), (1.0 - alpha).cumprod(0)[:-1]])
        rows.append(torch.einsum("nhw,nc->hwc", alpha * left, colors[order]))
    return torch.cat(rows)


def look_at(position: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """World to camera, OpenCV's axes, of a camera that stands upright, ``[4, 4]``."""
    forward = torch.nn.functional.normalize(target - position, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    return torch.cat([torch.cat([rotation, -(rotation @ position)[:, None]], 1), torch.tensor([[0.0, 0.0, 0.0, 1.0]])])


def pinhole(focal: float, size: tuple[int, int]) -> Tensor:
    """Intrinsics with the principal point in the middle, ``[3, 3]``."""
    return torch.tensor([[focal, 0.0, size[0] / 2.0], [0.0, focal, size[1] / 2.0], [0.0, 0.0, 1.0]])


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Of two pictures in 0 to 1, dB."""
    return float(-10.0 * (picture - truth).square().mean().log10())
