"""Rays of batches of pixels and of whole pictures: by a kernel where it can run, else by Nerfstudio's generator."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.ray_generators import RayGenerator
from nerfstudio.utils.math import intersect_obb

from zipnerf_ns.errors import say_once
from zipnerf_ns.functional.frustum import cone_radius
from zipnerf_ns.ops import Ops, resolve_ops
from zipnerf_ns.rays import CameraRays, Rays

CAMERA_FIELDS = 24
"""Numbers of a packed camera; see :func:`pack`."""

KERNEL_TYPES = (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value)
"""Types of camera whose rays the kernels generate; all rays of these two begin at the camera's center."""

NO_PIXEL = 1.0
"""Area from which on it is no pixel's: Nerfstudio's programs write ones where they know none."""

OFF_CENTER = 1e-3
"""Pixels by which a principal point is moved off a pixel's center."""


@runtime_checkable
class Pixels(Protocol):
    """What rays are drawn for: a :class:`~zipnerf_ns.data.pixels.PixelStore`, which describes the attributes."""

    colors: Tensor
    offsets: Tensor
    widths: Tensor
    allowed: Tensor | None
    is_gathered: bool

    def draw(self, num_rays: int) -> Tensor:
        """Numbers of pixels, or of entries of ``allowed`` where there is one."""

    def sample(self, num_rays: int) -> dict[str, Tensor]:
        """``image`` and ``indices`` of pixels drawn uniformly."""


