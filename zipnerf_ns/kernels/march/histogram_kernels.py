"""Kernels that look values up in a ray's histogram: drawing intervals from it, and comparing two of them.

A look-up is a binary search in a row that the program holds in registers, by gathers along the row: a comparison of
every query with every fencepost would take ten times as many instructions, and registers that grow with their product.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.functional import spacing, stepfun
from zipnerf_ns.kernels.march.rows import TINY, load_row, rows_of, shifted

MIN_ANNEALED_WEIGHT = tl.constexpr(stepfun.MIN_ANNEALED_WEIGHT)
LADDER_SCALE = tl.constexpr(abs(spacing.SAMPLING_POWER - 1.0) / spacing.SAMPLING_PREMULTIPLIER)
"""World units in which the ladder of ``functional.spacing.s_to_t`` is (1 + t)^-1.5."""
MOST_STEPS = tl.constexpr(16)
"""Halvings of the longest row that a search could meet."""


@triton.jit
@no_type_check
def _count_up_to(values, queries, shift, M: tl.constexpr):
    """How many of the row's M increasing values are at most ``query + shift``, up to M - 1.

    The shift is compared with their difference, which rounds less than ``query + shift`` would.
    """
    count = tl.zeros(queries.shape, tl.int32)
    for halving in tl.static_range(1, MOST_STEPS + 1):
        if (M >> halving) > 0:
            further = count + (M >> halving)
            probe = tl.gather(values, further - 1, 1)
            count = tl.where(probe - queries <= shift, further, count)
    return count


@triton.jit
@no_type_check
def _ladder_argument(t):
    """(1 + t / LADDER_SCALE)^-1.5, correctly rounded up to a few units: a power that needs no logarithm."""
    x = 1.0 + t / LADDER_SCALE
    return tl.div_rn(1.0, x * tl.sqrt_rn(x))


@triton.jit
@no_type_check
def _s_to_t(s, u_near, u_far, near, far):
    """functional.spacing.s_to_t, with y = u^(-1/3): t is in proportion to y^2 - 1.

    y^2 - 1 is taken from 1 - u, which is exact where they cancel, by y^3 - 1 = (1 - u) / u.
    """
    u = tl.maximum(u_near * (1.0 - s) + u_far * s, TINY)
    y = tl.exp2(tl.log2(u) * (-1.0 / 3.0))
    # One step of Newton's: the hardware's exponential and logarithm are off by several units.
    y += y * (1.0 - u * y * y * y) * (1.0 / 3.0)
    t = LADDER_SCALE * (1.0 - u) * (y + 1.0) / (u * (y * y + y + 1.0))
    return tl.minimum(tl.maximum(t, near), far)


@triton.jit
@no_type_check
def _invert_cdf(u, sdist, weights, rows, live, bins, sdist_stride, weights_stride, anneal, M: tl.constexpr):
    """Positions at which the cumulative mass of ``weights ** anneal`` reaches the share u; see functional.stepfun."""
    lanes = tl.arange(0, M)[None, :]
    mask = live[:, None] & (lanes < bins)
    start = load_row(sdist, rows, sdist_stride, lanes, mask)
    end = load_row(sdist + 1, rows, sdist_stride, lanes, mask)
    weight = tl.maximum(load_row(weights, rows, weights_stride, lanes, mask), MIN_ANNEALED_WEIGHT)
    # Intervals without width, and lanes beyond the last interval, hold nothing.
    upto = tl.cumsum(tl.where(end > start, tl.exp2(anneal * tl.log2(weight)), 0.0), axis=1)
    total = tl.max(upto, axis=1)[:, None]
    target = u * total
    left = tl.minimum(_count_up_to(upto, target, 0.0, M), bins - 1)
    c0 = tl.where(left > 0, tl.gather(upto, tl.maximum(left - 1, 0), 1), 0.0)
    share = (target - c0) / tl.maximum(tl.gather(upto, left, 1) - c0, TINY)
    s0, s1 = tl.gather(start, left, 1), tl.gather(end, left, 1)
    return s0 + (s1 - s0) * tl.minimum(tl.maximum(share, 0.0), 1.0)


@triton.jit(
    do_not_specialize=[
        "rays",
        "bins",
        "samples",
        "sdist_stride",
        "weights_stride",
        "jitter_stride",
        "near_stride",
        "far_stride",
    ]
)
@no_type_check
def draw_kernel(
    sdist,
    weights,
    jitter,
    near,
    far,
    sdist_out,
    tdist_out,
    rays,
    bins,
    samples,
    sdist_stride,
    weights_stride,
    jitter_stride,
    near_stride,
    far_stride,
    anneal,
    HAS_HISTOGRAM: tl.constexpr,
    HAS_JITTER: tl.constexpr,
    RAYS: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
):
    """Fenceposts of intervals drawn from each ray's histogram, without HAS_HISTOGRAM from an even one on [0, 1]."""
    rows, live = rows_of(rays, RAYS)
    lanes = tl.arange(0, N)[None, :]
    offset = tl.full([RAYS], 0.5, tl.float32)
    if HAS_JITTER:
        offset = tl.load(jitter + rows * jitter_stride, mask=live, other=0.5)
    if HAS_HISTOGRAM:
        u = (lanes + offset[:, None]) / samples
        center = _invert_cdf(u, sdist, weights, rows, live, bins, sdist_stride, weights_stride, tl.load(anneal), M)
        neighbor = tl.broadcast_to(tl.where(lanes > 0, lanes - 1, 1), [RAYS, N])
        middle = 0.5 * (center + tl.gather(center, neighbor, 1))
        mirrored = 2.0 * center - middle
        lowest = tl.load(sdist + rows * sdist_stride, mask=live, other=0.0)
        highest = tl.load(sdist + rows * sdist_stride + bins, mask=live, other=0.0)
        s = tl.where(lanes > 0, middle, mirrored)
        last = tl.sum(tl.where(lanes == samples - 1, mirrored, 0.0), axis=1)
    else:
        lowest, highest = tl.zeros([RAYS], tl.float32), tl.full([RAYS], 1.0, tl.float32)
        s = (lanes - 0.5 + offset[:, None]) / samples
        last = (samples - 0.5 + offset) / samples
    # Clipping to the histogram's own ends keeps the intervals inside the domain whatever the jitter.
    s = tl.minimum(tl.maximum(s, lowest[:, None]), highest[:, None])
    last = tl.minimum(tl.maximum(last, lowest), highest)
    t_near = tl.load(near + rows * near_stride, mask=live, other=0.0)
    t_far = tl.load(far + rows * far_stride, mask=live, other=1.0)
    u_near, u_far = _ladder_argument(t_near), _ladder_argument(t_far)
    t = _s_to_t(s, u_near[:, None], u_far[:, None], t_near[:, None], t_far[:, None])
    target = rows * (samples + 1)
    mask = live[:, None] & (lanes < samples)
    tl.store(sdist_out + target[:, None] + lanes, s, mask=mask)
    tl.store(tdist_out + target[:, None] + lanes, t, mask=mask)
    tl.store(sdist_out + target + samples, last, mask=live)
    tl.store(tdist_out + target + samples, _s_to_t(last, u_near, u_far, t_near, t_far), mask=live)


