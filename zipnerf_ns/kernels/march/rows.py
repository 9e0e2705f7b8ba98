"""What the kernels along rays share: a program works on RAYS rays, each a row of N lanes, one lane an interval."""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.functional import numerics

TINY = tl.constexpr(numerics.TINY)
ALIKE = {"enable_fp_fusion": False}
"""Option of launches that store sums of products. All threads that hold a sum write it to one place on the way: where
each fuses its own product into the sum, unrounded, which the others see rounded, their last bits would differ."""


@triton.jit
@no_type_check
def rows_of(rays, RAYS: tl.constexpr):
    """This program's rays, and which of them exist. 64 bits: a ray's number is multiplied by strides."""
    rows = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)
    return rows, rows < rays


@triton.jit
@no_type_check
def load_row(values, rows, stride, lanes, mask):
    """One value a lane of each ray's row; 0 where masked."""
    return tl.load(values + (rows * stride)[:, None] + lanes, mask=mask, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def shifted(values, lanes, BY: tl.constexpr, N: tl.constexpr):
    """The value BY lanes further along the row; 0 where the row ends."""
    other = lanes + BY
    within = (other >= 0) & (other < N)
    index = tl.broadcast_to(tl.where(within, other, lanes), values.shape)
    return tl.where(within, tl.gather(values, index, 1), 0.0)
