"""The fields' networks in Triton, behind the signatures of ``functional.mlp``.

Activations stay on chip from features to density and color. The density network keeps nothing for its backward pass,
which computes the hidden layer again. The color network keeps its layers in half precision, as any implementation must
that does not compute 180,000 products a row once more, and so its backward pass is a kernel for the chain of cotangents
followed by matrix products for the weights. View and a column of ones are kept beside the hidden layer: the same
products then give the gradients of the weights over the view and of the biases for 64 bytes a row, where sums over the
intervals of each ray would read every layer's cotangents once more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional import mlp
from zipnerf_ns.functional.mlp import VIEW_DIM, Precision, RadianceWeights, intervals_per_ray
from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.device import describe
from zipnerf_ns.kernels.launching import choose, launching
from zipnerf_ns.kernels.mlp import launch
from zipnerf_ns.kernels.mlp.autograd import (
    DensityMlp,
    Options,
    RadianceMlp,
    flatten,
    radiance_forward,
)
from zipnerf_ns.kernels.mlp.tuning import (
    DensityTuning,
    RadianceTuning,
    density_launches,
    radiance_launches,
)

MAX_CHANNELS = 128
"""Features a row, beyond which a block of them does not fit into registers."""
DENSITY_DIMS = (32, 64, 128)
"""Widths of the hidden layer that the density network's kernels take."""
HIDDEN_DIMS = (32, 64)
"""Widths of the hidden layer that the color network's kernels take."""
COLOR_DIMS = (64, 128, 256)
"""Widths of the color network."""
MIN_COLOR_LAYERS = 2
"""The first and the last hidden layer of the color network are two."""


def why_density_unsupported(channels: int, hidden_dim: int) -> str | None:
    """Why :func:`density_mlp` cannot compute a network of these sizes, as a sentence for the user; None if it can."""
    if not 1 <= channels <= MAX_CHANNELS:
        return f"The density network's kernels take up to {MAX_CHANNELS} features, not {channels}."
    if hidden_dim not in DENSITY_DIMS:
        return f"The density network's kernels take a hidden layer of {DENSITY_DIMS} units, not {hidden_dim}."
    return None


def why_radiance_unsupported(
    channels: int, hidden_dim: int, color_layers: int, color_dim: int, view_dim: int = VIEW_DIM,
    precision: Precision = "bfloat16",
) -> str | None:  # fmt: skip
    """Why :func:`radiance_mlp` cannot compute a network of these sizes, as a sentence for the user; None if it can."""
    if not 1 <= channels <= MAX_CHANNELS:
        return f"The color network's kernels take up to {MAX_CHANNELS} features, not {channels}."
    if hidden_dim not in HIDDEN_DIMS:
        return f"The color network's kernels take a density network of {HIDDEN_DIMS} units, not {hidden_dim}."
    if color_layers < MIN_COLOR_LAYERS:
        return f"The color network's kernels take {MIN_COLOR_LAYERS} hidden layers or more, not {color_layers}."
    if color_dim not in COLOR_DIMS:
        return f"The color network's kernels take hidden layers of {COLOR_DIMS} units, not {color_dim}."
    if view_dim != VIEW_DIM:
        return f"The color network's kernels take {VIEW_DIM} values of a view direction, not {view_dim}."
    if precision == "float16":
        return "The color network's kernels have no tensor cores to use in float16."
    return None


def density_mlp(
    features: Float[Tensor, "intervals channels"],
    w_hidden: Float[Tensor, "hidden channels"],
    b_hidden: Float[Tensor, "hidden"],
    w_density: Float[Tensor, "1 hidden"],
    b_density: Float[Tensor, "1"],
    shift: float,
    precision: Precision,
) -> Float[Tensor, "intervals"]:
    """Density from one hidden layer over the features: computes what ``functional.mlp.density_mlp`` defines.

    Fast where ``features`` is stored channel by channel; their cotangent always is.

    Raises:
        ValueError: if the shapes or types are none that the kernels can read.
        RuntimeError: if the kernels cannot run on the features' device; the message says what to install.
    """
    tuning = choose("density_mlp", density_launches(precision))
    return tuned_density_mlp(features, w_hidden, b_hidden, w_density, b_density, shift, precision, tuning)


