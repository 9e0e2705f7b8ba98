"""Histograms along a ray against dense numerical inversion, integration and double sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _truth import assert_finite, dense_density, random_histogram, rng
from torch import Tensor

from zipnerf_ns.functional.stepfun import annealed, invert_cdf, resample, sample_intervals

BATCHES = [(), (2,), (1, 2)]


def centers_of(fenceposts: Tensor) -> Tensor:
    """Undoes the midpoints of sample_intervals, where the outer fenceposts were not clipped."""
    centers = [0.5 * (fenceposts[..., 0] + fenceposts[..., 1])]
    for k in range(1, fenceposts.shape[-1] - 1):
        centers.append(2.0 * fenceposts[..., k] - centers[-1])
    return torch.stack(centers, dim=-1)


def looped_intervals(sdist: Tensor, weights: Tensor, num: int, offset: float) -> list:
    """sample_intervals of one ray as a loop over floats: walk the histogram until its mass reaches u."""
    edges, masses = sdist.tolist(), weights.tolist()
    total, centers = sum(masses), []
    for k in range(num):
        mass, bin_ = (k + offset) / num * total, 0
        while bin_ < len(masses) - 1 and mass > masses[bin_]:
            mass, bin_ = mass - masses[bin_], bin_ + 1
        centers.append(edges[bin_] + (edges[bin_ + 1] - edges[bin_]) * mass / masses[bin_])
    middles = [0.5 * (a + b) for a, b in zip(centers[:-1], centers[1:], strict=True)]
    posts = [2.0 * centers[0] - middles[0], *middles, 2.0 * centers[-1] - middles[-1]]
    return [min(max(post, edges[0]), edges[-1]) for post in posts]


# --- invert_cdf ---


@pytest.mark.parametrize("batch", BATCHES)
def test_invert_cdf_matches_a_dense_inversion(batch):
    sdist, weights = random_histogram(batch, 7, seed=0)
    weights = (weights + 0.1) / 1.7  # no interval so empty that the grid's rounding in mass moves far in distance
    u = torch.rand(*batch, 40, generator=rng(1), dtype=torch.float64)
    out = invert_cdf(u, sdist, weights)
    x = (np.arange(200_000) + 0.5) / 200_000
    for s, w, q, found in zip(*(v.reshape(-1, v.shape[-1]) for v in (sdist, weights, u, out)), strict=True):
        cdf = np.cumsum(dense_density(x, s, w)) / 200_000
        # The grid has 5e-6 a step, and at each of 7 fenceposts the mass of at most one step is misplaced.
        np.testing.assert_allclose(found, x[np.searchsorted(cdf, q.numpy())], rtol=0.0, atol=5e-5)


def test_invert_cdf_inverts_the_cumulative_mass():
    sdist, weights = random_histogram((3,), 9, seed=2)
    x = torch.rand(3, 50, generator=rng(3), dtype=torch.float64)
    mass = torch.stack(
        [resample(torch.stack([torch.zeros(3), x[:, i]], -1), sdist, weights)[:, 0] for i in range(50)], 1
    )
    torch.testing.assert_close(invert_cdf(mass, sdist, weights), x, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invert_cdf_reaches_both_ends_and_never_leaves_them(dtype):
    sdist, weights = random_histogram((200,), 64, seed=4, dtype=dtype)
    u = torch.tensor([0.0, 1.0 - 6e-8, 1.0], dtype=dtype).expand(200, 3)
    out = invert_cdf(u, sdist, weights)
    assert (out[:, 0] == 0.0).all() and (out <= sdist[:, -1:]).all()
    torch.testing.assert_close(out[:, 2], sdist[:, -1], rtol=0.0, atol=1e-6)


def test_invert_cdf_skips_empty_intervals():
    sdist = torch.tensor([0.0, 0.2, 0.4, 0.4, 0.7, 1.0], dtype=torch.float64)
    weights = torch.tensor([0.0, 0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    out = invert_cdf(torch.linspace(0.0, 1.0, 1001, dtype=torch.float64), sdist, weights)
    inside = ((out >= 0.2) & (out <= 0.4)) | ((out >= 0.7) & (out <= 1.0))
    assert inside.all() and (out.diff() >= 0.0).all()


def test_invert_cdf_just_under_one_stays_out_of_empty_end_intervals():
    # Summed in float32, the weights of some rays end below 1 - 6e-8, which must not count as the last interval's.
    sdist, weights = random_histogram((300,), 64, seed=31, dtype=torch.float32)
    weights[:, 48:] = 0.0
    weights = weights / weights.sum(dim=-1, keepdim=True)
    assert (weights.cumsum(dim=-1)[:, -1] < 1.0 - 6e-8).any()
    out = invert_cdf(torch.full((300, 1), 1.0 - 6e-8), sdist, weights)
    assert (out <= sdist[:, 48:49]).all()


# --- sample_intervals ---


@pytest.mark.parametrize("jitter", [None, 0.0, 0.3, 0.999])
@pytest.mark.parametrize("num_samples", [2, 5, 32])
def test_sample_intervals_matches_a_loop(num_samples, jitter):
    sdist, weights = random_histogram((4,), 6, seed=5)
    offset = None if jitter is None else torch.full((4, 1), jitter, dtype=torch.float64)
    out = sample_intervals(sdist, weights, num_samples, offset)
    truth = [
        looped_intervals(s, w, num_samples, 0.5 if jitter is None else jitter)
        for s, w in zip(sdist, weights, strict=True)
    ]
    torch.testing.assert_close(out, torch.tensor(truth, dtype=torch.float64), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("anneal", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("batch", BATCHES)
def test_fenceposts_increase_and_stay_inside_the_domain(batch, anneal, dtype):
    for seed in range(20):
        sdist, weights = random_histogram(batch, 64, seed=seed, dtype=dtype)
        # Most of the mass in a few intervals, as after training.
        weights = weights**6 / (weights**6).sum(dim=-1, keepdim=True)
        jitter = torch.rand(*batch, 1, generator=rng(seed), dtype=torch.float64).to(dtype)
        out = sample_intervals(sdist, weights, 33, jitter, anneal)
        assert out.shape == (*batch, 34) and out.dtype == dtype
        assert (out.diff(dim=-1) >= 0.0).all()
        assert (out >= sdist[..., :1]).all() and (out <= sdist[..., -1:]).all()


def test_many_jittered_draws_reproduce_the_weights():
    rays, num, bins = 400, 16, 8
    sdist, weights = random_histogram((), bins, seed=6)
    # Empty end intervals keep the outer fenceposts off the domain's ends: the centers can be recovered.
    weights[[0, -1]] = 0.0
    weights = weights / weights.sum()
    jitter = ((torch.arange(rays, dtype=torch.float64) + 0.5) / rays)[:, None]
    out = sample_intervals(sdist.expand(rays, -1), weights.expand(rays, -1), num, jitter)
    counts, _ = np.histogram(centers_of(out).numpy(), bins=sdist.numpy())
    # The draws stratify u into rays * num even shares, so each bin's count is off by one share at either end;
    # the floor of 1e-8 moves less than that.
    np.testing.assert_allclose(counts / (rays * num), weights, rtol=0.0, atol=2.0 / (rays * num))


def test_drawn_intervals_cover_the_histogram_in_proportion_to_its_weights():
    rays, num = 300, 512
    sdist, weights = random_histogram((), 5, seed=7)
    jitter = torch.rand(rays, 1, generator=rng(8), dtype=torch.float64)
    out = sample_intervals(sdist.expand(rays, -1), weights.expand(rays, -1), num, jitter)
    even = torch.full((rays, num), 1.0 / num, dtype=torch.float64)
    histogram = resample(sdist.expand(rays, -1), out, even).mean(dim=0)
    # An interval across a fencepost is even although the density jumps there: half a share an end.
    torch.testing.assert_close(histogram, weights, rtol=0.0, atol=1.0 / num)


def test_one_jitter_moves_all_centers_of_a_ray_together():
    sdist = torch.linspace(0.0, 1.0, 9, dtype=torch.float64).expand(2, -1)
    jitter = torch.tensor([[0.25], [0.75]], dtype=torch.float64)
    out = sample_intervals(sdist, torch.full((2, 8), 0.125, dtype=torch.float64), 10, jitter)
    torch.testing.assert_close(out[1, 1:-1] - out[0, 1:-1], torch.full((9,), 0.05, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_samples", [2, 7, 64])
def test_without_jitter_an_even_histogram_is_cut_evenly(num_samples, dtype):
    sdist = torch.linspace(0.0, 1.0, 5, dtype=dtype)
    out = sample_intervals(sdist, torch.full((4,), 0.25, dtype=dtype), num_samples)
    torch.testing.assert_close(out, torch.linspace(0.0, 1.0, num_samples + 1, dtype=dtype), rtol=0.0, atol=5e-7)


@pytest.mark.parametrize("num_samples", [2, 4, 32])
def test_all_weight_in_one_interval_is_covered_from_end_to_end(num_samples):
    # nerfstudio's PDFSampler covers [0.273, 0.479] of this one: it draws edges and pads the histogram.
    sdist = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
    weights = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    out = sample_intervals(sdist, weights, num_samples)
    # The floor of 1e-8 leaks 3e-8 of the mass to the other three intervals.
    truth = torch.linspace(0.25, 0.5, num_samples + 1, dtype=torch.float64)
    torch.testing.assert_close(out, truth, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("anneal", [0.0, 0.5, 1.0])
def test_zero_weights_are_sampled_evenly_over_their_intervals(anneal):
    even = torch.linspace(0.0, 1.0, 17)
    torch.testing.assert_close(sample_intervals(even, torch.zeros(16), 8, None, anneal), even[::2])
    sdist, _ = random_histogram((), 16, seed=9)
    out = sample_intervals(sdist, torch.zeros(16, dtype=torch.float64), 16, None, anneal)
    middles = 0.5 * (sdist[1:] + sdist[:-1])
    torch.testing.assert_close(out[1:-1], 0.5 * (middles[1:] + middles[:-1]), rtol=0.0, atol=1e-12)


def test_anneal_raises_the_weights_to_its_power():
    sdist, weights = random_histogram((3,), 6, seed=10)
    for anneal in (0.0, 0.3, 1.0):
        truth = [[w**anneal for w in row] for row in weights.tolist()]
        truth = torch.tensor([[w / sum(row) for w in row] for row in truth], dtype=torch.float64)
        torch.testing.assert_close(annealed(sdist, weights, anneal), truth, rtol=1e-12, atol=0.0)
        drawn = sample_intervals(sdist, weights, 12, None, anneal)
        torch.testing.assert_close(drawn, sample_intervals(sdist, truth, 12), rtol=0.0, atol=1e-9)


def test_scaling_the_weights_changes_nothing():
    sdist, weights = random_histogram((5,), 6, seed=11)
    for anneal in (0.3, 1.0):
        drawn = sample_intervals(sdist, weights, 12, None, anneal)
        scaled = sample_intervals(sdist, 0.01 * weights, 12, None, anneal)
        torch.testing.assert_close(scaled, drawn, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("anneal", [0.0, 0.5, 1.0])
def test_intervals_without_width_get_nothing(anneal):
    sdist = torch.tensor([0.0, 0.3, 0.3, 0.3, 0.6, 1.0], dtype=torch.float64)
    weights = torch.tensor([0.1, 5.0, 5.0, 0.1, 0.1], dtype=torch.float64)
    assert (annealed(sdist, weights, anneal)[1:3] == 0.0).all()
    without = sample_intervals(sdist[[0, 1, 4, 5]], weights[[0, 3, 4]], 16, None, anneal)
    torch.testing.assert_close(sample_intervals(sdist, weights, 16, None, anneal), without, rtol=0.0, atol=1e-12)


def test_a_histogram_without_any_width_gives_its_own_place():
    sdist = torch.full((5,), 0.7)
    assert sample_intervals(sdist, torch.ones(4), 3).tolist() == [pytest.approx(0.7)] * 4


@pytest.mark.parametrize("num_samples", [-1, 0, 1])
def test_fewer_than_two_intervals_are_refused(num_samples):
    with pytest.raises(ValueError, match="num_samples"):
        sample_intervals(torch.linspace(0.0, 1.0, 3), torch.ones(2), num_samples)


def test_sampling_works_on_detached_and_on_recorded_weights_alike():
    sdist, weights = random_histogram((2,), 6, seed=12)
    recorded = weights.clone().requires_grad_()
    with torch.no_grad():
        out = sample_intervals(sdist, recorded, 9)
    assert not out.requires_grad
    assert torch.equal(out, sample_intervals(sdist, recorded, 9).detach())


def test_sampling_is_finite_with_its_gradient_at_empty_weights_and_intervals():
    sdist = torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    for weights in (torch.zeros(2, 4), torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1e-30]])):
        for anneal in (0.0, 0.5, 1.0):
            assert_finite(lambda s, w, a=anneal: sample_intervals(s, w, 5, None, a), sdist, weights)


# --- resample ---


@pytest.mark.parametrize("batch", BATCHES)
def test_resample_matches_a_dense_integration(batch):
    sdist, weights = random_histogram(batch, 6, seed=13)
    queries = (torch.rand(*batch, 9, generator=rng(14), dtype=torch.float64) * 1.4 - 0.2).sort(dim=-1).values
    out = resample(queries, sdist, weights)
    assert out.shape == (*batch, 8)
    x = (np.arange(1_400_000) + 0.5) * 1e-6 - 0.2
    for s, w, q, mass in zip(*(v.reshape(-1, v.shape[-1]) for v in (sdist, weights, queries, out)), strict=True):
        truth, _ = np.histogram(x, bins=q.numpy(), weights=dense_density(x, s, w) * 1e-6)
        # A step of 1e-6 times a density of some 10, at each end.
        np.testing.assert_allclose(mass, truth, rtol=0.0, atol=5e-5)


def test_resample_conserves_mass():
    sdist, weights = random_histogram((4,), 16, seed=15)
    inner = torch.rand(4, 30, generator=rng(16), dtype=torch.float64).sort(dim=-1).values
    queries = torch.cat([torch.full((4, 1), -0.3), inner, torch.full((4, 1), 1.2)], dim=-1).double()
    torch.testing.assert_close(resample(queries, sdist, weights).sum(-1), weights.sum(-1), rtol=1e-12, atol=0.0)


def test_resample_on_its_own_fenceposts_changes_nothing():
    sdist, weights = random_histogram((4,), 16, seed=17)
    torch.testing.assert_close(resample(sdist, sdist, weights), weights, rtol=1e-12, atol=1e-15)


def test_resample_is_additive_over_neighboring_queries_and_in_the_weights():
    sdist, weights = random_histogram((4,), 16, seed=18)
    other = random_histogram((4,), 16, seed=19)[1]
    queries = torch.rand(4, 21, generator=rng(20), dtype=torch.float64).sort(dim=-1).values
    fine = resample(queries, sdist, weights)
    torch.testing.assert_close(resample(queries[:, ::2], sdist, weights), fine[:, ::2] + fine[:, 1::2])
    both = resample(queries, sdist, 2.0 * weights + other)
    torch.testing.assert_close(both, 2.0 * fine + resample(queries, sdist, other))


def test_resample_with_coinciding_fenceposts():
    sdist = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    queries = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64)
    # The middle interval is a point mass, which the query around it holds whole.
    torch.testing.assert_close(resample(queries, sdist, weights), torch.tensor([0.1, 0.65, 0.25]).double())
    assert resample(torch.tensor([0.5, 0.5]).double(), sdist, weights).item() == 0.0


def test_resample_gradient():
    sdist, weights = random_histogram((2,), 5, seed=21)
    queries = (torch.rand(2, 7, generator=rng(22), dtype=torch.float64)).sort(dim=-1).values
    leaves = (queries.requires_grad_(), sdist.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(resample, leaves)


def test_resample_is_finite_with_its_gradient_at_equal_fenceposts():
    sdist = torch.tensor([0.0, 0.5, 0.5, 1.0])
    queries = torch.tensor([-1.0, 0.0, 0.5, 0.5, 1.0, 2.0])
    assert_finite(resample, queries, sdist, torch.tensor([0.2, 0.0, 0.8]))
    assert_finite(resample, queries, torch.zeros(4), torch.zeros(3))
