"""Held-out views of a trained method, rendered and measured alike for every method."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from nerfstudio.model_components import renderers

from zipnerf_ns.cameras.held_out import drift, moved_camera
from zipnerf_ns.render.metrics import ImageMetrics, psnr
from zipnerf_ns.render.pictures import blend
from zipnerf_ns.tools.benchmark.timing import synchronize

LPIPS_VARIANT = "VGG"
"""The backbone of LPIPS, which its figures depend on."""


@dataclass
class View:
    """A held-out view: what is there and what was rendered, both as 8-bit pictures hold them."""

    truth: Tensor
    """``[height, width, 3]`` in [0, 1], multiples of 1/255."""
    rendering: Tensor
    """Likewise."""
    seconds: float
    """Taken by the rendering."""


class AbsentLpips(nn.Module):
    """Stands in for the LPIPS that other methods build into their models, which would download weights for it."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


@contextlib.contextmanager
def without_own_lpips() -> Iterator[None]:
    """Other methods' models are built without a measure of their own; ours is used for all."""
    from torchmetrics.image import lpip

    kept = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = AbsentLpips
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = kept


def quantize(picture: Tensor) -> Tensor:
    """Colors as an 8-bit picture holds them."""
    return (picture.float().clamp(0.0, 1.0) * 255.0).round() / 255.0


@torch.no_grad()
def render_views(pipeline: Any, over_white: bool) -> Iterator[View]:
    """All held-out views, one at a time, in the order of the dataset; the pipeline is training again afterwards.

    Where the method has optimized its training cameras, held-out ones are moved by what those have drifted together.

    Args:
        pipeline: of any of nerfstudio's methods.
        over_white: composite rendering and truth over white; else pictures have no alpha.
    """
    model = pipeline.model
    device = model.device
    white = torch.ones(3, device=device)
    pipeline.eval()
    cameras = pipeline.datamanager.train_dataset.cameras
    moved = drift(getattr(model, "camera_optimizer", None), cameras.camera_to_worlds)
    try:
        with _white_background(model, white) if over_white else contextlib.nullcontext():
            for camera, batch in pipeline.datamanager.fixed_indices_eval_dataloader:
                synchronize(device)
                start = time.perf_counter()
                rendering = model.get_outputs_for_camera(moved_camera(camera, moved).to(device))["rgb"]
                synchronize(device)
                seconds = time.perf_counter() - start
                image = batch["image"].to(device)
                image = image.float() / 255.0 if image.dtype == torch.uint8 else image
                yield View(quantize(blend(image, white)), quantize(rendering[..., :3]), seconds)
    finally:
        pipeline.train()


@contextlib.contextmanager
def _white_background(model: Any, white: Tensor) -> Iterator[None]:
    """White behind what the method renders: ray-based ones ask the renderer, splatfacto its own attribute."""
    own: Tensor | None = getattr(model, "background_color", None)
    if isinstance(own, Tensor):
        model.background_color = white
    try:
        with renderers.background_color_override_context(white):
            yield
    finally:
        if isinstance(own, Tensor):
            model.background_color = own


def mean_psnr(pipeline: Any, over_white: bool) -> float:
    """Mean PSNR of the held-out views in dB."""
    values = [float(psnr(view.rendering, view.truth)) for view in render_views(pipeline, over_white)]
    return sum(values) / len(values)


def measure(
    pipeline: Any, over_white: bool, keep: Callable[[int, View], None] = lambda index, view: None
) -> tuple[list[dict[str, float]], float]:
    """Every held-out view's metrics, and the rays a second of rendering them.

    Args:
        pipeline: of any of nerfstudio's methods.
        over_white: as in :func:`render_views`.
        keep: is given every view and its index.
    """
    metrics, per_image, rays, seconds = ImageMetrics(), [], 0, 0.0
    for index, view in enumerate(render_views(pipeline, over_white)):
        per_image.append(metrics(view.rendering, view.truth))
        rays, seconds = rays + view.truth.shape[0] * view.truth.shape[1], seconds + view.seconds
        keep(index, view)
    return per_image, rays / max(seconds, 1e-9)


def save_view(folder: Path, index: int, view: View) -> None:
    """Writes a view's truth and rendering as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("truth", view.truth), ("rendering", view.rendering)):
        pixels = (picture * 255.0).round().to(torch.uint8).cpu().numpy()
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index:04d}_{name}.png")


def spread(count: int, number: int) -> Sequence[int]:
    """At most ``number`` indices of ``count``, evenly spread."""
    number = min(count, number)
    return sorted({int((index + 0.5) * count / number) for index in range(number)}) if number else []
