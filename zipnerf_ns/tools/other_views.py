"""Pictures of other sizes and from other distances than the photos: `python -m zipnerf_ns.tools.other_views`.

Held-out photos are rendered at other sizes and compared with the photos' means over areas, or averaged and compared
with the photos. Then their cameras move along their axes, so that what they look at is nearer or farther: there is no
truth of that, but scenes do not change their brightness when one comes nearer. Beside what programs render stand
pictures all of whose rays are told the prefilter's weights, as in the paper, and none.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.camera_utils import focus_of_attention
from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.errors import InputError
from zipnerf_ns.render.metrics import psnr
from zipnerf_ns.render.pictures import area_mean, blend
from zipnerf_ns.tools.command import command, command_parser, table
from zipnerf_ns.tools.programs import load_field

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

    from zipnerf_ns.model import ZipNerfModel

SIZES = (0.25, 0.5, 1.0, 2.0)
"""Factors on a picture's rows and columns."""
DISTANCES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Factors on how far from a camera is what the training cameras look at."""
WAYS = {"as rendered": None, "all rays told": 1.0, "no ray told": 0.0}
"""What rays are told of the prefilter's weights; None leaves it to the model."""


class View(NamedTuple):
    """A held-out photo."""

    camera: Cameras
    photo: Float[Tensor, "height width 3"]
    """Over the model's background."""


@contextlib.contextmanager
def told(model: ZipNerfModel, share: float | None) -> Iterator[None]:
    """All rays of a model's pictures, and each as it is, are told that share of the prefilter's weights."""
    if share is None:
        yield
        return
    zipnerf, photos = model.zipnerf, model.photos
    model.photos = None
    zipnerf.as_seen = lambda rays, tdist, widening=1.0: rays._replace(told=torch.full_like(rays.radius, share))
    try:
        yield
    finally:
        del zipnerf.as_seen
        model.photos = photos


def resized(view: View, size: float) -> tuple[Cameras, Callable[[Tensor], Tensor], Tensor]:
    """A view's camera at a size, what makes of its picture the one that is compared, and the truth for that."""
    camera = copy.deepcopy(view.camera)
    camera.rescale_output_resolution(size)
    if size < 1.0:
        return camera, lambda picture: picture, area_mean(view.photo, round(1.0 / size))
    return camera, lambda picture: area_mean(picture, round(size)), view.photo


def moved(camera: Cameras, focus: Float[Tensor, "3"], factor: float) -> Cameras:
    """A camera that has moved along its axis, so that a place is as many times as far along that."""
    camera = copy.deepcopy(camera)
    pose = camera.camera_to_worlds
    axis = -pose[..., :3, 2]
    depth = ((focus.to(pose) - pose[..., :3, 3]) * axis).sum(dim=-1, keepdim=True)
    pose[..., :3, 3] += (1.0 - factor) * depth * axis
    return camera


def at_sizes(model: ZipNerfModel, views: Sequence[View], size: float) -> tuple[float, float]:
    """Mean PSNR at a size, dB, and brightness over the truth's."""
    errors, lights = [], []
    for view in views:
        camera, compared, truth = resized(view, size)
        picture = compared(model.get_outputs_for_camera(camera)["rgb"].cpu())
        errors.append(float(psnr(picture, truth)))
        lights.append(float(picture.mean() / truth.mean()))
    return sum(errors) / len(errors), sum(lights) / len(lights)


def from_distance(model: ZipNerfModel, views: Sequence[View], focus: Tensor, factor: float) -> float:
    """Mean brightness, in [0, 1], from as many times as far."""
    lights = [float(model.get_outputs_for_camera(moved(view.camera, focus, factor))["rgb"].mean()) for view in views]
    return sum(lights) / len(lights)


def measure(pipeline: Pipeline, count: int) -> list[str]:
    """Two tables, of so many held-out photos."""
    model, datamanager = pipeline.model.eval(), pipeline.datamanager
    dataset = datamanager.eval_dataset
    if not len(dataset):
        raise InputError("no photo is held out, so there is nothing to compare with.")
    numbers = sorted({round(step) for step in torch.linspace(0, len(dataset) - 1, count).tolist()})
    background = model.background.cpu()
    views = []
    for number in numbers:
        photo = blend(dataset.get_image_float32(number), background)
        views.append(View(dataset.cameras[number : number + 1].to(model.device), photo))
    poses = datamanager.train_dataset.cameras.camera_to_worlds
    focus = focus_of_attention(poses, poses[:, :3, 3].mean(dim=0))
    sizes, distances = [], []
    with torch.no_grad():
        for size in SIZES:
            found = []
            for share in WAYS.values():
                with told(model, share):
                    found.append("{:.2f} dB, {:.2f}".format(*at_sizes(model, views, size)))
            sizes.append((f"{size:g}", *found))
        for factor in DISTANCES:
            found = []
            for share in WAYS.values():
                with told(model, share):
                    found.append(f"{from_distance(model, views, focus, factor):.3f}")
            distances.append((f"{factor:g}", *found))
    return [*table(("size", *WAYS), sizes), "", *table(("distance", *WAYS), distances)]


@command()
def main(arguments: list[str] | None = None) -> None:
    """The measurement."""
    parser = command_parser(
        "other_views",
        "Measures pictures of other sizes (PSNR, brightness over the photos') and from other distances (brightness).",
    )
    parser.add_argument("--load-config", type=Path, required=True, help="config.yml of the run")
    parser.add_argument("--data", type=Path, help="its scene, where it is now")
    parser.add_argument("--views", type=int, default=6, help="held-out photos, all over the set")
    options = parser.parse_args(arguments)
    if options.views < 1:
        raise InputError(f"--views is {options.views}: it must be at least 1.")
    print("\n".join(measure(load_field(options.load_config, options.data, "test"), options.views)))


if __name__ == "__main__":
    sys.exit(main())
