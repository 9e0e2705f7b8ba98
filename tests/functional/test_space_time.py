"""Grids that change with time, and shifted intervals, against loops over python integers and floats."""

from __future__ import annotations

import math

import pytest
import torch
from _hash_truth import looped_corners, looped_weight, random_samples, random_table
from _truth import rng
from torch.autograd import gradcheck

from zipnerf_ns.functional.cones import Cones, Lookup, cone_encode, cones_in_cube, separate_intervals
from zipnerf_ns.functional.hash_grid import HashGrid, Level, hash_encode, make_hash_grid, shutter_weights

TIME_PRIME = 3674653429


def timed_grid() -> HashGrid:
    """Resolutions 4, 10 and 25 with 1, 3 and 9 knots: still, dense (time slowest) and hashed."""
    grid = make_hash_grid(3, 4, 25, 12, 2, 1, 9)
    assert [(level.resolution, level.knots, level.is_dense) for level in grid.levels] == [
        (4, 1, True), (10, 3, True), (25, 9, False),
    ]  # fmt: skip
    return grid


def looped_row_at(row: int, knot: int, level: Level) -> int:
    """The row of a cell at a knot, from its row without time: the hash is linear in exclusive ors."""
    if level.is_dense:
        return row + level.resolution**3 * knot
    return row ^ (knot * TIME_PRIME % 2**32 % level.size)


def looped_knots(time: float, level: Level):
    """The two knots whose centers surround a time, with their weights."""
    place = min(max(min(max(time, 0.0), 1.0) * level.knots - 0.5, 0.0), level.knots - 1.0)
    lower = min(math.floor(place), max(level.knots - 2, 0))
    return [(lower, 1.0 - (place - lower)), (min(lower + 1, level.knots - 1), place - lower)]


def test_features_over_time_match_an_explicit_loop():
    grid, shutter = timed_grid(), 0.15
    table = random_table(grid, seed=1)
    positions, stds = random_samples(7, 2, seed=2, outside=0.1)
    times = torch.tensor([-0.2, 0.0, 0.05, 0.31, 0.5, 0.98, 1.0], dtype=torch.float64)
    features, weights = hash_encode(table, positions, stds, grid, times=times, shutter=shutter)
    rows = table.tolist()
    for i, (points, spreads, time) in enumerate(zip(positions.tolist(), stds.tolist(), times.tolist(), strict=True)):
        for k, level in enumerate(grid.levels):
            moment = looped_weight(shutter / math.sqrt(12.0), level.knots, "multisample", 1.0)
            moment = 1.0 if level.knots == 1 else moment
            expected, mean = [0.0, 0.0], 0.0
            for point, std in zip(points, spreads, strict=True):
                weight = moment * looped_weight(std, level.resolution, "multisample", 1.0) / len(points)
                mean += weight
                for row, share in zip(*looped_corners(point, level), strict=True):
                    for knot, part in looped_knots(time, level):
                        for f in range(2):
                            value = rows[level.offset + looped_row_at(row, knot, level)][f]
                            expected[f] += weight * share * part * value
            assert features[i, k].tolist() == pytest.approx(expected, abs=1e-12)
            assert float(weights[i, k]) == pytest.approx(mean, abs=1e-12)


def test_gradients_over_time():
    grid = HashGrid((Level(2, 0, 24, True, 3), Level(3, 24, 16, False, 4)), 2)
    table = random_table(grid, seed=3).requires_grad_()
    positions, stds = random_samples(4, 2, seed=4)
    times = torch.tensor([0.1, 0.4, 0.77, 0.99], dtype=torch.float64)
    leaves = table, positions.requires_grad_(), (stds.clamp(max=0.3) + 0.05).requires_grad_()
    assert gradcheck(lambda *typed: hash_encode(*typed, grid, times=times, shutter=0.1), leaves)


