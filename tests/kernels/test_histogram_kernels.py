"""The kernels on histograms along rays against their torch twins in float64: drawing from them, losses on them.

They run on a GPU, or without one under Triton's interpreter, in a process of its own.
"""

from __future__ import annotations

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _ray_twins import (
    EPS,
    SIZES,
    TOLERANCE,
    assert_close,
    assert_equals_twin,
    fenceposts,
    histogram,
    spiky_histogram,
)
from _twins import DEVICE
from torch import Tensor

from zipnerf_ns.functional import ray_march as twins
from zipnerf_ns.functional.spacing import s_to_t
from zipnerf_ns.kernels.march import ray_march as kernels


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


# --- draw_intervals ---


def assert_draws_like_the_twin(histogram_, num_samples: int, jitter: Tensor | None, anneal: float, near=0.1, far=1e6):
    """Each fencepost lies between the twin's for shares of the mass that differ by a few roundings.

    Where a histogram is empty no tighter bound exists: there its mass does not say where to draw.
    """
    sdist, weights = (None, None) if histogram_ is None else (x.to(DEVICE) for x in histogram_)
    rays = len(jitter) if weights is None else len(weights)
    ends = [torch.full((rays, 1), end, device=DEVICE) for end in (near, far)]
    jitter = None if jitter is None else jitter.to(DEVICE)
    found_s, found_t = kernels.draw_intervals(sdist, weights, num_samples, jitter, anneal, *ends)
    assert found_s.dtype == found_t.dtype == torch.float32
    offset = torch.full_like(ends[0], 0.5).double() if jitter is None else jitter.double()
    wide = [None if x is None else x.double() for x in (sdist, weights)]
    ends = [end.double() for end in ends]
    around = [
        twins.draw_intervals(*wide, num_samples, offset + side * 1e-6 * num_samples, anneal, *ends)[0]
        for side in (-1.0, 1.0)
    ]
    assert found_s.shape == around[0].shape
    # The outer fenceposts mirror a difference and may move either way; all are sums of a few roundings of 1.
    low, high = torch.minimum(*around), torch.maximum(*around)
    assert (found_s >= low - 1e-6).all() and (found_s <= high + 1e-6).all()
    # t follows from the s that were returned; s near 1 is rounded to 6e-8, and so is what t + 1.25 is a power of.
    truth = s_to_t(found_s.double(), *ends)
    assert ((found_t - truth).abs() <= 5e-7 * (truth + 1.25)).all()
    assert (found_t >= near).all() and (found_t <= torch.tensor(far)).all()
    return found_s


@runs_kernels
@pytest.mark.parametrize("rays,n,m", SIZES)
def test_draws_like_the_twin(rays, n, m):
    drawn = assert_draws_like_the_twin(histogram(rays, m), n, torch.rand(rays, 1), 0.7)
    assert (drawn.diff(dim=-1) >= -1e-7).all()


