"""Linear splines against dense integration; the box blur against a discrete convolution."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from _truth import assert_finite, dense_density, random_histogram, rng

from zipnerf_ns.functional.linspline import blurred_resample, integrate_linspline, interpolate_integral
from zipnerf_ns.functional.ray_march import interlevel
from zipnerf_ns.functional.stepfun import resample

BATCHES = [(), (2,), (1, 2)]
STEP = 1e-5
"""Of the dense grids below."""


def random_spline(batch, num, seed):
    """Increasing knots from 0 to 1 and values of either sign."""
    knots, _ = random_histogram(batch, num - 1, seed)
    return knots, torch.randn(*batch, num, generator=rng(seed + 1), dtype=torch.float64)


def rows(*tensors):
    """The tensors' rows over all batch dimensions, together, as numpy arrays."""
    return zip(*(t.reshape(-1, t.shape[-1]).numpy() for t in tensors), strict=True)


def dense_blur(sdist, weights, halfwidth, lower=-0.25, upper=1.25):
    """Cell middles and box-blurred density of one ray's histogram, by a discrete convolution."""
    x = lower + (np.arange(round((upper - lower) / STEP)) + 0.5) * STEP
    box = np.ones(2 * round(halfwidth / STEP) + 1)
    # A box of an odd number of cells whose two outer ones count half is exactly 2 * halfwidth wide.
    box[[0, -1]] = 0.5
    transform = np.fft.rfft(dense_density(x, sdist, weights), 2 * len(x))
    full = np.fft.irfft(transform * np.fft.rfft(box / box.sum(), 2 * len(x)), 2 * len(x))
    return x, full[len(box) // 2 :][: len(x)]


# --- splines ---


@pytest.mark.parametrize("batch", BATCHES)
def test_integrate_linspline_matches_a_dense_integration(batch):
    knots, values = random_spline(batch, 7, seed=0)
    x = (np.arange(round(1.0 / STEP)) + 0.5) * STEP
    for k, v, found in rows(knots, values, integrate_linspline(knots, values)):
        truth = [np.interp(x[x < knot], k, v).sum() * STEP for knot in k]
        # Each knot falls anywhere in a cell of the grid: up to one step times a value of about 2.
        np.testing.assert_allclose(found, truth, rtol=0.0, atol=4.0 * STEP)


def test_integrate_linspline_is_exact_for_a_line_and_blind_to_extra_knots():
    knots = random_histogram((3,), 8, seed=1)[0]
    torch.testing.assert_close(
        integrate_linspline(knots, 2.0 * knots + 1.0), knots.square() + knots, rtol=1e-12, atol=1e-15
    )
    assert (integrate_linspline(knots, torch.full_like(knots, -3.0)) <= 0.0).all()


@pytest.mark.parametrize("batch", BATCHES)
def test_interpolate_integral_matches_a_dense_cumulative_sum_also_beyond_the_ends(batch):
    knots, values = random_spline(batch, 6, seed=2)
    queries = torch.rand(*batch, 40, generator=rng(3), dtype=torch.float64) * 2.0 - 0.5
    found = interpolate_integral(queries, knots, values, integrate_linspline(knots, values))
    x = -0.5 + np.arange(round(2.0 / STEP) + 1) * STEP
    for k, v, q, out in rows(knots, values, queries, found):
        y = np.interp(x, k, v)  # constant beyond the ends, as the spline is
        dense = np.concatenate([[0.0], np.cumsum(0.5 * (y[1:] + y[:-1])) * STEP])
        truth = np.interp(q, x, dense) - np.interp(0.0, x, dense)
        np.testing.assert_allclose(out, truth, rtol=0.0, atol=1e-8)


def test_interpolate_integral_at_the_knots_is_the_integral():
    knots, values = random_spline((3,), 9, seed=4)
    integral = integrate_linspline(knots, values)
    torch.testing.assert_close(interpolate_integral(knots, knots, values, integral), integral, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize(
    "knots,values,truth",
    [
        ([0.0, 0.0, 1.0], [5.0, 2.0, 2.0], lambda x: 5.0 * x if x < 0.0 else 2.0 * x),
        ([0.0, 0.4, 0.4, 1.0], [1.0, 1.0, 3.0, 3.0], lambda x: x if x < 0.4 else 0.4 + 3.0 * (x - 0.4)),
        ([0.0, 1.0, 1.0], [2.0, 2.0, 7.0], lambda x: 2.0 * x if x < 1.0 else 2.0 + 7.0 * (x - 1.0)),
        ([0.5, 0.5, 0.5], [1.0, 2.0, 3.0], lambda x: x - 0.5 if x < 0.5 else 3.0 * (x - 0.5)),
    ],
    ids=["start", "middle", "end", "everywhere"],
)
def test_interpolate_integral_with_coinciding_knots(knots, values, truth):
    # A repeated knot is a jump of the spline; its left value holds before it and its right value after it.
    knots, values = torch.tensor(knots, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    x = torch.linspace(-1.0, 2.0, 61, dtype=torch.float64)
    found = interpolate_integral(x, knots, values, integrate_linspline(knots, values))
    torch.testing.assert_close(
        found, torch.tensor([truth(q) for q in x.tolist()], dtype=torch.float64), rtol=0.0, atol=1e-12
    )


def test_spline_gradients():
    knots, values = random_spline((2,), 6, seed=5)
    queries = torch.rand(2, 9, generator=rng(6), dtype=torch.float64) * 1.6 - 0.3
    leaves = (queries.requires_grad_(), knots.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, k, v: interpolate_integral(q, k, v, integrate_linspline(k, v)), leaves)


# --- blurred_resample ---


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("halfwidth", [0.03, 0.003])
def test_blurred_resample_matches_a_discrete_convolution(halfwidth, batch):
    sdist, weights = random_histogram(batch, 9, seed=7)
    queries = (torch.rand(*batch, 20, generator=rng(8), dtype=torch.float64) * 1.2 - 0.1).sort(dim=-1).values
    found = blurred_resample(queries, sdist, weights, halfwidth)
    assert found.shape == (*batch, 19)
    for s, w, q, out in rows(sdist, weights, queries, found):
        x, blurred = dense_blur(torch.from_numpy(s), torch.from_numpy(w), halfwidth)
        truth, _ = np.histogram(x, bins=q, weights=blurred * STEP)
        # Each query falls anywhere in a cell of the grid, and the density there is below 8.
        np.testing.assert_allclose(out, truth, rtol=0.0, atol=8.0 * STEP)


@pytest.mark.parametrize("halfwidth", [0.03, 0.003])
def test_queries_narrower_than_the_blur(halfwidth):
    # All mass in a spike far narrower than the box: the blur is a plateau of 1 / (2 halfwidth).
    sdist = torch.tensor([0.0, 0.5 - 1e-5, 0.5 + 1e-5, 1.0], dtype=torch.float64)
    weights = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    width = 0.1 * halfwidth
    queries = 0.5 - 0.9 * halfwidth + width * torch.arange(19, dtype=torch.float64)
    found = blurred_resample(queries, sdist, weights, halfwidth)
    torch.testing.assert_close(found, torch.full_like(found, width / (2.0 * halfwidth)), rtol=1e-9, atol=0.0)
    beyond = torch.tensor([0.0, 0.5 - 1.01 * halfwidth, 0.5 + 1.01 * halfwidth, 1.0], dtype=torch.float64)
    torch.testing.assert_close(blurred_resample(beyond, sdist, weights, halfwidth), weights, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("halfwidth", [1e-4, 0.003, 0.03, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blur_conserves_mass_when_the_queries_cover_everything(halfwidth, dtype):
    sdist, weights = random_histogram((4,), 32, seed=9, dtype=dtype)
    weights = 0.8 * weights
    inner = torch.rand(4, 20, generator=rng(10), dtype=torch.float64).sort(dim=-1).values.to(dtype)
    ends = torch.full((4, 1), 1.0 + halfwidth, dtype=dtype)
    queries = torch.cat([1.0 - ends - 1e-3, inner, ends + 1e-3], dim=-1)
    found = blurred_resample(queries, sdist, weights, halfwidth)
    # Integrals near 1 are rounded in float64 and divided by 2 halfwidth; clamping at 0 adds up what is lost.
    allowed = 8.0 * torch.finfo(torch.float64).eps / (2.0 * halfwidth) + 8.0 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.sum(dim=-1), weights.sum(dim=-1), rtol=0.0, atol=allowed)
    assert (found >= 0.0).all()


@pytest.mark.parametrize("halfwidth", [1e-3, 1e-4, 1e-5])
def test_a_vanishing_blur_is_plain_resampling(halfwidth):
    sdist, weights = random_histogram((4,), 8, seed=11)
    queries = torch.rand(4, 12, generator=rng(12), dtype=torch.float64).sort(dim=-1).values
    difference = (blurred_resample(queries, sdist, weights, halfwidth) - resample(queries, sdist, weights)).abs().max()
    # A query within halfwidth of a jump of the density, here below 8, moves a quarter of jump * halfwidth.
    assert difference <= 2.0 * 0.25 * 8.0 * halfwidth


def test_blur_is_linear_and_does_not_change_with_a_shift():
    sdist, weights = random_histogram((4,), 8, seed=13)
    other = random_histogram((4,), 8, seed=14)[1]
    queries = torch.rand(4, 12, generator=rng(15), dtype=torch.float64).sort(dim=-1).values
    found = blurred_resample(queries, sdist, weights, 0.03)
    both = blurred_resample(queries, sdist, 2.0 * weights + other, 0.03)
    torch.testing.assert_close(both, 2.0 * found + blurred_resample(queries, sdist, other, 0.03), rtol=1e-9, atol=1e-13)
    shifted = blurred_resample(queries + 3.0, sdist + 3.0, weights, 0.03)
    torch.testing.assert_close(shifted, found, rtol=1e-9, atol=1e-12)


def test_blur_mirrors_with_the_histogram():
    sdist, weights = random_histogram((4,), 8, seed=16)
    queries = torch.rand(4, 12, generator=rng(17), dtype=torch.float64).sort(dim=-1).values
    found = blurred_resample(queries, sdist, weights, 0.05)
    mirrored = blurred_resample((1.0 - queries).flip(-1), (1.0 - sdist).flip(-1), weights.flip(-1), 0.05).flip(-1)
    torch.testing.assert_close(mirrored, found, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("halfwidth", [0.03, 0.003])
def test_blur_in_float32_is_float64s_rounded(halfwidth):
    sdist, weights = random_histogram((300,), 32, seed=18, dtype=torch.float32)
    queries, _ = random_histogram((300,), 64, seed=19, dtype=torch.float32)
    assert sdist.shape[-1] == 33
    truth = blurred_resample(queries.double(), sdist.double(), weights.double(), halfwidth)
    found = blurred_resample(queries, sdist, weights, halfwidth)
    assert found.dtype == torch.float32
    assert (found.double() - truth).abs().max() <= 6e-8


def exact_blur(queries, sdist, weights, halfwidth):
    """Masses between the queries in fractions: an interval's blurred share up to q is a sum of four half squares."""
    q, s, w = ([Fraction(value) for value in tensor.tolist()] for tensor in (queries, sdist, weights))
    r = Fraction(halfwidth)

    def upto(x):
        total = Fraction(0)
        for start, end, mass in zip(s[:-1], s[1:], w, strict=True):
            corners = ((x + r - start, 1), (x + r - end, -1), (x - r - start, -1), (x - r - end, 1))
            total += mass / (end - start) * sum(sign * max(at, Fraction(0)) ** 2 for at, sign in corners) / (4 * r)
        return total

    return torch.tensor([float(upto(b) - upto(a)) for a, b in zip(q[:-1], q[1:], strict=True)], dtype=torch.float64)


def test_a_narrow_blur_in_float32_is_exact_and_costs_a_proposal_that_covers_it_nothing():
    sdist, weights = random_histogram((), 12, seed=23, dtype=torch.float32)
    queries, _ = random_histogram((), 20, seed=24, dtype=torch.float32)
    truth = exact_blur(queries, sdist, weights, 0.003)
    torch.testing.assert_close(blurred_resample(queries, sdist, weights, 0.003).double(), truth, rtol=1e-7, atol=1e-12)
    proposal = truth.float().requires_grad_()
    loss = interlevel(proposal[None], queries[None], weights[None], sdist[None], 0.003, 1e-5).sum()
    (slopes,) = torch.autograd.grad(loss, proposal)
    assert loss == 0.0 and (slopes == 0.0).all()


def test_blur_gradient():
    sdist, weights = random_histogram((2,), 5, seed=20)
    queries = torch.rand(2, 7, generator=rng(21), dtype=torch.float64).sort(dim=-1).values
    leaves = (queries.requires_grad_(), sdist.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, s, w: blurred_resample(q, s, w, 0.07), leaves)


def test_blur_is_finite_with_its_gradient_at_equal_fenceposts_and_zero_weights():
    sdist = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    queries = torch.tensor([-1.0, 0.0, 0.0, 0.5, 1.0, 2.0])
    for weights in (torch.zeros(5), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]), torch.full((5,), 0.2)):
        for halfwidth in (0.03, 1e-6):
            assert_finite(lambda q, s, w, r=halfwidth: blurred_resample(q, s, w, r), queries, sdist, weights)


@pytest.mark.parametrize("halfwidth", [0.0, -0.003, float("nan")])
def test_a_blur_without_width_is_refused(halfwidth):
    sdist, weights = random_histogram((), 4, seed=22)
    with pytest.raises(ValueError, match="halfwidth"):
        blurred_resample(sdist, sdist, weights, halfwidth)
