"""Where the table kernels' samples come from: read from memory, or made from a pixel's cone in registers.

The second way is what training and rendering use: the six positions and extents of an interval are 96 bytes that would
be written once and read by every level, but cost only some fifty instructions each to make from the interval's two
fenceposts and its ray. Same formulas as ``functional.cones``, in the form that needs the fewest operations.

Samples are made one by one, in a loop that is not unrolled: the compiler's time grows with the square of the memory
accesses in a kernel, and six times as many had users wait a minute and a half for their first training step.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.kernels.encode.cells import load3
from zipnerf_ns.kernels.encode.prefilter import extent_of

TINY = tl.constexpr(1e-20)
"""functional.numerics.TINY."""
SPREAD = tl.constexpr(1.1338934190276817)
"""3 / sqrt 7 (Zip-NeRF, section 2)."""
HALF_SQRT2 = tl.constexpr(0.7071067811865476)
COS30 = tl.constexpr(0.8660254037844386)
WARP = tl.constexpr(32)
"""Lanes that read memory together."""


@triton.jit
@no_type_check
def _cos_sin_of_turn(turn):
    """Cosine and sine of 2 pi turn, turn in [0, 1), within 1e-6: polynomials in the squared distance to 1/2."""
    v = turn - 0.5
    w = v * v
    c = 6.528658636404154 * w - 25.967602439566363
    c = c * w + 60.16763282474156
    c = c * w - 85.4501399434354
    c = c * w + 64.93911749956462
    c = c * w - 19.739204500993164
    c = c * w + 0.9999999890754406
    s = 3.2381376842299816 * w - 14.899848010693916
    s = s * w + 42.025927780809404
    s = s * w - 76.70301552939358
    s = s * w + 81.60513140270226
    s = s * w - 41.34170040597415
    s = s * w + 6.283185302518512
    return -c, -s * v


@triton.jit
@no_type_check
def _basis(d):
    """Two unit vectors across a unit direction; functional.frustum.orthonormal_basis."""
    x, y, z = d
    sign = tl.where(z < 0.0, -1.0, 1.0)
    a = -1.0 / (sign + z)
    b = x * y * a
    return (1.0 + sign * x * x * a, sign * b, -sign * x), (b, sign + y * y * a, -y)


@triton.jit
@no_type_check
def _combine(p, u, v, c, s):
    """p + c u + s v."""
    return p[0] + c * u[0] + s * v[0], p[1] + c * u[1] + s * v[1], p[2] + c * u[2] + s * v[2]


@triton.jit
@no_type_check
def _into_cube(p, box, BOXED: tl.constexpr):
    """A world point in the unit cube, and 1/max(|p|, 1), on which the contraction's stretches depend."""
    x, y, z = p
    if BOXED:
        lower, inverse_sides = box
        cube = (x - lower[0]) * inverse_sides[0], (y - lower[1]) * inverse_sides[1], (z - lower[2]) * inverse_sides[2]
        inverse = x * 0.0 + 1.0
    else:
        inverse = tl.rsqrt(tl.maximum(x * x + y * y + z * z, 1.0))
        scale = (0.5 - 0.25 * inverse) * inverse
        cube = x * scale + 0.5, y * scale + 0.5, z * scale + 0.5
    return cube, inverse


@triton.jit
@no_type_check
def _load_box(aabb):
    """Lower corner and reciprocal sides of a scene box [2, 3], as scalars."""
    lower = tl.load(aabb), tl.load(aabb + 1), tl.load(aabb + 2)
    sides = tl.load(aabb + 3) - lower[0], tl.load(aabb + 4) - lower[1], tl.load(aabb + 5) - lower[2]
    return lower, (1.0 / sides[0], 1.0 / sides[1], 1.0 / sides[2])


