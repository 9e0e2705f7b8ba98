"""Rays as plain tensors: what a bundle becomes, and the limits of rays against dense point-in-box tests."""

from __future__ import annotations

import math

import pytest
import torch
from _rays import assert_same_bundle, copy_bundle, make_bundle, missed_crop, uniform, unit_vectors

from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.cameras.rays import rays_of_bundle

AABB = torch.tensor([[-0.5, -0.3, -0.4], [0.6, 0.7, 0.2]])

# --- what a bundle becomes ---


def test_directions_become_unit_and_the_bundle_is_left_as_it_is():
    bundle = make_bundle(5, 7)
    bundle.directions *= uniform((5, 1), 8, 0.1, 9.0)
    before = copy_bundle(bundle)
    rays = rays_of_bundle(bundle, 0.05, 77.0, AABB)
    assert_same_bundle(bundle, before)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(5))
    cosine = torch.nn.functional.cosine_similarity(rays.directions, before.directions, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(5))
    assert torch.equal(rays.origins, before.origins) and torch.equal(rays.camera_indices, before.camera_indices)


def test_a_direction_without_length_stays_finite():
    rays = rays_of_bundle(make_bundle(3, directions=torch.zeros(3, 3)), 0.05, 77.0, AABB)
    assert all(torch.isfinite(tensor).all() for tensor in rays[:5])


def test_the_cones_disc_varies_as_its_square_pixel_does():
    # A square of area a varies by a/12 along each side, a disc of radius r by r^2/4 along each axis.
    area = torch.tensor([[1e-8], [1e-4], [0.9], [0.0]])
    rays = rays_of_bundle(make_bundle(4, pixel_area=area), 0.05, 77.0)
    for radius, pixel in zip(rays.radius[:, 0].tolist(), area[:, 0].tolist(), strict=True):
        assert radius == pytest.approx(2.0 * math.sqrt(pixel / 12.0))


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2), (1, 12)])
def test_a_bundle_of_any_shape_is_flattened_row_by_row(shape):
    nears, fars = uniform((12, 1), 1, 0.0, 1.0), uniform((12, 1), 2, 2.0, 3.0)
    flat = make_bundle(12, 3, nears=nears, fars=fars)
    for found, expected in zip(
        rays_of_bundle(flat.reshape(shape), 0.05, 77.0)[:7], rays_of_bundle(flat, 0.05, 77.0)[:7], strict=True
    ):
        assert torch.equal(found, expected)


def test_times_are_carried_as_they_are_with_the_shutter():
    times = uniform((12, 1), 4)
    rays = rays_of_bundle(make_bundle(12, times=times).reshape((3, 4)), 0.05, 77.0, shutter=0.1)
    assert torch.equal(rays.times, times) and rays.shutter == 0.1
    assert rays_of_bundle(make_bundle(12), 0.05, 77.0).times is None


def test_a_bundle_without_cameras_has_none():
    assert rays_of_bundle(make_bundle(4, camera_indices=None), 0.05, 77.0).camera_indices is None


def test_an_empty_bundle_has_no_rays():
    rays = rays_of_bundle(make_bundle(3)[:0], 0.05, 77.0, AABB)
    assert [tuple(tensor.shape) for tensor in rays[:7]] == [(0, 3), (0, 3), (0, 1), (0, 1), (0, 1), (0, 1), (0, 1)]


# --- limits ---


def test_without_other_limits_the_planes_hold():
    rays = rays_of_bundle(make_bundle(4), 0.05, 77.0)
    assert (rays.near == 0.05).all() and (rays.far == 77.0).all() and rays.valid.all()


def test_the_bundles_limits_narrow_the_planes_but_never_widen_them():
    nears, fars = torch.tensor([[0.0], [1.0], [2.0], [90.0]]), torch.tensor([[1e9], [5.0], [2.0], [95.0]])
    rays = rays_of_bundle(make_bundle(4, nears=nears, fars=fars), 0.05, 77.0)
    assert rays.valid[:, 0].tolist() == [True, True, False, False]
    assert rays.near[:2, 0].tolist() == pytest.approx([0.05, 1.0])
    assert rays.far[:2, 0].tolist() == pytest.approx([77.0, 5.0])
    assert (rays.far > rays.near).all(), "placeholders of empty rays are usable numbers"


