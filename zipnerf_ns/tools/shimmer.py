"""How calm a moving picture is: `python -m zipnerf_ns.tools.shimmer --load-config RUN/config.yml`.

For runs that were trained on the built-in scene, whose exact pictures are known from everywhere. A camera goes slowly
about the scene and takes small pictures; what changes from one to the next is compared with what should change. Errors
that stay, such as a blur, cancel out; what flickers does not. In the scene in motion, the camera stands still and time
runs, from one moment of the training to the next.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.data.metadata import SCENE_HINTS
from zipnerf_ns.data.transforms import transforms_file
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.similarity import move_cameras
from zipnerf_ns.render.metrics import psnr
from zipnerf_ns.tools.command import command, command_parser, table
from zipnerf_ns.tools.programs import into_model_frame, load_run
from zipnerf_ns.tools.scene.cameras import camera_pose, scene_pinhole
from zipnerf_ns.tools.scene.render import Pinhole, render_view

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

COUNT, WIDTH, HEIGHT = 24, 64, 48
"""Pictures that are taken, and their size, pixels: a quarter of the scene's own."""
RADIUS, ELEVATION, AZIMUTH = 2.5, math.radians(25), 0.4
"""Where the camera is about the origin, in the scene's units: among the training cameras."""
STILL_AZIMUTH = math.radians(120)
"""Where it is in the scene in motion, before most of what moves there."""
STEP = 0.3
"""How far the camera turns about the scene from picture to picture, in pixels seen from the camera."""
TRUTH_SAMPLES = 256
"""Samples of a pixel in the exact pictures."""

Pictures = Float[np.ndarray, "pictures height width 3"]


class Shot(NamedTuple):
    """One picture to take."""

    pose: Float[np.ndarray, "3 4"]
    """Camera to world, in the scene's frame and with OpenGL's axes."""
    time: float | None = None
    """From 0 to 1; None where nothing moves."""


class Calm(NamedTuple):
    """What is measured of a sequence of pictures; 8-bit levels are of 255."""

    psnr: float
    """Mean over the pictures, dB."""
    flicker: float
    """Mean absolute difference between what changes from picture to picture and what should change, 8-bit levels."""
    change: float
    """Mean absolute change from picture to picture, 8-bit levels."""


def measure(pictures: Pictures, truth: Pictures) -> Calm:
    """Quality of pictures, and of what changes between one and the next.

    Args:
        pictures, truth: in [0, 1]; at least two each.
    """
    pairs = zip(*map(torch.from_numpy, (pictures, truth)), strict=True)
    change = np.diff(pictures, axis=0)
    flicker = np.abs(change - np.diff(truth, axis=0)).mean()
    quality = np.mean([float(psnr(picture, exact)) for picture, exact in pairs])
    return Calm(float(quality), 255.0 * float(flicker), 255.0 * float(np.abs(change).mean()))


def orbit(count: int, pinhole: Pinhole) -> list[Shot]:
    """What a camera sees that goes about the scene."""
    return [Shot(_pose(AZIMUTH + index * STEP / pinhole.fx)) for index in range(count)]


def still(count: int, step: float) -> list[Shot]:
    """What a camera sees that stands before the scene in motion, in the middle of its time.

    Args:
        step: time from picture to picture.
    """
    times = 0.5 + step * (np.arange(count) - 0.5 * (count - 1))
    return [Shot(_pose(STILL_AZIMUTH), float(time)) for time in times if 0.0 <= time <= 1.0]


def _pose(azimuth: float) -> np.ndarray:
    flat = math.cos(ELEVATION)
    eye = RADIUS * np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(ELEVATION)])
    return camera_pose(eye, eye)


def true_pictures(shots: Sequence[Shot], pinhole: Pinhole, samples_per_pixel: int) -> Pictures:
    """The scene's own pictures.

    Args:
        samples_per_pixel: 1 is a sample at a random place of every pixel, as a renderer without anti-aliasing takes.
    """
    # Where the camera stands still, so do the samples' places: what does not move does not change.
    seeds = [seed if shot.time is None else 0 for seed, shot in enumerate(shots)]
    return np.stack([
        render_view(shot.pose, pinhole, samples_per_pixel, seed, time=shot.time)
        for seed, shot in zip(seeds, shots, strict=True)
    ])  # fmt: skip


