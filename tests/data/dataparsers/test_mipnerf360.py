"""The mip-NeRF 360 benchmark's protocol, on folders in its published layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from _published import FULL_HEIGHT, FULL_WIDTH, LENS, half_up, write_mipnerf360_scene
from _scenes import make_datamanager, start, tiny_config

from zipnerf_ns.config import zipnerf_360
from zipnerf_ns.data.dataparsers.mipnerf360 import PUBLISHED_FACTORS, MipNerf360DataParserConfig, principal_axes
from zipnerf_ns.errors import InputError

OUTDOORS = ("bicycle", "flowers", "garden", "stump", "treehill")
INDOORS = ("room", "counter", "kitchen", "bonsai")


def parse(folder: Path, split: str = "train", **changes):
    return MipNerf360DataParserConfig(data=folder, **changes).setup().get_dataparser_outputs(split)


def both_splits(folder: Path, **changes):
    """File names and poses of all views, by name."""
    found = {}
    for split in ("train", "test"):
        outputs = parse(folder, split, **changes)
        poses = outputs.cameras.camera_to_worlds.double().numpy()
        found.update({path.name: pose for path, pose in zip(outputs.image_filenames, poses, strict=True)})
    return found


def test_names_of_the_scenes():
    assert set(PUBLISHED_FACTORS) == {*OUTDOORS, *INDOORS}


@pytest.mark.parametrize("name,factor", [("garden", 4), ("bicycle", 4), ("kitchen", 2), ("Bonsai", 2)])
def test_published_pictures_are_chosen_by_name(tmp_path, name, factor):
    """Their sizes are rounded half up; focal lengths and centers are divided, not rounded."""
    write_mipnerf360_scene(tmp_path / name)
    outputs = parse(tmp_path / name)
    assert {path.parent.name for path in outputs.image_filenames} == {f"images_{factor}"}
    cameras = outputs.cameras
    assert set(cameras.width.flatten().tolist()) == {half_up(FULL_WIDTH / factor)}
    assert set(cameras.height.flatten().tolist()) == {half_up(FULL_HEIGHT / factor)}
    for values, full in zip((cameras.fx, cameras.fy, cameras.cx, cameras.cy), LENS, strict=False):
        torch.testing.assert_close(values[:, 0], torch.full((len(cameras),), full / factor))
    k1, k2, p1, p2 = LENS[4:]
    expected = torch.tensor([k1, k2, 0.0, 0.0, p1, p2], dtype=torch.float32)
    torch.testing.assert_close(cameras.distortion_params, expected.expand(len(cameras), 6))


def test_a_factor_can_be_given(tmp_path):
    write_mipnerf360_scene(tmp_path / "garden")
    assert {path.parent.name for path in parse(tmp_path / "garden", downscale_factor=2).image_filenames} == {"images_2"}
    unreduced = parse(tmp_path / "garden", downscale_factor=1)
    assert {path.parent.name for path in unreduced.image_filenames} == {"images"}
    assert set(unreduced.cameras.width.flatten().tolist()) == {FULL_WIDTH}


@pytest.mark.parametrize("count", [8, 19])
def test_every_eighth_by_name_is_held_out(tmp_path, count):
    """COLMAP's numbers run the other way, so that its order would hold out others."""
    names = sorted(write_mipnerf360_scene(tmp_path / "garden", count))
    held_out = [path.name for path in parse(tmp_path / "garden", "test").image_filenames]
    trained = [path.name for path in parse(tmp_path / "garden", "train").image_filenames]
    assert held_out == names[::8]
    assert trained == [name for name in names if name not in held_out]
    assert [path.name for path in parse(tmp_path / "garden", "val").image_filenames] == held_out


def test_poses_are_centered_turned_and_scaled_as_a_whole(tmp_path):
    """Principal axes, longest first, over all views; the farthest coordinate is 1; the cameras stand upright."""
    truth = write_mipnerf360_scene(tmp_path / "garden")
    found = both_splits(tmp_path / "garden")
    assert set(found) == set(truth)
    positions = np.stack([found[name][:, 3] for name in truth])
    np.testing.assert_allclose(positions.mean(axis=0), 0.0, atol=1e-6)
    assert np.abs(positions).max() == pytest.approx(1.0, abs=1e-6)
    spread = positions.T @ positions
    np.testing.assert_allclose(spread, np.diag(np.diag(spread)), atol=1e-5)
    assert (np.diff(np.diag(spread)) < 0).all()
    assert np.mean([pose[2, 1] for pose in found.values()]) > 0


