"""The real tinycudann, where it is built, against what is known of it: the stand-in that the other tests use."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from _rays import normal, uniform
from _tinycudann import make_library

from zipnerf_ns.encoding import HashGridConfig, TcnnHashEncoding

if not torch.cuda.is_available() or importlib.util.find_spec("tinycudann") is None:
    pytest.skip("needs a GPU and tinycudann", allow_module_level=True)

TOLERANCE = 1e-4
"""Relative L2; the library multiplies by a level's cells where the stand-in divides."""


@pytest.mark.parametrize("features", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_stand_in(features, monkeypatch):
    config = HashGridConfig(num_levels=8, features_per_level=features, base_res=8, max_res=512, log2_hashmap_size=14)
    positions = uniform((2000, 1, 3), 1, 0.15, 0.85).cuda()
    stds = torch.full((2000, 1), 1e-4, device="cuda")
    encodings = [TcnnHashEncoding(config, "none").cuda()]
    monkeypatch.setitem(sys.modules, "tinycudann", make_library())
    encodings.append(TcnnHashEncoding(config, "none").cuda())
    found = []
    for encoding in encodings:
        with torch.no_grad():
            encoding.hash_table.copy_(normal(encoding.hash_table.shape, 0))
        values, _ = encoding.look_up(positions, stds)
        values.backward(normal(values.shape, 2).cuda())
        found.append((values.detach(), encoding.hash_table.grad))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= TOLERANCE * other.norm()
