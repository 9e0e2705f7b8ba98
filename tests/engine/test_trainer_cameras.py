"""Runs whose cameras are optimized: resumed, evaluated from their files, and kept apart from runs without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _scenes import assert_clear, checkpoint, load, said_when_started, start, tiny_config, train

from nerfstudio.utils.eval_utils import eval_setup

from zipnerf_ns.engine.step import why_no_graph

pytestmark = pytest.mark.usefixtures("fresh_writers")


def camera_config(scene: Path, output: Path, mode: str = "SO3xR3", **changes):
    config = tiny_config(scene, output, **changes)
    config.pipeline.model.camera_optimizer.mode = mode
    config.pipeline.eval_pose_steps = 2
    return config


def test_a_resumed_run_equals_the_uninterrupted_one(scene, tmp_path):
    """Poses, their optimizer and its schedule included, with held-out poses fitted to their photos in between."""
    options = dict(steps=9, steps_per_save=4, steps_per_eval_image=3, save_only_latest_checkpoint=False)
    whole = camera_config(scene, tmp_path, timestamp="whole", **options)
    train(whole, seed=1)
    resumed = camera_config(scene, tmp_path, timestamp="resumed", load_checkpoint=checkpoint(whole, 4), **options)
    train(resumed, seed=99)
    first, second, early = load(checkpoint(whole, 8)), load(checkpoint(resumed, 8)), load(checkpoint(whole, 4))
    name = "_model.camera_optimizer.pose_adjustment"
    torch.testing.assert_close(second["pipeline"][name], first["pipeline"][name], rtol=0.0, atol=1e-7)
    assert float((first["pipeline"][name] - early["pipeline"][name]).norm(dim=-1).min()) > 1e-5
    states = [saved["optimizers"]["camera_opt"]["state"][0] for saved in (first, second)]
    for key in ("exp_avg", "exp_avg_sq", "step"):
        torch.testing.assert_close(states[1][key], states[0][key])
    assert first["schedulers"]["camera_opt"] == second["schedulers"]["camera_opt"]


def test_evaluation_does_not_change_the_training(scene, tmp_path):
    """What fits poses to photos draws none of the training's random numbers and leaves nothing behind."""
    runs = []
    for every in (0, 2):
        config = camera_config(scene, tmp_path, timestamp=f"every{every}", steps=5, steps_per_eval_image=every)
        runs.append(train(config, seed=1)[1])
    assert runs[0] == runs[1]


def test_a_run_is_evaluated_from_its_files_as_it_was_in_training(scene, tmp_path):
    config = camera_config(scene, tmp_path, steps=6)
    config.optimizers["camera_opt"]["optimizer"].lr = 0.05
    trainer, _ = train(config)
    pipeline = eval_setup(config.get_base_dir() / "config.yml")[1]
    assert pipeline.config.eval_pose_steps == 2
    torch.testing.assert_close(pipeline._drift(), trainer.pipeline._drift())
    assert float(pipeline.model.camera_optimizer.pose_adjustment.abs().max()) > 1e-2
    found, truth = (each.get_average_eval_image_metrics() for each in (pipeline, trainer.pipeline))
    for name in ("psnr", "ssim", "pose_refined_degrees", "pose_refined_distance"):
        # On a GPU gradients are summed in any order, and Adam's steps do not shrink with a gradient.
        assert found[name] == pytest.approx(truth[name], rel=1e-3 if torch.cuda.is_available() else 1e-4), name


@pytest.mark.parametrize(("saved", "loaded", "parts"), [
    ("SO3xR3", "off", ("pose_adjustment", "config.yml")), ("off", "SO3xR3", ("camera_opt", "config.yml")),
])  # fmt: skip
def test_a_checkpoint_of_the_other_kind_is_refused(scene, tmp_path, saved, loaded, parts):
    config = camera_config(scene, tmp_path, saved, timestamp="saved", steps=2)
    train(config)
    path = checkpoint(config, 1)
    names = [name for name in load(path)["pipeline"] if "camera" in name]
    assert len(names) == (saved != "off") and ("camera_opt" in load(path)["optimizers"]) == (saved != "off")
    other = camera_config(scene, tmp_path, loaded, timestamp="loaded", steps=4, load_checkpoint=path)
    assert_clear(said_when_started(other), parts)


@pytest.mark.parametrize("mode", ["off", "SO3xR3", "SE3"])
def test_cameras_do_not_keep_a_step_from_being_a_graph(scene, tmp_path, monkeypatch, mode):
    trainer = start(camera_config(scene, tmp_path, mode))
    # As on a GPU where all else can be captured.
    trainer.device = "cuda"
    monkeypatch.setattr(type(trainer.pipeline.model), "uses_kernels", True)
    monkeypatch.setattr(type(trainer.pipeline.datamanager), "is_capturable", True)
    assert why_no_graph(trainer) is None
