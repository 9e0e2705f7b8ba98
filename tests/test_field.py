"""The fields: the cones they read, density against its formula, precision, parameters."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from _fields import hidden_of, make_field
from _rays import make_encoding, short_intervals

from zipnerf_ns.field import ZipNerfDensityField, ZipNerfField
from zipnerf_ns.functional import cones as cones_module

BOX = torch.tensor([[-2.0, -1.0, -1.5], [1.0, 2.0, 1.5]])


# --- the cones that it reads ---


@pytest.mark.parametrize("aabb", [None, BOX])
def test_the_intervals_become_cones_in_the_fields_own_space(aabb):
    rays, tdist = short_intervals()
    field = ZipNerfDensityField(make_encoding(), aabb, 8).eval()
    cones = field.cones(rays, tdist)
    assert cones[:3] == rays[:3] and cones.tdist is tdist and cones.aabb is field.aabb
    assert (aabb is None and cones.aabb is None) or torch.equal(cones.aabb, aabb)


def test_training_turns_each_interval_at_random():
    rays, tdist = short_intervals(rays=6, bins=40)
    field = ZipNerfDensityField(make_encoding(), hidden_dim=8).train()
    first, second = field.cones(rays, tdist).turns, field.cones(rays, tdist).turns
    assert first.shape == (6, 40) and (first >= 0.0).all() and (first < 2.0).all()
    assert first.unique().numel() == 240 and not torch.equal(first, second)
    # Half of 240 are reversed, give or take four standard errors of 8.
    assert 88 < int((first >= 1.0).sum()) < 152


def test_evaluation_turns_by_its_own_rule_and_draws_nothing():
    rays, tdist = short_intervals()
    field = make_field()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    outputs = [field(rays, tdist) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state()) and field.cones(rays, tdist).turns is None
    # The mask is of what moves, of which there is none.
    assert all(torch.equal(one, other) for one, other in zip(*(output[:3] for output in outputs), strict=True))


@pytest.mark.parametrize("prefilter, lookups", [("multisample", [6, 1]), ("ipe", [1]), ("none", [1])])
@pytest.mark.parametrize("training", [False, True])
def test_only_multisampling_looks_up_more_than_once(prefilter, lookups, training, monkeypatch):
    field, seen = ZipNerfDensityField(make_encoding(prefilter), hidden_dim=8).train(training), []
    original = cones_module.hash_encode
    monkeypatch.setattr(cones_module, "hash_encode", lambda *args: seen.append(args[1].shape) or original(*args))
    field.density(*short_intervals())
    # And their middle, which takes the place of those that are close.
    assert seen == [(20, count, 3) for count in lookups]


# --- density ---


def test_density_is_the_exponential_of_the_shifted_head():
    field, (rays, tdist) = make_field(), short_intervals()
    output = field(rays, tdist)
    raw = hidden_of(field, output.channels) @ field.density_layer.weight[0] + field.density_layer.bias
    torch.testing.assert_close(output.density.flatten(), torch.exp(raw - 1.0))
    torch.testing.assert_close(field.density(rays, tdist), output.density)
    torch.testing.assert_close(field.channels(rays, tdist)[0], output.channels, rtol=0.0, atol=0.0)
    assert output.density.std() > 0.01, "the test sees more than one value"


@pytest.mark.parametrize("color_layers", [1, 3])
@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_density_and_its_gradient_stay_finite_and_can_come_back(bias, color_layers):
    field = make_field(color_layers)
    torch.nn.init.constant_(field.density_layer.bias, bias)
    for density in (field.density(*short_intervals()), field(*short_intervals()).density):
        assert torch.isfinite(density).all()
        (v_bias,) = torch.autograd.grad(density.sum(), field.density_layer.bias)
        assert torch.isfinite(v_bias).all()
        if bias > 0.0:
            assert v_bias > 0.0, "a density at its bound can still be lowered"


def test_inactive_levels_do_not_reach_the_density():
    field, (rays, tdist) = make_field(), short_intervals()
    before, full = field(rays, tdist, 2).density, field(rays, tdist).density
    square = field.encoding.summary().mean_square.clone()
    level = field.encoding.grid.levels[2]
    with torch.no_grad():
        # Turned upside down, so that the level's mean square and with it the weight features stay.
        field.encoding.hash_table[level.offset :] *= -1.0
    torch.testing.assert_close(field.encoding.summary().mean_square, square)
    torch.testing.assert_close(field(rays, tdist, 2).density, before)
    torch.testing.assert_close(field.density(rays, tdist, 2), before)
    assert (field(rays, tdist).density - full).abs().max() > 1e-4


@pytest.mark.parametrize("rays, bins", [(0, 5), (1, 1), (3, 2)])
@pytest.mark.parametrize("color_layers", [1, 3])
def test_any_number_of_rays_and_intervals(rays, bins, color_layers):
    field, batch = make_field(color_layers).train(), short_intervals(rays, bins)
    output = field(*batch)
    assert output.density.shape == field.density(*batch).shape == (rays, bins)
    assert output.colors.shape == (rays, bins, 3) and output.channels.shape == (rays * bins, 12)


# --- precision ---


@pytest.mark.parametrize("color_layers", [1, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cpu_computes_in_float32_whatever_surrounds_it(precision, color_layers):
    torch.manual_seed(0)
    field, batch = ZipNerfField(make_encoding(), None, 16, precision, 8, color_layers, 12).eval(), short_intervals()
    plain, density = field(*batch), field.density(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        surrounded, again = field(*batch), field.density(*batch)
    for one, other in zip((*surrounded[:3], again), (*plain[:3], density), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("precision, enabled", [("bfloat16", True), ("float16", False), ("float32", False)])
def test_products_of_torch_are_in_half_precision_where_that_needs_no_scale(precision, enabled, monkeypatch):
    asked, original = [], torch.autocast.__init__

    def note(self, *args, enabled=True, **kwargs):
        asked.append(enabled)
        original(self, *args, enabled=False, **kwargs)

    monkeypatch.setattr(torch.autocast, "__init__", note)
    weight = SimpleNamespace(device=torch.device("cuda"))
    ZipNerfField.autocast(SimpleNamespace(precision_here=precision, density_layer=SimpleNamespace(weight=weight)))
    assert asked == [enabled]
