"""Nerfstudio's programs for our tools: commands, where each run's files are, and runs read from their config.yml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

from zipnerf_ns.engine.messages import quiet_dependencies
from zipnerf_ns.errors import InputError

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

EXPERIMENT = "demo"
VIDEO_SECONDS = 2.0
FRAME_RATE = 24


@dataclass(frozen=True)
class Machine:
    """How much the demo asks of a machine."""

    device: str
    method: str
    steps: int
    """Training steps."""
    longest_side: int
    """The largest of the data's sizes that does not exceed this is used, pixels."""
    video_height: int
    """The video is not higher than this, pixels."""


CPU = Machine("cpu", "zipnerf-lite", steps=600, longest_side=400, video_height=96)
CUDA = Machine("cuda", "zipnerf", steps=5000, longest_side=1600, video_height=540)


class DemoError(Exception):
    """A step could not be done; the message is all that the person needs."""


@dataclass(frozen=True)
class Run:
    """Where a run's files are, laid out as nerfstudio lays out its output folder."""

    output_dir: Path
    method: str
    timestamp: str

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.output_dir / EXPERIMENT / self.method / self.timestamp

    @property
    def config(self) -> Path:
        """What the other commands load the run by."""
        return self.folder / "config.yml"

    @property
    def metrics(self) -> Path:
        """``ns-eval``'s result."""
        return self.folder / "eval.json"

    @property
    def pictures(self) -> Path:
        """Held-out views: truth and rendering side by side."""
        return self.folder / "eval"

    @property
    def video(self) -> Path:
        """The rendered camera path."""
        return self.folder / "video.mp4"


def data_arguments(data: Path, longest_side: int) -> list[str]:
    """The dataparser of ``ns-train`` for a data set, with its options; nothing for nerfstudio's own format.

    Args:
        data: a folder, or a transforms file.
        longest_side: pictures of this size are enough, pixels.

    Raises:
        DemoError: no known data set is there; says what to do with plain photographs.
    """
    if not data.exists():
        raise DemoError(f"{data} does not exist.")
    if data.suffix == ".json":
        return []
    factor = downscale_factor(data, longest_side)
    if (data / "transforms.json").is_file():
        return ["nerfstudio-data", "--downscale-factor", str(factor)] if factor > 1 else []
    if (data / "transforms_train.json").is_file():
        return ["blender-data"]
    for model in (Path("colmap/sparse/0"), Path("sparse/0")):
        if (data / model).is_dir():
            # Without the factor, nerfstudio would ask on the terminal whether to write smaller pictures.
            return ["colmap", "--colmap-path", str(model), "--downscale-factor", str(factor)]
    raise DemoError(
        f"{data} has no camera poses (transforms.json, transforms_train.json or sparse/0). For a folder of "
        "photographs, find them with COLMAP first:\n"
        f"  ns-process-data images --data {data} --output-dir data/mine\nthen give data/mine here."
    )


def downscale_factor(data: Path, longest_side: int) -> int:
    """The least reduction among the folders images, images_2, images_4, ... that brings pictures to a size.

    Args:
        longest_side: pixels; where no folder is small enough, the smallest is taken.
    """
    known = Image.registered_extensions()
    pictures = sorted(path for path in (data / "images").glob("*") if path.suffix.lower() in known)
    if not pictures:
        return 1
    with Image.open(pictures[0]) as picture:
        side = max(picture.size)
    factor = 1
    while side > longest_side * factor and (data / f"images_{2 * factor}").is_dir():
        factor *= 2
    return factor


def train_command(run: Run, data: Path, machine: Machine, steps: int) -> list[str]:
    """``ns-train``, leaving when it is done."""
    return [
        "ns-train",
        machine.method,
        *("--data", str(data)),
        *("--output-dir", str(run.output_dir)),
        *("--experiment-name", EXPERIMENT),
        *("--timestamp", run.timestamp),
        *("--machine.device-type", machine.device),
        *("--max-num-iterations", str(steps)),
        *("--steps-per-eval-image", str(max(steps // 4, 1))),
        # Nerfstudio evaluates during training only for a logger, not for its viewer alone.
        *("--vis", "tensorboard"),
        *("--viewer.quit-on-train-completion", "True"),
        *data_arguments(data, machine.longest_side),
    ]


def eval_command(run: Run) -> list[str]:
    """``ns-eval`` with pictures of every held-out view."""
    return [
        "ns-eval",
        *("--load-config", str(run.config)),
        *("--output-path", str(run.metrics)),
        *("--render-output-path", str(run.pictures)),
    ]


def render_command(run: Run, num_views: int, size: tuple[int, int], video_height: int) -> list[str]:
    """``ns-render`` along the held-out cameras.

    Args:
        num_views: how many views were held out.
        size: width and height of the pictures, pixels.
    """
    # A path needs two cameras.
    source = "eval" if num_views > 1 else "train"
    frames = round(VIDEO_SECONDS * FRAME_RATE / max(num_views - 1, 1)) if source == "eval" else 1
    return [
        "ns-render",
        "interpolate",
        *("--load-config", str(run.config)),
        *("--output-path", str(run.video)),
        *("--pose-source", source),
        *("--interpolation-steps", str(max(frames, 1))),
        *("--order-poses", "True"),
        *("--frame-rate", str(FRAME_RATE)),
        *("--downscale-factor", f"{video_reduction(size, video_height):.6f}"),
    ]


def video_reduction(size: tuple[int, int], video_height: int) -> float:
    """The reduction to at most a height, with even width and height where one within 16 pixels has them.

    A video of odd size is stored in a pixel format that browsers do not play.

    Args:
        size: width and height before, pixels.
    """
    width, height = size
    top = min(height, video_height)
    for target in range(top - top % 2, max(top - 16, 2), -2):
        # Sizes are rounded down after a float32 product: a quarter pixel keeps clear of the edge.
        reduction = height / (target + 0.25) if target < height else 1.0
        scaled = width / reduction
        if int(scaled) % 2 == 0 and (reduction == 1.0 or 0.01 < scaled % 1 < 0.99):
            return reduction
    return height / top


def load_run(config: Path) -> Pipeline:
    """The trained pipeline without its images.

    Raises:
        InputError: if there is no such run.
    """
    if not config.is_file():
        raise InputError(f"{config} does not exist. Give the config.yml that ns-train wrote.")
    quiet_dependencies()
    # Late: it loads every method's entry point, which takes seconds.
    from nerfstudio.utils.eval_utils import eval_setup

    return eval_setup(config, test_mode="inference")[1]


def data_frame(pipeline: Pipeline) -> tuple[Float[np.ndarray, "3 4"], float]:
    """What the dataparser did to the data set's poses: first the transform, then the scale."""
    outputs = pipeline.datamanager.train_dataparser_outputs
    return outputs.dataparser_transform.double().numpy(), float(outputs.dataparser_scale)