def test_geometry_between_cameras_is_kept(tmp_path):
    """How each camera sees each other one: directions exactly, distances up to one scale for all; no mirror image."""
    truth = write_mipnerf360_scene(tmp_path / "garden")
    found = both_splits(tmp_path / "garden")
    scales = []
    for first in truth:
        for second in truth:
            turn = truth[first][:3, :3].T @ truth[second][:3, :3]
            np.testing.assert_allclose(found[first][:, :3].T @ found[second][:, :3], turn, atol=1e-5)
            if first != second:
                seen = truth[first][:3, :3].T @ (truth[second][:3, 3] - truth[first][:3, 3])
                also = found[first][:, :3].T @ (found[second][:, 3] - found[first][:, 3])
                scales.append(np.linalg.norm(also) / np.linalg.norm(seen))
                np.testing.assert_allclose(also, scales[-1] * seen, atol=1e-5)
    np.testing.assert_allclose(scales, scales[0], rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"orientation_method": "up"}, {"orientation_method": "none"}])
def test_points_stay_with_the_cameras(tmp_path, changes):
    """COLMAP's points go through the same transform: those at the cameras' centers are found there again."""
    write_mipnerf360_scene(tmp_path / "garden")
    outputs = parse(tmp_path / "garden", load_3D_points=True, **changes)
    points = dict(zip(outputs.metadata["points3D_rgb"][:, 0].tolist(), outputs.metadata["points3D_xyz"], strict=True))
    for path, pose in zip(outputs.image_filenames, outputs.cameras.camera_to_worlds, strict=True):
        index = (int(path.stem[3:]) - 7956) // 3
        torch.testing.assert_close(points[index], pose[:, 3], rtol=0.0, atol=1e-5)


def test_principal_axes_of_a_known_cloud():
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    cloud = generator.normal(size=(2000, 3)) * [5.0, 2.0, 0.5]
    # Exactly uncorrelated, so that the axes are known to the last digit.
    cloud -= cloud.mean(axis=0)
    cloud = cloud @ np.linalg.inv(np.linalg.cholesky(cloud.T @ cloud)).T * [5.0, 2.0, 0.5]
    axes = principal_axes(cloud @ turn.T + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(np.abs(axes @ turn), np.eye(3), atol=1e-9)
    assert np.linalg.det(axes) == pytest.approx(1.0)


def test_what_is_missing_is_said(tmp_path):
    write_mipnerf360_scene(tmp_path / "my_yard")
    with pytest.raises(InputError, match="not named like a scene of the benchmark.*--downscale-factor 4 outdoors"):
        parse(tmp_path / "my_yard")
    with pytest.raises(InputError, match="images_8 is missing"):
        parse(tmp_path / "my_yard", downscale_factor=8)
    with pytest.raises(InputError, match="holds no COLMAP model"):
        parse(tmp_path)


def test_preset_alone_is_the_protocol(tmp_path):
    """What `ns-train zipnerf-360 --data garden` sets, as far as a benchmark's figures depend on it."""
    config = zipnerf_360.config
    manager, model = config.pipeline.datamanager, config.pipeline.model
    assert type(manager.dataparser) is MipNerf360DataParserConfig
    assert (model.near_plane, model.far_plane, model.use_appearance) == (0.2, 1e6, False)
    assert model.scene_bounds == "auto" and model.prefilter == "multisample"
    assert (manager.train_num_rays_per_batch, config.max_num_iterations) == (65_536, 25_000)
    assert (manager.dataparser.eval_mode, manager.dataparser.eval_interval) == ("interval", 8)


def test_training_on_the_published_layout(tmp_path):
    """A few steps through nerfstudio's trainer; evaluation is on the held-out views, space is contracted."""
    write_mipnerf360_scene(tmp_path / "garden")
    shutil.rmtree(tmp_path / "garden/images_2")
    parser = zipnerf_360.config.pipeline.datamanager.dataparser
    trainer = start(tiny_config(tmp_path / "garden", tmp_path / "out", steps=2, dataparser=parser))
    assert trainer.pipeline.model.zipnerf.aabb is None
    trainer.train()
    metrics = trainer.pipeline.get_average_eval_image_metrics()
    assert len(trainer.pipeline.datamanager.eval_dataset) == 3
    assert np.isfinite(metrics["psnr"])


def test_pictures_of_another_size_are_refused(tmp_path):
    """Pictures that were rounded down do not belong to this protocol's cameras."""
    write_mipnerf360_scene(tmp_path / "garden", factors=(1, 2))
    shutil.copytree(tmp_path / "garden/images_2", tmp_path / "garden/images_4")
    with pytest.raises(InputError, match="has 49x33 pixels, its camera 25x17"):
        make_datamanager(tmp_path / "garden", MipNerf360DataParserConfig())
