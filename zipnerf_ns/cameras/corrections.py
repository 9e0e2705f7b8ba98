"""Corrections of the training cameras' poses, learned together with the scene; the parameters are Nerfstudio's.

A correction turns a camera about its own center and shifts it, both along the world's axes. Nerfstudio's
``apply_to_raybundle`` changes the bundle that it is given, fails on a single ray and makes a hundred launches, and its
metrics wait for the device at every step; hence the functions here, in which nothing waits for it.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.camera_optimizers import CameraOptimizer
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.cameras.lens import LensCorrections
from zipnerf_ns.functional.camera_motion import Preconditioner, precondition, rotate, se3_shift

PIXELS_ALONG_A_SIDE = 4
"""Pixels of each row and column of a picture whose motion preconditions its camera; even, so that none is the middle,
where Nerfstudio divides a fisheye's 0 by 0."""


def corrected_bundle(
    bundle: RayBundle, optimizer: CameraOptimizer | None, lens: LensCorrections | None = None
) -> RayBundle:
    """The rays as the corrected cameras see them, with a gradient to the corrections; the bundle is left as it is.

    Args:
        bundle: of any shape, with ``camera_indices``.
        optimizer: holds a correction for each of these cameras; none where cameras are not optimized.
        lens: of these cameras, if that is corrected as well.
    """
    if lens is not None:
        bundle = lens.corrected_bundle(bundle)
    if optimizer is None:
        return bundle
    shape = bundle.origins.shape
    # Half precision has too few digits for directions.
    with torch.autocast(bundle.origins.device.type, enabled=False):
        corrections = optimizer.pose_adjustment.index_select(0, bundle.camera_indices.reshape(-1))
        shifts, turns = corrections.split(3, dim=-1)
        if optimizer.config.mode == "SE3":
            shifts = se3_shift(turns, shifts)
        directions = rotate(turns, bundle.directions.reshape(-1, 3))
    return dataclasses.replace(bundle, origins=bundle.origins + shifts.view(shape), directions=directions.view(shape))


def corrected_poses(
    poses: Float[Tensor, "cameras 3 4"], optimizer: CameraOptimizer | None
) -> Float[Tensor, "cameras 3 4"]:
    """Camera-to-world matrices with the corrections applied, on the optimizer's device; no gradient.

    Args:
        poses: as the data have them, one for each of the optimizer's cameras.
        optimizer: holds the corrections, or none.
    """
    if optimizer is None:
        return poses
    with torch.no_grad():
        corrections = optimizer(torch.arange(len(poses), device=optimizer.pose_adjustment.device))
        poses = poses.to(corrections)
        return torch.cat([corrections[:, :, :3] @ poses[:, :, :3], poses[:, :, 3:] + corrections[:, :, 3:]], dim=-1)


def correction_metrics(optimizer: CameraOptimizer | None) -> dict[str, Tensor]:
    """Mean and largest shift (world units) and turn (degrees) of all cameras, under Nerfstudio's names."""
    if optimizer is None:
        return {}
    shifts, turns = optimizer.pose_adjustment.detach().split(3, dim=-1)
    shift, turn = shifts.norm(dim=-1), torch.rad2deg(turns.norm(dim=-1))
    return {
        "camera_opt_translation_mean": shift.mean(), "camera_opt_translation_max": shift.max(),
        "camera_opt_rotation_mean": turn.mean(), "camera_opt_rotation_max": turn.max(),
    }  # fmt: skip


@torch.no_grad()
def preconditioner(cameras: Cameras) -> Preconditioner:
    """What corrections of these cameras, of shape ``[cameras]``, are learned in; on their device, in float64."""
    numbers = torch.arange(len(cameras), device=cameras.device)
    at = (torch.arange(PIXELS_ALONG_A_SIDE, device=cameras.device) + 0.5) / PIXELS_ALONG_A_SIDE
    shares = torch.cartesian_prod(at, at)
    sizes = torch.cat([cameras.height, cameras.width], dim=-1)
    rays = cameras.generate_rays(
        numbers.repeat_interleave(len(shares))[:, None], (sizes[:, None] * shares).flatten(0, 1)
    )
    return precondition(cameras.camera_to_worlds[:, :, 3], rays.directions.view(len(cameras), len(shares), 3))
