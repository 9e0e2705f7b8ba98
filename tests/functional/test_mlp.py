"""The fields' networks: row by row against their formulas, folded against unfolded; view directions."""

from __future__ import annotations

import math

import pytest
import torch
from _networks import named_leaves, random_weights
from torch import Tensor, nn

from nerfstudio.field_components.mlp import MLP

from zipnerf_ns.functional import mlp
from zipnerf_ns.functional.numerics import MAX_EXPONENT

PADDING = 0.001


def density_parameters(channels: int, hidden: int, dtype=torch.float64) -> list[Tensor]:
    sizes = [(hidden, channels), (hidden,), (1, hidden), (1,)]
    return [torch.randn(*size, dtype=dtype).mul(0.4).requires_grad_() for size in sizes]


def relu(values: list[float]) -> list[float]:
    return [max(value, 0.0) for value in values]


def apply(w: Tensor, x: list[float], b: Tensor | None = None) -> list[float]:
    """w x + b one number at a time."""
    products = [sum(weight * value for weight, value in zip(row, x, strict=True)) for row in w.tolist()]
    return products if b is None else plus(products, b.tolist())


def plus(*terms: list[float]) -> list[float]:
    return [sum(values) for values in zip(*terms, strict=True)]


# --- density ---


def test_density_is_its_formula():
    features = torch.randn(5, 3, dtype=torch.float64)
    w_hidden, b_hidden, w_density, b_density = density_parameters(3, 4)
    found = mlp.density_mlp(features, w_hidden, b_hidden, w_density, b_density, -1.0, "float32")
    for row, value in zip(features.tolist(), found.tolist(), strict=True):
        raw = apply(w_density, relu(apply(w_hidden, row, b_hidden)), b_density)[0]
        assert value == pytest.approx(math.exp(raw - 1.0), rel=1e-12)


def test_density_has_the_gradient_of_its_formula():
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    parameters = density_parameters(3, 4)
    assert torch.autograd.gradcheck(lambda *args: mlp.density_mlp(*args, -1.0, "float32"), (features, *parameters))


def test_density_above_its_bound_can_still_come_down():
    features = torch.ones(1, 2, requires_grad=True)
    w_hidden, b_hidden = torch.ones(3, 2), torch.zeros(3)
    head = torch.full((1, 3), 10.0, requires_grad=True)
    density = mlp.density_mlp(features, w_hidden, b_hidden, head, torch.zeros(1), -1.0, "float32")
    assert density.item() == pytest.approx(math.exp(MAX_EXPONENT))
    density.sum().backward()
    torch.testing.assert_close(head.grad, torch.full((1, 3), 2.0 * math.exp(MAX_EXPONENT)))