def test_rays_of_no_pixel_have_no_width_and_the_bundles_limits():
    """As Nerfstudio's exporters make them, to look at a surface from just before it."""
    ones = torch.ones(4, 1)
    rays = rays_of_bundle(make_bundle(4, pixel_area=ones, nears=0.0 * ones, fars=0.02 * ones), 0.05, 77.0)
    assert rays.valid.all() and (rays.radius == 0.0).all()
    assert torch.equal(rays.near, 0.0 * ones) and torch.equal(rays.far, 0.02 * ones)
    beyond = rays_of_bundle(make_bundle(4, pixel_area=ones), 0.05, 77.0)
    assert (beyond.near == 0.05).all() and (beyond.far == 77.0).all()


@pytest.mark.parametrize("aabb", [None, AABB])
def test_a_missed_crop_sees_nothing_within_usable_limits(aabb):
    rays = rays_of_bundle(missed_crop(), 0.2, 1e6, aabb)
    assert not rays.valid.any()
    assert (rays.near == 0.2).all() and (rays.far > rays.near).all() and torch.isfinite(rays.far).all()


def axis_bundle() -> RayBundle:
    """Every axis and sign, from inside, from before and from beside the box: zero components, of either sign."""
    directions, origins = [], []
    for axis in range(3):
        for sign in (1.0, -1.0):
            direction = torch.full((3,), -0.0 if sign < 0.0 else 0.0)
            direction[axis] = sign
            for place in ((0.1, -0.2, 0.05), (-0.2, 0.3, 0.1), (3.0, 3.0, 3.0)):
                origin = torch.tensor(place)
                directions += [direction, direction]
                origins += [origin, torch.where(direction != 0.0, -4.0 * direction, origin)]
    count = len(origins)
    return make_bundle(count, origins=torch.stack(origins), directions=torch.stack(directions))


@pytest.mark.parametrize("kind", ["oblique", "axis"])
def test_box_limits_are_where_a_dense_walk_along_the_ray_is_inside(kind):
    bundle = make_bundle(150, 9) if kind == "oblique" else axis_bundle()
    if kind == "oblique":
        bundle.origins[::5] *= 0.2  # some start inside
        bundle.directions[::3] = unit_vectors(50, 10)  # some look away
    near_plane, far_plane, step = 0.05, 6.0, 1e-3
    rays = rays_of_bundle(bundle, near_plane, far_plane, AABB)
    t = torch.arange(near_plane + 0.5 * step, far_plane, step, dtype=torch.float64)
    points = bundle.origins[:, None].double() + t[:, None] * bundle.directions[:, None].double()
    inside = ((points > AABB[0].double()) & (points < AABB[1].double())).all(dim=-1)
    hits = inside.any(dim=-1)
    assert 0.2 < hits.float().mean() < 0.9, "the test sees hits and misses"
    # A chord shorter than a step can slip through the walk.
    decided = hits | ~rays.valid[:, 0] | ((rays.far - rays.near)[:, 0] > 2.0 * step)
    assert torch.equal(hits[decided], rays.valid[decided, 0])
    first = t[inside.int().argmax(dim=-1)]
    last = t[len(t) - 1 - inside.flip(-1).int().argmax(dim=-1)]
    torch.testing.assert_close(rays.near[hits, 0].double(), first[hits], rtol=0.0, atol=step)
    torch.testing.assert_close(rays.far[hits, 0].double(), last[hits], rtol=0.0, atol=step)
    assert torch.isfinite(rays.near).all() and (rays.far > rays.near).all()


def test_the_bundles_limits_and_the_box_narrow_each_other():
    # Along x from -2 the box begins at 1.5 and ends at 2.6.
    origins, directions = torch.tensor([[-2.0, 0.0, 0.0]]).expand(4, 3), torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    nears, fars = torch.tensor([[0.0], [2.0], [0.0], [2.7]]), torch.tensor([[9.0], [9.0], [2.0], [9.0]])
    rays = rays_of_bundle(
        make_bundle(4, origins=origins, directions=directions, nears=nears, fars=fars), 0.05, 77.0, AABB
    )
    assert rays.valid[:, 0].tolist() == [True, True, True, False]
    assert rays.near[:3, 0].tolist() == pytest.approx([1.5, 2.0, 1.5])
    assert rays.far[:3, 0].tolist() == pytest.approx([2.6, 2.6, 2.0])


def test_a_square_sees_at_its_pixels_time():
    rays = rays_of_bundle(make_bundle(8, times=torch.tensor([[0.25]] * 4 + [[0.75]] * 4)), 0.05, 77.0, shutter=0.1)
    merged = rays.merged(2)
    assert merged.times.tolist() == [[0.25], [0.75]] and merged.shutter == 0.1
    assert rays._replace(times=None).merged(2).times is None
