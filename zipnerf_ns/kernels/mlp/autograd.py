"""The networks' kernels joined to autograd: what is kept for the backward pass, and what becomes of it there.

Nothing in here is of a kind that autocast would lower, in either direction. Parameters come as one flat tuple, matrices
before vectors, in the order in which the kernels of color read them; see :func:`flatten`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from zipnerf_ns.functional.half_precision import transposed_product
from zipnerf_ns.functional.mlp import RadianceWeights
from zipnerf_ns.kernels.launching import launching
from zipnerf_ns.kernels.mlp import launch
from zipnerf_ns.kernels.mlp.launch import HiddenLayer, Saved, Shape
from zipnerf_ns.kernels.mlp.tuning import DensityTuning, RadianceTuning

NUM_OTHER_MATRICES = 7
"""Matrices of the color network that are none of its middle layers'."""


class Options(NamedTuple):
    """What a call of the color network takes besides tensors."""

    shift: float
    padding: float
    dtype: torch.dtype
    """Number format of the operands of matrix products."""
    tuning: RadianceTuning
    layers: int
    """Hidden layers of the color network."""


def flatten(weights: RadianceWeights) -> tuple[Tensor, ...]:
    """A network's parameters in the kernels' order: matrices, then vectors, each from the first layer on."""
    w = weights
    matrices = (w.first, w.first_view, *w.middle, w.last, w.last_hidden, w.last_view, w.rgb, w.hidden)
    vectors = (w.hidden_bias, w.density, w.first_bias, *w.middle_bias, w.last_bias, w.rgb_bias, w.density_bias)
    return matrices + vectors