class PixelRays(nn.Module):
    """Rays of pixels, which are named by camera, row and column, or drawn from a store.

    Args:
        cameras: of shape ``[cameras]``.
        device: where rays are generated.
        implementation: "triton", "torch" (Nerfstudio's generator) or "auto"; cameras of other types than perspective
            and fisheye get Nerfstudio's in any case.
    Raises:
        ValueError: for a name that is not an implementation.
        RuntimeError: if implementation is "triton" and that cannot run on the device.
    """

    def __init__(self, cameras: Cameras, device: torch.device | str, implementation: str = "auto") -> None:
        super().__init__()
        self.device = torch.device(device)
        self._cameras = cameras.to(self.device)
        self._packed: Tensor | None = None
        self._generator: RayGenerator | None = None
        self._ops = resolve_ops(implementation, self.device)
        if uses_kernel(cameras, self._ops):
            self._packed = pack(cameras).to(self.device)
        else:
            self._generator = RayGenerator(off_center(self._cameras)).to(self.device)

    def forward(self, indices: Int[Tensor, "rays 3"]) -> RayBundle:
        """The rays of pixels given by camera, row and column."""
        indices = indices.to(self.device)
        if self._packed is None:
            return self._generator(indices)
        return to_bundle(self._ops.cameras.camera_rays(self._packed, indices), self._cameras, indices[:, :1])

    def is_one_launch(self, pixels: Pixels) -> bool:
        """Whether :meth:`sample` is one kernel, and waits for nothing."""
        return self._packed is not None and pixels.colors.device.type == self.device.type

    def sample(self, pixels: Pixels, num_rays: int) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays and ``image`` [rays, 3 or 4] in [0, 1] and ``indices`` [rays, 3] of pixels drawn uniformly.

        The cameras are those of the store's images. Where the store lies with the kernel, one launch does it all.
        """
        if not self.is_one_launch(pixels):
            batch = {key: _send(value, self.device) for key, value in pixels.sample(num_rays).items()}
            return self(batch["indices"]), batch
        indices, image, rays = self._ops.cameras.drawn_rays(
            self._packed, pixels.draw(num_rays), pixels.colors, pixels.offsets, pixels.widths, pixels.allowed,
            pixels.is_gathered,
        )  # fmt: skip
        return to_bundle(rays, self._cameras, indices[:, :1]), {"image": image, "indices": indices}


class ImageRays:
    """The rays of one picture, generated range by range: nothing of the picture's size is ever held.

    (The rays of other camera types than perspective and fisheye are, for Nerfstudio generates those all at once.)

    Args:
        camera: one camera, of shape ``[1]`` or ``[]``, on any device.
        device: where rays are generated; the camera's if not given.
        obb_box: a crop; the rays' nears and fars are then where they enter and leave it, both 1e10 if they miss it.
        implementation: as for :class:`PixelRays`.
        side: of the squares in which pixels are counted, row by row as the squares themselves; beyond the picture's
            edges they have its nearest pixels again.
    Raises:
        ValueError: for more cameras than one, or a name that is not an implementation.
        RuntimeError: if implementation is "triton" and that cannot run on the device.
    """

    def __init__(
        self,
        camera: Cameras,
        device: torch.device | str | None = None,
        obb_box: OrientedBox | None = None,
        implementation: str = "auto",
        side: int = 1,
    ) -> None:
        if camera.size != 1:
            raise ValueError(f"a picture has one camera, got {camera.size}.")
        self.device = torch.device(camera.device if device is None else device)
        self.height, self.width = int(camera.height), int(camera.width)
        self.side = side
        self._obb_box = obb_box
        flat = camera.reshape((1,))
        self._packed: Tensor | None = None
        self._ops = resolve_ops(implementation, self.device)
        if uses_kernel(flat, self._ops):
            self._packed = pack(flat).to(self.device)
        self._camera = off_center(flat.to(self.device))

    def __len__(self) -> int:
        down, across = self._squares
        return down * across * self.side**2

    @property
    def _squares(self) -> tuple[int, int]:
        """Squares down and across."""
        return -(-self.height // self.side), -(-self.width // self.side)

    def picture(self, values: Float[Tensor, "pixels channels"]) -> Float[Tensor, "height width channels"]:
        """What was found of all pixels, in rows and columns."""
        squares = values.view(*self._squares, self.side, self.side, -1)
        return squares.transpose(1, 2).flatten(0, 1).flatten(1, 2)[: self.height, : self.width]

    def _pixels(self, start: int, end: int) -> tuple[Int[Tensor, "pixels"], Int[Tensor, "pixels"]]:
        """Rows and columns of pixels."""
        numbers = torch.arange(start, end, device=self.device)
        square, place = numbers // self.side**2, numbers % self.side**2
        across = self._squares[1]
        rows = square // across * self.side + place // self.side
        columns = square % across * self.side + place % self.side
        return rows.clamp(max=self.height - 1), columns.clamp(max=self.width - 1)

    def bundle(self, start: int = 0, end: int | None = None) -> RayBundle:
        """The flat bundle of pixels ``start`` to ``end - 1``, counted row by row; camera indices are 0."""
        end = len(self) if end is None else min(end, len(self))
        start = min(max(start, 0), end)
        if self._packed is not None:
            indices = torch.zeros(end - start, 1, dtype=torch.int64, device=self.device)
            if self.side == 1:
                rays = self._ops.cameras.image_rays(self._packed, self.width, start, end)
            else:
                pixels = torch.stack([indices[:, 0], *self._pixels(start, end)], dim=-1)
                rays = self._ops.cameras.camera_rays(self._packed, pixels)
            bundle = to_bundle(rays, self._camera, indices)
        else:
            bundle = self._generated(start, end)
        if self._obb_box is not None:
            nears, fars = intersect_obb(bundle.origins, bundle.directions, self._obb_box)
            bundle.nears, bundle.fars = nears.reshape(-1, 1), fars.reshape(-1, 1)
        return bundle

    def _generated(self, start: int, end: int) -> RayBundle:
        """The rays of a range of pixels, by Nerfstudio's generator."""
        rows, columns = self._pixels(start, end)
        if not _has_kernel_types(self._camera):
            return self._whole[rows * self.width + columns]
        coords = torch.stack([rows, columns], dim=-1) + 0.5
        return self._camera.generate_rays(torch.zeros_like(rows)[:, None], coords)

    @cached_property
    def _whole(self) -> RayBundle:
        """Some of Nerfstudio's generators work on whole pictures only."""
        return self._camera.generate_rays(camera_indices=0, keep_shape=True).flatten()


def uses_kernel(cameras: Cameras, ops: Ops) -> bool:
    """Whether an implementation's kernel generates the rays of such cameras; that it knows others only is said once."""
    if ops.cameras is None:
        return False
    is_known = _has_kernel_types(cameras)
    if not is_known:
        say_once("Nerfstudio generates the rays, more slowly: the kernels know perspective and fisheye cameras only.")
    return is_known


def _has_kernel_types(cameras: Cameras) -> bool:
    return bool(torch.isin(cameras.camera_type, cameras.camera_type.new_tensor(KERNEL_TYPES)).all())


def off_center(cameras: Cameras) -> Cameras:
    """Cameras for Nerfstudio's generator, which divides 0 by 0 for a ray along a fisheye's axis.

    Where a fisheye's principal point is a pixel's center, as in the middle of pictures of odd width and height, it is
    moved by a thousandth of a pixel; all else stays.
    """
    is_fisheye = cameras.camera_type == CameraType.FISHEYE.value
    at_center = [(value - value.floor() - 0.5).abs() < OFF_CENTER for value in (cameras.cx, cameras.cy)]
    moved = is_fisheye & at_center[0] & at_center[1]
    if not moved.any():
        return cameras
    return dataclasses.replace(cameras, cx=torch.where(moved, cameras.cx + OFF_CENTER, cameras.cx))


