"""Pictures: alpha over backgrounds and out again, and what a person looks at during evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from nerfstudio.utils import colormaps

ERROR_GAIN = 4.0
"""Errors are shown this many times larger: a quarter of the full range is already the brightest color."""
SOLID = 0.5
"""A ray with less opacity than this passes through more than it meets: where half of it is reached means nothing."""
BEHIND_ALL = 2.0
"""Depth of such rays, in farthest depths of the picture's solid ones: fusion of depths then finds free space there, and
no wall just behind what is seen."""
FAR_QUANTILE = 0.95
"""Share of the solid depths that the colors resolve; the sky would swallow the whole range."""
DISTANCES = re.compile(r"depth|expected_depth|prop_depth_\d+")
"""Names of the outputs that are distances along the rays: the rendered round's median and mean, proposals' medians."""


def blend(image: Float[Tensor, "*batch channels"], background: Float[Tensor, "..."]) -> Float[Tensor, "*batch 3"]:
    """Straight-alpha RGBA over a background; RGB stays as it is."""
    if image.shape[-1] < 4:
        return image
    alpha = image[..., 3:]
    return image[..., :3] * alpha + background * (1.0 - alpha)


def area_mean(picture: Float[Tensor, "height width channels"], times: int) -> Float[Tensor, "rows columns channels"]:
    """A picture with so many times fewer rows and columns; those that do not fill the last are left out."""
    if times == 1:
        return picture
    return avg_pool2d(picture.permute(2, 0, 1)[None], times)[0].permute(1, 2, 0)


def straight_alpha(
    rgb: Float[Tensor, "*batch 3"], alpha: Float[Tensor, "*batch 1"], background: Float[Tensor, "..."]
) -> Float[Tensor, "*batch 4"]:
    """The inverse of :func:`blend`: takes a known background out of a rendered picture."""
    color = (rgb - background * (1.0 - alpha)) / alpha.clamp_min(1e-10)
    return torch.cat([color.clamp(0.0, 1.0), alpha], dim=-1)


def to_bytes(picture: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """The values of a picture, clipped to [0, 1], as files of 8 bits a channel hold them."""
    return (picture.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def save_picture(picture: Float[Tensor, "height width channels"], path: Path) -> None:
    """Writes a picture of one channel, of three or of four as PNG."""
    pixels = to_bytes(picture).cpu().numpy()
    Image.fromarray(pixels.repeat(3, axis=-1) if pixels.shape[-1] == 1 else pixels).save(path)


def depths_of_nothing(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A picture's outputs with one depth for all rays that meet nothing, behind all that others meet.

    Their own would be anything between the ends of the ray, up to 1e6: it takes all colors of a depth picture, for its
    opacity hides it only afterwards, and ``ns-export tsdf`` takes it for a surface. Solid rays keep their depths.

    Args:
        outputs: ``[..., channels]``; of one picture, for what is behind all is a matter of the whole.
    """
    is_solid = outputs["accumulation"] >= SOLID
    settled = dict(outputs)
    for name in filter(DISTANCES.fullmatch, outputs):
        farthest = torch.where(is_solid, outputs[name], 0.0).max()
        # A picture of nothing at all is left as it is.
        is_nothing = ~is_solid & (farthest > 0.0)
        settled[name] = torch.where(is_nothing, BEHIND_ALL * farthest, outputs[name])
    return settled


def evaluation_pictures(
    outputs: dict[str, Tensor],
    truth: Float[Tensor, "height width 3"],
    mask: Bool[Tensor, "height width 1"] | None = None,
) -> dict[str, Float[Tensor, "height _ 3"]]:
    """Truth beside rendering, the error (none where a mask is false), the opacity, the distances of every round."""
    rgb = outputs["rgb"].clamp(0.0, 1.0)
    error = (rgb - truth).abs().mean(dim=-1, keepdim=True)
    if mask is not None:
        error = error * mask
    pictures = {
        "img": torch.cat([truth, rgb], dim=1),
        "error": colormaps.apply_float_colormap((error * ERROR_GAIN).clamp(0.0, 1.0), "inferno"),
        "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
    }
    # Distances through the background are arbitrary, and up to the far plane.
    is_solid = outputs["accumulation"] >= SOLID
    medians = [name for name in outputs if DISTANCES.fullmatch(name) and name != "expected_depth"]
    for name in medians:
        solid = outputs[name][is_solid] if is_solid.any() else outputs[name].flatten()
        # torch.quantile takes 2^24 numbers at the most.
        solid = solid[:: max(1, len(solid) >> 22)]
        near, far = torch.quantile(solid, torch.tensor([0.0, FAR_QUANTILE], device=solid.device)).tolist()
        pictures[name] = colormaps.apply_depth_colormap(
            outputs[name].clamp(near, far), accumulation=outputs["accumulation"], near_plane=near, far_plane=far
        )
    return pictures
