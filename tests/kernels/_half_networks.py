"""The networks as the kernels compute them in half precision: operands rounded where they are, sums in float32."""

from __future__ import annotations

from typing import Any

import torch
from _twins import INTERPRETED
from torch import Tensor

from zipnerf_ns.functional.mlp import RadianceWeights
from zipnerf_ns.functional.numerics import bounded_exp


def in_kernel(x: Tensor) -> Tensor:
    """A float32 tensor's values as bfloat16 as a kernel rounds them: Triton's interpreter cuts the digits off."""
    if INTERPRETED:
        return (x.contiguous().view(torch.int32) & -65536).view(torch.float32)
    return x.bfloat16().float()


class _Rounded(torch.autograd.Function):
    """An operand: its value is rounded, its cotangent is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by_torch: bool) -> Tensor:
        return x.bfloat16().float() if by_torch else in_kernel(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return v, None


class _RoundedCotangent(torch.autograd.Function):
    """A product's result: its value is not rounded, its cotangent is an operand and so rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return in_kernel(v)


def _units(raw: Tensor) -> Tensor:
    return torch.relu(_RoundedCotangent.apply(raw))


def half_density_mlp(features: Tensor, w_hidden: Tensor, b: Tensor, w: Tensor, b_density: Tensor, shift: float, _: Any):
    """density_mlp with operands as its kernels round them."""
    raw = _Rounded.apply(features.float(), False) @ _Rounded.apply(w_hidden, False).T
    # The kernels sum the biases' cotangents before they round them.
    hidden = torch.relu(_RoundedCotangent.apply(raw) + b)
    return bounded_exp(hidden @ w[0] + (b_density + shift))


def half_radiance_mlp(
    features: Tensor, view: Tensor, weights: RadianceWeights, shift: float, padding: float, _: Any
) -> tuple[Tensor, Tensor]:
    """radiance_mlp with operands as its kernels round them."""
    samples = len(features) // len(view)
    # The launch rounds the weights, the kernels all else.
    rounded = [tuple(_Rounded.apply(w, True) for w in (v if isinstance(v, tuple) else (v,))) for v in weights]
    w = RadianceWeights(
        *(value if isinstance(v, tuple) else value[0] for v, value in zip(weights, rounded, strict=True))
    )
    view = _Rounded.apply(view.float(), False).repeat_interleave(samples, dim=0)
    raw = _RoundedCotangent.apply(_Rounded.apply(features.float(), False) @ w.hidden.T) + weights.hidden_bias
    units = torch.relu(raw)
    density = bounded_exp(units @ weights.density[0] + (weights.density_bias + shift))
    # What color asks of the hidden layer is rounded on its way to density's kernel.
    hidden = _RoundedCotangent.apply(_Rounded.apply(units, False))
    below = _Rounded.apply(_units(hidden @ w.first.T + view @ w.first_view.T + weights.first_bias), False)
    for matrix, bias in zip(w.middle, weights.middle_bias, strict=True):
        below = _Rounded.apply(_units(below @ matrix.T + bias), False)
    last = below @ w.last.T + hidden @ w.last_hidden.T + view @ w.last_view.T + weights.last_bias
    last = _Rounded.apply(_units(last), False)
    raw = _RoundedCotangent.apply(last @ w.rgb.T) + weights.rgb_bias
    return density, torch.sigmoid(raw) * (1.0 + 2.0 * padding) - padding
