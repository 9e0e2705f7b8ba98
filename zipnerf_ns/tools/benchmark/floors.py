"""The least time that a piece of work can take here: what it must move and multiply, over measured rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from zipnerf_ns.functional.cones import Cones, cones_in_cube
from zipnerf_ns.functional.hash_grid import HashGrid, Prefilter, level_corners
from zipnerf_ns.tools.benchmark.timing import Effort, time_stages

SECTOR_BYTES = 32
"""What a GPU reads from its memory or its cache at least."""
COUNTED_RAYS = 4096
"""Rays whose look-ups are held at once while they are counted, and on which a ray's own sectors are counted."""
CEILING_EFFORT = Effort(2, 5, 10, 0.1)
PASSES = 64
"""Over a buffer that fits the cache, in one launch: alone, one would be over before the next begins."""

COUNTING = {
    "memory": "each input is read once and each output written once, at the rate of a large copy on the device; of a "
    "hash table the sectors of 32 bytes that any ray touches, of its gradient (float32, dense) all",
    "cache": "each sector of a hash table (float32) that a ray touches is read once for that ray, at the rate of "
    "sums over a buffer that fits the cache",
    "products": "two operations for each weight and row of a matrix product, four in the backward pass, at the rate "
    "of a large matrix product; other arithmetic is not counted",
    "atomics": "each sector of a hash table's gradient that a ray touches is added to once for that ray, at the rate "
    "of one-value additions to random places",
    "times": "medians after warm-up; of pieces and ceilings the device's own time with its cache flushed before, of "
    "steps, loops and pictures wall-clock time of many in a row",
    "twin": "of a whole step or picture the model's torch implementation; optimizer and rays stay the method's",
    "floor": "the largest of the four for each piece of work and direction; of a whole step the sum over its pieces",
}
"""How floors are counted, for the report."""


@dataclass(frozen=True)
class Cost:
    """What a piece of work needs at least."""

    memory: float = 0.0
    """Bytes from or to the device's memory."""
    cache: float = 0.0
    """Bytes from its cache."""
    products: float = 0.0
    """Operations of matrix products."""
    atomics: float = 0.0
    """Atomic additions, of up to 32 bytes each."""


@dataclass(frozen=True)
class Ceilings:
    """What the device reached in this run, a second: of each of a cost's parts."""

    memory: float
    cache: float
    products: float
    atomics: float

    def floor(self, cost: Cost) -> tuple[float, str]:
        """The time that a cost takes at least, ms, and which of its parts takes it."""
        rates, parts = asdict(self), asdict(cost)
        times = {name: amount / rates[name] * 1e3 for name, amount in parts.items()}
        bound = max(times, key=lambda name: times[name])
        return times[bound], bound


def measure_ceilings(device: torch.device, tiny: bool = False) -> Ceilings:
    """Rates of four plain torch operations: a copy, sums within the cache, a matrix product, scattered additions.

    Args:
        device: whose.
        tiny: on small tensors, to see whether it works.
    """
    copied, cached, side, added = (2**20, 2**16, 128, 2**14) if tiny else (2**30, 2**24, 8192, 2**26)
    source, target = torch.ones(2, copied // 4, device=device)
    memory = _rate(device, lambda _: target.copy_(source), 2.0 * copied)

    small = torch.ones(cached // 4096, 1024, device=device)
    sums = torch.empty(len(small), device=device)
    cache = _rate(device, _passes(device, lambda: torch.sum(small, dim=1, out=sums)), float(PASSES * cached))

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    products = _rate(device, lambda _: left @ right, 2.0 * side**3)

    table, ones = torch.zeros(min(2**21, added), device=device), torch.ones(added, device=device)
    places = torch.randint(len(table), (added,), device=device)
    return Ceilings(memory, cache, products, _rate(device, lambda _: table.scatter_add_(0, places, ones), float(added)))


def _rate(device: torch.device, run: Callable, amount: float) -> float:
    (milliseconds,) = time_stages(device, [run], CEILING_EFFORT)
    return amount / (milliseconds / 1e3)


def _passes(device: torch.device, run: Callable) -> Callable:
    """The same work PASSES times; on a GPU as one launch."""
    if device.type != "cuda":
        return lambda _: [run() for _ in range(PASSES)]
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(PASSES):
            run()
    return lambda _: graph.replay()


@dataclass(frozen=True)
class LevelCount:
    """What a batch touches of one level of a hash table."""

    per_ray: float
    """Sectors that a ray touches, each counted once for every ray."""
    distinct: float
    """Sectors that any ray touches."""


@torch.no_grad()
def count_levels(grid: HashGrid, cones: Cones, prefilter: Prefilter) -> list[LevelCount]:
    """What some intervals touch of each level of a table.

    Sectors are counted as if each level began on one. Those of single rays are counted on the first COUNTED_RAYS.
    """
    rays = len(cones.origins)
    positions = [_positions(cones, start, prefilter) for start in range(0, rays, COUNTED_RAYS)]
    counts = []
    for level in grid.levels:
        # Wider rows than a sector do not occur: eight features fill it.
        rows_per_sector = SECTOR_BYTES // (4 * grid.features_per_level)
        touched = torch.zeros(-(-level.size // rows_per_sector), dtype=torch.bool, device=cones.origins.device)
        per_ray = 0.0
        for part in positions:
            rows, _ = level_corners(part.flatten(0, 1), level)
            sectors = torch.div(rows, rows_per_sector, rounding_mode="floor").reshape(len(part), -1)
            touched[sectors.flatten().long()] = True
            if part is positions[0]:
                ordered = sectors.sort(dim=1).values
                own = len(part) + int((ordered[:, 1:] != ordered[:, :-1]).sum())
                per_ray = own * rays / len(part)
        counts.append(LevelCount(per_ray, float(touched.sum())))
    return counts


def _positions(cones: Cones, start: int, prefilter: Prefilter) -> Tensor:
    """Samples ``[rays, samples, 3]`` of COUNTED_RAYS rays from a first one on."""
    part = slice(start, start + COUNTED_RAYS)
    turns = None if cones.turns is None else cones.turns[part]
    some = Cones(cones.origins[part], cones.directions[part], cones.radius[part], cones.tdist[part], turns, cones.aabb)
    positions, _ = cones_in_cube(some, prefilter != "multisample")
    return positions.reshape(len(some.origins), -1, 3)


def num_bytes(tensors: Sequence[Tensor]) -> float:
    """Of tensors' values, however they lie in memory."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
