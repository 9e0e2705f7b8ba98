"""A hash table: what it keeps beside its values is true, and it notices when it no longer is."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from _tables import Table, decays, level_means, new_table, two_levels, values
from torch import Tensor

from zipnerf_ns.functional.adam import Summary
from zipnerf_ns.hash_table import HashTable


def current(table: Table) -> Summary:
    """What is kept, computed anew only if it is stale."""
    if not table.is_current():
        table.refresh()
    return table.kept


def in_place(table: Table) -> None:
    with torch.no_grad():
        table.hash_table.mul_(1.5)


def through_detach(table: Table) -> None:
    table.hash_table.detach()[3:6] = 2.0


def load(table: Table, assign: bool) -> None:
    other = new_table(two_levels())
    in_place(other)
    table.load_state_dict(other.state_dict(), assign=assign)


def step(table: Table, optimizer: type, **settings) -> None:
    table.hash_table.grad = torch.ones_like(table.hash_table)
    optimizer([table.hash_table], lr=0.1, **settings).step()


def replace(table: Table) -> None:
    table.hash_table.data = table.hash_table.data * 1.5


CHANGES = {
    "mul_": in_place,
    "detach()[...] =": through_detach,
    "load_state_dict": lambda table: load(table, False),
    "load_state_dict(assign=True)": lambda table: load(table, True),
    "SGD": lambda table: step(table, torch.optim.SGD),
    "Adam": lambda table: step(table, torch.optim.Adam),
    "data =": replace,
    "double": lambda table: table.double(),
}


@pytest.mark.parametrize("reads_half", [False, True])
@pytest.mark.parametrize("change", list(CHANGES))
def test_every_change_that_torch_counts_is_noticed(change, reads_half):
    table = new_table(two_levels(), reads_half=reads_half)
    before = current(table).mean_square.clone()
    assert table.is_current()
    CHANGES[change](table)
    assert not table.is_current()
    kept = current(table)
    assert table.is_current() and kept.mean_square.dtype == table.hash_table.dtype
    expected = level_means(table.hash_table, table.grid)
    torch.testing.assert_close(kept.mean_square.double(), expected, rtol=1e-6, atol=0.0)
    assert change == "double" or not torch.allclose(kept.mean_square, before)
    if reads_half:
        assert torch.equal(kept.half, (table.hash_table.detach() * 256.0).half())
    else:
        assert kept.half is None


@pytest.mark.parametrize(
    "write",
    [lambda table: table.hash_table.data.mul_(2.0), lambda table: step(table, torch.optim.Adam, fused=True)],
)
def test_what_torch_does_not_count_is_told_by_forget(write):
    table = new_table(two_levels())
    current(table)
    write(table)
    # Were this to fail, torch would count these writes now, and the docstring could say so.
    assert table.is_current()
    table.forget()
    assert not table.is_current()
    torch.testing.assert_close(current(table).mean_square.double(), level_means(table.hash_table, two_levels()))


def test_reading_changes_nothing():
    table = new_table(two_levels())
    kept = current(table).mean_square
    table.hash_table.square().sum().backward()
    table.state_dict()
    table.to("cpu").eval().train()
    assert table.is_current() and current(table).mean_square is kept


def through_a_file(table: Table) -> Table:
    file = io.BytesIO()
    torch.save(table, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, through_a_file])
def test_a_copy_has_the_layout_but_computes_for_itself(copy_of):
    table = new_table(two_levels(), decay=[0.5, 0.25], reads_half=True)
    current(table)
    table.is_decayed = True
    other = copy_of(table)
    assert not other.is_current()
    assert (other.decay, other.reads_half, other.grid) == ((0.5, 0.25), True, table.grid)
    # An optimizer has the one, but not the other.
    assert table.is_decayed and not other.is_decayed
    current(other)
    in_place(other)
    assert table.is_current()
    # The copy writes its half-precision values into memory of its own.
    assert not torch.equal(current(other).half, table.kept.half)


def test_nothing_hangs_on_the_parameter_and_checkpoints_hold_plain_tensors():
    table, file = new_table(two_levels()), io.BytesIO()
    current(table)
    assert vars(table.hash_table) == {}
    torch.save(table.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == ["hash_table"]


def test_asking_for_the_copy_later_makes_what_is_kept_stale():
    table = new_table(two_levels())
    current(table)
    table.reads_half = True
    assert not table.is_current()
    assert current(table).half.dtype == torch.float16


def test_another_way_to_compute_is_used_and_is_given_the_memory():
    table, given = new_table(two_levels(), reads_half=True), []

    def compute(values: Tensor, grid, half: Tensor) -> Summary:
        given.extend([values, grid, half])
        return Summary(torch.tensor([1.0, 2.0]), half)

    table.refresh(compute)
    assert table.is_current() and table.kept.mean_square.tolist() == [1.0, 2.0]
    assert given[0] is table.hash_table and given[1] is table.grid and given[2] is table.kept.half
    assert given[2].shape == (13, 2) and given[2].dtype == torch.float16


@pytest.mark.parametrize("change", [in_place, lambda table: load(table, False), lambda table: table.forget()])
def test_what_is_kept_stays_where_a_captured_graph_reads_it(change):
    table = new_table(two_levels(), reads_half=True)
    kept = current(table)
    change(table)
    assert not table.is_current()
    assert all(new is old for new, old in zip(current(table), kept, strict=True))
    expected = level_means(table.hash_table, two_levels())
    torch.testing.assert_close(kept.mean_square.double(), expected, rtol=1e-6, atol=0.0)
    assert torch.equal(kept.half, (table.hash_table.detach() * 256.0).half())


def test_what_was_computed_in_inference_mode_can_be_used_in_training():
    table = new_table(two_levels())
    with torch.inference_mode():
        current(table)
    factor = torch.ones(2, requires_grad=True)
    (factor * current(table).mean_square).sum().backward()
    torch.testing.assert_close(factor.grad, table.kept.mean_square)
    assert not table.kept.mean_square.requires_grad


def test_a_table_alone_keeps_no_copy():
    table = HashTable(two_levels(), torch.nn.Parameter(values((13, 2), 0)))
    table.refresh()
    assert table.kept.half is None and table.decay == (0.0, 0.0) and not table.is_decayed


def test_a_layout_that_does_not_fit_is_refused():
    parameter = torch.nn.Parameter(torch.zeros(13, 2))
    with pytest.raises(ValueError, match="24 values, its grid needs 26"):
        HashTable(two_levels(), torch.nn.Parameter(torch.zeros(12, 2)))
    with pytest.raises(ValueError, match="3 decay coefficients were given for 2 levels"):
        HashTable(two_levels(), parameter, [0.1, 0.2, 0.3])
    table = HashTable(two_levels(), parameter, decays(two_levels()))
    with pytest.raises(ValueError, match="1 decay coefficients"):
        table.decay = [0.1]
