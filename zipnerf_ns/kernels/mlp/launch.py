"""Launches of the networks' kernels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipnerf_ns.functional.mlp import VIEW_DIM, VIEW_FREQUENCIES
from zipnerf_ns.kernels.device import describe
from zipnerf_ns.kernels.mlp.density_kernels import density_backward_kernel, density_forward_kernel
from zipnerf_ns.kernels.mlp.directions_kernel import directions_kernel
from zipnerf_ns.kernels.mlp.radiance_kernels import radiance_backward_kernel, radiance_forward_kernel
from zipnerf_ns.kernels.mlp.tuning import DensityTuning, RadianceTuning, RowLaunch

MIN_CHANNELS = 16
"""The fewest columns that a product of tensor cores takes; a power of two is what Triton's blocks have."""
DIRECTIONS_BLOCK = 128
UNITS_PER_WORD = 32
"""Units whose signs share an integer."""
TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
WIDE = 64
"""Features a row beyond which a block of as many rows does not fit into registers."""
MIN_ROWS = 16
"""Fewest rows of a product of blocks that Triton takes; its interpreter takes fewer."""
ALIGNMENT = 16
"""Rows at a multiple of which a part of a tensor begins, for accesses of 16 bytes."""


class HiddenLayer(NamedTuple):
    """The parameters that the kernels of density read: contiguous, the weights in the type of the operands."""

    weights: Tensor
    bias: Tensor
    density: Tensor


class Shape(NamedTuple):
    """The sizes of a network of density and color."""

    channels: int
    hidden: int
    view: int
    width: int
    layers: int

    @property
    def side(self) -> int:
        """Columns of ``saved`` that hold hidden layer, view and one."""
        return self.hidden + 2 * self.view

    @property
    def middle(self) -> int:
        """Columns of ``saved`` that hold a layer and the one before it."""
        return self.view + self.width

    @property
    def saved(self) -> int:
        """Columns of ``saved``; see ``radiance_kernels``. The first middle layer's one is that beside view."""
        middle = self.middle * (self.layers - 2) - self.view if self.layers > 2 else 0
        return 2 * self.width + self.side + middle

    @property
    def signs(self) -> int:
        """Integers of a row of ``signs``."""
        return (self.layers - 1) * self.width // UNITS_PER_WORD


class Saved(NamedTuple):
    """What a forward pass keeps of every row; see ``radiance_kernels``."""

    units: Tensor
    signs: Tensor


