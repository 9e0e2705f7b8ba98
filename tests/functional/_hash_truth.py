"""The hash grid as loops over python integers and floats, and the inputs that its tests share."""

from __future__ import annotations

import math

import numpy as np
import torch
from _truth import rng
from torch import Tensor

from zipnerf_ns.functional.hash_grid import HashGrid, Level, make_hash_grid

PREFILTERS = ["multisample", "ipe", "none"]
DENSE_AND_HASHED = make_hash_grid(num_levels=3, base_res=4, max_res=25, log2_hashmap_size=9, features_per_level=2)
"""Resolutions 4, 10 and 25: the first level is dense, the others hash 1000 and 15625 cells into 512 rows."""
LEVELS = [
    Level(1, 0, 1, True),
    Level(2, 0, 8, True),
    Level(5, 0, 125, True),
    Level(9, 0, 64, False),
    Level(1000, 0, 2**12, False),
    Level(8192, 0, 2**21, False),
    Level(32768, 0, 2**26, False),
]
LEVEL_NAMES = [f"{level.resolution}-{'dense' if level.is_dense else 'hashed'}" for level in LEVELS]


def looped_row(cell, level: Level) -> int:
    """A cell's row, in integers without bounds: Instant-NGP's hash modulo 2^32, then modulo the table."""
    x, y, z = cell
    if level.is_dense:
        return x + level.resolution * y + level.resolution**2 * z
    hashed = 0
    for coordinate, prime in zip((x, y, z), (1, 2654435761, 805459861), strict=True):
        hashed ^= coordinate * prime % 2**32
    return hashed % level.size


def looped_corners(position, level: Level):
    """Rows and weights of the eight cells whose centers surround one position, x fastest."""
    n = level.resolution
    cells = [min(max(min(max(p, 0.0), 1.0) * n - 0.5, 0.0), n - 1.0) for p in position]
    lower = [min(math.floor(c), max(n - 2, 0)) for c in cells]
    rows, weights = [], []
    for dz in (0, 1):
        for dy in (0, 1):
            for dx in (0, 1):
                corner = [min(low + step, n - 1) for low, step in zip(lower, (dx, dy, dz), strict=True)]
                shares = [1.0 - abs(c - low - step) for c, low, step in zip(cells, lower, (dx, dy, dz), strict=True)]
                rows.append(looped_row(corner, level))
                weights.append(shares[0] * shares[1] * shares[2])
    return rows, weights


def looped_weight(std: float, resolution: int, prefilter: str, bandwidth: float) -> float:
    """The prefilter's weight of one sample on one level."""
    if prefilter == "multisample":
        return math.erf(1.0 / (math.sqrt(8.0) * max(std * resolution, 1e-9)))
    if prefilter == "ipe":
        return math.exp(-min(0.5 * bandwidth * std**2 * resolution**2, 50.0))
    return 1.0


def looped_encode(table, positions, stds, grid: HashGrid, prefilter, bandwidths):
    """Features and mean weights by loops over intervals, levels, samples and corners, in python floats."""
    rows_of_table = table.tolist()
    features, means = np.zeros((len(positions), len(grid.levels), grid.features_per_level)), []
    for i, (points, spreads) in enumerate(zip(positions.tolist(), stds.tolist(), strict=True)):
        means.append([])
        for k, level in enumerate(grid.levels):
            weights = [looped_weight(std, level.resolution, prefilter, bandwidths[k]) for std in spreads]
            means[-1].append(sum(weights) / len(weights))
            for point, weight in zip(points, weights, strict=True):
                for row, share in zip(*looped_corners(point, level), strict=True):
                    for f in range(grid.features_per_level):
                        features[i, k, f] += weight * share * rows_of_table[level.offset + row][f] / len(weights)
    return torch.from_numpy(features), torch.tensor(means, dtype=torch.float64)


def random_table(grid: HashGrid, seed: int, dtype=torch.float64) -> Tensor:
    shape = (grid.num_entries, grid.features_per_level)
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64).to(dtype)


def random_samples(intervals: int, samples: int, seed: int, dtype=torch.float64, outside: float = 0.0):
    """Positions in the unit cube or ``outside`` of it, and stds of 0.003 to 1."""
    positions = torch.rand(intervals, samples, 3, generator=rng(seed), dtype=torch.float64)
    stds = 10.0 ** (torch.rand(intervals, samples, generator=rng(seed + 1), dtype=torch.float64) * 2.5 - 2.5)
    return (positions * (1.0 + 2.0 * outside) - outside).to(dtype), stds.to(dtype)


def faces_and_centers(level: Level) -> Tensor:
    """Positions on cell faces, at cell centers, on the cube's faces, edges and corners, and outside of it."""
    n = level.resolution
    cells = torch.randint(0, n, (30, 3), generator=rng(1), dtype=torch.int64).double()
    special = torch.tensor([0.0, 1.0, -0.5, 1.5, 0.5, 0.5 / n, 1.0 - 0.5 / n], dtype=torch.float64)
    return torch.cat([cells / n, (cells + 0.5) / n, torch.cartesian_prod(special, special, special)])
