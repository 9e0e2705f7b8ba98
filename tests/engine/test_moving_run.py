"""A run with time from its photos to its pictures: refused without times, measured at them, resumed and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import (
    assert_clear,
    checkpoint,
    load,
    read_meta,
    said_when_started,
    tiny_config,
    train,
    write_meta,
    write_scene,
)

from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.cameras.moments import TIME_VARIABLE
from zipnerf_ns.encoding.moving import MotionConfig, MovingGridConfig
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError

GRID = MovingGridConfig(3, 2, 4, 16, 9, 4, 8)


def moving_scene(folder: Path) -> Path:
    """Eight photos, one after the other."""
    meta = read_meta(write_scene(folder))
    for index, frame in enumerate(meta["frames"]):
        frame["timestamp"] = 10.0 + index
    write_meta(folder, meta)
    return folder


def moving_config(data: Path, output: Path, steps: int = 4, **changes: Any) -> ZipNerfTrainerConfig:
    """A tiny run of a model that knows time."""
    config = tiny_config(data, output, steps, **changes)
    config.pipeline.model.motion = MotionConfig("both", GRID, GRID)
    for proposal in config.pipeline.model.proposals:
        proposal.moving_grid = GRID
    return config


def test_data_without_times_end_in_one_line(tmp_path):
    said = said_when_started(moving_config(write_scene(tmp_path / "scene"), tmp_path / "out"))
    assert_clear(said, ("does not say when photos were taken", "'time'", "zipnerf"))


def test_a_training_with_time_stopped_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(TIME_VARIABLE, "0.5")
    said = said_when_started(moving_config(moving_scene(tmp_path / "scene"), tmp_path / "out"))
    assert_clear(said, ("A training sees photos at their own times", TIME_VARIABLE))


def test_a_run_is_measured_at_its_photos_times_resumed_and_stopped(tmp_path, monkeypatch):
    scene = moving_scene(tmp_path / "scene")
    whole = moving_config(scene, tmp_path / "whole")
    with CONSOLE.capture() as said:
        trainer, _ = train(whole)
    assert "export_mesh" in said.get() and said.get().count(" --time 0.5") == 1
    assert trainer.pipeline.datamanager.includes_time
    half = moving_config(scene, tmp_path / "half", steps=4)
    half.steps_per_save, half.save_only_latest_checkpoint = 2, False
    train(half)
    resumed = moving_config(scene, tmp_path / "half", load_checkpoint=checkpoint(half, 2), timestamp="resumed")
    train(resumed)
    assert load(checkpoint(resumed, 3))["pipeline"].keys() == load(checkpoint(whole, 3))["pipeline"].keys()

    pipeline = eval_setup(whole.get_base_dir() / "config.yml", test_mode="test")[1]
    asked: list[float] = []
    render = pipeline.model.get_outputs_for_camera

    def noted(camera: Any) -> Any:
        asked.extend(camera.times.flatten().tolist())
        return render(camera)

    pipeline.model.get_outputs_for_camera = noted
    psnr = pipeline.get_average_eval_image_metrics()["psnr"]
    # Every fourth of eight is held out.
    assert asked == pytest.approx([3 / 7, 1.0]) and psnr > 0.0
    assert pipeline.model.shutter == pytest.approx(1 / 7)

    monkeypatch.setenv(TIME_VARIABLE, "0.5")
    stopped = eval_setup(whole.get_base_dir() / "config.yml", test_mode="test")[1]
    with pytest.raises(InputError, match=f"Unset {TIME_VARIABLE}"):
        stopped.get_average_eval_image_metrics()
    camera = stopped.datamanager.eval_dataset.cameras[:1]
    first = stopped.model.get_outputs_for_camera(camera)["rgb"]
    camera.times = torch.ones(1, 1)
    assert torch.equal(first, stopped.model.get_outputs_for_camera(camera)["rgb"])
