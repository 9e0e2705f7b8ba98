"""Launches of the hash encoding's kernels."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from zipnerf_ns.functional.cones import Cones
from zipnerf_ns.functional.hash_grid import HashGrid
from zipnerf_ns.kernels.device import describe
from zipnerf_ns.kernels.encode.access import WINDOW
from zipnerf_ns.kernels.encode.constants import level_constants, moments
from zipnerf_ns.kernels.encode.sample_kernel import sample_kernel
from zipnerf_ns.kernels.encode.table_kernels import backward_kernel, forward_kernel
from zipnerf_ns.kernels.encode.tuning import COPIED_UP_TO, Launch, Plan, Tuning

MAX_COLUMNS = 4
"""Table values that one lane reads at once: 16 bytes."""
SAMPLE_BLOCK = 128
"""Intervals a program of the gradient to positions and stds."""
VECTOR_ATOMICS = (9, 0)
"""The first compute capability whose atomics add four floats at once; on older ones a window would cost four."""
SUM_BITS = 62
"""Bits of an exact sum; 63 are an integer's, and rounded products may exceed what bounds them."""
MAX_SHIFT = 126
"""The largest power of two of an exact sum's scale: a float32 whose inverse is one."""


class Options(NamedTuple):
    """What the launches of one encoding have in common."""

    grid: HashGrid
    prefilter: str
    num_active: int
    tuning: Tuning
    close: float = 0.0
    """Cells within which samples are one; of cones alone."""


class Samples(NamedTuple):
    """The contiguous float32 tensors that say where to look, and with which weight."""

    positions: Tensor
    stds: Tensor
    bandwidths: Tensor
    times: Tensor | None = None
    shutter: float = 0.0


class Source(NamedTuple):
    """Where the kernels take their samples from; see ``cones.prepare``."""

    tensors: tuple[Tensor, ...]
    """Six contiguous float32 tensors: origins (or positions), directions (or stds), radius, tdist, turns and aabb."""
    intervals: int
    per_ray: int
    """Intervals of each ray; of no meaning for positions."""
    samples: int
    """Samples of each interval."""
    cones: bool
    boxed: bool
    turned: bool
    shifts: Tensor | None = None
    times: Tensor | None = None
    """Times of the cones' rays, or of the samples' intervals."""
    shutter: float = 0.0


class Cotangent(NamedTuple):
    """What is scattered into a table's gradient."""

    source: Source
    bandwidths: Tensor
    v_features: Tensor
    strides: tuple[int, int, int]
    """Steps between intervals, levels and features."""
    gain: float
    """Factor on it."""


class Target(NamedTuple):
    """Where features and weights stand: two tensors, and their steps between intervals, levels and channels."""

    features: Tensor
    weights: Tensor
    step: int
    stride: int
    channel_stride: int
    weight_step: int
    weight_stride: int


def points_source(samples: Samples) -> Source:
    """Samples that are read from memory."""
    stds = samples.stds
    return Source(
        (samples.positions, stds, stds, stds, stds, stds), len(stds), 1, stds.shape[1], False, False, False, None,
        samples.times, samples.shutter,
    )  # fmt: skip


def cones_source(cones: Cones, samples: int) -> Source:
    """Samples that the kernels make from cones; an absent tensor's pointer is never followed."""
    origins, directions, radius, tdist, turns, aabb, times, shifts, shutter, *_ = cones
    rays, edges = tdist.shape
    tensors = (origins, directions, radius, tdist, tdist if turns is None else turns, tdist if aabb is None else aabb)
    return Source(
        tuple(tensor.float().contiguous() for tensor in tensors),
        rays * (edges - 1), edges - 1, samples, True, aabb is not None, turns is not None,
        *(None if tensor is None else tensor.float().contiguous() for tensor in (shifts, times)), shutter,
    )  # fmt: skip


