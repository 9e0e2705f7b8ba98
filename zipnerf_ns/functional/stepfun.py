"""Histograms along a ray: sampling intervals from them, moving them onto other fenceposts, and their spread."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY

MIN_ANNEALED_WEIGHT = 1e-8
"""Floor of a weight before annealing: an empty histogram is then sampled evenly over its intervals."""


def sample_intervals(
    sdist: Float[Tensor, "*batch edges"],
    weights: Float[Tensor, "*batch edges-1"],
    num_samples: int,
    jitter: Float[Tensor, "*batch 1"] | None = None,
    anneal: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "*batch {num_samples}+1"]:
    """Fenceposts of ``num_samples`` intervals drawn from a histogram on [0, 1] (Zip-NeRF, section 4; mip-NeRF 360).

    The centers are drawn by inverting the cumulative distribution of ``weights ** anneal``; fenceposts are the
    midpoints of successive centers, and the two outer ones mirror their neighbor about the outer center.

    Args:
        sdist: the histogram's fenceposts, normalized distance.
        weights: its mass, not necessarily normalized.
        num_samples: intervals to draw, at least 2.
        jitter: one number in [0, 1) a ray, which moves all its centers together; ``None`` puts each center in the
            middle of its share of the distribution.
        anneal: exponent on the weights, 0 (ignore them) to 1.
    Raises:
        ValueError: if ``num_samples`` is below 2.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}.")
    offset = torch.full_like(sdist[..., :1], 0.5) if jitter is None else jitter
    steps = torch.arange(num_samples, device=sdist.device, dtype=sdist.dtype)
    centers = invert_cdf((steps + offset) / num_samples, sdist, annealed(sdist, weights, anneal))
    middles = 0.5 * (centers[..., 1:] + centers[..., :-1])
    first = 2.0 * centers[..., :1] - middles[..., :1]
    last = 2.0 * centers[..., -1:] - middles[..., -1:]
    fenceposts = torch.cat([first, middles, last], dim=-1)
    # Clipping to the histogram's own ends keeps the intervals inside the domain whatever the jitter.
    return torch.minimum(torch.maximum(fenceposts, sdist[..., :1]), sdist[..., -1:])


def annealed(
    sdist: Float[Tensor, "*batch edges"],
    weights: Float[Tensor, "*batch edges-1"],
    anneal: float | Float[Tensor, ""],
) -> Float[Tensor, "*batch edges-1"]:
    """weights ** anneal, zero for empty intervals, normalized to sum to one (mip-NeRF 360, section 4)."""
    raised = torch.where(sdist.diff(dim=-1) > 0.0, weights.clamp_min(MIN_ANNEALED_WEIGHT) ** anneal, 0.0)
    return raised / raised.sum(dim=-1, keepdim=True).clamp_min(TINY)


def invert_cdf(
    u: Float[Tensor, "*batch q"], sdist: Float[Tensor, "*batch edges"], weights: Float[Tensor, "*batch edges-1"]
) -> Float[Tensor, "*batch q"]:
    """Positions at which the cumulative mass of a normalized histogram reaches ``u`` in [0, 1]."""
    cdf = torch.cat([torch.zeros_like(weights[..., :1]), weights.cumsum(dim=-1)], dim=-1)
    # Rounding must not leave the end below 1: u just under 1 would then have no interval.
    cdf = cdf / cdf[..., -1:].clamp_min(TINY)
    last = sdist.shape[-1] - 2
    left = (torch.searchsorted(cdf, u.contiguous(), right=True) - 1).clamp(0, last)
    c0, c1 = cdf.gather(-1, left), cdf.gather(-1, left + 1)
    s0, s1 = sdist.gather(-1, left), sdist.gather(-1, left + 1)
    return s0 + (s1 - s0) * ((u - c0) / (c1 - c0).clamp_min(TINY)).clamp(0.0, 1.0)


def resample(
    queries: Float[Tensor, "*batch q"], sdist: Float[Tensor, "*batch edges"], weights: Float[Tensor, "*batch edges-1"]
) -> Float[Tensor, "*batch q-1"]:
    """Mass of a histogram between successive ``queries`` (mass spread evenly inside each interval)."""
    cdf = torch.cat([torch.zeros_like(weights[..., :1]), weights.cumsum(dim=-1)], dim=-1)
    last = sdist.shape[-1] - 2
    left = (torch.searchsorted(sdist.contiguous(), queries.contiguous(), right=True) - 1).clamp(0, last)
    s0, s1 = sdist.gather(-1, left), sdist.gather(-1, left + 1)
    share = ((queries - s0) / (s1 - s0).clamp_min(TINY)).clamp(0.0, 1.0)
    return torch.lerp(cdf.gather(-1, left), cdf.gather(-1, left + 1), share).diff(dim=-1).clamp_min(0.0)


def distortion(
    fenceposts: Float[Tensor, "*batch edges"], weights: Float[Tensor, "*batch edges-1"]
) -> Float[Tensor, "*batch"]:
    """Expected distance |x - y| of two points drawn from a ray's histogram (mip-NeRF 360, eq. 15).

    Prefix sums replace the paper's double sum, which works because the midpoints are in order.

    Args:
        fenceposts: increasing, in whatever unit the distance is to be measured.
        weights: mass of each interval, not normalized: the result scales with its square.
    """
    middles = 0.5 * (fenceposts[..., 1:] + fenceposts[..., :-1])
    mass_before = weights.cumsum(dim=-1) - weights
    moment = weights * middles
    moment_before = moment.cumsum(dim=-1) - moment
    between = 2.0 * (weights * (middles * mass_before - moment_before)).sum(dim=-1)
    within = (weights.square() * fenceposts.diff(dim=-1)).sum(dim=-1) / 3.0
    return between + within
