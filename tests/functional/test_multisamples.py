"""Six points per frustum against the cone's own moments, and against the paper's distances and angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _truth import CONE_RADII, assert_finite, cone, random_intervals, rng, textbook_moments, unit_vectors

from zipnerf_ns.functional.frustum import (
    gaussian_moments,
    multisample_distances,
    multisamples,
    orthonormal_basis,
)

BATCHES = [(), (2,), (1, 2)]


def random_pattern(shape, seed):
    """A random rotation and reversal of each interval."""
    generator = rng(seed)
    rotation = 2.0 * math.pi * torch.rand(*shape, generator=generator, dtype=torch.float64)
    return rotation, torch.rand(*shape, generator=generator) < 0.5


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("radius", CONE_RADII)
def test_multisamples_carry_the_cones_mean_and_variances(radius, reverse):
    starts, ends = random_intervals((20,), 10, seed=9)
    starts[:, 0] = 0.0
    directions = unit_vectors((20,), seed=10)
    rotation, _ = random_pattern((20, 10), seed=11)
    points, _ = multisamples(
        torch.zeros(20, 3).double(),
        directions,
        starts,
        ends,
        cone(radius, (20,)),
        rotation,
        torch.full((20, 10), reverse),
    )
    t_mean, t_var, r_var = textbook_moments(starts, ends, radius)
    trace = t_var + 2.0 * r_var

    mean = points.mean(dim=-2)
    truth = t_mean[..., None] * directions[:, None]
    # Exactly, up to float64's rounding of points that lie far from the origin compared with their spread.
    torch.testing.assert_close(mean / ends[..., None], truth / ends[..., None], rtol=0.0, atol=1e-14)
    spread = points - mean[..., None, :]
    along = torch.einsum("rnji,ri->rnj", spread, directions)
    across = spread - along[..., None] * directions[:, None, None]
    torch.testing.assert_close(along.square().mean(dim=-1), t_var, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(across.square().sum(dim=-1).mean(dim=-1) / 2.0, r_var, rtol=1e-9, atol=0.0)

    cross = (along[..., None] * across).mean(dim=-2)
    # Six points cannot match this: it grows with the cone: 0.42 r of the trace, 0.4% at r = 0.0095,
    # the pixel of a camera whose focal length is 60 pixels.
    assert (cross.norm(dim=-1) <= 0.42 * radius * trace + 1e-12 * trace).all()
    if radius <= 0.0095:
        assert (cross.norm(dim=-1) <= 0.004 * trace).all()


def test_multisample_distances_are_the_papers():
    starts, ends = random_intervals((3,), 20, seed=12)
    m, d = (starts + ends) / 2.0, (ends - starts) / 2.0
    root = ((d**2 - m**2) ** 2 + 4.0 * m**4).sqrt()
    truth = [
        starts + d / (d**2 + 3 * m**2) * (ends**2 + 2 * m**2 + 3 / math.sqrt(7) * (2 * j / 5 - 1) * root)
        for j in range(6)
    ]
    found = multisample_distances(starts, ends)
    torch.testing.assert_close(found, torch.stack(truth, dim=-1), rtol=1e-12, atol=0.0)
    assert (found.diff(dim=-1) > 0.0).all()


@pytest.mark.parametrize("batch", BATCHES)
def test_multisamples_lie_on_the_cone_at_their_distances_and_angles(batch):
    starts, ends = random_intervals(batch, 7, seed=13)
    origins, directions = (
        torch.randn(*batch, 3, generator=rng(14), dtype=torch.float64),
        unit_vectors(batch, seed=15),
    )
    rotation, reverse = random_pattern((*batch, 7), seed=16)
    radius = 0.02
    points, stds = multisamples(origins, directions, starts, ends, cone(radius, batch), rotation, reverse)
    assert points.shape == (*batch, 7, 6, 3) and stds.shape == (*batch, 7, 6)
    across_u, across_v = orthonormal_basis(directions)
    for ray in np.ndindex(*batch):
        for k in range(7):
            t = multisample_distances(starts[ray][k], ends[ray][k])
            turns = [0, 2, 4, 3, 5, 1][:: -1 if reverse[ray][k] else 1]
            for j in range(6):
                angle = turns[j] * math.pi / 3.0 + rotation[ray][k]
                off = radius * t[j] / math.sqrt(2.0)
                ring = off * (torch.cos(angle) * across_u[ray] + torch.sin(angle) * across_v[ray])
                truth = origins[ray] + t[j] * directions[ray] + ring
                torch.testing.assert_close(points[ray][k, j], truth, rtol=1e-12, atol=1e-12)
                assert stds[ray][k, j].item() == pytest.approx(0.5 * off.item(), rel=1e-12)


def test_rotation_turns_the_pattern_about_the_ray():
    starts, ends = random_intervals((), 9, seed=17)
    direction, angle = unit_vectors((), seed=18), 0.7
    pattern = (starts, ends, cone(0.1))
    unturned = torch.zeros(9, dtype=torch.float64)
    keep = torch.zeros(9, dtype=torch.bool)
    at_rest, _ = multisamples(torch.zeros(3).double(), direction, *pattern, unturned, keep)
    turned, _ = multisamples(torch.zeros(3).double(), direction, *pattern, unturned + angle, keep)
    # Rodrigues' formula; the sign of the turn is right-handed about the direction.
    k = torch.linalg.cross(direction.expand_as(at_rest), at_rest)
    on_axis = (at_rest @ direction)[..., None] * direction
    truth = math.cos(angle) * (at_rest - on_axis) + math.sin(angle) * k + on_axis
    torch.testing.assert_close(turned, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multisamples_scale_with_distance(dtype):
    starts, ends = random_intervals((4,), 6, seed=19, dtype=dtype)
    directions = unit_vectors((4,), seed=20, dtype=dtype)
    rotation, reverse = random_pattern((4, 6), seed=21)
    rest = (cone(1e-3, (4,), dtype), rotation.to(dtype), reverse)
    points, stds = multisamples(torch.zeros(4, 3, dtype=dtype), directions, starts, ends, *rest)
    for a in (2.0**-20, 4096.0):  # powers of two, so that not even rounding may differ
        more, larger = multisamples(torch.zeros(4, 3, dtype=dtype), directions, a * starts, a * ends, *rest)
        assert torch.equal(more, a * points) and torch.equal(larger, a * stds)


@pytest.mark.parametrize("far", [1.0, 1e6, 1e10])
def test_multisample_distances_in_float32_are_those_of_float64(far):
    starts, ends = (v * (far / 1e3) for v in random_intervals((), 300, seed=22, dtype=torch.float32))
    truth = multisample_distances(starts.double(), ends.double())
    torch.testing.assert_close(multisample_distances(starts, ends).double(), truth, rtol=5e-7, atol=0.0)


def test_multisamples_of_intervals_without_length_are_a_ring():
    t = torch.tensor([0.0, 1e-3, 1.0, 1e6])
    assert torch.equal(multisample_distances(t, t), t[:, None].expand(4, 6))
    direction = torch.tensor([0.0, 0.6, 0.8])
    points, stds = multisamples(
        torch.zeros(3),
        direction,
        t,
        t,
        cone(0.01, dtype=torch.float32),
        torch.zeros(4),
        torch.zeros(4, dtype=torch.bool),
    )
    ring = 0.01 * t / math.sqrt(2.0)
    torch.testing.assert_close(stds, 0.5 * ring[:, None].expand(4, 6), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(
        (points - t[:, None, None] * direction).norm(dim=-1),
        ring[:, None].expand(4, 6),
        # points at 1e6 are rounded to 0.06 themselves: 6e-8 / 0.007 of the ring, per axis
        rtol=3e-5,
        atol=0.0,
    )


def test_multisample_gradients():
    starts, ends = random_intervals((2,), 3, seed=23)
    starts, ends = starts.clamp(0.1, 3.0), ends.clamp(0.1, 3.0) + 0.2
    rotation, reverse = random_pattern((2, 3), seed=24)
    leaves = [
        torch.randn(2, 3, generator=rng(25), dtype=torch.float64),
        unit_vectors((2,), seed=26),
        starts,
        ends,
    ]
    leaves = [leaf.requires_grad_() for leaf in (*leaves, cone(0.05, (2,)))]
    assert torch.autograd.gradcheck(lambda *v: multisamples(*v, rotation, reverse), leaves)


def test_cones_are_finite_with_their_gradients_at_the_extremes():
    starts = torch.tensor([0.0, 0.0, 0.0, 1e-30, 1.0, 0.0, 1e6, 1e6, 1e10])
    ends = torch.tensor([0.0, 1e-38, 1e-30, 1e-30, 1.0, 1e6, 1e6, 1e10, 1e10])
    directions = torch.tensor([0.0, 0.0, -1.0])
    rotation, reverse = torch.zeros(9), torch.zeros(9, dtype=torch.bool)
    for radius in (0.0, 1e-3, 0.6):
        width = cone(radius, dtype=torch.float32)
        assert_finite(gaussian_moments, starts, ends, width)
        assert_finite(multisample_distances, starts, ends)
        assert_finite(lambda *v: multisamples(*v, rotation, reverse), torch.zeros(3), directions, starts, ends, width)
