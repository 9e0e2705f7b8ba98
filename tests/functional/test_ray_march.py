"""The operations along a ray against loops over it in python floats, and the laws that their composition must keep."""

from __future__ import annotations

import math

import pytest
import torch
from _truth import gradients, random_histogram, rng

from zipnerf_ns.functional import ray_march
from zipnerf_ns.functional.linspline import blurred_resample
from zipnerf_ns.functional.spacing import s_to_t

EPS = 1e-5


def random_rays(rays: int, n: int, seed: int, dtype: torch.dtype = torch.float64):
    """Densities from nearly empty to opaque, fenceposts from 1 to 9, and which rays are valid."""
    sdist, _ = random_histogram((rays,), n, seed)
    density = 10.0 ** (torch.rand(rays, n, generator=rng(seed), dtype=torch.float64) * 4.0 - 3.0)
    valid = torch.arange(rays)[:, None] % 3 != 1
    return density.to(dtype), (1.0 + 8.0 * sdist).to(dtype), valid


def ends(rays: int, near: float, far: float):
    return torch.full((rays, 1), near, dtype=torch.float64), torch.full((rays, 1), far, dtype=torch.float64)


def looped_weights(density, tdist, valid) -> torch.Tensor:
    """Light that enters an interval times the share that it absorbs, ray by ray and interval by interval."""
    rows = []
    for sigmas, fenceposts, sees in zip(density.tolist(), tdist.tolist(), valid[:, 0].tolist(), strict=True):
        light, row = float(sees), []
        for sigma, t0, t1 in zip(sigmas, fenceposts[:-1], fenceposts[1:], strict=True):
            passed = math.exp(-sigma * (t1 - t0))
            row.append(light * (1.0 - passed))
            light *= passed
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


# --- draw_intervals ---


