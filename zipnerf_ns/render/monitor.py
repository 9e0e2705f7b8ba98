"""What is measured of the hash tables during training: how crowded they are, and how large their features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.encoding import TABLE_GAIN, AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.field import ZipNerfDensityField
from zipnerf_ns.functional.cones import Cones, cones_in_cube
from zipnerf_ns.functional.hash_grid import HASH_PRIMES, HashGrid
from zipnerf_ns.rays import Rays

CROWDED = 0.5
"""Below this share most touched cells share an entry, and features are averages of unrelated places."""


def collision_shares(positions: Tensor, grid: HashGrid) -> Tensor:
    """Per level, distinct entries over distinct cells among the cells that contain some positions.

    Args:
        positions: ``[points, 3]``, unit cube.
        grid: the grid.
    Returns:
        ``[levels]`` in (0, 1]; 1 is free of collisions.
    """
    shares = []
    for level in grid.levels:
        cells = (positions.clamp(0.0, 1.0) * level.resolution).long().clamp(max=level.resolution - 1)
        unique = torch.unique((cells[:, 2] * level.resolution + cells[:, 1]) * level.resolution + cells[:, 0])
        if level.is_dense:
            shares.append(1.0)
            continue
        x = unique % level.resolution
        y = torch.div(unique, level.resolution, rounding_mode="floor") % level.resolution
        z = torch.div(unique, level.resolution**2, rounding_mode="floor")
        entries = (x * HASH_PRIMES[0] ^ y * HASH_PRIMES[1] ^ z * HASH_PRIMES[2]) & (level.size - 1)
        shares.append(torch.unique(entries).numel() / max(unique.numel(), 1))
    return torch.tensor(shares)


@torch.no_grad()
def feature_sizes(tables: Mapping[str, AntiAliasedHashEncoding]) -> dict[str, float]:
    """Root mean square of each hash level's features as they are read, before any prefilter weight.

    The optimizer has left the sums that this takes; reading them waits for the device.

    Args:
        tables: by the names of their grids.
    Returns:
        By ``GRID/level_INDEX``.
    """
    sizes = {}
    for name, table in tables.items():
        levels = (TABLE_GAIN * table.summary().mean_square.sqrt()).tolist()
        sizes.update({f"{name}/level_{index}": size for index, size in enumerate(levels)})
    return sizes


class CollisionMonitor:
    """Measures the rendered round's collisions every so many steps, and warns once.

    Args:
        interval: steps between measurements; 0 never measures.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.step = 0
        self.shares: dict[str, Tensor] = {}
        self._warned = False

    def is_due(self) -> bool:
        """Whether the step is one to measure at; measuring waits for the device."""
        return self.interval > 0 and self.step > 0 and self.step % self.interval == 0

    @torch.no_grad()
    def observe(self, field: ZipNerfDensityField, rays: Rays, tdist: Tensor, config: HashGridConfig) -> None:
        """Looks at a training batch if the step is one to measure at (never the very first: nothing is known yet)."""
        if not self.is_due():
            return
        # The cone's own mean stands for the interval: no random numbers are drawn, so training is not disturbed.
        positions, _ = cones_in_cube(Cones(rays.origins, rays.directions, rays.radius, tdist, None, field.aabb), True)
        shares = collision_shares(positions.reshape(-1, 3), field.encoding.grid)
        self.shares = {f"collision_free/level_{index}": share for index, share in enumerate(shares)}
        worst = float(shares.min())
        if worst < CROWDED and not self._warned:
            self._warned = True
            CONSOLE.log(
                f"Hash level {int(shares.argmin())} has {worst:.2f} table entries per touched cell: fine detail is "
                f"being averaged. If memory allows, raise --pipeline.model.grid.log2-hashmap-size "
                f"(now {config.log2_hashmap_size})."
            )
