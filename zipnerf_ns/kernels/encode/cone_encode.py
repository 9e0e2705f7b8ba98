"""The prefiltered hash encoding of cones in Triton, behind the signature of ``functional.cones.cone_encode``.

From a ray's origin, direction and fenceposts to all channels of the encoding in one launch a range of levels: neither
sample positions nor per-level intermediates exist in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zipnerf_ns.functional import hash_grid
from zipnerf_ns.functional.cones import (
    Cones,
    HalfTable,
    Lookup,
    by_interval,
    channels,
    cones_in_cube,
    interval_times,
    looks_up_close_ones_once,
)
from zipnerf_ns.functional.frustum import NUM_MULTISAMPLES
from zipnerf_ns.kernels.encode import launch
from zipnerf_ns.kernels.encode.constants import level_constants
from zipnerf_ns.kernels.encode.hash_encode import _check, _unit_bandwidths, hash_encode
from zipnerf_ns.kernels.encode.shift_kernel import shift_kernel
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
    read); the result is a view of channel-major memory. Where cones other than their shifts need a gradient, torch
    makes the samples' positions beside, for the way back. Where weight scales do, positions are looked up by
    ``kernels.encode.hash_encode``, all of them. Bandwidths receive no gradient.

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
            table, positions, stds, lookup.grid, lookup.prefilter, lookup.bandwidths, lookup.num_active,
            interval_times(cones, lookup.grid), cones.shutter,
        )  # fmt: skip
        return channels(per_level, weights, weight_scales, lookup, cones.told)
    _check(table, lookup.grid, lookup.prefilter)
    hash_grid.check_times(cones.times, lookup.grid)
    half = half if tuning.half_table else None
    lookup = lookup if looks_up_close_ones_once(cones, lookup) else lookup._replace(close=0.0)
    still = cones.detach()
    follows = [value for value in cones._replace(shifts=None) if isinstance(value, Tensor) and value.requires_grad]
    has_shifts = cones.shifts is not None and cones.shifts.requires_grad
    if not follows and not (has_shifts and lookup.grid.is_timed):
        return _ConeEncode.apply(table, cones.shifts, still, weight_scales, lookup, half, tuning)
    encoded = _ConeEncode.apply(table, None, still, weight_scales, lookup, half, tuning)
    positions, stds = (samples.float() for samples in cones_in_cube(cones, one_lookup))
    moments = interval_times(still, lookup.grid), cones.shutter
    factors = 2.0 * weight_scales
    if cones.told is not None:
        factors = factors * by_interval(cones.told, len(encoded))
    return _FollowSamples.apply(encoded, positions, stds, moments, table.detach(), factors, lookup, half, tuning)


def _shift_gradient(
    table: Tensor, source: launch.Source, bandwidths: Tensor, gain: float, v_channels: Tensor, options: launch.Options
) -> Float[Tensor, "intervals 3"]:
    """What the channels' cotangent, ``[channels, intervals]``, says of the cones' shifts."""
    grid, prefilter, num_active, tuning, close = options
    features, intervals, how = grid.features_per_level, source.intervals, tuning.forward.fine
    by_level = torch.empty(num_active, 3, intervals, device=table.device)
    between, along = v_channels.stride(0), v_channels.stride(1)
    if by_level.numel():
        shift_kernel[(triton.cdiv(intervals, how.block), num_active)](
            table, *source.tensors, source.shifts, level_constants(grid, table.device), bandwidths, v_channels,
            by_level, intervals, source.per_ray, along, between * features, between, gain, close,
            SAMPLES=source.samples, ROW=features, PREFILTER=prefilter, BOXED=source.boxed, TURNED=source.turned,
            CLOSE=close > 0.0,
            XOR=launch.is_xor(grid, 0, num_active), BRANCH=how.branch, BLOCK=how.block, num_warps=how.num_warps,
        )  # fmt: skip
    return by_level.sum(dim=0).t()


class _ConeEncode(torch.autograd.Function):
    """Joins the kernels to autograd; only the table and shifts, which are the cones' own, receive gradients."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, shifts: Tensor | None, cones: Cones, weight_scales: Tensor, lookup: Lookup,
        half: HalfTable | None, tuning: Tuning,
    ) -> Tensor:  # fmt: skip
        table, weight_scales = table.contiguous(), weight_scales.float().contiguous()
        bandwidths, options = _bandwidths(lookup, table.device), _options(lookup, tuning)
        samples = NUM_MULTISAMPLES if lookup.prefilter == "multisample" else 1
        with launching("cone_encode", table):
            source = launch.cones_source(cones, samples)
            values, gain = _read_values(table, lookup, half)
            out = launch.cone_forward(values, source, bandwidths, weight_scales, gain, lookup.dtype, options)
        if cones.told is not None:
            levels, (rays, edges) = len(weight_scales), cones.tdist.shape
            out[-levels:].view(levels, rays, edges - 1).mul_(cones.told)
        ctx.save_for_backward(table, values if ctx.needs_input_grad[1] else None)
        ctx.rest = source, bandwidths, options, lookup.gain, gain
        return out.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_channels: Tensor) -> tuple[Tensor | None, ...]:
        table, values = ctx.saved_tensors
        source, bandwidths, options, gain, read_gain = ctx.rest
        v_table = v_shifts = None
        with launching("cone_encode", table):
            if ctx.needs_input_grad[0]:
                v_table = launch.cone_table_gradient(table, source, bandwidths, gain, v_channels.t(), options)
            if ctx.needs_input_grad[1]:
                v_shifts = _shift_gradient(values, source, bandwidths, read_gain, v_channels.t(), options)
        return v_table, v_shifts, None, None, None, None, None


class _FollowSamples(torch.autograd.Function):
    """Channels as they are; on the way back, what they say of where their samples lie and how far those extend."""

    @staticmethod
    def forward(
        ctx: Any, encoded: Tensor, positions: Tensor, stds: Tensor, moments: tuple[Tensor | None, float],
        table: Tensor, factors: Tensor, lookup: Lookup, half: HalfTable | None, tuning: Tuning,
    ) -> Tensor:  # fmt: skip
        values, gain = _read_values(table, lookup, half)
        ctx.save_for_backward(positions.contiguous(), stds.contiguous(), values, factors)
        ctx.rest = gain, moments, lookup, tuning
        return encoded.view_as(encoded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_channels: Tensor) -> tuple[Tensor | None, ...]:
        positions, stds, values, factors = ctx.saved_tensors
        gain, moments, lookup, tuning = ctx.rest
        levels, features = len(lookup.grid.levels), lookup.grid.features_per_level
        v_features = (v_channels[:, : levels * features].float() * gain).unflatten(1, (levels, features))
        v_weights = v_channels[:, levels * features :].float() * factors
        samples = launch.Samples(positions, stds, _bandwidths(lookup, stds.device), *moments)
        with launching("cone_encode", values):
            v_samples = launch.sample_gradients(values, samples, v_features, v_weights, _options(lookup, tuning))
        return v_channels, *v_samples, *[None] * 6


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
