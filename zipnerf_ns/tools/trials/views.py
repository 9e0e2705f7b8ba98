"""Held-out views of a trained method, rendered and measured alike for every method."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nerfstudio.model_components import renderers

from zipnerf_ns.cameras.held_out import drift, moved_camera
from zipnerf_ns.cameras.lens import through_lens
from zipnerf_ns.render.metrics import ImageMetrics, in_8_bits, psnr
from zipnerf_ns.render.pictures import blend, save_picture
from zipnerf_ns.tools.benchmark.timing import synchronize

LPIPS_VARIANT = "VGG"
"""The backbone of LPIPS, which its figures depend on."""
KEPT_VIEWS = 4
"""Held-out views whose pictures are kept, where there are so many."""


class View(NamedTuple):
    """A held-out view: its photo and what was rendered, both as 8-bit pictures hold them."""

    truth: Tensor
    """The photo ``[height, width, 3]`` in [0, 1], multiples of 1/255."""
    rendering: Tensor
    """The picture, likewise."""
    seconds: float
    """Taken by the rendering."""


@torch.no_grad()
def render_views(pipeline: Any, over_white: bool) -> Iterator[View]:
    """All held-out views, one at a time, in the order of the dataset; the pipeline is training again afterwards.

    Where the method has optimized its training cameras, held-out ones are moved by what those have drifted together.

    Args:
        pipeline: of any of nerfstudio's methods.
        over_white: composite rendering and truth over white; else pictures have no alpha.
    """
    model, white = pipeline.model, torch.ones(3, device=pipeline.model.device)
    cameras = pipeline.datamanager.train_dataset.cameras
    moved = drift(getattr(model, "camera_optimizer", None), cameras.camera_to_worlds)
    # Ray-based methods ask the renderer for what is behind, splatfacto an attribute of its own.
    own: Tensor | None = getattr(model, "background_color", None)
    override = renderers.background_color_override_context(white) if over_white else contextlib.nullcontext()
    pipeline.eval()
    try:
        with override:
            if over_white and isinstance(own, Tensor):
                model.background_color = white
            for camera, batch in pipeline.datamanager.fixed_indices_eval_dataloader:
                synchronize(model.device)
                start = time.perf_counter()
                found = moved_camera(through_lens(model, camera), moved).to(model.device)
                rendering = model.get_outputs_for_camera(found)["rgb"]
                synchronize(model.device)
                seconds = time.perf_counter() - start
                image = batch["image"].to(model.device)
                image = image.float() / 255.0 if image.dtype == torch.uint8 else image
                yield View(in_8_bits(blend(image, white)), in_8_bits(rendering[..., :3].float()), seconds)
    finally:
        if isinstance(own, Tensor):
            model.background_color = own
        pipeline.train()


def mean_psnr(pipeline: Any, over_white: bool) -> float:
    """Mean PSNR of the held-out views in dB."""
    values = [float(psnr(view.rendering, view.truth)) for view in render_views(pipeline, over_white)]
    return sum(values) / len(values)


def measure(pipeline: Any, over_white: bool, folder: Path) -> tuple[list[dict[str, float]], list[int], float]:
    """Every held-out view's metrics, the indices of the views whose pictures are kept, and rays rendered a second.

    Args:
        pipeline: of any of nerfstudio's methods.
        over_white: as in :func:`render_views`.
        folder: where some views are kept, evenly spread.
    """
    count = len(pipeline.datamanager.eval_dataset)
    kept = sorted({int((index + 0.5) * count / KEPT_VIEWS) for index in range(KEPT_VIEWS)})
    metrics, per_image, rays, seconds = ImageMetrics(), [], 0, 0.0
    for index, view in enumerate(render_views(pipeline, over_white)):
        per_image.append(metrics(view.rendering, view.truth))
        rays, seconds = rays + view.truth[..., 0].numel(), seconds + view.seconds
        if index in kept:
            save_view(folder, index, view)
    return per_image, kept, rays / max(seconds, 1e-9)


def save_view(folder: Path, index: int, view: View) -> None:
    """Writes a view's truth and rendering as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("truth", view.truth), ("rendering", view.rendering)):
        save_picture(picture, folder / f"{index:04d}_{name}.png")
