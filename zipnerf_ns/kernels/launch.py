"""Launches of the hash encoding's kernels. Importing this imports triton; ``hash_encode`` does so on first use."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Optional

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from zipnerf_ns.functional.hash_grid import HASH_PRIMES, HashGrid
from zipnerf_ns.kernels._sample_kernel import sample_kernel
from zipnerf_ns.kernels._table_kernels import backward_kernel, forward_kernel
from zipnerf_ns.kernels.tuning import Launch, Plan, Tuning

MAX_COLUMNS = 4
"""Table values that one lane reads at once: 16 bytes."""
HALF_SCALE = 256.0
"""Factor on the half-precision copy: values of 1e-6 are still normal numbers, values up to 255 still finite."""
SAMPLE_BLOCK = 128
"""Samples a program of the gradient to positions and stds."""
VECTOR_ATOMICS = (9, 0)
"""The first compute capability whose atomics add four floats at once; on older ones a window would cost four."""


class Options(NamedTuple):
    """What the launches of one encoding have in common."""

    grid: HashGrid
    prefilter: str
    num_active: int
    tuning: Tuning


class Samples(NamedTuple):
    """The contiguous float32 tensors that say where to look, and with which weight."""

    positions: Tensor
    stds: Tensor
    bandwidths: Tensor


def forward(table: Tensor, samples: Samples, options: Options) -> tuple[Tensor, Tensor]:
    """Features and mean prefilter weights, level range by level range; inactive levels only get their weights."""
    grid, prefilter, num_active, tuning = options
    (intervals, num_samples), levels, features = samples.stds.shape, len(grid.levels), grid.features_per_level
    scale = 1.0 / num_samples
    out, weights = _empty_results(samples.stds, levels, features, tuning.level_major)
    if tuning.half_table:
        half = torch.empty_like(table, dtype=torch.float16)
        table, scale = torch.mul(table, HALF_SCALE, out=half), scale / HALF_SCALE
    parts = [(*part, True) for part in _parts(tuning.forward, grid, num_active)]
    if num_active < levels:
        parts.append((tuning.forward.fine, num_active, levels, False))
    for launch, begin, end, read in parts if intervals else []:
        forward_kernel[_programs(launch, intervals, end - begin, features)](
            table, samples.positions, samples.stds, level_constants(grid, table.device), samples.bandwidths,
            out, weights, intervals, begin, end, out.stride(0) // features, out.stride(1) // features,
            weights.stride(0), weights.stride(1), scale,
            SAMPLES=num_samples, ROW=features, COLUMNS=min(features, MAX_COLUMNS), PREFILTER=prefilter,
            XOR=_is_xor(grid, begin, end), READ=read, MERGE=launch.merge != "none",
            WIDE=launch.wide and features == 1 and _has_windows(grid),
            LEVELS=launch.levels_per_program, BLOCK=launch.block, num_warps=launch.num_warps,
        )  # fmt: skip
    return out, weights


def table_gradient(table: Tensor, samples: Samples, v_features: Tensor, options: Options) -> Tensor:
    """The features' cotangent scattered into a gradient of the table's size."""
    grid, prefilter, num_active, tuning = options
    (intervals, num_samples), features = samples.stds.shape, grid.features_per_level
    v_table = torch.zeros_like(table)
    v, step, stride = _row_strides(v_features)
    has_windows = features == 1 and _has_windows(grid) and _has_vector_atomics(table.device)
    for launch, begin, end in _parts(tuning.backward, grid, num_active) if intervals else []:
        backward_kernel[_programs(launch, intervals, end - begin, features)](
            v_table, samples.positions, samples.stds, level_constants(grid, table.device), samples.bandwidths,
            v, intervals, begin, end, step, stride,
            SAMPLES=num_samples, ROW=features, COLUMNS=min(features, MAX_COLUMNS), PREFILTER=prefilter,
            XOR=_is_xor(grid, begin, end), MERGE=launch.merge != "none", ALONG_RAY=launch.merge == "ray",
            WIDE=launch.wide and has_windows,
            LEVELS=launch.levels_per_program, BLOCK=launch.block, num_warps=launch.num_warps,
        )  # fmt: skip
    return v_table


def sample_gradients(
    table: Tensor, samples: Samples, v_features: Optional[Tensor], v_weights: Optional[Tensor], options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of positions, stds and bandwidths from those of features and mean weights, either of them absent."""
    grid, prefilter, num_active, _ = options
    positions, stds, bandwidths = samples
    levels, features = len(grid.levels), grid.features_per_level
    programs = triton.cdiv(stds.numel(), SAMPLE_BLOCK)
    v_positions, v_stds = torch.empty_like(positions), torch.empty_like(stds)
    v_bandwidths = stds.new_empty(programs, levels)
    # An absent cotangent's pointer is never followed.
    v, step, stride = (stds, 0, 0) if v_features is None else _row_strides(v_features)
    w = stds if v_weights is None else v_weights.float()
    if programs:
        sample_kernel[(programs,)](
            table, positions, stds, level_constants(grid, table.device), bandwidths, v, w,
            v_positions, v_stds, v_bandwidths, stds.numel(), levels, num_active,
            step, stride, w.stride(0), w.stride(1),
            SAMPLES=stds.shape[1], ROW=features, PREFILTER=prefilter, XOR=_is_xor(grid, 0, levels),
            HAS_FEATURES=v_features is not None, HAS_WEIGHTS=v_weights is not None, BLOCK=SAMPLE_BLOCK,
        )  # fmt: skip
    return v_positions, v_stds, v_bandwidths.sum(dim=0)


