"""What Gaussians are fitted to: pinhole cameras, and what photos and the field show through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns.cameras.appearance import SRGB_OFFSET
from zipnerf_ns.cameras.corrections import corrected_poses
from zipnerf_ns.cameras.lens import through_lens
from zipnerf_ns.data.images import read_all
from zipnerf_ns.errors import InputError
from zipnerf_ns.render.pictures import area_mean, blend, to_bytes

LENSES = (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value)
"""Types of camera whose photos are brought into a pinhole's."""
NEIGHBORS = 4
"""Cameras nearest to one, between which and it new views are taken."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pinhole:
    """A camera without distortion."""

    pose: Float[Tensor, "3 4"]
    """Camera to world, OpenGL's axes."""
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @cached_property
    def viewmat(self) -> Float[Tensor, "4 4"]:
        """World to camera, OpenCV's axes."""
        rotation = (self.pose[:, :3] * self.pose.new_tensor([1.0, -1.0, -1.0])).T
        matrix = torch.eye(4, device=self.pose.device)
        matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ self.pose[:, 3]
        return matrix

    @cached_property
    def intrinsics(self) -> Float[Tensor, "3 3"]:
        """Camera to pixels, whose centers are at .5."""
        return self.pose.new_tensor([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @cached_property
    def halved(self) -> Pinhole:
        """The camera whose pixels are two by two of this one's; a rest at the right and below is cut off."""
        numbers = {name: getattr(self, name) / 2 for name in ("fx", "fy", "cx", "cy")}
        return dataclasses.replace(self, **numbers, width=self.width // 2, height=self.height // 2)

    def on(self, device: torch.device) -> Pinhole:
        """The same with its pose on a device."""
        return dataclasses.replace(self, pose=self.pose.to(device))

    def camera(self) -> Cameras:
        """The same for Nerfstudio."""
        return Cameras(self.pose[None], self.fx, self.fy, self.cx, self.cy, self.width, self.height)


class Target(NamedTuple):
    """A camera and what is seen through it."""

    pinhole: Pinhole
    colors: UInt8[Tensor, "height width channels"]
    """RGB, or RGBA with straight alpha."""
    used: Bool[Tensor, "height width 1"] | None
    """Pixels that count; None for all."""

    def on(self, device: torch.device) -> Target:
        """The same with all its tensors on a device."""
        used = None if self.used is None else self.used.to(device)
        return Target(self.pinhole.on(device), self.colors.to(device), used)

    def picture(
        self, background: Float[Tensor, "3"], is_halved: bool = False
    ) -> tuple[Float[Tensor, "rows columns 3"], Float[Tensor, "rows columns 1"] | None]:
        """Colors in [0, 1] over a background, and how much of each pixel counts, on the background's device."""
        device = background.device
        rgb = blend(self.colors.to(device).float() / 255.0, background)
        used = None if self.used is None else self.used.to(device).float()
        if is_halved:
            rgb, used = (None if each is None else area_mean(each, 2) for each in (rgb, used))
        return rgb, used


def pinholes(cameras: Cameras, poses: Float[Tensor, "cameras 3 4"]) -> list[Pinhole]:
    """Cameras without their distortion, at given poses.

    Raises:
        InputError: for cameras that no pinhole can stand for.
    """
    if not torch.isin(cameras.camera_type, torch.tensor(LENSES)).all():
        raise InputError("Gaussians are fitted to pictures of perspective and fisheye cameras only.")
    numbers = zip(
        *(getattr(cameras, name).flatten().tolist() for name in ("fx", "fy", "cx", "cy", "width", "height")),
        strict=True,
    )
    return [
        Pinhole(pose, *four, int(width), int(height))
        for pose, (*four, width, height) in zip(poses.float(), numbers, strict=True)
    ]


def project(
    points: Float[Tensor, "*batch 2"], distortion: Float[Tensor, "6"], is_fisheye: bool
) -> Float[Tensor, "*batch 2"]:
    """Where a lens puts what a pinhole of focal length 1 sees at some points, relative to the principal point.

    Args:
        points: x to the right and y downwards (OpenCV).
        distortion: Nerfstudio's k1, k2, k3, k4, p1, p2.
        is_fisheye: whether the projection is equidistant.
    """
    if is_fisheye:
        radius = points.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        points = points * (radius.atan() / radius)
    k1, k2, k3, k4, p1, p2 = distortion.tolist()
    x, y = points.unbind(-1)
    square = x * x + y * y
    gain = 1.0 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
    return torch.stack(
        [
            gain * x + 2.0 * p1 * x * y + p2 * (square + 2.0 * x * x),
            gain * y + 2.0 * p2 * x * y + p1 * (square + 2.0 * y * y),
        ],
        dim=-1,
    )


def undistorted(
    image: UInt8[Tensor, "height width channels"],
    used: Bool[Tensor, "height width 1"] | None,
    pinhole: Pinhole,
    distortion: Float[Tensor, "6"] | None,
    is_fisheye: bool,
) -> tuple[UInt8[Tensor, "height width channels"], Bool[Tensor, "height width 1"] | None]:
    """A photo as a pinhole at its place would have taken it, and which of its pixels count.

    Args:
        image: of the same size as the pinhole's.
        used: pixels that a mask leaves; None for all.
        pinhole: with the lens's focal lengths and principal point.
        distortion, is_fisheye: as for :func:`project`.
    """
    if not is_fisheye and (distortion is None or not distortion.any()):
        return image, used
    device = image.device
    rows, columns = (torch.arange(n, device=device) + 0.5 for n in (pinhole.height, pinhole.width))
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    center, focal = (grid.new_tensor(each) for each in ((pinhole.cx, pinhole.cy), (pinhole.fx, pinhole.fy)))
    lens = torch.zeros(6) if distortion is None else distortion
    places = center + focal * project((grid - center) / focal, lens, is_fisheye)
    # From edge to edge of the photo is from -1 to 1.
    places = 2.0 * places / grid.new_tensor([pinhole.width, pinhole.height]) - 1.0
    is_inside = (places.abs() <= 1.0).all(dim=-1, keepdim=True)

    def sampled(picture: Tensor) -> Tensor:
        planes = picture.permute(2, 0, 1)[None].float()
        return grid_sample(planes, places[None], padding_mode="border", align_corners=False)[0].permute(1, 2, 0)

    if used is not None:
        # A pixel counts where all that it is made of does.
        is_inside &= sampled(used) > 0.999
    return sampled(image).round().to(torch.uint8), is_inside


def in_mean_light(
    image: UInt8[Tensor, "height width channels"], gains: Float[Tensor, "3"]
) -> UInt8[Tensor, "height width channels"]:
    """A photo in the mean light of all: the inverse of :class:`~zipnerf_ns.cameras.appearance.Appearance`."""
    rgb = (image[..., :3].float() / 255.0 + SRGB_OFFSET) / gains.to(image.device) - SRGB_OFFSET
    return torch.cat([to_bytes(rgb), image[..., 3:]], dim=-1)


def photos(
    dataset: Any, cameras: list[Pinhole], gains: Float[Tensor, "images 3"] | None, device: torch.device, what: str
) -> Iterator[Target]:
    """A dataset's photos, undistorted and in the mean light, in its order; in main memory.

    Args:
        dataset: a :class:`~zipnerf_ns.data.images.CheckedDataset`.
        cameras: a pinhole for each of its photos.
        gains: of each photo's light; None where none was learned.
        device: that undistorts.
        what: they are, for a progress bar.
    """
    lenses = dataset.cameras
    for index, data in enumerate(read_all(dataset, f"Reading {len(dataset)} {what}")):
        image, used = data["image"].to(device), data.get("mask")
        distortion = None if lenses.distortion_params is None else lenses.distortion_params[index]
        is_fisheye = int(lenses.camera_type[index]) == CameraType.FISHEYE.value
        used = None if used is None else used.to(device).bool()
        image, used = undistorted(image, used, cameras[index], distortion, is_fisheye)
        if gains is not None:
            image = in_mean_light(image, gains[index])
        yield Target(cameras[index], image.cpu(), None if used is None else used.cpu())


def training_cameras(pipeline: Any) -> list[Pinhole]:
    """The training cameras without distortion, where the field has found them to stand."""
    cameras = through_lens(pipeline.model, pipeline.datamanager.train_dataset.cameras)
    return pinholes(cameras, corrected_poses(cameras.camera_to_worlds, pipeline.model.corrections).cpu())


def between(cameras: list[Pinhole], count: int, generator: np.random.Generator) -> list[Pinhole]:
    """New cameras, each on the way from one to another that stands near and looks alike; none for a single camera."""
    if len(cameras) < 2:
        return []
    poses = torch.stack([camera.pose for camera in cameras]).double().numpy()
    places, turns = poses[:, :, 3], Rotation.from_matrix(poses[:, :, :3])
    spread = max(float(np.linalg.norm(places - places.mean(axis=0), axis=-1).mean()), 1e-9)
    found = []
    for first in generator.integers(len(cameras), size=count):
        angles = (turns[first].inv() * turns).magnitude()
        far = np.linalg.norm(places - places[first], axis=-1) / spread + angles
        far[first] = np.inf
        second = generator.choice(np.argsort(far)[: min(NEIGHBORS, len(cameras) - 1)])
        share = generator.uniform(0.2, 0.8)
        turn = turns[first] * Rotation.from_rotvec(share * (turns[first].inv() * turns[second]).as_rotvec())
        place = (1.0 - share) * places[first] + share * places[second]
        pose = torch.from_numpy(np.concatenate([turn.as_matrix(), place[:, None]], axis=1)).float()
        found.append(dataclasses.replace(cameras[first], pose=pose))
    return found


@torch.no_grad()
def field_picture(model: Any, pinhole: Pinhole, with_alpha: bool) -> UInt8[Tensor, "height width channels"]:
    """What the field shows through a pinhole in the mean light of its photos, on the model's device.

    Args:
        model: a :class:`~zipnerf_ns.model.ZipNerfModel`, in evaluation mode.
        pinhole: on any device.
        with_alpha: RGBA with straight alpha instead of RGB over the model's background.
    """
    outputs = model.get_outputs_for_camera(pinhole.camera().to(model.device))
    return to_bytes(model.get_rgba_image(outputs) if with_alpha else outputs["rgb"])
