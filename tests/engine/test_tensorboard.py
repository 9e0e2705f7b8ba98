"""What TensorBoard shows of a run, read from the event file that the run wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from _scenes import tiny_config, train, write_scene
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig

from zipnerf_ns.render.metrics import ImageMetrics

pytestmark = pytest.mark.usefixtures("fresh_writers")

LOSSES = ("rgb_loss", "interlevel_loss", "distortion_loss", "hash_decay")
PICTURES = ("img", "error", "accumulation", "depth", "prop_depth_0")


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventAccumulator:
    """Those of 13 steps, of which every fourth is logged, with collisions counted at step 8 and a view at step 10."""
    monkeypatch.setattr(ImageMetrics, "lpips", {})
    scene = write_scene(tmp_path / "scene", sizes=[(36, 32)] * 8)
    logging = LoggingConfig(steps_per_log=4, local_writer=LocalWriterConfig(enable=False), profiler="none")
    config = tiny_config(scene, tmp_path, steps=13, logging=logging, steps_per_eval_image=10)
    config.pipeline.model.collision_check_steps = 8
    train(config)
    accumulator = EventAccumulator(str(config.get_base_dir()), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_the_event_file_has_what_training_is_judged_by(events):
    scalars = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    logged = [0, 4, 8, 12]
    sizes = [f"Feature RMS/grid/level_{level}" for level in range(4)]
    sizes += [f"Feature RMS/proposals.0.grid/level_{level}" for level in range(3)]
    rates = [f"learning_rate/{group}" for group in ("hash_tables", "networks")]
    losses = [f"Train Loss Dict/{name}" for name in LOSSES]
    for tag in ("Train Loss", "Train Metrics Dict/psnr", *losses, *sizes, *rates):
        assert scalars[tag] == logged, tag
    assert [tag for tag in scalars if tag.startswith("Feature RMS/")] == sizes[4:] + sizes[:4]
    for level in range(4):
        # The latest count goes on being shown.
        assert scalars[f"Train Metrics Dict/collision_free/level_{level}"] == [8, 12]
    for tag in ("Eval Images Metrics/psnr", "Eval Images Metrics/ssim", "Test PSNR"):
        assert scalars[tag] == [10], tag
    assert not [tag for tag in scalars if "GPU" in tag], "there is none"
    # The tables grow from their first 1e-4.
    assert events.Scalars(sizes[0])[0].value < 0.5 * events.Scalars(sizes[0])[-1].value


def test_a_held_out_views_pictures_are_there_with_their_error(events):
    assert sorted(events.Tags()["images"]) == sorted(f"Eval Images/{name}" for name in PICTURES)
    for name in PICTURES:
        (picture,) = events.Images(f"Eval Images/{name}")
        # Truth and rendering lie side by side.
        assert (picture.step, picture.width, picture.height) == (10, 72 if name == "img" else 36, 32), name