class DensityMlp(torch.autograd.Function):
    """density_mlp, which keeps its arguments and its result."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, shift: float, dtype: torch.dtype, tuning: DensityTuning, *parameters: Tensor
    ) -> Tensor:
        w_hidden, b_hidden, w_density, b_density = (parameter.contiguous() for parameter in parameters)
        layer = HiddenLayer(w_hidden, b_hidden, w_density)
        with launching("density_mlp", features):
            density = launch.density_forward(features, layer, b_density, shift, dtype, tuning.forward)
        ctx.save_for_backward(features, density, *layer)
        ctx.dtype, ctx.tuning = dtype, tuning
        return density

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_density: Tensor) -> tuple[Tensor | None, ...]:
        features, density, *layer = ctx.saved_tensors
        v_features = _channel_major(features) if ctx.needs_input_grad[0] else None
        with launching("density_mlp", features):
            sums = launch.density_backward(
                features, HiddenLayer(*layer), density, v_density.contiguous(), None, v_features,
                ctx.dtype, ctx.tuning,
            )  # fmt: skip
        gradients = launch.density_gradients(sums, len(layer[1]), features.shape[1])
        return v_features, None, None, None, *gradients


def radiance_forward(
    features: Tensor, view: Tensor, parameters: tuple[Tensor, ...], options: Options, saves: bool
) -> tuple[Tensor, Tensor, Saved | None, Tensor, Tensor]:
    """Density, color, the layers if ``saves``, and the parameters as the kernels read them: matrices and vectors."""
    matrices = options.layers - 2 + NUM_OTHER_MATRICES
    weights = torch.cat([matrix.detach().reshape(-1) for matrix in parameters[:matrices]]).to(options.dtype)
    biases = torch.cat([vector.detach().reshape(-1) for vector in parameters[matrices:]])
    shape = _shape(parameters, options.layers)
    with launching("radiance_mlp", features):
        density, rgb, saved = launch.radiance_forward(
            features.detach(), view.detach().contiguous(), weights, biases, shape, options.shift, options.padding,
            saves, options.tuning,
        )  # fmt: skip
    return density, rgb, saved, weights, biases


class Forward(NamedTuple):
    """What is known of some rows from the forward pass, and the parameters as the kernels read them."""

    features: Tensor
    density: Tensor
    rgb: Tensor
    saved: Saved
    weights: Tensor
    layer: HiddenLayer


class RadianceMlp(torch.autograd.Function):
    """radiance_mlp, which keeps its layers."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, view: Tensor, options: Options, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        density, rgb, saved, weights, biases = radiance_forward(features, view, parameters, options, True)
        ctx.save_for_backward(features, view, density, rgb, *saved, weights, biases)
        ctx.options, ctx.shape = options, _shape(parameters, options.layers)
        ctx.sizes = [parameter.shape for parameter in parameters]
        return density, rgb

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_density: Tensor, v_rgb: Tensor) -> tuple[Tensor | None, ...]:
        features, view, density, rgb, units, signs, weights, biases = ctx.saved_tensors
        shape, tuning, rows = ctx.shape, ctx.options.tuning, len(features)
        v_features = _channel_major(features) if ctx.needs_input_grad[0] else None
        v_view = torch.zeros_like(view) if ctx.needs_input_grad[1] else None
        if rows == 0:
            return v_features, v_view, None, *(rgb.new_zeros(size) for size in ctx.sizes)
        v_density, v_rgb = v_density.contiguous(), v_rgb.contiguous()
        layer, samples = _hidden_layer(weights, biases, shape), rows // len(view)
        sums: list[Tensor] = []
        at_a_time = launch.rows_at_a_time(tuning.rows, samples)
        for start in range(0, rows, at_a_time):
            part = slice(start, start + at_a_time)
            rays = None if v_view is None else v_view[start // samples : (start + at_a_time) // samples]
            saved = Saved(units[part], signs[part])
            forward = Forward(features[part], density[part], rgb[part], saved, weights, layer)
            v_part = None if v_features is None else v_features[part]
            with launching("radiance_mlp", features):
                found = _radiance_backward(forward, v_density[part], v_rgb[part], v_part, rays, shape, ctx.options)
            sums = [total.add_(more) for total, more in zip(sums, found, strict=True)] if sums else found
        return v_features, v_view, None, *_parameter_gradients(sums, shape)


def _radiance_backward(
    forward: Forward,
    v_density: Tensor,
    v_rgb: Tensor,
    v_features: Tensor | None,
    v_view: Tensor | None,
    shape: Shape,
    options: Options,
) -> list[Tensor]:
    """Fills ``v_features`` and ``v_view`` of some rows where given; returns their part of the parameters' gradients.

    The layers' cotangents, by far the largest tensors here, end with this function.
    """
    v_layers, v_hidden, v_colors = launch.radiance_backward(
        forward.saved, forward.weights, forward.rgb, v_rgb, shape, options.padding, options.tuning
    )
    v_density_network = launch.density_backward(
        forward.features, forward.layer, forward.density, v_density, v_hidden, v_features, options.dtype, options.tuning
    )
    if v_view is not None:
        v_view.copy_(_v_view(v_layers, forward.weights, len(v_layers) // len(v_view), shape))
    return [v_density_network, v_colors, *_layer_gradients(v_layers, forward.saved.units, shape)]


def _channel_major(features: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows channels"]:
    """An empty tensor of the same shape and type, stored channel by channel."""
    rows, channels = features.shape
    return features.new_empty(channels, rows).t()


def _shape(parameters: tuple[Tensor, ...], layers: int) -> Shape:
    width, hidden = parameters[0].shape
    channels = parameters[layers - 2 + NUM_OTHER_MATRICES - 1].shape[1]
    return Shape(channels, hidden, parameters[1].shape[1], width, layers)


def _hidden_layer(weights: Tensor, biases: Tensor, shape: Shape) -> HiddenLayer:
    """The density network's part of what the color network's kernels read."""
    w_hidden = weights[-shape.hidden * shape.channels :].view(shape.hidden, shape.channels)
    return HiddenLayer(w_hidden, biases[: shape.hidden], biases[shape.hidden : 2 * shape.hidden])


def _layer_gradients(v_layers: Tensor, units: Tensor, shape: Shape) -> list[Float[Tensor, "width inputs"]]:
    """Gradients of each color layer's weights, as columns over what feeds it; for the order see ``saved``."""
    width, side, middle = shape.width, shape.side, shape.middle
    first, *others, last = v_layers.split(width, dim=1)
    products = [transposed_product(first, units[:, width : width + side])]
    for k, v in enumerate(others):
        start = width + side - shape.view + k * middle
        products.append(transposed_product(v, units[:, start : start + middle]))
    return [*products, transposed_product(last, units[:, : width + side])]


def _v_view(v_layers: Tensor, weights: Tensor, samples: int, shape: Shape) -> Float[Tensor, "rays view"]:
    """Cotangent of the view directions of whole rays."""
    _, hidden, view, width, layers = shape
    first, last = width * hidden, width * (hidden + view) + (layers - 1) * width * width + width * hidden
    by_interval = torch.mm(v_layers[:, :width], weights[first : first + width * view].view(width, view)).float()
    by_interval += torch.mm(v_layers[:, -width:], weights[last : last + width * view].view(width, view))
    return by_interval.view(-1, samples, view).sum(dim=1)


def _parameter_gradients(sums: list[Tensor], shape: Shape) -> tuple[Tensor, ...]:
    """The gradients of the flat tuple of parameters from sums over all rows."""
    channels, hidden, view, width, _ = shape
    v_density_network, v_colors, v_first, *v_middle, v_last = sums
    v_hidden, v_hidden_bias, v_density, v_density_bias = launch.density_gradients(
        v_density_network, hidden, channels
    )
    first, first_view, first_ones = v_first.split([hidden, view, view], dim=1)
    last, last_hidden, last_view, last_ones = v_last.split([width, hidden, view, view], dim=1)
    middle = [v[:, view:] for v in v_middle]
    v_rgb, v_rgb_bias = v_colors.split([4 * width, 4])
    matrices = (first, first_view, *middle, last, last_hidden, last_view, v_rgb.view(width, 4)[:, :3].t(), v_hidden)
    biases = (first_ones[:, 0], *(v[:, 0] for v in v_middle), last_ones[:, 0], v_rgb_bias[:3])
    return *matrices, v_hidden_bias, v_density, *biases, v_density_bias
