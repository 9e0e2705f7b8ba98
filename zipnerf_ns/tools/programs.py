"""Nerfstudio's programs for our tools: commands, where each run's files are, and runs read from their config.yml."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from PIL import Image

from zipnerf_ns.data.dataparsers.formats import FORMATS, find_format
from zipnerf_ns.engine.messages import quiet_dependencies
from zipnerf_ns.engine.safety.configs import check_config_file
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.similarity import Similarity
from zipnerf_ns.tools.system_check import script_environment

if TYPE_CHECKING:
    from nerfstudio.pipelines.base_pipeline import Pipeline

CONFIG, METRICS, PICTURES, VIDEO = "config.yml", "eval.json", "eval", "video.mp4"
"""What a run's folder holds: what other commands load it by, ns-eval's result and pictures, and the camera path."""
VIDEO_SECONDS = 2.0
FRAME_RATE = 24
TestMode = Literal["inference", "test"]


class Machine(NamedTuple):
    """How much the demo asks of a machine."""

    device: str
    method: str
    steps: int
    """Training steps."""
    longest_side: int
    """The largest of the data's sizes that does not exceed this is used, pixels."""
    video_height: int
    """The video is not higher than this, pixels."""
    options: tuple[str, ...] = ()
    """Options of the method."""
    is_moving: bool = False
    """Whether the method knows time."""


CPU = Machine("cpu", "zipnerf-lite", steps=600, longest_side=400, video_height=96)
CUDA = Machine("cuda", "zipnerf", steps=5000, longest_side=1600, video_height=540)
MOVING = {
    CPU: CPU._replace(options=("--pipeline.model.motion.kind", "both"), is_moving=True),
    CUDA: CUDA._replace(method="zipnerf-dynamic", is_moving=True),
}
"""The same for a scene that moves."""


def data_arguments(data: Path, longest_side: int) -> list[str]:
    """The dataparser of ``ns-train`` for a data set, with its options.

    Args:
        data: a folder, or a transforms file.
        longest_side: images of this size are enough, pixels.

    Raises:
        InputError: no known data set is there; says what to do with plain photos.
    """
    if not data.exists():
        raise InputError(f"{data} does not exist.")
    found = find_format(data)
    if found is None:
        raise InputError(
            f"{data} has no camera poses ({', '.join(row.marker for row in FORMATS)}). For a folder of photos, "
            f"find them first:\n  python -m zipnerf_ns.tools.photos {data} data/mine\n"
            "then give data/mine here."
        )
    factor = ["--downscale-factor", str(downscale_factor(data, longest_side))] if found.reads_reduced else []
    return [f"{found.name}-data", *factor]


def downscale_factor(data: Path, longest_side: int) -> int:
    """The least reduction among the folders images, images_2, images_4, ... that brings images to a size.

    Args:
        longest_side: pixels; where no folder is small enough, the smallest is taken.
    """
    known = Image.registered_extensions()
    images = sorted(path for path in (data / "images").glob("*") if path.suffix.lower() in known)
    if not images:
        return 1
    with Image.open(images[0]) as image:
        side = max(image.size)
    factor = 1
    while side > longest_side * factor and (data / f"images_{2 * factor}").is_dir():
        factor *= 2
    return factor


def quiet_environment() -> dict[str, str]:
    """A program's environment, in which it prints at once, and no warnings.

    They are about nerfstudio's own lines, and would bury what the person looks for.
    """
    return {"PYTHONWARNINGS": "ignore", **script_environment(), "PYTHONUNBUFFERED": "1"}


def exit_reason(returncode: int) -> str:
    """An exit status in words."""
    if returncode >= 0:
        return f"exit status {returncode}"
    number = signal.Signals(-returncode)
    hint = ", often for lack of memory" if number == signal.SIGKILL else ""
    return f"ended by {number.name}{hint}"


def photos_command(photos: Path, scene: Path) -> list[str]:
    """What makes a scene of a folder of photographs and videos, going on where it ended before."""
    return [sys.executable, "-m", "zipnerf_ns.tools.photos", str(photos), str(scene)]


