"""The device code of the prefiltered hash encoding: look-up, scatter into the table, and gradient to the samples.

One lane works on one interval, with its samples in registers: consecutive lanes are consecutive intervals of a ray.
The traversal that gather and scatter share sums the corner weights of consecutive samples that lie in one cell before
it touches memory, because the samples of an interval mostly share their cell: six look-ups or atomics become one.

``no_type_check`` keeps a runtime type checker's wrappers off functions whose source Triton compiles.
"""

from typing import no_type_check

import triton
import triton.language as tl

INVERSE_SQRT8 = tl.constexpr(0.35355339059327373)
TWO_OVER_SQRT_PI = tl.constexpr(1.1283791670955126)
MIN_CELLS = tl.constexpr(1e-3)
"""The twin's floor of std in cells; see functional.hash_grid.prefilter_weights."""
MAX_EXPONENT = tl.constexpr(50.0)
"""functional.hash_grid.MAX_IPE_EXPONENT."""
LEVEL_FIELDS = tl.constexpr(6)
"""Integers that describe a level to the kernels; see hash_encode.level_constants."""
WINDOW = tl.constexpr(4)
"""Table values in one 16-byte access."""


@triton.jit
@no_type_check
def _load_level(levels, level):
    """Cells a side, first row, y and z multipliers, hash mask, whether dense: scalars of one level."""
    fields = levels + level * LEVEL_FIELDS
    return (
        tl.load(fields),
        tl.load(fields + 1),
        tl.load(fields + 2),
        tl.load(fields + 3),
        tl.load(fields + 4),
        tl.load(fields + 5) != 0,
    )


@triton.jit
@no_type_check
def _load_samples(positions, stds, first, lanes, mask, SAMPLES: tl.constexpr):
    """Every sample of each lane's interval; they stay in registers for all the levels that the program works on."""
    positions += first * (SAMPLES * 3)
    stds += first * SAMPLES
    x, y, z, std = (), (), (), ()
    for sample in tl.static_range(SAMPLES):
        offset = lanes * SAMPLES + sample
        x = x + (tl.load(positions + offset * 3, mask=mask, other=0.0),)
        y = y + (tl.load(positions + offset * 3 + 1, mask=mask, other=0.0),)
        z = z + (tl.load(positions + offset * 3 + 2, mask=mask, other=0.0),)
        std = std + (tl.load(stds + offset, mask=mask, other=0.0),)
    return x, y, z, std


@triton.jit
@no_type_check
def _prefilter(std, resolution, bandwidth, PREFILTER: tl.constexpr):
    """Share of a level that survives a sample's extent; see functional.hash_grid.prefilter_weights."""
    cells = std * resolution
    if PREFILTER == "multisample":
        weight = tl.erf(INVERSE_SQRT8 / tl.maximum(cells, MIN_CELLS))
    elif PREFILTER == "ipe":
        weight = tl.exp(-tl.minimum(0.5 * bandwidth * cells * cells, MAX_EXPONENT))
    else:
        weight = tl.full(cells.shape, 1.0, tl.float32)
    return weight


@triton.jit
@no_type_check
def _locate(position, resolution):
    """Lower of the two cells around a coordinate, and how far towards the upper one it lies."""
    last = resolution - 1.0
    # max comes before min so that a coordinate that is no number lands in the grid too.
    cells = tl.minimum(tl.maximum(position, 0.0), 1.0) * resolution - 0.5
    cells = tl.minimum(tl.maximum(cells, 0.0), last)
    lower = tl.minimum(tl.floor(cells), tl.maximum(last - 1.0, 0.0))
    return lower.to(tl.int32), cells - lower


@triton.jit
@no_type_check
def _locate3(x, y, z, resolution):
    """Lower cell and fraction along each axis."""
    i, u = _locate(x, resolution)
    j, v = _locate(y, resolution)
    k, w = _locate(z, resolution)
    return (i, j, k), (u, v, w)


