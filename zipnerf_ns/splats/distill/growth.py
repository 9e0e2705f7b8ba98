"""More Gaussians where pictures are wrong ("Revising Densification in Gaussian Splatting", Rota Bulò et al. 2024).

Each pixel's error is shared among the Gaussians that its color comes from, by their part in it. Those that gather the
most are cut in two, so that a fit may begin with few and spend the others where they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from zipnerf_ns.splats.distill.views import Target
from zipnerf_ns.splats.rasterizer import Rasterizer

APART, NARROWED = 0.5, 0.6
"""How far each half of a Gaussian lies from its middle along its longest axis, in its standard deviations there, and
what is left of these."""
CLEARED = 0.7
"""What light passes through a half is what passed through the whole, to this power."""


def gathered_errors(
    rasterizer: Rasterizer,
    splats: Mapping[str, Tensor],
    targets: Iterable[Target],
    background: Float[Tensor, "3"],
    degree: int,
) -> Float[Tensor, "gaussians"]:
    """Each Gaussian's share of the absolute errors of some pictures, summed over pixels and pictures.

    Args:
        rasterizer: draws them.
        splats: parameters by name.
        targets: what should be seen.
        background: behind transparent photos.
        degree: of the colors' spherical harmonics.
    """
    found = torch.zeros_like(splats["opacities"].detach())
    for target in targets:
        truth, used = target.picture(background)
        with torch.no_grad():
            drawn = rasterizer.draw(splats, target.pinhole, degree)
            error = (drawn.rgb + background * (1.0 - drawn.alpha) - truth).abs().mean(dim=-1, keepdim=True)
        found += rasterizer.shared(splats, target.pinhole, error if used is None else error * used)
    return found


@torch.no_grad()
def halve(
    params: dict[str, torch.nn.Parameter],
    optimizers: dict[str, torch.optim.Optimizer],
    chosen: Bool[Tensor, "gaussians"],
) -> None:
    """Cuts Gaussians in two across their longest axis; the second halves follow all others, and learn from nothing.

    Args:
        params: by name.
        optimizers: of each of them.
        chosen: which ones.
    """
    from gsplat.strategy.ops import duplicate
    from gsplat.utils import normalized_quat_to_rotmat

    first = chosen.nonzero()[:, 0]
    second = torch.arange(len(chosen), len(chosen) + len(first), device=first.device)
    duplicate(params, optimizers, {}, chosen)
    sizes, axes = params["scales"][first].max(dim=-1)
    turned = normalized_quat_to_rotmat(normalize(params["quats"][first], dim=-1))
    way = APART * sizes.exp()[:, None] * turned[torch.arange(len(first), device=first.device), :, axes]
    narrowed = params["scales"][first].scatter_add(1, axes[:, None], torch.full_like(way[:, :1], math.log(NARROWED)))
    clear = (1.0 - params["opacities"][first].sigmoid()) ** CLEARED
    for half, sign in ((first, 1.0), (second, -1.0)):
        params["means"].data[half] += sign * way
        params["scales"].data[half] = narrowed
        params["opacities"].data[half] = (1.0 - clear).logit(eps=1e-3)
