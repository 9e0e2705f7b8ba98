"""How the operations that have kernels are called: what a kernel and its twin here have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from zipnerf_ns.functional.adam import Summary, TableUpdate
from zipnerf_ns.functional.cones import Cones, HalfTable, Lookup
from zipnerf_ns.functional.hash_grid import HashGrid
from zipnerf_ns.functional.mlp import Precision, RadianceWeights


class ConeEncode(Protocol):
    """``functional.cones.cone_encode``: features of cones."""

    def __call__(
        self, table: Tensor, cones: Cones, weight_scales: Tensor, lookup: Lookup, half: HalfTable | None = None
    ) -> Tensor: ...


class JoinChannels(Protocol):
    """``functional.cones.join_channels``: channels of what stands still and of what moves, and the mask."""

    def __call__(
        self, still: Tensor, moving: Tensor, seen: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]: ...


class DensityMlp(Protocol):
    """``functional.mlp.density_mlp``: density of features."""

    def __call__(
        self, features: Tensor, w_hidden: Tensor, b_hidden: Tensor, w_density: Tensor, b_density: Tensor, shift: float,
        precision: Precision,
    ) -> Tensor: ...  # fmt: skip


class RadianceMlp(Protocol):
    """``functional.mlp.radiance_mlp``: density and color of features and view directions."""

    def __call__(
        self, features: Tensor, view: Tensor, weights: RadianceWeights, shift: float, rgb_padding: float,
        precision: Precision,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip


class EncodeDirections(Protocol):
    """``functional.mlp.encode_directions``: view directions as the color network reads them."""

    def __call__(self, directions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor: ...


class DrawIntervals(Protocol):
    """``functional.ray_march.draw_intervals``: fenceposts drawn from a histogram."""

    def __call__(
        self, sdist: Tensor | None, weights: Tensor | None, num_samples: int, jitter: Tensor | None,
        anneal: float | Tensor, near: Tensor, far: Tensor,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip


class DensityToWeights(Protocol):
    """``functional.ray_march.density_to_weights``: the intervals' shares of a ray's color."""

    def __call__(self, density: Tensor, tdist: Tensor, valid: Tensor) -> Tensor: ...


class Render(Protocol):
    """``functional.ray_march.render``: weights, color and accumulation of rays."""

    def __call__(
        self, density: Tensor, tdist: Tensor, valid: Tensor, colors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class GroupChannels(Protocol):
    """``functional.ray_march.group_channels``: means of neighboring intervals' channels."""

    def __call__(self, channels: Tensor, weights: Tensor, size: int) -> Tensor: ...


class Interlevel(Protocol):
    """``functional.ray_march.interlevel``: the loss between two rounds."""

    def __call__(
        self, w_prop: Tensor, sdist_prop: Tensor, w_main: Tensor, sdist_main: Tensor, halfwidth: float, eps: float
    ) -> Tensor: ...


class Distortion(Protocol):
    """``functional.ray_march.distortion``: the loss of one round."""

    def __call__(self, tdist: Tensor, weights: Tensor) -> Tensor: ...


class MedianAndMeanDistance(Protocol):
    """``functional.ray_march.median_and_mean_distance``: distances to show."""

    def __call__(self, weights: Tensor, tdist: Tensor) -> tuple[Tensor, Tensor]: ...


class Summarize(Protocol):
    """``functional.adam.summarize``: what follows from a table's values."""

    def __call__(self, table: Tensor, grid: HashGrid, half: Tensor | None = None) -> Summary: ...


class DecayedAdam(Protocol):
    """``functional.adam.decayed_adam_``: the optimizer's step on hash tables."""

    def __call__(
        self, updates: Sequence[TableUpdate], lr: float, betas: tuple[float, float], eps: float
    ) -> list[Summary]: ...
