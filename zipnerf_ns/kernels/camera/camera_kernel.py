"""From pixels to rays on the device, one lane a ray.

Every ray is treated alike, whatever its camera: Newton's undistortion leaves a camera without distortion exactly as it
is, and both projections are computed and one chosen. A ray costs some 2000 operations that way, 65,536 of them a few
microseconds, and there is one variant to compile and to trust. Quotients and roots are rounded correctly: a pixel's
area is a product of differences of nearly equal directions.
"""

from typing import no_type_check

import triton
import triton.language as tl

CAMERA_FIELDS = tl.constexpr(24)
"""Numbers that describe a camera; see zipnerf_ns.cameras.rays.pack."""
NEWTON_STEPS = tl.constexpr(10)
MIN_DETERMINANT = tl.constexpr(1e-3)
"""Steps and smallest determinant of nerfstudio.cameras.camera_utils.radial_and_tangential_undistort."""
MOST = tl.constexpr(1e18)
"""Focal lengths off the axis, beyond which nothing was found."""
PI = tl.constexpr(3.1415927410125732)
MIN_NORM = tl.constexpr(8.881784197001252e-16)
"""The least length that Nerfstudio divides a direction by."""


@triton.jit
@no_type_check
def _undistort(x_distorted, y_distorted, lens):
    """Newton's solution (x, y) of: the lens distorts (x, y) to what is given."""
    k1, k2, k3, k4, p1, p2 = lens
    x, y = x_distorted, y_distorted
    for _ in range(0, NEWTON_STEPS):
        r = x * x + y * y
        d = 1.0 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
        error_x = d * x + 2.0 * p1 * x * y + p2 * (r + 2.0 * x * x) - x_distorted
        error_y = d * y + 2.0 * p2 * x * y + p1 * (r + 2.0 * y * y) - y_distorted
        slope = 2.0 * (k1 + r * (2.0 * k2 + r * (3.0 * k3 + r * 4.0 * k4)))
        x_by_x = d + slope * x * x + 2.0 * p1 * y + 6.0 * p2 * x
        x_by_y = slope * x * y + 2.0 * p1 * x + 2.0 * p2 * y
        y_by_y = d + slope * y * y + 2.0 * p2 * x + 6.0 * p1 * y
        # The Jacobian is symmetric: both off-diagonal entries are x_by_y.
        determinant = x_by_y * x_by_y - x_by_x * y_by_y
        solvable = tl.abs(determinant) > MIN_DETERMINANT
        inverse = tl.where(solvable, 1.0 / tl.where(solvable, determinant, 1.0), 0.0)
        step_x = (error_x * y_by_y - error_y * x_by_y) * inverse
        step_y = (error_y * x_by_x - error_x * x_by_y) * inverse
        x += step_x
        y += step_y
    # Of a lens that bends light there as none does, the steps leave what float32 holds.
    is_found = (tl.abs(x) < MOST) & (tl.abs(y) < MOST)
    return tl.where(is_found, x, x_distorted), tl.where(is_found, y, y_distorted)


@triton.jit
@no_type_check
def _direction(x, y, lens, is_fisheye, rotation):
    """World direction of unit length through a point of the image plane (y down), and its length before."""
    x, y = _undistort(x, y, lens)
    y = -y
    angle = tl.minimum(tl.sqrt_rn(x * x + y * y), PI)
    # At the center the quotient's limit: Nerfstudio divides zero by zero there.
    off_axis = angle > 0.0
    sine = tl.where(off_axis, tl.div_rn(tl.sin(angle), tl.where(off_axis, angle, 1.0)), 1.0)
    x = tl.where(is_fisheye, x * sine, x)
    y = tl.where(is_fisheye, y * sine, y)
    z = tl.where(is_fisheye, -tl.cos(angle), -1.0)
    a = x * rotation[0] + y * rotation[1] + z * rotation[2]
    b = x * rotation[3] + y * rotation[4] + z * rotation[5]
    c = x * rotation[6] + y * rotation[7] + z * rotation[8]
    norm = tl.maximum(tl.sqrt_rn(a * a + b * b + c * c), MIN_NORM)
    return (tl.div_rn(a, norm), tl.div_rn(b, norm), tl.div_rn(c, norm)), norm


@triton.jit
@no_type_check
def _distance(first, second):
    """Between two points."""
    a, b, c = first[0] - second[0], first[1] - second[1], first[2] - second[2]
    return tl.sqrt_rn(a * a + b * b + c * c)


@triton.jit
@no_type_check
def _store3(pointers, values, mask):
    tl.store(pointers, values[0], mask=mask)
    tl.store(pointers + 1, values[1], mask=mask)
    tl.store(pointers + 2, values[2], mask=mask)


