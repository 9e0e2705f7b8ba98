"""The anti-aliased hash encoding: owns a table, reads it through its implementation, adds the weight features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Literal, NamedTuple, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfstudio.configs.base_config import PrintableConfig
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.functional import hash_grid
from zipnerf_ns.functional.hash_grid import HashGrid, Prefilter, make_hash_grid
from zipnerf_ns.functional.table_state import TableState
from zipnerf_ns.kernels import adam as triton_adam
from zipnerf_ns.kernels import hash_encode as triton_hash_encode

TABLE_GAIN = 10.0
"""Table values are multiplied by this when read, which multiplies Adam's effective step on them (Zip-NeRF)."""
FEATURE_INIT = 1e-4
"""Features start uniform in +- this, after the gain ([I], section 4)."""

Implementation = Literal["auto", "triton", "torch"]


@dataclass
class HashGridConfig(PrintableConfig):
    """Shape of one multiresolution hash grid."""

    num_levels: int = 10
    """Levels of the grid, coarse to fine."""
    features_per_level: int = 4
    """Features stored in each table entry."""
    base_res: int = 16
    """Cells along each side of the contracted scene at the coarsest level."""
    max_res: int = 8192
    """Cells along each side of the contracted scene at the finest level."""
    log2_hashmap_size: int = 21
    """Log2 of the most table entries a level may have; coarser levels that fit are stored without hashing."""

    def make(self) -> HashGrid:
        """The grid of this configuration; ValueError names the field that makes none."""
        return make_hash_grid(
            self.num_levels, self.base_res, self.max_res, self.log2_hashmap_size, self.features_per_level
        )


class Encoded(NamedTuple):
    """What the encoding gives for each interval."""

    features: Float[Tensor, "intervals channels"]
    """Prefiltered features of all levels, then one weight feature a level."""
    per_level: Float[Tensor, "intervals levels features"]
    """The prefiltered features again, by level."""


class AntiAliasedHashEncoding(nn.Module):
    """Zip-NeRF's downweighted multisampled hash grid (section 2), or its one-lookup form.

    Args:
        config: the grid's shape.
        prefilter: how a sample's extent lowers fine levels, see ``functional.hash_grid.prefilter_weights``.
        implementation: "triton" (CUDA), "torch" (anywhere) or "auto".
        bandwidths: lambda of each level in prefilter mode "ipe"; ones if not given.
    Raises:
        ValueError: for a grid that cannot be built. An implementation that is unknown or absent is told by
            :func:`resolve_implementation`, at the first forward pass.
    """

    def __init__(
        self,
        config: HashGridConfig,
        prefilter: Prefilter = "multisample",
        implementation: Implementation = "auto",
        bandwidths: Optional[Tuple[float, ...]] = None,
    ) -> None:
        super().__init__()
        self.grid, self.hash_table = self._make_table(config)
        self.table_state = TableState(self.grid).attach(self.hash_table)
        self.prefilter: Prefilter = prefilter
        self.implementation = implementation
        if bandwidths is not None and len(bandwidths) != len(self.grid.levels):
            raise ValueError(f"{len(bandwidths)} bandwidths were given for {len(self.grid.levels)} levels.")
        self.register_buffer("bandwidths", None if bandwidths is None else torch.tensor(bandwidths), persistent=False)

    def _make_table(self, config: HashGridConfig) -> Tuple[HashGrid, nn.Parameter]:
        """The grid of a configuration, and its table with initial values."""
        grid = config.make()
        table = torch.empty(grid.num_entries, grid.features_per_level)
        return grid, nn.Parameter(table.uniform_(-1.0, 1.0) * (FEATURE_INIT / TABLE_GAIN))

    def get_out_dim(self) -> int:
        """Features and weight features of all levels."""
        return len(self.grid.levels) * (self.grid.features_per_level + 1)

    def mean_square(self) -> Float[Tensor, "levels"]:
        """Mean squared table value of each level, without gradient: as the optimiser left it, or computed anew."""
        state = self.table_state.attach(self.hash_table)
        if not state.is_current(self.hash_table):
            encode = resolve_implementation(self.implementation, self.hash_table.device)
            state.refresh(self.hash_table, None if encode is hash_grid.hash_encode else triton_adam.summarise)
        return state.mean_square

    def forward(
        self,
        positions: Float[Tensor, "intervals samples 3"],
        stds: Float[Tensor, "intervals samples"],
        num_active: Optional[int] = None,
    ) -> Encoded:
        """Features of each interval from the Gaussians that represent it.

        Args:
            positions: unit cube.
            stds: units of the cube's side.
            num_active: levels in use, from the coarsest (progressive training); all if not given.
        """
        encode = resolve_implementation(self.implementation, self.hash_table.device)
        per_level, weights = encode(
            self.hash_table, positions, stds, self.grid, self.prefilter, self.bandwidths, num_active
        )
        per_level = per_level * TABLE_GAIN
        # Tells the MLP how much to trust each level, in the scale of that level's features (Zip-NeRF, section 2).
        scale = torch.sqrt(FEATURE_INIT**2 + TABLE_GAIN**2 * self.mean_square())
        weight_features = (2.0 * weights - 1.0) * scale
        return Encoded(torch.cat([per_level.flatten(1), weight_features], dim=-1), per_level)


@lru_cache(maxsize=None)
def _announce_choice(choice: str, device_type: str) -> None:
    CONSOLE.log(f"Hash encoding: implementation 'auto' chose '{choice}' on {device_type}.")


def resolve_implementation(implementation: str, device: torch.device) -> Callable:
    """The function behind ``hash_grid.hash_encode``'s signature that an implementation's name stands for.

    Raises:
        ValueError: for a name that is not an implementation.
        RuntimeError: if the implementation cannot run on ``device``; the message says what it needs.
    """
    if implementation == "auto":
        implementation = "triton" if device.type == "cuda" and triton_hash_encode.is_available(device) else "torch"
        _announce_choice(implementation, device.type)
    if implementation == "torch":
        return hash_grid.hash_encode
    if implementation == "triton":
        reason = triton_hash_encode.why_unavailable(device)
        if reason is not None:
            raise RuntimeError(f"implementation='triton' cannot run: {reason}")
        return triton_hash_encode.hash_encode
    raise ValueError(f"implementation={implementation!r} is unknown: choose 'auto', 'torch' or 'triton'.")
