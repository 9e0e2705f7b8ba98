"""Corrections of camera poses: what they do to rays, and that the loss's gradient to them is the rendering's own."""

from __future__ import annotations

import pytest
import torch
from _pose_gradients import check_pose_gradient, pose_model, shifted
from _rays import assert_same_bundle, copy_bundle, make_bundle, make_model, sphere_batch, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig

from zipnerf_ns.cameras.corrections import corrected_bundle, corrected_poses, correction_metrics


def make_optimizer(mode: str = "SO3xR3", cameras: int = 3, size: float = 0.2) -> CameraOptimizer:
    optimizer = CameraOptimizerConfig(mode=mode).setup(num_cameras=cameras, device="cpu")
    torch.nn.init.normal_(optimizer.pose_adjustment, std=size)
    return optimizer


# --- what a correction does ---


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_rays_are_those_of_nerfstudios_optimizer(mode):
    optimizer, bundle = make_optimizer(mode), make_bundle(17)
    before, theirs = copy_bundle(bundle), copy_bundle(bundle)
    optimizer.apply_to_raybundle(theirs)
    found = corrected_bundle(bundle, optimizer)
    assert_same_bundle(bundle, before)
    torch.testing.assert_close(found.origins, theirs.origins)
    torch.testing.assert_close(found.directions, theirs.directions)
    assert torch.equal(found.camera_indices, bundle.camera_indices)
    assert not torch.allclose(found.origins, bundle.origins) and found.origins.requires_grad


@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_bundles_of_any_shape_are_corrected(shape):
    optimizer, bundle = make_optimizer(), make_bundle(6)
    flat = corrected_bundle(bundle, optimizer)
    count = torch.Size(shape).numel()
    found = corrected_bundle(bundle[:count].reshape(shape), optimizer)
    assert found.origins.shape == (*shape, 3)
    torch.testing.assert_close(found.origins.reshape(-1, 3), flat.origins[:count])
    torch.testing.assert_close(found.directions.reshape(-1, 3), flat.directions[:count])


@pytest.mark.parametrize("size", [0.2, 1e-3, 0.0])
@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_poses_move_as_their_rays_do(mode, size):
    """By Nerfstudio's exponentials, which are within 2e-5 of one at small turns."""
    optimizer = make_optimizer(mode, cameras=5, size=size)
    bundle = make_bundle(5, camera_indices=torch.arange(5)[:, None])
    poses = torch.eye(4)[:3].repeat(5, 1, 1)
    poses[:, :, 3] = bundle.origins
    poses[:, :, 2] = -bundle.directions  # only the axis along which the camera looks is compared
    moved = corrected_poses(poses, optimizer)
    found = corrected_bundle(bundle, optimizer)
    within = {"rtol": 0.0, "atol": max(2e-5 * size, 1e-6)}
    torch.testing.assert_close(moved[:, :, 3], found.origins.detach(), **within)
    torch.testing.assert_close(-moved[:, :, 2], found.directions.detach(), **within)
    (found.origins.sum() + found.directions.sum()).backward()
    assert torch.isfinite(optimizer.pose_adjustment.grad).all()


