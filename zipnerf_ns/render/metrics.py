"""Image quality as published tables have it, of 8-bit pictures: PSNR, SSIM, and LPIPS where its weights are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

from zipnerf_ns.errors import say_once
from zipnerf_ns.render.lpips import BACKBONES, load_all

WINDOW, SIGMA = 11, 1.5
"""Pixels of SSIM's Gaussian window, and its standard deviation in pixels (Wang et al. 2004, section III-B)."""
STABILIZERS = 0.01**2, 0.03**2
"""C1 and C2 of SSIM for values in [0, 1] (Wang et al. 2004, section III-B)."""


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of values in [0, 1]."""
    return -10.0 * torch.log10((prediction - truth).square().mean().clamp_min(1e-12))


def ssim(
    prediction: Float[Tensor, "height width 3"], truth: Float[Tensor, "height width 3"]
) -> Float[Tensor, "rows columns"]:
    """Structural similarity of values in [0, 1] in every window that lies within the picture (Wang et al. 2004).

    The mean over them, and over the channels, equals dm_pix.ssim, with which multinerf measured mip-NeRF 360's tables,
    tf.image.ssim, after which that is modeled, and skimage's structural_similarity with gaussian_weights and without
    use_sample_covariance. No picture goes on behind its border.
    """
    # In float64: variances are differences of large numbers, and a GPU's float32 convolutions may round to 11 bits.
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=prediction.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2.0 * SIGMA**2))
    weights = weights / weights.sum()
    c1, c2 = STABILIZERS
    values = []
    # Channel by channel, for the memory of large photos.
    for x, y in zip(prediction.double().unbind(-1), truth.double().unbind(-1), strict=True):
        moments = torch.stack([x, y, x * x, y * y, x * y])[:, None]
        moments = conv2d(conv2d(moments, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[:, 0]
        mean_x, mean_y, square_x, square_y, product = moments
        means, covariance = mean_x * mean_y, product - mean_x * mean_y
        squares, variances = mean_x**2 + mean_y**2, square_x + square_y - mean_x**2 - mean_y**2
        values.append((2.0 * means + c1) * (2.0 * covariance + c2) / ((squares + c1) * (variances + c2)))
    return torch.stack(values).mean(dim=0)


def with_room(name: str, measure: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, truth: Tensor) -> Tensor:
    """A metric of two pictures, in main memory; measured there, too, if their device has no memory for it.

    Windows and networks take many times what a picture does, and a training must not end for them.
    """
    try:
        return measure(prediction, truth).cpu()
    except torch.cuda.OutOfMemoryError:
        # Not handled here: the error keeps alive what did not fit.
        pass
    torch.cuda.empty_cache()
    say_once(f"{name} of such pictures does not fit into what is left of the GPU's memory: the CPU measures it.")
    return measure(prediction.cpu(), truth.cpu())


class ImageMetrics(nn.Module):
    """Metrics of whole pictures, as they are when they are written with 8 bits a channel.

    ``lpips`` is VGG's, ``lpips_alex`` AlexNet's. Where a network's weights are not there its key is absent, for every
    picture alike: no other stands in for it.

    Args:
        lpips_weights: folder of the networks' weights; torch hub's cache if None.
    """

    def __init__(self, lpips_weights: Path | None = None) -> None:
        super().__init__()
        self.lpips_weights = lpips_weights

    @torch.no_grad()
    def forward(
        self,
        rgb: Float[Tensor, "height width 3"],
        truth: Float[Tensor, "height width 3"],
        mask: Bool[Tensor, "height width 1"] | None = None,
    ) -> dict[str, float]:
        """Metrics of one picture, of what a mask leaves where there is one.

        PSNR is that of the used pixels alone. The other two look at neighborhoods: the ignored pixels are first
        replaced by the truth in both pictures, so that nothing within the mask is an error. SSIM is then the mean over
        the windows around used pixels, LPIPS the mean over the whole picture: the more is ignored, the lower it is.

        Args:
            rgb, truth: values in [0, 1]; what lies outside is clipped.
            mask: true where a pixel counts; all if not given.
        Returns:
            Each metric that the picture is large enough for; none at all where the mask leaves no pixel.
        """
        rgb, truth = in_8_bits(rgb), in_8_bits(truth)
        if mask is None:
            mask = torch.ones_like(rgb[..., :1], dtype=torch.bool)
        if not mask.any():
            return {}
        rgb = torch.where(mask, rgb, truth)
        used = mask[..., 0]
        values = {"psnr": float(psnr(rgb[used], truth[used]))}
        margin = WINDOW // 2
        # The pixels that have a window around them.
        central = used[margin:-margin, margin:-margin]
        if central.any():
            values["ssim"] = float(with_room("SSIM", ssim, rgb, truth)[central.cpu()].mean())
        for name, network in self.lpips.items():
            if min(rgb.shape[:2]) >= BACKBONES[name].min_size:
                values[name] = float(with_room(name, _on_their_device(network), rgb, truth))
        return values

    @cached_property
    def lpips(self) -> Mapping[str, nn.Module]:
        """The networks, by the metrics' names."""
        return load_all(self.lpips_weights)


def _on_their_device(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that follows the pictures."""
    return lambda rgb, truth: network.to(rgb.device)(rgb, truth)


def in_8_bits(picture: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values of a picture as a file of 8 bits a channel holds them."""
    return (picture.clamp(0.0, 1.0) * 255.0).round() / 255.0