# --- color ---


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_radiance_is_its_formula(layers):
    rays, samples = 2, 3
    weights = random_weights(5, 4, 6, layers, torch.float64)
    features = torch.randn(rays * samples, 5, dtype=torch.float64)
    view = torch.randn(rays, mlp.VIEW_DIM, dtype=torch.float64)
    density, rgb = mlp.radiance_mlp(features, view, weights, -0.5, PADDING, "float32")
    for index, row in enumerate(features.tolist()):
        direction = view[index // samples].tolist()
        hidden = relu(apply(weights.hidden, row, weights.hidden_bias))
        raw = apply(weights.density, hidden, weights.density_bias)[0]
        assert density[index].item() == pytest.approx(math.exp(raw - 0.5), rel=1e-12)
        below = plus(apply(weights.first, hidden, weights.first_bias), apply(weights.first_view, direction))
        for w, b in zip(weights.middle, weights.middle_bias, strict=True):
            below = apply(w, relu(below), b)
        last = plus(
            apply(weights.last, relu(below), weights.last_bias),
            apply(weights.last_hidden, hidden),
            apply(weights.last_view, direction),
        )
        raw = apply(weights.rgb, relu(last), weights.rgb_bias)
        truth = [1.002 / (1.0 + math.exp(-value)) - 0.001 for value in raw]
        assert rgb[index].tolist() == pytest.approx(truth, rel=1e-12)


def test_radiance_has_the_gradient_of_its_formula():
    weights = random_weights(3, 4, 4, 3, torch.float64)
    features = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    view = torch.randn(2, mlp.VIEW_DIM, dtype=torch.float64, requires_grad=True)
    leaves = named_leaves(weights)

    def call(features: Tensor, view: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        by_name = dict(zip(leaves, values, strict=True))
        middle = {name: (by_name.pop(f"{name}.0"),) for name in ("middle", "middle_bias")}
        return mlp.radiance_mlp(features, view, mlp.RadianceWeights(**by_name, **middle), -1.0, PADDING, "float32")

    assert torch.autograd.gradcheck(call, (features, view, *leaves.values()))


@pytest.mark.parametrize("color_layers", [2, 3, 4])
def test_folding_changes_nothing(color_layers):
    """The paper's network: a bottleneck, joined with the view direction, read by the first and the last layer."""
    hidden_dim, bottleneck_dim, width, rays, samples = 6, 5, 7, 3, 4
    torch.manual_seed(3)
    hidden_layer, density_layer = nn.Linear(8, hidden_dim), nn.Linear(hidden_dim, 1)
    bottleneck_layer = nn.Linear(hidden_dim, bottleneck_dim)
    network = MLP(bottleneck_dim + mlp.VIEW_DIM, color_layers + 1, width, 3, skip_connections=(color_layers - 1,))
    modules = nn.ModuleList([hidden_layer, density_layer, bottleneck_layer, network]).double()
    features = torch.randn(rays * samples, 8, dtype=torch.float64)
    view = torch.randn(rays, mlp.VIEW_DIM, dtype=torch.float64)

    hidden = torch.relu(hidden_layer(features))
    density = torch.exp(density_layer(hidden)[:, 0] - 1.0)
    joined = torch.cat([bottleneck_layer(hidden), view.repeat_interleave(samples, dim=0)], dim=-1)
    rgb = torch.sigmoid(network(joined)) * (1.0 + 2.0 * PADDING) - PADDING

    first, *middle, last, head = network.layers
    bottleneck = (bottleneck_layer.weight, bottleneck_layer.bias)
    over_hidden, over_view, first_bias = mlp.fold_bottleneck(*bottleneck, first.weight, first.bias)
    last_hidden, last_others, last_bias = mlp.fold_bottleneck(*bottleneck, last.weight, last.bias)
    last_view, last_below = last_others.split([mlp.VIEW_DIM, width], dim=1)
    weights = mlp.RadianceWeights(
        hidden_layer.weight, hidden_layer.bias, density_layer.weight, density_layer.bias,
        over_hidden, over_view, first_bias,
        tuple(layer.weight for layer in middle), tuple(layer.bias for layer in middle),
        last_below, last_hidden, last_view, last_bias, head.weight, head.bias,
    )  # fmt: skip
    folded_density, folded_rgb = mlp.radiance_mlp(features, view, weights, -1.0, PADDING, "float32")
    torch.testing.assert_close(folded_density, density, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(folded_rgb, rgb, rtol=1e-12, atol=0.0)

    v_density, v_rgb = torch.randn_like(density), torch.randn_like(rgb)
    parameters = list(modules.parameters())
    truth = torch.autograd.grad((density, rgb), parameters, (v_density, v_rgb))
    found = torch.autograd.grad((folded_density, folded_rgb), parameters, (v_density, v_rgb))
    for one, other in zip(truth, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rays,samples", [(0, 0), (3, 0), (3, 1), (1, 5)])
def test_any_number_of_intervals(rays, samples):
    weights = random_weights(5, 4, 6, 2)
    features = torch.randn(rays * samples, 5, requires_grad=True)
    view = torch.randn(rays, mlp.VIEW_DIM)
    density, rgb = mlp.radiance_mlp(features, view, weights, -1.0, PADDING, "float32")
    assert density.shape == (rays * samples,) and rgb.shape == (rays * samples, 3)
    (density.sum() + rgb.sum()).backward()
    assert features.grad.shape == features.shape and torch.isfinite(weights.first_view.grad).all()
    assert bool(weights.last.grad.any()) == (rays * samples > 0)


def test_intervals_that_do_not_divide():
    weights = random_weights(5, 4, 6, 2)
    for rays in (0, 2):
        with pytest.raises(ValueError, match="do not divide evenly"):
            mlp.radiance_mlp(torch.zeros(3, 5), torch.zeros(rays, 16), weights, -1.0, PADDING, "float32")


def test_a_cpu_computes_in_float32_whatever_was_asked_for():
    weights, parameters = random_weights(5, 4, 6, 3), density_parameters(5, 4, torch.float32)
    features, view = torch.randn(6, 5), torch.randn(2, mlp.VIEW_DIM)
    plain = (
        mlp.density_mlp(features, *parameters, -1.0, "float32"),
        *mlp.radiance_mlp(features, view, weights, -1.0, PADDING, "float32"),
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = (
            mlp.density_mlp(features, *parameters, -1.0, "bfloat16"),
            *mlp.radiance_mlp(features, view, weights, -1.0, PADDING, "bfloat16"),
        )
    assert all(torch.equal(one, other) for one, other in zip(plain, half, strict=True))


def test_half_precision_inputs_are_read_in_the_weights_precision():
    weights, parameters = random_weights(5, 4, 6, 3), density_parameters(5, 4, torch.float32)
    features, view = torch.randn(6, 5).bfloat16(), torch.randn(2, mlp.VIEW_DIM).bfloat16()
    found = mlp.density_mlp(features, *parameters, -1.0, "float32")
    assert torch.equal(found, mlp.density_mlp(features.float(), *parameters, -1.0, "float32"))
    found = mlp.radiance_mlp(features, view, weights, -1.0, PADDING, "float32")
    truth = mlp.radiance_mlp(features.float(), view.float(), weights, -1.0, PADDING, "float32")
    assert all(torch.equal(one, other) for one, other in zip(found, truth, strict=True))


# --- view directions ---


def test_directions_are_encoded_one_number_after_the_other():
    directions = torch.nn.functional.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1)
    found = mlp.encode_directions(directions, torch.float64)
    assert found.shape == (20, mlp.VIEW_DIM)
    for row, direction in zip(found.tolist(), directions.tolist(), strict=True):
        waves = [wave(f * x) for f in (4.0, 8.0) for wave in (math.sin, math.cos) for x in direction]
        assert row == pytest.approx([*direction, *waves, 0.0], abs=1e-12)
    single = directions.float()
    assert torch.equal(mlp.encode_directions(single, torch.bfloat16), mlp.encode_directions(single).bfloat16())


def test_encoded_directions_have_their_gradient():
    """In float64; none but the last is without one."""
    directions = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=-1).requires_grad_()

    def encoded(vectors: Tensor) -> Tensor:
        return mlp.encode_directions(vectors, torch.float64)

    assert torch.autograd.gradcheck(encoded, directions)
    sizes = torch.autograd.functional.jacobian(encoded, directions).transpose(0, 1).flatten(1).norm(dim=-1)
    assert (sizes[:-1] > 0.1).all() and float(sizes[-1]) == 0.0
