"""The kernels between table and features: look-up, and its transpose, the scatter of the features' cotangent.

One lane works on one interval, and makes its samples anew for every level of a program; consecutive lanes are
consecutive intervals of a ray. Both kernels sum the corner weights of consecutive samples that lie in one cell before
they touch memory, because the samples of an interval mostly share their cell: six look-ups or atomics become one.
Instructions count as much as memory here, so whatever does not depend on the level is computed before the level loop,
and with BRANCH a program that is a single warp skips an access that none of its lanes makes.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.kernels.encode.access import (
    WINDOW,
    block_of,
    columns_of,
    first_column_of,
    first_value,
    gather,
    outer,
    scatter,
    split_four,
    sum_runs,
)
from zipnerf_ns.kernels.encode.cells import (
    continue_run,
    corner_rows,
    corner_weights,
    differs,
    key_of,
    load_level,
    load_times,
    locate3,
    locate_knots,
)
from zipnerf_ns.kernels.encode.cones import close_of, keep_samples, kept_sample, lanes_of, prepare, sample_of
from zipnerf_ns.kernels.encode.prefilter import level_scale, prefilter_weight


@triton.jit
@no_type_check
def _gather(
    values, cell, level, moment, sums, columns, mask,
    XOR: tl.constexpr, ROW: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What the corners of a cell give; where there is time, between its two knots."""
    if moment is None:
        total = gather(values, corner_rows(cell, level, XOR), sums, columns, mask, ROW, WIDE, MASKED)
    else:
        knots, shares = moment
        total = shares[0][:, None] * gather(
            values, corner_rows(cell, level, XOR, knots[0]), sums, columns, mask, ROW, WIDE, MASKED
        )
        total += shares[1][:, None] * gather(
            values, corner_rows(cell, level, XOR, knots[1]), sums, columns, mask, ROW, WIDE, MASKED
        )
    return total


@triton.jit
@no_type_check
def _scatter_between(
    target, cell, level, moment, values, columns, mask, XOR: tl.constexpr, ROW: tl.constexpr, WIDE: tl.constexpr
):
    """The transpose of ``_gather`` where there is time, for each corner's values."""
    knots, shares = moment
    for side in tl.static_range(2):
        scaled = ()
        for corner in tl.static_range(8):
            scaled = scaled + (shares[side][:, None] * values[corner],)
        scatter(target, corner_rows(cell, level, XOR, knots[side]), scaled, columns, mask, ROW, WIDE)


