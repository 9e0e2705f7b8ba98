"""Rays through pixels of perspective and fisheye cameras, with lens distortion or without, in one launch each.

The twin is Nerfstudio's own ``Cameras.generate_rays``: some two hundred torch operations, a handful of which wait for
the device. The rays are its rays to float32 rounding, with one exception: at the very centre of a fisheye it divides
zero by zero, where the kernels give the optical axis. Nothing here has a gradient.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple, Optional

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

CAMERA_FIELDS = 24
"""Numbers of a packed camera: the pose's 12, fx, fy, cx, cy, k1 k2 k3 k4 p1 p2, 1 for a fisheye, one unused."""
BLOCK = 128
"""Rays a program."""


class CameraRays(NamedTuple):
    """Rays through pixels' centres, in the world's frame."""

    origins: Float[Tensor, "rays 3"]
    directions: Float[Tensor, "rays 3"]
    """Of unit length."""
    pixel_area: Float[Tensor, "rays 1"]
    """Product of the distances to the directions one pixel further right and down."""
    directions_norm: Float[Tensor, "rays 1"]
    """Length of the direction whose component along the optical axis is 1 (perspective)."""


@lru_cache(maxsize=1)
def _kernels() -> ModuleType:
    """The part that needs triton, imported when first used: configurations must load without it, and quickly."""
    return importlib.import_module("zipnerf_ns.kernels.camera.camera_kernel")


def pack_cameras(
    camera_to_worlds: Float[Tensor, "cameras 3 4"],
    focal: Float[Tensor, "cameras 2"],
    centre: Float[Tensor, "cameras 2"],
    distortion: Optional[Float[Tensor, "cameras 6"]],
    is_fisheye: Bool[Tensor, "cameras"],
) -> Float[Tensor, "cameras 24"]:
    """The cameras as the kernels read them.

    Args:
        camera_to_worlds: poses, OpenGL axes.
        focal: fx and fy in pixels.
        centre: cx and cy, the principal point in pixels.
        distortion: k1 k2 k3 k4 p1 p2 (OpenCV); None for no distortion.
        is_fisheye: equidistant projection; perspective otherwise.
    """
    packed = torch.zeros(len(camera_to_worlds), CAMERA_FIELDS, device=camera_to_worlds.device)
    packed[:, :12] = camera_to_worlds.flatten(1)
    packed[:, 12:14], packed[:, 14:16] = focal, centre
    if distortion is not None:
        packed[:, 16:22] = distortion
    packed[:, 22] = is_fisheye.float()
    return packed


def camera_rays(cameras: Float[Tensor, "cameras 24"], indices: Int[Tensor, "rays 3"]) -> CameraRays:
    """Rays through pixels.

    Args:
        cameras: of :func:`pack_cameras`, on the device to compute on.
        indices: camera, row and column of each pixel.
    """
    rays, programs = _empty_rays(len(indices), cameras.device)
    if programs:
        _kernels().pixel_rays_kernel[(programs,)](cameras, indices.contiguous(), *rays, len(indices), BLOCK=BLOCK)
    return rays


def image_rays(camera: Float[Tensor, "1 24"], width: int, start: int, end: int) -> CameraRays:
    """Rays through the pixels ``start`` to ``end - 1`` of a picture, counted row by row.

    Args:
        camera: of :func:`pack_cameras`, on the device to compute on.
        width: pixels a row.
        start, end: of the range.
    """
    count = max(end - start, 0)
    rays, programs = _empty_rays(count, camera.device)
    if programs:
        _kernels().image_rays_kernel[(programs,)](camera, *rays, start, width, count, BLOCK=BLOCK)
    return rays


def drawn_rays(
    cameras: Float[Tensor, "cameras 24"],
    drawn: Int[Tensor, "rays"],
    colors: UInt8[Tensor, "pixels channels"],
    starts: Int[Tensor, "cameras"],
    widths: Int[Tensor, "cameras"],
    allowed: Optional[Int[Tensor, "_"]],
) -> tuple[Int[Tensor, "rays 3"], Float[Tensor, "rays channels"], CameraRays]:
    """Camera, row and column, colour in [0, 1] and ray of pixels drawn from a store (``pixel_store.PixelStore``).

    Args:
        cameras: of :func:`pack_cameras`, one an image of the store.
        drawn: numbers of pixels of the store, or of entries of ``allowed``.
        colors, starts, widths, allowed: the store's, on the cameras' device.
    """
    rays, programs = _empty_rays(len(drawn), cameras.device)
    indices = torch.empty(len(drawn), 3, dtype=torch.int64, device=cameras.device)
    image = torch.empty(len(drawn), colors.shape[1], device=cameras.device)
    if programs:
        _kernels().drawn_rays_kernel[(programs,)](
            cameras, drawn, drawn if allowed is None else allowed, starts, widths, colors, indices, image, *rays,
            len(starts), len(drawn),
            HAS_ALLOWED=allowed is not None, STEPS=(len(starts) - 1).bit_length(), CHANNELS=colors.shape[1],
            BLOCK=BLOCK,
        )  # fmt: skip
    return indices, image, rays


def _empty_rays(count: int, device: torch.device) -> tuple[CameraRays, int]:
    """Where a kernel writes, and how many programs it takes."""
    origins, directions = torch.empty(count, 3, device=device), torch.empty(count, 3, device=device)
    areas, norms = torch.empty(count, 1, device=device), torch.empty(count, 1, device=device)
    return CameraRays(origins, directions, areas, norms), -(-count // BLOCK)
