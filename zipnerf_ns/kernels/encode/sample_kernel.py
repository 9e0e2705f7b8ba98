"""The kernel of the gradient to the samples: where they lie, and how far they extend.

Needed when cameras are optimized or normals taken: one lane an interval, all levels in a loop, every result written
once by its own lane, no atomics. The cotangent of an interval's features is that of each of its samples, so that a
corner is one number to all samples in its cell; it is read again only where the next sample lies in another.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.kernels.encode.cells import corner_rows, differs, load3, load_level, locate3, locate_knots
from zipnerf_ns.kernels.encode.prefilter import weight_and_slope


@triton.jit
@no_type_check
def trilinear(corners, fraction):
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
def slope_in_cube(position, slope, resolution):
    """A slope per cell as one per side of the cube; zero where the grid continues its outermost features."""
    cells = position * resolution - 0.5
    inside = (position >= 0.0) & (position <= 1.0) & (cells >= 0.0) & (cells <= resolution - 1.0)
    return tl.where(inside, slope * resolution, 0.0)


@triton.jit
@no_type_check
def _values_of_rows(values, rows, v, columns, mask, ROW: tl.constexpr):
    """Each row times the features' cotangent; 0 where masked."""
    corners = ()
    for corner in tl.static_range(8):
        row = tl.load(values + (rows[corner][:, None] * ROW + columns), mask=mask[:, None], other=0.0)
        corners = corners + (tl.sum(row * v, axis=1),)
    return corners


@triton.jit
@no_type_check
def corner_values(values, cell, level, moment, v, columns, mask, XOR: tl.constexpr, ROW: tl.constexpr):
    """Each corner's features, between the two knots where there is time, times their cotangent; 0 where masked."""
    if moment is None:
        corners = _values_of_rows(values, corner_rows(cell, level, XOR), v, columns, mask, ROW)
    else:
        knots, shares = moment
        low = _values_of_rows(values, corner_rows(cell, level, XOR, knots[0]), v, columns, mask, ROW)
        high = _values_of_rows(values, corner_rows(cell, level, XOR, knots[1]), v, columns, mask, ROW)
        corners = ()
        for corner in tl.static_range(8):
            corners = corners + (shares[0] * low[corner] + shares[1] * high[corner],)
    return corners


@triton.jit
@no_type_check
def replace(corners, others, where):
    """The others' numbers in some lanes."""
    merged = ()
    for corner in tl.static_range(8):
        merged = merged + (tl.where(where, others[corner], corners[corner]),)
    return merged


@triton.jit(do_not_specialize=["intervals", "num_levels", "num_active", "step", "stride", "weight_step",
                               "weight_stride"])  # fmt: skip
@no_type_check
def sample_kernel(
    table,
    positions,
    stds,
    times,
    knots,
    shutter_weights,
    levels,
    bandwidths,
    v_features,
    v_weights,
    v_positions,
    v_stds,
    intervals,
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
    """Cotangents of the positions and stds of BLOCK intervals' samples.

    ``v_features`` and ``v_weights`` are indexed as features and weights are in ``forward_kernel``; one of them may be
    absent. ``times`` is None where levels do not change with time, and so are then ``knots`` and ``shutter_weights``.
    """
    TIMED: tl.constexpr = times is not None
    numbers = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = numbers < intervals
    columns = tl.arange(0, ROW)[None, :]
    zero = tl.zeros([BLOCK], tl.float32)
    xs, ys, zs, extents = (), (), (), ()
    v_xs, v_ys, v_zs, v_extents = (), (), (), ()
    for sample in tl.static_range(SAMPLES):
        x, y, z = load3(positions + (numbers * SAMPLES + sample) * 3, mask)
        std = tl.load(stds + numbers * SAMPLES + sample, mask=mask, other=0.0)
        xs, ys, zs, extents = xs + (x,), ys + (y,), zs + (z,), extents + (std,)
        v_xs, v_ys, v_zs, v_extents = v_xs + (zero,), v_ys + (zero,), v_zs + (zero,), v_extents + (zero,)
    if TIMED:
        time = tl.load(times + numbers, mask=mask, other=0.0)
    for index in range(0, num_levels):
        level = load_level(levels, index)
        resolution = level[0].to(tl.float32)
        bandwidth = tl.load(bandwidths + index)
        if TIMED:
            moment = locate_knots(time, knots, index)
            shutter_weight = tl.load(shutter_weights + index)
        else:
            moment = None
        v_mean = zero
        if HAS_WEIGHTS:
            source = v_weights + numbers * weight_step + index * weight_stride.to(tl.int64)
            v_mean += tl.load(source, mask=mask, other=0.0)
            if TIMED:
                v_mean *= shutter_weight
        if HAS_FEATURES:
            active = mask & (index < num_active)
            source = v_features + (numbers * step + index * stride.to(tl.int64))[:, None] * ROW + columns
            v = tl.load(source, mask=active[:, None], other=0.0)
            if TIMED:
                v *= shutter_weight
            values = table + level[1].to(tl.int64) * ROW
            cell, _ = locate3((xs[0], ys[0], zs[0]), resolution)
            corners = corner_values(values, cell, level, moment, v, columns, active, XOR, ROW)
        by_xs, by_ys, by_zs, by_extents = (), (), (), ()
        for sample in tl.static_range(SAMPLES):
            weight, by_std = weight_and_slope(extents[sample], resolution, bandwidth, PREFILTER)
            v_weight = v_mean
            if HAS_FEATURES:
                here, fraction = locate3((xs[sample], ys[sample], zs[sample]), resolution)
                moved = active & differs(cell, here)
                others = corner_values(values, here, level, moment, v, columns, moved, XOR, ROW)
                corners = replace(corners, others, moved)
                cell = here
                value, by_x, by_y, by_z = trilinear(corners, fraction)
                v_weight += value
                by_xs = by_xs + (v_xs[sample] + weight * slope_in_cube(xs[sample], by_x, resolution),)
                by_ys = by_ys + (v_ys[sample] + weight * slope_in_cube(ys[sample], by_y, resolution),)
                by_zs = by_zs + (v_zs[sample] + weight * slope_in_cube(zs[sample], by_z, resolution),)
            by_extents = by_extents + (v_extents[sample] + v_weight * by_std,)
        if HAS_FEATURES:
            v_xs, v_ys, v_zs = by_xs, by_ys, by_zs
        v_extents = by_extents
    for sample in tl.static_range(SAMPLES):
        target = v_positions + (numbers * SAMPLES + sample) * 3
        tl.store(target, v_xs[sample] * (1.0 / SAMPLES), mask=mask)
        tl.store(target + 1, v_ys[sample] * (1.0 / SAMPLES), mask=mask)
        tl.store(target + 2, v_zs[sample] * (1.0 / SAMPLES), mask=mask)
        tl.store(v_stds + numbers * SAMPLES + sample, v_extents[sample] * (1.0 / SAMPLES), mask=mask)
