"""Cameras' motions: Jacobians against differences of projections, preconditioners and the gauge by their laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from zipnerf_ns.functional.camera_motion import DAMPING, apply, motion_gram, precondition, similarity_motions
from zipnerf_ns.functional.similarity import Similarity, align_cameras, angle, move_cameras

CAMERAS = 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(turn: Tensor) -> Tensor:
    """By a rotation vector."""
    return torch.linalg.matrix_exp(torch.linalg.cross(turn.expand(3, 3), torch.eye(3, dtype=turn.dtype)).T)


def world() -> tuple[Tensor, Tensor]:
    """Positions of cameras, and directions within a narrow picture of each."""
    directions = torch.nn.functional.normalize(random(CAMERAS, 1, 3) + 0.3 * random(CAMERAS, 7, 3, seed=1), dim=-1)
    return random(CAMERAS, 3, seed=2), directions


def moved(poses: Tensor, motions: Tensor) -> Tensor:
    """Poses as corrections move them."""
    turned = torch.stack([rotation(motion[3:]) @ pose[:, :3] for pose, motion in zip(poses, motions, strict=True)])
    return torch.cat([turned, poses[:, :, 3:] + motions[:, :3, None]], dim=-1)


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_gram_is_that_of_the_projections_jacobian(mode):
    """Of points on the rays of a camera that Nerfstudio's corrections move, by autograd."""
    position, directions = random(3, seed=3), torch.nn.functional.normalize(random(6, 3, seed=4), dim=-1)
    disparities = torch.tensor([0.2, 0.7, 1.9], dtype=torch.float64)
    points = position + directions[:, None] / disparities[:, None]
    optimizer = CameraOptimizerConfig(mode=mode).setup(num_cameras=1, device="cpu").double()

    def seen(motion: Tensor) -> Tensor:
        corrections = torch.func.functional_call(optimizer, {"pose_adjustment": motion[None]}, torch.tensor([0]))[0]
        away = points - position - corrections[:, 3]
        return torch.nn.functional.normalize(away, dim=-1) @ corrections[:, :3]

    # Nerfstudio's exponential of SO(3) rounds angles below 0.01 to it.
    jacobian = torch.autograd.functional.jacobian(seen, torch.zeros(6, dtype=torch.float64)).reshape(-1, 6)
    truth = jacobian.T @ jacobian / (len(directions) * len(disparities))
    found = motion_gram(directions[None], disparities.mean(), disparities.square().mean())[0]
    torch.testing.assert_close(found, truth, rtol=0.0, atol=2e-4)


def test_preconditioned_motions_are_seen_alike():
    """P (J^T J + damping) P is the identity: every unit of every coordinate is seen as far, without others' help."""
    positions, directions = world()
    whole = precondition(positions, directions)
    spread = (positions - positions.mean(0)).square().sum(-1).mean().sqrt()
    gram = motion_gram(directions, 1.0 / spread, 4.0 / (3.0 * spread.square()))
    damped = gram + DAMPING * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    eye = torch.eye(6, dtype=torch.float64).expand(CAMERAS, 6, 6)
    torch.testing.assert_close(whole.matrix @ damped @ whole.matrix, eye)
    torch.testing.assert_close(whole.matrix @ whole.inverse, eye)
    torch.testing.assert_close(whole.matrix, whole.matrix.mT)


def test_units_of_the_world_do_not_matter():
    """In a world ten times as large, shifts are ten times as large, and turns the same."""
    positions, directions = world()
    small, large = precondition(positions, directions), precondition(10.0 * positions + 3.0, directions)
    units = torch.tensor([10.0] * 3 + [1.0] * 3, dtype=torch.float64)
    torch.testing.assert_close(large.matrix @ large.matrix, units * (small.matrix @ small.matrix) * units[:, None])


def test_similarities_are_how_cameras_move_under_them():
    positions, step = world()[0], 1e-6
    poses = torch.cat([torch.eye(3, dtype=torch.float64).expand(CAMERAS, 3, 3), positions[:, :, None]], dim=-1)
    motions = similarity_motions(positions)
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for kind in range(7):
        amount = step * torch.nn.functional.one_hot(torch.tensor(kind), 7).double()
        similarity = Similarity(one + amount[6], rotation(amount[3:6]), zero + amount[:3])
        found = moved(poses, step * motions[:, :, kind])
        torch.testing.assert_close(found, move_cameras(similarity, poses), rtol=0.0, atol=10.0 * step**2)


def test_a_common_similarity_is_removed_and_nothing_else():
    positions, directions = world()
    whole = precondition(positions, directions)
    amounts = random(7, seed=5)
    common = apply(whole.inverse, similarity_motions(positions) @ amounts)
    own = random(CAMERAS, 6, seed=6)
    kept = whole.remove_gauge(own)
    torch.testing.assert_close(whole.remove_gauge(common), torch.zeros_like(common))
    torch.testing.assert_close(whole.remove_gauge(own + common), kept)
    torch.testing.assert_close(whole.remove_gauge(kept), kept)
    assert float((own - kept).flatten() @ kept.flatten()) == pytest.approx(0.0, abs=1e-9)
    assert float(kept.norm()) > 0.5 * float(own.norm())


def test_without_gauge_cameras_do_not_drift():
    """What is left of the similarity that a finite motion holds falls with the square of its size."""
    positions, directions = world()
    whole = precondition(positions, directions)
    poses = torch.cat([torch.linalg.qr(random(CAMERAS, 3, 3, seed=7))[0], positions[:, :, None]], dim=-1)
    common = similarity_motions(positions) @ random(7, seed=8) + 0.1 * random(CAMERAS, 6, seed=9)

    def drift(size: float) -> tuple[float, float]:
        raw = size * common
        still = apply(whole.matrix, whole.remove_gauge(apply(whole.inverse, raw)))
        return tuple(float(angle(align_cameras(poses, moved(poses, each)).rotation)) for each in (raw, still))

    (raw, still), (_, smaller) = drift(0.02), drift(0.01)
    assert still < 0.15 * raw and smaller < 0.7 * still


def test_one_camera_alone_has_nothing_to_correct():
    """Any motion of a single camera is a similarity of the world."""
    positions, directions = world()
    whole = precondition(positions[:1], directions[:1])
    values = random(1, 6)
    torch.testing.assert_close(whole.remove_gauge(values), torch.zeros_like(values))


def test_a_camera_that_looks_in_one_direction_only_is_preconditioned():
    """Of float32, which makes a unit vector longer than one by up to 1e-7."""
    direction = torch.tensor([1.0, 1e-3, 0.0])
    assert direction.double().square().sum() > 1.0 + 1e-7
    whole = precondition(torch.zeros(1, 3), direction.expand(1, 4, 3))
    assert all(torch.isfinite(part).all() for part in whole)


def test_cameras_in_one_place_are_preconditioned():
    """As of a panorama: a change of scale moves none of them."""
    positions, directions = world()
    whole = precondition(0.0 * positions, directions)
    assert whole.gauge.shape == (CAMERAS, 6, 6)
    assert all(torch.isfinite(part).all() for part in whole)