def density_forward(
    features: Tensor, layer: HiddenLayer, b_density: Tensor, shift: float, dtype: torch.dtype, launch: RowLaunch
) -> Tensor:
    """Density of every row; products take operands of ``dtype``."""
    rows, channels = features.shape
    density = features.new_empty(rows, dtype=torch.float32)
    if rows:
        density_forward_kernel[(triton.cdiv(rows, launch.block),)](
            features, layer.weights, layer.bias, layer.density, b_density, density, rows, *features.stride(), shift,
            CHANNELS=channels, PADDED=_padded(channels), HIDDEN=len(layer.bias), DTYPE=TYPES[dtype],
            BLOCK=launch.block, num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return density


def density_backward(
    features: Tensor,
    layer: HiddenLayer,
    density: Tensor,
    v_density: Tensor,
    v_hidden: Tensor | None,
    v_features: Tensor | None,
    dtype: torch.dtype,
    tuning: DensityTuning | RadianceTuning,
) -> Tensor:
    """Fills ``v_features`` where given, and returns the parameters' gradients as :func:`density_gradients` reads them.

    ``v_hidden`` is what others ask of the hidden layer.
    """
    rows, channels = features.shape
    hidden, padded = len(layer.bias), _padded(channels)
    launch = tuning.backward if isinstance(tuning, DensityTuning) else tuning.hidden
    block = max(launch.block // 2, MIN_ROWS) if padded > WIDE else launch.block
    programs = min(describe(features.device).processors * tuning.programs, triton.cdiv(rows, block))
    partials = density.new_empty(programs, hidden * (padded + 2) + 1)
    if rows:
        # An absent tensor's pointer is never followed.
        target = density[None] if v_features is None else v_features
        density_backward_kernel[(programs,)](
            features, *layer, density, v_density, density if v_hidden is None else v_hidden, target, partials, rows,
            *features.stride(), *target.stride(), CHANNELS=channels, PADDED=padded, HIDDEN=hidden, DTYPE=TYPES[dtype],
            HAS_HIDDEN=v_hidden is not None, WRITES_FEATURES=v_features is not None,
            BLOCK=block, num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return partials.sum(dim=0)


def density_gradients(sums: Tensor, hidden: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w_hidden, b_hidden, w_density and b_density from what :func:`density_backward` returned."""
    padded = _padded(channels)
    v_weights, v_bias, v_head, v_head_bias = sums.split([hidden * padded, hidden, hidden, 1])
    return v_weights.view(hidden, padded)[:, :channels], v_bias, v_head[None], v_head_bias


def radiance_forward(
    features: Tensor,
    view: Tensor,
    weights: Tensor,
    biases: Tensor,
    shape: Shape,
    shift: float,
    padding: float,
    saves: bool,
    tuning: RadianceTuning,
) -> tuple[Tensor, Tensor, Saved | None]:
    """Density and color of every row, and what the backward pass needs of the layers if ``saves``."""
    rows, launch = len(features), tuning.forward
    density = features.new_empty(rows, dtype=torch.float32)
    rgb = features.new_empty(rows, 3, dtype=torch.float32)
    saved = None
    if saves:
        units = weights.new_empty(rows, shape.saved)
        saved = Saved(units, units.new_empty(rows, shape.signs, dtype=torch.int32))
    if rows:
        radiance_forward_kernel[(triton.cdiv(rows, launch.block),)](
            features, view, weights, biases, density, rgb, *(saved or Saved(density, density)),
            rows, rows // len(view), *features.stride(), shift, padding,
            CHANNELS=shape.channels, PADDED=_padded(shape.channels), HIDDEN=shape.hidden, VIEW=shape.view,
            WIDTH=shape.width, LAYERS=shape.layers, SAVES=saves, DTYPE=TYPES[weights.dtype], BLOCK=launch.block,
            CHUNK=min(tuning.units, shape.width), num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return density, rgb, saved


def radiance_backward(
    saved: Saved, weights: Tensor, rgb: Tensor, v_rgb: Tensor, shape: Shape, padding: float, tuning: RadianceTuning
) -> tuple[Tensor, Tensor, Tensor]:
    """From the colors' cotangents, those of the layers before their relu and of the hidden layer, and sums over rows.

    Returns:
        v_layers ``[rows, layers * width]``, v_hidden ``[rows, hidden]``, and the gradients of the colors' weights
        ``[width, 4]`` and of their biases ``[4]`` as one vector.
    """
    rows, launch = len(rgb), tuning.backward
    programs = triton.cdiv(rows, launch.block)
    v_layers = weights.new_empty(rows, shape.layers * shape.width)
    v_hidden = weights.new_empty(rows, shape.hidden)
    partials = rgb.new_empty(programs, 4 * (shape.width + 1))
    radiance_backward_kernel[(programs,)](
        *saved, weights, rgb, v_rgb, v_layers, v_hidden, partials, rows, padding,
        HIDDEN=shape.hidden, VIEW=shape.view, WIDTH=shape.width, LAYERS=shape.layers, DTYPE=TYPES[weights.dtype],
        BLOCK=launch.block, CHUNK=min(tuning.units, shape.width),
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return v_layers, v_hidden, partials.sum(dim=0)


def encode_directions(directions: Tensor, dtype: torch.dtype) -> Tensor:
    """functional.mlp.encode_directions in one launch."""
    rays = len(directions)
    encoded = directions.new_empty(rays, VIEW_DIM, dtype=dtype)
    if rays:
        directions_kernel[(triton.cdiv(rays, DIRECTIONS_BLOCK),)](
            directions, encoded, rays, directions.stride(0), *VIEW_FREQUENCIES, BLOCK=DIRECTIONS_BLOCK
        )
    return encoded


def rows_at_a_time(limit: int, samples: int) -> int:
    """At most ``limit`` rows if possible: whole rays, beginning at a multiple of ``ALIGNMENT``."""
    step = math.lcm(samples, ALIGNMENT)
    return max(limit // step, 1) * step


def _padded(channels: int) -> int:
    return max(triton.next_power_of_2(channels), MIN_CHANNELS)