def train_command(folder: Path, data: Path, machine: Machine, steps: int) -> list[str]:
    """``ns-train``, leaving when it is done.

    Args:
        folder: of the run, as nerfstudio lays them out: output folder, experiment, method, time.
    """
    return [
        "ns-train",
        machine.method,
        *machine.options,
        *("--data", str(data)),
        *("--output-dir", str(folder.parents[2])),
        *("--experiment-name", folder.parents[1].name),
        *("--timestamp", folder.name),
        *("--machine.device-type", machine.device),
        *("--max-num-iterations", str(steps)),
        *("--steps-per-eval-image", str(max(steps // 4, 1))),
        # Nerfstudio evaluates during training only for a logger, not for its viewer alone.
        *("--vis", "tensorboard"),
        *("--viewer.quit-on-train-completion", "True"),
        *data_arguments(data, machine.longest_side),
    ]


def eval_command(folder: Path) -> list[str]:
    """``ns-eval`` of the run in a folder, with pictures of every held-out view."""
    return [
        "ns-eval",
        *("--load-config", str(folder / CONFIG)),
        *("--output-path", str(folder / METRICS)),
        *("--render-output-path", str(folder / PICTURES)),
    ]


def render_command(folder: Path, num_views: int, size: tuple[int, int], machine: Machine) -> list[str]:
    """``ns-render`` of the run in a folder, along the held-out cameras; where it moves, time runs meanwhile.

    Args:
        num_views: how many views were held out.
        size: width and height of the pictures, pixels.
    """
    # A path needs two cameras.
    source = "eval" if num_views > 1 else "train"
    frames = round(VIDEO_SECONDS * FRAME_RATE / (num_views - 1)) if num_views > 1 else 1
    return [
        "ns-render",
        "interpolate",
        *("--load-config", str(folder / CONFIG)),
        *("--output-path", str(folder / VIDEO)),
        *("--pose-source", source),
        *("--interpolation-steps", str(max(frames, 1))),
        # Where one camera has seen what moves, it stood near to where held-out ones of about that time are.
        *("--order-poses", str(not machine.is_moving)),
        *("--frame-rate", str(FRAME_RATE)),
        *("--downscale-factor", f"{video_reduction(size, machine.video_height):.6f}"),
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


def load_run(config: Path, data: Path | None = None, test_mode: TestMode = "inference") -> Pipeline:
    """The trained pipeline, by default without its images.

    Args:
        config: of the run.
        data: where its data are now, if not where they are found from there.
        test_mode: "test" for its photos, too.
    Raises:
        InputError: if there is no such run, nothing where the data are said to be, or more than a run's settings in
            its config.yml.
    """
    if not config.is_file():
        raise InputError(f"{config} does not exist. Give the config.yml that ns-train wrote.")
    if data is not None and not data.exists():
        raise InputError(f"{data} does not exist. Correct --data, or leave it out.")
    check_config_file(config)
    quiet_dependencies()
    # Late: it loads every method's entry point, which takes seconds.
    from nerfstudio.utils.eval_utils import eval_setup

    def with_data(run: Any) -> Any:
        run.pipeline.datamanager.data = data or run.pipeline.datamanager.data
        return run

    return eval_setup(config, test_mode=test_mode, update_config_callback=with_data)[1]


def load_field(config: Path, data: Path | None = None, test_mode: TestMode = "inference") -> Pipeline:
    """:func:`load_run` for what asks the field itself.

    Raises:
        InputError: for a run of another method, too.
    """
    pipeline = load_run(config, data, test_mode)
    if not hasattr(pipeline.model, "zipnerf"):
        raise InputError(f"{config} is of another method: this takes runs of zipnerf-ns.")
    return pipeline


def into_model_frame(pipeline: Pipeline) -> Similarity:
    """From the data set's frame into the one that the model was trained in: what the dataparser did to poses."""
    outputs = pipeline.datamanager.train_dataparser_outputs
    transform, scale = outputs.dataparser_transform.double(), float(outputs.dataparser_scale)
    # First its rotation and shift, then its scale.
    return Similarity(torch.tensor(scale, dtype=torch.float64), transform[:, :3], scale * transform[:, 3])
