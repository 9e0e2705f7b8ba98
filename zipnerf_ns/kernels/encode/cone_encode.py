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
from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup, channels, cones_in_cube, looks_up_close_ones_once
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
    read); the result is a view of channel-major memory. Where cones need a gradient, torch makes the samples' positions
    beside, for the way back. Where weight scales do, positions are looked up by ``kernels.encode.hash_encode``, all of
    them. Bandwidths receive no gradient.

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
    one_lookup = lookup.prefilter != "multisample"
    if weight_scales.requires_grad:
        positions, stds = cones_in_cube(cones, one_lookup)
        per_level, weights = hash_encode(
            table, positions, stds, lookup.grid, lookup.prefilter, lookup.bandwidths, lookup.num_active
        )
        return channels(per_level, weights, weight_scales, lookup)
    _check(table, lookup.grid, lookup.prefilter)
    half = half if tuning.half_table else None
    lookup = lookup if looks_up_close_ones_once(cones, lookup) else lookup._replace(close=0.0)
    still = Cones(*(None if tensor is None else tensor.detach() for tensor in cones))
    encoded = _ConeEncode.apply(table, still, weight_scales, lookup, half, tuning)
    if not any(tensor is not None and tensor.requires_grad for tensor in cones):
        return encoded
    positions, stds = (samples.float() for samples in cones_in_cube(cones, one_lookup))
    return _FollowSamples.apply(encoded, positions, stds, table.detach(), weight_scales, lookup, half, tuning)


class _ConeEncode(torch.autograd.Function):
    """Joins the kernels to autograd; only the table receives a gradient."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, cones: Cones, weight_scales: Tensor, lookup: Lookup, half: HalfTable | None,
        tuning: Tuning,
    ) -> Tensor:  # fmt: skip
        table, weight_scales = table.contiguous(), weight_scales.float().contiguous()
        bandwidths, options = _bandwidths(lookup, table.device), _options(lookup, tuning)
        samples = NUM_MULTISAMPLES if lookup.prefilter == "multisample" else 1
        with launching("cone_encode", table):
            source = launch.cones_source(*cones, samples)
            values, gain = _read_values(table, lookup, half)
            out = launch.cone_forward(values, source, bandwidths, weight_scales, gain, lookup.dtype, options)
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


class _FollowSamples(torch.autograd.Function):
    """Channels as they are; on the way back, what they say of where their samples lie and how far those extend."""

    @staticmethod
    def forward(
        ctx: Any, encoded: Tensor, positions: Tensor, stds: Tensor, table: Tensor, weight_scales: Tensor,
        lookup: Lookup, half: HalfTable | None, tuning: Tuning,
    ) -> Tensor:  # fmt: skip
        values, gain = _read_values(table, lookup, half)
        ctx.save_for_backward(positions.contiguous(), stds.contiguous(), values, weight_scales)
        ctx.rest = gain, lookup, tuning
        return encoded.view_as(encoded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_channels: Tensor) -> tuple[Tensor | None, ...]:
        positions, stds, values, weight_scales = ctx.saved_tensors
        gain, lookup, tuning = ctx.rest
        levels, features = len(lookup.grid.levels), lookup.grid.features_per_level
        v_features = (v_channels[:, : levels * features].float() * gain).unflatten(1, (levels, features))
        v_weights = v_channels[:, levels * features :].float() * (2.0 * weight_scales)
        samples = launch.Samples(positions, stds, _bandwidths(lookup, stds.device))
        with launching("cone_encode", values):
            v_samples = launch.sample_gradients(values, samples, v_features, v_weights, _options(lookup, tuning))
        return v_channels, *v_samples, None, None, None, None, None


def _options(lookup: Lookup, tuning: Tuning) -> launch.Options:
    active = hash_grid.count_active(lookup.grid, lookup.num_active)
    return launch.Options(lookup.grid, lookup.prefilter, active, tuning, lookup.close)


def _bandwidths(lookup: Lookup, device: torch.device) -> Tensor:
    if lookup.bandwidths is None:
        return _unit_bandwidths(len(lookup.grid.levels), device)
    return lookup.bandwidths.float().contiguous()


def _read_values(table: Tensor, lookup: Lookup, half: HalfTable | None) -> tuple[Tensor, float]:
    """The table that is read, and the factor that makes features of its values."""
    if half is None:
        return table.contiguous(), lookup.gain
    return half.values.contiguous(), lookup.gain / half.scale
