"""Means over groups of intervals in Triton, behind the signature of ``functional.ray_march.group_channels``.

A lane works on one group's intervals, which lie side by side in a channel; every value is read and written once.
"""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zipnerf_ns.functional import ray_march
from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.launching import launching
from zipnerf_ns.kernels.march.rows import ALIKE

LEAST_MASS = tl.constexpr(ray_march.LEAST_MASS)
SIZES = (2, 4, 8, 16)
"""Intervals of a group that the kernels take."""
LANES = 512
"""Intervals a program."""
NUM_WARPS = 4
CHANNELS_AT_A_TIME = 10
"""Channels that a program works on."""


@triton.jit
@no_type_check
def _members(weights, total, intervals, groups, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """This program's groups and which exist; their intervals' numbers, which exist, and their shares in the mean."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = number < total
    ray = number // groups
    place = ((number - ray * groups) * SIZE)[:, None] + tl.arange(0, SIZE)[None, :]
    mask = live[:, None] & (place < intervals)
    row = (ray * intervals)[:, None] + place
    mass = tl.where(mask, tl.load(weights + row, mask=mask, other=0.0) + LEAST_MASS, 0.0)
    # Groups that do not exist must not divide by zero.
    return number, live, row, mask, mass / tl.where(live, tl.sum(mass, axis=1), 1.0)[:, None]


@triton.jit(do_not_specialize=["total", "groups"])
@no_type_check
def group_kernel(
    channels, weights, means, total, intervals, groups, row_stride, channel_stride,
    CHANNELS: tl.constexpr, PART: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Means of PART of the channels of BLOCK groups; a channel of ``means`` has ``total`` numbers."""
    number, live, row, mask, shares = _members(weights, total, intervals, groups, SIZE, BLOCK)
    first = tl.program_id(1) * PART
    for index in range(0, tl.minimum(PART, CHANNELS - first)):
        channel = (first + index).to(tl.int64)
        source = channels + channel * channel_stride + row * row_stride
        x = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        tl.store(means + channel * total + number, tl.sum(x * shares, axis=1), mask=live)


@triton.jit(do_not_specialize=["total", "groups"])
@no_type_check
def group_backward_kernel(
    weights, v_means, v_channels, total, intervals, groups, v_row_stride, v_channel_stride, count,
    CHANNELS: tl.constexpr, PART: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cotangents of PART of the channels, of which each has ``count`` numbers."""
    number, live, row, mask, shares = _members(weights, total, intervals, groups, SIZE, BLOCK)
    first = tl.program_id(1) * PART
    for index in range(0, tl.minimum(PART, CHANNELS - first)):
        channel = (first + index).to(tl.int64)
        source = v_means + channel * v_channel_stride + number * v_row_stride
        v = tl.load(source, mask=live, other=0.0).to(tl.float32)[:, None]
        tl.store(v_channels + channel * count + row, shares * v, mask=mask)


def group_channels(
    channels: Float[Tensor, "intervals channels"], weights: Float[Tensor, "rays n"], size: int
) -> Float[Tensor, "groups channels"]:
    """Mean channels of neighboring intervals under their weights; see ``functional.ray_march.group_channels``.

    Channels are read as they lie; what is written is stored channel by channel.

    Raises:
        ValueError: for a size of groups, or shapes, that the kernels do not take.
        RuntimeError: if the kernels cannot run on the channels' device; the message says what to install.
    """
    if size not in SIZES:
        raise ValueError(f"groups of {SIZES} intervals are what the kernels take, not of {size}.")
    if len(channels) != weights.numel():
        raise ValueError(f"{len(channels)} intervals have channels, {weights.numel()} have weights.")
    support.require(channels.device)
    return _GroupChannels.apply(channels, weights.detach().float().contiguous(), size)


class _GroupChannels(torch.autograd.Function):
    """Joins the kernels to autograd, which keeps the weights alone."""

    @staticmethod
    def forward(ctx: Any, channels: Tensor, weights: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.size, count = size, channels.shape[1]
        total, groups, grid, options = _launch(weights, size, count)
        means = channels.new_empty(count, total)
        if total:
            with launching("group_channels", channels):
                group_kernel[grid](
                    channels, weights, means, total, weights.shape[1], groups, *channels.stride(), **options, **ALIKE
                )
        return means.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_means: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        count = v_means.shape[1]
        total, groups, grid, options = _launch(weights, ctx.size, count)
        v_channels = v_means.new_empty(count, weights.numel())
        if total:
            with launching("group_channels", weights):
                group_backward_kernel[grid](
                    weights, v_means, v_channels, total, weights.shape[1], groups, *v_means.stride(), weights.numel(),
                    **options,
                )  # fmt: skip
        return v_channels.t(), None, None


def _launch(weights: Tensor, size: int, channels: int) -> tuple[int, int, tuple[int, int], dict[str, int]]:
    """Groups of all rays, groups of a ray, and the grid and the options of a launch."""
    rays, n = weights.shape
    groups, block = triton.cdiv(n, size), LANES // size
    grid = (triton.cdiv(rays * groups, block), triton.cdiv(channels, CHANNELS_AT_A_TIME))
    options = {"CHANNELS": channels, "PART": CHANNELS_AT_A_TIME, "SIZE": size, "BLOCK": block, "num_warps": NUM_WARPS}
    return rays * groups, groups, grid, options
