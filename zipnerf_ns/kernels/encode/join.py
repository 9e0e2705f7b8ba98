"""Channels of what stands still and of what moves as one, behind the signature of ``functional.cones.join_channels``.

A program works on BLOCK intervals, and reads PART of their channels at a time; every value is read and written once.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.launching import launching

BLOCK, PART, NUM_WARPS = 128, 16, 4


@triton.jit
@no_type_check
def _tile(channel, row, total, CHANNELS: tl.constexpr, PART: tl.constexpr):
    """Numbers of PART channels, and where they have the values of ``row``, in channels of ``total`` each."""
    channels = channel + tl.arange(0, PART)
    mask = (channels < CHANNELS)[:, None] & (row < total)[None, :]
    return channels, channels.to(tl.int64)[:, None] * total + row[None, :], mask


@triton.jit(do_not_specialize=["total", "per_ray"])
@no_type_check
def join_kernel(
    still, moving, seen, weight, bias, joined, masks, total, per_ray,
    STILL: tl.constexpr, MOVING: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Joined channels of BLOCK intervals, and, where there is a mask, its values."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < total
    share = tl.load(seen + row // per_ray, mask=live, other=0.0)
    raw = tl.zeros([BLOCK], tl.float32)
    for channel in range(0, STILL, PART):
        channels, place, mask = _tile(channel, row, total, STILL, PART)
        x = tl.load(still + place, mask=mask, other=0.0)
        tl.store(joined + place, x, mask=mask)
        if masks is not None:
            w = tl.load(weight + channels, mask=channels < STILL, other=0.0)
            raw += tl.sum(x.to(tl.float32) * w[:, None], axis=0)
    if masks is not None:
        part = 1.0 / (1.0 + tl.exp(-(raw + tl.load(bias))))
        tl.store(masks + row, part, mask=live)
        share *= part
    target = joined + STILL * total
    for channel in range(0, MOVING, PART):
        _, place, mask = _tile(channel, row, total, MOVING, PART)
        x = tl.load(moving + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(target + place, x * share[None, :], mask=mask)


@triton.jit(do_not_specialize=["total", "per_ray"])
@no_type_check
def join_backward_kernel(
    still, moving, seen, weight, masks, v_joined, v_masks, v_still, v_moving, v_linear, total, per_ray,
    STILL: tl.constexpr, MOVING: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cotangents of both channels of BLOCK intervals, and this program's share in that of weight and bias,
    ``v_linear`` [programs, STILL + 1]; without a mask the still ones' are the joined ones', and not written."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < total
    whole = tl.load(seen + row // per_ray, mask=live, other=0.0)
    share = whole
    if masks is not None:
        part = tl.load(masks + row, mask=live, other=0.0)
        share *= part
    v_share = tl.zeros([BLOCK], tl.float32)
    for channel in range(0, MOVING, PART):
        _, place, mask = _tile(channel, row, total, MOVING, PART)
        v = tl.load(v_joined + STILL * total + place, mask=mask, other=0.0).to(tl.float32)
        if masks is not None:
            v_share += tl.sum(v * tl.load(moving + place, mask=mask, other=0.0).to(tl.float32), axis=0)
        tl.store(v_moving + place, v * share[None, :], mask=mask)
    if masks is not None:
        v_part = v_share * whole
        if v_masks is not None:
            v_part += tl.load(v_masks + row, mask=live, other=0.0)
        v_raw = v_part * part * (1.0 - part)
        sums = v_linear + tl.program_id(0) * (STILL + 1)
        for channel in range(0, STILL, PART):
            channels, place, mask = _tile(channel, row, total, STILL, PART)
            w = tl.load(weight + channels, mask=channels < STILL, other=0.0)
            v = tl.load(v_joined + place, mask=mask, other=0.0).to(tl.float32)
            tl.store(v_still + place, v + w[:, None] * v_raw[None, :], mask=mask)
            x = tl.load(still + place, mask=mask, other=0.0).to(tl.float32)
            tl.store(sums + channels, tl.sum(x * v_raw[None, :], axis=1), mask=channels < STILL)
        tl.store(sums + STILL, tl.sum(v_raw, axis=0))


def join_channels(
    still: Float[Tensor, "intervals still"],
    moving: Float[Tensor, "intervals moving"],
    seen: Float[Tensor, "rays 1"],
    weight: Float[Tensor, "1 still"] | None = None,
    bias: Float[Tensor, "1"] | None = None,
) -> tuple[Float[Tensor, "intervals channels"], Float[Tensor, "intervals 1"] | None]:
    """Channels of what stands still and of what moves as one, and the mask; see ``functional.cones.join_channels``.

    All channels are stored one after the other.

    Raises:
        RuntimeError: if the kernels cannot run on the channels' device; the message says what to install.
    """
    support.require(still.device)
    return _JoinChannels.apply(still, moving, seen.detach().float().contiguous(), weight, bias)


class _JoinChannels(torch.autograd.Function):
    """Joins the kernels to autograd; the rays' shares have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, still: Tensor, moving: Tensor, seen: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        still, moving = still.t().contiguous(), moving.to(still.dtype).t().contiguous()
        total = still.shape[1]
        joined = still.new_empty(len(still) + len(moving), total)
        masks = None if weight is None else seen.new_empty(total, 1)
        ctx.save_for_backward(still, moving, seen, weight, masks)
        if total:
            grid, options = _launch(still, moving)
            with launching("join_channels", still):
                join_kernel[grid](
                    still, moving, seen, weight, bias, joined, masks, total, total // len(seen), **options
                )
        return joined.t(), masks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_joined: Tensor | None, v_masks: Tensor | None) -> tuple[Tensor | None, ...]:
        still, moving, seen, weight, masks = ctx.saved_tensors
        count, total = still.shape
        v = still.new_zeros(count + len(moving), total) if v_joined is None else v_joined.t().contiguous()
        v_masks = None if v_masks is None else v_masks.contiguous()
        v_still = v[:count] if masks is None else torch.empty_like(still)
        v_moving, v_linear = torch.empty_like(moving), None
        if total:
            grid, options = _launch(still, moving)
            v_linear = None if masks is None else seen.new_empty(*grid, count + 1)
            with launching("join_channels", still):
                join_backward_kernel[grid](
                    still, moving, seen, weight, masks, v, v_masks, v_still, v_moving, v_linear, total,
                    total // len(seen), **options,
                )  # fmt: skip
        if masks is None:
            return v_still.t(), v_moving.t(), None, None, None
        sums = seen.new_zeros(count + 1) if v_linear is None else v_linear.sum(dim=0)
        return v_still.t(), v_moving.t(), None, sums[None, :count], sums[count:]


def _launch(still: Tensor, moving: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """The grid and the options of a launch."""
    options = {"STILL": len(still), "MOVING": len(moving), "PART": PART, "BLOCK": BLOCK, "num_warps": NUM_WARPS}
    return (triton.cdiv(still.shape[1], BLOCK),), options