@triton.jit
@no_type_check
def _corner_weights(fraction, weight):
    """Trilinear weights of the eight corners, x fastest, times ``weight``."""
    u, v, w = fraction
    shares = ()
    for corner in tl.static_range(8):
        share = weight * (u if corner & 1 else 1.0 - u)
        share = share * (v if corner & 2 else 1.0 - v)
        shares = shares + (share * (w if corner & 4 else 1.0 - w),)
    return shares


@triton.jit
@no_type_check
def _corner_row(cell, level, corner: tl.constexpr):
    """Row within the level of one of the eight cells; see functional.hash_grid.level_corners."""
    i, j, k = cell
    resolution, _, y_step, z_step, mask, dense = level
    # A level of a single cell has no neighbour. Its multipliers are zero, so only x needs saying.
    x = i + (tl.minimum(resolution - 1, 1) if corner & 1 else 0)
    y = j * y_step + (y_step if corner & 2 else 0)
    z = k * z_step + (z_step if corner & 4 else 0)
    # Dense and hashed rows share the products, so choosing costs less than a branch.
    return tl.where(dense, x + y + z, (x ^ y ^ z) & mask)


@triton.jit
@no_type_check
def _moved(a, b):
    """Whether two cells differ."""
    return (a[0] != b[0]) | (a[1] != b[1]) | (a[2] != b[2])


@triton.jit
@no_type_check
def _restart(sums, shares, moved):
    """Adds a sample's corner weights to its run's, or begins a new run where the cell has changed."""
    merged = ()
    for corner in tl.static_range(8):
        merged = merged + (tl.where(moved, 0.0, sums[corner]) + shares[corner],)
    return merged