@triton.jit
@no_type_check
def _load_histogram(sdist, weights, rows, live, bins, sdist_stride, weights_stride, M: tl.constexpr):
    """What the integral of a ray's cumulative mass is made of, a lane an interval.

    The integral is later divided by the width of the blur. In float64, so that one rounding of it (6e-8 of 1) does not
    become 1e-5 of a weight; a row of it is cheap.
    """
    lanes = tl.arange(0, M)[None, :]
    mask = live[:, None] & (lanes < bins)
    start = load_row(sdist, rows, sdist_stride, lanes, mask)
    end = load_row(sdist + 1, rows, sdist_stride, lanes, mask)
    mass = load_row(weights, rows, weights_stride, lanes, mask).to(tl.float64)
    width = end.to(tl.float64) - start.to(tl.float64)
    upto = tl.cumsum(mass, axis=1)
    before = upto - mass
    area = width * (before + 0.5 * mass)
    integral = tl.cumsum(area, axis=1) - area
    density = mass / tl.maximum(width, TINY)
    # Nothing is found beyond the last interval, because everything there ends later than any query.
    end = tl.where(lanes < bins, end, float("inf"))
    highest = tl.load(sdist + rows * sdist_stride + bins, mask=live, other=0.0)
    return start, end, before, density, integral, highest[:, None].to(tl.float64), tl.max(upto, axis=1)[:, None]


