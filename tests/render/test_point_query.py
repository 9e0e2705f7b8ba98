"""A field at points: the cones that stand for them, and what the field says there."""

from __future__ import annotations

import pytest
import torch

from zipnerf_ns.encoding import FEATURE_INIT, TABLE_GAIN, AntiAliasedHashEncoding, HashGridConfig
from zipnerf_ns.field import ZipNerfField
from zipnerf_ns.functional import contraction, frustum
from zipnerf_ns.functional.cones import Lookup, channels
from zipnerf_ns.functional.hash_grid import hash_encode
from zipnerf_ns.functional.numerics import bounded_exp
from zipnerf_ns.render.points import point_cones, query_density, query_points


def make_field(prefilter: str = "multisample", aabb: torch.Tensor | None = None) -> ZipNerfField:
    encoding = AntiAliasedHashEncoding(HashGridConfig(4, 2, 4, 64, 12), prefilter)
    torch.nn.init.uniform_(encoding.hash_table, -1.0, 1.0)
    return ZipNerfField(encoding, aabb, 16, "float32", 8, 2, 16).eval()


def unit(count: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)


@pytest.mark.parametrize("std", [1e-3, 0.02, 5.0])
def test_cones_have_the_points_as_means_and_are_isotropic(std):
    points, directions = 2.0 * torch.randn(50, 3), unit(50)
    cones = point_cones(points, directions, std)
    mean, t_var, r_var = frustum.cone_gaussians(cones.origins, cones.directions, cones.near, cones.far, cones.radius)
    # A cone is not quite a cylinder: its mean lies std/32 beyond the middle.
    assert (mean[:, 0] - points).norm(dim=-1).max() < 0.05 * std + 1e-5
    torch.testing.assert_close(t_var.sqrt(), torch.full_like(t_var, std), rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(r_var.sqrt(), torch.full_like(r_var, std), rtol=2e-3, atol=1e-6)


def test_fine_extents_give_the_fields_own_density_at_the_point():
    """Against the field's layers applied to the bare position, where no prefiltering is left."""
    field = make_field("none")
    points = 0.7 * torch.randn(200, 3)
    positions, stds = contraction.contract_points(points, torch.full((200,), 1e-5))
    encoding = field.encoding
    per_level, weights = hash_encode(encoding.hash_table, positions[:, None], stds[:, None], encoding.grid, "none")
    scales = torch.sqrt(FEATURE_INIT**2 + TABLE_GAIN**2 * encoding.summary().mean_square)
    features = channels(per_level, weights, scales, Lookup(encoding.grid, "none", TABLE_GAIN))
    raw = field.density_layer(torch.relu(field.hidden_layer(features)))
    # The cone's mean is 1e-7 away, and the finest cells are 1/16 wide.
    torch.testing.assert_close(query_density(field, points, 1e-5), bounded_exp(raw[:, 0] - 1.0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
def test_wide_extents_are_prefiltered(prefilter):
    """A field of random tables is rough from near, and nearly constant over a wide neighborhood."""
    field = make_field(prefilter)
    points = 0.5 * torch.randn(500, 3)
    spread = [float(query_density(field, points, std).log().std()) for std in (1e-3, 0.5)]
    assert spread[1] < 0.5 * spread[0]


def test_colors_are_seen_along_the_given_directions():
    field = make_field()
    points, directions = 0.5 * torch.randn(60, 3), unit(60)
    density, color = query_points(field, points, directions, 0.01)
    assert density.shape == (60,) and color.shape == (60, 3)
    assert (density > 0.0).all() and (color >= 0.0).all() and (color <= 1.0).all()
    _, again = query_points(field, points, directions, 0.01)
    _, other = query_points(field, points, -directions, 0.01)
    assert torch.equal(color, again) and (color - other).abs().max() > 1e-3
    assert not density.requires_grad and not color.requires_grad


def test_beyond_the_box_of_a_bounded_scene_there_is_nothing():
    aabb = torch.tensor([[-0.5, -1.0, -0.2], [0.5, 1.0, 0.2]])
    field = make_field(aabb=aabb)
    points = torch.rand(400, 3) * 3.0 - 1.5
    inside = ((points > aabb[0]) & (points < aabb[1])).all(dim=-1)
    assert 5 < inside.sum() < 200
    assert torch.equal(query_density(field, points, 0.01) > 0.0, inside)
    assert torch.equal(query_points(field, points, unit(400), 0.01)[0] > 0.0, inside)
