"""The networks' kernels against their torch twins: values and gradients, on a GPU or under Triton's interpreter.

Without a GPU, one test runs all the others in a process of their own: the interpreter has to be chosen before triton is
imported, and choosing it here would make ``implementation="auto"`` pick it in other tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from _half_networks import half_density_mlp, half_radiance_mlp
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _networks import named_leaves, random_weights
from _twins import DEVICE, INTERPRETED
from torch import Tensor

from zipnerf_ns.functional import mlp as twins
from zipnerf_ns.functional.numerics import MAX_EXPONENT
from zipnerf_ns.kernels.device import describe
from zipnerf_ns.kernels.mlp import networks as kernels
from zipnerf_ns.kernels.mlp.tuning import (
    DensityTuning,
    RadianceTuning,
    RowLaunch,
    density_launches,
    radiance_launches,
)

TOLERANCE = 5e-6
"""Relative L2 in float32: 64 to 400 rounding errors of 6e-8 a sum, at random."""
HALF_TOLERANCE = 4e-3
"""Relative L2 in half precision against the same roundings: sums in another order now and then round to a neighboring
number, 2^-8 away, and a unit's activation may lie on either side of zero."""
STORED_TOLERANCE = 8e-3
"""Relative L2 of what is itself in half precision: the interpreter cuts digits off, up to 2^-7, where torch rounds."""
ROUNDING = 0.35
"""Relative L2 between half precision and float32 through up to six layers of random weights with random cotangents:
each layer's 2^-8 adds up, and units whose activation changes sides count in full, of few rows all the more. The exact
test of half precision is the one against the same roundings; this one is for what both might have misunderstood."""
PADDING = 0.001


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


def random_features(rows: int, channels: int, channel_major: bool = True, dtype=torch.float32) -> Tensor:
    features = torch.randn(channels, rows, device=DEVICE).to(dtype).t()
    return (features if channel_major else features.contiguous()).requires_grad_()


def density_parameters(channels: int, hidden: int) -> list[Tensor]:
    sizes = [(hidden, channels), (hidden,), (1, hidden), (1,)]
    scales = [(2.0 / channels) ** 0.5, 0.2, (1.0 / hidden) ** 0.5, 0.2]
    leaves = [scale * torch.randn(*size) for size, scale in zip(sizes, scales, strict=True)]
    return [leaf.to(DEVICE).requires_grad_() for leaf in leaves]


