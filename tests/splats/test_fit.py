"""Gaussians fitted by a pure-torch rasterizer to pictures of Gaussians that are known."""

from __future__ import annotations

import math

import gsplat.strategy.ops
import numpy as np
import pytest
import torch
from _scenes import pose
from _torch_rasterizer import TorchRasterizer
from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci
from torch import Tensor

from zipnerf_ns.errors import InputError
from zipnerf_ns.render.metrics import ssim
from zipnerf_ns.splats.distill.fit import Fit, SplatConfig, dissimilarity
from zipnerf_ns.splats.distill.points import extent, gaussians_at
from zipnerf_ns.splats.distill.quality import named
from zipnerf_ns.splats.distill.views import Pinhole, Target
from zipnerf_ns.splats.gaussians import SH_C0, Gaussians
from zipnerf_ns.splats.rasterizer import contributions

WIDTH, HEIGHT = 24, 16


def relocation(opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor) -> tuple[Tensor, Tensor]:
    """3DGS-MCMC, equation 9, as gsplat's kernel computes it on a GPU alone."""
    new = 1.0 - (1.0 - opacities) ** (1.0 / ratios)
    sums = torch.stack(
        [
            sum(
                math.comb(i - 1, k) * (-1) ** k / math.sqrt(k + 1) * float(opacity) ** (k + 1)
                for i in range(1, int(ratio) + 1)
                for k in range(i)
            )
            * torch.ones(())
            for opacity, ratio in zip(new.flatten(), ratios, strict=True)
        ]
    )
    return new, scales * (opacities.flatten() / sums)[:, None]


@pytest.fixture(autouse=True)
def strategies_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """What gsplat's strategies have on GPUs only."""
    monkeypatch.setattr(gsplat.strategy.ops, "compute_relocation", relocation)
    monkeypatch.setattr(
        gsplat.strategy.ops,
        "quat_scale_to_covar_preci",
        lambda quats, scales, **_: _quat_scale_to_covar_preci(quats, scales, True, False),
    )


def cameras(count: int) -> list[Pinhole]:
    """Cameras on a circle that look at the origin."""
    poses = [torch.tensor(pose(index, count))[:3].float() for index in range(count)]
    return [Pinhole(each, 26.0, 26.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT) for each in poses]


def true_gaussians(count: int = 12) -> Gaussians:
    """Opaque, colored ellipsoids about the origin."""
    draws = torch.Generator().manual_seed(5)
    means, colors = torch.rand(count, 3, generator=draws) - 0.5, torch.rand(count, 3, generator=draws)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=draws), dim=-1)
    scales = (0.08 + 0.12 * torch.rand(count, 3, generator=draws)).log()
    sh = torch.zeros(count, 4, 3)
    sh[:, 0], sh[:, 1:] = (colors - 0.5) / SH_C0, 0.1 * torch.randn(count, 3, 3, generator=draws)
    return Gaussians(means, quats, scales, torch.full((count,), 2.0), sh, antialiased=True)


def pictures(gaussians: Gaussians, views: list[Pinhole], with_alpha: bool = False) -> list[Target]:
    """8-bit pictures of Gaussians."""
    found = []
    for view in views:
        rgb, alpha, _ = TorchRasterizer().draw(named(gaussians), view, gaussians.degree)
        rgba = torch.cat([rgb / alpha.clamp_min(1e-6), alpha], dim=-1) if with_alpha else rgb
        found.append(Target(view, (rgba.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8), None))
    return found


def make_fit(targets: list[Target], fields: list[Target] = [], background: Tensor | None = None, **changes) -> Fit:  # noqa: B006
    """A fit from points near the truth."""
    truth = true_gaussians()
    draws = torch.Generator().manual_seed(7)
    points = (truth.means[:, None] + 0.08 * torch.randn(len(truth), 4, 3, generator=draws)).flatten(0, 1)
    first = gaussians_at(points, (0.5 + SH_C0 * truth.sh[:, 0]).repeat_interleave(4, dim=0), 1)
    settings = {"steps": 250, "max_gaussians": 60, "sh_degree": 1, **changes}
    config = SplatConfig(**settings)
    center, radius = extent([target.pinhole for target in targets])
    return Fit(first, targets, fields, config, TorchRasterizer(), center, radius, None, background)


def psnr_of(gaussians: Gaussians, targets: list[Target]) -> float:
    """Mean over the views, over black."""
    errors = [
        (TorchRasterizer().draw(named(gaussians), each.pinhole, gaussians.degree).rgb - each.colors / 255.0).square()
        for each in targets
    ]
    return -10.0 * math.log10(float(torch.stack(errors).mean()))


@pytest.mark.parametrize("strategy", ["mcmc", "default"])
def test_known_gaussians_are_found(strategy):
    """Held-out views of the truth from 48 gray points near it: 20 dB better than at first, and above 28 dB."""
    views = cameras(10)
    targets = pictures(true_gaussians(), views)
    fit = make_fit(targets[::2], strategy=strategy, background=torch.zeros(3))
    before = psnr_of(fit.gaussians(), targets[1::2])
    assert fit.run()
    found = fit.gaussians()
    print(strategy, before, psnr_of(found, targets[1::2]), len(found))
    assert psnr_of(found, targets[1::2]) > 28.0 > 10.0 + before
    assert 12 <= len(found) <= 60
