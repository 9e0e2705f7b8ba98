"""Rays as plain tensors: what the sampler, the fields and the losses work on.

Nerfstudio's RayBundle comes in and goes out; between, its RaySamples would cost a millisecond of Python a round.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.functional.frustum import cone_radius

NO_PIXEL = 1.0
"""Area from which on it is no pixel's: Nerfstudio's programs write ones where they know none."""


class Rays(NamedTuple):
    """A flat bundle of pixels' cones."""

    origins: Float[Tensor, "rays 3"]
    """World frame."""
    directions: Float[Tensor, "rays 3"]
    """Unit, world frame."""
    radius: Float[Tensor, "rays 1"]
    """Of each cone at distance 1."""
    near: Float[Tensor, "rays 1"]
    """Where to begin to look, world units."""
    far: Float[Tensor, "rays 1"]
    """Where to end, world units; above ``near``."""
    valid: Bool[Tensor, "rays 1"]
    """False for rays with nothing to see (a crop or a scene box that they miss); their limits are placeholders."""
    camera_indices: Optional[Int[Tensor, "rays 1"]] = None
    """Training image of each ray."""

    def detach(self) -> Rays:
        """The same rays without a gradient to the cameras that they come from."""
        return self._replace(
            origins=self.origins.detach(), directions=self.directions.detach(),
            near=self.near.detach(), far=self.far.detach(),
        )  # fmt: skip


class Round(NamedTuple):
    """The intervals of one round of sampling, with their weights."""

    sdist: Float[Tensor, "rays edges"]
    """Fenceposts, normalised distance in [0, 1]."""
    tdist: Float[Tensor, "rays edges"]
    """The same along the unit direction, world units."""
    weights: Float[Tensor, "rays edges-1"]
    """Share of the ray's colour that each interval contributes."""


def rays_of_bundle(
    ray_bundle: RayBundle, near_plane: float, far_plane: float, aabb: Optional[Float[Tensor, "2 3"]] = None
) -> Rays:
    """The rays of a bundle of any shape, with unit directions; the bundle itself is left as it is.

    Their limits are the planes, narrowed by the bundle's own and by the scene's box. Rays that belong to no pixel, as
    Nerfstudio's exporters make them to look at a surface from just before it, have no width, and the bundle's limits
    in the planes' place.

    Args:
        ray_bundle: ``nears`` and ``fars`` may be missing, or equal where a crop is missed.
        near_plane, far_plane: world units.
        aabb: the box of a bounded scene, world frame.
    """
    origins, directions = ray_bundle.origins.reshape(-1, 3), ray_bundle.directions.reshape(-1, 3)
    directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True).clamp_min(1e-12)
    pixel_area = ray_bundle.pixel_area.reshape(-1, 1)
    has_pixel = pixel_area < NO_PIXEL
    near = torch.full_like(origins[:, :1], near_plane)
    far = torch.full_like(near, far_plane)
    if ray_bundle.nears is not None and ray_bundle.fars is not None:
        nears, fars = ray_bundle.nears.reshape(-1, 1), ray_bundle.fars.reshape(-1, 1)
        near = torch.where(has_pixel, torch.maximum(near, nears), nears)
        far = torch.where(has_pixel, torch.minimum(far, fars), fars)
    if aabb is not None:
        # A zero component of the direction gives an infinite slab, which min and max below handle.
        tiny = torch.where(directions < 0.0, -1e-12, 1e-12)
        slabs = (aabb[:, None, :] - origins) / torch.where(directions.abs() < 1e-12, tiny, directions)
        near = torch.maximum(near, slabs.amin(dim=0).amax(dim=-1, keepdim=True))
        far = torch.minimum(far, slabs.amax(dim=0).amin(dim=-1, keepdim=True))
    valid = far > near
    indices = ray_bundle.camera_indices
    return Rays(
        origins,
        directions,
        torch.where(has_pixel, cone_radius(pixel_area), 0.0),
        torch.where(valid, near, near_plane),
        torch.where(valid, far, near_plane + 1.0),
        valid,
        None if indices is None else indices.reshape(-1, 1),
    )
