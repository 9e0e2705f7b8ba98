"""Triton's encoding of intervals that have a time, or are shifted, against its torch twin."""

from __future__ import annotations

import pytest
import torch
from _cone_twins import (
    PLAIN,
    RAYS,
    assert_close,
    assert_equals_twin,
    make_lookup,
    moved,
    random_cones,
    random_cotangent,
)
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import BLOCK, DEVICE, one_way, random_table
from torch import Tensor

from zipnerf_ns.functional import cones as twins
from zipnerf_ns.functional.cones import Cones
from zipnerf_ns.functional.hash_grid import HashGrid, make_hash_grid
from zipnerf_ns.kernels.encode import cone_encode as kernels
from zipnerf_ns.kernels.encode.tuning import Launch


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


def odd_grid(features: int) -> HashGrid:
    """Levels of 5, 9 and 16 cells a side with 1, 3 and 7 knots: still, dense, and hashed."""
    grid = make_hash_grid(3, 5, 16, 12, features, 1, 7)
    assert [(level.knots, level.is_dense) for level in grid.levels] == [(1, True), (3, True), (7, False)]
    return grid


def even_grid(features: int) -> HashGrid:
    """Levels of 4, 8 and 16 cells a side, powers of two, with 2, 3 and 5 knots."""
    return make_hash_grid(3, 4, 16, 11, features, 2, 5)


def timed(cones: Cones, shutter: float = 0.2) -> Cones:
    """Rays with times, the first and the last of which lie before the first knot's and after the last knot's center."""
    times = torch.rand(len(cones.origins), 1)
    times[0], times[-1] = 0.01, 0.99
    return cones._replace(times=times, shutter=shutter)


def shifted(cones: Cones) -> Cones:
    """Intervals shifted by up to a tenth of the cube."""
    intervals = len(cones.origins) * (cones.tdist.shape[1] - 1)
    return cones._replace(shifts=0.1 * (2.0 * torch.rand(intervals, 3) - 1.0))


@runs_kernels
@pytest.mark.parametrize("make_grid,features,prefilter,boxed", [
    (odd_grid, 1, "ipe", False),
    (even_grid, 4, "multisample", True),
    (odd_grid, 2, "none", False),
])  # fmt: skip
def test_values_and_gradients_over_time_equal_the_twins(make_grid, features, prefilter, boxed):
    assert_equals_twin(timed(random_cones(boxed=boxed)), make_lookup(make_grid(features), prefilter))


@runs_kernels
@pytest.mark.parametrize("launch", [Launch("ray", True, 3, BLOCK, 1), Launch("interval", False, 2, BLOCK, 1, True)])
def test_launches_that_merge_compute_the_same(launch):
    # Neighboring rays run side by side through the same cells at different times.
    cones = timed(random_cones(1, 9))
    pair = (value if value is None else value.repeat(2, 1) for value in cones[:5])
    cones = Cones(*pair, None, torch.tensor([[0.3], [0.4]]), None, 0.1)
    assert_equals_twin(cones, make_lookup(even_grid(1), "ipe"), one_way(launch))


@runs_kernels
@pytest.mark.parametrize("prefilter,boxed", [("multisample", False), ("ipe", True)])
def test_shifted_intervals_equal_the_twins(prefilter, boxed):
    assert_equals_twin(shifted(random_cones(boxed=boxed)), make_lookup(make_hash_grid(2, 4, 16, 10, 2), prefilter))


@runs_kernels
@pytest.mark.parametrize("prefilter,leaf,is_timed,close", [
    ("multisample", "shifts", False, 0.0), ("multisample", "shifts", False, 2.0), ("ipe", "shifts", False, 0.0),
    ("none", "shifts", True, 0.0), ("ipe", "origins", True, 0.0),
])  # fmt: skip
def test_gradients_to_shifts_and_cones_equal_the_twins(prefilter, leaf, is_timed, close):
    grid = even_grid(2) if is_timed else make_hash_grid(3, 4, 16, 11, 2)
    cones, table = timed(shifted(random_cones())), random_table(grid)
    lookup = make_lookup(grid, prefilter, close=close)
    scales = torch.linspace(1.0, 2.0, len(grid.levels))

    def gradients(encode, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        leaves = moved(cones, DEVICE, dtype)
        wanted = getattr(leaves, leaf).requires_grad_(), table.to(DEVICE, dtype).requires_grad_()
        typed = moved(lookup, DEVICE, dtype)._replace(dtype=dtype)
        channels = encode(wanted[1], leaves, scales.to(DEVICE, dtype), typed)
        v = random_cotangent(tuple(channels.shape), torch.float32, False).to(dtype)
        return channels.detach(), *torch.autograd.grad(channels, wanted, v)

    truth = gradients(twins.cone_encode, torch.float64)
    found = gradients(lambda *arguments: kernels.tuned_cone_encode(*arguments, None, PLAIN), torch.float32)
    for name, value, expected in zip(("channels", leaf, "table"), found, truth, strict=True):
        # Slopes jump where a sample crosses a cell's face; where none does, they agree like values.
        assert_close(value, expected, name, 1e-4)


@runs_kernels
@pytest.mark.parametrize("is_timed", [False, True])
def test_close_multisamples_of_shifted_intervals_are_one(is_timed):
    cones = shifted(random_cones())._replace(radius=torch.full((RAYS, 1), 2e-3))
    grid = even_grid(2) if is_timed else make_hash_grid(3, 4, 16, 11, 2)
    assert_equals_twin(timed(cones), make_lookup(grid, close=2.0))


@runs_kernels
def test_sums_that_know_no_order_are_those_over_time():
    torch.use_deterministic_algorithms(True)
    try:
        assert_equals_twin(timed(random_cones()), make_lookup(even_grid(2), "ipe"))
    finally:
        torch.use_deterministic_algorithms(False)


@runs_kernels
def test_no_intervals_have_no_shifts():
    cones, lookup = shifted(random_cones(3, 0)), make_lookup(make_hash_grid(2, 4, 16, 10, 2))
    shifts = cones.shifts.to(DEVICE).requires_grad_()
    leaves = moved(cones, DEVICE, torch.float32)._replace(shifts=shifts)
    channels = kernels.cone_encode(random_table(lookup.grid).to(DEVICE), leaves, torch.ones(2, device=DEVICE),
                                   moved(lookup, DEVICE, torch.float32))  # fmt: skip
    assert torch.autograd.grad(channels.sum(), shifts)[0].shape == (0, 3)


@runs_kernels
def test_a_grid_that_changes_is_told_the_time():
    lookup = make_lookup(even_grid(1))
    with pytest.raises(ValueError, match="no times"):
        kernels.cone_encode(random_table(lookup.grid).to(DEVICE), moved(random_cones(), DEVICE, torch.float32),
                            torch.ones(3, device=DEVICE), moved(lookup, DEVICE, torch.float32))  # fmt: skip
