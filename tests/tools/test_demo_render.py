"""Pictures of the built-in scene against brute force: no culling, dense grids of rays, marching the true surface."""

from __future__ import annotations

import numpy as np
import pytest
from _true_scene import cast_rays, surface_distance

from zipnerf_ns.tools.scene import render as demo_render
from zipnerf_ns.tools.scene.render import Pinhole, radiance, render_view, straight_alpha
from zipnerf_ns.tools.scene.world import Backdrop, Moment, bodies

WIDTH, HEIGHT, FOCAL = 64, 48, 60.0


def camera(azimuth: float, elevation: float, radius: float) -> np.ndarray:
    """A camera at spherical coordinates (degrees) that looks at the origin, built from its definition."""
    azimuth, elevation = np.radians([azimuth, elevation])
    back = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    return np.stack([right, np.cross(back, right), back, radius * back], axis=1)


def grid_rays(pose: np.ndarray, x: np.ndarray, y: np.ndarray, center=(WIDTH / 2, HEIGHT / 2)):
    """Rays through image coordinates, in float64."""
    local = np.stack([(x - center[0]) / FOCAL, -(y - center[1]) / FOCAL, -np.ones_like(x)], axis=-1)
    directions = local @ pose[:, :3].T
    return np.broadcast_to(pose[:, 3], directions.shape), directions / np.linalg.norm(
        directions, axis=-1, keepdims=True
    )


def crop(pose: np.ndarray, left: int, top: int, size: int, samples: int, seed: int, rgba: bool = False) -> np.ndarray:
    pinhole = Pinhole(FOCAL, FOCAL, WIDTH / 2 - left, HEIGHT / 2 - top, size, size)
    picture = render_view(pose, pinhole, samples, seed, rgba)
    return straight_alpha(picture) if rgba else picture


POSE = camera(-60.0, 14.0, 2.8)


def test_hits_are_where_the_true_surface_is():
    """Every hit has distance zero, nothing lies in front of it, and rays that miss pass the surface by."""
    random = np.random.default_rng(0)
    x, y = random.uniform(0, WIDTH, 1500), random.uniform(0, HEIGHT, 1500)
    origins, directions = grid_rays(POSE, x, y)
    color, distance = cast_rays(origins, directions, rgba=True)
    hit = np.isfinite(distance)
    assert 500 < hit.sum() < 1400
    ends = origins[hit] + distance[hit, None] * directions[hit]
    np.testing.assert_allclose(surface_distance(ends), 0, atol=1e-9)
    np.testing.assert_array_equal(color[~hit], 0)
    reach = np.where(hit, distance, 6.0)
    for share in np.linspace(0, 1, 60):
        assert surface_distance(origins + (share * reach)[:, None] * directions).min() > -1e-9


def test_hits_agree_with_marching_the_true_surface():
    random = np.random.default_rng(1)
    origins, directions = grid_rays(POSE, random.uniform(0, WIDTH, 400), random.uniform(0, HEIGHT, 400))
    _, distance = cast_rays(origins, directions, rgba=True)
    travelled = np.zeros(400)
    for _ in range(250):
        gap = surface_distance(origins + travelled[:, None] * directions)
        travelled = np.minimum(travelled + gap, 6.0)
    arrived = gap < 1e-7
    assert arrived.mean() + (travelled == 6.0).mean() > 0.97
    assert np.isinf(distance[travelled == 6.0]).all()
    np.testing.assert_allclose(travelled[arrived], distance[arrived], atol=1e-4)


def test_ground_counts_only_when_asked():
    points = np.array([[3.0, 0.0, -0.3], [0.0, 3.0, -0.6], [0.0, 0.0, -0.45]])
    np.testing.assert_allclose(surface_distance(points, include_ground=True)[:2], [0.2, -0.1])
    assert (surface_distance(points)[:2] > 1.0).all()
    # In the middle of the plinth, half its thickness from its top.
    np.testing.assert_allclose(surface_distance(points)[2], -0.05)


