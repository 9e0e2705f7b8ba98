"""The whole method in scenes of any size, seen from within matter, from nowhere and by a single ray."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_zipnerf import SMALL

from zipnerf_ns import Rays, ZipNerf

SCENES = [(1e-3, 0.0, 1e10), (1e-3, 5e-5, 2e-3), (1e3, 0.0, 1e10), (1e3, 50.0, 2e3)]
"""Scale of the cameras' positions, near and far, world units."""
MATTER = {"nothing": -100.0, "as at the start": 0.0, "everywhere": 100.0}
"""Added to the logarithm of the density: with the last one, cameras stand within a surface."""


@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
@pytest.mark.parametrize("matter", MATTER)
def test_colors_distances_losses_and_gradients_are_finite(matter, prefilter):
    model = ZipNerf(dataclasses.replace(SMALL, prefilter=prefilter))
    for field in model.fields:
        torch.nn.init.constant_(field.density_layer.bias, MATTER[matter])
    for scale, near, far in SCENES:
        for count in (0, 1, 5):
            directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
            radius = torch.full((count, 1), 1e-3)
            rays = Rays.between(near, far, scale * torch.randn(count, 3), directions, radius)
            rendering = model.train()(rays)
            shown = {"rgb": rendering.rgb}
            if count:
                # The mean over no ray is no number.
                losses = model.losses(rendering, rendering.rgb, torch.rand(count, 3))
                model.zero_grad()
                sum(losses.values()).backward()
                shown |= {**losses, **{name: parameter.grad for name, parameter in model.named_parameters()}}
            rounds = model.eval()(rays).rounds
            shown |= {**model.distances(rounds), "normals": model.normals(rays, rounds[-1])}
            assert [name for name, value in shown.items() if not torch.isfinite(value).all()] == []
