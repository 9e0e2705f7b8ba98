"""The fields: the Gaussians they read, density and colour against their formulas, appearance, precision."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from _rays import make_encoding, make_samples, normal, uniform, unit_vectors

from zipnerf_ns.field import AffineAppearance, ZipNerfDensityField, ZipNerfField, gaussians_in_cube, parameter_groups

BOX = torch.tensor([[-2.0, -1.0, -1.5], [1.0, 2.0, 1.5]], dtype=torch.float64)
"""Three units along every side, off centre."""


def short_samples(rays: int = 4, bins: int = 5, scale: float = 0.3, dtype=torch.float64, **changes):
    """Intervals near the origin, where the contraction is the identity."""
    posts = 0.1 + scale * uniform((rays, bins + 1), 20, dtype=torch.float64).sort(dim=-1).values
    origins = (0.3 * normal((rays, 1, 3), 21).clamp(-1.0, 1.0)).to(dtype).expand(rays, bins, 3)
    areas = torch.full((rays, bins, 1), 1e-2, dtype=dtype)
    return make_samples(posts.to(dtype), **{"origins": origins, "pixel_area": areas, **changes})


def make_field(num_images: int = 0, color_layers: int = 3, prefilter: str = "multisample") -> ZipNerfField:
    """A field whose table and heads hold visible values."""
    torch.manual_seed(0)
    return ZipNerfField(make_encoding(prefilter), None, 16, "float32", 8, color_layers, 12, num_images).eval()


# --- the Gaussians that stand for an interval ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("aabb", [None, BOX])
def test_six_points_have_the_mean_and_the_spread_of_the_one_gaussian(training, aabb):
    samples = short_samples()
    points, _ = gaussians_in_cube(samples, False, training, aabb)
    mean, std = gaussians_in_cube(samples, True, training, aabb)
    assert points.shape[1:] == (6, 3) and mean.shape[1:] == (1, 3)
    torch.testing.assert_close(points.mean(dim=1), mean[:, 0], rtol=0.0, atol=1e-12)
    trace = (points - mean).square().sum(dim=(1, 2)) / 6.0
    # The box is a cube and the ball's inside is not bent, so the trace passes through unchanged in shape.
    torch.testing.assert_close(trace, std[:, 0].square(), rtol=1e-9, atol=0.0)


def test_bounded_space_is_measured_in_the_box():
    samples = short_samples()
    mean, std = gaussians_in_cube(samples, True, False, BOX)
    unbent, world_std = gaussians_in_cube(samples, True, False, None)
    world = 4.0 * unbent - 2.0
    torch.testing.assert_close(mean, (world - BOX[0]) / 3.0)
    torch.testing.assert_close(std, world_std * 4.0 / 3.0)


def test_unbounded_space_lands_in_the_cube_with_shrinking_extents():
    far = make_samples(torch.logspace(1.0, 6.0, 8, dtype=torch.float64).expand(3, 8))
    for one_lookup in (True, False):
        points, stds = gaussians_in_cube(far, one_lookup, False, None)
        assert ((points - 0.5).norm(dim=-1) <= 0.5).all()
        assert (stds > 0.0).all() and stds.max() < 0.5


def test_evaluation_alternates_two_patterns_and_draws_nothing():
    samples = short_samples(rays=1, bins=4)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    points, _ = gaussians_in_cube(samples, False, False, None)
    assert torch.equal(state, torch.get_rng_state())
    again, _ = gaussians_in_cube(samples, False, False, None)
    assert torch.equal(points, again)
    direction = samples.frustums.directions[0, 0]
    world = 4.0 * points - 2.0 - samples.frustums.origins[0, 0]
    across = world - (world @ direction)[..., None] * direction
    across = torch.nn.functional.normalize(across, dim=-1)
    for k in range(1, 4):
        # Interval k's pattern against interval 0's, point by point: same for even k; for odd ones the order of the
        # angles (0 2 4 3 5 1 sixths) is reversed (1 5 3 4 2 0) and turned by half a sixth.
        expected = [1.0] * 6
        if k % 2:
            turns = [(b - a + 0.5) * math.pi / 3.0 for a, b in zip((0, 2, 4, 3, 5, 1), (1, 5, 3, 4, 2, 0), strict=True)]
            expected = [math.cos(turn) for turn in turns]
        # The turn by half a sixth is a float32 constant.
        assert (across[k] * across[0]).sum(dim=-1).tolist() == pytest.approx(expected, abs=1e-7)


def test_training_turns_each_interval_at_random():
    samples = short_samples(rays=1, bins=40)
    first, first_stds = gaussians_in_cube(samples, False, True, None)
    second, second_stds = gaussians_in_cube(samples, False, True, None)
    assert ((first - second).abs().amax(dim=(1, 2)) > 1e-6).all()
    torch.testing.assert_close(first_stds, second_stds)
    direction = samples.frustums.directions[0, 0]
    spokes = 4.0 * first - 2.0 - samples.frustums.origins[0, 0]
    # The sense of rotation from the first to the second point tells whether the order was reversed.
    senses = torch.linalg.cross(spokes[:, 0], spokes[:, 1]) @ direction > 0.0
    assert 5 < int(senses.sum()) < 35


@pytest.mark.parametrize("prefilter, lookups", [("multisample", 6), ("ipe", 1), ("none", 1)])
@pytest.mark.parametrize("training", [False, True])
def test_only_multisampling_looks_up_more_than_once(prefilter, lookups, training):
    field = ZipNerfDensityField(make_encoding(prefilter), hidden_dim=8).train(training)
    seen = []
    field.encoding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    field(short_samples(dtype=torch.float32))
    assert seen == [(20, lookups, 3)]


# --- density ---


def test_density_is_the_exponential_of_the_shifted_head():
    field = make_field()
    samples = short_samples(dtype=torch.float32)
    output = field(samples)
    hidden = (output.encoded.features @ field.hidden_layer.weight.T + field.hidden_layer.bias).clamp_min(0.0)
    raw = hidden @ field.density_layer.weight[0] + field.density_layer.bias
    torch.testing.assert_close(output.density.flatten(), torch.exp(raw - 1.0))
    torch.testing.assert_close(output.hidden, hidden.view(4, 5, 16))
    assert output.density.std() > 0.01, "the test sees more than one value"


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_density_and_its_gradient_stay_finite_and_can_come_back(bias):
    field = make_field()
    torch.nn.init.constant_(field.density_layer.bias, bias)
    density = field(short_samples(dtype=torch.float32)).density
    assert torch.isfinite(density).all()
    (v_bias,) = torch.autograd.grad(density.sum(), field.density_layer.bias)
    assert torch.isfinite(v_bias).all()
    if bias > 0.0:
        assert v_bias > 0.0, "a density at its bound can still be lowered"


def test_inactive_levels_do_not_reach_the_density():
    field = make_field()
    samples = short_samples(dtype=torch.float32)
    before, full = field(samples, 2).density, field(samples).density
    square = field.encoding.mean_square().clone()
    level = field.encoding.grid.levels[2]
    with torch.no_grad():
        # Turned upside down, so that the level's mean square and with it the weight features stay.
        field.encoding.hash_table[level.offset :] *= -1.0
    torch.testing.assert_close(field.encoding.mean_square(), square)
    torch.testing.assert_close(field(samples, 2).density, before)
    assert (field(samples).density - full).abs().max() > 1e-4


# --- colour ---


def test_the_view_direction_changes_colour_only():
    field = make_field()
    point, length, rays = torch.tensor([0.2, -0.3, 0.4]), 1e-3, 6
    directions = unit_vectors(rays, 30)
    samples = make_samples(
        torch.tensor([[0.5, 0.5 + length]]).expand(rays, 2),
        origins=(point - (0.5 + 0.5 * length) * directions)[:, None],
        directions=directions[:, None],
        pixel_area=torch.full((rays, 1, 1), 1e-8),
    )
    output = field(samples)
    # The six points differ by a thousandth of a unit from one direction to the next.
    torch.testing.assert_close(output.density, output.density[:1].expand_as(output.density), rtol=2e-2, atol=0.0)
    hidden = output.hidden[:1].expand_as(output.hidden)
    colors = field.color(samples, hidden)[:, 0]
    assert torch.cdist(colors, colors)[~torch.eye(rays, dtype=torch.bool)].min() > 1e-5
    turned = make_samples(
        torch.tensor([[0.5, 0.6]]).expand(rays, 2), directions=directions[:1, None].expand(rays, 1, 3)
    )
    same = field.color(turned, hidden)[:, 0]
    torch.testing.assert_close(same, same[:1].expand_as(same))


def spherical_harmonics(direction) -> list:
    """Real spherical harmonics to degree 3, orthonormal on the sphere, in nerfstudio's order."""
    x, y, z = (float(c) for c in direction)
    return [
        0.28209479177387814,
        0.4886025119029199 * y, 0.4886025119029199 * z, 0.4886025119029199 * x,
        1.0925484305920792 * x * y, 1.0925484305920792 * y * z, 0.31539156525252005 * (3.0 * z * z - 1.0),
        1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y),
        0.5900435899266435 * y * (3.0 * x * x - y * y), 2.890611442640554 * x * y * z,
        0.4570457994644658 * y * (5.0 * z * z - 1.0), 0.3731763325901154 * z * (5.0 * z * z - 3.0),
        0.4570457994644658 * x * (5.0 * z * z - 1.0), 1.445305721320277 * z * (x * x - y * y),
        0.5900435899266435 * x * (x * x - 3.0 * y * y),
    ]  # fmt: skip