@triton.jit
@no_type_check
def _pick(quad, index):
    """One of a lane's four neighbouring values."""
    even, odd = tl.split(tl.reshape(quad, [quad.shape[0], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    low, high = (index & 1) == 0, (index & 2) == 0
    return tl.where(high, tl.where(low, first, second), tl.where(low, third, fourth))


@triton.jit
@no_type_check
def _gather(table, cell, level, sums, mask, FEATURES: tl.constexpr, WIDE: tl.constexpr):
    """Sum over the eight corners of corner weight times table row: [BLOCK, FEATURES]."""
    columns = tl.arange(0, FEATURES)[None, :]
    total = tl.zeros([mask.shape[0], FEATURES], tl.float32)
    if WIDE:
        window = tl.arange(0, WINDOW)[None, :]
        for pair in tl.static_range(4):
            low, high = _corner_row(cell, level, 2 * pair), _corner_row(cell, level, 2 * pair + 1)
            # x neighbours sit in one aligned window of four rows three times out of four, hashed or not.
            start = (low // WINDOW) * WINDOW
            quad = tl.load(table + (start[:, None] + window), mask=mask[:, None], other=0.0).to(tl.float32)
            apart = (high // WINDOW) * WINDOW != start
            beyond = tl.load(table + high, mask=mask & apart, other=0.0).to(tl.float32)
            near = _pick(quad, low) * sums[2 * pair]
            total += (near + tl.where(apart, beyond, _pick(quad, high)) * sums[2 * pair + 1])[:, None]
    else:
        for corner in tl.static_range(8):
            row = _corner_row(cell, level, corner)
            value = tl.load(table + (row[:, None] * FEATURES + columns), mask=mask[:, None], other=0.0)
            total += sums[corner][:, None] * value.to(tl.float32)
    return total


@triton.jit
@no_type_check
def _scatter(v_table, cell, level, values, mask, FEATURES: tl.constexpr, WIDE: tl.constexpr):
    """Adds each corner's [BLOCK, FEATURES] values to its table row. Relaxed: nothing is ordered by these sums."""
    columns = tl.arange(0, FEATURES)[None, :]
    if WIDE:
        window = tl.arange(0, WINDOW)[None, :]
        for pair in tl.static_range(4):
            low, high = _corner_row(cell, level, 2 * pair), _corner_row(cell, level, 2 * pair + 1)
            start = (low // WINDOW) * WINDOW
            apart = (high // WINDOW) * WINDOW != start
            quad = tl.where(window == (low - start)[:, None], values[2 * pair], 0.0)
            quad += tl.where((window == (high - start)[:, None]) & ~apart[:, None], values[2 * pair + 1], 0.0)
            tl.atomic_add(v_table + (start[:, None] + window), quad, mask=mask[:, None], sem="relaxed")
            beyond = v_table + (high[:, None] * FEATURES + columns)
            tl.atomic_add(beyond, values[2 * pair + 1], mask=(mask & apart)[:, None], sem="relaxed")
    else:
        for corner in tl.static_range(8):
            row = _corner_row(cell, level, corner)
            pointers = v_table + (row[:, None] * FEATURES + columns)
            tl.atomic_add(pointers, values[corner], mask=mask[:, None], sem="relaxed")


@triton.jit
@no_type_check
def _times(sums, v):
    """Outer product of each corner's weight sum with the features' cotangent."""
    values = ()
    for corner in tl.static_range(8):
        values = values + (sums[corner][:, None] * v,)
    return values


@triton.jit
@no_type_check
def _join_runs(head, a0, a1, a2, a3, a4, a5, a6, a7, begins, b0, b1, b2, b3, b4, b5, b6, b7):
    """Segmented sum of eight values: a right-hand part that contains a run's head forgets what came before it."""
    keep = begins == 0
    return (
        head | begins,
        tl.where(keep, a0, 0.0) + b0,
        tl.where(keep, a1, 0.0) + b1,
        tl.where(keep, a2, 0.0) + b2,
        tl.where(keep, a3, 0.0) + b3,
        tl.where(keep, a4, 0.0) + b4,
        tl.where(keep, a5, 0.0) + b5,
        tl.where(keep, a6, 0.0) + b6,
        tl.where(keep, a7, 0.0) + b7,
    )


@triton.jit
@no_type_check
def _sum_runs(head, values):
    """Sums over the lanes of each run so far; ``head`` is 1 where a run begins."""
    v0, v1, v2, v3, v4, v5, v6, v7 = values
    scanned = tl.associative_scan((head, v0, v1, v2, v3, v4, v5, v6, v7), 0, _join_runs)
    return scanned[1:]


@triton.jit
@no_type_check
def _load3(pointers, mask):
    """The three coordinates of a point a lane."""
    x = tl.load(pointers, mask=mask, other=0.0)
    y = tl.load(pointers + 1, mask=mask, other=0.0)
    return x, y, tl.load(pointers + 2, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["intervals", "begin", "end", "num_active", "feature_step", "feature_stride"])
@no_type_check
def forward_kernel(
    table,
    positions,
    stds,
    levels,
    bandwidths,
    features,
    weights,
    intervals,
    begin,
    end,
    num_active,
    feature_step,
    feature_stride,
    weight_step,
    weight_stride,
    table_scale,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
    PREFILTER: tl.constexpr,
    MERGE: tl.constexpr,
    WIDE: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Features and mean prefilter weights of BLOCK intervals at LEVELS levels.

    ``features`` is indexed (interval * feature_step + level * feature_stride) * FEATURES, ``weights`` likewise.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    mask = lanes < intervals - first
    x, y, z, std = _load_samples(positions, stds, first, lanes, mask, SAMPLES)
    columns = tl.arange(0, FEATURES)[None, :]
    begin += tl.program_id(1) * LEVELS
    for index in range(begin, tl.minimum(begin + LEVELS, end)):
        level = _load_level(levels, index)
        resolution = level[0].to(tl.float32)
        bandwidth = tl.load(bandwidths + index)
        rows = table + level[1].to(tl.int64) * FEATURES
        active = mask & (index < num_active)
        total = tl.zeros([BLOCK, FEATURES], tl.float32)
        mean = tl.zeros([BLOCK], tl.float32)
        for sample in tl.static_range(SAMPLES):
            weight = _prefilter(std[sample], resolution, bandwidth, PREFILTER)
            mean += weight
            here, fraction = _locate3(x[sample], y[sample], z[sample], resolution)
            shares = _corner_weights(fraction, weight)
            if sample == 0:
                sums = shares
            else:
                done = active & _moved(cell, here) if MERGE else active
                total += _gather(rows, cell, level, sums, done, FEATURES, WIDE)
                sums = _restart(sums, shares, done) if MERGE else shares
            cell = here
        total += _gather(rows, cell, level, sums, active, FEATURES, WIDE)
        offset = first * feature_step + index.to(tl.int64) * feature_stride
        pointers = features + offset * FEATURES + (lanes * feature_step * FEATURES)[:, None] + columns
        tl.store(pointers, total * table_scale, mask=mask[:, None])
        offset = first * weight_step + index.to(tl.int64) * weight_stride
        tl.store(weights + offset + lanes * weight_step, mean * (1.0 / SAMPLES), mask=mask)


@triton.jit(do_not_specialize=["intervals", "begin", "end", "v_step", "v_stride"])
@no_type_check
def backward_kernel(
    v_table,
    positions,
    stds,
    levels,
    bandwidths,
    v_features,
    intervals,
    begin,
    end,
    v_step,
    v_stride,
    SAMPLES: tl.constexpr,
    FEATURES: tl.constexpr,
    PREFILTER: tl.constexpr,
    MERGE: tl.constexpr,
    ALONG_RAY: tl.constexpr,
    WIDE: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the features' cotangent to the table's gradient: the transpose of ``forward_kernel``.

    With ALONG_RAY, what an interval has left in its last cell is first summed with its neighbours' in the same cell
    (a segmented scan over the lanes), and only the last lane of such a run writes. At coarse levels, where a whole
    ray crosses a handful of cells that all rays share, this is what keeps thousands of lanes off one address.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    remaining = tl.minimum(intervals - first, BLOCK).to(tl.int32)
    mask = lanes < remaining
    x, y, z, std = _load_samples(positions, stds, first, lanes, mask, SAMPLES)
    if ALONG_RAY:
        has_next, has_previous = lanes + 1 < remaining, (lanes > 0) & mask
        last = positions + first * (SAMPLES * 3) + (lanes * SAMPLES + (SAMPLES - 1)) * 3
        previous = _load3(last - SAMPLES * 3, has_previous)
        following = _load3(last + SAMPLES * 3, has_next)
    columns = tl.arange(0, FEATURES)[None, :]
    begin += tl.program_id(1) * LEVELS
    for index in range(begin, tl.minimum(begin + LEVELS, end)):
        level = _load_level(levels, index)
        resolution = level[0].to(tl.float32)
        bandwidth = tl.load(bandwidths + index)
        rows = v_table + level[1].to(tl.int64) * FEATURES
        offset = first * v_step + index.to(tl.int64) * v_stride
        pointers = v_features + offset * FEATURES + (lanes * v_step * FEATURES)[:, None] + columns
        v = tl.load(pointers, mask=mask[:, None], other=0.0) * (1.0 / SAMPLES)
        # Intervals behind a surface, or whose loss is saturated, send back exact zeros.
        live = mask & (tl.max((v != 0.0).to(tl.int32), axis=1) > 0)
        for sample in tl.static_range(SAMPLES):
            weight = _prefilter(std[sample], resolution, bandwidth, PREFILTER)
            here, fraction = _locate3(x[sample], y[sample], z[sample], resolution)
            shares = _corner_weights(fraction, weight)
            if sample == 0:
                sums = shares
            else:
                done = live & _moved(cell, here) if MERGE else live
                _scatter(rows, cell, level, _times(sums, v), done, FEATURES, WIDE)
                sums = _restart(sums, shares, done) if MERGE else shares
            cell = here
        values = _times(sums, v)
        if ALONG_RAY:
            there, _ = _locate3(previous[0], previous[1], previous[2], resolution)
            head = tl.broadcast_to((_moved(there, cell) | ~has_previous)[:, None], [BLOCK, FEATURES])
            there, _ = _locate3(following[0], following[1], following[2], resolution)
            live = mask & (_moved(there, cell) | ~has_next)
            values = _sum_runs(head.to(tl.int32), values)
        _scatter(rows, cell, level, values, live, FEATURES, WIDE)
