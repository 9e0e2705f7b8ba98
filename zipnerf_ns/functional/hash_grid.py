"""The prefiltered multiresolution hash grid: levels, indices, trilinear look-up and its gradient in plain torch.

Conventions (each tested): a level of resolution n has n cells a side whose *centers* carry the features, so position
x in the unit cube lies at x*n - 1/2 in cells, and features are constant within half a cell of the cube's faces.
Levels with n^3 <= table size are stored densely, x fastest; the others hash with Instant-NGP's primes ([I], eq. 4).
All levels of a grid share one flat table, level after level.

A level may have time for a fourth axis, of the same kind: its n cells in time are its knots, between whose centers
features are interpolated, and dense levels store time slowest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

HASH_PRIMES = (1, 2654435761, 805459861, 3674653429)
"""Instant-NGP, section 3, eq. 4, and of time the one that its authors' code takes for a fourth axis."""
SQRT8 = math.sqrt(8.0)
MAX_IPE_EXPONENT = 50.0
"""exp(-50) is 2e-22: nothing, but not yet a denormal, in float32."""

Prefilter = Literal["multisample", "ipe", "none"]


@dataclass(frozen=True)
class Level:
    """One level of a hash grid."""

    resolution: int
    """Cells along each side of the unit cube."""
    offset: int
    """First row of this level in the flat table."""
    size: int
    """Rows of this level in the flat table."""
    is_dense: bool
    """Whether every cell has its own row."""
    knots: int = 1
    """Cells along time from 0 to 1; one where nothing changes."""