def outcome(call: Callable[[], Any], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results of a call, and the gradients of their product with random cotangents."""
    results = call()
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(5)
    total = sum((out * torch.randn(out.shape, generator=generator).to(DEVICE)).sum() for out in results)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    values = {f"result {index}": out.detach() for index, out in enumerate(results)}
    return values | {f"v_{name}": v for name, v in zip(leaves, gradients, strict=True)}


def assert_agree(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    """Equal shapes and types, and as vectors of nearly equal lengths and directions."""
    for name, expected in truth.items():
        value = found[name]
        assert value.shape == expected.shape and value.dtype == expected.dtype, name
        assert torch.isfinite(value).all(), name
        bound = max(tolerance, STORED_TOLERANCE) if value.dtype == torch.bfloat16 else tolerance
        value, expected = value.double().flatten(), expected.double().flatten()
        error, scale = (value - expected).norm(), expected.norm()
        assert error <= bound * scale, f"{name}: {error / scale:.1e}"
        if scale > 0.0:
            # An error at random turns a vector by its square; a forgotten or doubled part would turn it by itself.
            assert value @ expected >= (1.0 - max(bound * bound, 1e-6)) * scale * value.norm(), name


def assert_density_agrees(features: Tensor, parameters: list[Tensor], precision: twins.Precision, **changes) -> None:
    names = ("features", "w_hidden", "b_hidden", "w_density", "b_density")
    leaves = dict(zip(names, (features, *parameters), strict=True))
    tuning = replace(small_density_tuning(), **changes)
    arguments = (features, *parameters, -1.0, precision)
    found = outcome(lambda: kernels.tuned_density_mlp(*arguments, tuning), leaves)
    if precision == "float32":
        assert_agree(found, outcome(lambda: twins.density_mlp(*arguments), leaves), TOLERANCE)
    else:
        assert_agree(found, outcome(lambda: half_density_mlp(*arguments), leaves), HALF_TOLERANCE)
        assert_agree(found, outcome(lambda: twins.density_mlp(*arguments), leaves), ROUNDING)


def assert_radiance_agrees(
    features: Tensor,
    rays: int,
    weights: twins.RadianceWeights,
    precision: twins.Precision,
    view_dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> None:
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, device=DEVICE), dim=-1)
    view = twins.encode_directions(directions, view_dtype).requires_grad_()
    leaves = {"features": features, "view": view, **named_leaves(weights)}
    tuning = replace(small_radiance_tuning(), **changes)
    arguments = (features, view, weights, -1.0, PADDING, precision)
    found = outcome(lambda: kernels.tuned_radiance_mlp(*arguments, tuning), leaves)
    if precision == "float32":
        assert_agree(found, outcome(lambda: twins.radiance_mlp(*arguments), leaves), TOLERANCE)
    else:
        assert_agree(found, outcome(lambda: half_radiance_mlp(*arguments), leaves), HALF_TOLERANCE)
        assert_agree(found, outcome(lambda: twins.radiance_mlp(*arguments), leaves), ROUNDING)


def device_weights(channels: int, hidden: int = 32, width: int = 64, layers: int = 3) -> twins.RadianceWeights:
    weights = random_weights(channels, hidden, width, layers)

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(move(tensor) for tensor in value)
        return value.detach().to(DEVICE).requires_grad_()

    return twins.RadianceWeights(*(move(value) for value in weights))


def small_density_tuning() -> DensityTuning:
    """Blocks so small that few rows make several, and a program's loop several rounds."""
    return DensityTuning(RowLaunch(16, 4, 1), RowLaunch(16, 4, 1), programs=2 if INTERPRETED else 1)


def small_radiance_tuning() -> RadianceTuning:
    launch = RowLaunch(16, 4, 1)
    return RadianceTuning(launch, launch, launch, programs=2 if INTERPRETED else 1, units=32)


# --- density ---


@runs_kernels
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "rows,channels,hidden",
    [(101, 12, 64), (96, 16, 32), (1, 50, 64), (37, 1, 128), (50, 128, 32), (17, 33, 64)],
)
def test_density_equals_the_twins(rows, channels, hidden, precision):
    assert_density_agrees(random_features(rows, channels), density_parameters(channels, hidden), precision)


@runs_kernels
@pytest.mark.parametrize("channel_major", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_density_of_features_in_either_order(channel_major, precision):
    assert_density_agrees(random_features(53, 12, channel_major), density_parameters(12, 64), precision)


@runs_kernels
@pytest.mark.parametrize("backward", [RowLaunch(32, 4, 2), RowLaunch(64, 8, 1)])
def test_density_by_other_launches(backward):
    assert_density_agrees(
        random_features(150, 12),
        density_parameters(12, 64),
        "bfloat16",
        forward=RowLaunch(128, 4, 1),
        backward=backward,
    )


@runs_kernels
def test_density_by_its_defaults():
    features, parameters = random_features(300, 12), density_parameters(12, 64)
    leaves = {"features": features, "w_hidden": parameters[0]}
    for precision, tolerance in (("float32", TOLERANCE), ("bfloat16", ROUNDING)):
        arguments = (features, *parameters, -1.0, precision)
        found, truth = (
            outcome(lambda f=f, a=arguments: f(*a), leaves) for f in (kernels.density_mlp, twins.density_mlp)
        )
        assert_agree(found, truth, tolerance)
        tuned = kernels.tuned_density_mlp(*arguments, density_launches(precision)[0])
        assert torch.equal(tuned, found["result 0"])


@runs_kernels
def test_density_of_features_in_half_precision():
    parameters = density_parameters(16, 64)
    features = random_features(40, 16, dtype=torch.bfloat16)
    assert_density_agrees(features, parameters, "bfloat16")


@runs_kernels
def test_density_at_its_bound():
    features, parameters = random_features(40, 12), density_parameters(12, 64)
    with torch.no_grad():
        parameters[3].add_(MAX_EXPONENT + 1.0)
    density = kernels.density_mlp(features, *parameters, -1.0, "float32")
    at_bound = density >= math.exp(MAX_EXPONENT) * (1.0 - 1e-5)
    assert at_bound.any() and not at_bound.all() and density.max() <= math.exp(MAX_EXPONENT) * (1.0 + 1e-5)
    # The exponential of a number near 15 carries that number's rounding, 15 * 6e-8, many times over.
    names = ("features", "w_hidden", "b_hidden", "w_density", "b_density")
    leaves = dict(zip(names, (features, *parameters), strict=True))
    arguments = (features, *parameters, -1.0, "float32")
    found, truth = (outcome(lambda f=f: f(*arguments), leaves) for f in (kernels.density_mlp, twins.density_mlp))
    assert_agree(found, truth, 1e-5)


@runs_kernels
def test_frozen_features_cost_no_cotangent():
    features, parameters = random_features(20, 12).detach(), density_parameters(12, 64)
    found, truth = (
        torch.autograd.grad(f(features, *parameters, -1.0, "float32").sum(), parameters)
        for f in (kernels.density_mlp, twins.density_mlp)
    )
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


# --- color ---


@runs_kernels
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "rays,samples,channels,hidden,width,layers",
    [
        (2, 24, 50, 64, 64, 3),
        (2, 32, 48, 64, 64, 2),
        (21, 1, 12, 32, 128, 3),
        (3, 7, 16, 32, 64, 4),
        (3, 11, 5, 32, 64, 5),
        (1, 24, 50, 64, 256, 3),
    ],
)
def test_radiance_equals_the_twins(rays, samples, channels, hidden, width, layers, precision):
    weights = device_weights(channels, hidden, width, layers)
    assert_radiance_agrees(random_features(rays * samples, channels), rays, weights, precision)


