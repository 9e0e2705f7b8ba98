"""The kernels that march along rays against their torch twins in float64: weights, colors, distances to show.

They run on a GPU, or without one under Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _ray_twins import (
    EPS,
    SIZES,
    assert_close,
    assert_equals_twin,
    fenceposts,
    histogram,
    outcome,
    rays_to_march,
)
from _twins import DEVICE, INTERPRETED

from zipnerf_ns.functional import ray_march as twins
from zipnerf_ns.kernels.march import ray_march as kernels


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


# --- density_to_weights, render ---


@runs_kernels
@pytest.mark.parametrize("rays,n,_", SIZES)
def test_weights_and_rendering_equal_the_twins(rays, n, _):
    density, tdist, valid, colors = rays_to_march(rays, n)
    assert_equals_twin("density_to_weights", (density, tdist, valid), wanted=(0,))
    assert_equals_twin("render", (density, tdist, valid, colors), wanted=(0, 3))


@runs_kernels
def test_thin_matter_and_opaque_matter_element_by_element():
    density = torch.tensor([
        [1e-9, 1e-9, 1e-9, 1e-9],  # exp would round 1 - 1e-9 to 1
        [1e-3, 3e6, 1.0, 1e-3],  # a sum less the opaque term would round the first one away
        [16.0, 1.0, 1e-3, 2.0],  # what lies behind weighs 1e-7, next to an opaque interval's 1
        [0.0, 0.0, 0.0, 0.0],
        [0.49999997, 0.5, 0.50000006, 0.3],  # where the series ends
    ])  # fmt: skip
    tdist = torch.arange(5.0).expand(5, 5) + 1.0
    args = (density, tdist, torch.ones(5, 1, dtype=torch.bool))
    found = outcome(kernels.density_to_weights, args, (0,), double=False)
    truth = outcome(twins.density_to_weights, args, (0,), double=True)
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=5e-6, atol=1e-30)


@runs_kernels
def test_what_lies_behind_an_opaque_interval_still_counts():
    # The cotangent of the opaque interval is 1e4 times the others', its light a millionth: both terms are equal.
    density, tdist = torch.tensor([[14.0, 1.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    v = torch.tensor([[-1e4, 1.0, 0.3, 0.1]])

    def gradient(operation, dtype):
        leaf = density.to(DEVICE, dtype).requires_grad_()
        weights = operation(leaf, tdist.to(DEVICE, dtype), torch.ones(1, 1, dtype=torch.bool, device=DEVICE))
        return torch.autograd.grad(weights, leaf, v.to(DEVICE, dtype))[0].double()

    truth = gradient(twins.density_to_weights, torch.float64)
    torch.testing.assert_close(gradient(kernels.density_to_weights, torch.float32), truth, rtol=3e-6, atol=0.0)


@runs_kernels
def test_degenerate_rays_render():
    density, tdist, valid, colors = rays_to_march(8, 20)
    tdist[0] = 2.0
    tdist[1, 5:9] = tdist[1, 5:6]
    tdist[7, 7] = tdist[7, 9]  # out of order: empty, not negative
    density[3], density[4] = 0.0, 3.3e6
    assert_equals_twin("render", (density, tdist, valid, colors), wanted=(0, 3))
    weights, rgb, accumulation = kernels.render(*(x.to(DEVICE) for x in (density, tdist, ~valid & valid, colors)))
    assert not weights.any() and not rgb.any() and not accumulation.any()


@runs_kernels
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1)])
def test_any_of_the_results_may_stay_unused(used):
    args = rays_to_march(5, 24)

    def some(operation):
        return lambda *args: tuple(operation(*args)[i] for i in used)

    wanted = (0, 3) if 1 in used else (0,)
    found = outcome(some(kernels.render), args, wanted, double=False)
    truth = outcome(some(twins.render), args, wanted, double=True)
    for value, expected in zip(found, truth, strict=True):
        assert_close(value, expected)


@runs_kernels
def test_colors_without_weights_in_the_loss_need_no_gradient_of_theirs():
    density, tdist, valid, colors = (x.to(DEVICE) for x in rays_to_march(3, 8))
    weights, _, accumulation = kernels.render(density.requires_grad_(), tdist, valid, colors.requires_grad_())
    loss = weights.sum() + accumulation.sum()
    v_density, v_colors = torch.autograd.grad(loss, (density, colors), allow_unused=True)
    assert v_density.any() and v_colors is None


@runs_kernels
def test_half_precision_colors():
    density, tdist, valid, colors = (x.to(DEVICE) for x in rays_to_march(5, 24))
    half = colors.bfloat16()
    found = outcome(kernels.render, (density, tdist, valid, half), (0, 3), double=False)
    truth = outcome(twins.render, (density, tdist, valid, half), (0, 3), double=True)
    assert found[-1].dtype == torch.bfloat16
    for value, expected in zip(found[:-1], truth[:-1], strict=True):
        assert_close(value, expected)
    # Rounded to the eight bits that bfloat16 has, by a GPU to the nearest and by the interpreter towards zero.
    assert_close(found[-1], truth[-1], 2.0**-7)


@runs_kernels
def test_strided_colors_and_rays():
    density, tdist, valid, _ = rays_to_march(6, 10)
    for colors in (
        torch.rand(3, 6, 10).permute(1, 2, 0),
        torch.rand(6, 1, 3).expand(6, 10, 3),
        torch.rand(12, 20, 5)[::2, ::2, 1:4],
    ):
        padded = torch.rand(6, 30)
        padded[:, 7:17], column = density, torch.stack([valid, ~valid], dim=1)[:, 0]
        views = padded[:, 7:17], tdist.t().contiguous().t(), column, colors
        assert_equals_twin("render", views, wanted=(0, 3))


@runs_kernels
def test_strided_cotangents():
    density, tdist, valid, colors = rays_to_march(6, 10)
    v = torch.randn(1, 1).expand(6, 10), torch.randn(3, 6).t(), torch.randn(1, 1).expand(6, 1)

    def gradients(operation, dtype):
        leaves = [x.to(DEVICE, dtype).requires_grad_() for x in (density, colors)]
        results = operation(leaves[0], tdist.to(DEVICE, dtype), valid.to(DEVICE), leaves[1])
        return torch.autograd.grad(results, leaves, [x.to(DEVICE, dtype) for x in v])

    found, truth = gradients(kernels.render, torch.float32), gradients(twins.render, torch.float64)
    for value, expected in zip(found, truth, strict=True):
        assert_close(value, expected)


# --- median_and_mean_distance ---


@runs_kernels
@pytest.mark.parametrize("rays,n,_", SIZES)
def test_distances_equal_the_twins(rays, n, _):
    sdist, weights = histogram(rays, n)
    assert_equals_twin("median_and_mean_distance", (weights, fenceposts(sdist, far=100.0)))


@runs_kernels
def test_distances_of_degenerate_rays():
    tdist = fenceposts(histogram(6, 10)[0])
    weights = torch.full((6, 10), 1e-22)  # less than can be told from nothing
    weights[1:] = 0.0
    weights[1, 0], weights[2, 9], weights[3, 4], weights[4, 2:4], weights[5] = 1.0, 1.0, 1e-4, 0.25, 0.1
    tdist[3, 4:6] = tdist[3, 4:5]
    found = kernels.median_and_mean_distance(weights.to(DEVICE), tdist.to(DEVICE))
    truth = twins.median_and_mean_distance(weights.double(), tdist.double())
    for value, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(value.cpu().double(), expected, rtol=2e-6, atol=0.0)


# --- how they are called ---


@runs_kernels
@pytest.mark.parametrize("lanes", [16, 64, 256])
def test_rays_a_program_do_not_matter(lanes, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAM_LANES", lanes)
    monkeypatch.setattr(kernels, "NUM_WARPS", 2)
    density, tdist, valid, colors = rays_to_march(11, 20)
    assert_equals_twin("render", (density, tdist, valid, colors), wanted=(0, 3))
    assert_equals_twin("median_and_mean_distance", (torch.rand(11, 20), tdist.clamp_max(100.0)))


def test_wrong_calls_are_refused():
    (sdist, weights), ends = histogram(3, 8), (torch.full((3, 1), 0.1), torch.full((3, 1), 9.0))
    with pytest.raises(ValueError, match="num_samples"):
        kernels.draw_intervals(sdist, weights, 1, None, 1.0, *ends)
    with pytest.raises(ValueError, match="both"):
        kernels.draw_intervals(sdist, None, 8, None, 1.0, *ends)
    with pytest.raises(ValueError, match="halfwidth"):
        kernels.interlevel(weights, sdist, weights, sdist, 0.0, EPS)
    # Tests check every call's shapes before the call; in training only this stands between a short row and its end.
    with pytest.raises(ValueError, match=r"tdist must have shape \(3, 9\), got \(3, 8\)"):
        kernels._check_shape("tdist", weights, 3, 9)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter runs the kernels on the CPU")
def test_without_a_device_the_kernels_say_so():
    sdist, weights = histogram(3, 8)
    with pytest.raises(RuntimeError, match="CUDA"):
        kernels.distortion(sdist, weights)
