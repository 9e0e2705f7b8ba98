"""The fields: density from the anti-aliased hash encoding, and colour on top of it."""

from __future__ import annotations

from typing import Dict, List, Literal, NamedTuple, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.encodings import SHEncoding
from nerfstudio.field_components.mlp import MLP

from zipnerf_ns.encoding import AntiAliasedHashEncoding, Encoded
from zipnerf_ns.functional import contraction, frustum
from zipnerf_ns.functional.numerics import bounded_exp

DENSITY_SHIFT = -1.0
"""density = exp(raw + shift): a scene starts a little transparent (Zip-NeRF's supplement)."""
RGB_PADDING = 0.001
"""The sigmoid's range is widened by this on both sides, so that pure black and white are reached (mip-NeRF)."""
DIRECTION_SH_LEVELS = 4
"""Degrees of the spherical harmonics that encode the view direction."""

Precision = Literal["float32", "bfloat16"]


class FieldOutput(NamedTuple):
    """Density of each interval, and what the colour and the losses need."""

    density: Float[Tensor, "rays n 1"]
    """Per world unit, float32."""
    hidden: Float[Tensor, "rays n hidden"]
    """Last hidden layer of the density network."""
    encoded: Encoded
    """The encoding's output, intervals flattened."""


def gaussians_in_cube(
    ray_samples: RaySamples, one_lookup: bool, training: bool, aabb: Optional[Float[Tensor, "2 3"]]
) -> Tuple[Float[Tensor, "intervals samples 3"], Float[Tensor, "intervals samples"]]:
    """The Gaussians that stand for each interval's frustum, in the unit cube.

    Args:
        ray_samples: ``[rays, n]`` intervals along unit directions.
        one_lookup: the cone's own Gaussian (its std is the root of its trace) instead of six multisamples.
        training: draw each interval's rotation and order at random; otherwise alternate two of them.
        aabb: box of a bounded scene; ``None`` for contracted space.
    """
    cones = ray_samples.frustums
    origins, directions = cones.origins[..., 0, :], cones.directions[..., 0, :]
    starts, ends = cones.starts[..., 0], cones.ends[..., 0]
    radius = frustum.cone_radius(cones.pixel_area[..., 0, :])
    if one_lookup:
        mean, t_var, r_var = frustum.cone_gaussians(origins, directions, starts, ends, radius)
        along = directions[..., None, :].expand_as(mean)
        if aabb is None:
            positions, stds = contraction.contract_cone_gaussians(mean, along, t_var, r_var)
        else:
            positions, stds = contraction.box_cone_gaussians(mean, along, t_var, r_var, aabb)
        return positions.reshape(-1, 1, 3), stds.reshape(-1, 1)
    if training:
        rotation = torch.rand_like(starts) * (2.0 * torch.pi)
        reverse = torch.rand_like(starts) < 0.5
    else:
        reverse = (torch.arange(starts.shape[-1], device=starts.device) % 2 == 1).expand(starts.shape)
        rotation = reverse * (torch.pi / 6.0)
    points, stds = frustum.multisamples(origins, directions, starts, ends, radius, rotation, reverse)
    if aabb is None:
        points, stds = contraction.contract_points(points, stds)
    else:
        points, stds = contraction.box_points(points, stds, aabb)
    return points.reshape(-1, frustum.NUM_MULTISAMPLES, 3), stds.reshape(-1, frustum.NUM_MULTISAMPLES)


class ZipNerfDensityField(nn.Module):
    """Density from one hidden layer over the hash encoding (Zip-NeRF, section 5): the proposal networks.

    Args:
        encoding: owns the table.
        aabb: box of a bounded scene, or ``None`` for contracted space.
        hidden_dim: width of the hidden layer.
        precision: of the hidden layer on CUDA; the density itself is always float32.
    """

    def __init__(
        self,
        encoding: AntiAliasedHashEncoding,
        aabb: Optional[Tensor] = None,
        hidden_dim: int = 64,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.encoding = encoding
        self.precision = precision
        self.register_buffer("aabb", aabb, persistent=False)
        self.hidden_layer = nn.Linear(encoding.get_out_dim(), hidden_dim)
        self.density_layer = nn.Linear(hidden_dim, 1)

    def autocast(self) -> torch.autocast:
        """Half precision for matrix products where it was asked for; off on a CPU, which gains nothing from it."""
        device_type = self.density_layer.weight.device.type
        enabled = self.precision == "bfloat16" and device_type == "cuda"
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)

    def forward(self, ray_samples: RaySamples, num_active: Optional[int] = None) -> FieldOutput:
        """Density of every interval.

        Args:
            ray_samples: ``[rays, n]`` intervals along unit directions.
            num_active: hash levels in use; all if not given.
        """
        shape = ray_samples.frustums.starts.shape[:-1]
        one_lookup = self.encoding.prefilter != "multisample"
        positions, stds = gaussians_in_cube(ray_samples, one_lookup, self.training, self.aabb)
        encoded = self.encoding(positions, stds, num_active)
        with self.autocast():
            hidden = torch.relu(self.hidden_layer(encoded.features))
        # Half precision has two or three digits: in an exponent that would be noise in the density.
        with torch.autocast(hidden.device.type, enabled=False):
            density = bounded_exp(self.density_layer(hidden.float()) + DENSITY_SHIFT)
        return FieldOutput(density.view(*shape, 1), hidden.view(*shape, -1), encoded)

    def density(self, ray_samples: RaySamples, num_active: Optional[int] = None) -> Float[Tensor, "rays n 1"]:
        """Density alone: what the sampler is given."""
        return self(ray_samples, num_active).density