@pytest.mark.parametrize("backdrop", [True, False, "far", Moment(0.45)])
def test_culling_changes_nothing(monkeypatch: pytest.MonkeyPatch, backdrop: Backdrop):
    """Without the frustum test and the choice of neighbors, bit for bit the same picture comes out."""
    world = bodies(backdrop)
    kind = {"rgba": not backdrop, "far": backdrop == "far", "time": getattr(backdrop, "time", None)}

    def all_neighbors(backdrop, index, points):
        others = [other for other in range(len(world)) if other != index and world[other].casts]
        return others, [other for other in others if not world[other].thin]

    monkeypatch.setattr(demo_render, "_RAYS_PER_TILE", 144)
    for pose in (POSE, camera(130.0, 25.0, 2.4)):
        pinhole = Pinhole(FOCAL / 2, FOCAL / 2, WIDTH / 4, HEIGHT / 4, WIDTH // 2, HEIGHT // 2)
        culled = render_view(pose, pinhole, 1, 5, **kind)
        with monkeypatch.context() as patch:
            patch.setattr(demo_render, "_candidates", lambda origin, corners, backdrop: list(range(len(world))))
            patch.setattr(demo_render, "_neighbors", all_neighbors)
            np.testing.assert_array_equal(render_view(pose, pinhole, 1, 5, **kind), culled)


def test_pixel_is_the_mean_over_its_square():
    """Unbiased against a dense grid of rays, within Monte Carlo error, and converging faster than plain sampling."""
    left, top, size, fine = 26, 14, 6, 40
    steps = (np.arange(size * fine) + 0.5) / fine
    x, y = (axis.ravel() for axis in np.meshgrid(left + steps, top + steps))
    color, _ = cast_rays(*grid_rays(POSE, x, y))
    cells = color.reshape(size, fine, size, fine, 3)
    truth, spread = cells.mean(axis=(1, 3)), cells.std(axis=(1, 3))
    pictures = {n: np.stack([crop(POSE, left, top, size, n, seed) for seed in range(6)]) for n in (16, 64, 1024)}
    for samples, stack in pictures.items():
        # Strata only lower the error of plain sampling; the grid's own error is far below the last term.
        assert (np.abs(stack - truth) < 4.5 * spread / np.sqrt(samples) + 2e-3).all()
        assert (np.abs(stack.mean(axis=0) - truth) < 4.5 * spread / np.sqrt(6 * samples) + 2e-3).all()
    errors = {n: np.sqrt(np.mean((stack - truth) ** 2)) for n, stack in pictures.items()}
    # Plain sampling halves the error with four times the samples, and gives a quarter of it with sixteen times.
    assert errors[64] < 0.47 * errors[16] and errors[1024] < 0.25 * errors[64]


def test_float32_pictures_equal_float64_rays():
    origins, directions = grid_rays(POSE, *np.random.default_rng(2).uniform(0, (WIDTH, HEIGHT), (2000, 2)).T)
    exact, _ = cast_rays(origins, directions)
    single, _ = cast_rays(origins.astype(np.float32), directions.astype(np.float32))
    assert single.dtype == np.float32
    # Apart from rays that fall on the other side of an edge.
    assert (np.abs(single - exact).max(axis=1) < 2e-3).mean() > 0.98


def test_alpha_is_coverage_and_color_is_straight():
    """Alpha is the share of the pixel that the still life covers; color times alpha is the mean over black."""
    left, top, size, fine = 18, 20, 8, 32
    steps = (np.arange(size * fine) + 0.5) / fine
    x, y = (axis.ravel() for axis in np.meshgrid(left + steps, top + steps))
    color, distance = cast_rays(*grid_rays(POSE, x, y), rgba=True)
    over_black = color.reshape(size, fine, size, fine, 3).mean(axis=(1, 3))
    coverage = np.isfinite(distance).reshape(size, fine, size, fine).mean(axis=(1, 3))
    picture = crop(POSE, left, top, size, 1024, 0, rgba=True)
    assert picture.shape == (size, size, 4) and picture.min() >= 0 and picture.max() <= 1
    partial = (coverage > 0.05) & (coverage < 0.95)
    assert partial.sum() > 5 and (coverage == 1).any() and (coverage == 0).any()
    np.testing.assert_allclose(picture[..., 3], coverage, atol=0.02)
    np.testing.assert_allclose(picture[..., :3] * picture[..., 3:], over_black, atol=0.02)
    np.testing.assert_array_equal(picture[coverage == 0], 0)


def test_still_life_looks_the_same_with_and_without_the_backdrop():
    alone = crop(POSE, 0, 0, 48, 4, 3, rgba=True)
    whole = crop(POSE, 0, 0, 48, 4, 3)
    covered = alone[..., 3] == 1
    assert covered.mean() > 0.3
    np.testing.assert_allclose(alone[covered][:, :3], whole[covered], atol=1e-6)


def test_sun_and_shadow_by_hand():
    """Straight above the plinth's top: the sun reaches a free spot and not one behind the crate."""
    down = np.array([[0.0, 0.0, -1.0]] * 2)
    sun = np.array(demo_render.SUN)
    behind = np.array([-0.48, -0.26, -0.4 + 0.21]) - 0.36 * np.array([sun[0], sun[1], 0]) / np.hypot(sun[0], sun[1])
    free = np.array([0.0, -0.45, 0.0])
    spots = np.stack([behind, free])
    spots[:, 2] = -0.4
    blocked = [np.isfinite(cast_rays(spot[None] + 1e-6 * sun, sun[None], rgba=True)[1][0]) for spot in spots]
    assert blocked == [True, False]
    lit, openness = demo_render._occlusion(False, 0, spots.T, -down.T)
    np.testing.assert_array_equal(lit, [0, 1])
    assert 0.35 <= openness.min() and openness.max() == 1


def test_seed_decides_the_samples_and_nothing_else_does():
    first, again, other = (crop(POSE, 20, 10, 16, 4, seed) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert 0 < np.abs(first - other).mean() < 0.05


@pytest.mark.parametrize("samples", [1, 2, 3, 12, 49])
def test_any_number_of_samples_has_one_in_each_stratum(samples: int):
    x, y = demo_render._sample_places(3, 2, samples, np.random.default_rng(0))
    x, y = x.reshape(3, 2, samples), y.reshape(3, 2, samples)
    across = {1: 1, 2: 1, 3: 1, 12: 3, 49: 7}[samples]
    for row in range(3):
        for column in range(2):
            cells = {
                (int((u - column) * across), int((v - row) * (samples // across)))
                for u, v in zip(x[row, column], y[row, column], strict=True)
            }
            assert cells == {(i, j) for i in range(across) for j in range(samples // across)}


def test_sky_is_smooth_and_meets_the_ground_at_the_horizon():
    """A whole turn at the horizon shows no seam, and far ground fades into the sky's color there."""
    angle = np.linspace(-np.pi, np.pi, 400)
    flat = np.stack([np.cos(angle), np.sin(angle), np.full_like(angle, 0.5)])
    color, distance = radiance(np.array([[0.0], [0.0], [40.0]]), flat / np.linalg.norm(flat, axis=0), True)
    assert np.isinf(distance).all()
    assert np.abs(np.diff(color, axis=1)).max() < 0.05
    above, below = (np.array([[0.6], [-0.8], [height]]) for height in (1e-6, -1e-4))
    eye = np.array([[0.0], [0.0], [60.0]])
    (sky, _), (ground, far) = (radiance(eye, along / np.linalg.norm(along), True) for along in (above, below))
    assert far[0] > 1e5
    np.testing.assert_allclose(ground, sky, atol=0.01)


def lost_by_halving(picture: np.ndarray) -> np.ndarray:
    """How far every 2x2 block is from its mean: what a picture of half the size does not hold."""
    rows, columns = picture.shape[0] // 2, picture.shape[1] // 2
    blocks = picture[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 3)
    return np.abs(blocks - blocks.mean(axis=(1, 3), keepdims=True)).mean(axis=(1, 3, 4))


def test_far_detail_is_far_and_fine():
    """Above the horizon, all around: what half the default picture's size does not hold is twice as much as by default,
    and much of it is on surfaces tens to hundreds of units away; what is near is the same."""
    lost = {"far": [], True: []}
    for azimuth in (-150.0, -60.0, 30.0, 120.0):
        pose, pinhole = camera(azimuth, 8.0, 2.7), Pinhole(246.0, 246.0, 128.0, 72.0, 256, 48)
        y, x = (axis.ravel() + 0.5 for axis in np.mgrid[: pinhole.height, : pinhole.width])
        directions = pose[:, :3] @ [(x - pinhole.cx) / pinhole.fx, (pinhole.cy - y) / pinhole.fy, -np.ones_like(x)]
        directions /= np.linalg.norm(directions, axis=0)
        above = directions[2] > 0.0
        seen = {kind: radiance(pose[:, 3:], directions, kind) for kind in lost}
        for kind, (_, distance) in seen.items():
            counts = ((distance > 15.0) & above).reshape(pinhole.height, pinhole.width)[::2, ::2]
            lost[kind].append(lost_by_halving(render_view(pose, pinhole, 16, 0, far=kind == "far"))[counts].mean())
        distance = seen["far"][1][above]
        assert 0.1 < ((distance > 15.0) & (distance < 300.0)).mean() and 0.05 < np.isinf(distance).mean()
        near = (seen["far"][1] < 3.5) & (seen[True][1] < 3.5)
        assert 0.01 < near.mean()
        np.testing.assert_array_equal(seen["far"][0][:, near], seen[True][0][:, near])
    assert np.mean(lost["far"]) > 2.0 * np.mean(lost[True])
