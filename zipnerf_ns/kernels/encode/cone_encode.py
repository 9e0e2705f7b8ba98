"""The prefiltered hash encoding of cones in Triton, behind the signature of ``functional.cones.cone_encode``.

From a ray's origin, direction and fenceposts to all channels of the encoding in one launch a range of levels: neither
sample positions nor per-level intermediates exist in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zipnerf_ns.functional import hash_grid
from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup, channels, cones_in_cube
from zipnerf_ns.functional.frustum import NUM_MULTISAMPLES
from zipnerf_ns.kernels.encode import launch
from zipnerf_ns.kernels.encode.hash_encode import _check, _unit_bandwidths, hash_encode
from zipnerf_ns.kernels.encode.tuning import Tuning, default_tuning
from zipnerf_ns.kernels.launching import launching


def cone_encode(
    table: Float[Tensor, "entries features"],
    cones: Cones,
    weight_scales: Float[Tensor, "levels"],
    lookup: Lookup,
    half: HalfTable | None = None,
) -> Float[Tensor, "intervals channels"]:
    """Channels of each interval: prefiltered features of all levels, then one weight feature a level.

    Computes what ``functional.cones.cone_encode`` defines, to float32 rounding (to half precision where ``half`` is
    read); the result is a view of channel-major memory. Where cones or weight scales need a gradient, and under
    ``torch.use_deterministic_algorithms``, positions are made by torch and looked up by ``kernels.encode.hash_encode``.
    Bandwidths receive no gradient.

    Raises:
        ValueError: if the table's shape is not the grid's, or is one that the kernels cannot read.
        RuntimeError: if the kernels cannot run on the table's device; the message says what to install.
    """
    tuning = default_tuning(lookup.grid.features_per_level)
    return tuned_cone_encode(table, cones, weight_scales, lookup, half, tuning)


def tuned_cone_encode(
    table: Float[Tensor, "entries features"],
    cones: Cones,
    weight_scales: Float[Tensor, "levels"],
    lookup: Lookup,
    half: HalfTable | None,
    tuning: Tuning,
) -> Float[Tensor, "intervals channels"]:
    """:func:`cone_encode` with its launches chosen by the caller, for benchmarks and tests."""
    needs_samples = torch.are_deterministic_algorithms_enabled() or any(
        tensor is not None and tensor.requires_grad for tensor in (*cones, weight_scales)
    )
    if needs_samples:
        positions, stds = cones_in_cube(cones, lookup.prefilter != "multisample")
        per_level, weights = hash_encode(
            table, positions, stds, lookup.grid, lookup.prefilter, lookup.bandwidths, lookup.num_active
        )
        return channels(per_level, weights, weight_scales, lookup)
    _check(table, lookup.grid, lookup.prefilter)
    return _ConeEncode.apply(table, cones, weight_scales, lookup, half if tuning.half_table else None, tuning)


class _ConeEncode(torch.autograd.Function):
    """Joins the kernels to autograd; only the table receives a gradient."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, cones: Cones, weight_scales: Tensor, lookup: Lookup, half: HalfTable | None,
        tuning: Tuning,
    ) -> Tensor:  # fmt: skip
        grid, table = lookup.grid, table.contiguous()
        bandwidths = lookup.bandwidths
        if bandwidths is None:
            bandwidths = _unit_bandwidths(len(grid.levels), table.device)
        bandwidths, weight_scales = bandwidths.float().contiguous(), weight_scales.float().contiguous()
        active = hash_grid.count_active(grid, lookup.num_active)
        samples = NUM_MULTISAMPLES if lookup.prefilter == "multisample" else 1
        with launching("cone_encode", table):
            source = launch.cones_source(*cones, samples)
            options = launch.Options(grid, lookup.prefilter, active, tuning)
            values, gain = (table, lookup.gain) if half is None else (half.values, lookup.gain / half.scale)
            out = launch.cone_forward(
                values.contiguous(), source, bandwidths, weight_scales, gain, lookup.dtype, options
            )
        ctx.save_for_backward(table)
        ctx.rest = source, bandwidths, options, lookup.gain
        return out.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_channels: Tensor) -> tuple[Tensor | None, ...]:
        (table,) = ctx.saved_tensors
        source, bandwidths, options, gain = ctx.rest
        with launching("cone_encode", table):
            v_table = launch.cone_table_gradient(table, source, bandwidths, gain, v_channels.t(), options)
        return v_table, None, None, None, None, None