@lru_cache(maxsize=64)
def level_constants(grid: HashGrid, device: torch.device) -> Int[Tensor, "levels 5"]:
    """The levels as ``_cells.load_level`` reads them, on the device once and for all.

    Cells a side, first row, y and z multipliers of a row's number, and the hash's mask: -1 marks a dense level.
    """
    rows = []
    for level in grid.levels:
        n = level.resolution
        if level.is_dense:
            steps = [n, n * n] if n > 1 else [0, 0]
        else:
            steps = [prime - 2**32 if prime >= 2**31 else prime for prime in HASH_PRIMES[1:]]
        rows.append([n, level.offset, *steps, -1 if level.is_dense else level.size - 1])
    return torch.tensor(rows, dtype=torch.int32, device=device)


@lru_cache(maxsize=64)
def _has_windows(grid: HashGrid) -> bool:
    """Whether every level begins and ends on a multiple of four rows, so that windows of four never straddle two."""
    return all(level.offset % 4 == 0 and level.size % 4 == 0 for level in grid.levels)


@lru_cache(maxsize=16)
def _has_vector_atomics(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= VECTOR_ATOMICS


@lru_cache(maxsize=256)
def _is_xor(grid: HashGrid, begin: int, end: int) -> bool:
    """Whether exclusive ors give every level's rows; see ``_cells.corner_rows``."""
    return all(not level.is_dense or level.resolution.bit_count() == 1 for level in grid.levels[begin:end])


@lru_cache(maxsize=256)
def _parts(plan: Plan, grid: HashGrid, end: int) -> list[tuple[Launch, int, int]]:
    """The launches that cover the levels below ``end``, with the levels of each."""
    split = sum(level.resolution <= plan.coarse_up_to for level in grid.levels[:end])
    if plan.coarse == plan.fine:
        split = end
    parts = [(plan.coarse, 0, split), (plan.fine, split, end)]
    return [(launch, first, last) for launch, first, last in parts if first < last]


def _programs(launch: Launch, intervals: int, levels: int, features: int) -> tuple[int, int, int]:
    """Blocks of intervals vary fastest, so that the programs that run together read the same levels."""
    return (
        triton.cdiv(intervals, launch.block),
        triton.cdiv(levels, launch.levels_per_program),
        triton.cdiv(features, MAX_COLUMNS),
    )


def _empty_results(
    stds: Float[Tensor, "intervals samples"], levels: int, features: int, level_major: bool
) -> tuple[Float[Tensor, "intervals {levels} {features}"], Float[Tensor, "intervals {levels}"]]:
    intervals = len(stds)
    if level_major:
        return stds.new_empty(levels, intervals, features).transpose(0, 1), stds.new_empty(levels, intervals).t()
    return stds.new_empty(intervals, levels, features), stds.new_empty(intervals, levels)


def _row_strides(v: Float[Tensor, "intervals levels features"]) -> tuple[Tensor, int, int]:
    """A cotangent as the kernels index it, with its steps between intervals and levels in rows of features."""
    features = v.shape[-1]
    v = v.float()
    if (features > 1 and v.stride(2) != 1) or v.stride(0) % features or v.stride(1) % features:
        v = v.contiguous()
    return v, v.stride(0) // features, v.stride(1) // features