@triton.jit
@no_type_check
def _write_rays(cameras, camera, column, row, outputs, rays, mask):
    """Computes and stores the rays through the centers of pixels.

    ``outputs`` are origins, directions, pixel areas and directions' lengths; ``rays`` says where in them.
    """
    origins, directions, areas, norms = outputs
    numbers = cameras + camera * CAMERA_FIELDS
    pose = ()
    for index in tl.static_range(12):
        pose = pose + (tl.load(numbers + index, mask=mask, other=0.0),)
    lens = ()
    for index in tl.static_range(6):
        lens = lens + (tl.load(numbers + 16 + index, mask=mask, other=0.0),)
    focal_x = tl.load(numbers + 12, mask=mask, other=1.0)
    focal_y = tl.load(numbers + 13, mask=mask, other=1.0)
    is_fisheye = tl.load(numbers + 22, mask=mask, other=0.0) > 0.0
    rotation = (pose[0], pose[1], pose[2], pose[4], pose[5], pose[6], pose[8], pose[9], pose[10])
    across = column.to(tl.float32) + 0.5 - tl.load(numbers + 14, mask=mask, other=0.0)
    down = row.to(tl.float32) + 0.5 - tl.load(numbers + 15, mask=mask, other=0.0)
    x, y = tl.div_rn(across, focal_x), tl.div_rn(down, focal_y)
    here, norm = _direction(x, y, lens, is_fisheye, rotation)
    right, _ = _direction(tl.div_rn(across + 1.0, focal_x), y, lens, is_fisheye, rotation)
    below, _ = _direction(x, tl.div_rn(down + 1.0, focal_y), lens, is_fisheye, rotation)
    _store3(origins + rays * 3, (pose[3], pose[7], pose[11]), mask)
    _store3(directions + rays * 3, here, mask)
    tl.store(areas + rays, _distance(here, right) * _distance(here, below), mask=mask)
    tl.store(norms + rays, norm, mask=mask)


@triton.jit(do_not_specialize=["num_rays"])
@no_type_check
def pixel_rays_kernel(cameras, indices, origins, directions, areas, norms, num_rays, BLOCK: tl.constexpr):
    """Rays of pixels named by camera, row and column: ``indices`` is [rays, 3]."""
    rays = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = rays < num_rays
    camera = tl.load(indices + rays * 3, mask=mask, other=0)
    row = tl.load(indices + rays * 3 + 1, mask=mask, other=0)
    column = tl.load(indices + rays * 3 + 2, mask=mask, other=0)
    _write_rays(cameras, camera, column, row, (origins, directions, areas, norms), rays, mask)


@triton.jit(do_not_specialize=["first", "width", "num_rays"])
@no_type_check
def image_rays_kernel(
    cameras, origins, directions, areas, norms, first, width, num_rays, BLOCK: tl.constexpr
):  # fmt: skip
    """Rays of ``num_rays`` pixels of the first camera's picture, row by row from pixel ``first`` on."""
    rays = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = rays < num_rays
    pixel = first + rays
    row = pixel // width
    column = pixel - row * width
    _write_rays(cameras, tl.zeros([BLOCK], tl.int32), column, row, (origins, directions, areas, norms), rays, mask)


@triton.jit
@no_type_check
def _image_of(pixel, starts, num_images, mask, STEPS: tl.constexpr):
    """The last image that begins at or before a pixel of the store, by bisection."""
    image = tl.zeros(pixel.shape, tl.int32)
    for step in tl.static_range(STEPS):
        candidate = image + (1 << (STEPS - 1 - step))
        exists = candidate < num_images
        start = tl.load(starts + candidate, mask=mask & exists, other=0)
        image = tl.where(exists & (start <= pixel), candidate, image)
    return image


@triton.jit(do_not_specialize=["num_images", "num_rays"])
@no_type_check
def drawn_rays_kernel(
    cameras,
    drawn,
    allowed,
    starts,
    widths,
    colors,
    indices,
    image_colors,
    origins,
    directions,
    areas,
    norms,
    num_images,
    num_rays,
    HAS_ALLOWED: tl.constexpr,
    IS_GATHERED: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What ``data.pixels.PixelStore.sample`` says of drawn pixels, and their rays.

    ``drawn`` counts the store's pixels, or the entries of ``allowed``, whose colors alone ``colors`` has where it
    IS_GATHERED. Written are camera, row and column as [rays, 3]
    and colors in [0, 1] as [rays, CHANNELS]. STEPS is the number of bits of the last image's number.
    """
    rays = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = rays < num_rays
    place = tl.load(drawn + rays, mask=mask, other=0)
    pixel = place
    if HAS_ALLOWED:
        pixel = tl.load(allowed + place, mask=mask, other=0).to(tl.int64)
    if not IS_GATHERED:
        place = pixel
    camera = _image_of(pixel, starts, num_images, mask, STEPS)
    # Within an image 32 bits suffice, and divide faster.
    within = (pixel - tl.load(starts + camera, mask=mask, other=0)).to(tl.int32)
    width = tl.load(widths + camera, mask=mask, other=1).to(tl.int32)
    row = within // width
    column = within - row * width
    _store3(indices + rays * 3, (camera.to(tl.int64), row.to(tl.int64), column.to(tl.int64)), mask)
    for channel in tl.static_range(CHANNELS):
        value = tl.load(colors + place * CHANNELS + channel, mask=mask, other=0).to(tl.float32)
        tl.store(image_colors + rays * CHANNELS + channel, tl.div_rn(value, 255.0), mask=mask)
    _write_rays(cameras, camera, column, row, (origins, directions, areas, norms), rays, mask)