@runs_kernels
@pytest.mark.parametrize("channel_major", [True, False])
def test_radiance_of_features_in_either_order(channel_major):
    assert_radiance_agrees(random_features(45, 12, channel_major), 5, device_weights(12), "float32")


@runs_kernels
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("samples", [12, 32])
def test_radiance_part_by_part(samples, precision):
    # Parts are whole rays and begin at multiples of 16 rows: with 12 intervals a ray, every 48 rows.
    rays = 5
    features, weights = random_features(rays * samples, 12), device_weights(12, layers=4)
    assert_radiance_agrees(features, rays, weights, precision, rows=70)


@runs_kernels
@pytest.mark.parametrize("layers", [2, 3])
def test_radiance_by_other_launches(layers):
    launches = {"forward": RowLaunch(64, 4, 2), "backward": RowLaunch(32, 4, 2), "hidden": RowLaunch(32, 4, 2)}
    weights = device_weights(12, 64, 64, layers)
    assert_radiance_agrees(random_features(90, 12), 3, weights, "bfloat16", units=64, **launches)
    assert_radiance_agrees(random_features(90, 12), 3, weights, "bfloat16", units=32, **launches)


@runs_kernels
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_radiance_of_half_precision_inputs(precision):
    features = random_features(48, 16, dtype=torch.bfloat16)
    assert_radiance_agrees(features, 4, device_weights(16), precision, torch.bfloat16)


@runs_kernels
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_radiance_by_its_defaults_and_without_gradients(precision):
    features, weights = random_features(136, 50), device_weights(50, 64)
    view = torch.randn(8, 16, device=DEVICE)
    with_gradients = kernels.radiance_mlp(features, view, weights, -1.0, PADDING, precision)
    assert all(out.requires_grad for out in with_gradients)
    launches = radiance_launches(precision, len(weights.first), 3, describe(torch.device(DEVICE)))
    tuned = kernels.tuned_radiance_mlp(features, view, weights, -1.0, PADDING, precision, launches[0])
    with torch.no_grad():
        without = kernels.radiance_mlp(features, view, weights, -1.0, PADDING, precision)
        truth = twins.radiance_mlp(features, view, weights, -1.0, PADDING, precision)
    for first, second, third, expected in zip(with_gradients, tuned, without, truth, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third) and not third.requires_grad
        error = (third - expected).norm() / expected.norm()
        assert error <= (TOLERANCE if precision == "float32" else 0.1)


@runs_kernels
@pytest.mark.parametrize("wanted", ["density", "rgb"])
def test_only_one_result_is_used(wanted):
    features, weights, view = random_features(40, 12), device_weights(12), torch.randn(5, 16, device=DEVICE)
    used = {"density": 0, "rgb": 1}[wanted]
    found, truth = (
        torch.autograd.grad(f(features, view, weights, -1.0, PADDING, "float32")[used].square().sum(), features)[0]
        for f in (kernels.radiance_mlp, twins.radiance_mlp)
    )
    assert (found - truth).norm() <= TOLERANCE * truth.norm()