def test_drawn_intervals_lie_in_the_domain_and_in_order():
    sdist, weights = random_histogram((20,), 16, seed=0)
    near, far = ends(20, 0.1, 1e6)
    jitter = torch.rand(20, 1, generator=rng(1), dtype=torch.float64)
    drawn, tdist = ray_march.draw_intervals(sdist, weights, 24, jitter, 0.7, near, far)
    assert drawn.shape == tdist.shape == (20, 25)
    assert (drawn.diff(dim=-1) >= 0.0).all() and (drawn >= 0.0).all() and (drawn <= 1.0).all()
    assert (tdist.diff(dim=-1) >= 0.0).all() and (tdist >= near).all() and (tdist <= far).all()
    torch.testing.assert_close(tdist, s_to_t(drawn, near, far), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("offset", [None, 0.0, 0.25, 0.999])
def test_the_first_round_is_even(offset):
    near, far = ends(3, 0.2, 50.0)
    jitter = None if offset is None else torch.full((3, 1), offset, dtype=torch.float64)
    drawn, _ = ray_march.draw_intervals(None, None, 8, jitter, 1.0, near, far)
    middle = 0.5 if offset is None else offset
    truth = ((torch.arange(9, dtype=torch.float64) - 0.5 + middle) / 8).clamp(0.0, 1.0)
    torch.testing.assert_close(drawn, truth.expand(3, -1), rtol=0.0, atol=1e-15)


def test_more_intervals_where_the_mass_is_and_less_so_when_annealed():
    sdist = torch.tensor([[0.0, 0.4, 0.6, 1.0]], dtype=torch.float64)
    weights = torch.tensor([[0.1, 0.8, 0.1]], dtype=torch.float64)

    def share(anneal: float) -> float:
        drawn, _ = ray_march.draw_intervals(sdist, weights, 1000, None, anneal, *ends(1, 0.1, 10.0))
        middles = 0.5 * (drawn[:, 1:] + drawn[:, :-1])
        return ((middles > 0.4) & (middles < 0.6)).double().mean().item()

    # Of the thousand, the two at the edges may count on either side.
    assert share(1.0) == pytest.approx(0.8, abs=3e-3)
    assert share(0.5) == pytest.approx(0.8**0.5 / (0.8**0.5 + 2.0 * 0.1**0.5), abs=3e-3)
    # Without weights each interval of the histogram gets as many.
    assert share(0.0) == pytest.approx(1.0 / 3.0, abs=3e-3)


def test_drawing_has_no_gradient():
    sdist, weights = random_histogram((2,), 8, seed=2)
    drawn, tdist = ray_march.draw_intervals(sdist, weights.requires_grad_(), 8, None, 1.0, *ends(2, 0.1, 10.0))
    assert not drawn.requires_grad and not tdist.requires_grad


def test_half_a_histogram_is_refused():
    sdist, weights = random_histogram((2,), 8, seed=3)
    with pytest.raises(ValueError, match="both"):
        ray_march.draw_intervals(sdist, None, 8, None, 1.0, *ends(2, 0.1, 10.0))
    with pytest.raises(ValueError, match="both"):
        ray_march.draw_intervals(None, weights, 8, None, 1.0, *ends(2, 0.1, 10.0))


# --- density_to_weights, render ---


def test_weights_and_rendering_match_a_loop():
    density, tdist, valid = random_rays(7, 12, seed=4)
    colors = torch.rand(7, 12, 3, generator=rng(5), dtype=torch.float64)
    truth = looped_weights(density, tdist, valid)
    assert (truth[1] == 0.0).all() and (truth[0] > 0.0).all()
    torch.testing.assert_close(ray_march.density_to_weights(density, tdist, valid), truth, rtol=0.0, atol=1e-14)
    weights, rgb, accumulation = ray_march.render(density, tdist, valid, colors)
    torch.testing.assert_close(weights, truth, rtol=0.0, atol=1e-14)
    sums = [[sum(w * c for w, c in zip(ws, cs, strict=True)) for cs in zip(*ray, strict=True)]
            for ws, ray in zip(truth.tolist(), colors.tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(rgb, torch.tensor(sums, dtype=torch.float64), rtol=0.0, atol=1e-13)
    torch.testing.assert_close(accumulation[:, 0], truth.sum(dim=-1), rtol=0.0, atol=1e-13)


def test_rendering_gradients():
    density, tdist, valid = random_rays(3, 6, seed=6)
    colors = torch.rand(3, 6, 3, generator=rng(7), dtype=torch.float64)
    leaves = (density.requires_grad_(), colors.requires_grad_())
    assert torch.autograd.gradcheck(lambda d, c: ray_march.render(d, tdist, valid, c), leaves)
    assert torch.autograd.gradcheck(lambda d: ray_march.density_to_weights(d, tdist, valid), leaves[:1])


def test_fenceposts_get_no_gradient_and_rays_that_see_nothing_send_none():
    density, tdist, valid = random_rays(4, 6, seed=8)
    colors = torch.rand(4, 6, 3, dtype=torch.float64)
    _, (v_density, v_tdist, v_colors) = gradients(
        lambda d, t, c: ray_march.render(d, t, valid, c), (density, tdist, colors), seed=9
    )
    assert (v_tdist == 0.0).all()
    assert (v_density[1] == 0.0).all() and (v_colors[1] == 0.0).all()
    assert (v_density[0] != 0.0).any() and (v_colors[0] != 0.0).any()


def test_half_precision_colors_are_summed_in_full():
    density, tdist, valid = random_rays(3, 64, seed=10, dtype=torch.float32)
    colors = torch.rand(3, 64, 3).bfloat16().requires_grad_()
    weights, rgb, _ = ray_march.render(density, tdist, valid, colors)
    truth = (weights.double()[..., None] * colors.double()).sum(dim=-2)
    torch.testing.assert_close(rgb.double(), truth, rtol=1e-6, atol=1e-7)
    assert torch.autograd.grad(rgb.sum(), colors)[0].dtype == torch.bfloat16


# --- interlevel, distortion ---


def test_interlevel_matches_a_loop():
    (sdist_prop, w_prop), (sdist, weights) = random_histogram((3,), 10, seed=11), random_histogram((3,), 7, seed=12)
    loss = ray_march.interlevel(w_prop, sdist_prop, weights, sdist, 0.03, EPS)
    blurred = blurred_resample(sdist_prop, sdist, weights, 0.03)
    truth = [
        sum(max(b - w, 0.0) ** 2 / (w + EPS) for b, w in zip(bs, ws, strict=True))
        for bs, ws in zip(blurred.tolist(), w_prop.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(truth, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_interlevel_is_zero_for_a_proposal_that_covers_the_blurred_histogram():
    sdist_prop, (sdist, weights) = random_histogram((3,), 10, seed=13)[0], random_histogram((3,), 7, seed=14)
    blurred = blurred_resample(sdist_prop, sdist, weights, 0.003)
    assert (ray_march.interlevel(blurred, sdist_prop, weights, sdist, 0.003, EPS) == 0.0).all()
    assert (ray_march.interlevel(1.1 * blurred, sdist_prop, weights, sdist, 0.003, EPS) == 0.0).all()
    assert (ray_march.interlevel(0.9 * blurred, sdist_prop, weights, sdist, 0.003, EPS) > 0.0).all()


def test_interlevel_teaches_only_the_proposal():
    (sdist_prop, w_prop), (sdist, weights) = random_histogram((2,), 6, seed=15), random_histogram((2,), 5, seed=16)
    _, (v_prop, *others) = gradients(
        lambda *leaves: ray_march.interlevel(*leaves, 0.03, EPS), (w_prop, sdist_prop, weights, sdist), seed=17
    )
    assert (v_prop != 0.0).any()
    # The proposal's fenceposts say where the blurred histogram is read, which must not move them either.
    assert all((v == 0.0).all() for v in others)
    assert torch.autograd.gradcheck(
        lambda w: ray_march.interlevel(w, sdist_prop, weights, sdist, 0.03, EPS), w_prop.requires_grad_()
    )


def test_distortion_is_the_double_sum_over_curved_distances():
    sdist, weights = random_histogram((4,), 9, seed=18)
    tdist = 0.1 + 3.0 * sdist
    curved = 5.0 * (1.0 - (1.0 + 8000.0 * tdist) ** -0.25)
    middles, widths = 0.5 * (curved[:, 1:] + curved[:, :-1]), curved.diff(dim=-1)
    pairs = weights[:, :, None] * weights[:, None, :] * (middles[:, :, None] - middles[:, None, :]).abs()
    truth = pairs.sum(dim=(1, 2)) + (weights.square() * widths).sum(dim=-1) / 3.0
    torch.testing.assert_close(ray_march.distortion(tdist, weights), truth, rtol=1e-9, atol=0.0)
    leaves = (tdist.requires_grad_(), weights.requires_grad_())
    _, (v_tdist, v_weights) = gradients(ray_march.distortion, leaves, seed=19)
    assert (v_tdist == 0.0).all() and (v_weights != 0.0).all()
    assert torch.autograd.gradcheck(lambda w: ray_march.distortion(tdist, w), leaves[1:])


# --- median_and_mean_distance ---


def test_median_and_mean_of_a_worked_example():
    tdist = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]], dtype=torch.float64)
    weights = torch.tensor([[0.2, 0.4, 0.2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    median, mean = ray_march.median_and_mean_distance(weights.requires_grad_(), tdist)
    # Half of 0.8 is reached in the middle of the second interval; an empty ray shows its near end.
    torch.testing.assert_close(median, torch.tensor([[3.0], [1.0]], dtype=torch.float64))
    # Middles 1.5, 3 and 6: a geometric series.
    expected = 3.0
    torch.testing.assert_close(mean, torch.tensor([[expected], [1.0]], dtype=torch.float64))
    assert not median.requires_grad and not mean.requires_grad


# --- group_channels ---


@pytest.mark.parametrize("n,size", [(8, 4), (7, 4), (3, 8), (5, 2)])
def test_a_groups_channels_are_the_mean_of_its_intervals_under_their_weights(n, size):
    rays, count = 3, 2
    channels = torch.randn(rays * n, count, generator=rng(0), dtype=torch.float64)
    weights = torch.rand(rays, n, generator=rng(1), dtype=torch.float64)
    weights[0] = 0.0
    means = []
    for ray in range(rays):
        rows, masses = channels[ray * n : (ray + 1) * n], weights[ray]
        for first in range(0, n, size):
            some = masses[first : first + size] if masses.any() else torch.ones_like(masses[first : first + size])
            means.append((rows[first : first + size] * some[:, None]).sum(dim=0) / some.sum())
    found = ray_march.group_channels(channels, weights, size)
    torch.testing.assert_close(found, torch.stack(means), rtol=1e-4, atol=1e-5)


def test_a_groups_cotangent_is_shared_by_weight():
    channels = torch.randn(12, 2, generator=rng(0), dtype=torch.float64).requires_grad_()
    weights = torch.tensor([[0.2, 0.0, 0.1, 0.1, 0.3, 0.3], [0.0] * 6], dtype=torch.float64)
    v = torch.randn(4, 2, generator=rng(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(ray_march.group_channels(channels, weights, 4), channels, v)
    shares = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5], dtype=torch.float64)
    of_groups = v[[0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3]]
    torch.testing.assert_close(found, shares[:, None] * of_groups, rtol=1e-4, atol=1e-5)
