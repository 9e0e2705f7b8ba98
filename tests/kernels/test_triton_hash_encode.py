"""The Triton encoding against its torch twin: values and gradients, on a GPU or under Triton's interpreter.

Without a GPU, one test runs all the others in a process of their own: the interpreter has to be chosen before triton is
imported, and choosing it here would make ``implementation="auto"`` pick it in other tests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import (
    BLOCK,
    DEVICE,
    INTERVALS,
    TOLERANCE,
    assert_equals_twin,
    cone_samples,
    even_grid,
    odd_grid,
    one_way,
    outcome,
    random_samples,
    random_table,
)

from zipnerf_ns.functional import hash_grid
from zipnerf_ns.functional.hash_grid import make_hash_grid
from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.encode import hash_encode as kernels
from zipnerf_ns.kernels.encode.launch import Options, Samples, table_gradient
from zipnerf_ns.kernels.encode.tuning import Launch, Plan, Tuning


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize(
    "make_grid,features,samples,prefilter",
    [
        (odd_grid, 1, 6, "multisample"),
        (even_grid, 1, 1, "ipe"),
        (odd_grid, 2, 1, "none"),
        (even_grid, 2, 2, "multisample"),
        (odd_grid, 4, 1, "ipe"),
        (even_grid, 4, 3, "multisample"),
        (odd_grid, 8, 1, "multisample"),
    ],
)
def test_values_and_gradients_equal_the_twins(make_grid, features, samples, prefilter):
    assert_equals_twin(make_grid(features), *random_samples(INTERVALS, samples), prefilter)


LAUNCHES = [
    Launch("none", False, 1, BLOCK, 1),
    Launch("none", True, 3, BLOCK, 1),
    Launch("interval", True, 2, BLOCK, 1),
    Launch("ray", False, 3, BLOCK, 1),
    Launch("ray", True, 1, BLOCK, 1),
    Launch("none", False, 1, BLOCK, 1, branch=True),
    Launch("interval", True, 3, BLOCK, 1, branch=True),
    Launch("ray", False, 2, BLOCK, 1, branch=True),
]


@runs_kernels
@pytest.mark.parametrize("features,launch", [*itertools.product([1], LAUNCHES), (4, LAUNCHES[0]), (4, LAUNCHES[3])])
def test_every_launch_computes_the_same(features, launch):
    # Two blocks, the second one partly filled: runs of equal cells end at the first one's edge.
    rays, intervals = (1, BLOCK - 4) if DEVICE.type == "cpu" else (50, 67)
    along, anywhere = cone_samples(rays, intervals), random_samples(12, 6)
    positions, stds = (torch.cat(pair)[:, ::3].contiguous() for pair in zip(along, anywhere, strict=True))
    cells = (positions * 4 - 0.5).floor()
    same = (cells[1:, 0] == cells[:-1, -1]).all(dim=-1)
    assert 0.2 < same.float().mean() < 1.0, "the rays should make runs of equal cells, and end them"
    assert ((positions[..., 0] * 8 - 0.5).floor() == 3).any(), "some neighbors should lie in two windows of four"
    assert_equals_twin(even_grid(features), positions, stds, tuning=one_way(launch))


@runs_kernels
@pytest.mark.parametrize("merge", ["none", "interval", "ray"])
@pytest.mark.parametrize("spread", ["one cell", "its own cell"])
def test_all_samples_in_one_cell_or_each_in_its_own(spread, merge):
    grid, samples = make_hash_grid(1, 16, 16, 12, 2), 3
    if spread == "one cell":
        cells = torch.tensor([3.0, 7.0, 11.0]).expand(INTERVALS, samples, 3)
    else:
        order = torch.arange(INTERVALS * samples) * 7
        cells = torch.stack([order % 15, order // 15 % 15, order // 225 % 15], dim=-1).view(INTERVALS, samples, 3)
    positions = (cells + 0.5 + torch.rand(INTERVALS, samples, 3)) / 16
    stds = 0.02 * torch.rand(INTERVALS, samples)
    assert_equals_twin(grid, positions, stds, tuning=one_way(Launch(merge, block=BLOCK, num_warps=1)))


@runs_kernels
@pytest.mark.parametrize("merge", ["interval", "ray"])
def test_a_cell_that_is_left_and_entered_again(merge):
    # Runs of equal cells are told apart by where they begin, not by their cell: here are A B A, in and between rows.
    grid = make_hash_grid(1, 4, 4, 6, 1)
    first, second = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.7, 0.3, 0.3])
    pattern = torch.tensor(
        [[0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.bool
    )
    positions = torch.where(pattern[..., None], second, first) + 0.01 * torch.randn(7, 3, 3)
    assert_equals_twin(grid, positions, torch.full((7, 3), 0.1), tuning=one_way(Launch(merge, block=8, num_warps=1)))


@runs_kernels
@pytest.mark.parametrize("intervals", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_any_number_of_intervals(intervals):
    tuning = one_way(Launch("ray", block=BLOCK, num_warps=1, levels_per_program=2))
    assert_equals_twin(make_hash_grid(2, 4, 16, 8, 1), *random_samples(intervals, 1), tuning=tuning)


@runs_kernels
def test_faces_corners_and_outside():
    # Cells' faces are exact in float32 for powers of two, so that both sides agree on which cell they belong to.
    n = 16
    faces = torch.arange(0, 2 * n + 1) / (2.0 * n)
    # At the outermost centers of a level torch's versions disagree on which side's slope clamp has.
    ends = torch.tensor([0.5 / resolution for resolution in even_grid(2).resolutions])
    faces = faces[~torch.isin(torch.minimum(faces, 1.0 - faces), ends)]
    along = torch.stack([faces, faces.flip(0), torch.full_like(faces, 0.3)], dim=-1)
    special = torch.tensor([0.0, 1.0, -0.5, 1.5, 0.5, 1e30, -1e30])
    corners = torch.cartesian_prod(special[:4], special[:4], special[:4])[::5]
    diagonal = special[:, None].expand(-1, 3)
    positions = torch.cat([along, corners, diagonal])[:, None]
    stds = 0.05 * torch.rand(positions.shape[:2])
    assert_equals_twin(even_grid(2), positions, stds)


@runs_kernels
@pytest.mark.parametrize("launch", [None, LAUNCHES[1], LAUNCHES[6]])
@pytest.mark.parametrize("make_grid", [even_grid, odd_grid, lambda features: make_hash_grid(2, 1, 4, 8, features)])
def test_a_position_that_is_no_number_makes_features_so_where_the_twin_does(make_grid, launch):
    """And no others; the way back writes within the table."""
    grid = make_grid(2)
    positions, stds = random_samples(9, 2)
    for interval, axis in ((0, 0), (4, 1), (8, 2)):
        positions[interval, 1, axis] = torch.nan
    leaves = (random_table(grid), positions, stds, torch.linspace(0.5, 1.5, len(grid.levels)))
    expected = outcome(hash_grid.hash_encode, leaves, grid, "multisample", None)
    if launch is None:
        found = outcome(kernels.hash_encode, leaves, grid, "multisample", None)
    else:
        found = outcome(kernels.tuned_hash_encode, leaves, grid, "multisample", None, one_way(launch))
    assert torch.equal(expected[0].isnan().flatten(1).all(dim=-1).cpu(), torch.arange(9) % 4 == 0)
    for truth, value in zip(expected[:2], found[:2], strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert found[2].isnan().any()


@runs_kernels
@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_extreme_stds(prefilter):
    stds = torch.tensor([0.0, 1e-30, 1e-8, 1e-4, 1e-3, 0.01, 0.1, 1.0, 100.0, 1e6]).repeat(2)[:, None]
    positions = torch.rand(len(stds), 1, 3)
    assert_equals_twin(even_grid(1), positions, stds, prefilter)


@runs_kernels
def test_levels_of_one_cell_and_of_two():
    assert_equals_twin(make_hash_grid(2, 1, 2, 6, 2), *random_samples(INTERVALS, 2))


@runs_kernels
@pytest.mark.parametrize("num_active", [-1, 0, 1, 2, 99])
def test_inactive_levels_are_zero_but_have_weights(num_active):
    coarse, fine = Launch("interval", block=BLOCK, num_warps=1), Launch("none", block=BLOCK, num_warps=1)
    plan = Plan(coarse, fine, coarse_up_to=4)
    positions, stds = random_samples(INTERVALS, 1)
    assert_equals_twin(even_grid(2), positions, stds, tuning=Tuning(plan, plan), num_active=num_active)


@runs_kernels
@pytest.mark.parametrize("make_grid", [odd_grid, even_grid])
def test_rows_are_the_twins(make_grid):
    grid = make_grid(1)
    # At a cell's center a feature is one table row, here the row's number.
    table = torch.arange(grid.num_entries, dtype=torch.float32)[:, None].to(DEVICE)
    for index, level in enumerate(grid.levels):
        cells = torch.randint(0, level.resolution, (BLOCK, 1, 3))
        positions = ((cells + 0.5) / level.resolution).to(DEVICE)
        stds = torch.zeros(BLOCK, 1, device=DEVICE)
        rows = hash_grid.level_corners(positions.view(-1, 3), level)
        nearest = rows[0].gather(1, rows[1].argmax(dim=1, keepdim=True)).view(-1)
        found, _ = kernels.hash_encode(table, positions, stds, grid, "none")
        assert torch.equal(found[:, index, 0].round().int(), (level.offset + nearest).int())


@runs_kernels
def test_only_what_requires_a_gradient_gets_one():
    grid, (positions, stds) = even_grid(2), random_samples(INTERVALS, 1)
    table, positions, stds = (tensor.to(DEVICE) for tensor in (random_table(grid), positions, stds))
    features, weights = kernels.hash_encode(table.requires_grad_(), positions, stds, grid)
    assert features.requires_grad and not weights.requires_grad
    features, weights = kernels.hash_encode(table.detach(), positions.requires_grad_(), stds, grid)
    assert features.requires_grad and not weights.requires_grad
    features.sum().backward()
    assert positions.grad is not None and stds.grad is None
    features, weights = kernels.hash_encode(table.detach(), positions, stds.requires_grad_(), grid, "none")
    assert not weights.requires_grad
    features, weights = kernels.hash_encode(table, positions.detach(), stds, grid)
    # The weights alone: no cotangent of the features.
    (v_stds,) = torch.autograd.grad(weights.square().sum(), stds)
    truth = hash_grid.prefilter_weights(stds, grid.resolutions, "multisample").mean(dim=1).square().sum()
    torch.testing.assert_close(v_stds, torch.autograd.grad(truth, stds)[0], rtol=1e-5, atol=1e-5)


@runs_kernels
@pytest.mark.parametrize("features", [1, 2])
def test_cotangents_of_any_strides(features):
    grid, (positions, stds) = make_hash_grid(2, 4, 16, 10, features), random_samples(INTERVALS, 1)
    table, positions, stds = (tensor.to(DEVICE) for tensor in (random_table(grid), positions, stds))
    results = []
    for encode in (hash_grid.hash_encode, kernels.hash_encode):
        leaf = table.clone().requires_grad_()
        out, weights = encode(leaf, positions, stds, grid)
        ramp = torch.linspace(1.0, 2.0, 2 * (features + 1), device=DEVICE)
        joined = torch.cat([out.flatten(1), weights], dim=-1) @ ramp
        turned = (out.transpose(0, 2) * torch.linspace(1.0, 2.0, INTERVALS, device=DEVICE)).sum()
        results.append(
            [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (out.sum(), joined.sum(), turned)]
        )
    for truth, found in zip(*results, strict=True):
        assert (truth - found).norm() <= TOLERANCE * truth.norm()


def summed(features: int, order: torch.Tensor, scale: float = 1.0, broken: float | None = None) -> torch.Tensor:
    """The table's gradient of random cotangents of very different sizes, its intervals in an order, at each launch."""
    grid = make_hash_grid(2, 4, 16, 8, features)
    generator = torch.Generator().manual_seed(3)
    # All in a corner of the cube, so that entries have many terms.
    positions, stds = 0.3 * torch.rand(INTERVALS, 6, 3, generator=generator), torch.full((INTERVALS, 6), 0.05)
    cotangents = torch.randn(INTERVALS, 2, features, generator=generator) * scale
    cotangents *= 10.0 ** (-6.0 * torch.rand(INTERVALS, 2, 1, generator=generator))
    if broken is not None:
        cotangents[3, 1, 0] = broken
    table, positions, stds, cotangents = (
        each.to(DEVICE) for each in (torch.zeros(grid.num_entries, features), positions, stds, cotangents)
    )
    launch = Launch(wide=True, levels_per_program=2, block=BLOCK, num_warps=1)
    options = Options(grid, "multisample", 2, Tuning(Plan(launch, launch), Plan(launch, launch, copies=2)))
    samples = Samples(positions[order].contiguous(), stds[order].contiguous(), torch.ones(2, device=DEVICE))
    return table_gradient(table, samples, cotangents[order].contiguous(), options)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@runs_kernels
