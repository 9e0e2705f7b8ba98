"""The kernels of one hidden layer over the encoding's features and the density on top of it, in both directions.

A row is an interval. Nothing of the hidden layer's width reaches memory: the backward kernel computes it again, and
keeps the sums over rows that are the weights' gradients in registers while it walks over its blocks of rows.
"""

import os
from typing import no_type_check

import triton
import triton.language as tl

MAX_EXPONENT = tl.constexpr(15.0)
"""functional.numerics.MAX_EXPONENT."""
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
"""Whether ``triton.jit`` makes interpreted functions; it looks there when it decorates those below."""


@triton.jit
@no_type_check
def multiply(a, b, acc):
    """acc + a b, in full float32 where the operands are float32."""
    if INTERPRETED:
        # The interpreter would multiply half-precision numbers as the integers that it stores them as.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
@no_type_check
def feature_offsets(lines, row_stride, channel_stride, PADDED: tl.constexpr):
    """Where the features of a block's lines lie from its first one on; a whole channel may lie between two of them."""
    channels = tl.arange(0, PADDED)
    return lines[:, None] * row_stride + (channels.to(tl.int64) * channel_stride)[None, :]


@triton.jit
@no_type_check
def feature_mask(mask, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
    """Which of a block's padded features exist."""
    return mask[:, None] & (tl.arange(0, PADDED) < CHANNELS)[None, :]


@triton.jit
@no_type_check
def load_hidden_weights(
    weights, CHANNELS: tl.constexpr, PADDED: tl.constexpr, HIDDEN: tl.constexpr, DTYPE: tl.constexpr
):
    """The hidden layer's weights, [HIDDEN, PADDED], zeros beyond the last channel."""
    units, channels = tl.arange(0, HIDDEN)[:, None], tl.arange(0, PADDED)[None, :]
    return tl.load(weights + units * CHANNELS + channels, mask=channels < CHANNELS, other=0.0).to(DTYPE)


@triton.jit
@no_type_check
def hidden_units(x, w_hidden, b_hidden):
    """relu(x W^T + b) in float32."""
    acc = tl.zeros([x.shape[0], w_hidden.shape[0]], tl.float32)
    return tl.maximum(multiply(x, tl.trans(w_hidden), acc) + b_hidden[None, :], 0.0)


@triton.jit
@no_type_check
def density_of(hidden, w_density, raw_shift):
    """exp of the bounded head over float32 hidden units; in half precision the exponent would be noise."""
    raw = tl.sum(hidden * w_density[None, :], axis=1) + raw_shift
    return tl.exp(tl.minimum(raw, MAX_EXPONENT))


@triton.jit(do_not_specialize=["num_rows"])
@no_type_check
def density_forward_kernel(
    features,
    w_hidden,
    b_hidden,
    w_density,
    b_density,
    density,
    num_rows,
    row_stride,
    channel_stride,
    shift,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Density of BLOCK rows."""
    units, lines = tl.arange(0, HIDDEN), tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    mask = lines < num_rows - first
    source = features + first * row_stride + feature_offsets(lines, row_stride, channel_stride, PADDED)
    x = tl.load(source, mask=feature_mask(mask, CHANNELS, PADDED), other=0.0).to(DTYPE)
    w = load_hidden_weights(w_hidden, CHANNELS, PADDED, HIDDEN, DTYPE)
    hidden = hidden_units(x, w, tl.load(b_hidden + units))
    value = density_of(hidden, tl.load(w_density + units), tl.load(b_density) + shift)
    tl.store(density + first + lines, value, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
@no_type_check
def density_backward_kernel(
    features,
    w_hidden,
    b_hidden,
    w_density,
    density,
    v_density,
    v_hidden,
    v_features,
    partials,
    num_rows,
    row_stride,
    channel_stride,
    v_row_stride,
    v_channel_stride,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    DTYPE: tl.constexpr,
    HAS_HIDDEN: tl.constexpr,
    WRITES_FEATURES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Cotangents of the features, and this program's share of the parameters' gradients.

    ``v_hidden`` [rows, HIDDEN] is what other users of the hidden layer ask of it. ``partials`` is, per program,
    v_w_hidden [HIDDEN, PADDED], v_b_hidden [HIDDEN], v_w_density [HIDDEN] and v_b_density.
    """
    units, channels, lines = tl.arange(0, HIDDEN), tl.arange(0, PADDED), tl.arange(0, BLOCK)
    w = load_hidden_weights(w_hidden, CHANNELS, PADDED, HIDDEN, DTYPE)
    b, head = tl.load(b_hidden + units), tl.load(w_density + units)
    v_w = tl.zeros([HIDDEN, PADDED], tl.float32)
    v_b, v_head = tl.zeros([HIDDEN], tl.float32), tl.zeros([HIDDEN], tl.float32)
    v_raws = tl.zeros([BLOCK], tl.float32)
    stride = tl.num_programs(0).to(tl.int64) * BLOCK
    for first in range(tl.program_id(0).to(tl.int64) * BLOCK, num_rows, stride):
        # Wide numbers once a block, narrow ones once a line: pointers of lines are what fills the registers.
        mask = lines < num_rows - first
        present = feature_mask(mask, CHANNELS, PADDED)
        source = features + first * row_stride + feature_offsets(lines, row_stride, channel_stride, PADDED)
        x = tl.load(source, mask=present, other=0.0).to(DTYPE)
        # Units down, rows across: sums over rows stay within a warp, and v_units is an operand as it comes out.
        hidden = multiply(w, tl.trans(x), tl.zeros([HIDDEN, BLOCK], tl.float32))
        hidden = tl.maximum(hidden + b[:, None], 0.0)
        # The bounded exponential's own rule: its value is its derivative, above the bound too.
        v_raw = tl.load(v_density + first + lines, mask=mask, other=0.0)
        v_raw *= tl.load(density + first + lines, mask=mask, other=0.0)
        v_raws += v_raw
        v_head += tl.sum(v_raw[None, :] * hidden, axis=1)
        v_units = head[:, None] * v_raw[None, :]
        if HAS_HIDDEN:
            source = v_hidden + first * HIDDEN + (lines[None, :] * HIDDEN + units[:, None])
            v_units += tl.load(source, mask=mask[None, :], other=0.0).to(tl.float32)
        v_units = tl.where(hidden > 0.0, v_units, 0.0)
        v_b += tl.sum(v_units, axis=1)
        v_units = v_units.to(DTYPE)
        v_w = multiply(v_units, x, v_w)
        if WRITES_FEATURES:
            v_x = multiply(tl.trans(v_units), w, tl.zeros([BLOCK, PADDED], tl.float32))
            target = v_features + first * v_row_stride
            tl.store(target + feature_offsets(lines, v_row_stride, v_channel_stride, PADDED), v_x, mask=present)
    share = partials + tl.program_id(0) * (HIDDEN * (PADDED + 2) + 1)
    tl.store(share + units[:, None] * PADDED + channels[None, :], v_w)
    tl.store(share + HIDDEN * PADDED + units, v_b)
    tl.store(share + HIDDEN * (PADDED + 1) + units, v_head)
    tl.store(share + HIDDEN * (PADDED + 2), tl.sum(v_raws, axis=0))
