"""What gsplat's control of density has on GPUs only, for all tests of splats."""

from __future__ import annotations

import math

import gsplat.strategy.ops
import pytest
import torch
from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci
from torch import Tensor


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
