"""How far a picture of Gaussians is from what should be seen, as a gradient."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

from zipnerf_ns.render.metrics import SIGMA, STABILIZERS, WINDOW

SSIM_SHARE = 0.2
"""Share of structural dissimilarity in the loss; the rest is the mean absolute difference (3DGS, equation 7)."""
SSIM_EVERY = 2
"""Pixels between the windows that it is the mean over."""


@cache
def _window(device: torch.device) -> Tensor:
    offsets = torch.arange(WINDOW, device=device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2.0 * SIGMA**2))
    return weights / weights.sum()


@torch.no_grad()
def loss_gradient(
    rgb: Float[Tensor, "height width 3"], truth: Float[Tensor, "height width 3"], every: int = SSIM_EVERY
) -> Float[Tensor, "height width 3"]:
    """How the loss, with :func:`~zipnerf_ns.render.metrics.ssim` at every so many pixels across and down, depends on a
    picture. In closed form, for launching the kernels of a graph takes longer than they do."""
    gradient = (rgb - truth).sign() * ((1.0 - SSIM_SHARE) / rgb.numel())
    if min(rgb.shape[:2]) < WINDOW:
        return gradient
    x, y = rgb.permute(2, 0, 1), truth.permute(2, 0, 1)
    weights, c1, c2 = _window(rgb.device), *STABILIZERS
    row, column = weights.view(1, 1, 1, -1), weights.view(1, 1, -1, 1)
    # Variances are differences of numbers that ten bits would not tell apart.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        moments = torch.cat([x, y, x * x, y * y, x * y])[:, None]
        rows = conv2d(moments, row, stride=(1, every))
        mean_x, mean_y, square_x, square_y, product = conv2d(rows, column, stride=(every, 1))[:, 0].split(3)
        means, squares = mean_x * mean_y, mean_x**2 + mean_y**2
        light, structure = 2.0 * means + c1, 2.0 * (product - means) + c2
        lights, structures = squares + c1, square_x + square_y - squares + c2
        both = lights * structures
        ssim = light * structure / both
        of_square = -ssim / structures
        of_mean = 2.0 * (mean_y * (structure - light) / both - mean_x * (ssim / lights + of_square))
        slopes = torch.cat([of_mean, of_square, 2.0 * light / both])[:, None]
        rest = [(n - WINDOW) % every for n in rgb.shape[:2]]
        slopes = conv_transpose2d(slopes, column, stride=(every, 1), output_padding=(rest[0], 0))
        slopes = conv_transpose2d(slopes, row, stride=(1, every), output_padding=(0, rest[1]))
    of_mean, of_square, of_product = slopes[:, 0].split(3)
    slope = of_mean + 2.0 * x * of_square + y * of_product
    return gradient - slope.permute(1, 2, 0) * (SSIM_SHARE / ssim.numel())
