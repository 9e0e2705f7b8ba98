"""Cameras of every kind that the kernels know, and the truth about their pixels' directions in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras, CameraType

PERSPECTIVE, FISHEYE = CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value
WIDTH, HEIGHT = 60, 40
FOCAL = 50.0
"""Of about this many pixels, so that the pictures show lenses' corners."""


def random_poses(count: int) -> Tensor:
    """Rotations and centers anywhere."""
    rotations = torch.linalg.qr(torch.randn(count, 3, 3))[0]
    return torch.cat([rotations, torch.randn(count, 3, 1)], dim=-1)


def make_cameras(types: list[int], distorted: list[bool] | None = None, **changes: Any) -> Cameras:
    """One camera for each type, of random pose and intrinsics, with lens distortion where it is asked for."""
    count = len(types)
    distortion = None
    if distorted is not None:
        sizes = torch.tensor([0.08, 0.02, 0.004, 0.001, 0.004, 0.004])
        distortion = torch.randn(count, 6) * sizes * torch.tensor(distorted)[:, None]
    fields = dict(
        camera_to_worlds=random_poses(count),
        fx=FOCAL + 5.0 * torch.rand(count, 1),
        fy=FOCAL + 5.0 * torch.rand(count, 1),
        cx=WIDTH / 2 + 3.0 * torch.rand(count, 1),
        cy=HEIGHT / 2 + 3.0 * torch.rand(count, 1),
        width=WIDTH,
        height=HEIGHT,
        distortion_params=distortion,
        camera_type=torch.tensor(types)[:, None],
    )
    return Cameras(**{**fields, **changes})


def random_pixels(cameras: Cameras, count: int) -> Tensor:
    """Camera, row and column of pixels anywhere, the pictures' corners among them."""
    numbers = torch.randint(len(cameras), (count,))
    rows, columns = torch.randint(HEIGHT, (count,)), torch.randint(WIDTH, (count,))
    corners = torch.arange(count) < min(4, count)
    rows = torch.where(corners, (torch.arange(count) % 2) * (HEIGHT - 1), rows)
    columns = torch.where(corners, (torch.arange(count) // 2 % 2) * (WIDTH - 1), columns)
    return torch.stack([numbers, rows, columns], dim=-1)


def _undistort(points: Tensor, lens: Tensor) -> Tensor:
    """By the fixed-point iteration that OpenCV uses, not by Newton's."""
    k1, k2, k3, k4, p1, p2 = lens.unbind(-1)
    x, y = start = points.unbind(-1)
    for _ in range(200):
        r = x * x + y * y
        d = 1.0 + k1 * r + k2 * r**2 + k3 * r**3 + k4 * r**4
        moved_x = 2.0 * p1 * x * y + p2 * (r + 2.0 * x * x)
        moved_y = 2.0 * p2 * x * y + p1 * (r + 2.0 * y * y)
        x, y = (start[0] - moved_x) / d, (start[1] - moved_y) / d
    return torch.stack([x, y], dim=-1)


def true_directions(cameras: Cameras, indices: Tensor, offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Unit directions through pixels' centers, moved by (right, down) pixels, in float64."""
    number, row, column = indices.unbind(-1)
    focal = torch.cat([cameras.fx, cameras.fy], -1).double()[number]
    center = torch.cat([cameras.cx, cameras.cy], -1).double()[number]
    points = (torch.stack([column, row], -1) + 0.5 + torch.tensor(offset).double() - center) / focal
    if cameras.distortion_params is not None:
        points = _undistort(points, cameras.distortion_params.double()[number])
    angle = points.norm(dim=-1, keepdim=True)
    fisheye = torch.cat([points * torch.sinc(angle / torch.pi), angle.cos()], -1)
    perspective = torch.cat([points, torch.ones_like(angle)], -1)
    is_fisheye = cameras.camera_type[number] == FISHEYE
    # From OpenCV's axes, y down and z forward, to OpenGL's.
    local = torch.where(is_fisheye, fisheye, perspective) * torch.tensor([1.0, -1.0, -1.0])
    world = (cameras.camera_to_worlds[number, :, :3].double() @ local[..., None])[..., 0]
    return world / world.norm(dim=-1, keepdim=True)


def true_pixel_area(cameras: Cameras, indices: Tensor) -> Tensor:
    """Product of the distances to the directions one pixel further right and down, in float64."""
    here = true_directions(cameras, indices)
    sides = [(true_directions(cameras, indices, offset) - here).norm(dim=-1) for offset in ((1.0, 0.0), (0.0, 1.0))]
    return (sides[0] * sides[1])[:, None]
