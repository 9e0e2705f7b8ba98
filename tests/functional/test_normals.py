"""Normals: against surfaces whose normals are known, against finite differences, and at the edges of float32."""

from __future__ import annotations

import math

import pytest
import torch

from zipnerf_ns.functional import contraction, frustum
from zipnerf_ns.functional.hash_grid import hash_encode, make_hash_grid
from zipnerf_ns.functional.normals import density_normals, normal_colors, ray_normals, unit_or_zero


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, 3), dim=-1)


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 300.0])
def test_a_ball_has_radial_normals(sharpness):
    center = torch.tensor([0.3, -0.2, 0.5])
    outward = unit(4, 50)
    points = center + (0.7 + 0.3 * torch.rand(4, 50, 1)) * outward
    log_density = density_normals(lambda x: sharpness * (0.8 - (x - center).norm(dim=-1)), points)
    torch.testing.assert_close(log_density, outward, rtol=0.0, atol=1e-5)
    density = density_normals(lambda x: torch.exp(sharpness * (0.8 - (x - center).norm(dim=-1, keepdim=True))), points)
    # A density itself underflows far outside: no normal there rather than a wrong one.
    there = density.norm(dim=-1) > 0.5
    torch.testing.assert_close(density[there], outward[there], rtol=0.0, atol=1e-4)
    assert there.float().mean() > (0.99 if sharpness < 100.0 else 0.7)


def test_any_increasing_function_of_the_density_has_the_same_normals():
    points = torch.randn(100, 3, dtype=torch.float64)

    def raw(x):
        return torch.sin(3.0 * x).sum(dim=-1) + x[..., 0] * x[..., 1]

    expected = density_normals(raw, points)
    for function in (torch.exp, torch.atan, lambda value: value**3 + value):
        torch.testing.assert_close(density_normals(lambda x, f=function: f(raw(x)), points), expected)


def prefiltered_log_density(rays: int, n: int):
    """A random hash grid read through cones and contraction, as a function of each interval's shift."""
    grid = make_hash_grid(4, 4, 32, 10, 2)
    table = torch.randn(grid.num_entries, 2, dtype=torch.float64)
    mixing = torch.randn(4 * 2, dtype=torch.float64)
    tdist = (0.5 + 3.0 * torch.rand(rays, n + 1, dtype=torch.float64)).sort(dim=-1).values
    origins, directions = torch.randn(rays, 3).double(), unit(rays).double()
    radius = torch.full((rays, 1), 0.01, dtype=torch.float64)
    rotation = torch.zeros(rays, n, dtype=torch.float64)
    points, stds = frustum.multisamples(
        origins, directions, tdist[:, :-1], tdist[:, 1:], radius, rotation, rotation > 0.0
    )

    def function(shift: torch.Tensor) -> torch.Tensor:
        cube, cube_stds = contraction.contract_points(points + shift[..., None, :], stds)
        features, _ = hash_encode(table, cube.reshape(-1, 6, 3), cube_stds.reshape(-1, 6), grid, "multisample")
        return (features.flatten(1) @ mixing).view(rays, n)

    return function


def test_prefiltered_normals_are_those_of_finite_differences():
    """Through multisamples, contraction and prefilter weights."""
    rays, n, step = 7, 5, 1e-6
    function = prefiltered_log_density(rays, n)
    zero = torch.zeros(rays, n, 3, dtype=torch.float64)
    normals = density_normals(function, zero)
    axes = step * torch.eye(3, dtype=torch.float64)
    differences = torch.stack([function(zero + axis) - function(zero - axis) for axis in axes], dim=-1)
    torch.testing.assert_close(normals, -differences / differences.norm(dim=-1, keepdim=True), rtol=0.0, atol=1e-5)


def test_works_without_gradients_and_leaves_nothing_behind():
    parameter = torch.nn.Parameter(torch.tensor(2.0))
    points = torch.randn(5, 3)
    with torch.no_grad():
        normals = density_normals(lambda x: -parameter * x[..., 2], points)
        assert not torch.is_grad_enabled()
    assert torch.equal(normals, torch.tensor([0.0, 0.0, 1.0]).expand(5, 3))
    assert not normals.requires_grad and parameter.grad is None and not points.requires_grad


def test_a_loss_reaches_the_parameters_only_when_asked():
    angle = torch.nn.Parameter(torch.tensor(0.3))
    points = torch.randn(5, 3)

    def plane(x):
        return -(torch.cos(angle) * x[..., 0] + torch.sin(angle) * x[..., 1])

    normals = density_normals(plane, points, create_graph=True)
    (gradient,) = torch.autograd.grad(normals[:, 1].sum(), angle)
    assert float(gradient) == pytest.approx(5.0 * math.cos(0.3), rel=1e-5)
    assert not density_normals(plane, points).requires_grad


@pytest.mark.parametrize("scale", [1e-19, 1e-10, 1.0, 1e18, 1e37])
def test_unit_over_float32s_range(scale):
    directions = unit(40)
    vectors = (directions * scale).requires_grad_()
    torch.testing.assert_close(unit_or_zero(vectors), directions, rtol=0.0, atol=1e-6)
    gradient = torch.autograd.grad(unit_or_zero(vectors)[:, 0].sum(), vectors)[0]
    assert torch.isfinite(gradient).all()


def test_no_direction_is_zero():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [math.nan, 1.0, 0.0], [math.inf, 0.0, 0.0], [0.0, 1e-30, 0.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(unit_or_zero(vectors), expected)
    assert torch.equal(normal_colors(unit_or_zero(vectors))[0], torch.full((3,), 0.5))


def test_rays_sum_by_weight_as_nerfstudio_does():
    from nerfstudio.model_components.renderers import NormalsRenderer
    from nerfstudio.model_components.shaders import NormalsShader

    normals, weights = unit(6, 9), torch.rand(6, 9)
    theirs = NormalsRenderer.forward(normals=normals, weights=weights[..., None])
    mine = ray_normals(weights, normals)
    torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(normal_colors(mine), NormalsShader.forward(theirs), rtol=0.0, atol=1e-6)
    assert normal_colors(mine).min() >= 0.0 and normal_colors(mine).max() <= 1.0
    # Weights of any total: only their ratios count.
    torch.testing.assert_close(ray_normals(1e-6 * weights, normals), mine, rtol=0.0, atol=1e-6)
    assert torch.equal(ray_normals(torch.zeros(6, 9), normals), torch.zeros(6, 3))


def test_empty_inputs():
    assert density_normals(lambda x: x.sum(dim=-1), torch.zeros(0, 3)).shape == (0, 3)
    assert ray_normals(torch.zeros(0, 4), torch.zeros(0, 4, 3)).shape == (0, 3)
