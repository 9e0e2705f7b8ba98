"""A folder that any web server hands out, and a phone opens: Gaussians in PlayCanvas's compact form, and a viewer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.camera_utils import focus_of_attention

from zipnerf_ns.splats.files.compact import visibility
from zipnerf_ns.splats.files.sog import encode
from zipnerf_ns.splats.gaussians import Gaussians

MOST_GAUSSIANS = 1_500_000
"""What phones of 2023 still turn smoothly."""
VIEWER = ("index.html", "shaders.js", "viewer.js")

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class StartView:
    """Where a page's camera first stands; it stays upright, and is turned about its target."""

    position: Vector
    target: Vector
    up: Vector
    fov: float = 60.0
    """Field of view along the shorter side of the screen, degrees."""

    @classmethod
    def of_cameras(cls, poses: Float[Tensor, "cameras 3 4"], fov: float) -> StartView:
        """From the camera in the midst of all, turning about what it and the others look at.

        Args:
            poses: camera-to-world matrices in Nerfstudio's axes (right, up, backward), in the Gaussians' frame.
            fov: of the start view, degrees.
        """
        poses = poses.detach().cpu().float()
        positions, up = poses[:, :, 3], torch.nn.functional.normalize(poses[:, :, 1].mean(dim=0), dim=0)
        middle = int((positions - positions.median(dim=0).values).norm(dim=1).argmin())
        focus = focus_of_attention(poses, positions.mean(dim=0))
        ahead = -poses[middle, :, 2]
        # As far along its own axis as the focus is, so that the first picture is the camera's own.
        distance = float((focus - positions[middle]) @ ahead)
        if distance <= 0.0:  # cameras that look outward
            distance = float(positions.std(dim=0).norm()) if len(poses) > 1 else 1.0
        target = positions[middle] + max(distance, 1e-3) * ahead
        return cls(_vector(positions[middle]), _vector(target), _vector(up), fov)

    @classmethod
    def of_gaussians(cls, gaussians: Gaussians) -> StartView:
        """From outside, obliquely from above, at where most Gaussians are; z is up, as in Nerfstudio's frames."""
        middle = gaussians.means.median(dim=0).values
        reach = max(float((gaussians.means - middle).norm(dim=1).median()), 1e-6)
        position = middle + reach * torch.tensor([0.0, -2.5, 1.25]).to(middle)
        return cls(_vector(position), _vector(middle), (0.0, 0.0, 1.0))


class PageReport(NamedTuple):
    """What was written into a page's folder."""

    gaussians: int
    dropped: int
    """The least visible ones, above the limit."""
    size: int
    """What a visitor downloads, bytes."""


def write_page(
    gaussians: Gaussians,
    folder: Path,
    start: StartView | None = None,
    most: int = MOST_GAUSSIANS,
    title: str = "Scene",
    background: Sequence[float] = (0.0, 0.0, 0.0),
) -> PageReport:
    """Writes a page that shows Gaussians, of which a web server need know nothing.

    Args:
        gaussians: of a degree up to 3.
        folder: made if it is not there.
        start: the first view.
        most: Gaussians; the least visible ones above it are dropped.
        title: of the page.
        background: color behind all Gaussians, 0 to 1.
    Raises:
        InputError: for coefficients of a degree above 3.
    """
    start = start or StartView.of_gaussians(gaussians)
    kept = gaussians
    if len(gaussians) > most:
        # From anywhere on the way around: never nearer than the start view is to its target.
        target, around = torch.tensor(start.target).to(gaussians.means), math.dist(start.position, start.target)
        order = visibility(gaussians, target, around).argsort(descending=True)
        kept = gaussians.select(order[:most])
    contents = encode(kept)
    size = sum(map(len, contents.values()))
    view = {name: getattr(start, name) for name in ("position", "target", "up", "fov")}
    # A server may compress what it sends, so that only the files themselves tell how much there is to load.
    view |= {"title": title, "background": list(background), "bytes": size}
    for name in VIEWER:
        contents[name] = files("zipnerf_ns.splats").joinpath("viewer", name).read_bytes()
    contents["view.json"] = json.dumps(view).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return PageReport(len(kept), len(gaussians) - len(kept), sum(map(len, contents.values())))


def _vector(values: Float[Tensor, "3"]) -> Vector:
    x, y, z = values.tolist()
    return x, y, z
