"""A run's splats: distilled, measured, and written as a run of splatfacto."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zipnerf_ns.engine.messages import VIEWED_HERE, command_line
from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.distill.distill import distill, scene_of
from zipnerf_ns.splats.distill.fit import SplatConfig
from zipnerf_ns.splats.distill.quality import Quality, frames_per_second, measure
from zipnerf_ns.splats.gaussians import Gaussians
from zipnerf_ns.splats.rasterizer import Gsplat
from zipnerf_ns.splats.run_folder import splatfacto_config, write_run

UNFINISHED = "splats_unfinished.ckpt"
"""Beside the field's config.yml while its splats are being made: what they go on from."""


class Made(NamedTuple):
    """What was made."""

    gaussians: Gaussians
    """In the field's frame, on its device."""
    config: Path
    """The config.yml of their run."""
    frames: float
    """Pictures of 1920x1080 a second."""
    quality: Quality | None
    """None where there is no held-out photo."""


def make_splats(
    pipeline: Any,
    config: SplatConfig,
    output_dir: Path,
    experiment: str,
    unfinished: Path,
    say: Callable[[str], object],
    resumes: bool = False,
    stops: Callable[[], bool] = lambda: False,
) -> Made:
    """Distills a field, says how good the splats are, and writes their run.

    Args:
        pipeline: of the field; gsplat must be ready.
        config: the settings.
        output_dir, experiment: the run's folder is ``OUTPUT_DIR/EXPERIMENT/splatfacto/TIME``.
        unfinished, resumes, stops: as for :func:`~zipnerf_ns.splats.distill.distill.distill`.
        say: takes lines.
    Raises:
        InputError: as that function does, and where the GPU's memory does not suffice.
        Stopped: as that function does.
    """
    scene = scene_of(pipeline)
    try:
        gaussians = distill(scene, config, say, None, unfinished, resumes, stops)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"the GPU's memory does not suffice for {config.max_gaussians:,} Gaussians beside the field: lower "
            "--max-gaussians."
        ) from error
    run = splatfacto_config(pipeline, gaussians, output_dir, experiment, datetime.now().strftime("%Y-%m-%d_%H%M%S"))
    path = write_run(run, pipeline, gaussians, run.max_num_iterations)
    rasterizer = Gsplat(gaussians.antialiased)
    frames = frames_per_second(gaussians, scene.cameras, rasterizer)
    say(f"{len(gaussians):,} Gaussians, {frames:.0f} pictures of 1920x1080 a second on this GPU.")
    quality = measure(pipeline, gaussians, rasterizer)
    if quality is not None:
        say(str(quality))
    say(next_commands(path))
    return Made(gaussians, path, frames, quality)


def next_commands(config: Path) -> str:
    """What can be done with the splats, one command a line.

    Args:
        config: config.yml of their run.
    """
    given, folder = ["--load-config", config], config.parent
    commands = {
        "look at them": ["ns-viewer", *given, *VIEWED_HERE],
        "measure them": ["ns-eval", *given, "--output-path", folder / "eval.json"],
        "make a video": ["ns-render", "interpolate", *given, "--output-path", folder / "video.mp4"],
        "have a .ply": ["ns-export", "gaussian-splat", *given, "--output-dir", folder / "export"],
    }
    return "\n".join(f"To {what}:".ljust(19) + command_line(*command) for what, command in commands.items())
