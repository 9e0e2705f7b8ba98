"""Elementary functions whose value *and* gradient stay finite."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MAX_EXPONENT = 15.0
"""exp(15) = 3.3e6 per world unit: opaque within a ten-thousandth of the scene's radius, far from float32's limit."""

TINY = 1e-20
"""Guards divisions of non-negative float32 numbers; its square root and its reciprocal are still normal numbers."""


class _BoundedExp(torch.autograd.Function):
    """exp of the bounded argument, with that same bounded number as its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.exp(x.clamp(max=MAX_EXPONENT))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, v_y: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return v_y * y


def bounded_exp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(min(x, MAX_EXPONENT)) whose gradient does not vanish above the bound.

    A plain clamp would have derivative zero there, and a density that once shot up could never come down again.
    """
    return _BoundedExp.apply(x)


def log_lerp(progress: float, start: float, end: float) -> float:
    """Interpolate log-linearly between two positive numbers; ``progress`` is clipped into [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    return float(start * (end / start) ** progress)
