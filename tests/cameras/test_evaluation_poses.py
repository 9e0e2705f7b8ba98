"""Held-out cameras before they are scored: they follow the training cameras' drift, and their photo only if asked."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from _rays import make_bundle, make_model, normal, tiny_config
from _scenes import start
from _scenes import tiny_config as trainer_config

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.lie_groups import exp_map_SO3xR3
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.cameras import held_out as evaluation_poses
from zipnerf_ns.cameras.corrections import corrected_poses
from zipnerf_ns.cameras.held_out import describe, drift, moved_bundle, moved_camera, refine
from zipnerf_ns.engine.pipeline import ZipNerfPipelineConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.similarity import Similarity, move_cameras, pose_errors

pytestmark = pytest.mark.usefixtures("fresh_writers")


def quarter_turn(scale: float = 1.5) -> Similarity:
    """About z, with a scale and a shift."""
    rotation = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Similarity(torch.tensor(scale, dtype=torch.float64), rotation, torch.tensor([0.1, 0.2, 0.3]).double())


def looking_at_origin(count: int, size: int = 20) -> Cameras:
    """Cameras at distance 1.5."""
    eyes = torch.nn.functional.normalize(normal((count, 3), 5), dim=-1) * 1.5
    back = torch.nn.functional.normalize(eyes, dim=-1)
    right = torch.linalg.cross(torch.tensor([[0.0, 0.0, 1.0]]).expand_as(back), back)
    right = torch.nn.functional.normalize(right, dim=-1)
    poses = torch.stack([right, torch.linalg.cross(back, right), back, eyes], dim=-1)
    return Cameras(poses, 1.2 * size, 1.2 * size, size / 2, size / 2, size, size)


# --- the drift ---


def test_drift_is_the_corrections_similarity():
    """Corrections that amount to one small turn about the world's center and a shift are that similarity."""
    model = make_model(tiny_config(camera_optimizer=CameraOptimizerConfig(mode="SO3xR3")))
    poses = looking_at_origin(3).camera_to_worlds
    turn, shift = torch.tensor([0.0, 0.0, 0.2]), torch.tensor([0.3, -0.1, 0.05])
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment[:, 3:] = turn
        rotation = model.camera_optimizer(torch.zeros(1, dtype=torch.int64))[0, :, :3]
        model.camera_optimizer.pose_adjustment[:, :3] = poses[:, :, 3] @ (1.2 * rotation - torch.eye(3)).T + shift
    found = drift(model.corrections, poses)
    torch.testing.assert_close(found.rotation.float(), rotation, atol=1e-6, rtol=0.0)
    assert float(found.scale) == pytest.approx(1.2, abs=1e-6)
    torch.testing.assert_close(found.translation.float(), shift, atol=1e-6, rtol=0.0)
    moved = moved_camera(looking_at_origin(3), found)
    torch.testing.assert_close(moved.camera_to_worlds, corrected_poses(poses, model.camera_optimizer))


def test_without_optimized_cameras_nothing_moves():
    model, cameras, bundle = make_model(), looking_at_origin(3), make_bundle(3)
    assert drift(model.corrections, cameras.camera_to_worlds) is None
    assert moved_camera(cameras, None) is cameras and moved_bundle(bundle, None) is bundle
    assert describe(None, 0) is None


def test_rays_of_a_moved_camera_are_the_moved_rays():
    camera = looking_at_origin(1)
    kept = camera.camera_to_worlds.clone()
    truth = moved_camera(camera, quarter_turn()).generate_rays(0).flatten()
    bundle = camera.generate_rays(0).flatten()
    found = moved_bundle(bundle, quarter_turn())
    for name in ("origins", "directions", "pixel_area"):
        torch.testing.assert_close(getattr(found, name), getattr(truth, name), msg=name)
    assert torch.equal(camera.camera_to_worlds, kept) and not torch.equal(bundle.origins, found.origins)