@pytest.mark.parametrize("color_layers", [1, 2, 3])
def test_colour_is_its_network_written_out(color_layers):
    field = make_field(color_layers=color_layers)
    samples = short_samples(dtype=torch.float32)
    hidden = normal((4, 5, 16), 31).clamp_min(0.0)
    found = field.color(samples, hidden)
    layers = [module for module in field.color_network.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) == color_layers + 1
    for ray in range(4):
        encoded = torch.tensor(spherical_harmonics(samples.frustums.directions[ray, 0]))
        for k in range(5):
            inputs = torch.cat([field.bottleneck_layer(hidden[ray, k]), encoded])
            x = inputs
            for index, layer in enumerate(layers):
                if index == color_layers - 1 and index > 0:
                    x = torch.cat([inputs, x])
                x = layer.weight @ x + layer.bias
                x = x.clamp_min(0.0) if index < color_layers else x
            expected = (1.0 + 2.0 * 0.001) / (1.0 + torch.exp(-x)) - 0.001
            torch.testing.assert_close(found[ray, k], expected, rtol=1e-5, atol=1e-6)


def test_colour_reaches_beyond_black_and_white():
    field = make_field()
    last = [module for module in field.color_network.modules() if isinstance(module, torch.nn.Linear)][-1]
    samples, hidden = short_samples(dtype=torch.float32), normal((4, 5, 16), 32)
    for bias, bound in ((50.0, 1.001), (-50.0, -0.001)):
        torch.nn.init.constant_(last.bias, bias)
        torch.testing.assert_close(field.color(samples, hidden), torch.full((4, 5, 3), bound))


