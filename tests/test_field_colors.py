"""Color against its network written out, folded and not; which implementation computes the networks."""

from __future__ import annotations

import math

import pytest
import torch
from _fields import hidden_of, linear_layers, make_field
from _rays import make_encoding, make_rays, normal, short_intervals, unit_vectors

from zipnerf_ns.field import ZipNerfDensityField, ZipNerfField
from zipnerf_ns.ops import TORCH_OPS

# --- color ---


def test_the_view_direction_changes_color_only():
    field, rays = make_field(), 6
    point, length = torch.tensor([0.2, -0.3, 0.4]), 1e-3
    directions = unit_vectors(rays, 30)
    origins, radius = point - (0.5 + 0.5 * length) * directions, torch.full((rays, 1), 5.8e-5)
    tdist = torch.tensor([[0.5, 0.5 + length]]).expand(rays, 2)
    output = field(make_rays(rays, origins=origins, directions=directions, radius=radius), tdist)
    # The six points differ by a thousandth of a unit from one direction to the next.
    torch.testing.assert_close(output.density, output.density[:1].expand_as(output.density), rtol=2e-2, atol=0.0)
    # Exactly the same features for all of them, so that only the direction is left to tell them apart.
    field.encoding.ops = TORCH_OPS._replace(cone_encode=lambda *args: TORCH_OPS.cone_encode(*args)[:1].expand(rays, -1))
    colors = field(make_rays(rays, directions=directions), tdist).colors[:, 0]
    assert torch.cdist(colors, colors)[~torch.eye(rays, dtype=torch.bool)].min() > 1e-5
    turned = field(make_rays(rays, directions=directions[:1].expand(rays, 3)), tdist).colors[:, 0]
    torch.testing.assert_close(turned, turned[:1].expand_as(turned))


def encode_directions(direction) -> list:
    """The components, sine and cosine of four and of eight times them, and a zero."""
    components = [float(c) for c in direction]
    waves = [wave(frequency * c) for frequency in (4.0, 8.0) for wave in (math.sin, math.cos) for c in components]
    return [*components, *waves, 0.0]


