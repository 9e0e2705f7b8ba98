"""The tables' optimizer in Triton against its torch twin and torch's own Adam, on a GPU or under the interpreter.

Without a GPU, one test runs all the others in a process of their own: the interpreter has to be chosen before triton is
imported, and choosing it here would make it run in other tests.
"""

from __future__ import annotations

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _tables import (
    BETAS,
    EPS,
    LR,
    STEPS,
    Table,
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
)
from _twins import DEVICE

from zipnerf_ns.engine.optimizers import DecayingAdam, resolve_implementation
from zipnerf_ns.functional import adam as twins
from zipnerf_ns.functional.adam import Summary
from zipnerf_ns.hash_table import HashTable
from zipnerf_ns.kernels.adam import table_adam as kernels
from zipnerf_ns.ops import guarded_ops

GRIDS = [(aligned_grid, 1), (aligned_grid, 4), (odd_grid, 1), (odd_grid, 2), (odd_grid, 3)]
"""Every alignment of levels: four values, two, one; chunks that are full and that are not."""


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


def on_device(grid, **settings) -> Table:
    return new_table(grid, **settings).to(DEVICE)


def gradient_on_device(table: HashTable, step: int = 1) -> torch.Tensor:
    return gradient(table.hash_table.detach().cpu(), step).to(DEVICE)


def assert_same_summary(found: Summary, truth: Summary) -> None:
    # Sums of thousands of squares in another order.
    torch.testing.assert_close(found.mean_square, truth.mean_square, rtol=2e-6, atol=0.0)


@runs_kernels
@pytest.mark.parametrize("reads_half", [False, True])
@pytest.mark.parametrize("make_grid,features", GRIDS)
def test_a_step_is_the_twins(make_grid, features, reads_half):
    grid = make_grid(features)
    found, truth = (on_device(grid, reads_half=reads_half) for _ in range(2))
    memories = [run(part.decayed_adam_, [table], steps=2) for part, table in ((kernels, found), (twins, truth))]
    # One rounding of values below two, and Adam's quotient; a fused product and sum differs from both by as much.
    torch.testing.assert_close(found.hash_table, truth.hash_table, rtol=0.0, atol=3e-7)
    for moment, expected in zip(memories[0][0], memories[1][0], strict=True):
        torch.testing.assert_close(moment, expected, rtol=1e-5, atol=1e-8)
    assert_same_summary(found.kept, truth.kept)
    if reads_half:
        assert torch.equal(found.kept.half, (found.hash_table.detach() * 256.0).half())
    else:
        assert found.kept.half is None


@runs_kernels
@pytest.mark.parametrize("make_grid,features", [(aligned_grid, 2), (odd_grid, 1)])
def test_twenty_steps_are_those_of_torchs_adam_on_gradient_plus_decay(make_grid, features):
    table = on_device(make_grid(features))
    expected = reference(table)
    run(kernels.decayed_adam_, [table])
    # Twenty roundings of values below two, 6e-8 each.
    torch.testing.assert_close(table.hash_table.detach().double().cpu(), expected, rtol=0.0, atol=1e-6)
    means = level_means(table.hash_table, table.grid)
    torch.testing.assert_close(table.kept.mean_square.double().cpu(), means, rtol=1e-6, atol=0.0)


@runs_kernels
@pytest.mark.parametrize("reads_half", [False, True])
def test_a_step_that_is_marked_changes_nothing(reads_half):
    table = on_device(odd_grid(2), reads_half=reads_half)
    before = run(kernels.decayed_adam_, [table], steps=1)[0]
    kept = [tensor.detach().clone() for tensor in (table.hash_table, *before)]
    grad = torch.full_like(table.hash_table, float("nan"))
    for mark, equal in ((1.0, True), (0.0, False)):
        each = update(table, grad, before, 2)._replace(found_inf=torch.tensor(mark, device=DEVICE))
        (summary,) = kernels.decayed_adam_([each], LR, BETAS, EPS)
        found = (table.hash_table.detach(), *before)
        assert all(torch.equal(one, other) for one, other in zip(found, kept, strict=True)) == equal
        assert_same_summary(summary, twins.summarize(table.hash_table, table.grid))
        if reads_half:
            assert torch.equal(summary.half, (table.hash_table.detach() * 256.0).half())


