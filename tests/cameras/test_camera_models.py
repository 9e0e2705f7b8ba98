"""Trainings and evaluations of a few steps with every camera model that a scene may have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import make_datamanager, read_meta, tiny_config, train, write_meta, write_scene

MODELS: dict[str, dict[str, Any]] = {
    "OPENCV": {"k1": 0.05, "k2": -0.01, "p1": 0.001, "p2": 0.002},
    "OPENCV_FISHEYE": {"k1": 0.02, "k2": -0.01, "k3": 0.001, "k4": -0.001},
    "FISHEYE624": {"distortion_params": [0.01, *[0.0] * 11]},
    "EQUIRECTANGULAR": {},
    "ORTHOPHOTO": {},
}


def scene_of(folder: Path, model: str, width: int, height: int) -> Path:
    """Pictures of a model; panoramas are whole spheres, plan views three units wide."""
    scene = write_scene(folder / "scene", sizes=[(width, height)] * 8)
    meta = {**read_meta(scene), "camera_model": model, **MODELS[model]}
    focal = {"EQUIRECTANGULAR": (width / 2, height), "ORTHOPHOTO": (width / 3, width / 3)}.get(model)
    for frame in meta["frames"] if focal else ():
        frame["fl_x"], frame["fl_y"] = focal
    write_meta(scene, meta)
    return scene


@pytest.mark.parametrize(("width", "height"), [(32, 16), (33, 17)], ids=["even", "odd"])
@pytest.mark.parametrize("model", MODELS)
def test_every_camera_model_trains_and_is_evaluated(tmp_path, fresh_writers, model, width, height):
    """Odd sizes have a pixel right on the optical axis."""
    config = tiny_config(scene_of(tmp_path, model, width, height), tmp_path / "out", 12, steps_per_eval_batch=5)
    trainer, losses = train(config)
    assert len(losses) == 12 and all(math.isfinite(loss) for loss in losses.values())
    assert sum(list(losses.values())[-4:]) < sum(list(losses.values())[:4])
    assert all(torch.isfinite(parameter).all() for parameter in trainer.pipeline.model.parameters())
    pipeline = trainer.pipeline.eval()
    camera, batch = pipeline.datamanager.next_eval_image(0)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    assert batch["image"].shape == outputs["rgb"].shape == (height, width, 3)
    assert all(torch.isfinite(outputs[name]).all() for name in outputs)
    metrics = pipeline.get_average_eval_image_metrics()
    assert math.isfinite(metrics["psnr"]) and -1.0 <= metrics["ssim"] <= 1.0


def test_panoramas_are_seen_all_around(tmp_path):
    """The rays of one evaluated picture point everywhere: evenly where each counts by the area that it sees."""
    manager = make_datamanager(scene_of(tmp_path, "EQUIRECTANGULAR", 64, 32), eval_num_rays_per_batch=4096)
    bundle, batch = manager.next_eval(0)
    phi = math.pi * (batch["indices"][:, 1] + 0.5) / 32
    weights = torch.sin(phi)[:, None] / torch.sin(phi).sum()
    # Of 4096 random directions the mean is off by 1 / sqrt(3 x 4096), about 0.01, a coordinate.
    assert (weights * bundle.directions).sum(dim=0).abs().max() < 0.05
    assert ((weights * bundle.directions.square()).sum(dim=0) - 1.0 / 3.0).abs().max() < 0.05


def test_orthographic_rays_are_parallel_and_without_width(tmp_path):
    """Their pixels' cones do not open, so nothing is anti-aliased: a limit that the documentation names."""
    manager = make_datamanager(scene_of(tmp_path, "ORTHOPHOTO", 32, 16))
    bundle, batch = manager.next_train(0)
    own = batch["indices"][:, 0] == 0
    assert own.any() and (bundle.directions[own] - bundle.directions[own][0]).abs().max() < 1e-6
    assert (bundle.pixel_area == 0.0).all()
