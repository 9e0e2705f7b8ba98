"""Power-ladder spacing: from normalized distance s to metric distance t (Zip-NeRF, section 5)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY

SAMPLING_POWER = -1.5
"""Exponent of the ladder along which intervals are spaced (Zip-NeRF, section 5)."""
SAMPLING_PREMULTIPLIER = 2.0
"""Factor on t before the ladder (Zip-NeRF, section 5)."""
DISTORTION_POWER = -0.25
"""Exponent of the ladder in which the distortion loss measures distance (Zip-NeRF's supplement)."""
DISTORTION_PREMULTIPLIER = 1e4
"""Factor on t before the distortion loss's ladder (Zip-NeRF's supplement)."""


def power_ladder(x: Float[Tensor, "*shape"], power: float) -> Float[Tensor, "*shape"]:
    """P(x, p) = |p-1|/p ((x/|p-1| + 1)^p - 1), with unit slope at 0 (Zip-NeRF, section 5).

    Args:
        x: non-negative numbers.
        power: p, neither 0 nor 1 (those are limits that this project does not use).
    Raises:
        ValueError: for a power that is one of these.
    """
    if power in (0.0, 1.0):
        raise ValueError(f"power_ladder is not defined here for power={power}: use another exponent.")
    scale = abs(power - 1.0)
    # expm1/log1p keep the digits of small x, which the textbook form cancels away.
    return (scale / power) * torch.expm1(power * torch.log1p(x / scale))


def s_to_t(
    sdist: Float[Tensor, "*batch edges"], near: Float[Tensor, "*batch 1"], far: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch edges"]:
    """Normalized distance to distance along the ray, clipped into [near, far].

    s is linear in u = (2t/|p-1| + 1)^p as well as in P(2t, p), and u keeps relative precision near ``far``,
    where P is nearly constant.

    Args:
        sdist: normalized distance in [0, 1].
        near, far: the ray's ends in world units, 0 <= near < far.
    """
    u_near, u_far = _ladder_argument(near), _ladder_argument(far)
    u = u_near * (1.0 - sdist) + u_far * sdist
    t = torch.expm1(torch.log(u.clamp_min(TINY)) / SAMPLING_POWER) * _HALF_SCALE
    return torch.minimum(torch.maximum(t, near), far)


def distortion_distance(tdist: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The curved distance in which the distortion loss compares samples (Zip-NeRF's supplement)."""
    return power_ladder(DISTORTION_PREMULTIPLIER * tdist, DISTORTION_POWER)


_HALF_SCALE = abs(SAMPLING_POWER - 1.0) / SAMPLING_PREMULTIPLIER


def _ladder_argument(t: Tensor) -> Tensor:
    return torch.exp(SAMPLING_POWER * torch.log1p(t / _HALF_SCALE))
