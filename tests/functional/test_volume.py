"""Volume rendering against a loop in python floats, and distances against examples worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _truth import assert_finite, random_histogram, rng
from torch import Tensor

from zipnerf_ns.functional.volume import density_to_weights, expected_distance, median_distance

BATCHES = [(), (2,), (1, 2)]


def random_ray(batch, num, seed, dtype=torch.float64):
    """Densities from nearly empty to opaque over adjoining intervals from 1 to 9."""
    sdist, _ = random_histogram(batch, num, seed)
    density = 10.0 ** (torch.rand(*batch, num, generator=rng(seed), dtype=torch.float64) * 4.0 - 3.0)
    tdist = 1.0 + 8.0 * sdist
    # Copies: gradcheck steps its arguments in place, and two views of one tensor would both move.
    return density.to(dtype), tdist[..., :-1].to(dtype, copy=True), tdist[..., 1:].to(dtype, copy=True)


def looped_weights(density: Tensor, starts: Tensor, ends: Tensor) -> list:
    """Light that enters an interval times the share that it absorbs, interval by interval."""
    light, weights = 1.0, []
    for sigma, t0, t1 in zip(density.tolist(), starts.tolist(), ends.tolist(), strict=True):
        passed = math.exp(-sigma * (t1 - t0))
        weights.append(light * (1.0 - passed))
        light *= passed
    return weights


def as_tensors(*rows):
    return tuple(torch.tensor(row, dtype=torch.float64) for row in rows)


# --- density_to_weights ---


@pytest.mark.parametrize("dtype,atol", [(torch.float64, 1e-14), (torch.float32, 5e-7)])
@pytest.mark.parametrize("batch", BATCHES)
def test_weights_match_a_loop(batch, dtype, atol):
    density, starts, ends = random_ray(batch, 20, seed=0, dtype=dtype)
    weights = density_to_weights(density, starts, ends)
    for ray in np.ndindex(*batch):
        truth = torch.tensor(looped_weights(density[ray], starts[ray], ends[ray]), dtype=torch.float64)
        torch.testing.assert_close(weights[ray].double(), truth, rtol=0.0, atol=atol)


def test_the_sum_of_the_weights_is_the_opacity_of_the_whole_ray():
    density, starts, ends = random_ray((50,), 30, seed=1)
    opacity = 1.0 - torch.exp(-(density * (ends - starts)).sum(dim=-1))
    weights = density_to_weights(density, starts, ends)
    torch.testing.assert_close(weights.sum(dim=-1), opacity, rtol=1e-12, atol=0.0)
    assert (weights >= 0.0).all()


def test_thin_matter_weighs_its_optical_depth():
    # exp would round 1 - 1e-9 to 1 in float32; expm1 does not.
    weights = density_to_weights(torch.full((4,), 1e-9), torch.arange(4.0), torch.arange(4.0) + 1.0)
    torch.testing.assert_close(weights, torch.full((4,), 1e-9), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("density,truth", [([1e6, 1e-3], [1.0, 0.0]), ([1e-3, 1e6], [1e-3, 1.0 - 1e-3])])
def test_what_lies_before_an_opaque_interval_keeps_its_weight(density, truth):
    # An inclusive sum of optical depths less the interval's own rounds the 1e-3 before the 1e6 away.
    weights = density_to_weights(torch.tensor(density), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(weights, torch.tensor(truth), rtol=0.0, atol=1e-6)


def test_splitting_intervals_does_not_change_their_weight():
    density, starts, ends = random_ray((10,), 12, seed=2)
    middles = 0.3 * starts + 0.7 * ends
    split = density_to_weights(
        density.repeat_interleave(2, dim=-1),
        torch.stack([starts, middles], dim=-1).flatten(-2),
        torch.stack([middles, ends], dim=-1).flatten(-2),
    )
    whole = density_to_weights(density, starts, ends)
    torch.testing.assert_close(split[:, ::2] + split[:, 1::2], whole, rtol=1e-11, atol=1e-16)


def test_only_density_times_length_matters():
    density, starts, ends = random_ray((10,), 12, seed=3)
    truth = density_to_weights(density, starts, ends)
    stretched = density_to_weights(density / 4.0, 4.0 * starts, 4.0 * ends)
    torch.testing.assert_close(stretched, truth, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(density_to_weights(density, starts + 100.0, ends + 100.0), truth, rtol=1e-9, atol=1e-14)


def test_intervals_without_length_weigh_nothing_whatever_their_density():
    starts, ends = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 2.0, 1.5])
    weights = density_to_weights(torch.tensor([0.5, 3e6, 0.5, 3e6]), starts, ends)
    assert weights[1] == 0.0 and weights[3] == 0.0
    without = density_to_weights(torch.tensor([0.5, 0.5]), starts[[0, 2]], ends[[0, 2]])
    torch.testing.assert_close(weights[[0, 2]], without)


@pytest.mark.parametrize("density", [0.0, 1e-30, 3.3e6, 1e30])
def test_weights_are_finite_with_their_gradients_up_to_the_far_plane(density):
    tdist = torch.tensor([0.0, 0.0, 1e-30, 1.0, 1.0, 1e6, 1e10])
    assert_finite(density_to_weights, torch.full((6,), density), tdist[:-1], tdist[1:])
    weights = density_to_weights(torch.full((6,), density), tdist[:-1], tdist[1:])
    assert (weights >= 0.0).all() and weights.sum() <= 1.0 + 1e-6


def test_weights_gradient():
    leaves = [v.requires_grad_() for v in random_ray((2,), 6, seed=4)]
    assert torch.autograd.gradcheck(density_to_weights, leaves)


# --- distances ---


def test_expected_distance_by_hand():
    starts, ends = as_tensors([0.0, 2.0, 4.0], [2.0, 4.0, 10.0])
    # Middles 1, 3, 7, of which the second weighs as much as the others together: 1^(1/4) * 3^(1/2) * 7^(1/4).
    mean = expected_distance(*as_tensors([0.1, 0.2, 0.1]), starts, ends).item()
    assert mean == pytest.approx(math.sqrt(3.0 * math.sqrt(7.0)))
    assert expected_distance(*as_tensors([0.0, 0.0, 1.0]), starts, ends).item() == pytest.approx(7.0)


def test_a_little_of_the_far_end_does_not_take_the_mean_away():
    """The last interval of an unbounded ray ends at 1e6: the plain mean of this one is 15,000."""
    starts, ends = as_tensors([1.0, 3.0, 5.0], [3.0, 5.0, 1e6])
    assert 3.0 < expected_distance(*as_tensors([0.0, 0.97, 0.03]), starts, ends).item() < 6.0


def test_median_distance_by_hand():
    starts, ends = as_tensors([0.0, 2.0, 4.0], [2.0, 4.0, 10.0])
    # Half of 0.4 is 0.2: after 0.1 in the first interval, half of the second's 0.2.
    assert median_distance(*as_tensors([0.1, 0.2, 0.1]), starts, ends).item() == pytest.approx(3.0)
    # All in one interval: its middle.
    assert median_distance(*as_tensors([0.0, 0.0, 0.7]), starts, ends).item() == pytest.approx(7.0)
    # Half reached exactly at a fencepost.
    assert median_distance(*as_tensors([0.3, 0.0, 0.3]), starts, ends).item() == pytest.approx(2.0)
    # A thin foreground does not pull it off the background, as it does the mean.
    assert median_distance(*as_tensors([0.3, 0.0, 0.7]), starts, ends).item() == pytest.approx(4.0 + 6.0 * 2.0 / 7.0)


@pytest.mark.parametrize("batch", BATCHES)
def test_distances_match_loops(batch):
    density, starts, ends = random_ray(batch, 15, seed=5)
    weights = density_to_weights(density, starts, ends)
    mean, median = expected_distance(weights, starts, ends), median_distance(weights, starts, ends)
    assert mean.shape == median.shape == (*batch, 1)
    for ray in np.ndindex(*batch):
        w, t0, t1 = weights[ray].tolist(), starts[ray].tolist(), ends[ray].tolist()
        truth = math.exp(sum(a * math.log(0.5 * (b + c)) for a, b, c in zip(w, t0, t1, strict=True)) / sum(w))
        assert mean[ray].item() == pytest.approx(truth, rel=1e-12)
        left, k = 0.5 * sum(w), 0
        while left > w[k]:
            left, k = left - w[k], k + 1
        assert median[ray].item() == pytest.approx(t0[k] + left / w[k] * (t1[k] - t0[k]), rel=1e-9)


@pytest.mark.parametrize("distance", [expected_distance, median_distance])
def test_distances_ignore_the_total_weight_and_follow_shift_and_scale(distance):
    density, starts, ends = random_ray((20,), 15, seed=6)
    weights = density_to_weights(density, starts, ends)
    truth = distance(weights, starts, ends)
    torch.testing.assert_close(distance(0.01 * weights, starts, ends), truth, rtol=1e-9, atol=0.0)
    # A mean of logarithms follows the scale only.
    shift = 1.0 if distance is median_distance else 0.0
    moved = distance(weights, 3.0 * starts + shift, 3.0 * ends + shift)
    torch.testing.assert_close(moved, 3.0 * truth + shift, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("distance", [expected_distance, median_distance])
def test_a_wall_is_seen_where_it_stands(distance):
    tdist = torch.linspace(0.0, 100.0, 10_001, dtype=torch.float64)
    density = torch.where(tdist[:-1] >= 42.0, 1e6, 0.0)
    weights = density_to_weights(density, tdist[:-1], tdist[1:])
    # Intervals are 0.01 long, and all the weight is in the first one behind the wall's face.
    assert distance(weights, tdist[:-1], tdist[1:]).item() == pytest.approx(42.005, abs=1e-6)


def test_the_median_of_a_fog_is_where_half_its_opacity_is_reached():
    tdist = torch.linspace(0.0, 100.0, 20_001, dtype=torch.float64)
    weights = density_to_weights(torch.full((20_000,), 0.3, dtype=torch.float64), tdist[:-1], tdist[1:])
    # exp(-0.3 t) = 1/2, and exp(E log t) = exp(-gamma)/0.3; 30 optical depths end 1e-13 short of opaque.
    assert median_distance(weights, tdist[:-1], tdist[1:]).item() == pytest.approx(math.log(2.0) / 0.3, abs=1e-5)
    # Intervals are 0.005 long, and the first one's logarithm is the least exact.
    mean = expected_distance(weights, tdist[:-1], tdist[1:]).item()
    assert mean == pytest.approx(math.exp(-np.euler_gamma) / 0.3, abs=2e-3)


@pytest.mark.parametrize("distance", [expected_distance, median_distance])
@pytest.mark.parametrize("near", [0.0, 0.2, 1e10])
def test_an_empty_ray_ends_at_its_near_end(distance, near):
    starts = near + torch.arange(4.0)
    assert distance(torch.zeros(4), starts, starts + 1.0).item() == starts[0].item()


@pytest.mark.parametrize("distance", [expected_distance, median_distance])
@pytest.mark.parametrize("weight", [0.0, 1e-38, 1e-20, 1e-10, 0.2])
def test_distances_stay_on_the_ray_and_are_finite_with_their_gradients(distance, weight):
    tdist = torch.tensor([0.1, 0.1, 1.0, 1e3, 1e6, 1e6])
    weights = torch.full((5,), weight)
    found = distance(weights, tdist[:-1], tdist[1:])
    assert 0.1 <= found.item() <= 1e6
    assert_finite(distance, weights, tdist[:-1], tdist[1:])


@pytest.mark.parametrize("distance", [expected_distance, median_distance])
def test_distance_gradients(distance):
    density, starts, ends = random_ray((3,), 6, seed=7)
    leaves = [v.requires_grad_() for v in (density_to_weights(density, starts, ends), starts, ends)]
    assert torch.autograd.gradcheck(distance, leaves)
