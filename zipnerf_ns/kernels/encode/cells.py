"""What the kernels of the prefiltered hash encoding share on the device: levels, cells and rows.

``no_type_check`` keeps a runtime type checker's wrappers off functions whose source Triton compiles.
"""

from typing import no_type_check

import triton
import triton.language as tl

LEVEL_FIELDS = tl.constexpr(5)
"""Integers that describe a level to the kernels; see constants.level_constants."""


@triton.jit
@no_type_check
def load_level(levels, index):
    """Cells a side, first row, y and z multipliers, hash mask (-1 for a dense level): scalars of one level."""
    level = levels + index * LEVEL_FIELDS
    return tl.load(level), tl.load(level + 1), tl.load(level + 2), tl.load(level + 3), tl.load(level + 4)


@triton.jit
@no_type_check
def load3(pointers, mask):
    """The three coordinates of a point a lane; 0 where masked."""
    x = tl.load(pointers, mask=mask, other=0.0)
    y = tl.load(pointers + 1, mask=mask, other=0.0)
    return x, y, tl.load(pointers + 2, mask=mask, other=0.0)


@triton.jit
@no_type_check
def _locate(position, resolution):
    """Lower of the two cells around a coordinate, and how far towards the upper one it lies."""
    last = resolution - 1.0
    # A coordinate that is no number stays none here, so that a divergence is seen in the features, and lands in the
    # grid below, for the minimum of none and a number is that number.
    cells = tl.maximum(position * resolution - 0.5, 0.0, propagate_nan=tl.PropagateNan.ALL)
    cells = tl.minimum(cells, last, propagate_nan=tl.PropagateNan.ALL)
    lower = tl.minimum(tl.floor(cells), tl.maximum(last - 1.0, 0.0))
    return lower.to(tl.int32), cells - lower


@triton.jit
@no_type_check
def locate3(point, resolution):
    """Lower cell and fraction along each axis."""
    i, u = _locate(point[0], resolution)
    j, v = _locate(point[1], resolution)
    k, w = _locate(point[2], resolution)
    return (i, j, k), (u, v, w)


@triton.jit
@no_type_check
def differs(a, b):
    """Whether two cells differ."""
    return (a[0] != b[0]) | (a[1] != b[1]) | (a[2] != b[2])


@triton.jit
@no_type_check
def key_of(cell):
    """A cell as one number."""
    return cell[0].to(tl.int64) | (cell[1].to(tl.int64) << 16) | (cell[2].to(tl.int64) << 32)


@triton.jit
@no_type_check
def corner_rows(cell, level, XOR: tl.constexpr, knot=None):
    """Rows within the level of the eight cells, x fastest; see functional.hash_grid.level_corners.

    XOR: every level here is hashed, or dense with a power of two cells a side, whose sums carry nothing and so are
    exclusive ors too. ``knot``: what the cell in time adds to a row's number, where there is time.
    """
    i, j, k = cell
    resolution, _, y_step, z_step, mask = level
    # A level of a single cell has no neighbor; its multipliers are zero, so only x needs saying.
    right = i + tl.minimum(resolution - 1, 1)
    y0, z0 = j * y_step, k * z_step
    y1, z1 = y0 + y_step, z0 + z_step
    rows = ()
    for side in tl.static_range(4):
        y = y1 if side & 1 else y0
        z = z1 if side & 2 else z0
        if knot is not None:
            z = z ^ knot if XOR else tl.where(mask < 0, z + knot, z ^ knot)
        if XOR:
            hashed = (y ^ z) & mask
            rows = rows + ((i & mask) ^ hashed, (right & mask) ^ hashed)
        else:
            hashed, dense = y ^ z, y + z
            rows = rows + (tl.where(mask < 0, i + dense, (i ^ hashed) & mask),)
            rows = rows + (tl.where(mask < 0, right + dense, (right ^ hashed) & mask),)
    return rows


@triton.jit
@no_type_check
def corner_weights(fraction, weight):
    """Trilinear weights of the eight corners, x fastest, times ``weight``; what one side takes the other lacks."""
    u, v, w = fraction
    x1 = weight * u
    x0 = weight - x1
    x0y1, x1y1 = x0 * v, x1 * v
    x0y0, x1y0 = x0 - x0y1, x1 - x1y1
    a, b, c, d = x0y0 * w, x1y0 * w, x0y1 * w, x1y1 * w
    return x0y0 - a, x1y0 - b, x0y1 - c, x1y1 - d, a, b, c, d


@triton.jit
@no_type_check
def continue_run(sums, shares, moved):
    """Adds a sample's corner weights to its run's, or begins a new run where the cell has changed."""
    keep = tl.where(moved, 0.0, 1.0)
    merged = ()
    for corner in tl.static_range(8):
        merged = merged + (sums[corner] * keep + shares[corner],)
    return merged


@triton.jit
@no_type_check
def load_times(times, first, lanes, mask, per_ray):
    """The time of each lane's interval; its ray is that of ``cones.prepare``."""
    first_ray = first // per_ray
    ray = (lanes + (first - first_ray * per_ray).to(tl.int32)) // per_ray
    return tl.load(times + first_ray + ray, mask=mask, other=0.0)


@triton.jit
@no_type_check
def locate_knots(time, knots, index):
    """What the two cells in time add to a row's number, see :func:`corner_rows`, and the weights of their features."""
    count = tl.load(knots + index * 2)
    step = tl.load(knots + index * 2 + 1)
    lower, share = _locate(time, count.to(tl.float32))
    upper = tl.minimum(lower + 1, count - 1)
    return (lower * step, upper * step), (1.0 - share, share)