@triton.jit(do_not_specialize=[
    "intervals", "per_ray", "begin", "end", "step", "stride", "channel_stride", "weight_step", "weight_stride"
])  # fmt: skip
@no_type_check
def forward_kernel(
    table,
    origins,
    directions,
    radius,
    tdist,
    turns,
    aabb,
    shifts,
    times,
    knots,
    shutter_weights,
    levels,
    bandwidths,
    features,
    weights,
    weight_scales,
    intervals,
    per_ray,
    begin,
    end,
    step,
    stride,
    channel_stride,
    weight_step,
    weight_stride,
    table_scale,
    close,
    SAMPLES: tl.constexpr,
    ROW: tl.constexpr,
    COLUMNS: tl.constexpr,
    PREFILTER: tl.constexpr,
    CONES: tl.constexpr,
    BOXED: tl.constexpr,
    TURNED: tl.constexpr,
    SCALED: tl.constexpr,
    CLOSE: tl.constexpr,
    XOR: tl.constexpr,
    READ: tl.constexpr,
    MERGE: tl.constexpr,
    BRANCH: tl.constexpr,
    WIDE: tl.constexpr,
    LEVELS: tl.constexpr,
    RAYS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Features and mean prefilter weights of BLOCK intervals, of RAYS rays, at LEVELS of the levels in [begin, end).

    A table row has ROW values, of which a program reads COLUMNS. Feature k of an interval at a level is found at
    interval * step + level * stride + k * channel_stride, its weight at interval * weight_step + level * weight_stride.
    Without READ the features are zeros. SCALED stores weight features, (2w - 1) * weight_scales[level], not weights.
    With CLOSE, samples within ``close`` cells of a level are one; see ``close_of``.
    ``times`` is None where levels do not change with time, and so are then ``knots`` and ``shutter_weights``.
    """
    SHIFTED: tl.constexpr = shifts is not None
    TIMED: tl.constexpr = times is not None
    first, lanes = lanes_of(block_of(ROW, COLUMNS).to(tl.int64), per_ray, RAYS, BLOCK)
    mask = lanes < intervals - first
    columns = columns_of(ROW, COLUMNS)
    source = prepare(
        origins, directions, radius, tdist, turns, aabb, shifts, first, lanes, mask, per_ray, SAMPLES, CONES, BOXED,
        TURNED,
    )  # fmt: skip
    if TIMED:
        time = load_times(times, first, lanes, mask, per_ray)
    KEEPS: tl.constexpr = LEVELS > 1 and CONES and SAMPLES > 1
    if KEEPS:
        kept = keep_samples(source, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED)
    begin += tl.program_id(1) * LEVELS
    for index in range(begin, tl.minimum(begin + LEVELS, end)):
        level = load_level(levels, index)
        resolution = level[0].to(tl.float32)
        scale = level_scale(bandwidths, index, resolution, PREFILTER)
        if TIMED:
            moment = locate_knots(time, knots, index)
        else:
            moment = None
        values = table + first_value(level, ROW, WIDE)
        total = tl.zeros([BLOCK, COLUMNS], tl.float32)
        count, spread = SAMPLES, 1.0
        if CLOSE:
            count, spread = close_of(source, resolution, close, mask, SAMPLES)
        if KEEPS:
            point, extent = kept_sample(kept, 0, spread, SAMPLES, CLOSE)
        else:
            point, extent = sample_of(source, 0, spread, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED)
        mean = prefilter_weight(extent, scale, PREFILTER)
        if READ:
            cell, fraction = locate3(point, resolution)
            sums = corner_weights(fraction, mean)
        for sample in range(1, count):
            if KEEPS:
                point, extent = kept_sample(kept, sample, spread, SAMPLES, CLOSE)
            else:
                point, extent = sample_of(source, sample, spread, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED)
            weight = prefilter_weight(extent, scale, PREFILTER)
            mean += weight
            if READ:
                here, fraction = locate3(point, resolution)
                shares = corner_weights(fraction, weight)
                moved = differs(cell, here)
                if BRANCH and MERGE:
                    # One instruction in a program of a single warp.
                    is_needed = tl.max(moved.to(tl.int32), axis=0) > 0
                else:
                    is_needed = True
                if is_needed:
                    total += _gather(values, cell, level, moment, sums, columns, moved, XOR, ROW, WIDE, MERGE)
                sums = continue_run(sums, shares, moved) if MERGE else shares
                cell = here
        if READ:
            total += _gather(values, cell, level, moment, sums, columns, mask, XOR, ROW, WIDE, False)
        target = features + first * step + index * stride.to(tl.int64)
        if TIMED:
            shutter_weight = tl.load(shutter_weights + index)
            total *= shutter_weight
            mean *= shutter_weight
        total *= table_scale / count
        mean *= 1.0 / count
        if COLUMNS == 4:
            # One by one: lanes then write neighbors, without handing them to each other first.
            parts = split_four(total)
            target += lanes * step + first_column_of(ROW, COLUMNS) * channel_stride
            for column in tl.static_range(4):
                tl.store(target + column * channel_stride, parts[column], mask=mask)
        else:
            tl.store(target + ((lanes * step)[:, None] + columns * channel_stride), total, mask=mask[:, None])
        if SCALED:
            mean = (2.0 * mean - 1.0) * tl.load(weight_scales + index)
        target = weights + first * weight_step + index * weight_stride.to(tl.int64)
        tl.store(target + lanes * weight_step, mean, mask=mask)


@triton.jit(do_not_specialize=[
    "intervals", "per_ray", "begin", "end", "step", "stride", "channel_stride", "copied", "copy_size"
])  # fmt: skip
@no_type_check
def backward_kernel(
    v_table,
    origins,
    directions,
    radius,
    tdist,
    turns,
    aabb,
    shifts,
    times,
    knots,
    shutter_weights,
    levels,
    bandwidths,
    v_features,
    scales,
    intervals,
    per_ray,
    begin,
    end,
    step,
    stride,
    channel_stride,
    copied,
    copy_size,
    gain,
    close,
    SAMPLES: tl.constexpr,
    ROW: tl.constexpr,
    COLUMNS: tl.constexpr,
    PREFILTER: tl.constexpr,
    CONES: tl.constexpr,
    BOXED: tl.constexpr,
    TURNED: tl.constexpr,
    CLOSE: tl.constexpr,
    EXACT: tl.constexpr,
    XOR: tl.constexpr,
    MERGE: tl.constexpr,
    BRANCH: tl.constexpr,
    ALONG_RAY: tl.constexpr,
    WIDE: tl.constexpr,
    COPIES: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the features' cotangent, times ``gain``, to the table's gradient: the transpose of ``forward_kernel``.

    With ALONG_RAY, what an interval has left in its last cell is first summed with its neighbors' in the same cell
    (a segmented scan over the lanes), and only the last lane of such a run writes. At coarse levels, where a whole
    ray crosses a handful of cells that all rays share, this is what keeps thousands of lanes off one address. For the
    same reason the ``copied`` first levels have COPIES gradients, one behind the other, ``copy_size`` windows each: the
    table's own is the last, and blocks take turns.

    With EXACT, ``v_table`` is the gradient of one level alone, in integers: cotangents are multiplied by the level's
    scale, a power of two, and rounded when they are added.
    """
    SHIFTED: tl.constexpr = shifts is not None
    TIMED: tl.constexpr = times is not None
    block = block_of(ROW, COLUMNS)
    first = block.to(tl.int64) * BLOCK
    copy = (block % COPIES).to(tl.int64) * copy_size * WINDOW
    lanes = tl.arange(0, BLOCK)
    remaining = tl.minimum(intervals - first, BLOCK).to(tl.int32)
    mask = lanes < remaining
    columns = columns_of(ROW, COLUMNS)
    source = prepare(
        origins, directions, radius, tdist, turns, aabb, shifts, first, lanes, mask, per_ray, SAMPLES, CONES, BOXED,
        TURNED,
    )  # fmt: skip
    if TIMED:
        time = load_times(times, first, lanes, mask, per_ray)
    if ALONG_RAY:
        previous, following = tl.maximum(lanes - 1, 0), tl.minimum(lanes + 1, BLOCK - 1)
        is_last = lanes + 1 >= remaining
    begin += tl.program_id(1) * LEVELS
    for index in range(begin, tl.minimum(begin + LEVELS, end)):
        level = load_level(levels, index)
        resolution = level[0].to(tl.float32)
        scale = level_scale(bandwidths, index, resolution, PREFILTER)
        target = v_table
        if not EXACT:
            target += first_value(level, ROW, WIDE) - tl.where(index < copied, copy, 0)
        cotangent = v_features + first * step + index * stride.to(tl.int64)
        offsets = (lanes * step)[:, None] + columns * channel_stride
        v = tl.load(cotangent + offsets, mask=mask[:, None], other=0.0).to(tl.float32)
        # Intervals behind a surface, or whose loss is saturated, send back exact zeros.
        live = mask & (tl.max((v != 0.0).to(tl.int32), axis=1) > 0)
        count, spread = SAMPLES, 1.0
        if CLOSE:
            count, spread = close_of(source, resolution, close, mask, SAMPLES)
        v *= gain / count
        if TIMED:
            moment = locate_knots(time, knots, index)
            v *= tl.load(shutter_weights + index)
        if EXACT:
            v *= tl.load(scales + index)
        point, extent = sample_of(source, 0, spread, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED)
        cell, fraction = locate3(point, resolution)
        sums = corner_weights(fraction, prefilter_weight(extent, scale, PREFILTER))
        for sample in range(1, count):
            point, extent = sample_of(source, sample, spread, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED)
            here, fraction = locate3(point, resolution)
            shares = corner_weights(fraction, prefilter_weight(extent, scale, PREFILTER))
            moved = differs(cell, here)
            writes = live & moved if MERGE else live
            if BRANCH:
                is_needed = tl.max(writes.to(tl.int32), axis=0) > 0
            else:
                is_needed = True
            if is_needed:
                if TIMED:
                    _scatter_between(target, cell, level, moment, outer(sums, v), columns, writes, XOR, ROW, WIDE)
                else:
                    rows = corner_rows(cell, level, XOR)
                    scatter(target, rows, outer(sums, v), columns, writes, ROW, WIDE)
            sums = continue_run(sums, shares, moved) if MERGE else shares
            cell = here
        values = outer(sums, v)
        if ALONG_RAY:
            key = key_of(cell)
            # Nothing comes before the first lane, so it need not be a head.
            begins = tl.gather(key, previous, 0) != key
            ends = (tl.gather(key, following, 0) != key) | is_last
            if TIMED:
                # A run has one time, and so one share of each knot.
                begins |= tl.gather(time, previous, 0) != time
                ends |= tl.gather(time, following, 0) != time
            live = mask & ends
            values = sum_runs(tl.broadcast_to(begins[:, None], [BLOCK, COLUMNS]).to(tl.int32), values)
        if TIMED:
            _scatter_between(target, cell, level, moment, values, columns, live, XOR, ROW, WIDE)
        else:
            scatter(target, corner_rows(cell, level, XOR), values, columns, live, ROW, WIDE)
