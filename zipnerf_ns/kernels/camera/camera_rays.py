"""Rays through pixels of perspective and fisheye cameras, with lens distortion or without, in one launch each.

The twin is Nerfstudio's own ``Cameras.generate_rays``: some two hundred torch operations, a handful of which wait for
the device. The rays are its rays to float32 rounding, with two exceptions: at the very center of a fisheye it divides
zero by zero, where the kernels give the optical axis; and where no point is found that a lens would move to a pixel,
it gives no numbers, and the kernels the ray as without distortion. Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from zipnerf_ns.kernels.camera.camera_kernel import drawn_rays_kernel, image_rays_kernel, pixel_rays_kernel
from zipnerf_ns.rays import CameraRays

BLOCK = 128
"""Rays a program."""


def camera_rays(cameras: Float[Tensor, "cameras 24"], indices: Int[Tensor, "rays 3"]) -> CameraRays:
    """Rays through pixels.

    Args:
        cameras: as ``cameras.rays.pack`` makes them, on the device to compute on.
        indices: camera, row and column of each pixel.
    """
    rays, programs = _empty_rays(len(indices), cameras.device)
    if programs:
        pixel_rays_kernel[(programs,)](cameras, indices.contiguous(), *rays, len(indices), BLOCK=BLOCK)
    return rays


def image_rays(camera: Float[Tensor, "1 24"], width: int, start: int, end: int) -> CameraRays:
    """Rays through the pixels ``start`` to ``end - 1`` of a picture, counted row by row.

    Args:
        camera: as ``cameras.rays.pack`` makes them, on the device to compute on.
        width: pixels a row.
        start, end: of the range.
    """
    count = max(end - start, 0)
    rays, programs = _empty_rays(count, camera.device)
    if programs:
        image_rays_kernel[(programs,)](camera, *rays, start, width, count, BLOCK=BLOCK)
    return rays


def drawn_rays(
    cameras: Float[Tensor, "cameras 24"],
    drawn: Int[Tensor, "rays"],
    colors: UInt8[Tensor, "pixels channels"],
    starts: Int[Tensor, "cameras"],
    widths: Int[Tensor, "cameras"],
    allowed: Int[Tensor, "_"] | None,
    is_gathered: bool = False,
) -> tuple[Int[Tensor, "rays 3"], Float[Tensor, "rays channels"], CameraRays]:
    """Camera, row and column, color in [0, 1] and ray of pixels drawn from a store (``data.pixels.PixelStore``).

    Args:
        cameras: as ``cameras.rays.pack`` makes them, one an image of the store.
        drawn: numbers of pixels of the store, or of entries of ``allowed``.
        colors, starts, widths, allowed, is_gathered: the store's, on the cameras' device.
    """
    rays, programs = _empty_rays(len(drawn), cameras.device)
    indices = torch.empty(len(drawn), 3, dtype=torch.int64, device=cameras.device)
    image = torch.empty(len(drawn), colors.shape[1], device=cameras.device)
    if programs:
        drawn_rays_kernel[(programs,)](
            cameras, drawn, drawn if allowed is None else allowed, starts, widths, colors, indices, image, *rays,
            len(starts), len(drawn),
            HAS_ALLOWED=allowed is not None, IS_GATHERED=is_gathered, STEPS=(len(starts) - 1).bit_length(),
            CHANNELS=colors.shape[1], BLOCK=BLOCK,
        )  # fmt: skip
    return indices, image, rays


def _empty_rays(count: int, device: torch.device) -> tuple[CameraRays, int]:
    """Where a kernel writes, and how many programs it takes."""
    origins, directions = torch.empty(count, 3, device=device), torch.empty(count, 3, device=device)
    areas, norms = torch.empty(count, 1, device=device), torch.empty(count, 1, device=device)
    return CameraRays(origins, directions, areas, norms), -(-count // BLOCK)
