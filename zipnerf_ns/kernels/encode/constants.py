"""What the kernels read of a grid, on its device once and for all."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zipnerf_ns.functional.hash_grid import HASH_PRIMES, HashGrid, shutter_weights


@lru_cache(maxsize=64)
def level_constants(grid: HashGrid, device: torch.device) -> Int[Tensor, "levels 5"]:
    """The levels as ``cells.load_level`` reads them, on the device once and for all.

    Cells a side, first row, y and z multipliers of a row's number, and the hash's mask: -1 marks a dense level.
    """
    rows = []
    for level in grid.levels:
        n = level.resolution
        if level.is_dense:
            steps = [n, n * n] if n > 1 else [0, 0]
        else:
            steps = [prime - 2**32 if prime >= 2**31 else prime for prime in HASH_PRIMES[1:3]]
        rows.append([n, level.offset, *steps, -1 if level.is_dense else level.size - 1])
    return torch.tensor(rows, dtype=torch.int32, device=device)


def moments(times: Tensor | None, shutter: float, grid: HashGrid) -> tuple[Tensor | None, ...]:
    """Times, knots and shutter weights as the kernels take them; none of them where nothing changes with time."""
    if times is None or not grid.is_timed:
        return None, None, None
    return times, *_moment_constants(shutter, grid, times.device)


@lru_cache(maxsize=64)
def _moment_constants(
    shutter: float, grid: HashGrid, device: torch.device
) -> tuple[Int[Tensor, "levels 2"], Float[Tensor, "levels"]]:
    """Knots of each level with the multiplier of a row's number, and the shutter's weights, on the device once."""
    prime = HASH_PRIMES[3] - 2**32
    rows = [[level.knots, level.resolution**3 if level.is_dense else prime] for level in grid.levels]
    weights = torch.tensor(shutter_weights(shutter, grid), dtype=torch.float32, device=device)
    return torch.tensor(rows, dtype=torch.int32, device=device), weights
