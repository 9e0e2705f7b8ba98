"""The kernel of the view directions' encoding, one lane a ray."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rays"])
@no_type_check
def harmonics_kernel(directions, harmonics, rays, row_stride, BLOCK: tl.constexpr):
    """functional.mlp.spherical_harmonics of BLOCK rays."""
    lines = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lines < rays
    x = tl.load(directions + lines * row_stride, mask=mask, other=0.0)
    y = tl.load(directions + lines * row_stride + 1, mask=mask, other=0.0)
    z = tl.load(directions + lines * row_stride + 2, mask=mask, other=0.0)
    xx, yy, zz = x * x, y * y, z * z
    target = harmonics + lines * 16
    tl.store(target, tl.full([BLOCK], 0.28209479177387814, tl.float32), mask=mask)
    tl.store(target + 1, 0.4886025119029199 * y, mask=mask)
    tl.store(target + 2, 0.4886025119029199 * z, mask=mask)
    tl.store(target + 3, 0.4886025119029199 * x, mask=mask)
    tl.store(target + 4, 1.0925484305920792 * x * y, mask=mask)
    tl.store(target + 5, 1.0925484305920792 * y * z, mask=mask)
    tl.store(target + 6, 0.9461746957575601 * zz - 0.31539156525251999, mask=mask)
    tl.store(target + 7, 1.0925484305920792 * x * z, mask=mask)
    tl.store(target + 8, 0.5462742152960396 * (xx - yy), mask=mask)
    tl.store(target + 9, 0.5900435899266435 * y * (3.0 * xx - yy), mask=mask)
    tl.store(target + 10, 2.890611442640554 * x * y * z, mask=mask)
    tl.store(target + 11, 0.4570457994644658 * y * (5.0 * zz - 1.0), mask=mask)
    tl.store(target + 12, 0.3731763325901154 * z * (5.0 * zz - 3.0), mask=mask)
    tl.store(target + 13, 0.4570457994644658 * x * (5.0 * zz - 1.0), mask=mask)
    tl.store(target + 14, 1.445305721320277 * z * (xx - yy), mask=mask)
    tl.store(target + 15, 0.5900435899266435 * x * (xx - 3.0 * yy), mask=mask)
