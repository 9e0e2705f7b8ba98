"""Linear splines along a ray, and the box blur of a histogram that the anti-aliased interlevel loss needs.

The blur of a step function p with a box of half-width r is, with F the integral of p and H the integral of F,

    blur(x) = (F(x+r) - F(x-r)) / 2r,        its integral up to q = (H(q+r) - H(q-r)) / 2r.

F is piecewise linear and H piecewise quadratic on p's own fenceposts, so the mass that the blurred histogram puts
between any two queries takes two look-ups in H: nothing has to be sorted. (Zip-NeRF, section 4, builds the blurred
density's own knots by a sort; the result is the same.)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY


def integrate_linspline(
    knots: Float[Tensor, "*batch k"], values: Float[Tensor, "*batch k"]
) -> Float[Tensor, "*batch k"]:
    """Integral of the linear spline from the first knot up to each knot (0 at the first)."""
    areas = 0.5 * (values[..., 1:] + values[..., :-1]) * knots.diff(dim=-1)
    return torch.cat([torch.zeros_like(knots[..., :1]), areas.cumsum(dim=-1)], dim=-1)


def interpolate_integral(
    queries: Float[Tensor, "*batch q"],
    knots: Float[Tensor, "*batch k"],
    values: Float[Tensor, "*batch k"],
    integral: Float[Tensor, "*batch k"],
) -> Float[Tensor, "*batch q"]:
    """Value at ``queries`` of the integral of a linear spline that is constant beyond its end knots.

    Args:
        queries: where to evaluate, any order.
        knots: increasing; coinciding knots are allowed.
        values: the spline at the knots.
        integral: :func:`integrate_linspline` of the two.
    """
    last = knots.shape[-1] - 2
    left = (torch.searchsorted(knots.contiguous(), queries.contiguous(), right=True) - 1).clamp(0, last)
    k0, k1 = knots.gather(-1, left), knots.gather(-1, left + 1)
    v0, v1 = values.gather(-1, left), values.gather(-1, left + 1)
    width = k1 - k0
    inside = torch.minimum(torch.maximum(queries, k0), k1) - k0
    slope = (v1 - v0) / width.clamp_min(TINY)
    # Outside the knots the spline continues with its end value.
    outside = torch.minimum(queries - k0, torch.zeros_like(k0)) * v0 + torch.relu(queries - k1) * v1
    return integral.gather(-1, left) + inside * (v0 + 0.5 * slope * inside) + outside


def blurred_resample(
    queries: Float[Tensor, "*batch q"],
    sdist: Float[Tensor, "*batch edges"],
    weights: Float[Tensor, "*batch edges-1"],
    halfwidth: float,
) -> Float[Tensor, "*batch q-1"]:
    """Mass between successive ``queries`` of a histogram after a box blur (Zip-NeRF, section 4).

    Computed in float64, and rounded to the weights' dtype.

    Args:
        queries: increasing fenceposts, normalized distance.
        sdist: the histogram's fenceposts, normalized distance.
        weights: mass of each interval.
        halfwidth: half-width of the box, normalized distance; > 0.
    Raises:
        ValueError: if ``halfwidth`` is not positive.
    """
    if not halfwidth > 0.0:
        raise ValueError(f"halfwidth must be positive, got {halfwidth}: without a blur use stepfun.resample.")
    # Integrals near 1 are divided by the width of the blur: in float32 their rounding (6e-8) would become 1e-5 of a
    # weight, and a proposal that covers the histogram would be taught by it.
    dtype = weights.dtype
    queries, sdist, weights = queries.double(), sdist.double(), weights.double()
    cdf = torch.cat([torch.zeros_like(weights[..., :1]), weights.cumsum(dim=-1)], dim=-1)
    integral = integrate_linspline(sdist, cdf)
    both = torch.cat([queries + halfwidth, queries - halfwidth], dim=-1)
    upper, lower = interpolate_integral(both, sdist, cdf, integral).chunk(2, dim=-1)
    blurred_cdf = (upper - lower) / (2.0 * halfwidth)
    return blurred_cdf.diff(dim=-1).clamp_min(0.0).to(dtype)
