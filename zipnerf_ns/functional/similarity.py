"""Similarities between two sets of the same cameras: x -> scale * rotation x + translation.

Optimized cameras and the scene that is learned with them may drift together by any similarity without a pixel changing:
held-out cameras have to follow before they can be compared with anything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

COINCIDENT = 1e-9
"""Spread of positions, over their distance from the origin or 1, below which they say nothing about scale."""


class Similarity(NamedTuple):
    """x -> scale * rotation x + translation."""

    scale: Float[Tensor, ""]
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]
    """Shift, in the units of the target."""

    def inverse(self) -> Similarity:
        """The similarity back."""
        back = torch.linalg.inv(self.rotation)
        return Similarity(1.0 / self.scale, back, -(back @ self.translation) / self.scale)

    def of_points(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points moved by it, in their dtype."""
        scale, rotation, translation = (value.to(points) for value in self)
        return scale * (points @ rotation.T) + translation


def align_cameras(source: Float[Tensor, "cameras 3 4"], target: Float[Tensor, "cameras 3 4"]) -> Similarity:
    """The similarity that best moves one set of cameras onto another, in float64.

    Umeyama's closed form (PAMI 1991) on the positions, each set divided by its spread, with the orientations' three
    axes beside them: a radian then costs as much as a shift by the spread. So there is no case without an answer: few
    cameras, or cameras on a line, are told from their mirror image by where they look. Scale and translation follow
    from the positions; cameras that are all in one place keep scale 1.

    Args:
        source, target: camera-to-world matrices of the same cameras, in the same order.
    Raises:
        ValueError: if there is no camera.
    """
    if len(source) == 0:
        raise ValueError("without a camera there is nothing to align.")
    source, target = source.double(), target.double()
    center_x, x = _centered(source[:, :, 3])
    center_y, y = _centered(target[:, :, 3])
    spread_x, spread_y = x.square().sum().sqrt(), y.square().sum().sqrt()
    has_scale = bool(spread_x > COINCIDENT * (1.0 + center_x.norm())) and bool(
        spread_y > COINCIDENT * (1.0 + center_y.norm())
    )
    products = torch.einsum("nij,nkj->ik", target[:, :, :3], source[:, :, :3]) / len(source)
    if has_scale:
        products = products + torch.einsum("ni,nk->ik", y / spread_y, x / spread_x)
    u, _, vh = torch.linalg.svd(products)
    # The nearest rotation, not the nearest orthogonal matrix, which may be a reflection.
    signs = torch.ones(3, dtype=u.dtype, device=u.device)
    signs[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    rotation = (u * signs) @ vh
    scale = torch.ones((), dtype=x.dtype, device=x.device)
    if has_scale:
        # Positions that no rotation brings near each other would ask for a negative scale.
        scale = (torch.einsum("ni,ij,nj->", y, rotation, x) / spread_x.square()).clamp_min(COINCIDENT)
    return Similarity(scale, rotation, center_y - scale * (rotation @ center_x))


def move_cameras(similarity: Similarity, poses: Float[Tensor, "cameras 3 4"]) -> Float[Tensor, "cameras 3 4"]:
    """Camera-to-world matrices moved by a similarity: orientations turn, positions also scale; the poses' dtype."""
    scale, rotation, translation = similarity
    wide = poses.to(rotation.device, rotation.dtype)
    positions = scale * (rotation @ wide[:, :, 3:]) + translation[:, None]
    return torch.cat([rotation @ wide[:, :, :3], positions], dim=-1).to(poses)


def move_rays(
    similarity: Similarity, origins: Float[Tensor, "*batch 3"], directions: Float[Tensor, "*batch 3"]
) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch 3"]]:
    """Rays moved by a similarity; directions only turn."""
    return similarity.of_points(origins), directions @ similarity.rotation.to(directions).T


def pose_errors(
    found: Float[Tensor, "cameras 3 4"], truth: Float[Tensor, "cameras 3 4"]
) -> tuple[Float[Tensor, "cameras"], Float[Tensor, "cameras"]]:
    """How far cameras are turned (degrees) and shifted (world units) against their true poses, in float64."""
    found, truth = found.double(), truth.double()
    # The chord between rotation matrices: unlike the trace's arc cosine it keeps its digits at small angles.
    chord = (found[:, :, :3] - truth[:, :, :3]).flatten(1).norm(dim=-1) / 8.0**0.5
    degrees = torch.rad2deg(2.0 * torch.asin(chord.clamp(max=1.0)))
    return degrees, (found[:, :, 3] - truth[:, :, 3]).norm(dim=-1)


def angle(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, ""]:
    """Angle by which a rotation turns, degrees."""
    chord = (rotation - torch.eye(3, dtype=rotation.dtype, device=rotation.device)).norm() / 8.0**0.5
    return torch.rad2deg(2.0 * torch.asin(chord.clamp(max=1.0)))


def _centered(points: Float[Tensor, "points 3"]) -> tuple[Float[Tensor, "3"], Float[Tensor, "points 3"]]:
    center = points.mean(dim=0)
    return center, points - center
