"""Shapes against brute force (marching, finite differences, sampled surfaces), patterns against their laws."""

from __future__ import annotations

import numpy as np
import pytest

from zipnerf_ns.tools.scene.procedural import (
    Box,
    Cylinder,
    Ground,
    Shape,
    Sphere,
    dots,
    extent,
    fractal_noise,
    mix,
    parity,
    supports,
    value_noise,
)

SOLIDS = {
    "sphere": Sphere((0.3, -0.2, 0.5), 0.4, 0.7),
    "box": Box((-0.2, 0.4, 0.1), 0.6, (0.5, 0.2, 0.8)),
    "flat box": Box((0.1, 0.0, -0.3), 0.0, (0.6, 0.01, 0.4)),
    "cylinder": Cylinder((0.2, 0.1, 0.0), 1.2, 0.5, 0.3),
    "pole": Cylinder((-0.1, -0.3, 0.2), 0.0, 0.02, 0.9),
}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=0)


def rays_towards(shape: Shape, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rays from a sphere well outside, aimed at points in and around the solid, in float64."""
    random = np.random.default_rng(3)
    origins = np.asarray(shape.center)[:, None] + 4 * unit(random.normal(size=(3, count)))
    half = np.array([extent(supports([shape]), axis[:, None])[0, 0] for axis in np.eye(3)])
    targets = np.asarray(shape.center)[:, None] + 1.3 * half[:, None] * random.uniform(-1, 1, (3, count))
    return origins, unit(targets - origins)


@pytest.mark.parametrize("name", SOLIDS)
def test_rays_stop_where_the_distance_is_zero(name: str):
    """Up to the hit a ray is outside, at it on the surface, just behind it inside; a miss is never inside."""
    shape = SOLIDS[name]
    origins, directions = rays_towards(shape, 1500)
    enter, hit = shape.intersect(origins, directions)
    assert 100 < hit.sum() < 1450
    on_surface = origins[:, hit] + enter[hit] * directions[:, hit]
    np.testing.assert_allclose(shape.distance(on_surface), 0, atol=1e-9)
    reach = np.where(hit, enter, 8.0)
    for share in np.linspace(0, 1, 200):
        assert shape.distance(origins + share * reach * directions).min() > -1e-9
    # A ray that only grazes is shallower than this behind its hit.
    facing = -(directions[:, hit] * shape.surface(on_surface)[2]).sum(axis=0)
    behind = shape.distance(on_surface + 1e-6 * directions[:, hit])
    assert (behind[facing > 0.01] < 0).all()


@pytest.mark.parametrize("name", SOLIDS)
def test_rays_agree_with_marching_the_distance(name: str):
    """Sphere tracing, which only uses the distance, ends at the analytic hit and misses where it misses."""
    shape = SOLIDS[name]
    origins, directions = rays_towards(shape, 400)
    enter, hit = shape.intersect(origins, directions)
    travelled = np.zeros(400)
    for _ in range(400):
        travelled = np.minimum(travelled + shape.distance(origins + travelled * directions), 10.0)
    # Marching creeps along a surface that it grazes: compare where it has got to one, or far past it.
    arrived = shape.distance(origins + travelled * directions) < 1e-9
    assert arrived.mean() + (travelled == 10.0).mean() > 0.97
    assert hit[arrived].all() and not hit[travelled == 10.0].any()
    facing = -(directions * shape.surface(origins + enter * directions)[2]).sum(axis=0)
    clear = arrived & (facing > 0.05)
    np.testing.assert_allclose(travelled[clear], enter[clear], atol=1e-7)


@pytest.mark.parametrize("name", SOLIDS)
def test_distance_is_the_distance_to_the_nearest_surface_point(name: str):
    """No surface point is nearer than the distance says, and stepping by it along the gradient lands on one."""
    shape, random = SOLIDS[name], np.random.default_rng(4)
    origins, directions = rays_towards(shape, 4000)
    enter, hit = shape.intersect(origins, directions)
    surface = origins[:, hit] + enter[hit] * directions[:, hit]
    points = np.asarray(shape.center)[:, None] + random.uniform(-1.5, 1.5, (3, 200))
    distance = shape.distance(points)
    gaps = np.linalg.norm(points[:, :, None] - surface[:, None, :], axis=0).min(axis=1)
    assert (gaps >= np.abs(distance) - 1e-9).all()
    assert np.median(gaps - np.abs(distance)) < 0.05
    step = 1e-6
    gradient = np.stack([shape.distance(points + step * axis[:, None]) - distance for axis in np.eye(3)]) / step
    landed = shape.distance(points - distance * gradient)
    np.testing.assert_allclose(landed[distance > 0], 0, atol=1e-5)


@pytest.mark.parametrize("name", SOLIDS)
def test_normals_are_the_gradient_of_the_distance(name: str):
    shape = SOLIDS[name]
    origins, directions = rays_towards(shape, 500)
    enter, hit = shape.intersect(origins, directions)
    points = origins[:, hit] + enter[hit] * directions[:, hit]
    local, local_normals, normals = shape.surface(points)
    step = 1e-7
    ahead = np.stack([shape.distance(points + step * axis[:, None]) for axis in np.eye(3)])
    behind = np.stack([shape.distance(points - step * axis[:, None]) for axis in np.eye(3)])
    # At an edge the difference quotient sees both faces; there are few such points.
    close = np.abs((ahead - behind) / (2 * step) - normals).max(axis=0) < 1e-5
    assert close.mean() > 0.99
    np.testing.assert_allclose(shape.rotate(local_normals, inverse=True), normals, atol=1e-12)
    np.testing.assert_allclose(
        shape.rotate(local, inverse=True) + np.asarray(shape.center)[:, None], points, atol=1e-12
    )


@pytest.mark.parametrize("name", SOLIDS)
def test_extent_bounds_the_surface_tightly(name: str):
    shape = SOLIDS[name]
    origins, directions = rays_towards(shape, 20000)
    enter, hit = shape.intersect(origins, directions)
    offsets = origins[:, hit] + enter[hit] * directions[:, hit] - np.asarray(shape.center)[:, None]
    axes = unit(np.random.default_rng(5).normal(size=(3, 50)))
    reached, bound = (axes.T @ offsets).max(axis=1), extent(supports([shape]), axes)[0]
    assert (reached <= bound + 1e-9).all()
    assert (reached > 0.85 * bound).all()


def test_ground_is_hit_from_above_only():
    ground = Ground((0.0, 0.0, -0.5))
    origins = np.array([[0.0], [0.0], [1.5]])
    directions = unit(np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -1.0, 1.0, 0.0]]))
    enter, hit = ground.intersect(origins, directions)
    np.testing.assert_array_equal(hit, [True, True, False, False])
    np.testing.assert_allclose(enter[:2], [2.0, 2.0 * np.sqrt(2)])


def test_float32_hits_lie_on_far_and_large_solids():
    """A hill of radius 300 at 300 units is met within a millionth of that, in float32 as in pictures."""
    hill = Sphere((300.0, 0.0, -280.0), 0.0, 300.0)
    down = np.linspace(-0.05, 0.03, 200, dtype=np.float32)
    directions = unit(np.stack([np.ones_like(down), np.zeros_like(down), down])).astype(np.float32)
    origins = np.array([[-1.0], [0.0], [0.5]], dtype=np.float32)
    enter, hit = hill.intersect(origins, directions)
    assert enter.dtype == np.float32 and hit.sum() > 100
    points = origins.astype(np.float64) + enter[hit].astype(np.float64) * directions[:, hit]
    assert np.abs(hill.distance(points)).max() < 3e-4


def test_noise_is_continuous():
    """No seam on any lattice line, in particular not where the lattice repeats, and values within [0, 1]."""
    lines, random = np.arange(-300.0, 300.0), np.random.default_rng(6)
    elsewhere = random.uniform(-300, 300, lines.shape)
    for noise in (value_noise, lambda a, b: value_noise(b, a)):
        assert np.abs(noise(lines - 1e-7, elsewhere) - noise(lines, elsewhere)).max() < 1e-5
    u, v = random.uniform(-300, 300, (2, 20000))
    for octaves in (1, 3):
        value = fractal_noise(u, v, octaves)
        assert 0 <= value.min() and value.max() <= 1 and value.std() > 0.1
        assert np.abs(fractal_noise(u + 1e-6, v - 1e-6, octaves) - value).max() < 5e-5


def test_noise_survives_the_far_horizon():
    far = np.array([3e8, -2e9, 7e11], dtype=np.float32)
    value = fractal_noise(far, far[::-1].copy(), 4)
    assert value.dtype == np.float32 and np.isfinite(value).all()


def test_patterns_by_hand():
    u, v = np.array([0.5, 1.5, -0.5, 2.2]), np.array([0.5, 0.5, 0.5, -1.1])
    np.testing.assert_array_equal(parity(u), [0, 1, 1, 0])
    np.testing.assert_array_equal(parity(u, v), [0, 1, 1, 0])
    np.testing.assert_array_equal(dots(u, v, 0.3), [1, 1, 1, 0])
    mixed = mix((0.0, 1.0, 0.5), (1.0, 0.0, 0.5), np.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(mixed, [[0, 0.25, 1], [1, 0.75, 0], [0.5, 0.5, 0.5]])
