"""The contraction against its textbook formula, and what it does to Gaussians against autograd's Jacobian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _truth import assert_finite, rng, unit_vectors
from torch import Tensor
from torch.func import jacrev, vmap

from zipnerf_ns.functional.contraction import (
    box_cone_gaussians,
    box_points,
    contract,
    contract_cone_gaussians,
    contract_points,
)

BATCHES = [(), (2,), (1, 2)]
EXTREMES = [0.0, 1e-30, 1.0, 1e6, 1e19, 1e30]


def textbook(x: Tensor) -> Tensor:
    """mip-NeRF 360, eq. 10, of one point."""
    norm = torch.linalg.vector_norm(x)
    return torch.where(norm <= 1.0, x, (2.0 - 1.0 / norm) * (x / norm))


def to_cube(x: Tensor) -> Tensor:
    """The unit cube of one point, by the textbook."""
    return (textbook(x) + 2.0) / 4.0


def random_points(num: int, seed: int) -> Tensor:
    """Points at radii from 1e-2 to 1e4, none within rounding of the unit sphere, where J jumps."""
    radii = 10.0 ** (torch.rand(num, 1, generator=rng(seed), dtype=torch.float64) * 6.0 - 2.0)
    assert ((radii - 1.0).abs() > 1e-6).all()
    return radii * unit_vectors((num,), seed=seed + 1)


def cone_covariance(direction: Tensor, t_var: Tensor, r_var: Tensor) -> Tensor:
    """t_var d d^T + r_var (1 - d d^T), [n, 3, 3]."""
    along = direction[:, :, None] * direction[:, None, :]
    return t_var[:, None, None] * along + r_var[:, None, None] * (torch.eye(3, dtype=direction.dtype) - along)


def extreme_points(dtype=torch.float32) -> Tensor:
    """Every extreme radius along an axis, a face's and the cube's diagonal, and a skew direction."""
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 1.0], [1.0, 1.0, -1.0], [1e-3, 1.0, -20.0]], dtype=dtype)
    directions = directions / directions.norm(dim=-1, keepdim=True)
    return torch.tensor(EXTREMES, dtype=dtype)[:, None, None] * directions


# --- contract ---


@pytest.mark.parametrize("dtype,atol", [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_contract_matches_the_textbook(dtype, atol):
    x = random_points(500, seed=0).to(dtype)
    contracted, radius = contract(x)
    truth = torch.stack([textbook(point) for point in x.double()])
    torch.testing.assert_close(contracted.double(), truth, rtol=0.0, atol=atol)
    torch.testing.assert_close(radius, x.norm(dim=-1, keepdim=True).clamp_min(1.0))


@pytest.mark.parametrize("batch", BATCHES)
def test_contraction_takes_any_batch(batch):
    x = 5.0 * torch.randn(*batch, 4, 3, generator=rng(2), dtype=torch.float64)
    std = torch.rand(*batch, 4, generator=rng(3), dtype=torch.float64)
    cube, scaled = contract_points(x, std)
    for index in np.ndindex(*batch, 4):
        torch.testing.assert_close(cube[index], to_cube(x[index]))
        torch.testing.assert_close(scaled[index], contract_points(x[index], std[index])[1])


def test_contraction_is_the_identity_inside_the_ball_and_stays_in_radius_two():
    inside = 0.999 * torch.rand(200, 1, generator=rng(4)) * unit_vectors((200,), seed=5, dtype=torch.float32)
    torch.testing.assert_close(contract(inside)[0], inside, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(contract_points(inside, torch.ones(200))[1], torch.full((200,), 0.25))
    contracted = contract(extreme_points())[0]
    assert (contracted.norm(dim=-1) <= 2.0 + 1e-6).all()


def test_contraction_keeps_the_direction_and_the_order_of_radii():
    direction = unit_vectors((), seed=6)
    radii = torch.logspace(-3, 6, 300, dtype=torch.float64)
    contracted = contract(radii[:, None] * direction)[0]
    along = contracted @ direction
    torch.testing.assert_close(contracted, along[:, None] * direction, rtol=0.0, atol=1e-14)
    assert (along.diff() > 0.0).all()


@pytest.mark.parametrize("dtype,gap", [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_contraction_is_continuous_at_the_unit_sphere(dtype, gap):
    shell = unit_vectors((100,), seed=7, dtype=dtype)
    direction, one = unit_vectors((100,), seed=8, dtype=dtype), torch.ones(100, dtype=dtype)
    inside, outside = (1.0 - gap) * shell, (1.0 + gap) * shell
    for function, rest in ((contract_points, (one,)), (contract_cone_gaussians, (direction, one, one))):
        for below, above in zip(function(inside, *rest), function(outside, *rest), strict=True):
            # A map with slopes below 1/4 in position and of order 1 in scale crosses a gap of 2 * gap.
            torch.testing.assert_close(below, above, rtol=0.0, atol=3.0 * gap)


# --- contract_points ---


def test_std_scales_with_the_cube_root_of_the_jacobians_determinant():
    x = random_points(60, seed=9)
    std = torch.rand(60, generator=rng(10), dtype=torch.float64)
    cube, scaled = contract_points(x, std)
    torch.testing.assert_close(cube, torch.stack([to_cube(point) for point in x]), rtol=0.0, atol=1e-14)
    own = vmap(jacrev(lambda point: contract_points(point, std[0])[0]))(x)
    truth = vmap(jacrev(to_cube))(x)
    torch.testing.assert_close(own, truth, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(scaled, std * torch.linalg.det(truth).abs() ** (1.0 / 3.0), rtol=1e-9, atol=0.0)


def test_std_scales_linearly():
    x = random_points(30, seed=11)
    once, twice = (contract_points(x, torch.full((30,), s, dtype=torch.float64))[1] for s in (0.3, 0.6))
    torch.testing.assert_close(twice, 2.0 * once, rtol=1e-14, atol=0.0)


# --- contract_cone_gaussians ---


def test_cone_gaussians_trace_is_that_of_the_transported_covariance():
    mean, direction = random_points(60, seed=12), unit_vectors((60,), seed=14)
    t_var, r_var = torch.rand(2, 60, generator=rng(15), dtype=torch.float64)
    t_var[:5], r_var[5:10] = 0.0, 0.0
    cube, scale = contract_cone_gaussians(mean, direction, t_var, r_var)
    jacobian = vmap(jacrev(to_cube))(mean)
    moved = jacobian @ cone_covariance(direction, t_var, r_var) @ jacobian.mT
    torch.testing.assert_close(cube, torch.stack([to_cube(point) for point in mean]), rtol=0.0, atol=1e-14)
    torch.testing.assert_close(scale.square(), moved.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-9, atol=0.0)


def test_a_round_gaussian_does_not_depend_on_the_rays_direction():
    mean = random_points(40, seed=16)
    var = torch.rand(40, generator=rng(17), dtype=torch.float64)
    scales = [contract_cone_gaussians(mean, unit_vectors((40,), seed=s), var, var)[1] for s in (18, 19)]
    torch.testing.assert_close(scales[0], scales[1], rtol=1e-10, atol=0.0)


def test_cone_gaussians_do_not_change_with_a_rotation_of_the_world():
    mean, direction = random_points(40, seed=20), unit_vectors((40,), seed=22)
    t_var, r_var = torch.rand(2, 40, generator=rng(23), dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=rng(24), dtype=torch.float64)).Q
    cube, scale = contract_cone_gaussians(mean, direction, t_var, r_var)
    turned, same = contract_cone_gaussians(mean @ turn.t(), direction @ turn.t(), t_var, r_var)
    torch.testing.assert_close(same, scale, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(turned - 0.5, (cube - 0.5) @ turn.t(), rtol=0.0, atol=1e-14)


def test_cone_gaussians_in_float32_are_those_of_float64():
    mean, direction = random_points(300, seed=25).float(), unit_vectors((300,), seed=27, dtype=torch.float32)
    t_var, r_var = torch.rand(2, 300, generator=rng(28))
    found = contract_cone_gaussians(mean, direction, t_var, r_var)
    truth = contract_cone_gaussians(*(v.double() for v in (mean, direction, t_var, r_var)))
    torch.testing.assert_close(found[0].double(), truth[0], rtol=0.0, atol=2e-7)
    # A ray along the radius cancels b^2 (1 - c^2): 1e-7 of b^2 is left where a^2, 1/r^2 of it, was wanted.
    torch.testing.assert_close(found[1].double(), truth[1], rtol=2e-6, atol=1e-7 * 0.25)


# --- extremes ---


def test_contraction_lands_in_the_unit_cube_at_any_distance():
    x = extreme_points()
    cube, std = contract_points(x, torch.ones(x.shape[:-1]))
    assert (cube >= 0.0).all() and (cube <= 1.0).all() and (std >= 0.0).all()
    far = x[EXTREMES.index(1e19) :]
    direction = far / far.abs().amax(dim=-1, keepdim=True)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    truth = (0.5 + 0.5 * direction).clamp(0.0, 1.0)
    torch.testing.assert_close(cube[EXTREMES.index(1e19) :], truth, rtol=0.0, atol=2e-7)


@pytest.mark.parametrize("variance", [0.0, 1e-30, 1.0, 1e12])
def test_contraction_is_finite_with_its_gradient_at_any_distance(variance):
    x = extreme_points()
    direction = unit_vectors(x.shape[:-1], seed=29, dtype=torch.float32)
    spread = torch.full(x.shape[:-1], variance)
    assert_finite(contract, x)
    assert_finite(contract_points, x, spread)
    assert_finite(contract_cone_gaussians, x, direction, spread, spread)
    box = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 3.0, 0.5]])
    assert_finite(lambda *v: box_points(*v, box), x, spread)
    assert_finite(lambda *v: box_cone_gaussians(*v, box), x, direction, spread, spread)


def test_contraction_gradients():
    x, direction = random_points(12, seed=30).clamp(-30.0, 30.0), unit_vectors((12,), seed=32)
    std, t_var, r_var = torch.rand(3, 12, generator=rng(33), dtype=torch.float64) + 0.1
    leaves = [v.requires_grad_() for v in (x, direction, std, t_var, r_var)]
    assert torch.autograd.gradcheck(contract_points, (leaves[0], leaves[2]))
    assert torch.autograd.gradcheck(contract_cone_gaussians, (*leaves[:2], *leaves[3:]))


# --- boxes ---


@pytest.fixture
def box() -> Tensor:
    """A box of three different sides, away from the origin."""
    return torch.tensor([[-1.0, 2.0, 0.5], [3.0, 2.5, 10.5]], dtype=torch.float64)


@pytest.mark.parametrize("batch", BATCHES)
def test_box_points_are_an_explicit_linear_map(box, batch):
    x = 5.0 * torch.randn(*batch, 6, 3, generator=rng(34), dtype=torch.float64)
    std = torch.rand(*batch, 6, generator=rng(35), dtype=torch.float64)
    cube, scaled = box_points(x, std, box)
    linear = torch.diag(torch.tensor([1 / 4.0, 1 / 0.5, 1 / 10.0], dtype=torch.float64))
    torch.testing.assert_close(cube, (x - box[0]) @ linear, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaled, std * torch.linalg.det(linear) ** (1.0 / 3.0), rtol=1e-12, atol=0.0)
    corners, _ = box_points(box, torch.ones(2).double(), box)
    torch.testing.assert_close(corners, torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64))


@pytest.mark.parametrize("batch", BATCHES)
def test_box_cone_gaussians_transport_the_covariance(box, batch):
    mean = torch.randn(*batch, 6, 3, generator=rng(36), dtype=torch.float64)
    direction = unit_vectors((*batch, 6), seed=37)
    t_var, r_var = torch.rand(2, *batch, 6, generator=rng(38), dtype=torch.float64)
    cube, scale = box_cone_gaussians(mean, direction, t_var, r_var, box)
    linear = torch.diag(torch.tensor([1 / 4.0, 1 / 0.5, 1 / 10.0], dtype=torch.float64))
    moved = linear @ cone_covariance(direction.reshape(-1, 3), t_var.flatten(), r_var.flatten()) @ linear
    torch.testing.assert_close(cube, (mean - box[0]) @ linear, rtol=1e-12, atol=1e-12)
    trace = moved.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(scale.flatten().square(), trace, rtol=1e-11, atol=0.0)


def test_a_cubic_box_agrees_with_the_contraction_inside_the_ball():
    box = torch.tensor([[-2.0] * 3, [2.0] * 3], dtype=torch.float64)
    x, direction = 0.5 * unit_vectors((20,), seed=39), unit_vectors((20,), seed=40)
    t_var, r_var = torch.rand(2, 20, generator=rng(41), dtype=torch.float64)
    for ours, theirs in zip(box_points(x, t_var, box), contract_points(x, t_var), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)
    gaussians = (x, direction, t_var, r_var)
    for ours, theirs in zip(box_cone_gaussians(*gaussians, box), contract_cone_gaussians(*gaussians), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)


def test_box_gradients(box):
    x, direction = torch.randn(8, 3, generator=rng(42), dtype=torch.float64), unit_vectors((8,), seed=43)
    t_var, r_var = torch.rand(2, 8, generator=rng(44), dtype=torch.float64) + 0.1
    leaves = [v.requires_grad_() for v in (x, direction, t_var, r_var)]
    assert torch.autograd.gradcheck(lambda *v: box_cone_gaussians(*v, box), leaves)
    assert torch.autograd.gradcheck(lambda *v: box_points(*v, box), (leaves[0], leaves[2]))