def pack(cameras: Cameras) -> Float[Tensor, "cameras 24"]:
    """Cameras of shape ``[cameras]`` as the kernels read them, on the cameras' device.

    The pose's 12 numbers (OpenGL axes), fx, fy, cx, cy in pixels, k1 k2 k3 k4 p1 p2 (OpenCV; zeros for no distortion),
    1 for a fisheye's equidistant projection and 0 for perspective, and one that is unused.
    """
    packed = torch.zeros(len(cameras), CAMERA_FIELDS, device=cameras.device)
    packed[:, :12] = cameras.camera_to_worlds.flatten(1)
    packed[:, 12:16] = torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy], dim=-1)
    if cameras.distortion_params is not None:
        packed[:, 16:22] = cameras.distortion_params
    packed[:, 22] = (cameras.camera_type[:, 0] == CameraType.FISHEYE.value).float()
    return packed


def to_bundle(rays: CameraRays, cameras: Cameras, camera_indices: Int[Tensor, "rays 1"]) -> RayBundle:
    """Nerfstudio's form of the rays, with the cameras' times and metadata."""
    number = camera_indices[:, 0]
    metadata: dict[str, Any] = {
        key: value[number] if isinstance(value, Tensor) else value for key, value in (cameras.metadata or {}).items()
    }
    return RayBundle(
        origins=rays.origins,
        directions=rays.directions,
        pixel_area=rays.pixel_area,
        camera_indices=camera_indices,
        times=None if cameras.times is None else cameras.times[number],
        metadata={**metadata, "directions_norm": rays.directions_norm},
    )


def _send(value: Tensor, device: torch.device) -> Tensor:
    """The value on the device, without waiting for it: from pinned memory, which torch keeps until it has been read."""
    if device.type == "cuda" and value.device.type == "cpu":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def rays_of_bundle(
    ray_bundle: RayBundle,
    near_plane: float,
    far_plane: float,
    aabb: Float[Tensor, "2 3"] | None = None,
    shutter: float = 0.0,
) -> Rays:
    """The rays of a bundle of any shape, with unit directions; the bundle itself is left as it is.

    Their limits are the planes, narrowed by the bundle's own and by the scene's box. Rays that belong to no pixel, as
    Nerfstudio's exporters make them to look at a surface from just before it, have no width, and the bundle's limits
    in the planes' place.

    Args:
        ray_bundle: ``nears`` and ``fars`` may be missing, or equal where a crop is missed.
        near_plane, far_plane: world units.
        aabb: the box of a bounded scene, world frame.
        shutter: length of the moment in which a ray with a time sees.
    """
    origins, directions = ray_bundle.origins.reshape(-1, 3), ray_bundle.directions.reshape(-1, 3)
    directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True).clamp_min(1e-12)
    pixel_area = ray_bundle.pixel_area.reshape(-1, 1)
    has_pixel = pixel_area < NO_PIXEL
    near = torch.full_like(origins[:, :1], near_plane)
    far = torch.full_like(near, far_plane)
    if ray_bundle.nears is not None and ray_bundle.fars is not None:
        nears, fars = ray_bundle.nears.reshape(-1, 1), ray_bundle.fars.reshape(-1, 1)
        near = torch.where(has_pixel, torch.maximum(near, nears), nears)
        far = torch.where(has_pixel, torch.minimum(far, fars), fars)
    if aabb is not None:
        # A zero component of the direction gives an infinite slab, which min and max below handle.
        tiny = torch.where(directions < 0.0, -1e-12, 1e-12)
        slabs = (aabb[:, None, :] - origins) / torch.where(directions.abs() < 1e-12, tiny, directions)
        near = torch.maximum(near, slabs.amin(dim=0).amax(dim=-1, keepdim=True))
        far = torch.minimum(far, slabs.amax(dim=0).amin(dim=-1, keepdim=True))
    valid = far > near
    indices, times = ray_bundle.camera_indices, ray_bundle.times
    return Rays(
        origins,
        directions,
        torch.where(has_pixel, cone_radius(pixel_area), 0.0),
        torch.where(valid, near, near_plane),
        torch.where(valid, far, near_plane + 1.0),
        valid,
        None if indices is None else indices.reshape(-1, 1),
        None if times is None else times.reshape(-1, 1),
        shutter,
    )
