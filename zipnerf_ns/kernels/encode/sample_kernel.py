"""The kernel of the gradient to the samples: where they lie, and how far they extend.

Needed when cameras are optimized or normals taken, so it is written for clarity: one lane a sample, all levels in a
loop, every result written once by its own lane, no atomics.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.kernels.encode.cells import corner_rows, load3, load_level, locate3
from zipnerf_ns.kernels.encode.prefilter import weight_and_slope


@triton.jit
@no_type_check
def _trilinear(corners, fraction):
    """Value between eight corners, x fastest, and its slopes along the three axes."""
    u, v, w = fraction
    c0, c1, c2, c3, c4, c5, c6, c7 = corners
    x0, x1, x2, x3 = c1 - c0, c3 - c2, c5 - c4, c7 - c6
    a0, a1, a2, a3 = c0 + u * x0, c2 + u * x1, c4 + u * x2, c6 + u * x3
    y0, y1 = a1 - a0, a3 - a2
    b0, b1 = a0 + v * y0, a2 + v * y1
    near, far = x0 + v * (x1 - x0), x2 + v * (x3 - x2)
    return b0 + w * (b1 - b0), near + w * (far - near), y0 + w * (y1 - y0), b1 - b0


@triton.jit
@no_type_check
def _slope_in_cube(position, slope, resolution):
    """A slope per cell as one per side of the cube; zero where the grid continues its outermost features."""
    cells = position * resolution - 0.5
    inside = (position >= 0.0) & (position <= 1.0) & (cells >= 0.0) & (cells <= resolution - 1.0)
    return tl.where(inside, slope * resolution, 0.0)


@triton.jit(do_not_specialize=["samples", "num_levels", "num_active", "step", "stride", "weight_step", "weight_stride"])
@no_type_check
def sample_kernel(
    table,
    positions,
    stds,
    levels,
    bandwidths,
    v_features,
    v_weights,
    v_positions,
    v_stds,
    samples,
    num_levels,
    num_active,
    step,
    stride,
    weight_step,
    weight_stride,
    SAMPLES: tl.constexpr,
    ROW: tl.constexpr,
    PREFILTER: tl.constexpr,
    XOR: tl.constexpr,
    HAS_FEATURES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cotangents of BLOCK samples' positions and stds.

    ``v_features`` and ``v_weights`` are indexed as features and weights are in ``forward_kernel``; one of them may be
    absent.
    """
    program = tl.program_id(0).to(tl.int64)
    numbers = program * BLOCK + tl.arange(0, BLOCK)
    mask = numbers < samples
    intervals = numbers // SAMPLES
    x, y, z = load3(positions + numbers * 3, mask)
    std = tl.load(stds + numbers, mask=mask, other=0.0)
    columns = tl.arange(0, ROW)[None, :]
    v_x, v_y = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    v_z, v_std = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for index in range(0, num_levels):
        level = load_level(levels, index)
        resolution = level[0].to(tl.float32)
        weight, by_std = weight_and_slope(std, resolution, tl.load(bandwidths + index), PREFILTER)
        v_weight = tl.zeros([BLOCK], tl.float32)
        if HAS_WEIGHTS:
            source = v_weights + intervals * weight_step + index * weight_stride.to(tl.int64)
            v_weight += tl.load(source, mask=mask, other=0.0)
        if HAS_FEATURES:
            active = mask & (index < num_active)
            source = v_features + (intervals * step + index * stride.to(tl.int64))[:, None] * ROW + columns
            v = tl.load(source, mask=active[:, None], other=0.0)
            cell, fraction = locate3((x, y, z), resolution)
            rows = corner_rows(cell, level, XOR)
            values = table + level[1].to(tl.int64) * ROW
            corners = ()
            for corner in tl.static_range(8):
                row = tl.load(values + (rows[corner][:, None] * ROW + columns), mask=active[:, None], other=0.0)
                corners = corners + (tl.sum(row * v, axis=1),)
            value, by_x, by_y, by_z = _trilinear(corners, fraction)
            v_weight += value
            v_x += weight * _slope_in_cube(x, by_x, resolution)
            v_y += weight * _slope_in_cube(y, by_y, resolution)
            v_z += weight * _slope_in_cube(z, by_z, resolution)
        v_std += v_weight * by_std
    target = v_positions + numbers * 3
    tl.store(target, v_x * (1.0 / SAMPLES), mask=mask)
    tl.store(target + 1, v_y * (1.0 / SAMPLES), mask=mask)
    tl.store(target + 2, v_z * (1.0 / SAMPLES), mask=mask)
    tl.store(v_stds + numbers, v_std * (1.0 / SAMPLES), mask=mask)
