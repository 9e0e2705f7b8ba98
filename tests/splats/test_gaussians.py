"""Gaussians moved between frames, against rotation matrices, scipy's quaternions and gsplat's spherical harmonics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gsplat.cuda._torch_impl import _quat_scale_to_covar_preci, _spherical_harmonics
from scipy.spatial.transform import Rotation

from zipnerf_ns.functional.similarity import Similarity
from zipnerf_ns.splats.gaussians import Gaussians, multiply, rotate_sh, rotation_to_quaternion


def some_gaussians(count: int = 40, degree: int = 3, seed: int = 0) -> Gaussians:
    """Random Gaussians of all shapes within a few units."""
    generator = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    return Gaussians(
        torch.randn(count, 3, generator=generator),
        quats,
        torch.randn(count, 3, generator=generator) - 2.0,
        torch.randn(count, generator=generator),
        torch.randn(count, (degree + 1) ** 2, 3, generator=generator) * 0.3,
        antialiased=True,
    )


def test_quaternions_are_scipys():
    """Rotations by every angle, half turns among them, and their products."""
    turns = Rotation.concatenate(
        [Rotation.random(50, random_state=0), Rotation.identity(1), Rotation.from_rotvec(np.pi * np.eye(3))]
    )
    for turn in turns:
        found = rotation_to_quaternion(torch.tensor(turn.as_matrix()))
        expected = torch.tensor(turn.as_quat(scalar_first=True))
        assert abs(float(found @ expected)) == pytest.approx(1.0, abs=1e-12) and found[0] >= 0.0
    first, second = Rotation.random(20, random_state=1), Rotation.random(20, random_state=2)
    found = multiply(*(torch.tensor(turn.as_quat(scalar_first=True)) for turn in (first, second)))
    expected = torch.tensor((first * second).as_quat(scalar_first=True))
    torch.testing.assert_close((found * expected).sum(dim=-1).abs(), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("degree", range(5))
def test_colors_turn_with_the_scene(degree: int):
    """gsplat's colors of turned coefficients in turned directions are those from before."""
    rotation = torch.tensor(Rotation.random(random_state=degree).as_matrix()).float()
    sh = some_gaussians(degree=degree).sh
    directions = torch.randn(len(sh), 3)
    before = _spherical_harmonics(degree, directions, sh)
    after = _spherical_harmonics(degree, directions @ rotation.T, rotate_sh(sh, rotation))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0.0)


def test_moved_gaussians_are_moved_densities():
    """Means and covariances follow the similarity, in gsplat's reading of scales and quaternions; and back again."""
    gaussians = some_gaussians()
    rotation = torch.tensor(Rotation.random(random_state=3).as_matrix()).float()
    scale, shift = torch.tensor(2.5), torch.tensor([1.0, -2.0, 3.0])
    moved = gaussians.moved(Similarity(scale, rotation, shift))
    torch.testing.assert_close(moved.means, scale * (gaussians.means @ rotation.T) + shift)
    before, after = (
        _quat_scale_to_covar_preci(each.quats, each.scales.exp(), compute_preci=False)[0] for each in (gaussians, moved)
    )
    torch.testing.assert_close(after, scale**2 * rotation @ before @ rotation.T, atol=1e-5, rtol=1e-4)
    back = moved.moved(Similarity(1.0 / scale, rotation.T, -(rotation.T @ shift) / scale))
    torch.testing.assert_close(back.means, gaussians.means, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(back.sh, gaussians.sh, atol=1e-5, rtol=0.0)


def test_selection_and_checks():
    """Masks and indices choose in all columns, what is not finite is found, and odd numbers of coefficients refused."""
    gaussians = some_gaussians(6, degree=2)
    assert (len(gaussians), gaussians.degree) == (6, 2)
    chosen = gaussians.select(torch.tensor([4, 1]))
    assert torch.equal(chosen.sh, gaussians.sh[[4, 1]]) and torch.equal(chosen.opacities, gaussians.opacities[[4, 1]])
    broken = dataclasses.replace(gaussians, quats=gaussians.quats.clone(), sh=gaussians.sh.clone())
    broken.quats[0] = 0.0
    broken.sh[2, 3, 1] = torch.nan
    assert broken.finite().tolist() == [False, True, False, True, True, True]
    with pytest.raises(ValueError, match="5 coefficients"):
        dataclasses.replace(gaussians, sh=gaussians.sh[:, :5])
