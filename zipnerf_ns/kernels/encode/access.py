"""How the table kernels reach the eight rows around a cell, one lane a cell: gather, scatter, sums along the lanes."""

from typing import no_type_check

import triton
import triton.language as tl

WINDOW = tl.constexpr(4)
"""Table values in one 16-byte access."""


@triton.jit
@no_type_check
def first_value(level, ROW: tl.constexpr, WIDE: tl.constexpr):
    """Where a level begins in the flat table, in values."""
    if WIDE:
        # The host asks for windows only where every level begins on one; this is how the compiler learns it.
        first = (level[1] // WINDOW).to(tl.int64) * WINDOW
    else:
        first = level[1].to(tl.int64) * ROW
    return first


@triton.jit
@no_type_check
def block_of(ROW: tl.constexpr, COLUMNS: tl.constexpr):
    """The number of this program's block of intervals: programs for the columns of one row stand side by side.

    A row of eight values is one sector of memory, which is then still in the cache for the second half.
    """
    return tl.program_id(0) // (ROW // COLUMNS)


@triton.jit
@no_type_check
def first_column_of(ROW: tl.constexpr, COLUMNS: tl.constexpr):
    """The first column of the table that this program works on."""
    return (tl.program_id(0) % (ROW // COLUMNS)) * COLUMNS if COLUMNS < ROW else 0


@triton.jit
@no_type_check
def columns_of(ROW: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns of the table that this program works on."""
    return tl.arange(0, COLUMNS)[None, :] + first_column_of(ROW, COLUMNS)


@triton.jit
@no_type_check
def split_four(quad):
    """A lane's four neighboring values, each by itself."""
    even, odd = tl.split(tl.reshape(quad, [quad.shape[0], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
@no_type_check
def _pick(quad, index):
    """One of a lane's four neighboring values."""
    first, second, third, fourth = split_four(quad)
    low, high = (index & 1) == 0, (index & 2) == 0
    return tl.where(high, tl.where(low, first, second), tl.where(low, third, fourth))


@triton.jit
@no_type_check
def _read(pointers, mask, MASKED: tl.constexpr):
    """A load that is masked only where it may be skipped: every row that a lane computes can be read."""
    if MASKED:
        value = tl.load(pointers, mask=mask, other=0.0)
    else:
        value = tl.load(pointers)
    return value.to(tl.float32)


@triton.jit
@no_type_check
def gather(table, rows, sums, columns, mask, ROW: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr):
    """Sum over the eight corners of corner weight times table row: [BLOCK, columns]."""
    total = tl.zeros([rows[0].shape[0], columns.shape[1]], tl.float32)
    if WIDE:
        window = tl.arange(0, WINDOW)[None, :]
        for pair in tl.static_range(4):
            low, high = rows[2 * pair], rows[2 * pair + 1]
            # x neighbors sit in one aligned window of four rows three times out of four, hashed or not.
            start = (low >> 2) * WINDOW
            quad = _read(table + (start[:, None] + window), mask[:, None], MASKED)
            apart = (high >> 2) * WINDOW != start
            beyond = tl.load(table + high, mask=mask & apart if MASKED else apart, other=0.0).to(tl.float32)
            near = _pick(quad, low) * sums[2 * pair]
            total += (near + tl.where(apart, beyond, _pick(quad, high)) * sums[2 * pair + 1])[:, None]
    else:
        for corner in tl.static_range(8):
            value = _read(table + (rows[corner][:, None] * ROW + columns), mask[:, None], MASKED)
            total += sums[corner][:, None] * value
    return total


@triton.jit
@no_type_check
def scatter(v_table, rows, values, columns, mask, ROW: tl.constexpr, WIDE: tl.constexpr):
    """Adds each corner's [BLOCK, columns] values to its table row. Relaxed: nothing is ordered by these sums."""
    if WIDE:
        window = tl.arange(0, WINDOW)[None, :]
        for pair in tl.static_range(4):
            low, high = rows[2 * pair], rows[2 * pair + 1]
            start = (low >> 2) * WINDOW
            apart = (high >> 2) * WINDOW != start
            quad = tl.where(window == (low - start)[:, None], values[2 * pair], 0.0)
            # Where ``high`` lies beyond the window, its offset matches no column.
            quad += tl.where(window == (high - start)[:, None], values[2 * pair + 1], 0.0)
            tl.atomic_add(v_table + (start[:, None] + window), quad, mask=mask[:, None], sem="relaxed")
            beyond = v_table + (high[:, None] * ROW + columns)
            tl.atomic_add(beyond, values[2 * pair + 1], mask=(mask & apart)[:, None], sem="relaxed")
    else:
        for corner in tl.static_range(8):
            pointers = v_table + (rows[corner][:, None] * ROW + columns)
            # Integers where sums are exact.
            tl.atomic_add(pointers, values[corner].to(v_table.dtype.element_ty), mask=mask[:, None], sem="relaxed")


@triton.jit
@no_type_check
def outer(sums, v):
    """Outer product of each corner's weight sum with the features' cotangent."""
    values = ()
    for corner in tl.static_range(8):
        values = values + (sums[corner][:, None] * v,)
    return values


@triton.jit
@no_type_check
def _join_runs(head, a0, a1, a2, a3, a4, a5, a6, a7, begins, b0, b1, b2, b3, b4, b5, b6, b7):
    """Segmented sum of eight values: a right-hand part that contains a run's head forgets what came before it."""
    keep = tl.where(begins == 0, 1.0, 0.0)
    return (
        head | begins,
        a0 * keep + b0,
        a1 * keep + b1,
        a2 * keep + b2,
        a3 * keep + b3,
        a4 * keep + b4,
        a5 * keep + b5,
        a6 * keep + b6,
        a7 * keep + b7,
    )


@triton.jit
@no_type_check
def sum_runs(head, values):
    """Sums over the lanes of each run so far; ``head`` is 1 where a run begins."""
    v0, v1, v2, v3, v4, v5, v6, v7 = values
    scanned = tl.associative_scan((head, v0, v1, v2, v3, v4, v5, v6, v7), 0, _join_runs)
    return scanned[1:]