@runs_kernels
@pytest.mark.parametrize("anneal", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("jitter", [None, 0.0, 0.99999994])
def test_draws_whatever_the_jitter_and_the_annealing(jitter, anneal):
    jitter = None if jitter is None else torch.full((6, 1), jitter)
    assert_draws_like_the_twin(histogram(6, 64), 32, jitter, anneal)
    # Here the last share rounds to 1, and the histogram's row does not fill its block.
    assert_draws_like_the_twin(histogram(6, 20), 64, jitter, anneal)


@runs_kernels
@pytest.mark.parametrize("n,m", [(2, 3), (32, 64), (64, 20)])
@pytest.mark.parametrize("anneal", [0.5, 1.0])
def test_draws_from_spiky_histograms(n, m, anneal):
    assert_draws_like_the_twin(spiky_histogram(7, m), n, torch.rand(7, 1), anneal)
    assert_draws_like_the_twin(spiky_histogram(7, m), n, None, anneal)


@runs_kernels
def test_draws_where_a_histogram_has_no_width_at_all():
    sdist = torch.full((3, 9), 0.25, device=DEVICE)
    near, far = torch.full((3, 1), 0.1, device=DEVICE), torch.full((3, 1), 10.0, device=DEVICE)
    drawn, tdist = kernels.draw_intervals(sdist, torch.rand(3, 8, device=DEVICE), 5, None, 1.0, near, far)
    assert (drawn == 0.25).all()
    assert_close(tdist, s_to_t(drawn.double(), near.double(), far.double()))


@runs_kernels
@pytest.mark.parametrize("near,far", [(0.0, 1e6), (0.05, 1e6), (0.2, 1e10), (2.0, 6.0), (0.0, 1e-3)])
def test_draws_between_all_ends(near, far):
    assert_draws_like_the_twin(None, 64, torch.rand(3, 1), 1.0, near, far)
    assert_draws_like_the_twin(histogram(3, 32), 32, torch.rand(3, 1), 1.0, near, far)


@runs_kernels
def test_an_even_histogram_need_not_be_given():
    near, far = torch.full((5, 1), 0.1, device=DEVICE), torch.full((5, 1), 1e6, device=DEVICE)
    jitter = torch.rand(5, 1).to(DEVICE)
    sdist, weights = torch.tensor([[0.0, 1.0]], device=DEVICE).expand(5, 2), torch.ones(5, 1, device=DEVICE)
    found = kernels.draw_intervals(None, None, 64, jitter, 1.0, near, far)[0]
    assert_close(found, kernels.draw_intervals(sdist, weights, 64, jitter, 1.0, near, far)[0])


# --- interlevel, distortion ---


@runs_kernels
@pytest.mark.parametrize("halfwidth", [0.03, 0.003])
@pytest.mark.parametrize("rays,n,m", SIZES)
def test_interlevel_equals_the_twins(rays, n, m, halfwidth):
    (sdist_prop, w_prop), (sdist, weights) = histogram(rays, n, empty=0.3), histogram(rays, m)
    assert_equals_twin("interlevel", (w_prop, sdist_prop, weights, sdist, halfwidth, EPS), wanted=(0,))


@runs_kernels
@pytest.mark.parametrize("halfwidth", [1e-4, 0.003, 0.03, 0.7])
def test_interlevel_of_spiky_histograms(halfwidth):
    (sdist_prop, w_prop), (sdist, weights) = spiky_histogram(7, 40), spiky_histogram(7, 25)
    args = (w_prop, sdist_prop, weights, sdist, halfwidth, EPS)
    # The narrowest blur divides differences of positions that are rounded to 6e-8.
    assert_equals_twin("interlevel", args, wanted=(0,), tolerance=1e-5 if halfwidth < 1e-3 else TOLERANCE)
    # The ray without mass asks nothing of its proposal.
    assert kernels.interlevel(*(x.to(DEVICE) if isinstance(x, Tensor) else x for x in args))[0] == 0.0


@runs_kernels
def test_interlevel_sees_excesses_below_a_millionth():
    # The proposal covers all but one part in 1e5: one rounding of an integral near 1, over 0.006, would be as large.
    (sdist_prop, _), (sdist, weights) = histogram(4, 64), histogram(4, 32)
    wide = [x.double() for x in (sdist_prop, weights, sdist)]
    blurred = twins.blurred_resample(wide[0], wide[2], wide[1], 0.003)
    args = ((blurred * (1.0 - 1e-4)).float(), sdist_prop, weights, sdist, 0.003, EPS)
    # The excess is 1e-4 of weights that are rounded to 6e-8 of themselves.
    assert_equals_twin("interlevel", args, wanted=(0,), tolerance=5e-3)


@runs_kernels
@pytest.mark.parametrize("rays,n,_", SIZES)
def test_distortion_equals_the_twins(rays, n, _):
    sdist, weights = histogram(rays, n, empty=0.3)
    assert_equals_twin("distortion", (fenceposts(sdist), weights), wanted=(1,))


@runs_kernels
def test_distortion_of_degenerate_rays():
    sdist, weights = spiky_histogram(7, 30)
    tdist = fenceposts(sdist)
    tdist[5] = torch.linspace(0.0, 1e-4, 31)
    # Where one interval holds all, its width counts alone: 1e-3 of a curved distance that is rounded to 3e-8.
    assert_equals_twin("distortion", (tdist, weights), wanted=(1,), tolerance=5e-5)


@runs_kernels
def test_distortion_of_a_thin_surface_far_from_the_origin():
    # Neighbors differ by 1e-5 in a curved distance of 0.35: sums of that distance itself would leave few digits.
    tdist = 5.0 + torch.cat([torch.zeros(3, 1), torch.rand(3, 64).cumsum(dim=-1) / 64], dim=-1) * 0.02
    assert_equals_twin("distortion", (tdist, torch.rand(3, 64) / 64), wanted=(1,), tolerance=3e-4)


@runs_kernels
@pytest.mark.parametrize("name,first", [("interlevel", 0), ("distortion", 1)])
def test_losses_without_gradients_are_the_same(name, first):
    (sdist, weights), (other, others) = histogram(5, 20), histogram(5, 12)
    args = [weights, sdist, others, other, 0.03, EPS] if name == "interlevel" else [fenceposts(sdist), weights]
    args = [x.to(DEVICE) if isinstance(x, Tensor) else x for x in args]
    plain = getattr(kernels, name)(*args)
    args[first] = args[first].clone().requires_grad_()
    with torch.no_grad():
        assert_close(getattr(kernels, name)(*args), plain)
    # Compiled apart, they may round apart.
    differentiable = getattr(kernels, name)(*args)
    assert differentiable.requires_grad and not plain.requires_grad
    assert_close(differentiable.detach(), plain)


# --- how they are called ---


@runs_kernels
def test_expanded_and_strided_rows_are_read_as_they_are():
    (sdist, weights), n = histogram(6, 12), 10
    near, far = torch.tensor([[0.1]]).expand(6, 1), torch.tensor([[50.0]]).expand(6, 1)
    jitter = torch.rand(1, 1).expand(6, 1)
    padded = torch.rand(6, 40)
    padded[:, 3:16] = sdist
    views = [x.to(DEVICE) for x in (padded[:, 3:16], weights.t().contiguous().t())]
    small = [x.to(DEVICE) for x in (jitter, near, far)]
    found = kernels.draw_intervals(*views, n, small[0], 0.5, *small[1:])
    dense = [x.contiguous() for x in (*views, *small)]
    for value, expected in zip(found, kernels.draw_intervals(*dense[:2], n, dense[2], 0.5, *dense[3:]), strict=True):
        # Compiled apart, because views are aligned otherwise, they may round apart; t multiplies that by far / 1.25.
        assert_close(value, expected, 1e-5)
    shared = weights[:1].to(DEVICE).expand(6, -1)
    found = kernels.distortion(views[0], shared)
    assert_close(found, kernels.distortion(views[0].contiguous(), shared.contiguous()), 1e-6)


@runs_kernels
@pytest.mark.parametrize("lanes", [16, 64, 256])
def test_rays_a_program_do_not_matter(lanes, monkeypatch):
    (sdist, weights), (other, others) = histogram(11, 20), histogram(11, 33)
    monkeypatch.setattr(kernels, "PROGRAM_LANES", lanes)
    assert_equals_twin("interlevel", (weights, sdist, others, other, 0.03, EPS), wanted=(0,))
    assert_equals_twin("distortion", (fenceposts(sdist), weights), wanted=(1,))
    assert_draws_like_the_twin((other, others), 20, torch.rand(11, 1), 0.5)
