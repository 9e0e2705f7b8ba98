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
    gradient,
    level_means,
    moments,
    new_table,
    odd_grid,
    reference,
    run,
    two_levels,
    update,
    values,
)

from zipnerf_ns.functional.adam import decay_coefficients, decayed_adam_, summarize


@pytest.mark.parametrize("make_grid,features", [(aligned_grid, 1), (odd_grid, 4)])
def test_twenty_steps_are_those_of_torchs_adam_on_gradient_plus_decay(make_grid, features):
    table = new_table(make_grid(features), torch.float64)
    expected = reference(table)
    run(decayed_adam_, [table])
    # The fused kernel orders its products differently.
    torch.testing.assert_close(table.hash_table.detach(), expected, rtol=1e-9, atol=1e-10)


def test_float32_follows_to_rounding():
    table = new_table(aligned_grid(2))
    expected = reference(table)
    run(decayed_adam_, [table])
    # Twenty roundings of values below two, 6e-8 each.
    torch.testing.assert_close(table.hash_table.detach().double(), expected, rtol=0.0, atol=1e-6)


def test_without_decay_rows_that_no_ray_touched_stay_and_with_it_they_shrink():
    grid = two_levels()
    tables = new_table(grid, decay=[0.0, 0.0]), new_table(grid, decay=[0.5, 0.0])
    still, decayed = (table.hash_table.detach() for table in tables)
    start = still.clone()
    run(decayed_adam_, tables)
    untouched = torch.arange(13) % 3 > 0
    assert torch.equal(still[untouched], start[untouched])
    first = untouched & (torch.arange(13) < 5)
    # Values that Adam's steps cannot carry beyond zero.
    large = first[:, None] & (start.abs() > STEPS * LR)
    assert large.any() and (decayed.abs() < start.abs() - LR)[large].all()
    assert torch.equal(decayed[untouched & ~first], start[untouched & ~first])
    assert (still[~untouched] != start[~untouched]).all()


def test_the_summaries_are_of_the_new_values_and_each_tables_own():
    grid = odd_grid(2)
    table, other = new_table(grid, reads_half=True), new_table(grid, torch.float64)
    with torch.no_grad():
        other.hash_table.mul_(0.5)
    run(decayed_adam_, [table, other], steps=3)
    for each in (table, other):
        expected = level_means(each.hash_table, grid)
        torch.testing.assert_close(each.kept.mean_square.double(), expected, rtol=1e-6, atol=0.0)
    assert torch.equal(table.kept.half, (table.hash_table.detach() * 256.0).half()) and other.kept.half is None


def test_the_gradient_is_only_read_and_may_have_any_strides():
    grid = two_levels()
    plain, turned = new_table(grid), new_table(grid)
    grad = gradient(plain.hash_table.detach(), 1)
    kept = grad.clone()
    decayed_adam_([update(plain, grad, moments(plain))], LR, BETAS, EPS)
    transposed = grad.t().contiguous().t()
    assert not transposed.is_contiguous()
    decayed_adam_([update(turned, transposed, moments(turned))], LR, BETAS, EPS)
    assert torch.equal(grad, kept) and torch.equal(plain.hash_table, turned.hash_table)


def test_torch_sees_the_write():
    table = new_table(two_levels())
    squared = table.hash_table.square().sum()
    run(decayed_adam_, [table], steps=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()


def test_a_step_that_is_marked_changes_nothing():
    table = new_table(odd_grid(2), reads_half=True)
    memory = run(decayed_adam_, [table], steps=1)[0]
    kept = [tensor.detach().clone() for tensor in (table.hash_table, *memory)]
    grad = torch.full_like(table.hash_table, float("nan"))
    for mark, equal in ((1.0, True), (0.0, False)):
        each = update(table, grad, memory, 2)._replace(found_inf=torch.tensor(mark))
        (summary,) = decayed_adam_([each], LR, BETAS, EPS)
        found = (table.hash_table.detach(), *memory)
        assert all(torch.equal(one, other) for one, other in zip(found, kept, strict=True)) == equal
        assert torch.equal(summary.half, (table.hash_table.detach() * 256.0).half())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2e19])
def test_a_gradient_that_is_not_finite_or_its_square_counts_as_zero(bad):
    spoilt, cleared = (new_table(two_levels()) for _ in range(2))
    memories, summaries = [], []
    for table, value in ((spoilt, bad), (cleared, 0.0)):
        memory = moments(table)
        for step in (1, 2):
            grad = gradient(table.hash_table.detach(), step)
            if step == 1:
                grad[3, 1] = value
            summaries += decayed_adam_([update(table, grad, memory, step)], LR, BETAS, EPS)
        memories.append(memory)
    assert torch.equal(spoilt.hash_table, cleared.hash_table) and torch.isfinite(spoilt.hash_table).all()
    assert all(torch.equal(moment, expected) for moment, expected in zip(*memories, strict=True))
    assert all(torch.isfinite(summary.mean_square).all() for summary in summaries)


def test_no_tables():
    assert decayed_adam_([], LR, BETAS, EPS) == []


# --- summaries and coefficients ---


@pytest.mark.parametrize("make_grid", [aligned_grid, odd_grid])
@pytest.mark.parametrize("features", [1, 4])
def test_the_summary_is_the_loops(make_grid, features):
    grid = make_grid(features)
    table = values((grid.num_entries, features), 0, 0.3, torch.float64)
    summary = summarize(table, grid)
    torch.testing.assert_close(summary.mean_square, level_means(table, grid))
    assert summary.half is None
    # Libraries may keep the same values in one row.
    torch.testing.assert_close(summarize(table.view(-1), grid).mean_square, level_means(table, grid))


def test_a_copy_of_small_values_keeps_eleven_bits():
    table, memory = values((13, 2), 3, 1e-5), torch.empty(13, 2, dtype=torch.float16)
    half = summarize(table, two_levels(), memory).half
    assert half is memory
    large = table.abs() > 1e-6
    assert large.any()
    torch.testing.assert_close((half.float() / 256.0)[large], table[large], rtol=2.0**-11, atol=0.0)


def test_a_copy_of_values_that_float16_does_not_hold_has_its_largest():
    table, memory = values((13, 2), 3), torch.empty(13, 2, dtype=torch.float16)
    table[0], table[1, 0] = torch.tensor([1e3, -1e30]), torch.nan
    half = summarize(table, two_levels(), memory).half
    assert half[0].tolist() == [65504.0, -65504.0] and half[1, 0].isnan() and torch.isfinite(half[2:]).all()


def test_the_coefficients_are_the_gradient_of_half_the_sum_of_the_mean_squares():
    grid = odd_grid(2)
    table = values((grid.num_entries, 2), 4, dtype=torch.float64).requires_grad_()
    means = [table[lv.offset : lv.offset + lv.size].square().mean() for lv in grid.levels]
    (expected,) = torch.autograd.grad(0.7 * 0.5 * sum(means), table)
    found = torch.zeros_like(table)
    for level, coefficient in zip(grid.levels, decay_coefficients(grid, 0.7), strict=True):
        found[level.offset : level.offset + level.size] = coefficient * table.detach()[level.offset :][: level.size]
    torch.testing.assert_close(found, expected)
