"""The cone's moments against samples inside the frustum, and six points against the cone's moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _truth import CONE_RADII, cone, gradients, random_intervals, rng, textbook_moments, unit_vectors
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.functional.frustum import (
    cone_gaussians,
    cone_radius,
    gaussian_moments,
    multisample_turns,
    orthonormal_basis,
)

BATCHES = [(), (2,), (1, 2)]


def quadrature_moments(starts: Tensor, ends: Tensor, radius: float):
    """Mean, variance along and variance across of points spread evenly in the frustum, by Gauss-Legendre.

    A slice at t holds mass proportional to its area, t^2, and a disc of radius r t varies by (r t)^2 / 4 on
    each axis. Eight nodes integrate these polynomials exactly.
    """
    nodes, node_weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(8))
    t = 0.5 * (starts + ends)[..., None] + 0.5 * (ends - starts)[..., None] * nodes
    mass = node_weights * t.square()
    mass = mass / mass.sum(dim=-1, keepdim=True)
    mean = (mass * t).sum(dim=-1)
    variance = (mass * (t - mean[..., None]).square()).sum(dim=-1)
    return mean, variance, (mass * (radius * t).square()).sum(dim=-1) / 4.0


def points_in_cone(direction: Tensor, t0: float, t1: float, radius: float, num: int, seed: int) -> Tensor:
    """Points spread evenly inside a cone frustum with apex 0, by inverting the cumulative mass t^3."""
    u, v, turn = torch.rand(3, num, generator=rng(seed), dtype=torch.float64)
    t = (t0**3 + u * (t1**3 - t0**3)) ** (1.0 / 3.0)
    off_axis, turn = radius * t * v.sqrt(), 2.0 * math.pi * turn
    across = torch.linalg.svd(direction[None]).Vh[1:]
    return t[:, None] * direction + off_axis[:, None] * (
        turn.cos()[:, None] * across[0] + turn.sin()[:, None] * across[1]
    )


# --- cone_radius ---


def test_cone_radius_gives_the_disc_the_variance_of_the_square():
    area = torch.tensor([1e-8, 3e-6, 0.25, 1.0], dtype=torch.float64)
    torch.testing.assert_close(cone_radius(area).square() / 4.0, area / 12.0, rtol=1e-12, atol=0.0)
    assert cone_radius(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_a_pixel_without_area_has_no_slope():
    """As far away from the principal point as float32 tells neighbors apart no more: cameras' poses meet zero there."""
    _, (v_area,) = gradients(cone_radius, [torch.tensor([0.0, 1e-45, 1e-4])], 0)
    assert v_area[:2].tolist() == [0.0, 0.0] and v_area[2] != 0.0


@pytest.mark.parametrize("focal", [50.0, 400.0])
def test_cone_radius_has_the_variance_of_nerfstudios_own_pixel(focal):
    size = 65
    pose = torch.eye(4)[None, :3]
    camera = Cameras(pose, fx=focal, fy=focal, cx=0.5 * size, cy=0.5 * size, width=size, height=size)
    middle = camera.generate_rays(0, coords=torch.full((1, 2), 0.5 * size))
    steps = (torch.arange(50) + 0.5) / 50 - 0.5
    inside = 0.5 * size + torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2)
    directions = camera.generate_rays(0, coords=inside).directions.double()
    # Where directions through the square pixel meet the plane at distance 1 along the pixel's own direction.
    across = directions[:, :2] / -directions[:, 2:]
    radius = cone_radius(middle.pixel_area).double().item()
    # 50 steps a side miss 1/50^2 of the square's variance; at focal 50, normalizing the direction bends 2e-4.
    assert across.var(dim=0, correction=0).tolist() == pytest.approx([radius**2 / 4.0] * 2, rel=1e-3)


