"""A stand-in for tinycudann, which needs a CUDA device and a compiler: its interface, computed by the torch twin.

What is known of the library and repeated here: ``Encoding(n_input_dims, encoding_config, seed, dtype)`` has one flat
parameter ``params``, ``n_output_dims``, and maps ``[batch, 3]`` to ``[batch, n_output_dims]``, level by level; sizes
and positions are as ``kernels.tcnn`` describes them.
"""

from __future__ import annotations

import math
import types

import torch
from torch import Tensor, nn

from zipnerf_ns.functional.hash_grid import Level, level_corners


def make_library(extra_values: int = 0) -> types.ModuleType:
    """A module ``tinycudann`` whose tables have so many values more than they should."""

    class Encoding(nn.Module):
        def __init__(self, n_input_dims: int, encoding_config: dict, seed: int = 1337, dtype=torch.float16) -> None:
            super().__init__()
            assert n_input_dims == 3 and encoding_config["otype"] == "HashGrid" and dtype == torch.float32
            self.features = encoding_config["n_features_per_level"]
            self.n_output_dims = encoding_config["n_levels"] * self.features
            self.levels, entries = [], 0
            for index in range(encoding_config["n_levels"]):
                scale = side(index, encoding_config["per_level_scale"], encoding_config["base_resolution"])
                resolution = int(scale.ceil()) + 1
                whole = math.ceil(resolution**3 / 8) * 8
                size = min(whole, 1 << encoding_config["log2_hashmap_size"])
                self.levels.append((float(scale), Level(resolution, entries, size, resolution**3 <= size)))
                entries += size
            generator = torch.Generator().manual_seed(seed)
            values = torch.rand(entries * self.features + extra_values, generator=generator)
            self.params = nn.Parameter(2e-4 * values - 1e-4)

        def forward(self, x: Tensor) -> Tensor:
            assert x.ndim == 2 and x.shape[1] == 3 and len(x) > 0
            assert 0.0 <= x.min() and x.max() <= 1.0, "the library's unsigned integers would wrap around"
            rows = self.params.view(-1, self.features)
            parts = []
            for scale, level in self.levels:
                # The twin looks at x' n - 1/2, the library at x scale + 1/2.
                corners, weights = level_corners((x.float() * scale + 1.0) / level.resolution, level)
                parts.append((rows[level.offset + corners.long()] * weights[..., None]).sum(dim=1))
            result = torch.cat(parts, dim=1)
            if result.requires_grad:
                result.register_hook(_check_cotangent)
            # Another tensor, whose hooks come before that one.
            return result.view_as(result)

    library = types.ModuleType("tinycudann")
    library.Encoding = Encoding
    return library


def _check_cotangent(cotangent: Tensor) -> None:
    assert cotangent.is_contiguous(), "the library's check failed: dL_doutput.is_contiguous()"


def side(level: int, per_level_scale: float, base_resolution: int) -> Tensor:
    """Cells along the unit cube, in float32 throughout."""
    log_scale = torch.log2(torch.tensor(per_level_scale, dtype=torch.float32))
    return torch.exp2(level * log_scale) * base_resolution - 1.0
