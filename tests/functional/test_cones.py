"""Cones cut into intervals, as Gaussians in the cube and as channels: against their parts, moments and loops."""

from __future__ import annotations

import math

import pytest
import torch
from _hash_truth import DENSE_AND_HASHED, PREFILTERS, looped_encode, random_table
from _truth import assert_finite, gradients, rng, unit_vectors
from torch import Tensor

from zipnerf_ns.functional.cones import (
    Cones,
    HalfTable,
    Lookup,
    cone_encode,
    cones_in_cube,
    middles_in_cube,
    separate_intervals,
)
from zipnerf_ns.functional.contraction import (
    box_cone_gaussians,
    box_points,
    contract_cone_gaussians,
    contract_points,
)
from zipnerf_ns.functional.frustum import cone_gaussians, multisamples
from zipnerf_ns.functional.hash_grid import hash_encode, make_hash_grid

CUBE = torch.tensor([[-2.0, -1.0, -1.5], [1.0, 2.0, 1.5]], dtype=torch.float64)
"""Three units along every side, off center."""
BOX = torch.tensor([[-2.0, -1.0, -1.5], [1.0, 5.0, -0.5]], dtype=torch.float64)
"""Three different sides."""
TURNS = ["evaluation", "random"]


def random_cones(rays: int = 4, bins: int = 5, seed: int = 0, turns: str = "random", far: float = 0.3, **changes):
    """Cones of different widths; within the unit ball unless ``far`` is large."""
    generator = rng(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    cones = Cones(
        origins=0.6 * rand(rays, 3) - 0.3,
        directions=unit_vectors((rays,), seed + 1),
        radius=0.01 + 0.2 * rand(rays, 1),
        tdist=0.05 + far * rand(rays, bins + 1).sort(dim=-1).values,
        turns=2.0 * rand(rays, bins) if turns == "random" else None,
        aabb=None,
    )
    return cones._replace(**changes)


def spokes(cones: Cones, points: Tensor) -> Tensor:
    """Unit vectors from the first ray to the points of its intervals, across it, in the unbent inside of the ball."""
    direction = cones.directions[0]
    world = 4.0 * points - 2.0 - cones.origins[0]
    return torch.nn.functional.normalize(world - (world @ direction)[..., None] * direction, dim=-1)


# --- intervals of their own ---


@pytest.mark.parametrize("one_lookup", [False, True])
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("aabb", [None, BOX])
def test_separate_intervals_are_the_same_gaussians(aabb, turns, one_lookup):
    cones = random_cones(turns=turns, far=20.0, aabb=aabb)
    separate = separate_intervals(cones)
    assert [len(part) for part in separate[:5]] == [20] * 5 and separate.tdist.shape == (20, 2)
    for found, expected in zip(
        cones_in_cube(separate, one_lookup), cones_in_cube(cones, one_lookup), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# --- the Gaussians that stand for an interval ---


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("aabb", [None, CUBE])
def test_six_points_have_the_mean_and_the_spread_of_the_one_gaussian(turns, aabb):
    cones = random_cones(turns=turns, aabb=aabb)
    points, stds = cones_in_cube(cones, False)
    mean, std = cones_in_cube(cones, True)
    assert points.shape == (20, 6, 3) and stds.shape == (20, 6)
    assert mean.shape == (20, 1, 3) and std.shape == (20, 1)
    torch.testing.assert_close(points.mean(dim=1), mean[:, 0], rtol=0.0, atol=1e-12)
    trace = (points - mean).square().sum(dim=(1, 2)) / 6.0
    # The box is a cube and the ball's inside is not bent, so the trace passes through unchanged in shape.
    torch.testing.assert_close(trace, std[:, 0].square(), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("aabb", [None, BOX])
def test_every_interval_is_its_parts_put_together(aabb):
    # Far enough for the contraction to bend them.
    cones = random_cones(far=5.0, aabb=aabb)
    points, stds = cones_in_cube(cones, False)
    mean, std = cones_in_cube(cones, True)
    for ray in range(4):
        for k in range(5):
            which, start, end = 5 * ray + k, cones.tdist[ray, k : k + 1], cones.tdist[ray, k + 1 : k + 2]
            beam = (cones.origins[ray], cones.directions[ray], start, end, cones.radius[ray])
            turn, reverse = cones.turns[ray, k : k + 1] % 1.0, cones.turns[ray, k : k + 1] >= 1.0
            world, spread = multisamples(*beam, 2.0 * math.pi * turn, reverse)
            cube = contract_points(world, spread) if aabb is None else box_points(world, spread, aabb)
            torch.testing.assert_close(points[which], cube[0][0], rtol=0.0, atol=1e-13)
            torch.testing.assert_close(stds[which], cube[1][0], rtol=1e-12, atol=0.0)
            world, t_var, r_var = cone_gaussians(*beam)
            rest = (cones.directions[ray : ray + 1], t_var, r_var)
            cube = contract_cone_gaussians(world, *rest) if aabb is None else box_cone_gaussians(world, *rest, aabb)
            torch.testing.assert_close(mean[which], cube[0], rtol=0.0, atol=1e-13)
            torch.testing.assert_close(std[which], cube[1], rtol=1e-12, atol=0.0)


def test_bounded_space_is_measured_in_the_box():
    cones = random_cones()
    mean, std = cones_in_cube(cones._replace(aabb=CUBE), True)
    unbent, world_std = cones_in_cube(cones, True)
    world = 4.0 * unbent - 2.0
    torch.testing.assert_close(mean, (world - CUBE[0]) / 3.0)
    torch.testing.assert_close(std, world_std * 4.0 / 3.0)


def test_unbounded_space_lands_in_the_cube_with_shrinking_extents():
    posts = torch.logspace(1.0, 6.0, 8, dtype=torch.float64).expand(3, 8)
    far = random_cones(3, 7, tdist=posts, radius=torch.full((3, 1), 5.8e-3, dtype=torch.float64))
    for one_lookup in (True, False):
        points, stds = cones_in_cube(far, one_lookup)
        assert ((points - 0.5).norm(dim=-1) <= 0.5).all()
        assert (stds > 0.0).all() and stds.max() < 0.5


# --- turns ---


def test_evaluation_alternates_two_patterns_and_draws_nothing():
    cones = random_cones(1, 4, turns="evaluation")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    points, _ = cones_in_cube(cones, False)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(points, cones_in_cube(cones, False)[0])
    across = spokes(cones, points)
    for k in range(1, 4):
        # Interval k's pattern against interval 0's, point by point: same for even k; for odd ones the order of the
        # angles (0 2 4 3 5 1 sixths) is reversed (1 5 3 4 2 0) and turned by half a sixth.
        expected = [1.0] * 6
        if k % 2:
            turns = [(b - a + 0.5) * math.pi / 3.0 for a, b in zip((0, 2, 4, 3, 5, 1), (1, 5, 3, 4, 2, 0), strict=True)]
            expected = [math.cos(turn) for turn in turns]
        assert (across[k] * across[0]).sum(dim=-1).tolist() == pytest.approx(expected, abs=1e-12)
    # The first one is neither turned nor reversed; half a sixth is a twelfth of a turn.
    same = cones._replace(turns=torch.tensor([[0.0, 1.0 + 1.0 / 12.0] * 2], dtype=torch.float64))
    torch.testing.assert_close(points, cones_in_cube(same, False)[0], rtol=0.0, atol=1e-14)


def test_evaluation_counts_intervals_anew_on_every_ray():
    # Five intervals a ray: the pattern that a ray ends on is the one that the next begins with.
    together = cones_in_cube(random_cones(3, 5, turns="evaluation"), False)[0]
    cones = random_cones(3, 5, turns="evaluation")
    for ray in range(3):
        alone = Cones(*(tensor[ray : ray + 1] for tensor in cones[:4]), None, None)
        torch.testing.assert_close(cones_in_cube(alone, False)[0], together[5 * ray : 5 * ray + 5])


@pytest.mark.parametrize("turn", [0.0, 0.1, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_turn_is_its_fraction_of_a_whole_one_and_one_more_reverses_the_order(turn, reverse):
    cones = random_cones(1, 2)._replace(turns=torch.tensor([[0.0, turn + reverse]], dtype=torch.float64))
    across = spokes(cones, cones_in_cube(cones, False)[0])
    direction = cones.directions[0]
    # Angles about the direction, counted right-handed from the first point of the unturned pattern.
    along, beside = across[0, 0], torch.linalg.cross(direction, across[0, 0])
    angles = torch.atan2(across[1] @ beside, across[1] @ along) / (2.0 * math.pi)
    pattern = [0, 2, 4, 3, 5, 1][:: -1 if reverse else 1]
    for angle, sixths in zip(angles.tolist(), pattern, strict=True):
        assert (angle - sixths / 6.0 - turn + 0.5) % 1.0 - 0.5 == pytest.approx(0.0, abs=1e-12)


def test_turns_move_points_but_neither_means_nor_extents():
    still = random_cones(turns="evaluation")
    turned = still._replace(turns=2.0 * torch.rand(4, 5, generator=rng(9), dtype=torch.float64))
    points, stds = cones_in_cube(still, False)
    moved, same = cones_in_cube(turned, False)
    assert ((points - moved).abs().amax(dim=(1, 2)) > 1e-6).all()
    torch.testing.assert_close(moved.mean(dim=1), points.mean(dim=1), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(same, stds)
    one, other = cones_in_cube(still, True), cones_in_cube(turned, True)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "one look-up has nothing to turn"


# --- channels ---


@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_channels_are_scaled_features_level_by_level_then_scaled_weights(prefilter):
    cones, grid = random_cones(2, 3), DENSE_AND_HASHED
    table, scales = random_table(grid, 2), torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    bandwidths = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found = cone_encode(table, cones, scales, Lookup(grid, prefilter, 3.0, bandwidths, None, torch.float64))
    positions, stds = cones_in_cube(cones, prefilter != "multisample")
    features, means = looped_encode(table, positions, stds, grid, prefilter, bandwidths.tolist())
    assert found.shape == (6, 3 * 2 + 3)
    for interval in range(6):
        for level in range(3):
            for feature in range(2):
                expected = 3.0 * float(features[interval, level, feature])
                assert float(found[interval, 2 * level + feature]) == pytest.approx(expected, rel=1e-10, abs=1e-13)
            expected = (2.0 * float(means[interval, level]) - 1.0) * float(scales[level])
            assert float(found[interval, 6 + level]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_active", [0, 1, 2, 3, 9])
def test_inactive_levels_give_zeros_but_have_weights(num_active):
    cones, table, scales = random_cones(), random_table(DENSE_AND_HASHED, 3), torch.ones(3, dtype=torch.float64)
    lookup = Lookup(DENSE_AND_HASHED, "multisample", 1.0, None, None, torch.float64)
    full = cone_encode(table, cones, scales, lookup)
    part = cone_encode(table, cones, scales, lookup._replace(num_active=num_active))
    active = 2 * min(num_active, 3)
    assert torch.equal(part[:, :active], full[:, :active]) and not part[:, active:6].any()
    assert torch.equal(part[:, 6:], full[:, 6:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_channels_have_the_precision_that_was_asked_for(dtype):
    cones, table, scales = random_cones(), random_table(DENSE_AND_HASHED, 3), torch.ones(3, dtype=torch.float64)
    lookup = Lookup(DENSE_AND_HASHED, "multisample", 1.0, None, None, torch.float64)
    found = cone_encode(table, cones, scales, lookup._replace(dtype=dtype))
    assert found.dtype == dtype
    assert torch.equal(found, cone_encode(table, cones, scales, lookup).to(dtype)), "rounded once, at the end"


def test_the_definition_reads_the_table_itself_and_no_copy():
    cones, table, scales = random_cones(), random_table(DENSE_AND_HASHED, 3), torch.ones(3, dtype=torch.float64)
    lookup = Lookup(DENSE_AND_HASHED, "multisample", 1.0, None, None, torch.float64)
    stale = HalfTable(torch.full_like(table, 7.0, dtype=torch.float16), 1.0)
    assert torch.equal(cone_encode(table, cones, scales, lookup, stale), cone_encode(table, cones, scales, lookup))


def test_a_table_of_another_shape_is_refused():
    lookup = Lookup(DENSE_AND_HASHED, "multisample", 1.0)
    table = random_table(DENSE_AND_HASHED, 3)[1:]
    with pytest.raises(ValueError, match="table has shape"):
        cone_encode(table, random_cones(), torch.ones(3, dtype=torch.float64), lookup)


@pytest.mark.parametrize("rays, bins", [(0, 4), (1, 1), (3, 0)])
def test_any_number_of_rays_and_intervals(rays, bins):
    cones, scales = random_cones(rays, bins), torch.ones(3, dtype=torch.float64)
    for prefilter in PREFILTERS:
        lookup = Lookup(DENSE_AND_HASHED, prefilter, 1.0, None, None, torch.float64)
        assert cone_encode(random_table(DENSE_AND_HASHED, 3), cones, scales, lookup).shape == (rays * bins, 9)


# --- close multisamples ---


@pytest.mark.parametrize("far", [0.01, 0.3, 20.0])
@pytest.mark.parametrize("aabb", [None, BOX])
def test_multisamples_lie_within_their_reach_about_their_middle(aabb, far):
    cones = random_cones(far=far, aabb=aabb, radius=torch.full((4, 1), 0.01, dtype=torch.float64))
    points, stds = cones_in_cube(cones, False)
    middle, std, reach = middles_in_cube(cones)
    spread = points.amax(dim=1) - points.amin(dim=1)
    is_short = reach[:, 0] < 0.02
    assert is_short.all() or far > 0.01
    # What bends within a long interval is not known from its middle.
    assert (spread <= 1.05 * reach)[is_short].all()
    torch.testing.assert_close(middle[:, 0][is_short], points.mean(dim=1)[is_short], rtol=0.0, atol=1e-3)
    torch.testing.assert_close(std[:, 0][is_short], stds.mean(dim=1)[is_short], rtol=0.05, atol=0.0)


def test_where_multisamples_are_close_the_middle_is_looked_up_once():
    grid = make_hash_grid(3, 2, 32, 9, 2)
    cones, table, scales = random_cones(6, 5, far=1.0), random_table(grid, 3), torch.ones(3, dtype=torch.float64)
    lookup = Lookup(grid, "multisample", 1.0, None, None, torch.float64)
    middle, std, reach = middles_in_cube(cones)
    six = cone_encode(table, cones, scales, lookup)
    one = torch.cat([part.flatten(1) for part in hash_encode(table, middle, std, grid)], dim=1)
    one[:, 6:] = 2.0 * one[:, 6:] - 1.0
    is_close = reach * torch.tensor(grid.resolutions) < 0.5
    assert 0.2 < is_close.double().mean() < 0.8
    expected = torch.where(torch.cat([is_close.repeat_interleave(2, dim=1), is_close], dim=1), one, six)
    torch.testing.assert_close(cone_encode(table, cones, scales, lookup._replace(close=0.5)), expected)
    moving = cones._replace(origins=cones.origins.clone().requires_grad_())
    torch.testing.assert_close(cone_encode(table, moving, scales, lookup._replace(close=0.5)), six)


# --- gradients ---


@pytest.mark.parametrize("prefilter", PREFILTERS)
@pytest.mark.parametrize("aabb", [None, BOX])
def test_gradients_are_those_of_finite_differences(prefilter, aabb):
    grid = make_hash_grid(2, 2, 7, 4, 2)
    assert [level.is_dense for level in grid.levels] == [True, False]
    cones = random_cones(2, 2, 4, far=1.5, aabb=aabb)
    positions, _ = cones_in_cube(cones, prefilter != "multisample")
    nearest = min(float(((positions * n - 0.5) % 1.0 - 0.5).abs().sub(0.5).abs().min()) for n in (2, 7))
    assert nearest > 1e-4, "finite differences must not straddle a kink"
    leaves = [random_table(grid, 5), *cones[:4], torch.tensor([0.5, 2.0], dtype=torch.float64)]

    def encode(table, origins, directions, radius, tdist, bandwidths):
        moved = Cones(origins, directions, radius, tdist, cones.turns, aabb)
        lookup = Lookup(grid, prefilter, 3.0, bandwidths, None, torch.float64)
        return cone_encode(table, moved, torch.tensor([0.5, 2.0], dtype=torch.float64), lookup)

    assert torch.autograd.gradcheck(encode, [leaf.requires_grad_() for leaf in leaves], eps=1e-6, atol=1e-6)


def test_the_tables_gradient_is_the_encodings_times_the_gain():
    cones, table, scales = random_cones(), random_table(DENSE_AND_HASHED, 3), torch.ones(3, dtype=torch.float64)
    lookup = Lookup(DENSE_AND_HASHED, "multisample", 3.0, None, None, torch.float64)
    samples = cones_in_cube(cones, False)
    _, (found,) = gradients(lambda t: cone_encode(t, cones, scales, lookup)[:, :6], [table], 7)
    _, (truth,) = gradients(lambda t: hash_encode(t, *samples, DENSE_AND_HASHED)[0].flatten(1), [table], 7)
    torch.testing.assert_close(found, 3.0 * truth)


@pytest.mark.parametrize("one_lookup", [False, True])
@pytest.mark.parametrize("aabb", [None, BOX.float()])
def test_extremes_are_finite_with_their_gradients(one_lookup, aabb):
    posts = torch.tensor([0.0, 0.0, 1e-38, 1e-30, 1e-3, 1.0, 1.0, 1e6, 1e6, 1e10])
    origins = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1e5, -1e5, 1e5]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    turns = torch.linspace(0.0, 1.999, 9).expand(3, 9)

    def in_cube(origins, directions, radius, tdist):
        return cones_in_cube(Cones(origins, directions, radius, tdist, turns, aabb), one_lookup)

    for radius in (0.0, 1e-3, 0.6):
        assert_finite(in_cube, origins, directions, torch.full((3, 1), radius), posts.expand(3, 10))
