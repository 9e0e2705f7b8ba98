"""The fields: density from the anti-aliased hash encoding, and color on top of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zipnerf_ns.encoding import AntiAliasedHashEncoding
from zipnerf_ns.errors import say_once
from zipnerf_ns.functional import mlp
from zipnerf_ns.functional.cones import Cones, separate_intervals
from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.functional.mlp import VIEW_DIM, Precision, RadianceWeights
from zipnerf_ns.functional.normals import density_normals
from zipnerf_ns.functional.numerics import bounded_exp
from zipnerf_ns.ops import Ops, resolve_precision
from zipnerf_ns.rays import Rays

DENSITY_SHIFT = -1.0
"""density = exp(raw + shift): a scene starts a little transparent (Zip-NeRF's supplement)."""
RGB_PADDING = 0.001
"""The sigmoid's range is widened by this on both sides, so that pure black and white are reached (mip-NeRF)."""


class Radiance(NamedTuple):
    """What a ray sees in each interval."""

    density: Float[Tensor, "rays n"]
    """Per world unit, float32."""
    colors: Float[Tensor, "rays n 3"]
    """Red, green and blue, in [-padding, 1 + padding]."""
    channels: Float[Tensor, "intervals channels"]
    """The encoding's output."""
    mask: Float[Tensor, "intervals 1"] | None = None
    """How much of what moves is seen, 0 to 1, where that is learned."""


class ZipNerfDensityField(nn.Module):
    """Density from one hidden layer over the hash encoding (Zip-NeRF, section 5): the proposal networks.

    Args:
        encoding: owns the table.
        aabb: box of a bounded scene, or ``None`` for contracted space.
        hidden_dim: width of the hidden layer.
        precision: of matrix products on CUDA; the density itself is always float32.
    """

    def __init__(
        self,
        encoding: AntiAliasedHashEncoding,
        aabb: Tensor | None = None,
        hidden_dim: int = 64,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.encoding = encoding
        self.precision: Precision = precision
        self.register_buffer("aabb", aabb, persistent=False)
        self.hidden_layer = nn.Linear(encoding.get_out_dim(), hidden_dim)
        self.density_layer = nn.Linear(hidden_dim, 1)

    @property
    def ops(self) -> Ops:
        """The operations that compute it: its encoding's."""
        return self.encoding.ops

    @property
    def precision_here(self) -> Precision:
        """Number format of matrix products on the device where it is now."""
        return resolve_precision(self.precision, self.density_layer.weight.device)

    def cones(self, rays: Rays, tdist: Float[Tensor, "rays edges"]) -> Cones:
        """The intervals as the encoding takes them; in training each is turned and reversed at random."""
        turns = 2.0 * torch.rand_like(tdist[:, 1:]) if self.training else None
        return Cones(
            rays.origins, rays.directions, rays.radius, tdist, turns, self.aabb, rays.times, None, rays.shutter,
            rays.seen, rays.told,
        )  # fmt: skip

    def channels(
        self,
        rays: Rays,
        tdist: Float[Tensor, "rays edges"],
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
    ) -> tuple[Float[Tensor, "intervals channels"], Float[Tensor, "intervals 1"] | None]:
        """The encoding's output, in the precision in which the networks read it, and the mask of what moves."""
        # In float16 small features would have no digits: the network scales what it reads.
        dtype = torch.bfloat16 if self.precision_here == "bfloat16" else torch.float32
        return self.encoding.with_mask(self.cones(rays, tdist), num_active, prefilter, dtype)

    def density(
        self,
        rays: Rays,
        tdist: Float[Tensor, "rays edges"],
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
    ) -> Float[Tensor, "rays n"]:
        """Density of every interval, per world unit.

        Args:
            rays: whose cones are cut.
            tdist: fenceposts, world units.
            num_active: hash levels that are read, from the coarsest; all if None.
            prefilter: anti-aliasing mode; the encoding's own if None.
        """
        channels, _ = self.channels(rays, tdist, num_active, prefilter)
        return self.density_of(channels).view(tdist[:, 1:].shape)

    def density_of(self, channels: Float[Tensor, "intervals channels"]) -> Float[Tensor, "intervals"]:
        """Density of intervals that have these channels."""
        hidden, density = self.hidden_layer, self.density_layer
        lack = self.ops.why_density_unsupported(hidden.in_features, hidden.out_features)
        density_mlp = choose_mlp(self.ops.density_mlp, mlp.density_mlp, lack)
        return density_mlp(
            channels, hidden.weight, hidden.bias, density.weight, density.bias, DENSITY_SHIFT, self.precision_here
        )

    def normals(
        self,
        rays: Rays,
        tdist: Float[Tensor, "rays edges"],
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
    ) -> Float[Tensor, "rays n 3"]:
        """Unit normals of every interval, world frame: against the gradient of its prefiltered density; zero where
        there is none. No gradient flows through them; see :meth:`density` for the arguments."""
        cones = separate_intervals(self.cones(rays, tdist))

        def raw_density(shift: Float[Tensor, "intervals 3"]) -> Float[Tensor, "intervals 1"]:
            moved = cones._replace(origins=cones.origins + shift)
            channels = self.encoding(moved, num_active, prefilter, is_frozen=True)
            return self.density_layer(torch.relu(self.hidden_layer(channels)))

        with torch.autocast(tdist.device.type, enabled=False):
            normals = density_normals(raw_density, torch.zeros_like(cones.origins))
        return normals.view(tdist.shape[0], tdist.shape[1] - 1, 3)


class ZipNerfField(ZipNerfDensityField):
    """Density and view-dependent color (Zip-NeRF, section 5 and supplement).

    Args:
        encoding, aabb, hidden_dim, precision: as for the density field.
        bottleneck_dim: features handed from the density to the color network.
        color_layers, color_dim: hidden layers of the color network and their width.
        color_group: neighboring intervals that share a color: that of their mean channels under their weights.
    """

    def __init__(
        self,
        encoding: AntiAliasedHashEncoding,
        aabb: Tensor | None = None,
        hidden_dim: int = 64,
        precision: Precision = "float32",
        bottleneck_dim: int = 256,
        color_layers: int = 3,
        color_dim: int = 256,
        color_group: int = 1,
    ) -> None:
        super().__init__(encoding, aabb, hidden_dim, precision)
        self.color_group = color_group
        # Whether its networks have learned to do without the prefilter's weights, see ``functional.cones.Cones.told``.
        self.can_be_untold = False
        self.bottleneck_layer = nn.Linear(hidden_dim, bottleneck_dim)
        self.color_network = ColorNetwork(bottleneck_dim + VIEW_DIM, color_layers, color_dim)
        self._kernel_sizes = encoding.get_out_dim(), hidden_dim, color_layers, color_dim, VIEW_DIM

    @property
    def is_foldable(self) -> bool:
        """Whether the bottleneck can be multiplied into the color layers, of which there must be more than one."""
        return len(self.color_network.layers) > 2

    def forward(
        self,
        rays: Rays,
        tdist: Float[Tensor, "rays edges"],
        num_active: int | None = None,
        prefilter: Prefilter | None = None,
    ) -> Radiance:
        """Density and color of every interval; see :meth:`density` for the arguments."""
        (channels, mask), ops = self.channels(rays, tdist, num_active, prefilter), self.ops
        view = ops.encode_directions(rays.directions, channels.dtype)
        shape = tdist.shape[0], tdist.shape[1] - 1
        if self.color_group == 1 or shape[1] == 1:
            density, colors = self._density_and_colors(channels, view)
            return Radiance(density.view(shape), colors.view(*shape, 3), channels, mask)
        density = self.density_of(channels).view(shape)
        weights = ops.density_to_weights(density.detach(), tdist, rays.valid)
        _, colors = self._density_and_colors(ops.group_channels(channels, weights, self.color_group), view)
        colors = colors.view(shape[0], -(-shape[1] // self.color_group), 3)
        colors = colors.repeat_interleave(self.color_group, dim=1)[:, : shape[1]]
        return Radiance(density, colors, channels, mask)

    def _density_and_colors(
        self, channels: Float[Tensor, "rows channels"], view: Float[Tensor, "rays view"]
    ) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows 3"]]:
        """Both of rows of channels, equally many a ray."""
        # Also where nothing can be folded, for then there is no kernel, which is to be said.
        lack = self.ops.why_radiance_unsupported(*self._kernel_sizes, self.precision_here)
        radiance_mlp = choose_mlp(self.ops.radiance_mlp, mlp.radiance_mlp, lack)
        if self.is_foldable:
            return radiance_mlp(channels, view, self.folded(), DENSITY_SHIFT, RGB_PADDING, self.precision_here)
        with self.autocast():
            hidden = torch.relu(self.hidden_layer(channels))
            samples = mlp.intervals_per_ray(len(hidden), len(view))
            colors = self._unfolded_colors(hidden.view(len(view), samples, hidden.shape[-1]), view)
        with torch.autocast(hidden.device.type, enabled=False):
            density = bounded_exp(self.density_layer(hidden.float()) + DENSITY_SHIFT)
        return density[:, 0], colors.flatten(0, 1)

    def autocast(self) -> torch.autocast:
        """Half precision for matrix products where it was asked for; off on a CPU, which gains nothing from it."""
        device_type = self.density_layer.weight.device.type
        return torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.precision_here == "bfloat16")

    def folded(self) -> RadianceWeights:
        """The network's weights with the bottleneck, which has no activation, multiplied into the layers after it.

        Fewer products for the same function: the bottleneck enters the first and the last color layer through
        matrices of the hidden layer's width.
        """
        (first, *middle, last, rgb) = self.color_network.layers
        weight, bias = self.bottleneck_layer.weight, self.bottleneck_layer.bias
        with torch.autocast(weight.device.type, enabled=False):
            first_hidden, first_view, first_bias = mlp.fold_bottleneck(weight, bias, first.weight, first.bias)
            last_hidden, last_others, last_bias = mlp.fold_bottleneck(weight, bias, last.weight, last.bias)
        return RadianceWeights(
            hidden=self.hidden_layer.weight, hidden_bias=self.hidden_layer.bias,
            density=self.density_layer.weight, density_bias=self.density_layer.bias,
            first=first_hidden, first_view=first_view, first_bias=first_bias,
            middle=tuple(layer.weight for layer in middle), middle_bias=tuple(layer.bias for layer in middle),
            last=last_others[:, VIEW_DIM:], last_hidden=last_hidden, last_view=last_others[:, :VIEW_DIM],
            last_bias=last_bias, rgb=rgb.weight, rgb_bias=rgb.bias,
        )  # fmt: skip

    def _unfolded_colors(
        self, hidden: Float[Tensor, "rays n hidden"], view: Float[Tensor, "rays view"]
    ) -> Float[Tensor, "rays n 3"]:
        """Colors by the network as the paper draws it."""
        bottleneck = self.bottleneck_layer(hidden)
        view = view.to(bottleneck.dtype)[:, None].expand(*hidden.shape[:-1], view.shape[-1])
        raw = self.color_network(torch.cat([bottleneck, view], dim=-1))
        return torch.sigmoid(raw.float()) * (1.0 + 2.0 * RGB_PADDING) - RGB_PADDING


class ColorNetwork(nn.Module):
    """Hidden layers and the one that gives RGB; the input is given again to the last hidden layer, if there are more.

    Args:
        in_dim: of the input.
        num_layers, width: of the hidden layers.
    """

    def __init__(self, in_dim: int, num_layers: int, width: int) -> None:
        super().__init__()
        inputs = [in_dim, *[width] * (num_layers - 1)]
        if num_layers > 1:
            inputs[-1] += in_dim
        self.layers = nn.ModuleList([*(nn.Linear(size, width) for size in inputs), nn.Linear(width, 3)])

    def forward(self, inputs: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch 3"]:
        """RGB before the sigmoid."""
        *hidden, rgb = self.layers
        x = inputs
        for index, layer in enumerate(hidden):
            again = index > 0 and index == len(hidden) - 1
            x = torch.relu(layer(torch.cat([inputs, x], dim=-1) if again else x))
        return rgb(x)


def choose_mlp(kernel: Callable, twin: Callable, lack: str | None) -> Callable:
    """A network's kernel, or its torch twin for sizes that the kernels do not know, which is said once."""
    if lack is None:
        return kernel
    say_once(f"{lack} This network runs in torch.")
    return twin
