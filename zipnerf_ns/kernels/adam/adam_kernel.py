"""Adam with decay over a hash table in one pass, and its launches.

A value costs the memory traffic of reading it with its gradient and both moments and of writing all but the gradient,
28 bytes, and 2 more for the half-precision copy. Every program works on one chunk of one level, so that the level's
decay is a scalar and the chunk's sum of squares belongs to one level. The chunks' sums are added up by a second, tiny
kernel in the order of the table: no atomics, so that equal steps give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from zipnerf_ns.functional import adam
from zipnerf_ns.functional.adam import HALF_SCALE, Summary, TableUpdate
from zipnerf_ns.functional.hash_grid import HashGrid

CHUNK = 2048
"""Values a program."""
NUM_WARPS = 8
"""Warps a program: a lane then moves two vectors of 16 bytes in each direction, which keeps the memory busy."""
SUM_BLOCK = 1024
"""Chunks whose sums are added at once."""
LARGEST_GRADIENT = tl.constexpr(adam.LARGEST_GRADIENT)
LARGEST_HALF = tl.constexpr(adam.LARGEST_HALF)
VECTOR = 4
"""Values that a lane moves at once: 16 bytes of float32, so that the half-precision copy needs no exchange of lanes."""


@triton.jit(do_not_specialize=["first_chunk"])
@no_type_check
def adam_kernel(
    table,
    grad,
    exp_avg,
    exp_avg_sq,
    half,
    chunks,
    decays,
    found_inf,
    sums,
    first_chunk,
    keep_exp_avg_sq,
    take_exp_avg,
    take_exp_avg_sq,
    root_scale,
    eps,
    step_size,
    half_scale,
    UPDATE: tl.constexpr,
    HALF: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Updates one chunk of a table's values, writes its half-precision copy, and sums its squares.

    With UPDATE unset, or ``found_inf`` 1, the values stay as they are, and only ``half`` and ``sums`` are written.
    ``root_scale`` and ``step_size`` contain the bias corrections of the second and of the first moment.
    """
    program = tl.program_id(0)
    chunk = chunks + program * 3
    # The host counts in units of ALIGNMENT; the products are how the compiler learns that it may use wide accesses.
    start = tl.load(chunk) * ALIGNMENT
    count = tl.load(chunk + 1).to(tl.int32) * ALIGNMENT
    lanes = tl.arange(0, CHUNK)
    mask = lanes < count
    p = tl.load(table + start + lanes, mask=mask, other=0.0)
    if UPDATE:
        decay = tl.load(decays + tl.load(chunk + 2))
        g = tl.load(grad + start + lanes, mask=mask, other=0.0)
        # What is not finite, or its square is not, counts as zero: the moments would keep it.
        g = tl.where(tl.abs(g) < LARGEST_GRADIENT, g, 0.0) + decay * p
        m = tl.load(exp_avg + start + lanes, mask=mask, other=0.0)
        v = tl.load(exp_avg_sq + start + lanes, mask=mask, other=0.0)
        m += take_exp_avg * (g - m)
        v = keep_exp_avg_sq * v + take_exp_avg_sq * g * g
        # The approximate root and quotient flush small second moments to zero.
        # A step that is skipped writes nothing.
        written = lanes < count * (tl.load(found_inf) == 0.0).to(tl.int32)
        p = tl.where(written, p - step_size * tl.div_rn(m, tl.sqrt_rn(v) * root_scale + eps), p)
        tl.store(exp_avg + start + lanes, m, mask=written)
        tl.store(exp_avg_sq + start + lanes, v, mask=written)
        tl.store(table + start + lanes, p, mask=written)
    if HALF:
        # A value that is no number stays none, so that a divergence is seen.
        h = tl.clamp(p * half_scale, -LARGEST_HALF, LARGEST_HALF, propagate_nan=tl.PropagateNan.ALL)
        tl.store(half + start + lanes, h.to(tl.float16), mask=mask)
    # Lanes beyond the chunk may hold 0/0.
    squares = tl.where(mask, p * p, 0.0)
    tl.store(sums + first_chunk + program, tl.sum(squares, axis=0))


