"""The measure of flicker: on pictures whose changes are known, and on poses that come back as they were."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zipnerf_ns.tools import shimmer
from zipnerf_ns.tools.scene.render import Pinhole

PINHOLE = Pinhole(30.0, 30.0, 16.0, 12.0, 32, 24)


def pictures(frames: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((frames, 4, 6, 3))


def test_exact_pictures_do_not_flicker():
    calm = shimmer.measure(pictures(), pictures())
    assert calm.flicker == 0.0 and calm.psnr == pytest.approx(120.0)


def test_what_stays_is_no_flicker_and_what_alternates_is():
    truth = pictures()
    constant = shimmer.measure(truth + 0.1 * pictures(1, 1), truth)
    assert constant.flicker == pytest.approx(0.0, abs=1e-9) and constant.psnr < 30.0
    signs = np.array([1.0, -1.0, 1.0, -1.0, 1.0])[:, None, None, None]
    alternating = shimmer.measure(truth + 0.1 * signs, truth)
    assert alternating.flicker == pytest.approx(0.2 * 255.0) and alternating.psnr == pytest.approx(20.0)


def test_the_camera_moves_by_a_part_of_a_pixel_and_looks_at_the_scene():
    first, second = shimmer.orbit(2, PINHOLE)
    for pose, _ in (first, second):
        np.testing.assert_allclose(pose[:, :3].T @ pose[:, :3], np.eye(3), atol=1e-12)
        np.testing.assert_allclose(pose[:, 2] * shimmer.RADIUS, pose[:, 3], atol=1e-12)
    # A point before the center, seen by both.
    point = 0.5 * first.pose[:, 2]
    seen = []
    for pose, _ in (first, second):
        x, y, z = pose[:, :3].T @ (point - pose[:, 3])
        seen.append(np.array([x, y]) / -z * PINHOLE.fx)
    assert 0.01 < np.abs(seen[1] - seen[0]).max() < shimmer.STEP


def test_a_renderer_that_is_exact_is_calmer_than_few_samples(monkeypatch, capsys):
    for name, value in {"TRUTH_SAMPLES": 36, "COUNT": 3, "WIDTH": 32, "HEIGHT": 24}.items():
        monkeypatch.setattr(shimmer, name, value)
    monkeypatch.setattr(shimmer, "load", lambda config, data: (None, "none"))
    monkeypatch.setattr(
        shimmer, "rendered_pictures", lambda pipeline, shots, pinhole: shimmer.true_pictures(shots, pinhole, 36)
    )
    assert shimmer.main(["--load-config", "exact.yml"]) == 0
    _, _, *rows, exact = capsys.readouterr().out.splitlines()
    names, psnr, flicker, change = zip(*(row.strip("| ").split(" | ") for row in rows), strict=True)
    assert names == ("exact.yml", "the scene itself, 16 samples a pixel", "the scene itself, 1 sample a pixel")
    assert exact.startswith("| the scene itself, exact") and exact.split("|")[-2].strip() == change[0]
    assert 0.0 == float(flicker[0]) < float(flicker[1]) < float(flicker[2])
    assert [float(each.removesuffix(" dB")) for each in psnr] == sorted(
        (float(each.removesuffix(" dB")) for each in psnr), reverse=True
    )


def test_a_run_is_rendered_in_its_own_frame():
    """Its model gets the camera that the dataparser would have made of the pose."""
    angle = 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]])
    transform = np.concatenate([rotation, [[0.1], [-0.2], [0.3]]], axis=1)
    given = []

    class Model(torch.nn.Module):
        device = torch.device("cpu")

        def get_outputs_for_camera(self, camera):
            given.append(camera)
            return {"rgb": torch.full((24, 32, 3), 0.5)}

    outputs = SimpleNamespace(dataparser_transform=torch.from_numpy(transform), dataparser_scale=0.25)
    pipeline = SimpleNamespace(model=Model(), datamanager=SimpleNamespace(train_dataparser_outputs=outputs))
    ((pose, _),) = shimmer.orbit(1, PINHOLE)
    frames = shimmer.rendered_pictures(pipeline, [shimmer.Shot(pose, 0.3)], PINHOLE)
    assert frames.shape == (1, 24, 32, 3)
    (camera,) = given
    found = camera.camera_to_worlds[0].numpy()
    np.testing.assert_allclose(found[:, :3], rotation @ pose[:, :3], atol=1e-6)
    np.testing.assert_allclose(found[:, 3], 0.25 * (rotation @ pose[:, 3] + transform[:, 3]), atol=1e-6)
    assert float(camera.fx) == 30.0 and int(camera.width) == 32
    assert camera.times.tolist() == [[pytest.approx(0.3)]]


def test_in_the_scene_in_motion_a_still_camera_sees_what_moves_and_nothing_else():
    shots = shimmer.still(4, 0.02)
    assert [shot.time for shot in shots] == pytest.approx([0.47, 0.49, 0.51, 0.53])
    assert all(np.array_equal(shot.pose, shots[0].pose) for shot in shots)
    assert [shot.time for shot in shimmer.still(4, 0.4)] == pytest.approx([0.3, 0.7])
    truth = shimmer.true_pictures(shots, PINHOLE, 4)
    changes = np.abs(np.diff(truth, axis=0)).max(axis=(0, 3))
    # The sky and the far ground; and somewhere things move.
    assert changes[:3].max() == 0.0 and 0.05 < (changes > 0.02).mean() < 0.6
    calm = shimmer.measure(truth, truth)
    assert calm.flicker == 0.0 and calm.change == pytest.approx(255.0 * np.abs(np.diff(truth, axis=0)).mean())


def test_runs_of_different_scenes_are_not_compared(monkeypatch, capsys):
    monkeypatch.setattr(shimmer, "load", lambda config, data: (None, config.stem))
    assert shimmer.main(["--load-config", "none.yml", "one-camera.yml"]) == 1
    assert "different scenes" in capsys.readouterr().err


def test_a_missing_run_is_one_line(tmp_path, capsys):
    assert shimmer.main(["--load-config", str(tmp_path / "no.yml")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "no.yml does not exist" in error and error.count("\n") == 1
