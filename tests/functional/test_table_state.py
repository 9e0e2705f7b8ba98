"""A table's state: what it keeps is true, and it notices when it no longer is."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from _tables import aligned_grid, decays, level_means, new_table, odd_grid, two_levels, values

from zipnerf_ns.functional.table_state import Summary, TableState, decay_coefficients, summarize


class Owner(torch.nn.Module):
    """A module with a table whose state it keeps too, as the encoding does."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.table = new_table(two_levels(), **settings)
        self.table_state = self.table.table_state

    def current(self) -> TableState:
        state = self.table_state.attach(self.table)
        if not state.is_current(self.table):
            state.refresh(self.table)
        return state


def in_place(owner: Owner) -> None:
    with torch.no_grad():
        owner.table.mul_(1.5)


def through_detach(owner: Owner) -> None:
    owner.table.detach()[3:6] = 2.0


def load(owner: Owner, assign: bool) -> None:
    other = Owner()
    in_place(other)
    owner.load_state_dict(other.state_dict(), assign=assign)


def step(owner: Owner, optimizer: type) -> None:
    owner.table.grad = torch.ones_like(owner.table)
    optimizer([owner.table], lr=0.1).step()


def replace(owner: Owner) -> None:
    owner.table.data = owner.table.data * 1.5


CHANGES = {
    "mul_": in_place,
    "detach()[...] =": through_detach,
    "load_state_dict": lambda owner: load(owner, False),
    "load_state_dict(assign=True)": lambda owner: load(owner, True),
    "SGD": lambda owner: step(owner, torch.optim.SGD),
    "Adam": lambda owner: step(owner, torch.optim.Adam),
    "data =": replace,
    "double": lambda owner: owner.double(),
}


@pytest.mark.parametrize("wants_half", [False, True])
@pytest.mark.parametrize("change", list(CHANGES))
def test_every_change_that_torch_counts_is_noticed(change, wants_half):
    owner = Owner(wants_half=wants_half)
    before = owner.current().mean_square.clone()
    assert owner.table_state.is_current(owner.table)
    CHANGES[change](owner)
    assert not owner.table_state.is_current(owner.table)
    state = owner.current()
    assert state is owner.table.table_state and state.is_current(owner.table)
    assert state.mean_square.dtype == owner.table.dtype
    torch.testing.assert_close(state.mean_square.double(), level_means(owner.table, state.grid), rtol=1e-6, atol=0.0)
    assert change == "double" or not torch.allclose(state.mean_square, before)
    if wants_half:
        assert torch.equal(state.half, (owner.table.detach() * 256.0).half())
    else:
        assert state.half is None


@pytest.mark.parametrize("write", [lambda table: table.data.mul_(2.0), lambda table: fused_step(table)])
def test_what_torch_does_not_count_is_told_by_forget(write):
    owner = Owner()
    owner.current()
    write(owner.table)
    # Were this to fail, torch would count these writes now, and the docstring could say so.
    assert owner.table_state.is_current(owner.table)
    owner.table_state.forget()
    assert not owner.table_state.is_current(owner.table)
    torch.testing.assert_close(owner.current().mean_square.double(), level_means(owner.table, two_levels()))


def fused_step(table: torch.Tensor) -> None:
    table.grad = torch.ones_like(table)
    torch.optim.Adam([table], fused=True).step()


def test_reading_changes_nothing():
    owner = Owner()
    kept = owner.current().mean_square
    owner.table.square().sum().backward()
    owner.state_dict()
    owner.to("cpu").eval().train()
    assert owner.table_state.is_current(owner.table) and owner.current().mean_square is kept


def duplicate(owner: Owner) -> Owner:
    return copy.deepcopy(owner)


