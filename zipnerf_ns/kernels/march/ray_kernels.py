"""Kernels that march along rays: emission and absorption with its gradient, the distortion loss, distances to show.

Every sum along a ray is a reduction or a scan of its row, and the two fenceposts of an interval are two loads from
neighboring addresses. Nothing is read or written twice except through the first-level cache.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.functional import spacing
from zipnerf_ns.kernels.march.rows import TINY, load_row, rows_of, shifted

SMALL_DEPTH = tl.constexpr(0.5)
"""Optical depth below which absorption is a series: at it, 1 - exp(-x) has lost one bit, and the series 1e-8."""
DISTORTION_SCALE = tl.constexpr(spacing.DISTORTION_PREMULTIPLIER / abs(spacing.DISTORTION_POWER - 1.0))
DISTORTION_RANGE = tl.constexpr(abs((spacing.DISTORTION_POWER - 1.0) / spacing.DISTORTION_POWER))
"""What ``functional.spacing.distortion_distance`` tends to at infinity."""


@triton.jit
@no_type_check
def _absorbed(depth):
    """1 - exp(-depth), to the last digits also of tiny depths, which exp would round to 1."""
    x = tl.minimum(depth, SMALL_DEPTH)
    series = 1.0 / 5040.0 - x * (1.0 / 40320.0)
    series = 1.0 / 720.0 - x * series
    series = 1.0 / 120.0 - x * series
    series = 1.0 / 24.0 - x * series
    series = 1.0 / 6.0 - x * series
    series = x * (1.0 - x * (0.5 - x * series))
    return tl.where(depth < SMALL_DEPTH, series, 1.0 - tl.exp(-depth))


@triton.jit
@no_type_check
def _depths(density, tdist, rows, density_stride, tdist_stride, lanes, mask):
    """Length and optical depth of each interval; 0 where masked."""
    start = load_row(tdist, rows, tdist_stride, lanes, mask)
    length = tl.maximum(load_row(tdist + 1, rows, tdist_stride, lanes, mask) - start, 0.0)
    return length, load_row(density, rows, density_stride, lanes, mask) * length


@triton.jit
@no_type_check
def _depth_before(depth, lanes, N: tl.constexpr):
    """Optical depth in front of each interval.

    A shifted sum, not an inclusive one less the term itself: an opaque term would round away all before it.
    """
    return shifted(tl.cumsum(depth, axis=1), lanes, -1, N)


@triton.jit
@no_type_check
def _valid_rows(valid, rows, live, stride):
    return live & (tl.load(valid + rows * stride, mask=live, other=0).to(tl.int32) != 0)


@triton.jit(
    do_not_specialize=[
        "rays",
        "intervals",
        "density_stride",
        "tdist_stride",
        "valid_stride",
        "color_ray",
        "color_interval",
        "color_channel",
    ]
)
@no_type_check
def march_kernel(
    density,
    tdist,
    valid,
    colors,
    weights,
    rgb,
    accumulation,
    rays,
    intervals,
    density_stride,
    tdist_stride,
    valid_stride,
    color_ray,
    color_interval,
    color_channel,
    HAS_COLORS: tl.constexpr,
    RAYS: tl.constexpr,
    N: tl.constexpr,
):
    """Weights of the intervals, and with HAS_COLORS their sum and the sum of the colors under them."""
    rows, live = rows_of(rays, RAYS)
    lanes = tl.arange(0, N)[None, :]
    seen = _valid_rows(valid, rows, live, valid_stride)
    inside = lanes < intervals
    mask = seen[:, None] & inside
    _, depth = _depths(density, tdist, rows, density_stride, tdist_stride, lanes, mask)
    weight = tl.exp(-_depth_before(depth, lanes, N)) * _absorbed(depth)
    # Masked lanes have no depth and so no weight: rays that are not valid get their zeros here.
    tl.store(weights + (rows * intervals)[:, None] + lanes, weight, mask=live[:, None] & inside)
    if HAS_COLORS:
        tl.store(accumulation + rows, tl.sum(weight, axis=1), mask=live)
        source = colors + (rows * color_ray)[:, None] + lanes.to(tl.int64) * color_interval
        for channel in tl.static_range(3):
            color = tl.load(source, mask=mask, other=0.0).to(tl.float32)
            tl.store(rgb + rows * 3 + channel, tl.sum(weight * color, axis=1), mask=live)
            source += color_channel


@triton.jit(
    do_not_specialize=[
        "rays",
        "intervals",
        "density_stride",
        "tdist_stride",
        "valid_stride",
        "color_ray",
        "color_interval",
        "color_channel",
        "v_weights_stride",
        "v_rgb_ray",
        "v_rgb_channel",
        "v_accumulation_stride",
    ]
)
@no_type_check
def march_backward_kernel(
    density,
    tdist,
    valid,
    colors,
    v_weights,
    v_rgb,
    v_accumulation,
    v_density,
    v_colors,
    rays,
    intervals,
    density_stride,
    tdist_stride,
    valid_stride,
    color_ray,
    color_interval,
    color_channel,
    v_weights_stride,
    v_rgb_ray,
    v_rgb_channel,
    v_accumulation_stride,
    HAS_WEIGHTS: tl.constexpr,
    HAS_RGB: tl.constexpr,
    HAS_ACCUMULATION: tl.constexpr,
    NEEDS_COLORS: tl.constexpr,
    RAYS: tl.constexpr,
    N: tl.constexpr,
):
    """Cotangents of the densities, and with NEEDS_COLORS of the colors, from those of ``march_kernel``'s results.

    With x the optical depths, T the light that enters and v the cotangents of the weights,
    dL/dx_i = v_i T_{i+1} - sum over j > i of v_j w_j. The accumulation is 1 - T_n, whose derivative T_n would be lost
    among the rounding errors of such a difference.
    """
    rows, live = rows_of(rays, RAYS)
    lanes = tl.arange(0, N)[None, :]
    seen = _valid_rows(valid, rows, live, valid_stride)
    stored = live[:, None] & (lanes < intervals)
    mask = seen[:, None] & (lanes < intervals)
    length, depth = _depths(density, tdist, rows, density_stride, tdist_stride, lanes, mask)
    before = _depth_before(depth, lanes, N)
    weight = tl.exp(-before) * _absorbed(depth)
    v = tl.zeros([RAYS, N], tl.float32)
    if HAS_WEIGHTS:
        v += load_row(v_weights, rows, v_weights_stride, lanes, mask)
    if HAS_RGB:
        source = colors + (rows * color_ray)[:, None] + lanes.to(tl.int64) * color_interval
        target = v_colors + (rows * (intervals * 3))[:, None] + lanes * 3
        for channel in tl.static_range(3):
            v_channel = tl.load(v_rgb + rows * v_rgb_ray, mask=seen, other=0.0).to(tl.float32)[:, None]
            v += v_channel * tl.load(source, mask=mask, other=0.0).to(tl.float32)
            if NEEDS_COLORS:
                tl.store(target + channel, v_channel * weight, mask=stored)
            source += color_channel
            v_rgb += v_rgb_channel
    # Shifted like the depths: what an opaque interval sends back must not round away what lies behind it.
    behind = shifted(tl.cumsum(v * weight, axis=1, reverse=True), lanes, 1, N)
    v_depth = v * tl.exp(-(before + depth)) - behind
    if HAS_ACCUMULATION:
        v_sum = tl.load(v_accumulation + rows * v_accumulation_stride, mask=seen, other=0.0).to(tl.float32)
        v_depth += (v_sum * tl.exp(-tl.sum(depth, axis=1)))[:, None]
    tl.store(v_density + (rows * intervals)[:, None] + lanes, v_depth * length, mask=stored)


@triton.jit
@no_type_check
def _curved(t):
    """functional.spacing.distortion_distance less its limit: only differences count, and these keep their digits."""
    x = 1.0 + t * DISTORTION_SCALE
    y = tl.exp2(tl.log2(x) * -0.25)
    # One step of Newton's: the hardware's exponential and logarithm are off by several units.
    y += y * (1.0 - x * (y * y) * (y * y)) * 0.25
    return -DISTORTION_RANGE * y


@triton.jit(do_not_specialize=["rays", "intervals", "tdist_stride", "weights_stride"])
@no_type_check
def distortion_kernel(
    tdist,
    weights,
    loss,
    slopes,
    rays,
    intervals,
    tdist_stride,
    weights_stride,
    HAS_SLOPES: tl.constexpr,
    RAYS: tl.constexpr,
    N: tl.constexpr,
):
    """Expected distance of two points of each ray's histogram, and with HAS_SLOPES its derivatives by the weights."""
    rows, live = rows_of(rays, RAYS)
    lanes = tl.arange(0, N)[None, :]
    mask = live[:, None] & (lanes < intervals)
    start = _curved(load_row(tdist, rows, tdist_stride, lanes, mask))
    end = _curved(load_row(tdist + 1, rows, tdist_stride, lanes, mask))
    weight = load_row(weights, rows, weights_stride, lanes, mask)
    width, middle = end - start, 0.5 * (start + end)
    total = tl.sum(weight, axis=1)
    # Distances do not change with the origin; from the mean they are no small differences of large numbers.
    middle -= (tl.sum(weight * middle, axis=1) / tl.maximum(total, TINY))[:, None]
    moment = weight * middle
    mass_up_to, moment_up_to = tl.cumsum(weight, axis=1), tl.cumsum(moment, axis=1)
    # Inclusive sums: an interval is at no distance from itself.
    between = 2.0 * weight * (middle * mass_up_to - moment_up_to)
    within = weight * weight * width * (1.0 / 3.0)
    tl.store(loss + rows, tl.sum(between + within, axis=1), mask=live)
    if HAS_SLOPES:
        total_moment = tl.sum(moment, axis=1)
        around = middle * (2.0 * mass_up_to - total[:, None]) - (2.0 * moment_up_to - total_moment[:, None])
        slope = 2.0 * around + (2.0 / 3.0) * weight * width
        tl.store(slopes + (rows * intervals)[:, None] + lanes, slope, mask=mask)