@triton.jit
@no_type_check
def _frustum(d, start, end, radius, turn, odd, TURNED: tl.constexpr):
    """What six points of a frustum (Zip-NeRF, section 2) have in common; see ``functional.frustum.multisamples``.

    Their distances are middle + (0.4 j - 1) step, and a point's slope off the axis is a combination of two vectors.
    """
    # Lengths over the far end, so that no fourth power of a distance occurs.
    near = start / tl.maximum(end, 1e-37)
    m, half = 0.5 * (near + 1.0), 0.5 * (1.0 - near)
    m2, d2 = m * m, half * half
    spread = SPREAD * tl.sqrt((d2 - m2) * (d2 - m2) + 4.0 * m2 * m2)
    share = end * half / (d2 + 3.0 * m2)
    middle, step = start + share * (1.0 + 2.0 * m2), share * spread
    if TURNED:
        reverse = turn >= 1.0
        c, s = _cos_sin_of_turn(tl.where(reverse, turn - 1.0, turn))
    else:
        reverse = odd
        c, s = tl.where(odd, COS30, 1.0), tl.where(odd, 0.5, 0.0)
    off_axis = radius * HALF_SQRT2
    c, s = c * off_axis, s * off_axis
    u, v = _basis(d)
    across_u = c * u[0] + s * v[0], c * u[1] + s * v[1], c * u[2] + s * v[2]
    across_v = c * v[0] - s * u[0], c * v[1] - s * u[1], c * v[2] - s * u[2]
    return middle, step, off_axis, reverse, across_u, across_v


@triton.jit
@no_type_check
def _reach(o, d, middle, step, off_axis, box, BOXED: tl.constexpr):
    """How far six points reach; functional.cones.middles_in_cube."""
    reach = 2.0 * (step + off_axis * middle)
    if BOXED:
        sides = box[1]
        reach *= tl.maximum(tl.maximum(sides[0], sides[1]), sides[2])
    else:
        x, y, z = o[0] + middle * d[0], o[1] + middle * d[1], o[2] + middle * d[2]
        inverse = tl.rsqrt(tl.maximum(x * x + y * y + z * z, 1.0))
        reach *= 0.25 * (2.0 - inverse) * inverse
    return reach


@triton.jit
@no_type_check
def _cosine(sample):
    """Cosine of the sample's angle, functional.frustum.multisample_turns sixths of a turn: 0, 2, 4, 3, 5, 1."""
    return tl.where(sample == 0, 1.0, tl.where(sample < 3, -0.5, tl.where(sample == 3, -1.0, 0.5)))


@triton.jit
@no_type_check
def _sine(sample):
    """See _cosine."""
    rising = (sample == 1) | (sample == 5)
    return tl.where(rising, COS30, tl.where((sample == 0) | (sample == 3), 0.0, -COS30))


@triton.jit
@no_type_check
def _multisample(o, d, frustum, sample, spread, box, PREFILTER: tl.constexpr, BOXED: tl.constexpr):
    """One of a frustum's six points in the unit cube, and its extent; where ``spread`` is 0, not 1, their middle."""
    middle, step, off_axis, reverse, across_u, across_v, _ = frustum
    cosine = tl.where(reverse, _cosine(5 - sample), _cosine(sample)) * spread
    sine = tl.where(reverse, _sine(5 - sample), _sine(sample)) * spread
    t = middle + (0.4 * sample - 1.0) * step * spread
    slope = _combine(d, across_u, across_v, cosine, sine)
    point, inverse = _into_cube((o[0] + t * slope[0], o[1] + t * slope[1], o[2] + t * slope[2]), box, BOXED)
    std = 0.5 * off_axis * t
    if BOXED:
        sides = box[1]
        std = std * tl.exp2(tl.log2(sides[0] * sides[1] * sides[2]) * (1.0 / 3.0))
    else:
        # The cube root of |det J|, ((2 - 1/r) / r^2)^(2/3), and a quarter for the cube.
        std = std * 0.25 * tl.exp2(tl.log2((2.0 - inverse) * inverse * inverse) * (2.0 / 3.0))
    return point, extent_of(std, PREFILTER)


