"""The kernel of the view directions' encoding, one lane a ray."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rays"])
@no_type_check
def directions_kernel(
    directions, encoded, rays, row_stride, LOW: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr
):
    """functional.mlp.encode_directions of BLOCK rays, at the frequencies LOW and HIGH."""
    lines = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = lines < rays
    target = encoded + lines * 16
    for axis in tl.static_range(3):
        x = tl.load(directions + lines * row_stride + axis, mask=mask, other=0.0)
        tl.store(target + axis, x, mask=mask)
        tl.store(target + (3 + axis), tl.sin(LOW * x), mask=mask)
        tl.store(target + (6 + axis), tl.cos(LOW * x), mask=mask)
        tl.store(target + (9 + axis), tl.sin(HIGH * x), mask=mask)
        tl.store(target + (12 + axis), tl.cos(HIGH * x), mask=mask)
    tl.store(target + 15, tl.zeros([BLOCK], tl.float32), mask=mask)