@runs_kernels
def test_several_tables_in_one_call_and_each_at_its_own_step():
    grids = [odd_grid(1), two_levels(), aligned_grid(4)]
    found, truth = ([on_device(grid) for grid in grids] for _ in range(2))
    summaries = []
    for tables, decayed_adam_ in ((found, kernels.decayed_adam_), (truth, twins.decayed_adam_)):
        updates = [
            update(table, gradient_on_device(table), moments(table), step)
            for table, step in zip(tables, (1, 7, 1000), strict=True)
        ]
        summaries.append(decayed_adam_(updates, LR, BETAS, EPS))
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one.hash_table, other.hash_table, rtol=0.0, atol=3e-7)
    for one, other in zip(*summaries, strict=True):
        assert_same_summary(one, other)


@runs_kernels
def test_rows_that_no_ray_touched_decay_and_without_decay_stay_bit_by_bit():
    grid = odd_grid(2)
    tables = on_device(grid, decay=[0.0, 0.0, 0.0]), on_device(grid, decay=[0.5, 0.0, 0.0])
    still, decayed = (table.hash_table.detach() for table in tables)
    start = still.clone()
    run(kernels.decayed_adam_, tables)
    rows = torch.arange(grid.num_entries, device=DEVICE)
    untouched, coarse = rows % 3 > 0, rows < grid.levels[0].size
    assert torch.equal(still[untouched], start[untouched])
    assert torch.equal(decayed[~coarse], still[~coarse])
    # Values that Adam's steps cannot carry beyond zero.
    large = (untouched & coarse)[:, None] & (start.abs() > STEPS * LR)
    assert large.any() and (decayed.abs() < start.abs() - LR)[large].all()


@runs_kernels
def test_equal_steps_give_equal_bits_and_a_summary_repeats_a_steps():
    one, other = (on_device(odd_grid(2), reads_half=True) for _ in range(2))
    for table in (one, other):
        run(kernels.decayed_adam_, [table], steps=2)
    assert torch.equal(one.kept.mean_square, other.kept.mean_square) and torch.equal(one.hash_table, other.hash_table)
    kept = Summary(*(tensor.clone() for tensor in one.kept))
    one.kept.half.zero_()
    one.refresh(kernels.summarize)
    assert torch.equal(one.kept.mean_square, kept.mean_square) and torch.equal(one.kept.half, kept.half)
    assert torch.equal(one.hash_table, other.hash_table)
    assert_same_summary(one.kept, twins.summarize(one.hash_table, one.grid))


@runs_kernels
def test_extreme_gradients():
    table = on_device(two_levels(), decay=[0.0, 0.0])
    twin = on_device(two_levels(), decay=[0.0, 0.0])
    grad = torch.zeros(13, 2, device=DEVICE)
    grad[:6, 0] = torch.tensor([1e-30, 1e-19, 1e-12, 1.0, 1e8, 1e18], device=DEVICE)
    grad[6:, 1] = -1e-10
    for each, decayed_adam_ in ((table, kernels.decayed_adam_), (twin, twins.decayed_adam_)):
        decayed_adam_([update(each, grad, moments(each))], LR, BETAS, EPS)
    torch.testing.assert_close(table.hash_table, twin.hash_table, rtol=0.0, atol=3e-7)
    # Beyond the reach of eps and above float32's denormals the first step is the learning rate, whatever the gradient.
    start = on_device(two_levels()).hash_table
    steps = (start - table.hash_table).detach()[2:6, 0]
    torch.testing.assert_close(steps, torch.full_like(steps, LR), rtol=2e-3, atol=0.0)


@runs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2e19])
def test_a_gradient_that_is_not_finite_or_its_square_counts_as_zero(bad):
    spoilt, cleared, twin = (on_device(odd_grid(1)) for _ in range(3))
    memories, summaries = [], []
    for part, value, table in ((kernels, bad, spoilt), (kernels, 0.0, cleared), (twins, bad, twin)):
        grad = gradient_on_device(table)
        grad[40] = value
        memories.append(moments(table))
        summaries += part.decayed_adam_([update(table, grad, memories[-1])], LR, BETAS, EPS)
    assert torch.equal(spoilt.hash_table, cleared.hash_table)
    torch.testing.assert_close(spoilt.hash_table, twin.hash_table, rtol=0.0, atol=3e-7)
    for found, expected, truth in zip(*memories, strict=True):
        assert torch.equal(found, expected)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-8)
    assert_same_summary(summaries[0], summaries[2])


@runs_kernels
def test_a_copy_of_values_that_float16_does_not_hold_has_its_largest():
    table = on_device(two_levels())
    with torch.no_grad():
        table.hash_table[0], table.hash_table[1, 0] = torch.tensor([1e3, -1e30], device=DEVICE), torch.nan
    found, truth = (
        part.summarize(table.hash_table, table.grid, torch.empty(13, 2, dtype=torch.float16, device=DEVICE)).half
        for part in (kernels, twins)
    )
    assert found[0].tolist() == [65504.0, -65504.0] and found[1, 0].isnan()
    assert torch.equal(found.nan_to_num(0.0), truth.nan_to_num(0.0))


