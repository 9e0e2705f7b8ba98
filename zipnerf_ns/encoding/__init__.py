"""The anti-aliased hash encoding: a hash table that is read at cones, by the implementation that it is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns.functional.adam import HALF_SCALE, Summary
from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup, channels, cones_in_cube
from zipnerf_ns.functional.hash_grid import (
    HashGrid,
    Prefilter,
    count_active,
    make_hash_grid,
    mean_square_per_level,
    prefilter_weights,
)
from zipnerf_ns.hash_table import HashTable
from zipnerf_ns.ops import TORCH_OPS, Ops, tcnn

TABLE_GAIN = 10.0
"""Table values are multiplied by this when read, which multiplies Adam's effective step on them (Zip-NeRF)."""
CLOSE = 0.25
"""Cells within which an interval's multisamples are looked up as one: most are, up to 256 cells a side, in a scene that
is known. Pictures differ from those of six look-ups by 62 dB."""
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
        return make_hash_grid(**asdict(self))


class AntiAliasedHashEncoding(HashTable):
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
        super().__init__(*self._make_table(config))
        self.prefilter: Prefilter = prefilter
        self.ops: Ops = TORCH_OPS
        if bandwidths is not None and len(bandwidths) != len(self.grid.levels):
            raise ValueError(f"{len(bandwidths)} bandwidths were given for {len(self.grid.levels)} levels.")
        self.register_buffer("bandwidths", None if bandwidths is None else torch.tensor(bandwidths), persistent=False)

    def _make_table(self, config: HashGridConfig) -> tuple[HashGrid, nn.Parameter]:
        """The grid of a configuration, and its table with initial values; before the module is set up."""
        grid = config.make()
        table = torch.empty(grid.num_entries, grid.features_per_level)
        return grid, nn.Parameter(table.uniform_(-1.0, 1.0).mul_(FEATURE_INIT / TABLE_GAIN))

    def get_out_dim(self) -> int:
        """Features and weight features of all levels."""
        return len(self.grid.levels) * (self.grid.features_per_level + 1)

    def tables(self) -> list[HashTable]:
        """All tables that are read."""
        return [self]

    @property
    def reads_half(self) -> bool:
        """Whether the table is read from a copy in half precision, where channels are of half precision."""
        return self.ops.reads_half(self.grid.features_per_level) and self.hash_table.device.type == "cuda"

    def summary(self) -> Summary:
        """Mean squares of the table's levels, and its copy in half precision: as the optimizer left them, or anew."""
        if not self.is_current():
            self.refresh(self.ops.summarize)
        return self.kept

    def mean_squares_to_decay(self) -> Float[Tensor, "levels"]:
        """Mean square of each level for the decay as a loss: with a gradient if no optimizer applies the decay."""
        if self.is_decayed or not any(self.decay):
            return self.summary().mean_square
        return mean_square_per_level(self.hash_table.view(-1, self.grid.features_per_level), self.grid)

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
        kept = self.summary()
        lookup = Lookup(
            self.grid, prefilter or self.prefilter, TABLE_GAIN, self.bandwidths, num_active, dtype, CLOSE
        )
        # Half precision for half precision: whoever asks for float32 channels gets float32 values.
        half = None if kept.half is None or dtype == torch.float32 else HalfTable(kept.half, HALF_SCALE)
        table = self.hash_table.detach() if is_frozen else self.hash_table
        return self.ops.cone_encode(table, cones, self.weight_scales(), lookup, half)

    def with_mask(
        self, cones: Cones, *args: Any
    ) -> tuple[Float[Tensor, "intervals channels"], Float[Tensor, "intervals 1"] | None]:
        """What :meth:`forward` gives, and the mask of what moves, which only encodings over time have."""
        return self(cones, *args), None

    def weight_scales(self) -> Float[Tensor, "levels"]:
        """Factors of the weight features, which tell the networks how much to trust each level: in the scale of that
        level's features (Zip-NeRF, section 2)."""
        return torch.sqrt(FEATURE_INIT**2 + TABLE_GAIN**2 * self.summary().mean_square)

    def prefilter_weights(self, channels: Float[Tensor, "intervals channels"]) -> Float[Tensor, "intervals levels"]:
        """The prefilter's weight of every level, in [0, 1], read from the weight features among the channels."""
        levels, features = len(self.grid.levels), self.grid.features_per_level
        return 0.5 + 0.5 * channels[:, levels * features :][:, :levels].float() / self.weight_scales()

    def per_level(self, channels: Float[Tensor, "intervals channels"]) -> Float[Tensor, "intervals levels features"]:
        """The features among the channels, by level: a view."""
        levels, features = len(self.grid.levels), self.grid.features_per_level
        return channels[:, : levels * features].unflatten(1, (levels, features))


