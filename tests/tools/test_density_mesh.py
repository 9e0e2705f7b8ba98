"""Meshes of densities whose surface is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from _true_scene import surface_distance

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.mesh.surface import (
    VoxelGrid,
    density_mesh,
    extract_surface,
    occupancy,
    opacity_to_density,
    paint,
)

STILL_LIFE = ((-1.3, -1.3, -0.6), (1.3, 1.3, 0.9))
THRESHOLD = 30.0


def sharp(points: torch.Tensor) -> torch.Tensor:
    """The built-in scene as it is: opaque inside, nothing outside."""
    return torch.from_numpy(np.where(surface_distance(points.double().numpy()) < 0.0, 1e6, 0.0)).float()


def soft(width: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The built-in scene's density as a trained one is: it rises by e for every ``width`` towards the inside."""

    def density(points: torch.Tensor) -> torch.Tensor:
        steps = np.clip(surface_distance(points.double().numpy()) / width, -40.0, 40.0)
        return torch.from_numpy(THRESHOLD * np.exp(-steps)).float()

    return density


def ball(center: tuple[float, float, float], radius: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda points: 1e4 * ((points - torch.tensor(center)).norm(dim=-1) < radius).float()


def test_surface_of_the_built_in_scene_is_where_it_is():
    """Sampled all over the mesh, and not only at its vertices."""
    grid = VoxelGrid.cover(*STILL_LIFE, 96)
    mesh, report = density_mesh(soft(0.5 * grid.voxel), grid, THRESHOLD, points_per_chunk=50_000)
    points, _ = trimesh.sample.sample_surface(mesh, 20_000, seed=1)
    away = np.abs(surface_distance(points)) / grid.voxel
    # Measured: 0.035 voxels on average, 0.29 at the 99th percentile (sharp edges are rounded).
    assert away.mean() < 0.05 and np.quantile(away, 0.99) < 0.4
    assert report.watertight and report.faces == len(mesh.faces) and report.vertices == len(mesh.vertices)
    # The same in the other direction: the true surface's extremes are reached.
    np.testing.assert_allclose(mesh.bounds[:, :2], [[-1.2, -1.2], [1.2, 1.2]], atol=0.1 * grid.voxel)
    assert mesh.bounds[0, 2] == pytest.approx(-0.5, abs=0.1 * grid.voxel)


def test_a_step_in_density_is_found_within_half_a_voxel():
    grid = VoxelGrid.cover(*STILL_LIFE, 96)
    mesh, report = density_mesh(sharp, grid, THRESHOLD)
    assert report.watertight
    # A vertex lies midway on an edge that the surface crosses somewhere.
    assert np.abs(surface_distance(mesh.vertices)).max() <= 0.5 * grid.voxel * (1.0 + 1e-3)


def test_outside_is_outside():
    """Volume, normals and center of a ball: none of them survives swapped axes, corners or winding."""
    center, radius = (0.3, -0.2, 0.1), 0.41
    grid = VoxelGrid.cover((-0.4, -0.9, -0.6), (1.0, 0.5, 0.8), 70)

    def density(points: torch.Tensor) -> torch.Tensor:
        return THRESHOLD * torch.exp((radius - (points - torch.tensor(center)).norm(dim=-1)) / grid.voxel)

    mesh, report = density_mesh(density, grid, THRESHOLD)
    assert report == (len(mesh.vertices), len(mesh.faces), True, 1, 0)
    assert mesh.volume == pytest.approx(4.0 / 3.0 * math.pi * radius**3, rel=2e-3)
    np.testing.assert_allclose(mesh.center_mass, center, atol=1e-4)
    outward = (mesh.vertices - np.array(center)) / radius
    assert (mesh.vertex_normals * outward).sum(axis=-1).min() > 0.99


def test_matter_that_leaves_the_box_is_closed_by_its_faces():
    grid = VoxelGrid.cover((0.0, 0.0, 0.0), (1.0, 2.0, 0.5), 40)
    mesh, report = density_mesh(lambda points: torch.full_like(points[:, 0], 1e6), grid, THRESHOLD)
    assert report.watertight and report.components == 1
    np.testing.assert_allclose(mesh.bounds, [[0.0, 0.0, 0.0], [1.0, 2.0, 0.5]], atol=1e-5)
    # The box without its corners and edges, which are bevelled by half a voxel.
    assert mesh.volume == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_noise_gives_closed_surfaces(seed):
    """Every case of the marching cubes, and samples exactly at the level."""
    random = np.random.default_rng(seed)
    values = random.random((17, 12, 15)).astype(np.float32)
    values[random.random(values.shape) < 0.1] = 0.5
    mesh = extract_surface(values, VoxelGrid((0.0, 0.0, 0.0), 0.1, values.shape))
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0.0
    assert mesh.area_faces.min() > 0.0


def test_small_surfaces_are_dropped_and_counted():
    grid = VoxelGrid.cover((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), 50)
    balls = [ball((-0.4, 0.0, 0.0), 0.5), ball((0.6, 0.6, 0.0), 0.25), ball((0.6, -0.6, 0.5), 0.07)]

    def density(points: torch.Tensor) -> torch.Tensor:
        return sum(each(points) for each in balls)

    whole, report = density_mesh(density, grid, THRESHOLD)
    assert (report.components, report.dropped) == (3, 0)
    areas = sorted(part.area for part in whole.split())
    kept, report = density_mesh(density, grid, THRESHOLD, least_share=0.05)
    assert (report.components, report.dropped) == (2, 1) and report.watertight
    assert kept.area == pytest.approx(sum(areas[1:]))
    largest, report = density_mesh(density, grid, THRESHOLD, least_share=1.0)
    assert (report.components, report.dropped) == (1, 2) and largest.area == pytest.approx(areas[-1])


def test_chunks_do_not_show():
    grid = VoxelGrid.cover((-1.0, -0.5, -1.0), (1.0, 1.0, 0.3), 23)
    density = ball((0.1, 0.2, -0.3), 0.44)
    meshes = [density_mesh(density, grid, THRESHOLD, points_per_chunk=size)[0] for size in (1 << 20, 997)]
    assert np.array_equal(meshes[0].vertices, meshes[1].vertices) and np.array_equal(meshes[0].faces, meshes[1].faces)


def test_progress_is_said_now_and_then(monkeypatch):
    clock = iter(np.arange(0.0, 1000.0, 3.0))
    monkeypatch.setattr("zipnerf_ns.tools.mesh.surface.time.monotonic", lambda: float(next(clock)))
    lines: list[str] = []
    grid = VoxelGrid.cover((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), 20)
    density_mesh(ball((0.0, 0.0, 0.0), 0.5), grid, THRESHOLD, points_per_chunk=1000, say=lines.append)
    # Eight chunks of three seconds: after the second, fourth and sixth; nothing once all is done.
    assert [line.split()[0] for line in lines] == ["25%", "50%", "75%"]
    assert lines[0].endswith("about 18 s left")


def test_colors_are_those_of_the_points_as_seen_from_outside():
    grid = VoxelGrid.cover((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), 40)
    mesh, _ = density_mesh(ball((0.0, 0.0, 0.0), 0.7), grid, THRESHOLD)
    paint(mesh, lambda points, views: torch.cat([0.5 + 0.5 * points[:, :2], (views < 0.0)[:, 2:].float()], -1), 300)
    colors = np.asarray(mesh.visual.vertex_colors)
    assert (colors[:, 3] == 255).all()
    expected = 255.0 * (0.5 + 0.5 * np.asarray(mesh.vertices)[:, :2])
    assert np.abs(colors[:, :2] - expected).max() <= 0.51
    # Looked at from outside, what is on top is seen downwards.
    clear = np.abs(mesh.vertex_normals[:, 2]) > 1e-3
    assert ((colors[:, 2] == 255) == (mesh.vertex_normals[:, 2] > 0.0))[clear].all()


def test_occupancy_keeps_the_level_set_and_its_range():
    density = torch.tensor([0.0, 1e-20, 29.9, 30.0, 30.1, 3.3e6, 1e30])
    values = occupancy(density, 30.0)
    assert (values.diff() >= 0.0).all() and values[0] == 0.0 and values[3] == 0.5 and values[-1] == 1.0
    assert torch.equal(values > 0.5, density > 30.0)


@pytest.mark.parametrize(("opacity", "length"), [(0.5, 0.01), (0.999, 0.3), (1e-4, 2.0)])
def test_opacity_to_density_inverts_absorption(opacity, length):
    assert 1.0 - math.exp(-opacity_to_density(opacity, length) * length) == pytest.approx(opacity, rel=1e-9)


def test_grid_covers_its_box_with_cubes():
    grid = VoxelGrid.cover((-1.0, 0.0, 2.0), (1.0, 1.0, 2.3), 10)
    assert grid.voxel == pytest.approx(0.2) and grid.counts == (10, 5, 2)
    centers = grid.centers(0, 100, "cpu")
    assert centers[0].tolist() == pytest.approx([-0.9, 0.1, 2.1])
    # z is fastest, then y.
    assert centers[1].tolist() == pytest.approx([-0.9, 0.1, 2.3])
    assert centers[2].tolist() == pytest.approx([-0.9, 0.3, 2.1])
    assert centers[-1].tolist() == pytest.approx([0.9, 0.9, 2.3])


@pytest.mark.parametrize(
    ("lower", "upper", "resolution", "said"),
    [
        ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), 16, "bounding box"),
        ((0.0, 0.0, 0.0), (1.0, math.nan, 1.0), 16, "bounding box"),
        ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 16, "lower corner first"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1, "resolution is 1"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 100_000, "GiB"),
    ],
)
def test_grids_that_cannot_be_are_refused(lower, upper, resolution, said):
    with pytest.raises(InputError, match=said):
        VoxelGrid.cover(lower, upper, resolution)


def test_an_empty_box_is_an_error_that_says_what_to_do():
    grid = VoxelGrid.cover((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 8)
    with pytest.raises(InputError, match="reaches the threshold.*--density-threshold"):
        density_mesh(lambda points: torch.zeros_like(points[:, 0]), grid, THRESHOLD)
