"""Gradients scaled near the camera, against floaters (Philip and Deschaintre, "Floaters No More", EGSR 2023).

A camera's rays lie closer together the nearer they are to it, so a small volume close to a camera is met by far more
of them than the same volume at the subject, and gathers density that explains one photo and no other. Scaled by
the squared distance, a gradient is the same per volume wherever the volume lies.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def near_camera_scaling(
    starts: Float[Tensor, "*batch n"], ends: Float[Tensor, "*batch n"], full_distance: float = 1.0
) -> Float[Tensor, "*batch n"]:
    """Factors on the gradients of intervals: min(1, (t / full_distance)^2) (section 3), the square averaged over each.

    Args:
        starts, ends: of the intervals along the unit direction, world units.
        full_distance: where gradients are no longer reduced, world units.
    """
    s, e = starts / full_distance, ends / full_distance
    # The mean of t^2, not the square of a middle: then an interval's factor does not depend on how it is cut.
    return ((s * s + s * e + e * e) / 3.0).clamp(max=1.0)


class _ScaledGradient(torch.autograd.Function):
    """The first argument; its gradient is multiplied by the second."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scaling: Tensor) -> Tensor:
        ctx.save_for_backward(scaling)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, v_values: Tensor) -> tuple[Tensor, None]:
        (scaling,) = ctx.saved_tensors
        return v_values * scaling.to(v_values.dtype), None


def scale_gradient(
    values: Float[Tensor, "*batch channels"], scaling: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch channels"]:
    """The values unchanged; what flows back through them is multiplied by ``scaling``.

    Args:
        values: of samples, such as densities or colors.
        scaling: from :func:`near_camera_scaling`, one a sample; takes no gradient.
    """
    return _ScaledGradient.apply(values, scaling[..., None])
