"""Rays as plain tensors: what the sampler, the fields and the losses work on.

Nerfstudio's RayBundle comes in and goes out; between, its RaySamples would cost a millisecond of Python a round.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class CameraRays(NamedTuple):
    """Rays through pixels' centers, world frame, as cameras make them: before near, far and a radius are known."""

    origins: Float[Tensor, "rays 3"]
    directions: Float[Tensor, "rays 3"]
    """Directions of unit length."""
    pixel_area: Float[Tensor, "rays 1"]
    """Product of the distances to the directions one pixel further right and down."""
    directions_norm: Float[Tensor, "rays 1"]
    """Length of the direction whose component along the optical axis is 1 (perspective)."""


class Rays(NamedTuple):
    """A flat bundle of pixels' cones."""

    origins: Float[Tensor, "rays 3"]
    """World frame."""
    directions: Float[Tensor, "rays 3"]
    """Unit, world frame."""
    radius: Float[Tensor, "rays 1"]
    """Radius of the cone at distance 1 along the unit direction."""
    near: Float[Tensor, "rays 1"]
    """Where to begin to look, world units."""
    far: Float[Tensor, "rays 1"]
    """Where to end, world units; above ``near``."""
    valid: Bool[Tensor, "rays 1"]
    """False for rays with nothing to see (a crop or a scene box that they miss); their limits are placeholders."""
    camera_indices: Int[Tensor, "rays 1"] | None = None
    """Training image of each ray."""
    times: Float[Tensor, "rays 1"] | None = None
    """Middle of the moment in which each ray sees, from 0 to 1; None where nothing is known of time."""
    shutter: float = 0.0
    """Length of that moment, in the same unit."""
    seen: Float[Tensor, "rays 1"] | None = None
    """How much each ray sees of what moves, 0 to 1; None where all see all of it."""
    told: Float[Tensor, "rays 1"] | None = None
    """How much networks are told of the prefilter's weights, 0 to 1, see ``functional.cones.Cones``; None: all."""

    @classmethod
    def between(
        cls,
        near: float,
        far: float,
        origins: Float[Tensor, "rays 3"],
        directions: Float[Tensor, "rays 3"],
        radius: Float[Tensor, "rays 1"],
    ) -> Rays:
        """Rays that all look from ``near`` to ``far``, world units; see the attributes for the others."""
        limits = torch.full_like(radius, near), torch.full_like(radius, far)
        return cls(origins, directions, radius, *limits, torch.ones_like(radius, dtype=torch.bool))

    def merged(self, side: int) -> Rays:
        """One ray for each square of ``side`` times ``side`` pixels, whose rays follow each other: the cone that they
        fill together, as far as any of them sees something."""

        def squares(values: Tensor) -> Tensor:
            return values.unflatten(0, (-1, side * side))

        valid = squares(self.valid)
        some = valid.any(dim=1)
        near = torch.where(valid, squares(self.near), torch.inf).amin(dim=1)
        far = torch.where(valid, squares(self.far), -torch.inf).amax(dim=1)
        return Rays(
            squares(self.origins).mean(dim=1),
            torch.nn.functional.normalize(squares(self.directions).mean(dim=1), dim=-1),
            side * squares(self.radius).mean(dim=1),
            # Where nothing is seen, the placeholders.
            torch.where(some, near, squares(self.near)[:, 0]),
            torch.where(some, far, squares(self.far)[:, 0]),
            some,
            times=None if self.times is None else squares(self.times).mean(dim=1),
            shutter=self.shutter,
            told=None if self.told is None else squares(self.told).mean(dim=1),
        )

    def detach(self) -> Rays:
        """The same rays without a gradient to the cameras that they come from."""
        return self._replace(
            origins=self.origins.detach(), directions=self.directions.detach(),
            near=self.near.detach(), far=self.far.detach(),
        )  # fmt: skip


class Round(NamedTuple):
    """The intervals of one round of sampling, with their weights."""

    sdist: Float[Tensor, "rays edges"]
    """Fenceposts, normalized distance in [0, 1]."""
    tdist: Float[Tensor, "rays edges"]
    """The same along the unit direction, world units."""
    weights: Float[Tensor, "rays edges-1"]
    """Share of the ray's color that each interval contributes."""
