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
from _twins import DEVICE

from zipnerf_ns.engine.optimizers import DecayingAdam
from zipnerf_ns.functional import adam as twins
from zipnerf_ns.functional.adam import TableUpdate
from zipnerf_ns.functional.table_state import TableState, summarize
from zipnerf_ns.kernels.adam import table_adam as kernels

GRIDS = [(aligned_grid, 1), (aligned_grid, 4), (odd_grid, 1), (odd_grid, 2), (odd_grid, 3)]
"""Every alignment of levels: four values, two, one; chunks that are full and that are not."""


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


def on_device(grid, **settings) -> torch.nn.Parameter:
    table = new_table(grid, **settings)
    moved = torch.nn.Parameter(table.detach().to(DEVICE))
    table.table_state.attach(moved)
    return moved


def assert_same_state(found: torch.Tensor, truth: torch.Tensor) -> None:
    """Both states are current, and say the same to rounding."""
    assert found.table_state.is_current(found) and truth.table_state.is_current(truth)
    # Sums of thousands of squares in another order.
    torch.testing.assert_close(found.table_state.mean_square, truth.table_state.mean_square, rtol=2e-6, atol=0.0)


@runs_kernels
@pytest.mark.parametrize("wants_half", [False, True])
@pytest.mark.parametrize("make_grid,features", GRIDS)
def test_a_step_is_the_twins(make_grid, features, wants_half):
    grid = make_grid(features)
    found, truth = (on_device(grid, wants_half=wants_half) for _ in range(2))
    memories = [run(part.decayed_adam_, [table], steps=2) for part, table in ((kernels, found), (twins, truth))]
    # One rounding of values below two, and Adam's quotient; a fused product and sum differs from both by as much.
    torch.testing.assert_close(found, truth, rtol=0.0, atol=3e-7)
    for moment, expected in zip(memories[0][0], memories[1][0], strict=True):
        torch.testing.assert_close(moment, expected, rtol=1e-5, atol=1e-8)
    assert_same_state(found, truth)
    if wants_half:
        assert torch.equal(found.table_state.half, (found.detach() * 256.0).half())
    else:
        assert found.table_state.half is None


@runs_kernels
@pytest.mark.parametrize("make_grid,features", [(aligned_grid, 2), (odd_grid, 1)])
def test_twenty_steps_are_those_of_torchs_adam_on_gradient_plus_decay(make_grid, features):
    grid = make_grid(features)
    table = on_device(grid)
    expected = reference(table, grid, decays(grid))
    run(kernels.decayed_adam_, [table])
    # Twenty roundings of values below two, 6e-8 each.
    torch.testing.assert_close(table.detach().double().cpu(), expected, rtol=0.0, atol=1e-6)
    state = table.table_state
    torch.testing.assert_close(state.mean_square.double().cpu(), level_means(table, grid), rtol=1e-6, atol=0.0)


@runs_kernels
def test_several_tables_in_one_call_and_each_at_its_own_step():
    grids = [odd_grid(1), two_levels(), aligned_grid(4)]
    found, truth = ([on_device(grid) for grid in grids] for _ in range(2))
    for tables, decayed_adam_ in ((found, kernels.decayed_adam_), (truth, twins.decayed_adam_)):
        updates = [
            TableUpdate(table, gradient(table.detach().cpu(), 1).to(DEVICE), *moments(table), table.table_state, step)
            for table, step in zip(tables, (1, 7, 1000), strict=True)
        ]
        decayed_adam_(updates, LR, BETAS, EPS)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=3e-7)
        assert_same_state(one, other)


@runs_kernels
def test_rows_that_no_ray_touched_decay_and_without_decay_stay_bit_by_bit():
    grid = odd_grid(2)
    still, decayed = on_device(grid, decay=[0.0, 0.0, 0.0]), on_device(grid, decay=[0.5, 0.0, 0.0])
    start = still.detach().clone()
    run(kernels.decayed_adam_, [still, decayed])
    rows = torch.arange(grid.num_entries, device=DEVICE)
    untouched, coarse = rows % 3 > 0, rows < grid.levels[0].size
    assert torch.equal(still.detach()[untouched], start[untouched])
    assert torch.equal(decayed.detach()[~coarse], still.detach()[~coarse])
    # Values that Adam's steps cannot carry beyond zero.
    large = (untouched & coarse)[:, None] & (start.abs() > STEPS * LR)
    assert large.any() and (decayed.detach().abs() < start.abs() - LR)[large].all()


@runs_kernels
def test_equal_steps_give_equal_bits_and_a_summary_repeats_a_steps():
    grid = odd_grid(2)
    tables = [on_device(grid, wants_half=True) for _ in range(2)]
    for table in tables:
        run(kernels.decayed_adam_, [table], steps=2)
    one, other = (table.table_state for table in tables)
    assert torch.equal(one.mean_square, other.mean_square) and torch.equal(tables[0], tables[1])
    kept = one.mean_square.clone(), one.half.clone()
    one.forget()
    one.refresh(tables[0], kernels.summarize)
    assert torch.equal(one.mean_square, kept[0]) and torch.equal(one.half, kept[1])
    assert torch.equal(tables[0], tables[1])
    twin = summarize(tables[0], one)
    torch.testing.assert_close(one.mean_square, twin.mean_square, rtol=2e-6, atol=0.0)