def through_a_file(owner: Owner) -> Owner:
    file = io.BytesIO()
    torch.save(owner, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copy_of", [duplicate, through_a_file])
def test_a_copy_has_the_layout_but_computes_for_itself(copy_of):
    owner = Owner(wants_half=True, decay=[0.5, 0.25])
    owner.current()
    other = copy_of(owner)
    assert not other.table_state.is_current(other.table)
    state = other.current()
    assert state is not owner.table_state and other.table.table_state is state
    assert (state.decay, state.wants_half, state.grid) == ((0.5, 0.25), True, owner.table_state.grid)
    in_place(other)
    assert owner.table_state.is_current(owner.table)
    # The copy writes its half-precision values into memory of its own.
    assert not torch.equal(other.current().half, owner.table_state.half)


def test_checkpoints_hold_plain_tensors():
    owner, file = Owner(), io.BytesIO()
    owner.current()
    torch.save(owner.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == ["table"]


@pytest.mark.parametrize("make_grid", [aligned_grid, odd_grid])
@pytest.mark.parametrize("features", [1, 4])
def test_the_summary_is_the_loops(make_grid, features):
    grid = make_grid(features)
    table = new_table(grid, torch.float64)
    torch.testing.assert_close(summarize(table, table.table_state).mean_square, level_means(table, grid))
    # Libraries may keep the same values in one row.
    flat = summarize(table.detach().view(-1), table.table_state).mean_square
    torch.testing.assert_close(flat, level_means(table, grid))


def test_a_copy_of_small_values_keeps_eleven_bits():
    table = torch.nn.Parameter(values((13, 2), 3, 1e-5))
    state = TableState(two_levels(), wants_half=True).attach(table)
    state.refresh(table)
    back = state.half.float() / 256.0
    large = table.detach().abs() > 1e-6
    assert large.any()
    torch.testing.assert_close(back[large], table.detach()[large], rtol=2.0**-11, atol=0.0)


def test_asking_for_the_copy_later_makes_the_state_stale():
    owner = Owner()
    state = owner.current()
    state.wants_half = True
    assert not state.is_current(owner.table)
    assert owner.current().half.dtype == torch.float16


def test_another_way_to_compute_is_used():
    table = new_table(two_levels())
    given = Summary(torch.tensor([1.0, 2.0]), None)
    table.table_state.refresh(table, lambda *_: given)
    assert table.table_state.mean_square is given.mean_square and table.table_state.is_current(table)


@pytest.mark.parametrize("change", [in_place, lambda owner: load(owner, False), lambda o: o.table_state.forget()])
def test_what_is_kept_stays_where_a_captured_graph_reads_it(change):
    owner = Owner(wants_half=True)
    kept = owner.current().mean_square, owner.current().half
    change(owner)
    assert not owner.table_state.is_current(owner.table)
    state = owner.current()
    assert state.mean_square is kept[0] and state.half is kept[1]
    torch.testing.assert_close(kept[0].double(), level_means(owner.table, two_levels()), rtol=1e-6, atol=0.0)
    assert torch.equal(kept[1], (owner.table.detach() * 256.0).half())


def test_what_was_computed_in_inference_mode_can_be_used_in_training():
    owner = Owner()
    with torch.inference_mode():
        owner.current()
    factor = torch.ones(2, requires_grad=True)
    (factor * owner.current().mean_square).sum().backward()
    torch.testing.assert_close(factor.grad, owner.table_state.mean_square)
    assert not owner.table_state.mean_square.requires_grad


def test_the_coefficients_are_the_gradient_of_half_the_sum_of_the_mean_squares():
    grid = odd_grid(2)
    table = values((grid.num_entries, 2), 4, dtype=torch.float64).requires_grad_()
    means = [table[lv.offset : lv.offset + lv.size].square().mean() for lv in grid.levels]
    (expected,) = torch.autograd.grad(0.7 * 0.5 * sum(means), table)
    found = torch.zeros_like(table)
    for level, coefficient in zip(grid.levels, decay_coefficients(grid, 0.7), strict=True):
        found[level.offset : level.offset + level.size] = coefficient * table.detach()[level.offset :][: level.size]
    torch.testing.assert_close(found, expected)


def test_a_layout_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="24 values, its grid needs 26"):
        TableState(two_levels()).attach(torch.zeros(12, 2))
    with pytest.raises(ValueError, match="3 decay coefficients were given for 2 levels"):
        TableState(two_levels(), [0.1, 0.2, 0.3])
    state = TableState(two_levels(), decays(two_levels()))
    with pytest.raises(ValueError, match="1 decay coefficients"):
        state.decay = [0.1]