@runs_kernels
def test_the_same_twice():
    features, weights, view = random_features(90, 12), device_weights(12), torch.randn(3, 16, device=DEVICE)
    leaves = {"features": features, **named_leaves(weights)}
    first, second = (
        outcome(lambda: kernels.radiance_mlp(features, view, weights, -1.0, PADDING, "bfloat16"), leaves)
        for _ in range(2)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@runs_kernels
@pytest.mark.parametrize("rays", [0, 3])
def test_no_intervals(rays):
    features, weights = random_features(0, 12), device_weights(12)
    view, parameters = torch.randn(rays, 16, device=DEVICE), density_parameters(12, 64)
    density = kernels.density_mlp(features, *parameters, -1.0, "float32")
    radiance = kernels.radiance_mlp(features, view, weights, -1.0, PADDING, "float32")
    assert [out.shape for out in (density, *radiance)] == [(0,), (0,), (0, 3)]
    leaves = [features, *parameters, *named_leaves(weights).values()]
    gradients = torch.autograd.grad(density.sum() + sum(out.sum() for out in radiance), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert gradient.shape == leaf.shape and not gradient.any()


@runs_kernels
def test_autocast_changes_nothing():
    features, parameters = random_features(20, 12), density_parameters(12, 64)
    weights, view = device_weights(12), torch.randn(4, 16, device=DEVICE)

    def call() -> tuple[Tensor, ...]:
        density = kernels.density_mlp(features, *parameters, -1.0, "float32")
        return density, *kernels.radiance_mlp(features, view, weights, -1.0, PADDING, "float32")

    plain = call()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        cast = call()
    assert all(torch.equal(one, other) for one, other in zip(plain, cast, strict=True))


# --- view directions ---


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rays", [0, 1, 300])
def test_encoded_directions_equal_the_twins(rays, dtype):
    directions = torch.nn.functional.normalize(torch.randn(rays, 3, device=DEVICE), dim=-1)
    for vectors in (directions, directions.t().contiguous().t()):
        found, truth = kernels.encode_directions(vectors, dtype), twins.encode_directions(directions, dtype)
        # One step of bfloat16 where the interpreter cuts digits off and torch rounds; nothing is above 1.
        tolerance = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found, truth, rtol=0.0, atol=tolerance)


# --- what the kernels cannot take ---


@runs_kernels
def test_arguments_that_the_kernels_cannot_take():
    features, parameters = random_features(4, 12), density_parameters(12, 64)
    with pytest.raises(ValueError, match="float32 and bfloat16 features"):
        kernels.density_mlp(features.double(), *parameters, -1.0, "float32")
    with pytest.raises(ValueError, match="float32 parameters"):
        kernels.density_mlp(features, *(parameter.double() for parameter in parameters), -1.0, "float32")
    with pytest.raises(ValueError, match="hidden layer of"):
        kernels.density_mlp(features, *density_parameters(12, 24), -1.0, "float32")
    weights = device_weights(12)
    with pytest.raises(ValueError, match="16 values of a view direction"):
        kernels.radiance_mlp(features, torch.zeros(2, 9, device=DEVICE), weights, -1.0, PADDING, "float32")
    with pytest.raises(ValueError, match="do not divide evenly"):
        kernels.radiance_mlp(features, torch.zeros(3, 16, device=DEVICE), weights, -1.0, PADDING, "float32")


def test_sizes_that_the_kernels_cannot_take():
    assert kernels.why_density_unsupported(12, 64) is None
    assert "129" in kernels.why_density_unsupported(129, 64)
    assert "48" in kernels.why_density_unsupported(12, 48)
    supported = {"channels": 50, "hidden_dim": 64, "color_layers": 3, "color_dim": 256}
    assert kernels.why_radiance_unsupported(**supported) is None
    cases = [
        ({"channels": 0}, "features"),
        ({"hidden_dim": 128}, "density network of"),
        ({"color_layers": 1}, "hidden layers or more"),
        ({"color_dim": 96}, "units, not 96"),
        ({"view_dim": 9}, "view direction, not 9"),
    ]
    for change, reason in cases:
        assert reason in kernels.why_radiance_unsupported(**{**supported, **change})


def test_what_is_missing_is_named(without_interpreter):
    parameters = [parameter.detach().cpu() for parameter in density_parameters(12, 64)]
    with pytest.raises(RuntimeError, match="need a CUDA device"):
        kernels.density_mlp(torch.zeros(2, 12), *parameters, -1.0, "float32")
    with pytest.raises(RuntimeError, match="need a CUDA device"):
        kernels.encode_directions(torch.zeros(2, 3))