@triton.jit
@no_type_check
def mean_square_kernel(sums, spans, sizes, means, BLOCK: tl.constexpr):
    """Mean square of one level a program, from its chunks' sums in a fixed order."""
    level = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    first = tl.load(spans + level * 2)
    end = tl.load(spans + level * 2 + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(first, end, BLOCK):
        total += tl.load(sums + begin + lanes, mask=lanes < end - begin, other=0.0)
    tl.store(means + level, tl.sum(total, axis=0) / tl.load(sizes + level))


class Chunks(NamedTuple):
    """The work of one table's programs."""

    work: Int[Tensor, "chunks 3"]
    """First value and number of values of each chunk, in units of ``alignment``; and its level."""
    alignment: int
    """A power of two that divides where every level begins and ends, in values."""


class Reduction(NamedTuple):
    """How the chunks of several tables, one table after the other, add up to their levels."""

    first_chunks: tuple[int, ...]
    """Number of each table's first chunk, then the number of all chunks."""
    num_levels: tuple[int, ...]
    """Levels of each table."""
    spans: Int[Tensor, "levels 2"]
    """First chunk of each level, and the first beyond it."""
    sizes: Float[Tensor, "levels"]
    """Values of each level."""


class Step(NamedTuple):
    """The scalars of one table's update, with the bias corrections worked in (in float64, as torch does)."""

    keep_exp_avg_sq: float = 0.0
    take_exp_avg: float = 0.0
    take_exp_avg_sq: float = 0.0
    root_scale: float = 0.0
    eps: float = 0.0
    step_size: float = 0.0


def decayed_adam_(
    updates: Sequence[TableUpdate], lr: float, betas: tuple[float, float], eps: float
) -> list[Summary]:
    """One step of tables on one device; see ``kernels.adam.table_adam``, which has checked them."""
    summaries = _launch(updates, [_step(update.step, lr, betas, eps) for update in updates])
    for update in updates:
        torch.autograd.graph.increment_version(update.table)
    return summaries


def summarize(table: Tensor, grid: HashGrid, half: Tensor | None) -> Summary:
    """What a step would leave behind if it did not change the table."""
    undecayed = (0.0,) * len(grid.levels)
    (summary,) = _launch([TableUpdate(table, table, table, table, 0, grid, undecayed, half)], [None])
    return summary


def _step(step: int, lr: float, betas: tuple[float, float], eps: float) -> Step:
    correction, correction_sq = (1.0 - beta**step for beta in betas)
    root_scale, step_size = 1.0 / math.sqrt(correction_sq), lr / correction
    return Step(betas[1], 1.0 - betas[0], 1.0 - betas[1], root_scale, float(eps), step_size)


def _launch(updates: Sequence[TableUpdate], steps: Sequence[Step | None]) -> list[Summary]:
    """One pass over each table, an update where there is a step."""
    device = updates[0].table.device
    reduction = _reduction(tuple(update.grid for update in updates), device)
    sums = torch.empty(reduction.first_chunks[-1], device=device)
    num_levels = sum(reduction.num_levels)
    means = torch.empty(num_levels, device=device)
    bounds = zip(reduction.first_chunks[:-1], reduction.first_chunks[1:], strict=True)
    for update, step, (first, end) in zip(updates, steps, bounds, strict=True):
        work, alignment = _chunks(update.grid, device)
        table, half = update.table, update.half
        found_inf = _never(device) if update.found_inf is None else update.found_inf
        adam_kernel[(end - first,)](
            table, update.grad.contiguous(), update.exp_avg, update.exp_avg_sq, table if half is None else half,
            work, _decays(update.decay, device), found_inf, sums, first, *(step or Step()), HALF_SCALE,
            UPDATE=step is not None, HALF=half is not None, ALIGNMENT=alignment, CHUNK=CHUNK, num_warps=NUM_WARPS,
        )  # fmt: skip
    mean_square_kernel[(num_levels,)](sums, reduction.spans, reduction.sizes, means, BLOCK=SUM_BLOCK)
    means_of_tables = means.split(reduction.num_levels)
    return [Summary(mean, update.half) for mean, update in zip(means_of_tables, updates, strict=True)]


@lru_cache(maxsize=64)
def _decays(decay: tuple[float, ...], device: torch.device) -> Float[Tensor, "levels"]:
    return torch.tensor(decay, dtype=torch.float32, device=device)


@lru_cache(maxsize=8)
def _never(device: torch.device) -> Float[Tensor, ""]:
    """The mark of a step that is not skipped."""
    return torch.zeros((), device=device)


@lru_cache(maxsize=64)
def _chunks(grid: HashGrid, device: torch.device) -> Chunks:
    features = grid.features_per_level
    bounds = [bound * features for level in grid.levels for bound in (level.offset, level.size)]
    alignment = math.gcd(VECTOR, *bounds)
    work = []
    for index, level in enumerate(grid.levels):
        starts = torch.arange(0, level.size * features, CHUNK)
        counts = (level.size * features - starts).clamp(max=CHUNK)
        starts += level.offset * features
        work.append(torch.stack([starts // alignment, counts // alignment, torch.full_like(starts, index)], dim=1))
    return Chunks(torch.cat(work).to(device), alignment)


@lru_cache(maxsize=64)
def _reduction(grids: tuple[HashGrid, ...], device: torch.device) -> Reduction:
    values = [level.size * grid.features_per_level for grid in grids for level in grid.levels]
    ends = torch.tensor([0, *(triton.cdiv(size, CHUNK) for size in values)]).cumsum(dim=0)
    num_levels = [len(grid.levels) for grid in grids]
    first_levels = [sum(num_levels[:index]) for index in range(len(grids) + 1)]
    return Reduction(
        tuple(ends[first_levels].tolist()),
        tuple(num_levels),
        torch.stack([ends[:-1], ends[1:]], dim=1).to(device, torch.int32),
        torch.tensor(values, dtype=torch.float32, device=device),
    )
