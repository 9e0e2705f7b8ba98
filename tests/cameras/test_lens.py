"""Corrections of lenses: rays and cameras agree, who shares a lens, and what a training finds."""

import pytest
import torch
from _scenes import start, write_scene
from _scenes import tiny_config as trainer_config
from torch.nn import functional

from nerfstudio.cameras.cameras import Cameras, CameraType

from zipnerf_ns.cameras import camera_adam
from zipnerf_ns.cameras.lens import FEWEST_PHOTOS, NO_LENS, LensCorrections, find_lenses

pytestmark = pytest.mark.usefixtures("fresh_writers")

CORRECTIONS = torch.tensor([0.02, -0.03, 0.01, 0.015, -0.02, 0.01, -0.015])


def make_cameras(count: int = FEWEST_PHOTOS, focal: float = 40.0, kind: CameraType = CameraType.PERSPECTIVE, scale=1):
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator)).Q
    rotations = rotations * torch.linalg.det(rotations)[:, None, None]
    poses = torch.cat([rotations, torch.randn(count, 3, 1, generator=generator)], dim=-1)
    numbers = [focal / scale, 1.1 * focal / scale, 33.0 / scale, 22.0 / scale]
    return Cameras(poses, *numbers, width=64 // scale, height=48 // scale, camera_type=kind)


def make_lens(cameras: Cameras) -> LensCorrections:
    lens = LensCorrections(len(cameras))
    lens.adopt(cameras)
    with torch.no_grad():
        lens.corrections[0] = CORRECTIONS
    return lens


def test_corrected_rays_are_those_of_corrected_cameras() -> None:
    cameras = make_cameras()
    lens = make_lens(cameras)
    numbers = torch.arange(len(cameras))[:, None]
    pixels = torch.rand(len(cameras), 2) * torch.tensor([48.0, 64.0])
    seen = lens.corrected_bundle(cameras.generate_rays(numbers, pixels))
    true = lens.corrected(cameras).generate_rays(numbers, pixels)
    torch.testing.assert_close(functional.normalize(seen.directions, dim=-1), true.directions, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(seen.origins, true.origins)
    assert (true.directions - cameras.generate_rays(numbers, pixels).directions).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_camera_keeps_its_shape(shape: tuple) -> None:
    cameras = make_cameras()
    one = cameras[0] if shape == () else cameras[:1]
    moved = make_lens(cameras).corrected(one)
    assert moved.shape == shape and float(moved.fx) != 40.0


def test_lenses_are_told_by_their_shares_of_the_picture() -> None:
    halves = make_cameras(scale=2)
    lens = make_lens(make_cameras())
    assert (lens.lenses_of(halves) == 0).all()
    assert (lens.lenses_of(make_cameras(focal=45.0)) == -1).all()
    assert (lens.lenses_of(make_cameras(kind=CameraType.FISHEYE)) == -1).all()
    assert len(find_lenses(make_cameras(FEWEST_PHOTOS - 1))) == 0


def test_other_lenses_are_left_alone() -> None:
    lens, other = make_lens(make_cameras()), make_cameras(focal=45.0)
    moved = lens.corrected(other)
    torch.testing.assert_close(moved.fx, other.fx)
    torch.testing.assert_close(moved.camera_to_worlds, other.camera_to_worlds)


def test_a_unit_of_each_coordinate_moves_what_is_seen_by_a_radian() -> None:
    cameras = make_cameras()
    lens = make_lens(cameras)
    coordinates = lens.preconditioner()
    at = (torch.arange(32) + 0.5) / 32
    pixels = torch.cartesian_prod(at, at) * torch.tensor([48.0, 64.0])
    numbers = torch.zeros(len(pixels), 1, dtype=torch.int64)
    bundle = cameras.generate_rays(numbers, pixels)
    step = 1e-3
    for axis in range(7):
        with torch.no_grad():
            lens.corrections[0] = step * coordinates.matrix[0, :, axis].float()
        moved = functional.normalize(lens.corrected_bundle(bundle).directions, dim=-1)
        seen = float((moved - bundle.directions).square().sum(dim=-1).mean().sqrt()) / step
        # The damping keeps what is hardly seen from being moved far.
        assert 0.5 < seen < 1.1, axis


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("lens") / "scene", count=12)


def test_held_out_cameras_and_pixels_are_seen_through_the_corrected_lens(scene, tmp_path) -> None:
    config = trainer_config(scene, tmp_path)
    config.pipeline.model.optimize_lens = True
    pipeline = start(config).pipeline
    lens, cameras = pipeline.model.lens, pipeline.datamanager.eval_dataset.cameras
    assert (lens.lens == 0).all() and (lens.lenses_of(cameras) == 0).all()
    with torch.no_grad():
        lens.corrections[0, 3:] = torch.tensor([0.1, 0.1, 0.05, 0.0])
    looked: list = []
    pipeline.model.get_outputs_for_camera = lambda camera: looked.append(camera) or {"rgb": torch.zeros(16, 24, 3)}
    pipeline.model.get_image_metrics_and_images = lambda outputs, batch: ({"psnr": 1.0}, {})
    pipeline.get_average_eval_image_metrics()
    assert all(float(camera.fx) < 0.92 * float(cameras.fx[0]) for camera in looked) and len(looked) == len(cameras)
    seen: list = []
    pipeline.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pipeline.get_eval_loss_dict(0)
    (bundle,), torch_rays = seen, lens.corrected(cameras)
    ahead = -torch_rays.camera_to_worlds[bundle.camera_indices[:, 0], :, 2]
    spread = (functional.normalize(bundle.directions, dim=-1) * ahead).sum(dim=-1).min()
    given = -cameras.camera_to_worlds[0, :, 2], cameras.generate_rays(0).directions
    assert float(spread) < float((given[1] * given[0]).sum(dim=-1).min())


def test_a_training_finds_what_is_wrong_with_a_lens_and_then_leaves_it(scene, tmp_path) -> None:
    config = trainer_config(scene, tmp_path)
    config.pipeline.model.optimize_lens = True
    config.max_num_iterations = 8
    trainer = start(config)
    trainer.train()
    lens = trainer.pipeline.model.lens
    assert lens.corrections[0].abs().min() > 0.0 and (lens.corrections[1:] == 0.0).all() and not lens.is_learned
    assert "lens.corrections" in "".join(trainer.pipeline.model.state_dict())


@pytest.mark.parametrize("camera_model", ["OPENCV", "OPENCV_FISHEYE"])
def test_a_training_without_a_lens_to_correct_says_so_and_learns_none(tmp_path, monkeypatch, camera_model) -> None:
    """Of a fisheye lens with photos enough, or of a lens that took fewer."""
    count = 12 if camera_model == "OPENCV_FISHEYE" else FEWEST_PHOTOS
    scene = write_scene(tmp_path / "scene", count=count, camera_model=camera_model)
    config = trainer_config(scene, tmp_path / "out", steps=2)
    config.pipeline.model.optimize_lens = True
    said: list[str] = []
    monkeypatch.setattr(camera_adam, "say", said.append)
    trainer = start(config)
    assert said == [NO_LENS]
    trainer.train()
    lens = trainer.pipeline.model.lens
    assert not lens.is_learned and (lens.corrections == 0.0).all()
