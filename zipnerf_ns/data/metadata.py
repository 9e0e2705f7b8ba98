"""What data say beside their images: hints at the scene for the model, and the scale of each image.

The scale of an image is the side of its pixels in pixels of the full-resolution image: 1, 2, 4, 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.data.transforms import read_transforms, transforms_file
from zipnerf_ns.errors import InputError

SCENE_HINTS = "zipnerf_scene_hints"
"""Key of the dataset's metadata under which :class:`SceneHints` travel."""
SCALES = "zipnerf_scales"
"""Key of a dataset's metadata under which a dataparser leaves the scale of each image."""
CENTER = "zipnerf_center"
"""Key of a dataset's metadata under which a dataparser says which of Nerfstudio's ways of centering it took."""
FRAME_KEY = "downscale"
"""Key of a frame in ``transforms.json`` that says the same of its image."""


@dataclass(frozen=True)
class SceneHints:
    """What the data say about the scene, for the model's "auto" settings."""

    bounded: bool
    """Whether everything lies within the scene box."""
    background: Literal["white", "black"]
    """What shows through where there is nothing."""
    longest_side: int
    """Longest side of a training image, pixels."""
    time_step: float | None = None
    """Time from one moment of the training to the next, where all of it is 1; None where none is said of the photos."""
    cameras_at_once: int = 1
    """Places from which photos show one moment, on average."""


def find_hints(metadata: Mapping[str, Any] | None) -> SceneHints | None:
    """The hints in a dataset's metadata; None with a datamanager that leaves none."""
    return None if metadata is None else metadata.get(SCENE_HINTS)


def find_scales(
    filenames: Sequence[Path], metadata: Mapping[str, Any] | None, data: Path
) -> tuple[int, ...] | None:
    """The scale of each image; None for data that have one scale only.

    Args:
        filenames: images, in the order of the dataset.
        metadata: of the dataset.
        data: the folder or transforms file that was read.
    Raises:
        InputError: if the transforms know scales, but not those of the images that are read, or no whole number.
    """
    if metadata is not None and SCALES in metadata:
        return tuple(metadata[SCALES])
    path = transforms_file(data)
    frames = read_transforms(path, needs_images=False).meta["frames"] if path.is_file() else []
    known = {
        path.parent / frame["file_path"]: _scale_of_frame(frame.get(FRAME_KEY, 1), f"{path}: frame {index}")
        for index, frame in enumerate(frames)
    }
    if set(known.values()) <= {1}:
        return None
    for filename in filenames:
        if Path(filename) not in known:
            raise InputError(
                f"{path} gives its images at several scales, but {filename} is not among them. "
                "Such data are read as they are: give --downscale-factor 1."
            )
    return tuple(known[Path(filename)] for filename in filenames)


def _scale_of_frame(value: Any, where: str) -> int:
    try:
        scale = float(value)
    except (TypeError, ValueError):
        scale = 0.0
    if scale < 1.0 or not scale.is_integer():
        raise InputError(f"{where}: '{FRAME_KEY}' is {value}. It must be a whole number of at least 1, or absent.")
    return int(scale)


def area_weights(scales: Sequence[int], num_pixels: Sequence[int]) -> Float[Tensor, " images"]:
    """Weights of the loss in proportion to a pixel's area, so that every scale of a view counts the same (mip-NeRF,
    section 4.1); their mean over all pixels is 1, so that the loss keeps its size.

    Args:
        scales: of each image.
        num_pixels: of each image.
    """
    areas = torch.tensor(scales, dtype=torch.float64).square()
    pixels = torch.tensor(num_pixels, dtype=torch.float64)
    return (areas * pixels.sum() / (areas * pixels).sum()).float()


def per_image_rows(
    images: Sequence[Path], scales: Sequence[int] | None, per_image: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """The metrics of each image with its name, and with its scale where there are several."""
    return [
        {"image": str(image), **({} if scales is None else {"scale": scales[index]}), **metrics}
        for index, (image, metrics) in enumerate(zip(images, per_image, strict=True))
    ]


def means_by_scale(
    per_image: Sequence[Mapping[str, float]], scales: Sequence[int] | None
) -> dict[int, dict[str, float]]:
    """The mean of every metric over the images of each scale, in ascending order; empty where there is one scale only.

    A metric that some images of a scale lack (small images have no SSIM or LPIPS) is averaged over the others.

    Args:
        per_image: metrics of each image.
        scales: of each image.
    """
    if scales is None or len(set(scales)) < 2:
        return {}
    means: dict[int, dict[str, float]] = {}
    for scale in sorted(set(scales)):
        members = [metrics for metrics, own in zip(per_image, scales, strict=True) if own == scale]
        means[scale] = mean_metrics(members)
    return means


def mean_metrics(per_image: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over the images that have it."""
    names: list[str] = list(dict.fromkeys(name for metrics in per_image for name in metrics))
    columns = {name: [metrics[name] for metrics in per_image if name in metrics] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}
