"""The distortion of a ray's histogram against double sums, sampled distances and its scaling laws."""

from __future__ import annotations

import pytest
import torch
from _truth import assert_finite, random_histogram, rng

from zipnerf_ns.functional.spacing import distortion_distance
from zipnerf_ns.functional.stepfun import distortion, invert_cdf

BATCHES = [(), (2,), (1, 2)]


def test_distortion_matches_a_dense_double_sum():
    sdist, weights = random_histogram((3,), 5, seed=23)
    weights = 0.7 * weights
    for s, w, found in zip(sdist, weights, distortion(sdist, weights), strict=True):
        points = torch.cat([a + (b - a) * (torch.arange(300) + 0.5) / 300 for a, b in zip(s[:-1], s[1:], strict=True)])
        mass = (w / 300).repeat_interleave(300)
        truth = (mass[:, None] * mass * (points[:, None] - points).abs()).sum()
        # Within an interval the sum misses 1/300^2 of the interval's own distance.
        torch.testing.assert_close(found, truth, rtol=2e-5, atol=0.0)


def test_distortion_matches_sampled_distances():
    sdist, weights = random_histogram((), 8, seed=24)
    pair = invert_cdf(
        torch.rand(2, 400_000, generator=rng(25), dtype=torch.float64),
        sdist.expand(2, -1),
        weights.expand(2, -1),
    )
    # The standard error of the mean is 0.24 / sqrt(400,000) = 4e-4; four of them.
    truth = (pair[0] - pair[1]).abs().mean()
    torch.testing.assert_close(distortion(sdist, weights), truth, rtol=0.0, atol=1.6e-3)


@pytest.mark.parametrize("batch", BATCHES)
def test_distortion_is_the_papers_double_sum(batch):
    sdist, weights = random_histogram(batch, 12, seed=26)
    middles, widths = 0.5 * (sdist[..., 1:] + sdist[..., :-1]), sdist.diff(dim=-1)
    pairs = weights[..., None] * weights[..., None, :] * (middles[..., None] - middles[..., None, :]).abs()
    truth = pairs.sum((-1, -2)) + (weights.square() * widths).sum(-1) / 3.0
    torch.testing.assert_close(distortion(sdist, weights), truth, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("a,b", [(3.0, 1.0), (1.0, 0.2), (1e3, 7.0)])
def test_distortion_scales_with_distance_and_with_squared_weight(a, b):
    sdist, weights = random_histogram((4,), 12, seed=27)
    torch.testing.assert_close(
        distortion(a * sdist, b * weights), a * b * b * distortion(sdist, weights), rtol=1e-12, atol=0.0
    )


def test_distortion_does_not_change_with_a_shift_or_a_split():
    sdist, weights = random_histogram((4,), 12, seed=28)
    truth = distortion(sdist, weights)
    torch.testing.assert_close(distortion(sdist + 5.0, weights), truth, rtol=1e-11, atol=0.0)
    halves = torch.stack([sdist[:, :-1], 0.5 * (sdist[:, 1:] + sdist[:, :-1])], dim=-1).flatten(1)
    split = distortion(torch.cat([halves, sdist[:, -1:]], dim=-1), (0.5 * weights).repeat_interleave(2, dim=-1))
    torch.testing.assert_close(split, truth, rtol=1e-12, atol=0.0)


def test_distortion_of_one_interval_is_a_third_of_its_length():
    assert distortion(torch.tensor([2.0, 5.0]), torch.tensor([1.0])).item() == pytest.approx(1.0)
    assert distortion(torch.zeros(4), torch.ones(3)).item() == 0.0


def test_distortion_of_laddered_distances_keeps_its_digits_in_float32():
    sdist, weights = random_histogram((500,), 32, seed=29)
    posts = distortion_distance((1e6 * sdist**12 + 0.1).float())
    truth = distortion(posts.double(), weights.float().double())
    found = distortion(posts, weights.float())
    # Laddered distances lie near 5 and are compared on a scale of 0.1: the prefix sums cancel two digits.
    assert ((found.double() - truth).abs() <= 1e-5).all()
    assert (found >= 0.0).all()


def test_distortion_gradient():
    sdist, weights = random_histogram((2,), 6, seed=30)
    assert torch.autograd.gradcheck(distortion, (sdist.requires_grad_(), weights.requires_grad_()))


def test_distortion_is_finite_with_its_gradient_at_the_extremes():
    posts = torch.tensor([0.0, 0.0, 1.0, 1e6, 1e6, 1e10])
    for weights in (torch.zeros(5), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]), torch.full((5,), 0.2)):
        assert_finite(distortion, posts, weights)
