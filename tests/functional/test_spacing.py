"""The power ladder against its textbook formula, and normalized distance against the ladder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _truth import assert_finite, rng
from torch import Tensor

from zipnerf_ns.functional.spacing import (
    DISTORTION_POWER,
    DISTORTION_PREMULTIPLIER,
    SAMPLING_POWER,
    SAMPLING_PREMULTIPLIER,
    distortion_distance,
    power_ladder,
    s_to_t,
)

POWERS = [-1.5, -0.25, 0.5, 2.0, 3.0]
RANGES = [(0.05, 1e6), (0.2, 1e6), (0.0, 1e6), (0.0, 1e10), (2.0, 6.0), (0.0, 1e-3)]
EPS32 = float(torch.finfo(torch.float32).eps)


def textbook(x: np.ndarray, power: float) -> np.ndarray:
    """Zip-NeRF, section 5, as printed; float64, for x large enough not to cancel."""
    scale = abs(power - 1.0)
    return scale / power * ((np.asarray(x, dtype=np.float64) / scale + 1.0) ** power - 1.0)


def textbook_s(t: Tensor, near: float, far: float) -> Tensor:
    """Normalized distance in float64: the ladder of twice the distance, from 0 at near to 1 at far."""
    g, g_near, g_far = (textbook(2.0 * np.asarray(x, dtype=np.float64), SAMPLING_POWER) for x in (t, near, far))
    return torch.from_numpy((g - g_near) / (g_far - g_near))


def ends(near: float, far: float, batch=(), dtype=torch.float64):
    """near and far as the functions take them, [*batch, 1]."""
    return torch.full((*batch, 1), near, dtype=dtype), torch.full((*batch, 1), far, dtype=dtype)


def relative_u(t: Tensor, near: float) -> Tensor:
    """(2t/2.5 + 1)^-1.5 over its value at near: the digits of s that are left to tell distances apart."""
    return ((1.0 + t.double() / 1.25) / (1.0 + near / 1.25)) ** -1.5


def test_constants_are_the_papers():
    assert (SAMPLING_POWER, SAMPLING_PREMULTIPLIER) == (-1.5, 2.0)
    assert (DISTORTION_POWER, DISTORTION_PREMULTIPLIER) == (-0.25, 1e4)


# exp amplifies the rounding of its argument: |p| log(x) = 39 at the largest, times 6e-8 in float32.
@pytest.mark.parametrize("dtype,rtol", [(torch.float64, 1e-9), (torch.float32, 5e-6)])
@pytest.mark.parametrize("power", POWERS)
def test_power_ladder_matches_the_textbook(power, dtype, rtol):
    x = torch.logspace(-4, 6, 300, dtype=torch.float64).to(dtype)
    y = power_ladder(x, power)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), torch.from_numpy(textbook(x.numpy(), power)), rtol=rtol, atol=0.0)


@pytest.mark.parametrize("power", POWERS)
def test_power_ladder_keeps_the_digits_of_small_numbers(power):
    # The series P(x) = x + (p-1)/(2|p-1|) x^2 + ... about zero, where the textbook form has no digits left.
    x = torch.logspace(-12, -5, 50)
    series = x.double() + 0.5 * np.sign(power - 1.0) * x.double().square()
    torch.testing.assert_close(power_ladder(x, power).double(), series, rtol=5e-7, atol=0.0)


@pytest.mark.parametrize("power", POWERS)
def test_power_ladder_starts_at_zero_with_unit_slope_and_increases(power):
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = power_ladder(zero, power)
    assert value == 0.0 and torch.autograd.grad(value, zero)[0] == 1.0
    assert (power_ladder(torch.linspace(0.0, 100.0, 500, dtype=torch.float64), power).diff() > 0.0).all()


@pytest.mark.parametrize("power", POWERS)
def test_power_ladder_gradient(power):
    x = 10.0 ** (torch.rand(20, generator=rng(0), dtype=torch.float64) * 4.0 - 2.0)
    assert torch.autograd.gradcheck(lambda v: power_ladder(v, power), x.requires_grad_())


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_ladder_refuses_the_powers_that_are_limits(power):
    with pytest.raises(ValueError, match="power"):
        power_ladder(torch.ones(2), power)


@pytest.mark.parametrize("near,far", RANGES)
def test_s_is_linear_in_the_ladder_of_twice_the_distance(near, far):
    s = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    t = s_to_t(s, *ends(near, far))
    g_near, g_far = textbook(2.0 * near, -1.5), textbook(2.0 * far, -1.5)
    expected = (1.0 - s) * float(g_near) + s * float(g_far)
    torch.testing.assert_close(torch.from_numpy(textbook(2.0 * t.numpy(), -1.5)), expected, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_distances_are_inverse_in_float64(batch):
    t = torch.logspace(-3, 6, 200, dtype=torch.float64).expand(*batch, 200).contiguous()
    near, far = ends(0.0, 1e6, batch)
    back = s_to_t(textbook_s(t, 0.0, 1e6), near, far)
    # Near s = 1 float64's spacing of s, divided by u(1e6) = 1.4e-9, is the relative error of t.
    torch.testing.assert_close(back, t, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("near", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("far", [1e3, 1e6])
def test_distances_are_inverse_in_float32_up_to_the_spacing_of_s(near, far):
    t = torch.logspace(np.log10(max(near, 1e-3)), 3, 300).clamp(near, far)
    back = s_to_t(textbook_s(t, near, far).float(), *ends(near, far, dtype=torch.float32))
    # s is rounded to 6e-8 of 1, so t cannot be better than that over its own u; 2 roundings each way.
    allowed = 4.0 * EPS32 * (1.25 + t) / relative_u(t, near)
    assert ((back - t).abs() <= allowed).all(), ((back - t).abs() / allowed).max()


@pytest.mark.parametrize("near,far", [r for r in RANGES if r[1] > 1.0])
def test_normalized_distances_are_inverse_in_float32(near, far):
    s = torch.rand(500, generator=rng(1)).sort().values
    back = textbook_s(s_to_t(s, *ends(near, far, dtype=torch.float32)), near, far)
    torch.testing.assert_close(back, s.double(), rtol=0.0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("near,far", RANGES)
def test_s_to_t_increases_and_stays_within_near_and_far(near, far, dtype):
    s = torch.linspace(0.0, 1.0, 2001, dtype=dtype)
    lo, hi = ends(near, far, dtype=dtype)
    t = s_to_t(s, lo, hi)
    assert (t.diff() >= 0.0).all()
    assert (t >= lo).all() and (t <= hi).all()
    torch.testing.assert_close(t[:1], lo, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(t[-1:], hi, rtol=1e-4, atol=0.0)


def test_distances_outside_near_and_far_are_clipped():
    near, far = ends(0.5, 20.0)
    assert s_to_t(torch.tensor([-0.1, 1.1], dtype=torch.float64), near, far).tolist() == [0.5, 20.0]


def test_each_ray_has_its_own_near_and_far():
    s = torch.rand(3, 7, generator=rng(2), dtype=torch.float64)
    near = torch.tensor([[0.0], [0.1], [2.0]], dtype=torch.float64)
    far = torch.tensor([[1e6], [50.0], [3.0]], dtype=torch.float64)
    single = torch.stack([s_to_t(s[i], near[i], far[i]) for i in range(3)])
    assert torch.equal(s_to_t(s, near, far), single)


@pytest.mark.parametrize("far", [1e6, 1e10])
@pytest.mark.parametrize("near", [0.0, 0.05])
def test_distances_are_finite_with_their_gradients_at_the_ends(near, far):
    s = torch.tensor([0.0, 1e-30, 1e-7, 0.5, 1.0 - 6e-8, 1.0])
    assert_finite(s_to_t, s, *ends(near, far, dtype=torch.float32))


@pytest.mark.parametrize("distance", [0.0, 1.0, 1e10])
def test_a_ray_without_length_has_finite_distances(distance):
    near, far = ends(distance, distance, dtype=torch.float32)
    assert s_to_t(torch.tensor([0.0, 0.3, 1.0]), near, far).tolist() == [distance] * 3


def test_distance_gradients():
    s = (torch.rand(9, generator=rng(3), dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    near, far = (end.requires_grad_() for end in ends(0.3, 40.0))
    assert torch.autograd.gradcheck(s_to_t, (s, near, far))


def test_distortion_distance_is_the_ladder_of_ten_thousand_times_the_distance():
    t = torch.logspace(-8, 6, 400)
    truth = torch.from_numpy(textbook(1e4 * t.double().numpy(), -0.25))
    torch.testing.assert_close(distortion_distance(t).double(), truth, rtol=2e-6, atol=0.0)
    assert (distortion_distance(t).diff() > 0.0).all()
    assert distortion_distance(torch.tensor(1e30)) <= 5.0


def test_distortion_distance_is_finite_with_its_gradient():
    assert_finite(distortion_distance, torch.tensor([0.0, 1e-30, 1.0, 1e6, 1e10, 1e30]))
