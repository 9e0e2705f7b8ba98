"""A render's outputs, of which the dear ones are computed only for whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.normals import normal_colors
from zipnerf_ns.functional.numerics import TINY
from zipnerf_ns.rays import Rays
from zipnerf_ns.render.chunks import evaluating
from zipnerf_ns.zipnerf import Rendering, ZipNerf


class Deferred(NamedTuple):
    """An output that has not been asked for yet."""

    compute: Callable[[], Tensor]


class Outputs(dict[str, Any]):
    """Outputs by name. A deferred one is a key like the others, and computed when its value is first looked up.

    Nerfstudio's programs list the names, and then look up those that they show; who iterates over values meets
    :class:`Deferred` instead, and can leave out what is no tensor, as they do.
    """

    def defer(self, name: str, compute: Callable[[], Tensor]) -> None:
        """Offers an output under a name."""
        self[name] = Deferred(compute)

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, Deferred):
            value = self[name] = value.compute()
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The output, computed if need be, or the default where there is none of that name."""
        return self[name] if name in self else default


class Seen(NamedTuple):
    """What a render knows when an output is asked for."""

    zipnerf: ZipNerf
    rays: Rays
    rendering: Rendering
    looks: dict[str, Any]
    """``prefilter``, ``finest_level`` and ``widening`` of the render."""


def normals(seen: Seen) -> Float[Tensor, "rays 3"]:
    """Directions of the surfaces that rays see, world frame, as colors: components from [-1, 1] to [0, 1]."""
    with evaluating(seen.zipnerf):
        return normal_colors(seen.zipnerf.normals(seen.rays, seen.rendering.rounds[-1], **seen.looks))


@torch.no_grad()
def prefilter_weight(seen: Seen) -> Float[Tensor, "rays 1"]:
    """How much of the hash levels the prefilter leaves where rays see something: 1 for all, 0 for none."""
    field, (_, tdist, weights) = seen.zipnerf.field, seen.rendering.rounds[-1]
    looks = seen.looks
    rays = seen.rays._replace(radius=looks["widening"] * seen.rays.radius)
    # Anew, for of those that were rendered some rays may have been told less than there is.
    with evaluating(seen.zipnerf):
        channels, _ = field.channels(rays, tdist, looks["finest_level"], looks["prefilter"])
    of_levels = field.encoding.prefilter_weights(channels)
    total = (weights * of_levels.mean(dim=-1).view_as(weights)).sum(dim=-1, keepdim=True)
    return (total / weights.sum(dim=-1, keepdim=True).clamp_min(TINY)).clamp(0.0, 1.0)


EXTRA_OUTPUTS: dict[str, Callable[[Seen], Tensor]] = {"normals": normals, "prefilter_weight": prefilter_weight}
"""Outputs that are rendered for whoever asks for them, by name; they take ``[rays, channels]``."""
EXTRA_COST = 4
"""Memory that a ray with these outputs takes, in that of one without."""
