"""Emission-absorption along a ray: densities to weights, weights to distances (NeRF, eq. 3; Max, 1995)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY


def density_to_weights(
    density: Float[Tensor, "*batch n"], starts: Float[Tensor, "*batch n"], ends: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch n"]:
    """Share of the ray's color that each interval contributes (mip-NeRF, eq. 4); the sum is at most 1.

    Args:
        density: per world unit.
        starts, ends: adjoining intervals along the unit direction, world units; empty intervals weigh nothing.
    """
    optical_depth = density * (ends - starts).clamp_min(0.0)
    # A shifted sum, not an inclusive one less the term itself: an opaque term would round away all before it.
    before = torch.cat([torch.zeros_like(density[..., :1]), optical_depth[..., :-1].cumsum(dim=-1)], dim=-1)
    return torch.exp(-before) * -torch.expm1(-optical_depth)


def expected_distance(
    weights: Float[Tensor, "*batch n"], starts: Float[Tensor, "*batch n"], ends: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch 1"]:
    """Geometric mean of the intervals' middles under the normalized weights; the near end of an empty ray.

    Of logarithms, as mip-NeRF 360's code takes it: where the last interval ends at 1e6, a hundredth of the weight in it
    would make the plain mean of any ray thousands.
    """
    middles = 0.5 * (starts + ends)
    total = weights.sum(dim=-1, keepdim=True)
    mean = torch.exp((weights * middles.clamp_min(TINY).log()).sum(dim=-1, keepdim=True) / total.clamp_min(TINY))
    return torch.where(
        total > TINY, torch.minimum(torch.maximum(mean, starts[..., :1]), ends[..., -1:]), starts[..., :1]
    )


def median_distance(
    weights: Float[Tensor, "*batch n"], starts: Float[Tensor, "*batch n"], ends: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch 1"]:
    """Distance at which half of the ray's own total weight is reached, linear inside an interval.

    Unlike the mean it does not float between a thin foreground and its background.
    """
    cumulative = weights.cumsum(dim=-1)
    half = 0.5 * cumulative[..., -1:]
    index = torch.searchsorted(cumulative.contiguous(), half.contiguous()).clamp(max=weights.shape[-1] - 1)
    weight = weights.gather(-1, index)
    share = ((half - cumulative.gather(-1, index) + weight) / weight.clamp_min(TINY)).clamp(0.0, 1.0)
    start, end = starts.gather(-1, index), ends.gather(-1, index)
    return start + share * (end - start)