@triton.jit(do_not_specialize=["rays", "intervals", "weights_stride", "tdist_stride"])
@no_type_check
def distances_kernel(
    weights,
    tdist,
    median,
    mean,
    rays,
    intervals,
    weights_stride,
    tdist_stride,
    RAYS: tl.constexpr,
    N: tl.constexpr,
):
    """Median and geometric mean distance of each ray's histogram; see functional.volume."""
    rows, live = rows_of(rays, RAYS)
    lanes = tl.arange(0, N)[None, :]
    mask = live[:, None] & (lanes < intervals)
    weight = load_row(weights, rows, weights_stride, lanes, mask)
    start = load_row(tdist, rows, tdist_stride, lanes, mask)
    end = load_row(tdist + 1, rows, tdist_stride, lanes, mask)
    cumulative = tl.cumsum(weight, axis=1)
    half = 0.5 * tl.max(cumulative, axis=1)
    below = tl.sum((mask & (cumulative < half[:, None])).to(tl.int32), axis=1)
    here = lanes == tl.minimum(below, intervals - 1)[:, None]
    mass = tl.sum(tl.where(here, weight, 0.0), axis=1)
    missing = half - tl.sum(tl.where(here, cumulative, 0.0), axis=1) + mass
    share = tl.minimum(tl.maximum(missing / tl.maximum(mass, TINY), 0.0), 1.0)
    first = tl.sum(tl.where(here, start, 0.0), axis=1)
    last = tl.sum(tl.where(here, end, 0.0), axis=1)
    tl.store(median + rows, first + share * (last - first), mask=live)
    total = tl.sum(weight, axis=1)
    logs = tl.log(tl.maximum(0.5 * (start + end), TINY))
    average = tl.exp(tl.sum(weight * logs, axis=1) / tl.maximum(total, TINY))
    near = tl.load(tdist + rows * tdist_stride, mask=live, other=0.0)
    far = tl.load(tdist + rows * tdist_stride + intervals, mask=live, other=0.0)
    average = tl.minimum(tl.maximum(average, near), far)
    tl.store(mean + rows, tl.where(total > TINY, average, near), mask=live)
