"""What a small motion of a camera does to what it sees: preconditioners, and the motions that no pixel tells.

A camera's motion is six numbers: a shift and a turn about its own center (a rotation vector), both along the world's
axes. What it sees of a point is the direction to it, in radians, whatever the lens is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

DAMPING = 0.1
"""Share of its diagonal that is added to every Gram matrix (CamP's lambda, as its authors' configurations have it)."""
LEAST = 1e-8
"""The least that is added (CamP's mu)."""
NEAREST = 0.5
"""Distance of the nearest points that are looked at, over the cameras' spread; beyond, disparities are uniform."""


class Preconditioner(NamedTuple):
    """Coordinates of cameras' motions, or of lenses' errors, in which a unit in any direction moves what is seen by a
    radian."""

    matrix: Float[Tensor, "cameras numbers numbers"]
    """From these coordinates to motions; symmetric."""
    inverse: Float[Tensor, "cameras numbers numbers"]
    """From motions to these coordinates."""
    gauge: Float[Tensor, "cameras numbers kinds"]
    """Orthonormal, in these coordinates: motions of all cameras at once that are small similarities of the world."""

    def remove_gauge(self, values: Float[Tensor, "cameras numbers"]) -> Float[Tensor, "cameras numbers"]:
        """Coordinates without the part that is a similarity of the world: the nearest ones that have none."""
        shares = (self.gauge * values[..., None]).sum(dim=(0, 1))
        return values - (self.gauge * shares).sum(dim=-1)


def apply(
    matrices: Float[Tensor, "cameras numbers numbers"], values: Float[Tensor, "cameras numbers"]
) -> Float[Tensor, "cameras numbers"]:
    """Each camera's matrix times its vector, in full precision: a matrix product may be in TF32."""
    return (matrices * values[:, None, :]).sum(dim=-1)


def rotate(turns: Float[Tensor, "rays 3"], vectors: Float[Tensor, "rays 3"]) -> Float[Tensor, "rays 3"]:
    """Vectors turned by rotation vectors: Rodrigues' formula."""
    angle = _angle(turns)
    across = torch.linalg.cross(turns, vectors)
    back = torch.linalg.cross(turns, across)
    return vectors + torch.sinc(angle / math.pi) * across + 0.5 * torch.sinc(angle / (2.0 * math.pi)).square() * back


def se3_shift(turns: Float[Tensor, "rays 3"], shifts: Float[Tensor, "rays 3"]) -> Float[Tensor, "rays 3"]:
    """The shift of the exponential of se(3), in which the turn goes on while it is made."""
    angle = _angle(turns)
    across = torch.linalg.cross(turns, shifts)
    back = torch.linalg.cross(turns, across)
    last = (1.0 - torch.sinc(angle / math.pi)) / angle.square()
    return shifts + 0.5 * torch.sinc(angle / (2.0 * math.pi)).square() * across + last * back


def _angle(turns: Float[Tensor, "rays 3"]) -> Float[Tensor, "rays 1"]:
    # The root has no slope at zero, where there is nothing to turn by either.
    return turns.square().sum(dim=-1, keepdim=True).clamp_min(1e-12).sqrt()


def precondition(
    positions: Float[Tensor, "cameras 3"], directions: Float[Tensor, "cameras pixels 3"], damping: float = DAMPING
) -> Preconditioner:
    """CamP's preconditioners P = (J^T J + damping diag(J^T J) + mu)^(-1/2), in float64.

    J is the Jacobian of seen directions with respect to a camera's motion, over points on the rays of its pixels
    (Park et al., SIGGRAPH Asia 2023, section 4; in pixels there).

    Args:
        positions: the cameras' centers.
        directions: unit, world frame, of some pixels all over each camera's picture.
        damping: lambda.
    """
    positions, directions = positions.double(), directions.double()
    centered = positions - positions.mean(dim=0)
    spread = centered.square().sum(dim=-1).mean().sqrt()
    # Where all cameras stand in one place, nothing says how far the scene is.
    nearest = NEAREST * torch.where(spread > 0.0, spread, 1.0)
    gram = motion_gram(directions, 0.5 / nearest, 1.0 / (3.0 * nearest.square()))
    diagonal = torch.diagonal(gram, dim1=-2, dim2=-1)
    matrix, inverse = inverse_roots(gram + torch.diag_embed((damping * diagonal).clamp_min(LEAST)))
    whitened = (inverse @ similarity_motions(centered)).flatten(0, 1)
    basis, sizes, _ = torch.linalg.svd(whitened, full_matrices=False)
    # Cameras in one place are not moved by a change of scale.
    return Preconditioner(matrix, inverse, basis[:, sizes > 1e-9 * sizes[0]].view(len(positions), 6, -1))


def inverse_roots(
    gram: Float[Tensor, "cameras numbers numbers"],
) -> tuple[Float[Tensor, "cameras numbers numbers"], Float[Tensor, "cameras numbers numbers"]]:
    """The inverse square roots of symmetric matrices, and the roots themselves."""
    values, vectors = torch.linalg.eigh(gram)
    # Directions of float32 are a little longer or shorter than one, which leaves what is not seen a little below zero.
    roots = values.clamp_min(LEAST).sqrt()[:, None, :]
    matrix, inverse = ((vectors * scale) @ vectors.transpose(1, 2) for scale in (1.0 / roots, roots))
    return matrix, inverse


def motion_gram(
    directions: Float[Tensor, "cameras pixels 3"], disparity: Tensor, square: Tensor
) -> Float[Tensor, "cameras 6 6"]:
    """Mean of J^T J over points of the given mean disparity (1 / distance) and mean square of it, on rays of pixels.

    A point at distance s in direction d is seen to move by d x turn - (1 - d d^T) shift / s.
    """
    mean = directions.mean(dim=1)
    eye = torch.eye(3, dtype=directions.dtype, device=directions.device)
    across = eye - torch.einsum("cpi,cpj->cij", directions, directions) / directions.shape[1]
    # The matrix of d x ..., row by row.
    cross = torch.linalg.cross(mean[:, None, :].expand(-1, 3, -1), eye.expand(len(mean), 3, 3)).transpose(1, 2)
    mixed = -disparity * cross
    return torch.cat([torch.cat([square * across, mixed], dim=-1), torch.cat([mixed.mT, across], dim=-1)], dim=-2)


def similarity_motions(positions: Float[Tensor, "cameras 3"]) -> Float[Tensor, "cameras 6 7"]:
    """How cameras move under small shifts (3), turns (3) and a change of scale of the world about its origin."""
    eye = torch.eye(3, dtype=positions.dtype, device=positions.device).expand(len(positions), 3, 3)
    turned = torch.linalg.cross(eye, positions[:, None, :].expand(-1, 3, -1)).transpose(1, 2)
    shifts = torch.cat([eye, turned, positions[:, :, None]], dim=-1)
    turns = torch.cat([torch.zeros_like(eye), eye, torch.zeros_like(positions[:, :, None])], dim=-1)
    return torch.cat([shifts, turns], dim=-2)
