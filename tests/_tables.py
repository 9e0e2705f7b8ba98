"""Hash tables in the middle of a training: grids, values, gradients and moments, and torch's own Adam beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zipnerf_ns.functional.adam import TableUpdate
from zipnerf_ns.functional.hash_grid import HashGrid, Level, make_hash_grid
from zipnerf_ns.hash_table import HashTable

LR, BETAS, EPS = 0.02, (0.9, 0.99), 1e-15
STEPS = 20


def two_levels() -> HashGrid:
    """Rows 0-4 and 5-12, of two values."""
    return HashGrid((Level(1, 0, 5, True), Level(2, 5, 8, True)), 2)


def aligned_grid(features: int) -> HashGrid:
    """4, 8 and 16 cells a side; the finest level is 4096 rows, more than a program of any kernel takes."""
    return make_hash_grid(3, 4, 16, 12, features)


def odd_grid(features: int) -> HashGrid:
    """Levels of 27, 343 and 1024 rows, of which but the first none begins on a multiple of two."""
    return make_hash_grid(3, 3, 16, 10, features)


def values(shape: Sequence[int], seed: int, scale: float = 1.0, dtype=torch.float32) -> Tensor:
    """Normal numbers, the same for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def decays(grid: HashGrid) -> list[float]:
    """One coefficient a level, all different; on values of 0.3 about as strong as the gradients of 0.1."""
    return [0.2 + 0.3 * index for index in range(len(grid.levels))]


class Table(HashTable):
    """A table of which a half-precision copy is kept if one asks for it."""

    reads_half = False


def new_table(
    grid: HashGrid, dtype=torch.float32, decay: Sequence[float] | None = None, reads_half: bool = False
) -> Table:
    parameter = torch.nn.Parameter(values((grid.num_entries, grid.features_per_level), 0, 0.3, dtype))
    table = Table(grid, parameter, decays(grid) if decay is None else decay)
    table.reads_half = reads_half
    return table


def gradient(table: Tensor, step: int) -> Tensor:
    """Sparse as in training: only every third row is touched by a ray."""
    grad = values(table.shape, 100 + step, 0.1, table.dtype)
    grad[torch.arange(len(table)) % 3 > 0] = 0.0
    return grad


def moments(table: HashTable) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(table.hash_table), torch.zeros_like(table.hash_table)


def update(table: HashTable, grad: Tensor, memory: tuple[Tensor, Tensor], step: int = 1) -> TableUpdate:
    """What a step is given of a table."""
    return TableUpdate(table.hash_table, grad, *memory, step, table.grid, table.decay, table.half_buffer())


def run(decayed_adam_, tables: Sequence[HashTable], steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Steps of an implementation on tables from their present values, recorded; the moments at the end."""
    memory = [moments(table) for table in tables]
    for step in range(1, steps + 1):
        updates = [
            update(table, gradient(table.hash_table.detach().cpu(), step).to(table.hash_table.device), pair, step)
            for table, pair in zip(tables, memory, strict=True)
        ]
        for table, summary in zip(tables, decayed_adam_(updates, LR, BETAS, EPS), strict=True):
            table.record(summary)
    return memory


def level_means(values: Tensor, grid: HashGrid) -> Tensor:
    """Mean square of each level by a loop, in float64."""
    rows = values.detach().double().cpu().view(-1, grid.features_per_level)
    return torch.stack([rows[lv.offset : lv.offset + lv.size].square().mean() for lv in grid.levels])


def reference(table: HashTable, steps: int = STEPS) -> Tensor:
    """torch.optim.Adam, unfused and in float64, on gradients with the decay added to them."""
    leaf = torch.nn.Parameter(table.hash_table.detach().double().cpu().clone())
    optimizer = torch.optim.Adam([leaf], lr=LR, betas=BETAS, eps=EPS, foreach=False, fused=False)
    levels = zip(table.grid.levels, table.decay, strict=True)
    factor = torch.cat([torch.full((lv.size, 1), c, dtype=torch.float64) for lv, c in levels])
    for step in range(1, steps + 1):
        leaf.grad = gradient(table.hash_table.detach().cpu(), step).double() + factor * leaf.detach()
        optimizer.step()
    return leaf.detach()