@pytest.mark.parametrize("color_layers", [1, 3])
@pytest.mark.parametrize("size", [2, 4])
def test_a_group_has_the_color_of_its_mean_channels(size, color_layers):
    field, (rays, tdist) = make_field(color_layers), short_intervals()
    alone = field(rays, tdist)
    field.color_group = size
    found = field(rays, tdist)
    torch.testing.assert_close(found.density, alone.density)
    weights = TORCH_OPS.density_to_weights(alone.density, tdist, rays.valid)
    means = TORCH_OPS.group_channels(alone.channels, weights, size).view(4, -1, alone.channels.shape[1])
    groups = means.shape[1]
    # Each group as an interval, whose channels are given.
    field.color_group = 1
    field.encoding.ops = TORCH_OPS._replace(cone_encode=lambda *args: means.flatten(0, 1))
    of_groups = field(rays, tdist[:, : groups + 1]).colors
    for k in range(5):
        torch.testing.assert_close(found.colors[:, k], of_groups[:, k // size])
    assert not torch.equal(found.colors, alone.colors)


@pytest.mark.parametrize("color_layers", [1, 2, 3, 4])
def test_color_is_its_network_written_out(color_layers):
    field, (rays, tdist) = make_field(color_layers), short_intervals()
    found = field(rays, tdist)
    hidden, layers = hidden_of(field, found.channels).view(4, 5, 16), linear_layers(field)
    assert len(layers) == color_layers + 1
    for ray in range(4):
        encoded = torch.tensor(encode_directions(rays.directions[ray]))
        for k in range(5):
            inputs = torch.cat([field.bottleneck_layer(hidden[ray, k]), encoded])
            x = inputs
            for index, layer in enumerate(layers):
                if index == color_layers - 1 and index > 0:
                    x = torch.cat([inputs, x])
                x = layer.weight @ x + layer.bias
                x = x.clamp_min(0.0) if index < color_layers else x
            expected = (1.0 + 2.0 * 0.001) / (1.0 + torch.exp(-x)) - 0.001
            torch.testing.assert_close(found.colors[ray, k], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("color_layers", [1, 3])
def test_color_reaches_beyond_black_and_white(color_layers):
    field = make_field(color_layers=color_layers)
    for bias, bound in ((50.0, 1.001), (-50.0, -0.001)):
        torch.nn.init.constant_(linear_layers(field)[-1].bias, bias)
        colors = field(*short_intervals()).colors
        torch.testing.assert_close(colors, torch.full((4, 5, 3), bound))


# --- the folded network ---


def test_networks_are_folded_where_there_is_something_to_fold():
    assert [make_field(color_layers=count).is_foldable for count in (1, 2, 3)] == [False, True, True]


@pytest.mark.parametrize("color_layers", [2, 3, 4])
def test_the_folded_network_is_the_unfolded_one_in_values_and_every_gradient(color_layers, monkeypatch):
    field, batch, results = make_field(color_layers=color_layers), short_intervals(), []
    for is_folded in (True, False):
        monkeypatch.setattr(ZipNerfField, "is_foldable", is_folded)
        output = field(*batch)
        total = sum((out * normal(out.shape, seed)).sum() for seed, out in enumerate(output[:3]))
        named = dict(field.named_parameters())
        gradients = torch.autograd.grad(total, list(named.values()))
        results.append((output, dict(zip(named, gradients, strict=True))))
    (folded, v_folded), (plain, v_plain) = results
    torch.testing.assert_close(folded.density, plain.density)
    torch.testing.assert_close(folded.colors, plain.colors, rtol=1e-5, atol=1e-6)
    for name, truth in v_plain.items():
        assert truth.any(), name
        error = (v_folded[name] - truth).norm() / truth.norm()
        # Sums of some hundred float32 products in two orders.
        assert error < 1e-5, f"{name}: {error:.1e}"


# --- the implementation ---


def kernels(calls: list):
    """Stands for the kernels: the twins under their name, counted, for a few sizes."""

    def counted(name):
        return lambda *args: calls.append(name) or getattr(TORCH_OPS, name)(*args)

    return TORCH_OPS._replace(
        name="triton",
        **{name: counted(name) for name in ("density_mlp", "radiance_mlp")},
        why_density_unsupported=lambda *sizes: None if sizes == (12, 32) else f"No kernel for {sizes}.",
        why_radiance_unsupported=lambda *sizes: (
            None if sizes == (12, 32, 2, 64, 16, "float32") else f"No kernel for {sizes}."
        ),
    )


def sized_field(hidden_dim: int = 32, color_layers: int = 2, color_dim: int = 64) -> ZipNerfField:
    torch.manual_seed(0)
    return ZipNerfField(make_encoding(), None, hidden_dim, "float32", 8, color_layers, color_dim).eval()


def test_networks_of_the_kernels_sizes_run_on_them(said):
    calls = []
    for field, ask in ((sized_field(), ZipNerfField.forward),
                       (ZipNerfDensityField(make_encoding(), hidden_dim=32), ZipNerfDensityField.density)):  # fmt: skip
        field.encoding.ops = kernels(calls)
        ask(field, *short_intervals())
    assert calls == ["radiance_mlp", "density_mlp"] and said == []


def test_a_density_network_of_another_size_runs_in_torch_which_is_said_once(said):
    calls, field = [], ZipNerfDensityField(make_encoding(), hidden_dim=48)
    for ops in (TORCH_OPS, *[kernels(calls)] * 3):
        field.encoding.ops = ops
        density = field.eval().density(*short_intervals())
    field.encoding.ops = TORCH_OPS
    torch.testing.assert_close(density, field.density(*short_intervals()), rtol=0.0, atol=0.0)
    assert calls == [] and said == ["No kernel for (12, 48). This network runs in torch."]


@pytest.mark.parametrize("changes", [{"hidden_dim": 48}, {"color_dim": 48}, {"color_layers": 1}])
def test_a_color_network_that_the_kernels_lack_runs_in_torch_which_is_said_once(changes, said):
    calls, field = [], sized_field(**changes)
    plain = field(*short_intervals())
    assert said == [], "who asked for torch gets it without a word"
    field.encoding.ops = kernels(calls)
    for _ in range(3):
        output = field(*short_intervals())
    assert all(torch.equal(one, other) for one, other in zip(output[:3], plain[:3], strict=True)) and calls == []
    sizes = (12, *{"hidden_dim": 32, "color_layers": 2, "color_dim": 64, **changes}.values(), 16, "float32")
    assert said == [f"No kernel for {sizes}. This network runs in torch."]
