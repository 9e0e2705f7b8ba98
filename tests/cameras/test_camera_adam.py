"""The cameras' optimizer by its laws, and on a scene of points whose exact poses are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig

from zipnerf_ns.cameras.camera_adam import CameraAdam
from zipnerf_ns.cameras.corrections import corrected_poses
from zipnerf_ns.functional.camera_motion import apply, precondition, similarity_motions
from zipnerf_ns.functional.similarity import align_cameras, move_cameras, pose_errors

CAMERAS, POINTS = 8, 60


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def true_poses() -> Tensor:
    """Cameras on a ring about the world's center; their axes do not matter to what is tested."""
    angles = torch.arange(CAMERAS, dtype=torch.float64) * (2.0 * torch.pi / CAMERAS)
    positions = 2.0 * torch.stack([angles.cos(), angles.sin(), 0.3 * (3.0 * angles).cos()], dim=-1)
    return torch.cat([torch.linalg.qr(normal(CAMERAS, 3, 3, seed=0))[0], positions[:, :, None]], dim=-1)


POINTS_SEEN = 0.7 * normal(POINTS, 3, seed=1)


def seen(poses: Tensor, points: Tensor) -> Tensor:
    """Directions to points in the cameras' own axes."""
    away = points[None] - poses[:, None, :, 3]
    return torch.nn.functional.normalize(away, dim=-1) @ poses[:, :, :3]


def learner(poses: Tensor, points: Tensor, lr: float, **options: float) -> tuple[CameraOptimizer, CameraAdam]:
    """Corrections of cameras that look at points, and their optimizer."""
    corrections = CameraOptimizerConfig(mode="SO3xR3").setup(num_cameras=len(poses), device="cpu").double()
    adam = CameraAdam(corrections.parameters(), lr=lr, **options)
    directions = torch.nn.functional.normalize(points[None] - poses[:, None, :, 3], dim=-1)
    adam.adopt(corrections.pose_adjustment, precondition(poses[:, :, 3], directions))
    return corrections, adam