@dataclass(frozen=True)
class HashGrid:
    """Shape of a hash grid: its levels in a flat table of ``num_entries`` rows of ``features_per_level`` values."""

    levels: tuple[Level, ...]
    features_per_level: int

    @property
    def num_entries(self) -> int:
        """Rows of the flat table."""
        return self.levels[-1].offset + self.levels[-1].size

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Cells a side, level by level."""
        return tuple(level.resolution for level in self.levels)

    @property
    def is_timed(self) -> bool:
        """Whether features change with time."""
        return any(level.knots > 1 for level in self.levels)


def make_hash_grid(
    num_levels: int,
    base_res: int,
    max_res: int,
    log2_hashmap_size: int,
    features_per_level: int,
    base_knots: int = 1,
    max_knots: int = 1,
) -> HashGrid:
    """Levels with resolutions in geometric progression from ``base_res`` to ``max_res`` cells a side ([I], eq. 2-3),
    and with knots in time from ``base_knots`` to ``max_knots`` likewise.

    Raises:
        ValueError: for sizes that make no grid; the message names the argument.
    """
    for name, value in (
        ("num_levels", num_levels),
        ("base_res", base_res),
        ("features_per_level", features_per_level),
        ("base_knots", base_knots),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if max_res < base_res or max_res > 2**15:
        raise ValueError(f"max_res must lie between base_res={base_res} and 32768, got {max_res}.")
    if max_knots < base_knots or max_knots > 2**15:
        raise ValueError(f"max_knots must lie between base_knots={base_knots} and 32768, got {max_knots}.")
    if not 4 <= log2_hashmap_size <= 26:
        raise ValueError(f"log2_hashmap_size must lie between 4 and 26, got {log2_hashmap_size}.")
    growth = (max_res / base_res) ** (1.0 / (num_levels - 1)) if num_levels > 1 else 1.0
    quickening = (max_knots / base_knots) ** (1.0 / (num_levels - 1)) if num_levels > 1 else 1.0
    levels, offset = [], 0
    for index in range(num_levels):
        resolution, knots = round(base_res * growth**index), round(base_knots * quickening**index)
        is_dense = resolution**3 * knots <= 2**log2_hashmap_size
        size = resolution**3 * knots if is_dense else 2**log2_hashmap_size
        levels.append(Level(resolution, offset, size, is_dense, knots))
        offset += size
    return HashGrid(tuple(levels), features_per_level)


def prefilter_weights(
    stds: Float[Tensor, "intervals samples"],
    resolutions: Sequence[int] | Float[Tensor, "levels"],
    prefilter: Prefilter,
    bandwidths: Float[Tensor, "levels"] | None = None,
) -> Float[Tensor, "intervals samples levels"]:
    """How much of each level survives averaging over a sample's Gaussian.

    ``multisample``: erf(1 / (sqrt(8) std n)) (Zip-NeRF, section 2), exactly. ``ipe``: exp(-lambda/2 std^2 n^2), with
    std^2 the trace of the covariance and one lambda a level (mip-NeRF's integrated positional encoding, on a grid).
    ``none``: one.

    Args:
        stds: in units of the unit cube's side, >= 0.
        resolutions: cells a side of each level.
        bandwidths: lambda of each level, for ``ipe``; ones if not given.
    """
    n = torch.as_tensor(resolutions, device=stds.device, dtype=stds.dtype)
    cells = stds[..., None] * n
    if prefilter == "multisample":
        # 1/(sqrt8 * 1e-3) is far inside erf's saturation; the floor keeps 1/0 and its gradient finite.
        return torch.erf(1.0 / (SQRT8 * cells.clamp_min(1e-3)))
    if prefilter == "ipe":
        exponent = 0.5 * cells.square() if bandwidths is None else 0.5 * bandwidths * cells.square()
        return torch.exp(-exponent.clamp(max=MAX_IPE_EXPONENT))
    if prefilter == "none":
        return torch.ones_like(cells)
    raise ValueError(f"prefilter must be one of {get_args(Prefilter)}, got {prefilter!r}.")


def shutter_weights(shutter: float, grid: HashGrid) -> list[float]:
    """How much of each level survives averaging over a moment: the weight of ``multisample``, along time.

    Args:
        shutter: length of the moment, of the whole time, which is 1; a box, whose std is its length over root 12.
    """
    stds = torch.tensor([[shutter / math.sqrt(12.0)]], dtype=torch.float64)
    weights = prefilter_weights(stds, [level.knots for level in grid.levels], "multisample")[0, 0].tolist()
    # What does not change keeps its features however long the moment is.
    return [1.0 if level.knots == 1 else weight for level, weight in zip(grid.levels, weights, strict=True)]


def _locate(
    positions: Float[Tensor, "axes points"], cells: int
) -> tuple[Int[Tensor, "axes 2 points"], Float[Tensor, "axes 2 points"]]:
    """The two cells around each coordinate in [0, 1], and their linear weights."""
    places = (positions.clamp(0.0, 1.0) * cells - 0.5).clamp(0.0, cells - 1.0)
    # No number points at the first cell, whose row can be read; its fraction, and so its weight, stays no number.
    lower = places.detach().nan_to_num(0.0).floor().clamp(max=max(cells - 2, 0))
    fraction, corner = places - lower, lower.to(torch.int32)
    pair = torch.stack([corner, (corner + 1).clamp(max=cells - 1)], dim=1)
    return pair, torch.stack([1.0 - fraction, fraction], dim=1)


def level_corners(
    positions: Float[Tensor, "points 3"], level: Level, times: Float[Tensor, "points"] | None = None
) -> tuple[Int[Tensor, "points corners"], Float[Tensor, "points corners"]]:
    """Rows (within the level) of the cells around each position, and their trilinear weights.

    Args:
        positions: unit cube; outside of it the nearest cell's features continue.
        times: 0 to 1, of a level that changes with time.
    Returns:
        rows, int32, eight or, with times, sixteen, x fastest among them and time slowest, always within the level;
        and weights, which sum to one, or are NaN for a position with a NaN.
    """
    n = level.resolution
    # Corners before points in memory: the innermost loop of every operation here is then long, on any device.
    pair, share = _locate(positions.t().contiguous(), n)  # [axis, low or high, points]
    # int32 products wrap exactly as the uint32 of [I]; the power-of-two mask keeps their low bits.
    primes = [prime - 2**32 if prime >= 2**31 else prime for prime in HASH_PRIMES]
    steps = [1, n, n * n, n**3] if level.is_dense else primes
    join = torch.add if level.is_dense else torch.bitwise_xor
    x, y, z = (pair[axis] * steps[axis] for axis in range(3))
    rows = join(join(z[:, None], y)[:, :, None], x).reshape(8, -1)
    weights = ((share[2][:, None] * share[1])[:, :, None] * share[0]).reshape(8, -1)
    if times is not None:
        knot, moment = _locate(times[None], level.knots)
        rows = join(knot[0, :, None] * steps[3], rows).reshape(16, -1)
        weights = (moment[0, :, None] * weights).reshape(16, -1)
    return (rows if level.is_dense else rows & (level.size - 1)).t(), weights.t()


class _HashEncode(torch.autograd.Function):
    """Sums table rows over samples and corners, one level at a time; nothing of size [points, levels] is kept."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, positions: Tensor, weights: Tensor, grid: HashGrid, num_active: int,
        times: Tensor | None,
    ) -> Tensor:  # fmt: skip
        intervals, samples, _ = positions.shape
        flat = positions.reshape(-1, 3)
        times = None if times is None else times.repeat_interleave(samples)
        features = table.new_zeros(intervals, len(grid.levels), grid.features_per_level)
        for index, level in enumerate(grid.levels[:num_active]):
            rows, corner_weights = level_corners(flat, level, times)
            bag = corner_weights * (weights[..., index].reshape(-1, 1) / samples)
            features[:, index] = torch.nn.functional.embedding_bag(
                rows.reshape(intervals, samples * rows.shape[1]),
                table[level.offset : level.offset + level.size],
                per_sample_weights=bag.reshape(intervals, samples * rows.shape[1]),
                mode="sum",
            )
        ctx.save_for_backward(table, positions, weights, times)
        ctx.grid, ctx.num_active = grid, num_active
        return features

    @staticmethod
    def backward(ctx: Any, v_features: Tensor) -> tuple[Tensor | None, ...]:
        table, positions, weights, times = ctx.saved_tensors
        need_table, need_positions, need_weights = ctx.needs_input_grad[:3]
        samples = positions.shape[1]
        v_table = torch.zeros_like(table) if need_table else None
        v_positions = torch.zeros_like(positions) if need_positions else None
        v_weights = torch.zeros_like(weights) if need_weights else None
        for index, level in enumerate(ctx.grid.levels[: ctx.num_active]):
            v_level = v_features[:, index]
            flat = positions.detach().reshape(-1, 3).requires_grad_(need_positions)
            with torch.set_grad_enabled(need_positions):
                rows, corner_weights = level_corners(flat, level, times)
            prefilter = weights[..., index].reshape(-1, 1) / samples
            v_points = v_level[:, None].expand(-1, samples, -1).reshape(-1, v_level.shape[-1])
            if v_table is not None:
                _scatter_level(v_table, level, rows, corner_weights.detach() * prefilter, v_points)
            if v_positions is None and v_weights is None:
                continue
            values = table[level.offset : level.offset + level.size][rows.long()]
            v_bag = (values * v_points[:, None]).sum(-1)
            if v_weights is not None:
                v_weights[..., index] = ((v_bag * corner_weights.detach()).sum(-1) / samples).view_as(
                    v_weights[..., index]
                )
            if v_positions is not None:
                v_positions += torch.autograd.grad(corner_weights, flat, v_bag * prefilter)[0].view_as(positions)
        return v_table, v_positions, v_weights, None, None, None


