"""What differs between photos of one scene, learned with it: exposure and white balance."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

SRGB_OFFSET = 0.055
"""sRGB's color plus this is, but for near black, a power of linear light: there a gain of light is a gain again."""


class Appearance(nn.Module):
    """A gain of each channel for each training image.

    The geometric mean of each channel's gains over the images is 1, whatever is learned: the scene's own colors are
    those in the mean light of its photos. Every image starts in that light.

    Args:
        num_images: training images.
    """

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.log_gains = nn.Parameter(torch.zeros(num_images, 3))

    def departures(self) -> Float[Tensor, "images 3"]:
        """Logarithms of the gains: how far each image's light is from the mean."""
        return self.log_gains - self.log_gains.mean(dim=0)

    def gains(self) -> Float[Tensor, "images 3"]:
        """Factors on red, green and blue of each image, counted from ``-SRGB_OFFSET``."""
        return torch.exp(self.departures())

    def forward(
        self, colors: Float[Tensor, "rays n 3"], images: Int[Tensor, "rays 1"] | int
    ) -> Float[Tensor, "rays n 3"]:
        """Colors as photos show them.

        Args:
            colors: of intervals, in the mean light.
            images: number of each ray's training image, or of one for all rays.
        """
        gains = self.gains()
        # Its gradient is summed by atomic additions; that of an index in brackets sorts the rays first.
        own = gains[images] if isinstance(images, int) else gains.index_select(0, images.flatten())[:, None]
        return torch.addcmul(SRGB_OFFSET * (own - 1.0), own, colors)


def clipped(prediction: Float[Tensor, "rays 3"]) -> Float[Tensor, "rays 3"]:
    """Colors clipped as a photo stores them, with a gradient as if they were not.

    Beyond white no photo says how much, so what is white in both has no error; what is white in the prediction only
    must still come down.
    """
    return prediction + (prediction.clamp(0.0, 1.0) - prediction).detach()