@runs_kernels
def test_torch_sees_the_write_and_the_gradient_is_only_read():
    table = on_device(two_levels())
    grad = gradient_on_device(table).t().contiguous().t()
    kept = grad.clone()
    squared = table.hash_table.square().sum()
    kernels.decayed_adam_([update(table, grad, moments(table))], LR, BETAS, EPS)
    assert torch.equal(grad, kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()
    truth = on_device(two_levels())
    twins.decayed_adam_([update(truth, kept, moments(truth))], LR, BETAS, EPS)
    torch.testing.assert_close(table.hash_table, truth.hash_table, rtol=0.0, atol=3e-7)


@runs_kernels
def test_tables_in_one_row():
    grid = odd_grid(2)
    table = on_device(grid)
    flat = HashTable(grid, torch.nn.Parameter(table.hash_table.detach().clone().view(-1)), table.decay)
    grad, summaries = gradient_on_device(table), []
    for each in (table, flat):
        each_update = update(each, grad.view(each.hash_table.shape), moments(each))
        summaries += kernels.decayed_adam_([each_update], LR, BETAS, EPS)
    assert torch.equal(flat.hash_table.view(-1, 2), table.hash_table)
    assert torch.equal(summaries[0].mean_square, summaries[1].mean_square)


@runs_kernels
def test_the_optimizer_uses_the_kernel_and_either_goes_on_with_the_others_checkpoint():
    first, second = on_device(odd_grid(2)), on_device(odd_grid(2))
    results = []
    for table, order in ((first, ("triton", "torch")), (second, ("torch", "triton"))):
        state = None
        for implementation in order:
            optimizer = DecayingAdam([table.hash_table], lr=LR, implementation=implementation)
            optimizer.adopt([table])
            if state is not None:
                optimizer.load_state_dict(state)
            for step in (1, 2):
                table.hash_table.grad = gradient_on_device(table, step)
                optimizer.step()
            state = optimizer.state_dict()
            assert state["state"][0]["step"].device.type == "cpu"
        results.append(table.hash_table.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0.0, atol=6e-7)
    assert float(state["state"][0]["step"]) == 4.0


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: elsewhere 'auto' means torch")
def test_auto_is_triton_on_cuda():
    assert resolve_implementation("auto", on_device(two_levels()).hash_table) is guarded_ops().decayed_adam_


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: fused Adam keeps its step on the parameter's device")
def test_a_step_on_the_device_in_an_older_checkpoint_comes_to_the_cpu():
    table = on_device(two_levels())
    parameter = table.hash_table
    parameter.grad = torch.ones_like(parameter)
    older = torch.optim.Adam([parameter], lr=LR, betas=BETAS, eps=EPS, fused=True)
    older.step()
    assert older.state[parameter]["step"].is_cuda
    first, second = DecayingAdam([parameter]), DecayingAdam([parameter])
    first.adopt([table])
    first.load_state_dict(older.state_dict())
    second.load_state_dict(older.state_dict())
    second.adopt([table])
    for optimizer in (first, second):
        assert optimizer.state[parameter]["step"].device.type == "cpu"
        optimizer.step()
        assert float(optimizer.state[parameter]["step"]) == 2.0


@runs_kernels
def test_no_tables():
    assert kernels.decayed_adam_([], LR, BETAS, EPS) == []


@runs_kernels
def test_arguments_that_the_kernel_cannot_take():
    table = on_device(two_levels())
    grad = torch.zeros_like(table.hash_table)
    turned = torch.zeros(2, 13, device=DEVICE).t()
    with pytest.raises(ValueError, match="exp_avg must be contiguous"):
        kernels.decayed_adam_([update(table, grad, (turned, grad))], LR, BETAS, EPS)
    double = on_device(two_levels(), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="float32 tables; the hash table is torch.float64"):
        kernels.decayed_adam_([update(double, grad.double(), moments(double))], LR, BETAS, EPS)
    with pytest.raises(RuntimeError, match="float32 tables"):
        kernels.summarize(double.hash_table, double.grid)


def test_what_is_missing_is_named(without_interpreter):
    table = new_table(two_levels())
    given = update(table, table.hash_table.detach(), moments(table))
    for run_it in (lambda: kernels.decayed_adam_([given], LR, BETAS, EPS),
                   lambda: kernels.summarize(table.hash_table, table.grid)):  # fmt: skip
        with pytest.raises(RuntimeError, match="need a CUDA device"):
            run_it()
