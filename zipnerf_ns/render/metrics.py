"""Image quality: PSNR, SSIM, and LPIPS where its weights can be had."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Dict, Optional

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from nerfstudio.utils.rich_utils import CONSOLE

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
"""File of AlexNet's weights in torch hub's cache."""
LPIPS_HOST = "download.pytorch.org"
"""Where torchvision gets them from if they are not in the cache."""
LOOKUP_SECONDS = 3.0
"""A machine without a network can take half a minute to say so; evaluation does not wait for that."""


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of values in [0, 1]."""
    return -10.0 * torch.log10((prediction - truth).square().mean().clamp_min(1e-12))


class ImageMetrics(nn.Module):
    """Metrics of whole pictures. LPIPS (AlexNet) is built at its first use, for it downloads weights.

    Where they cannot be had the key is absent, for every image alike, and one warning says so.
    """

    def __init__(self) -> None:
        super().__init__()
        # Hidden in a list so that the network is neither trained nor saved nor moved with the model.
        self._lpips: list = []
        self._lpips_absent = False

    @torch.no_grad()
    def forward(self, rgb: Tensor, truth: Tensor, mask: Optional[Tensor] = None) -> Dict[str, float]:
        """Metrics of one picture, of what a mask leaves where there is one.

        PSNR is that of the used pixels alone. The other two look at neighbourhoods: the ignored pixels are first
        replaced by the truth in both pictures, so that nothing within the mask is an error. SSIM is then the mean over
        the windows around used pixels, LPIPS the mean over the whole picture: the more is ignored, the lower it is.

        Args:
            rgb, truth: ``[height, width, 3]`` in [0, 1].
            mask: ``[height, width, 1]``, true where a pixel counts; all if not given.
        Returns:
            Each metric that the picture is large enough for; none at all where the mask leaves no pixel.
        """
        if mask is not None:
            if not mask.any():
                return {}
            rgb = torch.where(mask, rgb, truth)
        prediction, target = (image.permute(2, 0, 1)[None] for image in (rgb, truth))
        used = slice(None) if mask is None else mask[..., 0]
        values = {"psnr": float(psnr(rgb[used], truth[used]))}
        # The window of 11 pixels does not fit into smaller pictures.
        if min(rgb.shape[:2]) >= 11:
            values["ssim"] = _ssim(prediction, target, mask)
        # AlexNet's strides leave nothing of smaller pictures.
        network = self._get_lpips(rgb.device) if min(rgb.shape[:2]) >= 31 else None
        if network is not None:
            values["lpips"] = float(network(prediction.clamp(0.0, 1.0), target.clamp(0.0, 1.0)))
        return values

    def _get_lpips(self, device: torch.device) -> Optional[nn.Module]:
        if self._lpips_absent:
            return None
        if not self._lpips:
            try:
                if not _weights_within_reach():
                    raise OSError("no network")
                # Its networks draw random weights before they load theirs; training must not notice.
                with torch.random.fork_rng(devices=[]):
                    self._lpips.append(LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True))
            except (OSError, RuntimeError, ImportError) as error:
                self._lpips_absent = True
                CONSOLE.log(f"LPIPS is left out: AlexNet's weights are not here and cannot be downloaded ({error}).")
                return None
        return self._lpips[0].to(device)


def _ssim(prediction: Tensor, target: Tensor, mask: Optional[Tensor]) -> float:
    """SSIM of pictures ``[1, 3, height, width]``: the mean over all windows, or over those around used pixels."""
    if mask is None:
        return float(structural_similarity_index_measure(prediction, target, data_range=1.0))
    _, windows = structural_similarity_index_measure(prediction, target, data_range=1.0, return_full_image=True)
    return float(windows[0].permute(1, 2, 0)[mask[..., 0]].mean())


def _weights_within_reach() -> bool:
    """Whether LPIPS's backbone is in torch hub's cache, or its host's name can be looked up in a few seconds."""
    if (Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE).is_file():
        return True
    found = threading.Event()

    def look_up() -> None:
        try:
            socket.getaddrinfo(LPIPS_HOST, 443)
            found.set()
        except OSError:
            pass

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(LOOKUP_SECONDS)
    return found.is_set()
