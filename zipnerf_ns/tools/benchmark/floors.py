"""The least time that a piece of work can take here: what it must move and multiply, over measured rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipnerf_ns.functional.cones import Cones, cones_in_cube, interval_times
from zipnerf_ns.functional.hash_grid import HashGrid, Prefilter, level_corners
from zipnerf_ns.tools.benchmark.timing import median_ms

SECTOR_BYTES = 32
"""What a GPU reads from its memory or its cache at least."""
COUNTED_RAYS = 4096
"""Rays whose look-ups are held at once while they are counted."""
PASSES = 64
"""Passes over a buffer that fits the cache, in one launch: one alone would be over before the next begins."""
COUNTING = (
    "floor: per piece and direction the largest of four. Memory: inputs read once, outputs written once, of a hash "
    "table the sectors of 32 bytes that any ray touches, over a large copy's rate. Cache: each of these sectors once "
    "for every ray that touches it, over the rate of sums within the cache. Products: two operations for each weight "
    "and row, four backward, over a large product's rate. Atomics: backward, a sector as in the cache, over the rate "
    "of additions to random places. A step's or a picture's floor is the sum over its pieces."
)


class Amounts(NamedTuple):
    """What a piece of work needs at least; or what the device reaches of it in a second."""

    memory: float = 0.0
    """Bytes from or to the device's memory."""
    cache: float = 0.0
    """Bytes from its cache."""
    products: float = 0.0
    """Operations of matrix products."""
    atomics: float = 0.0
    """Atomic additions, of up to 32 bytes each."""


def floor_ms(needs: Iterable[Amounts], rates: Amounts) -> float:
    """The least time that works take one after the other, ms: each as long as that of its needs which takes longest."""
    return sum(max(need / rate for need, rate in zip(work, rates, strict=True)) for work in needs) * 1e3


def measure_rates(device: torch.device, is_tiny: bool, seconds: float) -> Amounts:
    """Rates a second of four plain torch operations: a copy, sums within the cache, a product, scattered additions.

    Args:
        device: whose rates are measured.
        is_tiny: on small tensors, to see whether it works.
        seconds: over which each is measured.
    """
    copied, cached, side, added = (2**20, 2**16, 128, 2**14) if is_tiny else (2**30, 2**24, 8192, 2**26)
    source, target = torch.ones(2, copied // 4, device=device)
    small = torch.ones(cached // 4096, 1024, device=device)
    sums = torch.empty(len(small), device=device)
    left, right = torch.randn(2, side, side, device=device, dtype=torch.bfloat16 if device.type == "cuda" else None)
    table, ones = torch.zeros(min(2**21, added), device=device), torch.ones(added, device=device)
    places = torch.randint(len(table), (added,), device=device)
    works: tuple[tuple[Callable[[], Any], float], ...] = (
        (lambda: target.copy_(source), 2.0 * copied),
        (_passes(device, lambda: torch.sum(small, dim=1, out=sums)), float(PASSES * cached)),
        (lambda: left @ right, 2.0 * side**3),
        (lambda: table.scatter_add_(0, places, ones), float(added)),
    )
    return Amounts(*(amount / (median_ms(run, seconds) / 1e3) for run, amount in works))


def _passes(device: torch.device, run: Callable[[], Any]) -> Callable[[], Any]:
    """The same work PASSES times; on a GPU as one launch."""
    if device.type != "cuda":
        return lambda: [run() for _ in range(PASSES)]
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(PASSES):
            run()
    return graph.replay


class Sectors(NamedTuple):
    """What some rays touch of a hash table."""

    per_ray: float = 0.0
    """Sectors that a ray touches, each counted once for every ray."""
    distinct: float = 0.0
    """Sectors that any ray touches."""


@torch.no_grad()
def count_sectors(grid: HashGrid, prefilter: Prefilter, cones: Cones) -> Sectors:
    """What some intervals touch of a float32 table, as if each level began on a sector."""
    # Wider rows than a sector do not occur: eight features fill it.
    rows_per_sector = SECTOR_BYTES // (4 * grid.features_per_level)
    touched = [torch.zeros(-(-level.size // rows_per_sector), device=cones.origins.device) for level in grid.levels]
    per_ray = 0
    for start in range(0, len(cones.origins), COUNTED_RAYS):
        part = slice(start, start + COUNTED_RAYS)
        # Shifted intervals touch about as much as where they would lie unshifted.
        *shape, times = (t if t is None else t[part] for t in (*cones[:5], cones.times))
        some = Cones(*shape, cones.aabb, times)
        positions, _ = cones_in_cube(some, prefilter != "multisample")
        times = interval_times(some, grid)
        times = None if times is None else times.repeat_interleave(positions.shape[1])
        for level, seen in zip(grid.levels, touched, strict=True):
            rows, _ = level_corners(positions.flatten(0, 1), level, times)
            sectors = (rows // rows_per_sector).reshape(len(some.origins), -1).sort(dim=1).values
            seen[sectors.flatten().long()] = 1.0
            per_ray += len(sectors) + int((sectors[:, 1:] != sectors[:, :-1]).sum())
    return Sectors(float(per_ray), sum(float(seen.sum(dtype=torch.float64)) for seen in touched))


def num_bytes(tensors: Iterable[Tensor]) -> float:
    """Bytes of tensors' values, however they lie in memory."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