@pytest.mark.parametrize("features", [1, 4, 8])
def test_deterministic_sums_have_no_order(features, deterministic):
    """The same bits, whatever comes first; and no worse sums than those of floats."""
    orders = [torch.randperm(INTERVALS) for _ in range(2)]
    first, second = (summed(features, order) for order in orders)
    torch.use_deterministic_algorithms(False)
    floats = [summed(features, order) for order in orders]
    assert torch.equal(first, second) and not torch.equal(*floats)
    assert (first - floats[0]).norm() <= 1e-6 * first.norm() and first.any()


@runs_kernels
@pytest.mark.parametrize("scale", [1e-25, 1e-9, 1e9, 1e33])
def test_deterministic_sums_of_any_size(scale, deterministic):
    order = torch.arange(INTERVALS)
    found, expected = summed(2, order, scale), summed(2, order)
    assert (found / scale - expected).norm() <= 1e-5 * expected.norm()


@runs_kernels
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_cotangent_that_is_not_finite_is_seen_in_a_deterministic_sum(value, deterministic):
    found, fine = summed(2, torch.arange(INTERVALS), broken=value), summed(2, torch.arange(INTERVALS))
    coarse = make_hash_grid(2, 4, 16, 8, 2).levels[0].size
    assert torch.equal(found[:coarse], fine[:coarse]) and found[coarse:].isnan().all()