def forward(table: Tensor, samples: Samples, options: Options) -> tuple[Tensor, Tensor]:
    """Features ``[intervals, levels, features]`` and mean prefilter weights ``[intervals, levels]``."""
    levels, features, intervals = len(options.grid.levels), options.grid.features_per_level, len(samples.stds)
    out = samples.stds.new_empty(intervals, levels, features)
    weights = samples.stds.new_empty(intervals, levels)
    target = Target(out, weights, levels * features, features, 1, levels, 1)
    _look_up(table, points_source(samples), samples.bandwidths, target, None, 1.0, options)
    return out, weights


def cone_forward(
    table: Tensor, source: Source, bandwidths: Tensor, weight_scales: Tensor, gain: float, dtype: torch.dtype,
    options: Options,
) -> Tensor:  # fmt: skip
    """All channels ``[channels, intervals]``: each level's features times ``gain``, then one weight feature a level.

    Channel by channel in memory, so that neighboring lanes write, and the networks read, neighboring numbers.
    """
    levels, features, intervals = len(options.grid.levels), options.grid.features_per_level, source.intervals
    out = torch.empty(levels * (features + 1), intervals, dtype=dtype, device=table.device)
    target = Target(out, out[levels * features :], 1, features * intervals, intervals, 1, intervals)
    _look_up(table, source, bandwidths, target, weight_scales, gain, options)
    return out


