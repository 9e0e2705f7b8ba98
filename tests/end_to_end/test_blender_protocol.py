"""NeRF-synthetic's protocol: the preset alone, on a folder in the published layout."""

from __future__ import annotations

import numpy as np
import torch
from _scenes import start, tiny_config, write_blender_scene

from zipnerf_ns.config import zipnerf_blender


def test_training_on_the_published_layout(tmp_path):
    """Trained on train, measured on test; white behind, the scene box around, distances between 2 and 6."""
    scene = write_blender_scene(tmp_path / "lego")
    preset = zipnerf_blender.config.pipeline
    config = tiny_config(scene, tmp_path / "out", steps=2, dataparser=preset.datamanager.dataparser)
    for name in ("near_plane", "far_plane", "scene_bounds", "background_color", "use_appearance"):
        setattr(config.pipeline.model, name, getattr(preset.model, name))
    trainer = start(config)
    trainer.train()
    model = trainer.pipeline.model.eval()
    assert torch.equal(model.zipnerf.aabb, torch.tensor([[-1.5] * 3, [1.5] * 3]))
    assert model.background.tolist() == [1.0] * 3
    pipeline = config.pipeline.setup(device="cpu", test_mode="test", world_size=1, local_rank=0)
    assert {path.parent.name for path in pipeline.datamanager.train_dataset.image_filenames} == {"train"}
    assert {path.parent.name for path in pipeline.datamanager.eval_dataset.image_filenames} == {"test"}
    assert np.isfinite(pipeline.get_average_eval_image_metrics()["psnr"])
    for camera, _ in pipeline.datamanager.fixed_indices_eval_dataloader:
        outputs = model.get_outputs_for_camera(camera)
        # What meets nothing has a depth behind everything.
        seen = outputs["accumulation"] > 0.5
        assert ((outputs["depth"][seen] >= 2.0) & (outputs["depth"][seen] <= 6.0)).all()
