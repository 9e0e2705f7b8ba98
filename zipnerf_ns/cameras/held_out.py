"""Where held-out cameras stand in a world that was learned with optimized cameras.

Optimized cameras and their scene may have drifted together, and a held-out photo's own pose is as wrong as the training
poses were. The first is undone for every evaluation and looks at no held-out photo; the second is found on the photo
itself, as BARF (ICCV 2021) and NeRF-- (2021) do, and only where that is asked for. All this is for scores: the viewer
and ``ns-render`` look from the poses that they are given.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.cameras.corrections import corrected_bundle, corrected_poses
from zipnerf_ns.cameras.rays import PixelRays
from zipnerf_ns.functional.similarity import Similarity, align_cameras, angle, move_cameras, move_rays, pose_errors

PHOTO_RAYS = 2048
"""Pixels of a photo that a step of refinement looks at."""
PHOTO_LR = 1e-3
"""Adam's first step on a held-out pose, radians and world units; it falls to zero along half a cosine."""


class Refined(NamedTuple):
    """A held-out camera after its photo was looked at."""

    camera: Cameras
    degrees: float
    """Angle by which it was turned."""
    distance: float
    """Length by which it was shifted, world units."""


def drift(optimizer: CameraOptimizer | None, train_poses: Float[Tensor, "cameras 3 4"]) -> Similarity | None:
    """The similarity by which the optimized training cameras have drifted; None where cameras are not optimized.

    Args:
        optimizer: holds the cameras' corrections, or none; other methods have one that is off.
        train_poses: of the training cameras, as the data have them.
    """
    if optimizer is None or optimizer.config.mode == "off":
        return None
    return align_cameras(train_poses, corrected_poses(train_poses, optimizer).to(train_poses.device))


def moved_camera(camera: Cameras, similarity: Similarity | None) -> Cameras:
    """A copy of cameras, moved by a similarity; the cameras themselves where there is none."""
    if similarity is None:
        return camera
    poses = camera.camera_to_worlds
    return _at(camera, move_cameras(similarity, poses.reshape(-1, 3, 4)).view(poses.shape))


def moved_bundle(bundle: RayBundle, similarity: Similarity | None) -> RayBundle:
    """A copy of rays, moved by a similarity; the rays themselves where there is none."""
    if similarity is None:
        return bundle
    moved = copy.copy(bundle)
    moved.origins, moved.directions = move_rays(similarity, bundle.origins, bundle.directions)
    return moved


def refine(model: nn.Module, camera: Cameras, batch: dict[str, Any], steps: int) -> Refined:
    """The camera whose picture is most like a photo, by gradient steps on its pose alone.

    Training is not disturbed: the model's parameters get no gradient, and the pixels are drawn from a generator of
    their own.

    Args:
        model: in evaluation mode.
        camera: one camera, where the photo is thought to have been taken.
        batch: ``image`` [height, width, 3 or 4] of the photo, and where part of it is ignored ``mask``
            [height, width, 1], true where used. A photo of which nothing is used moves nothing.
        steps: of Adam.
    """
    poses = camera.camera_to_worlds.reshape(1, 3, 4)
    image = batch["image"]
    rays = PixelRays(camera.reshape((1,)), model.device, model.config.implementation)
    mode = model.config.camera_optimizer.mode
    config = CameraOptimizerConfig(mode="SO3xR3" if mode == "off" else mode)
    correction = config.setup(num_cameras=1, device=model.device)
    adam = torch.optim.Adam(correction.parameters(), lr=PHOTO_LR, eps=1e-15)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    generator = torch.Generator().manual_seed(0)
    width = image.shape[1]
    used = batch["mask"].flatten().nonzero()[:, 0].cpu() if "mask" in batch else torch.arange(image.shape[0] * width)
    if len(used) == 0:
        return Refined(camera, 0.0, 0.0)
    with _frozen(model), torch.enable_grad():
        for _ in range(steps):
            drawn = used[torch.randint(len(used), (PHOTO_RAYS,), generator=generator)]
            rows, columns = drawn // width, drawn % width
            bundle = rays(torch.stack([torch.zeros_like(rows), rows, columns], dim=-1))
            outputs = model(corrected_bundle(bundle, correction))
            pixels = image[rows.to(image.device), columns.to(image.device)]
            loss = model.get_loss_dict(outputs, {"image": pixels})["rgb_loss"]
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    refined = corrected_poses(poses, correction).to(poses)
    degrees, distance = pose_errors(refined, poses)
    return Refined(_at(camera, refined.view(camera.camera_to_worlds.shape)), float(degrees), float(distance))


def describe(similarity: Similarity | None, steps: int) -> str | None:
    """What is done to held-out cameras before they are scored, as a sentence; None if nothing."""
    parts = []
    if similarity is not None:
        shift = float(similarity.translation.norm())
        parts.append(
            f"moved with the optimized training cameras (scale {float(similarity.scale):.4f}, turn "
            f"{float(angle(similarity.rotation)):.3f} degrees, shift {shift:.4f})"
        )
    if steps > 0:
        parts.append(f"refined in {steps} steps on the very photos that they are scored on")
    return f"Held-out cameras were {' and then '.join(parts)}." if parts else None


def _at(camera: Cameras, poses: Tensor) -> Cameras:
    """A copy of cameras at other poses."""
    moved = copy.copy(camera)
    moved.camera_to_worlds = poses
    return moved


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter of the model requires a gradient."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