def _scatter_level(v_table: Tensor, level: Level, rows: Tensor, bag: Tensor, v_points: Tensor) -> None:
    """Adds bag * v_points to the level's rows: one flat 1-D scatter a feature, torch's fastest form on a CPU."""
    features = v_points.shape[-1]
    target = v_table[level.offset : level.offset + level.size].view(-1)
    # Transposed back, both are contiguous.
    first, bag = rows.t().long().reshape(-1) * features, bag.t()
    for index in range(features):
        target[index:].scatter_add_(0, first, (bag * v_points[:, index]).reshape(-1))


def check_table(table: Tensor, grid: HashGrid) -> None:
    """Raises a ValueError if a table is not of the grid's shape."""
    needed = (grid.num_entries, grid.features_per_level)
    if tuple(table.shape) != needed:
        raise ValueError(f"the table has shape {tuple(table.shape)}, its grid needs {needed}.")


def count_active(grid: HashGrid, num_active: int | None) -> int:
    """Levels in use when ``num_active`` are asked for; all for None."""
    return len(grid.levels) if num_active is None else min(max(num_active, 0), len(grid.levels))


def hash_encode(
    table: Float[Tensor, "entries features"],
    positions: Float[Tensor, "intervals samples 3"],
    stds: Float[Tensor, "intervals samples"],
    grid: HashGrid,
    prefilter: Prefilter = "multisample",
    bandwidths: Float[Tensor, "levels"] | None = None,
    num_active: int | None = None,
    times: Float[Tensor, "intervals"] | None = None,
    shutter: float = 0.0,
) -> tuple[Float[Tensor, "intervals levels features"], Float[Tensor, "intervals levels"]]:
    """Prefiltered features: per level the mean over samples of weight * trilinear(position) (Zip-NeRF, eq. 4-5).

    This function *defines* the operation; the kernels in ``zipnerf_ns.kernels`` compute the same, faster. A NaN
    coordinate makes its interval's features NaN, so that a divergence is seen.

    Args:
        table: rows of ``grid``, level after level.
        positions: of the samples, unit cube (outside, the nearest face's features continue).
        stds: of the samples, in units of the cube's side (for ``ipe`` the root of the covariance's trace).
        prefilter: see :func:`prefilter_weights`.
        bandwidths: see :func:`prefilter_weights`.
        num_active: levels in use, from the coarsest; the others give zeros. All if not given.
        times: of the intervals, 0 to 1, in a grid that changes with time; see :func:`check_times`.
        shutter: length of the moments around them; see :func:`shutter_weights`.
    Returns:
        features, and the mean prefilter weight of every level, active or not.
    Raises:
        ValueError: if the table's shape is not the grid's, or a grid that changes with time is not told the time.
    """
    check_table(table, grid)
    check_times(times, grid)
    weights = prefilter_weights(stds, grid.resolutions, prefilter, bandwidths)
    if times is not None:
        weights = weights * weights.new_tensor(shutter_weights(shutter, grid))
    active = count_active(grid, num_active)
    return _HashEncode.apply(table, positions, weights, grid, active, times), weights.mean(dim=1)


def check_times(times: Tensor | None, grid: HashGrid) -> None:
    """Raises a ValueError where a grid that changes with time is not told the time."""
    if grid.is_timed and times is None:
        raise ValueError("the grid changes with time, and the rays have no times.")


def mean_square_per_level(table: Float[Tensor, "entries features"], grid: HashGrid) -> Float[Tensor, "levels"]:
    """Mean of the squared table values of each level (for the weight features and hash decay)."""
    return torch.stack([table[lv.offset : lv.offset + lv.size].square().mean() for lv in grid.levels])