@pytest.mark.parametrize(("similarity", "steps", "parts"), [
    (quarter_turn(), 0, ("scale 1.5000", "turn 90.000 degrees", "shift 0.3742")),
    (None, 7, ("7 steps", "very photos")),
    (quarter_turn(), 7, ("turn 90.000 degrees", "and then refined in 7 steps")),
])  # fmt: skip
def test_the_sentence_says_what_was_done(similarity, steps, parts):
    sentence = describe(similarity, steps)
    assert all(part in sentence for part in parts) and sentence.endswith(".") and "\n" not in sentence


# --- refinement on a photo ---


@pytest.fixture(scope="module")
def blob_model():
    """A smooth colored something: a model with visible values in its coarse levels only."""
    model = make_model(tiny_config(random_background=False, far_plane=20.0))
    for index, network in enumerate(model.zipnerf.fields):
        table, coarsest = network.encoding.hash_table, network.encoding.grid.levels[0]
        with torch.no_grad():
            table.zero_()
            table[: coarsest.size] = 0.3 * normal((coarsest.size, table.shape[1]), index)
    return model.eval()


def test_a_pose_is_found_on_its_own_photo(blob_model, monkeypatch):
    camera = looking_at_origin(1)
    # As many as the photo has, not five times as many.
    monkeypatch.setattr(evaluation_poses, "PHOTO_RAYS", 400)
    image = blob_model.get_outputs_for_camera(camera)["rgb"]
    assert float(image.std()) > 0.02
    wrong = copy.copy(camera)
    turn = exp_map_SO3xR3(torch.tensor([[0.0, 0.0, 0.0, 0.01, 0.02, -0.01]]))[0, :, :3]
    wrong.camera_to_worlds = move_cameras(
        Similarity(torch.tensor(1.0), turn, torch.tensor([0.01, 0.02, -0.01])), camera.camera_to_worlds
    )
    kept = wrong.camera_to_worlds.clone()
    state = torch.get_rng_state()
    found = refine(blob_model, wrong, {"image": image}, 60)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(wrong.camera_to_worlds, kept)

    def error(where: Cameras) -> float:
        return float((blob_model.get_outputs_for_camera(where)["rgb"] - image).square().mean())

    assert error(found.camera) < 0.1 * error(wrong)
    degrees, distance = pose_errors(found.camera.camera_to_worlds, kept)
    assert (found.degrees, found.distance) == pytest.approx((float(degrees), float(distance)), rel=1e-3)
    assert found.distance > 0.0


def test_refinement_leaves_no_trace_in_the_model(blob_model):
    camera = looking_at_origin(1)
    before = copy.deepcopy(blob_model.state_dict())
    wanted = [parameter.requires_grad for parameter in blob_model.parameters()]
    refine(blob_model, camera, {"image": torch.rand(20, 20, 3)}, 2)
    assert all(torch.equal(value, before[name]) for name, value in blob_model.state_dict().items())
    assert [parameter.requires_grad for parameter in blob_model.parameters()] == wanted and any(wanted)
    assert all(parameter.grad is None for parameter in blob_model.parameters())


def test_what_a_mask_ignores_is_not_looked_at(blob_model):
    """However the ignored part looks, the same pose is found; a photo that is ignored whole moves nothing."""
    camera, image, mask = looking_at_origin(1), torch.rand(20, 20, 3), torch.zeros(20, 20, 1, dtype=torch.bool)
    mask[5:, 3:18] = True
    found = [
        refine(blob_model, camera, {"image": torch.where(mask, image, ignored), "mask": mask}, 3).camera
        for ignored in (torch.zeros(()), torch.ones(()))
    ]
    assert torch.equal(found[0].camera_to_worlds, found[1].camera_to_worlds)
    assert not torch.equal(found[0].camera_to_worlds, camera.camera_to_worlds)
    nothing = refine(blob_model, camera, {"image": image, "mask": torch.zeros_like(mask)}, 3)
    assert nothing.camera is camera and nothing.degrees == nothing.distance == 0.0


