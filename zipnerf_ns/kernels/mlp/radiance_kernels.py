"""The kernels of density and color: a network of LAYERS color layers on one hidden layer, in both directions.

A program keeps its block of rows on chip from the features to the color, two layers at a time: a chunk of units of the
lower one is an operand of the upper one's product as soon as it is known. So only the upper one is ever held whole, and
the weights of a chunk are on their way while the chunk before is worked on. The last layer goes into the color in the
same way where it has no partner. The backward kernel goes the same way down. Layers are numbered from 1.

``saved`` is what the weights' gradients need of a forward pass, a row of values per row: layer LAYERS - 1, the hidden
layer, view and a one; layers 1 to LAYERS - 2 with a one before each, of which the first is that beside view; and layer
LAYERS. A one is padded with zeros to VIEW values. In this order whatever feeds a layer is neighbors, and one matrix
product gives the gradients of its weights and biases. ``signs`` is what the cotangents need of layers 1 to LAYERS - 1:
which units are active, a bit each, instead of reading all of ``saved`` once more.

``weights`` is one vector: the first layer's [WIDTH, HIDDEN] and [WIDTH, VIEW], the [WIDTH, WIDTH] matrices of layers 2
to LAYERS, the last layer's [WIDTH, HIDDEN] and [WIDTH, VIEW], color [3, WIDTH], hidden layer [HIDDEN, CHANNELS].
``biases`` is hidden layer, density's weights, layers 1 to LAYERS, color, density.
"""

from typing import no_type_check

import triton
import triton.language as tl

from zipnerf_ns.kernels.mlp.density_kernels import (
    density_of,
    feature_mask,
    feature_offsets,
    hidden_units,
    load_hidden_weights,
    multiply,
)

COLORS = tl.constexpr(16)
"""Columns of a product that gives the three colors: the fewest that tensor cores take."""
WORD = tl.constexpr(32)
"""Units whose signs share an integer."""


@triton.jit
@no_type_check
def _matrix(base, rows, ROW: tl.constexpr, first_column, COLUMNS: tl.constexpr):
    """COLUMNS columns of some rows of a matrix with rows of ROW values."""
    return tl.load(base + rows[:, None] * ROW + (tl.arange(0, COLUMNS) + first_column)[None, :])