@triton.jit
@no_type_check
def _gaussian(o, d, start, end, radius, box, PREFILTER: tl.constexpr, BOXED: tl.constexpr):
    """The cone's own Gaussian in the unit cube, extent the root of the covariance's trace; ``functional.cones``."""
    m, half = 0.5 * (start + end), 0.5 * (end - start)
    m2, d2 = m * m, half * half
    ratio = d2 / tl.maximum(3.0 * m2 + d2, 1e-37)
    t = m + 2.0 * m * ratio
    t_var = tl.maximum(d2 * (1.0 / 3.0) - (4.0 / 15.0) * ratio * ratio * (12.0 * m2 - d2), 0.0)
    r_var = radius * radius * (0.25 * m2 + (5.0 / 12.0) * d2 - (4.0 / 15.0) * d2 * ratio)
    x, y, z = o[0] + t * d[0], o[1] + t * d[1], o[2] + t * d[2]
    point, inverse = _into_cube((x, y, z), box, BOXED)
    if BOXED:
        sides = box[1]
        sx, sy, sz = sides[0] * sides[0], sides[1] * sides[1], sides[2] * sides[2]
        by_direction = d[0] * d[0] * sx + d[1] * d[1] * sy + d[2] * d[2] * sz
        trace = t_var * by_direction + r_var * (sx + sy + sz - by_direction)
    else:
        along, across = inverse * inverse, (2.0 - inverse) * inverse
        cosine = (x * d[0] + y * d[1] + z * d[2]) * inverse
        along2, across2 = along * along, across * across
        by_direction = across2 + (along2 - across2) * tl.minimum(cosine * cosine, 1.0)
        trace = (t_var * by_direction + r_var * (along2 + 2.0 * across2 - by_direction)) * 0.0625
    std = tl.sqrt(tl.maximum(trace, TINY if BOXED else TINY * 0.0625))
    return point, extent_of(std, PREFILTER)


@triton.jit
@no_type_check
def lanes_of(block, per_ray, RAYS: tl.constexpr, BLOCK: tl.constexpr):
    """The first interval of a program, and its lanes' counted from it: BLOCK in a row, or as many of each of RAYS
    neighboring rays, whose lanes then stand in every warp side by side."""
    lanes = tl.arange(0, BLOCK)
    first = block * BLOCK
    if RAYS > 1:
        along = BLOCK // RAYS
        parts = per_ray // along
        group = block // parts
        first = group * (RAYS * per_ray) + (block - group * parts) * along
        in_warp = lanes % WARP
        lanes = in_warp // (WARP // RAYS) * per_ray + lanes // WARP * (WARP // RAYS) + in_warp % (WARP // RAYS)
    return first, lanes