# --- gaussian_moments and cone_gaussians ---


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("radius", CONE_RADII)
def test_gaussian_moments_match_exact_quadrature_and_the_textbook(radius, batch):
    starts, ends = random_intervals(batch, 50, seed=0)
    found = gaussian_moments(starts, ends, cone(radius, batch))
    for truth in (quadrature_moments(starts, ends, radius), textbook_moments(starts, ends, radius)):
        for value, expected in zip(found, truth, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("t0,t1,radius", [(0.0, 1.0, 0.3), (0.5, 2.0, 0.1), (3.0, 3.3, 0.02)])
def test_cone_gaussians_match_samples_in_the_cone(t0, t1, radius):
    direction = unit_vectors((), seed=1)
    origin = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    ends = torch.tensor([[t0], [t1]], dtype=torch.float64)
    mean, t_var, r_var = cone_gaussians(origin, direction, ends[0], ends[1], cone(radius))
    samples = origin + points_in_cone(direction, t0, t1, radius, 400_000, seed=2)
    along = direction[:, None] * direction
    covariance = t_var * along + r_var * (torch.eye(3, dtype=torch.float64) - along)
    size = covariance.trace().sqrt()
    # 400,000 samples: standard errors of 1/632 of a deviation and 1/447 of a variance; five of them.
    torch.testing.assert_close(mean[0], samples.mean(dim=0), rtol=0.0, atol=float(5.0 / 632.0 * size))
    torch.testing.assert_close(torch.cov(samples.t()), covariance, rtol=0.0, atol=float(5.0 / 447.0 * size**2))


@pytest.mark.parametrize("batch", BATCHES)
def test_cone_gaussians_lie_on_their_ray(batch):
    starts, ends = random_intervals(batch, 8, seed=3)
    origins, directions = (
        torch.randn(*batch, 3, generator=rng(4), dtype=torch.float64),
        unit_vectors(batch, seed=5),
    )
    mean, t_var, r_var = cone_gaussians(origins, directions, starts, ends, cone(0.01, batch))
    t_mean, *variances = gaussian_moments(starts, ends, cone(0.01, batch))
    assert torch.equal(torch.stack([t_var, r_var]), torch.stack(variances))
    for ray in np.ndindex(*batch):
        for k in range(8):
            torch.testing.assert_close(mean[ray][k], origins[ray] + t_mean[ray][k] * directions[ray])


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9])
def test_gaussian_moments_in_float32_are_those_of_float64(far):
    starts, ends = (v * (far / 1e3) for v in random_intervals((), 200, seed=6, dtype=torch.float32))
    found = gaussian_moments(starts, ends, cone(1e-3, dtype=torch.float32))
    # Thin intervals lose no digits: the difference of two given fenceposts is exact in float32.
    for value, truth in zip(
        found, textbook_moments(starts.double(), ends.double(), float(np.float32(1e-3))), strict=True
    ):
        torch.testing.assert_close(value.double(), truth, rtol=3e-6, atol=0.0)


def test_gaussian_moments_scale_with_distance():
    starts, ends = random_intervals((), 50, seed=7, dtype=torch.float32)
    found = gaussian_moments(starts, ends, cone(1e-3, dtype=torch.float32))
    scaled = gaussian_moments(1024.0 * starts, 1024.0 * ends, cone(1e-3, dtype=torch.float32))
    for value, larger, power in zip(found, scaled, (1, 2, 2), strict=True):
        assert torch.equal(larger, 1024.0**power * value)


def test_gaussian_moments_of_intervals_without_length_are_a_disc():
    t = torch.tensor([0.0, 1e-3, 1.0, 1e6])
    t_mean, t_var, r_var = gaussian_moments(t, t, cone(0.01, dtype=torch.float32))
    assert torch.equal(t_mean, t) and (t_var == 0.0).all()
    torch.testing.assert_close(r_var, (0.01 * t).square() / 4.0, rtol=1e-6, atol=0.0)


def test_gaussian_moments_gradient():
    starts, ends = random_intervals((2,), 4, seed=8)
    starts, ends = starts.clamp(0.1, 3.0), ends.clamp(0.1, 3.0) + 0.2
    leaves = [v.requires_grad_() for v in (starts, ends, cone(0.05, (2,)))]
    assert torch.autograd.gradcheck(gaussian_moments, leaves)


# --- orthonormal_basis ---


@pytest.mark.parametrize("dtype,atol", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_orthonormal_basis_is_orthonormal_and_right_handed(dtype, atol):
    axes = torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])
    tilted = torch.tensor(
        [[1e-4, 0.0, -1.0], [0.0, 1e-7, 1.0], [1e-20, 1e-20, -1.0], [1.0, 0.0, -0.0], [0.6, 0.8, -1e-30]]
    )
    tilted = tilted.double() / tilted.double().norm(dim=-1, keepdim=True)
    directions = torch.cat([axes, tilted, unit_vectors((500,), seed=27)]).to(dtype)
    u, v = orthonormal_basis(directions)
    frame = torch.stack([u, v, directions], dim=-2)
    torch.testing.assert_close(frame @ frame.mT, torch.eye(3, dtype=dtype).expand_as(frame), rtol=0.0, atol=atol)
    torch.testing.assert_close(torch.linalg.cross(u, v), directions, rtol=0.0, atol=atol)


def test_orthonormal_basis_has_a_gradient_at_the_poles():
    for pole in (1.0, -1.0):
        _, (grad,) = gradients(orthonormal_basis, [torch.tensor([[0.0, 0.0, pole]])], seed=28)
        assert torch.isfinite(grad).all() and grad.abs().sum() > 0.0


def test_multisamples_turn_as_in_the_paper():
    assert multisample_turns(torch.device("cpu")).tolist() == [0, 2, 4, 3, 5, 1]
