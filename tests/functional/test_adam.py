"""The twin of the tables' optimizer against torch's own Adam on gradients that contain the decay."""

from __future__ import annotations

import pytest
import torch
from _tables import (
    BETAS,
    EPS,
    LR,
    STEPS,
    aligned_grid,
    decays,
    gradient,
    level_means,
    moments,
    new_table,
    odd_grid,
    reference,
    run,
    two_levels,
)

from zipnerf_ns.functional.adam import TableUpdate, decayed_adam_


@pytest.mark.parametrize("make_grid,features", [(aligned_grid, 1), (odd_grid, 4)])
def test_twenty_steps_are_those_of_torchs_adam_on_gradient_plus_decay(make_grid, features):
    grid = make_grid(features)
    table = new_table(grid, torch.float64)
    expected = reference(table, grid, decays(grid))
    run(decayed_adam_, [table])
    # The fused kernel orders its products differently.
    torch.testing.assert_close(table.detach(), expected, rtol=1e-9, atol=1e-10)


def test_float32_follows_to_rounding():
    grid = aligned_grid(2)
    table = new_table(grid)
    expected = reference(table, grid, decays(grid))
    run(decayed_adam_, [table])
    # Twenty roundings of values below two, 6e-8 each.
    torch.testing.assert_close(table.detach().double(), expected, rtol=0.0, atol=1e-6)


def test_without_decay_rows_that_no_ray_touched_stay_and_with_it_they_shrink():
    grid = two_levels()
    still, decayed = new_table(grid, decay=[0.0, 0.0]), new_table(grid, decay=[0.5, 0.0])
    start = still.detach().clone()
    run(decayed_adam_, [still, decayed])
    untouched = torch.arange(13) % 3 > 0
    assert torch.equal(still.detach()[untouched], start[untouched])
    first = untouched & (torch.arange(13) < 5)
    # Values that Adam's steps cannot carry beyond zero.
    large = first[:, None] & (start.abs() > STEPS * LR)
    assert large.any() and (decayed.detach().abs() < start.abs() - LR)[large].all()
    assert torch.equal(decayed.detach()[untouched & ~first], start[untouched & ~first])
    assert (still.detach()[~untouched] != start[~untouched]).all()


def test_the_state_is_current_and_the_tables_own():
    grid = odd_grid(2)
    table, other = new_table(grid, wants_half=True), new_table(grid)
    run(decayed_adam_, [table, other], steps=3)
    for each in (table, other):
        assert each.table_state.is_current(each)
        torch.testing.assert_close(each.table_state.mean_square.double(), level_means(each, grid), rtol=1e-6, atol=0.0)
    assert torch.equal(table.table_state.half, (table.detach() * 256.0).half()) and other.table_state.half is None


def test_the_gradient_is_only_read_and_may_have_any_strides():
    grid = two_levels()
    plain, turned = new_table(grid), new_table(grid)
    grad = gradient(plain.detach(), 1)
    kept = grad.clone()
    decayed_adam_([TableUpdate(plain, grad, *moments(plain), plain.table_state, 1)], LR, BETAS, EPS)
    transposed = grad.t().contiguous().t()
    assert not transposed.is_contiguous()
    decayed_adam_([TableUpdate(turned, transposed, *moments(turned), turned.table_state, 1)], LR, BETAS, EPS)
    assert torch.equal(grad, kept) and torch.equal(plain, turned)


def test_torch_sees_the_write():
    table = new_table(two_levels())
    squared = table.square().sum()
    run(decayed_adam_, [table], steps=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad):
    spoilt, cleared = (new_table(two_levels()) for _ in range(2))
    memories = []
    for table, value in ((spoilt, bad), (cleared, 0.0)):
        memory = moments(table)
        for step in (1, 2):
            grad = gradient(table.detach(), step)
            if step == 1:
                grad[3, 1] = value
            decayed_adam_([TableUpdate(table, grad, *memory, table.table_state, step)], LR, BETAS, EPS)
        memories.append(memory)
    assert torch.equal(spoilt, cleared) and torch.isfinite(spoilt).all()
    assert all(torch.equal(moment, expected) for moment, expected in zip(*memories, strict=True))
    assert torch.isfinite(spoilt.table_state.mean_square).all()


def test_no_tables():
    decayed_adam_([], LR, BETAS, EPS)