@triton.jit
@no_type_check
def prepare(
    origins, directions, radius, tdist, turns, aabb, shifts, first, lanes, mask, per_ray,
    SAMPLES: tl.constexpr, CONES: tl.constexpr, BOXED: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """What every sample of each lane's interval needs, whatever the level; ``sample_of`` makes samples of it.

    Without CONES ``origins`` are the positions of samples in memory, ``directions`` their stds, and nothing else is
    read. ``shifts`` are the cones', or None. ``first`` is the program's first interval of all rays' ``per_ray`` each,
    ``lanes`` count from it.
    """
    if CONES:
        first_ray = first // per_ray
        number = lanes + (first - first_ray * per_ray).to(tl.int32)
        ray = number // per_ray
        number -= ray * per_ray
        origin = load3(origins + first_ray * 3 + ray * 3, mask)
        direction = load3(directions + first_ray * 3 + ray * 3, mask)
        cone_radius = tl.load(radius + first_ray + ray, mask=mask, other=1.0)
        post = tdist + first_ray * (per_ray + 1) + (ray * (per_ray + 1) + number)
        start, end = tl.load(post, mask=mask, other=0.0), tl.load(post + 1, mask=mask, other=1.0)
        box = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        if BOXED:
            box = _load_box(aabb)
        if SAMPLES == 6:
            turn = start
            if TURNED:
                turn = tl.load(turns + first + lanes, mask=mask, other=0.0)
            shape = _frustum(direction, start, end, cone_radius, turn, (number & 1) == 1, TURNED)
            shape = shape + (_reach(origin, direction, shape[0], shape[1], shape[2], box, BOXED),)
        else:
            shape = (start, end, cone_radius)
        source = (origin, direction, shape, box)
        if shifts is not None:
            source = (origin, direction, shape, box, load3(shifts + (first + lanes) * 3, mask))
    else:
        source = (origins + first * (SAMPLES * 3), directions + first * SAMPLES, lanes * SAMPLES, mask)
    return source


@triton.jit
@no_type_check
def close_of(source, resolution, close, mask, SAMPLES: tl.constexpr):
    """Samples that every lane of the program needs at a level, and how far each lane's are spread: 0 where they lie
    within ``close`` cells, where all of them are in their middle, else 1."""
    is_close = source[2][6] * resolution < close
    apart = tl.max((mask & (is_close == 0)).to(tl.int32), axis=0)
    return tl.where(apart > 0, SAMPLES, 1), tl.where(is_close, 0.0, 1.0)


@triton.jit
@no_type_check
def sample_of(
    source, sample, spread, SAMPLES: tl.constexpr, PREFILTER: tl.constexpr, CONES: tl.constexpr, BOXED: tl.constexpr,
    SHIFTED: tl.constexpr = False,
):  # fmt: skip
    """A sample of each lane's interval: its position, and its extent; see ``extent_of`` and ``close_of``."""
    if CONES:
        origin, direction, shape, box = source[0], source[1], source[2], source[3]
        if SAMPLES == 6:
            point, extent = _multisample(origin, direction, shape, sample, spread, box, PREFILTER, BOXED)
        else:
            point, extent = _gaussian(origin, direction, shape[0], shape[1], shape[2], box, PREFILTER, BOXED)
        if SHIFTED:
            point = (point[0] + source[4][0], point[1] + source[4][1], point[2] + source[4][2])
    else:
        positions, stds, offset, mask = source
        point = load3(positions + (offset + sample) * 3, mask)
        extent = extent_of(tl.load(stds + offset + sample, mask=mask, other=0.0), PREFILTER)
    return point, extent


@triton.jit
@no_type_check
def keep_samples(
    source, SAMPLES: tl.constexpr, PREFILTER: tl.constexpr, CONES: tl.constexpr, BOXED: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """All samples of each lane's interval, and last their middle, for a program that needs them at several levels."""
    kept = (sample_of(source, 0, 1.0, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED),)
    for sample in tl.static_range(1, SAMPLES):
        kept = kept + (sample_of(source, sample, 1.0, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED),)
    return kept + (sample_of(source, 0, 0.0, SAMPLES, PREFILTER, CONES, BOXED, SHIFTED),)


@triton.jit
@no_type_check
def _either(takes, a, b):
    """A sample or another one."""
    point = tl.where(takes, a[0][0], b[0][0]), tl.where(takes, a[0][1], b[0][1]), tl.where(takes, a[0][2], b[0][2])
    return point, tl.where(takes, a[1], b[1])


@triton.jit
@no_type_check
def kept_sample(kept, sample, spread, SAMPLES: tl.constexpr, CLOSE: tl.constexpr):
    """``sample_of``, of what ``keep_samples`` has kept."""
    found = kept[0]
    for other in tl.static_range(1, SAMPLES):
        found = _either(sample == other, kept[other], found)
    if CLOSE:
        found = _either(spread == 0.0, kept[SAMPLES], found)
    return found
