"""Gradients near the camera: the same per volume at every distance, values untouched."""

from __future__ import annotations

import pytest
import torch
from _truth import rng

from zipnerf_ns.functional.gradient_scaling import near_camera_scaling, scale_gradient


def cut(seed: int, num: int, near: float, far: float) -> torch.Tensor:
    """Fenceposts of a ray, cut at random from near to far."""
    inner = near + (far - near) * torch.rand(num - 1, generator=rng(seed), dtype=torch.float64)
    return torch.cat([torch.tensor([near, far], dtype=torch.float64), inner]).sort().values


@pytest.mark.parametrize("full_distance", [1.0, 2.5])
@pytest.mark.parametrize("near,far", [(0.0, 1.0), (0.05, 0.4), (0.5, 0.999)])
def test_gradients_are_equal_per_volume_however_the_ray_is_cut(near, far, full_distance):
    """Rays of a solid angle w cross a volume w (b^3 - a^3) / 3: so much gradient they must leave in it."""
    near, far = near * full_distance, far * full_distance
    volume = (far**3 - near**3) / 3.0 / full_distance**2
    for seed, num in enumerate((1, 7, 64)):
        tdist = cut(seed, num, near, far)
        total = (near_camera_scaling(tdist[:-1], tdist[1:], full_distance) * tdist.diff()).sum()
        torch.testing.assert_close(total, torch.tensor(volume, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_scaling_matches_the_mean_square_of_many_points():
    tdist = cut(3, 12, 0.1, 2.0)
    share = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    points = tdist[:-1, None] + tdist.diff()[:, None] * share
    truth = points.square().mean(dim=-1).clamp(max=1.0)
    # The midpoint rule's own error, (width / points)^2 / 12, is below 1e-9.
    torch.testing.assert_close(near_camera_scaling(tdist[:-1], tdist[1:]), truth, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("distance,expected", [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0), (7.0, 1.0), (1e30, 1.0)])
def test_empty_intervals_are_points(distance, expected):
    """At the camera, within the reach, at its end, beyond, and where squares overflow."""
    t = torch.tensor([[distance]])
    torch.testing.assert_close(near_camera_scaling(t, t), torch.tensor([[expected]]))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_stay_and_gradients_are_scaled(batch, dtype):
    values = torch.randn(*batch, 4, generator=rng(0)).to(dtype).requires_grad_()
    scaling = torch.rand(batch, generator=rng(1))
    cotangent = torch.randn(*batch, 4, generator=rng(2)).to(dtype)
    scaled = scale_gradient(values, scaling)
    assert torch.equal(scaled, values)
    scaled.backward(cotangent)
    assert values.grad.dtype == dtype
    assert torch.equal(values.grad, cotangent * scaling[..., None].to(dtype))


def test_scaling_takes_no_gradient():
    values, distance = torch.randn(3, 2, requires_grad=True), torch.rand(3, requires_grad=True)
    scale_gradient(values, near_camera_scaling(distance[None], distance[None])[0]).sum().backward()
    assert distance.grad is None and values.grad is not None


def test_gradcheck_of_a_loss_through_it():
    """The gradient of what the loss sees, times the factor: against finite differences of the unscaled loss."""
    scaling = torch.rand(4, generator=rng(5), dtype=torch.float64)
    values = torch.randn(4, 3, generator=rng(6), dtype=torch.float64, requires_grad=True)
    scale_gradient(values, scaling).pow(3).sum().backward()
    step = 1e-6 * torch.eye(12, dtype=torch.float64).reshape(12, 4, 3)
    difference = ((values + step).pow(3).sum((1, 2)) - (values - step).pow(3).sum((1, 2))) / 2e-6
    torch.testing.assert_close(values.grad, difference.reshape(4, 3) * scaling[:, None], rtol=1e-7, atol=1e-8)