def test_half_precision_does_not_reach_the_rays():
    optimizer, bundle = make_optimizer(), make_bundle(9)
    truth = corrected_bundle(bundle, optimizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = corrected_bundle(bundle, optimizer)
    assert found.directions.dtype == torch.float32 and torch.equal(found.directions, truth.directions)


def test_off_changes_nothing_and_has_no_state():
    bundle, poses, model = make_bundle(4), torch.rand(4, 3, 4), make_model()
    assert model.corrections is None and not hasattr(model, "camera_optimizer")
    assert corrected_bundle(bundle, None) is bundle and correction_metrics(None) == {}
    assert corrected_poses(poses, None) is poses
    assert not any("camera" in name for name in model.state_dict())


def test_metrics_are_nerfstudios():
    optimizer, theirs = make_optimizer(), {}
    optimizer.get_metrics_dict(theirs)
    found = correction_metrics(optimizer)
    assert set(found) == set(theirs)
    for name, value in theirs.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name


class Recorder(TorchDispatchMode):
    """Names every operation that runs within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_nothing_in_a_correction_waits_for_the_device(mode):
    """A CUDA graph cannot capture reading a value, a size that depends on values, or a copy from another device."""
    optimizer, bundle = make_optimizer(mode), make_bundle(8)
    with Recorder() as recorder:
        found = corrected_bundle(bundle, optimizer)
        losses: dict = {}
        optimizer.get_loss_dict(losses)
        (found.origins.sum() + found.directions.sum() + sum(losses.values())).backward()
        correction_metrics(optimizer)
    assert {"index_select", "linalg_cross"} <= recorder.names
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "_to_copy", "unique_dim", "_unique2"}
    assert not recorder.names & waiting


# --- gradients ---


@pytest.mark.parametrize("changes", [{}, {"prefilter": "ipe"}, {"prefilter": "none"}, {"scene_bounds": "box"}])
def test_pose_gradient_is_that_of_the_rendering(changes):
    check_pose_gradient(pose_model("torch", **changes))


def test_only_the_rendered_round_moves_cameras():
    """The proposals' losses would pull cameras to where the proposals happen to be right."""
    model = pose_model("torch", torch.float32, interlevel_loss_mult=1.0, hash_decay_mult=0.0, distortion_loss_mult=0.0)
    bundle, batch = sphere_batch(12, 3)
    torch.manual_seed(0)
    loss_dict = model.get_loss_dict(model(bundle), batch)
    parameter = model.camera_optimizer.pose_adjustment
    (found,) = torch.autograd.grad(loss_dict["interlevel_loss"], parameter, allow_unused=True, retain_graph=True)
    assert found is None and float(loss_dict["interlevel_loss"]) > 0.0
    (found,) = torch.autograd.grad(loss_dict["rgb_loss"], parameter)
    assert torch.isfinite(found).all() and (found.norm(dim=-1) > 0.0).all()


def test_evaluation_leaves_rays_alone():
    """A test camera's number is not that of the training camera that has the same one."""
    model = pose_model("torch", torch.float32)
    bundle = make_bundle(6)
    before = model.eval()(bundle)["rgb"]
    shifted(model, 0.3)
    assert torch.equal(model(bundle)["rgb"], before)
    torch.manual_seed(0)
    trained = model.train()(bundle)["rgb"]
    shifted(model, -0.3)
    torch.manual_seed(0)
    assert not torch.allclose(model(bundle)["rgb"], trained)


# --- the model's side ---


def test_cameras_are_a_group_of_parameters_only_where_they_are_optimized():
    assert "camera_opt" not in make_model().get_param_groups()
    model = make_model(tiny_config(camera_optimizer=CameraOptimizerConfig(mode="SO3xR3")))
    (parameter,) = model.get_param_groups()["camera_opt"]
    assert parameter is model.camera_optimizer.pose_adjustment and parameter.shape == (3, 6)


def test_regularizers_and_metrics_are_told_in_training_only():
    model = pose_model("torch", torch.float32)
    shifted(model, 0.1)
    bundle, batch = sphere_batch(12, 3)
    outputs = model.train()(bundle)
    metrics, loss_dict = model.get_metrics_dict(outputs, batch), model.get_loss_dict(outputs, batch)
    config, parameter = model.config.camera_optimizer, model.camera_optimizer.pose_adjustment
    expected = config.trans_l2_penalty * parameter[:, :3].norm(dim=-1).mean()
    expected = expected + config.rot_l2_penalty * parameter[:, 3:].norm(dim=-1).mean()
    torch.testing.assert_close(loss_dict["camera_opt_regularizer"], expected)
    assert {"camera_opt_translation_max", "camera_opt_rotation_mean"} <= set(metrics)
    outputs = model.eval()(bundle)
    assert list(model.get_loss_dict(outputs, batch)) == ["rgb_loss"]
    assert list(model.get_metrics_dict(outputs, batch)) == ["psnr"]
