"""How calm a moving picture is: `python -m zipnerf_ns.tools.shimmer --load-config RUN/config.yml`.

For runs that were trained on the built-in scene, whose exact pictures are known from everywhere. A camera goes slowly
about the scene and takes small pictures; what changes from one to the next is compared with what should change. Errors
that stay, such as a blur, cancel out; what flickers does not.
"""

from __future__ import annotations

import argparse
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

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.programs import data_frame, load_run
from zipnerf_ns.tools.scene.cameras import camera_pose, scene_pinhole
from zipnerf_ns.tools.scene.render import Pinhole, render_view
from zipnerf_ns.tools.trials.report import table

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

COUNT, WIDTH, HEIGHT = 24, 64, 48
"""Pictures that are taken, and their size, pixels: a quarter of the scene's own."""
RADIUS, ELEVATION = 2.5, math.radians(25)
"""Where the camera is about the origin, in the scene's units: among the training cameras."""
STEP = 0.3
"""How far the camera turns about the scene from picture to picture, in pixels seen from the camera."""
TRUTH_SAMPLES = 256
"""Samples of a pixel in the exact pictures."""

Pictures = Float[np.ndarray, "pictures height width 3"]


class Calm(NamedTuple):
    """What is measured of a sequence of pictures; 8-bit levels are of 255."""

    psnr: float
    """Mean over the pictures, dB."""
    flicker: float
    """Mean absolute difference between what changes from picture to picture and what should change, 8-bit levels."""


def measure(pictures: Pictures, truth: Pictures) -> Calm:
    """Quality of pictures, and of what changes between one and the next.

    Args:
        pictures, truth: in [0, 1]; at least two each.
    """
    error = np.square(pictures - truth).mean(axis=(1, 2, 3))
    flicker = np.abs(np.diff(pictures, axis=0) - np.diff(truth, axis=0)).mean()
    return Calm(float(np.mean(-10.0 * np.log10(np.maximum(error, 1e-10)))), 255.0 * float(flicker))


def orbit(count: int, pinhole: Pinhole) -> list[Float[np.ndarray, "3 4"]]:
    """Poses of a camera that goes about the scene, in its frame and with OpenGL's axes."""
    poses = []
    for index in range(count):
        azimuth = 0.4 + index * STEP / pinhole.fx
        flat = math.cos(ELEVATION)
        eye = RADIUS * np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(ELEVATION)])
        poses.append(camera_pose(eye, eye))
    return poses


def true_pictures(poses: Sequence[np.ndarray], pinhole: Pinhole, samples_per_pixel: int) -> Pictures:
    """The scene's own pictures.

    Args:
        samples_per_pixel: 1 is a sample at a random place of every pixel, as a renderer without anti-aliasing takes.
    """
    return np.stack([render_view(pose, pinhole, samples_per_pixel, seed) for seed, pose in enumerate(poses)])


def to_model_frame(
    pose: Float[np.ndarray, "3 4"], transform: Float[np.ndarray, "3 4"], scale: float
) -> Float[np.ndarray, "3 4"]:
    """A pose of the data set in the frame that a model was trained in.

    Args:
        transform, scale: what the dataparser did to the poses: first the transform, then the scale.
    """
    rotation, eye = transform[:, :3] @ pose[:, :3], transform[:, :3] @ pose[:, 3] + transform[:, 3]
    return np.concatenate([rotation, scale * eye[:, None]], axis=1)


def rendered_pictures(pipeline: Pipeline, poses: Sequence[np.ndarray], pinhole: Pinhole) -> Pictures:
    """A run's pictures from poses in the scene's frame."""
    transform, scale = data_frame(pipeline)
    model = pipeline.model.eval()
    pictures = []
    for pose in poses:
        matrix = torch.from_numpy(to_model_frame(pose, transform, scale)).float()
        camera = Cameras(matrix[None], *(float(value) for value in pinhole[:4]), pinhole.width, pinhole.height)
        pictures.append(model.get_outputs_for_camera(camera.to(model.device))["rgb"].cpu().numpy())
    return np.stack(pictures)


def load(config: Path, data: Path | None) -> Pipeline:
    """A trained pipeline.

    Args:
        config: of the run.
        data: where its scene is now, if not where it is found from there.
    Raises:
        InputError: if there is no such run, or its scene is not the built-in one.
    """
    pipeline = load_run(config, data)
    data = Path(pipeline.datamanager.config.dataparser.data)
    transforms = data if data.is_file() else data / "transforms.json"
    made_with = json.loads(transforms.read_text(encoding="utf-8")).get("demo_scene") if transforms.is_file() else None
    if made_with is None or made_with.get("detail", "near") != "near":
        raise InputError(
            f"{config} was trained on {data}, which is not the built-in scene, or not as it is by default: only of "
            "that exact pictures are known. Write it with python -m zipnerf_ns.tools.demo_scene FOLDER and train on it."
        )
    return pipeline


def main(arguments: list[str] | None = None) -> int:
    """The measurement; 0 if it was made."""
    parser = argparse.ArgumentParser(
        prog="python -m zipnerf_ns.tools.shimmer",
        description="Measures how calm pictures of the built-in scene are while a camera moves, against exact ones.",
    )
    parser.add_argument("--load-config", type=Path, nargs="+", required=True,
                        help="config.yml of runs trained on the built-in scene")  # fmt: skip
    parser.add_argument("--data", type=Path, help="their scene, where it is now")
    options = parser.parse_args(arguments)
    try:
        pipelines = {str(config): load(config, options.data) for config in options.load_config}
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    pinhole = scene_pinhole(WIDTH, HEIGHT)
    poses = orbit(COUNT, pinhole)
    taken = {name: rendered_pictures(pipeline, poses, pinhole) for name, pipeline in pipelines.items()}
    # For comparison, the scene itself with few samples a pixel.
    for samples in (16, 1):
        name = f"the scene itself, {samples} sample{'s' * (samples > 1)} a pixel"
        taken[name] = true_pictures(poses, pinhole, samples)
    truth = true_pictures(poses, pinhole, TRUTH_SAMPLES)
    measured = {name: measure(pictures, truth) for name, pictures in taken.items()}
    rows = [(name, f"{calm.psnr:.2f} dB", f"{calm.flicker:.2f}") for name, calm in measured.items()]
    print("\n".join(table(("pictures", "PSNR", "flicker, of 255"), rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