def rendered_pictures(pipeline: Pipeline, shots: Sequence[Shot], pinhole: Pinhole) -> Pictures:
    """A run's pictures."""
    model = pipeline.model.eval()
    pictures = []
    poses = torch.from_numpy(np.stack([shot.pose for shot in shots]))
    for shot, pose in zip(shots, move_cameras(into_model_frame(pipeline), poses).float(), strict=True):
        camera = Cameras(pose[None], *(float(value) for value in pinhole[:4]), pinhole.width, pinhole.height)
        camera.times = None if shot.time is None else torch.tensor([[shot.time]])
        pictures.append(model.get_outputs_for_camera(camera.to(model.device))["rgb"].cpu().numpy())
    return np.stack(pictures)


def load(config: Path, data: Path | None) -> tuple[Pipeline, str]:
    """A trained pipeline, and which cameras see its scene in motion: "none" where nothing moves.

    Args:
        config: of the run.
        data: where its scene is now, if not where it is found from there.
    Raises:
        InputError: if there is no such run, or its scene is not the built-in one.
    """
    pipeline = load_run(config, data)
    data = Path(pipeline.datamanager.config.dataparser.data)
    transforms = transforms_file(data)
    made_with = json.loads(transforms.read_text(encoding="utf-8")).get("demo_scene") if transforms.is_file() else None
    if made_with is None or made_with.get("detail", "near") != "near":
        raise InputError(
            f"{config} was trained on {data}, which is not the built-in scene, or not as it is by default: only of "
            "that exact pictures are known. Write it with python -m zipnerf_ns.tools.demo_scene FOLDER and train on it."
        )
    return pipeline, made_with.get("motion", "none")


@command()
def main(arguments: list[str] | None = None) -> None:
    """The measurement."""
    parser = command_parser(
        "shimmer",
        "Measures how calm pictures of the built-in scene are, against exact ones, while a camera moves; of the scene "
        "in motion while it stands still.",
    )
    parser.add_argument("--load-config", type=Path, nargs="+", required=True,
                        help="config.yml of runs trained on the built-in scene")  # fmt: skip
    parser.add_argument("--data", type=Path, help="their scene, where it is now")
    options = parser.parse_args(arguments)
    runs = {str(config): load(config, options.data) for config in options.load_config}
    if len({motion for _, motion in runs.values()}) > 1:
        raise InputError("these runs are of different scenes. Measure those of each by themselves.")
    pinhole = scene_pinhole(WIDTH, HEIGHT)
    (motion,) = {motion for _, motion in runs.values()}
    shots = orbit(COUNT, pinhole)
    if motion != "none":
        hints = next(iter(runs.values()))[0].datamanager.train_dataset.metadata[SCENE_HINTS]
        shots = still(COUNT, hints.time_step)
    taken = {name: rendered_pictures(pipeline, shots, pinhole) for name, (pipeline, _) in runs.items()}
    # For comparison, the scene itself with few samples a pixel.
    for samples in (16, 1):
        name = f"the scene itself, {samples} sample{'s' * (samples > 1)} a pixel"
        taken[name] = true_pictures(shots, pinhole, samples)
    truth = true_pictures(shots, pinhole, TRUTH_SAMPLES)
    rows = []
    for name, pictures in taken.items():
        calm = measure(pictures, truth)
        rows.append((name, f"{calm.psnr:.2f} dB", f"{calm.flicker:.2f}", f"{calm.change:.2f}"))
    rows.append(("the scene itself, exact", "", "", f"{measure(truth, truth).change:.2f}"))
    print("\n".join(table(("pictures", "PSNR", "flicker, of 255", "change, of 255"), rows)))


if __name__ == "__main__":
    sys.exit(main())