def test_a_knots_center_is_its_features_alone_and_between_two_lies_their_mean():
    grid = HashGrid((Level(3, 0, 27 * 4, True, 4),), 2)
    table = random_table(grid, seed=5)
    positions, stds = random_samples(6, 1, seed=6)
    still = HashGrid((Level(3, 0, 27, True),), 2)
    of_knots = [hash_encode(table[27 * knot : 27 * knot + 27], positions, stds, still)[0] for knot in range(4)]

    def at(time: float):
        return hash_encode(table, positions, stds, grid, times=torch.full((6,), time, dtype=torch.float64))[0]

    for knot in range(4):
        torch.testing.assert_close(at((knot + 0.5) / 4), of_knots[knot], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(at(0.5), 0.5 * (of_knots[1] + of_knots[2]), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(at(0.0), of_knots[0], rtol=0.0, atol=1e-12)


def test_longer_moments_lower_levels_with_more_knots_and_no_still_ones():
    grid = timed_grid()
    assert shutter_weights(0.0, grid) == pytest.approx([1.0, 1.0, 1.0])
    short, long = shutter_weights(0.2, grid), shutter_weights(0.6, grid)
    assert long[0] == short[0] == 1.0
    assert long[1] < short[1] and long[2] < short[2] < short[1]


def make_cones() -> Cones:
    tdist = torch.rand(3, 5, generator=rng(7), dtype=torch.float64).mul(3.0).sort(dim=1).values
    directions = torch.nn.functional.normalize(torch.randn(3, 3, generator=rng(8), dtype=torch.float64), dim=1)
    origins = 0.3 * torch.randn(3, 3, generator=rng(9), dtype=torch.float64)
    radius, times = torch.full((3, 1), 0.01, dtype=torch.float64), torch.tensor([[0.1], [0.5], [0.8]]).double()
    shifts = 0.1 * torch.randn(12, 3, generator=rng(10), dtype=torch.float64)
    return Cones(origins, directions, radius, tdist, None, None, times, shifts, 0.1)


@pytest.mark.parametrize("one_lookup", [False, True])
def test_shifts_move_all_samples_of_their_interval_and_no_extents(one_lookup):
    cones = make_cones()
    moved, same = cones_in_cube(cones, one_lookup)
    still, stds = cones_in_cube(cones._replace(shifts=None), one_lookup)
    torch.testing.assert_close(moved - still, cones.shifts[:, None].expand_as(moved))
    assert torch.equal(same, stds)


def test_intervals_apart_keep_their_times_and_shifts():
    grid, cones = timed_grid(), make_cones()
    arguments = random_table(grid, seed=11), torch.ones(3, dtype=torch.float64), Lookup(grid, "multisample", 2.0)
    table, scales, lookup = arguments
    lookup = lookup._replace(dtype=torch.float64)
    together = cone_encode(table, cones, scales, lookup)
    torch.testing.assert_close(cone_encode(table, separate_intervals(cones), scales, lookup), together)


def test_a_grid_that_changes_is_told_the_time_and_a_still_one_does_not_ask():
    grid, cones = timed_grid(), make_cones()
    table, lookup = random_table(grid, seed=12), Lookup(grid, "ipe", 2.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="no times"):
        cone_encode(table, cones._replace(times=None), torch.ones(3, dtype=torch.float64), lookup)
    still = make_hash_grid(2, 4, 8, 10, 2)
    lookup = lookup._replace(grid=still)
    found = [cone_encode(random_table(still, 13), each, torch.ones(2, dtype=torch.float64), lookup)
             for each in (cones, cones._replace(times=None))]  # fmt: skip
    assert torch.equal(*found)


@pytest.mark.parametrize("knots,named", [((0, 4), "base_knots"), ((4, 3), "max_knots"), ((1, 40000), "max_knots")])
def test_impossible_numbers_of_knots_are_named(knots, named):
    with pytest.raises(ValueError, match=named):
        make_hash_grid(2, 4, 8, 10, 2, *knots)