@runs_kernels
def test_autocast_leaves_the_encoding_in_float32():
    grid, (positions, stds) = even_grid(2), random_samples(INTERVALS, 1)
    table, positions, stds = (tensor.to(DEVICE) for tensor in (random_table(grid).requires_grad_(), positions, stds))
    plain = kernels.hash_encode(table, positions, stds, grid)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        cast = kernels.hash_encode(table, positions, stds, grid)
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


@runs_kernels
def test_erf_is_erf():
    # A level of one cell gives its mean weight, erf(1 / (sqrt 8 std)), whatever lies in the table.
    x = torch.cat([torch.linspace(1e-3, 5.0, 2000), torch.tensor([1e-6, 10.0, 1e3, 1e6])]).to(DEVICE)
    grid = make_hash_grid(1, 1, 1, 4, 1)
    stds = (1.0 / (math.sqrt(8.0) * x))[:, None]
    plan = Plan(Launch(block=2048), Launch(block=2048))
    table, positions = torch.ones(1, 1, device=DEVICE), torch.full((len(x), 1, 3), 0.5, device=DEVICE)
    features, weights = kernels.tuned_hash_encode(
        table, positions, stds, grid, "multisample", None, None, Tuning(plan, plan)
    )
    truth = torch.erf(1.0 / (math.sqrt(8.0) * stds.double())).float()
    torch.testing.assert_close(weights, truth, rtol=0.0, atol=2.5e-7)
    torch.testing.assert_close(features[:, 0], truth, rtol=0.0, atol=5e-7)


