"""Similarities between cameras: known ones come back, nothing else fits better, and poor cameras have an answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zipnerf_ns.functional.similarity import (
    Similarity,
    align_cameras,
    angle,
    move_cameras,
    move_rays,
    pose_errors,
)


def turn(axis: Tensor, degrees: float) -> Tensor:
    """A rotation, by the exponential of its generator."""
    axis = axis.double()
    x, y, z = (axis / axis.norm() * math.radians(degrees)).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64))


def random_cameras(count: int) -> Tensor:
    """Cameras anywhere that look anywhere."""
    rotations = torch.stack([turn(torch.randn(3), 180.0 * float(torch.rand(()))) for _ in range(count)])
    return torch.cat([rotations, torch.randn(count, 3, 1, dtype=torch.float64) + 2.0], dim=-1)


def random_similarity(scale: float = 1.7) -> Similarity:
    return Similarity(
        torch.tensor(scale, dtype=torch.float64), turn(torch.randn(3), 77.0), torch.randn(3, dtype=torch.float64)
    )


def assert_same(found: Similarity, truth: Similarity) -> None:
    for name in Similarity._fields:
        torch.testing.assert_close(getattr(found, name), getattr(truth, name), rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("scale", [1.0, 0.02, 40.0])
@pytest.mark.parametrize("count", [2, 3, 25])
def test_a_known_similarity_comes_back(count, scale):
    cameras, truth = random_cameras(count), random_similarity(scale)
    assert_same(align_cameras(cameras, move_cameras(truth, cameras)), truth)


@pytest.mark.parametrize("arrangement", ["line", "plane"])
def test_orientations_tell_flat_arrangements_from_their_mirror_images(arrangement):
    cameras, truth = random_cameras(6), random_similarity()
    cameras[:, 1:, 3] = 0.0
    if arrangement == "plane":
        cameras[:, 1, 3] = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64).square()
    assert_same(align_cameras(cameras, move_cameras(truth, cameras)), truth)


@pytest.mark.parametrize("count", [1, 4])
def test_cameras_in_one_place_keep_the_scale(count):
    cameras = random_cameras(count)
    cameras[:, :, 3] = torch.tensor([3.0, -2.0, 1.0])
    truth = random_similarity(1.0)
    assert_same(align_cameras(cameras, move_cameras(truth, cameras)), truth)


def cost(similarity: Similarity, source: Tensor, target: Tensor) -> float:
    """What the docstring says is made small, with positions divided by their spread."""

    def spread(poses: Tensor) -> Tensor:
        return (poses[:, :, 3] - poses[:, :, 3].mean(dim=0)).square().sum().sqrt()

    moved = move_cameras(similarity, source)
    of_axes = (moved[:, :, :3] - target[:, :, :3]).square().sum() / len(source)
    x, y = ((p[:, :, 3] - p[:, :, 3].mean(dim=0)) / spread(p) for p in (source, target))
    return float(of_axes + (x @ similarity.rotation.T - y).square().sum())


def test_no_other_rotation_fits_noisy_cameras_better():
    source, truth = random_cameras(12), random_similarity()
    target = move_cameras(truth, source)
    target[:, :, 3] += 0.3 * torch.randn(12, 3)
    target[:, :, :3] = torch.stack([turn(torch.randn(3), 10.0) @ pose for pose in target[:, :, :3]])
    found = align_cameras(source, target)
    best = cost(found, source, target)
    assert best > 0.01
    for degrees in (0.03, 1.0, 90.0, 180.0):
        for _ in range(20):
            other = found._replace(rotation=turn(torch.randn(3), degrees) @ found.rotation)
            assert cost(other, source, target) > best


def test_no_other_scale_and_translation_fit_noisy_positions_better():
    source, truth = random_cameras(12), random_similarity()
    target = move_cameras(truth, source)
    target[:, :, 3] += 0.3 * torch.randn(12, 3)
    found = align_cameras(source, target)

    def error(similarity: Similarity) -> float:
        return float((move_cameras(similarity, source) - target)[:, :, 3].square().sum())

    best = error(found)
    for _ in range(50):
        other = found._replace(
            scale=found.scale * (1.0 + 0.01 * torch.randn(())), translation=found.translation + 0.01 * torch.randn(3)
        )
        assert error(other) > best


def test_a_mirror_image_gets_a_rotation():
    cameras = random_cameras(5)
    mirrored = cameras.clone()
    mirrored[:, :, 3] *= torch.tensor([-1.0, 1.0, 1.0])
    found = align_cameras(cameras, mirrored)
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1.0)
    assert float(found.scale) > 0.0


def test_the_world_a_camera_sees_moves_with_it():
    """A point keeps its place in a camera's frame, but for the scale: this is what a drift cannot change."""
    cameras, similarity = random_cameras(4), random_similarity()
    points = torch.randn(4, 3, dtype=torch.float64)

    def seen(poses: Tensor, world: Tensor) -> Tensor:
        return torch.einsum("nji,nj->ni", poses[:, :, :3], world - poses[:, :, 3])

    moved_points = similarity.scale * points @ similarity.rotation.T + similarity.translation
    found = seen(move_cameras(similarity, cameras), moved_points)
    torch.testing.assert_close(found, similarity.scale * seen(cameras, points))


def test_rays_move_with_their_cameras():
    cameras, similarity = random_cameras(4).float(), random_similarity()
    origins, directions = move_rays(similarity, cameras[:, :, 3], -cameras[:, :, 2])
    moved = move_cameras(similarity, cameras)
    assert moved.dtype == origins.dtype == torch.float32
    torch.testing.assert_close(origins, moved[:, :, 3])
    torch.testing.assert_close(directions, -moved[:, :, 2])


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 0.5, 90.0, 180.0])
def test_errors_are_the_angle_and_the_distance(degrees):
    cameras = random_cameras(3)
    moved = cameras.clone()
    axis = torch.randn(3)
    moved[:, :, :3] = turn(axis, degrees) @ moved[:, :, :3]
    moved[:, 1, 3] += 0.25
    found, distances = pose_errors(moved, cameras)
    # The arc sine is flat at half a turn.
    torch.testing.assert_close(found, torch.full_like(found, degrees), rtol=1e-6, atol=1e-5 if degrees > 90 else 1e-9)
    torch.testing.assert_close(distances, torch.full_like(distances, 0.25))
    assert float(angle(turn(axis, degrees))) == pytest.approx(degrees, abs=1e-5 if degrees > 90 else 1e-9)


def test_no_camera_is_refused():
    with pytest.raises(ValueError, match="without a camera"):
        align_cameras(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4))
