"""The anti-aliased hash encoding: owns a table, and reads it through the implementation that it is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup
from zipnerf_ns.functional.hash_grid import HashGrid, Prefilter, make_hash_grid
from zipnerf_ns.functional.table_state import HALF_SCALE, TableState
from zipnerf_ns.ops import TORCH_OPS, Ops

TABLE_GAIN = 10.0
"""Table values are multiplied by this when read, which multiplies Adam's effective step on them (Zip-NeRF)."""
FEATURE_INIT = 1e-4
"""Features start uniform in +- this, after the gain ([I], section 4)."""


@dataclass
class HashGridConfig:
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


class AntiAliasedHashEncoding(nn.Module):
    """Zip-NeRF's downweighted multisampled hash grid (section 2), or its one-lookup form.

    Its operations are ``ops``: torch's until it is given others.

    Args:
        config: the grid's shape.
        prefilter: how a sample's extent lowers fine levels, see ``functional.hash_grid.prefilter_weights``.
        bandwidths: lambda of each level in prefilter mode "ipe"; ones if not given.
    Raises:
        ValueError: for a grid that cannot be built.
    """

    def __init__(
        self,
        config: HashGridConfig,
        prefilter: Prefilter = "multisample",
        bandwidths: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.hash_table = self._make_table(config)
        self.table_state = TableState(self.grid).attach(self.hash_table)
        self.prefilter: Prefilter = prefilter
        self.ops: Ops = TORCH_OPS
        if bandwidths is not None and len(bandwidths) != len(self.grid.levels):
            raise ValueError(f"{len(bandwidths)} bandwidths were given for {len(self.grid.levels)} levels.")
        self.register_buffer("bandwidths", None if bandwidths is None else torch.tensor(bandwidths), persistent=False)

    def _make_table(self, config: HashGridConfig) -> tuple[HashGrid, nn.Parameter]:
        """The grid of a configuration, and its table with initial values."""
        grid = config.make()
        table = torch.empty(grid.num_entries, grid.features_per_level)
        return grid, nn.Parameter(table.uniform_(-1.0, 1.0) * (FEATURE_INIT / TABLE_GAIN))

    def get_out_dim(self) -> int:
        """Features and weight features of all levels."""
        return len(self.grid.levels) * (self.grid.features_per_level + 1)

    @property
    def reads_half(self) -> bool:
        """Whether the table is read from a copy in half precision, where channels are of half precision."""
        return self.ops.reads_half(self.grid.features_per_level) and self.hash_table.device.type == "cuda"

    def summary(self) -> TableState:
        """Mean squares of the table's levels, and its copy in half precision: as the optimizer left them, or anew."""
        state = self.table_state.attach(self.hash_table)
        state.wants_half = self.reads_half
        if not state.is_current(self.hash_table):
            state.refresh(self.hash_table, self.ops.summarize)
        return state

    def forward(
        self,
        cones: Cones,
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
        dtype: torch.dtype = torch.float32,
        is_frozen: bool = False,
    ) -> Float[Tensor, "intervals channels"]:
        """Channels of each interval: prefiltered features of all levels, then one weight feature a level.

        Args:
            cones: the intervals.
            num_active: levels in use, from the coarsest; the others give zeros. All if None.
            prefilter: anti-aliasing mode; the encoding's own if None.
            dtype: of the channels.
            is_frozen: no gradient reaches the table.
        """
        state = self.summary()
        lookup = Lookup(self.grid, prefilter or self.prefilter, TABLE_GAIN, self.bandwidths, num_active, dtype)
        # Half precision for half precision: whoever asks for float32 channels gets float32 values.
        half = None if state.half is None or dtype == torch.float32 else HalfTable(state.half, HALF_SCALE)
        table = self.hash_table.detach() if is_frozen else self.hash_table
        return self.ops.cone_encode(table, cones, self.weight_scales(), lookup, half)

    def weight_scales(self) -> Float[Tensor, "levels"]:
        """Factors of the weight features, which tell the networks how much to trust each level: in the scale of that
        level's features (Zip-NeRF, section 2)."""
        return torch.sqrt(FEATURE_INIT**2 + TABLE_GAIN**2 * self.summary().mean_square)

    def prefilter_weights(self, channels: Float[Tensor, "intervals channels"]) -> Float[Tensor, "intervals levels"]:
        """The prefilter's weight of every level, in [0, 1], read from the weight features among the channels."""
        levels = len(self.grid.levels)
        return 0.5 + 0.5 * channels[:, -levels:].float() / self.weight_scales()

    def per_level(self, channels: Float[Tensor, "intervals channels"]) -> Float[Tensor, "intervals levels features"]:
        """The features among the channels, by level: a view."""
        levels, features = len(self.grid.levels), self.grid.features_per_level
        return channels[:, : levels * features].unflatten(1, (levels, features))