def tuned_density_mlp(
    features: Float[Tensor, "intervals channels"],
    w_hidden: Float[Tensor, "hidden channels"],
    b_hidden: Float[Tensor, "hidden"],
    w_density: Float[Tensor, "1 hidden"],
    b_density: Float[Tensor, "1"],
    shift: float,
    precision: Precision,
    tuning: DensityTuning,
) -> Float[Tensor, "intervals"]:
    """:func:`density_mlp` with its launches chosen by the caller, for benchmarks and tests."""
    parameters = (w_hidden, b_hidden, w_density, b_density)
    _check(features, parameters, why_density_unsupported(features.shape[1], len(w_hidden)))
    return DensityMlp.apply(features, shift, _dtype(precision), tuning, *parameters)


def radiance_mlp(
    features: Float[Tensor, "intervals channels"],
    view: Float[Tensor, "rays view"],
    weights: RadianceWeights,
    shift: float,
    rgb_padding: float,
    precision: Precision,
) -> tuple[Float[Tensor, "intervals"], Float[Tensor, "intervals 3"]]:
    """Density and view-dependent color: computes what ``functional.mlp.radiance_mlp`` defines.

    Where something requires a gradient it keeps every layer until the backward pass: 1.7 kB an interval at the paper's
    sizes in half precision. Otherwise it keeps nothing.

    Raises:
        ValueError: if the shapes or types are none that the kernels can read.
        RuntimeError: if the kernels cannot run on the features' device; the message says what to install.
    """
    device = describe(features.device)
    layers = MIN_COLOR_LAYERS + len(weights.middle)
    tuning = choose("radiance_mlp", radiance_launches(precision, len(weights.first), layers, device))
    return tuned_radiance_mlp(features, view, weights, shift, rgb_padding, precision, tuning)


def tuned_radiance_mlp(
    features: Float[Tensor, "intervals channels"],
    view: Float[Tensor, "rays view"],
    weights: RadianceWeights,
    shift: float,
    rgb_padding: float,
    precision: Precision,
    tuning: RadianceTuning,
) -> tuple[Float[Tensor, "intervals"], Float[Tensor, "intervals 3"]]:
    """:func:`radiance_mlp` with its launches chosen by the caller, for benchmarks and tests."""
    parameters = flatten(weights)
    layers = MIN_COLOR_LAYERS + len(weights.middle)
    sizes = (features.shape[1], len(weights.hidden), layers, len(weights.first), view.shape[1])
    _check(features, parameters, why_radiance_unsupported(*sizes))
    intervals_per_ray(len(features), len(view))
    options = Options(shift, rgb_padding, _dtype(precision), tuning, layers)
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (features, view, *parameters))
    if not needs_gradient:
        return radiance_forward(features, view, parameters, options, False)[:2]
    return RadianceMlp.apply(features, view, options, *parameters)


def encode_directions(
    directions: Float[Tensor, "rays 3"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "rays 16"]:
    """View directions as the color network reads them: computes what ``functional.mlp.encode_directions`` defines.

    Directions that need a gradient, as those of cameras that are optimized, get it from the twin: once a ray, the
    encoding is a small part of a step.

    Raises:
        RuntimeError: if the kernel cannot run on the directions' device; the message says what to install.
    """
    support.require(directions.device)
    if torch.is_grad_enabled() and directions.requires_grad:
        return mlp.encode_directions(directions, dtype)
    directions = directions.detach()
    if directions.stride(1) != 1:
        directions = directions.contiguous()
    with launching("encode_directions", directions):
        return launch.encode_directions(directions, dtype)


def _dtype(precision: Precision) -> torch.dtype:
    """Number format of the operands of matrix products; the density network is too small for float16 to pay."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _check(features: Tensor, parameters: tuple[Tensor, ...], unsupported: str | None) -> None:
    """Whether the kernels can read the arguments.

    Raises:
        ValueError, RuntimeError: as the public functions do.
    """
    if unsupported is not None:
        raise ValueError(unsupported)
    if features.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the kernels read float32 and bfloat16 features, got {features.dtype}.")
    others = [parameter.dtype for parameter in parameters if parameter.dtype != torch.float32]
    if others:
        raise ValueError(f"the kernels read float32 parameters, got {others[0]}.")
    support.require(features.device)
