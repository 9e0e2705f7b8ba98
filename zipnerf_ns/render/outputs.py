"""A render's outputs, of which the dear ones are computed only for whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from zipnerf_ns.functional.numerics import TINY


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


@torch.no_grad()
def seen_prefilter_weight(
    of_levels: Float[Tensor, "intervals levels"], weights: Float[Tensor, "rays n"]
) -> Float[Tensor, "rays 1"]:
    """How much of the hash levels the prefilter leaves where rays see something: 1 for all, 0 for none.

    Args:
        of_levels: of every interval of the rays, one ray's after another's.
        weights: of the rendered round.
    """
    seen = (weights * of_levels.mean(dim=-1).view_as(weights)).sum(dim=-1, keepdim=True)
    return (seen / weights.sum(dim=-1, keepdim=True).clamp_min(TINY)).clamp(0.0, 1.0)
