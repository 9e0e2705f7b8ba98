"""A rasterizer for tests: gsplat's pure-torch reference, and all pairs of Gaussians and pixels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from torch import Tensor

from zipnerf_ns.splats.distill.views import Pinhole
from zipnerf_ns.splats.rasterizer import Drawn


class TorchRasterizer:
    """What gsplat draws, with its projection and colors, and without its tiles: for few Gaussians and pixels."""

    def _weights(self, splats: Mapping[str, Tensor], pinhole: Pinhole) -> tuple[Tensor, Tensor]:
        """What of each pixel's color is each Gaussian's, from near to far ``[pixels, gaussians]``, and their order."""
        covariances, _ = _quat_scale_to_covar_preci(splats["quats"], splats["scales"].exp(), True, False)
        radii, means, depths, conics, compensations = _fully_fused_projection(
            splats["means"], covariances, pinhole.viewmat[None], pinhole.intrinsics[None], pinhole.width,
            pinhole.height, calc_compensations=True,
        )  # fmt: skip
        order = depths[0].argsort()
        rows, columns = torch.meshgrid(torch.arange(pinhole.height), torch.arange(pinhole.width), indexing="ij")
        x, y = (torch.stack([columns, rows], dim=-1).view(-1, 1, 2) + 0.5 - means[0, order]).unbind(-1)
        a, b, c = conics[0, order].unbind(-1)
        opacities = (splats["opacities"].sigmoid() * compensations[0])[order]
        alphas = opacities * torch.exp(-0.5 * (a * x * x + c * y * y) - b * x * y)
        # As gsplat has it: what is fainter than a color's step is left out.
        alphas = torch.where((alphas >= 1.0 / 255.0) & (radii[0, order] > 0), alphas.clamp_max(0.999), 0.0)
        clear = torch.cat([torch.ones_like(alphas[:, :1]), (1.0 - alphas).cumprod(dim=1)[:, :-1]], dim=1)
        return alphas * clear, order

    def draw(self, splats: Mapping[str, Tensor], pinhole: Pinhole, degree: int) -> Drawn:
        """A picture with gradients."""
        weights, order = self._weights(splats, pinhole)
        coefficients = torch.cat([splats["sh0"], splats["shN"]], dim=1)
        directions = splats["means"] - pinhole.pose[:, 3]
        colors = (_spherical_harmonics(degree, directions, coefficients) + 0.5).clamp_min(0.0)[order]
        size = (pinhole.height, pinhole.width, -1)
        return Drawn((weights @ colors).view(size), weights.sum(dim=-1).view(size))

    @torch.no_grad()
    def largest_contributions(self, splats: Mapping[str, Tensor], pinhole: Pinhole) -> Tensor:
        """The greatest weight of each Gaussian."""
        weights, order = self._weights(splats, pinhole)
        return torch.zeros_like(splats["opacities"]).index_copy(0, order, weights.amax(dim=0))

    @torch.no_grad()
    def shared(self, splats: Mapping[str, Tensor], pinhole: Pinhole, values: Tensor) -> Tensor:
        """The values of all pixels by the weights of each Gaussian."""
        weights, order = self._weights(splats, pinhole)
        return torch.zeros_like(splats["opacities"]).index_copy(0, order, weights.T @ values.flatten())