# --- appearance ---


def test_appearance_starts_as_the_identity_and_stays_it_at_evaluation():
    field = make_field(num_images=3)
    samples, hidden = short_samples(dtype=torch.float32), normal((4, 5, 16), 33)
    plain = field.color(samples, hidden)
    torch.testing.assert_close(field.train().color(samples, hidden), plain)
    torch.nn.init.normal_(field.appearance.codes.weight)
    shifted = field.color(samples, hidden)
    assert ((shifted - plain).abs().amax(dim=(1, 2)) > 1e-4).all()
    torch.testing.assert_close(field.eval().color(samples, hidden), plain)
    samples.camera_indices = None
    torch.testing.assert_close(field.color(samples, hidden), plain)


def test_appearance_can_be_learnt_from_its_start():
    field = make_field(num_images=3).train()
    colors = field.color(short_samples(dtype=torch.float32), normal((4, 5, 16), 34))
    (colors * normal(colors.shape, 35)).sum().backward()
    assert (field.appearance.codes.weight.grad.abs().amax(dim=-1) > 0.0).all()


def test_appearance_scales_and_shifts_by_each_rays_own_image():
    torch.manual_seed(0)
    appearance = AffineAppearance(3, 4, 8)
    torch.nn.init.normal_(appearance.codes.weight)
    torch.nn.init.normal_(appearance.affine.bias)
    bottleneck, images = normal((4, 5, 8), 36), torch.tensor([2, 0, 1, 2])
    found = appearance(bottleneck, images[:, None, None].expand(4, 5, 1))
    for ray, image in enumerate(images):
        map_ = appearance.affine.weight @ appearance.codes.weight[image] + appearance.affine.bias
        torch.testing.assert_close(found[ray], bottleneck[ray] * (1.0 + map_[:8]) + map_[8:])


# --- precision ---


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cpu_computes_in_float32_whatever_surrounds_it(precision):
    torch.manual_seed(0)
    field = ZipNerfField(make_encoding(), None, 16, precision, 8, 2, 12).eval()
    samples = short_samples(dtype=torch.float32)
    plain = field(samples)
    color = field.color(samples, plain.hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        surrounded = field(samples)
        surrounded_color = field.color(samples, surrounded.hidden)
    assert surrounded.density.dtype == surrounded_color.dtype == torch.float32
    torch.testing.assert_close(surrounded.density, plain.density, rtol=0.0, atol=0.0)
    torch.testing.assert_close(surrounded_color, color, rtol=0.0, atol=0.0)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("precision, device, half", [
    ("bfloat16", "cuda", True), ("float32", "cuda", False), ("bfloat16", "cpu", False), ("float32", "cpu", False)
])  # fmt: skip
def test_half_precision_is_for_cuda_and_for_those_who_ask(precision, device, half, monkeypatch):
    asked, original = [], torch.autocast.__init__

    def note(self, *args, enabled=True, **kwargs):
        asked.append(enabled)
        original(self, *args, enabled=False, **kwargs)

    monkeypatch.setattr(torch.autocast, "__init__", note)
    weight = SimpleNamespace(device=torch.device(device))
    ZipNerfDensityField.autocast(SimpleNamespace(precision=precision, density_layer=SimpleNamespace(weight=weight)))
    assert asked == [half]


# --- parameters ---


def test_parameter_groups_part_the_parameters_into_tables_and_the_rest():
    fields = [ZipNerfDensityField(make_encoding(), hidden_dim=8), make_field(num_images=2)]
    tables, others = parameter_groups(fields)
    assert [id(table) for table in tables] == [id(field.encoding.hash_table) for field in fields]
    every = [id(parameter) for field in fields for parameter in field.parameters()]
    assert sorted(every) == sorted(id(parameter) for parameter in [*tables, *others])