@triton.jit
@no_type_check
def _integral(query, shift, histogram, bins, M: tl.constexpr):
    """Integral of the cumulative mass up to ``query + shift``."""
    start, end, before, density, integral, highest, total = histogram
    left = tl.minimum(_count_up_to(end, query, shift, M), bins - 1)
    position = query.to(tl.float64) + shift
    inside = tl.maximum(tl.minimum(position, highest) - tl.gather(start, left, 1).to(tl.float64), 0.0)
    value = tl.gather(before, left, 1) + 0.5 * inside * tl.gather(density, left, 1)
    return tl.gather(integral, left, 1) + inside * value + tl.maximum(position - highest, 0.0) * total


@triton.jit
@no_type_check
def _window(query, halfwidth, histogram, bins, M: tl.constexpr):
    """Integral of the cumulative mass over the blur's box around the query; functional.linspline says what for."""
    return _integral(query, halfwidth, histogram, bins, M) - _integral(query, -halfwidth, histogram, bins, M)


@triton.jit(
    do_not_specialize=[
        "rays",
        "intervals",
        "bins",
        "w_prop_stride",
        "sdist_prop_stride",
        "w_main_stride",
        "sdist_main_stride",
    ]
)
@no_type_check
def interlevel_kernel(
    w_prop,
    sdist_prop,
    w_main,
    sdist_main,
    loss,
    slopes,
    rays,
    intervals,
    bins,
    w_prop_stride,
    sdist_prop_stride,
    w_main_stride,
    sdist_main_stride,
    halfwidth,
    eps,
    HAS_SLOPES: tl.constexpr,
    RAYS: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
):
    """Anti-aliased interlevel loss of each ray, and with HAS_SLOPES its derivatives by the proposal's weights."""
    rows, live = rows_of(rays, RAYS)
    lanes = tl.arange(0, N)[None, :]
    mask = live[:, None] & (lanes < intervals)
    histogram = _load_histogram(sdist_main, w_main, rows, live, bins, sdist_main_stride, w_main_stride, M)
    start = load_row(sdist_prop, rows, sdist_prop_stride, lanes, mask)
    end = tl.load(sdist_prop + rows * sdist_prop_stride + intervals, mask=live, other=0.0)[:, None]
    window = _window(start, halfwidth, histogram, bins, M)
    following = _window(end, halfwidth, histogram, bins, M)
    following = tl.where(lanes < intervals - 1, shifted(window, lanes, 1, N), following)
    blurred = (following - window).to(tl.float32) * (0.5 / halfwidth)
    weight = load_row(w_prop, rows, w_prop_stride, lanes, mask)
    excess = tl.maximum(blurred - weight, 0.0)
    ratio = excess / (weight + eps)
    tl.store(loss + rows, tl.sum(tl.where(mask, excess * ratio, 0.0), axis=1), mask=live)
    if HAS_SLOPES:
        tl.store(slopes + (rows * intervals)[:, None] + lanes, -ratio * (2.0 + ratio), mask=mask)
