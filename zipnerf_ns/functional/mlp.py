"""The fields' small networks: density from features, and color from features and view direction.

The color network reads a bottleneck, which is linear in the density network's hidden layer. Multiplied into the layers
that read it, the bottleneck disappears, and what remains has half of the products and the same values
(:func:`fold_bottleneck`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.half_precision import linear, scaled_cotangents
from zipnerf_ns.functional.numerics import bounded_exp

Precision = Literal["float32", "bfloat16", "float16"]
"""Number format of the operands of matrix products; sums, densities and colors are float32 in any case."""
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
VIEW_DIM = 16
"""Numbers that encode a view direction: as many as a product of tensor cores takes."""
VIEW_FREQUENCIES = (4.0, 8.0)
"""Radians a unit of a direction's components, of which sine and cosine are taken: waves of 90 and 45 degrees. What
glares turns faster than spherical harmonics of as many numbers can, which measured 0.25 dB worse; so did eight more
numbers, at 1 and 2, no better."""


class RadianceWeights(NamedTuple):
    """The parameters of :func:`radiance_mlp`; a layer's units come first, as in ``nn.Linear``."""

    hidden: Float[Tensor, "hidden channels"]
    """Features to the hidden layer."""
    hidden_bias: Float[Tensor, "hidden"]
    density: Float[Tensor, "1 hidden"]
    """Hidden layer to density."""
    density_bias: Float[Tensor, "1"]
    first: Float[Tensor, "width hidden"]
    """Hidden layer to the first layer of the color network."""
    first_view: Float[Tensor, "width view"]
    """View direction to the first layer."""
    first_bias: Float[Tensor, "width"]
    middle: tuple[Float[Tensor, "width width"], ...]
    """The layers between the first and the last, each over the one below; often one, or none."""
    middle_bias: tuple[Float[Tensor, "width"], ...]
    last: Float[Tensor, "width width"]
    """The layer below to the last layer, which reads hidden layer and view direction once more."""
    last_hidden: Float[Tensor, "width hidden"]
    last_view: Float[Tensor, "width view"]
    last_bias: Float[Tensor, "width"]
    rgb: Float[Tensor, "3 width"]
    """Last layer to color."""
    rgb_bias: Float[Tensor, "3"]


def density_mlp(
    features: Float[Tensor, "intervals channels"],
    w_hidden: Float[Tensor, "hidden channels"],
    b_hidden: Float[Tensor, "hidden"],
    w_density: Float[Tensor, "1 hidden"],
    b_density: Float[Tensor, "1"],
    shift: float,
    precision: Precision,
) -> Float[Tensor, "intervals"]:
    """Density from one hidden layer over the features (Zip-NeRF, section 5).

    Args:
        features: of the hash encoding.
        w_hidden, b_hidden: of the hidden layer.
        w_density, b_density: of the density's logarithm.
        shift: added to the density's logarithm.
        precision: of the hidden layer's products on CUDA; a CPU gains nothing from half precision.

    Returns:
        Density per world unit, bounded by :func:`numerics.bounded_exp`.
    """
    dtype = _operand_dtype(features, precision)
    enter, leave = scaled_cotangents(dtype)
    with torch.autocast(features.device.type, enabled=False):
        hidden = torch.relu(linear(enter(features), enter(w_hidden), enter(b_hidden), dtype))
        (raw,) = leave(_raw_density(hidden, enter(w_density), enter(b_density), shift))
        return bounded_exp(raw)