class TcnnHashEncoding(AntiAliasedHashEncoding):
    """An :class:`AntiAliasedHashEncoding` whose table and look-up are tinycudann's, in float32.

    That works where an interval has a single look-up: the prefilter weight is then a factor on the level's features,
    whoever has read them. Gain, initial values, weight features and hash decay are the base class's; ``hash_table`` is
    the library's parameter, one row of values. ``grid`` says where its levels lie (their decay and statistics are
    therefore by level here, too, the up to seven entries included with which a dense level is filled up). A
    checkpoint's table is of one implementation: its shape tells.

    Args:
        config: the grid's shape; ``max_res`` is reached, levels between may round otherwise than ours.
        prefilter: "ipe" or "none".
        bandwidths: lambda of each level in prefilter mode "ipe"; ones if not given.
    Raises:
        ValueError: for a configuration that cannot be built on the library.
        RuntimeError: if the library is absent (the message says how to install it), or lays its table out otherwise.
    """

    def __init__(
        self,
        config: HashGridConfig,
        prefilter: Prefilter = "ipe",
        bandwidths: tuple[float, ...] | None = None,
    ) -> None:
        reason = tcnn().why_unsupported(prefilter, config.features_per_level)
        if reason is not None:
            raise ValueError(reason)
        super().__init__(config, prefilter, bandwidths=bandwidths)
        self.register_buffer("cells", torch.tensor(self._library.cells), persistent=False)

    def _make_table(self, config: HashGridConfig) -> tuple[HashGrid, nn.Parameter]:
        config.make()  # Names the field of a configuration that makes no grid.
        # In a tuple, so that the parameter is this module's alone, under the name that it has in every implementation.
        self._library = tcnn().make_encoding(**vars(config))
        table = self._library.encoding.params
        with torch.no_grad():
            table.uniform_(-1.0, 1.0).mul_(FEATURE_INIT / TABLE_GAIN)
        return self._library.grid, table

    def look_up(
        self,
        positions: Float[Tensor, "intervals 1 3"],
        stds: Float[Tensor, "intervals 1"],
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
    ) -> tuple[Float[Tensor, "intervals levels features"], Float[Tensor, "intervals levels"]]:
        """What ``functional.hash_grid.hash_encode`` gives of a table: prefiltered features, without the gain, and the
        prefilter weight of every level.

        Args:
            positions: unit cube; outside of it the nearest face's features continue.
            stds: units of the cube's side; the root of the covariance's trace.
            num_active, prefilter: as for :meth:`forward`.
        Raises:
            ValueError: for a prefilter of several look-ups.
        """
        prefilter = prefilter or self.prefilter
        reason = tcnn().why_unsupported(prefilter, self.grid.features_per_level)
        if reason is not None:
            raise ValueError(reason)
        library = self._library.encoding
        if library.params is not self.hash_table:
            # load_state_dict(assign=True) has given this module another parameter.
            library.params = self.hash_table
        levels, features = len(self.grid.levels), self.grid.features_per_level
        weights = prefilter_weights(stds, self.cells, prefilter, self.bandwidths)[:, 0]
        if len(positions) == 0:
            return positions.new_zeros(0, levels, features), weights
        # Below zero the library's unsigned cell numbers wrap around.
        values = library(positions[:, 0].clamp(0.0, 1.0))
        if values.requires_grad:
            # Kernels hand cotangents over channel by channel, and the library refuses what is not row by row.
            values.register_hook(torch.Tensor.contiguous)
        values = values.float().view(-1, levels, features)
        active = torch.arange(levels, device=stds.device) < count_active(self.grid, num_active)
        return values * (weights * active)[..., None], weights

    @property
    def reads_half(self) -> bool:
        """Never: the library reads its own table."""
        return False

    def forward(
        self,
        cones: Cones,
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
        dtype: torch.dtype = torch.float32,
        is_frozen: bool = False,
    ) -> Float[Tensor, "intervals channels"]:
        """Channels of each interval from the Gaussian that represents it; see the base class for the arguments.

        The library computes its table's gradient also where it is frozen, and it goes nowhere.
        """
        positions, stds = cones_in_cube(cones, one_lookup=True)
        per_level, weights = self.look_up(positions, stds, num_active, prefilter)
        lookup = Lookup(self.grid, self.prefilter, TABLE_GAIN, self.bandwidths, num_active, dtype)
        return channels(per_level, weights, self.weight_scales(), lookup, cones.told)