def bundle_adjusted(scale: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """True, disturbed and mended poses, with the points learned beside the cameras, as a scene is."""
    truth, points = true_poses(), scale * POINTS_SEEN
    truth[:, :, 3] *= scale
    disturbance = torch.cat([0.02 * scale * normal(CAMERAS, 3, seed=2), 0.01 * normal(CAMERAS, 3, seed=3)], dim=-1)
    turns = torch.linalg.matrix_exp(torch.linalg.cross(
        disturbance[:, None, 3:].expand(-1, 3, -1), torch.eye(3, dtype=torch.float64).expand(CAMERAS, 3, 3)
    ).mT)  # fmt: skip
    given = torch.cat([turns @ truth[:, :, :3], truth[:, :, 3:] + disturbance[:, :3, None]], dim=-1)
    learned = torch.nn.Parameter(points + 0.02 * scale * normal(POINTS, 3, seed=4))
    corrections, adam = learner(given, points, lr=0.002)
    others = torch.optim.Adam([learned], lr=0.002 * scale)
    photos = seen(truth, points)
    for _ in range(steps):
        moves = corrections(torch.arange(CAMERAS))
        poses = torch.cat([moves[:, :, :3] @ given[:, :, :3], given[:, :, 3:] + moves[:, :, 3:]], dim=-1)
        for each in (adam, others):
            each.zero_grad()
            each.param_groups[0]["lr"] *= 0.05 ** (1.0 / steps)
        (seen(poses, learned) - photos).square().sum().backward()
        adam.step()
        others.step()
    return truth, given, corrected_poses(given, corrections)


def test_poses_are_mended():
    truth, given, mended = bundle_adjusted(1.0, 400)
    before, after = (
        torch.stack(pose_errors(poses, move_cameras(align_cameras(truth, poses), truth))).mean(dim=-1)
        for poses in (given, mended)
    )
    assert (after < 0.2 * before).all(), f"{before} became {after}"


def test_units_of_the_world_do_not_matter():
    small, large = (bundle_adjusted(scale, 20)[2] for scale in (1.0, 100.0))
    # Nerfstudio rounds the turns of small corrections.
    torch.testing.assert_close(large[:, :, :3], small[:, :, :3], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(large[:, :, 3], 100.0 * small[:, :, 3], rtol=0.0, atol=1e-3)


def walk(
    gradients: Tensor, caution: float, pull: float = 0.0, has_gauge: bool = True, reach: float = 1e9
) -> Tensor:
    """How far gradients lead corrections, in preconditioned coordinates, with a learning rate of 1."""
    options = {"caution": caution, "pull": pull, "reach": reach}
    corrections, adam = learner(true_poses(), POINTS_SEEN, lr=1.0, **options)
    parameter = corrections.pose_adjustment
    whole = adam._preconditioners[parameter]
    if not has_gauge:
        adam.adopt(parameter, whole._replace(gauge=whole.gauge[:, :, :0]))
    for gradient in gradients:
        # Those of the preconditioned coordinates.
        parameter.grad = apply(whole.inverse, gradient)
        adam.step()
    return apply(whole.inverse, parameter.detach())


def test_a_step_is_the_learning_rate():
    """Where every step says the same, a camera's coordinates move by it in the root mean square."""
    poses, steps = true_poses(), 30
    _, adam = learner(poses, POINTS_SEEN, lr=1.0, pull=0.0)
    whole = next(iter(adam._preconditioners.values()))
    gradient = whole.remove_gauge(normal(CAMERAS, 6, seed=5))
    gradient = gradient / gradient.norm(dim=-1, keepdim=True) * 6.0**0.5
    moved = walk(gradient.expand(steps, -1, -1), caution=0.0)
    torch.testing.assert_close(moved, whole.remove_gauge(-steps * gradient))
    assert float((walk(gradient.expand(steps, -1, -1), caution=1.0) / moved).mean()) > 0.85


def test_noise_is_not_followed():
    noise = normal(300, CAMERAS, 6, seed=6)
    bold, cautious = (float(walk(noise, caution).square().mean().sqrt()) for caution in (0.0, 1.0))
    # A random walk of 300 steps, with some of its directions removed.
    assert bold == pytest.approx(300.0**0.5, rel=0.3)
    assert cautious < 0.5 * bold


def test_what_the_photos_tell_is_stronger_than_the_pull():
    """The pull takes its share of every full step, and holds a camera of which nothing but noise is told."""
    steps, strength = 20, 0.25
    told = torch.ones(steps, CAMERAS, 6, dtype=torch.float64)
    # As the preconditioner sees it, away from what the gauge would take out.
    free, held = (walk(told, 0.0, pull, has_gauge=False) for pull in (0.0, strength))
    torch.testing.assert_close(held, (1.0 - strength) * free)
    noise = normal(300, CAMERAS, 6, seed=6)
    assert float(walk(noise, 0.0, strength).square().mean().sqrt()) < 0.2 * 300.0**0.5
    assert torch.equal(walk(0.0 * noise[:3], 0.0, strength), torch.zeros(CAMERAS, 6, dtype=torch.float64))


def test_the_pull_lets_go():
    """Within its reach a weak signal does not move a camera; one that a strong signal has moved beyond is free."""
    weak, strong = (torch.full((40, CAMERAS, 6), size, dtype=torch.float64) for size in (0.1, 1.0))
    # The other sign now and then makes a signal weak, whatever its size is.
    weak[::2] = -0.9 * weak[::2]
    assert float(walk(weak, 0.0, 0.25, False, reach=4.0).abs().max()) < 1.5
    free, held, near = (walk(strong, 0.0, pull, False, reach) for pull, reach in ((0.0, 4.0), (0.5, 4.0), (0.5, 1e9)))
    # The integral of the pull, 0.5 / (1 + size^2 / 16), over all sizes is pi.
    assert float((held - free).max()) < 8.0 < float((near - free).max())


def test_what_the_photos_hardly_tell_is_hardly_moved():
    """One coordinate's gradient is a thousandth of another's: so is its step, unlike Adam's own."""
    gradient = torch.zeros(CAMERAS, 6, dtype=torch.float64)
    gradient[0, 0], gradient[0, 1] = 1.0, 1e-3
    moved = walk(gradient[None], caution=0.0, has_gauge=False)
    torch.testing.assert_close(moved, -(6.0**0.5) * gradient / (1.0 + 1e-6) ** 0.5)


def test_cameras_do_not_drift_together():
    """A gradient towards another similarity of the world moves nothing."""
    poses = true_poses()
    corrections, adam = learner(poses, POINTS_SEEN, lr=0.01, betas=(0.0, 0.0), caution=0.0, pull=0.0)
    parameter = corrections.pose_adjustment
    whole = adam._preconditioners[parameter]
    common = apply(whole.inverse, similarity_motions(poses[:, :, 3]) @ normal(7, seed=7))
    # Adam makes the cameras' steps equally large, which a similarity's are not; a common length keeps them in one.
    common = common / common.square().mean(dim=-1, keepdim=True).sqrt()
    expected = whole.remove_gauge(-0.01 * common)
    parameter.grad = apply(whole.inverse, common)
    adam.step()
    moved = apply(whole.inverse, parameter.detach())
    torch.testing.assert_close(moved, expected)
    assert float(torch.einsum("nik,ni->k", whole.gauge, moved).abs().max()) < 1e-12


def test_gradients_of_nothing_move_nothing():
    """A camera of which a step drew no ray, also before any drew one."""
    moved = walk(torch.zeros(3, CAMERAS, 6, dtype=torch.float64), caution=1.0)
    assert torch.equal(moved, torch.zeros_like(moved))


def test_a_gradient_that_is_no_number_is_that_of_no_ray():
    gradients = normal(3, CAMERAS, 6, seed=9)
    gradients[1, 2], gradients[1, 3] = float("nan"), float("inf")
    moved = walk(gradients, caution=0.0)
    assert torch.isfinite(moved).all()
    gradients[1, 2:4] = 0.0
    torch.testing.assert_close(moved, walk(gradients, caution=0.0))


def test_negative_caution_is_refused():
    with pytest.raises(ValueError, match="caution .-1.0."):
        CameraAdam([torch.zeros(1, 6)], caution=-1.0)


def test_a_state_is_loaded_again():
    gradients = normal(9, CAMERAS, 6, seed=8)
    whole = walk(gradients, caution=1.0)
    corrections, adam = learner(true_poses(), POINTS_SEEN, lr=1.0, pull=0.0)
    first, matrix = corrections.pose_adjustment, next(iter(adam._preconditioners.values()))
    for gradient in gradients[:4]:
        first.grad = apply(matrix.inverse, gradient)
        adam.step()
    second, resumed = learner(true_poses(), POINTS_SEEN, lr=1.0, pull=0.0)
    second.load_state_dict(corrections.state_dict())
    resumed.load_state_dict(adam.state_dict())
    for gradient in gradients[4:]:
        second.pose_adjustment.grad = apply(matrix.inverse, gradient)
        resumed.step()
    torch.testing.assert_close(apply(matrix.inverse, second.pose_adjustment.detach()), whole)


def test_a_step_that_is_marked_changes_nothing():
    """As torch's fused optimizers skip it; one that is not marked is the same with a mark as without."""
    found = []
    for mark in (None, torch.tensor(0.0)):
        corrections, adam = learner(true_poses(), POINTS_SEEN, lr=0.1)
        adam.found_inf, parameter = mark, corrections.pose_adjustment
        for gradient in normal(3, CAMERAS, 6, seed=8):
            parameter.grad = gradient
            adam.step()
        state = adam.state[parameter]
        found.append([tensor.detach().clone() for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    adam.found_inf = torch.tensor(1.0)
    parameter.grad = torch.full_like(parameter, float("nan"))
    adam.step()
    after = (parameter, state["exp_avg"], state["exp_avg_sq"])
    assert all(torch.equal(one, other) for one, other in zip(found[1], after, strict=True))
