"""The built-in scene in motion: what moves and what does not, its cameras and times, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from _scenes import make_datamanager
from PIL import Image

from zipnerf_ns.data.datamanager import SCENE_HINTS
from zipnerf_ns.data.transforms import read_transforms
from zipnerf_ns.tools import demo_scene
from zipnerf_ns.tools.demo_scene import main, write_scene
from zipnerf_ns.tools.scene.procedural import Box, Cylinder, Shape, Sphere
from zipnerf_ns.tools.scene.render import Pinhole, render_view
from zipnerf_ns.tools.scene.world import PLINTH_TOP, Moment, bodies

TINIEST = dict(width=16, height=8, samples_per_pixel=1, num_test=4)
TIMES = np.linspace(0.0, 1.0, 41).tolist()


def shapes(time: float, kind: type[Shape]) -> list[Shape]:
    """What is on the plinth."""
    return [body.shape for body in bodies(Moment(time)) if body.near and isinstance(body.shape, kind)]


def test_things_translate_turn_deform_and_appear():
    balls = np.array([[shape.center for shape in shapes(time, Sphere)] for time in TIMES])
    steps = np.linalg.norm(np.diff(balls, axis=0), axis=-1)
    # The rolling one goes a long way, no ball jumps, and the globe stays.
    assert steps.sum(axis=0).max() > 2.0 and steps.max() < 0.2 and steps.sum(axis=0).min() == 0.0
    (marble,) = (column for column in zip(*(shapes(time, Sphere) for time in TIMES), strict=True)
                 if len({shape.radius for shape in column}) > 1)  # fmt: skip
    assert min(shape.radius for shape in marble) < 0.13 < 0.17 < max(shape.radius for shape in marble)
    heights = [max(shape.half_height for shape in shapes(time, Cylinder) if shape.radius == 0.11) for time in TIMES]
    assert max(heights) - min(heights) == pytest.approx(0.2, abs=1e-3)
    yaws = [shapes(time, Box)[-1].yaw for time in TIMES]
    assert yaws[-1] - yaws[0] == pytest.approx(np.pi / 2)
    assert [len(shapes(time, Box)) for time in (0.0, 0.29, 0.3, 0.74, 0.75, 1.0)] == [15, 15, 16, 16, 15, 15]


def test_nothing_runs_into_anything():
    """Balls touch others at most, but for those of the crawling row, which are one thing."""
    for time in TIMES:
        solids = [body.shape for body in bodies(Moment(time)) if body.near]
        row = [shape for shape in solids if isinstance(shape, Sphere) and shape.radius == 0.085]
        assert len(row) == 7
        for ball in solids:
            if isinstance(ball, Sphere) and ball.radius > 0.05:
                center = np.array(ball.center)[:, None]
                others = [other for other in solids if other is not ball and not (ball in row and other in row)]
                assert min(float(other.distance(center)[0]) for other in others) > ball.radius - 1e-9
                assert ball.center[2] - ball.radius > PLINTH_TOP - 1e-9


def test_patterns_go_with_what_deforms():
    """A place on the marble has one color, however large it is."""
    columns = []
    for time in (0.1, 0.4, 0.5):
        (body,) = (body for body in bodies(Moment(time)) if body.near and body.shape.center[:2] == (0.44, -0.50))
        directions = np.random.default_rng(0).normal(size=(3, 50))
        directions /= np.linalg.norm(directions, axis=0)
        columns.append((body.shape.radius, body.texture(body.shape.radius * directions, directions)))
    assert len({radius for radius, _ in columns}) == 3
    for _, colors in columns[1:]:
        np.testing.assert_allclose(colors, columns[0][1], atol=1e-12)


def test_what_is_far_stands_still():
    pose = np.array([[1.0, 0, 0, 0], [0, 0, -1, -2.0], [0, 1.0, 0, 4.0]])
    pinhole = Pinhole(20.0, 20.0, 16.0, 0.0, 32, 8)
    # From above the plinth, level: its own things are below the picture.
    first, later = (render_view(pose, pinhole, 4, 0, time=time) for time in (0.0, 0.6))
    np.testing.assert_array_equal(first, later)
    assert first.std() > 0.05


def read(folder: Path) -> dict:
    return json.loads((folder / "transforms.json").read_text())


@pytest.mark.parametrize(("motion", "count", "moments"), [("one-camera", 5, 5), ("eight-cameras", 24, 3)])
def test_frames_have_their_times_and_pictures(tmp_path, motion, count, moments):
    scene = write_scene(tmp_path / "scene", **TINIEST, motion=motion, num_train=count)
    meta = read(scene)
    assert read_transforms(scene / "transforms.json").warnings == []
    frames = {frame["file_path"]: frame for frame in meta["frames"]}
    trained, held_out = ([frames[name] for name in meta[f"{split}_filenames"]] for split in ("train", "test"))
    steps = np.linspace(0, 1, moments)
    np.testing.assert_allclose([frame["time"] for frame in trained], np.tile(steps, count // moments))
    assert len(held_out) == 4 and {frame["time"] for frame in held_out} <= set(steps)
    assert min(frame["time"] for frame in held_out) < 0.5 < max(frame["time"] for frame in held_out)
    poses = np.array([frame["transform_matrix"] for frame in trained]).reshape(-1, moments, 4, 4)
    stands = [len(np.unique(each, axis=0)) for each in poses]
    assert stands == ([1] * 8 if motion == "eight-cameras" else [5])
    for frame in (trained[1], held_out[-1]):
        pinhole = Pinhole(*(meta[key] for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")))
        pose = np.array(frame["transform_matrix"])
        exact = render_view(pose, pinhole, 1, frame["sample_seed"], time=frame["time"])
        stored = np.asarray(Image.open(scene / frame["file_path"])) / 255
        assert np.abs(stored - exact).max() <= 0.51 / 255
    with pytest.raises(FileExistsError, match=f"motion {motion} instead of none"):
        write_scene(scene, **TINIEST, num_train=count)


def test_a_training_reads_them(tmp_path):
    scene = write_scene(tmp_path / "scene", **TINIEST, motion="eight-cameras", num_train=24)
    manager = make_datamanager(scene, uses_time=True)
    assert manager.train_dataset.metadata[SCENE_HINTS].time_step == 0.5
    bundle, batch = manager.next_train(0)
    assert torch.equal(bundle.times, torch.linspace(0, 1, 3).repeat(8)[batch["indices"][:, 0], None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgba": True}, "neither rgba nor detail far"),
        ({"detail": "far"}, "neither rgba nor detail far"),
        ({"num_train": 12}, "give 8 for each of two moments"),
        ({"num_train": 8}, "give 8 for each of two moments"),
    ],
)
def test_what_does_not_go_with_motion_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_scene(tmp_path / "scene", **{**TINIEST, "motion": "eight-cameras", "num_train": 16, **change})


def test_command_line_has_a_default_number_of_views_for_each_motion(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "one-camera 96 and 12" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(demo_scene, "_draw", lambda task, views, workers: None)
    main([str(tmp_path), "--motion", "one-camera"])
    assert len(read(tmp_path)["frames"]) == 96 + 12
