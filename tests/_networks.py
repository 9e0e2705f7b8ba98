"""Random networks of density and color for the tests of both their implementations."""

from __future__ import annotations

import torch
from torch import Tensor

from zipnerf_ns.functional.mlp import VIEW_DIM, RadianceWeights


def random_weights(channels: int, hidden: int, width: int, layers: int, dtype=torch.float32) -> RadianceWeights:
    """A network of ``layers`` color layers whose units are about one and half of them active; leaves of autograd."""

    def leaf(*size: int) -> Tensor:
        return (torch.randn(*size, dtype=dtype) * (2.0 / size[-1]) ** 0.5).requires_grad_()

    def bias(size: int) -> Tensor:
        return (0.2 * torch.randn(size, dtype=dtype)).requires_grad_()

    return RadianceWeights(
        hidden=leaf(hidden, channels),
        hidden_bias=bias(hidden),
        density=leaf(1, hidden),
        density_bias=bias(1),
        first=leaf(width, hidden),
        first_view=leaf(width, VIEW_DIM),
        first_bias=bias(width),
        middle=tuple(leaf(width, width) for _ in range(layers - 2)),
        middle_bias=tuple(bias(width) for _ in range(layers - 2)),
        last=leaf(width, width),
        last_hidden=leaf(width, hidden),
        last_view=leaf(width, VIEW_DIM),
        last_bias=bias(width),
        rgb=leaf(3, width),
        rgb_bias=bias(3),
    )


def named_leaves(weights: RadianceWeights) -> dict[str, Tensor]:
    """A network's tensors by name, those of the middle layers numbered."""
    found = {}
    for name, value in weights._asdict().items():
        if isinstance(value, tuple):
            found.update({f"{name}.{index}": tensor for index, tensor in enumerate(value)})
        else:
            found[name] = value
    return found