@triton.jit
@no_type_check
def _colors(base, first_column, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """COLUMNS columns of the colors' weights, padded with zeros to COLORS rows."""
    color, column = tl.arange(0, COLORS)[:, None], first_column + tl.arange(0, COLUMNS)[None, :]
    return tl.load(base + color * WIDTH + column, mask=color < 3, other=0.0)


@triton.jit
@no_type_check
def _times(a, w, acc):
    """acc + a W^T."""
    return multiply(a, tl.trans(w), acc)


@triton.jit
@no_type_check
def _square(weights, LAYER: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VIEW: tl.constexpr):
    """Where a layer's matrix over the layer below begins."""
    return weights + (WIDTH * (HIDDEN + VIEW) + (LAYER - 2) * WIDTH * WIDTH)


@triton.jit
@no_type_check
def _side(weights, LAYER: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VIEW: tl.constexpr):
    """Where a layer's matrices over hidden layer and view begin."""
    if LAYER == 1:
        side = weights
    else:
        side = _square(weights, LAYER + 1, WIDTH, HIDDEN, VIEW)
    return side


@triton.jit
@no_type_check
def _from_side(hidden, view, side, rows, acc, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VIEW: tl.constexpr):
    """acc plus what hidden layer and view give to some units of a layer."""
    acc = _times(hidden, _matrix(side, rows, HIDDEN, 0, HIDDEN), acc)
    return _times(view, _matrix(side + WIDTH * HIDDEN, rows, VIEW, 0, VIEW), acc)


@triton.jit
@no_type_check
def _chunk(
    below, hidden, view, weights, biases, first,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VIEW: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """CHUNK units of a layer from the whole of what lies below it."""
    rows = first + tl.arange(0, CHUNK)
    acc = tl.zeros([hidden.shape[0], CHUNK], tl.float32)
    if LAYER > 1:
        acc = _times(below, _matrix(_square(weights, LAYER, WIDTH, HIDDEN, VIEW), rows, WIDTH, 0, WIDTH), acc)
    if LAYER == 1 or LAYER == LAYERS:
        acc = _from_side(hidden, view, _side(weights, LAYER, WIDTH, HIDDEN, VIEW), rows, acc, WIDTH, HIDDEN, VIEW)
    bias = tl.load(biases + (2 * HIDDEN + (LAYER - 1) * WIDTH) + rows)
    return tl.maximum(acc + bias[None, :], 0.0).to(hidden.dtype)


@triton.jit
@no_type_check
def _saved_layer(
    saved, LAYER: tl.constexpr, LAYERS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VIEW: tl.constexpr
):
    """Where a layer begins in a row of ``saved``; layer 0 is the hidden one."""
    if LAYER == LAYERS - 1:
        layer = saved
    elif LAYER == 0:
        layer = saved + WIDTH
    elif LAYER == LAYERS and LAYERS > 2:
        layer = saved + (WIDTH + HIDDEN + VIEW + (LAYERS - 2) * (VIEW + WIDTH))
    elif LAYER == LAYERS:
        layer = saved + (WIDTH + HIDDEN + 2 * VIEW)
    else:
        layer = saved + (WIDTH + HIDDEN + VIEW + (LAYER - 1) * (VIEW + WIDTH) + VIEW)
    return layer


@triton.jit
@no_type_check
def _block(base, lines, first_column, ROW: tl.constexpr, COLUMNS: tl.constexpr):
    """Pointers to COLUMNS values of a block's lines, each of ROW values."""
    return base + (lines[:, None] * ROW + (tl.arange(0, COLUMNS) + first_column)[None, :])


@triton.jit
@no_type_check
def _store_signs(signs, units, lines, here, first_column, ROW: tl.constexpr, COLUMNS: tl.constexpr):
    """Stores which of COLUMNS units are active, 32 of them in an integer; a row of ``signs`` has ROW units."""
    bit = (tl.full([COLUMNS], 1, tl.int32) << (tl.arange(0, COLUMNS) % WORD))[None, :]
    bits = tl.where(units.to(tl.float32) > 0.0, bit, 0)
    words = tl.sum(tl.reshape(bits, [units.shape[0], COLUMNS // WORD, WORD]), axis=2)
    tl.store(_block(signs, lines, first_column // WORD, ROW // WORD, COLUMNS // WORD), words, mask=here)


@triton.jit
@no_type_check
def _load_signs(signs, lines, here, first_column, ROW: tl.constexpr, COLUMNS: tl.constexpr):
    """Which of COLUMNS units are active."""
    words = tl.load(_block(signs, lines, first_column // WORD, ROW // WORD, COLUMNS // WORD), mask=here, other=0)
    bits = (words[:, :, None] >> tl.arange(0, WORD)[None, None, :]) & 1
    return tl.reshape(bits, [lines.shape[0], COLUMNS]) != 0


@triton.jit(do_not_specialize=["num_rows", "samples"])
@no_type_check
def radiance_forward_kernel(
    features,
    view,
    weights,
    biases,
    density,
    rgb,
    saved,
    signs,
    num_rows,
    samples,
    row_stride,
    channel_stride,
    shift,
    padding,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    HIDDEN: tl.constexpr,
    VIEW: tl.constexpr,
    WIDTH: tl.constexpr,
    LAYERS: tl.constexpr,
    SAVES: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Density and color of BLOCK rows; row i is seen along ray i // samples."""
    SAVED: tl.constexpr = LAYERS * WIDTH + HIDDEN + VIEW + VIEW * (1 if LAYERS == 2 else LAYERS - 2)
    lines, units, everything = tl.arange(0, BLOCK), tl.arange(0, HIDDEN), tl.arange(0, WIDTH)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    mask = lines < num_rows - first
    here = mask[:, None]

    source = features + first * row_stride + feature_offsets(lines, row_stride, channel_stride, PADDED)
    x = tl.load(source, mask=feature_mask(mask, CHANNELS, PADDED), other=0.0).to(DTYPE)
    colors = _side(weights, LAYERS, WIDTH, HIDDEN, VIEW) + WIDTH * (HIDDEN + VIEW)
    w = load_hidden_weights(colors + 3 * WIDTH, CHANNELS, PADDED, HIDDEN, DTYPE)
    hidden = hidden_units(x, w, tl.load(biases + units))
    raw_shift = tl.load(biases + (2 * HIDDEN + LAYERS * WIDTH + 3)) + shift
    tl.store(density + first + lines, density_of(hidden, tl.load(biases + HIDDEN + units), raw_shift), mask=mask)
    hidden = hidden.to(DTYPE)
    # Wide division once a block, narrow division for its lines.
    ray = first // samples
    rays = ray + ((first - ray * samples).to(tl.int32) + lines) // samples
    direction = tl.load(view + rays[:, None] * VIEW + tl.arange(0, VIEW)[None, :], mask=here, other=0.0).to(DTYPE)
    saved += first * SAVED
    signs += first * ((LAYERS - 1) * WIDTH // WORD)
    if SAVES:
        layer_0 = _saved_layer(saved, 0, LAYERS, WIDTH, HIDDEN, VIEW)
        tl.store(_block(layer_0, lines, 0, SAVED, HIDDEN), hidden, mask=here)
        tl.store(_block(layer_0, lines, HIDDEN, SAVED, VIEW), direction, mask=here)
        one = tl.where((lines[:, None] >= 0) & (tl.arange(0, VIEW)[None, :] == 0), 1.0, 0.0)
        tl.store(_block(layer_0, lines, HIDDEN + VIEW, SAVED, VIEW), one.to(DTYPE), mask=here)
        for layer in tl.static_range(2, LAYERS - 1):
            beside = _saved_layer(saved, layer, LAYERS, WIDTH, HIDDEN, VIEW) - VIEW
            tl.store(_block(beside, lines, 0, SAVED, VIEW), one.to(DTYPE), mask=here)

    below = hidden
    for layer in tl.static_range(1, LAYERS, 2):
        acc = tl.zeros([BLOCK, WIDTH], tl.float32)
        for start in range(0, WIDTH, CHUNK):
            part = _chunk(below, hidden, direction, weights, biases, start, layer, LAYERS, WIDTH, HIDDEN, VIEW, CHUNK)
            if SAVES:
                target = _saved_layer(saved, layer, LAYERS, WIDTH, HIDDEN, VIEW)
                tl.store(_block(target, lines, start, SAVED, CHUNK), part, mask=here)
                column = (layer - 1) * WIDTH + start
                _store_signs(signs, part, lines, here, column, (LAYERS - 1) * WIDTH, CHUNK)
            square = _square(weights, layer + 1, WIDTH, HIDDEN, VIEW)
            acc = _times(part, _matrix(square, everything, WIDTH, start, CHUNK), acc)
        if layer + 1 == LAYERS:
            side = _side(weights, LAYERS, WIDTH, HIDDEN, VIEW)
            acc = _from_side(hidden, direction, side, everything, acc, WIDTH, HIDDEN, VIEW)
        bias = tl.load(biases + (2 * HIDDEN + layer * WIDTH) + everything)
        below = tl.maximum(acc + bias[None, :], 0.0).to(DTYPE)
        if SAVES:
            target = _saved_layer(saved, layer + 1, LAYERS, WIDTH, HIDDEN, VIEW)
            tl.store(_block(target, lines, 0, SAVED, WIDTH), below, mask=here)
            if layer + 1 < LAYERS:
                _store_signs(signs, below, lines, here, layer * WIDTH, (LAYERS - 1) * WIDTH, WIDTH)
    raw = tl.zeros([BLOCK, COLORS], tl.float32)
    if LAYERS % 2 == 1:
        for start in range(0, WIDTH, CHUNK):
            part = _chunk(below, hidden, direction, weights, biases, start, LAYERS, LAYERS, WIDTH, HIDDEN, VIEW, CHUNK)
            if SAVES:
                target = _saved_layer(saved, LAYERS, LAYERS, WIDTH, HIDDEN, VIEW)
                tl.store(_block(target, lines, start, SAVED, CHUNK), part, mask=here)
            raw = _times(part, _colors(colors, start, WIDTH, CHUNK), raw)
    else:
        raw = _times(below, _colors(colors, 0, WIDTH, WIDTH), raw)
    color = tl.arange(0, COLORS)
    raw += tl.load(biases + (2 * HIDDEN + LAYERS * WIDTH) + color, mask=color < 3, other=0.0)[None, :]
    value = tl.sigmoid(raw) * (1.0 + 2.0 * padding) - padding
    tl.store(rgb + first * 3 + (lines[:, None] * 3 + color[None, :]), value, mask=here & (color < 3)[None, :])


@triton.jit
@no_type_check
def _v_chunk(
    above, weights, first, LAYER: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, VIEW: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Cotangent of CHUNK units of a layer from those of the whole layer above it."""
    w = _matrix(_square(weights, LAYER + 1, WIDTH, HIDDEN, VIEW), tl.arange(0, WIDTH), WIDTH, first, CHUNK)
    return multiply(above, w, tl.zeros([above.shape[0], CHUNK], tl.float32))


@triton.jit(do_not_specialize=["num_rows"])
@no_type_check
def radiance_backward_kernel(
    saved,
    signs,
    weights,
    rgb,
    v_rgb,
    v_layers,
    v_hidden,
    partials,
    num_rows,
    padding,
    HIDDEN: tl.constexpr,
    VIEW: tl.constexpr,
    WIDTH: tl.constexpr,
    LAYERS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Cotangents of BLOCK rows' layers before their relu, of their hidden layer as far as color asks, and some sums.

    ``v_layers`` is [rows, LAYERS * WIDTH], layer by layer. ``partials`` is, per program, the colors' v_weights
    [WIDTH, 4] and their v_bias [4], with nothing in the fourth place.
    """
    SAVED: tl.constexpr = LAYERS * WIDTH + HIDDEN + VIEW + VIEW * (1 if LAYERS == 2 else LAYERS - 2)
    lines, everything, color = tl.arange(0, BLOCK), tl.arange(0, WIDTH), tl.arange(0, COLORS)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    here = (lines < num_rows - first)[:, None]
    saved += first * SAVED
    signs += first * ((LAYERS - 1) * WIDTH // WORD)
    v_layers += first * (LAYERS * WIDTH)
    partials += tl.program_id(0).to(tl.int64) * (4 * (WIDTH + 1))
    colors = _side(weights, LAYERS, WIDTH, HIDDEN, VIEW) + WIDTH * (HIDDEN + VIEW)

    place = first * 3 + (lines[:, None] * 3 + color[None, :])
    is_color = here & (color < 3)[None, :]
    s = (tl.load(rgb + place, mask=is_color, other=0.0) + padding) / (1.0 + 2.0 * padding)
    v_raw = tl.load(v_rgb + place, mask=is_color, other=0.0) * (1.0 + 2.0 * padding) * s * (1.0 - s)
    tl.store(partials + (4 * WIDTH + color), tl.sum(v_raw, axis=0), mask=color < 4)
    above = v_raw.to(DTYPE)
    v_raw = v_raw.to(DTYPE)
    v_0 = tl.zeros([BLOCK, HIDDEN], tl.float32)
    for layer in tl.static_range(LAYERS, 1, -2):
        acc = tl.zeros([BLOCK, WIDTH], tl.float32)
        for start in range(0, WIDTH, CHUNK):
            rows = start + tl.arange(0, CHUNK)
            if layer == LAYERS:
                last = _saved_layer(saved, LAYERS, LAYERS, WIDTH, HIDDEN, VIEW)
                units = tl.load(_block(last, lines, start, SAVED, CHUNK), mask=here, other=0.0)
                v = multiply(above, _colors(colors, start, WIDTH, CHUNK), tl.zeros([BLOCK, CHUNK], tl.float32))
                part = tl.where(units.to(tl.float32) > 0.0, v, 0.0).to(DTYPE)
                v_0 = multiply(part, _matrix(_side(weights, LAYERS, WIDTH, HIDDEN, VIEW), rows, HIDDEN, 0, HIDDEN), v_0)
                v_colors = multiply(tl.trans(units), v_raw, tl.zeros([CHUNK, COLORS], tl.float32))
                sums = partials + (rows[:, None] * 4 + color[None, :])
                tl.store(sums, v_colors, mask=(color < 4)[None, :])
            else:
                active = _load_signs(signs, lines, here, (layer - 1) * WIDTH + start, (LAYERS - 1) * WIDTH, CHUNK)
                v = _v_chunk(above, weights, start, layer, WIDTH, HIDDEN, VIEW, CHUNK)
                part = tl.where(active, v, 0.0).to(DTYPE)
            tl.store(_block(v_layers + (layer - 1) * WIDTH, lines, start, LAYERS * WIDTH, CHUNK), part, mask=here)
            w = _matrix(_square(weights, layer, WIDTH, HIDDEN, VIEW), rows, WIDTH, 0, WIDTH)
            acc = multiply(part, w, acc)
        are_active = _load_signs(signs, lines, here, (layer - 2) * WIDTH, (LAYERS - 1) * WIDTH, WIDTH)
        above = tl.where(are_active, acc, 0.0).to(DTYPE)
        tl.store(_block(v_layers + (layer - 2) * WIDTH, lines, 0, LAYERS * WIDTH, WIDTH), above, mask=here)
    if LAYERS % 2 == 1:
        for start in range(0, WIDTH, CHUNK):
            active = _load_signs(signs, lines, here, start, (LAYERS - 1) * WIDTH, CHUNK)
            v = _v_chunk(above, weights, start, 1, WIDTH, HIDDEN, VIEW, CHUNK)
            part = tl.where(active, v, 0.0).to(DTYPE)
            tl.store(_block(v_layers, lines, start, LAYERS * WIDTH, CHUNK), part, mask=here)
            rows = start + tl.arange(0, CHUNK)
            v_0 = multiply(part, _matrix(weights, rows, HIDDEN, 0, HIDDEN), v_0)
    else:
        v_0 = multiply(above, _matrix(weights, everything, HIDDEN, 0, HIDDEN), v_0)
    tl.store(_block(v_hidden + first * HIDDEN, lines, 0, HIDDEN, HIDDEN), v_0.to(DTYPE), mask=here)
