"""The Triton encoding of cones against its torch twin: values and gradients, on a GPU or under Triton's interpreter.

Without a GPU, one test runs all the others in a process of their own: the interpreter has to be chosen before triton is
imported, and choosing it here would make ``implementation="auto"`` pick it in other tests. The truth is the twin in
float64, so that an error is the kernels' own.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from _cone_twins import (
    PLAIN,
    assert_close,
    assert_equals_twin,
    make_lookup,
    moved,
    random_cones,
    random_cotangent,
    truth_of,
)
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import BLOCK, DEVICE, INTERPRETED, even_grid, odd_grid, one_way, random_table
from torch import Tensor

from zipnerf_ns.functional import cones as twins
from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup, cones_in_cube, middles_in_cube
from zipnerf_ns.functional.hash_grid import make_hash_grid
from zipnerf_ns.functional.spacing import s_to_t
from zipnerf_ns.kernels.encode import cone_encode as kernels
from zipnerf_ns.kernels.encode.tuning import Launch, Plan, Tuning


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


LAUNCHES = [
    Launch("none", True, 3, BLOCK, 1),
    Launch("none", False, 2, BLOCK, 1, branch=True),
    Launch("interval", True, 2, BLOCK, 1, branch=True),
    Launch("ray", False, 3, BLOCK, 1),
    Launch("ray", True, 1, BLOCK, 1, branch=True),
    Launch("ray", True, 3, 16, 1),
]


# --- all that an encoding can be asked for ---


@runs_kernels
@pytest.mark.parametrize("make_grid,features,prefilter,boxed,turned", [
    (odd_grid, 1, "multisample", False, True),
    (even_grid, 2, "multisample", True, True),
    (odd_grid, 4, "multisample", True, False),
    (even_grid, 8, "multisample", False, False),
    (even_grid, 1, "ipe", True, False),
    (odd_grid, 2, "ipe", False, True),
    (odd_grid, 8, "ipe", False, False),
    (even_grid, 4, "none", False, True),
    (even_grid, 1, "none", True, True),
])  # fmt: skip
def test_values_and_gradients_equal_the_twins(make_grid, features, prefilter, boxed, turned):
    assert_equals_twin(random_cones(turned=turned, boxed=boxed), make_lookup(make_grid(features), prefilter))


@runs_kernels
@pytest.mark.parametrize("features,boxed,turned,launch", [
    (1, False, True, LAUNCHES[0]), (4, True, False, LAUNCHES[3]), (1, False, False, LAUNCHES[4]),
])  # fmt: skip
def test_close_samples_are_looked_up_as_one(features, boxed, turned, launch):
    # Every ray has long intervals, and a block of short ones.
    rays = 3
    tdist = torch.cat([torch.linspace(0.5, 0.55, BLOCK + 1), torch.linspace(0.6, 3.0, 8)]).expand(rays, -1)
    cones = random_cones(rays, len(tdist[0]) - 1, turned, boxed)
    cones = cones._replace(tdist=tdist, radius=torch.full((rays, 1), 2e-3))
    lookup = make_lookup(even_grid(features), close=0.1)
    cells = middles_in_cube(cones)[2] * torch.tensor(lookup.grid.resolutions)
    assert (cells < 0.1).view(rays, -1, 3)[:, :BLOCK].all() and 0.5 < (cells < 0.1).float().mean() < 0.95
    assert_equals_twin(cones, lookup, one_way(launch))
    with torch.no_grad():
        once, each = (twins.cone_encode(random_table(lookup.grid), cones, torch.ones(3), it)
                      for it in (lookup, lookup._replace(close=0.0)))  # fmt: skip
    assert not torch.equal(once, each)


@runs_kernels
@pytest.mark.parametrize("features,prefilter", [(1, "ipe"), (4, "none")])
def test_the_default_launches_compute_the_same(features, prefilter):
    lookup = make_lookup(odd_grid(features), prefilter, bandwidths=None)
    assert_equals_twin(random_cones(), lookup, None)


@runs_kernels
@pytest.mark.parametrize("features,launch", [*itertools.product([1], LAUNCHES), (4, LAUNCHES[1]), (4, LAUNCHES[3])])
def test_every_launch_computes_the_same(features, launch):
    # A program's first interval is somewhere along a ray.
    rays, n = (2, 19) if DEVICE.type == "cpu" else (50, 67)
    cones = random_cones(rays, n)._replace(radius=torch.full((rays, 1), 2e-3))
    cells = (cones_in_cube(cones, False)[0] * 4 - 0.5).floor()
    same = (cells[1:, 0] == cells[:-1, -1]).all(dim=-1)
    assert 0.2 < same.float().mean() < 1.0, "the rays should make runs of equal cells, and end them"
    assert_equals_twin(cones, make_lookup(even_grid(features)), one_way(launch))


@runs_kernels
@pytest.mark.parametrize("make_grid,features,copies,launch", [
    (even_grid, 1, 2, Launch("ray", True, 3, 16, 1)),  # All levels are coarse.
    (odd_grid, 1, 3, Launch("interval", False, 2, 16, 1)),  # The coarse ones fill no whole number of windows.
    (odd_grid, 2, 4, Launch("ray", False, 1, 16, 1)),
])  # fmt: skip
def test_copies_of_coarse_gradients_are_summed(make_grid, features, copies, launch):
    # Three blocks: a copy is added to by two of them, by one or by none.
    cones = random_cones(3, 13)
    plan = Plan(launch, launch, copies=copies)
    assert_equals_twin(cones, make_lookup(make_grid(features)), Tuning(plan, plan))


@runs_kernels
@pytest.mark.parametrize("rays,n", [(0, 7), (3, 0), (1, 1), (BLOCK + 1, 1), (1, BLOCK), (3, BLOCK - 1)])
def test_any_number_of_rays_and_intervals(rays, n):
    lookup = make_lookup(make_hash_grid(2, 4, 16, 8, 1), "ipe")
    tuning = one_way(Launch("ray", levels_per_program=2, block=BLOCK, num_warps=1))
    assert_equals_twin(random_cones(rays, n), lookup, tuning)


@runs_kernels
@pytest.mark.parametrize("num_active", [-1, 0, 1, 2, 99])
def test_inactive_levels_are_zero_but_have_weights(num_active):
    coarse, fine = Launch("interval", block=BLOCK, num_warps=1), Launch("none", block=BLOCK, num_warps=1)
    plan = Plan(coarse, fine, coarse_up_to=4)
    lookup = make_lookup(even_grid(2), "ipe", num_active=num_active)
    assert_equals_twin(random_cones(), lookup, Tuning(plan, plan))


@runs_kernels
@pytest.mark.parametrize("prefilter,turned", [("multisample", True), ("multisample", False), ("ipe", False)])
def test_cones_that_reach_far_away(prefilter, turned):
    cones = random_cones(3, 9, turned, far=1e6)._replace(radius=torch.full((3, 1), 2e-3))
    # The even first round of sampling, from near to far.
    tdist = s_to_t(torch.linspace(0.0, 1.0, 10).expand(3, -1), torch.full((3, 1), 0.05), torch.full((3, 1), 1e6))
    assert_equals_twin(cones._replace(tdist=tdist), make_lookup(odd_grid(2), prefilter))


@runs_kernels
@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
@pytest.mark.parametrize("boxed", [False, True])
def test_cones_without_length_width_or_direction(prefilter, boxed):
    posts = torch.tensor([0.0, 0.0, 1e-30, 0.5, 0.5, 1e6, 1e6])
    cones = random_cones(5, 6, boxed=boxed)
    cones.directions[3] = torch.tensor([0.0, 0.0, -1.0])
    cones.directions[4] = 0.0
    cones.radius[:3, 0] = torch.tensor([0.0, 1e-6, 0.6])
    cones.origins[0] = torch.tensor([100.0, -1e4, 30.0])
    assert_equals_twin(cones._replace(tdist=posts.expand(5, 7)), make_lookup(even_grid(2), prefilter))


# --- precision ---


@runs_kernels
@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_channels_in_half_precision(prefilter):
    cones, lookup = random_cones(), make_lookup(odd_grid(2), prefilter, dtype=torch.bfloat16)
    # A number is rounded to one of 2^-8 of its size away at most; the interpreter cuts digits off, up to 2^-7.
    assert_equals_twin(cones, lookup, tolerance=2.0**-7 if INTERPRETED else 2.0**-8)


def half_copy(table: Tensor) -> HalfTable:
    scale = 2.0**14
    return HalfTable((table * scale).half().to(DEVICE), scale)


@runs_kernels
@pytest.mark.parametrize("features,wide", [(1, True), (1, False), (4, False)])
def test_a_copy_in_half_precision_is_read_where_that_pays(features, wide):
    cones, lookup = random_cones(), make_lookup(even_grid(features), "ipe")
    table, scales = 1e-5 * random_table(lookup.grid), torch.linspace(1.0, 2.0, 3)
    half, results = half_copy(table), []
    launch = Launch("interval", wide, block=BLOCK, num_warps=1)
    for pays in (False, True):
        leaf = table.to(DEVICE).requires_grad_()
        arguments = moved(cones, DEVICE, torch.float32), scales.to(DEVICE), moved(lookup, DEVICE, torch.float32)
        found = kernels.tuned_cone_encode(leaf, *arguments, half, one_way(launch, half_table=pays))
        v = random_cotangent(tuple(found.shape), found.dtype, True)
        results.append((found.detach(), torch.autograd.grad(found, leaf, v)[0]))
    (exact, v_exact), (rounded, v_rounded) = results
    count = 3 * features
    truth, v_truth = truth_of(table, cones, lookup, v, scales)
    assert_close(exact, truth, "without the copy")
    # Half precision has 11 bits; values of 1e-5 would keep 8 of them without the copy's scale.
    error = float((rounded - exact)[:, :count].norm() / exact[:, :count].norm())
    assert 1e-5 < error < 2.0**-11
    assert torch.equal(rounded[:, count:], exact[:, count:]), "weights do not come from the table"
    assert_close(rounded, truth_of(half.values.double() / half.scale, cones, lookup, v, scales)[0], "with the copy")
    for v_table in (v_exact, v_rounded):
        assert_close(v_table, v_truth, "v_table")


@runs_kernels
def test_autocast_leaves_the_encoding_as_it_is():
    table, cones = random_table(even_grid(2)).to(DEVICE), moved(random_cones(), DEVICE, torch.float32)
    lookup, scales = moved(make_lookup(even_grid(2), "ipe"), DEVICE, torch.float32), torch.ones(3, device=DEVICE)
    plain = kernels.tuned_cone_encode(table, cones, scales, lookup, None, PLAIN)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        cast = kernels.tuned_cone_encode(table, cones, scales, lookup, None, PLAIN)
    assert torch.equal(plain, cast)


# --- memory ---


@runs_kernels
@pytest.mark.parametrize("features", [1, 4])
def test_cotangents_of_either_order(features):
    for by_channel in (False, True):
        assert_equals_twin(random_cones(), make_lookup(odd_grid(features), "ipe"), by_channel=by_channel)


@runs_kernels
def test_cotangents_of_any_strides():
    cones, lookup = random_cones(), make_lookup(even_grid(2), "ipe")
    table, scales = random_table(lookup.grid), torch.ones(3)
    leaf = table.to(DEVICE).requires_grad_()
    arguments = moved(cones, DEVICE, torch.float32), scales.to(DEVICE), moved(lookup, DEVICE, torch.float32)
    found = kernels.tuned_cone_encode(leaf, *arguments, None, PLAIN)
    wide = random_cotangent((found.shape[0], 2 * found.shape[1]), found.dtype, False)
    one, part = torch.ones((), device=DEVICE), wide[:, 3 : 3 + found.shape[1]]
    for v in (one.expand(found.shape), wide[:, ::2], part, part[:1].expand(found.shape)):
        (v_table,) = torch.autograd.grad(found, leaf, v, retain_graph=True)
        assert_close(v_table, truth_of(table, cones, lookup, v, scales)[1], f"v_table, strides {v.stride()}")


@runs_kernels
def test_arguments_of_any_strides():
    grid, cones = even_grid(2), random_cones(4, 5)
    table = random_table(grid)
    scattered = Cones(*(tensor.t().contiguous().t() for tensor in cones[:5]), None)
    scattered = scattered._replace(directions=cones.directions[:1].expand(4, 3), radius=cones.radius[:1].expand(4, 1))
    turned = table.t().contiguous().to(DEVICE).requires_grad_()
    lookup = make_lookup(grid, "ipe", bandwidths=torch.tensor([0.7]).expand(3))
    scales = torch.tensor([1.5]).expand(3)
    arguments = moved(scattered, DEVICE, torch.float32), scales.to(DEVICE), moved(lookup, DEVICE, torch.float32)
    found = kernels.tuned_cone_encode(turned.t(), *arguments, None, PLAIN)
    v = random_cotangent(tuple(found.shape), found.dtype, False)
    truth, v_truth = truth_of(table, scattered, lookup, v, scales)
    assert_close(found, truth, "channels")
    assert_close(torch.autograd.grad(found, turned, v)[0], v_truth.t(), "v_table")


@runs_kernels
def test_channels_lie_one_after_the_other_in_memory():
    table, cones = random_table(even_grid(2)).to(DEVICE), moved(random_cones(), DEVICE, torch.float32)
    lookup, scales = moved(make_lookup(even_grid(2), "ipe"), DEVICE, torch.float32), torch.ones(3, device=DEVICE)
    found = kernels.tuned_cone_encode(table, cones, scales, lookup, None, PLAIN)
    assert found.t().is_contiguous() and not found.requires_grad


# --- gradients beyond the table ---

LEAVES = ("table", "origins", "directions", "radius", "tdist", "weight_scales")


def all_gradients(encode, table: Tensor, cones: Cones, scales: Tensor, lookup: Lookup, moving: tuple[str, ...]):
    """Channels, and gradients to what moves, for a random cotangent."""
    named = dict(zip(LEAVES, (table, *cones[:4], scales), strict=True))
    leaves = {name: named[name].detach().requires_grad_() for name in moving}
    named.update(leaves)
    cones = cones._replace(**{name: named[name] for name in ("origins", "directions", "radius", "tdist")})
    channels = encode(named["table"], cones, named["weight_scales"], lookup)
    v = random_cotangent(tuple(channels.shape), torch.float32, False).to(channels.dtype)
    gradients = torch.autograd.grad(channels, list(leaves.values()), v, materialize_grads=True)
    return channels.detach(), dict(zip(leaves, gradients, strict=True))


@runs_kernels
@pytest.mark.parametrize("prefilter,boxed,moving", [
    ("multisample", False, LEAVES[:5]),
    ("ipe", True, LEAVES[:5]),
    ("none", False, ("table", "weight_scales")),
])  # fmt: skip
def test_whatever_requires_a_gradient_gets_the_twins(prefilter, boxed, moving):
    cones, grid = random_cones(4, 3, boxed=boxed), even_grid(2)
    table, scales, results = random_table(grid), torch.linspace(1.0, 2.0, 3), []
    for encode, dtype in ((twins.cone_encode, torch.float64), (kernels.cone_encode, torch.float32)):
        lookup = moved(make_lookup(grid, prefilter, dtype=dtype), DEVICE, dtype)
        arguments = table.to(DEVICE, dtype), moved(cones, DEVICE, dtype), scales.to(DEVICE, dtype), lookup
        results.append(all_gradients(encode, *arguments, moving))
    (truth, v_truth), (found, v_found) = results
    assert_close(found, truth, "channels")
    for name in moving:
        assert_close(v_found[name], v_truth[name], f"v_{name}")
        assert v_found[name].any(), name


@runs_kernels
def test_moving_rays_read_the_copy_in_half_precision():
    """In both directions: their gradients are those of the copy's values."""
    cones, grid = random_cones(4, 3), even_grid(4)
    table, scales, moving = 0.01 * random_table(grid), torch.linspace(1.0, 2.0, 3), ("origins", "directions")
    half = half_copy(table)

    def encode(*arguments):
        return kernels.tuned_cone_encode(*arguments, half, one_way(Launch(block=BLOCK, num_warps=1), half_table=True))

    results = []
    for each, values, dtype in ((twins.cone_encode, half.values.double() / half.scale, torch.float64),
                                (encode, table.to(DEVICE), torch.float32)):  # fmt: skip
        lookup = moved(make_lookup(grid, "multisample", dtype=dtype), DEVICE, dtype)
        arguments = values.to(dtype), moved(cones, DEVICE, dtype), scales.to(DEVICE, dtype), lookup
        results.append(all_gradients(each, *arguments, moving))
    (truth, v_truth), (found, v_found) = results
    assert_close(found, truth, "channels")
    for name in moving:
        assert_close(v_found[name], v_truth[name], f"v_{name}")


