"""The one-lookup hash encoding on tinycudann's HashGrid, for those who have that library and want its kernels.

The library owns the table and the trilinear look-up; prefilter weights and weight features are ours, in torch. That
works where an interval has a single look-up (prefilter modes "ipe" and "none"): the weight is then a factor on the
level's features, whoever has read them.

The library's grid differs from ours. Its level l spans the unit cube with ``base * scale^l - 1`` cells, a number that
need not be whole, between as many corners plus one, rounded up; and in a dense level's outermost half cell it reads on
into the next row or level. The table is one row of values, level after level, each level rounded up to eight entries.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns.encoding import FEATURE_INIT, TABLE_GAIN, AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.functional.cones import Cones, Lookup, channels, cones_in_cube
from zipnerf_ns.functional.hash_grid import HashGrid, Level, Prefilter, count_active, prefilter_weights

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
        return importlib.import_module("tinycudann")
    except (ImportError, OSError) as error:
        # It raises OSError on a machine without a CUDA device, and where it was built for another one.
        raise RuntimeError(f"implementation='tcnn' needs tinycudann ({error}). On a CUDA machine: {INSTALL}") from error


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


def growth(config: HashGridConfig) -> float:
    """Factor between the resolutions of neighboring levels, as the library is told."""
    if config.num_levels == 1:
        return 1.0
    return (config.max_res / config.base_res) ** (1.0 / (config.num_levels - 1)) * SHRINK


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


class TcnnHashEncoding(AntiAliasedHashEncoding):
    """An :class:`AntiAliasedHashEncoding` whose table and look-up are tinycudann's, in float32.

    Gain, initial values, weight features and hash decay are the base class's; ``hash_table`` is the library's
    parameter, one row of values. ``grid`` says where its levels lie (their decay and statistics are therefore by level
    here, too, the up to seven entries included with which a dense level is filled up). A checkpoint's table is of one
    implementation: its shape tells.

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
        reason = why_unsupported(prefilter, config.features_per_level)
        if reason is not None:
            raise ValueError(reason)
        super().__init__(config, prefilter, bandwidths=bandwidths)
        _, cells = library_levels(config.num_levels, config.base_res, growth(config), config.log2_hashmap_size)
        self.register_buffer("cells", torch.tensor(cells), persistent=False)

    def _make_table(self, config: HashGridConfig) -> tuple[HashGrid, nn.Parameter]:
        config.make()  # Names the field of a configuration that makes no grid.
        library = import_library().Encoding(
            3,
            {
                "otype": "HashGrid",
                "n_levels": config.num_levels,
                "n_features_per_level": config.features_per_level,
                "log2_hashmap_size": config.log2_hashmap_size,
                "base_resolution": config.base_res,
                "per_level_scale": growth(config),
            },
            # In half precision, which is the library's choice, small gradients vanish, and Adam needs the small ones.
            dtype=torch.float32,
        )
        levels, _ = library_levels(config.num_levels, config.base_res, growth(config), config.log2_hashmap_size)
        grid = HashGrid(levels, config.features_per_level)
        expected = grid.num_entries * grid.features_per_level
        if library.params.numel() != expected:
            raise RuntimeError(
                f"tinycudann's table has {library.params.numel()} values where its known layout gives {expected}: "
                "this version of the library lays it out otherwise. Use implementation 'triton'."
            )
        with torch.no_grad():
            library.params.uniform_(-1.0, 1.0).mul_(FEATURE_INIT / TABLE_GAIN)
        # In a tuple, so that the parameter is this module's alone, under the name that it has in every implementation.
        self._library: tuple[Any] = (library,)
        return grid, library.params

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
        reason = why_unsupported(prefilter, self.grid.features_per_level)
        if reason is not None:
            raise ValueError(reason)
        (library,) = self._library
        if library.params is not self.hash_table:
            # load_state_dict(assign=True) has given this module another parameter.
            library.params = self.hash_table
        levels, features = len(self.grid.levels), self.grid.features_per_level
        weights = prefilter_weights(stds, self.cells, prefilter, self.bandwidths)[:, 0]
        if len(positions) == 0:
            return positions.new_zeros(0, levels, features), weights
        # Below zero the library's unsigned cell numbers wrap around.
        values = library(positions[:, 0].clamp(0.0, 1.0)).float().view(-1, levels, features)
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
        return channels(per_level, weights, self.weight_scales(), lookup)
