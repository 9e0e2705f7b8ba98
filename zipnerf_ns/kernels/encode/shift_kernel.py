"""The kernel of the gradient to where intervals are read: to their shifts, which all of an interval's samples share.

Samples are made from cones as in the table kernels, so that nothing of them exists in memory; a program works on one
level, whose part of the table is then in the cache, and leaves that level's share of each interval's gradient.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.kernels.encode.cells import differs, load_level, locate3
from zipnerf_ns.kernels.encode.cones import close_of, prepare, sample_of
from zipnerf_ns.kernels.encode.prefilter import level_scale, prefilter_weight
from zipnerf_ns.kernels.encode.sample_kernel import corner_values, replace, slope_in_cube, trilinear


@triton.jit
@no_type_check
def _add_slopes(sums, corners, fraction, weight, point, resolution):
    """Adds a sample's slopes along the three axes, times its prefilter weight."""
    _, by_x, by_y, by_z = trilinear(corners, fraction)
    return (
        sums[0] + weight * slope_in_cube(point[0], by_x, resolution),
        sums[1] + weight * slope_in_cube(point[1], by_y, resolution),
        sums[2] + weight * slope_in_cube(point[2], by_z, resolution),
    )


@triton.jit(do_not_specialize=["intervals", "per_ray", "step", "stride", "channel_stride"])
@no_type_check
def shift_kernel(
    table,
    origins,
    directions,
    radius,
    tdist,
    turns,
    aabb,
    shifts,
    levels,
    bandwidths,
    v_features,
    v_shifts,
    intervals,
    per_ray,
    step,
    stride,
    channel_stride,
    gain,
    close,
    SAMPLES: tl.constexpr,
    ROW: tl.constexpr,
    PREFILTER: tl.constexpr,
    BOXED: tl.constexpr,
    TURNED: tl.constexpr,
    CLOSE: tl.constexpr,
    XOR: tl.constexpr,
    BRANCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One level's cotangents of the shifts of BLOCK intervals: ``v_shifts`` is [levels, axes, intervals].

    ``v_features`` is indexed as in ``backward_kernel``, and its cotangent multiplied by ``gain``; with CLOSE, samples
    within ``close`` cells are one, see ``close_of``.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    index = tl.program_id(1)
    lanes = tl.arange(0, BLOCK)
    mask = lanes < intervals - first
    columns = tl.arange(0, ROW)[None, :]
    source = prepare(
        origins, directions, radius, tdist, turns, aabb, shifts, first, lanes, mask, per_ray, SAMPLES, True, BOXED,
        TURNED,
    )  # fmt: skip
    level = load_level(levels, index)
    resolution = level[0].to(tl.float32)
    scale = level_scale(bandwidths, index, resolution, PREFILTER)
    values = table + level[1].to(tl.int64) * ROW
    cotangent = v_features + first * step + index * stride.to(tl.int64)
    v = tl.load(cotangent + (lanes * step)[:, None] + columns * channel_stride, mask=mask[:, None], other=0.0)
    count, spread = SAMPLES, 1.0
    if CLOSE:
        count, spread = close_of(source, resolution, close, mask, SAMPLES)
    v = v.to(tl.float32) * (gain / count)
    live = mask & (tl.max((v != 0.0).to(tl.int32), axis=1) > 0)
    point, extent = sample_of(source, 0, spread, SAMPLES, PREFILTER, True, BOXED, True)
    cell, fraction = locate3(point, resolution)
    corners = corner_values(values, cell, level, None, v, columns, live, XOR, ROW)
    zero = tl.zeros([BLOCK], tl.float32)
    weight = prefilter_weight(extent, scale, PREFILTER)
    sums = _add_slopes((zero, zero, zero), corners, fraction, weight, point, resolution)
    for sample in range(1, count):
        point, extent = sample_of(source, sample, spread, SAMPLES, PREFILTER, True, BOXED, True)
        here, fraction = locate3(point, resolution)
        moved = live & differs(cell, here)
        if BRANCH:
            # One instruction in a program of a single warp.
            is_needed = tl.max(moved.to(tl.int32), axis=0) > 0
        else:
            is_needed = True
        if is_needed:
            others = corner_values(values, here, level, None, v, columns, moved, XOR, ROW)
            corners = replace(corners, others, moved)
        weight = prefilter_weight(extent, scale, PREFILTER)
        sums = _add_slopes(sums, corners, fraction, weight, point, resolution)
        cell = here
    target = v_shifts + index.to(tl.int64) * 3 * intervals + first + lanes
    for axis in tl.static_range(3):
        tl.store(target + axis * intervals.to(tl.int64), sums[axis], mask=mask)