@runs_kernels
def test_extreme_gradients():
    table = on_device(two_levels(), decay=[0.0, 0.0])
    twin = on_device(two_levels(), decay=[0.0, 0.0])
    grad = torch.zeros(13, 2, device=DEVICE)
    grad[:6, 0] = torch.tensor([1e-30, 1e-19, 1e-12, 1.0, 1e8, 1e18], device=DEVICE)
    grad[6:, 1] = -1e-10
    for each, decayed_adam_ in ((table, kernels.decayed_adam_), (twin, twins.decayed_adam_)):
        decayed_adam_([TableUpdate(each, grad, *moments(each), each.table_state, 1)], LR, BETAS, EPS)
    torch.testing.assert_close(table, twin, rtol=0.0, atol=3e-7)
    # Beyond the reach of eps and above float32's denormals the first step is the learning rate, whatever the gradient.
    start = new_table(two_levels()).detach().to(DEVICE)
    steps = (start - table.detach())[2:6, 0]
    torch.testing.assert_close(steps, torch.full_like(steps, LR), rtol=2e-3, atol=0.0)


@runs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad):
    spoilt, cleared, twin = (on_device(odd_grid(1)) for _ in range(3))
    memories = []
    for step, value, table in ((kernels, bad, spoilt), (kernels, 0.0, cleared), (twins, bad, twin)):
        grad = gradient(table.detach().cpu(), 1).to(DEVICE)
        grad[40] = value
        memories.append(moments(table))
        step.decayed_adam_([TableUpdate(table, grad, *memories[-1], table.table_state, 1)], LR, BETAS, EPS)
    assert torch.equal(spoilt, cleared)
    torch.testing.assert_close(spoilt, twin, rtol=0.0, atol=3e-7)
    for found, expected, truth in zip(*memories, strict=True):
        assert torch.equal(found, expected)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-8)
    assert_same_state(spoilt, twin)


@runs_kernels
def test_torch_sees_the_write_and_the_gradient_is_only_read():
    table = on_device(two_levels())
    grad = gradient(table.detach().cpu(), 1).to(DEVICE).t().contiguous().t()
    kept = grad.clone()
    squared = table.square().sum()
    kernels.decayed_adam_([TableUpdate(table, grad, *moments(table), table.table_state, 1)], LR, BETAS, EPS)
    assert torch.equal(grad, kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()
    truth = on_device(two_levels())
    twins.decayed_adam_([TableUpdate(truth, kept, *moments(truth), truth.table_state, 1)], LR, BETAS, EPS)
    torch.testing.assert_close(table, truth, rtol=0.0, atol=3e-7)


@runs_kernels
def test_tables_in_one_row():
    grid = odd_grid(2)
    table, flat = on_device(grid), torch.nn.Parameter(on_device(grid).detach().reshape(-1))
    TableState(grid, decays(grid)).attach(flat)
    for each in (table, flat):
        grad = gradient(new_table(grid).detach(), 1).to(DEVICE).view(each.shape)
        kernels.decayed_adam_([TableUpdate(each, grad, *moments(each), each.table_state, 1)], LR, BETAS, EPS)
    assert torch.equal(flat.view(-1, 2), table) and torch.equal(
        flat.table_state.mean_square, table.table_state.mean_square
    )


@runs_kernels
def test_the_optimizer_uses_the_kernel_and_either_goes_on_with_the_others_checkpoint():
    grid = odd_grid(2)
    first, second = on_device(grid), on_device(grid)
    results = []
    for table, order in ((first, ("triton", "torch")), (second, ("torch", "triton"))):
        state = None
        for implementation in order:
            optimizer = DecayingAdam([table], lr=LR, implementation=implementation)
            if state is not None:
                optimizer.load_state_dict(state)
            for step in (1, 2):
                table.grad = gradient(new_table(grid).detach(), step).to(DEVICE)
                optimizer.step()
            state = optimizer.state_dict()
            assert state["state"][0]["step"].device.type == "cpu"
        results.append(table.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0.0, atol=6e-7)
    assert float(state["state"][0]["step"]) == 4.0


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: elsewhere 'auto' means torch")
def test_auto_is_triton_on_cuda():
    table = on_device(two_levels())
    assert DecayingAdam([table])._table_update(table) is kernels.decayed_adam_


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: fused Adam keeps its step on the parameter's device")
def test_a_step_on_the_device_in_an_older_checkpoint_comes_to_the_cpu():
    table = on_device(two_levels())
    table.grad = torch.ones_like(table)
    older = torch.optim.Adam([table], lr=LR, betas=BETAS, eps=EPS, fused=True)
    older.step()
    assert older.state[table]["step"].is_cuda
    optimizer = DecayingAdam([table])
    optimizer.load_state_dict(older.state_dict())
    assert optimizer.state[table]["step"].device.type == "cpu"
    optimizer.step()
    assert float(optimizer.state[table]["step"]) == 2.0


@runs_kernels
def test_no_tables():
    kernels.decayed_adam_([], LR, BETAS, EPS)


@runs_kernels
def test_arguments_that_the_kernel_cannot_take():
    table = on_device(two_levels())
    grad = torch.zeros_like(table)
    turned = torch.zeros(2, 13, device=DEVICE).t()
    with pytest.raises(ValueError, match="exp_avg must be contiguous"):
        kernels.decayed_adam_([TableUpdate(table, grad, turned, grad, table.table_state, 1)], LR, BETAS, EPS)
    double = table.detach().double()
    with pytest.raises(RuntimeError, match="float32 tables; the hash table is torch.float64"):
        kernels.decayed_adam_([TableUpdate(double, double, double, double, table.table_state, 1)], LR, BETAS, EPS)
    with pytest.raises(RuntimeError, match="float32 tables"):
        kernels.summarize(double, table.table_state)


def test_what_is_missing_is_named(without_interpreter):
    table = new_table(two_levels())
    update = TableUpdate(table, table.detach(), *moments(table), table.table_state, 1)
    for run_it in (lambda: kernels.decayed_adam_([update], LR, BETAS, EPS),
                   lambda: kernels.summarize(table, table.table_state)):  # fmt: skip
        with pytest.raises(RuntimeError, match="need a CUDA device"):
            run_it()
