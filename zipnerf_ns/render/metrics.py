"""Image quality of 8-bit pictures: PSNR, SSIM, and LPIPS where its weights are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from nerfstudio.utils.rich_utils import CONSOLE

WINDOW, SIGMA = 11, 1.5
"""Pixels of SSIM's Gaussian window, and its standard deviation in pixels (Wang et al. 2004, section III-B)."""
STABILIZERS = 0.01**2, 0.03**2
"""C1 and C2 of SSIM for values in [0, 1] (Wang et al. 2004, section III-B)."""
LPIPS_WEIGHTS = "vgg16-397923af.pth"
"""File of VGG-16's weights, with which LPIPS is published for radiance fields, in torch hub's cache."""
LPIPS_DOWNLOAD = "python -c 'from torchvision.models import vgg16; vgg16(weights=\"IMAGENET1K_V1\")'"
"""What puts it there: half a gigabyte, for which no evaluation should wait."""
LPIPS_MIN_SIZE = 16
"""VGG's four poolings leave nothing of smaller pictures."""


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of values in [0, 1]."""
    return -10.0 * torch.log10((prediction - truth).square().mean().clamp_min(1e-12))


def ssim(
    prediction: Float[Tensor, "height width 3"], truth: Float[Tensor, "height width 3"]
) -> Float[Tensor, "rows columns"]:
    """Structural similarity of values in [0, 1] in every window that lies within the picture (Wang et al. 2004).

    The mean over them, and over the channels, is what is published: no picture goes on behind its border.
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
    _announce_move(name)
    return measure(prediction.cpu(), truth.cpu())


@cache
def _announce_move(name: str) -> None:
    CONSOLE.log(f"{name} of such pictures does not fit into what is left of the GPU's memory: the CPU measures it.")


class ImageMetrics(nn.Module):
    """Metrics of whole pictures, as they are when they are written with 8 bits a channel.

    LPIPS (VGG) is built at its first use. Where its weights are not in torch hub's cache the key is absent, for every
    image alike, and one warning says how to get them.
    """

    def __init__(self) -> None:
        super().__init__()
        # Hidden in a list so that the network is neither trained nor saved nor moved with the model.
        self._lpips: list[nn.Module | None] = []

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
        if min(rgb.shape[:2]) >= LPIPS_MIN_SIZE and self._get_lpips(rgb.device) is not None:
            values["lpips"] = float(with_room("LPIPS", self._distance, rgb, truth))
        return values

    def _distance(self, rgb: Float[Tensor, "height width 3"], truth: Float[Tensor, "height width 3"]) -> Tensor:
        """LPIPS where the pictures lie."""
        network = self._get_lpips(rgb.device)
        return network(*(image.permute(2, 0, 1)[None] for image in (rgb, truth)))

    def _get_lpips(self, device: torch.device) -> nn.Module | None:
        if not self._lpips:
            self._lpips.append(_load_lpips())
        network = self._lpips[0]
        return None if network is None else network.to(device)


def _load_lpips() -> nn.Module | None:
    """The network of LPIPS, or a warning and none."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    try:
        if not weights.is_file():
            raise OSError(f"{weights} does not exist; to download it: {LPIPS_DOWNLOAD}")
        # Its networks draw random weights before they load theirs; training must not notice.
        with torch.random.fork_rng(devices=[]):
            return LearnedPerceptualImagePatchSimilarity(net_type="vgg", normalize=True)
    except (OSError, RuntimeError, ImportError) as error:
        CONSOLE.log(f"LPIPS is left out: VGG's weights cannot be read ({error}).", markup=False)
        return None


def in_8_bits(picture: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values of a picture as a file of 8 bits a channel holds them."""
    return (picture.clamp(0.0, 1.0) * 255.0).round() / 255.0
