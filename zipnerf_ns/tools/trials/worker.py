"""The process of one trial: ``python -m zipnerf_ns.tools.trials.worker FOLDER TRIAL``, which :mod:`trial` starts."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.data.metadata import find_scales, mean_metrics, means_by_scale, per_image_rows
from zipnerf_ns.tools.trials.config import Prepared, prepare, set_steps
from zipnerf_ns.tools.trials.training import Course, draw_same_rays, release, renders_pictures, set_up, train
from zipnerf_ns.tools.trials.trial import RESULT_FILE, VIEWS, Trial, save_failure
from zipnerf_ns.tools.trials.views import LPIPS_VARIANT, mean_psnr, measure

WARM_UP_SECONDS, WARM_UP_STEPS = 2.0, 3
"""Length of a first, discarded training, for what is compiled at first use and a first idea of the speed."""
REHEARSAL_SHARE, REHEARSAL_SECONDS = 1.0 / 12.0, 2.0
"""Length of a second one, of the seconds and at least: its schedule is whole, and its speed is the whole training's."""


def rehearse(config: Any, seconds: float | None) -> Course:
    """A training that is thrown away."""
    trainer, setup_seconds = set_up(config)
    course = train(trainer, seconds)
    course.setup_seconds = setup_seconds
    release(trainer)
    return course


def steps_that_fit(trial: Trial, prepared: Prepared, first: Course) -> int:
    """The number of steps that the seconds are enough for, from the speed of a small whole training."""
    short = min(max(trial.seconds * REHEARSAL_SHARE, REHEARSAL_SECONDS), trial.seconds)
    steps = max(round(first.steps_per_second * short), 2)
    course = rehearse(set_steps(prepared, steps, trial.schedule == "stretched"), 3.0 * short)
    return max(round(course.steps_per_second * trial.seconds), 2)


def perform(trial: Trial, folder: Path) -> dict[str, Any]:
    """Trains and measures.

    Raises:
        Exception: whatever the method raises.
    """
    prepared = prepare(trial, folder / "nerfstudio")
    result: dict[str, Any] = {"trial": dataclasses.asdict(trial), "machine": machine(trial.device)}
    own_steps, first = prepared.config.max_num_iterations, None
    if trial.build_only or trial.seconds is not None or trial.device == "cuda":
        by_steps = trial.build_only or trial.seconds is None
        config = set_steps(prepared, WARM_UP_STEPS if by_steps else own_steps, stretch=False)
        first = rehearse(config, None if by_steps else min(WARM_UP_SECONDS, trial.seconds))
        if trial.build_only:
            return {**result, **dataclasses.asdict(first), "notes": prepared.notes}
    planned = trial.steps if trial.steps is not None else steps_that_fit(trial, prepared, first)
    trainer, setup_seconds = set_up(set_steps(prepared, planned, trial.schedule == "stretched"))
    if trial.same_rays:
        draw_same_rays(trainer, trial.seed)
    course = train(trainer, trial.seconds, trial.moments, lambda pipeline: mean_psnr(pipeline, prepared.has_alpha))
    course.setup_seconds = setup_seconds
    if prepared.is_ours:
        schedule = f"its own, which follows the number of steps ({planned:,})"
    else:
        stretched = f", stretched to {planned:,}" if trial.schedule == "stretched" else ""
        schedule = f"its own for {own_steps:,} steps{stretched}"
    measured = measurements(trial, prepared, trainer.pipeline, folder)
    release(trainer)
    result.update(dataclasses.asdict(course), planned_steps=planned, schedule=schedule, **measured)
    result["first_use_seconds"] = (first or course).first_step_seconds
    result["curve"].append({"step": course.steps, "seconds": course.seconds, "psnr": result["metrics"]["psnr"]})
    return result


def measurements(trial: Trial, prepared: Prepared, pipeline: Any, folder: Path) -> dict[str, Any]:
    """Metrics of all held-out views, and what a reader of them must know; some views' pictures are kept."""
    dataset = pipeline.datamanager.eval_dataset
    per_image, kept, speed = measure(pipeline, prepared.has_alpha, folder / VIEWS)
    scales = find_scales(dataset.image_filenames, dataset.metadata, Path(trial.scene))
    by_scale = means_by_scale(per_image, scales)
    notes = list(prepared.notes)
    distortion = dataset.cameras.distortion_params
    if renders_pictures(pipeline) and distortion is not None and bool(distortion.any()):
        notes.append("trained and measured on undistorted images: it renders no lens distortion")
    has_lpips = all("lpips" in metrics for metrics in per_image)
    return {
        # With several scales every scale counts the same.
        "metrics": mean_metrics(list(by_scale.values()) or per_image),
        "by_scale": {str(scale): means for scale, means in by_scale.items()},
        "per_image": per_image_rows(dataset.image_filenames, scales, per_image),
        "rendered_rays_per_second": speed,
        "kept_views": kept,
        "lpips": LPIPS_VARIANT if has_lpips else "not measured: its weights are not here, or a picture is too small",
        "notes": notes,
    }


def machine(device: str) -> dict[str, str]:
    """What it ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else platform.processor()
    return {"device": name or platform.machine(), "torch": torch.__version__, "python": platform.python_version()}


def main(arguments: list[str]) -> int:
    """Performs a trial, given as JSON, and leaves its result in the folder that is named before it."""
    folder, fields, start = Path(arguments[0]), json.loads(arguments[1]), time.perf_counter()
    trial = Trial(**{**fields, "scales": tuple(fields["scales"])})
    try:
        result = {**perform(trial, folder), "status": "done"}
        write_json(folder / RESULT_FILE, {**result, "total_seconds": time.perf_counter() - start})
    except Exception as error:
        # A result like any other; where it comes from stands in the log.
        traceback.print_exc()
        save_failure(folder, trial, f"{type(error).__name__}: {error}".splitlines()[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