@runs_kernels
def test_arguments_that_the_kernels_cannot_take():
    positions, stds = (tensor.to(DEVICE) for tensor in random_samples(2, 1))
    grid = even_grid(2)
    table = random_table(grid).to(DEVICE)
    with pytest.raises(ValueError, match="table has shape"):
        kernels.hash_encode(table[1:], positions, stds, grid)
    with pytest.raises(ValueError, match="float32"):
        kernels.hash_encode(table.double(), positions, stds, grid)
    # Where the arguments' types are not checked on every call, as they are in tests.
    with pytest.raises(ValueError, match="prefilter"):
        kernels._check(table, grid, "blur")
    three = make_hash_grid(2, 4, 8, 8, 3)
    with pytest.raises(ValueError, match="features"):
        kernels.hash_encode(random_table(three).to(DEVICE), positions, stds, three)


def test_what_is_missing_is_named(without_interpreter, monkeypatch):
    grid = even_grid(1)
    positions, stds = random_samples(2, 1)
    with pytest.raises(RuntimeError, match="need a CUDA device"):
        kernels.hash_encode(random_table(grid), positions, stds, grid)
    support._why_unavailable.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(support, "_triton_version", lambda: None)
    with pytest.raises(RuntimeError, match="install torch 2.8"):
        kernels.hash_encode(random_table(grid), positions, stds, grid)
    support._why_unavailable.cache_clear()
    monkeypatch.setattr(support, "_triton_version", lambda: "3.3.1")
    assert "found: 3.3.1" in support.why_unavailable(torch.device("cpu"))