def radiance_mlp(
    features: Float[Tensor, "intervals channels"],
    view: Float[Tensor, "rays view"],
    weights: RadianceWeights,
    shift: float,
    rgb_padding: float,
    precision: Precision,
) -> tuple[Float[Tensor, "intervals"], Float[Tensor, "intervals 3"]]:
    """Density and view-dependent color (Zip-NeRF, section 5), with the bottleneck folded into the weights.

    Args:
        features: of the hash encoding; every ray has equally many intervals, one after the other.
        view: encoded direction of every ray.
        weights: see :class:`RadianceWeights`.
        shift: added to the density's logarithm.
        rgb_padding: the sigmoid's range is widened by this on both sides.
        precision: of the products on CUDA; a CPU gains nothing from half precision.

    Returns:
        Density per world unit, and color in [-rgb_padding, 1 + rgb_padding].

    Raises:
        ValueError: if the rays do not have equally many intervals.
    """
    dtype = _operand_dtype(features, precision)
    enter, leave = scaled_cotangents(dtype)
    samples = intervals_per_ray(len(features), len(view))
    features, view = enter(features), enter(view)
    weights = RadianceWeights(*(tuple(map(enter, w)) if isinstance(w, tuple) else enter(w) for w in weights))
    with torch.autocast(features.device.type, enabled=False):
        hidden = torch.relu(linear(features, weights.hidden, weights.hidden_bias, dtype))
        raw_density = _raw_density(hidden, weights.density, weights.density_bias, shift)
        below = linear(hidden, weights.first, None, dtype)
        below = torch.relu(_add_view(below, view, weights.first_view, weights.first_bias, samples, dtype))
        for w, b in zip(weights.middle, weights.middle_bias, strict=True):
            below = torch.relu(linear(below, w, b, dtype))
        last = linear(below, weights.last, None, dtype) + linear(hidden, weights.last_hidden, None, dtype)
        last = torch.relu(_add_view(last, view, weights.last_view, weights.last_bias, samples, dtype))
        raw_rgb = linear(last, weights.rgb, weights.rgb_bias, dtype).to(weights.rgb.dtype)
        raw_density, raw_rgb = leave(raw_density, raw_rgb)
        return bounded_exp(raw_density), torch.sigmoid(raw_rgb) * (1.0 + 2.0 * rgb_padding) - rgb_padding


def intervals_per_ray(intervals: int, rays: int) -> int:
    """How many intervals each ray has.

    Raises:
        ValueError: if the rays do not have equally many.
    """
    if intervals != 0 and (rays == 0 or intervals % rays):
        raise ValueError(f"{intervals} intervals do not divide evenly among {rays} rays.")
    return intervals // max(rays, 1)


def fold_bottleneck(
    w_bottleneck: Float[Tensor, "bottleneck hidden"],
    b_bottleneck: Float[Tensor, "bottleneck"],
    w_reader: Float[Tensor, "width inputs"],
    b_reader: Float[Tensor, "width"],
) -> tuple[Float[Tensor, "width hidden"], Float[Tensor, "width others"], Float[Tensor, "width"]]:
    """A layer over (bottleneck, other inputs) as a layer over (hidden layer, other inputs).

    Args:
        w_bottleneck, b_bottleneck: from the hidden layer to the bottleneck, which has no activation.
        w_reader, b_reader: of the layer that reads the bottleneck before its other inputs.

    Returns:
        Weights over the hidden layer, weights over the other inputs, and the bias.
    """
    over_bottleneck, over_others = w_reader.split([len(w_bottleneck), w_reader.shape[1] - len(w_bottleneck)], dim=1)
    return over_bottleneck @ w_bottleneck, over_others, torch.addmv(b_reader, over_bottleneck, b_bottleneck)


def encode_directions(
    directions: Float[Tensor, "rays 3"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "rays 16"]:
    """View directions as the color network reads them: their components, sine and cosine of these at
    ``VIEW_FREQUENCIES`` (mip-NeRF 360 has them at 1, 2, 4 and 8), and a zero that fills them up.

    Args:
        directions: unit vectors.
        dtype: of the result.
    """
    waves = [function(frequency * directions) for frequency in VIEW_FREQUENCIES for function in (torch.sin, torch.cos)]
    return torch.cat([directions, *waves, torch.zeros_like(directions[:, :1])], dim=-1).to(dtype)


def _operand_dtype(features: Tensor, precision: Precision) -> torch.dtype | None:
    """The half precision of matrix products; None where they are in that of the weights."""
    return HALF.get(precision) if features.device.type == "cuda" else None


def _raw_density(hidden: Tensor, w: Tensor, b: Tensor, shift: float) -> Float[Tensor, "intervals"]:
    """Logarithm of the density. In half precision, which has two or three digits, it would be noise in the density."""
    return torch.mv(hidden.to(w.dtype), w[0]) + (b + shift)


def _add_view(
    units: Float[Tensor, "intervals width"],
    view: Tensor,
    w: Tensor,
    b: Tensor,
    samples: int,
    dtype: torch.dtype | None,
) -> Float[Tensor, "intervals width"]:
    """Adds to every interval what its ray's direction gives, computed once a ray, and the bias."""
    by_ray = linear(view, w, b, dtype)
    return (units.view(len(view), samples, units.shape[-1]) + by_ray[:, None]).view(units.shape)
