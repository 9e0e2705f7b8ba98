"""Surface normals from a density: against its gradient, one a sample, weighted along a ray."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY


def density_normals(
    density: Callable[[Tensor], Tensor], positions: Float[Tensor, "*batch 3"], create_graph: bool = False
) -> Float[Tensor, "*batch 3"]:
    """Unit vectors against the density's gradient, out of matter; zero where the gradient is zero (Ref-NeRF, eq. 2).

    Any increasing function of the density has the same normals. Its logarithm is the better choice: a density spans
    twenty orders of magnitude, and the gradient of what is nearly empty vanishes in float32.

    A prefiltered density is the same with ``positions`` as shifts: the function adds each to all of its interval's
    samples, in the world frame and before the contraction, and is asked at zero.

    Args:
        density: from ``[*batch, 3]`` to ``[*batch]`` or ``[*batch, 1]``, each value a function of its position alone.
        positions: world frame, so that the normals are the world's too.
        create_graph: lets a loss reach the density's parameters through the normals.
    """
    # Rendering runs without gradients.
    with torch.enable_grad():
        leaf = positions.detach().requires_grad_()
        total = density(leaf).sum()
        (gradient,) = torch.autograd.grad(total, leaf, create_graph=create_graph)
    return unit_or_zero(-gradient)


def unit_or_zero(vectors: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Vectors of length one in the same directions; zero for zero and for what is not finite."""
    vectors = torch.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    # By the largest component first: squares of small or large components would leave float32's range.
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    scaled = vectors / largest.clamp_min(TINY)
    length = torch.sqrt(scaled.square().sum(dim=-1, keepdim=True).clamp_min(TINY))
    return torch.where(largest > TINY, scaled / length, 0.0)


def ray_normals(weights: Float[Tensor, "*batch n"], normals: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch 3"]:
    """Direction of the weighted sum of a ray's normals; zero for an empty ray.

    Args:
        weights: of the ray's intervals.
        normals: unit or zero.
    """
    return unit_or_zero((weights[..., None] * normals).sum(dim=-2))


def normal_colors(normals: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Components from [-1, 1] to [0, 1], as nerfstudio shows and exports normals; gray where there is none."""
    return 0.5 * (normals + 1.0)