def _look_up(
    table: Tensor, source: Source, bandwidths: Tensor, target: Target, weight_scales: Tensor | None, gain: float,
    options: Options,
) -> None:  # fmt: skip
    """Level range by level range; inactive levels only get their weights."""
    grid, prefilter, num_active, tuning, close = options
    levels, features = len(grid.levels), grid.features_per_level
    if not source.intervals:
        return
    is_picture = source.cones and not source.turned
    plan = tuning.pictures if is_picture and tuning.pictures else tuning.forward
    parts = [(*part, True) for part in _parts(plan, grid, num_active)]
    if num_active < levels:
        parts.append((plan.fine, num_active, levels, False))
    for launch, begin, end, read in parts:
        rays = launch.rays if source.per_ray % (launch.block // launch.rays) == 0 else 1
        # The last program's rays need not all exist.
        padded = triton.cdiv(source.intervals, rays * source.per_ray) * rays * source.per_ray
        forward_kernel[_programs(launch, padded, end - begin, features)](
            table, *source.tensors, source.shifts, *moments(source.times, source.shutter, grid),
            level_constants(grid, table.device), bandwidths,
            target.features, target.weights, bandwidths if weight_scales is None else weight_scales,
            source.intervals, source.per_ray, begin, end, *target[2:], gain, close,
            SAMPLES=source.samples, ROW=features, COLUMNS=min(features, MAX_COLUMNS), PREFILTER=prefilter,
            CONES=source.cones, BOXED=source.boxed, TURNED=source.turned, SCALED=weight_scales is not None,
            CLOSE=close > 0.0,
            XOR=is_xor(grid, begin, end), READ=read, MERGE=launch.merge != "none", BRANCH=launch.branch,
            WIDE=launch.wide and features == 1 and _has_windows(grid),
            LEVELS=launch.levels_per_program, RAYS=rays, BLOCK=launch.block, num_warps=launch.num_warps,
        )  # fmt: skip


def table_gradient(table: Tensor, samples: Samples, v_features: Tensor, options: Options) -> Tensor:
    """The features' cotangent ``[intervals, levels, features]`` scattered into a gradient of the table's size."""
    strides = v_features.stride(0), v_features.stride(1), v_features.stride(2)
    return _scatter(table, Cotangent(points_source(samples), samples.bandwidths, v_features, strides, 1.0), options)


def cone_table_gradient(
    table: Tensor, source: Source, bandwidths: Tensor, gain: float, v_channels: Tensor, options: Options
) -> Tensor:
    """The cotangent of :func:`cone_forward`'s channels, ``[channels, intervals]`` in any memory order, scattered."""
    between, along = v_channels.stride(0), v_channels.stride(1)
    strides = along, between * options.grid.features_per_level, between
    return _scatter(table, Cotangent(source, bandwidths, v_channels, strides, gain), options)


def _scatter(table: Tensor, given: Cotangent, options: Options) -> Tensor:
    """The table's gradient; where torch is to be deterministic, by sums that know no order."""
    grid, features = options.grid, options.grid.features_per_level
    copies = 1 if grid.is_timed else options.tuning.backward.copies
    if not given.source.intervals:
        return torch.zeros_like(table)
    if torch.are_deterministic_algorithms_enabled():
        return _scatter_exactly(table, given, options)
    coarse = [level for level in grid.levels if copies > 1 and level.resolution <= COPIED_UP_TO]
    values = sum(level.size for level in coarse) * features
    copy_size = triton.cdiv(values, WINDOW.value)
    others = (copies - 1) * copy_size * WINDOW.value
    gradients = table.new_zeros(others + table.numel())
    v_table = gradients[others:].view_as(table)
    for part in _parts(options.tuning.backward, grid, options.num_active):
        _add(v_table, given, options, part, copies, (len(coarse), copy_size))
    if coarse:
        v_table.view(-1)[:values] += gradients[:others].view(copies - 1, -1)[:, :values].sum(dim=0)
    return v_table


def _scatter_exactly(table: Tensor, given: Cotangent, options: Options) -> Tensor:
    """The table's gradient by sums of 64-bit integers, which are the same in any order of their terms.

    A level's unit is so small that all its cotangents, on one entry, would just fit: with two million intervals 2^-41
    of the largest of them. Where one is not finite, nor is the level's gradient.
    """
    levels, features = options.grid.levels, options.grid.features_per_level
    step, stride, channel_stride = given.strides
    sizes = len(levels), given.source.intervals, features
    cotangents = given.v_features.as_strided(sizes, (stride, step, channel_stride))
    peaks = torch.linalg.vector_norm(cotangents, math.inf, dim=(1, 2)).float() * given.gain
    shifts = (SUM_BITS - sizes[1].bit_length() - torch.frexp(peaks).exponent).clamp(max=MAX_SHIFT)
    scales, units = _power_of_two(shifts), _power_of_two(-shifts) + 0.0 * peaks
    v_table = torch.zeros_like(table)
    sums = torch.zeros(max(level.size for level in levels) * features, dtype=torch.int64, device=table.device)
    for launch, begin, end in _parts(options.tuning.backward, options.grid, options.num_active):
        each = replace(launch, wide=False, levels_per_program=1)
        for index in range(begin, end):
            of_level = v_table[levels[index].offset :][: levels[index].size].view(-1)
            total = sums[: len(of_level)]
            _add(total, given, options, (each, index, index + 1), scales=scales)
            torch.mul(total, units[index], out=of_level)
            total.zero_()
    return v_table


def _power_of_two(exponents: Int[Tensor, "levels"]) -> Float[Tensor, "levels"]:
    """2^n for integers from -126 to 127, by their bits."""
    return ((exponents + 127) << 23).to(torch.int32).view(torch.float32)


def _add(
    target: Tensor, given: Cotangent, options: Options, part: tuple[Launch, int, int], copies: int = 1,
    copied: tuple[int, int] = (0, 0), scales: Tensor | None = None,
) -> None:  # fmt: skip
    """Adds a range of levels to a gradient, or one level to sums of integers, where there are ``scales``."""
    (source, bandwidths, v_features, strides, gain), (launch, begin, end) = given, part
    grid, features = options.grid, options.grid.features_per_level
    has_windows = features == 1 and _has_windows(grid) and describe(target.device).capability >= VECTOR_ATOMICS
    backward_kernel[_programs(launch, source.intervals, end - begin, features)](
        target, *source.tensors, source.shifts, *moments(source.times, source.shutter, grid),
        level_constants(grid, target.device), bandwidths,
        v_features, bandwidths if scales is None else scales, source.intervals, source.per_ray, begin, end, *strides,
        *copied, gain, options.close,
        SAMPLES=source.samples, ROW=features, COLUMNS=min(features, MAX_COLUMNS), PREFILTER=options.prefilter,
        CONES=source.cones, BOXED=source.boxed, TURNED=source.turned, CLOSE=options.close > 0.0,
        EXACT=scales is not None,
        XOR=is_xor(grid, begin, end), MERGE=launch.merge != "none", BRANCH=launch.branch,
        ALONG_RAY=launch.merge == "ray", WIDE=launch.wide and has_windows, COPIES=copies,
        LEVELS=launch.levels_per_program, BLOCK=launch.block, num_warps=launch.num_warps,
    )  # fmt: skip


def sample_gradients(
    table: Tensor, samples: Samples, v_features: Tensor | None, v_weights: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """Cotangents of positions and stds from those of features and mean weights, either of them absent."""
    grid, prefilter, num_active, *_ = options
    positions, stds, bandwidths, times, shutter = samples
    levels, features = len(grid.levels), grid.features_per_level
    programs = triton.cdiv(len(stds), SAMPLE_BLOCK)
    v_positions, v_stds = torch.empty_like(positions), torch.empty_like(stds)
    # An absent cotangent's pointer is never followed.
    v, step, stride = (stds, 0, 0) if v_features is None else _row_strides(v_features)
    w = stds if v_weights is None else v_weights.float()
    if programs:
        sample_kernel[(programs,)](
            table, positions, stds, *moments(times, shutter, grid), level_constants(grid, table.device), bandwidths,
            v, w, v_positions, v_stds, len(stds), levels, num_active,
            step, stride, w.stride(0), w.stride(1),
            SAMPLES=stds.shape[1], ROW=features, PREFILTER=prefilter, XOR=is_xor(grid, 0, levels),
            HAS_FEATURES=v_features is not None, HAS_WEIGHTS=v_weights is not None, BLOCK=SAMPLE_BLOCK,
        )  # fmt: skip
    return v_positions, v_stds


@lru_cache(maxsize=64)
def _has_windows(grid: HashGrid) -> bool:
    """Whether every level begins and ends on a multiple of four rows, so that windows of four never straddle two."""
    return all(level.offset % 4 == 0 and level.size % 4 == 0 for level in grid.levels)


@lru_cache(maxsize=256)
def is_xor(grid: HashGrid, begin: int, end: int) -> bool:
    """Whether exclusive ors give every level's rows; see ``cells.corner_rows``."""
    return all(not level.is_dense or level.resolution.bit_count() == 1 for level in grid.levels[begin:end])


@lru_cache(maxsize=256)
def _parts(plan: Plan, grid: HashGrid, end: int) -> list[tuple[Launch, int, int]]:
    """The launches that cover the levels below ``end``, with the levels of each."""
    split = sum(level.resolution <= plan.coarse_up_to for level in grid.levels[:end])
    if plan.coarse == plan.fine:
        split = end
    parts = [(plan.coarse, 0, split), (plan.fine, split, end)]
    return [(launch, first, last) for launch, first, last in parts if first < last]


def _programs(launch: Launch, intervals: int, levels: int, features: int) -> tuple[int, int]:
    """Blocks of intervals vary fastest, so that the programs that run together read the same levels."""
    return (
        triton.cdiv(intervals, launch.block) * triton.cdiv(features, MAX_COLUMNS),
        triton.cdiv(levels, launch.levels_per_program),
    )


def _row_strides(v: Float[Tensor, "intervals levels features"]) -> tuple[Tensor, int, int]:
    """A cotangent as the kernels index it, with its steps between intervals and levels in rows of features."""
    features = v.shape[-1]
    v = v.float()
    if (features > 1 and v.stride(2) != 1) or v.stride(0) % features or v.stride(1) % features:
        v = v.contiguous()
    return v, v.stride(0) // features, v.stride(1) // features