class ZipNerfField(ZipNerfDensityField):
    """Density and view-dependent colour (Zip-NeRF, section 5 and supplement).

    Args:
        encoding, aabb, hidden_dim, precision: as for the density field.
        bottleneck_dim: features handed from the density network to the colour network.
        color_layers, color_dim: hidden layers of the colour network and their width.
        num_images: training images, each with its own appearance; 0 turns appearance off.
        appearance_dim: length of an image's appearance code.
    """

    def __init__(
        self,
        encoding: AntiAliasedHashEncoding,
        aabb: Optional[Tensor] = None,
        hidden_dim: int = 64,
        precision: Precision = "float32",
        bottleneck_dim: int = 256,
        color_layers: int = 3,
        color_dim: int = 256,
        num_images: int = 0,
        appearance_dim: int = 4,
    ) -> None:
        super().__init__(encoding, aabb, hidden_dim, precision)
        self.bottleneck_layer = nn.Linear(hidden_dim, bottleneck_dim)
        self.direction_encoding = SHEncoding(levels=DIRECTION_SH_LEVELS, implementation="torch")
        in_dim = bottleneck_dim + self.direction_encoding.get_out_dim()
        skip = (color_layers - 1,) if color_layers > 1 else None
        self.color_network = MLP(in_dim, color_layers + 1, color_dim, 3, skip_connections=skip)
        self.appearance = AffineAppearance(num_images, appearance_dim, bottleneck_dim) if num_images else None

    def color(self, ray_samples: RaySamples, hidden: Float[Tensor, "rays n hidden"]) -> Float[Tensor, "rays n 3"]:
        """Colour of every interval as seen along its ray, in [-padding, 1 + padding]."""
        directions = ray_samples.frustums.directions[..., :1, :]
        with self.autocast():
            bottleneck = self.bottleneck_layer(hidden)
            if self.appearance is not None and self.training:
                # At evaluation the photo that a view would have been is unknown, and the identity is neutral.
                bottleneck = self.appearance(bottleneck, ray_samples.camera_indices)
            encoded = self.direction_encoding(directions).to(bottleneck.dtype)
            encoded = encoded.expand(*hidden.shape[:-1], encoded.shape[-1])
            raw = self.color_network(torch.cat([bottleneck, encoded], dim=-1))
        return torch.sigmoid(raw.float()) * (1.0 + 2.0 * RGB_PADDING) - RGB_PADDING


class AffineAppearance(nn.Module):
    """Scale and shift of the bottleneck, from a code learnt for each training image (Zip-NeRF's supplement).

    Args:
        num_images: training images.
        code_dim: length of an image's code.
        bottleneck_dim: length of what is transformed.
    """

    def __init__(self, num_images: int, code_dim: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.codes = nn.Embedding(num_images, code_dim)
        self.affine = nn.Linear(code_dim, 2 * bottleneck_dim)
        # Starts as the identity for every image.
        nn.init.zeros_(self.codes.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, bottleneck: Float[Tensor, "rays n dim"], camera_indices: Tensor) -> Float[Tensor, "rays n dim"]:
        """Transforms each ray's bottleneck by its image's affine map."""
        scale, shift = self.affine(self.codes(camera_indices[..., :1, 0])).chunk(2, dim=-1)
        return bottleneck * (1.0 + scale) + shift


def parameter_groups(fields: List[nn.Module]) -> Tuple[List[nn.Parameter], List[nn.Parameter]]:
    """The hash tables of some fields, and all their other parameters."""
    named: Dict[str, nn.Parameter] = {
        f"{index}.{name}": parameter
        for index, field in enumerate(fields)
        for name, parameter in field.named_parameters()
    }
    tables = [parameter for name, parameter in named.items() if name.endswith("hash_table")]
    others = [parameter for name, parameter in named.items() if not name.endswith("hash_table")]
    return tables, others
