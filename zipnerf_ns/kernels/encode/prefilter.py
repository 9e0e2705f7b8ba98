"""The prefilter on the device: what ``functional.hash_grid.prefilter_weights`` defines, and its slopes.

Where all samples are looked up, its parts are computed where they are the same: a sample's extent once for all levels,
a level's scale once for all samples, the weight of both. Where gradients to the samples are wanted, weight and slope
come of the std itself.
"""

from typing import no_type_check

import triton
import triton.language as tl

SQRT8 = tl.constexpr(2.8284271247461903)
MAX_EXPONENT = tl.constexpr(50.0)
"""functional.hash_grid.MAX_IPE_EXPONENT."""
MIN_STD = tl.constexpr(1e-20)
"""Keeps 1/std finite; erf saturates long before."""
TWO_OVER_SQRT_PI = tl.constexpr(1.1283791670955126)
MIN_CELLS = tl.constexpr(1e-3)
"""The floor of std in cells, below which functional.hash_grid.prefilter_weights has no slope."""


@triton.jit
@no_type_check
def erf(x):
    """erf for x >= 0 within 2e-7, in half the instructions of the library's.

    1 - 2^-p(x), with p a polynomial fitted to -log2(erfc(x)) on [0, 4], weighted by erfc; at 4 erf rounds to 1.
    """
    x = tl.minimum(x, 4.0)
    p = 4.5358596253208816e-05 * x - 0.00044550764141604304
    p = p * x + 0.0014894416090101004
    p = p * x + 0.0007746295304968953
    p = p * x - 0.02825368009507656
    p = p * x + 0.14848162233829498
    p = p * x + 0.9184163808822632
    p = p * x + 1.6279085874557495
    return 1.0 - tl.exp2(-(p * x))


@triton.jit
@no_type_check
def extent_of(std, PREFILTER: tl.constexpr):
    """What a sample's prefilter weight needs of its std, whatever the level."""
    if PREFILTER == "multisample":
        extent = 1.0 / (tl.maximum(std, MIN_STD) * SQRT8)
    else:
        extent = 0.5 * std * std
    return extent


@triton.jit
@no_type_check
def level_scale(bandwidths, index, resolution, PREFILTER: tl.constexpr):
    """What a level contributes to the prefilter weights of all samples: one scalar."""
    if PREFILTER == "multisample":
        scale = 1.0 / resolution
    else:
        scale = resolution * resolution * tl.load(bandwidths + index)
    return scale


@triton.jit
@no_type_check
def prefilter_weight(extent, scale, PREFILTER: tl.constexpr):
    """Share of a level that survives a sample's extent; see functional.hash_grid.prefilter_weights."""
    if PREFILTER == "multisample":
        weight = erf(extent * scale)
    elif PREFILTER == "ipe":
        weight = tl.exp(-tl.minimum(extent * scale, MAX_EXPONENT))
    else:
        weight = tl.full(extent.shape, 1.0, tl.float32)
    return weight


@triton.jit
@no_type_check
def weight_and_slope(std, resolution, bandwidth, PREFILTER: tl.constexpr):
    """The prefilter weight, and its derivative with respect to std."""
    cells = std * resolution
    nothing = tl.zeros(cells.shape, tl.float32)
    if PREFILTER == "multisample":
        floored = tl.maximum(cells, MIN_CELLS)
        x = 1.0 / (floored * SQRT8)
        slope = tl.exp(-x * x) * x * resolution / floored * -TWO_OVER_SQRT_PI
        result = erf(x), tl.where(cells < MIN_CELLS, 0.0, slope)
    elif PREFILTER == "ipe":
        exponent = 0.5 * bandwidth * cells * cells
        weight = tl.exp(-tl.minimum(exponent, MAX_EXPONENT))
        moving = exponent <= MAX_EXPONENT
        result = weight, tl.where(moving, -weight * bandwidth * cells * resolution, 0.0)
    else:
        result = nothing + 1.0, nothing
    return result
