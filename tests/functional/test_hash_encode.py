"""The prefiltered look-up against an explicit loop, and its gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _hash_truth import (
    DENSE_AND_HASHED,
    LEVEL_NAMES,
    LEVELS,
    PREFILTERS,
    faces_and_centers,
    looped_encode,
    looped_row,
    random_samples,
    random_table,
)
from _truth import assert_finite, random_cotangents, rng
from torch.autograd import gradcheck

from zipnerf_ns.functional.hash_grid import (
    HashGrid,
    Level,
    hash_encode,
    mean_square_per_level,
)


@pytest.mark.parametrize("dtype,atol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("prefilter", PREFILTERS)
def test_hash_encode_matches_an_explicit_loop(prefilter, samples, dtype, atol):
    grid = DENSE_AND_HASHED
    assert {level.is_dense for level in grid.levels} == {True, False}
    table = random_table(grid, seed=6, dtype=dtype)
    positions, stds = random_samples(15, samples, seed=7, dtype=dtype, outside=0.1)
    bandwidths = torch.tensor([0.5, 1.0, 1.7], dtype=dtype)
    found = hash_encode(table, positions, stds, grid, prefilter, bandwidths)
    truth = looped_encode(table, positions, stds, grid, prefilter, bandwidths.tolist())
    # In float32 a position is rounded to 25 * 6e-8 of a cell, times differences in the table of up to 5.
    for value, expected in zip(found, truth, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("level", LEVELS[:5], ids=LEVEL_NAMES[:5])
def test_features_at_cell_centers_are_the_tables_rows(level):
    grid = HashGrid((level,), 3)
    table, n = random_table(grid, seed=8), level.resolution
    cells = torch.randint(0, n, (50, 3), generator=rng(9))
    features, _ = hash_encode(table, ((cells.double() + 0.5) / n)[:, None], torch.zeros(50, 1).double(), grid)
    truth = table[[looped_row(cell, level) for cell in cells.tolist()]]
    torch.testing.assert_close(features[:, 0], truth, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("face,inwards", [(0.0, 1.0), (1.0, -1.0)])
def test_features_are_constant_from_the_outermost_centers_on(face, inwards, axis):
    grid, stds = DENSE_AND_HASHED, torch.full((20, 1), 0.01, dtype=torch.float64)
    table = random_table(grid, seed=10)
    positions = torch.rand(20, 1, 3, generator=rng(11), dtype=torch.float64)
    for k, level in enumerate(grid.levels):
        found = []
        for cells in (0.5, 0.499, 0.2, 0.0, -0.5, -1e6):  # from the face inwards
            positions[..., axis] = face + inwards * cells / level.resolution
            found.append(hash_encode(table, positions, stds, grid)[0][:, k])
        for features in found[1:]:
            torch.testing.assert_close(features, found[0], rtol=0.0, atol=1e-12)
        positions[..., axis] = face + inwards * 0.6 / level.resolution
        assert not torch.allclose(hash_encode(table, positions, stds, grid)[0][:, k], found[0])


def test_features_are_continuous_across_cell_faces_and_centers():
    grid = DENSE_AND_HASHED
    table = random_table(grid, seed=12)
    for level in grid.levels:
        positions = faces_and_centers(level)[:60]
        stds = torch.zeros(60, 1, dtype=torch.float64)
        for axis in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[axis] = 1e-9
            below, above = (hash_encode(table, (positions + s)[:, None], stds, grid)[0] for s in (-step, step))
            # Slopes are at most 25 cells * differences of about 6.
            torch.testing.assert_close(below, above, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_position_that_is_no_number_makes_its_intervals_features_so_and_no_others(axis):
    grid = DENSE_AND_HASHED
    table = random_table(grid, seed=23, dtype=torch.float32).requires_grad_()
    positions, stds = random_samples(4, 2, seed=24, dtype=torch.float32)
    clean, _ = hash_encode(table, positions, stds, grid)
    positions[1, 1, axis] = torch.nan
    features, _ = hash_encode(table, positions, stds, grid)
    assert torch.isnan(features[1]).all()
    others = torch.arange(4) != 1
    assert torch.equal(features[others], clean[others])
    # The way back reads and writes within the table, too.
    (v_table,) = torch.autograd.grad(features.sum(), table)
    assert v_table.shape == table.shape and torch.isnan(v_table).any()


def test_cells_that_collide_share_a_row_and_their_gradients_add():
    level = Level(9, 0, 64, False)
    grid = HashGrid((level,), 2)
    cells = {}
    for cell in np.ndindex(9, 9, 9):
        cells.setdefault(looped_row(cell, level), []).append(cell)
    row, colliding = max(cells.items(), key=lambda item: len(item[1]))
    assert len(colliding) >= 12, "729 cells in 64 rows"
    # Multiples of 1/18 are not exact in float64, so a center's neighbors weigh up to 1e-15.
    positions = ((torch.tensor(colliding).double() + 0.5) / 9.0)[:, None]
    table = random_table(grid, seed=13).requires_grad_()
    features, _ = hash_encode(table, positions, torch.zeros(len(colliding), 1).double(), grid)
    torch.testing.assert_close(features[:, 0], table[row].expand(len(colliding), 2), rtol=0.0, atol=1e-12)
    v_features = random_cotangents(features, seed=14)[0]
    (v_table,) = torch.autograd.grad((features * v_features).sum(), table)
    torch.testing.assert_close(v_table[row], v_features.sum(dim=(0, 1)), rtol=0.0, atol=1e-12)
    others = torch.arange(64) != row
    assert v_table[others].abs().max() < 1e-12


def test_features_are_linear_in_the_table_and_blind_to_the_order_of_samples():
    grid = DENSE_AND_HASHED
    one, two = random_table(grid, seed=15), random_table(grid, seed=16)
    positions, stds = random_samples(10, 6, seed=17)
    mixed, weights = hash_encode(2.0 * one - two, positions, stds, grid)
    apart = 2.0 * hash_encode(one, positions, stds, grid)[0] - hash_encode(two, positions, stds, grid)[0]
    torch.testing.assert_close(mixed, apart, rtol=0.0, atol=1e-12)
    flipped, flipped_weights = hash_encode(2.0 * one - two, positions.flip(1), stds.flip(1), grid)
    torch.testing.assert_close(flipped, mixed, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(flipped_weights, weights, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("prefilter", PREFILTERS)
@pytest.mark.parametrize("samples", [1, 6])
def test_hash_encode_gradients(prefilter, samples):
    grid = HashGrid((Level(2, 0, 8, True), Level(3, 8, 16, False)), 2)
    table = random_table(grid, seed=18).requires_grad_()
    positions, stds = random_samples(4, samples, seed=19)
    stds = (stds.clamp(max=0.3) + 0.05).requires_grad_()
    bandwidths = torch.tensor([0.8, 1.3], dtype=torch.float64, requires_grad=True)
    leaves = (table, positions.requires_grad_(), stds, bandwidths)
    assert gradcheck(lambda t, p, s, b: hash_encode(t, p, s, grid, prefilter, b), leaves)


@pytest.mark.parametrize("wanted", ["table", "positions", "stds"])
def test_each_gradient_is_the_same_when_asked_for_alone(wanted):
    grid = DENSE_AND_HASHED
    values = dict(
        zip(
            ("table", "positions", "stds"),
            (random_table(grid, seed=20), *random_samples(9, 6, seed=21)),
            strict=True,
        )
    )

    def gradient_of(names):
        leaves = {k: v.clone().requires_grad_(k in names) for k, v in values.items()}
        features, weights = hash_encode(**leaves, grid=grid)
        total = sum(
            (out * v).sum()
            for out, v in zip((features, weights), random_cotangents((features, weights), 22), strict=True)
        )
        return torch.autograd.grad(total, leaves[wanted])[0]

    alone, together = gradient_of([wanted]), gradient_of(list(values))
    assert alone.abs().sum() > 0.0
    torch.testing.assert_close(alone, together, rtol=0.0, atol=1e-13)


def test_float32_gradients_are_those_of_float64():
    grid = DENSE_AND_HASHED
    leaves = [
        random_table(grid, seed=23, dtype=torch.float32),
        *random_samples(60, 6, seed=24, dtype=torch.float32),
    ]
    v_features = torch.randn(60, 3, 2, generator=rng(25))
    grads = []
    for dtype in (torch.float32, torch.float64):
        typed = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        grads.append(torch.autograd.grad((hash_encode(*typed, grid)[0] * v_features.to(dtype)).sum(), typed))
    for found, truth in zip(*grads, strict=True):
        assert found.dtype == torch.float32
        # As a vector: rounding x n - 1/2 to 1e-6 of a cell moves the trilinear weights by as much.
        assert (found.double() - truth).norm() <= 1e-5 * truth.norm()


def test_gradients_are_finite_on_faces_outside_and_at_extreme_stds():
    grid = DENSE_AND_HASHED
    table = random_table(grid, seed=26, dtype=torch.float32)
    positions = faces_and_centers(grid.levels[1]).float()[:, None]
    for std in (0.0, 1e-30, 1e-3, 1e10):
        stds = torch.full(positions.shape[:2], std)
        for prefilter in PREFILTERS:
            assert_finite(lambda t, x, s, p=prefilter: hash_encode(t, x, s, grid, p), table, positions, stds)


def test_positions_outside_the_cube_have_no_gradient_across_its_face():
    grid = DENSE_AND_HASHED
    positions = torch.tensor([[[-0.3, 0.4, 0.6]], [[0.3, 1.7, 0.6]]], dtype=torch.float64, requires_grad=True)
    features, _ = hash_encode(random_table(grid, seed=27), positions, torch.full((2, 1), 0.01).double(), grid)
    (grad,) = torch.autograd.grad((features * random_cotangents(features, 28)[0]).sum(), positions)
    assert grad[0, 0, 0] == 0.0 and grad[1, 0, 1] == 0.0
    assert (grad[0, 0, 1:] != 0.0).all() and (grad[1, 0, [0, 2]] != 0.0).all()


@pytest.mark.parametrize("num_active,active", [(None, 3), (-1, 0), (0, 0), (1, 1), (2, 2), (3, 3), (99, 3)])
def test_inactive_levels_give_zeros_and_get_no_gradient(num_active, active):
    grid = DENSE_AND_HASHED
    table = random_table(grid, seed=29).requires_grad_()
    positions, stds = random_samples(8, 6, seed=30)
    whole, all_weights = hash_encode(table, positions, stds, grid)
    features, weights = hash_encode(table, positions, stds, grid, num_active=num_active)
    assert torch.equal(features[:, :active], whole[:, :active]) and (features[:, active:] == 0.0).all()
    assert torch.equal(weights, all_weights)
    (grad,) = torch.autograd.grad(features.square().sum(), table)
    for k, level in enumerate(grid.levels):
        touched = grad[level.offset : level.offset + level.size].abs().sum() > 0.0
        assert touched == (k < active)


@pytest.mark.parametrize("intervals,samples", [(0, 6), (0, 1)])
def test_no_intervals_give_no_features_and_zero_gradients(intervals, samples):
    grid = DENSE_AND_HASHED
    table = random_table(grid, seed=31).requires_grad_()
    positions = torch.zeros(intervals, samples, 3, dtype=torch.float64, requires_grad=True)
    stds = torch.zeros(intervals, samples, dtype=torch.float64, requires_grad=True)
    features, weights = hash_encode(table, positions, stds, grid)
    assert features.shape == (0, 3, 2) and weights.shape == (0, 3)
    v_table, v_positions, v_stds = torch.autograd.grad(features.sum() + weights.sum(), (table, positions, stds))
    assert (v_table == 0.0).all() and v_positions.shape == positions.shape and v_stds.shape == stds.shape


@pytest.mark.parametrize("shape", [(10, 2), (DENSE_AND_HASHED.num_entries, 3), (DENSE_AND_HASHED.num_entries + 1, 2)])
def test_a_table_of_another_grid_is_refused(shape):
    with pytest.raises(ValueError, match=str(DENSE_AND_HASHED.num_entries)):
        hash_encode(torch.zeros(shape), torch.zeros(1, 1, 3), torch.zeros(1, 1), DENSE_AND_HASHED)


def test_arguments_are_left_as_they_were():
    grid = DENSE_AND_HASHED
    values = [random_table(grid, seed=32), *random_samples(5, 6, seed=33)]
    copies = [v.clone() for v in values]
    leaves = [v.requires_grad_() for v in values]
    hash_encode(*leaves, grid)[0].sum().backward()
    assert all(torch.equal(v, copy) for v, copy in zip(values, copies, strict=True))


# --- mean_square_per_level ---


def test_mean_square_per_level_matches_a_loop():
    grid = DENSE_AND_HASHED
    table = random_table(grid, seed=34)
    truth = []
    for level in grid.levels:
        values = [v for row in table.tolist()[level.offset : level.offset + level.size] for v in row]
        truth.append(sum(v * v for v in values) / len(values))
    torch.testing.assert_close(mean_square_per_level(table, grid), torch.tensor(truth, dtype=torch.float64))


def test_mean_square_gradient_is_two_over_the_count():
    grid = DENSE_AND_HASHED
    table = random_table(grid, seed=35).requires_grad_()
    v_levels = torch.randn(3, generator=rng(36), dtype=torch.float64)
    (grad,) = torch.autograd.grad((mean_square_per_level(table, grid) * v_levels).sum(), table)
    for v_level, level in zip(v_levels, grid.levels, strict=True):
        rows = slice(level.offset, level.offset + level.size)
        torch.testing.assert_close(grad[rows], 2.0 * v_level * table[rows].detach() / (level.size * 2))
