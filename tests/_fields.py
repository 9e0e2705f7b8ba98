"""A small field for the tests of the fields, and its parts."""

from __future__ import annotations

import torch
from _rays import make_encoding
from torch import Tensor

from zipnerf_ns.field import ZipNerfField


def make_field(color_layers: int = 3, prefilter: str = "multisample") -> ZipNerfField:
    """A field whose table and heads hold visible values."""
    torch.manual_seed(0)
    return ZipNerfField(make_encoding(prefilter), None, 16, "float32", 8, color_layers, 12).eval()


def linear_layers(field: ZipNerfField) -> list:
    return [module for module in field.color_network.modules() if isinstance(module, torch.nn.Linear)]


def hidden_of(field: ZipNerfField, channels: Tensor) -> Tensor:
    return (channels @ field.hidden_layer.weight.T + field.hidden_layer.bias).clamp_min(0.0)
