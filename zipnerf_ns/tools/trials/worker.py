"""The process of one trial: ``python -m zipnerf_ns.tools.trials.worker FOLDER``, which :mod:`trial` starts."""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from zipnerf_ns.data.metadata import find_scales, mean_metrics, means_by_scale
from zipnerf_ns.tools.trials.config import Prepared, prepare, set_steps
from zipnerf_ns.tools.trials.training import Course, draw_same_rays, release, renders_pictures, set_up, train
from zipnerf_ns.tools.trials.trial import RESULT_FILE, VIEWS, Trial, load_trial, save_json
from zipnerf_ns.tools.trials.views import LPIPS_VARIANT, View, mean_psnr, measure, save_view, spread

WARM_UP_SECONDS, WARM_UP_STEPS = 2.0, 3
"""Of a first, discarded training, for what is compiled at first use and a first idea of the speed."""
REHEARSAL_SHARE, REHEARSAL_SECONDS = 1.0 / 12.0, 2.0
"""Of the seconds, and at least: a discarded training with its whole schedule in that time, whose speed is the whole
one's."""


def warm_up(trial: Trial, prepared: Prepared) -> Course:
    """Trains shortly and throws the result away."""
    steps = WARM_UP_STEPS if trial.seconds is None else prepared.own_steps
    trainer, setup_seconds = set_up(set_steps(prepared, steps, stretch=False))
    seconds = None if trial.seconds is None else min(WARM_UP_SECONDS, trial.seconds)
    course = train(trainer, seconds)
    course.setup_seconds = setup_seconds
    release(trainer)
    return course


def steps_that_fit(trial: Trial, prepared: Prepared, first: Course) -> int:
    """The number of steps that the seconds are enough for, from the speed of a small whole training."""
    short = min(max(trial.seconds * REHEARSAL_SHARE, REHEARSAL_SECONDS), trial.seconds)
    steps = max(round(first.steps_per_second * short), 2)
    trainer, _ = set_up(set_steps(prepared, steps, trial.schedule == "stretched"))
    course = train(trainer, 3.0 * short)
    release(trainer)
    return max(round(course.steps_per_second * trial.seconds), 2)


def perform(trial: Trial, folder: Path) -> dict[str, Any]:
    """Trains and measures.

    Raises:
        Exception: whatever the method raises.
    """
    prepared = prepare(trial, folder / "nerfstudio")
    result: dict[str, Any] = {"trial": dataclasses.asdict(trial), "machine": machine(trial.device)}
    if trial.build_only:
        course = warm_up(dataclasses.replace(trial, seconds=None, steps=WARM_UP_STEPS), prepared)
        return {**result, **dataclasses.asdict(course), "notes": prepared.notes}
    if trial.seconds is not None or trial.device == "cuda":
        first = warm_up(trial, prepared)
        result["first_use"] = {"setup": first.setup_seconds, "first_step": first.first_step_seconds}
    planned = trial.steps if trial.steps is not None else steps_that_fit(trial, prepared, first)
    trainer, setup_seconds = set_up(set_steps(prepared, planned, trial.schedule == "stretched"))
    if trial.same_rays:
        draw_same_rays(trainer, trial.seed)
    course = train(trainer, trial.seconds, trial.moments, lambda pipeline: mean_psnr(pipeline, prepared.has_alpha))
    course.setup_seconds = setup_seconds
    result.update(dataclasses.asdict(course), planned_steps=planned, schedule=_schedule(trial, prepared, planned))
    result.update(_measured(trial, prepared, trainer, folder))
    result["curve"].append({"step": course.steps, "seconds": course.seconds, "psnr": result["metrics"]["psnr"]})
    release(trainer)
    return result


def _measured(trial: Trial, prepared: Prepared, trainer: Any, folder: Path) -> dict[str, Any]:
    """Metrics of all held-out views, and the kept ones' pictures."""
    dataset = trainer.pipeline.datamanager.eval_dataset
    kept = spread(len(dataset), trial.kept_views)

    def keep(index: int, view: View) -> None:
        if index in kept:
            save_view(folder / VIEWS, index, view)

    per_image, speed = measure(trainer.pipeline, prepared.has_alpha, keep)
    scales = find_scales(dataset.image_filenames, dataset.metadata, Path(trial.scene))
    by_scale = means_by_scale(per_image, scales)
    images = [str(path) for path in dataset.image_filenames]
    notes: list[str] = list(prepared.notes)
    distortion = dataset.cameras.distortion_params
    if renders_pictures(trainer.pipeline) and distortion is not None and bool(distortion.any()):
        notes.append("trained and measured on undistorted pictures: it renders no lens distortion")
    has_lpips = all("lpips" in metrics for metrics in per_image)
    return {
        # With several scales every scale counts the same.
        "metrics": mean_metrics(list(by_scale.values()) or per_image),
        "by_scale": {str(scale): means for scale, means in by_scale.items()},
        "per_image": [
            {"image": image, **({} if scales is None else {"scale": scales[index]}), **metrics}
            for index, (image, metrics) in enumerate(zip(images, per_image, strict=True))
        ],
        "rendered_rays_per_second": speed,
        "kept_views": list(kept),
        "lpips": LPIPS_VARIANT if has_lpips else "not measured: its weights are not here, or a picture is too small",
        "notes": notes,
    }


def _schedule(trial: Trial, prepared: Prepared, planned: int) -> str:
    if prepared.is_ours:
        return f"its own, which follows the number of steps ({planned:,})"
    if trial.schedule == "stretched":
        return f"its own for {prepared.own_steps:,} steps, stretched to {planned:,}"
    return f"its own for {prepared.own_steps:,} steps"


def machine(device: str) -> dict[str, str]:
    """What it ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else platform.processor()
    return {"device": name or platform.machine(), "torch": torch.__version__, "python": platform.python_version()}


def main(arguments: list[str]) -> int:
    """Performs the trial of the folder that is named, and leaves its result there."""
    folder = Path(arguments[0])
    trial, start = load_trial(folder), time.perf_counter()
    try:
        result = {**perform(trial, folder), "status": "done"}
    except Exception as error:
        # A result like any other; where it comes from stands in the log.
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        result = {"trial": dataclasses.asdict(trial), "status": "failed", "reason": reason}
    save_json(folder / RESULT_FILE, {**result, "total_seconds": time.perf_counter() - start})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
