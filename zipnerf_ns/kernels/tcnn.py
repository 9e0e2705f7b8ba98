"""Tinycudann's HashGrid: whether the library is there, what it can do, and how it lays a table out.

The library's grid differs from ours. Its level l spans the unit cube with ``base * scale^l - 1`` cells, a number that
need not be whole, between as many corners plus one, rounded up; and in a dense level's outermost half cell it reads on
into the next row or level. The table is one row of values, level after level, each level rounded up to eight entries.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from zipnerf_ns.functional.hash_grid import HashGrid, Level

INSTALL = "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"
ROUND_TO = 8
"""The library makes every level a multiple of this many entries."""
FEATURES = (1, 2, 4, 8)
"""Features a level that the library is compiled for."""
SHRINK = 1.0 - 2e-6
"""Factor on the growth of resolutions. It changes a cell's side by less than a ten-thousandth, and keeps levels that
would have a whole number of cells from being rounded up to one more, or not, by the last digit of a float32."""


def import_library() -> ModuleType:
    """The module ``tinycudann``.

    Raises:
        RuntimeError: if it cannot be imported; the message says how to install it.
    """
    try:
        import tinycudann
    except (ImportError, OSError) as error:
        # It raises OSError on a machine without a CUDA device, and where it was built for another one.
        raise RuntimeError(f"implementation='tcnn' needs tinycudann ({error}). On a CUDA machine: {INSTALL}") from error
    return tinycudann


def why_unsupported(prefilter: str, features_per_level: int) -> str | None:
    """What in a configuration keeps it from this encoding, as a sentence for the user; None if nothing."""
    if prefilter not in ("ipe", "none"):
        return (
            f"implementation='tcnn' has one look-up an interval, prefilter={prefilter!r} several: "
            "choose prefilter 'ipe' or 'none', or implementation 'triton'."
        )
    if features_per_level not in FEATURES:
        return f"implementation='tcnn' reads {FEATURES} features a level, got {features_per_level}."
    return None


def growth(num_levels: int, base_res: int, max_res: int) -> float:
    """Factor between the resolutions of neighboring levels, as the library is told."""
    return 1.0 if num_levels == 1 else (max_res / base_res) ** (1.0 / (num_levels - 1)) * SHRINK


def library_levels(
    num_levels: int, base_res: int, per_level_scale: float, log2_hashmap_size: int
) -> tuple[tuple[Level, ...], tuple[float, ...]]:
    """The levels as the library lays them out, and the cells along the unit cube's side of each.

    In float32, as the library computes them: a resolution is a rounded-up number.
    """
    levels: list[Level] = []
    cells: list[float] = []
    log_scale, offset = np.float32(math.log2(np.float32(per_level_scale))), 0
    for index in range(num_levels):
        side = np.float32(2.0 ** float(np.float32(index) * log_scale)) * np.float32(base_res) - np.float32(1.0)
        resolution = math.ceil(side) + 1
        dense_size = -(-(resolution**3) // ROUND_TO) * ROUND_TO
        size = min(dense_size, 2**log2_hashmap_size)
        levels.append(Level(resolution, offset, size, resolution**3 <= size))
        cells.append(float(side))
        offset += size
    return tuple(levels), tuple(cells)


class LibraryEncoding(NamedTuple):
    """A hash grid of the library's, and what is known of its table."""

    encoding: nn.Module
    """Maps positions in the unit cube to the features of all levels; ``params`` is its table."""
    grid: HashGrid
    """Where the levels lie in the table."""
    cells: tuple[float, ...]
    """Cells along the unit cube's side of each level."""


def make_encoding(
    num_levels: int, features_per_level: int, base_res: int, max_res: int, log2_hashmap_size: int
) -> LibraryEncoding:
    """The library's encoding of a grid's shape, in float32.

    Raises:
        RuntimeError: if the library is absent, or lays its table out otherwise.
    """
    per_level_scale = growth(num_levels, base_res, max_res)
    encoding = import_library().Encoding(
        3,
        {
            "otype": "HashGrid",
            "n_levels": num_levels,
            "n_features_per_level": features_per_level,
            "log2_hashmap_size": log2_hashmap_size,
            "base_resolution": base_res,
            "per_level_scale": per_level_scale,
        },
        # In half precision, which is the library's choice, small gradients vanish, and Adam needs the small ones.
        dtype=torch.float32,
    )
    levels, cells = library_levels(num_levels, base_res, per_level_scale, log2_hashmap_size)
    grid = HashGrid(levels, features_per_level)
    expected = grid.num_entries * grid.features_per_level
    if encoding.params.numel() != expected:
        raise RuntimeError(
            f"tinycudann's table has {encoding.params.numel()} values where its known layout gives {expected}: "
            "this version of the library lays it out otherwise. Use implementation 'triton'."
        )
    return LibraryEncoding(encoding, grid, cells)