def test_no_step_is_no_move(blob_model):
    camera = looking_at_origin(1)
    found = refine(blob_model, camera, {"image": torch.rand(20, 20, 3)}, 0)
    torch.testing.assert_close(found.camera.camera_to_worlds, camera.camera_to_worlds, rtol=0.0, atol=1e-7)


# --- the pipeline ---


def started(scene, tmp_path, mode: str = "SO3xR3", steps: int = 0):
    config = trainer_config(scene, tmp_path)
    config.pipeline.model.camera_optimizer.mode = mode
    config.pipeline.eval_pose_steps = steps
    return start(config).pipeline


def test_scores_do_not_depend_on_a_common_drift(scene, tmp_path):
    """Every camera and the scene turned alike: seen from cameras that follow, the same picture; else another one."""
    pipeline = started(scene, tmp_path)
    looked: list = []
    render = pipeline.model.get_outputs_for_camera
    pipeline.model.get_outputs_for_camera = lambda camera: looked.append(camera.camera_to_worlds) or render(camera)
    given = pipeline.datamanager.eval_dataset.cameras.camera_to_worlds
    with CONSOLE.capture() as said:
        averages = pipeline.get_average_eval_image_metrics()
    assert "moved with the optimized training cameras (scale 1.0000, turn 0.000" in " ".join(said.get().split())
    torch.testing.assert_close(torch.cat(looked), given)
    assert not any(name.startswith("pose_refined") for name in averages)
    with torch.no_grad():
        pipeline.model.camera_optimizer.pose_adjustment[:, :3] = torch.tensor([0.0, 0.25, 0.0])
    looked.clear()
    shifted = given.clone()
    shifted[:, 1, 3] += 0.25
    pipeline.get_average_eval_image_metrics()
    torch.testing.assert_close(torch.cat(looked), shifted)
    looked.clear()
    metrics, pictures = pipeline.get_eval_image_metrics_and_images(0)
    (found,) = looked
    assert float((shifted - found.view(1, 3, 4)).flatten(1).norm(dim=-1).min()) < 1e-5
    assert pipeline.training and metrics["num_rays"] == 24 * 16 and "psnr" in metrics and "img" in pictures


def test_batches_of_held_out_pixels_follow_the_drift(scene, tmp_path):
    pipeline = started(scene, tmp_path)
    seen: list = []
    pipeline.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].origins))
    with torch.no_grad():
        pipeline.model.camera_optimizer.pose_adjustment[:, :3] = torch.tensor([0.0, 0.25, 0.0])
    pipeline.get_eval_loss_dict(0)
    given = pipeline.datamanager.eval_dataset.cameras.camera_to_worlds[:, :, 3] + torch.tensor([0.0, 0.25, 0.0])
    nearest = (seen[0][:, None] - given).norm(dim=-1).amin(dim=-1)
    assert float(nearest.max()) < 1e-5 and pipeline.training


@pytest.mark.parametrize("mode", ["off", "SO3xR3"])
def test_photos_are_looked_at_only_where_it_is_asked_for_and_told(scene, tmp_path, mode):
    pipeline = started(scene, tmp_path, mode, steps=2)
    with CONSOLE.capture() as said:
        averages = pipeline.get_average_eval_image_metrics(output_path=tmp_path / "pictures")
    assert "refined in 2 steps on the very photos" in " ".join(said.get().split())
    assert averages["pose_refined_degrees"] > 0.0 and averages["pose_refined_distance"] > 0.0
    rows = json.loads((tmp_path / "pictures/per_image.json").read_text())
    assert all({"pose_refined_degrees", "pose_refined_distance", "psnr"} <= set(row) for row in rows)


def test_negative_steps_are_refused():
    with pytest.raises(InputError, match="eval_pose_steps is -1"):
        ZipNerfPipelineConfig(eval_pose_steps=-1)