@runs_kernels
def test_a_frozen_table_with_moving_rays_gets_no_gradient():
    cones = moved(random_cones(4, 3), DEVICE, torch.float32)
    origins = cones.origins.requires_grad_()
    lookup = moved(make_lookup(even_grid(2), "ipe"), DEVICE, torch.float32)
    table = random_table(even_grid(2)).to(DEVICE)
    kernels.cone_encode(table, cones, torch.ones(3, device=DEVICE), lookup).sum().backward()
    assert origins.grad.any() and table.grad is None


@runs_kernels
@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_deterministic_gradients_are_the_twins(prefilter):
    cones, grid = moved(random_cones(4, 3), DEVICE, torch.float32), even_grid(2)
    lookup, scales = moved(make_lookup(grid, prefilter), DEVICE, torch.float32), torch.ones(3, device=DEVICE)
    table, found = random_table(grid).to(DEVICE), []
    torch.use_deterministic_algorithms(True)
    try:
        for encode in (kernels.cone_encode, twins.cone_encode):
            found.append(all_gradients(encode, table, cones, scales, lookup, ("table",))[1]["table"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(*found, "v_table")


# --- refusals ---


@runs_kernels
def test_arguments_that_the_kernels_cannot_take():
    cones, grid = moved(random_cones(2, 3), DEVICE, torch.float32), even_grid(2)
    lookup, scales = moved(make_lookup(grid), DEVICE, torch.float32), torch.ones(3, device=DEVICE)
    table = random_table(grid).to(DEVICE)
    with pytest.raises(ValueError, match="table has shape"):
        kernels.cone_encode(table[1:], cones, scales, lookup)
    with pytest.raises(ValueError, match="float32"):
        kernels.cone_encode(table.double(), cones, scales, lookup)
    three = make_hash_grid(3, 4, 8, 8, 3)
    with pytest.raises(ValueError, match="features"):
        kernels.cone_encode(random_table(three).to(DEVICE), cones, scales, lookup._replace(grid=three))


def test_what_is_missing_is_named(without_interpreter):
    grid = even_grid(1)
    arguments = random_table(grid), random_cones(2, 3), torch.ones(3), make_lookup(grid)
    with pytest.raises(RuntimeError, match="need a CUDA device"):
        kernels.cone_encode(*arguments)
