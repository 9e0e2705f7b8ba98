"""How good Gaussians are, and how fast they are drawn."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipnerf_ns.cameras.held_out import drift, moved_camera
from zipnerf_ns.cameras.lens import through_lens
from zipnerf_ns.data.metadata import mean_metrics
from zipnerf_ns.render.metrics import ImageMetrics
from zipnerf_ns.splats.distill.views import Pinhole, field_picture, photos, pinholes
from zipnerf_ns.splats.gaussians import Gaussians
from zipnerf_ns.splats.rasterizer import Rasterizer

MEASURED_VIEWS = 40
"""Held-out views at the most that are measured."""
WIDTH, HEIGHT = 1920, 1080
"""Size of the pictures whose number a second is counted, pixels."""
FRAMES = 60
"""Pictures that are counted."""


class Quality(NamedTuple):
    """What held-out photos say of Gaussians and of the field that they come from."""

    views: int
    splats: dict[str, float]
    """Means over the views, by the metrics' names."""
    field: dict[str, float]

    def __str__(self) -> str:
        def of(metrics: dict[str, float]) -> str:
            return f"{metrics['psnr']:.2f} dB" + (f", SSIM {metrics['ssim']:.4f}" if "ssim" in metrics else "")

        return f"On {self.views} held-out photos: splats {of(self.splats)}; field {of(self.field)}."


def named(gaussians: Gaussians) -> dict[str, Tensor]:
    """Gaussians by the names that a :class:`~zipnerf_ns.splats.rasterizer.Rasterizer` takes."""
    names = ("means", "quats", "scales", "opacities")
    colors = {"sh0": gaussians.sh[:, :1], "shN": gaussians.sh[:, 1:]}
    return {**{name: getattr(gaussians, name) for name in names}, **colors}


@torch.no_grad()
def measure(pipeline: Any, gaussians: Gaussians, rasterizer: Rasterizer) -> Quality | None:
    """Both measured against the same held-out photos, undistorted; None where there is none.

    Args:
        pipeline: of the field.
        gaussians: on its device.
        rasterizer: draws them.
    """
    manager, model = pipeline.datamanager, pipeline.model.eval()
    dataset, of_training = manager.eval_dataset, manager.train_dataset.cameras
    if not dataset or manager.lacks_photos(dataset):
        return None
    moved = moved_camera(through_lens(model, dataset.cameras), drift(model.corrections, of_training.camera_to_worlds))
    cameras = pinholes(moved, moved.camera_to_worlds)
    every = -(-len(cameras) // MEASURED_VIEWS)
    metrics, background = ImageMetrics(), model.background.detach()
    of_splats, of_field = [], []
    for index, target in enumerate(photos(dataset, cameras, None, model.device, "held-out images")):
        if index % every:
            continue
        truth, used = target.picture(background)
        used = None if used is None else used > 0.5
        drawn = rasterizer.draw(named(gaussians), target.pinhole, gaussians.degree)
        of_splats.append(metrics(drawn.rgb + background * (1.0 - drawn.alpha), truth, used))
        shown = field_picture(model, target.pinhole, with_alpha=False)
        of_field.append(metrics(shown.float() / 255.0, truth, used))
    return Quality(len(of_splats), mean_metrics(of_splats), mean_metrics(of_field))


@torch.no_grad()
def frames_per_second(gaussians: Gaussians, cameras: list[Pinhole], rasterizer: Rasterizer) -> float:
    """Pictures of 1920x1080 a second, one after the other, from cameras whose longer side they have in view.

    Args:
        gaussians: on a GPU.
        cameras: of the training.
        rasterizer: draws them.
    """
    params, device = named(gaussians), gaussians.means.device
    chosen = []
    for index in range(FRAMES):
        camera = cameras[index * len(cameras) // FRAMES]
        gain = WIDTH / max(camera.width, camera.height)
        wide = {"cx": WIDTH / 2, "cy": HEIGHT / 2, "width": WIDTH, "height": HEIGHT}
        chosen.append(dataclasses.replace(camera, fx=gain * camera.fx, fy=gain * camera.fy, **wide).on(device))
    # The first ones set up what the others find.
    for camera in chosen[:5]:
        rasterizer.draw(params, camera, gaussians.degree)
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for camera in chosen:
        rasterizer.draw(params, camera, gaussians.degree)
    torch.cuda.synchronize(device)
    return FRAMES / (time.perf_counter() - begun)
