"""Matrix products in half precision whose gradients keep their digits.

bfloat16 has float32's range. float16, which is all that GPUs before compute capability 8.0 multiply fast, has not: a
training step's cotangents of 1e-9 would be zeros. They are scaled so that the largest is far from both ends, by a power
of two found on the device at every step, and what leaves the network is scaled back in float32 (loss scaling,
Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2, with its scale found anew at every step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_COTANGENT = 256.0
"""What the largest cotangent is scaled to, at most: the layers may raise it 250 times, and what is 2^-22 of it still
has all its digits."""
LARGEST_SCALE = 2.0**100
LARGEST_RESULT = 2.0**14
"""Largest result of a product in float16: a layer adds up to three of them, and their sum is still a number."""


class _Scale:
    """The factor on the cotangents of one network call, known once its backward pass has begun."""

    value: Tensor | None = None


class _Outside(torch.autograd.Function):
    """The tensors; scales their cotangents on the way into the network."""

    @staticmethod
    def forward(ctx: Any, scale: _Scale, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.scale = scale
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        largest = torch.stack([v.abs().amax() if v.numel() else v.new_zeros(()) for v in cotangents]).amax().float()
        exponent = torch.floor(torch.log2(LARGEST_COTANGENT / largest))
        ctx.scale.value = torch.exp2(exponent).clamp(max=LARGEST_SCALE)
        return None, *(v * ctx.scale.value for v in cotangents)


class _Inside(torch.autograd.Function):
    """The float32 tensor; scales its cotangent back."""

    @staticmethod
    def forward(ctx: Any, scale: _Scale, tensor: Tensor) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, cotangent / ctx.scale.value


def scaled_cotangents(
    dtype: torch.dtype | None,
) -> tuple[Callable[[Tensor], Tensor], Callable[..., tuple[Tensor, ...]]]:
    """Two functions for one call of a network: for each float32 input, and for all of its float32 outputs together.

    Args:
        dtype: of the operands; the functions do nothing but for float16.
    """
    if dtype is not torch.float16:
        return (lambda tensor: tensor), (lambda *tensors: tensors)
    scale = _Scale()
    return (lambda tensor: _Inside.apply(scale, tensor)), (lambda *tensors: _Outside.apply(scale, *tensors))


class _HalfLinear(torch.autograd.Function):
    """x W^T + b in half precision; the gradients of W and b, sums over all rows, in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, dtype: torch.dtype) -> Tensor:
        x_half, w_half = _narrowed(x, dtype), _narrowed(w, dtype)
        ctx.save_for_backward(x_half, w_half)
        ctx.dtype = x.dtype
        return _cut_off(F.linear(x_half, w_half, None if b is None else _narrowed(b, dtype)), LARGEST_RESULT)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        v_b = v.sum(dim=0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return _cut_off(v @ w, LARGEST_RESULT).to(ctx.dtype), transposed_product(v, x), v_b, None


def linear(x: Tensor, w: Tensor, b: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """x W^T + b with operands, and so the result, of ``dtype``; as ``w`` is where that is None.

    What float16 does not hold is cut off on the way, and its gradient goes on.
    """
    if dtype is None:
        return F.linear(x.to(w.dtype), w, b)
    return _HalfLinear.apply(x, w, b, dtype)


def _narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An operand in half precision."""
    return x if x.dtype is dtype else _cut_off(x.to(dtype), torch.finfo(dtype).max)


def _cut_off(values: Tensor, most: float) -> Tensor:
    """Numbers of float16 that are at most so large, changed in place: infinity times zero would be no number."""
    return values.clamp_(-most, most) if values.dtype is torch.float16 else values


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b of matrices of one dtype, summed in float32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a.t(), b, out_dtype=torch.float32)
    return torch.mm(a.t().float(), b.float())
